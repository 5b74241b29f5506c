/* Jinja's filters: see template_filter.h. */
#include "tokenizer/template_filter.h"

#include <string.h>

#include "tokenizer/template_method.h"
#include "tokenizer/template_operator.h"
#include "tokenizer/template_string.h"
#include "tokenizer/template_test.h"
#include "tokenizer/template_text.h"

typedef fkv_status filter_function(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out);

enum { JSON_INDENT_MAX = 256 };

/* What an attribute's name, "a.b.0", leads to. */
static fkv_status follow(fkv_trun *run, fkv_tvalue v, fkv_tvalue path, fkv_tvalue fallback, fkv_tvalue *out)
{
    fkv_status st = FKV_OK;
    *out = v;
    if (path.type == FKV_T_NONE) return FKV_OK;
    if (path.type != FKV_T_STRING) {
        st = fkv_tv_subscript(run, v, path, out);
        if (!st && out->type == FKV_T_UNDEFINED && fkv_targ_given(fallback)) *out = fallback;
        return st;
    }
    for (uint32_t from = 0; !st && from <= path.n;) {
        const char *dot = memchr(path.s + from, '.', path.n - from);
        const uint32_t end = dot ? (uint32_t)(dot - path.s) : path.n;
        fkv_tvalue key = {.type = FKV_T_STRING, .n = end - from, .s = path.s + from};
        int64_t number = 0;
        bool digits = key.n > 0 && key.n < 18;
        for (uint32_t i = 0; digits && i < key.n; i++) {
            digits = key.s[i] >= '0' && key.s[i] <= '9';
            number = number * 10 + (key.s[i] - '0');
        }
        if (digits) key = fkv_tv_int(number);
        st = fkv_tv_subscript(run, *out, key, out);
        if (!st && out->type == FKV_T_UNDEFINED && fkv_targ_given(fallback)) *out = fallback;
        from = end + 1;
    }
    return st;
}

/* The state of map, select and reject, with or without attr. */
typedef struct picker {
    fkv_targs args; /* as they were given, but for the attribute's name */
    bool keeps;     /* select */
    fkv_tvalue path, fallback;
} picker;

/* Whether there is a first item: Jinja asks whether the value is true before it looks for one. */
static fkv_status begin(fkv_trun *run, fkv_tstream *s, bool *more)
{
    *more = true;
    if (s->begun) return FKV_OK;
    s->begun = true;
    *more = fkv_tv_truth(s->source.of);
    return *more ? fkv_titer_start(run, s->source.of, &s->source) : FKV_OK;
}

static fkv_status next_mapped(fkv_trun *run, fkv_tstream *s, fkv_tvalue *item, bool *more)
{
    const picker *p = s->state;
    fkv_tvalue v;
    fkv_status st = begin(run, s, more);
    if (!st && *more) st = fkv_titer_next(run, &s->source, &v, more);
    if (st || !*more) return st;
    if (fkv_targ_given(p->path)) return follow(run, v, p->path, p->fallback, item);
    if (!p->args.n) return fkv_trun_fail(run, "map requires a filter argument");
    const fkv_targs rest = {p->args.n - 1, p->args.n_named, p->args.at + 1, p->args.named};
    return fkv_tv_filter(run, p->args.at[0], v, &rest, item);
}

static fkv_status next_picked(fkv_trun *run, fkv_tstream *s, fkv_tvalue *item, bool *more)
{
    const picker *p = s->state;
    fkv_status st = begin(run, s, more);
    while (!st && *more && !(st = fkv_titer_next(run, &s->source, item, more)) && *more) {
        fkv_tvalue v;
        bool yes;
        st = follow(run, *item, p->path, (fkv_tvalue){0}, &v);
        if (st) break;
        if (p->args.n) {
            const fkv_targs rest = {p->args.n - 1, p->args.n_named, p->args.at + 1, p->args.named};
            st = fkv_tv_test(run, p->args.at[0], v, &rest, &yes);
        } else {
            yes = fkv_tv_truth(v);
        }
        if (!st && yes == p->keeps) return FKV_OK;
    }
    return st;
}

