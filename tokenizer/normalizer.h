/* The normalizer of a tokenizer: a list of steps that a text passes before it is cut. A step
 * is a row of the table in normalizer.c. Immutable once open; the scratch owns what changes.
 * Not for: what a normal form is (nfc.h). */
#ifndef FKV_TOKENIZER_NORMALIZER_H
#define FKV_TOKENIZER_NORMALIZER_H

#include <jansson.h>

#include "tokenizer/nfc.h"
#include "tokenizer/regex.h"

typedef struct fkv_normalizer fkv_normalizer;

/* Working memory of one thread, all but the regexes', which is the caller's. Zero-initialise. */
typedef struct fkv_normalizer_scratch {
    fkv_nfc_scratch nfc;
    fkv_buf text[2]; /* what steps write, in turns */
    size_t most;     /* bytes that the present text may become */
} fkv_normalizer_scratch;

/* Reads the "normalizer" of file. The result is NULL after a failure. */
fkv_status fkv_normalizer_open(const json_t *o, const char *file, fkv_normalizer **out, fkv_err *err);
void fkv_normalizer_close(fkv_normalizer *normalizer);

/* Whether a character at the beginning of a normalized text is always (part of) the one at
 * the beginning of the text. */
bool fkv_normalizer_keeps_start(const fkv_normalizer *normalizer);

/* What n bytes of valid UTF-8 become: valid UTF-8 again. *out is text itself or in the
 * scratch until the next call. A text that grows out of all proportion is FKV_E_INPUT. */
fkv_status fkv_normalize(const fkv_normalizer *normalizer, fkv_normalizer_scratch *s,
                         fkv_regex_scratch *regex, const char *text, size_t n, const char **out,
                         size_t *n_out, fkv_err *err);
void fkv_normalizer_scratch_free(fkv_normalizer_scratch *s);

#endif
