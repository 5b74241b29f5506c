/* plan.json: writing a plan so that people can read it, one head a line, and
 * reading it back with every field checked. The reader trusts nothing: sizes
 * are bounded before memory is taken, and an error names file and field. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "engine/plan/partition.h"
#include "engine/plan/plan.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"

#define PLAN_FORMAT "fairkv-plan/1"
/* 80 layers of 64 heads on 16 ranks, all shared out, are 5 MB. */
#define MAX_FILE_BYTES ((size_t)64 << 20)

static const char *const predicted_names[] = {"standard_us", "best_effort_us", "fair_copying_us",
                                              "lower_bound_us", "plan_us"};
enum { N_PREDICTED = sizeof predicted_names / sizeof *predicted_names };

static fkv_status put_head(fkv_buf *b, const fkv_plan *plan, int l, int h, fkv_err *err)
{
    const size_t i = (size_t)l * plan->n_kv_heads + h;
    fkv_status st = fkv_buf_printf(b, err, "  {\"head\":%d,\"home\":%d,\"placements\":[", h,
                                   fkv_partition_home(h, plan->n_kv_heads, plan->n_ranks));
    for (int at = plan->first[i]; !st && at < plan->first[i + 1]; at++) {
        const fkv_placement *c = &plan->at[at];
        st = fkv_buf_printf(b, err, "%s{\"rank\":%d,\"slots\":[%d,%d]}", at > plan->first[i] ? "," : "",
                            c->rank, c->begin, c->end);
    }
    return st ? st : fkv_buf_puts(b, h + 1 < plan->n_kv_heads ? "]},\n" : "]}\n", err);
}

fkv_status fkv_plan_write(const fkv_plan *plan, const char *fingerprint, const char *extra, const char *path,
                          fkv_err *err)
{
    const double predicted[] = {plan->standard_us, plan->best_effort_us, plan->fair_copying_us,
                                plan->lower_bound_us, plan->step_us};
    fkv_buf b = {0};
    fkv_status st = fkv_plan_validate(plan, err);
    if (!st)
        st = fkv_buf_printf(&b, err,
                            "{\n\"format\":\"%s\",\n\"mode\":\"%s\",\n\"ranks\":%d,\n\"slots\":%d,\n"
                            "\"fingerprint\":",
                            PLAN_FORMAT, fkv_plan_mode_name(plan->mode), plan->n_ranks, plan->n_slots);
    if (!st) st = fkv_json_put_string(&b, fingerprint, strlen(fingerprint), err);
    if (!st) st = fkv_buf_puts(&b, ",\n\"layers\":[\n", err);
    for (int l = 0; !st && l < plan->n_layers; l++) {
        st = fkv_buf_puts(&b, " {\"heads\":[\n", err);
        for (int h = 0; !st && h < plan->n_kv_heads; h++) st = put_head(&b, plan, l, h, err);
        if (!st) st = fkv_buf_puts(&b, l + 1 < plan->n_layers ? " ]},\n" : " ]}\n", err);
    }
    if (!st) st = fkv_buf_puts(&b, "],\n\"predicted\":{", err);
    /* 17 digits: reading gives the same double back. */
    for (int i = 0; !st && i < N_PREDICTED; i++)
        st = fkv_buf_printf(&b, err, "%s\"%s\":%.17g", i ? "," : "", predicted_names[i], predicted[i]);
    if (!st) st = fkv_buf_puts(&b, "}", err);
    if (!st && extra && *extra) st = fkv_buf_printf(&b, err, ",\n%s", extra);
    if (!st) st = fkv_buf_puts(&b, "\n}\n", err);
    if (!st) st = fkv_file_replace(path, b.data, b.len, err);
    fkv_buf_free(&b);
    return st;
}

/* Where the reader is: the file and the field, for errors. */
typedef struct reader {
    const char *path;
    fkv_plan *plan;
    int cap; /* of plan->at */
    fkv_err *err;
} reader;

static fkv_status bad(const reader *r, const char *field, const char *what)
{
    return fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, field, "%s", what);
}

/* An integer member or element in [lo, hi]. */
static fkv_status read_int(const reader *r, const json_t *v, const char *field, int lo, int hi, int *out)
{
    if (!v) return bad(r, field, "is missing");
    if (!json_is_integer(v)) return bad(r, field, "must be an integer");
    const json_int_t x = json_integer_value(v);
    if (x < lo || x > hi)
        return fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, field,
                           "%" JSON_INTEGER_FORMAT " is outside [%d, %d]", x, lo, hi);
    *out = (int)x;
    return FKV_OK;
}

