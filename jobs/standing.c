/* How far an output is: see standing.h. */
#include "jobs/standing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "jobs/error_rows.h"
#include "jobs/folder_names.h"
#include "jobs/merged.h"
#include "jobs/stats.h"
#include "runner/base/clock.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"

static const size_t MAX_STATS_BYTES = (size_t)1 << 20;
static const double WINDOW_S = 60, GLANCE_S = 10;
static const int64_t most = (int64_t)1 << 53;
enum { MAX_SHARING = 100000 }; /* as many as there may be parts */

/* What is looked for in rows. */
typedef struct search {
    fkv_standing *s;
    bool glance;  /* only examples, of the codes that are known already */
    double until; /* fkv_seconds() */
} search;

static fkv_status take_example(fkv_standing *s, int i, const fkv_error_row *row, fkv_err *err)
{
    fkv_buf text = {0};
    const fkv_status st = fkv_buf_printf(&text, err, "{\"source\":%.*s,\"message\":%.*s}", (int)row->source.n,
                                         row->source.p, (int)row->message.n, row->message.p);
    if (st) fkv_buf_free(&text);
    s->examples[i] = text.data;
    return st;
}

/* Its code counts, and the first of a code is kept. */
static fkv_status count_row(fkv_standing *s, const fkv_error_row *row, fkv_err *err)
{
    const int before = s->errors.n;
    fkv_error_counts_add(&s->errors, row->code.p, row->code.n, 1);
    return s->errors.n == before ? FKV_OK : take_example(s, before, row, err);
}

static fkv_status see_row(void *ctx, const fkv_error_row *row, fkv_err *err)
{
    const search *x = ctx;
    fkv_standing *s = x->s;
    bool all = true;
    if (!x->glance) return count_row(s, row, err);
    for (int i = 0; i < s->errors.n; i++) {
        const char *code = s->errors.at[i].code;
        if (s->examples[i]) continue;
        if (strlen(code) == row->code.n && !memcmp(code, row->code.p, row->code.n)) {
            const fkv_status st = take_example(s, i, row, err);
            if (st) return st;
        } else if (strcmp(code, "other") != 0) {
            all = false;
        }
    }
    return all || fkv_seconds() > x->until ? FKV_END : FKV_OK;
}

static bool in_no_shard(void *ctx, const fkv_journal_entry *entry)
{
    const fkv_manifest *m = ctx;
    return !fkv_manifest_find(m, entry->ordinal / m->records_per_shard);
}

/* The journals of parts, or of the shards at hand where processes share the output. */
typedef struct journals {
    fkv_journal **at; /* [n] */
    size_t n, cap;
} journals;

static void free_journals(journals *j)
{
    for (size_t i = 0; i < j->n; i++) fkv_journal_close(j->at[i]);
    free(j->at);
}

/* fn of every stats.json of the output's parts, or of the processes that share it. */
static fkv_status each_stats(const char *folder, int64_t n_parts,
                             fkv_status (*fn)(void *ctx, const char *path, int64_t part, int64_t of,
                                              fkv_err *err),
                             void *ctx, fkv_err *err)
{
    fkv_status st = FKV_OK;
    DIR *dir = opendir(folder);
    if (!dir) return fkv_fail_open(err, folder);
    for (const struct dirent *e; !st && (e = readdir(dir));) {
        int64_t part, of;
        if (!fkv_name_is_part(e->d_name, "stats", ".json", &part, &of) || (of && of != n_parts)) continue;
        char *path = fkv_path_join(folder, e->d_name);
        st = path ? fn(ctx, path, part, of, err) : fkv_fail_memory(err);
        free(path);
    }
    closedir(dir);
    return st;
}

/* Of a part's rows; of one that shares its output those of all, as far as it saw them. */
static fkv_status recall_part(void *ctx, const char *path, int64_t part, int64_t of, fkv_err *err)
{
    fkv_standing *s = ctx;
    fkv_stats_history h = {0};
    fkv_err why = {0};
    (void)part;
    const fkv_status st = fkv_stats_read(path, &h, &why);
    if (st == FKV_E_INPUT) return FKV_OK;
    if (st) return fkv_fail_at(err, st, why.file, 0, NULL, "%s", why.message);
    if (of == 0) {
        if (fkv_error_counts_sum(&h.errors) > fkv_error_counts_sum(&s->errors)) s->errors = h.errors;
        return FKV_OK;
    }
    for (int k = 0; k < h.errors.n; k++)
        fkv_error_counts_add(&s->errors, h.errors.at[k].code, strlen(h.errors.at[k].code),
                             h.errors.at[k].rows);
    return FKV_OK;
}

/* What the parts' stats.json say of all rows together; what they don't know is "other". */
static fkv_status recall_errors(const fkv_folder *folder, fkv_standing *s, fkv_err *err)
{
    const fkv_status st = each_stats(folder->path, folder->n_parts, recall_part, s, err);
    if (st) return st;
    if (fkv_error_counts_sum(&s->errors) > s->n_errors) s->errors = (fkv_error_counts){0};
    const int64_t more = s->n_errors - fkv_error_counts_sum(&s->errors);
    if (more) fkv_error_counts_add(&s->errors, "other", 5, more);
    return FKV_OK;
}

