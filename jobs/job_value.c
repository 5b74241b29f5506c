/* How the values of single keys are read, checked and shown. What is stored
 * belongs to the fkv_job. Not for: which keys there are (job_keys.c), the words of
 * lists and globs (job_list.c). */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/job_keys.h"
#include "runner/base/file.h"

/* The first word of *list into word; moves on. False at the end. */
static bool next_word(const char **list, const char **word, size_t *n)
{
    const char *p = *list;
    if (!p) return false;
    while (*p == ' ') p++;
    if (!*p) return false;
    *word = p;
    *n = strcspn(p, " ");
    *list = p + *n;
    return true;
}

/* The place of text in a list of words, or -1. */
static int place_in(const char *list, const char *text)
{
    const char *word;
    size_t n;
    for (int i = 0; next_word(&list, &word, &n); i++) {
        if (strlen(text) == n && memcmp(text, word, n) == 0) return i;
    }
    return -1;
}

static fkv_status parse_choice(const fkv_key *key, const char *text, const fkv_place *place, int *out,
                               fkv_err *err)
{
    *out = key->formerly && !strcmp(text, key->formerly) ? 0 : place_in(key->choices, text);
    if (*out >= 0) return FKV_OK;
    return fkv_key_fail(key, place, err, "\"%s\" is none of: %s", text, key->choices);
}

/* A whole number; *rest is what follows it. */
static bool whole_number(const char *text, int64_t *out, const char **rest)
{
    char *end;
    if (!isdigit((unsigned char)text[*text == '-' || *text == '+'])) return false;
    errno = 0;
    const long long x = strtoll(text, &end, 10);
    if (errno)
        *out = *text == '-' ? INT64_MIN : INT64_MAX; /* outside any range, and said so */
    else
        *out = x;
    *rest = end;
    return true;
}

static fkv_status check_whole(const fkv_key *key, const char *text, int64_t x, const fkv_place *place,
                              fkv_err *err)
{
    if (x >= (int64_t)key->lo && x <= (int64_t)key->hi) return FKV_OK;
    if (key->hi >= FKV_KEY_WHOLE_MAX)
        return fkv_key_fail(key, place, err, "%s is less than %.0f", text, key->lo);
    return fkv_key_fail(key, place, err, "%s is outside %.0f to %.0f", text, key->lo, key->hi);
}

static fkv_status parse_whole(const fkv_key *key, const char *text, const fkv_place *place, int64_t *out,
                              fkv_err *err)
{
    const char *rest = NULL;
    int64_t x;
    const bool sized = key->type == FKV_KEY_SIZE;
    if (key->type == FKV_KEY_AUTO && strcmp(text, "auto") == 0) {
        *out = (int64_t)key->lo - 1;
        return FKV_OK;
    }
    bool ok = whole_number(text, &x, &rest);
    if (ok && sized && *rest) {
        const char *units = "KMG", *unit = strchr(units, toupper((unsigned char)*rest));
        ok = unit && !rest[1];
        if (ok && __builtin_mul_overflow(x, (int64_t)1 << (10 * (unit - units + 1)), &x)) x = INT64_MAX;
    } else if (ok) {
        ok = !*rest;
    }
    if (!ok)
        return fkv_key_fail(key, place, err, "\"%s\" is not a whole number%s", text,
                            sized                       ? " or a size such as 64M"
                            : key->type == FKV_KEY_AUTO ? " or auto"
                                                        : "");
    *out = x;
    return check_whole(key, text, x, place, err);
}

/* A decimal number without the hex, inf and nan that strtod would also take. */
static bool real_number(const char *text, double *out)
{
    char *end;
    if (!*text || strspn(text, "0123456789+-.eE") != strlen(text)) return false;
    *out = strtod(text, &end);
    return end != text && !*end && isfinite(*out);
}

static fkv_status parse_real(const fkv_key *key, const char *text, const fkv_place *place, double *out,
                             fkv_err *err)
{
    if (!real_number(text, out)) return fkv_key_fail(key, place, err, "\"%s\" is not a number", text);
    if (*out < key->lo || *out > key->hi || (key->lo_open && *out <= key->lo))
        return fkv_key_fail(key, place, err, "%s is outside %g to %g%s", text, key->lo, key->hi,
                            key->lo_open ? " (and must not be 0)" : "");
    return FKV_OK;
}

static fkv_status parse_seed(const fkv_key *key, const char *text, const fkv_place *place, uint64_t *out,
                             fkv_err *err)
{
    char *end = NULL;
    errno = 0;
    if (isdigit((unsigned char)*text)) *out = strtoull(text, &end, 10);
    if (!end || *end) return fkv_key_fail(key, place, err, "\"%s\" is not a whole number from 0", text);
    if (errno) return fkv_key_fail(key, place, err, "%s is outside 0 to 18446744073709551615", text);
    return FKV_OK;
}

