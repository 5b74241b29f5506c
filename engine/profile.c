/* Ada-KV counts of one prompt, from a prefill that keeps nothing: see engine.h. */
#include <stdlib.h>

#include "engine/state.h"
#include "runner/base/mem.h"

typedef struct profiling {
    fkv_engine *e;
    fkv_prefill p;
} profiling;

static fkv_status prefill_on(void *ctx, int device, fkv_err *err)
{
    const profiling *a = ctx;
    fkv_engine_device *d = &a->e->devices[device];
    fkv_prefill_enqueue(d, &a->p);
    return a->e->options.backend->sync(d->dev, err);
}

fkv_status fkv_engine_profile(fkv_engine *e, const int32_t *ids, int64_t n_ids, int64_t max_new, int64_t b,
                              double alpha, double *sums, fkv_err *err)
{
    const fkv_config *c = &e->config;
    const int forced = e->options.window + e->options.sinks;
    const int64_t n = n_ids - forced;
    if (n_ids <= b || n_ids > e->options.max_prompt || n <= 0)
        return fkv_fail(err, FKV_E_INPUT, "a prompt of %lld tokens can't be profiled", (long long)n_ids);
    size_t per_layer, all;
    if (!fkv_mul_size((size_t)c->n_kv_heads, (size_t)n, &per_layer) ||
        !fkv_mul_size(per_layer, (size_t)c->n_layers, &all))
        return fkv_fail_memory(err);
    float *scores = fkv_calloc(all, sizeof *scores), *work = fkv_calloc(per_layer, sizeof *work);
    fkv_status st = scores && work ? FKV_OK : fkv_fail_memory(err);
    if (!st) {
        fkv_segment segment = {.slot = -1, .max_new = (int32_t)max_new};
        profiling a = {e, fkv_prefill_one(e, ids, n_ids, &segment)};
        a.p.host_scores = scores;
        st = fkv_team_run(e->team, prefill_on, &a, err);
    }
    for (int l = 0; !st && l < c->n_layers; l++)
        fkv_budget_ada_count(scores + (size_t)l * per_layer, c->n_kv_heads, n, b, forced, alpha, work,
                             sums + (int64_t)l * c->n_kv_heads);
    free(work);
    free(scores);
    return st;
}
