/* The plan: what every plan must be, how good it is against brute force, and
 * plan.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/plan/partition.h"
#include "engine/plan/plan.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"

enum { MAX_HEADS = 16, MAX_LAYERS = 4 };

/* A random problem of its number; owns its tokens. */
typedef struct instance {
    fkv_plan_problem p;
    double tokens[MAX_LAYERS * MAX_HEADS];
    uint64_t seed, drawn;
} instance;

static uint64_t draw(instance *in, uint64_t below)
{
    return fkv_random_u64(20250214, in->seed, in->drawn++) % below;
}

static double draw_unit(instance *in)
{
    return (double)draw(in, 1 << 20) / (1 << 20);
}

static double draw_tokens(instance *in, int kind)
{
    switch (kind) {
    case 0: return 32 + draw_unit(in) * 1000;
    case 1: return 32 * exp(6 * draw_unit(in)); /* a few heavy heads */
    case 2: return 64;
    case 3: return draw(in, 3) ? 0 : 500;             /* weightless heads */
    default: return (double)(32 * (1 + draw(in, 4))); /* many ties */
    }
}

static void make_instance(instance *in, uint64_t seed, int max_layers, int max_heads, int max_ranks,
                          int max_slots)
{
    *in = (instance){.seed = seed};
    const double head_us[] = {0, 0.5, 5, 40};
    const int kind = (int)draw(in, 5), slots = 1 + (int)draw(in, (uint64_t)max_slots);
    fkv_plan_problem *p = &in->p;
    p->n_layers = 1 + (int)draw(in, (uint64_t)max_layers);
    p->n_kv_heads = 1 + (int)draw(in, (uint64_t)max_heads);
    p->n_ranks = 1 + (int)draw(in, (uint64_t)(p->n_kv_heads < max_ranks ? p->n_kv_heads : max_ranks));
    p->n_slots = slots;
    p->max_copies = draw(in, 2) ? -1 : (int)draw(in, 6);
    p->tokens = in->tokens;
    p->cost = (fkv_cost){.t0_us = draw(in, 2) ? 0 : 3,
                         .head_us = head_us[draw(in, 4)] * draw_unit(in),
                         .slot_head_us = draw(in, 2) ? 0 : 0.05,
                         .token_us = 0.001 + 0.05 * draw_unit(in),
                         .common_us = draw(in, 2) ? 0 : 10};
    for (int i = 0; i < p->n_layers * p->n_kv_heads; i++) in->tokens[i] = draw_tokens(in, kind);
}

static void solve(const fkv_plan_problem *p, fkv_plan_mode mode, fkv_plan *plan)
{
    fkv_err err = {0};
    if (fkv_plan_solve(p, mode, plan, &err)) fail_msg("%s", err.message);
}

static int layer_copies(const fkv_plan *plan, int l)
{
    int n = 0;
    for (int h = 0; h < plan->n_kv_heads; h++) {
        const int i = l * plan->n_kv_heads + h;
        for (int at = plan->first[i]; at < plan->first[i + 1]; at++)
            n += plan->at[at].rank != fkv_partition_home(h, plan->n_kv_heads, plan->n_ranks);
    }
    return n;
}

