/* export: see export.h. An exporter owns the merged list of shards, the set of files that it
 * writes, and the buffers of one row. Where every dataset has a file, and there are error rows,
 * all rows are read twice: first for which datasets there are and what all_classes each has.
 * Not for: what a line holds (export_row.c), how files are kept (export_files.c). */
#include "jobs/export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobs/export_files.h"
#include "jobs/export_row.h"
#include "jobs/merged.h"
#include "jobs/shard.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"

static const size_t MAX_CLASSES_BYTES = (size_t)256 << 20; /* of all datasets together */

/* Where a dataset's file is: LongBench's two halves; RULER has no second. */
enum { PLAIN, LONGBENCH_E, N_FOLDERS };

typedef struct exporter {
    const char *output_dir, *dest;
    fkv_export_format format;
    fkv_merged all; /* manifests */
    char *folders[N_FOLDERS];
    fkv_export_files files;
    fkv_export_file *answers, *errors; /* DEST, DEST.errors (OPENAI) */
    bool to_stdout, learning;          /* learning: the first of two readings */
    size_t classes_bytes;              /* kept so far */
    fkv_buf line, dataset, member, path;
    fkv_export_counts *counts;
} exporter;

/* Where rows go. */

static bool by_dataset(const exporter *x)
{
    return x->format == FKV_EXPORT_LONGBENCH || x->format == FKV_EXPORT_RULER;
}

/* out is the text of a JSON string; empty where it is none. */
static fkv_status decode(const fkv_span *json, fkv_buf *out, bool *is_string, fkv_err *err)
{
    json_error_t je;
    *is_string = false;
    fkv_buf_clear(out);
    if (!json->p || !json->n || json->p[0] != '"') return FKV_OK;
    json_t *v = fkv_json_parse(json->p, json->n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &je);
    if (!v && json_error_code(&je) == json_error_out_of_memory) return fkv_fail_memory(err);
    *is_string = json_is_string(v);
    fkv_status st = FKV_OK;
    if (*is_string) st = fkv_buf_append(out, json_string_value(v), json_string_length(v), err);
    json_decref(v);
    return st;
}

typedef struct name {
    const char *text;
    size_t n;
} name;

/* A member's file name up to what says how it is written: "data/trec_e.jsonl" is "trec_e". */
static name stem_of(const fkv_buf *member)
{
    static const char *const suffixes[] = {".gz", ".zst", ".xz", ".bz2", ".jsonl", ".ndjson", ".json"};
    const char *slash = member->len ? memrchr(member->data, '/', member->len) : NULL;
    const char *base = slash ? slash + 1 : member->data;
    name stem = {base, base ? member->len - (size_t)(base - member->data) : 0};
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        const size_t k = strlen(suffixes[i]);
        if (stem.n > k && memcmp(stem.text + stem.n - k, suffixes[i], k) == 0) stem.n -= k;
    }
    return stem;
}

/* The folder that a path lies in: "vt/validation.jsonl" is in "vt". */
static name folder_of(const fkv_buf *path)
{
    const char *end = path->len ? memrchr(path->data, '/', path->len) : NULL;
    if (!end) return (name){"", 0};
    const char *slash = memrchr(path->data, '/', (size_t)(end - path->data));
    const char *from = slash ? slash + 1 : path->data;
    return (name){from, (size_t)(end - from)};
}

static bool is_e(name n)
{
    return n.n > 2 && memcmp(n.text + n.n - 2, "_e", 2) == 0;
}

/* Sets x->path to a dataset's file. x->member is the row's: a member trec_e.jsonl is LongBench-E's
 * also where the prompts know trec alone. */
static fkv_status path_of(exporter *x, name dataset, fkv_err *err)
{
    const bool longbench = x->format == FKV_EXPORT_LONGBENCH;
    const bool e = longbench && (is_e(dataset) || is_e(stem_of(&x->member)));
    if (longbench && is_e(dataset)) dataset.n -= 2;
    fkv_buf_clear(&x->path);
    fkv_status st = fkv_buf_printf(&x->path, err, "%s/", x->folders[e ? LONGBENCH_E : PLAIN]);
    if (!st) st = fkv_export_name(&x->path, dataset.text, dataset.n, longbench, err);
    return st ? st : fkv_buf_puts(&x->path, ".jsonl", err);
}

