/* What the job leaves to the program of a layout, its ranks and its slots: those that end the job first.
 *
 * Not for what one number of slots takes (slot_count.h), nor for whether it fits (sizing.h). Nothing is
 * owned; after a failure layout and sizing may be half changed, and the run ends. */
#ifndef FKV_RUNNER_LAYOUT_CHOICE_H
#define FKV_RUNNER_LAYOUT_CHOICE_H

#include "runner/slot_count.h"

/* Fills sizing's table of the splits of the layout's devices, every rank on a device of its
 * own, each with its best number of slots where the job leaves it open; takes the best one
 * with one group into the layout where the job leaves the ranks open. */
fkv_status fkv_ranks_choose(const fkv_slot_search *search, fkv_layout *layout, fkv_sizing *sizing,
                            fkv_err *err);

/* Compares the splits of the devices, and where the job says auto, chooses the layout's
 * ranks and slots. n_records: to answer; 0: unknown. Slots are tried on *engine, which is
 * opened if there is none of the layout's ranks, unless plan.calibration names the
 * constants; it is the caller's also after a failure. */
fkv_status fkv_layout_choose(const fkv_setup *setup, const fkv_profile *profile, int64_t n_records,
                             fkv_engine **engine, fkv_layout *layout, fkv_sizing *sizing, fkv_err *err);

#endif
