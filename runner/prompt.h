/* From a record to what the engine takes: the chat template around what is said, token ids cut to
 * length, and the limit of new tokens.
 *
 * What is wrong with a record stays in it; after an error, which is the system's, ids are the caller's to
 * free as ever. Not for datasets' templates (jobs/record.h), nor for records too large for the memory (the
 * engine rejects them by engine/plan/record_limit.h). */
#ifndef FKV_RUNNER_PROMPT_H
#define FKV_RUNNER_PROMPT_H

#include "jobs/record.h"
#include "tokenizer/template.h"
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

/* The longest that any prompt can be, its template's tokens and all: with FKV_TRUNCATE_LONGBENCH these don't
 * count in max_prompt. */
int64_t fkv_prompt_longest(const fkv_prompt_limits *limits);

/* What all prompts of a run are made with: read-only, for any number of threads. */
typedef struct fkv_prompt_source {
    const fkv_tokenizer *tokenizer;
    const fkv_template *template; /* NULL: nothing goes around a prompt */
    const json_t *variables;      /* of the template, an object or NULL */
    const char *date;             /* its today; or NULL */
    fkv_prompt_limits limits;
} fkv_prompt_source;

/* One per thread. */
typedef struct fkv_prompter fkv_prompter;

/* The source is copied; what it points at must outlive the prompter. *out is NULL after a failure. */
fkv_status fkv_prompter_open(const fkv_prompt_source *source, fkv_prompter **out, fkv_err *err);
void fkv_prompter_close(fkv_prompter *prompter);

/* Fills ids, *max_new and *truncated (tokens cut out). What is wrong with the record becomes its
 * error_code ("too_long", "tokenizer", "empty_prompt", "chat_template"); only failures of the system are
 * errors. The prompt's text is not kept.
 *
 * Cutting takes tokens away, but never those that the post-processor adds (BOS), nor those of the
 * template and of record.prefix: of messages the longest one's text is cut. With
 * FKV_TRUNCATE_LONGBENCH it is LongBench's pred.py instead: the ids of the prompt without its template
 * and prefix, BOS counted, are halved to int(limit / 2) from either end and decoded without special
 * tokens; then the template goes around that text, and all is tokenized again. */
fkv_status fkv_prompter_make(fkv_prompter *prompter, fkv_record *record, fkv_ids *ids, int64_t *max_new,
                             int64_t *truncated, fkv_err *err);

#endif
