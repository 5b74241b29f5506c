/* Chat templates: see template.h. Here are their life and what a rendering is given; what stands in
 * a model folder is template_model.c's. */
#include "tokenizer/template.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runner/base/file.h"
#include "runner/base/mem.h"
#include "runner/base/utf8.h"
#include "tokenizer/template_function.h"
#include "tokenizer/template_run.h"

enum {
    TEXT_MAX_BYTES = 1 << 20,     /* of a template: the longest that is published has 20 KiB */
    SYNTAX_MAX_BYTES = 256 << 20, /* of one that is parsed */
    RENDERING_BYTES = 64 << 20,
    BYTES_AN_INPUT_BYTE = 16,
};

struct fkv_template {
    fkv_trun run; /* owns the syntax; nothing runs in it any more */
    fkv_tsyntax syntax;
    json_t *tokens;
    bool dated;
};

struct fkv_template_scratch {
    fkv_tarena arena;
};

fkv_status fkv_template_open(const char *text, size_t n, const char *name, json_t *tokens, fkv_template **out,
                             fkv_err *err)
{
    fkv_err unread = {0};
    *out = NULL;
    if (n > TEXT_MAX_BYTES)
        return fkv_fail_at(err, FKV_E_INPUT, name, 0, NULL, "a chat template of more than %d bytes",
                           TEXT_MAX_BYTES);
    if (fkv_utf8_span(text, n) != n)
        return fkv_fail_at(err, FKV_E_INPUT, name, 0, NULL, "not valid UTF-8 at byte %zu",
                           fkv_utf8_span(text, n));
    fkv_template *t = calloc(1, sizeof *t);
    if (!t) return fkv_fail_memory(err);
    t->run.err = err ? err : &unread;
    t->run.file = name;
    t->run.steps = FKV_TEMPLATE_STEPS;
    t->run.arena.limit = SYNTAX_MAX_BYTES;
    t->tokens = json_incref(tokens);
    t->dated = memmem(text, n, "strftime_now", strlen("strftime_now")) != NULL;
    fkv_status st = fkv_tparse(&t->run, text, n, &t->syntax);
    t->run.err = NULL;
    t->run.file = NULL;
    if (st) {
        fkv_template_close(t);
        return st;
    }
    *out = t;
    return FKV_OK;
}

fkv_status fkv_template_open_file(const char *path, json_t *tokens, fkv_template **out, fkv_err *err)
{
    fkv_buf text = {0};
    *out = NULL;
    fkv_status st = fkv_file_read(path, TEXT_MAX_BYTES, &text, err);
    if (!st) st = fkv_template_open(text.len ? text.data : "", text.len, path, tokens, out, err);
    fkv_buf_free(&text);
    return st;
}

void fkv_template_close(fkv_template *t)
{
    if (!t) return;
    fkv_tarena_free(&t->run.arena);
    json_decref(t->tokens);
    free(t);
}

bool fkv_template_is_dated(const fkv_template *t)
{
    return t->dated;
}

fkv_status fkv_template_scratch_new(fkv_template_scratch **out, fkv_err *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? FKV_OK : fkv_fail_memory(err);
}

void fkv_template_scratch_free(fkv_template_scratch *scratch)
{
    if (!scratch) return;
    fkv_tarena_free(&scratch->arena);
    free(scratch);
}

static bool read_date(const char *date, struct tm *out)
{
    int at[3] = {0};
    for (int i = 0; i < 10; i++) {
        if (i == 4 || i == 7 ? date[i] != '-' : date[i] < '0' || date[i] > '9') return false;
        int *part = &at[i < 4 ? 0 : i < 7 ? 1 : 2];
        if (date[i] != '-') *part = *part * 10 + (date[i] - '0');
    }
    *out = (struct tm){.tm_year = at[0] - 1900, .tm_mon = at[1] - 1, .tm_mday = at[2], .tm_hour = 12};
    if (date[10] || at[0] == 0) return false;
    timegm(out); /* the days of the week and of the year; other months' days wrap */
    return out->tm_mon == at[1] - 1 && out->tm_mday == at[2];
}

