/* The output folder: see output.h. Owns the folder's lease, the journal and the
 * manifest. Not for: file formats (journal.c, manifest.c, shard.c), names and
 * leases (folder.c).
 *
 * One mutex guards the state. Only the thread that adds rows changes it, so that
 * thread may read it without; a shard is compressed that way, while others go on
 * asking which records are needed. */
#include "jobs/output.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jobs/error_rows.h"
#include "jobs/folder.h"
#include "jobs/journal.h"
#include "jobs/known_archives.h"
#include "jobs/manifest.h"
#include "jobs/reopen.h"
#include "jobs/shard.h"
#include "runner/base/clock.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

/* A manifest is replaced whole, so replacing it at every shard would be quadratic
 * in the number of shards. While it is small it is replaced each time; later when
 * rows of eight times its size are in shards that it lacks, or after 10 s. Until
 * then their rows stay in the journal: a crash repeats the compression alone. */
enum { MANIFEST_SMALL_BYTES = 64 * 1024, MANIFEST_ROWS_FACTOR = 8 };
static const double MANIFEST_SECONDS = 10, SYNC_SECONDS = 5;

struct fkv_output {
    fkv_folder folder;
    pthread_mutex_t mutex;
    bool has_mutex;
    bool (*asked)(void); /* to stop; or NULL */
    bool looking;        /* nothing is written */
    fkv_errs *changes;   /* looking: gets every key and pin that differs */
    bool other_job;      /* looking: the folder's is another one */
    bool anew;           /* what an earlier run left counts for nothing */
    bool began;          /* this run made the first manifest */
    int64_t per_shard;
    int level;
    bool retry_errors;
    fkv_manifest manifest; /* of this part; shards on disk */
    fkv_journal *journal;
    char *manifest_path;
    fkv_buf job_ini;
    const fkv_job *job; /* while it is opened */
    bool has_grown;     /* the last archive, since the last run */
    uint64_t
        *marks; /* [n_marks]: what fkv_manifest_shard.passed will be, by the part's own count of shards */
    size_t n_marks;

    bool unsaved;                             /* the manifest on disk lacks shards, or that it is complete */
    int64_t unsaved_bytes;                    /* of their rows */
    size_t manifest_bytes;                    /* of the file */
    double saved_at;                          /* monotonic seconds */
    int64_t resumed;                          /* rows there were when it was opened */
    int64_t prompt_tokens, completion_tokens; /* of this run */
};

/* first + count of a shard that ends within int64_t, whatever its index. */
static int64_t shard_end(const fkv_output *o, int64_t index)
{
    int64_t end;
    if (!fkv_mul_i64(index + 1, o->per_shard, &end)) return INT64_MAX;
    return end;
}

static fkv_status save_manifest(fkv_output *o, fkv_err *err)
{
    fkv_status st = fkv_folder_still_ours(&o->folder, err);
    if (!st) st = fkv_manifest_save(&o->manifest, o->manifest_path, &o->manifest_bytes, err);
    if (st) return st;
    o->unsaved = false;
    o->unsaved_bytes = 0;
    o->saved_at = fkv_seconds();
    return FKV_OK;
}

static fkv_status save_manifest_if_due(fkv_output *o, fkv_err *err)
{
    if (!o->unsaved) return FKV_OK;
    const bool due = o->manifest_bytes <= MANIFEST_SMALL_BYTES ||
                     o->unsaved_bytes / MANIFEST_ROWS_FACTOR >= (int64_t)o->manifest_bytes ||
                     fkv_seconds() - o->saved_at >= MANIFEST_SECONDS;
    return due ? save_manifest(o, err) : FKV_OK;
}

/* For the adding thread alone, which may be reading the journal's file. Rows may
 * leave that file when the manifest on disk names their shard. */
static fkv_status compact_if_saved(fkv_output *o, fkv_err *err)
{
    if (o->unsaved) return FKV_OK;
    const fkv_status st = fkv_folder_still_ours(&o->folder, err);
    return st ? st : fkv_journal_compact(o->journal, o->manifest.complete, err);
}

