/* part = auto: see output_share.h. */
#include "jobs/output_share.h"

#include "jobs/output_state.h"
#include "jobs/reopen.h"
#include "runner/base/log.h"

/* Rows that a shard has when the input has n_records. */
static int64_t rows_of(const fkv_output *o, int64_t index, int64_t n_records)
{
    const int64_t left = n_records - index * o->per_shard;
    return left < o->per_shard ? left : o->per_shard;
}

static bool is_settled(const fkv_output *o, int64_t index)
{
    return o->manifest.complete || fkv_manifest_find(&o->manifest, index) ||
           fkv_claims_find(&o->claims, index);
}

/* Whether nobody has made the shard since we looked; its lease is ours. */
static fkv_status look_again(fkv_output *o, int64_t index, bool *done, uint64_t *identity, fkv_err *err)
{
    pthread_mutex_lock(&o->mutex);
    fkv_status st = fkv_output_merge(o, err);
    *done = !st && is_settled(o, index);
    if (!st) st = fkv_manifest_hash(&o->manifest, identity, err);
    pthread_mutex_unlock(&o->mutex);
    return st;
}

static fkv_status load(const fkv_output *o, fkv_claim *c, uint64_t identity, fkv_err *err)
{
    const int64_t first = c->index * o->per_shard, end = fkv_output_shard_end(o, c->index);
    const fkv_status st = fkv_claim_load(c, &o->folder, identity, false, err);
    if (st || fkv_journal_range(c->journal, first, end, NULL) == fkv_journal_count(c->journal)) return st;
    return fkv_fail_at(err, FKV_E_INPUT, o->folder.path, 0, NULL,
                       "the journal of shard %lld holds records of others", (long long)c->index);
}

/* *claim: NULL where the shard is another's, or done. */
static fkv_status claim_one(fkv_output *o, int64_t index, fkv_patience patience, fkv_claim **claim,
                            fkv_err *err)
{
    bool done = false;
    uint64_t identity = 0;
    fkv_claim *c;
    *claim = NULL;
    fkv_status st = fkv_claim_open(&o->folder, index, patience, o->asked, &c, err);
    if (st || !c) return st;
    st = look_again(o, index, &done, &identity, err);
    if (!st && !done) st = load(o, c, identity, err);
    if (!st && !done) {
        pthread_mutex_lock(&o->mutex);
        st = fkv_claims_add(&o->claims, c, err);
        o->resumed += (int64_t)fkv_journal_count(c->journal);
        o->errors_before += fkv_journal_errors(c->journal);
        pthread_mutex_unlock(&o->mutex);
    }
    if (st || done)
        fkv_claim_close(c, &o->folder, !st && done);
    else
        *claim = c;
    return st;
}

/* The answers of a shard go to its journal, the error rows are done again. */
static fkv_status retry_shard(const fkv_output *o, const fkv_manifest_shard *s, uint64_t identity,
                              fkv_err *err)
{
    fkv_claim *c;
    /* Who made it gives it up in a moment. */
    fkv_status st = fkv_claim_open(&o->folder, s->index, FKV_LEASE_WAIT, o->asked, &c, err);
    if (st || !c) return st;
    st = fkv_claim_load(c, &o->folder, identity, true, err);
    const fkv_reopening r = {&o->folder, NULL, c->journal, false, true};
    if (!st) st = fkv_reopen_rows(&r, s, err);
    if (!st) st = fkv_journal_sync(c->journal, err);
    fkv_claim_close(c, &o->folder, false);
    return st;
}

fkv_status fkv_output_share_retry(void *ctx, fkv_err *err)
{
    fkv_output *o = ctx;
    uint64_t identity;
    fkv_status st = o->looking ? FKV_OK : fkv_output_merge(o, err);
    if (st || o->manifest.n_errors == 0 || (!o->manifest.complete && o->manifest.records < 0)) return st;
    st = fkv_manifest_hash(&o->manifest, &identity, err);
    for (size_t i = 0; !st && !o->looking && i < o->manifest.n_shards; i++) {
        const fkv_manifest_shard *s = &o->manifest.shards[i];
        if (fkv_reopen_wants(&o->manifest, s)) st = retry_shard(o, s, identity, err);
    }
    if (!st) fkv_reopen_forget(&o->manifest);
    return st || o->looking ? st : fkv_output_save_held(o, err);
}

fkv_status fkv_output_share_pass(fkv_output *o, int64_t ordinal, fkv_err *err)
{
    fkv_claim *claim;
    const int64_t index = ordinal / o->per_shard;
    fkv_status st = FKV_OK;
    pthread_mutex_lock(&o->mutex);
    const bool settled = index == o->looked || is_settled(o, index);
    pthread_mutex_unlock(&o->mutex);
    o->looked = index;
    if (!settled && (st = claim_one(o, index, FKV_LEASE_NOW, &claim, err))) return st;
    pthread_mutex_lock(&o->mutex);
    claim = fkv_claims_find(&o->claims, index);
    o->repeated = claim && ordinal < claim->asked;
    if (claim && !o->repeated) claim->asked = ordinal + 1;
    pthread_mutex_unlock(&o->mutex);
    return FKV_OK;
}

