/* The regexes of tokenizer.json, which are written for Oniguruma (Ruby syntax),
 * matched by PCRE2.
 *
 * A pattern is translated piece by piece, since the two dialects differ in
 * small ways (\s, \w, \h, {n,m}+, scoped options, script names). What has no
 * equal in PCRE2 is refused by name, so a regex that compiles matches the same
 * text in both. A regex is immutable, a scratch is one thread's; both are NULL after a
 * failure. Not for: patterns of member names (jobs/pattern.h).
 */
#ifndef FKV_TOKENIZER_REGEX_H
#define FKV_TOKENIZER_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "runner/base/buf.h"
#include "runner/base/status.h"

typedef struct fkv_regex fkv_regex;
typedef struct fkv_regex_scratch fkv_regex_scratch;

/* Appends the PCRE2 form (UTF, UCP, newline LF) of an Oniguruma pattern, valid
 * UTF-8. file and key are where the pattern stands, for errors. */
fkv_status fkv_regex_translate(const char *pattern, size_t n, const char *file, const char *key, fkv_buf *out,
                               fkv_err *err);
/* Compiles a pattern, or with literal what matches exactly that text. Neither may be empty. The
 * result is immutable and may be shared by threads. */
fkv_status fkv_regex_compile(const char *pattern, size_t n, bool literal, const char *file, const char *key,
                             fkv_regex **out, fkv_err *err);
void fkv_regex_free(fkv_regex *regex);

/* Match data, limits and JIT stack of one thread. */
fkv_status fkv_regex_scratch_new(fkv_regex_scratch **out, fkv_err *err);
void fkv_regex_scratch_free(fkv_regex_scratch *s);

/* Sets the steps that the matches in a text of n bytes may take together. */
void fkv_regex_start(fkv_regex_scratch *s, size_t n);

/* The leftmost match in text[from, n) (what stands before from can be looked
 * back at): FKV_OK with [*begin, *end), or FKV_END. FKV_E_INPUT when the regex
 * needs too many steps. text is valid UTF-8. */
fkv_status fkv_regex_find(const fkv_regex *regex, fkv_regex_scratch *s, const char *text, size_t n,
                          size_t from, size_t *begin, size_t *end, fkv_err *err);

/* Going through the matches of a text, as HF does: they don't overlap, and an empty one right
 * behind another does not count. Zero-initialise. */
typedef struct fkv_regex_matches {
    size_t from, done; /* where to search; the end of the last match */
    bool any;          /* there was a match */
} fkv_regex_matches;

/* The next match: FKV_OK, FKV_END, or a failure of fkv_regex_find. */
fkv_status fkv_regex_next(const fkv_regex *regex, fkv_regex_scratch *s, const char *text, size_t n,
                          fkv_regex_matches *m, size_t *begin, size_t *end, fkv_err *err);

#endif
