/* UTF-8 as RFC 3629 has it: no surrogates, nothing overlong or beyond U+10FFFF.
 * Owns no memory; out is the caller's, after a failure with a part of the text. Not for:
 * code points (tokenizer/characters.h). */
#ifndef FKV_BASE_UTF8_H
#define FKV_BASE_UTF8_H

#include <stddef.h>

#include "runner/base/buf.h"

/* How many of the n bytes, from the first on, are well-formed. */
size_t fkv_utf8_span(const char *text, size_t n);

/* text as a line on a terminal may show it: what would move the cursor, turn the direction or is no
 * character stands as "\xNN", a byte each. Cut to size with its NUL, at a character. */
void fkv_utf8_show(const char *text, char *out, size_t size);

/* Bytes of the byte order mark that text begins with: 3 or 0. */
size_t fkv_utf8_mark(const char *text, size_t n);

/* What a text that begins so is encoded in, if not in UTF-8: by its byte order mark, or since JSON begins
 * with a character of ASCII. "UTF-16 (little-endian)" and the like, or NULL. */
const char *fkv_utf8_other(const char *text, size_t n);

/* Appends text with every malformed byte replaced by U+FFFD. */
fkv_status fkv_utf8_append_clean(fkv_buf *out, const char *text, size_t n, fkv_err *err);

#endif
