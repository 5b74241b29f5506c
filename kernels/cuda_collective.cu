/* How GPUs meet: gathers and ordered sums over NCCL, one communicator a world.
 *
 * NCCL only moves bytes here. Its own sums add in an order that depends on where an
 * element lies, so partial sums go to the device that owns their columns, which adds
 * them in rank order, and the sums are gathered. What is not contiguous is packed by
 * kernels into scratch of this file, one segment a device; a device's own segment is
 * packed in its place and the others' arrive beside it. With one device no bytes move.
 *
 * The communicator is non-blocking and every wait looks at the world's abort flag, so
 * that a device which waits for one that failed ends too. Without NCCL (FKV_NCCL
 * undefined) a world has one device.
 */
#include "kernels/cuda_device.h"

#include <atomic>
#include <cstdlib>
#include <pthread.h>
#include <sched.h>
#ifdef FKV_NCCL
#include <nccl.h>
#endif

extern "C" {
#include "runner/base/mem.h"
}

enum { THREADS = 256, MAX_DEVICES = 64 };

struct fkv_world {
    int n_devices;
    std::atomic<bool> aborted;
    pthread_mutex_t lock;
    pthread_cond_t all_in;
    int n_known;              /* devices whose number of ranks is in counts */
    int n_ranks[MAX_DEVICES]; /* of each device */
#ifdef FKV_NCCL
    ncclUniqueId id;
#endif
};

int cuda_n_devices(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) n = 0;
    cudaGetLastError();
#ifndef FKV_NCCL
    if (n > 1) n = 1;
#endif
    return n < MAX_DEVICES ? n : MAX_DEVICES;
}

fkv_status cuda_world_open(int n_devices, fkv_world **world, fkv_err *err)
{
    int n_gpus = 0;
    cudaGetDeviceCount(&n_gpus);
    cudaGetLastError();
    if (n_devices < 1 || n_devices > n_gpus || n_devices > MAX_DEVICES)
        return fkv_fail(err, FKV_E_INPUT, "%d GPUs are asked for; %d are there", n_devices, n_gpus);
#ifndef FKV_NCCL
    if (n_devices > 1)
        return fkv_fail(err, FKV_E_INPUT,
                        "%d GPUs are asked for, but this build is without NCCL and serves one", n_devices);
#endif
    fkv_world *w = (fkv_world *)calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    w->n_devices = n_devices;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->all_in, NULL);
    *world = w;
#ifdef FKV_NCCL
    if (n_devices > 1) {
        const ncclResult_t e = ncclGetUniqueId(&w->id);
        if (e != ncclSuccess) return fkv_fail(err, FKV_E_DEVICE, "NCCL: %s", ncclGetErrorString(e));
    }
#endif
    return FKV_OK;
}

void cuda_world_close(fkv_world *w)
{
    if (!w) return;
    pthread_cond_destroy(&w->all_in);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

void cuda_world_abort(fkv_world *w)
{
    pthread_mutex_lock(&w->lock);
    w->aborted = true;
    pthread_cond_broadcast(&w->all_in);
    pthread_mutex_unlock(&w->lock);
}

bool cuda_world_aborted(fkv_world *w)
{
    return w->aborted;
}

/* y[i] = sum of partials[r][i] in order of r. Memory-bound; a thread an element group. */
template <int WIDTH>
__global__ void __launch_bounds__(THREADS)
    reduce_kernel(const float *partials, int n_ranks, int64_t rank_stride, int64_t n, bf16 *y)
{
    struct alignas(WIDTH == 1 ? 4 : 16) floats {
        float v[WIDTH];
    };
    struct alignas(2 * WIDTH) halves {
        bf16 v[WIDTH];
    };
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * WIDTH;
    if (i >= n) return;
    floats sum = *(const floats *)(partials + i);
    for (int r = 1; r < n_ranks; r++) {
        const floats p = *(const floats *)(partials + r * rank_stride + i);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) sum.v[j] += p.v[j];
    }
    halves h;
#pragma unroll
    for (int j = 0; j < WIDTH; j++) h.v[j] = __float2bfloat16_rn(sum.v[j]);
    *(halves *)(y + i) = h;
}

