/* Scorers of the CUDA backend beside SnapKV (cuda_compress.cu): what keydiff and expected make of keys and
 * queries, the norms behind the output projection, and its Gram matrices. Formulas: scorer.h.
 *
 * Tiles of a prompt start at its own position 0, and every sum runs in an order that its length alone fixes:
 * a thread's rows, then threads, then tiles or splits. So bits don't depend on the pack. Products are
 * mma.sync's (critical's: wgmma's on Hopper), bf16 in, float32 sums:
 * - What vectors are multiplied with by turns, v^T G v and k^T M k, is float32: it is split in two bf16, the
 *   number and what is lost, whose products are added. That is as good as 16 bits of mantissa.
 * - Queries less their mean are rounded to bf16 for their covariance: errors of 2^-9 of a deviation that are
 *   independent of one another, so that they fall by the root of the number of queries.
 *
 * Who scores by what, pooling and what is kept: cuda_compress.cu. The workspace is the device's.
 */
#include "kernels/cuda_scorers.h"

enum { KEYS = SCORE_KEYS, SUM_ROWS = 16, SUM_HEADS = 4 };
enum { OUTER_THREADS = 256, OUTER_DIMS = OUTER_THREADS / 32 * 16 };

/* The place's tile of such vectors into shared memory, by all KEYS threads. */
template <int HD>
static __device__ __forceinline__ void fetch_tile(char *tile, const score_params &p, const score_place &at,
                                                  int i)
{
    load_tile<HD, KEYS, KEYS>(smem_address(tile), vector_of(p, at, blockIdx.y, i, HD), p.stride, at.first,
                              at.segment.n_tokens);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
}

/* mean[place][vector] = the tiles' sums, by tile, over n_tokens - left_out. Grid (vectors, prompts), a thread
 * a dimension. Bound by latency. */
static __global__ void mean_kernel(const score_params p, int left_out, bool by_split)
{
    const fkv_segment s = p.segments[blockIdx.y];
    if (s.n_tokens <= p.min_tokens) return;
    const int64_t hd = blockDim.x, place = by_split ? split_place(p, (int)blockIdx.y) : (int)blockIdx.y;
    const float *from = p.space.sums + (blockIdx.x * p.max_tiles + s.tile0) * hd + threadIdx.x;
    const int n = tiles_of(s.n_tokens);
    float sum = 0.0f;
#pragma unroll 16
    for (int t = 0; t < n; t++) sum += from[t * hd];
    p.space.mean[(place * gridDim.x + blockIdx.x) * hd + threadIdx.x] = sum / (float)(s.n_tokens - left_out);
}

/* --- keydiff ------------------------------------------------------------------- */

/* sums[head][tile] of the tile's keys, each over its norm. Grid (tiles, heads). Bound by memory. */
template <int HD> static __global__ void __launch_bounds__(KEYS) key_sum_kernel(const score_params p)
{
    extern __shared__ __align__(1024) char shared[];
    __shared__ float by[KEYS];
    score_place at;
    if (!find_place(p, at)) return;
    const int t = (int)threadIdx.x;
    fetch_tile<HD>(shared, p, at, p.group);
    by[t] = 1.0f / fmaxf(sqrtf(row_square<HD>(shared, t)), FKV_KEYDIFF_LEAST_KEY);
    __syncthreads();
    if (t >= HD / 2) return;
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 8
    for (int r = 0; r < KEYS; r++) { /* rows behind the prompt's last are zeros */
        const float2 x = pair_at<HD>(shared, r, 2 * t);
        sum.x = fmaf(by[r], x.x, sum.x);
        sum.y = fmaf(by[r], x.y, sum.y);
    }
    *(float2 *)(p.space.sums + (blockIdx.y * p.max_tiles + at.tile) * HD + 2 * t) = sum;
}

/* sum[head][key] = minus the cosine of the key with the mean. Grid (tiles, heads); a thread a key. Bound by
 * memory. */
