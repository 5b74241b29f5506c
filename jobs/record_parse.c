/* From a line to a prompt: see record.h.
 *
 * The parser owns the templates and limits and is read-only once open, so any
 * number of threads may parse with one. Not for: finding lines (archive.c), JSON's
 * syntax (record_json.c), token limits that need a model.
 */
#include "jobs/record.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/pattern.h"
#include "jobs/record_json.h"
#include "jobs/record_request.h"
#include "jobs/unpack.h"
#include "runner/base/json.h"

enum { TABLE_MAX_BYTES = 16 << 20 };

struct fkv_record_parser {
    fkv_format format;
    json_t *templates; /* string by dataset, or NULL */
    json_t *limits;    /* positive integer by dataset, or NULL */
    json_t *plain;     /* datasets without a chat template are its keys */
};

/* RULER's own limits of new tokens; * stands for any end. */
static const struct {
    const char *dataset;
    int64_t limit;
} ruler_limits[] = {{"niah*", 128}, {"vt", 30}, {"cwe", 120}, {"fwe", 50}, {"qa*", 32}};

/* LongBench's datasets: braces in their templates are meant to be filled. */
static const char *const longbench_datasets[] = {"narrativeqa",
                                                 "qasper",
                                                 "multifieldqa_en",
                                                 "multifieldqa_zh",
                                                 "hotpotqa",
                                                 "2wikimqa",
                                                 "musique",
                                                 "dureader",
                                                 "gov_report",
                                                 "qmsum",
                                                 "multi_news",
                                                 "vcsum",
                                                 "trec",
                                                 "triviaqa",
                                                 "samsum",
                                                 "lsht",
                                                 "passage_count",
                                                 "passage_retrieval_en",
                                                 "passage_retrieval_zh",
                                                 "lcc",
                                                 "repobench-p"};

/* By format: the key of the id (OTHER: the one there is). */
static const fkv_record_key id_keys[] = {
    [FKV_FORMAT_AUTO] = FKV_RECORD_OTHER, [FKV_FORMAT_LONGBENCH] = FKV_RECORD_UNDERSCORED,
    [FKV_FORMAT_PROMPT] = FKV_RECORD_ID,  [FKV_FORMAT_OPENAI] = FKV_RECORD_CUSTOM_ID,
    [FKV_FORMAT_QA] = FKV_RECORD_OTHER,   [FKV_FORMAT_RULER] = FKV_RECORD_INDEX};

/* A limit such as 2.0 is 2. */
static bool make_whole(json_t *table, const char *dataset, json_t **value)
{
    const double x = json_is_real(*value) ? json_real_value(*value) : 0;
    if (!(x >= 1 && x <= INT32_MAX) || x - floor(x) > 0) return false;
    json_t *whole = json_integer((json_int_t)x);
    if (json_object_set_new(table, dataset, whole)) return false;
    *value = whole;
    return true;
}

/* Loads an object of strings, or of positive integers; all errors go to errs. */
static json_t *load_table(const char *path, bool strings, fkv_errs *errs)
{
    json_t *table = NULL, *value;
    const char *dataset;
    fkv_err err = {0};
    const int before = errs->n;
    if (fkv_json_load(path, TABLE_MAX_BYTES, &table, &err)) {
        fkv_errs_add(errs, &err);
        return NULL;
    }
    if (!json_is_object(table)) {
        fkv_fail_at(&err, FKV_E_INPUT, path, 0, NULL, "must be an object by dataset");
        fkv_errs_add(errs, &err);
    }
    json_object_foreach(table, dataset, value)
    {
        err = (fkv_err){0};
        if (strings && !json_is_string(value)) {
            fkv_fail_at(&err, FKV_E_INPUT, path, 0, dataset, "must be a string, the dataset's template");
            fkv_errs_add(errs, &err);
        }
        if (!strings && !make_whole(table, dataset, &value) &&
            (!json_is_integer(value) || json_integer_value(value) < 1 ||
             json_integer_value(value) > INT32_MAX)) {
            fkv_fail_at(&err, FKV_E_INPUT, path, 0, dataset, "must be a whole number from 1 to %d",
                        INT32_MAX);
            fkv_errs_add(errs, &err);
        }
    }
    if (errs->n == before) return table;
    json_decref(table);
    return NULL;
}

