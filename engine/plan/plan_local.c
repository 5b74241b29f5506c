/* Improving a layer's split: renaming ranks towards home, moves and swaps from
 * the slowest rank, and dropping copies that buy nothing. Owns no memory; works
 * in place on a split, with fkv_layer_work for scratch.
 *
 * Ties: the candidate found first stays; candidates are tried by head, then by
 * rank, then by number of slots, all ascending. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "engine/plan/plan_layer.h"

enum { MATCH_RANKS = 128 }; /* renaming takes n_ranks^3 operations; beyond this it is left out */

/* Hungarian method on the n x n matrix gain (by rows), largest total; row_of[j]
 * is the row given to column j, all counted from 1. Ties: lower column. */
static void match_rows(const int64_t *gain, int n, int *row_of, int *way, int *seen, int64_t *price_row,
                       int64_t *price_col, int64_t *slack)
{
    memset(row_of, 0, ((size_t)n + 1) * sizeof *row_of);
    memset(price_row, 0, ((size_t)n + 1) * sizeof *price_row);
    memset(price_col, 0, ((size_t)n + 1) * sizeof *price_col);
    for (int i = 1; i <= n; i++) {
        int j0 = 0;
        row_of[0] = i;
        for (int j = 0; j <= n; j++) {
            slack[j] = INT64_MAX;
            seen[j] = 0;
        }
        do {
            const int i0 = row_of[j0];
            int64_t delta = INT64_MAX;
            int j1 = 0;
            seen[j0] = 1;
            for (int j = 1; j <= n; j++) {
                if (seen[j]) continue;
                const int64_t s = -gain[(size_t)(i0 - 1) * n + (j - 1)] - price_row[i0] - price_col[j];
                if (s < slack[j]) {
                    slack[j] = s;
                    way[j] = j0;
                }
                if (slack[j] < delta) {
                    delta = slack[j];
                    j1 = j;
                }
            }
            for (int j = 0; j <= n; j++) {
                if (seen[j]) {
                    price_row[row_of[j]] += delta;
                    price_col[j] -= delta;
                } else if (slack[j] != INT64_MAX) {
                    slack[j] -= delta;
                }
            }
            j0 = j1;
        } while (row_of[j0]);
        do {
            row_of[j0] = row_of[way[j0]];
            j0 = way[j0];
        } while (j0);
    }
}

void fkv_layer_relabel(const fkv_layer *layer, fkv_layer_work *w, fkv_split *split)
{
    const int n = layer->n_ranks, k = layer->n_heads;
    if (n > MATCH_RANKS) return;
    /* A placement at home outweighs all slots together. */
    const int64_t placement = (int64_t)layer->n_slots * k + 1;
    memset(w->match, 0, (size_t)n * n * sizeof *w->match);
    for (int r = 0; r < n; r++)
        for (int h = 0; h < k; h++) {
            const int slots = split->slots[(size_t)r * k + h];
            if (slots) w->match[(size_t)r * n + layer->home[h]] += placement + slots;
        }
    int *row_of = w->match_work;
    match_rows(w->match, n, row_of, row_of + n + 1, row_of + 2 * (n + 1), w->match_price,
               w->match_price + n + 1, w->match_price + 2 * (n + 1));

    /* Sort the rows into place; row_of[to + 1] - 1 is the row that belongs at
     * to, and may itself have been moved by an earlier exchange. */
    for (int to = 0; to < n; to++) {
        int from = row_of[to + 1] - 1;
        while (from < to) from = row_of[from + 1] - 1;
        if (from == to) continue;
        int *a = split->slots + (size_t)to * k, *b = split->slots + (size_t)from * k;
        for (int h = 0; h < k; h++) {
            const int t = a[h];
            a[h] = b[h];
            b[h] = t;
        }
    }
    fkv_split_measure(layer, split);
}

static double rank_us(const fkv_layer *layer, const int *row)
{
    double us = layer->t0_us;
    for (int h = 0; h < layer->n_heads; h++)
        if (row[h]) us += layer->head_us + row[h] * layer->slot_us[h];
    return us;
}

/* n slots of head h go from rank a to b, and back slots of head g from b to a
 * (back 0: nothing does). */
typedef struct step {
    double us; /* the slower of a and b afterwards */
    int copies;
    int a, b, h, n, g, back;
} step;

static void consider(const fkv_layer *layer, const fkv_split *split, const step *s, step *best)
{
    if (split->copies + s->copies > layer->max_copies) return;
    if (s->us < best->us || (s->us == best->us && s->copies < best->copies)) *best = *s;
}

static int copy_at(const fkv_layer *layer, int r, int h)
{
    return layer->home[h] != r;
}

