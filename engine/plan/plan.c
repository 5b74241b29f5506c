/* The Fair-Copying plan of a run: checks the problem, solves layer by layer,
 * lays the slots out and holds the result.
 *
 * A step costs the sum over layers of the slowest rank, so layers are solved on
 * their own (plan_whole.c, plan_share.c, plan_bound.c). A plan owns first and
 * at; fkv_plan_free releases them. Not for files (plan_file.c).
 *
 * Slots are laid out so that each head's home has the range from slot 0
 * upwards, then the other ranks in ascending order. Slots are filled from low
 * to high, so while the batch is partly filled heads tend to be decoded at
 * home. */
#include "engine/plan/plan.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "engine/plan/partition.h"
#include "engine/plan/plan_layer.h"
#include "runner/base/mem.h"

/* Beyond any device: keeps sums and products finite. */
#define MAX_US     1e12
#define MAX_TOKENS 1e12

const char *fkv_plan_mode_name(fkv_plan_mode mode)
{
    static const char *const names[FKV_PLAN_MODES] = {"standard", "best-effort", "fair-copying"};
    return names[mode];
}

/* Of a layer, what no plan changes. */
static double rest_us(const fkv_plan_problem *p)
{
    return p->cost.common_us + p->collectives_us;
}

static fkv_status check_constant(double us, const char *name, fkv_err *err)
{
    if (us >= 0 && us <= MAX_US) return FKV_OK;
    return fkv_fail(err, FKV_E_INPUT, "cost constant %s = %g is not between 0 and %g", name, us, MAX_US);
}

static fkv_status check_problem(const fkv_plan_problem *p, fkv_err *err)
{
    const int k = p->n_kv_heads, r = p->n_ranks;
    if (p->n_layers < 1 || k < 1 || k > FKV_PLAN_MAX_HEADS || p->n_layers > FKV_PLAN_MAX_PAIRS / k)
        return fkv_fail(err, FKV_E_INPUT, "%d layers of %d KV heads cannot be planned", p->n_layers, k);
    if (r < 1) return fkv_fail(err, FKV_E_INPUT, "%d ranks: at least 1 is needed", r);
    if (r > k) return fkv_fail(err, FKV_E_INPUT, "more ranks (%d) than KV heads (%d)", r, k);
    if (p->n_slots < 1 || p->n_slots > FKV_PLAN_MAX_SLOTS)
        return fkv_fail(err, FKV_E_INPUT, "%d slots: must be between 1 and %d", p->n_slots,
                        FKV_PLAN_MAX_SLOTS);
    if (p->max_copies < -1)
        return fkv_fail(err, FKV_E_INPUT, "max_copies is %d: -1 (no limit) or more", p->max_copies);
    fkv_status st = FKV_OK;
    if (!st) st = check_constant(p->cost.t0_us, "t0_us", err);
    if (!st) st = check_constant(p->cost.head_us, "head_us", err);
    if (!st) st = check_constant(p->cost.slot_head_us, "slot_head_us", err);
    if (!st) st = check_constant(p->cost.token_us, "token_us", err);
    if (!st) st = check_constant(p->cost.common_us, "common_us", err);
    if (!st) st = check_constant(p->collectives_us, "collectives_us", err);
    for (int i = 0; !st && i < p->n_layers * k; i++)
        if (!(p->tokens[i] >= 0 && p->tokens[i] <= MAX_TOKENS))
            st = fkv_fail(err, FKV_E_INPUT, "layer %d, head %d: %g tokens", i / k, i % k, p->tokens[i]);
    return st;
}

static double slot_us(const fkv_plan_problem *p, int l, int h)
{
    return p->cost.slot_head_us + p->cost.token_us * p->tokens[(size_t)l * p->n_kv_heads + h];
}

