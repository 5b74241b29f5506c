/* Leases: see lease.h. */
#include "jobs/lease.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "runner/base/buf.h"
#include "runner/base/clock.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

static const char FORMAT[] = "fairkv-lease/1";
enum { FILE_MAX = 4096, UUID_SIZE = 37, LINK_TRIES = 100, GONE_TRIES = 20 };
static double beat_seconds = 5, stale_seconds = 60;

struct fkv_lease {
    char *path, *subject;
    char *tmp, *old; /* path.UUID.tmp and path.UUID.old, where it was taken */
    char uuid[UUID_SIZE];
    int fd; /* of the lease's file, whatever its name */
    bool after_silence;

    pthread_t thread;
    bool started;
    pthread_mutex_t mutex; /* for path and ending */
    pthread_cond_t cond;
    bool ending;
    atomic_bool lost;
    atomic_bool gone;     /* the last heartbeat found no file: another took it over and was done with it? */
    atomic_llong beat_ms; /* monotonic, of the last heartbeat */
};

/* A lease file at one moment. */
typedef struct sight {
    bool there, known; /* known: holder says whose it is */
    fkv_lease_holder holder;
    dev_t dev;
    ino_t ino;
    off_t size;
    struct timespec beat;
} sight;

void fkv_lease_set_pace(double beat_s, double stale_s)
{
    beat_seconds = beat_s;
    stale_seconds = stale_s;
}

static void pause_ms(long ms)
{
    const struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* ---- who we are ---- */

/* The first line of a small file, without its end; empty where it can't be read. */
static void read_line(const char *path, char *out, size_t size)
{
    ssize_t n = -1;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        n = read(fd, out, size - 1);
        close(fd);
    }
    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

/* State of a process: its letter ('\0': can't be read), start time, and whether it is ending. */
static char process_state(int64_t pid, int64_t *start, bool *ending)
{
    char path[64], text[1024], state = '\0';
    unsigned long flags = 0;
    long threads = 0;
    long long ticks = 0;
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    read_line(path, text, sizeof text);
    const char *p = strrchr(text, ')'); /* the name before it may hold anything */
    if (!p ||
        sscanf(p + 1, " %c %*d %*d %*d %*d %*d %lu %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld %*d %lld",
               &state, &flags, &threads, &ticks) != 4)
        return '\0';
    *start = ticks;
    *ending = (flags & 4) != 0;               /* PF_EXITING */
    if (strchr("ZX", state) && threads > 1) { /* others of its threads have yet to end */
        *ending = true;
        return 'R';
    }
    return state;
}

/* Whether SIGKILL is on its way to a process. */
static bool is_being_killed(int64_t pid)
{
    char path[64], line[256];
    unsigned long long mask;
    bool killed = false;
    snprintf(path, sizeof path, "/proc/%lld/status", (long long)pid);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "SigPnd: %llx", &mask) == 1 || sscanf(line, "ShdPnd: %llx", &mask) == 1)
            killed = killed || (mask >> (SIGKILL - 1) & 1);
    }
    if (f) fclose(f);
    return killed;
}

/* What is no plain word of JSON and of terminals becomes '?'. */
static void clean(char *text)
{
    for (char *p = text; *p; p++) {
        if (!isgraph((unsigned char)*p) || *p == '"' || *p == '\\') *p = '?';
    }
}

static void this_process(fkv_lease_holder *h)
{
    struct stat sb;
    bool ending;
    *h = (fkv_lease_holder){.pid = getpid()};
    if (gethostname(h->host, sizeof h->host - 1) || !h->host[0]) snprintf(h->host, sizeof h->host, "?");
    clean(h->host);
    read_line("/proc/sys/kernel/random/boot_id", h->boot, sizeof h->boot);
    clean(h->boot);
    if (stat("/proc/self/ns/pid", &sb) == 0 && sb.st_ino <= INT64_MAX) h->pids = (int64_t)sb.st_ino;
    if (!process_state(h->pid, &h->start, &ending)) h->start = 0;
}

