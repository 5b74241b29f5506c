/* Members through libarchive: see walk.h.
 *
 * A tar is read with further ones behind it (read_concatenated_archives): libarchive then
 * passes zeros, and whether it did so behind the last member tells whether that had an end
 * mark. tail keeps the end of what a source gave, since a rest that is no whole block
 * is not taken.
 */
#include "jobs/walk.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TAR_BLOCK_BYTES = FKV_SOURCE_HEAD_BYTES };

struct fkv_walk {
    struct archive *archive;
    struct archive_entry *entry;
    const fkv_watch *watch;
    fkv_walk_formats formats;

    fkv_file_source *file; /* or NULL */
    int64_t base;          /* in the file, where archive begins */
    fkv_source source;
    fkv_fault source_fault;
    bool source_failed;
    int64_t given; /* by the source */
    uint8_t tail[TAR_BLOCK_BYTES];

    fkv_fault fault;
    bool broken;  /* fault was there before the first member */
    bool in_data; /* of a member */
    bool begun;   /* there was one */
    bool tar;     /* it is one; also while archive begins anew */
    fkv_member member;

    /* its data */
    fkv_peek first;
    fkv_step step;
    int64_t offset;
    bool warned; /* it is damaged, which shows behind this block */
};

/* --- what libarchive calls ------------------------------------------------------ */

static la_ssize_t give(struct archive *a, void *ctx, const void **bytes)
{
    fkv_walk *w = ctx;
    ssize_t n = -1;
    if (!w->source_failed && !fkv_watch_ends(w->watch, &w->source_fault))
        n = w->source.read(w->source.ctx, bytes, &w->source_fault);
    if (n < 0) {
        w->source_failed = true;
        archive_set_error(a, w->source_fault.number, "%s", w->source_fault.why);
        return ARCHIVE_FATAL;
    }
    const size_t kept = (size_t)n < sizeof w->tail ? (size_t)n : sizeof w->tail;
    memmove(w->tail, w->tail + kept, sizeof w->tail - kept);
    if (kept) memcpy(w->tail + sizeof w->tail - kept, (const uint8_t *)*bytes + n - kept, kept);
    w->given += n;
    return n;
}

static la_int64_t skip(struct archive *a, void *ctx, la_int64_t request)
{
    fkv_walk *w = ctx;
    const int64_t left = w->file->size - w->file->at;
    (void)a;
    if (left <= 0 || request <= 0) return 0;
    const int64_t n = request < left ? request : left;
    w->file->at += n;
    return n;
}

static la_int64_t seek(struct archive *a, void *ctx, la_int64_t offset, int whence)
{
    fkv_walk *w = ctx;
    const int64_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? w->file->at : w->file->size;
    int64_t to;
    (void)a;
    if (__builtin_add_overflow(from, offset, &to) || to < 0) return ARCHIVE_FATAL;
    if (to > w->file->size) to = w->file->size;
    w->file->at = to;
    return to;
}

/* --- opening ---------------------------------------------------------------------- */

static uint32_t read_le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Reads the n bytes of the file at an offset, beside what libarchive reads. False: there are
 * fewer, or none can be read, which is kept as the source's failure. */
static bool read_at(fkv_walk *w, int64_t at, void *bytes, size_t n)
{
    ssize_t got;
    if (at < 0 || at > w->file->size) return false;
    do {
        got = pread(w->file->fd, bytes, n, (off_t)at);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        fkv_fault_set(&w->source_fault, errno, "%s", strerror(errno));
        w->source_failed = true;
    }
    return got == (ssize_t)n;
}

static bool stands_at(fkv_walk *w, int64_t at, const char *four)
{
    char bytes[4];
    return read_at(w, at, bytes, sizeof bytes) && memcmp(bytes, four, sizeof bytes) == 0;
}

/* How many bytes stand before a zip that begin as one, too. What its directory, at the end,
 * does not name would be left out in silence. What unpacks itself begins otherwise. */
