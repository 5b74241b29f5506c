/* report.html: one page about an output folder, all its parts and runs, for who looks in the morning. It
 * holds all that it shows: no script, nothing is fetched, and its policy forbids both.
 *
 * report.c reads the folder's files, none of which is trusted or needed but the manifest: what is missing or
 * can't be what it should be is a sentence on the page. report_html.c, report_charts.c and report_style.c
 * write what it found. A report owns all that it read. Not for what is measured (run_stats.h), and for how
 * far an output is on a terminal (cmd_status.c). */
#ifndef FKV_RUNNER_REPORT_H
#define FKV_RUNNER_REPORT_H

#include "engine/plan/plan.h"
#include "jobs/standing.h"
#include "jobs/stats_run.h"
#include "runner/markup.h"

enum { FKV_REPORT_PARTS = 64, FKV_REPORT_WHY = 1024 };

/* Of one part. */
typedef struct fkv_report_part {
    int64_t part;
    fkv_stats_run *run; /* its last one; NULL: none is known */
    char *why;          /* if a stats.json is there that can't be read; else NULL */
} fkv_report_part;

typedef struct fkv_report {
    fkv_standing standing;
    char standing_why[FKV_REPORT_WHY]; /* what could not be told of it; "": nothing */
    int n_parts;                       /* below: the first FKV_REPORT_PARTS of them */
    fkv_report_part parts[FKV_REPORT_PARTS];
    bool at_work;                       /* a run of one of parts is */
    bool unread;                        /* a stats.json is there that can\'t be read */
    const fkv_report_part *last;        /* of parts, whose run began last; NULL: no run is known */
    fkv_stats_sums sums;                /* of all parts and runs */
    fkv_stats_lengths prompts, answers; /* of the parts' last runs */
    fkv_profile profile;                /* empty: profile_why */
    fkv_plan plan, home;                /* home: every head at home. Empty: plan_why */
    double *tokens;                     /* fkv_cost_tokens; NULL: as the plan */
    char profile_why[FKV_REPORT_WHY], plan_why[FKV_REPORT_WHY];
    fkv_buf job_ini; /* empty: it can't be read */
} fkv_report;

/* How much is looked at. */
typedef enum fkv_report_effort {
    FKV_REPORT_WHOLE, /* every error row */
    FKV_REPORT_QUICK, /* what a run has time for at its end: fkv_standing_glance */
} fkv_report_effort;

/* Fails where there is no output of ours, or no memory. */
fkv_status fkv_report_read(const char *folder, fkv_report_effort effort, fkv_report *report, fkv_err *err);
void fkv_report_free(fkv_report *report);

/* The page as text. */
void fkv_report_html(const fkv_report *report, fkv_markup *m);

/* Both. The page is the caller's to free. */
fkv_status fkv_report_make(const char *folder, fkv_report_effort effort, fkv_markup *page);
/* Replaces the folder's report.html. Parts may end at the same moment: who comes last has what all of them
 * said. */
fkv_status fkv_report_save(const char *folder, fkv_report_effort effort, fkv_err *err);

#endif
