/* Values of a template: see template_value.h. Which limits a rendering met is said here too. */
#include "tokenizer/template_value.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runner/base/utf8.h"
#include "tokenizer/characters.h"

fkv_status fkv_trun_fail(fkv_trun *run, const char *fmt, ...)
{
    char text[sizeof run->err->message];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    text[fkv_utf8_span(text, strlen(text))] = '\0'; /* names are cut by bytes */
    if (run->file) return fkv_fail_at(run->err, FKV_E_INPUT, run->file, run->line, NULL, "%s", text);
    return fkv_fail(run->err, FKV_E_INPUT, "line %d of the chat template: %s", run->line, text);
}

fkv_status fkv_trun_no_room(fkv_trun *run)
{
    if (!run->arena.refused) return fkv_fail_memory(run->err);
    return fkv_trun_fail(run, "it takes more than %zu bytes", run->arena.limit);
}

fkv_status fkv_trun_step(fkv_trun *run, size_t bytes)
{
    run->steps -= 1 + (int64_t)(bytes / FKV_TEMPLATE_BYTES_A_STEP);
    if (run->steps >= 0) return FKV_OK;
    return fkv_trun_fail(run, "it takes more than %d steps", FKV_TEMPLATE_STEPS);
}

fkv_status fkv_trun_enter(fkv_trun *run)
{
    fkv_status st = fkv_trun_step(run, 0);
    if (st) return st;
    if (run->nest >= FKV_TEMPLATE_DEPTH)
        return fkv_trun_fail(run, "a value is nested more than %d deep, or holds itself", FKV_TEMPLATE_DEPTH);
    run->nest++;
    return FKV_OK;
}

void fkv_trun_leave(fkv_trun *run)
{
    run->nest--;
}

fkv_status fkv_trun_put(fkv_trun *run, fkv_buf *out, const char *text, size_t n)
{
    fkv_status st = fkv_trun_step(run, n);
    if (!st && !fkv_tarena_claim(&run->arena, n)) st = fkv_trun_no_room(run);
    return st ? st : fkv_buf_append(out, text, n, run->err);
}

fkv_tvalue fkv_tv_undefined(const char *reason)
{
    fkv_tvalue v = fkv_tv_text(reason);
    v.type = FKV_T_UNDEFINED;
    v.flag = FKV_T_BY_REASON;
    return v;
}

fkv_tvalue fkv_tv_missing(fkv_tvalue of, fkv_tvalue name)
{
    if (name.type != FKV_T_STRING) return fkv_tv_undefined("there is no such element");
    name.type = FKV_T_UNDEFINED;
    name.flag = (uint8_t)(FKV_T_BY_OWNER + of.type);
    return name;
}

fkv_tvalue fkv_tv_none(void)
{
    return (fkv_tvalue){.type = FKV_T_NONE};
}

fkv_tvalue fkv_tv_bool(bool b)
{
    return (fkv_tvalue){.type = FKV_T_BOOL, .b = b};
}

fkv_tvalue fkv_tv_int(int64_t i)
{
    return (fkv_tvalue){.type = FKV_T_INT, .i = i};
}

fkv_tvalue fkv_tv_float(double f)
{
    return (fkv_tvalue){.type = FKV_T_FLOAT, .f = f};
}

fkv_tvalue fkv_tv_text(const char *literal)
{
    return (fkv_tvalue){.type = FKV_T_STRING, .n = (uint32_t)strlen(literal), .s = literal};
}

fkv_tvalue fkv_tv_view(fkv_tdict *dict, int what)
{
    return (fkv_tvalue){.type = FKV_T_VIEW, .flag = (uint8_t)what, .dict = dict};
}

bool fkv_tv_is(fkv_tvalue v, const char *text)
{
    return v.type == FKV_T_STRING && v.n == strlen(text) && memcmp(v.s, text, v.n) == 0;
}

fkv_status fkv_tv_borrow(fkv_trun *run, const char *s, size_t n, fkv_tvalue *out)
{
    if (n > UINT32_MAX) return fkv_trun_fail(run, "a string of more than 4 GiB");
    *out = (fkv_tvalue){.type = FKV_T_STRING, .n = (uint32_t)n, .s = s};
    return FKV_OK;
}

