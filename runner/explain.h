/* Why the plan is as it is: a table for the terminal, a picture as SVG.
 *
 * An explanation owns its plans and tokens; a make that failed leaves nothing to free. A picture replaces
 * the file as a whole or leaves it. Not for choosing anything: the plan is made before (planning.h). */
#ifndef FKV_RUNNER_EXPLAIN_H
#define FKV_RUNNER_EXPLAIN_H

#include <stdio.h>

#include "runner/planning.h"

/* The plan's modes solved on the same budgets and constants, and their bound. */
typedef struct fkv_explanation {
    fkv_plan modes[FKV_PLAN_MODES]; /* by fkv_plan_mode */
    double balance[FKV_PLAN_MODES]; /* fullest rank's tokens over the mean, summed over the layers */
    double budget_balance;          /* the same of standard, by budgets as if every prompt filled them */
    int slots_fit[FKV_PLAN_MODES];
    double context_parallel_us, attention_data_parallel_us; /* steps of ways that this engine does not run */
    double *tokens;                                         /* [n_layers][n_kv_heads] expected */
} fkv_explanation;

fkv_status fkv_explain_make(const fkv_setup *setup, const fkv_planning *planning, fkv_explanation *x,
                            fkv_err *err);
void fkv_explain_free(fkv_explanation *x);

/* The comparison as text for people. */
void fkv_explain_print(const fkv_setup *setup, const fkv_planning *planning, const fkv_explanation *x,
                       FILE *out);
/* explain_svg.c: loads of every rank and layer before and after, and the budgets. */
fkv_status fkv_explain_svg(const fkv_setup *setup, const fkv_planning *planning, const fkv_explanation *x,
                           const char *path, fkv_err *err);

#endif