static fkv_status read_placement(reader *r, const json_t *v, int l, int h, int i, int begin, int *end)
{
    fkv_plan *plan = r->plan;
    const int first = plan->first[(size_t)l * plan->n_kv_heads + h];
    char field[96], sub[96];
    snprintf(field, sizeof field, "layers[%d].heads[%d].placements[%d]", l, h, i);
    if (!json_is_object(v)) return bad(r, field, "must be an object");
    fkv_placement c = {0};
    snprintf(sub, sizeof sub, "layers[%d].heads[%d].placements[%d].rank", l, h, i);
    fkv_status st = read_int(r, json_object_get(v, "rank"), sub, 0, plan->n_ranks - 1, &c.rank);
    if (st) return st;
    for (int at = first; at < first + i; at++)
        if (plan->at[at].rank == c.rank)
            return bad(r, sub, "is the rank of an earlier placement of this head");
    snprintf(sub, sizeof sub, "layers[%d].heads[%d].placements[%d].slots", l, h, i);
    const json_t *slots = json_object_get(v, "slots");
    if (!json_is_array(slots) || json_array_size(slots) != 2) return bad(r, sub, "must be [begin, end]");
    st = read_int(r, json_array_get(slots, 0), sub, 0, plan->n_slots - 1, &c.begin);
    if (!st) st = read_int(r, json_array_get(slots, 1), sub, 1, plan->n_slots, &c.end);
    if (st) return st;
    if (c.begin != begin || c.end <= c.begin)
        return fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, sub,
                           "[%d, %d) is empty or does not begin at slot %d, where the one before it ends",
                           c.begin, c.end, begin);
    if (first + i == r->cap) {
        fkv_placement *more = fkv_realloc(plan->at, 2 * (size_t)r->cap, sizeof *more);
        if (!more) return fkv_fail_memory(r->err);
        plan->at = more;
        r->cap *= 2; /* bounded by the file's size: a placement takes over 20 bytes */
    }
    plan->at[first + i] = c;
    *end = c.end;
    return FKV_OK;
}

static fkv_status read_head(reader *r, const json_t *v, int l, int h)
{
    fkv_plan *plan = r->plan;
    char field[96];
    int x, end = 0;
    snprintf(field, sizeof field, "layers[%d].heads[%d]", l, h);
    if (!json_is_object(v)) return bad(r, field, "must be an object");
    snprintf(field, sizeof field, "layers[%d].heads[%d].head", l, h);
    fkv_status st = read_int(r, json_object_get(v, "head"), field, h, h, &x);
    if (st) return st;
    snprintf(field, sizeof field, "layers[%d].heads[%d].home", l, h);
    const int home = fkv_partition_home(h, plan->n_kv_heads, plan->n_ranks);
    if ((st = read_int(r, json_object_get(v, "home"), field, home, home, &x))) return st;
    snprintf(field, sizeof field, "layers[%d].heads[%d].placements", l, h);
    const json_t *placements = json_object_get(v, "placements");
    if (!json_is_array(placements)) return bad(r, field, "must be an array");
    const size_t n = json_array_size(placements);
    if (n < 1 || n > (size_t)plan->n_ranks)
        return fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, field, "has %zu entries, not 1 to %d", n,
                           plan->n_ranks);
    for (size_t i = 0; !st && i < n; i++)
        st = read_placement(r, json_array_get(placements, i), l, h, (int)i, end, &end);
    if (st) return st;
    if (end != plan->n_slots)
        return fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, field, "cover %d of %d slots", end,
                           plan->n_slots);
    const size_t at = (size_t)l * plan->n_kv_heads + h;
    plan->first[at + 1] = plan->first[at] + (int)n;
    return FKV_OK;
}

/* layers[l].heads, checked for its number; NULL after an error. */
static const json_t *heads_of(reader *r, const json_t *layers, int l, fkv_status *st)
{
    char field[96];
    snprintf(field, sizeof field, "layers[%d]", l);
    const json_t *layer = json_array_get(layers, (size_t)l);
    if (!json_is_object(layer)) {
        *st = bad(r, field, "must be an object");
        return NULL;
    }
    snprintf(field, sizeof field, "layers[%d].heads", l);
    const json_t *heads = json_object_get(layer, "heads");
    const size_t n = json_array_size(heads);
    if (!json_is_array(heads) || n < 1 || n > FKV_PLAN_MAX_HEADS) {
        *st = fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, field, "must be an array of 1 to %d heads",
                          FKV_PLAN_MAX_HEADS);
        return NULL;
    }
    if (r->plan->n_kv_heads && n != (size_t)r->plan->n_kv_heads) {
        *st = fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, field, "has %zu heads, layers[0] has %d", n,
                          r->plan->n_kv_heads);
        return NULL;
    }
    return heads;
}

