/* What the job leaves to the program of a layout, its ranks, replicas and slots: those that end the job
 * first.
 *
 * Not for what one number of slots takes (slot_count.h), nor for whether it fits (sizing.h). Nothing is
 * owned; after a failure layout and sizing may be half changed, and the run ends. */
#ifndef FKV_RUNNER_LAYOUT_CHOICE_H
#define FKV_RUNNER_LAYOUT_CHOICE_H

#include "runner/replicas.h"
#include "runner/slot_count.h"

/* Fills sizing's table of the splits of the job's devices into replicas, every rank on a device
 * of its own, each with its best number of slots where the job leaves it open; takes the best
 * one into the layout where the job leaves the ranks open. */
fkv_status fkv_splits_choose(const fkv_slot_search *search, fkv_layout *layout, fkv_sizing *sizing,
                             fkv_err *err);

/* Compares the splits of the devices, and where the job says auto, chooses the layout's
 * ranks, replicas and slots. n_records: to answer; 0: unknown. Slots are tried on the first of *replicas,
 * which are opened if there are none of the layout's, unless plan.calibration names the
 * constants; they are the caller's also after a failure. */
fkv_status fkv_layout_choose(const fkv_setup *setup, const fkv_profile *profile, int64_t n_records,
                             fkv_replicas **replicas, fkv_layout *layout, fkv_sizing *sizing, fkv_err *err);

#endif
