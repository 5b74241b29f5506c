/* From a line to a prompt: see record.h.
 *
 * The parser owns the templates and limits and is read-only once open, so any
 * number of threads may parse with one. Not for: finding lines (archive.c), JSON's
 * syntax (record_json.c), token limits that need a model.
 */
#include "jobs/record.h"

#include <stdlib.h>
#include <string.h>

#include "jobs/record_json.h"
#include "runner/base/json.h"

enum { TABLE_MAX_BYTES = 16 << 20 };

struct fkv_record_parser {
    fkv_format format;
    json_t *templates; /* string by dataset, or NULL */
    json_t *limits;    /* positive integer by dataset, or NULL */
};

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
        if (!strings && (!json_is_integer(value) || json_integer_value(value) < 1 ||
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
    if (job->input.prompts) p->templates = load_table(job->input.prompts, true, errs);
    if (job->input.max_new_tokens_by) p->limits = load_table(job->input.max_new_tokens_by, false, errs);
    if (errs->n == before) return FKV_OK;
    fkv_record_parser_close(p);
    *parser = NULL;
    return FKV_E_INPUT;
}

void fkv_record_parser_close(fkv_record_parser *parser)
{
    if (!parser) return;
    json_decref(parser->templates);
    json_decref(parser->limits);
    free(parser);
}

int64_t fkv_record_parser_largest_limit(const fkv_record_parser *parser)
{
    int64_t largest = 0;
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
    if (parser->format != FKV_FORMAT_AUTO) return parser->format;
    if (o->values[FKV_RECORD_CONTEXT] && o->values[FKV_RECORD_INPUT]) return FKV_FORMAT_LONGBENCH;
    if (o->values[FKV_RECORD_PROMPT]) return FKV_FORMAT_PROMPT;
    return FKV_FORMAT_AUTO;
}

/* The key of the record's id in this format; while it is open, the one there is. */
static fkv_record_key id_key(fkv_format format, const fkv_record_object *o)
{
    if (format == FKV_FORMAT_LONGBENCH) return FKV_RECORD_UNDERSCORED;
    if (format == FKV_FORMAT_PROMPT) return FKV_RECORD_ID;
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
    switch (key) {
    case FKV_RECORD_MAX_TOKENS: return true;
    case FKV_RECORD_UNDERSCORED:
    case FKV_RECORD_CONTEXT:
    case FKV_RECORD_INPUT: return format != FKV_FORMAT_PROMPT;
    case FKV_RECORD_ID:
    case FKV_RECORD_PROMPT: return format != FKV_FORMAT_LONGBENCH;
    case FKV_RECORD_DATASET:
    case FKV_RECORD_OTHER:
    default: return false;
    }
}

static fkv_status take_fields(const fkv_record_object *o, fkv_format format, fkv_record *record, fkv_err *err)
{
    fkv_buf *out = &record->fields;
    fkv_buf_clear(out);
    fkv_status st = fkv_buf_puts(out, "{", err);
    for (size_t i = 0; !st && i < o->n; i++) {
        const fkv_record_field *f = &o->fields[i];
        if (consumed(format, f->key)) continue;
        if (out->len > 1) st = fkv_buf_puts(out, ",", err);
        if (!st) st = fkv_buf_append(out, f->text, f->n_text, err);
        if (!st) st = fkv_buf_puts(out, ":", err);
        if (!st) st = fkv_buf_append(out, f->value, f->n_value, err);
    }
    return st ? st : fkv_buf_puts(out, "}", err);
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

/* max_tokens, a positive whole number; null counts as none. */
static void take_limit(const fkv_record_object *o, fkv_record *record)
{
    const fkv_record_field *field = o->known[FKV_RECORD_MAX_TOKENS];
    int64_t limit = 0;
    if (!field || json_is_null(o->values[FKV_RECORD_MAX_TOKENS])) return;
    bool ok = field->n_value <= 10;
    for (size_t i = 0; ok && i < field->n_value; i++) {
        ok = field->value[i] >= '0' && field->value[i] <= '9';
        limit = 10 * limit + (field->value[i] - '0');
    }
    if (ok && limit >= 1 && limit <= INT32_MAX)
        record->max_new_tokens = limit;
    else
        fkv_record_set_error(record, "bad_field", "max_tokens is not a whole number from 1 to %d", INT32_MAX);
}

/* The dataset's own limit, unless the record gave one. */
static void take_dataset_limit(const fkv_record_parser *parser, fkv_record *record)
{
    if (record->max_new_tokens || !parser->limits || !record->dataset.len) return;
    const json_t *limit = json_object_getn(parser->limits, record->dataset.data, record->dataset.len);
    if (limit) record->max_new_tokens = json_integer_value(limit);
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

/* The member's name or else the record's field names the dataset. NULL after
 * setting the record's error. */
static const json_t *find_dataset(const fkv_record_parser *parser, const fkv_record_object *o,
                                  fkv_record *record, fkv_status *st, fkv_err *err)
{
    static const char suffix[] = ".jsonl";
    const size_t n_suffix = sizeof suffix - 1;
    const char *slash = strrchr(record->member, '/');
    const char *base = slash ? slash + 1 : record->member;
    size_t n = strlen(base);
    if (n > n_suffix && memcmp(base + n - n_suffix, suffix, n_suffix) == 0) n -= n_suffix;
    const json_t *template = try_dataset(parser, base, n, record, st, err);
    if (!template && n > 2 && memcmp(base + n - 2, "_e", 2) == 0)
        template = try_dataset(parser, base, n - 2, record, st, err);
    if (template) return template;
    const json_t *own = o->values[FKV_RECORD_DATASET];
    if (json_is_string(own)) {
        template = try_dataset(parser, json_string_value(own), json_string_length(own), record, st, err);
        if (template) return template;
        fkv_record_set_error(record, "unknown_dataset", "%s neither \"%.*s\" nor \"%.80s\"",
                             parser->templates ? "input.prompts has" : "no input.prompts is given, so it has",
                             (int)(n < 80 ? n : 80), base, json_string_value(own));
    } else {
        fkv_record_set_error(record, "unknown_dataset", "%s no \"%.*s\" and the record names no dataset",
                             parser->templates ? "input.prompts has" : "no input.prompts is given, so it has",
                             (int)(n < 80 ? n : 80), base);
    }
    return NULL;
}

/* template with {context} and {input} replaced, in one pass: what is inserted is
 * not looked at again. */
static fkv_status fill_template(const json_t *template, const json_t *context, const json_t *input,
                                fkv_buf *out, fkv_err *err)
{
    static const struct {
        const char *text;
        size_t n;
    } marks[] = {{"{context}", 9}, {"{input}", 7}};
    const json_t *const values[] = {context, input};
    const char *p = json_string_value(template), *end = p + json_string_length(template);
    fkv_status st = FKV_OK;
    while (p < end && !st) {
        const char *brace = memchr(p, '{', (size_t)(end - p));
        if (!brace) brace = end;
        st = fkv_buf_append(out, p, (size_t)(brace - p), err);
        p = brace;
        if (p == end || st) break;
        size_t took = 0;
        for (size_t i = 0; i < 2 && !took; i++) {
            if ((size_t)(end - p) < marks[i].n || memcmp(p, marks[i].text, marks[i].n) != 0) continue;
            took = marks[i].n;
            st = fkv_buf_append(out, json_string_value(values[i]), json_string_length(values[i]), err);
        }
        if (!took && !st) st = fkv_buf_append(out, p, took = 1, err);
        p += took;
    }
    return st;
}

static fkv_status take_longbench(const fkv_record_parser *parser, const fkv_record_object *o,
                                 fkv_record *record, fkv_err *err)
{
    fkv_status st = FKV_OK;
    const json_t *context = need_string(o, FKV_RECORD_CONTEXT, record);
    const json_t *input = context ? need_string(o, FKV_RECORD_INPUT, record) : NULL;
    if (!input) return FKV_OK;
    const json_t *template = find_dataset(parser, o, record, &st, err);
    if (!template || st) return st;
    return fill_template(template, context, input, &record->prompt, err);
}

static fkv_status take_prompt(const fkv_record_object *o, fkv_record *record, fkv_err *err)
{
    const json_t *prompt = need_string(o, FKV_RECORD_PROMPT, record);
    const json_t *dataset = o->values[FKV_RECORD_DATASET];
    fkv_status st = FKV_OK;
    if (!prompt) return FKV_OK;
    if (json_is_string(dataset))
        st = fkv_buf_append(&record->dataset, json_string_value(dataset), json_string_length(dataset), err);
    if (st) return st;
    return fkv_buf_append(&record->prompt, json_string_value(prompt), json_string_length(prompt), err);
}

static fkv_status take_record(const fkv_record_parser *parser, const fkv_record_object *o, fkv_record *record,
                              fkv_err *err)
{
    const fkv_format format = format_of(parser, o);
    fkv_status st = take_id(o, id_key(format, o), record, err);
    if (st) return st;
    if (!record->error_code[0]) take_limit(o, record);
    if ((st = take_fields(o, format, record, err)) || record->error_code[0]) return st;
    if (format == FKV_FORMAT_LONGBENCH)
        st = take_longbench(parser, o, record, err);
    else if (format == FKV_FORMAT_PROMPT)
        st = take_prompt(o, record, err);
    else
        fkv_record_set_error(record, "missing_field", "the record has neither %s nor prompt",
                             o->values[FKV_RECORD_CONTEXT] ? "input beside its context"
                                                           : "context and input");
    if (st || record->error_code[0]) return st;
    take_dataset_limit(parser, record);
    if (!record->prompt.len) fkv_record_set_error(record, "empty_prompt", "the prompt is empty");
    return FKV_OK;
}

/* Empties what an earlier line left; its buffers keep their memory. */
static void begin(fkv_record *record)
{
    const fkv_buf stop = record->sampling.stop;
    fkv_buf *const buffers[] = {&record->member_name,  &record->id_json, &record->dataset,
                                &record->fields,       &record->prompt,  &record->prefix,
                                &record->sampling.stop};
    record->max_new_tokens = 0;
    record->wrap = FKV_WRAP_NONE;
    record->newline_ends = false;
    record->error_code[0] = record->error_message[0] = '\0';
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
        return FKV_OK;
    }
    st = fkv_record_scan(line->text, line->n, &o, record, err);
    if (!st && !record->error_code[0])
        st = take_record(parser, &o, record, err);
    else if (!st)
        st = take_id(&o, id_key(parser->format, &o), record, err);
    fkv_record_object_free(&o);
    return st;
}
