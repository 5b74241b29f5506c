/* Measuring: what an engine's steps and prefills take on its devices. For calibration, for the
 * choice of the number of slots, and for benchmarks; nothing here is a part of a run.
 *
 * All calls come from the engine's thread, while run is not at work (a trace: from its calls
 * too). After a failure of a device closing the engine is the only call left.
 * Nothing is owned but a trace, by its opener.
 * Not for: what is kept of measurements (calibrate.h), or what follows from them (engine/plan/cost.h).
 */
#ifndef FKV_ENGINE_MEASURE_H
#define FKV_ENGINE_MEASURE_H

#include "engine/engine.h"
#include "engine/plan/job_time.h"

/* --- timing.c: single steps and prefills ------------------------------------ */

/* Just what all slots need for prompts of n_tokens and max_new new tokens. */
fkv_engine_kv_limits fkv_measure_limits(const fkv_plan *plan, const int32_t *budgets, int64_t n_tokens,
                                        int64_t max_new);
/* Fills every slot with a prompt of n_tokens tokens whose K and V are whatever is in the pages,
 * and decodes n_steps of them (n_steps new tokens fit beside the prompt). Seconds of every step
 * to step_seconds[n_steps]. */
fkv_status fkv_measure_decode(fkv_engine *engine, int64_t n_tokens, int n_steps, double *step_seconds,
                              fkv_err *err);
/* The same steps handed over at once, without a wait between them: seconds of all. */
fkv_status fkv_measure_replays(fkv_engine *engine, int64_t n_tokens, int n_steps, double *seconds,
                               fkv_err *err);
/* What a step does once (embedding, logits, sampling), many in a row: the device's own time
 * where it is longer than handing the work over. */
fkv_status fkv_measure_once(fkv_engine *engine, int64_t n_tokens, double *seconds, fkv_err *err);
/* Prefill of one prompt; with a plan into slot 0, compression included. */
fkv_status fkv_measure_prefill(fkv_engine *engine, const int32_t *ids, int64_t n_tokens, double *seconds,
                               fkv_err *err);
/* Attention segments of a recorded step, [n_layers][n_ranks] (solo: [n_layers]), in seconds; false
 * where the backend records none. */
bool fkv_measure_segments(fkv_engine *engine, double *seconds);
/* Writes the pages that decode will read with such prompts. */
fkv_status fkv_measure_fill_pages(fkv_engine *engine, int64_t n_tokens, int64_t max_new, fkv_err *err);

/* --- time_steps.c: a job's steps and prompts --------------------------------- */

/* What a job's decode steps take on this engine, which has no plan: at each of the n numbers
 * of slots, ascending, with the tokens that every head is expected to hold
 * ([n_layers][n_kv_heads]), heads at home. Ends after about so many seconds, with fewer
 * points, but at least one. Leaves the engine without a plan, resized, its stats reset. */
fkv_status fkv_measure_steps(fkv_engine *engine, const fkv_safetensors *weights, const double *tokens,
                             const int *slots, int n, double seconds, fkv_step_curve *out, fkv_err *err);
/* The same for the prefill of a prompt of each length: a few times, once where time is over. */
fkv_status fkv_measure_prompts(fkv_engine *engine, const int64_t lengths[2], double seconds, double us[2],
                               fkv_err *err);

/* --- trace.c: the parts of a step -------------------------------------------- */

/* What traced decode steps took, summed over n_steps. The common part is what no plan
 * changes, as a rank on a device of its own would do it: of the products that each rank
 * does its share of, the mean share; norms, sums and gathers whole. */
typedef struct fkv_trace_sums {
    int n_layers, n_ranks;
    int64_t n_steps;
    double *segment_seconds; /* [n_layers][n_ranks] attention segments, the trace's */
    double layers_seconds;   /* common part of all layers: gathers, output projection, MLP */
    double once_seconds;     /* common part once a step: embedding, logits, sampling */
} fkv_trace_sums;

typedef struct fkv_trace fkv_trace;

/* From now on decode steps with all slots at work are timed part by part, on any backend.
 * That waits for the device at every boundary and replays no recorded step. An engine has at
 * most one trace, which is closed before it. After a failure *trace is NULL. */
fkv_status fkv_trace_open(fkv_engine *engine, fkv_trace **trace, fkv_err *err);
const fkv_trace_sums *fkv_trace_get(const fkv_trace *trace);
void fkv_trace_reset(fkv_trace *trace);
void fkv_trace_close(fkv_trace *trace);
/* Mean step: over the layers the slowest rank's segment, and the common part. */
double fkv_trace_step_us(const fkv_trace_sums *sums);

#endif
