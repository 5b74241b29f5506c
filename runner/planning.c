/* Profile and plan of a run: see planning.h. */
#include "runner/planning.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/plan/partition.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/json.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"
#include "runner/hold.h"
#include "runner/interrupt.h"
#include "runner/layout.h"
#include "runner/layout_choice.h"
#include "runner/sample.h"
#include "runner/tally.h"

typedef struct making {
    const fkv_setup *setup;
    fkv_output *output;
    fkv_replicas **replicas;
    fkv_planning *p;
    char profile_print[17], plan_print[17]; /* fingerprints */
} making;

int64_t fkv_planning_budget(const fkv_setup *s, double mean_prompt)
{
    const fkv_job *j = s->job;
    if (j->profile.method == FKV_METHOD_NONE) return fkv_prompt_longest(&s->limits);
    if (j->profile.budget > 0) return j->profile.budget;
    const int64_t b = llround(j->profile.budget_percent / 100 * mean_prompt);
    const int64_t forced = j->profile.window + j->profile.sinks;
    return b > forced ? b : forced;
}

static double mean_prompt(const fkv_sample *sample)
{
    double total = 0;
    for (int64_t i = 0; i < sample->n; i++) total += (double)sample->records[i].ids.len;
    return sample->n ? total / (double)sample->n : 0;
}

/* Prompts that may be measured before those in front of them have been added. */
enum { MOST_AHEAD = 64 };

/* The sample's prompts on their way through the replicas. Counts are added in the prompts' order, whoever
 * measured them, so that the sums' bits are the same. */
typedef struct measuring {
    const fkv_setup *setup;
    const fkv_sample *sample;
    int64_t b;
    size_t n_counts; /* of a prompt: [n_layers][n_kv_heads] */
    double *sums;    /* [n_counts] */
    double *ahead;   /* [MOST_AHEAD][n_counts], by the prompt's number; zeroes where none is on its way */

    pthread_mutex_t lock; /* for what follows */
    pthread_cond_t moved;
    int64_t next, added; /* the prompt that nobody has taken; those in front of it are in sums */
    bool done[MOST_AHEAD];
    bool failed;
} measuring;

/* The next prompt, or the sample's size: there is none. */
static int64_t take_prompt(measuring *a)
{
    pthread_mutex_lock(&a->lock);
    while (!a->failed && a->next < a->sample->n && a->next >= a->added + MOST_AHEAD)
        pthread_cond_wait(&a->moved, &a->lock);
    const int64_t i = a->failed || a->next == a->sample->n ? a->sample->n : a->next++;
    pthread_mutex_unlock(&a->lock);
    return i;
}

static double *counts_of(const measuring *a, int64_t i)
{
    return a->ahead + (size_t)(i % MOST_AHEAD) * a->n_counts;
}

/* Prompt i is measured: it is added, if those before it are, and so are those behind it that waited. */
static void add_prompt(measuring *a, int64_t i)
{
    pthread_mutex_lock(&a->lock);
    a->done[i % MOST_AHEAD] = true;
    for (; a->added < a->next && a->done[a->added % MOST_AHEAD]; a->added++) {
        double *counts = counts_of(a, a->added);
        for (size_t k = 0; k < a->n_counts; k++) a->sums[k] += counts[k];
        memset(counts, 0, a->n_counts * sizeof *counts);
        a->done[a->added % MOST_AHEAD] = false;
    }
    pthread_cond_broadcast(&a->moved);
    pthread_mutex_unlock(&a->lock);
}

