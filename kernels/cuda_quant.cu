/* Rows into the FP8 form (backend.h), by their largest magnitudes: activations in place, g(gate) * up, and
 * weights as they are loaded. A block a row; bound by memory, a row being read again from L1 or L2.
 */
#include "kernels/cuda_rows.h"

/* Row i of x at i * stride becomes codes at the beginning of its place. */
template <int WIDTH>
static __global__ void __launch_bounds__(ROW_THREADS)
    quantise_kernel(bf16 *x, int64_t stride, int64_t k, float *scales)
{
    bf16 *row = x + blockIdx.x * stride;
    uint32_t largest = 0;
    for (int64_t i = (int64_t)threadIdx.x * WIDTH; i < k; i += ROW_THREADS * WIDTH) {
        const pack<WIDTH> p = *(const pack<WIDTH> *)(row + i);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) largest = max(largest, magnitude(__bfloat162float(p.v[j])));
    }
    const fp8_row r = block_row<ROW_THREADS>(largest);
    for (int64_t from = 0; from < k; from += ROW_THREADS * WIDTH) {
        const int64_t i = from + (int64_t)threadIdx.x * WIDTH;
        pack<WIDTH> p = {};
        codes<WIDTH> c;
        if (i < k) p = *(const pack<WIDTH> *)(row + i);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) c.v[j] = r.code(__bfloat162float(p.v[j]));
        __syncthreads(); /* all have read what the codes, which lie further in front, replace */
        if (i < k) *(codes<WIDTH> *)((uint8_t *)row + i) = c;
    }
    if (threadIdx.x == 0) scales[blockIdx.x] = r.scale;
}

void cuda_quantise(fkv_device *dev, fkv_acts x, int64_t n, int64_t k)
{
    if (n <= 0 || k <= 0) return;
    bf16 *data = (bf16 *)x.data;
    const unsigned grid = (unsigned)n;
    if (k % 8 == 0 && x.stride % 8 == 0 && aligned16(data))
        quantise_kernel<8><<<grid, ROW_THREADS, 0, dev->stream>>>(data, x.stride, k, x.scale);
    else
        quantise_kernel<1><<<grid, ROW_THREADS, 0, dev->stream>>>(data, x.stride, k, x.scale);
    CUDA_LAUNCHED(dev);
}

enum { GATE_THREADS = 512 };

/* in[n, 2 * share] (gate columns, then up); row i of out, codes, at i * stride bf16. A thread's first KEPT
 * groups of results wait in registers until the row's largest is known, the others are computed again. */
template <int WIDTH, fkv_activation G>
static __global__ void __launch_bounds__(GATE_THREADS)
    gate_quantise_kernel(const bf16 *in, int64_t share, bf16 *out, int64_t stride, float *scales)
{
    constexpr int KEPT = 4;
    constexpr int64_t STEP = GATE_THREADS * WIDTH;
    const bf16 *row = in + blockIdx.x * 2 * share;
    uint8_t *to = (uint8_t *)(out + blockIdx.x * stride);
    const int64_t first = (int64_t)threadIdx.x * WIDTH;
    uint32_t largest = 0;
    auto results = [&](int64_t i) {
        const pack<WIDTH> gate = *(const pack<WIDTH> *)(row + i);
        const pack<WIDTH> up = *(const pack<WIDTH> *)(row + share + i);
        floats<WIDTH> f;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            f.v[j] = gate_of<G>(__bfloat162float(gate.v[j])) * __bfloat162float(up.v[j]);
            largest = max(largest, magnitude(f.v[j]));
        }
        return f;
    };
    floats<WIDTH> kept[KEPT] = {};
#pragma unroll
    for (int s = 0; s < KEPT; s++)
        if (first + s * STEP < share) kept[s] = results(first + s * STEP);
    for (int64_t i = first + KEPT * STEP; i < share; i += STEP) results(i);
    const fp8_row r = block_row<GATE_THREADS>(largest);
    auto store = [&](int64_t i, const floats<WIDTH> &f) {
        codes<WIDTH> c;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) c.v[j] = r.code(f.v[j]);
        *(codes<WIDTH> *)(to + i) = c;
    };
#pragma unroll
    for (int s = 0; s < KEPT; s++)
        if (first + s * STEP < share) store(first + s * STEP, kept[s]);
    for (int64_t i = first + KEPT * STEP; i < share; i += STEP) store(i, results(i));
    if (threadIdx.x == 0) scales[blockIdx.x] = r.scale;
}

template <fkv_activation G>
static void gate_quantise(fkv_device *dev, const bf16 *in, int64_t n, int64_t share, fkv_acts out)
{
    bf16 *to = (bf16 *)out.data;
    const unsigned grid = (unsigned)n;
    if (share % 8 == 0 && out.stride % 8 == 0 && aligned16(in) && aligned16(to))
        gate_quantise_kernel<8, G>
            <<<grid, GATE_THREADS, 0, dev->stream>>>(in, share, to, out.stride, out.scale);
    else
        gate_quantise_kernel<1, G>
            <<<grid, GATE_THREADS, 0, dev->stream>>>(in, share, to, out.stride, out.scale);
    CUDA_LAUNCHED(dev);
}

void cuda_gate_quantise(fkv_device *dev, fkv_activation g, const bf16 *in, int64_t n, int64_t share,
                        fkv_acts out)
{
    if (n <= 0 || share <= 0) return;
    if (g == FKV_ACTIVATION_SILU)
        gate_quantise<FKV_ACTIVATION_SILU>(dev, in, n, share, out);
    else
        gate_quantise<FKV_ACTIVATION_GELU_TANH>(dev, in, n, share, out);
}

/* from[n, k] into to[n, k] and scales[n]. largest[n]: of rows of which these are a part; NULL: they are
 * whole. */
static __global__ void __launch_bounds__(ROW_THREADS)
    quantise_weight_kernel(const bf16 *from, int64_t k, const float *largest_of, uint8_t *to, float *scales)
{
    from += blockIdx.x * k;
    to += blockIdx.x * k;
    uint32_t largest = largest_of ? magnitude(largest_of[blockIdx.x]) : 0;
    for (int64_t i = threadIdx.x; i < k && !largest_of; i += ROW_THREADS)
        largest = max(largest, magnitude(__bfloat162float(from[i])));
    const fp8_row r = block_row<ROW_THREADS>(largest);
    for (int64_t i = threadIdx.x; i < k; i += ROW_THREADS) to[i] = r.code(__bfloat162float(from[i]));
    if (threadIdx.x == 0) scales[blockIdx.x] = r.scale;
}

void cuda_quantise_weight(fkv_device *dev, const bf16 *from, int64_t n, int64_t k, const float *largest,
                          uint8_t *to, float *scales)
{
    if (n <= 0) return;
    quantise_weight_kernel<<<(unsigned)n, ROW_THREADS, 0, dev->stream>>>(from, k, largest, to, scales);
    CUDA_LAUNCHED(dev);
}