static int64_t bytes_before_zip(fkv_walk *w)
{
    enum { END_BYTES = 22, COMMENT_MOST = 65535, ZIP64_LOCATOR_BYTES = 20, ZIP64_END_BYTES = 56 };
    const size_t most = END_BYTES + COMMENT_MOST;
    int64_t before = 0;
    const int64_t size = w->file->size;
    if (!stands_at(w, 0, "PK\3\4") && !stands_at(w, 0, "PK\5\6")) return 0;
    const size_t n = size < (int64_t)most ? (size_t)size : most;
    if (n < END_BYTES) return 0;
    uint8_t *tail = malloc(n);
    if (!tail) {
        fkv_fault_set(&w->source_fault, ENOMEM, "%s", strerror(ENOMEM));
        w->source_failed = true;
    }
    if (!tail || !read_at(w, size - (int64_t)n, tail, n)) goto out;
    for (size_t i = n - END_BYTES + 1; i-- > 0;) {
        const uint8_t *end = tail + i;
        if (memcmp(end, "PK\5\6", 4) != 0) continue;
        int64_t at = size - (int64_t)n + (int64_t)i;
        const uint32_t bytes = read_le32(end + 12), offset = read_le32(end + 16);
        if (bytes == UINT32_MAX || offset == UINT32_MAX) break;
        if (stands_at(w, at - ZIP64_LOCATOR_BYTES, "PK\6\7")) at -= ZIP64_LOCATOR_BYTES + ZIP64_END_BYTES;
        const int64_t start = at - bytes - offset;
        if (start > 0 && (!bytes || stands_at(w, start + offset, "PK\1\2"))) before = start;
        break;
    }
out:
    free(tail);
    return before;
}

static fkv_status start(fkv_walk *w, fkv_err *err)
{
    struct archive *a = w->archive = archive_read_new();
    if (!a) return fkv_fail_memory(err);
    /* Without memory for one of them the archive would look like no archive. */
    bool ok = true;
    if (w->formats != FKV_WALK_LINES) {
        ok &= archive_read_support_format_tar(a) != ARCHIVE_FATAL;
        ok &= archive_read_set_format_option(a, "tar", "read_concatenated_archives", "1") == ARCHIVE_OK;
    }
    if (w->formats == FKV_WALK_ANY || w->formats == FKV_WALK_ARCHIVE) {
        ok &= archive_read_support_format_zip(a) != ARCHIVE_FATAL;
        ok &= archive_read_support_format_7zip(a) != ARCHIVE_FATAL;
    }
    if (w->formats == FKV_WALK_ANY || w->formats == FKV_WALK_LINES) {
        ok &= archive_read_support_format_raw(a) != ARCHIVE_FATAL;
        ok &= archive_read_support_format_empty(a) != ARCHIVE_FATAL;
    }
    archive_read_set_read_callback(a, give);
    if (w->file) archive_read_set_skip_callback(a, skip);
    if (w->file && !w->base) archive_read_set_seek_callback(a, seek);
    ok &= archive_read_set_callback_data(a, w) == ARCHIVE_OK;
    if (!ok) return fkv_fail_memory(err);
    if (archive_read_open1(a) >= ARCHIVE_WARN) return FKV_OK;
    w->broken = true;
    return FKV_OK;
}

fkv_status fkv_walk_open(fkv_file_source *file, fkv_source source, const fkv_watch *watch,
                         fkv_walk_formats formats, fkv_walk **out, fkv_err *err)
{
    fkv_walk *w = *out = calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    w->file = file;
    w->base = file ? file->at : 0;
    w->source = file ? (fkv_source){fkv_file_source_read, file} : source;
    w->watch = watch;
    w->formats = formats;
    w->entry = archive_entry_new();
    fkv_status st = w->entry ? start(w, err) : fkv_fail_memory(err);
    if (st) {
        fkv_walk_close(w);
        *out = NULL;
        return st;
    }
    return FKV_OK;
}

void fkv_walk_close(fkv_walk *w)
{
    if (!w) return;
    archive_entry_free(w->entry);
    if (w->archive) archive_read_free(w->archive);
    free(w);
}

/* --- headers ------------------------------------------------------------------------ */

