/* A layout (setup.h): how far its buffers reach, its engine, and its part of plan.json, which every run and
 * part of an output must have alike.
 *
 * Nothing is owned but the engine, by the caller. Not for choosing ranks and slots (layout_choice.h), nor
 * for whether they fit (sizing.h). */
#ifndef FKV_RUNNER_LAYOUT_H
#define FKV_RUNNER_LAYOUT_H

#include "runner/setup.h"

/* Sets what the buffers and tables hold: prompts of so many tokens, and so many new ones
 * behind them, in whole prefill tiles and pages; 0: whatever the model can do. */
void fkv_layout_reach(const fkv_setup *setup, int64_t prompt, int64_t new_tokens, int tile,
                      fkv_layout *layout);

/* An engine of the layout, without a plan: *engine resized, where it has the same ranks and
 * devices, so that weights are loaded once; else it is closed and another one opened. It is
 * the caller's to close; after a failure it is NULL, or one that can be closed and no more. */
fkv_status fkv_layout_engine(const fkv_setup *setup, const fkv_layout *layout, fkv_engine **engine,
                             fkv_err *err);

/* The member "layout", without braces around it. */
fkv_status fkv_layout_put(const fkv_layout *layout, fkv_buf *out, fkv_err *err);
/* Reads the longest prompt, the longest record and the largest record back; the rest is the plan's or the
 * job's. FKV_E_INPUT where the file has none: plans of builds without it are not used; *layout may be
 * half read then. */
fkv_status fkv_layout_read(const char *plan_path, fkv_layout *layout, fkv_err *err);

#endif
