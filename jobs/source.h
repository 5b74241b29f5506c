/* Bytes that come one block after the other: a file's, what a decompressor makes of them
 * (unpack.h), a member's (members.h). A source borrows what its ctx points to. Not for: what
 * the bytes mean.
 */
#ifndef FKV_JOBS_SOURCE_H
#define FKV_JOBS_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Why a source failed. */
typedef struct fkv_fault {
    int number; /* an errno, or 0: what was read is damaged */
    char why[240];
} fkv_fault;

/* Fills *fault; returns -1. Text that is too long ends at a blank, with "...". */
ssize_t fkv_fault_set(fkv_fault *fault, int number, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Whether the system failed (a disk, a network, memory), so that another run may read the rest. */
bool fkv_fault_is_system(const fkv_fault *fault);

typedef struct fkv_source {
    /* The number of the next bytes, which stay valid until the next call; 0 at the end, -1
     * after a failure, with *fault, now and ever after. */
    ssize_t (*read)(void *ctx, const void **bytes, fkv_fault *fault);
    void *ctx;
} fkv_source;

/* A reader's wish to end: stop(ctx) is asked at every block, NULL is never. */
typedef struct fkv_watch {
    bool (*stop)(void *ctx);
    void *ctx;
} fkv_watch;

/* A regular file. Several may read one descriptor, which they borrow as they do block and watch. */
typedef struct fkv_file_source {
    int fd;
    int64_t at, size; /* the next byte; the file's */
    uint8_t *block;
    size_t n_block; /* its bytes */
    const fkv_watch *watch;
} fkv_file_source;

enum { FKV_SOURCE_HEAD_BYTES = 512 };

/* Whether to end now; *fault says so then. */
bool fkv_watch_ends(const fkv_watch *watch, fkv_fault *fault);

/* An fkv_source's read; ctx is an fkv_file_source. */
ssize_t fkv_file_source_read(void *ctx, const void **bytes, fkv_fault *fault);

/* A source whose first bytes are looked at before it is read. Zero-initialise, set from. */
typedef struct fkv_peek {
    fkv_source from;
    bool looked, given; /* head is filled; and read */
    size_t n_head, n_rest;
    const uint8_t *rest; /* behind head, of the block that filled it */
    bool failed;         /* behind head */
    fkv_fault fault;
    uint8_t head[FKV_SOURCE_HEAD_BYTES];
} fkv_peek;

/* The first bytes, FKV_SOURCE_HEAD_BYTES or all; a failure shows when they have been read. */
size_t fkv_peek_look(fkv_peek *peek);
/* An fkv_source's read; ctx is an fkv_peek. */
ssize_t fkv_peek_read(void *ctx, const void **bytes, fkv_fault *fault);

#endif
