/* What kernels that work on rows share: a block a row, of ROW_THREADS threads, each of which moves WIDTH
 * elements at a time, 16 bytes of bf16 or one element; sums in an order that the row's length alone fixes;
 * and the FP8 form of a row (backend.h). Device code; owns nothing. */
#ifndef FKV_KERNELS_CUDA_ROWS_H
#define FKV_KERNELS_CUDA_ROWS_H

#include <cuda_fp8.h>

#include "kernels/cuda_device.h"

enum { ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32 };

/* WIDTH bf16 values: 16 bytes or one. */
template <int WIDTH> struct alignas(2 * WIDTH) pack {
    bf16 v[WIDTH];
};

template <int WIDTH> struct alignas(WIDTH == 1 ? 4 : 16) floats {
    float v[WIDTH];
};

/* The same number of e4m3 codes. */
template <int WIDTH> struct alignas(WIDTH) codes {
    uint8_t v[WIDTH];
};

static inline bool aligned16(const void *p)
{
    return ((uintptr_t)p & 15) == 0;
}

/* Sum over the block, the same in every thread: lanes by halving, then warps in order. Once a kernel. */
static __device__ __forceinline__ float block_sum(float v)
{
    __shared__ float sums[ROW_WARPS];
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = sums[0];
#pragma unroll
    for (int w = 1; w < ROW_WARPS; w++) sum += sums[w];
    return sum;
}

/* Magnitudes are ordered as their bits are, NaN above all. */
static __device__ __forceinline__ uint32_t magnitude(float v)
{
    return __float_as_uint(v) & 0x7fffffffu;
}

/* A row in FP8. */
struct fp8_row {
    float by, scale; /* its numbers are multiplied by; what its codes stand for is */

    __device__ __forceinline__ explicit fp8_row(float largest)
    {
        const bool none = largest < 0x1p-100f;
        by = none ? 0.0f : 448.0f / largest;
        scale = none ? 0.0f : largest / 448.0f;
    }
    __device__ __forceinline__ uint8_t code(float v) const
    {
        return (uint8_t)__nv_cvt_float_to_fp8(v * by, __NV_SATFINITE, __NV_E4M3);
    }
};

/* Of the block's row, from the largest magnitude that each of its threads has seen. Once a kernel. */
template <int THREADS> static __device__ __forceinline__ fp8_row block_row(uint32_t largest)
{
    __shared__ uint32_t of_warps[THREADS / 32];
    largest = __reduce_max_sync(~0u, largest);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = largest;
    __syncthreads();
    largest = of_warps[0];
#pragma unroll
    for (int w = 1; w < THREADS / 32; w++) largest = of_warps[w] > largest ? of_warps[w] : largest;
    return fp8_row(__uint_as_float(largest));
}

/* g of fkv_activation. x / 2 (1 + tanh(t / 2)) is x / (1 + e^-t). */
template <fkv_activation G> static __device__ __forceinline__ float gate_of(float x)
{
    if constexpr (G == FKV_ACTIVATION_SILU) return x / (1.0f + expf(-x));
    const float t = 1.5957691216f * (x + 0.044715f * x * x * x); /* 2 sqrt(2 / pi) */
    return x / (1.0f + expf(-t));
}

#endif