fkv_status fkv_template_check_date(const char *date, fkv_err *err)
{
    struct tm day;
    if (read_date(date, &day)) return FKV_OK;
    return fkv_fail(err, FKV_E_INPUT, "'%.40s' is not a date such as 2024-07-26", date);
}

/* About how many bytes a value had as JSON text. What is nested too deeply counts no more: it is
 * refused when it is read. */
static size_t json_bytes(const json_t *v, int depth)
{
    size_t n = 2, i;
    const char *key;
    json_t *member;
    if (json_is_string(v)) return n + json_string_length(v);
    if (depth > FKV_TEMPLATE_DEPTH) return n;
    if (json_is_object(v)) {
        json_object_foreach((json_t *)v, key, member) n += strlen(key) + 2 + json_bytes(member, depth + 1);
    } else {
        json_array_foreach(v, i, member) n += json_bytes(member, depth + 1);
    }
    return n;
}

static fkv_status from_json(fkv_trun *run, const json_t *v, fkv_tvalue *out);

static fkv_status set_member(fkv_trun *run, fkv_tdict *d, const char *key, const json_t *v)
{
    fkv_tvalue name, value;
    fkv_status st = fkv_tv_borrow(run, key, strlen(key), &name);
    if (!st) st = from_json(run, v, &value);
    return st ? st : fkv_tdict_set(run, d, name, value);
}

static fkv_status from_object(fkv_trun *run, const json_t *o, fkv_tvalue *out)
{
    const char *key;
    json_t *member;
    fkv_status st = fkv_tv_new_dict(run, FKV_T_DICT, out);
    json_object_foreach((json_t *)o, key, member)
    {
        if (!st) st = set_member(run, out->dict, key, member);
    }
    return st;
}

/* A list of what make gives for each member. */
static fkv_status from_array(fkv_trun *run, const json_t *a,
                             fkv_status (*make)(fkv_trun *run, const json_t *member, fkv_tvalue *out),
                             fkv_tvalue *out)
{
    size_t i;
    json_t *member;
    fkv_tvalue item;
    fkv_status st = fkv_tv_new_list(run, FKV_T_LIST, json_array_size(a), out);
    json_array_foreach(a, i, member)
    {
        if (!st) st = make(run, member, &item);
        if (!st) st = fkv_tlist_push(run, out->list, item);
    }
    return st;
}

/* Strings borrow theirs. */
static fkv_status from_json(fkv_trun *run, const json_t *v, fkv_tvalue *out)
{
    fkv_status st = fkv_trun_enter(run);
    if (st) return st;
    switch (json_typeof(v)) {
    case JSON_OBJECT: st = from_object(run, v, out); break;
    case JSON_ARRAY: st = from_array(run, v, from_json, out); break;
    case JSON_STRING: st = fkv_tv_borrow(run, json_string_value(v), json_string_length(v), out); break;
    case JSON_INTEGER: *out = fkv_tv_int(json_integer_value(v)); break;
    case JSON_REAL: *out = fkv_tv_float(json_real_value(v)); break;
    case JSON_NULL: *out = fkv_tv_none(); break;
    default: *out = fkv_tv_bool(json_is_true(v));
    }
    fkv_trun_leave(run);
    return st;
}

/* A message as HF gives it: without members that are null; what the model thought has both names
 * that templates know, by whichever of three it came. */
static fkv_status from_message(fkv_trun *run, const json_t *m, fkv_tvalue *out)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    const json_t *thoughts = NULL;
    const char *key;
    json_t *member;
    if (!json_is_object(m)) return fkv_fail(run->err, FKV_E_INPUT, "a message must be an object");
    for (size_t i = 0; i < 3 && (!thoughts || json_is_null(thoughts)); i++)
        thoughts = json_object_get(m, names[i]);
    if (json_is_null(thoughts)) thoughts = NULL;
    fkv_status st = fkv_tv_new_dict(run, FKV_T_DICT, out);
    if (!st && thoughts) st = set_member(run, out->dict, "thinking", thoughts);
    json_object_foreach((json_t *)m, key, member)
    {
        if (!st && !json_is_null(member)) st = set_member(run, out->dict, key, member);
    }
    return st || !thoughts ? st : set_member(run, out->dict, "reasoning_content", thoughts);
}

