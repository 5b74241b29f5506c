/* From the mapped safetensors to every rank's slices on its device.
 *
 * A rank holds: its home heads' Q, K, V; its rows (output columns) of the output
 * projection; its share of the MLP's intermediate; its share of the vocabulary;
 * and Q, K, V of the heads that the plan copies to it.
 */
#include <stdio.h>
#include <stdlib.h>

#include "engine/state.h"
#include "runner/base/float16.h"
#include "runner/base/mem.h"

static fkv_status get(const fkv_safetensors *st, int layer, const char *what, int64_t rows, int64_t cols,
                      fkv_st_tensor *t, fkv_err *err)
{
    char name[128];
    if (layer >= 0)
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, what);
    else
        snprintf(name, sizeof name, "%s.weight", what);
    const int64_t shape[2] = {rows, cols};
    return fkv_safetensors_get(st, name, shape, cols ? 2 : 1, t, err);
}

/* Rows [from, to) and columns from col on of a matrix of n_cols columns. */
static fkv_rows rows_of(const fkv_st_tensor *t, int64_t from, int64_t to, int64_t col, int64_t n_cols)
{
    const fkv_dtype dtype = t->dtype == FKV_ST_BF16  ? FKV_DTYPE_BF16
                            : t->dtype == FKV_ST_F16 ? FKV_DTYPE_F16
                                                     : FKV_DTYPE_F32;
    const int64_t size = dtype == FKV_DTYPE_F32 ? 4 : 2;
    return (fkv_rows){.data = (const char *)t->data + (from * n_cols + col) * size,
                      .dtype = dtype,
                      .n_rows = to - from,
                      .stride = n_cols};
}

static fkv_status load_norm(fkv_engine_device *d, const fkv_safetensors *st, int layer, const char *what,
                            float **out, fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const int64_t n = e->config.hidden;
    fkv_st_tensor t;
    void *dev;
    float *host = NULL;
    fkv_status s = get(st, layer, what, n, 0, &t, err);
    if (s) return s;
    host = fkv_calloc((size_t)n, sizeof *host);
    if (!host) return fkv_fail_memory(err);
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        if (t.dtype == FKV_ST_F32) {
            memcpy(&host[i], (const char *)t.data + 4 * i, 4);
        } else {
            memcpy(&h, (const char *)t.data + 2 * i, 2);
            host[i] = t.dtype == FKV_ST_BF16 ? fkv_f32_from_bf16(h) : fkv_f32_from_f16(h);
        }
    }
    const fkv_backend *b = e->options.backend;
    if (!(s = b->alloc(d->dev, (size_t)n * sizeof *host, &dev, err))) {
        b->upload(d->dev, dev, host, (size_t)n * sizeof *host);
        s = b->sync(d->dev, err);
        *out = dev;
    }
    free(host);
    return s;
}

/* Q, K, V rows of the heads listed as one weight, per head Q, K, V. */
static fkv_status load_qkv(fkv_engine_device *d, const fkv_safetensors *st, int layer, const int *heads,
                           int n, fkv_weight **out, fkv_err *err)
{
    const fkv_config *c = &d->engine->config;
    const int64_t hd = c->head_dim, q_rows = c->group * hd, hidden = c->hidden;
    fkv_st_tensor q, k, v;
    fkv_status s;
    if ((s = get(st, layer, "self_attn.q_proj", c->n_heads * hd, hidden, &q, err))) return s;
    if ((s = get(st, layer, "self_attn.k_proj", c->n_kv_heads * hd, hidden, &k, err))) return s;
    if ((s = get(st, layer, "self_attn.v_proj", c->n_kv_heads * hd, hidden, &v, err))) return s;
    fkv_rows *parts = fkv_calloc(3 * (size_t)n, sizeof *parts);
    if (!parts) return fkv_fail_memory(err);
    for (int i = 0; i < n; i++) {
        const int64_t h = heads[i];
        parts[3 * i] = rows_of(&q, h * q_rows, (h + 1) * q_rows, 0, hidden);
        parts[3 * i + 1] = rows_of(&k, h * hd, (h + 1) * hd, 0, hidden);
        parts[3 * i + 2] = rows_of(&v, h * hd, (h + 1) * hd, 0, hidden);
    }
    s = d->engine->options.backend->weight_load(d->dev, parts, 3 * n, hidden, out, err);
    free(parts);
    return s;
}

