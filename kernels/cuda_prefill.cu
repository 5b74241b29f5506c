/* Prefill of the CUDA backend: Q, K, V with their norm and RoPE, and causal attention over each prompt of a
 * pack.
 *
 * Attention has two kernels: one for wgmma and TMA (cuda_prefill_sm90.cu), which does not know caps,
 * windows, and heads of 96 and 256, and the one here for mma.sync. A layer on a device always uses the same
 * one. Compression is in cuda_compress.cu.
 */
#include <cstring>
#include <math.h>
#include <stdlib.h>

#include "kernels/cuda_attention.h"

extern "C" {
#include "runner/base/mem.h"
}

enum { ROPE_THREADS = 256, ATT_ROWS = FKV_TILE_TOKENS, ATT_THREADS = 256 };

struct rope_frequencies {
    float of[CUDA_MAX_HEAD_DIM / 2], scale[CUDA_MAX_HEAD_DIM / 2];
    float2 ahead[CUDA_MAX_HEAD_DIM / 2];
};

/* table[n_positions][half] = cos, sin of the float32 product position * frequency, scaled; ahead[half] (NULL:
 * not) as f has it. One thread an element; runs once a table. */
static __global__ void rope_table_kernel(float2 *table, float2 *ahead, int64_t n_positions, int half,
                                         rope_frequencies f)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_positions * half) return;
    if (ahead && i < half) ahead[i] = f.ahead[i];
    const float angle = __fmul_rn((float)(i / half), f.of[i % half]), scale = f.scale[i % half];
    table[i] = make_float2(cosf(angle) * scale, sinf(angle) * scale);
}

static fkv_status alloc_array(fkv_device *dev, int64_t a, int64_t b, int64_t c, size_t size, void *out,
                              fkv_err *err)
{
    size_t bytes;
    if (!fkv_mul_size((size_t)a, (size_t)b, &bytes) || !fkv_mul_size(bytes, (size_t)c, &bytes) ||
        !fkv_mul_size(bytes, size, &bytes))
        return fkv_fail_memory(err);
    void *p = NULL;
    const fkv_status st = cuda_alloc(dev, bytes ? bytes : 256, &p, err);
    *(void **)out = p;
    return st;
}

/* Partials of decode attention: all that n_slots full sequences could need, 128 MiB at the most.
 * Entries beyond that are folded by one CTA each, to the same bits. */
static int64_t decode_parts(const fkv_device_limits *l, int group)
{
    const int64_t chunk = (int64_t)CUDA_CHUNK_PAGES * FKV_PAGE_TOKENS;
    const int64_t worst = (l->max_positions + chunk - 1) / chunk * l->n_slots * l->n_kv_heads;
    const int64_t fit = ((int64_t)128 << 20) / ((int64_t)group * l->head_dim * (int64_t)sizeof(float));
    return worst < fit ? worst : fit;
}

/* One array of the workspace: a x b x c elements of size bytes. */
struct workspace_array {
    int64_t a, b, c;
    size_t size;
    void *out; /* where its pointer goes */
};

enum { N_ARRAYS = 19 };

