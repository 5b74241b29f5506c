/* fairkv-batch export: the command line around jobs/export.h. Owns nothing. */
#include <stdio.h>
#include <string.h>

#include "jobs/export.h"
#include "runner/commands.h"

static const char USAGE[] =
    "usage: fairkv-batch export OUTPUT_DIR --format longbench|ruler|openai|jsonl [--partial] DEST\n"
    "\n"
    "  longbench   DEST is a folder: pred/NAME/<dataset>.jsonl for each dataset, NAME being the job's name,\n"
    "              and pred_e/NAME/<dataset>.jsonl for LongBench-E: what eval.py --model NAME [--e] reads\n"
    "  ruler       DEST is a folder: <task>.jsonl for each task, as RULER's evaluate.py reads them\n"
    "  openai      DEST has the answers, DEST.errors the error rows, as OpenAI's batch output\n"
    "  jsonl       DEST is one file with every row of the shards, in input order\n"
    "  --partial   an output that is not finished is no failure (else exit code 1)\n"
    "\n"
    "DEST - is standard output. Files of the same names in DEST are replaced, others stay.\n";

typedef struct options {
    bool help, partial;
    const char *paths[2]; /* OUTPUT_DIR and DEST */
    fkv_export_format format;
} options;

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

static fkv_status parse(int argc, char **argv, options *o, fkv_err *err)
{
    const char *name = NULL;
    int n_paths = 0;
    bool options_end = false;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (options_end || arg[0] != '-' || !arg[1]) {
            if (n_paths == 2) return wrong(err, "too many arguments", arg);
            o->paths[n_paths++] = arg;
        } else if (strcmp(arg, "--") == 0) {
            options_end = true;
        } else if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            o->help = true;
            return FKV_OK;
        } else if (strcmp(arg, "--partial") == 0) {
            o->partial = true;
        } else if (strncmp(arg, "--format=", 9) == 0) {
            name = arg + 9;
        } else if (strcmp(arg, "--format") == 0) {
            if (++i == argc) return wrong(err, "--format needs a value", "");
            name = argv[i];
        } else {
            return fkv_command_bad_option("export", arg, USAGE, err);
        }
    }
    const fkv_status st = parse_format(name, &o->format, err);
    if (st) return st;
    return n_paths == 2 ? FKV_OK : wrong(err, "OUTPUT_DIR and DEST are needed", "");
}

/* What was written, and what was not, beside the rows. */
static void report(const options *o, const fkv_export_counts *c)
{
    const bool to_stdout = strcmp(o->paths[1], "-") == 0;
    fprintf(to_stdout ? stderr : stdout, "%lld rows (%lld errors)", (long long)c->rows, (long long)c->errors);
    if (!to_stdout) printf(" in %lld files: %s\n", (long long)c->files, o->paths[1]);
    if (to_stdout) fputs("\n", stderr);
    fflush(stdout);
    if (c->skipped)
        fprintf(stderr, "fairkv-batch: %lld error rows without a dataset left out\n", (long long)c->skipped);
    if (c->complete) return;
    fprintf(stderr, "fairkv-batch: %s is not finished yet: ", o->paths[0]);
    if (c->missing > 0)
        fprintf(stderr, "%lld of its records are missing here", (long long)c->missing);
    else
        fprintf(stderr, "%s",
                c->missing ? "how many records are missing is not known" : "0 records are missing here");
    fputs(o->partial ? "\n" : " (no failure with --partial)\n", stderr);
}

int fkv_cmd_export(int argc, char **argv)
{
    fkv_err err = {0};
    options o = {.format = FKV_EXPORT_JSONL};
    fkv_export_counts counts;
    fkv_status st = parse(argc, argv, &o, &err);
    if (o.help) {
        fputs(USAGE, stdout);
        return 0;
    }
    if (!st) st = fkv_export(o.paths[0], o.format, o.paths[1], &counts, &err);
    if (st) return fkv_command_end(st, &err);
    report(&o, &counts);
    return counts.complete || o.partial ? 0 : 1;
}
