/* Scorers of the CUDA backend: keys and values times matrices, from which come expected's logits and the
 * norms behind the output projection. See cuda_scorers.cu about bits and what is rounded; the workspace is
 * the device's. */
#include "kernels/cuda_scorers.h"
#include "kernels/cuda_wgmma.h"

/* What becomes of y = (rows of a matrix) x, of x a key or a value: the sum of |y| over all query heads; or by
 * query head x . y, whose roots are added; or x . y and linear's share, which is a logit. */
enum stream_kind { STREAM_L1, STREAM_L2, STREAM_LOGIT };

struct stream_params {
    score_params p;
    const bf16 *rows; /* [KV heads][n_rows][hd], of place 0 */
    int64_t n_rows, place_stride;
    float *scores, *second; /* of the op */
    int64_t score_stride;
};

/* A block has SCORE_KEYS vectors, a warp WARP_KEYS of them as fragments, and rows come in two stages of ROWS.
 */
template <int HD> struct stream_tiles {
    static constexpr int WARP_KEYS = HD <= 128 ? 32 : 16, M = WARP_KEYS / 16, ROWS = HD <= 128 ? 64 : 32,
                         THREADS = SCORE_KEYS / WARP_KEYS * 32;
    static constexpr int X_BYTES = SCORE_KEYS * tile_row<HD>(), BYTES = ROWS * tile_row<HD>(),
                         ALL_BYTES = X_BYTES + 2 * BYTES;
    static_assert(ALL_BYTES <= CUDA_LEAST_SHARED, "it fits every GPU");
    static_assert(2 * HD % ROWS == 0, "a query head's matrix ends with a stage");
};

/* y[m][half][4] of 16 rows from `row` on: thread: vectors lane / 4 (+ 8), rows half * 8 + lane % 4 * 2 (+ 1).
 */
template <int HD, int M>
static __device__ __forceinline__ void stream_product(float (&y)[M][2][4], const uint32_t (&x)[M][HD / 16][4],
                                                      uint32_t rows, int row, int lane)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 8; i++) y[m][i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++) {
        uint32_t b[4];
        load_matrix4(b, rows + tile_offset<HD>(row + (lane & 7) + (lane >> 4) * 8, 2 * kk + (lane >> 3 & 1)));
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma16816(y[m][0], x[m][kk], b[0], b[1]);
            mma16816(y[m][1], x[m][kk], b[2], b[3]);
        }
    }
}

/* sum[m][r] += |y|, of the thread's rows. */
template <int M>
static __device__ __forceinline__ void add_sizes(float (&sum)[M][2], const float (&y)[M][2][4])
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            sum[m][r] += (fabsf(y[m][0][2 * r]) + fabsf(y[m][0][2 * r + 1])) +
                         (fabsf(y[m][1][2 * r]) + fabsf(y[m][1][2 * r + 1]));
}

/* sum[m][r] += (y + linear) . x, of the thread's rows; dim: of the first. linear: of the matrix, NULL: none.
 */
template <int HD, int M>
static __device__ __forceinline__ void add_products(float (&sum)[M][2], const float (&y)[M][2][4],
                                                    const char *vectors, int dim, const float *linear,
                                                    int lane)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int at = dim + half * 8 + lane % 4 * 2;
        float2 add = make_float2(0.0f, 0.0f);
        if (linear) add = *(const float2 *)(linear + at);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float2 x = pair_at<HD>(vectors, m * 16 + lane / 4 + r * 8, at);
                sum[m][r] =
                    fmaf(y[m][half][2 * r] + add.x, x.x, fmaf(y[m][half][2 * r + 1] + add.y, x.y, sum[m][r]));
            }
    }
}

/* Over the four threads that share vectors. */
static __device__ __forceinline__ float fold_rows(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* The thread's vectors' own part of the sums of query head g, which is done. key: of the warp's first. */
template <stream_kind KIND, int M>
static __device__ __forceinline__ void end_head(float (&sum)[M][2], float (&total)[M][2],
                                                const stream_params &a, const score_place &at, int64_t key,
                                                int g, int lane)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float x = fold_rows(sum[m][r]);
            const int64_t k = key + m * 16 + lane / 4 + r * 8, q = (int64_t)blockIdx.y * a.p.group + g;
            if constexpr (KIND == STREAM_LOGIT) {
                if (lane % 4 == 0 && k >= a.p.sinks && k < at.segment.n_tokens)
                    a.p.space.logits[q * a.p.max_prompt + at.segment.row0 + k] = x;
            } else {
                total[m][r] += sqrtf(fmaxf(0.0f, x));
            }
            sum[m][r] = 0.0f;
        }
}

