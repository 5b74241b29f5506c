/* Attention of the CPU backend: prefill over the prompts of a pack, decode over pages. */
#include <string.h>

#include "kernels/cpu_device.h"

typedef struct rope_job {
    const fkv_device *dev;
    float *qkv;
    const int32_t *positions;
    int64_t n, stride;
    int n_heads, group;
} rope_job;

enum { ROPE_BLOCK = 64 };

static void rope_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const rope_job *j = ctx;
    const int hd = j->dev->limits.head_dim;
    const int64_t end = (index + 1) * ROPE_BLOCK < j->n ? (index + 1) * ROPE_BLOCK : j->n;
    for (int64_t i = index * ROPE_BLOCK; i < end; i++) {
        float *head = j->qkv + i * j->stride;
        for (int h = 0; h < j->n_heads; h++, head += (j->group + 2) * hd)
            cpu_rope(j->dev, head, j->group + 1, j->positions[i]); /* Q heads, then K */
    }
}

void cpu_prefill_qkv(fkv_device *dev, const void *x, int64_t n, int64_t class_rows, const int32_t *positions,
                     const fkv_weight *w, int n_heads, int group, void *qkv)
{
    const int64_t stride = n_heads * (int64_t)(group + 2) * dev->limits.head_dim;
    int64_t last = 0;
    cpu_linear(dev, x, w->k, n, class_rows, w, qkv, stride, false, FKV_EPILOGUE_NONE);
    for (int64_t i = 0; i < n; i++)
        if (positions[i] > last) last = positions[i];
    cpu_rope_fill(dev, last + 1);
    rope_job j = {dev, qkv, positions, n, stride, n_heads, group};
    cpu_pool_run(dev->pool, (n + ROPE_BLOCK - 1) / ROPE_BLOCK, 6.0 * (double)(n * stride), rope_task, &j);
}

enum { TILE_PANELS = FKV_TILE_TOKENS / CPU_PANEL };

/* Keys of every head into panels of 16 tokens, [hd][16] each, every prompt from a tile of its
 * own on; beyond T zeros. */
typedef struct pack_job {
    const fkv_device *dev;
    const fkv_pack *pack;
    const float *qkv;
    int64_t stride, per, head_stride;
    int group;
} pack_job;

/* The segment that holds tile t. */
static const fkv_segment *segment_of(const fkv_pack *pack, int64_t tile)
{
    int lo = 0, hi = pack->n_segments;
    while (lo + 1 < hi) {
        const int mid = (lo + hi) / 2;
        if (pack->segments[mid].tile0 <= tile)
            lo = mid;
        else
            hi = mid;
    }
    return &pack->segments[lo];
}

static void pack_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const pack_job *j = ctx;
    const int hd = j->dev->limits.head_dim;
    const int64_t h = index / j->pack->n_tiles, tile = index % j->pack->n_tiles;
    const fkv_segment *s = segment_of(j->pack, tile);
    const float *k = j->qkv + s->row0 * j->stride + h * j->per + j->group * hd;
    float *to = j->dev->packed_keys + h * j->head_stride + tile * FKV_TILE_TOKENS * hd;
    for (int p = 0; p < TILE_PANELS; p++, to += hd * CPU_PANEL) {
        for (int t = 0; t < CPU_PANEL; t++) {
            const int64_t row = (tile - s->tile0) * FKV_TILE_TOKENS + p * CPU_PANEL + t;
            if (row < s->n_tokens)
                for (int i = 0; i < hd; i++) to[i * CPU_PANEL + t] = k[row * j->stride + i];
            else
                for (int i = 0; i < hd; i++) to[i * CPU_PANEL + t] = 0.0f;
        }
    }
}

typedef struct attention_job {
    const fkv_device *dev;
    const fkv_pack *pack;
    const float *qkv;
    int64_t stride, per, head_stride;
    int64_t n_query_heads;
    int group;
    bool last_only;
    float *out;
    int64_t out_stride;
} attention_job;

/* One query head's rows of a tile, in blocks of CPU_ATT_ROWS; or a segment's last row. */
static void attention_task(void *ctx, int64_t index, int thread)
{
    const attention_job *j = ctx;
    const int hd = j->dev->limits.head_dim;
    const int64_t n_q = index % j->n_query_heads, i = index / j->n_query_heads;
    const int64_t h = n_q / j->group, g = n_q % j->group;
    /* The last queries see the most keys: they go first, so that threads end together. */
    const int64_t tile = j->pack->n_tiles - 1 - i;
    const fkv_segment *s = j->last_only ? &j->pack->segments[i] : segment_of(j->pack, tile);
    const float *head = j->qkv + s->row0 * j->stride + h * j->per;
    const float *keys = j->dev->packed_keys + h * j->head_stride + (int64_t)s->tile0 * FKV_TILE_TOKENS * hd;
    int64_t row = j->last_only ? s->n_tokens - 1 : (tile - s->tile0) * FKV_TILE_TOKENS;
    const int64_t end =
        j->last_only || row + FKV_TILE_TOKENS > s->n_tokens ? s->n_tokens : row + FKV_TILE_TOKENS;
    const int64_t out0 = j->last_only ? (s->slot < 0 ? 0 : s->slot) - row : s->row0;
    for (; row < end; row += CPU_ATT_ROWS)
        j->dev->k->attention(
            head + row * j->stride + g * hd, j->stride, end - row < CPU_ATT_ROWS ? end - row : CPU_ATT_ROWS,
            row, hd, keys, head + (j->group + 1) * hd, j->stride,
            j->out + (out0 + row) * j->out_stride + n_q * hd, j->out_stride, &j->dev->att[thread]);
}

