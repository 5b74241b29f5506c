/* The output folder as files: see folder.h. An fkv_folder owns its path and its lease. */
#include "jobs/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "jobs/folder_names.h"
#include "jobs/report_file.h"
#include "runner/base/file.h"
#include "runner/base/log.h"

char *fkv_folder_path(const fkv_folder *f, const char *file, bool per_part)
{
    if (!per_part || (f->n_parts == 1 && !f->shared)) return fkv_path_join(f->path, file);
    const char *dot = strrchr(file, '.');
    const int stem = dot ? (int)(dot - file) : (int)strlen(file);
    char *path = NULL, who[48];
    if (f->shared)
        snprintf(who, sizeof who, "auto%lld", (long long)f->number);
    else
        snprintf(who, sizeof who, "%lldof%lld", (long long)f->part, (long long)f->n_parts);
    if (asprintf(&path, "%s/%.*s-%s%s", f->path, stem, file, who, dot ? dot : "") < 0) return NULL;
    return path;
}

/* Calls see for every name in a folder until it fails. A missing folder is empty. An NFS client's
 * .nfs... stand for files that are removed already. */
static fkv_status each_name(const char *path, fkv_status (*see)(void *ctx, const char *name, fkv_err *err),
                            void *ctx, fkv_err *err)
{
    fkv_status st = FKV_OK;
    DIR *dir = opendir(path);
    if (!dir && errno == ENOENT) return FKV_OK;
    if (!dir) return fkv_fail_errno(err, path, "read the folder");
    for (;;) {
        errno = 0;
        const struct dirent *e = readdir(dir);
        if (!e) {
            if (errno) st = fkv_fail_errno(err, path, "read the folder");
            break;
        }
        const char *name = e->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..") || !strncmp(name, ".nfs", 4)) continue;
        if ((st = see(ctx, name, err))) break;
    }
    closedir(dir);
    return st;
}

static fkv_status take_lease(fkv_folder *f, bool (*asked)(void), fkv_lease **lease, fkv_err *err)
{
    char *path = fkv_folder_path(f, "lock", true);
    if (!path) return fkv_fail_memory(err);
    fkv_status st = fkv_dir_make(f->path, err);
    if (!st) st = fkv_lease_take(path, f->path, FKV_LEASE_TRY, asked, lease, err);
    free(path);
    return st;
}

fkv_status fkv_folder_still_ours(const fkv_folder *f, fkv_err *err)
{
    const fkv_status st = f->lease ? fkv_lease_check(f->lease, err) : FKV_OK;
    return st || !f->inner ? st : fkv_lease_check(f->inner, err);
}

fkv_status fkv_folder_glance(const fkv_folder *f, fkv_err *err)
{
    return f->lease ? fkv_lease_glance(f->lease, err) : FKV_OK;
}

/* The smallest number that no living process has. One whose holder may be dead is passed over, so that a
 * process that wakes up never finds its files in use. */
static fkv_status take_number(fkv_folder *f, bool (*asked)(void), fkv_err *err)
{
    fkv_status st = fkv_dir_make(f->path, err);
    for (f->number = 0; !st; f->number++) {
        fkv_err busy = {0};
        char *path = fkv_folder_path(f, "lock", true);
        if (!path) return fkv_fail_memory(err);
        st = fkv_lease_take(path, f->path, FKV_LEASE_NOW, asked, &f->lease, &busy);
        free(path);
        if (!st) break;
        if (st != FKV_E_BUSY && err && !err->status) *err = busy;
        if (st == FKV_E_BUSY) st = FKV_OK;
    }
    return st;
}

bool fkv_folder_after_silence(const fkv_folder *f)
{
    return f->lease && fkv_lease_after_silence(f->lease);
}

typedef struct lease_search {
    const fkv_folder *f;
    bool (*asked)(void);
} lease_search;

