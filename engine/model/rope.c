/* Rotary position embeddings: see rope.h. */
#include "engine/model/rope.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runner/base/json.h"

enum { MAX_POSITIONS = 1 << 27 };
static const double pi = 3.141592653589793238462643;

static fkv_status refuse(fkv_err *err, const char *path, const char *key, const char *why)
{
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "%s", why);
}

/* Like fkv_json_f64_or, but a missing value is an error. */
static fkv_status read_f64(const json_t *o, const char *key, double lo, double hi, const char *path,
                           double *out, fkv_err *err)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v)) return refuse(err, path, key, "is missing");
    return fkv_json_f64_or(o, key, lo, hi, 0, path, out, err);
}

static fkv_status read_original(const json_t *rope, const char *path, int64_t fallback, int *out,
                                fkv_err *err)
{
    int64_t v = 0;
    const char *key = "original_max_position_embeddings";
    const fkv_status st = fallback ? fkv_json_i64_or(rope, key, 1, MAX_POSITIONS, fallback, path, &v, err)
                                   : fkv_json_i64(rope, key, 1, MAX_POSITIONS, path, &v, err);
    if (!st) *out = (int)v;
    return st;
}

/* A number that may stand in o and in its object about RoPE; 0: in neither. */
static fkv_status read_twice(const json_t *o, const json_t *rope, const char *outer_key, const char *key,
                             double lo, double hi, const char *path, double *out, fkv_err *err)
{
    double outer = 0, inner = 0;
    fkv_status st = fkv_json_f64_or(o, outer_key, lo, hi, 0, path, &outer, err);
    if (!st) st = fkv_json_f64_or(rope, key, lo, hi, 0, path, &inner, err);
    if (st) return st;
    if (outer > 0 && inner > 0 && (outer < inner || inner < outer))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, outer_key, "is given twice, as %g and as %g", outer,
                           inner);
    *out = inner > 0 ? inner : outer;
    return FKV_OK;
}

/* rope_parameters with an object for each type of layer: that of the place. */
static fkv_status nested_object(const json_t *v, const fkv_rope_place *p, const json_t **out, fkv_err *err)
{
    static const char *const types[] = {"full_attention", "sliding_attention"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)v, key, value)
    {
        if (strcmp(key, types[0]) != 0 && strcmp(key, types[1]) != 0)
            return fkv_fail_at(err, FKV_E_INPUT, p->path, 0, "rope_parameters",
                               "%.80s is not supported (full_attention and sliding_attention are)", key);
        if (!json_is_object(value) && !json_is_null(value))
            return refuse(err, p->path, key, "must be an object");
    }
    *out = json_object_get(v, p->layer_type);
    if (json_is_null(*out)) *out = NULL;
    return FKV_OK;
}

/* The object that describes RoPE: rope_parameters (new form) or rope_scaling
 * (old form), NULL when there is neither. *name is its key. */
static fkv_status rope_object(const json_t *o, const fkv_rope_place *p, const char **name, const json_t **out,
                              fkv_err *err)
{
    static const char *const names[] = {"rope_parameters", "rope_scaling"};
    *out = NULL;
    *name = names[0];
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(o, names[i]);
        if (!v || json_is_null(v)) continue;
        if (!json_is_object(v)) return refuse(err, p->path, names[i], "must be an object");
        if (p->layer_type && i == 0) {
            const fkv_status st = nested_object(v, p, &v, err);
            if (st) return st;
            if (!v) continue;
        }
        if (p->layer_type && i == 1 && strcmp(p->layer_type, "full_attention") != 0) continue;
        if (*out && !json_equal(*out, v))
            return refuse(err, p->path, names[i], "contradicts rope_parameters beside it");
        if (!*out) *name = names[i];
        if (!*out) *out = v;
    }
    return FKV_OK;
}

static fkv_status check_keys(const json_t *rope, const char *path, const char *name, fkv_err *err)
{
    static const char *const known[] = {"rope_theta",
                                        "rope_type",
                                        "type",
                                        "factor",
                                        "low_freq_factor",
                                        "high_freq_factor",
                                        "attention_factor",
                                        "original_max_position_embeddings",
                                        "truncate",
                                        "partial_rotary_factor",
                                        "beta_fast",
                                        "beta_slow",
                                        "short_factor",
                                        "long_factor",
                                        "mscale",
                                        "mscale_all_dim"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)rope, key, value)
    {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) found = found || !strcmp(key, known[i]);
        if (!found) return fkv_fail_at(err, FKV_E_INPUT, path, 0, name, "%.80s is not supported", key);
    }
    return FKV_OK;
}

