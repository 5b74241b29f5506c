/* Who has what: heads, columns and ranks are shared out whole, in order, without gap or overlap. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/plan/partition.h"

/* Any boundaries would do for the answers; whole units are what fast products want. */
static void columns_are_shared_in_whole_units(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 7, 64, 128, 384, 896, 1000, 4096, 14336, 28672, 50257, 128256, 151936};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int ranks = 1; ranks <= 70; ranks++) {
            const int64_t n = sizes[i], unit = n >= 128 * ranks ? 128 : n >= 16 * ranks ? 16 : 1;
            const int64_t most = fkv_range_count(fkv_partition_columns(n, 0, ranks));
            int64_t end = 0;
            for (int r = 0; r < ranks; r++) {
                const fkv_range at = fkv_partition_columns(n, r, ranks);
                const int64_t count = fkv_range_count(at);
                assert_int_equal(at.begin, end);
                assert_int_equal(at.begin % unit, 0);
                assert_in_range(count, 0, most);
                /* at most a unit more or less than an even share, and the last unit may not be whole */
                assert_true(count < n / ranks + 1 + unit && count > n / ranks - 2 * unit);
                assert_true(n < ranks || count > 0);
                end = at.end;
            }
            assert_int_equal(end, n);
        }
    }
    assert_int_equal(fkv_partition_columns(14336, 0, 5).end, 23 * 128);
    assert_int_equal(fkv_partition_columns(4096, 1, 3).end, 22 * 128);
}

static void every_head_is_at_home_on_the_rank_whose_range_holds_it(void **state)
{
    (void)state;
    for (int k = 1; k <= 40; k++) {
        for (int ranks = 1; ranks <= k; ranks++) {
            int end = 0, most = 0;
            for (int r = 0; r < ranks; r++) {
                const fkv_range at = fkv_partition_heads(k, r, ranks);
                assert_int_equal(at.begin, end);
                assert_true(at.end > at.begin);
                for (int h = (int)at.begin; h < at.end; h++)
                    assert_int_equal(fkv_partition_home(h, k, ranks), r);
                end = (int)at.end;
                if (fkv_range_count(at) > most) most = (int)fkv_range_count(at);
            }
            assert_int_equal(end, k);
            assert_int_equal(most, fkv_partition_most_heads(k, ranks));
        }
    }
}

static void every_rank_lives_on_the_device_whose_range_holds_it(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 40; ranks++) {
        for (int devices = 1; devices <= ranks; devices++) {
            int end = 0;
            for (int d = 0; d < devices; d++) {
                const fkv_range at = fkv_partition_ranks(ranks, d, devices);
                assert_int_equal(at.begin, end);
                assert_true(at.end > at.begin);
                for (int r = (int)at.begin; r < at.end; r++)
                    assert_int_equal(fkv_partition_device(r, ranks, devices), d);
                end = (int)at.end;
            }
            assert_int_equal(end, ranks);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(columns_are_shared_in_whole_units),
        cmocka_unit_test(every_head_is_at_home_on_the_rank_whose_range_holds_it),
        cmocka_unit_test(every_rank_lives_on_the_device_whose_range_holds_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
