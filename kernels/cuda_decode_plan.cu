/* What decode of the CUDA backend knows of ranks' placements, and the lists of a step's entries, those
 * (placement, slot) that are active and inside the placement's range. They follow from the slots alone, so
 * that one kernel makes those of all layers when a step begins.
 *
 * Owns the host's part of the plans (freed by cuda_decode_close).
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda_attention.h"

extern "C" {
#include "runner/base/mem.h"
}

struct cuda_decode_plan {
    cuda_rank_plan *at; /* [n], index layer * FKV_MAX_LOCAL_RANKS + local rank */
    size_t n;
    int n_local; /* local ranks */
};

const cuda_rank_plan *cuda_decode_plan_of(fkv_device *dev, const fkv_decode_args *a)
{
    const size_t i = (size_t)a->layer * FKV_MAX_LOCAL_RANKS + (size_t)a->local_rank;
    cuda_decode_plan *p = dev->decode_plans;
    if (p && i < p->n && p->at[i].n_heads == a->n_heads_served) return &p->at[i];
    cuda_fail(dev, "prepare_decode was not called for this layer and rank");
    return NULL;
}

/* Makes room for plan i. */
static fkv_status plans_reach(fkv_device *dev, size_t i, fkv_err *err)
{
    if (!dev->decode_plans) {
        dev->decode_plans = (cuda_decode_plan *)calloc(1, sizeof *dev->decode_plans);
        if (!dev->decode_plans) return fkv_fail_memory(err);
    }
    cuda_decode_plan *p = dev->decode_plans;
    if (i < p->n) return FKV_OK;
    cuda_rank_plan *grown = (cuda_rank_plan *)fkv_realloc(p->at, i + 1, sizeof *grown);
    if (!grown) return fkv_fail_memory(err);
    memset(grown + p->n, 0, (i + 1 - p->n) * sizeof *grown);
    p->at = grown;
    p->n = i + 1;
    return FKV_OK;
}

/* Room for the projections of n placements; plans that split a head's slots on one rank have more
 * than n_kv_heads. */
static fkv_status qkv_parts_reach(fkv_device *dev, const fkv_decode_args *a, int n, fkv_err *err)
{
    cuda_attention *w = dev->attention;
    if (n <= w->max_served) return FKV_OK;
    size_t bytes;
    void *parts = NULL;
    if (!fkv_mul_size((size_t)n * (size_t)cuda_qkv_splits(a->hidden), (size_t)a->n_slots, &bytes) ||
        !fkv_mul_size(
            bytes, (size_t)fkv_head_rows(a->spec->group) * (size_t)a->spec->head_dim * sizeof(float), &bytes))
        return fkv_fail_memory(err);
    const fkv_status st = cuda_alloc(dev, bytes, &parts, err);
    if (st) return st;
    w->qkv_parts = (float *)parts;
    w->max_served = n;
    return FKV_OK;
}

/* Device memory of a plan: its heads, and room for as many entries in its list. */
static fkv_status make_lists(fkv_device *dev, const cuda_decode_head *heads, int64_t n_entries,
                             cuda_rank_plan *p, fkv_err *err)
{
    const size_t n = (size_t)p->n_heads;
    void *on_device = NULL, *entries = NULL, *count = NULL, *starts = NULL;
    fkv_status st = FKV_OK;
    if (n == 0) return FKV_OK;
    st = cuda_alloc(dev, n * sizeof *heads, &on_device, err);
    if (!st) st = cuda_alloc(dev, ((size_t)n_entries + 1) * sizeof *p->entries, &entries, err);
    if (!st) st = cuda_alloc(dev, sizeof *p->count, &count, err);
    if (!st) st = cuda_alloc(dev, (size_t)dev->n_sms * sizeof *p->starts, &starts, err);
    if (st) return st;
    p->heads = (cuda_decode_head *)on_device;
    p->entries = (cuda_decode_entry *)entries;
    p->count = (cuda_decode_count *)count;
    p->starts = (int32_t *)starts;
    CUDA(dev, cudaMemcpyAsync(on_device, heads, n * sizeof *heads, cudaMemcpyHostToDevice, dev->stream));
    return cuda_status(dev, err);
}

