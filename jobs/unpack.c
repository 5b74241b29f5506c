/* Decompression: see unpack.h. gzip goes through zlib, zst through unzstd.h, xz and bzip2
 * through libarchive's filters, whose end is compared with the source's. What the source
 * gives is copied into in, where what a decoder left stays in reach. */
#include "jobs/unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <zlib.h>

#include "jobs/unzstd.h"

enum { IN_BYTES = 64 * 1024, OUT_BYTES = 256 * 1024, WINDOW_BITS_GZIP = 15 + 16 };

struct fkv_unpack {
    fkv_source source;
    const char *form;
    const uint8_t *block; /* what is left of the source's block */
    size_t n_block;

    uint8_t in[2 * IN_BYTES];
    size_t at, end;     /* what is not taken yet, but by a filter: it keeps what it was handed */
    int64_t read_bytes; /* into in */
    bool source_ended;

    z_stream z; /* gzip */
    bool z_open, z_between;
    fkv_unzstd *zstd;
    struct archive *filter; /* xz, bzip2 */
    uint8_t *out;           /* OUT_BYTES, not for a filter */

    bool ended, failed;
    fkv_fault fault;
};

static bool begins(const void *head, size_t n, const char *magic, size_t n_magic)
{
    return n >= n_magic && memcmp(head, magic, n_magic) == 0;
}

const char *fkv_unpack_form(const void *head, size_t n)
{
    const uint8_t *h = head;
    if (begins(h, n, "\x1f\x8b\x08", 3) && n >= 4 && !(h[3] & 0xe0)) return "gzip";
    if (fkv_unzstd_begins(h, n)) return "zstd";
    if (begins(h, n,
               "\xfd"
               "7zXZ\0",
               6))
        return "xz";
    if (begins(h, n, "BZh", 3) && n >= 10 && h[3] >= '1' && h[3] <= '9' &&
        (begins(h + 4, n - 4, "\x31\x41\x59\x26\x53\x59", 6) ||
         begins(h + 4, n - 4, "\x17\x72\x45\x38\x50\x90", 6)))
        return "bzip2";
    return NULL;
}

size_t fkv_unpack_bare(const char *name, size_t n)
{
    static const char *const suffixes[] = {".gz", ".zst", ".zstd", ".xz", ".bz2"};
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        const size_t k = strlen(suffixes[i]);
        if (n > k && strncasecmp(name + n - k, suffixes[i], k) == 0) return n - k;
    }
    return n;
}

static bool fail(fkv_unpack *u, const char *why)
{
    u->failed = true;
    fkv_fault_set(&u->fault, 0, "%s: %s", u->form, why);
    return false;
}

static bool fail_memory(fkv_unpack *u)
{
    u->failed = true;
    fkv_fault_set(&u->fault, ENOMEM, "%s", strerror(ENOMEM));
    return false;
}

/* More of the source behind in[at, end), up to IN_BYTES. False: it ended or failed. */
static bool fill(fkv_unpack *u)
{
    if (!u->n_block && !u->source_ended && !u->failed) {
        const void *bytes;
        const ssize_t n = u->source.read(u->source.ctx, &bytes, &u->fault);
        if (n < 0) u->failed = true;
        if (n == 0) u->source_ended = true;
        u->block = n > 0 ? bytes : NULL;
        u->n_block = n > 0 ? (size_t)n : 0;
    }
    if (!u->n_block) return false;
    if (u->at) {
        memmove(u->in, u->in + u->at, u->end - u->at);
        u->end -= u->at;
        u->at = 0;
    }
    const size_t room = sizeof u->in - u->end;
    size_t n = u->n_block < IN_BYTES ? u->n_block : IN_BYTES;
    if (n > room) n = room;
    memcpy(u->in + u->end, u->block, n);
    u->block += n;
    u->n_block -= n;
    u->end += n;
    u->read_bytes += (int64_t)n;
    return true;
}