/* One prompt after the other, whichever replica is free. */
static fkv_status measure_on(void *ctx, int replica, fkv_engine *engine, fkv_err *err)
{
    measuring *a = ctx;
    fkv_status st = FKV_OK;
    (void)replica;
    for (int64_t i; !st && (i = take_prompt(a)) < a->sample->n;) {
        const fkv_sample_record *r = &a->sample->records[i];
        fkv_tally_count(a->setup->tally, i, a->sample->n);
        fkv_hold("profile", i, NULL, NULL);
        if (fkv_interrupt_signal()) return fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
        if ((int64_t)r->ids.len > a->b)
            st = fkv_engine_profile(engine, r->ids.data, (int64_t)r->ids.len, r->max_new, a->b,
                                    a->setup->job->profile.floor, counts_of(a, i), err);
        if (!st) add_prompt(a, i);
    }
    return st;
}

static void stop_measuring(void *ctx)
{
    measuring *a = ctx;
    pthread_mutex_lock(&a->lock);
    a->failed = true;
    pthread_cond_broadcast(&a->moved);
    pthread_mutex_unlock(&a->lock);
}

static void take_counts(const measuring *a, fkv_profile *p)
{
    int64_t measured = 0;
    for (int64_t i = 0; i < a->sample->n; i++) measured += (int64_t)a->sample->records[i].ids.len > a->b;
    fkv_budget_from_counts(p, a->sums, measured, a->b);
    fkv_log("profile: %lld of %lld sampled prompts are longer than the budget of %lld", (long long)measured,
            (long long)a->sample->n, (long long)a->b);
}

/* Where the job leaves the ranks open, the sample is measured on as few as can hold it, whatever the
 * devices: one profile for all numbers of them, and as many replicas as there can be. */
static fkv_status take_fewest_ranks(making *m, fkv_err *err)
{
    fkv_planning *p = m->p;
    fkv_layout l = p->layout;
    bool fits = false;
    if (!m->setup->auto_ranks) return FKV_OK;
    for (int ranks = 1; !fits && ranks < m->setup->n_ranks; ranks++) {
        if (!fkv_layout_split(m->setup, ranks, &l)) continue;
        fkv_sizing_update(m->setup, &l, &p->profile, &p->sizing);
        const fkv_status st = fkv_sizing_profiles(&p->sizing, &fits, err);
        if (st) return st;
        if (fits) p->layout = l;
    }
    fkv_sizing_update(m->setup, &p->layout, &p->profile, &p->sizing);
    return FKV_OK;
}

static fkv_status measure_ada(making *m, const fkv_sample *sample, int64_t b, fkv_err *err)
{
    const fkv_setup *s = m->setup;
    const size_t n = (size_t)s->config.n_layers * (size_t)s->config.n_kv_heads;
    measuring a = {.setup = s, .sample = sample, .b = b, .n_counts = n};
    const fkv_replica_work work = {&a, measure_on, stop_measuring};
    size_t all;
    if (!fkv_mul_size(n, MOST_AHEAD + 1, &all) || !(a.sums = fkv_calloc(all, sizeof *a.sums)))
        return fkv_fail_memory(err);
    a.ahead = a.sums + n;
    pthread_mutex_init(&a.lock, NULL);
    pthread_cond_init(&a.moved, NULL);
    fkv_status st = take_fewest_ranks(m, err);
    if (!st) st = fkv_replicas_open(s, &m->p->layout, m->replicas, err);
    if (!st) st = fkv_replicas_run(*m->replicas, &work, err);
    if (!st) take_counts(&a, &m->p->profile);
    pthread_cond_destroy(&a.moved);
    pthread_mutex_destroy(&a.lock);
    free(a.sums);
    return st;
}

