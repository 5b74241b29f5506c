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

#include "engine/plan/plan_layer.h"

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

/* Ranks for us of load at per_rank each; more than limit: limit + 1. Counted by
 * casting, for ceil() is a call where the processor may lack the instruction. */
static int ranks_for(double us, double per_rank, int limit)
{
    const double x = us / per_rank - SLACK;
    if (!(x <= limit)) return limit + 1;
    if (x <= 0) return 0;
    const int m = (int)x;
    return m < x ? m + 1 : m;
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
    fkv_subset_init(layer, 0, subset);
    for (size_t i = 0; i < all; i++) {
        const fkv_subset from = subset[i];
        if (from.n_ranks > layer->n_ranks) continue;
        /* What is left must fit, each head but one of every new group charged. */
        const int heads = k - __builtin_popcountll(i), fresh = layer->n_ranks - from.n_ranks;
        const double charges = heads > fresh ? (heads - fresh) * layer->head_us : 0;
        const double left = subset[all].us - from.us - from.room + charges;
        if (left > (layer->n_ranks - from.n_ranks + SLACK) * per_rank) continue;
        for (int h = 0; h < k; h++) {
            if (i >> h & 1) continue;
            fkv_subset *to = &subset[i | (size_t)1 << h];
            const double us = slots_us(layer, h);
            /* A group of its own: the charge of its first edge comes with it. */
            int m = ranks_for(us, per_rank, fresh);
            if (m < 1) m = 1;
            if (m <= fresh) keep_better(to, from.n_ranks + m, m * per_rank - us);
            /* Into the open group: one more edge. */
            const double need = us + layer->head_us - from.room;
            m = ranks_for(need, per_rank, fresh);
            if (m <= fresh) keep_better(to, from.n_ranks + m, m * per_rank - need);
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

static bool possible(const fkv_layer *layer, fkv_layer_work *w, bool groups, double us)
{
    const double room = us - layer->t0_us;
    return volume_fits(layer, room) && copies_fit(layer, w, room) &&
           (!groups || groups_fit(layer, w->subset, room));
}

int fkv_layer_trials(const fkv_layer *layer)
{
    if (layer->n_heads > FKV_SUBSET_HEADS) return 40;
    const int64_t n = ((int64_t)1 << 22) / ((int64_t)layer->n_heads << layer->n_heads);
    return n < 3 ? 3 : n > 40 ? 40 : (int)n;
}

double fkv_layer_bound(const fkv_layer *layer, fkv_layer_work *w, bool groups, double low, double upper)
{
    groups = groups && w->subset;
    double total = 0, high = upper;
    for (int h = 0; h < layer->n_heads; h++) total += layer->head_us + slots_us(layer, h);
    total = (layer->t0_us + total / layer->n_ranks) * (1 - SLACK);
    if (low < total) low = total;
    if (low > high) low = high;
    const double near = high * (1 - FKV_PLAN_EQUAL);
    if (low < near) {
        if (!possible(layer, w, groups, near)) return near;
        high = near;
    }
    for (int i = groups ? fkv_layer_trials(layer) : 40; i > 0 && high - low > high * FKV_PLAN_EQUAL; i--) {
        const double mid = low + (high - low) / 2;
        if (possible(layer, w, groups, mid))
            high = mid;
        else
            low = mid;
    }
    return low;
}
