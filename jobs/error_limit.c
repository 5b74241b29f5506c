/* job.max_errors: see error_limit.h. */
#include "jobs/error_limit.h"

#include <stdio.h>

/* Of fewer records a share says little. */
enum { SHARE_FROM = 1000 };

fkv_status fkv_error_limit_check(const fkv_job *job, int64_t records, int64_t errors, bool ended, bool again,
                                 fkv_err *err)
{
    char limit[64];
    const int64_t most = job->job.max_errors;
    const double percent = job->job.max_errors_percent;
    const bool share = percent > 0;
    if (errors == 0 || (most == 0 && !share)) return FKV_OK;
    if (!share && errors < most) return FKV_OK;
    if (share && ((records < SHARE_FROM && !ended) || (double)errors * 100 < percent * (double)records))
        return FKV_OK;
    if (share)
        snprintf(limit, sizeof limit, "%g%%", percent);
    else
        snprintf(limit, sizeof limit, "%lld", (long long)most);
    if (!again)
        return fkv_fail(err, FKV_E_INPUT,
                        "stopped after %lld bad records (job.max_errors): %lld are finished, the limit is %s",
                        (long long)errors, (long long)records, limit);
    return fkv_fail_at(
        err, FKV_E_INPUT, job->job.output, 0, NULL,
        "an earlier run stopped after %lld bad records (job.max_errors): %lld are finished, the "
        "limit is %s; allow more to go on, or do them again with job.retry_errors = yes",
        (long long)errors, (long long)records, limit);
}
