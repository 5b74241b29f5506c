/* KV compression of the CUDA backend: scores by a prompt's last queries and pooling of all scores, and what a
 * head keeps into its owner's pages. What other scorers add is in cuda_scorers.cu and cuda_scorer_rows.cu.
 *
 * Scores: the window's queries times the group are `rows` (position first, then query head). Every
 * (tile of 128 keys of a prompt, head) is a block: first it finds each row's max and sum over the tile, a
 * second kernel merges those over the tiles, a third computes the products again and adds probabilities up
 * over the rows, in row order, or takes the largest. Profiling and plans live in the engine.
 */
#include <math.h>

#include "kernels/cuda_pages.h"

enum { SNAP_ROWS = 64, SNAP_THREADS = 128, SNAP_TILES = CUDA_SNAP_KEYS / 8 };

/* What a pass over the keys leaves of the rows: their max and sum, or a key's mean or largest probability. */
enum snap_pass { SNAP_PART, SNAP_MEAN, SNAP_MAX };

/* Of a pack; a block turns them into those of its own prompt (open_segment). */
struct snap_params {
    const fkv_segment *segments;
    int n_segments;
    int64_t min_tokens; /* prompts of at most so many have no scores */
    const bf16 *qkv;
    int64_t n_tokens, stride, per;
    int group, window, n_rows;
    int64_t max_rows, max_tiles, max_prompt; /* strides of the workspace */
    float share;                             /* of a row in a key's score */
    cuda_scores scores;
    float2 *part, *stat;
    float *sum;
};

/* Points p at segment i. */
static __device__ __forceinline__ fkv_segment open_segment(snap_params &p, int i, int n_heads)
{
    const fkv_segment s = p.segments[i];
    p.n_tokens = s.n_tokens;
    p.qkv += s.row0 * p.stride;
    p.sum += s.row0;
    p.stat += (int64_t)i * n_heads * p.max_rows;
    return s;
}

/* Scores s[16 rows][128 keys] of one warp in log2 units, -inf where the query does not see the key.
 * Thread: rows lane / 4 (+ 8), keys 8 j + lane % 4 * 2 (+ 1). */
template <int HD, bool ODD>
static __device__ __forceinline__ void snap_scores(float (&s)[SNAP_TILES][4], const snap_params &p,
                                                   uint32_t queries, uint32_t keys, int row0, int64_t key0,
                                                   int warp, int lane)
{
#pragma unroll
    for (int j = 0; j < SNAP_TILES; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll 2 /* more of it in flight spills */
    for (int kk = 0; kk < HD / 16; kk++) {
        uint32_t a[4];
        load_matrix4(a, queries + tile_offset<HD>(warp * 16 + (lane & 15), 2 * kk + (lane >> 4)));
#pragma unroll
        for (int j = 0; j < SNAP_TILES / 2; j++) {
            uint32_t b[4];
            load_matrix4(
                b, keys + tile_offset<HD>(j * 16 + (lane & 7) + (lane >> 4) * 8, 2 * kk + (lane >> 3 & 1)));
            mma16816(s[2 * j], a, b[0], b[1]);
            mma16816(s[2 * j + 1], a, b[2], b[3]);
        }
    }
    const int row = row0 + warp * 16 + lane / 4;
    const int64_t first = p.n_tokens - p.window;
    const int64_t pos[2] = {first + row / p.group, first + (row + 8) / p.group};
#pragma unroll
    for (int j = 0; j < SNAP_TILES; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t key = key0 + j * 8 + lane % 4 * 2 + i % 2;
            bool hidden = key > pos[i / 2] || key >= p.n_tokens;
            if constexpr (ODD) {
                hidden = hidden || (p.scores.window && key <= pos[i / 2] - p.scores.window);
                s[j][i] = hidden ? -INFINITY : odd_score(p.scores, s[j][i]);
            } else {
                s[j][i] = hidden ? -INFINITY : s[j][i] * p.scores.scale;
            }
        }
    }
}

