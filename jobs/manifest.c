/* The manifest: see manifest.h. A manifest owns its arrays and JSON values. */
#include "jobs/manifest.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/known_archives.h"
#include "jobs/shard.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"

static const char FORMAT[] = "fairkv-manifest/2";
static const char REMEDY[] = "(use job.restart = yes or another job.output)";

fkv_status fkv_manifest_init(fkv_manifest *m, const char *job, const char *identity, size_t n_identity,
                             int64_t records_per_shard, fkv_err *err)
{
    json_error_t je;
    fkv_status st = FKV_OK;
    *m = (fkv_manifest){.records = -1, .end.records = -1, .records_per_shard = records_per_shard};
    m->identity = fkv_json_parse(identity, n_identity, 0, &je);
    if (!m->identity && json_error_code(&je) == json_error_out_of_memory) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if (!json_is_object(m->identity)) {
        st = fkv_fail(err, FKV_E_SYSTEM, "the job's identity is not a JSON object: %s", je.text);
        goto out;
    }
    m->job = strdup(job ? job : "");
    m->run = json_object();
    if (!m->job || !m->run) st = fkv_fail_memory(err);
out:
    if (st) fkv_manifest_free(m);
    return st;
}

void fkv_manifest_free(fkv_manifest *m)
{
    free(m->job);
    free(m->shards);
    json_decref(m->identity);
    json_decref(m->run);
    json_decref(m->archives);
    *m = (fkv_manifest){.records = -1, .end.records = -1};
}

static size_t lower_bound(const fkv_manifest *m, int64_t index)
{
    size_t lo = 0, hi = m->n_shards;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (m->shards[mid].index < index) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

const fkv_manifest_shard *fkv_manifest_find(const fkv_manifest *m, int64_t index)
{
    const size_t i = lower_bound(m, index);
    return i < m->n_shards && m->shards[i].index == index ? &m->shards[i] : NULL;
}

fkv_status fkv_manifest_add(fkv_manifest *m, const fkv_manifest_shard *shard, fkv_err *err)
{
    const size_t i = lower_bound(m, shard->index);
    if (i < m->n_shards && m->shards[i].index == shard->index)
        return fkv_fail(err, FKV_E_INPUT, "shard %lld is there twice", (long long)shard->index);
    fkv_manifest_shard *shards = fkv_grown(m->shards, m->n_shards, &m->cap, sizeof *shards);
    if (!shards) return fkv_fail_memory(err);
    m->shards = shards;
    memmove(&m->shards[i + 1], &m->shards[i], (m->n_shards - i) * sizeof *shard);
    m->shards[i] = *shard;
    m->n_shards++;
    m->n_rows += shard->count;
    m->n_errors += shard->errors;
    return FKV_OK;
}

/* Exactly 16 lower-case hex digits. */
static bool read_hex(const char *text, uint64_t *out)
{
    uint64_t v = 0;
    if (strlen(text) != 16) return false;
    for (const char *p = text; *p; p++) {
        if (!isxdigit((unsigned char)*p) || isupper((unsigned char)*p)) return false;
        v = v << 4 | (uint64_t)(isdigit((unsigned char)*p) ? *p - '0' : *p - 'a' + 10);
    }
    *out = v;
    return true;
}

/* A hash that need not be there, and is not 0 where it is. */
static fkv_status read_passed(const json_t *o, const char *path, uint64_t *passed, fkv_err *err)
{
    const json_t *v = json_object_get(o, "passed");
    *passed = 0;
    if (v && (!json_is_string(v) || !read_hex(json_string_value(v), passed) || !*passed))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "passed", "must be 16 hex digits");
    return FKV_OK;
}

static fkv_status load_end(const json_t *doc, const char *path, fkv_manifest *m, fkv_err *err)
{
    const json_t *o = json_object_get(doc, "end");
    if (!o) return FKV_OK;
    if (!json_is_object(o)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, "end", "must be an object");
    fkv_manifest_end end;
    fkv_status st = fkv_json_i64(o, "records", 0, INT64_MAX, path, &end.records, err);
    if (!st) st = fkv_json_i64(o, "firm", 0, end.records, path, &end.firm, err);
    if (!st) st = read_passed(o, path, &end.passed, err);
    if (!st) m->end = end;
    return st;
}

