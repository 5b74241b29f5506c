/* The output folder as files: see folder.h. An fkv_folder owns its path and its
 * lock's descriptor. */
#include "jobs/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "jobs/shard.h"
#include "runner/base/file.h"
#include "runner/base/log.h"

enum { HOLDER_SIZE = 128 };

char *fkv_folder_path(const fkv_folder *f, const char *file, bool per_part)
{
    if (!per_part || f->n_parts == 1) return fkv_path_join(f->path, file);
    const char *dot = strrchr(file, '.');
    const int stem = dot ? (int)(dot - file) : (int)strlen(file);
    char *path = NULL;
    if (asprintf(&path, "%s/%.*s-%lldof%lld%s", f->path, stem, file, (long long)f->part,
                 (long long)f->n_parts, dot ? dot : "") < 0)
        return NULL;
    return path;
}

/* Reads a decimal number without sign; NULL if there is none or it is too large. */
static const char *read_number(const char *p, int64_t *out)
{
    int64_t v = 0;
    if (*p < '0' || *p > '9') return NULL;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *p - '0', &v)) return NULL;
    }
    *out = v;
    return p;
}

/* Whether name is stem + suffix (part 0 of 1) or stem-IofN + suffix. */
static bool read_part(const char *name, const char *stem, const char *suffix, int64_t *part, int64_t *n_parts)
{
    const size_t n_stem = strlen(stem);
    if (strncmp(name, stem, n_stem) != 0) return false;
    const char *p = name + n_stem;
    *part = 0;
    *n_parts = 1;
    if (*p == '-') {
        if (!(p = read_number(p + 1, part)) || strncmp(p, "of", 2) != 0) return false;
        if (!(p = read_number(p + 2, n_parts)) || *n_parts < 2 || *part >= *n_parts) return false;
    }
    return strcmp(p, suffix) == 0;
}

/* Calls see for every name in a folder until it fails. A missing folder is empty. */
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
        if (e->d_name[0] != '.' && (st = see(ctx, e->d_name, err))) break;
    }
    closedir(dir);
    return st;
}

static void read_holder(const char *path, char out[HOLDER_SIZE])
{
    ssize_t n = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0) {
        n = read(fd, out, HOLDER_SIZE - 1);
        close(fd);
    }
    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

/* Whether a process of that name may be running. */
static bool is_alive(const char *host, long long pid)
{
    char here[64] = "?";
    gethostname(here, sizeof here - 1);
    return strcmp(host, here) != 0 || kill((pid_t)pid, 0) == 0 || errno != ESRCH;
}

static fkv_status busy(const fkv_folder *f, const char *lock, fkv_err *err)
{
    char holder[HOLDER_SIZE], host[HOLDER_SIZE];
    long long pid;
    bool known = false;
    /* A run that has just taken the lock has yet to write who it is; until then the last
     * one stands there, or nothing. */
    for (int i = 0; i < 100 && !known; i++) {
        const struct timespec pause = {0, 10L * 1000 * 1000};
        if (i) nanosleep(&pause, NULL);
        read_holder(lock, holder);
        known = sscanf(holder, "%127s %lld", host, &pid) == 2 && is_alive(host, pid);
    }
    if (known)
        return fkv_fail_at(err, FKV_E_BUSY, f->path, 0, NULL, "another run holds it: process %lld on host %s",
                           pid, host);
    return fkv_fail_at(err, FKV_E_BUSY, f->path, 0, NULL, "another run holds it");
}

/* Takes the lock of a file in the folder without waiting; *fd is -1 when another
 * process has it. The file behind the name may change while we wait for it (a
 * restart moves the folder), so it is looked at again with the lock in hand. */
static fkv_status try_lock(const char *path, int *fd, fkv_err *err)
{
    for (;;) {
        struct stat held = {0}, named = {0}; /* named stays so when there is none */
        *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (*fd < 0) return fkv_fail_errno(err, path, "open the lock");
        int rc;
        do {
            rc = flock(*fd, LOCK_EX | LOCK_NB);
        } while (rc && errno == EINTR);
        if (rc) {
            const int why = errno;
            close(*fd);
            *fd = -1;
            if (why == EWOULDBLOCK) return FKV_OK;
            errno = why;
            return fkv_fail_errno(err, path, "flock");
        }
        const bool looked = fstat(*fd, &held) == 0 && (stat(path, &named) == 0 || errno == ENOENT);
        if (!looked) {
            const fkv_status st = fkv_fail_errno(err, path, "stat of the lock");
            close(*fd);
            *fd = -1;
            return st;
        }
        if (held.st_ino == named.st_ino && held.st_dev == named.st_dev) return FKV_OK;
        close(*fd);
    }
}

static fkv_status write_holder(int fd, const char *path, fkv_err *err)
{
    char host[64] = "?", text[HOLDER_SIZE];
    gethostname(host, sizeof host - 1);
    const int n = snprintf(text, sizeof text, "%s %lld\n", host, (long long)getpid());
    if (ftruncate(fd, 0) || lseek(fd, 0, SEEK_SET) < 0) return fkv_fail_errno(err, path, "write the lock");
    return fkv_write_all(fd, text, (size_t)n, path, err);
}