fkv_status fkv_tv_new_string(fkv_trun *run, size_t n, char **bytes, fkv_tvalue *out)
{
    *bytes = fkv_tarena_take(&run->arena, n, 1);
    if (!*bytes) return fkv_trun_no_room(run);
    fkv_status st = fkv_tv_borrow(run, *bytes, n, out);
    return st ? st : fkv_trun_step(run, n);
}

fkv_status fkv_tv_copy_string(fkv_trun *run, const char *s, size_t n, fkv_tvalue *out)
{
    char *bytes;
    fkv_status st = fkv_tv_new_string(run, n, &bytes, out);
    if (!st && n) memcpy(bytes, s, n);
    return st;
}

fkv_status fkv_tv_new_list(fkv_trun *run, fkv_ttype type, size_t cap, fkv_tvalue *out)
{
    fkv_tlist *l = fkv_tarena_take(&run->arena, 1, sizeof *l);
    if (!l) return fkv_trun_no_room(run);
    if (cap && !(l->at = fkv_tarena_take(&run->arena, cap, sizeof *l->at))) return fkv_trun_no_room(run);
    l->cap = cap;
    *out = (fkv_tvalue){.type = (uint8_t)type, .list = l};
    return FKV_OK;
}

fkv_status fkv_tlist_push(fkv_trun *run, fkv_tlist *l, fkv_tvalue item)
{
    if (l->n == l->cap) {
        const size_t cap = l->cap ? l->cap * 2 : 4;
        fkv_tvalue *at = fkv_tarena_take(&run->arena, cap, sizeof *at);
        if (!at) return fkv_trun_no_room(run);
        if (l->n) memcpy(at, l->at, l->n * sizeof *at);
        l->at = at;
        l->cap = cap;
    }
    l->at[l->n++] = item;
    return FKV_OK;
}

fkv_status fkv_tv_pair(fkv_trun *run, fkv_tvalue a, fkv_tvalue b, fkv_tvalue *tuple)
{
    *tuple = (fkv_tvalue){0};
    fkv_status st = fkv_tv_new_list(run, FKV_T_TUPLE, 2, tuple);
    if (!st) st = fkv_tlist_push(run, tuple->list, a);
    return st ? st : fkv_tlist_push(run, tuple->list, b);
}

fkv_status fkv_tv_new_dict(fkv_trun *run, fkv_ttype type, fkv_tvalue *out)
{
    fkv_tdict *d = fkv_tarena_take(&run->arena, 1, sizeof *d);
    if (!d) return fkv_trun_no_room(run);
    *out = (fkv_tvalue){.type = (uint8_t)type, .dict = d};
    return FKV_OK;
}

/* The same for values that are equal: 1, 1.0 and true are one key. */
static fkv_status hash_of(fkv_trun *run, fkv_tvalue v, uint64_t *h)
{
    static const uint64_t basis = 0xcbf29ce484222325u, prime = 0x100000001b3u;
    fkv_status st = FKV_OK;
    uint64_t x = basis ^ v.type;
    switch (v.type) {
    case FKV_T_STRING:
        st = fkv_trun_step(run, v.n);
        for (uint32_t i = 0; i < v.n; i++) x = (x ^ (unsigned char)v.s[i]) * prime;
        break;
    case FKV_T_BOOL: x = (uint64_t)v.b * prime; break;
    case FKV_T_INT: x = (uint64_t)v.i * prime; break;
    case FKV_T_FLOAT:
        if (fabs(v.f) < (double)INT64_MAX && v.f == floor(v.f))
            x = (uint64_t)(int64_t)v.f * prime;
        else
            memcpy(&x, &v.f, sizeof x);
        break;
    case FKV_T_TUPLE:
        st = fkv_trun_enter(run);
        if (st) return st;
        for (size_t i = 0; !st && i < v.list->n; i++) {
            uint64_t item;
            st = hash_of(run, v.list->at[i], &item);
            if (!st) x = (x ^ item) * prime;
        }
        fkv_trun_leave(run);
        break;
    case FKV_T_LIST:
    case FKV_T_DICT:
    case FKV_T_VIEW: return fkv_trun_fail(run, "unhashable type: '%s'", fkv_tv_type(v));
    case FKV_T_NONE:
    case FKV_T_UNDEFINED: break;
    default: x = (uint64_t)(uintptr_t)v.p * prime;
    }
    *h = x ^ x >> 29;
    return st;
}

