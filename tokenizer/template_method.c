/* Methods of values: see template_method.h. */
#include "tokenizer/template_method.h"

#include <stdio.h>
#include <string.h>

#include "tokenizer/template_operator.h"
#include "tokenizer/template_string.h"

/* self is of the method's type. */
typedef fkv_status method_function(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out);

static fkv_status need_string(fkv_trun *run, fkv_tvalue v, const char *what)
{
    if (v.type == FKV_T_STRING) return FKV_OK;
    if (v.type == FKV_T_UNDEFINED) return fkv_trun_fail_undefined(run, v);
    return fkv_trun_fail(run, "%s: an argument must be str, not %s", what, fkv_tv_type(v));
}

/* An optional integer. */
static fkv_status take_int(fkv_trun *run, fkv_tvalue v, const char *what, int64_t fallback, int64_t *out)
{
    *out = fallback;
    if (!fkv_targ_given(v) || fkv_tv_as_int(v, out)) return FKV_OK;
    return fkv_trun_fail(run, "%s: '%s' object cannot be interpreted as an integer", what, fkv_tv_type(v));
}

static fkv_status no_names(fkv_trun *run, const fkv_targs *args, const char *what)
{
    return args->n_named ? fkv_trun_fail(run, "%s takes no keyword arguments", what) : FKV_OK;
}

static fkv_status split(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, bool from_right,
                        fkv_tvalue *out)
{
    fkv_tvalue a[2];
    int64_t max = -1;
    fkv_status st = fkv_targs_bind(run, args, "split", "sep maxsplit", 0, a);
    if (!st) st = take_int(run, a[1], "split", -1, &max);
    if (!st && !fkv_targ_given(a[0])) a[0] = fkv_tv_none();
    if (!st && a[0].type != FKV_T_NONE) st = need_string(run, a[0], "split");
    return st ? st : fkv_ts_split(run, self, a[0], max, from_right, out);
}

static fkv_status str_split(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return split(run, self, args, false, out);
}

static fkv_status str_rsplit(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return split(run, self, args, true, out);
}

static fkv_status strip(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, int sides, fkv_tvalue *out)
{
    fkv_tvalue chars;
    fkv_status st = no_names(run, args, "strip");
    if (!st) st = fkv_targs_bind(run, args, "strip", "chars", 0, &chars);
    if (!st && !fkv_targ_given(chars)) chars = fkv_tv_none();
    if (!st && chars.type != FKV_T_NONE) st = need_string(run, chars, "strip");
    return st ? st : fkv_ts_strip(run, self, chars, sides, out);
}

static fkv_status str_strip(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return strip(run, self, args, FKV_TS_LEFT | FKV_TS_RIGHT, out);
}

static fkv_status str_lstrip(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return strip(run, self, args, FKV_TS_LEFT, out);
}

static fkv_status str_rstrip(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return strip(run, self, args, FKV_TS_RIGHT, out);
}

static bool has_prefix(fkv_tvalue v, fkv_tvalue prefix)
{
    return prefix.n <= v.n && memcmp(v.s, prefix.s, prefix.n) == 0;
}

static bool has_suffix(fkv_tvalue v, fkv_tvalue suffix)
{
    return suffix.n <= v.n && memcmp(v.s + v.n - suffix.n, suffix.s, suffix.n) == 0;
}

/* v[start:stop] for arguments of startswith and endswith; *inside is false where start is behind the end. */
static fkv_status window(fkv_trun *run, fkv_tvalue v, const fkv_tvalue bounds[2], fkv_tvalue *out,
                         bool *inside)
{
    int64_t n, from, to;
    *out = v;
    *inside = true;
    if (!fkv_targ_given(bounds[0]) && !fkv_targ_given(bounds[1])) return FKV_OK;
    fkv_status st = fkv_tv_length(run, v, &n);
    const fkv_tvalue start = bounds[0].type == FKV_T_NONE ? fkv_tv_int(0) : bounds[0];
    const fkv_tvalue stop = bounds[1].type == FKV_T_NONE ? fkv_tv_int(n) : bounds[1];
    if (!st) st = take_int(run, start, "startswith", 0, &from);
    if (!st) st = take_int(run, stop, "startswith", n, &to);
    if (st) return st;
    fkv_tv_clamp(n, &from, &to);
    *inside = from <= to && from <= n;
    return *inside ? fkv_ts_slice(run, v, from, 1, to - from, out) : FKV_OK;
}

