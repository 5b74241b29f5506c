/* The post-processor of tokenizer.json: the ids that it puts around a text. A step is a row of
 * the table in post_process.c. Owns nothing; prefix and suffix are the caller's, after a failure
 * with some of the ids. Not for: pairs of texts, offsets. */
#ifndef FKV_TOKENIZER_POST_PROCESS_H
#define FKV_TOKENIZER_POST_PROCESS_H

#include <jansson.h>

#include "tokenizer/ids.h"
#include "tokenizer/vocab.h"

/* Reads the "post_processor" of file. */
fkv_status fkv_post_processor_read(const json_t *o, const char *file, const fkv_vocab *vocab, fkv_ids *prefix,
                                   fkv_ids *suffix, fkv_err *err);

#endif
