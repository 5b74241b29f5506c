/* KV compression of the CPU backend: what a head keeps, by scores of cpu_scores.c. */
#include <math.h>
#include <string.h>

#include "kernels/cpu_device.h"
#include "runner/base/float16.h"

/* The value that the k-th largest of x[n] has (k from 1); x is reordered. */
static float kth_largest(float *x, int64_t n, int64_t k)
{
    int64_t lo = 0, hi = n; /* the answer is in x[lo, hi), at index k - 1 of the descending order */
    for (;;) {
        const float a = x[lo], b = x[lo + (hi - lo) / 2], c = x[hi - 1];
        const float pivot = fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
        int64_t i = lo, g = lo, e = hi; /* [lo, g) greater, [g, i) equal, [e, hi) less */
        while (i < e) {
            const float v = x[i];
            if (v > pivot) {
                x[i++] = x[g];
                x[g++] = v;
            } else if (v < pivot) {
                x[i] = x[--e];
                x[e] = v;
            } else {
                i++;
            }
        }
        if (k - 1 < g)
            hi = g;
        else if (k - 1 >= e)
            lo = e;
        else
            return pivot;
    }
}

/* A score that is no number comes last. */
static float order_of(float score)
{
    return isnan(score) ? -INFINITY : score;
}

/* Positions of the top n_top of scores[n] in position order; ties: lower first. */
static void choose_top(const float *scores, int64_t n, int64_t n_top, float *work, int32_t *out)
{
    for (int64_t i = 0; i < n; i++) work[i] = order_of(scores[i]);
    const float limit = kth_largest(work, n, n_top);
    int64_t equal = n_top, at = 0;
    for (int64_t i = 0; i < n; i++) equal -= order_of(scores[i]) > limit;
    for (int64_t i = 0; i < n && at < n_top; i++) {
        const float score = order_of(scores[i]);
        if (score > limit || (score == limit && equal-- > 0)) out[at++] = (int32_t)i;
    }
}

/* The tokens that scores choose of a prompt's n that have them, from the first one on: by second too, where
 * it is there; those that come first are infinite in it then. */
static void choose(const float *scores, float *second, int64_t n, int64_t n_top, float *work, int32_t *out)
{
    if (!second) {
        choose_top(scores, n, n_top, work, out);
        return;
    }
    const int64_t n_first = fkv_critical_first(n_top);
    choose_top(scores, n, n_first, work, out);
    for (int64_t i = 0; i < n_first; i++) second[out[i]] = INFINITY;
    choose_top(second, n, n_top, work, out);
}

/* A vector as page vector i (V's are behind K's) in e4m3, with its scale (kv_page.h). */
static void put_fp8(void *page, int i, int hd, const float *from)
{
    uint8_t *numbers = page, *to = numbers + (int64_t)i * hd;
    void *const scales = numbers + 2 * (int64_t)FKV_PAGE_TOKENS * hd;
    float *scale = (float *)scales + i;
    uint32_t most = 0; /* as bits, which order like magnitudes; not a number is above all */
    for (int k = 0; k < hd; k++) {
        uint32_t bits;
        memcpy(&bits, from + k, sizeof bits);
        if ((bits & 0x7fffffff) > most) most = bits & 0x7fffffff;
    }
    const float by = fkv_f32_from_bits(most) / 448.0f;
    const bool some = by > 0 && by < INFINITY;
    int32_t missed = 0, square = 0; /* in sixteenths; 256 numbers' stay below 2^30 */
    for (int k = 0; k < hd; k++) {
        const float x = some ? from[k] / by : 0.0f;
        to[k] = fkv_e4m3_from_f32(x);
        const float n = fkv_f32_from_e4m3(to[k]);
        missed += (int32_t)rintf(n * (x - n) * 16.0f);
        square += (int32_t)rintf(n * n * 16.0f);
    }
    *scale = square ? by * (1.0f + (float)missed / (float)square) : by;
}

void cpu_kv_put(const fkv_kv_view *kv, int rank, const int32_t *pages, int64_t at, int hd, const float *from)
{
    void *page = (char *)kv->arenas[rank] +
                 pages[at / FKV_PAGE_TOKENS] * fkv_kv_page_bytes(kv->form, hd, sizeof *from);
    for (int v = 0; v < 2; v++) {
        const int i = v * FKV_PAGE_TOKENS + (int)(at % FKV_PAGE_TOKENS);
        if (kv->form == FKV_KV_FP8)
            put_fp8(page, i, hd, from + v * hd);
        else
            memcpy((float *)page + (int64_t)i * hd, from + v * hd, (size_t)hd * sizeof *from);
    }
}

typedef struct keep_job {
    const fkv_device *dev;
    const fkv_keep_args *a;
} keep_job;

/* Index: a segment's head. */
static void keep_task(void *ctx, int64_t index, int thread)
{
    const keep_job *j = ctx;
    const fkv_keep_args *a = j->a;
    const fkv_segment *s = &a->pack->segments[index / a->n_heads];
    const int64_t i = index % a->n_heads;
    const fkv_attention_spec *spec = a->spec;
    const int hd = spec->head_dim, window = a->score_window;
    const int64_t lh = (int64_t)a->layer * spec->n_kv_heads + a->head0 + i, n = s->n_tokens;
    const int64_t budget = a->kv.budgets[lh], per = (int64_t)fkv_head_rows(spec->group) * hd;
    const int64_t stride = a->n_heads * per, n_kept = n < budget ? n : budget;
    const int sinks = spec->window ? 0 : a->sinks;
    const int64_t room = n_kept - window, n_sinks = room < 0 ? 0 : room < sinks ? room : sinks;
    const int64_t open = budget - window - sinks, n_top = n <= budget || open < 0 || spec->window ? 0 : open;
    const int64_t at = i * a->score_stride + s->row0 + sinks;
    int32_t *chosen = j->dev->keep + (int64_t)thread * j->dev->limits.max_prompt;
    if (n_top)
        choose(a->scores + at, a->second ? a->second + at : NULL, n - window - sinks, n_top,
               j->dev->keep_work + (int64_t)thread * j->dev->limits.max_prompt, chosen);
    const float *k = (const float *)a->qkv + s->row0 * stride + i * per + spec->group * hd;
    const int owner = a->owner[lh * a->n_slots + s->slot];
    const int32_t *pages = a->kv.table + s->slot * a->kv.slot_stride + a->kv.offset[lh];
    for (int64_t t = 0; t < n_kept; t++) {
        const int64_t from = t < n_sinks           ? t
                             : t - n_sinks < n_top ? sinks + chosen[t - n_sinks]
                                                   : n - n_kept + t;
        cpu_kv_put(&a->kv, owner, pages, t, hd, k + from * stride);
    }
}

void cpu_kv_keep(fkv_device *dev, const fkv_keep_args *args)
{
    keep_job j = {dev, args};
    cpu_pool_run(dev->pool, (int64_t)args->pack->n_segments * args->n_heads,
                 8.0 * (double)args->pack->n_rows * args->n_heads, keep_task, &j);
}
