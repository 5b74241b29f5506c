/* The lexer of templates: see template_lexer.h. */
#include "tokenizer/template_lexer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/characters.h"
#include "tokenizer/template_unicode.h"

bool fkv_ttoken_is(const fkv_ttoken *t, fkv_ttoken_kind kind, const char *text)
{
    return t->kind == kind && fkv_tv_is(t->value, text);
}

fkv_status fkv_tlexer_normalise(fkv_trun *run, const char *text, size_t n, fkv_tvalue *out)
{
    char *to;
    fkv_status st = fkv_tv_new_string(run, n, &to, out);
    size_t len = 0;
    if (st) return st;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n') continue;
        to[len++] = text[i];
        if (text[i] == '\r') to[len - 1] = '\n';
    }
    if (len && to[len - 1] == '\n') len--;
    out->n = (uint32_t)len;
    return FKV_OK;
}

static bool looking_at(const fkv_tlexer *x, size_t at, const char *what)
{
    const size_t n = strlen(what);
    return x->n - at >= n && memcmp(x->text + at, what, n) == 0;
}

/* Moves to the position and counts the lines on the way. */
static void move_to(fkv_tlexer *x, size_t to)
{
    for (; x->at < to; x->at++) x->run->line += x->text[x->at] == '\n';
    x->line_starts = to > 0 && x->text[to - 1] == '\n';
}

/* The end of the white space at that position. */
static size_t skip_space(const fkv_tlexer *x, size_t at)
{
    size_t len;
    while (at < x->n && fkv_python_space(fkv_utf8_get(x->text + at, &len))) at += len;
    return at;
}

/* The start of the white space that ends there, not before from. */
static size_t space_before(const fkv_tlexer *x, size_t from, size_t end)
{
    while (end > from) {
        size_t ignored;
        const size_t len = fkv_utf8_before(x->text, end);
        if (!fkv_python_space(fkv_utf8_get(x->text + end - len, &ignored))) break;
        end -= len;
    }
    return end;
}

/* Where data that starts at from ends, before a tag at end with this sign ("-", "+" or none):
 * "-" takes all white space, lstrip_blocks the blanks between a line's start and a tag. */
static size_t cut_data(const fkv_tlexer *x, size_t from, size_t end, char sign, bool lstrip)
{
    const size_t cut = space_before(x, from, end);
    if (sign == '-') return cut;
    if (sign == '+' || !lstrip) return end;
    const char *newline = memrchr(x->text + from, '\n', end - from);
    const size_t line = newline ? (size_t)(newline - x->text) + 1 : from;
    return (newline || x->line_starts) && cut <= line ? line : end;
}

/* The end of what closes a tag at that position, "%}" with its sign and the white space that it
 * takes, or 0 where it is not closed there. trims: a new line behind it goes. */
static size_t close_tag(const fkv_tlexer *x, size_t at, const char *closing, bool trims)
{
    const char sign = at < x->n ? x->text[at] : '\0';
    const size_t signs = sign == '-' || (sign == '+' && trims);
    if (!looking_at(x, at + signs, closing)) return 0;
    at += signs + 2;
    if (signs) return sign == '-' ? skip_space(x, at) : at;
    return trims && at < x->n && x->text[at] == '\n' ? at + 1 : at;
}

static fkv_status data_token(fkv_tlexer *x, size_t from, size_t to, fkv_ttoken *out)
{
    out->kind = FKV_T_DATA;
    return fkv_tv_borrow(x->run, x->text + from, to - from, &out->value);
}

/* The end of "{%- raw -%}" or "{% endraw %}" at that position, 0 where it is something else. */
static size_t raw_tag(const fkv_tlexer *x, size_t at, const char *word, char *sign)
{
    if (!looking_at(x, at, "{%")) return 0;
    at += 2;
    *sign = at < x->n && (x->text[at] == '-' || x->text[at] == '+') ? x->text[at++] : '\0';
    at = skip_space(x, at);
    if (!looking_at(x, at, word)) return 0;
    at = skip_space(x, at + strlen(word));
    const bool ends = word[0] == 'e';
    if (!ends && at < x->n && x->text[at] == '+') return 0;
    if (ends || (at < x->n && x->text[at] == '-')) return close_tag(x, at, "%}", true);
    return looking_at(x, at, "%}") ? at + 2 : 0;
}

