/* Products with weights on the CUDA backend: cuBLASLt, bf16 or e4m3 in, float32 sums; but a step's gate and
 * up, where cuda_gate_sm90.cu can.
 *
 * An algorithm is chosen once for a shape and kept: by the class's number of rows (that of
 * the full tile, however many rows a product has), the weight's shape, the type of the
 * result, and what the addresses are aligned to as far as strides fix it. Never by the
 * row's place, the number of rows or a measurement, so that a row gets the same bits
 * wherever and beside whatever it stands: a result is one sum over k, tile by tile (no
 * split-K; and as split and stream-K both need workspace or a reduction, neither is
 * offered to the library).
 *
 * A bias is added in float32 before a result is rounded: by the library's epilogue where that is bf16, by
 * a kernel of its own where it stays float32.
 *
 * FP8's sums are multiplied by the scales of x's row and of w's: by the library where it can (Hopper, "outer
 * vectors"), else it gives the bare sums and a kernel of ours does; so, too, for a step's rows, where the
 * library's one algorithm for outer vectors would leave multiprocessors idle (measured: LOG.md, 2026-11-26).
 * Fast accumulation stays off: every few products of the tensor cores, which keep 14 bits, are added up in
 * float32.
 *
 * cuBLASLt is column-major: y^T [n_out, n_rows] = (w^T)^T x^T.
 */
#include "kernels/cuda_gate_sm90.h"
#include "kernels/cuda_rows.h"

#include <cassert>
#include <cstdlib>
#include <cstring>

extern "C" {
#include "runner/base/hash.h"
#include "runner/base/log.h"
}

enum {
    BUCKETS = 256,
    CANDIDATES = 8,
    OUTER_ROWS = 128,
    OUTER_COLS = 128, /* of a tile of the outer vectors' algorithm */
    GENERATION = 1 /* to be raised when a kernel of ours gives other bits than it did in an earlier version */
};

typedef struct gemm_key {
    int64_t class_rows, n_out, k;
    int16_t f32_out;
    int8_t biased, fp8;
    int32_t x_align, w_align, y_align; /* bytes, at most 16 */
} gemm_key;

typedef struct gemm_entry {
    gemm_key key;
    bool found;    /* false: the library has none, gemm_kernel does it */
    bool used;     /* products were done by algo */
    bool prepared; /* not merely met at work, which depends on the prompts */
    bool bare;     /* algo gives sums, float32, without scales and bias */
    cublasLtMatmulAlgo_t algo;
    struct gemm_entry *next;
} gemm_entry;

struct cuda_gemm_cache {
    gemm_entry *buckets[BUCKETS];
};

/* One product as the library wants it. */
typedef struct gemm_call {
    const void *x, *w;
    const bf16 *bias;               /* NULL for none, and where f32_out */
    const float *x_scale, *w_scale; /* FP8: of rows; NULL: the bare sums are wanted */
    void *y;
    int64_t x_stride, y_stride; /* of x in elements of its type */
    int64_t n_rows, class_rows, n_out, k;
    bool f32_out, fp8;
} gemm_call;

typedef struct gemm_layouts {
    cublasLtMatmulDescOpaque_t op;
    cublasLtMatrixLayoutOpaque_t w, x, y;
} gemm_layouts;

static int32_t alignment(uintptr_t address, int64_t stride_bytes)
{
    const uintptr_t all = address | (uintptr_t)stride_bytes | 16;
    return (int32_t)(all & (~all + 1));
}

static gemm_key key_of(const gemm_call *c)
{
    const int64_t y_size = c->f32_out ? 4 : 2, size = c->fp8 ? 1 : 2;
    gemm_key key;
    memset(&key, 0, sizeof key);
    key.class_rows = c->class_rows;
    key.n_out = c->n_out;
    key.k = c->k;
    key.f32_out = c->f32_out;
    key.biased = c->bias != NULL;
    key.fp8 = c->fp8;
    /* A row at base + i * stride is aligned at least as the stride unless base is not:
     * with the stride counted in, the class does not depend on i. */
    key.x_align = alignment((uintptr_t)c->x, c->x_stride * size);
    key.w_align = alignment((uintptr_t)c->w, c->k * size);
    key.y_align = alignment((uintptr_t)c->y, c->y_stride * y_size);
    return key;
}

static bool set_layout(fkv_device *dev, cublasLtMatrixLayoutOpaque_t *l, cudaDataType type, int64_t rows,
                       int64_t cols, int64_t stride)
{
    return CUBLAS(dev, cublasLtMatrixLayoutInit(l, type, (uint64_t)rows, (uint64_t)cols, stride));
}

