/* What init finds: see init_look.h. */
#include "runner/init_look.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"

/* Of an archive, decompressed, before its first record; and how many patterns there may be. */
#define LOOK_BYTES ((int64_t)64 << 20)
enum { PATTERNS_MOST = 8 };

/* ---- records ---- */

typedef struct looking {
    fkv_init_find *find;
    fkv_record_parser *parser;
    fkv_record record;
    int n_patterns;
    fkv_err err;
} looking;

static bool has_word(const fkv_buf *words, const char *word)
{
    const size_t n = strlen(word);
    for (const char *p = words->data; p && (p = strstr(p, word)); p += n)
        if ((p == words->data || p[-1] == ' ') && (p[n] == ' ' || !p[n])) return true;
    return false;
}

/* The pattern of all members with the same suffix. */
static void add_pattern(looking *l, const char *member)
{
    fkv_buf *words = &l->find->members;
    const char *slash = strrchr(member, '/'), *base = slash ? slash + 1 : member, *dot = strrchr(base, '.');
    char pattern[32] = "*";
    if (dot && strlen(dot) > 1 && strlen(dot) < 16 && !strpbrk(dot, " \t*?[]\\;#$\"'"))
        snprintf(pattern, sizeof pattern, "*%s", dot);
    if (has_word(words, pattern) || l->n_patterns == PATTERNS_MOST) return;
    l->n_patterns++;
    if (words->len) fkv_buf_puts(words, " ", &l->err);
    fkv_buf_puts(words, pattern, &l->err);
}

/* Lines that are no records, such as a README's, are passed over. */
static bool see(void *ctx, const fkv_line *line)
{
    looking *l = ctx;
    if (line->error_code) return false;
    if (fkv_record_parse(l->parser, line, &l->record, &l->err)) return true;
    if (l->record.format == FKV_FORMAT_AUTO) return false;
    if (l->find->format == FKV_FORMAT_AUTO) l->find->format = l->record.format;
    if (l->record.wrap == FKV_WRAP_MESSAGES) l->find->messages = true;
    add_pattern(l, line->member);
    return true;
}

static void end_archive(void *ctx, const fkv_look_end *end)
{
    (void)ctx, (void)end;
}

fkv_status fkv_init_look_at_records(const char *job_file, fkv_init_find *find, fkv_errs *errs)
{
    fkv_job *job = NULL;
    looking l = {.find = find};
    const fkv_look look = {.ctx = &l, .most_bytes = LOOK_BYTES, .see = see, .done = end_archive};
    fkv_status st = fkv_job_parse(job_file, NULL, 0, &job, errs);
    if (!st) st = fkv_record_parser_open(job, &l.parser, errs);
    if (!st) st = fkv_input_look(job, &look, errs);
    if (!st && l.err.status) {
        fkv_errs_add(errs, &l.err);
        st = l.err.status;
    }
    fkv_record_free(&l.record);
    fkv_record_parser_close(l.parser);
    fkv_job_free(job);
    return st;
}

/* ---- what lies beside the archive ---- */

/* Whether a file goes with the archive: it has that name, or begins as the archive does, as
 * needle-dataset2prompt.json goes with needle.tar.zst. */
static bool goes_with(const char *name, const char *archive, const char *suffix)
{
    const size_t n = strlen(name), k = strlen(suffix);
    if (n < k || strcmp(name + n - k, suffix) != 0) return false;
    return n == k || (n > k + 1 && strchr("-_.", name[n - k - 1]) && !strncmp(name, archive, n - k - 1));
}

/* The file in dir, the one that is named most closely, or NULL: malloc'd. */
static char *find_in(const char *dir, const char *archive, const char *suffix)
{
    DIR *d = opendir(dir);
    const struct dirent *e;
    char best[256] = "";
    while (d && (e = readdir(d)))
        if (goes_with(e->d_name, archive, suffix) && strlen(e->d_name) > strlen(best))
            snprintf(best, sizeof best, "%s", e->d_name);
    if (d) closedir(d);
    return best[0] ? fkv_path_join(dir, best) : NULL;
}

/* LongBench's repository has them in config/, beside the data or above it. */
static fkv_status find_beside(const char *archive, const char *suffix, char **out, fkv_err *err)
{
    static const char *const places[] = {"", ".", "config", "..", "../config"};
    const char *slash = strrchr(archive, '/'), *base = slash ? slash + 1 : archive;
    char *dir = fkv_path_dir(archive);
    fkv_status st = dir ? FKV_OK : fkv_fail_memory(err);
    for (size_t i = 0; !st && !*out && i < sizeof places / sizeof *places; i++) {
        char *place = !i                        ? strdup(archive)
                      : !strcmp(places[i], ".") ? strdup(dir)
                                                : fkv_path_join(dir, places[i]);
        if (place)
            *out = find_in(place, base, suffix);
        else
            st = fkv_fail_memory(err);
        free(place);
    }
    free(dir);
    return st;
}

fkv_status fkv_init_look_beside(const char *archive, fkv_init_find *find, fkv_err *err)
{
    const fkv_status st = find_beside(archive, "dataset2prompt.json", &find->prompts, err);
    return st ? st : find_beside(archive, "dataset2maxlen.json", &find->limits, err);
}

/* ---- prompts ---- */

fkv_status fkv_init_look_at_prompts(const char *job_file, fkv_init_find *find, fkv_errs *errs)
{
    char command[] = "init", path[64];
    fkv_setup setup;
    fkv_survey survey = {0};
    snprintf(path, sizeof path, "%s", job_file);
    int code = fkv_setup_parse(2, (char *[]){command, path, NULL}, "", &setup, errs);
    if (code < 0 && !errs->n) fkv_setup_load(&setup, errs);
    if (code < 0 && !errs->n) fkv_survey_take(&setup, &survey, errs);
    if (code < 0 && !errs->n) {
        find->has_template = setup.template != NULL;
        find->positions = setup.config.max_positions;
        find->n = survey.n;
        find->n_cut = survey.n_cut;
        find->longest = survey.n ? survey.records[survey.n - 1].n_tokens : 0;
        for (int64_t i = 0; i < survey.n; i++)
            find->mean += (double)survey.records[i].n_tokens / (double)survey.n;
    }
    fkv_survey_free(&survey);
    fkv_setup_close(&setup);
    return errs->n ? errs->at[0].status : FKV_OK;
}

void fkv_init_find_free(fkv_init_find *find)
{
    fkv_buf_free(&find->members);
    free(find->prompts);
    free(find->limits);
    *find = (fkv_init_find){0};
}