/* The budget is shared out among the layers without a window. */
static fkv_status share_by_scores(making *m, const double *scores, int64_t b, fkv_err *err)
{
    const fkv_config *c = &m->setup->config;
    const fkv_job *j = m->setup->job;
    const size_t k = (size_t)c->n_kv_heads;
    fkv_profile open;
    int n = 0;
    double *some = fkv_calloc((size_t)c->n_layers * k, sizeof *some);
    if (!some) return fkv_fail_memory(err);
    for (int l = 0; l < c->n_layers; l++)
        if (!fkv_config_window(c, l))
            memcpy(some + (size_t)n++ * k, scores + (size_t)l * k, k * sizeof *some);
    fkv_status st = n ? fkv_profile_init(&open, n, c->n_kv_heads, err) : FKV_OK;
    if (!st && n) {
        const int forced = (int)(j->profile.window + j->profile.sinks);
        fkv_budget_from_scores(&open, some, b, forced, j->profile.floor);
        for (int l = 0, from = 0; l < c->n_layers; l++)
            if (!fkv_config_window(c, l))
                memcpy(m->p->profile.budgets + (size_t)l * k, open.budgets + (size_t)from++ * k,
                       k * sizeof *open.budgets);
        fkv_profile_free(&open);
    }
    free(some);
    return st;
}

static fkv_status budgets_from_scores(making *m, int64_t b, fkv_err *err)
{
    const fkv_config *c = &m->setup->config;
    const fkv_job *j = m->setup->job;
    double *scores = fkv_calloc((size_t)c->n_layers * (size_t)c->n_kv_heads, sizeof *scores);
    if (!scores) return fkv_fail_memory(err);
    fkv_status st =
        fkv_scores_read_file(j->profile.scores_file, c->n_layers, c->n_heads, c->n_kv_heads, scores, err);
    if (!st) st = share_by_scores(m, scores, b, err);
    free(scores);
    return st;
}

void fkv_planning_set_windows(const fkv_config *c, fkv_profile *p)
{
    for (int l = 0; l < c->n_layers; l++) {
        const int window = fkv_config_window(c, l);
        for (int h = 0; window && h < c->n_kv_heads; h++)
            p->budgets[l * c->n_kv_heads + h] = window < FKV_BUDGET_MAX ? window : FKV_BUDGET_MAX;
    }
}

static bool all_windowed(const fkv_config *c)
{
    for (int l = 0; l < c->n_layers; l++) {
        if (!fkv_config_window(c, l)) return false;
    }
    return true;
}

int64_t fkv_planning_kept_tokens(const fkv_config *c, const fkv_profile *p, int64_t n_tokens)
{
    const bool all = all_windowed(c);
    int64_t kept = 0, n = 0;
    for (int l = 0; l < c->n_layers; l++) {
        if (!all && fkv_config_window(c, l)) continue;
        for (int h = 0; h < c->n_kv_heads; h++, n++) {
            const int64_t budget = p->budgets[l * c->n_kv_heads + h];
            kept += budget < n_tokens ? budget : n_tokens;
        }
    }
    return (2 * kept + n) / (2 * n);
}

static fkv_status fill_budgets(making *m, const fkv_sample *sample, fkv_err *err)
{
    const fkv_job *j = m->setup->job;
    fkv_profile *p = &m->p->profile;
    if (j->profile.budgets_file) return fkv_budget_read_file(j->profile.budgets_file, p, err);
    const int64_t b = fkv_planning_budget(m->setup, mean_prompt(sample));
    p->mean_budget = b;
    switch (j->profile.method) {
    case FKV_METHOD_ADA: return measure_ada(m, sample, b, err);
    case FKV_METHOD_SCORES: return budgets_from_scores(m, b, err);
    case FKV_METHOD_UNIFORM:
    case FKV_METHOD_NONE: break;
    }
    fkv_budget_uniform(p, b);
    return FKV_OK;
}

