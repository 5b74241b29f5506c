/* JSON helpers: see json.h. */
#include "runner/base/json.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"
#include "runner/base/utf8.h"

enum { BYTES_PER_MARK = 16 };

size_t fkv_json_marks(const char *text, size_t n)
{
    size_t marks = 0;
    bool quoted = false;
    for (size_t i = 0; i < n; i++) {
        const char c = text[i];
        if (c == '"') quoted = !quoted;
        if (quoted && c == '\\') i++;
        if (!quoted) marks += c == ',' || c == ':' || c == '[' || c == '{';
    }
    return marks;
}

/* Whether an allocation of this thread failed since a parse or a dump last began. */
static _Thread_local bool short_of_memory;

static void *watched_malloc(size_t n)
{
    void *p = malloc(n);
    if (!p) short_of_memory = true;
    return p;
}

static void watch_memory(void)
{
    json_set_alloc_funcs(watched_malloc, free);
}

static void begin(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_memory);
    short_of_memory = false;
}

char *fkv_json_dump(const json_t *value, size_t flags)
{
    begin();
    char *text = json_dumps(value, flags);
    if (!short_of_memory) return text;
    free(text);
    return NULL;
}

json_t *fkv_json_parse(const char *text, size_t n, size_t flags, json_error_t *je)
{
    begin();
    json_t *value = json_loadb(text, n, flags, je);
    if (!short_of_memory) return value;
    json_decref(value);
    snprintf(je->text, sizeof je->text, "out of memory");
    je->text[sizeof je->text - 1] = (char)json_error_out_of_memory; /* where json_error_code looks */
    return NULL;
}

static fkv_status load(const char *path, size_t max_bytes, size_t flags, json_t **out, fkv_err *err)
{
    fkv_buf text = {0};
    json_error_t je;
    *out = NULL;
    fkv_status st = fkv_file_read(path, max_bytes, &text, err);
    if (st) goto out;
    const char *encoding = fkv_utf8_other(text.data, text.len);
    if (encoding) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL,
                         "the text is %s, which is not read: save it as UTF-8", encoding);
        goto out;
    }
    if (fkv_json_marks(text.data, text.len) > max_bytes / BYTES_PER_MARK) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "holds more than %zu values",
                         max_bytes / BYTES_PER_MARK);
        goto out;
    }
    const size_t mark = fkv_utf8_mark(text.data, text.len);
    *out = fkv_json_parse(text.data + mark, text.len - mark, JSON_REJECT_DUPLICATES | flags, &je);
    if (!*out && json_error_code(&je) == json_error_out_of_memory)
        st = fkv_fail_at(err, FKV_E_SYSTEM, path, 0, NULL, "%s", je.text);
    else if (!*out)
        st = fkv_fail_at(err, FKV_E_INPUT, path, je.line > 0 ? je.line : 0, NULL, "not valid JSON: %s",
                         je.text);
out:
    fkv_buf_free(&text);
    return st;
}

fkv_status fkv_json_load(const char *path, size_t max_bytes, json_t **out, fkv_err *err)
{
    return load(path, max_bytes, 0, out, err);
}

fkv_status fkv_json_load_reals(const char *path, size_t max_bytes, json_t **out, fkv_err *err)
{
    return load(path, max_bytes, JSON_DECODE_INT_AS_REAL, out, err);
}

static fkv_status missing(fkv_err *err, const char *where, const char *key)
{
    return fkv_fail_at(err, FKV_E_INPUT, where, 0, key, "is missing");
}

static fkv_status wrong_type(fkv_err *err, const char *where, const char *key, const char *want)
{
    return fkv_fail_at(err, FKV_E_INPUT, where, 0, key, "must be %s", want);
}

/* NULL for a missing or null value. */
static const json_t *value_of(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

fkv_status fkv_json_i64(const json_t *o, const char *key, int64_t lo, int64_t hi, const char *where,
                        int64_t *out, fkv_err *err)
{
    const json_t *v = value_of(o, key);
    if (!v) return missing(err, where, key);
    if (!json_is_integer(v)) return wrong_type(err, where, key, "an integer");
    const int64_t x = json_integer_value(v);
    if (x < lo || x > hi)
        return fkv_fail_at(err, FKV_E_INPUT, where, 0, key, "%lld is outside [%lld, %lld]", (long long)x,
                           (long long)lo, (long long)hi);
    *out = x;
    return FKV_OK;
}

fkv_status fkv_json_i64_or(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t fallback,
                           const char *where, int64_t *out, fkv_err *err)
{
    if (value_of(o, key)) return fkv_json_i64(o, key, lo, hi, where, out, err);
    *out = fallback;
    return FKV_OK;
}

fkv_status fkv_json_f64_or(const json_t *o, const char *key, double lo, double hi, double fallback,
                           const char *where, double *out, fkv_err *err)
{
    const json_t *v = value_of(o, key);
    if (!v) {
        *out = fallback;
        return FKV_OK;
    }
    if (!json_is_number(v)) return wrong_type(err, where, key, "a number");
    const double x = json_number_value(v);
    if (!(x >= lo && x <= hi))
        return fkv_fail_at(err, FKV_E_INPUT, where, 0, key, "%g is outside [%g, %g]", x, lo, hi);
    *out = x;
    return FKV_OK;
}

fkv_status fkv_json_bool_or(const json_t *o, const char *key, bool fallback, const char *where, bool *out,
                            fkv_err *err)
{
    const json_t *v = value_of(o, key);
    if (v && !json_is_boolean(v)) return wrong_type(err, where, key, "true or false");
    *out = v ? json_is_true(v) : fallback;
    return FKV_OK;
}

bool fkv_json_is_neutral(const json_t *o, const char *key, double neutral)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v) || json_is_false(v) || (json_is_array(v) && !json_array_size(v))) return true;
    return json_is_number(v) && json_number_value(v) >= neutral && json_number_value(v) <= neutral;
}

fkv_status fkv_json_str_or_null(const json_t *o, const char *key, const char *where, const char **out,
                                fkv_err *err)
{
    const json_t *v = value_of(o, key);
    if (v && !json_is_string(v)) return wrong_type(err, where, key, "a string");
    *out = v ? json_string_value(v) : NULL;
    return FKV_OK;
}

fkv_status fkv_json_str(const json_t *o, const char *key, const char *where, const char **out, fkv_err *err)
{
    if (!value_of(o, key)) return missing(err, where, key);
    return fkv_json_str_or_null(o, key, where, out, err);
}

fkv_status fkv_json_put_string(fkv_buf *b, const char *text, size_t n, fkv_err *err)
{
    static const char hex[] = "0123456789abcdef";
    fkv_status st = fkv_buf_append(b, "\"", 1, err);
    size_t from = 0;
    for (size_t i = 0; !st && i < n; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) continue;
        char esc[7] = {'\\', (char)c, 0};
        switch (c) {
        case '\n': esc[1] = 'n'; break;
        case '\r': esc[1] = 'r'; break;
        case '\t': esc[1] = 't'; break;
        case '"':
        case '\\': break;
        default: memcpy(esc, (char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15], 0}, 7);
        }
        st = fkv_buf_append(b, text + from, i - from, err);
        if (!st) st = fkv_buf_puts(b, esc, err);
        from = i + 1;
    }
    if (!st) st = fkv_buf_append(b, text + from, n - from, err);
    if (!st) st = fkv_buf_append(b, "\"", 1, err);
    return st;
}
