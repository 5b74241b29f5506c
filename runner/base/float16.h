/* Floats of 16 and 8 bits, to float32 and back. */
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

/* To the nearest, ties to even; at most 448 in magnitude, NaN stays one. */
static inline uint8_t fkv_e4m3_from_f32(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    const uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000u) return sign | 0x7f;
    if (bits >= 0x43e00000u) return sign | 0x7e; /* 448 */
    if (bits < 0x3c800000u)                      /* below 2^-6: units of 2^-9, which this sum rounds to */
        return sign | (uint8_t)(fkv_f32_from_bits(bits) * 0x1p9f + 0x1p23f - 0x1p23f);
    bits += 0x7ffff + (bits >> 20 & 1);
    const uint32_t rounded = (bits >> 20) - (120 << 3);
    return sign | (uint8_t)(rounded < 0x7e ? rounded : 0x7e);
}

#endif