/* The 64 query rows from row0 on; rows from n_rows on are zeros. */
template <int HD>
static __device__ __forceinline__ void load_rows(uint32_t tile, const snap_params &p, const bf16 *head,
                                                 int row0)
{
    constexpr int PIECES = HD / 8;
    for (int i = (int)threadIdx.x; i < SNAP_ROWS * PIECES; i += SNAP_THREADS) {
        const int r = i / PIECES, piece = i % PIECES;
        const bool valid = row0 + r < p.n_rows;
        const int row = valid ? row0 + r : 0;
        const bf16 *from = head + (p.n_tokens - p.window + row / p.group) * p.stride + row % p.group * HD;
        copy_async16(tile + tile_offset<HD>(r, piece), from + piece * 8, valid);
    }
}

/* Max and sum of every row over one tile of keys. */
template <int HD>
static __device__ __forceinline__ void snap_part(const snap_params &p, const float (&s)[SNAP_TILES][4],
                                                 int row0, int warp, int lane)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int j = 0; j < SNAP_TILES; j++) m = fmaxf(m, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
        const float from = m == -INFINITY ? 0.0f : m; /* a tile that the query doesn't see */
#pragma unroll
        for (int j = 0; j < SNAP_TILES; j++)
            sum += exp2_fast(s[j][2 * r] - from) + exp2_fast(s[j][2 * r + 1] - from);
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int row = row0 + warp * 16 + lane / 4 + r * 8;
        if (lane % 4 == 0 && row < p.n_rows)
            p.part[((int64_t)blockIdx.y * p.max_rows + row) * p.max_tiles + blockIdx.x] = make_float2(m, sum);
    }
}

/* A key's score of two others, x being the one before. */
template <snap_pass PASS> static __device__ __forceinline__ float join(float x, float y)
{
    return PASS == SNAP_MAX ? fmaxf(x, y) : x + y;
}

/* total[key]: every row's probability more, by this thread's rows. */
template <snap_pass PASS>
static __device__ __forceinline__ void add_probabilities(float (&total)[SNAP_TILES][2], const snap_params &p,
                                                         const float (&s)[SNAP_TILES][4], int row0, int warp,
                                                         int lane)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = row0 + warp * 16 + lane / 4 + r * 8;
        float2 stat = make_float2(0.0f, 0.0f);
        if (row < p.n_rows) stat = p.stat[blockIdx.y * p.max_rows + row];
#pragma unroll
        for (int j = 0; j < SNAP_TILES; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float x = exp2_fast(s[j][2 * r + i] - stat.x);
                total[j][i] =
                    PASS == SNAP_MAX ? fmaxf(total[j][i], x * stat.y) : fmaf(x, stat.y, total[j][i]);
            }
        }
    }
}

/* The block's scores of each key: over a warp's rows, then over the warps in order. */
template <snap_pass PASS>
static __device__ __forceinline__ void store_sums(const float (&total)[SNAP_TILES][2], const snap_params &p,
                                                  int64_t key0, int warp, int lane)
{
    __shared__ float columns[SNAP_THREADS / 32][CUDA_SNAP_KEYS];
#pragma unroll
    for (int j = 0; j < SNAP_TILES; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float t = total[j][i];
            t = join<PASS>(t, __shfl_xor_sync(~0u, t, 4));
            t = join<PASS>(t, __shfl_xor_sync(~0u, t, 8));
            t = join<PASS>(t, __shfl_xor_sync(~0u, t, 16));
            if (lane < 4) columns[warp][j * 8 + lane * 2 + i] = t;
        }
    }
    __syncthreads();
    const int64_t key = key0 + threadIdx.x;
    if (key >= p.n_tokens - p.window) return;
    float t = columns[0][threadIdx.x];
    for (int w = 1; w < SNAP_THREADS / 32; w++) t = join<PASS>(t, columns[w][threadIdx.x]);
    p.sum[blockIdx.y * p.max_prompt + key] = t;
}

