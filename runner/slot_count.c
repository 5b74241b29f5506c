/* Choosing the number of slots: see slot_count.h. */
#include "runner/slot_count.h"

#include <math.h>
#include <string.h>

#include "engine/measure/measure.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

/* A device that replays steps, and another one, may take so long for steps, half of it again
 * for prompts, and no more than such a share of the job. */
static const double replayed_seconds = 2.5, other_seconds = 0.4, least_seconds = 0.1, share_of_job = 0.05;
/* Prompts that are timed: no longer ones, and none that are expected to take longer. */
enum { PROMPT_MOST = 8192, PROMPT_LEAST = 64 };
static const double prompt_us = 3e5;

static int supported(const fkv_slot_search *s, int slots)
{
    const fkv_backend *b = s->setup->backend;
    fkv_memory_shape shape = s->sizing->shape;
    for (; b->supports && slots > 1; slots /= 2) {
        fkv_err why = {0};
        shape.n_slots = slots;
        if (!fkv_memory_supported(&shape, 0, b, &why)) break;
    }
    return slots;
}

/* More would never be at work at once. */
static fkv_status most_slots(const fkv_slot_search *s, int *most, fkv_err *err)
{
    fkv_sizing one = *s->sizing;
    double records;
    one.shape.n_slots = 1;
    const fkv_status st = fkv_sizing_at_once(&one, NULL, s->profile->budgets, &records, err);
    *most = supported(s, s->sizing->worth_slots);
    if (s->load.n_records > 0 && s->load.n_records < *most) *most = (int)s->load.n_records;
    /* A plan may spread over the ranks what one of them holds at home. */
    records = records * one.shape.n_ranks + 1;
    if (records < *most) *most = (int)records;
    return st;
}

/* Numbers of slots for which steps are modelled or measured, ascending. */
static int list_points(int most, int out[FKV_CURVE_MAX])
{
    int n = 0;
    for (int slots = most > 16 ? 8 : 1; slots < most; slots *= 2) out[n++] = slots;
    out[n++] = most;
    return n;
}

/* The next larger number of slots worth trying: small ones, then eights. */
static int next_slots(int n, int most)
{
    const int next = n < 8 ? n + 1 : n / 8 * 8 + 8;
    return n >= most ? 0 : next < most ? next : most;
}

static double mean_prefill_us(const fkv_slot_search *s, double token_us, double pair_us)
{
    const fkv_profile *p = s->profile;
    double sum = 0;
    if (p->n_sample == 0) {
        const double t = (double)s->sizing->lengths.prompt;
        return t * token_us + t * t * pair_us;
    }
    for (int i = 0; i < p->n_sample; i++) {
        const double t = p->prompt_tokens[i];
        sum += t * token_us + t * t * pair_us;
    }
    return sum / p->n_sample;
}

/* A point by the cost model: its plan is solved and evened out as the job's would be. */
static fkv_status model_point(const fkv_slot_search *s, int slots, const double *nothing, fkv_slot_model *m,
                              fkv_err *err)
{
    const int i = m->curve.n;
    fkv_sizing z = *s->sizing;
    fkv_plan plan;
    const int n_ranks = z.shape.n_ranks;
    const fkv_cost cost = fkv_cost_at(s->cost, n_ranks);
    fkv_plan_problem problem =
        fkv_setup_plan_problem(s->setup, n_ranks, slots, s->tokens, &cost,
                               fkv_split_collectives_us(s->cost, &s->setup->config, slots, n_ranks));
    fkv_status st = fkv_plan_solve(&problem, fkv_setup_mode(s->setup), &plan, err);
    if (st) return st;
    z.shape.n_slots = slots;
    st = fkv_sizing_even(&z, &problem, s->profile->budgets, &plan, err);
    if (!st) st = fkv_sizing_at_once(&z, &plan, s->profile->budgets, &m->at_once[i], err);
    if (!st) st = fkv_sizing_at_once(&z, NULL, s->profile->budgets, &m->at_home[i], err);
    m->curve.at[i] = (fkv_step_point){.slots = slots, .us = plan.step_us};
    m->over_home[i] = plan.standard_us > 0 ? plan.step_us / plan.standard_us : 1;
    problem.tokens = nothing;
    m->curve.at[i].empty_us = fkv_plan_step_us(&problem, &plan);
    if (!st) m->curve.n++;
    fkv_plan_free(&plan);
    return st;
}