/* All that holds for any plan of a problem. */
static void check_plan(const fkv_plan_problem *p, const fkv_plan *plan)
{
    const double predicted[] = {plan->standard_us, plan->best_effort_us, plan->fair_copying_us};
    fkv_err err = {0};
    if (fkv_plan_validate(plan, &err)) fail_msg("%s", err.message);
    int copies = 0;
    for (int l = 0; l < p->n_layers; l++) {
        const int n = layer_copies(plan, l);
        assert_true(p->max_copies < 0 || n <= p->max_copies);
        copies += n;
        for (int h = 0; h < p->n_kv_heads; h++) {
            const int i = l * p->n_kv_heads + h, home = fkv_partition_home(h, p->n_kv_heads, p->n_ranks);
            const int n_at = plan->first[i + 1] - plan->first[i];
            if (plan->mode != FKV_PLAN_FAIR_COPYING) assert_int_equal(n_at, 1);
            if (plan->mode == FKV_PLAN_STANDARD) assert_int_equal(plan->at[plan->first[i]].rank, home);
            for (int at = plan->first[i]; at < plan->first[i + 1]; at++) {
                /* The home has the lowest slots; a rank has one range. */
                if (plan->at[at].rank == home) assert_int_equal(plan->at[at].begin, 0);
                for (int before = plan->first[i]; before < at; before++)
                    assert_int_not_equal(plan->at[before].rank, plan->at[at].rank);
            }
        }
    }
    assert_int_equal(copies, fkv_plan_copies(plan));
    assert_true(fkv_plan_step_us(p, plan) == predicted[plan->mode]);
    assert_true(plan->lower_bound_us <= plan->fair_copying_us);
    assert_true(plan->fair_copying_us <= plan->best_effort_us);
    assert_true(plan->best_effort_us <= plan->standard_us);
}

static void homes_are_contiguous_and_even(void **state)
{
    (void)state;
    for (int k = 1; k <= 24; k++)
        for (int r = 1; r <= k; r++)
            for (int rank = 0; rank < r; rank++)
                for (int h = rank * k / r; h < (rank + 1) * k / r; h++)
                    assert_int_equal(fkv_partition_home(h, k, r), rank);
}

static uint64_t n_random = 20000, n_random_alone = 2000;

static void random_plans_are_sound(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < n_random; seed++) {
        instance in;
        fkv_plan plan;
        make_instance(&in, seed, 2, seed % 16 ? 6 : 12, 8, 48);
        solve(&in.p, (fkv_plan_mode)(seed % 3), &plan);
        check_plan(&in.p, &plan);
        fkv_plan_free(&plan);
    }
}

/* Each mode solved on its own and timed by its placements alone. */
static void random_modes_keep_their_order(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < n_random_alone; i++) {
        instance in;
        double us[3], bound = 0;
        make_instance(&in, 4000000 + i, 2, i % 16 ? 8 : 14, 8, 64);
        for (int m = 0; m < 3; m++) {
            fkv_plan plan;
            solve(&in.p, (fkv_plan_mode)m, &plan);
            us[m] = fkv_plan_step_us(&in.p, &plan);
            bound = plan.lower_bound_us;
            fkv_plan_free(&plan);
        }
        if (!(bound <= us[2] && us[2] <= us[1] && us[1] <= us[0]))
            fail_msg("instance %d: bound %.17g, fair-copying %.17g, best-effort %.17g, standard %.17g",
                     (int)i, bound, us[2], us[1], us[0]);
    }
}

static void every_mode_reports_the_same_predictions(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        instance in;
        fkv_plan plan[3], again;
        make_instance(&in, 1000000 + seed, MAX_LAYERS, 10, 8, 64);
        for (int m = 0; m < 3; m++) {
            solve(&in.p, (fkv_plan_mode)m, &plan[m]);
            check_plan(&in.p, &plan[m]);
            assert_memory_equal(&plan[m].standard_us, &plan[0].standard_us, 4 * sizeof(double));
        }
        solve(&in.p, FKV_PLAN_FAIR_COPYING, &again);
        const int n = plan[2].first[in.p.n_layers * in.p.n_kv_heads];
        assert_int_equal(again.first[in.p.n_layers * in.p.n_kv_heads], n);
        assert_memory_equal(again.at, plan[2].at, (size_t)n * sizeof *again.at);
        fkv_plan_free(&again);
        for (int m = 0; m < 3; m++) fkv_plan_free(&plan[m]);
    }
}

/* ---- brute force: every way to share every head's slots out, one layer ---- */

static uint64_t n_brute = 600;

