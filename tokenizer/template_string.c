/* Python's str: see template_string.h. */
#include "tokenizer/template_string.h"

#include <string.h>

#include "tokenizer/characters.h"
#include "tokenizer/template_unicode.h"

enum { LOOK_COST = 16, LONG_NEEDLE = 32 };

/* The bytes from and to of v. */
static fkv_tvalue part_of(fkv_tvalue v, size_t from, size_t to)
{
    v.s += from;
    v.n = (uint32_t)(to - from);
    return v;
}

static bool is_in(fkv_tvalue chars, const char *c, size_t len)
{
    return chars.type == FKV_T_NONE ? fkv_python_space(fkv_utf8_get(c, &(size_t){0}))
                                    : chars.n >= len && memmem(chars.s, chars.n, c, len) != NULL;
}

/* Each character is looked for among chars, which takes far longer than to copy it. */
static fkv_status strip_step(fkv_trun *run, fkv_tvalue chars, size_t len)
{
    return chars.type == FKV_T_STRING && chars.n > LOOK_COST ? fkv_trun_step(run, chars.n * len) : FKV_OK;
}

fkv_status fkv_ts_strip(fkv_trun *run, fkv_tvalue v, fkv_tvalue chars, int sides, fkv_tvalue *out)
{
    size_t from = 0, to = v.n, len;
    fkv_status st = FKV_OK;
    while (!st && (sides & FKV_TS_LEFT) && from < to) {
        fkv_utf8_get(v.s + from, &len);
        if (!is_in(chars, v.s + from, len)) break;
        from += len;
        st = strip_step(run, chars, len);
    }
    while (!st && (sides & FKV_TS_RIGHT) && from < to) {
        len = fkv_utf8_before(v.s, to);
        if (!is_in(chars, v.s + to - len, len)) break;
        to -= len;
        st = strip_step(run, chars, len);
    }
    *out = part_of(v, from, to);
    return st ? st : fkv_trun_step(run, (v.n - (to - from)) * LOOK_COST);
}

/* The end of the run of characters from at on that are white space, or are not. */
static size_t span_of(fkv_tvalue v, size_t at, bool space)
{
    size_t len;
    for (; at < v.n; at += len)
        if (fkv_python_space(fkv_utf8_get(v.s + at, &len)) != space) break;
    return at;
}

/* The start of the run of such characters that ends at end. */
static size_t span_before(fkv_tvalue v, size_t end, bool space)
{
    while (end > 0) {
        size_t ignored;
        const size_t len = fkv_utf8_before(v.s, end);
        if (fkv_python_space(fkv_utf8_get(v.s + end - len, &ignored)) != space) break;
        end -= len;
    }
    return end;
}

static fkv_status split_spaces(fkv_trun *run, fkv_tvalue v, int64_t max, fkv_tlist *out)
{
    fkv_status st = FKV_OK;
    for (size_t at = span_of(v, 0, true); !st && at < v.n;) {
        const size_t end = max-- == 0 ? v.n : span_of(v, at, false);
        st = fkv_trun_step(run, 0);
        if (!st) st = fkv_tlist_push(run, out, part_of(v, at, end));
        at = span_of(v, end, true);
    }
    return st;
}

static fkv_status rsplit_spaces(fkv_trun *run, fkv_tvalue v, int64_t max, fkv_tlist *out)
{
    fkv_status st = FKV_OK;
    for (size_t end = span_before(v, v.n, true); !st && end > 0;) {
        const size_t from = max-- == 0 ? 0 : span_before(v, end, false);
        st = fkv_trun_step(run, 0);
        if (!st) st = fkv_tlist_push(run, out, part_of(v, from, end));
        end = span_before(v, from, true);
    }
    return st;
}

static fkv_status split_at(fkv_trun *run, fkv_tvalue v, fkv_tvalue sep, int64_t max, fkv_tlist *out)
{
    size_t at = 0;
    fkv_status st = FKV_OK;
    for (const char *hit; !st && max-- != 0 && (hit = memmem(v.s + at, v.n - at, sep.s, sep.n));) {
        const size_t end = (size_t)(hit - v.s);
        st = fkv_trun_step(run, 0);
        if (!st) st = fkv_tlist_push(run, out, part_of(v, at, end));
        at = end + sep.n;
    }
    return st ? st : fkv_tlist_push(run, out, part_of(v, at, v.n));
}

/* Where sep ends before end for the last time; end + 1 for nowhere. */
static size_t last_before(fkv_tvalue v, size_t end, fkv_tvalue sep)
{
    for (size_t at = end; at >= sep.n; at--)
        if (memcmp(v.s + at - sep.n, sep.s, sep.n) == 0) return at;
    return end + 1;
}

