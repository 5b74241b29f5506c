/* Pages of the KV store: see kv.h. */
#include "engine/kv.h"

#include <string.h>

#include "kernels/backend.h"
#include "runner/base/mem.h"

static int64_t pages_for(int64_t tokens)
{
    return (tokens + FKV_PAGE_TOKENS - 1) / FKV_PAGE_TOKENS;
}

static int64_t tokens_of(const fkv_kv *kv, int64_t lh, int64_t n_tokens, int64_t max_new)
{
    return (n_tokens < kv->budgets[lh] ? n_tokens : kv->budgets[lh]) + max_new;
}

fkv_status fkv_kv_open(const fkv_plan *plan, const int32_t *budgets, int64_t max_positions, fkv_kv *kv,
                       fkv_err *err)
{
    const int64_t n_lh = (int64_t)plan->n_layers * plan->n_kv_heads;
    size_t entries;
    *kv = (fkv_kv){.n_layers = plan->n_layers,
                   .n_kv_heads = plan->n_kv_heads,
                   .n_ranks = plan->n_ranks,
                   .n_slots = plan->n_slots,
                   .max_positions = max_positions};
    kv->budgets = fkv_calloc((size_t)n_lh, sizeof *kv->budgets);
    kv->offset = fkv_calloc((size_t)n_lh, sizeof *kv->offset);
    kv->owner = fkv_calloc((size_t)n_lh * (size_t)plan->n_slots, sizeof *kv->owner);
    kv->held = fkv_calloc((size_t)n_lh * (size_t)plan->n_slots, sizeof *kv->held);
    kv->n_pages = fkv_calloc((size_t)plan->n_ranks, sizeof *kv->n_pages);
    kv->n_free = fkv_calloc((size_t)plan->n_ranks, sizeof *kv->n_free);
    kv->need = fkv_calloc((size_t)plan->n_ranks, sizeof *kv->need);
    kv->free_at = fkv_calloc((size_t)plan->n_ranks, sizeof *kv->free_at);
    if (!kv->budgets || !kv->offset || !kv->owner || !kv->held || !kv->n_pages || !kv->n_free || !kv->need ||
        !kv->free_at)
        return fkv_fail_memory(err);
    for (int64_t i = 0; i < n_lh; i++) {
        kv->budgets[i] = budgets[i];
        kv->offset[i] = kv->slot_stride;
        kv->slot_stride += pages_for(max_positions);
        for (int p = plan->first[i]; p < plan->first[i + 1]; p++)
            for (int s = plan->at[p].begin; s < plan->at[p].end; s++)
                kv->owner[i * plan->n_slots + s] = (int16_t)plan->at[p].rank;
    }
    if (!fkv_mul_size((size_t)kv->slot_stride, (size_t)plan->n_slots, &entries) ||
        entries > SIZE_MAX / sizeof *kv->table)
        return fkv_fail_memory(err);
    kv->table = fkv_calloc(entries, sizeof *kv->table);
    return kv->table ? FKV_OK : fkv_fail_memory(err);
}

void fkv_kv_demand(const fkv_kv *kv, int64_t max_prompt, int64_t max_new, int64_t *pages, int64_t *one)
{
    const int64_t n_lh = (int64_t)kv->n_layers * kv->n_kv_heads;
    memset(pages, 0, (size_t)kv->n_ranks * sizeof *pages);
    memset(one, 0, (size_t)kv->n_ranks * sizeof *one);
    for (int s = 0; s < kv->n_slots; s++) {
        memset(kv->need, 0, (size_t)kv->n_ranks * sizeof *kv->need);
        for (int64_t i = 0; i < n_lh; i++)
            kv->need[kv->owner[i * kv->n_slots + s]] += pages_for(tokens_of(kv, i, max_prompt, max_new));
        for (int r = 0; r < kv->n_ranks; r++) {
            pages[r] += kv->need[r];
            if (kv->need[r] > one[r]) one[r] = kv->need[r];
        }
    }
}

