/* The arithmetic of head budgets: see budget.h. Owns nothing but the arrays of
 * fkv_profile. Not for files: those are profile_file.c's.
 *
 * Ideal budgets are real numbers; all are rounded by one function. It works on
 * multiples of 2^-24 token, so that remainders that are equal on paper are equal
 * here too, whatever order their sums were taken in.
 */
#include "engine/plan/budget.h"

#include <math.h>
#include <string.h>

#include "runner/base/mem.h"

enum { FRACTION_BITS = 24 };
static const int64_t FRACTION_ONE = (int64_t)1 << FRACTION_BITS;

fkv_status fkv_profile_init(fkv_profile *p, int n_layers, int n_kv_heads, fkv_err *err)
{
    size_t n = 0;
    *p = (fkv_profile){.n_layers = n_layers, .n_kv_heads = n_kv_heads};
    if (n_layers < 1 || n_kv_heads < 1 || !fkv_mul_size((size_t)n_layers, (size_t)n_kv_heads, &n))
        return fkv_fail(err, FKV_E_INPUT, "a profile needs layers and heads, not %d and %d", n_layers,
                        n_kv_heads);
    p->budgets = fkv_calloc(n, sizeof *p->budgets);
    return p->budgets ? FKV_OK : fkv_fail_memory(err);
}

void fkv_profile_free(fkv_profile *p)
{
    free(p->prompt_tokens);
    free(p->new_tokens);
    free(p->budgets);
    *p = (fkv_profile){0};
}

double fkv_profile_kept_share(const fkv_profile *p)
{
    const int64_t n_lh = (int64_t)p->n_layers * p->n_kv_heads;
    double kept = 0, all = 0;
    for (int i = 0; i < p->n_sample; i++) {
        for (int64_t h = 0; h < n_lh; h++) kept += fmin((double)p->budgets[h], (double)p->prompt_tokens[i]);
        all += (double)p->prompt_tokens[i] * (double)n_lh;
    }
    return all > 0 ? kept / all : 1;
}

int64_t fkv_profile_prompt(const fkv_profile *p, double share)
{
    const int wanted = (int)ceil(share * p->n_sample);
    int64_t below = -1, at = INT32_MAX; /* enough are no longer than at, too few no longer than below */
    while (at - below > 1) {
        const int64_t middle = below + (at - below) / 2;
        int n = 0;
        for (int i = 0; i < p->n_sample; i++) n += p->prompt_tokens[i] <= middle;
        if (n >= wanted)
            at = middle;
        else
            below = middle;
    }
    return p->n_sample ? at : 0;
}

static size_t n_all_heads(const fkv_profile *p)
{
    return (size_t)p->n_layers * (size_t)p->n_kv_heads;
}

void fkv_budget_uniform(fkv_profile *p, int64_t b)
{
    for (size_t i = 0; i < n_all_heads(p); i++) p->budgets[i] = (int32_t)b;
    p->mean_budget = b;
}

/* Ideal budgets of n heads: base + span * weight / sum of weights. */
typedef struct shares {
    const double *weights; /* [n]; negative or not finite: 0 */
    double largest, sum;   /* sum is of weight / largest, so it can't overflow */
    double base, span;
} shares;

static double weight(const double *weights, size_t i)
{
    return isfinite(weights[i]) && weights[i] > 0 ? weights[i] : 0;
}

static shares shares_of(const double *weights, size_t n, double base, double span)
{
    shares s = {.weights = weights, .base = base, .span = span};
    for (size_t i = 0; i < n; i++) s.largest = fmax(s.largest, weight(weights, i));
    for (size_t i = 0; s.largest > 0 && i < n; i++) s.sum += weight(weights, i) / s.largest;
    if (s.largest <= 0) s.sum = (double)n;
    return s;
}

/* In units of 2^-FRACTION_BITS. */
static int64_t ideal(const shares *s, size_t i)
{
    const double w = s->largest > 0 ? weight(s->weights, i) / s->largest : 1;
    const double tokens = s->base + s->span * (w / s->sum);
    return llround(fmin(fmax(tokens, 0), FKV_BUDGET_MAX) * (double)FRACTION_ONE);
}

/* Sum of what stands above level, after mirroring (sign -1: what is missing). */
static int64_t above(const int32_t *x, size_t n, int sign, int64_t level)
{
    int64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        if (sign * (int64_t)x[i] > level) sum += sign * (int64_t)x[i] - level;
    return sum;
}

/* Takes excess from the largest budgets (sign 1) or gives it to the smallest
 * (sign -1), as if one token at a time, among equals the highest index first. */
static void settle(int32_t *x, size_t n, int sign, int64_t excess)
{
    int64_t lo = sign > 0 ? 1 : -(int64_t)FKV_BUDGET_MAX, hi = sign > 0 ? FKV_BUDGET_MAX : -1;
    while (lo < hi) { /* the highest level that frees enough */
        const int64_t mid = lo + (hi - lo + 1) / 2;
        if (above(x, n, sign, mid) >= excess)
            lo = mid;
        else
            hi = mid - 1;
    }
    int64_t back = above(x, n, sign, lo) - excess;
    for (size_t i = 0; i < n; i++) {
        if (sign * (int64_t)x[i] <= lo) continue;
        x[i] = (int32_t)(sign * (lo + (back > 0)));
        back -= back > 0;
    }
}

/* Heads whose ideal has a fraction above f. */
static int64_t count_fractions(const shares *s, size_t n, int64_t f)
{
    int64_t count = 0;
    for (size_t i = 0; i < n; i++) count += (ideal(s, i) & (FRACTION_ONE - 1)) > f;
    return count;
}

