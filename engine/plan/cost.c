/* The cost model's input: expected tokens of a head. Owns no memory. */
#include "engine/plan/cost.h"

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
