/* What this GPU can do at the most, for benchmarks to be beside: bytes read a second, bytes copied, and
 * products of a model's own shapes through the backend, random numbers, sustained.
 *
 * usage: bench_ceilings [8b|70b] [SECONDS] [bf16|fp8]
 * Prints "gbps=..." (reading) and "tflops=..." (all products of a layer in turn, for SECONDS, 5 if not
 * said) in the form that bench_engine takes; exit code 77 without a GPU.
 */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <cuda_runtime.h>

extern "C" {
#include "kernels/backend.h"
#include "runner/base/clock.h"
#include "tests/unit/model_shapes.h"
}

static void must(cudaError_t e)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "%s\n", cudaGetErrorString(e));
    exit(1);
}

static void must(fkv_status st, const fkv_err *err)
{
    if (!st) return;
    fprintf(stderr, "%s\n", err->message);
    exit(1);
}

/* --- memory ---------------------------------------------------------------------- */

enum { READERS = 132 * 8, THREADS = 512, AHEAD = 8 };

/* Reads all of x; the sum is kept where nobody expects it, so that reading is not left out. */
__global__ void __launch_bounds__(THREADS) read_kernel(const uint4 *x, size_t n, uint32_t *out)
{
    uint32_t sum = 0;
    const size_t step = (size_t)gridDim.x * THREADS;
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    for (; i + (AHEAD - 1) * step < n; i += AHEAD * step) {
        uint4 v[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) v[k] = __ldcs(x + i + k * step);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    for (; i < n; i += step) sum += x[i].x;
    if (sum == 0x12345678u) *out = sum;
}

static double time_memory(bool reads, char *from, char *to, size_t bytes)
{
    enum { ROUNDS = 8 };
    cudaEvent_t a, b;
    float ms = 0, best = 1e9f;
    must(cudaEventCreate(&a));
    must(cudaEventCreate(&b));
    for (int i = 0; i < ROUNDS; i++) {
        must(cudaEventRecord(a));
        if (reads) {
            read_kernel<<<READERS, THREADS>>>((const uint4 *)from, bytes / sizeof(uint4), (uint32_t *)to);
            must(cudaGetLastError());
        } else {
            must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice));
        }
        must(cudaEventRecord(b));
        must(cudaEventSynchronize(b));
        must(cudaEventElapsedTime(&ms, a, b));
        best = std::min(best, ms);
    }
    must(cudaEventDestroy(a));
    must(cudaEventDestroy(b));
    return (reads ? 1 : 2) * (double)bytes / (best * 1e-3);
}

static double print_memory(void)
{
    const size_t bytes = (size_t)4 << 30;
    char *from, *to;
    must(cudaMalloc((void **)&from, bytes));
    must(cudaMalloc((void **)&to, bytes));
    must(cudaMemset(from, 0x5a, bytes));
    const double read = time_memory(true, from, to, bytes), copy = time_memory(false, from, to, bytes);
    printf("read %.0f GB/s, copy (read and written) %.0f GB/s\n", read * 1e-9, copy * 1e-9);
    must(cudaFree(from));
    must(cudaFree(to));
    return read;
}

/* --- products -------------------------------------------------------------------- */

typedef struct product {
    const char *name;
    int64_t n_out, k;
    bool f32_out;
    fkv_weight *weight;
} product;

typedef struct bench {
    const fkv_backend *b;
    fkv_device *dev;
    int64_t rows;
    fkv_form form;
    void *x, *y;
    float *scale; /* of x; NULL: none */
} bench;

/* Finite bf16 numbers between -2 and 2 whose bits are as random as those of weights and activations. */
static std::vector<uint16_t> random_numbers(size_t n)
{
    std::vector<uint16_t> v(n);
    uint64_t seed = 1;
    for (uint16_t &x : v) {
        float sum = 0; /* of uniform ones: near enough to a normal one */
        uint16_t bits[2];
        for (int i = 0; i < 4; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            sum += (float)(int32_t)(seed >> 32) / 4294967296.0f;
        }
        memcpy(bits, &sum, sizeof bits);
        x = bits[1];
    }
    return v;
}

static void load(const bench *t, product *p, const std::vector<uint16_t> &numbers)
{
    fkv_err err = {};
    const int64_t whole = (int64_t)numbers.size() / p->k;
    std::vector<fkv_rows> parts;
    for (int64_t i = 0; i < p->n_out; i += whole) {
        fkv_rows rows = {};
        rows.data = numbers.data();
        rows.dtype = FKV_DTYPE_BF16;
        rows.n_rows = std::min(whole, p->n_out - i);
        rows.stride = p->k;
        rows.form = t->form;
        parts.push_back(rows);
    }
    must(t->b->weight_load(t->dev, parts.data(), (int)parts.size(), p->k, &p->weight, &err), &err);
    must(t->b->prepare_linear(t->dev, p->weight, t->rows, FKV_EPILOGUE_NONE, &err), &err);
}

