/* Error rows by code: see error_counts.h. */
#include "jobs/error_counts.h"

#include <stdio.h>
#include <string.h>

bool fkv_error_code_is_one(const char *code, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char c = code[i];
        if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '_') return false;
    }
    return n > 0 && n < FKV_ERROR_CODE_SIZE;
}

static int find(const fkv_error_counts *counts, const char *code, size_t n)
{
    for (int i = 0; i < counts->n; i++)
        if (strlen(counts->at[i].code) == n && !memcmp(counts->at[i].code, code, n)) return i;
    return -1;
}

void fkv_error_counts_add(fkv_error_counts *counts, const char *code, size_t n_code, int64_t rows)
{
    static const char other[] = "other";
    int i = fkv_error_code_is_one(code, n_code) ? find(counts, code, n_code) : -1;
    const bool fits = counts->n < FKV_ERROR_CODES - 1; /* the last is for the others */
    if (i < 0 && (!fits || !fkv_error_code_is_one(code, n_code))) {
        code = other;
        n_code = sizeof other - 1;
        i = find(counts, code, n_code);
    }
    if (i < 0) {
        i = counts->n++;
        snprintf(counts->at[i].code, FKV_ERROR_CODE_SIZE, "%.*s", (int)n_code, code);
        counts->at[i].rows = 0;
    }
    counts->at[i].rows += rows;
}

int64_t fkv_error_counts_sum(const fkv_error_counts *counts)
{
    int64_t sum = 0;
    for (int i = 0; i < counts->n; i++) sum += counts->at[i].rows;
    return sum;
}