/* Sets the counts of *w and lists its arrays, and the RoPE table's. */
static void list_arrays(const fkv_device_limits *l, cuda_attention *w, float2 **rope,
                        workspace_array out[N_ARRAYS])
{
    const int group = l->n_heads / l->n_kv_heads;
    const int64_t heads = l->max_local_heads > 0 ? l->max_local_heads : 1, queries = heads * group;
    const int64_t hd = l->head_dim, keydiff = fkv_scorers_have(l->scorers, FKV_SCORER_KEYDIFF),
                  expected = fkv_scorers_have(l->scorers, FKV_SCORER_EXPECTED),
                  defensive = fkv_scorers_have(l->scorers, FKV_SCORER_DEFENSIVE);
    const int64_t places = expected ? (int64_t)CUDA_SCORE_SPLITS : defensive; /* with a matrix */
    const int64_t means[2] = {keydiff * l->n_slots * heads, expected * CUDA_SCORE_SPLITS * queries};
    cuda_scorer_space *s = &w->score;
    w->max_snap_rows = (int64_t)(l->window > 0 ? l->window : 1) * group;
    /* every prompt of a pack starts a tile */
    w->max_snap_tiles = (int64_t)l->max_prompt / CUDA_SNAP_KEYS + l->n_slots + 1;
    w->max_entries = (int64_t)l->n_slots * l->n_kv_heads;
    w->max_parts = decode_parts(l, group);
    w->max_served = l->n_kv_heads;
    const workspace_array all[N_ARRAYS] = {
        {l->max_positions, l->head_dim / 2, l->n_ropes, sizeof(float2), rope},
        {heads, w->max_snap_rows, w->max_snap_tiles, sizeof(float2), &w->snap_part},
        {(int64_t)heads * l->n_slots, w->max_snap_rows, 1, sizeof(float2), &w->snap_stat},
        {heads, l->max_prompt, 1, sizeof(float), &w->snap_sum},
        {heads, l->max_prompt, 1, sizeof(int32_t), &w->keep},
        {l->n_layers, FKV_MAX_LOCAL_RANKS, 1, sizeof(cuda_rank_plan), &w->lists},
        {(int64_t)w->max_served * cuda_qkv_splits(l->hidden), l->n_slots,
         (int64_t)fkv_head_rows(group) * l->head_dim, sizeof(float), &w->qkv_parts},
        {w->max_parts, group, l->head_dim, sizeof(float), &w->parts},
        {w->max_parts, group, 1, sizeof(float2), &w->part_stat},
        {l->n_slots, 1, 1, sizeof(cuda_sample_slot), &w->sample},
        {expected ? queries : keydiff * heads, w->max_snap_tiles, hd, sizeof(float), &s->sums},
        {means[0] > means[1] ? means[0] : means[1], hd, 1, sizeof(float), &s->mean},
        {expected * CUDA_SCORE_SPLITS * queries, hd, hd, sizeof(float), &s->cov},
        {places * queries * 2, hd, hd, sizeof(bf16), &s->rows},
        {expected * CUDA_SCORE_SPLITS, queries, hd, sizeof(float), &s->linear},
        {expected * queries, l->max_prompt, 1, sizeof(float), &s->logits},
        {expected * CUDA_SCORE_SPLITS, queries, 1, sizeof(float2), &s->stat},
        {expected * l->n_ropes, hd / 2, 1, sizeof(float2), &s->ahead},
        {defensive * l->n_slots, heads, 1, sizeof(float), &s->risk},
    };
    memcpy(out, all, sizeof all);
}

int64_t cuda_workspace_bytes(const fkv_device_limits *l, int n_threads)
{
    workspace_array all[N_ARRAYS];
    cuda_attention w = {};
    float2 *rope = NULL;
    (void)n_threads;
    list_arrays(l, &w, &rope, all);
    /* Gate and up of the largest product with a gate. */
    double bytes = 2.0 * l->max_rows * l->max_share * sizeof(bf16);
    /* Sums of a step's largest product in FP8 that is not float32 anyway (cuda_gemm.cu). */
    if (l->form == FKV_FORM_FP8)
        bytes += (double)l->n_slots * (2.0 * l->max_share > l->hidden ? 2.0 * l->max_share : l->hidden) *
                 sizeof(float);
    for (int i = 0; i < N_ARRAYS; i++)
        bytes += (double)all[i].a * (double)all[i].b * (double)all[i].c * (double)all[i].size;
    return bytes < 0x1p50 ? (int64_t)bytes : (int64_t)1 << 50;
}

fkv_status cuda_attention_prepare(fkv_device *dev, const float *inv_freq, const float *rope_scale,
                                  fkv_err *err)
{
    const fkv_device_limits *l = &dev->limits;
    workspace_array all[N_ARRAYS];
    fkv_status st;
    cuda_attention *a = (cuda_attention *)calloc(1, sizeof *a);
    if (!a) return fkv_fail_memory(err);
    free(dev->attention); /* of other limits */
    dev->attention = a;
    list_arrays(l, a, &dev->rope, all);
    for (int i = 0; i < N_ARRAYS; i++)
        if ((st = alloc_array(dev, all[i].a, all[i].b, all[i].c, all[i].size, all[i].out, err))) return st;
    const int half = l->head_dim / 2;
    const int64_t n = (int64_t)l->max_positions * half;
    const bool foresees = fkv_scorers_have(l->scorers, FKV_SCORER_EXPECTED);
    float ahead[2] = {1.0f, 0.0f};
    for (int r = 0; r < l->n_ropes; r++) {
        rope_frequencies f = {};
        for (int i = 0; i < half; i++) {
            f.of[i] = inv_freq[r * half + i];
            f.scale[i] = rope_scale ? rope_scale[r * half + i] : 1.0f;
            if (foresees) fkv_scorer_ahead(f.of[i], ahead);
            f.ahead[i] = make_float2(ahead[0], ahead[1]);
        }
        rope_table_kernel<<<(unsigned)((n + 255) / 256), 256, 0, dev->stream>>>(
            dev->rope + r * n, foresees ? a->score.ahead + r * half : NULL, l->max_positions, half, f);
        CUDA_LAUNCHED(dev);
    }
    a->wgmma = cuda_prefill_sm90_available(dev, a);
    a->begins_early = a->wgmma;
    return cuda_status(dev, err);
}

