/* Pages of the KV store: which page of which rank's arena belongs to whom. Host
 * arithmetic only; the arenas themselves are the devices'.
 *
 * Heads keep different numbers of tokens, so there is no [n_slots, max_len]
 * rectangle: head h of layer l holds min(budget[l][h], T) + max_new tokens of its
 * slot, in pages of FKV_PAGE_TOKENS. A record is admitted when every rank has all
 * the pages that it can ever need, so decoding allocates nothing and can never
 * run out halfway.
 */
#ifndef FKV_ENGINE_KV_H
#define FKV_ENGINE_KV_H

#include "engine/budget.h"
#include "engine/plan.h"

typedef struct fkv_kv {
    int n_layers, n_kv_heads, n_ranks, n_slots;
    int64_t max_positions;
    int32_t *budgets;    /* [n_layers * n_kv_heads] */
    int16_t *owner;      /* [n_layers * n_kv_heads][n_slots] rank */
    int64_t slot_stride; /* table entries of a slot */
    int64_t *offset;     /* [n_layers * n_kv_heads] first entry of (l, h) in a slot's part */
    int32_t *table;      /* [n_slots][slot_stride] pages; host's copy */
    int64_t *n_pages;    /* [n_ranks] of the arena */
    int32_t **free_at;   /* [n_ranks][n_pages] stack of free pages */
    int64_t *n_free;     /* [n_ranks] */
    int64_t *need;       /* [n_ranks] scratch */
    int32_t *held;       /* [n_slots][n_layers * n_kv_heads] pages held */
    int64_t in_use, peak;
} fkv_kv;

/* Tables for a plan and its budgets; no record exceeds max_positions tokens. */
fkv_status fkv_kv_open(const fkv_plan *plan, const int32_t *budgets, int64_t max_positions, fkv_kv *kv,
                       fkv_err *err);

/* Pages that rank r needs so that all its slots can hold prompts of max_prompt
 * tokens and max_new more (pages[n_ranks]), and what one such record needs of it
 * at the most (one[n_ranks]). */
void fkv_kv_demand(const fkv_kv *kv, int64_t max_prompt, int64_t max_new, int64_t *pages, int64_t *one);

/* Gives every rank an arena of n_pages[r] pages, all free. */
fkv_status fkv_kv_set_arenas(fkv_kv *kv, const int64_t *n_pages, fkv_err *err);

/* Takes all pages for a record in slot. FKV_OK; FKV_E_BUSY: not now (err is left
 * alone); FKV_E_INPUT: never, the record is larger than an arena. */
fkv_status fkv_kv_admit(fkv_kv *kv, int slot, int64_t n_tokens, int64_t max_new, fkv_err *err);
void fkv_kv_release(fkv_kv *kv, int slot);
void fkv_kv_close(fkv_kv *kv);

#endif
