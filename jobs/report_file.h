/* report.html of an output folder as a file. All parts of a job replace the same one, and may end at the same
 * moment: each writes to a temporary file of a name that nobody else has, which it renames. Not for what is
 * in it (runner/report.h). */
#ifndef FKV_JOBS_REPORT_FILE_H
#define FKV_JOBS_REPORT_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "runner/base/status.h"

/* Replaces the folder's report.html as a whole, or leaves it as it was. What writers that were killed left
 * behind is removed when it is ten minutes old, and by the next run where there are no parts. */
fkv_status fkv_report_file_write(const char *folder, const void *bytes, size_t n, fkv_err *err);
/* Tells whether what parts say of themselves has changed: while it does, a page is old before it is there. 0:
 * the folder can't be read. */
uint64_t fkv_report_file_state(const char *folder);
/* Whether a name is that of a temporary file of it. */
bool fkv_report_file_is_temporary(const char *name);

#endif