fkv_status fkv_slots_model(const fkv_slot_search *s, int slots, fkv_slot_model *m, fkv_err *err)
{
    const fkv_config *c = &s->setup->config;
    int points[FKV_CURVE_MAX];
    int n = 1, most;
    *m = (fkv_slot_model){.only = slots};
    fkv_status st = most_slots(s, &most, err);
    if (st) return st;
    points[0] = slots;
    if (!slots) n = list_points(most, points);
    double *nothing = fkv_calloc((size_t)c->n_layers * (size_t)c->n_kv_heads, sizeof *nothing);
    if (!nothing) return fkv_fail_memory(err);
    /* One point may lie beyond what memory holds at once; further ones are of no use. */
    for (int i = 0; !st && i < n && (i == 0 || m->at_once[i - 1] >= points[i - 1]); i++)
        st = model_point(s, points[i], nothing, m, err);
    free(nothing);
    const int ranks = s->sizing->shape.n_ranks;
    for (int i = 0; i < s->profile->n_sample; i++)
        m->prefill_us += fkv_split_prefill_us(s->cost, c, s->profile->prompt_tokens[i], ranks);
    if (s->profile->n_sample)
        m->prefill_us /= s->profile->n_sample;
    else
        m->prefill_us = fkv_split_prefill_us(s->cost, c, (double)s->sizing->lengths.prompt, ranks);
    return st;
}

/* The sample's median and largest prompt, where these don't take too long. */
static void list_lengths(const fkv_slot_search *s, int64_t out[2])
{
    const fkv_profile *p = s->profile;
    const int ranks = s->sizing->shape.n_ranks;
    const int64_t most = s->sizing->shape.max_prompt;
    out[0] = p->n_sample ? fkv_profile_prompt(p, 0.5) : s->sizing->lengths.prompt;
    out[1] = p->n_sample ? fkv_profile_prompt(p, 1) : s->sizing->lengths.prompt;
    if (out[1] > PROMPT_MOST) out[1] = PROMPT_MOST;
    while (out[1] > 2 * PROMPT_LEAST &&
           fkv_split_prefill_us(s->cost, &s->setup->config, (double)out[1], ranks) > prompt_us)
        out[1] /= 2;
    if (out[1] < 2 * PROMPT_LEAST) out[1] = 2 * PROMPT_LEAST;
    if (out[0] > out[1] / 2) out[0] = out[1] / 2;
    if (out[0] < PROMPT_LEAST) out[0] = PROMPT_LEAST;
    for (int i = 0; i < 2; i++)
        if (out[i] > most) out[i] = most;
}

/* What the machine measured at the first points, and beyond them what the model lets it grow to. */
static void take_steps(const fkv_step_curve *measured, fkv_slot_model *m)
{
    const int n = measured->n;
    fkv_step_curve *c = &m->curve;
    const double scale = measured->at[n - 1].us / (c->at[n - 1].us / m->over_home[n - 1]);
    const double empty = measured->at[n - 1].empty_us / (c->at[n - 1].empty_us / m->over_home[n - 1]);
    for (int i = 0; i < c->n; i++) {
        c->at[i].us = i < n ? measured->at[i].us * m->over_home[i] : c->at[i].us * scale;
        c->at[i].empty_us = i < n ? measured->at[i].empty_us * m->over_home[i] : c->at[i].empty_us * empty;
    }
    m->n_measured = n;
    fkv_curve_smooth(c);
}

