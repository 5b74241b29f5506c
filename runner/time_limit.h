/* The time limit of the Slurm job that a run is in: SLURM_JOB_END_TIME, seconds since 1970, which Slurm sets
 * from 23.02 on. Nothing is owned. Not for: signals (interrupt.h). */
#ifndef FKV_RUNNER_TIME_LIMIT_H
#define FKV_RUNNER_TIME_LIMIT_H

#include <stdbool.h>

/* False: there is no limit that we know of. *left_s: seconds until what is running should have ended, which
 * is 15 s before the limit. */
bool fkv_time_limit_left(double *left_s);

#endif
