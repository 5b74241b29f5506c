/* export: see export.h. An exporter owns the merged list of shards, a table of
 * the files it writes and at most MAX_OPEN open ones of them. Not for: what a line holds
 * (export_row.c). */
#include "jobs/export.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobs/export_row.h"
#include "jobs/manifest.h"
#include "jobs/shard.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"

enum { MAX_OPEN = 64, MAX_FILES = 100000, MAX_NAME = 240, MAX_PARTS = 100000 };

/* A file being written, under path.tmp until all are done. */
typedef struct target {
    char *name; /* the dataset; "" for DEST itself, "errors" for DEST.errors */
    char *path, *tmp;
    FILE *file;   /* NULL while closed */
    uint64_t use; /* the larger, the later it was written to */
} target;

typedef struct exporter {
    const char *output_dir, *dest;
    fkv_export_format format;
    fkv_manifest shards; /* of all manifests together */
    int64_t n_parts, n_manifests;
    target *targets; /* [n_targets], ascending by name */
    size_t n_targets, cap;
    int n_open;
    uint64_t clock;
    fkv_export_line line;
    fkv_export_counts *counts;
} exporter;

static target *find_target(const exporter *x, const char *name, size_t *at)
{
    size_t lo = 0, hi = x->n_targets;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        const int c = strcmp(x->targets[mid].name, name);
        if (c == 0) return &x->targets[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    *at = lo;
    return NULL;
}

/* Adds a target that is not there. */
static fkv_status new_target(exporter *x, const char *name, size_t at, const char *path, target **out,
                             fkv_err *err)
{
    fkv_status st = FKV_OK;
    target t = {0};
    struct stat sb;
    if (lstat(path, &sb) == 0 && !S_ISREG(sb.st_mode)) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "is there and not a regular file");
        goto out;
    }
    if (x->n_targets == MAX_FILES) {
        st = fkv_fail_at(err, FKV_E_INPUT, x->output_dir, 0, NULL, "more than %d datasets", MAX_FILES);
        goto out;
    }
    if (x->n_targets == x->cap) {
        const size_t cap = x->cap ? 2 * x->cap : 16;
        target *grown = fkv_realloc(x->targets, cap, sizeof *grown);
        if (!grown) {
            st = fkv_fail_memory(err);
            goto out;
        }
        x->targets = grown;
        x->cap = cap;
    }
    t.name = strdup(name);
    t.path = strdup(path);
    if (!t.name || !t.path || asprintf(&t.tmp, "%s.tmp", path) < 0) {
        t.tmp = NULL;
        st = fkv_fail_memory(err);
        goto out;
    }
    t.file = fopen(t.tmp, "we");
    if (!t.file) {
        st = fkv_fail_errno(err, t.tmp, "create");
        goto out;
    }
    x->n_open++;
    memmove(&x->targets[at + 1], &x->targets[at], (x->n_targets - at) * sizeof t);
    x->targets[at] = t;
    x->n_targets++;
    *out = &x->targets[at];
out:
    if (st) {
        free(t.name);
        free(t.tmp);
        free(t.path);
    }
    return st;
}

static fkv_status close_target(exporter *x, target *t, fkv_err *err)
{
    if (!t->file) return FKV_OK;
    const int rc = fclose(t->file);
    t->file = NULL;
    x->n_open--;
    return rc ? fkv_fail_errno(err, t->tmp, "write") : FKV_OK;
}

/* Closes the file written longest ago when too many are open. */
static fkv_status make_room(exporter *x, fkv_err *err)
{
    target *oldest = NULL;
    if (x->n_open < MAX_OPEN) return FKV_OK;
    for (size_t i = 0; i < x->n_targets; i++) {
        target *t = &x->targets[i];
        if (t->file && (!oldest || t->use < oldest->use)) oldest = t;
    }
    return oldest ? close_target(x, oldest, err) : FKV_OK;
}

static fkv_status write_to(exporter *x, target *t, const char *bytes, size_t n, fkv_err *err)
{
    t->use = ++x->clock;
    return fwrite(bytes, 1, n, t->file) == n ? FKV_OK : fkv_fail_errno(err, t->tmp, "write");
}

/* The open file of a dataset. name is checked. */
static fkv_status open_dataset(exporter *x, const char *name, target **out, fkv_err *err)
{
    size_t at = 0;
    target *t = find_target(x, name, &at);
    if (t && t->file) {
        *out = t;
        return FKV_OK;
    }
    fkv_status st = make_room(x, err);
    if (st) return st;
    if (!t) {
        char *path = NULL;
        if (asprintf(&path, "%s/%s.jsonl", x->dest, name) < 0) return fkv_fail_memory(err);
        st = new_target(x, name, at, path, out, err);
        free(path);
        return st;
    }
    t->file = fopen(t->tmp, "ae");
    if (!t->file) return fkv_fail_errno(err, t->tmp, "open");
    x->n_open++;
    *out = t;
    return FKV_OK;
}