/* The data of a raw block, whose start was read. */
static fkv_status read_raw(fkv_tlexer *x, fkv_ttoken *out)
{
    const size_t from = x->at;
    char sign;
    for (size_t at = from; at < x->n; at++) {
        const size_t end = x->text[at] == '{' ? raw_tag(x, at, "endraw", &sign) : 0;
        if (!end) continue;
        fkv_status st = data_token(x, from, cut_data(x, from, at, sign, true), out);
        move_to(x, end);
        return st;
    }
    return fkv_trun_fail(x->run, "Missing end of raw directive");
}

/* Goes behind a comment, which starts at x->at behind "{#" and its sign. */
static fkv_status skip_comment(fkv_tlexer *x)
{
    const char *hit = memmem(x->text + x->at, x->n - x->at, "#}", 2);
    if (!hit) return fkv_trun_fail(x->run, "Missing end of comment tag");
    size_t at = (size_t)(hit - x->text);
    if (at > x->at && (x->text[at - 1] == '-' || x->text[at - 1] == '+')) at--;
    move_to(x, close_tag(x, at, "#}", true));
    return FKV_OK;
}

/* Outside tags: the data up to the next tag, which is opened. */
static fkv_status read_data(fkv_tlexer *x, fkv_ttoken *out)
{
    const size_t from = x->at;
    size_t at = from, raw;
    char sign;
    fkv_status st;
    while (at < x->n &&
           !(x->text[at] == '{' && at + 1 < x->n && strchr("%{#", x->text[at + 1]) && x->text[at + 1]))
        at++;
    if (at == x->n) {
        st = data_token(x, from, at, out);
        move_to(x, at);
        return st;
    }
    const char kind = x->text[at + 1];
    if (kind == '%' && (raw = raw_tag(x, at, "raw", &sign)) > 0) {
        x->opened = FKV_T_DATA;
    } else {
        raw = at + 2;
        sign = raw < x->n && (x->text[raw] == '-' || x->text[raw] == '+') ? x->text[raw++] : '\0';
        if (kind != '#') x->opened = kind == '%' ? FKV_T_OPEN_BLOCK : FKV_T_OPEN_OUTPUT;
    }
    st = data_token(x, from, cut_data(x, from, at, sign, kind != '{'), out);
    move_to(x, raw);
    return st || kind != '#' ? st : skip_comment(x);
}

static bool is_digit(char c, int base)
{
    if (c >= '0' && c <= '9') return c - '0' < base;
    return base == 16 && ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'));
}

/* The end of digits with single "_" between them. */
static size_t digits_end(const fkv_tlexer *x, size_t at, int base)
{
    while (at < x->n && is_digit(x->text[at], base)) {
        at++;
        if (at + 1 < x->n && x->text[at] == '_' && is_digit(x->text[at + 1], base)) at++;
    }
    return at;
}

/* The end of a float at that position, 0 where there is none. */
static size_t float_end(const fkv_tlexer *x, size_t from)
{
    size_t at = digits_end(x, from, 10), end = 0;
    if (from > 0 && x->text[from - 1] == '.') return 0;
    if (at + 1 < x->n && x->text[at] == '.' && is_digit(x->text[at + 1], 10))
        end = at = digits_end(x, at + 1, 10);
    if (at < x->n && (x->text[at] == 'e' || x->text[at] == 'E')) {
        at++;
        if (at < x->n && (x->text[at] == '+' || x->text[at] == '-')) at++;
        if (at < x->n && is_digit(x->text[at], 10)) end = digits_end(x, at, 10);
    }
    return end;
}

