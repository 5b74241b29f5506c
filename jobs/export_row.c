/* Rows in other layouts: see export_row.h. Values are copied as they stand in the row. */
#include "jobs/export_row.h"

#include <string.h>

#include "runner/base/json.h"

static const char *const row_keys[FKV_ROW_N_VALUES] = {"id",   "source",        "dataset", "fields",
                                                       "text", "finish_reason", "usage",   "error"};

/* Errors that are not the request's. */
static const char *const not_theirs[] = {"\"damaged_archive\"", "\"unreadable_member\"", "\"bad_logits\""};

static bool is_span(const fkv_span *v, const char *text)
{
    return v->p && v->n == strlen(text) && memcmp(v->p, text, v->n) == 0;
}

static bool begins(const fkv_span *v, char c)
{
    return v->p && v->n && v->p[0] == c;
}

static bool is_number(const fkv_span *v)
{
    return v->p && v->n && (v->p[0] == '-' || (v->p[0] >= '0' && v->p[0] <= '9'));
}

/* before and the value, or what stands for one that is missing. */
static fkv_status put(fkv_buf *b, const char *before, const fkv_span *v, const char *fallback, fkv_err *err)
{
    const fkv_status st = fkv_buf_puts(b, before, err);
    if (st) return st;
    return v->p ? fkv_buf_append(b, v->p, v->n, err) : fkv_buf_puts(b, fallback, err);
}

/* The members of a value that is an object; none of one that is missing. */
static fkv_status find(const fkv_span *object, const char *const *keys, fkv_span *values, size_t n,
                       fkv_err *err)
{
    for (size_t i = 0; i < n; i++) values[i] = (fkv_span){0};
    return object->p ? fkv_row_members(object->p, object->n, keys, values, n, err) : FKV_OK;
}

/* eval.py goes through answers, compares length, and takes the last line's all_classes for all. */
static fkv_status make_longbench(const fkv_export_row *row, fkv_span all_classes, fkv_buf *b, fkv_err *err)
{
    static const char *const keys[] = {"answers", "length"};
    const fkv_span *v = row->values;
    const fkv_span none = {0};
    fkv_span f[2];
    fkv_status st = find(&v[FKV_ROW_FIELDS], keys, f, 2, err);
    if (!st) st = put(b, "{\"pred\":", &v[FKV_ROW_TEXT], "\"\"", err);
    if (!st) st = put(b, ",\"answers\":", fkv_row_has(&f[0]) ? &f[0] : &none, "[]", err);
    if (!st)
        st = put(b, ",\"all_classes\":", row->all_classes.p ? &row->all_classes : &all_classes, "null", err);
    if (!st) st = put(b, ",\"length\":", is_number(&f[1]) ? &f[1] : &none, "0", err);
    if (!st) st = put(b, ",\"_id\":", &v[FKV_ROW_ID], "null", err);
    return st ? st : fkv_buf_puts(b, "}\n", err);
}

/* As RULER's call_api.py writes them, but that the input is not in the row: evaluate.py
 * wants the key, and only prints it. Without outputs it looks for an output, then takes "",
 * which it would find in the empty pred of an error row: that gets one which it won't. */
static fkv_status make_ruler(const fkv_export_row *row, fkv_buf *b, fkv_err *err)
{
    static const char *const keys[] = {"outputs", "output", "others", "length"};
    const fkv_span *v = row->values;
    fkv_span f[4];
    fkv_status st = find(&v[FKV_ROW_FIELDS], keys, f, 4, err);
    if (!begins(&f[2], '{')) f[2].p = NULL;
    if (!st) st = put(b, "{\"index\":", &v[FKV_ROW_ID], "null", err);
    if (!st) st = put(b, ",\"pred\":", &v[FKV_ROW_TEXT], "\"\"", err);
    if (!st) st = fkv_buf_puts(b, ",\"input\":\"\"", err);
    if (!st && fkv_row_has(&f[0])) st = put(b, ",\"outputs\":", &f[0], "", err);
    if (!st && fkv_row_has(&f[1])) st = put(b, ",\"output\":", &f[1], "", err);
    if (!st && row->is_error && !fkv_row_has(&f[0]) && !fkv_row_has(&f[1]))
        st = fkv_buf_puts(b, ",\"outputs\":[\"not known\"]", err);
    if (!st) st = put(b, ",\"others\":", &f[2], "{}", err);
    if (!st) st = put(b, ",\"truncation\":-1,\"length\":", &f[3], "-1", err);
    return st ? st : fkv_buf_puts(b, "}\n", err);
}

