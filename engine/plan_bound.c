/* A proven lower bound on a layer's time, copies' costs included. Owns no
 * memory.
 *
 * For a time T, room = T - t0 is what a rank may spend. T is impossible if any
 * of these necessary conditions fails; the bound is the largest T found
 * impossible. All conditions only loosen as T grows, so bisection is right.
 *
 * 1. Volume. A rank takes at most f_h = floor((room - head_us) / slot_us[h])
 *    slots of head h, so the head has at least n_h = ceil(S / f_h) placements,
 *    each of which costs head_us. All must fit into R * room, and n_h - 1
 *    placements of every head are copies.
 * 2. Groups. Draw an edge between a head and each rank that serves it. A
 *    connected group of m ranks and the heads G has at least |G| + m - 1 edges,
 *    each costing head_us = c, so sum_G slots_us + (|G| + m - 1) c <= m * room,
 *    that is m >= (sum_G (slots_us + c) - c) / (room - c). The least sum of m
 *    over all ways to divide the heads into groups must not exceed R. This is
 *    what a divided head must cost: dividing fewer heads makes more groups,
 *    and each of these rounds m up on its own.
 * 3. Copies, when they are limited. A rank whose heads exceed room must give
 *    slots away. j copies of head h take at most min(S, j f_h) slots, and its
 *    charge too once all are gone. The fewest copies that relieve each rank,
 *    summed over ranks, must not exceed the limit. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "engine/plan_layer.h"

/* Rounding is allowed for by this share, always in favour of "possible". */
#define SLACK 1e-10

static double slots_us(const fkv_layer *layer, int h)
{
    return layer->n_slots * layer->slot_us[h];
}

/* Placements that head h needs at least; n_ranks + 1 when none helps. */
static int least_placements(const fkv_layer *layer, int h, double room)
{
    const int f = fkv_layer_fit(layer, h, room * (1 + SLACK));
    if (f < 1) return layer->n_ranks + 1;
    const int n = (layer->n_slots + f - 1) / f;
    return n > layer->n_ranks ? layer->n_ranks + 1 : n;
}

static bool volume_fits(const fkv_layer *layer, double room)
{
    double total = 0;
    int64_t copies = 0;
    for (int h = 0; h < layer->n_heads; h++) {
        const int n = least_placements(layer, h, room);
        if (n > layer->n_ranks) return false;
        total += slots_us(layer, h) + n * layer->head_us;
        copies += n - 1;
    }
    return total <= layer->n_ranks * room * (1 + SLACK) && copies <= layer->max_copies;
}

static void keep_better(fkv_subset *to, int n_ranks, double room)
{
    if (n_ranks > to->n_ranks || (n_ranks == to->n_ranks && room <= to->room)) return;
    to->n_ranks = n_ranks;
    to->room = room;
}

/* subset[H]: the fewest ranks for the heads H in groups, then the most room
 * left in the group that is still open. Fewer ranks always win: closing that
 * group and opening another costs one rank and leaves at least as much room as
 * any group with one rank more. */
static bool groups_fit(const fkv_layer *layer, fkv_subset *subset, double room)
{
    const int k = layer->n_heads;
    const size_t all = ((size_t)1 << k) - 1;
    const double per_rank = room - layer->head_us;
    if (per_rank <= 0) return true; /* the volume condition has spoken */
    for (size_t i = 0; i <= all; i++) subset[i] = (fkv_subset){.n_ranks = INT_MAX};
    subset[0].n_ranks = 0;
    for (size_t i = 0; i < all; i++) {
        const fkv_subset from = subset[i];
        if (from.n_ranks > layer->n_ranks) continue;
        for (int h = 0; h < k; h++) {
            if (i >> h & 1) continue;
            fkv_subset *to = &subset[i | (size_t)1 << h];
            const double us = slots_us(layer, h);
            /* A group of its own: the charge of its first edge comes with it. */
            double m = ceil(us / per_rank - SLACK);
            if (m < 1) m = 1;
            if (m <= layer->n_ranks) keep_better(to, from.n_ranks + (int)m, m * per_rank - us);
            /* Into the open group: one more edge. */
            const double need = us + layer->head_us - from.room;
            m = need <= per_rank * SLACK ? 0 : ceil(need / per_rank - SLACK);
            if (m <= layer->n_ranks) keep_better(to, from.n_ranks + (int)m, m * per_rank - need);
        }
    }
    return subset[all].n_ranks <= layer->n_ranks;
}

/* Fewest copies that bring rank r down to room, or limit + 1. best: limit + 1. */
static int least_exports(const fkv_layer *layer, double *best, int r, double room, int limit)
{
    double load = 0;
    for (int h = 0; h < layer->n_heads; h++)
        if (layer->home[h] == r) load += layer->head_us + slots_us(layer, h);
    const double excess = load - room * (1 + SLACK);
    if (excess <= 0) return 0;
    for (int j = 0; j <= limit; j++) best[j] = 0; /* the most that j copies save */
    for (int h = 0; h < layer->n_heads; h++) {
        if (layer->home[h] != r) continue;
        const int f = fkv_layer_fit(layer, h, room * (1 + SLACK));
        if (f < 1) continue;
        for (int j = limit; j > 0; j--)
            for (int n = 1; n <= j && n < layer->n_ranks; n++) {
                const bool gone = (int64_t)n * f >= layer->n_slots;
                const double saved =
                    gone ? slots_us(layer, h) + layer->head_us : (double)n * f * layer->slot_us[h];
                if (best[j - n] + saved > best[j]) best[j] = best[j - n] + saved;
                if (gone) break;
            }
    }
    for (int j = 0; j <= limit; j++)
        if (best[j] >= excess) return j;
    return limit + 1;
}

static bool copies_fit(const fkv_layer *layer, fkv_layer_work *w, double room)
{
    int left = layer->max_copies;
    if (left >= layer->n_heads * layer->n_ranks) return true;
    for (int r = 0; r < layer->n_ranks; r++) {
        const int limit = left < FKV_EXPORTS ? left : FKV_EXPORTS;
        const int n = least_exports(layer, w->saving, r, room, limit);
        if (n > left) return false;
        left -= n;
    }
    return true;
}

static bool possible(const fkv_layer *layer, fkv_layer_work *w, double us)
{
    const double room = us - layer->t0_us;
    return volume_fits(layer, room) && copies_fit(layer, w, room) &&
           (!w->subset || groups_fit(layer, w->subset, room));
}

int fkv_layer_trials(const fkv_layer *layer)
{
    if (layer->n_heads > FKV_SUBSET_HEADS) return 40;
    const int64_t n = ((int64_t)1 << 23) / ((int64_t)layer->n_heads << layer->n_heads);
    return n < 6 ? 6 : n > 40 ? 40 : (int)n;
}

double fkv_layer_bound(const fkv_layer *layer, fkv_layer_work *w, double upper)
{
    double total = 0;
    for (int h = 0; h < layer->n_heads; h++) total += layer->head_us + slots_us(layer, h);
    double low = (layer->t0_us + total / layer->n_ranks) * (1 - SLACK), high = upper;
    if (low > high) low = high;
    const double near = high * (1 - FKV_PLAN_EQUAL);
    if (low < near) {
        if (!possible(layer, w, near)) return near;
        high = near;
    }
    for (int i = fkv_layer_trials(layer); i > 0 && high - low > high * FKV_PLAN_EQUAL; i--) {
        const double mid = low + (high - low) / 2;
        if (possible(layer, w, mid))
            high = mid;
        else
            low = mid;
    }
    return low;
}