/* Writes n journalled rows as shard file path. */
static fkv_status write_shard(const fkv_output *o, const char *path, const fkv_journal_entry *entries,
                              size_t n, fkv_manifest_shard *shard, fkv_err *err)
{
    fkv_shard_writer *writer = NULL;
    fkv_buf row = {0};
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        total += entries[i].n;
        shard->errors += entries[i].is_error;
    }
    fkv_status st = fkv_shard_writer_open(path, o->level, total, &writer, err);
    for (size_t i = 0; !st && i < n; i++) {
        st = fkv_journal_read(o->journal, &entries[i], &row, err);
        if (!st) st = fkv_shard_writer_add(writer, row.data, row.len, err);
    }
    if (!st) st = fkv_folder_still_ours(&o->folder, err);
    if (!st) st = fkv_shard_writer_commit(writer, &shard->bytes, &shard->xxh3, err);
    fkv_shard_writer_close(writer);
    fkv_buf_free(&row);
    return st;
}

/* 0: the reader has not come so far. */
static uint64_t get_mark(const fkv_output *o, int64_t index)
{
    const int64_t i = index / o->folder.n_parts;
    return i < (int64_t)o->n_marks ? o->marks[i] : 0;
}

static fkv_status set_mark(fkv_output *o, int64_t index, uint64_t passed, fkv_err *err)
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

/* Makes shard index of its rows in the journal, which must be all of them. A shard
 * with fewer rows than the others is the input's last: no manifest on disk names it
 * before one that says so too, or a crash in between would leave a manifest that looks
 * damaged. */
static fkv_status commit(fkv_output *o, int64_t index, fkv_err *err)
{
    char name[FKV_SHARD_NAME_SIZE];
    const fkv_journal_entry *entries;
    const int64_t first = index * o->per_shard, end = shard_end(o, index);
    const size_t n = fkv_journal_range(o->journal, first, end, &entries);
    fkv_manifest_shard shard = {.index = index, .first = first, .count = (int64_t)n};
    int64_t row_bytes = 0;
    for (size_t i = 0; i < n; i++) row_bytes += entries[i].n;
    fkv_shard_name(index, name);
    char *path = fkv_folder_path(&o->folder, name, false);
    if (!path) return fkv_fail_memory(err);
    fkv_status st = write_shard(o, path, entries, n, &shard, err);
    free(path);
    if (st) return st;

    pthread_mutex_lock(&o->mutex);
    shard.passed = get_mark(o, index);
    st = fkv_manifest_add(&o->manifest, &shard, err);
    if (!st) {
        fkv_journal_remove(o->journal, first, end);
        o->unsaved = true;
        o->unsaved_bytes += row_bytes;
        if (shard.count == o->per_shard) st = save_manifest_if_due(o, err);
        if (!st) st = compact_if_saved(o, err);
    }
    pthread_mutex_unlock(&o->mutex);
    return st;
}

/* Whether ordinal is this part's. */
static bool owns(const fkv_output *o, int64_t ordinal)
{
    return ordinal >= 0 && ordinal / o->per_shard % o->folder.n_parts == o->folder.part;
}

static bool has_row(const fkv_output *o, int64_t ordinal)
{
    return fkv_manifest_find(&o->manifest, ordinal / o->per_shard) ||
           fkv_journal_range(o->journal, ordinal, ordinal + 1, NULL) != 0;
}

/* Opening, step by step. */

static fkv_status check_shards(const fkv_output *o, fkv_err *err)
{
    const fkv_manifest *m = &o->manifest;
    for (size_t i = 0; i < m->n_shards; i++) {
        const fkv_manifest_shard *s = &m->shards[i];
        char name[FKV_SHARD_NAME_SIZE];
        fkv_shard_name(s->index, name);
        if (s->index % o->folder.n_parts != o->folder.part)
            return fkv_fail_at(err, FKV_E_INPUT, o->manifest_path, 0, "shards", "%s is another part's", name);
        char *path = fkv_folder_path(&o->folder, name, false);
        if (!path) return fkv_fail_memory(err);
        const int64_t size = fkv_file_size(path);
        fkv_status st = FKV_OK;
        if (size < 0 && errno != ENOENT)
            st = fkv_fail_errno(err, path, "stat");
        else if (size < 0)
            st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "is missing, but stands in the manifest");
        else if (size != s->bytes)
            st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "has %lld bytes, the manifest says %lld",
                             (long long)size, (long long)s->bytes);
        free(path);
        if (st) return st;
    }
    return FKV_OK;
}

