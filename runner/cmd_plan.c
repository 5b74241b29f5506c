/* fairkv-batch plan: writes profile.json and plan.json, prints the comparison. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/clock.h"
#include "runner/base/log.h"
#include "runner/commands.h"
#include "runner/explain.h"
#include "runner/hold.h"
#include "runner/interrupt.h"
#include "runner/preflight.h"
#include "runner/progress.h"

static const char usage[] =
    "usage: fairkv-batch plan JOB.ini [-s section.key=value]... [--svg FILE] [--quiet | -v]\n"
    "                         [--log-format text|json]\n"
    "Writes profile.json and plan.json to the job's output and compares the plan modes.\n"
    "--svg draws every layer's loads before and after, and the budgets.\n";

static fkv_status explain(const fkv_setup *setup, const fkv_planning *planning, const char *svg, fkv_err *err)
{
    fkv_explanation x;
    fkv_status st = fkv_explain_make(setup, planning, &x, err);
    if (st) return st;
    fkv_explain_print(setup, planning, &x, stdout);
    if (svg) st = fkv_explain_svg(setup, planning, &x, svg, err);
    fkv_explain_free(&x);
    return st;
}

int fkv_cmd_plan(int argc, char **argv)
{
    fkv_setup setup;
    fkv_output *output = NULL;
    fkv_replicas *replicas = NULL;
    fkv_planning planning = {0};
    fkv_err err = {0};
    fkv_tally *tally;
    fkv_progress *progress;
    const char *svg = NULL;
    char *stats = NULL;
    const fkv_command_own own = {"--svg", &svg, NULL};
    if (fkv_command_take("plan", usage, &own, 1, &argc, argv, &err)) return fkv_command_misused(&err, usage);
    if (fkv_interrupt_install(&err)) return fkv_report_error(&err);
    fkv_hold("start", 0, NULL, NULL);
    if (fkv_progress_start(fkv_seconds(), &tally, &progress, &err)) return fkv_report_error(&err);
    fkv_preflight found;
    int code = fkv_preflight_open(argc, argv, usage, &setup, &found);
    if (code >= 0) goto out;
    setup.tally = tally;
    fkv_progress_pace(progress, setup.job->output.progress_s);
    fkv_setup_log_sharing(&setup);
    fkv_status st = fkv_interrupt_asked() ? FKV_E_INTERRUPTED : FKV_OK;
    if (!st) st = fkv_output_open(setup.job, fkv_interrupt_asked, &output, &err);
    if (!st) st = fkv_output_name_archives(output, setup.job, &err);
    if (!st) st = fkv_planning_make(&setup, output, &replicas, &planning, &err);
    fkv_progress_close(progress); /* before standard output is written to */
    progress = NULL;
    if (!st) st = explain(&setup, &planning, svg, &err);
    if (!st && !(stats = fkv_output_path(output, "stats.json", true))) st = fkv_fail_memory(&err);
    if (!st) st = fkv_constants_print_measured(stats, stdout, &err);
    code = fkv_exit_code(st);
    if (st == FKV_E_INTERRUPTED)
        fkv_log("interrupted by signal %d; run it again", fkv_interrupt_signal());
    else if (st)
        fkv_report_error(&err);
    fkv_replicas_close(replicas);
    fkv_planning_free(&planning);
    if (st == FKV_E_INPUT)
        fkv_output_close_refused(output);
    else
        fkv_output_close(output);
    free(stats);
out:
    fkv_progress_close(progress);
    fkv_tally_close(tally);
    fkv_setup_close(&setup);
    return code;
}