static fkv_status make_uuid(char out[UUID_SIZE], fkv_err *err)
{
    unsigned char b[16];
    ssize_t n;
    do {
        n = getrandom(b, sizeof b, 0);
    } while (n < 0 && errno == EINTR);
    if (n != sizeof b) return fkv_fail_errno(err, NULL, "getrandom");
    char *p = out;
    for (int i = 0; i < 16; i++)
        p += snprintf(p, 4, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
    return FKV_OK;
}

/* ---- the file ---- */

static bool is_uuid(const char *text)
{
    for (int i = 0; i < UUID_SIZE - 1; i++) {
        const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? text[i] != '-' : !isxdigit((unsigned char)text[i])) return false;
    }
    return true;
}

static bool take_text(const json_t *o, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(o, key));
    if (!text || strlen(text) >= size) return false;
    for (const char *p = text; *p; p++) {
        if (!isgraph((unsigned char)*p)) return false; /* it is shown on terminals */
    }
    memcpy(out, text, strlen(text) + 1);
    return true;
}

static bool take_number(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *out)
{
    return fkv_json_i64(o, key, lo, hi, "", out, NULL) == FKV_OK;
}

bool fkv_lease_parse(const char *text, size_t n, fkv_lease_holder *h)
{
    json_error_t je;
    char format[sizeof FORMAT];
    *h = (fkv_lease_holder){0};
    json_t *o = n <= FILE_MAX ? fkv_json_parse(text, n, JSON_REJECT_DUPLICATES, &je) : NULL;
    bool ok = json_is_object(o) && take_text(o, "format", format, sizeof format) && !strcmp(format, FORMAT);
    ok = ok && take_text(o, "host", h->host, sizeof h->host) && h->host[0];
    ok = ok && take_text(o, "boot", h->boot, sizeof h->boot);
    ok = ok && take_text(o, "uuid", h->uuid, sizeof h->uuid) && is_uuid(h->uuid) && !h->uuid[UUID_SIZE - 1];
    ok = ok && take_number(o, "pids", 0, INT64_MAX, &h->pids) &&
         take_number(o, "pid", 1, INT32_MAX, &h->pid) && take_number(o, "start", 0, INT64_MAX, &h->start);
    json_decref(o);
    if (!ok) *h = (fkv_lease_holder){0};
    return ok;
}

static fkv_status write_holder(int fd, const fkv_lease_holder *h, const char *path, fkv_err *err)
{
    char text[FILE_MAX];
    const int n = snprintf(text, sizeof text,
                           "{\"format\":\"%s\",\"host\":\"%s\",\"boot\":\"%s\",\"pids\":%lld,\"pid\":%lld,"
                           "\"start\":%lld,\"uuid\":\"%s\"}\n",
                           FORMAT, h->host, h->boot, (long long)h->pids, (long long)h->pid,
                           (long long)h->start, h->uuid);
    const fkv_status st = fkv_write_all(fd, text, (size_t)n, path, err);
    return st ? st : fkv_file_sync(fd, path, err);
}

/* Reads what a file holds, at most FILE_MAX bytes; *n is -1 where there is no file. */
static fkv_status read_file(const char *path, char text[FILE_MAX], ssize_t *n, struct stat *sb, fkv_err *err)
{
    fkv_status st = FKV_OK;
    *n = -1;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0) return errno == ENOENT ? FKV_OK : fkv_fail_errno(err, path, "open the lease");
    do {
        *n = read(fd, text, FILE_MAX);
    } while (*n < 0 && errno == EINTR);
    if (*n < 0 || fstat(fd, sb)) {
        *n = -1;
        /* Removed on the server while it was open here: there is none. */
        if (errno != ESTALE) st = fkv_fail_errno(err, path, "read the lease");
    }
    close(fd);
    return st;
}

static fkv_status look_at(const char *path, sight *s, fkv_err *err)
{
    char text[FILE_MAX];
    struct stat sb;
    ssize_t n;
    *s = (sight){0};
    const fkv_status st = read_file(path, text, &n, &sb, err);
    if (st || n < 0) return st;
    s->there = true;
    s->known = fkv_lease_parse(text, (size_t)n, &s->holder);
    s->dev = sb.st_dev;
    s->ino = sb.st_ino;
    s->size = sb.st_size;
    s->beat = sb.st_mtim;
    return FKV_OK;
}

