/* Exhaustive search over a small layer's splits, limited by its number of
 * nodes. Owns no memory.
 *
 * Heads are placed by weight, heaviest first, and each head's slots rank by
 * rank, most slots first. A branch ends when a rank is not faster than the best
 * split, or when what is left no longer fits into the ranks' room, each
 * remaining head charged once. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "engine/plan/plan_layer.h"

/* Up to so many heads * ranks; nodes by whether slots are few enough to expect
 * an end: 300,000 nodes take some 20 ms. */
enum { EXACT_CELLS = 16, EXACT_SLOTS = 8, EXACT_NODES = 300000, EXACT_TRY_NODES = 5000 };

typedef struct search {
    const fkv_layer *layer;
    fkv_layer_work *w;
    fkv_split *best;
    bool free_ranks; /* no limit on copies: ranks differ by their load alone */
    int64_t nodes;   /* left */
    int copies;
    double enough; /* nothing is faster */
    bool cut;      /* some branch was left out for want of nodes */
} search;

/* Places slots of order[i] on ranks r.. and then the following heads. room_left
 * and rest are kept by the caller's loads. Depth: n_heads * n_ranks. */
static void descend(search *s, int i, int r, int slots)
{
    const fkv_layer *layer = s->layer;
    fkv_layer_work *w = s->w;
    if (s->best->us <= s->enough || s->cut) return;
    if (s->nodes-- <= 0) {
        s->cut = true;
        return;
    }
    if (!slots) {
        if (++i == layer->n_heads) {
            fkv_split_measure(layer, &w->trial);
            if (w->trial.us < s->best->us && w->trial.copies <= layer->max_copies)
                fkv_split_copy(layer, s->best, &w->trial);
            return;
        }
        r = 0;
        slots = layer->n_slots;
    }
    if (r == layer->n_ranks) return;
    const int h = w->order[i];
    const double weight = layer->slot_us[h], limit = s->best->us * (1 - FKV_PLAN_EQUAL);
    double room = 0;
    for (int b = 0; b < layer->n_ranks; b++) room += limit - w->load[b];
    if (layer->head_us + slots * weight + w->rest[i + 1] > room) return;

    int *const column = w->trial.slots + h, *cell = column + (size_t)r * layer->n_heads;
    const double before = w->load[r];
    const int copy = layer->home[h] != r, fit = fkv_layer_fit(layer, h, limit - before);
    int most = fit < slots ? fit : slots;
    if (s->copies + copy > layer->max_copies) most = 0;
    /* Ranks of equal load are alike as long as this head has none on either:
     * the part of the later one need not be the larger. */
    if (s->free_ranks && r > 0 && w->load[r] == w->load[r - 1] && !column[(size_t)(r - 1) * layer->n_heads])
        most = 0;
    for (int n = most; n >= 0; n--) {
        *cell = n;
        w->load[r] = n ? before + layer->head_us + n * weight : before;
        s->copies += n ? copy : 0;
        descend(s, i, r + 1, slots - n);
        s->copies -= n ? copy : 0;
    }
    *cell = 0;
    w->load[r] = before;
}

double fkv_layer_exact(const fkv_layer *layer, fkv_layer_work *w, double bound, fkv_split *best)
{
    const int k = layer->n_heads;
    if (k * layer->n_ranks > EXACT_CELLS || best->us <= bound * (1 + FKV_PLAN_EQUAL)) return bound;
    search s = {.layer = layer,
                .w = w,
                .best = best,
                .free_ranks = layer->max_copies >= k * layer->n_ranks,
                .nodes = layer->n_slots <= EXACT_SLOTS ? EXACT_NODES : EXACT_TRY_NODES,
                .enough = bound * (1 + FKV_PLAN_EQUAL)};
    fkv_layer_order(layer, w->order);
    w->rest[k] = 0;
    for (int i = k - 1; i >= 0; i--)
        w->rest[i] = w->rest[i + 1] + layer->head_us + layer->n_slots * layer->slot_us[w->order[i]];
    for (int r = 0; r < layer->n_ranks; r++) w->load[r] = layer->t0_us;
    memset(w->trial.slots, 0, (size_t)layer->n_ranks * k * sizeof *w->trial.slots);
    descend(&s, 0, 0, layer->n_slots);
    fkv_split_copy(layer, &w->trial, best);
    fkv_layer_relabel(layer, w, &w->trial);
    fkv_layer_drop_copies(layer, w, false, &w->trial);
    fkv_split_offer(layer, &w->trial, best);
    if (s.cut) return bound;
    const double proven = best->us * (1 - FKV_PLAN_EQUAL);
    return proven > bound ? proven : bound;
}
