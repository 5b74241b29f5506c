/* What the files of the CUDA backend's scorers share (cuda_scorers.cu, cuda_scorer_rows.cu): a launch's
 * parameters, where a block works, and pieces of kernels. Owns nothing. */
#ifndef FKV_KERNELS_CUDA_SCORERS_H
#define FKV_KERNELS_CUDA_SCORERS_H

#include <math.h>

#include "kernels/cuda_attention.h"

enum { SCORE_KEYS = CUDA_SNAP_KEYS, FOLD_THREADS = 1024, PLAIN_THREADS = 256 };
enum { LEAST_SPLIT_TILES = 2 };

/* Of a launch on some of a pack's prompts, one behind the other. */
struct score_params {
    const fkv_segment *segments;
    int n_segments;
    int64_t min_tokens; /* prompts of at most so many have no scores */
    const bf16 *qkv;
    int64_t stride, per;
    int group, window, sinks;
    int64_t max_tiles, max_prompt; /* strides of the workspace */
    cuda_scorer_space space;
    float *sum;               /* as snap_sum */
    const float2 *rope;       /* table of the layer and those behind it; NULL: none */
    const int32_t *rope_rows; /* of the pack */
    int64_t max_positions;
    const float2 *ahead;     /* of the same tables */
    float linear, quadratic; /* factors of logits, log2 units */
};

/* Where a block works. */
struct score_place {
    fkv_segment segment;
    int index;     /* of the segment in the launch */
    int64_t tile;  /* of the pack */
    int64_t first; /* the tile's first position in the prompt */
};

/* By blockIdx.x; whether the prompt has scores. */
static __device__ __forceinline__ bool find_place(const score_params &p, score_place &at)
{
    at.tile = p.segments[0].tile0 + (int)blockIdx.x;
    at.index = segment_of_tile(p.segments, p.n_segments, (int)at.tile);
    at.segment = p.segments[at.index];
    at.first = (at.tile - at.segment.tile0) * SCORE_KEYS;
    return at.segment.n_tokens > p.min_tokens;
}

static inline FKV_IN_KERNELS int tiles_of(int64_t n_tokens)
{
    return (int)((n_tokens + SCORE_KEYS - 1) / SCORE_KEYS);
}

/* A prompt's tiles are shared out to at most CUDA_SCORE_SPLITS splits, by its length alone. */
static inline FKV_IN_KERNELS int tiles_of_split(int64_t n_tokens)
{
    const int some = (tiles_of(n_tokens) + CUDA_SCORE_SPLITS - 1) / CUDA_SCORE_SPLITS;
    return some > LEAST_SPLIT_TILES ? some : (int)LEAST_SPLIT_TILES;
}

static inline FKV_IN_KERNELS int splits_of(int64_t n_tokens, int64_t min_tokens)
{
    const int of = tiles_of_split(n_tokens);
    return n_tokens > min_tokens ? (tiles_of(n_tokens) + of - 1) / of : 0;
}

/* First split of a launch's prompt: its place. */
static __device__ __forceinline__ int split_place(const score_params &p, int index)
{
    int place = 0;
    for (int i = 0; i < index; i++) place += splits_of(p.segments[i].n_tokens, p.min_tokens);
    return place;
}

static __device__ __forceinline__ float2 unpack_bf16(uint32_t x)
{
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
}

/* Elements dim and dim + 1 (dim is even) of a tile's row. */
template <int HD> static __device__ __forceinline__ float2 pair_at(const char *tile, int row, int dim)
{
    return unpack_bf16(*(const uint32_t *)(tile + tile_offset<HD>(row, dim / 8) + dim % 8 * 2));
}

static __device__ __forceinline__ void unpack8(float (&to)[8], uint4 x)
{
    const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack_bf16(words[i]);
        to[2 * i] = pair.x;
        to[2 * i + 1] = pair.y;
    }
}

/* The sum of a row's squares. */
template <int HD> static __device__ __forceinline__ float row_square(const char *tile, int row)
{
    float sum = 0.0f;
#pragma unroll 4
    for (int piece = 0; piece < HD / 8; piece++) {
        float x[8];
        unpack8(x, *(const uint4 *)(tile + tile_offset<HD>(row, piece)));
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(x[i], x[i], sum);
    }
    return sum;
}

/* Vector i (of fkv_head_rows) of the block's KV head, in the prompt's row 0. */
static __device__ __forceinline__ const bf16 *vector_of(const score_params &p, const score_place &at,
                                                        int64_t head, int i, int hd)
{
    return p.qkv + at.segment.row0 * p.stride + head * p.per + i * hd;
}

struct fold_sum {
    __device__ __forceinline__ float operator()(float a, float b) const
    {
        return a + b;
    }
};
struct fold_max {
    __device__ __forceinline__ float operator()(float a, float b) const
    {
        return fmaxf(a, b);
    }
};

/* Of all threads of a block of FOLD_THREADS, in the same order always. */
template <typename F> static __device__ __forceinline__ float fold_block(float x, F f)
{
    __shared__ float of[FOLD_THREADS / 32];
    for (int step = 16; step; step /= 2) x = f(x, __shfl_xor_sync(~0u, x, step));
    __syncthreads(); /* the last one's are read */
    if (threadIdx.x % 32 == 0) of[threadIdx.x / 32] = x;
    __syncthreads();
    x = of[0];
    for (int i = 1; i < FOLD_THREADS / 32; i++) x = f(x, of[i]);
    return x;
}

/* A float32 in two bf16: at, and what is lost a matrix behind it. */
static __device__ __forceinline__ void store_split(bf16 *at, int64_t matrix, float x)
{
    const bf16 high = __float2bfloat16_rn(x);
    at[0] = high;
    at[matrix] = __float2bfloat16_rn(x - __bfloat162float(high));
}

/* cuda_scorer_rows.cu. Of all prompts of the pack; logits of the launch's prompts, of matrices in space.rows.
 */
score_params cuda_score_params_of(const fkv_device *dev, const fkv_prefill_args *args);
void cuda_score_logits(fkv_device *dev, const score_params &p, int hd, int n_heads, int n_tiles);

/* Lets a kernel have so much shared memory. */
template <typename K> static inline bool allow_shared(fkv_device *dev, K *kernel, int bytes)
{
    return CUDA(dev, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

#endif