static fkv_status ends(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, const char *what,
                       bool (*has)(fkv_tvalue, fkv_tvalue), fkv_tvalue *out)
{
    fkv_tvalue a[3], v;
    bool inside, found = false;
    fkv_status st = no_names(run, args, what);
    if (!st) st = fkv_targs_bind(run, args, what, "affix start end", 1, a);
    if (!st) st = window(run, self, a + 1, &v, &inside);
    if (!st && a[0].type == FKV_T_TUPLE) {
        for (size_t i = 0; !st && !found && i < a[0].list->n; i++) {
            st = need_string(run, a[0].list->at[i], what);
            if (!st) st = fkv_trun_step(run, a[0].list->at[i].n);
            found = !st && inside && has(v, a[0].list->at[i]);
        }
    } else if (!st && !(st = need_string(run, a[0], what)) && !(st = fkv_trun_step(run, a[0].n))) {
        found = inside && has(v, a[0]);
    }
    *out = fkv_tv_bool(found);
    return st;
}

static fkv_status str_startswith(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return ends(run, self, args, "startswith", has_prefix, out);
}

static fkv_status str_endswith(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return ends(run, self, args, "endswith", has_suffix, out);
}

static fkv_status str_removeprefix(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue prefix = {0};
    fkv_status st = no_names(run, args, "removeprefix");
    if (!st) st = fkv_targs_bind(run, args, "removeprefix", "prefix", 1, &prefix);
    if (!st) st = need_string(run, prefix, "removeprefix");
    *out = self;
    if (!st && has_prefix(self, prefix)) {
        out->s += prefix.n;
        out->n -= prefix.n;
    }
    return st;
}

static fkv_status str_removesuffix(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue suffix = {0};
    fkv_status st = no_names(run, args, "removesuffix");
    if (!st) st = fkv_targs_bind(run, args, "removesuffix", "suffix", 1, &suffix);
    if (!st) st = need_string(run, suffix, "removesuffix");
    *out = self;
    if (!st && has_suffix(self, suffix)) out->n -= suffix.n;
    return st;
}

static fkv_status str_replace(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue a[3];
    int64_t max = -1;
    fkv_status st = no_names(run, args, "replace");
    if (!st) st = fkv_targs_bind(run, args, "replace", "old new count", 2, a);
    if (!st) st = need_string(run, a[0], "replace");
    if (!st) st = need_string(run, a[1], "replace");
    if (!st) st = take_int(run, a[2], "replace", -1, &max);
    if (!st && self.flag) st = fkv_ts_escape(run, a[1], &a[1]);
    return st ? st : fkv_ts_replace(run, self, a[0], a[1], max, out);
}

static fkv_status str_upper(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_status st = fkv_targs_bind(run, args, "upper", "", 0, NULL);
    return st ? st : fkv_ts_upper(run, self, out);
}

static fkv_status str_lower(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_status st = fkv_targs_bind(run, args, "lower", "", 0, NULL);
    return st ? st : fkv_ts_lower(run, self, out);
}

static fkv_status str_join(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue items = {0}, item;
    fkv_titer it;
    fkv_buf text = {0};
    bool more, first = true;
    fkv_status st = no_names(run, args, "join");
    if (!st) st = fkv_targs_bind(run, args, "join", "iterable", 1, &items);
    if (!st) st = fkv_titer_start(run, items, &it);
    while (!st && !(st = fkv_titer_next(run, &it, &item, &more)) && more) {
        st = need_string(run, item, "join");
        if (!st && self.flag) st = fkv_ts_escape(run, item, &item);
        if (!st && !first) st = fkv_trun_put(run, &text, self.s, self.n);
        if (!st) st = fkv_trun_put(run, &text, item.s, item.n);
        first = false;
    }
    if (!st) st = fkv_tv_copy_string(run, text.data, text.len, out);
    if (!st) out->flag = self.flag;
    fkv_buf_free(&text);
    return st;
}

