/* A comparison from its records to its counts: see compare.h. */
#include "runner/compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/row.h"
#include "runner/answer.h"
#include "runner/base/file.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"
#include "runner/forecast.h"
#include "runner/hold.h"
#include "runner/interrupt.h"
#include "runner/layout.h"
#include "runner/tally.h"
#include "runner/trial.h"

/* Slots where the job leaves them open, and what rates are known for. */
enum { SLOTS = 32 };

typedef struct comparing {
    fkv_comparison *c;
    fkv_setup asked;        /* the user's job, on engines that can be set to every scorer */
    const fkv_setup *setup; /* that */
    fkv_sizing sizing;      /* of the comparison's layout */
    fkv_replicas *replicas;
    fkv_trial_answer *whole, *answers; /* [records.n] */
    const char *folder;
    fkv_export_rows *rows;
    fkv_buf row;
    int64_t before; /* answers of the settings that are done with */
} comparing;

const fkv_compare_cell *fkv_compare_cells(const fkv_comparison *c, int i)
{
    return c->cells + (size_t)i * (size_t)c->records.n;
}

double fkv_compare_share(int64_t k, int64_t n)
{
    return n ? (double)k / (double)n : 0;
}

/* ---- records and layout ---- */

static fkv_status take_records(comparing *a, fkv_err *err)
{
    fkv_comparison *c = a->c;
    const int64_t wanted = c->options.n_records;
    double sum = 0;
    c->layout = fkv_setup_layout(a->setup);
    fkv_tally_stage(a->setup->tally, FKV_STAGE_SAMPLE);
    const fkv_status st = fkv_sample_take_more(a->setup, &c->layout, wanted, &c->sample, &c->records, err);
    if (st) return st;
    if (c->sample.n_input == 0) return fkv_setup_no_record(a->setup, "", err);
    if (c->sample.n == 0)
        return fkv_fail_at(err, FKV_E_INPUT, a->setup->job->path, 0, "input.archives",
                           "have no record that can be answered: all %lld would be error rows",
                           (long long)c->sample.n_input);
    if (c->records.n == 0)
        return fkv_fail_at(err, FKV_E_INPUT, a->setup->job->path, 0, "profile.sample",
                           "takes all of the %lld records that can be answered, and none is left to compare: "
                           "a smaller one leaves some",
                           (long long)c->sample.n);
    if (c->records.n < wanted)
        fkv_log("%lld records are compared: that is all there are beside the profile's sample of %lld",
                (long long)c->records.n, (long long)c->sample.n);
    for (int64_t i = 0; i < c->sample.n; i++) sum += (double)c->sample.records[i].ids.len;
    c->mean_prompt = c->sample.n ? sum / (double)c->sample.n : 0;
    for (int64_t i = 0; i < c->records.n; i++)
        c->has_longbench = c->has_longbench || c->records.records[i].record->format == FKV_FORMAT_LONGBENCH;
    return FKV_OK;
}

/* Buffers for all that is measured and answered. */
static void reach_records(comparing *a)
{
    fkv_comparison *c = a->c;
    int64_t prompt = 1, new_tokens = 1;
    const fkv_sample *lists[] = {&c->sample, &c->records};
    for (int k = 0; k < 2; k++) {
        for (int64_t i = 0; i < lists[k]->n; i++) {
            const fkv_sample_record *r = &lists[k]->records[i];
            prompt = (int64_t)r->ids.len > prompt ? (int64_t)r->ids.len : prompt;
            new_tokens = r->max_new > new_tokens ? r->max_new : new_tokens;
        }
    }
    fkv_layout_reach(a->setup, prompt, new_tokens, a->sizing.shape.prefill_tile, &c->layout);
}

