/* Pages of the KV store: see kv.h. */
#include "engine/kv.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/mem.h"

static int64_t kept_of(const fkv_kv *kv, int64_t lh, int64_t n_tokens)
{
    return n_tokens < kv->budgets[lh] ? n_tokens : kv->budgets[lh];
}

static int64_t n_heads_of(const fkv_kv *kv)
{
    return (int64_t)kv->n_layers * kv->n_kv_heads;
}

static int rank_of(const fkv_kv *kv, int64_t lh, int slot)
{
    return kv->owner[lh * kv->n_slots + slot];
}

static fkv_status alloc_tables(fkv_kv *kv, fkv_err *err)
{
    const size_t n_lh = (size_t)n_heads_of(kv), slots = (size_t)kv->n_slots, ranks = (size_t)kv->n_ranks;
    size_t all, owned, entries;
    if (!fkv_mul_size(n_lh, slots, &all) || !fkv_mul_size(ranks, slots, &owned) ||
        !fkv_mul_size((size_t)kv->slot_stride, slots, &entries))
        return fkv_fail_memory(err);
    /* an edit names its entry by 32 bits */
    if (entries > INT32_MAX)
        return fkv_fail(
            err, FKV_E_INPUT,
            "a page table of %d slots and records of %lld tokens is too large: use fewer engine.slots",
            kv->n_slots, (long long)kv->max_tokens);
    kv->owner = fkv_calloc(all, sizeof *kv->owner);
    kv->held = fkv_calloc(all, sizeof *kv->held);
    kv->known = fkv_calloc(all, sizeof *kv->known);
    kv->by_phase = fkv_calloc(all, sizeof *kv->by_phase);
    kv->class_of = fkv_calloc(slots, sizeof *kv->class_of);
    kv->n_tokens = fkv_calloc(slots, sizeof *kv->n_tokens);
    kv->changed = fkv_calloc(slots, sizeof *kv->changed);
    kv->phase = fkv_calloc(slots, (FKV_PAGE_TOKENS + 1) * sizeof *kv->phase);
    kv->slot_pages = fkv_calloc(owned, sizeof *kv->slot_pages);
    kv->slot_heads = fkv_calloc(owned, sizeof *kv->slot_heads);
    kv->slot_kept = fkv_calloc(owned, sizeof *kv->slot_kept);
    kv->n_pages = fkv_calloc(ranks, sizeof *kv->n_pages);
    kv->n_free = fkv_calloc(ranks, sizeof *kv->n_free);
    kv->free_at = fkv_calloc(ranks, sizeof *kv->free_at);
    kv->table = fkv_calloc(entries, sizeof *kv->table);
    if (!kv->owner || !kv->held || !kv->known || !kv->by_phase || !kv->class_of || !kv->n_tokens ||
        !kv->changed || !kv->phase || !kv->slot_pages || !kv->slot_heads || !kv->slot_kept || !kv->n_pages ||
        !kv->n_free || !kv->free_at || !kv->table)
        return fkv_fail_memory(err);
    return FKV_OK;
}

static bool same_owners(const fkv_kv *kv, int a, int b)
{
    for (int64_t i = 0; i < n_heads_of(kv); i++)
        if (rank_of(kv, i, a) != rank_of(kv, i, b)) return false;
    return true;
}

static void set_owners(fkv_kv *kv, const fkv_plan *plan)
{
    for (int64_t i = 0; i < n_heads_of(kv); i++)
        for (int p = plan->first[i]; p < plan->first[i + 1]; p++)
            for (int s = plan->at[p].begin; s < plan->at[p].end; s++)
                kv->owner[i * kv->n_slots + s] = (int16_t)plan->at[p].rank;
    for (int64_t i = 0; i < n_heads_of(kv); i++)
        for (int s = 0; s < kv->n_slots; s++) kv->slot_heads[(int64_t)s * kv->n_ranks + rank_of(kv, i, s)]++;
    /* Slots of a class lie side by side: placements are ranges. */
    for (int s = 1; s < kv->n_slots; s++)
        kv->class_of[s] = kv->class_of[s - 1] + (same_owners(kv, s, s - 1) ? 0 : 1);
}

