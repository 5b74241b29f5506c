/* One decode step of all slots, by the plan's placements: enqueued op by op, recorded, replayed. What runs
 * it again and again is run.c. */
#include "engine/state.h"

fkv_decode_args fkv_decode_args_of(const fkv_engine_device *d, int local, int layer)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_rank *r = &d->ranks[local];
    return (fkv_decode_args){.spec = &e->specs[layer],
                             .layer = layer,
                             .rank = r->rank,
                             .local_rank = local,
                             .n_slots = e->options.n_slots,
                             .hidden = c->hidden,
                             .heads = r->layers[layer].served,
                             .n_heads_served = r->layers[layer].n_served,
                             .slots = d->slots,
                             .kv = fkv_engine_kv_view(d),
                             .x = {d->step_xn, c->hidden, d->step_scale},
                             .norm = fkv_layer_qk_norm(d, layer),
                             .q = r->q,
                             .out = d->step_att};
}

/* Q, K, V, append and ragged attention of one rank: the segment that the plan balances. */
static void segment(fkv_engine_device *d, int local, int layer)
{
    const fkv_backend *b = d->engine->options.backend;
    const fkv_decode_args args = fkv_decode_args_of(d, local, layer);
    b->span_begin(d->dev, local);
    b->decode_qkv(d->dev, &args);
    b->decode_attention(d->dev, &args);
    b->span_end(d->dev, local);
}

void fkv_decode_begin(fkv_engine_device *d)
{
    d->engine->options.backend->decode_begin(d->dev, &d->slots);
    fkv_layer_embed(d, d->slots.token, d->engine->options.n_slots, d->step_x, d->step_xn, d->step_scale);
}

static void rest(fkv_engine_device *d, int layer)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const int n = e->options.n_slots;
    const int64_t at = (int64_t)layer * c->n_kv_heads * n;
    e->options.backend->gather_heads(d->dev, d->step_att, n, c->n_kv_heads, (int64_t)c->group * c->head_dim,
                                     e->device_of + at, d->device_of + at);
    const fkv_layer_rows rows = {n, n, d->step_att, d->step_x, d->step_xn, d->step_scale};
    fkv_layer_finish(d, layer, &rows);
}

void fkv_decode_end(fkv_engine_device *d)
{
    const fkv_engine *e = d->engine;
    const int n = e->options.n_slots, vocab = e->config.vocab;
    fkv_layer_logits(d, d->step_xn);
    e->options.backend->sample(d->dev, d->logits, vocab, n, false, &d->slots, &d->rules, e->choice, vocab);
}

static void enqueue(fkv_engine_device *d)
{
    const int n_layers = d->engine->config.n_layers;
    fkv_watch(d, FKV_STEP_BEGINS, -1);
    fkv_decode_begin(d);
    for (int l = 0; l < n_layers; l++) {
        fkv_watch(d, FKV_LAYER_BEGINS, l);
        for (int r = 0; r < d->n_ranks; r++) {
            segment(d, r, l);
            fkv_watch(d, FKV_SEGMENT_ENDS, l);
        }
        fkv_watch(d, FKV_SEGMENTS_END, l);
        rest(d, l);
    }
    fkv_watch(d, FKV_LAYERS_END, -1);
    fkv_decode_end(d);
    fkv_watch(d, FKV_STEP_ENDS, -1);
}

void fkv_decode_run(fkv_engine_device *d)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    d->watched = e->stopwatch && !e->unwatched;
    if (!d->watched && b->replay(d->dev, e->choice)) return;
    if (!d->watched) b->record_begin(d->dev, e->choice);
    enqueue(d);
    if (!d->watched) b->record_end(d->dev, e->choice);
    d->watched = false;
}