bool fkv_walk_is_tar_header(const void *head, size_t n)
{
    enum { SUM_AT = 148, SUM_BYTES = 8 };
    const uint8_t *h = head;
    unsigned sum = 0, said = 0;
    size_t i;
    if (n < TAR_BLOCK_BYTES || !h[0]) return false;
    for (i = 0; i < TAR_BLOCK_BYTES; i++) sum += i - SUM_AT < SUM_BYTES ? ' ' : h[i];
    for (i = SUM_AT; i < SUM_AT + SUM_BYTES && h[i] == ' '; i++) continue;
    const size_t first = i;
    for (; i < SUM_AT + SUM_BYTES && h[i] >= '0' && h[i] <= '7'; i++)
        said = said * 8 + (unsigned)(h[i] - '0');
    return i > first && said == sum;
}

static bool is_format(const fkv_walk *w, int format)
{
    return (archive_format(w->archive) & ARCHIVE_FORMAT_BASE_MASK) == format;
}

static int64_t taken(const fkv_walk *w)
{
    return archive_filter_bytes(w->archive, 0);
}

/* Remembers what failed: libarchive's words, or otherwise. */
static void keep_fault(fkv_walk *w, const char *otherwise)
{
    const char *why = archive_error_string(w->archive);
    if (w->source_failed)
        w->fault = w->source_fault;
    else
        fkv_fault_set(&w->fault, archive_errno(w->archive), "%s", why && *why ? why : otherwise);
}

static fkv_step fail(fkv_walk *w, fkv_step otherwise)
{
    if (!fkv_fault_is_system(&w->fault)) return otherwise;
    if (!w->source_failed && !fkv_errno_is_system(w->fault.number)) w->fault.number = ENOMEM;
    fkv_fault_set(&w->fault, w->fault.number, "read: %s", strerror(w->fault.number));
    return FKV_STEP_SYSTEM;
}

static fkv_step fail_source(fkv_walk *w)
{
    w->fault = w->source_fault;
    return fail(w, FKV_STEP_ARCHIVE_DAMAGED);
}