/* A whole number, or a percentage; the other one of both is 0. */
static fkv_status parse_share(const fkv_key *key, const char *text, const fkv_place *place, int64_t *whole,
                              double *percent, fkv_err *err)
{
    char number[32];
    const size_t n = strlen(text);
    *whole = 0;
    *percent = 0;
    if (n == 0 || text[n - 1] != '%') return parse_whole(key, text, place, whole, err);
    size_t digits = n - 1;
    while (digits && fkv_is_blank(text[digits - 1])) digits--;
    if (digits < sizeof number) {
        snprintf(number, sizeof number, "%.*s", (int)digits, text);
        if (real_number(number, percent)) {
            if (*percent > 0 && *percent <= 100) return FKV_OK;
            return fkv_key_fail(key, place, err, "%s is not more than 0%% and at most 100%%", text);
        }
    }
    return fkv_key_fail(key, place, err, "\"%s\" is neither a whole number nor a percentage", text);
}

static fkv_status parse_part(const fkv_key *key, const char *text, const fkv_place *place, fkv_job *job,
                             fkv_err *err)
{
    const char *rest;
    int64_t i, n;
    job->input.claims = strcmp(text, "auto") == 0;
    job->input.part = 0;
    job->input.n_parts = 1;
    if (job->input.claims) return FKV_OK;
    if (!whole_number(text, &i, &rest) || *rest != '/' || !whole_number(rest + 1, &n, &rest) || *rest)
        return fkv_key_fail(key, place, err, "\"%s\" is neither auto nor of the form i/n, such as 0/4", text);
    if (n < 1 || n > (int64_t)key->hi || i < 0 || i >= n)
        return fkv_key_fail(key, place, err, "%s: i/n needs 0 <= i < n <= %.0f", text, key->hi);
    job->input.part = i;
    job->input.n_parts = n;
    return FKV_OK;
}

bool fkv_key_is_path(const fkv_key *key, const char *value)
{
    return *value &&
           (key->type == FKV_KEY_PATH || (key->type == FKV_KEY_FILE && place_in(key->choices, value) < 0));
}

static fkv_status parse_string(const fkv_key *key, const char *text, const fkv_place *place, char **out,
                               fkv_err *err)
{
    free(*out);
    *out = NULL;
    if (!*text) return FKV_OK;
    *out = fkv_key_is_path(key, text) ? fkv_path_join(place->dir, text) : strdup(text);
    return *out ? FKV_OK : fkv_fail_memory(err);
}

static fkv_status parse_date(const fkv_key *key, const char *text, const fkv_place *place, char **out,
                             fkv_err *err)
{
    static const char form[] = "dddd-dd-dd";
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool ok = strlen(text) == sizeof form - 1;
    if (!*text) return FKV_OK;
    for (size_t i = 0; ok && form[i]; i++)
        ok = form[i] == 'd' ? isdigit((unsigned char)text[i]) : text[i] == '-';
    if (ok) {
        const int year = atoi(text), month = atoi(text + 5), day = atoi(text + 8);
        const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        ok = year >= 1900 && month >= 1 && month <= 12 && day >= 1 &&
             day <= days[month - 1] + (month == 2 && leap);
    }
    if (!ok)
        return fkv_key_fail(key, place, err, "\"%s\" is not a day such as 2026-07-01, from 1900 on", text);
    return (*out = strdup(text)) ? FKV_OK : fkv_fail_memory(err);
}

/* text without the line ends of its continuations. */
static char *joined(const char *text)
{
    char *copy = strdup(text), *to = copy;
    if (!copy) return NULL;
    for (const char *p = copy; *p; p++) {
        if (*p != '\n') *to++ = *p;
    }
    *to = '\0';
    return copy;
}

