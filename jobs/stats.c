/* stats.json and metrics.prom: see stats.h. Owns nothing beyond a call; both
 * files are replaced whole, so a collector never sees half of one. */
#include "jobs/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/row.h"
#include "runner/base/file.h"

static fkv_status put_seconds(fkv_buf *b, double v, fkv_err *err)
{
    return isfinite(v) ? fkv_buf_printf(b, err, "%.6f", v) : fkv_buf_puts(b, "null", err);
}

static fkv_status put_phases(const fkv_stats *s, fkv_buf *b, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(b, "\"seconds\":{", err);
    for (int i = 0; !st && i < FKV_STATS_PHASES && s->phases[i].name; i++) {
        if (i) st = fkv_buf_puts(b, ",", err);
        if (!st) st = fkv_row_put_text(b, s->phases[i].name, strlen(s->phases[i].name), err);
        if (!st) st = fkv_buf_puts(b, ":", err);
        if (!st) st = put_seconds(b, s->phases[i].seconds, err);
    }
    if (!st) st = fkv_buf_puts(b, "},\n\"rank_attention_seconds\":[", err);
    for (int r = 0; !st && r < s->n_ranks; r++) {
        if (r) st = fkv_buf_puts(b, ",", err);
        if (!st) st = put_seconds(b, s->rank_attention_seconds[r], err);
    }
    return st ? st : fkv_buf_puts(b, "],\n", err);
}

static fkv_status put_stats(const fkv_stats *s, fkv_buf *b, fkv_err *err)
{
    const char *backend = s->backend ? s->backend : "";
    fkv_status st = fkv_buf_printf(
        b, err,
        "{\"format\":\"fairkv-stats/"
        "1\",\n\"records\":%lld,\"resumed\":%lld,\"errors\":%lld,\"complete\":%s,\n"
        "\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"decode_steps\":%lld,\n"
        "\"slots\":%lld,\"busy_slot_steps\":%lld,\"restarts\":%lld,\"restarted_tokens\":%lld,\n"
        "\"prefill_passes\":%lld,\"prefill_tokens\":%lld,\n"
        "\"kv_bytes\":%lld,\"peak_rss_bytes\":%lld,\n",
        (long long)s->totals.records, (long long)s->totals.resumed, (long long)s->totals.errors,
        s->complete ? "true" : "false", (long long)s->totals.prompt_tokens,
        (long long)s->totals.completion_tokens, (long long)s->decode_steps, (long long)s->slots,
        (long long)s->busy_slot_steps, (long long)s->restarts, (long long)s->restarted_tokens,
        (long long)s->prefill_passes, (long long)s->prefill_tokens, (long long)s->kv_bytes,
        (long long)s->peak_rss_bytes);
    if (!st) st = put_phases(s, b, err);
    if (!st && s->step_measured_us > 0)
        st = fkv_buf_printf(b, err,
                            "\"step\":{\"predicted_us\":%.3f,\"measured_us\":%.3f,"
                            "\"predicted_segments_us\":%.3f,\"measured_segments_us\":%.3f},\n",
                            s->step_predicted_us, s->step_measured_us, s->segments_predicted_us,
                            s->segments_measured_us);
    if (!st) st = fkv_buf_puts(b, "\"backend\":", err);
    if (!st) st = fkv_row_put_text(b, backend, strlen(backend), err);
    if (!st) st = fkv_buf_printf(b, err, ",\"versions\":%s}\n", s->versions ? s->versions : "{}");
    return st;
}

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

static fkv_status put_head(fkv_buf *b, const char *name, const char *help, fkv_err *err)
{
    return fkv_buf_printf(b, err, "# HELP fairkv_%s %s\n# TYPE fairkv_%s gauge\n", name, help, name);
}

/* labels: what every sample carries. Gauges all: they start anew with each run. */
static fkv_status put_metrics(const fkv_stats *s, const char *labels, fkv_buf *b, fkv_err *err)
{
    const struct {
        const char *name, *help;
        int64_t value;
    } gauges[] = {
        {"records", "Finished records, earlier runs included.", s->totals.records},
        {"resumed_records", "Records that earlier runs had finished.", s->totals.resumed},
        {"error_records", "Finished records that are error rows.", s->totals.errors},
        {"complete", "1 when the job is finished.", s->complete},
        {"prompt_tokens", "Prompt tokens of this run.", s->totals.prompt_tokens},
        {"completion_tokens", "Generated tokens of this run.", s->totals.completion_tokens},
        {"decode_steps", "Decode steps of this run.", s->decode_steps},
        {"slots", "Records that are decoded together.", s->slots},
        {"busy_slot_steps", "Slots at work, summed over the decode steps.", s->busy_slot_steps},
        {"restarted_tokens", "Tokens of records that had to yield their memory and started again.",
         s->restarted_tokens},
        {"prefill_passes", "Prefill passes of this run.", s->prefill_passes},
        {"prefill_tokens", "Prompt tokens that those passes worked on.", s->prefill_tokens},
        {"kv_bytes", "Largest KV cache in use, all ranks together.", s->kv_bytes},
        {"peak_rss_bytes", "Largest resident memory of the process.", s->peak_rss_bytes},
    };
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < sizeof gauges / sizeof *gauges; i++) {
        st = put_head(b, gauges[i].name, gauges[i].help, err);
        if (!st)
            st = fkv_buf_printf(b, err, "fairkv_%s{%s} %lld\n", gauges[i].name, labels,
                                (long long)gauges[i].value);
    }
    if (!st && s->phases[0].name) st = put_head(b, "phase_seconds", "Wall time of this run by phase.", err);
    for (int i = 0; !st && i < FKV_STATS_PHASES && s->phases[i].name; i++) {
        st = fkv_buf_printf(b, err, "fairkv_phase_seconds{%s,", labels);
        if (!st) st = put_label(b, "phase", s->phases[i].name, err);
        if (!st) st = fkv_buf_printf(b, err, "} %.6f\n", s->phases[i].seconds);
    }
    if (!st && s->n_ranks > 0)
        st = put_head(b, "rank_attention_seconds", "Decode attention time of each rank in this run.", err);
    for (int r = 0; !st && r < s->n_ranks; r++)
        st = fkv_buf_printf(b, err, "fairkv_rank_attention_seconds{%s,rank=\"%d\"} %.6f\n", labels, r,
                            s->rank_attention_seconds[r]);
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

static fkv_status replace(const fkv_output *output, const char *file, const fkv_buf *b, fkv_err *err)
{
    char *path = fkv_output_path(output, file, true);
    if (!path) return fkv_fail_memory(err);
    const fkv_status st = fkv_file_replace(path, b->data, b->len, err);
    free(path);
    return st;
}

fkv_status fkv_stats_write(const fkv_output *output, const fkv_stats *stats, fkv_err *err)
{
    fkv_buf json = {0}, labels = {0}, metrics = {0};
    fkv_status st = put_stats(stats, &json, err);
    if (!st) st = put_labels(output, &labels, err);
    if (!st) st = put_metrics(stats, labels.data, &metrics, err);
    if (!st) st = replace(output, "stats.json", &json, err);
    if (!st) st = replace(output, "metrics.prom", &metrics, err);
    fkv_buf_free(&json);
    fkv_buf_free(&labels);
    fkv_buf_free(&metrics);
    return st;
}