static fkv_status load_layer(fkv_engine_device *d, const fkv_safetensors *st, fkv_rank *r, int l,
                             fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const int n_ranks = e->options.n_ranks;
    fkv_rank_layer *out = &r->layers[l];
    fkv_st_tensor o, gate, up, down;
    fkv_rows part;
    fkv_status s;
    int home[FKV_MAX_KV_HEADS];
    for (int i = 0; i < r->n_home; i++) home[i] = r->head0 + i;
    if ((s = load_qkv(d, st, l, home, r->n_home, &out->qkv, err))) return s;

    const int64_t att = (int64_t)c->n_heads * c->head_dim;
    if ((s = get(st, l, "self_attn.o_proj", c->hidden, att, &o, err))) return s;
    part = rows_of(&o, fkv_share_columns(c->hidden, r->rank, n_ranks),
                   fkv_share_columns(c->hidden, r->rank + 1, n_ranks), 0, att);
    if ((s = b->weight_load(d->dev, &part, 1, att, &out->o, err))) return s;

    const int64_t i0 = fkv_share_columns(c->intermediate, r->rank, n_ranks);
    const int64_t i1 = fkv_share_columns(c->intermediate, r->rank + 1, n_ranks);
    if ((s = get(st, l, "mlp.gate_proj", c->intermediate, c->hidden, &gate, err))) return s;
    if ((s = get(st, l, "mlp.up_proj", c->intermediate, c->hidden, &up, err))) return s;
    if ((s = get(st, l, "mlp.down_proj", c->hidden, c->intermediate, &down, err))) return s;
    if ((s = b->weight_load_gated(d->dev, rows_of(&gate, i0, i1, 0, c->hidden),
                                  rows_of(&up, i0, i1, 0, c->hidden), c->hidden, &out->gate_up, err)))
        return s;
    part = rows_of(&down, 0, c->hidden, i0, c->intermediate);
    return b->weight_load(d->dev, &part, 1, i1 - i0, &out->down, err);
}

fkv_status fkv_weights_load_home(fkv_engine_device *d, const fkv_safetensors *st, fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    fkv_st_tensor embedding, head;
    fkv_status s;
    if ((s = get(st, -1, "model.embed_tokens", c->vocab, c->hidden, &embedding, err))) return s;
    head = embedding;
    if (!c->tied && (s = get(st, -1, "lm_head", c->vocab, c->hidden, &head, err))) return s;
    for (int l = 0; l < c->n_layers; l++) {
        if ((s = load_norm(d, st, l, "input_layernorm", &d->norms[2 * l], err))) return s;
        if ((s = load_norm(d, st, l, "post_attention_layernorm", &d->norms[2 * l + 1], err))) return s;
    }
    if ((s = load_norm(d, st, -1, "model.norm", &d->norms[2 * c->n_layers], err))) return s;
    for (int i = 0; i < d->n_ranks; i++) {
        fkv_rank *r = &d->ranks[i];
        const int64_t v0 = fkv_share_columns(c->vocab, r->rank, e->options.n_ranks);
        const int64_t v1 = fkv_share_columns(c->vocab, r->rank + 1, e->options.n_ranks);
        const fkv_rows part = rows_of(&head, v0, v1, 0, c->hidden);
        if ((s = b->embedding_load(d->dev, rows_of(&embedding, v0, v1, 0, c->hidden), v0, c->hidden,
                                   &r->embedding, err)))
            return s;
        if ((s = b->weight_load(d->dev, &part, 1, c->hidden, &r->head, err))) return s;
        for (int l = 0; l < c->n_layers; l++)
            if ((s = load_layer(d, st, r, l, err))) return s;
    }
    return FKV_OK;
}