fkv_status fkv_key_parse(const fkv_key *key, const char *text, const fkv_place *place, fkv_job *job,
                         fkv_err *err)
{
    void *at = (char *)job + key->offset;
    fkv_status st;
    int choice = 0;
    if (key->type == FKV_KEY_ARCHIVES || key->type == FKV_KEY_MEMBERS || key->type == FKV_KEY_NAMES)
        return fkv_list_parse(key, text, place, job, err);
    char *one = joined(text);
    if (!one) return fkv_fail_memory(err);
    if (!*one && (!key->fallback || *key->fallback)) {
        st = fkv_key_fail(key, place, err, "has no value");
        goto out;
    }
    switch (key->type) {
    case FKV_KEY_TEXT:
    case FKV_KEY_FILE:
    case FKV_KEY_PATH: st = parse_string(key, one, place, at, err); break;
    case FKV_KEY_INT:
    case FKV_KEY_SIZE:
    case FKV_KEY_AUTO: st = parse_whole(key, one, place, at, err); break;
    case FKV_KEY_SEED: st = parse_seed(key, one, place, at, err); break;
    case FKV_KEY_REAL: st = parse_real(key, one, place, at, err); break;
    case FKV_KEY_BUDGET:
        st = parse_share(key, one, place, &job->profile.budget, &job->profile.budget_percent, err);
        break;
    case FKV_KEY_ERRORS:
        st = parse_share(key, one, place, &job->job.max_errors, &job->job.max_errors_percent, err);
        break;
    case FKV_KEY_PART: st = parse_part(key, one, place, job, err); break;
    case FKV_KEY_DATE: st = parse_date(key, one, place, at, err); break;
    case FKV_KEY_OBJECT:
    case FKV_KEY_STOP: st = fkv_list_parse(key, one, place, job, err); break;
    case FKV_KEY_CHOICE:
    case FKV_KEY_FLAG:
    default: st = parse_choice(key, one, place, &choice, err); break;
    }
    if (!st && key->type == FKV_KEY_CHOICE) memcpy(at, &choice, sizeof choice);
    if (!st && key->type == FKV_KEY_FLAG) *(bool *)at = choice != 0;
out:
    free(one);
    return st;
}

_Static_assert(sizeof(fkv_format) == sizeof(int) && sizeof(fkv_method) == sizeof(int) &&
                   sizeof(fkv_score) == sizeof(int) && sizeof(fkv_truncate) == sizeof(int) &&
                   sizeof(fkv_job_backend) == sizeof(int) && sizeof(fkv_job_mode) == sizeof(int) &&
                   sizeof(fkv_generation_config) == sizeof(int),
               "choices are stored as int");

/* The shortest of %.15g and %.17g that reads back as x. */
static fkv_status print_real(double x, fkv_buf *out, fkv_err *err)
{
    char text[40];
    snprintf(text, sizeof text, "%.15g", x);
    if (strtod(text, NULL) != x) snprintf(text, sizeof text, "%.17g", x);
    return fkv_buf_puts(out, text, err);
}

static fkv_status print_choice(const fkv_key *key, int choice, fkv_buf *out, fkv_err *err)
{
    const char *list = key->choices, *word = "";
    size_t n = 0;
    for (int i = 0; i <= choice && next_word(&list, &word, &n);) i++;
    return fkv_buf_append(out, word, n, err);
}

static fkv_status print_share(int64_t whole, double percent, fkv_buf *out, fkv_err *err)
{
    if (percent <= 0) return fkv_buf_printf(out, err, "%lld", (long long)whole);
    const fkv_status st = print_real(percent, out, err);
    return st ? st : fkv_buf_puts(out, "%", err);
}

fkv_status fkv_key_print(const fkv_key *key, const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    const void *at = (const char *)job + key->offset;
    int choice = 0;
    switch (key->type) {
    case FKV_KEY_TEXT:
    case FKV_KEY_FILE:
    case FKV_KEY_DATE:
    case FKV_KEY_PATH: {
        const char *text = *(char *const *)at;
        return fkv_buf_puts(out, text ? text : "", err);
    }
    case FKV_KEY_AUTO:
        if (*(const int64_t *)at < (int64_t)key->lo) return fkv_buf_puts(out, "auto", err);
        return fkv_buf_printf(out, err, "%lld", (long long)*(const int64_t *)at);
    case FKV_KEY_INT:
    case FKV_KEY_SIZE: return fkv_buf_printf(out, err, "%lld", (long long)*(const int64_t *)at);
    case FKV_KEY_SEED: return fkv_buf_printf(out, err, "%llu", (unsigned long long)*(const uint64_t *)at);
    case FKV_KEY_REAL: return print_real(*(const double *)at, out, err);
    case FKV_KEY_BUDGET: return print_share(job->profile.budget, job->profile.budget_percent, out, err);
    case FKV_KEY_ERRORS: return print_share(job->job.max_errors, job->job.max_errors_percent, out, err);
    case FKV_KEY_PART:
        if (job->input.claims) return fkv_buf_puts(out, "auto", err);
        return fkv_buf_printf(out, err, "%lld/%lld", (long long)job->input.part,
                              (long long)job->input.n_parts);
    case FKV_KEY_CHOICE: memcpy(&choice, at, sizeof choice); return print_choice(key, choice, out, err);
    case FKV_KEY_FLAG: return print_choice(key, *(const bool *)at, out, err);
    case FKV_KEY_ARCHIVES:
    case FKV_KEY_MEMBERS:
    case FKV_KEY_NAMES:
    case FKV_KEY_OBJECT:
    case FKV_KEY_STOP: break; /* lists are written element by element, JSON with escapes */
    }
    return FKV_OK;
}
