/* Collectives beside other work, by the GPUs' copy engines: see cuda_collective.h.
 *
 * Kernels that move bytes take multiprocessors from the products beside them, and wait for some to be free.
 * Copy engines need none, and events tell what is done: a collective is
 *   ready: what is to be sent is there, and where others write is free;
 *   copies into the others' memory, once they are ready;
 *   sent: and on, once all have sent.
 * An event of another device can be waited for as soon as its thread has recorded it, so threads tell each
 * other on a board in the world; they enqueue far ahead of the GPUs. No kernel waits here.
 */
#include "kernels/cuda_collective.h"

#include <sched.h>

enum { WAIT_SPINS = 4096 }; /* before a thread lets others go first */

/* Until device d has said so of meeting k. */
static bool wait_for(fkv_device *dev, const std::atomic<uint64_t> *said, uint64_t k)
{
    for (unsigned spins = 1; said->load(std::memory_order_acquire) < k; spins++) {
        if (spins % WAIT_SPINS) continue;
        if (!cuda_world_check(dev)) return false;
        sched_yield();
    }
    return true;
}

static bool make_board(fkv_device *dev)
{
    cuda_board *b = &dev->world->boards[dev->index];
    for (int i = 0; i < 2; i++) {
        if (!b->ready[i] && !CUDA(dev, cudaEventCreateWithFlags(&b->ready[i], cudaEventDisableTiming)))
            return false;
        if (!b->sent[i] && !CUDA(dev, cudaEventCreateWithFlags(&b->sent[i], cudaEventDisableTiming)))
            return false;
    }
    return true;
}

/* The meeting's number; 0: a failure. Where this device's others write: at. */
static uint64_t begin(fkv_device *dev, void *at)
{
    fkv_world *w = dev->world;
    cuda_board *mine = &w->boards[dev->index];
    const uint64_t k = mine->said_ready.load(std::memory_order_relaxed) + 1;
    if (dev->failed || !make_board(dev)) return 0;
    mine->at[k % 2] = (char *)at;
    if (!CUDA(dev, cudaEventRecord(mine->ready[k % 2], dev->stream))) return 0;
    mine->said_ready.store(k, std::memory_order_release);
    for (int d = 0; d < w->n_devices; d++) {
        if (d == dev->index) continue;
        if (!wait_for(dev, &w->boards[d].said_ready, k)) return 0;
        CUDA(dev, cudaStreamWaitEvent(dev->stream, w->boards[d].ready[k % 2], 0));
    }
    return k;
}

static void end(fkv_device *dev, uint64_t k)
{
    fkv_world *w = dev->world;
    cuda_board *mine = &w->boards[dev->index];
    if (!CUDA(dev, cudaEventRecord(mine->sent[k % 2], dev->stream))) return;
    mine->said_sent.store(k, std::memory_order_release);
    for (int d = 0; d < w->n_devices; d++) {
        if (d == dev->index) continue;
        if (!wait_for(dev, &w->boards[d].said_sent, k)) return;
        CUDA(dev, cudaStreamWaitEvent(dev->stream, w->boards[d].sent[k % 2], 0));
    }
}

void cuda_copies_close(fkv_device *dev)
{
    cuda_board *b = &dev->world->boards[dev->index];
    for (int i = 0; i < 2; i++) {
        if (b->ready[i]) cudaEventDestroy(b->ready[i]);
        if (b->sent[i]) cudaEventDestroy(b->sent[i]);
        b->ready[i] = b->sent[i] = NULL;
    }
}

void cuda_copies_gather_cols(fkv_device *dev, char *buf, int64_t n, int64_t stride, const int64_t *cols,
                             int elem_bytes)
{
    const fkv_world *w = dev->world;
    const size_t pitch = (size_t)(stride * elem_bytes), from = (size_t)(cols[dev->index] * elem_bytes),
                 width = (size_t)((cols[dev->index + 1] - cols[dev->index]) * elem_bytes);
    const uint64_t k = begin(dev, buf);
    if (!k) return;
    for (int i = 1; i < w->n_devices && width && n > 0; i++) {
        const int d = (dev->index + i) % w->n_devices;
        CUDA(dev, cudaMemcpy2DAsync(w->boards[d].at[k % 2] + from, pitch, buf + from, pitch, width, (size_t)n,
                                    cudaMemcpyDefault, dev->stream));
    }
    end(dev, k);
}