fkv_status fkv_slots_measure(const fkv_slot_search *s, fkv_engine *engine, fkv_slot_model *m, fkv_err *err)
{
    int points[FKV_CURVE_MAX], n = 0;
    int64_t lengths[2];
    double us[2], token_us, pair_us;
    fkv_step_curve measured;
    fkv_device_info info;
    fkv_engine_info(engine, &info);
    const double job = 1e-6 * fkv_slots_best(s, m).us, most = info.replays ? replayed_seconds : other_seconds;
    const double seconds = fmax(fmin(most, share_of_job * job), least_seconds);
    /* with a margin: what does not fit after all would end the run */
    for (; n < m->curve.n && m->at_home[n] >= 1.1 * m->curve.at[n].slots; n++)
        points[n] = m->curve.at[n].slots;
    fkv_status st = FKV_OK;
    list_lengths(s, lengths);
    if (n > 0)
        st = fkv_measure_steps(engine, s->setup->weights, s->tokens, points, n, seconds, &measured, err);
    if (!st) st = fkv_measure_prompts(engine, lengths, seconds / 2, us, err);
    if (st) return st;
    fkv_prompt_rates(lengths, us, &token_us, &pair_us);
    m->prefill_us = mean_prefill_us(s, token_us, pair_us);
    if (n > 0 && measured.n > 0) take_steps(&measured, m);
    return FKV_OK;
}

static double at_once(const fkv_slot_model *m, int slots)
{
    const fkv_step_point *at = m->curve.at;
    int i = 0;
    while (i + 2 < m->curve.n && slots > at[i + 1].slots) i++;
    const int k = i + 1 < m->curve.n ? i + 1 : i;
    if (slots <= at[i].slots || k == i) return m->at_once[i];
    const double x = (double)(slots - at[i].slots) / (at[k].slots - at[i].slots);
    return m->at_once[i] + (m->at_once[k] - m->at_once[i]) * fmin(x, 1);
}

/* The whole job's time with so many slots. */
static double job_us(const fkv_slot_search *s, const fkv_slot_model *m, int slots)
{
    const double n = s->load.n_records > 0 ? (double)s->load.n_records : FKV_JOB_MANY;
    return n * m->prefill_us + fkv_job_decode_us(&s->load, &m->curve, slots, at_once(m, slots));
}

fkv_slot_choice fkv_slots_best(const fkv_slot_search *s, const fkv_slot_model *m)
{
    fkv_slot_choice best = {0, INFINITY};
    const int last = m->curve.n ? m->curve.at[m->curve.n - 1].slots : 0;
    for (int slots = m->only ? m->only : next_slots(0, last); slots; slots = next_slots(slots, last)) {
        if (at_once(m, slots) < 1) continue;
        const double us = job_us(s, m, slots);
        if (us < best.us) best = (fkv_slot_choice){slots, us};
    }
    return best;
}

void fkv_slots_log(const fkv_slot_search *s, const fkv_slot_model *m, fkv_slot_choice choice)
{
    const fkv_step_point *last = &m->curve.at[m->curve.n - 1];
    const double fit = at_once(m, last->slots);
    const int most = fit < last->slots ? (int)fit : last->slots;
    char others[160] = "";
    for (int i = 0; i < 2; i++) {
        const int slots = i ? 2 * choice.slots : choice.slots / 2;
        const size_t used = strlen(others);
        if (slots < 1 || slots > last->slots) continue;
        snprintf(others + used, sizeof others - used, ", %d: %.1f s", slots, 1e-6 * job_us(s, m, slots));
    }
    fkv_log("slots: %d of %d that fit and can be filled: %.1f s for the job (prefill %.1f)%s; steps %s",
            choice.slots, most > choice.slots ? most : choice.slots, 1e-6 * choice.us,
            1e-6 * m->prefill_us * (s->load.n_records > 0 ? (double)s->load.n_records : FKV_JOB_MANY), others,
            m->n_measured ? "measured" : "by the cost model");
}