const float2 *cuda_rope_table(const fkv_device *dev, const fkv_attention_spec *spec)
{
    if (spec->rope < 0) return NULL;
    return dev->rope + (int64_t)spec->rope * dev->limits.max_positions * (dev->limits.head_dim / 2);
}

/* RoPE in place on Q and K of qkv[n][n_heads * head_rows * hd]. One thread rotates eight pairs (two
 * 16-byte pieces); bound by memory. */
static __global__ void rope_kernel(bf16 *qkv, int64_t n, const int32_t *rope_rows, int n_heads, int group,
                                   int hd, const float2 *table)
{
    const int pieces = hd / 16, vectors = group + 1;
    const int64_t per_row = (int64_t)n_heads * vectors * pieces;
    const int64_t i = (int64_t)blockIdx.x * ROPE_THREADS + threadIdx.x;
    if (i >= n * per_row) return;
    const int64_t row = i / per_row;
    const int at = (int)(i % per_row), p = at % pieces, v = at / pieces % vectors, h = at / pieces / vectors;
    bf16 *x = qkv + row * n_heads * fkv_head_rows(group) * hd + (int64_t)h * fkv_head_rows(group) * hd +
              v * hd + p * 8;
    uint4 lo = *(uint4 *)x, hi = *(uint4 *)(x + hd / 2);
    rope8(lo, hi, table + (int64_t)rope_rows[row] * (hd / 2) + p * 8);
    *(uint4 *)x = lo;
    *(uint4 *)(x + hd / 2) = hi;
}

/* Norm and RoPE in place on Q and K of qkv[n][n_heads * head_rows * hd]. A warp a vector; bound by memory. */
static __global__ void __launch_bounds__(ROPE_THREADS)
    finish_kernel(bf16 *qkv, int64_t n, const int32_t *rope_rows, int n_heads, int group, int hd,
                  const cuda_finish f)
{
    const int64_t i = ((int64_t)blockIdx.x * ROPE_THREADS + threadIdx.x) / 32;
    const int lane = (int)threadIdx.x % 32, half = hd / 2;
    if (i >= n * n_heads * (group + 1)) return;
    const int64_t head = i / (group + 1); /* of all rows */
    const int at = (int)(i % (group + 1));
    bf16 *x = qkv + (head * fkv_head_rows(group) + at) * hd;
    cuda_vector v = {};
#pragma unroll
    for (int j = 0; j < CUDA_PAIRS; j++) {
        const int e = lane + 32 * j;
        if (e >= half) continue;
        v.lo[j] = __bfloat162float(x[e]);
        v.hi[j] = __bfloat162float(x[e + half]);
    }
    finish_vector(v, half, at < group ? f.q_norm : f.k_norm, f.eps,
                  f.rope ? f.rope + (int64_t)rope_rows[head / n_heads] * half : NULL, lane);
    store_vector(x, v, half, lane);
}

cuda_finish cuda_finish_of(const fkv_device *dev, const fkv_attention_spec *spec, const fkv_qk_norm *norm)
{
    cuda_finish f = {};
    f.q_norm = spec->qk_norm ? norm->q : NULL;
    f.k_norm = spec->qk_norm ? norm->k : NULL;
    f.eps = norm->eps;
    f.rope = cuda_rope_table(dev, spec);
    return f;
}