fkv_status fkv_plan_lay_out(const fkv_layer *layer, const int *slots, int l, fkv_plan *plan, int *cap,
                            fkv_err *err)
{
    const int k = layer->n_heads;
    int n = plan->first[(size_t)l * k];
    for (int h = 0; h < k; h++) {
        const int home = layer->home[h];
        int begin = 0;
        for (int i = -1; i < layer->n_ranks; i++) {
            const int r = i < 0 ? home : i;
            const int count = slots[(size_t)r * k + h];
            if (!count || i == home) continue;
            if (n == *cap) {
                if (n > INT_MAX / 2) return fkv_fail(err, FKV_E_INPUT, "the plan has too many placements");
                fkv_placement *more = fkv_realloc(plan->at, 2 * (size_t)n, sizeof *more);
                if (!more) return fkv_fail_memory(err);
                plan->at = more;
                *cap = 2 * n;
            }
            plan->at[n++] = (fkv_placement){.rank = r, .begin = begin, .end = begin + count};
            begin += count;
        }
        plan->first[(size_t)l * k + h + 1] = n;
    }
    return FKV_OK;
}

fkv_status fkv_plan_solve(const fkv_plan_problem *problem, fkv_plan_mode mode, fkv_plan *plan, fkv_err *err)
{
    const fkv_plan_problem *p = problem;
    const int k = p->n_kv_heads;
    fkv_layer_work work = {0};
    fkv_split split[FKV_PLAN_MODES] = {{0}}; /* by mode */
    int *home = NULL, cap = 0;
    double *weight = NULL;
    memset(plan, 0, sizeof *plan);
    fkv_status st = check_problem(p, err);
    if (st) return st;

    const size_t pairs = (size_t)p->n_layers * k, cells = (size_t)p->n_ranks * k;
    *plan = (fkv_plan){
        .mode = mode, .n_layers = p->n_layers, .n_kv_heads = k, .n_ranks = p->n_ranks, .n_slots = p->n_slots};
    if ((st = fkv_layer_work_init(&work, k, p->n_ranks, err))) goto out;
    plan->first = fkv_calloc(pairs + 1, sizeof *plan->first);
    plan->at = fkv_calloc(pairs, sizeof *plan->at);
    cap = (int)pairs;
    home = fkv_calloc((size_t)k, sizeof *home);
    weight = fkv_calloc((size_t)k, sizeof *weight);
    bool ok = plan->first && plan->at && home && weight;
    for (int m = 0; m < FKV_PLAN_MODES; m++) ok = (split[m].slots = fkv_calloc(cells, sizeof(int))) && ok;
    if (!ok) {
        st = fkv_fail_memory(err);
        goto out;
    }

    for (int h = 0; h < k; h++) home[h] = fkv_partition_home(h, k, p->n_ranks);
    const fkv_layer layer = {.n_heads = k,
                             .n_ranks = p->n_ranks,
                             .n_slots = p->n_slots,
                             .max_copies = p->max_copies < 0 ? INT_MAX : p->max_copies,
                             .t0_us = p->cost.t0_us,
                             .head_us = p->cost.head_us,
                             .slot_us = weight,
                             .home = home};
    for (int l = 0; !st && l < p->n_layers; l++) {
        for (int h = 0; h < k; h++) weight[h] = slot_us(p, l, h);
        fkv_layer_standard(&layer, &split[FKV_PLAN_STANDARD]);
        fkv_split_copy(&layer, &split[FKV_PLAN_BEST_EFFORT], &split[FKV_PLAN_STANDARD]);
        fkv_layer_whole(&layer, &work, &split[FKV_PLAN_BEST_EFFORT]);
        fkv_split_copy(&layer, &split[FKV_PLAN_FAIR_COPYING], &split[FKV_PLAN_BEST_EFFORT]);
        const double bound = fkv_layer_share(&layer, &work, &split[FKV_PLAN_FAIR_COPYING]);
        /* Per layer bound <= fair <= best-effort <= standard; added in the same
         * order the sums keep it, rounding included. */
        plan->standard_us += split[FKV_PLAN_STANDARD].us + rest_us(p);
        plan->best_effort_us += split[FKV_PLAN_BEST_EFFORT].us + rest_us(p);
        plan->fair_copying_us += split[FKV_PLAN_FAIR_COPYING].us + rest_us(p);
        plan->lower_bound_us += bound + rest_us(p);
        st = fkv_plan_lay_out(&layer, split[mode].slots, l, plan, &cap, err);
    }
    const double step[] = {plan->standard_us, plan->best_effort_us, plan->fair_copying_us};
    plan->step_us = step[mode];
out:
    for (int m = 0; m < FKV_PLAN_MODES; m++) free(split[m].slots);
    free(weight);
    free(home);
    fkv_layer_work_free(&work);
    if (st) fkv_plan_free(plan);
    return st;
}