static fkv_status load_shard(const json_t *o, const char *path, fkv_manifest *m, fkv_err *err)
{
    fkv_manifest_shard s = {0};
    const char *file, *hex;
    char name[FKV_SHARD_NAME_SIZE];
    const int64_t n = m->records_per_shard;
    if (!json_is_object(o)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, "shards", "must hold objects");
    fkv_status st = fkv_json_str(o, "file", path, &file, err);
    if (!st) st = fkv_json_i64(o, "first", 0, INT64_MAX - n, path, &s.first, err);
    if (!st) st = fkv_json_i64(o, "count", 1, n, path, &s.count, err);
    if (!st) st = fkv_json_i64(o, "errors", 0, s.count, path, &s.errors, err);
    if (!st) st = fkv_json_i64(o, "bytes", 1, INT64_MAX, path, &s.bytes, err);
    if (!st) st = fkv_json_str(o, "xxh3", path, &hex, err);
    if (!st) st = read_passed(o, path, &s.passed, err);
    if (st) return st;
    s.index = s.first / n;
    fkv_shard_name(s.index, name);
    if (s.first % n || strcmp(file, name) != 0)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "shards", "\"%.64s\" can't begin with record %lld",
                           file, (long long)s.first);
    if (!read_hex(hex, &s.xxh3))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "xxh3", "must be 16 hex digits");
    if (s.count < n && !(m->complete && s.first + s.count == m->records))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "shards", "%s has %lld of %lld records", name,
                           (long long)s.count, (long long)n);
    if (m->complete && s.first + s.count > m->records)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "shards", "%s goes beyond the %lld records", name,
                           (long long)m->records);
    if (m->n_shards && m->shards[m->n_shards - 1].index >= s.index)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "shards", "%s is there twice or out of order", name);
    return fkv_manifest_add(m, &s, err);
}

static fkv_status load_object(const json_t *doc, const char *key, const char *path, json_t **out,
                              fkv_err *err)
{
    json_t *o = json_object_get(doc, key);
    if (!json_is_object(o)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "must be an object");
    *out = json_incref(o);
    return FKV_OK;
}

static fkv_status load_run(const json_t *doc, const char *path, fkv_manifest *m, fkv_err *err)
{
    const char *key;
    json_t *value;
    const fkv_status st = load_object(doc, "run", path, &m->run, err);
    if (st) return st;
    json_object_foreach(m->run, key, value)
    {
        if (!json_is_string(value))
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, "run", "\"%.64s\" must be a string", key);
    }
    return FKV_OK;
}

static fkv_status load_archives(const json_t *doc, const char *path, fkv_manifest *m, fkv_err *err)
{
    json_t *list = json_object_get(doc, "archives");
    if (!list) return FKV_OK;
    const fkv_status st = fkv_known_archives_check(list, path, err);
    if (!st) m->archives = json_incref(list);
    return st;
}

fkv_status fkv_manifest_load(const char *path, fkv_manifest *m, fkv_err *err)
{
    json_t *doc = NULL;
    const char *format, *job;
    *m = (fkv_manifest){.records = -1, .end.records = -1};
    fkv_status st = fkv_json_load(path, FKV_MANIFEST_MAX_BYTES, &doc, err);
    if (st) goto out;
    if (!json_is_object(doc)) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "must be an object");
        goto out;
    }
    if ((st = fkv_json_str(doc, "format", path, &format, err))) goto out;
    if (strcmp(format, FORMAT) != 0) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "format", "is \"%.64s\", this build reads \"%s\"", format,
                         FORMAT);
        goto out;
    }
    if ((st = fkv_json_str(doc, "job", path, &job, err))) goto out;
    if (!(m->job = strdup(job))) {
        st = fkv_fail_memory(err);
        goto out;
    }
    st = load_object(doc, "identity", path, &m->identity, err);
    if (!st) st = load_run(doc, path, m, err);
    if (!st) st = load_archives(doc, path, m, err);
    if (!st) st = fkv_json_i64(doc, "records_per_shard", 1, INT64_MAX, path, &m->records_per_shard, err);
    if (!st) st = fkv_json_bool_or(doc, "complete", false, path, &m->complete, err);
    if (!st) st = fkv_json_i64_or(doc, "records", 0, INT64_MAX, -1, path, &m->records, err);
    if (!st && m->complete && m->records < 0)
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "records", "is missing");
    if (!st) st = load_end(doc, path, m, err);
    const json_t *shards = json_object_get(doc, "shards");
    if (!st && !json_is_array(shards))
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "shards", "must be an array");
    for (size_t i = 0; !st && i < json_array_size(shards); i++)
        st = load_shard(json_array_get(shards, i), path, m, err);
out:
    json_decref(doc);
    if (st) fkv_manifest_free(m);
    return st;
}