/* Fails where another part's run holds its lease. */
static fkv_status check_part_lease(void *ctx, const char *name, fkv_err *err)
{
    const lease_search *s = ctx;
    int64_t part, n_parts;
    if (!fkv_name_is_part(name, "lock", "", &part, &n_parts) || n_parts == 1) return FKV_OK;
    char *path = fkv_path_join(s->f->path, name);
    if (!path) return fkv_fail_memory(err);
    const fkv_status st = fkv_lease_look(path, s->f->path, s->asked, err);
    free(path);
    return st;
}

/* Renames the folder, whose lease is held, to a name that is not taken, *moved_to. */
static fkv_status move_aside(const fkv_folder *f, char **moved_to, fkv_err *err)
{
    char when[32];
    struct tm tm;
    const time_t now = time(NULL);
    localtime_r(&now, &tm);
    strftime(when, sizeof when, "%Y%m%d-%H%M%S", &tm);
    for (int i = 1; i <= 1000; i++) {
        char *to = NULL, again[16] = "";
        struct stat sb;
        if (i > 1) snprintf(again, sizeof again, "-%d", i);
        if (asprintf(&to, "%s.old-%s%s", f->path, when, again) < 0) return fkv_fail_memory(err);
        fkv_status st = FKV_OK;
        const bool taken = lstat(to, &sb) == 0;
        const bool moved = !taken && rename(f->path, to) == 0;
        if (moved) {
            fkv_log("moved the old output %s to %s", f->path, to);
            st = fkv_dir_sync_of(to, err);
        } else if (!taken && errno != ENOTEMPTY && errno != EEXIST) {
            st = fkv_fail_errno(err, f->path, "move it to %s", to);
        }
        *moved_to = moved ? to : NULL;
        if (!moved) free(to);
        if (st || moved) return st;
    }
    return fkv_fail_at(err, FKV_E_SYSTEM, f->path, 0, NULL, "no free name to move it to");
}

/* Whether name in shards/ is this part's shard with suffix ("" or ".tmp"). */
static bool own_shard(const fkv_folder *f, const char *name, const char *suffix)
{
    int64_t index;
    return fkv_name_is_shard(name, suffix, &index) && index % f->n_parts == f->part;
}

typedef struct shard_search {
    const fkv_folder *f;
    bool found;
} shard_search;

static fkv_status find_shard(void *ctx, const char *name, fkv_err *err)
{
    shard_search *s = ctx;
    (void)err;
    if (own_shard(s->f, name, "")) s->found = true;
    return FKV_OK;
}

/* Whether shards/ holds a shard that is this part's, whoever made it. */
static fkv_status look_for_shards(const fkv_folder *f, bool *has, fkv_err *err)
{
    shard_search s = {f, false};
    char *shards = fkv_folder_path(f, "shards", false);
    if (!shards) return fkv_fail_memory(err);
    const fkv_status st = each_name(shards, find_shard, &s, err);
    *has = s.found;
    free(shards);
    return st;
}

fkv_status fkv_folder_is_old(const fkv_folder *f, bool *old, fkv_err *err)
{
    fkv_folder_peers peers = {0};
    bool has_shards = false;
    fkv_status st = fkv_folder_look(f, &peers, err);
    if (!st) st = look_for_shards(f, &has_shards, err);
    *old = peers.any_manifest || peers.peer || has_shards;
    fkv_folder_peers_free(&peers);
    return st;
}

/* Keeps the first in byte order of the names that are not ours: *first. */
static fkv_status keep_first(char **first, const char *name, fkv_err *err)
{
    if (*first && strcmp(*first, name) <= 0) return FKV_OK;
    free(*first);
    return (*first = strdup(name)) ? FKV_OK : fkv_fail_memory(err);
}

static fkv_status find_foreign(void *ctx, const char *name, fkv_err *err)
{
    return fkv_name_is_ours(name) ? FKV_OK : keep_first(ctx, name, err);
}