/* Where a device's window has the partial sums of rank r: [ranks][n, its columns]. */
static float *place_of(char *window, int64_t r, int64_t n, int64_t width)
{
    return (float *)window + r * n * width;
}

/* y[n, columns from col on] = sums over ranks in order; this device's own ranks' lie in partials. */
template <int WIDTH>
__global__ void __launch_bounds__(COLLECTIVE_THREADS)
    sum_kernel(const float *partials, int64_t rank_stride, const float *window, int rank0, int n_local,
               int n_ranks, int64_t n, int64_t width, int64_t hidden, int64_t col, bf16 *y)
{
    struct alignas(4 * WIDTH) floats {
        float v[WIDTH];
    };
    struct alignas(2 * WIDTH) halves {
        bf16 v[WIDTH];
    };
    const int64_t i = ((int64_t)blockIdx.x * COLLECTIVE_THREADS + threadIdx.x) * WIDTH;
    if (i >= n * width) return;
    const int64_t at = i / width * hidden + col + i % width;
    floats sum = {};
    for (int r = 0; r < n_ranks; r++) {
        const bool here = r >= rank0 && r < rank0 + n_local;
        const float *from = here ? partials + (r - rank0) * rank_stride + at : window + r * n * width + i;
        const floats p = *(const floats *)from;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum.v[j] = r ? sum.v[j] + p.v[j] : p.v[j];
    }
    halves h;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) h.v[j] = __float2bfloat16_rn(sum.v[j]);
    *(halves *)(y + at) = h;
}

void cuda_copies_reduce(fkv_device *dev, const float *partials, int n_local, int64_t rank_stride, int64_t n,
                        int64_t hidden, const int64_t *cols, bf16 *y)
{
    const fkv_world *w = dev->world;
    const int *first_rank = dev->comm->first_rank;
    const int me = dev->index, n_ranks = first_rank[w->n_devices];
    const int64_t width = cols[me + 1] - cols[me];
    const uint64_t k = begin(dev, dev->comm->windows);
    if (!k) return;
    for (int i = 1; i < w->n_devices; i++) {
        const int d = (me + i) % w->n_devices;
        const int64_t theirs = cols[d + 1] - cols[d];
        const size_t bytes = (size_t)theirs * sizeof(float);
        for (int r = 0; r < n_local && bytes; r++)
            CUDA(dev,
                 cudaMemcpy2DAsync(place_of(w->boards[d].at[k % 2], first_rank[me] + r, n, theirs), bytes,
                                   partials + r * rank_stride + cols[d], (size_t)hidden * sizeof(float),
                                   bytes, (size_t)n, cudaMemcpyDefault, dev->stream));
    }
    end(dev, k);
    if (dev->failed || n * width == 0) return;
    const bool by_4 = hidden % 4 == 0 && rank_stride % 4 == 0 && cols[me] % 4 == 0 && width % 4 == 0 &&
                      ((uintptr_t)partials & 15) == 0 && ((uintptr_t)y & 7) == 0;
    const float *window = (const float *)dev->comm->windows;
    if (by_4)
        sum_kernel<4><<<blocks_for(n * width / 4, COLLECTIVE_THREADS), COLLECTIVE_THREADS, 0, dev->stream>>>(
            partials, rank_stride, window, first_rank[me], n_local, n_ranks, n, width, hidden, cols[me], y);
    else
        sum_kernel<1><<<blocks_for(n * width, COLLECTIVE_THREADS), COLLECTIVE_THREADS, 0, dev->stream>>>(
            partials, rank_stride, window, first_rank[me], n_local, n_ranks, n, width, hidden, cols[me], y);
    CUDA_LAUNCHED(dev);
}
