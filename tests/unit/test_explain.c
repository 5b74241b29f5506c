/* The explanation of a plan: its table, and the picture at several sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/mem.h"
#include "runner/explain.h"

/* A planned run of a made-up model; close frees what open made. */
typedef struct example {
    fkv_setup setup;
    fkv_job job;
    fkv_planning planning;
    fkv_explanation x;
    char *text;
    size_t n_text;
} example;

static void open_example(example *e, int n_layers, int n_heads, int ranks, int slots, bool even)
{
    fkv_err err = {0};
    *e = (example){0};
    e->job.job.name = (char *)"a <job> & \"more\"";
    e->job.plan.max_copies = -1;
    e->setup = (fkv_setup){.job = &e->job, .n_ranks = ranks, .n_devices = ranks, .n_slots = slots};
    e->setup.config = (fkv_config){.n_layers = n_layers,
                                   .n_heads = 4 * n_heads,
                                   .n_kv_heads = n_heads,
                                   .head_dim = 128,
                                   .group = 4,
                                   .hidden = 4096,
                                   .intermediate = 14336,
                                   .vocab = 128256,
                                   .max_positions = 8192};
    fkv_planning *p = &e->planning;
    p->constants.cost = (fkv_cost){.t0_us = 4, .head_us = 1.5, .token_us = 0.00012, .common_us = 10};
    p->sizing.limit = (fkv_memory_limit){(int64_t)40 << 30, 0.9};
    p->sizing.lengths = (fkv_memory_lengths){4000, 100};
    p->sizing.shape = (fkv_memory_shape){.config = &e->setup.config,
                                         .n_ranks = ranks,
                                         .n_devices = ranks,
                                         .n_slots = slots,
                                         .max_prompt = 4000,
                                         .act_bytes = 2,
                                         .kv_bytes = 2,
                                         .weight_bytes = 2,
                                         .prefill_tile = 1024};
    assert_int_equal(fkv_profile_init(&p->profile, n_layers, n_heads, &err), FKV_OK);
    for (int i = 0; i < n_layers * n_heads; i++) {
        const double u = (double)(fkv_random_u64(11, 0, (uint64_t)i) % 1000) / 1000;
        p->profile.budgets[i] = even ? 512 : 40 + (int32_t)(3000 * u * u * u * u);
    }
    double *tokens = fkv_calloc((size_t)(n_layers * n_heads), sizeof *tokens);
    assert_non_null(tokens);
    fkv_cost_tokens(&p->profile, tokens);
    const fkv_plan_problem problem = {n_layers, n_heads, ranks, slots, tokens, p->constants.cost, -1, 0};
    assert_int_equal(fkv_plan_solve(&problem, FKV_PLAN_FAIR_COPYING, &p->plan, &err), FKV_OK);
    free(tokens);
    assert_int_equal(fkv_explain_make(&e->setup, p, &e->x, &err), FKV_OK);
    FILE *f = open_memstream(&e->text, &e->n_text);
    assert_non_null(f);
    fkv_explain_print(&e->setup, p, &e->x, f);
    fclose(f);
}

static void close_example(example *e)
{
    free(e->text);
    fkv_explain_free(&e->x);
    fkv_planning_free(&e->planning);
}

static void the_table_compares_the_modes(void **state)
{
    (void)state;
    example e;
    open_example(&e, 32, 8, 8, 64, false);
    const char *const words[] = {"modelled decode step, us, each rank on a device of its own",
                                 "segment",
                                 "fullest/mean",
                                 "slots fit",
                                 "  standard ",
                                 "best-effort",
                                 "* fair-copying",
                                 "bound",
                                 "  context-parallel",
                                 "  attention-dp",
                                 "not run by this engine",
                                 "is the fullest",
                                 "would fit, with standard"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strstr(e.text, words[i])) fail_msg("no \"%s\" in\n%s", words[i], e.text);
    assert_null(strstr(e.text, "little to gain"));
    assert_true(e.x.balance[FKV_PLAN_FAIR_COPYING] < e.x.balance[FKV_PLAN_STANDARD]);
    assert_true(e.x.slots_fit[FKV_PLAN_FAIR_COPYING] > e.x.slots_fit[FKV_PLAN_STANDARD]);
    close_example(&e);
    open_example(&e, 32, 8, 8, 64, true);
    assert_non_null(strstr(e.text, "little to gain: the budgets are even over the ranks"));
    close_example(&e);
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, what)); at++) n++;
    return n;
}

static void the_picture_has_every_load_and_budget(void **state)
{
    (void)state;
    static const int sizes[][3] = {{1, 1, 1}, {32, 8, 8}, {80, 8, 4}, {80, 64, 16}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int layers = sizes[i][0], heads = sizes[i][1], ranks = sizes[i][2];
        char path[] = "/tmp/fkv-svg-XXXXXX";
        const int fd = mkstemp(path);
        example e;
        fkv_err err = {0};
        fkv_buf text = {0};
        assert_true(fd >= 0);
        close(fd);
        open_example(&e, layers, heads, ranks, 64, false);
        assert_int_equal(fkv_explain_svg(&e.setup, &e.planning, &e.x, path, &err), FKV_OK);
        assert_int_equal(fkv_file_read(path, (int64_t)1 << 24, &text, &err), FKV_OK);
        unlink(path);
        assert_int_equal(count(text.data, "class=\"slow\"") + count(text.data, "class=\"rank\""),
                         2 * layers * ranks + 2); /* and the legend */
        assert_int_equal(count(text.data, "class=\"mean\""), 2 * layers + 1);
        assert_int_equal(count(text.data, "class=\"cell\""), layers * heads + 5);
        assert_non_null(strstr(text.data, "a &lt;job&gt; &amp; &quot;more&quot;"));
        assert_null(strstr(text.data, "nan"));
        assert_null(strstr(text.data, "inf"));
        assert_string_equal(text.data + text.len - 7, "</svg>\n");
        fkv_buf_free(&text);
        close_example(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_compares_the_modes),
        cmocka_unit_test(the_picture_has_every_load_and_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
