/* Shards: rows to a zstd file and back, a row at a time.
 *
 * The same rows at the same level give the same bytes: one frame, fixed
 * single-threaded parameters, content size and content checksum in it. The only
 * file that knows zstd. A writer or reader owns its file and zstd's state; after a failed
 * open it is NULL. Not for: which rows a shard holds (output.c).
 */
#ifndef FKV_JOBS_SHARD_H
#define FKV_JOBS_SHARD_H

#include <stddef.h>
#include <stdint.h>

#include "runner/base/status.h"

enum { FKV_SHARD_NAME_SIZE = 48 };

/* "shards/shard-000042.jsonl.zst". Name order is input order up to 999999; later
 * names are longer. */
void fkv_shard_name(int64_t index, char out[FKV_SHARD_NAME_SIZE]);

typedef struct fkv_shard_writer fkv_shard_writer;

/* Writes to path + who + ".tmp"; who is "" where nobody else may write the same shard. total_bytes must be
 * the sum of all rows' lengths. */
fkv_status fkv_shard_writer_open(const char *path, const char *who, int level, uint64_t total_bytes,
                                 fkv_shard_writer **writer, fkv_err *err);
fkv_status fkv_shard_writer_add(fkv_shard_writer *writer, const char *row, size_t n, fkv_err *err);
/* Ends the frame, syncs, renames to path, syncs the folder. bytes and xxh3 (64
 * bits, seed 0) describe the file. */
fkv_status fkv_shard_writer_commit(fkv_shard_writer *writer, int64_t *bytes, uint64_t *xxh3, fkv_err *err);
/* Frees; removes the temporary file of a shard that was not committed, which is what
 * there is to do after a failure. NULL is fine. */
void fkv_shard_writer_close(fkv_shard_writer *writer);

typedef struct fkv_shard_reader fkv_shard_reader;

fkv_status fkv_shard_reader_open(const char *path, fkv_shard_reader **reader, fkv_err *err);
/* The next row with its "\n", borrowed until the next call; FKV_END behind the
 * last one. A file that is cut, damaged or has a row longer than
 * FKV_ROW_MAX_BYTES is FKV_E_INPUT naming it. */
fkv_status fkv_shard_reader_next(fkv_shard_reader *reader, const char **row, size_t *n, fkv_err *err);
/* After FKV_END: compares the file with what the manifest says of it. */
fkv_status fkv_shard_reader_check(const fkv_shard_reader *reader, int64_t bytes, uint64_t xxh3, fkv_err *err);
void fkv_shard_reader_close(fkv_shard_reader *reader);

#endif
