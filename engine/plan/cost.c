/* The cost model's inputs: expected tokens of a head, and the constants of a
 * device.
 *
 * The CPU constants here are stated rates, not measurements; a calibration may
 * replace them. Only their proportions decide a plan. Owns no memory. */
#include "engine/plan/cost.h"

/* A core reads weights and KV at about 10 GB/s (a part of a socket's bandwidth
 * when all cores read at once); bytes / CPU_BYTES_PER_US gives microseconds. */
#define CPU_BYTES_PER_US 1e4
/* The backend computes in float32 and keeps K and V so. */
#define CPU_BYTES_PER_VALUE 4.0
/* Handing a segment to the thread pool and waiting for it. */
#define CPU_T0_US 2.0
/* One (slot, head) row: setting up its work item and merging its chunks. */
#define CPU_SLOT_HEAD_US 0.05

void fkv_cost_tokens(const fkv_profile *p, double *tokens)
{
    const size_t n = (size_t)p->n_layers * (size_t)p->n_kv_heads;
    for (size_t i = 0; i < n; i++) {
        const int32_t budget = p->budgets[i];
        double kept = budget;
        if (p->n_sample > 0) {
            /* Integers below 2^53: the sum is exact in any order. */
            double sum = 0;
            for (int s = 0; s < p->n_sample; s++)
                sum += p->prompt_tokens[s] < budget ? p->prompt_tokens[s] : budget;
            kept = sum / p->n_sample;
        }
        tokens[i] = kept + p->mean_output / 2;
    }
}

fkv_cost_constants fkv_cost_cpu(const fkv_config *config)
{
    const double head_dim = config->head_dim, hidden = config->hidden;
    /* Wq of the head's group of query heads, Wk and Wv: [head_rows * head_dim, hidden]. */
    const double head_bytes = (double)fkv_head_rows(config->group) * head_dim * hidden * CPU_BYTES_PER_VALUE;
    /* One token's K and V of one head: [2, head_dim]. */
    const double token_bytes = 2.0 * head_dim * CPU_BYTES_PER_VALUE;
    /* What no plan changes: Wo [n_heads * head_dim, hidden] and the MLP's three
     * [intermediate, hidden]. */
    const double common_bytes =
        (config->n_heads * head_dim + 3.0 * config->intermediate) * hidden * CPU_BYTES_PER_VALUE;
    return (fkv_cost_constants){
        .t0_us = CPU_T0_US,
        .head_us = head_bytes / CPU_BYTES_PER_US,
        .slot_head_us = CPU_SLOT_HEAD_US,
        .token_us = token_bytes / CPU_BYTES_PER_US,
        .common_us = common_bytes / CPU_BYTES_PER_US,
    };
}
