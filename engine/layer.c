/* What prefill and decode share: embedding, a layer behind its attention, logits.
 * Everything is enqueued rank by rank; every device calls the same in step. */
#include <math.h>

#include "engine/state.h"
#include "runner/base/float16.h"

/* HF's number, in the type of its activations. */
static float embedding_scale(const fkv_engine *e)
{
    const float root = sqrtf((float)e->config.hidden);
    if (!fkv_config_family(&e->config)->scaled_embedding) return 1;
    return e->info.act_bytes == 2 ? fkv_f32_from_bf16(fkv_bf16_from_f32(root)) : root;
}

/* What attention or the MLP gives, normed in place where the family does that. */
static void norm_out(const fkv_engine_device *d, void *y, const float *weight, int64_t n)
{
    const fkv_engine *e = d->engine;
    if (weight)
        e->options.backend->add_rmsnorm(d->dev, y, NULL, weight, e->config.rms_eps, n, e->config.hidden, y);
}

void fkv_layer_embed(fkv_engine_device *d, const int32_t *tokens, int64_t n, void *x, void *xn)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    const int64_t hidden = e->config.hidden, act = e->info.act_bytes;
    const float scale = embedding_scale(e);
    for (int64_t i = 0; i < n; i += e->tile) {
        const int64_t m = n - i < e->tile ? n - i : e->tile;
        char *xi = (char *)x + i * hidden * act, *xni = (char *)xn + i * hidden * act;
        fkv_watch(d, FKV_SHARES_BEGIN, -1);
        for (int r = 0; r < d->n_ranks; r++)
            b->embed(d->dev, tokens + i, m, d->ranks[r].embedding, d->partial + r * m * hidden);
        if (scale > 1) b->scale(d->dev, d->partial, d->n_ranks * m * hidden, scale, 0);
        fkv_watch(d, FKV_SHARES_END, -1);
        b->reduce_ranks(d->dev, d->partial, d->n_ranks, m, hidden, xi);
        b->add_rmsnorm(d->dev, xi, NULL, d->norms[0].attention, e->config.rms_eps, m, hidden, xni);
    }
}

void fkv_layer_finish(fkv_engine_device *d, int layer, int64_t n, int64_t class_rows, const void *att,
                      void *x, void *xn)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int64_t hidden = c->hidden, act = e->info.act_bytes, att_cols = (int64_t)c->n_heads * c->head_dim;
    const fkv_epilogue gate = fkv_gate_epilogue(fkv_config_family(c)->activation);
    const float *next = layer + 1 < c->n_layers ? d->norms[layer + 1].attention : d->last_norm;
    for (int64_t i = 0; i < n; i += e->tile) {
        const int64_t m = n - i < e->tile ? n - i : e->tile;
        char *xi = (char *)x + i * hidden * act, *xni = (char *)xn + i * hidden * act;
        const char *atti = (const char *)att + i * att_cols * act;
        fkv_watch(d, FKV_SHARES_BEGIN, -1);
        for (int r = 0; r < d->n_ranks; r++) {
            const int64_t col = fkv_partition_columns(hidden, d->ranks[r].rank, e->options.n_ranks).begin;
            b->linear(d->dev, atti, att_cols, m, class_rows, d->ranks[r].layers[layer].o,
                      (char *)d->y + col * act, hidden, false, FKV_EPILOGUE_NONE);
        }
        fkv_watch(d, FKV_SHARES_END, -1);
        b->gather_cols(d->dev, d->y, m, hidden, e->hidden_cols, (int)act);
        norm_out(d, d->y, d->norms[layer].attention_out, m);
        b->add_rmsnorm(d->dev, xi, d->y, d->norms[layer].mlp, c->rms_eps, m, hidden, xni);
        fkv_watch(d, FKV_SHARES_BEGIN, -1);
        for (int r = 0; r < d->n_ranks; r++) {
            const fkv_rank_layer *w = &d->ranks[r].layers[layer];
            const int64_t share =
                fkv_range_count(fkv_partition_columns(c->intermediate, d->ranks[r].rank, e->options.n_ranks));
            b->linear(d->dev, xni, hidden, m, class_rows, w->gate_up, d->act, share, false, gate);
            b->linear(d->dev, d->act, share, m, class_rows, w->down, d->partial + r * m * hidden, hidden,
                      true, FKV_EPILOGUE_NONE);
        }
        fkv_watch(d, FKV_SHARES_END, -1);
        b->reduce_ranks(d->dev, d->partial, d->n_ranks, m, hidden, d->y);
        norm_out(d, d->y, d->norms[layer].mlp_out, m);
        b->add_rmsnorm(d->dev, xi, d->y, next, c->rms_eps, m, hidden, xni);
    }
}

void fkv_layer_logits(fkv_engine_device *d, const void *xn)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    const int64_t vocab = e->config.vocab, n = e->options.n_slots;
    fkv_watch(d, FKV_SHARES_BEGIN, -1);
    for (int r = 0; r < d->n_ranks; r++)
        b->linear(d->dev, xn, e->config.hidden, n, n, d->ranks[r].head,
                  d->logits + fkv_partition_columns(vocab, d->ranks[r].rank, e->options.n_ranks).begin, vocab,
                  true, FKV_EPILOGUE_NONE);
    fkv_watch(d, FKV_SHARES_END, -1);
    b->gather_cols(d->dev, d->logits, n, vocab, e->vocab_cols, sizeof *d->logits);
    if (e->config.logit_softcap > 0) b->scale(d->dev, d->logits, n * vocab, 1, e->config.logit_softcap);
}