/* Grid (key tiles, heads), 4 warps of 16 rows. ODD: a cap or a window. PASS: leave every row's max and sum
 * over the tile in p.part, or of all rows' probabilities the mean or the largest in p.sum[head][key]. Shared:
 * 128 keys, 64 rows of queries. */
template <int HD, snap_pass PASS, bool ODD>
static __global__ void __launch_bounds__(SNAP_THREADS) snap_kernel(const snap_params pack)
{
    extern __shared__ __align__(1024) char shared[];
    snap_params p = pack;
    const fkv_segment segment =
        open_segment(p, segment_of_tile(p.segments, p.n_segments, (int)blockIdx.x), (int)gridDim.y);
    if (p.n_tokens <= p.min_tokens) return;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const bf16 *head = p.qkv + blockIdx.y * p.per;
    const uint32_t keys = smem_address(shared), queries = keys + CUDA_SNAP_KEYS * tile_row<HD>();
    const int64_t key0 = ((int64_t)blockIdx.x - segment.tile0) * CUDA_SNAP_KEYS;
    load_tile<HD, CUDA_SNAP_KEYS, SNAP_THREADS>(keys, head + p.group * HD, p.stride, key0, p.n_tokens);
    float total[SNAP_TILES][2] = {};
    for (int row0 = 0; row0 < p.n_rows; row0 += SNAP_ROWS) {
        load_rows<HD>(queries, p, head, row0);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        float s[SNAP_TILES][4];
        snap_scores<HD, ODD>(s, p, queries, keys, row0, key0, warp, lane);
        __syncthreads();
        if constexpr (PASS == SNAP_PART)
            snap_part<HD>(p, s, row0, warp, lane);
        else
            add_probabilities<PASS>(total, p, s, row0, warp, lane);
    }
    if constexpr (PASS != SNAP_PART) store_sums<PASS>(total, p, key0, warp, lane);
}

/* stat[segment][head][row] = max over the prompt's tiles, share / sum. A warp a row; grid (rows,
 * heads, segments). */
static __global__ void snap_merge_kernel(const snap_params pack)
{
    snap_params p = pack;
    const fkv_segment s = open_segment(p, (int)blockIdx.z, (int)gridDim.y);
    if (p.n_tokens <= p.min_tokens) return;
    const int n_tiles = (s.n_tokens + CUDA_SNAP_KEYS - 1) / CUDA_SNAP_KEYS;
    const int64_t row = (int64_t)blockIdx.y * p.max_rows + blockIdx.x;
    const float2 *part = p.part + row * p.max_tiles + s.tile0;
    float m = -INFINITY, sum = 0.0f;
    for (int t = (int)threadIdx.x; t < n_tiles; t += 32) m = fmaxf(m, part[t].x);
    for (int step = 16; step; step /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, step));
    for (int t = (int)threadIdx.x; t < n_tiles; t += 32) sum = fmaf(part[t].y, exp2_fast(part[t].x - m), sum);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x == 0) p.stat[row] = make_float2(m, p.share / sum);
}

/* scores[head][i] = max of sum[head][i - kernel / 2 .. i + kernel / 2] inside [sinks, T - window). Grid
 * (tiles, heads); a thread a score. */
static __global__ void __launch_bounds__(CUDA_SNAP_KEYS)
    snap_pool_kernel(const snap_params pack, int kernel, int sinks, float *scores, int64_t stride)
{
    snap_params p = pack;
    const fkv_segment s =
        open_segment(p, segment_of_tile(p.segments, p.n_segments, (int)blockIdx.x), (int)gridDim.y);
    const int64_t i = ((int64_t)blockIdx.x - s.tile0) * CUDA_SNAP_KEYS + threadIdx.x, half = kernel / 2;
    const int64_t n = p.n_tokens - p.window;
    if (p.n_tokens <= p.min_tokens || i < sinks || i >= n) return;
    const float *x = p.sum + blockIdx.y * p.max_prompt;
    const int64_t from = i - half > sinks ? i - half : sinks, to = i + half < n ? i + half : n - 1;
    float m = x[from];
    for (int64_t j = from + 1; j <= to; j++) m = x[j] > m ? x[j] : m;
    scores[blockIdx.y * stride + s.row0 + i] = m;
}

