/* Reads a model's shape from config.json: see config.h.
 *
 * Whatever could change the arithmetic is looked at and refused by its name
 * unless it holds the value that leaves the Llama arithmetic as it is. Owns
 * nothing beyond a call. Not for weights: their shapes are checked where they
 * are loaded.
 */
#include "engine/model/config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

enum {
    MAX_CONFIG_BYTES = 1 << 20,
    MAX_LAYERS = FKV_MAX_LAYERS,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 256,
    MAX_HIDDEN = 1 << 17,
    MAX_INTERMEDIATE = 1 << 20,
    MAX_VOCAB = 1 << 24,
    MAX_POSITIONS = 1 << 27,
};

/* Keys by which related models change the arithmetic, and the number that
 * leaves it as it is (NAN: there is none). */
static const struct {
    const char *key;
    double neutral;
} foreign_keys[] = {
    {"transformers_weights", NAN},
    {"attention_bias", NAN},
    {"mlp_bias", NAN},
    {"qkv_bias", NAN},
    {"use_bias", NAN},
    {"rotary_pct", 1},
    {"rope_interleaved", NAN},
    {"no_rope_layers", NAN},
    {"alibi", NAN},
    {"qk_norm", NAN},
    {"use_qk_norm", NAN},
    {"qk_layernorm", NAN},
    {"clip_qkv", NAN},
    {"attention_multiplier", NAN},
    {"residual_multiplier", 1},
    {"embedding_multiplier", 1},
    {"logits_scaling", 1},
    {"logit_scale", 1},
    {"scale_emb", 1},
    {"scale_depth", NAN},
    {"dim_model_base", NAN},
    {"attention_chunk_size", NAN},
    {"use_bidirectional_attention", NAN},
    {"num_experts", NAN},
    {"num_local_experts", NAN},
    {"n_routed_experts", NAN},
};

static bool is_one_of(const char *text, const char *const *list, size_t n)
{
    for (size_t i = 0; text && i < n; i++)
        if (!strcmp(text, list[i])) return true;
    return false;
}

static fkv_status refuse(fkv_err *err, const char *path, const char *key, const char *why)
{
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "%s", why);
}

/* fallback: where o does not say it; 0: it must. */
static fkv_status read_dim(const json_t *o, const char *key, int64_t hi, int fallback, const char *path,
                           int *out, fkv_err *err)
{
    int64_t v = 0;
    const fkv_status st = fallback ? fkv_json_i64_or(o, key, 1, hi, fallback, path, &v, err)
                                   : fkv_json_i64(o, key, 1, hi, path, &v, err);
    if (!st) *out = (int)v;
    return st;
}

/* The family that the file names, all of whose names must be known ones. */
static fkv_status find_family(const json_t *o, const char *path, const fkv_family **family, fkv_err *err)
{
    const json_t *list = json_object_get(o, "architectures");
    const char *type = NULL, *name = NULL;
    char known[256];
    fkv_status st = fkv_json_str_or_null(o, "model_type", path, &type, err);
    if (st) return st;
    if (list && !json_is_null(list)) {
        const size_t n = json_array_size(list); /* 0: not an array, too */
        if (!n) return refuse(err, path, "architectures", "must be a list of names");
        fkv_family_names(false, known, sizeof known);
        for (size_t i = 0; i < n; i++) {
            name = json_string_value(json_array_get(list, i));
            if (!(*family = fkv_family_find(name, NULL)))
                return fkv_fail_at(err, FKV_E_INPUT, path, 0, "architectures",
                                   "%.80s is not supported (%s are)",
                                   name ? name : "a value that is not a string", known);
        }
    } else if (!type) {
        return refuse(err, path, "architectures", "is missing");
    }
    if (!type) return FKV_OK;
    fkv_family_names(true, known, sizeof known);
    if (!(*family = fkv_family_find(NULL, type)))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "model_type", "%.80s is not supported (%s are)", type,
                           known);
    return FKV_OK;
}

/* Keys that one family reads and others must not have. */
static const char *const gemma_keys[] = {"query_pre_attn_scalar", "attn_logit_softcapping",
                                         "final_logit_softcapping"};

static fkv_status check_foreign_keys(const json_t *o, const char *path, const fkv_family *family,
                                     fkv_err *err)
{
    static const char why[] = "is set; it changes the model's arithmetic and is not supported";
    for (size_t i = 0; i < sizeof foreign_keys / sizeof *foreign_keys; i++)
        if (!fkv_json_is_neutral(o, foreign_keys[i].key, foreign_keys[i].neutral))
            return refuse(err, path, foreign_keys[i].key, why);
    for (size_t i = 0; !family->gemma && i < sizeof gemma_keys / sizeof *gemma_keys; i++)
        if (!fkv_json_is_neutral(o, gemma_keys[i], NAN)) return refuse(err, path, gemma_keys[i], why);
    return FKV_OK;
}

