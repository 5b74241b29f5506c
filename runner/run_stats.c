/* A run's stats: see run_stats.h. */
#include "runner/run_stats.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <time.h>

#include "kernels/gpu_energy.h"
#include "runner/base/clock.h"
#include "runner/base/log.h"
#include "runner/base/machine.h"
#include "runner/base/mem.h"

/* GPUs that were in use, with their energy where it is known. */
typedef struct gpus {
    fkv_gpu_energy *energy;
    int n;
    double since;
    double seconds, joules; /* of those in use before */
    bool known;
} gpus;

struct fkv_run_stats {
    const fkv_setup *setup;
    fkv_output *output;
    pthread_mutex_t mutex; /* of all below, and of the files */
    fkv_stats stats;       /* what does not change from one save to the next */
    fkv_stats last;        /* as it was last saved */
    fkv_error_counts old_errors;
    fkv_engine_stats engine; /* once it is measured */
    bool measured, warned;
    gpus gpus;
    struct utsname system;
    char system_name[sizeof(struct utsname)], device[96];
    fkv_tally_history history;
    double rank_seconds[FKV_PLAN_MAX_HEADS];
};

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

/* ---- GPUs ---- */

static void use_gpus(gpus *g, const fkv_backend *backend, int n_devices)
{
    g->energy = fkv_gpu_energy_open(backend, 0, n_devices);
    g->n = fkv_gpu_energy_gpus(backend, 0, n_devices);
    g->since = fkv_seconds();
}

/* Adds up to now. */
static void sum_gpus(gpus *g, double *seconds, double *joules)
{
    double more = 0;
    g->known = g->known && fkv_gpu_energy_joules(g->energy, &more);
    *seconds = g->seconds + g->n * (fkv_seconds() - g->since);
    *joules = g->known && g->n ? g->joules + more : -1;
}

/* The layout has other devices than measuring had. */
static void change_gpus(gpus *g, const fkv_backend *backend, int n_devices)
{
    sum_gpus(g, &g->seconds, &g->joules);
    fkv_gpu_energy_close(g->energy);
    use_gpus(g, backend, n_devices);
}

/* ---- earlier runs ---- */

/* What an earlier run counted holds if it is of all rows that there are: one writes it before it adds
 * a row, so that rows it did not count show. Else the rows are asked. */
static void count_old_errors(fkv_run_stats *s, const fkv_stats_history *h, const fkv_output_totals *t)
{
    fkv_err err = {0};
    const int64_t want = t->errors;
    if (h->done == t->records && fkv_error_counts_sum(&h->errors) == want) {
        s->old_errors = h->errors;
        return;
    }
    if (want && fkv_output_count_errors(s->output, &s->old_errors, &err))
        fkv_log_at(FKV_LOG_WARNING, "counting error rows by code: %s: %s", err.file, err.message);
    const int64_t found = fkv_error_counts_sum(&s->old_errors);
    if (found > want) s->old_errors = (fkv_error_counts){0};
    if (found != want) fkv_error_counts_add(&s->old_errors, "other", 5, found > want ? want : want - found);
}

static fkv_status read_history(fkv_run_stats *s, fkv_err *err)
{
    fkv_stats_history h;
    fkv_err why = {0};
    fkv_output_totals t;
    char text[1024], *path = fkv_output_path(s->output, "stats.json", true);
    if (!path) return fkv_fail_memory(err);
    const fkv_status st = fkv_stats_read(path, &h, &why);
    free(path);
    if (st == FKV_E_SYSTEM) return fkv_fail_at(err, st, why.file, 0, NULL, "%s", why.message);
    if (st) {
        fkv_err_format(&why, text, sizeof text);
        fkv_log("%s; what earlier runs measured is not counted any more", text);
    }
    fkv_output_totals_get(s->output, &t);
    if (t.resumed || !h.done) s->stats.before = h.sums; /* else another job's */
    count_old_errors(s, &h, &t);
    return FKV_OK;
}

