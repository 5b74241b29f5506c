/* Whether a run fits into a device's memory, and how much of it fits: what a device has,
 * and engine/memory.h's predictions for the layout of a job, before anything is loaded.
 *
 * A sizing owns nothing and points into the setup. Not for choosing what fits best (layout_choice.h,
 * slot_count.h). */
#ifndef FKV_RUNNER_SIZING_H
#define FKV_RUNNER_SIZING_H

#include "engine/memory.h"
#include "engine/split.h"
#include "runner/setup.h"

typedef struct fkv_sizing {
    char device[96], numerics[256];  /* of the first device: fkv_device_info and backend.h say what */
    int64_t free_bytes, total_bytes; /* of a device; of the host, where devices share it */
    int worth_slots;                 /* fkv_device_info */
    double nominal_share;
    fkv_memory_limit limit;                  /* of each device */
    int64_t alone_bytes;                     /* limit.bytes if there were one replica */
    fkv_memory_shape shape;                  /* of the layout */
    fkv_memory_lengths lengths;              /* the sample's means */
    fkv_device_split splits[FKV_SPLITS_MAX]; /* of the job's devices */
    int n_splits;
    int best; /* index; -1: none fits */
} fkv_sizing;

/* Opens a device, asks what it has, closes it, also after a failure. Before any engine is open. */
fkv_status fkv_sizing_probe(const fkv_setup *setup, fkv_sizing *sizing, fkv_err *err);
/* Sets the shape and lengths from the layout and the sample. */
void fkv_sizing_update(const fkv_setup *setup, const fkv_layout *layout, const fkv_profile *profile,
                       fkv_sizing *sizing);

/* Whether the model can be loaded with the job's slots and one token be worked on. */
fkv_status fkv_sizing_check_model(const fkv_sizing *sizing, fkv_err *err);
/* Whether a sample can be measured on the sizing's layout. */
fkv_status fkv_sizing_profiles(const fkv_sizing *sizing, bool *fits, fkv_err *err);
/* Evens out the plan's memory over the devices (fkv_memory_even). */
fkv_status fkv_sizing_even(const fkv_sizing *sizing, const fkv_plan_problem *problem, const int32_t *budgets,
                           fkv_plan *plan, fkv_err *err);
/* The largest record of the sizing's ranks and slots; FKV_E_INPUT where one of the sample's
 * mean lengths is too large. */
fkv_status fkv_sizing_record_limit(const fkv_sizing *sizing, const int32_t *budgets, fkv_record_limit *out,
                                   fkv_err *err);
/* Whether the plan's arenas hold the largest record in every slot, whatever prompts come. */
fkv_status fkv_sizing_holds(const fkv_sizing *sizing, const fkv_plan *plan, const int32_t *budgets,
                            const fkv_record_limit *record, bool *holds, fkv_err *err);
/* The same of a plan that an earlier run made: FKV_E_DEVICE where this machine can't. */
fkv_status fkv_sizing_check_loaded(const fkv_sizing *sizing, const fkv_plan *plan, const int32_t *budgets,
                                   const fkv_record_limit *record, fkv_err *err);
/* Whether the plan's weights, buffers and the pages of one record fit. */
fkv_status fkv_sizing_check_plan(const fkv_sizing *sizing, const fkv_plan *plan, const int32_t *budgets,
                                 fkv_err *err);

/* Records of mean lengths that the arenas of such a plan hold at a time. */
fkv_status fkv_sizing_at_once(const fkv_sizing *sizing, const fkv_plan *plan, const int32_t *budgets,
                              double *records, fkv_err *err);
/* K and V that a slot keeps of a record of mean lengths, all ranks together. */
fkv_status fkv_sizing_slot_bytes(const fkv_sizing *sizing, const int32_t *budgets, int64_t *bytes,
                                 fkv_err *err);
/* The sizing with free memory that is the same in every run of an idle machine: a device's nominal
 * (fkv_memory_nominal); of a host, whose free memory is never twice the same, the power of two below it. To
 * be updated before it is used. */
fkv_sizing fkv_sizing_steady(const fkv_sizing *sizing);

/* Slots that fit with a plan of the sizing's shape; NULL: every head at home. */
fkv_status fkv_sizing_slots(const fkv_sizing *sizing, const fkv_plan *plan, const int32_t *budgets,
                            int *slots, fkv_err *err);

#endif
