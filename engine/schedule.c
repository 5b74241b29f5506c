/* The engine's run: which slot prefills or decodes next, and who gets the tokens.
 *
 * Free slots are refilled before every decode step, as far as requests are ready
 * and their pages are there; all devices follow the same calls in the same order.
 */
#include <stdlib.h>

#include "engine/state.h"
#include "runner/base/clock.h"
#include "runner/base/mem.h"

typedef struct slot {
    bool busy;
    fkv_request request;
    int32_t *ids; /* generated */
    int64_t n, cap;
} slot;

typedef struct run {
    fkv_engine *e;
    const fkv_engine_io *io;
    slot *slots;
    int n_busy;
    bool ended;          /* no more requests */
    bool waiting;        /* next holds a request that no pages were free for */
    fkv_request pending; /* with waiting */
    int32_t *out;        /* [n_slots] tokens of the last sample */
    float *logits;       /* for io->logits */
} run;

typedef struct prefill_args {
    fkv_engine *e;
    fkv_prefill p;
} prefill_args;

static fkv_status prefill_on(void *ctx, int device, fkv_err *err)
{
    const prefill_args *a = ctx;
    return fkv_prefill_run(&a->e->devices[device], &a->p, err);
}

fkv_status fkv_engine_profile(fkv_engine *e, const int32_t *ids, int64_t n_ids, int64_t b, double alpha,
                              double *sums, fkv_err *err)
{
    const fkv_config *c = &e->config;
    const int64_t n = n_ids - e->options.window;
    if (n_ids <= b || n_ids > e->options.max_prompt || n <= 0)
        return fkv_fail(err, FKV_E_INPUT, "a prompt of %lld tokens can't be profiled", (long long)n_ids);
    size_t per_layer, all;
    if (!fkv_mul_size((size_t)c->n_kv_heads, (size_t)n, &per_layer) ||
        !fkv_mul_size(per_layer, (size_t)c->n_layers, &all))
        return fkv_fail_memory(err);
    float *scores = fkv_calloc(all, sizeof *scores), *work = fkv_calloc(per_layer, sizeof *work);
    fkv_status s = scores && work ? FKV_OK : fkv_fail_memory(err);
    if (!s) {
        prefill_args a = {e, {.ids = ids, .n_ids = n_ids, .slot = -1, .host_scores = scores}};
        s = fkv_team_run(e->team, prefill_on, &a, err);
    }
    for (int l = 0; !s && l < c->n_layers; l++)
        fkv_budget_ada_count(scores + (size_t)l * per_layer, c->n_kv_heads, n, b, e->options.window, alpha,
                             work, sums + (int64_t)l * c->n_kv_heads);
    free(work);
    free(scores);
    return s;
}

/* Enqueues the way back of the last sample's tokens, and of logits where a test asks. */
static void fetch(run *r)
{
    const fkv_engine *e = r->e;
    const fkv_engine_device *d = &e->devices[0];
    const fkv_backend *b = e->options.backend;
    const size_t n = (size_t)e->options.n_slots;
    b->download(d->dev, r->out, d->slots.out, n * sizeof *r->out);
    if (r->io->logits)
        b->download(d->dev, r->logits, d->logits, n * (size_t)e->config.vocab * sizeof *r->logits);
}

/* One wait a step: the tokens come back behind the step itself. */
static fkv_status decode_on(void *ctx, int device, fkv_err *err)
{
    run *r = ctx;
    fkv_engine_device *d = &r->e->devices[device];
    fkv_decode_run(d);
    if (device == 0) fetch(r);
    return r->e->options.backend->sync(d->dev, err);
}

static fkv_status finish_slot(run *r, int s, fkv_finish why, fkv_err *err)
{
    slot *k = &r->slots[s];
    fkv_kv_release(&r->e->kv, s);
    k->busy = false;
    r->n_busy--;
    return r->io->finish(r->io->ctx, &k->request, k->ids, k->n, why, err);
}

/* The device clears active by itself on an end-of-sequence token or the limit; a
 * stop string is known only here. */
static void deactivate(run *r, int s)
{
    const int32_t zero = 0;
    for (int d = 0; d < r->e->options.n_devices; d++) {
        const fkv_engine_device *dev = &r->e->devices[d];
        r->e->options.backend->upload(dev->dev, dev->slots.active + s, &zero, sizeof zero);
    }
}

/* Token out[s] belongs to slot s. */
static fkv_status take_token(run *r, int s, fkv_err *err)
{
    slot *k = &r->slots[s];
    const fkv_sampling *p = &r->e->options.sampling;
    const int32_t token = r->out[s];
    bool stop = false;
    if (r->io->logits)
        r->io->logits(r->io->ctx, &k->request, k->n, r->logits + (int64_t)s * r->e->config.vocab,
                      r->e->config.vocab);
    k->ids[k->n++] = token;
    for (int i = 0; i < p->n_eos; i++) stop = stop || token == p->eos[i];
    if (stop) return finish_slot(r, s, FKV_FINISH_STOP, err);
    if (r->io->token(r->io->ctx, &k->request, k->ids, k->n)) {
        deactivate(r, s);
        return finish_slot(r, s, FKV_FINISH_STOP, err);
    }
    return k->n >= k->request.max_new ? finish_slot(r, s, FKV_FINISH_LENGTH, err) : FKV_OK;
}

