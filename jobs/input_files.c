/* Files of the input: see input_files.h. */
#include "jobs/input_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runner/base/mem.h"
#include "runner/base/utf8.h"

/* Folders in folders; deeper ones are no input but a mistake, or a snare. */
enum { DEPTH_MOST = 100 };

static fkv_status add_file(const fkv_key *key, const char *path, const char *name, const fkv_place *place,
                           fkv_job *job, fkv_err *err)
{
    if (fkv_utf8_span(name, strlen(name)) != strlen(name))
        return fkv_key_fail(key, place, err, "the file name \"%s\" is not UTF-8", name);
    /* Doubled now and then, so that many files cost few copies. */
    const size_t n = job->input.n_files;
    if ((n & (n - 1)) == 0) {
        fkv_input_file *more = fkv_realloc(job->input.files, n ? 2 * n : 1, sizeof *more);
        if (!more) return fkv_fail_memory(err);
        job->input.files = more;
    }
    fkv_input_file file = {.path = strdup(path), .name = strdup(name)};
    if (!file.path || !file.name) {
        free(file.path);
        free(file.name);
        return fkv_fail_memory(err);
    }
    job->input.files[job->input.n_files++] = file;
    return FKV_OK;
}

/* The pattern to hand to glob: below the place's folder, whose own wildcard
 * characters are plain. *skip: bytes of that folder in what glob returns. */
static fkv_status full_pattern(const char *word, const fkv_place *place, fkv_buf *out, size_t *skip,
                               fkv_err *err)
{
    fkv_status st = FKV_OK;
    const char *dir = place->dir;
    fkv_buf_clear(out);
    *skip = 0;
    if (word[0] != '/' && dir[0] && strcmp(dir, ".") != 0) {
        *skip = strlen(dir);
        for (const char *p = dir; *p && !st; p++) {
            if (strchr("*?[]\\", *p)) st = fkv_buf_puts(out, "\\", err);
            if (!st) st = fkv_buf_append(out, p, 1, err);
        }
        if (!st && dir[*skip - 1] != '/') {
            st = fkv_buf_puts(out, "/", err);
            (*skip)++;
        }
    }
    return st ? st : fkv_buf_puts(out, word, err);
}

/* glob takes what can't be read for what is not there, and a job would begin without it.
 * These remember the system's failures. */
static _Thread_local int glob_errno;

static void watch(bool failed)
{
    if (failed && !glob_errno && fkv_errno_is_system(errno)) glob_errno = errno;
}

static void *watched_opendir(const char *path)
{
    DIR *d = opendir(path);
    watch(!d);
    return d;
}

static struct dirent *watched_readdir(void *d)
{
    errno = 0;
    struct dirent *e = readdir(d);
    watch(!e);
    return e;
}

static void close_folder(void *d)
{
    closedir(d);
}

static int watched_lstat(const char *path, struct stat *sb)
{
    const int rc = lstat(path, sb);
    watch(rc != 0);
    return rc;
}

static int watched_stat(const char *path, struct stat *sb)
{
    const int rc = stat(path, sb);
    watch(rc != 0);
    return rc;
}

/* ---- folders ---- */

typedef struct folder_walk {
    const fkv_key *key;
    const fkv_place *place;
    fkv_job *job;
    size_t skip;  /* of path, before what stands in the rows */
    size_t files; /* found */
    fkv_buf path;
} folder_walk;

static bool is_manifest(const char *name)
{
    const size_t n = strlen(name), k = strlen(".json");
    return strncmp(name, "manifest", 8) == 0 && n >= 8 + k && strcmp(name + n - k, ".json") == 0;
}

/* Whether the file in the folder is a manifest that we wrote. errno: 0, or why it can't be read. */
static bool is_ours(int folder, const char *name)
{
    static const char format[] = "\"fairkv-manifest/";
    char head[128] = "";
    const int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = -1;
    while (fd >= 0 && (n = read(fd, head, sizeof head - 1)) < 0 && errno == EINTR) continue;
    const int number = n < 0 ? errno : 0;
    if (fd >= 0) close(fd);
    errno = number;
    return n > 0 && memmem(head, (size_t)n, format, sizeof format - 1);
}

static fkv_status fail_folder(folder_walk *w, fkv_err *err)
{
    return fkv_fail_at(err, fkv_errno_is_system(errno) ? FKV_E_SYSTEM : FKV_E_INPUT, w->path.data, 0, NULL,
                       "the folder can't be read: %s", strerror(errno));
}

/* The folder's names that are not hidden, of which *n are the caller's to free. An output of ours has none.
 */
static fkv_status list_folder(folder_walk *w, fkv_words *names, fkv_err *err)
{
    fkv_status st = FKV_OK;
    bool ours = false;
    DIR *d = opendir(w->path.data);
    if (!d) return fail_folder(w, err);
    for (;;) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e && errno) st = fail_folder(w, err);
        if (!e || st) break;
        if (e->d_name[0] == '.') continue;
        ours = is_manifest(e->d_name) && is_ours(dirfd(d), e->d_name);
        if (fkv_errno_is_system(errno)) st = fail_folder(w, err);
        if (ours || st) break;
        char **more = (names->n & (names->n - 1)) == 0
                          ? fkv_realloc(names->at, names->n ? 2 * names->n : 1, sizeof *more)
                          : names->at;
        if (more) names->at = more;
        if (!more || !(more[names->n] = strdup(e->d_name))) {
            st = fkv_fail_memory(err);
            break;
        }
        names->n++;
    }
    closedir(d);
    for (size_t i = 0; ours && i < names->n; i++) free(names->at[i]);
    if (ours) names->n = 0;
    return st;
}

