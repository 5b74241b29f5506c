/* job.max_errors: when a job has too many error rows to go on. Pure. Not for: counting them (output.h). */
#ifndef FKV_JOBS_ERROR_LIMIT_H
#define FKV_JOBS_ERROR_LIMIT_H

#include "jobs/job.h"

/* FKV_E_INPUT where errors of so many finished records, all resumes together, are as many as the job allows
 * or more. A share holds from 1,000 records on, or once the input has ended. again: a run found it so
 * before it began. */
fkv_status fkv_error_limit_check(const fkv_job *job, int64_t records, int64_t errors, bool ended, bool again,
                                 fkv_err *err);

#endif