/* Behind a stream: passes zeros, with which some pad. True: something else begins. */
static bool pass_zeros(fkv_unpack *u)
{
    for (;;) {
        while (u->at < u->end && !u->in[u->at]) u->at++;
        if (u->at < u->end) return true;
        if (!fill(u)) return false;
    }
}

static bool fail_behind(fkv_unpack *u)
{
    return fail(u, "damaged, or more behind it");
}

/* --- gzip -------------------------------------------------------------------- */

/* One step towards a full out. */
static void step_gzip(fkv_unpack *u)
{
    if (u->z_between) {
        if (!pass_zeros(u)) {
            u->ended = true;
            return;
        }
        if (inflateReset(&u->z) != Z_OK) fail(u, "can't be reset");
        u->z_between = false;
    }
    if (u->at == u->end && !fill(u)) {
        if (!u->failed) fail(u, "cut short");
        return;
    }
    u->z.next_in = u->in + u->at;
    u->z.avail_in = (uInt)(u->end - u->at);
    const int rc = inflate(&u->z, Z_NO_FLUSH);
    u->at = u->end - u->z.avail_in;
    if (rc == Z_STREAM_END)
        u->z_between = true;
    else if (rc == Z_MEM_ERROR)
        fail_memory(u);
    else if (rc != Z_OK && rc != Z_BUF_ERROR)
        fail(u, u->z.msg ? u->z.msg : "damaged");
}

static ssize_t read_gzip(fkv_unpack *u)
{
    u->z.next_out = u->out;
    u->z.avail_out = OUT_BYTES;
    while (u->z.avail_out && !u->ended && !u->failed) step_gzip(u);
    return (ssize_t)(OUT_BYTES - u->z.avail_out);
}

/* --- zstd -------------------------------------------------------------------- */

static ssize_t read_zstd(fkv_unpack *u)
{
    size_t n = 0;
    bool idle = false; /* the last step did nothing */
    while (n < OUT_BYTES && !u->ended && !u->failed) {
        size_t taken, given;
        if (fkv_unzstd_is_between(u->zstd)) {
            while (u->end - u->at < FKV_UNZSTD_HEADER_BYTES && fill(u)) continue;
            if (!fkv_unzstd_begins(u->in + u->at, u->end - u->at)) {
                if (pass_zeros(u)) fail_behind(u);
                if (!u->failed) u->ended = true;
                break;
            }
        } else if ((u->at == u->end || idle) && !fill(u) && idle) {
            if (!u->failed) fail(u, "truncated: a frame is cut short");
            break;
        }
        if (!fkv_unzstd_step(u->zstd, u->in + u->at, u->end - u->at, &taken, u->out + n, OUT_BYTES - n,
                             &given, &u->fault))
            u->failed = true;
        u->at += taken;
        n += given;
        idle = !taken && !given;
    }
    return (ssize_t)n;
}

/* --- xz and bzip2, through libarchive ------------------------------------------ */

/* What was handed before stays in front: of that a filter may leave some bytes, and all of
 * what is new. */
static la_ssize_t hand(struct archive *a, void *ctx, const void **bytes)
{
    fkv_unpack *u = ctx;
    if (u->end > IN_BYTES) u->at = u->end - IN_BYTES;
    const size_t before = u->end - u->at;
    if (!fill(u)) {
        u->at = 0;
        if (!u->failed) return 0;
        archive_set_error(a, u->fault.number, "%s", u->fault.why);
        return ARCHIVE_FATAL;
    }
    u->at = 0;
    *bytes = u->in + before;
    return (la_ssize_t)(u->end - before);
}

static void fail_filter(fkv_unpack *u)
{
    const char *why = archive_error_string(u->filter);
    if (u->failed) return; /* the source did */
    fail(u, why && *why ? why : "damaged");
    u->fault.number = archive_errno(u->filter);
}

/* The filter is at its end: nothing but zeros may be left. */
static void end_filter(fkv_unpack *u)
{
    const int64_t left = u->read_bytes - archive_filter_bytes(u->filter, -1);
    u->ended = true;
    u->at = left < 0 || (uint64_t)left > u->end ? 0 : u->end - (size_t)left;
    if (pass_zeros(u)) fail_behind(u);
}

