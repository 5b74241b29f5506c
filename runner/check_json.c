/* What check says as JSON: see check_report.h. jobs/FORMATS.md has the fields. */
#include <jansson.h>
#include <stdlib.h>

#include "runner/base/json.h"
#include "runner/check_report.h"

/* Adds value, which is taken; a failure shows at the end, where the object is not whole. */
static void put(json_t *o, const char *key, json_t *value, bool *whole)
{
    if (json_object_set_new(o, key, value)) *whole = false;
}

static void put_int(json_t *o, const char *key, int64_t value, bool *whole)
{
    put(o, key, json_integer(value), whole);
}

static json_t *archives_of(const fkv_survey *v, bool *whole)
{
    json_t *list = json_array();
    for (size_t i = 0; i < v->n_archives; i++) {
        const fkv_survey_archive *a = &v->archives[i];
        json_t *o = json_object();
        put(o, "name", json_string(a->file->name), whole);
        put_int(o, "records", a->n_records, whole);
        put_int(o, "records_read", a->n_read, whole);
        put_int(o, "members", a->n_members, whole);
        put(o, "share_read", json_real(a->share), whole);
        if (json_array_append_new(list, o)) *whole = false;
    }
    return list;
}

static json_t *input_of(const fkv_check_report *r, bool *whole)
{
    const fkv_survey *v = r->survey;
    json_t *o = json_object();
    put_int(o, "records", v->n_records, whole);
    put(o, "exact", json_boolean(v->exact), whole);
    put_int(o, "members", v->n_members, whole);
    put(o, "members_exact", json_boolean(v->all_members), whole);
    put_int(o, "shards", r->forecast->n_shards, whole);
    put_int(o, "part_records", r->forecast->n_part, whole);
    put_int(o, "part_shards", r->forecast->n_part_shards, whole);
    put(o, "archives", archives_of(v, whole), whole);
    return o;
}

static json_t *prompts_of(const fkv_check_report *r, bool *whole)
{
    const fkv_survey *v = r->survey;
    fkv_check_bin bins[FKV_CHECK_BINS];
    const int n = fkv_check_bins(v, bins);
    json_t *o = json_object(), *histogram = json_array(), *errors = json_object();
    for (int i = 0; i < n; i++) {
        json_t *bin = json_object();
        put_int(bin, "up_to", bins[i].up_to, whole);
        put_int(bin, "records", bins[i].n, whole);
        if (json_array_append_new(histogram, bin)) *whole = false;
    }
    for (int i = 0; i < v->errors.n; i++) put_int(errors, v->errors.at[i].code, v->errors.at[i].rows, whole);
    put_int(o, "sampled", v->n + fkv_error_counts_sum(&v->errors), whole);
    put_int(o, "most_tokens", fkv_prompt_limit(&r->setup->limits, r->setup->limits.max_new), whole);
    put_int(o, "longest", v->n ? v->records[v->n - 1].n_tokens : 0, whole);
    put(o, "mean_new_tokens", json_real(fkv_survey_mean_new(v)), whole);
    put(o, "histogram", histogram, whole);
    put_int(o, "cut", v->n_cut, whole);
    put_int(o, "too_large", r->forecast->n_too_large, whole);
    put(o, "errors", errors, whole);
    return o;
}

static json_t *model_of(const fkv_setup *s, bool *whole)
{
    const fkv_config *c = &s->config;
    json_t *o = json_object();
    put(o, "path", json_string(s->job->model.path), whole);
    put_int(o, "layers", c->n_layers, whole);
    put_int(o, "heads", c->n_heads, whole);
    put_int(o, "kv_heads", c->n_kv_heads, whole);
    put_int(o, "head_dim", c->head_dim, whole);
    put_int(o, "hidden", c->hidden, whole);
    put_int(o, "vocabulary", c->vocab, whole);
    put(o, "held_in_fp8", json_boolean(fkv_job_is_fp8(s->job)), whole);
    put(o, "fp8", json_boolean(c->quant.grains && !fkv_job_is_dummy(s->job)), whole);
    return o;
}

