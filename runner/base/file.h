/* Files: whole reads with a limit, durable atomic replacement, folders. Owns nothing
 * beyond a call; a descriptor that is handed in stays open and the caller's. Not for:
 * what is in the files, and streams of unknown length. */
#ifndef FKV_BASE_FILE_H
#define FKV_BASE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "runner/base/buf.h"

/* Appends the whole regular file to out, which is the caller's and after a failure may
 * hold a part; FKV_E_INPUT if it is missing, not a regular file or larger than max_bytes. */
fkv_status fkv_file_read(const char *path, size_t max_bytes, fkv_buf *out, fkv_err *err);
/* The same of a pipe, too, which is waited for, and of /dev/fd/N. */
fkv_status fkv_file_read_any(const char *path, size_t max_bytes, fkv_buf *out, fkv_err *err);

/* Replaces path durably: writes path.tmp, fsyncs it, renames it, fsyncs the
 * folder. After a crash or a failure path is either the old or the new content; a failure
 * leaves no path.tmp. */
fkv_status fkv_file_replace(const char *path, const void *bytes, size_t n, fkv_err *err);
/* The same by way of tmp, a path in the same folder. */
fkv_status fkv_file_replace_by(const char *path, const char *tmp, const void *bytes, size_t n, fkv_err *err);

/* fsync, restarted on EINTR; path is for the message. */
fkv_status fkv_file_sync(int fd, const char *path, fkv_err *err);

/* The second half of it for a file already written under tmp: fsync through fd
 * (left open), rename to path, fsync the folder. */
fkv_status fkv_file_commit(int fd, const char *tmp, const char *path, fkv_err *err);

/* fsyncs the folder that holds path. */
fkv_status fkv_dir_sync_of(const char *path, fkv_err *err);

/* mkdir -p. */
fkv_status fkv_dir_make(const char *path, fkv_err *err);

/* write(2) of all n bytes, restarted on EINTR; path is for the message. */
fkv_status fkv_write_all(int fd, const void *bytes, size_t n, const char *path, fkv_err *err);

/* Whether there is something of that name. True also where the disk doesn't say, so that
 * the call that opens it does; what is there never counts as missing. */
bool fkv_file_exists(const char *path);

/* Size in bytes, or -1 with the reason in errno. */
int64_t fkv_file_size(const char *path);

/* Has the system begin to read the n bytes of address `at` on, as far as they are a mapped file's; others are
 * no matter. */
void fkv_file_read_ahead(uintptr_t at, size_t n);

/* malloc'd "a/b"; b alone when it is absolute or a is empty. NULL: no memory. */
char *fkv_path_join(const char *a, const char *b);
/* malloc'd folder part of path, "." if it has none. NULL: no memory. */
char *fkv_path_dir(const char *path);

#endif
