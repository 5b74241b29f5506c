/* The split of the devices and the worth of slots, on stated and synthetic rates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/split.h"

static const fkv_config shape_70b = {.n_layers = 80,
                                     .n_heads = 64,
                                     .n_kv_heads = 8,
                                     .head_dim = 128,
                                     .group = 8,
                                     .hidden = 8192,
                                     .intermediate = 28672,
                                     .vocab = 128256,
                                     .max_positions = 131072};
static double even[640];

static fkv_split_job job_of(double prompt, double output, int slots)
{
    for (int i = 0; i < 640; i++) even[i] = (prompt < 1024 ? prompt : 1024) + output / 2;
    return (fkv_split_job){.config = &shape_70b,
                           .tokens = even,
                           .prompt_tokens = prompt,
                           .output_tokens = output,
                           .n_slots = slots,
                           .max_copies = -1,
                           .mode = FKV_PLAN_FAIR_COPYING};
}

static int candidates(const fkv_split_rates *rates, const fkv_split_job *job, int devices,
                      fkv_device_split *out)
{
    fkv_err err = {0};
    int n;
    if (fkv_split_candidates(rates, job, devices, out, &n, &err)) fail_msg("%s", err.message);
    return n;
}

static void prefill_heavy_jobs_choose_few_ranks(void **state)
{
    (void)state;
    fkv_device_split s[FKV_SPLITS_MAX];
    const fkv_split_rates rates = fkv_split_rates_gpu(&shape_70b);
    fkv_split_job job = job_of(10000, 100, 64);
    const int n = candidates(&rates, &job, 8, s);
    assert_int_equal(n, 4);
    for (int i = 0; i < n; i++) {
        assert_int_equal(s[i].tensor_parallel, 1 << i);
        assert_int_equal(s[i].tensor_parallel * s[i].data_parallel, 8);
    }
    const int few = fkv_split_best(s, n, true);
    assert_true(s[few].tensor_parallel <= 2);
    /* One group alone is fastest with every device. */
    assert_int_equal(s[fkv_split_best(s, n, false)].tensor_parallel, 8);

    /* Few slots and long answers read the weights again and again: many ranks. */
    job = job_of(100, 4000, 1);
    candidates(&rates, &job, 8, s);
    assert_true(s[3].step_us < s[0].step_us / 3);
    /* What does not fit is not chosen. */
    job = job_of(10000, 100, 64);
    candidates(&rates, &job, 8, s);
    for (int i = 0; i <= few; i++) s[i].fits = false;
    assert_int_equal(fkv_split_best(s, n, true), few + 1);
    for (int i = 0; i < n; i++) s[i].fits = false;
    assert_int_equal(fkv_split_best(s, n, true), -1);
}

static void dear_collectives_argue_for_one_rank(void **state)
{
    (void)state;
    fkv_device_split s[FKV_SPLITS_MAX];
    fkv_split_rates rates = fkv_split_rates_gpu(&shape_70b);
    const fkv_split_job job = job_of(4000, 200, 16);
    rates.collective_us = 1e6;
    const int n = candidates(&rates, &job, 8, s);
    assert_int_equal(fkv_split_best(s, n, false), 0);
    assert_int_equal(fkv_split_best(s, n, true), 0);
    /* and free ones leave the work alone, which divides evenly */
    rates.collective_us = 0;
    rates.link_bytes_per_us = 1e30;
    candidates(&rates, &job, 8, s);
    assert_true(s[3].prefill_us > s[0].prefill_us / 8 * 0.999 &&
                s[3].prefill_us < s[0].prefill_us / 8 * 1.001);
}

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

static void only_divisors_up_to_the_heads_are_tried(void **state)
{
    (void)state;
    fkv_device_split s[FKV_SPLITS_MAX];
    const fkv_split_rates rates = fkv_split_rates_cpu(&shape_70b);
    const fkv_split_job job = job_of(1000, 100, 8);
    assert_int_equal(candidates(&rates, &job, 1, s), 1);
    assert_int_equal(candidates(&rates, &job, 6, s), 4);  /* 1, 2, 3, 6 */
    assert_int_equal(candidates(&rates, &job, 16, s), 4); /* not 16: 8 heads */
    assert_int_equal(s[3].tensor_parallel, 8);
    assert_int_equal(s[3].data_parallel, 2);
}

static void slots_grow_by_eights_and_must_pay(void **state)
{
    (void)state;
    int last = 0;
    for (int n = fkv_split_next_slots(0); n; n = fkv_split_next_slots(n)) {
        assert_true(n > last && (n < 8 || n % 8 == 0) && (last < 8 || n <= 2 * last));
        last = n;
    }
    assert_int_equal(last, 256);
    assert_true(fkv_split_pays(1.02, 1));
    assert_false(fkv_split_pays(1.019, 1));
    /* Where prefill is nearly all of a record, more slots are not worth it. */
    assert_false(
        fkv_split_pays(fkv_split_record_us(1e6, 1000, 100, 8), fkv_split_record_us(1e6, 1100, 100, 16)));
    assert_true(
        fkv_split_pays(fkv_split_record_us(1e3, 1000, 100, 8), fkv_split_record_us(1e3, 1100, 100, 16)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefill_heavy_jobs_choose_few_ranks),
        cmocka_unit_test(dear_collectives_argue_for_one_rank),
        cmocka_unit_test(measured_rates_take_the_place_of_stated_ones),
        cmocka_unit_test(only_divisors_up_to_the_heads_are_tried),
        cmocka_unit_test(slots_grow_by_eights_and_must_pay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
