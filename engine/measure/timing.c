/* Decode steps and prefills timed alone: see measure.h. */
#include <stdlib.h>

#include "engine/measure/measure.h"
#include "engine/state.h"
#include "runner/base/clock.h"
#include "runner/base/mem.h"

fkv_engine_kv_limits fkv_measure_limits(const fkv_plan *plan, const int32_t *budgets, int64_t n_tokens,
                                        int64_t max_new)
{
    const int n_lh = plan->n_layers * plan->n_kv_heads;
    const fkv_record_shape shape = {plan->n_layers, plan->n_kv_heads, plan->n_ranks, budgets};
    fkv_engine_kv_limits limits = {
        .record = {n_tokens + max_new, n_tokens, fkv_record_pages(&shape, n_tokens, max_new)}};
    for (int r = 0; r < plan->n_ranks; r++) {
        int64_t pages = 0;
        for (int i = 0; i < n_lh; i++)
            for (int p = plan->first[i]; p < plan->first[i + 1]; p++)
                if (plan->at[p].rank == r)
                    pages +=
                        (plan->at[p].end - plan->at[p].begin) * fkv_head_pages(budgets[i], n_tokens, max_new);
        if (pages > limits.arena_pages) limits.arena_pages = pages;
    }
    return limits;
}

typedef struct timing {
    fkv_engine *e;
    fkv_prefill p;
    const fkv_edit *edits; /* of the page tables */
    int64_t n_edits;
    int64_t n_tokens;
    int32_t max_new;
    int n_steps;
} timing;

static void fill(fkv_engine_device *d, int32_t *array, int32_t value)
{
    const fkv_engine *e = d->engine;
    int32_t some[64];
    const int n = e->options.n_slots, most = (int)(sizeof some / sizeof *some);
    for (int i = 0; i < most; i++) some[i] = value;
    for (int s = 0; s < n; s += most)
        e->options.backend->upload(d->dev, array + s, some,
                                   (size_t)(n - s < most ? n - s : most) * sizeof *some);
}

/* Every slot as if a prompt of n_tokens had just been prefilled. */
static fkv_status set_slots_on(void *ctx, int device, fkv_err *err)
{
    const timing *t = ctx;
    fkv_engine_device *d = &t->e->devices[device];
    const fkv_backend *b = t->e->options.backend;
    fkv_edits_enqueue(d, d->table, t->edits, t->n_edits);
    fill(d, d->slots.pos, (int32_t)t->n_tokens);
    fill(d, d->slots.prompt_len, (int32_t)t->n_tokens);
    fill(d, d->slots.rope0, fkv_engine_rope0(t->e, t->n_tokens, t->max_new));
    fill(d, d->slots.n_new, 0);
    fill(d, d->slots.max_new, t->max_new);
    fill(d, d->slots.active, FKV_SLOT_DECODING);
    for (int s = 0; s < t->e->options.n_slots; s++) {
        const int32_t token = 1 + s % 7;
        b->upload(d->dev, d->slots.token + s, &token, sizeof token);
        fkv_sampling sampling = t->e->options.measured;
        sampling.stream = (uint64_t)s;
        b->upload(d->dev, d->slots.sampling + s, &sampling, sizeof sampling);
    }
    return b->sync(d->dev, err);
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
    fkv_engine_device *d = &t->e->devices[device];
    fkv_edits_enqueue(d, d->table, t->edits, t->n_edits);
    fkv_prefill_enqueue(d, &t->p);
    return t->e->options.backend->sync(d->dev, err);
}

/* Pages of a prompt and so many tokens more in slot. */
static fkv_status put(fkv_engine *e, int slot, int64_t n_tokens, int64_t beyond, fkv_err *err)
{
    int64_t *need = fkv_calloc((size_t)e->options.n_ranks, sizeof *need);
    if (!need) return fkv_fail_memory(err);
    fkv_kv_prompt_need(&e->kv, slot, n_tokens, beyond, need);
    const bool fits = fkv_kv_free(&e->kv, need) && fkv_kv_reaches(&e->kv, n_tokens, beyond);
    if (fits) fkv_kv_put(&e->kv, slot, n_tokens, beyond);
    free(need);
    return fits ? FKV_OK : fkv_fail(err, FKV_E_INPUT, "only %d slots fit the memory", slot);
}

/* Every slot at work on a prompt of n_tokens; empty_slots takes it back, also after a failure. */
static fkv_status fill_slots(fkv_engine *e, int64_t n_tokens, int n_steps, fkv_err *err)
{
    timing t = {.e = e, .n_tokens = n_tokens, .max_new = n_steps + 1};
    fkv_status st = FKV_OK;
    for (int s = 0; !st && s < e->options.n_slots; s++) st = put(e, s, n_tokens, n_steps + 1, err);
    if (st) return st;
    t.edits = fkv_kv_edits(&e->kv, &t.n_edits);
    e->choice = fkv_sampling_choice(&e->options.measured, &e->options.rules);
    return fkv_team_run(e->team, set_slots_on, &t, err);
}

