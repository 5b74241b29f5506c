/* Ops on rows of the CUDA backend: embedding, add + RMSNorm, sums of ranks, g(gate) * up.
 *
 * All are bound by memory. A row is the work of one block, and the order of its sums
 * is fixed by its length alone. Rows whose length and addresses allow it are moved 16
 * bytes a thread; the others element by element, by the same kernels with WIDTH 1.
 */
#include "kernels/cuda_early.h"
#include "kernels/cuda_rows.h"

/* out[n, k] = table[tokens[i] - first], zeros where that is not in [0, n_ids). A block a row. */
template <int WIDTH>
__global__ void __launch_bounds__(ROW_THREADS)
    embed_kernel(const int32_t *tokens, const bf16 *table, int64_t first, int64_t n_ids, int64_t k,
                 float *out)
{
    const int64_t id = tokens[blockIdx.x] - first;
    const bool here = id >= 0 && id < n_ids;
    float *to = out + blockIdx.x * k;
    for (int64_t i = (int64_t)threadIdx.x * WIDTH; i < k; i += ROW_THREADS * WIDTH) {
        floats<WIDTH> f = {};
        if (here) {
            const pack<WIDTH> p = *(const pack<WIDTH> *)(table + id * k + i);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) f.v[j] = __bfloat162float(p.v[j]);
        }
        *(floats<WIDTH> *)(to + i) = f;
    }
}

void cuda_embed(fkv_device *dev, const int32_t *tokens, int64_t n, const fkv_weight *table, float *out)
{
    if (n <= 0) return;
    const unsigned grid = (unsigned)n;
    const cuda_weight_view ids = cuda_weight_rows(table, 0);
    const bf16 *rows = cuda_weight_bf16(ids);
    const int64_t first = cuda_embedding_first(table);
    if (ids.k % 8 == 0 && aligned16(out))
        embed_kernel<8><<<grid, ROW_THREADS, 0, dev->stream>>>(tokens, rows, first, ids.n, ids.k, out);
    else
        embed_kernel<1><<<grid, ROW_THREADS, 0, dev->stream>>>(tokens, rows, first, ids.n, ids.k, out);
    CUDA_LAUNCHED(dev);
}

/* A thread an element. */
__global__ void __launch_bounds__(ROW_THREADS) scale_kernel(float *x, int64_t n, float factor, float cap)
{
    const int64_t i = (int64_t)blockIdx.x * ROW_THREADS + threadIdx.x;
    if (i >= n) return;
    const float v = factor * x[i];
    x[i] = cap > 0 ? cap * tanhf(v / cap) : v;
}

void cuda_scale(fkv_device *dev, float *x, int64_t n, float factor, float cap)
{
    if (n <= 0) return;
    const unsigned grid = (unsigned)((n + ROW_THREADS - 1) / ROW_THREADS);
    scale_kernel<<<grid, ROW_THREADS, 0, dev->stream>>>(x, n, factor, cap);
    CUDA_LAUNCHED(dev);
}

/* x += y, rounded to bf16; out = x * weight / rms(x). All [n, hidden]; a block a row. x
 * is read again for the second pass by the thread that wrote it, from L1 or L2. FP8: a row's codes lie at the
 * beginning of its place in out, and a pass more finds its largest magnitude. */
