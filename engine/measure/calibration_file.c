/* Calibration files: writing, reading with every field checked, and the user's cache of
 * them. Measuring is in calibrate.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/measure/calibrate.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/json.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

#define FORMAT "fairkv-calibration/1"
enum { MAX_FILE_BYTES = 1 << 16 };
/* A constant above an hour is damage. */
static const double most_us = 3.6e9;

typedef struct text_field {
    const char *name;
    size_t offset, size;
} text_field;

typedef struct int_field {
    const char *name;
    size_t offset;
    bool pinned; /* a file that the job names must have the same */
} int_field;

typedef struct real_field {
    const char *name;
    size_t offset;
} real_field;

#define KEY(field) offsetof(fkv_calibration, key.field)
#define TEXT(field)                                                                                          \
    {                                                                                                        \
#field, KEY(field), sizeof(((fkv_calibration *)0)->key.field)                                        \
    }
static const text_field texts[] = {TEXT(backend), TEXT(device), TEXT(version)};
static const int_field ints[] = {
    {"hidden", KEY(hidden), true},         {"intermediate", KEY(intermediate), true},
    {"head_dim", KEY(head_dim), true},     {"group", KEY(group), true},
    {"n_kv_heads", KEY(n_kv_heads), true}, {"n_layers", KEY(n_layers), true},
    {"vocab", KEY(vocab), true},           {"act_bytes", KEY(act_bytes), true},
    {"kv_bytes", KEY(kv_bytes), true},     {"weight_bytes", KEY(weight_bytes), true},
    {"ranks", KEY(n_ranks), true},         {"devices", KEY(n_devices), true},
    {"slots", KEY(n_slots), true},         {"tokens", KEY(tokens), false}};
enum {
    N_TEXTS = sizeof texts / sizeof *texts,
    N_INTS = sizeof ints / sizeof *ints,
    N_REALS = FKV_COST_FIELDS + 1
};

/* The constants, then how well they fit. */
static real_field real(int i)
{
    if (i == FKV_COST_FIELDS) return (real_field){"fit_error", offsetof(fkv_calibration, fit_error)};
    return (real_field){fkv_cost_fields[i].name, offsetof(fkv_calibration, cost) + fkv_cost_fields[i].offset};
}

static int int_of(const fkv_calibration *c, const int_field *f)
{
    int v;
    memcpy(&v, (const char *)c + f->offset, sizeof v);
    return v;
}

static double real_of(const fkv_calibration *c, const real_field *f)
{
    double v;
    memcpy(&v, (const char *)c + f->offset, sizeof v);
    return v;
}

static fkv_status put_all(const fkv_calibration *c, fkv_buf *b, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(b, "{\"format\":\"" FORMAT "\"", err);
    for (int i = 0; !st && i < N_TEXTS; i++) {
        const char *text = (const char *)c + texts[i].offset;
        st = fkv_buf_printf(b, err, ",\n\"%s\":", texts[i].name);
        if (!st) st = fkv_json_put_string(b, text, strlen(text), err);
    }
    for (int i = 0; !st && i < N_INTS; i++)
        st = fkv_buf_printf(b, err, ",\n\"%s\":%d", ints[i].name, int_of(c, &ints[i]));
    /* 17 digits: reading gives the same double back. */
    for (int i = 0; !st && i < N_REALS; i++) {
        const real_field f = real(i);
        st = fkv_buf_printf(b, err, ",\n\"%s\":%.17g", f.name, real_of(c, &f));
    }
    return st ? st : fkv_buf_puts(b, "}\n", err);
}

fkv_status fkv_calibration_write(const fkv_calibration *c, const char *path, fkv_err *err)
{
    fkv_buf b = {0};
    fkv_status st = put_all(c, &b, err);
    if (!st) st = fkv_file_replace(path, b.data, b.len, err);
    fkv_buf_free(&b);
    return st;
}

