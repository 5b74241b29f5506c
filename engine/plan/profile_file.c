/* profile.json, budgets files and scores files: see budget.h. Owns nothing
 * beyond a call. Not for how budgets are computed: that is budget.c's.
 *
 * {"format":"fairkv-profile/1","model":"...","fingerprint":"...","n_layers":2,
 *  "n_kv_heads":2,"budget":64,"score":"snapkv","sinks":0,"budgets":[
 *   [100,28],
 *   [64,64]
 *  ],"sample":{"prompt_tokens":[915,954],"new_tokens":[12,12],"mean_output":12},
 *  "input":{"records":160,"longest_prompt":1100,"longest_new":12}}
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/plan/budget.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"
#include "runner/base/utf8.h"

#define FORMAT "fairkv-profile/1"

enum {
    MAX_FILE_BYTES = 16 << 20,
    MAX_LAYERS = 1024,
    MAX_HEADS = 1024,
    MAX_PROMPT_TOKENS = 1 << 30,
    KEY_SIZE = 64,
};

static fkv_status load_object(const char *path, json_t **out, fkv_err *err)
{
    fkv_status st = fkv_json_load(path, MAX_FILE_BYTES, out, err);
    if (!st && !json_is_object(*out))
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "must hold a JSON object");
    return st;
}

/* The array o[key] of n elements; n < 0 takes any length. */
static fkv_status array_of(const json_t *o, const char *key, int64_t n, const char *path, const json_t **out,
                           fkv_err *err)
{
    *out = json_object_get(o, key);
    if (!json_is_array(*out))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, *out ? "must be an array" : "is missing");
    if (n >= 0 && json_array_size(*out) != (size_t)n)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "has %zu rows for %lld layers",
                           json_array_size(*out), (long long)n);
    return FKV_OK;
}

static fkv_status integer_in(const json_t *v, int64_t lo, int64_t hi, const char *path, const char *key,
                             int32_t *out, fkv_err *err)
{
    if (!json_is_integer(v)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "must be an integer");
    const json_int_t x = json_integer_value(v);
    if (x < lo || x > hi)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "%lld is outside [%lld, %lld]", (long long)x,
                           (long long)lo, (long long)hi);
    *out = (int32_t)x;
    return FKV_OK;
}

/* Row l of the array of rows called name. */
static fkv_status row_of(const json_t *rows, const char *name, int l, const char *path, const json_t **out,
                         fkv_err *err)
{
    char key[KEY_SIZE];
    *out = json_array_get(rows, (size_t)l);
    if (json_is_array(*out)) return FKV_OK;
    snprintf(key, sizeof key, "%s[%d]", name, l);
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "must be an array");
}

/* format and shape; *p is initialised by them if it has no shape yet. */
static fkv_status read_head(const json_t *o, const char *path, fkv_profile *p, fkv_err *err)
{
    const char *format;
    int64_t n_layers = 0, n_kv_heads = 0;
    fkv_status st = fkv_json_str(o, "format", path, &format, err);
    if (st) return st;
    if (strcmp(format, FORMAT) != 0)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "format", "is %.40s, not " FORMAT, format);
    if ((st = fkv_json_i64(o, "n_layers", 1, MAX_LAYERS, path, &n_layers, err)) ||
        (st = fkv_json_i64(o, "n_kv_heads", 1, MAX_HEADS, path, &n_kv_heads, err)))
        return st;
    if (!p->budgets) return fkv_profile_init(p, (int)n_layers, (int)n_kv_heads, err);
    if (n_layers != p->n_layers)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "n_layers", "is %lld, the model's is %d",
                           (long long)n_layers, p->n_layers);
    if (n_kv_heads != p->n_kv_heads)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "n_kv_heads", "is %lld, the model's is %d",
                           (long long)n_kv_heads, p->n_kv_heads);
    return FKV_OK;
}

static fkv_status read_budgets(const json_t *o, const char *path, fkv_profile *p, fkv_err *err)
{
    const json_t *rows, *row;
    char key[KEY_SIZE];
    fkv_status st = array_of(o, "budgets", p->n_layers, path, &rows, err);
    for (int l = 0; !st && l < p->n_layers; l++) {
        if ((st = row_of(rows, "budgets", l, path, &row, err))) break;
        snprintf(key, sizeof key, "budgets[%d]", l);
        if (json_array_size(row) != (size_t)p->n_kv_heads)
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "has %zu budgets for %d KV heads",
                               json_array_size(row), p->n_kv_heads);
        for (int h = 0; !st && h < p->n_kv_heads; h++) {
            snprintf(key, sizeof key, "budgets[%d][%d]", l, h);
            st = integer_in(json_array_get(row, (size_t)h), 1, FKV_BUDGET_MAX, path, key,
                            &p->budgets[(size_t)l * (size_t)p->n_kv_heads + (size_t)h], err);
        }
    }
    return st;
}

fkv_status fkv_budget_read_file(const char *path, fkv_profile *p, fkv_err *err)
{
    json_t *o = NULL;
    fkv_status st = load_object(path, &o, err);
    if (!st) st = read_head(o, path, p, err);
    if (!st) st = read_budgets(o, path, p, err);
    if (!st) p->mean_budget = 0;
    json_decref(o);
    return st;
}

