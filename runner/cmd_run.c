/* fairkv-batch run: profile, plan, stream, report. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "engine/measure/measure.h"
#include "jobs/error_limit.h"
#include "jobs/stats.h"
#include "runner/base/clock.h"
#include "runner/base/log.h"
#include "runner/commands.h"
#include "runner/hold.h"
#include "runner/interrupt.h"
#include "runner/planning.h"
#include "runner/preflight.h"
#include "runner/stream.h"

static const char usage[] = "usage: fairkv-batch run JOB.ini [-s section.key=value]...\n"
                            "Profiles, plans and answers every record of the job; run it again to resume.\n";

typedef struct run {
    fkv_setup setup;
    fkv_output *output;
    fkv_replicas *replicas;
    fkv_trace *trace; /* of the first of them, or NULL */
    fkv_planning planning;
    fkv_stream_seen seen;
    double load_seconds, stream_seconds, start;
    bool refused; /* the job can't be done as it is */
} run;

/* ru_maxrss outlives exec on Linux: it would count the memory of the process that
 * started this one. VmHWM is of this program alone. */
static int64_t peak_rss_bytes(void)
{
    char line[256];
    long long kib = 0;
    FILE *f = fopen("/proc/self/status", "re");
    while (f && !kib && fgets(line, sizeof line, f))
        if (!strncmp(line, "VmHWM:", 6)) kib = strtoll(line + 6, NULL, 10);
    if (f) fclose(f);
    if (kib > 0) return kib * 1024;
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) ? 0 : (int64_t)u.ru_maxrss * 1024;
}

static fkv_status write_stats(const run *r, bool complete, fkv_err *err)
{
    fkv_engine_stats e;
    const fkv_status st = fkv_replicas_stats(r->replicas, &e, err);
    if (st) return st;
    fkv_stats stats = {.complete = complete,
                       .decode_steps = e.decode_steps,
                       .busy_slot_steps = e.busy_slot_steps,
                       .restarts = e.restarts,
                       .restarted_tokens = e.restarted_tokens,
                       .prefill_passes = e.prefill_passes,
                       .prefill_tokens = e.prefill_rows,
                       .slots = r->planning.layout.slots,
                       .kv_bytes = e.kv_bytes,
                       .peak_rss_bytes = peak_rss_bytes(),
                       .phases = {{"load", r->load_seconds},
                                  {"profile", r->planning.profile_seconds},
                                  {"plan", r->planning.plan_seconds},
                                  {"stream", r->stream_seconds},
                                  {"prefill", e.prefill_seconds},
                                  {"decode", e.decode_seconds}},
                       .rank_attention_seconds = e.rank_attention_seconds,
                       .n_ranks = r->planning.layout.ranks,
                       .backend = r->setup.backend->name,
                       .versions = "{\"fairkv-batch\":\"" FKV_VERSION "\"}"};
    const fkv_trace_sums *trace = r->trace ? fkv_trace_get(r->trace) : NULL;
    if (trace && trace->n_steps > 0) {
        const fkv_plan *plan = &r->planning.plan;
        const double common = 1e6 * (trace->layers_seconds + trace->once_seconds) / (double)trace->n_steps;
        stats.step_predicted_us = plan->step_us;
        stats.step_measured_us = fkv_trace_step_us(trace);
        stats.segments_predicted_us = plan->step_us - plan->n_layers * (r->planning.constants.cost.common_us +
                                                                        r->planning.constants.collectives_us);
        stats.segments_measured_us = stats.step_measured_us - common;
    }
    fkv_output_totals_get(r->output, &stats.totals);
    return fkv_stats_write(r->output, &stats, err);
}

