/* The lists of steps of tokenizer.json. Its normalizer, pre_tokenizer, post_processor and
 * decoder are each null, one step, or a Sequence of steps; here they are all lists. What a
 * step of a kind has and does stands in a table of its list: normalizer.c, pretokenize.c,
 * post_process.c, decoder.c. Owns nothing. Not for: the model and the added tokens. */
#ifndef FKV_TOKENIZER_STEPS_H
#define FKV_TOKENIZER_STEPS_H

#include <jansson.h>
#include <stdbool.h>

#include "runner/base/status.h"
#include "tokenizer/regex.h"

enum { FKV_STEPS_MAX = 16 }; /* of one list */

/* Where a step stands, for errors. */
typedef struct fkv_step_place {
    const char *file, *key;
} fkv_step_place;

/* Takes the next step of a list. */
typedef fkv_status fkv_step_fn(void *ctx, const json_t *step, const char *type, const fkv_step_place *at,
                               fkv_err *err);

/* Calls fn with the steps of o, the value of key, in order; members is the key under which a
 * Sequence has its list. */
fkv_status fkv_steps_each(const json_t *o, const char *members, const char *file, const char *key,
                          fkv_step_fn *fn, void *ctx, fkv_err *err);

/* Refuses a step: a type that is in no row, or whatever else with a sentence. */
fkv_status fkv_step_unknown(const fkv_step_place *at, const char *type, fkv_err *err);
fkv_status fkv_step_refuse(const fkv_step_place *at, fkv_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Fields of a step. A pattern is {"Regex": text} or {"String": text} and not empty; with
 * literal only the latter is taken. *regex is the caller's, NULL after a failure. */
fkv_status fkv_step_pattern(const json_t *step, bool literal, const fkv_step_place *at, fkv_regex **regex,
                            fkv_err *err);
/* A string, borrowed from the step. */
fkv_status fkv_step_text(const json_t *step, const char *name, const fkv_step_place *at, const char **text,
                         size_t *n, fkv_err *err);
/* A string of one character. */
fkv_status fkv_step_char(const json_t *step, const char *name, const fkv_step_place *at, const char **text,
                         size_t *n, fkv_err *err);
fkv_status fkv_step_bool(const json_t *step, const char *name, const fkv_step_place *at, bool *out,
                         fkv_err *err);

#endif
