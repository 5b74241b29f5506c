/* Collectives over NCCL, for GPUs that can't reach each other's memory: see cuda_collective.h.
 *
 * NCCL only moves bytes. What is not contiguous is packed by kernels, one segment a
 * device; a device's own segment is packed in its place and the others' arrive beside
 * it. The communicator is non-blocking, so that every wait can end: also the one for room
 * in a full queue of launches, so not many exchanges are enqueued ahead.
 */
#include "kernels/cuda_collective.h"

#ifdef FKV_NCCL

#include <cstring>
#include <sched.h>

/* A non-blocking call has been made: waits until it is enqueued. */
static bool settle(fkv_device *dev, ncclResult_t e)
{
    while (e == ncclInProgress) {
        if (!cuda_world_check(dev)) return false;
        if (ncclCommGetAsyncError(dev->comm->nccl, &e) != ncclSuccess) e = ncclInternalError;
        if (e == ncclInProgress) sched_yield();
    }
    if (e != ncclSuccess) cuda_nccl_fail(dev, e);
    return e == ncclSuccess;
}

fkv_status cuda_nccl_join(fkv_device *dev, fkv_err *err)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    settle(dev, ncclCommInitRankConfig(&dev->comm->nccl, dev->world->n_devices, dev->world->id, dev->index,
                                       &config));
    return cuda_status(dev, err);
}

static bool fine(ncclResult_t e)
{
    return e == ncclSuccess || e == ncclInProgress;
}

/* Before an exchange: waits, looking for an abort, until the one some places before has ended. */
static bool wait_behind(fkv_device *dev)
{
    cuda_comm *c = dev->comm;
    if (dev->failed || !c->nccl) return false;
    if (dev->recording || c->n_exchanges < COLLECTIVE_AHEAD) return true;
    for (;;) {
        const cudaError_t e = cudaEventQuery(c->behind[c->n_exchanges % COLLECTIVE_AHEAD]);
        if (e != cudaErrorNotReady) return CUDA(dev, e);
        if (!cuda_world_check(dev)) return false;
        sched_yield();
    }
}

/* After an exchange. */
static void remember(fkv_device *dev)
{
    cuda_comm *c = dev->comm;
    if (dev->recording || dev->failed || !c->nccl) return;
    cudaEvent_t *e = &c->behind[c->n_exchanges++ % COLLECTIVE_AHEAD];
    if (*e || CUDA(dev, cudaEventCreateWithFlags(e, cudaEventDisableTiming)))
        CUDA(dev, cudaEventRecord(*e, dev->stream));
}

/* Sends segment d of send to device d and receives its segment into receive; byte bounds of
 * device d's: [first[d], first[d + 1]). */
static void trade(fkv_device *dev, const char *send, const size_t *send_first, char *receive,
                  const size_t *receive_first)
{
    cuda_comm *c = dev->comm;
    if (!wait_behind(dev)) return;
    ncclResult_t e = ncclGroupStart();
    for (int d = 0; d < dev->world->n_devices && fine(e); d++) {
        const size_t out = send_first[d + 1] - send_first[d], in = receive_first[d + 1] - receive_first[d];
        if (d == dev->index) continue;
        if (out) e = ncclSend(send + send_first[d], out, ncclUint8, d, c->nccl, dev->stream);
        if (fine(e) && in) e = ncclRecv(receive + receive_first[d], in, ncclUint8, d, c->nccl, dev->stream);
    }
    const ncclResult_t end = ncclGroupEnd();
    if (settle(dev, fine(e) ? end : e)) remember(dev);
}

/* Sends this device's segment to all and receives theirs. */
static void exchange(fkv_device *dev, char *buf, const size_t *first)
{
    cuda_comm *c = dev->comm;
    const size_t mine = first[dev->index + 1] - first[dev->index];
    if (!wait_behind(dev)) return;
    ncclResult_t e = ncclGroupStart();
    for (int d = 0; d < dev->world->n_devices && fine(e); d++) {
        const size_t theirs = first[d + 1] - first[d];
        if (d == dev->index) continue;
        if (mine) e = ncclSend(buf + first[dev->index], mine, ncclUint8, d, c->nccl, dev->stream);
        if (fine(e) && theirs) e = ncclRecv(buf + first[d], theirs, ncclUint8, d, c->nccl, dev->stream);
    }
    const ncclResult_t end = ncclGroupEnd();
    if (settle(dev, fine(e) ? end : e)) remember(dev);
}

/* Columns [col, col + n_cols) of buf[n, stride] to or from packed[n, n_cols]. */
template <class T>
__global__ void __launch_bounds__(COLLECTIVE_THREADS)
    cols_kernel(T *buf, int64_t n, int64_t stride, int64_t col, int64_t n_cols, T *packed, bool pack)
{
    const int64_t i = (int64_t)blockIdx.x * COLLECTIVE_THREADS + threadIdx.x;
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
    const unsigned grid = blocks_for(n * n_cols, COLLECTIVE_THREADS);
    if (elem_bytes == 2)
        cols_kernel<<<grid, COLLECTIVE_THREADS, 0, dev->stream>>>((uint16_t *)buf, n, stride, col, n_cols,
                                                                  (uint16_t *)packed, pack);
    else
        cols_kernel<<<grid, COLLECTIVE_THREADS, 0, dev->stream>>>((uint32_t *)buf, n, stride, col, n_cols,
                                                                  (uint32_t *)packed, pack);
    CUDA_LAUNCHED(dev);
}

