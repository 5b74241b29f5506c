/* The comparison of the plan modes: see explain.h. An explanation owns its plans
 * and tokens. Not for the picture (explain_svg.c). */
#include "runner/explain.h"

#include <stdlib.h>
#include <string.h>

#include "engine/plan/other_ways.h"
#include "runner/base/mem.h"

/* Less than this share is called nothing. */
#define LITTLE 0.02

fkv_status fkv_explain_make(const fkv_setup *s, const fkv_planning *p, fkv_explanation *x, fkv_err *err)
{
    const size_t n = (size_t)s->config.n_layers * (size_t)s->config.n_kv_heads;
    fkv_status st = FKV_OK;
    *x = (fkv_explanation){0};
    x->tokens = fkv_calloc(n, sizeof *x->tokens);
    if (!x->tokens) return fkv_fail_memory(err);
    fkv_cost_tokens(&p->profile, x->tokens);
    const fkv_plan_problem problem = fkv_setup_plan_problem(s, p->plan.n_ranks, p->plan.n_slots, x->tokens,
                                                            &p->constants.cost, p->constants.collectives_us);
    const fkv_config *c = &s->config;
    const double output = (double)c->n_heads * c->head_dim * c->hidden;
    const fkv_way_shape shape = {c->n_heads, c->head_dim, c->hidden,
                                 output / (double)fkv_tensors_head_values(c)};
    x->context_parallel_us = fkv_way_context_parallel_us(&problem, &shape);
    x->attention_data_parallel_us = fkv_way_attention_data_parallel_us(&problem, &shape);
    for (int m = 0; !st && m < FKV_PLAN_MODES; m++) {
        st = fkv_plan_solve(&problem, (fkv_plan_mode)m, &x->modes[m], err);
        if (!st) st = fkv_sizing_even(&p->sizing, &problem, p->profile.budgets, &x->modes[m], err);
    }
    for (int m = 0; !st && m < FKV_PLAN_MODES; m++) {
        x->balance[m] = fkv_plan_balance(&x->modes[m], x->tokens);
        st = fkv_sizing_slots(&p->sizing, &x->modes[m], p->profile.budgets, &x->slots_fit[m], err);
    }
    if (!st) {
        for (size_t i = 0; i < n; i++) x->tokens[i] = p->profile.budgets[i];
        x->budget_balance = fkv_plan_balance(&x->modes[FKV_PLAN_STANDARD], x->tokens);
        fkv_cost_tokens(&p->profile, x->tokens);
    } else {
        fkv_explain_free(x);
    }
    return st;
}

void fkv_explain_free(fkv_explanation *x)
{
    for (int m = 0; m < FKV_PLAN_MODES; m++) fkv_plan_free(&x->modes[m]);
    free(x->tokens);
    *x = (fkv_explanation){0};
}

static double mib(double bytes)
{
    return bytes / (1 << 20);
}

static void print_budgets(const fkv_planning *p, FILE *out)
{
    const int64_t n_lh = (int64_t)p->profile.n_layers * p->profile.n_kv_heads;
    int32_t least = INT32_MAX, most = 0;
    for (int64_t i = 0; i < n_lh; i++) {
        if (p->profile.budgets[i] < least) least = p->profile.budgets[i];
        if (p->profile.budgets[i] > most) most = p->profile.budgets[i];
    }
    fprintf(out, "budgets: %d to %d tokens a head; %.1f%% of the sample's K and V is kept%s%s\n", least, most,
            100 * fkv_profile_kept_share(&p->profile), p->profile.score[0] ? ", by " : "", p->profile.score);
}

static void print_modes(const fkv_planning *p, const fkv_explanation *x, FILE *out)
{
    const fkv_plan *any = &x->modes[0];
    const double us[] = {any->standard_us, any->best_effort_us, any->fair_copying_us};
    const double common = any->n_layers * (p->constants.cost.common_us + p->constants.collectives_us);
    const double copy = (double)fkv_memory_head_bytes(&p->sizing.shape);
    fprintf(out,
            "modelled decode step, us, each rank on a device of its own\n"
            "  %-16s %14s %10s %13s %7s %11s %9s\n",
            "", "segment", "step", "fullest/mean", "copies", "copies MiB", "slots fit");
    for (int m = 0; m < FKV_PLAN_MODES; m++) {
        const int copies = fkv_plan_copies(&x->modes[m]);
        fprintf(out, "%c %-16s %14.1f %10.1f %13.2f %7d %11.1f %9d\n",
                p->plan.mode == (fkv_plan_mode)m ? '*' : ' ', fkv_plan_mode_name((fkv_plan_mode)m),
                us[m] - common, us[m], x->balance[m], copies, mib(copies * copy), x->slots_fit[m]);
    }
    fprintf(out, "  %-16s %14.1f %10.1f\n", "bound", any->lower_bound_us - common, any->lower_bound_us);
    if (any->n_ranks > 1)
        fprintf(out,
                "  %-16s %14.1f %10.1f  not run by this engine: each rank a share of every head's tokens\n"
                "  %-16s %14.1f %10.1f  not run by this engine: each rank all attention weights, a share of "
                "the slots\n",
                "context-parallel", x->context_parallel_us - common, x->context_parallel_us, "attention-dp",
                x->attention_data_parallel_us - common, x->attention_data_parallel_us);
    if (p->plan.step_us > us[p->plan.mode] * (1 + 1e-9))
        fprintf(out, "to fit the devices' memory slots were moved: the plan's step takes %.1f us\n",
                p->plan.step_us);
}

