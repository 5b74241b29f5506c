/* The journal: see journal.h for the file's layout and what counts as damage.
 * A journal owns its file and its index; rows live in the file alone. */
#include "jobs/journal.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobs/row.h"
#include "runner/base/clock.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/mem.h"

enum {
    FILE_HEADER = FKV_JOURNAL_EMPTY_BYTES,
    HEADER = 64,
    VERSION = 1,
    FLAG_ERROR = 1,
    COMPACT_MIN_BYTES = 1 << 20,
    SEARCH_BYTES = 1 << 16,
};
static const char FILE_MAGIC[8] = "FKVJRNL\n";
static const unsigned char MAGIC[4] = {0xff, 'F', 'K', 0xfe};

struct fkv_journal {
    char *path, *tmp; /* tmp: path + ".tmp" */
    int fd;
    bool broken; /* a write could not be undone: nothing may follow it */
    uint64_t identity;
    int64_t end;                /* of the file */
    int64_t synced;             /* the file is on disk up to here */
    int64_t live_bytes;         /* of the entries below, with their headers */
    double unsynced_since;      /* monotonic seconds; meaningful when synced < end */
    fkv_journal_entry *entries; /* [n], ascending by ordinal */
    size_t n, cap;
    int64_t n_errors;
    fkv_buf scratch; /* the row that open and compact look at */
};

/* An entry's header, decoded. */
typedef struct header {
    uint32_t flags;
    uint64_t ordinal, length, synced, prompt_tokens, completion_tokens, row_hash;
} header;

static void put_u32(unsigned char *p, uint32_t v)
{
    v = htole32(v);
    memcpy(p, &v, sizeof v);
}

static void put_u64(unsigned char *p, uint64_t v)
{
    v = htole64(v);
    memcpy(p, &v, sizeof v);
}

static uint32_t get_u32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return le32toh(v);
}

static uint64_t get_u64(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return le64toh(v);
}

static void encode(const header *h, uint64_t identity, unsigned char out[HEADER])
{
    memcpy(out, MAGIC, sizeof MAGIC);
    put_u32(out + 4, h->flags);
    put_u64(out + 8, h->ordinal);
    put_u64(out + 16, h->length);
    put_u64(out + 24, h->synced);
    put_u64(out + 32, h->prompt_tokens);
    put_u64(out + 40, h->completion_tokens);
    put_u64(out + 48, h->row_hash);
    put_u64(out + 56, fkv_hash(out, 56, identity));
}

/* Whether the 64 bytes are a header that this journal wrote at offset. */
static bool decode(const unsigned char in[HEADER], uint64_t identity, int64_t offset, header *h)
{
    if (memcmp(in, MAGIC, sizeof MAGIC) != 0) return false;
    if (get_u64(in + 56) != fkv_hash(in, 56, identity)) return false;
    h->flags = get_u32(in + 4);
    h->ordinal = get_u64(in + 8);
    h->length = get_u64(in + 16);
    h->synced = get_u64(in + 24);
    h->prompt_tokens = get_u64(in + 32);
    h->completion_tokens = get_u64(in + 40);
    h->row_hash = get_u64(in + 48);
    return h->ordinal < INT64_MAX && h->length > 0 && h->length <= FKV_ROW_MAX_BYTES &&
           h->synced <= (uint64_t)offset;
}

static void file_header(uint64_t identity, unsigned char out[FILE_HEADER])
{
    memcpy(out, FILE_MAGIC, sizeof FILE_MAGIC);
    put_u32(out + 8, VERSION);
    put_u32(out + 12, FILE_HEADER);
    put_u64(out + 16, identity);
    put_u64(out + 24, fkv_hash(out, 24, 0));
}

/* Reads n bytes at offset; fewer only at the file's end. */
static fkv_status read_at(const fkv_journal *j, int64_t offset, void *out, size_t n, size_t *got,
                          fkv_err *err)
{
    *got = 0;
    while (*got < n) {
        const ssize_t r = pread(j->fd, (char *)out + *got, n - *got, (off_t)(offset + (int64_t)*got));
        if (r < 0 && errno == EINTR) continue;
        if (r < 0) return fkv_fail_errno(err, j->path, "read");
        if (r == 0) break;
        *got += (size_t)r;
    }
    return FKV_OK;
}

