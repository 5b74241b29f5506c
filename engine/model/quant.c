/* What config.json says of FP8 weights, and their scales: see quant.h. */
#include "engine/model/quant.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runner/base/float16.h"
#include "runner/base/json.h"
#include "runner/base/log.h"

enum { MAX_BLOCK = 1 << 20, USUAL_BLOCK = 128 };

typedef struct place {
    const char *path, *key; /* of the quantisation's object */
} place;

static fkv_status refuse(const place *at, fkv_err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static fkv_status refuse(const place *at, fkv_err *err, const char *fmt, ...)
{
    char what[160];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return fkv_fail_at(err, FKV_E_INPUT, at->path, 0, at->key,
                       "the weights are quantised (%s), which is not supported: take the model in bfloat16, "
                       "float16 or float32, or in FP8 (E4M3) as quant_method fp8 or compressed-tensors",
                       what);
}

/* [rows, columns], the same for all matrices that have blocks. */
static fkv_status read_block(const place *at, const json_t *v, fkv_quant *q, fkv_err *err)
{
    int64_t size[2];
    for (size_t i = 0; i < 2; i++) {
        const json_t *n = json_array_get(v, i);
        size[i] = json_integer_value(n);
        if (json_array_size(v) != 2 || !json_is_integer(n) || size[i] < 1 || size[i] > MAX_BLOCK)
            return refuse(at, err, "blocks that are not two sizes from 1 to %d", MAX_BLOCK);
    }
    if ((q->grains & FKV_SCALE_BLOCK) && (q->block_rows != size[0] || q->block_cols != size[1]))
        return refuse(at, err, "blocks of %lld x %lld beside others of %lld x %lld", (long long)q->block_rows,
                      (long long)q->block_cols, (long long)size[0], (long long)size[1]);
    q->grains |= FKV_SCALE_BLOCK;
    q->block_rows = size[0];
    q->block_cols = size[1];
    return FKV_OK;
}

/* Hugging Face's. Without weight_block_size HF takes blocks of 128 x 128, and vLLM, whose checkpoints were
 * there first, one scale a matrix: the scales' shapes tell. */
static fkv_status read_fp8(const place *at, const json_t *o, fkv_quant *q, bool *others, fkv_err *err)
{
    const char *scheme = NULL, *format = NULL;
    const json_t *block = json_object_get(o, "weight_block_size");
    fkv_status st = fkv_json_str_or_null(o, "activation_scheme", at->path, &scheme, err);
    if (!st) st = fkv_json_str_or_null(o, "fmt", at->path, &format, err);
    if (st) return st;
    if (format && strcmp(format, "e4m3") != 0) return refuse(at, err, "fp8, fmt %.40s", format);
    *others = *others || (scheme && !strcmp(scheme, "static"));
    q->inverse = true;
    if (block && !json_is_null(block)) return read_block(at, block, q, err);
    q->grains = FKV_SCALE_TENSOR;
    if (block) return FKV_OK;
    q->grains |= FKV_SCALE_BLOCK;
    q->block_rows = q->block_cols = USUAL_BLOCK;
    return FKV_OK;
}

/* A group's weights. */
static fkv_status read_group(const place *at, const json_t *w, fkv_quant *q, fkv_err *err)
{
    const char *type = NULL, *strategy = NULL;
    int64_t bits = 0;
    bool symmetric = true;
    fkv_status st;
    if ((st = fkv_json_i64(w, "num_bits", 1, 64, at->path, &bits, err)) ||
        (st = fkv_json_str_or_null(w, "type", at->path, &type, err)) ||
        (st = fkv_json_str_or_null(w, "strategy", at->path, &strategy, err)) ||
        (st = fkv_json_bool_or(w, "symmetric", true, at->path, &symmetric, err)))
        return st;
    if (!type) type = "int"; /* compressed-tensors' defaults */
    if (!strategy) strategy = "tensor";
    if (bits != 8 || strcmp(type, "float") != 0)
        return refuse(at, err, "compressed-tensors, weights of %lld bits, type %.40s", (long long)bits, type);
    if (!symmetric) return refuse(at, err, "compressed-tensors, weights that are not symmetric");
    if (!fkv_json_is_neutral(w, "actorder", NAN)) return refuse(at, err, "compressed-tensors, actorder");
    if (!strcmp(strategy, "tensor"))
        q->grains |= FKV_SCALE_TENSOR;
    else if (!strcmp(strategy, "channel"))
        q->grains |= FKV_SCALE_ROW;
    else if (!strcmp(strategy, "block"))
        return read_block(at, json_object_get(w, "block_structure"), q, err);
    else
        return refuse(at, err, "compressed-tensors, strategy %.40s", strategy);
    return FKV_OK;
}

/* Whether an object is there that says something. */
static bool is_said(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) && !(json_is_object(v) && json_object_size(v) == 0);
}

