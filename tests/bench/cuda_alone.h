/* The CUDA backend's attention by itself: stubs in place of the rest of the backend, random values, and a
 * device of any shape. For benchmarks of one file, which includes it once. */
#ifndef FKV_BENCH_CUDA_ALONE_H
#define FKV_BENCH_CUDA_ALONE_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda_attention.h"

/* --- stubs of the backend ------------------------------------------------------ */

bool cuda_check(fkv_device *dev, cudaError_t e, const char *file, int line, const char *what)
{
    if (e == cudaSuccess) return true;
    if (!dev->failed)
        snprintf(dev->error_text, sizeof dev->error_text, "%s:%d: %s: %s", file, line, what,
                 cudaGetErrorString(e));
    dev->failed = true;
    return false;
}

void cuda_fail(fkv_device *dev, const char *why)
{
    if (!dev->failed) snprintf(dev->error_text, sizeof dev->error_text, "%s", why);
    dev->failed = true;
}

fkv_status cuda_status(fkv_device *dev, fkv_err *err)
{
    return dev->failed ? fkv_fail(err, FKV_E_DEVICE, "%s", dev->error_text) : FKV_OK;
}

static std::vector<void *> allocations;

fkv_status cuda_alloc(fkv_device *dev, size_t bytes, void **out, fkv_err *err)
{
    if (CUDA(dev, cudaMalloc(out, bytes)) && CUDA(dev, cudaMemsetAsync(*out, 0, bytes, dev->stream)))
        allocations.push_back(*out);
    return cuda_status(dev, err);
}

static __global__ void gemm_kernel(const bf16 *x, int64_t x_stride, int64_t n_rows, const bf16 *w, int64_t k,
                                   int64_t n_out, void *y, int64_t y_stride, bool f32_out)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_rows * n_out) return;
    const int64_t r = i / n_out, c = i % n_out;
    float sum = 0.0f;
    for (int64_t j = 0; j < k; j++)
        sum += __bfloat162float(x[r * x_stride + j]) * __bfloat162float(w[c * k + j]);
    const int64_t at = r * y_stride + c;
    if (f32_out)
        ((float *)y)[at] = sum;
    else
        ((bf16 *)y)[at] = __float2bfloat16_rn(sum);
}

void cuda_gemm(fkv_device *dev, fkv_acts x, int64_t n_rows, int64_t, cuda_weight_view w, void *y,
               int64_t y_stride, bool f32_out)
{
    const dim3 grid((unsigned)((n_rows * w.n + 255) / 256));
    gemm_kernel<<<grid, 256, 0, dev->stream>>>((const bf16 *)x.data, x.stride, n_rows, cuda_weight_bf16(w),
                                               w.k, w.n, y, y_stride, f32_out);
    CUDA_LAUNCHED(dev);
}

struct fkv_weight {
    int64_t n, k;
    bf16 *data; /* [n, k] */
};

cuda_weight_view cuda_weight_rows(const fkv_weight *w, int64_t row)
{
    cuda_weight_view view = {};
    view.data = w->data + row * w->k;
    view.n = w->n - row;
    view.k = w->k;
    return view;
}

const bf16 *cuda_weight_bf16(cuda_weight_view view)
{
    return (const bf16 *)view.data;
}

/* --- helpers ------------------------------------------------------------------- */

static int failures;

static void check(bool ok, const char *what, double value)
{
    printf("%s  %-74s %.3g\n", ok ? "ok  " : "FAIL", what, value);
    failures += !ok;
}

/* A CUDA call of this program itself. */
static void must(cudaError_t e)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "%s\n", cudaGetErrorString(e));
    exit(1);
}

static uint64_t seed = 1;

static float uniform(void) /* [-1, 1) */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

template <typename T> static T *device_array(size_t n)
{
    void *p = NULL;
    must(cudaMalloc(&p, std::max<size_t>(n, 1) * sizeof(T)));
    must(cudaMemset(p, 0, std::max<size_t>(n, 1) * sizeof(T)));
    allocations.push_back(p);
    return (T *)p;
}

