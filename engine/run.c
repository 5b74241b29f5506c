/* The engine's run: carries the schedule's commands out on all devices and hands tokens to
 * the caller. Where a backend's work goes on by itself (info.async) a command's tokens are
 * read while the next one is under way, so the devices never wait for the host.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/schedule.h"
#include "engine/state.h"
#include "runner/base/mem.h"

/* What comes back of a command. */
typedef struct result {
    int32_t *out;  /* [n_slots] */
    float *logits; /* [n_slots, vocab], for io->logits */
} result;

typedef struct run {
    fkv_engine *e;
    const fkv_engine_io *io;
    fkv_schedule *schedule;
    bool ended;
    fkv_command *command; /* to be carried out now, or NULL */
    fkv_command *awaited; /* whose tokens are waited for, or NULL */
    bool starts;          /* nothing is under way before command */
    fkv_edit *idle;       /* [n_slots] of the command's stopped slots */
    result results[2];    /* by command number */
} run;

/* What every device reads of a command beside the command itself. */
static void prepare(run *r, const fkv_command *c)
{
    for (int i = 0; i < c->n_stopped; i++) r->idle[i] = (fkv_edit){c->stopped[i], FKV_SLOT_IDLE};
    if (c->kind != FKV_COMMAND_PREFILL) return;
    for (int i = 0; i < c->n_segments; i++)
        fkv_prefill_put(r->e, c->prompts[i]->request.ids, &c->segments[i]);
}

static void enqueue(run *r, fkv_engine_device *d)
{
    const fkv_engine *e = r->e;
    const fkv_backend *b = e->options.backend;
    const fkv_command *c = r->command;
    const size_t n = (size_t)e->options.n_slots;
    if (r->starts) b->post(d->dev); /* time starts here */
    fkv_edits_enqueue(d, d->table, c->edits, c->n_edits);
    fkv_edits_enqueue(d, d->slots.active, r->idle, c->n_stopped);
    if (c->kind == FKV_COMMAND_PREFILL) {
        const fkv_prefill p = {
            .segments = c->segments, .n_segments = c->n_segments, .n_rows = c->n_rows, .n_tiles = c->n_tiles};
        fkv_stage_begin("prefill");
        fkv_prefill_enqueue(d, &p);
    } else {
        fkv_stage_begin("decode");
        fkv_decode_run(d);
    }
    fkv_stage_end();
    if (d->index == 0) {
        const result *back = &r->results[c->number % 2];
        b->download(d->dev, back->out, d->slots.out, n * sizeof *back->out);
        if (back->logits)
            b->download(d->dev, back->logits, d->logits, n * (size_t)e->config.vocab * sizeof *back->logits);
    }
    d->tickets[c->number % 2] = b->post(d->dev);
}

static fkv_status obey(void *ctx, int device, fkv_err *err)
{
    run *r = ctx;
    fkv_engine_device *d = &r->e->devices[device];
    if (r->command) enqueue(r, d);
    return r->awaited ? r->e->options.backend->wait(d->dev, d->tickets[r->awaited->number % 2], err) : FKV_OK;
}

static fkv_status finish(run *r, fkv_work *w, fkv_finish why, bool decoding, fkv_err *err)
{
    fkv_schedule_finish(r->schedule, w, true, decoding);
    const fkv_status st = r->io->finish(r->io->ctx, &w->request, w->ids, w->n, why, err);
    fkv_schedule_recycle(r->schedule, w);
    return st;
}

static fkv_status reject(run *r, fkv_work *w, const char *code, const fkv_err *why, fkv_err *err)
{
    fkv_schedule_finish(r->schedule, w, false, false);
    const fkv_status st = r->io->reject(r->io->ctx, &w->request, code, why, err);
    fkv_schedule_recycle(r->schedule, w);
    return st;
}

/* The device ends a record by itself on an end-of-sequence token or the limit; a stop string is
 * known only here. */
static fkv_status take_token(run *r, fkv_work *w, int32_t token, const float *logits, fkv_err *err)
{
    if (token == FKV_TOKEN_BAD_LOGITS) {
        fkv_err why = {0};
        fkv_fail(&why, FKV_E_INPUT, "the model's logits of new token %lld are not numbers",
                 (long long)w->n + 1);
        return reject(r, w, "bad_logits", &why, err);
    }
    if (token < 0) return fkv_fail(err, FKV_E_DEVICE, "a slot at work gave no token");
    if (logits) r->io->logits(r->io->ctx, &w->request, w->n, logits, r->e->config.vocab);
    w->ids[w->n++] = token;
    if (fkv_sampling_ends(&w->request.sampling, &r->e->options.rules, token))
        return finish(r, w, FKV_FINISH_STOP, false, err);
    const bool stops = r->io->token(r->io->ctx, &w->request, w->ids, w->n), full = w->n >= w->request.max_new;
    if (stops) return finish(r, w, FKV_FINISH_STOP, !full, err);
    return full ? finish(r, w, FKV_FINISH_LENGTH, false, err) : FKV_OK;
}

static fkv_status take_results(run *r, const fkv_command *c, fkv_err *err)
{
    const result *back = &r->results[c->number % 2];
    const fkv_engine_device *d = &r->e->devices[0];
    double *spent = c->kind == FKV_COMMAND_PREFILL ? &r->e->prefill_seconds : &r->e->decode_seconds;
    fkv_status st = FKV_OK;
    *spent += r->e->options.backend->ticket_seconds(d->dev, d->tickets[c->number % 2]);
    r->e->decode_steps += c->kind == FKV_COMMAND_STEP;
    for (int s = 0; !st && s < r->e->options.n_slots; s++) {
        fkv_work *w = fkv_schedule_owner(c, s);
        const float *logits = back->logits ? back->logits + (int64_t)s * r->e->config.vocab : NULL;
        if (w) st = take_token(r, w, back->out[s], logits, err);
    }
    return st;
}