static void finish(fkv_device *dev, const fkv_prefill_args *a, bf16 *qkv)
{
    if (!a->spec->qk_norm && a->spec->rope < 0) return;
    const int hd = a->spec->head_dim, group = a->spec->group;
    const int64_t vectors = a->n_rows * a->n_heads * (group + 1);
    const int64_t threads = vectors * (a->spec->qk_norm ? 32 : hd / 16);
    const unsigned blocks = (unsigned)((threads + ROPE_THREADS - 1) / ROPE_THREADS);
    const int32_t *rope_rows = a->pack->dev_rope_rows + a->row0;
    if (a->spec->qk_norm)
        finish_kernel<<<blocks, ROPE_THREADS, 0, dev->stream>>>(qkv, a->n_rows, rope_rows, a->n_heads, group,
                                                                hd, cuda_finish_of(dev, a->spec, &a->norm));
    else
        rope_kernel<<<blocks, ROPE_THREADS, 0, dev->stream>>>(qkv, a->n_rows, rope_rows, a->n_heads, group,
                                                              hd, cuda_rope_table(dev, a->spec));
    CUDA_LAUNCHED(dev);
}

void cuda_prefill_qkv(fkv_device *dev, const fkv_prefill_args *a)
{
    if (a->n_rows <= 0 || a->n_heads <= 0) return;
    const int64_t width = a->n_heads * (int64_t)fkv_head_rows(a->spec->group) * a->spec->head_dim;
    cuda_weight_view w = cuda_weight_rows(a->weight, 0);
    bf16 *out = (bf16 *)a->qkv + a->row0 * width;
    w.n = width;
    const fkv_acts x = {.data = (bf16 *)a->x.data + a->row0 * w.k,
                        .stride = w.k,
                        .scale = a->x.scale ? a->x.scale + a->row0 : NULL};
    cuda_gemm(dev, x, a->n_rows, a->class_rows, w, out, width, false);
    finish(dev, a, out);
}

/* Tiles in shared memory: Q and two stages of K and V, or where that is too much Q first, then the stages in
 * its place. */
template <int HD> struct prefill_tiles {
    static constexpr int KEYS = HD <= 128 ? 64 : 32;
    static constexpr bool Q_APART = HD <= 128;
    static constexpr int Q_BYTES = ATT_ROWS * tile_row<HD>(), BYTES = KEYS * tile_row<HD>(),
                         ALL_BYTES = Q_APART               ? Q_BYTES + 4 * BYTES
                                     : Q_BYTES > 4 * BYTES ? Q_BYTES
                                                           : 4 * BYTES;
    static_assert(ALL_BYTES <= CUDA_LEAST_SHARED, "it fits every GPU");
};

/* s[16][KEYS] of a warp: its 16 queries (fragments q) times the tile's keys. */
template <int HD, int KEYS>
static __device__ __forceinline__ void tile_scores(float (&s)[KEYS / 8][4], const uint32_t (&q)[HD / 16][4],
                                                   uint32_t keys, int lane)
{
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
    const int row = (lane & 7) + (lane >> 4) * 8, piece = lane >> 3 & 1;
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++) {
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            uint32_t b[4];
            load_matrix4(b, keys + tile_offset<HD>(j * 16 + row, 2 * kk + piece));
            mma16816(s[2 * j], q[kk], b[0], b[1]);
            mma16816(s[2 * j + 1], q[kk], b[2], b[3]);
        }
    }
}

/* o[16][HD] += p[16][KEYS] values. */
template <int HD, int KEYS>
static __device__ __forceinline__ void tile_values(float (&o)[HD / 8][4], const float (&p)[KEYS / 8][4],
                                                   uint32_t values, int lane)
{
    const int row = lane & 15, piece = lane >> 4;
#pragma unroll
    for (int ks = 0; ks < KEYS / 16; ks++) {
        const uint32_t a[4] = {pack_bf16(p[2 * ks][0], p[2 * ks][1]), pack_bf16(p[2 * ks][2], p[2 * ks][3]),
                               pack_bf16(p[2 * ks + 1][0], p[2 * ks + 1][1]),
                               pack_bf16(p[2 * ks + 1][2], p[2 * ks + 1][3])};
#pragma unroll
        for (int j = 0; j < HD / 16; j++) {
            uint32_t b[4];
            load_matrix4_trans(b, values + tile_offset<HD>(ks * 16 + row, 2 * j + piece));
            mma16816(o[2 * j], a, b[0], b[1]);
            mma16816(o[2 * j + 1], a, b[2], b[3]);
        }
    }
}

