/* The largest record: what it is, that a plan's arenas hold it in every slot, and that no
 * slot and no plan refuses what another takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "engine/memory.h"
#include "model_shapes.h"
#include "runner/base/hash.h"

enum { LAYERS = 3, HEADS = 6, PAIRS = LAYERS * HEADS, MAX_RANKS = 6, MAX_SLOTS = 9 };

static bool fits(const fkv_record_limit *limit, const fkv_record_shape *s, int64_t n_tokens, int64_t max_new)
{
    return fkv_record_check(limit, s, n_tokens, max_new, NULL) == FKV_OK;
}

static uint64_t drawn;

static int64_t draw(int64_t n)
{
    return (int64_t)(fkv_random_u64(77, 3, drawn++) % (uint64_t)n);
}

static int64_t pages_of(int64_t tokens)
{
    return (tokens + FKV_PAGE_TOKENS - 1) / FKV_PAGE_TOKENS;
}

static int64_t need(const fkv_record_shape *s, int64_t lh, int64_t t, int64_t n)
{
    return pages_of((t < s->budgets[lh] ? t : s->budgets[lh]) + n);
}

static void pages_are_the_fullest_ranks(void **state)
{
    (void)state;
    static const int32_t budgets[8] = {100, 300, 1, 64, 1000, 20, 20, 20};
    const fkv_record_shape one = {2, 4, 1, budgets}, two = {2, 4, 2, budgets};
    /* 200 prompt tokens and 60 new: 2, 3, 1, 1 pages in layer 0, 3, 1, 1, 1 in layer 1 */
    assert_int_equal(fkv_record_pages(&one, 200, 60), 2 + 3 + 1 + 1 + 3 + 1 + 1 + 1);
    assert_int_equal(fkv_record_pages(&two, 200, 60), 2 + 3 + 3 + 1);
    assert_int_equal(fkv_record_pages(&two, 1, 1), 4);
}

