/* One row in another layout's line. Internal to export.c. A line owns its text, which is
 * reused from row to row; spans are borrowed from the row. Deterministic: what another
 * program would take from a clock or from chance comes from the row's ordinal. Not for:
 * which file a line goes to (export.c). */
#ifndef FKV_JOBS_EXPORT_ROW_H
#define FKV_JOBS_EXPORT_ROW_H

#include "jobs/export.h"
#include "jobs/row.h"

typedef struct fkv_export_row {
    const char *text; /* n bytes, "\n" included */
    size_t n;
    const char *where; /* the shard and the row in it, from 1, for messages */
    int64_t at;
    int64_t ordinal; /* of the record, from 0 over the whole input */
} fkv_export_row;

typedef struct fkv_export_line {
    fkv_buf text; /* "\n" included; JSONL: left alone, the row is the line */
    bool is_error;
    fkv_span dataset; /* JSON text; none: null or missing */
} fkv_export_line;

fkv_status fkv_export_line_make(fkv_export_format format, const fkv_export_row *row, fkv_export_line *line,
                                fkv_err *err);

#endif
