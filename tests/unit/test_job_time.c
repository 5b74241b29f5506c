/* The time of a job by its number of slots, and which number is chosen. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model_shapes.h"
#include "runner/layout_choice.h"

static void near(double a, double b)
{
    if (fabs(a - b) > 1e-9 * fabs(b)) fail_msg("%.17g is not %.17g", a, b);
}

static void steps_lie_on_lines_between_the_points(void **state)
{
    (void)state;
    fkv_step_curve c = {3, {{8, 100, 60}, {16, 120, 64}, {32, 200, 70}}};
    near(fkv_curve_step_us(&c, 16, 16), 120);
    near(fkv_curve_step_us(&c, 12, 12), 110);
    near(fkv_curve_step_us(&c, 24, 24), 160);
    near(fkv_curve_step_us(&c, 48, 48), 280);
    near(fkv_curve_step_us(&c, 16, 0), 64);
    near(fkv_curve_step_us(&c, 16, 4), 64 + 56 / 4.0);
    near(fkv_curve_step_us(&c, 2, 2), 60 + 40 / 4.0);
    c.n = 1;
    near(fkv_curve_step_us(&c, 16, 16), 100);
    c.n = 0;
    near(fkv_curve_step_us(&c, 16, 16), 0);
}

static void a_disturbed_point_is_no_slower_than_a_larger_one(void **state)
{
    (void)state;
    fkv_step_curve c = {4, {{1, 50, 60}, {2, 900, 40}, {4, 80, 45}, {8, 120, 500}}};
    fkv_curve_smooth(&c);
    for (int i = 0; i + 1 < c.n; i++) assert_true(c.at[i].us <= c.at[i + 1].us);
    near(c.at[1].us, 80);
    near(c.at[0].empty_us, 40);
    near(c.at[3].empty_us, 120);
}

static void records_follow_each_other_in_the_slots(void **state)
{
    (void)state;
    /* A step costs 10 us, and one more for every slot at work. */
    const fkv_step_curve c = {2, {{1, 11, 10}, {100, 110, 10}}};
    fkv_job_load load = {.n_records = 4, .mean_new = 3};
    near(fkv_job_decode_us(&load, &c, 2, 100), 4 * 12); /* two after prefill's, twice */
    near(fkv_job_decode_us(&load, &c, 3, 100), 2 * 13 + 2 * 11);
    near(fkv_job_decode_us(&load, &c, 100, 100), 2 * 14);
    near(fkv_job_decode_us(&load, &c, 100, 2.9), 4 * 12); /* the arenas hold two */
    near(fkv_job_decode_us(&load, &c, 100, 0), 8 * 11);
    load.mean_new = 1;
    near(fkv_job_decode_us(&load, &c, 2, 100), 0);
    /* A job of unknown length, or a long one, is all steady. */
    const int32_t lengths[] = {101, 201};
    load = (fkv_job_load){.n_records = 0, .new_tokens = lengths, .n_sample = 2};
    const double us = fkv_job_decode_us(&load, &c, 8, 100) / FKV_JOB_MANY;
    assert_true(fabs(us / (150 * 18 / 8.0) - 1) < 0.01);
}

static void prompts_give_both_rates(void **state)
{
    (void)state;
    double token, pair;
    fkv_prompt_rates((int64_t[]){1000, 4000}, (double[]){1000 * 5 + 1e6 * 0.002, 4000 * 5 + 16e6 * 0.002},
                     &token, &pair);
    near(token, 5);
    near(pair, 0.002);
    fkv_prompt_rates((int64_t[]){1000, 2000}, (double[]){1000, 1500}, &token, &pair); /* sublinear: noise */
    assert_true(pair == 0 && token == 0.75);
    fkv_prompt_rates((int64_t[]){500, 500}, (double[]){1000, 1000}, &token, &pair);
    assert_true(pair == 0 && token == 2);
    fkv_prompt_rates((int64_t[]){1000, 2000}, (double[]){1, 4000}, &token, &pair);
    assert_true(token >= 0 && pair > 0);
}

/* ---- choosing ---- */

static fkv_slot_choice best(fkv_slot_model m, int64_t n_records, double mean_new)
{
    const fkv_slot_search s = {.load = {.n_records = n_records, .mean_new = mean_new}};
    for (int i = 0; i < m.curve.n; i++)
        if (m.at_once[i] == 0) m.at_once[i] = 1e6;
    return fkv_slots_best(&s, &m);
}