enum { FEW_ENTRIES = 8 };

/* Finds the key: *entry, or NULL with *place, where it belongs, if there are places. */
static fkv_status find(fkv_trun *run, const fkv_tdict *d, fkv_tvalue key, fkv_tentry **entry, size_t *place)
{
    uint64_t h = 0;
    bool equal;
    *entry = NULL;
    fkv_status st = hash_of(run, key, &h);
    if (st) return st;
    if (!d->places) {
        for (size_t i = 0; i < d->n; i++) {
            if ((st = fkv_tv_equal(run, d->at[i].key, key, &equal))) return st;
            if (equal) *entry = &d->at[i];
            if (equal) break;
        }
        return FKV_OK;
    }
    for (size_t p = h & (d->n_places - 1);; p = (p + 1) & (d->n_places - 1)) {
        *place = p;
        if (!d->places[p]) return FKV_OK;
        fkv_tentry *e = &d->at[d->places[p] - 1];
        if ((st = fkv_tv_equal(run, e->key, key, &equal))) return st;
        if (equal) *entry = e;
        if (equal) return FKV_OK;
    }
}

fkv_status fkv_tdict_get(fkv_trun *run, const fkv_tdict *d, fkv_tvalue key, fkv_tentry **out)
{
    size_t place;
    return find(run, d, key, out, &place);
}

/* Makes places for twice the entries that there are. */
static fkv_status add_places(fkv_trun *run, fkv_tdict *d)
{
    d->n_places = d->cap * 2;
    d->places = fkv_tarena_take(&run->arena, d->n_places, sizeof *d->places);
    if (!d->places) return fkv_trun_no_room(run);
    for (size_t i = 0; i < d->n; i++) {
        uint64_t h;
        fkv_status st = hash_of(run, d->at[i].key, &h);
        if (st) return st;
        size_t p = h & (d->n_places - 1);
        for (; d->places[p]; p = (p + 1) & (d->n_places - 1))
            if ((st = fkv_trun_step(run, 0))) return st;
        d->places[p] = (uint32_t)i + 1;
    }
    return FKV_OK;
}

fkv_status fkv_tdict_set(fkv_trun *run, fkv_tdict *d, fkv_tvalue key, fkv_tvalue value)
{
    fkv_tentry *entry;
    size_t place = 0;
    fkv_status st = find(run, d, key, &entry, &place);
    if (st) return st;
    if (entry) {
        entry->value = value;
        return FKV_OK;
    }
    if (d->n == d->cap) {
        const size_t cap = d->cap ? d->cap * 2 : 4;
        if (cap > UINT32_MAX / 2) return fkv_trun_fail(run, "a dict of too many entries");
        fkv_tentry *at = fkv_tarena_take(&run->arena, cap, sizeof *at);
        if (!at) return fkv_trun_no_room(run);
        if (d->n) memcpy(at, d->at, d->n * sizeof *at);
        d->at = at;
        d->cap = cap;
        if (cap > FEW_ENTRIES) st = add_places(run, d);
        if (!st && d->places) st = find(run, d, key, &entry, &place);
        if (st) return st;
    }
    d->at[d->n++] = (fkv_tentry){key, value};
    if (d->places) d->places[place] = (uint32_t)d->n;
    return FKV_OK;
}

const char *fkv_tv_type(fkv_tvalue v)
{
    static const char *const names[] = {"Undefined", "NoneType",   "bool",      "int",   "float",
                                        "str",       "list",       "tuple",     "dict",  "dict_items",
                                        "range",     "generator",  "Namespace", "Macro", "function",
                                        "method",    "LoopContext"};
    if (v.type == FKV_T_VIEW && v.flag != FKV_T_ITEMS)
        return v.flag == FKV_T_KEYS ? "dict_keys" : "dict_values";
    return v.type == FKV_T_STRING && v.flag ? "Markup" : names[v.type];
}

