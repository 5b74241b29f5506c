/* Collectives by stores into the other GPUs' memory: see cuda_collective.h.
 *
 * Each is one kernel on every device: write what the others need into their windows, tell
 * them, wait for what they write, use it. All its blocks wait, so the grid is small enough
 * to be resident at once. Two ways of telling:
 * - Large messages: when all blocks of a device have written, the last one puts the number of
 *   this meeting (the epoch) into its flag at every peer, with release order; readers acquire
 *   it. That costs a fence and a way to the peer beside the data's.
 * - Small ones go in lines of 16 bytes, two words of data and, behind each, the epoch. A store
 *   is whole within 8 bytes, so a word is there when its epoch is, and nothing else need be
 *   told: half the rate, but one way alone (the idea is NCCL's LL protocol). Lines have windows of
 *   their own, in which nothing but lines stands, or data might look like an epoch. The flag is
 *   sent as well, at the start: it says that the meeting before has been read.
 * The two halves of a window take turns: a peer writes meeting k + 2 into the half of
 * meeting k when it has seen this device's flag of k + 1, and this device sends that
 * only after its kernel of meeting k, which read the half, has ended.
 */
#include "kernels/cuda_collective.h"

#include <type_traits>

/* Of a kernel. Devices that share a GPU leave room for each other's kernels, whose clusters may need
 * all multiprocessors of a part of the GPU at once: a block that waits here holds one. */
static const unsigned most_blocks = 96, most_blocks_shared = 1;

/* What a kernel needs to meet the others; by value. */
struct cuda_peers {
    int n, me;
    char *windows[COLLECTIVE_MAX_DEVICES]; /* for lines: behind the halves for all else */
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

/* Where every thread waits: so seldom that the reads over PCIe disturb nobody. */
enum { SPINS_OF_ALL_TO_ASK_HOST = 1 << 14 };

static __device__ bool lines_stopped(const cuda_peers &p, unsigned spins)
{
    cuda_meeting *mine = p.meetings[p.me];
    if (spins % SPINS_TO_LOOK) return false;
    if (spins % SPINS_OF_ALL_TO_ASK_HOST == 0 && *p.stop) *(volatile uint32_t *)&mine->stopped = 1;
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

/* Half a window, in units of T. */
template <class T> struct plain_window {
    T *at;

    __device__ void put(size_t i, T v) const
    {
        at[i] = v;
    }
    __device__ T get(size_t i) const
    {
        return __ldcg(at + i);
    }
};

static __device__ void store_line(uint4 *at, uint32_t a, uint32_t b, uint32_t epoch)
{
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %3, %2, %3};" ::"l"(at), "r"(a), "r"(b), "r"(epoch)
                 : "memory");
}

static __device__ uint4 load_line(const uint4 *at)
{
    uint4 v;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at)
                 : "memory");
    return v;
}

/* The same in lines, two for a unit of 16 bytes. */
struct line_window {
    uint4 *lines;
    uint32_t epoch;
    const cuda_peers *p;

    __device__ void put(size_t i, uint4 v) const
    {
        store_line(lines + 2 * i, v.x, v.y, epoch);
        store_line(lines + 2 * i + 1, v.z, v.w, epoch);
    }
    __device__ uint4 get(size_t i) const
    {
        uint4 a = load_line(lines + 2 * i), b = load_line(lines + 2 * i + 1);
        for (unsigned spins = 1; a.y != epoch || a.w != epoch || b.y != epoch || b.w != epoch; spins++) {
            if (lines_stopped(*p, spins)) break;
            a = load_line(lines + 2 * i);
            b = load_line(lines + 2 * i + 1);
        }
        return make_uint4(a.x, a.z, b.x, b.z);
    }
};

/* What stands in the lines of a meeting: never 0, which lines that nobody has written hold. */
static __device__ uint32_t mark_of(uint64_t epoch)
{
    return (uint32_t)epoch | 0x80000000u;
}

