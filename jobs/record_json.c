/* Scanning a record's top level: see record_json.h. Depth is bounded by jansson
 * (2,048), the number of keys by FKV_RECORD_FIELDS_MAX. */
#include "jobs/record_json.h"

#include <string.h>

#include "runner/base/json.h"
#include "runner/base/utf8.h"

/* Commas, colons and brackets of one record: what jansson makes of them stays
 * below some 200 MB, where max_record_bytes of "{},{}," would take gigabytes. */
enum { MARKS_MAX = 1 << 20 };

const char *const fkv_record_key_names[FKV_RECORD_N_KEYS] = {"id",
                                                             "_id",
                                                             "context",
                                                             "input",
                                                             "prompt",
                                                             "messages",
                                                             "question",
                                                             "answer_prefix",
                                                             "outputs",
                                                             "index",
                                                             "dataset",
                                                             "task",
                                                             "custom_id",
                                                             "method",
                                                             "url",
                                                             "body",
                                                             "max_tokens",
                                                             "max_new_tokens",
                                                             "max_completion_tokens",
                                                             "temperature",
                                                             "top_p",
                                                             "top_k",
                                                             "seed",
                                                             "stop",
                                                             "repetition_penalty",
                                                             "min_tokens",
                                                             "ignore_eos"};

/* Whole numbers as reals: no integer is too large to pass through. */
static const size_t load_flags =
    JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL | JSON_REJECT_DUPLICATES;

typedef struct cursor {
    const char *start, *p, *end;
} cursor;

static void skip_blanks(cursor *c)
{
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\t' || *c->p == '\r' || *c->p == '\n')) c->p++;
}

static bool at(const cursor *c, char what)
{
    return c->p < c->end && *c->p == what;
}

static void bad_json(const cursor *c, fkv_record *record, const char *what)
{
    fkv_record_set_error(record, "bad_json", "byte %zu: %s", (size_t)(c->p - c->start) + 1, what);
}

/* Turns jansson's complaint about what begins at c->p into the record's error. */
static fkv_status complain(const cursor *c, const json_error_t *je, fkv_record *record, fkv_err *err)
{
    const enum json_error_code code = json_error_code(je);
    if (code == json_error_out_of_memory) return fkv_fail_memory(err);
    const bool utf8 = code == json_error_invalid_utf8;
    const size_t n = (size_t)(c->end - c->start), before = (size_t)(c->p - c->start);
    const size_t where = utf8 ? fkv_utf8_span(c->start, n) + 1 /* jansson counts the sound ones */
                         : je->position > 0 ? before + (size_t)je->position
                                            : before;
    fkv_record_set_error(record, utf8 ? "bad_utf8" : "bad_json", "byte %zu: %s", where, je->text);
    return FKV_OK;
}

/* Decodes the value at c->p and moves behind it; *out is NULL if there is none. */
static fkv_status take_value(cursor *c, json_t **out, fkv_record *record, fkv_err *err)
{
    json_error_t je;
    *out = fkv_json_parse(c->p, (size_t)(c->end - c->p), load_flags | JSON_DISABLE_EOF_CHECK, &je);
    if (!*out) return complain(c, &je, record, err);
    /* jansson passes over a NUL behind a number and does not count it in position. */
    const char *nul = memchr(c->p, '\0', (size_t)je.position);
    if (nul) {
        json_decref(*out);
        *out = NULL;
        c->p = nul;
        bad_json(c, record, "a NUL byte");
        return FKV_OK;
    }
    c->p += je.position; /* the bytes it took, nothing behind them */
    return FKV_OK;
}

static fkv_record_key known_key(const json_t *name)
{
    const char *text = json_string_value(name);
    const size_t n = json_string_length(name);
    for (int k = 0; k < FKV_RECORD_N_KEYS; k++) {
        if (strlen(fkv_record_key_names[k]) == n && memcmp(fkv_record_key_names[k], text, n) == 0)
            return (fkv_record_key)k;
    }
    return FKV_RECORD_OTHER;
}