/* A row's count of tokens; below 0: it is none. */
static int64_t count_of(const fkv_span *v)
{
    int64_t count = 0;
    if (!v->p || v->n == 0 || v->n > 15) return -1;
    for (size_t i = 0; i < v->n; i++) {
        if (v->p[i] < '0' || v->p[i] > '9') return -1;
        count = 10 * count + (v->p[i] - '0');
    }
    return count;
}

static fkv_status put_usage(const fkv_span *usage, fkv_buf *b, fkv_err *err)
{
    static const char *const keys[] = {"prompt_tokens", "completion_tokens"};
    fkv_span v[2];
    const fkv_status st = find(usage, keys, v, 2, err);
    const int64_t prompt = count_of(&v[0]), completion = count_of(&v[1]);
    if (st) return st;
    if (prompt < 0 || completion < 0) return fkv_buf_puts(b, ",\"usage\":null}}", err);
    return fkv_buf_printf(
        b, err, ",\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld}}}",
        (long long)prompt, (long long)completion, (long long)prompt + (long long)completion);
}

/* Whether the request was one for a chat: what its url says, however it is escaped. */
static fkv_status is_chat(const fkv_span *url, bool *chat, fkv_err *err)
{
    json_error_t je;
    *chat = false;
    if (!url->p) return FKV_OK;
    json_t *v = fkv_json_parse(url->p, url->n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &je);
    if (!v && json_error_code(&je) == json_error_out_of_memory) return fkv_fail_memory(err);
    *chat = json_is_string(v) && strcmp(json_string_value(v), "/v1/chat/completions") == 0;
    json_decref(v);
    return FKV_OK;
}

static fkv_status put_response(const fkv_span *v, int64_t ordinal, fkv_buf *b, fkv_err *err)
{
    static const char *const keys[] = {"url", "body"}, *const body_keys[] = {"model"};
    fkv_span f[2], model;
    bool chat = false;
    fkv_status st = find(&v[FKV_ROW_FIELDS], keys, f, 2, err);
    if (!begins(&f[1], '{')) f[1].p = NULL;
    if (!st) st = find(&f[1], body_keys, &model, 1, err);
    if (!st) st = is_chat(&f[0], &chat, err);
    if (st) return st;
    if (!begins(&model, '"')) model.p = NULL;
    st = fkv_buf_printf(b, err,
                        "\"status_code\":200,\"request_id\":\"req_%012lld\",\"body\":{\"id\":\"%s-%012lld\","
                        "\"object\":\"%s\",\"created\":0",
                        (long long)ordinal, chat ? "chatcmpl" : "cmpl", (long long)ordinal,
                        chat ? "chat.completion" : "text_completion");
    if (!st) st = put(b, ",\"model\":", &model, "\"\"", err);
    if (!st) st = fkv_buf_puts(b, ",\"choices\":[{\"index\":0", err);
    if (!st)
        st = put(b,
                 chat ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":", &v[FKV_ROW_TEXT],
                 "\"\"", err);
    if (!st) st = fkv_buf_puts(b, chat ? ",\"refusal\":null},\"logprobs\":null" : ",\"logprobs\":null", err);
    if (!st) st = put(b, ",\"finish_reason\":", &v[FKV_ROW_FINISH_REASON], "null", err);
    if (!st) st = fkv_buf_puts(b, "}]", err);
    return st ? st : put_usage(&v[FKV_ROW_USAGE], b, err);
}