/* Why fair-copying gains what it gains. */
static void print_gain(const fkv_planning *p, const fkv_explanation *x, FILE *out)
{
    const fkv_plan *any = &x->modes[0];
    const double common = any->n_layers * (p->constants.cost.common_us + p->constants.collectives_us);
    const double segment =
        any->fair_copying_us > common ? (any->standard_us - common) / (any->fair_copying_us - common) : 1;
    const double step = any->fair_copying_us > 0 ? any->standard_us / any->fair_copying_us : 1;
    double prompts = 0;
    for (int i = 0; i < p->profile.n_sample; i++) prompts += p->profile.prompt_tokens[i];
    prompts = p->profile.n_sample ? prompts / p->profile.n_sample : 0;
    fprintf(out, "fair-copying: attention segment %.2fx as fast as standard, whole step %.2fx\n", segment,
            step);
    if (step >= 1 + LITTLE) return;
    if (any->n_ranks == 1)
        fprintf(out, "little to gain: one rank has nobody to share with\n");
    else if (segment >= 1 + LITTLE)
        fprintf(out,
                "little to gain: the segment is only %.0f%% of a standard step; more slots or larger "
                "budgets would raise that\n",
                100 * (1 - common / any->standard_us));
    else if (x->budget_balance < 1 + LITTLE)
        fprintf(out, "little to gain: the budgets are even over the ranks\n");
    else if (x->balance[FKV_PLAN_STANDARD] < 1 + (x->budget_balance - 1) / 2)
        fprintf(out,
                "little to gain: by budgets the fullest rank has %.2fx the mean, but prompts of %.0f tokens "
                "and outputs of up to %.0f even that out to %.2fx\n",
                x->budget_balance, prompts, p->profile.mean_output, x->balance[FKV_PLAN_STANDARD]);
    else
        fprintf(out, "little to gain: copies would cost about what they save at %d slots\n", any->n_slots);
}

static void print_memory(const fkv_setup *s, const fkv_planning *p, const fkv_explanation *x, FILE *out)
{
    fkv_memory m;
    fkv_err err = {0};
    if (fkv_memory_predict(&p->sizing.shape, &p->plan, p->profile.budgets, &p->sizing.lengths, &m, &err))
        return;
    const fkv_memory_rank *r = &m.rank[m.fullest_rank];
    const fkv_memory_device *d = &m.device[m.fullest_device];
    fprintf(
        out,
        "memory: rank %d is the fullest: %.1f MiB of weights, %.1f of copies, %.1f of KV pages; device %d "
        "needs %.1f of its %.1f MiB\n",
        m.fullest_rank, mib((double)r->weight_bytes), mib((double)r->copy_bytes), mib((double)r->page_bytes),
        m.fullest_device, mib((double)d->total_bytes), mib((double)p->sizing.limit.bytes));
    fprintf(out, "slots: %d%s; %d would fit, with standard %d (prompts of %lld, %lld new tokens)\n",
            p->plan.n_slots, s->auto_slots ? " (auto)" : "", x->slots_fit[p->plan.mode],
            x->slots_fit[FKV_PLAN_STANDARD], (long long)p->sizing.lengths.prompt,
            (long long)p->sizing.lengths.max_new);
    fkv_memory_free(&m);
}

static void print_splits(const fkv_setup *s, const fkv_planning *p, FILE *out)
{
    const fkv_sizing *z = &p->sizing;
    if (!z->n_splits) {
        if (s->auto_ranks) fprintf(out, "ranks: %d (auto)\n", p->layout.ranks);
        return;
    }
    fprintf(out, "split of the devices %15s %6s %14s %14s %14s %10s\n", "data_parallel", "slots",
            "prefill ms", "step ms", "ms a record", "job s");
    for (int i = 0; i < z->n_splits; i++) {
        const fkv_device_split *c = &z->splits[i];
        fprintf(out, "%c tensor_parallel %2d %15d %6d %14.2f %14.3f %14.2f %10.1f%s\n",
                i == z->best ? '*' : ' ', c->tensor_parallel, c->data_parallel, c->slots, c->prefill_us / 1e3,
                c->step_us / 1e3, c->record_us / 1e3, c->job_us / 1e6, c->fits ? "" : "  does not fit");
    }
    fprintf(out, "ranks: %d%s on %d devices, in %d replicas%s\n", p->layout.ranks,
            s->auto_ranks ? " (auto)" : "", p->layout.devices, p->layout.replicas,
            s->auto_replicas ? " (auto)" : "");
}

void fkv_explain_print(const fkv_setup *s, const fkv_planning *p, const fkv_explanation *x, FILE *out)
{
    print_budgets(p, out);
    fprintf(out, "plan: %s, %d ranks, %d slots, %d copies\n", fkv_plan_mode_name(p->plan.mode),
            p->plan.n_ranks, p->plan.n_slots, fkv_plan_copies(&p->plan));
    print_modes(p, x, out);
    print_gain(p, x, out);
    print_memory(s, p, x, out);
    print_splits(s, p, out);
}
