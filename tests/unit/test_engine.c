/* The engine's promise: a record's logits are the same bit by bit in any slot,
 * beside any neighbours, under any plan mode, on one device or two, and after a
 * resume, with as many ranks as the model has KV heads.
 *
 * usage: test_engine [BACKEND [MODEL_DIR]]   cpu and needle-tiny without them */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/measure/measure.h"
#include "engine/split.h"
#include "model_fixture.h"
#include "runner/base/hash.h"

/* Under TSan, which makes everything thirty times slower, every setting of a trial has each of its values,
 * but not beside each of another's. */
#ifdef __SANITIZE_THREAD__
enum { N_PROMPTS = 5, LONG_NEW = 150, EVERY_PAIR = 0 };
#else
enum { N_PROMPTS = 14, LONG_NEW = 240, EVERY_PAIR = 1 };
#endif
enum { MAX_NEW = 6, MAX_HEADS = 512 };

static fixture model;
static const fkv_backend *backend;
static int n_heads; /* KV heads of all layers */
/* Of every trial's logits, apart those with FP8 weights and with fp8 pages: a change that shall change no bit
 * keeps them. */
static uint64_t all_hash, weights_hash, pages_hash;

/* One run of the engine over prompts given in some order. */
typedef struct trial {
    int ranks, devices, slots;
    fkv_plan_mode mode;
    const int32_t *budgets;
    const int *order; /* [n] */
    int n;
    float temperature;
    uint64_t seed;
    int first_slots;     /* opened with so many, then resized; 0: opened with slots */
    const char *refusal; /* of the plan, or NULL */
    float *first;        /* logits of the first tokens, [N_PROMPTS][vocab]; or NULL */
    bool tight;          /* arenas with room for one of the largest records, whose answers are long */
    bool async;          /* tokens are read a command late, whatever the backend says of itself */
    fkv_kv_form kv_form; /* of the pages */
    bool mixed;          /* every record has a sampling of its own */
    bool beside;         /* another engine may be at work, on the devices from first_device on */
    int first_device;
    fkv_form form;
    int next;
    uint64_t logits[N_PROMPTS][MAX_NEW]; /* hash of the bits */
    int32_t ids[N_PROMPTS][MAX_NEW];
    int64_t n_ids[N_PROMPTS];
    uint64_t all_logits[N_PROMPTS]; /* one hash of those of every token */
    fkv_engine_stats stats;
} trial;

static const int32_t suppressed[] = {300, 5};

/* Of every kind that there is, one beside the other. */
static void mix(fkv_sampling *s, int i)
{
    if (i % 2) s->temperature = 0.9f;
    if (i % 4 == 3) s->top_k = 5;
    if (i % 5 == 1) s->top_p = 0.8f;
    if (i % 3 == 0) s->repetition_penalty = 1.3f;
    if (i % 4 == 0) s->min_new = 3;
    if (i % 7 == 2) s->ignores_ends = 1;
    s->has_end = i % 6 == 0;
    s->end = 40;
}

static fkv_status next_prompt(void *ctx, bool wait, fkv_request *q, fkv_err *err)
{
    trial *t = ctx;
    (void)wait;
    (void)err;
    if (t->next == t->n) return FKV_END;
    const int i = t->order[t->next++];
    const int64_t limit = t->tight ? LONG_NEW - 40 * (i % 3) : MAX_NEW - i % 3;
    *q = (fkv_request){
        .ordinal = i,
        .ids = model.prompts[i].ids.data,
        .n_ids = (int64_t)model.prompts[i].ids.len,
        .max_new = limit,
        .sampling = {.temperature = t->temperature, .top_p = 1, .seed = t->seed, .stream = (uint64_t)i}};
    if (t->mixed) mix(&q->sampling, i);
    return FKV_OK;
}

static bool on_token(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n)
{
    const trial *t = ctx;
    (void)ids;
    return t->tight && q->ordinal % 4 == 1 && n == 100; /* a stop string */
}