template <int WIDTH, bool FP8>
__global__ void __launch_bounds__(ROW_THREADS)
    add_rmsnorm_kernel(bf16 *x, const bf16 *y, const float *weight, float eps, int64_t hidden, bf16 *out,
                       float *scales)
{
    bf16 *row = x + blockIdx.x * hidden;
    float sum = 0;
    cuda_let_next_kernel_begin(); /* a product, which reads its weights meanwhile */
    for (int64_t i = (int64_t)threadIdx.x * WIDTH; i < hidden; i += ROW_THREADS * WIDTH) {
        pack<WIDTH> p = *(const pack<WIDTH> *)(row + i);
        if (y) {
            const pack<WIDTH> q = *(const pack<WIDTH> *)(y + blockIdx.x * hidden + i);
#pragma unroll
            for (int j = 0; j < WIDTH; j++)
                p.v[j] = __float2bfloat16_rn(__bfloat162float(p.v[j]) + __bfloat162float(q.v[j]));
            *(pack<WIDTH> *)(row + i) = p;
        }
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum = fmaf(__bfloat162float(p.v[j]), __bfloat162float(p.v[j]), sum);
    }
    if (!out) return;
    const float scale = 1.0f / sqrtf(block_sum(sum) / (float)hidden + eps);
    out += blockIdx.x * hidden;
    auto normed = [&](int64_t i) {
        const pack<WIDTH> p = *(const pack<WIDTH> *)(row + i);
        floats<WIDTH> w = *(const floats<WIDTH> *)(weight + i);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) w.v[j] = __bfloat162float(p.v[j]) * scale * w.v[j];
        return w;
    };
    if constexpr (FP8) {
        uint32_t largest = 0;
        for (int64_t i = (int64_t)threadIdx.x * WIDTH; i < hidden; i += ROW_THREADS * WIDTH) {
            const floats<WIDTH> f = normed(i);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) largest = max(largest, magnitude(f.v[j]));
        }
        const fp8_row r = block_row<ROW_THREADS>(largest);
        for (int64_t i = (int64_t)threadIdx.x * WIDTH; i < hidden; i += ROW_THREADS * WIDTH) {
            const floats<WIDTH> f = normed(i);
            codes<WIDTH> c;
#pragma unroll
            for (int j = 0; j < WIDTH; j++) c.v[j] = r.code(f.v[j]);
            *(codes<WIDTH> *)((uint8_t *)out + i) = c;
        }
        if (threadIdx.x == 0) scales[blockIdx.x] = r.scale;
    } else {
        for (int64_t i = (int64_t)threadIdx.x * WIDTH; i < hidden; i += ROW_THREADS * WIDTH) {
            const floats<WIDTH> f = normed(i);
            pack<WIDTH> o;
#pragma unroll
            for (int j = 0; j < WIDTH; j++) o.v[j] = __float2bfloat16_rn(f.v[j]);
            *(pack<WIDTH> *)(out + i) = o;
        }
    }
}

template <int WIDTH>
static void add_rmsnorm(fkv_device *dev, bf16 *x, const bf16 *y, const float *weight, float eps, int64_t n,
                        int64_t hidden, bf16 *out, float *scale)
{
    const unsigned grid = (unsigned)n;
    if (scale)
        add_rmsnorm_kernel<WIDTH, true>
            <<<grid, ROW_THREADS, 0, dev->stream>>>(x, y, weight, eps, hidden, out, scale);
    else
        add_rmsnorm_kernel<WIDTH, false>
            <<<grid, ROW_THREADS, 0, dev->stream>>>(x, y, weight, eps, hidden, out, NULL);
    CUDA_LAUNCHED(dev);
}

void cuda_add_rmsnorm(fkv_device *dev, void *x, const void *y, const float *weight, float eps, int64_t n,
                      int64_t hidden, void *out, float *scale)
{
    if (n <= 0) return;
    bf16 *xb = (bf16 *)x, *ob = (bf16 *)out;
    const bf16 *yb = (const bf16 *)y;
    if (hidden % 8 == 0 && aligned16(x) && aligned16(y) && aligned16(weight) && aligned16(out))
        add_rmsnorm<8>(dev, xb, yb, weight, eps, n, hidden, ob, scale);
    else
        add_rmsnorm<1>(dev, xb, yb, weight, eps, n, hidden, ob, scale);
}

