/* The table of tensors: see tensors.h. */
#include "engine/model/tensors.h"

#include <stdio.h>
#include <string.h>

#include "engine/model/config.h"
#include "engine/model/family.h"
#include "runner/base/mem.h"

typedef enum dim { ONE, HEAD_DIM, HIDDEN, QUERIES, KEYS, INTERMEDIATE, VOCAB } dim;
typedef enum presence { ALWAYS, UNLESS_TIED, WITH_QKV_BIAS, WITH_QK_NORM, WITH_OUT_NORMS } presence;

/* %d is the layer. rows x cols; a vector has cols ONE. */
static const struct {
    const char *name;
    dim rows, cols;
    fkv_sharing sharing;
    presence presence;
} tensors[FKV_N_TENSORS] = {
    [FKV_TENSOR_EMBEDDING] = {"model.embed_tokens.weight", VOCAB, HIDDEN, FKV_SHARED_BY_VOCABULARY, ALWAYS},
    [FKV_TENSOR_LAST_NORM] = {"model.norm.weight", HIDDEN, ONE, FKV_SHARED_WHOLE, ALWAYS},
    [FKV_TENSOR_OUTPUT] = {"lm_head.weight", VOCAB, HIDDEN, FKV_SHARED_BY_VOCABULARY, UNLESS_TIED},
#define LAYER(tensor, name, ...) [FKV_TENSOR_##tensor] = {"model.layers.%d." name, __VA_ARGS__}
    LAYER(ATTENTION_NORM, "input_layernorm.weight", HIDDEN, ONE, FKV_SHARED_WHOLE, ALWAYS),
    LAYER(Q, "self_attn.q_proj.weight", QUERIES, HIDDEN, FKV_SHARED_BY_HEAD, ALWAYS),
    LAYER(K, "self_attn.k_proj.weight", KEYS, HIDDEN, FKV_SHARED_BY_HEAD, ALWAYS),
    LAYER(V, "self_attn.v_proj.weight", KEYS, HIDDEN, FKV_SHARED_BY_HEAD, ALWAYS),
    LAYER(Q_BIAS, "self_attn.q_proj.bias", QUERIES, ONE, FKV_SHARED_BY_HEAD, WITH_QKV_BIAS),
    LAYER(K_BIAS, "self_attn.k_proj.bias", KEYS, ONE, FKV_SHARED_BY_HEAD, WITH_QKV_BIAS),
    LAYER(V_BIAS, "self_attn.v_proj.bias", KEYS, ONE, FKV_SHARED_BY_HEAD, WITH_QKV_BIAS),
    LAYER(Q_NORM, "self_attn.q_norm.weight", HEAD_DIM, ONE, FKV_SHARED_WHOLE, WITH_QK_NORM),
    LAYER(K_NORM, "self_attn.k_norm.weight", HEAD_DIM, ONE, FKV_SHARED_WHOLE, WITH_QK_NORM),
    LAYER(O, "self_attn.o_proj.weight", HIDDEN, QUERIES, FKV_SHARED_BY_COLUMN, ALWAYS),
    LAYER(ATTENTION_OUT_NORM, "attention_out_layernorm.weight", HIDDEN, ONE, FKV_SHARED_WHOLE,
          WITH_OUT_NORMS),
    LAYER(MLP_NORM, "post_attention_layernorm.weight", HIDDEN, ONE, FKV_SHARED_WHOLE, ALWAYS),
    LAYER(GATE, "mlp.gate_proj.weight", INTERMEDIATE, HIDDEN, FKV_SHARED_BY_COLUMN, ALWAYS),
    LAYER(UP, "mlp.up_proj.weight", INTERMEDIATE, HIDDEN, FKV_SHARED_BY_COLUMN, ALWAYS),
    LAYER(DOWN, "mlp.down_proj.weight", HIDDEN, INTERMEDIATE, FKV_SHARED_BY_DEPTH, ALWAYS),
    LAYER(MLP_OUT_NORM, "post_feedforward_layernorm.weight", HIDDEN, ONE, FKV_SHARED_WHOLE, WITH_OUT_NORMS),
#undef LAYER
};

