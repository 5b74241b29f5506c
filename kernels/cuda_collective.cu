/* How GPUs meet: the world, and the collectives in pieces. See cuda_collective.h.
 *
 * Sums are ours, not a library's, whose order depends on where an element lies: the
 * device that owns a column (or every device) adds the ranks' partial sums of it in
 * rank order. With one device no bytes move.
 *
 * Every wait looks at the world's abort flag, on the host and in waiting kernels, so that
 * a device which waits for one that failed ends too.
 *
 * Environment, for tests and measurements: FAIRKV_COLLECTIVES=nccl moves bytes through NCCL
 * where peers could; FAIRKV_DEVICES_PER_GPU=n puts up to n devices on a GPU.
 */
#include "kernels/cuda_collective.h"

#include <cstdlib>
#include <cstring>

extern "C" {
#include "runner/base/mem.h"
}

static int devices_per_gpu(void)
{
    const char *text = getenv("FAIRKV_DEVICES_PER_GPU");
    const int n = text ? atoi(text) : 1;
    return n < 1 ? 1 : n > COLLECTIVE_MAX_DEVICES ? COLLECTIVE_MAX_DEVICES : n;
}

int cuda_count_gpus(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) n = 0;
    cudaGetLastError();
    return n;
}

int cuda_group_gpu(const fkv_group *group, int i)
{
    const int n = cuda_count_gpus();
    return n ? (group->first_device + i) % n : 0;
}

bool cuda_all_peers(const fkv_group *group)
{
    for (int i = 0; i < group->n_devices; i++) {
        for (int j = 0; j < group->n_devices; j++) {
            const int a = cuda_group_gpu(group, i), b = cuda_group_gpu(group, j);
            int can = 0;
            if (a != b && (cudaDeviceCanAccessPeer(&can, a, b) != cudaSuccess || !can)) {
                cudaGetLastError();
                return false;
            }
        }
    }
    return true;
}

int cuda_n_devices(void)
{
    int n = cuda_count_gpus();
#ifndef FKV_NCCL
    const fkv_group all = {n, 0, FKV_WAY_ANY};
    if (!cuda_all_peers(&all)) n = 1;
#endif
    n *= devices_per_gpu();
    return n < COLLECTIVE_MAX_DEVICES ? n : COLLECTIVE_MAX_DEVICES;
}

fkv_status cuda_check_group(const fkv_group *group, fkv_err *err)
{
    const int n = group->n_devices, most = cuda_count_gpus() * devices_per_gpu();
    if (n < 1 || group->first_device < 0 || group->first_device > most - n || n > COLLECTIVE_MAX_DEVICES)
        return fkv_fail(err, FKV_E_INPUT, "%d GPUs are asked for; %d are there", group->first_device + n,
                        most);
    if (n == 1) return FKV_OK;
#ifdef FKV_NCCL
    const bool only_peers = group->way == FKV_WAY_PEERS;
#else
    const bool only_peers = true;
    if (group->way == FKV_WAY_NCCL)
        return fkv_fail(err, FKV_E_INPUT, "NCCL is asked for, which this build is without");
#endif
    if (only_peers && !cuda_all_peers(group))
        return fkv_fail(err, FKV_E_INPUT,
                        "%d GPUs that can't reach each other's memory need NCCL, which this build is without",
                        n);
    return FKV_OK;
}

/* How many different GPUs the group has. */
static int count_of(const fkv_group *group)
{
    const int n = cuda_count_gpus();
    return group->n_devices < n ? group->n_devices : n;
}

static bool takes_peers(const fkv_world *w, const fkv_group *group)
{
    const char *way = getenv("FAIRKV_COLLECTIVES");
    if (w->n_gpus < w->n_devices || group->way == FKV_WAY_PEERS) return w->peers;
    return w->peers && group->way == FKV_WAY_ANY && (!way || strcmp(way, "nccl") != 0);
}