/* Scores by the norms, of vectors STEP apart; those before that are in a.scores. */
template <stream_kind KIND, int M, int STEP>
static __device__ __forceinline__ void store_norms(const float (&total)[M][2], const stream_params &a,
                                                   const score_place &at, int64_t key, int lane)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float x = KIND == STREAM_L1 ? fold_rows(total[m][r]) : total[m][r];
            const int64_t k = key + m * STEP + lane / 4 + r * 8;
            if (lane % 4 || k < a.p.sinks || k >= at.segment.n_tokens - a.p.window) continue;
            const int64_t e = blockIdx.y * a.score_stride + at.segment.row0 + k;
            const float norm = x / (float)a.p.group, score = a.scores[e];
            if constexpr (KIND == STREAM_L1) {
                a.second[e] = (score + FKV_CRITICAL_EPSILON) * norm;
            } else {
                const float least = a.p.space.risk[(int64_t)at.index * gridDim.y + blockIdx.y];
                a.scores[e] = (score < least ? least : score) * norm;
            }
        }
}

/* Grid (tiles, KV heads). The rows of a KV head are those of its query heads, one behind the other: O_g, or a
 * float32 matrix in two bf16. Shared: stream_tiles. Bound by the tensor cores. */
template <int HD, stream_kind KIND>
static __global__ void __launch_bounds__(stream_tiles<HD>::THREADS) stream_kernel(const stream_params a)
{
    extern __shared__ __align__(1024) char shared[];
    using tiles = stream_tiles<HD>;
    constexpr int M = tiles::M, ROWS = tiles::ROWS, THREADS = tiles::THREADS;
    const score_params &p = a.p;
    score_place at;
    if (!find_place(p, at)) return;
    if (KIND != STREAM_LOGIT && at.first >= at.segment.n_tokens - p.window) return;
    const int lane = (int)threadIdx.x % 32, mine = (int)threadIdx.x / 32 * tiles::WARP_KEYS;
    const uint32_t vectors = smem_address(shared), stages = vectors + tiles::X_BYTES;
    const int64_t place = KIND == STREAM_LOGIT ? split_place(p, at.index) : 0;
    const bf16 *rows = a.rows + place * a.place_stride + blockIdx.y * a.n_rows * HD;
    const float *linear =
        KIND == STREAM_LOGIT ? p.space.linear + (place * gridDim.y + blockIdx.y) * p.group * HD : NULL;
    const int n = (int)((a.n_rows + ROWS - 1) / ROWS);
    load_tile<HD, SCORE_KEYS, THREADS>(
        vectors, vector_of(p, at, blockIdx.y, KIND == STREAM_LOGIT ? p.group : p.group + 1, HD), p.stride,
        at.first, at.segment.n_tokens);
    copy_commit();
    load_tile<HD, ROWS, THREADS>(stages, rows, HD, 0, a.n_rows);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
    uint32_t x[M][HD / 16][4];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int kk = 0; kk < HD / 16; kk++)
            load_matrix4(x[m][kk],
                         vectors + tile_offset<HD>(mine + m * 16 + (lane & 15), 2 * kk + (lane >> 4)));
    float sum[M][2] = {}, total[M][2] = {};
    for (int c = 0; c < n; c++) {
        if (c + 1 < n)
            load_tile<HD, ROWS, THREADS>(stages + (uint32_t)(((c + 1) & 1) * tiles::BYTES), rows, HD,
                                         (int64_t)(c + 1) * ROWS, a.n_rows);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
#pragma unroll 2
        for (int row = 0; row < ROWS; row += 16) {
            float y[M][2][4];
            stream_product<HD, M>(y, x, stages + (uint32_t)((c & 1) * tiles::BYTES), row, lane);
            if constexpr (KIND == STREAM_L1) {
                add_sizes<M>(sum, y);
            } else {
                const int of_head = (c * ROWS + row) % (2 * HD), g = (c * ROWS + row) / (2 * HD);
                add_products<HD, M>(sum, y, shared + mine * tile_row<HD>(), of_head % HD,
                                    linear && of_head < HD ? linear + g * HD : NULL, lane);
            }
        }
        if constexpr (KIND != STREAM_L1) {
            if ((c + 1) * ROWS % (2 * HD) == 0)
                end_head<KIND, M>(sum, total, a, at, at.first + mine, c * ROWS / (2 * HD), lane);
        } else {
#pragma unroll
            for (int i = 0; i < 2 * M; i++) { /* short sums, then their sum */
                total[i / 2][i % 2] += sum[i / 2][i % 2];
                sum[i / 2][i % 2] = 0.0f;
            }
        }
        __syncthreads();
    }
    if constexpr (KIND != STREAM_LOGIT) store_norms<KIND, M, 16>(total, a, at, at.first + mine, lane);
}