/* Merging the manifests. */

static bool is_manifest(const char *name, int64_t *part, int64_t *n_parts)
{
    int used = 0;
    long long i = 0, n = 1;
    *part = 0;
    *n_parts = 1;
    if (strcmp(name, "manifest.json") == 0) return true;
    if (sscanf(name, "manifest-%6lldof%6lld.json%n", &i, &n, &used) != 2 || !used || name[used]) return false;
    *part = i;
    *n_parts = n;
    return i >= 0 && n >= 2 && i < n && n <= MAX_PARTS;
}

static fkv_status merge_manifest(exporter *x, const char *path, int64_t part, int64_t n_parts, fkv_err *err)
{
    fkv_manifest m;
    fkv_status st = fkv_manifest_load(path, &m, err);
    if (st) return st;
    if (!m.complete) x->counts->complete = false;
    if (x->n_manifests == 0) {
        x->n_parts = n_parts;
        x->shards.identity = json_incref(m.identity);
        x->shards.records_per_shard = m.records_per_shard;
    } else if (n_parts != x->n_parts) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "is of %lld parts, another manifest here of %lld",
                         (long long)n_parts, (long long)x->n_parts);
        goto out;
    } else if ((st = fkv_manifest_same_job(&x->shards, &m, path, err))) {
        goto out;
    }
    x->n_manifests++;
    for (size_t i = 0; !st && i < m.n_shards; i++) {
        if (m.shards[i].index % n_parts != part)
            st = fkv_fail_at(err, FKV_E_INPUT, path, 0, "shards", "shard %lld is another part's",
                             (long long)m.shards[i].index);
        else
            st = fkv_manifest_add(&x->shards, &m.shards[i], err);
    }
out:
    fkv_manifest_free(&m);
    return st;
}

static fkv_status merge_manifests(exporter *x, fkv_err *err)
{
    fkv_status st = FKV_OK;
    DIR *dir = opendir(x->output_dir);
    if (!dir) return fkv_fail_open(err, x->output_dir);
    while (!st) {
        errno = 0;
        const struct dirent *e = readdir(dir);
        if (!e && errno) st = fkv_fail_errno(err, x->output_dir, "read the folder");
        if (!e) break;
        int64_t part, n_parts;
        if (!is_manifest(e->d_name, &part, &n_parts)) continue;
        char *path = fkv_path_join(x->output_dir, e->d_name);
        st = path ? merge_manifest(x, path, part, n_parts, err) : fkv_fail_memory(err);
        free(path);
    }
    closedir(dir);
    if (!st && x->n_manifests == 0)
        st = fkv_fail_at(err, FKV_E_INPUT, x->output_dir, 0, NULL,
                         "has no manifest.json: not an output folder");
    if (x->n_manifests != x->n_parts) x->counts->complete = false;
    return st;
}

/* Rows. */

/* The text of a JSON string, malloc'd, if it can be a file's name. */
static fkv_status dataset_name(const fkv_span *dataset, const char *where, int64_t row, char **out,
                               fkv_err *err)
{
    *out = NULL;
    if (dataset->n > 6 * (size_t)MAX_NAME + 2)
        return fkv_fail_at(err, FKV_E_INPUT, where, row, "dataset", "is too long for a file's name");
    json_error_t je;
    json_t *v = fkv_json_parse(dataset->p, dataset->n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &je);
    if (!v && json_error_code(&je) == json_error_out_of_memory) return fkv_fail_memory(err);
    const char *name = json_string_value(v);
    const size_t n = name ? json_string_length(v) : 0;
    fkv_status st = FKV_OK;
    if (n == 0 || n > MAX_NAME || memchr(name, '/', n) || memchr(name, '\0', n) || strcmp(name, ".") == 0 ||
        strcmp(name, "..") == 0)
        st = fkv_fail_at(err, FKV_E_INPUT, where, row, "dataset", "%.100s can't be a file's name",
                         name ? name : "this");
    else if (!(*out = strdup(name)))
        st = fkv_fail_memory(err);
    json_decref(v);
    return st;
}

static bool by_dataset(const exporter *x)
{
    return x->format == FKV_EXPORT_LONGBENCH || x->format == FKV_EXPORT_RULER;
}