/* What the sample says about the input's lengths. */
static fkv_status take_lengths(making *m, const fkv_sample *sample, fkv_err *err)
{
    fkv_profile *p = &m->p->profile;
    const fkv_prompt_limits *limits = &m->setup->limits;
    const int64_t dataset = fkv_record_parser_largest_limit(m->setup->parser);
    double outputs = 0;
    p->prompt_tokens = fkv_calloc((size_t)sample->n, sizeof *p->prompt_tokens);
    p->new_tokens = fkv_calloc((size_t)sample->n, sizeof *p->new_tokens);
    if (!p->prompt_tokens || !p->new_tokens) return fkv_fail_memory(err);
    p->longest_new = dataset > limits->max_new ? dataset : limits->max_new;
    for (int64_t i = 0; i < sample->n; i++) {
        const fkv_sample_record *r = &sample->records[i];
        p->prompt_tokens[i] = (int32_t)r->ids.len;
        p->new_tokens[i] = (int32_t)r->max_new;
        outputs += (double)r->max_new;
        if (r->max_new > p->longest_new) p->longest_new = r->max_new;
    }
    p->n_sample = (int)sample->n;
    p->n_input = sample->n_input;
    p->longest_prompt = fkv_sample_longest(sample);
    if (fkv_setup_compresses(m->setup)) {
        snprintf(p->score, sizeof p->score, "%s", fkv_scorer_name(fkv_setup_scorer(m->setup)));
        p->sinks = (int)m->setup->job->profile.sinks;
    }
    p->mean_output = sample->n ? outputs / (double)sample->n : (double)limits->max_new;
    return FKV_OK;
}

/* Buffers and tables as the input needs them. */
static void reach_lengths(making *m)
{
    const fkv_profile *p = &m->p->profile;
    fkv_layout_reach(m->setup, p->longest_prompt, p->longest_new, m->p->sizing.shape.prefill_tile,
                     &m->p->layout);
}

fkv_status fkv_planning_profile(const fkv_setup *setup, const fkv_sample *sample, fkv_replicas **replicas,
                                fkv_planning *planning, fkv_err *err)
{
    making m = {.setup = setup, .replicas = replicas, .p = planning};
    fkv_profile *p = &planning->profile;
    fkv_status st = fkv_profile_init(p, setup->config.n_layers, setup->config.n_kv_heads, err);
    if (!st) st = take_lengths(&m, sample, err);
    fkv_sizing_update(setup, &planning->layout, p, &planning->sizing);
    if (!st) st = fill_budgets(&m, sample, err);
    fkv_planning_set_windows(&setup->config, p);
    return st;
}

fkv_status fkv_planning_fewest_ranks(const fkv_setup *setup, fkv_planning *planning, fkv_err *err)
{
    making m = {.setup = setup, .p = planning};
    return take_fewest_ranks(&m, err);
}

static fkv_status make_profile(void *ctx, fkv_err *err)
{
    making *m = ctx;
    const fkv_config *c = &m->setup->config;
    fkv_profile *p = &m->p->profile;
    fkv_sample sample = {0};
    char *found = NULL, *path = fkv_output_path(m->output, "profile.json", false);
    fkv_stage_begin("profile");
    fkv_tally_stage(m->setup->tally, FKV_STAGE_SAMPLE);
    fkv_status st = path ? fkv_profile_init(p, c->n_layers, c->n_kv_heads, err) : fkv_fail_memory(err);
    if (st) goto out;
    if (fkv_file_exists(path)) {
        if ((st = fkv_profile_read(path, p, &found, err))) goto out;
        m->p->profile_loaded = !strcmp(found, m->profile_print) && p->n_layers == c->n_layers;
        if (m->p->profile_loaded) reach_lengths(m);
        if (m->p->profile_loaded) goto out;
        fkv_profile_free(p);
        if ((st = fkv_profile_init(p, c->n_layers, c->n_kv_heads, err))) goto out;
    }
    if ((st = fkv_sample_take(m->setup, &m->p->layout, &sample, err))) goto out;
    if (sample.n_input == 0) {
        st = fkv_setup_no_record(m->setup, "", err);
        goto out;
    }
    if ((st = take_lengths(m, &sample, err))) goto out;
    reach_lengths(m);
    fkv_tally_stage(m->setup->tally, FKV_STAGE_PROFILE);
    if ((st = fill_budgets(m, &sample, err))) goto out;
    fkv_planning_set_windows(c, p);
    if ((st = fkv_output_still_ours(m->output, err))) goto out;
    st = fkv_profile_write(p, m->setup->job->model.path, m->profile_print, path, err);
out:
    fkv_stage_end();
    fkv_sample_free(&sample);
    free(found);
    free(path);
    return st;
}

