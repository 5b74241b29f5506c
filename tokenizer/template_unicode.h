/* Characters as Python's str has them: white space, case, what repr() shows as it is. Owns no
 * memory. Not for: the tokenizer's classes (characters.h). */
#ifndef FKV_TEMPLATE_UNICODE_H
#define FKV_TEMPLATE_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* str.isspace(). */
bool fkv_python_space(uint32_t cp);
/* str.isprintable(). */
bool fkv_python_printable(uint32_t cp);

/* str.upper() of a character: up to three. Returns how many. */
size_t fkv_python_upper(uint32_t cp, uint32_t out[3]);
/* str.lower() of the character at text[at], which depends on its neighbours where it is a final
 * sigma: up to two. */
size_t fkv_python_lower(const char *text, size_t n, size_t at, uint32_t out[2]);

#endif