static fkv_status on_finish(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n, fkv_finish why,
                            fkv_err *err)
{
    trial *t = ctx;
    (void)why, (void)err;
    memcpy(t->ids[q->ordinal], ids, (size_t)(n < MAX_NEW ? n : MAX_NEW) * sizeof *ids);
    t->n_ids[q->ordinal] = n;
    return FKV_OK;
}

static fkv_status on_reject(void *ctx, const fkv_request *q, const char *code, const fkv_err *why,
                            fkv_err *err)
{
    (void)ctx, (void)q, (void)code;
    *err = *why;
    return why->status;
}

static fkv_stopping stopping(void *ctx)
{
    (void)ctx;
    return FKV_GO_ON;
}

static void on_logits(void *ctx, const fkv_request *q, int64_t n, const float *logits, int n_vocab)
{
    trial *t = ctx;
    const uint64_t before = n ? t->all_logits[q->ordinal] : 0;
    t->all_logits[q->ordinal] = fkv_hash(logits, (size_t)n_vocab * sizeof *logits, before);
    if (n < MAX_NEW) t->logits[q->ordinal][n] = fkv_hash(logits, (size_t)n_vocab * sizeof *logits, 0);
    if (n == 0 && t->first) memcpy(t->first + q->ordinal * n_vocab, logits, (size_t)n_vocab * sizeof *logits);
}

static void info_of_late(const fkv_device *dev, fkv_device_info *info)
{
    backend->info(dev, info);
    info->async = true;
}

/* What an engine does before it gets the number of slots and the longest prompt that it is to
 * have: a profile, and another plan. */
static void work_and_resize(fkv_engine *engine, const trial *t, const fkv_engine_options *o)
{
    fkv_err err = {0};
    double sums[MAX_HEADS] = {0}, seconds[2];
    fkv_plan plan = {0};
    const fkv_plan_problem problem = {model.config.n_layers,
                                      model.config.n_kv_heads,
                                      o->n_ranks,
                                      o->n_slots,
                                      sums,
                                      fkv_cost_cpu(&model.config),
                                      -1,
                                      0};
    if (fkv_engine_profile(engine, model.prompts[0].ids.data, (int64_t)model.prompts[0].ids.len, 1, 64, 0.5,
                           sums, &err))
        fixture_die("profile", &err);
    if (fkv_plan_solve(&problem, FKV_PLAN_STANDARD, &plan, &err)) fixture_die("plan", &err);
    const fkv_engine_kv_limits limits = {0};
    if (fkv_engine_set_plan(engine, model.weights, t->budgets, &plan, &limits, &err))
        fixture_die("set_plan", &err);
    if (fkv_measure_decode(engine, 100, 2, seconds, &err)) fixture_die("time_decode", &err);
    assert_int_equal(fkv_engine_resize(engine, t->slots, 1024, 0, &err), FKV_E_INPUT); /* it has a plan */
    err = (fkv_err){0};
    fkv_engine_clear_plan(engine);
    fkv_plan_free(&plan);
    const int points[] = {1, 3, 6};
    const int64_t lengths[] = {100, 300};
    fkv_step_curve curve;
    double us[2], kept[MAX_HEADS];
    for (int i = 0; i < n_heads; i++) kept[i] = 60 + i % 3 * 100.3;
    if (fkv_measure_steps(engine, model.weights, kept, points, 3, 10, &curve, &err))
        fixture_die("time_steps", &err);
    if (fkv_measure_prompts(engine, lengths, 10, us, &err)) fixture_die("time_prompts", &err);
    assert_int_equal(curve.n, 3);
    for (int i = 0; i < 3; i++)
        assert_true(curve.at[i].slots == points[i] && curve.at[i].us > 0 && curve.at[i].empty_us > 0);
    assert_true(us[0] > 0 && us[1] > 0);
    assert_int_equal(fkv_engine_resize(engine, t->slots, model.config.max_positions + 1, 0, &err),
                     FKV_E_INPUT);
    err = (fkv_err){0};
    if (fkv_engine_resize(engine, t->slots, 1024, 1024 + 128, &err)) fixture_die("resize", &err);
}

