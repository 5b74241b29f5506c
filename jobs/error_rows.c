/* The error rows of an output: see error_rows.h. */
#include "jobs/error_rows.h"

#include <stdlib.h>

#include "jobs/shard.h"

static fkv_status count_error(void *ctx, const fkv_error_row *row, fkv_err *err)
{
    (void)err;
    fkv_error_counts_add(ctx, row->code.p, row->code.n, 1);
    return FKV_OK;
}

/* Rows without an error are passed over. */
static fkv_status see_row(const char *row, size_t n, fkv_error_row_see *see, void *ctx, fkv_err *err)
{
    static const char *const of_row[] = {"source", "error"}, *const of_error[] = {"code", "message"};
    static const fkv_span null = {"null", 4}, empty = {"", 0};
    fkv_span at[2], in[2] = {{0}};
    fkv_err ignored = {0};
    if (fkv_row_members(row, n, of_row, at, 2, &ignored) || !fkv_row_has(&at[1])) return FKV_OK;
    const bool sound = !fkv_row_members(at[1].p, at[1].n, of_error, in, 2, &ignored);
    const fkv_error_row found = {
        .source = fkv_row_has(&at[0]) ? at[0] : null,
        .code = sound && in[0].n > 2 ? (fkv_span){in[0].p + 1, in[0].n - 2} : empty,
        .message = sound && fkv_row_has(&in[1]) ? in[1] : null,
    };
    return see(ctx, &found, err);
}

static fkv_status see_shard(const fkv_folder *folder, int64_t index, fkv_error_row_see *see, void *ctx,
                            fkv_err *err)
{
    char name[FKV_SHARD_NAME_SIZE];
    fkv_shard_reader *reader = NULL;
    const char *row;
    size_t n;
    fkv_shard_name(index, name);
    char *path = fkv_folder_path(folder, name, false);
    fkv_status st = path ? fkv_shard_reader_open(path, &reader, err) : fkv_fail_memory(err);
    bool enough = false;
    while (!st && !(st = fkv_shard_reader_next(reader, &row, &n, err))) {
        st = see_row(row, n, see, ctx, err);
        enough = st == FKV_END;
    }
    fkv_shard_reader_close(reader);
    free(path);
    return st == FKV_END && !enough ? FKV_OK : st;
}

fkv_status fkv_error_rows_each(const fkv_folder *folder, const fkv_manifest *m, const fkv_journal *journal,
                               fkv_error_row_see *see, void *ctx, fkv_err *err)
{
    const fkv_journal_entry *entries;
    fkv_buf row = {0};
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && m && i < m->n_shards; i++)
        if (m->shards[i].errors) st = see_shard(folder, m->shards[i].index, see, ctx, err);
    const size_t n = journal ? fkv_journal_range(journal, 0, INT64_MAX, &entries) : 0;
    for (size_t i = 0; !st && i < n; i++) {
        if (!entries[i].is_error) continue;
        st = fkv_journal_read(journal, &entries[i], &row, err);
        if (!st) st = see_row(row.data, row.len, see, ctx, err);
    }
    fkv_buf_free(&row);
    return st == FKV_END ? FKV_OK : st;
}

fkv_status fkv_error_rows_count(const fkv_folder *folder, const fkv_manifest *manifest,
                                const fkv_journal *journal, fkv_error_counts *counts, fkv_err *err)
{
    return fkv_error_rows_each(folder, manifest, journal, count_error, counts, err);
}
