/* The error rows of an output, in its shards and in its journal, by code. Everything is borrowed. Internal to
 * jobs. */
#ifndef FKV_JOBS_ERROR_ROWS_H
#define FKV_JOBS_ERROR_ROWS_H

#include "jobs/error_counts.h"
#include "jobs/folder.h"
#include "jobs/journal.h"
#include "jobs/manifest.h"
#include "jobs/row.h"

/* JSON texts within a row, valid while it is seen; "null" where the row has none. code is without its quotes,
 * empty where it is no string. */
typedef struct fkv_error_row {
    fkv_span source, code, message;
} fkv_error_row;

/* Shows see the error rows of the shards that have some, and the journal's, until it says FKV_END. manifest
 * and journal may be NULL. */
typedef fkv_status fkv_error_row_see(void *ctx, const fkv_error_row *row, fkv_err *err);
fkv_status fkv_error_rows_each(const fkv_folder *folder, const fkv_manifest *manifest,
                               const fkv_journal *journal, fkv_error_row_see *see, void *ctx, fkv_err *err);
/* Adds them to counts; reads the shards that have some. */
fkv_status fkv_error_rows_count(const fkv_folder *folder, const fkv_manifest *manifest,
                                const fkv_journal *journal, fkv_error_counts *counts, fkv_err *err);

#endif
