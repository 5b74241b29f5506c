/* What the input holds, as far as a moment's reading shows: how many records, and of a sample
 * of them the lengths of their prompts.
 *
 * How far it reads is a number of bytes, so that what it finds is the same on every machine: up
 * to FKV_SURVEY_BYTES of all archives together, decompressed, the same share of each that is
 * left. A survey owns its lists and is freed after a failed take, too; it points into the setup's
 * job. Not for what a run decides by, which is its own sample (sample.h).
 */
#ifndef FKV_RUNNER_SURVEY_H
#define FKV_RUNNER_SURVEY_H

#include "jobs/archive.h"
#include "jobs/error_counts.h"
#include "runner/setup.h"

#define FKV_SURVEY_BYTES ((int64_t)512 << 20)
/* The sample: so many records at the most, and so many bytes of their lines, but one at least. */
enum { FKV_SURVEY_RECORDS = 256 };
#define FKV_SURVEY_SAMPLE_BYTES ((size_t)16 << 20)

/* An archive, as far as it was read. */
typedef struct fkv_survey_archive {
    const fkv_input_file *file;
    fkv_looked how;
    int64_t n_read;    /* records */
    int64_t n_records; /* in it; an estimate where how is FKV_LOOKED_FAR */
    int64_t n_members; /* that match, of what was read */
    double share;      /* of the file that was read */
    int64_t bytes;     /* that were read, decompressed */
    char *stop;        /* the member where reading ended, JSON, or NULL */
    int64_t line;      /* in it */
} fkv_survey_archive;

/* A record of the sample that has a prompt. */
typedef struct fkv_survey_record {
    int64_t n_tokens; /* of the whole prompt */
    int64_t n_kept;   /* of them, behind the cut */
    int64_t max_new;
    int64_t row_bytes; /* of its row, with as many new tokens as it may have */
} fkv_survey_record;

typedef struct fkv_survey {
    fkv_survey_archive *archives; /* [n_archives] */
    size_t n_archives;
    int64_t n_members;
    int64_t n_records;          /* of the whole input, up to job.limit */
    bool exact;                 /* n_records was counted; else it is an estimate */
    bool all_members;           /* n_members is of whole archives */
    fkv_survey_record *records; /* [n] by length */
    int64_t n;
    int64_t n_cut;           /* of them */
    fkv_error_counts errors; /* of the sample, beside them */
} fkv_survey;

/* The setup is loaded. Errors go to errs. */
fkv_status fkv_survey_take(const fkv_setup *setup, fkv_survey *survey, fkv_errs *errs);
void fkv_survey_free(fkv_survey *survey);

/* Means over the records of the sample; 0 without any. */
double fkv_survey_mean_kept(const fkv_survey *survey);
double fkv_survey_mean_new(const fkv_survey *survey);

#endif
