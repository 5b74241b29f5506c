/* The number of slots that ends a job first: its records' decode steps, by what a step takes
 * at several numbers of slots (engine/plan/job_time.h), modelled, or measured on the engine that
 * will do the job.
 *
 * Nothing is owned; a model of which making or measuring failed is of no use. Not for the number of ranks
 * (layout_choice.h). */
#ifndef FKV_RUNNER_SLOT_COUNT_H
#define FKV_RUNNER_SLOT_COUNT_H

#include "engine/plan/job_time.h"
#include "engine/split.h"
#include "runner/sizing.h"

/* What is asked: the job on so many ranks. */
typedef struct fkv_slot_search {
    const fkv_setup *setup;
    const fkv_profile *profile;
    const fkv_sizing *sizing; /* of ranks and devices as they are to be */
    const fkv_cost *cost;     /* of any number of ranks */
    const double *tokens;     /* [n_layers][n_kv_heads], fkv_cost_tokens */
    fkv_job_load load;
} fkv_slot_search;

/* What a few numbers of slots take and hold. */
typedef struct fkv_slot_model {
    fkv_step_curve curve;            /* of the job's plan mode */
    double over_home[FKV_CURVE_MAX]; /* a step's time over that of a plan with heads at home */
    double at_once[FKV_CURVE_MAX];   /* records that the arenas hold at a time */
    double at_home[FKV_CURVE_MAX];   /* the same with heads at home */
    double prefill_us;               /* of a record, on average */
    int n_measured;                  /* points of the curve */
    int only;                        /* the number of slots that alone comes into question, or 0 */
} fkv_slot_model;

typedef struct fkv_slot_choice {
    int slots; /* 0: none fits */
    double us; /* the job's, with them */
} fkv_slot_choice;

/* Models steps at a few numbers of slots, up to what the records can fill and the memory
 * holds, or (slots > 0) at that number alone; a record's prefill comes from the constants. */
fkv_status fkv_slots_model(const fkv_slot_search *search, int slots, fkv_slot_model *model, fkv_err *err);
/* Puts measured steps and prefills in place of the modelled ones. Takes up to a twentieth of
 * the job's modelled time and at most a few seconds. */
fkv_status fkv_slots_measure(const fkv_slot_search *search, fkv_engine *engine, fkv_slot_model *model,
                             fkv_err *err);
/* The best of all numbers of slots that come into question; ties: fewer. */
fkv_slot_choice fkv_slots_best(const fkv_slot_search *search, const fkv_slot_model *model);
/* Says in the log what was chosen, and what half and twice as many would take. */
void fkv_slots_log(const fkv_slot_search *search, const fkv_slot_model *model, fkv_slot_choice choice);

#endif
