/* stats.json and metrics.prom: what a run measured about itself, and what all runs of its part did
 * (FORMATS.md). Borrows all; each file is replaced whole or stays as it was. Not for: measuring. */
#ifndef FKV_JOBS_STATS_H
#define FKV_JOBS_STATS_H

#include "jobs/error_counts.h"
#include "jobs/output.h"

/* What a run's wall time goes into. They don't overlap, and together they are all of it. */
typedef enum fkv_stage {
    FKV_STAGE_START,     /* reading the job, checking, opening the output */
    FKV_STAGE_WAIT,      /* for another process that makes profile or plan */
    FKV_STAGE_SAMPLE,    /* reading the input for the sample */
    FKV_STAGE_PROFILE,   /* measuring budgets on it */
    FKV_STAGE_LOAD,      /* weights to the devices */
    FKV_STAGE_CALIBRATE, /* measuring the device: constants, numbers of slots */
    FKV_STAGE_PLAN,      /* solving */
    FKV_STAGE_PREFILL,   /* the devices, prompts */
    FKV_STAGE_DECODE,    /* the devices, steps */
    FKV_STAGE_OTHER,     /* answering records, but neither of the two: waiting for input or for the disk */
    FKV_STAGE_FINISH,    /* last shards, manifest */
    FKV_STAGES
} fkv_stage;

/* The word for it in both files. */
const char *fkv_stage_name(fkv_stage stage);

/* What adds up over the runs of an output's part. */
typedef struct fkv_stats_sums {
    int64_t runs, prompt_tokens, completion_tokens;
    double seconds[FKV_STAGES];
    double gpu_seconds, joules;
    int64_t energy_runs;  /* whose joules are known */
    int64_t last_success; /* Unix time at which the part was finished; 0: never */
} fkv_stats_sums;

/* What earlier runs left. */
typedef struct fkv_stats_history {
    fkv_stats_sums sums;
    int64_t done;            /* rows, when it was written */
    fkv_error_counts errors; /* of them */
} fkv_stats_history;

/* A moment of the answering. */
typedef struct fkv_stats_point {
    double seconds;  /* since the run began */
    int64_t records; /* of this run so far, as the next three */
    int64_t prompt_tokens, completion_tokens;
    double busy_slots; /* mean since the point before */
    int64_t errors;
} fkv_stats_point;

enum { FKV_STATS_LENGTHS = 32, FKV_STATS_POINTS = 512 };

/* Records by length: at[k] of 2^k tokens to 2^(k + 1) - 1. */
typedef struct fkv_stats_lengths {
    int64_t at[FKV_STATS_LENGTHS];
} fkv_stats_lengths;

typedef struct fkv_stats {
    fkv_output_totals totals;
    bool complete, running;
    int exit_code;             /* unless it is running */
    int64_t start_time, time;  /* Unix times: of the run, and now or at its end */
    const char *host, *system; /* system: kernel and release */
    int processors;
    int64_t decode_steps, busy_slot_steps; /* slots at work, summed over the steps */
    int64_t restarts, restarted_tokens;    /* of records that had to yield their KV pages */
    int64_t prefill_passes, prefill_tokens;
    int64_t slots, busy_slots;
    double balance;   /* of the plan: the fullest rank's cache over the mean; 0: no plan yet */
    int64_t kv_bytes; /* largest in use over all ranks together */
    int64_t peak_rss_bytes;
    double seconds[FKV_STAGES];           /* this run's */
    const double *rank_attention_seconds; /* [n_ranks] */
    int n_ranks;
    /* A decode step with all slots at work; 0: not measured. */
    double step_predicted_us, step_measured_us, segments_predicted_us, segments_measured_us;
    const char *backend, *versions; /* versions: a JSON object's text */
    const char *device;             /* its name; "": none was opened */
    int n_devices;
    double gpu_seconds, joules; /* joules < 0: not known */
    const fkv_stats_point *points;
    int n_points;
    const fkv_stats_lengths *prompts, *answers; /* this run's */
    fkv_stats_sums before;                      /* earlier runs' */
    fkv_error_counts errors;                    /* of all rows */
    int64_t records;                            /* of this part, of the whole input; -1: not known */
    bool estimated;                             /* they are */
} fkv_stats;

/* The sums with this run's. */
fkv_stats_sums fkv_stats_all(const fkv_stats *stats);

/* Replaces the folder's stats.json. */
fkv_status fkv_stats_write(const fkv_output *output, const fkv_stats *stats, fkv_err *err);
/* Replaces metrics.prom: the folder's, or (place) that file, or one named by job and part in that folder;
 * where there are parts a file's name gets the part's number. */
fkv_status fkv_metrics_write(const fkv_output *output, const fkv_stats *stats, const char *place,
                             fkv_err *err);

/* What the stats.json of that path says of earlier runs; an empty history where there is none. FKV_E_INPUT:
 * it is no such file, and the history is empty, too. */
fkv_status fkv_stats_read(const char *path, fkv_stats_history *history, fkv_err *err);

/* Text that both files are made of: a number of at most six decimals, or null where it is none. */
fkv_status fkv_stats_put_number(fkv_buf *b, double v, fkv_err *err);

#endif
