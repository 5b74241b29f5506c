/* fairkv-batch export: the command line around jobs/export.h. Owns nothing. */
#include <stdio.h>
#include <string.h>

#include "jobs/export.h"
#include "runner/commands.h"

static const char USAGE[] =
    "usage: fairkv-batch export OUTPUT_DIR --format longbench|ruler|openai|jsonl DEST\n"
    "\n"
    "  longbench   DEST is a folder: <dataset>.jsonl for each dataset, with pred, answers,\n"
    "              all_classes and length as LongBench's eval.py reads them\n"
    "  ruler       DEST is a folder: <task>.jsonl for each task, as RULER's evaluate.py reads them\n"
    "  openai      DEST has the answers, DEST.errors the error rows, as OpenAI's batch output\n"
    "  jsonl       DEST is one file with every row of the shards, in input order\n"
    "\n"
    "Files of the same names in DEST are replaced, others stay.\n";

static fkv_status wrong(fkv_err *err, const char *what, const char *arg)
{
    return fkv_fail(err, FKV_E_INPUT, "export: %s%s%s; see \"fairkv-batch export --help\"", what,
                    arg[0] ? ": " : "", arg);
}

static fkv_status parse_format(const char *name, fkv_export_format *format, fkv_err *err)
{
    static const char *const names[] = {[FKV_EXPORT_LONGBENCH] = "longbench",
                                        [FKV_EXPORT_JSONL] = "jsonl",
                                        [FKV_EXPORT_RULER] = "ruler",
                                        [FKV_EXPORT_OPENAI] = "openai"};
    if (!name) return wrong(err, "--format longbench, ruler, openai or jsonl is missing", "");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *format = (fkv_export_format)i;
        return FKV_OK;
    }
    return wrong(err, "unknown format", name);
}

/* help: --help was there. paths: OUTPUT_DIR and DEST. */
static fkv_status parse(int argc, char **argv, bool *help, const char *paths[2], fkv_export_format *format,
                        fkv_err *err)
{
    const char *name = NULL;
    int n_paths = 0;
    bool options = true;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (!options || arg[0] != '-') {
            if (n_paths == 2) return wrong(err, "too many arguments", arg);
            paths[n_paths++] = arg;
        } else if (strcmp(arg, "--") == 0) {
            options = false;
        } else if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            *help = true;
            return FKV_OK;
        } else if (strncmp(arg, "--format=", 9) == 0) {
            name = arg + 9;
        } else if (strcmp(arg, "--format") == 0) {
            if (++i == argc) return wrong(err, "--format needs a value", "");
            name = argv[i];
        } else {
            return wrong(err, "unknown option", arg);
        }
    }
    const fkv_status st = parse_format(name, format, err);
    if (st) return st;
    return n_paths == 2 ? FKV_OK : wrong(err, "OUTPUT_DIR and DEST are needed", "");
}

int fkv_cmd_export(int argc, char **argv)
{
    fkv_err err = {0};
    const char *paths[2] = {NULL, NULL};
    fkv_export_format format = FKV_EXPORT_JSONL;
    fkv_export_counts counts;
    bool help = false;
    fkv_status st = parse(argc, argv, &help, paths, &format, &err);
    if (help) {
        fputs(USAGE, stdout);
        return 0;
    }
    if (!st) st = fkv_export(paths[0], format, paths[1], &counts, &err);
    if (st) return fkv_command_end(st, &err);
    printf("%lld rows (%lld errors) in %lld files: %s\n", (long long)counts.rows, (long long)counts.errors,
           (long long)counts.files, paths[1]);
    if (counts.skipped)
        fprintf(stderr, "fairkv-batch: %lld error rows without a dataset left out\n",
                (long long)counts.skipped);
    if (!counts.complete) fprintf(stderr, "fairkv-batch: %s is not finished yet\n", paths[0]);
    return 0;
}
