/* Head budgets: hand-computed examples, a brute-force Ada-KV count, exact sums
 * over random inputs, and the files that carry budgets and scores. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/plan/budget.h"
#include "runner/base/file.h"

static char dir[256], path[300];
static uint64_t seed = 1;

static uint32_t rnd(uint32_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % below);
}

static fkv_profile profile(int n_layers, int n_kv_heads)
{
    fkv_profile p;
    fkv_err err = {0};
    assert_int_equal(fkv_profile_init(&p, n_layers, n_kv_heads, &err), FKV_OK);
    return p;
}

static void expect(const fkv_profile *p, const int32_t *want)
{
    for (int i = 0; i < p->n_layers * p->n_kv_heads; i++)
        if (p->budgets[i] != want[i]) fail_msg("budget %d is %d, not %d", i, p->budgets[i], want[i]);
}

static void scores_give(int n_layers, int n_kv_heads, const double *scores, int64_t b, int window,
                        double alpha, const int32_t *want)
{
    fkv_profile p = profile(n_layers, n_kv_heads);
    fkv_budget_from_scores(&p, scores, b, window, alpha);
    assert_int_equal(p.mean_budget, b);
    expect(&p, want);
    fkv_profile_free(&p);
}

static void counts_give(int n_layers, int n_kv_heads, const double *sums, int64_t n_prompts, int64_t b,
                        const int32_t *want)
{
    fkv_profile p = profile(n_layers, n_kv_heads);
    fkv_budget_from_counts(&p, sums, n_prompts, b);
    assert_int_equal(p.mean_budget, b);
    expect(&p, want);
    fkv_profile_free(&p);
}

static void test_uniform(void **state)
{
    (void)state;
    fkv_profile p = profile(2, 2);
    fkv_budget_uniform(&p, 77);
    expect(&p, (int32_t[]){77, 77, 77, 77});
    assert_int_equal(p.mean_budget, 77);
    fkv_profile_free(&p);
}

static void test_scores_by_hand(void **state)
{
    (void)state;
    /* 48 for each head and 32 tokens shared out as 1 to 3. */
    scores_give(1, 2, (double[]){1, 3}, 64, 32, 0.5, (int32_t[]){56, 72});
    /* The sharing goes over all layers. */
    scores_give(2, 1, (double[]){1, 3}, 64, 32, 0.5, (int32_t[]){56, 72});
    /* With no floor, a head of no score keeps the window alone. */
    scores_give(1, 2, (double[]){0, 1}, 64, 32, 0, (int32_t[]){32, 96});
    scores_give(1, 3, (double[]){-5, 1, NAN}, 64, 32, 0, (int32_t[]){32, 128, 32});
    scores_give(1, 2, (double[]){9, 1}, 64, 32, 1, (int32_t[]){64, 64});
    scores_give(2, 2, (double[]){0, -1, 0, 0}, 64, 32, 0.5, (int32_t[]){64, 64, 64, 64});
    scores_give(1, 2, (double[]){5, 1}, 32, 32, 0.5, (int32_t[]){32, 32});
    /* Only ratios matter, at any magnitude. */
    scores_give(1, 2, (double[]){1e308, 1e308}, 64, 32, 0.5, (int32_t[]){64, 64});
    scores_give(1, 2, (double[]){1e-320, 3e-320}, 64, 32, 0.5, (int32_t[]){56, 72});
}

static void test_rounding_ties_go_to_lower_heads(void **state)
{
    (void)state;
    /* 2.5, 2.5, 1 */
    scores_give(1, 3, (double[]){1, 1, 0}, 2, 1, 0, (int32_t[]){3, 2, 1});
    scores_give(3, 1, (double[]){0, 1, 1}, 2, 1, 0, (int32_t[]){1, 3, 2});
    /* Equal on paper, though 0.1 + 0.2 is more than 0.3 in doubles. */
    const volatile double tenth = 0.1;
    scores_give(1, 3, (double[]){0.3, tenth + 0.2, 0}, 2, 1, 0, (int32_t[]){3, 2, 1});
    /* Every layer by itself; nothing to round. */
    counts_give(2, 3, (double[]){1, 1, 1, 7, 7, 7}, 5, 21, (int32_t[]){21, 21, 21, 21, 21, 21});
    counts_give(1, 4, (double[]){2, 2, 1, 3}, 1, 4, (int32_t[]){4, 4, 2, 6});
    /* 9 tokens as 1.8, 1.8, 5.4: two large remainders, one small */
    counts_give(1, 3, (double[]){1, 1, 3}, 1, 3, (int32_t[]){2, 2, 5});
    /* 10 tokens as 2.5, 2.5, 2.5, 1.25, 1.25: two to give among three equals */
    counts_give(1, 5, (double[]){2, 2, 2, 1, 1}, 1, 2, (int32_t[]){3, 3, 2, 1, 1});
}

