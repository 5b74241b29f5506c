/* Fair-copying: heads may be shared out. Each constructor below takes a target
 * time and tries to build a split within it; the target is lowered by bisection
 * between the bound and the best split so far. Small layers are searched
 * exhaustively (plan_exact.c). Owns no memory. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "engine/plan/plan_layer.h"

/* Tables over the subsets of so many heads take about a millisecond. */
enum { QUICK_SUBSET_HEADS = 12 };
#define LITTLE 1e-3

typedef bool constructor(const fkv_layer *layer, fkv_layer_work *w, double room, fkv_split *t);

static void clear(const fkv_layer *layer, fkv_split *t)
{
    memset(t->slots, 0, (size_t)layer->n_ranks * layer->n_heads * sizeof *t->slots);
}

/* ---- packing rank after rank, over subsets of heads ----
 *
 * Ranks are filled one after the other. The next head goes whole onto the open
 * rank, or begins there and continues on new ranks, or begins on a new rank.
 * subset[H] is the state after the heads H: the fewest ranks, then the least
 * room taken on the last one. Whatever tree of shared heads a plan has, filling
 * in some order loses only the rounding to whole slots and rests too small for
 * a charge, and the order is what the table chooses. */

/* Begins head h's remaining slots on a new rank; false if no rank can take any. */
static bool begin_on_new(const fkv_layer *layer, int h, int slots, double room, int *n_ranks, double *taken)
{
    const int f = fkv_layer_fit(layer, h, room);
    if (f < 1) return false;
    const int more = (slots + f - 1) / f;
    *n_ranks += more;
    *taken = layer->head_us + (slots - (more - 1) * f) * layer->slot_us[h];
    return true;
}

static void keep_better(fkv_subset *to, int n_ranks, double taken, int h, bool joined)
{
    if (n_ranks > to->n_ranks || (n_ranks == to->n_ranks && taken >= to->room)) return;
    to->room = taken;
    to->n_ranks = n_ranks;
    to->head = (int16_t)h;
    to->joined = joined;
}

static void extend(const fkv_layer *layer, fkv_subset *subset, size_t heads, int h, double room)
{
    const double whole = layer->head_us + layer->n_slots * layer->slot_us[h];
    const fkv_subset from = subset[heads];
    fkv_subset *to = &subset[heads | (size_t)1 << h];
    int n = from.n_ranks;
    double taken;
    if (n && from.room + whole <= room) {
        keep_better(to, n, from.room + whole, h, true);
        return;
    }
    const int here = n ? fkv_layer_fit(layer, h, room - from.room) : 0;
    if (here > 0 && here < layer->n_slots && begin_on_new(layer, h, layer->n_slots - here, room, &n, &taken))
        keep_better(to, n, taken, h, true);
    n = from.n_ranks;
    if (whole <= room)
        keep_better(to, n + 1, whole, h, false);
    else if (begin_on_new(layer, h, layer->n_slots, room, &n, &taken))
        keep_better(to, n, taken, h, false);
}

static bool pack_in_order(const fkv_layer *layer, const int *order, const bool *joined, double room,
                          fkv_split *t)
{
    int rank = -1;
    double taken = 0;
    clear(layer, t);
    for (int i = 0; i < layer->n_heads; i++) {
        const int h = order[i];
        for (int slots = layer->n_slots, first = 1; slots; first = 0) {
            if (!first || !joined[i]) {
                rank++;
                taken = 0;
            }
            if (rank < 0 || rank >= layer->n_ranks) return false;
            const double rest = layer->head_us + slots * layer->slot_us[h];
            int n = slots;
            if (taken + rest > room) {
                const int f = fkv_layer_fit(layer, h, room - taken);
                n = f < slots ? f : slots;
            }
            if (n < 1) return false;
            t->slots[(size_t)rank * layer->n_heads + h] += n;
            taken += layer->head_us + n * layer->slot_us[h];
            slots -= n;
        }
    }
    return true;
}