static void run_trial(trial *t)
{
    fkv_err err = {0};
    fkv_engine *engine = NULL;
    fkv_plan plan = {0};
    fkv_profile profile = {0};
    double tokens[MAX_HEADS];
    fkv_backend late = *backend;
    late.info = info_of_late;
    const fkv_engine_options o = {.backend = t->async ? &late : backend,
                                  .n_ranks = t->ranks,
                                  .n_devices = t->devices,
                                  .first_device = t->first_device,
                                  .n_slots = t->first_slots ? t->first_slots : t->slots,
                                  .max_prompt = t->first_slots ? 700 : 1024,
                                  .window = 32,
                                  .kernel = 7,
                                  .form = t->form,
                                  .kv_form = t->kv_form,
                                  .rules = {.ends = {1},
                                            .n_ends = t->tight ? 0 : 1,
                                            .suppressed = t->mixed ? suppressed : NULL,
                                            .n_suppressed = t->mixed ? 2 : 0}};
    if (fkv_engine_open(&model.config, model.weights, &o, &engine, &err)) fixture_die("engine", &err);
    if (t->first_slots) work_and_resize(engine, t, &o);
    if (fkv_profile_init(&profile, model.config.n_layers, model.config.n_kv_heads, &err))
        fixture_die("profile", &err);
    memcpy(profile.budgets, t->budgets, (size_t)n_heads * sizeof *t->budgets);
    fkv_cost_tokens(&profile, tokens);
    const fkv_plan_problem problem = {model.config.n_layers,
                                      model.config.n_kv_heads,
                                      t->ranks,
                                      t->slots,
                                      tokens,
                                      fkv_cost_cpu(&model.config),
                                      -1,
                                      0};
    if (fkv_plan_solve(&problem, t->mode, &plan, &err)) fixture_die("plan", &err);
    fkv_engine_kv_limits limits = {0};
    if (t->tight) limits = fkv_measure_limits(&plan, t->budgets, o.max_prompt, LONG_NEW);
    if (t->tight) limits.arena_pages = 1; /* no more than the largest record needs */
    if (t->beside) limits = fkv_measure_limits(&plan, t->budgets, o.max_prompt, MAX_NEW);
    const fkv_status st = fkv_engine_set_plan(engine, model.weights, t->budgets, &plan, &limits, &err);
    const fkv_engine_io io = {t, next_prompt, on_token, on_finish, on_reject, stopping, on_logits};
    t->next = 0;
    if (t->refusal) {
        assert_int_equal(st, FKV_E_INPUT);
        assert_non_null(strstr(err.message, t->refusal));
    } else {
        if (st) fixture_die("set_plan", &err);
        if (fkv_engine_run(engine, &io, &err)) fixture_die("run", &err);
        uint64_t *hash = t->form == FKV_FORM_FP8    ? &weights_hash
                         : t->kv_form == FKV_KV_FP8 ? &pages_hash
                                                    : &all_hash;
        if (!t->beside && !t->mixed) *hash = fkv_hash(t->all_logits, sizeof t->all_logits, *hash);
    }
    fkv_engine_stats_get(engine, &t->stats);
    fkv_engine_close(engine);
    fkv_plan_free(&plan);
    fkv_profile_free(&profile);
}

/* Uneven enough that every mode but standard moves or copies heads. */
static const int32_t pattern[16] = {300, 40, 33, 20, 32, 64, 410, 33, 70, 32, 35, 256, 40, 500, 32, 32};
static int32_t uneven[MAX_HEADS];
static int in_order[N_PROMPTS], reversed[N_PROMPTS];

static void assert_same(const trial *a, const trial *b, const char *what)
{
    for (int i = 0; i < N_PROMPTS; i++) {
        if (b->n_ids[i] == 0) continue;
        const size_t n = (size_t)(a->n_ids[i] < MAX_NEW ? a->n_ids[i] : MAX_NEW);
        if (a->n_ids[i] != b->n_ids[i] || memcmp(a->ids[i], b->ids[i], n * sizeof a->ids[i][0]) ||
            memcmp(a->logits[i], b->logits[i], n * sizeof a->logits[i][0]) ||
            a->all_logits[i] != b->all_logits[i])
            fail_msg("%s changes record %d", what, i);
    }
}

