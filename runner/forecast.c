/* What a run would be: see forecast.h. */
#include "runner/forecast.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "runner/base/file.h"
#include "runner/base/mem.h"
#include "runner/layout.h"
#include "runner/layout_choice.h"
#include "runner/planning.h"

/* Of the rates that a run would look for, as layout_choice.c does. */
enum { SLOTS_GUESS = 32 };

typedef struct making {
    const fkv_setup *setup;
    const fkv_survey *survey;
    fkv_forecast *f;
    fkv_sizing sizing;
    fkv_constants constants; /* of the plan */
} making;

/* ---- the profile ---- */

/* Profile and layout of an earlier run; false: there is none that fits. */
static fkv_status take_plan(making *m, bool *taken, fkv_err *err)
{
    const fkv_setup *s = m->setup;
    fkv_forecast *f = m->f;
    char *profile = fkv_path_join(s->job->job.output, "profile.json"), *a = NULL, *b = NULL;
    char *plan_json = fkv_path_join(s->job->job.output, "plan.json");
    fkv_plan plan = {0};
    fkv_status st = profile && plan_json ? FKV_OK : fkv_fail_memory(err);
    *taken = false;
    if (st || s->job->job.restart || !fkv_file_exists(profile) || !fkv_file_exists(plan_json)) goto out;
    if ((st = fkv_profile_read(profile, &f->profile, &a, err))) goto out;
    if ((st = fkv_plan_read(plan_json, &plan, &b, err))) goto out;
    if ((st = fkv_layout_read(plan_json, &f->layout, err))) goto out;
    if ((st = fkv_constants_read(plan_json, &m->constants, err))) goto out;
    *taken = f->profile.n_layers == s->config.n_layers && f->profile.n_kv_heads == s->config.n_kv_heads;
    if (s->auto_ranks) fkv_layout_take_ranks(s, plan.n_ranks, &f->layout);
    f->layout.slots = plan.n_slots;
    if (!*taken) fkv_profile_free(&f->profile);
out:
    fkv_plan_free(&plan);
    free(a);
    free(b);
    free(profile);
    free(plan_json);
    return st;
}

static fkv_status take_lengths(making *m, fkv_err *err)
{
    fkv_profile *p = &m->f->profile;
    const fkv_survey *v = m->survey;
    const int64_t limit = fkv_record_parser_largest_limit(m->setup->parser);
    p->prompt_tokens = fkv_calloc((size_t)v->n, sizeof *p->prompt_tokens);
    p->new_tokens = fkv_calloc((size_t)v->n, sizeof *p->new_tokens);
    if (!p->prompt_tokens || !p->new_tokens) return fkv_fail_memory(err);
    p->longest_new = limit > m->setup->limits.max_new ? limit : m->setup->limits.max_new;
    for (int64_t i = 0; i < v->n; i++) {
        p->prompt_tokens[i] = (int32_t)v->records[i].n_kept;
        p->new_tokens[i] = (int32_t)v->records[i].max_new;
        if (v->records[i].max_new > p->longest_new) p->longest_new = v->records[i].max_new;
    }
    p->n_sample = (int)v->n;
    p->n_input = v->n_records;
    p->longest_prompt = v->n ? v->records[v->n - 1].n_tokens : 0;
    p->mean_output = v->n ? fkv_survey_mean_new(v) : (double)m->setup->limits.max_new;
    return FKV_OK;
}

/* Lengths of the survey; budgets as the job says them, even where a run would measure them. */
static fkv_status guess_profile(making *m, fkv_err *err)
{
    const fkv_setup *s = m->setup;
    fkv_profile *p = &m->f->profile;
    fkv_status st = fkv_profile_init(p, s->config.n_layers, s->config.n_kv_heads, err);
    if (!st) st = take_lengths(m, err);
    if (st) return st;
    if (s->job->profile.budgets_file) {
        st = fkv_budget_read_file(s->job->profile.budgets_file, p, err);
    } else {
        p->mean_budget = fkv_planning_budget(s, fkv_survey_mean_kept(m->survey));
        fkv_budget_uniform(p, p->mean_budget);
    }
    fkv_planning_set_windows(&s->config, p);
    fkv_layout_reach(s, p->longest_prompt, p->longest_new, m->sizing.shape.prefill_tile, &m->f->layout);
    return st;
}

