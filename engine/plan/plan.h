/* The Fair-Copying plan: which rank decodes which slots of which head.
 *
 * Pure host code; the solver minimises the cost model's step time. A plan owns its arrays; a failed solve or
 * read leaves an empty one, other failed calls leave it to be freed. Not for who has which head at home
 * (partition.h), nor for carrying a plan out (engine/engine.h: set_plan). */
#ifndef FKV_ENGINE_PLAN_H
#define FKV_ENGINE_PLAN_H

#include "engine/plan/cost.h"

/* Limits of a plan: bound memory and arithmetic whatever the input. */
enum { FKV_PLAN_MAX_HEADS = 1024, FKV_PLAN_MAX_PAIRS = 1 << 20, FKV_PLAN_MAX_SLOTS = 1 << 20 };

typedef enum fkv_plan_mode { FKV_PLAN_STANDARD, FKV_PLAN_BEST_EFFORT, FKV_PLAN_FAIR_COPYING } fkv_plan_mode;
enum { FKV_PLAN_MODES = 3 };

/* As plan.json and people call it. */
const char *fkv_plan_mode_name(fkv_plan_mode mode);

typedef struct fkv_placement {
    int rank;
    int begin, end; /* slots [begin, end), not empty */
} fkv_placement;

typedef struct fkv_plan {
    fkv_plan_mode mode;
    int n_layers, n_kv_heads, n_ranks, n_slots;
    int *first;        /* [n_layers * n_kv_heads + 1]: placements of (l, h) are at [first[i], first[i + 1]) */
    fkv_placement *at; /* per (l, h) in order of begin, covering [0, n_slots) exactly once */
    double standard_us, best_effort_us, fair_copying_us, lower_bound_us; /* modelled decode step */
    double step_us; /* of these placements: the mode's, and what fitting the memory costs */
} fkv_plan;

typedef struct fkv_plan_problem {
    int n_layers, n_kv_heads, n_ranks, n_slots;
    const double *tokens;  /* [n_layers][n_kv_heads], fkv_cost_tokens */
    fkv_cost cost;         /* of n_ranks */
    int max_copies;        /* per layer; -1: no limit. A head moved whole is one copy */
    double collectives_us; /* between devices, a layer; no plan changes them */
} fkv_plan_problem;

/* Solves all three modes (for the predictions) and returns that of mode.
 * bound <= fair-copying <= best-effort <= standard on every input.
 * Deterministic. n_ranks > n_kv_heads is FKV_E_INPUT. */
fkv_status fkv_plan_solve(const fkv_plan_problem *problem, fkv_plan_mode mode, fkv_plan *plan, fkv_err *err);
void fkv_plan_free(fkv_plan *plan);

/* plan_memory.c: what a device's memory holds, in bytes. */
typedef struct fkv_plan_memory {
    int n_devices;            /* rank r lives on device floor(r D / R) */
    const double *base_bytes; /* [n_devices] what the plan does not change */
    const double *slot_bytes; /* [n_layers][n_kv_heads] K and V that one slot reserves */
    double copy_bytes;        /* of a copy's weights */
    double limit_bytes;       /* of a device; INFINITY: none */
} fkv_plan_memory;

/* Moves slots to less full devices. The fullest device sets the batch, so it gets as empty
 * as can be without a longer step. Where it still is over the limit and the devices
 * together are not, the step is lengthened by as little as helps (step_us says to what; the
 * modes' predictions stay). The mode's rules and max_copies are kept; standard stays as it
 * is. Deterministic. */
fkv_status fkv_plan_even_memory(const fkv_plan_problem *problem, const fkv_plan_memory *memory,
                                fkv_plan *plan, fkv_err *err);

/* plan_load.c: tokens that each rank reads in a layer of a step, loads[n_ranks]; tokens:
 * [n_layers][n_kv_heads], fkv_cost_tokens. */
void fkv_plan_loads(const fkv_plan *plan, const double *tokens, int layer, double *loads);
/* The fullest rank's over the mean of all ranks, summed over the layers; 0: no memory. */
double fkv_plan_balance(const fkv_plan *plan, const double *tokens);
/* The same by the lengths that the profile expects. */
double fkv_plan_balance_of(const fkv_plan *plan, const fkv_profile *profile);
/* The same ranks and slots with every head at home, as standard tensor parallelism has it. */
fkv_status fkv_plan_at_home(const fkv_plan *like, fkv_plan *plan, fkv_err *err);

/* Placements away from home, over all layers. */
int fkv_plan_copies(const fkv_plan *plan);
/* Modelled decode step of any plan. */
double fkv_plan_step_us(const fkv_plan_problem *problem, const fkv_plan *plan);
/* Checks that every (l, h) covers [0, n_slots) once with ranks in range. */
fkv_status fkv_plan_validate(const fkv_plan *plan, fkv_err *err);

/* plan.json (plan_file.c). extra: members for the top-level object as JSON text
 * without braces ("\"a\":1,\"b\":2"), or NULL. */
fkv_status fkv_plan_write(const fkv_plan *plan, const char *fingerprint, const char *extra, const char *path,
                          fkv_err *err);
/* Reads and validates; fingerprint is malloc'd. */
fkv_status fkv_plan_read(const char *path, fkv_plan *plan, char **fingerprint, fkv_err *err);

#endif