static fkv_status add(run *r, const fkv_request *q, fkv_err *err)
{
    fkv_err why = {0};
    if (q->n_ids > r->e->options.max_prompt)
        return fkv_fail(err, FKV_E_INPUT, "a prompt of %lld tokens, and the engine was opened for %lld",
                        (long long)q->n_ids, (long long)r->e->options.max_prompt);
    const fkv_status st = fkv_schedule_add(r->schedule, q, &why);
    if (st == FKV_E_INPUT) return r->io->reject(r->io->ctx, q, "too_large", &why, err);
    if (st && err) *err = why;
    return st;
}

/* Requests that are ready, as far as there is room for them; wait: at least one, or the end. */
static fkv_status take_requests(run *r, bool wait, fkv_err *err)
{
    while (!r->ended && fkv_schedule_room(r->schedule)) {
        fkv_request q;
        fkv_status st = r->io->next(r->io->ctx, wait, &q, err);
        if (st == FKV_E_BUSY) return FKV_OK;
        r->ended = st == FKV_END;
        if (r->ended) {
            fkv_schedule_end(r->schedule);
            return FKV_OK;
        }
        if (!st) st = add(r, &q, err);
        if (st) return st;
        wait = false;
    }
    return FKV_OK;
}

/* Gives r->command to all devices and waits for what comes due. */
static fkv_status exchange(run *r, fkv_command **last, fkv_err *err)
{
    fkv_engine *e = r->e;
    r->awaited = e->info.async ? *last : r->command;
    if (r->command) prepare(r, r->command);
    /* Where slots are idle a step says little about the plan. */
    e->unwatched = false;
    e->choice = 0;
    for (int s = 0; r->command && s < e->options.n_slots; s++) {
        const fkv_work *w = r->command->who[s];
        e->unwatched |= !w;
        if (w) e->choice |= fkv_sampling_choice(&w->request.sampling, &e->options.rules);
    }
    r->starts = !*last;
    *last = e->info.async ? r->command : NULL;
    fkv_status st = fkv_team_run(e->team, obey, r, err);
    if (!st && r->awaited) st = take_results(r, r->awaited, err);
    return st;
}

static fkv_status loop(run *r, fkv_err *err)
{
    fkv_command *last = NULL; /* under way */
    for (;;) {
        const fkv_stopping stopping = r->io->stopping(r->io->ctx);
        fkv_status st = FKV_OK;
        if (stopping == FKV_STOP_NOW) return fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
        if (stopping == FKV_DRAIN) fkv_schedule_drain(r->schedule);
        if (stopping == FKV_GO_ON && (st = take_requests(r, !last && fkv_schedule_idle(r->schedule), err)))
            return st;
        r->command = fkv_schedule_next(r->schedule, last != NULL);
        if (r->command || last) {
            if ((st = exchange(r, &last, err))) return st;
        } else if (stopping == FKV_DRAIN) {
            return fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
        } else if (r->ended && fkv_schedule_idle(r->schedule)) {
            return FKV_OK;
        }
    }
}

static fkv_status open_run(run *r, fkv_err *err)
{
    const fkv_engine *e = r->e;
    const size_t n = (size_t)e->options.n_slots;
    if (!e->planned) return fkv_fail(err, FKV_E_INPUT, "the engine has no plan");
    if (!(r->idle = fkv_calloc(n, sizeof *r->idle))) return fkv_fail_memory(err);
    for (int i = 0; i < 2; i++) {
        r->results[i].out = fkv_calloc(n, sizeof *r->results[i].out);
        if (r->io->logits)
            r->results[i].logits = fkv_calloc(n * (size_t)e->config.vocab, sizeof *r->results[i].logits);
        if (!r->results[i].out || (r->io->logits && !r->results[i].logits)) return fkv_fail_memory(err);
    }
    const fkv_schedule_limits limits = {.n_slots = e->options.n_slots,
                                        .max_rows = e->max_rows,
                                        .worth_rows = e->info.worth_rows,
                                        .n_waiting = e->options.n_slots + FKV_ENGINE_LOOK_AHEAD};
    return fkv_schedule_open(&r->e->kv, &limits, &r->schedule, err);
}

static fkv_status settle_on(void *ctx, int device, fkv_err *err)
{
    const run *r = ctx;
    fkv_engine_device *d = &r->e->devices[device];
    fkv_edits_enqueue(d, d->slots.active, r->idle, r->e->options.n_slots);
    return r->e->options.backend->sync(d->dev, err);
}

fkv_status fkv_engine_run(fkv_engine *e, const fkv_engine_io *io, fkv_err *err)
{
    run r = {.e = e, .io = io};
    fkv_err ignored = {0};
    fkv_status st = open_run(&r, err);
    e->schedule = r.schedule;
    if (!st) st = loop(&r, err);
    /* What is under way writes into the results; and no slot stays at work. */
    for (int s = 0; r.idle && s < e->options.n_slots; s++) r.idle[s] = (fkv_edit){s, FKV_SLOT_IDLE};
    if (r.schedule) fkv_team_run(e->team, settle_on, &r, &ignored);
    if (r.schedule) fkv_schedule_stats_add(r.schedule, &e->schedule_stats);
    e->schedule = NULL;
    fkv_schedule_close(r.schedule);
    free(r.idle);
    for (int i = 0; i < 2; i++) {
        free(r.results[i].out);
        free(r.results[i].logits);
    }
    return st;
}
