/* Steps of other ways to balance ragged heads: see other_ways.h. Owns no memory. */
#include "engine/plan/other_ways.h"

/* Float32, and so are a partial output's largest score and sum of weights. */
enum { PARTIAL_BYTES = 4, PARTIAL_SUMS = 2 };

static int share(int n, int ranks)
{
    return (n + ranks - 1) / ranks;
}

/* n collectives of a layer that move so many bytes in all. */
static double collectives_us(const fkv_plan_problem *p, int n, double bytes)
{
    if (p->collectives_us <= 0 || p->cost.link_bytes_per_us <= 0) return 0;
    return n * p->cost.collective_us + bytes * (p->n_ranks - 1) / p->n_ranks / p->cost.link_bytes_per_us;
}

/* Tokens of a slot in all layers. */
static double tokens_of(const fkv_plan_problem *p)
{
    double sum = 0;
    for (int i = 0; i < p->n_layers * p->n_kv_heads; i++) sum += p->tokens[i];
    return sum;
}

double fkv_way_context_parallel_us(const fkv_plan_problem *p, const fkv_way_shape *s)
{
    const fkv_cost *c = &p->cost;
    const double rows = (double)p->n_slots * s->n_heads;
    const double queries = rows * s->head_dim * c->act_bytes,
                 partials = rows * (s->head_dim + PARTIAL_SUMS) * PARTIAL_BYTES;
    const double layer = c->t0_us + c->head_us * share(p->n_kv_heads, p->n_ranks) +
                         c->slot_head_us * p->n_slots * p->n_kv_heads + c->common_us + p->collectives_us +
                         collectives_us(p, 2, queries + partials);
    return p->n_layers * layer + c->token_us * p->n_slots * tokens_of(p) / p->n_ranks;
}

double fkv_way_attention_data_parallel_us(const fkv_plan_problem *p, const fkv_way_shape *s)
{
    const fkv_cost *c = &p->cost;
    const int slots = share(p->n_slots, p->n_ranks);
    /* The common part has one rank's share of the output projection. */
    const double more_heads = s->output_heads * (p->n_ranks - 1) / p->n_ranks;
    const double bytes = (double)p->n_slots * s->hidden * (c->act_bytes + PARTIAL_BYTES);
    const double layer = c->t0_us + c->head_us * (p->n_kv_heads + more_heads) +
                         c->slot_head_us * slots * p->n_kv_heads + c->common_us + collectives_us(p, 2, bytes);
    return p->n_layers * layer + c->token_us * slots * tokens_of(p);
}