/* Products of tiles in turn for so many seconds: FLOPs a second. */
static double sustain(const bench *t, const product *products, int n, double seconds)
{
    enum { PER_WAIT = 8 };
    fkv_err err = {};
    double flops = 0, start = 0;
    int64_t last = 0;
    for (int64_t round = -1;; round++) {
        if (round == 0) {
            must(t->b->sync(t->dev, &err), &err);
            start = fkv_seconds();
            flops = 0;
        }
        for (int i = 0; i < PER_WAIT; i++) {
            for (int k = 0; k < n; k++) {
                const product *p = &products[k];
                const fkv_acts x = {t->x, p->k, t->scale}, y = {t->y, p->n_out, NULL};
                t->b->linear(t->dev, x, t->rows, t->rows, p->weight, y, p->f32_out, FKV_EPILOGUE_NONE);
                flops += 2.0 * (double)t->rows * (double)p->n_out * (double)p->k;
            }
        }
        const int64_t ticket = t->b->post(t->dev);
        if (last) must(t->b->wait(t->dev, last, &err), &err); /* one round stays under way */
        last = ticket;
        if (round >= 0 && fkv_seconds() - start > seconds) break;
    }
    must(t->b->sync(t->dev, &err), &err);
    return flops / (fkv_seconds() - start);
}

static double print_products(const fkv_config *c, fkv_form form, double seconds)
{
    const fkv_group group = {.n_devices = 1};
    fkv_world *world;
    fkv_device_info info;
    fkv_err err = {};
    bench t = {};
    product p[] = {
        {"Q, K, V", (int64_t)(c->n_heads + 2 * c->n_kv_heads) * c->head_dim, c->hidden, false, NULL},
        {"output", c->hidden, (int64_t)c->n_heads * c->head_dim, false, NULL},
        {"gate and up", 2 * (int64_t)c->intermediate, c->hidden, false, NULL},
        {"down", c->hidden, c->intermediate, true, NULL}};
    const int n = sizeof p / sizeof *p;
    t.b = fkv_backend_find("cuda");
    must(t.b->world_open(&group, &world, &err), &err);
    must(t.b->open(world, 0, 0, &t.dev, &err), &err);
    t.b->info(t.dev, &info);
    t.rows = info.prefill_tile;
    t.form = form;
    const std::vector<uint16_t> numbers = random_numbers((size_t)t.rows * (size_t)c->intermediate);
    must(t.b->alloc(t.dev, numbers.size() * 2, &t.x, &err), &err);
    must(t.b->alloc(t.dev, (size_t)t.rows * 2 * (size_t)c->intermediate * 4, &t.y, &err), &err);
    for (size_t i = 0; i < numbers.size(); i += 1 << 20)
        t.b->upload(t.dev, (uint16_t *)t.x + i, numbers.data() + i,
                    std::min<size_t>(1 << 20, numbers.size() - i) * 2);
    if (form == FKV_FORM_FP8) { /* the rows of one k are in turns those of another: any e4m3 will do */
        must(t.b->alloc(t.dev, (size_t)t.rows * sizeof(float), (void **)&t.scale, &err), &err);
        t.b->quantise(t.dev, fkv_acts{t.x, c->intermediate, t.scale}, t.rows, c->intermediate);
    }
    for (product &one : p) load(&t, &one, numbers);
    for (const product &one : p) {
        const double rate = sustain(&t, &one, 1, seconds / 5);
        printf("%-12s [%lld, %lld] x [%lld, %lld]^T: %.0f TFLOP/s\n", one.name, (long long)t.rows,
               (long long)one.k, (long long)one.n_out, (long long)one.k, rate * 1e-12);
    }
    const double all = sustain(&t, p, n, seconds);
    t.b->close(t.dev);
    t.b->world_close(world);
    return all;
}

int main(int argc, char **argv)
{
    fkv_config c = argc > 1 && !strcmp(argv[1], "70b") ? shape_70b : shape_8b;
    const double seconds = argc > 2 ? atof(argv[2]) : 5;
    if (!fkv_backend_cuda_found()) {
        printf("skipped: no GPU\n");
        return 77;
    }
    const fkv_form form = argc > 3 && !strcmp(argv[3], "fp8") ? FKV_FORM_FP8 : FKV_FORM_NATIVE;
    const double read = print_memory(), flops = print_products(&c, form, seconds);
    printf("gbps=%.0f tflops=%.0f\n", read * 1e-9, flops * 1e-12);
    return 0;
}
