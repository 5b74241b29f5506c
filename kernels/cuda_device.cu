/* What every other file of the CUDA backend stands on: a device's first error, and its memory,
 * which it owns until close. Uses none of them. */
#include "kernels/cuda_device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

extern "C" {
#include "runner/base/mem.h"
}

struct cuda_block {
    void *data;
    cuda_block *next;
    bool scratch; /* of an op, which may use it until close */
};

static void keep_error(fkv_device *dev, const char *file, int line, const char *what, const char *why)
{
    const char *base = strrchr(file, '/');
    if (dev->failed) return;
    dev->failed = true;
    snprintf(dev->error_text, sizeof dev->error_text, "%.200s (%.60s:%d: %.120s)", why,
             base ? base + 1 : file, line, what);
}

bool cuda_check(fkv_device *dev, cudaError_t e, const char *file, int line, const char *what)
{
    if (e == cudaSuccess) return true;
    cudaGetLastError(); /* one that can be cleared must not be taken for the next launch's */
    keep_error(dev, file, line, what, cudaGetErrorString(e));
    return false;
}

bool cuda_check_lt(fkv_device *dev, cublasStatus_t e, const char *file, int line, const char *what)
{
    if (e == CUBLAS_STATUS_SUCCESS) return true;
    keep_error(dev, file, line, what, cublasLtGetStatusString(e));
    return false;
}

__global__ void nothing_kernel()
{
}

void cuda_fail_if_told(fkv_device *dev)
{
    static const char *const told = getenv("FAIRKV_TEST_FAIL");
    char what[8];
    int gpu, path = 0;
    if (!told || sscanf(told, "%7s %d %n", what, &gpu, &path) != 2 || !path || gpu != dev->gpu) return;
    if (dev->failed || access(told + path, F_OK)) return;
    void *p = NULL;
    if (!strcmp(what, "alloc"))
        CUDA(dev, cudaMalloc(&p, (size_t)1 << 60));
    else
        nothing_kernel<<<1, 1 << 20, 0, dev->stream>>>();
    CUDA_LAUNCHED(dev);
}

void cuda_fail(fkv_device *dev, const char *why)
{
    if (!dev->failed) snprintf(dev->error_text, sizeof dev->error_text, "%.500s", why);
    dev->failed = true;
}

fkv_status cuda_status(fkv_device *dev, fkv_err *err)
{
    if (!dev->failed) return FKV_OK;
    return fkv_fail(err, FKV_E_DEVICE, "GPU %d (%s): %s", dev->gpu, dev->name, dev->error_text);
}

fkv_status cuda_alloc(fkv_device *dev, size_t bytes, void **out, fkv_err *err)
{
    size_t padded, available = 0, all = 0;
    if (!fkv_add_size(bytes, 256, &padded)) return fkv_fail_memory(err);
    padded &= ~(size_t)255;
    cuda_block *block = (cuda_block *)calloc(1, sizeof *block);
    if (!block) return fkv_fail_memory(err);
    const cudaError_t e = cudaMalloc(&block->data, padded);
    if (e != cudaSuccess) {
        free(block);
        cudaGetLastError();
        cudaMemGetInfo(&available, &all);
        return fkv_fail(err, FKV_E_DEVICE, "GPU %d (%s): %zu MiB of memory: %s (%zu of %zu MiB are free)",
                        dev->gpu, dev->name, padded >> 20, cudaGetErrorString(e), available >> 20, all >> 20);
    }
    block->next = dev->blocks;
    dev->blocks = block;
    CUDA(dev, cudaMemsetAsync(block->data, 0, padded, dev->stream));
    *out = block->data;
    return cuda_status(dev, err);
}

bool cuda_grow(fkv_device *dev, void **p, size_t *room, size_t bytes)
{
    if (bytes <= *room) return true;
    fkv_err err = {};
    void *grown = NULL;
    if (dev->recording) {
        cuda_fail(dev, "scratch would have to grow while a step is recorded");
        return false;
    }
    if (cuda_alloc(dev, bytes, &grown, &err)) {
        cuda_fail(dev, err.message);
        return false;
    }
    dev->blocks->scratch = true;
    *p = grown; /* the old block stays until close: a recorded step may use it */
    *room = bytes;
    return true;
}

int64_t cuda_blocks_count(const fkv_device *dev)
{
    int64_t n = 0;
    for (const cuda_block *b = dev->blocks; b; b = b->next) n += !b->scratch;
    return n;
}

void cuda_blocks_free(fkv_device *dev, int64_t n)
{
    int64_t have = cuda_blocks_count(dev);
    for (cuda_block **at = &dev->blocks; have > n;) { /* newest first */
        cuda_block *block = *at;
        if (block->scratch) {
            at = &block->next;
            continue;
        }
        *at = block->next;
        cudaFree(block->data);
        free(block);
        have--;
    }
}

void cuda_blocks_close(fkv_device *dev)
{
    while (dev->blocks) {
        cuda_block *block = dev->blocks;
        dev->blocks = block->next;
        cudaFree(block->data);
        free(block);
    }
}
