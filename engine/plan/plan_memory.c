/* Evens out the memory of a solved plan over the devices: see plan.h.
 *
 * A layer's time is its slowest rank's, so every other rank has time to spare. First,
 * slots of the fullest device move where there is such time, which costs nothing. Then,
 * if a device is still over its limit, moves are bought at a price in time for memory
 * that doubles with every round over the layers, until all fit. Layers are taken one by
 * one; choices have a stated order, so the result is the same everywhere. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/plan/partition.h"
#include "engine/plan/plan.h"
#include "engine/plan/plan_layer.h"
#include "runner/base/mem.h"

enum { FREE_ROUNDS = 4, PRICED_ROUNDS = 40 };

typedef struct evening {
    const fkv_plan_problem *p;
    const fkv_plan_memory *m;
    fkv_layer layer; /* the one at work */
    fkv_plan_mode mode;
    int *home;       /* [n_heads] */
    double *slot_us; /* [n_heads] */
    const double *slot_bytes;
    int *slots;    /* [n_ranks][n_heads] of the layer */
    double *load;  /* [n_ranks] us of the layer's segments */
    double *level; /* [n_devices] bytes, all layers */
    int copies;    /* of the layer */
} evening;

/* n slots of head h from one rank to another. */
typedef struct move {
    int from, to, head, n;
    double gain;   /* bytes by which the fuller of the two devices' level falls */
    double add_us; /* to the layer's time */
} move;

static int device_of(const evening *e, int rank)
{
    return fkv_partition_device(rank, e->layer.n_ranks, e->m->n_devices);
}

static int at(const evening *e, int rank, int head)
{
    return e->slots[(size_t)rank * e->layer.n_heads + head];
}

static int fullest(const evening *e)
{
    int most = 0;
    for (int d = 1; d < e->m->n_devices; d++)
        if (e->level[d] > e->level[most]) most = d;
    return most;
}

/* Time and bytes that the receiver has with the head beside its slots. */
static double charge_us(const evening *e, int rank, int head)
{
    return at(e, rank, head) ? 0 : e->layer.head_us;
}

static double copy_bytes(const evening *e, int rank, int head)
{
    return at(e, rank, head) || e->home[head] == rank ? 0 : e->m->copy_bytes;
}

/* Copies of the layer after the move. */
static int copies_after(const evening *e, const move *v)
{
    const bool made = !at(e, v->to, v->head) && e->home[v->head] != v->to;
    const bool freed = at(e, v->from, v->head) == v->n && e->home[v->head] != v->from;
    return e->copies + made - freed;
}

/* The most slots that take no more than `us` more on the receiver and leave it no fuller
 * than the giver. 0: the move is none. */
static int most_slots(const evening *e, const move *v, double us)
{
    const int have = at(e, v->from, v->head);
    const double w = e->slot_us[v->head], b = e->slot_bytes[v->head];
    const double apart = e->level[device_of(e, v->from)] - e->level[device_of(e, v->to)];
    const double room = us - charge_us(e, v->to, v->head);
    double n = have;
    if (room < 0) return 0;
    if (w > 0) n = fmin(n, floor(room / w * (1 - 1e-12)));
    if (b > 0) n = fmin(n, floor((apart - copy_bytes(e, v->to, v->head)) / (2 * b)));
    if (n < 1 || !(b > 0)) return 0;
    return e->mode == FKV_PLAN_BEST_EFFORT && (int)n < have ? 0 : (int)n;
}

static double slowest(const evening *e)
{
    double us = 0;
    for (int r = 0; r < e->layer.n_ranks; r++) us = fmax(us, e->load[r]);
    return us;
}

/* Takes v for best if it is allowed and better: more bytes, or under a price fewer
 * microseconds a byte; ties: the earlier one. spare: what the layer may take. */
