/* The memory of a run: see sizing.h. */
#include "runner/sizing.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/log.h"
#include "runner/base/mem.h"

fkv_status fkv_sizing_probe(const fkv_setup *s, fkv_sizing *z, fkv_err *err)
{
    fkv_world *world = NULL;
    fkv_device *dev = NULL;
    fkv_device_info info;
    const fkv_group one = {.n_devices = 1};
    fkv_status st = s->backend->world_open(&one, &world, err);
    if (!st) st = s->backend->open(world, 0, 1, &dev, err);
    if (!st) {
        s->backend->info(dev, &info);
        s->backend->numerics(dev, z->numerics, sizeof z->numerics);
        snprintf(z->device, sizeof z->device, "%s", info.name);
        z->free_bytes = info.memory_bytes;
        z->total_bytes = info.total_bytes;
        z->nominal_share = info.nominal_share;
        z->worth_slots = info.worth_slots;
        z->limit.arena_share = info.arena_share;
        z->shape = (fkv_memory_shape){.act_bytes = info.act_bytes,
                                      .kv_bytes = info.kv_bytes,
                                      .weight_bytes = info.weight_bytes,
                                      .fp8_bytes = info.fp8_bytes,
                                      .fp8_row_bytes = info.fp8_row_bytes,
                                      .form = fkv_setup_form(s),
                                      .prefill_tile = info.prefill_tile,
                                      .worth_rows = info.worth_rows};
    }
    if (dev) s->backend->close(dev);
    if (world) s->backend->world_close(world);
    return st;
}

void fkv_sizing_update(const fkv_setup *s, const fkv_layout *layout, const fkv_profile *p, fkv_sizing *z)
{
    const int64_t mean_new = (int64_t)ceil(p->n_sample ? p->mean_output : (double)s->limits.max_new);
    double sum = 0;
    for (int i = 0; i < p->n_sample; i++) sum += p->prompt_tokens[i];
    const int64_t mean =
        p->n_sample ? (int64_t)(sum / p->n_sample) : fkv_prompt_limit(&s->limits, s->limits.max_new);
    z->lengths = (fkv_memory_lengths){mean > 0 ? mean : 1, mean_new};
    z->alone_bytes = z->free_bytes / (s->backend->shares_host ? layout->devices : 1);
    z->limit.bytes = z->alone_bytes / (s->backend->shares_host ? layout->replicas : 1);
    z->shape.config = &s->config;
    z->shape.n_ranks = layout->ranks;
    z->shape.n_devices = layout->devices;
    z->shape.n_slots = layout->slots;
    z->shape.max_prompt = layout->max_prompt;
    z->shape.max_tokens = layout->max_tokens;
    z->shape.kv_form = fkv_setup_kv_form(s);
    z->shape.window = (int)s->job->profile.window;
    z->shape.scorers = fkv_scorer_bit(fkv_setup_scorer(s)) | s->more_scorers;
    z->shape.backend = s->backend;
    z->shape.n_threads = fkv_setup_threads(s);
}

/* Whether the model, the shape's buffers and one token fit; *why says what does not. */
static fkv_status check_shape(const fkv_sizing *z, const fkv_memory_shape *shape, fkv_err *why, fkv_err *err)
{
    const size_t n = (size_t)shape->config->n_layers * (size_t)shape->config->n_kv_heads;
    const fkv_memory_lengths lengths = {1, 1};
    fkv_memory m = {0};
    int32_t *budgets = fkv_calloc(n, sizeof *budgets);
    if (!budgets) return fkv_fail_memory(err);
    for (size_t i = 0; i < n; i++) budgets[i] = 1;
    const fkv_status st = fkv_memory_predict(shape, NULL, budgets, &lengths, &m, err);
    if (!st) fkv_memory_check(&m, &z->limit, &lengths, why);
    fkv_memory_free(&m);
    free(budgets);
    return st;
}

fkv_status fkv_sizing_check_model(const fkv_sizing *z, fkv_err *err)
{
    fkv_memory_shape shape = z->shape;
    fkv_err why = {0};
    shape.max_prompt = shape.max_tokens = 1;
    const fkv_status st = check_shape(z, &shape, &why, err);
    if (st || !why.status) return st;
    if (err) *err = why;
    return why.status;
}

fkv_status fkv_sizing_profiles(const fkv_sizing *z, bool *fits, fkv_err *err)
{
    fkv_err why = {0};
    const fkv_status st = check_shape(z, &z->shape, &why, err);
    *fits = !st && !why.status;
    return st;
}

fkv_status fkv_sizing_even(const fkv_sizing *z, const fkv_plan_problem *problem, const int32_t *budgets,
                           fkv_plan *plan, fkv_err *err)
{
    return fkv_memory_even(&z->shape, &z->limit, budgets, &z->lengths, problem, plan, err);
}

/* As many devices share what is free as share the whole. Replicas change no answer, so they don't count:
 * where they share memory, they must hold what one alone accepts. */
static fkv_memory_limit nominal_of(const fkv_sizing *z)
{
    const double share = z->free_bytes > 0 ? (double)z->alone_bytes / (double)z->free_bytes : 1;
    return (fkv_memory_limit){
        fkv_memory_nominal((int64_t)(share * (double)z->total_bytes), z->alone_bytes, z->nominal_share),
        z->limit.arena_share};
}