/* Whether what is left, less than a tar's block, are zeros. */
static bool rest_is_zeros(const fkv_walk *w)
{
    uint8_t rest[TAR_BLOCK_BYTES];
    const int64_t n = (w->file ? w->file->size - w->base : w->given) - taken(w);
    if (n < 0 || n >= TAR_BLOCK_BYTES || w->source_failed) return false;
    memcpy(rest, w->tail + sizeof w->tail - n, (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        if (rest[i]) return false;
    }
    return true;
}

/* libarchive found no further header. before: where the last member ended. */
static fkv_step end(fkv_walk *w, int64_t before)
{
    const void *bytes;
    ssize_t n;
    if (w->tar && w->begun && taken(w) == before) {
        fkv_fault_set(&w->fault, 0, "the tar is cut short: it has no end mark, so members may be missing");
        return fail(w, FKV_STEP_ARCHIVE_DAMAGED);
    }
    /* What is left of the source: a checksum, above all. */
    while (!w->file && (n = give(w->archive, w, &bytes)) != 0) {
        if (n > 0) continue;
        return fail_source(w);
    }
    return FKV_STEP_END;
}

/* The next header can't be read. */
static fkv_step fail_header(fkv_walk *w, int rc, int64_t before)
{
    const bool tar = w->tar && w->begun && !w->source_failed;
    const int64_t now = taken(w) - (rc == ARCHIVE_RETRY ? TAR_BLOCK_BYTES : 0);
    if (tar && rc != ARCHIVE_RETRY && rest_is_zeros(w)) return end(w, before);
    if (tar && now > before && !fkv_errno_is_system(archive_errno(w->archive)))
        fkv_fault_set(&w->fault, 0,
                      "more stands behind the tar's end mark, at byte %lld, which is neither zeros nor a tar",
                      (long long)(w->base + now));
    else if (tar && rc == ARCHIVE_RETRY)
        fkv_fault_set(&w->fault, 0, "the header at byte %lld of the tar is damaged",
                      (long long)(w->base + now));
    else
        keep_fault(w, w->begun ? "the archive is damaged" : "not an archive that can be read");
    return fail(w, FKV_STEP_ARCHIVE_DAMAGED);
}

static void take_member(fkv_walk *w)
{
    struct archive_entry *e = w->entry;
    const __LA_MODE_T type = archive_entry_filetype(e);
    const char *name = archive_entry_pathname_utf8(e), *hard = archive_entry_hardlink_utf8(e),
               *symbolic = archive_entry_symlink_utf8(e);
    if (!name) name = archive_entry_pathname(e);
    if (!hard) hard = archive_entry_hardlink(e);
    if (!symbolic) symbolic = archive_entry_symlink(e);
    const int64_t size = archive_entry_size_is_set(e) ? archive_entry_size(e) : 0;
    w->member = (fkv_member){.name = name ? name : "",
                             .target = "",
                             .size = size > 0 ? size : 0,
                             .at = w->base + archive_read_header_position(w->archive)};
    if (hard && !w->member.size) {
        w->member.kind = FKV_MEMBER_HARD_LINK;
        w->member.target = hard;
    } else if (type == AE_IFLNK) {
        w->member.kind = FKV_MEMBER_SYMBOLIC_LINK;
        w->member.target = symbolic ? symbolic : "";
    } else if (type == AE_IFDIR) {
        w->member.kind = FKV_MEMBER_FOLDER;
    } else {
        w->member.kind = !type || type == AE_IFREG ? FKV_MEMBER_FILE : FKV_MEMBER_OTHER;
    }
}

/* pax lets hard links have data, and libarchive believes their size; some writers give a
 * size and no data, so that the next headers would be taken for it. */
static fkv_step look_behind_link(fkv_walk *w)
{
    const uint8_t *head;
    uint8_t block[TAR_BLOCK_BYTES];
    const char *target = archive_entry_hardlink_utf8(w->entry);
    if (!target) target = archive_entry_hardlink(w->entry);
    if (!target || w->member.kind != FKV_MEMBER_FILE || !w->tar) return FKV_STEP_OK;
    const int64_t behind = w->base + taken(w);
    if (!w->file) {
        const size_t n = fkv_walk_look(w, &head);
        /* Of less than a header no more is known than that text has no NUL. */
        const bool none = n < TAR_BLOCK_BYTES ? memchr(head, 0, n) != NULL : fkv_walk_is_tar_header(head, n);
        if (!none) return FKV_STEP_OK;
        fkv_fault_set(&w->fault, 0, "a hard link says that it has data and has none");
        return FKV_STEP_ARCHIVE_DAMAGED;
    }
    const bool is_header =
        read_at(w, behind, block, sizeof block) && fkv_walk_is_tar_header(block, sizeof block);
    if (w->source_failed) return fail_source(w);
    if (!is_header) return FKV_STEP_OK;
    archive_read_free(w->archive);
    w->archive = NULL;
    w->file->at = w->base = behind;
    w->member.kind = FKV_MEMBER_HARD_LINK;
    w->member.target = target;
    w->member.size = 0;
    w->in_data = false;
    if (!start(w, NULL)) return FKV_STEP_OK;
    fkv_fault_set(&w->fault, ENOMEM, "read: %s", strerror(ENOMEM));
    return FKV_STEP_SYSTEM;
}

/* A zip's directory must name what stands before it, too. */
static fkv_step look_before_zip(fkv_walk *w)
{
    const int64_t n = w->file && is_format(w, ARCHIVE_FORMAT_ZIP) ? bytes_before_zip(w) : 0;
    if (w->source_failed) return fail_source(w);
    if (n)
        fkv_fault_set(
            &w->fault, 0,
            "two zips in one file: the second, from byte %lld on, does not name what is in the first: "
            "split them",
            (long long)n);
    return n ? FKV_STEP_ARCHIVE_DAMAGED : FKV_STEP_OK;
}

static ssize_t read_data(void *ctx, const void **bytes, fkv_fault *fault);

fkv_step fkv_walk_next(fkv_walk *w, const fkv_member **member)
{
    *member = &w->member;
    if (w->broken) {
        keep_fault(w, "not an archive that can be read");
        return fail(w, FKV_STEP_ARCHIVE_DAMAGED);
    }
    if (w->in_data && archive_read_data_skip(w->archive) < ARCHIVE_WARN) {
        keep_fault(w, "the archive is damaged");
        return fail(w, FKV_STEP_ARCHIVE_DAMAGED);
    }
    w->in_data = false;
    const int64_t before = taken(w);
    const int rc = archive_read_next_header2(w->archive, w->entry);
    if (!w->begun && rc != ARCHIVE_FATAL) {
        const fkv_step step = look_before_zip(w);
        if (step != FKV_STEP_OK) return step;
    }
    if (rc == ARCHIVE_EOF) return end(w, before);
    if (rc < ARCHIVE_WARN || rc == ARCHIVE_RETRY) return fail_header(w, rc, before);
    w->in_data = w->begun = true;
    w->tar = is_format(w, ARCHIVE_FORMAT_TAR);
    w->offset = 0;
    w->warned = false;
    w->step = FKV_STEP_OK;
    w->first = (fkv_peek){.from = {read_data, w}};
    take_member(w);
    return look_behind_link(w);
}

/* --- data ---------------------------------------------------------------------------- */

static ssize_t fail_data(fkv_walk *w, fkv_step step, fkv_fault *fault)
{
    w->step = fail(w, step);
    *fault = w->fault;
    return -1;
}

static ssize_t fail_sparse(fkv_walk *w, fkv_fault *fault)
{
    fkv_fault_set(&w->fault, 0, "a sparse member, which can't be read as lines: a hole begins at byte %lld",
                  (long long)w->offset);
    return fail_data(w, FKV_STEP_MEMBER_DAMAGED, fault);
}

static ssize_t read_data(void *ctx, const void **bytes, fkv_fault *fault)
{
    fkv_walk *w = ctx;
    la_int64_t offset;
    size_t n = 0;
    if (w->warned) return fail_data(w, FKV_STEP_MEMBER_DAMAGED, fault);
    while (!n) {
        if (fkv_watch_ends(w->watch, &w->fault)) return fail_data(w, FKV_STEP_SYSTEM, fault);
        const int rc = archive_read_data_block(w->archive, bytes, &n, &offset);
        if (rc == ARCHIVE_EOF) {
            const bool hole = archive_entry_sparse_count(w->entry) && w->offset < w->member.size;
            return hole ? fail_sparse(w, fault) : 0;
        }
        if (rc <= ARCHIVE_WARN) keep_fault(w, "the data is damaged");
        if (rc < ARCHIVE_WARN)
            return fail_data(w, rc == ARCHIVE_FAILED ? FKV_STEP_MEMBER_DAMAGED : FKV_STEP_ARCHIVE_DAMAGED,
                             fault);
        w->warned = rc == ARCHIVE_WARN; /* a checksum, say: what was decoded is still handed out */
        if (n && offset != w->offset) return fail_sparse(w, fault);
        if (!n && w->warned) return fail_data(w, FKV_STEP_MEMBER_DAMAGED, fault);
    }
    w->offset += (int64_t)n;
    return (ssize_t)n;
}

size_t fkv_walk_look(fkv_walk *w, const uint8_t **head)
{
    *head = w->first.head;
    return fkv_peek_look(&w->first);
}

ssize_t fkv_walk_read(void *ctx, const void **bytes, fkv_fault *fault)
{
    return fkv_peek_read(&((fkv_walk *)ctx)->first, bytes, fault);
}

fkv_step fkv_walk_step(const fkv_walk *w)
{
    return w->step;
}

const fkv_fault *fkv_walk_fault(const fkv_walk *w)
{
    return &w->fault;
}

bool fkv_walk_is_raw(const fkv_walk *w)
{
    return archive_format(w->archive) == ARCHIVE_FORMAT_RAW;
}

bool fkv_walk_is_7z(const fkv_walk *w)
{
    return archive_format(w->archive) == ARCHIVE_FORMAT_7ZIP;
}

bool fkv_walk_can_seek(const fkv_walk *w)
{
    return w->file && w->tar;
}

int64_t fkv_walk_position(const fkv_walk *w)
{
    return w->base + taken(w);
}

int64_t fkv_walk_given(const fkv_walk *w)
{
    return w->given;
}
