/* What an output is made of, for the files that it is written in: output_open.c makes and ends it,
 * output_share.c shares its shards out among processes, output.c is the rest of output.h. Here is what all of
 * them do: the manifest saved, a shard made of its rows. Internal to jobs.
 *
 * One mutex guards the state. Only the thread that adds rows changes it, so that
 * thread may read it without; a shard is compressed that way, while others go on
 * asking which records are needed. Claims (claim.h) are the exception: who reads the input makes them, so
 * their list is looked at under the mutex; a claim that is in it stays until the thread that adds rows ends
 * it. */
#ifndef FKV_JOBS_OUTPUT_STATE_H
#define FKV_JOBS_OUTPUT_STATE_H

#include <pthread.h>

#include "jobs/claim.h"
#include "jobs/folder.h"
#include "jobs/journal.h"
#include "jobs/manifest.h"
#include "jobs/output.h"

/* The manifest's pin that says what keys rows have; an output without it has rows without usage.kept_tokens.
 */
#define FKV_OUTPUT_ROWS_KEY "rows"
#define FKV_OUTPUT_ROWS     "2"

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
    fkv_claims claims;     /* part = auto: the shards at hand, each with a journal of its own */
    int64_t looked;        /* part = auto: the shard that was last asked for in passing, -1: none */
    bool repeated;         /* part = auto: the record that the reader is at was read for its claim before */
    int64_t added;         /* rows of this run */
    fkv_journal *journal;  /* NULL with part = auto */
    char *manifest_path;
    char *manifest_tmp; /* what it is written under first */
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
    int64_t resumed;                          /* rows there were when it was opened; or came with a claim */
    int64_t errors_before, errors_added;      /* part = auto: of those rows; of this run's */
    int64_t prompt_tokens, completion_tokens; /* of this run */
};

/* first + count of a shard that ends within int64_t, whatever its index. */
int64_t fkv_output_shard_end(const fkv_output *o, int64_t index);
/* Whether ordinal is this part's. */
bool fkv_output_owns(const fkv_output *o, int64_t ordinal);
/* The mutex is no part of what a caller sees as const. */
pthread_mutex_t *fkv_output_mutex(const fkv_output *o);

/* The running hash of the input behind a shard, kept until the shard is made; 0: the reader has not come so
 * far. */
uint64_t fkv_output_mark(const fkv_output *o, int64_t index);
fkv_status fkv_output_set_mark(fkv_output *o, int64_t index, uint64_t passed, fkv_err *err);

/* All with the mutex held, or while no other thread is at work. */

/* Replaces the manifest on disk; where processes share the folder, under lock-job and with what the others
 * have written since, and the claims whose shards it names then are given up. */
fkv_status fkv_output_save(fkv_output *o, fkv_err *err);
/* The same for who holds lock-job already. */
fkv_status fkv_output_save_held(fkv_output *o, fkv_err *err);
/* Takes in what other processes have written since. */
fkv_status fkv_output_merge(fkv_output *o, fkv_err *err);
/* For the adding thread alone, which may be reading the journal's file. Rows may
 * leave that file when the manifest on disk names their shard. */
fkv_status fkv_output_compact(fkv_output *o, fkv_err *err);

/* Without the mutex, for the thread that adds rows. */

/* Makes shard index of its rows in the journal, which must be all of them. A shard
 * with fewer rows than the others is the input's last: no manifest on disk names it
 * before one that says so too, or a crash in between would leave a manifest that looks
 * damaged. */
fkv_status fkv_output_commit(fkv_output *o, int64_t index, fkv_err *err);

#endif
