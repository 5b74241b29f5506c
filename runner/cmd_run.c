/* fairkv-batch run: profile, plan, stream, report. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/measure/measure.h"
#include "jobs/error_limit.h"
#include "runner/base/clock.h"
#include "runner/base/log.h"
#include "runner/commands.h"
#include "runner/hold.h"
#include "runner/interrupt.h"
#include "runner/planning.h"
#include "runner/preflight.h"
#include "runner/progress.h"
#include "runner/report.h"
#include "runner/run_stats.h"
#include "runner/stream.h"
#include "runner/summary.h"

static const char usage[] =
    "usage: fairkv-batch run JOB.ini [-s section.key=value]... [--quiet | -v] [--log-format text|json]\n"
    "Profiles, plans and answers every record of the job; run it again to resume.\n"
    "  --quiet        says only what went wrong; the output's log has everything\n"
    "  -v             says more\n"
    "  --log-format   json: an object a line on standard error, with the progress in numbers\n";

typedef struct run {
    fkv_setup setup;
    fkv_output *output;
    fkv_replicas *replicas;
    fkv_trace *trace; /* of the first of them, or NULL */
    fkv_planning planning;
    fkv_stream_seen seen;
    fkv_tally *tally;
    fkv_progress *progress;
    fkv_run_stats *stats; /* NULL: the output is not open, or has nothing to do */
    double start;
    bool answering; /* there was a plan, and answers began */
    bool reported;  /* report.html is there */
    bool refused;   /* the job can't be done as it is */
} run;

/* The numbers are those of stats.json and of the page. */
static void print_summary(const run *r)
{
    fkv_summary s;
    fkv_summary_make(fkv_run_stats_last(r->stats), &r->planning.profile, &r->planning.plan, &s);
    for (int i = 0; i < s.n; i++) fkv_log("%s: %s", s.at[i].name, s.at[i].text);
    if (r->reported) fkv_log("report: %s/report.html", r->setup.job->job.output);
    if (r->seen.n_damaged)
        fkv_log_at(FKV_LOG_WARNING,
                   "%lld of %zu archives are damaged, %s%s: records are missing, and only error rows "
                   "say so",
                   (long long)r->seen.n_damaged, r->setup.job->input.n_files,
                   r->seen.n_damaged > 1 ? "the last of them " : "", r->seen.last_damaged);
}

static fkv_status load(run *r, fkv_err *err)
{
    fkv_stage_begin("load");
    fkv_status st = fkv_planning_load(&r->setup, &r->planning, &r->replicas, err);
    if (!st) {
        char numerics[256];
        fkv_engine_numerics(fkv_replicas_first(r->replicas), numerics, sizeof numerics);
        st = fkv_output_pin(r->output, "numerics", numerics, err);
    }
    fkv_stage_end();
    return st;
}

/* All records are done: a share of errors counts now, however few they are. */
static fkv_status check_errors(run *r, int64_t n_input, fkv_err *err)
{
    fkv_output_totals t;
    fkv_err more = {0};
    fkv_output_totals_get(r->output, &t);
    const fkv_status st = fkv_error_limit_check(r->setup.job, t.records, t.errors, true, false, err);
    const fkv_status saved = st ? fkv_output_set_ended(r->output, n_input, &more) : FKV_OK;
    if (saved) *err = more;
    return saved ? saved : st;
}

/* By the thread that tells the progress. A file that can't be replaced now may be later; the run's end
 * says so. */
static void save_at_work(void *ctx)
{
    const run *r = ctx;
    fkv_err ignored = {0};
    fkv_run_stats_save(r->stats, -1, false, &ignored);
}

/* 0, or 1 where some records failed. */
static int finished_code(fkv_output *output)
{
    fkv_output_totals t;
    fkv_output_totals_get(output, &t);
    return t.errors ? 1 : 0;
}

/* The manifest says last that the job is finished, after which no run comes back to what is missing. */
static fkv_status finish(run *r, fkv_err *err)
{
    fkv_tally_stage(r->tally, FKV_STAGE_FINISH);
    fkv_status st = check_errors(r, r->seen.n_records, err);
    if (!st) st = fkv_output_still_ours(r->output, err);
    /* With part = auto only the last of the processes finishes it; save_at_end knows. */
    if (!st && !r->setup.job->input.claims)
        st = fkv_run_stats_save(r->stats, finished_code(r->output), true, err);
    return st ? st : fkv_output_finish(r->output, r->seen.n_records, err);
}

