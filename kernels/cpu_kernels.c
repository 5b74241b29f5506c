/* Picks the inner kernels that this processor runs: see cpu_kernels.h. */
#include "kernels/cpu_kernels.h"

#include <stddef.h>

#include "kernels/cpu_kernels_tables.h"

const cpu_kernels_table *cpu_kernels_generic(void)
{
    return fkv_cpu_table_generic();
}

const cpu_kernels_table *cpu_kernels_avx2(void)
{
#if FKV_X86
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? fkv_cpu_table_avx2() : NULL;
#else
    return NULL;
#endif
}

const cpu_kernels_table *cpu_kernels_avx512(void)
{
#if FKV_X86
    return __builtin_cpu_supports("avx512f") ? fkv_cpu_table_avx512() : NULL;
#else
    return NULL;
#endif
}

const cpu_kernels_table *cpu_kernels(void)
{
    const cpu_kernels_table *t = cpu_kernels_avx512();
    if (!t) t = cpu_kernels_avx2();
    return t ? t : cpu_kernels_generic();
}
