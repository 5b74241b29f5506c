/* metrics.prom: see stats.h. Prometheus' text form, without times of samples, as a textfile collector wants
 * it. Owns nothing beyond a call. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "jobs/stats.h"
#include "runner/base/file.h"

/* A label's value: backslash, quote and line break escaped. */
static fkv_status put_label(fkv_buf *b, const char *name, const char *value, fkv_err *err)
{
    fkv_status st = fkv_buf_printf(b, err, "%s=\"", name);
    for (const char *p = value; !st && *p; p++) {
        if (*p == '\n')
            st = fkv_buf_puts(b, "\\n", err);
        else if (*p == '\\' || *p == '"')
            st = fkv_buf_printf(b, err, "\\%c", *p);
        else
            st = fkv_buf_append(b, p, 1, err);
    }
    return st ? st : fkv_buf_puts(b, "\"", err);
}

/* What a metric is named by its name: a counter ends in _total. */
static fkv_status put_head(fkv_buf *b, const char *name, const char *help, fkv_err *err)
{
    static const char total[] = "_total";
    const size_t n = strlen(name), end = sizeof total - 1;
    const bool counter = n > end && !strcmp(name + n - end, total);
    return fkv_buf_printf(b, err, "# HELP fairkv_%s %s\n# TYPE fairkv_%s %s\n", name, help, name,
                          counter ? "counter" : "gauge");
}

typedef struct whole_metric {
    const char *name, *help;
    int64_t value;
} whole_metric;

typedef struct real_metric {
    const char *name, *help;
    double value;
    bool known;
} real_metric;

static fkv_status put_wholes(const whole_metric *at, size_t n, const char *labels, fkv_buf *b, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < n; i++) {
        st = put_head(b, at[i].name, at[i].help, err);
        if (!st)
            st = fkv_buf_printf(b, err, "fairkv_%s{%s} %lld\n", at[i].name, labels, (long long)at[i].value);
    }
    return st;
}

/* What this run did. */
static fkv_status put_run(const fkv_stats *s, const char *labels, fkv_buf *b, fkv_err *err)
{
    const whole_metric gauges[] = {
        {"records", "Finished records, earlier runs included.", s->totals.records},
        {"resumed_records", "Records that earlier runs had finished.", s->totals.resumed},
        {"error_records", "Finished records that are error rows.", s->totals.errors},
        {"complete", "1 when the job is finished.", s->complete},
        {"running", "1 while a run is at work, and after one that was killed.", s->running},
        {"prompt_tokens", "Prompt tokens of this run.", s->totals.prompt_tokens},
        {"completion_tokens", "Generated tokens of this run.", s->totals.completion_tokens},
        {"decode_steps", "Decode steps of this run.", s->decode_steps},
        {"slots", "Records that are decoded together.", s->slots},
        {"busy_slots", "Slots that hold a record.", s->busy_slots},
        {"busy_slot_steps", "Slots at work, summed over the decode steps.", s->busy_slot_steps},
        {"restarted_tokens", "Tokens of records that had to yield their memory and started again.",
         s->restarted_tokens},
        {"prefill_passes", "Prefill passes of this run.", s->prefill_passes},
        {"prefill_tokens", "Prompt tokens that those passes worked on.", s->prefill_tokens},
        {"kv_bytes", "Largest KV cache in use, all ranks together.", s->kv_bytes},
        {"peak_rss_bytes", "Largest resident memory of the process.", s->peak_rss_bytes},
        {"start_time_seconds", "Unix time at which this run began.", s->start_time},
    };
    fkv_status st = put_wholes(gauges, sizeof gauges / sizeof *gauges, labels, b, err);
    if (!st && s->n_ranks > 0)
        st = put_head(b, "rank_attention_seconds", "Decode attention time of each rank in this run.", err);
    for (int r = 0; !st && r < s->n_ranks; r++)
        st = fkv_buf_printf(b, err, "fairkv_rank_attention_seconds{%s,rank=\"%d\"} %.6f\n", labels, r,
                            s->rank_attention_seconds[r]);
    return st;
}

/* What may not be known yet, and then has no sample. */
static fkv_status put_known(const fkv_stats *s, const fkv_stats_sums *all, const char *labels, fkv_buf *b,
                            fkv_err *err)
{
    const real_metric some[] = {
        {"input_records", "Records of the input that are this part's, done or not.", (double)s->records,
         s->records >= 0},
        {"balance_ratio", "Cache that the fullest rank reads in a step over the mean of all, by the plan.",
         s->balance, s->balance > 0},
        {"exit_code", "Exit code of the last run, once it has ended.", s->exit_code, !s->running},
        {"last_success_timestamp_seconds", "Unix time at which the job was finished.",
         (double)all->last_success, all->last_success > 0},
        {"energy_joules_total", "Energy of the GPUs over all runs that could measure it.", all->joules,
         all->energy_runs > 0},
    };
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < sizeof some / sizeof *some; i++) {
        if (!some[i].known) continue;
        st = put_head(b, some[i].name, some[i].help, err);
        if (!st) st = fkv_buf_printf(b, err, "fairkv_%s{%s} %.15g\n", some[i].name, labels, some[i].value);
    }
    return st;
}