static fkv_status read_text(const json_t *root, const text_field *f, const char *path, fkv_calibration *c,
                            fkv_err *err)
{
    const char *text;
    const fkv_status st = fkv_json_str(root, f->name, path, &text, err);
    if (st) return st;
    if (strlen(text) >= f->size)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, f->name, "is longer than %zu bytes", f->size - 1);
    memcpy((char *)c + f->offset, text, strlen(text) + 1);
    return FKV_OK;
}

static fkv_status read_real(const json_t *root, const real_field *f, const char *path, fkv_calibration *c,
                            fkv_err *err)
{
    const json_t *v = json_object_get(root, f->name);
    if (!v) return fkv_fail_at(err, FKV_E_INPUT, path, 0, f->name, "is missing");
    if (!json_is_number(v)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, f->name, "must be a number");
    const double x = json_number_value(v) + 0.0; /* no negative zero: it would not read back */
    if (!(x >= 0 && x <= most_us))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, f->name, "%g is outside [0, %g]", x, most_us);
    memcpy((char *)c + f->offset, &x, sizeof x);
    return FKV_OK;
}

fkv_status fkv_calibration_read(const char *path, fkv_calibration *c, fkv_err *err)
{
    json_t *root = NULL;
    const char *format;
    memset(c, 0, sizeof *c);
    fkv_status st = fkv_json_load(path, MAX_FILE_BYTES, &root, err);
    if (!st && !json_is_object(root))
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "must hold a JSON object");
    if (!st) st = fkv_json_str(root, "format", path, &format, err);
    if (!st && strcmp(format, FORMAT) != 0)
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "format", "\"%.40s\" is not \"%s\"", format, FORMAT);
    for (int i = 0; !st && i < N_TEXTS; i++) st = read_text(root, &texts[i], path, c, err);
    for (int i = 0; !st && i < N_INTS; i++) {
        int64_t v;
        st = fkv_json_i64(root, ints[i].name, 1, INT32_MAX, path, &v, err);
        const int small = st ? 0 : (int)v;
        memcpy((char *)c + ints[i].offset, &small, sizeof small);
    }
    for (int i = 0; !st && i < N_REALS; i++) {
        const real_field f = real(i);
        st = read_real(root, &f, path, c, err);
    }
    c->cost.origin = FKV_COST_MEASURED;
    c->cost.n_ranks = c->key.n_ranks;
    c->cost.act_bytes = c->key.act_bytes;
    json_decref(root);
    return st;
}

char *fkv_calibration_path(const fkv_calibration_key *key)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char name[64], hex[17], *dir = NULL, *path = NULL;
    fkv_buf b = {0};
    /* The XDG rules: a relative path is not to be used. */
    if (xdg && xdg[0] == '/')
        dir = fkv_path_join(xdg, "fairkv-batch");
    else if (home && home[0] == '/')
        dir = fkv_path_join(home, ".cache/fairkv-batch");
    if (!dir) return NULL;
    /* The file of a key holds it: what is hashed is the file without measurements. */
    const fkv_calibration bare = {.key = *key};
    if (!put_all(&bare, &b, NULL)) {
        fkv_hash_hex(fkv_hash(b.data, b.len, 0), hex);
        snprintf(name, sizeof name, "calibration-%s.json", hex);
        path = fkv_path_join(dir, name);
    }
    fkv_buf_free(&b);
    free(dir);
    return path;
}

/* The first field in which two keys differ, or NULL. pinned: those that a file that the
 * job names must share. */
static const char *difference(const fkv_calibration *a, const fkv_calibration *b, bool pinned)
{
    for (int i = 0; i < (pinned ? 1 : N_TEXTS); i++)
        if (strcmp((const char *)a + texts[i].offset, (const char *)b + texts[i].offset) != 0)
            return texts[i].name;
    for (int i = 0; i < N_INTS; i++)
        if ((ints[i].pinned || !pinned) && int_of(a, &ints[i]) != int_of(b, &ints[i])) return ints[i].name;
    return NULL;
}

static void log_error(const char *what, const fkv_err *err)
{
    char text[1024];
    fkv_err_format(err, text, sizeof text);
    fkv_log("%s: %s", what, text);
}