fkv_status fkv_record_parser_open(const fkv_job *job, fkv_record_parser **parser, fkv_errs *errs)
{
    const int before = errs->n;
    fkv_record_parser *p = calloc(1, sizeof *p);
    *parser = p;
    if (!p) {
        fkv_err err = {0};
        fkv_fail_memory(&err);
        fkv_errs_add(errs, &err);
        return FKV_E_SYSTEM;
    }
    p->format = job->input.format;
    p->plain = json_object();
    bool kept = p->plain != NULL;
    for (size_t i = 0; kept && i < job->input.plain_datasets.n; i++)
        kept = json_object_set_new(p->plain, job->input.plain_datasets.at[i], json_true()) == 0;
    if (!kept) {
        fkv_err err = {0};
        fkv_fail_memory(&err);
        fkv_errs_add(errs, &err);
    }
    if (job->input.prompts) p->templates = load_table(job->input.prompts, true, errs);
    if (job->input.max_new_tokens_by) p->limits = load_table(job->input.max_new_tokens_by, false, errs);
    if (errs->n == before) return FKV_OK;
    fkv_record_parser_close(p);
    *parser = NULL;
    return kept ? FKV_E_INPUT : FKV_E_SYSTEM;
}

void fkv_record_parser_close(fkv_record_parser *parser)
{
    if (!parser) return;
    json_decref(parser->templates);
    json_decref(parser->limits);
    json_decref(parser->plain);
    free(parser);
}

int64_t fkv_record_parser_largest_limit(const fkv_record_parser *parser)
{
    int64_t largest = 0;
    for (size_t i = 0; parser->format == FKV_FORMAT_RULER && i < sizeof ruler_limits / sizeof *ruler_limits;
         i++) {
        if (ruler_limits[i].limit > largest) largest = ruler_limits[i].limit;
    }
    const char *dataset;
    json_t *value;
    json_object_foreach(parser->limits, dataset, value)
    {
        if (json_integer_value(value) > largest) largest = json_integer_value(value);
    }
    return largest;
}

static fkv_format format_of(const fkv_record_parser *parser, const fkv_record_object *o)
{
    json_t *const *v = o->values;
    if (parser->format != FKV_FORMAT_AUTO) return parser->format;
    if (v[FKV_RECORD_CONTEXT] && v[FKV_RECORD_INPUT]) return FKV_FORMAT_LONGBENCH;
    if (v[FKV_RECORD_PROMPT] || v[FKV_RECORD_MESSAGES]) return FKV_FORMAT_PROMPT;
    if (v[FKV_RECORD_BODY] && (v[FKV_RECORD_CUSTOM_ID] || v[FKV_RECORD_URL])) return FKV_FORMAT_OPENAI;
    if (v[FKV_RECORD_CONTEXT] && v[FKV_RECORD_QUESTION]) return FKV_FORMAT_QA;
    if (v[FKV_RECORD_INPUT] && v[FKV_RECORD_OUTPUTS]) return FKV_FORMAT_RULER;
    return FKV_FORMAT_AUTO;
}

/* The key of the record's id in this format. */
static fkv_record_key id_key(fkv_format format, const fkv_record_object *o)
{
    if (id_keys[format] != FKV_RECORD_OTHER) return id_keys[format];
    return o->values[FKV_RECORD_UNDERSCORED] ? FKV_RECORD_UNDERSCORED : FKV_RECORD_ID;
}

static fkv_status take_id(const fkv_record_object *o, fkv_record_key key, fkv_record *record, fkv_err *err)
{
    const json_t *id = o->values[key];
    if (!id) return FKV_OK;
    if (json_is_object(id) || json_is_array(id)) {
        if (!record->error_code[0])
            fkv_record_set_error(record, "bad_field", "%s is not a string or number",
                                 fkv_record_key_names[key]);
        return FKV_OK;
    }
    fkv_buf_clear(&record->id_json);
    return fkv_buf_append(&record->id_json, o->known[key]->value, o->known[key]->n_value, err);
}