/* What all runs of this part did. */
static fkv_status put_job(const fkv_stats *s, const char *labels, fkv_buf *b, fkv_err *err)
{
    const fkv_stats_sums all = fkv_stats_all(s);
    const whole_metric counters[] = {
        {"runs_total", "Runs so far, this one included.", all.runs},
        {"prompt_tokens_total", "Prompt tokens of all runs.", all.prompt_tokens},
        {"completion_tokens_total", "Generated tokens of all runs.", all.completion_tokens},
    };
    fkv_status st = put_wholes(counters, sizeof counters / sizeof *counters, labels, b, err);
    if (!st) st = put_known(s, &all, labels, b, err);
    if (!st) st = put_head(b, "gpu_seconds_total", "GPUs times the time that all runs had them.", err);
    if (!st) st = fkv_buf_printf(b, err, "fairkv_gpu_seconds_total{%s} %.6f\n", labels, all.gpu_seconds);
    if (!st) st = put_head(b, "stage_seconds_total", "Wall time of all runs by stage.", err);
    for (int i = 0; !st && i < FKV_STAGES; i++)
        st = fkv_buf_printf(b, err, "fairkv_stage_seconds_total{%s,stage=\"%s\"} %.6f\n", labels,
                            fkv_stage_name((fkv_stage)i), all.seconds[i]);
    if (!st && s->errors.n) st = put_head(b, "error_rows", "Error rows by their code.", err);
    for (int i = 0; !st && i < s->errors.n; i++)
        st = fkv_buf_printf(b, err, "fairkv_error_rows{%s,code=\"%s\"} %lld\n", labels, s->errors.at[i].code,
                            (long long)s->errors.at[i].rows);
    return st;
}

static fkv_status put_labels(const fkv_output *output, fkv_buf *b, fkv_err *err)
{
    const char *name;
    int64_t part, n_parts;
    fkv_output_who(output, &name, &part, &n_parts);
    /* Not "job", which Prometheus sets itself. */
    fkv_status st = put_label(b, "name", name, err);
    if (!st && !n_parts) st = fkv_buf_printf(b, err, ",part=\"auto%lld\"", (long long)part);
    if (!st && n_parts)
        st = fkv_buf_printf(b, err, ",part=\"%lld/%lld\"", (long long)part, (long long)n_parts);
    return st;
}

static bool is_folder(const char *path)
{
    struct stat s;
    const size_t n = strlen(path);
    return (n && path[n - 1] == '/') || (!stat(path, &s) && S_ISDIR(s.st_mode));
}

/* A job's name as a file's: of other bytes than these a file system or a shell makes something else. */
static fkv_status put_name(fkv_buf *b, const char *name, fkv_err *err)
{
    enum { MOST = 150 };
    fkv_status st = FKV_OK;
    for (const unsigned char *p = (const unsigned char *)name;
         !st && *p && p - (const unsigned char *)name < MOST; p++)
        st = isalnum(*p) || strchr("._-", *p) ? fkv_buf_append(b, p, 1, err)
                                              : fkv_buf_printf(b, err, "%%%02X", *p);
    return st;
}

/* The file that place stands for. */
static fkv_status put_place(const fkv_output *output, const char *place, fkv_buf *path, fkv_err *err)
{
    const char *name;
    int64_t part, n_parts;
    fkv_output_who(output, &name, &part, &n_parts);
    const bool folder = is_folder(place);
    const char *base = strrchr(place, '/');
    const char *dot = folder ? NULL : strrchr(base ? base : place, '.');
    const size_t stem = dot ? (size_t)(dot - place) : strlen(place);
    fkv_status st = fkv_buf_append(path, place, stem, err);
    if (!st && folder)
        st = fkv_buf_puts(path, place[stem - 1] == '/' ? "fairkv-batch-" : "/fairkv-batch-", err);
    if (!st && folder) st = put_name(path, name, err);
    if (!st && !n_parts) st = fkv_buf_printf(path, err, "-auto%lld", (long long)part);
    if (!st && n_parts > 1)
        st = fkv_buf_printf(path, err, "-%lldof%lld", (long long)part, (long long)n_parts);
    return st ? st : fkv_buf_puts(path, folder ? ".prom" : dot ? dot : "", err);
}

static fkv_status put_own_place(const fkv_output *output, fkv_buf *path, fkv_err *err)
{
    char *own = fkv_output_path(output, "metrics.prom", true);
    const fkv_status st = own ? fkv_buf_puts(path, own, err) : fkv_fail_memory(err);
    free(own);
    return st;
}

fkv_status fkv_metrics_write(const fkv_output *output, const fkv_stats *stats, const char *place,
                             fkv_err *err)
{
    fkv_buf labels = {0}, text = {0}, path = {0};
    fkv_status st = put_labels(output, &labels, err);
    if (!st) st = put_run(stats, labels.data, &text, err);
    if (!st) st = put_job(stats, labels.data, &text, err);
    if (!st) st = place ? put_place(output, place, &path, err) : put_own_place(output, &path, err);
    if (!st) st = fkv_file_replace(path.data, text.data, text.len, err);
    fkv_buf_free(&labels);
    fkv_buf_free(&text);
    fkv_buf_free(&path);
    return st;
}
