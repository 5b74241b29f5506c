/* The cost model of a decode step (design: Plan). Pure host functions.
 *
 * Attention segment of rank r in layer l:
 *   t0 + t_head * (heads served)
 *      + sum over its placements of slots * tokens[l][h] * bytes_per_token / bandwidth
 * A segment ends with a gather, so a step costs the sum over layers of the
 * slowest rank's segment, plus what no plan changes.
 */
#ifndef FKV_ENGINE_COST_H
#define FKV_ENGINE_COST_H

#include "engine/budget.h"
#include "engine/config.h"

/* Device constants, all in microseconds. */
typedef struct fkv_cost_constants {
    double t0_us;        /* start of a segment */
    double head_us;      /* Q, K, V projection of one more head served: its weights' bytes over bandwidth */
    double slot_head_us; /* one (slot, head) row of decode attention, apart from its tokens */
    double token_us;     /* one token of one head of one slot: K and V read once */
    double common_us;    /* the rest of a step per layer, which no plan changes */
} fkv_cost_constants;

/* tokens[l][h] = E[min(budget, T)] + E[output] / 2 from the profile's lengths;
 * without a sample E[min(budget, T)] is the budget. */
void fkv_cost_tokens(const fkv_profile *p, double *tokens);

/* Constants of the CPU backend for a model's shape, from its measured rates. */
fkv_cost_constants fkv_cost_cpu(const fkv_config *config);

#endif
