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

typedef struct sample_job {
    const fkv_device *dev;
    const float *logits;
    int64_t stride;
    bool first;
    const fkv_slots *slots;
    const fkv_sampling *p;
    int vocab;
} sample_job;

static void sample_task(void *ctx, int64_t slot, int thread)
{
    const sample_job *j = ctx;
    const fkv_slots *s = j->slots;
    s->out[slot] = FKV_TOKEN_NONE;
    if (s->active[slot] != (j->first ? FKV_SLOT_FRESH : FKV_SLOT_DECODING)) return;
    const float *x = j->logits + slot * j->stride;
    int32_t token = argmax(x, j->vocab);
    if (token == FKV_TOKEN_BAD_LOGITS) {
        s->out[slot] = token;
        s->active[slot] = FKV_SLOT_IDLE;
        return;
    }
    if (j->p->temperature > 0) {
        const uint64_t bits = fkv_random_u64(j->p->seed, s->ordinal[slot], (uint64_t)s->n_new[slot]);
        const double u = (double)(bits >> 11) * 0x1p-53;
        const float max = x[token];
        if (j->p->top_k > 0 || j->p->top_p < 1)
            token =
                sample_candidates(x, j->vocab, max, j->p, u, j->dev->sample_work + (int64_t)thread * j->vocab,
                                  j->dev->sample_ids + (int64_t)thread * j->vocab);
        else
            token = sample_all(x, j->vocab, max, j->p, u);
    }
    s->out[slot] = token;
    s->token[slot] = token;
    s->n_new[slot]++;
    if (!j->first) s->pos[slot]++;
    bool stop = s->n_new[slot] >= s->max_new[slot];
    for (int e = 0; e < j->p->n_eos; e++) stop |= token == j->p->eos[e];
    s->active[slot] = stop ? FKV_SLOT_IDLE : FKV_SLOT_DECODING;
}

void cpu_sample(fkv_device *dev, const float *logits, int64_t stride, int n_slots, bool first,
                const fkv_slots *slots, const fkv_sampling *sampling, int vocab)
{
    sample_job j = {dev, logits, stride, first, slots, sampling, vocab};
    cpu_pool_run(dev->pool, n_slots, (sampling->temperature > 0 ? 60.0 : 1.0) * n_slots * vocab, sample_task,
                 &j);
}