/* Slots that the job leaves open: as many as are worth it and can be filled, and the device can have. */
static int open_slots(const comparing *a, const fkv_layout *l)
{
    const fkv_backend *b = a->setup->backend;
    const int64_t share = (a->c->records.n + l->replicas - 1) / l->replicas;
    int slots = a->sizing.worth_slots < SLOTS ? a->sizing.worth_slots : SLOTS;
    fkv_memory_shape shape = a->sizing.shape;
    if (share < slots) slots = (int)share;
    for (; b->supports && slots > 1; slots /= 2) {
        fkv_err why = {0};
        shape.n_slots = slots;
        if (!fkv_memory_supported(&shape, 0, b, &why)) break;
    }
    return slots > 0 ? slots : 1;
}

static fkv_status choose_layout(comparing *a, const fkv_preflight *found, fkv_err *err)
{
    fkv_comparison *c = a->c;
    const fkv_profile none = {0};
    fkv_planning p = {.sizing = found->sizing};
    a->sizing = found->sizing;
    reach_records(a);
    p.layout = c->layout;
    fkv_sizing_update(a->setup, &p.layout, &none, &p.sizing);
    const fkv_status st = fkv_planning_fewest_ranks(a->setup, &p, err);
    if (st) return st;
    c->layout = p.layout;
    a->sizing = p.sizing;
    if (a->setup->auto_slots) c->layout.slots = open_slots(a, &c->layout);
    fkv_sizing_update(a->setup, &c->layout, &none, &a->sizing);
    return FKV_OK;
}

/* ---- what the whole job would take ---- */

static fkv_status forecast(comparing *a, fkv_compare_setting *s, const fkv_profile *profile, fkv_err *err)
{
    const fkv_setup *setup = &s->setup;
    const int64_t mib = setup->job->engine.kv_mib;
    fkv_sizing z = fkv_sizing_steady(&a->sizing);
    fkv_layout layout = fkv_setup_layout(setup);
    fkv_constants kept;
    fkv_outlook out;
    const fkv_forecast_job job = {.setup = setup,
                                  .profile = profile,
                                  .planned = &kept,
                                  .n_left = profile->n_input,
                                  .ranks_open = setup->auto_ranks && setup->n_devices > 1,
                                  .slots_open = setup->auto_slots};
    fkv_layout_reach(setup, profile->longest_prompt, profile->longest_new, z.shape.prefill_tile, &layout);
    fkv_layout guess = layout;
    if (job.slots_open) guess.slots = profile->n_input < SLOTS ? (int)profile->n_input : SLOTS;
    fkv_sizing_update(setup, &layout, profile, &z);
    fkv_tally_stage(setup->tally, FKV_STAGE_CALIBRATE);
    fkv_status st = fkv_constants_kept(setup, &guess, profile, &kept, err);
    const bool measured = kept.cost.origin != FKV_COST_STATED;
    fkv_forecast_job known = job;
    if (!measured) known.planned = NULL;
    if (!st) st = fkv_forecast_choose(&known, &z, &layout, &out, err);
    if (!st) st = fkv_sizing_slot_bytes(&z, profile->budgets, &s->slot_bytes, err);
    int fit = 0;
    if (!st) st = fkv_sizing_slots(&z, NULL, profile->budgets, &fit, err);
    if (st) return st;
    const int64_t arenas = layout.ranks * (mib << 20); /* engine.kv_memory is a rank's */
    s->slots_fit = fit;
    if (mib && s->slot_bytes > 0 && arenas / s->slot_bytes < fit) s->slots_fit = arenas / s->slot_bytes;
    s->slots = layout.slots;
    s->seconds = out.seconds;
    s->origin = out.origin;
    return FKV_OK;
}

/* ---- answers ---- */

static void answered(void *ctx, int64_t n)
{
    const comparing *a = ctx;
    const fkv_comparison *c = a->c;
    fkv_tally_count(a->setup->tally, a->before + n, c->n_settings * c->records.n);
    fkv_hold("compare", a->before + n, NULL, NULL);
}

typedef struct loading {
    const comparing *a;
    const fkv_planning *p;
} loading;

