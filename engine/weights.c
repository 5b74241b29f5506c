/* From the mapped safetensors to every rank's slices on its device.
 *
 * A rank holds: its home heads' Q, K, V; its rows (output columns) of the output
 * projection; its share of the MLP's intermediate; its share of the vocabulary;
 * Q, K, V of the heads that the plan copies to it; and, for scorers that want it, the
 * output projection's columns of its home heads.
 */
#include <stdlib.h>

#include "engine/state.h"
#include "runner/base/mem.h"

enum { MAX_KV_HEADS = 1024 }; /* what config.c accepts at the most */

static fkv_dtype dtype_of(fkv_st_dtype dtype)
{
    static const fkv_dtype dtypes[] = {[FKV_ST_BF16] = FKV_DTYPE_BF16,
                                       [FKV_ST_F16] = FKV_DTYPE_F16,
                                       [FKV_ST_F32] = FKV_DTYPE_F32,
                                       [FKV_ST_F8_E4M3] = FKV_DTYPE_F8_E4M3};
    return dtypes[dtype];
}

/* Rows [from, to) and columns from col on of a matrix of n_cols columns. */
static fkv_rows rows_of(const fkv_st_tensor *t, int64_t from, int64_t to, int64_t col, int64_t n_cols)
{
    const fkv_dtype dtype = dtype_of(t->dtype);
    const fkv_st_scales *s = &t->scales;
    return (fkv_rows){.data = (const char *)t->data + (from * n_cols + col) * fkv_dtype_bytes(dtype),
                      .dtype = dtype,
                      .n_rows = to - from,
                      .stride = n_cols,
                      .scales = {.data = s->data,
                                 .dtype = dtype_of(s->dtype),
                                 .block_rows = s->block_rows,
                                 .block_cols = s->block_cols,
                                 .stride = s->stride,
                                 .row0 = s->row0 + from,
                                 .col0 = col},
                      .cols_before = col,
                      .all_cols = n_cols};
}

/* A norm as float32 on the device. */
static fkv_status load_vector(fkv_engine_device *d, const fkv_safetensors *files, int layer, fkv_tensor t,
                              float **out, fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    int64_t n, one;
    fkv_st_tensor found;
    void *dev;
    const bool from_one = fkv_config_family(&e->config)->norms_from_one;
    if (!fkv_tensor_is_wanted(&e->config, t)) return FKV_OK;
    fkv_status st = fkv_tensor_get(&e->config, files, layer, t, &found, err);
    if (st) return st;
    fkv_tensor_shape(&e->config, t, &n, &one);
    float *host = fkv_calloc((size_t)n, sizeof *host);
    if (!host) return fkv_fail_memory(err);
    const fkv_rows rows = rows_of(&found, 0, 1, 0, n);
    fkv_rows_read(&rows, 0, 0, n, host);
    for (int64_t i = 0; from_one && i < n; i++) host[i] += 1;
    if (!(st = b->alloc(d->dev, (size_t)n * sizeof *host, &dev, err))) {
        b->upload(d->dev, dev, host, (size_t)n * sizeof *host);
        st = b->sync(d->dev, err);
        *out = dev;
    }
    free(host);
    return st;
}

/* Rank r's part of a matrix that is shared by column, depth or vocabulary. *k: what is summed over. */
static fkv_status part_of(const fkv_engine *e, const fkv_safetensors *files, int layer, fkv_tensor t,
                          int rank, fkv_rows *out, int64_t *k, fkv_err *err)
{
    int64_t rows, cols;
    fkv_st_tensor found;
    const fkv_status st = fkv_tensor_get(&e->config, files, layer, t, &found, err);
    if (st) return st;
    fkv_tensor_shape(&e->config, t, &rows, &cols);
    const bool deep = fkv_tensor_sharing(t) == FKV_SHARED_BY_DEPTH;
    const fkv_range at = fkv_partition_columns(deep ? cols : rows, rank, e->options.n_ranks);
    *out = deep ? rows_of(&found, 0, rows, at.begin, cols) : rows_of(&found, at.begin, at.end, 0, cols);
    if (t >= FKV_TENSOR_ATTENTION_NORM) out->form = e->options.form;
    *k = deep ? fkv_range_count(at) : cols;
    return FKV_OK;
}

