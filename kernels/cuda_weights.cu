/* Weights of the CUDA backend: from rows in host memory, usually mapped files, to bf16
 * on the GPU through the pinned ring, converted on the way, by several threads, where the file holds another
 * type; or to e4m3 with a scale a row, quantised on the GPU from the same bf16 unless the file holds just
 * that. A weight and its data belong to the device; how they lie is known here alone.
 */
#include "kernels/cuda_device.h"

#include <cassert>
#include <cmath>
#include <cstdlib>
#include <cstring>

extern "C" {
#include "runner/base/mem.h"
}

struct fkv_weight {
    int64_t n, k;  /* rows stored, depth */
    int64_t first; /* embedding: first id */
    void *data;    /* [n, k] row-major, 256-byte aligned; gated: gate rows, then up rows */
    float *scale;  /* [n], aligned the same, of e4m3; NULL: bf16 */
    bf16 *bias;    /* [n], aligned the same; NULL: none */
    fkv_weight *next;
};

cuda_weight_view cuda_weight_rows(const fkv_weight *w, int64_t row)
{
    cuda_weight_view view = {};
    view.data = (const char *)w->data + row * w->k * (w->scale ? 1 : 2);
    view.dtype = w->scale ? FKV_DTYPE_F8_E4M3 : FKV_DTYPE_BF16;
    view.scale = w->scale ? w->scale + row : NULL;
    view.bias = w->bias ? w->bias + row : NULL;
    view.n = w->n - row;
    view.k = w->k;
    return view;
}

void cuda_weight_shape(const fkv_weight *w, int64_t *n_rows, int64_t *k)
{
    *n_rows = w->n;
    *k = w->k;
}

const bf16 *cuda_weight_bf16(cuda_weight_view view)
{
    assert(view.dtype == FKV_DTYPE_BF16 && !view.scale);
    return (const bf16 *)view.data;
}

int64_t cuda_embedding_first(const fkv_weight *w)
{
    return w->first;
}

int64_t cuda_weights_count(const fkv_device *dev)
{
    int64_t n = 0;
    for (const fkv_weight *w = dev->weights; w; w = w->next) n++;
    return n;
}

void cuda_weights_free(fkv_device *dev, int64_t n)
{
    for (int64_t have = cuda_weights_count(dev); have > n; have--) {
        fkv_weight *w = dev->weights;
        dev->weights = w->next;
        free(w);
    }
}

/* What is staged at once, and what a thread of the pool converts of it. */
static const int64_t batch_bytes = CUDA_STAGING_BYTES / 4, piece_bytes = 256 << 10;

/* To the nearest bf16, ties to even; NaN stays NaN. */
static uint16_t bf16_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* n numbers from column `col` of a row on. */
static void convert(uint16_t *to, const fkv_rows *part, int64_t row, int64_t col, int64_t n)
{
    float piece[256];
    const int64_t most = sizeof piece / sizeof *piece;
    if (part->dtype == FKV_DTYPE_BF16 && !part->scales.data) {
        memcpy(to, (const char *)part->data + 2 * (row * part->stride + col), (size_t)n * sizeof *to);
        return;
    }
    for (int64_t from = 0; from < n; from += most) {
        const int64_t m = n - from < most ? n - from : most;
        fkv_rows_read(part, row, col + from, m, piece);
        for (int64_t i = 0; i < m; i++) to[from + i] = bf16_bits(piece[i]);
    }
}

/* Numbers [first, first + n) of all that the parts hold, row behind row, on their way to `to`. */
struct bf16_batch {
    const fkv_rows *parts;
    int64_t k, first, n;
    uint16_t *to;
};

static const int64_t piece_numbers = piece_bytes / (int64_t)sizeof(bf16);

/* n numbers of a part from column `col` of a row on, rows behind each other. */
static void convert_rows(uint16_t *to, const fkv_rows *part, int64_t k, int64_t row, int64_t col, int64_t n)
{
    if (part->stride == k && !part->scales.data) {
        convert(to, part, row, col, n);
        return;
    }
    for (int64_t m; n > 0; n -= m, to += m, row++, col = 0) {
        m = n < k - col ? n : k - col;
        convert(to, part, row, col, m);
    }
}

