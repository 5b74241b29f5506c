/* Decode steps and prefills timed alone, for benchmarks: see engine.h. */

#include <stdlib.h>

#include "engine/state.h"
#include "runner/base/clock.h"
#include "runner/base/mem.h"

typedef struct timing {
    fkv_engine *e;
    fkv_prefill p;
} timing;

static fkv_status set_slot_on(void *ctx, int device, fkv_err *err)
{
    const timing *t = ctx;
    fkv_engine_device *d = &t->e->devices[device];
    const int32_t token = 1 + t->p.slot % 7;
    fkv_prefill_set_slot(d, &t->p);
    t->e->options.backend->upload(d->dev, d->slots.token + t->p.slot, &token, sizeof token);
    return t->e->options.backend->sync(d->dev, err);
}

static fkv_status decode_on(void *ctx, int device, fkv_err *err)
{
    const timing *t = ctx;
    fkv_engine_device *d = &t->e->devices[device];
    fkv_decode_run(d);
    return t->e->options.backend->sync(d->dev, err);
}

static fkv_status prefill_on(void *ctx, int device, fkv_err *err)
{
    const timing *t = ctx;
    return fkv_prefill_run(&t->e->devices[device], &t->p, err);
}

/* Every slot at work on a prompt of n_tokens; *admitted slots are to be released. */
static fkv_status fill_slots(fkv_engine *e, int64_t n_tokens, int n_steps, int *admitted, fkv_err *err)
{
    fkv_status st = FKV_OK;
    *admitted = 0;
    while (!st && *admitted < e->options.n_slots) {
        timing t = {e, {.n_ids = n_tokens, .slot = *admitted, .ordinal = *admitted, .max_new = n_steps + 1}};
        st = fkv_kv_admit(&e->kv, *admitted, n_tokens, n_steps + 1, err);
        if (st == FKV_E_BUSY) st = fkv_fail(err, FKV_E_INPUT, "only %d slots fit the memory", *admitted);
        if (st) break;
        (*admitted)++;
        st = fkv_team_run(e->team, set_slot_on, &t, err);
    }
    return st;
}

static void empty_slots(fkv_engine *e, int admitted)
{
    for (int s = 0; s < admitted; s++) fkv_kv_release(&e->kv, s);
}

fkv_status fkv_engine_time_decode(fkv_engine *e, int64_t n_tokens, int n_steps, double *step_seconds,
                                  fkv_err *err)
{
    int admitted;
    fkv_status st = fill_slots(e, n_tokens, n_steps, &admitted, err);
    timing t = {.e = e};
    e->trace_off = false;
    for (int i = 0; !st && i < n_steps; i++) {
        const double start = fkv_seconds();
        st = fkv_team_run(e->team, decode_on, &t, err);
        step_seconds[i] = fkv_seconds() - start;
        e->decode_steps++;
    }
    empty_slots(e, admitted);
    return st;
}

enum { ONCE_REPEATS = 16 };

static fkv_status once_on(void *ctx, int device, fkv_err *err)
{
    const timing *t = ctx;
    fkv_engine_device *d = &t->e->devices[device];
    for (int i = 0; i < ONCE_REPEATS; i++) {
        fkv_decode_begin(d);
        fkv_decode_end(d);
    }
    return t->e->options.backend->sync(d->dev, err);
}

fkv_status fkv_engine_time_once(fkv_engine *e, int64_t n_tokens, double *seconds, fkv_err *err)
{
    int admitted;
    fkv_status st = fill_slots(e, n_tokens, 2 * ONCE_REPEATS, &admitted, err);
    timing t = {.e = e};
    for (int i = 0; !st && i < 2; i++) { /* the first time warms up */
        const double start = fkv_seconds();
        st = fkv_team_run(e->team, once_on, &t, err);
        *seconds = (fkv_seconds() - start) / ONCE_REPEATS;
    }
    empty_slots(e, admitted);
    return st;
}

fkv_status fkv_engine_time_prefill(fkv_engine *e, const int32_t *ids, int64_t n_tokens, double *seconds,
                                   fkv_err *err)
{
    /* a slot where there is a plan: compression is a part of the time */
    timing t = {
        e, {.ids = ids, .n_ids = n_tokens, .slot = e->planned && !e->options.solo ? 0 : -1, .max_new = 1}};
    fkv_status st = FKV_OK;
    if (t.p.slot >= 0) {
        st = fkv_kv_admit(&e->kv, 0, n_tokens, 1, err);
        if (st) return st == FKV_E_BUSY ? fkv_fail(err, FKV_E_INPUT, "the prompt's pages are not free") : st;
    } else {
        t.p.no_scores = true;
    }
    const double start = fkv_seconds();
    st = fkv_team_run(e->team, prefill_on, &t, err);
    *seconds = fkv_seconds() - start;
    if (t.p.slot >= 0) fkv_kv_release(&e->kv, 0);
    return st;
}

bool fkv_engine_recorded_segments(fkv_engine *e, double *seconds)
{
    const fkv_engine_options *o = &e->options;
    const int n_layers = e->config.n_layers, n_ranks = o->solo ? 1 : o->n_ranks;
    double *one = fkv_calloc((size_t)n_layers, (size_t)n_ranks * sizeof *one);
    bool all = one != NULL;
    for (int i = 0, first = 0; all && i < o->n_devices; i++) {
        const fkv_engine_device *d = &e->devices[i];
        const int n = n_layers * d->n_ranks;
        all = o->backend->recorded_spans(d->dev, 0, one, n) == n;
        for (int l = 0; l < n_layers; l++)
            for (int r = 0; r < d->n_ranks; r++) seconds[l * n_ranks + first + r] = one[l * d->n_ranks + r];
        first += d->n_ranks;
    }
    free(one);
    return all;
}
