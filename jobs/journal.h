/* The journal: finished rows that are not in a shard yet, in one append-only file.
 *
 * Layout, little-endian. File header, 32 bytes: "FKVJRNL\n", u32 version (1), u32
 * header size (32), u64 hash of the job's identity, u64 hash of the 24 bytes
 * before. Then entries: a header of 64 bytes and the row.
 *   u32 magic    u32 flags (1: error row)   u64 ordinal   u64 length of the row
 *   u64 synced   the file was on disk up to here when this entry was written
 *   u64 prompt tokens   u64 completion tokens
 *   u64 hash of the row, seeded with the ordinal
 *   u64 hash of the 56 bytes before, seeded with the identity
 *
 * Torn or damaged: what was written since the last sync may be left in any state
 * by a crash, what came before may not. So when an entry is bad and no valid
 * header behind it says that the file was synced beyond the bad one's offset,
 * this is the torn tail: it is cut off and its records are done again. When one
 * does, something else damaged the file: an error that names file and offset.
 * (The magic's bytes are never part of a row's UTF-8, so headers can be found.)
 *
 * Memory holds 32 bytes a live entry, never a row. When an ordinal is there
 * twice the later one counts. Not thread-safe: the owner (output.c) locks. A journal
 * owns its file and its index. Not for: what a row says, and when a shard is full.
 */
#ifndef FKV_JOBS_JOURNAL_H
#define FKV_JOBS_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runner/base/buf.h"

/* A journal file of at most this size holds no row. */
enum { FKV_JOURNAL_EMPTY_BYTES = 32 };

typedef struct fkv_journal fkv_journal;

typedef struct fkv_journal_entry {
    int64_t ordinal;
    int64_t offset; /* of the entry's header in the file */
    uint32_t n;     /* bytes of the row */
    bool is_error;
} fkv_journal_entry;

/* Opens or creates the file and loads its live entries. dropped_bytes: length of
 * the torn tail that was cut off. After a failure *journal is NULL. */
fkv_status fkv_journal_open(const char *path, uint64_t identity, fkv_journal **journal,
                            int64_t *dropped_bytes, fkv_err *err);

/* The same without changing the file, which need not be there (path may be NULL). For range,
 * count and errors alone. */
fkv_status fkv_journal_look(const char *path, uint64_t identity, fkv_journal **journal, fkv_err *err);

/* Appends a row; it survives a killed process from now on, and a lost machine
 * after the next sync. On failure the file is as before. */
fkv_status fkv_journal_add(fkv_journal *journal, int64_t ordinal, const char *row, size_t n, bool is_error,
                           int64_t prompt_tokens, int64_t completion_tokens, fkv_err *err);

/* Live entries with ordinals in [first, end), ascending; borrowed until the next
 * change. Their number is returned. */
size_t fkv_journal_range(const fkv_journal *journal, int64_t first, int64_t end,
                         const fkv_journal_entry **entries);

/* Reads an entry's row back into row (replacing its content), verified. */
fkv_status fkv_journal_read(const fkv_journal *journal, const fkv_journal_entry *entry, fkv_buf *row,
                            fkv_err *err);

/* Forgets the entries with ordinals in [first, end), in memory only. */
void fkv_journal_remove(fkv_journal *journal, int64_t first, int64_t end);
/* Forgets the entries that keep is false for. */
void fkv_journal_filter(fkv_journal *journal, bool (*keep)(void *ctx, const fkv_journal_entry *entry),
                        void *ctx);

/* Rewrites the file with its live entries alone, when the forgotten ones take
 * more than 1 MB and more than the live ones (so that rewriting never costs more
 * than a byte for each byte forgotten), or when all is set. */
fkv_status fkv_journal_compact(fkv_journal *journal, bool all, fkv_err *err);

/* Rewrites the file whatever is in it: who has the old one open writes into the void from now on. */
fkv_status fkv_journal_renew(fkv_journal *journal, fkv_err *err);

fkv_status fkv_journal_sync(fkv_journal *journal, fkv_err *err);
/* Seconds since the oldest entry that is not synced was added; 0: none. */
double fkv_journal_unsynced_s(const fkv_journal *journal);

size_t fkv_journal_count(const fkv_journal *journal);
int64_t fkv_journal_errors(const fkv_journal *journal);

/* Does not sync. NULL is fine. */
void fkv_journal_close(fkv_journal *journal);

#endif