static fkv_status read_number(fkv_tlexer *x, fkv_ttoken *out)
{
    char text[400];
    size_t n = 0, end = float_end(x, x->at);
    const bool is_float = end > 0;
    int base = 10;
    if (!is_float) {
        const char c = x->text[x->at], next = x->at + 1 < x->n ? (char)(x->text[x->at + 1] | 0x20) : '\0';
        const int other = c != '0' ? 10 : next == 'x' ? 16 : next == 'o' ? 8 : next == 'b' ? 2 : 10;
        const size_t skip = other != 10 && x->at + 2 < x->n && x->text[x->at + 2] == '_' ? 3 : 2;
        if (other != 10 && x->at + skip < x->n && is_digit(x->text[x->at + skip], other)) {
            base = other;
            x->at += skip;
        }
        end = digits_end(x, x->at, base);
        if (base == 10 && c == '0')
            for (end = x->at + 1; end < x->n && x->text[end] == '0'; end++) continue;
    }
    for (size_t i = x->at; i < end && n + 1 < sizeof text; i++)
        if (x->text[i] != '_') text[n++] = x->text[i];
    text[n] = '\0';
    if (n + 1 == sizeof text) return fkv_trun_fail(x->run, "a number of too many digits");
    move_to(x, end);
    out->kind = FKV_T_LITERAL;
    if (is_float) {
        out->value = fkv_tv_float(strtod(text, NULL));
        return FKV_OK;
    }
    errno = 0;
    out->value = fkv_tv_int(strtoll(text, NULL, base));
    return errno ? fkv_trun_fail(x->run, "%.40s does not fit into 64 bits", text) : FKV_OK;
}

/* The value of n hexadecimal digits at s, -1 where there are fewer. */
static int64_t hex_value(const char *s, size_t left, size_t n)
{
    int64_t v = 0;
    if (left < n) return -1;
    for (size_t i = 0; i < n; i++) {
        if (!is_digit(s[i], 16)) return -1;
        v = v * 16 + (s[i] <= '9' ? s[i] - '0' : (s[i] | 0x20) - 'a' + 10);
    }
    return v;
}

/* An escape at s[0] == '\\': writes it to *to and returns its length; 0: it is malformed. */
static size_t unescape(const char *s, size_t left, char **to)
{
    static const char names[] = "\\'\"abfnrtv", values[] = "\\'\"\a\b\f\n\r\t\v";
    const char c = left > 1 ? s[1] : '\0';
    const char *name = c ? strchr(names, c) : NULL;
    size_t len = 2;
    int64_t cp = -1;
    if (name) {
        *(*to)++ = values[name - names];
        return 2;
    }
    if (c == '\n') return 2;
    if (c >= '0' && c <= '7') {
        cp = 0;
        for (len = 1; len < 4 && len < left && s[len] >= '0' && s[len] <= '7'; len++)
            cp = cp * 8 + (s[len] - '0');
    } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        cp = hex_value(s + 2, left - 2, digits);
        len = 2 + digits;
    } else if (c != 'N') { /* anything else stands as it is; Jinja escapes what is not ASCII first */
        *(*to)++ = '\\';
        if (left < 2 || !(c & 0x80)) return 1;
        cp = fkv_utf8_get(s + 1, &len);
        *to += sprintf(*to, cp < 0x100 ? "x%02x" : cp < 0x10000 ? "u%04x" : "U%08x", (unsigned)cp);
        return 1 + len;
    }
    if (cp < 0 || cp > 0x10ffff || (cp >= 0xd800 && cp < 0xe000)) return 0;
    *to += fkv_utf8_put((uint32_t)cp, *to);
    return len;
}

static fkv_status read_string(fkv_tlexer *x, fkv_ttoken *out)
{
    const char quote = x->text[x->at];
    size_t end = x->at + 1;
    char *to;
    while (end < x->n && x->text[end] != quote) end += x->text[end] == '\\' ? 2 : 1;
    if (end >= x->n) return fkv_trun_fail(x->run, "a string without end");
    /* An escape of a character that is not ASCII may take ten bytes for three. */
    fkv_status st = fkv_tv_new_string(x->run, (end - x->at) * 4, &to, &out->value);
    if (st) return st;
    for (size_t i = x->at + 1; i < end;) {
        if (x->text[i] != '\\') {
            *to++ = x->text[i++];
            continue;
        }
        const size_t len = unescape(x->text + i, end - i, &to);
        if (!len) return fkv_trun_fail(x->run, "a string has an escape that is malformed or not supported");
        i += len;
    }
    out->kind = FKV_T_LITERAL;
    out->value.n = (uint32_t)(to - out->value.s);
    move_to(x, end + 1);
    return FKV_OK;
}

