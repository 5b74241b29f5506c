/* A job of LongBench's lengths on an engine: how near its time while prompts last comes to that of the
 * prompts alone. Prompts are log-normal (median 8,000 tokens, sigma 0.6, 1,000 to 30,000), limits 32, 64, 64,
 * 128, 128, 512 by turns at random, token numbers arbitrary. For benchmarks of one file, which includes it
 * once. */
#ifndef FKV_BENCH_LENGTHS_JOB_H
#define FKV_BENCH_LENGTHS_JOB_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/engine.h"
#include "runner/base/clock.h"
#include "tests/unit/io_fixture.h"

enum { LENGTHS_LONGEST = 30000, LENGTHS_LIMIT = 512 };

typedef struct lengths_job {
    fkv_engine *e;
    int n;
    int32_t *lengths, *limits; /* [n] */
    int32_t *ids;              /* [LENGTHS_LONGEST] */
    int64_t rows;              /* of all prompts */
    bool prompts_alone;        /* every limit is 1 */
    int given;
    double began,
        last_prefill; /* when the first was asked for, when the last pass was commanded; 0: not yet */
} lengths_job;

static double lengths_uniform(uint64_t *seed) /* (0, 1) */
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return ((double)(*seed >> 33) + 0.5) / 2147483648.0;
}

static bool lengths_open(lengths_job *j, fkv_engine *e, int n, int n_vocab)
{
    static const int32_t limits[] = {32, 64, 64, 128, 128, LENGTHS_LIMIT};
    uint64_t seed = 7;
    *j = (lengths_job){.e = e, .n = n};
    j->lengths = calloc((size_t)n, sizeof *j->lengths);
    j->limits = calloc((size_t)n, sizeof *j->limits);
    j->ids = calloc(LENGTHS_LONGEST, sizeof *j->ids);
    if (!j->lengths || !j->limits || !j->ids) return false;
    for (int i = 0; i < n; i++) {
        const double u = lengths_uniform(&seed), v = lengths_uniform(&seed);
        const double normal = sqrt(-2 * log(u)) * cos(2 * acos(-1.0) * v);
        j->lengths[i] = (int32_t)fmin(LENGTHS_LONGEST, fmax(1000, 8000 * exp(0.6 * normal)));
        j->limits[i] = limits[(int)(6 * lengths_uniform(&seed))];
        j->rows += j->lengths[i];
    }
    for (int i = 0; i < LENGTHS_LONGEST; i++) j->ids[i] = (int32_t)((int64_t)i * 7919 % n_vocab);
    return true;
}

static void lengths_look(lengths_job *j)
{
    fkv_engine_stats stats;
    if (j->last_prefill > 0) return;
    fkv_engine_stats_get(j->e, &stats);
    if (stats.prefill_rows == j->rows) j->last_prefill = fkv_seconds();
}

static fkv_status lengths_next(void *ctx, bool wait, fkv_request *q, fkv_err *err)
{
    lengths_job *j = ctx;
    (void)wait, (void)err;
    if (j->given == 0) j->began = fkv_seconds();
    lengths_look(j);
    if (j->given == j->n) return FKV_END;
    const int i = j->given++;
    *q = (fkv_request){
        .ordinal = i, .ids = j->ids, .n_ids = j->lengths[i], .max_new = j->prompts_alone ? 1 : j->limits[i]};
    return FKV_OK;
}

static fkv_status lengths_finish(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n,
                                 fkv_finish why, fkv_err *err)
{
    lengths_look(ctx);
    return on_finish(NULL, q, ids, n, why, err);
}

static bool lengths_token(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n)
{
    (void)q, (void)ids, (void)n;
    lengths_look(ctx);
    return false;
}

/* Seconds from the first request until the last pass was commanded, and in all. */
static fkv_status lengths_run(lengths_job *j, bool prompts_alone, double *until_last, double *all,
                              fkv_err *err)
{
    const fkv_engine_io io = {.ctx = j,
                              .next = lengths_next,
                              .token = lengths_token,
                              .finish = lengths_finish,
                              .reject = on_reject,
                              .stopping = stopping};
    j->prompts_alone = prompts_alone;
    j->given = 0;
    j->last_prefill = 0;
    fkv_engine_stats_reset(j->e);
    const fkv_status st = fkv_engine_run(j->e, &io, err);
    *until_last = j->last_prefill - j->began;
    *all = fkv_seconds() - j->began;
    return st;
}

/* Products and attention of all prompts. */
static double lengths_flops(const lengths_job *j, const fkv_config *c)
{
    const double hd = c->head_dim, att = c->n_heads * hd, kv = 2.0 * c->n_kv_heads * hd, h = c->hidden;
    const double a_token = 2.0 * c->n_layers * (h * (2 * att + kv) + 3 * h * c->intermediate);
    double pairs = 0;
    for (int i = 0; i < j->n; i++) pairs += 0.5 * j->lengths[i] * ((double)j->lengths[i] + 1);
    return a_token * (double)j->rows + 4.0 * att * c->n_layers * pairs;
}

static fkv_status print_lengths_job(fkv_engine *e, const fkv_config *c, int n, double tflops, fkv_err *err)
{
    lengths_job j;
    fkv_engine_stats stats;
    double alone, until, all;
    fkv_status st = lengths_open(&j, e, n, c->vocab) ? FKV_OK : fkv_fail_memory(err);
    if (!st) st = lengths_run(&j, true, &until, &alone, err);
    if (!st) st = lengths_run(&j, false, &until, &all, err);
    if (!st) {
        fkv_engine_stats_get(e, &stats);
        const double flops = lengths_flops(&j, c);
        printf("             job of %d: %lld prompt tokens alone %.2f s (%.0f tokens/s, %.0f TFLOP/s", n,
               (long long)j.rows, alone, (double)j.rows / alone, flops / alone * 1e-12);
        if (tflops > 0) printf(", %.1f%% of the ceiling", flops / alone * 1e-10 / tflops);
        printf("); until the last prefill %.2f s: %.3f of them alone", until, until / alone);
        if (tflops > 0) printf(", %.1f%% of the ceiling", flops / until * 1e-10 / tflops);
        printf("; all %.2f s, %lld steps, %lld passes\n", all, (long long)stats.decode_steps,
               (long long)stats.prefill_passes);
    }
    free(j.lengths);
    free(j.limits);
    free(j.ids);
    return st;
}

#endif