static fkv_status put_json(fkv_buf *b, const json_t *v, fkv_err *err)
{
    char *text = fkv_json_dump(v, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!text) return fkv_fail_memory(err);
    const fkv_status st = fkv_buf_puts(b, text, err);
    free(text);
    return st;
}

static fkv_status put_passed(uint64_t passed, fkv_buf *b, fkv_err *err)
{
    char hex[17];
    fkv_hash_hex(passed, hex);
    return passed ? fkv_buf_printf(b, err, ",\"passed\":\"%s\"}", hex) : fkv_buf_puts(b, "}", err);
}

static fkv_status put_end(const fkv_manifest_end *end, fkv_buf *b, fkv_err *err)
{
    if (end->records < 0) return FKV_OK;
    const fkv_status st = fkv_buf_printf(b, err, ",\n\"end\":{\"records\":%lld,\"firm\":%lld",
                                         (long long)end->records, (long long)end->firm);
    return st ? st : put_passed(end->passed, b, err);
}

static fkv_status put_shards(const fkv_manifest *m, fkv_buf *b, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < m->n_shards; i++) {
        const fkv_manifest_shard *s = &m->shards[i];
        char name[FKV_SHARD_NAME_SIZE], hex[17];
        fkv_shard_name(s->index, name);
        fkv_hash_hex(s->xxh3, hex);
        st = fkv_buf_printf(b, err,
                            "%s\n{\"file\":\"%s\",\"first\":%lld,\"count\":%lld,\"errors\":%lld,"
                            "\"bytes\":%lld,\"xxh3\":\"%s\"",
                            i ? "," : "", name, (long long)s->first, (long long)s->count,
                            (long long)s->errors, (long long)s->bytes, hex);
        if (!st) st = put_passed(s->passed, b, err);
    }
    return st;
}

fkv_status fkv_manifest_save(const fkv_manifest *m, const char *path, const char *tmp, size_t *bytes,
                             fkv_err *err)
{
    fkv_buf b = {0};
    fkv_status st = fkv_buf_printf(&b, err, "{\"format\":\"%s\",\n\"job\":", FORMAT);
    if (!st) st = fkv_json_put_string(&b, m->job, strlen(m->job), err);
    if (!st) st = fkv_buf_puts(&b, ",\n\"identity\":", err);
    if (!st) st = put_json(&b, m->identity, err);
    if (!st) st = fkv_buf_puts(&b, ",\n\"run\":", err);
    if (!st) st = put_json(&b, m->run, err);
    if (!st && m->archives) st = fkv_buf_puts(&b, ",\n\"archives\":", err);
    if (!st && m->archives) st = put_json(&b, m->archives, err);
    if (!st)
        st = fkv_buf_printf(&b, err, ",\n\"records_per_shard\":%lld,\"complete\":%s,\"records\":",
                            (long long)m->records_per_shard, m->complete ? "true" : "false");
    if (!st && m->records < 0) st = fkv_buf_puts(&b, "null", err);
    if (!st && m->records >= 0) st = fkv_buf_printf(&b, err, "%lld", (long long)m->records);
    if (!st) st = put_end(&m->end, &b, err);
    if (!st) st = fkv_buf_printf(&b, err, ",\"errors\":%lld,\n\"shards\":[", (long long)m->n_errors);
    if (!st) st = put_shards(m, &b, err);
    if (!st) st = fkv_buf_puts(&b, "\n]}\n", err);
    if (!st && b.len > FKV_MANIFEST_MAX_BYTES)
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL,
                         "more than %zu bytes: too many shards, use a larger output.records_per_shard",
                         FKV_MANIFEST_MAX_BYTES);
    if (!st) st = fkv_file_replace_by(path, tmp, b.data, b.len, err);
    if (!st && bytes) *bytes = b.len;
    fkv_buf_free(&b);
    return st;
}

/* "was" and "is now" of a message: a string in quotes, else JSON. Keys that are younger than some outputs
 * are left out where they have their default. */
static fkv_status describe(const json_t *v, fkv_buf *b, fkv_err *err)
{
    fkv_buf_clear(b);
    if (!v) return fkv_buf_puts(b, "the default", err);
    if (json_is_string(v)) return fkv_buf_printf(b, err, "\"%.250s\"", json_string_value(v));
    fkv_buf text = {0};
    fkv_status st = put_json(&text, v, err);
    if (!st) st = fkv_buf_printf(b, err, "%.250s", text.data);
    fkv_buf_free(&text);
    return st;
}

