/* fairkv-batch compare: what budgets cost in answers, on some records of the job. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/clock.h"
#include "runner/base/file.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"
#include "runner/commands.h"
#include "runner/compare_folder.h"
#include "runner/hold.h"
#include "runner/interrupt.h"
#include "runner/progress.h"

static const char usage[] =
    "usage: fairkv-batch compare JOB.ini [-s section.key=value]... [--records N] [--budgets LIST]\n"
    "                            [--scorers LIST] [--equal SHARE] [--out DIR] [--quiet | -v]\n"
    "                            [--log-format text|json]\n"
    "Answers records of the job with the whole cache and at several budgets, and shows what the budgets "
    "cost\n"
    "and save: a table, DIR/compare.json, DIR/compare.html with the curve, and for LongBench's records a\n"
    "folder a budget for its eval.py, DIR/longbench/*. The job's output is neither read nor written.\n"
    "\n"
    "  --records N     so many records (100), none of which is in the profile's sample\n"
    "  --budgets LIST  as profile.budget has them (50%,30%,20%,10%,5%)\n"
    "  --scorers LIST  as profile.score has them (the job's)\n"
    "  --equal SHARE   of answers that shall be the whole cache's, up to 1, or as 90% (0.9): says which\n"
    "                  budget that takes\n"
    "  --out DIR       where to (the job's output with \"-compare\" behind it)\n"
    "\n"
    "exit codes: 0 done; 1 done, but some records could not be answered; 75 interrupted: it begins anew; "
    "else\n"
    "as run's\n";

static fkv_status parse_records(const char *text, int64_t *out, fkv_err *err)
{
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    if (!*end && !errno && *out >= 1 && *out <= FKV_COMPARE_MOST_RECORDS) return FKV_OK;
    return fkv_fail(err, FKV_E_INPUT, "compare: --records: \"%s\" is not a whole number from 1 to %d", text,
                    FKV_COMPARE_MOST_RECORDS);
}

static fkv_status parse_share(const char *text, double *out, fkv_err *err)
{
    char *end;
    const size_t n = strspn(text, "0123456789.");
    const bool digits = n > 0 && (!text[n] || !strcmp(text + n, "%"));
    *out = strtod(text, &end);
    if (!strcmp(end, "%")) *out /= 100;
    if (digits && (!*end || !strcmp(end, "%")) && *out > 0 && *out <= 1) return FKV_OK;
    return fkv_fail(err, FKV_E_INPUT, "compare: --equal: \"%s\" is not a share above 0, up to 1 or 100%%",
                    text);
}

/* Takes compare's own options out of the arguments. */
static fkv_status take_options(int *argc, char **argv, fkv_compare_options *o, fkv_err *err)
{
    const char *records = NULL, *equal = NULL;
    const fkv_command_own own[] = {{"--records", &records, NULL},
                                   {"--budgets", &o->budgets, NULL},
                                   {"--scorers", &o->scorers, NULL},
                                   {"--equal", &equal, NULL},
                                   {"--out", &o->out, NULL}};
    *o = (fkv_compare_options){.n_records = FKV_COMPARE_RECORDS, .equal = FKV_COMPARE_EQUAL};
    fkv_status st = fkv_command_take("compare", usage, own, sizeof own / sizeof *own, argc, argv, err);
    if (!st && records) st = parse_records(records, &o->n_records, err);
    if (!st && equal) st = parse_share(equal, &o->equal, err);
    return st;
}

static fkv_status compare(const fkv_setup *setup, const fkv_preflight *found, const char *folder,
                          fkv_comparison *c, fkv_err *err)
{
    fkv_export_rows *rows = NULL;
    char *below = fkv_path_join(folder, FKV_COMPARE_PREDICTIONS);
    fkv_setup_log_sharing(setup);
    fkv_status st = below ? fkv_compare_folder_begin(folder, err) : fkv_fail_memory(err);
    const bool begun = !st;
    if (!st) st = fkv_export_rows_open(&rows, err);
    if (!st) st = fkv_compare_run(c, found, below, rows, err);
    fkv_tally_stage(setup->tally, FKV_STAGE_FINISH);
    if (!st) st = fkv_compare_folder_finish(folder, c, rows, err);
    fkv_export_rows_close(rows);
    if (st && begun) fkv_compare_folder_leave(folder);
    free(below);
    return st;
}

/* 0, or 1 where a record has no answer. */
static int done_code(const fkv_comparison *c)
{
    for (int k = 0; k < c->n_settings; k++)
        if (c->settings[k].errors.n) return 1;
    return 0;
}

/* The job is open. */
static int start(fkv_setup *setup, const fkv_preflight *found, const fkv_compare_options *options,
                 fkv_progress **progress)
{
    fkv_err err = {0};
    fkv_comparison *c = fkv_calloc(1, sizeof *c);
    char *folder = fkv_compare_folder_path(setup->job, options->out);
    fkv_status st = c && folder ? FKV_OK : fkv_fail_memory(&err);
    if (!st) st = fkv_interrupt_asked() ? FKV_E_INTERRUPTED : FKV_OK;
    if (!st) st = fkv_compare_settings(setup, options, c, &err);
    if (!st) st = compare(setup, found, folder, c, &err);
    fkv_progress_close(*progress); /* before standard output is written to */
    *progress = NULL;
    int code = fkv_exit_code(st);
    if (!st) {
        fkv_compare_print(c, stdout);
        fflush(stdout);
        fkv_log("comparison: %s/compare.html", folder);
        code = done_code(c);
    } else if (st == FKV_E_INTERRUPTED && fkv_interrupt_signal()) {
        fkv_log("interrupted by signal %d; run it again", fkv_interrupt_signal());
    } else {
        fkv_report_error(&err);
    }
    if (c) fkv_comparison_free(c);
    free(c);
    free(folder);
    return code;
}

int fkv_cmd_compare(int argc, char **argv)
{
    fkv_setup setup = {0};
    fkv_preflight found;
    fkv_compare_options options;
    fkv_err err = {0};
    fkv_tally *tally;
    fkv_progress *progress;
    if (take_options(&argc, argv, &options, &err)) return fkv_command_misused(&err, usage);
    if (fkv_interrupt_install(&err)) return fkv_report_error(&err);
    fkv_hold("start", 0, NULL, NULL);
    if (fkv_progress_start(fkv_seconds(), &tally, &progress, &err)) return fkv_report_error(&err);
    int code = fkv_preflight_open_apart(argc, argv, usage, &setup, &found);
    if (code < 0) {
        setup.tally = tally;
        fkv_progress_pace(progress, setup.job->output.progress_s);
        code = start(&setup, &found, &options, &progress);
    }
    fkv_progress_close(progress);
    fkv_tally_close(tally);
    fkv_setup_close(&setup);
    return code;
}
