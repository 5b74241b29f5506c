/* Floats of 16 and 8 bits as stored in files, to float32 and, for single numbers, back. */
#ifndef FKV_BASE_FLOAT16_H
#define FKV_BASE_FLOAT16_H

#include <stdint.h>
#include <string.h>

static inline float fkv_f32_from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline float fkv_f32_from_bf16(uint16_t h)
{
    return fkv_f32_from_bits((uint32_t)h << 16);
}

/* To the nearest, ties to even; of finite numbers. */
static inline uint16_t fkv_bf16_from_f32(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float fkv_f32_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 0) { /* subnormal: an exact float32 */
        const float f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    return fkv_f32_from_bits(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13);
}

/* E4M3 (arXiv 2209.05433): no infinities, and one NaN of each sign. Its bits as those of a float32 give its
 * value times 2^-120, subnormals too. */
static inline float fkv_f32_from_e4m3(uint8_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x80) << 24, rest = x & 0x7f;
    if (rest == 0x7f) return fkv_f32_from_bits(sign | 0x7fc00000u);
    return fkv_f32_from_bits(sign | rest << 20) * 0x1p120f;
}

/* To the nearest, ties to even; of numbers, of which those beyond 448 become 448. */
static inline uint8_t fkv_e4m3_from_f32(float f)
{
    uint32_t bits, x;
    memcpy(&bits, &f, sizeof bits);
    const uint32_t sign = bits >> 24 & 0x80, size = bits & 0x7fffffff;
    if (size >= 0x43e00000u) return (uint8_t)(sign | 0x7e);    /* 448 */
    if (size < 0x3c800000u) {                                  /* 2^-6: steps of 2^-9 from here down */
        const float steps = fkv_f32_from_bits(size) + 0x1p14f; /* whose last bit is 2^-9 */
        memcpy(&x, &steps, sizeof x);
        return (uint8_t)(sign | (x & 0xf));
    }
    x = size + 0x7ffff + (size >> 20 & 1);
    return (uint8_t)(sign | ((x >> 20) - (120 << 3)));
}

#endif