/* One of Q, K and V in the files, with its bias. */
typedef struct projection {
    fkv_st_tensor weight, bias; /* bias.data NULL: none */
    int64_t per, k;             /* rows of a KV head, and what is summed over */
    bool turns;                 /* by RoPE */
    fkv_form form;
} projection;

static fkv_status find_projection(const fkv_engine *e, const fkv_safetensors *files, int layer, fkv_tensor t,
                                  fkv_tensor t_bias, projection *out, fkv_err *err)
{
    const fkv_config *c = &e->config;
    int64_t rows;
    fkv_st_tensor *bias = &out->bias;
    *out = (projection){.turns = t != FKV_TENSOR_V, .form = e->options.form};
    fkv_status st = fkv_tensor_get(c, files, layer, t, &out->weight, err);
    if (!st && fkv_tensor_is_wanted(c, t_bias)) st = fkv_tensor_get(c, files, layer, t_bias, bias, err);
    if (st) return st;
    fkv_tensor_shape(c, t, &rows, &out->k);
    out->per = rows / c->n_kv_heads;
    return FKV_OK;
}

/* Rows [from, to) of a projection as one part more. */
static void add_rows(const projection *p, int64_t from, int64_t to, fkv_rows *parts, int *n)
{
    fkv_rows *part = &parts[(*n)++];
    *part = rows_of(&p->weight, from, to, 0, p->k);
    part->form = p->form;
    if (!p->bias.data) return;
    part->bias = rows_of(&p->bias, from, to, 0, 1).data;
    part->bias_dtype = dtype_of(p->bias.dtype);
}

enum { CUTS = 4 }; /* parts of a vector of which some dimensions don't turn */

/* Rows of one KV head. Kernels turn dimension i of a vector with i + hd / 2, the model i with i + n / 2 of
 * its first n. Where n is less than hd, half of those that don't turn go behind each half of those that do:
 * in queries and keys alike, so that their products are the same. */
static void add_head(const fkv_config *c, const projection *p, int head, fkv_rows *parts, int *n_parts)
{
    const int64_t hd = c->head_dim, n = fkv_rope_rotary_dim(&c->rope, c->head_dim), middle = (n + hd) / 2;
    const int64_t cuts[CUTS][2] = {{0, n / 2}, {n, middle}, {n / 2, n}, {middle, hd}};
    const int64_t from = head * p->per, to = from + p->per;
    if (!p->turns || n == hd) {
        add_rows(p, from, to, parts, n_parts);
        return;
    }
    for (int64_t at = from; at < to; at += hd)
        for (int i = 0; i < CUTS; i++) add_rows(p, at + cuts[i][0], at + cuts[i][1], parts, n_parts);
}

/* Q, K, V rows of the heads listed as one weight, per head Q, K, V. */
static fkv_status load_qkv(fkv_engine_device *d, const fkv_safetensors *files, int layer, const int *heads,
                           int n, fkv_weight **out, fkv_err *err)
{
    static const fkv_tensor tensors[][2] = {{FKV_TENSOR_Q, FKV_TENSOR_Q_BIAS},
                                            {FKV_TENSOR_K, FKV_TENSOR_K_BIAS},
                                            {FKV_TENSOR_V, FKV_TENSOR_V_BIAS}};
    const fkv_config *c = &d->engine->config;
    projection p[3];
    int n_parts = 0;
    fkv_status st = FKV_OK;
    fkv_rows *parts = fkv_calloc((size_t)n * (size_t)fkv_head_rows(c->group) * CUTS, sizeof *parts);
    if (!parts) return fkv_fail_memory(err);
    for (int i = 0; !st && i < 3; i++)
        st = find_projection(d->engine, files, layer, tensors[i][0], tensors[i][1], &p[i], err);
    for (int h = 0; !st && h < n; h++)
        for (int i = 0; i < 3; i++) add_head(c, &p[i], heads[h], parts, &n_parts);
    if (!st) st = d->engine->options.backend->weight_load(d->dev, parts, n_parts, p[0].k, out, err);
    free(parts);
    return st;
}

