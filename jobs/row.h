/* One output row: a finished record as a line of JSON (FORMATS.md: Rows), and finding a
 * member in one. Owns nothing: text is appended to the caller's buffer, which after a
 * failure may hold a part of it. Not for: where rows go (output.h). */
#ifndef FKV_JOBS_ROW_H
#define FKV_JOBS_ROW_H

#include "jobs/record.h"

typedef struct fkv_answer {
    const char *text; /* UTF-8, n_text bytes; without stop string or stop token */
    size_t n_text;
    const char *finish_reason; /* "stop" or "length" */
    int64_t prompt_tokens, completion_tokens, truncated_tokens;
    int64_t kept_tokens; /* below 0: a row of an output without (fkv_output_tells_kept) */
    const int32_t *ids;  /* completion_tokens generated ids */
} fkv_answer;

/* Appends the row and "\n". With record->error_code set the row is an error row
 * and answer is not looked at (may be NULL). Every row has the same keys in the same
 * order: id, source, dataset, fields, text, finish_reason, usage, ids (with_ids), error;
 * error is null beside an answer, the four before it are null beside an error. */
fkv_status fkv_row_write(const fkv_record *record, const fkv_answer *answer, bool with_ids, fkv_buf *out,
                         fkv_err *err);

/* The longest row there may be, its "\n" included: the longest record
 * (input.max_record_bytes is at most 1 GiB) passed through, and a long answer.
 * Readers refuse more. */
#define FKV_ROW_MAX_BYTES ((size_t)5 << 28)

/* A borrowed piece of JSON text; p is NULL when there is none. */
typedef struct fkv_span {
    const char *p;
    size_t n;
} fkv_span;

/* Finds the members keys[0..n_keys) of the JSON object that text is (a row, or
 * the value of its "fields") in one pass and without parsing values: values[k]
 * is the raw text of keys[k]'s value, none if it is missing, the last if it is
 * there twice. Brackets and strings must match up and nest at most 2048 deep;
 * otherwise FKV_E_INPUT without a place, for the caller to add. */
fkv_status fkv_row_members(const char *text, size_t n, const char *const *keys, fkv_span *values,
                           size_t n_keys, fkv_err *err);

/* Whether a value is there and not null: of a row's "error", whether it is an error row. */
bool fkv_row_has(const fkv_span *value);

/* Appends a JSON string literal of bytes that need not be UTF-8: every malformed
 * byte becomes U+FFFD. */
fkv_status fkv_row_put_text(fkv_buf *out, const char *text, size_t n, fkv_err *err);

#endif