/* Whether the folder's job is ours; one that only looks notes all that differs and goes on. */
static fkv_status compare(fkv_output *o, const fkv_manifest *theirs, fkv_err *err)
{
    if (!o->looking) return fkv_manifest_same_job(theirs, &o->manifest, o->folder.path, err);
    const int before = o->changes->n;
    fkv_manifest_changes(theirs, &o->manifest, o->folder.path, o->changes);
    if (o->changes->n > before) o->other_job = true;
    return FKV_OK;
}

/* An identity names the archives by their contents when the output began. They may lie elsewhere now, and
 * the last of them may have grown at its end since. */
static fkv_status adopt_archives(fkv_output *o, const fkv_manifest *theirs, bool *has_grown, fkv_err *err)
{
    static const char key[] = "input.archives";
    json_t *was = json_object_get(theirs->identity, key);
    bool follows;
    *has_grown = false;
    if (!theirs->archives || !was) return FKV_OK;
    const fkv_status st =
        fkv_known_archives_follow(theirs->archives, o->job, &o->manifest.archives, &follows, has_grown, err);
    if (st || !follows) return st;
    return json_object_set(o->manifest.identity, key, was) ? fkv_fail_memory(err) : FKV_OK;
}

/* Parts take the names of archives from the first of them. */
static fkv_status check_peer(fkv_output *o, const fkv_folder_peers *peers, fkv_err *err)
{
    fkv_manifest peer;
    if (!peers->peer) return FKV_OK;
    if (peers->mixed)
        return fkv_fail_at(err, FKV_E_INPUT, o->folder.path, 0, "input.part",
                           "the output was begun in another number of parts: it has %s",
                           strrchr(peers->peer, '/') ? strrchr(peers->peer, '/') + 1 : peers->peer);
    bool has_grown = false;
    fkv_status st = fkv_manifest_load(peers->peer, &peer, err);
    if (!st) st = adopt_archives(o, &peer, &has_grown, err);
    if (!st) st = compare(o, &peer, err);
    if (!st && peer.archives && !has_grown) {
        json_decref(o->manifest.archives);
        o->manifest.archives = json_incref(peer.archives);
    }
    fkv_manifest_free(&peer);
    return st;
}

/* Whether an earlier run left nothing to keep; then its journal, which may be bound to
 * another job, is gone. Parts share a folder and so keep to what the first of them made. */
static fkv_status holds_no_row(fkv_output *o, const fkv_manifest *old, bool *empty, fkv_err *err)
{
    char *journal = fkv_folder_path(&o->folder, "journal", true);
    if (!journal) return fkv_fail_memory(err);
    const int64_t size = fkv_file_size(journal);
    fkv_status st = FKV_OK;
    if (size < 0 && errno != ENOENT) st = fkv_fail_errno(err, journal, "stat");
    *empty = !st && o->folder.n_parts == 1 && old->n_rows == 0 && !old->complete &&
             size <= FKV_JOURNAL_EMPTY_BYTES;
    if (*empty && !o->looking && unlink(journal) && errno != ENOENT)
        st = fkv_fail_errno(err, journal, "remove");
    free(journal);
    return st;
}

/* o->manifest holds what a new one would; takes the folder's in its place. */
static fkv_status load_manifest(fkv_output *o, fkv_err *err)
{
    fkv_manifest old;
    bool empty = false;
    fkv_status st = fkv_manifest_load(o->manifest_path, &old, err);
    if (!st) st = holds_no_row(o, &old, &empty, err);
    if (!st && empty) { /* a run that failed before its first record binds nobody */
        fkv_manifest_free(&old);
        o->anew = true;
        return o->looking ? FKV_OK : save_manifest(o, err);
    }
    if (!st) st = adopt_archives(o, &old, &o->has_grown, err);
    if (!st && !o->other_job) st = compare(o, &old, err);
    if (st) {
        fkv_manifest_free(&old);
        return st;
    }
    if (o->has_grown) {
        json_decref(old.archives);
        old.archives = json_incref(o->manifest.archives);
    }
    fkv_manifest_free(&o->manifest);
    o->manifest = old;
    const int64_t size = fkv_file_size(o->manifest_path);
    if (size < 0) return fkv_fail_errno(err, o->manifest_path, "stat");
    o->manifest_bytes = (size_t)size;
    return o->other_job ? FKV_OK : check_shards(o, err);
}