static unsigned blocks_for(int64_t n, int64_t per_block)
{
    return (unsigned)((n + per_block - 1) / per_block);
}

static void reduce_local(fkv_device *dev, const float *partials, int n_ranks, int64_t n, bf16 *y)
{
    if (n <= 0) return;
    if (n % 4 == 0 && ((uintptr_t)partials & 15) == 0 && ((uintptr_t)y & 7) == 0)
        reduce_kernel<4><<<blocks_for(n, 4 * THREADS), THREADS, 0, dev->stream>>>(partials, n_ranks, n, n, y);
    else
        reduce_kernel<1><<<blocks_for(n, THREADS), THREADS, 0, dev->stream>>>(partials, n_ranks, n, n, y);
    CUDA_LAUNCHED(dev);
}

#ifdef FKV_NCCL

/* What gather_heads needs of one owner array, made at its first use. */
typedef struct heads_list {
    const uint8_t *owner; /* the caller's: the key */
    int n, n_kv_heads;
    int32_t *cells;                 /* device, [n * n_kv_heads]: slot * n_kv_heads + head, by owner */
    int32_t first[MAX_DEVICES + 1]; /* cells of device d: [first[d], first[d + 1]) */
    struct heads_list *next;
} heads_list;

struct cuda_comm {
    ncclComm_t nccl;
    char *packed; /* segments of all devices, one behind the other */
    size_t packed_bytes;
    float *parts; /* [all ranks][n][my columns] */
    size_t parts_bytes;
    float *sending; /* [device][local ranks][n][its columns] */
    size_t sending_bytes;
    heads_list *lists;
    int first_rank[MAX_DEVICES + 1]; /* of each device; known from the first reduce on */
};

static void nccl_fail(fkv_device *dev, ncclResult_t e)
{
    char text[160];
    snprintf(text, sizeof text, "NCCL: %s", ncclGetErrorString(e));
    cuda_fail(dev, text);
}

/* Ends the communicator's waits on this device; the world's other devices do the same. */
static void give_up(fkv_device *dev)
{
    if (dev->comm && dev->comm->nccl) ncclCommAbort(dev->comm->nccl);
    if (dev->comm) dev->comm->nccl = NULL;
    cuda_fail(dev, "another device failed");
}

bool cuda_world_check(fkv_device *dev)
{
    ncclResult_t state = ncclSuccess;
    if (!dev->comm || !dev->comm->nccl) return false;
    if (dev->world->aborted) {
        give_up(dev);
        return false;
    }
    const ncclResult_t e = ncclCommGetAsyncError(dev->comm->nccl, &state);
    if (e == ncclSuccess && (state == ncclSuccess || state == ncclInProgress)) return true;
    nccl_fail(dev, e == ncclSuccess ? state : e);
    give_up(dev);
    return false;
}

/* A non-blocking call has been made: waits until it is enqueued. */
static bool settle(fkv_device *dev, ncclResult_t e)
{
    while (e == ncclInProgress) {
        if (!cuda_world_check(dev)) return false;
        if (ncclCommGetAsyncError(dev->comm->nccl, &e) != ncclSuccess) e = ncclInternalError;
        if (e == ncclInProgress) sched_yield();
    }
    if (e != ncclSuccess) nccl_fail(dev, e);
    return e == ncclSuccess;
}

fkv_status cuda_world_join(fkv_device *dev, fkv_err *err)
{
    if (dev->world->n_devices == 1) return FKV_OK;
    dev->comm = (cuda_comm *)calloc(1, sizeof *dev->comm);
    if (!dev->comm) return fkv_fail_memory(err);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    settle(dev, ncclCommInitRankConfig(&dev->comm->nccl, dev->world->n_devices, dev->world->id, dev->index,
                                       &config));
    return cuda_status(dev, err);
}