/* Most copies of a layer. */
static int copies_of_a_layer(const fkv_plan *plan)
{
    int most = 0;
    for (int l = 0; l < plan->n_layers; l++) {
        int n = 0;
        for (int h = 0; h < plan->n_kv_heads; h++) {
            const int lh = l * plan->n_kv_heads + h,
                      home = fkv_partition_home(h, plan->n_kv_heads, plan->n_ranks);
            for (int i = plan->first[lh]; i < plan->first[lh + 1]; i++) n += plan->at[i].rank != home;
        }
        if (n > most) most = n;
    }
    return most;
}

/* The plan of the job's mode; with fewer copies where it could not hold the largest record. */
static fkv_status solve_to_fit(making *m, fkv_plan_problem problem, fkv_err *err)
{
    fkv_planning *p = m->p;
    for (;;) {
        bool holds = false;
        fkv_status st = fkv_plan_solve(&problem, fkv_setup_mode(m->setup), &p->plan, err);
        if (!st) st = fkv_sizing_even(&p->sizing, &problem, p->profile.budgets, &p->plan, err);
        if (!st)
            st = fkv_sizing_holds(&p->sizing, &p->plan, p->profile.budgets, &p->layout.record, &holds, err);
        const int most = st ? 0 : copies_of_a_layer(&p->plan);
        if (st || holds || most == 0) return st;
        problem.max_copies = most / 2;
        fkv_log("plan: with %d copied heads a layer the largest record would not fit every slot; at most %d",
                most, problem.max_copies);
        fkv_plan_free(&p->plan);
    }
}

/* Members of plan.json beside the plan's own. */
static fkv_status put_extra(const making *m, fkv_buf *out, fkv_err *err)
{
    const fkv_sizing *z = &m->p->sizing;
    const fkv_layout *layout = &m->p->layout;
    fkv_status st =
        fkv_buf_printf(out, err, "\"backend\":\"%s\",\"devices\":%d,\"version\":\"%s\",\n\"device\":",
                       m->setup->backend->name, layout->devices, FKV_VERSION);
    if (!st) st = fkv_json_put_string(out, z->device, strlen(z->device), err);
    if (!st) st = fkv_buf_puts(out, ",\"numerics\":", err);
    if (!st) st = fkv_json_put_string(out, z->numerics, strlen(z->numerics), err);
    if (!st) st = fkv_buf_puts(out, ",\n", err);
    if (!st) st = fkv_layout_put(layout, out, err);
    if (!st) st = fkv_buf_puts(out, ",\n", err);
    return st ? st : fkv_constants_put(&m->p->constants, out, err);
}

/* Replicas that share memory leave each other room for the largest record. */
static fkv_status check_sharing(const making *m, fkv_err *err)
{
    const fkv_planning *p = m->p;
    bool holds = true;
    if (p->sizing.limit.bytes == p->sizing.alone_bytes) return FKV_OK;
    const fkv_status st =
        fkv_sizing_holds(&p->sizing, &p->plan, p->profile.budgets, &p->layout.record, &holds, err);
    if (st || holds) return st;
    return fkv_fail_at(err, FKV_E_INPUT, m->setup->job->path, 0, "engine.data_parallel",
                       "%d replicas share the memory, and %lld MiB a device don't hold the largest record: "
                       "use fewer",
                       p->layout.replicas, (long long)p->sizing.limit.bytes >> 20);
}

