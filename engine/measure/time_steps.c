/* Decode steps at several numbers of slots and prompts of two lengths, timed on the engine
 * that will do the job: see measure.h. What is set here is cleared again; the slots and
 * lengths are left for the next resize. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/measure/measure.h"
#include "engine/plan/partition.h"
#include "engine/state.h"
#include "runner/base/clock.h"
#include "runner/base/mem.h"

/* Where steps are replayed the first ones are enqueued, then recorded twice. */
enum { WARM_REPLAYED = 3, WARM = 1, STEPS = 8, EMPTY_STEPS = 4, PROMPT_ROUNDS = 3 };

fkv_status fkv_measure_fill_pages(fkv_engine *e, int64_t n_tokens, int64_t max_new, fkv_err *err)
{
    const fkv_backend *b = e->options.backend;
    const fkv_memory_shape shape = fkv_engine_memory_shape(e);
    const size_t page = (size_t)fkv_memory_page_bytes(&shape);
    const size_t n_ranks = (size_t)e->options.n_ranks;
    char *text = fkv_calloc(1, page);
    int64_t *all = fkv_calloc(n_ranks, sizeof *all), *one = fkv_calloc(n_ranks, sizeof *one);
    fkv_status st = text && all && one ? FKV_OK : fkv_fail_memory(err);
    /* 0x3a3a is a small bf16; four such bytes are a small float32 */
    if (text) memset(text, 0x3a, page);
    for (int s = 0; !st && s < e->options.n_slots; s++) {
        fkv_kv_prompt_need(&e->kv, s, n_tokens, max_new, one);
        for (size_t r = 0; r < n_ranks; r++) all[r] += one[r];
    }
    for (int i = 0; !st && i < e->options.n_devices; i++) {
        const fkv_engine_device *d = &e->devices[i];
        for (int r = d->rank0; r < d->rank0 + d->n_ranks; r++)
            for (int64_t p = 0; p < all[r] && p < e->kv.n_pages[r]; p++) /* low pages are given out first */
                b->upload(d->dev, (char *)e->arenas[r] + (size_t)p * page, text, page);
        st = b->sync(d->dev, err);
    }
    free(one);
    free(all);
    free(text);
    return st;
}

/* Every head at home. Owned by the caller. */
static fkv_status plan_at_home(const fkv_config *c, int n_ranks, fkv_plan *plan, fkv_err *err)
{
    const size_t n = (size_t)c->n_layers * (size_t)c->n_kv_heads;
    *plan = (fkv_plan){
        .mode = FKV_PLAN_STANDARD, .n_layers = c->n_layers, .n_kv_heads = c->n_kv_heads, .n_ranks = n_ranks};
    plan->first = fkv_calloc(n + 1, sizeof *plan->first);
    plan->at = fkv_calloc(n, sizeof *plan->at);
    if (!plan->first || !plan->at) return fkv_fail_memory(err);
    for (size_t i = 0; i < n; i++) {
        plan->first[i + 1] = (int)i + 1;
        plan->at[i].rank = fkv_partition_home((int)(i % (size_t)c->n_kv_heads), c->n_kv_heads, n_ranks);
    }
    return FKV_OK;
}

/* The quickest of up to n steps, which end where time is over: others add time, never take it. */
static fkv_status time_some(fkv_engine *e, int64_t n_tokens, int warm, int n, double end, double *us,
                            fkv_err *err)
{
    double seconds = INFINITY, one;
    fkv_status st = FKV_OK;
    for (int i = -warm; !st && i < n && (i <= 0 || fkv_seconds() < end); i++) {
        st = fkv_measure_decode(e, n_tokens, 1, &one, err);
        if (i >= 0) seconds = fmin(seconds, one);
    }
    *us = 1e6 * seconds;
    return st;
}

static fkv_status time_point(fkv_engine *e, const fkv_safetensors *weights, const int32_t *budgets,
                             int64_t n_tokens, const fkv_plan *plan, double end, fkv_step_point *out,
                             fkv_err *err)
{
    const fkv_engine_kv_limits limits = fkv_measure_limits(plan, budgets, n_tokens, 2);
    fkv_status st = fkv_engine_resize(e, plan->n_slots, n_tokens, n_tokens + 2, err);
    if (!st) st = fkv_engine_set_plan(e, weights, budgets, plan, &limits, err);
    if (st) return st;
    /* Memory that was never written is read from one page of zeros, but for a GPU's. */
    if (!e->info.replays) st = fkv_measure_fill_pages(e, n_tokens, 2, err);
    out->slots = plan->n_slots;
    if (!st) st = time_some(e, n_tokens, e->info.replays ? WARM_REPLAYED : WARM, STEPS, end, &out->us, err);
    if (!st) st = time_some(e, 1, 0, EMPTY_STEPS, end, &out->empty_us, err);
    fkv_engine_clear_plan(e);
    return st;
}

fkv_status fkv_measure_steps(fkv_engine *e, const fkv_safetensors *weights, const double *tokens,
                             const int *slots, int n, double seconds, fkv_step_curve *out, fkv_err *err)
{
    const int64_t n_lh = (int64_t)e->config.n_layers * e->config.n_kv_heads;
    const double end = fkv_seconds() + seconds;
    int64_t most = 1;
    fkv_plan plan;
    int32_t *budgets = fkv_calloc((size_t)n_lh, sizeof *budgets);
    fkv_status st = plan_at_home(&e->config, e->options.n_ranks, &plan, err);
    if (!st && !budgets) st = fkv_fail_memory(err);
    for (int64_t i = 0; !st && i < n_lh; i++) {
        const int64_t kept = llround(tokens[i]), room = e->config.max_positions - 2;
        budgets[i] = (int32_t)(kept < 1 ? 1 : kept < room ? kept : room);
        if (budgets[i] > most) most = budgets[i];
    }
    out->n = 0;
    while (!st && out->n < n && out->n < FKV_CURVE_MAX && (out->n == 0 || fkv_seconds() < end)) {
        plan.n_slots = slots[out->n];
        for (int64_t i = 0; i < n_lh; i++) plan.at[i].end = plan.n_slots;
        fkv_err why = {0};
        st = time_point(e, weights, budgets, most, &plan, end, &out->at[out->n], &why);
        if (!st) out->n++;
        if (st == FKV_E_INPUT) break; /* so many slots don't fit: what was measured is enough */
        if (st && err) *err = why;
    }
    fkv_plan_free(&plan);
    free(budgets);
    fkv_engine_stats_reset(e);
    return st == FKV_E_INPUT && out->n < n ? FKV_OK : st;
}

fkv_status fkv_measure_prompts(fkv_engine *e, const int64_t lengths[2], double seconds, double us[2],
                               fkv_err *err)
{
    const double end = fkv_seconds() + seconds;
    const int64_t most = lengths[0] > lengths[1] ? lengths[0] : lengths[1];
    int32_t *ids = fkv_calloc((size_t)most, sizeof *ids);
    fkv_status st = ids ? fkv_engine_resize(e, e->options.n_slots, most, 0, err) : fkv_fail_memory(err);
    for (int i = 0; !st && i < 2; i++) {
        double least = INFINITY, one;
        for (int k = 0; !st && k < PROMPT_ROUNDS && (k == 0 || fkv_seconds() < end); k++) {
            st = fkv_measure_prefill(e, ids, lengths[i], &one, err);
            least = fmin(least, one);
        }
        us[i] = 1e6 * least;
    }
    free(ids);
    fkv_engine_stats_reset(e);
    return st;
}
