/* An open tokenizer with its scratch, for tests of tokenizer/. Owns what open_dir and open_json give until
 * close_all. */
#ifndef FKV_TESTS_TOKENIZER_FIXTURE_H
#define FKV_TESTS_TOKENIZER_FIXTURE_H

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tokenizer/tokenizer.h"

struct opened {
    fkv_tokenizer *t;
    fkv_tokenizer_scratch *s;
    fkv_ids ids;
    fkv_err err;
};

static inline void open_dir(struct opened *o, const char *dir)
{
    *o = (struct opened){0};
    if (fkv_tokenizer_open(dir, &o->t, &o->err)) fail_msg("%s: %s: %s", dir, o->err.key, o->err.message);
    assert_int_equal(fkv_tokenizer_scratch_new(o->t, &o->s, &o->err), FKV_OK);
}

static inline void close_all(struct opened *o)
{
    fkv_ids_free(&o->ids);
    fkv_tokenizer_scratch_free(o->s);
    fkv_tokenizer_close(o->t);
}

/* Writes root as the tokenizer.json of a new folder, files (an object by name; may be NULL) beside it, and
 * opens it. */
static inline fkv_status open_files(const json_t *root, json_t *files, struct opened *o)
{
    const char *tmp = getenv("TMPDIR"), *name;
    char dir[512], path[600];
    json_t *value, *all = json_object();
    *o = (struct opened){0};
    assert_int_equal(json_object_set_new(all, "tokenizer.json", json_deep_copy(root)), 0);
    if (files) assert_int_equal(json_object_update(all, files), 0);
    snprintf(dir, sizeof dir, "%s/fkv-tokenizer-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    json_object_foreach(all, name, value)
    {
        snprintf(path, sizeof path, "%s/%s", dir, name);
        assert_int_equal(json_dump_file(value, path, 0), 0);
    }
    fkv_status st = fkv_tokenizer_open(dir, &o->t, &o->err);
    if (!st) st = fkv_tokenizer_scratch_new(o->t, &o->s, &o->err);
    json_object_foreach(all, name, value)
    {
        snprintf(path, sizeof path, "%s/%s", dir, name);
        unlink(path);
    }
    rmdir(dir);
    json_decref(all);
    return st;
}

static inline fkv_status open_json(const json_t *root, struct opened *o)
{
    return open_files(root, NULL, o);
}

static inline void encode(struct opened *o, const char *text, size_t n, bool special)
{
    const fkv_status st = fkv_tokenizer_encode(o->t, o->s, text, n, special, &o->ids, NULL, NULL, &o->err);
    if (st) fail_msg("%.60s: %s", text, o->err.message);
}

static inline void assert_ids(const fkv_ids *ids, const int32_t *want, size_t n, const char *text)
{
    if (ids->len == n && (!n || !memcmp(ids->data, want, n * sizeof *want))) return;
    for (size_t i = 0; i < ids->len && i < 20; i++) fprintf(stderr, " %d", (int)ids->data[i]);
    fail_msg("%.60s: %zu ids, expected %zu", text, ids->len, n);
}

static inline size_t ids_of(const json_t *list, int32_t *out, size_t max)
{
    const size_t n = json_array_size(list);
    assert_true(n <= max);
    for (size_t i = 0; i < n; i++) out[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return n;
}

#endif