static fkv_status read_layers(reader *r, const json_t *root)
{
    fkv_plan *plan = r->plan;
    fkv_status st = FKV_OK;
    const json_t *layers = json_object_get(root, "layers");
    const size_t n = json_array_size(layers);
    if (!json_is_array(layers) || n < 1 || n > FKV_PLAN_MAX_PAIRS)
        return fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, "layers", "must be an array of 1 to %d layers",
                           FKV_PLAN_MAX_PAIRS);
    const json_t *heads = heads_of(r, layers, 0, &st);
    if (!heads) return st;
    const size_t k = json_array_size(heads);
    if (n * k > FKV_PLAN_MAX_PAIRS)
        return fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, "layers", "%zu layers of %zu heads are too many",
                           n, k);
    if ((size_t)plan->n_ranks > k)
        return fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, "ranks", "more ranks (%d) than KV heads (%zu)",
                           plan->n_ranks, k);
    plan->n_layers = (int)n;
    plan->n_kv_heads = (int)k;
    r->cap = (int)(n * k);
    plan->first = fkv_calloc(n * k + 1, sizeof *plan->first);
    plan->at = fkv_calloc(n * k, sizeof *plan->at);
    if (!plan->first || !plan->at) return fkv_fail_memory(r->err);
    for (int l = 0; !st && l < plan->n_layers; l++) {
        heads = heads_of(r, layers, l, &st);
        for (int h = 0; heads && !st && h < plan->n_kv_heads; h++)
            st = read_head(r, json_array_get(heads, (size_t)h), l, h);
    }
    return st;
}

static fkv_status read_predicted(reader *r, const json_t *root)
{
    fkv_plan *plan = r->plan;
    double *const out[] = {&plan->standard_us, &plan->best_effort_us, &plan->fair_copying_us,
                           &plan->lower_bound_us, &plan->step_us};
    const json_t *predicted = json_object_get(root, "predicted");
    if (!json_is_object(predicted)) return bad(r, "predicted", "must be an object");
    for (int i = 0; i < N_PREDICTED; i++) {
        char field[96];
        snprintf(field, sizeof field, "predicted.%s", predicted_names[i]);
        const json_t *v = json_object_get(predicted, predicted_names[i]);
        if (!json_is_number(v) || !(json_number_value(v) >= 0))
            return bad(r, field, "must be a number of at least 0");
        *out[i] = json_number_value(v);
    }
    return FKV_OK;
}

static fkv_status read_mode(reader *r, const char *name)
{
    for (int m = 0; m < FKV_PLAN_MODES; m++)
        if (!strcmp(name, fkv_plan_mode_name((fkv_plan_mode)m))) {
            r->plan->mode = (fkv_plan_mode)m;
            return FKV_OK;
        }
    return fkv_fail_at(r->err, FKV_E_INPUT, r->path, 0, "mode", "\"%.40s\" is not %s, %s or %s", name,
                       fkv_plan_mode_name(FKV_PLAN_STANDARD), fkv_plan_mode_name(FKV_PLAN_BEST_EFFORT),
                       fkv_plan_mode_name(FKV_PLAN_FAIR_COPYING));
}

fkv_status fkv_plan_read(const char *path, fkv_plan *plan, char **fingerprint, fkv_err *err)
{
    reader r = {.path = path, .plan = plan, .err = err};
    json_t *root = NULL;
    const char *format = NULL, *mode = NULL, *print = NULL;
    memset(plan, 0, sizeof *plan);
    *fingerprint = NULL;
    fkv_status st = fkv_json_load(path, MAX_FILE_BYTES, &root, err);
    if (!st && !json_is_object(root)) st = bad(&r, NULL, "must hold a JSON object");
    if (!st) st = fkv_json_str(root, "format", path, &format, err);
    if (!st && strcmp(format, PLAN_FORMAT) != 0)
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "format", "\"%.40s\" is not \"%s\"", format, PLAN_FORMAT);
    if (!st) st = fkv_json_str(root, "mode", path, &mode, err);
    if (!st) st = read_mode(&r, mode);
    if (!st)
        st = read_int(&r, json_object_get(root, "ranks"), "ranks", 1, FKV_PLAN_MAX_HEADS, &plan->n_ranks);
    if (!st)
        st = read_int(&r, json_object_get(root, "slots"), "slots", 1, FKV_PLAN_MAX_SLOTS, &plan->n_slots);
    if (!st) st = fkv_json_str(root, "fingerprint", path, &print, err);
    if (!st) st = read_layers(&r, root);
    if (!st) st = read_predicted(&r, root);
    if (!st && !(*fingerprint = strdup(print))) st = fkv_fail_memory(err);
    json_decref(root);
    if (st) fkv_plan_free(plan);
    return st;
}