static void test_counts_by_hand(void **state)
{
    (void)state;
    counts_give(1, 2, (double[]){200, 56}, 2, 64, (int32_t[]){100, 28});
    counts_give(2, 2, (double[]){200, 56, 128, 128}, 2, 64, (int32_t[]){100, 28, 64, 64});
    counts_give(2, 2, (double[]){0, 0, 0, 0}, 0, 64, (int32_t[]){64, 64, 64, 64});
    /* Nobody falls below 1; the largest pay for it. */
    counts_give(1, 4, (double[]){1e9, 1, 0, 0}, 1, 2, (int32_t[]){5, 1, 1, 1});
    counts_give(1, 4, (double[]){1, 1, 0, 0}, 1, 2, (int32_t[]){3, 3, 1, 1});
    counts_give(1, 3, (double[]){1, 0, 0}, 1, 1, (int32_t[]){1, 1, 1});
    counts_give(1, 5, (double[]){5, 4, 0, 0, 0}, 1, 2, (int32_t[]){4, 3, 1, 1, 1});
}

static void test_budgets_have_a_largest_value(void **state)
{
    (void)state;
    const int32_t max = FKV_BUDGET_MAX;
    scores_give(1, 3, (double[]){1, 0, 0}, max, 1, 0, (int32_t[]){max, max, max});
    scores_give(1, 3, (double[]){1, 0, 0}, max / 2, 1, 0, (int32_t[]){max, max / 4, max / 4});
}

static void random_scores(double *s, int n)
{
    const uint32_t kind = rnd(4);
    for (int i = 0; i < n; i++) {
        if (kind == 0)
            s[i] = (double)rnd(4); /* many ties */
        else if (kind == 1)
            s[i] = (double)rnd(1000000) / 1e6 - 0.3;
        else if (kind == 2)
            s[i] = exp((double)rnd(1000) / 10 - 50);
        else
            s[i] = rnd(10) ? 0 : (double)rnd(100);
    }
}

/* Sums are exact, nobody is more than a token from the ideal, and a higher
 * score never gets less. */
static void test_random_scores(void **state)
{
    (void)state;
    double s[200];
    for (int round = 0; round < 3000; round++) {
        const int n_layers = 1 + (int)rnd(20), n_kv_heads = 1 + (int)rnd(10), n = n_layers * n_kv_heads;
        const int window = 1 + (int)rnd(40);
        const int64_t b = window + rnd(rnd(2) ? 100 : 100000);
        const double alpha = rnd(5) / 4.0;
        random_scores(s, n);
        fkv_profile p = profile(n_layers, n_kv_heads);
        fkv_budget_from_scores(&p, s, b, window, alpha);
        double sum_s = 0, before = 0;
        int64_t sum = 0;
        for (int i = 0; i < n; i++) sum_s += s[i] > 0 ? s[i] : 0;
        for (int i = 0; i < n; i++) {
            const double share = sum_s > 0 ? (s[i] > 0 ? s[i] : 0) / sum_s : 1.0 / n;
            const double want = window + (double)(b - window) * (alpha + (1 - alpha) * n * share);
            if (fabs(p.budgets[i] - want) >= 1 + 1e-6)
                fail_msg("budget %d is %d, ideal %.9g", i, p.budgets[i], want);
            assert_true(p.budgets[i] >= window);
            if (i && want > before + 1e-6) assert_true(p.budgets[i] >= p.budgets[i - 1]);
            if (i && want < before - 1e-6) assert_true(p.budgets[i] <= p.budgets[i - 1]);
            before = want;
            sum += p.budgets[i];
        }
        assert_int_equal(sum, n * b);
        fkv_profile_free(&p);
    }
}