static fkv_status set_plan(void *ctx, int replica, fkv_engine *engine, fkv_err *err)
{
    const loading *l = ctx;
    const fkv_planning *p = l->p;
    const int64_t mib = l->a->setup->job->engine.kv_mib;
    const fkv_engine_kv_limits limits = {
        .record = p->layout.record,
        .arena_pages = mib ? (mib << 20) / fkv_memory_page_bytes(&p->sizing.shape) + 1 : 0};
    (void)replica;
    return fkv_engine_set_plan(engine, l->a->setup->weights, p->profile.budgets, &p->plan, &limits, err);
}

static fkv_status clear_plan(void *ctx, int replica, fkv_engine *engine, fkv_err *err)
{
    (void)ctx;
    (void)replica;
    (void)err;
    fkv_engine_clear_plan(engine);
    return FKV_OK;
}

/* Every head at home: no plan changes an answer. */
static fkv_status plan_at_home(const comparing *a, fkv_planning *p, fkv_err *err)
{
    const fkv_setup *s = a->setup;
    const fkv_layout *l = &p->layout;
    double *tokens = fkv_calloc((size_t)s->config.n_layers * (size_t)s->config.n_kv_heads, sizeof *tokens);
    if (!tokens) return fkv_fail_memory(err);
    fkv_constants_stated(s, l, &p->constants);
    fkv_cost_tokens(&p->profile, tokens);
    const fkv_plan_problem problem = fkv_setup_plan_problem(s, l->ranks, l->slots, tokens, &p->constants.cost,
                                                            p->constants.collectives_us);
    fkv_status st = fkv_sizing_record_limit(&p->sizing, p->profile.budgets, &p->layout.record, err);
    if (!st) st = fkv_plan_solve(&problem, FKV_PLAN_STANDARD, &p->plan, err);
    if (!st) st = fkv_sizing_check_plan(&p->sizing, &p->plan, p->profile.budgets, err);
    free(tokens);
    return st;
}

static fkv_status answer(comparing *a, fkv_planning *p, fkv_trial_answer *answers, fkv_err *err)
{
    loading l = {a, p};
    const fkv_replica_work setting = {&l, set_plan, NULL}, clearing = {NULL, clear_plan, NULL};
    fkv_err ignored = {0};
    fkv_status st = plan_at_home(a, p, err);
    if (st) return st;
    fkv_tally_stage(a->setup->tally, FKV_STAGE_OTHER);
    st = fkv_replicas_run(a->replicas, &setting, err);
    if (!st) st = fkv_replicas_check_alike(a->replicas, err);
    if (!st) st = fkv_trial_run(a->setup, &a->c->records, a->replicas, answered, a, answers, err);
    if (!st) fkv_engine_numerics(fkv_replicas_first(a->replicas), a->c->numerics, sizeof a->c->numerics);
    fkv_replicas_run(a->replicas, &clearing, &ignored);
    a->before += a->c->records.n;
    return st ? st : ignored.status ? fkv_fail(err, ignored.status, "%s", ignored.message) : FKV_OK;
}

/* ---- counts ---- */

/* The row that a run would have written, for eval.py. */
static fkv_status export_row(comparing *a, const fkv_sample_record *r, const fkv_answer *answer, fkv_err *err)
{
    if (r->record->format != FKV_FORMAT_LONGBENCH || !r->record->dataset.len) return FKV_OK;
    fkv_buf_clear(&a->row);
    const fkv_status st = fkv_row_write(r->record, answer, false, &a->row, err);
    return st ? st : fkv_export_rows_add(a->rows, a->row.data, a->row.len, err);
}

