/* What a plan's ranks read in a decode step: see plan.h. */
#include <stdlib.h>
#include <string.h>

#include "engine/plan/partition.h"
#include "engine/plan/plan.h"
#include "runner/base/mem.h"

void fkv_plan_loads(const fkv_plan *plan, const double *tokens, int layer, double *loads)
{
    memset(loads, 0, (size_t)plan->n_ranks * sizeof *loads);
    for (int h = 0; h < plan->n_kv_heads; h++) {
        const int lh = layer * plan->n_kv_heads + h;
        for (int i = plan->first[lh]; i < plan->first[lh + 1]; i++)
            loads[plan->at[i].rank] += tokens[lh] * (plan->at[i].end - plan->at[i].begin);
    }
}

double fkv_plan_balance(const fkv_plan *plan, const double *tokens)
{
    double fullest = 0, all = 0;
    double *loads = fkv_calloc((size_t)plan->n_ranks, sizeof *loads);
    if (!loads) return 0;
    for (int l = 0; l < plan->n_layers; l++) {
        double most = 0;
        fkv_plan_loads(plan, tokens, l, loads);
        for (int r = 0; r < plan->n_ranks; r++) {
            all += loads[r];
            if (loads[r] > most) most = loads[r];
        }
        fullest += most;
    }
    free(loads);
    return all > 0 ? fullest * plan->n_ranks / all : 1;
}

double fkv_plan_balance_of(const fkv_plan *plan, const fkv_profile *profile)
{
    double *tokens = fkv_calloc((size_t)profile->n_layers * (size_t)profile->n_kv_heads, sizeof *tokens);
    if (!tokens) return 0;
    fkv_cost_tokens(profile, tokens);
    const double balance = fkv_plan_balance(plan, tokens);
    free(tokens);
    return balance;
}

fkv_status fkv_plan_at_home(const fkv_plan *like, fkv_plan *plan, fkv_err *err)
{
    const int n = like->n_layers * like->n_kv_heads;
    *plan = *like;
    plan->mode = FKV_PLAN_STANDARD;
    plan->step_us = plan->standard_us;
    plan->first = fkv_calloc((size_t)n + 1, sizeof *plan->first);
    plan->at = fkv_calloc((size_t)n, sizeof *plan->at);
    if (!plan->first || !plan->at) {
        fkv_plan_free(plan);
        return fkv_fail_memory(err);
    }
    for (int i = 0; i < n; i++) {
        const int home = fkv_partition_home(i % plan->n_kv_heads, plan->n_kv_heads, plan->n_ranks);
        plan->first[i + 1] = i + 1;
        plan->at[i] = (fkv_placement){home, 0, plan->n_slots};
    }
    return FKV_OK;
}
