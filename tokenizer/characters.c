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