static void test_random_counts(void **state)
{
    (void)state;
    double s[200];
    for (int round = 0; round < 3000; round++) {
        const int n_layers = 1 + (int)rnd(20), n_kv_heads = 1 + (int)rnd(10);
        const int64_t b = 1 + rnd(rnd(2) ? 8 : 5000);
        random_scores(s, n_layers * n_kv_heads);
        fkv_profile p = profile(n_layers, n_kv_heads);
        fkv_budget_from_counts(&p, s, 1 + rnd(9), b);
        for (int l = 0; l < n_layers; l++) {
            int64_t sum = 0;
            for (int h = 0; h < n_kv_heads; h++) {
                const int32_t x = p.budgets[l * n_kv_heads + h];
                assert_in_range(x, 1, b * n_kv_heads);
                sum += x;
            }
            assert_int_equal(sum, n_kv_heads * b);
        }
        fkv_profile_free(&p);
    }
}

/* ---- Ada-KV counts ---- */

typedef struct place {
    float score;
    int head;
    int64_t position;
} place;

static int by_rank(const void *va, const void *vb)
{
    const place *a = va, *b = vb;
    if (isnan(a->score) != isnan(b->score)) return isnan(a->score) ? 1 : -1;
    if (a->score > b->score) return -1;
    if (a->score < b->score) return 1;
    if (a->head != b->head) return a->head - b->head;
    return (a->position > b->position) - (a->position < b->position);
}

static void brute_force(const float *pooled, int n_kv_heads, int64_t n, int64_t b, int window, double alpha,
                        double *sum)
{
    const int64_t all = (int64_t)n_kv_heads * n;
    place p[8 * 200];
    int64_t taken[8] = {0};
    assert_true(all <= 1600);
    for (int64_t i = 0; i < all; i++) p[i] = (place){pooled[i], (int)(i / n), i % n};
    qsort(p, (size_t)all, sizeof *p, by_rank);
    for (int64_t i = 0; i < (b - window) * n_kv_heads && i < all; i++) taken[p[i].head]++;
    for (int h = 0; h < n_kv_heads; h++)
        sum[h] += (1 - alpha) * (double)taken[h] + alpha * (double)(b - window) + window;
}

static void test_ada_count_by_hand(void **state)
{
    (void)state;
    /* The two best are head 0's 0.9 and, of the equal ones, head 0's again. */
    const float pooled[] = {0.9f, 0.5f, 0.1f, 0.5f, 0.5f, 0.2f};
    float work[6];
    double sum[2] = {100, 200};
    fkv_budget_ada_count(pooled, 2, 3, 5, 4, 0, work, sum);
    assert_true(sum[0] == 100 + 2 + 4);
    assert_true(sum[1] == 200 + 0 + 4);
    memset(sum, 0, sizeof sum);
    fkv_budget_ada_count(pooled, 2, 3, 5, 4, 0.5, work, sum);
    assert_true(sum[0] == 0.5 * 2 + 0.5 * 1 + 4);
    assert_true(sum[1] == 0.5 * 0 + 0.5 * 1 + 4);
    memset(sum, 0, sizeof sum);
    fkv_budget_ada_count(pooled, 2, 3, 6, 4, 0, work, sum); /* four: one of head 1's equals as well */
    assert_true(sum[0] == 2 + 4);
    assert_true(sum[1] == 2 + 4);
    memset(sum, 0, sizeof sum);
    fkv_budget_ada_count(pooled, 2, 3, 4, 4, 0, work, sum); /* the window alone */
    assert_true(sum[0] == 4);
    assert_true(sum[1] == 4);
}

static float random_score(uint32_t kind)
{
    static const float odd[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-45f, -1e-45f, 1, -1, 3e38f};
    union {
        uint32_t bits;
        float f;
    } any = {.bits = (uint32_t)rnd(1u << 16) << 16 | rnd(1u << 16)};
    switch (kind) {
    case 0: return (float)rnd(3) / 7;                                /* nearly all ties */
    case 1: return (float)rnd(1u << 20) / (1u << 20);                /* nearly none */
    case 2: return odd[rnd(sizeof odd / sizeof *odd)];               /* order of odd values */
    case 3: return 0.5f + (float)rnd(64) * 0x1p-24f;                 /* differ in the last bits alone */
    case 4: return any.f;                                            /* any bits */
    default: return expf((float)rnd(500) / 10 - 45) * (float)rnd(2); /* as softmax: many tiny, many 0 */
    }
}

