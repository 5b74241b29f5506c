/* Predicted memory against what a real engine allocates; slots that fit; what
 * cannot fit is refused with numbers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/measure/measure.h"
#include "engine/split.h"
#include "engine/state.h"
#include "kernels/cpu_device.h"
#include "model_fixture.h"
#include "model_shapes.h"
#include "runner/base/mem.h"

enum { MAX_NEW = 6, PROMPT = 1024, GIB = 30 };

static fixture model;
static const int32_t uneven[16] = {300, 40, 33, 20, 32, 64, 410, 33, 70, 32, 35, 256, 40, 500, 32, 32};

static fkv_plan make_plan(const fkv_config *c, int ranks, int slots, const int32_t *budgets,
                          fkv_plan_mode mode)
{
    fkv_err err = {0};
    fkv_plan plan;
    double *tokens = fkv_calloc((size_t)c->n_layers * (size_t)c->n_kv_heads, sizeof *tokens);
    assert_non_null(tokens);
    for (int i = 0; i < c->n_layers * c->n_kv_heads; i++) tokens[i] = budgets[i] + MAX_NEW / 2.0;
    const fkv_plan_problem problem = {c->n_layers, c->n_kv_heads,   ranks, slots,
                                      tokens,      fkv_cost_cpu(c), -1,    0};
    if (fkv_plan_solve(&problem, mode, &plan, &err)) fixture_die("plan", &err);
    free(tokens);
    return plan;
}

static int64_t allocated(const fkv_device *dev)
{
    int64_t bytes = 0;
    for (int i = 0; i < dev->n_blocks; i++) bytes += (int64_t)dev->blocks[i].bytes;
    return bytes;
}

static void the_engine_allocates_what_is_predicted(void **state)
{
    (void)state;
    static const struct {
        int at[3];
        fkv_scorer scorer;
        uint32_t more;
        fkv_form form;
    } layouts[] = {{{1, 1, 1}, FKV_SCORER_SNAPKV, 0, FKV_FORM_NATIVE},
                   {{2, 1, 16}, FKV_SCORER_SNAPKV, 0, FKV_FORM_NATIVE},
                   {{3, 2, 5}, FKV_SCORER_SNAPKV, 0, FKV_FORM_NATIVE},
                   {{4, 4, 64}, FKV_SCORER_SNAPKV, 0, FKV_FORM_NATIVE},
                   {{4, 2, 300}, FKV_SCORER_SNAPKV, 0, FKV_FORM_NATIVE},
                   {{1, 1, 1}, FKV_SCORER_DEFENSIVE, 0, FKV_FORM_NATIVE},
                   {{3, 2, 5}, FKV_SCORER_CRITICAL, 0, FKV_FORM_NATIVE},
                   {{1, 1, 2}, FKV_SCORER_EXPECTED, 0, FKV_FORM_NATIVE},
                   {{2, 1, 2}, FKV_SCORER_KEYDIFF, 0xe, FKV_FORM_NATIVE},
                   {{2, 1, 2}, FKV_SCORER_SNAPKV, 0x1f, FKV_FORM_NATIVE},
                   {{3, 2, 5}, FKV_SCORER_SNAPKV, 0, FKV_FORM_FP8},
                   {{1, 1, 300}, FKV_SCORER_CRITICAL, 0, FKV_FORM_FP8}};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        fkv_err err = {0};
        fkv_engine *e = NULL;
        fkv_memory m;
        const fkv_engine_options o = {.backend = fkv_backend_find("cpu"),
                                      .n_ranks = layouts[i].at[0],
                                      .n_devices = layouts[i].at[1],
                                      .n_slots = layouts[i].at[2],
                                      .scorer = layouts[i].scorer,
                                      .more_scorers = layouts[i].more,
                                      .max_prompt = PROMPT,
                                      .n_threads = 2,
                                      .form = layouts[i].form,
                                      .window = 32,
                                      .kernel = 7};
        fkv_plan plan = make_plan(&model.config, o.n_ranks, o.n_slots, uneven, FKV_PLAN_FAIR_COPYING);
        if (fkv_engine_open(&model.config, model.weights, &o, &e, &err)) fixture_die("engine", &err);
        const fkv_engine_kv_limits limits = fkv_measure_limits(&plan, uneven, PROMPT, MAX_NEW);
        if (fkv_engine_set_plan(e, model.weights, uneven, &plan, &limits, &err))
            fixture_die("set_plan", &err);
        fkv_memory_shape shape = fkv_engine_memory_shape(e);
        shape.n_threads = 2;
        const fkv_memory_lengths lengths = {PROMPT, MAX_NEW};
        assert_int_equal(fkv_memory_predict(&shape, &plan, uneven, &lengths, &m, &err), FKV_OK);
        for (int r = 0; r < o.n_ranks; r++) {
            assert_true(m.rank[r].page_bytes <= e->kv.n_pages[r] * fkv_memory_page_bytes(&shape));
            assert_true(m.rank[r].one_bytes >= m.rank[r].page_bytes / o.n_slots);
        }
        int64_t copies = 0;
        for (int r = 0; r < o.n_ranks; r++) copies += m.rank[r].copy_bytes;
        assert_int_equal(copies, e->copy_bytes);
        for (int d = 0; d < o.n_devices; d++) {
            double real = (double)allocated(e->devices[d].dev);
            const double told = (double)(m.device[d].total_bytes - m.device[d].page_bytes);
            for (int r = e->devices[d].rank0; r < e->devices[d].rank0 + e->devices[d].n_ranks; r++)
                real -= (double)(e->kv.n_pages[r] * fkv_memory_page_bytes(&shape));
            if (fabs(told - real) > 0.03 * real)
                fail_msg("%d ranks, %d devices, %d slots: device %d has %.0f bytes, predicted %.0f",
                         o.n_ranks, o.n_devices, o.n_slots, d, real, told);
        }
        fkv_memory_free(&m);
        fkv_engine_close(e);
        fkv_plan_free(&plan);
    }
}

static fkv_memory_shape large_shape(int ranks, int devices, int slots)
{
    return (fkv_memory_shape){.config = &shape_70b,
                              .n_ranks = ranks,
                              .n_devices = devices,
                              .n_slots = slots,
                              .max_prompt = 16384,
                              .act_bytes = 2,
                              .kv_bytes = 2,
                              .weight_bytes = 2,
                              .prefill_tile = 2048};
}

/* One head in eight keeps most. */
static void heavy_budgets(int32_t *budgets)
{
    for (int i = 0; i < 80 * 8; i++) budgets[i] = i % 8 == 0 ? 5000 : 400;
}