/* y + bias, [n_out] of the type of y. */
static bool set_bias(fkv_device *dev, cublasLtMatmulDescOpaque_t *op, const bf16 *bias)
{
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const cudaDataType type = CUDA_R_16BF;
    return CUBLAS(dev, cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                      sizeof epilogue)) &&
           CUBLAS(dev, cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type,
                                                      sizeof type)) &&
           CUBLAS(dev,
                  cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
}

/* Whether the library that this is built with multiplies by a scale for each row. */
static constexpr bool has_row_scales = CUBLAS_VERSION >= 120900;

/* One float32 for each row of w and of x. */
static bool set_scales(fkv_device *dev, cublasLtMatmulDescOpaque_t *op, const float *w, const float *x)
{
#if CUBLAS_VERSION < 120900
    (void)dev, (void)op, (void)w, (void)x;
    return false;
#else
    const int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    return CUBLAS(dev, cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode,
                                                      sizeof mode)) &&
           CUBLAS(dev, cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode,
                                                      sizeof mode)) &&
           CUBLAS(dev,
                  cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w, sizeof w)) &&
           CUBLAS(dev,
                  cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x, sizeof x));
#endif
}

static bool set_layouts(fkv_device *dev, const gemm_call *c, gemm_layouts *l)
{
    const cublasOperation_t transposed = CUBLAS_OP_T, plain = CUBLAS_OP_N;
    const cudaDataType type = c->fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const int8_t fast = 0;
    return CUBLAS(dev, cublasLtMatmulDescInit(&l->op, CUBLAS_COMPUTE_32F, CUDA_R_32F)) &&
           CUBLAS(dev, cublasLtMatmulDescSetAttribute(&l->op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                      sizeof transposed)) &&
           CUBLAS(dev, cublasLtMatmulDescSetAttribute(&l->op, CUBLASLT_MATMUL_DESC_TRANSB, &plain,
                                                      sizeof plain)) &&
           (!c->fp8 || CUBLAS(dev, cublasLtMatmulDescSetAttribute(&l->op, CUBLASLT_MATMUL_DESC_FAST_ACCUM,
                                                                  &fast, sizeof fast))) &&
           (!c->w_scale || set_scales(dev, &l->op, c->w_scale, c->x_scale)) &&
           (!c->bias || set_bias(dev, &l->op, c->bias)) &&
           set_layout(dev, &l->w, type, c->k, c->n_out, c->k) &&
           set_layout(dev, &l->x, type, c->k, c->n_rows, c->x_stride) &&
           set_layout(dev, &l->y, c->f32_out ? CUDA_R_32F : CUDA_R_16BF, c->n_out, c->n_rows, c->y_stride);
}

/* A stride for rows of n elements that is aligned to `align` bytes and no more. */
static int64_t stride_for(int64_t n, int64_t size, int32_t align)
{
    const int64_t rounded = (n + 15) / 16 * 16;
    return align >= 16 ? rounded : rounded + align / size;
}

/* Whether one sum runs over k in one piece. */
static bool is_whole(const cublasLtMatmulAlgo_t *algo)
{
    int32_t split = 0;
    uint32_t scheme = ~0u;
    size_t written;
    return cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof split,
                                                &written) == CUBLAS_STATUS_SUCCESS &&
           cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
                                                sizeof scheme, &written) == CUBLAS_STATUS_SUCCESS &&
           (split == 0 || split == 1) && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

static bool set_preference(fkv_device *dev, cublasLtMatmulPreferenceOpaque_t *p, const gemm_key *key)
{
    const uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint32_t w = (uint32_t)key->w_align, x = (uint32_t)key->x_align, y = (uint32_t)key->y_align;
    const uint64_t workspace = 0;
    return CUBLAS(dev, cublasLtMatmulPreferenceInit(p)) &&
           CUBLAS(dev, cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                            &scheme, sizeof scheme)) &&
           CUBLAS(dev, cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                            &workspace, sizeof workspace)) &&
           CUBLAS(dev, cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &w,
                                                            sizeof w)) &&
           CUBLAS(dev, cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x,
                                                            sizeof x)) &&
           CUBLAS(dev, cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &y,
                                                            sizeof y)) &&
           CUBLAS(dev, cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &y,
                                                            sizeof y));
}

