/* The input's lines through libarchive: see archive.h.
 *
 * One archive is open at a time and one block of it in memory; a line that lies
 * within a block is handed out in place, one that crosses blocks is put together
 * in carry, which never outgrows max_record_bytes. The reader owns all of it and
 * the member's name; the job is borrowed. Not for: what a line means (record_parse.c).
 *
 * A file whose name says text (.jsonl and the like, a compression suffix aside)
 * is read as lines whatever its bytes look like, one whose name says archive
 * must be one, and any other is what its content says.
 */
#include "jobs/archive.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <locale.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "jobs/pattern.h"
#include "jobs/unpack.h"
#include "runner/base/file.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"
#include "runner/base/utf8.h"

enum { BLOCK_BYTES = 256 * 1024, MESSAGE_BYTES = 200 };

/* A .json member that begins with '[' holds an array: its elements stand for lines. */
typedef enum array_state {
    ARRAY_NONE,   /* lines */
    ARRAY_MAYBE,  /* by its name; the first block decides */
    ARRAY_INSIDE, /* behind '[' or an element's comma */
    ARRAY_BEHIND, /* behind ']' */
    ARRAY_OVER    /* and what is there too much has been told */
} array_state;

struct fkv_reader {
    const fkv_job *job;
    bool (*stop)(void *ctx); /* NULL: never */
    void *stop_ctx;
    locale_t utf8; /* libarchive converts names to the locale's charset */
    int64_t total_bytes, passed_bytes;
    int64_t *file_bytes; /* of each, when the reader was opened */
    _Atomic int64_t done_bytes;

    size_t file;     /* index of the open archive, or the next to open */
    size_t end_file; /* where to stop */
    struct archive *archive;
    struct archive_entry *entry; /* of its current member */
    fkv_unpack *unpack;          /* what the archive is read from; NULL: its file as it is */
    bool plain;                  /* the archive is a plain file, its own member */
    bool matched;                /* some member of it did */
    bool begun; /* its first header is read; open read it too, so that a failure is no damage */

    bool in_member;
    const char *member; /* in name, or "" */
    fkv_buf name;
    bool looking;          /* fkv_input_look: for what follows */
    fkv_buf other;         /* the last member that is not wanted */
    int64_t passed_inside; /* bytes of members that were read or passed over, where unpack doesn't count */
    array_state array;     /* what the member is; with ARRAY_INSIDE, where in an element p is: */
    int64_t depth;         /* open brackets */
    bool in_string, escaped;
    int64_t line;      /* lines, or elements, of the member read so far */
    const char *p;     /* what is left of the block */
    const char *end;   /* its end */
    int64_t offset;    /* in the member, of the next block */
    fkv_buf carry;     /* the beginning of a line, from earlier blocks */
    bool carry_lent;   /* the caller had it; empty it first */
    bool skipping;     /* to the end of an oversized line */
    bool warned;       /* the member is damaged, which shows behind this block */
    int64_t n_records; /* handed out */
    char message[MESSAGE_BYTES];
};

/* What reading came to, besides a status. */
typedef enum step { STEP_OK, STEP_END, STEP_MEMBER_DAMAGED, STEP_ARCHIVE_DAMAGED, STEP_SYSTEM } step;

static bool ends_in(const char *name, size_t n, const char *const *suffixes, size_t *bare)
{
    for (; *suffixes; suffixes++) {
        const size_t k = strlen(*suffixes);
        if (n > k && strncasecmp(name + n - k, *suffixes, k) == 0) {
            *bare = n - k;
            return true;
        }
    }
    return false;
}

static const char *const compressed_suffixes[] = {".gz", ".zst", ".zstd", ".xz", ".bz2", NULL};
static const char *const array_suffixes[] = {".json", NULL};
static const char *const text_suffixes[] = {".jsonl", ".ndjson", ".json", ".txt", NULL};
static const char *const archive_suffixes[] = {".tar",  ".zip", ".7z",   ".tgz", ".tbz",
                                               ".tbz2", ".txz", ".tzst", NULL};