void cpu_prefill_attention(fkv_device *dev, const fkv_pack *pack, const void *qkv, bool last_only,
                           int n_heads, int group, void *out, int64_t out_stride)
{
    const int hd = dev->limits.head_dim;
    const int64_t per = (int64_t)(group + 2) * hd, head_stride = pack->n_tiles * FKV_TILE_TOKENS * hd;
    pack_job p = {dev, pack, qkv, n_heads * per, per, head_stride, group};
    cpu_pool_run(dev->pool, n_heads * pack->n_tiles, 8.0 * (double)(n_heads * pack->n_rows * hd), pack_task,
                 &p);
    attention_job a = {dev,   pack,      qkv, n_heads * per, per, head_stride, (int64_t)n_heads * group,
                       group, last_only, out, out_stride};
    double pairs = 0;
    for (int i = 0; i < pack->n_segments; i++) {
        const double n = pack->segments[i].n_tokens;
        pairs += last_only ? n : n * n / 2;
    }
    cpu_pool_run(dev->pool, (last_only ? pack->n_segments : pack->n_tiles) * n_heads * group,
                 4.0 * pairs * hd * n_heads * group, attention_task, &a);
}

/* Tokens of (l, h) kept from a prompt of n. */
static int64_t kept(const fkv_kv_view *kv, int64_t lh, int64_t n)
{
    return n < kv->budgets[lh] ? n : kv->budgets[lh];
}

static const int32_t *pages_of(const fkv_kv_view *kv, int64_t lh, int slot)
{
    return kv->table + slot * kv->slot_stride + kv->offset[lh];
}

static float *page_at(const fkv_kv_view *kv, int rank, int32_t page, int hd)
{
    return (float *)kv->arenas[rank] + (int64_t)page * 2 * FKV_PAGE_TOKENS * hd;
}

typedef struct decode_job {
    fkv_device *dev;
    const fkv_decode_args *a;
    int64_t per; /* (group + 2) * hd */
} decode_job;

static void decode_qkv_head(fkv_device *dev, const fkv_decode_args *a, int index)
{
    const fkv_decode_head *p = &a->heads[index];
    const int hd = a->head_dim, q_width = a->group * hd;
    const int64_t lh = (int64_t)a->layer * a->n_kv_heads + p->head;
    float *q = (float *)a->q + (int64_t)index * a->n_slots * (q_width + 2 * hd);
    const int64_t width = q_width + 2 * hd;
    cpu_linear_cols(dev, (const float *)a->x + (int64_t)p->begin * a->hidden, a->hidden, p->end - p->begin,
                    p->weight, p->row, width, q + p->begin * width, width);
    for (int s = p->begin; s < p->end; s++) {
        if (!a->slots.active[s]) continue;
        float *row = q + s * width;
        const int64_t pos = a->slots.pos[s], n = a->slots.prompt_len[s];
        cpu_rope_fill(dev, pos + 1);
        cpu_rope(dev, row, a->group + 1, pos);
        const int64_t at = kept(&a->kv, lh, n) + pos - n;
        float *k = page_at(&a->kv, a->rank, pages_of(&a->kv, lh, s)[at / FKV_PAGE_TOKENS], hd);
        k += at % FKV_PAGE_TOKENS * hd;
        memcpy(k, row + q_width, (size_t)hd * sizeof *k);
        memcpy(k + FKV_PAGE_TOKENS * hd, row + q_width + hd, (size_t)hd * sizeof *k);
    }
}

void cpu_decode_qkv(fkv_device *dev, const fkv_decode_args *a)
{
    for (int i = 0; i < a->n_heads_served; i++) decode_qkv_head(dev, a, i);
}

static void decode_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const decode_job *j = ctx;
    const fkv_decode_args *a = j->a;
    const int served = (int)(index / a->n_slots), s = (int)(index % a->n_slots);
    const fkv_decode_head *p = &a->heads[served];
    if (s < p->begin || s >= p->end || !a->slots.active[s]) return;
    const int hd = a->head_dim, q_width = a->group * hd;
    const int64_t lh = (int64_t)a->layer * a->n_kv_heads + p->head, n = a->slots.prompt_len[s];
    const float *q = (const float *)a->q + ((int64_t)served * a->n_slots + s) * j->per;
    float *out = (float *)a->out + ((int64_t)s * a->n_kv_heads + p->head) * q_width;
    j->dev->k->decode(q, a->group, hd, a->kv.arenas[a->rank], pages_of(&a->kv, lh, s),
                      kept(&a->kv, lh, n) + a->slots.pos[s] - n + 1, out);
}

void cpu_decode_attention(fkv_device *dev, const fkv_decode_args *a)
{
    double tokens = 0;
    for (int i = 0; i < a->n_heads_served; i++) {
        const fkv_decode_head *p = &a->heads[i];
        const int64_t lh = (int64_t)a->layer * a->n_kv_heads + p->head;
        for (int s = p->begin; s < p->end; s++)
            if (a->slots.active[s])
                tokens += (double)(kept(&a->kv, lh, a->slots.prompt_len[s]) + a->slots.pos[s] -
                                   a->slots.prompt_len[s]);
    }
    decode_job j = {dev, a, (int64_t)(a->group + 2) * a->head_dim};
    cpu_pool_run(dev->pool, (int64_t)a->n_heads_served * a->n_slots, 8.0 * tokens * a->group * a->head_dim,
                 decode_task, &j);
}