static fkv_status find_foreign_shard(void *ctx, const char *name, fkv_err *err)
{
    int64_t index;
    if (fkv_name_is_shard(name, "", &index) || fkv_name_is_unfinished_shard(name, &index)) return FKV_OK;
    char *path = fkv_path_join("shards", name);
    const fkv_status st = path ? keep_first(ctx, path, err) : fkv_fail_memory(err);
    free(path);
    return st;
}

/* What a restart moves aside must be all ours. */
static fkv_status check_all_ours(const fkv_folder *f, fkv_err *err)
{
    char *foreign = NULL, *shards = fkv_folder_path(f, "shards", false);
    fkv_status st = shards ? each_name(f->path, find_foreign, &foreign, err) : fkv_fail_memory(err);
    if (!st) st = each_name(shards, find_foreign_shard, &foreign, err);
    if (!st && foreign)
        st = fkv_fail_at(err, FKV_E_INPUT, f->path, 0, NULL,
                         "holds \"%.100s\", which is no file of an output: job.restart would move it away; "
                         "take it out of the folder first",
                         foreign);
    free(foreign);
    free(shards);
    return st;
}

static fkv_status remove_lease(void *ctx, const char *name, fkv_err *err)
{
    if (!fkv_name_is_lease(name) && !fkv_lease_is_leaving(name) && !fkv_report_file_is_temporary(name))
        return FKV_OK;
    char *path = fkv_path_join(ctx, name);
    if (!path) return fkv_fail_memory(err);
    unlink(path);
    free(path);
    return FKV_OK;
}

static fkv_status restart_folder(fkv_folder *f, bool (*asked)(void), fkv_err *err)
{
    bool old;
    fkv_lease *fresh = NULL;
    lease_search search = {f, asked};
    char *to = NULL, *lock = NULL;
    fkv_status st = fkv_folder_is_old(f, &old, err);
    if (st || !old) return st;
    if ((st = check_all_ours(f, err))) return st;
    if ((st = each_name(f->path, check_part_lease, &search, err))) return st;
    if ((st = move_aside(f, &to, err))) goto out;
    /* The old lease is given up only when the new folder's is held; killed runs may have left others. */
    if (!(lock = fkv_path_join(to, "lock"))) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if ((st = fkv_lease_moved(f->lease, lock, err))) goto out;
    if ((st = take_lease(f, asked, &fresh, err))) goto out;
    fkv_lease_release(f->lease);
    f->lease = fresh;
    st = each_name(to, remove_lease, to, err);
out:
    free(lock);
    free(to);
    return st;
}

fkv_status fkv_folder_name(fkv_folder *f, const fkv_folder_place *place, fkv_err *err)
{
    const char *path = place->path;
    *f = (fkv_folder){
        .part = place->part, .n_parts = place->n_parts < 1 ? 1 : place->n_parts, .shared = place->shared};
    if (!path || !path[0]) return fkv_fail_at(err, FKV_E_INPUT, NULL, 0, "job.output", "is empty");
    if (place->restart && (f->n_parts > 1 || f->shared))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "job.restart",
                           "can't be used with input.part, whose runs share the output: move it aside before "
                           "starting the parts");
    if (!(f->path = strdup(path))) return fkv_fail_memory(err);
    for (size_t n = strlen(f->path); n > 1 && f->path[n - 1] == '/'; n--) f->path[n - 1] = '\0';
    return FKV_OK;
}

/* The topmost folder of a path that is not there yet; NULL: all are. */
static fkv_status first_missing(const char *path, char **missing, fkv_err *err)
{
    *missing = NULL;
    char *at = strdup(path);
    struct stat sb;
    while (at && lstat(at, &sb) && errno == ENOENT) {
        char *up = fkv_path_dir(at);
        free(*missing);
        *missing = at;
        const bool top = up && strcmp(up, at) == 0;
        at = up;
        if (top) break;
    }
    const fkv_status st = at ? FKV_OK : fkv_fail_memory(err);
    free(at);
    return st;
}

