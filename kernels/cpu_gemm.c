/* Weights of the CPU backend and the products with them.
 *
 * A weight is converted to float32 once and packed into panels of 16 columns,
 * [k][16] each, so that the inner kernel streams it. Why not a BLAS: a row's
 * bits would depend on the rows beside it and on the number of threads; here
 * every element is one chain of fused multiply-adds over k.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu_device.h"
#include "runner/base/float16.h"
#include "runner/base/mem.h"

/* Element i of a row that need not be aligned. */
static float element(const char *row, int64_t i, fkv_dtype dtype)
{
    uint16_t h;
    float f;
    if (dtype == FKV_DTYPE_F32) {
        memcpy(&f, row + 4 * i, sizeof f);
        return f;
    }
    memcpy(&h, row + 2 * i, sizeof h);
    return dtype == FKV_DTYPE_BF16 ? fkv_f32_from_bf16(h) : fkv_f32_from_f16(h);
}

static const char *row_of(const fkv_rows *part, int64_t i)
{
    const int64_t size = part->dtype == FKV_DTYPE_F32 ? 4 : 2;
    return (const char *)part->data + i * part->stride * size;
}

static fkv_status weight_new(fkv_device *dev, int64_t n, int64_t n_stored, int64_t k, fkv_weight **out,
                             fkv_err *err)
{
    size_t elems, bytes;
    if (!fkv_mul_size((size_t)n_stored, (size_t)k, &elems) || !fkv_mul_size(elems, sizeof(float), &bytes))
        return fkv_fail_memory(err);
    if (dev->n_weights == dev->cap_weights) {
        const int cap = dev->cap_weights ? 2 * dev->cap_weights : 64;
        fkv_weight **grown = fkv_realloc(dev->weights, (size_t)cap, sizeof(fkv_weight *));
        if (!grown) return fkv_fail_memory(err);
        dev->weights = grown;
        dev->cap_weights = cap;
    }
    fkv_weight *w = calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    dev->weights[dev->n_weights++] = w;
    w->n = n;
    w->k = k;
    void *data;
    const fkv_status st = cpu_alloc(dev, bytes, &data, err);
    if (st) return st;
    w->data = data;
    *out = w;
    return FKV_OK;
}

/* Row `row` of the source becomes column `col` of the panels. */
static void pack_row(fkv_weight *w, int64_t col, const char *row, fkv_dtype dtype)
{
    float *panel = w->data + col / CPU_PANEL * w->k * CPU_PANEL + col % CPU_PANEL;
    for (int64_t i = 0; i < w->k; i++) panel[i * CPU_PANEL] = element(row, i, dtype);
}

fkv_status cpu_weight_load(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k, fkv_weight **out,
                           fkv_err *err)
{
    int64_t n = 0;
    for (int p = 0; p < n_parts; p++) n += parts[p].n_rows;
    fkv_weight *w;
    const fkv_status st = weight_new(dev, n, cpu_round_up(n, CPU_PANEL), k, &w, err);
    if (st) return st;
    int64_t col = 0;
    for (int p = 0; p < n_parts; p++)
        for (int64_t i = 0; i < parts[p].n_rows; i++)
            pack_row(w, col++, row_of(&parts[p], i), parts[p].dtype);
    *out = w;
    return FKV_OK;
}

fkv_status cpu_weight_load_swiglu(fkv_device *dev, fkv_rows gate, fkv_rows up, int64_t k, fkv_weight **out,
                                  fkv_err *err)
{
    fkv_weight *w;
    const fkv_status st = weight_new(dev, gate.n_rows, 2 * cpu_round_up(gate.n_rows, CPU_PANEL), k, &w, err);
    if (st) return st;
    w->swiglu = true;
    for (int64_t i = 0; i < gate.n_rows; i++) {
        const int64_t col = i / CPU_PANEL * 2 * CPU_PANEL + i % CPU_PANEL;
        pack_row(w, col, row_of(&gate, i), gate.dtype);
        pack_row(w, col + CPU_PANEL, row_of(&up, i), up.dtype);
    }
    *out = w;
    return FKV_OK;
}