static fkv_status read_llama3(const json_t *rope, const char *path, fkv_rope *r, fkv_err *err)
{
    fkv_status st;
    if ((st = read_f64(rope, "factor", 1, 1e6, path, &r->factor, err)) ||
        (st = read_f64(rope, "low_freq_factor", 1e-6, 1e6, path, &r->low_freq, err)) ||
        (st = read_f64(rope, "high_freq_factor", 1e-6, 1e6, path, &r->high_freq, err)) ||
        (st = read_original(rope, path, 0, &r->original_positions, err)))
        return st;
    if (r->low_freq >= r->high_freq)
        return refuse(err, path, "high_freq_factor", "must be greater than low_freq_factor");
    return FKV_OK;
}

/* 0.1 m ln(factor) + 1, as the paper has it for m = 1 (arXiv 2309.00071). */
static double mscale_of(double factor, double m)
{
    return factor <= 1 ? 1 : 0.1 * m * log(factor) + 1;
}

static fkv_status read_yarn(const json_t *rope, const char *path, int positions, fkv_rope *r, fkv_err *err)
{
    fkv_status st;
    double mscale = 0, mscale_all = 0;
    if ((st = read_original(rope, path, positions, &r->original_positions, err)) ||
        (st = fkv_json_f64_or(rope, "factor", 1, 1e6, (double)positions / r->original_positions, path,
                              &r->factor, err)) ||
        (st = fkv_json_f64_or(rope, "beta_fast", 1e-6, 1e6, 32, path, &r->beta_fast, err)) ||
        (st = fkv_json_f64_or(rope, "beta_slow", 1e-6, 1e6, 1, path, &r->beta_slow, err)) ||
        (st = fkv_json_f64_or(rope, "mscale", 0, 1e3, 0, path, &mscale, err)) ||
        (st = fkv_json_f64_or(rope, "mscale_all_dim", 0, 1e3, 0, path, &mscale_all, err)) ||
        (st = fkv_json_f64_or(rope, "attention_factor", 1e-3, 1e3, 0, path, &r->attention_factor, err)) ||
        (st = fkv_json_bool_or(rope, "truncate", true, path, &r->truncate, err)))
        return st;
    if (r->attention_factor > 0) return FKV_OK;
    r->attention_factor = mscale > 0 && mscale_all > 0
                              ? mscale_of(r->factor, mscale) / mscale_of(r->factor, mscale_all)
                              : mscale_of(r->factor, 1);
    return FKV_OK;
}

/* A list of the factors of all pairs that turn. */
static fkv_status read_factors(const json_t *rope, const char *key, const fkv_rope *r, const char *path,
                               float *out, fkv_err *err)
{
    const json_t *v = json_object_get(rope, key);
    const size_t n = (size_t)r->rotary_dim / 2;
    if (!v || json_is_null(v)) return refuse(err, path, key, "is missing");
    if (!json_is_array(v) || json_array_size(v) != n)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, key,
                           "must be a list of %zu numbers, half of the %d dimensions that turn", n,
                           r->rotary_dim);
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(v, i);
        const double f = json_number_value(x);
        if (!json_is_number(x) || !(f >= 1e-6 && f <= 1e6))
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "number %zu must be from 1e-6 to 1e6", i + 1);
        out[i] = (float)f;
    }
    return FKV_OK;
}

/* Of longrope: HF's Phi-3 reads them beside the object alone, and takes a number of its own where they are
 * not there; the one inside, too, is read here. */
static fkv_status read_trained(const json_t *o, const json_t *rope, const char *path, int *out, fkv_err *err)
{
    enum { PHI_POSITIONS = 4096 };
    static const char key[] = "original_max_position_embeddings";
    int64_t outer = 0, inner = 0;
    fkv_status st = fkv_json_i64_or(o, key, 2, MAX_POSITIONS, 0, path, &outer, err);
    if (!st) st = fkv_json_i64_or(rope, key, 2, MAX_POSITIONS, outer, path, &inner, err);
    if (st) return st;
    if (outer && inner != outer)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "is given twice, as %lld and as %lld",
                           (long long)outer, (long long)inner);
    *out = inner ? (int)inner : PHI_POSITIONS;
    return FKV_OK;
}

