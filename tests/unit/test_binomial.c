/* Exact intervals of counted shares: against values made with 30 digits, and against the sums that define
 * them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runner/binomial.h"

static void near(double a, double b)
{
    if (fabs(a - b) > 1e-11) fail_msg("%.17g is not %.17g", a, b);
}

static void intervals_are_those_of_clopper_and_pearson(void **state)
{
    (void)state;
    static const struct {
        int64_t k, n;
        double confidence, low, high;
    } known[] = {
        {0, 10, 0.95, 0, 0.308497107819},
        {1, 10, 0.95, 0.00252857854446, 0.445016117028},
        {5, 10, 0.95, 0.187086028447, 0.812913971553},
        {10, 10, 0.95, 0.691502892181, 1},
        {90, 100, 0.95, 0.82377740226, 0.950995310779},
        {97, 100, 0.95, 0.914823947026, 0.993770028462},
        {90, 100, 0.99, 0.798046479219, 0.961804346795},
        {850, 1000, 0.95, 0.826341871433, 0.871575188884},
        {0, 0, 0.95, 0, 1},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const fkv_interval x = fkv_binomial_interval(known[i].k, known[i].n, known[i].confidence);
        near(x.low, known[i].low);
        near(x.high, known[i].high);
    }
}

/* The chance to count at least k of n where each counts with chance p. */
static double at_least(int64_t k, int64_t n, double p)
{
    double sum = 0;
    for (int64_t i = k; i <= n; i++)
        sum += exp(lgamma((double)n + 1) - lgamma((double)i + 1) - lgamma((double)(n - i) + 1) +
                   (double)i * log(p) + (double)(n - i) * log1p(-p));
    return sum;
}

static void ends_are_where_a_test_at_half_the_rest_turns(void **state)
{
    (void)state;
    static const int64_t counts[][2] = {{1, 2},    {3, 7},       {64, 65},    {500, 1000},
                                        {1, 5000}, {4999, 5000}, {4500, 5000}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const int64_t k = counts[i][0], n = counts[i][1];
        const fkv_interval x = fkv_binomial_interval(k, n, 0.95);
        assert_true(fabs(at_least(k, n, x.low) - 0.025) < 1e-8);
        assert_true(fabs(1 - at_least(k + 1, n, x.high) - 0.025) < 1e-8);
        assert_true(x.low < (double)k / (double)n && (double)k / (double)n < x.high);
    }
}

static void the_beta_function_is_that_of_simple_cases(void **state)
{
    (void)state;
    near(fkv_beta_share(1, 1, 0.3), 0.3);
    near(fkv_beta_share(2, 3, 0.4), 0.5248);
    near(fkv_beta_share(0.5, 0.5, 0.25), 1.0 / 3);
    near(fkv_beta_share(5, 1, 0.9), pow(0.9, 5));
    near(fkv_beta_share(1, 7, 0.2), 1 - pow(0.8, 7));
    assert_true(fabs(fkv_beta_share(1e5, 1e5, 0.5) - 0.5) < 1e-9); /* lgamma of large numbers */
    near(fkv_beta_share(3, 4, 0), 0);
    near(fkv_beta_share(3, 4, 1), 1);
}

static void more_records_settle_what_is_open(void **state)
{
    (void)state;
    const fkv_interval open = fkv_binomial_interval(95, 100, 0.95);
    assert_int_equal(fkv_binomial_verdict(open, 0.9), FKV_VERDICT_OPEN);
    const int64_t n = fkv_binomial_to_settle(95, 100, 0.95, 0.9);
    assert_true(n > 100 && n < 400);
    assert_int_equal(fkv_binomial_verdict(fkv_binomial_interval(llround(0.95 * (double)n), n, 0.95), 0.9),
                     FKV_VERDICT_ENOUGH);
    /* What is settled needs no more, what lies on the share itself is never settled. */
    assert_int_equal(fkv_binomial_to_settle(100, 100, 0.95, 0.9), 100);
    assert_int_equal(fkv_binomial_to_settle(10, 100, 0.95, 0.9), 100);
    assert_int_equal(fkv_binomial_to_settle(90, 100, 0.95, 0.9), 0);
    assert_int_equal(fkv_binomial_to_settle(0, 0, 0.95, 0.9), 0);
    assert_int_equal(fkv_binomial_verdict(fkv_binomial_interval(10, 100, 0.95), 0.9), FKV_VERDICT_TOO_LITTLE);
    const int64_t below = fkv_binomial_to_settle(85, 100, 0.95, 0.9);
    assert_true(below > 100 && below < 400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(intervals_are_those_of_clopper_and_pearson),
        cmocka_unit_test(ends_are_where_a_test_at_half_the_rest_turns),
        cmocka_unit_test(the_beta_function_is_that_of_simple_cases),
        cmocka_unit_test(more_records_settle_what_is_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
