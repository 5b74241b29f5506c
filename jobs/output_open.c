/* How an output begins and ends: see output.h. Owns nothing beyond what it makes. Not for: what happens to it
 * in between (output.c), file formats (journal.c, manifest.c, shard.c), names and leases (folder.c). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jobs/known_archives.h"
#include "jobs/output_share.h"
#include "jobs/output_state.h"
#include "jobs/reopen.h"
#include "jobs/shard.h"
#include "runner/base/clock.h"
#include "runner/base/file.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

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

/* All rows of an output have the keys that its first one got. */
static fkv_status follow_rows(fkv_output *o, fkv_manifest *theirs, fkv_err *err)
{
    bool changed;
    if (json_object_get(theirs->run, FKV_OUTPUT_ROWS_KEY))
        return fkv_manifest_pin(theirs, o->folder.path, FKV_OUTPUT_ROWS_KEY, FKV_OUTPUT_ROWS, &changed, err);
    json_object_del(o->manifest.run, FKV_OUTPUT_ROWS_KEY);
    return FKV_OK;
}

/* Parts take the names of archives and the rows' keys from the first of them. */
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
    if (!st) st = follow_rows(o, &peer, err);
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
    *empty = !st && o->folder.n_parts == 1 && !o->folder.shared && old->n_rows == 0 && !old->complete &&
             size <= FKV_JOURNAL_EMPTY_BYTES;
    if (*empty && !o->looking && unlink(journal) && errno != ENOENT)
        st = fkv_fail_errno(err, journal, "remove");
    free(journal);
    return st;
}

/* Shards that are claimed have journals of their own, which other runs know nothing of. */
static fkv_status check_way(const fkv_output *o, const fkv_manifest *theirs, fkv_err *err)
{
    const bool shared = json_object_get(theirs->run, "input.part");
    if (shared == o->folder.shared) return FKV_OK;
    return fkv_fail_at(err, FKV_E_INPUT, o->folder.path, 0, "input.part",
                       "the output was begun %s input.part = auto, and goes on so",
                       shared ? "with" : "without");
}

/* o->manifest holds what a new one would; takes the folder's in its place. */
static fkv_status load_manifest(fkv_output *o, fkv_err *err)
{
    fkv_manifest old;
    bool empty = false;
    fkv_status st = fkv_manifest_load(o->manifest_path, &old, err);
    if (!st) st = check_way(o, &old, err);
    if (!st) st = holds_no_row(o, &old, &empty, err);
    if (!st && empty) { /* a run that failed before its first record binds nobody */
        fkv_manifest_free(&old);
        o->anew = true;
        return o->looking ? FKV_OK : fkv_output_save_held(o, err);
    }
    if (!st) st = follow_rows(o, &old, err);
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
    if (o->folder.shared && json_object_set_new(o->manifest.run, "input.part", json_string("auto")))
        return fkv_fail_memory(err);
    return fkv_output_save_held(o, err);
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
        if (!fkv_output_owns(o, entries[i].ordinal))
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
    const fkv_reopening r = {&o->folder, &o->manifest, o->journal, o->looking, false};
    if (!o->retry_errors || o->manifest.n_errors == 0) return FKV_OK;
    const fkv_status st = fkv_reopen_errors(&r, err);
    if (st) return st;
    fkv_journal_filter(o->journal, keep_entry, o);
    return o->looking ? FKV_OK : fkv_output_save(o, err);
}

/* The last archive has grown. What goes leaves the journal's file before the manifest knows that: later runs
 * would take it for answered. */
static fkv_status reopen_end(fkv_output *o, fkv_err *err)
{
    const fkv_reopening r = {&o->folder, &o->manifest, o->journal, o->looking, false};
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
    return st ? st : fkv_output_save(o, err);
}