static fkv_status load_layer(fkv_engine_device *d, const fkv_safetensors *files, fkv_rank *r, int l,
                             fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    fkv_rank_layer *out = &r->layers[l];
    fkv_rows part, up;
    fkv_status st;
    int64_t k;
    int home[MAX_KV_HEADS];
    for (int i = 0; i < r->n_home; i++) home[i] = r->head0 + i;
    if ((st = load_qkv(d, files, l, home, r->n_home, &out->qkv, err)) ||
        (st = part_of(e, files, l, FKV_TENSOR_O, r->rank, &part, &k, err)) ||
        (st = b->weight_load(d->dev, &part, 1, k, &out->o, err)) ||
        (st = part_of(e, files, l, FKV_TENSOR_GATE, r->rank, &part, &k, err)) ||
        (st = part_of(e, files, l, FKV_TENSOR_UP, r->rank, &up, &k, err)) ||
        (st = b->weight_load_gated(d->dev, part, up, k, &out->gate_up, err)) ||
        (st = part_of(e, files, l, FKV_TENSOR_DOWN, r->rank, &part, &k, err)))
        return st;
    return b->weight_load(d->dev, &part, 1, k, &out->down, err);
}

static fkv_status load_norms(fkv_engine_device *d, const fkv_safetensors *files, int l, fkv_err *err)
{
    fkv_norms *n = &d->norms[l];
    fkv_status st = load_vector(d, files, l, FKV_TENSOR_ATTENTION_NORM, &n->attention, err);
    if (!st) st = load_vector(d, files, l, FKV_TENSOR_MLP_NORM, &n->mlp, err);
    if (!st) st = load_vector(d, files, l, FKV_TENSOR_ATTENTION_OUT_NORM, &n->attention_out, err);
    if (!st) st = load_vector(d, files, l, FKV_TENSOR_MLP_OUT_NORM, &n->mlp_out, err);
    if (!st) st = load_vector(d, files, l, FKV_TENSOR_Q_NORM, &n->q, err);
    if (!st) st = load_vector(d, files, l, FKV_TENSOR_K_NORM, &n->k, err);
    return st;
}

/* O_g of scorer.h for the query heads of r's home heads, one behind the other. */
static fkv_status load_output_heads(const fkv_engine_device *d, const fkv_safetensors *files,
                                    const fkv_rank *r, int l, fkv_weight **out, fkv_err *err)
{
    const fkv_config *c = &d->engine->config;
    const int n = r->n_home * c->group;
    int64_t rows, cols;
    fkv_st_tensor found;
    fkv_status st = fkv_tensor_get(c, files, l, FKV_TENSOR_O, &found, err);
    if (st) return st;
    fkv_tensor_shape(c, FKV_TENSOR_O, &rows, &cols);
    fkv_rows *parts = fkv_calloc((size_t)n, sizeof *parts);
    if (!parts) return fkv_fail_memory(err);
    for (int i = 0; i < n; i++)
        parts[i] = rows_of(&found, 0, rows, ((int64_t)r->head0 * c->group + i) * c->head_dim, cols);
    st = d->engine->options.backend->weight_load(d->dev, parts, n, c->head_dim, out, err);
    free(parts);
    return st;
}

/* The weight that its Gram matrices are made of is given back. */
static fkv_status make_gram(const fkv_engine_device *d, const fkv_safetensors *files, const fkv_rank *r,
                            int l, float *out, fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    const fkv_mark mark = b->mark(d->dev);
    fkv_weight *w;
    fkv_status st = load_output_heads(d, files, r, l, &w, err);
    if (st) return st;
    b->weight_gram(d->dev, w, e->config.hidden, r->n_home * e->config.group, out);
    if ((st = b->sync(d->dev, err))) return st;
    b->release(d->dev, mark);
    return FKV_OK;
}

