/* Status codes and errors: see status.h. */
#define FKV_STATUS_ITSELF /* see the end of status.h */
#include "runner/base/status.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void fill(fkv_err *err, fkv_status st, const char *file, int64_t line, const char *key,
                 const char *fmt, va_list ap)
{
    if (!err || err->status != FKV_OK) return;
    err->status = st;
    err->line = line;
    snprintf(err->file, sizeof err->file, "%s", file ? file : "");
    snprintf(err->key, sizeof err->key, "%s", key ? key : "");
    vsnprintf(err->message, sizeof err->message, fmt, ap);
}

fkv_status fkv_fail(fkv_err *err, fkv_status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fill(err, st, NULL, 0, NULL, fmt, ap);
    va_end(ap);
    return st;
}

fkv_status fkv_fail_at(fkv_err *err, fkv_status st, const char *file, int64_t line, const char *key,
                       const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fill(err, st, file, line, key, fmt, ap);
    va_end(ap);
    return st;
}

fkv_status fkv_fail_errno(fkv_err *err, const char *file, const char *fmt, ...)
{
    char what[512];
    const int saved = errno;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return fkv_fail_at(err, FKV_E_SYSTEM, file, 0, NULL, "%s: %s", what, strerror(saved));
}

bool fkv_errno_is_system(int number)
{
    static const int system[] = {EIO, ENOMEM, EMFILE, ENFILE, ESTALE, ETIMEDOUT, EBADF, EINTR, EAGAIN};
    for (size_t i = 0; i < sizeof system / sizeof *system; i++)
        if (number == system[i]) return true;
    return false;
}

fkv_status fkv_fail_open(fkv_err *err, const char *file)
{
    const int why = errno;
    return fkv_fail_at(err, fkv_errno_is_system(why) ? FKV_E_SYSTEM : FKV_E_INPUT, file, 0, NULL,
                       "can't be opened: %s", strerror(why));
}

fkv_status fkv_fail_memory(fkv_err *err)
{
    return fkv_fail(err, FKV_E_SYSTEM, "out of memory");
}

void fkv_err_format(const fkv_err *err, char *out, size_t size)
{
    char line[32] = "";
    if (err->line > 0) snprintf(line, sizeof line, ":%lld", (long long)err->line);
    snprintf(out, size, "%s%s%s%s%s%s", err->file, line, err->file[0] ? ": " : "", err->key,
             err->key[0] ? ": " : "", err->message);
}

int fkv_exit_code(fkv_status st)
{
    switch (st) {
    case FKV_OK:
    case FKV_END: return 0;
    case FKV_E_INPUT: return 2;
    case FKV_E_SYSTEM: return 3;
    case FKV_E_DEVICE: return 4;
    case FKV_E_INTERRUPTED:
    case FKV_E_BUSY: return 75;
    }
    return 3;
}

/* Of the list that is filled when memory is short. */
static fkv_err spare[FKV_ERRS_MAX];

void fkv_errs_add(fkv_errs *errs, const fkv_err *err)
{
    if (!errs->at) errs->at = calloc(FKV_ERRS_MAX, sizeof *errs->at);
    if (!errs->at) errs->at = spare;
    if (errs->n < FKV_ERRS_MAX) errs->at[errs->n] = *err;
    errs->n++;
}

void fkv_errs_free(fkv_errs *errs)
{
    if (errs->at != spare) free(errs->at);
    *errs = (fkv_errs){0};
}