template <int HD, snap_pass PASS, bool ODD>
static void run_scores(fkv_device *dev, const snap_params &p, int n_tiles, int n_heads)
{
    constexpr int bytes = (CUDA_SNAP_KEYS + SNAP_ROWS) * tile_row<HD>();
    static_assert(bytes + SNAP_THREADS / 32 * CUDA_SNAP_KEYS * 4 <= CUDA_LEAST_SHARED, "it fits every GPU");
    const dim3 grid((unsigned)n_tiles, (unsigned)n_heads),
        rows((unsigned)p.n_rows, (unsigned)n_heads, (unsigned)p.n_segments);
    const cudaFuncAttribute most = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (!CUDA(dev, cudaFuncSetAttribute(snap_kernel<HD, SNAP_PART, ODD>, most, bytes)) ||
        !CUDA(dev, cudaFuncSetAttribute(snap_kernel<HD, PASS, ODD>, most, bytes)))
        return;
    snap_kernel<HD, SNAP_PART, ODD><<<grid, SNAP_THREADS, bytes, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
    snap_merge_kernel<<<rows, 32, 0, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
    snap_kernel<HD, PASS, ODD><<<grid, SNAP_THREADS, bytes, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
}

/* Scores by the last queries, before pooling. */
static void score_window(fkv_device *dev, const fkv_prefill_args *a, const snap_params &p)
{
    const bool odd = cuda_scores_odd(a->spec), max = a->scorer == FKV_SCORER_DEFENSIVE;
    const int n_tiles = (int)a->pack->n_tiles;
    with_head_dim(a->spec->head_dim, [&](auto size) {
        if (odd && max)
            run_scores<size(), SNAP_MAX, true>(dev, p, n_tiles, a->n_heads);
        else if (odd)
            run_scores<size(), SNAP_MEAN, true>(dev, p, n_tiles, a->n_heads);
        else if (max)
            run_scores<size(), SNAP_MAX, false>(dev, p, n_tiles, a->n_heads);
        else
            run_scores<size(), SNAP_MEAN, false>(dev, p, n_tiles, a->n_heads);
    });
}

static snap_params params_of(const fkv_device *dev, const fkv_prefill_args *a)
{
    const cuda_attention *w = dev->attention;
    snap_params p = {};
    p.segments = a->pack->dev_segments;
    p.n_segments = a->pack->n_segments;
    p.min_tokens = a->min_tokens;
    p.qkv = (const bf16 *)a->qkv;
    p.per = (int64_t)fkv_head_rows(a->spec->group) * a->spec->head_dim;
    p.stride = a->n_heads * p.per;
    p.group = a->spec->group;
    p.window = a->score_window;
    p.n_rows = a->score_window * a->spec->group;
    p.share = a->scorer == FKV_SCORER_DEFENSIVE ? 1.0f : 1.0f / (float)p.n_rows;
    p.max_rows = w->max_snap_rows;
    p.max_tiles = w->max_snap_tiles;
    p.max_prompt = dev->limits.max_prompt;
    p.scores = cuda_scores_of(a->spec);
    p.part = w->snap_part;
    p.stat = w->snap_stat;
    p.sum = w->snap_sum;
    return p;
}

/* Whether prepare was told of as much. */
static bool has_room(fkv_device *dev, const fkv_prefill_args *a)
{
    const cuda_attention *w = dev->attention;
    const fkv_device_limits *l = &dev->limits;
    if ((int64_t)a->score_window * a->spec->group > w->max_snap_rows || a->n_heads > l->max_local_heads ||
        a->pack->n_tiles > w->max_snap_tiles || a->pack->n_rows > l->max_prompt ||
        a->pack->n_segments > l->n_slots)
        cuda_fail(dev, "key_scores: more heads, rows or window than prepare was told of");
    else if (a->scorer != FKV_SCORER_SNAPKV && !fkv_scorers_have(l->scorers, a->scorer))
        cuda_fail(dev, "key_scores: a scorer that prepare was not told of");
    else
        return true;
    return false;
}

