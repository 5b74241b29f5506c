/* stats.json: see stats.h. Owns nothing beyond a call; the file is replaced whole, so that
 * nobody sees half of one. */
#include "jobs/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "jobs/row.h"
#include "runner/base/file.h"

const char *fkv_stage_name(fkv_stage stage)
{
    static const char *const names[FKV_STAGES] = {"start",  "wait",      "sample", "profile",
                                                  "load",   "calibrate", "plan",   "prefill",
                                                  "decode", "other",     "finish"};
    return names[stage];
}

fkv_status fkv_stats_put_number(fkv_buf *b, double v, fkv_err *err)
{
    return isfinite(v) ? fkv_buf_printf(b, err, "%.6f", v) : fkv_buf_puts(b, "null", err);
}

fkv_stats_sums fkv_stats_all(const fkv_stats *s)
{
    fkv_stats_sums all = s->before;
    all.runs++;
    all.prompt_tokens += s->totals.prompt_tokens;
    all.completion_tokens += s->totals.completion_tokens;
    for (int i = 0; i < FKV_STAGES; i++) all.seconds[i] += s->seconds[i];
    all.gpu_seconds += s->gpu_seconds;
    if (s->joules >= 0) {
        all.joules += s->joules;
        all.energy_runs++;
    }
    if (s->complete && !s->running) all.last_success = s->time;
    return all;
}

/* ,"key":value of one number each */
static fkv_status put_whole(fkv_buf *b, const char *key, int64_t v, fkv_err *err)
{
    return fkv_buf_printf(b, err, ",\"%s\":%lld", key, (long long)v);
}

static fkv_status put_real(fkv_buf *b, const char *key, double v, fkv_err *err)
{
    const fkv_status st = fkv_buf_printf(b, err, ",\"%s\":", key);
    return st ? st : fkv_stats_put_number(b, v, err);
}

static fkv_status put_text(fkv_buf *b, const char *key, const char *text, fkv_err *err)
{
    const fkv_status st = fkv_buf_printf(b, err, ",\"%s\":", key);
    return st ? st : fkv_row_put_text(b, text ? text : "", text ? strlen(text) : 0, err);
}

/* key is the whole of what stands before the value */
static fkv_status put_time(fkv_buf *b, const char *key, int64_t when, fkv_err *err)
{
    char text[32];
    const time_t t = (time_t)when;
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return fkv_buf_printf(b, err, "%s\"%s\"", key, text);
}

static double sum_of(const double seconds[FKV_STAGES])
{
    double sum = 0;
    for (int i = 0; i < FKV_STAGES; i++) sum += seconds[i];
    return sum;
}

/* ,"wall_seconds":s,"seconds":{...} */
static fkv_status put_seconds(fkv_buf *b, const double seconds[FKV_STAGES], fkv_err *err)
{
    fkv_status st = put_real(b, "wall_seconds", sum_of(seconds), err);
    for (int i = 0; !st && i < FKV_STAGES; i++) {
        st = fkv_buf_printf(b, err, "%s\"%s\":", i ? "," : ",\n\"seconds\":{", fkv_stage_name((fkv_stage)i));
        if (!st) st = fkv_stats_put_number(b, seconds[i], err);
    }
    return st ? st : fkv_buf_puts(b, "}", err);
}

static fkv_status put_counts(const fkv_stats *s, fkv_buf *b, fkv_err *err)
{
    const fkv_output_totals *t = &s->totals;
    return fkv_buf_printf(
        b, err,
        ",\n\"records\":%lld,\"resumed\":%lld,\"errors\":%lld,\"complete\":%s,\n"
        "\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"decode_steps\":%lld,\n"
        "\"slots\":%lld,\"busy_slot_steps\":%lld,\"restarts\":%lld,\"restarted_tokens\":%lld,\n"
        "\"prefill_passes\":%lld,\"prefill_tokens\":%lld,\n"
        "\"kv_bytes\":%lld,\"peak_rss_bytes\":%lld",
        (long long)t->records, (long long)t->resumed, (long long)t->errors, s->complete ? "true" : "false",
        (long long)t->prompt_tokens, (long long)t->completion_tokens, (long long)s->decode_steps,
        (long long)s->slots, (long long)s->busy_slot_steps, (long long)s->restarts,
        (long long)s->restarted_tokens, (long long)s->prefill_passes, (long long)s->prefill_tokens,
        (long long)s->kv_bytes, (long long)s->peak_rss_bytes);
}

static fkv_status put_ranks(const fkv_stats *s, fkv_buf *b, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(b, ",\n\"rank_attention_seconds\":[", err);
    for (int r = 0; !st && r < s->n_ranks; r++) {
        if (r) st = fkv_buf_puts(b, ",", err);
        if (!st) st = fkv_stats_put_number(b, s->rank_attention_seconds[r], err);
    }
    if (!st) st = fkv_buf_puts(b, "]", err);
    if (!st && s->balance > 0) st = put_real(b, "balance", s->balance, err);
    if (!st && s->step_measured_us > 0)
        st = fkv_buf_printf(b, err,
                            ",\n\"step\":{\"predicted_us\":%.3f,\"measured_us\":%.3f,"
                            "\"predicted_segments_us\":%.3f,\"measured_segments_us\":%.3f}",
                            s->step_predicted_us, s->step_measured_us, s->segments_predicted_us,
                            s->segments_measured_us);
    return st;
}