static fkv_status take_lock(fkv_folder *f, int *fd, fkv_err *err)
{
    fkv_status st;
    *fd = -1;
    char *shards = fkv_folder_path(f, "shards", false);
    char *lock = fkv_folder_path(f, "lock", true);
    if (!shards || !lock) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if ((st = fkv_dir_make(shards, err))) goto out;
    if ((st = try_lock(lock, fd, err))) goto out;
    st = *fd < 0 ? busy(f, lock, err) : write_holder(*fd, lock, err);
out:
    if (st && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    free(lock);
    free(shards);
    return st;
}

/* FKV_E_BUSY where another process holds the lock of that path. */
static fkv_status check_lock(const fkv_folder *f, const char *lock, fkv_err *err)
{
    fkv_status st = FKV_OK;
    const int fd = open(lock, O_RDONLY | O_CLOEXEC);
    /* Shared, so that runs which look at the same time don't see each other. */
    if (fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK) st = busy(f, lock, err);
    if (fd >= 0) close(fd);
    return st;
}

static fkv_status check_part_lock(void *ctx, const char *name, fkv_err *err)
{
    const fkv_folder *f = ctx;
    int64_t part, n_parts;
    if (!read_part(name, "lock", "", &part, &n_parts) || n_parts == 1) return FKV_OK;
    char *path = fkv_path_join(f->path, name);
    if (!path) return fkv_fail_memory(err);
    const fkv_status st = check_lock(f, path, err);
    free(path);
    return st;
}

/* Renames the folder, whose lock is held, to a name that is not taken. */
static fkv_status move_aside(const fkv_folder *f, fkv_err *err)
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
        free(to);
        if (st || moved) return st;
    }
    return fkv_fail_at(err, FKV_E_SYSTEM, f->path, 0, NULL, "no free name to move it to");
}

/* Whether name in shards/ is this part's shard with suffix ("" or ".tmp"). */
static bool own_shard(const fkv_folder *f, const char *name, const char *suffix)
{
    int64_t index;
    char want[FKV_SHARD_NAME_SIZE];
    if (strncmp(name, "shard-", 6) != 0) return false;
    const char *rest = read_number(name + 6, &index);
    if (!rest || index % f->n_parts != f->part) return false;
    fkv_shard_name(index, want);
    const char *base = strrchr(want, '/') + 1;
    const size_t n = strlen(base);
    return strlen(name) > n - 1 && memcmp(name, base, n) == 0 && strcmp(name + n, suffix) == 0;
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

static fkv_status restart_folder(fkv_folder *f, fkv_err *err)
{
    bool old;
    int fresh = -1;
    fkv_status st = fkv_folder_is_old(f, &old, err);
    if (st || !old) return st;
    if ((st = each_name(f->path, check_part_lock, f, err))) return st;
    if ((st = move_aside(f, err))) return st;
    /* The old lock is given up only when the new folder's is held. */
    if ((st = take_lock(f, &fresh, err))) return st;
    close(f->lock_fd);
    f->lock_fd = fresh;
    return FKV_OK;
}

fkv_status fkv_folder_name(fkv_folder *f, const char *path, int64_t part, int64_t n_parts, bool restart,
                           fkv_err *err)
{
    *f = (fkv_folder){.part = part, .n_parts = n_parts < 1 ? 1 : n_parts, .lock_fd = -1};
    if (!path || !path[0]) return fkv_fail_at(err, FKV_E_INPUT, NULL, 0, "job.output", "is empty");
    if (restart && f->n_parts > 1)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, "job.restart",
                           "can't be used with input.part, whose runs share the output: move it aside before "
                           "starting the parts");
    if (!(f->path = strdup(path))) return fkv_fail_memory(err);
    for (size_t n = strlen(f->path); n > 1 && f->path[n - 1] == '/'; n--) f->path[n - 1] = '\0';
    return FKV_OK;
}

fkv_status fkv_folder_open(fkv_folder *f, const char *path, int64_t part, int64_t n_parts, bool restart,
                           fkv_err *err)
{
    fkv_status st = fkv_folder_name(f, path, part, n_parts, restart, err);
    if (!st) st = take_lock(f, &f->lock_fd, err);
    if (!st && restart) st = restart_folder(f, err);
    if (st) fkv_folder_close(f);
    return st;
}

