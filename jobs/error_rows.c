/* The error rows of an output: see error_rows.h. */
#include "jobs/error_rows.h"

#include <stdlib.h>

#include "jobs/row.h"
#include "jobs/shard.h"

static fkv_status count_error(void *ctx, const char *row, size_t n, fkv_err *err)
{
    fkv_error_counts *counts = ctx;
    (void)err;
    static const char *const of_row[] = {"error"}, *const of_error[] = {"code"};
    fkv_span error, code = {0};
    fkv_err ignored = {0};
    if (fkv_row_members(row, n, of_row, &error, 1, &ignored) || !fkv_row_has(&error)) return FKV_OK;
    const bool quoted = !fkv_row_members(error.p, error.n, of_error, &code, 1, &ignored) && code.n > 2;
    fkv_error_counts_add(counts, quoted ? code.p + 1 : "", quoted ? code.n - 2 : 0, 1);
    return FKV_OK;
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
    while (!st && !(st = fkv_shard_reader_next(reader, &row, &n, err))) st = see(ctx, row, n, err);
    fkv_shard_reader_close(reader);
    free(path);
    return st == FKV_END ? FKV_OK : st;
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
        if (!st) st = see(ctx, row.data, row.len, err);
    }
    fkv_buf_free(&row);
    return st;
}

fkv_status fkv_error_rows_count(const fkv_folder *folder, const fkv_manifest *manifest,
                                const fkv_journal *journal, fkv_error_counts *counts, fkv_err *err)
{
    return fkv_error_rows_each(folder, manifest, journal, count_error, counts, err);
}
