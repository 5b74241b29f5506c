/* The schedule over made-up devices: every record ends whatever the arenas, limits and
 * lengths; no page serves two at a time, also while tokens come back late; and slots are
 * busy where there is work for them.
 *
 * usage: test_schedule [N [FIRST]]   N random instances instead of 300, from seed FIRST on */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/schedule.h"
#include "runner/base/hash.h"

static int n_instances = 300;
static uint64_t first_seed = 0;

enum { MAX_RECORDS = 200 };

typedef struct record {
    int64_t n_tokens, limit;
    int64_t length;    /* of its answer */
    bool host_ends_it; /* by a stop string, which the device does not know of */
    int64_t ended;     /* times */
    int64_t got;       /* tokens handed back of its last run */
} record;

/* What a page holds: (record, head, its index there); -1: nothing. */
typedef struct page {
    int record, lh;
    int64_t index;
} page;

/* A device as the kernels see it: slots, page table, pages. */
typedef struct sim_slot {
    bool active;
    int record;
    int64_t n_tokens, n_new, max_new;
} sim_slot;

typedef struct sim {
    fkv_kv kv;
    fkv_plan plan;
    int32_t *budgets;
    fkv_schedule *schedule;
    record *records;
    int n_records, n_taken;
    bool late; /* tokens come back a command late */
    int64_t worth_rows, max_rows;
    sim_slot *slots;
    int32_t *table;
    page **pages;    /* [n_ranks][n_pages] */
    int32_t *out[2]; /* by command number */
    int64_t full_steps,
        full_tokens; /* while records wait: steps, and tokens of runs that were not abandoned */
    int64_t busy_at_full;
} sim;

static uint64_t draw(uint64_t seed, uint64_t *n)
{
    return fkv_random_u64(seed, 77, (*n)++);
}

static int64_t between(uint64_t seed, uint64_t *n, int64_t lo, int64_t hi)
{
    return lo + (int64_t)(draw(seed, n) % (uint64_t)(hi - lo + 1));
}

/* Heads in whole or in two ranges, on random ranks. */
static void make_plan(sim *s, int layers, int heads, int ranks, int slots, uint64_t seed, uint64_t *n)
{
    const int n_lh = layers * heads;
    s->plan = (fkv_plan){.n_layers = layers, .n_kv_heads = heads, .n_ranks = ranks, .n_slots = slots};
    s->plan.first = calloc((size_t)n_lh + 1, sizeof *s->plan.first);
    s->plan.at = calloc((size_t)n_lh * 2, sizeof *s->plan.at);
    for (int i = 0, at = 0; i < n_lh; i++) {
        const int cut =
            ranks > 1 && slots > 1 && draw(seed, n) % 3 == 0 ? (int)between(seed, n, 1, slots - 1) : slots;
        s->plan.first[i] = at;
        s->plan.at[at++] = (fkv_placement){(int)between(seed, n, 0, ranks - 1), 0, cut};
        if (cut < slots) s->plan.at[at++] = (fkv_placement){(int)between(seed, n, 0, ranks - 1), cut, slots};
        s->plan.first[i + 1] = at;
    }
}

