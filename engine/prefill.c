/* Prefill of one prompt at home, layer by layer, with compression.
 *
 * K and V of the whole prompt exist for one layer at a time; after the layer's
 * attention, what each head keeps goes to the pages of the rank that decodes the
 * slot. In the last layer only the window's queries (for the scores) and the last
 * row (for the logits) are needed, so nothing else is computed there.
 */
#include "engine/state.h"

/* Q, K, V and attention of one rank's home heads over the whole prompt. */
static void rank_attention(fkv_engine_device *d, const fkv_rank *r, int layer, const fkv_prefill *p,
                           int64_t q0)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int64_t act = e->info.act_bytes, per = (int64_t)(c->group + 2) * c->head_dim;
    const int64_t width = r->n_home * per, n = p->n_ids;
    const int64_t q_from =
        q0 < n - e->options.window ? q0 : n - e->options.window; /* first row that needs Q */
    for (int64_t i = 0; i < n; i += e->tile) {
        const int64_t m = n - i < e->tile ? n - i : e->tile;
        b->prefill_qkv(d->dev, (char *)d->xn + i * c->hidden * act, m, i, r->layers[layer].qkv, r->n_home,
                       c->group, q0 > 0 && i + m <= q_from, (char *)d->qkv + i * width * act);
    }
    const int64_t att_cols = (int64_t)c->n_heads * c->head_dim;
    b->prefill_attention(d->dev, d->qkv, n, q0, r->n_home, c->group,
                         (char *)d->att + (int64_t)r->head0 * c->group * c->head_dim * act, att_cols);
}

/* Whether some home head of r keeps less than the prompt and more than the window. */
static bool needs_scores(const fkv_engine *e, const fkv_rank *r, int layer, const fkv_prefill *p)
{
    if (p->n_ids <= e->options.window) return false;
    if (p->slot < 0) return true;
    for (int i = 0; i < r->n_home; i++) {
        const int32_t budget = e->kv.budgets[layer * e->config.n_kv_heads + r->head0 + i];
        if (budget < p->n_ids && budget > e->options.window) return true;
    }
    return false;
}

static void rank_keep(fkv_engine_device *d, const fkv_rank *r, int layer, const fkv_prefill *p)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int64_t n_scores = p->n_ids - e->options.window;
    if (p->no_scores) return;
    if (needs_scores(e, r, layer, p))
        b->snapkv_scores(d->dev, d->qkv, p->n_ids, r->n_home, c->group, e->options.window, e->options.kernel,
                         d->scores, n_scores);
    if (p->slot < 0) {
        if (n_scores > 0)
            b->download(d->dev, p->host_scores + ((int64_t)layer * c->n_kv_heads + r->head0) * n_scores,
                        d->scores, (size_t)(r->n_home * n_scores) * sizeof *d->scores);
        return;
    }
    int32_t owners[FKV_MAX_KV_HEADS];
    for (int i = 0; i < r->n_home; i++)
        owners[i] =
            e->kv.owner[((int64_t)layer * c->n_kv_heads + r->head0 + i) * e->options.n_slots + p->slot];
    const fkv_keep_args args = {.layer = layer,
                                .slot = p->slot,
                                .n_tokens = p->n_ids,
                                .head0 = r->head0,
                                .n_heads = r->n_home,
                                .n_kv_heads = c->n_kv_heads,
                                .group = c->group,
                                .head_dim = c->head_dim,
                                .window = e->options.window,
                                .qkv = d->qkv,
                                .scores = d->scores,
                                .score_stride = n_scores,
                                .owners = owners,
                                .kv = fkv_engine_kv_view(d)};
    b->kv_keep(d->dev, &args);
}

void fkv_prefill_set_slot(fkv_engine_device *d, const fkv_prefill *p)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    const fkv_slots *s = &d->slots;
    const int32_t n = (int32_t)p->n_ids, zero = 0, one = 1, max_new = (int32_t)p->max_new;
    const uint64_t ordinal = (uint64_t)p->ordinal;
    b->upload(d->dev, s->pos + p->slot, &n, sizeof n);
    b->upload(d->dev, s->prompt_len + p->slot, &n, sizeof n);
    b->upload(d->dev, s->n_new + p->slot, &zero, sizeof zero);
    b->upload(d->dev, s->max_new + p->slot, &max_new, sizeof max_new);
    b->upload(d->dev, s->active + p->slot, &one, sizeof one);
    b->upload(d->dev, s->ordinal + p->slot, &ordinal, sizeof ordinal);
    b->upload(d->dev, d->table + p->slot * e->kv.slot_stride, e->kv.table + p->slot * e->kv.slot_stride,
              (size_t)e->kv.slot_stride * sizeof *d->table);
}

fkv_status fkv_prefill_run(fkv_engine_device *d, const fkv_prefill *p, fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int64_t n = p->n_ids, act = e->info.act_bytes, att_cols = (int64_t)c->n_heads * c->head_dim;
    const int64_t row = (n - 1) * c->hidden * act; /* of the last token, in bytes */
    if (p->slot >= 0) fkv_prefill_set_slot(d, p);
    b->upload(d->dev, d->tokens, p->ids, (size_t)n * sizeof *p->ids);
    fkv_forward_embed(d, d->tokens, n, d->x, d->xn);
    for (int l = 0; l < c->n_layers; l++) {
        const bool last = l == c->n_layers - 1;
        const int64_t q0 = last ? n - 1 : 0;
        for (int r = 0; r < d->n_ranks; r++) {
            rank_attention(d, &d->ranks[r], l, p, q0);
            rank_keep(d, &d->ranks[r], l, p);
        }
        if (last && p->slot < 0) break;
        b->gather_cols(d->dev, d->att, n - q0, att_cols, e->head_cols, (int)act);
        if (last)
            fkv_forward_mlp(d, l, 1, d->att, (char *)d->x + row, (char *)d->xn + row);
        else
            fkv_forward_mlp(d, l, n, d->att, d->x, d->xn);
    }
    if (p->slot >= 0) {
        float *logits = d->logits + (int64_t)p->slot * c->vocab;
        fkv_forward_logits(d, (char *)d->xn + row, 1, logits);
        b->sample(d->dev, logits, c->vocab, p->slot, 1, true, &d->slots, &e->options.sampling, c->vocab);
    }
    return b->sync(d->dev, err);
}
