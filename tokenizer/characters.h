/* Characters of UTF-8 text, and the byte-level alphabet.
 *
 * A byte-level vocabulary writes each of the 256 bytes as one printable
 * character: itself where it is printable in Latin-1, else U+0100 upwards in
 * the order of the bytes. A token's "spelling" is its string in that alphabet;
 * its bytes are what it stands for in a text. Owns no memory. Not for: checking UTF-8
 * (runner/base/utf8.h).
 */
#ifndef FKV_TOKENIZER_CHARACTERS_H
#define FKV_TOKENIZER_CHARACTERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runner/base/buf.h"
#include "runner/base/status.h"

/* The code point at text, which is valid UTF-8 and not at its end; *len is its
 * length in bytes. */
static inline uint32_t fkv_utf8_get(const char *text, size_t *len)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        *len = 1;
        return s[0];
    }
    if (s[0] < 0xe0) {
        *len = 2;
        return (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
    }
    if (s[0] < 0xf0) {
        *len = 3;
        return (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
    }
    *len = 4;
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 | (uint32_t)(s[2] & 0x3f) << 6 |
           (s[3] & 0x3f);
}

/* Bytes that lead the character ending just before text[end], end > 0. */
size_t fkv_utf8_before(const char *text, size_t end);

/* Writes cp's bytes and returns how many. */
size_t fkv_utf8_put(uint32_t cp, char out[4]);

/* Appends bytes, each maximal ill-formed part replaced by one U+FFFD, as Rust
 * and so HF does it. */
fkv_status fkv_utf8_lossy(const void *bytes, size_t n, fkv_buf *out, fkv_err *err);

/* How many bytes at the end of n could begin a character that is not complete: 0 to 3. */
size_t fkv_utf8_incomplete(const char *bytes, size_t n);

/* Unicode's White_Space property. */
bool fkv_is_white_space(uint32_t cp);
/* A character of words as regexes with Unicode \w see it. */
bool fkv_is_word_char(uint32_t cp);

/* What HF tokenizers takes for digits (categories Nd, Nl, No) and for punctuation (ASCII's
 * symbols and the P categories of Unicode 8). */
bool fkv_is_numeric(uint32_t cp);
bool fkv_is_punctuation(uint32_t cp);

/* The byte that a character of the alphabet stands for, or -1. */
int fkv_alphabet_byte(uint32_t cp);
/* The character that stands for a byte. */
uint32_t fkv_alphabet_char(uint8_t byte);

#endif
