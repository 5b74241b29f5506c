/* Files: see file.h. */
#include "runner/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

fkv_status fkv_file_read(const char *path, size_t max_bytes, fkv_buf *out, fkv_err *err)
{
    fkv_status st = FKV_OK;
    struct stat sb;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fkv_fail_open(err, path);
    if (fstat(fd, &sb)) {
        st = fkv_fail_errno(err, path, "stat");
        goto out;
    }
    if (!S_ISREG(sb.st_mode)) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "not a regular file");
        goto out;
    }
    if ((uint64_t)sb.st_size > max_bytes) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "%lld bytes, more than the %zu allowed",
                         (long long)sb.st_size, max_bytes);
        goto out;
    }
    if ((st = fkv_buf_reserve(out, (size_t)sb.st_size, err))) goto out;
    size_t left = (size_t)sb.st_size;
    while (left) {
        const ssize_t n = read(fd, out->data + out->len, left);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            st = fkv_fail_errno(err, path, "read");
            goto out;
        }
        if (n == 0) break;
        out->len += (size_t)n;
        left -= (size_t)n;
    }
    out->data[out->len] = '\0';
out:
    close(fd);
    return st;
}

/* What fd still gives. */
static fkv_status read_stream(int fd, const char *path, size_t max_bytes, fkv_buf *out, fkv_err *err)
{
    char some[4096];
    ssize_t n;
    while ((n = read(fd, some, sizeof some)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fkv_fail_errno(err, path, "read");
        if ((size_t)n > max_bytes - out->len)
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "more than the %zu bytes allowed", max_bytes);
        const fkv_status st = fkv_buf_append(out, some, (size_t)n, err);
        if (st) return st;
    }
    return fkv_buf_reserve(out, 0, err);
}

/* N of /dev/fd/N, or -1. */
static int descriptor_of(const char *path)
{
    static const char folder[] = "/dev/fd/";
    const size_t n = sizeof folder - 1;
    char *end;
    if (strncmp(path, folder, n) != 0 || path[n] < '0' || path[n] > '9') return -1;
    const long number = strtol(path + n, &end, 10);
    return *end || number > INT_MAX ? -1 : (int)number;
}

/* A descriptor is taken by its number: the name leads through /proc, which a bare chroot has not. */
fkv_status fkv_file_read_any(const char *path, size_t max_bytes, fkv_buf *out, fkv_err *err)
{
    struct stat sb;
    const int number = descriptor_of(path);
    const bool there = number >= 0 ? !fstat(number, &sb) : !stat(path, &sb);
    if (!there || !(S_ISFIFO(sb.st_mode) || (number >= 0 && S_ISREG(sb.st_mode))))
        return fkv_file_read(path, max_bytes, out, err);
    const int fd = number >= 0 ? fcntl(number, F_DUPFD_CLOEXEC, 0) : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fkv_fail_open(err, path);
    if (S_ISREG(sb.st_mode)) lseek(fd, 0, SEEK_SET); /* as one who opens it */
    const fkv_status st = read_stream(fd, path, max_bytes, out, err);
    close(fd);
    return st;
}

fkv_status fkv_write_all(int fd, const void *bytes, size_t n, const char *path, fkv_err *err)
{
    const char *p = bytes;
    while (n) {
        const ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR) continue;
        if (w < 0) return fkv_fail_errno(err, path, "write");
        p += w;
        n -= (size_t)w;
    }
    return FKV_OK;
}

char *fkv_path_dir(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

char *fkv_path_join(const char *a, const char *b)
{
    if (b[0] == '/' || !a[0]) return strdup(b);
    const size_t na = strlen(a), nb = strlen(b);
    const int slash = a[na - 1] != '/';
    char *p = malloc(na + nb + 2);
    if (!p) return NULL;
    memcpy(p, a, na);
    if (slash) p[na] = '/';
    memcpy(p + na + slash, b, nb);
    p[na + (size_t)slash + nb] = '\0';
    return p;
}

fkv_status fkv_file_sync(int fd, const char *path, fkv_err *err)
{
    int rc;
    do {
        rc = fsync(fd);
    } while (rc && errno == EINTR);
    return rc ? fkv_fail_errno(err, path, "fsync") : FKV_OK;
}

fkv_status fkv_dir_sync_of(const char *path, fkv_err *err)
{
    char *dir = fkv_path_dir(path);
    if (!dir) return fkv_fail_memory(err);
    fkv_status st = FKV_OK;
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        st = fkv_fail_errno(err, dir, "open the folder");
    else
        st = fkv_file_sync(fd, dir, err);
    if (fd >= 0) close(fd);
    free(dir);
    return st;
}

fkv_status fkv_file_commit(int fd, const char *tmp, const char *path, fkv_err *err)
{
    const fkv_status st = fkv_file_sync(fd, tmp, err);
    if (st) return st;
    if (rename(tmp, path)) return fkv_fail_errno(err, path, "rename");
    return fkv_dir_sync_of(path, err);
}

fkv_status fkv_file_replace_by(const char *path, const char *tmp, const void *bytes, size_t n, fkv_err *err)
{
    fkv_status st;
    int fd = -1;
    fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        st = fkv_fail_errno(err, tmp, "create");
        goto out;
    }
    if ((st = fkv_write_all(fd, bytes, n, tmp, err))) goto out;
    st = fkv_file_commit(fd, tmp, path, err);
out:
    if (fd >= 0) close(fd);
    if (st && fd >= 0) unlink(tmp);
    return st;
}

fkv_status fkv_file_replace(const char *path, const void *bytes, size_t n, fkv_err *err)
{
    const size_t size = strlen(path) + 5;
    char *tmp = malloc(size);
    if (!tmp) return fkv_fail_memory(err);
    snprintf(tmp, size, "%s.tmp", path);
    const fkv_status st = fkv_file_replace_by(path, tmp, bytes, n, err);
    free(tmp);
    return st;
}

fkv_status fkv_dir_make(const char *path, fkv_err *err)
{
    fkv_status st = FKV_OK;
    struct stat sb;
    char *p = strdup(path);
    if (!p) return fkv_fail_memory(err);
    for (char *s = p + 1; !st; s++) {
        if (*s && *s != '/') continue;
        const char kept = *s;
        *s = '\0';
        if (mkdir(p, 0777) && errno != EEXIST) st = fkv_fail_errno(err, p, "mkdir");
        *s = kept;
        if (!kept) break;
    }
    if (!st && stat(path, &sb))
        st = fkv_fail_errno(err, path, "stat");
    else if (!st && !S_ISDIR(sb.st_mode))
        st = fkv_fail_at(err, FKV_E_SYSTEM, path, 0, NULL, "not a folder");
    free(p);
    return st;
}

bool fkv_file_exists(const char *path)
{
    return access(path, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

int64_t fkv_file_size(const char *path)
{
    struct stat sb;
    return stat(path, &sb) ? -1 : (int64_t)sb.st_size;
}

void fkv_file_read_ahead(uintptr_t at, size_t n)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = at / page * page;
    posix_madvise((void *)begin, n + (at - begin), POSIX_MADV_WILLNEED); /* a hint: it may fail */
}