template <int HD> static __global__ void __launch_bounds__(KEYS) key_cosine_kernel(const score_params p)
{
    extern __shared__ __align__(1024) char shared[];
    __shared__ __align__(16) float mean[HD];
    score_place at;
    if (!find_place(p, at)) return;
    const int64_t key = at.first + threadIdx.x, end = at.segment.n_tokens - p.window;
    if (at.first >= end) return;
    for (int i = (int)threadIdx.x; i < HD; i += KEYS)
        mean[i] = p.space.mean[((int64_t)at.index * gridDim.y + blockIdx.y) * HD + i];
    fetch_tile<HD>(shared, p, at, p.group);
    float product = 0.0f, square = 0.0f, of_mean = 0.0f;
#pragma unroll 2
    for (int piece = 0; piece < HD / 8; piece++) {
        float x[8];
        unpack8(x, *(const uint4 *)(shared + tile_offset<HD>((int)threadIdx.x, piece)));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float m = mean[piece * 8 + i];
            product = fmaf(x[i], m, product);
            square = fmaf(x[i], x[i], square);
            of_mean = fmaf(m, m, of_mean);
        }
    }
    if (key < p.sinks || key >= end) return;
    p.sum[blockIdx.y * p.max_prompt + at.segment.row0 + key] =
        -product /
        (fmaxf(sqrtf(square), FKV_KEYDIFF_LEAST_COSINE) * fmaxf(sqrtf(of_mean), FKV_KEYDIFF_LEAST_COSINE));
}

/* --- expected: queries ----------------------------------------------------------- */

/* What turns eight pairs of a query back and divides them by the table's scale: its row's (cos, sin) over
 * their squares. */
static __device__ __forceinline__ void load_turns(float2 (&turn)[8], const score_params &p, int64_t row,
                                                  int hd, int piece)
{
#pragma unroll
    for (int i = 0; i < 8; i++) turn[i] = make_float2(1.0f, 0.0f);
    if (!p.rope) return;
    const float4 *from = (const float4 *)(p.rope + (int64_t)p.rope_rows[row] * (hd / 2) + piece * 8);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float4 c = from[i];
        const float a = __fdividef(1.0f, fmaf(c.x, c.x, c.y * c.y)),
                    b = __fdividef(1.0f, fmaf(c.z, c.z, c.w * c.w));
        turn[2 * i] = make_float2(c.x * a, c.y * a);
        turn[2 * i + 1] = make_float2(c.z * b, c.w * b);
    }
}

/* lo, hi: the pairs from `piece` on of a query, before RoPE. */
static __device__ __forceinline__ void load_turned(float (&lo)[8], float (&hi)[8], const bf16 *query, int hd,
                                                   int piece, const float2 (&turn)[8])
{
    unpack8(lo, *(const uint4 *)(query + piece * 8));
    unpack8(hi, *(const uint4 *)(query + hd / 2 + piece * 8));
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float x = lo[i], y = hi[i];
        lo[i] = x * turn[i].x + y * turn[i].y;
        hi[i] = y * turn[i].x - x * turn[i].y;
    }
}

/* sums[query head][tile] of the tile's queries before RoPE, from the sinks on. Grid (tiles, KV heads); a
 * thread has eight pairs of every SUM_ROWS-th row, of SUM_HEADS query heads at a time. Bound by memory. */
template <int HD> static __global__ void __launch_bounds__(HD) query_sum_kernel(const score_params p)
{
    constexpr int PIECES = HD / 16;
    __shared__ __align__(16) float sums[SUM_ROWS][HD];
    score_place at;
    if (!find_place(p, at)) return;
    const int piece = (int)threadIdx.x % PIECES, r0 = (int)threadIdx.x / PIECES;
    for (int g0 = 0; g0 < p.group; g0 += SUM_HEADS) {
        const bf16 *queries = vector_of(p, at, blockIdx.y, g0, HD);
        float lo[SUM_HEADS][8] = {}, hi[SUM_HEADS][8] = {};
        for (int r = r0; r < KEYS; r += SUM_ROWS) {
            const int64_t pos = at.first + r;
            if (pos < p.sinks || pos >= at.segment.n_tokens) continue;
            float2 turn[8];
            load_turns(turn, p, at.segment.row0 + pos, HD, piece);
#pragma unroll
            for (int g = 0; g < SUM_HEADS; g++) {
                float x[8], y[8];
                if (g0 + g >= p.group) break;
                load_turned(x, y, queries + pos * p.stride + g * HD, HD, piece, turn);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    lo[g][i] += x[i];
                    hi[g][i] += y[i];
                }
            }
        }
#pragma unroll
        for (int g = 0; g < SUM_HEADS; g++) {
            if (g0 + g >= p.group) break;
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 8; i++) {
                sums[r0][piece * 8 + i] = lo[g][i];
                sums[r0][HD / 2 + piece * 8 + i] = hi[g][i];
            }
            __syncthreads();
            float sum = 0.0f;
            for (int r = 0; r < SUM_ROWS; r++) sum += sums[r][threadIdx.x];
            const int64_t q = (int64_t)blockIdx.y * p.group + g0 + g;
            p.space.sums[(q * p.max_tiles + at.tile) * HD + threadIdx.x] = sum;
        }
    }
}

