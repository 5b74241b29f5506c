/* export: the shards of an output folder in another layout. Reads a shard at a
 * time, a row at a time; memory does not grow with the output.
 *
 * Which shards there are is what the folder's manifests say (a whole run's or
 * its parts'); they are read in input order, each compared with its size, number
 * of rows and checksum. An output that is not finished is exported as far as it
 * goes. Every file is written under a temporary name and replaces an older one
 * of its name when all are done; other files in dest stay as they are. After an
 * error no file in dest has changed (unless the renaming itself fails). Owns nothing
 * beyond a call; takes no lock, so a run may go on meanwhile. Not for: judging answers.
 */
#ifndef FKV_JOBS_EXPORT_H
#define FKV_JOBS_EXPORT_H

#include <stdbool.h>
#include <stddef.h>

#include "runner/base/status.h"

typedef enum fkv_export_format {
    FKV_EXPORT_LONGBENCH,
    FKV_EXPORT_JSONL,
    FKV_EXPORT_RULER,
    FKV_EXPORT_OPENAI
} fkv_export_format;

typedef struct fkv_export_counts {
    int64_t rows, errors, files; /* rows written; error rows; files written */
    int64_t skipped; /* LONGBENCH, RULER: error rows without a dataset, which have no file to go to */
    bool complete;   /* every part that has a manifest is finished, and no part is missing */
    int64_t missing; /* records that are in no shard; -1: nobody has counted the input yet */
} fkv_export_counts;

/* LONGBENCH: dest is a folder (made if need be) as LongBench's eval.py is started in; a file
 * pred/<job's name>/<dataset>.jsonl for each dataset, or pred_e/... without "_e" where the
 * dataset's or the member's name ends in it. Each line has pred, answers, all_classes, length
 * (and _id) as eval.py reads them, their values as they stand in the row (missing: [], null,
 * 0); error rows become pred "", with their dataset's all_classes. RULER: <dataset>.jsonl with
 * index, pred, input (empty: rows don't have it), outputs, others, truncation and length, as
 * RULER's evaluate.py reads them. In both an error row without a dataset counts in the one that
 * its member's name says, if other rows have that; an answer without one is FKV_E_INPUT. Names
 * are fkv_export_name's. JSONL: dest is one file with all rows. OPENAI: dest has the answers and
 * dest.errors the error rows as lines of OpenAI's batch output: id, custom_id (the record's id
 * as a string), response, error; a record that is to blame itself has the status 400, damage
 * has no response; ids count the records and created is 0, so that the same rows give the same
 * bytes. dest "-" is standard output, for lines in input order; those of LONGBENCH and RULER
 * begin with the "file" that they would be in. */
fkv_status fkv_export(const char *output_dir, fkv_export_format format, const char *dest,
                      fkv_export_counts *counts, fkv_err *err);

/* Rows that stand in no output folder, as LONGBENCH lays them out below any number of folders. Nothing in any
 * of them changes before publish, which gives all files their names; n: how many. close without it takes
 * away what was begun. A failed open leaves NULL, which close takes. */
typedef struct fkv_export_rows fkv_export_rows;
fkv_status fkv_export_rows_open(fkv_export_rows **rows, fkv_err *err);
/* The rows that follow belong below dest, of a job of that name. */
fkv_status fkv_export_rows_into(fkv_export_rows *rows, const char *dest, const char *job, fkv_err *err);
fkv_status fkv_export_rows_add(fkv_export_rows *rows, const char *row, size_t n, fkv_err *err);
fkv_status fkv_export_rows_publish(fkv_export_rows *rows, int64_t *n, fkv_err *err);
void fkv_export_rows_close(fkv_export_rows *rows);

#endif