static void a_plateau_does_not_end_the_search(void **state)
{
    (void)state;
    /* From 8 to 16 nothing is gained, from there on everything. */
    const fkv_slot_model m = {
        .curve = {5,
                  {{8, 1000, 900}, {16, 2000, 1900}, {32, 2050, 1950}, {64, 2100, 2000}, {128, 2300, 2100}}},
        .prefill_us = 1e5};
    const fkv_slot_choice c = best(m, 100000, 200);
    assert_int_equal(c.slots, 128);
    /* Prefill is most of the job and still no reason to stop at 1 slot. */
    assert_true(c.us > 0.9 * 1e10);
}

static void few_records_take_few_slots(void **state)
{
    (void)state;
    fkv_slot_model m = {.curve = {3, {{1, 100, 80}, {2, 120, 90}, {4, 300, 200}}}};
    assert_int_equal(best(m, 4, 50).slots, 2);
    m.curve.at[2].us = 150;
    m.curve.at[2].empty_us = 100;
    assert_int_equal(best(m, 4, 50).slots, 4);
    /* where slots gain nothing, fewer are taken */
    m.curve = (fkv_step_curve){2, {{1, 100, 100}, {4, 100, 100}}};
    assert_int_equal(best(m, 4, 1).slots, 1);
}

static void slots_without_pages_are_not_taken(void **state)
{
    (void)state;
    fkv_slot_model m = {.curve = {4, {{8, 1000, 900}, {16, 1100, 950}, {32, 1200, 1000}, {64, 1500, 1200}}},
                        .at_once = {40, 39, 36, 30}};
    const int slots = best(m, 100000, 200).slots;
    assert_true(slots == 32 || slots == 40); /* 35 would be at work of 40 */
    for (int i = 0; i < 4; i++) m.at_once[i] = 0.5;
    assert_int_equal(best(m, 100, 10).slots, 0);
}

static void one_number_alone_is_kept(void **state)
{
    (void)state;
    const fkv_slot_model m = {.curve = {1, {{24, 1000, 900}}}, .only = 24};
    assert_int_equal(best(m, 100, 10).slots, 24);
}

/* ---- ranks and replicas ---- */

static int64_t no_workspace(const fkv_device_limits *limits, int n_threads)
{
    (void)limits, (void)n_threads;
    return 0;
}

/* A job on GPUs with so much memory. */
typedef struct gpu_job {
    fkv_backend backend;
    fkv_job job;
    fkv_setup setup;
    fkv_profile profile;
    fkv_sizing sizing;
    fkv_layout layout;
    int32_t budgets[640], prompt[1], answer[1];
    double tokens[640];
} gpu_job;

static void open_model_job(gpu_job *g, const fkv_config *model, int prompt, int answer, int slots,
                           int devices, int gib)
{
    *g = (gpu_job){.backend = {.name = "gpu", .workspace_bytes = no_workspace}};
    g->job.plan.max_copies = -1;
    g->job.plan.mode = FKV_JOB_FAIR_COPYING;
    g->setup = (fkv_setup){.job = &g->job,
                           .config = *model,
                           .backend = &g->backend,
                           .auto_ranks = true,
                           .auto_replicas = true,
                           .auto_slots = slots == 0,
                           .n_ranks = devices,
                           .n_replicas = 1,
                           .n_devices = devices,
                           .n_slots = slots ? slots : 1,
                           .limits = {.max_positions = 131072, .max_new = 128}};
    g->prompt[0] = prompt;
    g->answer[0] = answer;
    g->profile = (fkv_profile){.n_layers = model->n_layers,
                               .n_kv_heads = model->n_kv_heads,
                               .budgets = g->budgets,
                               .prompt_tokens = g->prompt,
                               .new_tokens = g->answer,
                               .n_sample = 1,
                               .mean_output = answer};
    for (int i = 0; i < 640; i++) g->budgets[i] = 1024;
    fkv_cost_tokens(&g->profile, g->tokens);
    g->layout = fkv_setup_layout(&g->setup);
    g->layout.max_prompt = 16384;
    g->sizing.free_bytes = g->sizing.total_bytes = (int64_t)gib << 30;
    g->sizing.limit.arena_share = 0.9;
    g->sizing.worth_slots = 256;
    g->sizing.shape =
        (fkv_memory_shape){.act_bytes = 2, .kv_bytes = 2, .weight_bytes = 2, .prefill_tile = 2048};
    fkv_sizing_update(&g->setup, &g->layout, &g->profile, &g->sizing);
}

