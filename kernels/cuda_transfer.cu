/* Copies between host and GPU, and sync.
 *
 * One ring of pinned memory serves every copy: an upload is put there and copied by
 * the stream, a download waits there until sync hands it out. So the host's memory is
 * free at once after upload and need not be pinned, and nothing but a full ring waits.
 * Every sync empties the ring. Larger copies go in pieces.
 */
#include "kernels/cuda_device.h"

#include <cstring>
#include <sched.h>

static const size_t piece_bytes = CUDA_STAGING_BYTES / 4;

/* Waits for the stream; with several devices it also watches for an abort, since a
 * collective whose partner is gone never ends. */
static bool wait_stream(fkv_device *dev)
{
    if (!dev->comm) return CUDA(dev, cudaStreamSynchronize(dev->stream));
    for (;;) {
        const cudaError_t e = cudaStreamQuery(dev->stream);
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

bool cuda_flush(fkv_device *dev)
{
    if (dev->recording) cuda_fail(dev, "a copy or sync while a step is recorded");
    const bool ok = !dev->recording && wait_stream(dev);
    for (int i = 0; ok && i < dev->n_pending; i++)
        memcpy(dev->pending[i].host, dev->pending[i].staged, dev->pending[i].bytes);
    dev->n_pending = 0;
    dev->staged = 0;
    return ok;
}

char *cuda_stage(fkv_device *dev, size_t bytes)
{
    const size_t padded = (bytes + 255) & ~(size_t)255;
    /* Pinning takes a while: at the first copy, not for a device that is only looked at. */
    if (!dev->staging && !CUDA(dev, cudaMallocHost(&dev->staging, CUDA_STAGING_BYTES))) return NULL;
    if (dev->staged + padded > CUDA_STAGING_BYTES) cuda_flush(dev);
    char *p = dev->staging + dev->staged;
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
        if (dev->n_pending == (int)(sizeof dev->pending / sizeof *dev->pending)) cuda_flush(dev);
        char *p = cuda_stage(dev, n);
        if (!p ||
            !CUDA(dev, cudaMemcpyAsync(p, (const char *)src + at, n, cudaMemcpyDeviceToHost, dev->stream)))
            return;
        dev->pending[dev->n_pending++] = cuda_pending{(char *)host + at, p, n};
    }
}

fkv_status cuda_sync(fkv_device *dev, fkv_err *err)
{
    if (cuda_flush(dev)) cuda_record_collect(dev);
    if (cuda_world_aborted(dev->world)) return fkv_fail(err, FKV_E_DEVICE, "another device failed");
    return cuda_status(dev, err);
}
