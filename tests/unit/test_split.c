/* What work takes on splits of the devices, by stated and synthetic rates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/split.h"
#include "model_shapes.h"

static void measured_constants_take_the_place_of_stated_ones(void **state)
{
    (void)state;
    const fkv_cost stated = fkv_cost_gpu(&shape_70b);
    fkv_cost measured = {.n_ranks = 4,
                         .act_bytes = 2,
                         .head_us = 20,
                         .common_us = 50,
                         .prefill_token_us = 0.25,
                         .prefill_pair_us = 1e-5};
    fkv_cost c = fkv_cost_complete(&measured, &stated), whole = fkv_cost_at(&c, 1);
    /* A rank of four measured a quarter of the model's work. */
    assert_true(whole.prefill_token_us == 1 && whole.prefill_pair_us == 4e-5);
    assert_true(whole.common_us == 200 && whole.head_us == 20 && whole.n_ranks == 1);
    assert_true(fkv_cost_at(&whole, 4).common_us == 50);
    assert_true(c.collective_us == stated.collective_us && c.link_bytes_per_us == stated.link_bytes_per_us);
    measured.collective_us = 20;
    measured.link_bytes_per_us = 1000;
    measured.prefill_token_us = measured.prefill_pair_us = 0; /* disturbed: stated ones, of four ranks */
    c = fkv_cost_complete(&measured, &stated);
    assert_true(c.collective_us == 20 && c.link_bytes_per_us == 1000);
    assert_true(c.prefill_token_us == stated.prefill_token_us / 4);
    assert_true(fkv_split_collectives_us(&c, &shape_70b, 16, 1) == 0);
    assert_true(fkv_split_collectives_us(&c, &shape_70b, 32, 4) >
                fkv_split_collectives_us(&c, &shape_70b, 16, 4));
}

static void collectives_cost_and_work_divides(void **state)
{
    (void)state;
    fkv_cost c = fkv_cost_gpu(&shape_70b);
    const double one = fkv_split_prefill_us(&c, &shape_70b, 4000, 1);
    assert_true(fkv_split_prefill_us(&c, &shape_70b, 4000, 8) > one / 8);
    c.collective_us = 0;
    c.link_bytes_per_us = 1e30;
    const double eighth = fkv_split_prefill_us(&c, &shape_70b, 4000, 8);
    assert_true(eighth > one / 8 * 0.999 && eighth < one / 8 * 1.001);
}

static void the_fastest_split_that_fits_is_taken(void **state)
{
    (void)state;
    fkv_device_split s[3] = {{.tensor_parallel = 1, .data_parallel = 4, .job_us = 10, .fits = true},
                             {.tensor_parallel = 2, .data_parallel = 2, .job_us = 10, .fits = true},
                             {.tensor_parallel = 4, .data_parallel = 1, .job_us = 9, .fits = true}};
    assert_int_equal(fkv_split_best(s, 3), 2);
    s[2].fits = false;
    assert_int_equal(fkv_split_best(s, 3), 0); /* fewer ranks */
    s[0].fits = false;
    assert_int_equal(fkv_split_best(s, 3), 1);
    s[1].fits = false;
    assert_int_equal(fkv_split_best(s, 3), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(measured_constants_take_the_place_of_stated_ones),
        cmocka_unit_test(collectives_cost_and_work_divides),
        cmocka_unit_test(the_fastest_split_that_fits_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