fkv_status fkv_scores_read_file(const char *path, int n_layers, int n_heads, int n_kv_heads, double *out,
                                fkv_err *err)
{
    json_t *o = NULL;
    const json_t *rows, *row;
    char key[KEY_SIZE];
    size_t width = 0;
    fkv_status st = load_object(path, &o, err);
    if (!st) st = array_of(o, "scores", n_layers, path, &rows, err);
    for (int l = 0; !st && l < n_layers; l++) {
        if ((st = row_of(rows, "scores", l, path, &row, err))) break;
        const size_t n = json_array_size(row);
        if (!l && (n == (size_t)n_heads || n == (size_t)n_kv_heads)) width = n;
        if (!n || n != width) {
            snprintf(key, sizeof key, "scores[%d]", l);
            st = fkv_fail_at(err, FKV_E_INPUT, path, 0, key,
                             "has %zu scores for %d KV heads or %d query heads", n, n_kv_heads, n_heads);
            break;
        }
        const size_t group = width / (size_t)n_kv_heads;
        double *to = out + (size_t)l * (size_t)n_kv_heads;
        for (size_t i = 0; i < width; i++) {
            const json_t *v = json_array_get(row, i);
            if (!json_is_number(v)) {
                snprintf(key, sizeof key, "scores[%d][%zu]", l, i);
                st = fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "must be a number");
                break;
            }
            if (i % group == 0) to[i / group] = 0;
            to[i / group] += json_number_value(v) / (double)group;
        }
    }
    json_decref(o);
    return st;
}

/* A path may hold any bytes, a JSON file only UTF-8: what is not becomes '?'. */
static fkv_status put_model(fkv_buf *b, const char *model, fkv_err *err)
{
    char *copy = strdup(model);
    if (!copy) return fkv_fail_memory(err);
    const size_t n = strlen(copy);
    const bool sound = fkv_utf8_span(copy, n) == n;
    for (char *c = copy; !sound && *c; c++)
        if ((unsigned char)*c >= 0x80) *c = '?';
    const fkv_status st = fkv_json_put_string(b, copy, n, err);
    free(copy);
    return st;
}

static fkv_status put_budgets(fkv_buf *b, const fkv_profile *p, fkv_err *err)
{
    const int32_t *at = p->budgets;
    fkv_status st = fkv_buf_puts(b, "\"budgets\":[", err);
    for (int l = 0; !st && l < p->n_layers; l++) {
        st = fkv_buf_puts(b, l ? ",\n [" : "\n [", err);
        for (int h = 0; !st && h < p->n_kv_heads; h++)
            st = fkv_buf_printf(b, err, h ? ",%d" : "%d", (int)*at++);
        if (!st) st = fkv_buf_puts(b, "]", err);
    }
    return st ? st : fkv_buf_puts(b, "\n],", err);
}

static fkv_status put_sample(fkv_buf *b, const fkv_profile *p, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(b, "\"sample\":{\"prompt_tokens\":[", err);
    for (int i = 0; !st && i < p->n_sample; i++)
        st = fkv_buf_printf(b, err, i ? ",%d" : "%d", (int)p->prompt_tokens[i]);
    if (!st && p->new_tokens) st = fkv_buf_puts(b, "],\"new_tokens\":[", err);
    for (int i = 0; !st && p->new_tokens && i < p->n_sample; i++)
        st = fkv_buf_printf(b, err, i ? ",%d" : "%d", (int)p->new_tokens[i]);
    /* 17 digits give the same double back. */
    if (!st) st = fkv_buf_printf(b, err, "],\"mean_output\":%.17g},\n", p->mean_output);
    return st ? st
              : fkv_buf_printf(
                    b, err, "\"input\":{\"records\":%lld,\"longest_prompt\":%lld,\"longest_new\":%lld}}\n",
                    (long long)p->n_input, (long long)p->longest_prompt, (long long)p->longest_new);
}

/* Small letters and digits, or nothing: it stands in the file as it is. */
static bool is_name(const char *s)
{
    return strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(s) && strlen(s) < FKV_PROFILE_SCORE;
}

static fkv_status put_score(fkv_buf *b, const fkv_profile *p, fkv_err *err)
{
    if (!p->score[0]) return FKV_OK;
    return fkv_buf_printf(b, err, "\"score\":\"%s\",\"sinks\":%d,", p->score, p->sinks);
}

/* Older files have none. */
static fkv_status read_score(const json_t *o, const char *path, fkv_profile *p, fkv_err *err)
{
    const char *name;
    int32_t sinks;
    if (!json_object_get(o, "score")) return FKV_OK;
    fkv_status st = fkv_json_str(o, "score", path, &name, err);
    if (!st && !is_name(name)) st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "score", "is not a scorer's name");
    if (!st) st = integer_in(json_object_get(o, "sinks"), 0, FKV_BUDGET_MAX, path, "sinks", &sinks, err);
    if (st) return st;
    snprintf(p->score, sizeof p->score, "%s", name);
    p->sinks = sinks;
    return FKV_OK;
}

