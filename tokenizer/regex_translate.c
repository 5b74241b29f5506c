/* Oniguruma's Ruby syntax written as PCRE2: see regex.h. Owns no memory beyond
 * the caller's buffer. Only what is known to mean the same goes through; this
 * is no parser of everything that Oniguruma knows. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "tokenizer/characters.h"
#include "tokenizer/regex.h"

enum { DEPTH_MAX = 100, REPEAT_MAX = 10000 };
#define NO_ATOM SIZE_MAX

/* A group that is open. */
struct group {
    size_t at;      /* where it begins in the output */
    int n_options;  /* groups that options such as (?i) opened inside it */
    bool assertion; /* nothing to repeat */
    bool icase;     /* as it was before it */
};

struct translation {
    const char *pattern, *file, *key;
    size_t n, i; /* i: next byte to read */
    fkv_buf *out;
    fkv_err *err;
    struct group groups[DEPTH_MAX];
    int depth;
    bool icase;
    size_t atom;      /* where in the output the last thing that may be repeated begins, or NO_ATOM */
    char last_letter; /* the literal before, lower case, or 0: for folds of two letters */
};

/* The bodies of classes, for use inside [ ]. */
#define SPACE                                                                                                \
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACE                                                                                            \
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}"      \
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define HEX  "0-9A-Fa-f"

static fkv_status refuse(struct translation *t, const char *what)
{
    return fkv_fail_at(t->err, FKV_E_INPUT, t->file, 0, t->key, "the regex: %s at byte %zu is not supported",
                       what, t->i);
}

static fkv_status put(struct translation *t, const char *text)
{
    return fkv_buf_puts(t->out, text, t->err);
}

static fkv_status put_literal(fkv_buf *out, uint32_t cp, fkv_err *err)
{
    char bytes[4];
    if (cp < 0x80) return fkv_buf_printf(out, err, "\\x%02x", (unsigned)cp);
    return fkv_buf_append(out, bytes, fkv_utf8_put(cp, bytes), err);
}

static int peek(const struct translation *t, size_t ahead)
{
    return t->n - t->i > ahead ? (unsigned char)t->pattern[t->i + ahead] : -1;
}

static uint32_t next(struct translation *t)
{
    size_t len;
    const uint32_t cp = fkv_utf8_get(t->pattern + t->i, &len);
    t->i += len;
    return cp;
}