static json_t *layout_of(const fkv_check_report *r, bool *whole)
{
    const fkv_forecast *f = r->forecast;
    json_t *o = json_object();
    put(o, "backend", json_string(r->setup->backend->name), whole);
    put(o, "device", json_string(r->found->sizing.device), whole);
    put_int(o, "replicas", f->layout.replicas, whole);
    put(o, "ranks", f->ranks_open ? json_null() : json_integer(f->layout.ranks), whole);
    put_int(o, "devices", f->layout.devices, whole);
    put(o, "slots", f->slots_open ? json_null() : json_integer(f->layout.slots), whole);
    put_int(o, "slots_most", f->slots_most, whole);
    put_int(o, "threads", fkv_setup_threads(r->setup), whole);
    put(o, "planned", json_boolean(f->planned), whole);
    return o;
}

static json_t *memory_of(const fkv_forecast *f, bool *whole)
{
    json_t *o = json_object();
    put_int(o, "slots", f->layout.slots, whole);
    put_int(o, "rank_weight_bytes", f->rank.weight_bytes, whole);
    put_int(o, "rank_kv_bytes", f->rank.page_bytes, whole);
    put_int(o, "device_bytes", f->device.total_bytes, whole);
    put_int(o, "device_free_bytes", f->device_bytes, whole);
    put(o, "warning", f->too_little[0] ? json_string(f->too_little) : json_null(), whole);
    return o;
}

static json_t *disk_of(const fkv_forecast *f, bool *whole)
{
    json_t *o = json_object();
    put_int(o, "rows_bytes", f->shard_bytes, whole);
    put_int(o, "journal_bytes", f->journal_bytes, whole);
    put(o, "free_bytes", f->free_bytes < 0 ? json_null() : json_integer(f->free_bytes), whole);
    return o;
}

static json_t *output_of(const fkv_output_totals *t, bool *whole)
{
    json_t *o = json_object();
    put_int(o, "records", t->records, whole);
    put_int(o, "errors", t->errors, whole);
    put(o, "complete", json_boolean(t->complete), whole);
    return o;
}

static void put_forecast(json_t *o, const fkv_check_report *r, bool *whole)
{
    const fkv_forecast *f = r->forecast;
    put(o, "input", input_of(r, whole), whole);
    put(o, "prompts", prompts_of(r, whole), whole);
    put(o, "model", model_of(r->setup, whole), whole);
    put(o, "layout", layout_of(r, whole), whole);
    put(o, "memory", memory_of(f, whole), whole);
    put(o, "disk", disk_of(f, whole), whole);
    put(o, "seconds", f->seconds >= 0 ? json_real(f->seconds) : json_null(), whole);
    put(o, "seconds_by", f->seconds >= 0 ? json_string(fkv_cost_origin_name(f->origin)) : json_null(), whole);
}

fkv_status fkv_check_json(const fkv_check_report *r, FILE *out, fkv_err *err)
{
    fkv_buf ini = {0};
    bool whole = true;
    json_t *o = json_object();
    char *text = NULL;
    fkv_status st = fkv_job_write_ini(r->setup->job, &ini, err);
    if (!st) {
        put(o, "format", json_string("fairkv-check/1"), &whole);
        put(o, "job_ini", json_string(ini.data), &whole);
        if (r->survey) put_forecast(o, r, &whole);
        put(o, "output", output_of(&r->found->output, &whole), &whole);
        text = whole ? fkv_json_dump(o, JSON_INDENT(1)) : NULL;
        if (!text) st = fkv_fail_memory(err);
    }
    if (!st) fprintf(out, "%s\n", text);
    free(text);
    json_decref(o);
    fkv_buf_free(&ini);
    return st;
}
