/* Overflow-checked sizes. Every size computed from input goes through these
 * before it is used; they return false on overflow and leave *out alone. What is
 * allocated is the caller's to free; after a failure fkv_realloc's old memory still is.
 * Not for: pages, pools, device memory. */
#ifndef FKV_BASE_MEM_H
#define FKV_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static inline bool fkv_mul_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

static inline bool fkv_add_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

static inline bool fkv_mul_i64(int64_t a, int64_t b, int64_t *out)
{
    int64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

/* calloc of n elements that never returns NULL for n == 0. */
static inline void *fkv_calloc(size_t n, size_t size)
{
    return calloc(n ? n : 1, size);
}

/* realloc of n elements with the multiplication checked; NULL on failure. */
static inline void *fkv_realloc(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (!fkv_mul_size(n ? n : 1, size, &bytes)) return NULL;
    return realloc(p, bytes);
}

/* at, an array of n elements, with room for one more: itself below *cap, else moved, and *cap doubled. NULL:
 * no memory, and all is as it was. */
static inline void *fkv_grown(void *at, size_t n, size_t *cap, size_t size)
{
    size_t more;
    if (n < *cap) return at;
    void *grown = fkv_mul_size(*cap ? *cap : 8, 2, &more) ? fkv_realloc(at, more, size) : NULL;
    if (grown) *cap = more;
    return grown;
}

#endif