/* Scores of a tile of keys from key0 on; row: of the thread's first query, whose warp starts at warp_row.
 * What a query does not see becomes -inf; ODD: scores are then in units of log2. */
template <int KEYS, bool ODD>
static __device__ __forceinline__ void tile_mask(float (&s)[KEYS / 8][4], const cuda_scores &of, int64_t key0,
                                                 int64_t warp_row, int64_t row, int lane)
{
    if constexpr (ODD) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[j][i] = odd_score(of, s[j][i]);
    }
    if (key0 + KEYS - 1 > warp_row) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (key0 + j * 8 + lane % 4 * 2 + i % 2 > row + i / 2 * 8) s[j][i] = -INFINITY;
    }
    if constexpr (ODD) {
        if (!of.window || key0 > warp_row + 15 - of.window) return;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (key0 + j * 8 + lane % 4 * 2 + i % 2 <= row + i / 2 * 8 - of.window) s[j][i] = -INFINITY;
    }
}

/* Online softmax of two rows of a thread (r, r + 8): s becomes probabilities, o and sum are rescaled.
 * Without a window the first tile holds key 0, which every query sees, so the maxima are finite ever after;
 * with one (ODD) a row may see nothing yet. A tile that a row sees nothing of changes no bit of it. */
template <int HD, int KEYS, bool ODD>
static __device__ __forceinline__ void tile_softmax(float (&s)[KEYS / 8][4], float (&o)[HD / 8][4],
                                                    float (&m)[2], float (&sum)[2], float scale)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = m[r];
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) top = fmaxf(top, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float from = ODD && top == -INFINITY ? 0.0f : top;
        const float by = exp2_fast((m[r] - from) * scale), bias = -from * scale;
        float add = 0.0f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
            s[j][2 * r] = exp2_fast(fmaf(s[j][2 * r], scale, bias));
            s[j][2 * r + 1] = exp2_fast(fmaf(s[j][2 * r + 1], scale, bias));
            add += s[j][2 * r] + s[j][2 * r + 1];
        }
        sum[r] = fmaf(sum[r], by, add);
        m[r] = top;
#pragma unroll
        for (int j = 0; j < HD / 8; j++) {
            o[j][2 * r] *= by;
            o[j][2 * r + 1] *= by;
        }
    }
}

/* Fragments of a warp's 16 queries. */
template <int HD>
static __device__ __forceinline__ void load_queries(uint32_t (&q)[HD / 16][4], uint32_t tile, int warp,
                                                    int lane)
{
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++)
        load_matrix4(q[kk], tile + tile_offset<HD>(warp * 16 + (lane & 15), 2 * kk + (lane >> 4)));
}

/* Causal attention, one query head and 128 queries of a prompt a block, 16 a warp, over keys in tiles of
 * KEYS that start at key 0; ODD: a cap or a window, and tiles before the first one that a query sees are left
 * out. Grid (query heads, row blocks): the longest rows start first. Shared: prefill_tiles. Bound by the
 * tensor cores. */
