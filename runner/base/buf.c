/* Growable byte buffer: see buf.h. */
#include "runner/base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/mem.h"

fkv_status fkv_buf_reserve(fkv_buf *b, size_t extra, fkv_err *err)
{
    size_t need;
    if (!fkv_add_size(b->len, extra, &need) || !fkv_add_size(need, 1, &need)) return fkv_fail_memory(err);
    if (need <= b->cap) return FKV_OK;
    size_t cap = b->cap ? b->cap : 64;
    while (cap < need) {
        if (!fkv_mul_size(cap, 2, &cap)) {
            cap = need;
            break;
        }
    }
    char *data = realloc(b->data, cap);
    if (!data) return fkv_fail_memory(err);
    b->data = data;
    b->cap = cap;
    b->data[b->len] = '\0';
    return FKV_OK;
}

fkv_status fkv_buf_append(fkv_buf *b, const void *bytes, size_t n, fkv_err *err)
{
    fkv_status st = fkv_buf_reserve(b, n, err);
    if (st) return st;
    if (n) memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = '\0';
    return FKV_OK;
}

fkv_status fkv_buf_puts(fkv_buf *b, const char *text, fkv_err *err)
{
    return fkv_buf_append(b, text, strlen(text), err);
}

fkv_status fkv_buf_printf(fkv_buf *b, fkv_err *err, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    fkv_status st = n < 0 ? fkv_fail(err, FKV_E_SYSTEM, "bad format") : fkv_buf_reserve(b, (size_t)n, err);
    if (!st) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
    return st;
}

void fkv_buf_clear(fkv_buf *b)
{
    b->len = 0;
    if (b->data) b->data[0] = '\0';
}

void fkv_buf_free(fkv_buf *b)
{
    free(b->data);
    *b = (fkv_buf){0};
}
