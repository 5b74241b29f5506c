/* The manifest: which shards there are, and which job they belong to.
 *
 *   {"format":"fairkv-manifest/2","job":"longbench-qa","identity":{"job.seed":"0",...},
 *    "run":{"plan":"9f..."},"archives":[{"name":"a.zip","size":123,"xxh3":"..."}],
 *    "records_per_shard":1000,"complete":false,"records":null,"errors":3,
 *    "shards":[
 *   {"file":"shards/shard-000000.jsonl.zst","first":0,"count":1000,"errors":3,"bytes":81234,"xxh3":"...",
 *    "passed":"..."}, ...]}
 * "records" is the number of records of the whole input once it is known, "xxh3" the
 * 64-bit XXH3 of the file. Nothing in it is trusted before it is checked.
 *
 * In memory 56 bytes a shard; a file of about 160 bytes a shard that is always
 * replaced whole (output.c spaces that out). Loading parses the whole file, at
 * most FKV_MANIFEST_MAX_BYTES: about a second for 100,000 shards. A manifest owns
 * what it points to; after a failed init or load it is empty. Not for: looking at the
 * shards themselves.
 */
#ifndef FKV_JOBS_MANIFEST_H
#define FKV_JOBS_MANIFEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runner/base/status.h"

#define FKV_MANIFEST_MAX_BYTES ((size_t)256 << 20)

typedef struct fkv_manifest_shard {
    int64_t index; /* first / records_per_shard */
    int64_t first, count, errors, bytes;
    uint64_t xxh3;
    uint64_t passed; /* running hash of the input up to its last record (archive.h); 0: not known */
} fkv_manifest_shard;

/* How far a run read the input that it came to the end of (archive.h: fkv_passed). */
typedef struct fkv_manifest_end {
    int64_t records, firm; /* records -1: none did */
    uint64_t passed;
} fkv_manifest_end;

typedef struct fkv_manifest {
    char *job;
    json_t *identity; /* object */
    json_t *run;      /* object of strings */
    json_t *archives; /* known_archives.h; NULL: not known */
    int64_t records_per_shard;
    bool complete;
    int64_t records;            /* -1: not known yet */
    fkv_manifest_end end;       /* of the input as it was then; stays when the last archive has grown */
    fkv_manifest_shard *shards; /* [n_shards], ascending by index */
    size_t n_shards, cap;
    int64_t n_rows, n_errors; /* sums over shards */
} fkv_manifest;

/* An empty manifest of a job; identity is the text of fkv_job_write_identity. */
fkv_status fkv_manifest_init(fkv_manifest *m, const char *job, const char *identity, size_t n_identity,
                             int64_t records_per_shard, fkv_err *err);
/* m need not be initialised. */
fkv_status fkv_manifest_load(const char *path, fkv_manifest *m, fkv_err *err);
/* Replaces path durably by way of tmp, a path beside it; bytes (may be NULL) is the file's new size. */
fkv_status fkv_manifest_save(const fkv_manifest *m, const char *path, const char *tmp, size_t *bytes,
                             fkv_err *err);
void fkv_manifest_free(fkv_manifest *m);

/* FKV_E_INPUT naming the first key in which the folder's job differs from ours. */
fkv_status fkv_manifest_same_job(const fkv_manifest *theirs, const fkv_manifest *ours, const char *folder,
                                 fkv_err *err);
/* The same, but every key in which they differ is an error in errs. */
void fkv_manifest_changes(const fkv_manifest *theirs, const fkv_manifest *ours, const char *folder,
                          fkv_errs *errs);
/* Hash of the identity, for the journal. */
fkv_status fkv_manifest_hash(const fkv_manifest *m, uint64_t *hash, fkv_err *err);

/* NULL when there is no such shard. */
const fkv_manifest_shard *fkv_manifest_find(const fkv_manifest *m, int64_t index);
/* Adds a shard that is not there yet. */
fkv_status fkv_manifest_add(fkv_manifest *m, const fkv_manifest_shard *shard, fkv_err *err);

/* Sets run.key on the first call; later FKV_E_INPUT if the value differs.
 * changed tells whether it was set. */
fkv_status fkv_manifest_pin(fkv_manifest *m, const char *folder, const char *key, const char *value,
                            bool *changed, fkv_err *err);

#endif
