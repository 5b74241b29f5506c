/* Best-effort: every head whole on one rank. Longest processing time first,
 * then moves and swaps, then a branch-and-bound search that is exhaustive for
 * small layers and limited by its number of nodes for large ones. Owns no
 * memory. */
#include <math.h>
#include <string.h>

#include "engine/plan/plan_layer.h"

enum { NODES = 20000 }; /* of the search, per layer */

typedef struct search {
    const fkv_layer *layer;
    fkv_layer_work *w;
    bool free_ranks; /* no limit on copies: ranks differ by their load alone */
    int64_t nodes;   /* left */
    int copies;
    double best_us; /* to be beaten */
    double enough;  /* nothing is faster */
    bool found;
} search;

static double whole_us(const fkv_layer *layer, int h)
{
    return layer->head_us + layer->n_slots * layer->slot_us[h];
}

/* Whether an earlier rank has the same load, so that r would repeat it. */
static bool repeats(const double *load, int r)
{
    for (int i = 0; i < r; i++)
        if (load[i] == load[r]) return true;
    return false;
}

/* Places order[i...]; depth is at most n_heads. */
static void descend(search *s, int i)
{
    const fkv_layer *layer = s->layer;
    fkv_layer_work *w = s->w;
    if (s->nodes-- <= 0 || s->best_us <= s->enough) return;
    if (i == layer->n_heads) {
        double us = 0;
        for (int r = 0; r < layer->n_ranks; r++)
            if (w->load[r] > us) us = w->load[r];
        if (us >= s->best_us) return;
        s->best_us = us;
        s->found = true;
        memcpy(w->best, w->assign, (size_t)layer->n_heads * sizeof *w->best);
        return;
    }
    double total = w->rest[i];
    for (int r = 0; r < layer->n_ranks; r++) total += w->load[r];
    if (total / layer->n_ranks >= s->best_us) return;

    const int h = w->order[i], home = layer->home[h];
    const double us = whole_us(layer, h);
    for (int n = -1; n < layer->n_ranks; n++) {
        const int r = n < 0 ? home : n;
        const double before = w->load[r];
        const int copy = r != home;
        if (n == home || before + us >= s->best_us || s->copies + copy > layer->max_copies) continue;
        if (s->free_ranks && n >= 0 && (before == w->load[home] || repeats(w->load, r))) continue;
        w->assign[h] = r;
        w->load[r] = before + us;
        s->copies += copy;
        descend(s, i + 1);
        s->copies -= copy;
        w->load[r] = before;
    }
}

static void build(const fkv_layer *layer, fkv_layer_work *w, const int *assign, fkv_split *best)
{
    fkv_split *t = &w->trial;
    memset(t->slots, 0, (size_t)layer->n_ranks * layer->n_heads * sizeof *t->slots);
    for (int h = 0; h < layer->n_heads; h++)
        t->slots[(size_t)assign[h] * layer->n_heads + h] = layer->n_slots;
    fkv_layer_relabel(layer, w, t);
    fkv_layer_improve_pairs(layer, w, true, t);
    fkv_layer_drop_copies(layer, w, true, t);
    fkv_split_offer(layer, t, best);
}

void fkv_layer_whole(const fkv_layer *layer, fkv_layer_work *w, fkv_split *best)
{
    const int k = layer->n_heads, n = layer->n_ranks;
    if (layer->max_copies == 0 || n == 1) return;
    fkv_layer_order(layer, w->order);

    fkv_split_copy(layer, &w->trial, best);
    fkv_layer_improve_pairs(layer, w, true, &w->trial);
    fkv_layer_drop_copies(layer, w, true, &w->trial);
    fkv_split_offer(layer, &w->trial, best);

    for (int r = 0; r < n; r++) w->load[r] = layer->t0_us;
    for (int i = 0; i < k; i++) {
        const int h = w->order[i];
        int to = layer->home[h];
        for (int r = 0; r < n; r++)
            if (w->load[r] < w->load[to]) to = r;
        w->load[to] += whole_us(layer, h);
        w->assign[h] = to;
    }
    build(layer, w, w->assign, best);

    w->rest[k] = 0;
    for (int i = k - 1; i >= 0; i--) w->rest[i] = w->rest[i + 1] + whole_us(layer, w->order[i]);
    const double mean = layer->t0_us + w->rest[0] / n, largest = layer->t0_us + whole_us(layer, w->order[0]);
    search s = {.layer = layer,
                .w = w,
                .free_ranks = layer->max_copies >= k,
                .nodes = NODES,
                .best_us = best->us * (1 - FKV_PLAN_EQUAL),
                .enough = (mean > largest ? mean : largest) * (1 + FKV_PLAN_EQUAL)};
    for (int r = 0; r < n; r++) w->load[r] = layer->t0_us;
    descend(&s, 0);
    if (s.found) build(layer, w, w->best, best);
}
