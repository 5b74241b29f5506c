/* The pre-tokenizer: a list of steps that cut a text into the words that are merged on their
 * own. A step is a row of the table in pretokenize.c. Immutable once open; the scratch is the
 * caller's. Not for: added tokens, which are taken out before (added.h). */
#ifndef FKV_TOKENIZER_PRETOKENIZE_H
#define FKV_TOKENIZER_PRETOKENIZE_H

#include <jansson.h>

#include "runner/base/buf.h"
#include "tokenizer/regex.h"
#include "tokenizer/steps.h"

enum { FKV_CUTS_MAX = 2 * FKV_STEPS_MAX }; /* a ByteLevel is two: the cut and the alphabet */

typedef struct fkv_pretokenizer fkv_pretokenizer;

/* Working memory of one thread; the regexes' is borrowed. Zero-initialise. */
typedef struct fkv_pretokenizer_scratch {
    fkv_regex_scratch *regex;
    fkv_buf text[FKV_CUTS_MAX]; /* what a step writes instead of the text it got */
} fkv_pretokenizer_scratch;

/* Reads the "pre_tokenizer" of file. With keeps_start the normalizer leaves the start of a text
 * where it is (normalizer.h). The result is NULL after a failure. */
fkv_status fkv_pretokenizer_open(const json_t *o, const char *file, bool keeps_start, fkv_pretokenizer **out,
                                 fkv_err *err);
void fkv_pretokenizer_close(fkv_pretokenizer *p);

/* Whether words end up in the byte-level alphabet and could be had as bytes of the text as well. */
bool fkv_pretokenizer_gives_bytes(const fkv_pretokenizer *p);

typedef fkv_status fkv_word_fn(void *ctx, const char *word, size_t n, fkv_err *err);

/* Calls fn with the words of n bytes of valid UTF-8 in order; with bytes (see above) as bytes
 * of the text, else as the vocabulary spells them. first: the text's own start is here. */
fkv_status fkv_pretokenize(const fkv_pretokenizer *p, fkv_pretokenizer_scratch *s, bool bytes, bool first,
                           const char *text, size_t n, fkv_word_fn *fn, void *ctx, fkv_err *err);
void fkv_pretokenizer_scratch_free(fkv_pretokenizer_scratch *s);

#endif
