/* The job written out: as an INI file, as an identity, as help. All three walk
 * the key table. Owns no memory. Not for: what a value means (job_value.c). */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jobs/job_keys.h"
#include "jobs/known_archives.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"
#include "runner/base/utf8.h"

/* inih's lines hold 199 bytes; the rest is indentation, key and backslash. */
enum { PIECE_MAX = 140 };

/* Whether a line may end before text[n] and the next begin there: inih strips
 * blanks at both ends, takes ';' and '#' for comments, and a piece must not look
 * like a key of its own. Lines are checked one by one, so characters stay whole, and "$$" too. */
static bool may_cut(const char *section, const char *text, size_t n)
{
    const bool inside = ((unsigned char)text[n] & 0xc0) == 0x80; /* of a character */
    return !inside && !fkv_is_blank(text[n - 1]) && text[n - 1] != '\\' && text[n - 1] != '$' &&
           !fkv_is_blank(text[n]) && !strchr(";#", text[n]) && !fkv_key_looks_like_one(section, text + n);
}

/* text over as many lines as it needs. glue: what ends a line that goes on. */
static fkv_status put_pieces(const char *section, const char *text, const char *glue, fkv_buf *out,
                             fkv_err *err)
{
    fkv_status st = FKV_OK;
    size_t left = strlen(text);
    while (!st && left > PIECE_MAX) {
        size_t n = PIECE_MAX;
        while (n && !may_cut(section, text, n)) n--;
        if (n == 0)
            return fkv_fail_at(err, FKV_E_INPUT, NULL, 0, section, "a value can't be written on short lines");
        st = fkv_buf_printf(out, err, "%.*s%s\n    ", (int)n, text, glue);
        text += n;
        left -= n;
    }
    if (!st) st = fkv_buf_printf(out, err, "%s\n", text);
    return st;
}

/* Whether "$" at p would be taken for a variable's. */
static bool needs_dollar(const char *p)
{
    return p[0] == '$' && (p[1] == '{' || p[1] == '_' || isalpha((unsigned char)p[1]));
}

/* text as a scalar value. */
static fkv_status put_scalar(const char *section, const char *text, fkv_buf *out, fkv_err *err)
{
    fkv_buf plain = {0};
    fkv_status st = FKV_OK;
    for (const char *p = text; *p && !st; p++) {
        if (needs_dollar(p)) st = fkv_buf_puts(&plain, "$", err);
        if (!st) st = fkv_buf_append(&plain, p, 1, err);
    }
    if (!st) st = put_pieces(section, plain.data ? plain.data : "", "", out, err);
    fkv_buf_free(&plain);
    return st;
}

/* A word's last blank, which is escaped: inih would strip it from the line's end. */
static fkv_status guard_end(fkv_buf *word, fkv_err *err)
{
    if (word->len < 2 || !fkv_is_blank(word->data[word->len - 1])) return FKV_OK;
    const char class[] = {'[', '\\', word->data[word->len - 1], ']', '\0'};
    word->len -= 2;
    return fkv_buf_puts(word, class, err);
}

/* path as a pattern that matches it alone. Control characters can't stand in a
 * job file; '?' comes nearest. */
static fkv_status put_file_pattern(const char *section, const char *path, fkv_buf *out, fkv_err *err)
{
    fkv_buf word = {0};
    fkv_status st = FKV_OK;
    for (const char *p = path; *p && !st; p++) {
        if ((unsigned char)*p < ' ' || *p == 0x7f) {
            st = fkv_buf_puts(&word, "?", err);
        } else if (*p == ';') {
            st = fkv_buf_puts(&word, "[;]", err);
        } else if (*p == '$') {
            st = fkv_buf_puts(&word, "[$]", err);
        } else {
            if (strchr(" *?[]\\", *p)) st = fkv_buf_puts(&word, "\\", err);
            if (!st) st = fkv_buf_append(&word, p, 1, err);
        }
    }
    if (!st) st = guard_end(&word, err);
    if (!st) st = put_pieces(section, word.data ? word.data : "", "\\", out, err);
    fkv_buf_free(&word);
    return st;
}

/* Whether a value of one piece can say it. */
static bool is_plain(const char *path)
{
    const size_t n = strlen(path);
    if (fkv_utf8_span(path, n) != n || !n || fkv_is_blank(path[n - 1]) || strchr(" \"'~", path[0]))
        return false;
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)path[i] < ' ' || path[i] == 0x7f) return false;
        if (i && fkv_is_blank(path[i - 1]) && strchr(";#", path[i])) return false;
    }
    return true;
}

fkv_status fkv_job_write_path(const char *section, const char *path, bool pattern, fkv_buf *out, fkv_err *err)
{
    if (pattern && fkv_utf8_span(path, strlen(path)) == strlen(path))
        return put_file_pattern(section, path, out, err);
    if (!pattern && is_plain(path)) return put_scalar(section, path, out, err);
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL,
                       "such a name can't stand in a job file: rename it, or make a link to it");
}