static fkv_status start_slot(run *r, int s, fkv_err *err)
{
    slot *k = &r->slots[s];
    k->request = r->pending;
    if (k->request.max_new > k->cap) {
        int32_t *ids = fkv_realloc(k->ids, (size_t)k->request.max_new, sizeof *ids);
        if (!ids) return fkv_fail_memory(err);
        k->ids = ids;
        k->cap = k->request.max_new;
    }
    k->n = 0;
    k->busy = true;
    r->n_busy++;
    r->waiting = false;
    const fkv_request *q = &k->request;
    prefill_args a = {
        r->e, {.ids = q->ids, .n_ids = q->n_ids, .slot = s, .ordinal = q->ordinal, .max_new = q->max_new}};
    const double t = fkv_seconds();
    fkv_status st = fkv_team_run(r->e->team, prefill_on, &a, err);
    if (!st) {
        fetch(r);
        st = r->e->options.backend->sync(r->e->devices[0].dev, err);
        if (st) fkv_team_name_device(r->e->team, 0, err);
    }
    r->e->prefill_seconds += fkv_seconds() - t;
    return st ? st : take_token(r, s, err);
}

/* Fills free slots while requests are ready and their pages are free. */
static fkv_status refill(run *r, fkv_err *err)
{
    fkv_status st;
    for (int s = 0; s < r->e->options.n_slots;) {
        if (r->slots[s].busy) {
            s++;
            continue;
        }
        if (!r->waiting && r->ended) return FKV_OK;
        if (!r->waiting) {
            st = r->io->next(r->io->ctx, r->n_busy == 0, &r->pending, err);
            if (st == FKV_E_BUSY) return FKV_OK;
            if (st == FKV_END) r->ended = true;
            if (st == FKV_END) return FKV_OK;
            if (st) return st;
            r->waiting = true;
        }
        fkv_err why = {0};
        st = fkv_kv_admit(&r->e->kv, s, r->pending.n_ids, r->pending.max_new, &why);
        if (st == FKV_E_BUSY) return FKV_OK;
        if (st) {
            r->waiting = false;
            st = r->io->reject(r->io->ctx, &r->pending, &why, err);
        } else {
            st = start_slot(r, s, err);
        }
        if (st) return st;
        if (r->io->stopping(r->io->ctx) != FKV_GO_ON) return FKV_OK;
    }
    return FKV_OK;
}

static fkv_status decode_step(run *r, fkv_err *err)
{
    const double t = fkv_seconds();
    /* Where slots are idle a step says little about the plan. */
    r->e->trace_off = r->n_busy < r->e->options.n_slots;
    fkv_status st = fkv_team_run(r->e->team, decode_on, r, err);
    r->e->decode_seconds += fkv_seconds() - t;
    r->e->decode_steps++;
    for (int s = 0; !st && s < r->e->options.n_slots; s++)
        if (r->slots[s].busy) st = take_token(r, s, err);
    return st;
}

static fkv_status loop(run *r, fkv_err *err)
{
    for (;;) {
        const fkv_stopping stopping = r->io->stopping(r->io->ctx);
        fkv_status st = FKV_OK;
        if (stopping == FKV_GO_ON) {
            if ((st = refill(r, err))) return st;
            if (r->n_busy == 0 && r->ended && !r->waiting) return FKV_OK;
        }
        if (stopping == FKV_STOP_NOW || (stopping == FKV_DRAIN && r->n_busy == 0))
            return fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
        if (r->n_busy && (st = decode_step(r, err))) return st;
    }
}

fkv_status fkv_engine_run(fkv_engine *e, const fkv_engine_io *io, fkv_err *err)
{
    const size_t n = (size_t)e->options.n_slots;
    run r = {.e = e, .io = io};
    fkv_status st;
    r.slots = fkv_calloc(n, sizeof *r.slots);
    r.out = fkv_calloc(n, sizeof *r.out);
    if (io->logits) r.logits = fkv_calloc(n * (size_t)e->config.vocab, sizeof *r.logits);
    if (!e->planned)
        st = fkv_fail(err, FKV_E_INPUT, "the engine has no plan");
    else if (!r.slots || !r.out || (io->logits && !r.logits))
        st = fkv_fail_memory(err);
    else
        st = loop(&r, err);
    for (size_t s = 0; r.slots && s < n; s++) {
        if (r.slots[s].busy) fkv_kv_release(&e->kv, (int)s);
        if (r.slots[s].busy) deactivate(&r, (int)s);
        free(r.slots[s].ids);
    }
    free(r.slots);
    free(r.out);
    free(r.logits);
    return st;
}