static fkv_status solve(making *m, const char *path, fkv_err *err)
{
    const fkv_setup *s = m->setup;
    fkv_buf extra = {0};
    fkv_status st;
    double *tokens = fkv_calloc((size_t)s->config.n_layers * (size_t)s->config.n_kv_heads, sizeof *tokens);
    if (!tokens) return fkv_fail_memory(err);
    fkv_cost_tokens(&m->p->profile, tokens);
    if ((st = fkv_constants_choose(s, &m->p->layout, &m->p->profile, &m->p->constants, err))) goto out;
    fkv_tally_stage(s->tally, FKV_STAGE_PLAN);
    const fkv_plan_problem problem =
        fkv_setup_plan_problem(s, m->p->layout.ranks, m->p->layout.slots, tokens, &m->p->constants.cost,
                               m->p->constants.collectives_us);
    if ((st = solve_to_fit(m, problem, err))) goto out;
    if ((st = check_sharing(m, err))) goto out;
    if ((st = fkv_sizing_check_plan(&m->p->sizing, &m->p->plan, m->p->profile.budgets, err))) goto out;
    if ((st = put_extra(m, &extra, err))) goto out;
    if ((st = fkv_output_still_ours(m->output, err))) goto out;
    st = fkv_plan_write(&m->p->plan, m->plan_print, extra.data, path, err);
out:
    fkv_buf_free(&extra);
    free(tokens);
    return st;
}

/* What the job left to the plan comes from the plan, and so does what may not change. */
static fkv_status use_loaded(making *m, const char *path, fkv_err *err)
{
    fkv_planning *p = m->p;
    fkv_layout *layout = &p->layout;
    fkv_status st = fkv_layout_read(path, layout, err);
    if (st) return st;
    if (m->setup->auto_slots) layout->slots = m->p->plan.n_slots;
    if (m->setup->auto_ranks) fkv_layout_take_ranks(m->setup, m->p->plan.n_ranks, layout);
    fkv_sizing_update(m->setup, layout, &p->profile, &p->sizing);
    if ((st = fkv_constants_read(path, &p->constants, err))) return st;
    return fkv_sizing_check_loaded(&p->sizing, &p->plan, p->profile.budgets, &layout->record, err);
}

/* Records of this process's part; 0: unknown. */
static int64_t my_records(const making *m)
{
    const int64_t n_parts = m->setup->job->input.n_parts;
    return (m->p->profile.n_input + n_parts - 1) / n_parts;
}

static fkv_status make_plan(void *ctx, fkv_err *err)
{
    making *m = ctx;
    char *found = NULL, *path = fkv_output_path(m->output, "plan.json", false);
    fkv_status st = FKV_OK;
    if (!path) return fkv_fail_memory(err);
    fkv_stage_begin("plan");
    fkv_tally_stage(m->setup->tally, FKV_STAGE_PLAN);
    fkv_hold("plan", 0, NULL, NULL);
    if (fkv_file_exists(path)) {
        if ((st = fkv_plan_read(path, &m->p->plan, &found, err))) goto out;
        m->p->plan_loaded = !strcmp(found, m->plan_print);
        if (m->p->plan_loaded) {
            st = use_loaded(m, path, err);
            goto out;
        }
        fkv_plan_free(&m->p->plan);
    }
    fkv_tally_stage(m->setup->tally, FKV_STAGE_CALIBRATE);
    if ((st = fkv_layout_choose(m->setup, &m->p->profile, my_records(m), m->replicas, &m->p->layout,
                                &m->p->sizing, err)))
        goto out;
    st = fkv_sizing_record_limit(&m->p->sizing, m->p->profile.budgets, &m->p->layout.record, err);
    if (!st) st = solve(m, path, err);
out:
    fkv_stage_end();
    free(found);
    free(path);
    return st;
}

