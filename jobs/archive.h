/* The input as one stream of lines, whatever the archives are.
 *
 * Reads tar, zip, 7z and plain files, gz, zst, xz or bz2 on top, in constant memory. Nothing is
 * ever extracted: member names are just names. From below: source.h (bytes of a file),
 * unpack.h and unzstd.h (what they are compressed by), walk.h (an archive's members, through
 * libarchive), links.h (what a link leads to), members.h (those that are wanted), lines.h (their
 * lines), and here: archive after archive, counted. A reader owns its files and buffers and
 * borrows the job. Not for: what a line means (record.h).
 */
#ifndef FKV_JOBS_ARCHIVE_H
#define FKV_JOBS_ARCHIVE_H

#include "jobs/job.h"

typedef struct fkv_reader fkv_reader;

/* One record's raw text, or what stands in its place. All pointers are
 * borrowed and stay valid until the next call (archive: as long as the job). */
typedef struct fkv_line {
    int64_t ordinal;     /* 0-based count of records over the whole input */
    const char *archive; /* fkv_input_file.name */
    const char *member;  /* path inside it, UTF-8; a plain file: base name without compression suffix */
    int64_t line;        /* from 1; of an array: the element */
    const char *text;    /* without the line's end (an element may hold some); NULL when error_code is set */
    size_t n;
    const char *error_code; /* "too_large" (over max_record_bytes), "damaged_archive", "unreadable_member" (a
                             * link, an archive), "bad_json" (an array's, not an element's), "bad_utf8" (a
                             * whole member's), or NULL */
    const char *error_message; /* with it */
    uint64_t passed;           /* running hash of the input's records up to this one, their places included */
} fkv_line;

/* How far the input is read, and how far of that is certain: an archive that goes on behind its end would
 * change none of the firm records. The others are damages at the end, and a line without an end. */
typedef struct fkv_passed {
    int64_t records, firm;
    uint64_t hash; /* fkv_line.passed of the firm ones */
} fkv_passed;

/* Opens nothing yet but checks that every file can be opened and is of the format
 * that its name says (errors go to errs, all of them; *reader is NULL then). An archive
 * of which no member matches is a line in the log, no error. */
fkv_status fkv_reader_open(const fkv_job *job, fkv_reader **reader, fkv_errs *errs);

/* stop(ctx) is asked at every block that is read, since a single line may take minutes
 * to pass over; once it says yes, fkv_reader_next returns FKV_E_INTERRUPTED. */
void fkv_reader_watch(fkv_reader *reader, bool (*stop)(void *ctx), void *ctx);

/* Says nothing in the log of members that are left out: another reader of the job does. */
void fkv_reader_quiet(fkv_reader *reader);

/* The next record; FKV_END at the end or after job.limit records. A damaged
 * archive gives one line with error_code and reading goes on with the next
 * archive, or with the next member where only one is damaged (a checksum,
 * encryption); an oversized line gives one such line and reading goes on behind
 * it. The line of a damage is the one that could not be read whole; its member
 * is "" when no member could be reached. Only failures of the system (memory, a
 * disk that fails) are errors. */
fkv_status fkv_reader_next(fkv_reader *reader, fkv_line *line, fkv_err *err);

/* How far fkv_input_look came in an archive. */
typedef enum fkv_looked {
    FKV_LOOKED_ENOUGH, /* see said so */
    FKV_LOOKED_ALL,    /* to the archive's end */
    FKV_LOOKED_FAR,    /* most_bytes far, and what is behind is not known */
} fkv_looked;

/* Where looking at an archive ended. */
typedef struct fkv_look_end {
    const fkv_input_file *file;
    fkv_looked how;
    const char *member; /* the last that was looked at or passed over, or "" */
    int64_t line;       /* in it, so far */
    int64_t n_members;  /* that match, so far */
    double share;       /* of the file that was read, above 0 to 1 */
    int64_t bytes;      /* that were read of it, decompressed */
} fkv_look_end;

typedef struct fkv_look {
    void *ctx;
    int64_t most_bytes; /* of an archive, decompressed, members that are passed over included */
    /* A record; true: that is enough of its archive. */
    bool (*see)(void *ctx, const fkv_line *line);
    void (*done)(void *ctx, const fkv_look_end *end); /* once an archive */
    bool (*stop)(void *ctx);                          /* ends it with FKV_E_INTERRUPTED; NULL: never */
} fkv_look;

/* Reads the beginning of every archive: what fkv_reader_open checks, and on to the records that see
 * wants. Errors go to errs, all of them; one that is damaged before its first record is one too. */
fkv_status fkv_input_look(const fkv_job *job, const fkv_look *look, fkv_errs *errs);

/* Of what fkv_reader_next gave so far. */
void fkv_reader_passed(const fkv_reader *reader, fkv_passed *passed);

/* Compressed bytes consumed so far and in all, for progress. */
void fkv_reader_progress(const fkv_reader *reader, int64_t *done_bytes, int64_t *total_bytes);
void fkv_reader_close(fkv_reader *reader);

#endif
