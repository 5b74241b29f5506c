/* What the input holds: see survey.h. */
#include "runner/survey.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/hash.h"
#include "runner/base/json.h"
#include "runner/base/mem.h"
#include "runner/interrupt.h"

/* Tells its random numbers from those of other samples. */
static const uint64_t survey_stream = 0x737572766579;

/* A line of the sample, copied. */
typedef struct kept_line {
    uint64_t key;
    const char *archive; /* the job's */
    char *member, *text; /* text: NULL where the line has a code */
    size_t n;
    int64_t line;
    char code[32];
} kept_line;

typedef struct taking {
    const fkv_setup *setup;
    fkv_survey *out;
    fkv_look look;
    int64_t left;      /* bytes for the archives that are not done with */
    int64_t n_read;    /* records of all archives */
    int64_t before;    /* of those, of archives that are done with */
    uint64_t most_key; /* a record with such a key or a larger one is not in the sample */
    kept_line lines[FKV_SURVEY_RECORDS + 1];
    int n_lines;
    size_t n_bytes;
    fkv_err err;
} taking;

static void free_line(kept_line *k)
{
    free(k->member);
    free(k->text);
}

/* Takes the line with the largest key out of the sample. */
static void drop_last(taking *t)
{
    int last = 0;
    for (int i = 1; i < t->n_lines; i++)
        if (t->lines[i].key > t->lines[last].key) last = i;
    t->most_key = t->lines[last].key;
    t->n_bytes -= t->lines[last].n;
    free_line(&t->lines[last]);
    t->lines[last] = t->lines[--t->n_lines];
}

/* Every record gets a random key; those with the smallest ones are the sample. */
static void keep(taking *t, const fkv_line *line)
{
    kept_line k = {.key = fkv_random_u64(t->setup->job->job.seed, survey_stream, (uint64_t)t->n_read),
                   .archive = line->archive,
                   .line = line->line};
    if (k.key >= t->most_key || t->err.status) return;
    k.member = strdup(line->member ? line->member : "");
    if (line->error_code) {
        snprintf(k.code, sizeof k.code, "%s", line->error_code);
    } else {
        k.n = line->n;
        k.text = malloc(k.n + 1);
        if (k.text) memcpy(k.text, line->text, k.n);
    }
    if (!k.member || (!line->error_code && !k.text)) {
        fkv_fail_memory(&t->err);
        free_line(&k);
        return;
    }
    t->lines[t->n_lines++] = k;
    t->n_bytes += k.n;
    while (t->n_lines > FKV_SURVEY_RECORDS || (t->n_bytes > FKV_SURVEY_SAMPLE_BYTES && t->n_lines > 1))
        drop_last(t);
}

static bool see(void *ctx, const fkv_line *line)
{
    taking *t = ctx;
    const int64_t limit = t->setup->job->job.limit;
    if (limit && t->n_read >= limit) return true;
    keep(t, line);
    t->n_read++;
    return (limit && t->n_read >= limit) || t->err.status;
}

/* What an archive has left of its bytes is for those behind it. */
static void share_out(taking *t)
{
    const int64_t n = (int64_t)(t->setup->job->input.n_files - t->out->n_archives);
    t->look.most_bytes = n > 0 ? t->left / n : 0;
}

static void end_archive(void *ctx, const fkv_look_end *end)
{
    taking *t = ctx;
    fkv_survey *s = t->out;
    fkv_buf where = {0};
    fkv_survey_archive *a = &s->archives[s->n_archives++];
    *a = (fkv_survey_archive){.file = end->file,
                              .how = end->how,
                              .n_read = t->n_read - t->before,
                              .n_records = t->n_read - t->before,
                              .n_members = end->n_members,
                              .share = end->share,
                              .bytes = end->bytes,
                              .line = end->line};
    if (end->how == FKV_LOOKED_FAR) a->n_records = (int64_t)((double)a->n_read / end->share + 0.5);
    if (*end->member && !fkv_json_put_string(&where, end->member, strlen(end->member), &t->err))
        a->stop = where.data;
    s->n_members += a->n_members;
    s->n_records += a->n_records;
    if (end->how == FKV_LOOKED_FAR) s->exact = false;
    if (end->how != FKV_LOOKED_ALL) s->all_members = false;
    t->before = t->n_read;
    t->left -= end->bytes < t->look.most_bytes ? end->bytes : t->look.most_bytes;
    share_out(t);
}

/* ---- the sample's prompts ---- */

/* Of a row without its text: FORMATS.md has its keys. */
static int64_t frame_bytes(const fkv_record *r)
{
    enum { KEYS = 200 };
    return (int64_t)(KEYS + r->id_json.len + r->fields.len + r->dataset.len + strlen(r->archive) +
                     strlen(r->member));
}