static int hex_value(int c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static bool is_alnum(uint32_t cp)
{
    return (cp >= '0' && cp <= '9') || (cp >= 'a' && cp <= 'z') || (cp >= 'A' && cp <= 'Z');
}

/* Reads the digits of \xHH, \x{H...} or \uHHHH; t->i is behind the letter. */
static fkv_status read_hex(struct translation *t, uint32_t letter, uint32_t *out)
{
    uint32_t v = 0;
    int n = 0, digit;
    const bool braces = letter == 'x' && peek(t, 0) == '{';
    const int most = braces ? 6 : letter == 'x' ? 2 : 4;
    if (braces) t->i++;
    while (n < most && (digit = hex_value(peek(t, 0))) >= 0) {
        v = v * 16 + (uint32_t)digit;
        t->i++;
        n++;
    }
    if (n == 0 || (letter == 'u' && n != 4) || (braces && peek(t, 0) != '}'))
        return refuse(t, "this form of \\x or \\u");
    if (braces) t->i++;
    if (letter == 'x' && !braces && v >= 0x80) return refuse(t, "\\x of a lone byte");
    if (v > 0x10ffff || (v >= 0xd800 && v < 0xe000)) return refuse(t, "a code point that is no character");
    *out = v;
    return FKV_OK;
}

/* A property that both dialects know under this name and define alike. */
static const char *property(const char *name)
{
    static const char *const same[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N", "Nd",
                                       "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm",
                                       "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf"};
    /* Oniguruma means the script itself, plain \p{Han} of PCRE2 its extensions too. */
    static const char *const renamed[][2] = {
        {"Letter", "L"},           {"Mark", "M"},
        {"Number", "N"},           {"Punctuation", "P"},
        {"Symbol", "S"},           {"Separator", "Z"},
        {"Han", "sc:Han"},         {"Hiragana", "sc:Hiragana"},
        {"Hangul", "sc:Hangul"},   {"Katakana", "sc:Katakana"},
        {"Latin", "sc:Latin"},     {"Cyrillic", "sc:Cyrillic"},
        {"Greek", "sc:Greek"},     {"Arabic", "sc:Arabic"},
        {"Hebrew", "sc:Hebrew"},   {"Devanagari", "sc:Devanagari"},
        {"Bengali", "sc:Bengali"}, {"Tamil", "sc:Tamil"},
        {"Thai", "sc:Thai"},       {"Lao", "sc:Lao"},
        {"Khmer", "sc:Khmer"},     {"Myanmar", "sc:Myanmar"},
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (!strcmp(name, same[i])) return same[i];
    for (size_t i = 0; i < sizeof renamed / sizeof *renamed; i++)
        if (!strcmp(name, renamed[i][0])) return renamed[i][1];
    return NULL;
}

/* \p{..} or \P{..}; t->i is behind the letter. The same inside and outside [ ]. */
static fkv_status read_property(struct translation *t, bool negated)
{
    char name[32];
    size_t n = 0;
    if (peek(t, 0) != '{') return refuse(t, "\\p without braces");
    t->i++;
    if (peek(t, 0) == '^') {
        negated = !negated;
        t->i++;
    }
    while (peek(t, 0) >= 0 && peek(t, 0) != '}' && n + 1 < sizeof name) name[n++] = t->pattern[t->i++];
    name[n] = '\0';
    const char *known = peek(t, 0) == '}' ? property(name) : NULL;
    if (!known) {
        char what[64];
        snprintf(what, sizeof what, "the property \\p{%s}", name);
        return refuse(t, what);
    }
    t->i++;
    /* Case folding moves characters across these sets. */
    if (t->icase) return refuse(t, "\\p in a part that ignores case");
    return fkv_buf_printf(t->out, t->err, "\\%c{%s}", negated ? 'P' : 'p', known);
}

/* The character of an escape that stands for one, t->i behind its letter;
 * *is_one says whether it does. */
static fkv_status read_escaped_char(struct translation *t, uint32_t letter, uint32_t *cp, bool *is_one)
{
    *is_one = true;
    switch (letter) {
    case 'n': *cp = '\n'; return FKV_OK;
    case 'r': *cp = '\r'; return FKV_OK;
    case 't': *cp = '\t'; return FKV_OK;
    case 'f': *cp = '\f'; return FKV_OK;
    case 'v': *cp = '\v'; return FKV_OK;
    case 'a': *cp = '\a'; return FKV_OK;
    case 'e': *cp = 0x1b; return FKV_OK;
    case 'x':
    case 'u': return read_hex(t, letter, cp);
    default: break;
    }
    *cp = letter;
    *is_one = !is_alnum(letter);
    return FKV_OK;
}

static fkv_status refuse_escape(struct translation *t, uint32_t letter)
{
    char what[32];
    snprintf(what, sizeof what, "the escape \\%c", (char)letter);
    return refuse(t, what);
}

/* An escape inside [ ] that stands for a set; the backslash's letter is read. */
static fkv_status class_set(struct translation *t, uint32_t letter)
{
    switch (letter) {
    case 's': return put(t, SPACE);
    case 'S': return put(t, NOT_SPACE);
    case 'd': return put(t, "\\p{Nd}");
    case 'D': return put(t, "\\P{Nd}");
    case 'h': return put(t, HEX);
    case 'w': return t->icase ? refuse_escape(t, letter) : put(t, WORD);
    case 'p':
    case 'P': return read_property(t, letter == 'P');
    default: return refuse_escape(t, letter);
    }
}

/* One member of a class: a character, or a set that is written out at once. */
static fkv_status class_item(struct translation *t, uint32_t *cp, bool *is_one)
{
    *is_one = true;
    if (peek(t, 0) < 0) return refuse(t, "a class without its ]");
    if (peek(t, 0) == '[') return refuse(t, peek(t, 1) == ':' ? "a POSIX bracket" : "a class inside a class");
    if (peek(t, 0) == '&' && peek(t, 1) == '&') return refuse(t, "&& in a class");
    *cp = next(t);
    if (*cp != '\\') return FKV_OK;
    if (peek(t, 0) < 0) return refuse(t, "a backslash at the end");
    const uint32_t letter = next(t);
    fkv_status st = read_escaped_char(t, letter, cp, is_one);
    if (!st && !*is_one) st = class_set(t, letter);
    return st;
}

static fkv_status put_class_char(struct translation *t, uint32_t cp)
{
    if (t->icase && cp >= 0x80) return refuse(t, "a non-ASCII character in a part that ignores case");
    return put_literal(t->out, cp, t->err);
}

/* [...]; t->i is behind the bracket. */
static fkv_status read_class(struct translation *t)
{
    fkv_status st;
    bool first = true;
    const bool negated = peek(t, 0) == '^';
    if (negated) t->i++;
    if ((st = put(t, negated ? "[^" : "["))) return st;
    if (peek(t, 0) == ']') return refuse(t, "an empty class");
    for (; peek(t, 0) != ']'; first = false) {
        uint32_t cp = 0, last = 0;
        bool is_one;
        if (peek(t, 0) == '-' && !first && peek(t, 1) != ']') return refuse(t, "a - between sets");
        if ((st = class_item(t, &cp, &is_one))) return st;
        if (!is_one) continue;
        if ((st = put_class_char(t, cp))) return st;
        if (peek(t, 0) != '-' || peek(t, 1) == ']') continue;
        t->i++;
        if ((st = class_item(t, &last, &is_one))) return st;
        if (!is_one || last < cp) return refuse(t, "this range");
        if ((st = put(t, "-")) || (st = put_class_char(t, last))) return st;
    }
    t->i++;
    return put(t, "]");
}

static fkv_status read_literal(struct translation *t, uint32_t cp)
{
    if (t->icase) {
        /* Full case folding makes one character of these pairs. */
        static const char *const pairs[] = {"ss", "ff", "fi", "fl", "st"};
        if (cp >= 0x80) return refuse(t, "a non-ASCII character in a part that ignores case");
        const char lower = (char)(cp >= 'A' && cp <= 'Z' ? cp + 32 : cp);
        for (size_t k = 0; k < sizeof pairs / sizeof *pairs; k++)
            if (t->last_letter == pairs[k][0] && lower == pairs[k][1])
                return refuse(t, "ss, ff, fi, fl or st in a part that ignores case");
        t->last_letter = lower;
    }
    t->atom = t->out->len;
    return put_literal(t->out, cp, t->err);
}

/* An escape outside classes; t->i is behind the backslash. */
static fkv_status read_escape(struct translation *t)
{
    if (peek(t, 0) < 0) return refuse(t, "a backslash at the end");
    const uint32_t letter = next(t);
    const size_t at = t->out->len;
    uint32_t cp = 0;
    bool is_one;
    fkv_status st = read_escaped_char(t, letter, &cp, &is_one);
    if (st) return st;
    if (is_one) return read_literal(t, cp);
    t->last_letter = 0;
    t->atom = at;
    switch (letter) {
    case 's': return put(t, "[" SPACE "]");
    case 'S': return put(t, "[^" SPACE "]");
    case 'd': return put(t, "\\p{Nd}");
    case 'D': return put(t, "\\P{Nd}");
    case 'h': return put(t, "[" HEX "]");
    case 'H': return put(t, "[^" HEX "]");
    case 'w': return t->icase ? refuse_escape(t, letter) : put(t, "[" WORD "]");
    case 'W': return t->icase ? refuse_escape(t, letter) : put(t, "[^" WORD "]");
    case 'p':
    case 'P': return read_property(t, letter == 'P');
    case 'A':
    case 'z': t->atom = NO_ATOM; return put(t, letter == 'A' ? "\\A" : "\\z");
    default: return refuse_escape(t, letter);
    }
}

static fkv_status open_group(struct translation *t, const char *text, size_t n_read, bool assertion)
{
    if (t->depth == DEPTH_MAX) return refuse(t, "this depth of groups");
    t->groups[t->depth++] = (struct group){.at = t->out->len, .assertion = assertion, .icase = t->icase};
    t->i += n_read;
    t->atom = NO_ATOM;
    return put(t, text);
}

/* (?i:...) and (?i), which in Ruby is a group to the end of the enclosing one,
 * alternatives included. t->i is behind "(?". */
static fkv_status read_option(struct translation *t)
{
    const bool off = peek(t, 0) == '-';
    const size_t at = off ? 1 : 0;
    if (peek(t, at) != 'i' || (peek(t, at + 1) != ':' && peek(t, at + 1) != ')'))
        return refuse(t, "this kind of group");
    const char *text = off ? "(?-i:" : "(?i:";
    const bool scoped = peek(t, at + 1) == ':';
    t->i += at + 2;
    fkv_status st = FKV_OK;
    if (scoped) {
        st = open_group(t, text, 0, false);
    } else {
        if (++t->groups[t->depth - 1].n_options > DEPTH_MAX) return refuse(t, "so many options");
        t->atom = NO_ATOM;
        st = put(t, text);
    }
    t->icase = !off;
    return st;
}

/* t->i is behind the parenthesis. */
static fkv_status read_group(struct translation *t)
{
    if (peek(t, 0) != '?') return open_group(t, "(?:", 0, false);
    switch (peek(t, 1)) {
    case ':': return open_group(t, "(?:", 2, false);
    case '>': return open_group(t, "(?>", 2, false);
    case '=': return open_group(t, "(?=", 2, true);
    case '!': return open_group(t, "(?!", 2, true);
    case '<':
        if (peek(t, 2) == '=') return open_group(t, "(?<=", 3, true);
        if (peek(t, 2) == '!') return open_group(t, "(?<!", 3, true);
        return refuse(t, "a named group");
    default: t->i++; return read_option(t);
    }
}

static fkv_status close_group(struct translation *t)
{
    const struct group *g = &t->groups[--t->depth];
    fkv_status st = FKV_OK;
    const int n = g->n_options + (t->depth > 0); /* the whole pattern has no parenthesis */
    for (int k = 0; !st && k < n; k++) st = put(t, ")");
    t->icase = g->icase;
    t->atom = g->assertion ? NO_ATOM : g->at;
    return st;
}

/* Wraps the last atom, quantifier included, so that it can be repeated again. */
static fkv_status wrap_atom(struct translation *t)
{
    fkv_status st = fkv_buf_append(t->out, "   )", 4, t->err);
    if (st) return st;
    char *at = t->out->data + t->atom;
    memmove(at + 3, at, t->out->len - t->atom - 4);
    at[0] = '(';
    at[1] = '?';
    at[2] = ':';
    return FKV_OK;
}

static bool read_number(struct translation *t, size_t *k, long *out)
{
    const size_t from = *k;
    long v = 0;
    for (int c; (c = peek(t, *k)) >= '0' && c <= '9'; (*k)++)
        if (v <= REPEAT_MAX) v = v * 10 + (c - '0');
    *out = v;
    return *k > from;
}

/* {n}, {n,}, {n,m}, {,m}; anything else is a literal brace. t->i is at it. */
static fkv_status read_interval(struct translation *t)
{
    size_t k = 1;
    long lo = 0, hi = -1;
    const bool has_lo = read_number(t, &k, &lo);
    const bool comma = peek(t, k) == ',';
    if (comma) k++;
    const bool has_hi = comma && read_number(t, &k, &hi);
    if ((!has_lo && !has_hi) || peek(t, k) != '}') {
        t->i++;
        return read_literal(t, '{');
    }
    if (t->atom == NO_ATOM) return refuse(t, "a repetition of nothing");
    if (lo > REPEAT_MAX || (has_hi && (hi > REPEAT_MAX || hi < lo))) return refuse(t, "this repetition");
    t->i += k + 1;
    fkv_status st;
    if (has_hi) {
        st = fkv_buf_printf(t->out, t->err, "{%ld,%ld}", lo, hi);
    } else {
        st = fkv_buf_printf(t->out, t->err, comma ? "{%ld,}" : "{%ld}", lo);
    }
    if (st) return st;
    /* In Ruby + behind an interval repeats it, it does not make it possessive;
     * ? makes it lazy, but makes {n} optional. */
    const int suffix = peek(t, 0);
    if (suffix == '+' || (suffix == '?' && !comma)) st = wrap_atom(t);
    if (!st && (suffix == '+' || suffix == '?')) {
        st = put(t, suffix == '+' ? "+" : "?");
        t->i++;
    }
    t->atom = NO_ATOM;
    return st;
}

/* *, + and ?, lazy or possessive. t->i is at it. */
static fkv_status read_quantifier(struct translation *t)
{
    if (t->atom == NO_ATOM) return refuse(t, "a repetition of nothing or of a repetition");
    t->atom = NO_ATOM;
    const char text[2] = {t->pattern[t->i++], '\0'};
    fkv_status st = put(t, text);
    if (!st && (peek(t, 0) == '+' || peek(t, 0) == '?')) {
        st = put(t, peek(t, 0) == '+' ? "+" : "?");
        t->i++;
    }
    return st;
}

static fkv_status read_piece(struct translation *t)
{
    const int c = peek(t, 0);
    if (c == 0 || c >= 0x80 || !strchr("|()[.^$*+?\\{", c)) return read_literal(t, next(t));
    if (c == '{') {
        fkv_status st = read_interval(t);
        t->last_letter = 0;
        return st;
    }
    if (c == '\\') {
        t->i++;
        return read_escape(t);
    }
    t->last_letter = 0;
    if (strchr("*+?", c)) return read_quantifier(t);
    t->i++;
    switch (c) {
    case '|': t->atom = NO_ATOM; return put(t, "|");
    case '(': return read_group(t);
    case ')': return t->depth == 1 ? refuse(t, "a ) without its (") : close_group(t);
    case '[': t->atom = t->out->len; return read_class(t);
    case '.': t->atom = t->out->len; return put(t, "[^\\x0a]");
    case '^': t->atom = NO_ATOM; return put(t, "(?m:^)");
    default: t->atom = NO_ATOM; return put(t, "(?m:$)");
    }
}

fkv_status fkv_regex_translate(const char *pattern, size_t n, const char *file, const char *key, fkv_buf *out,
                               fkv_err *err)
{
    /* The whole pattern is group 0, so that options in it end somewhere. */
    struct translation t = {.pattern = pattern, .file = file, .key = key, .n = n, .out = out, .err = err};
    t.groups[0].at = out->len;
    t.depth = 1;
    t.atom = NO_ATOM;
    fkv_status st = fkv_buf_reserve(out, n, err);
    while (!st && t.i < t.n) st = read_piece(&t);
    if (!st && t.depth != 1) st = refuse(&t, "a ( without its )");
    if (!st) st = close_group(&t);
    return st;
}