/* Sums of ranks; a thread a group of WIDTH columns. */
template <int WIDTH>
__global__ void __launch_bounds__(ROW_THREADS)
    reduce_kernel(const float *partials, int n_ranks, int64_t n, int64_t n_cols, int64_t stride, bf16 *y)
{
    struct alignas(WIDTH == 1 ? 4 : 16) floats {
        float v[WIDTH];
    };
    struct alignas(2 * WIDTH) halves {
        bf16 v[WIDTH];
    };
    const int64_t i = ((int64_t)blockIdx.x * ROW_THREADS + threadIdx.x) * WIDTH, all = n * n_cols;
    if (i >= all) return;
    floats sum = *(const floats *)(partials + i);
    for (int r = 1; r < n_ranks; r++) {
        const floats p = *(const floats *)(partials + r * all + i);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum.v[j] += p.v[j];
    }
    halves h;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) h.v[j] = __float2bfloat16_rn(sum.v[j]);
    *(halves *)(y + (n_cols == stride ? i : i / n_cols * stride + i % n_cols)) = h;
}

void cuda_reduce_local(fkv_device *dev, const float *partials, int n_ranks, int64_t n, int64_t n_cols,
                       int64_t stride, bf16 *y)
{
    if (n * n_cols <= 0) return;
    const bool by_4 =
        n_cols % 4 == 0 && stride % 4 == 0 && ((uintptr_t)partials & 15) == 0 && ((uintptr_t)y & 7) == 0;
    const int64_t per_block = (by_4 ? 4 : 1) * ROW_THREADS;
    const unsigned grid = (unsigned)((n * n_cols + per_block - 1) / per_block);
    if (by_4)
        reduce_kernel<4><<<grid, ROW_THREADS, 0, dev->stream>>>(partials, n_ranks, n, n_cols, stride, y);
    else
        reduce_kernel<1><<<grid, ROW_THREADS, 0, dev->stream>>>(partials, n_ranks, n, n_cols, stride, y);
    CUDA_LAUNCHED(dev);
}

/* in[n, 2 * share], out[n, share] with out_stride. A thread handles WIDTH results; grid
 * (rows, blocks along share). */
template <int WIDTH, fkv_activation G>
__global__ void __launch_bounds__(ROW_THREADS)
    gate_mul_kernel(const bf16 *in, int64_t share, bf16 *out, int64_t out_stride)
{
    const int64_t i = ((int64_t)blockIdx.y * ROW_THREADS + threadIdx.x) * WIDTH, row = blockIdx.x;
    if (i >= share) return;
    const pack<WIDTH> gate = *(const pack<WIDTH> *)(in + row * 2 * share + i);
    const pack<WIDTH> up = *(const pack<WIDTH> *)(in + row * 2 * share + share + i);
    pack<WIDTH> o;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
        const float g = __bfloat162float(gate.v[j]);
        o.v[j] = __float2bfloat16_rn(gate_of<G>(g) * __bfloat162float(up.v[j]));
    }
    *(pack<WIDTH> *)(out + row * out_stride + i) = o;
}

template <fkv_activation G>
static void gate_mul(fkv_device *dev, const bf16 *in, int64_t n, int64_t share, bf16 *out, int64_t out_stride)
{
    const bool wide = share % 8 == 0 && out_stride % 8 == 0 && aligned16(in) && aligned16(out);
    const int64_t per_block = ROW_THREADS * (wide ? 8 : 1);
    const dim3 grid((unsigned)n, (unsigned)((share + per_block - 1) / per_block));
    if (wide)
        gate_mul_kernel<8, G><<<grid, ROW_THREADS, 0, dev->stream>>>(in, share, out, out_stride);
    else
        gate_mul_kernel<1, G><<<grid, ROW_THREADS, 0, dev->stream>>>(in, share, out, out_stride);
    CUDA_LAUNCHED(dev);
}

void cuda_gate_mul(fkv_device *dev, fkv_activation g, const bf16 *in, int64_t n, int64_t share, bf16 *out,
                   int64_t out_stride)
{
    if (n <= 0 || share <= 0) return;
    if (g == FKV_ACTIVATION_SILU)
        gate_mul<FKV_ACTIVATION_SILU>(dev, in, n, share, out, out_stride);
    else
        gate_mul<FKV_ACTIVATION_GELU_TANH>(dev, in, n, share, out, out_stride);
}