static void weights_are_the_models(void **state)
{
    (void)state;
    int64_t sum = 0;
    const fkv_memory_shape shape = large_shape(8, 8, 64);
    for (int r = 0; r < 8; r++) sum += fkv_memory_home_bytes(&shape, r);
    assert_int_equal(sum, 2 * fkv_tensors_model_values(&shape_70b));
}

/* Of one rank: a byte an element and 4 for each row of a layer's matrices, and embedding and output as they
 * were. A rank more has rows of `down` more, and buffers have scales. */
static void weights_in_fp8_take_half(void **state)
{
    (void)state;
    const int64_t ends = 2 * (int64_t)shape_70b.vocab * shape_70b.hidden;
    const int64_t layer = fkv_tensors_layer_values(&shape_70b),
                  rows = 8192 + 1024 + 1024 + 8192 + 2 * 28672 + 8192;
    fkv_memory_shape one = large_shape(1, 1, 64), eight = large_shape(8, 8, 64);
    int32_t *budgets = calloc(80 * 8, sizeof *budgets);
    const fkv_memory_lengths lengths = {1000, 100};
    fkv_memory native, fp8;
    fkv_err err = {0};
    one.fp8_bytes = eight.fp8_bytes = 1;
    one.fp8_row_bytes = eight.fp8_row_bytes = 4;
    heavy_budgets(budgets);
    assert_int_equal(fkv_memory_predict(&one, NULL, budgets, &lengths, &native, &err), FKV_OK);
    assert_int_equal(fkv_memory_model_bytes(&one), 2 * (ends + 80 * layer));
    one.form = eight.form = FKV_FORM_FP8;
    assert_int_equal(fkv_memory_model_bytes(&one), 2 * ends + 80 * (layer + 4 * rows));
    assert_int_equal(fkv_memory_model_bytes(&eight), 2 * ends + 80 * (layer + 4 * (rows + 7 * 8192)));
    assert_int_equal(fkv_memory_head_bytes(&eight), (8 + 2) * 128 * (8192 + 4));
    assert_int_equal(fkv_memory_predict(&one, NULL, budgets, &lengths, &fp8, &err), FKV_OK);
    const int64_t scales = 4 * (fkv_memory_max_rows(&one) + 2048 + 64);
    assert_int_equal(native.device[0].total_bytes - fp8.device[0].total_bytes,
                     80 * (layer - 4 * rows) - scales);
    fkv_memory_free(&native);
    fkv_memory_free(&fp8);
    free(budgets);
}

