/* The job file: one INI file (and -s overrides) to one typed structure.
 *
 * One table in job_keys.c lists every key with its type, range, default and
 * whether it can change answers; parsing, help, the resolved job.ini and
 * the resume check all read that table. An fkv_job owns all that it points to and is
 * read-only once parsed. Not for: opening the archives or the model.
 */
#ifndef FKV_JOBS_JOB_H
#define FKV_JOBS_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runner/base/buf.h"
#include "runner/base/status.h"

typedef enum fkv_format {
    FKV_FORMAT_AUTO,
    FKV_FORMAT_LONGBENCH,
    FKV_FORMAT_PROMPT,
    FKV_FORMAT_OPENAI,
    FKV_FORMAT_QA,
    FKV_FORMAT_RULER
} fkv_format;
typedef enum fkv_truncate {
    FKV_TRUNCATE_MIDDLE,
    FKV_TRUNCATE_LEFT,
    FKV_TRUNCATE_RIGHT,
    FKV_TRUNCATE_ERROR,
    FKV_TRUNCATE_LONGBENCH /* as LongBench's pred.py: the unwrapped prompt, by text */
} fkv_truncate;
/* What sampling takes from the model's generation_config.json beside its stop tokens. */
typedef enum fkv_generation_config { FKV_GENERATION_MODEL, FKV_GENERATION_IGNORE } fkv_generation_config;
/* What stands in the model's place, and how the layers' matrices are held: bit 0 FP8, bit 1 made up. */
typedef enum fkv_job_weights {
    FKV_WEIGHTS_FILES,
    FKV_WEIGHTS_FP8,
    FKV_WEIGHTS_DUMMY,
    FKV_WEIGHTS_DUMMY_FP8
} fkv_job_weights;
/* Same order as fkv_scorer in kernels/scorer.h. */
typedef enum fkv_score {
    FKV_SCORE_SNAPKV,
    FKV_SCORE_DEFENSIVE,
    FKV_SCORE_CRITICAL,
    FKV_SCORE_KEYDIFF,
    FKV_SCORE_EXPECTED
} fkv_score;
typedef enum fkv_method { FKV_METHOD_ADA, FKV_METHOD_UNIFORM, FKV_METHOD_SCORES, FKV_METHOD_NONE } fkv_method;
typedef enum fkv_job_backend {
    FKV_JOB_BACKEND_AUTO,
    FKV_JOB_BACKEND_CPU,
    FKV_JOB_BACKEND_CUDA
} fkv_job_backend;
/* Same order as fkv_kv_form in runner/base/kv_page.h. */
typedef enum fkv_job_kv_cache { FKV_JOB_KV_BF16, FKV_JOB_KV_FP8 } fkv_job_kv_cache;
/* Same order as fkv_plan_mode in engine/plan/plan.h. */
typedef enum fkv_job_mode { FKV_JOB_STANDARD, FKV_JOB_BEST_EFFORT, FKV_JOB_FAIR_COPYING } fkv_job_mode;

/* One file that a pattern of input.archives matched. */
typedef struct fkv_input_file {
    char *path; /* to open: relative to the working directory or absolute */
    char *name; /* as the job file's pattern gave it; stands in the rows */
} fkv_input_file;

typedef struct fkv_words {
    char **at;
    size_t n;
} fkv_words;