static trial base(void)
{
    return (trial){.ranks = model.config.n_kv_heads,
                   .devices = 1,
                   .slots = 5,
                   .mode = FKV_PLAN_STANDARD,
                   .budgets = uneven,
                   .order = in_order,
                   .n = N_PROMPTS};
}

static void check_modes(fkv_form form)
{
    trial *reference = calloc(1, sizeof *reference), *other = calloc(1, sizeof *other);
    *reference = base();
    reference->form = form;
    run_trial(reference);
    for (int devices = 1; devices <= 2; devices++) {
        for (int mode = FKV_PLAN_STANDARD; mode <= FKV_PLAN_FAIR_COPYING; mode++) {
            for (int i = 0; i <= EVERY_PAIR; i++) {
                const int turned = (i + mode) % 2;
                char what[64];
                snprintf(what, sizeof what, "%d devices, mode %d, %s order", devices, mode,
                         turned ? "reversed" : "same");
                *other = base();
                other->form = form;
                other->devices = devices;
                other->mode = (fkv_plan_mode)mode;
                other->order = turned ? reversed : in_order;
                run_trial(other);
                assert_same(reference, other, what);
            }
        }
    }
    free(reference);
    free(other);
}

static void logits_do_not_depend_on_slots_modes_or_devices(void **state)
{
    (void)state;
    check_modes(FKV_FORM_NATIVE);
}

static void logits_in_fp8_do_not_depend_on_slots_modes_or_devices(void **state)
{
    (void)state;
    check_modes(FKV_FORM_FP8);
}

static void logits_do_not_depend_on_a_resume(void **state)
{
    (void)state;
    trial *reference = calloc(1, sizeof *reference), *other = calloc(1, sizeof *other);
    *reference = base();
    reference->mode = FKV_PLAN_FAIR_COPYING;
    run_trial(reference);
    for (int cut = 3; cut < N_PROMPTS; cut += 4) {
        *other = *reference;
        memset(other->n_ids, 0, sizeof other->n_ids);
        other->order = in_order + cut; /* what an interrupted run left over */
        other->n = N_PROMPTS - cut;
        run_trial(other);
        assert_same(reference, other, "a resume");
    }
    free(reference);
    free(other);
}

static void a_sampling_of_its_own_does_not_depend_on_its_neighbours(void **state)
{
    (void)state;
    trial *reference = calloc(1, sizeof *reference), *other = calloc(1, sizeof *other);
    *reference = base();
    reference->mixed = true;
    run_trial(reference);
    for (int i = 0; i < N_PROMPTS; i++)
        for (int k = 0; k < reference->n_ids[i] && k < MAX_NEW; k++)
            for (int j = 0; j < 2; j++) assert_int_not_equal(reference->ids[i][k], suppressed[j]);
    for (int way = 0; way < 3; way++) {
        *other = *reference;
        memset(other->n_ids, 0, sizeof other->n_ids);
        if (way == 0) other->order = reversed;
        if (way == 1) other->order = in_order + 3, other->n = N_PROMPTS - 3;
        if (way == 2) {
            other->devices = 2;
            other->async = true;
            other->mode = FKV_PLAN_FAIR_COPYING;
        }
        run_trial(other);
        assert_same(reference, other, "its neighbours");
    }
    free(reference);
    free(other);
}

static void *run_beside(void *t)
{
    run_trial(t);
    return NULL;
}