static fkv_status read_gemma(const json_t *o, const char *path, fkv_config *c, fkv_err *err)
{
    double caps[2] = {0};
    fkv_status st;
    if (!c->family->gemma) return FKV_OK;
    if ((st = fkv_json_f64_or(o, "query_pre_attn_scalar", 1e-3, 1e6, 256, path, &c->query_scalar, err)) ||
        (st = fkv_json_f64_or(o, "attn_logit_softcapping", 1e-3, 1e6, 0, path, &caps[0], err)) ||
        (st = fkv_json_f64_or(o, "final_logit_softcapping", 1e-3, 1e6, 0, path, &caps[1], err)))
        return st;
    c->attention_softcap = (float)caps[0];
    c->logit_softcap = (float)caps[1];
    return FKV_OK;
}

static fkv_status read_ropes(const json_t *o, const char *path, fkv_config *c, fkv_err *err)
{
    const fkv_family *f = c->family;
    const bool two = f->local_theta > 0;
    fkv_rope_place place = {.path = path,
                            .positions = c->max_positions,
                            .head_dim = c->head_dim,
                            .phi = f->phi_rope,
                            .layer_type = two ? "full_attention" : NULL,
                            .theta_key = "rope_theta",
                            .theta = f->theta > 0 ? f->theta : 10000};
    const fkv_status st = fkv_rope_read(o, &place, &c->rope, err);
    if (st || !two) return st;
    place.layer_type = "sliding_attention";
    place.theta_key = "rope_local_base_freq";
    place.theta = f->local_theta;
    return fkv_rope_read(o, &place, &c->local_rope, err);
}

/* The names that config files have for an activation, the usual one first. */
static const char *const activation_names[][2] = {
    [FKV_ACTIVATION_SILU] = {"silu", "swish"},
    [FKV_ACTIVATION_GELU_TANH] = {"gelu_pytorch_tanh", "gelu_new"}};

static fkv_status check_activation(const json_t *o, const char *path, const fkv_family *family, fkv_err *err)
{
    static const char *const keys[] = {"hidden_act", "hidden_activation"};
    const char *const *names = activation_names[family->activation];
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < 2; i++) {
        const char *act = NULL;
        st = fkv_json_str_or_null(o, keys[i], path, &act, err);
        if (!st && act && !is_one_of(act, names, 2))
            st = fkv_fail_at(err, FKV_E_INPUT, path, 0, keys[i], "%.80s is not supported (%s is)", act,
                             names[0]);
    }
    return st;
}

/* Weights are read by the dtype that their file states; these keys only have
 * to be something that needs no scales: of those quant.h reads. */
static fkv_status check_dtype(const json_t *o, const char *path, fkv_err *err)
{
    static const char *const keys[] = {"dtype", "torch_dtype"};
    static const char *const known[] = {"bfloat16", "float16", "float32", "auto"};
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < 2; i++) {
        const char *dtype = NULL;
        st = fkv_json_str_or_null(o, keys[i], path, &dtype, err);
        if (st || !dtype) continue;
        if (!strncmp(dtype, "torch.", 6)) dtype += 6;
        if (!is_one_of(dtype, known, sizeof known / sizeof *known))
            st = fkv_fail_at(err, FKV_E_INPUT, path, 0, keys[i],
                             "%.80s is not supported (bfloat16, float16 and float32 are)", dtype);
    }
    return st;
}

/* The window's size; 0: none. One that reaches over all positions, or that a flag switches off where the
 * family looks at the flag, hides nothing. A config without the key means the family's default. */
static fkv_status read_window(const json_t *o, const char *path, fkv_config *c, fkv_err *err)
{
    const fkv_family *f = c->family;
    const json_t *v = json_object_get(o, "sliding_window");
    bool use = true;
    fkv_status st =
        fkv_json_bool_or(o, "use_sliding_window", f->window_flag != FKV_WINDOW_IF_TRUE, path, &use, err);
    c->window = 0;
    if (st || (f->window_flag != FKV_WINDOW_WITHOUT && !use) || json_is_null(v) || json_is_false(v))
        return st;
    if (v && (!json_is_integer(v) || json_integer_value(v) < 1))
        return refuse(err, path, "sliding_window", "must be an integer from 1 or null");
    const int64_t window = v ? json_integer_value(v) : f->default_window;
    if (window < c->max_positions) c->window = (int)window;
    if (c->window && f->window_layers == FKV_WINDOW_LAYERS_NONE)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "sliding_window",
                           "%lld: sliding windows are not supported for this model type", (long long)window);
    return FKV_OK;
}

