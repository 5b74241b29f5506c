/* The error rows of an output, in its shards and in its journal, by code. Everything is borrowed. Internal to
 * jobs. */
#ifndef FKV_JOBS_ERROR_ROWS_H
#define FKV_JOBS_ERROR_ROWS_H

#include "jobs/error_counts.h"
#include "jobs/folder.h"
#include "jobs/journal.h"
#include "jobs/manifest.h"

/* Shows see every row of the shards that have error rows, good rows too, and the journal's error rows.
 * manifest and journal may be NULL. */
typedef fkv_status fkv_error_row_see(void *ctx, const char *row, size_t n, fkv_err *err);
fkv_status fkv_error_rows_each(const fkv_folder *folder, const fkv_manifest *manifest,
                               const fkv_journal *journal, fkv_error_row_see *see, void *ctx, fkv_err *err);
/* Adds them to counts; reads the shards that have some. */
fkv_status fkv_error_rows_count(const fkv_folder *folder, const fkv_manifest *manifest,
                                const fkv_journal *journal, fkv_error_counts *counts, fkv_err *err);

#endif
