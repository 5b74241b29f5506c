/* Inner kernels for the instruction set in the file's name: see cpu_kernels.h. */
#define KERNELS_NAME  "generic"
#define KERNELS_TABLE fkv_cpu_table_generic
#include "kernels/cpu_kernels_tables.h"

#include "kernels/cpu_kernels_impl.h"
