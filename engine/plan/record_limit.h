/* The largest record that a run accepts: the kept pages of its prompt and of its full
 * limit of new tokens. It is fixed once, by budgets, ranks, slots and a nominal memory
 * (engine/memory.h), with every head at home, and is the same for every slot and plan: an
 * arena that holds it in each slot never refuses a record for its place.
 *
 * Pure host functions; nothing is owned, and after a failure no result is to be used. Not for
 * how many records fit at once (engine/kv.h).
 */
#ifndef FKV_ENGINE_RECORD_LIMIT_H
#define FKV_ENGINE_RECORD_LIMIT_H

#include "engine/plan/plan.h"

typedef struct fkv_record_limit {
    int64_t positions; /* prompt and new tokens together: the model's */
    int64_t prompt;    /* tokens of a prompt: what prefill's buffers can grow to */
    int64_t pages;     /* KV pages of the fullest rank */
} fkv_record_limit;

/* What a record's pages depend on beside its lengths. */
typedef struct fkv_record_shape {
    int n_layers, n_kv_heads, n_ranks;
    const int32_t *budgets; /* [n_layers][n_kv_heads] */
} fkv_record_shape;

/* Pages of so many tokens. */
int64_t fkv_pages_for(int64_t tokens);
/* Pages of a head that keeps at most budget tokens of a prompt of n_tokens, and max_new more. */
int64_t fkv_head_pages(int64_t budget, int64_t n_tokens, int64_t max_new);
/* Pages of the fullest rank: the sum over its home heads of what
 * min(budget, n_tokens) + max_new tokens take. */
int64_t fkv_record_pages(const fkv_record_shape *shape, int64_t n_tokens, int64_t max_new);

/* Whether a record is accepted; FKV_E_INPUT says what is too large, by how much, and which keys help. */
fkv_status fkv_record_check(const fkv_record_limit *limit, const fkv_record_shape *shape, int64_t n_tokens,
                            int64_t max_new, fkv_err *err);

/* The most new tokens of an accepted record with a prompt of n_tokens; 0: it has none. */
int64_t fkv_record_most_new(const fkv_record_limit *limit, const fkv_record_shape *shape, int64_t n_tokens);

/* What the accepted records can ask of each rank under a plan: one[r] pages for the largest
 * in any slot, all[r] for such a one in every slot. Never too few; at most a page a head too
 * many (more for models of very many heads), and with heads at home never above the limit. */
fkv_status fkv_record_demand(const fkv_record_limit *limit, const fkv_record_shape *shape,
                             const fkv_plan *plan, int64_t *one, int64_t *all, fkv_err *err);

/* Shares out the pages that each device has room for: every rank gets one[r], and of the
 * rest what its slots can ask for, in proportion. False: a device can't hold its ranks'
 * one; *short_of says which, and pages is not filled. */
bool fkv_record_arenas(const int64_t *one, const int64_t *all, int n_ranks, int n_devices,
                       const int64_t *room, int64_t *pages, int *short_of);

#endif
