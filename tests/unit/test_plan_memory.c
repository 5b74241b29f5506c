/* Memory of a plan over the devices: evened out for nothing, and under a limit for little. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/plan/partition.h"
#include "engine/plan/plan.h"
#include "runner/base/hash.h"

enum { LAYERS = 6, MAX_HEADS = 12, MAX_RANKS = 6 };

typedef struct instance {
    fkv_plan_problem p;
    fkv_plan_memory m;
    double tokens[LAYERS * MAX_HEADS], slot_bytes[LAYERS * MAX_HEADS], base[MAX_RANKS];
    uint64_t seed, drawn;
} instance;

static int draw(instance *in, int below)
{
    return (int)(fkv_random_u64(20250215, in->seed, in->drawn++) % (uint64_t)below);
}

/* Heads of very different weight; bytes that follow the tokens by whole pages. */
static void make(instance *in, uint64_t seed)
{
    *in = (instance){.seed = seed};
    const int k = 2 + draw(in, MAX_HEADS - 1), most = k < MAX_RANKS ? k : MAX_RANKS;
    const int ranks = 2 + draw(in, most - 1);
    in->p = (fkv_plan_problem){.n_layers = LAYERS,
                               .n_kv_heads = k,
                               .n_ranks = ranks,
                               .n_slots = 1 + draw(in, 64),
                               .tokens = in->tokens,
                               .cost = {.t0_us = 2,
                                        .head_us = (double[]){0, 5, 60}[draw(in, 3)],
                                        .slot_head_us = 0.1,
                                        .token_us = 0.02,
                                        .common_us = 30},
                               .max_copies = draw(in, 2) ? -1 : draw(in, 4)};
    in->m = (fkv_plan_memory){.n_devices = 2 + draw(in, ranks - 1),
                              .base_bytes = in->base,
                              .slot_bytes = in->slot_bytes,
                              .copy_bytes = 1000.0 * draw(in, 5),
                              .limit_bytes = INFINITY};
    for (int i = 0; i < LAYERS * k; i++) {
        in->tokens[i] = 32 * exp(draw(in, 500) / 100.0);
        in->slot_bytes[i] = 256 * ceil((in->tokens[i] + 40) / 128);
    }
    for (int d = 0; d < in->m.n_devices; d++) in->base[d] = 100.0 * draw(in, 100);
}

static double fullest(const instance *in, const fkv_plan *plan, double *all)
{
    double level[MAX_RANKS], most = 0;
    memcpy(level, in->base, sizeof level);
    *all = 0;
    for (int i = 0; i < LAYERS * plan->n_kv_heads; i++) {
        for (int a = plan->first[i]; a < plan->first[i + 1]; a++) {
            const int rank = plan->at[a].rank, d = rank * in->m.n_devices / plan->n_ranks;
            level[d] += (plan->at[a].end - plan->at[a].begin) * in->slot_bytes[i];
            if (rank != fkv_partition_home(i % plan->n_kv_heads, plan->n_kv_heads, plan->n_ranks))
                level[d] += in->m.copy_bytes;
        }
    }
    for (int d = 0; d < in->m.n_devices; d++) {
        most = fmax(most, level[d]);
        *all += level[d];
    }
    return most;
}

/* What the mode and max_copies allow. */
static void check_rules(const instance *in, const fkv_plan *plan)
{
    fkv_err err = {0};
    if (fkv_plan_validate(plan, &err)) fail_msg("%s", err.message);
    for (int l = 0; l < LAYERS; l++) {
        int copies = 0;
        for (int h = 0; h < plan->n_kv_heads; h++) {
            const int i = l * plan->n_kv_heads + h, n = plan->first[i + 1] - plan->first[i];
            if (plan->mode == FKV_PLAN_BEST_EFFORT) assert_int_equal(n, 1);
            for (int a = plan->first[i]; a < plan->first[i + 1]; a++) {
                copies += plan->at[a].rank != fkv_partition_home(h, plan->n_kv_heads, plan->n_ranks);
                for (int b = plan->first[i]; b < a; b++)
                    assert_int_not_equal(plan->at[b].rank, plan->at[a].rank);
            }
        }
        if (in->p.max_copies >= 0) assert_true(copies <= in->p.max_copies);
    }
}