void cuda_world_leave(fkv_device *dev)
{
    if (!dev->comm) return;
    /* Other devices may be gone already, so nothing here may wait for them. */
    if (dev->comm->nccl) ncclCommAbort(dev->comm->nccl);
    while (dev->comm->lists) {
        heads_list *l = dev->comm->lists;
        dev->comm->lists = l->next;
        free(l);
    }
    free(dev->comm);
    dev->comm = NULL;
}

static bool fine(ncclResult_t e)
{
    return e == ncclSuccess || e == ncclInProgress;
}

/* Sends this device's segment to all and receives theirs: segment d of buf is
 * [first[d], first[d + 1]) in bytes. */
static void exchange(fkv_device *dev, char *buf, const size_t *first)
{
    cuda_comm *c = dev->comm;
    if (dev->failed || !c->nccl) return;
    ncclResult_t e = ncclGroupStart();
    for (int d = 0; d < dev->world->n_devices && fine(e); d++) {
        if (d == dev->index) continue;
        const size_t mine = first[dev->index + 1] - first[dev->index], theirs = first[d + 1] - first[d];
        if (mine) e = ncclSend(buf + first[dev->index], mine, ncclUint8, d, c->nccl, dev->stream);
        if (fine(e) && theirs) e = ncclRecv(buf + first[d], theirs, ncclUint8, d, c->nccl, dev->stream);
    }
    const ncclResult_t end = ncclGroupEnd();
    settle(dev, fine(e) ? end : e);
}

/* Columns [col, col + n_cols) of buf[n, stride] to or from packed[n, n_cols]. */
template <class T>
__global__ void __launch_bounds__(THREADS)
    cols_kernel(T *buf, int64_t n, int64_t stride, int64_t col, int64_t n_cols, T *packed, bool pack)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n * n_cols) return;
    T *at = buf + i / n_cols * stride + col + i % n_cols;
    if (pack)
        packed[i] = *at;
    else
        *at = packed[i];
}

static void move_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, int64_t col, int64_t n_cols,
                      void *packed, bool pack, int elem_bytes)
{
    if (n * n_cols <= 0) return;
    const unsigned grid = blocks_for(n * n_cols, THREADS);
    if (elem_bytes == 2)
        cols_kernel<<<grid, THREADS, 0, dev->stream>>>((uint16_t *)buf, n, stride, col, n_cols,
                                                       (uint16_t *)packed, pack);
    else
        cols_kernel<<<grid, THREADS, 0, dev->stream>>>((uint32_t *)buf, n, stride, col, n_cols,
                                                       (uint32_t *)packed, pack);
    CUDA_LAUNCHED(dev);
}

void cuda_gather_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols,
                      int elem_bytes)
{
    const int n_devices = dev->world->n_devices;
    if (n_devices == 1 || n <= 0) return;
    cuda_comm *c = dev->comm;
    size_t first[MAX_DEVICES + 1];
    for (int d = 0; d <= n_devices; d++) first[d] = (size_t)(n * cols[d] * elem_bytes);
    if (!cuda_grow(dev, (void **)&c->packed, &c->packed_bytes, first[n_devices])) return;
    move_cols(dev, buf, n, stride, cols[dev->index], cols[dev->index + 1] - cols[dev->index],
              c->packed + first[dev->index], true, elem_bytes);
    exchange(dev, c->packed, first);
    for (int d = 0; d < n_devices; d++)
        if (d != dev->index)
            move_cols(dev, buf, n, stride, cols[d], cols[d + 1] - cols[d], c->packed + first[d], false,
                      elem_bytes);
}

