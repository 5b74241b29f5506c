/* The engine: a model on R ranks over D devices, prompts in, tokens out.
 *
 * Order of calls: open (loads each rank's home slices), profile any number of
 * prompts, set_plan (loads the copies, makes the KV arenas), run, close. Between
 * open and set_plan resize gives it other slots; clear_plan goes back to before
 * set_plan. The home slices are loaded once whatever is called.
 * All calls come from one thread (but stats, info and close: from another while none is under way). What a
 * record's tokens are depends on the record, the model, the numbers of ranks and slots, and the seed alone.
 *
 * The engine owns its devices, weights, pages and threads until close. Config, options, budgets and plan
 * are copied, weights are borrowed during a call; the backend must outlive the engine.
 *
 * Not for: tokenizing, files, choosing a plan (engine/plan/plan.h), or measuring (engine/measure).
 */
#ifndef FKV_ENGINE_ENGINE_H
#define FKV_ENGINE_ENGINE_H

#include "engine/model/config.h"
#include "engine/model/safetensors.h"
#include "engine/plan/budget.h"
#include "engine/plan/plan.h"
#include "engine/plan/record_limit.h"
#include "kernels/backend.h"

typedef struct fkv_engine fkv_engine;

typedef struct fkv_engine_options {
    const fkv_backend *backend;
    int n_ranks, n_devices; /* n_devices <= n_ranks <= n_kv_heads */
    int first_device;       /* of the backend's: several engines may be at work in one process */
    int n_sharing;          /* engines that share the devices' memory, this one included; 0: 1 */
    int n_slots;
    int64_t max_prompt; /* tokens; longer requests are an error of the caller */
    int64_t max_tokens; /* of a request, prompt and new ones; 0: the model's positions */
    /* What of a prompt is kept (kernels/scorer.h): what ranks its tokens, the first ones that are kept
     * whatever they score, the last ones likewise, whose queries score for some, and the max-pool. */
    fkv_scorer scorer;
    int sinks, window, kernel;
    uint32_t more_scorers; /* that set_scorer may choose, too: a bit for each (fkv_scorer_bit) */
    fkv_kv_form kv_form;   /* of the KV cache's pages */
    int n_threads;         /* host threads per device; 0: an equal share of all */
    fkv_form form;         /* of the layers' matrices; embedding and output are NATIVE */
    bool solo; /* benchmarks: one device holds rank solo_rank alone of n_ranks; results mean nothing */
    int solo_rank;
    fkv_token_rules rules; /* suppressed: host memory, copied */
    fkv_sampling measured; /* of slots that are filled to be measured (engine/measure) */
} fkv_engine_options;

typedef struct fkv_request {
    int64_t ordinal;    /* of the record: its age */
    const int32_t *ids; /* prompt; valid until finish or reject */
    int64_t n_ids, max_new;
    fkv_sampling sampling;
    void *user;
} fkv_request;

typedef enum fkv_finish { FKV_FINISH_STOP, FKV_FINISH_LENGTH } fkv_finish;

typedef enum fkv_stopping {
    FKV_GO_ON,
    FKV_DRAIN,   /* start no more records, finish what is in flight */
    FKV_STOP_NOW /* leave at once; run returns FKV_E_INTERRUPTED */
} fkv_stopping;

/* Requests that the engine holds at a time: those in line (n_slots + FKV_ENGINE_LOOK_AHEAD) and
 * those in slots or just leaving them. */
enum { FKV_ENGINE_LOOK_AHEAD = 32 };
#define FKV_ENGINE_HOLDS(n_slots) (4 * (size_t)(n_slots) + FKV_ENGINE_LOOK_AHEAD)

/* The caller's side of run; every function gets ctx. */
typedef struct fkv_engine_io {
    void *ctx;
    /* The next request; FKV_END when there are no more; with wait false FKV_E_BUSY
     * when none is ready yet (err untouched). */
    fkv_status (*next)(void *ctx, bool wait, fkv_request *request, fkv_err *err);
    /* After each token: true ends the record (a stop string is complete). A request that had to
     * yield its memory starts again from its first token. */
    bool (*token)(void *ctx, const fkv_request *request, const int32_t *ids, int64_t n);
    fkv_status (*finish)(void *ctx, const fkv_request *request, const int32_t *ids, int64_t n, fkv_finish why,
                         fkv_err *err);
    /* A request that gets no answer: code "too_large" (it can never be admitted) or "bad_logits"
     * (the model's logits are not numbers); why says more. */
    fkv_status (*reject)(void *ctx, const fkv_request *request, const char *code, const fkv_err *why,
                         fkv_err *err);
    /* Asked between steps. */
    fkv_stopping (*stopping)(void *ctx);
    /* For tests, or NULL: the logits that token n of the request is drawn from, as its sampling adjusted
     * them. */
    void (*logits)(void *ctx, const fkv_request *request, int64_t n, const float *logits, int n_vocab);
} fkv_engine_io;