static void print_summary(const run *r)
{
    fkv_output_totals t;
    fkv_engine_stats e;
    fkv_output_totals_get(r->output, &t);
    if (fkv_replicas_stats(r->replicas, &e, NULL)) return;
    const double secs = fkv_seconds() - r->start;
    fkv_log("done: %lld records, %lld of them by earlier runs, %lld errors, in %.1f s (%.1f records/s)",
            (long long)t.records, (long long)t.resumed, (long long)t.errors, secs,
            (double)(t.records - t.resumed) / secs);
    fkv_log("tokens: %lld in prompts, %lld new, %lld decode steps (%.1f tokens a step)",
            (long long)t.prompt_tokens, (long long)t.completion_tokens, (long long)e.decode_steps,
            e.decode_steps ? (double)t.completion_tokens / (double)e.decode_steps : 0.0);
    fkv_log("KV cache: %.1f%% of the prompts' K and V kept, %.1f MiB at most in use",
            100 * fkv_planning_kept_share(&r->planning), (double)e.kv_bytes / (1 << 20));
    fkv_log(
        "balance: the fullest of %d ranks reads %.2fx the mean of the cache, with %d copied heads; standard "
        "placement: %.2fx",
        r->planning.layout.ranks, fkv_planning_balance(&r->planning, false),
        fkv_plan_copies(&r->planning.plan), fkv_planning_balance(&r->planning, true));
    if (r->seen.n_damaged)
        fkv_log("WARNING: %lld of %zu archives are damaged, %s%s: records are missing, and only error rows "
                "say so",
                (long long)r->seen.n_damaged, r->setup.job->input.n_files,
                r->seen.n_damaged > 1 ? "the last of them " : "", r->seen.last_damaged);
}

static fkv_status load(run *r, fkv_err *err)
{
    const double t = fkv_seconds();
    fkv_stage_begin("load");
    fkv_status st = fkv_planning_load(&r->setup, &r->planning, &r->replicas, err);
    if (!st) {
        char numerics[256];
        fkv_engine_numerics(fkv_replicas_first(r->replicas), numerics, sizeof numerics);
        st = fkv_output_pin(r->output, "numerics", numerics, err);
    }
    fkv_stage_end();
    r->load_seconds = fkv_seconds() - t;
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
    const bool shared = r->setup.job->input.claims;
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
    const double t = fkv_seconds();
    fkv_stage_begin("stream");
    st = fkv_stream_run(&r->setup, &r->planning, r->output, r->replicas, &r->seen, err);
    fkv_stage_end();
    r->stream_seconds = fkv_seconds() - t;
    /* The manifest says last that the job is finished, after which no run comes back to
     * what is missing. */
    if (!st) st = check_errors(r, r->seen.n_records, err);
    if (!st) st = fkv_output_still_ours(r->output, err);
    if (!st && !shared) st = write_stats(r, true, err);
    if (!st) st = fkv_output_finish(r->output, r->seen.n_records, err);
    if (!st && shared) st = write_stats(r, true, err);
    /* The files of an output that another run has are that run's, but where they carry our number. */
    if (st && (st != FKV_E_BUSY || shared)) {
        fkv_output_totals totals;
        fkv_err ignored = {0};
        fkv_output_sync(r->output, &ignored);
        fkv_output_totals_get(r->output, &totals);
        write_stats(r, totals.complete, &ignored);
    }
    if (!st) print_summary(r);
    return st;
}

/* 0, or 1 where some records failed. */
static int finished_code(fkv_output *output)
{
    fkv_output_totals t;
    fkv_output_totals_get(output, &t);
    return t.errors ? 1 : 0;
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
        st = run_job(r, &err);
    }
    if (st == FKV_E_INTERRUPTED && !fkv_interrupt_signal())
        fkv_log("%s; run it again to resume", err.message);
    else if (st == FKV_E_INTERRUPTED)
        fkv_log("interrupted by signal %d; run it again to resume", fkv_interrupt_signal());
    else if (st == FKV_E_BUSY && r->setup.job->input.claims)
        fkv_log("%s: %s", err.file, err.message);
    else if (st)
        fkv_report_error(&err);
    code = st ? fkv_exit_code(st) : finished_code(r->output);
    r->refused = st == FKV_E_INPUT;
out:
    free(log_path);
    return code;
}

int fkv_cmd_run(int argc, char **argv)
{
    run r = {.start = fkv_seconds()};
    fkv_err err = {0};
    if (fkv_interrupt_install(&err)) return fkv_report_error(&err);
    fkv_hold("start", 0, NULL, NULL);
    fkv_preflight found;
    int code = fkv_preflight_open(argc, argv, usage, &r.setup, &found);
    fkv_preflight_close(&found);
    if (code < 0) {
        code = start(&r);
        fkv_trace_close(r.trace);
        fkv_replicas_close(r.replicas);
        fkv_planning_free(&r.planning);
        /* The log is one of the files that a refused run takes back. */
        if (r.refused) fkv_log_close();
        if (r.refused)
            fkv_output_close_refused(r.output);
        else
            fkv_output_close(r.output);
    }
    fkv_setup_close(&r.setup);
    fkv_log_close();
    return code;
}
