/* The tables as compiled, whether or not this processor can run them: for cpu_kernels.c, which chooses.
 * Not for anybody else: see cpu_kernels.h. */
#ifndef FKV_KERNELS_CPU_KERNELS_TABLES_H
#define FKV_KERNELS_CPU_KERNELS_TABLES_H

#include "kernels/cpu_kernels.h"

const cpu_kernels_table *fkv_cpu_table_generic(void);
const cpu_kernels_table *fkv_cpu_table_avx2(void);
const cpu_kernels_table *fkv_cpu_table_avx512(void);

#endif
