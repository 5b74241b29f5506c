/* export: the shards of an output folder in another layout. Reads a shard at a
 * time, a row at a time; memory does not grow with the output. */
#ifndef FKV_JOBS_EXPORT_H
#define FKV_JOBS_EXPORT_H

#include "runner/base/status.h"

typedef enum fkv_export_format { FKV_EXPORT_LONGBENCH, FKV_EXPORT_JSONL } fkv_export_format;

typedef struct fkv_export_counts {
    int64_t rows, errors, files;
} fkv_export_counts;

/* LONGBENCH: dest is a folder; one <dataset>.jsonl per dataset, each line with
 * pred, answers, all_classes, length (and _id) as LongBench's eval.py reads
 * them; error rows become pred "". JSONL: dest is one file with all rows. */
fkv_status fkv_export(const char *output_dir, fkv_export_format format, const char *dest,
                      fkv_export_counts *counts, fkv_err *err);

#endif
