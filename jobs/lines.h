/* A member's bytes as lines, or as the elements of the array that it holds.
 *
 * Lines end in "\n" ("\r\n" too); blank ones are skipped but counted. Of a member named
 * .json that begins with '[' the array's elements stand for lines. A byte order mark begins
 * a file, also where files were joined: what is behind it is a line of its own, or an array.
 * Text in UTF-16 or UTF-32 is one line with an error. A line that lies within a block is
 * handed out in place, one that crosses blocks is put together in carry, which never
 * outgrows the longest line. An fkv_lines owns carry. Not for: what a line means (record.h).
 */
#ifndef FKV_JOBS_LINES_H
#define FKV_JOBS_LINES_H

#include "jobs/walk.h"
#include "runner/base/buf.h"

/* A .json member that begins with '[' holds an array: its elements stand for lines. */
typedef enum fkv_lines_state {
    FKV_LINES_LINES,
    FKV_LINES_BEGIN,        /* the first block decides */
    FKV_LINES_ARRAY,        /* behind '[' or an element's comma */
    FKV_LINES_BEHIND_ARRAY, /* behind ']' */
    FKV_LINES_OVER          /* what is there beside is passed over */
} fkv_lines_state;

typedef struct fkv_lines {
    size_t most_bytes; /* of a line */
    bool may_be_array; /* by its name */
    fkv_lines_state state;
    int64_t line;        /* lines, or elements, so far */
    int64_t array_began; /* of the elements before this array */
    int64_t depth;       /* in an element: open brackets */
    bool in_string, escaped;
    unsigned mark;      /* bytes of a byte order mark that were seen behind an array */
    const char *p;      /* what is left of the block */
    const char *end;    /* its end */
    const char *joined; /* what is left of a line, behind a byte order mark in it; NULL: nothing */
    size_t n_joined;
    fkv_buf carry;   /* the beginning of a line, from earlier blocks */
    bool carry_lent; /* the caller had it; empty it first */
    bool skipping;   /* to the end of an oversized line */
    bool over;       /* the source has ended */
} fkv_lines;

/* What a line is, or what stands in its place. */
typedef struct fkv_piece {
    const char *text; /* borrowed until the next call; NULL: error_code is set, or there is none yet */
    size_t n;
    const char *error_code; /* "too_large", "bad_json", "bad_utf8" */
    bool open; /* it ended with the member, not by an end of its own: more bytes would be a part of it */
    char error_message[96];
} fkv_piece;

/* Where the bytes come from: as fkv_members_read. */
typedef struct fkv_lines_source {
    fkv_step (*read)(void *ctx, const char **bytes, size_t *n);
    void *ctx;
} fkv_lines_source;

/* Begins a member; most_bytes stays. */
void fkv_lines_begin(fkv_lines *lines, bool may_be_array);
/* The next line that is not blank; a piece without text or error: go on. What is not OK is
 * the source's step; FKV_STEP_SYSTEM with err: no memory. */
fkv_step fkv_lines_next(fkv_lines *lines, const fkv_lines_source *source, fkv_piece *piece, fkv_err *err);
void fkv_lines_free(fkv_lines *lines);

#endif
