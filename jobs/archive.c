/* The input's lines: see archive.h.
 *
 * One archive is open at a time (members.h) and one block of it in memory. The reader owns
 * that, and the beginnings of lines (lines.h); the job is borrowed.
 */
#include "jobs/archive.h"

#include <locale.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "jobs/lines.h"
#include "jobs/members.h"
#include "jobs/unpack.h"
#include "runner/base/hash.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

struct fkv_reader {
    const fkv_job *job;
    fkv_watch watch;
    locale_t utf8; /* libarchive converts names to the locale's charset */
    int64_t total_bytes, passed_bytes;
    int64_t *file_bytes; /* of each, when the reader was opened */
    _Atomic int64_t done_bytes;

    size_t file;     /* index of the open archive, or the next to open */
    size_t end_file; /* where to stop */
    fkv_members *members;
    bool in_member;
    fkv_lines lines;
    fkv_buf name;      /* of the last line's member */
    int64_t n_records; /* handed out */
    uint64_t hash;     /* fkv_line.passed of the last of them */
    fkv_passed passed;
    int64_t n_members; /* that match, of all archives */
    int64_t unpacked;  /* bytes of the archive before */
    char message[256];

    bool quiet;
    fkv_buf other; /* the last member that is not wanted, of the archive before */
};

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
    r->lines.most_bytes = (size_t)job->input.max_record_bytes;
    /* libarchive makes names of zip and 7z by it: without one they would be lost, and rows with them. */
    r->utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    if (!r->utf8) r->utf8 = newlocale(LC_CTYPE_MASK, "en_US.UTF-8", (locale_t)0);
    if (!r->utf8) {
        fkv_fail_errno(&err, NULL, "the locale C.UTF-8, by which names in archives are read");
        fkv_errs_add(errs, &err);
        fkv_reader_close(r);
        return NULL;
    }
    return r;
}

/* What was added to errs behind the first before of them came to. */
static fkv_status status_since(const fkv_errs *errs, int before)
{
    if (errs->n == before) return FKV_OK;
    return before < FKV_ERRS_MAX ? errs->at[before].status : FKV_E_INPUT;
}

static bool is_stopped(const fkv_reader *r)
{
    return r->watch.stop && r->watch.stop(r->watch.ctx);
}

/* Opens a file of the input; what is wrong with it goes to errs. */
static void check_file(fkv_reader *r, size_t i, fkv_errs *errs)
{
    const fkv_input_file *file = &r->job->input.files[i];
    fkv_members *m = NULL;
    fkv_err err = {0};
    if (!fkv_members_open(r->job, file, &r->watch, &m, &err)) {
        r->total_bytes += r->file_bytes[i] = fkv_members_file_bytes(m);
        fkv_members_check(m, &err);
    }
    fkv_members_close(m);
    if (err.status && is_stopped(r)) {
        err = (fkv_err){0};
        fkv_fail(&err, FKV_E_INTERRUPTED, "interrupted");
    }
    if (err.status) fkv_errs_add(errs, &err);
}

fkv_status fkv_reader_open(const fkv_job *job, fkv_reader **reader, fkv_errs *errs)
{
    const int before = errs->n;
    fkv_reader *r = *reader = new_reader(job, errs);
    if (!r) return FKV_E_SYSTEM;
    const locale_t old = uselocale(r->utf8);
    for (size_t i = 0; i < job->input.n_files; i++) check_file(r, i, errs);
    uselocale(old);
    if (errs->n == before) return FKV_OK;
    fkv_reader_close(r);
    *reader = NULL;
    return status_since(errs, before);
}

void fkv_reader_watch(fkv_reader *reader, bool (*stop)(void *ctx), void *ctx)
{
    reader->watch = (fkv_watch){stop, ctx};
}

void fkv_reader_quiet(fkv_reader *reader)
{
    reader->quiet = true;
}

static void close_archive(fkv_reader *r)
{
    const char *name = r->job->input.files[r->file].name;
    const int64_t n = fkv_members_resources(r->members);
    if (n && !r->quiet)
        fkv_log("%s: left out %lld resource file%s of macOS (__MACOSX/, ._*, .AppleDouble/)", name,
                (long long)n, n == 1 ? "" : "s");
    r->unpacked = fkv_members_unpacked(r->members);
    fkv_members_close(r->members);
    r->members = NULL;
    r->in_member = false;
    r->passed_bytes += r->file_bytes[r->file++];
    atomic_store(&r->done_bytes, r->passed_bytes);
}