static fkv_status str_find(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue part = {0};
    int64_t at = -1;
    fkv_status st = no_names(run, args, "find");
    if (!st) st = fkv_targs_bind(run, args, "find", "sub", 1, &part);
    if (!st) st = need_string(run, part, "find");
    if (!st) st = fkv_ts_find(run, self, part, &at);
    if (!st && at > 0) { /* bytes become characters */
        self.n = (uint32_t)at;
        st = fkv_tv_length(run, self, &at);
    }
    *out = fkv_tv_int(at);
    return st;
}

static fkv_status dict_view(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, int what, fkv_tvalue *out)
{
    fkv_status st = fkv_targs_bind(run, args, "a dict's method", "", 0, NULL);
    *out = fkv_tv_view(self.dict, what);
    return st;
}

static fkv_status dict_items(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return dict_view(run, self, args, FKV_T_ITEMS, out);
}

static fkv_status dict_keys(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return dict_view(run, self, args, FKV_T_KEYS, out);
}

static fkv_status dict_values(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    return dict_view(run, self, args, FKV_T_VALUES, out);
}

static fkv_status dict_get(fkv_trun *run, fkv_tvalue self, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue a[2];
    fkv_tentry *entry = NULL;
    fkv_status st = no_names(run, args, "get");
    if (!st) st = fkv_targs_bind(run, args, "get", "key default", 1, a);
    if (!st) st = fkv_tdict_get(run, self.dict, a[0], &entry);
    if (!st) *out = entry ? entry->value : fkv_targ_given(a[1]) ? a[1] : fkv_tv_none();
    return st;
}

enum { OF_STR = 1, OF_LIST = 2, OF_TUPLE = 4, OF_DICT = 8, CHANGES = 16 };

/* Every method that Python's types have by a name that a template could use for a member. */
static const struct {
    const char *name;
    int of;                /* types that have it; CHANGES: it would change the value */
    method_function *call; /* NULL: not supported */
} methods[] = {
    {"split", OF_STR, str_split},
    {"rsplit", OF_STR, str_rsplit},
    {"strip", OF_STR, str_strip},
    {"lstrip", OF_STR, str_lstrip},
    {"rstrip", OF_STR, str_rstrip},
    {"startswith", OF_STR, str_startswith},
    {"endswith", OF_STR, str_endswith},
    {"removeprefix", OF_STR, str_removeprefix},
    {"removesuffix", OF_STR, str_removesuffix},
    {"replace", OF_STR, str_replace},
    {"upper", OF_STR, str_upper},
    {"lower", OF_STR, str_lower},
    {"join", OF_STR, str_join},
    {"find", OF_STR, str_find},
    {"get", OF_DICT, dict_get},
    {"items", OF_DICT, dict_items},
    {"keys", OF_DICT, dict_keys},
    {"values", OF_DICT, dict_values},
    {"append", OF_LIST | CHANGES, NULL},
    {"extend", OF_LIST | CHANGES, NULL},
    {"insert", OF_LIST | CHANGES, NULL},
    {"remove", OF_LIST | CHANGES, NULL},
    {"reverse", OF_LIST | CHANGES, NULL},
    {"sort", OF_LIST | CHANGES, NULL},
    {"pop", OF_LIST | OF_DICT | CHANGES, NULL},
    {"clear", OF_LIST | OF_DICT | CHANGES, NULL},
    {"popitem", OF_DICT | CHANGES, NULL},
    {"setdefault", OF_DICT | CHANGES, NULL},
    {"update", OF_DICT | CHANGES, NULL},
    {"copy", OF_LIST | OF_DICT, NULL},
    {"fromkeys", OF_DICT, NULL},
    {"count", OF_STR | OF_LIST | OF_TUPLE, NULL},
    {"index", OF_STR | OF_LIST | OF_TUPLE, NULL},
    {"capitalize", OF_STR, NULL},
    {"casefold", OF_STR, NULL},
    {"center", OF_STR, NULL},
    {"encode", OF_STR, NULL},
    {"expandtabs", OF_STR, NULL},
    {"format", OF_STR, NULL},
    {"format_map", OF_STR, NULL},
    {"isalnum", OF_STR, NULL},
    {"isalpha", OF_STR, NULL},
    {"isascii", OF_STR, NULL},
    {"isdecimal", OF_STR, NULL},
    {"isdigit", OF_STR, NULL},
    {"isidentifier", OF_STR, NULL},
    {"islower", OF_STR, NULL},
    {"isnumeric", OF_STR, NULL},
    {"isprintable", OF_STR, NULL},
    {"isspace", OF_STR, NULL},
    {"istitle", OF_STR, NULL},
    {"isupper", OF_STR, NULL},
    {"ljust", OF_STR, NULL},
    {"maketrans", OF_STR, NULL},
    {"partition", OF_STR, NULL},
    {"rfind", OF_STR, NULL},
    {"rindex", OF_STR, NULL},
    {"rjust", OF_STR, NULL},
    {"rpartition", OF_STR, NULL},
    {"splitlines", OF_STR, NULL},
    {"swapcase", OF_STR, NULL},
    {"title", OF_STR, NULL},
    {"translate", OF_STR, NULL},
    {"zfill", OF_STR, NULL},
};