static fkv_status damaged(const fkv_journal *j, int64_t offset, fkv_err *err)
{
    return fkv_fail_at(
        err, FKV_E_INPUT, j->path, 0, NULL,
        "the entry at offset %lld is damaged, although it was safely on disk once; "
        "\"truncate -s %lld\" on this file drops it and what follows, which is then done again",
        (long long)offset, (long long)offset);
}

/* Reads the row of n bytes behind the header at offset. false in *good: it is
 * cut or has another hash. */
static fkv_status read_row(const fkv_journal *j, int64_t offset, const header *h, fkv_buf *row, bool *good,
                           fkv_err *err)
{
    size_t got;
    fkv_buf_clear(row);
    fkv_status st = fkv_buf_reserve(row, (size_t)h->length, err);
    if (!st) st = read_at(j, offset + HEADER, row->data, (size_t)h->length, &got, err);
    if (st) return st;
    row->len = got;
    row->data[got] = '\0';
    *good = got == h->length && fkv_hash(row->data, got, h->ordinal) == h->row_hash;
    return FKV_OK;
}

static fkv_status reserve_entry(fkv_journal *j, fkv_err *err)
{
    fkv_journal_entry *entries = fkv_grown(j->entries, j->n, &j->cap, sizeof *entries);
    if (!entries) return fkv_fail_memory(err);
    j->entries = entries;
    return FKV_OK;
}

