/* A layer's split and its cost: the small functions that every part of the
 * solver shares. Not for searching (plan_whole.c, plan_share.c, plan_local.c).
 * fkv_layer_work owns the scratch memory of all of them. */
#include "engine/plan/plan_layer.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "runner/base/mem.h"

fkv_status fkv_layer_work_init(fkv_layer_work *w, int n_heads, int n_ranks, fkv_err *err)
{
    const size_t k = (size_t)n_heads, r = (size_t)n_ranks;
    memset(w, 0, sizeof *w);
    w->trial.slots = fkv_calloc(k * r, sizeof *w->trial.slots);
    w->other.slots = fkv_calloc(k * r, sizeof *w->other.slots);
    w->load = fkv_calloc(r, sizeof *w->load);
    w->order = fkv_calloc(k, sizeof *w->order);
    w->list = fkv_calloc(k, sizeof *w->list);
    w->assign = fkv_calloc(k, sizeof *w->assign);
    w->best = fkv_calloc(k, sizeof *w->best);
    w->rest = fkv_calloc(k + 1, sizeof *w->rest);
    w->saving = fkv_calloc(FKV_EXPORTS + 1, sizeof *w->saving);
    w->match = fkv_calloc(r * r, sizeof *w->match);
    w->match_work = fkv_calloc(4 * (r + 1), sizeof *w->match_work);
    w->match_price = fkv_calloc(3 * (r + 1), sizeof *w->match_price);
    bool ok = w->trial.slots && w->other.slots && w->load && w->order && w->list && w->assign && w->best &&
              w->rest && w->saving && w->match && w->match_work && w->match_price;
    if (n_heads <= FKV_SUBSET_HEADS) {
        w->subset = fkv_calloc((size_t)1 << n_heads, sizeof *w->subset);
        ok = ok && w->subset;
    }
    if (ok) return FKV_OK;
    fkv_layer_work_free(w);
    return fkv_fail_memory(err);
}

void fkv_layer_work_free(fkv_layer_work *w)
{
    free(w->subset);
    free(w->match_price);
    free(w->match_work);
    free(w->match);
    free(w->saving);
    free(w->rest);
    free(w->best);
    free(w->assign);
    free(w->list);
    free(w->order);
    free(w->load);
    free(w->other.slots);
    free(w->trial.slots);
    memset(w, 0, sizeof *w);
}

double fkv_layer_us(const fkv_layer *layer, const int *slots, double *load)
{
    double slowest = 0;
    for (int r = 0; r < layer->n_ranks; r++) {
        const int *row = slots + (size_t)r * layer->n_heads;
        double us = layer->t0_us;
        for (int h = 0; h < layer->n_heads; h++)
            if (row[h]) us += layer->head_us + row[h] * layer->slot_us[h];
        if (load) load[r] = us;
        if (us > slowest) slowest = us;
    }
    return slowest;
}

int fkv_layer_copies(const fkv_layer *layer, const int *slots)
{
    int n = 0;
    for (int r = 0; r < layer->n_ranks; r++)
        for (int h = 0; h < layer->n_heads; h++)
            n += slots[(size_t)r * layer->n_heads + h] != 0 && layer->home[h] != r;
    return n;
}

void fkv_split_measure(const fkv_layer *layer, fkv_split *split)
{
    split->us = fkv_layer_us(layer, split->slots, NULL);
    split->copies = fkv_layer_copies(layer, split->slots);
}

void fkv_split_copy(const fkv_layer *layer, fkv_split *to, const fkv_split *from)
{
    memcpy(to->slots, from->slots, (size_t)layer->n_ranks * layer->n_heads * sizeof *to->slots);
    to->us = from->us;
    to->copies = from->copies;
}

int fkv_layer_fit(const fkv_layer *layer, int h, double room)
{
    const double left = room - layer->head_us;
    if (left < 0) return 0;
    const double n = left / layer->slot_us[h]; /* a weightless head: infinity or NaN */
    return n < layer->n_slots ? (int)n : layer->n_slots;
}

void fkv_layer_order(const fkv_layer *layer, int *order)
{
    for (int i = 0; i < layer->n_heads; i++) {
        int j = i;
        for (; j > 0 && layer->slot_us[order[j - 1]] < layer->slot_us[i]; j--) order[j] = order[j - 1];
        order[j] = i;
    }
}

void fkv_subset_init(const fkv_layer *layer, double charge_us, fkv_subset *subset)
{
    const size_t n = (size_t)1 << layer->n_heads;
    subset[0] = (fkv_subset){.us = 0};
    for (size_t i = 1; i < n; i++) {
        const int h = __builtin_ctzll(i);
        subset[i] =
            (fkv_subset){.us = subset[i & (i - 1)].us + charge_us + layer->n_slots * layer->slot_us[h],
                         .n_ranks = INT_MAX};
    }
}

void fkv_layer_standard(const fkv_layer *layer, fkv_split *split)
{
    memset(split->slots, 0, (size_t)layer->n_ranks * layer->n_heads * sizeof *split->slots);
    for (int h = 0; h < layer->n_heads; h++)
        split->slots[(size_t)layer->home[h] * layer->n_heads + h] = layer->n_slots;
    fkv_split_measure(layer, split);
}

bool fkv_split_offer(const fkv_layer *layer, const fkv_split *trial, fkv_split *best)
{
    if (trial->copies > layer->max_copies || trial->us > best->us) return false;
    if (trial->us >= best->us * (1 - FKV_PLAN_EQUAL) && trial->copies >= best->copies) return false;
    fkv_split_copy(layer, best, trial);
    return true;
}
