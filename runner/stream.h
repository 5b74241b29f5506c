/* The stream of a run: a reader thread decompresses, parses and tokenizes ahead
 * of the engines through a bounded queue; every replica runs its engine in its own thread and
 * takes records from there; a writer thread makes rows and hands them to the output. Memory is
 * bounded by the number of items in flight, whatever the input's size.
 *
 * Threads and items are its own and gone when it returns; output and replicas stay the caller's. Not for
 * deciding what the engine does next (engine/schedule.h), nor for when a shard is written (jobs/output.h). */
#ifndef FKV_RUNNER_STREAM_H
#define FKV_RUNNER_STREAM_H

#include "jobs/output.h"
#include "runner/planning.h"

/* What was seen of the input. */
typedef struct fkv_stream_seen {
    int64_t n_records;        /* of all of it, on FKV_OK */
    int64_t n_damaged;        /* archives, each with a line in the log */
    const char *last_damaged; /* its name, the job's; NULL: none */
} fkv_stream_seen;

/* Runs until the input ends, a signal ends it (FKV_E_INTERRUPTED) or something
 * fails; what is finished is in the output in every case. */
fkv_status fkv_stream_run(const fkv_setup *setup, const fkv_planning *planning, fkv_output *output,
                          fkv_replicas *replicas, fkv_stream_seen *seen, fkv_err *err);

#endif