static fkv_step read_block(void *ctx, const char **bytes, size_t *n)
{
    fkv_reader *r = ctx;
    const fkv_step step = fkv_members_read(r->members, bytes, n);
    const int64_t here = fkv_members_taken(r->members);
    atomic_store(&r->done_bytes, r->passed_bytes + (here > 0 ? here : 0));
    return step;
}

static void keep_message(fkv_reader *r, const char *text)
{
    snprintf(r->message, sizeof r->message, "%s", text);
}

/* Goes to the next member. STEP_END: the archive is closed. */
static fkv_step next_member(fkv_reader *r, fkv_err *err)
{
    static const char array[] = ".json";
    const fkv_step step = fkv_members_next(r->members);
    const char *name = fkv_members_name(r->members);
    fkv_buf_clear(&r->name);
    if (fkv_buf_puts(&r->name, name, err)) return FKV_STEP_SYSTEM;
    const size_t n = fkv_unpack_bare(name, strlen(name)), k = sizeof array - 1;
    fkv_lines_begin(&r->lines, n > k && strncasecmp(name + n - k, array, k) == 0);
    r->in_member = step == FKV_STEP_OK;
    r->n_members += step == FKV_STEP_OK || step == FKV_STEP_MEMBER_UNREADABLE;
    if (step == FKV_STEP_END) {
        if (!fkv_members_matched(r->members) && !r->quiet)
            fkv_log_at(FKV_LOG_WARNING, "%s: no member matches input.members",
                       r->job->input.files[r->file].name);
        if (fkv_buf_puts(&r->other, fkv_members_passed(r->members), err)) return FKV_STEP_SYSTEM;
        close_archive(r);
    }
    return step;
}

/* One step towards the next record; OK without a text or an error means: go on. */
static fkv_step advance(fkv_reader *r, fkv_piece *piece, fkv_err *err)
{
    const fkv_lines_source source = {read_block, r};
    fkv_step step;
    *piece = (fkv_piece){0};
    if (!r->members) {
        fkv_buf_clear(&r->name);
        fkv_lines_begin(&r->lines, false);
        fkv_err why = {0};
        if (!fkv_members_open(r->job, &r->job->input.files[r->file], &r->watch, &r->members, &why))
            return FKV_STEP_OK;
        if (err && !err->status && !is_stopped(r)) *err = why;
        return FKV_STEP_SYSTEM;
    }
    if (r->in_member) {
        step = fkv_lines_next(&r->lines, &source, piece, err);
        r->in_member = step == FKV_STEP_OK;
    } else {
        step = next_member(r, err);
    }
    return step == FKV_STEP_END ? FKV_STEP_OK : step;
}

/* Counts a record; firm: nothing that follows can change it. */
static void pass(fkv_reader *r, fkv_line *line, bool firm)
{
    const char *what = line->text ? line->text : line->error_code;
    uint64_t h = fkv_hash(what, line->text ? line->n : strlen(what), r->hash);
    h = fkv_hash(line->member, strlen(line->member), h ^ (uint64_t)line->line);
    line->passed = r->hash = h;
    r->passed.records = r->n_records;
    if (!firm) return;
    r->passed.firm = r->n_records;
    r->passed.hash = h;
}

void fkv_reader_passed(const fkv_reader *reader, fkv_passed *passed)
{
    *passed = reader->passed;
}

