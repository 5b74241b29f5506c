/* The top level of one record: which keys it has and where their values' text
 * lies. Internal to record_parse.c and record_request.c. jansson decodes and validates every key and value,
 * each once; of the values only those of known keys are kept, which the object owns; it
 * borrows the line's text. Not for: what a key means in a format. */
#ifndef FKV_JOBS_RECORD_JSON_H
#define FKV_JOBS_RECORD_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "jobs/record.h"

/* Keys that mean something in one of the formats. */
typedef enum fkv_record_key {
    FKV_RECORD_ID,          /* "id" */
    FKV_RECORD_UNDERSCORED, /* "_id" */
    FKV_RECORD_CONTEXT,
    FKV_RECORD_INPUT,
    FKV_RECORD_PROMPT,
    FKV_RECORD_MESSAGES,
    FKV_RECORD_QUESTION,
    FKV_RECORD_ANSWER_PREFIX,
    FKV_RECORD_OUTPUTS,
    FKV_RECORD_INDEX,
    FKV_RECORD_DATASET,
    FKV_RECORD_TASK,
    FKV_RECORD_CUSTOM_ID,
    FKV_RECORD_METHOD,
    FKV_RECORD_URL,
    FKV_RECORD_BODY,
    FKV_RECORD_MAX_TOKENS,
    FKV_RECORD_MAX_NEW_TOKENS,
    FKV_RECORD_MAX_COMPLETION_TOKENS,
    FKV_RECORD_TEMPERATURE, /* from here on: a request's own sampling */
    FKV_RECORD_TOP_P,
    FKV_RECORD_TOP_K,
    FKV_RECORD_SEED,
    FKV_RECORD_STOP,
    FKV_RECORD_REPETITION_PENALTY,
    FKV_RECORD_MIN_TOKENS,
    FKV_RECORD_IGNORE_EOS,
    FKV_RECORD_N_KEYS,
    FKV_RECORD_OTHER = FKV_RECORD_N_KEYS
} fkv_record_key;

extern const char *const fkv_record_key_names[FKV_RECORD_N_KEYS];

enum { FKV_RECORD_FIELDS_MAX = 1024 };

typedef struct fkv_record_field {
    fkv_record_key key;
    json_t *name;     /* decoded, for the search for duplicates */
    const char *text; /* of the key, quotes included; borrowed from the line */
    size_t n_text;
    const char *value; /* its text, borrowed from the line */
    size_t n_value;
} fkv_record_field;

typedef struct fkv_record_object {
    size_t n;
    fkv_record_field fields[FKV_RECORD_FIELDS_MAX];
    json_t *values[FKV_RECORD_N_KEYS];                /* decoded, NULL: not there */
    const fkv_record_field *known[FKV_RECORD_N_KEYS]; /* NULL: not there */
} fkv_record_object;

/* Reads text; what is wrong with it becomes the record's error, and o then holds
 * what came before. o is zero-initialised by the caller and freed in any case.
 * Fails only when memory runs out. */
fkv_status fkv_record_scan(const char *text, size_t n, fkv_record_object *o, fkv_record *record,
                           fkv_err *err);
void fkv_record_object_free(fkv_record_object *o);

#endif
