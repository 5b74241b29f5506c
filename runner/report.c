/* What report.html is made of: see report.h. */
#include "runner/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/report_file.h"
#include "runner/base/file.h"
#include "runner/base/mem.h"

enum { TRIES = 3 }; /* to have a page that is of now */
static const size_t MAX_JOB_BYTES = (size_t)256 << 10;

/* What becomes of a file that can't be used: a sentence, unless memory or the disk failed. */
static fkv_status note(fkv_status st, const fkv_err *why, char text[FKV_REPORT_WHY], fkv_err *err)
{
    if (st == FKV_E_INPUT) {
        fkv_err_format(why, text, FKV_REPORT_WHY);
        return FKV_OK;
    }
    return st ? fkv_fail_at(err, st, why->file, 0, NULL, "%s", why->message) : FKV_OK;
}

static fkv_status read_standing(const char *folder, fkv_report_effort effort, fkv_report *x, fkv_err *err)
{
    fkv_err why = {0};
    if (effort == FKV_REPORT_QUICK) return fkv_standing_glance(folder, &x->standing, err);
    const fkv_status st = fkv_standing_read(folder, &x->standing, &why);
    if (!st) return FKV_OK;
    if (st != FKV_E_INPUT || fkv_standing_glance(folder, &x->standing, NULL)) {
        if (err) *err = why;
        return st;
    }
    return note(st, &why, x->standing_why, err);
}

/* The name of a part's file, or of one of a process that shares the output. */
static void part_file(const fkv_standing *s, const char *stem, const char *suffix, int64_t part,
                      char name[64])
{
    if (s->n_sharing)
        snprintf(name, 64, "%s-auto%lld%s", stem, (long long)part, suffix);
    else if (s->n_parts > 1)
        snprintf(name, 64, "%s-%lldof%lld%s", stem, (long long)part, (long long)s->n_parts, suffix);
    else
        snprintf(name, 64, "%s%s", stem, suffix);
}

/* Many parts may each say what one at the most may. */
static void add(int64_t *to, int64_t more)
{
    if (__builtin_add_overflow(*to, more, to)) *to = INT64_MAX;
}

static void add_lengths(fkv_stats_lengths *to, const fkv_stats_lengths *from)
{
    for (int k = 0; k < FKV_STATS_LENGTHS; k++) add(&to->at[k], from->at[k]);
}

static void add_sums(fkv_stats_sums *to, const fkv_stats_sums *from)
{
    add(&to->runs, from->runs);
    add(&to->prompt_tokens, from->prompt_tokens);
    add(&to->completion_tokens, from->completion_tokens);
    for (int i = 0; i < FKV_STAGES; i++) to->seconds[i] += from->seconds[i];
    to->gpu_seconds += from->gpu_seconds;
    to->joules += from->joules;
    add(&to->energy_runs, from->energy_runs);
    if (from->last_success > to->last_success) to->last_success = from->last_success;
}

/* Takes what a part's stats.json says; of parts beyond the first FKV_REPORT_PARTS only their sums. */
static fkv_status read_part(const char *path, int64_t part, fkv_report *x, fkv_err *err)
{
    fkv_stats_history h;
    fkv_stats_run *run = NULL;
    fkv_err why = {0};
    char text[FKV_REPORT_WHY] = "";
    fkv_status st = FKV_OK;
    if (fkv_file_exists(path)) {
        st = fkv_stats_run_read(path, &run, &why);
        if (!st) st = fkv_stats_read(path, &h, &why);
        if (!st) add_sums(&x->sums, &h.sums);
        if (!st) add_lengths(&x->prompts, &run->prompts);
        if (!st) add_lengths(&x->answers, &run->answers);
        if (st) free(run);
        if (st) run = NULL;
        if ((st = note(st, &why, text, err))) return st;
        if (text[0]) x->unread = true;
    }
    if (part >= FKV_REPORT_PARTS) {
        free(run);
        return FKV_OK;
    }
    fkv_report_part *p = &x->parts[x->n_parts++];
    *p = (fkv_report_part){.part = part, .run = run};
    if (text[0] && !(p->why = strdup(text))) return fkv_fail_memory(err);
    if (run && (!x->last || run->stats.start_time > x->last->run->stats.start_time)) x->last = p;
    return FKV_OK;
}

/* Whether a part's lease is of a run that has not said its last word; who writes this page at its own end
 * has. */
static bool is_at_work(const fkv_report *x, const fkv_report_part *p)
{
    char name[64];
    const fkv_standing *s = &x->standing;
    part_file(s, "lock", "", p->part, name);
    for (int i = 0; i < s->n_locks; i++)
        if (!strcmp(s->locks[i].file, name))
            return !p->run || p->run->stats.running || s->locks[i].since > p->run->stats.time;
    return false;
}

static fkv_status read_parts(const char *folder, fkv_report *x, fkv_err *err)
{
    fkv_status st = FKV_OK;
    const fkv_standing *s = &x->standing;
    for (int64_t i = 0; !st && i < (s->n_sharing ? s->n_sharing : s->n_parts); i++) {
        char name[64];
        part_file(s, "stats", ".json", i, name);
        char *path = fkv_path_join(folder, name);
        st = path ? read_part(path, i, x, err) : fkv_fail_memory(err);
        free(path);
    }
    for (int i = 0; !st && i < x->n_parts; i++) x->at_work = x->at_work || is_at_work(x, &x->parts[i]);
    return st;
}