void fkv_folder_close(fkv_folder *f)
{
    if (f->path && f->lock_fd >= 0) close(f->lock_fd);
    free(f->path);
    *f = (fkv_folder){.n_parts = 1, .lock_fd = -1};
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

fkv_status fkv_folder_check(const char *path, int64_t part, int64_t n_parts, bool restart, fkv_err *err)
{
    fkv_folder f;
    char *lock = NULL;
    bool old = false;
    fkv_status st = fkv_folder_name(&f, path, part, n_parts, restart, err);
    if (!st && !(lock = fkv_folder_path(&f, "lock", true))) st = fkv_fail_memory(err);
    if (!st) st = check_path(&f, restart, &old, err);
    if (!st) st = check_lock(&f, lock, err);
    if (!st && restart) st = each_name(f.path, check_part_lock, &f, err);
    if (!st && !old) st = fkv_folder_check_ours(&f, err);
    free(lock);
    fkv_folder_close(&f);
    return st;
}

/* Whether we make files of that name before the manifest, which is the first that says whose
 * the folder is. */
static bool is_before_manifest(const char *name)
{
    int64_t part, n_parts;
    return !strcmp(name, "shards") || !strcmp(name, "lock") || !strncmp(name, "lock-", 5) ||
           read_part(name, "manifest", ".json.tmp", &part, &n_parts);
}

/* Keeps the first stranger in byte order. */
static fkv_status find_stranger(void *ctx, const char *name, fkv_err *err)
{
    char **first = ctx;
    if (is_before_manifest(name) || (*first && strcmp(*first, name) <= 0)) return FKV_OK;
    free(*first);
    return (*first = strdup(name)) ? FKV_OK : fkv_fail_memory(err);
}

static fkv_status check_strangers(const fkv_folder *f, fkv_err *err)
{
    char *stranger = NULL;
    fkv_status st = each_name(f->path, find_stranger, &stranger, err);
    if (stranger && !st)
        st = fkv_fail_at(err, FKV_E_INPUT, f->path, 0, NULL,
                         "is neither empty nor an output of ours: it holds \"%.100s\"", stranger);
    free(stranger);
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

fkv_status fkv_folder_check_ours(const fkv_folder *f, fkv_err *err)
{
    fkv_folder_peers peers = {0};
    fkv_status st = fkv_folder_look(f, &peers, err);
    const bool ours = peers.any_manifest;
    fkv_folder_peers_free(&peers);
    if (st || ours) return st;
    st = fkv_folder_check_no_shards(f, err);
    return st ? st : check_strangers(f, err);
}

typedef struct look {
    const fkv_folder *f;
    fkv_folder_peers *peers;
} look;

static fkv_status look_at(void *ctx, const char *name, fkv_err *err)
{
    look *l = ctx;
    int64_t part, n_parts;
    if (!read_part(name, "manifest", ".json", &part, &n_parts)) return FKV_OK;
    l->peers->any_manifest = true;
    if (part == l->f->part && n_parts == l->f->n_parts) return FKV_OK;
    const bool mixed = n_parts != l->f->n_parts;
    if (l->peers->peer && !mixed) return FKV_OK;
    free(l->peers->peer);
    l->peers->mixed = mixed;
    l->peers->peer = fkv_path_join(l->f->path, name);
    return l->peers->peer ? FKV_OK : fkv_fail_memory(err);
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

static fkv_status sweep_shard(void *ctx, const char *name, fkv_err *err)
{
    const fkv_folder *f = ctx;
    if (!own_shard(f, name, ".tmp")) return FKV_OK;
    char *path = NULL;
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

fkv_status fkv_folder_sweep(const fkv_folder *f, fkv_err *err)
{
    static const char *const own[] = {"manifest.json", "journal", "stats.json", "metrics.prom"};
    static const char *const shared[] = {"job.ini", "profile.json", "plan.json", "report.html"};
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < sizeof own / sizeof *own; i++) st = sweep_file(f, own[i], true, err);
    /* Another part may be writing these right now. */
    for (size_t i = 0; !st && f->n_parts == 1 && i < sizeof shared / sizeof *shared; i++)
        st = sweep_file(f, shared[i], false, err);
    char *shards = fkv_folder_path(f, "shards", false);
    if (!st && !shards) st = fkv_fail_memory(err);
    if (!st) st = each_name(shards, sweep_shard, (void *)f, err);
    free(shards);
    return st;
}

fkv_status fkv_folder_with_lock(const fkv_folder *f, const char *what, bool (*asked)(void),
                                fkv_status (*make)(void *ctx, fkv_err *err), void *ctx, fkv_err *err)
{
    fkv_status st;
    int fd = -1;
    bool told = false;
    char *path = NULL;
    if (asprintf(&path, "%s/lock-%s", f->path, what) < 0) return fkv_fail_memory(err);
    for (;;) {
        if ((st = try_lock(path, &fd, err)) || fd >= 0) break;
        if (!told) fkv_log("waiting: another process holds %s", path);
        told = true;
        if (asked && asked()) {
            st = fkv_fail(err, FKV_E_INTERRUPTED, "stopped while waiting for %s", path);
            break;
        }
        const struct timespec pause = {0, 50L * 1000 * 1000};
        nanosleep(&pause, NULL);
    }
    if (!st) st = make(ctx, err);
    if (fd >= 0) close(fd);
    free(path);
    return st;
}
