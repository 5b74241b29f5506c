/* Collectives by stores into the other GPUs' memory: see cuda_collective.h.
 *
 * Each is one kernel on every device: write what the others need into their windows, tell
 * them, wait for what they write, use it. All its blocks wait, so the grid is small enough
 * to be resident at once.
 *
 * Telling: when all blocks of a device have written, the last one puts the number of this
 * meeting (the epoch) into its flag at every peer, with release order; readers acquire it.
 * The two halves of a window take turns: a peer writes meeting k + 2 into the half of
 * meeting k when it has seen this device's flag of k + 1, and this device sends that
 * only after its kernel of meeting k, which read the half, has ended.
 */
#include "kernels/cuda_collective.h"

/* Of a kernel. Devices that share a GPU leave room for each other's kernels, whose clusters may need
 * all multiprocessors of a part of the GPU at once: a block that waits here holds one. */
static const unsigned most_blocks = 96, most_blocks_shared = 1;

/* What a kernel needs to meet the others; by value. */
struct cuda_peers {
    int n, me;
    char *windows[COLLECTIVE_MAX_DEVICES];
    cuda_meeting *meetings[COLLECTIVE_MAX_DEVICES];
    const volatile int *stop;
};

static cuda_peers peers_of(const fkv_device *dev)
{
    const fkv_world *w = dev->world;
    cuda_peers p = {w->n_devices, dev->index, {}, {}, w->stop};
    for (int d = 0; d < w->n_devices; d++) {
        p.windows[d] = w->windows[d];
        p.meetings[d] = w->meetings[d];
    }
    return p;
}