static void set_windowed(fkv_config *c, int layer)
{
    c->windowed[layer / 8] |= (uint8_t)(1 << layer % 8);
}

/* Which layers have the window. */
static fkv_status read_window_layers(const json_t *o, const char *path, fkv_config *c, fkv_err *err)
{
    const fkv_family *f = c->family;
    const json_t *types = json_object_get(o, "layer_types");
    int64_t from = 0, every = 0;
    fkv_status st =
        fkv_json_i64_or(o, "max_window_layers", 0, MAX_LAYERS,
                        f->default_window_from ? f->default_window_from : c->n_layers, path, &from, err);
    if (!st)
        st = fkv_json_i64_or(o, "sliding_window_pattern", 1, MAX_LAYERS, f->full_every ? f->full_every : 1,
                             path, &every, err);
    if (st) return st;
    if (types && !json_is_null(types) && json_array_size(types) != (size_t)c->n_layers)
        return refuse(err, path, "layer_types", "must be a list of as many types as there are layers");
    for (int l = 0; l < c->n_layers; l++) {
        const char *type = json_string_value(json_array_get(types, (size_t)l));
        bool slides = f->window_layers == FKV_WINDOW_LAYERS_ALL ||
                      (f->window_layers == FKV_WINDOW_LAYERS_FROM && l >= from) ||
                      (f->window_layers == FKV_WINDOW_LAYERS_BUT && (l + 1) % every != 0);
        if (type) slides = !strcmp(type, "sliding_attention");
        if (json_array_size(types) && (!type || (!slides && strcmp(type, "full_attention") != 0)))
            return refuse(err, path, "layer_types",
                          "holds something other than full_attention and sliding_attention, which is not "
                          "supported");
        if (slides && type && f->window_layers == FKV_WINDOW_LAYERS_NONE)
            return refuse(err, path, "layer_types",
                          "holds sliding_attention: sliding windows are not supported for this model type");
        if (slides) set_windowed(c, l);
    }
    return FKV_OK;
}

/* tied: where o does not say it. */
static fkv_status read_shape(const json_t *o, bool tied, const char *path, fkv_config *c, fkv_err *err)
{
    fkv_status st;
    int64_t v = 0;
    const fkv_family_sizes *sizes = &c->family->sizes;
    if ((st = read_dim(o, "num_hidden_layers", MAX_LAYERS, 0, path, &c->n_layers, err)) ||
        (st = read_dim(o, "hidden_size", MAX_HIDDEN, 0, path, &c->hidden, err)) ||
        (st = read_dim(o, "intermediate_size", MAX_INTERMEDIATE, 0, path, &c->intermediate, err)) ||
        (st = read_dim(o, "vocab_size", MAX_VOCAB, sizes->vocab, path, &c->vocab, err)) ||
        (st = read_dim(o, "max_position_embeddings", MAX_POSITIONS, sizes->positions, path, &c->max_positions,
                       err)) ||
        (st = read_dim(o, "num_attention_heads", MAX_HEADS, sizes->heads, path, &c->n_heads, err)))
        return st;

    /* Null always means one KV head per head; absent does only for some. */
    const bool says_kv_heads = json_object_get(o, "num_key_value_heads") != NULL;
    if (c->family->must_say_kv_heads && !sizes->kv_heads && !says_kv_heads)
        return refuse(err, path, "num_key_value_heads", "is missing");
    const int64_t kv_heads = says_kv_heads || !sizes->kv_heads ? c->n_heads : sizes->kv_heads;
    if ((st = fkv_json_i64_or(o, "num_key_value_heads", 1, MAX_HEADS, kv_heads, path, &v, err))) return st;
    c->n_kv_heads = (int)v;
    if (c->n_heads % c->n_kv_heads)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "num_key_value_heads",
                           "num_attention_heads %d is not a multiple of %d", c->n_heads, c->n_kv_heads);
    c->group = c->n_heads / c->n_kv_heads;

    if ((st = fkv_json_i64_or(o, "head_dim", 1, MAX_HEAD_DIM, 0, path, &v, err))) return st;
    if (!v) v = c->family->default_head_dim;
    if (!v) {
        if (c->hidden % c->n_heads)
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, "head_dim",
                               "is missing, and hidden_size %d is not a multiple of num_attention_heads %d",
                               c->hidden, c->n_heads);
        v = c->hidden / c->n_heads;
    }
    if (v % 8 || v > MAX_HEAD_DIM)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "head_dim",
                           "%lld is not supported (multiples of 8 up to %d are)", (long long)v, MAX_HEAD_DIM);
    c->head_dim = (int)v;

    double eps = 0;
    if ((st = fkv_json_f64_or(o, "rms_norm_eps", 1e-30, 1, 1e-6, path, &eps, err))) return st;
    c->rms_eps = (float)eps;
    return fkv_json_bool_or(o, "tie_word_embeddings", tied, path, &c->tied, err);
}