static fkv_status add_folder(folder_walk *w, int depth, fkv_err *err);

/* What is at w->path: a file is added, a folder gone through, anything else left out. */
static fkv_status add_found(folder_walk *w, int depth, fkv_err *err)
{
    struct stat sb;
    const char *path = w->path.data;
    if (lstat(path, &sb)) return errno == ENOENT ? FKV_OK : fail_folder(w, err);
    if (S_ISDIR(sb.st_mode)) return add_folder(w, depth + 1, err);
    /* A link that leads nowhere is added: it is refused when it is opened. */
    if (S_ISLNK(sb.st_mode) && stat(path, &sb) == 0 && !S_ISREG(sb.st_mode)) return FKV_OK;
    if (!S_ISREG(sb.st_mode) && !S_ISLNK(sb.st_mode)) return FKV_OK;
    w->files++;
    return add_file(w->key, path, path + w->skip, w->place, w->job, err);
}

/* Goes through the folder at w->path, which is left as it was. */
static fkv_status add_folder(folder_walk *w, int depth, fkv_err *err)
{
    fkv_words names = {0};
    const size_t n = w->path.len;
    if (depth > DEPTH_MOST)
        return fkv_fail_at(err, FKV_E_INPUT, w->path.data, 0, NULL, "more than %d folders deep", DEPTH_MOST);
    fkv_status st = list_folder(w, &names, err);
    for (size_t i = 0; !st && i < names.n; i++) {
        if (w->path.data[n - 1] != '/') st = fkv_buf_puts(&w->path, "/", err);
        if (!st) st = fkv_buf_puts(&w->path, names.at[i], err);
        if (!st) st = add_found(w, depth, err);
        w->path.len = n;
        w->path.data[n] = '\0';
    }
    for (size_t i = 0; i < names.n; i++) free(names.at[i]);
    free(names.at);
    return st;
}

/* ---- words ---- */

/* The files in the folder at path, which ends in "/". */
static fkv_status add_matched_folder(folder_walk *w, const char *path, bool named, fkv_err *err)
{
    struct stat sb;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    fkv_buf_clear(&w->path);
    fkv_status st = fkv_buf_append(&w->path, path, n, err);
    if (st) return st;
    if (!named && !lstat(w->path.data, &sb) && S_ISLNK(sb.st_mode)) return FKV_OK;
    return add_folder(w, 0, err);
}

fkv_status fkv_input_files_add(const fkv_key *key, const char *word, const fkv_place *place, fkv_job *job,
                               fkv_err *err)
{
    fkv_buf pattern = {0};
    glob_t found = {0};
    folder_walk w = {.key = key, .place = place, .job = job};
    const bool named = !strpbrk(word, "*?[");
    fkv_status st = full_pattern(word, place, &pattern, &w.skip, err);
    if (st) goto out;
    found.gl_opendir = watched_opendir;
    found.gl_readdir = watched_readdir;
    found.gl_closedir = close_folder;
    found.gl_lstat = watched_lstat;
    found.gl_stat = watched_stat;
    glob_errno = 0;
    const int rc = glob(pattern.data, GLOB_MARK | GLOB_NOSORT | GLOB_ALTDIRFUNC, NULL, &found);
    if (rc == GLOB_NOSPACE) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if (glob_errno) {
        st = fkv_fail_at(err, FKV_E_SYSTEM, pattern.data, 0, NULL, "can't be looked for: %s",
                         strerror(glob_errno));
        goto out;
    }
    for (size_t i = 0; !st && i < found.gl_pathc; i++) {
        const char *path = found.gl_pathv[i];
        const size_t n = strlen(path);
        if (n <= w.skip) continue;
        if (path[n - 1] == '/') {
            st = add_matched_folder(&w, path, named, err);
        } else {
            w.files++;
            st = add_file(key, path, path + w.skip, place, job, err);
        }
    }
    if (!st && !w.files)
        st = found.gl_pathc
                 ? fkv_key_fail(key, place, err,
                                "\"%s\" matches no file, only folders without one (hidden names and outputs "
                                "of this program do not count)",
                                word)
                 : fkv_key_fail(key, place, err, "\"%s\" matches no file", word);
out:
    globfree(&found);
    fkv_buf_free(&pattern);
    fkv_buf_free(&w.path);
    return st;
}

static int by_name(const void *a, const void *b)
{
    const fkv_input_file *x = a, *y = b;
    const int order = strcmp(x->name, y->name);
    return order ? order : strcmp(x->path, y->path);
}

void fkv_input_files_sort(fkv_job *job)
{
    fkv_input_file *files = job->input.files;
    size_t kept = 0;
    if (!job->input.n_files) return;
    qsort(files, job->input.n_files, sizeof *files, by_name);
    for (size_t i = 0; i < job->input.n_files; i++) {
        if (kept && strcmp(files[kept - 1].name, files[i].name) == 0) {
            free(files[i].path);
            free(files[i].name);
            continue;
        }
        files[kept++] = files[i];
    }
    job->input.n_files = kept;
}