static char *absolute(const char *path, fkv_err *err)
{
    char *cwd = path[0] == '/' ? strdup("") : getcwd(NULL, 0);
    char *whole = cwd ? fkv_path_join(cwd, path) : NULL;
    if (!cwd && errno != ENOMEM)
        fkv_fail_errno(err, path, "the working directory");
    else if (!whole)
        fkv_fail_memory(err);
    free(cwd);
    return whole;
}

static const void *at_of(const fkv_key *key, const fkv_job *job)
{
    return (const char *)job + key->offset;
}

static bool is_words(const fkv_key *key)
{
    return key->type == FKV_KEY_MEMBERS || key->type == FKV_KEY_NAMES;
}

static fkv_status put_archives(const fkv_key *key, const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(out, "\n", err);
    for (size_t i = 0; !st && i < job->input.n_files; i++) {
        char *path = absolute(job->input.files[i].path, err);
        if (!path) return FKV_E_SYSTEM;
        st = fkv_buf_puts(out, "    ", err);
        if (!st) st = put_file_pattern(key->section, path, out, err);
        free(path);
    }
    return st;
}

static fkv_status put_words(const fkv_key *key, const fkv_words *words, fkv_buf *out, fkv_err *err)
{
    fkv_status st = words->n ? FKV_OK : fkv_buf_puts(out, "\n", err);
    for (size_t i = 0; !st && i < words->n; i++) {
        const char *pattern = words->at[i];
        fkv_buf word = {0};
        if (i) st = fkv_buf_puts(out, "    ", err);
        /* What a line must not begin with. */
        if (!st && (strchr(";#", pattern[0]) || fkv_key_looks_like_one(key->section, pattern)))
            st = fkv_buf_puts(&word, "\\", err);
        for (const char *p = pattern; *p && !st; p++) {
            if (needs_dollar(p)) st = fkv_buf_puts(&word, "$", err);
            /* After an escaped blank it would begin a comment. */
            if (!st && *p == ';' && p > pattern && fkv_is_blank(p[-1])) st = fkv_buf_puts(&word, "\\", err);
            if (!st) st = fkv_buf_append(&word, p, 1, err);
        }
        if (!st) st = guard_end(&word, err);
        if (!st) st = put_pieces(key->section, word.data ? word.data : "", "\\", out, err);
        fkv_buf_free(&word);
    }
    return st;
}

/* Compact JSON in ASCII, without anything that means something to the job file. */
static fkv_status put_json(const char *json, fkv_buf *out, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (const char *p = json; *p && !st; p++) {
        if (strchr(" ;#$", *p)) /* only strings hold them */
            st = fkv_buf_printf(out, err, "\\u%04x", (unsigned)*p);
        else
            st = fkv_buf_append(out, p, 1, err);
    }
    return st;
}