static bool same_file(const sight *a, const sight *b)
{
    return a->there == b->there && a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
           !strcmp(a->holder.uuid, b->holder.uuid);
}

static bool same_beat(const sight *a, const sight *b)
{
    return a->beat.tv_sec == b->beat.tv_sec && a->beat.tv_nsec == b->beat.tv_nsec;
}

fkv_status fkv_lease_is_one(const char *path, bool *is, fkv_err *err)
{
    sight s;
    const fkv_status st = look_at(path, &s, err);
    *is = s.there && s.known;
    return st;
}

/* ---- is its holder alive? ---- */

typedef enum verdict { LIVE, DEAD, SILENT /* for long enough to count as dead */, UNCLEAR } verdict;

/* What this thread is watching. */
static _Thread_local sight watched;
static _Thread_local double watched_since;

static verdict by_heartbeat(const sight *s)
{
    const double now = fkv_seconds();
    const bool again = same_file(s, &watched);
    if (again && same_beat(s, &watched)) return now - watched_since >= stale_seconds ? SILENT : UNCLEAR;
    watched = *s;
    watched_since = now;
    return again ? LIVE : UNCLEAR;
}

static verdict judge(const sight *s)
{
    fkv_lease_holder me;
    int64_t start = 0;
    bool ending = false;
    const fkv_lease_holder *h = &s->holder;
    if (!s->known) return by_heartbeat(s);
    this_process(&me);
    const bool here =
        h->boot[0] && h->pids && !strcmp(h->host, me.host) && !strcmp(h->boot, me.boot) && h->pids == me.pids;
    if (!here) return by_heartbeat(s);
    if (kill((pid_t)h->pid, 0) && errno == ESRCH) return DEAD;
    const char state = process_state(h->pid, &start, &ending);
    if (!state) return kill((pid_t)h->pid, 0) && errno == ESRCH ? DEAD : by_heartbeat(s);
    if (h->start && start != h->start) return DEAD;
    if (strchr("ZX", state)) return DEAD;
    if (ending || strchr("Tt", state) || is_being_killed(h->pid)) return by_heartbeat(s);
    return LIVE;
}

static fkv_status busy(const sight *s, const char *subject, fkv_err *err)
{
    const fkv_lease_holder *h = &s->holder;
    if (!s->known)
        return fkv_fail_at(err, FKV_E_BUSY, subject, 0, NULL,
                           "another run holds it, by a lease that this build can't read; run this again when "
                           "it has ended");
    return fkv_fail_at(err, FKV_E_BUSY, subject, 0, NULL,
                       "another run holds it: process %lld on host %s; run this again when it has ended, or "
                       "end it (kill %lld)",
                       (long long)h->pid, h->host, (long long)h->pid);
}

static void tell(const sight *s, verdict v, const char *path)
{
    const fkv_lease_holder *h = &s->holder;
    char who[256] = "";
    if (s->known) snprintf(who, sizeof who, ": process %lld on host %s", (long long)h->pid, h->host);
    if (v == LIVE)
        fkv_log("waiting: another process holds %s%s", path, who);
    else
        fkv_log(
            "waiting: another process holds %s%s; it is taken over unless it shows a sign of life in %g s",
            path, who, stale_seconds);
}

/* Looks until the holder is known to be dead, or alive (where that is not waited for: FKV_E_BUSY).
 * s->there is false where there is no lease. */
static fkv_status settle(const char *path, const char *subject, fkv_patience patience, bool (*asked)(void),
                         sight *s, verdict *v, fkv_err *err)
{
    bool told = false;
    const double start = fkv_seconds();
    for (;;) {
        const fkv_status st = look_at(path, s, err);
        if (st || !s->there) return st;
        *v = judge(s);
        if (*v == DEAD || *v == SILENT) return FKV_OK;
        if (patience == FKV_LEASE_NOW || (*v == LIVE && patience == FKV_LEASE_TRY))
            return busy(s, subject, err);
        const double waited = fkv_seconds() - start;
        /* A process that ends is gone before anybody would want to read of it. */
        if (!told && (*v == LIVE || waited > 1)) {
            tell(s, *v, path);
            told = true;
        }
        if (asked && asked()) return fkv_fail(err, FKV_E_INTERRUPTED, "stopped while waiting for %s", path);
        pause_ms(waited < 2 ? 50 : 200);
    }
}