static void test_ada_count_is_the_brute_force_one(void **state)
{
    (void)state;
    static float pooled[8 * 200], work[8 * 200];
    for (int round = 0; round < 4000; round++) {
        const int n_kv_heads = 1 + (int)rnd(8), window = 1 + (int)rnd(32);
        const int64_t n = 1 + rnd(200), b = window + rnd((uint32_t)n + 2);
        const double alpha = rnd(5) / 4.0;
        const uint32_t kind = rnd(6);
        double sum[8] = {0}, want[8] = {0};
        for (int64_t i = 0; i < n_kv_heads * n; i++) pooled[i] = random_score(kind);
        fkv_budget_ada_count(pooled, n_kv_heads, n, b, window, alpha, work, sum);
        brute_force(pooled, n_kv_heads, n, b, window, alpha, want);
        for (int h = 0; h < n_kv_heads; h++)
            if (fabs(sum[h] - want[h]) > 1e-9)
                fail_msg("kind %u, head %d of %d, n %lld, b %lld: %.9g, not %.9g", kind, h, n_kv_heads,
                         (long long)n, (long long)b, sum[h], want[h]);
    }
}

/* ---- files ---- */

static void put(const char *text)
{
    fkv_err err = {0};
    assert_int_equal(fkv_file_replace(path, text, strlen(text), &err), FKV_OK);
}

static void test_profile_round_trip(void **state)
{
    (void)state;
    static const double outputs[] = {0, 12, 0.1, 1.0 / 3, 98.99999999999999, 12345678901234567.0, 1e300};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) {
        fkv_err err = {0};
        fkv_profile p = profile(3, 2), q = {0};
        char *fingerprint = NULL;
        for (int k = 0; k < 6; k++) p.budgets[k] = k ? k * 1000 : FKV_BUDGET_MAX;
        p.mean_budget = 2500;
        p.n_sample = (int)i; /* an empty sample too */
        p.prompt_tokens = calloc(i + 1, sizeof *p.prompt_tokens);
        assert_non_null(p.prompt_tokens);
        for (size_t k = 0; k < i; k++) p.prompt_tokens[k] = (int32_t)(k * 777);
        p.mean_output = outputs[i];
        p.n_input = 1000 * (int64_t)i;
        p.longest_prompt = 7 * (int64_t)i;
        p.longest_new = 512;
        if (i % 2) snprintf(p.score, sizeof p.score, "keydiff");
        if (i % 2) p.sinks = 4;
        if (i % 2) p.new_tokens = calloc(i + 1, sizeof *p.new_tokens);
        for (size_t k = 0; p.new_tokens && k < i; k++) p.new_tokens[k] = (int32_t)(k * 3);
        assert_int_equal(fkv_profile_write(&p, "a \"model\"\n\xff", "f-\"\\\xc3\xa9", path, &err), FKV_OK);
        assert_int_equal(fkv_profile_read(path, &q, &fingerprint, &err), FKV_OK);
        assert_string_equal(fingerprint, "f-\"\\\xc3\xa9");
        assert_int_equal(q.n_layers, 3);
        assert_int_equal(q.n_kv_heads, 2);
        assert_int_equal(q.mean_budget, 2500);
        assert_memory_equal(q.budgets, p.budgets, 6 * sizeof *p.budgets);
        assert_int_equal(q.n_sample, p.n_sample);
        assert_memory_equal(q.prompt_tokens, p.prompt_tokens, i * sizeof *p.prompt_tokens);
        assert_true(q.mean_output == p.mean_output);
        assert_string_equal(q.score, p.score);
        assert_int_equal(q.sinks, p.sinks);
        assert_true(q.n_input == p.n_input && q.longest_prompt == p.longest_prompt && q.longest_new == 512);
        assert_int_equal(!q.new_tokens, !p.new_tokens);
        if (p.new_tokens) assert_memory_equal(q.new_tokens, p.new_tokens, i * sizeof *p.new_tokens);
        free(fingerprint);
        /* Again into a profile that holds a sample already. */
        assert_int_equal(fkv_profile_read(path, &q, &fingerprint, &err), FKV_OK);
        free(fingerprint);
        fkv_profile_free(&q);
        fkv_profile_free(&p);
    }
}

static void test_profile_has_a_layer_on_each_line(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_buf text = {0};
    fkv_profile p = profile(2, 2);
    for (int k = 0; k < 4; k++) p.budgets[k] = 10 + k;
    assert_int_equal(fkv_profile_write(&p, "m", "f", path, &err), FKV_OK);
    assert_int_equal(fkv_file_read(path, 1000, &text, &err), FKV_OK);
    assert_non_null(strstr(text.data, "\n [10,11],\n [12,13]\n"));
    assert_non_null(
        strstr(text.data, "{\"format\":\"fairkv-profile/1\",\"model\":\"m\",\"fingerprint\":\"f\","));
    fkv_buf_free(&text);

    p.mean_output = NAN;
    assert_int_equal(fkv_profile_write(&p, "m", "f", path, &err), FKV_E_INPUT);
    assert_string_equal(err.key, "mean_output");
    fkv_profile_free(&p);
}

