/* From a record to what the engine takes: token ids cut to length, and its limit
 * of new tokens.
 *
 * What is wrong with a record stays in it; after an error, which is the system's, ids are the caller's to
 * free as ever. Not for templates (jobs/record.h), nor for records too large for the memory (the engine
 * rejects them by engine/plan/record_limit.h). */
#ifndef FKV_RUNNER_PROMPT_H
#define FKV_RUNNER_PROMPT_H

#include "jobs/record.h"
#include "tokenizer/tokenizer.h"

typedef struct fkv_prompt_limits {
    int64_t max_positions; /* the model's */
    int32_t n_ids;         /* the model's: 0 to n_ids - 1; 0: not looked at */
    int64_t max_prompt;    /* model.max_prompt_tokens; 0: what the positions leave */
    int64_t max_new;       /* engine.max_new_tokens, where the record has no limit of its own */
    fkv_truncate truncate;
} fkv_prompt_limits;

/* Longest prompt beside max_new new tokens; below 1 there is no room. */
int64_t fkv_prompt_limit(const fkv_prompt_limits *limits, int64_t max_new);

/* Fills ids, *max_new and *truncated (tokens cut out). What is wrong with the
 * record becomes its error_code ("too_long", "tokenizer", "bad_utf8", "empty_prompt",
 * "bad_field"); only failures of the system are errors. BOS is kept. */
fkv_status fkv_prompt_prepare(const fkv_tokenizer *tokenizer, fkv_tokenizer_scratch *scratch,
                              const fkv_prompt_limits *limits, fkv_record *record, fkv_ids *ids,
                              int64_t *max_new, int64_t *truncated, fkv_err *err);

#endif