/* Index of the first entry whose ordinal is at least ordinal. */
static size_t lower_bound(const fkv_journal *j, int64_t ordinal)
{
    size_t lo = 0, hi = j->n;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (j->entries[mid].ordinal < ordinal) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

static void count_entry(fkv_journal *j, const fkv_journal_entry *e, int sign)
{
    j->live_bytes += sign * ((int64_t)e->n + HEADER);
    if (e->is_error) j->n_errors += sign;
}

/* Whether a valid header behind the bad entry at offset says that the file had
 * been synced beyond that offset. */
static fkv_status was_synced(const fkv_journal *j, int64_t offset, bool *synced, fkv_err *err)
{
    unsigned char *part = malloc(SEARCH_BYTES);
    if (!part) return fkv_fail_memory(err);
    fkv_status st = FKV_OK;
    *synced = false;
    /* Parts overlap by a header less one byte, so that every header is whole in one. */
    for (int64_t at = offset + 1; !*synced; at += SEARCH_BYTES - (HEADER - 1)) {
        size_t n;
        st = read_at(j, at, part, SEARCH_BYTES, &n, err);
        if (st || n < HEADER) break;
        for (size_t i = 0; i + HEADER <= n; i++) {
            const unsigned char *hit = memchr(part + i, MAGIC[0], n - HEADER + 1 - i);
            if (!hit) break;
            i = (size_t)(hit - part);
            header h;
            if (decode(hit, j->identity, at + (int64_t)i, &h) && h.synced > (uint64_t)offset) *synced = true;
        }
    }
    free(part);
    return st;
}

static int by_ordinal(const void *a, const void *b)
{
    const fkv_journal_entry *x = a, *y = b;
    if (x->ordinal != y->ordinal) return x->ordinal < y->ordinal ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Sorts the entries read in file order; of equal ordinals the last stays. */
static void sort_entries(fkv_journal *j)
{
    if (j->n) qsort(j->entries, j->n, sizeof *j->entries, by_ordinal);
    size_t kept = 0;
    for (size_t i = 0; i < j->n; i++) {
        if (i + 1 < j->n && j->entries[i + 1].ordinal == j->entries[i].ordinal) continue;
        j->entries[kept++] = j->entries[i];
    }
    j->n = kept;
    for (size_t i = 0; i < kept; i++) count_entry(j, &j->entries[i], 1);
}

/* Reads all entries; j->end becomes the offset behind the last good one. */
static fkv_status load(fkv_journal *j, int64_t size, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (j->end = FILE_HEADER; j->end < size;) {
        unsigned char raw[HEADER] = {0};
        size_t got;
        header h;
        if ((st = read_at(j, j->end, raw, HEADER, &got, err))) return st;
        bool good = got == HEADER && decode(raw, j->identity, j->end, &h) &&
                    h.length <= (uint64_t)(size - j->end - HEADER);
        if (good && (st = read_row(j, j->end, &h, &j->scratch, &good, err))) return st;
        if (!good) break;
        if ((st = reserve_entry(j, err))) return st;
        j->entries[j->n++] =
            (fkv_journal_entry){(int64_t)h.ordinal, j->end, (uint32_t)h.length, (h.flags & FLAG_ERROR) != 0};
        j->end += HEADER + (int64_t)h.length;
    }
    if (j->end < size) {
        bool synced = false;
        if ((st = was_synced(j, j->end, &synced, err))) return st;
        if (synced) return damaged(j, j->end, err);
    }
    sort_entries(j);
    return FKV_OK;
}

static fkv_status check_file_header(const fkv_journal *j, fkv_err *err)
{
    unsigned char raw[FILE_HEADER] = {0};
    size_t got;
    const fkv_status st = read_at(j, 0, raw, FILE_HEADER, &got, err);
    if (st) return st;
    if (got < FILE_HEADER || memcmp(raw, FILE_MAGIC, sizeof FILE_MAGIC) != 0)
        return fkv_fail_at(err, FKV_E_INPUT, j->path, 0, NULL, "is not a journal");
    if (get_u64(raw + 24) != fkv_hash(raw, 24, 0))
        return fkv_fail_at(err, FKV_E_INPUT, j->path, 0, NULL, "its header at offset 0 is damaged");
    if (get_u32(raw + 8) != VERSION || get_u32(raw + 12) != FILE_HEADER)
        return fkv_fail_at(err, FKV_E_INPUT, j->path, 0, NULL,
                           "is a journal of version %u, this build reads %d", get_u32(raw + 8), VERSION);
    if (get_u64(raw + 16) != j->identity)
        return fkv_fail_at(err, FKV_E_INPUT, j->path, 0, NULL, "is the journal of a different job");
    return FKV_OK;
}

static int sync_data(int fd)
{
    int rc;
    do {
        rc = fdatasync(fd);
    } while (rc && errno == EINTR);
    return rc;
}

static fkv_status create_if_missing(const fkv_journal *j, fkv_err *err)
{
    /* A file shorter than its header holds nothing that could be lost. */
    const int64_t size = fkv_file_size(j->path);
    if (size < 0 && errno != ENOENT) return fkv_fail_errno(err, j->path, "stat");
    if (size >= FILE_HEADER) return FKV_OK;
    unsigned char raw[FILE_HEADER] = {0};
    file_header(j->identity, raw);
    return fkv_file_replace(j->path, raw, sizeof raw, err);
}

static fkv_status new_journal(const char *path, uint64_t identity, fkv_journal **out, fkv_err *err)
{
    fkv_journal *j = *out = fkv_calloc(1, sizeof *j);
    if (!j) return fkv_fail_memory(err);
    const size_t n_tmp = strlen(path) + sizeof ".tmp";
    j->fd = -1;
    j->identity = identity;
    j->path = strdup(path);
    j->tmp = malloc(n_tmp);
    if (!j->path || !j->tmp) return fkv_fail_memory(err);
    snprintf(j->tmp, n_tmp, "%s.tmp", path);
    return FKV_OK;
}

/* Opens the file, which is there, and reads its entries. */
static fkv_status read_file(fkv_journal *j, int flags, int64_t *size, fkv_err *err)
{
    struct stat sb;
    j->fd = open(j->path, flags | O_CLOEXEC | O_NOFOLLOW);
    if (j->fd < 0 || fstat(j->fd, &sb)) return fkv_fail_errno(err, j->path, "open");
    if (!S_ISREG(sb.st_mode)) return fkv_fail_at(err, FKV_E_INPUT, j->path, 0, NULL, "not a regular file");
    *size = sb.st_size;
    const fkv_status st = check_file_header(j, err);
    return st ? st : load(j, sb.st_size, err);
}

fkv_status fkv_journal_open(const char *path, uint64_t identity, fkv_journal **journal,
                            int64_t *dropped_bytes, fkv_err *err)
{
    fkv_journal *j;
    int64_t size = 0;
    *dropped_bytes = 0;
    fkv_status st = new_journal(path, identity, &j, err);
    if (!st) st = create_if_missing(j, err);
    if (!st) st = read_file(j, O_RDWR, &size, err);
    if (st) goto out;
    *dropped_bytes = size - j->end;
    /* A killed process may have left entries in the page cache alone. */
    if ((*dropped_bytes && ftruncate(j->fd, j->end)) || sync_data(j->fd) ||
        lseek(j->fd, j->end, SEEK_SET) < 0) {
        st = fkv_fail_errno(err, path, "cutting off the torn end");
        goto out;
    }
    j->synced = j->end;
out:
    if (st) {
        fkv_journal_close(j);
        j = NULL;
    }
    *journal = j;
    return st;
}

fkv_status fkv_journal_look(const char *path, uint64_t identity, fkv_journal **journal, fkv_err *err)
{
    fkv_journal *j;
    int64_t size = path ? fkv_file_size(path) : 0;
    fkv_status st = FKV_OK;
    /* A file shorter than its header would be made anew. */
    if (size < 0 && errno != ENOENT) st = fkv_fail_errno(err, path, "stat");
    const fkv_status made = new_journal(path ? path : "", identity, &j, err);
    if (!st) st = made;
    if (!st && size >= FILE_HEADER) st = read_file(j, O_RDONLY, &size, err);
    if (st) {
        fkv_journal_close(j);
        j = NULL;
    }
    *journal = j;
    return st;
}

/* Header and row to fd, whose position is at the entry's offset. */
static fkv_status write_entry(const fkv_journal *j, int fd, const char *path, const header *h,
                              const char *row, fkv_err *err)
{
    unsigned char raw[HEADER] = {0};
    encode(h, j->identity, raw);
    fkv_status st = fkv_write_all(fd, raw, sizeof raw, path, err);
    if (!st) st = fkv_write_all(fd, row, (size_t)h->length, path, err);
    return st;
}

fkv_status fkv_journal_add(fkv_journal *j, int64_t ordinal, const char *row, size_t n, bool is_error,
                           int64_t prompt_tokens, int64_t completion_tokens, fkv_err *err)
{
    if (j->broken) return fkv_fail_at(err, FKV_E_SYSTEM, j->path, 0, NULL, "an earlier write failed");
    if (ordinal < 0 || ordinal == INT64_MAX || n == 0 || n > FKV_ROW_MAX_BYTES)
        return fkv_fail_at(err, FKV_E_SYSTEM, j->path, 0, NULL, "record %lld: a row of %zu bytes",
                           (long long)ordinal, n);
    fkv_status st = reserve_entry(j, err);
    if (st) return st;
    const header h = {is_error ? FLAG_ERROR : 0,
                      (uint64_t)ordinal,
                      n,
                      (uint64_t)j->synced,
                      (uint64_t)prompt_tokens,
                      (uint64_t)completion_tokens,
                      fkv_hash(row, n, (uint64_t)ordinal)};
    if ((st = write_entry(j, j->fd, j->path, &h, row, err))) {
        /* What follows a torn entry would be lost with it. */
        if (ftruncate(j->fd, j->end) || lseek(j->fd, j->end, SEEK_SET) < 0) j->broken = true;
        return st;
    }
    const fkv_journal_entry e = {ordinal, j->end, (uint32_t)n, is_error};
    const size_t i = lower_bound(j, ordinal);
    if (i < j->n && j->entries[i].ordinal == ordinal) {
        count_entry(j, &j->entries[i], -1);
    } else {
        memmove(&j->entries[i + 1], &j->entries[i], (j->n - i) * sizeof e);
        j->n++;
    }
    j->entries[i] = e;
    count_entry(j, &e, 1);
    if (j->synced == j->end) j->unsynced_since = fkv_seconds();
    j->end += HEADER + (int64_t)n;
    return FKV_OK;
}

size_t fkv_journal_range(const fkv_journal *j, int64_t first, int64_t end, const fkv_journal_entry **entries)
{
    const size_t lo = lower_bound(j, first), hi = lower_bound(j, end);
    if (entries) *entries = j->entries ? j->entries + lo : NULL;
    return hi > lo ? hi - lo : 0;
}

/* Header and row of a live entry; a bad one is damage that came after loading. */
static fkv_status read_entry(const fkv_journal *j, const fkv_journal_entry *e, header *h, fkv_buf *row,
                             fkv_err *err)
{
    unsigned char raw[HEADER] = {0};
    size_t got;
    bool good;
    fkv_status st = read_at(j, e->offset, raw, HEADER, &got, err);
    if (st) return st;
    good = got == HEADER && decode(raw, j->identity, e->offset, h) && h->ordinal == (uint64_t)e->ordinal &&
           h->length == e->n;
    if (good) st = read_row(j, e->offset, h, row, &good, err);
    if (!st && !good) st = damaged(j, e->offset, err);
    return st;
}

fkv_status fkv_journal_read(const fkv_journal *j, const fkv_journal_entry *entry, fkv_buf *row, fkv_err *err)
{
    header h;
    return read_entry(j, entry, &h, row, err);
}

void fkv_journal_filter(fkv_journal *j, bool (*keep)(void *ctx, const fkv_journal_entry *entry), void *ctx)
{
    size_t kept = 0;
    for (size_t i = 0; i < j->n; i++) {
        const fkv_journal_entry e = j->entries[i];
        if (keep(ctx, &e)) {
            j->entries[kept++] = e;
        } else {
            count_entry(j, &e, -1);
        }
    }
    j->n = kept;
}

void fkv_journal_remove(fkv_journal *j, int64_t first, int64_t end)
{
    const size_t lo = lower_bound(j, first), hi = lower_bound(j, end);
    if (lo >= hi) return;
    for (size_t i = lo; i < hi; i++) count_entry(j, &j->entries[i], -1);
    memmove(&j->entries[lo], &j->entries[hi], (j->n - hi) * sizeof *j->entries);
    j->n -= hi - lo;
}

/* Copies the live entries to fd; offsets[i] is where entry i now stands. */
static fkv_status copy_live(fkv_journal *j, int fd, int64_t *offsets, int64_t *end, fkv_err *err)
{
    unsigned char raw[FILE_HEADER] = {0};
    file_header(j->identity, raw);
    fkv_status st = fkv_write_all(fd, raw, sizeof raw, j->tmp, err);
    int64_t at = FILE_HEADER;
    for (size_t i = 0; !st && i < j->n; i++) {
        header h = {0};
        if ((st = read_entry(j, &j->entries[i], &h, &j->scratch, err))) break;
        h.synced = (uint64_t)at; /* the whole file is synced before it gets its name */
        st = write_entry(j, fd, j->tmp, &h, j->scratch.data, err);
        offsets[i] = at;
        at += HEADER + (int64_t)h.length;
    }
    *end = at;
    return st;
}

fkv_status fkv_journal_compact(fkv_journal *j, bool all, fkv_err *err)
{
    const int64_t dead = j->end - FILE_HEADER - j->live_bytes;
    if (dead == 0 || (!all && (dead <= COMPACT_MIN_BYTES || dead <= j->live_bytes))) return FKV_OK;
    return fkv_journal_renew(j, err);
}

fkv_status fkv_journal_renew(fkv_journal *j, fkv_err *err)
{
    if (j->broken) return fkv_fail_at(err, FKV_E_SYSTEM, j->path, 0, NULL, "an earlier write failed");
    fkv_status st = FKV_OK;
    int64_t end = 0;
    int fd = -1;
    int64_t *offsets = fkv_calloc(j->n, sizeof *offsets);
    if (!offsets) return fkv_fail_memory(err);
    fd = open(j->tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        st = fkv_fail_errno(err, j->tmp, "create");
        goto out;
    }
    if ((st = copy_live(j, fd, offsets, &end, err))) goto out;
    if ((st = fkv_file_sync(fd, j->tmp, err))) goto out;
    if (rename(j->tmp, j->path)) {
        st = fkv_fail_errno(err, j->path, "rename");
        goto out;
    }
    /* The name stands for the new file now, synced folder or not. */
    const int old = j->fd;
    j->fd = fd;
    fd = old;
    for (size_t i = 0; i < j->n; i++) j->entries[i].offset = offsets[i];
    j->end = j->synced = end;
    st = fkv_dir_sync_of(j->path, err);
out:
    if (st && fd >= 0) unlink(j->tmp);
    if (fd >= 0) close(fd);
    free(offsets);
    return st;
}

fkv_status fkv_journal_sync(fkv_journal *j, fkv_err *err)
{
    if (j->synced == j->end) return FKV_OK;
    if (sync_data(j->fd)) {
        j->broken = true; /* the pages may be gone: a later sync that succeeds would lie */
        return fkv_fail_errno(err, j->path, "fdatasync");
    }
    j->synced = j->end;
    return FKV_OK;
}

double fkv_journal_unsynced_s(const fkv_journal *j)
{
    return j->synced == j->end ? 0 : fkv_seconds() - j->unsynced_since;
}

size_t fkv_journal_count(const fkv_journal *j)
{
    return j->n;
}

int64_t fkv_journal_errors(const fkv_journal *j)
{
    return j->n_errors;
}

void fkv_journal_close(fkv_journal *j)
{
    if (!j) return;
    if (j->fd >= 0) close(j->fd);
    free(j->entries);
    fkv_buf_free(&j->scratch);
    free(j->tmp);
    free(j->path);
    free(j);
}
