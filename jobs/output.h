/* The output folder: finished rows in, journal, shards and manifest out.
 *
 * A row handed in is appended to the journal (journal.h), so that a crash loses
 * only what was in flight; memory holds where each row of an open shard stands,
 * never the rows. When a shard's last row is there, its rows are copied from the
 * journal in input order through zstd (shard.h) to shards/shard-NNNNNN.jsonl.zst,
 * the manifest is replaced (manifest.h), and the journal is rewritten without
 * them. Shard, then manifest: a crash in between repeats records, which the
 * resume detects; the other order loses them.
 *
 * A process that was stopped for a minute may find that another one has taken its place: add, finish
 * and pin are FKV_E_BUSY then, and nothing that others read is changed any more.
 *
 * Thread use: one thread calls fkv_output_add; another may call the rest. An output
 * owns the folder's lease, journal and manifest, and borrows nothing. Not for: making rows
 * (row.h), and what is in the files (FORMATS.md).
 */
#ifndef FKV_JOBS_OUTPUT_H
#define FKV_JOBS_OUTPUT_H

#include "jobs/error_counts.h"
#include "jobs/job.h"

typedef struct fkv_output fkv_output;

typedef struct fkv_output_totals {
    int64_t records;           /* rows there are, of this part, shards and journal together */
    int64_t resumed;           /* of them, written by earlier runs */
    int64_t errors;            /* of them, error rows */
    int64_t prompt_tokens;     /* of this run */
    int64_t completion_tokens; /* of this run */
    bool ended;                /* all records of the input have their row, as an earlier run found */
    bool complete;             /* the job is finished; right after open: by an earlier run */
} fkv_output_totals;

/* Makes the folder, takes the lease (FKV_E_BUSY names the holder), moves an old
 * output aside for job.restart, compares the identity (fkv_job_write_identity)
 * with the manifest's (FKV_E_INPUT names the first key that differs, old and
 * new value), writes a manifest if there is none, then job.ini, loads manifest and
 * journal (a torn tail of the journal is dropped; an entry damaged before the tail is an
 * error naming it), and deletes its own stray *.tmp. With
 * job.retry_errors error rows are needed again, also those in shards: such a
 * shard's rows go back to the journal and it is made again. Where the last archive has grown
 * since, records are that were not, and the end as it was then is needed again (reopen.h). Parts of one run
 * agree on the identity and on n of i/n (FKV_E_INPUT). asked (or NULL) says that the process should stop:
 * waits end with FKV_E_INTERRUPTED then, here and in with_lock. After a failure *output is NULL and the lease
 * is given up. */
fkv_status fkv_output_open(const fkv_job *job, bool (*asked)(void), fkv_output **output, fkv_err *err);

/* Whether open could have the job's folder, before anything of the job is read: FKV_E_BUSY
 * names the run that holds it now, FKV_E_SYSTEM: it can't be made, FKV_E_INPUT: it holds what
 * is not ours. Makes nothing. */
fkv_status fkv_output_check(const fkv_job *job, bool (*asked)(void), fkv_err *err);

/* open without making or changing anything: fails where open would, for damage; every key in which the
 * folder's job differs is an error in errs, and so is every later pin that does. Afterwards only pin
 * (which keeps nothing, and succeeds), pinned, path, totals_get and close may be called. errs outlives
 * the output. */
fkv_status fkv_output_look(const fkv_job *job, fkv_errs *errs, fkv_output **output, fkv_err *err);

/* Gives the job's archives the order and the names that they had in the run that began the output: they are
 * known by their content, wherever they lie now. To be called before they are read for rows. */
fkv_status fkv_output_name_archives(const fkv_output *output, fkv_job *job, fkv_err *err);

/* Path of a file of the folder; per_part: with the part's number where there are parts
 * ("stats.json" -> "OUT/stats.json", "OUT/stats-1of3.json", or "OUT/stats-auto0.json"). malloc'd; NULL: no
 * memory. */
char *fkv_output_path(const fkv_output *output, const char *file, bool per_part);

/* Whether this part has to do record ordinal, and it has no row yet; part = auto: whether this process has
 * claimed it. */
bool fkv_output_needs(const fkv_output *output, int64_t ordinal);

/* The reader has come to the end of the input's first n records, whose running hash is passed (archive.h). To
 * be called for every n before a row of record n - 1 is added. FKV_E_INPUT: an earlier run read something
 * else. part = auto: claims the record's shard, if it is free. */