void cuda_key_scores(fkv_device *dev, const fkv_prefill_args *args)
{
    const fkv_pack *pack = args->pack;
    bool any = false;
    for (int i = 0; i < pack->n_segments; i++) any = any || pack->segments[i].n_tokens > args->min_tokens;
    if (args->n_heads <= 0 || !any || !has_room(dev, args)) return;
    const snap_params p = params_of(dev, args);
    if (args->scorer == FKV_SCORER_KEYDIFF)
        cuda_score_keydiff(dev, args);
    else if (args->scorer == FKV_SCORER_EXPECTED)
        cuda_score_expected(dev, args);
    else
        score_window(dev, args, p);
    const dim3 grid((unsigned)pack->n_tiles, (unsigned)args->n_heads);
    snap_pool_kernel<<<grid, CUDA_SNAP_KEYS, 0, dev->stream>>>(p, args->score_kernel, args->sinks,
                                                               args->scores, args->score_stride);
    CUDA_LAUNCHED(dev);
    if (fkv_scorer_wants_output(args->scorer)) cuda_score_norms(dev, args);
}

/* --- kv_keep ----------------------------------------------------------------- */

enum { SELECT_THREADS = 1024, SELECT_WARPS = SELECT_THREADS / 32, GATHER_THREADS = 256 };

/* A head of a prompt. */
struct keep_head {
    char *arena;
    int64_t table; /* index of the first page's number */
    int32_t n_kept, n_top, n_tokens;
    int32_t n_first;    /* of the n_top, chosen by scores where there is a second */
    int32_t row0, head; /* of the pack; of this rank */
};

struct keep_params {
    keep_head heads[CUDA_KEEP_HEADS];
    const float *scores;
    float *second; /* NULL: scores chooses all */
    int64_t score_stride;
    int window, sinks; /* last and first tokens that have no scores */
    const bf16 *qkv;
    int64_t stride, per;
    int group;
    const int32_t *table;
    int32_t *chosen; /* [heads of the rank][max_prompt] by row of the pack */
    int64_t max_prompt;
};

/* Orders like the float, NaN below everything, both zeros alike. */
static __device__ __forceinline__ uint32_t order_of(float x)
{
    if (isnan(x)) return 0;
    const uint32_t u = __float_as_uint(x + 0.0f);
    return u >> 31 ? ~u : u | 0x80000000u;
}

/* Finds the digit (8 bits from shift on) of the k-th largest among the values whose higher bits are
 * prefix; k becomes its rank inside. All threads; n > 0. */
static __device__ void select_digit(const float *x, int64_t n, int shift, uint32_t &prefix, int64_t &k)
{
    __shared__ int32_t count[SELECT_WARPS / 4][256]; /* four warps share one */
    __shared__ uint32_t found;
    __shared__ int64_t left;
    const int t = (int)threadIdx.x, lane = t % 32;
    for (int i = t; i < SELECT_WARPS / 4 * 256; i += SELECT_THREADS) count[i / 256][i % 256] = 0;
    __syncthreads();
    const uint32_t high = shift == 24 ? 0u : ~0u << (shift + 8);
    const int64_t padded = (n + 31) / 32 * 32;
    for (int64_t i = t; i < padded; i += SELECT_THREADS) { /* whole warps */
        const uint32_t v = i < n ? order_of(x[i]) : 0;
        const bool in = i < n && (v & high) == (prefix & high);
        const uint32_t digit = in ? v >> shift & 255 : 256;
        const uint32_t same = __match_any_sync(~0u, digit); /* scores are much alike: one add for all lanes */
        if (in && lane == __ffs((int)same) - 1) atomicAdd(&count[t / 128][digit], __popc(same));
    }
    __syncthreads();
    if (t < 256) {
        int32_t sum = 0;
        for (int w = 0; w < SELECT_WARPS / 4; w++) sum += count[w][t];
        count[0][t] = sum;
    }
    __syncthreads();
    if (t < 32) { /* lane i has digits [248 - 8 i, 256 - 8 i): the largest first */
        int32_t mine = 0, before;
        for (int d = 0; d < 8; d++) mine += count[0][248 - 8 * lane + d];
        before = mine;
        for (int step = 1; step < 32; step *= 2) {
            const int32_t other = __shfl_up_sync(~0u, before, step);
            if (lane >= step) before += other;
        }
        before -= mine;
        if (k > before && k <= before + mine) {
            int d = 255 - 8 * lane;
            int64_t rank = k - before;
            while (rank > count[0][d]) rank -= count[0][d--];
            found = (uint32_t)d;
            left = rank;
        }
    }
    __syncthreads();
    prefix |= found << shift;
    k = left;
    __syncthreads(); /* found and left are written again by the next digit */
}