static fkv_status new_manifest(fkv_output *o, fkv_err *err)
{
    fkv_status st = fkv_folder_check_no_shards(&o->folder, err);
    if (!st) st = fkv_folder_check_ours(&o->folder, err);
    if (st || o->looking) return st;
    o->began = true;
    return save_manifest(o, err);
}

/* What comes behind the manifest, which is the first file of an output. */
static fkv_status make_the_rest(fkv_output *o, fkv_err *err)
{
    char *ini = fkv_folder_path(&o->folder, "job.ini", false);
    char *shards = fkv_folder_path(&o->folder, "shards", false);
    fkv_status st = ini && shards ? fkv_dir_make(shards, err) : fkv_fail_memory(err);
    if (!st) st = fkv_file_replace(ini, o->job_ini.data ? o->job_ini.data : "", o->job_ini.len, err);
    free(shards);
    free(ini);
    return st;
}

/* Under lock-job, so that parts that start together see each other's manifest
 * and take turns at job.ini. */
static fkv_status settle_job(void *ctx, fkv_err *err)
{
    fkv_output *o = ctx;
    fkv_folder_peers peers = {0};
    fkv_status st = fkv_folder_look(&o->folder, &peers, err);
    if (!st) st = check_peer(o, &peers, err);
    const bool missing = !st && fkv_file_size(o->manifest_path) < 0;
    if (missing && errno != ENOENT)
        st = fkv_fail_errno(err, o->manifest_path, "stat");
    else if (!st)
        st = missing ? new_manifest(o, err) : load_manifest(o, err);
    if (!st && !o->looking) st = make_the_rest(o, err);
    fkv_folder_peers_free(&peers);
    return st;
}

static bool keep_entry(void *ctx, const fkv_journal_entry *e)
{
    const fkv_output *o = ctx;
    if (o->manifest.complete) return false;
    return !fkv_manifest_find(&o->manifest, e->ordinal / o->per_shard) && !(e->is_error && o->retry_errors);
}

static fkv_status load_journal(fkv_output *o, fkv_err *err)
{
    uint64_t identity;
    int64_t dropped = 0;
    const fkv_journal_entry *entries;
    char *path = fkv_folder_path(&o->folder, "journal", true);
    if (!path) return fkv_fail_memory(err);
    fkv_status st = fkv_manifest_hash(&o->manifest, &identity, err);
    if (!st && o->looking)
        st = fkv_journal_look(o->anew || o->other_job ? NULL : path, identity, &o->journal, err);
    else if (!st)
        st = fkv_journal_open(path, identity, &o->journal, &dropped, err);
    /* One that was only silent may wake up and write on; then into a file that has no name any more. */
    if (!st && fkv_folder_after_silence(&o->folder)) st = fkv_journal_renew(o->journal, err);
    if (!st && dropped)
        fkv_log("%s: dropped %lld bytes that the last run was writing when it stopped", path,
                (long long)dropped);
    const size_t n = st ? 0 : fkv_journal_range(o->journal, 0, INT64_MAX, &entries);
    for (size_t i = 0; !st && i < n; i++) {
        if (!owns(o, entries[i].ordinal))
            st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "holds record %lld, which is another part's",
                             (long long)entries[i].ordinal);
    }
    if (!st) fkv_journal_filter(o->journal, keep_entry, o);
    free(path);
    return st;
}

/* For retry_errors. Error rows stay in the journal's file, so that a later run without it has them. */
static fkv_status reopen_shards_with_errors(fkv_output *o, fkv_err *err)
{
    const fkv_reopening r = {&o->folder, &o->manifest, o->journal, o->looking};
    if (!o->retry_errors || o->manifest.n_errors == 0) return FKV_OK;
    const fkv_status st = fkv_reopen_errors(&r, err);
    if (st) return st;
    fkv_journal_filter(o->journal, keep_entry, o);
    return o->looking ? FKV_OK : save_manifest(o, err);
}

