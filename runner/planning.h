/* Profile and plan of a run: loaded from the output folder where they are there
 * already, else measured, solved and written. Of several parts one does it under
 * a lock and the others load.
 *
 * A planning owns its profile and plan and is freed after a failure too; replicas that were opened for
 * measuring are the caller's, also then. Not for the solver (engine/plan/plan.h), nor for showing a plan
 * (explain.h). */
#ifndef FKV_RUNNER_PLANNING_H
#define FKV_RUNNER_PLANNING_H

#include "jobs/output.h"
#include "runner/constants.h"
#include "runner/replicas.h"
#include "runner/setup.h"
#include "runner/sizing.h"

typedef struct fkv_planning {
    fkv_layout layout;
    fkv_profile profile;
    fkv_plan plan;
    fkv_sizing sizing;
    fkv_constants constants;          /* that the plan was solved with */
    bool profile_loaded, plan_loaded; /* not made by this run */
} fkv_planning;

/* A setup in, a layout with its profile and plan out. *replicas (NULL before) are opened when
 * measuring needs them. */
fkv_status fkv_planning_make(const fkv_setup *setup, fkv_output *output, fkv_replicas **replicas,
                             fkv_planning *planning, fkv_err *err);
/* The replicas of the layout, with the plan: what measuring left open is used again, so that
 * weights are loaded once, unless it has other ranks or devices. */
fkv_status fkv_planning_load(const fkv_setup *setup, const fkv_planning *planning, fkv_replicas **replicas,
                             fkv_err *err);
/* One of them, from its own thread, for records longer than its buffers and tables hold, which are as in
 * layout and then grown there; nothing is in flight on it. No answer depends on it. */
fkv_status fkv_planning_grow(const fkv_setup *setup, const fkv_planning *planning, int64_t prompt,
                             int64_t new_tokens, fkv_layout *layout, fkv_engine *engine, fkv_err *err);
void fkv_planning_free(fkv_planning *planning);

/* Pins what must stay the same over all runs and parts of one output and is known before the plan. */
fkv_status fkv_planning_pin(const fkv_setup *setup, fkv_output *output, fkv_err *err);
/* Whether profile.json and plan.json, where they are there, can be read. */
fkv_status fkv_planning_check_files(const fkv_setup *setup, const fkv_output *output, fkv_err *err);

/* Without an output folder, for who tries several profiles on one sample: planning's layout is set, and its
 * profile is made of the sample as make would; *replicas as there. */
struct fkv_sample;
fkv_status fkv_planning_profile(const fkv_setup *setup, const struct fkv_sample *sample,
                                fkv_replicas **replicas, fkv_planning *planning, fkv_err *err);
/* Sets the layout on which make measures a sample: the fewest ranks that hold it, where the job leaves them
 * open. The layout and the sizing of it are there. */
fkv_status fkv_planning_fewest_ranks(const fkv_setup *setup, fkv_planning *planning, fkv_err *err);

/* Mean tokens per head that the job asks for, where prompts have so many on average. */
int64_t fkv_planning_budget(const fkv_setup *setup, double mean_prompt);
/* Heads of a layer with a window keep what it shows, whatever the budget. */
void fkv_planning_set_windows(const fkv_config *config, fkv_profile *profile);
/* What a head keeps of a prompt of n_tokens on average, rounded; layers with a window are left out, as of
 * every budget, unless there is no other one. */
int64_t fkv_planning_kept_tokens(const fkv_config *config, const fkv_profile *profile, int64_t n_tokens);

#endif
