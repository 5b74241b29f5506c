/* Patterns of member names: see pattern.h. Time is at most the product of both
 * lengths, whatever the pattern. */
#include "jobs/pattern.h"

/* Whether c is in the set that starts behind '['; *after is what follows it. An
 * unclosed '[' is no set: *after is then NULL. */
static bool in_set(const char *p, unsigned char c, const char **after)
{
    const bool negated = *p == '!' || *p == '^';
    bool found = false;
    if (negated) p++;
    for (const char *first = p; *p && (*p != ']' || p == first); p++) {
        if (*p == '\\' && p[1]) p++;
        const unsigned char lo = (unsigned char)*p;
        unsigned char hi = lo;
        if (p[1] == '-' && p[2] && p[2] != ']') {
            p += 2;
            if (*p == '\\' && p[1]) p++;
            hi = (unsigned char)*p;
        }
        if (c >= lo && c <= hi) found = true;
    }
    *after = *p ? p + 1 : NULL;
    return found != negated;
}

/* Bytes of the UTF-8 character at name; a stray byte counts as one. */
static size_t char_bytes(const char *name, size_t n)
{
    size_t len = 1;
    if (((unsigned char)*name & 0xc0) == 0xc0) {
        while (len < n && ((unsigned char)name[len] & 0xc0) == 0x80) len++;
    }
    return len;
}

/* Matches one character of name against the pattern's next item, not a '*'.
 * Returns the bytes of name that it takes, 0 if it doesn't match. */
static size_t match_one(const char **pattern, const char *name, size_t n)
{
    const char *p = *pattern, *after;
    if (!*p || !n) return 0;
    if (*p == '?') {
        *pattern = p + 1;
        return char_bytes(name, n);
    }
    if (*p == '[') {
        const bool in = in_set(p + 1, (unsigned char)*name, &after);
        if (after) {
            *pattern = after;
            return in;
        }
    }
    if (*p == '\\' && p[1]) p++;
    *pattern = p + 1;
    return *p == *name;
}

bool fkv_pattern_match(const char *pattern, const char *name, size_t n)
{
    const char *star = NULL; /* what follows the last '*' */
    const char *from = NULL; /* where its match ends for now */
    const char *end = name + n;
    for (;;) {
        while (*pattern == '*') {
            star = ++pattern;
            from = name;
        }
        if (name == end && !*pattern) return true;
        const size_t took = match_one(&pattern, name, (size_t)(end - name));
        if (took) {
            name += took;
            continue;
        }
        if (!star || from == end) return false;
        pattern = star;
        name = ++from;
    }
}