fkv_status fkv_folder_open(fkv_folder *f, const fkv_folder_place *place, bool (*asked)(void), fkv_err *err)
{
    fkv_status st = fkv_folder_name(f, place, err);
    /* Nothing is put into a folder of others, not even a lease. */
    if (!st) st = fkv_folder_check_ours(f, err);
    if (!st) st = first_missing(f->path, &f->made, err);
    if (!st) st = f->shared ? take_number(f, asked, err) : take_lease(f, asked, &f->lease, err);
    if (!st && place->restart) st = restart_folder(f, asked, err);
    if (st) fkv_folder_close(f);
    return st;
}

/* Removes the folders that open made, as far as they are empty. */
static void remove_made(const fkv_folder *f)
{
    char *at = strdup(f->path);
    while (at && rmdir(at) == 0 && strcmp(at, f->made) != 0) {
        char *up = fkv_path_dir(at);
        free(at);
        at = up;
    }
    free(at);
}

void fkv_folder_close(fkv_folder *f)
{
    fkv_lease_release(f->lease);
    if (f->made) remove_made(f);
    free(f->made);
    free(f->path);
    *f = (fkv_folder){.n_parts = 1};
}

static fkv_status remove_ours(void *ctx, const char *name, fkv_err *err)
{
    int64_t part, n_parts;
    if (!fkv_name_is_ours(name) || fkv_name_is_lease(name) ||
        fkv_name_is_part(name, "manifest", ".json", &part, &n_parts))
        return FKV_OK;
    char *path = fkv_path_join(ctx, name);
    if (!path) return fkv_fail_memory(err);
    if (strcmp(name, "shards") != 0)
        unlink(path);
    else
        rmdir(path);
    free(path);
    return FKV_OK;
}

void fkv_folder_discard(fkv_folder *f)
{
    char *manifest = fkv_folder_path(f, "manifest.json", true);
    if (manifest && f->lease && !fkv_lease_check(f->lease, NULL) &&
        !each_name(f->path, remove_ours, f->path, NULL))
        unlink(manifest);
    free(manifest);
}

/* Whether files can be made in the folder of that path. */
static bool can_write(const char *path)
{
    struct stat sb;
    if (stat(path, &sb)) return false;
    errno = ENOTDIR;
    return S_ISDIR(sb.st_mode) && access(path, R_OK | W_OK | X_OK) == 0;
}

/* Why what is looked for at the path can't be had: 0: nothing is there; ENOENT: a link that leads nowhere. */
static int why_missing(const char *path)
{
    struct stat sb;
    if (lstat(path, &sb) == 0) return ENOENT;
    return errno == ENOENT ? 0 : errno;
}

/* Whether a folder could be made where there is none: in the nearest one above it. */
static fkv_status check_above(const fkv_folder *f, const char *what, fkv_err *err)
{
    char *at = strdup(f->path);
    int why = 0, found = 0;
    while (at && !found) {
        char *up = fkv_path_dir(at);
        free(at);
        if (!(at = up)) break;
        why = can_write(at) ? 0 : errno;
        if (why != ENOENT || strcmp(at, "/") == 0 || strcmp(at, ".") == 0) break;
        if ((found = why_missing(at))) why = found;
    }
    if (!at) return fkv_fail_memory(err);
    free(at);
    errno = why;
    return why ? fkv_fail_errno(err, f->path, "%s", what) : FKV_OK;
}

/* *old: a restart would move what is there aside. */
static fkv_status check_path(const fkv_folder *f, bool restart, bool *old, fkv_err *err)
{
    struct stat sb;
    if (stat(f->path, &sb)) {
        if (errno != ENOENT || (errno = why_missing(f->path)))
            return fkv_fail_errno(err, f->path, "can't be made");
        return check_above(f, "can't be made", err);
    }
    if (!S_ISDIR(sb.st_mode)) return fkv_fail_at(err, FKV_E_SYSTEM, f->path, 0, NULL, "not a folder");
    if (!can_write(f->path)) return fkv_fail_errno(err, f->path, "can't be written to");
    const fkv_status st = restart ? fkv_folder_is_old(f, old, err) : FKV_OK;
    if (st || !*old) return st;
    return check_above(f, "can't be moved aside", err);
}

