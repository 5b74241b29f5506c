/* One layer of the planning problem, private to plan*.c.
 *
 * A layer's plan is a split: how many slots of head h rank r decodes. Where a
 * rank's slots lie in the batch is decided afterwards (plan.c) and costs
 * nothing. Every function here is deterministic: work is limited by counting
 * it, never by the clock, and every choice has a stated tie-break.
 *
 * Arrays of layers and splits are the caller's; scratch memory is its init's, and a failed init leaves
 * none. Not for other folders: see plan.h. */
#ifndef FKV_ENGINE_PLAN_LAYER_H
#define FKV_ENGINE_PLAN_LAYER_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/plan/plan.h"

/* Up to so many heads the tables over all subsets of heads are used. */
enum { FKV_SUBSET_HEADS = 16 };
/* The bound counts at most so many copies out of one rank. */
enum { FKV_EXPORTS = 256 };
/* Two plans closer than this share are equally good; the one with fewer copies is taken. */
#define FKV_PLAN_EQUAL 1e-9

typedef struct fkv_layer {
    int n_heads, n_ranks, n_slots;
    int max_copies; /* placements away from home; INT_MAX: no limit */
    double t0_us, head_us;
    const double *slot_us; /* [n_heads]: one slot of head h */
    const int *home;       /* [n_heads] */
} fkv_layer;

typedef struct fkv_split {
    int *slots; /* [n_ranks][n_heads] */
    double us;  /* the slowest rank's segment */
    int copies; /* placements away from home */
} fkv_split;

/* A state of the tables over subsets: ranks in use and room taken (packing) or
 * left (bound) on the last. */
typedef struct fkv_subset {
    double us; /* of the subset's heads: their slots, and in packing their charges */
    double room;
    int n_ranks;
    int16_t head; /* the last head added */
    bool joined;  /* it began on the rank that was open, not on a new one */
} fkv_subset;

/* Scratch memory for layers of one shape, used again for every layer. */
typedef struct fkv_layer_work {
    fkv_split trial, other; /* splits under construction */
    double *load;           /* [n_ranks] */
    int *order;             /* [n_heads]: heads by weight, heaviest first; ties: lower head first */
    int *list;              /* [n_heads] */
    int *assign, *best;     /* [n_heads]: rank of a whole head */
    double *rest;           /* [n_heads + 1]: load of order[i..] */
    double *saving;         /* [FKV_EXPORTS + 1], plan_bound.c */
    int64_t *match;         /* [n_ranks][n_ranks], plan_local.c */
    int *match_work;        /* [4 * (n_ranks + 1)] */
    int64_t *match_price;   /* [3 * (n_ranks + 1)] */
    fkv_subset *subset;     /* [2^n_heads], NULL above FKV_SUBSET_HEADS */
} fkv_layer_work;

fkv_status fkv_layer_work_init(fkv_layer_work *w, int n_heads, int n_ranks, fkv_err *err);
void fkv_layer_work_free(fkv_layer_work *w);

/* ---- plan_layer.c: a split and its cost ---- */

/* t0 + heads served * head_us + slots * slot_us, of the slowest rank; load (may
 * be NULL) gets every rank's, [n_ranks]. Heads are added in ascending order,
 * which is the order of fkv_plan_step_us, so both give the same bits. */
double fkv_layer_us(const fkv_layer *layer, const int *slots, double *load);
/* Placements away from home. */
int fkv_layer_copies(const fkv_layer *layer, const int *slots);
/* Fills us and copies from slots. */
void fkv_split_measure(const fkv_layer *layer, fkv_split *split);
void fkv_split_copy(const fkv_layer *layer, fkv_split *to, const fkv_split *from);
/* Slots of head h that fit into room us on a rank that does not serve it yet. */
int fkv_layer_fit(const fkv_layer *layer, int h, double room);
/* Heads by slots * slot_us, heaviest first; ties: lower head first. */
void fkv_layer_order(const fkv_layer *layer, int *order);
/* Empties the table, [2^n_heads], but for the empty subset, and adds up every
 * subset's us, charge_us for each head. */
void fkv_subset_init(const fkv_layer *layer, double charge_us, fkv_subset *subset);
/* Every head at home. */
void fkv_layer_standard(const fkv_layer *layer, fkv_split *split);
/* Takes trial for best if it keeps max_copies and is better: faster by more
 * than FKV_PLAN_EQUAL; or no slower and with fewer copies. Says whether it did. */
bool fkv_split_offer(const fkv_layer *layer, const fkv_split *trial, fkv_split *best);

/* plan.c: appends layer l's placements to plan->at, growing it to *cap. */
fkv_status fkv_plan_lay_out(const fkv_layer *layer, const int *slots, int l, fkv_plan *plan, int *cap,
                            fkv_err *err);

/* ---- plan_local.c: improving a split ---- */

/* Renames ranks so that most placements, then most slots, are at home. */
void fkv_layer_relabel(const fkv_layer *layer, fkv_layer_work *w, fkv_split *split);
/* Moves and swaps from the slowest rank while they help; whole: heads are never
 * divided. Never slower than before; keeps max_copies if split does. */
void fkv_layer_improve(const fkv_layer *layer, fkv_layer_work *w, bool whole, fkv_split *split);
/* The same, then pairs of ranks divided anew (plan_pair.c): slower, stronger. */
void fkv_layer_improve_pairs(const fkv_layer *layer, fkv_layer_work *w, bool whole, fkv_split *split);
/* Undoes placements away from home that the slowest rank's time does not need. */
void fkv_layer_drop_copies(const fkv_layer *layer, fkv_layer_work *w, bool whole, fkv_split *split);

/* ---- the modes: never worse than best on entry ---- */

/* plan_whole.c: best-effort, whole heads. */
void fkv_layer_whole(const fkv_layer *layer, fkv_layer_work *w, fkv_split *best);
/* plan_share.c: fair-copying. Returns a proven lower bound: fkv_layer_bound's,
 * or the optimum's time where the search was exhaustive. */
double fkv_layer_share(const fkv_layer *layer, fkv_layer_work *w, fkv_split *best);

/* plan_exact.c: exhaustive for small layers. bound: a proven one, at which the
 * search stops; returns one at least as high. */
double fkv_layer_exact(const fkv_layer *layer, fkv_layer_work *w, double bound, fkv_split *best);

/* plan_bound.c: no split of the layer is faster than this. low: a bound known
 * already, or 0; upper: a time that some split reaches. groups: with the
 * condition over subsets of heads, which is the strongest and the slowest. */
double fkv_layer_bound(const fkv_layer *layer, fkv_layer_work *w, bool groups, double low, double upper);
/* How many target times a search over subsets may try: all layers with many
 * heads together stay within seconds. */
int fkv_layer_trials(const fkv_layer *layer);

#endif
