/* Other ways to balance ragged heads, modelled by the same constants as plans (cost.h), so that a user sees
 * when Fair-Copying is the right choice and when it is not. This engine runs none of them.
 *
 * - Context-parallel decoding: every rank has an even share of each head's tokens. Queries cross before the
 *   segment and partial outputs with their sums behind it, two more collectives a layer, and every
 *   rank sees every (slot, head) row.
 * - Attention-data-parallel: every rank has all attention weights and decodes its share of the slots.
 *   Instead of the heads' outputs and the projection's columns the rows of the slots are
 *   gathered, and the MLP's partial sums are reduced as before.
 *
 * Pure functions over numbers; nothing is owned, nothing fails. Not for plans (plan.h). */
#ifndef FKV_ENGINE_OTHER_WAYS_H
#define FKV_ENGINE_OTHER_WAYS_H

#include "engine/plan/plan.h"

/* What they need of a model beside the problem. */
typedef struct fkv_way_shape {
    int n_heads, head_dim, hidden;
    double output_heads; /* the output projection's weights over those that the Q, K, V of one KV head have */
} fkv_way_shape;

/* Modelled decode steps, in us. The collectives' rates are the problem's cost; where the ranks share a
 * device (collectives_us 0) nothing crosses. */
double fkv_way_context_parallel_us(const fkv_plan_problem *problem, const fkv_way_shape *shape);
double fkv_way_attention_data_parallel_us(const fkv_plan_problem *problem, const fkv_way_shape *shape);

#endif
