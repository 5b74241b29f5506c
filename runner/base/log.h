/* The run's log: a line per event, to standard error and, once opened, with UTC time to
 * a file. On a terminal one line below the others may be redrawn; whatever is said goes above it. One for
 * the process. Thread-safe; lines are never torn. Not for: what another program reads (jobs/stats.h), errors
 * on the way to their caller (status.h), and what the redrawn line says (runner/progress.h). */
#ifndef FKV_BASE_LOG_H
#define FKV_BASE_LOG_H

#include <stdbool.h>

#include "runner/base/status.h"

typedef enum fkv_log_level {
    FKV_LOG_ERROR,   /* with "error: " before it */
    FKV_LOG_WARNING, /* with "WARNING: " before it: the run goes on, someone should look */
    FKV_LOG_INFO,
    FKV_LOG_DEBUG
} fkv_log_level;

/* How standard error gets the lines. */
typedef struct fkv_log_style {
    fkv_log_level level; /* the last that is said; the file has FKV_LOG_INFO whatever it is */
    bool json;           /* an object a line: time, level, message */
    bool stamped;        /* with the time where standard error is no terminal */
} fkv_log_style;

/* Appends to path from now on, in place of the file opened before. After a failure the
 * log goes on as it was. */
fkv_status fkv_log_open(const char *path, fkv_err *err);
void fkv_log_close(void);
/* Whether lines also go to standard error (default: yes). */
void fkv_log_set_stderr(bool on);
/* Default: FKV_LOG_INFO, neither. */
void fkv_log_set_style(fkv_log_style style);
fkv_log_style fkv_log_get_style(void);

/* One line: control characters in it are escaped. The first is FKV_LOG_INFO. */
void fkv_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void fkv_log_at(fkv_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Whether standard error is a terminal on which a line can be redrawn and wants one: not in JSON, and not
 * where FKV_LOG_INFO isn't said. */
bool fkv_log_redraws(void);
/* The redrawn line from now on; "" for none. Printable ASCII, cut to the terminal's width. Nothing happens
 * where nothing is redrawn. */
void fkv_log_redraw(const char *line);
/* FKV_LOG_INFO about how far the work is; standard error gets it only where no line is redrawn. members:
 * JSON, ',"name":value' each, of its object. */
void fkv_log_progress(const char *line, const char *members);

#endif