/* Base text with the first from replaced by to. */
static void put_with(const char *base, const char *from, const char *to)
{
    char text[1000];
    const char *at = strstr(base, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - base), base, to, at + strlen(from));
    put(text);
}

#define HEAD "{\"format\":\"fairkv-profile/1\",\"n_layers\":2,\"n_kv_heads\":2,"
static const char PROFILE[] = HEAD "\"model\":\"m\",\"fingerprint\":\"f\",\"budget\":64,"
                                   "\"budgets\":[[100,28],[64,63]],"
                                   "\"sample\":{\"prompt_tokens\":[900,901],\"mean_output\":12.5}}";

static void test_damaged_profiles(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *key;
    } cases[] = {
        {"fairkv-profile/1", "fairkv-plan/1", "format"},
        {"\"format\"", "\"old\"", "format"},
        {"\"n_layers\":2", "\"n_layers\":3", "n_layers"},
        {"\"n_layers\":2", "\"n_layers\":0", "n_layers"},
        {"\"n_layers\":2", "\"n_layers\":1099511627776", "n_layers"},
        {"\"n_kv_heads\":2", "\"n_kv_heads\":4", "n_kv_heads"},
        {"\"n_kv_heads\":2", "\"n_kv_heads\":\"2\"", "n_kv_heads"},
        {"\"budget\":64", "\"budget\":-1", "budget"},
        {"\"budget\":64,", "", "budget"},
        {"\"budgets\"", "\"x\"", "budgets"},
        {"[[100,28],[64,63]]", "7", "budgets"},
        {",[64,63]", "", "budgets"},
        {"[64,63]", "[64,63],[1,1]", "budgets"},
        {"[64,63]", "5", "budgets[1]"},
        {"[64,63]", "[64]", "budgets[1]"},
        {"[64,63]", "[64,63,1]", "budgets[1]"},
        {"63", "0", "budgets[1][1]"},
        {"63", "63.0", "budgets[1][1]"},
        {"63", "134217729", "budgets[1][1]"},
        {"63", "1099511627840", "budgets[1][1]"},
        {"63", "\"63\"", "budgets[1][1]"},
        {"\"sample\"", "\"x\"", "sample"},
        {"\"prompt_tokens\"", "\"x\"", "prompt_tokens"},
        {"901", "-1", "prompt_tokens[1]"},
        {"901", "true", "prompt_tokens[1]"},
        {"901", "1099511627776", "prompt_tokens[1]"},
        {"12.5", "-12.5", "mean_output"},
        {"12.5", "\"12.5\"", "mean_output"},
        {"\"mean_output\"", "\"x\"", "mean_output"},
        {"\"fingerprint\":\"f\"", "\"fingerprint\":8", "fingerprint"},
        {"\"fingerprint\":\"f\",", "", "fingerprint"},
        {"12.5}}", "12.5}", ""},
        {"12.5}}", "12.5,\"new_tokens\":[1]}}", "new_tokens"},
        {"12.5}}", "12.5,\"new_tokens\":[1,-1]}}", "new_tokens[1]"},
        {"12.5}}", "12.5,\"new_tokens\":1}}", "new_tokens"},
        {"12.5}}", "12.5},\"input\":7}", "input"},
        {"12.5}}", "12.5},\"input\":{\"records\":-1}}", "records"},
        {"12.5}}", "12.5},\"input\":{\"records\":1}}", "longest_prompt"},
        {"\"model\"", "\"budget\"", ""}, /* a key twice */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fkv_err err = {0};
        fkv_profile p = profile(2, 2);
        char *fingerprint = NULL;
        put_with(PROFILE, cases[i].from, cases[i].to);
        const fkv_status st = fkv_profile_read(path, &p, &fingerprint, &err);
        if (st != FKV_E_INPUT || strcmp(err.file, path) != 0 || strcmp(err.key, cases[i].key) != 0)
            fail_msg("%s for %s: status %d, %s: %s: %s", cases[i].to, cases[i].from, st, err.file, err.key,
                     err.message);
        assert_null(fingerprint);
        fkv_profile_free(&p);
    }
}

