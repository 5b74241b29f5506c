/* The output folder: see output.h, and output_state.h for who may do what when. Not for: opening and
 * closing (output_open.c), part = auto (output_share.c). */
#include "jobs/output.h"

#include <stdlib.h>
#include <string.h>

#include "jobs/error_rows.h"
#include "jobs/output_share.h"
#include "jobs/output_state.h"
#include "runner/base/clock.h"
#include "runner/base/json.h"

static const double SYNC_SECONDS = 5;

char *fkv_output_path(const fkv_output *o, const char *file, bool per_part)
{
    return fkv_folder_path(&o->folder, file, per_part);
}

void fkv_output_who(const fkv_output *o, const char **name, int64_t *part, int64_t *n_parts)
{
    *name = o->manifest.job;
    *part = o->folder.shared ? o->folder.number : o->folder.part;
    *n_parts = o->folder.shared ? 0 : o->folder.n_parts;
}

/* Whether the shard is at hand, and the record has a row. *journal: where its row belongs, NULL: not here. */
static bool find_row(const fkv_output *o, int64_t ordinal, fkv_journal **journal)
{
    const int64_t index = ordinal / o->per_shard;
    const fkv_claim *claim = fkv_claims_find(&o->claims, index);
    *journal = o->folder.shared ? NULL : o->journal;
    if (claim && !claim->written) *journal = claim->journal;
    if (!*journal) return false;
    return (!claim && fkv_manifest_find(&o->manifest, index)) ||
           fkv_journal_range(*journal, ordinal, ordinal + 1, NULL) != 0;
}

bool fkv_output_needs(const fkv_output *o, int64_t ordinal)
{
    fkv_journal *journal;
    if (!fkv_output_owns(o, ordinal)) return false;
    pthread_mutex_lock(fkv_output_mutex(o));
    const bool needs = !o->manifest.complete && !o->repeated && !find_row(o, ordinal, &journal) && journal;
    pthread_mutex_unlock(fkv_output_mutex(o));
    return needs;
}

static fkv_status pass_locked(fkv_output *o, int64_t n, uint64_t passed, fkv_err *err)
{
    const fkv_manifest_end *end = &o->manifest.end;
    const int64_t index = n / o->per_shard - 1;
    bool same = end->firm != n || !end->passed || end->passed == passed;
    if (same && n % o->per_shard == 0 && fkv_output_owns(o, n - 1)) {
        fkv_manifest_shard *s = (fkv_manifest_shard *)fkv_manifest_find(&o->manifest, index);
        if (!s) return fkv_output_set_mark(o, index, passed, err);
        if (!s->passed) s->passed = passed;
        same = s->passed == passed;
    }
    return same ? FKV_OK
                : fkv_fail_at(
                      err, FKV_E_INPUT, o->folder.path, 0, "input.archives",
                      "the input is not what it was: its first %lld records differ from those that were "
                      "answered (use job.restart = yes or another job.output)",
                      (long long)n);
}

fkv_status fkv_output_pass(fkv_output *o, int64_t n, uint64_t passed, fkv_err *err)
{
    pthread_mutex_lock(&o->mutex);
    const fkv_status st = pass_locked(o, n, passed, err);
    pthread_mutex_unlock(&o->mutex);
    return st || !o->folder.shared || n == 0 ? st : fkv_output_share_pass(o, n - 1, err);
}

void fkv_output_pass_end(fkv_output *o, int64_t n, int64_t n_firm, uint64_t passed)
{
    pthread_mutex_lock(&o->mutex);
    o->manifest.end = (fkv_manifest_end){n, n_firm, passed};
    pthread_mutex_unlock(&o->mutex);
}

fkv_status fkv_output_identity(const fkv_output *o, fkv_buf *text, fkv_err *err)
{
    char *json = fkv_json_dump(o->manifest.identity, JSON_COMPACT);
    if (!json) return fkv_fail_memory(err);
    const fkv_status st = fkv_buf_puts(text, json, err);
    free(json);
    return st;
}

