/* Pages of the KV store: which page of which rank's arena belongs to whom. Host
 * arithmetic only; the arenas themselves are the devices'.
 *
 * Heads keep different numbers of tokens, so there is no [n_slots, max_len]
 * rectangle: head h of layer l holds min(budget[l][h], T) tokens of its slot's prompt
 * and those decoded since, in pages of FKV_PAGE_TOKENS. Pages are taken as tokens come,
 * so an arena holds what is there and not what might come; who waits or yields when it
 * is full is schedule.h's business. "beyond" counts the tokens behind the kept ones.
 *
 * The devices' page tables follow by edits: fkv_kv_edits lists what was taken since.
 *
 * A kv owns its arrays, and copies budgets and owners. A failed open leaves an empty one, which close
 * takes, too. Not for the bytes of a page (memory.h).
 */
#ifndef FKV_ENGINE_KV_H
#define FKV_ENGINE_KV_H

#include "engine/plan/budget.h"
#include "engine/plan/plan.h"
#include "engine/plan/record_limit.h"
#include "kernels/backend.h"

typedef struct fkv_kv {
    int n_layers, n_kv_heads, n_ranks, n_slots;
    int64_t max_tokens;      /* prompt and new ones of a record, which the table can hold */
    fkv_record_limit record; /* the largest that is accepted */
    int32_t *budgets;        /* [n_layers * n_kv_heads] */
    int16_t *owner;          /* [n_layers * n_kv_heads][n_slots] rank */
    int *class_of;           /* [n_slots] slots of a class have the same owners */
    int64_t slot_stride;     /* table entries of a slot */
    int64_t *offset;         /* [n_layers * n_kv_heads] first entry of (l, h) in a slot's part */
    int32_t *table;          /* [n_slots][slot_stride] pages; host's copy */
    int64_t *n_pages;        /* [n_ranks] of the arena */
    int32_t **free_at;       /* [n_ranks][n_pages] stack of free pages */
    int64_t *n_free;         /* [n_ranks] */
    int64_t *slot_pages;     /* [n_slots][n_ranks] pages held */
    int64_t *slot_heads;     /* [n_slots][n_ranks] heads that the rank decodes for the slot */
    int64_t *slot_kept;      /* [n_slots][n_ranks] kept tokens of its prompt, summed over those */
    int64_t *n_tokens;       /* [n_slots] T of the prompt in it */
    int32_t *held;           /* [n_slots][n_layers * n_kv_heads] pages held */
    int32_t *known;          /* the same: pages that edits have told of */
    bool *changed;           /* [n_slots] some held is not known */
    int32_t
        *by_phase;  /* [n_slots][n_layers * n_kv_heads] heads, those that fill a page together side by side */
    int32_t *phase; /* [n_slots][FKV_PAGE_TOKENS + 1] where in by_phase those with kept % page == p start */
    fkv_edit *edits; /* room for every page */
    int64_t in_use, peak;
} fkv_kv;

/* Tables for a plan and its budgets, for records of at most max_tokens prompt and new tokens.
 * record: larger ones are refused; 0 pages: none that has at most max_tokens. */
fkv_status fkv_kv_open(const fkv_plan *plan, const int32_t *budgets, int64_t max_tokens,
                       const fkv_record_limit *record, fkv_kv *kv, fkv_err *err);
/* What a record's pages depend on beside its lengths; kv's budgets. */
fkv_record_shape fkv_kv_shape(const fkv_kv *kv);
/* Whether a record is accepted at all: FKV_OK or FKV_E_INPUT, and err says why not. The same
 * for every slot and plan. */
fkv_status fkv_kv_accepts(const fkv_kv *kv, int64_t n_tokens, int64_t max_new, fkv_err *err);

/* Gives every rank an arena of n_pages[r] pages, all free. */
fkv_status fkv_kv_set_arenas(fkv_kv *kv, const int64_t *n_pages, fkv_err *err);

/* need[n_ranks]: pages of a prompt of n_tokens in slot with so many tokens beyond. */
void fkv_kv_prompt_need(const fkv_kv *kv, int slot, int64_t n_tokens, int64_t beyond, int64_t *need);
/* Puts a prompt into an empty slot: takes the pages of what is kept of it and of the tokens
 * beyond, which must be free. */
void fkv_kv_put(fkv_kv *kv, int slot, int64_t n_tokens, int64_t beyond);
/* kept[n_ranks]: tokens that the heads of a rank would keep of a prompt in slot, summed. */
void fkv_kv_kept(const fkv_kv *kv, int slot, int64_t n_tokens, int64_t *kept);
/* need[n_ranks]: pages more so that slot holds so many tokens beyond, and beyond - 1 already. */
void fkv_kv_step_need(const fkv_kv *kv, int slot, int64_t beyond, int64_t *need);
/* Takes them. */
void fkv_kv_step(fkv_kv *kv, int slot, int64_t beyond);
/* Whether the table has room for what is kept of a prompt and so many tokens beyond. */
bool fkv_kv_reaches(const fkv_kv *kv, int64_t n_tokens, int64_t beyond);
/* Whether need[n_ranks] pages are free. */
bool fkv_kv_free(const fkv_kv *kv, const int64_t *need);
/* Gives all pages of a slot back. */
void fkv_kv_release(fkv_kv *kv, int slot);

/* Table entries that changed since the last call; they are kv's, until the next call. */
const fkv_edit *fkv_kv_edits(fkv_kv *kv, int64_t *n);

void fkv_kv_close(fkv_kv *kv);

#endif