static int64_t size_of(const fkv_config *c, dim d)
{
    switch (d) {
    case ONE: return 1;
    case HEAD_DIM: return c->head_dim;
    case HIDDEN: return c->hidden;
    case QUERIES: return (int64_t)c->n_heads * c->head_dim;
    case KEYS: return (int64_t)c->n_kv_heads * c->head_dim;
    case INTERMEDIATE: return c->intermediate;
    case VOCAB: return c->vocab;
    }
    return 0;
}

fkv_sharing fkv_tensor_sharing(fkv_tensor t)
{
    return tensors[t].sharing;
}

bool fkv_tensor_is_matrix(fkv_tensor t)
{
    return tensors[t].cols != ONE;
}

bool fkv_tensor_is_wanted(const fkv_config *c, fkv_tensor t)
{
    switch (tensors[t].presence) {
    case ALWAYS: return true;
    case UNLESS_TIED: return !c->tied;
    case WITH_QKV_BIAS: return fkv_config_family(c)->qkv_bias;
    case WITH_QK_NORM: return fkv_config_family(c)->qk_norm;
    case WITH_OUT_NORMS: return fkv_config_family(c)->out_norms;
    }
    return false;
}

void fkv_tensor_shape(const fkv_config *c, fkv_tensor t, int64_t *rows, int64_t *cols)
{
    *rows = size_of(c, tensors[t].rows);
    *cols = size_of(c, tensors[t].cols);
}

static int64_t values_of(const fkv_config *c, fkv_tensor t)
{
    int64_t rows, cols;
    fkv_tensor_shape(c, t, &rows, &cols);
    return rows * cols;
}

void fkv_tensor_name(const fkv_config *c, int layer, fkv_tensor t, char *out, size_t size)
{
    const fkv_family *f = fkv_config_family(c);
    const char *p = f->names[t] ? f->names[t] : tensors[t].name, *number = strstr(p, "%d");
    const char *prefix = f->prefix ? f->prefix : "";
    if (number)
        snprintf(out, size, "%s%.*s%d%s", prefix, (int)(number - p), p, layer, number + 2);
    else
        snprintf(out, size, "%s%s", prefix, p);
}

/* Rows of the tensor in the files, and which of them is t's first. */
static int64_t stored_rows(const fkv_config *c, fkv_tensor t, int64_t *first)
{
    const char *name = fkv_config_family(c)->names[t];
    int64_t all = 0, rows, cols;
    *first = 0;
    for (fkv_tensor other = 0; other < FKV_N_TENSORS; other++) {
        if (other != t && (!name || fkv_config_family(c)->names[other] != name)) continue;
        fkv_tensor_shape(c, other, &rows, &cols);
        if (other < t) *first += rows;
        all += rows;
    }
    return all;
}

fkv_status fkv_tensor_get(const fkv_config *c, const fkv_safetensors *weights, int layer, fkv_tensor t,
                          fkv_st_tensor *out, fkv_err *err)
{
    char name[160];
    int64_t shape[2], rows, first;
    fkv_tensor_name(c, layer, t, name, sizeof name);
    fkv_tensor_shape(c, t, &rows, &shape[1]);
    shape[0] = stored_rows(c, t, &first);
    fkv_status st = fkv_safetensors_get(weights, name, shape, fkv_tensor_is_matrix(t) ? 2 : 1, out, err);
    if (st) return st;
    if ((st = fkv_quant_find_scales(&c->quant, weights, out, err))) return st;
    const size_t row_bytes = out->n_bytes / (size_t)shape[0];
    out->data = (const char *)out->data + (size_t)first * row_bytes;
    out->n_bytes = (size_t)rows * row_bytes;
    out->shape[0] = rows;
    out->scales.row0 = first;
    return FKV_OK;
}