/* The journals were opened before the manifests were read: a row that moved to a shard meanwhile is in
 * both, and never in neither. */
static fkv_status count_rows(const fkv_folder *folder, fkv_merged *all, const journals *j, bool glance,
                             fkv_standing *s, fkv_err *err)
{
    search x = {s, glance, fkv_seconds() + GLANCE_S};
    s->done = all->shards.n_rows;
    s->n_errors = all->shards.n_errors;
    for (size_t i = 0; i < j->n; i++) {
        fkv_journal_filter(j->at[i], in_no_shard, &all->shards);
        s->done += (int64_t)fkv_journal_count(j->at[i]);
        s->n_errors += fkv_journal_errors(j->at[i]);
    }
    fkv_status st = glance ? recall_errors(folder, s, err) : FKV_OK;
    if (!st) st = fkv_error_rows_each(folder, &all->shards, NULL, see_row, &x, err);
    for (size_t i = 0; !st && i < j->n; i++)
        st = fkv_error_rows_each(folder, NULL, j->at[i], see_row, &x, err);
    return st;
}

static fkv_status add_journal(journals *j, const char *path, uint64_t identity, fkv_err *err)
{
    fkv_journal **at = fkv_grown(j->at, j->n, &j->cap, sizeof(fkv_journal *));
    if (!at) return fkv_fail_memory(err);
    j->at = at;
    const fkv_status st = fkv_journal_look(path, identity, &j->at[j->n], err);
    if (!st) j->n++;
    return st;
}

static fkv_status look_at_journals(const char *folder, const fkv_merged *all, journals *j, fkv_err *err)
{
    uint64_t identity;
    fkv_status st = fkv_manifest_hash(&all->shards, &identity, err);
    DIR *dir = st ? NULL : opendir(folder);
    if (!st && !dir) return fkv_fail_open(err, folder);
    for (const struct dirent *e; !st && (e = readdir(dir));) {
        int64_t part, n_parts;
        const bool is_part = fkv_name_is_part(e->d_name, "journal", "", &part, &n_parts);
        if (is_part ? n_parts != all->n_parts : !fkv_name_is_claim(e->d_name, "journal", "", &part)) continue;
        char *path = fkv_path_join(folder, e->d_name);
        st = path ? add_journal(j, path, identity, err) : fkv_fail_memory(err);
        free(path);
    }
    if (dir) closedir(dir);
    return st;
}

/* Records/s over the last minute of run.throughput; 0: too little is known. */
static double rate_of(const json_t *run)
{
    const json_t *points = json_object_get(run, "throughput");
    const size_t n = json_array_size(points);
    const json_t *last = n ? json_array_get(points, n - 1) : NULL;
    const double end = json_number_value(json_array_get(last, 0));
    for (size_t i = n; i-- > 0;) {
        const json_t *p = json_array_get(points, i);
        const double s = end - json_number_value(json_array_get(p, 0));
        const double more =
            json_number_value(json_array_get(last, 1)) - json_number_value(json_array_get(p, 1));
        if (s > 0 && (s >= WINDOW_S || i == 0)) return more > 0 ? more / s : 0;
    }
    return 0;
}

/* How many records the stats of all parts say there are. */
typedef struct counted {
    fkv_standing *s;
    bool glance;    /* what can't be read is as good as none */
    int64_t parts;  /* that know theirs */
    int64_t sum;    /* of these */
    int64_t whole;  /* of one that shares its output: it knows all */
    bool estimated; /* one of them does not know for certain */
} counted;

static bool is_at_work(const fkv_standing *s, int64_t part, int64_t n_parts)
{
    for (int i = 0; i < s->n_locks; i++) {
        int64_t is, of;
        if (fkv_name_is_part(s->locks[i].file, "lock", "", &is, &of) && is == part && of == n_parts)
            return true;
    }
    return false;
}

/* What one stats.json says, as far as it can be read: it is no part of what was answered. */
static fkv_status read_stats(const char *path, bool is_shared, bool at_work, counted *c, fkv_err *err)
{
    json_t *doc = NULL;
    int64_t records = -1;
    bool estimated;
    fkv_status st = fkv_json_load(path, MAX_STATS_BYTES, &doc, err);
    const json_t *job = json_object_get(doc, "job"), *run = json_object_get(doc, "run");
    if (!st && (!json_is_object(job) || !json_is_object(run)))
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "has no job and run: not a run's stats");
    if (!st) st = fkv_json_i64_or(job, "records", 0, most, -1, path, &records, err);
    if (!st) st = fkv_json_bool_or(job, "estimated", false, path, &estimated, err);
    if (!st && records >= 0) {
        if (is_shared && records > c->whole) c->whole = records;
        if (!is_shared) c->sum += records > most - c->sum ? most - c->sum : records;
        c->parts += !is_shared;
        c->estimated = c->estimated || estimated;
    }
    if (!st && at_work && json_is_null(json_object_get(run, "end"))) c->s->rate += rate_of(run);
    json_decref(doc);
    return st;
}