static fkv_status fill_cell(comparing *a, fkv_answer_maker *maker, int64_t i, const fkv_profile *profile,
                            const fkv_trial_answer *answer, fkv_compare_cell *cell, fkv_err *err)
{
    const fkv_sample_record *r = &a->c->records.records[i];
    const fkv_answer_ends ends = {fkv_sampling_of(a->setup, r->record), fkv_stops_of(a->setup, r->record)};
    const int64_t n_prompt = (int64_t)r->ids.len;
    fkv_answer row = {.prompt_tokens = n_prompt,
                      .completion_tokens = (int64_t)answer->ids.len,
                      .truncated_tokens = r->truncated,
                      .kept_tokens = fkv_planning_kept_tokens(&a->setup->config, profile, n_prompt),
                      .ids = answer->ids.data};
    bool stopped;
    fkv_status st = fkv_answer_text(maker, &ends, answer->ids.data, answer->ids.len, &row.text, &row.n_text,
                                    &stopped, err);
    if (st) return st;
    row.finish_reason = stopped || !answer->at_limit ? "stop" : "length";
    cell->tokens = (int32_t)answer->ids.len;
    cell->kept = (int32_t)row.kept_tokens;
    cell->at_limit = answer->at_limit && !stopped;
    cell->first = a->whole[i].code[0] ? -1 : fkv_first_difference(&answer->ids, &a->whole[i].ids);
    st = fkv_compare_right(r->record, row.text, row.n_text, &cell->right, err);
    return st ? st : export_row(a, r, &row, err);
}

static fkv_status count(comparing *a, int k, const fkv_profile *profile, const fkv_trial_answer *answers,
                        fkv_err *err)
{
    fkv_comparison *c = a->c;
    fkv_compare_setting *s = &c->settings[k];
    fkv_compare_cell *cells = c->cells + (size_t)k * (size_t)c->records.n;
    const int64_t n = c->records.n;
    fkv_answer_maker maker;
    int32_t *work = fkv_calloc((size_t)n, sizeof *work);
    char *folder = fkv_path_join(a->folder, s->name);
    fkv_status st = work && folder ? FKV_OK : fkv_fail_memory(err);
    if (!st) st = fkv_export_rows_into(a->rows, folder, a->setup->job->job.name, err);
    fkv_answer_maker_open(&maker, a->setup);
    for (int64_t i = 0; !st && i < n; i++) {
        const char *code = answers[i].code;
        cells[i] = (fkv_compare_cell){.tokens = -1, .first = -1};
        if (*code) fkv_error_counts_add(&s->errors, code, strlen(code), 1);
        if (*code) continue;
        st = fill_cell(a, &maker, i, profile, &answers[i], &cells[i], err);
    }
    if (!st) {
        fkv_compare_count(c->cells, cells, n, work, &s->counts);
        s->interval = fkv_binomial_interval(s->counts.n_equal, s->counts.n, FKV_COMPARE_CONFIDENCE);
        s->verdict = fkv_binomial_verdict(s->interval, c->options.equal);
        s->to_settle =
            fkv_binomial_to_settle(s->counts.n_equal, s->counts.n, FKV_COMPARE_CONFIDENCE, c->options.equal);
    }
    fkv_answer_maker_close(&maker);
    free(folder);
    free(work);
    return st;
}

/* ---- settings ---- */

static void log_setting(const fkv_comparison *c, const fkv_compare_setting *s)
{
    const int64_t errors = fkv_error_counts_sum(&s->errors);
    char but[64] = "";
    if (errors) snprintf(but, sizeof but, "; %lld could not be answered", (long long)errors);
    if (s == c->settings)
        fkv_log("whole cache: %lld records answered%s", (long long)s->counts.n_answered, but);
    else
        fkv_log("%s at %s (%lld tokens): %lld of %lld answers are the whole cache's%s", s->scorer, s->budget,
                (long long)s->tokens, (long long)s->counts.n_equal, (long long)s->counts.n, but);
}

/* Mean tokens of a head, window layers left out; a budgets file does not say it. */
static int64_t mean_budget(const fkv_setup *s, const fkv_profile *p)
{
    double sum = 0;
    int64_t n = 0;
    if (p->mean_budget) return p->mean_budget;
    for (int i = 0; i < p->n_layers * p->n_kv_heads; i++) {
        if (fkv_config_window(&s->config, i / p->n_kv_heads)) continue;
        sum += p->budgets[i];
        n++;
    }
    return n ? llround(sum / (double)n) : 0;
}

static fkv_status set_scorer(void *ctx, int replica, fkv_engine *engine, fkv_err *err)
{
    const fkv_setup *s = ctx;
    (void)replica;
    (void)err;
    fkv_engine_set_scorer(engine, fkv_setup_scorer(s), (int)s->job->profile.sinks);
    return FKV_OK;
}

