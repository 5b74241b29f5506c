/* The last run of a stats.json: see stats_run.h. Nothing in it is trusted: what can't be is refused as a
 * whole, so that who has one can reckon with it. */
#include "jobs/stats_run.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runner/base/json.h"
#include "runner/base/mem.h"
#include "runner/base/utf8.h"

enum { MAX_STATS_BYTES = 1 << 20 };
static const int64_t most = (int64_t)1 << 53;
static const double most_seconds = 1e12;

/* Where the reader is: the file, its run, and the first failure, after which nothing is read any more. */
typedef struct reader {
    const char *path;
    const json_t *run;
    fkv_status st;
    fkv_err *err;
} reader;

static void whole(reader *r, const char *key, int64_t hi, int64_t *out)
{
    if (!r->st) r->st = fkv_json_i64_or(r->run, key, 0, hi, 0, r->path, out, r->err);
}

static void real(reader *r, const char *key, double fallback, double *out)
{
    if (!r->st) r->st = fkv_json_f64_or(r->run, key, 0, most_seconds, fallback, r->path, out, r->err);
}

/* size bytes at out, cut at a character */
static void text(reader *r, const json_t *in, const char *key, char *out, size_t size)
{
    const char *v = NULL;
    if (!r->st) r->st = fkv_json_str_or_null(in, key, r->path, &v, r->err);
    if (!r->st && v) fkv_utf8_show(v, out, size);
}

/* -1: null or not there */
static void moment(reader *r, const char *key, int64_t *out)
{
    const char *v = NULL;
    struct tm tm = {0};
    *out = -1;
    if (!r->st) r->st = fkv_json_str_or_null(r->run, key, r->path, &v, r->err);
    if (r->st || !v) return;
    const char *end = strptime(v, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (end && !*end)
        *out = (int64_t)timegm(&tm);
    else
        r->st =
            fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, key, "must be a time as in 2026-01-31T23:59:59Z");
}

/* The list of that key; NULL: there is none. */
static const json_t *list(reader *r, const char *key, size_t max)
{
    const json_t *v = json_object_get(r->run, key);
    if (r->st || !v) return NULL;
    if (json_is_array(v) && json_array_size(v) <= max) return v;
    r->st = fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, key, "must be a list of at most %zu", max);
    return NULL;
}

static double number_at(reader *r, const json_t *from, size_t i, const char *key)
{
    const json_t *v = json_array_get(from, i);
    const double x = json_number_value(v);
    if (!r->st && (!json_is_number(v) || !(x >= 0) || x > (double)most))
        r->st = fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, key, "holds what is no number from 0 on");
    return r->st ? 0 : x;
}

static void lengths(reader *r, const char *key, fkv_stats_lengths *out)
{
    const json_t *v = list(r, key, FKV_STATS_LENGTHS);
    for (size_t i = 0; i < json_array_size(v); i++) out->at[i] = (int64_t)number_at(r, v, i, key);
}

/* Times and counts never fall: the page divides by their differences. */
static void throughput(reader *r, fkv_stats_run *x)
{
    const json_t *v = list(r, "throughput", FKV_STATS_POINTS);
    for (size_t i = 0; !r->st && i < json_array_size(v); i++) {
        const json_t *at = json_array_get(v, i);
        double n[6];
        for (size_t k = 0; k < 6; k++) n[k] = number_at(r, at, k, "throughput");
        const fkv_stats_point p = {n[0], (int64_t)n[1], (int64_t)n[2], (int64_t)n[3], n[4], (int64_t)n[5]};
        const fkv_stats_point *b = i ? &x->points[i - 1] : &p;
        if (!r->st &&
            (p.seconds < b->seconds || p.records < b->records || p.prompt_tokens < b->prompt_tokens ||
             p.completion_tokens < b->completion_tokens || p.errors < b->errors))
            r->st = fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, "throughput", "falls at its point %zu", i);
        x->points[i] = p;
        x->stats.n_points = (int)i + 1;
    }
}