/* What makes a profile or a plan another one. */
static fkv_status make_prints(making *m, bool with_budgets, fkv_err *err)
{
    const fkv_setup *s = m->setup;
    const fkv_profile *p = &m->p->profile;
    fkv_buf text = {0};
    fkv_status st = fkv_output_identity(m->output, &text, err);
    if (!st)
        st = fkv_buf_printf(&text, err, " %s %s %d", FKV_VERSION, s->backend->name,
                            s->auto_ranks ? 0 : s->n_ranks);
    if (!st) fkv_hash_hex(fkv_hash(text.data, text.len, 0), m->profile_print);
    if (!st && with_budgets) {
        st = fkv_buf_printf(&text, err, " %s %lld %d %.17g", fkv_plan_mode_name(fkv_setup_mode(s)),
                            (long long)s->job->plan.max_copies, s->auto_slots ? 0 : s->n_slots,
                            p->mean_output);
        if (!st)
            st = fkv_buf_append(&text, p->budgets,
                                (size_t)p->n_layers * (size_t)p->n_kv_heads * sizeof *p->budgets, err);
        if (!st)
            st = fkv_buf_append(&text, p->prompt_tokens, (size_t)p->n_sample * sizeof *p->prompt_tokens, err);
        if (!st) fkv_hash_hex(fkv_hash(text.data, text.len, 0), m->plan_print);
    }
    fkv_buf_free(&text);
    return st;
}

/* Ranks and slots, where they are known. */
static fkv_status pin_sizes(const fkv_setup *s, const fkv_layout *layout, fkv_output *output, bool planned,
                            fkv_err *err)
{
    char ranks[16], slots[16];
    fkv_status st = FKV_OK;
    snprintf(ranks, sizeof ranks, "%d", layout->ranks);
    snprintf(slots, sizeof slots, "%d", layout->slots);
    if (planned || !s->auto_ranks) st = fkv_output_pin(output, "engine.tensor_parallel", ranks, err);
    if (!st && (planned || !s->auto_slots)) st = fkv_output_pin(output, "engine.slots", slots, err);
    return st;
}

fkv_status fkv_planning_pin(const fkv_setup *s, fkv_output *output, fkv_err *err)
{
    char copies[32] = "auto";
    fkv_status st;
    if (s->job->plan.max_copies >= 0)
        snprintf(copies, sizeof copies, "%lld", (long long)s->job->plan.max_copies);
    if ((st = fkv_output_pin(output, "version", FKV_VERSION, err))) return st;
    if ((st = fkv_output_pin(output, "engine.backend", s->backend->name, err))) return st;
    const fkv_layout layout = fkv_setup_layout(s);
    if ((st = pin_sizes(s, &layout, output, false, err))) return st;
    /* They change no answer, but an output has one plan; here they are refused by name. */
    if ((st = fkv_output_pin(output, "plan.mode", fkv_plan_mode_name(fkv_setup_mode(s)), err))) return st;
    return fkv_output_pin(output, "plan.max_copies", copies, err);
}

fkv_status fkv_planning_check_files(const fkv_setup *s, const fkv_output *output, fkv_err *err)
{
    char *profile_json = fkv_output_path(output, "profile.json", false), *found = NULL;
    char *plan_json = fkv_output_path(output, "plan.json", false), *again = NULL;
    fkv_profile profile = {0};
    fkv_plan plan = {0};
    fkv_constants constants;
    fkv_layout layout;
    fkv_status st = profile_json && plan_json ? FKV_OK : fkv_fail_memory(err);
    if (!st && fkv_file_exists(profile_json)) {
        st = fkv_profile_init(&profile, s->config.n_layers, s->config.n_kv_heads, err);
        if (!st) st = fkv_profile_read(profile_json, &profile, &found, err);
    }
    if (!st && fkv_file_exists(plan_json)) {
        st = fkv_plan_read(plan_json, &plan, &again, err);
        if (!st) st = fkv_layout_read(plan_json, &layout, err);
        if (!st) st = fkv_constants_read(plan_json, &constants, err);
    }
    fkv_plan_free(&plan);
    fkv_profile_free(&profile);
    free(again);
    free(found);
    free(plan_json);
    free(profile_json);
    return st;
}