/* The work of a meeting in lines. Its units have 16 bytes. */
template <class Work>
__global__ void __launch_bounds__(COLLECTIVE_THREADS)
    lines_kernel(const __grid_constant__ cuda_peers p, const Work work)
{
    cuda_meeting *mine = p.meetings[p.me];
    const uint64_t epoch = mine->epoch + 1;
    const size_t half = 2 * (size_t)COLLECTIVE_WINDOW_BYTES + (epoch & 1) * (size_t)COLLECTIVE_LINES_BYTES;
    const uint32_t first = blockIdx.x * COLLECTIVE_THREADS + threadIdx.x,
                   step = gridDim.x * COLLECTIVE_THREADS;
    const int peer =
        blockIdx.x == 0 && (int)threadIdx.x < p.n && (int)threadIdx.x != p.me ? (int)threadIdx.x : -1;
    if (peer >= 0) store_release(&p.meetings[peer]->flags[p.me], epoch);
    for (int i = 1; i < p.n; i++) {
        const int d = (p.me + i) % p.n;
        work.give(p.me, d, line_window{(uint4 *)(p.windows[d] + half), mark_of(epoch), &p}, first, step);
    }
    work.take(p.n, p.me, line_window{(uint4 *)(p.windows[p.me] + half), mark_of(epoch), &p}, first, step);
    if (peer >= 0)
        for (unsigned spins = 1; load_acquire(&mine->flags[peer]) < epoch; spins++)
            if (lines_stopped(p, spins)) break;
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(&mine->arrived, 1) == gridDim.x - 1) {
        mine->arrived = 0;
        mine->epoch = epoch; /* every block has read the old one before it arrived */
    }
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
        work.give(p.me, d, plain_window<typename Work::unit>{(typename Work::unit *)(p.windows[d] + half)},
                  first, step);
    }
    meet(p, epoch);
    work.take(p.n, p.me, plain_window<typename Work::unit>{(typename Work::unit *)(p.windows[p.me] + half)},
              first, step);
}

template <class Work>
static void start(fkv_device *dev, const Work &work, unsigned grid, std::true_type in_lines)
{
    (void)in_lines;
    lines_kernel<<<grid, COLLECTIVE_THREADS, 0, dev->stream>>>(peers_of(dev), work);
}

template <class Work>
static void start(fkv_device *dev, const Work &work, unsigned grid, std::false_type in_lines)
{
    (void)in_lines;
    meeting_kernel<<<grid, COLLECTIVE_THREADS, 0, dev->stream>>>(peers_of(dev), work);
}

/* n_units: of the fullest window, the same for all devices, by which they choose the way. */
template <class Work>
static void launch(fkv_device *dev, const Work &work, int64_t n_threads, int64_t n_units)
{
    typedef std::integral_constant<bool, sizeof(typename Work::unit) == sizeof(uint4)> may_be_lines;
    unsigned grid = blocks_for(n_threads, COLLECTIVE_THREADS);
    const unsigned most = dev->world->n_gpus < dev->world->n_devices ? most_blocks_shared : most_blocks;
    if (grid < 1) grid = 1;
    if (grid > most) grid = most;
    if (2 * n_units * (int64_t)sizeof(uint4) <= COLLECTIVE_LINES_BYTES)
        start(dev, work, grid, may_be_lines());
    else
        start(dev, work, grid, std::false_type());
    CUDA_LAUNCHED(dev);
}

