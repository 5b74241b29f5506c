/* UTF-8: see utf8.h. Not for: decoding to code points. */
#include "runner/base/utf8.h"

#include <stdint.h>
#include <string.h>

/* Length of the well-formed multi-byte character at s, 0 if there is none. */
static size_t char_bytes(const unsigned char *s, size_t n)
{
    unsigned lo = 0x80, hi = 0xbf; /* of the second byte */
    size_t len;
    if (s[0] >= 0xc2 && s[0] <= 0xdf) {
        len = 2;
    } else if (s[0] >= 0xe0 && s[0] <= 0xef) {
        len = 3;
        if (s[0] == 0xe0) lo = 0xa0;
        if (s[0] == 0xed) hi = 0x9f;
    } else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        len = 4;
        if (s[0] == 0xf0) lo = 0x90;
        if (s[0] == 0xf4) hi = 0x8f;
    } else {
        return 0;
    }
    if (n < len || s[1] < lo || s[1] > hi) return 0;
    for (size_t i = 2; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
    }
    return len;
}

size_t fkv_utf8_span(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < n) {
        uint64_t word;
        while (n - i >= sizeof word) {
            memcpy(&word, s + i, sizeof word);
            if (word & 0x8080808080808080ULL) break;
            i += sizeof word;
        }
        if (i == n) break;
        const size_t len = s[i] < 0x80 ? 1 : char_bytes(s + i, n - i);
        if (!len) break;
        i += len;
    }
    return i;
}

size_t fkv_utf8_mark(const char *text, size_t n)
{
    return n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}

const char *fkv_utf8_other(const char *text, size_t n)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *name;
    } beginnings[] = {
        {"\xff\xfe\0\0", 4, "UTF-32 (little-endian)"},
        {"\0\0\xfe\xff", 4, "UTF-32 (big-endian)"},
        {"\xff\xfe", 2, "UTF-16 (little-endian)"},
        {"\xfe\xff", 2, "UTF-16 (big-endian)"},
        {"{\0\0\0", 4, "UTF-32 (little-endian)"},
        {"[\0\0\0", 4, "UTF-32 (little-endian)"},
        {"\0\0\0{", 4, "UTF-32 (big-endian)"},
        {"\0\0\0[", 4, "UTF-32 (big-endian)"},
        {"{\0", 2, "UTF-16 (little-endian)"},
        {"[\0", 2, "UTF-16 (little-endian)"},
        {"\0{", 2, "UTF-16 (big-endian)"},
        {"\0[", 2, "UTF-16 (big-endian)"},
    };
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++) {
        if (n >= beginnings[i].n && memcmp(text, beginnings[i].bytes, beginnings[i].n) == 0)
            return beginnings[i].name;
    }
    return NULL;
}

fkv_status fkv_utf8_append_clean(fkv_buf *out, const char *text, size_t n, fkv_err *err)
{
    fkv_status st = FKV_OK;
    while (!st && n) {
        const size_t good = fkv_utf8_span(text, n);
        st = fkv_buf_append(out, text, good, err);
        text += good;
        n -= good;
        if (st || !n) break;
        st = fkv_buf_puts(out, "\xef\xbf\xbd", err);
        text++;
        n--;
    }
    return st;
}

/* Whether the well-formed character at s, of so many bytes, only shows itself. */
static bool is_shown(const unsigned char *s, size_t len)
{
    if (len == 1) return s[0] >= ' ' && s[0] != 0x7f;
    if (len == 2) {
        const unsigned c = (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu);
        return c >= 0xa0 && c != 0x61c; /* C1 controls; the Arabic letter mark */
    }
    if (len != 3) return true;
    const unsigned c = (s[0] & 0xfu) << 12 | (s[1] & 0x3fu) << 6 | (s[2] & 0x3fu);
    /* marks, line ends and embeddings of direction; the byte order mark */
    return !(c >= 0x200e && c <= 0x200f) && !(c >= 0x2028 && c <= 0x202e) && !(c >= 0x2066 && c <= 0x2069) &&
           c != 0xfeff;
}

void fkv_utf8_show(const char *text, char *out, size_t size)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *s = (const unsigned char *)text;
    size_t left = strlen(text), at = 0;
    while (left) {
        const size_t whole = *s < 0x80 ? 1 : char_bytes(s, left), len = whole ? whole : 1;
        const bool shown = whole && is_shown(s, len);
        if (at + (shown ? len : 4 * len) >= size) break;
        for (size_t i = 0; i < len; i++) {
            if (!shown) {
                out[at++] = '\\';
                out[at++] = 'x';
                out[at++] = digits[s[i] >> 4];
            }
            out[at++] = shown ? (char)s[i] : digits[s[i] & 15];
        }
        s += len;
        left -= len;
    }
    if (size) out[at] = '\0';
}
