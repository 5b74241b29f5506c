/* Files of an export: see export_files.h. */
#include "jobs/export_files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/mem.h"

/* With ".jsonl.tmp" behind it a name has less than the 255 bytes that file systems take. */
enum { MAX_NAME = 220, KEPT_OF_LONG = 200 };

/* Where path is, or would be. */
static size_t lower_bound(const fkv_export_files *files, const char *path)
{
    size_t lo = 0, hi = files->n;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (strcmp(files->at[mid]->path, path) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

fkv_export_file *fkv_export_files_find(const fkv_export_files *files, const char *path)
{
    const size_t i = lower_bound(files, path);
    return i < files->n && strcmp(files->at[i]->path, path) == 0 ? files->at[i] : NULL;
}

static void free_file(fkv_export_file *f)
{
    if (!f) return;
    fkv_buf_free(&f->note);
    free(f->path);
    free(f->tmp);
    free(f);
}

/* A file that is in no set. */
static fkv_status new_file(const char *path, fkv_export_file **out, fkv_err *err)
{
    struct stat sb;
    if (lstat(path, &sb) == 0 && !S_ISREG(sb.st_mode))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "is there and not a regular file");
    fkv_export_file *f = calloc(1, sizeof *f);
    if (!f) return fkv_fail_memory(err);
    f->path = strdup(path);
    if (!f->path || asprintf(&f->tmp, "%s.tmp", path) < 0) {
        f->tmp = NULL;
        free_file(f);
        return fkv_fail_memory(err);
    }
    *out = f;
    return FKV_OK;
}

fkv_status fkv_export_files_get(fkv_export_files *files, const char *path, fkv_export_file **out,
                                fkv_err *err)
{
    if ((*out = fkv_export_files_find(files, path))) return FKV_OK;
    if (files->n == FKV_EXPORT_MAX_FILES)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "would be file %d, more than there may be",
                           FKV_EXPORT_MAX_FILES + 1);
    fkv_export_file **at = fkv_grown(files->at, files->n, &files->cap, sizeof *at);
    if (!at) return fkv_fail_memory(err);
    files->at = at;
    const fkv_status st = new_file(path, out, err);
    if (st) return st;
    const size_t i = lower_bound(files, path);
    memmove(&files->at[i + 1], &files->at[i], (files->n - i) * sizeof *files->at);
    files->at[i] = *out;
    files->n++;
    return FKV_OK;
}

/* Closes the open file number i. */
static fkv_status close_file(fkv_export_files *files, int i, fkv_err *err)
{
    fkv_export_file *f = files->open[i];
    const int rc = fclose(f->file);
    f->file = NULL;
    files->open[i] = files->open[--files->n_open];
    return rc ? fkv_fail_errno(err, f->tmp, "write") : FKV_OK;
}

static fkv_status open_file(fkv_export_files *files, fkv_export_file *f, fkv_err *err)
{
    if (files->n_open == FKV_EXPORT_MAX_OPEN) {
        int oldest = 0;
        for (int i = 1; i < files->n_open; i++) {
            if (files->open[i]->use < files->open[oldest]->use) oldest = i;
        }
        const fkv_status st = close_file(files, oldest, err);
        if (st) return st;
    }
    if (!f->begun) {
        char *folder = fkv_path_dir(f->path);
        const fkv_status st = folder ? fkv_dir_make(folder, err) : fkv_fail_memory(err);
        free(folder);
        if (st) return st;
    }
    f->file = fopen(f->tmp, f->begun ? "ae" : "we");
    if (!f->file) return fkv_fail_errno(err, f->tmp, f->begun ? "open" : "create");
    f->begun = true;
    files->open[files->n_open++] = f;
    return FKV_OK;
}

fkv_status fkv_export_files_write(fkv_export_files *files, fkv_export_file *file, const void *bytes, size_t n,
                                  fkv_err *err)
{
    const fkv_status st = file->file ? FKV_OK : open_file(files, file, err);
    if (st) return st;
    file->use = ++files->clock;
    return fwrite(bytes, 1, n, file->file) == n ? FKV_OK : fkv_fail_errno(err, file->tmp, "write");
}

static fkv_status sync_file(const fkv_export_file *f, fkv_err *err)
{
    const int fd = open(f->tmp, O_RDWR | O_CLOEXEC);
    if (fd < 0) return fkv_fail_errno(err, f->tmp, "open");
    const fkv_status st = fkv_file_sync(fd, f->tmp, err);
    close(fd);
    return st;
}

static bool same_folder(const char *a, const char *b)
{
    const size_t n = (size_t)(strrchr(a, '/') ? strrchr(a, '/') - a : 0);
    return strncmp(a, b, n) == 0 && (strrchr(b, '/') ? strrchr(b, '/') - b : 0) == (ptrdiff_t)n;
}

fkv_status fkv_export_files_publish(fkv_export_files *files, int64_t *n, fkv_err *err)
{
    const char *in = NULL; /* a path in the folder that was renamed in last */
    fkv_status st = FKV_OK;
    *n = 0;
    while (!st && files->n_open) st = close_file(files, files->n_open - 1, err);
    for (size_t i = 0; !st && i < files->n; i++) {
        if (files->at[i]->begun) st = sync_file(files->at[i], err);
    }
    for (size_t i = 0; !st && i < files->n; i++) {
        fkv_export_file *f = files->at[i];
        if (!f->begun) continue;
        if (in && !same_folder(in, f->path)) st = fkv_dir_sync_of(in, err);
        in = f->path;
        if (!st && rename(f->tmp, f->path)) st = fkv_fail_errno(err, f->path, "rename");
        if (st) break;
        f->begun = false;
        (*n)++;
    }
    return st || !in ? st : fkv_dir_sync_of(in, err);
}

void fkv_export_files_free(fkv_export_files *files)
{
    for (size_t i = 0; i < files->n; i++) {
        fkv_export_file *f = files->at[i];
        if (f->file) fclose(f->file);
        if (f->begun) unlink(f->tmp);
        free_file(f);
    }
    free(files->at);
    *files = (fkv_export_files){0};
}

/* What Windows' file systems (and what is mounted from them) refuse, and % for what it is here. */
static bool stands_for_itself(unsigned char c)
{
    return c >= 0x20 && c != 0x7f && !strchr("/\\:*?\"<>|%", c);
}

fkv_status fkv_export_name(fkv_buf *out, const char *name, size_t n, bool no_dots, fkv_err *err)
{
    const size_t from = out->len;
    size_t kept = from; /* what a long name keeps: whole escapes and characters */
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < n && out->len - from <= MAX_NAME; i++) {
        const unsigned char c = (unsigned char)name[i];
        if ((c & 0xc0) != 0x80 && out->len - from <= KEPT_OF_LONG) kept = out->len;
        if (stands_for_itself(c) && (c != '.' || (i > 0 && !no_dots)))
            st = fkv_buf_append(out, &c, 1, err);
        else
            st = fkv_buf_printf(out, err, "%%%02X", c);
    }
    if (st) return st;
    if (n == 0) return fkv_buf_puts(out, "%", err);
    if (out->len - from <= MAX_NAME) return FKV_OK;
    char hex[17];
    fkv_hash_hex(fkv_hash(name, n, 0), hex);
    out->len = kept;
    return fkv_buf_printf(out, err, "%%-%s", hex);
}
