/* The folder of a comparison: see compare_folder.h. */
#include "runner/compare_folder.h"

#include <dirent.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runner/base/file.h"

/* Files of ours begin so; another program's may have their names. */
static const char begins[] = "{\"format\":\"fairkv-compare/";

char *fkv_compare_folder_path(const fkv_job *job, const char *out)
{
    char *path = NULL;
    if (out) return strdup(out);
    size_t n = strlen(job->job.output);
    while (n > 1 && job->job.output[n - 1] == '/') n--;
    return asprintf(&path, "%.*s-compare", (int)n, job->job.output) < 0 ? NULL : path;
}

static bool is_ours(const char *name)
{
    static const char *const names[] = {"compare.json", "compare.html", "compare.json.tmp",
                                        "compare.html.tmp", FKV_COMPARE_PREDICTIONS};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    return !strcmp(name, ".") || !strcmp(name, "..");
}

static fkv_status check_names(const char *path, fkv_err *err)
{
    char first[256] = "";
    DIR *dir = opendir(path);
    if (!dir) return fkv_fail_errno(err, path, "open");
    for (const struct dirent *e; (e = readdir(dir));)
        if (!is_ours(e->d_name) && (!first[0] || strcmp(e->d_name, first) < 0))
            snprintf(first, sizeof first, "%s", e->d_name);
    closedir(dir);
    if (!first[0]) return FKV_OK;
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL,
                       "is neither empty nor a comparison's folder: it holds \"%.100s\"", first);
}

static fkv_status check_json(const char *path, fkv_err *err)
{
    char *file = fkv_path_join(path, "compare.json"), start[sizeof begins] = "";
    FILE *f = file ? fopen(file, "re") : NULL;
    fkv_status st = file ? FKV_OK : fkv_fail_memory(err);
    if (f && fread(start, 1, sizeof begins - 1, f) < sizeof begins - 1) start[0] = '\0';
    if (f && strcmp(start, begins) != 0)
        st = fkv_fail_at(err, FKV_E_INPUT, file, 0, NULL, "is no comparison of ours");
    if (f) fclose(f);
    free(file);
    return st;
}

fkv_status fkv_compare_folder_begin(const char *path, fkv_err *err)
{
    struct stat sb;
    if (!stat(path, &sb) && !S_ISDIR(sb.st_mode))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "is there and no folder");
    fkv_status st = fkv_dir_make(path, err);
    if (!st) st = check_names(path, err);
    return st ? st : check_json(path, err);
}

static fkv_status write_file(const char *folder, const char *name, const fkv_buf *text, fkv_err *err)
{
    char *path = fkv_path_join(folder, name);
    const fkv_status st = path ? fkv_file_replace(path, text->data, text->len, err) : fkv_fail_memory(err);
    free(path);
    return st;
}

fkv_status fkv_compare_folder_finish(const char *path, const fkv_comparison *c, fkv_export_rows *rows,
                                     fkv_err *err)
{
    int64_t n;
    fkv_buf json = {0};
    fkv_markup page = {.err = err};
    fkv_compare_html(c, &page);
    fkv_status st = page.st ? page.st : fkv_compare_json(c, &json, err);
    if (!st) st = fkv_export_rows_publish(rows, &n, err);
    if (!st) st = write_file(path, "compare.html", &page.buf, err);
    if (!st) st = write_file(path, "compare.json", &json, err);
    fkv_markup_free(&page);
    fkv_buf_free(&json);
    return st;
}

static int remove_empty(const char *path, const struct stat *sb, int kind, struct FTW *at)
{
    (void)sb;
    (void)at;
    if (kind == FTW_DP) rmdir(path);
    return 0;
}

void fkv_compare_folder_leave(const char *path)
{
    char *below = fkv_path_join(path, FKV_COMPARE_PREDICTIONS);
    if (below) nftw(below, remove_empty, 16, FTW_DEPTH | FTW_PHYS);
    free(below);
    rmdir(path);
}
