/* Shards that are done again: their rows go back to the journal, and the manifest forgets them. Their files
 * stay until they are replaced. Internal to jobs.
 *
 * The rows are in the journal, synced, before the manifest forgets their shards; a crash in between leaves
 * entries that the next load ignores. Everything is borrowed. Not for: which rows are needed again. */
#ifndef FKV_JOBS_REOPEN_H
#define FKV_JOBS_REOPEN_H

#include "jobs/folder.h"
#include "jobs/journal.h"
#include "jobs/manifest.h"

typedef struct fkv_reopening {
    const fkv_folder *folder;
    fkv_manifest *manifest; /* in memory; to be saved by the caller */
    fkv_journal *journal;
    bool looking; /* the shards are read and checked, and nothing is written */
} fkv_reopening;

/* Both fail with FKV_E_INPUT where a shard is not what the manifest says, which is as before then. */

/* The shards with error rows, and a short last one. */
fkv_status fkv_reopen_errors(const fkv_reopening *r, fkv_err *err);
/* For an input whose last archive has grown: the short last shard, and the rows from record *from on, which
 * go from the journal's index. Those are a damage where the input ended, or a line without an end: what the
 * manifest says of it, or the last rows at the most, for a run that was killed before it knew. */
fkv_status fkv_reopen_end(const fkv_reopening *r, int64_t *from, fkv_err *err);

#endif