static int types_of(fkv_tvalue v)
{
    switch (v.type) {
    case FKV_T_STRING: return OF_STR;
    case FKV_T_LIST: return OF_LIST;
    case FKV_T_TUPLE: return OF_TUPLE;
    case FKV_T_DICT: return OF_DICT;
    default: return 0;
    }
}

/* getattr(of, name) without items. *found is false where Python has no such attribute. */
static fkv_status own_attribute(fkv_trun *run, fkv_tvalue of, fkv_tvalue name, fkv_tvalue *out, bool *found)
{
    const int type = types_of(of);
    *found = false;
    if (of.type == FKV_T_UNDEFINED) return fkv_trun_fail_undefined(run, of);
    if (of.type == FKV_T_NAMESPACE) {
        fkv_tentry *entry;
        fkv_status st = fkv_tdict_get(run, of.dict, name, &entry);
        *found = !st && entry;
        if (*found) *out = entry->value;
        return st;
    }
    for (size_t i = 0; type && i < sizeof methods / sizeof *methods; i++) {
        if (!(methods[i].of & type) || !fkv_tv_is(name, methods[i].name)) continue;
        *found = true;
        if (methods[i].of & CHANGES) {
            *out = fkv_tv_undefined("a template may not change a list or a dict");
            return FKV_OK;
        }
        fkv_tvalue *box = fkv_tarena_take(&run->arena, 1, sizeof *box);
        if (!box) return fkv_trun_no_room(run);
        *box = of;
        *out = (fkv_tvalue){.type = FKV_T_METHOD, .flag = (uint8_t)i, .box = box};
        return FKV_OK;
    }
    return FKV_OK;
}

fkv_status fkv_tv_attribute(fkv_trun *run, fkv_tvalue of, fkv_tvalue name, fkv_tvalue *out)
{
    bool found;
    fkv_status st = own_attribute(run, of, name, out, &found);
    if (!st && !found) st = fkv_tv_item(run, of, name, out, &found);
    if (!st && !found) *out = fkv_tv_missing(of, name);
    return st;
}

fkv_status fkv_tv_subscript(fkv_trun *run, fkv_tvalue of, fkv_tvalue key, fkv_tvalue *out)
{
    bool found;
    fkv_status st = fkv_tv_item(run, of, key, out, &found);
    if (!st && !found && key.type == FKV_T_STRING) st = own_attribute(run, of, key, out, &found);
    if (!st && !found) *out = fkv_tv_missing(of, key);
    return st;
}

fkv_status fkv_tv_call_method(fkv_trun *run, fkv_tvalue method, const fkv_targs *args, fkv_tvalue *out)
{
    if (!methods[method.flag].call)
        return fkv_trun_fail(run, "%s.%s() is not supported", fkv_tv_type(*method.box),
                             methods[method.flag].name);
    return methods[method.flag].call(run, *method.box, args, out);
}
