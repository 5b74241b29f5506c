/* The output folder as files: leases, whose it is, and moving an old one aside. What is
 * in the files is output.c's matter. Internal to jobs.
 *
 * A run holds the lease "lock" (a part: "lock-1of3") from open to close. What parts share
 * is made under short leases of its own, "lock-<what>" (lease.h). Runs that share out the shards as they
 * go (part = auto) each hold a "lock-autoN": N is a living process's alone, and tells its files from the
 * others'. An fkv_folder owns its path and its lease; after a failed open or name it is empty, and peers are
 * after a failed look.
 */
#ifndef FKV_JOBS_FOLDER_H
#define FKV_JOBS_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "jobs/lease.h"
#include "runner/base/status.h"

/* Which folder, and whose. Borrowed. */
typedef struct fkv_folder_place {
    const char *path;
    int64_t part, n_parts;
    bool shared; /* part = auto */
    bool restart;
} fkv_folder_place;

typedef struct fkv_folder {
    char *path; /* without trailing slashes */
    int64_t part, n_parts;
    bool shared;
    int64_t number;   /* shared: of the lease "lock-autoN" */
    fkv_lease *lease; /* NULL: not held */
    fkv_lease *inner; /* of with_lock, while it runs */
    char *made;       /* the topmost folder that open made; NULL: it was there */
} fkv_folder;

/* The other parts' manifests, or the whole's beside a part's. */
typedef struct fkv_folder_peers {
    bool any_manifest; /* of this part or another */
    char *peer;        /* path of one manifest of another part, or NULL */
    bool mixed;        /* peer belongs to a run cut into another number of parts */
} fkv_folder_peers;

/* Takes the lease, until close, and makes the folder where there is none; FKV_E_BUSY names the
 * holder, FKV_E_INPUT a file that is not ours where there is no manifest of ours. With restart an
 * old output is moved to <path>.old-YYYYmmdd-HHMMSS first, never while a run holds it or it has
 * files of others; refused for parts, which share the folder. asked (or NULL): see lease.h. */
fkv_status fkv_folder_open(fkv_folder *f, const fkv_folder_place *place, bool (*asked)(void), fkv_err *err);
/* Gives the lease up. A folder that open made and that is still empty goes. */
void fkv_folder_close(fkv_folder *f);
/* Removes our files, the manifest last, for a run that was refused; close follows. */
void fkv_folder_discard(fkv_folder *f);
/* FKV_E_BUSY: another run has taken a lease over that is held now. The second costs nothing as long as our
 * heartbeat goes. */
fkv_status fkv_folder_still_ours(const fkv_folder *f, fkv_err *err);
fkv_status fkv_folder_glance(const fkv_folder *f, fkv_err *err);
/* Whether the holder before may wake up yet: it was not seen to end. */
bool fkv_folder_after_silence(const fkv_folder *f);
/* Whether open could have the folder now: FKV_E_BUSY names the run that holds it, FKV_E_SYSTEM
 * says why it can't be made or written to, FKV_E_INPUT what it holds that is not ours. Makes
 * nothing and promises nothing: open decides. */
fkv_status fkv_folder_check(const fkv_folder_place *place, bool (*asked)(void), fkv_err *err);
/* A folder for look and the checks, without a lock; it need not be there. */
fkv_status fkv_folder_name(fkv_folder *f, const fkv_folder_place *place, fkv_err *err);

/* malloc'd path of a file in it; per_part puts the part's number before the
 * suffix when there are parts, or the process's where they share. NULL: no memory. */
char *fkv_folder_path(const fkv_folder *f, const char *file, bool per_part);

fkv_status fkv_folder_look(const fkv_folder *f, fkv_folder_peers *peers, fkv_err *err);
/* Whether a restart has something to move aside. */
fkv_status fkv_folder_is_old(const fkv_folder *f, bool *old, fkv_err *err);
/* Without this part's manifest a folder must hold none of its shards (FKV_E_INPUT). */
fkv_status fkv_folder_check_no_shards(const fkv_folder *f, fkv_err *err);
/* Without any manifest of ours it must hold nothing but what we make before the first, a lease:
 * FKV_E_INPUT names the first stranger. */
fkv_status fkv_folder_check_ours(const fkv_folder *f, fkv_err *err);
void fkv_folder_peers_free(fkv_folder_peers *peers);

/* Removes temporary files, and leases within, that an earlier run of this part left behind. */
fkv_status fkv_folder_sweep(const fkv_folder *f, fkv_err *err);

/* For a finished output that processes shared: removes the journals of shards, and what dead ones left. */
fkv_status fkv_folder_sweep_claims(const fkv_folder *f, fkv_err *err);

/* Runs make while this process alone holds the lease lock-<what>, and removes before what a killed
 * one left of the file that is made under it. Gives up with FKV_E_INTERRUPTED when asked (or NULL)
 * says so during the wait. */
fkv_status fkv_folder_with_lock(fkv_folder *f, const char *what, bool (*asked)(void),
                                fkv_status (*make)(void *ctx, fkv_err *err), void *ctx, fkv_err *err);

#endif