fkv_status fkv_run_stats_open(const fkv_setup *setup, fkv_output *output, fkv_run_stats **stats, fkv_err *err)
{
    fkv_run_stats *s = *stats = fkv_calloc(1, sizeof *s);
    if (!s) return fkv_fail_memory(err);
    fkv_tally_view v;
    const double now = fkv_seconds();
    pthread_mutex_init(&s->mutex, NULL);
    s->setup = setup;
    s->output = output;
    fkv_tally_look(setup->tally, now, &v);
    uname(&s->system);
    snprintf(s->system_name, sizeof s->system_name, "%s %s %s", s->system.sysname, s->system.release,
             s->system.machine);
    s->gpus.known = true;
    s->stats.start_time = (int64_t)time(NULL) - (int64_t)v.wall;
    s->stats.host = s->system.nodename;
    s->stats.system = s->system_name;
    s->stats.processors = fkv_machine_processors();
    s->stats.backend = setup->backend->name;
    s->stats.versions = "{\"fairkv-batch\":\"" FKV_VERSION "\"}";
    s->stats.device = s->device;
    s->stats.rank_attention_seconds = s->rank_seconds;
    const fkv_status st = read_history(s, err);
    if (!st) {
        use_gpus(&s->gpus, setup->backend, setup->n_devices);
        return FKV_OK;
    }
    fkv_run_stats_close(s);
    *stats = NULL;
    return st;
}

