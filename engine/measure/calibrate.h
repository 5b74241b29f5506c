/* Calibration: the cost model's constants, measured on the device they are for.
 *
 * A scratch engine with random weights of the model's shape decodes real steps under a
 * plan that is uneven on purpose, every rank's segment timed apart (measure.h):
 *   segment = t0 + head * (heads served) + slot_head * (slots) + token * (tokens read)
 * over all ranks and layers is a least-squares problem for four constants that can't be
 * negative. So weights and pages come from the same caches, and small work is handed to
 * the device in the same pieces, as in a run: where a device replays recorded steps, the
 * segments are those of replayed steps of one rank alone. The common part and the prefill
 * rates come from the same engine; collectives between devices are timed on their own
 * (calibrate_link.c).
 *
 * What one rank costs depends on the shape, the numbers of ranks and slots, and on whether
 * the KV cache is larger than the processor's: hence the key. Measured constants choose a
 * plan; they never change an answer.
 *
 * Nothing is owned but the string of fkv_calibration_path. After a failure *out is not to be used, and all
 * that was opened is closed. Not for what is measured elsewhere (measure.h), nor for what a plan makes of
 * the constants (engine/plan/cost.h).
 */
#ifndef FKV_ENGINE_CALIBRATE_H
#define FKV_ENGINE_CALIBRATE_H

#include "engine/model/config.h"
#include "engine/plan/cost.h"
#include "kernels/backend.h"

/* What a calibration is for. */
typedef struct fkv_calibration_key {
    char backend[16], device[96], version[32];
    int hidden, intermediate, head_dim, group, n_kv_heads, n_layers, vocab;
    /* Of an element, the dtypes; kv_bytes 1: e4m3 with scales; weights: of the layers' matrices. */
    int act_bytes, kv_bytes, weight_bytes;
    int n_ranks, n_devices, n_slots;
    int tokens; /* mean tokens of a head in a slot, rounded to a power of two */
} fkv_calibration_key;

typedef struct fkv_calibration {
    fkv_calibration_key key;
    fkv_cost cost;    /* of key.n_ranks; no link with one device */
    double fit_error; /* mean of |fitted - measured| / measured over the segments */
    /* Not in files: what stayed disturbed and is 0 above, or empty. Such a calibration is of
     * use to this run, but not kept. */
    char disturbed[32];
} fkv_calibration;

/* What to calibrate. */
typedef struct fkv_calibration_task {
    const fkv_backend *backend;
    const fkv_config *config;
    int n_ranks, n_devices, n_slots;
    fkv_kv_form kv_form;
    int n_threads;      /* host threads of a device; 0: all */
    fkv_form form;      /* of the layers' matrices */
    double mean_tokens; /* of a head in a slot (fkv_cost_tokens) */
    /* Prompts whose prefill matters, such as a sample's median and largest; 0: any. They are
     * cut to what the scratch engine does in a moment. */
    int64_t prompt_tokens[2];
    bool again; /* measured even where the machine keeps one */
} fkv_calibration_task;

/* Opens a device for its name. */
fkv_status fkv_calibration_key_of(const fkv_calibration_task *task, fkv_calibration_key *key, fkv_err *err);
/* Measures: a second or two for small models. FKV_E_SYSTEM where memory or limits of the
 * model leave no room for it, and where the steps' times are disturbed: no two rounds of
 * measuring in a row agree. */
fkv_status fkv_calibration_measure(const fkv_calibration_task *task, fkv_calibration *out, fkv_err *err);
/* The machine's calibration: from the user's cache ($XDG_CACHE_HOME or ~/.cache, folder
 * fairkv-batch), else measured and kept there, unless something was disturbed. A cached file
 * that is damaged or not for this key, and a cache that can't be written, are a line in the
 * log, as is what was measured. Where measuring again is disturbed, what is kept is used.
 * measured (may be NULL): whether it was measured now. */
fkv_status fkv_calibration_cached(const fkv_calibration_task *task, fkv_calibration *out, bool *measured,
                                  fkv_err *err);
/* The one that the machine keeps, and nothing is measured: *found is false where there is none. */
fkv_status fkv_calibration_kept(const fkv_calibration_task *task, fkv_calibration *out, bool *found,
                                fkv_err *err);
/* A file that the job names. Wrong fields, and another backend, shape, number of ranks or
 * of slots, are FKV_E_INPUT naming the field. Device, version and tokens may differ:
 * naming a file is how one set of constants serves several machines. A task with 0 ranks
 * or slots takes the file's. */
fkv_status fkv_calibration_pinned(const fkv_calibration_task *task, const char *path, fkv_calibration *out,
                                  fkv_err *err);

/* calibration_file.c: {"format":"fairkv-calibration/1",...}. */
fkv_status fkv_calibration_write(const fkv_calibration *c, const char *path, fkv_err *err);
fkv_status fkv_calibration_read(const char *path, fkv_calibration *c, fkv_err *err);
/* malloc'd path of the cached file for a key; NULL: no memory, or no folder is known. */
char *fkv_calibration_path(const fkv_calibration_key *key);

/* calibrate_link.c: the task's collectives; zeros with one device, and where their times
 * stay disturbed (*settled). */
fkv_status fkv_calibration_measure_link(const fkv_calibration_task *task, double *start_us,
                                        double *bytes_per_us, bool *settled, fkv_err *err);

/* calibrate_fit.c */
/* Whether two times of the same work are near enough to believe them. */
bool fkv_fit_agree(double a, double b);
/* The value of n repeated times (sorted in place by halves) that share of them lie below;
 * false: those of the first and of the second half don't agree. */
bool fkv_fit_settled(double *values, int n, double share, double *value);
enum { FKV_FIT_MAX = 6 };
/* x >= 0 that minimises the sum over the n_rows rows of ((a x - y) / y)^2: a is
 * [n_rows, n_cols], n_cols <= FKV_FIT_MAX; rows whose y is not positive don't count. Columns
 * that the rows don't tell apart get 0 where the others do as well. Returns the mean of
 * |a x - y| / y. */
double fkv_fit_nonnegative(const double *a, const double *y, int n_rows, int n_cols, double *x);

#endif
