/* How far a layout's buffers reach, its splits, its part of plan.json: see layout.h. */
#include "runner/layout.h"

#include "runner/base/json.h"
#include "runner/tally.h"

enum { MAX_PLAN_BYTES = 64 << 20, MAX_TOKENS = 1 << 30 };
static const int64_t most_pages = (int64_t)1 << 50;

/* What is expected, in whole parts, or all that there can be. */
static int64_t reach(int64_t expected, int64_t part, int64_t most)
{
    const int64_t whole = (expected + part - 1) / part * part;
    return expected > 0 && whole < most ? whole : most;
}

void fkv_layout_reach(const fkv_setup *s, int64_t prompt, int64_t new_tokens, int tile, fkv_layout *l)
{
    const int64_t positions = s->config.max_positions;
    l->max_prompt = reach(prompt, tile, fkv_prompt_longest(&s->limits));
    l->max_tokens = reach(new_tokens > 0 ? l->max_prompt + new_tokens : 0, FKV_PAGE_TOKENS, positions);
}

bool fkv_layout_split(const fkv_setup *s, int ranks, fkv_layout *l)
{
    const int n = s->auto_replicas ? s->n_devices : fkv_setup_devices_each(s);
    if (ranks < 1 || ranks > s->config.n_kv_heads || n % ranks) return false;
    l->ranks = l->devices = ranks;
    l->replicas = s->auto_replicas ? n / ranks : s->n_replicas;
    return true;
}

void fkv_layout_take_ranks(const fkv_setup *s, int ranks, fkv_layout *l)
{
    const int n = s->auto_replicas ? s->n_devices : fkv_setup_devices_each(s);
    l->ranks = ranks;
    l->devices = n < ranks ? n : ranks;
    l->replicas = s->auto_replicas ? n / l->devices : s->n_replicas;
}

fkv_status fkv_layout_put(const fkv_layout *l, fkv_buf *out, fkv_err *err)
{
    const bool dated = l->date[0] != '\0';
    return fkv_buf_printf(out, err,
                          "\"layout\":{\"ranks\":%d,\"devices\":%d,\"slots\":%d,%s%s%s"
                          "\n \"max_prompt\":%lld,\"max_tokens\":%lld,"
                          "\n \"largest_record\":{\"positions\":%lld,\"prompt\":%lld,\"pages\":%lld}}",
                          l->ranks, l->devices, l->slots, dated ? "\"date\":\"" : "", l->date,
                          dated ? "\"," : "", (long long)l->max_prompt, (long long)l->max_tokens,
                          (long long)l->record.positions, (long long)l->record.prompt,
                          (long long)l->record.pages);
}

/* The object o[key]. */
static fkv_status object_of(const json_t *o, const char *key, const char *path, const json_t **out,
                            fkv_err *err)
{
    *out = json_object_get(o, key);
    if (json_is_object(*out)) return FKV_OK;
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, *out ? "must be an object" : "is missing");
}

/* The day that the first run began with; a plan for a template that asks for none has none. */
static fkv_status read_date(const json_t *layout, const char *path, fkv_layout *l, fkv_err *err)
{
    const char *date = NULL;
    fkv_err why = {0};
    fkv_status st = fkv_json_str_or_null(layout, "date", path, &date, err);
    if (st || !date) return st;
    if (fkv_template_check_date(date, &why))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "date", "%s", why.message);
    snprintf(l->date, sizeof l->date, "%s", date);
    return FKV_OK;
}

fkv_status fkv_layout_read(const char *path, fkv_layout *l, fkv_err *err)
{
    json_t *root = NULL;
    const json_t *layout, *record;
    fkv_record_limit *r = &l->record;
    fkv_status st = fkv_json_load(path, MAX_PLAN_BYTES, &root, err);
    if (!st) st = object_of(root, "layout", path, &layout, err);
    if (!st) st = object_of(layout, "largest_record", path, &record, err);
    if (!st) st = read_date(layout, path, l, err);
    if (!st) st = fkv_json_i64(layout, "max_prompt", 1, MAX_TOKENS, path, &l->max_prompt, err);
    if (!st) st = fkv_json_i64(layout, "max_tokens", l->max_prompt, MAX_TOKENS, path, &l->max_tokens, err);
    if (!st) st = fkv_json_i64(record, "positions", 1, MAX_TOKENS, path, &r->positions, err);
    if (!st) st = fkv_json_i64(record, "prompt", 1, MAX_TOKENS, path, &r->prompt, err);
    if (!st) st = fkv_json_i64(record, "pages", 1, most_pages, path, &r->pages, err);
    json_decref(root);
    return st;
}