/* Replicas live in one process, each on devices of its own. */
static void two_engines_at_once_answer_as_one(void **state)
{
    (void)state;
    trial *t = calloc(3, sizeof *t);
    pthread_t threads[2];
    for (int i = 0; i < 3; i++)
        t[i] = (trial){.ranks = 2,
                       .devices = 1,
                       .slots = 4,
                       .mode = FKV_PLAN_FAIR_COPYING,
                       .budgets = uneven,
                       .order = i == 2 ? reversed : in_order,
                       .n = N_PROMPTS,
                       .beside = true,
                       .first_device = i == 2};
    run_trial(&t[0]);
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, run_beside, &t[i + 1]), 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (int i = 1; i < 3; i++) assert_same(&t[0], &t[i], "an engine beside another");
    free(t);
}

static void tokens_that_are_read_late_are_the_same(void **state)
{
    (void)state;
    trial *at_once = calloc(1, sizeof *at_once), *late = calloc(1, sizeof *late);
    *at_once = base();
    run_trial(at_once);
    *late = base();
    late->async = true;
    late->order = reversed;
    late->devices = 2;
    late->mode = FKV_PLAN_FAIR_COPYING;
    run_trial(late);
    assert_same(at_once, late, "reading tokens a command late");
    free(at_once);
    free(late);
}

/* Records that had to yield their pages start again and end the same. */
static void logits_do_not_depend_on_the_arena(void **state)
{
    (void)state;
    trial *alone = calloc(1, sizeof *alone), *tight = calloc(1, sizeof *tight);
    int64_t restarts = 0;
    for (int i = 0; i < N_PROMPTS; i++) { /* one by one: nobody ever yields */
        trial one = base();
        one.tight = true;
        one.order = &in_order[i];
        one.n = 1;
        run_trial(&one);
        assert_int_equal(one.stats.restarts, 0);
        alone->n_ids[i] = one.n_ids[i];
        alone->all_logits[i] = one.all_logits[i];
        memcpy(alone->ids[i], one.ids[i], sizeof one.ids[i]);
        memcpy(alone->logits[i], one.logits[i], sizeof one.logits[i]);
    }
    for (int late = 0; late < 2; late++) {
        for (int mode = FKV_PLAN_STANDARD; mode <= FKV_PLAN_FAIR_COPYING; mode += 2) {
            if (!EVERY_PAIR && late != (mode == FKV_PLAN_FAIR_COPYING)) continue;
            *tight = base();
            tight->tight = true;
            tight->async = late;
            tight->mode = (fkv_plan_mode)mode;
            tight->order = late ? reversed : in_order;
            tight->devices = 1 + late;
            run_trial(tight);
            assert_same(alone, tight, "a tight arena");
            restarts += tight->stats.restarts;
        }
    }
    assert_true(restarts > 0);
    free(alone);
    free(tight);
}

static void sampled_tokens_follow_seed_and_record_alone(void **state)
{
    (void)state;
    trial *a = calloc(1, sizeof *a), *b = calloc(1, sizeof *b);
    *a = base();
    a->temperature = 1.5f;
    a->seed = 7;
    run_trial(a);
    *b = *a;
    b->order = reversed;
    b->mode = FKV_PLAN_FAIR_COPYING;
    run_trial(b);
    assert_same(a, b, "another order");
    int differ = 0;
    b->seed = 8;
    run_trial(b);
    for (int i = 0; i < N_PROMPTS; i++) differ += memcmp(a->ids[i], b->ids[i], sizeof a->ids[i]) != 0;
    assert_true(differ > 0);
    free(a);
    free(b);
}

static void a_budget_as_long_as_the_prompt_changes_nothing(void **state)
{
    (void)state;
    int32_t longest = 0, enough[MAX_HEADS], whole[MAX_HEADS];
    for (int i = 0; i < N_PROMPTS; i++)
        if ((int32_t)model.prompts[i].ids.len > longest) longest = (int32_t)model.prompts[i].ids.len;
    for (int i = 0; i < n_heads; i++) {
        enough[i] = longest;
        whole[i] = 100000;
    }
    trial *a = calloc(1, sizeof *a), *b = calloc(1, sizeof *b);
    *a = base();
    a->budgets = whole;
    run_trial(a);
    *b = base();
    b->budgets = enough;
    run_trial(b);
    assert_same(a, b, "a budget of the longest prompt");
    /* and a smaller one does, or this test could not fail */
    *b = base();
    run_trial(b);
    int differ = 0;
    for (int i = 0; i < N_PROMPTS; i++)
        differ += a->logits[i][0] == b->logits[i][0] && a->logits[i][1] != b->logits[i][1];
    assert_true(differ > 0);
    /* the first token comes from the whole prompt in both */
    for (int i = 0; i < N_PROMPTS; i++) assert_true(a->logits[i][0] == b->logits[i][0]);
    assert_true(b->stats.kv_bytes < a->stats.kv_bytes);
    free(a);
    free(b);
}

