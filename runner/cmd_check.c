/* fairkv-batch check: validates everything and prints what a run would do. */
#include <stdio.h>
#include <string.h>

#include "runner/check_report.h"
#include "runner/commands.h"

static const char usage[] =
    "usage: fairkv-batch check JOB.ini [-s section.key=value]... [--json]\n"
    "Refuses what run would refuse, with the same words, and prints what a run would do: the resolved job,\n"
    "and as comments behind it the input, its prompts' lengths, the model, memory, disk and time. Numbers\n"
    "with ~ are estimates. Writes nothing.\n"
    "--json prints the same as one JSON object (jobs/FORMATS.md).\n";

static int report(const fkv_setup *setup, const fkv_preflight *found, bool json)
{
    fkv_survey survey = {0};
    fkv_forecast forecast = {0};
    fkv_errs errs = {0};
    fkv_err err = {0};
    fkv_check_report r = {.setup = setup, .found = found};
    fkv_status st = FKV_OK;
    int code = 0;
    if (!found->output.complete) {
        r.survey = &survey;
        r.forecast = &forecast;
        st = fkv_survey_take(setup, &survey, &errs);
        if (!st) st = fkv_forecast_make(setup, found, &survey, &forecast, &err);
    }
    if (!st) st = json ? fkv_check_json(&r, stdout, &err) : fkv_check_print(&r, stdout, &err);
    if (err.status) fkv_errs_add(&errs, &err);
    if (st) code = fkv_report_errors(&errs);
    fkv_forecast_free(&forecast);
    fkv_survey_free(&survey);
    fkv_errs_free(&errs);
    return code;
}

int fkv_cmd_check(int argc, char **argv)
{
    fkv_setup setup;
    fkv_preflight found;
    fkv_err err = {0};
    bool json = false;
    const fkv_command_own own = {"--json", NULL, &json};
    if (fkv_command_take("check", usage, &own, 1, &argc, argv, &err)) return fkv_command_misused(&err, usage);
    int code = fkv_preflight_open(argc, argv, usage, &setup, &found);
    if (code < 0) code = report(&setup, &found, json);
    fkv_setup_close(&setup);
    return code;
}