/* The stop strings as a JSON array. */
static fkv_status stop_json(const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (!job->sampling.n_stop) return FKV_OK;
    st = fkv_buf_puts(out, "[", err);
    for (size_t i = 0; !st && i < job->sampling.n_stop; i++) {
        json_t *text = json_string(job->sampling.stop[i]);
        char *dump = text ? fkv_json_dump(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
        json_decref(text);
        if (!dump) return fkv_fail_memory(err);
        if (i) st = fkv_buf_puts(out, ",", err);
        if (!st) st = put_json(dump, out, err);
        free(dump);
    }
    return st ? st : fkv_buf_puts(out, "]", err);
}

/* The value of a key of one piece, for identity and job.ini. */
static fkv_status put_one(const fkv_key *key, const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    if (key->type == FKV_KEY_STOP) return stop_json(job, out, err);
    if (key->type != FKV_KEY_OBJECT) return fkv_key_print(key, job, out, err);
    const char *json = *(char *const *)at_of(key, job);
    return json ? put_json(json, out, err) : FKV_OK;
}

static fkv_status put_value(const fkv_key *key, const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    fkv_buf text = {0};
    char *path = NULL;
    if (key->type == FKV_KEY_ARCHIVES) return put_archives(key, job, out, err);
    if (is_words(key)) return put_words(key, at_of(key, job), out, err);
    fkv_status st = put_one(key, job, &text, err);
    if (!st && text.len && fkv_key_is_path(key, text.data)) {
        path = absolute(text.data, err);
        if (!path) st = FKV_E_SYSTEM;
    }
    if (!st) st = put_scalar(key->section, path ? path : text.len ? text.data : "", out, err);
    free(path);
    fkv_buf_free(&text);
    return st;
}

fkv_status fkv_job_write_ini(const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    fkv_status st = fkv_buf_puts(out, "# The job as it was resolved; paths are absolute.\n", err);
    const char *section = "";
    for (size_t i = 0; !st && i < fkv_n_keys; i++) {
        const fkv_key *key = &fkv_keys[i];
        if (strcmp(section, key->section) != 0) st = fkv_buf_printf(out, err, "[%s]\n", key->section);
        section = key->section;
        if (!st) st = fkv_buf_printf(out, err, "%s = ", key->name);
        if (!st) st = put_value(key, job, out, err);
    }
    return st;
}

/* "size:hash" of a file's ends. */
static fkv_status put_file_identity(const char *path, fkv_buf *out, fkv_err *err)
{
    char hex[17];
    uint64_t hash;
    fkv_status st = fkv_hash_file_ends(path, &hash, err);
    if (st) return st;
    fkv_hash_hex(hash, hex);
    const int64_t size = fkv_file_size(path);
    if (size < 0) return fkv_fail_errno(err, path, "stat");
    return fkv_buf_printf(out, err, "%lld:%s", (long long)size, hex);
}

static fkv_status put_archives_identity(const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    json_t *list;
    fkv_status st = fkv_known_archives_make(job, &list, err);
    if (!st) st = fkv_known_archives_identity(list, out, err);
    json_decref(list);
    return st;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names of the folder's *.safetensors, sorted; the caller frees them. */
static fkv_status list_weights(const char *dir, char ***names, size_t *n, fkv_err *err)
{
    static const char suffix[] = ".safetensors";
    fkv_status st = FKV_OK;
    const struct dirent *entry;
    DIR *d = opendir(dir);
    if (!d) return fkv_fail_open(err, dir);
    while (!st) {
        errno = 0;
        if (!(entry = readdir(d))) {
            if (errno) st = fkv_fail_errno(err, dir, "read the folder");
            break;
        }
        const size_t len = strlen(entry->d_name);
        if (len < sizeof suffix || strcmp(entry->d_name + len - (sizeof suffix - 1), suffix) != 0) continue;
        char **more = fkv_realloc(*names, *n + 1, sizeof *more);
        if (more) *names = more;
        if (!more || !(more[*n] = strdup(entry->d_name)))
            st = fkv_fail_memory(err);
        else
            (*n)++;
    }
    closedir(d);
    if (*n) qsort(*names, *n, sizeof **names, by_text);
    return st;
}

static fkv_status add_model_file(const char *dir, const char *name, bool required, fkv_buf *all, fkv_err *err)
{
    char *path = fkv_path_join(dir, name);
    if (!path) return fkv_fail_memory(err);
    fkv_status st = FKV_OK;
    if (required || fkv_file_exists(path)) {
        st = fkv_buf_printf(all, err, "%s:", name);
        if (!st) st = put_file_identity(path, all, err);
    }
    if (!st) st = fkv_buf_puts(all, "\n", err);
    free(path);
    return st;
}

static fkv_status put_model_identity(const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    fkv_buf all = {0};
    char **names = NULL, hex[17];
    size_t n = 0;
    const char *dir = job->model.path;
    static const char *const others[] = {"generation_config.json",  "tokenizer.json",
                                         "tokenizer_config.json",   "chat_template.jinja",
                                         "special_tokens_map.json", "added_tokens.json"};
    fkv_status st = add_model_file(dir, "config.json", true, &all, err);
    for (size_t i = 0; !st && i < sizeof others / sizeof *others; i++)
        st = add_model_file(dir, others[i], false, &all, err);
    if (!st && !fkv_job_is_dummy(job)) st = list_weights(dir, &names, &n, err);
    for (size_t i = 0; !st && i < n; i++) st = add_model_file(dir, names[i], true, &all, err);
    if (!st) {
        fkv_hash_hex(fkv_hash(all.data, all.len, 0), hex);
        st = fkv_buf_puts(out, hex, err);
    }
    for (size_t i = 0; i < n; i++) free(names[i]);
    free(names);
    fkv_buf_free(&all);
    return st;
}

static fkv_status put_identity(const fkv_key *key, const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    fkv_status st = FKV_OK;
    int choice;
    if (key->formerly) {
        memcpy(&choice, at_of(key, job), sizeof choice);
        if (choice == 0) return fkv_buf_puts(out, key->formerly, err);
    }
    if (key->identity == FKV_ID_MODEL) return put_model_identity(job, out, err);
    if (key->identity == FKV_ID_FILES) return put_archives_identity(job, out, err);
    if (key->identity == FKV_ID_FILE) {
        const char *path = *(char *const *)at_of(key, job);
        if (!path) return FKV_OK;
        if (!fkv_key_is_path(key, path)) return fkv_buf_puts(out, path, err);
        return put_file_identity(path, out, err);
    }
    if (!is_words(key)) return put_one(key, job, out, err);
    const fkv_words *words = at_of(key, job);
    for (size_t i = 0; !st && i < words->n; i++) {
        if (i) st = fkv_buf_puts(out, " ", err);
        if (!st) st = fkv_buf_puts(out, words->at[i], err);
    }
    return st;
}

fkv_status fkv_job_write_identity(const fkv_job *job, fkv_buf *out, fkv_err *err)
{
    fkv_buf value = {0};
    fkv_status st = fkv_buf_puts(out, "{", err);
    bool first = true;
    for (size_t i = 0; !st && i < fkv_n_keys; i++) {
        char name[FKV_KEY_NAME_MAX];
        if (fkv_keys[i].identity == FKV_ID_NO) continue;
        fkv_buf_clear(&value);
        fkv_key_full_name(&fkv_keys[i], name);
        if ((st = fkv_buf_reserve(&value, 0, err))) break;
        if ((st = put_identity(&fkv_keys[i], job, &value, err))) break;
        if (fkv_keys[i].younger && !strcmp(value.data, fkv_keys[i].fallback)) continue;
        st = fkv_buf_printf(out, err, "%s\"%s\":", first ? "" : ",", name);
        if (!st) st = fkv_json_put_string(out, value.data, value.len, err);
        first = false;
    }
    if (!st) st = fkv_buf_puts(out, "}", err);
    fkv_buf_free(&value);
    return st;
}

/* "lo to hi"; what has no bound in practice has none in words. */
static fkv_status put_range(const fkv_key *key, const char *before, fkv_buf *out, fkv_err *err)
{
    fkv_status st =
        fkv_buf_printf(out, err, "%s%s%.0f", before, key->lo_open ? "more than " : "from ", key->lo);
    if (!st && key->hi < FKV_KEY_WHOLE_MAX) st = fkv_buf_printf(out, err, " to %.0f", key->hi);
    return st;
}

/* What a key's value may be, in words. */
static fkv_status put_type(const fkv_key *key, fkv_buf *out, fkv_err *err)
{
    switch (key->type) {
    case FKV_KEY_TEXT: return fkv_buf_puts(out, "text", err);
    case FKV_KEY_PATH: return fkv_buf_puts(out, "path", err);
    case FKV_KEY_FILE: return fkv_buf_printf(out, err, "one of: %s, or a path", key->choices);
    case FKV_KEY_INT: return put_range(key, "whole number ", out, err);
    case FKV_KEY_SIZE: return put_range(key, "bytes, K, M or G behind it, ", out, err);
    case FKV_KEY_AUTO: return put_range(key, "auto, or whole number ", out, err);
    case FKV_KEY_SEED: return fkv_buf_puts(out, "whole number from 0 to 18446744073709551615", err);
    case FKV_KEY_REAL: return put_range(key, "number ", out, err);
    case FKV_KEY_CHOICE:
    case FKV_KEY_FLAG: return fkv_buf_printf(out, err, "one of: %s", key->choices);
    case FKV_KEY_BUDGET:
    case FKV_KEY_ERRORS: return put_range(key, "percentage, or whole number ", out, err);
    case FKV_KEY_PART: return fkv_buf_printf(out, err, "i/n, with i below n, and n up to %.0f", key->hi);
    case FKV_KEY_ARCHIVES: return fkv_buf_puts(out, "paths and patterns", err);
    case FKV_KEY_MEMBERS: return fkv_buf_puts(out, "patterns", err);
    case FKV_KEY_NAMES: return fkv_buf_puts(out, "names", err);
    case FKV_KEY_STOP: return fkv_buf_puts(out, "JSON array of strings", err);
    case FKV_KEY_OBJECT: return fkv_buf_puts(out, "JSON object", err);
    case FKV_KEY_DATE: return fkv_buf_puts(out, "YYYY-MM-DD", err);
    }
    return FKV_OK;
}

fkv_status fkv_job_write_help(fkv_buf *out, fkv_err *err)
{
    enum { COLUMN = 36 };
    fkv_status st = FKV_OK;
    const char *section = "";
    for (size_t i = 0; !st && i < fkv_n_keys; i++) {
        const fkv_key *key = &fkv_keys[i];
        const char *fallback = key->fallback ? key->fallback : "";
        if (strcmp(section, key->section) != 0)
            st = fkv_buf_printf(out, err, "%s[%s]\n", i ? "\n" : "", key->section);
        section = key->section;
        const int n = (int)(strlen(key->name) + strlen(" = ") + strlen(fallback));
        if (!st)
            st = fkv_buf_printf(out, err, "%s = %s%*s  %s", key->name, fallback, n < COLUMN ? COLUMN - n : 0,
                                "", key->fallback ? "" : "required; ");
        if (!st) st = put_type(key, out, err);
        if (!st) st = fkv_buf_printf(out, err, "\n    %s\n", key->help);
    }
    return st;
}
