/* What a run counts while it works: its stages' time, its rows, and how they came over time. Bounded, and
 * nothing is allocated after open.
 *
 * Every thread of a run tells it its own; all calls are safe from any thread, and cost little: a row or a
 * step more is no more than a lock that nobody holds for long. Calls with NULL do nothing, so that who works
 * for a run need not know whether one counts. Not for telling a user (progress.h), nor for files
 * (run_stats.h). */
#ifndef FKV_RUNNER_TALLY_H
#define FKV_RUNNER_TALLY_H

#include "engine/engine.h"
#include "jobs/stats.h"

typedef struct fkv_tally fkv_tally;

/* What there is to answer, when that begins. */
typedef struct fkv_tally_goal {
    int64_t done, errors; /* rows of earlier runs */
    int64_t limit;        /* of records; 0: none */
    int64_t n_input;      /* records of the whole input as the profile knows it; 0: not known */
    int64_t (*share)(const void *ctx, int64_t n_input); /* of this part */
    const void *ctx;
    int slots;
    double balance;               /* of the plan; 0: not known */
    double mean_prompt, mean_new; /* tokens of a record, as the sample has them; 0: not known */
} fkv_tally_goal;

/* How a run stands. */
typedef struct fkv_tally_view {
    fkv_stage stage;            /* that it is in; FKV_STAGE_OTHER while it answers */
    double seconds[FKV_STAGES]; /* of all of them */
    double wall, in_stage;      /* seconds since the run began, and the stage */
    int64_t n, all;             /* of a stage before the answers: so many done; all of them, 0: not known */
    bool answering;             /* the goal is known, and so is what follows */
    int64_t done, errors;       /* rows, earlier runs' included */
    int64_t total;              /* of this part; -1: nothing is known */
    bool estimated;             /* total is a guess */
    double records_per_s, prompt_tokens_per_s, completion_tokens_per_s; /* over the last minute */
    double eta_s;                                                       /* < 0: not known */
    int slots;
    double balance;
    fkv_engine_stats engine; /* as it told last */
} fkv_tally_view;

/* start: fkv_seconds() when the run began. */
fkv_status fkv_tally_open(double start, fkv_tally **tally, fkv_err *err);
void fkv_tally_close(fkv_tally *tally);

/* A stage begins; the one before it is returned, for who interrupts it. Answering is FKV_STAGE_OTHER: what
 * the engine says of prefill and decode is taken out of it. */
fkv_stage fkv_tally_stage(fkv_tally *tally, fkv_stage stage);
/* n of all (0: not known) are done in a stage before the answers. */
void fkv_tally_count(fkv_tally *tally, int64_t n, int64_t all);
/* Answers begin. goal is copied; its ctx stays valid as long as the tally is asked. */
void fkv_tally_answer(fkv_tally *tally, const fkv_tally_goal *goal);
/* A row. code: NULL for an answer. */
void fkv_tally_row(fkv_tally *tally, const char *code, int64_t prompt_tokens, int64_t completion_tokens);
/* The reader: records so far, bytes read of all, whether that was all. */
void fkv_tally_input(fkv_tally *tally, int64_t n_records, int64_t bytes, int64_t all_bytes, bool ended);
/* Whether a second has gone by since the engine told; who asks then tells. */
bool fkv_tally_wants(fkv_tally *tally);
void fkv_tally_engine(fkv_tally *tally, const fkv_engine_stats *stats);

/* To be called about once a second: keeps what rates and the series are made of. now: fkv_seconds(). */
void fkv_tally_tick(fkv_tally *tally, double now);
void fkv_tally_look(fkv_tally *tally, double now, fkv_tally_view *view);

/* The series, lengths and this run's error rows, copied; points: [FKV_STATS_POINTS]. The last point is of
 * now. */
typedef struct fkv_tally_history {
    fkv_stats_point points[FKV_STATS_POINTS];
    int n_points;
    fkv_stats_lengths prompts, answers;
    fkv_error_counts errors;
} fkv_tally_history;
void fkv_tally_recall(fkv_tally *tally, double now, fkv_tally_history *history);

#endif