static fkv_status new_stream(fkv_trun *run, fkv_tvalue v, const picker *how,
                             fkv_status (*next)(fkv_trun *, fkv_tstream *, fkv_tvalue *, bool *),
                             fkv_tvalue *out)
{
    fkv_tstream *s = fkv_tarena_take(&run->arena, 1, sizeof *s);
    picker *p = s ? fkv_tarena_take(&run->arena, 1, sizeof *p) : NULL;
    if (!p) return fkv_trun_no_room(run);
    *p = *how;
    *s = (fkv_tstream){.next = next, .source = {.of = v}, .state = p};
    *out = (fkv_tvalue){.type = FKV_T_STREAM, .stream = s};
    return FKV_OK;
}

static fkv_status filter_map(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    picker p = {.args = *args};
    if (!args->n && args->n_named) {
        fkv_tvalue a[2];
        fkv_status st = fkv_targs_bind(run, args, "map", "attribute default", 1, a);
        if (st) return st;
        p.path = a[0];
        if (a[1].type != FKV_T_NONE) p.fallback = a[1];
    }
    return new_stream(run, v, &p, next_mapped, out);
}

static fkv_status pick(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, bool attribute, bool keeps,
                       fkv_tvalue *out)
{
    picker p = {.args = *args, .keeps = keeps, .path = fkv_tv_none()};
    if (attribute) {
        if (!args->n) return fkv_trun_fail(run, "selectattr and rejectattr need an attribute's name");
        p.path = args->at[0];
        p.args.at++;
        p.args.n--;
    }
    return new_stream(run, v, &p, next_picked, out);
}

static fkv_status filter_select(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    return pick(run, v, args, false, true, out);
}

static fkv_status filter_reject(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    return pick(run, v, args, false, false, out);
}

static fkv_status filter_selectattr(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    return pick(run, v, args, true, true, out);
}

static fkv_status filter_rejectattr(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    return pick(run, v, args, true, false, out);
}

static fkv_status filter_trim(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue chars;
    fkv_status st = fkv_targs_bind(run, args, "trim", "chars", 0, &chars);
    if (!st && !fkv_targ_given(chars)) chars = fkv_tv_none();
    if (!st && chars.type != FKV_T_NONE && chars.type != FKV_T_STRING)
        st = fkv_trun_fail(run, "strip arg must be None or str");
    if (!st) st = fkv_tv_string(run, v, &v);
    return st ? st : fkv_ts_strip(run, v, chars, FKV_TS_LEFT | FKV_TS_RIGHT, out);
}

static fkv_status filter_length(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    int64_t n;
    fkv_status st = fkv_targs_bind(run, args, "length", "", 0, NULL);
    if (!st) st = fkv_tv_length(run, v, &n);
    if (!st && n < 0) st = fkv_trun_fail(run, "object of type '%s' has no len()", fkv_tv_type(v));
    if (!st) *out = fkv_tv_int(n);
    return st;
}

static fkv_status filter_list(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_status st = fkv_targs_bind(run, args, "list", "", 0, NULL);
    return st ? st : fkv_tv_collect(run, v, FKV_T_LIST, out);
}

static fkv_status filter_string(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_status st = fkv_targs_bind(run, args, "string", "", 0, NULL);
    return st ? st : fkv_tv_string(run, v, out);
}

static fkv_status filter_safe(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_status st = filter_string(run, v, args, out);
    if (!st) out->flag = true;
    return st;
}

static fkv_status filter_escape(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_status st = filter_string(run, v, args, out);
    return st ? st : fkv_ts_escape(run, *out, out);
}