fkv_status fkv_kv_open(const fkv_plan *plan, const int32_t *budgets, int64_t max_tokens,
                       const fkv_record_limit *record, fkv_kv *kv, fkv_err *err)
{
    *kv = (fkv_kv){.n_layers = plan->n_layers,
                   .n_kv_heads = plan->n_kv_heads,
                   .n_ranks = plan->n_ranks,
                   .n_slots = plan->n_slots,
                   .max_tokens = max_tokens,
                   .record = *record};
    if (record->pages <= 0) kv->record = (fkv_record_limit){max_tokens, max_tokens, INT64_MAX / 2};
    const size_t n_lh = (size_t)n_heads_of(kv);
    int64_t most = fkv_pages_for(max_tokens); /* of a head; no position has more than one token of it */
    if (kv->record.pages < most) most = kv->record.pages;
    kv->budgets = fkv_calloc(n_lh, sizeof *kv->budgets);
    kv->offset = fkv_calloc(n_lh, sizeof *kv->offset);
    fkv_status st = kv->budgets && kv->offset ? FKV_OK : fkv_fail_memory(err);
    for (size_t i = 0; !st && i < n_lh; i++) {
        kv->budgets[i] = budgets[i];
        kv->offset[i] = kv->slot_stride;
        kv->slot_stride += most;
    }
    if (!st) st = alloc_tables(kv, err);
    if (st)
        fkv_kv_close(kv);
    else
        set_owners(kv, plan);
    return st;
}

fkv_record_shape fkv_kv_shape(const fkv_kv *kv)
{
    return (fkv_record_shape){kv->n_layers, kv->n_kv_heads, kv->n_ranks, kv->budgets};
}

fkv_status fkv_kv_accepts(const fkv_kv *kv, int64_t n_tokens, int64_t max_new, fkv_err *err)
{
    const fkv_record_shape shape = fkv_kv_shape(kv);
    const fkv_status st = fkv_record_check(&kv->record, &shape, n_tokens, max_new, err);
    if (st || n_tokens + max_new <= kv->max_tokens) return st;
    return fkv_fail(err, FKV_E_INPUT, "%lld prompt and %lld new tokens are more than the page table's %lld",
                    (long long)n_tokens, (long long)max_new, (long long)kv->max_tokens);
}

void fkv_kv_prompt_need(const fkv_kv *kv, int slot, int64_t n_tokens, int64_t beyond, int64_t *need)
{
    memset(need, 0, (size_t)kv->n_ranks * sizeof *need);
    for (int64_t i = 0; i < n_heads_of(kv); i++)
        need[rank_of(kv, i, slot)] += fkv_pages_for(kept_of(kv, i, n_tokens) + beyond);
}

fkv_status fkv_kv_set_arenas(fkv_kv *kv, const int64_t *n_pages, fkv_err *err)
{
    size_t all = 0;
    for (int r = 0; r < kv->n_ranks; r++) {
        kv->free_at[r] = fkv_calloc((size_t)n_pages[r], sizeof(int32_t));
        if (!kv->free_at[r] || !fkv_add_size(all, (size_t)n_pages[r], &all)) return fkv_fail_memory(err);
        kv->n_pages[r] = kv->n_free[r] = n_pages[r];
        /* Low pages are on top, so that a small job touches little memory. */
        for (int64_t i = 0; i < n_pages[r]; i++) kv->free_at[r][i] = (int32_t)(n_pages[r] - 1 - i);
    }
    kv->edits = fkv_calloc(all, sizeof *kv->edits);
    return kv->edits ? FKV_OK : fkv_fail_memory(err);
}

bool fkv_kv_reaches(const fkv_kv *kv, int64_t n_tokens, int64_t beyond)
{
    const int64_t most = kv->slot_stride / n_heads_of(kv); /* all heads have as many entries */
    for (int64_t i = 0; i < n_heads_of(kv); i++)
        if (fkv_pages_for(kept_of(kv, i, n_tokens) + beyond) > most) return false;
    return true;
}

bool fkv_kv_free(const fkv_kv *kv, const int64_t *need)
{
    for (int r = 0; r < kv->n_ranks; r++)
        if (need[r] > kv->n_free[r]) return false;
    return true;
}

/* Pages of head lh in slot until it holds `pages`. */
static void grow(fkv_kv *kv, int slot, int64_t lh, int64_t pages)
{
    int32_t *held = &kv->held[slot * n_heads_of(kv) + lh];
    const int r = rank_of(kv, lh, slot);
    int32_t *entry = kv->table + slot * kv->slot_stride + kv->offset[lh];
    for (; *held < pages; (*held)++) {
        entry[*held] = kv->free_at[r][--kv->n_free[r]];
        kv->slot_pages[(int64_t)slot * kv->n_ranks + r]++;
        kv->in_use++;
        kv->changed[slot] = true;
    }
    if (kv->in_use > kv->peak) kv->peak = kv->in_use;
}

/* Sorts the slot's heads by when they fill a page. */
static void sort_phases(fkv_kv *kv, int slot)
{
    const int64_t n_lh = n_heads_of(kv), n = kv->n_tokens[slot];
    int32_t *start = kv->phase + (int64_t)slot * (FKV_PAGE_TOKENS + 1), *order = kv->by_phase + slot * n_lh;
    memset(start, 0, (FKV_PAGE_TOKENS + 1) * sizeof *start);
    for (int64_t i = 0; i < n_lh; i++) start[kept_of(kv, i, n) % FKV_PAGE_TOKENS + 1]++;
    for (int p = 0; p < FKV_PAGE_TOKENS; p++) start[p + 1] += start[p];
    int32_t at[FKV_PAGE_TOKENS];
    memcpy(at, start, sizeof at);
    for (int64_t i = 0; i < n_lh; i++) order[at[kept_of(kv, i, n) % FKV_PAGE_TOKENS]++] = (int32_t)i;
}