template <typename T> static T *to_device(const std::vector<T> &v)
{
    T *p = device_array<T>(v.size());
    must(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

template <typename T> static std::vector<T> to_host(const T *p, size_t n)
{
    std::vector<T> v(n);
    must(cudaDeviceSynchronize());
    must(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}

static std::vector<bf16> random_values(size_t n, float scale)
{
    std::vector<bf16> v(n);
    for (bf16 &x : v) x = __float2bfloat16(uniform() * scale);
    return v;
}

/* Values in [-1, 1) that differ from array to array. */
static __global__ void fill_kernel(bf16 *x, int64_t n, uint32_t salt)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        uint32_t h = (uint32_t)i ^ (uint32_t)(i >> 32) * 0x9e3779b9u ^ salt * 0x7feb352du;
        h = (h ^ h >> 16) * 0x85ebca6bu;
        h = (h ^ h >> 13) * 0xc2b2ae35u;
        x[i] = __float2bfloat16_rn((float)(h >> 16) / 32768.0f - 1.0f);
    }
}

static bf16 *filled(size_t n)
{
    static uint32_t salt;
    bf16 *p = device_array<bf16>(n);
    fill_kernel<<<1024, 256>>>(p, (int64_t)n, ++salt);
    must(cudaGetLastError());
    return p;
}

static double value(bf16 x)
{
    return (double)__bfloat162float(x);
}

static float inv_freq[CUDA_MAX_HEAD_DIM / 2]; /* of the device */

static fkv_attention_spec spec_of(int hd, int group, int n_kv_heads)
{
    fkv_attention_spec s = {};
    s.n_kv_heads = n_kv_heads;
    s.group = group;
    s.head_dim = hd;
    s.scale = fkv_attention_scale(hd);
    return s;
}

/* Of a rank that has all heads, with scores. */
static fkv_prefill_args prefill_args(const fkv_attention_spec *spec, const fkv_pack *pack, const bf16 *qkv,
                                     bf16 *out)
{
    fkv_prefill_args a = {};
    a.pack = pack;
    a.spec = spec;
    a.n_heads = spec->n_kv_heads;
    a.qkv = (void *)qkv;
    a.out = out;
    a.out_stride = (int64_t)spec->n_kv_heads * spec->group * spec->head_dim;
    return a;
}

static fkv_prefill_args score_args(const fkv_attention_spec *spec, const fkv_pack *pack, const bf16 *qkv,
                                   int window, int kernel, float *scores)
{
    fkv_prefill_args a = prefill_args(spec, pack, qkv, NULL);
    a.min_tokens = a.score_window = window;
    a.score_kernel = kernel;
    a.scores = scores;
    a.score_stride = pack->n_rows - window;
    return a;
}

/* A device of this shape; every array of the last one is freed. */
static void open_device(fkv_device *dev, int hd, int group, int n_kv_heads, int n_slots, int max_prompt,
                        int window)
{
    must(cudaDeviceSynchronize());
    for (void *p : allocations) must(cudaFree(p));
    allocations.clear();
    cuda_decode_close(dev);
    for (int i = 0; i < hd / 2; i++) inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)hd);
    dev->rope = NULL;
    dev->limits = fkv_device_limits{};
    dev->limits.n_slots = n_slots;
    dev->limits.max_prompt = max_prompt;
    dev->limits.max_positions = max_prompt + 1024;
    dev->limits.hidden = 64;
    dev->limits.n_heads = group * n_kv_heads;
    dev->limits.n_kv_heads = n_kv_heads;
    dev->limits.head_dim = hd;
    dev->limits.max_local_heads = n_kv_heads;
    dev->limits.window = window;
    dev->limits.scorers = (1u << FKV_N_SCORERS) - 1;
    dev->limits.n_layers = 64; /* at the most */
    dev->limits.n_ropes = 1;
    fkv_err err = {};
    if (cuda_attention_prepare(dev, inv_freq, NULL, &err)) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
}

/* One prompt of n tokens in slot. */
static inline fkv_pack pack_of(int n, int slot)
{
    static fkv_segment segment; /* of the last pack */
    segment = fkv_segment{};
    segment.n_tokens = n;
    segment.slot = slot;
    fkv_pack p = {};
    p.n_segments = 1;
    p.n_rows = n;
    p.n_tiles = (n + FKV_TILE_TOKENS - 1) / FKV_TILE_TOKENS;
    p.segments = &segment;
    p.dev_segments = to_device(std::vector<fkv_segment>(1, segment));
    std::vector<int32_t> rows((size_t)n);
    for (int t = 0; t < n; t++) rows[t] = t;
    p.dev_rope_rows = to_device(rows);
    return p;
}

/* Seconds of one op, from a graph of `ops` of them. */
template <typename F> static double seconds_of(fkv_device *dev, int ops, F op)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t a, b;
    float best = INFINITY;
    op(0); /* what is chosen at first use */
    must(cudaStreamSynchronize(dev->stream));
    must(cudaStreamBeginCapture(dev->stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < ops; i++) op(i);
    must(cudaStreamEndCapture(dev->stream, &graph));
    must(cudaGraphInstantiate(&exec, graph, 0));
    must(cudaEventCreate(&a));
    must(cudaEventCreate(&b));
    for (int i = 0; i < 6; i++) {
        float ms = 0;
        must(cudaEventRecord(a, dev->stream));
        must(cudaGraphLaunch(exec, dev->stream));
        must(cudaEventRecord(b, dev->stream));
        must(cudaEventSynchronize(b));
        must(cudaEventElapsedTime(&ms, a, b));
        if (i) best = std::min(best, ms);
    }
    must(cudaGraphExecDestroy(exec));
    must(cudaGraphDestroy(graph));
    must(cudaEventDestroy(a));
    must(cudaEventDestroy(b));
    return best * 1e-3 / ops;
}

static char table_text[16384];

static void row_of_table(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void row_of_table(const char *format, ...)
{
    const size_t at = strlen(table_text);
    va_list args;
    va_start(args, format);
    vsnprintf(table_text + at, sizeof table_text - at, format, args);
    va_end(args);
}

/* The first GPU; NULL, and a word about it, without one. */
static fkv_device *first_device(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        printf("skipped: no GPU\n");
        return NULL;
    }
    cudaDeviceProp prop;
    must(cudaGetDeviceProperties(&prop, 0));
    fkv_device *dev = (fkv_device *)calloc(1, sizeof *dev);
    if (!dev) must(cudaErrorMemoryAllocation);
    dev->n_sms = prop.multiProcessorCount;
    dev->shared_bytes = (int)prop.sharedMemPerBlockOptin;
    snprintf(dev->name, sizeof dev->name, "%.95s", prop.name);
    must(cudaStreamCreateWithFlags(&dev->stream, cudaStreamDefault));
    return dev;
}

/* Prints what was found; the exit code. */
static int finish(fkv_device *dev)
{
    must(cudaDeviceSynchronize());
    if (dev->failed) check(false, dev->error_text, 0);
    printf("\n%s%s: %d checks failed\n", table_text, failures ? "FAILED" : "passed", failures);
    cuda_decode_close(dev);
    free(dev);
    return failures != 0;
}

#endif
