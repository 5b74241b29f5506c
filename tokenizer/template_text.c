/* Values as text: see template_text.h. */
#include "tokenizer/template_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/characters.h"
#include "tokenizer/template_unicode.h"

enum { NUMBER_MAX = 48 };

/* repr() of a float: the fewest digits that give the same double. */
static int print_float(double f, char out[NUMBER_MAX])
{
    char digits[NUMBER_MAX];
    if (isnan(f)) return snprintf(out, NUMBER_MAX, "nan");
    if (isinf(f)) return snprintf(out, NUMBER_MAX, f < 0 ? "-inf" : "inf");
    int p = 0;
    do {
        snprintf(digits, sizeof digits, "%.*e", p, f);
    } while (p++ < 16 && strtod(digits, NULL) != f);
    char *e = strchr(digits, 'e');
    const int exponent = atoi(e + 1);
    if (exponent >= -4 && exponent < 16) {
        const int behind = (p - 1) - exponent; /* digits behind the point */
        return snprintf(out, NUMBER_MAX, "%.*f", behind > 1 ? behind : 1, f);
    }
    *e = '\0';
    return snprintf(out, NUMBER_MAX, "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
}

static fkv_status put_text(fkv_trun *run, fkv_buf *out, const char *text)
{
    return fkv_trun_put(run, out, text, strlen(text));
}

static fkv_status put_number(fkv_trun *run, fkv_buf *out, fkv_tvalue v)
{
    char text[NUMBER_MAX];
    const int n =
        v.type == FKV_T_INT ? snprintf(text, sizeof text, "%lld", (long long)v.i) : print_float(v.f, text);
    return fkv_trun_put(run, out, text, (size_t)n);
}

/* The escape of a character in repr(), of length 0 for one that stands as it is. */
static int repr_escape(uint32_t cp, char quote, char out[NUMBER_MAX])
{
    switch (cp) {
    case '\n': return snprintf(out, NUMBER_MAX, "\\n");
    case '\r': return snprintf(out, NUMBER_MAX, "\\r");
    case '\t': return snprintf(out, NUMBER_MAX, "\\t");
    case '\\': return snprintf(out, NUMBER_MAX, "\\\\");
    default: break;
    }
    if (cp == (uint32_t)quote) return snprintf(out, NUMBER_MAX, "\\%c", quote);
    if (fkv_python_printable(cp)) return 0;
    return snprintf(out, NUMBER_MAX, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
}

static fkv_status put_repr(fkv_trun *run, fkv_buf *out, fkv_tvalue v)
{
    const char quote = memchr(v.s, '\'', v.n) && !memchr(v.s, '"', v.n) ? '"' : '\'';
    fkv_status st = put_text(run, out, v.flag ? "Markup(" : "");
    size_t from = 0, len;
    if (!st) st = fkv_trun_put(run, out, &quote, 1);
    for (size_t i = 0; !st && i < v.n; i += len) {
        char escape[NUMBER_MAX];
        const int n = repr_escape(fkv_utf8_get(v.s + i, &len), quote, escape);
        if (!n) continue;
        st = fkv_trun_put(run, out, v.s + from, i - from);
        if (!st) st = fkv_trun_put(run, out, escape, (size_t)n);
        from = i + len;
    }
    if (!st) st = fkv_trun_put(run, out, v.s + from, v.n - from);
    if (!st) st = fkv_trun_put(run, out, &quote, 1);
    return st || !v.flag ? st : put_text(run, out, ")");
}

static fkv_status put_value(fkv_trun *run, fkv_buf *out, fkv_tvalue v);

static fkv_status put_list(fkv_trun *run, fkv_buf *out, fkv_tvalue v)
{
    const bool tuple = v.type == FKV_T_TUPLE;
    fkv_status st = put_text(run, out, tuple ? "(" : "[");
    for (size_t i = 0; !st && i < v.list->n; i++) {
        if (i) st = put_text(run, out, ", ");
        if (!st) st = put_value(run, out, v.list->at[i]);
    }
    return st ? st : put_text(run, out, !tuple ? "]" : v.list->n == 1 ? ",)" : ")");
}

static fkv_status put_dict(fkv_trun *run, fkv_buf *out, const fkv_tdict *d)
{
    fkv_status st = put_text(run, out, "{");
    for (size_t i = 0; !st && i < d->n; i++) {
        if (i) st = put_text(run, out, ", ");
        if (!st) st = put_value(run, out, d->at[i].key);
        if (!st) st = put_text(run, out, ": ");
        if (!st) st = put_value(run, out, d->at[i].value);
    }
    return st ? st : put_text(run, out, "}");
}

static fkv_status put_view(fkv_trun *run, fkv_buf *out, fkv_tvalue v)
{
    fkv_tvalue list;
    fkv_status st = fkv_tv_collect(run, v, FKV_T_LIST, &list);
    if (!st) st = put_text(run, out, fkv_tv_type(v));
    if (!st) st = put_text(run, out, "(");
    if (!st) st = put_list(run, out, list);
    return st ? st : put_text(run, out, ")");
}

static fkv_status put_range(fkv_trun *run, fkv_buf *out, const fkv_trange *r)
{
    char text[96];
    const long long start = r->start, step = r->step, stop = r->stop;
    const int n = step == 1 ? snprintf(text, sizeof text, "range(%lld, %lld)", start, stop)
                            : snprintf(text, sizeof text, "range(%lld, %lld, %lld)", start, stop, step);
    return fkv_trun_put(run, out, text, (size_t)n);
}

/* repr(v), but for values that Python shows with an address. */
static fkv_status put_value(fkv_trun *run, fkv_buf *out, fkv_tvalue v)
{
    fkv_status st = fkv_trun_enter(run);
    if (st) return st;
    switch (v.type) {
    case FKV_T_UNDEFINED: st = put_text(run, out, "Undefined"); break;
    case FKV_T_NONE: st = put_text(run, out, "None"); break;
    case FKV_T_BOOL: st = put_text(run, out, v.b ? "True" : "False"); break;
    case FKV_T_INT:
    case FKV_T_FLOAT: st = put_number(run, out, v); break;
    case FKV_T_STRING: st = put_repr(run, out, v); break;
    case FKV_T_LIST:
    case FKV_T_TUPLE: st = put_list(run, out, v); break;
    case FKV_T_DICT: st = put_dict(run, out, v.dict); break;
    case FKV_T_VIEW: st = put_view(run, out, v); break;
    case FKV_T_RANGE: st = put_range(run, out, v.range); break;
    case FKV_T_NAMESPACE:
        st = put_text(run, out, "<Namespace ");
        if (!st) st = put_dict(run, out, v.dict);
        if (!st) st = put_text(run, out, ">");
        break;
    default: st = fkv_trun_fail(run, "a %s can't be printed", fkv_tv_type(v));
    }
    fkv_trun_leave(run);
    return st;
}

fkv_status fkv_tv_print(fkv_trun *run, fkv_tvalue v, fkv_buf *out)
{
    if (v.type == FKV_T_UNDEFINED) return FKV_OK;
    if (v.type == FKV_T_STRING) return fkv_trun_put(run, out, v.s, v.n);
    return put_value(run, out, v);
}

fkv_status fkv_tv_take(fkv_trun *run, const fkv_buf *text, fkv_tvalue *out)
{
    return fkv_tv_copy_string(run, text->data, text->len, out);
}

fkv_status fkv_tv_string(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out)
{
    fkv_buf text = {0};
    if (v.type == FKV_T_STRING) {
        *out = v;
        return FKV_OK;
    }
    fkv_status st = fkv_tv_print(run, v, &text);
    if (!st) st = fkv_tv_take(run, &text, out);
    fkv_buf_free(&text);
    return st;
}

fkv_status fkv_tv_plain_string(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out)
{
    fkv_status st = fkv_tv_string(run, v, out);
    if (!st) out->flag = false;
    return st;
}

/* JSON. */

typedef struct json_writer {
    fkv_trun *run;
    const fkv_tjson *how;
    fkv_buf out;
    int level;
} json_writer;

/* The escape of a character in JSON, of length 0 for one that stands as it is. */
static int json_escape(uint32_t cp, bool ascii, char out[NUMBER_MAX])
{
    static const char letters[] = "\"\\\n\r\t\b\f", names[] = "\"\\nrtbf";
    const char *letter = cp && cp < 0x80 ? strchr(letters, (int)cp) : NULL;
    if (letter) return snprintf(out, NUMBER_MAX, "\\%c", names[letter - letters]);
    if (cp < 0x20) return snprintf(out, NUMBER_MAX, "\\u%04x", cp);
    if (!ascii || cp < 0x7f) return 0;
    if (cp < 0x10000) return snprintf(out, NUMBER_MAX, "\\u%04x", cp);
    return snprintf(out, NUMBER_MAX, "\\u%04x\\u%04x", 0xd800 + ((cp - 0x10000) >> 10),
                    0xdc00 + ((cp - 0x10000) & 0x3ff));
}

static fkv_status json_string(json_writer *w, fkv_tvalue v)
{
    size_t from = 0, len;
    fkv_status st = put_text(w->run, &w->out, "\"");
    for (size_t i = 0; !st && i < v.n; i += len) {
        char escape[NUMBER_MAX];
        const int n = json_escape(fkv_utf8_get(v.s + i, &len), w->how->ascii, escape);
        if (!n) continue;
        st = fkv_trun_put(w->run, &w->out, v.s + from, i - from);
        if (!st) st = fkv_trun_put(w->run, &w->out, escape, (size_t)n);
        from = i + len;
    }
    if (!st) st = fkv_trun_put(w->run, &w->out, v.s + from, v.n - from);
    return st ? st : put_text(w->run, &w->out, "\"");
}

/* Numbers, true, false, null; *text is NULL for what is none of them. */
static const char *json_word(fkv_tvalue v)
{
    if (v.type == FKV_T_NONE) return "null";
    if (v.type == FKV_T_BOOL) return v.b ? "true" : "false";
    if (v.type != FKV_T_FLOAT) return NULL;
    return isnan(v.f) ? "NaN" : isinf(v.f) ? (v.f < 0 ? "-Infinity" : "Infinity") : NULL;
}

/* A new line of the depth that the writer is at. */
static fkv_status json_line(json_writer *w)
{
    if (!w->how->indented) return FKV_OK;
    fkv_status st = put_text(w->run, &w->out, "\n");
    for (int i = 0; !st && i < w->level; i++)
        st = fkv_trun_put(w->run, &w->out, w->how->indent.s, w->how->indent.n);
    return st;
}

static fkv_status json_comma(json_writer *w)
{
    fkv_status st = fkv_trun_put(w->run, &w->out, w->how->comma.s, w->how->comma.n);
    return st ? st : json_line(w);
}

static fkv_status json_value(json_writer *w, fkv_tvalue v);

static fkv_status json_list(json_writer *w, const fkv_tlist *l)
{
    if (!l->n) return put_text(w->run, &w->out, "[]");
    fkv_status st = put_text(w->run, &w->out, "[");
    w->level++;
    for (size_t i = 0; !st && i < l->n; i++) {
        st = i ? json_comma(w) : json_line(w);
        if (!st) st = json_value(w, l->at[i]);
    }
    w->level--;
    if (!st) st = json_line(w);
    return st ? st : put_text(w->run, &w->out, "]");
}

static fkv_status json_key(json_writer *w, fkv_tvalue key)
{
    const char *word = json_word(key);
    fkv_status st;
    if (key.type == FKV_T_STRING) return json_string(w, key);
    if (!word && key.type != FKV_T_INT && key.type != FKV_T_FLOAT)
        return fkv_trun_fail(w->run, "keys must be str, int, float, bool or None, not %s", fkv_tv_type(key));
    st = put_text(w->run, &w->out, "\"");
    if (!st) st = word ? put_text(w->run, &w->out, word) : put_number(w->run, &w->out, key);
    return st ? st : put_text(w->run, &w->out, "\"");
}

/* Sorts by keys; the first error ends it. Merges, so that it takes n log n steps. */
static fkv_status sort_entries(fkv_trun *run, fkv_tentry *at, fkv_tentry *spare, size_t n)
{
    if (n < 2) return FKV_OK;
    const size_t half = n / 2;
    fkv_status st = sort_entries(run, at, spare, half);
    if (!st) st = sort_entries(run, at + half, spare, n - half);
    if (st) return st;
    memcpy(spare, at, half * sizeof *at);
    for (size_t i = 0, j = half, k = 0; i < half; k++) {
        int order = -1;
        if (j < n && (st = fkv_tv_order(run, at[j].key, spare[i].key, "<", &order))) return st;
        at[k] = j < n && order == -1 ? at[j++] : spare[i++];
    }
    return FKV_OK;
}

static fkv_status json_dict(json_writer *w, const fkv_tdict *d)
{
    fkv_tentry *at = d->at;
    fkv_status st = FKV_OK;
    if (!d->n) return put_text(w->run, &w->out, "{}");
    if (w->how->sorted) {
        at = fkv_tarena_take(&w->run->arena, d->n * 2, sizeof *at);
        if (!at) return fkv_trun_no_room(w->run);
        memcpy(at, d->at, d->n * sizeof *at);
        st = sort_entries(w->run, at, at + d->n, d->n);
    }
    if (!st) st = put_text(w->run, &w->out, "{");
    w->level++;
    for (size_t i = 0; !st && i < d->n; i++) {
        st = i ? json_comma(w) : json_line(w);
        if (!st) st = json_key(w, at[i].key);
        if (!st) st = fkv_trun_put(w->run, &w->out, w->how->colon.s, w->how->colon.n);
        if (!st) st = json_value(w, at[i].value);
    }
    w->level--;
    if (!st) st = json_line(w);
    return st ? st : put_text(w->run, &w->out, "}");
}

static fkv_status json_value(json_writer *w, fkv_tvalue v)
{
    const char *word = json_word(v);
    fkv_status st = fkv_trun_enter(w->run);
    if (st) return st;
    if (word)
        st = put_text(w->run, &w->out, word);
    else if (v.type == FKV_T_INT || v.type == FKV_T_FLOAT)
        st = put_number(w->run, &w->out, v);
    else if (v.type == FKV_T_STRING)
        st = json_string(w, v);
    else if (v.type == FKV_T_LIST || v.type == FKV_T_TUPLE)
        st = json_list(w, v.list);
    else if (v.type == FKV_T_DICT)
        st = json_dict(w, v.dict);
    else
        st = fkv_trun_fail(w->run, "Object of type %s is not JSON serializable", fkv_tv_type(v));
    fkv_trun_leave(w->run);
    return st;
}

fkv_status fkv_tv_json(fkv_trun *run, fkv_tvalue v, const fkv_tjson *how, fkv_tvalue *out)
{
    json_writer w = {.run = run, .how = how};
    fkv_status st = json_value(&w, v);
    if (!st) st = fkv_tv_take(run, &w.out, out);
    fkv_buf_free(&w.out);
    return st;
}