/* The row that stands for what can't be read; false: there is none to stand for. */
static bool take_piece(fkv_reader *r, fkv_step step, const fkv_piece *piece, fkv_line *line)
{
    line->text = piece->text;
    line->n = piece->n;
    line->error_code = piece->error_code;
    if (step != FKV_STEP_OK) {
        line->error_code = step == FKV_STEP_MEMBER_UNREADABLE ? "unreadable_member" : "damaged_archive";
        keep_message(r, fkv_members_why(r->members));
        r->lines.line++;
    } else if (piece->error_code && strcmp(piece->error_code, "too_large") == 0) {
        snprintf(r->message, sizeof r->message, "the line is longer than input.max_record_bytes, %lld",
                 (long long)r->job->input.max_record_bytes);
    } else if (piece->error_code) {
        keep_message(r, piece->error_message);
    }
    if (!line->text && !line->error_code) return false;
    if (line->error_code) line->error_message = r->message;
    line->ordinal = r->n_records++;
    line->archive = r->job->input.files[r->file].name;
    line->member = r->name.data;
    line->line = r->lines.line;
    pass(r, line, step == FKV_STEP_OK && !piece->open);
    return true;
}

fkv_status fkv_reader_next(fkv_reader *reader, fkv_line *line, fkv_err *err)
{
    fkv_reader *r = reader;
    fkv_status st = FKV_END;
    *line = (fkv_line){0};
    const locale_t old = uselocale(r->utf8);
    const int64_t limit = r->job->job.limit;
    while (r->file < r->end_file && (!limit || r->n_records < limit)) {
        const fkv_input_file *file = &r->job->input.files[r->file];
        fkv_piece piece;
        const fkv_step step = advance(r, &piece, err);
        if (step != FKV_STEP_OK && is_stopped(r)) {
            st = fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
            break;
        }
        if (step == FKV_STEP_SYSTEM) {
            st = FKV_E_SYSTEM; /* the first of these to have a reason keeps it */
            fkv_fail_at(err, st, file->path, 0, NULL, "%s", r->members ? fkv_members_why(r->members) : "");
            break;
        }
        const bool taken = r->members && take_piece(r, step, &piece, line);
        if (step == FKV_STEP_ARCHIVE_DAMAGED) close_archive(r);
        if (taken) {
            st = FKV_OK;
            break;
        }
    }
    uselocale(old);
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
    return (l->r->members && fkv_members_unpacked(l->r->members) >= l->look->most_bytes) ||
           (l->look->stop && l->look->stop(l->look->ctx));
}

/* How much of the open archive was read, above 0. */
static double share_read(const fkv_reader *r)
{
    const double all = (double)r->file_bytes[r->file < r->end_file ? r->file : r->end_file - 1];
    const double taken = r->members ? (double)fkv_members_taken(r->members) : all;
    return taken < 1 || all < 1 ? 1 / (all + 1) : taken < all ? taken / all : 1;
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
    r->n_records = r->n_members = 0;
    fkv_buf_clear(&r->other);
    while (!(st = fkv_reader_next(r, &line, err))) {
        if (line.error_code && !r->members && r->n_records == 1) {
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
    const char *passed = r->members ? fkv_members_passed(r->members) : r->other.data ? r->other.data : "";
    const fkv_look_end end = {.file = file,
                              .how = how,
                              .member = r->name.len ? r->name.data : passed,
                              .line = r->lines.line,
                              .n_members = r->n_members,
                              .share = how == FKV_LOOKED_ALL ? 1 : share_read(r),
                              .bytes = r->members ? fkv_members_unpacked(r->members) : r->unpacked};
    look->done(look->ctx, &end);
    return true;
}

fkv_status fkv_input_look(const fkv_job *job, const fkv_look *look, fkv_errs *errs)
{
    const int before = errs->n;
    fkv_reader *r = new_reader(job, errs);
    if (!r) return FKV_E_SYSTEM;
    looking l = {r, look};
    r->quiet = true;
    fkv_reader_watch(r, has_looked_enough, &l);
    for (size_t i = 0; i < job->input.n_files; i++) {
        const int so_far = errs->n;
        fkv_err err = {0};
        const locale_t old = uselocale(r->utf8);
        check_file(r, i, errs);
        uselocale(old);
        if (errs->n == so_far && !look_at(r, i, look, &err)) fkv_errs_add(errs, &err);
        if (r->members) close_archive(r);
        if (look->stop && look->stop(look->ctx)) break;
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
    fkv_members_close(reader->members);
    fkv_lines_free(&reader->lines);
    fkv_buf_free(&reader->name);
    fkv_buf_free(&reader->other);
    free(reader->file_bytes);
    if (reader->utf8) freelocale(reader->utf8);
    free(reader);
}
