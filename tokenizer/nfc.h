/* Normalization Form C. The scratch owns all memory, after a failure too. Not for: which
 * normal form a file wants (normalizer.h). */
#ifndef FKV_TOKENIZER_NFC_H
#define FKV_TOKENIZER_NFC_H

#include <stddef.h>
#include <stdint.h>

#include "runner/base/buf.h"
#include "runner/base/status.h"

/* Working memory of one thread. Zero-initialise. */
typedef struct fkv_nfc_scratch {
    int32_t *cps;    /* one run, decomposed */
    int32_t *sorted; /* merge space for its marks */
    size_t cap, n_sorted;
    fkv_buf run, text; /* one run composed again; the changed text */
} fkv_nfc_scratch;

/* Normalization Form C of n bytes of valid UTF-8. *out is text itself when it
 * is in that form, else s->text's memory, good until the next call. Linear but
 * for sorting marks (n log n). */
fkv_status fkv_nfc(fkv_nfc_scratch *s, const char *text, size_t n, const char **out, size_t *n_out,
                   fkv_err *err);
void fkv_nfc_scratch_free(fkv_nfc_scratch *s);

#endif
