/* Sixteen floats at a time, the same bits on every instruction set.
 *
 * Included by one file per instruction set. A vf holds 16 floats: one AVX-512
 * register, two AVX2 registers, or an array. Every operation is elementwise and
 * exactly rounded, so a kernel written with them gives the same bits on all. Owns nothing. Not for code
 * outside of cpu_kernels_impl.h.
 */
#ifndef FKV_KERNELS_CPU_VEC_H
#define FKV_KERNELS_CPU_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define VF 16

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 vf;
/* Register tile of the GEMM: TILE_ROWS x (16 * TILE_VECS) accumulators. */
enum { TILE_ROWS = 12, TILE_VECS = 2 };

static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf a)
{
    _mm512_storeu_ps(p, a);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* 2^n for integral n in [-126, 127]. */
static inline vf vf_exp2i(vf n)
{
    const __m512i i = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(i, 23));
}
/* a where x >= limit, else 0 */
static inline vf vf_keep_ge(vf x, vf limit, vf a)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), a);
}

#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
typedef struct vf {
    __m256 lo, hi;
} vf;
enum { TILE_ROWS = 6, TILE_VECS = 1 };

#define VF_BOTH(name, op)                                                                                    \
    static inline vf name(vf a, vf b)                                                                        \
    {                                                                                                        \
        return (vf){op(a.lo, b.lo), op(a.hi, b.hi)};                                                         \
    }
VF_BOTH(vf_add, _mm256_add_ps)
VF_BOTH(vf_sub, _mm256_sub_ps)
VF_BOTH(vf_mul, _mm256_mul_ps)
VF_BOTH(vf_div, _mm256_div_ps)
VF_BOTH(vf_max, _mm256_max_ps)
VF_BOTH(vf_min, _mm256_min_ps)
static inline vf vf_set1(float x)
{
    return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline vf vf_load(const float *p)
{
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void vf_store(float *p, vf a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return (vf){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline __m256 vf_exp2i_half(__m256 n)
{
    const __m256i i = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(i, 23));
}
static inline vf vf_exp2i(vf n)
{
    return (vf){vf_exp2i_half(n.lo), vf_exp2i_half(n.hi)};
}
static inline vf vf_keep_ge(vf x, vf limit, vf a)
{
    return (vf){_mm256_and_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_GE_OQ), a.lo),
                _mm256_and_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_GE_OQ), a.hi)};
}

#else
typedef struct vf {
    float v[VF];
} vf;
enum { TILE_ROWS = 4, TILE_VECS = 1 };

#define VF_EACH(expr)                                                                                        \
    vf r;                                                                                                    \
    for (int i = 0; i < VF; i++) r.v[i] = (expr);                                                            \
    return r
static inline vf vf_set1(float x)
{
    VF_EACH(x);
}
static inline vf vf_load(const float *p)
{
    VF_EACH(p[i]);
}
static inline void vf_store(float *p, vf a)
{
    memcpy(p, a.v, sizeof a.v);
}
static inline vf vf_add(vf a, vf b)
{
    VF_EACH(a.v[i] + b.v[i]);
}
static inline vf vf_sub(vf a, vf b)
{
    VF_EACH(a.v[i] - b.v[i]);
}
static inline vf vf_mul(vf a, vf b)
{
    VF_EACH(a.v[i] * b.v[i]);
}
static inline vf vf_div(vf a, vf b)
{
    VF_EACH(a.v[i] / b.v[i]);
}
static inline vf vf_max(vf a, vf b)
{
    VF_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
static inline vf vf_min(vf a, vf b)
{
    VF_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    VF_EACH(fmaf(a.v[i], b.v[i], c.v[i]));
}
static inline vf vf_exp2i(vf n)
{
    vf r;
    for (int i = 0; i < VF; i++) {
        const uint32_t bits = (uint32_t)((int32_t)n.v[i] + 127) << 23;
        memcpy(&r.v[i], &bits, sizeof bits);
    }
    return r;
}
static inline vf vf_keep_ge(vf x, vf limit, vf a)
{
    VF_EACH(x.v[i] >= limit.v[i] ? a.v[i] : 0.0f);
}
#endif

/* Sum and maximum over the 16 lanes, always as the same tree. */
static inline float vf_sum(vf a)
{
    float t[VF];
    vf_store(t, a);
    for (int w = VF / 2; w; w /= 2)
        for (int i = 0; i < w; i++) t[i] += t[i + w];
    return t[0];
}

static inline float vf_hmax(vf a)
{
    float t[VF];
    vf_store(t, a);
    for (int w = VF / 2; w; w /= 2)
        for (int i = 0; i < w; i++) t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
    return t[0];
}

/* e^x to about 1 ulp for x <= 88; 0 below -87.3 (and for -inf). Cody-Waite
 * reduction by ln 2 in two parts, then the Taylor polynomial of degree 7 on
 * [-ln 2 / 2, ln 2 / 2]. */
static inline vf vf_exp(vf x)
{
    const vf low = vf_set1(-87.3f);
    const vf y = vf_min(vf_max(x, low), vf_set1(88.0f));
    const vf magic = vf_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const vf n = vf_sub(vf_fma(y, vf_set1(1.44269504089f), magic), magic);
    vf r = vf_fma(n, vf_set1(-0.693359375f), y);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.0f / 5040);
    p = vf_fma(p, r, vf_set1(1.0f / 720));
    p = vf_fma(p, r, vf_set1(1.0f / 120));
    p = vf_fma(p, r, vf_set1(1.0f / 24));
    p = vf_fma(p, r, vf_set1(1.0f / 6));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    return vf_keep_ge(x, low, vf_mul(p, vf_exp2i(n)));
}

#endif