static fkv_status add_eos(const json_t *v, const char *path, fkv_config *c, fkv_err *err)
{
    if (!json_is_integer(v)) return refuse(err, path, "eos_token_id", "must be an id or a list of ids");
    const json_int_t id = json_integer_value(v);
    if (id < 0 || id >= c->vocab)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "eos_token_id", "%lld is outside the vocabulary of %d",
                           (long long)id, c->vocab);
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == (int32_t)id) return FKV_OK;
    if (c->n_eos == FKV_MAX_EOS)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "eos_token_id", "more than %d ids", FKV_MAX_EOS);
    c->eos[c->n_eos++] = (int32_t)id;
    return FKV_OK;
}

static fkv_status read_eos(const json_t *o, const char *path, fkv_config *c, fkv_err *err)
{
    const json_t *v = json_object_get(o, "eos_token_id");
    fkv_status st = FKV_OK;
    if (!v || json_is_null(v)) return FKV_OK;
    if (!json_is_array(v)) return add_eos(v, path, c, err);
    for (size_t i = 0; !st && i < json_array_size(v); i++) st = add_eos(json_array_get(v, i), path, c, err);
    return st;
}

static fkv_status load_object(const char *path, json_t **out, fkv_err *err)
{
    fkv_status st = fkv_json_load(path, MAX_CONFIG_BYTES, out, err);
    if (!st && !json_is_object(*out)) st = refuse(err, path, NULL, "must hold a JSON object");
    return st;
}

/* The object that describes the text model. */
static fkv_status find_text(const json_t *o, const char *path, const fkv_family *family, const json_t **text,
                            fkv_err *err)
{
    *text = family->inner ? json_object_get(o, family->inner) : o;
    return json_is_object(*text) ? FKV_OK : refuse(err, path, family->inner, "must be an object");
}

/* Soft caps of a config that does not mention them: null means none. */
static void set_default_softcaps(const json_t *o, fkv_config *c)
{
    if (!json_object_get(o, "attn_logit_softcapping"))
        c->attention_softcap = (float)c->family->default_attention_softcap;
    if (!json_object_get(o, "final_logit_softcapping"))
        c->logit_softcap = (float)c->family->default_logit_softcap;
}

/* Keys that say how far a model reaches, beside max_position_embeddings.
 *
 * max_sequence_length: Vicuna's, of the positions with its linear rope, while max_position_embeddings are
 * those without. dual_chunk_attention_config: Qwen2.5-1M's, of an attention (arXiv 2402.17463) that HF
 * transformers does not know; a text of one chunk has plain attention in it, so that far the model goes. */
static fkv_status read_reach(const json_t *o, const char *path, fkv_config *c, fkv_err *err)
{
    static const char dual[] = "dual_chunk_attention_config";
    const json_t *chunks = json_object_get(o, dual);
    int64_t length = 0, chunk = 0, local = 0;
    fkv_status st = fkv_json_i64_or(o, "max_sequence_length", 1, MAX_POSITIONS, 0, path, &length, err);
    if (!st && c->rope.type == FKV_ROPE_LINEAR && length > c->max_positions) c->max_positions = (int)length;
    if (st || !chunks || json_is_null(chunks)) return st;
    if (!json_is_object(chunks)) return refuse(err, path, dual, "must be an object");
    if ((st = fkv_json_i64(chunks, "chunk_size", 1, MAX_POSITIONS, path, &chunk, err)) ||
        (st = fkv_json_i64(chunks, "local_size", 0, MAX_POSITIONS, path, &local, err)))
        return st;
    if (local >= chunk) return refuse(err, path, dual, "its local_size must be below its chunk_size");
    if (chunk - local >= c->max_positions) return FKV_OK;
    fkv_log("%s: %s is not supported beyond a chunk: %lld positions of %d are used", path, dual,
            (long long)(chunk - local), c->max_positions);
    c->max_positions = (int)(chunk - local);
    return FKV_OK;
}

