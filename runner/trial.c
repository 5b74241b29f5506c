/* Answering a list of records: see trial.h. */
#include "runner/trial.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "runner/answer.h"
#include "runner/base/mem.h"
#include "runner/interrupt.h"

/* A record at work. */
typedef struct work {
    fkv_trial_answer *answer;
    const fkv_sample_record *record;
    fkv_stops stops;
    fkv_answer_watch watch;
} work;

typedef struct trial {
    const fkv_setup *setup;
    const fkv_sample *records;
    work *works; /* [records->n] */
    int n_lanes;
    atomic_bool failed;
    atomic_llong n_done;
    void (*done)(void *ctx, int64_t n);
    void *ctx;
} trial;

/* An engine's side: it answers every n_lanes-th record. */
typedef struct lane {
    trial *t;
    int64_t next;
    fkv_answer_maker maker;
} lane;

static fkv_status next_request(void *ctx, bool wait, fkv_request *request, fkv_err *err)
{
    lane *a = ctx;
    trial *t = a->t;
    (void)wait;
    (void)err;
    if (a->next >= t->records->n) return FKV_END;
    work *w = &t->works[a->next];
    const fkv_sample_record *r = w->record;
    a->next += t->n_lanes;
    *request = (fkv_request){.ordinal = r->ordinal,
                             .ids = r->ids.data,
                             .n_ids = (int64_t)r->ids.len,
                             .max_new = r->max_new,
                             .sampling = fkv_sampling_of(t->setup, r->record),
                             .user = w};
    return FKV_OK;
}

static bool on_token(void *ctx, const fkv_request *request, const int32_t *ids, int64_t n)
{
    lane *a = ctx;
    work *w = request->user;
    return fkv_answer_stops(&a->maker, &w->stops, &w->watch, ids, (size_t)n);
}

static void tell(const lane *a, work *w)
{
    trial *t = a->t;
    fkv_answer_watch_free(&w->watch);
    t->done(t->ctx, atomic_fetch_add(&t->n_done, 1) + 1);
}

static fkv_status on_finish(void *ctx, const fkv_request *request, const int32_t *ids, int64_t n,
                            fkv_finish why, fkv_err *err)
{
    work *w = request->user;
    fkv_ids *out = &w->answer->ids;
    if ((size_t)n > out->cap) {
        int32_t *data = fkv_realloc(out->data, (size_t)n, sizeof *data);
        if (!data) return fkv_fail_memory(err);
        out->data = data;
        out->cap = (size_t)n;
    }
    memcpy(out->data, ids, (size_t)n * sizeof *ids);
    out->len = (size_t)n;
    w->answer->at_limit = why == FKV_FINISH_LENGTH;
    tell(ctx, w);
    return FKV_OK;
}

static fkv_status on_reject(void *ctx, const fkv_request *request, const char *code, const fkv_err *why,
                            fkv_err *err)
{
    work *w = request->user;
    (void)why;
    (void)err;
    snprintf(w->answer->code, sizeof w->answer->code, "%s", code);
    tell(ctx, w);
    return FKV_OK;
}

static fkv_stopping stopping(void *ctx)
{
    const trial *t = ((lane *)ctx)->t;
    return fkv_interrupt_signal() || atomic_load(&t->failed) ? FKV_STOP_NOW : FKV_GO_ON;
}

static fkv_status run_lane(void *ctx, int replica, fkv_engine *engine, fkv_err *err)
{
    trial *t = ctx;
    lane a = {.t = t, .next = replica};
    const fkv_engine_io io = {.ctx = &a,
                              .next = next_request,
                              .token = on_token,
                              .finish = on_finish,
                              .reject = on_reject,
                              .stopping = stopping};
    fkv_answer_maker_open(&a.maker, t->setup);
    const fkv_status st = fkv_engine_run(engine, &io, err);
    fkv_answer_maker_close(&a.maker);
    return st;
}

static void stop_all(void *ctx)
{
    trial *t = ctx;
    atomic_store(&t->failed, true);
}

fkv_status fkv_trial_run(const fkv_setup *setup, const fkv_sample *records, fkv_replicas *replicas,
                         void (*done)(void *ctx, int64_t n), void *ctx, fkv_trial_answer *answers,
                         fkv_err *err)
{
    trial t = {.setup = setup,
               .records = records,
               .n_lanes = fkv_replicas_count(replicas),
               .done = done,
               .ctx = ctx};
    const fkv_replica_work running = {&t, run_lane, stop_all};
    t.works = fkv_calloc((size_t)records->n, sizeof *t.works);
    if (!t.works) return fkv_fail_memory(err);
    for (int64_t i = 0; i < records->n; i++) {
        answers[i].ids.len = 0;
        answers[i].code[0] = '\0';
        t.works[i] = (work){.answer = &answers[i],
                            .record = &records->records[i],
                            .stops = fkv_stops_of(setup, records->records[i].record)};
    }
    const fkv_status st = fkv_replicas_run(replicas, &running, err);
    for (int64_t i = 0; i < records->n; i++) fkv_answer_watch_free(&t.works[i].watch);
    free(t.works);
    return st;
}

void fkv_trial_free(fkv_trial_answer *answers, int64_t n)
{
    for (int64_t i = 0; answers && i < n; i++) fkv_ids_free(&answers[i].ids);
    free(answers);
}
