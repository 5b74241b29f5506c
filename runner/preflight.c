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

typedef struct looking {
    const fkv_setup *setup;
    fkv_buf *lines;
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

/* One record is enough, but where its dataset has no template: others may have one. */
static bool see_record(void *ctx, const fkv_line *line)
{
    looking *l = ctx;
    l->n_records++;
    if (line->error_code || !l->setup->parser) l->known = true;
    if (line->error_code || !l->setup->parser) return true;
    if (fkv_record_parse(l->setup->parser, line, &l->record, &l->err)) return true;
    check_template(l, line);
    if (strcmp(l->record.error_code, "unknown_dataset") != 0) l->known = true;
    if (!l->known && !l->unknown[0]) snprintf(l->unknown, sizeof l->unknown, "%s", l->record.error_message);
    return l->known;
}

static fkv_status put_place(looking *l, const char *before, const char *member, int64_t line, fkv_err *err)
{
    if (!*member) return FKV_OK;
    fkv_status st = fkv_buf_puts(l->lines, before, err);
    if (!st && line > 0) st = fkv_buf_printf(l->lines, err, "line %lld of ", (long long)line);
    return st ? st : fkv_json_put_string(l->lines, member, strlen(member), err);
}

/* Says where reading stopped. */
static void end_archive(void *ctx, const fkv_input_file *file, fkv_looked how, const char *member,
                        int64_t line)
{
    looking *l = ctx;
    const bool any = l->n_records > l->before;
    fkv_status st = fkv_buf_printf(l->lines, &l->err, "%s: ", file->name);
    l->before = l->n_records;
    l->n_files++;
    if (how != FKV_LOOKED_ENOUGH && !any && !l->other.len) fkv_buf_puts(&l->other, member, &l->err);
    if (how == FKV_LOOKED_FAR) l->open_end = true;
    if (!st && how == FKV_LOOKED_ENOUGH) {
        st = fkv_buf_puts(l->lines, "looked at as far as its first record", &l->err);
        if (!st) st = put_place(l, ", ", member, line, &l->err);
    } else if (!st && how == FKV_LOOKED_FAR) {
        st = fkv_buf_printf(l->lines, &l->err, "no record that is wanted in its first %lld MiB",
                            (long long)(FKV_PREFLIGHT_BYTES >> 20));
        if (!st) st = put_place(l, ", down to ", member, line, &l->err);
    } else if (!st) {
        st = fkv_buf_puts(l->lines, any ? "looked at to its end" : "holds no record that is wanted", &l->err);
    }
    if (!st) fkv_buf_puts(l->lines, "\n", &l->err);
}

static bool is_interrupted(void *ctx)
{
    (void)ctx;
    return fkv_interrupt_asked();
}

static void look_at_input(looking *l, fkv_errs *errs)
{
    const fkv_look look = {.ctx = l,
                           .most_bytes = FKV_PREFLIGHT_BYTES,
                           .see = see_record,
                           .done = end_archive,
                           .stop = is_interrupted};
    fkv_input_look(l->setup->job, &look, errs);
    add_error(errs, &l->err);
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

static void verify(fkv_setup *s, looking *l, fkv_preflight *found, fkv_errs *errs)
{
    fkv_err err = {0};
    fkv_sizing z = {0};
    fkv_output *output = NULL;
    /* Before the model is opened: cron may start a run beside another every minute. */
    const fkv_status folder = fkv_output_check(s->job, fkv_interrupt_asked, &err);
    add_error(errs, &err);
    if (folder == FKV_E_BUSY || folder == FKV_E_INTERRUPTED) return;
    const int before = errs->n;
    fkv_setup_load(s, errs);
    const bool loaded = errs->n == before;
    look_at_input(l, errs);
    /* An output is compared with all that the job names. */
    if (!errs->n && check_output(s, &output, found, errs)) goto out;
    check_records(l, errs);
    if (loaded) check_machine(s, has_plan(s, output), &z, errs);
    if (output) check_pins(s, output, &z, errs);
out:
    fkv_output_close(output);
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

int fkv_preflight_open(int argc, char **argv, const char *usage, fkv_setup *s, fkv_preflight *found)
{
    fkv_errs errs = {0};
    looking l = {.setup = s, .lines = &found->input};
    *found = (fkv_preflight){0};
    int code = fkv_setup_parse(argc, argv, usage, s, &errs);
    if (code < 0 && !errs.n) verify(s, &l, found, &errs);
    if (code < 0) code = report(&errs);
    fkv_record_free(&l.record);
    fkv_buf_free(&l.other);
    fkv_errs_free(&errs);
    return code;
}

void fkv_preflight_close(fkv_preflight *found)
{
    fkv_buf_free(&found->input);
}
