/* Programmatic dependent launch: a kernel may begin while the one before it is at work, and waits where it
 * needs what that one writes. Before Hopper, and without the launch's attribute, it begins when that one has
 * ended. Owns nothing. */
#ifndef FKV_KERNELS_CUDA_EARLY_H
#define FKV_KERNELS_CUDA_EARLY_H

#include "kernels/cuda_attention.h"

/* Once every block has come here, the kernel behind may begin, where it was launched to. */
static __device__ __forceinline__ void cuda_let_next_kernel_begin(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

/* Before anything is read that a kernel in front writes, or written that one reads. */
static __device__ __forceinline__ void cuda_wait_for_kernel(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

/* A kernel that may begin beside the one before it, where the GPU can, with so much dynamic shared memory. */
template <typename... Params, typename... Args>
static void cuda_launch_early(fkv_device *dev, void (*kernel)(Params...), dim3 grid, int threads, int bytes,
                              const Args &...args)
{
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = (size_t)bytes;
    config.stream = dev->stream;
    config.attrs = &early;
    config.numAttrs = (unsigned)dev->attention->begins_early;
    if (bytes == 0 ||
        CUDA(dev, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)))
        CUDA(dev, cudaLaunchKernelEx(&config, kernel, Params(args)...));
}

#endif
