/* What check says: for people, as comments behind the resolved job, and as JSON.
 *
 * A report borrows all that it points to. Not for finding out what it says (survey.h, forecast.h). */
#ifndef FKV_RUNNER_CHECK_REPORT_H
#define FKV_RUNNER_CHECK_REPORT_H

#include <stdio.h>

#include "runner/forecast.h"

typedef struct fkv_check_report {
    const fkv_setup *setup;
    const fkv_preflight *found;
    const fkv_survey *survey;     /* NULL where the job is finished */
    const fkv_forecast *forecast; /* the same */
} fkv_check_report;

/* Records of the survey whose prompts have more than half as many tokens as up_to, and no more. */
typedef struct fkv_check_bin {
    int64_t up_to, n;
} fkv_check_bin;
enum { FKV_CHECK_BINS = 64 };
/* From the shortest prompt's bin to the longest's; returns how many. */
int fkv_check_bins(const fkv_survey *survey, fkv_check_bin out[FKV_CHECK_BINS]);

fkv_status fkv_check_print(const fkv_check_report *report, FILE *out, fkv_err *err);
/* check_json.c */
fkv_status fkv_check_json(const fkv_check_report *report, FILE *out, fkv_err *err);

#endif