/* risk[prompt][head] = the mean of the head's scores. Grid (heads, prompts). */
static __global__ void __launch_bounds__(FOLD_THREADS)
    risk_kernel(const score_params p, const float *scores, int64_t score_stride)
{
    const fkv_segment s = p.segments[blockIdx.y];
    const int64_t end = s.n_tokens - p.window;
    if (s.n_tokens <= p.min_tokens) return;
    const float *x = scores + blockIdx.x * score_stride + s.row0;
    float sum = 0.0f;
    for (int64_t i = p.sinks + (int64_t)threadIdx.x; i < end; i += FOLD_THREADS) sum += x[i];
    sum = fold_block(sum, fold_sum());
    if (threadIdx.x == 0) p.space.risk[blockIdx.y * gridDim.x + blockIdx.x] = sum / (float)(end - p.sinks);
}

/* --- the sum of |y| on Hopper ---------------------------------------------------- */

/* A block has two tiles of a prompt, a warpgroup 128 of their vectors; rows come in two stages of ROWS, half
 * of which one product has. Tiles are panels of 64 columns, as cuda_wgmma.h has them. */
template <int HD> struct wide_tiles {
    static constexpr int VECTORS = 2 * SCORE_KEYS, ROWS = 256, THREADS = 256;
    static constexpr int X_PANEL = VECTORS * 128, PANEL = ROWS * 128, BYTES = HD / 64 * PANEL,
                         ALL_BYTES = HD / 64 * X_PANEL + 2 * BYTES + 1024;
};

/* Rows [row0, row0 + ROWS) of src into panels; rows from n_rows on are zeros. */
template <int HD, int ROWS, int THREADS>
static __device__ __forceinline__ void load_panels(uint32_t tile, const bf16 *src, int64_t stride,
                                                   int64_t row0, int64_t n_rows)
{
    constexpr int PIECES = HD / 8;
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const int r = i / PIECES, p = i % PIECES;
        const bool valid = row0 + r < n_rows;
        copy_async16(tile + (uint32_t)(p / 8 * ROWS * 128) + tile_offset<64>(r, p % 8),
                     src + (valid ? row0 + r : 0) * stride + p * 8, valid);
    }
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* y[64 vectors][128 rows], begun. */
template <int HD>
static __device__ __forceinline__ void begin_product(float (&y)[64], uint32_t vectors, uint32_t rows)
{
    using tiles = wide_tiles<HD>;
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++)
        wgmma_rows(y, tile_descriptor(vectors + kk / 4 * tiles::X_PANEL + kk % 4 * 32, 16),
                   tile_descriptor(rows + kk / 4 * tiles::PANEL + kk % 4 * 32, 16), kk > 0);
    wgmma_commit();
}

/* Waits for all products but the last one that was begun, or for that too; then sum[r] += |y|. */
template <int PENDING> static __device__ __forceinline__ void end_product(float (&sum)[2], float (&y)[64])
{
    float add[2] = {0.0f, 0.0f};
    wgmma_wait<PENDING>();
#pragma unroll
    for (int i = 0; i < 64; i++) asm volatile("" : "+f"(y[i])); /* not read before */
#pragma unroll
    for (int i = 0; i < 64; i++) add[i % 4 / 2] += fabsf(y[i]);
    sum[0] += add[0];
    sum[1] += add[1];
}