/* c[16 dimensions, from 16 * strip on][HD] += over a tile's KEYS rows, those columns times all. */
template <int HD>
static __device__ __forceinline__ void outer_product(float (&c)[HD / 8][4], uint32_t tile, int strip,
                                                     int lane)
{
#pragma unroll 1 /* more of it in flight spills */
    for (int ks = 0; ks < KEYS / 16; ks++) {
        uint32_t a[4];
        load_matrix4_trans(
            a, tile + tile_offset<HD>(ks * 16 + (lane & 7) + (lane >> 4) * 8, 2 * strip + (lane >> 3 & 1)));
#pragma unroll
        for (int j = 0; j < HD / 16; j++) {
            uint32_t b[4];
            load_matrix4_trans(b, tile + tile_offset<HD>(ks * 16 + (lane & 15), 2 * j + (lane >> 4)));
            mma16816(c[2 * j], a, b[0], b[1]);
            mma16816(c[2 * j + 1], a, b[2], b[3]);
        }
    }
}

template <int HD>
static __device__ __forceinline__ void store_outer(float *to, const float (&c)[HD / 8][4], int strip,
                                                   int lane)
{
#pragma unroll
    for (int j = 0; j < HD / 8; j++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *(float2 *)(to + (int64_t)(strip * 16 + lane / 4 + r * 8) * HD + j * 8 + lane % 4 * 2) =
                make_float2(c[j][2 * r], c[j][2 * r + 1]);
}

/* A tile of queries before RoPE, less their mean, as bf16; zeros for sinks and behind the prompt's end. */
template <int HD>
static __device__ __forceinline__ void fill_queries(char *tile, const score_params &p, const fkv_segment &s,
                                                    const bf16 *queries, int64_t first, const float *mean)
{
    constexpr int PIECES = HD / 16;
#pragma unroll 2
    for (int i = (int)threadIdx.x; i < KEYS * PIECES; i += OUTER_THREADS) {
        const int r = i / PIECES, piece = i % PIECES;
        const int64_t pos = first + r;
        uint32_t lo[4] = {}, hi[4] = {};
        if (pos >= p.sinks && pos < s.n_tokens) {
            float2 turn[8];
            float x[8], y[8];
            load_turns(turn, p, s.row0 + pos, HD, piece);
            load_turned(x, y, queries + pos * p.stride, HD, piece, turn);
            const float *m = mean + piece * 8;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                lo[k] = pack_bf16(x[2 * k] - m[2 * k], x[2 * k + 1] - m[2 * k + 1]);
                hi[k] = pack_bf16(y[2 * k] - m[HD / 2 + 2 * k], y[2 * k + 1] - m[HD / 2 + 2 * k + 1]);
            }
        }
        *(uint4 *)(tile + tile_offset<HD>(r, piece)) = make_uint4(lo[0], lo[1], lo[2], lo[3]);
        *(uint4 *)(tile + tile_offset<HD>(r, PIECES + piece)) = make_uint4(hi[0], hi[1], hi[2], hi[3]);
    }
}

/* cov[split][query head], not divided. Grid (query heads, splits of the launch, HD / OUTER_DIMS): a warp has
 * 16 rows of it. Shared: a tile. Bound by the queries' and RoPE's loads. */