/* Whether path holds the calibration of out->key. */
static bool load(const char *path, fkv_calibration *out)
{
    fkv_calibration found;
    fkv_err err = {0};
    if (!fkv_file_exists(path)) return false;
    if (fkv_calibration_read(path, &found, &err)) {
        log_error("calibration: measured anew", &err);
        return false;
    }
    const char *differs = difference(&found, out, false);
    if (differs) fkv_log("calibration: measured anew: %s: %s is another", path, differs);
    if (!differs) *out = found;
    return !differs;
}

static bool store(const fkv_calibration *c, const char *path)
{
    fkv_err err = {0};
    char *dir = fkv_path_dir(path);
    fkv_status st = dir ? fkv_dir_make(dir, &err) : fkv_fail_memory(&err);
    if (!st) st = fkv_calibration_write(c, path, &err);
    if (st) log_error("calibration: not kept", &err);
    free(dir);
    return !st;
}

/* What was measured now, and whether it is kept. path: NULL where there is no place for it. */
static void keep(const fkv_calibration *c, const char *path)
{
    char link[80] = "";
    if (c->cost.link_bytes_per_us > 0)
        snprintf(link, sizeof link, "; a collective %.1f us and %.1f GB/s", c->cost.collective_us,
                 c->cost.link_bytes_per_us * 1e-3);
    fkv_log("calibration: measured: a segment %.2f us, and %.2f a head, %.4f a slot of it, %.6f a token (fit "
            "within %.1f%%); prefill %.4f us a token and layer%s",
            c->cost.t0_us, c->cost.head_us, c->cost.slot_head_us, c->cost.token_us, 100 * c->fit_error,
            c->cost.prefill_token_us, link);
    if (c->disturbed[0])
        fkv_log("calibration: not kept: the times of %s were disturbed, stated ones are used", c->disturbed);
    else if (!path)
        fkv_log("calibration: not kept: neither XDG_CACHE_HOME nor HOME is an absolute path");
    else if (store(c, path))
        fkv_log("calibration: measured, kept in %s", path);
}

fkv_status fkv_calibration_cached(const fkv_calibration_task *task, fkv_calibration *out, bool *measured,
                                  fkv_err *err)
{
    fkv_status st;
    *out = (fkv_calibration){0};
    if (measured) *measured = false;
    if ((st = fkv_calibration_key_of(task, &out->key, err))) return st;
    char *path = fkv_calibration_path(&out->key);
    fkv_calibration kept = *out;
    fkv_err why = {0};
    const bool found = path && load(path, &kept);
    if (found) *out = kept;
    if (found && !task->again) goto out;
    st = fkv_calibration_measure(task, out, &why);
    if (!st) keep(out, path);
    if (!st && measured) *measured = true;
    if (st && found) {
        log_error("calibration: the one that is kept is used", &why);
        *out = kept;
        st = FKV_OK;
    } else if (st && err) {
        *err = why;
    }
out:
    free(path);
    return st;
}

fkv_status fkv_calibration_kept(const fkv_calibration_task *task, fkv_calibration *out, bool *found,
                                fkv_err *err)
{
    *out = (fkv_calibration){0};
    *found = false;
    const fkv_status st = fkv_calibration_key_of(task, &out->key, err);
    if (st) return st;
    char *path = fkv_calibration_path(&out->key);
    *found = path && load(path, out);
    free(path);
    return FKV_OK;
}

fkv_status fkv_calibration_pinned(const fkv_calibration_task *task, const char *path, fkv_calibration *out,
                                  fkv_err *err)
{
    fkv_calibration wanted = {0};
    fkv_status st = fkv_calibration_read(path, out, err);
    if (!st) st = fkv_calibration_key_of(task, &wanted.key, err);
    if (st) return st;
    if (!task->n_ranks) wanted.key.n_ranks = out->key.n_ranks;
    if (!task->n_slots) wanted.key.n_slots = out->key.n_slots;
    const char *differs = difference(out, &wanted, true);
    if (differs)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, differs,
                           "is not this job's: the file was measured for another backend, model, number of "
                           "ranks, devices or slots");
    return FKV_OK;
}