static bool is_word(const fkv_tlexer *x, size_t at, size_t *len)
{
    const uint32_t cp = fkv_utf8_get(x->text + at, len);
    return cp == '_' || (cp >= '0' && cp <= '9') || ((cp | 0x20) >= 'a' && (cp | 0x20) <= 'z' && cp < 0x80) ||
           (cp >= 0x80 && fkv_is_word_char(cp));
}

static fkv_status read_sign(fkv_tlexer *x, fkv_ttoken *out)
{
    static const char pairs[] = "// ** == != >= <=", singles[] = "+-/*%~[](){}><=.:|,;";
    static const char open[] = "([{", close[] = ")]}";
    const char *s = x->text + x->at;
    size_t n = 0;
    for (const char *p = pairs; !n && p < pairs + sizeof pairs - 1; p += 3)
        if (x->n - x->at >= 2 && s[0] == p[0] && s[1] == p[1]) n = 2;
    if (!n && *s && strchr(singles, *s)) n = 1;
    if (!n) return fkv_trun_fail(x->run, "unexpected character at byte %zu", x->at);
    const char *opens = n == 1 ? strchr(open, *s) : NULL;
    if (opens) {
        if (x->n_brackets == FKV_TEMPLATE_BRACKETS)
            return fkv_trun_fail(x->run, "brackets are nested too deeply");
        x->brackets[x->n_brackets++] = close[opens - open];
    }
    const bool closes = n == 1 && strchr(close, *s);
    if (closes && (x->n_brackets == 0 || x->brackets[--x->n_brackets] != *s))
        return fkv_trun_fail(x->run, "unexpected '%c'", *s);
    out->kind = FKV_T_SIGN;
    out->value = (fkv_tvalue){.type = FKV_T_STRING, .n = (uint32_t)n, .s = s};
    move_to(x, x->at + n);
    return FKV_OK;
}

/* Inside a tag. */
static fkv_status read_tag(fkv_tlexer *x, fkv_ttoken *out)
{
    const bool block = x->inside == FKV_T_OPEN_BLOCK;
    size_t len, end = 0;
    if (!x->n_brackets) end = close_tag(x, x->at, block ? "%}" : "}}", block);
    if (!end) {
        move_to(x, skip_space(x, x->at));
        if (!x->n_brackets) end = close_tag(x, x->at, block ? "%}" : "}}", block);
    }
    out->line = x->run->line;
    if (end) {
        out->kind = block ? FKV_T_CLOSE_BLOCK : FKV_T_CLOSE_OUTPUT;
        x->inside = FKV_T_DATA;
        move_to(x, end);
        return FKV_OK;
    }
    if (x->at == x->n) return fkv_trun_fail(x->run, "a tag without end");
    const char c = x->text[x->at];
    if (c >= '0' && c <= '9') return read_number(x, out);
    if (c == '"' || c == '\'') return read_string(x, out);
    for (end = x->at; end < x->n && is_word(x, end, &len); end += len) continue;
    if (end == x->at) return read_sign(x, out);
    out->kind = FKV_T_WORD;
    fkv_status st = fkv_tv_borrow(x->run, x->text + x->at, end - x->at, &out->value);
    move_to(x, end);
    return st;
}

fkv_status fkv_tlexer_next(fkv_tlexer *x, fkv_ttoken *out)
{
    *out = (fkv_ttoken){.line = x->run->line};
    if (x->opened == FKV_T_DATA) {
        x->opened = FKV_T_END;
        return read_raw(x, out);
    }
    if (x->opened) {
        out->kind = x->inside = x->opened;
        x->opened = FKV_T_END;
        x->n_brackets = 0;
        return FKV_OK;
    }
    if (x->inside == FKV_T_OPEN_OUTPUT || x->inside == FKV_T_OPEN_BLOCK) return read_tag(x, out);
    if (x->at == x->n) return FKV_OK;
    return read_data(x, out);
}