fkv_status fkv_trun_fail_undefined(fkv_trun *run, fkv_tvalue v)
{
    const int n = v.n < 100 ? (int)v.n : 100;
    if (v.flag == FKV_T_BY_REASON) return fkv_trun_fail(run, "%.*s", n, v.s);
    if (v.flag == FKV_T_BY_NAME) return fkv_trun_fail(run, "'%.*s' is undefined", n, v.s);
    const fkv_tvalue of = {.type = (uint8_t)(v.flag - FKV_T_BY_OWNER)};
    return fkv_trun_fail(
        run, of.type == FKV_T_NONE ? "%s has no attribute '%.*s'" : "'%s object' has no attribute '%.*s'",
        of.type == FKV_T_NONE ? "'None'" : fkv_tv_type(of), n, v.s);
}

bool fkv_tv_truth(fkv_tvalue v)
{
    switch (v.type) {
    case FKV_T_UNDEFINED:
    case FKV_T_NONE: return false;
    case FKV_T_BOOL: return v.b;
    case FKV_T_INT: return v.i != 0;
    case FKV_T_FLOAT: return v.f != 0;
    case FKV_T_STRING: return v.n != 0;
    case FKV_T_LIST:
    case FKV_T_TUPLE: return v.list->n != 0;
    case FKV_T_DICT:
    case FKV_T_VIEW: return v.dict->n != 0;
    case FKV_T_RANGE: return v.range->n != 0;
    default: return true;
    }
}

bool fkv_tv_as_int(fkv_tvalue v, int64_t *i)
{
    if (v.type != FKV_T_INT && v.type != FKV_T_BOOL) return false;
    *i = v.type == FKV_T_INT ? v.i : v.b;
    return true;
}

bool fkv_tv_as_float(fkv_tvalue v, double *f)
{
    int64_t i;
    if (fkv_tv_as_int(v, &i))
        *f = (double)i;
    else if (v.type == FKV_T_FLOAT)
        *f = v.f;
    else
        return false;
    return true;
}

fkv_status fkv_tv_length(fkv_trun *run, fkv_tvalue v, int64_t *n)
{
    fkv_status st = FKV_OK;
    *n = -1;
    switch (v.type) {
    case FKV_T_UNDEFINED: *n = 0; break;
    case FKV_T_STRING:
        st = fkv_trun_step(run, v.n);
        *n = 0;
        for (uint32_t i = 0; i < v.n; i++) *n += ((unsigned char)v.s[i] & 0xc0) != 0x80;
        break;
    case FKV_T_LIST:
    case FKV_T_TUPLE: *n = (int64_t)v.list->n; break;
    case FKV_T_DICT:
    case FKV_T_VIEW: *n = (int64_t)v.dict->n; break;
    case FKV_T_RANGE: *n = v.range->n; break;
    default: break;
    }
    return st;
}

/* -1, 0, 1, or 2 where one is no number. Exact: both 64-bit integers and doubles are long doubles. */
static int order_numbers(fkv_tvalue a, fkv_tvalue b)
{
    int64_t i;
    const long double x = fkv_tv_as_int(a, &i) ? (long double)i : (long double)a.f;
    const long double y = fkv_tv_as_int(b, &i) ? (long double)i : (long double)b.f;
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
}

static bool is_number(fkv_tvalue v)
{
    return v.type == FKV_T_BOOL || v.type == FKV_T_INT || v.type == FKV_T_FLOAT;
}

static int order_strings(fkv_tvalue a, fkv_tvalue b)
{
    const int c = memcmp(a.s, b.s, a.n < b.n ? a.n : b.n);
    return c ? (c < 0 ? -1 : 1) : (a.n > b.n) - (a.n < b.n);
}

static fkv_status equal_dicts(fkv_trun *run, const fkv_tdict *a, const fkv_tdict *b, bool *equal)
{
    fkv_status st = FKV_OK;
    *equal = a->n == b->n;
    for (size_t i = 0; !st && *equal && i < a->n; i++) {
        fkv_tentry *e;
        st = fkv_tdict_get(run, b, a->at[i].key, &e);
        if (st) break;
        *equal = e != NULL;
        if (e) st = fkv_tv_equal(run, a->at[i].value, e->value, equal);
    }
    return st;
}