/* Whether the format consumes the key, so that it doesn't pass through. */
static bool consumed(fkv_format format, fkv_record_key key)
{
    enum {
        AUTO = 1 << FKV_FORMAT_AUTO,
        LONGBENCH = 1 << FKV_FORMAT_LONGBENCH,
        PROMPT = 1 << FKV_FORMAT_PROMPT,
        OPENAI = 1 << FKV_FORMAT_OPENAI,
        QA = 1 << FKV_FORMAT_QA,
        RULER = 1 << FKV_FORMAT_RULER
    };
    static const int by[FKV_RECORD_N_KEYS] = {
        [FKV_RECORD_ID] = AUTO | PROMPT,
        [FKV_RECORD_UNDERSCORED] = AUTO | LONGBENCH,
        [FKV_RECORD_CONTEXT] = AUTO | LONGBENCH | QA,
        [FKV_RECORD_INPUT] = AUTO | LONGBENCH | RULER,
        [FKV_RECORD_PROMPT] = AUTO | PROMPT,
        [FKV_RECORD_MESSAGES] = PROMPT,
        [FKV_RECORD_QUESTION] = QA,
        [FKV_RECORD_ANSWER_PREFIX] = QA | RULER,
        [FKV_RECORD_INDEX] = RULER,
        [FKV_RECORD_CUSTOM_ID] = OPENAI,
        [FKV_RECORD_BODY] = OPENAI,
        [FKV_RECORD_MAX_TOKENS] = AUTO | LONGBENCH | PROMPT | QA | RULER,
        [FKV_RECORD_MAX_NEW_TOKENS] = QA | RULER,
        [FKV_RECORD_MAX_COMPLETION_TOKENS] = PROMPT,
    };
    if (key == FKV_RECORD_OTHER) return false;
    return fkv_request_samples(key) ? format == FKV_FORMAT_PROMPT : (by[key] & 1 << format) != 0;
}

/* "key":value of a field that passes through, as they stand in the line. */
static fkv_status put_field(fkv_buf *out, const fkv_record_field *f, fkv_err *err)
{
    fkv_status st = out->data[out->len - 1] == '{' ? FKV_OK : fkv_buf_puts(out, ",", err);
    if (!st) st = fkv_buf_append(out, f->text, f->n_text, err);
    if (!st) st = fkv_buf_puts(out, ":", err);
    return st ? st : fkv_buf_append(out, f->value, f->n_value, err);
}

/* id: the key that was taken. body: an OpenAI request's, whose own fields pass through
 * as "body"; else empty. */
static fkv_status take_fields(const fkv_record_object *o, fkv_format format, fkv_record_key id,
                              const fkv_record_object *body, fkv_record *record, fkv_err *err)
{
    fkv_buf *out = &record->fields;
    fkv_buf_clear(out);
    fkv_status st = fkv_buf_puts(out, "{", err);
    for (size_t i = 0; !st && i < o->n; i++) {
        const fkv_record_key key = o->fields[i].key;
        if (key == id || consumed(format, key)) continue;
        st = put_field(out, &o->fields[i], err);
    }
    bool any = false;
    for (size_t i = 0; !st && i < body->n; i++) {
        if (!fkv_request_ignores(&body->fields[i])) continue;
        if (!any) st = fkv_buf_puts(out, out->len > 1 ? ",\"body\":{" : "\"body\":{", err);
        any = true;
        if (!st) st = put_field(out, &body->fields[i], err);
    }
    return st ? st : fkv_buf_puts(out, any ? "}}" : "}", err);
}

/* The string under key; NULL after setting the record's error. */
static const json_t *need_string(const fkv_record_object *o, fkv_record_key key, fkv_record *record)
{
    const json_t *value = o->values[key];
    const char *name = fkv_record_key_names[key];
    if (!value)
        fkv_record_set_error(record, "missing_field", "the record has no %s", name);
    else if (!json_is_string(value))
        fkv_record_set_error(record, "bad_field", "%s is not a string", name);
    else
        return value;
    return NULL;
}

/* The dataset's own limit, unless the record gave one. */
static void take_dataset_limit(const fkv_record_parser *parser, fkv_format format, fkv_record *record)
{
    if (record->max_new_tokens || !record->dataset.len) return;
    const char *dataset = record->dataset.data;
    const json_t *limit =
        parser->limits ? json_object_getn(parser->limits, dataset, record->dataset.len) : NULL;
    if (limit) record->max_new_tokens = json_integer_value(limit);
    if (limit || format != FKV_FORMAT_RULER) return;
    for (size_t i = 0; i < sizeof ruler_limits / sizeof *ruler_limits; i++) {
        if (fkv_pattern_match(ruler_limits[i].dataset, dataset, record->dataset.len))
            record->max_new_tokens = ruler_limits[i].limit;
    }
}

