/* The error rows of an output, in its shards and in its journal, by code. Everything is borrowed. Internal to
 * jobs. */
#ifndef FKV_JOBS_ERROR_ROWS_H
#define FKV_JOBS_ERROR_ROWS_H

#include "jobs/error_counts.h"
#include "jobs/folder.h"
#include "jobs/journal.h"
#include "jobs/manifest.h"

/* Adds them to counts; reads the shards that have some. */
fkv_status fkv_error_rows_count(const fkv_folder *folder, const fkv_manifest *manifest,
                                const fkv_journal *journal, fkv_error_counts *counts, fkv_err *err);

#endif