/* Counts that the job file may give as "auto" are 0 for auto. */
typedef struct fkv_job {
    char *path; /* of the job file, for messages */

    struct {
        char *name;
        char *output; /* folder */
        uint64_t seed;
        int64_t limit;             /* first records of the input; 0: all */
        int64_t max_errors;        /* 0: never stop early, or max_errors_percent */
        double max_errors_percent; /* of the finished records; 0: max_errors */
        bool retry_errors;
        bool restart;
        int64_t grace_s;
    } job;
    struct {
        fkv_input_file *files; /* in byte order of name */
        size_t n_files;
        fkv_words members; /* patterns; '*' also matches '/' */
        fkv_format format;
        fkv_words plain_datasets; /* LongBench's that no chat template goes around */
        char *prompts;            /* path or NULL */
        char *max_new_tokens_by;  /* path or NULL */
        int64_t max_record_bytes;
        int64_t max_window;    /* bytes that a zst stream's decoder may hold */
        int64_t part, n_parts; /* this process does the shards j with j mod n_parts == part */
        bool claims;           /* part = auto: those that it finds free (part 0 of 1) */
    } input;
    struct {
        char *path;
        fkv_job_weights weights;
        char *chat_template; /* "auto", "none", or a path */
        char *template_vars; /* JSON object text in ASCII, or NULL */
        char *date;          /* YYYY-MM-DD; NULL: the first run's day */
        int64_t max_prompt_tokens;
        fkv_truncate truncate;
    } model;
    struct {
        int64_t sample;
        fkv_score score;
        fkv_method method;
        int64_t sinks;
        int64_t window;
        int64_t kernel;
        double floor;
        int64_t budget;        /* mean tokens per head, or 0 when budget_percent is set */
        double budget_percent; /* of the sample's mean prompt length, or 0 */
        char *budgets_file;    /* path or NULL */
        char *scores_file;
    } profile;
    struct {
        fkv_job_mode mode;
        bool mode_given;    /* by the job file or -s; else it is the default */
        int64_t max_copies; /* per layer; -1: auto */
        char *calibration;  /* "auto", "measure", "stated", or a path */
    } plan;
    struct {
        fkv_job_backend backend;
        int64_t tensor_parallel, data_parallel, devices, slots, threads, kv_mib; /* 0: auto */
        fkv_job_kv_cache kv_cache;
        int64_t max_new_tokens;
    } engine;
    struct {
        double temperature, top_p;
        int64_t top_k;
        fkv_generation_config generation_config;
        char **stop; /* UTF-8 strings, none empty */
        size_t n_stop;
    } sampling;
    struct {
        int64_t records_per_shard;
        int64_t compression_level;
        bool token_ids;
        int64_t progress_s; /* between lines of progress; 0: auto */
        char *metrics;      /* a second place of metrics.prom, a file or a folder; or NULL */
    } output;
} fkv_job;

/* Parses path and the overrides ("section.key=value"). Every mistake goes to
 * errs, each with file (or "-s"), line and key; FKV_E_INPUT if there is any.
 * Paths in the job file are made relative to its folder, those in overrides to
 * the working directory. Required: job.name, job.output, input.archives,
 * model.path. Free with fkv_job_free; *job is NULL after an error. */
fkv_status fkv_job_parse(const char *path, const char *const *overrides, size_t n_overrides, fkv_job **job,
                         fkv_errs *errs);
/* The same, but after mistakes *job is what can still be looked at to find more of them: a key
 * that is wrong has its default, a required one NULL or, of archives, the files that there are.
 * NULL where the file itself can't be read, or memory ran out. */
fkv_status fkv_job_read(const char *path, const char *const *overrides, size_t n_overrides, fkv_job **job,
                        fkv_errs *errs);
void fkv_job_free(fkv_job *job);

/* Every key of every section with its resolved value, as an INI file that
 * fkv_job_parse reads back to the same job, but that paths are absolute in it
 * (so the names of archives in rows, too). */
fkv_status fkv_job_write_ini(const fkv_job *job, fkv_buf *out, fkv_err *err);

/* A path as the value of a key of that section, with the line's end; pattern: one that matches it alone, for
 * input.archives. What no job file can say is FKV_E_INPUT. */
fkv_status fkv_job_write_path(const char *section, const char *path, bool pattern, fkv_buf *out,
                              fkv_err *err);

/* A JSON object {"section.key": "value", ...} of the keys that can change
 * answers or the shards' bytes, in table order. Files (prompts, archives, ...)
 * stand as size and hash of their ends, wherever they lie, the model as its files' ends;
 * "auto" ranks and slots stand as auto, so the caller pins what it chose. Two runs may share an output folder
 * only if these are equal. */
fkv_status fkv_job_write_identity(const fkv_job *job, fkv_buf *out, fkv_err *err);

/* Whether the weights are made up; whether the layers' matrices are held in FP8. */
static inline bool fkv_job_is_dummy(const fkv_job *job)
{
    return job->model.weights & FKV_WEIGHTS_DUMMY;
}

static inline bool fkv_job_is_fp8(const fkv_job *job)
{
    return job->model.weights & FKV_WEIGHTS_FP8;
}

/* The word for a format, as input.format has it. */
const char *fkv_format_name(fkv_format format);

/* Every key of the table by section: "key = default", what its value may be, and a line of what it
 * means. */
fkv_status fkv_job_write_help(fkv_buf *out, fkv_err *err);

#endif
