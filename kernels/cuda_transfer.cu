/* Copies between host and GPU, and the waits for them.
 *
 * One ring of pinned memory serves every copy: an upload is put there and copied by
 * the stream, a download waits there until sync, or the wait for a ticket behind it,
 * hands it out. So the host's memory is free at once after upload and need not be
 * pinned, and nothing but a full ring waits. Larger copies go in pieces.
 */
#include "kernels/cuda_device.h"

#include <cstring>
#include <sched.h>

static const size_t piece_bytes = CUDA_STAGING_BYTES / 4;

/* Waits for the stream, or an event on it; with several devices it also watches for an abort,
 * since a collective whose partner is gone never ends. */
static bool wait_for(fkv_device *dev, cudaEvent_t event)
{
    if (!dev->comm)
        return CUDA(dev, event ? cudaEventSynchronize(event) : cudaStreamSynchronize(dev->stream));
    for (;;) {
        const cudaError_t e = event ? cudaEventQuery(event) : cudaStreamQuery(dev->stream);
        if (e != cudaErrorNotReady) return CUDA(dev, e);
        if (!cuda_world_check(dev)) {
            /* what is enqueued ends soon now, and writes into other devices' memory until then */
            cudaStreamSynchronize(dev->stream);
            cudaGetLastError();
            return false;
        }
        sched_yield();
    }
}

/* Hands out the downloads before n_pending (ok: they arrived) and frees the ring up to staged. */
static void hand_out(fkv_device *dev, bool ok, uint64_t n_pending, uint64_t staged)
{
    for (; dev->n_handed < n_pending; dev->n_handed++) {
        const cuda_pending *p = &dev->pending[dev->n_handed % CUDA_PENDING];
        if (ok) memcpy(p->host, p->staged, p->bytes);
    }
    dev->unstaged = staged;
}

bool cuda_flush(fkv_device *dev)
{
    if (dev->recording) cuda_fail(dev, "a copy or sync while a step is recorded");
    const bool ok = !dev->recording && wait_for(dev, NULL);
    hand_out(dev, ok, dev->n_pending, dev->staged);
    dev->n_waited = dev->n_posted;
    return ok;
}

/* Everything up to the ticket is done. */
static bool reach(fkv_device *dev, int64_t ticket)
{
    if (ticket <= dev->n_waited) return true;
    const cuda_ticket *t = &dev->tickets[ticket % FKV_TICKETS];
    const bool ok = wait_for(dev, t->done);
    hand_out(dev, ok, t->n_pending, t->staged);
    dev->n_waited = ticket;
    return ok;
}

int64_t cuda_post(fkv_device *dev)
{
    cuda_fail_if_told(dev);
    if (dev->n_posted - dev->n_waited == FKV_TICKETS) reach(dev, dev->n_waited + 1);
    cuda_ticket *t = &dev->tickets[++dev->n_posted % FKV_TICKETS];
    if (t->done || CUDA(dev, cudaEventCreate(&t->done))) CUDA(dev, cudaEventRecord(t->done, dev->stream));
    t->staged = dev->staged;
    t->n_pending = dev->n_pending;
    return dev->n_posted;
}

double cuda_ticket_seconds(fkv_device *dev, int64_t ticket)
{
    float ms = 0;
    if (ticket < 2 || dev->failed) return 0;
    const cuda_ticket *from = &dev->tickets[(ticket - 1) % FKV_TICKETS],
                      *to = &dev->tickets[ticket % FKV_TICKETS];
    return CUDA(dev, cudaEventElapsedTime(&ms, from->done, to->done)) ? (double)ms * 1e-3 : 0;
}

/* Waits for the oldest work that the ring or the list of downloads may hold. */
static void make_room(fkv_device *dev)
{
    if (dev->n_waited < dev->n_posted)
        reach(dev, dev->n_waited + 1);
    else
        cuda_flush(dev);
}

char *cuda_stage(fkv_device *dev, size_t bytes)
{
    const uint64_t padded = (bytes + 255) & ~(size_t)255, size = CUDA_STAGING_BYTES;
    /* Pinning takes a while: at the first copy, not for a device that is only looked at. */
    if (!dev->staging && !CUDA(dev, cudaMallocHost(&dev->staging, CUDA_STAGING_BYTES))) return NULL;
    if (dev->staged % size + padded > size) dev->staged += size - dev->staged % size; /* in one piece */
    while (dev->staged + padded - dev->unstaged > size) make_room(dev);
    char *p = dev->staging + dev->staged % size;
    dev->staged += padded;
    return p;
}

void cuda_upload(fkv_device *dev, void *dst, const void *host, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += piece_bytes) {
        const size_t n = bytes - at < piece_bytes ? bytes - at : piece_bytes;
        char *p = cuda_stage(dev, n);
        if (!p) return;
        memcpy(p, (const char *)host + at, n);
        CUDA(dev, cudaMemcpyAsync((char *)dst + at, p, n, cudaMemcpyHostToDevice, dev->stream));
    }
}

void cuda_download(fkv_device *dev, void *host, const void *src, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += piece_bytes) {
        const size_t n = bytes - at < piece_bytes ? bytes - at : piece_bytes;
        while (dev->n_pending - dev->n_handed == CUDA_PENDING) make_room(dev);
        char *p = cuda_stage(dev, n);
        if (!p ||
            !CUDA(dev, cudaMemcpyAsync(p, (const char *)src + at, n, cudaMemcpyDeviceToHost, dev->stream)))
            return;
        dev->pending[dev->n_pending++ % CUDA_PENDING] = cuda_pending{(char *)host + at, p, n};
    }
}

/* The device's state after a wait. */
static fkv_status state_of(fkv_device *dev, fkv_err *err)
{
    if (cuda_world_aborted(dev->world)) return fkv_fail(err, FKV_E_DEVICE, "another device failed");
    return cuda_status(dev, err);
}

fkv_status cuda_sync(fkv_device *dev, fkv_err *err)
{
    if (cuda_flush(dev)) cuda_record_collect(dev);
    return state_of(dev, err);
}

fkv_status cuda_wait(fkv_device *dev, int64_t ticket, fkv_err *err)
{
    reach(dev, ticket);
    return state_of(dev, err);
}
