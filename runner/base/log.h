/* The run's log: a line per event, to standard error and, once opened, with UTC time to
 * a file. One for the process. Thread-safe; lines are never torn. Not for: what another
 * program reads (jobs/stats.h), and errors on the way to their caller (status.h). */
#ifndef FKV_BASE_LOG_H
#define FKV_BASE_LOG_H

#include <stdbool.h>

#include "runner/base/status.h"

/* Appends to path from now on, in place of the file opened before. After a failure the
 * log goes on as it was. */
fkv_status fkv_log_open(const char *path, fkv_err *err);
void fkv_log_close(void);
/* Whether lines also go to standard error (default: yes). */
void fkv_log_set_stderr(bool on);
/* One line: control characters in it are escaped. */
void fkv_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
