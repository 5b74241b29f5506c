/* Members of one file: see members.h.
 *
 * A chain of sources: file, peek, decompressor, peek, ... and then the walk; a file that is
 * not compressed is given to the walk as it is, which then seeks. What is read of a member
 * comes from the walk, or, of a link, from a second one that stands at its target.
 */
#include "jobs/members.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobs/links.h"
#include "jobs/pattern.h"
#include "jobs/unpack.h"
#include "runner/base/utf8.h"

enum { BLOCK_BYTES = 256 * 1024, LINK_BLOCK_BYTES = 32 * 1024, LAYERS_MOST = 3 };

struct fkv_members {
    const fkv_job *job;
    const fkv_input_file *input;
    const fkv_watch *watch;
    int fd;
    fkv_file_source file;
    fkv_unpack *layers[LAYERS_MOST];
    int n_layers;
    fkv_peek peeks[LAYERS_MOST + 1];
    fkv_walk *walk;
    bool begun; /* there was a member */
    bool matched;
    int64_t n_resources;
    fkv_buf passed;
    int64_t passed_bytes; /* of members that were read or passed over, where no layer counts them */

    fkv_buf name;
    const char *shown; /* in name, or "" */
    fkv_walk *from;    /* walk or linked */
    fkv_unpack *inner; /* the member is compressed */
    fkv_peek inner_peek;
    fkv_fault fault;

    fkv_links *links;
    fkv_file_source link_file;
    fkv_walk *linked;
    int64_t linked_bytes;
    fkv_buf target;
};

static bool ends_in(const char *name, size_t n, const char *const *suffixes)
{
    for (; *suffixes; suffixes++) {
        const size_t k = strlen(*suffixes);
        if (n > k && strncasecmp(name + n - k, *suffixes, k) == 0) return true;
    }
    return false;
}

static const char *const text_suffixes[] = {".jsonl", ".ndjson", ".json", ".txt", NULL};
static const char *const archive_suffixes[] = {".tar",  ".zip", ".7z",   ".tgz", ".tbz",
                                               ".tbz2", ".txz", ".tzst", NULL};

/* --- opening ---------------------------------------------------------------------- */

static fkv_status start_walk(fkv_members *m, fkv_err *err)
{
    const char *name = m->input->name;
    const size_t n = fkv_unpack_bare(name, strlen(name));
    const fkv_walk_formats formats = ends_in(name, n, text_suffixes)      ? FKV_WALK_LINES
                                     : ends_in(name, n, archive_suffixes) ? FKV_WALK_ARCHIVE
                                                                          : FKV_WALK_ANY;
    fkv_source source = {fkv_file_source_read, &m->file};
    for (;; m->n_layers++) {
        fkv_peek *peek = &m->peeks[m->n_layers];
        peek->from = source;
        const size_t n_head = fkv_peek_look(peek);
        if (!m->n_layers && peek->failed)
            return fkv_fail_at(err, FKV_E_SYSTEM, m->input->path, 0, NULL, "read: %s", peek->fault.why);
        const char *form = fkv_unpack_form(peek->head, n_head);
        source = (fkv_source){fkv_peek_read, peek};
        if (!form || m->n_layers == LAYERS_MOST) break;
        const fkv_status st =
            fkv_unpack_open(source, form, m->job->input.max_window, &m->layers[m->n_layers], err);
        if (st) return st;
        source = (fkv_source){fkv_unpack_read, m->layers[m->n_layers]};
    }
    m->file.at = m->n_layers ? m->file.at : 0;
    return fkv_walk_open(m->n_layers ? NULL : &m->file, source, m->watch, formats, &m->walk, err);
}

static fkv_status open_file(fkv_members *m, fkv_err *err)
{
    struct stat sb;
    const char *path = m->input->path;
    /* What a path leads to may be a pipe, at which opening would wait. */
    m->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (m->fd < 0) return fkv_fail_open(err, path);
    if (fstat(m->fd, &sb)) return fkv_fail_errno(err, path, "stat");
    if (!S_ISREG(sb.st_mode)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "not a regular file");
    m->file = (fkv_file_source){.fd = m->fd,
                                .size = sb.st_size,
                                .block = malloc(BLOCK_BYTES),
                                .n_block = BLOCK_BYTES,
                                .watch = m->watch};
    return m->file.block ? start_walk(m, err) : fkv_fail_memory(err);
}

fkv_status fkv_members_open(const fkv_job *job, const fkv_input_file *input, const fkv_watch *watch,
                            fkv_members **out, fkv_err *err)
{
    fkv_members *m = calloc(1, sizeof *m);
    *out = NULL; /* until it is open: the watch is asked meanwhile */
    if (!m) return fkv_fail_memory(err);
    m->job = job;
    m->input = input;
    m->watch = watch;
    m->fd = -1;
    m->shown = "";
    const fkv_status st = open_file(m, err);
    if (!st)
        *out = m;
    else
        fkv_members_close(m);
    return st;
}