void fkv_plan_free(fkv_plan *plan)
{
    free(plan->at);
    free(plan->first);
    memset(plan, 0, sizeof *plan);
}

int fkv_plan_copies(const fkv_plan *plan)
{
    const int pairs = plan->n_layers * plan->n_kv_heads;
    int n = 0;
    for (int i = 0; i < pairs; i++)
        for (int at = plan->first[i]; at < plan->first[i + 1]; at++)
            n += plan->at[at].rank !=
                 fkv_partition_home(i % plan->n_kv_heads, plan->n_kv_heads, plan->n_ranks);
    return n;
}

/* The slowest rank of layer l. A rank that has several ranges of a head serves
 * it once: each placement is charged on the first one. */
static double layer_us(const fkv_plan_problem *p, const fkv_plan *plan, int l)
{
    double slowest = 0;
    for (int r = 0; r < plan->n_ranks; r++) {
        double us = p->cost.t0_us;
        for (int h = 0; h < plan->n_kv_heads; h++) {
            const size_t i = (size_t)l * plan->n_kv_heads + h;
            int slots = 0;
            for (int at = plan->first[i]; at < plan->first[i + 1]; at++)
                if (plan->at[at].rank == r) slots += plan->at[at].end - plan->at[at].begin;
            if (slots) us += p->cost.head_us + slots * slot_us(p, l, h);
        }
        if (us > slowest) slowest = us;
    }
    return slowest;
}

double fkv_plan_step_us(const fkv_plan_problem *problem, const fkv_plan *plan)
{
    double us = 0;
    for (int l = 0; l < plan->n_layers; l++) us += layer_us(problem, plan, l) + rest_us(problem);
    return us;
}

fkv_status fkv_plan_validate(const fkv_plan *plan, fkv_err *err)
{
    if (plan->n_layers < 1 || plan->n_kv_heads < 1 || plan->n_kv_heads > FKV_PLAN_MAX_HEADS ||
        plan->n_layers > FKV_PLAN_MAX_PAIRS / plan->n_kv_heads || plan->n_ranks < 1 ||
        plan->n_ranks > plan->n_kv_heads || plan->n_slots < 1 || plan->n_slots > FKV_PLAN_MAX_SLOTS)
        return fkv_fail(err, FKV_E_INPUT, "plan of %d layers, %d KV heads, %d ranks, %d slots",
                        plan->n_layers, plan->n_kv_heads, plan->n_ranks, plan->n_slots);
    const int pairs = plan->n_layers * plan->n_kv_heads;
    for (int i = 0; i < pairs; i++) {
        const int l = i / plan->n_kv_heads, h = i % plan->n_kv_heads;
        int covered = 0;
        for (int at = plan->first[i]; at < plan->first[i + 1]; at++) {
            const fkv_placement *c = &plan->at[at];
            if (c->rank < 0 || c->rank >= plan->n_ranks)
                return fkv_fail(err, FKV_E_INPUT, "layer %d, head %d: rank %d of %d", l, h, c->rank,
                                plan->n_ranks);
            if (c->begin != covered || c->end <= c->begin || c->end > plan->n_slots)
                return fkv_fail(err, FKV_E_INPUT,
                                "layer %d, head %d: slots [%d, %d) do not continue at %d of %d", l, h,
                                c->begin, c->end, covered, plan->n_slots);
            covered = c->end;
        }
        if (covered != plan->n_slots)
            return fkv_fail(err, FKV_E_INPUT, "layer %d, head %d: %d of %d slots are placed", l, h, covered,
                            plan->n_slots);
    }
    return FKV_OK;
}
