/* A shard that a process works on where several share the folder (part = auto): the lease "lock-shard-NNNNNN"
 * and the journal "journal-shard-NNNNNN". The journal goes with the lease, not with the process: whoever
 * takes a dead one's lease has its rows without looking for them.
 *
 * A claim owns its lease and its journal; claims own their claims. Not thread-safe: the owner locks
 * (output_state.h). Not for: which shard is next (output_share.c). Internal to jobs. */
#ifndef FKV_JOBS_CLAIM_H
#define FKV_JOBS_CLAIM_H

#include "jobs/folder.h"
#include "jobs/journal.h"
#include "jobs/manifest.h"

typedef struct fkv_claim {
    int64_t index;
    fkv_lease *lease;
    fkv_journal *journal;     /* NULL: not loaded yet */
    int64_t asked;            /* records below were read for this claim already, and are on their way */
    bool written;             /* the shard's file is there; shard says what the manifest is to say of it */
    fkv_manifest_shard shard; /* of those that are written */
} fkv_claim;

typedef struct fkv_claims {
    fkv_claim **at; /* [n] */
    size_t n, cap;
} fkv_claims;

/* Takes the lease. *claim is NULL where another process has it. */
fkv_status fkv_claim_open(const fkv_folder *folder, int64_t index, fkv_patience patience, bool (*asked)(void),
                          fkv_claim **claim, fkv_err *err);
/* Opens the journal, with the rows of who had the shard before; anew: without. */
fkv_status fkv_claim_load(fkv_claim *claim, const fkv_folder *folder, uint64_t identity, bool anew,
                          fkv_err *err);
/* Gives it up; done: the journal is not needed any more and goes too. NULL is fine. */
void fkv_claim_close(fkv_claim *claim, const fkv_folder *folder, bool done);

/* NULL: it is none of these. Borrowed until it is taken out. */
fkv_claim *fkv_claims_find(const fkv_claims *claims, int64_t index);
fkv_status fkv_claims_add(fkv_claims *claims, fkv_claim *claim, fkv_err *err);
/* Closes the claims that which is true for; done: see fkv_claim_close. */
void fkv_claims_close(fkv_claims *claims, const fkv_folder *folder, bool (*which)(const fkv_claim *claim),
                      bool done);
void fkv_claims_free(fkv_claims *claims, const fkv_folder *folder);

/* FKV_E_BUSY: another process has taken one over. */
fkv_status fkv_claims_glance(const fkv_claims *claims, fkv_err *err);
fkv_status fkv_claims_sync(const fkv_claims *claims, fkv_err *err);

#endif