/* The member is done with. */
static void leave_member(fkv_members *m)
{
    fkv_unpack_close(m->inner);
    fkv_walk_close(m->linked);
    m->inner = NULL;
    m->linked = m->from = NULL;
    m->shown = "";
}

void fkv_members_close(fkv_members *m)
{
    if (!m) return;
    leave_member(m);
    fkv_walk_close(m->walk);
    for (int i = 0; i < LAYERS_MOST; i++) fkv_unpack_close(m->layers[i]);
    fkv_links_close(m->links);
    free(m->file.block);
    free(m->link_file.block);
    if (m->fd >= 0) close(m->fd);
    fkv_buf_free(&m->passed);
    fkv_buf_free(&m->name);
    fkv_buf_free(&m->target);
    free(m);
}

fkv_status fkv_members_check(fkv_members *m, fkv_err *err)
{
    const fkv_member *member;
    const char *name = m->input->name;
    const fkv_step step = fkv_walk_next(m->walk, &member);
    if (step != FKV_STEP_OK && step != FKV_STEP_END)
        return fkv_fail_at(err, step == FKV_STEP_SYSTEM ? FKV_E_SYSTEM : FKV_E_INPUT, m->input->path, 0, NULL,
                           "%s", fkv_walk_fault(m->walk)->why);
    if (m->file.size && !m->n_layers && fkv_unpack_bare(name, strlen(name)) < strlen(name))
        return fkv_fail_at(err, FKV_E_INPUT, m->input->path, 0, NULL, "is not compressed as its name says");
    return FKV_OK;
}

/* --- which members -------------------------------------------------------------------- */

/* tar keeps the "./" that it was called with; a member that is compressed may be called
 * without the suffix that says so. */
static bool wanted(const fkv_members *m, const char *name, size_t n)
{
    const size_t skip = n > 2 && memcmp(name, "./", 2) == 0 ? 2 : 0;
    const size_t bare = fkv_unpack_bare(name, n);
    for (size_t i = 0; i < m->job->input.members.n; i++) {
        const char *pattern = m->job->input.members.at[i];
        if (fkv_pattern_match(pattern, name, n) || fkv_pattern_match(pattern, name, bare)) return true;
        if (skip && (fkv_pattern_match(pattern, name + skip, n - skip) ||
                     fkv_pattern_match(pattern, name + skip, bare - skip)))
            return true;
    }
    return false;
}

/* What macOS puts beside a file to keep attributes of it. */
static bool is_resource(const char *name, size_t n)
{
    const char *p = name, *end = name + n;
    while (p < end) {
        const char *slash = memchr(p, '/', (size_t)(end - p));
        const size_t k = (size_t)((slash ? slash : end) - p);
        if (slash && k == 8 && memcmp(p, "__MACOSX", 8) == 0) return true;
        if (slash && k == 12 && memcmp(p, ".AppleDouble", 12) == 0) return true;
        if (!slash) return k > 2 && memcmp(p, "._", 2) == 0;
        p = slash + 1;
    }
    return false;
}

/* A plain file's name as a member: without folders and compression suffix. */
static const char *plain_name(const char *name, size_t *n)
{
    const char *slash = strrchr(name, '/');
    const char *base = slash ? slash + 1 : name;
    *n = fkv_unpack_bare(base, strlen(base));
    return base;
}

static bool keep_clean(fkv_buf *out, const char *name, size_t n)
{
    fkv_buf_clear(out);
    return !fkv_buf_reserve(out, n, NULL) && !fkv_utf8_append_clean(out, name, n, NULL);
}

static fkv_step fail_memory(fkv_members *m)
{
    fkv_fault_set(&m->fault, ENOMEM, "read: %s", strerror(ENOMEM));
    return FKV_STEP_SYSTEM;
}

/* A member that is not wanted is left behind. Only 7z decodes its bytes for that: tar and
 * zip seek, or a layer counts. */
static fkv_step pass_over(fkv_members *m, const fkv_member *member, const char *name, size_t n)
{
    if (fkv_walk_is_7z(m->walk)) m->passed_bytes += member->size;
    if (!keep_clean(&m->passed, name, n)) return fail_memory(m);
    return fkv_watch_ends(m->watch, &m->fault) ? FKV_STEP_SYSTEM : FKV_STEP_OK;
}

/* --- what is in one ------------------------------------------------------------------- */

static fkv_step unreadable(fkv_members *m, const char *what)
{
    fkv_fault_set(&m->fault, 0, "%s", what);
    return FKV_STEP_MEMBER_UNREADABLE;
}

