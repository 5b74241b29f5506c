/* Products with weights of the CPU backend: blocks of rows and columns over the pool.
 *
 * Why not a BLAS: a row's bits would depend on the rows beside it and on the number of
 * threads; here every element is one chain of fused multiply-adds over k.
 */
#include "kernels/cpu_device.h"

/* A product cut into blocks of rows and of columns, one task each. */
typedef struct gemm_job {
    const fkv_device *dev;
    const float *x;
    int64_t x_stride, n_rows, n_cols;
    cpu_weight_view w;
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
    const int64_t per = cpu_gemm_gated(j->mode) ? 2 : 1;
    const cpu_panels *all = &j->w.panels;
    const cpu_panels b = {all->data + c0 / CPU_PANEL * per * all->panel, all->panel, all->step};
    j->dev->k->gemm(m, n, j->w.k, j->x + i0 * j->x_stride, j->x_stride, b,
                    j->w.bias ? j->w.bias + c0 * per : NULL, j->y + i0 * j->y_stride + c0, j->y_stride,
                    j->mode);
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
    const double cost = 2.0 * (double)j->n_rows * (double)j->n_cols * (double)j->w.k;
    cpu_pool_run(dev->pool, n_row_blocks * j->n_col_blocks, cost, gemm_task, j);
}

static cpu_gemm_mode mode_of(fkv_epilogue epilogue)
{
    switch (epilogue) {
    case FKV_EPILOGUE_SILU_GATE: return CPU_GEMM_SILU_GATE;
    case FKV_EPILOGUE_GELU_TANH_GATE: return CPU_GEMM_GELU_TANH_GATE;
    case FKV_EPILOGUE_NONE: break;
    }
    return CPU_GEMM_STORE;
}

void cpu_linear(fkv_device *dev, fkv_acts x, int64_t n, int64_t class_rows, const fkv_weight *w, fkv_acts y,
                bool f32_out, fkv_epilogue epilogue)
{
    (void)f32_out;    /* activations are float32 here */
    (void)class_rows; /* one algorithm for all */
    const cpu_weight_view view = cpu_weight_columns(w, 0);
    gemm_job j = {.x = x.data,
                  .x_stride = x.stride,
                  .n_rows = n,
                  .n_cols = view.n,
                  .w = view,
                  .y = y.data,
                  .y_stride = y.stride,
                  .mode = mode_of(epilogue)};
    gemm_run(dev, &j);
    if (y.scale) cpu_quantise_rows(dev, y, n, view.n);
}

void cpu_linear_cols(fkv_device *dev, const float *x, int64_t x_stride, int64_t n, const fkv_weight *w,
                     int64_t col, int64_t n_cols, float *y, int64_t y_stride)
{
    gemm_job j = {.x = x,
                  .x_stride = x_stride,
                  .n_rows = n,
                  .n_cols = n_cols,
                  .w = cpu_weight_columns(w, col),
                  .y = y,
                  .y_stride = y_stride,
                  .mode = CPU_GEMM_STORE};
    gemm_run(dev, &j);
}