static fkv_status add_locked(fkv_output *o, int64_t ordinal, const char *row, size_t n, bool is_error,
                             int64_t prompt_tokens, int64_t completion_tokens, fkv_journal **journal,
                             fkv_err *err)
{
    if (o->manifest.complete || find_row(o, ordinal, journal) || !*journal)
        return fkv_fail(err, FKV_E_SYSTEM, "internal error: record %lld finished twice", (long long)ordinal);
    fkv_status st = fkv_folder_glance(&o->folder, err);
    if (!st) st = fkv_claims_glance(&o->claims, err);
    if (!st) st = fkv_journal_add(*journal, ordinal, row, n, is_error, prompt_tokens, completion_tokens, err);
    if (st) return st;
    o->added++;
    o->errors_added += is_error;
    o->prompt_tokens += prompt_tokens;
    o->completion_tokens += completion_tokens;
    return fkv_journal_unsynced_s(*journal) >= SYNC_SECONDS ? fkv_journal_sync(*journal, err) : FKV_OK;
}

fkv_status fkv_output_add(fkv_output *o, int64_t ordinal, const char *row, size_t n, bool is_error,
                          int64_t prompt_tokens, int64_t completion_tokens, fkv_err *err)
{
    fkv_journal *journal = NULL;
    if (!fkv_output_owns(o, ordinal) || n == 0 || row[n - 1] != '\n')
        return fkv_fail(err, FKV_E_SYSTEM, "internal error: record %lld is not a row of this part",
                        (long long)ordinal);
    pthread_mutex_lock(&o->mutex);
    fkv_status st = add_locked(o, ordinal, row, n, is_error, prompt_tokens, completion_tokens, &journal, err);
    pthread_mutex_unlock(&o->mutex);
    if (st) return st;
    const int64_t index = ordinal / o->per_shard;
    const size_t have =
        fkv_journal_range(journal, index * o->per_shard, fkv_output_shard_end(o, index), NULL);
    return (int64_t)have == o->per_shard ? fkv_output_commit(o, index, err) : FKV_OK;
}

fkv_status fkv_output_sync(fkv_output *o, fkv_err *err)
{
    pthread_mutex_lock(&o->mutex);
    fkv_status st = o->journal ? fkv_journal_sync(o->journal, err) : FKV_OK;
    if (!st) st = fkv_claims_sync(&o->claims, err);
    pthread_mutex_unlock(&o->mutex);
    return !st && o->folder.shared ? fkv_output_share_commit(o, err) : st;
}

int64_t fkv_output_share(const fkv_output *o, int64_t n_records)
{
    const int64_t full = n_records / o->per_shard, rest = n_records % o->per_shard;
    const int64_t parts = o->folder.n_parts, part = o->folder.part;
    const int64_t shards = full / parts + (full % parts > part);
    return shards * o->per_shard + (full % parts == part ? rest : 0);
}

fkv_status fkv_output_finish(fkv_output *o, int64_t n_records, fkv_err *err)
{
    fkv_status st = FKV_OK;
    const fkv_manifest *m = &o->manifest;
    if (m->complete && m->records != n_records)
        return fkv_fail_at(err, FKV_E_INPUT, o->manifest_path, 0, "records",
                           "is %lld, but the input has %lld", (long long)m->records, (long long)n_records);
    if (m->complete) return FKV_OK;
    if (o->folder.shared) return fkv_output_share_finish(o, n_records, err);
    const int64_t have = m->n_rows + (int64_t)fkv_journal_count(o->journal);
    const int64_t want = n_records < 0 ? -1 : fkv_output_share(o, n_records);
    const size_t beyond = fkv_journal_range(o->journal, n_records, INT64_MAX, NULL);
    const bool shards_beyond =
        m->n_shards && m->shards[m->n_shards - 1].first + m->shards[m->n_shards - 1].count > n_records;
    if (have != want || beyond || shards_beyond)
        return fkv_fail_at(err, FKV_E_SYSTEM, o->folder.path, 0, NULL,
                           "internal error: %lld rows, %zu of them beyond the input's end, for %lld records",
                           (long long)have, beyond, (long long)want);
    const fkv_journal_entry *entries;
    while (!st && fkv_journal_range(o->journal, 0, INT64_MAX, &entries) > 0)
        st = fkv_output_commit(o, entries[0].ordinal / o->per_shard, err);
    if (st) return st;
    fkv_manifest saved = {0};
    fkv_err ignored = {0};
    pthread_mutex_lock(&o->mutex);
    o->manifest.complete = true;
    o->manifest.records = n_records;
    o->unsaved = true;
    st = fkv_output_save(o, err);
    /* It may have come true before it failed. */
    if (st && !fkv_manifest_load(o->manifest_path, &saved, &ignored)) o->unsaved = !saved.complete;
    fkv_manifest_free(&saved);
    if (!st) st = fkv_output_compact(o, err);
    pthread_mutex_unlock(&o->mutex);
    return st;
}

