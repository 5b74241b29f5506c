/* The pre-tokenizer: cuts a text into the words that are merged on their own. Owns its
 * regexes; scratch and prefixed are the caller's. Not for: added tokens, which are taken
 * out before (added.h). */
#ifndef FKV_TOKENIZER_PRETOKENIZE_H
#define FKV_TOKENIZER_PRETOKENIZE_H

#include <jansson.h>

#include "runner/base/buf.h"
#include "tokenizer/regex.h"

typedef struct fkv_pretokenizer fkv_pretokenizer;

/* Reads the "pre_tokenizer" object of file: Split and ByteLevel, alone or in a
 * Sequence, ByteLevel last. The result is immutable; NULL after a failure. */
fkv_status fkv_pretokenizer_open(const json_t *o, const char *file, fkv_pretokenizer **out, fkv_err *err);
void fkv_pretokenizer_close(fkv_pretokenizer *p);

typedef fkv_status fkv_word_fn(void *ctx, const char *word, size_t n, fkv_err *err);

/* Calls fn with the words of n bytes of valid UTF-8 in order, as bytes of the
 * text. prefixed is room for a word that gets a space in front. */
fkv_status fkv_pretokenize(const fkv_pretokenizer *p, fkv_regex_scratch *scratch, fkv_buf *prefixed,
                           const char *text, size_t n, fkv_word_fn *fn, void *ctx, fkv_err *err);

#endif
