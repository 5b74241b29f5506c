/* The collectives, in pieces, by one of two ways. See cuda_collective.h.
 *
 * Sums are ours, not a library's, whose order depends on where an element lies: the
 * device that owns a column (or every device) adds the ranks' partial sums of it in
 * rank order. With one device no bytes move.
 */
#include "kernels/cuda_collective.h"

#include <cstdlib>

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
    const size_t bytes = 2 * (size_t)(COLLECTIVE_WINDOW_BYTES + COLLECTIVE_LINES_BYTES);
    fkv_status st = cuda_alloc(dev, bytes, &windows, err);
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

/* ---- beside the stream ---- */

/* The stream aside goes first where both have blocks to start: there are few of them, and peers wait. */
static bool make_aside(fkv_device *dev)
{
    int least = 0, greatest = 0;
    if (dev->aside) return true;
    if (!CUDA(dev, cudaDeviceGetStreamPriorityRange(&least, &greatest)) ||
        !CUDA(dev, cudaEventCreateWithFlags(&dev->reached, cudaEventDisableTiming)))
        return false;
    for (int i = 0; i < FKV_ASIDES; i++)
        if (!CUDA(dev, cudaEventCreateWithFlags(&dev->asides[i], cudaEventDisableTiming))) return false;
    return CUDA(dev, cudaStreamCreateWithPriority(&dev->aside, cudaStreamNonBlocking, greatest));
}

void cuda_aside_begin(fkv_device *dev)
{
    if (dev->world->n_devices == 1 || dev->failed || !make_aside(dev)) return;
    CUDA(dev, cudaEventRecord(dev->reached, dev->stream));
    CUDA(dev, cudaStreamWaitEvent(dev->aside, dev->reached, 0));
    dev->behind = dev->stream;
    dev->stream = dev->aside;
}

int64_t cuda_aside_end(fkv_device *dev)
{
    if (dev->behind) {
        CUDA(dev, cudaEventRecord(dev->asides[dev->n_asides % FKV_ASIDES], dev->aside));
        dev->stream = dev->behind;
        dev->behind = NULL;
    }
    return ++dev->n_asides;
}

void cuda_aside_wait(fkv_device *dev, int64_t ticket)
{
    if (dev->aside) CUDA(dev, cudaStreamWaitEvent(dev->stream, dev->asides[(ticket - 1) % FKV_ASIDES], 0));
}

void cuda_aside_close(fkv_device *dev)
{
    if (dev->aside) cudaStreamSynchronize(dev->aside);
    if (dev->reached) cudaEventDestroy(dev->reached);
    for (int i = 0; i < FKV_ASIDES; i++)
        if (dev->asides[i]) cudaEventDestroy(dev->asides[i]);
    if (dev->aside) cudaStreamDestroy(dev->aside);
    cuda_copies_close(dev);
}

/* ---- the collectives, in pieces of rows that fit a window ---- */

/* Beside other work, where peers are in reach. */
static bool by_copies(const fkv_device *dev)
{
    return dev->behind && dev->world->by_peers;
}

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
    if (by_copies(dev)) {
        cuda_copies_gather_cols(dev, (char *)buf, n, stride, cols, elem_bytes);
        return;
    }
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
    if (!by_copies(dev) && sums_everywhere(dev, n, hidden)) {
        cuda_peer_reduce(dev, partials, n_local, n * hidden, n, hidden, cols, true, y);
        return;
    }
    const int64_t ranks = dev->comm->first_rank[n_devices],
                  widest = (hidden + n_devices - 1) / n_devices + unit;
    int most_local = 0; /* every device takes the same steps */
    for (int d = 0; d < n_devices; d++)
        if (dev->world->n_ranks[d] > most_local) most_local = dev->world->n_ranks[d];
    const int64_t in = ranks * widest, out = most_local * hidden; /* elements of a row that come and go */
    const int64_t step = by_copies(dev) ? 2 * rows_of_window(dev, in * (int64_t)sizeof(float))
                                        : rows_of_window(dev, (in > out ? in : out) * (int64_t)sizeof(float));
    for (int64_t i = 0; i < n && !dev->failed; i += step) {
        const int64_t m = n - i < step ? n - i : step;
        const float *piece = partials + i * hidden;
        if (by_copies(dev)) {
            cuda_copies_reduce(dev, piece, n_local, n * hidden, m, hidden, cols, y + i * hidden);
            continue;
        }
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
