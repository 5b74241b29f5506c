/* One row in another layout's line. Internal to export.c. Spans are borrowed from the row's
 * text; a line is appended to the caller's buffer. Deterministic: what another program would
 * take from a clock or from chance comes from the row's ordinal. Not for: which file a line
 * goes to (export.c). */
#ifndef FKV_JOBS_EXPORT_ROW_H
#define FKV_JOBS_EXPORT_ROW_H

#include "jobs/export.h"
#include "jobs/row.h"

/* What layouts look at, of a row, its source and its fields. */
typedef enum fkv_export_value {
    FKV_ROW_ID,
    FKV_ROW_SOURCE,
    FKV_ROW_DATASET,
    FKV_ROW_FIELDS,
    FKV_ROW_TEXT,
    FKV_ROW_FINISH_REASON,
    FKV_ROW_USAGE,
    FKV_ROW_ERROR,
    FKV_ROW_N_VALUES
} fkv_export_value;

typedef struct fkv_export_row {
    const char *text; /* n bytes, "\n" included */
    size_t n;
    const char *where; /* the shard and the row in it, from 1, for messages */
    int64_t at;
    int64_t ordinal; /* of the record, from 0 over the whole input */
    /* Found by fkv_export_row_read. A value that is null is none. */
    fkv_span values[FKV_ROW_N_VALUES];
    fkv_span archive, member; /* of the source */
    fkv_span all_classes;     /* of the fields */
    bool is_error;
} fkv_export_row;

/* Finds the values of the row whose text and place are set. */
fkv_status fkv_export_row_read(fkv_export_row *row, fkv_err *err);

/* Appends the row's line, "\n" included; JSONL: the row itself. all_classes: its dataset's, for
 * an error row that has none itself; none where it is not known. */
fkv_status fkv_export_line_make(fkv_export_format format, const fkv_export_row *row, fkv_span all_classes,
                                fkv_buf *line, fkv_err *err);

#endif