typedef struct brute {
    const fkv_plan_problem *p;
    bool whole;
    int copies;
    double load[MAX_HEADS], best;
} brute;

static void try_all(brute *b, int h, int r, int slots)
{
    const fkv_plan_problem *p = b->p;
    if (!slots) {
        if (++h == p->n_kv_heads) {
            double us = 0;
            for (int i = 0; i < p->n_ranks; i++) us = b->load[i] > us ? b->load[i] : us;
            if (us < b->best) b->best = us;
            return;
        }
        r = 0;
        slots = p->n_slots;
    }
    if (r == p->n_ranks) return;
    const double before = b->load[r];
    const int copy = r != fkv_partition_home(h, p->n_kv_heads, p->n_ranks);
    try_all(b, h, r + 1, slots);
    if (p->max_copies >= 0 && b->copies + copy > p->max_copies) return;
    b->copies += copy;
    for (int n = b->whole ? slots : 1; n <= slots; n++) {
        b->load[r] = before + p->cost.head_us + n * (p->cost.slot_head_us + p->cost.token_us * p->tokens[h]);
        try_all(b, h, r + 1, slots - n);
    }
    b->copies -= copy;
    b->load[r] = before;
}

static double brute_force(const fkv_plan_problem *p, bool whole)
{
    brute b = {.p = p, .whole = whole, .best = DBL_MAX};
    for (int r = 0; r < p->n_ranks; r++) b.load[r] = p->cost.t0_us;
    try_all(&b, -1, 0, 0);
    return b.best + p->cost.common_us;
}

static void small_plans_are_optimal(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < n_brute; seed++) {
        instance in;
        fkv_plan plan;
        make_instance(&in, 2000000 + seed, 1, 4, 3, 4);
        solve(&in.p, FKV_PLAN_FAIR_COPYING, &plan);
        check_plan(&in.p, &plan);
        const double share = brute_force(&in.p, false), whole = brute_force(&in.p, true);
        if (fabs(plan.fair_copying_us - share) > 3e-9 * share)
            fail_msg("instance %d: %.12g us, brute force %.12g", (int)seed, plan.fair_copying_us, share);
        if (fabs(plan.best_effort_us - whole) > 3e-9 * whole)
            fail_msg("instance %d: best effort %.12g us, brute force %.12g", (int)seed, plan.best_effort_us,
                     whole);
        /* Proven optimal: the bound has met the plan. */
        assert_true(plan.lower_bound_us <= share * (1 + 1e-12));
        assert_true(plan.lower_bound_us >= share * (1 - 3e-9));
        fkv_plan_free(&plan);
    }
}

/* ---- known cases ---- */

static void heavy_heads_are_shared_out(void **state)
{
    (void)state;
    /* needle-tiny's on the CPU, by stated rates */
    const fkv_cost cost = {.n_ranks = 1,
                           .t0_us = 2,
                           .head_us = 13.1072,
                           .slot_head_us = 0.05,
                           .token_us = 0.0512,
                           .common_us = 85.1968};
    const double heavy[2][4] = {{800, 32, 32, 32}, {32, 32, 800, 32}};
    double tokens[16];
    for (int i = 0; i < 16; i++) tokens[i] = heavy[i / 4 % 2][i % 4] + 6;
    fkv_plan_problem p = {.n_layers = 4,
                          .n_kv_heads = 4,
                          .n_ranks = 4,
                          .n_slots = 64,
                          .tokens = tokens,
                          .cost = cost,
                          .max_copies = -1};
    fkv_plan plan;
    solve(&p, FKV_PLAN_FAIR_COPYING, &plan);
    check_plan(&p, &plan);
    assert_true(plan.fair_copying_us < 0.75 * plan.standard_us);
    assert_true(plan.fair_copying_us < 1.02 * plan.lower_bound_us);
    assert_true(fkv_plan_copies(&plan) >= 4);
    fkv_plan_free(&plan);

    /* One copy a layer: at best it halves the heavy head. */
    p.max_copies = 1;
    solve(&p, FKV_PLAN_FAIR_COPYING, &plan);
    check_plan(&p, &plan);
    assert_int_equal(fkv_plan_copies(&plan), 4);
    assert_true(plan.lower_bound_us > 0.9 * plan.fair_copying_us);
    fkv_plan_free(&plan);
}