static void open_sim(sim *s, int64_t max_positions, int64_t record_pages, int64_t max_prompt,
                     const int64_t *arena_of, int64_t extra)
{
    fkv_err err = {0};
    const int ranks = s->plan.n_ranks, slots = s->plan.n_slots;
    int64_t *want = calloc((size_t)ranks, sizeof *want), *one = calloc((size_t)ranks, sizeof *one);
    const fkv_record_limit largest = {max_positions, max_prompt, record_pages ? record_pages : INT64_MAX / 2};
    assert_int_equal(fkv_kv_open(&s->plan, s->budgets, max_positions, &largest, &s->kv, &err), FKV_OK);
    const fkv_record_shape shape = fkv_kv_shape(&s->kv);
    assert_int_equal(fkv_record_demand(&largest, &shape, &s->plan, one, want, &err), FKV_OK);
    s->pages = calloc((size_t)ranks, sizeof *s->pages);
    for (int r = 0; r < ranks; r++) {
        want[r] = arena_of ? arena_of[r] : one[r] + extra;
        if (want[r] < one[r]) want[r] = one[r];
        s->pages[r] = calloc((size_t)want[r], sizeof **s->pages);
        for (int64_t p = 0; p < want[r]; p++) s->pages[r][p].record = -1;
    }
    assert_int_equal(fkv_kv_set_arenas(&s->kv, want, &err), FKV_OK);
    const fkv_schedule_limits limits = {.n_slots = slots,
                                        .max_rows = s->max_rows,
                                        .worth_rows = s->worth_rows,
                                        .n_waiting = slots + FKV_ENGINE_LOOK_AHEAD};
    assert_int_equal(fkv_schedule_open(&s->kv, &limits, &s->schedule, &err), FKV_OK);
    s->slots = calloc((size_t)slots, sizeof *s->slots);
    s->table = calloc((size_t)(slots * s->kv.slot_stride), sizeof *s->table);
    for (int i = 0; i < 2; i++) s->out[i] = calloc((size_t)slots, sizeof *s->out[i]);
    free(want);
    free(one);
}

static void close_sim(sim *s)
{
    fkv_schedule_close(s->schedule);
    for (int r = 0; r < s->plan.n_ranks; r++) {
        assert_int_equal(s->kv.n_free[r], s->kv.n_pages[r]);
        free(s->pages[r]);
    }
    assert_int_equal(s->kv.in_use, 0);
    fkv_kv_close(&s->kv);
    fkv_plan_free(&s->plan);
    free(s->pages), free(s->slots), free(s->table), free(s->out[0]), free(s->out[1]);
    free(s->budgets), free(s->records);
}

static page *page_of(const sim *s, int slot, int lh, int64_t index)
{
    const int rank = s->kv.owner[(int64_t)lh * s->kv.n_slots + slot];
    const int32_t p = s->table[slot * s->kv.slot_stride + s->kv.offset[lh] + index];
    assert_true(p >= 0 && p < s->kv.n_pages[rank]);
    return &s->pages[rank][p];
}

static int64_t kept(const sim *s, int lh, int64_t n_tokens)
{
    return n_tokens < s->budgets[lh] ? n_tokens : s->budgets[lh];
}

/* Everything that the slot has kept so far must still be its own. */
static void check_pages(const sim *s, int slot, int64_t beyond)
{
    const sim_slot *k = &s->slots[slot];
    for (int lh = 0; lh < s->kv.n_layers * s->kv.n_kv_heads; lh++) {
        const int64_t n = kept(s, lh, k->n_tokens) + beyond;
        for (int64_t i = 0; i * FKV_PAGE_TOKENS < n; i++) {
            const page *p = page_of(s, slot, lh, i);
            if (p->record != k->record || p->lh != lh || p->index != i)
                fail_msg("record %d, head %d: page %lld holds record %d's", k->record, lh, (long long)i,
                         p->record);
        }
    }
}

static void write_pages(const sim *s, int slot, int64_t beyond, bool prompt)
{
    const sim_slot *k = &s->slots[slot];
    for (int lh = 0; lh < s->kv.n_layers * s->kv.n_kv_heads; lh++) {
        const int64_t last = (kept(s, lh, k->n_tokens) + beyond - 1) / FKV_PAGE_TOKENS;
        for (int64_t i = prompt ? 0 : last; i <= last; i++)
            *page_of(s, slot, lh, i) = (page){k->record, lh, i};
    }
}

/* The slot's token is sampled. */
static void sample(sim *s, int slot, int32_t *out)
{
    sim_slot *k = &s->slots[slot];
    const record *r = &s->records[k->record];
    k->n_new++;
    out[slot] = (int32_t)k->n_new;
    if (k->n_new >= k->max_new || (!r->host_ends_it && k->n_new >= r->length)) k->active = false;
}

