/* Scorers in the engine: what a record keeps and answers is the same, bit by bit, whatever the plan, the
 * devices and its slot; other numbers of ranks keep the same; an engine that may change its scorer gives what
 * one opened with it does; sinks and window are always kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/split.h"
#include "io_fixture.h"
#include "kept_fixture.h"
#include "model_fixture.h"
#include "runner/base/hash.h"

enum { N_PROMPTS = 5, SLOTS = 3, MAX_NEW = 3, WINDOW = 32, SINKS = 4, PROMPT = 1024 };

static fixture model;
static fkv_backend backend;
static int n_heads;
/* Some keep no more than sinks and window, one less than the window. */
static const int32_t pattern[] = {150, 40, 33, 36, 20, 64, 210, 90, 70, 37, 60, 128, 45, 300, 52, 34};
static int32_t budgets[KEPT_HEADS];

typedef struct trial {
    int ranks, devices;
    fkv_plan_mode mode;
    bool reversed; /* records come the other way round, so in other slots */
    fkv_scorer scorer;
    int sinks;
    fkv_scorer opened; /* the engine's scorer until it is set */
    int next;
    uint64_t logits[N_PROMPTS];
    kept_positions kept[N_PROMPTS][KEPT_HEADS];
} trial;

static fkv_status next_prompt(void *ctx, bool wait, fkv_request *q, fkv_err *err)
{
    trial *t = ctx;
    (void)wait, (void)err;
    if (t->next == N_PROMPTS) return FKV_END;
    const int i = t->reversed ? N_PROMPTS - 1 - t->next : t->next;
    t->next++;
    *q = (fkv_request){.ordinal = i,
                       .ids = model.prompts[i].ids.data,
                       .n_ids = (int64_t)model.prompts[i].ids.len,
                       .max_new = MAX_NEW,
                       .sampling = {.stream = (uint64_t)i}};
    return FKV_OK;
}

static void on_logits(void *ctx, const fkv_request *q, int64_t n, const float *logits, int n_vocab)
{
    trial *t = ctx;
    const uint64_t before = n ? t->logits[q->ordinal] : 0;
    t->logits[q->ordinal] = fkv_hash(logits, (size_t)n_vocab * sizeof *logits, before);
}

static fkv_engine *open_engine(const trial *t)
{
    const fkv_engine_options o = {.backend = &backend,
                                  .n_ranks = t->ranks,
                                  .n_devices = t->devices,
                                  .n_slots = SLOTS,
                                  .max_prompt = PROMPT,
                                  .scorer = t->opened,
                                  .more_scorers = t->opened == t->scorer ? 0 : fkv_scorer_bit(t->scorer),
                                  .sinks = t->sinks,
                                  .window = WINDOW,
                                  .kernel = 7};
    fkv_engine *engine;
    fkv_err err = {0};
    if (fkv_engine_open(&model.config, model.weights, &o, &engine, &err)) fixture_die("engine", &err);
    if (t->opened != t->scorer) fkv_engine_set_scorer(engine, t->scorer, t->sinks);
    return engine;
}

static void run_trial(trial *t)
{
    const fkv_config *c = &model.config;
    const fkv_engine_io io = {t, next_prompt, on_token, on_finish, on_reject, stopping, on_logits};
    const fkv_engine_kv_limits limits = {0};
    double tokens[KEPT_HEADS];
    fkv_plan plan = {0};
    fkv_err err = {0};
    fkv_engine *engine = open_engine(t);
    for (int i = 0; i < n_heads; i++) tokens[i] = budgets[i];
    const fkv_plan_problem problem = {c->n_layers, c->n_kv_heads,   t->ranks, SLOTS,
                                      tokens,      fkv_cost_cpu(c), -1,       0};
    if (fkv_plan_solve(&problem, t->mode, &plan, &err)) fixture_die("plan", &err);
    if (fkv_engine_set_plan(engine, model.weights, budgets, &plan, &limits, &err))
        fixture_die("set_plan", &err);
    t->next = 0;
    if (fkv_engine_run(engine, &io, &err)) fixture_die("run", &err);
    fkv_engine_close(engine);
    fkv_plan_free(&plan);
    for (int i = 0; i < N_PROMPTS; i++) {
        memcpy(t->kept[i], kept[i], sizeof kept[i]);
        memset(kept[i], 0, sizeof kept[i]);
    }
}

static void free_trial(trial *t)
{
    for (int i = 0; i < N_PROMPTS; i++)
        for (int h = 0; h < KEPT_HEADS; h++) free(t->kept[i][h].at);
}

