/* What a run would be, from what is known before it: the job, the machine, a survey of the
 * input, and the plan of an earlier run, where there is one. Nothing is measured or written.
 *
 * A forecast owns its profile and is freed after a failed make, too. Not for what a run decides:
 * that is planning's (planning.h), on a sample of its own. */
#ifndef FKV_RUNNER_FORECAST_H
#define FKV_RUNNER_FORECAST_H

#include "runner/constants.h"
#include "runner/preflight.h"
#include "runner/survey.h"

typedef struct fkv_forecast {
    bool planned;                /* the output's profile.json and plan.json say it */
    fkv_layout layout;           /* what is open is a guess */
    bool ranks_open, slots_open; /* the run chooses */
    int slots_most;              /* that come into question; 0: not even one fits */
    fkv_profile profile;         /* without a plan, of even budgets where they are to be measured */
    fkv_memory_rank rank;        /* the fullest */
    fkv_memory_device device;    /* the fullest */
    int64_t device_bytes;        /* that are free on it */
    char too_little[768];        /* why memory would not do, or empty */
    int64_t n_shards;            /* of the whole input */
    int64_t n_part_shards;       /* of this part */
    int64_t n_part;              /* records of this part */
    int64_t n_left;              /* of them, not done yet */
    int64_t n_too_large;         /* of the survey's records */
    int64_t shard_bytes;         /* of this part's rows, before they are compressed */
    int64_t journal_bytes;       /* at the most */
    int64_t free_bytes;          /* where the output lies or will lie; -1: not known */
    double seconds;              /* to answer what is left; below 0: not known */
    fkv_cost_origin origin;      /* of the rates that seconds come from */
} fkv_forecast;

/* A job of which the profile is known or guessed, to be answered on this machine. */
typedef struct fkv_forecast_job {
    const fkv_setup *setup;
    const fkv_profile *profile;
    const fkv_constants *planned; /* rates that are known: fkv_constants_known; or NULL */
    int64_t n_left;               /* records to answer */
    bool ranks_open, slots_open;
} fkv_forecast_job;

typedef struct fkv_outlook {
    double seconds; /* below 0: not known */
    int slots_most; /* fkv_forecast's */
    fkv_cost_origin origin;
} fkv_outlook;

/* Ranks and slots that are open are guessed by the rates, into the layout; sizing is of the layout before
 * and after. */
fkv_status fkv_forecast_choose(const fkv_forecast_job *job, fkv_sizing *sizing, fkv_layout *layout,
                               fkv_outlook *out, fkv_err *err);

/* The preflight went well, and the job is not finished. */
fkv_status fkv_forecast_make(const fkv_setup *setup, const fkv_preflight *found, const fkv_survey *survey,
                             fkv_forecast *forecast, fkv_err *err);
void fkv_forecast_free(fkv_forecast *forecast);

#endif