void cuda_nccl_gather_cols(fkv_device *dev, char *buf, int64_t n, int64_t stride, const int64_t *cols,
                           int elem_bytes)
{
    const int n_devices = dev->world->n_devices, me = dev->index;
    char *packed = dev->comm->windows;
    size_t first[COLLECTIVE_MAX_DEVICES + 1];
    for (int d = 0; d <= n_devices; d++) first[d] = (size_t)(n * cols[d] * elem_bytes);
    move_cols(dev, buf, n, stride, cols[me], cols[me + 1] - cols[me], packed + first[me], true, elem_bytes);
    exchange(dev, packed, first);
    for (int d = 0; d < n_devices; d++)
        if (d != me)
            move_cols(dev, buf, n, stride, cols[d], cols[d + 1] - cols[d], packed + first[d], false,
                      elem_bytes);
}

/* The cells of one owner, packed in the order of its array, to or from out[cell, row_elems].
 * A block a place of owner[n_heads * n]; it counts the owner's places before its own. */
__global__ void __launch_bounds__(COLLECTIVE_THREADS)
    cells_kernel(bf16 *out, const uint8_t *owner, int n, int n_heads, int64_t row_elems, int who,
                 bf16 *packed, bool pack)
{
    const int place = (int)blockIdx.x;
    if (owner[place] != who) return;
    int before = 0;
    for (int base = 0; base < place; base += COLLECTIVE_THREADS) {
        const int i = base + (int)threadIdx.x;
        before += __syncthreads_count(i < place && owner[i] == who);
    }
    bf16 *row = out + ((int64_t)(place % n) * n_heads + place / n) * row_elems,
         *p = packed + before * row_elems;
    for (int64_t i = threadIdx.x; i < row_elems; i += COLLECTIVE_THREADS) {
        if (pack)
            p[i] = row[i];
        else
            row[i] = p[i];
    }
}

void cuda_nccl_gather_heads(fkv_device *dev, bf16 *out, int n, int n_kv_heads, int64_t row_elems,
                            const uint8_t *owner, const uint8_t *dev_owner)
{
    const int n_devices = dev->world->n_devices, n_cells = n * n_kv_heads;
    char *packed = dev->comm->windows;
    size_t cells[COLLECTIVE_MAX_DEVICES] = {}, first[COLLECTIVE_MAX_DEVICES + 1] = {};
    for (int i = 0; i < n_cells; i++) cells[owner[i]]++;
    for (int d = 0; d < n_devices; d++) first[d + 1] = first[d] + cells[d] * (size_t)row_elems * sizeof(bf16);
    for (int turn = 0; turn < 2; turn++) {
        for (int d = 0; d < n_devices; d++) {
            if (!cells[d] || (turn == 0) != (d == dev->index)) continue;
            cells_kernel<<<(unsigned)n_cells, COLLECTIVE_THREADS, 0, dev->stream>>>(
                out, dev_owner, n, n_kv_heads, row_elems, d, (bf16 *)(packed + first[d]), turn == 0);
            CUDA_LAUNCHED(dev);
        }
        if (turn == 0) exchange(dev, packed, first);
    }
}

/* The first half of the windows holds what is sent, [device][local ranks][n, its columns]; the
 * second what is summed, [all ranks][n, this device's columns]. */
void cuda_nccl_reduce(fkv_device *dev, const float *partials, int n_local, int64_t rank_stride, int64_t n,
                      int64_t hidden, const int64_t *cols, bf16 *y)
{
    const cuda_comm *c = dev->comm;
    const int n_devices = dev->world->n_devices, me = dev->index;
    const int64_t mine = cols[me + 1] - cols[me];
    float *send = (float *)c->windows, *parts = (float *)(c->windows + COLLECTIVE_WINDOW_BYTES);
    size_t send_first[COLLECTIVE_MAX_DEVICES + 1], receive_first[COLLECTIVE_MAX_DEVICES + 1];
    for (int d = 0; d <= n_devices; d++) {
        send_first[d] = (size_t)(n_local * n * cols[d]) * sizeof(float);
        receive_first[d] = (size_t)(c->first_rank[d] * n * mine) * sizeof(float);
    }
    for (int d = 0; d < n_devices; d++) {
        const int64_t width = cols[d + 1] - cols[d];
        for (int r = 0; r < n_local; r++) {
            float *to = d == me ? parts + (c->first_rank[me] + r) * n * mine
                                : send + n_local * n * cols[d] + r * n * width;
            move_cols(dev, (void *)(partials + r * rank_stride), n, hidden, cols[d], width, to, true, 4);
        }
    }
    trade(dev, (const char *)send, send_first, (char *)parts, receive_first);
    cuda_reduce_local(dev, parts, c->first_rank[n_devices], n, mine, hidden, y + cols[me]);
}

#endif
