/* Claims: see claim.h. */
#include "jobs/claim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runner/base/log.h"
#include "runner/base/mem.h"

static char *path_of(const fkv_folder *folder, const char *what, int64_t index)
{
    char name[48];
    snprintf(name, sizeof name, "%s-shard-%06lld", what, (long long)index);
    return fkv_folder_path(folder, name, false);
}

fkv_status fkv_claim_open(const fkv_folder *folder, int64_t index, fkv_patience patience, bool (*asked)(void),
                          fkv_claim **claim, fkv_err *err)
{
    fkv_err why = {0};
    fkv_claim *c = *claim = fkv_calloc(1, sizeof *c);
    char *path = path_of(folder, "lock", index);
    fkv_status st = c && path ? FKV_OK : fkv_fail_memory(&why);
    if (!st) c->index = index;
    if (!st) st = fkv_lease_take(path, folder->path, patience, asked, &c->lease, &why);
    free(path);
    if (!st) return FKV_OK;
    free(c);
    *claim = NULL;
    if (st == FKV_E_BUSY) return FKV_OK;
    if (err && !err->status) *err = why;
    return st;
}

fkv_status fkv_claim_load(fkv_claim *c, const fkv_folder *folder, uint64_t identity, bool anew, fkv_err *err)
{
    int64_t dropped = 0;
    char *path = path_of(folder, "journal", c->index);
    if (!path) return fkv_fail_memory(err);
    fkv_status st = anew && unlink(path) && errno != ENOENT ? fkv_fail_errno(err, path, "remove") : FKV_OK;
    if (!st) st = fkv_journal_open(path, identity, &c->journal, &dropped, err);
    /* One that was only silent may wake up and write on; then into a file that has no name any more. */
    if (!st && fkv_lease_after_silence(c->lease)) st = fkv_journal_renew(c->journal, err);
    if (!st && dropped)
        fkv_log("%s: dropped %lld bytes that a run was writing when it stopped", path, (long long)dropped);
    free(path);
    return st;
}

void fkv_claim_close(fkv_claim *c, const fkv_folder *folder, bool done)
{
    if (!c) return;
    char *path = done || (c->journal && fkv_journal_count(c->journal) == 0)
                     ? path_of(folder, "journal", c->index)
                     : NULL;
    /* Before another can have it. Who lost it to another leaves that one's journal alone. */
    if (path && !fkv_lease_check(c->lease, NULL)) unlink(path);
    free(path);
    fkv_journal_close(c->journal);
    fkv_lease_release(c->lease);
    free(c);
}

fkv_claim *fkv_claims_find(const fkv_claims *claims, int64_t index)
{
    for (size_t i = 0; i < claims->n; i++) {
        if (claims->at[i]->index == index) return claims->at[i];
    }
    return NULL;
}

fkv_status fkv_claims_add(fkv_claims *claims, fkv_claim *claim, fkv_err *err)
{
    fkv_claim **at = fkv_grown(claims->at, claims->n, &claims->cap, sizeof(fkv_claim *));
    if (!at) return fkv_fail_memory(err);
    claims->at = at;
    claims->at[claims->n++] = claim;
    return FKV_OK;
}

void fkv_claims_close(fkv_claims *claims, const fkv_folder *folder, bool (*which)(const fkv_claim *claim),
                      bool done)
{
    size_t kept = 0;
    for (size_t i = 0; i < claims->n; i++) {
        if (which(claims->at[i]))
            fkv_claim_close(claims->at[i], folder, done);
        else
            claims->at[kept++] = claims->at[i];
    }
    claims->n = kept;
}

void fkv_claims_free(fkv_claims *claims, const fkv_folder *folder)
{
    for (size_t i = 0; i < claims->n; i++) fkv_claim_close(claims->at[i], folder, false);
    free(claims->at);
    *claims = (fkv_claims){0};
}

fkv_status fkv_claims_glance(const fkv_claims *claims, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < claims->n; i++) st = fkv_lease_glance(claims->at[i]->lease, err);
    return st;
}

fkv_status fkv_claims_sync(const fkv_claims *claims, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < claims->n; i++) st = fkv_journal_sync(claims->at[i]->journal, err);
    return st;
}
