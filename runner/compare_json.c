/* compare.json: see compare.h; jobs/FORMATS.md has the fields. Numbers are written with so many digits that
 * the same comparison gives the same bytes. */
#include <string.h>

#include "jobs/row.h"
#include "runner/base/json.h"
#include "runner/compare_folder.h"

#define put fkv_buf_printf

static fkv_status put_text(fkv_buf *b, const char *before, const char *text, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(b, before, err);
    if (!st) st = text ? fkv_row_put_text(b, text, strlen(text), err) : fkv_buf_puts(b, "null", err);
    return st;
}

static fkv_status put_job(const fkv_comparison *c, fkv_buf *b, fkv_err *err)
{
    const fkv_job *j = c->setup->job;
    const fkv_layout *l = &c->layout;
    fkv_status st = put_text(b, "{\"format\":\"fairkv-compare/1\",\"version\":", FKV_VERSION, err);
    if (!st) st = put_text(b, ",\n\"job\":", j->job.name, err);
    if (!st) st = put_text(b, ",\"model\":", j->model.path, err);
    if (!st) st = put(b, err, ",\"seed\":%llu", (unsigned long long)j->job.seed);
    if (!st) st = put_text(b, ",\"date\":", l->date[0] ? l->date : NULL, err);
    if (!st) st = put_text(b, ",\n\"backend\":", c->setup->backend->name, err);
    if (!st) st = put_text(b, ",\"device\":", c->device, err);
    if (!st) st = put_text(b, ",\"numerics\":", c->numerics, err);
    if (!st) st = put(b, err, ",\"ranks\":%d,\"slots\":%d", l->ranks, l->slots);
    if (!st)
        st = put(b, err,
                 ",\n\"input_records\":%lld,\"left_out\":%lld,\"sample\":%lld,\"mean_prompt_tokens\":%.6f,"
                 "\"records\":%lld,\n\"asked_equal\":%.6g,\"confidence\":%.6g",
                 (long long)c->sample.n_input, (long long)c->sample.n_left_out, (long long)c->sample.n,
                 c->mean_prompt, (long long)c->records.n, c->options.equal, FKV_COMPARE_CONFIDENCE);
    return st;
}

static fkv_status put_errors(const fkv_error_counts *errors, fkv_buf *b, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(b, ",\"errors\":{", err);
    for (int i = 0; !st && i < errors->n; i++)
        st = put(b, err, "%s\"%s\":%lld", i ? "," : "", errors->at[i].code, (long long)errors->at[i].rows);
    return st ? st : fkv_buf_puts(b, "}", err);
}

/* How the answers differ from the whole cache's: nothing of those themselves. */
static fkv_status put_equal(const fkv_compare_setting *s, fkv_buf *b, fkv_err *err)
{
    static const char *const verdicts[] = {[FKV_VERDICT_OPEN] = "open",
                                           [FKV_VERDICT_ENOUGH] = "enough",
                                           [FKV_VERDICT_TOO_LITTLE] = "too little"};
    const fkv_compare_counts *n = &s->counts;
    fkv_status st = put(b, err,
                        "\"equal\":%lld,\"equal_share\":%.6f,\"equal_interval\":[%.6f,%.6f],"
                        "\"verdict\":\"%s\",\"records_to_settle\":",
                        (long long)n->n_equal, fkv_compare_share(n->n_equal, n->n), s->interval.low,
                        s->interval.high, verdicts[s->verdict]);
    if (!st && s->to_settle) st = put(b, err, "%lld", (long long)s->to_settle);
    if (!st && !s->to_settle) st = fkv_buf_puts(b, "null", err);
    if (st || n->n_equal == n->n) return st ? st : fkv_buf_puts(b, ",\n \"first_difference\":null", err);
    return put(b, err, ",\n \"first_difference\":{\"mean\":%.6f,\"median\":%.1f}", n->first_mean,
               n->first_median);
}

static fkv_status put_counts(const fkv_compare_setting *s, fkv_buf *b, fkv_err *err)
{
    const fkv_compare_counts *n = &s->counts;
    fkv_status st = put(b, err, ",\n \"compared\":%lld,", (long long)n->n);
    if (!st && s->scorer) st = put_equal(s, b, err);
    if (!st && !s->scorer)
        st = fkv_buf_puts(b,
                          "\"equal\":null,\"equal_share\":null,\"equal_interval\":null,\"verdict\":null,"
                          "\"records_to_settle\":null,\n \"first_difference\":null",
                          err);
    if (!st)
        st = put(b, err,
                 ",\"new_tokens\":{\"mean\":%.6f,\"whole_mean\":%.6f,\"longer\":%lld,\"shorter\":%lld,"
                 "\"at_limit\":%lld,\"whole_at_limit\":%lld}",
                 n->tokens, n->whole_tokens, (long long)n->longer, (long long)n->shorter,
                 (long long)n->at_limit, (long long)n->whole_at_limit);
    if (!st && !n->n_known) return fkv_buf_puts(b, ",\n \"right\":null", err);
    if (!st)
        st = put(b, err,
                 ",\n \"right\":{\"known\":%lld,\"exact\":%lld,\"whole_exact\":%lld,\"contains\":%lld,"
                 "\"whole_contains\":%lld}",
                 (long long)n->n_known, (long long)n->exact, (long long)n->whole_exact,
                 (long long)n->contains, (long long)n->whole_contains);
    return st;
}