/* The library's first candidate for the product that is whole; false: it has none. */
static bool ask(fkv_device *dev, const gemm_call *c, const gemm_key *key, cublasLtMatmulAlgo_t *algo)
{
    gemm_layouts l;
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    int n = 0;
    if (!set_layouts(dev, c, &l) || !set_preference(dev, &preference, key)) return false;
    const cublasStatus_t st = cublasLtMatmulAlgoGetHeuristic(dev->lt, &l.op, &l.w, &l.x, &l.y, &l.y,
                                                             &preference, CANDIDATES, results, &n);
    if (st != CUBLAS_STATUS_SUCCESS) n = 0; /* none for this shape */
    for (int i = 0; i < n; i++) {
        if (results[i].state != CUBLAS_STATUS_SUCCESS || results[i].workspaceSize ||
            !is_whole(&results[i].algo))
            continue;
        *algo = results[i].algo;
        return true;
    }
    return false;
}

/* FP8's sums alone, in float32: at y where that is float32, else where the device has room for them. */
static gemm_call bare_call(const fkv_device *dev, const gemm_call *c)
{
    gemm_call bare = *c;
    bare.x_scale = bare.w_scale = NULL;
    bare.bias = NULL;
    bare.f32_out = true;
    if (!c->f32_out) {
        bare.y = dev->sums_tmp;
        bare.y_stride = c->n_out;
    }
    return bare;
}

/* For the key's canonical product. */
static void choose(fkv_device *dev, gemm_entry *e)
{
    static const uintptr_t somewhere = 256; /* an address, as aligned as any weight's */
    const gemm_key *key = &e->key;
    gemm_call c;
    memset(&c, 0, sizeof c);
    c.n_rows = c.class_rows = key->class_rows;
    c.n_out = key->n_out;
    c.k = key->k;
    c.f32_out = key->f32_out;
    c.fp8 = key->fp8;
    c.bias = key->biased ? (const bf16 *)somewhere : NULL;
    c.x_scale = c.w_scale = key->fp8 ? (const float *)somewhere : NULL;
    /* e4m3 rows have the places of bf16 ones */
    c.x_stride = key->fp8 ? 2 * stride_for(c.k, 2, key->x_align) : stride_for(c.k, 2, key->x_align);
    c.y_stride = stride_for(c.n_out, key->f32_out ? 4 : 2, key->y_align);
    const gemm_call bare = bare_call(dev, &c);
    const bool few = key->class_rows <= CUDA_MAX_SLOTS &&
                     (key->class_rows > OUTER_ROWS || key->n_out < OUTER_COLS * dev->n_sms);
    if (key->fp8 && (dev->bare || few)) e->found = e->bare = ask(dev, &bare, key, &e->algo);
    if (!e->found && (!key->fp8 || has_row_scales)) e->found = ask(dev, &c, key, &e->algo);
    if (!e->found && key->fp8) e->found = e->bare = ask(dev, &bare, key, &e->algo);
    if (!e->found && !dev->failed)
        fkv_log(
            "GPU %d: cuBLASLt has no%s algorithm for [%lld, %lld] x [%lld, %lld]^T; a slow kernel does it",
            dev->gpu, key->fp8 ? " FP8" : "", (long long)c.n_rows, (long long)c.k, (long long)c.n_out,
            (long long)c.k);
}

/* The entry of a key, chosen now if it is new; NULL when memory is out. */
static gemm_entry *entry_of(fkv_device *dev, const gemm_key *key)
{
    /* Only now: who merely asks what a device has does not wait for the library. */
    if (!dev->lt && !CUBLAS(dev, cublasLtCreate(&dev->lt))) return NULL;
    if (!dev->gemms) dev->gemms = (cuda_gemm_cache *)calloc(1, sizeof *dev->gemms);
    if (!dev->gemms) return NULL;
    const uint64_t h =
        ((uint64_t)key->class_rows * 0x9e3779b97f4a7c15u ^ (uint64_t)key->n_out) * 0x9e3779b97f4a7c15u ^
        (uint64_t)key->k;
    gemm_entry **bucket = &dev->gemms->buckets[(h ^ h >> 32) % BUCKETS];
    for (gemm_entry *e = *bucket; e; e = e->next)
        if (!memcmp(&e->key, key, sizeof *key)) return e;
    gemm_entry *e = (gemm_entry *)calloc(1, sizeof *e);
    if (!e) return NULL;
    e->key = *key;
    e->next = *bucket;
    *bucket = e;
    choose(dev, e);
    return e;
}

static __device__ __forceinline__ float number(bf16 x)
{
    return __bfloat162float(x);
}