static fkv_status answer(run *r, fkv_err *err)
{
    fkv_run_stats_planned(r->stats, &r->planning, r->replicas);
    /* Before the first row: see count_old_errors in run_stats.c. */
    fkv_status st = fkv_run_stats_save(r->stats, -1, false, err);
    if (st) return st;
    r->answering = true;
    fkv_tally_stage(r->tally, FKV_STAGE_OTHER);
    fkv_stage_begin("stream");
    st = fkv_stream_run(&r->setup, &r->planning, r->output, r->replicas, &r->seen, err);
    fkv_stage_end();
    fkv_progress_saves(r->progress, NULL, NULL);
    fkv_run_stats_measured(r->stats, &r->planning, r->replicas, r->trace);
    return st ? st : finish(r, err);
}

/* part = auto: before the model is loaded, something to do for it. */
static fkv_status claim(const run *r, fkv_err *err)
{
    bool claimed;
    const fkv_job *job = r->setup.job;
    const int64_t n = r->planning.profile.n_input, per_shard = job->output.records_per_shard;
    if (!job->input.claims) return FKV_OK;
    fkv_log("part = auto: %lld records at %lld a shard have work for up to %lld processes", (long long)n,
            (long long)per_shard, (long long)((n + per_shard - 1) / per_shard));
    return fkv_output_claim(r->output, n, &claimed, err);
}

static fkv_status run_job(run *r, fkv_err *err)
{
    fkv_setup_log_sharing(&r->setup);
    if (r->setup.generation.untaken[0])
        fkv_log("the model's generation_config.json says %s, which is not taken: how much chance there is in "
                "choosing is for [sampling] and the records to say",
                r->setup.generation.untaken);
    fkv_status st = fkv_planning_make(&r->setup, r->output, &r->replicas, &r->planning, err);
    if (st) return st;
    if ((st = claim(r, err))) return st;
    if ((st = load(r, err))) return st;
    fkv_device_info info;
    fkv_engine_info(fkv_replicas_first(r->replicas), &info);
    char replicas[32] = "";
    if (r->planning.layout.replicas > 1)
        snprintf(replicas, sizeof replicas, "%d replicas of ", r->planning.layout.replicas);
    fkv_log("model: %s on %s; %s%d ranks, %d slots, %d copies", r->setup.job->model.path, info.name, replicas,
            r->planning.layout.ranks, r->planning.layout.slots, fkv_plan_copies(&r->planning.plan));
    /* Where an op's work is done when it returns, timing a step's parts costs nothing. */
    if (!info.async && (st = fkv_trace_open(fkv_replicas_first(r->replicas), &r->trace, err))) return st;
    return answer(r, err);
}

/* Of no weight for the job: a page that can't be written is said, and that is all. */
static void write_report(run *r)
{
    fkv_err err = {0};
    r->reported = !fkv_report_save(r->setup.job->job.output, FKV_REPORT_QUICK, &err);
    if (!r->reported)
        fkv_log_at(FKV_LOG_WARNING, "report.html: %s%s%s", err.file, err.file[0] ? ": " : "", err.message);
}

/* The last word of both files, once the run's end is known; of an output that another run has they are that
 * run's, and a refused one changes nothing. */
static void save_at_end(run *r, fkv_status st, int code)
{
    fkv_err err = {0};
    fkv_output_totals t;
    fkv_progress_saves(r->progress, NULL, NULL);
    const bool others = st == FKV_E_BUSY && !r->setup.job->input.claims; /* whose files carry no number */
    if (!r->stats || others || (st == FKV_E_INPUT && !r->answering)) return;
    fkv_output_sync(r->output, &err);
    err = (fkv_err){0};
    fkv_output_totals_get(r->output, &t);
    if (fkv_run_stats_save(r->stats, code, t.complete, &err) && !st)
        fkv_log_at(FKV_LOG_WARNING, "%s: %s", err.file, err.message);
    write_report(r);
}

