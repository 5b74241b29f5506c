/* A comparison: some records of a job's input answered with the whole cache and at several budgets, by one
 * engine whose weights are loaded once, and what became of the answers.
 *
 * The records are chosen as the profile's sample is, and are none of it; their prompts and what the whole
 * cache answers are held in memory, beside one setting's answers at a time. Every setting has the same ranks
 * and slots, chosen by rules and not by measuring, so that nothing but the cache differs, and the same
 * comparison gives the same numbers. A comparison owns all of it but the setup; it is closed after a failure,
 * too. Nothing of the job's output folder is read or written. Not for showing it (compare_text.c,
 * compare_json.c, compare_html.c), nor for what it leaves (compare_folder.h). */
#ifndef FKV_RUNNER_COMPARE_H
#define FKV_RUNNER_COMPARE_H

#include "jobs/error_counts.h"
#include "jobs/export.h"
#include "runner/binomial.h"
#include "runner/compare_count.h"
#include "runner/markup.h"
#include "runner/planning.h"
#include "runner/preflight.h"
#include "runner/sample.h"

enum { FKV_COMPARE_RECORDS = 100, FKV_COMPARE_MOST_RECORDS = 100000, FKV_COMPARE_SETTINGS = 128 };
#define FKV_COMPARE_BUDGETS    "50%,30%,20%,10%,5%"
#define FKV_COMPARE_EQUAL      0.9
#define FKV_COMPARE_CONFIDENCE 0.95

/* As the command line has it. */
typedef struct fkv_compare_options {
    int64_t n_records;
    const char *budgets, *scorers; /* lists with commas; NULL: the defaults */
    double equal;                  /* share of equal answers that is asked for */
    const char *out;               /* NULL: beside the job's output */
} fkv_compare_options;

/* What records are answered with: a job that differs from the user's in [profile] alone. */
typedef struct fkv_compare_setting {
    char name[64];      /* "whole", "snapkv-20pct": of its folder */
    char budget[32];    /* "whole", "20%", "1024", "file": as the user has it */
    const char *scorer; /* NULL: the whole cache */
    fkv_job job;        /* its pointers are the user's job's */
    fkv_setup setup;    /* of job, as of a run with it alone; the same */
    int64_t tokens;     /* mean budget of a head */
    fkv_compare_counts counts;
    fkv_interval interval; /* of the share of equal answers */
    fkv_verdict verdict;
    int64_t to_settle;       /* records; fkv_binomial_to_settle */
    fkv_error_counts errors; /* records without an answer */
    int64_t slot_bytes;      /* K and V that a slot keeps */
    /* Of the whole job, on this machine. */
    int64_t slots_fit;
    int slots;
    double seconds; /* below 0: not known */
    fkv_cost_origin origin;
} fkv_compare_setting;

typedef struct fkv_comparison {
    const fkv_setup *setup;
    fkv_compare_options options;
    fkv_compare_setting settings[FKV_COMPARE_SETTINGS]; /* [n_settings]; the first is the whole cache */
    int n_settings;
    uint32_t scorers; /* of all settings: a bit for each */
    fkv_sample sample, records;
    fkv_compare_cell *cells; /* [n_settings][records.n] */
    bool has_longbench;      /* some record is of LongBench's layout */
    double mean_prompt;      /* tokens, of the sample */
    fkv_layout layout;
    char device[96], numerics[256];
    int choice; /* setting that it would take; 0: none of them */
} fkv_comparison;

/* The settings that the options name, for a job that is parsed. FKV_E_INPUT says what is wrong with the
 * options. */
fkv_status fkv_compare_settings(const fkv_setup *setup, const fkv_compare_options *options, fkv_comparison *c,
                                fkv_err *err);
/* Answers and counts; predictions go to rows, one folder a setting below folder (compare_folder.h). */
fkv_status fkv_compare_run(fkv_comparison *c, const fkv_preflight *found, const char *folder,
                           fkv_export_rows *rows, fkv_err *err);
void fkv_comparison_free(fkv_comparison *c);

/* The cells of setting i. */
const fkv_compare_cell *fkv_compare_cells(const fkv_comparison *c, int i);
/* A share of the setting's counted answers; 0 where there are none. */
double fkv_compare_share(int64_t k, int64_t n);
/* What the comparison says in the end, as a sentence or two. */
void fkv_compare_says(const fkv_comparison *c, char *out, size_t size);

/* As standard output has it, as compare.json, and as compare.html. */
void fkv_compare_print(const fkv_comparison *c, FILE *out);
fkv_status fkv_compare_json(const fkv_comparison *c, fkv_buf *out, fkv_err *err);
void fkv_compare_html(const fkv_comparison *c, fkv_markup *m);

#endif
