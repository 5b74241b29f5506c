/* Pages as tests make and read them: what a number of an fp8 page is, from the definition of
 * E4M3 in double; and whole pages as float32, [2][FKV_PAGE_TOKENS][hd] as K and V. */
#ifndef FKV_TESTS_KV_FIXTURE_H
#define FKV_TESTS_KV_FIXTURE_H

#include <math.h>
#include <string.h>

#include "runner/base/kv_page.h"

static inline double e4m3_value(uint8_t x)
{
    const int exponent = x >> 3 & 15, mantissa = x & 7;
    const double size = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    return x >> 7 ? -size : size;
}

/* The nearest number, of two the even one; the largest for what is beyond it. */
static inline uint8_t e4m3_nearest(double x)
{
    const uint8_t sign = signbit(x) ? 0x80 : 0;
    if (fabs(x) >= 448) return sign | 0x7e;
    if (x == 0) return sign;
    const int exponent = ilogb(x) < -6 ? -6 : ilogb(x);
    const int steps = (int)rint(ldexp(fabs(x), 3 - exponent)); /* to even; 8 to 16 where it is normal */
    return (uint8_t)(sign | (((exponent + 6) << 3) + steps));
}

/* to[hd] and *scale, as kv_page.h says. */
static inline void fp8_quantise(const float *x, int hd, uint8_t *to, float *scale)
{
    float most = 0;
    for (int i = 0; i < hd; i++) most = isnan(x[i]) || isnan(most) ? NAN : fmaxf(most, fabsf(x[i]));
    const float by = most / 448.0f;
    double missed = 0, square = 0;
    for (int i = 0; i < hd; i++) {
        const float scaled = by > 0 && isfinite(by) ? x[i] / by : 0;
        to[i] = e4m3_nearest((double)scaled);
        const float n = (float)e4m3_value(to[i]);
        missed += (double)rintf(n * (scaled - n) * 16);
        square += (double)rintf(n * n * 16);
    }
    *scale = square > 0 ? by * (1 + (float)missed / (float)square) : by;
}

/* Vector i of a page: V's are behind K's. */
static inline float *fp8_scale(void *page, int hd, int i)
{
    return (float *)((char *)page + (size_t)2 * FKV_PAGE_TOKENS * (size_t)hd) + i;
}

/* Vectors that begin with NaN stay what was there before. */
static inline void fp8_write_page(const float *from, int hd, void *page)
{
    for (int i = 0; i < 2 * FKV_PAGE_TOKENS; i++)
        if (!isnan(from[i * hd]))
            fp8_quantise(from + i * hd, hd, (uint8_t *)page + i * hd, fp8_scale(page, hd, i));
}

static inline void fp8_read_page(const void *page, int hd, float *to)
{
    double values[256];
    for (int i = 0; i < 256; i++) values[i] = e4m3_value((uint8_t)i);
    for (int i = 0; i < 2 * FKV_PAGE_TOKENS; i++) {
        float scale;
        memcpy(&scale, fp8_scale((void *)page, hd, i), sizeof scale);
        for (int k = 0; k < hd; k++)
            to[i * hd + k] = (float)(values[((const uint8_t *)page)[i * hd + k]] * (double)scale);
    }
}

#endif
