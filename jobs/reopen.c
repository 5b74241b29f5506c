/* Shards that are done again: see reopen.h. */
#include "jobs/reopen.h"

#include <stdlib.h>

#include "jobs/row.h"
#include "jobs/shard.h"

fkv_status fkv_reopen_rows(const fkv_reopening *r, const fkv_manifest_shard *s, fkv_err *err)
{
    static const char *const keys[] = {"error"};
    char name[FKV_SHARD_NAME_SIZE];
    fkv_shard_reader *reader = NULL;
    const char *row;
    size_t n;
    fkv_shard_name(s->index, name);
    char *path = fkv_folder_path(r->folder, name, false);
    if (!path) return fkv_fail_memory(err);
    int64_t i = 0;
    fkv_status st = fkv_shard_reader_open(path, &reader, err);
    while (!st && !(st = fkv_shard_reader_next(reader, &row, &n, err))) {
        fkv_span error;
        fkv_err bad = {0};
        if (i == s->count || fkv_row_members(row, n, keys, &error, 1, &bad)) {
            st = fkv_fail_at(err, FKV_E_INPUT, path, i + 1, NULL, "not the row that the manifest says");
            break;
        }
        const bool is_error = fkv_row_has(&error);
        if (!r->looking && !(is_error && r->answers_only))
            st = fkv_journal_add(r->journal, s->first + i, row, n, is_error, 0, 0, err);
        i++;
    }
    if (st == FKV_END) st = fkv_shard_reader_check(reader, s->bytes, s->xxh3, err);
    if (!st && i != s->count)
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "has %lld rows, the manifest says %lld",
                         (long long)i, (long long)s->count);
    fkv_shard_reader_close(reader);
    free(path);
    return st;
}

/* Takes the shards that which chooses out of the manifest. */
static void forget(fkv_manifest *m, bool (*which)(const void *ctx, const fkv_manifest_shard *s),
                   const void *ctx)
{
    size_t kept = 0;
    for (size_t i = 0; i < m->n_shards; i++) {
        const fkv_manifest_shard s = m->shards[i];
        if (!which(ctx, &s)) {
            m->shards[kept++] = s;
            continue;
        }
        m->n_rows -= s.count;
        m->n_errors -= s.errors;
    }
    m->n_shards = kept;
    m->complete = false;
    m->records = -1;
}

/* Reopens the shards that which chooses. */
static fkv_status reopen(const fkv_reopening *r, bool (*which)(const void *ctx, const fkv_manifest_shard *s),
                         const void *ctx, fkv_err *err)
{
    const fkv_manifest *m = r->manifest;
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < m->n_shards; i++) {
        if (which(ctx, &m->shards[i])) st = fkv_reopen_rows(r, &m->shards[i], err);
    }
    if (!st && !r->looking) st = fkv_journal_sync(r->journal, err);
    if (!st) forget(r->manifest, which, ctx);
    return st;
}

/* A manifest that is not complete may not name a short last shard. */
static bool has_errors_or_is_short(const void *ctx, const fkv_manifest_shard *s)
{
    return fkv_reopen_wants(ctx, s);
}

bool fkv_reopen_wants(const fkv_manifest *m, const fkv_manifest_shard *s)
{
    return s->errors > 0 || s->count < m->records_per_shard;
}

void fkv_reopen_forget(fkv_manifest *m)
{
    forget(m, has_errors_or_is_short, m);
}

fkv_status fkv_reopen_errors(const fkv_reopening *r, fkv_err *err)
{
    return reopen(r, has_errors_or_is_short, r->manifest, err);
}

/* The last record that has a row; 0: none has. */
static int64_t last_row(const fkv_reopening *r)
{
    const fkv_manifest *m = r->manifest;
    const fkv_manifest_shard *s = m->n_shards ? &m->shards[m->n_shards - 1] : NULL;
    const fkv_journal_entry *entries;
    const size_t n = fkv_journal_range(r->journal, 0, INT64_MAX, &entries);
    const int64_t in_shard = s ? s->first + s->count - 1 : 0;
    return n && entries[n - 1].ordinal > in_shard ? entries[n - 1].ordinal : in_shard;
}

static bool is_error(const fkv_reopening *r, int64_t ordinal)
{
    const fkv_journal_entry *e;
    return fkv_journal_range(r->journal, ordinal, ordinal + 1, &e) && e->is_error;
}

typedef struct input_end {
    int64_t from, per_shard;
} input_end;

static bool is_at_end(const void *ctx, const fkv_manifest_shard *s)
{
    const input_end *end = ctx;
    return s->first + s->count > end->from || s->count < end->per_shard;
}

fkv_status fkv_reopen_end(const fkv_reopening *r, int64_t *from, fkv_err *err)
{
    const fkv_manifest *m = r->manifest;
    const int64_t last = last_row(r);
    const bool known = m->end.records > last; /* else a later run went beyond that end, and was killed */
    input_end end = {known ? m->end.firm : last, m->records_per_shard};
    const fkv_status st = reopen(r, is_at_end, &end, err);
    *from = end.from;
    if (st) return st;
    while (!known && *from > 0 && is_error(r, *from) && is_error(r, *from - 1)) --*from;
    fkv_journal_remove(r->journal, *from, INT64_MAX);
    return FKV_OK;
}