static fkv_status try_setting(comparing *a, int k, fkv_err *err)
{
    fkv_comparison *c = a->c;
    fkv_compare_setting *s = &c->settings[k];
    fkv_trial_answer *answers = k ? a->answers : a->whole;
    fkv_planning p = {.layout = c->layout, .sizing = a->sizing};
    const fkv_replica_work scoring = {&s->setup, set_scorer, NULL};
    fkv_setup fixed = s->setup; /* engines are open, and stay on their ranks */
    fixed.auto_ranks = false;
    fkv_tally_stage(a->setup->tally, FKV_STAGE_PROFILE);
    fkv_status st = k ? fkv_replicas_run(a->replicas, &scoring, err) : FKV_OK; /* the whole cache has none */
    if (!st) st = fkv_planning_profile(&fixed, &c->sample, &a->replicas, &p, err);
    if (!st) s->tokens = mean_budget(a->setup, &p.profile);
    p.layout = c->layout;
    fkv_sizing_update(a->setup, &p.layout, &p.profile, &p.sizing);
    if (!st) st = forecast(a, s, &p.profile, err);
    if (!st && fkv_interrupt_signal()) st = fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
    if (!st) st = answer(a, &p, answers, err);
    if (!st) st = count(a, k, &p.profile, answers, err);
    if (!st) log_setting(c, s);
    fkv_planning_free(&p);
    return st;
}

/* The smallest budget that gives the share, as far as it was counted; of equal ones the best scorer's. */
static void choose(fkv_comparison *c)
{
    c->choice = 0;
    for (int k = 1; k < c->n_settings; k++) {
        const fkv_compare_setting *s = &c->settings[k], *best = &c->settings[c->choice];
        const double share = fkv_compare_share(s->counts.n_equal, s->counts.n);
        const double other = fkv_compare_share(best->counts.n_equal, best->counts.n);
        if (s->counts.n == 0 || share < c->options.equal) continue;
        if (!c->choice || s->tokens < best->tokens || (s->tokens == best->tokens && share > other))
            c->choice = k;
    }
}

static void name_device(const comparing *a)
{
    fkv_device_info info;
    fkv_engine_info(fkv_replicas_first(a->replicas), &info);
    snprintf(a->c->device, sizeof a->c->device, "%s", info.name);
}

fkv_status fkv_compare_run(fkv_comparison *c, const fkv_preflight *found, const char *folder,
                           fkv_export_rows *rows, fkv_err *err)
{
    comparing a = {.c = c, .asked = *c->setup, .folder = folder, .rows = rows};
    size_t n;
    a.asked.more_scorers = c->scorers;
    a.setup = &a.asked;
    for (int k = 0; k < c->n_settings; k++) c->settings[k].setup.tally = c->setup->tally;
    fkv_status st = take_records(&a, err);
    if (!st) st = choose_layout(&a, found, err);
    if (st) goto out;
    n = (size_t)c->records.n;
    a.whole = fkv_calloc(n, sizeof *a.whole);
    a.answers = fkv_calloc(n, sizeof *a.answers);
    c->cells = fkv_calloc((size_t)c->n_settings * n, sizeof *c->cells);
    if (!a.whole || !a.answers || !c->cells) st = fkv_fail_memory(err);
    if (!st) st = fkv_replicas_open(a.setup, &c->layout, &a.replicas, err);
    if (!st) name_device(&a);
    for (int k = 0; !st && k < c->n_settings; k++) st = try_setting(&a, k, err);
    if (!st) choose(c);
out:
    fkv_replicas_close(a.replicas);
    fkv_trial_free(a.whole, c->records.n);
    fkv_trial_free(a.answers, c->records.n);
    fkv_buf_free(&a.row);
    return st;
}

void fkv_comparison_free(fkv_comparison *c)
{
    free(c->cells);
    fkv_sample_free(&c->sample);
    fkv_sample_free(&c->records);
    c->cells = NULL;
}
