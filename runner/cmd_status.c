/* fairkv-batch status: prints jobs/standing.h. Owns nothing beyond a call. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "jobs/standing.h"
#include "runner/base/json.h"
#include "runner/base/utf8.h"
#include "runner/commands.h"

static const char USAGE[] =
    "usage: fairkv-batch status OUTPUT_DIR [--json]\n"
    "\n"
    "Says how far an output is, over all its parts: records done and missing, errors by code with an\n"
    "example each, the rate of the runs at work, time left, and who holds its locks. Reads only.\n"
    "\n"
    "  --json   one object on standard output (jobs/FORMATS.md)\n"
    "\n"
    "exit codes: 0 all records are done; 1 done, some are error rows; 75 not finished; else as run's\n";

static const int UNFINISHED = 75;

/* text is 32 bytes. */
static const char *time_text(int64_t when, char *text)
{
    const time_t t = (time_t)when;
    struct tm tm;
    if (!gmtime_r(&t, &tm) || !strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", &tm)) strcpy(text, "?");
    return text;
}

static int64_t missing_of(const fkv_standing *s)
{
    if (s->complete) return 0;
    return s->records >= s->done ? s->records - s->done : -1;
}

/* Seconds left, or NAN. */
static double left_of(const fkv_standing *s)
{
    const int64_t missing = missing_of(s);
    return missing >= 0 && s->rate > 0 ? (double)missing / s->rate : NAN;
}

static void print_example(const fkv_standing *s, int i)
{
    const fkv_standing_example e = fkv_standing_example_of(s, i);
    char shown[3][512];
    fkv_utf8_show(e.archive ? e.archive : "?", shown[0], sizeof shown[0]);
    fkv_utf8_show(e.member ? e.member : "", shown[1], sizeof shown[1]);
    fkv_utf8_show(e.message ? e.message : "", shown[2], sizeof shown[2]);
    printf("  such as %s%s%s line %lld: %s\n", shown[0], e.member ? " " : "", shown[1], (long long)e.line,
           shown[2]);
    json_decref(e.doc);
}

static void print_locks(const fkv_standing *s)
{
    char since[32], beat[32], file[256], host[512];
    if (!s->n_locks) printf("locks: none, no run is at work\n");
    for (int i = 0; i < s->n_locks; i++) {
        const fkv_standing_lock *l = &s->locks[i];
        fkv_utf8_show(l->file, file, sizeof file);
        fkv_utf8_show(l->holder.host, host, sizeof host);
        if (!l->holder.host[0])
            printf("%s: can't be read as a lease", file);
        else
            printf("%s: process %lld on %s", file, (long long)l->holder.pid, host);
        if (l->since) printf(", since %s", time_text(l->since, since));
        printf(", last sign of life %s\n", time_text(l->beat, beat));
    }
    if (s->n_more_locks) printf("%d more locks\n", s->n_more_locks);
}

static void print_text(const fkv_standing *s)
{
    const int64_t missing = missing_of(s);
    const char *mark = s->estimated ? "~" : "";
    printf("%lld", (long long)s->done);
    if (s->records >= 0) printf(" of %s%lld", mark, (long long)s->records);
    printf(" records done, %lld error rows", (long long)s->n_errors);
    if (s->complete)
        printf("; complete\n");
    else if (missing < 0)
        printf("; how many are missing is not known\n");
    else
        printf("; %s%lld missing\n", mark, (long long)missing);
    if (s->n_parts > 1) printf("parts: %lld\n", (long long)s->n_parts);
    for (int i = 0; i < s->errors.n; i++) {
        printf("%s: %lld\n", s->errors.at[i].code, (long long)s->errors.at[i].rows);
        print_example(s, i);
    }
    if (s->rate > 0) printf("rate: %.2f records/s\n", s->rate);
    if (isfinite(left_of(s))) printf("time left: %s%.0f s\n", mark, left_of(s));
    print_locks(s);
}

static json_t *number_or_null(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *whole_or_null(int64_t v)
{
    return v >= 0 ? json_integer(v) : json_null();
}

static json_t *locks_of(const fkv_standing *s)
{
    json_t *locks = json_array();
    char since[32], beat[32];
    for (int i = 0; i < s->n_locks; i++) {
        const fkv_standing_lock *l = &s->locks[i];
        const bool known = l->holder.host[0] != '\0';
        json_array_append_new(locks,
                              json_pack("{s:s,s:o,s:o,s:o,s:s}", "file", l->file, "host",
                                        known ? json_string(l->holder.host) : json_null(), "pid",
                                        known ? json_integer(l->holder.pid) : json_null(), "since",
                                        l->since ? json_string(time_text(l->since, since)) : json_null(),
                                        "beat", time_text(l->beat, beat)));
    }
    return locks;
}

static fkv_status print_json(const fkv_standing *s, fkv_err *err)
{
    json_t *errors = json_array();
    for (int i = 0; i < s->errors.n; i++) {
        json_t *x = fkv_standing_example_of(s, i).doc;
        json_array_append_new(errors,
                              json_pack("{s:s,s:I,s:o}", "code", s->errors.at[i].code, "rows",
                                        (json_int_t)s->errors.at[i].rows, "example", x ? x : json_null()));
    }
    json_t *doc =
        json_pack("{s:s,s:b,s:I,s:I,s:I,s:o,s:b,s:o,s:o,s:o,s:o,s:o,s:i}", "format", "fairkv-status/1",
                  "complete", s->complete, "parts", (json_int_t)s->n_parts, "done", (json_int_t)s->done,
                  "error_rows", (json_int_t)s->n_errors, "records", whole_or_null(s->records), "estimated",
                  s->estimated, "missing", whole_or_null(missing_of(s)), "records_per_second",
                  number_or_null(s->rate > 0 ? s->rate : NAN), "seconds_left", number_or_null(left_of(s)),
                  "errors", errors, "locks", locks_of(s), "more_locks", s->n_more_locks);
    char *text = doc ? fkv_json_dump(doc, JSON_COMPACT) : NULL;
    json_decref(doc);
    if (!text) return fkv_fail_memory(err);
    puts(text);
    free(text);
    return FKV_OK;
}

int fkv_cmd_status(int argc, char **argv)
{
    fkv_err err = {0};
    fkv_standing s;
    const char *folder = NULL;
    bool json = false;
    fkv_status st = FKV_OK;
    for (int i = 1; !st && i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(USAGE, stdout);
            return 0;
        }
        if (!strcmp(argv[i], "--json"))
            json = true;
        else if (argv[i][0] == '-')
            st = fkv_command_bad_option("status", argv[i], USAGE, &err);
        else if (folder)
            st = fkv_fail(&err, FKV_E_INPUT, "status: too many arguments: %s", argv[i]);
        else
            folder = argv[i];
    }
    if (!st && !folder)
        st = fkv_fail(&err, FKV_E_INPUT, "status: OUTPUT_DIR is needed; see \"fairkv-batch status --help\"");
    if (!st) st = fkv_standing_read(folder, &s, &err);
    if (st) return fkv_command_end(st, &err);
    if (json)
        st = print_json(&s, &err);
    else
        print_text(&s);
    const int code = !s.complete ? UNFINISHED : s.n_errors ? 1 : 0;
    fkv_standing_free(&s);
    return st ? fkv_command_end(st, &err) : code;
}
