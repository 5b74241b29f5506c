/* The log: see log.h. */
#include "runner/base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "runner/base/utf8.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *file;
static bool to_stderr = true;

fkv_status fkv_log_open(const char *path, fkv_err *err)
{
    FILE *f = fopen(path, "ae");
    if (!f) return fkv_fail_errno(err, path, "open the log");
    fkv_log_close();
    pthread_mutex_lock(&lock);
    file = f;
    pthread_mutex_unlock(&lock);
    return FKV_OK;
}

void fkv_log_close(void)
{
    pthread_mutex_lock(&lock);
    if (file) fclose(file);
    file = NULL;
    pthread_mutex_unlock(&lock);
}

void fkv_log_set_stderr(bool on)
{
    pthread_mutex_lock(&lock);
    to_stderr = on;
    pthread_mutex_unlock(&lock);
}

void fkv_log(const char *fmt, ...)
{
    char said[2048], line[2 * sizeof said], when[32];
    const time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(said, sizeof said, fmt, ap);
    va_end(ap);
    fkv_utf8_show(said, line, sizeof line); /* names and texts from the input may be in it */
    pthread_mutex_lock(&lock);
    if (to_stderr) fprintf(stderr, "%s\n", line);
    if (file) {
        fprintf(file, "%s %s\n", when, line);
        fflush(file);
    }
    pthread_mutex_unlock(&lock);
}
