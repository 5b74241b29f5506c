/* KV compression of the CPU backend: SnapKV scores and what a head keeps. */
#include <math.h>
#include <string.h>

#include "kernels/cpu_device.h"

typedef struct score_job {
    const fkv_device *dev;
    const fkv_prefill_args *a;
    const fkv_segment *segment;
    const float *qkv; /* of the segment */
    int64_t stride, per, head_stride, padded;
    float *scores; /* of the segment */
} score_job;

/* out[i] = max of x[i - kernel/2 .. i + kernel/2] inside [0, n). */
static void max_pool(const float *x, int64_t n, int kernel, float *out)
{
    const int64_t half = kernel / 2;
    for (int64_t i = 0; i < n; i++) {
        const int64_t from = i > half ? i - half : 0, to = i + half < n ? i + half : n - 1;
        float m = x[from];
        for (int64_t j = from + 1; j <= to; j++) m = x[j] > m ? x[j] : m;
        out[i] = m;
    }
}

/* One head: its queries are added up in order of position, then of query head. */
static void score_task(void *ctx, int64_t h, int thread)
{
    const score_job *j = ctx;
    const fkv_device *dev = j->dev;
    const fkv_attention_spec *spec = j->a->spec;
    const int hd = spec->head_dim, window = j->a->score_window;
    const int64_t n = j->segment->n_tokens;
    const float *keys =
        dev->packed_keys + h * j->head_stride + (int64_t)j->segment->tile0 * FKV_TILE_TOKENS * hd;
    float *sum = dev->score_sums + h * j->padded, *row = dev->score_rows + thread * j->padded;
    memset(sum, 0, (size_t)n * sizeof *sum);
    const float weight = 1.0f / (float)(window * spec->group);
    for (int64_t t = n - window; t < n; t++)
        for (int g = 0; g < spec->group; g++)
            dev->k->score_row(spec, j->qkv + t * j->stride + h * j->per + g * hd, keys, t + 1, weight, row,
                              sum);
    max_pool(sum, n - window, j->a->score_kernel, j->scores + h * j->a->score_stride);
}

void cpu_key_scores(fkv_device *dev, const fkv_prefill_args *a)
{
    const int hd = a->spec->head_dim, group = a->spec->group;
    const int64_t per = (int64_t)fkv_head_rows(group) * hd, width = a->n_heads * per;
    for (int i = 0; i < a->pack->n_segments; i++) {
        const fkv_segment *s = &a->pack->segments[i];
        if (s->n_tokens <= a->min_tokens) continue;
        score_job j = {.dev = dev,
                       .a = a,
                       .segment = s,
                       .qkv = (const float *)a->qkv + s->row0 * width,
                       .stride = width,
                       .per = per,
                       .head_stride = a->pack->n_tiles * FKV_TILE_TOKENS * hd,
                       .padded = cpu_round_up(s->n_tokens, 2 * CPU_PANEL),
                       .scores = a->scores + s->row0};
        cpu_pool_run(dev->pool, a->n_heads,
                     4.0 * (double)s->n_tokens * a->n_heads * group * a->score_window * hd, score_task, &j);
    }
}

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
    const int64_t n_top = n <= budget || budget <= window || spec->window ? 0 : budget - window;
    int32_t *chosen = j->dev->keep + (int64_t)thread * j->dev->limits.max_prompt;
    if (n_top)
        choose_top(a->scores + i * a->score_stride + s->row0, n - window, n_top,
                   j->dev->keep_work + (int64_t)thread * j->dev->limits.max_prompt, chosen);
    const float *k = (const float *)a->qkv + s->row0 * stride + i * per + spec->group * hd;
    float *arena = a->kv.arenas[a->owner[lh * a->n_slots + s->slot]];
    const int32_t *pages = a->kv.table + s->slot * a->kv.slot_stride + a->kv.offset[lh];
    for (int64_t t = 0; t < n_kept; t++) {
        const int64_t from = t < n_top ? chosen[t] : n - n_kept + t;
        float *to =
            arena + ((int64_t)pages[t / FKV_PAGE_TOKENS] * 2 * FKV_PAGE_TOKENS + t % FKV_PAGE_TOKENS) * hd;
        memcpy(to, k + from * stride, (size_t)hd * sizeof *to);
        memcpy(to + FKV_PAGE_TOKENS * hd, k + from * stride + hd, (size_t)hd * sizeof *to);
    }
}

void cpu_kv_keep(fkv_device *dev, const fkv_keep_args *args)
{
    keep_job j = {dev, args};
    cpu_pool_run(dev->pool, (int64_t)args->pack->n_segments * args->n_heads,
                 8.0 * (double)args->pack->n_rows * args->n_heads, keep_task, &j);
}
