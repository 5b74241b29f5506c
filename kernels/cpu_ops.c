/* Ops on rows of the CPU backend: embedding, add + RMSNorm, last rows; slots and edits; norm and RoPE of
 * a head. */
#include <math.h>
#include <string.h>

#include "kernels/cpu_device.h"

void cpu_embed(fkv_device *dev, const int32_t *tokens, int64_t n, const fkv_weight *table, float *out)
{
    (void)dev;
    const int64_t k = cpu_weight_columns(table, 0).k;
    for (int64_t i = 0; i < n; i++) {
        const float *row = cpu_embedding_row(table, tokens[i]);
        if (row)
            memcpy(out + i * k, row, (size_t)k * sizeof *out);
        else
            memset(out + i * k, 0, (size_t)k * sizeof *out);
    }
}

typedef struct scale_job {
    float *x;
    int64_t n, block;
    float factor, cap;
} scale_job;

static void scale_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const scale_job *j = ctx;
    const int64_t end = (index + 1) * j->block < j->n ? (index + 1) * j->block : j->n;
    for (int64_t i = index * j->block; i < end; i++) {
        const float x = j->factor * j->x[i];
        j->x[i] = j->cap > 0 ? j->cap * tanhf(x / j->cap) : x;
    }
}

void cpu_scale(fkv_device *dev, float *x, int64_t n, float factor, float cap)
{
    scale_job j = {x, n, 1 << 14, factor, cap};
    cpu_pool_run(dev->pool, (n + j.block - 1) / j.block, 10.0 * (double)n, scale_task, &j);
}

typedef struct norm_job {
    const cpu_kernels_table *k;
    float *x;
    const float *y, *w;
    float eps;
    int64_t n, hidden, block;
    float *out;
} norm_job;

static void norm_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const norm_job *j = ctx;
    const int64_t end = (index + 1) * j->block < j->n ? (index + 1) * j->block : j->n;
    for (int64_t i = index * j->block; i < end; i++)
        j->k->add_rmsnorm(j->x + i * j->hidden, j->y ? j->y + i * j->hidden : NULL, j->w, j->eps, j->hidden,
                          j->out ? j->out + i * j->hidden : NULL);
}

void cpu_add_rmsnorm(fkv_device *dev, void *x, const void *y, const float *weight, float eps, int64_t n,
                     int64_t hidden, void *out, float *scale)
{
    norm_job j = {dev->k, x, y, weight, eps, n, hidden, 32, out};
    cpu_pool_run(dev->pool, (n + j.block - 1) / j.block, 4.0 * (double)n * (double)hidden, norm_task, &j);
    if (scale) cpu_quantise_rows(dev, (fkv_acts){out, hidden, scale}, n, hidden);
}

static void see(const fkv_device *dev, const int32_t *tokens, int32_t n, uint32_t *seen)
{
    memset(seen, 0, (size_t)FKV_SEEN_WORDS(dev->limits.vocab) * sizeof *seen);
    for (int32_t t = 0; t < n; t++) seen[tokens[t] / 32] |= 1u << tokens[t] % 32;
}

void cpu_start_slots(fkv_device *dev, const fkv_pack *pack, const fkv_slots *slots)
{
    for (int i = 0; i < pack->n_segments; i++) {
        const fkv_segment *s = &pack->segments[i];
        slots->pos[s->slot] = slots->prompt_len[s->slot] = s->n_tokens;
        slots->rope0[s->slot] = pack->dev_rope_rows[s->row0];
        slots->n_new[s->slot] = 0;
        slots->max_new[s->slot] = s->max_new;
        slots->active[s->slot] = FKV_SLOT_FRESH;
        slots->sampling[s->slot] = s->sampling;
        if (FKV_SAMPLING_PENALISES(s->sampling))
            see(dev, pack->dev_tokens + s->row0, s->n_tokens,
                slots->seen + s->slot * FKV_SEEN_WORDS(dev->limits.vocab));
    }
}

void cpu_last_rows(fkv_device *dev, const fkv_pack *pack, const void *x, int64_t hidden, void *out)
{
    (void)dev;
    for (int i = 0; i < pack->n_segments; i++) {
        const fkv_segment *s = &pack->segments[i];
        memcpy((float *)out + s->slot * hidden, (const float *)x + (s->row0 + s->n_tokens - 1) * hidden,
               (size_t)hidden * sizeof(float));
    }
}

void cpu_scatter(fkv_device *dev, int32_t *dst, const fkv_edit *edits, int64_t n)
{
    (void)dev;
    for (int64_t i = 0; i < n; i++) dst[edits[i].index] = edits[i].value;
}

void cpu_rope_fill(fkv_device *dev, int64_t n_positions)
{
    const int half = dev->limits.head_dim / 2;
    for (int r = 0; r < dev->limits.n_ropes; r++) {
        for (int64_t p = dev->rope_filled; p < n_positions; p++) {
            const int64_t at = ((int64_t)r * dev->limits.max_positions + p) * half;
            for (int i = 0; i < half; i++) {
                const float angle = (float)p * dev->inv_freq[r * half + i];
                dev->rope_cos[at + i] = cosf(angle) * dev->rope_scale[r * half + i];
                dev->rope_sin[at + i] = sinf(angle) * dev->rope_scale[r * half + i];
            }
        }
    }
    if (n_positions > dev->rope_filled) dev->rope_filled = n_positions;
}

static void rotate(float *v, int half, const float *restrict c, const float *restrict s)
{
    for (int i = 0; i < half; i++) {
        const float a = v[i], b = v[i + half];
        v[i] = a * c[i] - b * s[i];
        v[i + half] = b * c[i] + a * s[i];
    }
}

void cpu_finish_head(const fkv_device *dev, const fkv_attention_spec *spec, const fkv_qk_norm *norm,
                     float *head, int64_t rope_row)
{
    const int hd = spec->head_dim, half = hd / 2;
    const int64_t at = ((int64_t)spec->rope * dev->limits.max_positions + rope_row) * half;
    for (int i = 0; i <= spec->group; i++, head += hd) { /* the key comes behind the queries */
        if (spec->qk_norm)
            dev->k->add_rmsnorm(head, NULL, i < spec->group ? norm->q : norm->k, norm->eps, hd, head);
        if (spec->rope >= 0) rotate(head, half, dev->rope_cos + at, dev->rope_sin + at);
    }
}
