/* What a run would refuse: see preflight.h. */
#include "runner/preflight.h"

#include <stdlib.h>
#include <string.h>

#include "jobs/archive.h"
#include "jobs/error_limit.h"
#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/log.h"
#include "runner/interrupt.h"
#include "runner/planning.h"

static void add_error(fkv_errs *errs, fkv_err *err)
{
    if (err->status) fkv_errs_add(errs, err);
    *err = (fkv_err){0};
}

/* ---- the input ---- */

/* First records that are made a prompt of, and how long their lines may be: a moment's work. */
enum { TRIED_MOST = 64, TRIED_BYTES = 1 << 20 };

typedef struct looking {
    const fkv_setup *setup;
    bool apart;             /* the output is not looked at */
    bool closed;            /* the job has mistakes: no record is looked at */
    fkv_prompter *prompter; /* or NULL: no prompt is made */
    int n_tried;
    fkv_record record;
    int64_t n_records; /* of all archives */
    int64_t before;    /* of those, of archives that are done with */
    bool known;        /* a record is not of an unknown dataset */
    bool open_end;     /* some archive was not looked at to its end */
    size_t n_files;    /* that could be looked at */
    char unknown[256]; /* what is wrong with the first that is */
    fkv_buf other;     /* a member that is not wanted */
    fkv_err err;
} looking;

/* A template into which nothing of the record goes asks the same of all of them, and one that names a
 * field that is not there asks with the braces in it. */
static void check_template(looking *l, const fkv_line *line)
{
    const fkv_record *r = &l->record;
    const char *file = l->setup->job->input.prompts;
    if (!file || !r->dataset.len || r->error_code[0] || l->err.status) return;
    if (r->unfilled[0])
        fkv_fail_at(&l->err, FKV_E_INPUT, file, 0, r->dataset.data,
                    "the template names {%s}, which the first record, line %lld of %s, lacks", r->unfilled,
                    (long long)line->line, line->member);
    else if (r->by_template && !r->n_filled)
        fkv_fail_at(
            &l->err, FKV_E_INPUT, file, 0, r->dataset.data,
            "the template names neither {context} nor {input} nor another field of the record, so all "
            "prompts are the same");
}

/* Whether the chat template takes an archive's first record. If not, the record becomes an error row, and
 * perhaps all of them: nothing to refuse, but to say. */
static void try_prompt(looking *l, const fkv_line *line)
{
    fkv_ids ids = {0};
    int64_t max_new, truncated;
    fkv_record *r = &l->record;
    if (!l->prompter || r->error_code[0] || l->n_tried == TRIED_MOST || line->n > TRIED_BYTES) return;
    l->n_tried++;
    if (!fkv_prompter_make(l->prompter, r, &ids, &max_new, &truncated, &l->err) &&
        !strcmp(r->error_code, "chat_template"))
        fkv_log("WARNING: of %s line %lld of %s, its first record, will be an error row: %s", line->archive,
                (long long)line->line, line->member, r->error_message);
    fkv_ids_free(&ids);
}

/* One record is enough, but where its dataset has no template: others may have one. */
static bool see_record(void *ctx, const fkv_line *line)
{
    looking *l = ctx;
    l->n_records++;
    if (line->error_code || !l->setup->parser || l->closed) l->known = true;
    if (line->error_code || !l->setup->parser || l->closed) return true;
    if (fkv_record_parse(l->setup->parser, line, &l->record, &l->err)) return true;
    check_template(l, line);
    if (strcmp(l->record.error_code, "unknown_dataset") != 0) l->known = true;
    if (!l->known && !l->unknown[0]) snprintf(l->unknown, sizeof l->unknown, "%s", l->record.error_message);
    if (l->known) try_prompt(l, line);
    return l->known;
}

static void end_archive(void *ctx, const fkv_look_end *end)
{
    looking *l = ctx;
    const bool any = l->n_records > l->before;
    l->before = l->n_records;
    l->n_files++;
    if (end->how != FKV_LOOKED_ENOUGH && !any && !l->other.len) fkv_buf_puts(&l->other, end->member, &l->err);
    if (end->how == FKV_LOOKED_FAR) l->open_end = true;
}

/* prompts: what prompts are made with is there. */
static void look_at_input(looking *l, bool prompts, fkv_errs *errs)
{
    const fkv_layout layout = fkv_setup_layout(l->setup);
    const fkv_prompt_source source = fkv_setup_prompts(l->setup, &layout);
    if (prompts && fkv_prompter_open(&source, &l->prompter, &l->err)) add_error(errs, &l->err);
    const fkv_look look = {.ctx = l,
                           .most_bytes = FKV_PREFLIGHT_BYTES,
                           .see = see_record,
                           .done = end_archive,
                           .stop = fkv_interrupt_asks};
    fkv_input_look(l->setup->job, &look, errs);
    add_error(errs, &l->err);
    fkv_prompter_close(l->prompter);
}

/* Whether there is anything to answer. What was not looked at may hold it. */
static void check_records(looking *l, fkv_errs *errs)
{
    fkv_err err = {0};
    if (l->known || l->open_end || l->n_files < l->setup->job->input.n_files) return;
    if (l->n_records == 0)
        fkv_setup_no_record(l->setup, l->other.data ? l->other.data : "", &err);
    else
        fkv_fail_at(&err, FKV_E_INPUT, l->setup->job->path, 0, "input.prompts",
                    "names no dataset of the input: %s", l->unknown);
    add_error(errs, &err);
}

/* ---- the machine ---- */