static bool is_archive(const void *head, size_t n)
{
    return (n >= 4 && (memcmp(head, "PK\3\4", 4) == 0 || memcmp(head, "PK\5\6", 4) == 0)) ||
           (n >= 6 && memcmp(head, "7z\xbc\xaf\x27\x1c", 6) == 0) || fkv_walk_is_tar_header(head, n);
}

/* Looks at the beginning of what is read from m->from. */
static fkv_step begin_data(fkv_members *m)
{
    static const char archive[] =
        "an archive inside the archive, which is not read: unpack it and name it in input.archives";
    const uint8_t *head;
    const char *name = m->shown;
    const size_t n_name = strlen(name), bare = fkv_unpack_bare(name, n_name);
    if (fkv_walk_is_raw(m->from)) return FKV_STEP_OK;
    size_t n = fkv_walk_look(m->from, &head);
    const char *form = fkv_unpack_form(head, n);
    if (form) {
        if (fkv_unpack_open((fkv_source){fkv_walk_read, m->from}, form, m->job->input.max_window, &m->inner,
                            NULL))
            return fail_memory(m);
        m->inner_peek = (fkv_peek){.from = {fkv_unpack_read, m->inner}};
        head = m->inner_peek.head;
        n = fkv_peek_look(&m->inner_peek);
        if (fkv_unpack_form(head, n)) return unreadable(m, "compressed more than once, which is not read");
    }
    if (is_archive(head, n) || (n && ends_in(name, bare, archive_suffixes))) return unreadable(m, archive);
    if (form || !n || bare == n_name) return FKV_STEP_OK;
    fkv_fault_set(&m->fault, 0, "is not compressed as its name says");
    return FKV_STEP_MEMBER_DAMAGED;
}

static fkv_step unreadable_link(fkv_members *m, const fkv_member *link, const char *why)
{
    fkv_fault_set(&m->fault, 0, "a link to \"%.60s\"%s", link->target, why);
    return FKV_STEP_MEMBER_UNREADABLE;
}

/* Opens the member at m->link_file.at, which is called as m->target says. */
static fkv_step open_target(fkv_members *m, const fkv_member *link)
{
    const fkv_member *member;
    fkv_buf name = {0};
    static const char too_many_bytes[] = ": the links would be read for more bytes than the archive has; "
                                         "pack their data (tar -h --hard-dereference)";
    const int64_t from = m->link_file.at;
    if (m->linked_bytes >= m->file.size) return unreadable_link(m, link, too_many_bytes);
    if (fkv_walk_open(&m->link_file, (fkv_source){0}, m->watch, FKV_WALK_TAR, &m->linked, NULL))
        return fail_memory(m);
    const fkv_step step = fkv_walk_next(m->linked, &member);
    /* Headers count, too: there may be any number of zeros before them. */
    m->linked_bytes += fkv_walk_position(m->linked) - from;
    if (step == FKV_STEP_SYSTEM) {
        m->fault = *fkv_walk_fault(m->linked);
        return step;
    }
    if (step != FKV_STEP_OK) return unreadable_link(m, link, ", which is damaged");
    if (fkv_links_name(member->name, NULL, false, &name, NULL)) {
        fkv_buf_free(&name);
        return fail_memory(m);
    }
    const bool same = member->kind == FKV_MEMBER_FILE && name.len == m->target.len &&
                      memcmp(name.data, m->target.data, name.len) == 0;
    fkv_buf_free(&name);
    if (!same) return unreadable_link(m, link, ", which is no member of the archive");
    if (member->size > m->file.size - m->linked_bytes) return unreadable_link(m, link, too_many_bytes);
    m->linked_bytes += member->size;
    m->from = m->linked;
    return begin_data(m);
}

/* The table of the tar's members, when the first link is met. */
static fkv_step open_links(fkv_members *m)
{
    if (m->links) return FKV_STEP_OK;
    m->link_file = m->file;
    m->link_file.n_block = LINK_BLOCK_BYTES;
    m->link_file.block = malloc(LINK_BLOCK_BYTES);
    if (!m->link_file.block) return fail_memory(m);
    return fkv_links_open(&m->link_file, m->watch, &m->links, &m->fault);
}

