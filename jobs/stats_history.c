/* What an earlier stats.json says of its runs: see stats.h. Nothing in it is trusted: a count that can't be
 * is as good as no file. */
#include <string.h>

#include "jobs/stats.h"
#include "runner/base/file.h"
#include "runner/base/json.h"

enum { MAX_STATS_BYTES = 1 << 20 };
static const int64_t most = (int64_t)1 << 53;
static const double most_seconds = 1e12;

static const json_t *object_of(const json_t *o, const char *key, const char *path, fkv_err *err)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_object(v)) fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "must be an object");
    return json_is_object(v) ? v : NULL;
}

static fkv_status read_errors(const json_t *job, const char *path, fkv_error_counts *errors, fkv_err *err)
{
    const json_t *o = object_of(job, "errors", path, err), *rows;
    const char *code;
    if (!o) return FKV_E_INPUT;
    json_object_foreach((json_t *)o, code, rows)
    {
        int64_t n;
        if (!fkv_error_code_is_one(code, strlen(code)))
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, "errors", "holds what is no code");
        const fkv_status st = fkv_json_i64(o, code, 0, most, path, &n, err);
        if (st) return st;
        if (n > most - fkv_error_counts_sum(errors))
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, "errors", "are too many");
        fkv_error_counts_add(errors, code, strlen(code), n);
    }
    return FKV_OK;
}

static fkv_status read_seconds(const json_t *job, const char *path, double seconds[FKV_STAGES], fkv_err *err)
{
    const json_t *o = object_of(job, "seconds", path, err);
    fkv_status st = o ? FKV_OK : FKV_E_INPUT;
    for (int i = 0; !st && i < FKV_STAGES; i++)
        st = fkv_json_f64_or(o, fkv_stage_name((fkv_stage)i), 0, most_seconds, 0, path, &seconds[i], err);
    return st;
}

static fkv_status read_job(const json_t *job, const char *path, fkv_stats_history *h, fkv_err *err)
{
    fkv_stats_sums *s = &h->sums;
    fkv_status st = fkv_json_i64(job, "done", 0, most, path, &h->done, err);
    if (!st) st = fkv_json_i64(job, "runs", 0, most, path, &s->runs, err);
    if (!st) st = fkv_json_i64(job, "prompt_tokens", 0, most, path, &s->prompt_tokens, err);
    if (!st) st = fkv_json_i64(job, "completion_tokens", 0, most, path, &s->completion_tokens, err);
    if (!st) st = fkv_json_f64_or(job, "gpu_seconds", 0, most_seconds, 0, path, &s->gpu_seconds, err);
    if (!st) st = fkv_json_f64_or(job, "energy_joules", 0, 1e18, 0, path, &s->joules, err);
    if (!st) st = fkv_json_i64_or(job, "energy_runs", 0, s->runs, 0, path, &s->energy_runs, err);
    if (!st) st = fkv_json_i64_or(job, "last_success", 0, most, 0, path, &s->last_success, err);
    if (!st) st = read_seconds(job, path, s->seconds, err);
    return st ? st : read_errors(job, path, &h->errors, err);
}

fkv_status fkv_stats_read(const char *path, fkv_stats_history *history, fkv_err *err)
{
    json_t *root = NULL;
    const char *format;
    *history = (fkv_stats_history){0};
    if (!fkv_file_exists(path)) return FKV_OK;
    fkv_status st = fkv_json_load(path, MAX_STATS_BYTES, &root, err);
    if (!st) st = fkv_json_str(root, "format", path, &format, err);
    if (!st && strcmp(format, "fairkv-stats/2") != 0)
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "format",
                         "is \"%.40s\", this build reads \"fairkv-stats/2\"", format);
    const json_t *job = st ? NULL : object_of(root, "job", path, err);
    if (!st) st = job ? read_job(job, path, history, err) : FKV_E_INPUT;
    if (st) *history = (fkv_stats_history){0};
    json_decref(root);
    return st;
}
