/* One output row: a finished record as a line of JSON (design: Output directory). */
#ifndef FKV_JOBS_ROW_H
#define FKV_JOBS_ROW_H

#include "jobs/record.h"

typedef struct fkv_answer {
    const char *text; /* UTF-8, n_text bytes; without stop string or stop token */
    size_t n_text;
    const char *finish_reason; /* "stop" or "length" */
    int64_t prompt_tokens, completion_tokens, truncated_tokens;
    const int32_t *ids; /* completion_tokens generated ids, or NULL to leave "ids" out */
} fkv_answer;

/* Appends the row and "\n". With record->error_code set the row is an error row
 * and answer is not looked at (may be NULL). Order of keys: id, source, dataset,
 * fields, then text, finish_reason, usage, truncated_tokens (when not 0), ids;
 * or error. */
fkv_status fkv_row_write(const fkv_record *record, const fkv_answer *answer, fkv_buf *out, fkv_err *err);

#endif