static void fp8_pages_buy_batch(void **state)
{
    (void)state;
    static int32_t budgets[640];
    fkv_err err = {0};
    int fit[2];
    int64_t page[2];
    heavy_budgets(budgets);
    const fkv_memory_limit limit = {(int64_t)80 << GIB, 0.9};
    const fkv_memory_lengths lengths = {12000, 128};
    for (int form = FKV_KV_PLAIN; form <= FKV_KV_FP8; form++) {
        fkv_memory_shape shape = large_shape(8, 8, 64);
        fkv_memory m;
        shape.kv_form = (fkv_kv_form)form;
        assert_int_equal(fkv_memory_predict(&shape, NULL, budgets, &lengths, &m, &err), FKV_OK);
        fit[form] = fkv_memory_slots(&m, &limit);
        page[form] = fkv_memory_page_bytes(&shape);
        assert_int_equal(m.rank[0].page_bytes % page[form], 0);
        fkv_memory_free(&m);
    }
    assert_int_equal(page[0], 2 * 128 * 128 * 2);
    assert_int_equal(page[1], 2 * 128 * (128 + 4));
    if (fit[1] < fit[0] * 1.7) fail_msg("%d slots of fp8, %d of bf16", fit[1], fit[0]);
}

static void fairness_buys_batch(void **state)
{
    (void)state;
    static int32_t budgets[640];
    fkv_err err = {0};
    int fit[3];
    heavy_budgets(budgets);
    const fkv_memory_limit limit = {(int64_t)141 << GIB, 0.9};
    const fkv_memory_lengths lengths = {12000, 128};
    for (int mode = 0; mode < 3; mode++) {
        const fkv_memory_shape shape = large_shape(8, 8, 64);
        fkv_memory m;
        fkv_plan plan = make_plan(&shape_70b, 8, 64, budgets, (fkv_plan_mode)mode);
        assert_int_equal(fkv_memory_predict(&shape, &plan, budgets, &lengths, &m, &err), FKV_OK);
        fit[mode] = fkv_memory_slots(&m, &limit);
        fkv_memory_free(&m);
        fkv_plan_free(&plan);
    }
    if (fit[FKV_PLAN_STANDARD] < 8 || fit[FKV_PLAN_FAIR_COPYING] < 2 * fit[FKV_PLAN_STANDARD])
        fail_msg("%d slots fit standard, %d fair-copying", fit[FKV_PLAN_STANDARD],
                 fit[FKV_PLAN_FAIR_COPYING]);
}

/* Where copies are too dear for time alone, memory asks for them. */
static void evening_out_fits_more_slots(void **state)
{
    (void)state;
    static int32_t budgets[640];
    static double tokens[640];
    fkv_err err = {0};
    fkv_plan plan;
    int fit[2];
    heavy_budgets(budgets);
    for (int i = 0; i < 640; i++) tokens[i] = budgets[i] + 64;
    const fkv_memory_shape shape = large_shape(8, 8, 64);
    const fkv_memory_lengths lengths = {12000, 128};
    const fkv_plan_problem problem = {
        .n_layers = 80,
        .n_kv_heads = 8,
        .n_ranks = 8,
        .n_slots = 64,
        .tokens = tokens,
        .cost = {.t0_us = 3, .head_us = 1e6, .slot_head_us = 0.01, .token_us = 1e-4, .common_us = 50},
        .max_copies = -1};
    assert_int_equal(fkv_plan_solve(&problem, FKV_PLAN_FAIR_COPYING, &plan, &err), FKV_OK);
    assert_int_equal(fkv_plan_copies(&plan), 0);
    for (int i = 0; i < 2; i++) {
        /* Room for a third of the pages that head 0 of every layer needs at home. */
        const fkv_memory_limit limit = {(int64_t)30 << GIB, 0.9};
        fkv_memory m;
        if (i)
            assert_int_equal(fkv_memory_even(&shape, &limit, budgets, &lengths, &problem, &plan, &err),
                             FKV_OK);
        assert_int_equal(fkv_memory_predict(&shape, &plan, budgets, &lengths, &m, &err), FKV_OK);
        fit[i] = fkv_memory_slots(&m, &limit);
        fkv_memory_free(&m);
    }
    if (fit[0] >= 64 || fit[1] < 64) fail_msg("%d slots fit, %d evened out", fit[0], fit[1]);
    assert_true(fkv_plan_copies(&plan) > 0 && plan.step_us > plan.fair_copying_us);
    fkv_plan_free(&plan);
}

