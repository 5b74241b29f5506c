/* What a run counts, and the lines that are made of it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "runner/base/clock.h"
#include "runner/progress.h"

static int up(void **state)
{
    fkv_tally *t;
    fkv_err err = {0};
    if (fkv_tally_open(fkv_seconds(), &t, &err)) return -1;
    *state = t;
    return 0;
}

static int down(void **state)
{
    fkv_tally_close(*state);
    return 0;
}

static fkv_tally_view look(fkv_tally *t, double now)
{
    fkv_tally_view v;
    fkv_tally_look(t, now, &v);
    return v;
}

static double sum_of(const double seconds[FKV_STAGES])
{
    double sum = 0;
    for (int i = 0; i < FKV_STAGES; i++) sum += seconds[i];
    return sum;
}

static void stages_are_all_of_the_wall_time(void **state)
{
    fkv_tally *t = *state;
    assert_int_equal(fkv_tally_stage(t, FKV_STAGE_SAMPLE), FKV_STAGE_START);
    assert_int_equal(fkv_tally_stage(t, FKV_STAGE_LOAD), FKV_STAGE_SAMPLE);
    assert_int_equal(fkv_tally_stage(t, FKV_STAGE_SAMPLE), FKV_STAGE_LOAD);
    fkv_tally_stage(t, FKV_STAGE_OTHER);
    const double now = fkv_seconds() + 10;
    fkv_engine_stats e = {.prefill_seconds = 6, .decode_seconds = 3};
    fkv_tally_engine(t, &e);
    fkv_tally_view v = look(t, now);
    assert_true(fabs(sum_of(v.seconds) - v.wall) < 1e-9);
    assert_true(v.seconds[FKV_STAGE_PREFILL] == 6 && v.seconds[FKV_STAGE_DECODE] == 3);
    assert_true(v.seconds[FKV_STAGE_OTHER] > 0.9 && v.seconds[FKV_STAGE_OTHER] < 1.1);
    /* A device's clock that goes ahead of ours. */
    e.prefill_seconds = 60;
    e.decode_seconds = 20;
    fkv_tally_engine(t, &e);
    v = look(t, now);
    assert_true(fabs(sum_of(v.seconds) - v.wall) < 1e-9 && v.seconds[FKV_STAGE_OTHER] >= 0);
    assert_true(fabs(v.seconds[FKV_STAGE_PREFILL] - 3 * v.seconds[FKV_STAGE_DECODE]) < 1e-9);
}

static void a_week_of_points_is_bounded_and_in_order(void **state)
{
    static fkv_tally_history h;
    fkv_tally *t = *state;
    const fkv_tally_goal goal = {.n_input = 1000000, .slots = 8};
    fkv_engine_stats e = {.busy_slots = 6};
    fkv_tally_answer(t, &goal);
    fkv_tally_engine(t, &e);
    const double start = fkv_seconds();
    for (int i = 1; i <= 7 * 86400; i++) {
        if (i % 2) fkv_tally_row(t, NULL, 100, 10);
        fkv_tally_tick(t, start + i);
        if (i % 50000) continue;
        fkv_tally_recall(t, start + i, &h);
        assert_true(h.n_points > 200 && h.n_points <= FKV_STATS_POINTS);
    }
    fkv_tally_recall(t, start + 7 * 86400, &h);
    assert_true(h.n_points > 200 && h.n_points <= FKV_STATS_POINTS);
    assert_int_equal(h.points[0].records, 0);
    assert_int_equal(h.points[h.n_points - 1].records, 7 * 86400 / 2);
    for (int i = 1; i < h.n_points; i++) {
        const fkv_stats_point *p = &h.points[i];
        assert_true(p->seconds > p[-1].seconds && p->records >= p[-1].records);
        assert_int_equal(p->prompt_tokens, 100 * p->records);
        if (i > 1) assert_true(fabs(p->busy_slots - 6) < 1e-9);
    }
}