static void what_ranks_read_is_moved_and_never_lost(void **state)
{
    (void)state;
    const double tokens[] = {800, 40, 60, 20, 10, 10, 10, 10}; /* [2][4] */
    const fkv_plan_problem p = {.n_layers = 2,
                                .n_kv_heads = 4,
                                .n_ranks = 2,
                                .n_slots = 10,
                                .tokens = tokens,
                                .cost = {.n_ranks = 1, .token_us = 1},
                                .max_copies = -1};
    fkv_plan plan, home;
    fkv_err err = {0};
    double before[2], after[2];
    solve(&p, FKV_PLAN_FAIR_COPYING, &plan);
    assert_int_equal(fkv_plan_at_home(&plan, &home, &err), FKV_OK);
    assert_int_equal(fkv_plan_validate(&home, &err), FKV_OK);
    assert_int_equal(fkv_plan_copies(&home), 0);
    assert_true(home.mode == FKV_PLAN_STANDARD && home.step_us == plan.standard_us);
    fkv_plan_loads(&home, tokens, 0, before);
    assert_true(before[0] == 8400 && before[1] == 800);
    fkv_plan_loads(&plan, tokens, 0, after);
    assert_true(after[0] + after[1] == 9200 && after[0] < 8400 && after[1] < 8400);
    fkv_plan_loads(&home, tokens, 1, before);
    assert_true(before[0] == 200 && before[1] == 200);
    /* (8400 + 200) of two ranks that read 9600 together */
    assert_true(fkv_plan_balance(&home, tokens) == 8600.0 * 2 / 9600);
    assert_true(fkv_plan_balance(&plan, tokens) < 1.1);
    fkv_plan_free(&home);
    fkv_plan_free(&plan);
}

static void even_heads_stay_at_home(void **state)
{
    (void)state;
    double tokens[2 * 8];
    for (int i = 0; i < 16; i++) tokens[i] = 32;
    for (int ranks = 1; ranks <= 8; ranks *= 2)
        for (int slots = 1; slots <= 64; slots *= 64) {
            const fkv_plan_problem p = {.n_layers = 2,
                                        .n_kv_heads = 8,
                                        .n_ranks = ranks,
                                        .n_slots = slots,
                                        .tokens = tokens,
                                        .cost = {.head_us = 1, .token_us = 0.01},
                                        .max_copies = -1};
            fkv_plan plan;
            solve(&p, FKV_PLAN_FAIR_COPYING, &plan);
            check_plan(&p, &plan);
            assert_int_equal(fkv_plan_copies(&plan), 0);
            assert_true(plan.lower_bound_us > plan.standard_us * (1 - 1e-8));
            fkv_plan_free(&plan);
        }
}

static void one_slot_cannot_be_shared(void **state)
{
    (void)state;
    const double tokens[4] = {800, 32, 600, 32};
    const fkv_plan_problem p = {.n_layers = 1,
                                .n_kv_heads = 4,
                                .n_ranks = 2,
                                .n_slots = 1,
                                .tokens = tokens,
                                .cost = {.token_us = 1},
                                .max_copies = -1};
    fkv_plan plan;
    solve(&p, FKV_PLAN_FAIR_COPYING, &plan);
    check_plan(&p, &plan);
    /* The light head leaves; the heavy one stays whole. */
    assert_true(plan.standard_us == 832 && plan.fair_copying_us == 800);
    assert_true(plan.lower_bound_us > 799.99);
    assert_int_equal(fkv_plan_copies(&plan), 1);
    fkv_plan_free(&plan);
}