#endif

/* Grid (tiles, KV heads); those with an odd number in their prompt have nothing to do. While one product of a
 * warpgroup is under way another one's results are added up. Shared: wide_tiles, aligned to 1024 bytes. Bound
 * by the tensor cores. */
template <int HD>
static __global__ void __launch_bounds__(wide_tiles<HD>::THREADS, 1) sizes_sm90_kernel(const stream_params a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ char shared[];
    using tiles = wide_tiles<HD>;
    constexpr int ROWS = tiles::ROWS, THREADS = tiles::THREADS;
    score_place at;
    if (!find_place(a.p, at) || at.first % tiles::VECTORS || at.first >= at.segment.n_tokens - a.p.window)
        return;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, mine = warp / 4 * 128;
    const uint32_t vectors = (smem_address(shared) + 1023) & ~1023u,
                   stages = vectors + HD / 64 * tiles::X_PANEL;
    const bf16 *rows = a.rows + blockIdx.y * a.n_rows * HD;
    const int n = (int)((a.n_rows + ROWS - 1) / ROWS);
    const auto load = [&](int c) {
        const uint32_t to = stages + (uint32_t)(c % 2 * tiles::BYTES);
        if (c < n) load_panels<HD, ROWS, THREADS>(to, rows, HD, (int64_t)c * ROWS, a.n_rows);
        copy_commit();
    };
    load_panels<HD, tiles::VECTORS, THREADS>(vectors, vector_of(a.p, at, blockIdx.y, a.p.group + 1, HD),
                                             a.p.stride, at.first, at.segment.n_tokens);
    load(0);
    float y0[64], y1[64], sum[2][2] = {};
    for (int c = 0; c < n; c++) {
        const uint32_t x0 = vectors + (uint32_t)mine * 128, x1 = x0 + 64 * 128;
        const uint32_t r0 = stages + (uint32_t)(c % 2 * tiles::BYTES), r1 = r0 + 128 * 128;
        copy_wait<0>();
        wgmma_see_writes();
        __syncthreads(); /* all have this stage, and are done with the other one */
        load(c + 1);
        begin_product<HD>(y0, x0, r0);
        begin_product<HD>(y1, x1, r0);
        end_product<1>(sum[0], y0);
        begin_product<HD>(y0, x0, r1);
        end_product<1>(sum[1], y1);
        begin_product<HD>(y1, x1, r1);
        end_product<1>(sum[0], y0);
        end_product<0>(sum[1], y1);
    }
    store_norms<STREAM_L1, 2, 64>(sum, a, at, at.first + mine + warp % 4 * 16, lane);
#else
    (void)a;
#endif
}

/* rows[n][2][matrix] = of matrices in float32, an element a thread. */
static __global__ void __launch_bounds__(PLAIN_THREADS)
    split_kernel(const float *from, int64_t n, int64_t matrix, bf16 *rows)
{
    const int64_t i = (int64_t)blockIdx.x * PLAIN_THREADS + threadIdx.x;
    if (i < n * matrix) store_split(rows + i / matrix * 2 * matrix + i % matrix, matrix, from[i]);
}

/* --- host --------------------------------------------------------------------- */

score_params cuda_score_params_of(const fkv_device *dev, const fkv_prefill_args *a)
{
    const cuda_attention *w = dev->attention;
    const float log2e = 1.4426950408889634f;
    score_params p = {};
    p.segments = a->pack->dev_segments;
    p.n_segments = a->pack->n_segments;
    p.min_tokens = a->min_tokens;
    p.qkv = (const bf16 *)a->qkv;
    p.per = (int64_t)fkv_head_rows(a->spec->group) * a->spec->head_dim;
    p.stride = a->n_heads * p.per;
    p.group = a->spec->group;
    p.window = a->score_window;
    p.sinks = a->sinks;
    p.max_tiles = w->max_snap_tiles;
    p.max_prompt = dev->limits.max_prompt;
    p.space = w->score;
    p.sum = w->snap_sum;
    p.rope = cuda_rope_table(dev, a->spec);
    p.rope_rows = a->pack->dev_rope_rows;
    p.max_positions = dev->limits.max_positions;
    if (p.rope) p.ahead = w->score.ahead + (int64_t)a->spec->rope * (a->spec->head_dim / 2);
    p.linear = log2e * a->spec->scale;
    p.quadratic = log2e * a->spec->scale * a->spec->scale / 2;
    return p;
}