static fkv_status idle_on(void *ctx, int device, fkv_err *err)
{
    const timing *t = ctx;
    fkv_engine_device *d = &t->e->devices[device];
    fill(d, d->slots.active, FKV_SLOT_IDLE);
    return t->e->options.backend->sync(d->dev, err);
}

/* No slot stays at work, or the next step would write into pages that are others' by then. */
static void empty_slots(fkv_engine *e)
{
    timing t = {.e = e};
    fkv_err ignored = {0};
    fkv_team_run(e->team, idle_on, &t, &ignored);
    for (int s = 0; s < e->options.n_slots; s++) fkv_kv_release(&e->kv, s);
}

fkv_status fkv_measure_decode(fkv_engine *e, int64_t n_tokens, int n_steps, double *step_seconds,
                              fkv_err *err)
{
    fkv_status st = fill_slots(e, n_tokens, n_steps, err);
    timing t = {.e = e};
    e->unwatched = false;
    for (int i = 0; !st && i < n_steps; i++) {
        const double start = fkv_seconds();
        st = fkv_team_run(e->team, decode_on, &t, err);
        step_seconds[i] = fkv_seconds() - start;
        e->decode_steps++;
    }
    empty_slots(e);
    return st;
}

static fkv_status replays_on(void *ctx, int device, fkv_err *err)
{
    const timing *t = ctx;
    fkv_engine_device *d = &t->e->devices[device];
    for (int i = 0; i < t->n_steps; i++) fkv_decode_run(d);
    return t->e->options.backend->sync(d->dev, err);
}

fkv_status fkv_measure_replays(fkv_engine *e, int64_t n_tokens, int n_steps, double *seconds, fkv_err *err)
{
    fkv_status st = fill_slots(e, n_tokens, n_steps, err);
    timing t = {.e = e, .n_steps = n_steps};
    const double start = fkv_seconds();
    if (!st) st = fkv_team_run(e->team, replays_on, &t, err);
    *seconds = fkv_seconds() - start;
    e->decode_steps += n_steps;
    empty_slots(e);
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

fkv_status fkv_measure_once(fkv_engine *e, int64_t n_tokens, double *seconds, fkv_err *err)
{
    fkv_status st = fill_slots(e, n_tokens, 2 * ONCE_REPEATS, err);
    timing t = {.e = e};
    for (int i = 0; !st && i < 2; i++) { /* the first time warms up */
        const double start = fkv_seconds();
        st = fkv_team_run(e->team, once_on, &t, err);
        *seconds = (fkv_seconds() - start) / ONCE_REPEATS;
    }
    empty_slots(e);
    return st;
}

fkv_status fkv_measure_prefill(fkv_engine *e, const int32_t *ids, int64_t n_tokens, double *seconds,
                               fkv_err *err)
{
    /* a slot where there is a plan: compression is a part of the time */
    const bool fills = e->planned && !e->options.solo;
    fkv_segment segment = {.slot = fills ? 0 : -1, .max_new = 1};
    timing t = {.e = e, .p = fkv_prefill_one(e, ids, n_tokens, &segment)};
    fkv_status st = FKV_OK;
    t.p.no_scores = !fills;
    if (fills) {
        if ((st = put(e, 0, n_tokens, 1, err))) return st;
        t.edits = fkv_kv_edits(&e->kv, &t.n_edits);
    }
    const double start = fkv_seconds();
    st = fkv_team_run(e->team, prefill_on, &t, err);
    *seconds = fkv_seconds() - start;
    if (fills) fkv_kv_release(&e->kv, 0);
    return st;
}

bool fkv_measure_segments(fkv_engine *e, double *seconds)
{
    const fkv_engine_options *o = &e->options;
    const int n_layers = e->config.n_layers, n_ranks = o->solo ? 1 : o->n_ranks;
    double *one = fkv_calloc((size_t)n_layers, (size_t)n_ranks * sizeof *one);
    bool all = one != NULL;
    for (int i = 0, first = 0; all && i < o->n_devices; i++) {
        const fkv_engine_device *d = &e->devices[i];
        const int n = n_layers * d->n_ranks;
        all = o->backend->recorded_spans(d->dev, e->choice, one, n) == n;
        for (int l = 0; l < n_layers; l++)
            for (int r = 0; r < d->n_ranks; r++) seconds[l * n_ranks + first + r] = one[l * d->n_ranks + r];
        first += d->n_ranks;
    }
    free(one);
    return all;
}