static fkv_status read_longrope(const json_t *o, const json_t *rope, const fkv_rope_place *p, fkv_rope *r,
                                fkv_err *err)
{
    const char *path = p->path;
    double factor = 0;
    fkv_status st = read_trained(o, rope, path, &r->original_positions, err);
    if (st ||
        (st = fkv_json_f64_or(rope, "factor", 1e-6, 1e6, (double)p->positions / r->original_positions, path,
                              &factor, err)) ||
        (st = fkv_json_f64_or(rope, "attention_factor", 1e-3, 1e3, 0, path, &r->attention_factor, err)) ||
        (st = read_factors(rope, "short_factor", r, path, r->short_factor, err)))
        return st;
    if (!(r->attention_factor > 0))
        r->attention_factor = factor > 1 ? sqrt(1 + log(factor) / log(r->original_positions)) : 1;
    return read_factors(rope, "long_factor", r, path, r->long_factor, err);
}

/* The names of types, as HF's Phi-3 reads them or as others do. */
static const struct {
    const char *name;
    fkv_rope_type type;
    bool phi, old; /* not to be recommended */
} types[] = {{"default", FKV_ROPE_DEFAULT, false, false},  {"linear", FKV_ROPE_LINEAR, false, false},
             {"dynamic", FKV_ROPE_DEFAULT, false, false},  {"yarn", FKV_ROPE_YARN, false, false},
             {"llama3", FKV_ROPE_LLAMA3, false, false},    {"default", FKV_ROPE_DEFAULT, true, false},
             {"longrope", FKV_ROPE_LONGROPE, true, false}, {"su", FKV_ROPE_LONGROPE, true, true},
             {"yarn", FKV_ROPE_LONGROPE, true, true}};

static fkv_status find_type(const char *name, const fkv_rope_place *p, const char *key, fkv_rope_type *out,
                            fkv_err *err)
{
    char known[128];
    size_t n = 0;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (types[i].phi != p->phi) continue;
        *out = types[i].type;
        if (!strcmp(name, types[i].name)) return FKV_OK;
        if (!types[i].old)
            n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", types[i].name);
    }
    return fkv_fail_at(err, FKV_E_INPUT, p->path, 0, key,
                       "rope_type %.80s is not supported for this model type (%s: these are)", name, known);
}

/* From either key; the default where neither is there. */
static fkv_status read_type(const json_t *rope, const fkv_rope_place *p, const char *key, fkv_rope_type *type,
                            fkv_err *err)
{
    const char *name = NULL, *old = NULL;
    fkv_rope_type other = FKV_ROPE_DEFAULT;
    fkv_status st;
    *type = FKV_ROPE_DEFAULT;
    if ((st = fkv_json_str_or_null(rope, "rope_type", p->path, &name, err)) ||
        (st = fkv_json_str_or_null(rope, "type", p->path, &old, err)))
        return st;
    if (!name && !old)
        return strcmp(key, "rope_scaling") != 0 ? FKV_OK : refuse(err, p->path, key, "has no rope_type");
    if ((name && (st = find_type(name, p, key, type, err))) ||
        (old && (st = find_type(old, p, key, name ? &other : type, err))))
        return st;
    if (name && old && *type != other)
        return fkv_fail_at(err, FKV_E_INPUT, p->path, 0, key, "rope_type %.40s and type %.40s disagree", name,
                           old);
    return FKV_OK;
}

static fkv_status must_be_neutral(const json_t *rope, const char *key, const char *path, fkv_err *err)
{
    if (fkv_json_is_neutral(rope, key, 1)) return FKV_OK;
    return refuse(err, path, key, "is set; it changes the model's arithmetic and is not supported");
}

/* Only HF's Phi-3 turns a part of a head; code of other families ignores the factor or fails. */
static fkv_status read_rotary_dim(const json_t *o, const json_t *rope, const fkv_rope_place *p, fkv_rope *r,
                                  fkv_err *err)
{
    static const char key[] = "partial_rotary_factor";
    double factor = 0;
    fkv_status st = FKV_OK;
    if (!p->phi && !(st = must_be_neutral(o, key, p->path, err)))
        st = must_be_neutral(rope, key, p->path, err);
    if (p->phi) st = read_twice(o, rope, key, key, 1e-3, 1, p->path, &factor, err);
    if (st) return st;
    r->rotary_dim = factor > 0 ? (int)(p->head_dim * factor) : p->head_dim;
    if (r->rotary_dim < 2 || r->rotary_dim % 2)
        return fkv_fail_at(err, FKV_E_INPUT, p->path, 0, key,
                           "%g of a head_dim of %d is %d dimensions: only even numbers are supported", factor,
                           p->head_dim, r->rotary_dim);
    return FKV_OK;
}

