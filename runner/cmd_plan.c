/* fairkv-batch plan: writes profile.json and plan.json, prints the comparison. */
#include <stdio.h>

#include "runner/base/log.h"
#include "runner/commands.h"
#include "runner/interrupt.h"
#include "runner/planning.h"

static const char usage[] =
    "usage: fairkv-batch plan JOB.ini [-s section.key=value]...\n"
    "Writes profile.json and plan.json to the job's output and compares the plan modes.\n";

int fkv_cmd_plan(int argc, char **argv)
{
    fkv_setup setup;
    fkv_output *output = NULL;
    fkv_engine *engine = NULL;
    fkv_planning planning = {0};
    fkv_err err = {0};
    int code = fkv_setup_open(argc, argv, usage, &setup);
    if (code >= 0) goto out;
    fkv_status st = fkv_interrupt_install(&err);
    if (!st) st = fkv_output_open(setup.job, &output, &err);
    if (!st) st = fkv_planning_make(&setup, output, &engine, &planning, &err);
    if (!st) fkv_planning_print(&planning, stdout);
    code = st ? fkv_report_error(&err) : 0;
    fkv_engine_close(engine);
    fkv_planning_free(&planning);
    fkv_output_close(output);
out:
    fkv_setup_close(&setup);
    return code;
}
