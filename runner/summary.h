/* A run in a few lines, for its terminal and for its page: both have the same words and the same numbers. A
 * value that owns nothing. Not for where they are shown (cmd_run.c, report_html.c). */
#ifndef FKV_RUNNER_SUMMARY_H
#define FKV_RUNNER_SUMMARY_H

#include "engine/plan/plan.h"
#include "jobs/stats.h"

enum { FKV_SUMMARY_LINES = 6 };

typedef struct fkv_summary {
    int n;
    struct {
        const char *name;
        char text[512];
    } at[FKV_SUMMARY_LINES];
} fkv_summary;

/* profile and plan: empty where there are none, and lines that need them are left out. */
void fkv_summary_make(const fkv_stats *stats, const fkv_profile *profile, const fkv_plan *plan,
                      fkv_summary *summary);

/* The sum of a run's stages: its wall time. */
double fkv_summary_seconds(const double seconds[FKV_STAGES]);
/* What a stage is, in words. */
const char *fkv_summary_stage(fkv_stage stage);

#endif