fkv_status fkv_kv_set_arenas(fkv_kv *kv, const int64_t *n_pages, fkv_err *err)
{
    for (int r = 0; r < kv->n_ranks; r++) {
        kv->free_at[r] = fkv_calloc((size_t)n_pages[r], sizeof(int32_t));
        if (!kv->free_at[r]) return fkv_fail_memory(err);
        kv->n_pages[r] = kv->n_free[r] = n_pages[r];
        /* Low pages are on top, so that a small job touches little memory. */
        for (int64_t i = 0; i < n_pages[r]; i++) kv->free_at[r][i] = (int32_t)(n_pages[r] - 1 - i);
    }
    return FKV_OK;
}

fkv_status fkv_kv_admit(fkv_kv *kv, int slot, int64_t n_tokens, int64_t max_new, fkv_err *err)
{
    const int64_t n_lh = (int64_t)kv->n_layers * kv->n_kv_heads;
    memset(kv->need, 0, (size_t)kv->n_ranks * sizeof *kv->need);
    for (int64_t i = 0; i < n_lh; i++)
        kv->need[kv->owner[i * kv->n_slots + slot]] += pages_for(tokens_of(kv, i, n_tokens, max_new));
    if (n_tokens + max_new > kv->max_positions)
        return fkv_fail(err, FKV_E_INPUT,
                        "%lld prompt and %lld new tokens are more than the model's %lld positions",
                        (long long)n_tokens, (long long)max_new, (long long)kv->max_positions);
    bool fits = true;
    for (int r = 0; r < kv->n_ranks; r++) {
        if (kv->need[r] > kv->n_pages[r])
            return fkv_fail(err, FKV_E_INPUT,
                            "%lld prompt and %lld new tokens need %lld KV pages on rank %d, which has %lld",
                            (long long)n_tokens, (long long)max_new, (long long)kv->need[r], r,
                            (long long)kv->n_pages[r]);
        fits = fits && kv->need[r] <= kv->n_free[r];
    }
    if (!fits) return FKV_E_BUSY;
    for (int64_t i = 0; i < n_lh; i++) {
        const int r = kv->owner[i * kv->n_slots + slot];
        const int64_t n = pages_for(tokens_of(kv, i, n_tokens, max_new));
        int32_t *entry = kv->table + slot * kv->slot_stride + kv->offset[i];
        for (int64_t p = 0; p < n; p++) entry[p] = kv->free_at[r][--kv->n_free[r]];
        kv->held[slot * n_lh + i] = (int32_t)n;
        kv->in_use += n;
    }
    if (kv->in_use > kv->peak) kv->peak = kv->in_use;
    return FKV_OK;
}

void fkv_kv_release(fkv_kv *kv, int slot)
{
    const int64_t n_lh = (int64_t)kv->n_layers * kv->n_kv_heads;
    for (int64_t i = n_lh - 1; i >= 0; i--) {
        const int r = kv->owner[i * kv->n_slots + slot];
        const int32_t *entry = kv->table + slot * kv->slot_stride + kv->offset[i];
        for (int64_t p = kv->held[slot * n_lh + i] - 1; p >= 0; p--)
            kv->free_at[r][kv->n_free[r]++] = entry[p];
        kv->in_use -= kv->held[slot * n_lh + i];
        kv->held[slot * n_lh + i] = 0;
    }
}

void fkv_kv_close(fkv_kv *kv)
{
    for (int r = 0; kv->free_at && r < kv->n_ranks; r++) free(kv->free_at[r]);
    free(kv->free_at);
    free(kv->need);
    free(kv->n_free);
    free(kv->n_pages);
    free(kv->held);
    free(kv->owner);
    free(kv->offset);
    free(kv->budgets);
    free(kv->table);
    *kv = (fkv_kv){0};
}
