/* What work takes on splits of the devices, by stated and synthetic rates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/split.h"
#include "model_shapes.h"

static void measured_rates_take_the_place_of_stated_ones(void **state)
{
    (void)state;
    const fkv_split_rates stated = fkv_split_rates_gpu(&shape_70b);
    fkv_calibration c = {.key = {.n_ranks = 4, .n_devices = 1},
                         .cost = {3, 20, 0.1, 1e-4, 50},
                         .prefill_token_us = 0.25,
                         .prefill_pair_us = 1e-5};
    fkv_split_rates r = fkv_split_rates_measured(&stated, &c);
    /* A rank of four measured a quarter of the model's work. */
    assert_true(r.token_us == 1 && r.pair_us == 4e-5 && r.cost.common_us == 200 && r.cost.head_us == 20);
    assert_true(r.collective_us == stated.collective_us && r.link_bytes_per_us == stated.link_bytes_per_us);
    assert_true(fkv_split_cost(&r, &shape_70b, 4, 16).common_us >= 50);
    assert_true(fkv_split_cost(&r, &shape_70b, 1, 16).common_us == 200);
    c.collective_us = 20;
    c.link_bytes_per_us = 1000;
    r = fkv_split_rates_measured(&stated, &c);
    assert_true(r.collective_us == 20 && r.link_bytes_per_us == 1000);
    assert_true(fkv_split_collectives_us(&r, &shape_70b, 16, 1) == 0);
    assert_true(fkv_split_collectives_us(&r, &shape_70b, 32, 4) >
                fkv_split_collectives_us(&r, &shape_70b, 16, 4));
}

static void collectives_cost_and_work_divides(void **state)
{
    (void)state;
    fkv_split_rates r = fkv_split_rates_gpu(&shape_70b);
    const double one = fkv_split_prefill_us(&r, &shape_70b, 4000, 1);
    assert_true(fkv_split_prefill_us(&r, &shape_70b, 4000, 8) > one / 8);
    r.collective_us = 0;
    r.link_bytes_per_us = 1e30;
    const double eighth = fkv_split_prefill_us(&r, &shape_70b, 4000, 8);
    assert_true(eighth > one / 8 * 0.999 && eighth < one / 8 * 1.001);
}

static void the_fastest_split_that_fits_is_taken(void **state)
{
    (void)state;
    fkv_device_split s[3] = {{.tensor_parallel = 1, .data_parallel = 4, .record_us = 10, .fits = true},
                             {.tensor_parallel = 2, .data_parallel = 2, .record_us = 12, .fits = true},
                             {.tensor_parallel = 4, .data_parallel = 1, .record_us = 20, .fits = true}};
    assert_int_equal(fkv_split_best(s, 3, true), 0);
    assert_int_equal(fkv_split_best(s, 3, false), 2); /* 40, 24 and 20 us in one group */
    s[0].fits = false;
    assert_int_equal(fkv_split_best(s, 3, true), 1);
    s[1].fits = s[2].fits = false;
    assert_int_equal(fkv_split_best(s, 3, true), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measured_rates_take_the_place_of_stated_ones),
        cmocka_unit_test(collectives_cost_and_work_divides),
        cmocka_unit_test(the_fastest_split_that_fits_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