template <int HD, stream_kind KIND>
static void run_stream(fkv_device *dev, const stream_params &s, dim3 tiles)
{
    using stages = stream_tiles<HD>;
    if (!allow_shared(dev, stream_kernel<HD, KIND>, stages::ALL_BYTES)) return;
    stream_kernel<HD, KIND><<<tiles, stages::THREADS, stages::ALL_BYTES, dev->stream>>>(s);
    CUDA_LAUNCHED(dev);
}

void cuda_score_logits(fkv_device *dev, const score_params &p, int hd, int n_heads, int n_tiles)
{
    const dim3 tiles((unsigned)n_tiles, (unsigned)n_heads);
    stream_params s = {};
    s.p = p;
    s.rows = p.space.rows;
    s.n_rows = (int64_t)p.group * 2 * hd;
    s.place_stride = n_heads * s.n_rows * hd;
    with_head_dim(hd, [&](auto size) { run_stream<size(), STREAM_LOGIT>(dev, s, tiles); });
}

template <int HD> static void run_sizes_sm90(fkv_device *dev, const stream_params &s, dim3 tiles)
{
    using stages = wide_tiles<HD>;
    if (!allow_shared(dev, sizes_sm90_kernel<HD>, stages::ALL_BYTES)) return;
    sizes_sm90_kernel<HD><<<tiles, stages::THREADS, stages::ALL_BYTES, dev->stream>>>(s);
    CUDA_LAUNCHED(dev);
}

/* The matrices that defensive multiplies with, and the least risk of each head. */
static void prepare_risk(fkv_device *dev, const fkv_prefill_args *a, const score_params &p)
{
    const int64_t n = (int64_t)a->n_heads * p.group, matrix = (int64_t)a->spec->head_dim * a->spec->head_dim;
    const unsigned blocks = (unsigned)((n * matrix + PLAIN_THREADS - 1) / PLAIN_THREADS);
    split_kernel<<<blocks, PLAIN_THREADS, 0, dev->stream>>>(a->gram, n, matrix, p.space.rows);
    CUDA_LAUNCHED(dev);
    const dim3 grid((unsigned)a->n_heads, (unsigned)a->pack->n_segments);
    risk_kernel<<<grid, FOLD_THREADS, 0, dev->stream>>>(p, a->scores, a->score_stride);
    CUDA_LAUNCHED(dev);
}

void cuda_score_norms(fkv_device *dev, const fkv_prefill_args *a)
{
    const int hd = a->spec->head_dim;
    const dim3 tiles((unsigned)a->pack->n_tiles, (unsigned)a->n_heads);
    stream_params s = {};
    s.p = cuda_score_params_of(dev, a);
    s.scores = a->scores;
    s.second = a->second;
    s.score_stride = a->score_stride;
    if (a->scorer == FKV_SCORER_CRITICAL) {
        s.rows = cuda_weight_bf16(cuda_weight_rows(a->output_heads, 0));
        s.n_rows = (int64_t)s.p.group * a->hidden;
        if (dev->attention->wgmma && hd == 128)
            run_sizes_sm90<128>(dev, s, tiles);
        else if (dev->attention->wgmma && hd == 64)
            run_sizes_sm90<64>(dev, s, tiles);
        else
            with_head_dim(hd, [&](auto size) { run_stream<size(), STREAM_L1>(dev, s, tiles); });
    } else {
        prepare_risk(dev, a, s.p);
        s.rows = s.p.space.rows;
        s.n_rows = (int64_t)s.p.group * 2 * hd;
        with_head_dim(hd, [&](auto size) { run_stream<size(), STREAM_L2>(dev, s, tiles); });
    }
}