fkv_status cpu_embedding_load(fkv_device *dev, fkv_rows part, int64_t first, int64_t k, fkv_weight **out,
                              fkv_err *err)
{
    fkv_weight *w;
    const fkv_status st = weight_new(dev, part.n_rows, part.n_rows, k, &w, err);
    if (st) return st;
    w->first = first;
    for (int64_t i = 0; i < part.n_rows; i++)
        for (int64_t j = 0; j < k; j++) w->data[i * k + j] = element(row_of(&part, i), j, part.dtype);
    *out = w;
    return FKV_OK;
}

/* A product cut into blocks of rows and of columns, one task each. */
typedef struct gemm_job {
    const fkv_device *dev;
    const float *x;
    int64_t x_stride, n_rows, n_cols, k;
    cpu_panels panels;
    float *y;
    int64_t y_stride;
    int64_t row_block, col_block, n_col_blocks;
    cpu_gemm_mode mode;
} gemm_job;

static void gemm_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const gemm_job *j = ctx;
    const int64_t i0 = index / j->n_col_blocks * j->row_block, c0 = index % j->n_col_blocks * j->col_block;
    const int64_t m = j->n_rows - i0 < j->row_block ? j->n_rows - i0 : j->row_block;
    const int64_t n = j->n_cols - c0 < j->col_block ? j->n_cols - c0 : j->col_block;
    const int64_t per = j->mode == CPU_GEMM_SWIGLU ? 2 : 1;
    const cpu_panels b = {j->panels.data + c0 / CPU_PANEL * per * j->panels.panel, j->panels.panel,
                          j->panels.step};
    j->dev->k->gemm(m, n, j->k, j->x + i0 * j->x_stride, j->x_stride, b, j->y + i0 * j->y_stride + c0,
                    j->y_stride, j->mode);
}

static void gemm_run(fkv_device *dev, gemm_job *j)
{
    if (j->n_rows <= 0 || j->n_cols <= 0) return;
    /* Blocks of 48 rows (4 register tiles) keep their input in L1; few rows are cut
     * by columns instead, so that a decode step uses all threads too. */
    j->dev = dev;
    j->row_block = 48;
    const int64_t n_row_blocks = (j->n_rows + j->row_block - 1) / j->row_block;
    const int64_t want = 4 * cpu_pool_threads(dev->pool);
    j->n_col_blocks = n_row_blocks >= want ? 1 : (want + n_row_blocks - 1) / n_row_blocks;
    j->col_block = cpu_round_up((j->n_cols + j->n_col_blocks - 1) / j->n_col_blocks, 2 * CPU_PANEL);
    j->n_col_blocks = (j->n_cols + j->col_block - 1) / j->col_block;
    const double cost = 2.0 * (double)j->n_rows * (double)j->n_cols * (double)j->k;
    cpu_pool_run(dev->pool, n_row_blocks * j->n_col_blocks, cost, gemm_task, j);
}

void cpu_linear(fkv_device *dev, const void *x, int64_t x_stride, int64_t n, int64_t class_rows,
                const fkv_weight *w, void *y, int64_t y_stride, bool f32_out, fkv_epilogue epilogue)
{
    (void)f32_out;    /* activations are float32 here */
    (void)class_rows; /* one algorithm for all */
    gemm_job j = {.x = x,
                  .x_stride = x_stride,
                  .n_rows = n,
                  .n_cols = w->n,
                  .k = w->k,
                  .panels = {w->data, w->k * CPU_PANEL, CPU_PANEL},
                  .y = y,
                  .y_stride = y_stride,
                  .mode = epilogue == FKV_EPILOGUE_SWIGLU ? CPU_GEMM_SWIGLU : CPU_GEMM_STORE};
    gemm_run(dev, &j);
}

void cpu_linear_cols(fkv_device *dev, const float *x, int64_t x_stride, int64_t n, const fkv_weight *w,
                     int64_t col, int64_t n_cols, float *y, int64_t y_stride)
{
    gemm_job j = {.x = x,
                  .x_stride = x_stride,
                  .n_rows = n,
                  .n_cols = n_cols,
                  .k = w->k,
                  .panels = {w->data + col * w->k, w->k * CPU_PANEL, CPU_PANEL},
                  .y = y,
                  .y_stride = y_stride,
                  .mode = CPU_GEMM_STORE};
    gemm_run(dev, &j);
}