/* A device's columns of every row, in units of T; packed in a window one device behind the other. */
template <class T> struct gather_cols_work {
    typedef T unit;
    T *buf;
    uint32_t n, stride;
    uint32_t cols[COLLECTIVE_MAX_DEVICES + 1];

    template <class Window>
    __device__ void give(int me, int, const Window &window, uint32_t first, uint32_t step) const
    {
        const uint32_t width = cols[me + 1] - cols[me];
        for (uint32_t i = first; i < n * width; i += step)
            window.put((size_t)n * cols[me] + i, buf[(size_t)(i / width) * stride + cols[me] + i % width]);
    }
    template <class Window>
    __device__ void take(int n_devices, int me, const Window &window, uint32_t first, uint32_t step) const
    {
        for (int d = 0; d < n_devices; d++) {
            const uint32_t width = cols[d + 1] - cols[d];
            for (uint32_t i = first; d != me && i < n * width; i += step)
                buf[(size_t)(i / width) * stride + cols[d] + i % width] = window.get((size_t)n * cols[d] + i);
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
    launch(dev, work, n * (cols[dev->index + 1] - cols[dev->index]) / per,
           n * work.cols[dev->world->n_devices]);
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
    typedef uint4 unit;
    uint4 *out;
    const uint8_t *owner;
    uint32_t n, n_heads, row_units;

    __device__ int owner_of(uint32_t i) const
    {
        const uint32_t cell = i / row_units;
        return owner[(size_t)(cell % n_heads) * n + cell / n_heads];
    }
    template <class Window>
    __device__ void give(int me, int, const Window &window, uint32_t first, uint32_t step) const
    {
        for (uint32_t i = first; i < n * n_heads * row_units; i += step)
            if (owner_of(i) == me) window.put(i, out[i]);
    }
    template <class Window>
    __device__ void take(int, int me, const Window &window, uint32_t first, uint32_t step) const
    {
        for (uint32_t i = first; i < n * n_heads * row_units; i += step)
            if (owner_of(i) != me) out[i] = window.get(i);
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
    const int64_t n_units = (int64_t)n * n_kv_heads * row_elems / 8;
    launch(dev, work, n_units, n_units);
}

/* A window holds [all ranks][n, columns of the device whose window it is]; a rank's partials of a
 * device's own ranks stay where they are. */
union four_floats {
    uint4 unit;
    float v[4];
};
union one_float {
    float unit, v[1];
};

/* floats: WIDTH of them, a unit of the window. */
template <int WIDTH, class floats> struct reduce_work {
    typedef decltype(floats::unit) unit;
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
    __device__ unit local(int r, uint32_t i, uint32_t width, uint32_t col) const
    {
        return ((const unit *)(partials + r * rank_stride))[(size_t)(i / width) * hidden + col + i % width];
    }
    template <class Window>
    __device__ void give(int, int d, const Window &window, uint32_t first, uint32_t step) const
    {
        const uint32_t width = n_cols(d), col = first_col(d);
        for (int r = 0; r < n_local; r++)
            for (uint32_t i = first; i < n * width; i += step)
                window.put((size_t)(rank0 + r) * n * width + i, local(r, i, width, col));
    }
    template <class Window>
    __device__ void take(int, int me, const Window &window, uint32_t first, uint32_t step) const
    {
        const uint32_t width = n_cols(me), col = first_col(me);
        for (uint32_t i = first; i < n * width; i += step) {
            floats sum;
            for (int r = 0; r < n_ranks; r++) {
                const bool here = r >= rank0 && r < rank0 + n_local;
                floats p;
                p.unit = here ? local(r - rank0, i, width, col) : window.get((size_t)r * n * width + i);
#pragma unroll
                for (int j = 0; j < WIDTH; j++) sum.v[j] = r ? sum.v[j] + p.v[j] : p.v[j];
            }
            halves h;
#pragma unroll
            for (int j = 0; j < WIDTH; j++) h.v[j] = __float2bfloat16_rn(sum.v[j]);
            ((halves *)y)[(size_t)(i / width) * hidden + col + i % width] = h;
        }
    }
};

template <int WIDTH, class floats>
static void reduce(fkv_device *dev, const float *partials, int n_local, int64_t rank_stride, int64_t n,
                   int64_t hidden, const int64_t *cols, bool every_device, bf16 *y)
{
    const cuda_comm *c = dev->comm;
    const int n_devices = dev->world->n_devices;
    reduce_work<WIDTH, floats> work = {};
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
    int64_t widest = every_device ? hidden : 0;
    for (int d = 0; d < n_devices; d++)
        if (!every_device && cols[d + 1] - cols[d] > widest) widest = cols[d + 1] - cols[d];
    launch(dev, work, n * (every_device ? hidden : cols[dev->index + 1] - cols[dev->index]) / WIDTH,
           work.n_ranks * n * widest / WIDTH);
}

void cuda_peer_reduce(fkv_device *dev, const float *partials, int n_local, int64_t rank_stride, int64_t n,
                      int64_t hidden, const int64_t *cols, bool every_device, bf16 *y)
{
    bool by_4 =
        hidden % 4 == 0 && rank_stride % 4 == 0 && ((uintptr_t)partials & 15) == 0 && ((uintptr_t)y & 7) == 0;
    for (int d = 0; d <= dev->world->n_devices; d++) by_4 = by_4 && cols[d] % 4 == 0;
    if (by_4)
        reduce<4, four_floats>(dev, partials, n_local, rank_stride, n, hidden, cols, every_device, y);
    else
        reduce<1, one_float>(dev, partials, n_local, rank_stride, n, hidden, cols, every_device, y);
}
