/* A job's archives, known by what is in them: see known_archives.h. */
#include "jobs/known_archives.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"

/* More of them stand as their number and one hash: a message has to show them. */
enum { SHOWN = 4, HEX = 16 };

/* A content, and its place in the list. */
typedef struct content {
    int64_t size;
    const char *xxh3; /* 16 hex digits, borrowed */
    size_t at;
} content;

static fkv_status make_one(const fkv_input_file *file, json_t *list, fkv_err *err)
{
    char hex[HEX + 1];
    uint64_t hash;
    const fkv_status st = fkv_hash_file_ends(file->path, &hash, err);
    if (st) return st;
    const int64_t size = fkv_file_size(file->path);
    if (size < 0) return fkv_fail_errno(err, file->path, "stat");
    fkv_hash_hex(hash, hex);
    json_t *name = json_string(file->name);
    if (!name) name = json_string(""); /* not UTF-8: rows can't say it either */
    json_t *o = json_object();
    if (!name || !o || json_object_set(o, "name", name) ||
        json_object_set_new(o, "size", json_integer(size)) ||
        json_object_set_new(o, "xxh3", json_string(hex)) || json_array_append(list, o)) {
        json_decref(name);
        json_decref(o);
        return fkv_fail_memory(err);
    }
    json_decref(name);
    json_decref(o);
    return FKV_OK;
}

fkv_status fkv_known_archives_make(const fkv_job *job, json_t **list, fkv_err *err)
{
    fkv_status st = (*list = json_array()) ? FKV_OK : fkv_fail_memory(err);
    for (size_t i = 0; !st && i < job->input.n_files; i++) st = make_one(&job->input.files[i], *list, err);
    if (st) {
        json_decref(*list);
        *list = NULL;
    }
    return st;
}

static bool is_hex(const char *text)
{
    size_t n = 0;
    while (isdigit((unsigned char)text[n]) || (text[n] >= 'a' && text[n] <= 'f')) n++;
    return n == HEX && !text[n];
}

fkv_status fkv_known_archives_check(const json_t *list, const char *path, fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (!json_is_array(list)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, "archives", "must be an array");
    for (size_t i = 0; !st && i < json_array_size(list); i++) {
        const json_t *o = json_array_get(list, i);
        const char *name, *hex;
        int64_t size;
        if (!json_is_object(o))
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, "archives", "must hold objects");
        st = fkv_json_str(o, "name", path, &name, err);
        if (!st) st = fkv_json_i64(o, "size", 0, INT64_MAX, path, &size, err);
        if (!st) st = fkv_json_str(o, "xxh3", path, &hex, err);
        if (!st && !is_hex(hex)) st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "xxh3", "must be 16 hex digits");
    }
    return st;
}

static int by_content(const void *a, const void *b)
{
    const content *x = a, *y = b;
    if (x->size != y->size) return x->size < y->size ? -1 : 1;
    const int c = strcmp(x->xxh3, y->xxh3);
    return c ? c : x->at < y->at ? -1 : x->at > y->at;
}

/* The contents of a list, sorted; the caller frees them. */
static fkv_status sorted(const json_t *list, content **contents, fkv_err *err)
{
    const size_t n = json_array_size(list);
    content *c = *contents = fkv_calloc(n, sizeof *c);
    if (!c) return fkv_fail_memory(err);
    for (size_t i = 0; i < n; i++) {
        const json_t *o = json_array_get(list, i);
        c[i] = (content){json_integer_value(json_object_get(o, "size")),
                         json_string_value(json_object_get(o, "xxh3")), i};
    }
    qsort(c, n, sizeof *c, by_content);
    return FKV_OK;
}

static bool is_same(const content *a, const content *b)
{
    return a->size == b->size && !strcmp(a->xxh3, b->xxh3);
}

static fkv_status is_same_list(const json_t *a, const json_t *b, bool *same, fkv_err *err)
{
    const size_t n = json_array_size(a);
    content *x = NULL, *y = NULL;
    fkv_status st = FKV_OK;
    if (!(*same = n == json_array_size(b)) || !n) return FKV_OK;
    if (!(st = sorted(a, &x, err))) st = sorted(b, &y, err);
    for (size_t i = 0; !st && *same && i < n; i++) *same = is_same(&x[i], &y[i]);
    free(y);
    free(x);
    return st;
}

/* Which of ours, [n] and sorted, none of the first n - 1 of theirs is; n: there are several. */
static size_t find_other(const content *theirs, size_t n, size_t last, const content *ours)
{
    size_t other = n, i = 0;
    for (size_t j = 0; j < n; j++) {
        if (i < n && theirs[i].at == last) i++;
        if (i < n && is_same(&theirs[i], &ours[j])) {
            i++;
        } else if (other < n) {
            return n;
        } else {
            other = j;
        }
    }
    return other;
}