template <int HD, bool ODD>
static __global__ void __launch_bounds__(ATT_THREADS, 1)
    prefill_attention_kernel(const bf16 *__restrict__ qkv, const fkv_segment *__restrict__ segments,
                             int n_segments, bool last_only, int n_heads, int group, bf16 *__restrict__ out,
                             int64_t out_stride, const cuda_scores of)
{
    extern __shared__ __align__(1024) char shared[];
    using tiles = prefill_tiles<HD>;
    constexpr int TILE = tiles::BYTES, KEYS = tiles::KEYS;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int h = (int)blockIdx.x / group, g = (int)blockIdx.x % group;
    const int64_t per = (int64_t)fkv_head_rows(group) * HD, stride = n_heads * per;
    const row_block rows = find_rows(segments, n_segments, last_only);
    const int64_t row0 = rows.row0, n_tokens = rows.segment.n_tokens;
    const bf16 *head = qkv + rows.segment.row0 * stride + h * per, *k = head + group * HD, *v = k + HD;
    const uint32_t q_tile = smem_address(shared), kv = q_tile + (tiles::Q_APART ? tiles::Q_BYTES : 0);
    const int64_t last = row0 + ATT_ROWS < n_tokens ? row0 + ATT_ROWS - 1 : n_tokens - 1;
    const int n_tiles = (int)(last / KEYS) + 1;
    const int first = ODD && of.window && row0 >= of.window ? (int)((row0 + 1 - of.window) / KEYS) : 0;

    float o[HD / 8][4] = {}, m[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    uint32_t q[HD / 16][4];
    load_tile<HD, ATT_ROWS, ATT_THREADS>(q_tile, head + g * HD, stride, row0, n_tokens);
    if constexpr (!tiles::Q_APART) {
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        load_queries<HD>(q, q_tile, warp, lane);
        __syncthreads();
    }
    load_tile<HD, KEYS, ATT_THREADS>(kv, k, stride, (int64_t)first * KEYS, n_tokens);
    load_tile<HD, KEYS, ATT_THREADS>(kv + TILE, v, stride, (int64_t)first * KEYS, n_tokens);
    copy_commit();
    for (int t = first; t < n_tiles; t++) {
        const int even = (t - first) & 1;
        const uint32_t stage = kv + (uint32_t)even * 2 * TILE, next = kv + (uint32_t)(even ^ 1) * 2 * TILE;
        if (t + 1 < n_tiles) {
            load_tile<HD, KEYS, ATT_THREADS>(next, k, stride, (int64_t)(t + 1) * KEYS, n_tokens);
            load_tile<HD, KEYS, ATT_THREADS>(next + TILE, v, stride, (int64_t)(t + 1) * KEYS, n_tokens);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        if (tiles::Q_APART && t == first) load_queries<HD>(q, q_tile, warp, lane);
        float s[KEYS / 8][4];
        tile_scores<HD, KEYS>(s, q, stage, lane);
        const int64_t warp_row = row0 + warp * 16;
        tile_mask<KEYS, ODD>(s, of, (int64_t)t * KEYS, warp_row, warp_row + lane / 4, lane);
        tile_softmax<HD, KEYS, ODD>(s, o, m, sum, ODD ? 1.0f : of.scale);
        tile_values<HD, KEYS>(o, s, stage + TILE, lane);
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int64_t row = row0 + warp * 16 + lane / 4 + r * 8;
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
        const float inv = 1.0f / sum[r];
        if (row >= n_tokens) continue;
        bf16 *to = out + (rows.out0 + row) * out_stride + (int64_t)blockIdx.x * HD + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < HD / 8; j++)
            *(uint32_t *)(to + j * 8) = pack_bf16(o[j][2 * r] * inv, o[j][2 * r + 1] * inv);
    }
}

template <int HD, bool ODD> static void run_attention(fkv_device *dev, const fkv_prefill_args *a)
{
    const int bytes = prefill_tiles<HD>::ALL_BYTES, group = a->spec->group;
    const fkv_pack *pack = a->pack;
    const dim3 grid((unsigned)(a->n_heads * group),
                    (unsigned)(a->last_only ? pack->n_segments : pack->n_tiles));
    if (!CUDA(dev, cudaFuncSetAttribute(prefill_attention_kernel<HD, ODD>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)))
        return;
    prefill_attention_kernel<HD, ODD><<<grid, ATT_THREADS, bytes, dev->stream>>>(
        (const bf16 *)a->qkv, pack->dev_segments, pack->n_segments, a->last_only, a->n_heads, group,
        (bf16 *)a->out, a->out_stride, cuda_scores_of(a->spec));
    CUDA_LAUNCHED(dev);
}

/* qkv and out must be 16-byte aligned, out_stride even; no log-sum-exp is kept: key_scores makes its own.
 */
void cuda_prefill_attention(fkv_device *dev, const fkv_prefill_args *a)
{
    const bool odd = cuda_scores_odd(a->spec), sm90 = a->spec->head_dim == 64 || a->spec->head_dim == 128;
    if (a->pack->n_segments <= 0 || a->n_heads <= 0) return;
    if (dev->attention->wgmma && sm90 && !odd) {
        cuda_prefill_sm90(dev, a);
        return;
    }
    with_head_dim(a->spec->head_dim, [&](auto hd) {
        if (odd)
            run_attention<hd(), true>(dev, a);
        else
            run_attention<hd(), false>(dev, a);
    });
}
