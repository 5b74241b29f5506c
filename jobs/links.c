/* Links in a tar: see links.h. The table holds hashes of names, sorted; whoever opens what
 * was found compares the name. */
#include "jobs/links.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/hash.h"
#include "runner/base/mem.h"

enum { KIND_BITS = 3 };

typedef struct entry {
    uint64_t hash;
    uint64_t at_kind; /* at << KIND_BITS | kind */
} entry;

struct fkv_links {
    entry *at;
    size_t n, cap;
    bool cut;
};

static fkv_status put_component(fkv_buf *out, const char *text, size_t n, fkv_err *err)
{
    const fkv_status st = out->len ? fkv_buf_append(out, "/", 1, err) : FKV_OK;
    return st ? st : fkv_buf_append(out, text, n, err);
}

/* Takes the last component away. False: there is none, or one that leads out. */
static bool leave_folder(fkv_buf *out)
{
    size_t n = out->len;
    while (n && out->data[n - 1] != '/') n--;
    if (!out->len || (out->len - n == 2 && memcmp(out->data + n, "..", 2) == 0)) return false;
    out->len = n ? n - 1 : 0;
    out->data[out->len] = '\0';
    return true;
}

static fkv_status put_path(fkv_buf *out, const char *path, size_t n, fkv_err *err)
{
    const char *p = path, *end = path + n;
    fkv_status st = FKV_OK;
    while (p < end && !st) {
        const char *slash = memchr(p, '/', (size_t)(end - p));
        const size_t k = (size_t)((slash ? slash : end) - p);
        const bool up = k == 2 && memcmp(p, "..", 2) == 0;
        const bool nothing = k == 0 || (k == 1 && *p == '.');
        if (!nothing && !(up && leave_folder(out))) st = put_component(out, p, k, err);
        p = slash ? slash + 1 : end;
    }
    return st;
}

fkv_status fkv_links_name(const char *name, const char *target, bool symbolic, fkv_buf *out, fkv_err *err)
{
    fkv_buf_clear(out);
    fkv_status st = fkv_buf_reserve(out, 0, err);
    if (st) return st;
    if (!target) return put_path(out, name, strlen(name), err);
    const char *slash = strrchr(name, '/');
    if (symbolic && target[0] != '/' && slash) st = put_path(out, name, (size_t)(slash - name), err);
    return st ? st : put_path(out, target, strlen(target), err);
}

static uint64_t hash_of(const fkv_buf *name)
{
    return fkv_hash(name->data, name->len, 0);
}

static int by_hash_and_place(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    return x->at_kind < y->at_kind ? -1 : x->at_kind > y->at_kind;
}

static fkv_status add(fkv_links *links, const fkv_member *m, const fkv_buf *name)
{
    entry *at = fkv_grown(links->at, links->n, &links->cap, sizeof *at);
    if (!at) return FKV_E_SYSTEM;
    links->at = at;
    links->at[links->n++] = (entry){hash_of(name), (uint64_t)m->at << KIND_BITS | (uint64_t)m->kind};
    return FKV_OK;
}

static fkv_step scan(fkv_links *links, fkv_walk *walk, fkv_fault *fault)
{
    const fkv_member *m;
    fkv_buf name = {0};
    fkv_step step;
    while ((step = fkv_walk_next(walk, &m)) == FKV_STEP_OK) {
        links->cut = links->n == FKV_LINKS_MEMBERS_MOST;
        if (links->cut) break;
        if (fkv_links_name(m->name, NULL, false, &name, NULL) || add(links, m, &name)) {
            fkv_fault_set(fault, ENOMEM, "read: %s", strerror(ENOMEM));
            step = FKV_STEP_SYSTEM;
            break;
        }
    }
    fkv_buf_free(&name);
    if (step == FKV_STEP_SYSTEM && !fault->number) *fault = *fkv_walk_fault(walk);
    if (step == FKV_STEP_SYSTEM) return step;
    if (links->n) qsort(links->at, links->n, sizeof *links->at, by_hash_and_place);
    return FKV_STEP_OK;
}

fkv_step fkv_links_open(fkv_file_source *file, const fkv_watch *watch, fkv_links **out, fkv_fault *fault)
{
    fkv_walk *walk = NULL;
    fkv_links *links = *out = calloc(1, sizeof *links);
    *fault = (fkv_fault){0};
    file->at = 0;
    if (!links || fkv_walk_open(file, (fkv_source){0}, watch, FKV_WALK_TAR, &walk, NULL)) {
        fkv_fault_set(fault, ENOMEM, "read: %s", strerror(ENOMEM));
        free(links);
        *out = NULL;
        return FKV_STEP_SYSTEM;
    }
    const fkv_step step = scan(links, walk, fault);
    fkv_walk_close(walk);
    if (step == FKV_STEP_OK) return step;
    fkv_links_close(links);
    *out = NULL;
    return step;
}

void fkv_links_close(fkv_links *links)
{
    if (!links) return;
    free(links->at);
    free(links);
}

bool fkv_links_find(const fkv_links *links, const fkv_buf *name, bool symbolic, int64_t link_at, int64_t *at,
                    fkv_member_kind *kind)
{
    const uint64_t hash = hash_of(name);
    const entry *found = NULL;
    size_t lo = 0, hi = links->n;
    while (lo < hi) {
        const size_t middle = lo + (hi - lo) / 2;
        if (links->at[middle].hash < hash)
            lo = middle + 1;
        else
            hi = middle;
    }
    for (const entry *e = links->at + lo; e < links->at + links->n && e->hash == hash; e++) {
        const int64_t here = (int64_t)(e->at_kind >> KIND_BITS);
        if (here == link_at || (found && !symbolic && here > link_at)) continue;
        found = e;
    }
    if (!found) return false;
    *at = (int64_t)(found->at_kind >> KIND_BITS);
    *kind = (fkv_member_kind)(found->at_kind & ((1 << KIND_BITS) - 1));
    return true;
}

bool fkv_links_are_cut(const fkv_links *links)
{
    return links->cut;
}
