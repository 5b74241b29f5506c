/* Weights of the CUDA backend: from rows in host memory, usually mapped files, to bf16
 * on the GPU through the pinned ring, converted on the way where the file holds another
 * type. A weight and its data belong to the device; how they lie is known here alone.
 */
#include "kernels/cuda_device.h"

#include <cassert>
#include <cstdlib>
#include <cstring>

extern "C" {
#include "runner/base/mem.h"
}

struct fkv_weight {
    int64_t n, k;  /* rows stored, depth */
    int64_t first; /* embedding: first id */
    bf16 *data;    /* [n, k] row-major, 256-byte aligned; gated: gate rows, then up rows */
    bf16 *bias;    /* [n], aligned the same; NULL: none */
    fkv_weight *next;
};

cuda_weight_view cuda_weight_rows(const fkv_weight *w, int64_t row)
{
    cuda_weight_view view = {};
    view.data = w->data + row * w->k;
    view.dtype = FKV_DTYPE_BF16;
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

static const int64_t piece_bytes = CUDA_STAGING_BYTES / 8;

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

/* Rows of part become rows of w from `row` on; pieces of whole rows, or of one. */
static void send_part(fkv_device *dev, const fkv_rows *part, int64_t k, bf16 *to)
{
    const int64_t row_bytes = k * (int64_t)sizeof *to;
    const int64_t rows = piece_bytes / row_bytes > 0 ? piece_bytes / row_bytes : 1;
    const int64_t cols = row_bytes <= piece_bytes ? k : piece_bytes / (int64_t)sizeof *to;
    for (int64_t i = 0; i < part->n_rows && !dev->failed; i += rows) {
        const int64_t n = part->n_rows - i < rows ? part->n_rows - i : rows;
        for (int64_t c = 0; c < k; c += cols) {
            const int64_t m = k - c < cols ? k - c : cols; /* all of k unless n is 1 */
            uint16_t *staged = (uint16_t *)cuda_stage(dev, (size_t)(n * m) * sizeof *to);
            if (!staged) return;
            if (part->stride == k && m == k && !part->scales.data)
                convert(staged, part, i, 0, n * k);
            else
                for (int64_t r = 0; r < n; r++) convert(staged + r * m, part, i + r, c, m);
            CUDA(dev, cudaMemcpyAsync(to + i * k + c, staged, (size_t)(n * m) * sizeof *to,
                                      cudaMemcpyHostToDevice, dev->stream));
        }
    }
}

/* A part's bias becomes that of w's rows from `row` on; without one they keep zeros. */
static void send_bias(fkv_device *dev, const fkv_rows *part, bf16 *to)
{
    const fkv_rows bias = fkv_rows_bias(part);
    if (part->bias && part->n_rows > 0) send_part(dev, &bias, part->n_rows, to);
}

static fkv_status load(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k, fkv_weight **out,
                       fkv_err *err)
{
    int64_t n = 0;
    size_t bytes;
    bool biased = false;
    void *data = NULL, *bias = NULL;
    for (int p = 0; p < n_parts; p++) {
        n += parts[p].n_rows;
        biased = biased || parts[p].bias;
    }
    if (n < 0 || k <= 0 || !fkv_mul_size((size_t)n, (size_t)k, &bytes) ||
        !fkv_mul_size(bytes, sizeof(bf16), &bytes))
        return fkv_fail_memory(err);
    fkv_weight *w = (fkv_weight *)calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    w->next = dev->weights;
    dev->weights = w;
    w->n = n;
    w->k = k;
    fkv_status st = cuda_alloc(dev, bytes, &data, err);
    if (!st && biased) st = cuda_alloc(dev, (size_t)n * sizeof(bf16), &bias, err);
    if (st) return st;
    w->data = (bf16 *)data;
    w->bias = (bf16 *)bias;
    int64_t row = 0;
    for (int p = 0; p < n_parts; p++) {
        send_part(dev, &parts[p], k, w->data + row * k);
        if (biased) send_bias(dev, &parts[p], w->bias + row);
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
