/* A compressed file as the stream of its bytes, checked to its end.
 *
 * libarchive's filters alone would lose records in silence: that of gzip looks at
 * neither checksum nor length, those of gzip and bzip2 take a damaged beginning of
 * a further stream for the end, and a tar's reader never reads as far as the
 * checksum that stands behind the last member. An fkv_unpack owns its file and
 * buffers. Not for: what is in the bytes (archive.c).
 */
#ifndef FKV_JOBS_UNPACK_H
#define FKV_JOBS_UNPACK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "runner/base/status.h"

typedef struct fkv_unpack fkv_unpack;

/* gz, zst, xz or bz2, told by the content. *out is NULL for any other file, and after a
 * failure: the file can't be read, no memory. */
fkv_status fkv_unpack_open(const char *path, fkv_unpack **out, fkv_err *err);

/* The number of the next bytes, which stay valid until the next call; 0 at the end
 * of what is whole, -1 where it is damaged or can't be read, now and ever after. */
ssize_t fkv_unpack_read(fkv_unpack *unpack, const void **bytes);

/* Why reading failed, NULL when it did not; *number is an errno or 0. */
const char *fkv_unpack_why(const fkv_unpack *unpack, int *number);

/* stop(ctx) is asked at every reading; once it says yes, reading fails with EINTR. */
void fkv_unpack_watch(fkv_unpack *unpack, bool (*stop)(void *ctx), void *ctx);

/* Compressed bytes taken so far. */
int64_t fkv_unpack_taken(const fkv_unpack *unpack);
/* Bytes handed out so far. */
int64_t fkv_unpack_given(const fkv_unpack *unpack);
void fkv_unpack_close(fkv_unpack *unpack);

#endif