fkv_status fkv_tv_equal(fkv_trun *run, fkv_tvalue a, fkv_tvalue b, bool *equal)
{
    fkv_status st = fkv_trun_enter(run);
    if (st) return st;
    *equal = false;
    if (is_number(a) && is_number(b)) {
        *equal = order_numbers(a, b) == 0;
    } else if (a.type == b.type) {
        switch (a.type) {
        case FKV_T_UNDEFINED:
        case FKV_T_NONE: *equal = true; break;
        case FKV_T_STRING:
            *equal = a.n == b.n;
            if (*equal) st = fkv_trun_step(run, a.n);
            if (*equal) *equal = memcmp(a.s, b.s, a.n) == 0;
            break;
        case FKV_T_LIST:
        case FKV_T_TUPLE:
            *equal = a.list->n == b.list->n;
            for (size_t i = 0; !st && *equal && i < a.list->n; i++)
                st = fkv_tv_equal(run, a.list->at[i], b.list->at[i], equal);
            break;
        case FKV_T_DICT: st = equal_dicts(run, a.dict, b.dict, equal); break;
        case FKV_T_RANGE:
            *equal = a.range->n == b.range->n && (a.range->n == 0 || a.range->start == b.range->start) &&
                     (a.range->n <= 1 || a.range->step == b.range->step);
            break;
        case FKV_T_VIEW: *equal = a.dict == b.dict && a.flag == b.flag; break;
        case FKV_T_FUNCTION: *equal = a.flag == b.flag; break;
        default: *equal = a.p == b.p;
        }
    }
    fkv_trun_leave(run);
    return st;
}

/* Lists and tuples: the first items that differ decide. */
static fkv_status order_lists(fkv_trun *run, const fkv_tlist *a, const fkv_tlist *b, const char *op,
                              int *order)
{
    fkv_status st = FKV_OK;
    for (size_t i = 0; i < a->n && i < b->n; i++) {
        bool equal;
        if ((st = fkv_tv_equal(run, a->at[i], b->at[i], &equal))) return st;
        if (!equal) return fkv_tv_order(run, a->at[i], b->at[i], op, order);
    }
    *order = (a->n > b->n) - (a->n < b->n);
    return st;
}

fkv_status fkv_tv_order(fkv_trun *run, fkv_tvalue a, fkv_tvalue b, const char *op, int *order)
{
    fkv_status st = fkv_trun_enter(run);
    if (st) return st;
    if (a.type == FKV_T_UNDEFINED || b.type == FKV_T_UNDEFINED) {
        st = fkv_trun_fail_undefined(run, a.type == FKV_T_UNDEFINED ? a : b);
    } else if (is_number(a) && is_number(b)) {
        *order = order_numbers(a, b);
    } else if (a.type == FKV_T_STRING && b.type == FKV_T_STRING) {
        st = fkv_trun_step(run, a.n < b.n ? a.n : b.n);
        *order = order_strings(a, b);
    } else if (a.type == b.type && (a.type == FKV_T_LIST || a.type == FKV_T_TUPLE)) {
        st = order_lists(run, a.list, b.list, op, order);
    } else {
        st = fkv_trun_fail(run, "'%s' not supported between instances of '%s' and '%s'", op, fkv_tv_type(a),
                           fkv_tv_type(b));
    }
    fkv_trun_leave(run);
    return st;
}

bool fkv_tv_iterable(fkv_tvalue v)
{
    return v.type == FKV_T_UNDEFINED || (v.type >= FKV_T_STRING && v.type <= FKV_T_STREAM);
}

fkv_status fkv_titer_start(fkv_trun *run, fkv_tvalue v, fkv_titer *it)
{
    if (!fkv_tv_iterable(v)) return fkv_trun_fail(run, "'%s' object is not iterable", fkv_tv_type(v));
    *it = (fkv_titer){.of = v};
    return FKV_OK;
}

static fkv_status next_entry(fkv_trun *run, const fkv_titer *it, fkv_tvalue *item)
{
    const fkv_tentry *e = &it->of.dict->at[it->at];
    if (it->of.type == FKV_T_VIEW && it->of.flag == FKV_T_ITEMS)
        return fkv_tv_pair(run, e->key, e->value, item);
    *item = it->of.type == FKV_T_VIEW && it->of.flag == FKV_T_VALUES ? e->value : e->key;
    return FKV_OK;
}