fkv_status fkv_folder_check(const fkv_folder_place *place, bool (*asked)(void), fkv_err *err)
{
    fkv_folder f;
    lease_search search = {&f, asked};
    char *lock = NULL;
    const bool restart = place->restart;
    bool old = false;
    fkv_status st = fkv_folder_name(&f, place, err);
    if (!st && !(lock = fkv_folder_path(&f, "lock", true))) st = fkv_fail_memory(err);
    if (!st) st = check_path(&f, restart, &old, err);
    if (!st && !old) st = fkv_folder_check_ours(&f, err);
    if (!st && !f.shared) st = fkv_lease_look(lock, f.path, asked, err);
    if (!st && restart) st = each_name(f.path, check_part_lease, &search, err);
    if (!st && old) st = check_all_ours(&f, err);
    free(lock);
    fkv_folder_close(&f);
    return st;
}

typedef struct stranger_search {
    const fkv_folder *f;
    char *first;
} stranger_search;

/* Keeps the first name that is neither a lease nor what taking one leaves, nor a manifest that was
 * being written: the manifest is the first file that says whose the folder is. */
static fkv_status find_stranger(void *ctx, const char *name, fkv_err *err)
{
    stranger_search *s = ctx;
    int64_t part, n_parts;
    bool is = false;
    if (fkv_lease_is_leaving(name) || fkv_name_is_part(name, "manifest", ".json.tmp", &part, &n_parts))
        return FKV_OK;
    if (!fkv_name_is_lease(name)) return keep_first(&s->first, name, err);
    char *path = fkv_path_join(s->f->path, name);
    if (!path) return fkv_fail_memory(err);
    const fkv_status st = fkv_lease_is_one(path, &is, err);
    free(path);
    return st || is ? st : keep_first(&s->first, name, err);
}

static fkv_status check_strangers(const fkv_folder *f, fkv_err *err)
{
    stranger_search s = {f, NULL};
    fkv_status st = each_name(f->path, find_stranger, &s, err);
    if (s.first && !st)
        st = fkv_fail_at(err, FKV_E_INPUT, f->path, 0, NULL,
                         "is neither empty nor an output of ours: it holds \"%.100s\"", s.first);
    free(s.first);
    return st;
}

fkv_status fkv_folder_check_no_shards(const fkv_folder *f, fkv_err *err)
{
    bool has = false;
    const fkv_status st = look_for_shards(f, &has, err);
    if (st || !has) return st;
    return fkv_fail_at(err, FKV_E_INPUT, f->path, 0, NULL,
                       "has shards but no manifest that names them (use job.restart = yes or another "
                       "job.output)");
}

static fkv_status has_manifest(const fkv_folder *f, bool *has, fkv_err *err)
{
    fkv_folder_peers peers = {0};
    const fkv_status st = fkv_folder_look(f, &peers, err);
    *has = peers.any_manifest;
    fkv_folder_peers_free(&peers);
    return st;
}

fkv_status fkv_folder_check_ours(const fkv_folder *f, fkv_err *err)
{
    bool ours, now;
    fkv_err foreign = {0}, ignored = {0};
    fkv_status st = has_manifest(f, &ours, err);
    if (st || ours) return st;
    st = fkv_folder_check_no_shards(f, &foreign);
    if (!st) st = check_strangers(f, &foreign);
    /* A run that has just begun may have written files since; its manifest was the first of them. */
    if (st == FKV_E_INPUT && !has_manifest(f, &now, &ignored) && now) return FKV_OK;
    if (st) *err = foreign;
    return st;
}