/* planned: a plan is there, so that its constants are not asked for again. */
static void check_machine(const fkv_setup *s, bool planned, fkv_sizing *z, fkv_errs *errs)
{
    const fkv_profile none = {0};
    fkv_err err = {0};
    fkv_status st = fkv_sizing_probe(s, z, &err);
    if (!st) {
        const fkv_layout layout = fkv_setup_layout(s);
        fkv_sizing_update(s, &layout, &none, z);
        st = fkv_sizing_check_model(z, &err);
    }
    if (st) add_error(errs, &err);
    if (!planned && fkv_constants_check(s, &err)) add_error(errs, &err);
}

/* ---- the output ---- */

/* What an earlier run fixed for all of them; what differs is noted. z: of a device that opened; numerics of
 * one that has loaded a model are longer. */
static void check_pins(const fkv_setup *s, fkv_output *output, const fkv_sizing *z, fkv_errs *errs)
{
    fkv_err err = {0};
    const int before = errs->n;
    const char *numerics = fkv_output_pinned(output, "numerics");
    fkv_status st = fkv_planning_pin(s, output, &err);
    if (!st && numerics && z->numerics[0] && strncmp(numerics, z->numerics, strlen(z->numerics)) != 0)
        st = fkv_output_pin(output, "numerics", z->numerics, &err);
    if (!st && errs->n == before && !s->job->job.restart) st = fkv_planning_check_files(s, output, &err);
    if (st) add_error(errs, &err);
}

/* Compares the output that is there with the job. FKV_OK: there is more to check. */
static fkv_status check_output(const fkv_setup *s, fkv_output **output, fkv_preflight *found, fkv_errs *errs)
{
    fkv_err err = {0};
    fkv_output_totals *t = &found->output;
    if (fkv_output_look(s->job, errs, output, &err)) {
        add_error(errs, &err);
        return FKV_OK;
    }
    fkv_output_totals_get(*output, t);
    if (t->complete) return FKV_END; /* nothing to do, whatever has become of the input */
    if (!fkv_error_limit_check(s->job, t->records, t->errors, t->ended, true, &err)) return FKV_OK;
    add_error(errs, &err);
    return FKV_END;
}

static bool has_plan(const fkv_setup *s, const fkv_output *output)
{
    char *path = output && !s->job->job.restart ? fkv_output_path(output, "plan.json", false) : NULL;
    const bool has = path && fkv_file_exists(path);
    free(path);
    return has;
}

/* ---- all of it ---- */

/* The folder is looked at before the model is opened: cron may start a run beside another every minute. */
static void verify(fkv_setup *s, looking *l, fkv_preflight *found, fkv_errs *errs)
{
    fkv_err err = {0};
    fkv_output *output = NULL;
    const fkv_status folder = l->apart ? FKV_OK : fkv_output_check(s->job, fkv_interrupt_asked, &err);
    add_error(errs, &err);
    if (folder == FKV_E_BUSY || folder == FKV_E_INTERRUPTED) return;
    const int before = errs->n;
    fkv_setup_load(s, errs);
    const bool loaded = errs->n == before;
    look_at_input(l, loaded, errs);
    /* An output is compared with all that the job names. */
    if (!l->apart && !errs->n && check_output(s, &output, found, errs)) goto out;
    check_records(l, errs);
    if (loaded) check_machine(s, has_plan(s, output), &found->sizing, errs);
    if (output) check_pins(s, output, &found->sizing, errs);
out:
    fkv_output_close(output);
}

/* What else is wrong with a job that has mistakes: what the sound keys name is opened. */
static void verify_rest(fkv_setup *s, looking *l, fkv_errs *errs)
{
    fkv_err err = {0};
    l->closed = true;
    /* Only mistakes count: it is no matter who holds the folder. */
    if (!l->apart && s->job->job.output && fkv_output_check(s->job, fkv_interrupt_asked, &err) == FKV_E_INPUT)
        add_error(errs, &err);
    fkv_setup_load(s, errs);
    look_at_input(l, false, errs);
}

static int report(const fkv_errs *errs)
{
    if (!errs->n) return -1;
    for (int i = 0; i < errs->n && i < FKV_ERRS_MAX; i++) {
        if (errs->at[i].status != FKV_E_INTERRUPTED) continue;
        fkv_log("interrupted by signal %d; run it again to resume", fkv_interrupt_signal());
        return fkv_exit_code(FKV_E_INTERRUPTED);
    }
    return fkv_report_errors(errs);
}

static int open_job(int argc, char **argv, const char *usage, bool apart, fkv_setup *s, fkv_preflight *found)
{
    fkv_errs errs = {0};
    looking l = {.setup = s, .apart = apart};
    *found = (fkv_preflight){0};
    int code = fkv_setup_parse(argc, argv, usage, s, &errs);
    if (code < 0 && !errs.n)
        verify(s, &l, found, &errs);
    else if (code < 0 && s->job)
        verify_rest(s, &l, &errs);
    if (code < 0) code = report(&errs);
    fkv_record_free(&l.record);
    fkv_buf_free(&l.other);
    fkv_errs_free(&errs);
    return code;
}

int fkv_preflight_open(int argc, char **argv, const char *usage, fkv_setup *s, fkv_preflight *found)
{
    return open_job(argc, argv, usage, false, s, found);
}

int fkv_preflight_open_apart(int argc, char **argv, const char *usage, fkv_setup *s, fkv_preflight *found)
{
    return open_job(argc, argv, usage, true, s, found);
}