static fkv_status add_part(void *ctx, const char *path, int64_t part, int64_t of, fkv_err *err)
{
    counted *c = ctx;
    fkv_err why = {0};
    if (of == 0 && part < MAX_SHARING && part >= c->s->n_sharing) c->s->n_sharing = part + 1;
    const fkv_status st = read_stats(path, of == 0, is_at_work(c->s, part, of), c, &why);
    if (c->glance && st == FKV_E_INPUT) return FKV_OK;
    if (st && err) *err = why;
    return st;
}

/* The total: counted where a part or the sample came to the end, else the parts' guesses together. */
static fkv_status add_stats(const char *folder, const fkv_merged *all, bool glance, fkv_standing *s,
                            fkv_err *err)
{
    counted c = {.s = s, .glance = glance, .whole = -1};
    const fkv_status st = each_stats(folder, all->n_parts, add_part, &c, err);
    s->records = all->records >= 0 ? all->records : c.parts == all->n_parts ? c.sum : c.whole;
    s->estimated = all->records < 0 && s->records >= 0 && c.estimated;
    return st;
}

static fkv_status add_lock(const char *folder, const char *name, fkv_standing *s, fkv_err *err)
{
    fkv_buf text = {0};
    struct statx sx;
    if (s->n_locks == FKV_STANDING_LOCKS) {
        s->n_more_locks++;
        return FKV_OK;
    }
    char *path = fkv_path_join(folder, name);
    if (!path) return fkv_fail_memory(err);
    fkv_standing_lock lock = {0};
    fkv_err ignored = {0};
    /* It may go at any moment. */
    if (!statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &sx) &&
        S_ISREG(sx.stx_mode)) {
        snprintf(lock.file, sizeof lock.file, "%s", name);
        lock.beat = sx.stx_mtime.tv_sec;
        if (sx.stx_mask & STATX_BTIME) lock.since = sx.stx_btime.tv_sec;
        if (fkv_file_read(path, 4096, &text, &ignored) || !fkv_lease_parse(text.data, text.len, &lock.holder))
            lock.holder = (fkv_lease_holder){0};
        s->locks[s->n_locks++] = lock;
    }
    fkv_buf_free(&text);
    free(path);
    return FKV_OK;
}

static fkv_status find_locks(const char *folder, fkv_standing *s, fkv_err *err)
{
    fkv_status st = FKV_OK;
    DIR *dir = opendir(folder);
    if (!dir) return fkv_fail_open(err, folder);
    for (const struct dirent *e; !st && (e = readdir(dir));) {
        const char *name = e->d_name;
        if (!fkv_name_is_lease(name) || strlen(name) >= sizeof s->locks[0].file) continue;
        st = add_lock(folder, name, s, err);
    }
    closedir(dir);
    return st;
}

static fkv_status read_all(const char *path, bool glance, fkv_standing *s, fkv_err *err)
{
    fkv_merged all;
    journals j = {0};
    *s = (fkv_standing){.records = -1};
    fkv_status st = fkv_merged_load(path, &all, err);
    if (st) return st;
    const int64_t n = all.n_parts;
    const fkv_folder folder = {.path = (char *)path, .n_parts = n};
    st = look_at_journals(path, &all, &j, err);
    fkv_merged_free(&all);
    if (!st) st = fkv_merged_load(path, &all, err);
    if (!st && all.n_parts != n) st = fkv_fail(err, FKV_E_BUSY, "%s was begun anew meanwhile", path);
    if (!st) st = count_rows(&folder, &all, &j, glance, s, err);
    if (!st) st = find_locks(path, s, err);
    if (!st) st = add_stats(path, &all, glance, s, err);
    s->complete = all.complete;
    s->job = all.job;
    all.job = NULL;
    s->n_parts = n;
    free_journals(&j);
    fkv_merged_free(&all);
    if (st) fkv_standing_free(s);
    return st;
}

fkv_status fkv_standing_read(const char *folder, fkv_standing *standing, fkv_err *err)
{
    return read_all(folder, false, standing, err);
}

fkv_status fkv_standing_glance(const char *folder, fkv_standing *standing, fkv_err *err)
{
    return read_all(folder, true, standing, err);
}

void fkv_standing_free(fkv_standing *s)
{
    for (int i = 0; i < FKV_ERROR_CODES; i++) free(s->examples[i]);
    free(s->job);
    *s = (fkv_standing){.records = -1};
}

fkv_standing_example fkv_standing_example_of(const fkv_standing *s, int i)
{
    json_error_t je;
    const char *text = s->examples[i];
    json_t *doc = text ? fkv_json_parse(text, strlen(text), 0, &je) : NULL;
    const json_t *source = json_object_get(doc, "source");
    return (fkv_standing_example){.doc = doc,
                                  .archive = json_string_value(json_object_get(source, "archive")),
                                  .member = json_string_value(json_object_get(source, "member")),
                                  .message = json_string_value(json_object_get(doc, "message")),
                                  .line = json_integer_value(json_object_get(source, "line"))};
}