/* A stream that was asked while it computes an item would ask itself. */
static fkv_status next_of_stream(fkv_trun *run, fkv_tstream *s, fkv_tvalue *item, bool *more)
{
    fkv_status st = fkv_trun_enter(run);
    if (st) return st;
    *more = !s->ended;
    if (*more) st = s->next(run, s, item, more);
    if (!st && !*more) s->ended = true;
    fkv_trun_leave(run);
    return st;
}

fkv_status fkv_titer_next(fkv_trun *run, fkv_titer *it, fkv_tvalue *item, bool *more)
{
    size_t len;
    fkv_status st = fkv_trun_step(run, 0);
    if (st) return st;
    switch (it->of.type) {
    case FKV_T_STRING:
        *more = it->at < it->of.n;
        if (!*more) return FKV_OK;
        fkv_utf8_get(it->of.s + it->at, &len);
        *item = (fkv_tvalue){.type = FKV_T_STRING, .n = (uint32_t)len, .s = it->of.s + it->at};
        it->at += len;
        return FKV_OK;
    case FKV_T_LIST:
    case FKV_T_TUPLE:
        *more = it->at < it->of.list->n;
        if (*more) *item = it->of.list->at[it->at++];
        return FKV_OK;
    case FKV_T_DICT:
    case FKV_T_VIEW:
        *more = it->at < it->of.dict->n;
        if (*more) st = next_entry(run, it, item);
        it->at++;
        return st;
    case FKV_T_RANGE:
        *more = (int64_t)it->at < it->of.range->n;
        if (*more) *item = fkv_tv_int(it->of.range->start + (int64_t)it->at++ * it->of.range->step);
        return FKV_OK;
    case FKV_T_STREAM: return next_of_stream(run, it->of.stream, item, more);
    default: *more = false; return FKV_OK; /* undefined: nothing */
    }
}

fkv_status fkv_tv_collect(fkv_trun *run, fkv_tvalue v, fkv_ttype type, fkv_tvalue *out)
{
    fkv_titer it;
    fkv_tvalue item, list = {0};
    bool more;
    fkv_status st = fkv_titer_start(run, v, &it);
    if (!st)
        st = fkv_tv_new_list(run, type, v.type == FKV_T_LIST || v.type == FKV_T_TUPLE ? v.list->n : 0, &list);
    while (!st && !(st = fkv_titer_next(run, &it, &item, &more)) && more)
        st = fkv_tlist_push(run, list.list, item);
    if (!st) *out = list;
    return st;
}

/* The place of a name among names, -1 if it is not there. */
static int place_of(const char *names, fkv_tvalue name)
{
    int at = 0;
    for (const char *p = names; *p; at++) {
        const size_t n = strcspn(p, " ");
        if (n == name.n && memcmp(p, name.s, n) == 0) return at;
        p += n + (p[n] == ' ');
    }
    return -1;
}

fkv_status fkv_targs_bind(fkv_trun *run, const fkv_targs *args, const char *what, const char *names,
                          size_t n_required, fkv_tvalue *out)
{
    size_t n_names = *names != '\0';
    for (const char *p = names; *p; p++) n_names += *p == ' ';
    for (size_t i = 0; i < n_names; i++) out[i] = (fkv_tvalue){0};
    if (args->n > n_names)
        return fkv_trun_fail(run, "%s takes at most %zu arguments, not %zu", what, n_names, args->n);
    for (size_t i = 0; i < args->n; i++) out[i] = args->at[i];
    for (size_t i = 0; i < args->n_named; i++) {
        const fkv_tvalue name = args->named[i].key;
        const int at = place_of(names, name);
        const int n = name.n < 60 ? (int)name.n : 60;
        if (at < 0) return fkv_trun_fail(run, "%s has no argument '%.*s'", what, n, name.s);
        if (fkv_targ_given(out[at]))
            return fkv_trun_fail(run, "%s got two values for '%.*s'", what, n, name.s);
        out[at] = args->named[i].value;
    }
    for (size_t i = 0; i < n_required; i++)
        if (!fkv_targ_given(out[i])) return fkv_trun_fail(run, "%s misses argument %zu", what, i + 1);
    return FKV_OK;
}

bool fkv_targ_given(fkv_tvalue v)
{
    return v.type != FKV_T_UNDEFINED || v.s;
}