/* Stores the dataset if the templates know it. */
static const json_t *try_dataset(const fkv_record_parser *parser, const char *name, size_t n,
                                 fkv_record *record, fkv_status *st, fkv_err *err)
{
    const json_t *template = parser->templates ? json_object_getn(parser->templates, name, n) : NULL;
    if (!template) return NULL;
    fkv_buf_clear(&record->dataset);
    *st = fkv_buf_append(&record->dataset, name, n, err);
    return template;
}

/* The member's file name without ".jsonl": *n bytes. */
static const char *member_stem(const fkv_record *record, size_t *n)
{
    static const char suffix[] = ".jsonl";
    const size_t n_suffix = sizeof suffix - 1;
    const char *slash = strrchr(record->member, '/');
    const char *base = slash ? slash + 1 : record->member;
    *n = fkv_unpack_bare(base, strlen(base));
    if (*n > n_suffix && memcmp(base + *n - n_suffix, suffix, n_suffix) == 0) *n -= n_suffix;
    return base;
}

/* The template of the dataset that the member's name or else the record's field names;
 * NULL: neither has one. */
static const json_t *find_template(const fkv_record_parser *parser, const fkv_record_object *o,
                                   fkv_record *record, fkv_status *st, fkv_err *err)
{
    size_t n;
    const char *base = member_stem(record, &n);
    const json_t *template = try_dataset(parser, base, n, record, st, err);
    const json_t *own = o->values[FKV_RECORD_DATASET];
    if (!template && n > 2 && memcmp(base + n - 2, "_e", 2) == 0)
        template = try_dataset(parser, base, n - 2, record, st, err);
    if (!template && json_is_string(own))
        template = try_dataset(parser, json_string_value(own), json_string_length(own), record, st, err);
    return template;
}

/* The same; without a template it sets the record's error. */
static const json_t *find_dataset(const fkv_record_parser *parser, const fkv_record_object *o,
                                  fkv_record *record, fkv_status *st, fkv_err *err)
{
    const json_t *template = find_template(parser, o, record, st, err);
    if (template || *st) return template;
    const json_t *own = o->values[FKV_RECORD_DATASET];
    const char *has = parser->templates ? "input.prompts has" : "no input.prompts is given, so it has";
    size_t n;
    const char *base = member_stem(record, &n);
    const int shown = (int)(n < 80 ? n : 80);
    if (json_is_string(own))
        fkv_record_set_error(record, "unknown_dataset", "%s neither \"%.*s\" nor \"%.80s\"", has, shown, base,
                             json_string_value(own));
    else
        fkv_record_set_error(record, "unknown_dataset", "%s no \"%.*s\" and the record names no dataset", has,
                             shown, base);
    return NULL;
}

static fkv_status put_string(fkv_buf *out, const json_t *text, fkv_err *err)
{
    return fkv_buf_append(out, json_string_value(text), json_string_length(text), err);
}

/* The field that a template's "{name}" stands for: of the record's top level, a string or
 * a number. */
static const fkv_record_field *find_named(const fkv_record_object *o, const char *name, size_t n)
{
    for (size_t i = 0; i < o->n; i++) {
        const fkv_record_field *f = &o->fields[i];
        const bool is_value =
            f->value[0] == '"' || f->value[0] == '-' || (f->value[0] >= '0' && f->value[0] <= '9');
        if (is_value && json_string_length(f->name) == n && memcmp(json_string_value(f->name), name, n) == 0)
            return f;
    }
    return NULL;
}

/* A string's characters, a number's text. */
static fkv_status put_named(const fkv_record_object *o, const fkv_record_field *f, fkv_buf *out, fkv_err *err)
{
    json_error_t je;
    if (f->value[0] != '"') return fkv_buf_append(out, f->value, f->n_value, err);
    if (f->key != FKV_RECORD_OTHER) return put_string(out, o->values[f->key], err);
    json_t *text = fkv_json_parse(f->value, f->n_value, JSON_DECODE_ANY | JSON_ALLOW_NUL, &je);
    const fkv_status st = text ? put_string(out, text, err) : fkv_fail_memory(err); /* it was parsed before */
    json_decref(text);
    return st;
}

