/* Attention of the CPU backend: prefill over the prompts of a pack, decode over pages. */
#include <string.h>

#include "kernels/cpu_device.h"

typedef struct finish_job {
    const fkv_device *dev;
    const fkv_prefill_args *a;
    float *qkv;
    const int32_t *rope_rows;
    int64_t stride;
} finish_job;

enum { FINISH_ROWS = 64 };

static void finish_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const finish_job *j = ctx;
    const fkv_prefill_args *a = j->a;
    const int64_t i0 = index * FINISH_ROWS, end = i0 + FINISH_ROWS < a->n_rows ? i0 + FINISH_ROWS : a->n_rows;
    for (int64_t i = i0; i < end; i++)
        for (int h = 0; h < a->n_heads; h++)
            cpu_finish_head(j->dev, a->spec, &a->norm, j->qkv + i * j->stride + h * (j->stride / a->n_heads),
                            j->rope_rows[i]);
}

void cpu_prefill_qkv(fkv_device *dev, const fkv_prefill_args *a)
{
    const int64_t k = cpu_weight_columns(a->weight, 0).k, n = a->n_rows;
    const int64_t stride = a->n_heads * (int64_t)fkv_head_rows(a->spec->group) * a->spec->head_dim;
    float *qkv = (float *)a->qkv + a->row0 * stride;
    const int32_t *rope_rows = a->pack->dev_rope_rows + a->row0;
    int64_t last = 0;
    const fkv_acts x = {(float *)a->x.data + a->row0 * k, k, NULL};
    cpu_linear(dev, x, n, a->class_rows, a->weight, (fkv_acts){qkv, stride, NULL}, false, FKV_EPILOGUE_NONE);
    for (int64_t i = 0; i < n; i++)
        if (rope_rows[i] % dev->limits.max_positions > last) last = rope_rows[i] % dev->limits.max_positions;
    cpu_rope_fill(dev, last + 1);
    finish_job j = {dev, a, qkv, rope_rows, stride};
    cpu_pool_run(dev->pool, (n + FINISH_ROWS - 1) / FINISH_ROWS, 6.0 * (double)(n * stride), finish_task, &j);
}

enum { TILE_PANELS = FKV_TILE_TOKENS / CPU_PANEL };

/* Prefill attention of a rank's heads. */
typedef struct attention_job {
    const fkv_device *dev;
    const fkv_prefill_args *a;
    int64_t stride, per, head_stride; /* of a row of qkv, of a head in it, of a head's packed keys */
} attention_job;

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

/* Keys of every head into panels of 16 tokens, [hd][16] each, every prompt from a tile of its
 * own on; beyond T zeros. */
static void pack_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const attention_job *j = ctx;
    const fkv_pack *pack = j->a->pack;
    const int hd = j->a->spec->head_dim;
    const int64_t h = index / pack->n_tiles, tile = index % pack->n_tiles;
    const fkv_segment *s = segment_of(pack, tile);
    const float *k =
        (const float *)j->a->qkv + s->row0 * j->stride + h * j->per + (int64_t)j->a->spec->group * hd;
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

/* One query head's rows of a tile, in blocks of CPU_ATT_ROWS; or a segment's last row. */
static void attention_task(void *ctx, int64_t index, int thread)
{
    const attention_job *j = ctx;
    const fkv_prefill_args *a = j->a;
    const int hd = a->spec->head_dim, group = a->spec->group, n_query_heads = a->n_heads * group;
    const int64_t n_q = index % n_query_heads, i = index / n_query_heads;
    const int64_t h = n_q / group, g = n_q % group;
    /* The last queries see the most keys: they go first, so that threads end together. */
    const int64_t tile = a->pack->n_tiles - 1 - i;
    const fkv_segment *s = a->last_only ? &a->pack->segments[i] : segment_of(a->pack, tile);
    const float *head = (const float *)a->qkv + s->row0 * j->stride + h * j->per;
    const float *keys = j->dev->packed_keys + h * j->head_stride + (int64_t)s->tile0 * FKV_TILE_TOKENS * hd;
    int64_t row = a->last_only ? s->n_tokens - 1 : (tile - s->tile0) * FKV_TILE_TOKENS;
    const int64_t end =
        a->last_only || row + FKV_TILE_TOKENS > s->n_tokens ? s->n_tokens : row + FKV_TILE_TOKENS;
    const int64_t out0 = a->last_only ? (s->slot < 0 ? 0 : s->slot) - row : s->row0;
    for (; row < end; row += CPU_ATT_ROWS)
        j->dev->k->attention(a->spec, head + row * j->stride + g * hd, j->stride,
                             end - row < CPU_ATT_ROWS ? end - row : CPU_ATT_ROWS, row, keys,
                             head + (group + 1) * hd, j->stride,
                             (float *)a->out + (out0 + row) * a->out_stride + n_q * hd, a->out_stride,
                             &j->dev->att[thread]);
}

