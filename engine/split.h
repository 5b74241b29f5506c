/* How to split the devices: a group of n ranks answers a record together
 * (tensor_parallel), and groups work side by side (data_parallel). What work takes on
 * so many ranks, from rates of one device.
 *
 * Pure host functions over the cost model.
 */
#ifndef FKV_ENGINE_SPLIT_H
#define FKV_ENGINE_SPLIT_H

#include "engine/measure/calibrate.h"
#include "engine/memory.h"

/* Rates of one device, beside the plan's constants. */
typedef struct fkv_split_rates {
    fkv_cost_constants cost; /* common_us: the whole model's, as if one rank had it all */
    double token_us;         /* prefill: one token through one layer's projections and MLP, whole model */
    double pair_us;          /* prefill: attention of one pair of tokens in one layer, all heads */
    double collective_us;    /* start of a collective */
    double link_bytes_per_us;
    int act_bytes;
} fkv_split_rates;

typedef struct fkv_device_split {
    int tensor_parallel, data_parallel;
    int slots;         /* of a group */
    double prefill_us; /* of the mean prompt, in its group */
    double step_us;    /* decode step of a group's slots */
    double record_us;  /* job's time a record, all groups at work */
    bool fits;         /* in memory */
} fkv_device_split;

enum { FKV_SPLITS_MAX = 64 };

/* Stated constants of a CPU device, for a model's shape. */
fkv_cost_constants fkv_cost_cpu(const fkv_config *config);
/* Stated rates: a CPU device's, or a data-centre GPU's. */
fkv_split_rates fkv_split_rates_cpu(const fkv_config *config);
fkv_split_rates fkv_split_rates_gpu(const fkv_config *config);

/* The same from a calibration of the machine; the collectives' are stated ones where it
 * was made with one device. */
fkv_split_rates fkv_split_rates_measured(const fkv_split_rates *stated, const fkv_calibration *calibration);

/* A layer's collectives on so many rows: the heads' outputs and the projection's columns
 * are gathered, the MLP's partial sums (float32) reduced. 0 on one rank. */
double fkv_split_collectives_us(const fkv_split_rates *rates, const fkv_config *config, double rows,
                                int n_ranks);
/* What a step's constants are on one of n ranks: the common part is divided, its
 * collectives are added. */
fkv_cost_constants fkv_split_cost(const fkv_split_rates *rates, const fkv_config *config, int n_ranks,
                                  int n_slots);
/* Prefill of a prompt on n ranks, collectives included. */
double fkv_split_prefill_us(const fkv_split_rates *rates, const fkv_config *config, double prompt_tokens,
                            int n_ranks);
/* Of those that fit: the fastest with every group at work (groups), or with one
 * group alone. Ties: fewer ranks. -1: none fits. */
int fkv_split_best(const fkv_device_split *splits, int n, bool groups);

#endif