static void evening_out_is_free_and_never_hurts(void **state)
{
    (void)state;
    double before_sum = 0, after_sum = 0;
    for (uint64_t seed = 0; seed < 150; seed++) {
        instance in;
        fkv_plan plan, again;
        fkv_err err = {0};
        double all;
        make(&in, seed);
        const fkv_plan_mode mode = (fkv_plan_mode)(seed % 3);
        assert_int_equal(fkv_plan_solve(&in.p, mode, &plan, &err), FKV_OK);
        const double step = plan.step_us, before = fullest(&in, &plan, &all);
        assert_true(step == fkv_plan_step_us(&in.p, &plan));
        assert_int_equal(fkv_plan_even_memory(&in.p, &in.m, &plan, &err), FKV_OK);
        const double after = fullest(&in, &plan, &all);
        check_rules(&in, &plan);
        assert_true(plan.step_us <= step * (1 + 1e-9) && plan.step_us == fkv_plan_step_us(&in.p, &plan));
        assert_true(after <= before * (1 + 1e-12));
        if (mode == FKV_PLAN_STANDARD) assert_true(after == before);
        before_sum += before * in.m.n_devices / all;
        after_sum += after * in.m.n_devices / all;
        /* The same again. */
        assert_int_equal(fkv_plan_solve(&in.p, mode, &again, &err), FKV_OK);
        assert_int_equal(fkv_plan_even_memory(&in.p, &in.m, &again, &err), FKV_OK);
        assert_int_equal(plan.first[LAYERS * in.p.n_kv_heads], again.first[LAYERS * in.p.n_kv_heads]);
        assert_memory_equal(plan.at, again.at,
                            (size_t)again.first[LAYERS * in.p.n_kv_heads] * sizeof *again.at);
        fkv_plan_free(&again);
        fkv_plan_free(&plan);
    }
    /* Fullest over mean: of what is above 1, a good part goes. */
    assert_true(after_sum / 150 - 1 < 0.93 * (before_sum / 150 - 1));
}

static void a_limit_is_kept_where_the_devices_together_can(void **state)
{
    (void)state;
    int broken = 0, kept = 0;
    for (uint64_t seed = 0; seed < 100; seed++) {
        instance in;
        fkv_plan plan;
        fkv_err err = {0};
        double all;
        make(&in, seed);
        in.p.max_copies = -1;
        /* Copies so dear that time alone makes none. */
        in.p.cost.head_us = 1e4;
        assert_int_equal(fkv_plan_solve(&in.p, FKV_PLAN_FAIR_COPYING, &plan, &err), FKV_OK);
        const double before = fullest(&in, &plan, &all), step = plan.step_us;
        in.m.limit_bytes = 1.1 * all / in.m.n_devices;
        assert_int_equal(fkv_plan_even_memory(&in.p, &in.m, &plan, &err), FKV_OK);
        check_rules(&in, &plan);
        const double after = fullest(&in, &plan, &all);
        if (before > in.m.limit_bytes) {
            broken++;
            kept += after <= in.m.limit_bytes;
            assert_true(after < before);
        } else {
            /* Nothing is bought that isn't needed. */
            assert_true(plan.step_us <= step * (1 + 1e-9));
        }
        assert_true(plan.step_us == fkv_plan_step_us(&in.p, &plan));
        assert_true(plan.fair_copying_us == step); /* the mode's prediction stays */
        fkv_plan_free(&plan);
    }
    assert_true(broken > 25 && kept >= broken * 9 / 10);
}

static void an_impossible_limit_costs_nothing(void **state)
{
    (void)state;
    instance in;
    fkv_plan plan;
    fkv_err err = {0};
    make(&in, 7);
    in.m.limit_bytes = 1;
    assert_int_equal(fkv_plan_solve(&in.p, FKV_PLAN_FAIR_COPYING, &plan, &err), FKV_OK);
    const double step = plan.step_us;
    assert_int_equal(fkv_plan_even_memory(&in.p, &in.m, &plan, &err), FKV_OK);
    assert_true(plan.step_us <= step * (1 + 1e-9));
    fkv_plan_free(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(evening_out_is_free_and_never_hurts),
        cmocka_unit_test(a_limit_is_kept_where_the_devices_together_can),
        cmocka_unit_test(an_impossible_limit_costs_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