/* Whether n bytes between braces look like a field's name, not like code or JSON. */
static bool is_field_name(const char *name, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char c = name[i];
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
        if (!letter && !(i && c >= '0' && c <= '9')) return false;
    }
    return n > 0;
}

static bool is_longbench_s(const fkv_buf *dataset)
{
    const bool e = dataset->len > 2 && memcmp(dataset->data + dataset->len - 2, "_e", 2) == 0;
    const size_t n = dataset->len - (e ? 2 : 0);
    for (size_t i = 0; i < sizeof longbench_datasets / sizeof *longbench_datasets; i++) {
        if (strlen(longbench_datasets[i]) == n && memcmp(longbench_datasets[i], dataset->data, n) == 0)
            return true;
    }
    return false;
}

/* template with {context}, {input} and other fields of the record replaced, in one pass:
 * what is inserted is not looked at again. */
static fkv_status fill_template(const json_t *template, const fkv_record_object *o, fkv_record *record,
                                fkv_err *err)
{
    fkv_buf *out = &record->prompt;
    const bool all = is_longbench_s(&record->dataset);
    record->by_template = true;
    const char *p = json_string_value(template), *end = p + json_string_length(template);
    fkv_status st = FKV_OK;
    while (p < end && !st) {
        const char *brace = memchr(p, '{', (size_t)(end - p));
        if (!brace) brace = end;
        st = fkv_buf_append(out, p, (size_t)(brace - p), err);
        p = brace;
        if (p == end || st) break;
        const char *name = p + 1;
        size_t n = 0;
        while (name + n < end && name[n] != '{' && name[n] != '}') n++;
        const bool closed = name + n < end && name[n] == '}';
        const fkv_record_field *f = closed ? find_named(o, name, n) : NULL;
        if (all && closed && !f && !record->unfilled[0] && is_field_name(name, n))
            snprintf(record->unfilled, sizeof record->unfilled, "%.*s", (int)(n < 63 ? n : 63), name);
        if (f) {
            record->n_filled++;
            st = put_named(o, f, out, err);
            p = name + n + 1;
        } else {
            st = fkv_buf_append(out, p++, 1, err);
        }
    }
    return st;
}

static fkv_status take_longbench(const fkv_record_parser *parser, const fkv_record_object *o,
                                 fkv_record *record, fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (!need_string(o, FKV_RECORD_CONTEXT, record)) return FKV_OK;
    const bool has_input = o->values[FKV_RECORD_INPUT] != NULL;
    if (has_input && !need_string(o, FKV_RECORD_INPUT, record)) return FKV_OK;
    const json_t *template = find_dataset(parser, o, record, &st, err);
    if (st) return st;
    /* LongBench v2 has no input, but a question and choices. */
    if (!has_input && (!template || strstr(json_string_value(template), "{input}"))) {
        need_string(o, FKV_RECORD_INPUT, record);
        return FKV_OK;
    }
    if (!template) return FKV_OK;
    const char *dataset = record->dataset.data;
    size_t n = record->dataset.len;
    if (n > 2 && memcmp(dataset + n - 2, "_e", 2) == 0) n -= 2;
    const bool plain = json_object_getn(parser->plain, dataset, n) ||
                       json_object_getn(parser->plain, dataset, record->dataset.len);
    record->wrap = plain ? FKV_WRAP_NONE : FKV_WRAP_USER;
    record->newline_ends = n == 6 && memcmp(dataset, "samsum", 6) == 0;
    return fill_template(template, o, record, err);
}

/* The dataset that the record names itself, if it does. */
static fkv_status take_own_dataset(const fkv_record_object *o, fkv_record_key key, fkv_record *record,
                                   fkv_err *err)
{
    if (record->dataset.len || !json_is_string(o->values[key])) return FKV_OK;
    return put_string(&record->dataset, o->values[key], err);
}

static fkv_status take_prompt(const fkv_record_object *o, fkv_record *record, fkv_err *err)
{
    fkv_status st = take_own_dataset(o, FKV_RECORD_DATASET, record, err);
    if (st) return st;
    if (!o->values[FKV_RECORD_MESSAGES] || json_is_null(o->values[FKV_RECORD_MESSAGES])) {
        const json_t *prompt = need_string(o, FKV_RECORD_PROMPT, record);
        return prompt ? put_string(&record->prompt, prompt, err) : FKV_OK;
    }
    if (!o->values[FKV_RECORD_PROMPT] || json_is_null(o->values[FKV_RECORD_PROMPT]))
        return fkv_request_take_messages(o, record, err);
    fkv_record_set_error(record, "bad_field", "the record has both prompt and messages");
    return FKV_OK;
}