/* The last archive has grown. What goes leaves the journal's file before the manifest knows that: later runs
 * would take it for answered. */
static fkv_status reopen_end(fkv_output *o, fkv_err *err)
{
    const fkv_reopening r = {&o->folder, &o->manifest, o->journal, o->looking};
    int64_t from;
    if (o->looking) { /* most of what is there stays: a run would say which */
        o->manifest.complete = false;
        o->manifest.records = -1;
        return FKV_OK;
    }
    fkv_status st = fkv_reopen_end(&r, &from, err);
    if (st) return st;
    fkv_log("%s: the last archive has grown: record %lld and those behind it are done now", o->folder.path,
            (long long)from);
    st = fkv_journal_renew(o->journal, err);
    return st ? st : save_manifest(o, err);
}

/* Commits shards that were full when the last run stopped. */
static fkv_status commit_full_shards(fkv_output *o, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (int64_t from = 0; !st;) {
        const fkv_journal_entry *entries;
        if (fkv_journal_range(o->journal, from, INT64_MAX, &entries) == 0) break;
        const int64_t index = entries[0].ordinal / o->per_shard, end = shard_end(o, index);
        const size_t n = fkv_journal_range(o->journal, index * o->per_shard, end, NULL);
        if ((int64_t)n == o->per_shard) st = commit(o, index, err);
        from = end;
    }
    return st;
}

static fkv_status prepare(fkv_output *o, const fkv_job *job, fkv_err *err)
{
    fkv_buf identity = {0};
    fkv_job again = *job; /* which resumes */
    again.job.restart = false;
    fkv_status st = fkv_job_write_identity(job, &identity, err);
    if (!st) st = fkv_job_write_ini(&again, &o->job_ini, err);
    if (!st)
        st = fkv_manifest_init(&o->manifest, job->job.name, identity.data ? identity.data : "", identity.len,
                               o->per_shard, err);
    if (!st) st = fkv_known_archives_make(job, &o->manifest.archives, err);
    fkv_buf_free(&identity);
    return st;
}

static fkv_status load_folder(fkv_output *o, fkv_err *err)
{
    if (!(o->manifest_path = fkv_folder_path(&o->folder, "manifest.json", true))) return fkv_fail_memory(err);
    fkv_status st = o->looking ? settle_job(o, err) : fkv_folder_sweep(&o->folder, err);
    if (!st && !o->looking) st = fkv_folder_with_lock(&o->folder, "job", o->asked, settle_job, o, err);
    if (!st) st = load_journal(o, err);
    if (st || o->other_job) return st;
    if (o->has_grown && (st = reopen_end(o, err))) return st;
    if ((st = reopen_shards_with_errors(o, err))) return st;
    o->resumed = o->manifest.n_rows + (int64_t)fkv_journal_count(o->journal);
    o->saved_at = fkv_seconds();
    if (o->looking) return FKV_OK;
    st = commit_full_shards(o, err);
    return st ? st : compact_if_saved(o, err);
}

fkv_status fkv_output_check(const fkv_job *job, bool (*asked)(void), fkv_err *err)
{
    return fkv_folder_check(job->job.output, job->input.part, job->input.n_parts, job->job.restart, asked,
                            err);
}

/* The folder as it is; behind what a restart would move aside there is none. */
static fkv_status look_at_folder(fkv_output *o, const fkv_job *job, fkv_err *err)
{
    bool old = false;
    fkv_status st = fkv_folder_name(&o->folder, job->job.output, job->input.part, job->input.n_parts,
                                    job->job.restart, err);
    if (!st && job->job.restart) st = fkv_folder_is_old(&o->folder, &old, err);
    if (!st && old) return fkv_journal_look(NULL, 0, &o->journal, err);
    return st ? st : load_folder(o, err);
}