static fkv_status meet_by(fkv_world *w, const fkv_group *group, fkv_err *err)
{
    w->peers = cuda_all_peers(group);
    w->by_peers = takes_peers(w, group);
    if (cudaHostAlloc((void **)&w->stop, sizeof *w->stop, cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError();
        return fkv_fail(err, FKV_E_DEVICE, "pinned memory can't be had");
    }
    *w->stop = 0;
#ifdef FKV_NCCL
    const ncclResult_t e = w->by_peers ? ncclSuccess : ncclGetUniqueId(&w->id);
    if (e != ncclSuccess) return fkv_fail(err, FKV_E_DEVICE, "NCCL: %s", ncclGetErrorString(e));
#else
    w->by_peers = true; /* there is no other way: cuda_check_group */
#endif
    return FKV_OK;
}

fkv_status cuda_world_open(const fkv_group *group, fkv_world **world, fkv_err *err)
{
    *world = NULL;
    fkv_status st = cuda_check_group(group, err);
    if (st) return st;
    fkv_world *w = (fkv_world *)calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    w->group = *group;
    w->n_devices = group->n_devices;
    w->n_gpus = count_of(group);
    for (int i = 0; i < w->n_devices; i++) w->gpus[i] = cuda_group_gpu(group, i);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->all_in, NULL);
    if (w->n_devices > 1) st = meet_by(w, group, err);
    if (st)
        cuda_world_close(w);
    else
        *world = w;
    return st;
}