static void slots_that_fit_are_the_most(void **state)
{
    (void)state;
    static int32_t budgets[640];
    fkv_err err = {0};
    fkv_memory m;
    heavy_budgets(budgets);
    const fkv_memory_limit limit = {(int64_t)60 << GIB, 0.95};
    const fkv_memory_lengths lengths = {12000, 128};
    fkv_memory_shape shape = large_shape(8, 4, 16);
    assert_int_equal(fkv_memory_predict(&shape, NULL, budgets, &lengths, &m, &err), FKV_OK);
    const int n = fkv_memory_slots(&m, &limit);
    assert_true(n > 16 && n < 2048);
    fkv_memory_free(&m);
    for (int more = 0; more < 2; more++) {
        shape.n_slots = n + more;
        assert_int_equal(fkv_memory_predict(&shape, NULL, budgets, &lengths, &m, &err), FKV_OK);
        const fkv_memory_device *d = &m.device[m.fullest_device];
        const double room = 0.95 * ((double)limit.bytes - (double)d->fixed_bytes);
        const bool fits = d->total_bytes <= limit.bytes && (double)d->page_bytes <= room;
        assert_true(fits == !more);
        assert_int_equal(fkv_memory_slots(&m, &limit), n);
        fkv_memory_free(&m);
    }
}

static void what_cannot_fit_is_refused_with_numbers(void **state)
{
    (void)state;
    static int32_t budgets[640];
    fkv_err err = {0};
    fkv_memory m;
    for (int i = 0; i < 640; i++) budgets[i] = 100000;
    fkv_memory_shape shape = large_shape(2, 2, 16);
    const fkv_memory_lengths small = {12000, 128}, long_ones = {100000, 128};
    assert_int_equal(fkv_memory_predict(&shape, NULL, budgets, &small, &m, &err), FKV_OK);
    /* 70 GB of weights on each of two devices */
    fkv_memory_limit limit = {(int64_t)64 << GIB, 0.9};
    assert_int_equal(fkv_memory_slots(&m, &limit), 0);
    assert_int_equal(fkv_memory_check(&m, &limit, &small, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "MiB of weights"));
    assert_non_null(strstr(err.message, "has 65536.0 MiB"));
    limit.bytes = (int64_t)80 << GIB;
    assert_int_equal(fkv_memory_check(&m, &limit, &small, &err), FKV_OK);
    fkv_memory_free(&m);
    err = (fkv_err){0};
    /* 640 heads of 100,000 tokens are 15 GiB a device */
    assert_int_equal(fkv_memory_predict(&shape, NULL, budgets, &long_ones, &m, &err), FKV_OK);
    assert_int_equal(fkv_memory_check(&m, &limit, &long_ones, &err), FKV_E_INPUT);
    if (!strstr(err.message, "100000 prompt and 128 new tokens needs")) fail_msg("%s", err.message);
    fkv_memory_free(&m);
    err = (fkv_err){0};
    shape.n_ranks = 9;
    assert_int_equal(fkv_memory_predict(&shape, NULL, budgets, &small, &m, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "9 ranks on 2 devices for 8 KV heads"));
    assert_null(m.rank);
}

/* Far beyond any machine: no overflow, nothing fits. */
static void absurd_sizes_do_not_wrap(void **state)
{
    (void)state;
    fkv_config c = shape_70b;
    fkv_err err = {0};
    fkv_memory m;
    static int32_t budgets[1 << 20];
    c.n_layers = c.n_kv_heads = c.n_heads = 1024;
    c.group = 1;
    c.head_dim = 256;
    c.hidden = 1 << 17;
    c.intermediate = 1 << 20;
    c.vocab = 1 << 24;
    c.max_positions = 1 << 27;
    for (int i = 0; i < 1 << 20; i++) budgets[i] = FKV_BUDGET_MAX;
    fkv_memory_shape shape = large_shape(1024, 1, FKV_PLAN_MAX_SLOTS);
    shape.config = &c;
    shape.max_prompt = c.max_positions;
    const fkv_memory_lengths lengths = {FKV_BUDGET_MAX, FKV_BUDGET_MAX};
    const fkv_memory_limit limit = {(int64_t)1 << 44, 0.9};
    assert_int_equal(fkv_memory_predict(&shape, NULL, budgets, &lengths, &m, &err), FKV_OK);
    assert_true(m.device[0].total_bytes > limit.bytes);
    assert_int_equal(fkv_memory_slots(&m, &limit), 0);
    assert_int_equal(fkv_memory_check(&m, &limit, &lengths, &err), FKV_E_INPUT);
    fkv_memory_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_engine_allocates_what_is_predicted),
        cmocka_unit_test(weights_are_the_models),
        cmocka_unit_test(weights_in_fp8_take_half),
        cmocka_unit_test(fp8_pages_buy_batch),
        cmocka_unit_test(fairness_buys_batch),
        cmocka_unit_test(evening_out_fits_more_slots),
        cmocka_unit_test(slots_that_fit_are_the_most),
        cmocka_unit_test(what_cannot_fit_is_refused_with_numbers),
        cmocka_unit_test(absurd_sizes_do_not_wrap),
    };
    fixture_open(&model, FKV_TEST_DIR "/data/needle-tiny", "data/needle_500.jsonl", 1);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_close(&model);
    return failed;
}
