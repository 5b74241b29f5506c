/* What prefill and decode share: embedding, output projection and MLP, logits.
 * Everything is enqueued rank by rank; every device calls the same in step. */
#include "engine/state.h"

void fkv_forward_embed(fkv_engine_device *d, const int32_t *tokens, int64_t n, void *x, void *xn)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    const int64_t hidden = e->config.hidden, act = e->info.act_bytes;
    for (int64_t i = 0; i < n; i += e->tile) {
        const int64_t m = n - i < e->tile ? n - i : e->tile;
        char *xi = (char *)x + i * hidden * act, *xni = (char *)xn + i * hidden * act;
        fkv_trace_share_begin(d);
        for (int r = 0; r < d->n_ranks; r++)
            b->embed(d->dev, tokens + i, m, d->ranks[r].embedding, d->partial + r * m * hidden);
        fkv_trace_share_end(d);
        b->reduce_ranks(d->dev, d->partial, d->n_ranks, m, hidden, xi);
        b->add_rmsnorm(d->dev, xi, NULL, d->norms[0], e->config.rms_eps, m, hidden, xni);
    }
}

void fkv_forward_mlp(fkv_engine_device *d, int layer, int64_t n, int64_t class_rows, const void *att, void *x,
                     void *xn)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int64_t hidden = c->hidden, act = e->info.act_bytes, att_cols = (int64_t)c->n_heads * c->head_dim;
    for (int64_t i = 0; i < n; i += e->tile) {
        const int64_t m = n - i < e->tile ? n - i : e->tile;
        char *xi = (char *)x + i * hidden * act, *xni = (char *)xn + i * hidden * act;
        const char *atti = (const char *)att + i * att_cols * act;
        fkv_trace_share_begin(d);
        for (int r = 0; r < d->n_ranks; r++) {
            const int64_t col = fkv_share_columns(hidden, d->ranks[r].rank, e->options.n_ranks);
            b->linear(d->dev, atti, att_cols, m, class_rows, d->ranks[r].layers[layer].o,
                      (char *)d->y + col * act, hidden, false, FKV_EPILOGUE_NONE);
        }
        fkv_trace_share_end(d);
        b->gather_cols(d->dev, d->y, m, hidden, e->hidden_cols, (int)act);
        b->add_rmsnorm(d->dev, xi, d->y, d->norms[2 * layer + 1], c->rms_eps, m, hidden, xni);
        fkv_trace_share_begin(d);
        for (int r = 0; r < d->n_ranks; r++) {
            const fkv_rank_layer *w = &d->ranks[r].layers[layer];
            const int64_t share =
                fkv_share_columns(c->intermediate, d->ranks[r].rank + 1, e->options.n_ranks) -
                fkv_share_columns(c->intermediate, d->ranks[r].rank, e->options.n_ranks);
            b->linear(d->dev, xni, hidden, m, class_rows, w->gate_up, d->act, share, false,
                      FKV_EPILOGUE_SILU_GATE);
            b->linear(d->dev, d->act, share, m, class_rows, w->down, d->partial + r * m * hidden, hidden,
                      true, FKV_EPILOGUE_NONE);
        }
        fkv_trace_share_end(d);
        b->reduce_ranks(d->dev, d->partial, d->n_ranks, m, hidden, d->y);
        b->add_rmsnorm(d->dev, xi, d->y, d->norms[2 * layer + 2], c->rms_eps, m, hidden, xni);
    }
}

void fkv_forward_logits(fkv_engine_device *d, const void *xn)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    const int64_t vocab = e->config.vocab, n = e->options.n_slots;
    fkv_trace_share_begin(d);
    for (int r = 0; r < d->n_ranks; r++)
        b->linear(d->dev, xn, e->config.hidden, n, n, d->ranks[r].head,
                  d->logits + fkv_share_columns(vocab, d->ranks[r].rank, e->options.n_ranks), vocab, true,
                  FKV_EPILOGUE_NONE);
    fkv_trace_share_end(d);
    b->gather_cols(d->dev, d->logits, n, vocab, e->vocab_cols, sizeof *d->logits);
}