static void offer(const evening *e, move v, double spare_us, double now_us, double price, move *best)
{
    v.n = most_slots(e, &v, spare_us - e->load[v.to]);
    if (v.n < 1 || copies_after(e, &v) > (e->layer.max_copies > e->copies ? e->layer.max_copies : e->copies))
        return;
    v.gain = v.n * e->slot_bytes[v.head];
    const double to = e->load[v.to] + charge_us(e, v.to, v.head) + v.n * e->slot_us[v.head];
    v.add_us = fmax(to - now_us, 0);
    if (v.add_us > price * v.gain) return;
    const bool better = price > 0
                            ? v.add_us * best->gain < best->add_us * v.gain ||
                                  (v.add_us * best->gain == best->add_us * v.gain && v.gain > best->gain)
                            : v.gain > best->gain;
    if (best->n == 0 || better) *best = v;
}

static move best_move(const evening *e, int giver, double price)
{
    const int ranks = e->layer.n_ranks;
    const double now = slowest(e);
    move best = {0};
    for (int from = 0; from < ranks; from++) {
        if (device_of(e, from) != giver) continue;
        for (int h = 0; h < e->layer.n_heads; h++) {
            if (!at(e, from, h)) continue;
            for (int to = 0; to < ranks; to++) {
                if (device_of(e, to) == giver) continue;
                const move v = {.from = from, .to = to, .head = h};
                offer(e, v, now, now, price, &best);
                /* What the price allows beyond the layer's time. */
                const double most = e->level[giver] * price;
                if (price > 0) offer(e, v, now + most, now, price, &best);
            }
        }
    }
    return best;
}

static void apply(evening *e, const move *v)
{
    const int giver = device_of(e, v->from), taker = device_of(e, v->to);
    const double w = e->slot_us[v->head], bytes = v->n * e->slot_bytes[v->head];
    e->copies = copies_after(e, v);
    e->load[v->to] += charge_us(e, v->to, v->head) + v->n * w;
    e->level[taker] += bytes + copy_bytes(e, v->to, v->head);
    e->slots[(size_t)v->to * e->layer.n_heads + v->head] += v->n;
    e->slots[(size_t)v->from * e->layer.n_heads + v->head] -= v->n;
    e->load[v->from] -= v->n * w;
    e->level[giver] -= bytes;
    if (!at(e, v->from, v->head)) {
        e->load[v->from] -= e->layer.head_us;
        if (e->home[v->head] != v->from) e->level[giver] -= e->m->copy_bytes;
    }
}

/* Takes up layer l of the plan. */
static void enter(evening *e, const fkv_plan *plan, int l)
{
    const int k = e->layer.n_heads;
    memset(e->slots, 0, (size_t)e->layer.n_ranks * (size_t)k * sizeof *e->slots);
    for (int h = 0; h < k; h++) {
        const size_t i = (size_t)l * k + h;
        e->slot_us[h] = e->p->cost.slot_head_us + e->p->cost.token_us * e->p->tokens[i];
        for (int a = plan->first[i]; a < plan->first[i + 1]; a++)
            e->slots[(size_t)plan->at[a].rank * k + h] += plan->at[a].end - plan->at[a].begin;
    }
    e->slot_bytes = e->m->slot_bytes + (size_t)l * k;
    fkv_layer_us(&e->layer, e->slots, e->load);
    e->copies = fkv_layer_copies(&e->layer, e->slots);
}

/* Moves of one layer. price 0: only those that take no time. */
static bool even_layer(evening *e, double price)
{
    bool moved = false;
    for (int i = 0; i < 4 * e->layer.n_ranks; i++) {
        const int giver = fullest(e);
        if (price > 0 && e->level[giver] <= e->m->limit_bytes) break;
        const move v = best_move(e, giver, price);
        if (!v.n) break;
        apply(e, &v);
        moved = true;
    }
    return moved;
}

