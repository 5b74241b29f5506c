/* Functions of templates: see template_function.h. */
#include "tokenizer/template_function.h"

#include <locale.h>
#include <string.h>

#include "runner/base/utf8.h"
#include "tokenizer/template_operator.h"
#include "tokenizer/template_text.h"

typedef fkv_status function(fkv_trun *run, const struct tm *day, const fkv_targs *args, fkv_tvalue *out);

static fkv_status call_range(fkv_trun *run, const struct tm *day, const fkv_targs *args, fkv_tvalue *out)
{
    int64_t n[3] = {0, 0, 1};
    (void)day;
    if (args->n < 1 || args->n > 3 || args->n_named)
        return fkv_trun_fail(run, "range takes one to three arguments without names");
    for (size_t i = 0; i < args->n; i++)
        if (!fkv_tv_as_int(args->at[i], &n[args->n == 1 ? 1 : i]))
            return fkv_trun_fail(run, "'%s' object cannot be interpreted as an integer",
                                 fkv_tv_type(args->at[i]));
    return fkv_tv_new_range(run, n[0], n[1], n[2], out);
}

/* Adds what dict() takes: a mapping, or pairs. */
static fkv_status add_all(fkv_trun *run, fkv_tdict *d, fkv_tvalue from)
{
    fkv_titer it;
    fkv_tvalue item, pair;
    bool more;
    if (from.type == FKV_T_DICT) from = fkv_tv_view(from.dict, FKV_T_ITEMS);
    fkv_status st = fkv_titer_start(run, from, &it);
    while (!st && !(st = fkv_titer_next(run, &it, &item, &more)) && more) {
        st = fkv_tv_collect(run, item, FKV_T_TUPLE, &pair);
        if (!st && pair.list->n != 2) st = fkv_trun_fail(run, "an item is no pair of a key and a value");
        if (!st) st = fkv_tdict_set(run, d, pair.list->at[0], pair.list->at[1]);
    }
    return st;
}

static fkv_status new_mapping(fkv_trun *run, const fkv_targs *args, fkv_ttype type, fkv_tvalue *out)
{
    fkv_status st = fkv_tv_new_dict(run, type, out);
    if (!st && args->n > 1) st = fkv_trun_fail(run, "a dict is made of one argument, not %zu", args->n);
    if (!st && args->n) st = add_all(run, out->dict, args->at[0]);
    for (size_t i = 0; !st && i < args->n_named; i++)
        st = fkv_tdict_set(run, out->dict, args->named[i].key, args->named[i].value);
    return st;
}

static fkv_status call_dict(fkv_trun *run, const struct tm *day, const fkv_targs *args, fkv_tvalue *out)
{
    (void)day;
    return new_mapping(run, args, FKV_T_DICT, out);
}

static fkv_status call_namespace(fkv_trun *run, const struct tm *day, const fkv_targs *args, fkv_tvalue *out)
{
    (void)day;
    fkv_status st = new_mapping(run, args, FKV_T_NAMESPACE, out);
    for (size_t i = 0; !st && i < out->dict->n; i++) {
        const fkv_tvalue key = out->dict->at[i].key;
        if (key.type == FKV_T_STRING && key.n && key.s[0] == '_')
            st = fkv_trun_fail(run, "a namespace's member may not start with '_'");
    }
    return st;
}

static fkv_status call_raise(fkv_trun *run, const struct tm *day, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue message;
    (void)day;
    *out = fkv_tv_none();
    fkv_status st = fkv_targs_bind(run, args, "raise_exception", "message", 1, &message);
    if (!st) st = fkv_tv_string(run, message, &message);
    if (st) return st;
    size_t n = sizeof run->err->message - 1;
    n = message.n < n ? message.n : fkv_utf8_span(message.s, n);
    return fkv_fail(run->err, FKV_E_INPUT, "%.*s", (int)n, message.s);
}

/* Python's own letters: microseconds and a zone, of which noon has none. %s would depend on the machine. */
static fkv_status expand_own(fkv_trun *run, fkv_tvalue format, char *out, size_t size)
{
    size_t n = 0;
    for (uint32_t i = 0; i < format.n; i++) {
        const char c = format.s[i], letter = c == '%' && i + 1 < format.n ? format.s[i + 1] : '\0';
        if (!c || (c == '%' && letter == 's'))
            return fkv_trun_fail(run, "strftime_now: a format that is not supported");
        if (n + 8 > size) return fkv_trun_fail(run, "strftime_now: the format is too long");
        if (letter == 'f') n += (size_t)(stpcpy(out + n, "000000") - (out + n));
        if (letter && strchr("fzZ", letter)) {
            i++;
            continue;
        }
        out[n++] = c;
        if (letter) out[n++] = format.s[++i];
    }
    out[n++] = '.'; /* so that a result is never empty, which strftime can't tell from a failure */
    out[n] = '\0';
    return FKV_OK;
}

static fkv_status call_strftime(fkv_trun *run, const struct tm *day, const fkv_targs *args, fkv_tvalue *out)
{
    fkv_tvalue format;
    char text[512], result[2048];
    fkv_status st = fkv_targs_bind(run, args, "strftime_now", "format", 1, &format);
    if (!st && format.type != FKV_T_STRING)
        st = fkv_trun_fail(run, "strftime() argument 1 must be str, not %s", fkv_tv_type(format));
    if (!st && !day) st = fkv_trun_fail(run, "strftime_now: no date is given");
    if (!st) st = expand_own(run, format, text, sizeof text);
    if (st) return st;
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!c) return fkv_fail_memory(run->err);
    const size_t n = strftime_l(result, sizeof result, text, day, c);
    freelocale(c);
    if (!n) return fkv_trun_fail(run, "strftime_now: the result is too long");
    return fkv_tv_copy_string(run, result, n - 1, out);
}

static const struct {
    const char *name;
    function *call; /* NULL: Jinja has it, and here it is an error when it is called */
} functions[] = {
    {"range", call_range},
    {"dict", call_dict},
    {"namespace", call_namespace},
    {"raise_exception", call_raise},
    {"strftime_now", call_strftime},
    {"lipsum", NULL},
    {"cycler", NULL},
    {"joiner", NULL},
};

fkv_tvalue fkv_tv_function(fkv_tvalue name, bool *found)
{
    *found = false;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (!fkv_tv_is(name, functions[i].name)) continue;
        *found = true;
        return (fkv_tvalue){.type = FKV_T_FUNCTION, .flag = (uint8_t)i};
    }
    return fkv_tv_none();
}

fkv_status fkv_tv_call_function(fkv_trun *run, fkv_tvalue called, const struct tm *day, const fkv_targs *args,
                                fkv_tvalue *out)
{
    if (!functions[called.flag].call)
        return fkv_trun_fail(run, "the function %s is not supported", functions[called.flag].name);
    return functions[called.flag].call(run, day, args, out);
}
