/* Bytes of every rank and device, known before anything is loaded.
 *
 * Pure host functions. engine.c allocates a device's buffers by
 * fkv_memory_buffers, so what is predicted and what is allocated cannot drift
 * apart. Not for asking a device what it has free (backend.h: info).
 *
 * A prediction owns its arrays; a failed predict leaves an empty one. Other results are not to be used
 * after a failure, and nothing is to be freed.
 */
#ifndef FKV_ENGINE_MEMORY_H
#define FKV_ENGINE_MEMORY_H

#include "engine/model/config.h"
#include "engine/plan/plan.h"
#include "engine/plan/record_limit.h"
#include "kernels/backend.h"

/* Buffers of one device; state.h says what each holds. */
typedef enum fkv_buffer {
    FKV_BUFFER_X,
    FKV_BUFFER_XN,
    FKV_BUFFER_QKV,
    FKV_BUFFER_ATT,
    FKV_BUFFER_SCORES,
    FKV_BUFFER_SECOND,
    FKV_BUFFER_TOKENS,
    FKV_BUFFER_ROPE_ROWS,
    FKV_BUFFER_SEGMENTS,
    FKV_BUFFER_EDITS,
    FKV_BUFFER_Y,
    FKV_BUFFER_ACT,
    FKV_BUFFER_PARTIAL,
    FKV_BUFFER_XN_SCALE, /* in FP8 alone, as TILE_SCALE and STEP_SCALE */
    FKV_BUFFER_TILE_SCALE,
    FKV_BUFFER_STEP_X,
    FKV_BUFFER_STEP_XN,
    FKV_BUFFER_STEP_ATT,
    FKV_BUFFER_STEP_SCALE,
    FKV_BUFFER_LOGITS,
    FKV_BUFFER_DEVICE_OF,
    FKV_BUFFER_SLOT_TOKEN, /* from here on fkv_slots */
    FKV_BUFFER_SLOT_POS,
    FKV_BUFFER_SLOT_ROPE0,
    FKV_BUFFER_SLOT_PROMPT_LEN,
    FKV_BUFFER_SLOT_N_NEW,
    FKV_BUFFER_SLOT_ACTIVE,
    FKV_BUFFER_SLOT_MAX_NEW,
    FKV_BUFFER_SLOT_OUT,
    FKV_BUFFER_SLOT_SAMPLING,
    FKV_BUFFER_SLOT_SEEN,
    FKV_N_BUFFERS
} fkv_buffer;

typedef struct fkv_buffer_size {
    int64_t rows, cols;
    int element_bytes;
} fkv_buffer_size;

/* What sizes depend on. */
typedef struct fkv_memory_shape {
    const fkv_config *config;
    int n_ranks, n_devices, n_slots;
    int64_t max_prompt; /* tokens that the prefill buffers hold */
    int64_t max_tokens; /* of a record, prompt and new ones; 0: the model's positions */
    int act_bytes, kv_bytes, weight_bytes, fp8_bytes, fp8_row_bytes; /* as in fkv_device_info */
    int prefill_tile, worth_rows;                                    /* the same */
    fkv_form form;                                                   /* as in fkv_device_limits */
    int window;                                                      /* the same */
    uint32_t scorers;                                                /* the same */
    fkv_kv_form kv_form;                                             /* as in fkv_engine_options */
    const fkv_backend *backend;                                      /* for its workspace; NULL: none */
    int n_threads;                                                   /* host threads of a device */
} fkv_memory_shape;

/* Lengths of the records that all slots shall be able to hold at once. */
typedef struct fkv_memory_lengths {
    int64_t prompt, max_new;
} fkv_memory_lengths;

/* What a device has: bytes free before anything is loaded, and the share of
 * what the weights and buffers leave that the KV arenas may take. */
typedef struct fkv_memory_limit {
    int64_t bytes;
    double arena_share;
} fkv_memory_limit;

typedef struct fkv_memory_rank {
    int64_t weight_bytes; /* home slices */
    int64_t copy_bytes;   /* Q, K, V of heads copied to it */
    int64_t page_bytes;   /* KV pages of all slots */
    int64_t one_bytes;    /* KV pages that one record needs at the most */
    int64_t query_bytes;  /* decode scratch */
} fkv_memory_rank;

typedef struct fkv_memory_device {
    int64_t buffer_bytes; /* activations, norms, page table */
    int64_t workspace_bytes;
    int64_t fixed_bytes;   /* of all that does not grow with the slots, ranks included */
    int64_t page_bytes;    /* its ranks' KV pages */
    int64_t total_bytes;   /* all of it */
    double per_slot_bytes; /* by which total_bytes grows with one slot more */
} fkv_memory_device;