/* The file of an error row without a dataset, where the member's name says one that other rows
 * have; else *out is NULL. */
static fkv_status guess_file(exporter *x, const fkv_export_row *row, fkv_export_file **out, fkv_err *err)
{
    bool ignored;
    fkv_status st = decode(&row->archive, &x->dataset, &ignored, err);
    const bool alone = !x->member.len || !memchr(x->member.data, '/', x->member.len);
    const name names[] = {stem_of(&x->member), folder_of(&x->member),
                          alone ? folder_of(&x->dataset) : (name){"", 0}};
    *out = NULL;
    for (size_t i = 0; !st && !*out && i < sizeof names / sizeof *names; i++) {
        if (names[i].n == 0) continue;
        st = path_of(x, names[i], err);
        if (!st) *out = fkv_export_files_find(&x->files, x->path.data);
    }
    return st;
}

/* The file of a row's dataset, NULL where it has none to go to. */
static fkv_status dataset_file(exporter *x, const fkv_export_row *row, fkv_export_file **out, fkv_err *err)
{
    const fkv_span *dataset = &row->values[FKV_ROW_DATASET];
    bool is_string, ignored;
    *out = NULL;
    fkv_status st = decode(&row->member, &x->member, &ignored, err);
    if (!st && !dataset->p && row->is_error) return guess_file(x, row, out, err);
    if (!st) st = decode(dataset, &x->dataset, &is_string, err);
    if (st) return st;
    if (!is_string)
        return fkv_fail_at(err, FKV_E_INPUT, row->where, row->at, "dataset",
                           "is %.*s: only records of datasets can be exported as %s",
                           dataset->p ? (int)(dataset->n < 40 ? dataset->n : 40) : 4,
                           dataset->p ? dataset->p : "null",
                           x->format == FKV_EXPORT_RULER ? "ruler" : "longbench");
    st = path_of(x, (name){x->dataset.data ? x->dataset.data : "", x->dataset.len}, err);
    return st ? st : fkv_export_files_get(&x->files, x->path.data, out, err);
}

/* The first reading: the row's dataset has a file, whose note is the first all_classes. */
static fkv_status learn_row(exporter *x, const fkv_export_row *row, fkv_err *err)
{
    fkv_export_file *f;
    const fkv_status st = dataset_file(x, row, &f, err);
    if (st || !f || f->note.len || !row->all_classes.p) return st;
    x->classes_bytes += row->all_classes.n;
    if (x->classes_bytes > MAX_CLASSES_BYTES)
        return fkv_fail_at(err, FKV_E_INPUT, row->where, row->at, "fields.all_classes",
                           "all datasets' together take more than %zu MiB", MAX_CLASSES_BYTES >> 20);
    return fkv_buf_append(&f->note, row->all_classes.p, row->all_classes.n, err);
}

static fkv_status put_stdout(const void *bytes, size_t n, fkv_err *err)
{
    return fwrite(bytes, 1, n, stdout) == n ? FKV_OK : fkv_fail_errno(err, "standard output", "write");
}

/* On standard output, where the lines of all files come one after the other, each says which
 * file of a DEST it would be in. */
static fkv_status put_named_line(exporter *x, const fkv_export_file *f, fkv_err *err)
{
    const char *file = f->path + strlen(x->dest) + 1;
    fkv_buf_clear(&x->path);
    fkv_status st = fkv_buf_puts(&x->path, "{\"file\":", err);
    if (!st) st = fkv_json_put_string(&x->path, file, strlen(file), err);
    if (!st) st = fkv_buf_puts(&x->path, ",", err);
    if (!st) st = put_stdout(x->path.data, x->path.len, err);
    return st ? st : put_stdout(x->line.data + 1, x->line.len - 1, err);
}

/* f is a dataset's. */
static fkv_status write_to_dataset(exporter *x, const fkv_export_row *row, fkv_export_file *f, fkv_err *err)
{
    const bool lacks = row->is_error && !row->all_classes.p && f->note.len;
    const fkv_span classes = lacks ? (fkv_span){f->note.data, f->note.len} : (fkv_span){0};
    fkv_status st = fkv_export_line_make(x->format, row, classes, &x->line, err);
    if (st) return st;
    if (x->to_stdout) return put_named_line(x, f, err);
    return fkv_export_files_write(&x->files, f, x->line.data, x->line.len, err);
}