static fkv_status read_profile(const char *path, fkv_report *x, fkv_err *err)
{
    fkv_err why = {0};
    char *fingerprint = NULL;
    const fkv_status st = fkv_profile_read(path, &x->profile, &fingerprint, &why);
    free(fingerprint);
    if (st) fkv_profile_free(&x->profile);
    return note(st, &why, x->profile_why, err);
}

static fkv_status read_plan(const char *path, fkv_report *x, fkv_err *err)
{
    fkv_err why = {0};
    char *fingerprint = NULL;
    fkv_status st = fkv_plan_read(path, &x->plan, &fingerprint, &why);
    free(fingerprint);
    if (!st && !x->profile.n_layers)
        st = fkv_fail_at(&why, FKV_E_INPUT, path, 0, NULL, "says nothing without profile.json");
    const bool fits = x->plan.n_layers == x->profile.n_layers && x->plan.n_kv_heads == x->profile.n_kv_heads;
    if (!st && !fits)
        st = fkv_fail_at(&why, FKV_E_INPUT, path, 0, NULL, "and profile.json are not of one model");
    if (st) fkv_plan_free(&x->plan);
    if (st) return note(st, &why, x->plan_why, err);
    const size_t n = (size_t)x->plan.n_layers * (size_t)x->plan.n_kv_heads;
    if (!(x->tokens = fkv_calloc(n, sizeof *x->tokens))) return fkv_fail_memory(err);
    fkv_cost_tokens(&x->profile, x->tokens);
    return fkv_plan_at_home(&x->plan, &x->home, err);
}

/* One of the folder's files that all parts share. A missing one is no surprise: a run may have ended before
 * it. */
static fkv_status read_shared(const char *folder, const char *name,
                              fkv_status (*read)(const char *path, fkv_report *x, fkv_err *err), char *why,
                              fkv_report *x, fkv_err *err)
{
    char *path = fkv_path_join(folder, name);
    if (!path) return fkv_fail_memory(err);
    fkv_status st = FKV_OK;
    if (fkv_file_exists(path))
        st = read(path, x, err);
    else
        snprintf(why, FKV_REPORT_WHY, "There is no %s: no run came so far.", name);
    free(path);
    return st;
}

static fkv_status read_job(const char *folder, fkv_report *x, fkv_err *err)
{
    char *path = fkv_path_join(folder, "job.ini");
    if (!path) return fkv_fail_memory(err);
    fkv_err why = {0};
    fkv_status st = fkv_file_read(path, MAX_JOB_BYTES, &x->job_ini, &why);
    if (st) fkv_buf_clear(&x->job_ini);
    if (st == FKV_E_INPUT) st = FKV_OK;
    free(path);
    return st ? fkv_fail_at(err, st, why.file, 0, NULL, "%s", why.message) : FKV_OK;
}

fkv_status fkv_report_read(const char *folder, fkv_report_effort effort, fkv_report *x, fkv_err *err)
{
    *x = (fkv_report){0};
    fkv_status st = read_standing(folder, effort, x, err);
    if (!st) st = read_parts(folder, x, err);
    if (!st) st = read_shared(folder, "profile.json", read_profile, x->profile_why, x, err);
    if (!st) st = read_shared(folder, "plan.json", read_plan, x->plan_why, x, err);
    if (!st) st = read_job(folder, x, err);
    if (st) fkv_report_free(x);
    return st;
}

void fkv_report_free(fkv_report *x)
{
    fkv_standing_free(&x->standing);
    for (int i = 0; i < x->n_parts; i++) {
        free(x->parts[i].run);
        free(x->parts[i].why);
    }
    fkv_profile_free(&x->profile);
    fkv_plan_free(&x->plan);
    fkv_plan_free(&x->home);
    free(x->tokens);
    fkv_buf_free(&x->job_ini);
    *x = (fkv_report){0};
}

fkv_status fkv_report_make(const char *folder, fkv_report_effort effort, fkv_markup *page)
{
    fkv_report *x = fkv_calloc(1, sizeof *x);
    if (!x) return page->st = fkv_fail_memory(page->err);
    page->st = fkv_report_read(folder, effort, x, page->err);
    if (!page->st) fkv_report_html(x, page);
    fkv_report_free(x);
    free(x);
    return page->st;
}

/* Between our reading and our writing another part may have said its last word, and written a page that has
 * it: then ours, which has not, is made again. */
fkv_status fkv_report_save(const char *folder, fkv_report_effort effort, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (int i = 0; !st && i < TRIES; i++) {
        const uint64_t before = fkv_report_file_state(folder);
        fkv_markup page = {.err = err};
        st = fkv_report_make(folder, effort, &page);
        if (!st) st = fkv_report_file_write(folder, page.buf.data, page.buf.len, err);
        fkv_markup_free(&page);
        if (fkv_report_file_state(folder) == before) break;
    }
    return st;
}
