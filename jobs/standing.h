/* How far an output is, over all parts: what its manifests, journals, stats and leases say. Reads only
 * and takes no lease, so a run at work is not held up. A standing owns its texts; it is empty after a
 * failed read. Not for: printing. */
#ifndef FKV_JOBS_STANDING_H
#define FKV_JOBS_STANDING_H

#include "jobs/error_counts.h"
#include "jobs/lease.h"

enum { FKV_STANDING_LOCKS = 64 };

/* A lease file that is there. Its holder may have been killed: beat tells. */
typedef struct fkv_standing_lock {
    char file[64];
    fkv_lease_holder holder; /* host "": it can't be read as a lease */
    int64_t since, beat;     /* Unix times: of taking, 0: not known; of the last sign of life */
} fkv_standing_lock;

typedef struct fkv_standing {
    char *job;         /* job.name, as the first part has it */
    bool complete;     /* all parts are, to the input's end */
    int64_t n_parts;   /* that the job is cut into */
    int64_t n_sharing; /* part = auto: processes that share it, numbered from 0; 0: it is cut into parts */
    int64_t done, n_errors;
    int64_t records; /* of the whole input; -1: not known */
    bool estimated;
    double rate; /* records/s of the parts at work, over their last minute; 0: none is, or not known */
    fkv_error_counts errors;
    char *examples[FKV_ERROR_CODES]; /* {"source":...,"message":...} of errors.at[i]'s first row seen */
    int n_locks, n_more_locks;       /* more: beyond FKV_STANDING_LOCKS */
    fkv_standing_lock locks[FKV_STANDING_LOCKS];
} fkv_standing;

fkv_status fkv_standing_read(const char *folder, fkv_standing *standing, fkv_err *err);
/* The same for who has no time to read all shards: how many rows an error has is what the parts' stats.json
 * say, the others count as "other", and examples are looked for only until each has one, for ten seconds at
 * the most. A stats.json that can't be read is as good as none. */
fkv_status fkv_standing_glance(const char *folder, fkv_standing *standing, fkv_err *err);
void fkv_standing_free(fkv_standing *standing);

/* examples[i], read: doc is the caller's (json_decref), and the rest is borrowed from it. NULL: it has none;
 * doc, too: no example was found. */
typedef struct fkv_standing_example {
    struct json_t *doc;
    const char *archive, *member, *message;
    int64_t line;
} fkv_standing_example;
fkv_standing_example fkv_standing_example_of(const fkv_standing *standing, int i);

#endif