static bool pack_subsets(const fkv_layer *layer, fkv_layer_work *w, double room, fkv_split *t)
{
    const int k = layer->n_heads;
    const size_t all = ((size_t)1 << k) - 1;
    bool joined[FKV_SUBSET_HEADS];
    fkv_subset_init(layer, layer->head_us, w->subset);
    for (size_t i = 0; i < all; i++) {
        const fkv_subset *from = &w->subset[i];
        if (from->n_ranks > layer->n_ranks) continue;
        /* What is left must fit even without dividing another head. */
        const double left = w->subset[all].us - from->us;
        const double room_left = (layer->n_ranks - from->n_ranks + 1) * room - from->room;
        if (i && left > room_left * (1 + FKV_PLAN_EQUAL)) continue;
        for (int h = 0; h < k; h++)
            if (!(i >> h & 1)) extend(layer, w->subset, i, h, room);
    }
    if (w->subset[all].n_ranks > layer->n_ranks) return false;
    size_t heads = all;
    for (int i = k - 1; i >= 0; i--) {
        w->list[i] = w->subset[heads].head;
        joined[i] = w->subset[heads].joined;
        heads &= ~((size_t)1 << w->list[i]);
    }
    if (!pack_in_order(layer, w->list, joined, room, t)) return false;
    fkv_layer_relabel(layer, w, t);
    return true;
}

/* ---- best fit, for many heads ---- */

/* The rank with the least room left that takes all slots of h, or -1. */
static int best_fit(const fkv_layer *layer, const fkv_layer_work *w, const fkv_split *t, int h, int slots,
                    double room)
{
    int best = -1;
    for (int r = 0; r < layer->n_ranks; r++) {
        if (t->slots[(size_t)r * layer->n_heads + h]) continue;
        if (fkv_layer_fit(layer, h, room - w->load[r]) < slots) continue;
        if (best < 0 || w->load[r] > w->load[best]) best = r;
    }
    return best;
}

static void put(const fkv_layer *layer, fkv_layer_work *w, fkv_split *t, int r, int h, int slots)
{
    t->slots[(size_t)r * layer->n_heads + h] += slots;
    w->load[r] += layer->head_us + slots * layer->slot_us[h];
}

/* Shares h out over the ranks with the most room; the last part goes where it
 * fits best. */
static bool share_out(const fkv_layer *layer, fkv_layer_work *w, double room, int h, fkv_split *t)
{
    for (int slots = layer->n_slots; slots;) {
        int r = best_fit(layer, w, t, h, slots, room);
        if (r >= 0) {
            put(layer, w, t, r, h, slots);
            return true;
        }
        for (int i = 0; i < layer->n_ranks; i++)
            if (!t->slots[(size_t)i * layer->n_heads + h] && (r < 0 || w->load[i] < w->load[r])) r = i;
        if (r < 0) return false;
        const int n = fkv_layer_fit(layer, h, room - w->load[r]);
        if (n < 1) return false;
        put(layer, w, t, r, h, n);
        slots -= n;
    }
    return true;
}

/* Heads by weight; whole where one fits, shared out at once where none does. */
static bool pack_mixed(const fkv_layer *layer, fkv_layer_work *w, double room, fkv_split *t)
{
    clear(layer, t);
    for (int r = 0; r < layer->n_ranks; r++) w->load[r] = 0;
    for (int i = 0; i < layer->n_heads; i++)
        if (!share_out(layer, w, room, w->order[i], t)) return false;
    fkv_layer_relabel(layer, w, t);
    return true;
}

/* All heads that fit whole first, then the others fill the gaps. */
static bool pack_whole_first(const fkv_layer *layer, fkv_layer_work *w, double room, fkv_split *t)
{
    int left = 0;
    clear(layer, t);
    for (int r = 0; r < layer->n_ranks; r++) w->load[r] = 0;
    for (int i = 0; i < layer->n_heads; i++) {
        const int h = w->order[i], r = best_fit(layer, w, t, h, layer->n_slots, room);
        if (r >= 0)
            put(layer, w, t, r, h, layer->n_slots);
        else
            w->list[left++] = h;
    }
    for (int i = 0; i < left; i++)
        if (!share_out(layer, w, room, w->list[i], t)) return false;
    fkv_layer_relabel(layer, w, t);
    return true;
}

/* ---- from home outwards: few copies ---- */

typedef struct export_step {
    int h, to, n;
    double rest; /* the home's excess afterwards; 0: relieved */
    double left; /* room left where it goes */
} export_step;

/* The best single export from rank r: one that relieves it and leaves the least
 * room where it goes; else the one that takes most. */