/* Fills a record of the survey, or counts the error that it becomes. */
static fkv_status measure(const fkv_setup *s, fkv_prompter *prompter, const kept_line *k, fkv_record *record,
                          fkv_ids *ids, fkv_survey *out, fkv_err *err)
{
    enum { ID_BYTES = 6 };
    const fkv_line line = {
        .archive = k->archive, .member = k->member, .line = k->line, .text = k->text, .n = k->n};
    fkv_survey_record r = {0};
    int64_t truncated = 0;
    if (k->code[0]) {
        fkv_error_counts_add(&out->errors, k->code, strlen(k->code), 1);
        return FKV_OK;
    }
    fkv_status st = fkv_record_parse(s->parser, &line, record, err);
    const double bytes = (double)record->prompt.len;
    if (!st && !record->error_code[0]) {
        r.row_bytes = frame_bytes(record);
        st = fkv_prompter_make(prompter, record, ids, &r.max_new, &truncated, err);
    }
    if (st) return st;
    if (record->error_code[0]) {
        fkv_error_counts_add(&out->errors, record->error_code, strlen(record->error_code), 1);
        return FKV_OK;
    }
    r.n_kept = (int64_t)ids->len;
    r.n_tokens = r.n_kept + truncated;
    const double per_token = r.n_tokens > 0 ? bytes / (double)r.n_tokens : 0;
    r.row_bytes += (int64_t)((double)r.max_new * (per_token + (s->job->output.token_ids ? ID_BYTES : 0)));
    out->n_cut += truncated > 0;
    out->records[out->n++] = r;
    return FKV_OK;
}

static int by_length(const void *a, const void *b)
{
    const int64_t x = ((const fkv_survey_record *)a)->n_tokens, y = ((const fkv_survey_record *)b)->n_tokens;
    return (x > y) - (x < y);
}

static fkv_status measure_all(const taking *t, fkv_survey *out, fkv_err *err)
{
    const fkv_layout layout = fkv_setup_layout(t->setup);
    const fkv_prompt_source source = fkv_setup_prompts(t->setup, &layout);
    fkv_prompter *prompter = NULL;
    fkv_record record = {0};
    fkv_ids ids = {0};
    fkv_status st = fkv_prompter_open(&source, &prompter, err);
    for (int i = 0; !st && i < t->n_lines; i++) {
        if (fkv_interrupt_asked())
            st = fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
        else
            st = measure(t->setup, prompter, &t->lines[i], &record, &ids, out, err);
    }
    if (!st && out->n) qsort(out->records, (size_t)out->n, sizeof *out->records, by_length);
    fkv_ids_free(&ids);
    fkv_record_free(&record);
    fkv_prompter_close(prompter);
    return st;
}

fkv_status fkv_survey_take(const fkv_setup *s, fkv_survey *out, fkv_errs *errs)
{
    const size_t n_files = s->job->input.n_files;
    const int64_t limit = s->job->job.limit;
    fkv_err err = {0};
    *out = (fkv_survey){.exact = true, .all_members = true};
    out->archives = fkv_calloc(n_files, sizeof *out->archives);
    out->records = fkv_calloc(FKV_SURVEY_RECORDS, sizeof *out->records);
    taking *t = calloc(1, sizeof *t);
    fkv_status st = t && out->archives && out->records ? FKV_OK : fkv_fail_memory(&err);
    if (st) goto out;
    t->setup = s;
    t->out = out;
    t->most_key = UINT64_MAX;
    t->left = FKV_SURVEY_BYTES;
    t->look = (fkv_look){.ctx = t, .see = see, .done = end_archive, .stop = fkv_interrupt_asks};
    share_out(t);
    if ((st = fkv_input_look(s->job, &t->look, errs))) goto out;
    err = t->err;
    st = err.status;
    if (!st) st = measure_all(t, out, &err);
    if (limit && out->n_records >= limit) {
        out->n_records = limit;
        out->exact = t->n_read >= limit;
    }
out:
    if (err.status) fkv_errs_add(errs, &err);
    for (int i = 0; t && i < t->n_lines; i++) free_line(&t->lines[i]);
    free(t);
    return st;
}

double fkv_survey_mean_kept(const fkv_survey *s)
{
    double sum = 0;
    for (int64_t i = 0; i < s->n; i++) sum += (double)s->records[i].n_kept;
    return s->n ? sum / (double)s->n : 0;
}

double fkv_survey_mean_new(const fkv_survey *s)
{
    double sum = 0;
    for (int64_t i = 0; i < s->n; i++) sum += (double)s->records[i].max_new;
    return s->n ? sum / (double)s->n : 0;
}

void fkv_survey_free(fkv_survey *s)
{
    for (size_t i = 0; i < s->n_archives; i++) free(s->archives[i].stop);
    free(s->archives);
    free(s->records);
    *s = (fkv_survey){0};
}
