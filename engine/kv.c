/* Pages of the KV store: see kv.h. */
#include "engine/kv.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/mem.h"

static int64_t pages_for(int64_t tokens)
{
    return (tokens + FKV_PAGE_TOKENS - 1) / FKV_PAGE_TOKENS;
}

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
        return fkv_fail(err, FKV_E_INPUT,
                        "a page table of %d slots and %lld positions is too large: use fewer engine.slots",
                        kv->n_slots, (long long)kv->max_positions);
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

fkv_status fkv_kv_open(const fkv_plan *plan, const int32_t *budgets, int64_t max_positions,
                       int64_t record_pages, fkv_kv *kv, fkv_err *err)
{
    *kv = (fkv_kv){.n_layers = plan->n_layers,
                   .n_kv_heads = plan->n_kv_heads,
                   .n_ranks = plan->n_ranks,
                   .n_slots = plan->n_slots,
                   .max_positions = max_positions,
                   .record_pages = record_pages};
    const size_t n_lh = (size_t)n_heads_of(kv);
    int64_t most = pages_for(max_positions); /* of a head; no position has more than one token of it */
    if (record_pages > 0 && record_pages < most) most = record_pages;
    kv->budgets = fkv_calloc(n_lh, sizeof *kv->budgets);
    kv->offset = fkv_calloc(n_lh, sizeof *kv->offset);
    if (!kv->budgets || !kv->offset) return fkv_fail_memory(err);
    for (size_t i = 0; i < n_lh; i++) {
        kv->budgets[i] = budgets[i];
        kv->offset[i] = kv->slot_stride;
        kv->slot_stride += most;
    }
    const fkv_status st = alloc_tables(kv, err);
    if (!st) set_owners(kv, plan);
    return st;
}

int64_t fkv_head_pages(int32_t budget, int64_t n_tokens, int64_t max_new)
{
    return pages_for((n_tokens < budget ? n_tokens : budget) + max_new);
}

int64_t fkv_record_pages(const int32_t *budgets, int n_layers, int n_kv_heads, int n_ranks, int64_t n_tokens,
                         int64_t max_new)
{
    int64_t fullest = 0, pages = 0;
    /* A rank's home heads are a run of h in every layer. */
    for (int h = 0, rank = 0; h < n_kv_heads; h++) {
        const int home = fkv_plan_home(h, n_kv_heads, n_ranks);
        if (home != rank) pages = 0;
        rank = home;
        for (int l = 0; l < n_layers; l++)
            pages += fkv_head_pages(budgets[(int64_t)l * n_kv_heads + h], n_tokens, max_new);
        if (pages > fullest) fullest = pages;
    }
    return fullest;
}

static int64_t record_pages(const fkv_kv *kv, int64_t n_tokens, int64_t max_new)
{
    return fkv_record_pages(kv->budgets, kv->n_layers, kv->n_kv_heads, kv->n_ranks, n_tokens, max_new);
}

fkv_status fkv_kv_accepts(const fkv_kv *kv, int64_t n_tokens, int64_t max_new, fkv_err *err)
{
    if (n_tokens + max_new > kv->max_positions)
        return fkv_fail(err, FKV_E_INPUT,
                        "%lld prompt and %lld new tokens are more than the model's %lld positions",
                        (long long)n_tokens, (long long)max_new, (long long)kv->max_positions);
    const int64_t pages = kv->record_pages > 0 ? record_pages(kv, n_tokens, max_new) : 0;
    if (pages > kv->record_pages)
        return fkv_fail(
            err, FKV_E_INPUT,
            "%lld prompt and %lld new tokens need %lld KV pages on a rank, and a record may have %lld "
            "(plan.json: record_pages): lower profile.budget or the record's new-token limit, or use "
            "fewer engine.slots or more GPUs",
            (long long)n_tokens, (long long)max_new, (long long)pages, (long long)kv->record_pages);
    return FKV_OK;
}

/* The largest new-token limit of an accepted record with a prompt of n_tokens; -1: none is. */
static int64_t largest_limit(const fkv_kv *kv, int64_t n_tokens)
{
    int64_t lo = 0, hi = kv->max_positions - n_tokens; /* lo is accepted */
    if (kv->record_pages <= 0 || record_pages(kv, n_tokens, hi) <= kv->record_pages) return hi;
    if (record_pages(kv, n_tokens, lo) > kv->record_pages) return -1;
    while (lo + 1 < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        if (record_pages(kv, n_tokens, mid) <= kv->record_pages)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

void fkv_kv_prompt_need(const fkv_kv *kv, int slot, int64_t n_tokens, int64_t beyond, int64_t *need)
{
    memset(need, 0, (size_t)kv->n_ranks * sizeof *need);
    for (int64_t i = 0; i < n_heads_of(kv); i++)
        need[rank_of(kv, i, slot)] += pages_for(kept_of(kv, i, n_tokens) + beyond);
}

void fkv_kv_demand(const fkv_kv *kv, int64_t max_prompt, int64_t *pages, int64_t *one)
{
    int64_t longest = 0;
    memset(pages, 0, (size_t)kv->n_ranks * sizeof *pages);
    memset(one, 0, (size_t)kv->n_ranks * sizeof *one);
    for (int64_t i = 0; i < n_heads_of(kv); i++)
        if (kept_of(kv, i, max_prompt) > longest) longest = kept_of(kv, i, max_prompt);
    /* A longer prompt keeps no more and leaves fewer positions. In steps of a page: what the longest
     * prompt of a step keeps, with what the shortest may generate. */
    for (int64_t t = 1; t <= longest; t += FKV_PAGE_TOKENS) {
        const int64_t end = t + FKV_PAGE_TOKENS - 1 < longest ? t + FKV_PAGE_TOKENS - 1 : longest;
        const int64_t limit = largest_limit(kv, t);
        for (int s = 0; limit >= 0 && s < kv->n_slots; s++) {
            if (s && kv->class_of[s] == kv->class_of[s - 1]) continue;
            int64_t *need = kv->slot_pages; /* of no slot yet */
            fkv_kv_prompt_need(kv, s, end, limit, need);
            for (int r = 0; r < kv->n_ranks; r++)
                if (need[r] > one[r]) one[r] = need[r];
            memset(need, 0, (size_t)kv->n_ranks * sizeof *need);
        }
    }
    for (int r = 0; r < kv->n_ranks; r++) pages[r] = one[r] * kv->n_slots;
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
    kv->cap_edits = (int64_t)all;
    return kv->edits ? FKV_OK : fkv_fail_memory(err);
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
        grow(kv, slot, i, pages_for(kept_of(kv, i, n_tokens) + beyond));
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
        grow(kv, slot, heads[i], pages_for(kept_of(kv, heads[i], kv->n_tokens[slot]) + beyond));
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