static void open_job(gpu_job *g, int prompt, int answer, int slots, int devices, int gib)
{
    open_model_job(g, &shape_70b, prompt, answer, slots, devices, gib);
}

static fkv_sizing splits_of(gpu_job *g, const fkv_cost *rates, int64_t n_records)
{
    fkv_err err = {0};
    const fkv_slot_search search = {
        .setup = &g->setup,
        .profile = &g->profile,
        .sizing = &g->sizing,
        .cost = rates,
        .tokens = g->tokens,
        .load = {.n_records = n_records, .new_tokens = g->answer, .n_sample = 1, .mean_new = g->answer[0]}};
    if (fkv_splits_choose(&search, &g->layout, &g->sizing, &err)) fail_msg("%s", err.message);
    return g->sizing;
}

static void prefill_heavy_jobs_choose_few_ranks(void **state)
{
    (void)state;
    const fkv_cost rates = fkv_cost_gpu(&shape_70b);
    gpu_job g;
    open_job(&g, 10000, 100, 64, 8, 400);
    fkv_sizing z = splits_of(&g, &rates, 5000);
    assert_int_equal(z.n_splits, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(z.splits[i].tensor_parallel, 1 << i);
        assert_int_equal(z.splits[i].tensor_parallel * z.splits[i].data_parallel, 8);
        assert_int_equal(z.splits[i].slots, 64);
        assert_true(z.splits[i].fits);
    }
    assert_true(z.splits[z.best].tensor_parallel <= 2);
    assert_int_equal(g.layout.ranks, z.splits[z.best].tensor_parallel);
    assert_int_equal(g.layout.devices, g.layout.ranks);
    assert_int_equal(g.layout.replicas * g.layout.ranks, 8);
    /* One replica alone is fastest with every device, one a rank. */
    open_job(&g, 10000, 100, 64, 8, 400);
    g.setup.auto_replicas = false;
    z = splits_of(&g, &rates, 5000);
    assert_int_equal(z.splits[z.best].tensor_parallel, 8);
    assert_int_equal(z.splits[0].data_parallel, 1);
    assert_int_equal(g.layout.ranks, 8);
    assert_int_equal(g.layout.devices, 8);
    assert_int_equal(g.layout.replicas, 1);
    /* Few slots and long answers read the weights again and again: many ranks. */
    open_job(&g, 100, 4000, 1, 8, 400);
    z = splits_of(&g, &rates, 5000);
    assert_true(z.splits[3].step_us < z.splits[0].step_us / 3);
    /* What does not fit is not chosen: 140 GB of weights in 80 GB. */
    open_job(&g, 10000, 100, 16, 8, 80);
    z = splits_of(&g, &rates, 5000);
    assert_true(!z.splits[0].fits && z.splits[z.best].tensor_parallel > 1);
    open_job(&g, 10000, 100, 16, 1, 80);
    assert_int_equal(splits_of(&g, &rates, 5000).best, -1);
}

static void dear_collectives_argue_for_one_rank(void **state)
{
    (void)state;
    fkv_cost rates = fkv_cost_gpu(&shape_70b);
    gpu_job g;
    open_job(&g, 4000, 200, 16, 8, 400);
    rates.collective_us = 1e6;
    const fkv_sizing z = splits_of(&g, &rates, 1000);
    assert_int_equal(z.best, 0);
    assert_int_equal(g.layout.ranks, 1);
    assert_int_equal(g.layout.replicas, 8);
    assert_int_equal(g.layout.devices, 1);
}