static void convert_piece(void *ctx, int64_t index, int)
{
    const bf16_batch *b = (const bf16_batch *)ctx;
    const int64_t begin = index * piece_numbers, left = b->n - begin;
    const int64_t end = begin + (left < piece_numbers ? left : piece_numbers);
    for (int64_t at = begin; at < end;) {
        int64_t row = (b->first + at) / b->k;
        const int64_t col = (b->first + at) % b->k;
        const fkv_rows *part = fkv_rows_part(b->parts, &row);
        const int64_t most = (part->n_rows - row) * b->k - col, n = end - at < most ? end - at : most;
        fkv_rows_read_ahead(part, row, (col + n + b->k - 1) / b->k);
        convert_rows(b->to + at, part, b->k, row, col, n);
        at += n;
    }
}

/* All numbers of the parts, k a row, to where rows follow each other. The file's pages are copied and
 * converted by the pool while the batches before are on their way. */
static void send_bf16(fkv_device *dev, const fkv_rows *parts, int64_t n_rows, int64_t k, bf16 *to)
{
    const int64_t all = n_rows * k, most = batch_bytes / (int64_t)sizeof *to;
    for (int64_t first = 0; first < all && !dev->failed; first += most) {
        const int64_t n = all - first < most ? all - first : most;
        bf16_batch batch = {parts, k, first, n, (uint16_t *)cuda_stage(dev, (size_t)n * sizeof *to)};
        if (!batch.to) return;
        cpu_pool_run(dev->pool, (n + piece_numbers - 1) / piece_numbers, (double)n, convert_piece, &batch);
        CUDA(dev, cudaMemcpyAsync(to + first, batch.to, (size_t)n * sizeof *to, cudaMemcpyHostToDevice,
                                  dev->stream));
        cuda_post(dev); /* so that a full ring waits for its oldest batch alone */
    }
}

/* Codes of a stored row and its scale, which is NaN where any of them is: kernels may not look for it. */
static float take_codes(const fkv_rows *part, int64_t row, int64_t k, uint8_t *to)
{
    bool nan = false;
    memcpy(to, (const char *)part->data + row * part->stride, (size_t)k);
    for (int64_t i = 0; i < k; i++) nan |= (to[i] & 0x7f) == 0x7f;
    return nan ? NAN : fkv_rows_scale(part, row);
}