/* How many heads of how many prompts keep other tokens. */
static int differing(const trial *a, const trial *b)
{
    int n = 0;
    for (int i = 0; i < N_PROMPTS; i++)
        for (int h = 0; h < n_heads; h++) {
            const kept_positions *x = &a->kept[i][h], *y = &b->kept[i][h];
            n += x->n != y->n || memcmp(x->at, y->at, (size_t)x->n * sizeof *x->at);
        }
    return n;
}

static trial base(fkv_scorer scorer)
{
    return (trial){.ranks = 4, .devices = 1, .mode = FKV_PLAN_STANDARD, .scorer = scorer, .opened = scorer};
}

static void assert_same(const trial *a, const trial *b)
{
    assert_int_equal(differing(a, b), 0);
    assert_memory_equal(a->logits, b->logits, sizeof a->logits);
}

static void plans_devices_slots_and_a_change_of_scorer_alter_no_bit(void **state)
{
    (void)state;
    for (int s = 0; s < FKV_N_SCORERS; s++) {
        trial want = base((fkv_scorer)s), other = want;
        run_trial(&want);
        other.mode = FKV_PLAN_FAIR_COPYING;
        other.reversed = true;
        other.devices = 2;
        other.opened = (fkv_scorer)((s + 1) % FKV_N_SCORERS);
        run_trial(&other);
        assert_same(&want, &other);
        free_trial(&want), free_trial(&other);
    }
}

/* Rounding may differ between numbers of ranks, so near-ties may. */
static void other_ranks_keep_the_same_but_for_near_ties(void **state)
{
    (void)state;
    for (int s = 0; s < FKV_N_SCORERS; s++) {
        trial four = base((fkv_scorer)s), one = four;
        one.ranks = 1;
        run_trial(&four), run_trial(&one);
        const int n = differing(&four, &one);
        if (n * 50 > N_PROMPTS * n_heads)
            fail_msg("%s: %d of %d sets differ", fkv_scorer_name((fkv_scorer)s), n, N_PROMPTS * n_heads);
        free_trial(&four), free_trial(&one);
    }
}

static void sinks_and_window_are_kept_by_every_scorer(void **state)
{
    (void)state;
    for (int s = 0; s < FKV_N_SCORERS; s++) {
        trial t = base((fkv_scorer)s);
        t.sinks = SINKS;
        run_trial(&t);
        for (int i = 0; i < N_PROMPTS; i++)
            for (int h = 0; h < n_heads; h++) {
                const kept_positions *k = &t.kept[i][h];
                const int n = (int)model.prompts[i].ids.len, room = k->n - WINDOW;
                const int sinks = room < 0 ? 0 : room < SINKS ? room : SINKS;
                const int last = k->n < WINDOW ? k->n : WINDOW;
                assert_int_equal(k->n, budgets[h]);
                for (int j = 0; j < sinks; j++) assert_int_equal(k->at[j], j);
                for (int j = 0; j < last; j++) assert_int_equal(k->at[k->n - 1 - j], n - 1 - j);
            }
        free_trial(&t);
    }
}

/* Of a prompt's counts each layer's sum is that of even budgets; sinks are in them. */
static void counts_of_every_scorer_share_out_the_budget(void **state)
{
    (void)state;
    const int64_t b = 60;
    for (int s = 0; s < FKV_N_SCORERS; s++) {
        trial t = base((fkv_scorer)s);
        double counts[KEPT_HEADS] = {0};
        fkv_err err = {0};
        t.sinks = SINKS;
        fkv_engine *engine = open_engine(&t);
        if (fkv_engine_profile(engine, model.prompts[0].ids.data, (int64_t)model.prompts[0].ids.len, 1, b,
                               0.5, counts, &err))
            fixture_die("profile", &err);
        for (int l = 0; l < model.config.n_layers; l++) {
            double sum = 0;
            for (int h = 0; h < model.config.n_kv_heads; h++) {
                const double count = counts[l * model.config.n_kv_heads + h];
                assert_true(count >= WINDOW + SINKS + 0.5 * (double)(b - WINDOW - SINKS));
                sum += count;
            }
            assert_true(sum == (double)(b * model.config.n_kv_heads));
        }
        fkv_engine_close(engine);
    }
}

int main(void)
{
    backend = kept_backend();
    fixture_open(&model, FKV_TEST_DIR "/data/needle-tiny", "data/needle_500.jsonl", N_PROMPTS);
    n_heads = model.config.n_layers * model.config.n_kv_heads;
    for (int i = 0; i < n_heads; i++) budgets[i] = pattern[i % (int)(sizeof pattern / sizeof *pattern)];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_devices_slots_and_a_change_of_scorer_alter_no_bit),
        cmocka_unit_test(other_ranks_keep_the_same_but_for_near_ties),
        cmocka_unit_test(sinks_and_window_are_kept_by_every_scorer),
        cmocka_unit_test(counts_of_every_scorer_share_out_the_budget),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_close(&model);
    return failed;
}
