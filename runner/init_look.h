/* What init finds: the model's chat template, the archive's members and format, the templates of
 * datasets beside it, and how long its prompts are.
 *
 * A find owns its strings and is freed after a failed look, too. Not for the job file that is made of
 * it (cmd_init.c). */
#ifndef FKV_RUNNER_INIT_LOOK_H
#define FKV_RUNNER_INIT_LOOK_H

#include "jobs/job.h"
#include "runner/survey.h"

typedef struct fkv_init_find {
    fkv_format format;      /* auto: no record was found */
    fkv_buf members;        /* patterns, with a blank between them */
    bool messages;          /* its first records have messages */
    char *prompts, *limits; /* dataset2prompt.json and dataset2maxlen.json; NULL: not found */
    bool has_template;      /* the model folder has a chat template */
    int64_t positions;      /* the model's */
    int64_t n, n_cut;       /* prompts that were made, and those of them that were cut */
    int64_t longest;
    double mean; /* tokens of a prompt */
} fkv_init_find;

/* Looks at what is in the archive of the job file (a first one, which takes all members): format, members,
 * messages. */
fkv_status fkv_init_look_at_records(const char *job_file, fkv_init_find *find, fkv_errs *errs);
/* Looks for the datasets' templates beside the archive, whatever is in it. */
fkv_status fkv_init_look_beside(const char *archive, fkv_init_find *find, fkv_err *err);
/* Loads the job file's model and makes prompts of a sample of its records. */
fkv_status fkv_init_look_at_prompts(const char *job_file, fkv_init_find *find, fkv_errs *errs);
void fkv_init_find_free(fkv_init_find *find);

#endif
