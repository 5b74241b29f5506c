/* The profile's sample: a seeded uniform sample of the input's usable records,
 * one pass of reading, memory for the sample only.
 *
 * A sample owns its records and is freed after a failed take, too. Not for measuring budgets on it
 * (planning.c). */
#ifndef FKV_RUNNER_SAMPLE_H
#define FKV_RUNNER_SAMPLE_H

#include "runner/setup.h"

typedef struct fkv_sample_record {
    int64_t ordinal;
    uint64_t key;
    fkv_ids ids; /* prompt, cut to length */
    int64_t max_new, truncated;
    int64_t n_tokens, n_bytes; /* of the whole prompt; of the record's line */
    fkv_record *record;        /* without its prompt's text; NULL: not kept */
} fkv_sample_record;

typedef struct fkv_sample {
    fkv_sample_record *records; /* [n] by ordinal */
    int64_t n;
    int64_t n_input;        /* records of the input, usable or not */
    int64_t max_line_bytes; /* of its longest line */
    int64_t n_left_out;     /* records that were looked at, and would be error rows */
} fkv_sample;

/* Every record gets a random key from job.seed and its ordinal; the sample is the
 * profile.sample usable ones with the smallest keys. So a record whose key is too
 * large is never parsed, and what is usable is judged only where it matters.
 * FKV_E_INTERRUPTED when a signal came. */
fkv_status fkv_sample_take(const fkv_setup *setup, const fkv_layout *layout, fkv_sample *sample,
                           fkv_err *err);
/* The same sample, and in *more what comes behind it: the n_more usable records, or as many as there are,
 * with the next larger keys, their records kept. Both are to be freed, after a failure too. */
fkv_status fkv_sample_take_more(const fkv_setup *setup, const fkv_layout *layout, int64_t n_more,
                                fkv_sample *sample, fkv_sample *more, fkv_err *err);
void fkv_sample_free(fkv_sample *sample);

/* Tokens that the input's longest prompt is expected to have before it is cut: the sample's
 * longest; or, where the sample is a part of the input, an eighth more than its longest line
 * has at the most tokens a byte of the sample's long lines. A longer one may come. 0:
 * nothing is known. */
int64_t fkv_sample_longest(const fkv_sample *sample);

#endif