/* One round over all layers, into a plan laid out anew. */
static fkv_status even_round(evening *e, double price, fkv_plan *plan, bool *moved, fkv_err *err)
{
    const size_t pairs = (size_t)plan->n_layers * plan->n_kv_heads;
    fkv_plan next = *plan;
    int cap = (int)pairs;
    *moved = false;
    next.first = fkv_calloc(pairs + 1, sizeof *next.first);
    next.at = fkv_calloc(pairs, sizeof *next.at);
    fkv_status st = next.first && next.at ? FKV_OK : fkv_fail_memory(err);
    for (int l = 0; !st && l < plan->n_layers; l++) {
        enter(e, plan, l);
        if (even_layer(e, price)) *moved = true;
        st = fkv_plan_lay_out(&e->layer, e->slots, l, &next, &cap, err);
    }
    if (st) {
        fkv_plan_free(&next);
        return st;
    }
    free(plan->first);
    free(plan->at);
    plan->first = next.first;
    plan->at = next.at;
    return FKV_OK;
}

static fkv_status open_evening(evening *e, const fkv_plan *plan, fkv_err *err)
{
    const fkv_plan_problem *p = e->p;
    const int k = p->n_kv_heads, n_ranks = p->n_ranks;
    e->mode = plan->mode;
    e->home = fkv_calloc((size_t)k, sizeof *e->home);
    e->slot_us = fkv_calloc((size_t)k, sizeof *e->slot_us);
    e->slots = fkv_calloc((size_t)n_ranks * (size_t)k, sizeof *e->slots);
    e->load = fkv_calloc((size_t)n_ranks, sizeof *e->load);
    e->level = fkv_calloc((size_t)e->m->n_devices, sizeof *e->level);
    if (!e->home || !e->slot_us || !e->slots || !e->load || !e->level) return fkv_fail_memory(err);
    for (int h = 0; h < k; h++) e->home[h] = fkv_partition_home(h, k, n_ranks);
    e->layer = (fkv_layer){.n_heads = k,
                           .n_ranks = n_ranks,
                           .n_slots = p->n_slots,
                           .max_copies = p->max_copies < 0 ? INT_MAX : p->max_copies,
                           .t0_us = p->cost.t0_us,
                           .head_us = p->cost.head_us,
                           .slot_us = e->slot_us,
                           .home = e->home};
    memcpy(e->level, e->m->base_bytes, (size_t)e->m->n_devices * sizeof *e->level);
    for (int i = 0; i < plan->n_layers * k; i++) {
        for (int a = plan->first[i]; a < plan->first[i + 1]; a++) {
            const fkv_placement *c = &plan->at[a];
            double *level = &e->level[device_of(e, c->rank)];
            *level += (c->end - c->begin) * e->m->slot_bytes[i];
            if (c->rank != e->home[i % k]) *level += e->m->copy_bytes;
        }
    }
    return FKV_OK;
}

/* Whether a limit is broken that the devices together would keep. */
static bool worth_a_price(const evening *e)
{
    double all = 0;
    for (int d = 0; d < e->m->n_devices; d++) all += e->level[d];
    return e->level[fullest(e)] > e->m->limit_bytes && all <= e->m->limit_bytes * e->m->n_devices;
}

fkv_status fkv_plan_even_memory(const fkv_plan_problem *p, const fkv_plan_memory *m, fkv_plan *plan,
                                fkv_err *err)
{
    evening e = {.p = p, .m = m};
    bool moved = true;
    if (m->n_devices < 2 || p->n_ranks < 2 || plan->mode == FKV_PLAN_STANDARD) return FKV_OK;
    fkv_status st = open_evening(&e, plan, err);
    for (int i = 0; !st && moved && i < FREE_ROUNDS; i++) st = even_round(&e, 0, plan, &moved, err);
    if (!st && worth_a_price(&e)) {
        /* From a thousandth of the step for all the bytes, up to a billion times that. */
        double price = 1e-3 * fkv_plan_step_us(p, plan) / e.level[fullest(&e)];
        for (int i = 0; !st && i < PRICED_ROUNDS && e.level[fullest(&e)] > m->limit_bytes; i++, price *= 2)
            st = even_round(&e, price, plan, &moved, err);
    }
    if (!st) plan->step_us = fkv_plan_step_us(p, plan);
    free(e.home);
    free(e.slot_us);
    free(e.slots);
    free(e.load);
    free(e.level);
    return st;
}