/* ---- records and their files ---- */

static void count_records(making *m, const fkv_output_totals *done)
{
    const fkv_job *j = m->setup->job;
    fkv_forecast *f = m->f;
    const int64_t n = m->survey->n_records, size = j->output.records_per_shard;
    f->n_shards = (n + size - 1) / size;
    if (f->n_shards > j->input.part)
        f->n_part_shards = (f->n_shards - j->input.part - 1) / j->input.n_parts + 1;
    f->n_part = f->n_part_shards * size;
    if (f->n_part_shards && (f->n_shards - 1) % j->input.n_parts == j->input.part)
        f->n_part -= f->n_shards * size - n;
    f->n_left = f->n_part > done->records ? f->n_part - done->records : 0;
}

/* Bytes that are free where path lies, or the nearest folder above it that is there. */
static int64_t free_bytes(const char *path)
{
    struct statvfs fs;
    int64_t free_there = -1;
    char *at = strdup(path);
    while (at && free_there < 0) {
        if (!statvfs(at, &fs)) free_there = (int64_t)fs.f_bavail * (int64_t)fs.f_frsize;
        char *up = fkv_path_dir(at);
        const bool top = !up || !strcmp(up, at);
        free(at);
        at = up;
        if (top) break;
    }
    if (at && free_there < 0 && !statvfs(at, &fs)) free_there = (int64_t)fs.f_bavail * (int64_t)fs.f_frsize;
    free(at);
    return free_there;
}

/* The journal has the rows of the shards that are not whole, and is written anew beside itself. */
static void count_bytes(making *m)
{
    const fkv_job *j = m->setup->job;
    const fkv_survey *v = m->survey;
    fkv_forecast *f = m->f;
    double row = 0;
    for (int64_t i = 0; i < v->n; i++) row += (double)v->records[i].row_bytes;
    row = v->n ? row / (double)v->n : 0;
    const int64_t size = j->output.records_per_shard, open = f->n_part < size ? f->n_part : size;
    f->shard_bytes = (int64_t)((double)f->n_part * row);
    f->journal_bytes = (int64_t)(2 * (double)open * row);
    f->free_bytes = free_bytes(j->job.output);
}

/* ---- layout, time and memory ---- */

fkv_status fkv_forecast_choose(const fkv_forecast_job *job, fkv_sizing *sizing, fkv_layout *layout,
                               fkv_outlook *out, fkv_err *err)
{
    const fkv_setup *s = job->setup;
    const fkv_profile *p = job->profile;
    const int64_t n_left = job->n_left;
    fkv_slot_model model;
    fkv_cost cost;
    bool known;
    fkv_layout guess = *layout;
    *out = (fkv_outlook){.seconds = -1};
    double *tokens = fkv_calloc((size_t)s->config.n_layers * (size_t)s->config.n_kv_heads, sizeof *tokens);
    if (!tokens) return fkv_fail_memory(err);
    fkv_cost_tokens(p, tokens);
    if (job->slots_open) guess.slots = n_left > 0 && n_left < SLOTS_GUESS ? (int)n_left : SLOTS_GUESS;
    fkv_status st = fkv_constants_known(s, &guess, p, job->planned, &cost, &known, err);
    fkv_slot_search search = {.setup = s,
                              .profile = p,
                              .sizing = sizing,
                              .cost = &cost,
                              .tokens = tokens,
                              .load = {.n_records = n_left,
                                       .new_tokens = p->new_tokens,
                                       .n_sample = p->n_sample,
                                       .mean_new = p->mean_output}};
    if (!st && job->ranks_open && known) st = fkv_splits_choose(&search, layout, sizing, err);
    if (layout->replicas > 1) search.load.n_records = (n_left + layout->replicas - 1) / layout->replicas;
    if (!st) st = fkv_slots_model(&search, job->slots_open ? 0 : layout->slots, &model, err);
    free(tokens);
    if (st) return st;
    const fkv_slot_choice best = fkv_slots_best(&search, &model);
    const int last = model.curve.n - 1;
    if (job->slots_open) layout->slots = best.slots > 0 ? best.slots : 1;
    out->slots_most = model.at_once[last] < model.curve.at[last].slots ? (int)model.at_once[last]
                                                                       : model.curve.at[last].slots;
    if (known && best.slots > 0 && n_left > 0) out->seconds = 1e-6 * best.us;
    out->origin = cost.origin;
    fkv_sizing_update(s, layout, p, sizing);
    return FKV_OK;
}