static fkv_status filter_join(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue a[2], item;
    fkv_titer it;
    fkv_buf text = {0};
    bool more, first = true;
    fkv_status st = fkv_targs_bind(run, args, "join", "d attribute", 0, a);
    if (!st && !fkv_targ_given(a[0])) a[0] = fkv_tv_text("");
    if (!st && !fkv_targ_given(a[1])) a[1] = fkv_tv_none();
    if (!st) st = fkv_tv_string(run, a[0], &a[0]);
    if (!st) st = fkv_titer_start(run, v, &it);
    while (!st && !(st = fkv_titer_next(run, &it, &item, &more)) && more) {
        st = follow(run, item, a[1], (fkv_tvalue){0}, &item);
        if (!st && !first) st = fkv_trun_put(run, &text, a[0].s, a[0].n);
        if (!st) st = fkv_tv_print(run, item, &text);
        first = false;
    }
    if (!st) st = fkv_tv_take(run, &text, out);
    fkv_buf_free(&text);
    return st;
}

static fkv_status filter_first(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_titer it;
    bool more;
    fkv_status st = fkv_targs_bind(run, args, "first", "", 0, NULL);
    if (!st) st = fkv_titer_start(run, v, &it);
    if (!st) st = fkv_titer_next(run, &it, out, &more);
    if (!st && !more) *out = fkv_tv_undefined("No first item, sequence was empty.");
    return st;
}

static fkv_status filter_last(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    int64_t n;
    fkv_titer it = {.of = v};
    bool more;
    fkv_status st = fkv_targs_bind(run, args, "last", "", 0, NULL);
    if (!st) st = fkv_tv_length(run, v, &n);
    if (!st && n < 0) st = fkv_trun_fail(run, "'%s' object is not reversible", fkv_tv_type(v));
    if (st) return st;
    if (!n || v.type == FKV_T_UNDEFINED) {
        *out = fkv_tv_undefined("No last item, sequence was empty.");
        return FKV_OK;
    }
    if (v.type == FKV_T_STRING) return fkv_ts_slice(run, v, n - 1, 1, 1, out);
    it.at = (size_t)n - 1;
    return fkv_titer_next(run, &it, out, &more);
}

static fkv_status filter_upper(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_status st = filter_string(run, v, args, &v);
    return st ? st : fkv_ts_upper(run, v, out);
}

static fkv_status filter_lower(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_status st = filter_string(run, v, args, &v);
    return st ? st : fkv_ts_lower(run, v, out);
}

static fkv_status filter_replace(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue a[3];
    int64_t max = -1;
    fkv_status st = fkv_targs_bind(run, args, "replace", "old new count", 2, a);
    if (!st) st = fkv_tv_plain_string(run, v, &v);
    if (!st) st = fkv_tv_string(run, a[0], &a[0]);
    if (!st) st = fkv_tv_string(run, a[1], &a[1]);
    if (!st && fkv_targ_given(a[2]) && a[2].type != FKV_T_NONE && !fkv_tv_as_int(a[2], &max))
        st = fkv_trun_fail(run, "replace: the count must be int, not %s", fkv_tv_type(a[2]));
    return st ? st : fkv_ts_replace(run, v, a[0], a[1], max, out);
}

static fkv_status filter_default(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue a[2];
    fkv_status st = fkv_targs_bind(run, args, "default", "default_value boolean", 0, a);
    if (st) return st;
    *out = v;
    if (v.type == FKV_T_UNDEFINED || (fkv_tv_truth(a[1]) && !fkv_tv_truth(v)))
        *out = fkv_targ_given(a[0]) ? a[0] : fkv_tv_text("");
    return FKV_OK;
}