/* Commits shards that were full when the last run stopped. */
static fkv_status commit_full_shards(fkv_output *o, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (int64_t from = 0; !st;) {
        const fkv_journal_entry *entries;
        if (fkv_journal_range(o->journal, from, INT64_MAX, &entries) == 0) break;
        const int64_t index = entries[0].ordinal / o->per_shard, end = fkv_output_shard_end(o, index);
        const size_t n = fkv_journal_range(o->journal, index * o->per_shard, end, NULL);
        if ((int64_t)n == o->per_shard) st = fkv_output_commit(o, index, err);
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
    if (!st && json_object_set_new(o->manifest.run, FKV_OUTPUT_ROWS_KEY, json_string(FKV_OUTPUT_ROWS)))
        st = fkv_fail_memory(err);
    if (!st) st = fkv_known_archives_make(job, &o->manifest.archives, err);
    fkv_buf_free(&identity);
    return st;
}

static fkv_status load_shared(fkv_output *o, fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (o->manifest.complete && !o->looking) st = fkv_folder_sweep_claims(&o->folder, err);
    if (!st && o->retry_errors)
        st = o->looking ? fkv_output_share_retry(o, err)
                        : fkv_folder_with_lock(&o->folder, "job", o->asked, fkv_output_share_retry, o, err);
    o->resumed = o->manifest.n_rows;
    o->errors_before = o->manifest.n_errors;
    o->saved_at = fkv_seconds();
    return st;
}

static fkv_status load_folder(fkv_output *o, fkv_err *err)
{
    o->manifest_path = fkv_folder_path(&o->folder, "manifest.json", !o->folder.shared);
    char *mine = fkv_folder_path(&o->folder, "manifest.json", true);
    if (!mine || asprintf(&o->manifest_tmp, "%s.tmp", mine) < 0) o->manifest_tmp = NULL;
    free(mine);
    if (!o->manifest_path || !o->manifest_tmp) return fkv_fail_memory(err);
    fkv_status st = o->looking ? settle_job(o, err) : fkv_folder_sweep(&o->folder, err);
    if (!st && !o->looking) st = fkv_folder_with_lock(&o->folder, "job", o->asked, settle_job, o, err);
    if (!st && !o->folder.shared) st = load_journal(o, err);
    if (st || o->other_job) return st;
    if (o->folder.shared) return load_shared(o, err);
    if (o->has_grown && (st = reopen_end(o, err))) return st;
    if ((st = reopen_shards_with_errors(o, err))) return st;
    o->resumed = o->manifest.n_rows + (int64_t)fkv_journal_count(o->journal);
    o->saved_at = fkv_seconds();
    if (o->looking) return FKV_OK;
    st = commit_full_shards(o, err);
    return st ? st : fkv_output_compact(o, err);
}

static fkv_folder_place place_of(const fkv_job *job)
{
    return (fkv_folder_place){.path = job->job.output,
                              .part = job->input.part,
                              .n_parts = job->input.n_parts,
                              .shared = job->input.claims,
                              .restart = job->job.restart};
}

fkv_status fkv_output_check(const fkv_job *job, bool (*asked)(void), fkv_err *err)
{
    const fkv_folder_place place = place_of(job);
    return fkv_folder_check(&place, asked, err);
}

/* The folder as it is; behind what a restart would move aside there is none. */
static fkv_status look_at_folder(fkv_output *o, const fkv_job *job, fkv_err *err)
{
    bool old = false;
    const fkv_folder_place place = place_of(job);
    fkv_status st = fkv_folder_name(&o->folder, &place, err);
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
    o->looked = -1;
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
    const fkv_folder_place place = place_of(job);
    fkv_status st = new_output(job, &o, err);
    if (!st) o->asked = asked;
    if (!st) st = fkv_folder_open(&o->folder, &place, asked, err);
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
    if (!o->began || o->folder.n_parts > 1 || o->folder.shared || o->manifest.n_rows > 0) return false;
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
    fkv_status st = o->journal && !o->looking ? fkv_journal_sync(o->journal, &err) : FKV_OK;
    if (!st) st = fkv_claims_sync(&o->claims, &err);
    if (st) fkv_log_at(FKV_LOG_WARNING, "%s: journal: %s", o->folder.path, err.message);
    /* A finish that failed is the next run's: it must not come true behind the error. */
    const bool save = o->unsaved && !o->manifest.complete;
    st = save ? fkv_output_save(o, &err) : FKV_OK;
    if (st && st != FKV_E_BUSY) fkv_log_at(FKV_LOG_WARNING, "%s: manifest: %s", o->folder.path, err.message);
    fkv_journal_close(o->journal);
    fkv_manifest_free(&o->manifest);
    fkv_buf_free(&o->job_ini);
    free(o->marks);
    free(o->manifest_path);
    free(o->manifest_tmp);
    fkv_claims_free(&o->claims, &o->folder);
    fkv_folder_close(&o->folder);
    if (o->has_mutex) pthread_mutex_destroy(&o->mutex);
    free(o);
}
