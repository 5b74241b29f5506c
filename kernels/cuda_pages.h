/* KV pages on the device: what kernels make of the forms of kv_page.h. How vectors become numbers of a page,
 * and how 16 tokens of one, which lie in shared memory as they do in the page, become operands of mma.
 *
 * Fp8 tokens go through the same products in bf16, which has every e4m3 number; they are widened in
 * registers, four bytes at a time, of which the first and third and the others become pairs. With K a lane's
 * four are neighbours of a token, so the products run over head_dim in another order, and the queries have to
 * have that order. With V ldmatrix transposes pairs of bytes: a lane's four are two neighbours in head_dim of
 * two tokens, so row r of an output tile is column 2 r of it in head_dim, and row r + 8 the one behind it.
 * Nothing is moved for that, and no byte is written to shared memory twice.
 *
 * Owns nothing. Not for which page a token is in (cuda_decode.cu, cuda_decode_append.cu, cuda_compress.cu).
 */
#ifndef FKV_KERNELS_CUDA_PAGES_H
#define FKV_KERNELS_CUDA_PAGES_H

#include <cuda_fp8.h>

#include "kernels/cuda_attention.h"

enum { WARP_TOKENS = 16 }; /* rows of an mma tile */

/* A number of an fp8 page (kv_page.h). Kernels on pages are made for the type of their numbers: bf16 or
 * this. */
struct e4m3 {
    uint8_t bits;
};
template <typename T> static constexpr FKV_IN_KERNELS bool is_fp8(void)
{
    return std::is_same<T, e4m3>::value;
}

/* Bytes of a page, and where its scales begin. */
template <typename T> static constexpr FKV_IN_KERNELS int64_t page_scales(int hd)
{
    return (int64_t)2 * FKV_PAGE_TOKENS * hd * (int)sizeof(T);
}
template <typename T> static constexpr FKV_IN_KERNELS int64_t page_bytes(int hd)
{
    return page_scales<T>(hd) + (is_fp8<T>() ? 2 * FKV_PAGE_TOKENS * (int)sizeof(float) : 0);
}

/* f(a T), for kernels on pages of that form. */
template <typename F> static inline void with_kv_form(fkv_kv_form form, F f)
{
    if (form == FKV_KV_FP8)
        f(e4m3{});
    else
        f(bf16{});
}

/* The scale of a vector whose largest magnitude has these bits as a float32 (those of what is no number are
 * above all others), and its numbers divided by it. */
static __device__ __forceinline__ float scale_of(uint32_t most)
{
    return __fdiv_rn(__uint_as_float(most), 448.0f);
}
static __device__ __forceinline__ float scaled(float x, float scale)
{
    return scale > 0.0f && scale < INFINITY ? __fdiv_rn(x, scale) : 0.0f;
}
static __device__ __forceinline__ uint32_t magnitude(float x)
{
    return __float_as_uint(x) & 0x7fffffffu;
}

/* Sums that mend a vector's scale (kv_page.h), in sixteenths; 256 numbers' stay below 2^30. */
struct scale_fit {
    int32_t missed, square;
};
static __device__ __forceinline__ void fit_number(scale_fit &fit, float x, float n)
{
    fit.missed += __float2int_rn(n * (x - n) * 16.0f);
    fit.square += __float2int_rn(n * n * 16.0f);
}

/* Numbers divided by their scale, lo's into the lower byte. */
static __device__ __forceinline__ uint16_t pack_e4m3(scale_fit &fit, float lo, float hi)
{
    const uint16_t both = __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
    const float2 n = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(both, __NV_E4M3)));
    fit_number(fit, lo, n.x);
    fit_number(fit, hi, n.y);
    return both;
}

/* The scale of numbers that were divided by `by`; fit: a lane's of LANES neighbouring ones. */
template <int LANES> static __device__ __forceinline__ float mended_scale(float by, scale_fit fit)
{
#pragma unroll
    for (int step = LANES / 2; step; step /= 2) {
        fit.missed += __shfl_xor_sync(~0u, fit.missed, step);
        fit.square += __shfl_xor_sync(~0u, fit.square, step);
    }
    return fit.square ? by * (1.0f + __fdiv_rn((float)fit.missed, (float)fit.square)) : by;
}

/* The maximum over LANES neighbouring lanes. */
template <int LANES> static __device__ __forceinline__ uint32_t most_of(uint32_t most)
{
#pragma unroll
    for (int step = LANES / 2; step; step /= 2) {
        const uint32_t other = __shfl_xor_sync(~0u, most, step);
        most = most > other ? most : other;
    }
    return most;
}