static void counts(reader *r, fkv_stats *s)
{
    int64_t exit_code = 0, processors = 0, devices = 0;
    whole(r, "records", most, &s->totals.records);
    whole(r, "resumed", most, &s->totals.resumed);
    whole(r, "errors", most, &s->totals.errors);
    whole(r, "prompt_tokens", most, &s->totals.prompt_tokens);
    whole(r, "completion_tokens", most, &s->totals.completion_tokens);
    whole(r, "decode_steps", most, &s->decode_steps);
    whole(r, "slots", most, &s->slots);
    whole(r, "busy_slot_steps", most, &s->busy_slot_steps);
    whole(r, "restarts", most, &s->restarts);
    whole(r, "restarted_tokens", most, &s->restarted_tokens);
    whole(r, "prefill_passes", most, &s->prefill_passes);
    whole(r, "prefill_tokens", most, &s->prefill_tokens);
    whole(r, "kv_bytes", most, &s->kv_bytes);
    whole(r, "peak_rss_bytes", most, &s->peak_rss_bytes);
    whole(r, "exit_code", 255, &exit_code);
    whole(r, "processors", INT32_MAX, &processors);
    whole(r, "devices", INT32_MAX, &devices);
    if (!r->st) r->st = fkv_json_bool_or(r->run, "complete", false, r->path, &s->complete, r->err);
    s->totals.complete = s->complete;
    s->exit_code = (int)exit_code;
    s->processors = (int)processors;
    s->n_devices = (int)devices;
}

static void times(reader *r, fkv_stats_run *x)
{
    fkv_stats *s = &x->stats;
    const reader all = *r;
    const json_t *ranks = list(r, "rank_attention_seconds", FKV_STATS_RUN_RANKS);
    moment(r, "start", &s->start_time);
    moment(r, "end", &s->time);
    s->running = s->time < 0;
    real(r, "balance", 0, &s->balance);
    real(r, "gpu_seconds", 0, &s->gpu_seconds);
    if (!r->st) r->st = fkv_json_f64_or(r->run, "energy_joules", 0, 1e18, -1, r->path, &s->joules, r->err);
    s->n_ranks = (int)json_array_size(ranks);
    for (int i = 0; i < s->n_ranks; i++)
        x->rank_seconds[i] = number_at(r, ranks, (size_t)i, "rank_attention_seconds");
    r->run = json_object_get(all.run, "seconds");
    if (!r->st && !json_is_object(r->run))
        r->st = fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, "seconds", "must be an object");
    for (int i = 0; i < FKV_STAGES; i++) real(r, fkv_stage_name((fkv_stage)i), 0, &s->seconds[i]);
    r->run = all.run;
}

static void read_run(reader *r, fkv_stats_run *x)
{
    fkv_stats *s = &x->stats;
    counts(r, s);
    times(r, x);
    text(r, r->run, "host", x->host, sizeof x->host);
    text(r, r->run, "system", x->system, sizeof x->system);
    text(r, r->run, "backend", x->backend, sizeof x->backend);
    text(r, r->run, "device", x->device, sizeof x->device);
    text(r, json_object_get(r->run, "versions"), "fairkv-batch", x->version, sizeof x->version);
    lengths(r, "prompt_lengths", &x->prompts);
    lengths(r, "answer_lengths", &x->answers);
    throughput(r, x);
    s->host = x->host;
    s->system = x->system;
    s->backend = x->backend;
    s->device = x->device;
    s->rank_attention_seconds = x->rank_seconds;
    s->points = x->points;
    s->prompts = &x->prompts;
    s->answers = &x->answers;
    s->records = -1;
}

fkv_status fkv_stats_run_read(const char *path, fkv_stats_run **run, fkv_err *err)
{
    json_t *root = NULL;
    const char *format = "";
    *run = NULL;
    fkv_status st = fkv_json_load(path, MAX_STATS_BYTES, &root, err);
    if (!st) st = fkv_json_str(root, "format", path, &format, err);
    if (!st && strcmp(format, "fairkv-stats/2") != 0)
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "format",
                         "is \"%.40s\", this build reads \"fairkv-stats/2\"", format);
    reader r = {path, json_object_get(root, "run"), st, err};
    if (!st && !json_is_object(r.run))
        r.st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "run", "must be an object");
    if (!r.st && !(*run = fkv_calloc(1, sizeof **run))) r.st = fkv_fail_memory(err);
    if (!r.st) read_run(&r, *run);
    json_decref(root);
    if (r.st) {
        free(*run);
        *run = NULL;
    }
    return r.st;
}
