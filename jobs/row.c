/* Rows: writing one as a line of JSON, and finding a member in one (see row.h).
 * Owns nothing; every byte goes to the caller's buffer. Values that passed
 * through the record are copied as they are. Not for: files and shards. */
#include "jobs/row.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"
#include "runner/base/utf8.h"

enum { MAX_DEPTH = 2048 }; /* jansson's own limit */

fkv_status fkv_row_put_text(fkv_buf *out, const char *text, size_t n, fkv_err *err)
{
    if (fkv_utf8_span(text, n) == n) return fkv_json_put_string(out, text, n, err);
    fkv_buf clean = {0};
    fkv_status st = fkv_utf8_append_clean(&clean, text, n, err);
    if (!st) st = fkv_json_put_string(out, clean.data, clean.len, err);
    fkv_buf_free(&clean);
    return st;
}

/* Appends JSON text that passed through. A line break can only be white space
 * between its tokens; as a blank it keeps the row one line for every reader. */
static fkv_status put_raw(fkv_buf *out, const fkv_buf *json, const char *fallback, fkv_err *err)
{
    if (!json->len) return fkv_buf_puts(out, fallback, err);
    const size_t at = out->len;
    const fkv_status st = fkv_buf_append(out, json->data, json->len, err);
    for (size_t i = at; !st && i < out->len; i++) {
        if (out->data[i] == '\n' || out->data[i] == '\r') out->data[i] = ' ';
    }
    return st;
}

static fkv_status put_source(const fkv_record *record, fkv_buf *out, fkv_err *err)
{
    const char *archive = record->archive ? record->archive : "";
    const char *member = record->member ? record->member : "";
    fkv_status st = fkv_buf_puts(out, ",\"source\":{\"archive\":", err);
    if (!st) st = fkv_row_put_text(out, archive, strlen(archive), err);
    if (!st) st = fkv_buf_puts(out, ",\"member\":", err);
    if (!st) st = fkv_row_put_text(out, member, strlen(member), err);
    if (!st) st = fkv_buf_printf(out, err, ",\"line\":%lld}", (long long)record->line);
    return st;
}

/* "error" with what is wrong, or null. */
static fkv_status put_error(const fkv_record *record, fkv_buf *out, fkv_err *err)
{
    if (!record->error_code[0]) return fkv_buf_puts(out, ",\"error\":null", err);
    fkv_status st = fkv_buf_puts(out, ",\"error\":{\"code\":", err);
    if (!st) st = fkv_row_put_text(out, record->error_code, strlen(record->error_code), err);
    if (!st) st = fkv_buf_puts(out, ",\"message\":", err);
    if (!st) st = fkv_row_put_text(out, record->error_message, strlen(record->error_message), err);
    if (!st) st = fkv_buf_puts(out, "}", err);
    return st;
}

static fkv_status put_ids(const fkv_answer *answer, fkv_buf *out, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(out, ",\"ids\":[", err);
    for (int64_t i = 0; !st && i < answer->completion_tokens; i++)
        st = fkv_buf_printf(out, err, i ? ",%d" : "%d", (int)answer->ids[i]);
    return st ? st : fkv_buf_puts(out, "]", err);
}

/* The answer's keys, each null where answer is NULL. */
static fkv_status put_answer(const fkv_answer *answer, bool with_ids, fkv_buf *out, fkv_err *err)
{
    if (!answer)
        return fkv_buf_printf(out, err, ",\"text\":null,\"finish_reason\":null,\"usage\":null%s",
                              with_ids ? ",\"ids\":null" : "");
    const char *why = answer->finish_reason ? answer->finish_reason : "";
    fkv_status st = fkv_buf_puts(out, ",\"text\":", err);
    if (!st) st = fkv_row_put_text(out, answer->text ? answer->text : "", answer->n_text, err);
    if (!st) st = fkv_buf_puts(out, ",\"finish_reason\":", err);
    if (!st) st = fkv_row_put_text(out, why, strlen(why), err);
    if (!st)
        st = fkv_buf_printf(
            out, err,
            ",\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"truncated_tokens\":%lld",
            (long long)answer->prompt_tokens, (long long)answer->completion_tokens,
            (long long)answer->truncated_tokens);
    if (!st && answer->kept_tokens >= 0)
        st = fkv_buf_printf(out, err, ",\"kept_tokens\":%lld", (long long)answer->kept_tokens);
    if (!st) st = fkv_buf_puts(out, "}", err);
    if (!st && with_ids) st = put_ids(answer, out, err);
    return st;
}

