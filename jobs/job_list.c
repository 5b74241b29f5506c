/* The job file's lists: words separated by white space, the files that the
 * patterns of input.archives match, and JSON: the array of sampling.stop, objects.
 *
 * In a word a backslash makes the next character plain (a blank, a wildcard); at
 * the end of a line it joins the word with the next, continued line. What is
 * stored belongs to the fkv_job. Not for: matching member names (members.c).
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "jobs/job_keys.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"
#include "runner/base/utf8.h"

/* The next word of *text into word, escapes kept. False at the end. */
static bool next_word(const char **text, fkv_buf *word, fkv_status *st, fkv_err *err)
{
    const char *p = *text;
    fkv_buf_clear(word);
    *st = FKV_OK;
    while (fkv_is_blank(*p)) p++;
    if (!*p) return false;
    while (*p && !fkv_is_blank(*p) && !*st) {
        size_t n = 1;
        if (p[0] == '\\' && p[1] == '\n') {
            p += 2;
            continue;
        }
        if (p[0] == '\\' && p[1]) n = 2;
        *st = fkv_buf_append(word, p, n, err);
        p += n;
    }
    *text = p;
    return !*st;
}

/* Whether a word needs no escape wherever it is written. */
static bool is_name(const char *word)
{
    for (const char *p = word; *p; p++) {
        if (!isalnum((unsigned char)*p) && !strchr("_-.", *p) && (unsigned char)*p < 0x80) return false;
    }
    return true;
}

static fkv_status parse_words(const fkv_key *key, const char *text, const fkv_place *place, fkv_words *words,
                              fkv_err *err)
{
    fkv_buf word = {0};
    fkv_status st;
    while (next_word(&text, &word, &st, err)) {
        const char *w = word.data ? word.data : "";
        if (key->type == FKV_KEY_NAMES && !is_name(w)) {
            st = fkv_key_fail(key, place, err, "\"%s\" can't be a dataset's name", w);
            break;
        }
        char **more = fkv_realloc(words->at, words->n + 1, sizeof *more);
        if (more) words->at = more;
        if (!more || !(more[words->n] = strdup(w))) {
            st = fkv_fail_memory(err);
            break;
        }
        words->n++;
    }
    fkv_buf_free(&word);
    if (!st && !words->n && key->type == FKV_KEY_MEMBERS)
        st = fkv_key_fail(key, place, err, "names no pattern");
    return st;
}

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

/* Adds the files, not the folders, that word matches. */
static fkv_status add_matches(const fkv_key *key, const char *word, const fkv_place *place, fkv_job *job,
                              fkv_err *err)
{
    fkv_buf pattern = {0};
    glob_t found = {0};
    size_t skip, files = 0;
    fkv_status st = full_pattern(word, place, &pattern, &skip, err);
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
        if (n <= skip || path[n - 1] == '/') continue;
        files++;
        st = add_file(key, path, path + skip, place, job, err);
    }
    if (!st && !files)
        st = fkv_key_fail(key, place, err, "\"%s\" matches %s", word,
                          found.gl_pathc ? "a folder, not a file" : "no file");
out:
    globfree(&found);
    fkv_buf_free(&pattern);
    return st;
}

static int by_name(const void *a, const void *b)
{
    const fkv_input_file *x = a, *y = b;
    const int order = strcmp(x->name, y->name);
    return order ? order : strcmp(x->path, y->path);
}

static fkv_status parse_archives(const fkv_key *key, const char *text, const fkv_place *place, fkv_job *job,
                                 fkv_err *err)
{
    fkv_buf word = {0};
    fkv_status st;
    bool any = false;
    while (next_word(&text, &word, &st, err)) {
        any = true;
        if ((st = add_matches(key, word.data ? word.data : "", place, job, err))) break;
    }
    fkv_buf_free(&word);
    if (st) return st;
    if (!any) return fkv_key_fail(key, place, err, "names no file");
    fkv_input_file *files = job->input.files;
    size_t kept = 0;
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
    return FKV_OK;
}

static fkv_status parse_stop(const fkv_key *key, const char *text, const fkv_place *place, fkv_job *job,
                             fkv_err *err)
{
    json_error_t je;
    fkv_status st = FKV_OK;
    if (!*text) return FKV_OK;
    json_t *list = fkv_json_parse(text, strlen(text), JSON_REJECT_DUPLICATES, &je);
    if (!list && json_error_code(&je) == json_error_out_of_memory) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if (!json_is_array(list)) {
        st = fkv_key_fail(key, place, err, "is not a JSON array of strings%s%s", list ? "" : ": ",
                          list ? "" : je.text);
        goto out;
    }
    job->sampling.stop = fkv_calloc(json_array_size(list), sizeof *job->sampling.stop);
    if (!job->sampling.stop) {
        st = fkv_fail_memory(err);
        goto out;
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        if (!json_is_string(item) || json_string_length(item) == 0) {
            st = fkv_key_fail(key, place, err, "item %zu is not a string of at least one character", i + 1);
            goto out;
        }
        char *copy = strdup(json_string_value(item));
        if (!copy) {
            st = fkv_fail_memory(err);
            goto out;
        }
        job->sampling.stop[job->sampling.n_stop++] = copy;
    }
out:
    json_decref(list);
    return st;
}

static fkv_status parse_object(const fkv_key *key, const char *text, const fkv_place *place, char **out,
                               fkv_err *err)
{
    json_error_t je;
    fkv_status st = FKV_OK;
    if (!*text) return FKV_OK;
    json_t *object = fkv_json_parse(text, strlen(text), JSON_REJECT_DUPLICATES, &je);
    if (json_is_object(object)) {
        *out = fkv_json_dump(object, JSON_COMPACT | JSON_ENSURE_ASCII);
        if (!*out) st = fkv_fail_memory(err);
    } else if (!object && json_error_code(&je) == json_error_out_of_memory) {
        st = fkv_fail_memory(err);
    } else {
        st = fkv_key_fail(key, place, err, "is not a JSON object%s%s", object ? "" : ": ",
                          object ? "" : je.text);
    }
    json_decref(object);
    return st;
}

fkv_status fkv_list_parse(const fkv_key *key, const char *text, const fkv_place *place, fkv_job *job,
                          fkv_err *err)
{
    if (key->type == FKV_KEY_ARCHIVES) return parse_archives(key, text, place, job, err);
    void *at = (char *)job + key->offset;
    if (key->type == FKV_KEY_MEMBERS || key->type == FKV_KEY_NAMES)
        return parse_words(key, text, place, at, err);
    if (key->type == FKV_KEY_OBJECT) return parse_object(key, text, place, at, err);
    return parse_stop(key, text, place, job, err);
}
