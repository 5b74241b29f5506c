/* The energy that GPUs took, by their own counters (NVML), while something ran on them.
 *
 * Not known, rather than wrong, where the library is missing or a call fails, on a GPU that is partitioned
 * (MIG), and where another process computes on one of them when it is looked at: the counter is the whole
 * card's. NVML is loaded when it is asked for, so a build or a machine without it does without.
 *
 * An fkv_gpu_energy owns the library until close. One thread at a time. Not for: the CPU's energy. */
#ifndef FKV_KERNELS_GPU_ENERGY_H
#define FKV_KERNELS_GPU_ENERGY_H

#include "kernels/backend.h"

enum { FKV_GPU_ENERGY_MAX = 64 };

typedef struct fkv_gpu_energy fkv_gpu_energy;

/* Counts from now on, over the GPUs that devices [first, first + n) of the backend are on. NULL: it can't be
 * known, which is no error. */
fkv_gpu_energy *fkv_gpu_energy_open(const fkv_backend *backend, int first, int n);
/* The same for GPUs by their places on the bus, which may repeat. */
fkv_gpu_energy *fkv_gpu_energy_open_at(const char (*places)[FKV_BUS_PLACE], int n);
/* How many GPUs those devices are on; 0: on none. */
int fkv_gpu_energy_gpus(const fkv_backend *backend, int first, int n);
/* Joules of all of them since open. False: not known, nor will it be. NULL is not known. */
bool fkv_gpu_energy_joules(fkv_gpu_energy *energy, double *joules);
void fkv_gpu_energy_close(fkv_gpu_energy *energy);

#endif
