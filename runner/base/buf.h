/* A growable buffer of bytes. Zero-initialise; the holder owns data, whatever fails: a
 * failed call leaves the buffer as it was. data is NUL-terminated after every
 * successful append (the NUL is not counted in len), so it can be printed. Not for:
 * arrays of anything else (mem.h). */
#ifndef FKV_BASE_BUF_H
#define FKV_BASE_BUF_H

#include <stddef.h>

#include "runner/base/status.h"

typedef struct fkv_buf {
    char *data;
    size_t len;
    size_t cap;
} fkv_buf;

/* Makes room for extra more bytes plus the NUL. */
fkv_status fkv_buf_reserve(fkv_buf *b, size_t extra, fkv_err *err);
fkv_status fkv_buf_append(fkv_buf *b, const void *bytes, size_t n, fkv_err *err);
fkv_status fkv_buf_puts(fkv_buf *b, const char *text, fkv_err *err);
fkv_status fkv_buf_printf(fkv_buf *b, fkv_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Empties it and keeps the memory. */
void fkv_buf_clear(fkv_buf *b);
void fkv_buf_free(fkv_buf *b);

#endif
