/* What a comparison counts of its answers.
 *
 * A cell is what is kept of one record's answer in one setting. Pure but for right, whose text is parsed;
 * nothing is owned. Not for who answers (trial.h), nor for intervals (binomial.h). */
#ifndef FKV_RUNNER_COMPARE_COUNT_H
#define FKV_RUNNER_COMPARE_COUNT_H

#include "jobs/record.h"
#include "tokenizer/tokenizer.h"

/* How an answer stands to what its record says is right. */
enum { FKV_RIGHT_KNOWN = 1, FKV_RIGHT_EXACT = 2, FKV_RIGHT_CONTAINS = 4 };

typedef struct fkv_compare_cell {
    int32_t tokens; /* of the answer; -1: there is none */
    int32_t first;  /* tokens that are alike before it differs from the whole cache's; -1: it doesn't */
    unsigned right; /* FKV_RIGHT_... */
    int32_t kept;   /* tokens of the prompt that a head keeps, as usage.kept_tokens of a row */
    bool at_limit;  /* of new tokens */
} fkv_compare_cell;

typedef struct fkv_compare_counts {
    int64_t n_answered;
    int64_t n; /* that the whole cache answered too: what follows is of these */
    int64_t n_equal;
    double first_mean, first_median;   /* of those that differ; 0 where none does */
    double kept, tokens, whole_tokens; /* means */
    int64_t longer, shorter, at_limit, whole_at_limit;
    int64_t n_known, exact, contains, whole_exact, whole_contains; /* of records that say what is right */
} fkv_compare_counts;

/* Ids that are alike before a and b differ; -1: they don't. */
int32_t fkv_first_difference(const fkv_ids *a, const fkv_ids *b);

/* Compares a text with what the record's fields say: "answers" (texts in a list, or one) or "answer". White
 * space around both does not count, an empty answer is in no text. *right: 0 where the record says nothing.
 */
fkv_status fkv_compare_right(const fkv_record *record, const char *text, size_t n, unsigned *right,
                             fkv_err *err);

/* cells, whole: [n]. work: n numbers. */
void fkv_compare_count(const fkv_compare_cell *whole, const fkv_compare_cell *cells, int64_t n, int32_t *work,
                       fkv_compare_counts *out);

#endif