typedef struct look {
    const fkv_folder *f;
    fkv_folder_peers *peers;
} look;

/* Whether a file begins as a manifest of ours does: another program's may have that name. */
static fkv_status is_manifest(const char *path, bool *is, fkv_err *err)
{
    static const char mark[] = "fairkv-manifest/";
    char head[4096];
    ssize_t n;
    *is = false;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return errno == ENOENT ? FKV_OK : fkv_fail_errno(err, path, "open");
    do {
        n = read(fd, head, sizeof head);
    } while (n < 0 && errno == EINTR);
    const fkv_status st = n < 0 && errno != EISDIR ? fkv_fail_errno(err, path, "read") : FKV_OK;
    *is = n > 0 && memmem(head, (size_t)n, mark, sizeof mark - 1);
    close(fd);
    return st;
}

static fkv_status look_at(void *ctx, const char *name, fkv_err *err)
{
    look *l = ctx;
    int64_t part, n_parts;
    bool is;
    if (!fkv_name_is_part(name, "manifest", ".json", &part, &n_parts)) return FKV_OK;
    char *path = fkv_path_join(l->f->path, name);
    const fkv_status st = path ? is_manifest(path, &is, err) : fkv_fail_memory(err);
    if (st || !is) goto out;
    l->peers->any_manifest = true;
    if (part == l->f->part && n_parts == l->f->n_parts) goto out;
    const bool mixed = n_parts != l->f->n_parts;
    if (l->peers->peer && !mixed) goto out;
    free(l->peers->peer);
    l->peers->mixed = mixed;
    l->peers->peer = path;
    path = NULL;
out:
    free(path);
    return st;
}

fkv_status fkv_folder_look(const fkv_folder *f, fkv_folder_peers *peers, fkv_err *err)
{
    look l = {f, peers};
    *peers = (fkv_folder_peers){0};
    const fkv_status st = each_name(f->path, look_at, &l, err);
    if (st) fkv_folder_peers_free(peers);
    return st;
}

void fkv_folder_peers_free(fkv_folder_peers *peers)
{
    free(peers->peer);
    *peers = (fkv_folder_peers){0};
}

/* In shards/, what a process of this number or this part was writing when it ended. */
static fkv_status sweep_shard(void *ctx, const char *name, fkv_err *err)
{
    const fkv_folder *f = ctx;
    char *path = NULL, mine[48] = ".tmp";
    if (f->shared) snprintf(mine, sizeof mine, ".auto%lld.tmp", (long long)f->number);
    if (!own_shard(f, name, mine)) return FKV_OK;
    if (asprintf(&path, "%s/shards/%s", f->path, name) < 0) return fkv_fail_memory(err);
    unlink(path);
    free(path);
    return FKV_OK;
}

static fkv_status sweep_file(const fkv_folder *f, const char *file, bool per_part, fkv_err *err)
{
    char *path = fkv_folder_path(f, file, per_part), *tmp = NULL;
    if (!path || asprintf(&tmp, "%s.tmp", path) < 0) {
        free(path);
        return fkv_fail_memory(err);
    }
    unlink(tmp);
    free(tmp);
    free(path);
    return FKV_OK;
}

/* Where there are no parts, nobody but who holds the folder takes these: a killed run left them. */
static fkv_status sweep_lease(void *ctx, const char *name, fkv_err *err)
{
    if (strncmp(name, "lock-profile", 12) != 0 && strncmp(name, "lock-plan", 9) != 0 &&
        !fkv_report_file_is_temporary(name))
        return FKV_OK;
    return remove_lease(ctx, name, err);
}

