/* Modelled steps of ways to balance heads that the engine does not run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "engine/plan/other_ways.h"

enum { LAYERS = 2, HEADS = 4, RANKS = 4, SLOTS = 6 };

static const fkv_way_shape shape = {.n_heads = 8, .head_dim = 16, .hidden = 100, .output_heads = 2};

static fkv_plan_problem problem_of(const double *tokens)
{
    return (fkv_plan_problem){.n_layers = LAYERS,
                              .n_kv_heads = HEADS,
                              .n_ranks = RANKS,
                              .n_slots = SLOTS,
                              .tokens = tokens,
                              .cost = {.n_ranks = RANKS,
                                       .act_bytes = 2,
                                       .t0_us = 3,
                                       .head_us = 5,
                                       .slot_head_us = 0.5,
                                       .token_us = 0.01,
                                       .common_us = 7,
                                       .collective_us = 11,
                                       .link_bytes_per_us = 100},
                              .max_copies = -1,
                              .collectives_us = 40};
}

static void assert_near(double a, double b)
{
    if (fabs(a - b) > 1e-9 * fabs(b)) fail_msg("%.12g is not %.12g", a, b);
}

static void steps_are_the_sum_of_their_parts(void **state)
{
    (void)state;
    static const double tokens[LAYERS * HEADS] = {1000, 0, 0, 0, 100, 200, 300, 400};
    const fkv_plan_problem p = problem_of(tokens);
    /* A head a rank, 24 rows, 6 * 2000 tokens by four; queries 6 * 8 * 16 * 2, partial outputs 6 * 8 * 18 * 4
     */
    const double context =
        2 * (3 + 5 + 12 + 7 + 40 + 2 * 11 + (1536 + 3456) * 0.75 / 100) + 0.01 * 6 * 2000 / 4;
    assert_near(fkv_way_context_parallel_us(&p, &shape), context);
    /* All four heads and three quarters of an output projection as large as two; two slots of six */
    const double data =
        2 * (3 + 5 * (4 + 1.5) + 0.5 * 2 * 4 + 7 + 2 * 11 + 6 * 100 * 6 * 0.75 / 100) + 0.01 * 2 * 2000;
    assert_near(fkv_way_attention_data_parallel_us(&p, &shape), data);
}

static void one_rank_is_the_plan_s_step(void **state)
{
    (void)state;
    static const double tokens[LAYERS * HEADS] = {1000, 40, 3, 0, 100, 200, 300, 400};
    fkv_plan_problem p = problem_of(tokens);
    fkv_plan plan;
    fkv_err err = {0};
    p.n_ranks = p.cost.n_ranks = 1;
    p.collectives_us = 0;
    assert_int_equal(fkv_plan_solve(&p, FKV_PLAN_STANDARD, &plan, &err), FKV_OK);
    assert_near(fkv_way_context_parallel_us(&p, &shape), plan.step_us);
    assert_near(fkv_way_attention_data_parallel_us(&p, &shape), plan.step_us);
    fkv_plan_free(&plan);
}

/* Few large budgets favour the ways that need no copies, dear collectives Fair-Copying. */
static void which_way_is_best_depends_on_the_constants(void **state)
{
    (void)state;
    static const double ragged[LAYERS * HEADS] = {90000, 10, 10, 10, 10, 10, 10, 90000};
    for (int dear = 0; dear < 2; dear++) {
        fkv_plan_problem p = problem_of(ragged);
        fkv_plan plan;
        fkv_err err = {0};
        p.cost.collective_us = dear ? 5000 : 1;
        p.cost.link_bytes_per_us = 1e6;
        p.n_slots = 1; /* which no plan can share out */
        assert_int_equal(fkv_plan_solve(&p, FKV_PLAN_FAIR_COPYING, &plan, &err), FKV_OK);
        const double context = fkv_way_context_parallel_us(&p, &shape);
        if (dear)
            assert_true(context > plan.step_us);
        else
            assert_true(context < plan.step_us);
        fkv_plan_free(&plan);
    }
}

static void ranks_on_one_device_exchange_nothing(void **state)
{
    (void)state;
    static const double tokens[LAYERS * HEADS] = {10, 10, 10, 10, 10, 10, 10, 10};
    fkv_plan_problem p = problem_of(tokens), cheap;
    p.collectives_us = 0;
    cheap = p;
    cheap.cost.collective_us = cheap.cost.link_bytes_per_us = 0;
    assert_near(fkv_way_context_parallel_us(&p, &shape), fkv_way_context_parallel_us(&cheap, &shape));
    assert_near(fkv_way_attention_data_parallel_us(&p, &shape),
                fkv_way_attention_data_parallel_us(&cheap, &shape));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_are_the_sum_of_their_parts),
        cmocka_unit_test(one_rank_is_the_plan_s_step),
        cmocka_unit_test(which_way_is_best_depends_on_the_constants),
        cmocka_unit_test(ranks_on_one_device_exchange_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
