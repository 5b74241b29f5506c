/* What this process may use of the machine: processors and memory.
 *
 * Not what the machine has. Batch systems and containers bound a process by its
 * affinity (taskset, Slurm, cpusets), by cgroups of version 1 or 2 (Slurm, docker,
 * systemd; a limit of any ancestor binds), and by resource limits (ulimit). What
 * can't be read or makes no sense limits nothing. Owns nothing, never fails. Not for:
 * GPUs (kernels/backend.h).
 */
#ifndef FKV_BASE_MACHINE_H
#define FKV_BASE_MACHINE_H

#include <stdint.h>

/* Processors, at least 1. A quota of one and a half counts as two. */
int fkv_machine_processors(void);

/* Bytes that can still be taken before the system, a cgroup or a resource limit has no more. */
int64_t fkv_machine_memory(void);

/* The same from the kernel's files below root ("" for the machine itself): root/proc/meminfo
 * (without it 1 GiB), root/proc/self/cgroup and mountinfo, and the files that these name. affinity:
 * processors that the scheduler allows. */
int fkv_machine_processors_of(const char *root, int affinity);
int64_t fkv_machine_memory_of(const char *root);

#endif