static void test_budgets_file(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_profile p = profile(2, 2);
    p.mean_budget = 99;
    p.mean_output = 3;
    put(HEAD "\"budgets\":[[100,28],[64,1]]}");
    assert_int_equal(fkv_budget_read_file(path, &p, &err), FKV_OK);
    expect(&p, (int32_t[]){100, 28, 64, 1});
    assert_int_equal(p.mean_budget, 0);
    assert_true(p.mean_output == 3);
    put(PROFILE); /* a whole profile.json serves as well */
    assert_int_equal(fkv_budget_read_file(path, &p, &err), FKV_OK);
    expect(&p, (int32_t[]){100, 28, 64, 63});
    fkv_profile_free(&p);

    p = profile(2, 4);
    assert_int_equal(fkv_budget_read_file(path, &p, &err), FKV_E_INPUT);
    assert_string_equal(err.file, path);
    assert_string_equal(err.key, "n_kv_heads");
    assert_non_null(strstr(err.message, "the model's is 4"));
    fkv_profile_free(&p);
}

static void test_scores_files(void **state)
{
    (void)state;
    fkv_err err = {0};
    double s[4];
    put("{\"model\":\"m\",\"n_heads\":4,\"scores\":[[0.5,-0.25],[1,0]]}");
    assert_int_equal(fkv_scores_read_file(path, 2, 4, 2, s, &err), FKV_OK);
    assert_true(s[0] == 0.5);
    assert_true(s[1] == -0.25);
    assert_true(s[2] == 1);
    assert_true(s[3] == 0);
    put("{\"scores\":[[1,3,0,1],[0,0,-2,1]]}"); /* per query head: the means of pairs */
    assert_int_equal(fkv_scores_read_file(path, 2, 4, 2, s, &err), FKV_OK);
    assert_true(s[0] == 2);
    assert_true(s[1] == 0.5);
    assert_true(s[2] == 0);
    assert_true(s[3] == -0.5);
    put("{\"scores\":[[1,3],[2,0.5]]}"); /* no groups: both readings are one */
    assert_int_equal(fkv_scores_read_file(path, 2, 2, 2, s, &err), FKV_OK);
    assert_true(s[1] == 3);

    static const char *const bad[][2] = {
        {"{}", "scores"},
        {"{\"scores\":5}", "scores"},
        {"{\"scores\":[[1,2]]}", "scores"},
        {"{\"scores\":[[1,2],[1,2],[1,2]]}", "scores"},
        {"{\"scores\":[[1,2],7]}", "scores[1]"},
        {"{\"scores\":[[1,2],[1,2,3,4]]}", "scores[1]"},
        {"{\"scores\":[[1,2,3],[1,2,3]]}", "scores[0]"},
        {"{\"scores\":[[],[]]}", "scores[0]"},
        {"{\"scores\":[[1,2],[1,null]]}", "scores[1][1]"},
        {"{\"scores\":[[1,2],[1,\"2\"]]}", "scores[1][1]"},
        {"{\"scores\":[[1,2],[1,1e999]]}", ""},
        {"[[1,2],[1,2]]", ""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err = (fkv_err){0};
        put(bad[i][0]);
        const fkv_status st = fkv_scores_read_file(path, 2, 4, 2, s, &err);
        if (st != FKV_E_INPUT || strcmp(err.file, path) != 0 || strcmp(err.key, bad[i][1]) != 0)
            fail_msg("%s: status %d, %s: %s: %s", bad[i][0], st, err.file, err.key, err.message);
    }
}

static int make_dir(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/fkv-budget-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/profile.json", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_scores_by_hand),
        cmocka_unit_test(test_rounding_ties_go_to_lower_heads),
        cmocka_unit_test(test_counts_by_hand),
        cmocka_unit_test(test_budgets_have_a_largest_value),
        cmocka_unit_test(test_random_scores),
        cmocka_unit_test(test_random_counts),
        cmocka_unit_test(test_ada_count_by_hand),
        cmocka_unit_test(test_ada_count_is_the_brute_force_one),
        cmocka_unit_test(test_profile_round_trip),
        cmocka_unit_test(test_profile_has_a_layer_on_each_line),
        cmocka_unit_test(test_damaged_profiles),
        cmocka_unit_test(test_budgets_file),
        cmocka_unit_test(test_scores_files),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
