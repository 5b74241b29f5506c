/* A list of records answered by engines that have a plan, each answer kept as ids: what a stream (stream.h)
 * does for an archive, for so few that memory holds them all. Which engine answers what is fixed by their
 * numbers, so nobody waits for anybody.
 *
 * Answers are the caller's, also after a failure. Not for what is made of them (compare_count.h). */
#ifndef FKV_RUNNER_TRIAL_H
#define FKV_RUNNER_TRIAL_H

#include "runner/replicas.h"
#include "runner/sample.h"

typedef struct fkv_trial_answer {
    fkv_ids ids; /* generated, the stop token included */
    bool at_limit;
    char code[24]; /* of the error row that a run would make of it; empty: there is an answer */
} fkv_trial_answer;

/* answers: [records->n], empty or of an earlier trial. The records were kept (sample.h), and the engines'
 * buffers hold them. done is called with the number of those that are answered, from any engine's thread.
 * FKV_E_INTERRUPTED when a signal came: nothing in flight is waited for. */
fkv_status fkv_trial_run(const fkv_setup *setup, const fkv_sample *records, fkv_replicas *replicas,
                         void (*done)(void *ctx, int64_t n), void *ctx, fkv_trial_answer *answers,
                         fkv_err *err);
void fkv_trial_free(fkv_trial_answer *answers, int64_t n);

#endif