fkv_status fkv_folder_sweep(const fkv_folder *f, fkv_err *err)
{
    static const char *const own[] = {"manifest.json", "journal", "stats.json", "metrics.prom"};
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < sizeof own / sizeof *own; i++) st = sweep_file(f, own[i], true, err);
    char *shards = fkv_folder_path(f, "shards", false);
    if (!st && !shards) st = fkv_fail_memory(err);
    if (!st) st = each_name(shards, sweep_shard, (void *)f, err);
    if (!st && f->n_parts == 1 && !f->shared) st = each_name(f->path, sweep_lease, f->path, err);
    free(shards);
    return st;
}

static bool number_is_taken(const fkv_folder *f, int64_t number)
{
    fkv_folder other = *f;
    other.number = number;
    char *path = fkv_folder_path(&other, "lock", true);
    const bool taken = !path || fkv_file_exists(path);
    free(path);
    return taken;
}

/* Removes a lease whose holder is known to be dead. */
static fkv_status sweep_dead(void *ctx, const char *name, fkv_err *err)
{
    int64_t part, n_parts;
    fkv_lease *dead = NULL;
    if (!fkv_name_is_claim(name, "lock", "", &part) &&
        !(fkv_name_is_part(name, "lock", "", &part, &n_parts) && n_parts == 0))
        return FKV_OK;
    char *path = fkv_path_join(ctx, name);
    if (!path) return fkv_fail_memory(err);
    fkv_lease_take(path, ctx, FKV_LEASE_NOW, NULL, &dead, NULL);
    fkv_lease_release(dead);
    free(path);
    return FKV_OK;
}

/* Removes a journal, and what dead processes left of a shard or a manifest. */
static fkv_status sweep_rest(void *ctx, const char *name, fkv_err *err)
{
    const fkv_folder *f = ctx;
    int64_t n, n_parts;
    const bool is_shard = fkv_name_is_unfinished_shard(name, &n) && n >= 0;
    const bool is_manifest =
        !is_shard && fkv_name_is_part(name, "manifest", ".json.tmp", &n, &n_parts) && n_parts == 0;
    char *path = NULL;
    if (((is_shard || is_manifest) && number_is_taken(f, n)) ||
        (!is_shard && !is_manifest && !fkv_name_is_claim(name, "journal", "", &n)))
        return FKV_OK;
    if (asprintf(&path, "%s/%s%s", f->path, is_shard ? "shards/" : "", name) < 0) return fkv_fail_memory(err);
    unlink(path);
    free(path);
    return FKV_OK;
}

fkv_status fkv_folder_sweep_claims(const fkv_folder *f, fkv_err *err)
{
    char *shards = fkv_folder_path(f, "shards", false);
    fkv_status st = shards ? each_name(f->path, sweep_dead, f->path, err) : fkv_fail_memory(err);
    if (!st) st = each_name(f->path, sweep_rest, (void *)f, err);
    if (!st) st = each_name(shards, sweep_rest, (void *)f, err);
    free(shards);
    return st;
}

/* Removes what a killed run left of the file that is made under lock-<what>. */
static fkv_status sweep_shared(const fkv_folder *f, const char *what, fkv_err *err)
{
    static const char *const made[][2] = {
        {"job", "job.ini"}, {"profile", "profile.json"}, {"plan", "plan.json"}};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        if (!strcmp(what, made[i][0])) return sweep_file(f, made[i][1], false, err);
    }
    return FKV_OK;
}

fkv_status fkv_folder_with_lock(fkv_folder *f, const char *what, bool (*asked)(void),
                                fkv_status (*make)(void *ctx, fkv_err *err), void *ctx, fkv_err *err)
{
    char *path = NULL;
    if (asprintf(&path, "%s/lock-%s", f->path, what) < 0) return fkv_fail_memory(err);
    fkv_status st = fkv_lease_take(path, f->path, FKV_LEASE_WAIT, asked, &f->inner, err);
    if (!st) st = sweep_shared(f, what, err);
    if (!st) st = make(ctx, err);
    fkv_lease_release(f->inner);
    f->inner = NULL;
    free(path);
    return st;
}
