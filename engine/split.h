/* How to split the devices: a group of n ranks answers a record together
 * (tensor_parallel), and groups work side by side (data_parallel). What work takes on
 * so many ranks, from rates of one device.
 *
 * Pure host functions over the cost model: nothing is owned, nothing fails. Times are microseconds.
 * Not for plans (engine/plan/plan.h), nor for which ranks are on which device (engine/plan/partition.h).
 */
#ifndef FKV_ENGINE_SPLIT_H
#define FKV_ENGINE_SPLIT_H

#include "engine/model/config.h"
#include "engine/plan/cost.h"

typedef struct fkv_device_split {
    int tensor_parallel, data_parallel;
    int slots;         /* of a group */
    double prefill_us; /* of the mean prompt, in its group */
    double step_us;    /* decode step of a group's slots */
    double job_us;     /* all of the job, all groups at work */
    double record_us;  /* of it, a record */
    bool fits;         /* in memory */
} fkv_device_split;

enum { FKV_SPLITS_MAX = 64 };

/* Stated constants for a model's shape, of one rank that has all of it: a CPU device's, or a
 * data-centre GPU's. */
fkv_cost fkv_cost_cpu(const fkv_config *config);
fkv_cost fkv_cost_gpu(const fkv_config *config);

/* A layer's collectives on so many rows: the heads' outputs and the projection's columns
 * are gathered, the MLP's partial sums (float32) reduced. 0 on one rank. */
double fkv_split_collectives_us(const fkv_cost *cost, const fkv_config *config, double rows, int n_ranks);
/* Prefill of a prompt on n ranks, collectives included. */
double fkv_split_prefill_us(const fkv_cost *cost, const fkv_config *config, double prompt_tokens,
                            int n_ranks);
/* Of those that fit the one that ends the job first; ties: the first of them. -1: none fits. */
int fkv_split_best(const fkv_device_split *splits, int n);

#endif
