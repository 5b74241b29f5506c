/* Pages of KV cache: a page holds K and V of one head for so many tokens. It is also the chunk in
 * which decode attention splits keys, so that results never depend on where pages lie.
 *
 * Forms of what is in a page, hd numbers a vector:
 * - plain: K [FKV_PAGE_TOKENS][hd], then V likewise, in the backend's own type;
 * - fp8: the same in e4m3, a byte a number, then the scales that K's vectors are to be multiplied by,
 *   [FKV_PAGE_TOKENS] float32, then V's. A vector's numbers are divided by s, its largest magnitude / 448,
 *   e4m3's largest number, and rounded to the nearest, ties to even. The scale is then the one with which
 *   they come nearest to the vector: s (1 + sum n (x / s - n) / sum n^2), of float32 terms rounded to whole
 *   sixteenths, so that the sums are the same in any order. What rounding took along the vector's own
 *   direction is given back so: a query that looks for this very key would miss that most. Where s is 0 or
 *   not finite, the numbers are zeros and s is the scale; products with a scale that is not finite are no
 *   numbers, either. */
#ifndef FKV_BASE_KV_PAGE_H
#define FKV_BASE_KV_PAGE_H

#include <stdint.h>

enum { FKV_PAGE_TOKENS = 128 };

typedef enum fkv_kv_form { FKV_KV_PLAIN, FKV_KV_FP8 } fkv_kv_form;

/* Of a number; plain_bytes: of the backend's own type, here and below. */
static inline int fkv_kv_number_bytes(fkv_kv_form form, int plain_bytes)
{
    return form == FKV_KV_FP8 ? 1 : plain_bytes;
}

/* Of a token's K and V in a head. */
static inline int64_t fkv_kv_token_bytes(fkv_kv_form form, int head_dim, int plain_bytes)
{
    const int scale = form == FKV_KV_FP8 ? (int)sizeof(float) : 0;
    return 2 * ((int64_t)head_dim * fkv_kv_number_bytes(form, plain_bytes) + scale);
}

static inline int64_t fkv_kv_page_bytes(fkv_kv_form form, int head_dim, int plain_bytes)
{
    return FKV_PAGE_TOKENS * fkv_kv_token_bytes(form, head_dim, plain_bytes);
}

#endif
