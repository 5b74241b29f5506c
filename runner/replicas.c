/* Engines side by side: see replicas.h. */
#include "runner/replicas.h"

#include <stdlib.h>
#include <string.h>

#include "engine/team.h"
#include "runner/base/mem.h"
#include "runner/tally.h"

struct fkv_replicas {
    int n, n_ranks, n_devices; /* ranks and devices of each */
    fkv_engine **engines;      /* [n] */
    fkv_team *team;
    const fkv_replica_work *work; /* under way */
};

static void stop_work(void *ctx)
{
    const fkv_replicas *r = ctx;
    if (r->work->stop) r->work->stop(r->work->ctx);
}

/* Says which devices are meant. */
static void name_devices(const fkv_replicas *r, int replica, fkv_err *err)
{
    char why[sizeof err->message], last[16] = "";
    const int first = replica * r->n_devices;
    if (r->n == 1) return;
    memcpy(why, err->message, sizeof why);
    if (r->n_devices > 1) snprintf(last, sizeof last, " to %d", first + r->n_devices - 1);
    snprintf(err->message, sizeof err->message, "device%s %d%s: %.700s", *last ? "s" : "", first, last, why);
}

static fkv_status work_on(void *ctx, int replica, fkv_err *err)
{
    const fkv_replicas *r = ctx;
    const fkv_status st = r->work->body(r->work->ctx, replica, r->engines[replica], err);
    if (st) name_devices(r, replica, err);
    return st;
}

fkv_status fkv_replicas_run(fkv_replicas *r, const fkv_replica_work *work, fkv_err *err)
{
    r->work = work;
    const fkv_status st = fkv_team_run(r->team, work_on, r, err);
    r->work = NULL;
    return st;
}

/* ---- opening ---- */

typedef struct opening {
    const fkv_setup *setup;
    const fkv_layout *layout;
    fkv_replicas *replicas;
} opening;

static fkv_status open_one(void *ctx, int replica, fkv_engine *none, fkv_err *err)
{
    const opening *o = ctx;
    fkv_engine_options options = fkv_setup_engine_options(o->setup, o->layout);
    (void)none;
    options.first_device = replica * o->layout->devices;
    return fkv_engine_open(&o->setup->config, o->setup->weights, &options, &o->replicas->engines[replica],
                           err);
}

static fkv_status resize_one(void *ctx, int replica, fkv_engine *engine, fkv_err *err)
{
    const opening *o = ctx;
    (void)replica;
    return fkv_engine_resize(engine, o->layout->slots, o->layout->max_prompt, o->layout->max_tokens, err);
}

static fkv_status make(const fkv_layout *l, fkv_replicas **out, fkv_err *err)
{
    fkv_replicas *r = calloc(1, sizeof *r);
    *out = r;
    if (!r) return fkv_fail_memory(err);
    *r = (fkv_replicas){.n = l->replicas, .n_ranks = l->ranks, .n_devices = l->devices};
    r->engines = fkv_calloc((size_t)r->n, sizeof *r->engines);
    if (!r->engines) return fkv_fail_memory(err);
    return fkv_team_open(r->n, "replica", stop_work, r, &r->team, err);
}

fkv_status fkv_replicas_open(const fkv_setup *s, const fkv_layout *l, fkv_replicas **replicas, fkv_err *err)
{
    fkv_replicas *old = *replicas;
    opening o = {s, l, old};
    const fkv_replica_work resizing = {&o, resize_one, NULL}, loading = {&o, open_one, NULL};
    if (old && old->n == l->replicas && old->n_ranks == l->ranks && old->n_devices == l->devices)
        return fkv_replicas_run(old, &resizing, err);
    const fkv_stage before = fkv_tally_stage(s->tally, FKV_STAGE_LOAD);
    fkv_replicas_close(old);
    fkv_status st = make(l, replicas, err);
    o.replicas = *replicas;
    if (!st) st = fkv_replicas_run(*replicas, &loading, err);
    fkv_tally_stage(s->tally, before);
    if (!st) return FKV_OK;
    fkv_replicas_close(*replicas);
    *replicas = NULL;
    return st;
}

fkv_status fkv_replicas_check_alike(const fkv_replicas *r, fkv_err *err)
{
    char numerics[2][256];
    fkv_device_info info[2];
    for (int i = 0; i < r->n; i++) {
        fkv_engine_info(r->engines[i], &info[i > 0]);
        fkv_engine_numerics(r->engines[i], numerics[i > 0], sizeof numerics[0]);
        if (i == 0 || (!strcmp(info[0].name, info[1].name) && !strcmp(numerics[0], numerics[1]))) continue;
        return fkv_fail(
            err, FKV_E_INPUT,
            "replica %d is on %s (%.200s), unlike replica 0 on %s (%.200s), and would give unlike "
            "answers: lower engine.data_parallel or engine.devices",
            i, info[1].name, numerics[1], info[0].name, numerics[0]);
    }
    return FKV_OK;
}

/* ---- the rest ---- */

int fkv_replicas_count(const fkv_replicas *r)
{
    return r->n;
}

fkv_engine *fkv_replicas_first(const fkv_replicas *r)
{
    return r->engines[0];
}

void fkv_replicas_stats(const fkv_replicas *r, fkv_engine_stats *stats)
{
    *stats = (fkv_engine_stats){0};
    for (int i = 0; r && i < r->n; i++) {
        fkv_engine_stats one;
        fkv_engine_stats_get(r->engines[i], &one);
        fkv_engine_stats_add(stats, &one, r->n);
    }
}

void fkv_replicas_close(fkv_replicas *r)
{
    if (!r) return;
    for (int i = 0; r->engines && i < r->n; i++) fkv_engine_close(r->engines[i]);
    fkv_team_close(r->team);
    free(r->engines);
    free(r);
}