static fkv_status put_failure(const fkv_span *v, int64_t ordinal, fkv_buf *b, fkv_err *err)
{
    static const char *const keys[] = {"code", "message"};
    fkv_span e[2];
    fkv_status st = find(&v[FKV_ROW_ERROR], keys, e, 2, err);
    if (st) return st;
    bool theirs = true;
    for (size_t i = 0; i < sizeof not_theirs / sizeof *not_theirs; i++)
        theirs &= !is_span(&e[0], not_theirs[i]);
    if (!theirs) {
        st = put(b, "null,\"error\":{\"code\":", &e[0], "null", err);
        if (!st) st = put(b, ",\"message\":", &e[1], "\"\"", err);
        return st ? st : fkv_buf_puts(b, "}}\n", err);
    }
    st = fkv_buf_printf(b, err, "{\"status_code\":400,\"request_id\":\"req_%012lld\",\"body\":{\"error\":{",
                        (long long)ordinal);
    if (!st) st = put(b, "\"message\":", &e[1], "\"\"", err);
    if (!st) st = put(b, ",\"type\":\"invalid_request_error\",\"param\":null,\"code\":", &e[0], "null", err);
    return st ? st : fkv_buf_puts(b, "}}},\"error\":null}\n", err);
}

/* A line of OpenAI's batch output or error file. */
static fkv_status make_openai(const fkv_span *v, int64_t ordinal, bool is_error, fkv_buf *b, fkv_err *err)
{
    const fkv_span *id = &v[FKV_ROW_ID];
    fkv_status st =
        fkv_buf_printf(b, err, "{\"id\":\"batch_req_%012lld\",\"custom_id\":", (long long)ordinal);
    if (!st && id->p && !begins(id, '"') && !is_span(id, "null"))
        st = fkv_json_put_string(b, id->p, id->n, err); /* a number as a string */
    else if (!st)
        st = put(b, "", id, "null", err);
    if (!st) st = fkv_buf_puts(b, ",\"response\":", err);
    if (st || is_error) return st ? st : put_failure(v, ordinal, b, err);
    st = fkv_buf_puts(b, "{", err);
    if (!st) st = put_response(v, ordinal, b, err);
    return st ? st : fkv_buf_puts(b, ",\"error\":null}\n", err);
}

fkv_status fkv_export_row_read(fkv_export_row *row, fkv_err *err)
{
    static const char *const source_keys[] = {"archive", "member"}, *const field_keys[] = {"all_classes"};
    fkv_span source[2], classes;
    fkv_err bad = {0};
    fkv_span *v = row->values;
    fkv_status st = fkv_row_members(row->text, row->n, row_keys, v, FKV_ROW_N_VALUES, &bad);
    for (size_t i = 0; !st && i < FKV_ROW_N_VALUES; i++) {
        if (!fkv_row_has(&v[i])) v[i] = (fkv_span){0};
    }
    if (!st) st = find(&v[FKV_ROW_SOURCE], source_keys, source, 2, &bad);
    if (!st) st = find(&v[FKV_ROW_FIELDS], field_keys, &classes, 1, &bad);
    if (st) return fkv_fail_at(err, st, row->where, row->at, NULL, "%s", bad.message);
    row->archive = source[0];
    row->member = source[1];
    row->all_classes = fkv_row_has(&classes) ? classes : (fkv_span){0};
    row->is_error = v[FKV_ROW_ERROR].p != NULL;
    if (row->is_error) v[FKV_ROW_TEXT] = (fkv_span){0};
    return FKV_OK;
}

fkv_status fkv_export_line_make(fkv_export_format format, const fkv_export_row *row, fkv_span all_classes,
                                fkv_buf *line, fkv_err *err)
{
    fkv_err bad = {0};
    fkv_status st;
    switch (format) {
    case FKV_EXPORT_LONGBENCH: st = make_longbench(row, all_classes, line, &bad); break;
    case FKV_EXPORT_RULER: st = make_ruler(row, line, &bad); break;
    case FKV_EXPORT_OPENAI: st = make_openai(row->values, row->ordinal, row->is_error, line, &bad); break;
    case FKV_EXPORT_JSONL:
    default: st = fkv_buf_append(line, row->text, row->n, &bad); break;
    }
    return st ? fkv_fail_at(err, st, row->where, row->at, NULL, "%s", bad.message) : FKV_OK;
}