/* A job that ends with error rows says which, also where nothing else is said. */
static void warn_of_errors(run *r)
{
    fkv_error_counts errors;
    char text[1024];
    size_t n = 0;
    fkv_run_stats_errors(r->stats, &errors);
    for (int i = 0; i < errors.n && n < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s %s %lld", i ? "," : "", errors.at[i].code,
                              (long long)errors.at[i].rows);
    if (errors.n)
        fkv_log_at(FKV_LOG_WARNING, "%lld records are error rows:%s",
                   (long long)fkv_error_counts_sum(&errors), text);
}

static int start(run *r)
{
    fkv_err err = {0};
    fkv_output_totals totals;
    char *log_path = NULL;
    int code;
    fkv_status st = fkv_interrupt_asked() ? FKV_E_INTERRUPTED : FKV_OK;
    if (!st) st = fkv_output_open(r->setup.job, fkv_interrupt_asked, &r->output, &err);
    if (!st) fkv_hold("output", 0, NULL, NULL);
    if (!st) st = fkv_output_name_archives(r->output, r->setup.job, &err);
    if (!st) fkv_output_totals_get(r->output, &totals);
    /* Of many processes that come to a finished job none leaves a log. */
    const bool logs = !st && !(totals.complete && r->setup.job->input.claims);
    if (logs && !(log_path = fkv_output_path(r->output, "log", true))) st = fkv_fail_memory(&err);
    if (!st && logs) st = fkv_log_open(log_path, &err);
    if (!st) {
        if (totals.complete) {
            fkv_log("nothing to do: all %lld records are done (%lld errors)", (long long)totals.records,
                    (long long)totals.errors);
            code = finished_code(r->output);
            goto out;
        }
        if (totals.resumed) fkv_log("resuming: %lld records are done", (long long)totals.resumed);
        st = fkv_run_stats_open(&r->setup, r->output, &r->stats, &err);
        if (!st) fkv_progress_saves(r->progress, save_at_work, r);
        if (!st) st = run_job(r, &err);
    }
    code = st ? fkv_exit_code(st) : finished_code(r->output);
    save_at_end(r, st, code);
    fkv_progress_close(r->progress); /* what follows stands by itself */
    r->progress = NULL;
    if (!st) print_summary(r);
    if (!st) warn_of_errors(r);
    if (st == FKV_E_INTERRUPTED && !fkv_interrupt_signal())
        fkv_log("%s; run it again to resume", err.message);
    else if (st == FKV_E_INTERRUPTED)
        fkv_log("interrupted by signal %d; run it again to resume", fkv_interrupt_signal());
    else if (st == FKV_E_BUSY && r->setup.job->input.claims)
        fkv_log("%s: %s", err.file, err.message);
    else if (st)
        fkv_report_error(&err);
    r->refused = st == FKV_E_INPUT;
out:
    free(log_path);
    return code;
}

static void close_run(run *r)
{
    fkv_progress_close(r->progress);
    fkv_run_stats_close(r->stats);
    fkv_trace_close(r->trace);
    fkv_replicas_close(r->replicas);
    fkv_planning_free(&r->planning);
    /* The log is one of the files that a refused run takes back. */
    if (r->refused) fkv_log_close();
    if (r->refused)
        fkv_output_close_refused(r->output);
    else
        fkv_output_close(r->output);
    fkv_tally_close(r->tally);
    fkv_setup_close(&r->setup);
    fkv_log_close();
}

int fkv_cmd_run(int argc, char **argv)
{
    run r = {.start = fkv_seconds()};
    fkv_err err = {0};
    if (fkv_interrupt_install(&err)) return fkv_report_error(&err);
    fkv_hold("start", 0, NULL, NULL);
    if (fkv_progress_start(r.start, &r.tally, &r.progress, &err)) return fkv_report_error(&err);
    fkv_preflight found;
    int code = fkv_preflight_open(argc, argv, usage, &r.setup, &found);
    if (code < 0) {
        r.setup.tally = r.tally;
        fkv_progress_pace(r.progress, r.setup.job->output.progress_s);
        code = start(&r);
    }
    close_run(&r);
    return code;
}