/* The list of an owner array, which must not change while the device is open. */
static const heads_list *list_of(fkv_device *dev, const uint8_t *owner, int n, int n_kv_heads)
{
    const int64_t n_cells = (int64_t)n * n_kv_heads;
    fkv_err err = {};
    void *cells = NULL;
    int32_t at = 0;
    for (heads_list *l = dev->comm->lists; l; l = l->next)
        if (l->owner == owner && l->n == n && l->n_kv_heads == n_kv_heads) return l;
    int32_t *host = (int32_t *)fkv_calloc((size_t)n_cells, sizeof *host);
    heads_list *l = (heads_list *)calloc(1, sizeof *l);
    if (!host || !l || dev->recording || cuda_alloc(dev, (size_t)n_cells * sizeof *host, &cells, &err)) {
        cuda_fail(dev, "no memory for the list of a layer's heads");
        free(host);
        free(l);
        return NULL;
    }
    l->owner = owner;
    l->n = n;
    l->n_kv_heads = n_kv_heads;
    l->cells = (int32_t *)cells;
    for (int d = 0; d < dev->world->n_devices; d++) {
        l->first[d] = at;
        for (int h = 0; h < n_kv_heads; h++)
            for (int s = 0; s < n; s++)
                if (owner[(int64_t)h * n + s] == d) host[at++] = s * n_kv_heads + h;
    }
    l->first[dev->world->n_devices] = at;
    cuda_upload(dev, cells, host, (size_t)at * sizeof *host);
    l->next = dev->comm->lists;
    dev->comm->lists = l;
    free(host);
    return l;
}

/* Rows of out[cells, row_elems] to or from packed, for n_cells cells. A block a cell. */
__global__ void __launch_bounds__(THREADS)
    cells_kernel(bf16 *out, const int32_t *cells, int64_t row_elems, bf16 *packed, bool pack)
{
    bf16 *row = out + cells[blockIdx.x] * row_elems, *p = packed + blockIdx.x * row_elems;
    for (int64_t i = threadIdx.x; i < row_elems; i += THREADS) {
        if (pack)
            p[i] = row[i];
        else
            row[i] = p[i];
    }
}

static void move_cells(fkv_device *dev, bf16 *out, const heads_list *l, int from, int to, int64_t row_elems,
                       bool pack)
{
    if (to <= from) return;
    cells_kernel<<<(unsigned)(to - from), THREADS, 0, dev->stream>>>(
        out, l->cells + from, row_elems, (bf16 *)dev->comm->packed + from * row_elems, pack);
    CUDA_LAUNCHED(dev);
}

void cuda_gather_heads(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                       const uint8_t *owner)
{
    const int n_devices = dev->world->n_devices;
    if (n_devices == 1 || n <= 0) return;
    cuda_comm *c = dev->comm;
    const heads_list *l = list_of(dev, owner, n, n_kv_heads);
    size_t first[MAX_DEVICES + 1];
    if (!l) return;
    for (int d = 0; d <= n_devices; d++) first[d] = (size_t)(l->first[d] * row_elems) * sizeof(bf16);
    if (!cuda_grow(dev, (void **)&c->packed, &c->packed_bytes, first[n_devices])) return;
    move_cells(dev, (bf16 *)out, l, l->first[dev->index], l->first[dev->index + 1], row_elems, true);
    exchange(dev, c->packed, first);
    move_cells(dev, (bf16 *)out, l, 0, l->first[dev->index], row_elems, false);
    move_cells(dev, (bf16 *)out, l, l->first[dev->index + 1], l->first[n_devices], row_elems, false);
}

/* Tells the others how many ranks this device has, once. */
static bool meet(fkv_device *dev, int n_local)
{
    fkv_world *w = dev->world;
    cuda_comm *c = dev->comm;
    if (c->first_rank[w->n_devices]) return true;
    pthread_mutex_lock(&w->lock);
    w->n_ranks[dev->index] = n_local;
    w->n_known++;
    pthread_cond_broadcast(&w->all_in);
    while (w->n_known < w->n_devices && !w->aborted) pthread_cond_wait(&w->all_in, &w->lock);
    for (int d = 0; d < w->n_devices && !w->aborted; d++)
        c->first_rank[d + 1] = c->first_rank[d] + w->n_ranks[d];
    pthread_mutex_unlock(&w->lock);
    if (w->aborted) give_up(dev);
    return !w->aborted;
}

