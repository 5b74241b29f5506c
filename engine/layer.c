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
        e->options.backend->add_rmsnorm(d->dev, y, NULL, weight, e->config.rms_eps, n, e->config.hidden, y,
                                        NULL);
}

/* Of rows from `row` on; NULL where they have none. */
static float *scale_at(float *scale, int64_t row)
{
    return scale ? scale + row : NULL;
}

void fkv_layer_embed(fkv_engine_device *d, const int32_t *tokens, int64_t n, void *x, void *xn,
                     float *xn_scale)
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
        b->add_rmsnorm(d->dev, xi, NULL, d->norms[0].attention, e->config.rms_eps, m, hidden, xni,
                       scale_at(xn_scale, i));
    }
}

/* Rows of a layer behind its attention, at most a tile of them. */
typedef struct tile {
    int layer;
    int64_t n, class_rows;
    char *att, *x, *xn;
    float *xn_scale;
    char *y;        /* [n, hidden] for what attention and the MLP give */
    float *partial; /* [n_ranks][n, hidden] */
} tile;

static void project_shares(const fkv_engine_device *d, const tile *t)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    const int64_t hidden = e->config.hidden, act = e->info.act_bytes;
    const int64_t att_cols = (int64_t)e->config.n_heads * e->config.head_dim;
    const fkv_acts att = {t->att, att_cols, d->tile_scale};
    fkv_watch(d, FKV_SHARES_BEGIN, -1);
    if (att.scale) b->quantise(d->dev, att, t->n, att_cols);
    for (int r = 0; r < d->n_ranks; r++) {
        const int64_t col = fkv_partition_columns(hidden, d->ranks[r].rank, e->options.n_ranks).begin;
        b->linear(d->dev, att, t->n, t->class_rows, d->ranks[r].layers[t->layer].o,
                  (fkv_acts){t->y + col * act, hidden, NULL}, false, FKV_EPILOGUE_NONE);
    }
    fkv_watch(d, FKV_SHARES_END, -1);
}

static void gather_projected(const fkv_engine_device *d, const tile *t)
{
    const fkv_engine *e = d->engine;
    e->options.backend->gather_cols(d->dev, t->y, t->n, e->config.hidden, e->hidden_cols, e->info.act_bytes);
}

/* Adds what attention gave, and the MLP's partial sums. */
static void mlp_shares(const fkv_engine_device *d, const tile *t)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int64_t hidden = c->hidden;
    const fkv_epilogue gate = fkv_gate_epilogue(fkv_config_family(c)->activation);
    norm_out(d, t->y, d->norms[t->layer].attention_out, t->n);
    b->add_rmsnorm(d->dev, t->x, t->y, d->norms[t->layer].mlp, c->rms_eps, t->n, hidden, t->xn, t->xn_scale);
    fkv_watch(d, FKV_SHARES_BEGIN, -1);
    for (int r = 0; r < d->n_ranks; r++) {
        const fkv_rank_layer *w = &d->ranks[r].layers[t->layer];
        const int64_t share =
            fkv_range_count(fkv_partition_columns(c->intermediate, d->ranks[r].rank, e->options.n_ranks));
        const fkv_acts act = {d->act, share, d->tile_scale};
        b->linear(d->dev, (fkv_acts){t->xn, hidden, t->xn_scale}, t->n, t->class_rows, w->gate_up, act, false,
                  gate);
        b->linear(d->dev, act, t->n, t->class_rows, w->down,
                  (fkv_acts){t->partial + r * t->n * hidden, hidden, NULL}, true, FKV_EPILOGUE_NONE);
    }
    fkv_watch(d, FKV_SHARES_END, -1);
}

static void reduce_mlp(const fkv_engine_device *d, const tile *t)
{
    const fkv_engine *e = d->engine;
    e->options.backend->reduce_ranks(d->dev, t->partial, d->n_ranks, t->n, e->config.hidden, t->y);
}

/* Adds what the MLP gave; the next layer's norm. */
static void end_tile(const fkv_engine_device *d, const tile *t)
{
    const fkv_engine *e = d->engine;
    const bool last = t->layer + 1 == e->config.n_layers;
    norm_out(d, t->y, d->norms[t->layer].mlp_out, t->n);
    e->options.backend->add_rmsnorm(d->dev, t->x, t->y,
                                    last ? d->last_norm : d->norms[t->layer + 1].attention, e->config.rms_eps,
                                    t->n, e->config.hidden, t->xn, last ? NULL : t->xn_scale);
}

static tile tile_of(const fkv_engine_device *d, const fkv_layer_rows *rows, int64_t i, int layer)
{
    const fkv_engine *e = d->engine;
    const int64_t row = i * e->tile, act = e->info.act_bytes, left = rows->n - row;
    const int64_t att_cols = (int64_t)e->config.n_heads * e->config.head_dim;
    return (tile){.layer = layer,
                  .n = left < e->tile ? left : e->tile,
                  .class_rows = rows->class_rows,
                  .att = (char *)rows->att + row * att_cols * act,
                  .x = (char *)rows->x + row * e->config.hidden * act,
                  .xn = (char *)rows->xn + row * e->config.hidden * act,
                  .xn_scale = scale_at(rows->xn_scale, row),
                  .y = d->y,
                  .partial = d->partial};
}

