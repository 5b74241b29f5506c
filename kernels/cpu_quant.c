/* Rows into the FP8 form (backend.h) on the CPU backend, which holds e4m3 times the row's scale as float32.
 */
#include "kernels/cpu_device.h"
#include "runner/base/float16.h"

void cpu_quantise(float *x, int64_t n, float largest)
{
    const float by = fkv_fp8_inverse(largest), scale = fkv_fp8_scale(largest);
    for (int64_t i = 0; i < n; i++) x[i] = fkv_f32_from_e4m3(fkv_e4m3_from_f32(x[i] * by)) * scale;
}

/* A row of activations; gives its scale. */
static float quantise_row(float *x, int64_t k)
{
    const fkv_rows row = {.data = x, .dtype = FKV_DTYPE_F32, .n_rows = 1, .stride = k};
    const float largest = fkv_rows_largest(&row, 0, k);
    cpu_quantise(x, k, largest);
    return fkv_fp8_scale(largest);
}

typedef struct quantise_job {
    fkv_acts x;
    int64_t n, k, block;
} quantise_job;

static void quantise_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const quantise_job *j = ctx;
    const int64_t end = (index + 1) * j->block < j->n ? (index + 1) * j->block : j->n;
    for (int64_t i = index * j->block; i < end; i++)
        j->x.scale[i] = quantise_row((float *)j->x.data + i * j->x.stride, j->k);
}

void cpu_quantise_rows(fkv_device *dev, fkv_acts x, int64_t n, int64_t k)
{
    quantise_job j = {x, n, k, 8};
    cpu_pool_run(dev->pool, (n + j.block - 1) / j.block, 20.0 * (double)n * (double)k, quantise_task, &j);
}
