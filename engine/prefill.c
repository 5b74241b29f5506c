/* Prefill of a pack of prompts at home, layer by layer, with compression.
 *
 * K and V of the whole prompts exist for one layer at a time; after the layer's
 * attention, what each head keeps goes to the pages of the rank that decodes the
 * slot. The last layer's output is needed of every prompt's last row alone: those rows
 * go to their slots' places among the rows of a decode step, and the rest of the pass
 * has a step's shape, whatever was packed.
 */
#include <string.h>

#include "engine/state.h"

static float *second_of(const fkv_engine_device *d)
{
    return d->engine->options.scorer == FKV_SCORER_CRITICAL ? d->second : NULL;
}

/* Arguments of the prefill ops of one rank's home heads. */
static fkv_prefill_args args_of(const fkv_engine_device *d, const fkv_rank *r, int layer,
                                const fkv_pack *pack)
{
    const fkv_engine *e = d->engine;
    return (fkv_prefill_args){.pack = pack,
                              .spec = &e->specs[layer],
                              .n_heads = r->n_home,
                              .qkv = d->qkv,
                              .class_rows = e->tile,
                              .x = {d->xn, e->config.hidden, d->xn_scale},
                              .weight = r->layers[layer].qkv,
                              .norm = fkv_layer_qk_norm(d, layer),
                              .out_stride = (int64_t)e->config.n_heads * e->config.head_dim,
                              .scorer = e->options.scorer,
                              .score_window = e->options.window,
                              .sinks = e->options.sinks,
                              .score_kernel = e->options.kernel,
                              .scores = d->scores,
                              .second = second_of(d),
                              .score_stride = e->max_rows,
                              .output_heads = r->layers[layer].output_heads,
                              .gram = r->layers[layer].gram,
                              .hidden = e->config.hidden};
}

/* Q, K, V and attention of one rank's home heads over all prompts. */
static void rank_attention(fkv_engine_device *d, const fkv_rank *r, int layer, const fkv_pack *pack,
                           bool last)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int64_t n = pack->n_rows;
    fkv_prefill_args args = args_of(d, r, layer, pack);
    for (args.row0 = 0; args.row0 < n; args.row0 += e->tile) {
        args.n_rows = n - args.row0 < e->tile ? n - args.row0 : e->tile;
        if (args.row0 + args.n_rows == n) fkv_layer_settle(d);
        b->prefill_qkv(d->dev, &args);
    }
    args.last_only = last;
    args.out = (char *)(last ? d->step_att : d->att) +
               (int64_t)r->head0 * c->group * c->head_dim * e->info.act_bytes;
    b->prefill_attention(d->dev, &args);
}

/* Prompts of at most so many tokens need no scores for r's home heads: each keeps the whole
 * prompt, or no more than sinks and window. */
static int64_t unscored_tokens(const fkv_engine *e, const fkv_rank *r, int layer, const fkv_pack *pack)
{
    const int64_t forced = e->options.window + e->options.sinks;
    int64_t least = INT64_MAX;
    if (pack->segments[0].slot < 0) return forced;
    if (e->specs[layer].window) return INT64_MAX; /* the last tokens stay */
    for (int i = 0; i < r->n_home; i++) {
        const int32_t budget = e->kv.budgets[layer * e->config.n_kv_heads + r->head0 + i];
        if (budget > forced && budget < least) least = budget;
    }
    return least;
}

static void rank_keep(fkv_engine_device *d, const fkv_rank *r, int layer, const fkv_prefill *p,
                      const fkv_pack *pack)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int64_t stride = e->max_rows;
    if (p->no_scores) return;
    fkv_prefill_args score = args_of(d, r, layer, pack);
    score.min_tokens = unscored_tokens(e, r, layer, pack);
    b->key_scores(d->dev, &score);
    if (pack->segments[0].slot < 0) {
        const int64_t n = pack->n_rows - e->options.window - e->options.sinks;
        for (int i = 0; n > 0 && i < r->n_home; i++)
            b->download(d->dev, p->host_scores + ((int64_t)layer * c->n_kv_heads + r->head0 + i) * n,
                        d->scores + i * stride + e->options.sinks, (size_t)n * sizeof *d->scores);
        return;
    }
    const fkv_keep_args args = {.pack = pack,
                                .spec = &e->specs[layer],
                                .layer = layer,
                                .head0 = r->head0,
                                .n_heads = r->n_home,
                                .score_window = e->options.window,
                                .sinks = e->options.sinks,
                                .qkv = d->qkv,
                                .scores = d->scores,
                                .second = second_of(d),
                                .score_stride = stride,
                                .owner = e->kv.owner,
                                .n_slots = e->options.n_slots,
                                .kv = fkv_engine_kv_view(d)};
    b->kv_keep(d->dev, &args);
}