/* Positions of the top scores, ascending, counted from the first that has one; ties: lower first. FIRST: as
 * many as come before those by p.second, in which they become infinite; else all, by p.second where there is
 * one. One block a head of a prompt: radix selection of the last value taken, then every warp counts and
 * writes a run of positions. Bound by L2. */
template <bool FIRST>
static __global__ void __launch_bounds__(SELECT_THREADS) keep_select_kernel(const keep_params p)
{
    __shared__ int32_t greater[SELECT_WARPS], equal[SELECT_WARPS];
    const keep_head h = p.heads[blockIdx.x];
    if (h.n_top <= 0) return;
    const int64_t at = h.head * p.score_stride + h.row0 + p.sinks;
    const float *x = (!FIRST && p.second ? p.second : p.scores) + at;
    int32_t *out = p.chosen + h.head * p.max_prompt + h.row0;
    const int64_t n = h.n_tokens - p.window - p.sinks;
    uint32_t limit = 0;
    int64_t n_equal = FIRST ? h.n_first : h.n_top; /* becomes: how many of those equal to limit are taken */
    for (int shift = 24; shift >= 0; shift -= 8) select_digit(x, n, shift, limit, n_equal);

    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int64_t run = (n + SELECT_THREADS - 1) / SELECT_THREADS * 32, from = warp * run;
    int n_greater = 0, n_same = 0;
    for (int64_t i = from; i < from + run && i < n; i += 32) {
        const bool in = i + lane < n;
        const uint32_t v = in ? order_of(x[i + lane]) : 0;
        n_greater += __popc(__ballot_sync(~0u, in && v > limit));
        n_same += __popc(__ballot_sync(~0u, in && v == limit));
    }
    if (lane == 0) {
        greater[warp] = n_greater;
        equal[warp] = n_same;
    }
    __syncthreads();
    int64_t g = 0, e = 0; /* greater and equal ones before this run */
    for (int w = 0; w < warp; w++) {
        g += greater[w];
        e += equal[w];
    }
    const uint32_t below = (1u << lane) - 1;
    for (int64_t i = from; i < from + run && i < n; i += 32) {
        const bool in = i + lane < n;
        const uint32_t v = in ? order_of(x[i + lane]) : 0;
        const uint32_t is_greater = __ballot_sync(~0u, in && v > limit),
                       is_equal = __ballot_sync(~0u, in && v == limit);
        const int64_t eq = e + __popc(is_equal & below);
        const bool taken = in && (v > limit || (v == limit && eq < n_equal));
        if (FIRST && taken) p.second[at + i + lane] = INFINITY;
        if (!FIRST && taken)
            out[g + __popc(is_greater & below) + (eq < n_equal ? eq : n_equal)] = (int32_t)(i + lane);
        g += __popc(is_greater);
        e += __popc(is_equal);
    }
}