/* A tied model is not asked for its output, but a file may have one all the same: equal, as torch saves it,
 * or of its own, as HF transformers 5 then takes it whatever the config says (earlier ones took the
 * embedding). Equal tensors are read to their ends, at the pace of the disk. */
static fkv_status check_tied(const fkv_config *c, const fkv_safetensors *weights, fkv_err *err)
{
    char name[160], embedding_name[160];
    fkv_st_tensor output, embedding;
    fkv_tensor_name(c, -1, FKV_TENSOR_OUTPUT, name, sizeof name);
    fkv_tensor_name(c, -1, FKV_TENSOR_EMBEDDING, embedding_name, sizeof embedding_name);
    if (!c->tied || !fkv_safetensors_find(weights, name, &output) ||
        !fkv_safetensors_find(weights, embedding_name, &embedding))
        return FKV_OK;
    if (output.dtype == embedding.dtype && output.dtype != FKV_ST_F8_E4M3 &&
        output.n_bytes == embedding.n_bytes && !memcmp(output.data, embedding.data, output.n_bytes))
        return FKV_OK;
    return fkv_fail_at(
        err, FKV_E_INPUT, output.file, 0, name,
        "differs from %s, but the model is tied (tie_word_embeddings), so that they are one: set "
        "tie_word_embeddings to false in config.json, or leave %s out",
        embedding_name, name);
}

fkv_status fkv_tensors_check(const fkv_config *c, const fkv_safetensors *weights, fkv_err *err)
{
    fkv_st_tensor found;
    fkv_status st = FKV_OK;
    for (int l = -1; l < c->n_layers; l++) { /* -1: what is of no layer */
        const int from = l < 0 ? 0 : FKV_TENSOR_ATTENTION_NORM,
                  to = l < 0 ? from + FKV_TENSOR_ATTENTION_NORM : FKV_N_TENSORS;
        for (int t = from; !st && t < to; t++)
            if (fkv_tensor_is_wanted(c, (fkv_tensor)t))
                st = fkv_tensor_get(c, weights, l, (fkv_tensor)t, &found, err);
    }
    return st ? st : check_tied(c, weights, err);
}

fkv_status fkv_tensors_open_dummy(const fkv_config *c, uint64_t seed, fkv_safetensors **out, fkv_err *err)
{
    int64_t matrix = 0, vector = 0;
    for (fkv_tensor t = 0; t < FKV_N_TENSORS; t++) {
        int64_t *most = fkv_tensor_is_matrix(t) ? &matrix : &vector, rows, cols, first;
        fkv_tensor_shape(c, t, &rows, &cols);
        const int64_t n = stored_rows(c, t, &first) * cols;
        if (fkv_tensor_is_wanted(c, t) && n > *most) *most = n;
    }
    return fkv_safetensors_open_dummy(seed, (size_t)matrix, (size_t)vector, out, err);
}

int64_t fkv_tensors_head_values(const fkv_config *c)
{
    int64_t sum = 0;
    for (fkv_tensor t = FKV_TENSOR_ATTENTION_NORM; t < FKV_N_TENSORS; t++)
        if (fkv_tensor_is_matrix(t) && tensors[t].sharing == FKV_SHARED_BY_HEAD) sum += values_of(c, t);
    return sum / c->n_kv_heads;
}

int64_t fkv_tensors_layer_values(const fkv_config *c)
{
    int64_t sum = 0;
    for (fkv_tensor t = FKV_TENSOR_ATTENTION_NORM; t < FKV_N_TENSORS; t++)
        if (fkv_tensor_is_matrix(t)) sum += values_of(c, t);
    return sum;
}

int64_t fkv_tensors_model_values(const fkv_config *c)
{
    return values_of(c, FKV_TENSOR_EMBEDDING) + values_of(c, FKV_TENSOR_OUTPUT) +
           c->n_layers * fkv_tensors_layer_values(c);
}
