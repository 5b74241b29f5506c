/* Records: from a line of JSON to the prompt's text and what passes through.
 *
 * Values that pass through are kept as the JSON text that they were (numbers,
 * escapes, order of keys), so they come out as they went in. jansson validates
 * every one of them. A record owns its buffers, also after a failure; a parser owns its
 * tables, is read-only and may be shared by threads. Not for: finding lines (archive.h),
 * limits that need a model or a tokenizer.
 */
#ifndef FKV_JOBS_RECORD_H
#define FKV_JOBS_RECORD_H

#include "jobs/archive.h"

/* What the runner puts around a record's prompt. */
typedef enum fkv_wrap {
    FKV_WRAP_NONE,    /* prompt is the text as it is, with the post-processor */
    FKV_WRAP_USER,    /* prompt is what a user says: the chat template goes around it, where there is one */
    FKV_WRAP_MESSAGES /* prompt is the JSON text of an array of messages */
} fkv_wrap;

/* What a request asks for itself; where has_ is false the job's value stands. */
typedef struct fkv_record_sampling {
    bool has_temperature, has_top_p, has_top_k, has_seed, has_stop, has_repetition_penalty, has_min_tokens,
        has_ignore_eos;
    double temperature;        /* 0 to 100 */
    double top_p;              /* above 0, to 1 */
    double repetition_penalty; /* above 0, to 100 */
    int64_t top_k;             /* 0: all (-1 in a record means the same) */
    int64_t min_tokens;        /* before a token may end the answer; at most the record's own limit */
    uint64_t seed;             /* a negative one as its two's complement */
    bool ignore_eos;
    size_t n_stop; /* 0 with has_stop: none, whatever the job says */
    fkv_buf stop;  /* n_stop UTF-8 strings, none empty, each with its NUL, one behind the other */
} fkv_record_sampling;

typedef struct fkv_record {
    int64_t ordinal;
    const char *archive; /* borrowed from the job */
    const char *member;  /* in member_name */
    int64_t line;
    fkv_format format; /* the job's, or where that is auto, what the record looks like; auto: nothing known */
    fkv_buf member_name;
    fkv_buf id_json;   /* JSON text of the id; "null" when there is none or it can't be read */
    fkv_buf dataset;   /* resolved name; empty: null in the row */
    fkv_buf fields;    /* JSON object text of what passes through, at least "{}" */
    fkv_buf prompt;    /* UTF-8 */
    fkv_wrap wrap;     /* what goes around prompt */
    fkv_buf prefix;    /* UTF-8; begins the answer, behind the template; may be empty */
    bool newline_ends; /* samsum: also the token of a new line ends the answer, behind one token at least */
    bool by_template;  /* prompt is the dataset's template */
    size_t n_filled;   /* fields that it was filled with */
    char unfilled[64]; /* of LongBench's own datasets: the first that it names and the record lacks */
    int64_t max_new_tokens; /* the record's own, else its dataset's, else 0 */
    fkv_record_sampling sampling;
    char error_code[32]; /* not empty: this record becomes an error row */
    char error_message[256];
} fkv_record;

/* Templates and limits by dataset, loaded once from the job's files. */
typedef struct fkv_record_parser fkv_record_parser;

/* All errors go to errs; *parser is NULL then. The job is not needed any more. */
fkv_status fkv_record_parser_open(const fkv_job *job, fkv_record_parser **parser, fkv_errs *errs);
void fkv_record_parser_close(fkv_record_parser *parser);
/* The largest new-token limit of a dataset; 0: there is none. */
int64_t fkv_record_parser_largest_limit(const fkv_record_parser *parser);

/* Fills *record (zero-initialised once, reused for any number of calls). A bad
 * line sets error_code ("bad_json", "bad_utf8", "not_object", "missing_field",
 * "bad_field", "unknown_dataset", "empty_prompt", "too_large", or the line's own) and
 * returns FKV_OK: one bad record never stops a job. */
fkv_status fkv_record_parse(const fkv_record_parser *parser, const fkv_line *line, fkv_record *record,
                            fkv_err *err);

/* Sets error_code and error_message (for errors found later, e.g. "too_long"). */
void fkv_record_set_error(fkv_record *record, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

void fkv_record_free(fkv_record *record);

#endif