/* The format that quant_method compressed-tensors names, and its groups. naive-quantized is float-quantized's
 * former name, where the groups say float. */
static fkv_status read_compressed(const place *at, const json_t *o, fkv_quant *q, bool *others, fkv_err *err)
{
    json_t *groups = json_object_get(o, "config_groups"), *group;
    const json_t *sparse = json_object_get(o, "sparsity_config");
    const char *name, *format = NULL, *sparsity = json_string_value(json_object_get(sparse, "format"));
    fkv_status st = fkv_json_str_or_null(o, "format", at->path, &format, err);
    if (st) return st;
    if (!format || (strcmp(format, "float-quantized") != 0 && strcmp(format, "naive-quantized") != 0))
        return refuse(at, err, "compressed-tensors, format %.40s", format ? format : "unknown");
    if (is_said(o, "sparsity_config") && (!sparsity || strcmp(sparsity, "dense") != 0))
        return refuse(at, err, "compressed-tensors, sparsity_config");
    if (is_said(o, "transform_config")) return refuse(at, err, "compressed-tensors, transform_config");
    json_object_foreach(groups, name, group)
    {
        const json_t *weights = json_object_get(group, "weights"),
                     *dynamic = json_object_get(json_object_get(group, "input_activations"), "dynamic");
        const char *own = json_string_value(json_object_get(group, "format"));
        if (own && strcmp(own, format) != 0)
            return refuse(at, err, "compressed-tensors, format %.40s of %.40s", own, name);
        *others = *others || json_is_false(dynamic) || is_said(group, "output_activations");
        if (weights && !json_is_null(weights) && (st = read_group(at, weights, q, err))) return st;
    }
    if (!q->grains) return refuse(at, err, "compressed-tensors, config_groups of no weights");
    return FKV_OK;
}

fkv_status fkv_quant_read(const json_t *config, const json_t *text, const char *path, fkv_quant *out,
                          fkv_err *err)
{
    static const char *const keys[] = {"quantization_config", "compression_config"};
    const json_t *found = NULL;
    place at = {.path = path};
    bool others = false;
    fkv_quant q = {0};
    *out = q;
    for (size_t i = 0; i < 4; i++) {
        const json_t *in = i < 2 ? config : text, *o = json_object_get(in, keys[i % 2]);
        if (fkv_json_is_neutral(in, keys[i % 2], NAN) || (found && json_equal(found, o))) continue;
        at.key = keys[i % 2];
        if (found) return refuse(&at, err, "by two objects that are not the same");
        found = o;
    }
    if (!found) return FKV_OK;
    const char *method = json_string_value(json_object_get(found, "quant_method"));
    fkv_status st;
    if (method && !strcmp(method, "fp8"))
        st = read_fp8(&at, found, &q, &others, err);
    else if (method && !strcmp(method, "compressed-tensors"))
        st = read_compressed(&at, found, &q, &others, err);
    else
        return refuse(&at, err, "%.40s", method ? method : "no quant_method is stated");
    if (st) return st;
    if (others || is_said(found, "kv_cache_scheme"))
        fkv_log("%s: %s: the weights' scales are applied alone: stored scales of activations and of the KV "
                "cache are not",
                path, at.key);
    *out = q;
    return FKV_OK;
}

/* Scale i. */
static float scale_at(const fkv_st_tensor *s, int64_t i)
{
    uint16_t h;
    float f;
    if (s->dtype == FKV_ST_F32) {
        memcpy(&f, (const char *)s->data + 4 * i, sizeof f);
        return f;
    }
    memcpy(&h, (const char *)s->data + 2 * i, sizeof h);
    return s->dtype == FKV_ST_BF16 ? fkv_f32_from_bf16(h) : fkv_f32_from_f16(h);
}

static int64_t blocks(int64_t n, int64_t size)
{
    return n / size + (n % size != 0);
}

