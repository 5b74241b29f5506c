/* A layout (setup.h): how far its buffers reach, how it may split the devices, and its part of plan.json,
 * which every run and part of an output must have alike: so replicas are not in it.
 *
 * Nothing is owned. Not for choosing ranks, replicas and slots (layout_choice.h), nor for whether they fit
 * (sizing.h), nor for engines (replicas.h). */
#ifndef FKV_RUNNER_LAYOUT_H
#define FKV_RUNNER_LAYOUT_H

#include "runner/setup.h"

/* Sets what the buffers and tables hold: prompts of so many tokens, and so many new ones
 * behind them, in whole prefill tiles and pages; 0: whatever the model can do. */
void fkv_layout_reach(const fkv_setup *setup, int64_t prompt, int64_t new_tokens, int tile,
                      fkv_layout *layout);

/* Sets replicas of so many ranks, each on a device of its own: as many as the job says, or as its devices
 * are enough for. False: the devices don't come out even, or there are more ranks than heads. */
bool fkv_layout_split(const fkv_setup *setup, int ranks, fkv_layout *layout);
/* The ranks of a plan, on the devices that are here today: they may be more or fewer than it was made on. */
void fkv_layout_take_ranks(const fkv_setup *setup, int ranks, fkv_layout *layout);

/* The member "layout", without braces around it. */
fkv_status fkv_layout_put(const fkv_layout *layout, fkv_buf *out, fkv_err *err);
/* Reads the longest prompt, the longest record and the largest record back; the rest is the plan's or the
 * job's. FKV_E_INPUT where the file has none: plans of builds without it are not used; *layout may be
 * half read then. */
fkv_status fkv_layout_read(const char *plan_path, fkv_layout *layout, fkv_err *err);

#endif