static fkv_step follow(fkv_members *m, const fkv_member *link)
{
    const bool symbolic = link->kind == FKV_MEMBER_SYMBOLIC_LINK;
    fkv_member_kind kind;
    fkv_buf own = {0};
    if (!fkv_walk_can_seek(m->walk))
        return unreadable_link(m, link,
                               ": links are followed in a tar that is not compressed; unpack it, or pack the "
                               "links' data (tar -h --hard-dereference; zip without -y)");
    const fkv_step step = open_links(m);
    if (step != FKV_STEP_OK) return step;
    if (fkv_links_name(link->name, link->target, symbolic, &m->target, NULL)) return fail_memory(m);
    if (!fkv_links_find(m->links, &m->target, symbolic, link->at, &m->link_file.at, &kind)) {
        const bool itself = !fkv_links_name(link->name, NULL, false, &own, NULL) &&
                            own.len == m->target.len && memcmp(own.data, m->target.data, own.len) == 0;
        fkv_buf_free(&own);
        return unreadable_link(m, link,
                               itself ? ", which is itself"
                               : fkv_links_are_cut(m->links)
                                   ? ", which is none of the archive's first 1,048,576 members"
                                   : ", which is no member of the archive");
    }
    if (kind == FKV_MEMBER_FILE) return open_target(m, link);
    return unreadable_link(m, link,
                           kind == FKV_MEMBER_FOLDER  ? ", which is a folder"
                           : kind == FKV_MEMBER_OTHER ? ", which is a device or a pipe"
                                                      : ", which is a link, too: only one is followed");
}

static fkv_step begin_member(fkv_members *m, const fkv_member *member)
{
    switch (member->kind) {
    case FKV_MEMBER_HARD_LINK:
    case FKV_MEMBER_SYMBOLIC_LINK: return follow(m, member);
    case FKV_MEMBER_OTHER: return unreadable(m, "a device or a pipe, which holds nothing");
    case FKV_MEMBER_FILE:
    case FKV_MEMBER_FOLDER:
    default: break;
    }
    m->from = m->walk;
    return begin_data(m);
}

fkv_step fkv_members_next(fkv_members *m)
{
    const fkv_member *member;
    leave_member(m);
    for (;;) {
        fkv_step step = fkv_walk_next(m->walk, &member);
        if (step == FKV_STEP_END) return step;
        if (step != FKV_STEP_OK) {
            m->fault = *fkv_walk_fault(m->walk);
            /* It could be read when it was checked. */
            return m->begun ? step : FKV_STEP_SYSTEM;
        }
        m->begun = true;
        if (member->kind == FKV_MEMBER_FOLDER) continue;
        const char *name = member->name;
        size_t n = strlen(name);
        if (fkv_walk_is_raw(m->walk)) name = plain_name(m->input->name, &n);
        if (!wanted(m, name, n)) {
            if ((step = pass_over(m, member, name, n)) != FKV_STEP_OK) return step;
            continue;
        }
        if (!fkv_walk_is_raw(m->walk) && is_resource(name, n)) {
            m->n_resources++;
            continue;
        }
        m->matched = true;
        if (!keep_clean(&m->name, name, n)) return fail_memory(m);
        m->shown = m->name.data;
        return begin_member(m, member);
    }
}

fkv_step fkv_members_read(fkv_members *m, const char **bytes, size_t *n)
{
    const void *block;
    const ssize_t got = m->inner ? fkv_peek_read(&m->inner_peek, &block, &m->fault)
                                 : fkv_walk_read(m->from, &block, &m->fault);
    if (got > 0) {
        *bytes = block;
        *n = (size_t)got;
        if (!m->n_layers || m->inner) m->passed_bytes += got;
        return FKV_STEP_OK;
    }
    if (got == 0) return FKV_STEP_END;
    const fkv_step step = fkv_walk_step(m->from);
    if (step == FKV_STEP_ARCHIVE_DAMAGED && m->linked) return FKV_STEP_MEMBER_DAMAGED;
    if (step != FKV_STEP_OK) return step;
    return fkv_fault_is_system(&m->fault) ? FKV_STEP_SYSTEM : FKV_STEP_MEMBER_DAMAGED;
}

/* --- what is known ---------------------------------------------------------------------- */

const char *fkv_members_name(const fkv_members *m)
{
    return m->shown;
}

const char *fkv_members_why(const fkv_members *m)
{
    return m->fault.why;
}

const char *fkv_members_passed(const fkv_members *m)
{
    return m->passed.data ? m->passed.data : "";
}

bool fkv_members_matched(const fkv_members *m)
{
    return m->matched;
}

int64_t fkv_members_resources(const fkv_members *m)
{
    return m->n_resources;
}

int64_t fkv_members_file_bytes(const fkv_members *m)
{
    return m->file.size;
}

int64_t fkv_members_taken(const fkv_members *m)
{
    return m->n_layers ? fkv_unpack_taken(m->layers[0]) : fkv_walk_position(m->walk);
}

int64_t fkv_members_unpacked(const fkv_members *m)
{
    return m->passed_bytes + (m->n_layers ? fkv_walk_given(m->walk) : 0);
}