void fkv_run_stats_close(fkv_run_stats *s)
{
    if (!s) return;
    fkv_gpu_energy_close(s->gpus.energy);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

/* ---- this run ---- */

static int64_t share_of(const void *ctx, int64_t n_input)
{
    return fkv_output_share(ctx, n_input);
}

static double mean_of(const int32_t *tokens, int n)
{
    double sum = 0;
    for (int i = 0; tokens && i < n; i++) sum += tokens[i];
    return n > 0 ? sum / n : 0;
}

void fkv_run_stats_planned(fkv_run_stats *s, const fkv_planning *planning, const fkv_replicas *replicas)
{
    fkv_output_totals t;
    fkv_device_info info;
    fkv_output_totals_get(s->output, &t);
    fkv_engine_info(fkv_replicas_first(replicas), &info);
    const int n_devices = planning->layout.replicas * planning->layout.devices;
    pthread_mutex_lock(&s->mutex);
    if (n_devices != s->setup->n_devices) change_gpus(&s->gpus, s->setup->backend, n_devices);
    s->stats.slots = planning->layout.slots;
    s->stats.n_ranks = planning->layout.ranks;
    s->stats.n_devices = n_devices;
    s->stats.balance = fkv_plan_balance_of(&planning->plan, &planning->profile);
    snprintf(s->device, sizeof s->device, "%s", info.name);
    const fkv_tally_goal goal = {
        .done = t.records,
        .errors = t.errors,
        .limit = s->setup->job->job.limit,
        .n_input = planning->profile.n_input,
        .share = share_of,
        .ctx = s->output,
        .slots = planning->layout.slots * planning->layout.replicas,
        .balance = s->stats.balance,
        .mean_prompt = mean_of(planning->profile.prompt_tokens, planning->profile.n_sample),
        .mean_new = mean_of(planning->profile.new_tokens, planning->profile.n_sample)};
    pthread_mutex_unlock(&s->mutex);
    fkv_tally_answer(s->setup->tally, &goal);
}

void fkv_run_stats_measured(fkv_run_stats *s, const fkv_planning *planning, const fkv_replicas *replicas,
                            const fkv_trace *trace)
{
    const fkv_trace_sums *sums = trace ? fkv_trace_get(trace) : NULL;
    pthread_mutex_lock(&s->mutex);
    fkv_replicas_stats(replicas, &s->engine);
    s->measured = true;
    fkv_tally_engine(s->setup->tally, &s->engine);
    if (sums && sums->n_steps > 0) {
        const fkv_plan *plan = &planning->plan;
        const double common = 1e6 * (sums->layers_seconds + sums->once_seconds) / (double)sums->n_steps;
        s->stats.step_predicted_us = plan->step_us;
        s->stats.step_measured_us = fkv_trace_step_us(sums);
        s->stats.segments_predicted_us =
            plan->step_us -
            plan->n_layers * (planning->constants.cost.common_us + planning->constants.collectives_us);
        s->stats.segments_measured_us = s->stats.step_measured_us - common;
    }
    pthread_mutex_unlock(&s->mutex);
}

static void take_engine(fkv_stats *to, const fkv_engine_stats *e, double *rank_seconds)
{
    to->decode_steps = e->decode_steps;
    to->busy_slot_steps = e->busy_slot_steps;
    to->busy_slots = e->busy_slots;
    to->restarts = e->restarts;
    to->restarted_tokens = e->restarted_tokens;
    to->prefill_passes = e->prefill_passes;
    to->prefill_tokens = e->prefill_rows;
    to->kv_bytes = e->kv_bytes;
    memcpy(rank_seconds, e->rank_attention_seconds, sizeof e->rank_attention_seconds);
}

static void sum_errors(const fkv_run_stats *s, fkv_error_counts *errors)
{
    const fkv_error_counts *new = &s->history.errors;
    *errors = s->old_errors;
    for (int i = 0; i < new->n; i++)
        fkv_error_counts_add(errors, new->at[i].code, strlen(new->at[i].code), new->at[i].rows);
}

/* With the lock. Rows are counted by their writer before the tally hears of them, so the two may differ by
 * the one that is under way. */
static void fill(fkv_run_stats *s, int exit_code, bool complete, fkv_stats *stats)
{
    fkv_tally_view v;
    const double now = fkv_seconds();
    fkv_tally_recall(s->setup->tally, now, &s->history);
    fkv_tally_look(s->setup->tally, now, &v);
    *stats = s->stats;
    fkv_output_totals_get(s->output, &stats->totals);
    stats->complete = complete;
    stats->running = exit_code < 0;
    stats->exit_code = exit_code;
    stats->time = (int64_t)time(NULL);
    stats->peak_rss_bytes = peak_rss_bytes();
    take_engine(stats, s->measured ? &s->engine : &v.engine, s->rank_seconds);
    memcpy(stats->seconds, v.seconds, sizeof stats->seconds);
    sum_gpus(&s->gpus, &stats->gpu_seconds, &stats->joules);
    stats->points = s->history.points;
    stats->n_points = s->history.n_points;
    stats->prompts = &s->history.prompts;
    stats->answers = &s->history.answers;
    sum_errors(s, &stats->errors);
    stats->records = v.total;
    stats->estimated = v.total >= 0 && v.estimated;
}

/* Of no weight for the job: someone else's folder, which may be full or gone. */
static void save_second_place(fkv_run_stats *s, const fkv_stats *stats)
{
    fkv_err err = {0};
    const char *place = s->setup->job->output.metrics;
    if (!place || !fkv_metrics_write(s->output, stats, place, &err) || s->warned) return;
    s->warned = true;
    fkv_log_at(FKV_LOG_WARNING, "output.metrics: %s%s%s", err.file, err.file[0] ? ": " : "", err.message);
}

fkv_status fkv_run_stats_save(fkv_run_stats *s, int exit_code, bool complete, fkv_err *err)
{
    pthread_mutex_lock(&s->mutex);
    fill(s, exit_code, complete, &s->last);
    fkv_status st = fkv_output_glance(s->output, err);
    if (!st) st = fkv_stats_write(s->output, &s->last, err);
    if (!st) st = fkv_metrics_write(s->output, &s->last, NULL, err);
    if (!st) save_second_place(s, &s->last);
    pthread_mutex_unlock(&s->mutex);
    return st;
}

const fkv_stats *fkv_run_stats_last(const fkv_run_stats *s)
{
    return &s->last;
}

void fkv_run_stats_errors(fkv_run_stats *s, fkv_error_counts *errors)
{
    pthread_mutex_lock(&s->mutex);
    fkv_tally_recall(s->setup->tally, fkv_seconds(), &s->history);
    sum_errors(s, errors);
    pthread_mutex_unlock(&s->mutex);
}