fkv_sizing fkv_sizing_steady(const fkv_sizing *z)
{
    fkv_sizing steady = *z;
    const int64_t bytes = fkv_memory_nominal(z->total_bytes, z->free_bytes, z->nominal_share);
    int64_t host = 1;
    while (host <= bytes / 2) host *= 2;
    steady.free_bytes = z->shape.backend && z->shape.backend->shares_host && host < bytes ? host : bytes;
    return steady;
}

fkv_status fkv_sizing_slot_bytes(const fkv_sizing *z, const int32_t *budgets, int64_t *bytes, fkv_err *err)
{
    fkv_memory m;
    const fkv_status st = fkv_memory_predict(&z->shape, NULL, budgets, &z->lengths, &m, err);
    if (st) return st;
    *bytes = 0;
    for (int r = 0; r < m.n_ranks; r++) *bytes += m.rank[r].page_bytes / z->shape.n_slots;
    fkv_memory_free(&m);
    return FKV_OK;
}

fkv_status fkv_sizing_record_limit(const fkv_sizing *z, const int32_t *budgets, fkv_record_limit *out,
                                   fkv_err *err)
{
    const fkv_memory_limit nominal = nominal_of(z);
    const fkv_config *c = z->shape.config;
    const fkv_record_shape record = {c->n_layers, c->n_kv_heads, z->shape.n_ranks, budgets};
    fkv_err why = {0};
    const fkv_status st = fkv_memory_record_limit(&z->shape, &nominal, budgets, out, err);
    if (st || !fkv_record_check(out, &record, z->lengths.prompt, z->lengths.max_new, &why)) return st;
    return fkv_fail(err, FKV_E_INPUT,
                    "too little memory: a plan counts on %lld of a device's %lld MiB: %.600s",
                    (long long)nominal.bytes >> 20, (long long)z->alone_bytes >> 20, why.message);
}

static fkv_status find_short(const fkv_sizing *z, const fkv_plan *plan, const int32_t *budgets,
                             int64_t max_prompt, const fkv_record_limit *record, int *device, fkv_err *err)
{
    fkv_memory_shape shape = z->shape;
    shape.max_prompt = max_prompt;
    if (max_prompt > z->shape.max_prompt) shape.max_tokens = 0;
    return fkv_memory_holds(&shape, &z->limit, plan, budgets, record, device, err);
}

fkv_status fkv_sizing_holds(const fkv_sizing *z, const fkv_plan *plan, const int32_t *budgets,
                            const fkv_record_limit *record, bool *holds, fkv_err *err)
{
    int device;
    const fkv_status st = find_short(z, plan, budgets, record->prompt, record, &device, err);
    *holds = !st && device < 0;
    return st;
}

fkv_status fkv_sizing_check_loaded(const fkv_sizing *z, const fkv_plan *plan, const int32_t *budgets,
                                   const fkv_record_limit *record, fkv_err *err)
{
    int device;
    const fkv_status st = find_short(z, plan, budgets, z->shape.max_prompt, record, &device, err);
    if (st || device < 0) return st;
    return fkv_fail(err, FKV_E_DEVICE,
                    "device %d has %lld MiB free, less than plan.json counts on: free some of its memory, or "
                    "go on where there is more",
                    device, (long long)z->limit.bytes >> 20);
}

fkv_status fkv_sizing_check_plan(const fkv_sizing *z, const fkv_plan *plan, const int32_t *budgets,
                                 fkv_err *err)
{
    fkv_memory m;
    fkv_status st = fkv_memory_predict(&z->shape, plan, budgets, &z->lengths, &m, err);
    if (st) return st;
    st = fkv_memory_check(&m, &z->limit, &z->lengths, err);
    const int fit = fkv_memory_slots(&m, &z->limit);
    if (!st && fit < z->shape.n_slots)
        fkv_log("memory: the KV cache of %d slots fits when all hold prompts of %lld and %lld new tokens, "
                "not of %d; some will wait for pages",
                fit, (long long)z->lengths.prompt, (long long)z->lengths.max_new, z->shape.n_slots);
    fkv_memory_free(&m);
    return st;
}

fkv_status fkv_sizing_slots(const fkv_sizing *z, const fkv_plan *plan, const int32_t *budgets, int *slots,
                            fkv_err *err)
{
    fkv_memory m;
    const fkv_status st = fkv_memory_predict(&z->shape, plan, budgets, &z->lengths, &m, err);
    if (st) return st;
    *slots = fkv_memory_slots(&m, &z->limit);
    fkv_memory_free(&m);
    return FKV_OK;
}

fkv_status fkv_sizing_at_once(const fkv_sizing *z, const fkv_plan *plan, const int32_t *budgets,
                              double *records, fkv_err *err)
{
    fkv_memory m;
    const fkv_status st = fkv_memory_predict(&z->shape, plan, budgets, &z->lengths, &m, err);
    if (st) return st;
    *records = fkv_memory_at_once(&m, &z->limit, z->shape.n_slots);
    fkv_memory_free(&m);
    return FKV_OK;
}
