/* Rows as files hold them, number by number: see backend.h. */
#include <string.h>

#include "kernels/backend.h"
#include "runner/base/file.h"
#include "runner/base/float16.h"

int64_t fkv_dtype_bytes(fkv_dtype dtype)
{
    switch (dtype) {
    case FKV_DTYPE_BF16:
    case FKV_DTYPE_F16: return 2;
    case FKV_DTYPE_F32: return 4;
    case FKV_DTYPE_F8_E4M3: return 1;
    }
    return 0;
}

/* n numbers from `from` on, which need not be aligned. */
static void read_numbers(const char *from, fkv_dtype dtype, int64_t n, float *out)
{
    uint16_t h;
    switch (dtype) {
    case FKV_DTYPE_F32: memcpy(out, from, (size_t)n * sizeof *out); break;
    case FKV_DTYPE_F8_E4M3:
        for (int64_t i = 0; i < n; i++) out[i] = fkv_f32_from_e4m3((uint8_t)from[i]);
        break;
    case FKV_DTYPE_BF16:
        for (int64_t i = 0; i < n; i++) {
            memcpy(&h, from + 2 * i, sizeof h);
            out[i] = fkv_f32_from_bf16(h);
        }
        break;
    case FKV_DTYPE_F16:
        for (int64_t i = 0; i < n; i++) {
            memcpy(&h, from + 2 * i, sizeof h);
            out[i] = fkv_f32_from_f16(h);
        }
        break;
    }
}

static float scale_of(const fkv_scales *s, int64_t row, int64_t col)
{
    float scale;
    const int64_t at = row / s->block_rows * s->stride + col / s->block_cols;
    read_numbers((const char *)s->data + at * fkv_dtype_bytes(s->dtype), s->dtype, 1, &scale);
    return scale;
}

void fkv_rows_read(const fkv_rows *rows, int64_t row, int64_t col, int64_t n, float *out)
{
    const fkv_scales *s = &rows->scales;
    const int64_t at = row * rows->stride + col;
    read_numbers((const char *)rows->data + at * fkv_dtype_bytes(rows->dtype), rows->dtype, n, out);
    for (int64_t i = 0; s->data && i < n;) {
        const int64_t c = s->col0 + col + i, left = s->block_cols - c % s->block_cols;
        const int64_t end = left < n - i ? i + left : n;
        const float scale = scale_of(s, s->row0 + row, c);
        for (; i < end; i++) out[i] *= scale;
    }
}

/* Magnitudes are ordered as their bits are, NaN above all. */
static uint32_t magnitude(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffffu;
}

float fkv_rows_largest(const fkv_rows *rows, int64_t row, int64_t k)
{
    enum { PIECE = 256 };
    float piece[PIECE];
    uint32_t largest = 0;
    const int64_t all = rows->all_cols ? rows->all_cols : k;
    for (int64_t from = 0; from < all; from += PIECE) {
        const int64_t n = all - from < PIECE ? all - from : PIECE;
        fkv_rows_read(rows, row, from - rows->cols_before, n, piece);
        for (int64_t i = 0; i < n; i++) {
            const uint32_t m = magnitude(piece[i]);
            largest = m > largest ? m : largest;
        }
    }
    return fkv_f32_from_bits(largest);
}

const fkv_rows *fkv_rows_part(const fkv_rows *parts, int64_t *row)
{
    while (*row >= parts->n_rows) *row -= parts++->n_rows;
    return parts;
}

void fkv_rows_read_ahead(const fkv_rows *rows, int64_t row, int64_t n)
{
    static const uintptr_t ahead = 16 << 20;
    const uintptr_t row_bytes = (uintptr_t)(rows->stride * fkv_dtype_bytes(rows->dtype));
    fkv_file_read_ahead((uintptr_t)rows->data + (uintptr_t)row * row_bytes + ahead, (size_t)n * row_bytes);
}

bool fkv_rows_are_fp8(const fkv_rows *rows, int64_t k)
{
    const fkv_scales *s = &rows->scales;
    const int64_t first = s->col0 - rows->cols_before, all = rows->all_cols ? rows->all_cols : k;
    return rows->dtype == FKV_DTYPE_F8_E4M3 && s->data &&
           first / s->block_cols == (first + all - 1) / s->block_cols;
}

float fkv_rows_scale(const fkv_rows *rows, int64_t row)
{
    return scale_of(&rows->scales, rows->scales.row0 + row, rows->scales.col0);
}

fkv_rows fkv_rows_bias(const fkv_rows *rows)
{
    return (fkv_rows){.data = rows->bias, .dtype = rows->bias_dtype, .n_rows = 1, .stride = rows->n_rows};
}