static ssize_t read_filter(fkv_unpack *u, const void **bytes)
{
    la_int64_t offset;
    size_t n = 0;
    while (!n && !u->failed) {
        const int rc = archive_read_data_block(u->filter, bytes, &n, &offset);
        if (rc == ARCHIVE_EOF) {
            end_filter(u);
            return 0;
        }
        if (rc < ARCHIVE_WARN) {
            fail_filter(u);
            return 0;
        }
    }
    return (ssize_t)n;
}

static fkv_status open_filter(fkv_unpack *u, fkv_err *err)
{
    struct archive *a = u->filter = archive_read_new();
    struct archive_entry *entry = a ? archive_entry_new2(a) : NULL;
    bool ok = entry && archive_read_support_filter_xz(a) != ARCHIVE_FATAL;
    ok = ok && archive_read_support_filter_bzip2(a) != ARCHIVE_FATAL;
    ok = ok && archive_read_support_format_raw(a) != ARCHIVE_FATAL;
    ok = ok && archive_read_support_format_empty(a) != ARCHIVE_FATAL;
    if (!ok) {
        archive_entry_free(entry);
        return fkv_fail_memory(err);
    }
    int rc = archive_read_open(a, u, NULL, hand, NULL);
    if (rc >= ARCHIVE_WARN) rc = archive_read_next_header2(a, entry);
    archive_entry_free(entry);
    if (rc == ARCHIVE_EOF)
        end_filter(u);
    else if (rc < ARCHIVE_WARN)
        fail_filter(u);
    else if (archive_filter_count(a) < 2) /* it saw no beginning */
        fail(u, "damaged");
    return FKV_OK;
}

/* ----------------------------------------------------------------------------- */

static fkv_status start(fkv_unpack *u, int64_t max_window, fkv_err *err)
{
    if (strcmp(u->form, "xz") == 0 || strcmp(u->form, "bzip2") == 0) return open_filter(u, err);
    u->out = malloc(OUT_BYTES);
    if (!u->out) return fkv_fail_memory(err);
    if (strcmp(u->form, "zstd") == 0) {
        u->zstd = fkv_unzstd_new(max_window);
        return u->zstd ? FKV_OK : fkv_fail_memory(err);
    }
    u->z_open = inflateInit2(&u->z, WINDOW_BITS_GZIP) == Z_OK;
    return u->z_open ? FKV_OK : fkv_fail_memory(err);
}

fkv_status fkv_unpack_open(fkv_source source, const char *form, int64_t max_window, fkv_unpack **out,
                           fkv_err *err)
{
    *out = NULL;
    fkv_unpack *u = calloc(1, sizeof *u);
    if (!u) return fkv_fail_memory(err);
    u->source = source;
    u->form = form;
    const fkv_status st = start(u, max_window, err);
    if (!st)
        *out = u;
    else
        fkv_unpack_close(u);
    return st;
}

ssize_t fkv_unpack_read(void *ctx, const void **bytes, fkv_fault *fault)
{
    fkv_unpack *u = ctx;
    ssize_t n = 0;
    if (!u->ended && !u->failed) {
        n = u->filter ? read_filter(u, bytes) : u->zstd ? read_zstd(u) : read_gzip(u);
        if (!u->filter) *bytes = u->out;
    }
    if (n > 0 || !u->failed) return n;
    *fault = u->fault;
    return -1;
}

int64_t fkv_unpack_taken(const fkv_unpack *u)
{
    return u->filter ? archive_filter_bytes(u->filter, -1) : u->read_bytes - (int64_t)(u->end - u->at);
}

void fkv_unpack_close(fkv_unpack *u)
{
    if (!u) return;
    if (u->filter) archive_read_free(u->filter);
    if (u->z_open) inflateEnd(&u->z);
    fkv_unzstd_free(u->zstd);
    free(u->out);
    free(u);
}
