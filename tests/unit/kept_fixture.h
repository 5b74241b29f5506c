/* The CPU backend with an eye on what its heads keep: after each kv_keep the positions are read back from
 * the pages, by comparing K and V with those of the prompt. Prompts are told apart by the stream of their
 * sampling, which is below KEPT_PROMPTS. Devices may work side by side: no two write the same place. */
#ifndef FKV_TESTS_KEPT_FIXTURE_H
#define FKV_TESTS_KEPT_FIXTURE_H

#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"

enum { KEPT_PROMPTS = 32, KEPT_HEADS = 512 };

typedef struct kept_positions {
    int32_t *at; /* [n], in the order in which they lie in the pages */
    int n;
} kept_positions;

static kept_positions kept[KEPT_PROMPTS][KEPT_HEADS]; /* by layer and head */

/* Of head i of a segment. The prompt's rows come in order, so the search goes on where it was. */
static inline void kept_read(const fkv_keep_args *a, const fkv_segment *s, int i)
{
    const int hd = a->spec->head_dim;
    const int64_t lh = (int64_t)a->layer * a->spec->n_kv_heads + a->head0 + i;
    const int64_t per = (int64_t)fkv_head_rows(a->spec->group) * hd, stride = a->n_heads * per;
    const float *k = (const float *)a->qkv + s->row0 * stride + i * per + a->spec->group * hd;
    const float *arena = a->kv.arenas[a->owner[lh * a->n_slots + s->slot]];
    const int32_t *pages = a->kv.table + s->slot * a->kv.slot_stride + a->kv.offset[lh];
    kept_positions *out = &kept[s->sampling.stream][lh];
    out->n = s->n_tokens < a->kv.budgets[lh] ? s->n_tokens : a->kv.budgets[lh];
    free(out->at);
    out->at = calloc((size_t)out->n, sizeof *out->at);
    if (!out->at) abort();
    for (int t = 0, p = 0; t < out->n; t++, p++) {
        const float *page = arena + (int64_t)pages[t / FKV_PAGE_TOKENS] * 2 * FKV_PAGE_TOKENS * hd;
        const float *at = page + (int64_t)(t % FKV_PAGE_TOKENS) * hd;
        while (p < s->n_tokens &&
               (memcmp(at, k + p * stride, (size_t)hd * sizeof *k) ||
                memcmp(at + FKV_PAGE_TOKENS * hd, k + p * stride + hd, (size_t)hd * sizeof *k)))
            p++;
        out->at[t] = p; /* past the end: what lies there is no token behind the one before */
    }
}

static inline void kept_kv_keep(fkv_device *dev, const fkv_keep_args *a)
{
    fkv_backend_cpu()->kv_keep(dev, a);
    for (int i = 0; i < a->pack->n_segments; i++)
        for (int h = 0; h < a->n_heads; h++) kept_read(a, &a->pack->segments[i], h);
}

static inline fkv_backend kept_backend(void)
{
    fkv_backend b = *fkv_backend_cpu();
    b.kv_keep = kept_kv_keep;
    return b;
}

static inline void kept_free(void)
{
    for (int i = 0; i < KEPT_PROMPTS; i++)
        for (int h = 0; h < KEPT_HEADS; h++) {
            free(kept[i][h].at);
            kept[i][h] = (kept_positions){0};
        }
}

#endif