/* What a user says, the values under first and second (OTHER: there is none) joined, and
 * how the answer begins. */
static fkv_status take_user(const fkv_record_object *o, fkv_record_key first, fkv_record_key second,
                            fkv_record *record, fkv_err *err)
{
    const json_t *a = need_string(o, first, record);
    const json_t *b = a && second != FKV_RECORD_OTHER ? need_string(o, second, record) : NULL;
    const json_t *prefix = o->values[FKV_RECORD_ANSWER_PREFIX];
    if (record->error_code[0]) return FKV_OK;
    if (prefix && !json_is_null(prefix) && !need_string(o, FKV_RECORD_ANSWER_PREFIX, record)) return FKV_OK;
    record->wrap = FKV_WRAP_USER;
    fkv_status st = put_string(&record->prompt, a, err);
    if (!st && b) st = put_string(&record->prompt, b, err);
    if (!st && json_is_string(prefix)) st = put_string(&record->prefix, prefix, err);
    return st;
}

/* Appends the name of the folder that path lies in; nothing if it has none. */
static fkv_status put_parent(fkv_buf *out, const char *path, fkv_err *err)
{
    const char *slash = strrchr(path, '/'), *from = slash;
    if (!slash) return FKV_OK;
    while (from > path && from[-1] != '/') from--;
    const size_t n = (size_t)(slash - from);
    if ((n == 1 && from[0] == '.') || (n == 2 && memcmp(from, "..", 2) == 0)) return FKV_OK;
    return fkv_buf_append(out, from, n, err);
}

/* RULER's files are TASK/validation.jsonl, in an archive or beside each other. */
static fkv_status take_ruler_dataset(const fkv_record_object *o, fkv_record *record, fkv_err *err)
{
    fkv_status st = put_parent(&record->dataset, record->member, err);
    if (!st) st = take_own_dataset(o, FKV_RECORD_DATASET, record, err);
    if (!st) st = take_own_dataset(o, FKV_RECORD_TASK, record, err);
    if (st || record->dataset.len || !record->archive) return st;
    const char *slash = strrchr(record->archive, '/');
    const bool is_file = slash && strncmp(slash + 1, record->member, strlen(record->member)) == 0;
    return is_file ? put_parent(&record->dataset, record->archive, err) : FKV_OK;
}

/* What is said about the answer: where the dataset isn't found with the prompt, the
 * dataset, the limit of new tokens, sampling. */
static fkv_status take_wishes(const fkv_record_object *o, fkv_format format, fkv_record *record, fkv_err *err)
{
    const fkv_record_key limits[] = {FKV_RECORD_MAX_TOKENS, format == FKV_FORMAT_PROMPT
                                                                ? FKV_RECORD_MAX_COMPLETION_TOKENS
                                                                : FKV_RECORD_MAX_NEW_TOKENS};
    const bool two = format == FKV_FORMAT_PROMPT || format == FKV_FORMAT_QA || format == FKV_FORMAT_RULER;
    fkv_status st = FKV_OK;
    if (format == FKV_FORMAT_RULER) st = take_ruler_dataset(o, record, err);
    if (format == FKV_FORMAT_QA) st = take_own_dataset(o, FKV_RECORD_DATASET, record, err);
    if (format == FKV_FORMAT_QA && !st) st = take_own_dataset(o, FKV_RECORD_TASK, record, err);
    if (st || record->error_code[0] || format == FKV_FORMAT_OPENAI) return st;
    fkv_request_take_limit(o, limits, two ? 2 : 1, record);
    return format == FKV_FORMAT_PROMPT ? fkv_request_take_sampling(o, record, err) : FKV_OK;
}