static fkv_status rsplit_at(fkv_trun *run, fkv_tvalue v, fkv_tvalue sep, int64_t max, fkv_tlist *out)
{
    size_t end = v.n;
    fkv_status st = fkv_trun_step(run, (size_t)v.n * (sep.n < 64 ? 1 : sep.n / 64));
    while (!st && max-- != 0) {
        const size_t at = last_before(v, end, sep);
        if (at > end) break;
        st = fkv_trun_step(run, 0);
        if (!st) st = fkv_tlist_push(run, out, part_of(v, at, end));
        end = at - sep.n;
    }
    return st ? st : fkv_tlist_push(run, out, part_of(v, 0, end));
}

fkv_status fkv_ts_split(fkv_trun *run, fkv_tvalue v, fkv_tvalue sep, int64_t max, bool from_right,
                        fkv_tvalue *out)
{
    fkv_status st = fkv_trun_step(run, v.n);
    if (!st && sep.type == FKV_T_STRING && !sep.n) st = fkv_trun_fail(run, "empty separator");
    if (!st) st = fkv_tv_new_list(run, FKV_T_LIST, 0, out);
    if (st) return st;
    if (sep.type == FKV_T_NONE)
        st = (from_right ? rsplit_spaces : split_spaces)(run, v, max, out->list);
    else
        st = (from_right ? rsplit_at : split_at)(run, v, sep, max, out->list);
    for (size_t i = 0, j = out->list->n; !st && from_right && i + 1 < j; i++) {
        const fkv_tvalue other = out->list->at[--j];
        out->list->at[j] = out->list->at[i];
        out->list->at[i] = other;
    }
    return st;
}

/* How often old stands in v, at most max times unless it is negative; an empty one stands
 * before each character and at the end. */
static fkv_status count_of(fkv_trun *run, fkv_tvalue v, fkv_tvalue old, int64_t max, int64_t *n)
{
    fkv_status st = FKV_OK;
    *n = 0;
    if (!old.n) {
        st = fkv_tv_length(run, v, n);
        ++*n;
    } else {
        st = fkv_trun_step(run, v.n);
        for (const char *p = v.s; !st && (p = memmem(p, v.n - (size_t)(p - v.s), old.s, old.n)); p += old.n)
            ++*n;
    }
    if (max >= 0 && *n > max) *n = max;
    return st;
}

fkv_status fkv_ts_replace(fkv_trun *run, fkv_tvalue v, fkv_tvalue old, fkv_tvalue by, int64_t max,
                          fkv_tvalue *out)
{
    int64_t n;
    size_t bytes = 0;
    char *to;
    const char *from = v.s, *end = v.s + v.n;
    fkv_status st = count_of(run, v, old, max, &n);
    if (!st && (__builtin_mul_overflow((size_t)n, (size_t)by.n, &bytes) || bytes > SIZE_MAX / 2))
        st = fkv_trun_fail(run, "a string of more than 4 GiB");
    if (!st) st = fkv_tv_new_string(run, v.n - (size_t)n * old.n + bytes, &to, out);
    if (st) return st;
    out->flag = v.flag;
    for (; n > 0; n--) {
        const char *hit = old.n ? memmem(from, (size_t)(end - from), old.s, old.n) : from;
        memcpy(to, from, (size_t)(hit - from));
        to += hit - from;
        memcpy(to, by.s, by.n);
        to += by.n;
        from = hit + old.n;
        if (old.n || from == end) continue;
        size_t len;
        fkv_utf8_get(from, &len);
        memcpy(to, from, len);
        to += len;
        from += len;
    }
    memcpy(to, from, (size_t)(end - from));
    return FKV_OK;
}

static fkv_status put_characters(fkv_trun *run, fkv_buf *out, const uint32_t *cps, size_t n)
{
    char text[12];
    size_t len = 0;
    for (size_t i = 0; i < n; i++) len += fkv_utf8_put(cps[i], text + len);
    return fkv_buf_append(out, text, len, run->err);
}

static fkv_status change_case(fkv_trun *run, fkv_tvalue v, bool upper, fkv_tvalue *out)
{
    fkv_buf text = {0};
    fkv_status st = fkv_trun_step(run, v.n);
    size_t len;
    for (size_t i = 0; !st && i < v.n; i += len) {
        uint32_t cps[3];
        const uint32_t cp = fkv_utf8_get(v.s + i, &len);
        const size_t n = upper ? fkv_python_upper(cp, cps) : fkv_python_lower(v.s, v.n, i, cps);
        st = put_characters(run, &text, cps, n);
    }
    if (!st) st = fkv_tv_copy_string(run, text.data, text.len, out);
    if (!st) out->flag = v.flag;
    fkv_buf_free(&text);
    return st;
}