static void a_refusal_names_both_numbers_and_the_keys(void **state)
{
    (void)state;
    static const int32_t budgets[8] = {100, 300, 1, 64, 1000, 20, 20, 20};
    const fkv_record_shape s = {2, 4, 2, budgets};
    const fkv_record_limit limit = {4000, 3000, 40};
    static const struct {
        int64_t t, n;
        const char *words[4];
    } cases[] = {{3000, 1001, {"3000 prompt and 1001 new", "4000 positions", "engine.max_new_tokens"}},
                 {3001, 5, {"3001 tokens", "3000", "model.max_prompt_tokens"}},
                 {2000, 2000, {"2000 prompt and 2000 new", "75 KV pages", "may have 40", "profile.budget"}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fkv_err err = {0};
        assert_int_equal(fkv_record_check(&limit, &s, cases[i].t, cases[i].n, &err), FKV_E_INPUT);
        assert_true(strlen(err.message) < 256); /* a row has room for so many */
        for (int w = 0; w < 4 && cases[i].words[w]; w++)
            if (!strstr(err.message, cases[i].words[w])) fail_msg("%s", err.message);
    }
    assert_true(fits(&limit, &s, 2000, 800));
    for (int64_t t = 1; t <= 3000; t += 7) {
        const int64_t n = fkv_record_most_new(&limit, &s, t);
        assert_true(n == 0 || fits(&limit, &s, t, n));
        assert_false(fits(&limit, &s, t, n + 1));
    }
}

/* A plan of placements drawn at random. */
static void draw_plan(fkv_plan *p, int n_ranks, int n_slots)
{
    *p = (fkv_plan){.n_layers = LAYERS, .n_kv_heads = HEADS, .n_ranks = n_ranks, .n_slots = n_slots};
    p->first = calloc(PAIRS + 1, sizeof *p->first);
    p->at = calloc((size_t)PAIRS * MAX_RANKS, sizeof *p->at);
    for (int i = 0; i < PAIRS; i++) {
        int at = p->first[i], begin = 0;
        for (int r = 0; r < n_ranks && begin < n_slots; r++) {
            const int end =
                r == n_ranks - 1 || draw(3) == 0 ? n_slots : begin + (int)draw(n_slots - begin + 1);
            if (end > begin) p->at[at++] = (fkv_placement){(r + i) % n_ranks, begin, end};
            begin = end;
        }
        p->first[i + 1] = at;
    }
}

/* The rank that decodes slot s of head h in layer l. */
static int owner_of(const fkv_plan *plan, int l, int h, int s)
{
    const size_t i = (size_t)l * plan->n_kv_heads + h;
    int at = plan->first[i];
    while (at + 1 < plan->first[i + 1] && s >= plan->at[at].end) at++;
    return plan->at[at].rank;
}

static void every_accepted_record_fits_every_slot(void **state)
{
    (void)state;
    for (int trial = 0; trial < 60; trial++) {
        fkv_err err = {0};
        int32_t budgets[PAIRS];
        int64_t one[MAX_RANKS], all[MAX_RANKS], loose = 0;
        fkv_plan plan;
        const int n_ranks = 1 + (int)draw(MAX_RANKS), n_slots = 1 + (int)draw(MAX_SLOTS);
        for (int i = 0; i < PAIRS; i++) budgets[i] = 1 + (int32_t)draw(draw(2) ? 3000 : 200);
        const fkv_record_shape s = {LAYERS, HEADS, n_ranks, budgets};
        const int64_t positions = 300 + draw(4000);
        const fkv_record_limit limit = {positions, 1 + draw(positions),
                                        fkv_record_pages(&s, 1, 1 + draw(positions - 1))};
        draw_plan(&plan, n_ranks, n_slots);
        assert_int_equal(fkv_plan_validate(&plan, &err), FKV_OK);
        assert_int_equal(fkv_record_demand(&limit, &s, &plan, one, all, &err), FKV_OK);
        for (int i = 0; i < 400; i++) {
            const int64_t t = 1 + draw(limit.prompt), n = fkv_record_most_new(&limit, &s, t);
            int64_t sum[MAX_RANKS] = {0};
            if (n == 0) continue;
            for (int slot = 0; slot < n_slots; slot++) {
                int64_t at[MAX_RANKS] = {0};
                for (int lh = 0; lh < PAIRS; lh++)
                    at[owner_of(&plan, lh / HEADS, lh % HEADS, slot)] += need(&s, lh, t, n);
                for (int r = 0; r < n_ranks; r++) {
                    if (at[r] > one[r])
                        fail_msg("rank %d: %lld of %lld", r, (long long)at[r], (long long)one[r]);
                    if (at[r] + PAIRS >= one[r]) loose = 1;
                    sum[r] += at[r];
                }
            }
            for (int r = 0; r < n_ranks; r++) assert_true(sum[r] <= all[r]);
        }
        assert_true(loose); /* and no more than a page a head is asked for in vain */
        fkv_plan_free(&plan);
    }
}

static void arenas_hold_one_and_share_the_rest(void **state)
{
    (void)state;
    const int64_t one[4] = {10, 20, 5, 0}, all[4] = {100, 220, 50, 0};
    int64_t pages[4], room[2] = {400, 50};
    int short_of = 7;
    assert_true(fkv_record_arenas(one, all, 4, 2, room, pages, &short_of));
    assert_int_equal(pages[0], 100);
    assert_int_equal(pages[1], 220);
    assert_int_equal(pages[2], 50);
    assert_int_equal(pages[3], 0);
    room[0] = 175;
    assert_true(fkv_record_arenas(one, all, 4, 2, room, pages, &short_of));
    assert_int_equal(pages[0], 10 + 45);
    assert_int_equal(pages[1], 20 + 100);
    room[1] = 4;
    assert_false(fkv_record_arenas(one, all, 4, 2, room, pages, &short_of));
    assert_int_equal(short_of, 1);
}

static fkv_memory_shape shape_of(int ranks, int slots, int64_t max_prompt)
{
    return (fkv_memory_shape){.config = &shape_8b,
                              .n_ranks = ranks,
                              .n_devices = ranks,
                              .n_slots = slots,
                              .max_prompt = max_prompt,
                              .act_bytes = 2,
                              .kv_bytes = 2,
                              .weight_bytes = 2,
                              .prefill_tile = 2048};
}

static const int64_t gib = (int64_t)1 << 30;

static void an_idle_device_always_has_the_same_nominal_memory(void **state)
{
    (void)state;
    const int64_t at = fkv_memory_nominal(80 * gib, 79 * gib, 0.9375);
    assert_int_equal(at, 75 * gib);
    assert_int_equal(fkv_memory_nominal(80 * gib, 76 * gib, 0.9375), at);
    assert_int_equal(fkv_memory_nominal(80 * gib, 61 * gib, 0.9375), 60 * gib);
    assert_int_equal(fkv_memory_nominal(80 * gib, 0, 0.9375), 0);
    assert_int_equal(fkv_memory_nominal(0, 0, 0.9375), 0);
}

static void records_are_limited_by_the_positions_or_the_nominal_memory(void **state)
{
    (void)state;
    static int32_t budgets[256];
    fkv_err err = {0};
    fkv_record_limit a, b;
    for (int i = 0; i < 256; i++) budgets[i] = 1024;
    fkv_memory_limit nominal = {75 * gib, 0.9};
    const fkv_memory_shape large = shape_of(1, 64, 32768);
    const fkv_record_shape record = {32, 8, 1, budgets};
    assert_int_equal(fkv_memory_record_limit(&large, &nominal, budgets, &a, &err), FKV_OK);
    /* 16 GiB of pages: whatever the model can do */
    assert_int_equal(a.pages, 256 * 1024);
    assert_int_equal(a.positions, 131072);
    assert_int_equal(a.prompt, 131072);
    assert_true(fits(&a, &record, 1000, 130000));
    /* 8 GiB are left beside the weights */
    nominal.bytes = 24 * gib;
    assert_int_equal(fkv_memory_record_limit(&large, &nominal, budgets, &b, &err), FKV_OK);
    assert_true(b.pages > 20000 && b.pages < 8 * gib / fkv_memory_page_bytes(&large));
    assert_true(b.prompt >= 32768 && b.prompt < 131072);
    assert_true(fits(&b, &record, 30000, 512));
    assert_false(fits(&b, &record, 1000, 130000));
    /* not even the weights */
    nominal.bytes = 12 * gib;
    assert_int_equal(fkv_memory_record_limit(&large, &nominal, budgets, &b, &err), FKV_OK);
    assert_int_equal(b.pages, 0);
}

static void standard_always_holds_the_limit_and_a_lopsided_plan_may_not(void **state)
{
    (void)state;
    static int32_t budgets[256];
    static int first[257];
    static fkv_placement home[256], away[256];
    fkv_err err = {0};
    fkv_record_limit limit;
    int short_of;
    for (int i = 0; i < 256; i++) {
        budgets[i] = 1024;
        first[i + 1] = i + 1;
        home[i] = (fkv_placement){i % 8 / 4, 0, 16};
        away[i] = (fkv_placement){i % 8 == 7, 0, 16};
    }
    const fkv_memory_shape s = shape_of(2, 16, 8192);
    const fkv_memory_limit nominal = {13 * gib, 0.9}, real = {14 * gib, 0.9};
    fkv_plan standard = {FKV_PLAN_STANDARD, 32, 8, 2, 16, first, home, 0, 0, 0, 0, 0}, lopsided = standard;
    lopsided.at = away;
    fkv_memory_shape longest = s;
    assert_int_equal(fkv_memory_record_limit(&s, &nominal, budgets, &limit, &err), FKV_OK);
    assert_true(limit.pages > 0 && limit.pages < 128 * 1024);
    longest.max_prompt = limit.prompt;
    assert_int_equal(fkv_memory_holds(&longest, &nominal, &standard, budgets, &limit, &short_of, &err),
                     FKV_OK);
    assert_int_equal(short_of, -1);
    longest.max_prompt++;
    assert_int_equal(fkv_memory_holds(&longest, &nominal, &standard, budgets, &limit, &short_of, &err),
                     FKV_OK);
    assert_int_equal(short_of, 0);
    longest.max_prompt--;
    assert_int_equal(fkv_memory_holds(&longest, &real, &lopsided, budgets, &limit, &short_of, &err), FKV_OK);
    assert_int_equal(short_of, 0);
}

/* As many heads and slots as anything allows: in moments, without overflow. */
static void absurd_sizes_end_soon(void **state)
{
    (void)state;
    enum { K = 1024 };
    fkv_err err = {0};
    int64_t one[1], all[1];
    int32_t *budgets = calloc((size_t)K * K, sizeof *budgets);
    int *first = calloc((size_t)K * K + 1, sizeof *first);
    fkv_placement *at = calloc((size_t)K * K, sizeof *at);
    for (int i = 0; i < K * K; i++) {
        budgets[i] = FKV_BUDGET_MAX - i;
        first[i + 1] = i + 1;
        at[i] = (fkv_placement){0, 0, FKV_PLAN_MAX_SLOTS};
    }
    const fkv_record_shape s = {K, K, 1, budgets};
    const fkv_record_limit limit = {1 << 27, 1 << 27, (int64_t)1 << 50};
    const fkv_plan plan = {FKV_PLAN_STANDARD, K, K, 1, FKV_PLAN_MAX_SLOTS, first, at, 0, 0, 0, 0, 0};
    assert_int_equal(fkv_record_demand(&limit, &s, &plan, one, all, &err), FKV_OK);
    assert_true(one[0] >= ((int64_t)1 << 40) && all[0] == one[0] * FKV_PLAN_MAX_SLOTS);
    free(at);
    free(first);
    free(budgets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_the_fullest_ranks),
        cmocka_unit_test(a_refusal_names_both_numbers_and_the_keys),
        cmocka_unit_test(every_accepted_record_fits_every_slot),
        cmocka_unit_test(arenas_hold_one_and_share_the_rest),
        cmocka_unit_test(an_idle_device_always_has_the_same_nominal_memory),
        cmocka_unit_test(records_are_limited_by_the_positions_or_the_nominal_memory),
        cmocka_unit_test(standard_always_holds_the_limit_and_a_lopsided_plan_may_not),
        cmocka_unit_test(absurd_sizes_end_soon),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