static fkv_status filter_items(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    const picker every = {.keeps = true, .path = fkv_tv_none()};
    fkv_status st = fkv_targs_bind(run, args, "items", "", 0, NULL);
    if (st) return st;
    /* Jinja's is a generator: a pair is always true, so that select keeps each. */
    if (v.type == FKV_T_DICT)
        v = fkv_tv_view(v.dict, FKV_T_ITEMS);
    else if (v.type != FKV_T_UNDEFINED)
        return fkv_trun_fail(run, "Can only get item pairs from a mapping.");
    return new_stream(run, v, &every, next_picked, out);
}

/* json.dumps's indent: None, a number of spaces, or a string. */
static fkv_status json_indent(fkv_trun *run, fkv_tvalue v, fkv_tjson *how)
{
    int64_t n;
    char *spaces;
    if (!fkv_targ_given(v) || v.type == FKV_T_NONE) return FKV_OK;
    how->indented = true;
    how->comma = fkv_tv_text(",");
    how->indent = v;
    if (v.type == FKV_T_STRING) return FKV_OK;
    if (!fkv_tv_as_int(v, &n)) return fkv_trun_fail(run, "tojson: the indent must be int or str");
    if (n > JSON_INDENT_MAX) return fkv_trun_fail(run, "tojson: an indent of more than %d", JSON_INDENT_MAX);
    if (n < 0) n = 0;
    fkv_status st = fkv_tv_new_string(run, (size_t)n, &spaces, &how->indent);
    if (!st) memset(spaces, ' ', (size_t)n);
    return st;
}

static fkv_status json_separators(fkv_trun *run, fkv_tvalue v, fkv_tjson *how)
{
    if (!fkv_targ_given(v) || v.type == FKV_T_NONE) return FKV_OK;
    if ((v.type != FKV_T_LIST && v.type != FKV_T_TUPLE) || v.list->n != 2 ||
        v.list->at[0].type != FKV_T_STRING || v.list->at[1].type != FKV_T_STRING)
        return fkv_trun_fail(run, "tojson: the separators must be two strings");
    how->comma = v.list->at[0];
    how->colon = v.list->at[1];
    return FKV_OK;
}

static fkv_status filter_tojson(fkv_trun *run, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue a[4];
    fkv_tjson how = {.comma = fkv_tv_text(", "), .colon = fkv_tv_text(": ")};
    fkv_status st = fkv_targs_bind(run, args, "tojson", "ensure_ascii indent separators sort_keys", 0, a);
    how.ascii = !st && fkv_tv_truth(a[0]);
    how.sorted = !st && fkv_tv_truth(a[3]);
    if (!st) st = json_indent(run, a[1], &how);
    if (!st) st = json_separators(run, a[2], &how);
    return st ? st : fkv_tv_json(run, v, &how, out);
}

static const struct {
    const char *name;
    filter_function *call;
} filters[] = {
    {"trim", filter_trim},
    {"length", filter_length},
    {"count", filter_length},
    {"list", filter_list},
    {"string", filter_string},
    {"join", filter_join},
    {"items", filter_items},
    {"map", filter_map},
    {"select", filter_select},
    {"reject", filter_reject},
    {"selectattr", filter_selectattr},
    {"rejectattr", filter_rejectattr},
    {"first", filter_first},
    {"last", filter_last},
    {"upper", filter_upper},
    {"lower", filter_lower},
    {"replace", filter_replace},
    {"default", filter_default},
    {"d", filter_default},
    {"safe", filter_safe},
    {"escape", filter_escape},
    {"e", filter_escape},
    {"tojson", filter_tojson},
};

fkv_status fkv_tv_filter(fkv_trun *run, fkv_tvalue name, fkv_tvalue v, const fkv_targs *args, fkv_tvalue *out)
{
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (fkv_tv_is(name, filters[i].name)) return filters[i].call(run, v, args, out);
    if (name.type != FKV_T_STRING)
        return fkv_trun_fail(run, "a filter's name must be str, not %s", fkv_tv_type(name));
    return fkv_trun_fail(run, "there is no filter '%.*s'", name.n < 60 ? (int)name.n : 60, name.s);
}
