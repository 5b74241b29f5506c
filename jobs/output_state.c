/* The state of an output: see output_state.h. */
#include "jobs/output_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/shard.h"
#include "runner/base/clock.h"
#include "runner/base/mem.h"

/* A manifest is replaced whole, so replacing it at every shard would be quadratic
 * in the number of shards. While it is small it is replaced each time; later when
 * rows of eight times its size are in shards that it lacks, or after 10 s. Until
 * then their rows stay in the journal: a crash repeats the compression alone. */
enum { MANIFEST_SMALL_BYTES = 64 * 1024, MANIFEST_ROWS_FACTOR = 8 };
static const double MANIFEST_SECONDS = 10;

int64_t fkv_output_shard_end(const fkv_output *o, int64_t index)
{
    int64_t end;
    if (!fkv_mul_i64(index + 1, o->per_shard, &end)) return INT64_MAX;
    return end;
}

/* A shard of ours, as the manifest on disk is to have it. */
static fkv_status merge_shard(const fkv_output *o, fkv_manifest *now, const fkv_claim *claim, fkv_err *err)
{
    const fkv_manifest_shard *there = fkv_manifest_find(now, claim->index);
    if (!there) return fkv_manifest_add(now, &claim->shard, err);
    if (there->xxh3 == claim->shard.xxh3 && there->bytes == claim->shard.bytes) return FKV_OK;
    return fkv_fail_at(err, FKV_E_SYSTEM, o->folder.path, 0, NULL,
                       "two processes made shard %lld of the same records, and their bytes differ",
                       (long long)claim->index);
}

fkv_status fkv_output_merge(fkv_output *o, fkv_err *err)
{
    fkv_manifest now, *ours = &o->manifest;
    const char *key;
    json_t *value;
    bool changed;
    fkv_status st = fkv_manifest_load(o->manifest_path, &now, err);
    if (st) return st;
    for (size_t i = 0; !st && i < o->claims.n; i++) {
        if (o->claims.at[i]->written) st = merge_shard(o, &now, o->claims.at[i], err);
    }
    json_object_foreach(ours->run, key, value)
    {
        if (!st) st = fkv_manifest_pin(&now, o->folder.path, key, json_string_value(value), &changed, err);
    }
    if (st) {
        fkv_manifest_free(&now);
        return st;
    }
    if (!now.complete && now.records < 0) now.records = ours->records;
    if (now.end.records < 0) now.end = ours->end;
    fkv_manifest_free(ours);
    *ours = now;
    return FKV_OK;
}

static bool is_written(const fkv_claim *claim)
{
    return claim->written;
}

fkv_status fkv_output_save_held(fkv_output *o, fkv_err *err)
{
    fkv_status st = fkv_folder_still_ours(&o->folder, err);
    if (!st) st = fkv_manifest_save(&o->manifest, o->manifest_path, o->manifest_tmp, &o->manifest_bytes, err);
    if (st) return st;
    o->unsaved = false;
    o->unsaved_bytes = 0;
    o->saved_at = fkv_seconds();
    fkv_claims_close(&o->claims, &o->folder, is_written, true);
    return FKV_OK;
}

static fkv_status merge_and_save(void *ctx, fkv_err *err)
{
    fkv_output *o = ctx;
    const fkv_status st = fkv_output_merge(o, err);
    return st ? st : fkv_output_save_held(o, err);
}

/* Whoever has lock-job has it for moments: a process that is asked to end waits too. */
fkv_status fkv_output_save(fkv_output *o, fkv_err *err)
{
    if (!o->folder.shared) return fkv_output_save_held(o, err);
    return fkv_folder_with_lock(&o->folder, "job", NULL, merge_and_save, o, err);
}

static fkv_status save_manifest_if_due(fkv_output *o, fkv_err *err)
{
    if (!o->unsaved) return FKV_OK;
    const bool due = o->manifest_bytes <= MANIFEST_SMALL_BYTES ||
                     o->unsaved_bytes / MANIFEST_ROWS_FACTOR >= (int64_t)o->manifest_bytes ||
                     fkv_seconds() - o->saved_at >= MANIFEST_SECONDS;
    return due ? fkv_output_save(o, err) : FKV_OK;
}

fkv_status fkv_output_compact(fkv_output *o, fkv_err *err)
{
    if (o->unsaved || !o->journal) return FKV_OK;
    const fkv_status st = fkv_folder_still_ours(&o->folder, err);
    return st ? st : fkv_journal_compact(o->journal, o->manifest.complete, err);
}