static fkv_status write_row(exporter *x, const fkv_export_row *row, fkv_err *err)
{
    fkv_export_file *f = NULL;
    fkv_status st = FKV_OK;
    fkv_buf_clear(&x->line);
    x->counts->errors += row->is_error;
    if (by_dataset(x)) {
        st = dataset_file(x, row, &f, err);
        if (!st && !f) x->counts->skipped++;
        if (!st && f) st = write_to_dataset(x, row, f, err);
        x->counts->rows += f != NULL;
        return st;
    }
    const char *line = row->text;
    size_t n = row->n;
    x->counts->rows++;
    if (x->format == FKV_EXPORT_OPENAI) {
        st = fkv_export_line_make(x->format, row, (fkv_span){0}, &x->line, err);
        line = x->line.data;
        n = x->line.len;
    }
    if (st) return st;
    if (x->to_stdout) return put_stdout(line, n, err);
    f = x->format == FKV_EXPORT_OPENAI && row->is_error ? x->errors : x->answers;
    return fkv_export_files_write(&x->files, f, line, n, err);
}

/* All rows of a shard, as the manifest has it. */
static fkv_status read_shard(exporter *x, const fkv_manifest_shard *s, fkv_err *err)
{
    char file[FKV_SHARD_NAME_SIZE];
    fkv_shard_reader *reader = NULL;
    fkv_shard_name(s->index, file);
    char *path = fkv_path_join(x->output_dir, file);
    if (!path) return fkv_fail_memory(err);
    fkv_export_row row = {.where = path, .ordinal = s->index * x->all.shards.records_per_shard};
    fkv_status st = fkv_shard_reader_open(path, &reader, err);
    while (!st && !(st = fkv_shard_reader_next(reader, &row.text, &row.n, err))) {
        row.at++;
        st = fkv_export_row_read(&row, err);
        if (!st) st = x->learning ? learn_row(x, &row, err) : write_row(x, &row, err);
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

static fkv_status read_shards(exporter *x, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < x->all.shards.n_shards; i++)
        st = read_shard(x, &x->all.shards.shards[i], err);
    return st;
}

/* The names of the folders that have a file a dataset. called, the NAME in them, is eval.py's --model. */
static fkv_status name_folders(exporter *x, const char *called, fkv_err *err)
{
    fkv_buf job = {0};
    fkv_status st = FKV_OK;
    if (x->format == FKV_EXPORT_RULER) {
        x->folders[PLAIN] = strdup(x->dest);
        return x->folders[PLAIN] ? FKV_OK : fkv_fail_memory(err);
    }
    st = fkv_export_name(&job, called, strlen(called), false, err);
    for (int i = 0; !st && i < N_FOLDERS; i++) {
        if (asprintf(&x->folders[i], "%s/%s/%s", x->dest, i == LONGBENCH_E ? "pred_e" : "pred", job.data) <
            0) {
            x->folders[i] = NULL;
            st = fkv_fail_memory(err);
        }
    }
    fkv_buf_free(&job);
    return st;
}

/* A file that is there whatever the rows are. */
static fkv_status begin_file(exporter *x, const char *end, fkv_export_file **out, fkv_err *err)
{
    char *path = NULL;
    if (asprintf(&path, "%s%s", x->dest, end) < 0) return fkv_fail_memory(err);
    fkv_status st = fkv_export_files_get(&x->files, path, out, err);
    if (!st) st = fkv_export_files_write(&x->files, *out, "", 0, err);
    free(path);
    return st;
}

/* Makes what the format needs before the first row. */
static fkv_status begin(exporter *x, fkv_err *err)
{
    struct stat sb;
    fkv_status st = by_dataset(x) ? name_folders(x, x->all.job, err) : FKV_OK;
    if (st || x->to_stdout) return st;
    if (by_dataset(x)) {
        if (stat(x->dest, &sb) == 0 && !S_ISDIR(sb.st_mode))
            return fkv_fail_at(err, FKV_E_INPUT, x->dest, 0, NULL, "must be a folder");
        return fkv_dir_make(x->dest, err);
    }
    st = begin_file(x, "", &x->answers, err);
    if (!st && x->format == FKV_EXPORT_OPENAI) st = begin_file(x, ".errors", &x->errors, err);
    return st;
}

/* After an error folders that have nothing in them are gone. */
static void remove_empty(exporter *x)
{
    for (int i = 0; i < N_FOLDERS && x->format == FKV_EXPORT_LONGBENCH; i++) {
        if (!x->folders[i] || rmdir(x->folders[i])) continue;
        *strrchr(x->folders[i], '/') = '\0';
        rmdir(x->folders[i]);
    }
}

static void free_exporter(exporter *x)
{
    fkv_export_files_free(&x->files);
    fkv_merged_free(&x->all);
    for (int i = 0; i < N_FOLDERS; i++) free(x->folders[i]);
    fkv_buf_free(&x->line);
    fkv_buf_free(&x->dataset);
    fkv_buf_free(&x->member);
    fkv_buf_free(&x->path);
}

fkv_status fkv_export(const char *output_dir, fkv_export_format format, const char *dest,
                      fkv_export_counts *counts, fkv_err *err)
{
    exporter x = {.output_dir = output_dir, .dest = dest, .format = format, .counts = counts};
    *counts = (fkv_export_counts){.complete = true};
    if (!dest[0]) return fkv_fail(err, FKV_E_INPUT, "the destination is empty");
    x.to_stdout = strcmp(dest, "-") == 0;
    fkv_status st = fkv_merged_load(output_dir, &x.all, err);
    counts->complete = x.all.complete;
    if (!st) st = begin(&x, err);
    x.learning = by_dataset(&x) && x.all.shards.n_errors > 0;
    if (!st && x.learning) st = read_shards(&x, err);
    x.learning = false;
    if (!st) st = read_shards(&x, err);
    counts->missing = x.all.records >= x.all.shards.n_rows ? x.all.records - x.all.shards.n_rows : -1;
    if (!st && x.to_stdout && fflush(stdout)) st = fkv_fail_errno(err, "standard output", "write");
    if (!st && !x.to_stdout) st = fkv_export_files_publish(&x.files, &counts->files, err);
    if (st) fkv_export_files_free(&x.files);
    if (st && !x.to_stdout) remove_empty(&x);
    free_exporter(&x);
    return st;
}

struct fkv_export_rows {
    exporter x;
    fkv_export_counts counts;
    char *dest;
    int64_t n; /* rows in dest */
};

fkv_status fkv_export_rows_open(fkv_export_rows **rows, fkv_err *err)
{
    fkv_export_rows *r = *rows = calloc(1, sizeof *r);
    if (!r) return fkv_fail_memory(err);
    r->x = (exporter){.format = FKV_EXPORT_LONGBENCH, .counts = &r->counts};
    return FKV_OK;
}

static void leave(fkv_export_rows *r)
{
    for (int i = 0; i < N_FOLDERS; i++) free(r->x.folders[i]);
    memset(r->x.folders, 0, sizeof r->x.folders);
    free(r->dest);
    r->x.dest = r->dest = NULL;
}

fkv_status fkv_export_rows_into(fkv_export_rows *r, const char *dest, const char *job, fkv_err *err)
{
    leave(r);
    r->n = 0;
    if (!(r->dest = strdup(dest))) return fkv_fail_memory(err);
    r->x.dest = r->dest;
    return name_folders(&r->x, job, err);
}

fkv_status fkv_export_rows_add(fkv_export_rows *r, const char *text, size_t n, fkv_err *err)
{
    fkv_export_row row = {.text = text, .n = n, .where = r->dest, .at = ++r->n};
    const fkv_status st = fkv_export_row_read(&row, err);
    return st ? st : write_row(&r->x, &row, err);
}

fkv_status fkv_export_rows_publish(fkv_export_rows *r, int64_t *n, fkv_err *err)
{
    return fkv_export_files_publish(&r->x.files, n, err);
}

void fkv_export_rows_close(fkv_export_rows *r)
{
    if (!r) return;
    leave(r);
    free_exporter(&r->x);
    free(r);
}