/* Of fp8 pages a record's logits are the same, too, however it is run; they take their share of plain ones'
 * bytes, and prompts, whose attention reads no pages, have the same first logits. */
static void logits_of_fp8_pages_depend_on_as_little(void **state)
{
    (void)state;
    trial *plain = calloc(1, sizeof *plain), *fp8 = calloc(1, sizeof *fp8), *other = calloc(1, sizeof *other);
    int same = 0, differ = 0;
    const uint64_t before = all_hash; /* of older tests alone */
    *plain = base();
    run_trial(plain);
    all_hash = before;
    *fp8 = base();
    fp8->kv_form = FKV_KV_FP8;
    run_trial(fp8);
    const double plain_bytes = 2.0 * model.config.head_dim * (backend->shares_host ? 4 : 2),
                 fp8_bytes = 2.0 * (model.config.head_dim + 4);
    assert_true((double)fp8->stats.kv_bytes * plain_bytes == (double)plain->stats.kv_bytes * fp8_bytes);
    for (int i = 0; i < N_PROMPTS; i++) {
        assert_true(plain->logits[i][0] == fp8->logits[i][0]);
        differ += plain->logits[i][1] != fp8->logits[i][1];
        same += !memcmp(plain->ids[i], fp8->ids[i], sizeof plain->ids[i]);
    }
    assert_true(differ > 0);
    if (same < N_PROMPTS * 3 / 4) fail_msg("only %d of %d records have the same tokens", same, N_PROMPTS);
    for (int way = 0; way < 6; way++) {
        *other = *fp8;
        memset(other->n_ids, 0, sizeof other->n_ids);
        other->mode = way % 3 ? FKV_PLAN_FAIR_COPYING : FKV_PLAN_BEST_EFFORT;
        other->devices = 1 + way % 2;
        if (way == 1) other->order = reversed;
        if (way == 2) other->order = in_order + 5, other->n = N_PROMPTS - 5;
        if (way == 3) other->first_slots = 9;
        if (way == 4) other->async = true, other->order = reversed;
        run_trial(other);
        assert_same(fp8, other, "fp8 pages: another way to run");
    }
    free(plain);
    free(fp8);
    free(other);
}

/* Eight KV heads, and columns in as many units as make uneven shares. */
static const fkv_config eight_heads = {.n_layers = 2,
                                       .n_heads = 8,
                                       .n_kv_heads = 8,
                                       .head_dim = 64,
                                       .group = 1,
                                       .hidden = 896,
                                       .intermediate = 1024,
                                       .vocab = 1024,
                                       .max_positions = 2048,
                                       .rope = {.theta = 10000},
                                       .rms_eps = 1e-5f};

/* share: of the largest logit. */
static void assert_close(const float *a, const float *b, int64_t n, double share, const char *what)
{
    double most = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)a[i]));
    }
    if (!(most <= share * largest))
        fail_msg("%s change logits by %g; the largest is %g", what, most, largest);
}