static fkv_status choose(making *m, fkv_err *err)
{
    fkv_forecast *f = m->f;
    const fkv_forecast_job job = {.setup = m->setup,
                                  .profile = &f->profile,
                                  .planned = f->planned ? &m->constants : NULL,
                                  .n_left = f->n_left,
                                  .ranks_open = f->ranks_open,
                                  .slots_open = f->slots_open};
    fkv_outlook found;
    const fkv_status st = fkv_forecast_choose(&job, &m->sizing, &f->layout, &found, err);
    f->slots_most = found.slots_most;
    f->origin = found.origin;
    if (m->survey->n > 0) f->seconds = found.seconds;
    return st;
}

static void keep_why(fkv_forecast *f, const fkv_err *why)
{
    snprintf(f->too_little, sizeof f->too_little, "%s", why->message);
}

/* Records of the survey that a run would reject; only where it has no more to choose. */
static fkv_status count_too_large(making *m, fkv_err *err)
{
    fkv_forecast *f = m->f;
    const fkv_config *c = &m->setup->config;
    const fkv_record_shape shape = {c->n_layers, c->n_kv_heads, f->layout.ranks, f->profile.budgets};
    fkv_err why = {0};
    if (f->ranks_open || f->slots_open) return FKV_OK;
    fkv_status st = FKV_OK;
    if (!f->planned) st = fkv_sizing_record_limit(&m->sizing, f->profile.budgets, &f->layout.record, &why);
    if (st == FKV_E_INPUT) keep_why(f, &why);
    if (st == FKV_E_INPUT) return FKV_OK;
    if (st) return fkv_fail(err, st, "%s", why.message);
    for (int64_t i = 0; i < m->survey->n; i++) {
        const fkv_survey_record *r = &m->survey->records[i];
        why = (fkv_err){0};
        if (fkv_record_check(&f->layout.record, &shape, r->n_kept, r->max_new, &why)) f->n_too_large++;
    }
    return FKV_OK;
}

static fkv_status predict_memory(making *m, fkv_err *err)
{
    fkv_forecast *f = m->f;
    const fkv_sizing *z = &m->sizing;
    fkv_memory all;
    fkv_err why = {0};
    fkv_status st = fkv_memory_predict(&z->shape, NULL, f->profile.budgets, &z->lengths, &all, err);
    if (st) return st;
    f->rank = all.rank[all.fullest_rank];
    f->device = all.device[all.fullest_device];
    f->device_bytes = z->limit.bytes;
    if (fkv_memory_check(&all, &z->limit, &z->lengths, &why)) keep_why(f, &why);
    fkv_memory_free(&all);
    return FKV_OK;
}

fkv_status fkv_forecast_make(const fkv_setup *s, const fkv_preflight *found, const fkv_survey *survey,
                             fkv_forecast *f, fkv_err *err)
{
    making m = {.setup = s, .survey = survey, .f = f, .sizing = found->sizing};
    *f = (fkv_forecast){.layout = fkv_setup_layout(s), .seconds = -1};
    fkv_status st = take_plan(&m, &f->planned, err);
    if (!st && !f->planned) st = guess_profile(&m, err);
    if (st) return st;
    f->ranks_open = s->auto_ranks && s->n_devices > 1 && !f->planned;
    f->slots_open = s->auto_slots && !f->planned;
    count_records(&m, &found->output);
    count_bytes(&m);
    fkv_sizing_update(s, &f->layout, &f->profile, &m.sizing);
    if ((st = choose(&m, err))) return st;
    if ((st = count_too_large(&m, err))) return st;
    return predict_memory(&m, err);
}

void fkv_forecast_free(fkv_forecast *f)
{
    fkv_profile_free(&f->profile);
}
