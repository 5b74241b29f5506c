/* Profile and plan of a run: loaded from the output folder where they are there
 * already, else measured, solved and written. Of several parts one does it under
 * a lock and the others load. */
#ifndef FKV_RUNNER_PLANNING_H
#define FKV_RUNNER_PLANNING_H

#include "jobs/output.h"
#include "runner/constants.h"
#include "runner/setup.h"
#include "runner/sizing.h"

typedef struct fkv_planning {
    fkv_profile profile;
    fkv_plan plan;
    fkv_sizing sizing;
    fkv_cost_constants cost;          /* that the plan was solved with */
    fkv_constants constants;          /* the same, and where they come from */
    bool profile_loaded, plan_loaded; /* not made by this run */
    double profile_seconds, plan_seconds;
} fkv_planning;

/* *engine is opened when measuring needs it (NULL before), and the caller's then; it
 * stays NULL where it will need other ranks or slots. Sets setup's ranks and slots
 * where the job says auto. */
fkv_status fkv_planning_make(fkv_setup *setup, fkv_output *output, fkv_engine **engine,
                             fkv_planning *planning, fkv_err *err);
void fkv_planning_free(fkv_planning *planning);

/* Pins what must stay the same over all runs and parts of one output and is known before the plan. */
fkv_status fkv_planning_pin(const fkv_setup *setup, fkv_output *output, fkv_err *err);
/* Whether profile.json and plan.json, where they are there, can be read. */
fkv_status fkv_planning_check_files(const fkv_setup *setup, const fkv_output *output, fkv_err *err);

/* Mean over the sample of the share of its prompts' K and V that is kept; 1 without a sample. */
double fkv_planning_kept_share(const fkv_planning *planning);

/* Tokens that the fullest rank reads in a decode step over the mean of all ranks, summed
 * over the layers, with the plan's placements or (standard) with every head at home. */
double fkv_planning_balance(const fkv_planning *planning, bool standard);

/* New tokens that most records ask for at the most. */
int64_t fkv_planning_max_new(const fkv_setup *setup, const fkv_planning *planning);

#endif