static void every_split_has_slots_of_its_own(void **state)
{
    (void)state;
    const fkv_cost rates = fkv_cost_gpu(&shape_70b);
    gpu_job g;
    open_job(&g, 3000, 500, 0, 6, 400);
    fkv_sizing z = splits_of(&g, &rates, 100000);
    assert_int_equal(z.n_splits, 4); /* 1, 2, 3, 6 */
    for (int i = 0; i < 4; i++) assert_true(z.splits[i].slots >= 64);
    open_job(&g, 3000, 500, 0, 16, 400);
    z = splits_of(&g, &rates, 20);
    assert_int_equal(z.n_splits, 4); /* not 16: 8 heads */
    assert_int_equal(z.splits[3].tensor_parallel, 8);
    assert_int_equal(z.splits[3].data_parallel, 2);
    assert_true(z.splits[3].slots <= 10 && z.splits[0].slots <= 2); /* of a group's records */
    /* Little memory, few slots. */
    open_job(&g, 3000, 500, 0, 4, 41);
    z = splits_of(&g, &rates, 100000);
    assert_true(z.splits[2].fits && z.splits[2].slots < 64);
}

/* LongBench's lengths on two GPUs of 80 GB. */
static void a_small_model_becomes_replicas_and_a_large_one_ranks(void **state)
{
    (void)state;
    static const struct {
        const fkv_config *model;
        int64_t n_records;
        int prompt, answer, devices, ranks, replicas;
    } jobs[] = {
        {&shape_8b, 5000, 10000, 100, 2, 1, 2}, {&shape_70b, 5000, 10000, 100, 2, 2, 1},
        {&shape_8b, 5000, 10000, 100, 8, 1, 8}, {&shape_70b, 5000, 10000, 100, 8, 2, 4},
        {&shape_8b, 1000000, 200, 20, 4, 1, 4}, /* short ones, too */
        {&shape_8b, 1, 10000, 100, 2, 2, 1},    /* a replica without a record does nothing */
        {&shape_8b, 2, 30000, 16, 8, 4, 2},     /* two records, and replicas for both */
    };
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        gpu_job g;
        const fkv_cost rates = fkv_cost_gpu(jobs[i].model);
        open_model_job(&g, jobs[i].model, jobs[i].prompt, jobs[i].answer, 0, jobs[i].devices, 75);
        const fkv_sizing z = splits_of(&g, &rates, jobs[i].n_records);
        if (g.layout.ranks != jobs[i].ranks || g.layout.replicas != jobs[i].replicas)
            fail_msg("job %zu: %d replicas of %d ranks", i, g.layout.replicas, g.layout.ranks);
        assert_true(z.splits[z.best].job_us > 0);
        assert_true(fabs(z.splits[z.best].record_us * (double)jobs[i].n_records - z.splits[z.best].job_us) <
                    1e-6 * z.splits[z.best].job_us);
    }
}

static void ranks_that_the_job_says_get_as_many_replicas_as_there_are_records(void **state)
{
    (void)state;
    const fkv_cost rates = fkv_cost_gpu(&shape_8b);
    gpu_job g;
    open_model_job(&g, &shape_8b, 1000, 100, 0, 8, 75);
    g.setup.auto_ranks = false;
    g.setup.n_ranks = g.layout.ranks = g.layout.devices = 2;
    g.setup.n_replicas = g.layout.replicas = 4;
    splits_of(&g, &rates, 100);
    assert_int_equal(g.layout.replicas, 4);
    splits_of(&g, &rates, 3);
    assert_int_equal(g.layout.replicas, 3);
    assert_int_equal(g.layout.ranks, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_lie_on_lines_between_the_points),
        cmocka_unit_test(a_disturbed_point_is_no_slower_than_a_larger_one),
        cmocka_unit_test(records_follow_each_other_in_the_slots),
        cmocka_unit_test(prompts_give_both_rates),
        cmocka_unit_test(a_plateau_does_not_end_the_search),
        cmocka_unit_test(few_records_take_few_slots),
        cmocka_unit_test(slots_without_pages_are_not_taken),
        cmocka_unit_test(one_number_alone_is_kept),
        cmocka_unit_test(prefill_heavy_jobs_choose_few_ranks),
        cmocka_unit_test(dear_collectives_argue_for_one_rank),
        cmocka_unit_test(every_split_has_slots_of_its_own),
        cmocka_unit_test(a_small_model_becomes_replicas_and_a_large_one_ranks),
        cmocka_unit_test(ranks_that_the_job_says_get_as_many_replicas_as_there_are_records),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