void cpu_prefill_attention(fkv_device *dev, const fkv_prefill_args *a)
{
    const fkv_pack *pack = a->pack;
    const int hd = a->spec->head_dim, n_query_heads = a->n_heads * a->spec->group;
    const int64_t per = (int64_t)fkv_head_rows(a->spec->group) * hd;
    attention_job j = {dev, a, a->n_heads * per, per, pack->n_tiles * FKV_TILE_TOKENS * hd};
    cpu_pool_run(dev->pool, a->n_heads * pack->n_tiles, 8.0 * (double)(a->n_heads * pack->n_rows * hd),
                 pack_task, &j);
    double pairs = 0;
    for (int i = 0; i < pack->n_segments; i++) {
        const double n = pack->segments[i].n_tokens;
        pairs += a->last_only ? n : n * n / 2;
    }
    cpu_pool_run(dev->pool, (a->last_only ? pack->n_segments : pack->n_tiles) * n_query_heads,
                 4.0 * pairs * hd * n_query_heads, attention_task, &j);
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

typedef struct decode_job {
    fkv_device *dev;
    const fkv_decode_args *a;
} decode_job;

static void decode_qkv_head(fkv_device *dev, const fkv_decode_args *a, int index)
{
    const fkv_decode_head *p = &a->heads[index];
    const fkv_attention_spec *spec = a->spec;
    const int hd = spec->head_dim, q_width = spec->group * hd;
    const int64_t lh = (int64_t)a->layer * spec->n_kv_heads + p->head;
    const int64_t width = (int64_t)fkv_head_rows(spec->group) * hd;
    float *q = (float *)a->q + (int64_t)index * a->n_slots * width;
    cpu_linear_cols(dev, (const float *)a->x.data + (int64_t)p->begin * a->hidden, a->hidden,
                    p->end - p->begin, p->weight, p->row, width, q + p->begin * width, width);
    for (int s = p->begin; s < p->end; s++) {
        if (!a->slots.active[s]) continue;
        float *row = q + s * width;
        const int64_t pos = a->slots.pos[s], n = a->slots.prompt_len[s];
        cpu_rope_fill(dev, pos + 1);
        cpu_finish_head(dev, spec, &a->norm, row, a->slots.rope0[s] + pos);
        const int64_t at = kept(&a->kv, lh, n) + pos - n;
        cpu_kv_put(&a->kv, a->rank, pages_of(&a->kv, lh, s), at, hd, row + q_width);
    }
}

/* Ops look at the slots themselves. */
void cpu_decode_begin(fkv_device *dev, const fkv_slots *slots)
{
    (void)dev, (void)slots;
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
    const fkv_attention_spec *spec = a->spec;
    const int64_t lh = (int64_t)a->layer * spec->n_kv_heads + p->head, n = a->slots.prompt_len[s];
    const int64_t q_width = (int64_t)spec->group * spec->head_dim,
                  width = (int64_t)fkv_head_rows(spec->group) * spec->head_dim;
    const float *q = (const float *)a->q + ((int64_t)served * a->n_slots + s) * width;
    float *out = (float *)a->out + ((int64_t)s * spec->n_kv_heads + p->head) * q_width;
    j->dev->k->decode(spec, q, a->kv.arenas[a->rank], a->kv.form, pages_of(&a->kv, lh, s),
                      kept(&a->kv, lh, n) + a->slots.pos[s] - n + 1, out);
}

void cpu_decode_attention(fkv_device *dev, const fkv_decode_args *a)
{
    double tokens = 0;
    for (int i = 0; i < a->n_heads_served; i++) {
        const fkv_decode_head *p = &a->heads[i];
        const int64_t lh = (int64_t)a->layer * a->spec->n_kv_heads + p->head;
        for (int s = p->begin; s < p->end; s++)
            if (a->slots.active[s])
                tokens += (double)(kept(&a->kv, lh, a->slots.prompt_len[s]) + a->slots.pos[s] -
                                   a->slots.prompt_len[s]);
    }
    decode_job j = {dev, a};
    cpu_pool_run(dev->pool, (int64_t)a->n_heads_served * a->n_slots,
                 8.0 * tokens * a->spec->group * a->spec->head_dim, decode_task, &j);
}