/* A prediction. */
typedef struct fkv_memory {
    int n_ranks, n_devices;
    fkv_memory_rank *rank;     /* [n_ranks] */
    fkv_memory_device *device; /* [n_devices] */
    int fullest_rank;          /* by all bytes of the rank itself; ties: lower rank */
    int fullest_device;        /* by total_bytes; ties: lower device */
} fkv_memory;

/* What fixes a device's workspace. inv_freq and layers are left to the caller. */
fkv_device_limits fkv_memory_device_limits(const fkv_memory_shape *shape);
/* Whether the shape's devices, from first_device of the backend's on, can run the model together
 * (backend.h: supports). */
fkv_status fkv_memory_supported(const fkv_memory_shape *shape, int first_device, const fkv_backend *backend,
                                fkv_err *err);
/* Where several devices prefill packs of several tiles, some tiles' outputs are in use side by side
 * (fkv_layer_finish_aside). */
enum { FKV_TILES_OF_Y = 3, FKV_TILES_OF_PARTIAL = 2 };
bool fkv_memory_has_asides(const fkv_memory_shape *shape);
/* Rows of the largest pack: of the longest prompt, or four times what is worth a pass. */
int64_t fkv_memory_max_rows(const fkv_memory_shape *shape);
/* Buffers of a device with local_ranks ranks. */
void fkv_memory_buffers(const fkv_memory_shape *shape, int local_ranks, fkv_buffer_size out[FKV_N_BUFFERS]);
/* Decode scratch of a rank that serves at most so many heads in a layer. */
fkv_buffer_size fkv_memory_queries(const fkv_memory_shape *shape, int served);
/* Page table of a device; its cols are a slot's entries. */
fkv_buffer_size fkv_memory_table(const fkv_memory_shape *shape);
/* Of a page: K and V of one head for FKV_PAGE_TOKENS tokens. */
int64_t fkv_memory_page_bytes(const fkv_memory_shape *shape);
/* Bytes of a rank's home slices. */
int64_t fkv_memory_home_bytes(const fkv_memory_shape *shape, int rank);
/* Of Q, K and V of one KV head: what a copy takes. */
int64_t fkv_memory_head_bytes(const fkv_memory_shape *shape);
/* Of the matrices of all ranks at home; known before anything is loaded. */
int64_t fkv_memory_model_bytes(const fkv_memory_shape *shape);

/* plan: of the shape's ranks and slots, or NULL for every head at home.
 * budgets: [n_layers][n_kv_heads]. */
fkv_status fkv_memory_predict(const fkv_memory_shape *shape, const fkv_plan *plan, const int32_t *budgets,
                              const fkv_memory_lengths *lengths, fkv_memory *out, fkv_err *err);
void fkv_memory_free(fkv_memory *m);

/* Memory of a device that accepted records are fixed by: what is free now, but at most
 * most_share of all, rounded down to a 32nd of all, so that it is the same in every run of an
 * idle device. */
int64_t fkv_memory_nominal(int64_t total_bytes, int64_t free_bytes, double most_share);
/* The largest record with that much on every device, heads at home: the largest there can
 * be at all, or what seven eighths of the fullest device's arena hold. Prompts may be as long
 * as the buffers beside such an arena. 0 pages: not even one token fits. */
fkv_status fkv_memory_record_limit(const fkv_memory_shape *shape, const fkv_memory_limit *nominal,
                                   const int32_t *budgets, fkv_record_limit *out, fkv_err *err);
/* Whether a plan's arenas hold the limit's largest record in every slot (fkv_record_demand):
 * *short_of is a device that can't, or -1. */
fkv_status fkv_memory_holds(const fkv_memory_shape *shape, const fkv_memory_limit *limit,
                            const fkv_plan *plan, const int32_t *budgets, const fkv_record_limit *record,
                            int *short_of, fkv_err *err);

/* Evens the plan's memory out over the devices, under the limit where that can be:
 * fkv_plan_even_memory with the bytes of this file. */
fkv_status fkv_memory_even(const fkv_memory_shape *shape, const fkv_memory_limit *limit,
                           const int32_t *budgets, const fkv_memory_lengths *lengths,
                           const fkv_plan_problem *problem, fkv_plan *plan, fkv_err *err);

/* Slots that fit the fullest device, going by m, a prediction of a plan of the
 * same mode: 0 when not even one does, FKV_PLAN_MAX_SLOTS at the most. */
int fkv_memory_slots(const fkv_memory *m, const fkv_memory_limit *limit);

/* Records that the arenas of m, a prediction for n_slots, hold at a time: as many of its
 * lengths as the fullest device's. */
double fkv_memory_at_once(const fkv_memory *m, const fkv_memory_limit *limit, int n_slots);

/* Whether weights, buffers and the KV pages of one record fit; if not, err says
 * with numbers what is too large on which device, and which keys would help. */
fkv_status fkv_memory_check(const fkv_memory *m, const fkv_memory_limit *limit,
                            const fkv_memory_lengths *lengths, fkv_err *err);

#endif
