/* What a stats.json says of its last run (FORMATS.md), as who wrote it knew it. For reports: nothing that is
 * answered depends on it. Owns its texts and lists. Not for what all runs did (stats.h: fkv_stats_read). */
#ifndef FKV_JOBS_STATS_RUN_H
#define FKV_JOBS_STATS_RUN_H

#include "jobs/stats.h"

enum { FKV_STATS_RUN_RANKS = 1024 };

typedef struct fkv_stats_run {
    fkv_stats stats; /* its pointers lead to the following; before and versions are empty */
    char host[256], system[256], backend[32], device[128];
    char version[64]; /* of the build */
    fkv_stats_point points[FKV_STATS_POINTS];
    fkv_stats_lengths prompts, answers;
    double rank_seconds[FKV_STATS_RUN_RANKS];
} fkv_stats_run;

/* FKV_E_INPUT: there is no such file, or it can't be what it should be; *run is NULL then. The caller frees
 * *run. */
fkv_status fkv_stats_run_read(const char *path, fkv_stats_run **run, fkv_err *err);

#endif