static fkv_status put_machine(const fkv_stats *s, fkv_buf *b, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(b, ",\n\"host\":", err);
    if (!st) st = fkv_row_put_text(b, s->host ? s->host : "", s->host ? strlen(s->host) : 0, err);
    if (!st) st = put_text(b, "system", s->system, err);
    if (!st) st = put_whole(b, "processors", s->processors, err);
    if (!st) st = put_text(b, "backend", s->backend, err);
    if (!st) st = put_text(b, "device", s->device, err);
    if (!st) st = put_whole(b, "devices", s->n_devices, err);
    if (!st) st = put_real(b, "gpu_seconds", s->gpu_seconds, err);
    if (!st) st = put_real(b, "energy_joules", s->joules >= 0 ? s->joules : NAN, err);
    return st ? st : fkv_buf_printf(b, err, ",\n\"versions\":%s", s->versions ? s->versions : "{}");
}

static fkv_status put_lengths(fkv_buf *b, const char *key, const fkv_stats_lengths *l, fkv_err *err)
{
    int n = l ? FKV_STATS_LENGTHS : 0;
    while (n > 0 && !l->at[n - 1]) n--;
    fkv_status st = fkv_buf_printf(b, err, ",\n\"%s\":[", key);
    for (int i = 0; !st && i < n; i++)
        st = fkv_buf_printf(b, err, "%s%lld", i ? "," : "", (long long)l->at[i]);
    return st ? st : fkv_buf_puts(b, "]", err);
}

static fkv_status put_throughput(const fkv_stats *s, fkv_buf *b, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(b, ",\n\"throughput\":[", err);
    for (int i = 0; !st && i < s->n_points; i++) {
        const fkv_stats_point *p = &s->points[i];
        st = fkv_buf_printf(b, err, "%s[%.3f,%lld,%lld,%lld,%.2f,%lld]", i ? "," : "", p->seconds,
                            (long long)p->records, (long long)p->prompt_tokens,
                            (long long)p->completion_tokens, p->busy_slots, (long long)p->errors);
    }
    return st ? st : fkv_buf_puts(b, "]", err);
}

static fkv_status put_run(const fkv_stats *s, fkv_buf *b, fkv_err *err)
{
    fkv_status st = put_time(b, "{\"start\":", s->start_time, err);
    if (!st && s->running) st = fkv_buf_puts(b, ",\"end\":null,\"exit_code\":null", err);
    if (!st && !s->running) st = put_time(b, ",\"end\":", s->time, err);
    if (!st && !s->running) st = put_whole(b, "exit_code", s->exit_code, err);
    if (!st) st = put_counts(s, b, err);
    if (!st) st = put_seconds(b, s->seconds, err);
    if (!st) st = put_ranks(s, b, err);
    if (!st) st = put_machine(s, b, err);
    if (!st) st = put_lengths(b, "prompt_lengths", s->prompts, err);
    if (!st) st = put_lengths(b, "answer_lengths", s->answers, err);
    if (!st) st = put_throughput(s, b, err);
    return st ? st : fkv_buf_puts(b, "}", err);
}

static fkv_status put_errors(const fkv_error_counts *errors, fkv_buf *b, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(b, ",\"errors\":{", err);
    for (int i = 0; !st && i < errors->n; i++)
        st = fkv_buf_printf(b, err, "%s\"%s\":%lld", i ? "," : "", errors->at[i].code,
                            (long long)errors->at[i].rows);
    return st ? st : fkv_buf_puts(b, "}", err);
}

static fkv_status put_job(const fkv_stats *s, fkv_buf *b, fkv_err *err)
{
    const fkv_stats_sums all = fkv_stats_all(s);
    const double wall = sum_of(all.seconds);
    fkv_status st = s->records < 0 ? fkv_buf_puts(b, "{\"records\":null", err)
                                   : fkv_buf_printf(b, err, "{\"records\":%lld", (long long)s->records);
    if (!st) st = fkv_buf_printf(b, err, ",\"estimated\":%s", s->estimated ? "true" : "false");
    if (!st) st = put_whole(b, "done", s->totals.records, err);
    if (!st) st = put_errors(&s->errors, b, err);
    if (!st) st = put_whole(b, "runs", all.runs, err);
    if (!st) st = put_whole(b, "prompt_tokens", all.prompt_tokens, err);
    if (!st) st = put_whole(b, "completion_tokens", all.completion_tokens, err);
    if (!st) st = put_real(b, "records_per_second", wall > 0 ? (double)s->totals.records / wall : 0, err);
    if (!st) st = put_seconds(b, all.seconds, err);
    if (!st) st = put_real(b, "gpu_seconds", all.gpu_seconds, err);
    if (!st) st = put_real(b, "energy_joules", all.energy_runs ? all.joules : NAN, err);
    if (!st) st = put_whole(b, "energy_runs", all.energy_runs, err);
    if (!st && all.last_success) st = put_whole(b, "last_success", all.last_success, err);
    if (!st && !all.last_success) st = fkv_buf_puts(b, ",\"last_success\":null", err);
    return st ? st : fkv_buf_puts(b, "}", err);
}

fkv_status fkv_stats_write(const fkv_output *output, const fkv_stats *stats, fkv_err *err)
{
    fkv_buf json = {0};
    char *path = fkv_output_path(output, "stats.json", true);
    fkv_status st = path ? FKV_OK : fkv_fail_memory(err);
    if (!st) st = fkv_buf_puts(&json, "{\"format\":\"fairkv-stats/2\",\n\"run\":", err);
    if (!st) st = put_run(stats, &json, err);
    if (!st) st = fkv_buf_puts(&json, ",\n\"job\":", err);
    if (!st) st = put_job(stats, &json, err);
    if (!st) st = fkv_buf_puts(&json, "}\n", err);
    if (!st) st = fkv_file_replace(path, json.data, json.len, err);
    fkv_buf_free(&json);
    free(path);
    return st;
}
