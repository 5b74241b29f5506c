/* From generated ids to an answer's text, and when a stop string ends it.
 *
 * A maker owns its buffer and borrows the setup. After a failure it is as good as before, and still to be
 * closed. Not for rows (jobs/row.h), nor for the stop token, which the engine knows. */
#ifndef FKV_RUNNER_ANSWER_H
#define FKV_RUNNER_ANSWER_H

#include "runner/sampling.h"

/* One per thread. */
typedef struct fkv_answer_maker {
    const fkv_setup *setup;
    fkv_buf text;
} fkv_answer_maker;

/* What ends an answer. */
typedef struct fkv_answer_ends {
    fkv_sampling sampling;
    fkv_stops stops;
} fkv_answer_ends;

void fkv_answer_maker_open(fkv_answer_maker *maker, const fkv_setup *setup);
void fkv_answer_maker_close(fkv_answer_maker *maker);

/* The text of one record so far, as far as a stop string may still begin in it. Zero-initialise; one record
 * after another may use it. */
typedef struct fkv_answer_watch {
    fkv_tokenizer_stream *stream;
    size_t n_ids;    /* that are in it */
    fkv_buf certain; /* text that no later id changes */
} fkv_answer_watch;

void fkv_answer_watch_free(fkv_answer_watch *watch);

/* Whether the last of n ids completed a stop string. Called with n - 1 ids of the same record before, it
 * looks at the last alone; else it begins anew. */
bool fkv_answer_stops(fkv_answer_maker *maker, const fkv_stops *stops, fkv_answer_watch *watch,
                      const int32_t *ids, size_t n);

/* The text without special tokens and without the stop token, cut at the first stop string (*stopped tells);
 * borrowed until the next call. */
fkv_status fkv_answer_text(fkv_answer_maker *maker, const fkv_answer_ends *ends, const int32_t *ids, size_t n,
                           const char **text, size_t *n_text, bool *stopped, fkv_err *err);

#endif