static fkv_status new_output(const fkv_job *job, fkv_output **output, fkv_err *err)
{
    fkv_output *o = *output = fkv_calloc(1, sizeof *o);
    if (!o) return fkv_fail_memory(err);
    o->per_shard = job->output.records_per_shard;
    o->level = (int)job->output.compression_level;
    o->retry_errors = job->job.retry_errors;
    if (o->per_shard < 1)
        return fkv_fail_at(err, FKV_E_INPUT, NULL, 0, "output.records_per_shard", "must be at least 1");
    if (pthread_mutex_init(&o->mutex, NULL)) return fkv_fail_memory(err);
    o->has_mutex = true;
    o->job = job;
    return prepare(o, job, err);
}

static fkv_status end_open(fkv_output *o, fkv_status st, fkv_output **output)
{
    *output = st ? NULL : o;
    if (o) o->job = NULL;
    if (st == FKV_E_INPUT)
        fkv_output_close_refused(o);
    else if (st)
        fkv_output_close(o);
    return st;
}

fkv_status fkv_output_open(const fkv_job *job, bool (*asked)(void), fkv_output **output, fkv_err *err)
{
    fkv_output *o;
    fkv_status st = new_output(job, &o, err);
    if (!st) o->asked = asked;
    if (!st)
        st = fkv_folder_open(&o->folder, job->job.output, job->input.part, job->input.n_parts,
                             job->job.restart, asked, err);
    if (!st) st = load_folder(o, err);
    return end_open(o, st, output);
}

fkv_status fkv_output_look(const fkv_job *job, fkv_errs *errs, fkv_output **output, fkv_err *err)
{
    fkv_output *o;
    fkv_status st = new_output(job, &o, err);
    if (o) o->looking = true;
    if (o) o->changes = errs;
    if (!st) st = look_at_folder(o, job, err);
    return end_open(o, st, output);
}

fkv_status fkv_output_name_archives(const fkv_output *o, fkv_job *job, fkv_err *err)
{
    json_t *now;
    if (!o->manifest.archives) return FKV_OK;
    fkv_status st = fkv_known_archives_make(job, &now, err);
    if (!st) st = fkv_known_archives_apply(o->manifest.archives, now, job, err);
    json_decref(now);
    return st;
}

/* Whether this run began the output, and nothing in it is worth keeping. */
static bool is_refuse(const fkv_output *o)
{
    if (!o->began || o->folder.n_parts > 1 || o->manifest.n_rows > 0) return false;
    if (o->journal && fkv_journal_count(o->journal) > 0) return false;
    char *profile = fkv_folder_path(&o->folder, "profile.json", false);
    const bool kept = !profile || fkv_file_exists(profile);
    free(profile);
    return !kept;
}

void fkv_output_close_refused(fkv_output *o)
{
    if (o && is_refuse(o)) {
        fkv_journal_close(o->journal);
        o->journal = NULL;
        fkv_folder_discard(&o->folder);
    }
    fkv_output_close(o);
}

void fkv_output_close(fkv_output *o)
{
    if (!o) return;
    /* Nothing is lost if these fail: the rows are in the journal's file. */
    fkv_err err = {0};
    if (o->journal && !o->looking && fkv_journal_sync(o->journal, &err))
        fkv_log_at(FKV_LOG_WARNING, "%s: journal: %s", o->folder.path, err.message);
    /* A finish that failed is the next run's: it must not come true behind the error. */
    const bool save = o->journal && o->unsaved && !o->manifest.complete;
    const fkv_status st = save ? save_manifest(o, &err) : FKV_OK;
    if (st && st != FKV_E_BUSY) fkv_log_at(FKV_LOG_WARNING, "%s: manifest: %s", o->folder.path, err.message);
    fkv_journal_close(o->journal);
    fkv_manifest_free(&o->manifest);
    fkv_buf_free(&o->job_ini);
    free(o->marks);
    free(o->manifest_path);
    fkv_folder_close(&o->folder);
    if (o->has_mutex) pthread_mutex_destroy(&o->mutex);
    free(o);
}

char *fkv_output_path(const fkv_output *o, const char *file, bool per_part)
{
    return fkv_folder_path(&o->folder, file, per_part);
}

void fkv_output_who(const fkv_output *o, const char **name, int64_t *part, int64_t *n_parts)
{
    *name = o->manifest.job;
    *part = o->folder.part;
    *n_parts = o->folder.n_parts;
}

