/* Status codes and the error that travels with them.
 *
 * Every function that can fail returns fkv_status, 0 being success, and takes
 * an fkv_err that it fills on failure. The first error wins: a second one
 * during clean-up never hides the cause. An fkv_err owns no memory.
 *
 * Where a header does not say otherwise: a function that opens, parses or loads something
 * gives it to its caller, who closes or frees it. When it fails, the pointer that it
 * would have set is NULL, a structure that it would have filled is empty, and nothing is
 * to be freed; closing and freeing NULL or an empty structure does no harm. Not for:
 * telling a user (runner/main.c), exiting.
 */
#ifndef FKV_BASE_STATUS_H
#define FKV_BASE_STATUS_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef enum fkv_status {
    FKV_OK = 0,
    FKV_E_INPUT,       /* the user's input is wrong: job, archive, model, command line (exit 2) */
    FKV_E_SYSTEM,      /* the system failed: memory, disk, threads (exit 3) */
    FKV_E_DEVICE,      /* a device or rank failed (exit 4) */
    FKV_E_INTERRUPTED, /* asked to stop; run again to resume (exit 75) */
    FKV_E_BUSY,        /* another process holds it; run again later (exit 75) */
    FKV_END,           /* no more items: a signal, not an error; err stays untouched */
} fkv_status;

typedef struct fkv_err {
    fkv_status status;
    int64_t line;      /* line in file, from 1; 0 when it has none */
    char file[512];    /* the user's file, or empty */
    char key[96];      /* key or field in that file, or empty */
    char message[768]; /* what is wrong, in words, without file, line and key */
} fkv_err;

/* Sets *err unless it holds an error already, and returns st. err may be NULL. */
fkv_status fkv_fail(fkv_err *err, fkv_status st, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same with the place: file, line (0: none) and key (NULL: none). */
fkv_status fkv_fail_at(fkv_err *err, fkv_status st, const char *file, int64_t line, const char *key,
                       const char *fmt, ...) __attribute__((format(printf, 6, 7)));

/* FKV_E_SYSTEM with strerror(errno) appended. file may be NULL. */
fkv_status fkv_fail_errno(fkv_err *err, const char *file, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* An input that can't be opened, for the reason in errno: FKV_E_INPUT where the path is
 * wrong (missing, not permitted), FKV_E_SYSTEM where the system failed (a disk, memory,
 * too many open files), so that another run may succeed. */
fkv_status fkv_fail_open(fkv_err *err, const char *file);
/* Whether an errno is the system's failure, not the input's. */
bool fkv_errno_is_system(int number);

/* FKV_E_SYSTEM "out of memory". */
fkv_status fkv_fail_memory(fkv_err *err);

/* Writes "file:line: key: message" (parts that are empty left out), no newline.
 * Cuts at size; always terminates. */
void fkv_err_format(const fkv_err *err, char *out, size_t size);

/* The process's exit code for a status. */
int fkv_exit_code(fkv_status st);

/* A list of errors, for inputs that are checked as a whole. Zero-initialise;
 * keeps the first FKV_ERRS_MAX and counts the rest. */
enum { FKV_ERRS_MAX = 64 };
typedef struct fkv_errs {
    int n;       /* errors added */
    fkv_err *at; /* the first min(n, FKV_ERRS_MAX) */
} fkv_errs;

void fkv_errs_add(fkv_errs *errs, const fkv_err *err);
void fkv_errs_free(fkv_errs *errs);

/* A static analyser sees one file at a time: it has to be told that a failure is one. */
#if defined(__clang_analyzer__) && !defined(FKV_STATUS_ITSELF)
#define fkv_fail(err, st, ...)    (fkv_fail(err, st, __VA_ARGS__), (st))
#define fkv_fail_at(err, st, ...) (fkv_fail_at(err, st, __VA_ARGS__), (st))
#define fkv_fail_errno(err, ...)  (fkv_fail_errno(err, __VA_ARGS__), FKV_E_SYSTEM)
#define fkv_fail_open(err, file)  (fkv_fail_open(err, file) == FKV_E_INPUT ? FKV_E_INPUT : FKV_E_SYSTEM)
#define fkv_fail_memory(err)      (fkv_fail_memory(err), FKV_E_SYSTEM)
#endif

#endif