/* libarchive and its filters don't always say that they found no memory. What they call
 * damage is believed where they can have had enough. Most of that is mapped, not
 * allocated: an archive may be damaged a thousand times, and sanitizers fill what is. */
static bool memory_is_short(void)
{
    const size_t enough = (size_t)256 << 20;
    void *volatile small = malloc(4096); /* or the compiler leaves it out */
    void *large = mmap(NULL, enough, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const bool is_short = !small || large == MAP_FAILED;
    if (large != MAP_FAILED) munmap(large, enough);
    free(small);
    return is_short;
}

/* What failed, as an errno of the system; 0: it is damage. A disk, a network or memory
 * that fails is none: another run may read the rest. */
static int system_errno(struct archive *a, const fkv_unpack *u)
{
    int e = 0;
    if (!u || !fkv_unpack_why(u, &e)) e = archive_errno(a);
    if (fkv_errno_is_system(e)) return e;
    return memory_is_short() ? ENOMEM : 0;
}

/* Remembers why reading failed. */
static void keep_message(fkv_reader *r, struct archive *a, const fkv_unpack *u, const char *otherwise)
{
    fkv_buf clean = {0};
    int ignored;
    const int number = system_errno(a, u);
    if (number) {
        snprintf(r->message, sizeof r->message, "read: %s", strerror(number));
        return;
    }
    const char *text = u ? fkv_unpack_why(u, &ignored) : NULL;
    if (!text) text = archive_error_string(a);
    if (!text || !*text) text = otherwise;
    size_t n = strlen(text);
    if (n > MESSAGE_BYTES / 3 - 1) n = MESSAGE_BYTES / 3 - 1; /* U+FFFD takes three bytes */
    fkv_utf8_append_clean(&clean, text, n, NULL);
    snprintf(r->message, sizeof r->message, "%s", clean.data ? clean.data : otherwise);
    fkv_buf_free(&clean);
}

static bool failed_to_read(const fkv_reader *r)
{
    return system_errno(r->archive, r->unpack) != 0;
}

/* The entry is our own: libarchive uses the one that it would make unseen. */
static int next_header(struct archive *a, struct archive_entry **entry)
{
    if (!*entry && !(*entry = archive_entry_new2(a))) {
        archive_set_error(a, ENOMEM, "%s", strerror(ENOMEM));
        return ARCHIVE_FATAL;
    }
    return archive_read_next_header2(a, *entry);
}

static la_ssize_t read_unpacked(struct archive *a, void *unpack, const void **bytes)
{
    int number;
    const ssize_t n = fkv_unpack_read(unpack, bytes);
    if (n >= 0) return n;
    const char *why = fkv_unpack_why(unpack, &number);
    archive_set_error(a, number, "%s", why);
    return ARCHIVE_FATAL;
}

/* Opens path with the formats that name lets it have. FKV_OK: the caller looks at *rc. */
static fkv_status open_archive(const char *path, const char *name, struct archive **out, fkv_unpack **unpack,
                               int *rc, fkv_err *err)
{
    size_t n = strlen(name), ignored;
    *out = NULL;
    const fkv_status st = fkv_unpack_open(path, unpack, err);
    if (st) return st;
    struct archive *a = *out = archive_read_new();
    if (!a) return fkv_fail_memory(err);
    ends_in(name, n, compressed_suffixes, &n);
    const bool text = ends_in(name, n, text_suffixes, &ignored);
    const bool packed = !text && ends_in(name, n, archive_suffixes, &ignored);
    /* Without memory for one of them the archive would look like no archive. */
    bool ok = archive_read_support_filter_gzip(a) != ARCHIVE_FATAL;
    ok &= archive_read_support_filter_zstd(a) != ARCHIVE_FATAL;
    ok &= archive_read_support_filter_xz(a) != ARCHIVE_FATAL;
    ok &= archive_read_support_filter_bzip2(a) != ARCHIVE_FATAL;
    if (!text) {
        ok &= archive_read_support_format_tar(a) != ARCHIVE_FATAL;
        ok &= archive_read_support_format_zip(a) != ARCHIVE_FATAL;
        ok &= archive_read_support_format_7zip(a) != ARCHIVE_FATAL;
    }
    if (!packed) {
        ok &= archive_read_support_format_raw(a) != ARCHIVE_FATAL;
        ok &= archive_read_support_format_empty(a) != ARCHIVE_FATAL;
    }
    if (!ok) return fkv_fail_memory(err);
    if (!*unpack) {
        *rc = archive_read_open_filename(a, path, BLOCK_BYTES);
        return FKV_OK;
    }
    archive_read_set_read_callback(a, read_unpacked);
    if (archive_read_set_callback_data(a, *unpack) != ARCHIVE_OK) return fkv_fail_memory(err);
    *rc = archive_read_open1(a);
    return FKV_OK;
}

/* Reports what is wrong with one file of the input. */
static void check_file(fkv_reader *r, const fkv_input_file *file, fkv_errs *errs)
{
    fkv_err err = {0};
    struct stat sb;
    struct archive_entry *entry = NULL;
    struct archive *a = NULL;
    fkv_unpack *u = NULL;
    size_t bare;
    int rc;
    if (stat(file->path, &sb)) {
        fkv_fail_open(&err, file->path);
        goto out;
    }
    if (!S_ISREG(sb.st_mode)) {
        fkv_fail_at(&err, FKV_E_INPUT, file->path, 0, NULL, "not a regular file");
        goto out;
    }
    r->total_bytes += r->file_bytes[file - r->job->input.files] = sb.st_size;
    if (open_archive(file->path, file->name, &a, &u, &rc, &err)) goto out;
    if (rc >= ARCHIVE_WARN) rc = next_header(a, &entry);
    if (rc != ARCHIVE_EOF && rc < ARCHIVE_WARN) {
        keep_message(r, a, u, "not an archive that can be read");
        fkv_fail_at(&err, system_errno(a, u) ? FKV_E_SYSTEM : FKV_E_INPUT, file->path, 0, NULL, "%s",
                    r->message);
    } else if (sb.st_size && !u && archive_filter_count(a) < 2 &&
               ends_in(file->name, strlen(file->name), compressed_suffixes, &bare)) {
        fkv_fail_at(&err, FKV_E_INPUT, file->path, 0, NULL, "is not compressed as its name says");
    }
out:
    archive_entry_free(entry);
    if (a) archive_read_free(a);
    fkv_unpack_close(u);
    if (err.status) fkv_errs_add(errs, &err);
}

static fkv_reader *new_reader(const fkv_job *job, fkv_errs *errs)
{
    fkv_err err = {0};
    fkv_reader *r = calloc(1, sizeof *r);
    if (r) r->file_bytes = fkv_calloc(job->input.n_files, sizeof *r->file_bytes);
    if (!r || !r->file_bytes) {
        free(r);
        fkv_fail_memory(&err);
        fkv_errs_add(errs, &err);
        return NULL;
    }
    r->job = job;
    r->end_file = job->input.n_files;
    r->utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    return r;
}

/* What was added to errs behind the first before of them came to. */
static fkv_status status_since(const fkv_errs *errs, int before)
{
    if (errs->n == before) return FKV_OK;
    return before < FKV_ERRS_MAX ? errs->at[before].status : FKV_E_INPUT;
}

fkv_status fkv_reader_open(const fkv_job *job, fkv_reader **reader, fkv_errs *errs)
{
    const int before = errs->n;
    fkv_reader *r = *reader = new_reader(job, errs);
    if (!r) return FKV_E_SYSTEM;
    const locale_t old = uselocale(r->utf8);
    for (size_t i = 0; i < job->input.n_files; i++) check_file(r, &job->input.files[i], errs);
    uselocale(old);
    if (errs->n == before) return FKV_OK;
    fkv_reader_close(r);
    *reader = NULL;
    return status_since(errs, before);
}

void fkv_reader_watch(fkv_reader *reader, bool (*stop)(void *ctx), void *ctx)
{
    reader->stop = stop;
    reader->stop_ctx = ctx;
}

static bool is_stopped(const fkv_reader *r)
{
    return r->stop && r->stop(r->stop_ctx);
}

static void close_archive(fkv_reader *r)
{
    archive_entry_free(r->entry);
    if (r->archive) archive_read_free(r->archive);
    fkv_unpack_close(r->unpack);
    r->entry = NULL;
    r->archive = NULL;
    r->unpack = NULL;
    r->in_member = false;
    r->p = r->end = NULL;
    r->passed_bytes += r->file_bytes[r->file++];
    atomic_store(&r->done_bytes, r->passed_bytes);
}

static fkv_status keep_name(fkv_reader *r, const char *name, size_t n, fkv_err *err)
{
    fkv_buf_clear(&r->name);
    fkv_status st = fkv_buf_reserve(&r->name, n, err);
    if (!st) st = fkv_utf8_append_clean(&r->name, name, n, err);
    if (!st) r->member = r->name.data;
    return st;
}

static bool wanted(const fkv_reader *r, const char *name, size_t n)
{
    for (size_t i = 0; i < r->job->input.members.n; i++) {
        const char *pattern = r->job->input.members.at[i];
        if (fkv_pattern_match(pattern, name, n)) return true;
        /* tar keeps the "./" that it was called with. */
        if (n > 2 && memcmp(name, "./", 2) == 0 && fkv_pattern_match(pattern, name + 2, n - 2)) return true;
    }
    return false;
}

/* A plain file's name as a member: without folders and compression suffix. */
static const char *plain_name(const char *name, size_t *n)
{
    const char *slash = strrchr(name, '/');
    const char *base = slash ? slash + 1 : name;
    *n = strlen(base);
    ends_in(base, *n, compressed_suffixes, n);
    return base;
}

/* A member that is not wanted is left behind. Only 7z decodes its bytes for that: tar and
 * zip seek, or unpack counts. */
static step pass_over(fkv_reader *r, const char *name, size_t n, fkv_err *err)
{
    if (!r->looking) return STEP_OK;
    if (archive_format(r->archive) == ARCHIVE_FORMAT_7ZIP) r->passed_inside += archive_entry_size(r->entry);
    fkv_buf_clear(&r->other);
    if (fkv_buf_reserve(&r->other, n, err) || fkv_utf8_append_clean(&r->other, name, n, err))
        return STEP_SYSTEM;
    return is_stopped(r) ? STEP_SYSTEM : STEP_OK;
}

/* Goes to the next member that is wanted. */
static step next_member(fkv_reader *r, fkv_err *err)
{
    r->member = "";
    r->line = 0;
    for (;;) {
        const int rc = next_header(r->archive, &r->entry);
        struct archive_entry *entry = r->entry;
        if (rc == ARCHIVE_EOF) return STEP_END;
        if (rc < ARCHIVE_WARN) {
            keep_message(r, r->archive, r->unpack, "the archive is damaged");
            return failed_to_read(r) || !r->begun ? STEP_SYSTEM : STEP_ARCHIVE_DAMAGED;
        }
        r->begun = true;
        const __LA_MODE_T type = archive_entry_filetype(entry);
        if ((type && type != AE_IFREG) || archive_entry_hardlink(entry)) continue;
        const char *name = archive_entry_pathname_utf8(entry);
        if (!name) name = archive_entry_pathname(entry);
        if (!name) name = "";
        size_t n = strlen(name);
        r->plain = archive_format(r->archive) == ARCHIVE_FORMAT_RAW;
        if (r->plain) name = plain_name(r->job->input.files[r->file].name, &n);
        if (!wanted(r, name, n)) {
            if (pass_over(r, name, n, err) != STEP_OK) return STEP_SYSTEM;
            continue;
        }
        if (keep_name(r, name, n, err)) return STEP_SYSTEM;
        r->matched = r->in_member = true;
        r->p = r->end = NULL;
        r->offset = 0;
        r->skipping = r->warned = r->in_string = r->escaped = false;
        r->depth = 0;
        r->array = ends_in(name, n, array_suffixes, &n) ? ARRAY_MAYBE : ARRAY_NONE;
        fkv_buf_clear(&r->carry);
        return STEP_OK;
    }
}

/* The next piece of the member into p..end. */
static step read_block(fkv_reader *r)
{
    const void *bytes;
    size_t n;
    la_int64_t offset;
    if (r->warned) return STEP_MEMBER_DAMAGED;
    if (is_stopped(r)) return STEP_SYSTEM;
    const int rc = archive_read_data_block(r->archive, &bytes, &n, &offset);
    const int64_t here = r->unpack ? fkv_unpack_taken(r->unpack) : archive_filter_bytes(r->archive, -1);
    atomic_store(&r->done_bytes, r->passed_bytes + (here > 0 ? here : 0));
    if (rc == ARCHIVE_EOF) return STEP_END;
    if (rc < ARCHIVE_WARN) {
        keep_message(r, r->archive, r->unpack, "the data is damaged");
        if (failed_to_read(r)) return STEP_SYSTEM;
        return rc == ARCHIVE_FAILED ? STEP_MEMBER_DAMAGED : STEP_ARCHIVE_DAMAGED;
    }
    if (rc == ARCHIVE_WARN) {
        keep_message(r, r->archive, r->unpack, "the data is damaged");
        r->warned = true; /* a checksum, say: what was decoded is still handed out */
    }
    if (n && offset != r->offset) {
        snprintf(r->message, sizeof r->message, "a sparse member, which can't be read as lines");
        return STEP_MEMBER_DAMAGED;
    }
    r->p = n ? bytes : ""; /* libarchive may give no pointer to no bytes */
    r->end = r->p + n;
    r->offset += (int64_t)n;
    r->passed_inside += (int64_t)n;
    return STEP_OK;
}

static bool is_blank_line(const char *text, size_t n)
{
    while (n && (*text == ' ' || *text == '\t' || *text == '\r')) {
        text++;
        n--;
    }
    return n == 0;
}

/* Fills line from a whole line's bytes. False: a blank one. */
static bool take_line(fkv_reader *r, const char *text, size_t n, fkv_line *line)
{
    r->line++;
    if (r->line == 1 && n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        text += 3;
        n -= 3;
    }
    if (n && text[n - 1] == '\r') n--;
    if (n > (size_t)r->job->input.max_record_bytes) {
        line->error_code = "too_large";
        return true;
    }
    if (is_blank_line(text, n)) return false;
    line->text = text;
    line->n = n;
    return true;
}

/* The member's next line that is not blank. STEP_END: there is none. */
static step next_line(fkv_reader *r, fkv_line *line, fkv_err *err)
{
    /* A byte order mark and "\r" don't count as the record's. */
    const size_t most = (size_t)r->job->input.max_record_bytes + 4;
    for (;;) {
        if (r->carry_lent) fkv_buf_clear(&r->carry);
        r->carry_lent = false;
        if (r->p == r->end) {
            const step got = read_block(r);
            if (got == STEP_END && r->carry.len && !r->skipping) {
                r->carry_lent = true;
                if (take_line(r, r->carry.data, r->carry.len, line)) return STEP_OK;
            }
            if (got != STEP_OK) return got;
            continue;
        }
        const char *text = r->p;
        const char *nl = memchr(text, '\n', (size_t)(r->end - text));
        size_t n = (size_t)((nl ? nl : r->end) - text);
        r->p = nl ? nl + 1 : r->end;
        if (r->skipping) {
            r->skipping = !nl;
            continue;
        }
        if (n + r->carry.len > most) {
            r->line++;
            r->skipping = !nl;
            r->carry_lent = true;
            line->error_code = "too_large";
            return STEP_OK;
        }
        if (!nl || r->carry.len) {
            if (fkv_buf_append(&r->carry, text, n, err)) return STEP_SYSTEM;
            if (!nl) continue;
            text = r->carry.data;
            n = r->carry.len;
            r->carry_lent = true;
        }
        if (take_line(r, text, n, line)) return STEP_OK;
    }
}

static step bad_element(fkv_reader *r, fkv_line *line, const char *code, const char *what)
{
    r->line++;
    r->carry_lent = true;
    line->error_code = code;
    snprintf(r->message, sizeof r->message, "%s", what);
    return STEP_OK;
}

/* Moves p behind the element's end, which is given back: ',' or ']'; '\0': it goes on in
 * the next block. Brackets that don't match are the element's own mistake. */
static char pass_element(fkv_reader *r)
{
    while (r->p < r->end) {
        const char c = *r->p++;
        if (r->in_string) {
            if (r->escaped || c == '\\')
                r->escaped = !r->escaped;
            else if (c == '"')
                r->in_string = false;
        } else if (c == '"') {
            r->in_string = true;
        } else if (c == '{' || c == '[') {
            r->depth++;
        } else if (r->depth == 0 && (c == ',' || c == ']')) {
            return c;
        } else if (r->depth && (c == '}' || c == ']')) {
            r->depth--;
        }
    }
    return '\0';
}

static void skip_space(fkv_reader *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\t' || *r->p == '\r' || *r->p == '\n')) r->p++;
}

/* Looks at the first block for the array's beginning, and passes it. */
static void decide(fkv_reader *r)
{
    const char *first = r->p;
    if (r->end - r->p >= 3 && memcmp(r->p, "\xef\xbb\xbf", 3) == 0) r->p += 3;
    skip_space(r);
    r->array = r->p < r->end && *r->p == '[' ? ARRAY_INSIDE : ARRAY_NONE;
    r->p = r->array == ARRAY_INSIDE ? r->p + 1 : first;
}

/* The element that ends here, of which text is what the last block had. */
static step take_element(fkv_reader *r, const char *text, size_t n, char end, fkv_line *line)
{
    const bool first = r->line == 0;
    if (end == ']') r->array = ARRAY_BEHIND;
    while (n && strchr(" \t\r\n", text[n - 1])) n--;
    if (n == 0 && first && end == ']') return STEP_OK; /* an empty array */
    if (n == 0) return bad_element(r, line, "bad_json", "an element of the array is missing");
    if (n > (size_t)r->job->input.max_record_bytes) return bad_element(r, line, "too_large", "");
    r->line++;
    line->text = text;
    line->n = n;
    return STEP_OK;
}

/* One step towards the array's next element; without a text or an error: go on. */
static step next_element(fkv_reader *r, fkv_line *line, fkv_err *err)
{
    if (r->carry_lent) fkv_buf_clear(&r->carry);
    r->carry_lent = false;
    if (r->p == r->end) {
        const step got = read_block(r);
        if (got != STEP_END || r->array != ARRAY_INSIDE) return got;
        r->array = ARRAY_OVER;
        return bad_element(r, line, "bad_json", "the array does not end");
    }
    if (!r->carry.len && !r->skipping && !r->in_string && !r->depth) skip_space(r);
    if (r->p == r->end) return STEP_OK;
    if (r->array != ARRAY_INSIDE) {
        r->p = r->end;
        if (r->array == ARRAY_OVER) return STEP_OK;
        r->array = ARRAY_OVER;
        return bad_element(r, line, "bad_json", "more behind the array");
    }
    const char *text = r->p;
    const char end = pass_element(r);
    const size_t n = (size_t)(r->p - text) - (end != '\0');
    if (r->skipping) {
        r->skipping = end == '\0';
        if (end == ']') r->array = ARRAY_BEHIND;
        return STEP_OK;
    }
    if (n + r->carry.len > (size_t)r->job->input.max_record_bytes + 4) {
        r->skipping = end == '\0';
        if (end == ']') r->array = ARRAY_BEHIND;
        return bad_element(r, line, "too_large", "");
    }
    if (end && !r->carry.len) return take_element(r, text, n, end, line);
    if (fkv_buf_append(&r->carry, text, n, err)) return STEP_SYSTEM;
    if (!end) return STEP_OK;
    r->carry_lent = true;
    return take_element(r, r->carry.data, r->carry.len, end, line);
}

/* The same of any member. STEP_END: there is none. */
static step next_piece(fkv_reader *r, fkv_line *line, fkv_err *err)
{
    if (r->array == ARRAY_MAYBE) {
        const step got = r->p == r->end ? read_block(r) : STEP_OK;
        if (got != STEP_OK || r->p == r->end) return got;
        decide(r);
    }
    return r->array == ARRAY_NONE ? next_line(r, line, err) : next_element(r, line, err);
}

static step next_archive(fkv_reader *r, fkv_err *err)
{
    int rc;
    const fkv_input_file *file = &r->job->input.files[r->file];
    r->matched = false;
    r->begun = false;
    r->member = "";
    r->line = 0;
    if (open_archive(file->path, file->name, &r->archive, &r->unpack, &rc, err)) return STEP_SYSTEM;
    if (r->unpack) fkv_unpack_watch(r->unpack, r->stop, r->stop_ctx);
    if (rc >= ARCHIVE_WARN) return STEP_OK;
    keep_message(r, r->archive, r->unpack, "the archive is damaged");
    return STEP_SYSTEM;
}

/* Behind the last member: what is left of the compressed file, its checksum above all. */
static step pass_the_end(fkv_reader *r)
{
    const void *bytes;
    ssize_t n = 0;
    while (r->unpack && (n = fkv_unpack_read(r->unpack, &bytes)) > 0) continue;
    if (n == 0) return STEP_END;
    keep_message(r, r->archive, r->unpack, "the data is damaged");
    return failed_to_read(r) ? STEP_SYSTEM : STEP_ARCHIVE_DAMAGED;
}

/* One step towards the next record; STEP_OK without a text means: go on. */
static step advance(fkv_reader *r, fkv_line *line, fkv_err *err)
{
    if (!r->archive) return next_archive(r, err);
    if (r->in_member) {
        const step got = next_piece(r, line, err);
        if (got != STEP_OK) r->in_member = false;
        return got == STEP_END ? STEP_OK : got;
    }
    step got = next_member(r, err);
    if (got == STEP_END) got = pass_the_end(r);
    if (got != STEP_END) return got;
    if (!r->matched && !r->looking)
        fkv_log("%s: no member matches input.members", r->job->input.files[r->file].name);
    close_archive(r);
    return STEP_OK;
}

static void damaged_line(fkv_reader *r, fkv_line *line)
{
    *line = (fkv_line){.error_code = "damaged_archive"};
    r->line++;
}

fkv_status fkv_reader_next(fkv_reader *r, fkv_line *line, fkv_err *err)
{
    fkv_status st = FKV_END;
    *line = (fkv_line){0};
    const locale_t old = uselocale(r->utf8);
    const int64_t limit = r->job->job.limit;
    while (r->file < r->end_file && (!limit || r->n_records < limit)) {
        const fkv_input_file *file = &r->job->input.files[r->file];
        const step got = advance(r, line, err);
        if (got != STEP_OK && is_stopped(r)) {
            *line = (fkv_line){0};
            st = fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
            break;
        }
        if (got == STEP_SYSTEM) {
            st = FKV_E_SYSTEM; /* the first of these to have a reason keeps it */
            fkv_fail_at(err, st, file->path, 0, NULL, "%s", r->message);
            break;
        }
        if (got == STEP_MEMBER_DAMAGED || got == STEP_ARCHIVE_DAMAGED) damaged_line(r, line);
        if (line->text || line->error_code) {
            line->ordinal = r->n_records++;
            line->archive = file->name;
            line->member = r->member;
            line->line = r->line;
            st = FKV_OK;
        }
        if (got == STEP_ARCHIVE_DAMAGED) close_archive(r);
        if (st == FKV_OK) break;
    }
    uselocale(old);
    if (line->error_code) {
        line->error_message = r->message;
        if (strcmp(line->error_code, "too_large") == 0)
            snprintf(r->message, sizeof r->message, "the line is longer than input.max_record_bytes, %lld",
                     (long long)r->job->input.max_record_bytes);
    }
    return st;
}

/* ---- looking at the beginnings ---- */

typedef struct looking {
    const fkv_reader *r;
    const fkv_look *look;
} looking;

static bool has_looked_enough(void *ctx)
{
    const looking *l = ctx;
    const fkv_unpack *u = l->r->unpack;
    return (u ? fkv_unpack_given(u) : l->r->passed_inside) >= l->look->most_bytes ||
           (l->look->stop && l->look->stop(l->look->ctx));
}

/* Looks at file i, which can be opened. False: asked to stop, or a failure, in err. */
static bool look_at(fkv_reader *r, size_t i, const fkv_look *look, fkv_err *err)
{
    const fkv_input_file *file = &r->job->input.files[i];
    fkv_line line;
    fkv_status st;
    fkv_looked how = FKV_LOOKED_ALL;
    r->file = i;
    r->end_file = i + 1;
    r->n_records = r->passed_inside = 0;
    fkv_buf_clear(&r->other);
    while (!(st = fkv_reader_next(r, &line, err))) {
        if (line.error_code && !r->archive && r->n_records == 1) {
            fkv_fail_at(err, FKV_E_INPUT, file->path, 0, NULL, "%s, before its first record",
                        line.error_message);
            return false;
        }
        how = FKV_LOOKED_ENOUGH;
        if (look->see(look->ctx, &line)) break;
        how = FKV_LOOKED_ALL;
    }
    if (st == FKV_E_INTERRUPTED && !(look->stop && look->stop(look->ctx))) {
        how = FKV_LOOKED_FAR;
        st = FKV_OK;
        *err = (fkv_err){0};
    }
    if (st && st != FKV_END) return false;
    const bool named = r->member[0] != '\0';
    look->done(look->ctx, file, how, named ? r->member : r->other.data ? r->other.data : "", r->line);
    return true;
}

fkv_status fkv_input_look(const fkv_job *job, const fkv_look *look, fkv_errs *errs)
{
    const int before = errs->n;
    fkv_reader *r = new_reader(job, errs);
    if (!r) return FKV_E_SYSTEM;
    looking l = {r, look};
    r->looking = true;
    fkv_reader_watch(r, has_looked_enough, &l);
    for (size_t i = 0; i < job->input.n_files; i++) {
        const int so_far = errs->n;
        fkv_err err = {0};
        const locale_t old = uselocale(r->utf8);
        check_file(r, &job->input.files[i], errs);
        uselocale(old);
        if (errs->n == so_far && !look_at(r, i, look, &err)) fkv_errs_add(errs, &err);
        if (r->archive) close_archive(r);
        if (err.status == FKV_E_INTERRUPTED) break;
    }
    fkv_reader_close(r);
    return status_since(errs, before);
}

void fkv_reader_progress(const fkv_reader *reader, int64_t *done_bytes, int64_t *total_bytes)
{
    const int64_t done = atomic_load(&reader->done_bytes);
    *total_bytes = reader->total_bytes;
    *done_bytes = done < reader->total_bytes ? done : reader->total_bytes;
}

void fkv_reader_close(fkv_reader *reader)
{
    if (!reader) return;
    archive_entry_free(reader->entry);
    if (reader->archive) archive_read_free(reader->archive);
    fkv_unpack_close(reader->unpack);
    fkv_buf_free(&reader->name);
    fkv_buf_free(&reader->other);
    fkv_buf_free(&reader->carry);
    free(reader->file_bytes);
    if (reader->utf8) freelocale(reader->utf8);
    free(reader);
}
