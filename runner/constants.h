/* The cost model's constants of a run: measured, stated or from a file
 * (plan.calibration), and what is said about them in plan.json and stats.json.
 *
 * Nothing is owned. After a failure *out is not to be used; read leaves it as it was. Not for measuring
 * (engine/measure/calibrate.h), nor for what a plan makes of them (engine/plan/cost.h). */
#ifndef FKV_RUNNER_CONSTANTS_H
#define FKV_RUNNER_CONSTANTS_H

#include <stdio.h>

#include "engine/measure/calibrate.h"
#include "engine/plan/budget.h"
#include "engine/split.h"
#include "runner/setup.h"

typedef struct fkv_constants {
    fkv_cost cost;           /* of the layout's ranks */
    double collectives_us;   /* between its devices, a layer of a step */
    fkv_calibration_key key; /* of measured ones; zero for stated ones */
    double fit_error;
} fkv_constants;

void fkv_constants_stated(const fkv_setup *setup, const fkv_layout *layout, fkv_constants *out);
/* For the layout's ranks and slots and the profile's tokens. plan.calibration = auto measures
 * nothing where no plan depends on it: one rank, or mode standard; and takes stated rates,
 * with a line in the log, where measuring fails. Takes memory beside an open engine. */
fkv_status fkv_constants_choose(const fkv_setup *setup, const fkv_layout *layout, const fkv_profile *profile,
                                fkv_constants *out, fkv_err *err);

/* Constants by which ranks and slots are chosen: measured with the layout's ranks and slots,
 * under the same rules as choose; stated ones for plan.calibration = stated, and for a single
 * rank, whose steps are measured as such (slot_count.h). */
fkv_status fkv_constants_rates(const fkv_setup *setup, const fkv_layout *layout, const fkv_profile *profile,
                               fkv_cost *out, fkv_err *err);

/* The rates that are known without measuring: those of a plan, where planned is not NULL; a file's; those
 * that the machine keeps for the layout; those that the job wants stated. *known is false where there are
 * none of these, and the stated ones of *out are but a guess. */
fkv_status fkv_constants_known(const fkv_setup *setup, const fkv_layout *layout, const fkv_profile *profile,
                               const fkv_constants *planned, fkv_cost *out, bool *known, fkv_err *err);

/* What the machine keeps for the layout, measured now if it keeps nothing yet, whatever the ranks: for who
 * predicts once and again. Of origin stated where plan.calibration names other rates, or measuring fails. */
fkv_status fkv_constants_kept(const fkv_setup *setup, const fkv_layout *layout, const fkv_profile *profile,
                              fkv_constants *out, fkv_err *err);

/* Whether a calibration file that the job names can be read and is for this job. */
fkv_status fkv_constants_check(const fkv_setup *setup, fkv_err *err);
/* Whether what planning needs is measured on this machine: plan.calibration = auto, measure. */
bool fkv_constants_measured(const fkv_setup *setup);

/* Members of plan.json, without braces. */
fkv_status fkv_constants_put(const fkv_constants *c, fkv_buf *out, fkv_err *err);
/* Reads them back; a plan without any leaves *c alone. */
fkv_status fkv_constants_read(const char *plan_path, fkv_constants *c, fkv_err *err);

/* Prints the predicted and the measured step of stats.json, if it has them. */
fkv_status fkv_constants_print_measured(const char *stats_path, FILE *out, fkv_err *err);

#endif
