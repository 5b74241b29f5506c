/* Sampling of the CPU backend: greedy, or temperature, then top-k, then top-p.
 *
 * Probabilities are summed in double in one fixed order (by id; among chosen
 * candidates by rank), and the random number depends on seed, record and step
 * alone, so a token never depends on the slot or its neighbours. */
#include <math.h>

#include "kernels/cpu_device.h"
#include "runner/base/hash.h"

/* FKV_TOKEN_BAD_LOGITS where there is a NaN, or the largest is not finite. */
static int32_t argmax(const float *x, int n)
{
    int best = 0;
    bool nan = false;
    for (int i = 0; i < n; i++) {
        nan |= isnan(x[i]);
        if (x[i] > x[best]) best = i;
    }
    return nan || !isfinite(x[best]) ? FKV_TOKEN_BAD_LOGITS : best;
}

/* Whether id a comes before b: larger logit, ties to the lower id. */
static bool before(const float *x, int32_t a, int32_t b)
{
    return x[a] != x[b] ? x[a] > x[b] : a < b;
}

static void sift(const float *x, int32_t *heap, int n, int i)
{
    for (;;) {
        int top = i;
        for (int c = 2 * i + 1; c <= 2 * i + 2; c++)
            if (c < n && before(x, heap[c], heap[top])) top = c;
        if (top == i) return;
        const int32_t t = heap[i];
        heap[i] = heap[top];
        heap[top] = t;
        i = top;
    }
}

static double weight_of(const float *x, int32_t id, float max, float temperature)
{
    return exp(((double)x[id] - (double)max) / (double)temperature);
}

/* Candidates in order from a heap, so that only as many are sorted as are needed.
 * The popped ids end up behind the heap: the i-th best at ids[n - 1 - i]. */
static int32_t sample_candidates(const float *x, int n, float max, const fkv_sampling *p, double u,
                                 float *weights, int32_t *ids)
{
    const int limit = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    double total = 0, kept = 0;
    for (int i = 0; i < n; i++) ids[i] = i;
    for (int i = n / 2 - 1; i >= 0; i--) sift(x, ids, n, i);
    if (limit == n)
        for (int i = 0; i < n; i++) total += weight_of(x, i, max, p->temperature);
    int m = 0; /* candidates taken; one at least, for a top_p that is 0 as a float */
    while (m < limit && (m == 0 || limit < n || kept < (double)p->top_p * total)) {
        const int32_t best = ids[0];
        ids[0] = ids[n - 1 - m];
        ids[n - 1 - m] = best;
        m++;
        sift(x, ids, n - m, 0);
        weights[m - 1] = (float)weight_of(x, best, max, p->temperature);
        kept += weights[m - 1];
    }
    if (limit < n) { /* top-p among the top k */
        total = kept;
        kept = 0;
        int cut = 0;
        while (cut < m && (cut == 0 || kept < (double)p->top_p * total)) kept += weights[cut++];
        m = cut;
    }
    double at = u * kept;
    for (int i = 0; i < m; i++) {
        at -= weights[i];
        if (at < 0) return ids[n - 1 - i];
    }
    return ids[n - m];
}

static int32_t sample_all(const float *x, int n, float max, const fkv_sampling *p, double u)
{
    double total = 0;
    for (int i = 0; i < n; i++) total += weight_of(x, i, max, p->temperature);
    double at = u * total;
    int last = 0;
    for (int i = 0; i < n; i++) {
        const double w = weight_of(x, i, max, p->temperature);
        if (w > 0) last = i;
        at -= w;
        if (at < 0) return i;
    }
    return last;
}

/* The penalty as HF transformers has it, in float32. */
static void penalise(float *x, int n, float penalty, const uint32_t *seen)
{
    for (int i = 0; i < n; i++)
        if (seen[i / 32] >> i % 32 & 1) x[i] = x[i] < 0 ? x[i] * penalty : x[i] / penalty;
}

typedef struct sample_job {
    const fkv_device *dev;
    float *logits;
    int64_t stride;
    bool first;
    const fkv_slots *slots;
    const fkv_token_rules *rules;
    int vocab;
} sample_job;

static void adjust(const sample_job *j, const fkv_sampling *p, int64_t slot, float *x)
{
    const fkv_token_rules *r = j->rules;
    if (FKV_SAMPLING_PENALISES(*p))
        penalise(x, j->vocab, p->repetition_penalty, j->slots->seen + slot * FKV_SEEN_WORDS(j->vocab));
    for (int i = 0; i < r->n_suppressed; i++) x[r->suppressed[i]] = -INFINITY;
    if (j->slots->n_new[slot] >= p->min_new) return;
    for (int i = 0; i < r->n_ends && !p->ignores_ends; i++) x[r->ends[i]] = -INFINITY;
    if (p->has_end) x[p->end] = -INFINITY;
}

static int32_t draw(const sample_job *j, const fkv_sampling *p, int64_t slot, const float *x, float max,
                    int thread)
{
    const uint64_t bits = fkv_random_u64(p->seed, p->stream, (uint64_t)j->slots->n_new[slot]);
    const double u = (double)(bits >> 11) * 0x1p-53;
    const int64_t mine = (int64_t)thread * j->vocab;
    if (p->top_k <= 0 && p->top_p >= 1) return sample_all(x, j->vocab, max, p, u);
    return sample_candidates(x, j->vocab, max, p, u, j->dev->sample_work + mine, j->dev->sample_ids + mine);
}

static void sample_task(void *ctx, int64_t slot, int thread)
{
    const sample_job *j = ctx;
    const fkv_slots *s = j->slots;
    const fkv_sampling *p = &s->sampling[slot];
    s->out[slot] = FKV_TOKEN_NONE;
    if (s->active[slot] != (j->first ? FKV_SLOT_FRESH : FKV_SLOT_DECODING)) return;
    float *x = j->logits + slot * j->stride;
    adjust(j, p, slot, x);
    int32_t token = argmax(x, j->vocab);
    if (token == FKV_TOKEN_BAD_LOGITS) {
        s->out[slot] = token;
        s->active[slot] = FKV_SLOT_IDLE;
        return;
    }
    if (p->temperature > 0) token = draw(j, p, slot, x, x[token], thread);
    s->out[slot] = token;
    s->token[slot] = token;
    s->n_new[slot]++;
    if (!j->first) s->pos[slot]++;
    if (FKV_SAMPLING_PENALISES(*p)) s->seen[slot * FKV_SEEN_WORDS(j->vocab) + token / 32] |= 1u << token % 32;
    const bool stop = s->n_new[slot] >= s->max_new[slot] || fkv_sampling_ends(p, j->rules, token);
    s->active[slot] = stop ? FKV_SLOT_IDLE : FKV_SLOT_DECODING;
}

void cpu_sample(fkv_device *dev, float *logits, int64_t stride, int n_slots, bool first,
                const fkv_slots *slots, const fkv_token_rules *rules, int choice, int vocab)
{
    sample_job j = {dev, logits, stride, first, slots, rules, vocab};
    cpu_pool_run(dev->pool, n_slots, (choice & FKV_CHOICE_DRAWS ? 60.0 : 1.0) * n_slots * vocab, sample_task,
                 &j);
}
