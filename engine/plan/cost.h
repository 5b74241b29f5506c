/* The cost model of a decode step (design: Plan). Pure host functions.
 *
 * Attention segment of rank r in layer l:
 *   t0 + t_head * (heads served)
 *      + sum over its placements of slots * tokens[l][h] * bytes_per_token / bandwidth
 * A segment ends with a gather, so a step costs the sum over layers of the
 * slowest rank's segment, plus what no plan changes.
 *
 * The constants are measured (calibrate.h) on real steps, where this form holds within a
 * few percent: head_us is also what handing a product to the device costs, slot_head_us
 * also the rows of Q, K, V products on a device that computes more than it reads.
 */
#ifndef FKV_ENGINE_COST_H
#define FKV_ENGINE_COST_H

#include "engine/plan/budget.h"

/* Device constants, all in microseconds. */
typedef struct fkv_cost_constants {
    double t0_us;        /* start of a segment */
    double head_us;      /* Q, K, V projection of one more head served: its weights' bytes over bandwidth */
    double slot_head_us; /* one (slot, head) row of decode attention, apart from its tokens */
    double token_us;     /* one token of one head of one slot: K and V read once */
    /* The rest of a step, which no plan changes, a layer: of the output projection, the MLP
     * and the logits a rank's share, as on a device of its own; norms, sums and gathers. What
     * happens once a step is shared out among the layers. */
    double common_us;
} fkv_cost_constants;

/* tokens[l][h] = E[min(budget, T)] + E[output] / 2 from the profile's lengths;
 * without a sample E[min(budget, T)] is the budget. */
void fkv_cost_tokens(const fkv_profile *p, double *tokens);

#endif