static fkv_status load_for_scorers(const fkv_engine_device *d, const fkv_safetensors *files, fkv_rank *r,
                                   fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const uint32_t scorers = fkv_engine_scorers(e);
    const int64_t values = (int64_t)r->n_home * c->group * c->head_dim * c->head_dim; /* of a layer's G_g */
    void *gram = NULL;
    fkv_status st = FKV_OK;
    if (fkv_scorers_have(scorers, FKV_SCORER_DEFENSIVE))
        st = e->options.backend->alloc(d->dev, (size_t)(values * c->n_layers) * sizeof(float), &gram, err);
    for (int l = 0; !st && gram && l < c->n_layers; l++) {
        r->layers[l].gram = (float *)gram + l * values;
        st = make_gram(d, files, r, l, r->layers[l].gram, err);
    }
    for (int l = 0; !st && fkv_scorers_have(scorers, FKV_SCORER_CRITICAL) && l < c->n_layers; l++)
        st = load_output_heads(d, files, r, l, &r->layers[l].output_heads, err);
    return st;
}

fkv_status fkv_weights_load_home(fkv_engine_device *d, const fkv_safetensors *files, fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_config *c = &e->config;
    const fkv_backend *b = e->options.backend;
    const fkv_tensor output = c->tied ? FKV_TENSOR_EMBEDDING : FKV_TENSOR_OUTPUT;
    fkv_status st = FKV_OK;
    for (int l = 0; !st && l < c->n_layers; l++) st = load_norms(d, files, l, err);
    if (!st) st = load_vector(d, files, -1, FKV_TENSOR_LAST_NORM, &d->last_norm, err);
    for (int i = 0; !st && i < d->n_ranks; i++) {
        fkv_rank *r = &d->ranks[i];
        const int64_t first = fkv_partition_columns(c->vocab, r->rank, e->options.n_ranks).begin;
        fkv_rows part;
        int64_t k;
        if ((st = part_of(e, files, -1, FKV_TENSOR_EMBEDDING, r->rank, &part, &k, err)) ||
            (st = b->embedding_load(d->dev, part, first, k, &r->embedding, err)) ||
            (st = part_of(e, files, -1, output, r->rank, &part, &k, err)) ||
            (st = b->weight_load(d->dev, &part, 1, k, &r->head, err)))
            break;
        for (int l = 0; !st && l < c->n_layers; l++) st = load_layer(d, files, r, l, err);
        if (!st) st = load_for_scorers(d, files, r, err);
    }
    return st;
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
static fkv_status load_served(fkv_engine_device *d, const fkv_safetensors *files, const fkv_rank *r, int l,
                              fkv_err *err)
{
    const fkv_config *c = &d->engine->config;
    const int64_t per = (int64_t)fkv_head_rows(c->group) * c->head_dim;
    const fkv_rank_layer *layer = &r->layers[l];
    int copies[MAX_KV_HEADS], n = 0;
    fkv_weight *w = NULL;
    for (int k = 0; k < layer->n_served; k++) {
        fkv_decode_head *p = &layer->served[k];
        const bool home = p->head >= r->head0 && p->head < r->head0 + r->n_home;
        p->weight = home ? layer->qkv : NULL;
        p->row = per * (home ? p->head - r->head0 : n);
        if (!home) copies[n++] = p->head;
    }
    if (n == 0) return FKV_OK;
    const fkv_status st = load_qkv(d, files, l, copies, n, &w, err);
    for (int k = 0; !st && k < layer->n_served; k++)
        if (!layer->served[k].weight) layer->served[k].weight = w;
    return st;
}

fkv_status fkv_weights_load_copies(fkv_engine_device *d, const fkv_safetensors *files, const fkv_plan *plan,
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
            const fkv_status st = load_served(d, files, r, l, err);
            if (st) return st;
        }
    }
    return FKV_OK;
}