static void execute(sim *s, const fkv_command *c)
{
    int32_t *out = s->out[c->number % 2];
    int64_t rows = 0;
    for (int64_t i = 0; i < c->n_edits; i++) s->table[c->edits[i].index] = c->edits[i].value;
    for (int i = 0; i < c->n_stopped; i++) s->slots[c->stopped[i]].active = false;
    for (int i = 0; i < s->kv.n_slots; i++) out[i] = FKV_TOKEN_NONE;
    if (c->kind == FKV_COMMAND_PREFILL) {
        assert_true(c->n_segments > 0);
        assert_true(c->n_rows <= s->max_rows || c->n_segments == 1);
        for (int i = 0; i < c->n_segments; i++) {
            const fkv_segment *g = &c->segments[i];
            assert_int_equal(g->row0, rows);
            rows += g->n_tokens;
            assert_false(s->slots[g->slot].active);
            s->slots[g->slot] = (sim_slot){true, (int)g->sampling.stream, g->n_tokens, 0, g->max_new};
            write_pages(s, g->slot, 0, true);
            sample(s, g->slot, out);
        }
        assert_int_equal(rows, c->n_rows);
        return;
    }
    for (int i = 0; i < s->kv.n_slots; i++) {
        sim_slot *k = &s->slots[i];
        if (!k->active) continue;
        write_pages(s, i, k->n_new, false);
        check_pages(s, i, k->n_new);
        sample(s, i, out);
    }
}

static void hand_back(sim *s, const fkv_command *c)
{
    for (int i = 0; i < s->kv.n_slots; i++) {
        fkv_work *w = fkv_schedule_owner(c, i);
        if (!w) continue;
        record *r = &s->records[w->request.ordinal];
        w->ids[w->n++] = s->out[c->number % 2][i];
        assert_int_equal(w->ids[w->n - 1], w->n); /* no token of another run */
        const bool full = w->n == r->limit;
        if (w->n < r->length && !full) continue;
        r->ended++;
        r->got = w->n;
        fkv_schedule_finish(s->schedule, w, true, r->host_ends_it && !full);
        fkv_schedule_recycle(s->schedule, w);
    }
}

static void take_records(sim *s)
{
    fkv_err err = {0};
    while (s->n_taken < s->n_records && fkv_schedule_room(s->schedule)) {
        const record *r = &s->records[s->n_taken];
        const fkv_request q = {.ordinal = s->n_taken,
                               .n_ids = r->n_tokens,
                               .max_new = r->limit,
                               .sampling = {.stream = (uint64_t)s->n_taken}};
        if (fkv_schedule_add(s->schedule, &q, &err)) fail_msg("record %d: %s", s->n_taken, err.message);
        s->n_taken++;
    }
    if (s->n_taken == s->n_records) fkv_schedule_end(s->schedule);
}

static void run_sim(sim *s)
{
    fkv_command *last = NULL;
    int64_t worst = 1000;
    fkv_schedule_stats before, after;
    for (int i = 0; i < s->n_records; i++) worst += 40 * (s->records[i].limit + 4);
    for (int64_t n = 0;; n++) {
        if (n > worst) fail_msg("it goes on for ever: %d of %d records taken", s->n_taken, s->n_records);
        take_records(s);
        before = (fkv_schedule_stats){0};
        fkv_schedule_stats_add(s->schedule, &before);
        fkv_command *c = fkv_schedule_next(s->schedule, last != NULL);
        if (!c && !last) {
            assert_true(fkv_schedule_idle(s->schedule));
            break;
        }
        if (c) execute(s, c);
        if (s->n_taken < s->n_records && c && c->kind == FKV_COMMAND_STEP) {
            after = (fkv_schedule_stats){0};
            fkv_schedule_stats_add(s->schedule, &after);
            s->full_steps++;
            s->busy_at_full += after.busy_slot_steps - before.busy_slot_steps;
        }
        fkv_command *due = s->late ? last : c;
        last = s->late ? c : NULL;
        if (due) hand_back(s, due);
    }
    for (int i = 0; i < s->n_records; i++) {
        const record *r = &s->records[i];
        if (r->ended != 1) fail_msg("record %d ended %lld times", i, (long long)r->ended);
        assert_int_equal(r->got, r->length < r->limit ? r->length : r->limit);
    }
}