/* By the scales' shape, one that the config lets them have. */
static fkv_status match_shape(const fkv_quant *q, const fkv_st_tensor *t, const fkv_st_tensor *s,
                              fkv_st_scales *out, fkv_err *err)
{
    const int64_t rows = t->shape[0], cols = t->shape[1], n_rows = s->n_dims ? s->shape[0] : 1,
                  n_cols = s->n_dims > 1 ? s->shape[1] : 1;
    const int64_t down = q->block_rows ? blocks(rows, q->block_rows) : 0,
                  across = q->block_cols ? blocks(cols, q->block_cols) : 0;
    *out = (fkv_st_scales){.data = s->data, .dtype = s->dtype, .stride = n_cols};
    out->block_rows = rows;
    out->block_cols = cols;
    if (s->n_dims <= 2) {
        if ((q->grains & FKV_SCALE_TENSOR) && n_rows == 1 && n_cols == 1) return FKV_OK;
        out->block_rows = 1;
        if ((q->grains & FKV_SCALE_ROW) && n_rows == rows && n_cols == 1) return FKV_OK;
        out->block_rows = q->block_rows;
        out->block_cols = q->block_cols;
        if ((q->grains & FKV_SCALE_BLOCK) && s->n_dims == 2 && n_rows == down && n_cols == across)
            return FKV_OK;
    }
    char got[192], want[128] = "", block[64] = "";
    fkv_st_put_shape(got, sizeof got, s->shape, s->n_dims);
    snprintf(block, sizeof block, " or [%lld x %lld]", (long long)down, (long long)across);
    snprintf(want, sizeof want, "%s%s%s", q->grains & FKV_SCALE_TENSOR ? " or [1]" : "",
             q->grains & FKV_SCALE_ROW ? " or [rows x 1]" : "", q->grains & FKV_SCALE_BLOCK ? block : "");
    return fkv_fail_at(err, FKV_E_INPUT, s->file, 0, s->name,
                       "its shape is [%s], the scales of a matrix [%lld x %lld] are %s by config.json", got,
                       (long long)rows, (long long)cols, want + strlen(" or "));
}

fkv_status fkv_quant_find_scales(const fkv_quant *q, const fkv_safetensors *weights, fkv_st_tensor *t,
                                 fkv_err *err)
{
    const bool wanted = t->dtype == FKV_ST_F8_E4M3;
    char name[192], other[192];
    fkv_st_tensor s;
    snprintf(name, sizeof name, "%s%s", t->name, q->inverse ? "_scale_inv" : "_scale");
    snprintf(other, sizeof other, "%s_scale", t->name);
    if (!wanted && !q->grains) return FKV_OK;
    if (!q->grains)
        return fkv_fail_at(err, FKV_E_INPUT, t->file, 0, t->name,
                           "its dtype is F8_E4M3, but no quantization_config in config.json says so");
    if (wanted && t->n_dims != 2)
        return fkv_fail_at(err, FKV_E_INPUT, t->file, 0, t->name,
                           "its dtype is F8_E4M3, which only matrices may have");
    const bool found = fkv_safetensors_find(weights, name, &s) || fkv_safetensors_find(weights, other, &s);
    if (!wanted && found)
        return fkv_fail_at(err, FKV_E_INPUT, s.file, 0, s.name,
                           "are scales of a tensor that is not quantised: its dtype is %s", t->dtype_name);
    if (!wanted) return FKV_OK;
    if (!found)
        return fkv_fail_at(err, FKV_E_INPUT, t->file, 0, name, "these scales of %s are missing", t->name);
    if (s.dtype != FKV_ST_F32 && s.dtype != FKV_ST_BF16 && s.dtype != FKV_ST_F16)
        return fkv_fail_at(err, FKV_E_INPUT, s.file, 0, s.name,
                           "its dtype %s is not supported for scales (BF16, F16 and F32 are)", s.dtype_name);
    const fkv_status st = match_shape(q, t, &s, &t->scales, err);
    if (st) return st;
    const int64_t n = (int64_t)s.n_bytes / (s.dtype == FKV_ST_F32 ? 4 : 2);
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(scale_at(&s, i)))
            return fkv_fail_at(err, FKV_E_INPUT, s.file, 0, s.name, "scale %lld is not a finite number",
                               (long long)i);
    return FKV_OK;
}
