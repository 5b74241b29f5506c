/* Stages for NVIDIA's profilers: see backend.h, fkv_stage_begin. NVTX is headers alone; without a
 * profiler a call costs some nanoseconds. */
#include <nvtx3/nvToolsExt.h>

extern "C" {
#include "kernels/backend.h"

void fkv_stage_cuda_begin(const char *name)
{
    nvtxRangePushA(name);
}

void fkv_stage_cuda_end(void)
{
    nvtxRangePop();
}
}