/* Which token of the prompt is the t-th kept: the first ones, the chosen, the last. */
static __device__ __forceinline__ int64_t kept_token(const keep_params &p, const keep_head &h, int64_t t)
{
    const int64_t room = h.n_kept - p.window, first = room < 0 ? 0 : room < p.sinks ? room : p.sinks;
    if (t < first) return t;
    if (t < first + h.n_top) return p.sinks + p.chosen[h.head * p.max_prompt + h.row0 + t - first];
    return h.n_tokens - h.n_kept + t;
}

/* Kept K and V into the owner's pages (a peer's, perhaps). Grid (blocks of tokens, heads of prompts); a
 * thread moves 16 bytes. Bound by memory. */
template <int HD>
static __global__ void __launch_bounds__(GATHER_THREADS) keep_gather_kernel(const keep_params p)
{
    constexpr int PIECES = 2 * HD / 8; /* K and V of a token, neighbours in qkv */
    const keep_head h = p.heads[blockIdx.y];
    const int64_t i = (int64_t)blockIdx.x * GATHER_THREADS + threadIdx.x, t = i / PIECES;
    if (t >= h.n_kept) return;
    const int piece = (int)(i % PIECES), v = piece / (HD / 8);
    const int64_t from = kept_token(p, h, t);
    const int64_t page = p.table[h.table + t / FKV_PAGE_TOKENS];
    const bf16 *src = p.qkv + (h.row0 + from) * p.stride + h.head * p.per + p.group * HD + piece * 8;
    bf16 *dst = (bf16 *)(h.arena + page * page_bytes<bf16>(HD)) +
                (v * FKV_PAGE_TOKENS + t % FKV_PAGE_TOKENS) * HD + piece % (HD / 8) * 8;
    *(uint4 *)dst = *(const uint4 *)src;
}

/* Lanes that a vector has in the kernel below: one for 8 numbers, and to the next power of two. */
template <int HD> static constexpr FKV_IN_KERNELS int vector_lanes(void)
{
    return HD > 128 ? 32 : HD > 64 ? 16 : 8;
}

/* The same into fp8 pages. Grid (blocks of vectors, heads of prompts). */
template <int HD>
static __global__ void __launch_bounds__(GATHER_THREADS) keep_fp8_kernel(const keep_params p)
{
    constexpr int LANES = vector_lanes<HD>();
    const keep_head h = p.heads[blockIdx.y];
    const int64_t i = ((int64_t)blockIdx.x * GATHER_THREADS + threadIdx.x) / LANES, t = i / 2;
    const int v = (int)(i % 2), piece = (int)threadIdx.x % LANES; /* neighbours in qkv: K, V */
    const bool there = t < h.n_kept, mine = there && piece < HD / 8;
    uint4 x = make_uint4(0, 0, 0, 0);
    if (mine)
        x = *(const uint4 *)(p.qkv + (h.row0 + kept_token(p, h, t)) * p.stride + h.head * p.per +
                             (p.group + v) * HD + piece * 8);
    float f[8];
    uint32_t most = 0;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        f[k] = __bfloat162float(((const bf16 *)&x)[k]);
        most = max(most, magnitude(f[k]));
    }
    const float by = scale_of(most_of<LANES>(most));
    scale_fit fit = {};
    uint16_t y[4];
#pragma unroll
    for (int k = 0; k < 4; k++) y[k] = pack_e4m3(fit, scaled(f[2 * k], by), scaled(f[2 * k + 1], by));
    const float mended = mended_scale<LANES>(by, fit);
    if (!there) return;
    char *const page = h.arena + p.table[h.table + t / FKV_PAGE_TOKENS] * page_bytes<e4m3>(HD);
    const int row = v * FKV_PAGE_TOKENS + (int)(t % FKV_PAGE_TOKENS);
    if (piece == 0) ((float *)(page + page_scales<e4m3>(HD)))[row] = mended;
    if (!mine) return;
    *(uint2 *)(page + row * HD + piece * 8) =
        make_uint2(y[0] | (uint32_t)y[1] << 16, y[2] | (uint32_t)y[3] << 16);
}