/* The prompt, by format. */
static fkv_status take_said(const fkv_record_parser *parser, fkv_format format, const fkv_record_object *o,
                            const fkv_record_object *body, fkv_record *record, fkv_err *err)
{
    switch (format) {
    case FKV_FORMAT_LONGBENCH: return take_longbench(parser, o, record, err);
    case FKV_FORMAT_PROMPT: return take_prompt(o, record, err);
    case FKV_FORMAT_OPENAI: return fkv_request_take(o, body, record, err);
    case FKV_FORMAT_QA: return take_user(o, FKV_RECORD_CONTEXT, FKV_RECORD_QUESTION, record, err);
    case FKV_FORMAT_RULER: return take_user(o, FKV_RECORD_INPUT, FKV_RECORD_OTHER, record, err);
    case FKV_FORMAT_AUTO:
    default: break;
    }
    fkv_record_set_error(record, "missing_field", "the record has neither %s nor prompt",
                         o->values[FKV_RECORD_CONTEXT] ? "input or question beside its context"
                                                       : "context and input");
    return FKV_OK;
}

static fkv_status take_record(const fkv_record_parser *parser, const fkv_record_object *o, fkv_record *record,
                              fkv_err *err)
{
    const fkv_format format = record->format = format_of(parser, o);
    const fkv_record_key id = id_key(format, o);
    fkv_record_object body = {0};
    fkv_status st = take_id(o, id, record, err);
    if (!st) st = take_wishes(o, format, record, err);
    if (!st && format == FKV_FORMAT_OPENAI && !record->error_code[0]) {
        const fkv_record_field *field = o->known[FKV_RECORD_BODY];
        if (json_is_object(o->values[FKV_RECORD_BODY]))
            st = fkv_record_scan(field->value, field->n_value, &body, record, err);
        else
            fkv_record_set_error(record, field ? "bad_field" : "missing_field",
                                 "the record has no body that is an object");
    }
    if (!st) st = take_fields(o, format, id, &body, record, err);
    if (!st && !record->error_code[0]) st = take_said(parser, format, o, &body, record, err);
    fkv_record_object_free(&body);
    if (st || record->error_code[0]) return st;
    take_dataset_limit(parser, format, record);
    if (!record->prompt.len) fkv_record_set_error(record, "empty_prompt", "the prompt is empty");
    return FKV_OK;
}

/* The dataset of a record that got an error before it had one, as far as the member's name
 * or the record tells it: whoever counts by dataset counts it there. */
static fkv_status take_error_dataset(const fkv_record_parser *parser, const fkv_record_object *o,
                                     fkv_record *record, fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (parser->format == FKV_FORMAT_RULER) return take_ruler_dataset(o, record, err);
    if (parser->format == FKV_FORMAT_LONGBENCH || parser->format == FKV_FORMAT_AUTO)
        find_template(parser, o, record, &st, err);
    return st;
}

/* Empties what an earlier line left; its buffers keep their memory. */
static void begin(fkv_record *record)
{
    const fkv_buf stop = record->sampling.stop;
    fkv_buf *const buffers[] = {&record->member_name,  &record->id_json, &record->dataset,
                                &record->fields,       &record->prompt,  &record->prefix,
                                &record->sampling.stop};
    record->format = FKV_FORMAT_AUTO;
    record->max_new_tokens = 0;
    record->wrap = FKV_WRAP_NONE;
    record->newline_ends = false;
    record->by_template = false;
    record->n_filled = 0;
    record->error_code[0] = record->error_message[0] = record->unfilled[0] = '\0';
    record->sampling = (fkv_record_sampling){.stop = stop};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) fkv_buf_clear(buffers[i]);
}

fkv_status fkv_record_parse(const fkv_record_parser *parser, const fkv_line *line, fkv_record *record,
                            fkv_err *err)
{
    fkv_record_object o = {0};
    fkv_status st;
    record->ordinal = line->ordinal;
    record->archive = line->archive;
    record->line = line->line;
    begin(record);
    if ((st = fkv_buf_puts(&record->member_name, line->member, err))) return st;
    record->member = record->member_name.data;
    if ((st = fkv_buf_puts(&record->id_json, "null", err))) return st;
    if ((st = fkv_buf_puts(&record->fields, "{}", err))) return st;
    if (line->error_code) {
        fkv_record_set_error(record, line->error_code, "%s", line->error_message);
        return take_error_dataset(parser, &o, record, err);
    }
    st = fkv_record_scan(line->text, line->n, &o, record, err);
    if (!st && !record->error_code[0])
        st = take_record(parser, &o, record, err);
    else if (!st)
        st = take_id(&o, id_key(parser->format, &o), record, err);
    if (!st && record->error_code[0] && !record->dataset.len)
        st = take_error_dataset(parser, &o, record, err);
    fkv_record_object_free(&o);
    return st;
}