static __device__ void store_release(uint64_t *at, uint64_t value)
{
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

static __device__ uint64_t load_acquire(const uint64_t *at)
{
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
}

/* Spins between two looks for a stop. The host's word lies behind PCIe: were it read by every block that
 * waits a little, a device that came late would make its peers late, who would then make it late again,
 * and meetings would stay ten times slower. So one thread looks there, seldom, and tells the other blocks. */
enum { SPINS_TO_LOOK = 128, SPINS_TO_ASK_HOST = 1024 };

static __device__ bool is_stopped(const cuda_peers &p, cuda_meeting *mine, unsigned spins)
{
    if (spins % SPINS_TO_LOOK) return false;
    if (blockIdx.x == 0 && spins % SPINS_TO_ASK_HOST == 0 && *p.stop)
        *(volatile uint32_t *)&mine->stopped = 1;
    return *(volatile uint32_t *)&mine->stopped;
}

/* Called by all threads when they have written: returns when all peers have. */
static __device__ void meet(const cuda_peers &p, uint64_t epoch)
{
    cuda_meeting *mine = p.meetings[p.me];
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence_system(); /* of what all threads of the block have written */
        last = atomicAdd(&mine->arrived, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        mine->arrived = 0;
        mine->epoch = epoch; /* every block has read the old one before it arrived */
        __threadfence_system();
    }
    if (last) __syncthreads();
    const int d = (int)threadIdx.x;
    if (d < p.n && d != p.me) {
        if (last) store_release(&p.meetings[d]->flags[p.me], epoch);
        for (unsigned spins = 1; load_acquire(&mine->flags[d]) < epoch; spins++)
            if (is_stopped(p, mine, spins)) break;
    }
    __syncthreads();
}

/* The work of a meeting: give(half of every window) writes to the peers, take(own half) uses
 * what came. Both share their elements among all threads of the grid. */
template <class Work>
__global__ void __launch_bounds__(COLLECTIVE_THREADS)
    meeting_kernel(const __grid_constant__ cuda_peers p, const Work work)
{
    const uint64_t epoch = p.meetings[p.me]->epoch + 1;
    const size_t half = (epoch & 1) * (size_t)COLLECTIVE_WINDOW_BYTES;
    const uint32_t first = blockIdx.x * COLLECTIVE_THREADS + threadIdx.x,
                   step = gridDim.x * COLLECTIVE_THREADS;
    for (int i = 1; i < p.n; i++) { /* starting with the next one, so that not all write to one */
        const int d = (p.me + i) % p.n;
        work.give(p.me, d, p.windows[d] + half, first, step);
    }
    meet(p, epoch);
    work.take(p.n, p.me, p.windows[p.me] + half, first, step);
}

template <class Work> static void launch(fkv_device *dev, const Work &work, int64_t n_threads)
{
    unsigned grid = blocks_for(n_threads, COLLECTIVE_THREADS);
    const unsigned most = dev->world->n_gpus < dev->world->n_devices ? most_blocks_shared : most_blocks;
    if (grid < 1) grid = 1;
    if (grid > most) grid = most;
    meeting_kernel<<<grid, COLLECTIVE_THREADS, 0, dev->stream>>>(peers_of(dev), work);
    CUDA_LAUNCHED(dev);
}

/* A device's columns of every row, in units of T; packed in a window one device behind the other. */
template <class T> struct gather_cols_work {
    T *buf;
    uint32_t n, stride;
    uint32_t cols[COLLECTIVE_MAX_DEVICES + 1];

    __device__ void give(int me, int, char *window, uint32_t first, uint32_t step) const
    {
        const uint32_t width = cols[me + 1] - cols[me];
        T *to = (T *)window + (size_t)n * cols[me];
        for (uint32_t i = first; i < n * width; i += step)
            to[i] = buf[(size_t)(i / width) * stride + cols[me] + i % width];
    }
    __device__ void take(int n_devices, int me, const char *window, uint32_t first, uint32_t step) const
    {
        for (int d = 0; d < n_devices; d++) {
            const uint32_t width = cols[d + 1] - cols[d];
            const T *from = (const T *)window + (size_t)n * cols[d];
            for (uint32_t i = first; d != me && i < n * width; i += step)
                buf[(size_t)(i / width) * stride + cols[d] + i % width] = __ldcg(from + i);
        }
    }
};

template <class T>
static void gather_cols(fkv_device *dev, char *buf, int64_t n, int64_t stride, const int64_t *cols,
                        int elem_bytes)
{
    const int64_t per = (int64_t)sizeof(T) / elem_bytes;
    gather_cols_work<T> work = {(T *)buf, (uint32_t)n, (uint32_t)(stride / per), {}};
    for (int d = 0; d <= dev->world->n_devices; d++) work.cols[d] = (uint32_t)(cols[d] / per);
    launch(dev, work, n * (cols[dev->index + 1] - cols[dev->index]) / per);
}

/* Whether n elements of so many bytes are a whole number of units. */
static bool in_units(int64_t n, int elem_bytes, int unit)
{
    return n * elem_bytes % unit == 0;
}

void cuda_peer_gather_cols(fkv_device *dev, char *buf, int64_t n, int64_t stride, const int64_t *cols,
                           int elem_bytes)
{
    bool by_16 = ((uintptr_t)buf & 15) == 0 && in_units(stride, elem_bytes, 16);
    for (int d = 0; d <= dev->world->n_devices; d++) by_16 = by_16 && in_units(cols[d], elem_bytes, 16);
    if (by_16)
        gather_cols<uint4>(dev, buf, n, stride, cols, elem_bytes);
    else if (elem_bytes == 4)
        gather_cols<uint32_t>(dev, buf, n, stride, cols, elem_bytes);
    else
        gather_cols<uint16_t>(dev, buf, n, stride, cols, elem_bytes);
}

/* Cell (slot, head) lies at the same place in out and in a window: row_units units of 16 bytes. */
struct gather_heads_work {
    uint4 *out;
    const uint8_t *owner;
    uint32_t n, n_heads, row_units;

    __device__ int owner_of(uint32_t i) const
    {
        const uint32_t cell = i / row_units;
        return owner[(size_t)(cell % n_heads) * n + cell / n_heads];
    }
    __device__ void give(int me, int, char *window, uint32_t first, uint32_t step) const
    {
        for (uint32_t i = first; i < n * n_heads * row_units; i += step)
            if (owner_of(i) == me) ((uint4 *)window)[i] = out[i];
    }
    __device__ void take(int, int me, const char *window, uint32_t first, uint32_t step) const
    {
        for (uint32_t i = first; i < n * n_heads * row_units; i += step)
            if (owner_of(i) != me) out[i] = __ldcg((const uint4 *)window + i);
    }
};

void cuda_peer_gather_heads(fkv_device *dev, bf16 *out, int n, int n_kv_heads, int64_t row_elems,
                            const uint8_t *dev_owner)
{
    if (row_elems % 8 || ((uintptr_t)out & 15)) { /* head_dim is 64 or 128, buffers are aligned */
        cuda_fail(dev, "rows of attention are not whole units of 16 bytes");
        return;
    }
    const gather_heads_work work = {(uint4 *)out, dev_owner, (uint32_t)n, (uint32_t)n_kv_heads,
                                    (uint32_t)(row_elems / 8)};
    launch(dev, work, (int64_t)n * n_kv_heads * row_elems / 8);
}

/* A window holds [all ranks][n, columns of the device whose window it is]; a rank's partials of a
 * device's own ranks stay where they are. */
template <int WIDTH> struct reduce_work {
    struct alignas(WIDTH == 1 ? 4 : 16) floats {
        float v[WIDTH];
    };
    struct alignas(2 * WIDTH) halves {
        bf16 v[WIDTH];
    };
    const float *partials;
    bf16 *y;
    int64_t rank_stride; /* elements */
    uint32_t n, hidden;  /* rows, and columns of a row in units of WIDTH */
    uint32_t cols[COLLECTIVE_MAX_DEVICES + 1];
    bool every_device;
    int rank0, n_local, n_ranks;

    __device__ uint32_t first_col(int d) const
    {
        return every_device ? 0 : cols[d];
    }
    __device__ uint32_t n_cols(int d) const
    {
        return every_device ? hidden : cols[d + 1] - cols[d];
    }
    __device__ const floats *local(int r, uint32_t i, uint32_t width, uint32_t col) const
    {
        return (const floats *)(partials + r * rank_stride) + (size_t)(i / width) * hidden + col + i % width;
    }
    __device__ void give(int, int d, char *window, uint32_t first, uint32_t step) const
    {
        const uint32_t width = n_cols(d), col = first_col(d);
        for (int r = 0; r < n_local; r++) {
            floats *to = (floats *)window + (size_t)(rank0 + r) * n * width;
            for (uint32_t i = first; i < n * width; i += step) to[i] = *local(r, i, width, col);
        }
    }
    __device__ void take(int, int me, const char *window, uint32_t first, uint32_t step) const
    {
        const uint32_t width = n_cols(me), col = first_col(me);
        for (uint32_t i = first; i < n * width; i += step) {
            floats sum;
            for (int r = 0; r < n_ranks; r++) {
                const bool here = r >= rank0 && r < rank0 + n_local;
                floats p;
                if (here)
                    p = *local(r - rank0, i, width, col);
                else
                    p = load(window, (size_t)r * n * width + i);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) sum.v[j] = r ? sum.v[j] + p.v[j] : p.v[j];
            }
            halves h;
#pragma unroll
            for (int j = 0; j < WIDTH; j++) h.v[j] = __float2bfloat16_rn(sum.v[j]);
            ((halves *)y)[(size_t)(i / width) * hidden + col + i % width] = h;
        }
    }
    static __device__ floats load(const char *window, size_t i)
    {
        floats f;
        if (WIDTH == 4) {
            const float4 v = __ldcg((const float4 *)window + i);
            f.v[0] = v.x, f.v[1 % WIDTH] = v.y, f.v[2 % WIDTH] = v.z, f.v[3 % WIDTH] = v.w;
        } else {
            f.v[0] = __ldcg((const float *)window + i);
        }
        return f;
    }
};

