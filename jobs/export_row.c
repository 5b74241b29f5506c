/* Rows in other layouts: see export_row.h. Values are copied as they stand in the row. */
#include "jobs/export_row.h"

#include <string.h>

#include "runner/base/json.h"

/* What every layout looks at. */
enum { ID, DATASET, FIELDS, TEXT, FINISH_REASON, USAGE, ERROR, N_MEMBERS };
static const char *const members[N_MEMBERS] = {"id",    "dataset", "fields", "text", "finish_reason",
                                               "usage", "error"};

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

static fkv_status make_longbench(const fkv_span *v, fkv_buf *b, fkv_err *err)
{
    static const char *const keys[] = {"answers", "all_classes", "length"};
    fkv_span f[3];
    fkv_status st = find(&v[FIELDS], keys, f, 3, err);
    if (!st) st = put(b, "{\"pred\":", &v[TEXT], "\"\"", err);
    if (!st) st = put(b, ",\"answers\":", &f[0], "[]", err);
    if (!st) st = put(b, ",\"all_classes\":", &f[1], "null", err);
    if (!st) st = put(b, ",\"length\":", &f[2], "0", err);
    if (!st) st = put(b, ",\"_id\":", &v[ID], "null", err);
    return st ? st : fkv_buf_puts(b, "}\n", err);
}

/* As RULER's call_api.py writes them, but that the input is not in the row: evaluate.py
 * wants the key and only shows it. Without outputs it looks for an output, then takes "". */
static fkv_status make_ruler(const fkv_span *v, fkv_buf *b, fkv_err *err)
{
    static const char *const keys[] = {"outputs", "output", "others", "length"};
    fkv_span f[4];
    fkv_status st = find(&v[FIELDS], keys, f, 4, err);
    if (!begins(&f[2], '{')) f[2].p = NULL;
    if (!st) st = put(b, "{\"index\":", &v[ID], "null", err);
    if (!st) st = put(b, ",\"pred\":", &v[TEXT], "\"\"", err);
    if (!st) st = fkv_buf_puts(b, ",\"input\":\"\"", err);
    if (!st && f[0].p) st = put(b, ",\"outputs\":", &f[0], "", err);
    if (!st && f[1].p) st = put(b, ",\"output\":", &f[1], "", err);
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
    fkv_status st = find(&v[FIELDS], keys, f, 2, err);
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
        st = put(b, chat ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"text\":", &v[TEXT],
                 "\"\"", err);
    if (!st) st = fkv_buf_puts(b, chat ? ",\"refusal\":null},\"logprobs\":null" : ",\"logprobs\":null", err);
    if (!st) st = put(b, ",\"finish_reason\":", &v[FINISH_REASON], "null", err);
    if (!st) st = fkv_buf_puts(b, "}]", err);
    return st ? st : put_usage(&v[USAGE], b, err);
}

static fkv_status put_failure(const fkv_span *v, int64_t ordinal, fkv_buf *b, fkv_err *err)
{
    static const char *const keys[] = {"code", "message"};
    fkv_span e[2];
    fkv_status st = find(&v[ERROR], keys, e, 2, err);
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
    const fkv_span *id = &v[ID];
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

fkv_status fkv_export_line_make(fkv_export_format format, const fkv_export_row *row, fkv_export_line *line,
                                fkv_err *err)
{
    fkv_span v[N_MEMBERS];
    fkv_err bad = {0};
    fkv_buf_clear(&line->text);
    fkv_status st = fkv_row_members(row->text, row->n, members, v, N_MEMBERS, &bad);
    if (!st) {
        line->is_error = v[ERROR].p && !is_span(&v[ERROR], "null");
        if (is_span(&v[DATASET], "null")) v[DATASET] = (fkv_span){0};
        line->dataset = v[DATASET];
        if (line->is_error) v[TEXT] = (fkv_span){0};
        switch (format) {
        case FKV_EXPORT_LONGBENCH: st = make_longbench(v, &line->text, &bad); break;
        case FKV_EXPORT_RULER: st = make_ruler(v, &line->text, &bad); break;
        case FKV_EXPORT_OPENAI: st = make_openai(v, row->ordinal, line->is_error, &line->text, &bad); break;
        case FKV_EXPORT_JSONL:
        default: break;
        }
    }
    return st ? fkv_fail_at(err, st, row->where, row->at, NULL, "%s", bad.message) : FKV_OK;
}
