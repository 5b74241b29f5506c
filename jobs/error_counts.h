/* How many error rows there are of each code. A value of bounded size that owns nothing. Not for: what a
 * code means (FORMATS.md), and whether a run has too many (error_limit.h). */
#ifndef FKV_JOBS_ERROR_COUNTS_H
#define FKV_JOBS_ERROR_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FKV_ERROR_CODES = 32, FKV_ERROR_CODE_SIZE = 32 };

/* Zero-initialise. */
typedef struct fkv_error_counts {
    int n;
    struct {
        char code[FKV_ERROR_CODE_SIZE];
        int64_t rows;
    } at[FKV_ERROR_CODES];
} fkv_error_counts;

/* Whether it is a word of small letters, digits and "_" that is short enough. */
bool fkv_error_code_is_one(const char *code, size_t n);
/* rows more of a code. What is no code, or one too many, counts as "other". */
void fkv_error_counts_add(fkv_error_counts *counts, const char *code, size_t n_code, int64_t rows);
int64_t fkv_error_counts_sum(const fkv_error_counts *counts);

#endif