void cuda_world_close(fkv_world *w)
{
    if (!w) return;
    if (w->stop) cudaFreeHost(w->stop);
    pthread_cond_destroy(&w->all_in);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

void cuda_world_abort(fkv_world *w)
{
    pthread_mutex_lock(&w->lock);
    w->aborted = true;
    if (w->stop) __atomic_store_n(w->stop, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&w->all_in);
    pthread_mutex_unlock(&w->lock);
}

bool cuda_world_aborted(fkv_world *w)
{
    return w->aborted;
}

bool cuda_world_peers(const fkv_world *w)
{
    return w->n_devices == 1 || w->peers;
}

const fkv_group *cuda_world_group(const fkv_world *w)
{
    return &w->group;
}

int cuda_world_gpu(const fkv_world *w, int index)
{
    return w->gpus[index];
}

int cuda_world_devices_per_gpu(const fkv_world *w)
{
    return (w->n_devices + w->n_gpus - 1) / w->n_gpus;
}

static void give_up(fkv_device *dev)
{
#ifdef FKV_NCCL
    cuda_nccl_abort(dev);
#endif
    cuda_fail(dev, "another device failed");
}

bool cuda_world_check(fkv_device *dev)
{
    if (dev->world->aborted) {
        give_up(dev);
        return false;
    }
#ifdef FKV_NCCL
    if (!dev->world->by_peers && !cuda_nccl_check(dev)) {
        give_up(dev);
        return false;
    }
#endif
    return true;
}

bool cuda_world_meet(fkv_device *dev)
{
    fkv_world *w = dev->world;
    if (w->n_devices == 1) return true;
    pthread_mutex_lock(&w->lock);
    const uint64_t round = w->round;
    if (++w->n_in == w->n_devices) {
        w->n_in = 0;
        w->round++;
        pthread_cond_broadcast(&w->all_in);
    } else {
        while (w->round == round && !w->aborted) pthread_cond_wait(&w->all_in, &w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    if (w->aborted) give_up(dev);
    return !w->aborted;
}

/* This GPU's kernels may use the other GPUs' memory. */
static void reach_peers(fkv_device *dev)
{
    for (int i = 0; i < dev->world->n_devices; i++) {
        const int gpu = dev->world->gpus[i];
        if (gpu == dev->gpu) continue;
        const cudaError_t e = cudaDeviceEnablePeerAccess(gpu, 0);
        if (e == cudaErrorPeerAccessAlreadyEnabled)
            cudaGetLastError();
        else
            CUDA(dev, e);
    }
}

fkv_status cuda_world_join(fkv_device *dev, fkv_err *err)
{
    fkv_world *w = dev->world;
    void *windows = NULL, *meeting = NULL;
    if (w->n_devices == 1) return FKV_OK;
    dev->comm = (cuda_comm *)calloc(1, sizeof *dev->comm);
    if (!dev->comm) return fkv_fail_memory(err);
    fkv_status st = cuda_alloc(dev, 2 * (size_t)COLLECTIVE_WINDOW_BYTES, &windows, err);
    if (!st) st = cuda_alloc(dev, sizeof(cuda_meeting), &meeting, err);
    if (st) return st;
    dev->comm->windows = w->windows[dev->index] = (char *)windows;
    dev->comm->meeting = w->meetings[dev->index] = (cuda_meeting *)meeting;
    if (w->peers) reach_peers(dev);
    cuda_stage(dev, 0); /* pinning may wait for kernels, which may wait for this device later */
    CUDA(dev, cudaStreamSynchronize(dev->stream)); /* the meeting is zeroed before a peer writes there */
    if (dev->failed || !cuda_world_meet(dev)) return cuda_status(dev, err);
#ifdef FKV_NCCL
    if (!w->by_peers) return cuda_nccl_join(dev, err);
#endif
    return FKV_OK;
}

void cuda_world_leave(fkv_device *dev)
{
    if (!dev->comm) return;
#ifdef FKV_NCCL
    cuda_nccl_abort(dev); /* other devices may be gone already: nothing here may wait for them */
#endif
    free(dev->comm);
    dev->comm = NULL;
}

/* ---- sums of one device's ranks ---- */

/* Memory-bound; a thread a group of WIDTH columns. */
template <int WIDTH>
__global__ void __launch_bounds__(COLLECTIVE_THREADS)
    reduce_kernel(const float *partials, int n_ranks, int64_t n, int64_t n_cols, int64_t stride, bf16 *y)
{
    struct alignas(WIDTH == 1 ? 4 : 16) floats {
        float v[WIDTH];
    };
    struct alignas(2 * WIDTH) halves {
        bf16 v[WIDTH];
    };
    const int64_t i = ((int64_t)blockIdx.x * COLLECTIVE_THREADS + threadIdx.x) * WIDTH, all = n * n_cols;
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
    const unsigned grid = blocks_for(n * n_cols, (by_4 ? 4 : 1) * COLLECTIVE_THREADS);
    if (by_4)
        reduce_kernel<4>
            <<<grid, COLLECTIVE_THREADS, 0, dev->stream>>>(partials, n_ranks, n, n_cols, stride, y);
    else
        reduce_kernel<1>
            <<<grid, COLLECTIVE_THREADS, 0, dev->stream>>>(partials, n_ranks, n, n_cols, stride, y);
    CUDA_LAUNCHED(dev);
}

/* ---- the collectives, in pieces of rows that fit a window ---- */

static int64_t rows_of_window(fkv_device *dev, int64_t row_bytes)
{
    const int64_t rows = row_bytes > 0 ? COLLECTIVE_WINDOW_BYTES / row_bytes : 1;
    if (rows < 1) cuda_fail(dev, "a row is larger than a collective's window");
    return rows;
}

void cuda_gather_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols,
                      int elem_bytes)
{
    if (dev->world->n_devices == 1) return;
    const int64_t step = rows_of_window(dev, cols[dev->world->n_devices] * elem_bytes);
    for (int64_t i = 0; i < n && !dev->failed; i += step) {
        char *piece = (char *)buf + i * stride * elem_bytes;
        const int64_t m = n - i < step ? n - i : step;
#ifdef FKV_NCCL
        if (!dev->world->by_peers) {
            cuda_nccl_gather_cols(dev, piece, m, stride, cols, elem_bytes);
            continue;
        }
#endif
        cuda_peer_gather_cols(dev, piece, m, stride, cols, elem_bytes);
    }
}

void cuda_gather_heads(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                       const uint8_t *owner, const uint8_t *dev_owner)
{
    if (dev->world->n_devices == 1 || dev->failed) return;
    if (rows_of_window(dev, n_kv_heads * row_elems * (int64_t)sizeof(bf16)) < n) {
        cuda_fail(dev, "a step's attention is larger than a collective's window");
        return;
    }
#ifdef FKV_NCCL
    if (!dev->world->by_peers) {
        cuda_nccl_gather_heads(dev, (bf16 *)out, n, n_kv_heads, row_elems, owner, dev_owner);
        return;
    }
#endif
    (void)owner;
    cuda_peer_gather_heads(dev, (bf16 *)out, n, n_kv_heads, row_elems, dev_owner);
}

/* Tells the others how many ranks this device has, once. */
static bool count_ranks(fkv_device *dev, int n_local)
{
    fkv_world *w = dev->world;
    cuda_comm *c = dev->comm;
    if (c->first_rank[w->n_devices]) return true;
    w->n_ranks[dev->index] = n_local;
    if (!cuda_world_meet(dev)) return false;
    for (int d = 0; d < w->n_devices; d++) c->first_rank[d + 1] = c->first_rank[d] + w->n_ranks[d];
    return true;
}

/* Of what every device sums whole, the others' partials cross to all; else a part of them
 * crosses to each, and the sums are gathered. The first meets once and moves more bytes:
 * worth it as long as they take less time than a second meeting. */
static bool sums_everywhere(const fkv_device *dev, int64_t n, int64_t hidden)
{
    const int64_t most = 4 << 20;
    const cuda_comm *c = dev->comm;
    const int64_t ranks = c->first_rank[dev->world->n_devices];
    return dev->world->by_peers && ranks * n * hidden * (int64_t)sizeof(float) <= most;
}

static void reduce_all(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                       bf16 *y)
{
    const int n_devices = dev->world->n_devices;
    int64_t cols[COLLECTIVE_MAX_DEVICES + 1];
    if (dev->failed || !count_ranks(dev, n_local)) return;
    const int64_t unit = hidden % 8 ? 1 : 8; /* so that threads can take several columns at once */
    for (int d = 0; d <= n_devices; d++) cols[d] = hidden / unit * d / n_devices * unit;
    if (sums_everywhere(dev, n, hidden)) {
        cuda_peer_reduce(dev, partials, n_local, n * hidden, n, hidden, cols, true, y);
        return;
    }
    const int64_t ranks = dev->comm->first_rank[n_devices],
                  widest = (hidden + n_devices - 1) / n_devices + unit;
    int most_local = 0; /* every device takes the same steps */
    for (int d = 0; d < n_devices; d++)
        if (dev->world->n_ranks[d] > most_local) most_local = dev->world->n_ranks[d];
    const int64_t in = ranks * widest, out = most_local * hidden; /* elements of a row that come and go */
    const int64_t step = rows_of_window(dev, (in > out ? in : out) * (int64_t)sizeof(float));
    for (int64_t i = 0; i < n && !dev->failed; i += step) {
        const int64_t m = n - i < step ? n - i : step;
        const float *piece = partials + i * hidden;
#ifdef FKV_NCCL
        if (!dev->world->by_peers) {
            cuda_nccl_reduce(dev, piece, n_local, n * hidden, m, hidden, cols, y + i * hidden);
            continue;
        }
#endif
        cuda_peer_reduce(dev, piece, n_local, n * hidden, m, hidden, cols, false, y + i * hidden);
    }
    cuda_gather_cols(dev, y, n, hidden, cols, sizeof(bf16));
}

void cuda_reduce_ranks(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                       void *y)
{
    if (dev->world->n_devices == 1)
        cuda_reduce_local(dev, partials, n_local, 1, n * hidden, n * hidden, (bf16 *)y);
    else if (n > 0)
        reduce_all(dev, partials, n_local, n, hidden, (bf16 *)y);
}