/* What a name is where the template has not assigned it. */
static fkv_status global_of(fkv_trun *run, const fkv_template *t, const fkv_template_input *in,
                            fkv_tvalue name, fkv_tvalue *out)
{
    bool found;
    const json_t *v = json_object_getn(in->variables, name.s, name.n);
    if (fkv_tv_is(name, "messages")) return from_array(run, in->messages, from_message, out);
    if (!v) v = json_object_getn(t->tokens, name.s, name.n);
    if (v) return from_json(run, v, out);
    *out = fkv_tv_function(name, &found);
    if (found) return FKV_OK;
    if (fkv_tv_is(name, "add_generation_prompt")) {
        *out = fkv_tv_bool(in->add_generation_prompt);
    } else if (fkv_tv_is(name, "tools") || fkv_tv_is(name, "documents")) {
        *out = fkv_tv_none();
    } else {
        *out = name;
        out->type = FKV_T_UNDEFINED;
        out->flag = FKV_T_BY_NAME;
    }
    return FKV_OK;
}

static fkv_status fill_globals(fkv_teval *e, const fkv_template *t, const fkv_template_input *in)
{
    const fkv_tdict *names = t->syntax.names;
    fkv_status st = FKV_OK;
    e->globals = fkv_tarena_take(&e->run.arena, names->n, sizeof *e->globals);
    if (!e->globals) return fkv_trun_no_room(&e->run);
    for (size_t i = 0; !st && i < names->n; i++)
        st = global_of(&e->run, t, in, names->at[i].key, &e->globals[i]);
    return st;
}

static fkv_status check_input(const fkv_template_input *in, fkv_err *err)
{
    if (!json_is_array(in->messages)) return fkv_fail(err, FKV_E_INPUT, "messages must be a list");
    if (!json_array_size(in->messages)) return fkv_fail(err, FKV_E_INPUT, "messages must not be empty");
    if (in->variables && !json_is_object(in->variables))
        return fkv_fail(err, FKV_E_INPUT, "a template's variables must be an object");
    if (json_object_get(in->variables, "messages") || json_object_get(in->variables, "add_generation_prompt"))
        return fkv_fail(err, FKV_E_INPUT,
                        "messages and add_generation_prompt are no variables of a template");
    return in->date ? fkv_template_check_date(in->date, err) : FKV_OK;
}

fkv_status fkv_template_render(const fkv_template *t, fkv_template_scratch *scratch,
                               const fkv_template_input *in, fkv_buf *out, fkv_err *err)
{
    const size_t before = out->len;
    struct tm day;
    size_t bytes, limit;
    fkv_err unread = {0};
    fkv_status st = check_input(in, err);
    if (st) return st;
    bytes = json_bytes(in->messages, 0) + json_bytes(in->variables, 0);
    if (!fkv_mul_size(bytes, BYTES_AN_INPUT_BYTE, &limit) || !fkv_add_size(limit, RENDERING_BYTES, &limit))
        return fkv_fail(err, FKV_E_INPUT, "the messages are too long for a chat template");
    fkv_tarena_empty(&scratch->arena, limit);
    fkv_teval e = {
        .run = {.arena = scratch->arena, .steps = FKV_TEMPLATE_STEPS, .line = 1, .err = err ? err : &unread},
        .out = out,
        .day = in->date && read_date(in->date, &day) ? &day : NULL};
    st = fill_globals(&e, t, in);
    if (!st) st = fkv_teval_run(&e, t->syntax.body);
    scratch->arena = e.run.arena;
    if (st && out->data) out->data[out->len = before] = '\0';
    return st;
}