fkv_status fkv_rope_read(const json_t *o, const fkv_rope_place *p, fkv_rope *r, fkv_err *err)
{
    const char *name;
    const json_t *rope;
    *r = (fkv_rope){.factor = 1};
    fkv_status st = rope_object(o, p, &name, &rope, err);
    if (st || (st = check_keys(rope, p->path, name, err)) ||
        (st = read_twice(o, rope, p->theta_key, "rope_theta", 1, 1e15, p->path, &r->theta, err)) ||
        (st = read_type(rope, p, name, &r->type, err)) || (st = read_rotary_dim(o, rope, p, r, err)))
        return st;
    if (!(r->theta > 0)) r->theta = p->theta;
    if (r->type == FKV_ROPE_LONGROPE) return read_longrope(o, rope, p, r, err);
    if (r->type == FKV_ROPE_YARN) return read_yarn(rope, p->path, p->positions, r, err);
    if ((st = must_be_neutral(rope, "attention_factor", p->path, err))) return st;
    if (r->type == FKV_ROPE_LINEAR) return read_f64(rope, "factor", 1, 1e6, p->path, &r->factor, err);
    return r->type == FKV_ROPE_LLAMA3 ? read_llama3(rope, p->path, r, err) : FKV_OK;
}

/* The one of n dimensions whose wave turns so often within the positions of training. */
static double dimension_of(const fkv_rope *r, int n, double turns)
{
    return n * log(r->original_positions / (turns * 2 * pi)) / (2 * log(r->theta));
}

/* How much of pair i of n dimensions is stretched by YaRN's factor: 0 none, 1 all of it. */
static double yarn_share(const fkv_rope *r, int n, int i)
{
    double low = dimension_of(r, n, r->beta_fast), high = dimension_of(r, n, r->beta_slow);
    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, n - 1);
    if (!(high > low) && !(high < low)) high += 0.001;
    return fmin(fmax((i - low) / (high - low), 0), 1);
}

/* Llama 3: waves longer than the trained context are stretched by factor, short ones stay, those
 * between are blended. */
static double llama3_frequency(const fkv_rope *r, double f)
{
    const double turns = r->original_positions * f / (2 * pi); /* of this wave in the trained context */
    double keep = (turns - r->low_freq) / (r->high_freq - r->low_freq);
    keep = keep < 0 ? 0 : keep > 1 ? 1 : keep;
    return keep * f + (1 - keep) * f / r->factor;
}

int fkv_rope_rotary_dim(const fkv_rope *r, int head_dim)
{
    return r->rotary_dim ? r->rotary_dim : head_dim;
}

bool fkv_rope_is_long(const fkv_rope *r, int64_t n_prompt, int64_t max_new)
{
    return r->type == FKV_ROPE_LONGROPE && n_prompt + max_new > r->original_positions;
}

/* Of pair i of n dimensions. */
static double frequency(const fkv_rope *r, int n, bool is_long, int i)
{
    const double f = pow(r->theta, -2.0 * i / n);
    switch (r->type) {
    case FKV_ROPE_LLAMA3: return llama3_frequency(r, f);
    case FKV_ROPE_LINEAR: return f / r->factor;
    case FKV_ROPE_LONGROPE: return f / (double)(is_long ? r->long_factor : r->short_factor)[i];
    case FKV_ROPE_YARN: {
        const double share = yarn_share(r, n, i);
        return share * f / r->factor + (1 - share) * f;
    }
    case FKV_ROPE_DEFAULT: break;
    }
    return f;
}

void fkv_rope_frequencies(const fkv_rope *r, int head_dim, bool is_long, float *inv_freq, float *scale)
{
    const int n = fkv_rope_rotary_dim(r, head_dim);
    for (int i = 0; i < head_dim / 2; i++) {
        const bool turns = i < n / 2;
        inv_freq[i] = turns ? (float)frequency(r, n, is_long, i) : 0;
        scale[i] = turns && r->attention_factor > 0 ? (float)r->attention_factor : 1;
    }
}