/* Placements of rank r in layer l, from the plan; n counts them with out NULL. */
static int served_by(const fkv_plan *plan, int l, int rank, fkv_decode_head *out)
{
    int n = 0;
    for (int h = 0; h < plan->n_kv_heads; h++) {
        const int at = l * plan->n_kv_heads + h;
        for (int p = plan->first[at]; p < plan->first[at + 1]; p++) {
            if (plan->at[p].rank != rank) continue;
            if (out)
                out[n] = (fkv_decode_head){.head = h, .begin = plan->at[p].begin, .end = plan->at[p].end};
            n++;
        }
    }
    return n;
}

/* Where the placements of one rank in one layer find their weights: home heads in the
 * home weight, copies one behind the other in a weight of their own. */
static fkv_status load_served(fkv_engine_device *d, const fkv_safetensors *st, const fkv_rank *r, int l,
                              fkv_err *err)
{
    const fkv_config *c = &d->engine->config;
    const int64_t per = (int64_t)fkv_head_rows(c->group) * c->head_dim;
    const fkv_rank_layer *layer = &r->layers[l];
    int copies[FKV_MAX_KV_HEADS], n = 0;
    fkv_weight *w = NULL;
    for (int k = 0; k < layer->n_served; k++) {
        fkv_decode_head *p = &layer->served[k];
        const bool home = p->head >= r->head0 && p->head < r->head0 + r->n_home;
        p->weight = home ? layer->qkv : NULL;
        p->row = per * (home ? p->head - r->head0 : n);
        if (!home) copies[n++] = p->head;
    }
    if (n == 0) return FKV_OK;
    const fkv_status s = load_qkv(d, st, l, copies, n, &w, err);
    for (int k = 0; !s && k < layer->n_served; k++)
        if (!layer->served[k].weight) layer->served[k].weight = w;
    return s;
}

fkv_status fkv_weights_load_copies(fkv_engine_device *d, const fkv_safetensors *st, const fkv_plan *plan,
                                   fkv_err *err)
{
    for (int i = 0; i < d->n_ranks; i++) {
        fkv_rank *r = &d->ranks[i];
        for (int l = 0; l < d->engine->config.n_layers; l++) {
            fkv_rank_layer *layer = &r->layers[l];
            layer->n_served = served_by(plan, l, r->rank, NULL);
            layer->served = fkv_calloc((size_t)layer->n_served, sizeof *layer->served);
            if (!layer->served) return fkv_fail_memory(err);
            served_by(plan, l, r->rank, layer->served);
            const fkv_status s = load_served(d, st, r, l, err);
            if (s) return s;
        }
    }
    return FKV_OK;
}

fkv_status fkv_engine_check_weights(const fkv_config *c, const fkv_safetensors *st, fkv_err *err)
{
    const int64_t att = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;
    const struct {
        const char *name;
        int64_t rows, cols;
    } layer[] = {{"self_attn.q_proj", att, c->hidden},          {"self_attn.k_proj", kv, c->hidden},
                 {"self_attn.v_proj", kv, c->hidden},           {"self_attn.o_proj", c->hidden, att},
                 {"mlp.gate_proj", c->intermediate, c->hidden}, {"mlp.up_proj", c->intermediate, c->hidden},
                 {"mlp.down_proj", c->hidden, c->intermediate}, {"input_layernorm", c->hidden, 0},
                 {"post_attention_layernorm", c->hidden, 0}};
    fkv_st_tensor t;
    fkv_status s = get(st, -1, "model.embed_tokens", c->vocab, c->hidden, &t, err);
    if (!s) s = get(st, -1, "model.norm", c->hidden, 0, &t, err);
    if (!s && !c->tied) s = get(st, -1, "lm_head", c->vocab, c->hidden, &t, err);
    for (int l = 0; l < c->n_layers; l++)
        for (size_t i = 0; !s && i < sizeof layer / sizeof *layer; i++)
            s = get(st, l, layer[i].name, layer[i].rows, layer[i].cols, &t, err);
    return s;
}
