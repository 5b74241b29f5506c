/* Which backends this build has: see backend.h. */
#include "kernels/backend.h"

#include <string.h>

static const fkv_backend *cuda(void)
{
#ifdef FKV_CUDA
    return fkv_backend_cuda_found() ? fkv_backend_cuda() : NULL;
#else
    return NULL;
#endif
}

const fkv_backend *fkv_backend_find(const char *name)
{
    const fkv_backend *gpu;
    if (!strcmp(name, "cuda")) return cuda();
    if (!strcmp(name, "auto") && (gpu = cuda()) != NULL) return gpu;
    if (!strcmp(name, "cpu") || !strcmp(name, "auto")) return fkv_backend_cpu();
    return NULL;
}

const char *fkv_backend_why(const char *name)
{
#ifdef FKV_CUDA
    if (!strcmp(name, "cuda")) return "needs a GPU; none is found";
    (void)name;
    return "is not in this build, which has: cpu cuda";
#else
    (void)name;
    return "is not in this build, which has: cpu";
#endif
}

bool fkv_backend_sleeps(const char *name)
{
#ifdef FKV_CUDA
    return strcmp(name, "cpu") != 0;
#else
    (void)name;
    return false;
#endif
}

void fkv_backend_wake(const char *name)
{
    if (!fkv_backend_sleeps(name)) return;
#ifdef FKV_CUDA
    fkv_backend_cuda_wake();
#endif
}

void fkv_backend_restrict(bool on)
{
#ifdef FKV_CUDA
    fkv_backend_cuda_restrict(on);
#else
    (void)on;
#endif
}

const char *fkv_backend_names(void)
{
#ifdef FKV_CUDA
    return "cpu cuda";
#else
    return "cpu";
#endif
}

void fkv_stage_begin(const char *name)
{
#ifdef FKV_CUDA
    fkv_stage_cuda_begin(name);
#else
    (void)name;
#endif
}

void fkv_stage_end(void)
{
#ifdef FKV_CUDA
    fkv_stage_cuda_end();
#endif
}