static __device__ __forceinline__ float number(uint8_t code)
{
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

/* A result as it is stored. */
static __device__ __forceinline__ void store(void *y, int64_t at, float sum, bool f32_out)
{
    if (f32_out)
        ((float *)y)[at] = sum;
    else
        ((bf16 *)y)[at] = __float2bfloat16_rn(sum);
}

/* What the library refuses, such as rows at odd addresses on some GPUs: a warp a
 * result, lanes interleaved over k, added by halving. T: bf16, or e4m3 codes. Grid (n_out / 8, n_rows). */
template <typename T>
__global__ void __launch_bounds__(256)
    gemm_kernel(const T *x, int64_t x_stride, int64_t n_rows, const T *w, const bf16 *bias,
                const float *x_scale, const float *w_scale, int64_t k, int64_t n_out, void *y,
                int64_t y_stride, bool f32_out)
{
    const int64_t j = (int64_t)blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (j >= n_out) return;
    const T *wj = w + j * k;
    for (int64_t i = blockIdx.y; i < n_rows; i += gridDim.y) {
        const T *xi = x + i * x_stride;
        float sum = 0;
        for (int64_t t = lane; t < k; t += 32) sum = fmaf(number(xi[t]), number(wj[t]), sum);
        for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (w_scale) sum = sum * x_scale[i] * w_scale[j];
        if (bias) sum += __bfloat162float(bias[j]);
        if (lane == 0) store(y, i * y_stride + j, sum, f32_out);
    }
}

template <typename T> static void run_plain_of(fkv_device *dev, const gemm_call *c)
{
    const dim3 grid((unsigned)((c->n_out + 7) / 8), (unsigned)(c->n_rows < 1024 ? c->n_rows : 1024));
    gemm_kernel<T><<<grid, 256, 0, dev->stream>>>((const T *)c->x, c->x_stride, c->n_rows, (const T *)c->w,
                                                  c->bias, c->x_scale, c->w_scale, c->k, c->n_out, c->y,
                                                  c->y_stride, c->f32_out);
    CUDA_LAUNCHED(dev);
}

static void run_plain(fkv_device *dev, const gemm_call *c)
{
    if (c->fp8)
        run_plain_of<uint8_t>(dev, c);
    else
        run_plain_of<bf16>(dev, c);
}

/* y = sums x_scale w_scale + bias, sums and y [n_rows, n_out] and maybe in the same place; a thread a column,
 * grid (n_out / 256, n_rows). */
__global__ void __launch_bounds__(256)
    scale_sums_kernel(const float *sums, int64_t stride, int64_t n_rows, int64_t n_out, const bf16 *bias,
                      const float *x_scale, const float *w_scale, void *y, int64_t y_stride, bool f32_out)
{
    const int64_t j = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (j >= n_out) return;
    const float b = bias ? __bfloat162float(bias[j]) : 0.0f, by = w_scale[j];
    for (int64_t i = blockIdx.y; i < n_rows; i += gridDim.y)
        store(y, i * y_stride + j, sums[i * stride + j] * x_scale[i] * by + b, f32_out);
}

static void scale_sums(fkv_device *dev, const gemm_call *bare, const gemm_call *c)
{
    const dim3 grid((unsigned)((c->n_out + 255) / 256), (unsigned)(c->n_rows < 1024 ? c->n_rows : 1024));
    scale_sums_kernel<<<grid, 256, 0, dev->stream>>>((const float *)bare->y, bare->y_stride, c->n_rows,
                                                     c->n_out, c->bias, c->x_scale, c->w_scale, c->y,
                                                     c->y_stride, c->f32_out);
    CUDA_LAUNCHED(dev);
}

static bool grow_sums(fkv_device *dev, int64_t n_rows, int64_t n)
{
    return cuda_grow(dev, (void **)&dev->sums_tmp, &dev->sums_tmp_bytes,
                     (size_t)n_rows * (size_t)n * sizeof(float));
}

/* False: the library refuses the algorithm for this product; nothing was enqueued. */
static bool run_chosen(fkv_device *dev, const gemm_call *c, const gemm_entry *e)
{
    const float one = 1, zero = 0;
    gemm_layouts l;
    if (!set_layouts(dev, c, &l)) return true;
    const cublasStatus_t st = cublasLtMatmul(dev->lt, &l.op, &one, c->w, &l.w, c->x, &l.x, &zero, c->y, &l.y,
                                             c->y, &l.y, &e->algo, NULL, 0, dev->stream);
    if (st == CUBLAS_STATUS_NOT_SUPPORTED || st == CUBLAS_STATUS_INVALID_VALUE) return false;
    return CUBLAS(dev, st) || true;
}

/* The same, of bare sums that become y. */
static bool run_bare(fkv_device *dev, const gemm_call *c, const gemm_entry *e)
{
    if (!c->f32_out && !grow_sums(dev, c->n_rows, c->n_out)) return true;
    const gemm_call bare = bare_call(dev, c);
    if (!run_chosen(dev, &bare, e)) return false;
    if (!dev->failed) scale_sums(dev, &bare, c);
    return true;
}

static void run(fkv_device *dev, const gemm_call *c)
{
    const gemm_key key = key_of(c);
    if (dev->failed) return;
    if (dev->restricted) {
        run_plain(dev, c);
        return;
    }
    gemm_entry *e = entry_of(dev, &key);
    if (!e) {
        cuda_fail(dev, "out of memory"); /* unless an error is kept already */
        return;
    }
    if (e->found && (e->bare ? run_bare(dev, c, e) : run_chosen(dev, c, e))) {
        e->used = true;
        return;
    }
    /* Rows of one class never get two algorithms: their bits would tell how full a tile was. */
    if (e->used) {
        cuda_fail(dev, "cuBLASLt refuses some rows of a product of which it did others");
        return;
    }
    if (e->found)
        fkv_log(
            "GPU %d: cuBLASLt refuses its algorithm for [%lld, %lld] x [%lld, %lld]^T; a slow kernel does it",
            dev->gpu, (long long)c->n_rows, (long long)c->k, (long long)c->n_out, (long long)c->k);
    e->found = false;
    run_plain(dev, c);
}

/* y[n_rows, n_out] += bias; a thread a column, grid (n_out / 256, n_rows). */
__global__ void __launch_bounds__(256)
    bias_kernel(float *y, int64_t y_stride, int64_t n_rows, int64_t n_out, const bf16 *bias)
{
    const int64_t j = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (j >= n_out) return;
    const float b = __bfloat162float(bias[j]);
    for (int64_t i = blockIdx.y; i < n_rows; i += gridDim.y) y[i * y_stride + j] += b;
}

static void add_bias(fkv_device *dev, float *y, int64_t y_stride, int64_t n_rows, cuda_weight_view w)
{
    const dim3 grid((unsigned)((w.n + 255) / 256), (unsigned)(n_rows < 1024 ? n_rows : 1024));
    bias_kernel<<<grid, 256, 0, dev->stream>>>(y, y_stride, n_rows, w.n, w.bias);
    CUDA_LAUNCHED(dev);
}

void cuda_gemm(fkv_device *dev, fkv_acts x, int64_t n_rows, int64_t class_rows, cuda_weight_view w, void *y,
               int64_t y_stride, bool f32_out)
{
    const bool fp8 = w.dtype == FKV_DTYPE_F8_E4M3;
    if (n_rows <= 0 || w.n <= 0) return;
    assert(fp8 == (x.scale != NULL));
    const gemm_call c = {.x = x.data,
                         .w = w.data,
                         .bias = f32_out ? NULL : w.bias,
                         .x_scale = x.scale,
                         .w_scale = w.scale,
                         .y = y,
                         .x_stride = fp8 ? 2 * x.stride : x.stride,
                         .y_stride = y_stride,
                         .n_rows = n_rows,
                         .class_rows = class_rows,
                         .n_out = w.n,
                         .k = w.k,
                         .f32_out = f32_out,
                         .fp8 = fp8};
    run(dev, &c);
    if (f32_out && w.bias && !dev->failed) add_bias(dev, (float *)y, y_stride, n_rows, w);
}

static bool grow_gate(fkv_device *dev, int64_t n_rows, int64_t n)
{
    return cuda_grow(dev, (void **)&dev->gate_tmp, &dev->gate_tmp_bytes,
                     (size_t)n_rows * (size_t)n * sizeof(bf16));
}

void cuda_linear(fkv_device *dev, fkv_acts x, int64_t n, int64_t class_rows, const fkv_weight *w, fkv_acts y,
                 bool f32_out, fkv_epilogue epilogue)
{
    const cuda_weight_view all = cuda_weight_rows(w, 0);
    if (n <= 0 || all.n <= 0) return;
    if (epilogue == FKV_EPILOGUE_NONE) {
        cuda_gemm(dev, x, n, class_rows, all, y.data, y.stride, f32_out);
        return;
    }
    const fkv_activation g =
        epilogue == FKV_EPILOGUE_SILU_GATE ? FKV_ACTIVATION_SILU : FKV_ACTIVATION_GELU_TANH;
    if (!y.scale && cuda_gate_sm90_can(dev, x, class_rows, &all)) {
        cuda_gate_sm90(dev, g, x, n, class_rows, all, (bf16 *)y.data, y.stride);
        return;
    }
    if (!grow_gate(dev, n, all.n)) return;
    cuda_gemm(dev, x, n, class_rows, all, dev->gate_tmp, all.n, false);
    if (y.scale)
        cuda_gate_quantise(dev, g, dev->gate_tmp, n, all.n / 2, y);
    else
        cuda_gate_mul(dev, g, dev->gate_tmp, n, all.n / 2, (bf16 *)y.data, y.stride);
}

static fkv_status prepare(fkv_device *dev, const gemm_key *key, fkv_err *err)
{
    gemm_entry *e = entry_of(dev, key);
    if (!e) return dev->failed ? cuda_status(dev, err) : fkv_fail_memory(err);
    e->prepared = true;
    if (e->bare && !key->f32_out) grow_sums(dev, key->class_rows, key->n_out);
    return cuda_status(dev, err);
}

/* Rows where they are aligned; where they are not, the first use chooses. */
static gemm_key aligned_key(int64_t class_rows, int64_t n_out, int64_t k)
{
    gemm_key key;
    memset(&key, 0, sizeof key);
    key.class_rows = class_rows;
    key.n_out = n_out;
    key.k = k;
    key.x_align = key.w_align = key.y_align = 16;
    return key;
}

fkv_status cuda_prepare_linear(fkv_device *dev, const fkv_weight *w, int64_t n_rows, fkv_epilogue epilogue,
                               fkv_err *err)
{
    const bool gated = epilogue != FKV_EPILOGUE_NONE;
    const cuda_weight_view all = cuda_weight_rows(w, 0);
    gemm_key key = aligned_key(n_rows, all.n, all.k);
    key.fp8 = all.dtype == FKV_DTYPE_F8_E4M3;
    const int kinds = all.n <= 0 || dev->restricted ? 0 : gated ? 1 : 2;
    for (key.f32_out = 0; key.f32_out < kinds; key.f32_out++) {
        key.biased = all.bias && !key.f32_out;
        const fkv_status st = prepare(dev, &key, err);
        if (st) return st;
    }
    if (gated) grow_gate(dev, n_rows, all.n);
    return cuda_status(dev, err);
}

/* Of a key and the settings of its algorithm. */
static uint64_t fingerprint(const gemm_entry *e)
{
    static const cublasLtMatmulAlgoConfigAttributes_t settings[] = {CUBLASLT_ALGO_CONFIG_ID,
                                                                    CUBLASLT_ALGO_CONFIG_TILE_ID,
                                                                    CUBLASLT_ALGO_CONFIG_STAGES_ID,
                                                                    CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING,
                                                                    CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION,
                                                                    CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID,
                                                                    CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID};
    const size_t n = sizeof settings / sizeof *settings;
    uint64_t print = fkv_hash(&e->key, sizeof e->key, 2 * GENERATION + e->bare);
    for (size_t i = 0; e->found && i < n; i++) {
        uint64_t value = 0; /* settings have 2 or 4 bytes */
        size_t written;
        cublasLtMatmulAlgoConfigGetAttribute(&e->algo, settings[i], &value, i < 5 ? 4 : 2, &written);
        print = fkv_hash(&value, sizeof value, print);
    }
    return print;
}

uint64_t cuda_gemm_fingerprint(const fkv_device *dev)
{
    uint64_t all = 0;
    for (int i = 0; dev->gemms && i < BUCKETS; i++)
        for (const gemm_entry *e = dev->gemms->buckets[i]; e; e = e->next)
            if (e->prepared) all += fingerprint(e);
    return all;
}

void cuda_gemm_forget(fkv_device *dev)
{
    for (int i = 0; dev->gemms && i < BUCKETS; i++)
        for (gemm_entry *e = dev->gemms->buckets[i]; e; e = e->next) e->prepared = false;
}

void cuda_gemm_close(fkv_device *dev)
{
    for (int i = 0; dev->gemms && i < BUCKETS; i++) {
        while (dev->gemms->buckets[i]) {
            gemm_entry *e = dev->gemms->buckets[i];
            dev->gemms->buckets[i] = e->next;
            free(e);
        }
    }
    free(dev->gemms);
    dev->gemms = NULL;
}
