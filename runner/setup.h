/* A job opened: its file parsed, the model's headers, the tokenizer and the templates read.
 *
 * A setup owns all that it points at but the backend, and is closed after a failed parse or load, too. Not
 * for what else a run would refuse (preflight.h), nor for what the job leaves open (planning.h). */
#ifndef FKV_RUNNER_SETUP_H
#define FKV_RUNNER_SETUP_H

#include "engine/engine.h"
#include "engine/model/generation.h"
#include "engine/plan/record_limit.h"
#include "jobs/job.h"
#include "jobs/record.h"
#include "runner/prompt.h"
#include "tokenizer/tokenizer.h"

struct fkv_tally;

typedef struct fkv_setup {
    struct fkv_tally *tally; /* what the work is told to (tally.h); borrowed, or NULL */
    fkv_job *job;
    fkv_record_parser *parser;
    fkv_config config;
    fkv_safetensors *weights;
    fkv_generation generation; /* nothing where the job ignores it */
    fkv_tokenizer *tokenizer;
    int32_t newline;        /* last token of "\n"; -1: the model has none */
    fkv_template *template; /* NULL: the model has none, or the job wants none */
    json_t *template_vars;  /* or NULL */
    fkv_buf stops;          /* the job's, as in fkv_stops */
    const fkv_backend *backend;
    bool auto_ranks, auto_replicas, auto_slots; /* planning decides */
    /* As the job says; auto: as many ranks as devices and heads allow, as many replicas as there are
     * devices for, 1 slot. Ranks and slots are of a replica, devices of all together. */
    int n_ranks, n_replicas, n_slots, n_devices;
    fkv_prompt_limits limits;
    uint32_t
        more_scorers; /* that engines may be set to, beside the job's: a bit for each (kernels/scorer.h) */
} fkv_setup;

/* Where a run's work is done: what planning makes of a setup. */
typedef struct fkv_layout {
    int replicas;
    int ranks, devices, slots; /* of each */
    int64_t max_prompt;        /* tokens that the prefill buffers hold; longer prompts make them grow */
    int64_t max_tokens;        /* of a record, prompt and new ones, that the page table holds; the same */
    fkv_record_limit record;   /* larger ones are too_large; 0 pages: not known yet */
    char date[16];             /* the chat template's today; empty: it does not ask */
} fkv_layout;

/* Parses argv ("JOB.ini [-s section.key=value]..."; argv[0] is the subcommand's
 * name, usage is printed for --help) and the job file, whose errors go to errs. Returns -1
 * to go on, else the exit code to leave with. */
int fkv_setup_parse(int argc, char **argv, const char *usage, fkv_setup *setup, fkv_errs *errs);
/* Opens what the job names but for its archives. Errors go to errs, all of them. */
void fkv_setup_load(fkv_setup *setup, fkv_errs *errs);
void fkv_setup_close(fkv_setup *setup);

/* Devices of each of the setup's replicas. */
int fkv_setup_devices_each(const fkv_setup *setup);

/* Host threads of a device: engine.threads, else the processors that this process may use,
 * shared among the devices. */
int fkv_setup_threads(const fkv_setup *setup);

/* Where the job puts several ranks on a device: a line in the log that they gain nothing. */
void fkv_setup_log_sharing(const fkv_setup *setup);

/* The layout before planning: it profiles, and stands for what the job says. */
fkv_layout fkv_setup_layout(const fkv_setup *setup);
fkv_engine_options fkv_setup_engine_options(const fkv_setup *setup, const fkv_layout *layout);

/* Ids that mean the same in all records; suppressed ones are borrowed from the setup. */
fkv_token_rules fkv_setup_rules(const fkv_setup *setup);

/* What prompts are made with in a layout; borrows from both. */
fkv_prompt_source fkv_setup_prompts(const fkv_setup *setup, const fkv_layout *layout);

/* Whether prompts may lose tokens at all, and what ranks them then. */
bool fkv_setup_compresses(const fkv_setup *setup);
fkv_scorer fkv_setup_scorer(const fkv_setup *setup);
/* How the layers' matrices are held. */
fkv_form fkv_setup_form(const fkv_setup *setup);
/* Of the KV cache's pages. */
fkv_kv_form fkv_setup_kv_form(const fkv_setup *setup);
/* The plan's mode that the job asks for. */
fkv_plan_mode fkv_setup_mode(const fkv_setup *setup);
/* What a plan of the job's model on so many ranks and slots is to solve. tokens: [n_layers][n_kv_heads],
 * borrowed (fkv_cost_tokens). */
fkv_plan_problem fkv_setup_plan_problem(const fkv_setup *setup, int n_ranks, int n_slots,
                                        const double *tokens, const fkv_cost *cost, double collectives_us);

/* The error of an input without records. member: one that the archives hold, or "". */
fkv_status fkv_setup_no_record(const fkv_setup *setup, const char *member, fkv_err *err);

/* Prints an error as every subcommand does and returns its exit code. */
int fkv_report_error(const fkv_err *err);
/* The same for all of a list that is not empty. */
int fkv_report_errors(const fkv_errs *errs);

#endif