fkv_status fkv_row_write(const fkv_record *record, const fkv_answer *answer, bool with_ids, fkv_buf *out,
                         fkv_err *err)
{
    const bool failed = record->error_code[0] != '\0';
    if (!failed && !answer) return fkv_fail(err, FKV_E_SYSTEM, "a row without an answer or an error");
    fkv_status st = fkv_buf_puts(out, "{\"id\":", err);
    if (!st) st = put_raw(out, &record->id_json, "null", err);
    if (!st) st = put_source(record, out, err);
    if (!st) st = fkv_buf_puts(out, ",\"dataset\":", err);
    if (!st && record->dataset.len)
        st = fkv_row_put_text(out, record->dataset.data, record->dataset.len, err);
    if (!st && !record->dataset.len) st = fkv_buf_puts(out, "null", err);
    if (!st) st = fkv_buf_puts(out, ",\"fields\":", err);
    if (!st) st = put_raw(out, &record->fields, "{}", err);
    if (!st) st = put_answer(failed ? NULL : answer, with_ids, out, err);
    if (!st) st = put_error(record, out, err);
    if (!st) st = fkv_buf_puts(out, "}\n", err);
    return st;
}

typedef struct scan {
    const char *p, *end;
} scan;

static void skip_space(scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r')) s->p++;
}

static bool take(scan *s, char c)
{
    skip_space(s);
    if (s->p == s->end || *s->p != c) return false;
    s->p++;
    return true;
}

/* Moves behind the string that starts here. */
static bool skip_string(scan *s)
{
    if (s->p == s->end || *s->p != '"') return false;
    for (s->p++; s->p < s->end; s->p++) {
        if (*s->p == '"') {
            s->p++;
            return true;
        }
        if (*s->p == '\\' && ++s->p == s->end) return false;
    }
    return false;
}

/* Moves behind the value that starts here: a string, a literal or number (any
 * characters up to a delimiter), or brackets that match. */
static bool skip_value(scan *s)
{
    unsigned char curly[MAX_DEPTH / 8] = {0}; /* one bit a level: { or [ */
    int depth = 0;
    skip_space(s);
    if (s->p < s->end && *s->p != '{' && *s->p != '[') {
        if (*s->p == '"') return skip_string(s);
        const char *from = s->p;
        while (s->p < s->end && !strchr(" \t\r\n,:]}[{\"", *s->p)) s->p++;
        return s->p > from;
    }
    while (s->p < s->end) {
        const char c = *s->p;
        if (c == '"') {
            if (!skip_string(s)) return false;
            continue;
        }
        s->p++;
        if (c == '{' || c == '[') {
            if (depth == MAX_DEPTH) return false;
            const unsigned char bit = (unsigned char)(1u << (depth & 7));
            curly[depth / 8] = (unsigned char)(c == '{' ? curly[depth / 8] | bit : curly[depth / 8] & ~bit);
            depth++;
        } else if (c == '}' || c == ']') {
            depth--; /* never below 0: the value began with a bracket and ends at 0 */
            if (((curly[depth / 8] >> (depth & 7)) & 1) != (c == '}')) return false;
            if (depth == 0) return true;
        }
    }
    return false;
}

/* raw: the literal with its quotes. A key written with escapes is decoded. */
static bool key_is(const char *raw, size_t n, const char *key)
{
    const size_t n_key = strlen(key);
    if (!memchr(raw, '\\', n)) return n == n_key + 2 && memcmp(raw + 1, key, n_key) == 0;
    json_t *v = json_loadb(raw, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    const bool same =
        json_is_string(v) && json_string_length(v) == n_key && memcmp(json_string_value(v), key, n_key) == 0;
    json_decref(v);
    return same;
}

static bool scan_members(scan *s, const char *const *keys, fkv_span *values, size_t n_keys)
{
    if (!take(s, '{')) return false;
    if (take(s, '}')) return true;
    do {
        skip_space(s);
        const char *raw = s->p;
        if (!skip_string(s)) return false;
        const size_t n_raw = (size_t)(s->p - raw);
        if (!take(s, ':')) return false;
        skip_space(s);
        const char *value = s->p;
        if (!skip_value(s)) return false;
        for (size_t k = 0; k < n_keys; k++) {
            if (key_is(raw, n_raw, keys[k])) values[k] = (fkv_span){value, (size_t)(s->p - value)};
        }
    } while (take(s, ','));
    return take(s, '}');
}

fkv_status fkv_row_members(const char *text, size_t n, const char *const *keys, fkv_span *values,
                           size_t n_keys, fkv_err *err)
{
    scan s = {text, text + n};
    for (size_t k = 0; k < n_keys; k++) values[k] = (fkv_span){0};
    if (!scan_members(&s, keys, values, n_keys)) return fkv_fail(err, FKV_E_INPUT, "not a JSON object");
    skip_space(&s);
    if (s.p != s.end) return fkv_fail(err, FKV_E_INPUT, "more than one JSON object");
    return FKV_OK;
}

bool fkv_row_has(const fkv_span *value)
{
    return value->p && !(value->n == 4 && memcmp(value->p, "null", 4) == 0);
}