template <int HD>
static __global__ void __launch_bounds__(OUTER_THREADS, HD <= 128 ? 2 : 1)
    covariance_kernel(const score_params p)
{
    extern __shared__ __align__(1024) char shared[];
    __shared__ float mean[HD];
    const int lane = (int)threadIdx.x % 32,
              strip = (int)(blockIdx.z * OUTER_DIMS + threadIdx.x / 32 * 16) / 16;
    int index = 0, place = 0, split = (int)blockIdx.y;
    for (;; index++) {
        const int n = splits_of(p.segments[index].n_tokens, p.min_tokens);
        if (split < n) break;
        split -= n;
        place += n;
    }
    const fkv_segment s = p.segments[index];
    const int from = split * tiles_of_split(s.n_tokens), all = tiles_of(s.n_tokens),
              end = from + tiles_of_split(s.n_tokens), to = end < all ? end : all;
    const bf16 *queries =
        p.qkv + s.row0 * p.stride + (int)blockIdx.x / p.group * p.per + (int)blockIdx.x % p.group * HD;
    for (int i = (int)threadIdx.x; i < HD; i += OUTER_THREADS)
        mean[i] = p.space.mean[((int64_t)place * gridDim.x + blockIdx.x) * HD + i];
    float c[HD / 8][4] = {};
    for (int t = from; t < to; t++) {
        __syncthreads();
        fill_queries<HD>(shared, p, s, queries, (int64_t)t * KEYS, mean);
        __syncthreads();
        if (strip * 16 < HD) outer_product<HD>(c, smem_address(shared), strip, lane);
    }
    if (strip * 16 < HD)
        store_outer<HD>(p.space.cov + ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * HD * HD, c, strip,
                        lane);
}

/* --- expected: keys ---------------------------------------------------------------- */

/* (x, y) times the complex number a. */
static __device__ __forceinline__ void turn_pair(float &x, float &y, float2 a)
{
    const float u = x, v = y;
    x = u * a.x - v * a.y;
    y = v * a.x + u * a.y;
}

/* What A of scorer.h multiplies pair i with, by the row of the prompt's last position. */
static __device__ __forceinline__ float2 turn_ahead(const score_params &p, int32_t row, int half, int i)
{
    if (!p.rope) return make_float2(1.0f, 0.0f);
    float2 a = p.rope[(int64_t)row * half + i];
    turn_pair(a.x, a.y, p.ahead[row / p.max_positions * half + i]);
    return a;
}

/* rows[place][query head] = quadratic * A C A^T, and linear's. Grid (half^2 / PLAIN_THREADS, query heads,
 * prompts): a thread has the four elements of two pairs of dimensions. Bound by latency. */
static __global__ void __launch_bounds__(PLAIN_THREADS) foresee_kernel(const score_params p, int hd)
{
    const fkv_segment s = p.segments[blockIdx.z];
    const int half = hd / 2, e = (int)(blockIdx.x * PLAIN_THREADS + threadIdx.x), i = e / half, j = e % half;
    if (s.n_tokens <= p.min_tokens || i >= half) return;
    const int place = split_place(p, (int)blockIdx.z), n = splits_of(s.n_tokens, p.min_tokens);
    const int64_t matrix = (int64_t)hd * hd, q = (int64_t)place * gridDim.y + blockIdx.y;
    const float by = p.quadratic / (float)(s.n_tokens - p.sinks);
    float c[2][2] = {};
#pragma unroll 2
    for (int split = 0; split < n; split++) {
        const float *from = p.space.cov + (q + (int64_t)split * gridDim.y) * matrix + (int64_t)i * hd + j;
        for (int x = 0; x < 2; x++)
            for (int y = 0; y < 2; y++) c[x][y] += from[(int64_t)x * half * hd + y * half];
    }
    const int32_t row = p.rope ? p.rope_rows[s.row0 + s.n_tokens - 1] : 0;
    const float2 a = turn_ahead(p, row, half, i), b = turn_ahead(p, row, half, j);
    for (int y = 0; y < 2; y++) turn_pair(c[0][y], c[1][y], a);
    for (int x = 0; x < 2; x++) turn_pair(c[x][0], c[x][1], b);
    for (int x = 0; x < 2; x++)
        for (int y = 0; y < 2; y++)
            store_split(p.space.rows + 2 * q * matrix + (int64_t)(i + x * half) * hd + j + y * half, matrix,
                        by * c[x][y]);
    if (j > 0) return;
    float lo = p.space.mean[q * hd + i], hi = p.space.mean[q * hd + i + half];
    turn_pair(lo, hi, a);
    p.space.linear[q * hd + i] = p.linear * lo;
    p.space.linear[q * hd + i + half] = p.linear * hi;
}

