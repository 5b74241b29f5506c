/* Counting of a comparison: see compare_count.h. */
#include "runner/compare_count.h"

#include <stdlib.h>
#include <string.h>

#include "jobs/row.h"
#include "runner/base/json.h"

int32_t fkv_first_difference(const fkv_ids *a, const fkv_ids *b)
{
    const size_t n = a->len < b->len ? a->len : b->len;
    for (size_t i = 0; i < n; i++)
        if (a->data[i] != b->data[i]) return (int32_t)i;
    return a->len == b->len ? -1 : (int32_t)n;
}

typedef struct piece {
    const char *text;
    size_t n;
} piece;

/* Without the white space of ASCII around it. */
static piece trimmed(const char *text, size_t n)
{
    static const char space[] = " \t\n\r\v\f";
    while (n && memchr(space, text[n - 1], sizeof space - 1)) n--;
    while (n && memchr(space, *text, sizeof space - 1)) text++, n--;
    return (piece){text, n};
}

static void compare_with(const json_t *answer, piece text, unsigned *right)
{
    if (!json_is_string(answer)) return;
    const piece a = trimmed(json_string_value(answer), json_string_length(answer));
    *right |= FKV_RIGHT_KNOWN;
    if (a.n == text.n && !memcmp(a.text, text.text, a.n)) *right |= FKV_RIGHT_EXACT;
    if (a.n && text.n && memmem(text.text, text.n, a.text, a.n)) *right |= FKV_RIGHT_CONTAINS;
}

fkv_status fkv_compare_right(const fkv_record *record, const char *text, size_t n, unsigned *right,
                             fkv_err *err)
{
    static const char *const keys[] = {"answers", "answer"};
    fkv_span found[2] = {{0}};
    json_error_t why;
    *right = 0;
    if (!record->fields.len) return FKV_OK;
    const fkv_status st = fkv_row_members(record->fields.data, record->fields.len, keys, found, 2, err);
    if (st) return st;
    const fkv_span *said = fkv_row_has(&found[0]) ? &found[0] : &found[1];
    if (!fkv_row_has(said)) return FKV_OK;
    json_t *value = fkv_json_parse(said->p, said->n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (!value && json_error_code(&why) == json_error_out_of_memory) return fkv_fail_memory(err);
    const piece answer = trimmed(text, n);
    compare_with(value, answer, right);
    for (size_t i = 0; i < json_array_size(value); i++) compare_with(json_array_get(value, i), answer, right);
    json_decref(value);
    return FKV_OK;
}

static int by_size(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* Where answers begin to differ. */
static void count_first(int32_t *first, int64_t n, fkv_compare_counts *out)
{
    double sum = 0;
    if (n == 0) return;
    qsort(first, (size_t)n, sizeof *first, by_size);
    for (int64_t i = 0; i < n; i++) sum += first[i];
    out->first_mean = sum / (double)n;
    out->first_median = 0.5 * ((double)first[(n - 1) / 2] + (double)first[n / 2]);
}

void fkv_compare_count(const fkv_compare_cell *whole, const fkv_compare_cell *cells, int64_t n, int32_t *work,
                       fkv_compare_counts *out)
{
    int64_t n_differ = 0;
    *out = (fkv_compare_counts){0};
    for (int64_t i = 0; i < n; i++) {
        const fkv_compare_cell *a = &whole[i], *b = &cells[i];
        out->n_answered += b->tokens >= 0;
        if (a->tokens < 0 || b->tokens < 0) continue;
        out->n++;
        out->n_equal += b->first < 0;
        if (b->first >= 0) work[n_differ++] = b->first;
        out->kept += b->kept;
        out->tokens += b->tokens;
        out->whole_tokens += a->tokens;
        out->longer += b->tokens > a->tokens;
        out->shorter += b->tokens < a->tokens;
        out->at_limit += b->at_limit;
        out->whole_at_limit += a->at_limit;
        out->n_known += (b->right & FKV_RIGHT_KNOWN) != 0;
        out->exact += (b->right & FKV_RIGHT_EXACT) != 0;
        out->contains += (b->right & FKV_RIGHT_CONTAINS) != 0;
        out->whole_exact += (a->right & FKV_RIGHT_EXACT) != 0;
        out->whole_contains += (a->right & FKV_RIGHT_CONTAINS) != 0;
    }
    count_first(work, n_differ, out);
    if (out->n == 0) return;
    out->kept /= (double)out->n;
    out->tokens /= (double)out->n;
    out->whole_tokens /= (double)out->n;
}