static void check_ranks(fkv_form form)
{
    enum { N = 2, VOCAB = 1024 };
    static float one[N_PROMPTS * VOCAB], many[N_PROMPTS * VOCAB];
    static const int ranks[] = {3, 5, 6, 7};
    const fixture real = model;
    const int real_heads = n_heads;
    fkv_err err = {0};
    trial *t = calloc(1, sizeof *t), *other = calloc(1, sizeof *other);
    model.config = eight_heads;
    n_heads = 16;
    if (fkv_safetensors_open_dummy(1, 1024 * 896, 896, &model.weights, &err)) fixture_die("weights", &err);
    *t = base();
    t->form = form;
    t->ranks = 1;
    t->n = N;
    t->first = one;
    run_trial(t);
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
        char what[32];
        *t = base();
        t->form = form;
        t->ranks = ranks[i];
        t->n = N;
        t->first = many;
        run_trial(t);
        snprintf(what, sizeof what, "%d ranks", ranks[i]);
        /* activations may be bf16; a rank's share of an FP8 row has a scale of its own */
        assert_close(one, many, N * VOCAB, form == FKV_FORM_FP8 ? 0.15 : 0.03, what);
        *other = base();
        other->form = form;
        other->ranks = ranks[i];
        other->devices = 2;
        other->n = N;
        other->mode = FKV_PLAN_FAIR_COPYING;
        run_trial(other);
        assert_same(t, other, "another mode on two devices");
    }
    fkv_safetensors_close(model.weights);
    model = real;
    n_heads = real_heads;
    free(t);
    free(other);
}

static void odd_numbers_of_ranks_share_columns_and_heads(void **state)
{
    (void)state;
    check_ranks(FKV_FORM_NATIVE);
}

static void odd_numbers_of_ranks_share_columns_and_heads_in_fp8(void **state)
{
    (void)state;
    check_ranks(FKV_FORM_FP8);
}

/* The real model's logits beside those of the weights as the backend holds them. */
static void logits_in_fp8_are_near_those_of_the_files(void **state)
{
    (void)state;
    const int64_t all = (int64_t)N_PROMPTS * model.config.vocab;
    const uint64_t before = all_hash; /* which has such a trial already */
    float *first[2];
    trial *t[2];
    int agree = 0;
    for (int i = 0; i < 2; i++) {
        first[i] = calloc((size_t)all, sizeof *first[i]);
        t[i] = calloc(1, sizeof *t[i]);
        assert_true(first[i] && t[i]);
        *t[i] = base();
        t[i]->first = first[i];
        t[i]->form = i ? FKV_FORM_FP8 : FKV_FORM_NATIVE;
        run_trial(t[i]);
    }
    all_hash = before;
    assert_close(first[0], first[1], all, 0.15, "FP8's roundings");
    for (int i = 0; i < N_PROMPTS; i++) agree += t[0]->ids[i][0] == t[1]->ids[i][0];
    assert_true(agree >= N_PROMPTS - 2);
    assert_true(t[1]->stats.weight_bytes <= t[0]->stats.weight_bytes);
    for (int i = 0; i < 2; i++) free(first[i]), free(t[i]);
}

static void more_ranks_than_heads_are_refused(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_engine *engine = NULL;
    const fkv_engine_options o = {.backend = backend,
                                  .n_ranks = model.config.n_kv_heads + 1,
                                  .n_devices = 1,
                                  .n_slots = 1,
                                  .max_prompt = 64};
    assert_int_equal(fkv_engine_open(&model.config, model.weights, &o, &engine, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "than KV heads"));
    fkv_engine_close(engine);
}

static const fkv_backend *counted;
static atomic_int n_loads;

static fkv_status count_load(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k, fkv_weight **out,
                             fkv_err *err)
{
    n_loads++;
    return counted->weight_load(dev, parts, n_parts, k, out, err);
}

static void an_engine_resized_is_one_opened_so(void **state)
{
    (void)state;
    fkv_backend counting = *backend;
    trial *reference = calloc(1, sizeof *reference), *other = calloc(1, sizeof *other);
    counted = backend;
    counting.weight_load = count_load;
    backend = &counting;
    for (int devices = 1; devices <= 2; devices++) {
        int loads[3];
        for (int i = 0; i < 3; i++) {
            const int before[] = {0, 1, 9};
            trial *t = i ? other : reference;
            *t = base();
            t->devices = devices;
            t->mode = FKV_PLAN_FAIR_COPYING;
            t->first_slots = before[i];
            n_loads = 0;
            run_trial(t);
            loads[i] = n_loads;
            assert_same(reference, t, "another number of slots before");
            assert_int_equal(loads[i], loads[0]); /* weights are loaded once */
            assert_int_equal(t->stats.decode_steps, reference->stats.decode_steps);
        }
    }
    backend = counted;
    free(reference);
    free(other);
}