/* A warp's vector in e4m3, rounded to bf16 before, and its scale. */
static __device__ __forceinline__ void store_vector_fp8(char *to, float *scale, cuda_vector v, int half,
                                                        int lane)
{
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < CUDA_PAIRS; j++) { /* zeros behind the vector */
        v.lo[j] = __bfloat162float(__float2bfloat16_rn(v.lo[j]));
        v.hi[j] = __bfloat162float(__float2bfloat16_rn(v.hi[j]));
        most = max(most, max(magnitude(v.lo[j]), magnitude(v.hi[j])));
    }
    const float by = scale_of(most_of<32>(most));
    scale_fit fit = {};
#pragma unroll
    for (int j = 0; j < CUDA_PAIRS; j++) {
        const int i = lane + 32 * j;
        if (i >= half) continue;
        const uint16_t both = pack_e4m3(fit, scaled(v.lo[j], by), scaled(v.hi[j], by));
        to[i] = (char)(both & 0xff);
        to[i + half] = (char)(both >> 8);
    }
    const float mended = mended_scale<32>(by, fit);
    if (lane == 0) *scale = mended;
}

/* K, V and their scales of 16 tokens: bytes of a stage, and where the scales begin in it. */
template <int HD, typename T> static constexpr FKV_IN_KERNELS int stage_scales(void)
{
    return 2 * WARP_TOKENS * tile_row<HD, T>();
}
template <int HD, typename T> static constexpr FKV_IN_KERNELS int stage_bytes(void)
{
    return stage_scales<HD, T>() + (is_fp8<T>() ? 2 * WARP_TOKENS * (int)sizeof(float) : 0);
}

/* The first and third of four e4m3 numbers (second: the other two) as bf16. An e4m3 number's bits below the
 * sign, four places up, are those of its value times 2^-120 in bf16, subnormals too. */
template <bool SECOND> static __device__ __forceinline__ uint32_t widen(uint32_t x)
{
    const uint32_t sign = SECOND ? x : x << 8, rest = SECOND ? x >> 4 : x << 4;
    const uint32_t small = (sign & 0x80008000u) | (rest & 0x07f007f0u);
    uint32_t y;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" /* times 2^120, and -0 */
        : "=r"(y)
        : "r"(small), "r"(0x7b807b80u), "r"(0x80008000u));
    return y;
}

/* Tiles of keys as rows (16 tokens) and of values as columns, step i of HD / 16 after the other; fp8: a load
 * serves two steps, and raw holds it. */
template <int HD, typename T>
static __device__ __forceinline__ void load_keys(uint32_t (&k)[4], uint32_t (&raw)[4], uint32_t keys, int i,
                                                 int lane)
{
    if constexpr (is_fp8<T>()) {
        if (i % 2 == 0) load_matrix4(raw, keys + tile_offset<HD, T>(lane & 15, i + (lane >> 4)));
        const uint32_t top = raw[i % 2 * 2], bottom = raw[i % 2 * 2 + 1];
        k[0] = widen<false>(top);
        k[1] = widen<false>(bottom);
        k[2] = widen<true>(top);
        k[3] = widen<true>(bottom);
    } else {
        load_matrix4(k, keys + tile_offset<HD>(lane & 15, 2 * i + (lane >> 4)));
    }
}

template <int HD, typename T>
static __device__ __forceinline__ void load_values(uint32_t (&v)[4], uint32_t (&raw)[4], uint32_t values,
                                                   int i, int lane)
{
    if constexpr (is_fp8<T>()) {
        if (i % 2 == 0) load_matrix4_trans(raw, values + tile_offset<HD, T>(lane & 15, i + (lane >> 4)));
        const uint32_t first = raw[i % 2 * 2], last = raw[i % 2 * 2 + 1];
        v[0] = widen<false>(first);
        v[1] = widen<true>(first);
        v[2] = widen<false>(last);
        v[3] = widen<true>(last);
    } else {
        const int row = (lane & 7) + (lane >> 4) * 8, piece = lane >> 3 & 1;
        load_matrix4_trans(v, values + tile_offset<HD>(row, 2 * i + piece));
    }
}

static __device__ __forceinline__ float load_shared(uint32_t address)
{
    float x;
    asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(x) : "r"(address) : "memory");
    return x;
}

/* Of a lane's two tokens, lane / 4 and the one 8 behind it; those that are not there: 0. */
struct token_scales {
    float k[2], v[2];
};

template <int HD, typename T>
static __device__ __forceinline__ token_scales load_scales(uint32_t stage, int tokens, int lane)
{
    token_scales s = {{1.0f, 1.0f}, {1.0f, 1.0f}};
    if constexpr (is_fp8<T>()) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int t = lane / 4 + 8 * i;
            const uint32_t at = stage + stage_scales<HD, T>() + t * (int)sizeof(float);
            s.k[i] = t < tokens ? load_shared(at) : 0.0f;
            s.v[i] = t < tokens ? load_shared(at + WARP_TOKENS * (int)sizeof(float)) : 0.0f;
        }
    }
    return s;
}

#endif