/* Claims the first shard that wants rows and can be had. *held: shards that others have. */
static fkv_status claim_any(fkv_output *o, int64_t n_records, fkv_patience patience, bool *claimed,
                            int64_t *held, fkv_err *err)
{
    fkv_status st = FKV_OK;
    *held = 0;
    for (int64_t i = 0; !st && !*claimed && i < (n_records + o->per_shard - 1) / o->per_shard; i++) {
        fkv_claim *claim;
        pthread_mutex_lock(&o->mutex);
        bool settled = is_settled(o, i);
        pthread_mutex_unlock(&o->mutex);
        if (settled) continue;
        st = claim_one(o, i, patience, &claim, err);
        if (!st && claim) *claimed = (int64_t)fkv_journal_count(claim->journal) < rows_of(o, i, n_records);
        pthread_mutex_lock(&o->mutex);
        settled = is_settled(o, i);
        pthread_mutex_unlock(&o->mutex);
        if (!settled) ++*held;
    }
    return st;
}

static fkv_status left_to_others(const fkv_output *o, int64_t n, fkv_err *err)
{
    return fkv_fail_at(err, FKV_E_BUSY, o->folder.path, 0, NULL,
                       "other runs are at work on the shards that are left (%lld), and none is free; run "
                       "this again if they end before the job is done",
                       (long long)n);
}

fkv_status fkv_output_claim(fkv_output *o, int64_t n_records, bool *claimed, fkv_err *err)
{
    int64_t held;
    *claimed = false;
    if (!o->folder.shared) return FKV_OK;
    o->looked = -1;
    pthread_mutex_lock(&o->mutex);
    fkv_status st = fkv_output_merge(o, err);
    pthread_mutex_unlock(&o->mutex);
    if (!st) st = claim_any(o, n_records, FKV_LEASE_NOW, claimed, &held, err);
    /* Of what others seem to have, some may be dead ones'. */
    if (!st && !*claimed && held) st = claim_any(o, n_records, FKV_LEASE_TRY, claimed, &held, err);
    return !st && !*claimed && held ? left_to_others(o, held, err) : st;
}

/* A claim that has all its rows, and no file yet. */
static bool next_full(const fkv_output *o, bool passed, int64_t *index)
{
    bool found = false;
    pthread_mutex_lock(fkv_output_mutex(o));
    for (size_t i = 0; !found && i < o->claims.n; i++) {
        const fkv_claim *c = o->claims.at[i];
        if (c->written || (int64_t)fkv_journal_count(c->journal) < o->per_shard) continue;
        found = !passed || fkv_output_mark(o, c->index);
        *index = c->index;
    }
    pthread_mutex_unlock(fkv_output_mutex(o));
    return found;
}

fkv_status fkv_output_share_commit(fkv_output *o, fkv_err *err)
{
    int64_t index;
    fkv_status st = FKV_OK;
    while (!st && next_full(o, true, &index)) st = fkv_output_commit(o, index, err);
    return st;
}

typedef struct finishing {
    fkv_output *output;
    int64_t n_records;
    int64_t missing; /* shards */
} finishing;

static bool has_no_file(const fkv_claim *claim)
{
    return !claim->written;
}

/* The input's last shard, which is shorter than the others: made when those are there. */
static fkv_status make_last(finishing *f, int64_t index, fkv_err *err)
{
    fkv_output *o = f->output;
    fkv_claim *claim = fkv_claims_find(&o->claims, index);
    fkv_status st = claim ? FKV_OK : claim_one(o, index, FKV_LEASE_NOW, &claim, err);
    if (st || !claim) return st;
    if ((int64_t)fkv_journal_count(claim->journal) < rows_of(o, index, f->n_records)) return FKV_OK;
    if ((st = fkv_output_commit(o, index, err))) return st;
    f->missing = 0;
    return fkv_output_merge(o, err);
}

/* Under lock-job; no other thread is at work any more. */
static fkv_status finish_held(void *ctx, fkv_err *err)
{
    finishing *f = ctx;
    fkv_output *o = f->output;
    const int64_t n_full = f->n_records / o->per_shard, rest = f->n_records % o->per_shard;
    fkv_status st = fkv_output_merge(o, err);
    if (st) return st;
    if (!o->manifest.complete) {
        f->missing = n_full + (rest > 0) - (int64_t)o->manifest.n_shards;
        if (rest && f->missing == 1) st = make_last(f, n_full, err);
        if (!st && f->missing == 0) {
            o->manifest.complete = true;
            o->manifest.records = f->n_records;
            o->unsaved = true;
        }
        if (!st) st = fkv_output_save_held(o, err);
    }
    fkv_claims_close(&o->claims, &o->folder, has_no_file, false);
    return st;
}

/* What is claimed has its rows, but for our own mistakes. */
static fkv_status check_claims(const fkv_output *o, int64_t n_records, fkv_err *err)
{
    for (size_t i = 0; i < o->claims.n; i++) {
        const fkv_claim *c = o->claims.at[i];
        const int64_t have = (int64_t)fkv_journal_count(c->journal), want = rows_of(o, c->index, n_records);
        if (have != want)
            return fkv_fail_at(err, FKV_E_SYSTEM, o->folder.path, 0, NULL,
                               "internal error: shard %lld has %lld rows of %lld", (long long)c->index,
                               (long long)have, (long long)want);
    }
    return FKV_OK;
}

fkv_status fkv_output_share_finish(fkv_output *o, int64_t n_records, fkv_err *err)
{
    finishing f = {.output = o, .n_records = n_records};
    int64_t index;
    fkv_status st = check_claims(o, n_records, err);
    while (!st && next_full(o, false, &index)) st = fkv_output_commit(o, index, err);
    if (!st) st = fkv_folder_with_lock(&o->folder, "job", NULL, finish_held, &f, err);
    if (st) return st;
    if (f.missing) return left_to_others(o, f.missing, err);
    return fkv_folder_sweep_claims(&o->folder, err);
}