void fkv_layer_finish(fkv_engine_device *d, int layer, const fkv_layer_rows *rows)
{
    for (int64_t i = 0; i * d->engine->tile < rows->n; i++) {
        const tile t = tile_of(d, rows, i, layer);
        project_shares(d, &t);
        gather_projected(d, &t);
        mlp_shares(d, &t);
        reduce_mlp(d, &t);
        end_tile(d, &t);
    }
}

/* ---- tile by tile, with one tile's collectives beside the others' products ---- */

/* Where tiles at work lie: three of y, since a tile's is in use until the next but one is projected, and two
 * of partial sums. */
static tile place_tile(const fkv_engine_device *d, const fkv_layer_rows *rows, int64_t i, int layer)
{
    const fkv_engine *e = d->engine;
    const int64_t elements = (int64_t)e->tile * e->config.hidden;
    tile t = tile_of(d, rows, i, layer);
    t.y += i % FKV_TILES_OF_Y * elements * e->info.act_bytes;
    t.partial += i % FKV_TILES_OF_PARTIAL * elements * d->n_ranks;
    return t;
}

static int64_t gather_attention(const fkv_engine_device *d, const tile *t)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    b->aside_begin(d->dev);
    b->gather_cols(d->dev, t->att, t->n, (int64_t)e->config.n_heads * e->config.head_dim, e->head_cols,
                   e->info.act_bytes);
    return b->aside_end(d->dev);
}

/* A pass over the tiles of a layer. Tickets of the last tile of each kind, whose order all devices share. */
typedef struct pass {
    fkv_engine_device *d;
    const fkv_layer_rows *rows;
    int layer;
    int64_t n_tiles;
    int64_t attention[2], projected[2]; /* by tile, even and odd */
} pass;

/* Tile i's projection, once its attention is here; then on with the attention of the tile after the next. */
static void project_tile(pass *p, int64_t i)
{
    fkv_engine_device *d = p->d;
    const fkv_backend *b = d->engine->options.backend;
    if (i >= p->n_tiles) return;
    const tile t = place_tile(d, p->rows, i, p->layer);
    b->aside_wait(d->dev, p->attention[i % 2]);
    project_shares(d, &t);
    b->aside_begin(d->dev);
    gather_projected(d, &t);
    p->projected[i % 2] = b->aside_end(d->dev);
    if (i + 2 >= p->n_tiles) return;
    const tile later = place_tile(d, p->rows, i + 2, p->layer);
    p->attention[i % 2] = gather_attention(d, &later);
}

void fkv_layer_finish_aside(fkv_engine_device *d, int layer, const fkv_layer_rows *rows)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    pass p = {d, rows, layer, (rows->n + e->tile - 1) / e->tile, {0}, {0}};
    for (int64_t i = 0; i < 2 && i < p.n_tiles; i++) {
        const tile t = place_tile(d, rows, i, layer);
        p.attention[i] = gather_attention(d, &t);
    }
    project_tile(&p, 0);
    project_tile(&p, 1);
    for (int64_t i = 0; i < p.n_tiles; i++) {
        const tile t = place_tile(d, rows, i, layer);
        b->aside_wait(d->dev, p.projected[i % 2]);
        mlp_shares(d, &t);
        fkv_layer_settle(d); /* the tile before */
        b->aside_begin(d->dev);
        reduce_mlp(d, &t);
        d->unsettled = (fkv_unsettled){*rows, i, layer, b->aside_end(d->dev), true};
        project_tile(&p, i + 2);
    }
}

void fkv_layer_settle(fkv_engine_device *d)
{
    const fkv_unsettled *u = &d->unsettled;
    if (!u->there) return;
    const tile t = place_tile(d, &u->rows, u->tile, u->layer);
    d->engine->options.backend->aside_wait(d->dev, u->ticket);
    end_tile(d, &t);
    d->unsettled.there = false;
}

void fkv_layer_logits(fkv_engine_device *d, void *xn)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    const int64_t vocab = e->config.vocab, n = e->options.n_slots;
    fkv_watch(d, FKV_SHARES_BEGIN, -1);
    for (int r = 0; r < d->n_ranks; r++)
        b->linear(
            d->dev, (fkv_acts){xn, e->config.hidden, NULL}, n, n, d->ranks[r].head,
            (fkv_acts){d->logits + fkv_partition_columns(vocab, d->ranks[r].rank, e->options.n_ranks).begin,
                       vocab, NULL},
            true, FKV_EPILOGUE_NONE);
    fkv_watch(d, FKV_SHARES_END, -1);
    b->gather_cols(d->dev, d->logits, n, vocab, e->vocab_cols, sizeof *d->logits);
    if (e->config.logit_softcap > 0) b->scale(d->dev, d->logits, n * vocab, 1, e->config.logit_softcap);
}
