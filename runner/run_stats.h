/* A run's stats.json and metrics.prom: puts together what the output, the tally, the engine and earlier runs
 * say, as often as it is told to.
 *
 * Owns what it read of earlier runs and the GPUs' energy counters; borrows the rest until close. Any thread
 * may save while another one says what it knows. Not for the files' form (jobs/stats.h). */
#ifndef FKV_RUNNER_RUN_STATS_H
#define FKV_RUNNER_RUN_STATS_H

#include "engine/measure/measure.h"
#include "runner/planning.h"
#include "runner/tally.h"

typedef struct fkv_run_stats fkv_run_stats;

/* Reads what earlier runs left of the output; where that is damaged, history begins anew, with a line in the
 * log. Before rows are added. */
fkv_status fkv_run_stats_open(const fkv_setup *setup, fkv_output *output, fkv_run_stats **stats,
                              fkv_err *err);
/* There is a plan, and the replicas have it. Answers begin: the tally gets its goal. */
void fkv_run_stats_planned(fkv_run_stats *stats, const fkv_planning *planning, const fkv_replicas *replicas);
/* No run of an engine is under way any more; trace (or NULL) timed the first one's steps. */
void fkv_run_stats_measured(fkv_run_stats *stats, const fkv_planning *planning, const fkv_replicas *replicas,
                            const fkv_trace *trace);
/* Replaces both files, metrics.prom in both places. exit_code < 0: the run is at work. What becomes of the
 * second place is a line in the log alone. */
fkv_status fkv_run_stats_save(fkv_run_stats *stats, int exit_code, bool complete, fkv_err *err);
/* All error rows by code, as the next save has them. */
void fkv_run_stats_errors(fkv_run_stats *stats, fkv_error_counts *errors);
/* What was last put together for a save, whether or not it could be written; valid until the next save. */
const fkv_stats *fkv_run_stats_last(const fkv_run_stats *stats);
void fkv_run_stats_close(fkv_run_stats *stats);

#endif
