/* The parts of tokenizer.json that are neither the model nor a list of tokens:
 * normalizer, post-processor, decoder. Owns nothing; prefix and suffix are the caller's,
 * after a failure with some of the ids. Not for: reading the file (tokenizer.c). */
#ifndef FKV_TOKENIZER_TOKENIZER_FILE_H
#define FKV_TOKENIZER_TOKENIZER_FILE_H

#include <jansson.h>

#include "tokenizer/ids.h"
#include "tokenizer/vocab.h"

/* Whether the normalizer is NFC (else it is none). */
fkv_status fkv_file_normalizer(const json_t *root, const char *file, bool *nfc, fkv_err *err);

/* The ids that the post-processor puts around a text. */
fkv_status fkv_file_post_processor(const json_t *root, const char *file, const fkv_vocab *vocab,
                                   fkv_ids *prefix, fkv_ids *suffix, fkv_err *err);

/* Checks that decoding is ByteLevel's. */
fkv_status fkv_file_decoder(const json_t *root, const char *file, fkv_err *err);

#endif