/* out[slot] = x's row of the segment's last token. A block a segment. */
template <int WIDTH>
__global__ void __launch_bounds__(ROW_THREADS)
    last_rows_kernel(const fkv_segment *segments, const bf16 *x, int64_t hidden, bf16 *out)
{
    const fkv_segment s = segments[blockIdx.x];
    const bf16 *from = x + ((int64_t)s.row0 + s.n_tokens - 1) * hidden;
    bf16 *to = out + s.slot * hidden;
    for (int64_t i = (int64_t)threadIdx.x * WIDTH; i < hidden; i += ROW_THREADS * WIDTH)
        *(pack<WIDTH> *)(to + i) = *(const pack<WIDTH> *)(from + i);
}

void cuda_last_rows(fkv_device *dev, const fkv_pack *pack, const void *x, int64_t hidden, void *out)
{
    const unsigned grid = (unsigned)pack->n_segments;
    if (hidden % 8 == 0 && aligned16(x) && aligned16(out))
        last_rows_kernel<8>
            <<<grid, ROW_THREADS, 0, dev->stream>>>(pack->dev_segments, (const bf16 *)x, hidden, (bf16 *)out);
    else
        last_rows_kernel<1>
            <<<grid, ROW_THREADS, 0, dev->stream>>>(pack->dev_segments, (const bf16 *)x, hidden, (bf16 *)out);
    CUDA_LAUNCHED(dev);
}

/* A thread a segment. */
__global__ void start_slots_kernel(const fkv_segment *segments, int n, const int32_t *rope_rows,
                                   fkv_slots slots)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    const fkv_segment s = segments[i];
    slots.pos[s.slot] = slots.prompt_len[s.slot] = s.n_tokens;
    slots.rope0[s.slot] = rope_rows[s.row0];
    slots.n_new[s.slot] = 0;
    slots.max_new[s.slot] = s.max_new;
    slots.active[s.slot] = FKV_SLOT_FRESH;
    slots.sampling[s.slot] = s.sampling;
}

/* The ids of the prompts that need them. A block a segment. */
__global__ void __launch_bounds__(ROW_THREADS)
    see_kernel(const fkv_segment *segments, const int32_t *tokens, uint32_t *seen, int64_t words)
{
    const fkv_segment &s = segments[blockIdx.x];
    if (!FKV_SAMPLING_PENALISES(s.sampling)) return;
    seen += s.slot * words;
    for (int64_t i = threadIdx.x; i < words; i += ROW_THREADS) seen[i] = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < s.n_tokens; i += ROW_THREADS) {
        const int32_t id = tokens[s.row0 + i];
        atomicOr(&seen[id / 32], 1u << id % 32);
    }
}

void cuda_start_slots(fkv_device *dev, const fkv_pack *pack, const fkv_slots *slots)
{
    const int n = pack->n_segments;
    bool penalty = false;
    for (int i = 0; i < n; i++) penalty |= FKV_SAMPLING_PENALISES(pack->segments[i].sampling);
    start_slots_kernel<<<(unsigned)((n + 63) / 64), 64, 0, dev->stream>>>(pack->dev_segments, n,
                                                                          pack->dev_rope_rows, *slots);
    if (penalty)
        see_kernel<<<(unsigned)n, ROW_THREADS, 0, dev->stream>>>(
            pack->dev_segments, pack->dev_tokens, slots->seen, FKV_SEEN_WORDS(dev->limits.vocab));
    CUDA_LAUNCHED(dev);
}

/* A thread an edit. */
__global__ void __launch_bounds__(ROW_THREADS) scatter_kernel(int32_t *dst, const fkv_edit *edits, int64_t n)
{
    const int64_t i = (int64_t)blockIdx.x * ROW_THREADS + threadIdx.x;
    if (i < n) dst[edits[i].index] = edits[i].value;
}

void cuda_scatter(fkv_device *dev, int32_t *dst, const fkv_edit *edits, int64_t n)
{
    if (n <= 0) return;
    scatter_kernel<<<(unsigned)((n + ROW_THREADS - 1) / ROW_THREADS), ROW_THREADS, 0, dev->stream>>>(
        dst, edits, n);
    CUDA_LAUNCHED(dev);
}
