/* The manifests of all parts: see merged.h. */
#include "jobs/merged.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/folder_names.h"
#include "runner/base/file.h"
#include "runner/base/json.h"

enum { MAX_PARTS = 100000 };
static const size_t MAX_PROFILE_BYTES = (size_t)16 << 20;

static fkv_status merge_manifest(fkv_merged *x, const char *path, int64_t part, int64_t n_parts, fkv_err *err)
{
    fkv_manifest m;
    fkv_status st = fkv_manifest_load(path, &m, err);
    if (st) return st;
    if (!m.complete) x->complete = false;
    /* A part may have been done before the last archive grew. */
    if (m.complete && x->records >= 0 && m.records != x->records) x->complete = false;
    if (m.complete && m.records > x->records) x->records = m.records;
    if (!x->job || part < x->job_part) {
        free(x->job);
        x->job = strdup(m.job);
        x->job_part = part;
        if (!x->job) {
            st = fkv_fail_memory(err);
            goto out;
        }
    }
    if (x->n_manifests == 0) {
        x->n_parts = n_parts;
        x->shards.identity = json_incref(m.identity);
        x->shards.records_per_shard = m.records_per_shard;
    } else if (n_parts != x->n_parts) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "is of %lld parts, another manifest here of %lld",
                         (long long)n_parts, (long long)x->n_parts);
        goto out;
    } else if ((st = fkv_manifest_same_job(&x->shards, &m, path, err))) {
        goto out;
    }
    x->n_manifests++;
    for (size_t i = 0; !st && i < m.n_shards; i++) {
        if (m.shards[i].index % n_parts != part)
            st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "shards", "shard %lld is another part's",
                             (long long)m.shards[i].index);
        else
            st = fkv_manifest_add(&x->shards, &m.shards[i], err);
    }
out:
    fkv_manifest_free(&m);
    return st;
}

static fkv_status merge_manifests(const char *folder, fkv_merged *x, fkv_err *err)
{
    fkv_status st = FKV_OK;
    DIR *dir = opendir(folder);
    if (!dir) return fkv_fail_open(err, folder);
    while (!st) {
        errno = 0;
        const struct dirent *e = readdir(dir);
        if (!e && errno) st = fkv_fail_errno(err, folder, "read the folder");
        if (!e) break;
        int64_t part, n_parts;
        if (!fkv_name_is_part(e->d_name, "manifest", ".json", &part, &n_parts) || n_parts < 1 ||
            n_parts > MAX_PARTS)
            continue;
        char *path = fkv_path_join(folder, e->d_name);
        st = path ? merge_manifest(x, path, part, n_parts, err) : fkv_fail_memory(err);
        free(path);
    }
    closedir(dir);
    if (!st && x->n_manifests == 0)
        st = fkv_fail_at(err, FKV_E_INPUT, folder, 0, NULL, "has no manifest.json: not an output folder");
    if (x->n_manifests != x->n_parts) x->complete = false;
    return st;
}

/* How many records the whole input has, as the first run counted them. -1: nobody did. */
static fkv_status count_records(const char *folder, fkv_merged *x, fkv_err *err)
{
    json_t *doc = NULL;
    fkv_err ignored = {0};
    if (x->complete || x->records >= 0) return FKV_OK;
    char *path = fkv_path_join(folder, "profile.json");
    if (!path) return fkv_fail_memory(err);
    const fkv_status st = fkv_json_load(path, MAX_PROFILE_BYTES, &doc, &ignored);
    const json_t *input = st ? NULL : json_object_get(doc, "input");
    if (json_is_object(input) &&
        fkv_json_i64_or(input, "records", 0, INT64_MAX, -1, path, &x->records, &ignored))
        x->records = -1;
    json_decref(doc);
    free(path);
    return FKV_OK;
}

fkv_status fkv_merged_load(const char *folder, fkv_merged *merged, fkv_err *err)
{
    *merged = (fkv_merged){.records = -1, .complete = true};
    fkv_status st = merge_manifests(folder, merged, err);
    if (!st) st = count_records(folder, merged, err);
    if (st) fkv_merged_free(merged);
    return st;
}

void fkv_merged_free(fkv_merged *merged)
{
    fkv_manifest_free(&merged->shards);
    free(merged->job);
    *merged = (fkv_merged){.records = -1};
}