static fkv_status put_grown(const json_t *list, const json_t *changed, json_t **grown, fkv_err *err)
{
    const size_t last = json_array_size(list) - 1;
    json_t *o = json_object_get(json_array_get(list, last), "name"), *all = json_copy((json_t *)list);
    json_t *now = json_copy((json_t *)changed);
    if (!all || !now || json_object_set(now, "name", o) || json_array_set(all, last, now)) {
        json_decref(now);
        json_decref(all);
        return fkv_fail_memory(err);
    }
    json_decref(now);
    *grown = all;
    return FKV_OK;
}

static fkv_status find_grown(const json_t *list, const json_t *now, const fkv_job *job, json_t **grown,
                             fkv_err *err)
{
    const size_t n = json_array_size(list);
    content *theirs = NULL, *ours = NULL;
    uint64_t hash;
    char hex[HEX + 1];
    *grown = NULL;
    if (!n || n != json_array_size(now) || n != job->input.n_files) return FKV_OK;
    fkv_status st = sorted(list, &theirs, err);
    if (!st) st = sorted(now, &ours, err);
    const size_t other = st ? n : find_other(theirs, n, n - 1, ours);
    const json_t *last = json_array_get(list, n - 1);
    const int64_t size = json_integer_value(json_object_get(last, "size"));
    if (st || other == n || ours[other].size <= size) goto out;
    if ((st = fkv_hash_file_ends_at(job->input.files[ours[other].at].path, size, &hash, err))) goto out;
    fkv_hash_hex(hash, hex);
    if (strcmp(hex, json_string_value(json_object_get(last, "xxh3"))) != 0) goto out;
    st = put_grown(list, json_array_get(now, ours[other].at), grown, err);
out:
    free(ours);
    free(theirs);
    return st;
}

fkv_status fkv_known_archives_follow(const json_t *list, const fkv_job *job, json_t **now, bool *follows,
                                     bool *has_grown, fkv_err *err)
{
    json_t *grown = NULL;
    fkv_status st = is_same_list(list, *now, follows, err);
    if (!st && !*follows) st = find_grown(list, *now, job, &grown, err);
    *has_grown = grown != NULL;
    if (!grown) return st;
    json_decref(*now);
    *now = grown;
    *follows = true;
    return st;
}

static const char *name_in(const json_t *list, size_t i)
{
    return json_string_value(json_object_get(json_array_get(list, i), "name"));
}

fkv_status fkv_known_archives_apply(const json_t *list, const json_t *now, fkv_job *job, fkv_err *err)
{
    const size_t n = json_array_size(list);
    content *then = NULL, *here = NULL;
    fkv_input_file *files = NULL;
    fkv_status st = FKV_OK;
    if (n != job->input.n_files || n != json_array_size(now) || n == 0) return FKV_OK;
    if ((st = sorted(list, &then, err)) || (st = sorted(now, &here, err))) goto out;
    for (size_t i = 0; i < n; i++) {
        if (then[i].size != here[i].size || strcmp(then[i].xxh3, here[i].xxh3) != 0) goto out;
    }
    if (!(files = fkv_calloc(n, sizeof *files))) {
        st = fkv_fail_memory(err);
        goto out;
    }
    for (size_t i = 0; i < n; i++) files[then[i].at] = job->input.files[here[i].at];
    memcpy(job->input.files, files, n * sizeof *files);
    for (size_t i = 0; !st && i < n; i++) {
        if (!*name_in(list, i) || !strcmp(name_in(list, i), job->input.files[i].name)) continue;
        char *name = strdup(name_in(list, i));
        if (!name) {
            st = fkv_fail_memory(err);
            break;
        }
        free(job->input.files[i].name);
        job->input.files[i].name = name;
    }
out:
    free(files);
    free(here);
    free(then);
    return st;
}

fkv_status fkv_known_archives_identity(const json_t *list, fkv_buf *out, fkv_err *err)
{
    const size_t n = json_array_size(list);
    content *c = NULL;
    fkv_buf all = {0};
    fkv_status st = n ? sorted(list, &c, err) : FKV_OK;
    for (size_t i = 0; !st && i < n; i++)
        st = fkv_buf_printf(&all, err, "%s%lld:%s", i ? " " : "", (long long)c[i].size, c[i].xxh3);
    if (!st && n && n <= SHOWN) st = fkv_buf_append(out, all.data, all.len, err);
    if (!st && n > SHOWN) {
        char hex[HEX + 1];
        fkv_hash_hex(fkv_hash(all.data, all.len, 0), hex);
        st = fkv_buf_printf(out, err, "%zu files:%s", n, hex);
    }
    fkv_buf_free(&all);
    free(c);
    return st;
}

fkv_status fkv_known_archives_describe(const json_t *list, fkv_buf *out, fkv_err *err)
{
    const size_t n = json_array_size(list);
    fkv_status st = FKV_OK;
    if (n > SHOWN) return fkv_known_archives_identity(list, out, err);
    for (size_t i = 0; !st && i < n; i++) {
        const json_t *o = json_array_get(list, i);
        st = fkv_buf_printf(out, err, "%s%s:%lld:%s", i ? " " : "", name_in(list, i),
                            (long long)json_integer_value(json_object_get(o, "size")),
                            json_string_value(json_object_get(o, "xxh3")));
    }
    return st;
}
