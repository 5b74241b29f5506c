/* Dividing two ranks' work between them anew, as well as it can be: the
 * stronger, slower way to improve a layer's split. Owns no memory.
 *
 * For the slowest rank a and every other rank b, all ways to deal their heads
 * to the two are tried, and for each of them every head of the fuller one as
 * the head that both share. The best of all replaces the two; this goes on
 * while the slowest rank gets faster. Ties: fewer copies, then the candidate
 * found first (lower b, lower set of heads, lower head). */
#include <limits.h>
#include <string.h>

#include "engine/plan/plan_layer.h"

enum { PAIR_HEADS = 10 }; /* 2^10 ways; fuller pairs are left to single moves */

typedef struct pair {
    int a, b, n;               /* ranks, heads served by either */
    int head[PAIR_HEADS];      /* ascending */
    int slots[PAIR_HEADS];     /* both ranks' together */
    double us[PAIR_HEADS];     /* with its charge */
    int copies[2][PAIR_HEADS]; /* 1 where serving it on a, on b is a copy */
    int copies_now;
} pair;

typedef struct deal {
    double us; /* of the slower one */
    int copies;
    int b;
    unsigned to_a;    /* set of heads that go to a */
    int shared, move; /* so many slots of this head go to the other one */
} deal;

static bool gather(const fkv_layer *layer, const fkv_split *split, int a, int b, pair *p)
{
    const int *at_a = split->slots + (size_t)a * layer->n_heads;
    const int *at_b = split->slots + (size_t)b * layer->n_heads;
    *p = (pair){.a = a, .b = b};
    for (int h = 0; h < layer->n_heads; h++) {
        const int slots = at_a[h] + at_b[h];
        if (!slots) continue;
        if (p->n == PAIR_HEADS) return false;
        const int i = p->n++, copy_a = layer->home[h] != a, copy_b = layer->home[h] != b;
        p->head[i] = h;
        p->slots[i] = slots;
        p->us[i] = layer->head_us + slots * layer->slot_us[h];
        p->copies[0][i] = copy_a;
        p->copies[1][i] = copy_b;
        p->copies_now += (at_a[h] ? copy_a : 0) + (at_b[h] ? copy_b : 0);
    }
    return true;
}

static void consider(double a_us, double b_us, deal d, int limit, deal *best)
{
    d.us = a_us > b_us ? a_us : b_us;
    if (d.copies > limit || d.us > best->us || (d.us == best->us && d.copies >= best->copies)) return;
    *best = d;
}

/* The heads to_a on a, the others on b; then each head of the fuller one shared. */
static void try_deal(const fkv_layer *layer, const pair *p, unsigned to_a, bool whole, int limit, deal *best)
{
    double us[2] = {layer->t0_us, layer->t0_us};
    deal d = {.b = p->b, .to_a = to_a, .shared = -1, .copies = -p->copies_now};
    for (int i = 0; i < p->n; i++) {
        const int side = to_a >> i & 1 ? 0 : 1;
        us[side] += p->us[i];
        d.copies += p->copies[side][i];
    }
    consider(us[0], us[1], d, limit, best);
    const int full = us[0] >= us[1] ? 0 : 1;
    const double over = us[full] - us[1 - full] - layer->head_us;
    /* Sharing pays for its charge, and must come below the best. */
    if (whole || over <= 0 || (us[0] + us[1] + layer->head_us) / 2 >= best->us) return;
    for (int i = 0; i < p->n; i++) {
        const int side = to_a >> i & 1 ? 0 : 1;
        if (side != full) continue;
        const double weight = layer->slot_us[p->head[i]], even = over / (2 * weight);
        if (!(even < p->slots[i])) continue; /* giving all of it is another deal */
        for (int n = (int)even; n <= (int)even + 1; n++) {
            if (n < 1 || n >= p->slots[i]) continue;
            deal s = d;
            s.shared = i;
            s.move = n;
            s.copies += p->copies[1 - side][i];
            consider(us[full] - n * weight, us[1 - full] + layer->head_us + n * weight, s, limit, best);
        }
    }
}

static void apply(const fkv_layer *layer, const pair *p, const deal *d, fkv_split *split)
{
    for (int i = 0; i < p->n; i++) {
        int *at_a = &split->slots[(size_t)p->a * layer->n_heads + p->head[i]];
        int *at_b = &split->slots[(size_t)p->b * layer->n_heads + p->head[i]];
        int *to = d->to_a >> i & 1 ? at_a : at_b, *other = to == at_a ? at_b : at_a;
        const int move = d->shared == i ? d->move : 0;
        *to = p->slots[i] - move;
        *other = move;
    }
}

void fkv_layer_improve_pairs(const fkv_layer *layer, fkv_layer_work *w, bool whole, fkv_split *split)
{
    fkv_layer_improve(layer, w, whole, split);
    for (int rounds = 4 * layer->n_ranks; rounds > 0; rounds--) {
        pair p;
        int a = 0;
        fkv_layer_us(layer, split->slots, w->load);
        for (int r = 1; r < layer->n_ranks; r++)
            if (w->load[r] > w->load[a]) a = r;
        deal best = {.us = w->load[a] * (1 - 1e-12), .copies = INT_MAX, .b = -1};
        for (int b = 0; b < layer->n_ranks; b++) {
            if (b == a || !gather(layer, split, a, b, &p)) continue;
            for (unsigned to_a = 0; to_a < 1U << p.n; to_a++)
                try_deal(layer, &p, to_a, whole, layer->max_copies - split->copies, &best);
        }
        if (best.b < 0 || !gather(layer, split, a, best.b, &p)) break;
        apply(layer, &p, &best, split);
        fkv_split_measure(layer, split);
    }
}