typedef struct fkv_engine_stats {
    int64_t decode_steps;
    int64_t busy_slot_steps;            /* slots at work, summed over the steps */
    int busy_slots;                     /* slots that hold a record now; 0 outside of a run */
    int64_t restarts, restarted_tokens; /* of requests that had to yield their memory */
    int64_t prefill_passes, prefill_rows;
    int64_t kv_bytes;       /* largest in use, all ranks together */
    int64_t kv_arena_bytes; /* all ranks together */
    int64_t weight_bytes, copy_bytes;
    double prefill_seconds, decode_seconds;
    double rank_attention_seconds[FKV_PLAN_MAX_HEADS]; /* by rank: there are no more than heads */
} fkv_engine_stats;

/* After a failure *engine is NULL and nothing is to be closed. */
fkv_status fkv_engine_open(const fkv_config *config, const fkv_safetensors *weights,
                           const fkv_engine_options *options, fkv_engine **engine, fkv_err *err);
/* Of the first device; memory as it was when buffers were made. */
void fkv_engine_info(const fkv_engine *engine, fkv_device_info *info);
int fkv_engine_ranks(const fkv_engine *engine);
int fkv_engine_devices(const fkv_engine *engine);
/* What the bits of answers depend on beside model, ranks, slots and seed (backend.h:
 * numerics), once there is a plan: a part of a run's fingerprint. */
void fkv_engine_numerics(const fkv_engine *engine, char *out, size_t size);

/* Gives an engine without a plan another number of slots and other lengths (as in the
 * options); the weights stay. What it answers then is what one opened with these gives, bit
 * by bit; lengths never change an answer. After a failure of a device or for want of memory
 * close is the only call left. */
fkv_status fkv_engine_resize(fkv_engine *engine, int n_slots, int64_t max_prompt, int64_t max_tokens,
                             fkv_err *err);

/* What ranks tokens in prompts that are profiled and answered from now on; one that the options name. Between
 * calls, with a plan or without. */
void fkv_engine_set_scorer(fkv_engine *engine, fkv_scorer scorer, int sinks);

/* Adds the Ada-KV counts of one prompt longer than b, and than window and sinks (tokens), to
 * sums[n_layers][n_kv_heads] (fkv_budget_ada_count); after a failure they are as they were. max_new: its
 * record's, which may say by which rope it turns (rope.h). */
fkv_status fkv_engine_profile(fkv_engine *engine, const int32_t *ids, int64_t n_ids, int64_t max_new,
                              int64_t b, double alpha, double *sums, fkv_err *err);

typedef struct fkv_engine_kv_limits {
    fkv_record_limit record; /* the largest one that is accepted; 0 pages: what the buffers were made for */
    int64_t arena_pages;     /* a rank's arena at the most, but room for that record; 0: what its device has
                                left, up to what all slots can need */
} fkv_engine_kv_limits;

/* The plan of all runs. weights must be the ones given to open; budgets: [n_layers][n_kv_heads]. After a
 * failure clear_plan and close are the only calls left. */
fkv_status fkv_engine_set_plan(fkv_engine *engine, const fkv_safetensors *weights, const int32_t *budgets,
                               const fkv_plan *plan, const fkv_engine_kv_limits *limits, fkv_err *err);

/* Gives everything that set_plan made back, so that another plan can be set. */
void fkv_engine_clear_plan(fkv_engine *engine);

/* Decodes requests until next says FKV_END. FKV_E_INTERRUPTED when stopping ended it; an error that a
 * function of io gives ends it, too. Afterwards all slots and pages are free, failed or not; the engine
 * has forgotten requests that it neither finished nor rejected. */
fkv_status fkv_engine_run(fkv_engine *engine, const fkv_engine_io *io, fkv_err *err);

/* Over all plans since open, or since the last reset. While a run is under way its functions may ask, too:
 * then without rank_attention_seconds, for which devices would have to stand still. */
void fkv_engine_stats_get(fkv_engine *engine, fkv_engine_stats *stats);
void fkv_engine_stats_reset(fkv_engine *engine);
/* Adds one of n engines that work side by side, all of the same ranks, to what they did together: counts and
 * bytes are summed, times are the mean, as one of them has them. */
void fkv_engine_stats_add(fkv_engine_stats *all, const fkv_engine_stats *one, int n);
/* NULL: nothing. */
void fkv_engine_close(fkv_engine *engine);

#endif