/* A copy costs more than it saves: the plan keeps the standard split. */
static void dear_copies_are_not_made(void **state)
{
    (void)state;
    const double tokens[4] = {300, 100, 100, 100};
    const fkv_plan_problem p = {.n_layers = 1,
                                .n_kv_heads = 4,
                                .n_ranks = 4,
                                .n_slots = 8,
                                .tokens = tokens,
                                .cost = {.head_us = 5000, .token_us = 1},
                                .max_copies = -1};
    fkv_plan plan;
    solve(&p, FKV_PLAN_FAIR_COPYING, &plan);
    assert_int_equal(fkv_plan_copies(&plan), 0);
    assert_true(plan.lower_bound_us > plan.standard_us * (1 - 1e-8));
    fkv_plan_free(&plan);
}

/* Large models: 80 layers like a 70B's, some heads ten times the others. */
static void large_plans_are_near_their_bound(void **state)
{
    (void)state;
    enum { L = 80, K = 8 };
    static double tokens[L * K];
    for (int i = 0; i < L * K; i++)
        tokens[i] = 200 + 3000 * pow((double)(fkv_random_u64(3, 0, (uint64_t)i) % 1000) / 1000, 4);
    for (int ranks = 2; ranks <= 8; ranks *= 2)
        for (int slots = 16; slots <= 256; slots *= 4) {
            const fkv_plan_problem p = {.n_layers = L,
                                        .n_kv_heads = K,
                                        .n_ranks = ranks,
                                        .n_slots = slots,
                                        .tokens = tokens,
                                        .cost = {.head_us = 4.9, .token_us = 0.00012},
                                        .max_copies = -1};
            fkv_plan plan;
            solve(&p, FKV_PLAN_FAIR_COPYING, &plan);
            check_plan(&p, &plan);
            assert_true(plan.fair_copying_us <= plan.lower_bound_us * (slots == 16 ? 1.04 : 1.02));
            fkv_plan_free(&plan);
        }
}

static void wrong_problems_are_refused(void **state)
{
    (void)state;
    double tokens[4] = {1, 2, 3, 4};
    const fkv_plan_problem good = {.n_layers = 1,
                                   .n_kv_heads = 4,
                                   .n_ranks = 2,
                                   .n_slots = 4,
                                   .tokens = tokens,
                                   .cost = {.token_us = 1},
                                   .max_copies = -1};
    fkv_plan plan;
    for (int i = 0; i < 9; i++) {
        const char *const want[] = {"more ranks (5) than KV heads (4)",
                                    "0 ranks",
                                    "0 slots",
                                    "max_copies",
                                    "head_us",
                                    "token_us",
                                    "layer 0, head 1",
                                    "layer 0, head 1",
                                    "layers"};
        fkv_plan_problem p = good;
        fkv_err err = {0};
        tokens[1] = i == 6 ? NAN : i == 7 ? -1 : 2;
        if (i == 0) p.n_ranks = 5;
        if (i == 1) p.n_ranks = 0;
        if (i == 2) p.n_slots = 0;
        if (i == 3) p.max_copies = -2;
        if (i == 4) p.cost.head_us = -1;
        if (i == 5) p.cost.token_us = INFINITY;
        if (i == 8) p.n_layers = INT32_MAX;
        assert_int_equal(fkv_plan_solve(&p, FKV_PLAN_FAIR_COPYING, &plan, &err), FKV_E_INPUT);
        if (!strstr(err.message, want[i])) fail_msg("\"%s\" lacks \"%s\"", err.message, want[i]);
        assert_null(plan.at);
    }
}

