/* Time that only moves forward, in seconds: for durations. Not for: the time of day. */
#ifndef FKV_BASE_CLOCK_H
#define FKV_BASE_CLOCK_H

#include <time.h>

static inline double fkv_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