static bool is_duplicate(const fkv_record_object *o, const json_t *name)
{
    const char *text = json_string_value(name);
    const size_t n = json_string_length(name);
    for (size_t i = 0; i < o->n; i++) {
        if (json_string_length(o->fields[i].name) == n &&
            memcmp(json_string_value(o->fields[i].name), text, n) == 0)
            return true;
    }
    return false;
}

/* One "key": value. Sets the record's error or adds the field. */
static fkv_status take_field(cursor *c, fkv_record_object *o, fkv_record *record, fkv_err *err)
{
    json_t *name = NULL, *value = NULL;
    fkv_record_field field = {.key = FKV_RECORD_OTHER};
    fkv_status st = FKV_OK;
    const cursor start = *c;
    if (!at(c, '"')) {
        bad_json(c, record, "a key in quotes should stand here");
        return FKV_OK;
    }
    if ((st = take_value(c, &name, record, err)) || !name) return st;
    field.text = start.p;
    field.n_text = (size_t)(c->p - start.p);
    if (o->n == FKV_RECORD_FIELDS_MAX) {
        bad_json(&start, record, "too many keys in one record");
        goto out;
    }
    if (memchr(json_string_value(name), '\0', json_string_length(name))) {
        bad_json(&start, record, "a key holds a NUL character"); /* jansson has no such keys either */
        goto out;
    }
    if (is_duplicate(o, name)) {
        bad_json(&start, record, "this key is there twice");
        goto out;
    }
    skip_blanks(c);
    if (!at(c, ':')) {
        bad_json(c, record, "a ':' should stand here");
        goto out;
    }
    c->p++;
    skip_blanks(c);
    field.value = c->p;
    if ((st = take_value(c, &value, record, err)) || !value) goto out;
    field.n_value = (size_t)(c->p - field.value);
    field.name = name;
    field.key = known_key(name);
    name = NULL;
    o->fields[o->n] = field;
    if (field.key != FKV_RECORD_OTHER) {
        o->known[field.key] = &o->fields[o->n];
        o->values[field.key] = json_incref(value);
    }
    o->n++;
out:
    json_decref(value);
    json_decref(name);
    return st;
}

/* A line that is no object: is it JSON at all? */
static fkv_status not_object(const cursor *c, fkv_record *record, fkv_err *err)
{
    json_error_t je;
    json_t *value = fkv_json_parse(c->p, (size_t)(c->end - c->p), load_flags, &je);
    if (!value) return complain(c, &je, record, err);
    json_decref(value);
    fkv_record_set_error(record, "not_object", "the line is JSON but not an object");
    return FKV_OK;
}

fkv_status fkv_record_scan(const char *text, size_t n, fkv_record_object *o, fkv_record *record, fkv_err *err)
{
    cursor c = {.start = text, .p = text, .end = text + n};
    if (fkv_json_marks(text, n) > MARKS_MAX) {
        fkv_record_set_error(record, "too_large", "the record holds more than %d values", MARKS_MAX);
        return FKV_OK;
    }
    skip_blanks(&c);
    if (!at(&c, '{')) return not_object(&c, record, err);
    c.p++;
    skip_blanks(&c);
    if (at(&c, '}')) {
        c.p++;
    } else {
        for (;;) {
            const fkv_status st = take_field(&c, o, record, err);
            if (st || record->error_code[0]) return st;
            skip_blanks(&c);
            const bool more = at(&c, ',');
            if (!more && !at(&c, '}')) {
                bad_json(&c, record, "a ',' or '}' should stand here");
                return FKV_OK;
            }
            c.p++;
            if (!more) break;
            skip_blanks(&c);
        }
    }
    skip_blanks(&c);
    if (c.p != c.end) bad_json(&c, record, "more behind the object");
    return FKV_OK;
}

void fkv_record_object_free(fkv_record_object *o)
{
    for (size_t i = 0; i < o->n; i++) json_decref(o->fields[i].name);
    for (int k = 0; k < FKV_RECORD_N_KEYS; k++) json_decref(o->values[k]);
}
