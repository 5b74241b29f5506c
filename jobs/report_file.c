/* report.html as a file: see report_file.h. */
#include "jobs/report_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runner/base/file.h"
#include "runner/base/hash.h"

/* report.html.<16 hex digits>.tmp */
static const char name_of_all[] = "report.html";
enum { DIGITS = 16, OLD_SECONDS = 600 };

bool fkv_report_file_is_temporary(const char *name)
{
    const size_t n = strlen(name_of_all);
    if (strncmp(name, name_of_all, n) != 0 || name[n] != '.') return false;
    const char *digits = name + n + 1;
    return strspn(digits, "0123456789abcdef") == DIGITS && !strcmp(digits + DIGITS, ".tmp");
}

/* Old by the clock of who keeps the folder: it set the time of our own file just now. */
static void sweep(const char *folder, int64_t now)
{
    DIR *dir = opendir(folder);
    for (const struct dirent *e; dir && (e = readdir(dir));) {
        struct stat sb;
        if (fkv_report_file_is_temporary(e->d_name) &&
            !fstatat(dirfd(dir), e->d_name, &sb, AT_SYMLINK_NOFOLLOW) && now - sb.st_mtime > OLD_SECONDS)
            unlinkat(dirfd(dir), e->d_name, 0);
    }
    if (dir) closedir(dir);
}

uint64_t fkv_report_file_state(const char *folder)
{
    uint64_t state = 0;
    DIR *dir = opendir(folder);
    for (const struct dirent *e; dir && (e = readdir(dir));) {
        struct stat sb;
        const char *end = strstr(e->d_name, ".json");
        const bool told = !strncmp(e->d_name, "stats", 5) || !strncmp(e->d_name, "manifest", 8);
        if (!told || !end || end[5] || fstatat(dirfd(dir), e->d_name, &sb, AT_SYMLINK_NOFOLLOW)) continue;
        const int64_t of_file[] = {(int64_t)sb.st_ino, (int64_t)sb.st_size, (int64_t)sb.st_mtim.tv_sec,
                                   (int64_t)sb.st_mtim.tv_nsec};
        /* The order of names is the folder's: a sum does not depend on it. */
        state += fkv_hash(of_file, sizeof of_file, 0);
    }
    if (dir) closedir(dir);
    return state;
}

static fkv_status write_as(const char *tmp, const char *path, const char *folder, const void *bytes, size_t n,
                           fkv_err *err)
{
    struct stat sb;
    const int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return fkv_fail_errno(err, tmp, "create");
    fkv_status st = fkv_write_all(fd, bytes, n, tmp, err);
    if (!st && !fstat(fd, &sb)) sweep(folder, sb.st_mtime);
    if (!st) st = fkv_file_commit(fd, tmp, path, err);
    close(fd);
    if (st) unlink(tmp);
    return st;
}

fkv_status fkv_report_file_write(const char *folder, const void *bytes, size_t n, fkv_err *err)
{
    uint64_t digits;
    char *path = fkv_path_join(folder, name_of_all), *tmp = NULL;
    fkv_status st = FKV_OK;
    if (getrandom(&digits, sizeof digits, 0) != (ssize_t)sizeof digits)
        st = fkv_fail_errno(err, folder, "getrandom");
    else if (!path || asprintf(&tmp, "%s.%016" PRIx64 ".tmp", path, digits) < 0)
        st = fkv_fail_memory(err);
    else
        st = write_as(tmp, path, folder, bytes, n, err);
    free(tmp);
    free(path);
    return st;
}
