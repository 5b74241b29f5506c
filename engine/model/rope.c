/* Rotary position embeddings: see rope.h. */
#include "engine/model/rope.h"

#include <math.h>
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

/* The object that describes RoPE: rope_parameters (new form) or rope_scaling
 * (old form), NULL when there is neither. *name is its key. */
static fkv_status rope_object(const json_t *o, const char *path, const char **name, const json_t **out,
                              fkv_err *err)
{
    static const char *const names[] = {"rope_parameters", "rope_scaling"};
    *out = NULL;
    *name = names[0];
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_object_get(o, names[i]);
        if (!v || json_is_null(v)) continue;
        if (!json_is_object(v)) return refuse(err, path, names[i], "must be an object");
        if (*out && !json_equal(*out, v))
            return refuse(err, path, names[i], "contradicts rope_parameters beside it");
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

static fkv_status read_theta(const json_t *o, const json_t *rope, const char *path, double *theta,
                             fkv_err *err)
{
    double outer = 0, inner = 0;
    fkv_status st = fkv_json_f64_or(o, "rope_theta", 1, 1e15, 0, path, &outer, err);
    if (!st) st = fkv_json_f64_or(rope, "rope_theta", 1, 1e15, 0, path, &inner, err);
    if (st) return st;
    if (outer > 0 && inner > 0 && (outer < inner || inner < outer))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "rope_theta", "is given twice, as %g and as %g", outer,
                           inner);
    *theta = inner > 0 ? inner : outer > 0 ? outer : 10000;
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

/* The type's name, from either key; NULL: neither is there. */
static fkv_status read_type(const json_t *rope, const char *path, const char *name, const char **type,
                            fkv_err *err)
{
    const char *old = NULL;
    fkv_status st = fkv_json_str_or_null(rope, "rope_type", path, type, err);
    if (!st) st = fkv_json_str_or_null(rope, "type", path, &old, err);
    if (st) return st;
    if (*type && old && strcmp(*type, old) != 0)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, name, "rope_type %.40s and type %.40s disagree", *type,
                           old);
    if (!*type) *type = old;
    if (!*type && !strcmp(name, "rope_scaling")) return refuse(err, path, name, "has no rope_type");
    return FKV_OK;
}

static fkv_status must_be_neutral(const json_t *rope, const char *key, const char *path, fkv_err *err)
{
    if (fkv_json_is_neutral(rope, key, 1)) return FKV_OK;
    return refuse(err, path, key, "is set; it changes the model's arithmetic and is not supported");
}

fkv_status fkv_rope_read(const json_t *o, const char *path, int positions, fkv_rope *r, fkv_err *err)
{
    const char *name, *type = NULL;
    const json_t *rope;
    *r = (fkv_rope){.factor = 1};
    fkv_status st = rope_object(o, path, &name, &rope, err);
    if (st || (st = check_keys(rope, path, name, err)) || (st = read_theta(o, rope, path, &r->theta, err)) ||
        (st = read_type(rope, path, name, &type, err)) ||
        (st = must_be_neutral(rope, "partial_rotary_factor", path, err)))
        return st;
    if (type && !strcmp(type, "yarn")) {
        r->type = FKV_ROPE_YARN;
        return read_yarn(rope, path, positions, r, err);
    }
    if ((st = must_be_neutral(rope, "attention_factor", path, err))) return st;
    if (!type || !strcmp(type, "default") || !strcmp(type, "dynamic")) return FKV_OK;
    if (!strcmp(type, "linear")) {
        r->type = FKV_ROPE_LINEAR;
        return read_f64(rope, "factor", 1, 1e6, path, &r->factor, err);
    }
    if (!strcmp(type, "llama3")) {
        r->type = FKV_ROPE_LLAMA3;
        return read_llama3(rope, path, r, err);
    }
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, name,
                       "rope_type %.80s is not supported (default, linear, dynamic, yarn and llama3 are)",
                       type);
}

/* The dimension whose wave turns so often within the positions of training. */
static double dimension_of(const fkv_rope *r, int head_dim, double turns)
{
    return head_dim * log(r->original_positions / (turns * 2 * pi)) / (2 * log(r->theta));
}

/* How much of dimension i is stretched by YaRN's factor: 0 none, 1 all of it. */
static double yarn_share(const fkv_rope *r, int head_dim, int i)
{
    double low = dimension_of(r, head_dim, r->beta_fast), high = dimension_of(r, head_dim, r->beta_slow);
    if (r->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, head_dim - 1);
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

void fkv_rope_frequencies(const fkv_rope *r, int head_dim, float *inv_freq)
{
    for (int i = 0; i < head_dim / 2; i++) {
        double f = pow(r->theta, -2.0 * i / head_dim);
        if (r->type == FKV_ROPE_LLAMA3) f = llama3_frequency(r, f);
        if (r->type == FKV_ROPE_LINEAR) f /= r->factor;
        if (r->type == FKV_ROPE_YARN) {
            const double share = yarn_share(r, head_dim, i);
            f = share * f / r->factor + (1 - share) * f;
        }
        inv_freq[i] = (float)f;
    }
}

double fkv_rope_score_factor(const fkv_rope *r)
{
    return r->attention_factor > 0 ? r->attention_factor * r->attention_factor : 1;
}