static void rates_are_of_the_last_minute(void **state)
{
    fkv_tally *t = *state;
    const fkv_tally_goal goal = {.n_input = 1000, .done = 100, .errors = 7, .slots = 8};
    fkv_tally_answer(t, &goal);
    const double start = fkv_seconds();
    for (int i = 1; i <= 100; i++) { /* ten a second, then one */
        for (int k = 0; k < (i <= 30 ? 10 : 1); k++) fkv_tally_row(t, NULL, 50, 5);
        fkv_tally_tick(t, start + i);
    }
    const fkv_tally_view v = look(t, start + 100);
    assert_int_equal(v.done, 100 + 370);
    assert_int_equal(v.errors, 7);
    assert_int_equal(v.total, 1000);
    assert_false(v.estimated);
    assert_true(fabs(v.records_per_s - 1) < 0.05 && fabs(v.prompt_tokens_per_s - 50) < 3);
    assert_true(fabs(v.eta_s - 530 / v.records_per_s) < 1e-6);
}

static int64_t half(const void *ctx, int64_t n)
{
    (void)ctx;
    return n / 2;
}

static void time_left_is_known_before_the_first_row(void **state)
{
    fkv_tally *t = *state;
    const fkv_tally_goal goal = {.n_input = 600, .slots = 200, .mean_prompt = 9000, .mean_new = 101};
    fkv_tally_answer(t, &goal);
    const double start = fkv_seconds();
    assert_true(look(t, start + 1).eta_s < 0);
    /* A tenth of the prompts in 16 s, and no step yet. */
    const fkv_engine_stats early = {.prefill_rows = 540000, .prefill_seconds = 16};
    fkv_tally_engine(t, &early);
    assert_true(fabs(look(t, start + 16).eta_s - 144) < 1e-6);
    /* All of them, and half of the steps; then the rows say that answers are shorter than their limits. */
    const fkv_engine_stats late = {
        .prefill_rows = 5400000, .prefill_seconds = 160, .busy_slot_steps = 30000, .decode_seconds = 6};
    fkv_tally_engine(t, &late);
    assert_true(fabs(look(t, start + 166).eta_s - 6) < 1e-6);
    for (int i = 0; i < 200; i++) fkv_tally_row(t, NULL, 9000, 76);
    assert_true(fabs(look(t, start + 166).eta_s - 3) < 1e-6);
    for (int i = 0; i < 400; i++) fkv_tally_row(t, NULL, 9000, 76);
    assert_true(look(t, start + 170).eta_s <= 0);
}

static void a_total_is_counted_or_estimated(void **state)
{
    fkv_tally *t = *state;
    fkv_tally_goal goal = {.n_input = 100, .share = half};
    fkv_tally_answer(t, &goal);
    fkv_tally_input(t, 60, 50, 100, false);
    assert_int_equal(look(t, fkv_seconds()).total, 50);
    /* The input has grown since the profile. */
    fkv_tally_input(t, 150, 50, 100, false);
    fkv_tally_view v = look(t, fkv_seconds());
    assert_true(v.estimated && v.total == 150);
    fkv_tally_input(t, 180, 100, 100, true);
    v = look(t, fkv_seconds());
    assert_true(!v.estimated && v.total == 90);
    /* Nobody counted. */
    goal = (fkv_tally_goal){.limit = 300};
    fkv_tally_answer(t, &goal);
    fkv_tally_input(t, 0, 0, 100, false);
    v = look(t, fkv_seconds());
    assert_true(v.estimated && v.total == -1 && v.eta_s < 0);
    fkv_tally_input(t, 50, 10, 100, false);
    assert_int_equal(look(t, fkv_seconds()).total, 300);
    fkv_tally_input(t, 20, 10, 100, false);
    assert_int_equal(look(t, fkv_seconds()).total, 200);
}