static bool best_export(const fkv_layer *layer, const fkv_layer_work *w, double room, const fkv_split *t,
                        int r, export_step *best)
{
    const int k = layer->n_heads;
    const double excess = w->load[r] - room;
    bool found = false;
    for (int h = 0; h < k; h++) {
        const int have = t->slots[(size_t)r * k + h];
        if (!have) continue;
        for (int b = 0; b < layer->n_ranks; b++) {
            if (b == r || t->slots[(size_t)b * k + h]) continue;
            const double weight = layer->slot_us[h];
            const int fit = fkv_layer_fit(layer, h, room - w->load[b]);
            int n = fit < have ? fit : have;
            if (n < 1) continue;
            const double enough = ceil(excess / weight);
            if (enough < n) n = enough < 1 ? 1 : (int)enough;
            double rest = excess - n * weight - (n == have ? layer->head_us : 0);
            if (rest < 0) rest = 0;
            const double left = room - w->load[b] - layer->head_us - n * weight;
            if (found && (rest > best->rest || (rest == best->rest && left >= best->left))) continue;
            *best = (export_step){.h = h, .to = b, .n = n, .rest = rest, .left = left};
            found = true;
        }
    }
    return found;
}

static bool export_from_home(const fkv_layer *layer, fkv_layer_work *w, double room, fkv_split *t)
{
    fkv_layer_standard(layer, t);
    for (int r = 0; r < layer->n_ranks; r++) {
        w->load[r] = 0;
        for (int h = 0; h < layer->n_heads; h++)
            if (layer->home[h] == r) w->load[r] += layer->head_us + layer->n_slots * layer->slot_us[h];
    }
    const int limit = layer->max_copies < layer->n_heads * layer->n_ranks ? layer->max_copies
                                                                          : layer->n_heads * layer->n_ranks;
    for (int copies = 0;; copies++) {
        int r = 0;
        export_step s = {0};
        for (int i = 1; i < layer->n_ranks; i++)
            if (w->load[i] > w->load[r]) r = i;
        if (w->load[r] <= room) return true;
        if (copies == limit || !best_export(layer, w, room, t, r, &s)) return false;
        int *from = &t->slots[(size_t)r * layer->n_heads + s.h];
        *from -= s.n;
        w->load[r] -= s.n * layer->slot_us[s.h] + (*from ? 0 : layer->head_us);
        put(layer, w, t, s.to, s.h, s.n);
    }
}

/* ---- the search over targets ---- */

/* Builds, improves and offers; whether the constructor met the target. */
static bool attempt(const fkv_layer *layer, fkv_layer_work *w, constructor *build, double us, fkv_split *best)
{
    fkv_split *t = &w->trial;
    if (!build(layer, w, us - layer->t0_us, t)) return false;
    fkv_split_measure(layer, t);
    if (t->copies > layer->max_copies) return false;
    fkv_layer_improve(layer, w, false, t);
    fkv_layer_drop_copies(layer, w, false, t);
    fkv_split_offer(layer, t, best);
    return true;
}

static void search_targets(const fkv_layer *layer, fkv_layer_work *w, constructor *build, double bound,
                           int trials, fkv_split *best)
{
    double low = bound, high = best->us;
    attempt(layer, w, build, high, best); /* perhaps with fewer copies */
    if (best->us < high) high = best->us;
    for (; trials > 0 && high - low > high * FKV_PLAN_EQUAL; trials--) {
        const double mid = low + (high - low) / 2;
        if (attempt(layer, w, build, mid, best))
            high = best->us < mid ? best->us : mid;
        else
            low = mid;
    }
}

static void polish(const fkv_layer *layer, fkv_layer_work *w, fkv_split *best)
{
    fkv_split_copy(layer, &w->trial, best);
    fkv_layer_improve_pairs(layer, w, false, &w->trial);
    fkv_layer_drop_copies(layer, w, false, &w->trial);
    fkv_split_offer(layer, &w->trial, best);
}

double fkv_layer_share(const fkv_layer *layer, fkv_layer_work *w, fkv_split *best)
{
    if (layer->max_copies == 0 || layer->n_ranks == 1) return fkv_layer_bound(layer, w, true, 0, best->us);
    fkv_layer_order(layer, w->order);
    double bound = fkv_layer_bound(layer, w, false, 0, best->us);
    search_targets(layer, w, export_from_home, bound, 40, best);
    search_targets(layer, w, pack_whole_first, bound, 40, best);
    search_targets(layer, w, pack_mixed, bound, 40, best);
    polish(layer, w, best);
    /* The tables over subsets come last: the closer best is, the fewer targets
     * they have to try. Large ones are left out where little can be won. */
    const double won = best->us - bound;
    if (w->subset && (layer->n_heads <= QUICK_SUBSET_HEADS || won > LITTLE * best->us)) {
        bound = fkv_layer_bound(layer, w, true, bound, best->us);
        search_targets(layer, w, pack_subsets, bound, fkv_layer_trials(layer), best);
        polish(layer, w, best);
    }
    bound = fkv_layer_exact(layer, w, bound, best);
    return bound < best->us ? bound : best->us;
}