static void upload_pack(fkv_engine_device *d, const fkv_prefill *p)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    b->upload(d->dev, d->tokens, e->pack_tokens, (size_t)p->n_rows * sizeof *d->tokens);
    b->upload(d->dev, d->rope_rows, e->pack_rope_rows, (size_t)p->n_rows * sizeof *d->rope_rows);
    b->upload(d->dev, d->segments, p->segments, (size_t)p->n_segments * sizeof *d->segments);
}

void fkv_prefill_enqueue(fkv_engine_device *d, const fkv_prefill *p)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int64_t act = e->info.act_bytes, att_cols = (int64_t)c->n_heads * c->head_dim;
    const int n_slots = e->options.n_slots;
    const bool fills = p->segments[0].slot >= 0;
    const fkv_pack pack = {.n_segments = p->n_segments,
                           .n_rows = p->n_rows,
                           .n_tiles = p->n_tiles,
                           .segments = p->segments,
                           .dev_segments = d->segments,
                           .dev_rope_rows = d->rope_rows,
                           .dev_tokens = d->tokens};
    const fkv_layer_rows all = {p->n_rows, e->tile, d->att, d->x, d->xn, d->xn_scale};
    const fkv_layer_rows step = {n_slots, n_slots, d->step_att, d->step_x, d->step_xn, d->step_scale};
    const bool asides = e->options.n_devices > 1 && p->n_rows > e->tile;
    upload_pack(d, p);
    if (fills) b->start_slots(d->dev, &pack, &d->slots);
    fkv_layer_embed(d, d->tokens, p->n_rows, d->x, d->xn, d->xn_scale);
    for (int l = 0; l < c->n_layers; l++) {
        const bool last = l == c->n_layers - 1;
        for (int r = 0; r < d->n_ranks; r++) {
            rank_attention(d, &d->ranks[r], l, &pack, last);
            rank_keep(d, &d->ranks[r], l, p, &pack);
        }
        if (last) break;
        if (asides) {
            fkv_layer_finish_aside(d, l, &all);
        } else {
            b->gather_cols(d->dev, d->att, p->n_rows, att_cols, e->head_cols, (int)act);
            fkv_layer_finish(d, l, &all);
        }
    }
    if (!fills) return;
    b->gather_cols(d->dev, d->step_att, n_slots, att_cols, e->head_cols, (int)act);
    b->last_rows(d->dev, &pack, d->x, c->hidden, d->step_x);
    fkv_layer_finish(d, c->n_layers - 1, &step);
    fkv_layer_logits(d, d->step_xn);
    int choice = 0;
    for (int i = 0; i < p->n_segments; i++)
        choice |= fkv_sampling_choice(&p->segments[i].sampling, &d->rules);
    b->sample(d->dev, d->logits, c->vocab, n_slots, true, &d->slots, &d->rules, choice, c->vocab);
}

void fkv_prefill_put(fkv_engine *e, const int32_t *ids, const fkv_segment *s)
{
    const int32_t rope0 = fkv_engine_rope0(e, s->n_tokens, s->max_new);
    memcpy(e->pack_tokens + s->row0, ids, (size_t)s->n_tokens * sizeof *ids);
    for (int32_t t = 0; t < s->n_tokens; t++) e->pack_rope_rows[s->row0 + t] = rope0 + t;
}

fkv_prefill fkv_prefill_one(fkv_engine *e, const int32_t *ids, int64_t n_ids, fkv_segment *segment)
{
    segment->row0 = segment->tile0 = 0;
    segment->n_tokens = (int32_t)n_ids;
    fkv_prefill_put(e, ids, segment);
    return (fkv_prefill){.segments = segment,
                         .n_segments = 1,
                         .n_rows = n_ids,
                         .n_tiles = (n_ids + FKV_TILE_TOKENS - 1) / FKV_TILE_TOKENS};
}

void fkv_edits_enqueue(fkv_engine_device *d, int32_t *dst, const fkv_edit *edits, int64_t n)
{
    const fkv_backend *b = d->engine->options.backend;
    for (int64_t i = 0; i < n; i += FKV_EDITS) {
        const int64_t m = n - i < FKV_EDITS ? n - i : FKV_EDITS;
        b->upload(d->dev, d->edits, edits + i, (size_t)m * sizeof *edits);
        b->scatter(d->dev, dst, d->edits, m);
    }
}
