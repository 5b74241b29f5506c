/* stats.json and metrics.prom: what a run measured about itself (FORMATS.md). Borrows
 * all; both files are replaced whole or stay as they were. Not for: measuring. */
#ifndef FKV_JOBS_STATS_H
#define FKV_JOBS_STATS_H

#include "jobs/output.h"

enum { FKV_STATS_PHASES = 8 };

typedef struct fkv_stats {
    fkv_output_totals totals;
    bool complete;
    int64_t decode_steps, busy_slot_steps; /* slots at work, summed over the steps */
    int64_t restarts, restarted_tokens;    /* of records that had to yield their KV pages */
    int64_t prefill_passes, prefill_tokens;
    int64_t slots;
    int64_t kv_bytes; /* largest in use over all ranks together */
    int64_t peak_rss_bytes;
    struct {
        const char *name;
        double seconds;
    } phases[FKV_STATS_PHASES];           /* name NULL ends it */
    const double *rank_attention_seconds; /* [n_ranks] */
    int n_ranks;
    /* A decode step with all slots at work; 0: not measured. */
    double step_predicted_us, step_measured_us, segments_predicted_us, segments_measured_us;
    const char *backend, *versions; /* versions: a JSON object's text */
} fkv_stats;

/* Of the two, stats.json is written first. */
fkv_status fkv_stats_write(const fkv_output *output, const fkv_stats *stats, fkv_err *err);

#endif