/* stat[place][query head]: max and 1 / (group * sum) of the logits' powers. Grid (query heads, prompts). */
static __global__ void __launch_bounds__(FOLD_THREADS) softmax_kernel(const score_params p)
{
    const fkv_segment s = p.segments[blockIdx.y];
    if (s.n_tokens <= p.min_tokens) return;
    const int place = split_place(p, (int)blockIdx.y);
    const float *x = p.space.logits + blockIdx.x * p.max_prompt + s.row0;
    float most = -INFINITY, sum = 0.0f;
    for (int64_t i = p.sinks + (int64_t)threadIdx.x; i < s.n_tokens; i += FOLD_THREADS)
        most = fmaxf(most, x[i]);
    most = fold_block(most, fold_max());
    for (int64_t i = p.sinks + (int64_t)threadIdx.x; i < s.n_tokens; i += FOLD_THREADS)
        sum += exp2_fast(x[i] - most);
    sum = fold_block(sum, fold_sum());
    if (threadIdx.x == 0)
        p.space.stat[place * gridDim.x + blockIdx.x] = make_float2(most, 1.0f / (float)p.group / sum);
}

/* sum[head][key] = its value's norm times the mean of its probabilities. Grid (tiles, KV heads); a thread a
 * key. Bound by memory. */
template <int HD> static __global__ void __launch_bounds__(KEYS) expected_kernel(const score_params p)
{
    extern __shared__ __align__(1024) char shared[];
    score_place at;
    if (!find_place(p, at)) return;
    const int64_t key = at.first + threadIdx.x, end = at.segment.n_tokens - p.window;
    if (at.first >= end) return;
    const int place = split_place(p, at.index), n_queries = (int)gridDim.y * p.group;
    fetch_tile<HD>(shared, p, at, p.group + 1);
    if (key < p.sinks || key >= end) return;
    float sum = 0.0f;
    for (int g = 0; g < p.group; g++) {
        const int64_t q = (int64_t)blockIdx.y * p.group + g;
        const float2 stat = p.space.stat[place * n_queries + q];
        sum = fmaf(exp2_fast(p.space.logits[q * p.max_prompt + at.segment.row0 + key] - stat.x), stat.y, sum);
    }
    p.sum[blockIdx.y * p.max_prompt + at.segment.row0 + key] =
        sqrtf(row_square<HD>(shared, (int)threadIdx.x)) * sum;
}

/* out[i] = Gram matrix of rows [i * n_rows, (i + 1) * n_rows) of w. Grid (matrices, HD / OUTER_DIMS). Shared:
 * a tile. Runs at load. */
template <int HD>
static __global__ void __launch_bounds__(OUTER_THREADS, HD <= 128 ? 2 : 1)
    gram_kernel(const bf16 *w, int64_t n_rows, float *out)
{
    extern __shared__ __align__(1024) char shared[];
    const int lane = (int)threadIdx.x % 32,
              strip = (int)(blockIdx.y * OUTER_DIMS + threadIdx.x / 32 * 16) / 16;
    float c[HD / 8][4] = {};
    for (int64_t row = 0; row < n_rows; row += KEYS) {
        __syncthreads();
        load_tile<HD, KEYS, OUTER_THREADS>(smem_address(shared), w + blockIdx.x * n_rows * HD, HD, row,
                                           n_rows);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        if (strip * 16 < HD) outer_product<HD>(c, smem_address(shared), strip, lane);
    }
    if (strip * 16 < HD) store_outer<HD>(out + (int64_t)blockIdx.x * HD * HD, c, strip, lane);
}

/* --- host --------------------------------------------------------------------- */