template <int WIDTH>
static void reduce(fkv_device *dev, const float *partials, int n_local, int64_t rank_stride, int64_t n,
                   int64_t hidden, const int64_t *cols, bool every_device, bf16 *y)
{
    const cuda_comm *c = dev->comm;
    const int n_devices = dev->world->n_devices;
    reduce_work<WIDTH> work = {};
    work.partials = partials;
    work.y = y;
    work.rank_stride = rank_stride;
    work.n = (uint32_t)n;
    work.hidden = (uint32_t)(hidden / WIDTH);
    for (int d = 0; d <= n_devices; d++) work.cols[d] = (uint32_t)(cols[d] / WIDTH);
    work.every_device = every_device;
    work.rank0 = c->first_rank[dev->index];
    work.n_local = n_local;
    work.n_ranks = c->first_rank[n_devices];
    launch(dev, work, n * (every_device ? hidden : cols[dev->index + 1] - cols[dev->index]) / WIDTH);
}

void cuda_peer_reduce(fkv_device *dev, const float *partials, int n_local, int64_t rank_stride, int64_t n,
                      int64_t hidden, const int64_t *cols, bool every_device, bf16 *y)
{
    bool by_4 =
        hidden % 4 == 0 && rank_stride % 4 == 0 && ((uintptr_t)partials & 15) == 0 && ((uintptr_t)y & 7) == 0;
    for (int d = 0; d <= dev->world->n_devices; d++) by_4 = by_4 && cols[d] % 4 == 0;
    if (by_4)
        reduce<4>(dev, partials, n_local, rank_stride, n, hidden, cols, every_device, y);
    else
        reduce<1>(dev, partials, n_local, rank_stride, n, hidden, cols, every_device, y);
}
