/* Characters and the byte-level alphabet: see characters.h. Owns no memory. */
#include "tokenizer/characters.h"

#include <utf8proc.h>

#include "runner/base/utf8.h"

/* Length of the ill-formed part at s, n > 0 bytes: the longest that could have
 * begun a character, or one byte. */
static size_t broken_length(const unsigned char *s, size_t n)
{
    unsigned lo = 0x80, hi = 0xbf;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 1;
    const size_t want = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (s[0] == 0xe0) lo = 0xa0; /* overlong */
    if (s[0] == 0xed) hi = 0x9f; /* surrogates */
    if (s[0] == 0xf0) lo = 0x90; /* overlong */
    if (s[0] == 0xf4) hi = 0x8f; /* above U+10FFFF */
    size_t i = 1;
    while (i < want && i < n && s[i] >= lo && s[i] <= hi) {
        lo = 0x80;
        hi = 0xbf;
        i++;
    }
    return i;
}

size_t fkv_utf8_before(const char *text, size_t end)
{
    size_t i = end - 1;
    while (i > 0 && end - i < 4 && ((unsigned char)text[i] & 0xc0) == 0x80) i--;
    return end - i;
}

size_t fkv_utf8_put(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

fkv_status fkv_utf8_lossy(const void *bytes, size_t n, fkv_buf *out, fkv_err *err)
{
    const char *text = bytes;
    while (n) {
        const size_t good = fkv_utf8_span(text, n);
        fkv_status st = fkv_buf_append(out, text, good, err);
        if (st) return st;
        text += good;
        n -= good;
        if (!n) break;
        const size_t bad = broken_length((const unsigned char *)text, n);
        if ((st = fkv_buf_append(out, "\xef\xbf\xbd", 3, err))) return st;
        text += bad;
        n -= bad;
    }
    return FKV_OK;
}

size_t fkv_utf8_incomplete(const char *bytes, size_t n)
{
    for (size_t k = 1; k <= 3 && k <= n; k++) {
        const unsigned char *s = (const unsigned char *)bytes + n - k;
        if ((*s & 0xc0) == 0x80) continue;
        const size_t want = *s < 0xc2 || *s > 0xf4 ? 1 : *s < 0xe0 ? 2 : *s < 0xf0 ? 3 : 4;
        return k < want && broken_length(s, k) == k ? k : 0;
    }
    return 0;
}

bool fkv_is_white_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0d) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f ||
           cp == 0x3000;
}

bool fkv_is_word_char(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC: return true;
    /* The symbols that are Alphabetic: circled and squared letters. */
    case UTF8PROC_CATEGORY_SO:
        return (cp >= 0x24b6 && cp <= 0x24e9) || (cp >= 0x1f130 && cp <= 0x1f149) ||
               (cp >= 0x1f150 && cp <= 0x1f169) || (cp >= 0x1f170 && cp <= 0x1f189);
    /* Join controls. */
    default: return cp == 0x200c || cp == 0x200d;
    }
}

static bool is_ascii_alnum(uint32_t cp)
{
    return (cp >= '0' && cp <= '9') || (cp >= 'a' && cp <= 'z') || (cp >= 'A' && cp <= 'Z');
}

static bool in_ranges(uint32_t cp, const uint32_t (*ranges)[2], size_t n)
{
    for (size_t i = 0; i < n && ranges[i][0] <= cp; i++)
        if (cp <= ranges[i][1]) return true;
    return false;
}

bool fkv_is_numeric(uint32_t cp)
{
    /* Digits that came with Unicode 15 to 17. */
    static const uint32_t late[][2] = {
        {0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9}, {0x11de0, 0x11de9},
        {0x11f50, 0x11f59}, {0x16130, 0x16139}, {0x16d70, 0x16d79}, {0x16ff4, 0x16ff6},
        {0x1ccf0, 0x1ccf9}, {0x1d2c0, 0x1d2d3}, {0x1e4f0, 0x1e4f9}, {0x1e5f1, 0x1e5fa},
    };
    if (cp < 0x80) return cp >= '0' && cp <= '9';
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return true;
    default: return in_ranges(cp, late, sizeof late / sizeof *late);
    }
}

bool fkv_is_punctuation(uint32_t cp)
{
    /* Punctuation since Unicode 9, which HF's table does not have. */
    static const uint32_t late[][2] = {
        {0x61d, 0x61d},     {0x9fd, 0x9fd},     {0xa76, 0xa76},     {0xc77, 0xc77},     {0xc84, 0xc84},
        {0x1b4e, 0x1b4f},   {0x1b7d, 0x1b7f},   {0x2e43, 0x2e4f},   {0x2e52, 0x2e5d},   {0x10d6e, 0x10d6e},
        {0x10ead, 0x10ead}, {0x10ed0, 0x10ed0}, {0x10f55, 0x10f59}, {0x10f86, 0x10f89}, {0x113d4, 0x113d5},
        {0x113d7, 0x113d8}, {0x1144b, 0x1144f}, {0x1145a, 0x1145b}, {0x1145d, 0x1145d}, {0x11660, 0x1166c},
        {0x116b9, 0x116b9}, {0x1183b, 0x1183b}, {0x11944, 0x11946}, {0x119e2, 0x119e2}, {0x11a3f, 0x11a46},
        {0x11a9a, 0x11a9c}, {0x11a9e, 0x11aa2}, {0x11b00, 0x11b09}, {0x11be1, 0x11be1}, {0x11c41, 0x11c45},
        {0x11c70, 0x11c71}, {0x11ef7, 0x11ef8}, {0x11f43, 0x11f4f}, {0x11fff, 0x11fff}, {0x12ff1, 0x12ff2},
        {0x16d6d, 0x16d6f}, {0x16e97, 0x16e9a}, {0x16fe2, 0x16fe2}, {0x1e5ff, 0x1e5ff}, {0x1e95e, 0x1e95f},
    };
    if (cp < 0x80) return cp > ' ' && cp < 0x7f && !is_ascii_alnum(cp);
    if (cp == 0x166d || cp == 0x111c9) return true; /* symbols today */
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO: return !in_ranges(cp, late, sizeof late / sizeof *late);
    default: return false;
    }
}

/* The bytes that are no printable Latin-1 characters: 00-20, 7F-A0 and AD. */
enum { N_LOW = 0x21, FIRST_HIGH = 0x7f, LAST_HIGH = 0xa0, SOFT_HYPHEN = 0xad, N_MOVED = 68 };

uint32_t fkv_alphabet_char(uint8_t byte)
{
    if (byte < N_LOW) return 0x100u + byte;
    if (byte >= FIRST_HIGH && byte <= LAST_HIGH) return 0x100u + N_LOW + (byte - FIRST_HIGH);
    if (byte == SOFT_HYPHEN) return 0x100u + N_MOVED - 1;
    return byte;
}

int fkv_alphabet_byte(uint32_t cp)
{
    if (cp >= 0x100 + N_MOVED) return -1;
    if (cp >= 0x100) {
        const int i = (int)(cp - 0x100);
        return i < N_LOW ? i : i == N_MOVED - 1 ? SOFT_HYPHEN : FIRST_HIGH + (i - N_LOW);
    }
    return fkv_alphabet_char((uint8_t)cp) == cp ? (int)cp : -1;
}