static fkv_status differs(const char *folder, const char *key, const json_t *old, const json_t *now,
                          fkv_err *err)
{
    fkv_buf a = {0}, b = {0};
    fkv_status st = describe(old, &a, err);
    if (!st) st = describe(now, &b, err);
    if (!st)
        st = fkv_fail_at(err, FKV_E_INPUT, folder, 0, NULL,
                         "made by a different job: %.100s was %s, is now %s %s", key, a.data, b.data, REMEDY);
    fkv_buf_free(&a);
    fkv_buf_free(&b);
    return st;
}

/* The archives of two jobs, by the names that people know them under. */
static fkv_status archives_differ(const fkv_manifest *theirs, const fkv_manifest *ours, const char *folder,
                                  const char *key, fkv_err *err)
{
    fkv_buf a = {0}, b = {0};
    json_t *old = NULL, *now = NULL;
    fkv_status st = fkv_known_archives_describe(theirs->archives, &a, err);
    if (!st) st = fkv_known_archives_describe(ours->archives, &b, err);
    if (!st && (!(old = json_string(a.data ? a.data : "")) || !(now = json_string(b.data ? b.data : ""))))
        st = fkv_fail_memory(err);
    if (!st) st = differs(folder, key, old, now, err);
    json_decref(old);
    json_decref(now);
    fkv_buf_free(&a);
    fkv_buf_free(&b);
    return st;
}

/* Calls see with an error for every key in which two jobs differ, until it says that that is enough. */
static void each_change(const fkv_manifest *theirs, const fkv_manifest *ours, const char *folder,
                        bool (*see)(void *ctx, const fkv_err *change), void *ctx)
{
    const char *key;
    json_t *now, *old;
    json_object_foreach(ours->identity, key, now)
    {
        fkv_err change = {0};
        old = json_object_get(theirs->identity, key);
        if (old && json_equal(old, now)) continue;
        if (!strcmp(key, "input.archives") && theirs->archives && ours->archives)
            archives_differ(theirs, ours, folder, key, &change);
        else
            differs(folder, key, old, now, &change);
        if (!see(ctx, &change)) return;
    }
    json_object_foreach(theirs->identity, key, old)
    {
        fkv_err change = {0};
        if (json_object_get(ours->identity, key)) continue;
        differs(folder, key, old, NULL, &change);
        if (!see(ctx, &change)) return;
    }
    if (theirs->records_per_shard != ours->records_per_shard &&
        json_equal(json_object_get(theirs->identity, "output.records_per_shard"),
                   json_object_get(ours->identity, "output.records_per_shard"))) {
        fkv_err change = {0};
        fkv_fail_at(&change, FKV_E_INPUT, folder, 0, NULL,
                    "made by a different job: output.records_per_shard was %lld, is now %lld %s",
                    (long long)theirs->records_per_shard, (long long)ours->records_per_shard, REMEDY);
        see(ctx, &change);
    }
}

static bool take_first(void *ctx, const fkv_err *change)
{
    *(fkv_err *)ctx = *change;
    return false;
}

static bool add_change(void *ctx, const fkv_err *change)
{
    fkv_errs_add(ctx, change);
    return true;
}

fkv_status fkv_manifest_same_job(const fkv_manifest *theirs, const fkv_manifest *ours, const char *folder,
                                 fkv_err *err)
{
    fkv_err first = {0};
    each_change(theirs, ours, folder, take_first, &first);
    if (first.status && err && !err->status) *err = first;
    return first.status;
}

void fkv_manifest_changes(const fkv_manifest *theirs, const fkv_manifest *ours, const char *folder,
                          fkv_errs *errs)
{
    each_change(theirs, ours, folder, add_change, errs);
}

fkv_status fkv_manifest_hash(const fkv_manifest *m, uint64_t *hash, fkv_err *err)
{
    char *text = fkv_json_dump(m->identity, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text) return fkv_fail_memory(err);
    *hash = fkv_hash(text, strlen(text), 0);
    free(text);
    return FKV_OK;
}

fkv_status fkv_manifest_pin(fkv_manifest *m, const char *folder, const char *key, const char *value,
                            bool *changed, fkv_err *err)
{
    *changed = false;
    const json_t *old = json_object_get(m->run, key);
    json_t *now = json_string(value);
    if (!now) return fkv_fail(err, FKV_E_SYSTEM, "run.%s is not UTF-8, or out of memory", key);
    fkv_status st = FKV_OK;
    if (!old) {
        *changed = true;
        if (json_object_set(m->run, key, now)) st = fkv_fail_memory(err);
    } else if (!json_equal(old, now)) {
        char name[96];
        snprintf(name, sizeof name, "run.%s", key);
        st = differs(folder, name, old, now, err);
    }
    json_decref(now);
    return st;
}
