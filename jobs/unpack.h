/* Compressed bytes as the stream of what is in them, checked to their end.
 *
 * libarchive's filters alone would lose records in silence: that of gzip looks at
 * neither checksum nor length, that of bzip2 takes a damaged beginning of a further stream
 * for the end, that of zstd knows no window beyond 128 MiB, and a tar's reader never reads
 * as far as the checksum that stands behind the last member. An fkv_unpack owns its
 * buffers and borrows its source. Not for: what is in the bytes (walk.h).
 */
#ifndef FKV_JOBS_UNPACK_H
#define FKV_JOBS_UNPACK_H

#include "jobs/source.h"
#include "runner/base/status.h"

typedef struct fkv_unpack fkv_unpack;

/* What bytes that begin so are compressed by: "gzip", "zstd", "xz" or "bzip2"; NULL: nothing. */
const char *fkv_unpack_form(const void *head, size_t n);

/* The length of a file's name of n bytes without the suffix of a compression, if it has one. */
size_t fkv_unpack_bare(const char *name, size_t n);

/* form is what fkv_unpack_form said of the source's first bytes. *out is NULL after a
 * failure: no memory. */
fkv_status fkv_unpack_open(fkv_source source, const char *form, int64_t max_window, fkv_unpack **out,
                           fkv_err *err);

/* An fkv_source's read; ctx is an fkv_unpack. What came before a failure is given first. */
ssize_t fkv_unpack_read(void *ctx, const void **bytes, fkv_fault *fault);

/* Compressed bytes taken so far. */
int64_t fkv_unpack_taken(const fkv_unpack *unpack);
void fkv_unpack_close(fkv_unpack *unpack);

#endif
