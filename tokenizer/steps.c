/* Lists of steps: see steps.h. Owns nothing. */
#include "tokenizer/steps.h"

#include <stdio.h>
#include <string.h>

#include "tokenizer/characters.h"

enum { DEPTH_MAX = 8 };

fkv_status fkv_step_refuse(const fkv_step_place *at, fkv_err *err, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return fkv_fail_at(err, FKV_E_INPUT, at->file, 0, at->key, "%s", text);
}

fkv_status fkv_step_unknown(const fkv_step_place *at, const char *type, fkv_err *err)
{
    return fkv_step_refuse(at, err, "the type '%.60s' is not supported", type);
}

/* What is the same for every step of one list. */
struct list {
    const char *members;
    fkv_step_fn *fn;
    void *ctx;
};

static fkv_status each(const struct list *l, const json_t *o, const fkv_step_place *at, int depth,
                       fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (!o || json_is_null(o)) return FKV_OK;
    const char *type = json_string_value(json_object_get(o, "type"));
    if (!type) return fkv_step_refuse(at, err, "must be null or an object with a 'type'");
    if (strcmp(type, "Sequence") != 0) return l->fn(l->ctx, o, type, at, err);
    const json_t *list = json_object_get(o, l->members);
    if (depth >= DEPTH_MAX) return fkv_step_refuse(at, err, "has Sequences nested too deeply");
    if (!json_is_array(list)) return fkv_step_refuse(at, err, "'%s' must be an array", l->members);
    for (size_t i = 0; !st && i < json_array_size(list); i++) {
        char key[256];
        snprintf(key, sizeof key, "%.160s.%s[%zu]", at->key, l->members, i);
        const json_t *member = json_array_get(list, i);
        const fkv_step_place inner = {at->file, key};
        if (json_is_null(member)) return fkv_step_refuse(&inner, err, "must be an object with a 'type'");
        st = each(l, member, &inner, depth + 1, err);
    }
    return st;
}

fkv_status fkv_steps_each(const json_t *o, const char *members, const char *file, const char *key,
                          fkv_step_fn *fn, void *ctx, fkv_err *err)
{
    const struct list l = {members, fn, ctx};
    const fkv_step_place at = {file, key};
    return each(&l, o, &at, 0, err);
}

fkv_status fkv_step_pattern(const json_t *step, bool literal, const fkv_step_place *at, fkv_regex **regex,
                            fkv_err *err)
{
    const json_t *pattern = json_object_get(step, "pattern");
    const json_t *source = json_object_get(pattern, "Regex"), *string = json_object_get(pattern, "String");
    *regex = NULL;
    if (json_object_size(pattern) != 1 || (!json_is_string(source) && !json_is_string(string)))
        return fkv_step_refuse(at, err, "'pattern' must be {\"Regex\": string} or {\"String\": string}");
    if (source && literal) return fkv_step_refuse(at, err, "a 'pattern' with a Regex is not supported here");
    const json_t *text = source ? source : string;
    if (json_string_length(text) == 0) return fkv_step_refuse(at, err, "an empty pattern is not supported");
    return fkv_regex_compile(json_string_value(text), json_string_length(text), !source, at->file, at->key,
                             regex, err);
}

fkv_status fkv_step_text(const json_t *step, const char *name, const fkv_step_place *at, const char **text,
                         size_t *n, fkv_err *err)
{
    const json_t *v = json_object_get(step, name);
    if (!json_is_string(v)) return fkv_step_refuse(at, err, "'%s' must be a string", name);
    *text = json_string_value(v);
    *n = json_string_length(v);
    return FKV_OK;
}

fkv_status fkv_step_char(const json_t *step, const char *name, const fkv_step_place *at, const char **text,
                         size_t *n, fkv_err *err)
{
    size_t len = 0;
    fkv_status st = fkv_step_text(step, name, at, text, n, err);
    if (st) return st;
    if (*n) fkv_utf8_get(*text, &len);
    return *n && len == *n ? FKV_OK : fkv_step_refuse(at, err, "'%s' must be one character", name);
}

fkv_status fkv_step_bool(const json_t *step, const char *name, const fkv_step_place *at, bool *out,
                         fkv_err *err)
{
    const json_t *v = json_object_get(step, name);
    if (!json_is_boolean(v)) return fkv_step_refuse(at, err, "'%s' must be true or false", name);
    *out = json_is_true(v);
    return FKV_OK;
}
