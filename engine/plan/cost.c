/* The cost model's input and constants: see cost.h. Owns no memory. */
#include "engine/plan/cost.h"

#define FIELD(name)                                                                                          \
    {                                                                                                        \
#name, offsetof(fkv_cost, name)                                                                      \
    }
const fkv_cost_field fkv_cost_fields[FKV_COST_FIELDS] = {
    FIELD(t0_us),           FIELD(head_us),       FIELD(slot_head_us),
    FIELD(token_us),        FIELD(common_us),     FIELD(prefill_token_us),
    FIELD(prefill_pair_us), FIELD(collective_us), FIELD(link_bytes_per_us)};
#undef FIELD

const char *fkv_cost_origin_name(fkv_cost_origin origin)
{
    static const char *const names[FKV_COST_ORIGINS] = {"stated", "measured", "file"};
    return names[origin];
}

fkv_cost fkv_cost_at(const fkv_cost *cost, int n_ranks)
{
    fkv_cost c = *cost;
    c.common_us = c.common_us * c.n_ranks / n_ranks;
    c.prefill_token_us = c.prefill_token_us * c.n_ranks / n_ranks;
    c.prefill_pair_us = c.prefill_pair_us * c.n_ranks / n_ranks;
    c.n_ranks = n_ranks;
    return c;
}

fkv_cost fkv_cost_complete(const fkv_cost *measured, const fkv_cost *stated)
{
    fkv_cost c = *measured;
    const fkv_cost s = fkv_cost_at(stated, c.n_ranks);
    if (c.prefill_token_us <= 0) c.prefill_token_us = s.prefill_token_us;
    if (c.prefill_pair_us <= 0) c.prefill_pair_us = s.prefill_pair_us;
    if (c.link_bytes_per_us <= 0) {
        c.collective_us = s.collective_us;
        c.link_bytes_per_us = s.link_bytes_per_us;
    }
    return c;
}

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
