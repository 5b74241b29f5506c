/* Tiles that Hopper's tensor memory accelerator brings into shared memory: the maps that say where they lie,
 * and the barriers that say when they are there. What kernels call is for those compiled for sm_90a. Owns
 * nothing. */
#ifndef FKV_KERNELS_CUDA_TMA_H
#define FKV_KERNELS_CUDA_TMA_H

#include <cuda.h>
#include <cudaTypedefs.h>
#include <stdint.h>

#include "kernels/cuda_attention.h"

enum { TMA_PANEL = 64 }; /* columns of a box: 128 bytes of bf16, as wide as the swizzle */

/* The map of n rows of k bf16, `stride` of them apart, in boxes of box_rows rows and a panel's columns; both
 * rows and stride are aligned to 16 bytes. False: the error is kept, and says what the map was for. */
static inline bool cuda_panel_map(fkv_device *dev, const bf16 *rows, int64_t n, int64_t k, int64_t stride,
                                  int box_rows, const char *why, CUtensorMap *map)
{
    const cuuint64_t dims[2] = {(cuuint64_t)k, (cuuint64_t)n},
                     strides[1] = {(cuuint64_t)stride * sizeof(bf16)};
    const cuuint32_t box[2] = {TMA_PANEL, (cuuint32_t)box_rows}, steps[2] = {1, 1};
    const PFN_cuTensorMapEncodeTiled_v12000 encode =
        (PFN_cuTensorMapEncodeTiled_v12000)dev->attention->encode;
    if (encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)rows, dims, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS)
        return true;
    cuda_fail(dev, why);
    return false;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* A phase ends when `count` have arrived and all bytes that were expected are there. */
static __device__ __forceinline__ void barrier_init(uint64_t *b, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(smem_address(b)), "r"(count) : "memory");
}

/* Barriers are there for all threads and for the copies, once the block has met. */
static __device__ __forceinline__ void barriers_begin(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;\n" ::: "memory");
}

static __device__ __forceinline__ void barrier_expect(uint64_t *b, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(smem_address(b)), "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(smem_address(b)) : "memory");
}

/* Waits until the phase of that parity has ended. */
static __device__ __forceinline__ void barrier_wait(uint64_t *b, int parity)
{
    asm volatile("{\n.reg .pred done;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra finished;\nbra again;\nfinished:\n}\n" ::"r"(smem_address(b)),
                 "r"(parity)
                 : "memory");
}

/* The map's box from column x and row y on; what lies outside of the map is zeros. */
static __device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap *map, int x, int y,
                                                uint64_t *full)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, "
                 "{%3, %4}], "
                 "[%2];\n" ::"r"(to),
                 "l"(map), "r"(smem_address(full)), "r"(x), "r"(y)
                 : "memory");
}

/* The same, kept in L2 as policy says: one of those below. */
static __device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap *map, int x, int y,
                                                uint64_t *full, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%3, %4}], [%2], %5;\n" ::"r"(to),
                 "l"(map), "r"(smem_address(full)), "r"(x), "r"(y), "l"(policy)
                 : "memory");
}

static __device__ __forceinline__ uint64_t policy_read_once(void)
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
    return policy;
}

static __device__ __forceinline__ uint64_t policy_read_often(void)
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;\n" : "=l"(policy));
    return policy;
}

#endif

#endif
