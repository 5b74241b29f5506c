/* The run's log: one line per event with UTC time, to standard error and, once
 * opened, to a file. Thread-safe; lines are never torn. */
#ifndef FKV_BASE_LOG_H
#define FKV_BASE_LOG_H

#include <stdbool.h>

#include "runner/base/status.h"

/* Appends to path from now on. Replaces an earlier file. */
fkv_status fkv_log_open(const char *path, fkv_err *err);
void fkv_log_close(void);
/* Whether lines also go to standard error (default: yes). */
void fkv_log_set_stderr(bool on);
void fkv_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