/* Largest remainder: floors, then one token more for the largest fractions
 * (ties: lower index) until the sum is total. Needs no memory of its own: the
 * smallest fraction that still gets one is found by bisection. */
static void round_shares(const shares *s, size_t n, int64_t total, int32_t *out)
{
    int64_t left = total;
    for (size_t i = 0; i < n; i++) {
        out[i] = (int32_t)(ideal(s, i) >> FRACTION_BITS);
        left -= out[i];
    }
    if (left > 0 && left <= (int64_t)n) {
        int64_t lo = 0, hi = FRACTION_ONE - 1; /* fewest fractions above it, but no more than left */
        while (lo < hi) {
            const int64_t mid = lo + (hi - lo) / 2;
            if (count_fractions(s, n, mid) <= left)
                hi = mid;
            else
                lo = mid + 1;
        }
        int64_t ties = left - count_fractions(s, n, lo);
        for (size_t i = 0; i < n; i++) {
            const int64_t f = ideal(s, i) & (FRACTION_ONE - 1);
            out[i] += f > lo || (f == lo && ties > 0);
            ties -= f == lo && ties > 0;
        }
    }
    int64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (out[i] < 1) out[i] = 1;
        if (out[i] > FKV_BUDGET_MAX) out[i] = FKV_BUDGET_MAX;
        sum += out[i];
    }
    if (sum > total) settle(out, n, 1, sum - total);
    if (sum < total) settle(out, n, -1, total - sum);
}

void fkv_budget_from_scores(fkv_profile *p, const double *scores, int64_t b, int forced, double alpha)
{
    const size_t n = n_all_heads(p);
    const double open = (double)(b - forced); /* tokens a head to hand out */
    const shares s = shares_of(scores, n, forced + alpha * open, (1 - alpha) * open * (double)n);
    round_shares(&s, n, (int64_t)n * b, p->budgets);
    p->mean_budget = b;
}

void fkv_budget_from_counts(fkv_profile *p, const double *sums, int64_t n_prompts, int64_t b)
{
    const size_t k = (size_t)p->n_kv_heads;
    if (n_prompts <= 0) {
        fkv_budget_uniform(p, b);
        return;
    }
    /* The mean's divisor cancels out: a layer's budgets are its share of k b. */
    for (size_t l = 0; l < (size_t)p->n_layers; l++) {
        const shares s = shares_of(sums + l * k, k, 0, (double)k * (double)b);
        round_shares(&s, k, (int64_t)k * b, p->budgets + l * k);
    }
    p->mean_budget = b;
}

/* A key that orders as the score does: NaN lowest, -0 as 0. */
static uint32_t key_of(float score)
{
    uint32_t bits;
    if (isnan(score)) return 0;
    if (score == 0) score = 0;
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

enum { DIGIT_BITS = 11, N_BUCKETS = 1 << DIGIT_BITS };

/* The bucket that holds the *rank-th largest (from 1) of those counted;
 * *rank becomes its rank inside the bucket. */
static uint32_t bucket_of_rank(const size_t *counts, size_t *rank)
{
    uint32_t i = N_BUCKETS - 1;
    while (i > 0 && counts[i] < *rank) *rank -= counts[i--];
    return i;
}

/* The rank-th largest key (1 <= rank <= n) by radix, O(n). keep holds the keys
 * of the first digit's bucket, as the bits of floats. */
static uint32_t key_of_rank(const float *scores, size_t n, size_t rank, float *keep)
{
    size_t counts[N_BUCKETS] = {0}, n_keep = 0;
    for (size_t i = 0; i < n; i++) counts[key_of(scores[i]) >> 21]++;
    uint32_t prefix = bucket_of_rank(counts, &rank);
    for (size_t i = 0; i < n; i++) {
        const uint32_t key = key_of(scores[i]);
        if (key >> 21 == prefix) memcpy(&keep[n_keep++], &key, sizeof key);
    }
    for (int shift = 10; shift >= 0; shift -= 10) { /* 11 bits are settled; 11 and 10 remain */
        const int bits = shift ? 11 : 10;
        memset(counts, 0, sizeof counts);
        for (size_t i = 0; i < n_keep; i++) {
            uint32_t key;
            memcpy(&key, &keep[i], sizeof key);
            if (key >> (shift + bits) == prefix) counts[key >> shift & ((1u << bits) - 1)]++;
        }
        prefix = prefix << bits | bucket_of_rank(counts, &rank);
    }
    return prefix;
}

void fkv_budget_ada_count(const float *pooled, int n_kv_heads, int64_t n, int64_t b, int forced, double alpha,
                          float *work, double *sum)
{
    const size_t row = (size_t)n, n_scores = (size_t)n_kv_heads * row;
    size_t left = (size_t)(b - forced) * (size_t)n_kv_heads; /* taken among all heads */
    if (left > n_scores) left = n_scores;
    const uint32_t last = left ? key_of_rank(pooled, n_scores, left, work) : UINT32_MAX;
    for (size_t i = 0; i < n_scores && left; i++) left -= key_of(pooled[i]) > last;
    /* left: how many of those equal to the last one are in. */
    for (int h = 0; h < n_kv_heads; h++) {
        size_t taken = 0, equal = 0;
        for (size_t j = 0; j < row; j++) {
            const uint32_t key = key_of(pooled[(size_t)h * row + j]);
            taken += key > last;
            equal += key == last;
        }
        if (equal > left) equal = left;
        left -= equal;
        taken += equal;
        sum[h] += (1 - alpha) * (double)taken + alpha * (double)(b - forced) + forced;
    }
}
