/* Loads and budgets as rectangles: see plan_marks.h. */
#include "runner/plan_marks.h"

#include <stdlib.h>

#include "runner/base/mem.h"

enum {
    BAR = 4,      /* px that a rank's bar needs */
    TITLED = 8192 /* so many rectangles still get a title each */
};

#define put fkv_markup_put

/* One rank's load: a bar of its own where there is room, else a tick at its height. */
static void load_mark(fkv_markup *m, const fkv_plot *p, int n_ranks, int l, int r, double share, bool slowest)
{
    const double width = p->step * 0.8, each = width / n_ranks, x = p->left + (l + 0.1) * p->step;
    const double top = p->top + p->height * (1 - share);
    const char *class = slowest ? "slow" : "rank";
    if (each >= BAR)
        put(m, "<rect class=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"", class, x + r * each,
            top, each - 1, p->height * share);
    else
        put(m, "<rect class=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%d\"", class, x,
            top - (slowest ? 1.5 : 1), width, slowest ? 3 : 2);
}

static void layer_marks(fkv_markup *m, const fkv_plan *plan, const double *loads, int l, double most,
                        const fkv_plot *p)
{
    double all = 0, top = 0;
    for (int r = 0; r < plan->n_ranks; r++) {
        all += loads[r];
        if (loads[r] > top) top = loads[r];
    }
    for (int r = 0; r < plan->n_ranks; r++) {
        load_mark(m, p, plan->n_ranks, l, r, loads[r] / most, loads[r] == top);
        if (plan->n_layers * plan->n_ranks <= TITLED)
            put(m, "><title>layer %d, rank %d: %.0f tokens</title></rect>\n", l, r, loads[r]);
        else
            put(m, "/>\n");
    }
    put(m, "<rect class=\"mean\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"2\"/>\n",
        p->left + (l + 0.1) * p->step, p->top + p->height * (1 - all / plan->n_ranks / most) - 1,
        p->step * 0.8);
}

void fkv_plan_marks_loads(fkv_markup *m, const fkv_plan *plan, const double *tokens, double most,
                          const fkv_plot *plot)
{
    double *loads = fkv_calloc((size_t)plan->n_ranks, sizeof *loads);
    if (!loads && !m->st) m->st = fkv_fail_memory(m->err);
    for (int l = 0; loads && l < plan->n_layers; l++) {
        fkv_plan_loads(plan, tokens, l, loads);
        layer_marks(m, plan, loads, l, most, plot);
    }
    free(loads);
}

double fkv_plan_marks_most(const fkv_plan *plan, const double *tokens)
{
    double most = 0;
    double *loads = fkv_calloc((size_t)plan->n_ranks, sizeof *loads);
    for (int l = 0; loads && l < plan->n_layers; l++) {
        fkv_plan_loads(plan, tokens, l, loads);
        for (int r = 0; r < plan->n_ranks; r++)
            if (loads[r] > most) most = loads[r];
    }
    free(loads);
    return most;
}

double fkv_plan_marks_shade(double budget, double most)
{
    return most > 0 ? 0.06 + 0.94 * budget / most : 0;
}

void fkv_plan_marks_budgets(fkv_markup *m, const int32_t *budgets, int n_layers, int n_kv_heads,
                            const fkv_plot *p)
{
    const double cell = p->height / n_kv_heads, gap = cell > 6 && p->step > 6 ? 1 : 0;
    double most = 0;
    for (int i = 0; i < n_layers * n_kv_heads; i++) most = budgets[i] > most ? budgets[i] : most;
    for (int l = 0; l < n_layers; l++)
        for (int h = 0; h < n_kv_heads; h++) {
            const int32_t b = budgets[l * n_kv_heads + h];
            put(m,
                "<rect class=\"cell\" fill-opacity=\"%.3f\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" "
                "height=\"%.2f\"",
                fkv_plan_marks_shade(b, most), p->left + l * p->step, p->top + h * cell, p->step - gap,
                cell - gap);
            if (n_layers * n_kv_heads <= TITLED)
                put(m, "><title>layer %d, head %d: %d tokens</title></rect>\n", l, h, b);
            else
                put(m, "/>\n");
        }
}
