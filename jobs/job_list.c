/* The job file's lists: words separated by white space, of input.archives the files that they
 * stand for (input_files.c), and JSON: the array of sampling.stop, objects.
 *
 * In a word a backslash makes the next character plain (a blank, a wildcard); at
 * the end of a line it joins the word with the next, continued line. What is
 * stored belongs to the fkv_job. Not for: matching member names (members.c).
 */
#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/input_files.h"
#include "jobs/job_keys.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"

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

/* A pattern's error beside those of patterns before it: they are one key's. */
static void add_message(fkv_err *all, const fkv_err *one)
{
    const size_t n = strlen(all->message);
    if (!all->status)
        *all = *one;
    else
        snprintf(all->message + n, sizeof all->message - n, "; %.300s", one->message);
}

static fkv_status parse_archives(const fkv_key *key, const char *text, const fkv_place *place, fkv_job *job,
                                 fkv_err *err)
{
    fkv_buf word = {0};
    fkv_status st;
    fkv_err wrong = {0};
    bool any = false;
    while (next_word(&text, &word, &st, err)) {
        fkv_err one = {0};
        any = true;
        if (!fkv_input_files_add(key, word.data ? word.data : "", place, job, &one)) continue;
        if (one.status != FKV_E_INPUT) wrong = (fkv_err){0};
        add_message(&wrong, &one);
        if (one.status != FKV_E_INPUT) break;
    }
    fkv_buf_free(&word);
    fkv_input_files_sort(job);
    if (st) return st;
    if (wrong.status && err && !err->status) *err = wrong;
    if (wrong.status) return wrong.status;
    return any ? FKV_OK : fkv_key_fail(key, place, err, "names no file");
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