static void lengths_and_codes_are_counted(void **state)
{
    static fkv_tally_history h;
    fkv_tally *t = *state;
    fkv_tally_row(t, NULL, 1, 1);
    fkv_tally_row(t, NULL, 1024, 2);
    fkv_tally_row(t, NULL, 2047, 3);
    fkv_tally_row(t, NULL, INT64_MAX, 4);
    fkv_tally_row(t, "too_large", 0, 0);
    for (int i = 0; i < 100; i++) {
        char code[16];
        snprintf(code, sizeof code, "c%d", i);
        fkv_tally_row(t, code, 0, 0);
    }
    fkv_tally_row(t, "No Code", 0, 0);
    fkv_tally_recall(t, fkv_seconds(), &h);
    assert_true(h.prompts.at[0] == 1 && h.prompts.at[10] == 2 && h.prompts.at[FKV_STATS_LENGTHS - 1] == 1);
    assert_true(h.answers.at[0] == 1 && h.answers.at[1] == 2 && h.answers.at[2] == 1);
    assert_int_equal(h.errors.n, FKV_ERROR_CODES);
    assert_int_equal(fkv_error_counts_sum(&h.errors), 102);
    assert_string_equal(h.errors.at[0].code, "too_large");
    assert_string_equal(h.errors.at[FKV_ERROR_CODES - 1].code, "other");
}

static void without_a_tally_nothing_happens(void **state)
{
    (void)state;
    assert_int_equal(fkv_tally_stage(NULL, FKV_STAGE_LOAD), FKV_STAGE_LOAD);
    fkv_tally_count(NULL, 1, 2);
    fkv_tally_row(NULL, NULL, 1, 1);
    fkv_tally_input(NULL, 1, 1, 1, false);
    fkv_tally_tick(NULL, 0);
    assert_false(fkv_tally_wants(NULL));
    fkv_tally_close(NULL);
}

static void lines_say_it(void **state)
{
    char text[512];
    fkv_tally_view v = {.stage = FKV_STAGE_OTHER,
                        .answering = true,
                        .done = 1234,
                        .errors = 1,
                        .total = 5000,
                        .records_per_s = 3.21,
                        .prompt_tokens_per_s = 4512.4,
                        .completion_tokens_per_s = 310,
                        .eta_s = 3723,
                        .slots = 16,
                        .balance = 1.041,
                        .engine = {.busy_slots = 15}};
    (void)state;
    fkv_progress_short(&v, text, sizeof text);
    assert_string_equal(text,
                        "1234/5000  3.2/s  ETA 1:02:03  1 error  tokens/s 4512 prompt 310 new  15/16 slots"
                        "  balance 1.04");
    v.estimated = true;
    v.eta_s = 59.6;
    fkv_progress_long(&v, text, sizeof text);
    assert_string_equal(text,
                        "progress: 1234 of ~5000 records, 1 errors, 3.2 records/s, 4512 prompt and 310 new "
                        "tokens/s, ETA ~1:00, 15 of 16 slots busy, balance 1.04");
    v.total = -1;
    v.eta_s = -1;
    fkv_progress_short(&v, text, 20); /* cut, and ended */
    assert_string_equal(text, "1234  3.2/s  ETA ? ");
    fkv_progress_json(&v, text, sizeof text);
    json_t *o = json_loads(strchr(text, '{'), JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(o);
    assert_true(json_is_null(json_object_get(o, "total")) && json_is_null(json_object_get(o, "eta_seconds")));
    json_decref(o);
    v = (fkv_tally_view){.stage = FKV_STAGE_PROFILE, .n = 3, .all = 64, .in_stage = 61};
    fkv_progress_long(&v, text, sizeof text);
    assert_string_equal(text, "progress: measuring budgets: prompt 3 of 64, for 1:01");
    for (int i = 0; i < FKV_STAGES; i++) {
        v.stage = (fkv_stage)i;
        fkv_progress_short(&v, text, sizeof text);
        assert_true(strlen(text) > 10);
        fkv_progress_json(&v, text, sizeof text);
        o = json_loads(strchr(text, '{'), 0, NULL);
        assert_string_equal(json_string_value(json_object_get(o, "stage")), fkv_stage_name((fkv_stage)i));
        json_decref(o);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, up, down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(stages_are_all_of_the_wall_time),
        TEST(a_week_of_points_is_bounded_and_in_order),
        TEST(rates_are_of_the_last_minute),
        TEST(a_total_is_counted_or_estimated),
        TEST(time_left_is_known_before_the_first_row),

        TEST(lengths_and_codes_are_counted),
        cmocka_unit_test(without_a_tally_nothing_happens),
        cmocka_unit_test(lines_say_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