/* All devices' partials of this device's columns into parts, in rank order. cols: of devices. */
static void trade_partials(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                           const int64_t *cols)
{
    cuda_comm *c = dev->comm;
    const int me = dev->index;
    const int64_t mine = cols[me + 1] - cols[me];
    float *own = c->parts + c->first_rank[me] * n * mine;
    for (int d = 0; d < dev->world->n_devices; d++) {
        float *to = d == me ? own : c->sending + n_local * n * cols[d];
        move_cols(dev, (void *)partials, n_local * n, hidden, cols[d], cols[d + 1] - cols[d], to, true, 4);
    }
    if (dev->failed || !c->nccl) return;
    ncclResult_t e = ncclGroupStart();
    for (int d = 0; d < dev->world->n_devices && fine(e); d++) {
        const int64_t theirs = n_local * n * (cols[d + 1] - cols[d]);
        const int64_t ours = (c->first_rank[d + 1] - c->first_rank[d]) * n * mine;
        if (d == me) continue;
        if (theirs)
            e = ncclSend(c->sending + n_local * n * cols[d], (size_t)theirs, ncclFloat32, d, c->nccl,
                         dev->stream);
        if (fine(e) && ours)
            e = ncclRecv(c->parts + c->first_rank[d] * n * mine, (size_t)ours, ncclFloat32, d, c->nccl,
                         dev->stream);
    }
    const ncclResult_t end = ncclGroupEnd();
    settle(dev, fine(e) ? end : e);
}

static void reduce_all(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                       bf16 *y)
{
    cuda_comm *c = dev->comm;
    const int n_devices = dev->world->n_devices, me = dev->index;
    int64_t cols[MAX_DEVICES + 1];
    if (n <= 0 || !meet(dev, n_local)) return;
    for (int d = 0; d <= n_devices; d++) cols[d] = hidden * d / n_devices;
    const int64_t mine = cols[me + 1] - cols[me];
    const size_t bytes = (size_t)(n * hidden) * sizeof(bf16);
    if (!cuda_grow(dev, (void **)&c->sending, &c->sending_bytes,
                   (size_t)(n_local * n * hidden) * sizeof(float)) ||
        !cuda_grow(dev, (void **)&c->parts, &c->parts_bytes,
                   (size_t)(c->first_rank[n_devices] * n * mine) * sizeof(float)) ||
        !cuda_grow(dev, (void **)&c->packed, &c->packed_bytes, bytes))
        return;
    trade_partials(dev, partials, n_local, n, hidden, cols);
    size_t first[MAX_DEVICES + 1];
    for (int d = 0; d <= n_devices; d++) first[d] = (size_t)(n * cols[d]) * sizeof(bf16);
    reduce_local(dev, c->parts, c->first_rank[n_devices], n * mine, (bf16 *)(c->packed + first[me]));
    exchange(dev, c->packed, first);
    for (int d = 0; d < n_devices; d++)
        move_cols(dev, y, n, hidden, cols[d], cols[d + 1] - cols[d], c->packed + first[d], false, 2);
}

#else /* one device alone */

struct cuda_comm {
    int unused;
};

bool cuda_world_check(fkv_device *dev)
{
    return !dev->world->aborted;
}

fkv_status cuda_world_join(fkv_device *dev, fkv_err *err)
{
    (void)dev;
    (void)err;
    return FKV_OK;
}

void cuda_world_leave(fkv_device *dev)
{
    (void)dev;
}

void cuda_gather_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols,
                      int elem_bytes)
{
    (void)dev, (void)buf, (void)n, (void)stride, (void)cols, (void)elem_bytes;
}

void cuda_gather_heads(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                       const uint8_t *owner)
{
    (void)dev, (void)out, (void)n, (void)n_kv_heads, (void)row_elems, (void)owner;
}

static void reduce_all(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                       bf16 *y)
{
    (void)dev, (void)partials, (void)n_local, (void)n, (void)hidden, (void)y;
}

#endif

void cuda_reduce_ranks(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                       void *y)
{
    if (dev->world->n_devices == 1)
        reduce_local(dev, partials, n_local, n * hidden, (bf16 *)y);
    else
        reduce_all(dev, partials, n_local, n, hidden, (bf16 *)y);
}