fkv_status fkv_output_pass(fkv_output *output, int64_t n, uint64_t passed, fkv_err *err);
/* part = auto: claims a shard of an input of n_records that wants rows and that no living process has.
 * *claimed: there is one, so the input is to be read (again). FKV_E_BUSY: there are only such as others are
 * at work on. Otherwise nothing happens. Not beside pass; beside add it may be. */
fkv_status fkv_output_claim(fkv_output *output, int64_t n_records, bool *claimed, fkv_err *err);
/* The input has ended: n records, of which n_firm, with that hash, stay if it is found longer one day. */
void fkv_output_pass_end(fkv_output *output, int64_t n, int64_t n_firm, uint64_t passed);

/* The job's identity as it was when the output began, for fingerprints of what is made once for all of it. */
fkv_status fkv_output_identity(const fkv_output *output, fkv_buf *text, fkv_err *err);

/* One finished row (with its "\n"). Journalled before it returns; synced when
 * the oldest row that is not synced is 5 s old (between rows fkv_output_sync does
 * it). Commits the shard when it is the shard's last. Rows may come in any
 * order; a second row for an ordinal is FKV_E_SYSTEM, an error of ours. After a
 * failure the rows added before are safe, and the run should end. */
fkv_status fkv_output_add(fkv_output *output, int64_t ordinal, const char *row, size_t n, bool is_error,
                          int64_t prompt_tokens, int64_t completion_tokens, fkv_err *err);

/* All of the n_records of the input have their rows, but the job is not finished (job.max_errors): the next
 * open says so in its totals. */
fkv_status fkv_output_set_ended(fkv_output *output, int64_t n_records, fkv_err *err);

/* Syncs the journal (call every 5 s, and before an exit with code 75). */
fkv_status fkv_output_sync(fkv_output *output, fkv_err *err);

/* The input ended after n_records records in all: commits the last, shorter
 * shard and marks the manifest complete. Every record of this part must have its
 * row. On a complete output it only checks n_records. part = auto: every record of every claim has its row;
 * FKV_E_BUSY: other processes have what is left, and the last of them finishes. */
fkv_status fkv_output_finish(fkv_output *output, int64_t n_records, fkv_err *err);

void fkv_output_totals_get(fkv_output *output, fkv_output_totals *totals);

/* Of the first n_records records of the input, how many are this part's. */
int64_t fkv_output_share(const fkv_output *output, int64_t n_records);

/* Adds the error rows by their code: reads the shards that have some, and the journal. For the thread that
 * adds rows, or before there is one. */
fkv_status fkv_output_count_errors(const fkv_output *output, fkv_error_counts *counts, fkv_err *err);

/* Stores a key of the manifest's "run" object (plan fingerprint and the like):
 * sets it on the first run; on a resume a different value is FKV_E_INPUT naming
 * key, old and new value. */
fkv_status fkv_output_pin(fkv_output *output, const char *key, const char *value, fkv_err *err);

/* What an earlier run pinned; NULL: nothing. Borrowed until the next pin. */
const char *fkv_output_pinned(const fkv_output *output, const char *key);

/* Whether rows have usage.kept_tokens: an output that a build without it began goes on as it was. */
bool fkv_output_tells_kept(const fkv_output *output);

/* Syncs and frees; gives the lease up. NULL is fine. */
void fkv_output_close(fkv_output *output);
/* close for a run that was refused: where this run began the output and left neither a row nor a profile,
 * its files go too. The log is closed before. */
void fkv_output_close_refused(fkv_output *output);

/* Whose output it is, for labels; part = auto: the process's number of 0. name is borrowed. */
void fkv_output_who(const fkv_output *output, const char **name, int64_t *part, int64_t *n_parts);

/* Runs make while this process alone holds the lease "lock-<what>" of the folder, so
 * that of several parts one makes profile or plan and the others wait, then load. */
fkv_status fkv_output_with_lock(fkv_output *output, const char *what,
                                fkv_status (*make)(void *ctx, fkv_err *err), void *ctx, fkv_err *err);
/* FKV_E_BUSY: another run has taken the folder over. For who writes shared files into it. */
fkv_status fkv_output_still_ours(const fkv_output *output, fkv_err *err);
/* The same of this part's own files, for little; from any thread. */
fkv_status fkv_output_glance(const fkv_output *output, fkv_err *err);

#endif
