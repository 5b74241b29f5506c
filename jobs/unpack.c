/* Decompression of whole files: see unpack.h. gzip goes through zlib, the others
 * through libarchive's filters, whose end is compared with the file's. An
 * fkv_unpack owns its file, its buffers and either stream. */
#include "jobs/unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { IN_BYTES = 64 * 1024, OUT_BYTES = 256 * 1024, WINDOW_BITS_GZIP = 15 + 16 };

struct fkv_unpack {
    int fd;
    struct archive *filter; /* NULL for gzip */

    z_stream z;
    bool z_open;
    bool between; /* behind a gzip stream and before what may be another */
    int64_t read_bytes;
    uint8_t *in, *out;

    bool (*stop)(void *ctx); /* may be NULL */
    void *stop_ctx;

    int64_t given;
    bool ended, failed;
    int number;
    char why[160];
};

static ssize_t fail(fkv_unpack *u, int number, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static ssize_t fail(fkv_unpack *u, int number, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(u->why, sizeof u->why, fmt, ap);
    va_end(ap);
    u->failed = true;
    u->number = number;
    return -1;
}

/* --- gzip -------------------------------------------------------------------- */

static bool is_gzip(const uint8_t *head, size_t n)
{
    return n >= 4 && head[0] == 0x1f && head[1] == 0x8b && head[2] == 8 && !(head[3] & 0xe0);
}

/* Reads on into the empty buffer. 0 at the end of the file. */
static ssize_t fill(fkv_unpack *u)
{
    ssize_t n;
    do {
        n = read(u->fd, u->in, IN_BYTES);
    } while (n < 0 && errno == EINTR);
    if (n < 0) return fail(u, errno, "%s", strerror(errno));
    u->read_bytes += n;
    u->z.next_in = u->in;
    u->z.avail_in = (uInt)n;
    return n;
}

/* Behind a stream: another, or nothing but zeros, with which some pad. 1: another
 * begins here, 0: the end. */
static ssize_t next_stream(fkv_unpack *u)
{
    for (;;) {
        if (!u->z.avail_in) {
            const ssize_t n = fill(u);
            if (n <= 0) return n;
        }
        if (*u->z.next_in) break;
        u->z.next_in++;
        u->z.avail_in--;
    }
    if (inflateReset(&u->z) != Z_OK) return fail(u, 0, "gzip: can't be reset");
    u->between = false;
    return 1;
}

static ssize_t read_gzip(fkv_unpack *u)
{
    u->z.next_out = u->out;
    u->z.avail_out = OUT_BYTES;
    while (u->z.avail_out && !u->ended && !u->failed) {
        if (u->between) {
            if (next_stream(u) == 0) u->ended = true;
            continue;
        }
        if (!u->z.avail_in && fill(u) <= 0) {
            if (!u->failed) fail(u, 0, "gzip: cut short");
            continue;
        }
        const int rc = inflate(&u->z, Z_NO_FLUSH);
        if (rc == Z_STREAM_END)
            u->between = true;
        else if (rc == Z_MEM_ERROR)
            fail(u, ENOMEM, "%s", strerror(ENOMEM));
        else if (rc != Z_OK && rc != Z_BUF_ERROR)
            fail(u, 0, "gzip: %s", u->z.msg ? u->z.msg : "damaged");
    }
    return (ssize_t)(OUT_BYTES - u->z.avail_out); /* what came before a failure counts */
}

/* --- the others, through libarchive ------------------------------------------- */

/* Whether there is more in the file than the filters took, zeros aside. */
static ssize_t check_end(fkv_unpack *u)
{
    const off_t taken = (off_t)archive_filter_bytes(u->filter, -1);
    uint8_t bytes[4096];
    ssize_t n;
    if (lseek(u->fd, taken, SEEK_SET) < 0) return fail(u, errno, "%s", strerror(errno));
    while ((n = read(u->fd, bytes, sizeof bytes)) > 0 || (n < 0 && errno == EINTR)) {
        for (ssize_t i = 0; i < n; i++)
            if (bytes[i])
                return fail(u, 0, "%s: damaged, or more behind it", archive_filter_name(u->filter, 0));
    }
    return n < 0 ? fail(u, errno, "%s", strerror(errno)) : 0;
}

static ssize_t read_filter(fkv_unpack *u, const void **bytes)
{
    la_int64_t offset;
    size_t n = 0;
    while (!n) {
        const int rc = archive_read_data_block(u->filter, bytes, &n, &offset);
        if (rc == ARCHIVE_EOF) {
            u->ended = true;
            return check_end(u);
        }
        if (rc < ARCHIVE_WARN) {
            const char *why = archive_error_string(u->filter);
            return fail(u, archive_errno(u->filter), "%s", why && *why ? why : "the data is damaged");
        }
    }
    return (ssize_t)n;
}

/* Leaves u->filter NULL where no filter knows the file. */
static fkv_status open_filter(fkv_unpack *u, const char *path, fkv_err *err)
{
    struct archive *a = archive_read_new();
    struct archive_entry *entry = a ? archive_entry_new2(a) : NULL;
    bool ok = entry && archive_read_support_filter_zstd(a) != ARCHIVE_FATAL;
    ok = ok && archive_read_support_filter_xz(a) != ARCHIVE_FATAL;
    ok = ok && archive_read_support_filter_bzip2(a) != ARCHIVE_FATAL;
    ok = ok && archive_read_support_format_raw(a) != ARCHIVE_FATAL;
    ok = ok && archive_read_support_format_empty(a) != ARCHIVE_FATAL;
    if (!ok) {
        archive_entry_free(entry);
        if (a) archive_read_free(a);
        return fkv_fail_memory(err);
    }
    int rc = archive_read_open_filename(a, path, IN_BYTES);
    if (rc >= ARCHIVE_WARN && archive_filter_count(a) < 2) {
        archive_entry_free(entry);
        archive_read_free(a);
        return FKV_OK;
    }
    u->filter = a;
    if (rc >= ARCHIVE_WARN) rc = archive_read_next_header2(a, entry);
    archive_entry_free(entry);
    if (rc == ARCHIVE_EOF) {
        u->ended = true;
        check_end(u);
    } else if (rc < ARCHIVE_WARN) {
        const char *why = archive_error_string(a);
        fail(u, archive_errno(a), "%s", why && *why ? why : "the data is damaged");
    }
    return FKV_OK;
}

/* ----------------------------------------------------------------------------- */

static fkv_status start(fkv_unpack *u, const char *path, fkv_err *err)
{
    u->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (u->fd < 0) return fkv_fail_open(err, path);
    u->in = malloc(IN_BYTES);
    if (!u->in) return fkv_fail_memory(err);
    if (fill(u) < 0) return fkv_fail_at(err, FKV_E_SYSTEM, path, 0, NULL, "read: %s", u->why);
    if (!is_gzip(u->in, u->z.avail_in)) return open_filter(u, path, err);
    u->out = malloc(OUT_BYTES);
    u->z_open = u->out && inflateInit2(&u->z, WINDOW_BITS_GZIP) == Z_OK;
    return u->z_open ? FKV_OK : fkv_fail_memory(err);
}

fkv_status fkv_unpack_open(const char *path, fkv_unpack **out, fkv_err *err)
{
    *out = NULL;
    fkv_unpack *u = calloc(1, sizeof *u);
    if (!u) return fkv_fail_memory(err);
    u->fd = -1;
    const fkv_status st = start(u, path, err);
    if (!st && (u->z_open || u->filter))
        *out = u;
    else
        fkv_unpack_close(u);
    return st;
}

ssize_t fkv_unpack_read(fkv_unpack *u, const void **bytes)
{
    ssize_t n = 0;
    if (!u->failed && u->stop && u->stop(u->stop_ctx)) fail(u, EINTR, "%s", strerror(EINTR));
    if (!u->ended && !u->failed) n = u->filter ? read_filter(u, bytes) : read_gzip(u);
    if (!u->filter) *bytes = u->out;
    if (n > 0) u->given += n;
    return n > 0 ? n : u->failed ? -1 : 0;
}

void fkv_unpack_watch(fkv_unpack *u, bool (*stop)(void *ctx), void *ctx)
{
    u->stop = stop;
    u->stop_ctx = ctx;
}

const char *fkv_unpack_why(const fkv_unpack *u, int *number)
{
    *number = u->number;
    return u->failed ? u->why : NULL;
}

int64_t fkv_unpack_taken(const fkv_unpack *u)
{
    return u->filter ? archive_filter_bytes(u->filter, -1) : u->read_bytes - u->z.avail_in;
}

int64_t fkv_unpack_given(const fkv_unpack *u)
{
    return u->given;
}

void fkv_unpack_close(fkv_unpack *u)
{
    if (!u) return;
    if (u->filter) archive_read_free(u->filter);
    if (u->z_open) inflateEnd(&u->z);
    if (u->fd >= 0) close(u->fd);
    free(u->in);
    free(u->out);
    free(u);
}