static void random_instance(uint64_t seed)
{
    uint64_t n = 0;
    sim s = {.late = draw(seed, &n) % 2};
    const int layers = (int)between(seed, &n, 1, 3), heads = (int)between(seed, &n, 1, 6),
              ranks = (int)between(seed, &n, 1, heads), slots = (int)between(seed, &n, 1, 12);
    const int64_t max_prompt = between(seed, &n, 1, 900),
                  max_positions = max_prompt + between(seed, &n, 1, 900);
    make_plan(&s, layers, heads, ranks, slots, seed, &n);
    s.budgets = calloc((size_t)(layers * heads), sizeof *s.budgets);
    for (int i = 0; i < layers * heads; i++) s.budgets[i] = (int32_t)between(seed, &n, 1, 700);
    s.max_rows = max_prompt > 1024 ? max_prompt : 1024;
    s.worth_rows = between(seed, &n, 1, 1024);
    s.n_records = (int)between(seed, &n, 1, 60);
    s.records = calloc((size_t)s.n_records, sizeof *s.records);
    const int64_t most = between(seed, &n, 1, max_positions - max_prompt);
    for (int i = 0; i < s.n_records; i++) {
        record *r = &s.records[i];
        r->n_tokens = between(seed, &n, 1, max_prompt);
        r->limit = between(seed, &n, 1, most);
        r->length = draw(seed, &n) % 4 ? between(seed, &n, 1, r->limit) : r->limit + 1;
        r->host_ends_it = draw(seed, &n) % 3 == 0;
    }
    open_sim(&s, max_positions, 0, max_prompt, NULL, between(seed, &n, 0, draw(seed, &n) % 2 ? 20 : 400));
    run_sim(&s);
    close_sim(&s);
}

static void all_end_whatever_arenas_limits_and_lengths(void **state)
{
    (void)state;
    for (int i = 0; i < n_instances; i++) {
        if (n_instances < 10) print_message("seed %llu\n", (unsigned long long)(first_seed + (uint64_t)i));
        random_instance(first_seed + (uint64_t)i);
    }
}

/* One rank, some heads of one budget. */
static void one_rank(sim *s, int heads, int slots, int32_t budget)
{
    uint64_t n = 0;
    make_plan(s, 1, heads, 1, slots, 1, &n);
    s->budgets = calloc((size_t)heads, sizeof *s->budgets);
    for (int i = 0; i < heads; i++) s->budgets[i] = budget;
    s->max_rows = 2048;
    s->worth_rows = 64;
}

static double tokens_a_slot_and_step(const sim *s)
{
    fkv_schedule_stats t;
    t = (fkv_schedule_stats){0};
    fkv_schedule_stats_add(s->schedule, &t);
    const double slots = s->kv.n_slots;
    return ((double)s->busy_at_full - (double)t.restarted_tokens) / ((double)s->full_steps * slots);
}

static double restarted_share(const sim *s)
{
    fkv_schedule_stats t;
    double tokens = 0;
    t = (fkv_schedule_stats){0};
    fkv_schedule_stats_add(s->schedule, &t);
    for (int i = 0; i < s->n_records; i++) tokens += (double)s->records[i].got;
    return (double)t.restarted_tokens / tokens;
}

static void a_record_that_does_not_fit_stops_no_others(void **state)
{
    (void)state;
    /* Pages a head: what the mean limit of 148 needs of 16 slots, where pages bound the tokens a slot
     * and step by 0.75; and two thirds of what all limits could need. */
    static const int64_t pages[] = {3 * 16, 86};
    static const double least[] = {0.55, 0.95};
    for (int i = 0; i < 4; i++) {
        const int late = i % 2;
        sim s = {.late = late, .n_records = 160};
        one_rank(&s, 4, 16, 100);
        s.records = calloc((size_t)s.n_records, sizeof *s.records);
        for (int k = 0; k < s.n_records; k++)
            s.records[k] = (record){.n_tokens = 330 + k % 27, .limit = k % 8 ? 40 : 900, .length = 10000};
        const int64_t arena = 4 * pages[i / 2];
        open_sim(&s, 2048, 4 * 8, 357, &arena, 0);
        run_sim(&s);
        const double busy = tokens_a_slot_and_step(&s), again = restarted_share(&s);
        print_message("%s: %.3f tokens a slot and step, %.1f%% restarted\n", late ? "late" : "at once", busy,
                      100 * again);
        assert_true(busy >= least[i / 2]);
        assert_true(again <= 0.03);
        close_sim(&s);
    }
}

