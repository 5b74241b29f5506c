/* The shapes that pictures of a plan are made of, for explain_svg.c and report_charts.c: rectangles of the
 * classes rank, slow, mean and cell, which the picture's style sheet colours. Borrow all; axes, words and
 * colours are the picture's. */
#ifndef FKV_RUNNER_PLAN_MARKS_H
#define FKV_RUNNER_PLAN_MARKS_H

#include "engine/plan/plan.h"
#include "runner/markup.h"

/* Where the layers lie, in px: layer l begins at left + l * step; top and height are of the plot. */
typedef struct fkv_plot {
    double left, step, top, height;
} fkv_plot;

/* Loads of a plan's ranks by layer. most: what the plot's whole height stands for, in tokens;
 * tokens: fkv_cost_tokens. */
void fkv_plan_marks_loads(fkv_markup *m, const fkv_plan *plan, const double *tokens, double most,
                          const fkv_plot *plot);
/* The largest load of a rank in a layer; 0: no memory. */
double fkv_plan_marks_most(const fkv_plan *plan, const double *tokens);

/* A cell a head, darker for more tokens; the one that has most is darkest. */
void fkv_plan_marks_budgets(fkv_markup *m, const int32_t *budgets, int n_layers, int n_kv_heads,
                            const fkv_plot *plot);
/* The opacity of a cell. */
double fkv_plan_marks_shade(double budget, double most);

#endif