static void tokens_are_expected_not_budgeted(void **state)
{
    (void)state;
    int32_t budgets[2] = {100, 1000}, lengths[2] = {50, 400};
    fkv_profile profile = {.n_layers = 1,
                           .n_kv_heads = 2,
                           .budgets = budgets,
                           .prompt_tokens = lengths,
                           .n_sample = 2,
                           .mean_output = 20};
    double tokens[2];
    fkv_cost_tokens(&profile, tokens);
    assert_true(tokens[0] == 75 + 10 && tokens[1] == 225 + 10);
    profile.n_sample = 0;
    fkv_cost_tokens(&profile, tokens);
    assert_true(tokens[0] == 110 && tokens[1] == 1010);
}

/* ---- plan.json ---- */

static char dir[] = "/tmp/fkv-plan-XXXXXX";
static char path[64];

static int make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/plan.json", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

static void write_small_plan(fkv_plan *plan)
{
    static const double tokens[8] = {800, 32, 32, 32, 32, 32, 800, 32};
    const fkv_plan_problem p = {.n_layers = 2,
                                .n_kv_heads = 4,
                                .n_ranks = 4,
                                .n_slots = 64,
                                .tokens = tokens,
                                .cost = {.t0_us = 2, .head_us = 13.1072, .token_us = 0.0512},
                                .max_copies = -1};
    fkv_err err = {0};
    solve(&p, FKV_PLAN_FAIR_COPYING, plan);
    if (fkv_plan_write(plan, "00ff\"x", "\"a\":1,\"b\":[2]", path, &err)) fail_msg("%s", err.message);
}

static void a_written_plan_reads_back(void **state)
{
    (void)state;
    fkv_plan plan, back;
    char *print = NULL;
    fkv_err err = {0};
    write_small_plan(&plan);
    if (fkv_plan_read(path, &back, &print, &err)) fail_msg("%s %s", err.key, err.message);
    assert_string_equal(print, "00ff\"x");
    assert_int_equal(back.mode, plan.mode);
    assert_int_equal(back.n_layers, plan.n_layers);
    assert_int_equal(back.n_kv_heads, plan.n_kv_heads);
    assert_int_equal(back.n_ranks, plan.n_ranks);
    assert_int_equal(back.n_slots, plan.n_slots);
    assert_memory_equal(back.first, plan.first, 9 * sizeof *plan.first);
    assert_memory_equal(back.at, plan.at, (size_t)plan.first[8] * sizeof *plan.at);
    assert_memory_equal(&back.standard_us, &plan.standard_us, 4 * sizeof(double));
    free(print);
    fkv_plan_free(&back);
    fkv_plan_free(&plan);
}

/* Writes the good plan with its first `from` replaced by `to`. */
static void write_changed(const char *from, const char *to)
{
    fkv_plan plan;
    fkv_buf text = {0}, out = {0};
    write_small_plan(&plan);
    fkv_plan_free(&plan);
    assert_int_equal(fkv_file_read(path, 1 << 20, &text, NULL), FKV_OK);
    const char *at = strstr(text.data, from);
    if (!at) fail_msg("no %s in %s", from, text.data);
    assert_int_equal(fkv_buf_append(&out, text.data, (size_t)(at - text.data), NULL), FKV_OK);
    assert_int_equal(fkv_buf_puts(&out, to, NULL), FKV_OK);
    assert_int_equal(fkv_buf_puts(&out, at + strlen(from), NULL), FKV_OK);
    assert_int_equal(fkv_file_replace(path, out.data, out.len, NULL), FKV_OK);
    fkv_buf_free(&out);
    fkv_buf_free(&text);
}