void fkv_kv_put(fkv_kv *kv, int slot, int64_t n_tokens, int64_t beyond)
{
    kv->n_tokens[slot] = n_tokens;
    fkv_kv_kept(kv, slot, n_tokens, kv->slot_kept + (int64_t)slot * kv->n_ranks);
    sort_phases(kv, slot);
    for (int64_t i = 0; i < n_heads_of(kv); i++)
        grow(kv, slot, i, fkv_pages_for(kept_of(kv, i, n_tokens) + beyond));
}

void fkv_kv_kept(const fkv_kv *kv, int slot, int64_t n_tokens, int64_t *kept)
{
    memset(kept, 0, (size_t)kv->n_ranks * sizeof *kept);
    for (int64_t i = 0; i < n_heads_of(kv); i++) kept[rank_of(kv, i, slot)] += kept_of(kv, i, n_tokens);
}

/* The heads whose token beyond (the beyond-th, from 1) is the first of a page: *n of them. */
static const int32_t *heads_that_grow(const fkv_kv *kv, int slot, int64_t beyond, int32_t *n)
{
    const int p = (int)((FKV_PAGE_TOKENS - (beyond - 1) % FKV_PAGE_TOKENS) % FKV_PAGE_TOKENS);
    const int32_t *start = kv->phase + (int64_t)slot * (FKV_PAGE_TOKENS + 1);
    *n = start[p + 1] - start[p];
    return kv->by_phase + slot * n_heads_of(kv) + start[p];
}

void fkv_kv_step_need(const fkv_kv *kv, int slot, int64_t beyond, int64_t *need)
{
    int32_t n;
    const int32_t *heads = heads_that_grow(kv, slot, beyond, &n);
    memset(need, 0, (size_t)kv->n_ranks * sizeof *need);
    for (int32_t i = 0; i < n; i++) need[rank_of(kv, heads[i], slot)]++;
}

void fkv_kv_step(fkv_kv *kv, int slot, int64_t beyond)
{
    int32_t n;
    const int32_t *heads = heads_that_grow(kv, slot, beyond, &n);
    for (int32_t i = 0; i < n; i++)
        grow(kv, slot, heads[i], fkv_pages_for(kept_of(kv, heads[i], kv->n_tokens[slot]) + beyond));
}

void fkv_kv_release(fkv_kv *kv, int slot)
{
    const int64_t n_lh = n_heads_of(kv);
    for (int64_t i = n_lh - 1; i >= 0; i--) {
        const int r = rank_of(kv, i, slot);
        const int32_t *entry = kv->table + slot * kv->slot_stride + kv->offset[i];
        int32_t *held = &kv->held[slot * n_lh + i];
        kv->in_use -= *held;
        while (*held > 0) kv->free_at[r][kv->n_free[r]++] = entry[--*held];
        kv->known[slot * n_lh + i] = 0;
    }
    memset(kv->slot_pages + (int64_t)slot * kv->n_ranks, 0, (size_t)kv->n_ranks * sizeof *kv->slot_pages);
    kv->changed[slot] = false;
}

const fkv_edit *fkv_kv_edits(fkv_kv *kv, int64_t *n)
{
    const int64_t n_lh = n_heads_of(kv);
    *n = 0;
    for (int s = 0; s < kv->n_slots; s++) {
        if (!kv->changed[s]) continue;
        for (int64_t i = 0; i < n_lh; i++) {
            const int64_t first = s * kv->slot_stride + kv->offset[i];
            int32_t *known = &kv->known[s * n_lh + i];
            /* A page is held once, so the edits never outnumber the pages. */
            for (; *known < kv->held[s * n_lh + i]; (*known)++)
                kv->edits[(*n)++] = (fkv_edit){(int32_t)(first + *known), kv->table[first + *known]};
        }
        kv->changed[s] = false;
    }
    return kv->edits;
}

void fkv_kv_close(fkv_kv *kv)
{
    for (int r = 0; kv->free_at && r < kv->n_ranks; r++) free(kv->free_at[r]);
    free(kv->free_at);
    free(kv->n_free);
    free(kv->n_pages);
    free(kv->slot_pages);
    free(kv->slot_heads);
    free(kv->slot_kept);
    free(kv->phase);
    free(kv->by_phase);
    free(kv->changed);
    free(kv->n_tokens);
    free(kv->class_of);
    free(kv->known);
    free(kv->held);
    free(kv->owner);
    free(kv->offset);
    free(kv->budgets);
    free(kv->table);
    free(kv->edits);
    *kv = (fkv_kv){0};
}
