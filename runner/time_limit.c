/* Slurm's time limit: see time_limit.h. */
#include "runner/time_limit.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

/* To write the last rows, save the manifest and give the leases up. */
static const double closing_s = 15;

bool fkv_time_limit_left(double *left_s)
{
    char *end;
    struct timespec now;
    const char *text = getenv("SLURM_JOB_END_TIME");
    if (!text || !*text) return false;
    errno = 0;
    const long long at = strtoll(text, &end, 10);
    if (*end || errno || at <= 0 || clock_gettime(CLOCK_REALTIME, &now)) return false;
    *left_s = (double)at - (double)now.tv_sec - (double)now.tv_nsec / 1e9 - closing_s;
    return true;
}