/* The mutex is no part of what a caller sees as const. */
static pthread_mutex_t *mutex_of(const fkv_output *o)
{
    return (pthread_mutex_t *)&o->mutex;
}

bool fkv_output_needs(const fkv_output *o, int64_t ordinal)
{
    if (!owns(o, ordinal)) return false;
    pthread_mutex_lock(mutex_of(o));
    const bool needs = !o->manifest.complete && !has_row(o, ordinal);
    pthread_mutex_unlock(mutex_of(o));
    return needs;
}

static fkv_status pass_locked(fkv_output *o, int64_t n, uint64_t passed, fkv_err *err)
{
    const fkv_manifest_end *end = &o->manifest.end;
    const int64_t index = n / o->per_shard - 1;
    bool same = end->firm != n || !end->passed || end->passed == passed;
    if (same && n % o->per_shard == 0 && owns(o, n - 1)) {
        fkv_manifest_shard *s = (fkv_manifest_shard *)fkv_manifest_find(&o->manifest, index);
        if (!s) return set_mark(o, index, passed, err);
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
    return st;
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
                             int64_t prompt_tokens, int64_t completion_tokens, fkv_err *err)
{
    if (o->manifest.complete || has_row(o, ordinal))
        return fkv_fail(err, FKV_E_SYSTEM, "internal error: record %lld finished twice", (long long)ordinal);
    fkv_status st = fkv_folder_glance(&o->folder, err);
    if (!st)
        st = fkv_journal_add(o->journal, ordinal, row, n, is_error, prompt_tokens, completion_tokens, err);
    if (st) return st;
    o->prompt_tokens += prompt_tokens;
    o->completion_tokens += completion_tokens;
    return fkv_journal_unsynced_s(o->journal) >= SYNC_SECONDS ? fkv_journal_sync(o->journal, err) : FKV_OK;
}

fkv_status fkv_output_add(fkv_output *o, int64_t ordinal, const char *row, size_t n, bool is_error,
                          int64_t prompt_tokens, int64_t completion_tokens, fkv_err *err)
{
    if (!owns(o, ordinal) || n == 0 || row[n - 1] != '\n')
        return fkv_fail(err, FKV_E_SYSTEM, "internal error: record %lld is not a row of this part",
                        (long long)ordinal);
    pthread_mutex_lock(&o->mutex);
    fkv_status st = add_locked(o, ordinal, row, n, is_error, prompt_tokens, completion_tokens, err);
    pthread_mutex_unlock(&o->mutex);
    if (st) return st;
    const int64_t index = ordinal / o->per_shard;
    const size_t have = fkv_journal_range(o->journal, index * o->per_shard, shard_end(o, index), NULL);
    return (int64_t)have == o->per_shard ? commit(o, index, err) : FKV_OK;
}

fkv_status fkv_output_sync(fkv_output *o, fkv_err *err)
{
    pthread_mutex_lock(&o->mutex);
    const fkv_status st = fkv_journal_sync(o->journal, err);
    pthread_mutex_unlock(&o->mutex);
    return st;
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
        st = commit(o, entries[0].ordinal / o->per_shard, err);
    if (st) return st;
    fkv_manifest saved = {0};
    fkv_err ignored = {0};
    pthread_mutex_lock(&o->mutex);
    o->manifest.complete = true;
    o->manifest.records = n_records;
    o->unsaved = true;
    st = save_manifest(o, err);
    /* It may have come true before it failed. */
    if (st && !fkv_manifest_load(o->manifest_path, &saved, &ignored)) o->unsaved = !saved.complete;
    fkv_manifest_free(&saved);
    if (!st) st = compact_if_saved(o, err);
    pthread_mutex_unlock(&o->mutex);
    return st;
}

fkv_status fkv_output_set_ended(fkv_output *o, int64_t n_records, fkv_err *err)
{
    pthread_mutex_lock(&o->mutex);
    o->manifest.records = n_records;
    o->unsaved = true;
    const fkv_status st = save_manifest(o, err);
    pthread_mutex_unlock(&o->mutex);
    return st;
}

void fkv_output_totals_get(fkv_output *o, fkv_output_totals *totals)
{
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
    if (!st && changed && !o->looking) st = save_manifest(o, &differs);
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
