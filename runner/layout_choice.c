/* Ranks and slots that the job leaves open: see layout_choice.h. */
#include "runner/layout_choice.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/log.h"
#include "runner/base/mem.h"
#include "runner/constants.h"
#include "runner/layout.h"

/* Of the device's rates, before there is a number of slots. */
enum { SLOTS_GUESS = 32 };

/* A split as the job would run on it: with the number of slots that is best there, if the job
 * leaves it open. */
static fkv_status try_split(fkv_slot_search search, const fkv_layout *layout, int ranks,
                            fkv_device_split *out, fkv_err *err)
{
    const fkv_setup *s = search.setup;
    const int groups = layout->devices / ranks; /* each has its share of the records */
    fkv_layout l = *layout;
    fkv_sizing z = *search.sizing;
    fkv_slot_model model;
    l.ranks = l.devices = ranks;
    fkv_sizing_update(s, &l, search.profile, &z);
    search.sizing = &z;
    search.load.n_records = (search.load.n_records + groups - 1) / groups;
    fkv_status st = fkv_slots_model(&search, s->auto_slots ? 0 : layout->slots, &model, err);
    if (st) return st;
    const fkv_slot_choice best = fkv_slots_best(&search, &model);
    const double n = search.load.n_records > 0 ? (double)search.load.n_records : FKV_JOB_MANY;
    *out = (fkv_device_split){.tensor_parallel = ranks,
                              .data_parallel = groups,
                              .slots = best.slots,
                              .prefill_us = model.prefill_us,
                              .step_us = fkv_curve_step_us(&model.curve, best.slots, best.slots),
                              .record_us = best.slots ? best.us / n / groups : 0,
                              .fits = best.slots > 0};
    return FKV_OK;
}

/* What one group of so many ranks would take. */
static void log_ranks(const fkv_slot_search *s, const fkv_sizing *z)
{
    char others[320] = "";
    const double n = s->load.n_records > 0 ? (double)s->load.n_records : FKV_JOB_MANY;
    if (z->n_splits < 2 || z->best < 0) return;
    for (int i = 0; i < z->n_splits; i++) {
        const fkv_device_split *k = &z->splits[i];
        const size_t used = strlen(others);
        if (i == z->best) continue;
        if (k->fits)
            snprintf(others + used, sizeof others - used, ", %d: %.1f s", k->tensor_parallel,
                     1e-6 * n * k->record_us * k->data_parallel);
        else
            snprintf(others + used, sizeof others - used, ", %d: does not fit", k->tensor_parallel);
    }
    const fkv_device_split *best = &z->splits[z->best];
    fkv_log("ranks: %d, each on a device: %.1f s for the job by the cost model%s", best->tensor_parallel,
            1e-6 * n * best->record_us * best->data_parallel, others);
}

fkv_status fkv_ranks_choose(const fkv_slot_search *search, fkv_layout *layout, fkv_sizing *z, fkv_err *err)
{
    const int devices = layout->devices, heads = search->setup->config.n_kv_heads;
    z->n_splits = 0;
    for (int ranks = 1; ranks <= devices && ranks <= heads && z->n_splits < FKV_SPLITS_MAX; ranks++) {
        if (devices % ranks) continue;
        const fkv_status st = try_split(*search, layout, ranks, &z->splits[z->n_splits++], err);
        if (st) return st;
    }
    z->best = fkv_split_best(z->splits, z->n_splits, false);
    z->best_groups = fkv_split_best(z->splits, z->n_splits, true);
    if (search->setup->auto_ranks) log_ranks(search, z);
    if (search->setup->auto_ranks && z->best >= 0) {
        layout->ranks = layout->devices = z->splits[z->best].tensor_parallel;
        fkv_sizing_update(search->setup, layout, search->profile, z);
    }
    return FKV_OK;
}

static fkv_status choose_slots(const fkv_slot_search *search, fkv_engine **engine, fkv_layout *layout,
                               fkv_err *err)
{
    fkv_slot_model model;
    fkv_status st = fkv_slots_model(search, 0, &model, err);
    if (!st && fkv_constants_measured(search->setup)) {
        st = fkv_layout_engine(search->setup, layout, engine, err);
        if (!st) st = fkv_slots_measure(search, *engine, &model, err);
    }
    if (st) return st;
    const fkv_slot_choice best = fkv_slots_best(search, &model);
    if (best.slots == 0) return FKV_OK; /* what does not fit is said where the plan is checked */
    layout->slots = best.slots;
    fkv_slots_log(search, &model, best);
    return FKV_OK;
}

fkv_status fkv_layout_choose(const fkv_setup *s, const fkv_profile *p, int64_t n_records, fkv_engine **engine,
                             fkv_layout *layout, fkv_sizing *z, fkv_err *err)
{
    fkv_cost cost;
    double *tokens = fkv_calloc((size_t)s->config.n_layers * (size_t)s->config.n_kv_heads, sizeof *tokens);
    if (!tokens) return fkv_fail_memory(err);
    fkv_cost_tokens(p, tokens);
    fkv_sizing_update(s, layout, p, z);
    const fkv_slot_search search = {.setup = s,
                                    .profile = p,
                                    .sizing = z,
                                    .cost = &cost,
                                    .tokens = tokens,
                                    .load = {.n_records = n_records,
                                             .new_tokens = p->new_tokens,
                                             .n_sample = p->n_sample,
                                             .mean_new = p->mean_output}};
    const bool ranks = s->auto_ranks || layout->devices > 1;
    fkv_layout guess = *layout;
    if (s->auto_slots) guess.slots = n_records > 0 && n_records < SLOTS_GUESS ? (int)n_records : SLOTS_GUESS;
    fkv_status st = FKV_OK;
    if (ranks || s->auto_slots) st = fkv_constants_rates(s, &guess, p, &cost, err);
    if (!st && ranks) st = fkv_ranks_choose(&search, layout, z, err);
    if (!st && s->auto_slots) st = choose_slots(&search, engine, layout, err);
    if (!st) fkv_sizing_update(s, layout, p, z);
    free(tokens);
    return st;
}