static float to_bf16(float f)
{
    const uint32_t bits = (uint32_t)bf16_bits(f) << 16;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Rows [first, first + n) of a part in FP8. What is staged: the rows, as codes or as bf16, then a number for
 * each: its scale, or the largest magnitude of the whole row where these are a part of it. */
struct fp8_batch {
    const fkv_rows *part;
    int64_t k, first, n, per_piece;
    bool stored, whole;
    char *to;
    float *of_rows;
};

static void take_piece(void *ctx, int64_t index, int)
{
    const fp8_batch *b = (const fp8_batch *)ctx;
    const int64_t begin = index * b->per_piece, left = b->n - begin;
    const int64_t end = begin + (left < b->per_piece ? left : b->per_piece);
    fkv_rows_read_ahead(b->part, b->first + begin, end - begin);
    for (int64_t r = begin; r < end; r++) {
        const int64_t row = b->first + r;
        if (b->stored) {
            b->of_rows[r] = take_codes(b->part, row, b->k, (uint8_t *)b->to + r * b->k);
        } else {
            convert((uint16_t *)b->to + r * b->k, b->part, row, 0, b->k);
            b->of_rows[r] = b->whole ? 0 : to_bf16(fkv_rows_largest(b->part, row, b->k));
        }
    }
}

static void send_fp8(fkv_device *dev, const fkv_rows *part, int64_t k, uint8_t *to, float *scales)
{
    const bool stored = fkv_rows_are_fp8(part, k), whole = !part->all_cols || part->all_cols == k;
    const int64_t row_bytes = k * (stored ? 1 : 2), rows = batch_bytes / (row_bytes + 4);
    const int64_t per_piece = piece_bytes / row_bytes > 0 ? piece_bytes / row_bytes : 1;
    for (int64_t i = 0; i < part->n_rows && !dev->failed; i += rows) {
        const int64_t n = part->n_rows - i < rows ? part->n_rows - i : rows;
        const size_t numbers = (size_t)(n * row_bytes + 15) / 16 * 16,
                     all = numbers + (size_t)n * sizeof(float);
        char *staged = cuda_stage(dev, all);
        if (!staged) return;
        fp8_batch batch = {part, k, i, n, per_piece, stored, whole, staged, (float *)(staged + numbers)};
        cpu_pool_run(dev->pool, (n + per_piece - 1) / per_piece, (double)(n * k), take_piece, &batch);
        if (stored) {
            CUDA(dev,
                 cudaMemcpyAsync(to + i * k, staged, (size_t)(n * k), cudaMemcpyHostToDevice, dev->stream));
            CUDA(dev, cudaMemcpyAsync(scales + i, batch.of_rows, (size_t)n * sizeof(float),
                                      cudaMemcpyHostToDevice, dev->stream));
        } else if (cuda_grow(dev, (void **)&dev->landing, &dev->landing_bytes, batch_bytes + 16) &&
                   CUDA(dev,
                        cudaMemcpyAsync(dev->landing, staged, all, cudaMemcpyHostToDevice, dev->stream))) {
            const float *largest = (const float *)(dev->landing + numbers);
            cuda_quantise_weight(dev, (const bf16 *)dev->landing, n, k, whole ? NULL : largest, to + i * k,
                                 scales + i);
        }
        cuda_post(dev);
    }
}

/* A part's bias becomes that of w's rows from `row` on; without one they keep zeros. */
static void send_bias(fkv_device *dev, const fkv_rows *part, bf16 *to)
{
    const fkv_rows bias = fkv_rows_bias(part);
    if (part->bias && part->n_rows > 0) send_bf16(dev, &bias, 1, part->n_rows, to);
}

/* Sizes of a weight of these parts, and its memory. */
static fkv_status make(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k, fkv_weight **out,
                       fkv_err *err)
{
    int64_t n = 0;
    size_t bytes;
    bool biased = false;
    const bool fp8 = n_parts > 0 && parts[0].form == FKV_FORM_FP8;
    void *data = NULL, *bias = NULL, *scale = NULL;
    for (int p = 0; p < n_parts; p++) {
        n += parts[p].n_rows;
        biased = biased || parts[p].bias;
    }
    if (n < 0 || k <= 0 || !fkv_mul_size((size_t)n, (size_t)k, &bytes) ||
        !fkv_mul_size(bytes, fp8 ? 1 : sizeof(bf16), &bytes))
        return fkv_fail_memory(err);
    if (fp8 && k * 2 + 4 > batch_bytes)
        return fkv_fail(err, FKV_E_INPUT, "the cuda backend holds no rows of %lld numbers in FP8",
                        (long long)k);
    fkv_weight *w = (fkv_weight *)calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    w->next = dev->weights;
    dev->weights = w;
    w->n = n;
    w->k = k;
    fkv_status st = cuda_alloc(dev, bytes, &data, err);
    if (!st && fp8) st = cuda_alloc(dev, (size_t)n * sizeof(float), &scale, err);
    if (!st && biased) st = cuda_alloc(dev, (size_t)n * sizeof(bf16), &bias, err);
    w->data = data;
    w->scale = (float *)scale;
    w->bias = (bf16 *)bias;
    *out = w;
    return st;
}

static fkv_status load(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k, fkv_weight **out,
                       fkv_err *err)
{
    fkv_weight *w = NULL;
    const fkv_status st = make(dev, parts, n_parts, k, &w, err);
    if (st) return st;
    int64_t row = 0;
    if (!w->scale) send_bf16(dev, parts, w->n, k, (bf16 *)w->data);
    for (int p = 0; p < n_parts; p++) {
        if (w->scale) send_fp8(dev, &parts[p], k, (uint8_t *)w->data + row * k, w->scale + row);
        if (w->bias) send_bias(dev, &parts[p], w->bias + row);
        row += parts[p].n_rows;
    }
    *out = w;
    return cuda_status(dev, err);
}

fkv_status cuda_weight_load(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k, fkv_weight **out,
                            fkv_err *err)
{
    return load(dev, parts, n_parts, k, out, err);
}

fkv_status cuda_weight_load_gated(fkv_device *dev, fkv_rows gate, fkv_rows up, int64_t k, fkv_weight **out,
                                  fkv_err *err)
{
    const fkv_rows parts[] = {gate, up};
    return load(dev, parts, 2, k, out, err);
}

fkv_status cuda_embedding_load(fkv_device *dev, fkv_rows part, int64_t first, int64_t k, fkv_weight **out,
                               fkv_err *err)
{
    fkv_status st = fkv_embedding_check(&part, "cuda", err);
    if (!st) st = load(dev, &part, 1, k, out, err);
    if (!st) (*out)->first = first;
    return st;
}