/* Moves of head h from rank a to rank b. */
static void consider_moves(const fkv_layer *layer, const fkv_layer_work *w, bool whole,
                           const fkv_split *split, int a, int b, int h, step *best)
{
    const int k = layer->n_heads;
    const int have = split->slots[(size_t)a * k + h], there = split->slots[(size_t)b * k + h];
    const double weight = layer->slot_us[h], charge = there ? 0 : layer->head_us;
    const int added = there ? 0 : copy_at(layer, b, h);
    /* The number that makes both equal, the next one, and all of them. */
    int tries[3] = {0, 0, have};
    if (!whole) {
        const double even = (w->load[a] - w->load[b] - charge) / (2 * weight);
        if (even >= 0 && even < have) {
            tries[0] = (int)even;
            tries[1] = tries[0] + 1;
        }
    }
    for (int i = 0; i < 3; i++) {
        const int n = tries[i];
        if (n < 1 || n > have || (i < 2 && n == have)) continue;
        const double left = w->load[a] - n * weight - (n == have ? layer->head_us : 0);
        const double right = w->load[b] + n * weight + charge;
        const step s = {.us = left > right ? left : right,
                        .copies = added - (n == have ? copy_at(layer, a, h) : 0),
                        .a = a,
                        .b = b,
                        .h = h,
                        .n = n};
        consider(layer, split, &s, best);
    }
}

/* Exchanges of a's part of head h with b's part of another head. */
static void consider_swaps(const fkv_layer *layer, const fkv_layer_work *w, const fkv_split *split, int a,
                           int b, int h, step *best)
{
    const int k = layer->n_heads;
    const int *at_a = split->slots + (size_t)a * k, *at_b = split->slots + (size_t)b * k;
    if (at_b[h]) return;
    for (int g = 0; g < k; g++) {
        if (!at_b[g] || at_a[g]) continue;
        const double gives = at_a[h] * layer->slot_us[h], takes = at_b[g] * layer->slot_us[g];
        const double left = w->load[a] - gives + takes, right = w->load[b] + gives - takes;
        const step s = {.us = left > right ? left : right,
                        .copies = copy_at(layer, b, h) + copy_at(layer, a, g) - copy_at(layer, a, h) -
                                  copy_at(layer, b, g),
                        .a = a,
                        .b = b,
                        .h = h,
                        .n = at_a[h],
                        .g = g,
                        .back = at_b[g]};
        consider(layer, split, &s, best);
    }
}

void fkv_layer_improve(const fkv_layer *layer, fkv_layer_work *w, bool whole, fkv_split *split)
{
    const int k = layer->n_heads;
    split->us = fkv_layer_us(layer, split->slots, w->load);
    split->copies = fkv_layer_copies(layer, split->slots);
    for (int steps = 4 * (k + layer->n_ranks); steps > 0; steps--) {
        int a = 0;
        for (int r = 1; r < layer->n_ranks; r++)
            if (w->load[r] > w->load[a]) a = r;
        step best = {.us = w->load[a] * (1 - 1e-12), .copies = INT_MAX};
        for (int h = 0; h < k; h++) {
            if (!split->slots[(size_t)a * k + h]) continue;
            for (int b = 0; b < layer->n_ranks; b++) {
                if (b == a) continue;
                consider_moves(layer, w, whole, split, a, b, h, &best);
                consider_swaps(layer, w, split, a, b, h, &best);
            }
        }
        if (!best.n) break;
        int *at_a = split->slots + (size_t)best.a * k, *at_b = split->slots + (size_t)best.b * k;
        at_a[best.h] -= best.n;
        at_b[best.h] += best.n;
        at_a[best.g] += best.back;
        at_b[best.g] -= best.back;
        split->copies += best.copies;
        w->load[best.a] = rank_us(layer, at_a);
        w->load[best.b] = rank_us(layer, at_b);
    }
    fkv_split_measure(layer, split);
}

void fkv_layer_drop_copies(const fkv_layer *layer, fkv_layer_work *w, bool whole, fkv_split *split)
{
    const int k = layer->n_heads;
    const double limit = fkv_layer_us(layer, split->slots, w->load);
    for (int r = 0; r < layer->n_ranks; r++)
        for (int h = 0; h < k; h++) {
            int *from = split->slots + (size_t)r * k;
            if (!from[h] || layer->home[h] == r) continue;
            /* Home first, then whoever serves the head already. */
            for (int i = -1; i < layer->n_ranks; i++) {
                const int b = i < 0 ? layer->home[h] : i;
                int *to = split->slots + (size_t)b * k;
                if (b == r || i == layer->home[h] || (i >= 0 && (whole || !to[h]))) continue;
                const int n = from[h];
                from[h] = 0;
                to[h] += n;
                const double us = rank_us(layer, to);
                if (us <= limit) {
                    w->load[b] = us;
                    w->load[r] = rank_us(layer, from);
                    break;
                }
                from[h] = n;
                to[h] -= n;
            }
        }
    fkv_split_measure(layer, split);
}