fkv_status fkv_ts_upper(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out)
{
    return change_case(run, v, true, out);
}

fkv_status fkv_ts_lower(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out)
{
    return change_case(run, v, false, out);
}

fkv_status fkv_ts_find(fkv_trun *run, fkv_tvalue v, fkv_tvalue part, int64_t *at)
{
    fkv_status st = fkv_trun_step(run, part.n > LONG_NEEDLE ? v.n * (size_t)LOOK_COST : v.n);
    if (st) return st;
    const char *hit = part.n ? memmem(v.s, v.n, part.s, part.n) : v.s;
    *at = hit ? hit - v.s : -1;
    return FKV_OK;
}

/* The byte at which the character number i starts. */
static size_t byte_of(fkv_tvalue v, int64_t i)
{
    size_t at = 0, len;
    for (; i > 0 && at < v.n; i--) {
        fkv_utf8_get(v.s + at, &len);
        at += len;
    }
    return at;
}

/* So many characters further, or back. */
static size_t moved(fkv_tvalue v, size_t at, int64_t by)
{
    size_t len;
    for (; by > 0 && at < v.n; by--) {
        fkv_utf8_get(v.s + at, &len);
        at += len;
    }
    for (; by < 0 && at > 0; by++) at -= fkv_utf8_before(v.s, at);
    return at;
}

fkv_status fkv_ts_slice(fkv_trun *run, fkv_tvalue v, int64_t start, int64_t step, int64_t n, fkv_tvalue *out)
{
    fkv_status st = fkv_trun_step(run, v.n);
    if (st) return st;
    size_t at = byte_of(v, start), used = 0;
    if (n == 0 || step == 1) {
        *out = part_of(v, at, n ? moved(v, at, n) : at);
        return FKV_OK;
    }
    char *bytes;
    st = fkv_tv_new_string(run, v.n, &bytes, out);
    for (int64_t i = 0; !st && i < n; i++) {
        size_t len;
        fkv_utf8_get(v.s + at, &len);
        memcpy(bytes + used, v.s + at, len);
        used += len;
        if (i + 1 < n) at = moved(v, at, step);
    }
    out->n = (uint32_t)used;
    out->flag = v.flag;
    return st;
}

fkv_status fkv_ts_concat(fkv_trun *run, fkv_tvalue a, fkv_tvalue b, fkv_tvalue *out)
{
    char *bytes;
    const bool markup = a.flag || b.flag;
    fkv_status st = FKV_OK;
    if (markup) st = fkv_ts_escape(run, a, &a);
    if (markup && !st) st = fkv_ts_escape(run, b, &b);
    if (!st) st = fkv_tv_new_string(run, (size_t)a.n + b.n, &bytes, out);
    if (st) return st;
    memcpy(bytes, a.s, a.n);
    memcpy(bytes + a.n, b.s, b.n);
    out->flag = markup;
    return FKV_OK;
}

fkv_status fkv_ts_repeat(fkv_trun *run, fkv_tvalue v, int64_t times, fkv_tvalue *out)
{
    char *bytes;
    size_t n;
    if (times < 0 || !v.n) times = 0;
    if (__builtin_mul_overflow((size_t)times, (size_t)v.n, &n))
        return fkv_trun_fail(run, "a string of more than 4 GiB");
    fkv_status st = fkv_tv_new_string(run, n, &bytes, out);
    for (size_t at = 0; !st && at < n; at += v.n) memcpy(bytes + at, v.s, v.n);
    out->flag = v.flag;
    return st;
}

static const char *entity_of(char c)
{
    switch (c) {
    case '&': return "&amp;";
    case '<': return "&lt;";
    case '>': return "&gt;";
    case '"': return "&#34;";
    case '\'': return "&#39;";
    default: return NULL;
    }
}

fkv_status fkv_ts_escape(fkv_trun *run, fkv_tvalue v, fkv_tvalue *out)
{
    size_t n = 0;
    char *to;
    *out = v;
    if (v.flag) return FKV_OK;
    for (uint32_t i = 0; i < v.n; i++) n += entity_of(v.s[i]) ? strlen(entity_of(v.s[i])) : 1;
    fkv_status st = fkv_tv_new_string(run, n, &to, out);
    if (st) return st;
    for (uint32_t i = 0; i < v.n; i++) {
        const char *entity = entity_of(v.s[i]);
        const size_t len = entity ? strlen(entity) : 1;
        for (size_t k = 0; k < len; k++) *to++ = entity ? entity[k] : v.s[i];
    }
    out->flag = true;
    return FKV_OK;
}
