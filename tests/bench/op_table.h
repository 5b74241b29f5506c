/* What every kind of op takes of a decode step and of a prefill, beside what it moves and computes and
 * beside the whole: steps replayed and prefills enqueued as a run does it, with one kind of op alone at a
 * time. What the kinds' sum and the whole differ by is what ops cost each other: gaps between kernels, and
 * what one finds in the cache of another. For benchmarks of one file, which includes it once. */
#ifndef FKV_BENCH_OP_TABLE_H
#define FKV_BENCH_OP_TABLE_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "engine/engine.h"
#include "engine/measure/measure.h"
#include "kernels/metered.h"
#include "kernels/single_op.h"

typedef struct op_job {
    const fkv_config *config;
    const fkv_safetensors *weights;
    const fkv_engine_options *options;
    const int32_t *budgets;
    const fkv_plan *plan;
    const fkv_engine_kv_limits *limits;
    int64_t prompt, prefill; /* tokens of a slot's prompt, and of the one that is prefilled */
    int steps;
    double gbps, tflops; /* ceilings; 0: not known */
} op_job;

enum { OP_PREFILLS = 3 };

typedef struct op_times {
    double prefill, step; /* seconds */
} op_times;

static fkv_status op_open(const op_job *j, const fkv_backend *backend, fkv_engine **e, fkv_err *err)
{
    fkv_engine_options o = *j->options;
    o.backend = backend;
    fkv_status st = fkv_engine_open(j->config, j->weights, &o, e, err);
    if (!st) st = fkv_engine_set_plan(*e, j->weights, j->budgets, j->plan, j->limits, err);
    return st;
}

/* The quickest prefill, and a step of many in a row. */
static fkv_status op_time(const op_job *j, fkv_engine *e, const int32_t *ids, op_times *out, fkv_err *err)
{
    enum { WARM = 4 };
    double s = 0;
    fkv_status st = FKV_OK;
    *out = (op_times){INFINITY, 0};
    for (int i = 0; !st && i < OP_PREFILLS; i++) {
        st = fkv_measure_prefill(e, ids, j->prefill, &s, err);
        out->prefill = fmin(out->prefill, s);
    }
    if (!st) st = fkv_measure_replays(e, j->prompt, WARM, &s, err);
    if (!st) st = fkv_measure_replays(e, j->prompt, j->steps, &s, err);
    out->step = s / j->steps;
    return st;
}

/* What one prefill and one step move and compute. */
static fkv_status op_counts(const op_job *j, const int32_t *ids, fkv_op_sum *prefill, fkv_op_sum *step,
                            fkv_err *err)
{
    fkv_engine *e = NULL;
    double s;
    fkv_status st = op_open(j, fkv_backend_metered(j->options->backend), &e, err);
    fkv_metered_take(prefill); /* of opening */
    if (!st) st = fkv_measure_prefill(e, ids, j->prefill, &s, err);
    fkv_metered_take(prefill);
    if (!st) st = fkv_measure_decode(e, j->prompt, 1, &s, err);
    fkv_metered_take(step);
    fkv_engine_close(e);
    return st;
}

/* times: of each kind alone; none: without any; all: of the whole. */
static void op_print(const op_job *j, const char *what, const fkv_op_sum *counts, const double *times,
                     double none, double all)
{
    double sum = none;
    printf("%s\n%-20s %7s %10s %7s %9s %9s %9s\n", what, "", "calls", "us", "share", "GB/s", "TFLOP/s",
           "ceiling");
    for (int i = 0; i < FKV_OP_KINDS; i++) {
        const fkv_op_sum *o = &counts[i];
        if (!o->calls) continue;
        const double gbps = o->bytes / times[i] * 1e-9, tflops = o->flops / times[i] * 1e-12;
        const double ceiling = fmax(j->gbps > 0 ? gbps / j->gbps : 0, j->tflops > 0 ? tflops / j->tflops : 0);
        sum += times[i];
        printf("%-20s %7lld %10.1f %6.1f%% %9.1f %9.3f", fkv_op_kind_name((fkv_op_kind)i),
               (long long)o->calls, 1e6 * times[i], 100 * times[i] / all, gbps, tflops);
        if (ceiling > 0) printf(" %8.1f%%", 100 * ceiling);
        printf("\n");
    }
    printf("%-20s %7s %10.1f %6.1f%%\n", "none of these", "", 1e6 * none, 100 * none / all);
    printf("%-20s %7s %10.1f %6.1f%%\n%-20s %7s %10.1f\n", "sum", "", 1e6 * sum, 100 * sum / all, "the whole",
           "", 1e6 * all);
}

/* With ops of one kind alone, or FKV_SINGLE_OP_NONE. */
static fkv_status op_time_alone(const op_job *j, fkv_engine *e, const int32_t *ids, int kind, op_times *out,
                                fkv_err *err)
{
    fkv_single_op_choose(kind);
    fkv_engine_clear_plan(e); /* forgets the recorded step */
    const fkv_status st = fkv_engine_set_plan(e, j->weights, j->budgets, j->plan, j->limits, err);
    return st ? st : op_time(j, e, ids, out, err);
}

static fkv_status op_measure(const op_job *j, const int32_t *ids, const fkv_op_sum *prefill,
                             const fkv_op_sum *step, fkv_err *err)
{
    fkv_engine *e = NULL;
    op_times all, none, one;
    double times[2][FKV_OP_KINDS] = {{0}};
    char what[64];
    fkv_status st = op_open(j, fkv_backend_single_op(j->options->backend), &e, err);
    if (!st) st = op_time(j, e, ids, &all, err);
    if (!st) st = op_time_alone(j, e, ids, FKV_SINGLE_OP_NONE, &none, err);
    for (int i = 0; !st && i < FKV_OP_KINDS; i++) {
        if (!prefill[i].calls && !step[i].calls) continue;
        st = op_time_alone(j, e, ids, i, &one, err);
        times[0][i] = fmax(one.prefill - none.prefill, 1e-9);
        times[1][i] = fmax(one.step - none.step, 1e-9);
    }
    fkv_engine_close(e);
    if (st) return st;
    snprintf(what, sizeof what, "prefill of %lld tokens", (long long)j->prefill);
    op_print(j, what, prefill, times[0], none.prefill, all.prefill);
    snprintf(what, sizeof what, "decode step of %d slots", j->plan->n_slots);
    op_print(j, what, step, times[1], none.step, all.step);
    return FKV_OK;
}

static fkv_status print_op_tables(const op_job *j, fkv_err *err)
{
    fkv_op_sum prefill[FKV_OP_KINDS], step[FKV_OP_KINDS];
    int32_t *ids = calloc((size_t)j->prefill, sizeof *ids);
    if (!ids) return fkv_fail_memory(err);
    for (int64_t i = 0; i < j->prefill; i++) ids[i] = (int32_t)(i * 7919 % j->config->vocab);
    fkv_status st = op_counts(j, ids, prefill, step, err);
    if (!st) st = op_measure(j, ids, prefill, step, err);
    free(ids);
    return st;
}

#endif