static void a_damaged_plan_is_refused_by_field(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *key;
    } cases[] = {
        {"fairkv-plan/1", "fairkv-plan/2", "format"},
        {"\"format\"", "\"formed\"", "format"},
        {"fair-copying", "fair", "mode"},
        {"\"ranks\":4", "\"ranks\":0", "ranks"},
        {"\"ranks\":4", "\"ranks\":5", "ranks"},
        {"\"ranks\":4", "\"ranks\":\"4\"", "ranks"},
        {"\"ranks\":4", "\"ranks\":3", "layers[0].heads[0].placements"},
        {"\"slots\":64", "\"slots\":63", "layers[0].heads[0].placements[3].slots"},
        {"\"slots\":64", "\"slots\":65", "layers[0].heads[0].placements"},
        {"\"slots\":64", "\"slots\":99999999999", "slots"},
        {"\"fingerprint\":\"", "\"fingerprint\":7,\"f\":\"", "fingerprint"},
        {"\"layers\"", "\"layer\"", "layers"},
        {"\"layers\":[", "\"layers\":[7,", "layers[0]"},
        {"\"layers\":[", "\"layers\":[{\"heads\":[]},", "layers[0].heads"},
        {"{\"heads\":[", "{\"heads\":[{},", "layers[0].heads[0].head"},
        {"]},\n {\"heads\":[", "]},\n {\"heads\":[{},", "layers[1].heads"},
        {"\"head\":1", "\"head\":0", "layers[0].heads[1].head"},
        {"\"home\":1", "\"home\":2", "layers[0].heads[1].home"},
        {"\"home\":1,\"placements\":[", "\"home\":1,\"placements\":[],\"x\":[",
         "layers[0].heads[1].placements"},
        {"\"rank\":0", "\"rank\":-1", "layers[0].heads[0].placements[0].rank"},
        {"\"rank\":0", "\"rank\":4", "layers[0].heads[0].placements[0].rank"},
        {"\"rank\":1", "\"rank\":0", "layers[0].heads[0].placements[1].rank"},
        {"\"slots\":[0,", "\"slots\":[1,", "layers[0].heads[0].placements[0].slots"},
        {"\"slots\":[0,", "\"slots\":[0,0,", "layers[0].heads[0].placements[0].slots"},
        {"\"slots\":[0,", "\"slots\":[0.5,", "layers[0].heads[0].placements[0].slots"},
        {"\"predicted\"", "\"expected\"", "predicted"},
        {"\"best_effort_us\":", "\"best_effort_us\":-", "predicted.best_effort_us"},
        {"\"lower_bound_us\":", "\"lower_bound_us\":null,\"x\":", "predicted.lower_bound_us"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fkv_plan plan;
        char *print = NULL;
        fkv_err err = {0};
        write_changed(cases[i].from, cases[i].to);
        assert_int_equal(fkv_plan_read(path, &plan, &print, &err), FKV_E_INPUT);
        assert_string_equal(err.file, path);
        if (strcmp(err.key, cases[i].key))
            fail_msg("%s for %s: error at \"%s\" (%s), not \"%s\"", cases[i].to, cases[i].from, err.key,
                     err.message, cases[i].key);
        assert_null(plan.at);
        assert_null(print);
    }
}

/* Arguments: random instances solved by brute force; random instances of all kinds. */
int main(int argc, char **argv)
{
    if (argc > 1) n_brute = strtoull(argv[1], NULL, 10);
    if (argc > 2) n_random = n_random_alone = strtoull(argv[2], NULL, 10);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(homes_are_contiguous_and_even),
        cmocka_unit_test(random_plans_are_sound),
        cmocka_unit_test(random_modes_keep_their_order),
        cmocka_unit_test(every_mode_reports_the_same_predictions),
        cmocka_unit_test(small_plans_are_optimal),
        cmocka_unit_test(heavy_heads_are_shared_out),
        cmocka_unit_test(what_ranks_read_is_moved_and_never_lost),
        cmocka_unit_test(even_heads_stay_at_home),
        cmocka_unit_test(one_slot_cannot_be_shared),
        cmocka_unit_test(dear_copies_are_not_made),
        cmocka_unit_test(large_plans_are_near_their_bound),
        cmocka_unit_test(wrong_problems_are_refused),
        cmocka_unit_test(tokens_are_expected_not_budgeted),
        cmocka_unit_test(a_written_plan_reads_back),
        cmocka_unit_test(a_damaged_plan_is_refused_by_field),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