fkv_status fkv_profile_write(const fkv_profile *p, const char *model, const char *fingerprint,
                             const char *path, fkv_err *err)
{
    fkv_buf b = {0};
    fkv_status st;
    if (fkv_utf8_span(fingerprint, strlen(fingerprint)) != strlen(fingerprint)) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "fingerprint", "is not UTF-8");
        goto out;
    }
    if (!(p->mean_output >= 0) || !isfinite(p->mean_output)) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "mean_output", "is not a number of tokens");
        goto out;
    }
    if (!is_name(p->score)) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "score", "is not a scorer's name");
        goto out;
    }
    if ((st = fkv_buf_puts(&b, "{\"format\":\"" FORMAT "\",\"model\":", err)) ||
        (st = put_model(&b, model, err)) || (st = fkv_buf_puts(&b, ",\"fingerprint\":", err)) ||
        (st = fkv_json_put_string(&b, fingerprint, strlen(fingerprint), err)) ||
        (st = fkv_buf_printf(&b, err, ",\n\"n_layers\":%d,\"n_kv_heads\":%d,\"budget\":%lld,", p->n_layers,
                             p->n_kv_heads, (long long)p->mean_budget)) ||
        (st = put_score(&b, p, err)) || (st = put_budgets(&b, p, err)) || (st = put_sample(&b, p, err)))
        goto out;
    st = fkv_file_replace(path, b.data, b.len, err);
out:
    fkv_buf_free(&b);
    return st;
}

/* Whole numbers from 0 on, as many as list has. */
static fkv_status read_lengths(const json_t *list, const char *name, const char *path, int32_t **out,
                               fkv_err *err)
{
    const size_t n = json_array_size(list);
    char key[KEY_SIZE];
    int32_t *tokens = fkv_calloc(n, sizeof *tokens);
    if (!tokens) return fkv_fail_memory(err);
    free(*out);
    *out = tokens;
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < n; i++) {
        snprintf(key, sizeof key, "%s[%zu]", name, i);
        st = integer_in(json_array_get(list, i), 0, MAX_PROMPT_TOKENS, path, key, &tokens[i], err);
    }
    return st;
}

static fkv_status read_new_tokens(const json_t *sample, const char *path, fkv_profile *p, fkv_err *err)
{
    const json_t *list = json_object_get(sample, "new_tokens");
    if (!list) return FKV_OK;
    if (!json_is_array(list)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, "new_tokens", "must be an array");
    if (json_array_size(list) != (size_t)p->n_sample)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "new_tokens", "has %zu elements for %d prompts",
                           json_array_size(list), p->n_sample);
    return read_lengths(list, "new_tokens", path, &p->new_tokens, err);
}

/* What is said about the whole input, where it is. */
static fkv_status read_input(const json_t *o, const char *path, fkv_profile *p, fkv_err *err)
{
    const json_t *input = json_object_get(o, "input");
    if (!input) return FKV_OK;
    if (!json_is_object(input)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, "input", "must be an object");
    fkv_status st = fkv_json_i64(input, "records", 0, (int64_t)1 << 53, path, &p->n_input, err);
    if (!st) st = fkv_json_i64(input, "longest_prompt", 0, MAX_PROMPT_TOKENS, path, &p->longest_prompt, err);
    return st ? st : fkv_json_i64(input, "longest_new", 0, INT32_MAX, path, &p->longest_new, err);
}

static fkv_status read_sample(const json_t *o, const char *path, fkv_profile *p, fkv_err *err)
{
    const json_t *sample = json_object_get(o, "sample"), *list;
    if (!json_is_object(sample)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, "sample", "must be an object");
    fkv_status st = array_of(sample, "prompt_tokens", -1, path, &list, err);
    if (st) return st;
    if ((st = read_lengths(list, "prompt_tokens", path, &p->prompt_tokens, err))) return st;
    p->n_sample = (int)json_array_size(list); /* a file of at most 16 MiB has no more than an int counts */
    if ((st = read_new_tokens(sample, path, p, err))) return st;
    if (!json_is_number(json_object_get(sample, "mean_output")))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "mean_output", "must be a number");
    return fkv_json_f64_or(sample, "mean_output", 0, 1e300, 0, path, &p->mean_output, err);
}

fkv_status fkv_profile_read(const char *path, fkv_profile *p, char **fingerprint, fkv_err *err)
{
    json_t *o = NULL;
    const char *print;
    *fingerprint = NULL;
    fkv_status st;
    if ((st = load_object(path, &o, err)) || (st = read_head(o, path, p, err)) ||
        (st = fkv_json_i64(o, "budget", 0, FKV_BUDGET_MAX, path, &p->mean_budget, err)) ||
        (st = read_budgets(o, path, p, err)) || (st = read_sample(o, path, p, err)) ||
        (st = read_input(o, path, p, err)) || (st = read_score(o, path, p, err)) ||
        (st = fkv_json_str(o, "fingerprint", path, &print, err)))
        goto out;
    *fingerprint = strdup(print);
    if (!*fingerprint) st = fkv_fail_memory(err);
out:
    json_decref(o);
    return st;
}