static fkv_status write_row(exporter *x, const fkv_export_row *row, fkv_err *err)
{
    fkv_export_line *line = &x->line;
    target *t = x->targets;
    fkv_status st = fkv_export_line_make(x->format, row, line, err);
    if (st) return st;
    x->counts->errors += line->is_error;
    if (by_dataset(x)) {
        char *name = NULL;
        if (!line->dataset.p && line->is_error) {
            x->counts->skipped++;
            return FKV_OK;
        }
        if (!line->dataset.p)
            return fkv_fail_at(err, FKV_E_INPUT, row->where, row->at, "dataset",
                               "is null: only records of datasets can be exported as %s",
                               x->format == FKV_EXPORT_RULER ? "ruler" : "longbench");
        st = dataset_name(&line->dataset, row->where, row->at, &name, err);
        if (!st) st = open_dataset(x, name, &t, err);
        free(name);
    } else if (x->format == FKV_EXPORT_OPENAI && line->is_error) {
        t++;
    }
    if (st) return st;
    x->counts->rows++;
    if (x->format == FKV_EXPORT_JSONL) return write_to(x, t, row->text, row->n, err);
    return write_to(x, t, line->text.data, line->text.len, err);
}

static fkv_status export_shard(exporter *x, const fkv_manifest_shard *s, fkv_err *err)
{
    char name[FKV_SHARD_NAME_SIZE];
    fkv_shard_reader *reader = NULL;
    fkv_shard_name(s->index, name);
    char *path = fkv_path_join(x->output_dir, name);
    if (!path) return fkv_fail_memory(err);
    fkv_export_row row = {.where = path, .ordinal = s->index * x->shards.records_per_shard};
    fkv_status st = fkv_shard_reader_open(path, &reader, err);
    while (!st && !(st = fkv_shard_reader_next(reader, &row.text, &row.n, err))) {
        row.at++;
        st = write_row(x, &row, err);
        row.ordinal++;
    }
    if (st == FKV_END) st = fkv_shard_reader_check(reader, s->bytes, s->xxh3, err);
    if (!st && row.at != s->count)
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "has %lld rows, the manifest says %lld",
                         (long long)row.at, (long long)s->count);
    fkv_shard_reader_close(reader);
    free(path);
    return st;
}

/* Makes what the format needs before the first row. */
static fkv_status begin(exporter *x, fkv_err *err)
{
    target *t;
    struct stat sb;
    if (by_dataset(x)) {
        if (stat(x->dest, &sb) == 0 && !S_ISDIR(sb.st_mode))
            return fkv_fail_at(err, FKV_E_INPUT, x->dest, 0, NULL, "must be a folder");
        return fkv_dir_make(x->dest, err);
    }
    char *dir = fkv_path_dir(x->dest);
    fkv_status st = dir ? fkv_dir_make(dir, err) : fkv_fail_memory(err);
    free(dir);
    if (st) return st;
    st = new_target(x, "", 0, x->dest, &t, err);
    if (st || x->format != FKV_EXPORT_OPENAI) return st;
    char *errors = NULL;
    if (asprintf(&errors, "%s.errors", x->dest) < 0) return fkv_fail_memory(err);
    st = new_target(x, "errors", 1, errors, &t, err);
    free(errors);
    return st;
}

/* All files are whole on disk before the first gets its name. */
static fkv_status publish(exporter *x, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < x->n_targets; i++) st = close_target(x, &x->targets[i], err);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; !st && i < x->n_targets; i++) {
            target *t = &x->targets[i];
            if (pass == 0) {
                const int fd = open(t->tmp, O_RDWR | O_CLOEXEC);
                if (fd < 0 || fsync(fd)) st = fkv_fail_errno(err, t->tmp, "fsync");
                if (fd >= 0) close(fd);
                continue;
            }
            if (rename(t->tmp, t->path)) st = fkv_fail_errno(err, t->path, "rename");
            if (!st) x->counts->files++;
        }
    }
    if (!st && x->n_targets) st = fkv_dir_sync_of(x->targets[0].path, err);
    return st;
}

static void free_exporter(exporter *x, bool failed)
{
    for (size_t i = 0; i < x->n_targets; i++) {
        target *t = &x->targets[i];
        if (t->file) fclose(t->file);
        if (failed) unlink(t->tmp);
        free(t->name);
        free(t->path);
        free(t->tmp);
    }
    free(x->targets);
    fkv_buf_free(&x->line.text);
    fkv_manifest_free(&x->shards);
}

fkv_status fkv_export(const char *output_dir, fkv_export_format format, const char *dest,
                      fkv_export_counts *counts, fkv_err *err)
{
    exporter x = {.output_dir = output_dir, .dest = dest, .format = format, .counts = counts};
    *counts = (fkv_export_counts){.complete = true};
    if (!dest[0]) return fkv_fail(err, FKV_E_INPUT, "the destination is empty");
    fkv_status st = merge_manifests(&x, err);
    if (!st) st = begin(&x, err);
    for (size_t i = 0; !st && i < x.shards.n_shards; i++) st = export_shard(&x, &x.shards.shards[i], err);
    if (!st) st = publish(&x, err);
    free_exporter(&x, st != FKV_OK);
    return st;
}