static fkv_status put_setting(const fkv_comparison *c, const fkv_compare_setting *s, fkv_buf *b, fkv_err *err)
{
    fkv_status st = put_text(b, "{\"name\":", s->name, err);
    if (!st) st = put_text(b, ",\"scorer\":", s->scorer, err);
    if (!st) st = put_text(b, ",\"budget\":", s->budget, err);
    if (!st && s->scorer) st = put(b, err, ",\"budget_tokens\":%lld", (long long)s->tokens);
    if (!st && !s->scorer) st = fkv_buf_puts(b, ",\"budget_tokens\":null", err);
    if (!st)
        st = put(b, err, ",\"kept_tokens\":%.6f,\"answered\":%lld", s->counts.kept,
                 (long long)s->counts.n_answered);
    if (!st) st = put_errors(&s->errors, b, err);
    if (!st) st = put_counts(s, b, err);
    if (!st)
        st = put(b, err, ",\n \"slot_bytes\":%lld,\"forecast\":{\"slots_fit\":%lld,\"slots\":%d,\"seconds\":",
                 (long long)s->slot_bytes, (long long)s->slots_fit, s->slots);
    if (!st && s->seconds >= 0) st = put(b, err, "%.6g", s->seconds);
    if (!st && s->seconds < 0) st = fkv_buf_puts(b, "null", err);
    if (!st) st = put(b, err, ",\"rates\":\"%s\"}", fkv_cost_origin_name(s->origin));
    if (!st && c->has_longbench)
        return put(b, err, ",\"folder\":\"%s/%s\"}", FKV_COMPARE_PREDICTIONS, s->name);
    return st ? st : fkv_buf_puts(b, ",\"folder\":null}", err);
}

/* A record and what became of it in every setting. */
static fkv_status put_record(const fkv_comparison *c, int64_t i, fkv_buf *b, fkv_err *err)
{
    const fkv_sample_record *r = &c->records.records[i];
    const fkv_record *record = r->record;
    fkv_status st = put(b, err, "{\"record\":%lld,\"id\":", (long long)r->ordinal);
    if (!st)
        st = record->id_json.len ? fkv_buf_append(b, record->id_json.data, record->id_json.len, err)
                                 : fkv_buf_puts(b, "null", err);
    if (!st) st = put_text(b, ",\"archive\":", record->archive, err);
    if (!st) st = put_text(b, ",\"member\":", record->member, err);
    if (!st)
        st = put(b, err, ",\"line\":%lld,\"prompt_tokens\":%lld", (long long)record->line,
                 (long long)r->ids.len);
    for (int list = 0; !st && list < 2; list++) {
        st = fkv_buf_puts(b, list ? "],\"first_difference\":[" : ",\"new_tokens\":[", err);
        for (int k = 0; !st && k < c->n_settings; k++) {
            const fkv_compare_cell *cell = &fkv_compare_cells(c, k)[i];
            const int32_t value = list ? cell->first : cell->tokens;
            if (!st && k) st = fkv_buf_puts(b, ",", err);
            if (!st) st = value < 0 ? fkv_buf_puts(b, "null", err) : put(b, err, "%d", (int)value);
        }
    }
    return st ? st : fkv_buf_puts(b, "]}", err);
}

fkv_status fkv_compare_json(const fkv_comparison *c, fkv_buf *b, fkv_err *err)
{
    char says[1024];
    fkv_status st = put_job(c, b, err);
    fkv_compare_says(c, says, sizeof says);
    if (!st) st = put_text(b, ",\n\"choice\":", c->choice ? c->settings[c->choice].name : NULL, err);
    if (!st) st = put_text(b, ",\"says\":", says, err);
    if (!st) st = fkv_buf_puts(b, ",\n\"settings\":[\n", err);
    for (int k = 0; !st && k < c->n_settings; k++) {
        if (k) st = fkv_buf_puts(b, ",\n", err);
        if (!st) st = put_setting(c, &c->settings[k], b, err);
    }
    if (!st) st = fkv_buf_puts(b, "],\n\"answers\":[\n", err);
    for (int64_t i = 0; !st && i < c->records.n; i++) {
        if (i) st = fkv_buf_puts(b, ",\n", err);
        if (!st) st = put_record(c, i, b, err);
    }
    return st ? st : fkv_buf_puts(b, "]}\n", err);
}