fkv_status fkv_lease_look(const char *path, const char *subject, bool (*asked)(void), fkv_err *err)
{
    sight s;
    verdict v;
    return settle(path, subject, FKV_LEASE_TRY, asked, &s, &v, err);
}

/* ---- taking ---- */

/* Takes a dead one's file away, if it is still that one and shows no sign of life. */
static fkv_status take_away(const fkv_lease *l, const sight *dead, fkv_err *err)
{
    sight s;
    if (rename(l->path, l->old) && errno != ENOENT) return fkv_fail_errno(err, l->path, "rename");
    const fkv_status st = look_at(l->old, &s, err);
    if (st || !s.there) return st; /* another process was faster */
    if (!same_file(&s, dead) || !same_beat(&s, dead)) {
        /* A new one's, or it woke up. Where a third has taken the place meanwhile, its holder will see. */
        if (link(l->old, l->path) && errno != EEXIST) return fkv_fail_errno(err, l->path, "link");
    }
    if (unlink(l->old) && errno != ENOENT) return fkv_fail_errno(err, l->old, "remove");
    return FKV_OK;
}

/* Makes path.UUID.tmp, which says who we are. */
static fkv_status make_file(fkv_lease *l, fkv_err *err)
{
    fkv_lease_holder me;
    fkv_status st = FKV_OK;
    this_process(&me);
    memcpy(me.uuid, l->uuid, sizeof me.uuid);
    if (l->fd >= 0) close(l->fd);
    l->fd = open(l->tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (l->fd < 0 && errno == ENOENT) { /* a restart has moved the folder */
        char *dir = fkv_path_dir(l->tmp);
        st = dir ? fkv_dir_make(dir, err) : fkv_fail_memory(err);
        free(dir);
        if (st) return st;
        l->fd = open(l->tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    }
    if (l->fd < 0) return fkv_fail_errno(err, l->path, "create the lease");
    return write_holder(l->fd, &me, l->path, err);
}

/* Tries to make path our file. */
static fkv_status try_link(fkv_lease *l, bool *ours, fkv_err *err)
{
    struct stat sb;
    sight s;
    *ours = false;
    const int rc = link(l->tmp, l->path), why = errno;
    if (stat(l->tmp, &sb)) {
        if (errno != ENOENT) return fkv_fail_errno(err, l->path, "stat of the lease");
        sb.st_nlink = 0;
    }
    if (sb.st_nlink == 2) {
        *ours = true;
        return FKV_OK;
    }
    if (rc && why != EEXIST && why != ENOENT) {
        if (why == EPERM || why == ENOSYS || why == EOPNOTSUPP || why == ENOTSUP || why == EMLINK)
            return fkv_fail_at(err, FKV_E_SYSTEM, l->path, 0, NULL,
                               "the file system has no hard links (link: %s), which the lease of an output "
                               "needs: use a job.output on another one",
                               strerror(why));
        errno = why;
        return fkv_fail_errno(err, l->path, "link");
    }
    /* It may have been tidied away behind our back, before or after it was linked. */
    const fkv_status st = look_at(l->path, &s, err);
    if (st) return st;
    *ours = s.there && !strcmp(s.holder.uuid, l->uuid);
    return *ours || sb.st_nlink ? FKV_OK : make_file(l, err);
}

static fkv_status win(fkv_lease *l, fkv_patience patience, bool (*asked)(void), fkv_err *err)
{
    fkv_status st = make_file(l, err);
    for (int i = 0; !st; i++) {
        sight s;
        verdict v = LIVE;
        bool ours;
        if ((st = try_link(l, &ours, err)) || ours) break;
        if ((st = settle(l->path, l->subject, patience, asked, &s, &v, err))) break;
        if (!s.there && i > LINK_TRIES) /* nobody has it, and we can't either */
            return fkv_fail_at(err, FKV_E_SYSTEM, l->path, 0, NULL, "can't be linked to");
        if (!s.there) {
            if (i) pause_ms(i);
            continue;
        }
        l->after_silence = v == SILENT;
        if (v == SILENT)
            fkv_log("%s: taken over from a process that shows no sign of life%s%s", l->path,
                    s.known ? ", on host " : "", s.holder.host);
        st = take_away(l, &s, err);
    }
    return st;
}

/* ---- holding ---- */

static long long now_ms(void)
{
    return (long long)(fkv_seconds() * 1000);
}

/* Whether path holds our file. *there is false where it holds none. */
static fkv_status is_ours(fkv_lease *l, bool *ours, bool *there, fkv_err *err)
{
    char text[FILE_MAX];
    struct stat sb;
    ssize_t n;
    const fkv_status st = read_file(l->path, text, &n, &sb, err);
    *there = !st && n >= 0;
    *ours = *there && memmem(text, (size_t)n, l->uuid, UUID_SIZE - 1);
    return st;
}

static void *beat(void *arg)
{
    fkv_lease *l = arg;
    pthread_mutex_lock(&l->mutex);
    while (!l->ending) {
        struct timespec at;
        bool ours, there;
        clock_gettime(CLOCK_MONOTONIC, &at);
        at.tv_sec += (time_t)beat_seconds;
        at.tv_nsec += (long)((beat_seconds - (double)(time_t)beat_seconds) * 1e9);
        if (at.tv_nsec >= 1000000000) {
            at.tv_sec++;
            at.tv_nsec -= 1000000000;
        }
        if (pthread_cond_timedwait(&l->cond, &l->mutex, &at) != ETIMEDOUT || l->ending) continue;
        const long long looked_ms = now_ms(); /* who is stopped behind this has a late heartbeat */
        if (!is_ours(l, &ours, &there, NULL)) {
            if (there && !ours) atomic_store(&l->lost, true);
            atomic_store(&l->gone, !there);
        }
        if (!futimens(l->fd, NULL)) atomic_store(&l->beat_ms, looked_ms);
    }
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

static fkv_status start_beating(fkv_lease *l, fkv_err *err)
{
    sigset_t all, before;
    atomic_store(&l->beat_ms, now_ms());
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads that work */
    l->started = pthread_create(&l->thread, NULL, beat, l) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return l->started ? FKV_OK : fkv_fail(err, FKV_E_SYSTEM, "can't start a thread");
}

static fkv_status lost(fkv_lease *l, const sight *s, fkv_err *err)
{
    atomic_store(&l->lost, true);
    if (s->known)
        return fkv_fail_at(
            err, FKV_E_BUSY, l->subject, 0, NULL,
            "another run has taken it over while this one showed no sign of life: process %lld "
            "on host %s; run this again when that has ended",
            (long long)s->holder.pid, s->holder.host);
    return fkv_fail_at(err, FKV_E_BUSY, l->subject, 0, NULL,
                       "another run has taken it over while this one showed no sign of life; run this again "
                       "to resume");
}

fkv_status fkv_lease_check(fkv_lease *l, fkv_err *err)
{
    sight s;
    bool ours = false, there = false;
    fkv_status st = FKV_OK;
    pthread_mutex_lock(&l->mutex);
    /* Who doubts whether it is alive moves it away for a moment. */
    for (int i = 0; !st && !atomic_load(&l->lost) && !there && i < GONE_TRIES; i++) {
        if (i) pause_ms(50);
        st = is_ours(l, &ours, &there, err);
    }
    if (!st && !ours && !(st = look_at(l->path, &s, err))) st = lost(l, &s, err);
    pthread_mutex_unlock(&l->mutex);
    return st;
}

fkv_status fkv_lease_glance(fkv_lease *l, fkv_err *err)
{
    const double late_s = (double)(now_ms() - atomic_load(&l->beat_ms)) / 1000;
    const bool doubtful = atomic_load(&l->lost) || atomic_load(&l->gone);
    return doubtful || late_s > stale_seconds / 2 ? fkv_lease_check(l, err) : FKV_OK;
}

bool fkv_lease_after_silence(const fkv_lease *l)
{
    return l->after_silence;
}

fkv_status fkv_lease_moved(fkv_lease *l, const char *path, fkv_err *err)
{
    char *copy = strdup(path);
    if (!copy) return fkv_fail_memory(err);
    pthread_mutex_lock(&l->mutex);
    free(l->path);
    l->path = copy;
    pthread_mutex_unlock(&l->mutex);
    return FKV_OK;
}

/* ---- tidying ---- */

bool fkv_lease_is_leaving(const char *name)
{
    const size_t n = strlen(name), tail = 1 + (UUID_SIZE - 1) + 4; /* .UUID.tmp */
    if (n <= tail || strncmp(name, "lock", 4) != 0 || name[n - tail] != '.' || !is_uuid(name + n - tail + 1))
        return false;
    return !strcmp(name + n - 4, ".tmp") || !strcmp(name + n - 4, ".old");
}

/* Removes what killed processes left beside this lease, which is ours. One that is just trying to take
 * it makes its file anew. */
static void tidy(const fkv_lease *l)
{
    const char *slash = strrchr(l->path, '/'), *base = slash ? slash + 1 : l->path;
    const size_t n = strlen(base);
    char *dir = fkv_path_dir(l->path);
    DIR *d = dir ? opendir(dir) : NULL;
    const struct dirent *e;
    while (d && (e = readdir(d))) {
        const char *name = e->d_name;
        if (strncmp(name, base, n) != 0 || strlen(name) != n + 1 + (UUID_SIZE - 1) + 4 ||
            !fkv_lease_is_leaving(name))
            continue;
        char *path = fkv_path_join(dir, name);
        sight s;
        /* Our own, on its way back to us, stays. */
        if (path && !look_at(path, &s, NULL) && strcmp(s.holder.uuid, l->uuid) != 0) unlink(path);
        free(path);
    }
    if (d) closedir(d);
    free(dir);
}

void fkv_lease_release(fkv_lease *l)
{
    bool ours = false, there;
    if (!l) return;
    if (l->started) {
        pthread_mutex_lock(&l->mutex);
        l->ending = true;
        pthread_cond_signal(&l->cond);
        pthread_mutex_unlock(&l->mutex);
        pthread_join(l->thread, NULL);
    }
    if (l->fd >= 0) {
        unlink(l->tmp);
        if (!is_ours(l, &ours, &there, NULL) && ours) {
            tidy(l);
            unlink(l->path);
        }
        close(l->fd);
    }
    pthread_cond_destroy(&l->cond);
    pthread_mutex_destroy(&l->mutex);
    free(l->path);
    free(l->subject);
    free(l->tmp);
    free(l->old);
    free(l);
}

static fkv_status new_lease(const char *path, const char *subject, fkv_lease **lease, fkv_err *err)
{
    pthread_condattr_t monotonic;
    fkv_lease *l = *lease = fkv_calloc(1, sizeof *l);
    if (!l) return fkv_fail_memory(err);
    l->fd = -1;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&l->cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    const fkv_status st = make_uuid(l->uuid, err);
    if (st) return st;
    if (asprintf(&l->tmp, "%s.%s.tmp", path, l->uuid) < 0) l->tmp = NULL;
    if (asprintf(&l->old, "%s.%s.old", path, l->uuid) < 0) l->old = NULL;
    l->path = strdup(path);
    l->subject = strdup(subject);
    return l->path && l->subject && l->tmp && l->old ? FKV_OK : fkv_fail_memory(err);
}

fkv_status fkv_lease_take(const char *path, const char *subject, fkv_patience patience, bool (*asked)(void),
                          fkv_lease **lease, fkv_err *err)
{
    fkv_lease *l;
    sight s;
    verdict v;
    /* Where nothing is waited for, most are another's: those cost a look and no file. */
    fkv_status st = FKV_OK;
    *lease = NULL;
    if (patience == FKV_LEASE_NOW && (st = settle(path, subject, patience, asked, &s, &v, err))) return st;
    st = new_lease(path, subject, &l, err);
    if (!st) st = win(l, patience, asked, err);
    if (!st && unlink(l->tmp) && errno != ENOENT)
        st = fkv_fail_errno(err, l->path, "remove the lease's file");
    if (!st) tidy(l); /* now too: a chain of killed runs would leave more and more */
    if (!st) st = start_beating(l, err);
    if (st) {
        fkv_lease_release(l);
        l = NULL;
    }
    *lease = l;
    return st;
}
