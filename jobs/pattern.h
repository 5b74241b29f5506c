/* Patterns of member names: '*' matches any bytes, '/' too; '?' one character;
 * [abc], [a-z] and [!a-z] one byte; a backslash makes the next character plain.
 * A pattern without these must equal the name. Owns no memory. Not for: finding files,
 * where '*' stops at '/' (job_list.c). */
#ifndef FKV_JOBS_PATTERN_H
#define FKV_JOBS_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

bool fkv_pattern_match(const char *pattern, const char *name, size_t n);

#endif