/* The journal of a shard, and the claim on it where processes share the folder. */
typedef struct rows {
    fkv_claim *claim; /* or NULL */
    fkv_journal *journal;
    const fkv_journal_entry *entries; /* [n] */
    size_t n;
} rows;

static fkv_status write_shard(const fkv_output *o, const char *name, const rows *r, fkv_manifest_shard *shard,
                              fkv_err *err)
{
    fkv_shard_writer *writer = NULL;
    fkv_buf row = {0};
    uint64_t total = 0;
    char number[32] = "", *path = fkv_folder_path(&o->folder, name, false);
    if (!path) return fkv_fail_memory(err);
    for (size_t i = 0; i < r->n; i++) {
        total += r->entries[i].n;
        shard->errors += r->entries[i].is_error;
    }
    /* One that lost the shard unawares writes the same bytes, but not into the same file. */
    if (r->claim) snprintf(number, sizeof number, ".auto%lld", (long long)o->folder.number);
    fkv_status st = fkv_shard_writer_open(path, number, o->level, total, &writer, err);
    for (size_t i = 0; !st && i < r->n; i++) {
        st = fkv_journal_read(r->journal, &r->entries[i], &row, err);
        if (!st) st = fkv_shard_writer_add(writer, row.data, row.len, err);
    }
    if (!st) st = fkv_folder_still_ours(&o->folder, err);
    if (!st && r->claim) st = fkv_lease_check(r->claim->lease, err);
    if (!st) st = fkv_shard_writer_commit(writer, &shard->bytes, &shard->xxh3, err);
    fkv_shard_writer_close(writer);
    fkv_buf_free(&row);
    free(path);
    return st;
}

uint64_t fkv_output_mark(const fkv_output *o, int64_t index)
{
    const int64_t i = index / o->folder.n_parts;
    return i < (int64_t)o->n_marks ? o->marks[i] : 0;
}

fkv_status fkv_output_set_mark(fkv_output *o, int64_t index, uint64_t passed, fkv_err *err)
{
    const size_t i = (size_t)(index / o->folder.n_parts);
    if (i >= o->n_marks) {
        size_t n;
        uint64_t *grown = fkv_mul_size(i + 1, 2, &n) ? fkv_realloc(o->marks, n, sizeof *grown) : NULL;
        if (!grown) return fkv_fail_memory(err);
        memset(grown + o->n_marks, 0, (n - o->n_marks) * sizeof *grown);
        o->marks = grown;
        o->n_marks = n;
    }
    o->marks[i] = passed;
    return FKV_OK;
}

fkv_status fkv_output_commit(fkv_output *o, int64_t index, fkv_err *err)
{
    char name[FKV_SHARD_NAME_SIZE];
    const int64_t first = index * o->per_shard, end = fkv_output_shard_end(o, index);
    rows r = {0};
    pthread_mutex_lock(&o->mutex);
    r.claim = fkv_claims_find(&o->claims, index);
    r.journal = r.claim ? r.claim->journal : o->journal;
    pthread_mutex_unlock(&o->mutex);
    r.n = fkv_journal_range(r.journal, first, end, &r.entries);
    fkv_manifest_shard shard = {.index = index, .first = first, .count = (int64_t)r.n};
    int64_t row_bytes = 0;
    for (size_t i = 0; i < r.n; i++) row_bytes += r.entries[i].n;
    fkv_shard_name(index, name);
    fkv_status st = write_shard(o, name, &r, &shard, err);
    if (st) return st;

    pthread_mutex_lock(&o->mutex);
    shard.passed = fkv_output_mark(o, index);
    if (r.claim) {
        r.claim->shard = shard;
        r.claim->written = true;
    } else {
        st = fkv_manifest_add(&o->manifest, &shard, err);
        if (!st) fkv_journal_remove(r.journal, first, end);
    }
    if (!st) {
        o->unsaved = true;
        o->unsaved_bytes += row_bytes;
        if (shard.count == o->per_shard) st = save_manifest_if_due(o, err);
        if (!st) st = fkv_output_compact(o, err);
    }
    pthread_mutex_unlock(&o->mutex);
    return st;
}

bool fkv_output_owns(const fkv_output *o, int64_t ordinal)
{
    return ordinal >= 0 && ordinal / o->per_shard % o->folder.n_parts == o->folder.part;
}

pthread_mutex_t *fkv_output_mutex(const fkv_output *o)
{
    return (pthread_mutex_t *)&o->mutex;
}