/* The placements as kernels read them, into heads [n_heads_served]; how many entries they can have. */
static int64_t describe(const fkv_device *dev, const fkv_decode_args *a, cuda_decode_head *heads,
                        cuda_rank_plan *p)
{
    const int n_kv_heads = a->spec->n_kv_heads;
    const int64_t per = (int64_t)fkv_head_rows(a->spec->group) * a->spec->head_dim;
    int64_t entries = 0;
    *p = cuda_rank_plan{};
    p->n_heads = a->n_heads_served;
    p->whole = dev->limits.max_local_heads == n_kv_heads && a->n_heads_served == n_kv_heads;
    p->n_slots = a->n_slots;
    p->n_kv_heads = n_kv_heads;
    p->window = a->spec->window;
    p->slot_stride = a->kv.slot_stride;
    p->entry_pages = a->kv.form == FKV_KV_FP8 ? CUDA_ENTRY_PAGES_FP8 : CUDA_ENTRY_PAGES;
    for (int j = 0; j < a->n_heads_served; j++) {
        const fkv_decode_head *h = &a->heads[j];
        const int64_t lh = (int64_t)a->layer * n_kv_heads + h->head;
        const cuda_weight_view w = cuda_weight_rows(h->weight, h->row);
        heads[j] = cuda_decode_head{h->head,          h->begin, h->end, a->kv.budgets[lh],
                                    a->kv.offset[lh], w.data,   w.bias, w.scale};
        entries += h->end - h->begin;
        p->whole = p->whole && h->weight == a->heads[0].weight && h->row == j * per;
    }
    return entries;
}

fkv_status cuda_prepare_decode(fkv_device *dev, const fkv_decode_args *a, fkv_err *err)
{
    const size_t i = (size_t)a->layer * FKV_MAX_LOCAL_RANKS + (size_t)a->local_rank;
    if (a->layer >= dev->limits.n_layers)
        return fkv_fail(err, FKV_E_INPUT, "layer %d: the device was prepared for %d", a->layer,
                        dev->limits.n_layers);
    fkv_status st = plans_reach(dev, i, err);
    if (st) return st;
    cuda_rank_plan *p = &dev->decode_plans->at[i];
    cuda_decode_head *heads = (cuda_decode_head *)fkv_calloc((size_t)a->n_heads_served, sizeof *heads);
    if (!heads) return fkv_fail_memory(err);
    const int64_t n_entries = describe(dev, a, heads, p);
    if (n_entries > dev->attention->max_entries)
        st = fkv_fail(err, FKV_E_INPUT, "layer %d: placements cover more than every head of every slot",
                      a->layer);
    if (!st) st = qkv_parts_reach(dev, a, a->n_heads_served, err);
    if (!st) st = make_lists(dev, heads, n_entries, p, err);
    if (!st) {
        CUDA(dev,
             cudaMemcpyAsync(dev->attention->lists + i, p, sizeof *p, cudaMemcpyHostToDevice, dev->stream));
        CUDA(dev, cudaStreamSynchronize(dev->stream));
        if (a->local_rank >= dev->decode_plans->n_local) dev->decode_plans->n_local = a->local_rank + 1;
        st = cuda_status(dev, err);
    }
    free(heads);
    return st;
}

void cuda_decode_close(fkv_device *dev)
{
    if (dev->decode_plans) free(dev->decode_plans->at);
    free(dev->decode_plans);
    free(dev->attention);
    dev->decode_plans = NULL;
    dev->attention = NULL;
}

/* --- lists ----------------------------------------------------------------------- */

enum { LIST_THREADS = 256 };

/* What the kernel that lists entries needs beside the plans. */
struct list_params {
    const cuda_rank_plan *plans; /* [layers][FKV_MAX_LOCAL_RANKS] */
    fkv_slots slots;
    int64_t max_parts;
    int n_ctas; /* of attention */
};

/* Tokens of entry (placement, slot) in this step, 0 for none. */
static __device__ __forceinline__ int entry_tokens(const cuda_rank_plan &p, const fkv_slots &slots,
                                                   int64_t row)
{
    const cuda_decode_head h = p.heads[row / p.n_slots];
    const int slot = (int)(row % p.n_slots);
    return slot >= h.begin && slot < h.end && slots.active[slot] ? cuda_token_index(h, slots, slot) + 1 : 0;
}

/* Of an entry's n tokens those in whole chunks that lie before its window. */
static __device__ __forceinline__ int skipped(const cuda_rank_plan &p, int n)
{
    constexpr int CHUNK = CUDA_CHUNK_PAGES * FKV_PAGE_TOKENS;
    return p.window && n > p.window ? (n - p.window) / CHUNK * CHUNK : 0;
}

struct list_count {
    int entries, pages; /* as they count */
    int64_t parts;
};