static fkv_status read_text(const json_t *o, const json_t *text, const char *path, fkv_config *c,
                            fkv_err *err)
{
    fkv_status st;
    bool outer = false;
    if ((st = fkv_quant_read(o, text, path, &c->quant, err)) ||
        (st = check_foreign_keys(text, path, c->family, err)) ||
        (st = check_activation(text, path, c->family, err)) || (st = check_dtype(o, path, err)) ||
        (st = check_dtype(text, path, err)) ||
        (st = fkv_json_bool_or(o, "tie_word_embeddings", c->family->tied, path, &outer, err)) ||
        (st = read_shape(text, outer, path, c, err)) || (st = read_window(text, path, c, err)) ||
        (st = read_window_layers(text, path, c, err)) || (st = read_ropes(text, path, c, err)) ||
        (st = read_gemma(text, path, c, err)))
        return st;
    set_default_softcaps(text, c);
    /* Models are published with the positions of training, and the key that stretches them to be added. */
    const double stretched = c->rope.factor * c->rope.original_positions;
    if (c->rope.type == FKV_ROPE_YARN && stretched > c->max_positions && stretched <= MAX_POSITIONS)
        c->max_positions = (int)stretched;
    return read_reach(text, path, c, err);
}

fkv_status fkv_config_read_as(const fkv_family *family, const char *dir, fkv_config *config, fkv_err *err)
{
    fkv_status st;
    json_t *o = NULL, *generation = NULL;
    const json_t *text;
    fkv_config c = {.family = family};
    char *path = fkv_path_join(dir, "config.json"), *gen_path = fkv_path_join(dir, "generation_config.json");
    if (!path || !gen_path) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if ((st = load_object(path, &o, err)) || (!family && (st = find_family(o, path, &c.family, err))) ||
        (st = find_text(o, path, c.family, &text, err)) || (st = read_text(o, text, path, &c, err)))
        goto out;
    if (fkv_file_exists(gen_path) &&
        ((st = load_object(gen_path, &generation, err)) || (st = read_eos(generation, gen_path, &c, err))))
        goto out;
    if (!c.n_eos) st = read_eos(o, path, &c, err);
    if (!st && !c.n_eos && text != o) st = read_eos(text, path, &c, err);
out:
    if (!st) *config = c;
    json_decref(generation);
    json_decref(o);
    free(gen_path);
    free(path);
    return st;
}

fkv_status fkv_config_read(const char *dir, fkv_config *config, fkv_err *err)
{
    return fkv_config_read_as(NULL, dir, config, err);
}

const fkv_family *fkv_config_family(const fkv_config *c)
{
    return c->family ? c->family : fkv_family_find("LlamaForCausalLM", NULL);
}

int fkv_config_window(const fkv_config *c, int layer)
{
    return c->windowed[layer / 8] >> layer % 8 & 1 ? c->window : 0;
}

static bool has_local_rope(const fkv_config *c)
{
    return fkv_config_family(c)->local_theta > 0;
}

int fkv_config_n_ropes(const fkv_config *c)
{
    return has_local_rope(c) || c->rope.type == FKV_ROPE_LONGROPE ? 2 : 1;
}

void fkv_config_rope_frequencies(const fkv_config *c, float *inv_freq, float *scale)
{
    const int half = c->head_dim / 2;
    fkv_rope_frequencies(&c->rope, c->head_dim, false, inv_freq, scale);
    if (fkv_config_n_ropes(c) == 1) return;
    fkv_rope_frequencies(has_local_rope(c) ? &c->local_rope : &c->rope, c->head_dim, true, inv_freq + half,
                         scale + half);
}

int fkv_config_record_rope(const fkv_config *c, int64_t n_prompt, int64_t max_new)
{
    return fkv_rope_is_long(&c->rope, n_prompt, max_new);
}

fkv_attention_spec *fkv_config_layers(const fkv_config *c)
{
    const fkv_family *f = fkv_config_family(c);
    fkv_attention_spec *specs = fkv_calloc((size_t)c->n_layers, sizeof *specs);
    for (int l = 0; specs && l < c->n_layers; l++) {
        /* whether its queries see all or not, such a layer has the rope of its kind */
        const bool local = has_local_rope(c) && c->windowed[l / 8] >> l % 8 & 1;
        specs[l] = (fkv_attention_spec){.n_kv_heads = c->n_kv_heads,
                                        .group = c->group,
                                        .head_dim = c->head_dim,
                                        .rope = local,
                                        .window = fkv_config_window(c, l),
                                        .scale = c->query_scalar > 0 ? (float)(1 / sqrt(c->query_scalar))
                                                                     : fkv_attention_scale(c->head_dim),
                                        .softcap = c->attention_softcap,
                                        .qkv_bias = f->qkv_bias,
                                        .qk_norm = f->qk_norm};
    }
    return specs;
}
