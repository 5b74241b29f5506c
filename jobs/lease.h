/* Leases: which process may write to a folder, safe on NFS and after a kill.
 *
 * A lease is a small file at a path that all agree on. It says who holds it:
 *
 *   {"format":"fairkv-lease/1","host":"vm","boot":"5947da16-...","pids":4026531836,"pid":20698,
 *    "start":2842995,"uuid":"0b3c..."}
 *
 * Taking: the file is written under a name of its own, PATH.UUID.tmp, and linked to PATH. It is
 * ours when its file then has two links (or PATH says our uuid): over NFS the answer of link(2)
 * itself may be lost. The other name goes at once.
 *
 * Holding: a thread sets the file's time every 5 s. Nobody compares clocks: who looks takes the
 * holder for dead when that time has not changed for 60 s of the looker's own monotonic clock.
 * On the same host, boot and PID namespace there is no need to wait: a process that is gone, or
 * whose number another one has now, is dead; one that runs lives; only one that is stopped or
 * about to end is watched.
 *
 * Taking over: PATH is renamed to PATH.UUID.old and read again. Only if it is still the dead
 * one's, unchanged, it is removed; else it is linked back.
 *
 * So a holder that was stopped for a minute may have lost its lease: it calls
 * fkv_lease_check before whatever others must not see changed. A lease owns its path, its
 * descriptor and its thread. Not for: what is guarded (folder.c).
 */
#ifndef FKV_JOBS_LEASE_H
#define FKV_JOBS_LEASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runner/base/status.h"

typedef struct fkv_lease fkv_lease;

/* Who holds a lease, as its file says. */
typedef struct fkv_lease_holder {
    char host[128], boot[40], uuid[37];
    int64_t pids; /* inode of the PID namespace; 0: not known */
    int64_t pid;
    int64_t start; /* of the process, clock ticks since boot; 0: not known */
} fkv_lease_holder;

/* Reads n bytes of a lease file. False: they are no lease. */
bool fkv_lease_parse(const char *text, size_t n, fkv_lease_holder *holder);

/* What a take does about another's lease: it is FKV_E_BUSY, with the holder's host and number. */
typedef enum fkv_patience {
    FKV_LEASE_TRY,  /* a holder that may be dead is watched */
    FKV_LEASE_WAIT, /* its end is waited for */
    FKV_LEASE_NOW,  /* unless it is known to be dead without watching */
} fkv_patience;

/* Takes the lease of path for this process. subject is what messages are about. asked (or NULL) says that
 * the process should stop: FKV_E_INTERRUPTED. A file system without hard links is FKV_E_SYSTEM. */
fkv_status fkv_lease_take(const char *path, const char *subject, fkv_patience patience, bool (*asked)(void),
                          fkv_lease **lease, fkv_err *err);
/* Whether take (with FKV_LEASE_TRY) could have it now; makes nothing. What was watched here is not
 * watched again by a take that follows in the same thread. */
fkv_status fkv_lease_look(const char *path, const char *subject, bool (*asked)(void), fkv_err *err);

/* FKV_E_BUSY: another process has taken it over; what it guards is no longer ours. */
fkv_status fkv_lease_check(fkv_lease *lease, fkv_err *err);
/* The same for little: looks at the file only where our own heartbeat is late. */
fkv_status fkv_lease_glance(fkv_lease *lease, fkv_err *err);
/* Whether the holder before may live yet: nobody saw it end, it only showed no sign of life. */
bool fkv_lease_after_silence(const fkv_lease *lease);
/* Its file has got another path, which is copied. */
fkv_status fkv_lease_moved(fkv_lease *lease, const char *path, fkv_err *err);

/* Removes the file, if it is ours, and what killed processes left beside it. NULL is fine. */
void fkv_lease_release(fkv_lease *lease);

/* Whether name (in a folder) is one that taking leases makes beside them. */
bool fkv_lease_is_leaving(const char *name);
/* *is: path is a lease; false also where there is nothing. */
fkv_status fkv_lease_is_one(const char *path, bool *is, fkv_err *err);

/* For tests, before the first lease: other seconds between heartbeats, and until a holder without one
 * counts as dead. */
void fkv_lease_set_pace(double beat_s, double stale_s);

#endif