static __device__ __forceinline__ list_count add_tokens(list_count c, int n_tokens, int entry_pages)
{
    const int pages = (n_tokens + FKV_PAGE_TOKENS - 1) / FKV_PAGE_TOKENS;
    if (pages > CUDA_CHUNK_PAGES) c.parts += (pages + CUDA_CHUNK_PAGES - 1) / CUDA_CHUNK_PAGES;
    if (pages == 0) return c;
    c.entries++;
    c.pages += pages + entry_pages;
    return c;
}

/* Sum over the threads before this one; all: over all of them. */
static __device__ list_count count_before(list_count mine, list_count &all)
{
    __shared__ list_count counts[LIST_THREADS];
    counts[threadIdx.x] = mine;
    for (int step = 1; step < LIST_THREADS; step *= 2) {
        __syncthreads();
        list_count other = {0, 0, 0};
        if ((int)threadIdx.x >= step) other = counts[threadIdx.x - step];
        __syncthreads();
        counts[threadIdx.x].entries += other.entries;
        counts[threadIdx.x].pages += other.pages;
        counts[threadIdx.x].parts += other.parts;
    }
    __syncthreads();
    all = counts[LIST_THREADS - 1];
    return threadIdx.x ? counts[threadIdx.x - 1] : list_count{0, 0, 0};
}

/* The first CTA whose run begins at `page` or behind it, of `pages` in all. */
static __device__ __forceinline__ int first_cta(int64_t page, int64_t pages, int n_ctas)
{
    return (int)((page * n_ctas + pages - 1) / pages);
}

/* The step's entries, in order of (placement, slot), a block a plan: every thread counts its run of rows,
 * then writes them behind the runs before. Grid (local ranks, layers). */
static __global__ void __launch_bounds__(LIST_THREADS) list_kernel(const list_params a)
{
    const cuda_rank_plan p = a.plans[blockIdx.y * FKV_MAX_LOCAL_RANKS + blockIdx.x];
    const int64_t rows = (int64_t)p.n_heads * p.n_slots, share = (rows + LIST_THREADS - 1) / LIST_THREADS;
    const int64_t from = threadIdx.x * share, to = from + share < rows ? from + share : rows;
    if (rows == 0) return;
    list_count mine = {0, 0, 0}, all;
    for (int64_t r = from; r < to; r++) {
        const int n = entry_tokens(p, a.slots, r);
        mine = add_tokens(mine, n - skipped(p, n), p.entry_pages);
    }
    list_count at = count_before(mine, all);
    for (int64_t r = from; r < to; r++) {
        const int n = entry_tokens(p, a.slots, r), skip = skipped(p, n);
        if (n == 0) continue;
        const list_count next = add_tokens(at, n - skip, p.entry_pages);
        const cuda_decode_head h = p.heads[r / p.n_slots];
        const int slot = (int)(r % p.n_slots);
        const bool stored = next.parts > at.parts && next.parts <= a.max_parts;
        p.entries[at.entries] = cuda_decode_entry{at.pages,
                                                  n - skip,
                                                  slot * p.slot_stride + h.offset + skip / FKV_PAGE_TOKENS,
                                                  stored ? (int32_t)at.parts : -1,
                                                  (int32_t)r,
                                                  slot * p.n_kv_heads + h.head,
                                                  p.window && n > p.window ? n - p.window - skip : 0};
        const int last = first_cta(next.pages, all.pages, a.n_ctas);
        for (int i = first_cta(at.pages, all.pages, a.n_ctas); i < last; i++) p.starts[i] = at.entries;
        at = next;
    }
    if (threadIdx.x == 0) {
        p.entries[all.entries] = cuda_decode_entry{all.pages, 0, 0, -1, 0, 0, 0};
        *p.count = cuda_decode_count{all.entries, all.pages};
    }
}

void cuda_decode_begin(fkv_device *dev, const fkv_slots *slots)
{
    const cuda_decode_plan *plans = dev->decode_plans;
    if (!plans || plans->n == 0) return;
    const list_params params = {dev->attention->lists, *slots, dev->attention->max_parts, dev->n_sms};
    const unsigned layers = (unsigned)((plans->n + FKV_MAX_LOCAL_RANKS - 1) / FKV_MAX_LOCAL_RANKS);
    list_kernel<<<dim3((unsigned)plans->n_local, layers), LIST_THREADS, 0, dev->stream>>>(params);
    CUDA_LAUNCHED(dev);
}