template <int HD> static void run_keydiff(fkv_device *dev, const score_params &p, dim3 tiles, int n_prompts)
{
    constexpr int bytes = KEYS * tile_row<HD>();
    if (!allow_shared(dev, key_sum_kernel<HD>, bytes) || !allow_shared(dev, key_cosine_kernel<HD>, bytes))
        return;
    key_sum_kernel<HD><<<tiles, KEYS, bytes, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
    mean_kernel<<<dim3(tiles.y, (unsigned)n_prompts), HD, 0, dev->stream>>>(p, 0, false);
    CUDA_LAUNCHED(dev);
    key_cosine_kernel<HD><<<tiles, KEYS, bytes, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
}

void cuda_score_keydiff(fkv_device *dev, const fkv_prefill_args *a)
{
    const score_params p = cuda_score_params_of(dev, a);
    const dim3 tiles((unsigned)a->pack->n_tiles, (unsigned)a->n_heads);
    with_head_dim(a->spec->head_dim, [&](auto hd) { run_keydiff<hd()>(dev, p, tiles, a->pack->n_segments); });
}

/* Of prompts that have n_splits splits in all. */
template <int HD>
static void run_expected(fkv_device *dev, const score_params &p, int n_heads, int n_tiles, int n_splits)
{
    constexpr int bytes = KEYS * tile_row<HD>(), dims = (HD + OUTER_DIMS - 1) / OUTER_DIMS;
    const unsigned queries = (unsigned)(n_heads * p.group), n = (unsigned)p.n_segments;
    const dim3 tiles((unsigned)n_tiles, (unsigned)n_heads);
    if (!allow_shared(dev, covariance_kernel<HD>, bytes) || !allow_shared(dev, expected_kernel<HD>, bytes))
        return;
    query_sum_kernel<HD><<<tiles, HD, 0, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
    mean_kernel<<<dim3(queries, n), HD, 0, dev->stream>>>(p, p.sinks, true);
    CUDA_LAUNCHED(dev);
    covariance_kernel<HD><<<dim3(queries, (unsigned)n_splits, dims), OUTER_THREADS, bytes, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
    const unsigned pairs = (HD / 2 * (HD / 2) + PLAIN_THREADS - 1) / PLAIN_THREADS;
    foresee_kernel<<<dim3(pairs, queries, n), PLAIN_THREADS, 0, dev->stream>>>(p, HD);
    CUDA_LAUNCHED(dev);
    cuda_score_logits(dev, p, HD, n_heads, n_tiles);
    softmax_kernel<<<dim3(queries, n), FOLD_THREADS, 0, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
    expected_kernel<HD><<<tiles, KEYS, bytes, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
}

/* Prompts by turns, as many as have room for their matrices together. */
void cuda_score_expected(fkv_device *dev, const fkv_prefill_args *a)
{
    const fkv_pack *pack = a->pack;
    for (int first = 0, next; first < pack->n_segments; first = next) {
        int n_splits = 0;
        for (next = first; next < pack->n_segments; next++) {
            const int more = splits_of(pack->segments[next].n_tokens, a->min_tokens);
            if (n_splits + more > CUDA_SCORE_SPLITS) break;
            n_splits += more;
        }
        if (n_splits == 0) continue;
        const int64_t end = next < pack->n_segments ? pack->segments[next].tile0 : pack->n_tiles;
        const int n_tiles = (int)(end - pack->segments[first].tile0);
        score_params p = cuda_score_params_of(dev, a);
        p.segments += first;
        p.n_segments = next - first;
        with_head_dim(a->spec->head_dim,
                      [&](auto hd) { run_expected<hd()>(dev, p, a->n_heads, n_tiles, n_splits); });
    }
}

void cuda_weight_gram(fkv_device *dev, const fkv_weight *w, int64_t rows, int n, float *out)
{
    const cuda_weight_view view = cuda_weight_rows(w, 0);
    if (n <= 0) return;
    with_head_dim((int)view.k, [&](auto hd) {
        constexpr int HD = hd(), bytes = KEYS * tile_row<HD>(), dims = (HD + OUTER_DIMS - 1) / OUTER_DIMS;
        if (!allow_shared(dev, gram_kernel<HD>, bytes)) return;
        gram_kernel<HD><<<dim3((unsigned)n, dims), OUTER_THREADS, bytes, dev->stream>>>(
            cuda_weight_bf16(view), rows, out);
        CUDA_LAUNCHED(dev);
    });
}
