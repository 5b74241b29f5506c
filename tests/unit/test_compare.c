/* What a comparison counts: first differences, what records say is right, means over those that both
 * answered; and which settings its options name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runner/compare.h"

static void near(double a, double b)
{
    if (a - b > 1e-12 || b - a > 1e-12) fail_msg("%.17g is not %.17g", a, b);
}

static void the_first_difference_counts_the_tokens_before_it(void **state)
{
    (void)state;
    int32_t a[] = {1, 2, 3}, b[] = {1, 2, 4}, c[] = {7};
    const fkv_ids x = {.data = a, .len = 3}, y = {.data = b, .len = 3}, z = {.data = c, .len = 1};
    const fkv_ids begin = {.data = a, .len = 2}, none = {0};
    assert_int_equal(fkv_first_difference(&x, &x), -1);
    assert_int_equal(fkv_first_difference(&x, &y), 2);
    assert_int_equal(fkv_first_difference(&x, &z), 0);
    assert_int_equal(fkv_first_difference(&x, &begin), 2); /* one is the other's beginning */
    assert_int_equal(fkv_first_difference(&none, &x), 0);
    assert_int_equal(fkv_first_difference(&none, &none), -1);
}

static unsigned right(const char *fields, const char *text)
{
    fkv_record record = {.fields = {.data = (char *)(uintptr_t)fields, .len = strlen(fields)}};
    fkv_err err = {0};
    unsigned found = 99;
    assert_int_equal(fkv_compare_right(&record, text, strlen(text), &found, &err), FKV_OK);
    return found;
}

static void an_answer_is_compared_with_what_the_record_says(void **state)
{
    (void)state;
    const unsigned exact = FKV_RIGHT_KNOWN | FKV_RIGHT_EXACT | FKV_RIGHT_CONTAINS;
    const unsigned contains = FKV_RIGHT_KNOWN | FKV_RIGHT_CONTAINS;
    assert_int_equal(right("{\"answers\":[\"41\",\"forty-one\"]}", " forty-one\n"), exact);
    assert_int_equal(right("{\"answers\":[\"41\"]}", "It is 41."), contains);
    assert_int_equal(right("{\"answers\":[\" 41 \"]}", "41"), exact);
    assert_int_equal(right("{\"answers\":[\"41\"]}", "4 1"), FKV_RIGHT_KNOWN);
    assert_int_equal(right("{\"answers\":\"41\"}", "41"), exact);
    assert_int_equal(right("{\"answer\":\"41\"}", "41"), exact);
    assert_int_equal(right("{\"answers\":[\"\\u0034\\u0031\"]}", "41"), exact);
    /* An empty answer is right where nothing is said, and is in no text. */
    assert_int_equal(right("{\"answers\":[\"\"]}", " "), FKV_RIGHT_KNOWN | FKV_RIGHT_EXACT);
    assert_int_equal(right("{\"answers\":[\"\"]}", "41"), FKV_RIGHT_KNOWN);
    /* Nothing that can be compared. */
    assert_int_equal(right("{\"answers\":[]}", "41"), 0);
    assert_int_equal(right("{\"answers\":[41,null,[\"41\"]]}", "41"), 0);
    assert_int_equal(right("{\"answers\":null}", "41"), 0);
    assert_int_equal(right("{\"length\":3}", "41"), 0);
    assert_int_equal(right("", "41"), 0);
}

static void only_what_both_answered_counts(void **state)
{
    (void)state;
    const fkv_compare_cell whole[] = {{.tokens = 4, .first = -1, .right = 7, .kept = 100},
                                      {.tokens = 6, .first = -1, .right = 1, .kept = 100},
                                      {.tokens = -1, .first = -1},
                                      {.tokens = 8, .first = -1, .right = 7, .kept = 100, .at_limit = true},
                                      {.tokens = 2, .first = -1, .kept = 100}};
    const fkv_compare_cell cells[] = {{.tokens = 4, .first = -1, .right = 7, .kept = 10},
                                      {.tokens = 9, .first = 3, .right = 5, .kept = 20, .at_limit = true},
                                      {.tokens = 5, .first = -1, .right = 7, .kept = 99},
                                      {.tokens = 7, .first = 6, .right = 1, .kept = 30},
                                      {.tokens = -1, .first = -1}};
    int32_t work[5];
    fkv_compare_counts n;
    fkv_compare_count(whole, cells, 5, work, &n);
    assert_int_equal(n.n_answered, 4);
    assert_int_equal(n.n, 3);
    assert_int_equal(n.n_equal, 1);
    near(n.first_mean, 4.5);
    near(n.first_median, 4.5);
    near(n.kept, 20);
    near(n.tokens, 20.0 / 3);
    near(n.whole_tokens, 6);
    assert_int_equal(n.longer, 1);
    assert_int_equal(n.shorter, 1);
    assert_int_equal(n.at_limit, 1);
    assert_int_equal(n.whole_at_limit, 1);
    assert_int_equal(n.n_known, 3);
    assert_int_equal(n.exact, 1);
    assert_int_equal(n.contains, 2);
    assert_int_equal(n.whole_exact, 2);
    assert_int_equal(n.whole_contains, 2);
    fkv_compare_count(whole, cells + 4, 1, work, &n);
    assert_int_equal(n.n, 0);
    near(n.tokens, 0);
}

static fkv_status settings(const char *budgets, const char *scorers, fkv_comparison *c)
{
    static fkv_job job = {.profile = {.method = FKV_METHOD_NONE, .window = 32}};
    static fkv_setup setup = {.job = &job};
    const fkv_compare_options options = {
        .n_records = 1, .budgets = budgets, .scorers = scorers, .equal = 0.9};
    fkv_err err = {0};
    memset(c, 0, sizeof *c);
    return fkv_compare_settings(&setup, &options, c, &err);
}

static void lists_name_the_settings(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "",     "x",   "5%%",   "-5%", "0%",   "100.5%",
        "31",   "1e3", ",",     "5 %", "5.5",  ".5%",
        "nan%", "inf", "5%,5%", "+40", "0x40", "999999999999999999999999999999999999999999999"};
    fkv_comparison *c = malloc(sizeof *c);
    assert_non_null(c);
    assert_int_equal(settings(NULL, NULL, c), FKV_OK);
    assert_int_equal(c->n_settings, 6);
    assert_string_equal(c->settings[0].name, "whole");
    assert_int_equal(c->settings[0].job.profile.method, FKV_METHOD_NONE);
    assert_string_equal(c->settings[5].name, "snapkv-5pct");
    assert_int_not_equal(c->settings[5].job.profile.method, FKV_METHOD_NONE);
    near(c->settings[5].job.profile.budget_percent, 5);
    assert_int_equal(settings("12.5%,2048,100%", "snapkv", c), FKV_OK);
    assert_int_equal(c->n_settings, 4);
    assert_string_equal(c->settings[1].name, "snapkv-12.5pct");
    assert_int_equal(c->settings[2].job.profile.budget, 2048);
    near(c->settings[2].job.profile.budget_percent, 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (settings(wrong[i], NULL, c) != FKV_E_INPUT) fail_msg("\"%s\" is taken", wrong[i]);
    assert_int_equal(settings("50%", "nobody", c), FKV_E_INPUT);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_difference_counts_the_tokens_before_it),
        cmocka_unit_test(an_answer_is_compared_with_what_the_record_says),
        cmocka_unit_test(only_what_both_answered_counts),
        cmocka_unit_test(lists_name_the_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
