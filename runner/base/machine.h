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

/* What cgroups leave, read below the folder root ("" for the machine itself):
 * root/proc/self/cgroup, root/proc/self/mountinfo, and the files of the folders that these name. */
typedef struct fkv_cgroup_limits {
    double processors;    /* by quotas; 0: no limit */
    int64_t memory_bytes; /* of the tightest limit, what is not in use; INT64_MAX: no limit */
} fkv_cgroup_limits;

fkv_cgroup_limits fkv_machine_cgroups(const char *root);

/* The same as above from root's files; affinity: processors that the scheduler allows. */
int fkv_machine_processors_of(const char *root, int affinity);
/* Of root/proc/meminfo and the cgroups; without them 1 GiB. */
int64_t fkv_machine_memory_of(const char *root);

#endif