fkv_status fkv_planning_make(const fkv_setup *setup, fkv_output *output, fkv_replicas **replicas,
                             fkv_planning *planning, fkv_err *err)
{
    making m = {.setup = setup, .output = output, .replicas = replicas, .p = planning};
    *planning = (fkv_planning){.layout = fkv_setup_layout(setup)};
    fkv_status st;
    fkv_constants_stated(setup, &planning->layout, &planning->constants);
    if ((st = fkv_sizing_probe(setup, &planning->sizing, err))) return st;
    fkv_sizing_update(setup, &planning->layout, &planning->profile, &planning->sizing);
    if ((st = fkv_sizing_check_model(&planning->sizing, err))) return st;
    if ((st = fkv_planning_pin(setup, output, err))) return st;
    if ((st = make_prints(&m, false, err))) return st;
    fkv_tally_stage(setup->tally, FKV_STAGE_WAIT);
    if ((st = fkv_output_with_lock(output, "profile", make_profile, &m, err))) return st;
    if ((st = make_prints(&m, true, err))) return st;
    fkv_tally_stage(setup->tally, FKV_STAGE_WAIT);
    if ((st = fkv_output_with_lock(output, "plan", make_plan, &m, err))) return st;
    if ((st = pin_sizes(setup, &planning->layout, output, true, err))) return st;
    return fkv_output_pin(output, "plan", m.plan_print, err);
}

typedef struct loading {
    const fkv_setup *setup;
    const fkv_planning *p;
} loading;

static fkv_status load_one(void *ctx, int replica, fkv_engine *engine, fkv_err *err)
{
    const loading *a = ctx;
    const fkv_planning *p = a->p;
    const int64_t mib = a->setup->job->engine.kv_mib;
    const fkv_engine_kv_limits limits = {
        .record = p->layout.record,
        .arena_pages = mib ? (mib << 20) / fkv_memory_page_bytes(&p->sizing.shape) + 1 : 0};
    (void)replica;
    return fkv_engine_set_plan(engine, a->setup->weights, p->profile.budgets, &p->plan, &limits, err);
}

fkv_status fkv_planning_load(const fkv_setup *setup, const fkv_planning *p, fkv_replicas **replicas,
                             fkv_err *err)
{
    loading a = {setup, p};
    const fkv_replica_work work = {&a, load_one, NULL};
    const fkv_stage before = fkv_tally_stage(setup->tally, FKV_STAGE_LOAD);
    fkv_status st = fkv_replicas_open(setup, &p->layout, replicas, err);
    if (!st) st = fkv_replicas_run(*replicas, &work, err);
    fkv_tally_stage(setup->tally, before);
    return st ? st : fkv_replicas_check_alike(*replicas, err);
}

fkv_status fkv_planning_grow(const fkv_setup *setup, const fkv_planning *p, int64_t prompt,
                             int64_t new_tokens, fkv_layout *l, fkv_engine *engine, fkv_err *err)
{
    loading a = {setup, p};
    const int64_t longest = prompt > l->max_prompt ? prompt + prompt / 4 : l->max_prompt;
    const int64_t left = l->max_tokens - l->max_prompt; /* what records had for new tokens until now */
    const int64_t more = new_tokens + new_tokens / 4;   /* so that it does not happen for every longer one */
    fkv_layout_reach(setup, longest, new_tokens > left ? more : left, p->sizing.shape.prefill_tile, l);
    /* Beside longer prompts the arenas might not hold the largest record. */
    if (l->max_prompt > l->record.prompt) l->max_prompt = l->record.prompt;
    fkv_log("a record of %lld prompt and %lld new tokens is longer than the sample let expect: buffers are "
            "made anew, for prompts of %lld and records of %lld",
            (long long)prompt, (long long)new_tokens, (long long)l->max_prompt, (long long)l->max_tokens);
    fkv_engine_clear_plan(engine);
    const fkv_status st = fkv_engine_resize(engine, l->slots, l->max_prompt, l->max_tokens, err);
    return st ? st : load_one(&a, 0, engine, err);
}

void fkv_planning_free(fkv_planning *p)
{
    fkv_plan_free(&p->plan);
    fkv_profile_free(&p->profile);
}
