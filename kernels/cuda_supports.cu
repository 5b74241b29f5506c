/* What the GPUs of this machine can do for a model. Asked of their attributes: no GPU is opened and
 * no context made, so that a job is checked before anything starts. Owns nothing. */
#include <cstring>

#include "kernels/cuda_attention.h"

enum { LEAST_MAJOR = 8 };

static bool restricted;

void fkv_backend_cuda_restrict(bool on)
{
    restricted = on;
}

bool cuda_restricted(void)
{
    return restricted;
}

int cuda_shared_bytes(const cudaDeviceProp *p)
{
    const int bytes = (int)p->sharedMemPerBlockOptin;
    return restricted && bytes > CUDA_LEAST_SHARED ? CUDA_LEAST_SHARED : bytes;
}

static fkv_status check_model(const fkv_device_limits *l, fkv_err *err)
{
    if (l->head_dim != 64 && l->head_dim != 96 && l->head_dim != 128 && l->head_dim != 256)
        return fkv_fail(err, FKV_E_INPUT, "the cuda backend needs a head_dim of 64, 96, 128 or 256, not %d",
                        l->head_dim);
    if (l->n_kv_heads < 1 || l->n_heads % l->n_kv_heads || l->n_heads / l->n_kv_heads > CUDA_MAX_GROUP)
        return fkv_fail(
            err, FKV_E_INPUT,
            "the cuda backend serves at most %d query heads for each KV head; the model has %d and %d",
            CUDA_MAX_GROUP, l->n_heads, l->n_kv_heads);
    if (l->hidden % 8)
        return fkv_fail(err, FKV_E_INPUT,
                        "the cuda backend needs a hidden size that is a multiple of 8, not %d", l->hidden);
    if (l->form == FKV_FORM_FP8 && l->hidden % 16)
        return fkv_fail(
            err, FKV_E_INPUT,
            "the cuda backend multiplies in FP8 where the hidden size is a multiple of 16, not %d",
            l->hidden);
    if (l->window < 0 || l->window > CUDA_MAX_WINDOW)
        return fkv_fail(err, FKV_E_INPUT,
                        "the cuda backend scores with a window of at most %d tokens, not %d", CUDA_MAX_WINDOW,
                        l->window);
    if (l->n_slots > CUDA_MAX_SLOTS)
        return fkv_fail(err, FKV_E_INPUT, "the cuda backend serves at most %d slots, not %d", CUDA_MAX_SLOTS,
                        l->n_slots);
    return fkv_limits_check(l, err);
}

static fkv_status check_gpu(int gpu, const cudaDeviceProp *p, fkv_err *err)
{
    if (p->major < LEAST_MAJOR)
        return fkv_fail(err, FKV_E_INPUT, "GPU %d (%s) has compute capability %d.%d; at least %d.0 is needed",
                        gpu, p->name, p->major, p->minor, LEAST_MAJOR);
    if (cuda_shared_bytes(p) < CUDA_LEAST_SHARED)
        return fkv_fail(err, FKV_E_INPUT,
                        "GPU %d (%s) has %d KiB of shared memory a block; at least %d are needed", gpu,
                        p->name, cuda_shared_bytes(p) >> 10, CUDA_LEAST_SHARED >> 10);
    return FKV_OK;
}

static bool alike(const cudaDeviceProp *a, const cudaDeviceProp *b)
{
    return a->major == b->major && a->minor == b->minor && a->multiProcessorCount == b->multiProcessorCount &&
           !strncmp(a->name, b->name, sizeof a->name);
}

static fkv_status check_gpus(const fkv_group *group, fkv_err *err)
{
    cudaDeviceProp first = {}, p = {};
    for (int i = 0; i < group->n_devices; i++) {
        const int gpu = cuda_group_gpu(group, i);
        const cudaError_t e = cudaGetDeviceProperties(&p, gpu);
        cudaGetLastError();
        if (e != cudaSuccess)
            return fkv_fail(err, FKV_E_INPUT, "GPU %d can't be asked: %s", gpu, cudaGetErrorString(e));
        const fkv_status st = check_gpu(gpu, &p, err);
        if (st) return st;
        if (i == 0) first = p;
        if (!alike(&first, &p))
            return fkv_fail(
                err, FKV_E_INPUT,
                "GPU %d (%s) and GPU %d (%s) are of unlike kinds, which would give unlike answers", gpu,
                p.name, cuda_group_gpu(group, 0), first.name);
    }
    return FKV_OK;
}

bool cuda_reach(const fkv_group *group)
{
    return cuda_all_peers(group);
}

fkv_status cuda_supports(const fkv_device_limits *l, const fkv_group *group, fkv_err *err)
{
    fkv_status st = check_model(l, err);
    if (!st) st = cuda_check_group(group, err);
    if (!st) st = check_gpus(group, err);
    return st;
}
