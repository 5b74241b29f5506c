/* JSON through jansson, with errors that name file and field.
 *
 * Readers of configuration-like files (config.json, plan.json, dataset2prompt)
 * load the whole document here; records stream elsewhere (jobs/record.h). What is
 * given out is the caller's to json_decref or free; after a failure it is NULL.
 */
#ifndef FKV_BASE_JSON_H
#define FKV_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "runner/base/buf.h"

/* Loads path, at most max_bytes; a byte order mark is passed over; duplicate keys are refused, and so is a
 * file of more than max_bytes / 16 values, whose parsed form could take fifty times its size. Errors:
 * FKV_E_INPUT with file and line. */
fkv_status fkv_json_load(const char *path, size_t max_bytes, json_t **out, fkv_err *err);
/* The same with every number as a real, so that no integer is too big: HF writes 10^30 where it knows no
 * limit. */
fkv_status fkv_json_load_reals(const char *path, size_t max_bytes, json_t **out, fkv_err *err);

/* Commas, colons and opening brackets outside strings: the text has at most one
 * value more than that. jansson's form of a value takes some 100 bytes, so this
 * bounds its memory before it is taken. */
size_t fkv_json_marks(const char *text, size_t n);

/* json_loadb that says json_error_out_of_memory whenever that was the reason. jansson alone
 * then calls sound JSON wrong, or takes it with bytes missing. je is not NULL. */
json_t *fkv_json_parse(const char *text, size_t n, size_t flags, json_error_t *je);

/* json_dumps, NULL whenever memory ran out; jansson alone then leaves bytes out. */
char *fkv_json_dump(const json_t *value, size_t flags);

/* Typed fields of an object. where is the file that an error names. A missing
 * key or a wrong type is FKV_E_INPUT; the _or forms give fallback when the key
 * is missing or null. Integers outside [lo, hi] are errors that show the range. */
fkv_status fkv_json_i64(const json_t *o, const char *key, int64_t lo, int64_t hi, const char *where,
                        int64_t *out, fkv_err *err);
fkv_status fkv_json_i64_or(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t fallback,
                           const char *where, int64_t *out, fkv_err *err);
fkv_status fkv_json_f64_or(const json_t *o, const char *key, double lo, double hi, double fallback,
                           const char *where, double *out, fkv_err *err);
fkv_status fkv_json_bool_or(const json_t *o, const char *key, bool fallback, const char *where, bool *out,
                            fkv_err *err);
/* Whether key is absent, null, false, an empty list or the neutral number. */
bool fkv_json_is_neutral(const json_t *o, const char *key, double neutral);
/* Borrowed from o. */
fkv_status fkv_json_str(const json_t *o, const char *key, const char *where, const char **out, fkv_err *err);
/* NULL when it is missing or null. */
fkv_status fkv_json_str_or_null(const json_t *o, const char *key, const char *where, const char **out,
                                fkv_err *err);

/* Appends a JSON string literal, quotes included. text must be UTF-8; control
 * characters, quote and backslash are escaped, all else stands as it is. */
fkv_status fkv_json_put_string(fkv_buf *b, const char *text, size_t n, fkv_err *err);

#endif
