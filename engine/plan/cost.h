/* The cost model of a decode step. Pure functions over numbers; nothing is owned, nothing fails.
 * Not for plans (plan.h), nor for stated constants, which need a model's shape (engine/split.h).
 *
 * Attention segment of rank r in layer l:
 *   t0 + t_head * (heads served)
 *      + sum over its placements of slots * tokens[l][h] * bytes_per_token / bandwidth
 * A segment ends with a gather, so a step costs the sum over layers of the
 * slowest rank's segment, plus what no plan changes.
 *
 * Constants are stated ones of the machine's kind, or measured on real steps
 * (engine/measure/calibrate.h), where this form holds within a few percent: head_us is also
 * what handing a product to the device costs, slot_head_us also the rows of Q, K, V products
 * on a device that computes more than it reads. Only their proportions decide a plan.
 */
#ifndef FKV_ENGINE_COST_H
#define FKV_ENGINE_COST_H

#include <stddef.h>

#include "engine/plan/budget.h"

/* Where constants come from. */
typedef enum fkv_cost_origin {
    FKV_COST_STATED,   /* rates of the machine's kind */
    FKV_COST_MEASURED, /* on this device, now or by an earlier run */
    FKV_COST_FILE,     /* the job names it */
    FKV_COST_ORIGINS
} fkv_cost_origin;

/* What work takes on a rank that has a device of its own, in microseconds. */
typedef struct fkv_cost {
    fkv_cost_origin origin;
    int n_ranks;         /* of which one has what common and prefill say: its share of the model */
    int act_bytes;       /* of an element that crosses between devices */
    double t0_us;        /* start of a segment */
    double head_us;      /* Q, K, V projection of one more head served: its weights' bytes over bandwidth */
    double slot_head_us; /* one (slot, head) row of decode attention, apart from its tokens */
    double token_us;     /* one token of one head of one slot: K and V read once */
    /* The rest of a step, which no plan changes, a layer: the rank's share of the output projection, the
     * MLP and the logits; norms, sums, and gathers within the device. What happens once a step is
     * shared out among the layers. Not the collectives between devices. */
    double common_us;
    /* Prefill at home, a layer: a prompt token, and a pair of prompt tokens (T * T of them) for
     * attention. 0: not known. */
    double prefill_token_us, prefill_pair_us;
    /* A collective between devices: its start, and the bytes that a device receives in a us. 0: not
     * known. */
    double collective_us, link_bytes_per_us;
} fkv_cost;

/* The constants by name, as files have them, in the order of the struct. */
typedef struct fkv_cost_field {
    const char *name;
    size_t offset;
} fkv_cost_field;
enum { FKV_COST_FIELDS = 9 };
extern const fkv_cost_field fkv_cost_fields[FKV_COST_FIELDS];
const char *fkv_cost_origin_name(fkv_cost_origin origin);

/* The same where one of n_ranks ranks has its share. */
fkv_cost fkv_cost_at(const fkv_cost *cost, int n_ranks);
/* What is not known of measured is taken from stated. */
fkv_cost fkv_cost_complete(const fkv_cost *measured, const fkv_cost *stated);

/* What a head is expected to hold in a slot: tokens[l][h] = E[min(budget, T)] + E[output] / 2 from the
 * profile's lengths; without a sample E[min(budget, T)] is the budget. */
void fkv_cost_tokens(const fkv_profile *p, double *tokens);

#endif
