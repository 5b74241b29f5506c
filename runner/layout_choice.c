/* Ranks, replicas and slots that the job leaves open: see layout_choice.h. */
#include "runner/layout_choice.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/log.h"
#include "runner/base/mem.h"
#include "runner/constants.h"
#include "runner/layout.h"

/* Of the device's rates, before there is a number of slots. */
enum { SLOTS_GUESS = 32 };

/* Records of one of so many replicas; of an unknown number many. */
static int64_t share_of(int64_t n_records, int replicas)
{
    const int64_t n = n_records > 0 ? n_records : FKV_JOB_MANY;
    return (n + replicas - 1) / replicas;
}

/* A split as the job would run on it: with the number of slots that is best there, if the job
 * leaves it open. */
static fkv_status try_split(fkv_slot_search search, const fkv_layout *layout, fkv_device_split *out,
                            fkv_err *err)
{
    const fkv_setup *s = search.setup;
    const int64_t n = search.load.n_records;
    fkv_sizing z = *search.sizing;
    fkv_slot_model model;
    fkv_sizing_update(s, layout, search.profile, &z);
    search.sizing = &z;
    search.load.n_records = share_of(n, layout->replicas);
    fkv_status st = fkv_slots_model(&search, s->auto_slots ? 0 : layout->slots, &model, err);
    if (st) return st;
    const fkv_slot_choice best = fkv_slots_best(&search, &model);
    const double job_us = best.slots ? best.us : 0;
    *out = (fkv_device_split){.tensor_parallel = layout->ranks,
                              .data_parallel = layout->replicas,
                              .slots = best.slots,
                              .prefill_us = model.prefill_us,
                              .step_us = fkv_curve_step_us(&model.curve, best.slots, best.slots),
                              .job_us = job_us,
                              .record_us = job_us / (double)share_of(n, 1),
                              .fits = best.slots > 0};
    return FKV_OK;
}

/* What the chosen split would take, and the others. */
static void log_splits(const fkv_sizing *z)
{
    char others[480] = "";
    if (z->n_splits < 2 || z->best < 0) return;
    for (int i = 0; i < z->n_splits; i++) {
        const fkv_device_split *k = &z->splits[i];
        const size_t used = strlen(others);
        if (i == z->best) continue;
        if (k->fits)
            snprintf(others + used, sizeof others - used, ", %d of %d: %.1f s", k->data_parallel,
                     k->tensor_parallel, 1e-6 * k->job_us);
        else
            snprintf(others + used, sizeof others - used, ", %d of %d: does not fit", k->data_parallel,
                     k->tensor_parallel);
    }
    const fkv_device_split *best = &z->splits[z->best];
    fkv_log("replicas: %d of %d %s, each on a device: %.1f s for the job by the cost model%s",
            best->data_parallel, best->tensor_parallel, best->tensor_parallel == 1 ? "rank" : "ranks",
            1e-6 * best->job_us, others);
}

fkv_status fkv_splits_choose(const fkv_slot_search *search, fkv_layout *layout, fkv_sizing *z, fkv_err *err)
{
    const fkv_setup *s = search->setup;
    z->n_splits = 0;
    for (int ranks = 1; ranks <= s->n_devices && z->n_splits < FKV_SPLITS_MAX; ranks++) {
        fkv_layout l = *layout;
        if (!fkv_layout_split(s, ranks, &l)) continue;
        const fkv_status st = try_split(*search, &l, &z->splits[z->n_splits++], err);
        if (st) return st;
    }
    z->best = fkv_split_best(z->splits, z->n_splits);
    if (s->auto_ranks && z->best >= 0) fkv_layout_split(s, z->splits[z->best].tensor_parallel, layout);
    /* More than one a record would never be at work. */
    const int64_t most = share_of(search->load.n_records, 1);
    if (s->auto_replicas && layout->replicas > most) layout->replicas = (int)most;
    fkv_sizing_update(s, layout, search->profile, z);
    return FKV_OK;
}

/* A replica's slots, tried on the first one. */
static fkv_status choose_slots(fkv_slot_search search, fkv_replicas **replicas, fkv_layout *layout,
                               fkv_err *err)
{
    fkv_slot_model model;
    search.load.n_records = share_of(search.load.n_records, layout->replicas);
    fkv_status st = fkv_slots_model(&search, 0, &model, err);
    if (!st && fkv_constants_measured(search.setup)) {
        st = fkv_replicas_open(search.setup, layout, replicas, err);
        if (!st) st = fkv_slots_measure(&search, fkv_replicas_first(*replicas), &model, err);
    }
    if (st) return st;
    const fkv_slot_choice best = fkv_slots_best(&search, &model);
    if (best.slots == 0) return FKV_OK; /* what does not fit is said where the plan is checked */
    layout->slots = best.slots;
    fkv_slots_log(&search, &model, best);
    return FKV_OK;
}

fkv_status fkv_layout_choose(const fkv_setup *s, const fkv_profile *p, int64_t n_records,
                             fkv_replicas **replicas, fkv_layout *layout, fkv_sizing *z, fkv_err *err)
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
    const bool splits = s->auto_ranks || s->n_devices > 1;
    fkv_layout guess = fkv_setup_layout(s); /* as many ranks as can be: what they cost each other is known */
    if (s->auto_slots) guess.slots = n_records > 0 && n_records < SLOTS_GUESS ? (int)n_records : SLOTS_GUESS;
    fkv_status st = FKV_OK;
    if (splits || s->auto_slots) st = fkv_constants_rates(s, &guess, p, &cost, err);
    if (!st && splits) st = fkv_splits_choose(&search, layout, z, err);
    if (!st && splits && s->auto_ranks) log_splits(z);
    if (!st && s->auto_slots) st = choose_slots(search, replicas, layout, err);
    if (!st) fkv_sizing_update(s, layout, p, z);
    free(tokens);
    return st;
}