static const fkv_backend *friends;

static void info_of_strangers(const fkv_device *dev, fkv_device_info *info)
{
    friends->info(dev, info);
    info->peers = false;
}

static void copies_out_of_reach_are_refused(void **state)
{
    (void)state;
    fkv_backend strangers = *backend;
    trial *t = calloc(1, sizeof *t);
    friends = backend;
    strangers.info = info_of_strangers;
    backend = &strangers;
    *t = base();
    t->devices = 2;
    t->n = 1;
    run_trial(t); /* standard: every head at home */
    t->mode = FKV_PLAN_FAIR_COPYING;
    t->refusal = "can't reach each other's memory: use plan.mode = standard";
    run_trial(t);
    backend = friends;
    free(t);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_do_not_depend_on_slots_modes_or_devices),
        cmocka_unit_test(logits_do_not_depend_on_a_resume),
        cmocka_unit_test(tokens_that_are_read_late_are_the_same),
        cmocka_unit_test(two_engines_at_once_answer_as_one),
        cmocka_unit_test(logits_do_not_depend_on_the_arena),
        cmocka_unit_test(sampled_tokens_follow_seed_and_record_alone),
        cmocka_unit_test(a_budget_as_long_as_the_prompt_changes_nothing),
        cmocka_unit_test(logits_of_fp8_pages_depend_on_as_little),
        cmocka_unit_test(odd_numbers_of_ranks_share_columns_and_heads),
        cmocka_unit_test(logits_in_fp8_do_not_depend_on_slots_modes_or_devices),
        cmocka_unit_test(odd_numbers_of_ranks_share_columns_and_heads_in_fp8),
        cmocka_unit_test(logits_in_fp8_are_near_those_of_the_files),
        cmocka_unit_test(more_ranks_than_heads_are_refused),
        cmocka_unit_test(an_engine_resized_is_one_opened_so),
        cmocka_unit_test(copies_out_of_reach_are_refused),
        cmocka_unit_test(a_sampling_of_its_own_does_not_depend_on_its_neighbours),
    };
    const char *name = argc > 1 ? argv[1] : "cpu";
    /* Where there is one GPU two devices share it: kernels that wait for others run beside
     * these, so nothing may be loaded meanwhile. */
    setenv("FAIRKV_DEVICES_PER_GPU", "2", 0);
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    backend = fkv_backend_find(name);
    if (!backend) {
        printf("skipped: %s %s\n", name, fkv_backend_why(name));
        return 77;
    }
    fixture_open(&model, argc > 2 ? argv[2] : FKV_TEST_DIR "/data/needle-tiny", "data/needle_500.jsonl",
                 N_PROMPTS);
    n_heads = model.config.n_layers * model.config.n_kv_heads;
    if (n_heads > MAX_HEADS) fixture_die("too large a model for this test", NULL);
    for (int i = 0; i < n_heads; i++) uneven[i] = pattern[(i + i / 16) % 16];
    for (int i = 0; i < N_PROMPTS; i++) {
        in_order[i] = i;
        reversed[i] = N_PROMPTS - 1 - i;
    }
    const char *skip = getenv("FKV_TEST_SKIP"); /* as in backend_fixture.h */
    if (skip) cmocka_set_skip_filter(skip);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("hash of all logits: %016llx\nwith FP8 weights: %016llx\nwith fp8 pages: %016llx\n",
           (unsigned long long)all_hash, (unsigned long long)weights_hash, (unsigned long long)pages_hash);
    fixture_close(&model);
    return failed;
}