fkv_status fkv_output_set_ended(fkv_output *o, int64_t n_records, fkv_err *err)
{
    pthread_mutex_lock(&o->mutex);
    o->manifest.records = n_records;
    o->unsaved = true;
    const fkv_status st = fkv_output_save(o, err);
    pthread_mutex_unlock(&o->mutex);
    return st;
}

/* Of a shared output what this run knows: what it found and what it did, until the job is complete. */
static void shared_totals(const fkv_output *o, fkv_output_totals *t)
{
    const fkv_manifest *m = &o->manifest;
    t->complete = m->complete && !o->unsaved;
    t->records = t->complete ? m->n_rows : o->resumed + o->added;
    t->resumed = t->records - o->added;
    t->errors = t->complete ? m->n_errors : o->errors_before + o->errors_added;
    t->prompt_tokens = o->prompt_tokens;
    t->completion_tokens = o->completion_tokens;
    t->ended = m->records >= 0 && t->records == m->records;
}

void fkv_output_totals_get(fkv_output *o, fkv_output_totals *totals)
{
    if (o->folder.shared) {
        *totals = (fkv_output_totals){0};
        pthread_mutex_lock(&o->mutex);
        shared_totals(o, totals);
        pthread_mutex_unlock(&o->mutex);
        return;
    }
    pthread_mutex_lock(&o->mutex);
    const int64_t rows = o->manifest.n_rows + (int64_t)fkv_journal_count(o->journal);
    *totals = (fkv_output_totals){
        .records = rows,
        .resumed = o->resumed,
        .errors = o->manifest.n_errors + fkv_journal_errors(o->journal),
        .prompt_tokens = o->prompt_tokens,
        .completion_tokens = o->completion_tokens,
        .ended = o->manifest.records >= 0 && rows == fkv_output_share(o, o->manifest.records),
        .complete = o->manifest.complete && !o->unsaved,
    };
    pthread_mutex_unlock(&o->mutex);
}

fkv_status fkv_output_count_errors(const fkv_output *o, fkv_error_counts *counts, fkv_err *err)
{
    return fkv_error_rows_count(&o->folder, &o->manifest, o->journal, counts, err);
}

fkv_status fkv_output_pin(fkv_output *o, const char *key, const char *value, fkv_err *err)
{
    bool changed;
    fkv_err differs = {0};
    pthread_mutex_lock(&o->mutex);
    fkv_status st = fkv_manifest_pin(&o->manifest, o->folder.path, key, value, &changed, &differs);
    if (!st && changed && !o->looking) st = fkv_output_save(o, &differs);
    pthread_mutex_unlock(&o->mutex);
    if (st == FKV_E_INPUT && o->looking) {
        fkv_errs_add(o->changes, &differs);
        return FKV_OK;
    }
    if (st && err && !err->status) *err = differs;
    return st;
}

const char *fkv_output_pinned(const fkv_output *o, const char *key)
{
    return json_string_value(json_object_get(o->manifest.run, key));
}

bool fkv_output_tells_kept(const fkv_output *o)
{
    return fkv_output_pinned(o, FKV_OUTPUT_ROWS_KEY);
}

fkv_status fkv_output_with_lock(fkv_output *o, const char *what, fkv_status (*make)(void *ctx, fkv_err *err),
                                void *ctx, fkv_err *err)
{
    return fkv_folder_with_lock(&o->folder, what, o->asked, make, ctx, err);
}

fkv_status fkv_output_still_ours(const fkv_output *o, fkv_err *err)
{
    return fkv_folder_still_ours(&o->folder, err);
}

fkv_status fkv_output_glance(const fkv_output *o, fkv_err *err)
{
    return fkv_folder_glance(&o->folder, err);
}