/* The first n of p's heads. */
static void keep_heads(fkv_device *dev, const keep_params &p, int head_dim, fkv_kv_form form, int n)
{
    int64_t most = 0, most_top = 0;
    for (int i = 0; i < n; i++) {
        if (p.heads[i].n_kept > most) most = p.heads[i].n_kept;
        if (p.heads[i].n_top > most_top) most_top = p.heads[i].n_top;
    }
    if (most_top > 0) {
        if (p.second) {
            keep_select_kernel<true><<<(unsigned)n, SELECT_THREADS, 0, dev->stream>>>(p);
            CUDA_LAUNCHED(dev);
        }
        keep_select_kernel<false><<<(unsigned)n, SELECT_THREADS, 0, dev->stream>>>(p);
        CUDA_LAUNCHED(dev);
    }
    if (most == 0) return;
    with_head_dim(head_dim, [&](auto hd) {
        const bool fp8 = form == FKV_KV_FP8;
        const int64_t threads = most * 2 * (fp8 ? vector_lanes<hd()>() : hd() / 8);
        const dim3 grid((unsigned)((threads + GATHER_THREADS - 1) / GATHER_THREADS), (unsigned)n);
        if (fp8)
            keep_fp8_kernel<hd()><<<grid, GATHER_THREADS, 0, dev->stream>>>(p);
        else
            keep_gather_kernel<hd()><<<grid, GATHER_THREADS, 0, dev->stream>>>(p);
    });
    CUDA_LAUNCHED(dev);
}

static keep_head keep_of(const fkv_keep_args *a, const fkv_segment *s, int head)
{
    const int64_t lh = (int64_t)a->layer * a->spec->n_kv_heads + a->head0 + head, budget = a->kv.budgets[lh];
    keep_head h = {};
    h.arena = (char *)a->kv.arenas[a->owner[lh * a->n_slots + s->slot]];
    h.table = s->slot * a->kv.slot_stride + a->kv.offset[lh];
    h.n_kept = (int32_t)(s->n_tokens < budget ? s->n_tokens : budget);
    const int64_t chosen = budget - a->score_window - a->sinks;
    h.n_top = (int32_t)(s->n_tokens > budget && chosen > 0 && !a->spec->window ? chosen : 0);
    h.n_first = (int32_t)fkv_critical_first(h.n_top);
    h.n_tokens = s->n_tokens;
    h.row0 = s->row0;
    h.head = head;
    return h;
}

void cuda_kv_keep(fkv_device *dev, const fkv_keep_args *a)
{
    const int hd = a->spec->head_dim;
    const int64_t per = (int64_t)fkv_head_rows(a->spec->group) * hd;
    keep_params p = {};
    int n = 0;
    if (a->n_heads > dev->limits.max_local_heads || a->pack->n_rows > dev->limits.max_prompt) {
        cuda_fail(dev, "kv_keep: more heads or tokens than prepare was told of");
        return;
    }
    p.scores = a->scores;
    p.second = a->second;
    p.score_stride = a->score_stride;
    p.window = a->score_window;
    p.sinks = a->spec->window ? 0 : a->sinks; /* a window of its own: the last tokens alone */
    p.qkv = (const bf16 *)a->qkv;
    p.stride = a->n_heads * per;
    p.per = per;
    p.group = a->spec->group;
    p.table = a->kv.table;
    p.chosen = dev->attention->keep;
    p.max_prompt = dev->limits.max_prompt;
    for (int i = 0; i < a->pack->n_segments; i++) {
        for (int h = 0; h < a->n_heads; h++) {
            p.heads[n++] = keep_of(a, &a->pack->segments[i], h);
            if (n < CUDA_KEEP_HEADS) continue;
            keep_heads(dev, p, hd, a->kv.form, n);
            n = 0;
        }
    }
    if (n) keep_heads(dev, p, hd, a->kv.form, n);
}