static void limits_that_answers_do_not_use_leave_no_slot_idle(void **state)
{
    (void)state;
    for (int late = 0; late < 2; late++) {
        sim s = {.late = late, .n_records = MAX_RECORDS};
        uint64_t n = 0;
        one_rank(&s, 4, 16, 256);
        s.records = calloc((size_t)s.n_records, sizeof *s.records);
        for (int i = 0; i < s.n_records; i++)
            s.records[i] = (record){.n_tokens = between(3, &n, 260, 800),
                                    .limit = 4096,
                                    .length = between(3, &n, 30, 900),
                                    .host_ends_it = i % 2};
        const int64_t arena = 16 * 4 * 34 / 4; /* a quarter of what the limits could need */
        open_sim(&s, 8192, 4 * 34, 800, &arena, 0);
        run_sim(&s);
        const double busy = tokens_a_slot_and_step(&s), again = restarted_share(&s);
        print_message("%s: %.3f tokens a slot and step, %.1f%% restarted\n", late ? "late" : "at once", busy,
                      100 * again);
        assert_true(busy >= 0.95);
        assert_true(again <= 0.03);
        close_sim(&s);
    }
}

/* Slots that become free one at a time are filled together, and wait no longer than it pays. */
static void short_prompts_share_their_passes(void **state)
{
    (void)state;
    sim s = {.late = true, .n_records = MAX_RECORDS};
    uint64_t n = 0;
    fkv_schedule_stats t;
    one_rank(&s, 2, 64, 100);
    s.worth_rows = 512;
    s.records = calloc((size_t)s.n_records, sizeof *s.records);
    for (int i = 0; i < s.n_records; i++)
        s.records[i] = (record){.n_tokens = 65, .limit = between(5, &n, 1, 256), .length = 10000};
    open_sim(&s, 2048, 0, 65, NULL, 100000);
    run_sim(&s);
    t = (fkv_schedule_stats){0};
    fkv_schedule_stats_add(s.schedule, &t);
    print_message("%lld rows in %lld passes, %.3f of the slots at work\n", (long long)t.n_rows,
                  (long long)t.n_passes, (double)s.busy_at_full / ((double)s.full_steps * 64));
    assert_true(t.n_rows >= 350 * t.n_passes);
    assert_true((double)s.busy_at_full >= 0.9 * (double)s.full_steps * 64);
    close_sim(&s);
}

static void too_large_records_are_refused_whatever_the_slot(void **state)
{
    (void)state;
    fkv_err err = {0};
    sim s = {.n_records = 0};
    one_rank(&s, 4, 8, 256);
    open_sim(&s, 2048, 4 * 5, 800, NULL, 0);
    /* 256 kept and 384 more are 5 pages of each of 4 heads */
    const fkv_request fits = {.ordinal = 0, .n_ids = 800, .max_new = 384},
                      not = {.ordinal = 1, .n_ids = 800, .max_new = 385},
                      positions = {.ordinal = 2, .n_ids = 1, .max_new = 2048};
    assert_int_equal(fkv_schedule_add(s.schedule, &fits, &err), FKV_OK);
    assert_int_equal(fkv_schedule_add(s.schedule, &not, &err), FKV_E_INPUT);
    assert_non_null(
        strstr(err.message, "385 new tokens need 24 KV pages on a rank, and a record may have 20"));
    err = (fkv_err){0};
    assert_int_equal(fkv_schedule_add(s.schedule, &positions, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "more than the model's 2048 positions"));
    close_sim(&s);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_end_whatever_arenas_limits_and_lengths),
        cmocka_unit_test(a_record_that_does_not_fit_stops_no_others),
        cmocka_unit_test(limits_that_answers_do_not_use_leave_no_slot_idle),
        cmocka_unit_test(short_prompts_share_their_passes),
        cmocka_unit_test(too_large_records_are_refused_whatever_the_slot),
    };
    if (argc > 1) n_instances = atoi(argv[1]);
    if (argc > 2) first_seed = strtoull(argv[2], NULL, 10);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
