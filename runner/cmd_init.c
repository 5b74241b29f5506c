/* fairkv-batch init: a commented job file for a model folder and an archive that it looks at. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runner/base/file.h"
#include "runner/commands.h"
#include "runner/init_look.h"

static const char usage[] =
    "usage: fairkv-batch init MODEL_DIR ARCHIVE [-o FILE]\n"
    "\n"
    "Looks at a model folder and an archive (or a file of records, or a folder of them) and writes a\n"
    "commented job file for both: the records' format, templates of datasets that lie beside the archive,\n"
    "the chat template, a budget that suits the prompts.\n"
    "\n"
    "  -o FILE   writes FILE, which must not be there yet, with paths below its folder relative to it;\n"
    "            else the job goes to standard output, with absolute paths\n"
    "  --help    shows this\n";

/* What a budget may be: the job's cache is worth compressing from twice the least on. */
enum { BUDGET_LEAST = 128, BUDGET_MOST = 1024, BUDGET_STEP = 64, KEPT_PART = 4 };

typedef struct options {
    char *model, *archive; /* absolute */
    const char *file;      /* NULL: standard output */
    bool help;
} options;

/* A job text in memory that can be opened by its name. */
typedef struct draft {
    int fd;
    char path[32];
} draft;

static fkv_status write_draft(const fkv_buf *text, draft *d, fkv_err *err)
{
    d->fd = memfd_create("job.ini", MFD_CLOEXEC);
    if (d->fd < 0) return fkv_fail_errno(err, NULL, "a file in memory");
    snprintf(d->path, sizeof d->path, "/dev/fd/%d", d->fd);
    return fkv_write_all(d->fd, text->data, text->len, d->path, err);
}

/* The path as the job file has it: relative to base, where it lies below. base: absolute, or NULL. */
static const char *seen_from(const char *base, const char *path)
{
    const size_t n = base ? strlen(base) : 0;
    const bool below = base && !strncmp(path, base, n) && path[n] == '/' && path[n + 1];
    return below && !strchr(" \"'~", path[n + 1]) ? path + n + 1 : path;
}

static fkv_status put_path(const char *section, const char *key, const char *base, const char *path,
                           bool pattern, fkv_buf *out, fkv_err *err)
{
    const fkv_status st = fkv_buf_printf(out, err, "%s = ", key);
    return st ? st : fkv_job_write_path(section, seen_from(base, path), pattern, out, err);
}

/* ---- the text, section by section ---- */

/* A name of letters that need no escape, from the archive's without its suffixes. */
static void name_of(const char *archive, char out[64])
{
    size_t end = strlen(archive), n = 0;
    while (end > 1 && archive[end - 1] == '/') end--;
    size_t at = end;
    while (at > 0 && archive[at - 1] != '/') at--;
    for (; at < end && n < 60 && !(archive[at] == '.' && n); at++) {
        const char c = archive[at];
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (plain || c == '_' || (n && out[n - 1] != '-')) out[n++] = plain || c == '_' ? c : '-';
    }
    while (n && out[n - 1] == '-') n--;
    out[n] = '\0';
    if (!n) snprintf(out, 64, "job");
}

static fkv_status put_job(const options *o, fkv_buf *out, fkv_err *err)
{
    char name[64];
    name_of(o->archive, name);
    return fkv_buf_printf(
        out, err,
        "; What this job would do says: fairkv-batch check FILE. Every key that there is, with its\n"
        "; default: fairkv-batch help keys. A value stands as it is, without quotes.\n"
        "[job]\n"
        "name = %s\n"
        "; The folder of the answers; a relative path starts at this file.\n"
        "output = out/%s\n"
        "; Stops early after so many error rows, or a share such as 1%%; 0 never does.\n"
        "max_errors = 0\n",
        name, name);
}

static fkv_status put_templates(const fkv_init_find *x, const char *base, fkv_buf *out, fkv_err *err)
{
    if (x->format != FKV_FORMAT_LONGBENCH) return FKV_OK;
    fkv_status st = x->prompts
                        ? put_path("input", "prompts", base, x->prompts, false, out, err)
                        : fkv_buf_puts(out,
                                       "; MISSING: the file of prompt templates by dataset, LongBench's "
                                       "config/dataset2prompt.json:\n"
                                       "; prompts = dataset2prompt.json\n",
                                       err);
    if (st) return st;
    return x->limits ? put_path("input", "max_new_tokens_by", base, x->limits, false, out, err)
                     : fkv_buf_puts(out,
                                    "; Limits of new tokens by dataset, if there are any:\n"
                                    "; max_new_tokens_by = dataset2maxlen.json\n",
                                    err);
}

/* final: else the job is only looked at, and what is missing yet is no reason to refuse it. */
static fkv_status put_input(const options *o, const fkv_init_find *x, const char *base, bool final,
                            fkv_buf *out, fkv_err *err)
{
    const bool usable = x->format != FKV_FORMAT_LONGBENCH || x->prompts || final;
    fkv_status st = fkv_buf_puts(out, "\n[input]\n", err);
    if (!st) st = put_path("input", "archives", base, o->archive, true, out, err);
    if (!st)
        st = fkv_buf_printf(out, err, "; Patterns of the members to read; * also matches /.\nmembers = %s\n",
                            x->members.len ? x->members.data : "*");
    if (!st && x->format == FKV_FORMAT_LONGBENCH)
        st = fkv_buf_puts(out, "; Members that end in _e are LongBench-E's: *_e.jsonl takes these alone.\n",
                          err);
    if (!st) st = fkv_buf_printf(out, err, "format = %s\n", usable ? fkv_format_name(x->format) : "auto");
    return st ? st : put_templates(x, base, out, err);
}

static fkv_status put_model(const options *o, const fkv_init_find *x, const char *base, fkv_buf *out,
                            fkv_err *err)
{
    fkv_status st = fkv_buf_puts(out, "\n[model]\n", err);
    if (!st) st = put_path("model", "path", base, o->model, false, out, err);
    if (!st && x->has_template)
        st = fkv_buf_puts(out, "; auto: the model folder's, which is there; none, or a Jinja file.\n", err);
    else if (!st && x->messages)
        st = fkv_buf_puts(
            out,
            "; MISSING: the records have messages, and the model folder has no chat template: name a\n"
            "; Jinja file.\n",
            err);
    else if (!st)
        st = fkv_buf_puts(out, "; The model folder has none: prompts are asked as they are.\n", err);
    if (!st) st = fkv_buf_puts(out, "chat_template = auto\n", err);
    if (!st && x->n_cut)
        st = fkv_buf_printf(
            out, err, "; %lld of %lld prompts looked at are longer than the model's %lld positions leave.\n",
            (long long)x->n_cut, (long long)x->n, (long long)x->positions);
    return st ? st
              : fkv_buf_puts(out,
                             "; Where a prompt that is too long is cut: left, right, middle, longbench; or "
                             "error.\ntruncate = middle\n",
                             err);
}

/* A quarter of the mean prompt, within bounds; 0: prompts are so short that all of it is kept. */
static int64_t budget_for(const fkv_init_find *x)
{
    const int64_t part = ((int64_t)(x->mean / KEPT_PART) + BUDGET_STEP - 1) / BUDGET_STEP * BUDGET_STEP;
    if (x->n && x->longest <= (int64_t)2 * BUDGET_LEAST) return 0;
    if (!x->n || part > BUDGET_MOST) return BUDGET_MOST;
    return part < BUDGET_LEAST ? BUDGET_LEAST : part;
}

static fkv_status put_rest(const fkv_init_find *x, fkv_buf *out, fkv_err *err)
{
    const int64_t budget = budget_for(x);
    fkv_status st = fkv_buf_puts(out, "\n[profile]\n", err);
    if (!st && x->n)
        st = fkv_buf_printf(out, err, "; Prompts looked at have %.0f tokens on average, the longest %lld.\n",
                            x->mean, (long long)x->longest);
    if (!st && budget)
        st = fkv_buf_printf(
            out, err,
            "; Mean tokens of a prompt that a head keeps, or a share such as 25%%: more is closer to the\n"
            "; whole cache, less is faster and takes less memory.\n"
            "method = ada\nbudget = %lld\n",
            (long long)budget);
    else if (!st)
        st = fkv_buf_puts(out, "; So short ones are kept whole.\nmethod = none\n", err);
    return st ? st
              : fkv_buf_puts(out,
                             "\n[engine]\n"
                             "; For records without a limit of their own or of their dataset.\n"
                             "max_new_tokens = 128\n"
                             "; GPU if one can run the model; ranks and slots that end the job first.\n"
                             "backend = auto\ntensor_parallel = auto\nslots = auto\n"
                             "\n[sampling]\n"
                             "; 0: the likeliest token always.\ntemperature = 0\n"
                             "\n[output]\nrecords_per_shard = 1000\n",
                             err);
}

static fkv_status put_all(const options *o, const fkv_init_find *x, const char *base, bool final,
                          fkv_buf *out, fkv_err *err)
{
    fkv_buf_clear(out);
    fkv_status st = put_job(o, out, err);
    if (!st) st = put_input(o, x, base, final, out, err);
    if (!st) st = put_model(o, x, base, out, err);
    return st ? st : put_rest(x, out, err);
}

/* ---- looking, and where the text goes ---- */

/* Looks at a job of what is known so far: first for its records, then at their prompts. */
static fkv_status look_at(const options *o, fkv_init_find *x,
                          fkv_status (*look)(const char *job_file, fkv_init_find *find, fkv_errs *errs),
                          fkv_errs *errs, fkv_err *err)
{
    fkv_buf text = {0};
    draft d = {.fd = -1};
    fkv_status st = put_all(o, x, NULL, false, &text, err);
    if (!st) st = write_draft(&text, &d, err);
    if (!st) st = look(d.path, x, errs);
    if (d.fd >= 0) close(d.fd);
    fkv_buf_free(&text);
    return st;
}

static fkv_status find_all(const options *o, fkv_init_find *x, fkv_errs *errs, fkv_err *err)
{
    fkv_status st = look_at(o, x, fkv_init_look_at_records, errs, err);
    if (!st && x->format == FKV_FORMAT_AUTO)
        return fkv_fail_at(err, FKV_E_INPUT, o->archive, 0, NULL,
                           "no record of a known format in it (longbench, openai, prompt, qa, ruler)");
    if (!st && x->format == FKV_FORMAT_LONGBENCH) st = fkv_init_look_beside(o->archive, x, err);
    return st ? st : look_at(o, x, fkv_init_look_at_prompts, errs, err);
}

static char *absolute(const char *path)
{
    char *cwd = getcwd(NULL, 0), *whole = NULL;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    char *bare = strndup(path, n);
    if (cwd && bare) whole = !strcmp(bare, ".") ? strdup(cwd) : fkv_path_join(cwd, bare);
    free(bare);
    free(cwd);
    return whole;
}

static fkv_status write_file(const char *path, const fkv_buf *text, fkv_err *err)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0 && errno == EEXIST)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "is there already, and init overwrites nothing");
    if (fd < 0) return fkv_fail_open(err, path);
    fkv_status st = fkv_write_all(fd, text->data, text->len, path, err);
    if (close(fd) && !st) st = fkv_fail_errno(err, path, "close");
    if (st) unlink(path);
    return st;
}

static fkv_status write_job(const options *o, const fkv_init_find *x, fkv_err *err)
{
    fkv_buf text = {0};
    char *dir = o->file ? fkv_path_dir(o->file) : NULL, *base = dir ? absolute(dir) : NULL;
    fkv_status st = o->file && !base ? fkv_fail_memory(err) : FKV_OK;
    if (!st) st = put_all(o, x, base, true, &text, err);
    if (!st && o->file)
        st = write_file(o->file, &text, err);
    else if (!st)
        fputs(text.data, stdout);
    if (!st && x->format == FKV_FORMAT_LONGBENCH && !x->prompts)
        fputs("fairkv-batch: init: no dataset2prompt.json beside the archive: name one in input.prompts\n",
              stderr);
    if (!st && x->messages && !x->has_template)
        fputs(
            "fairkv-batch: init: the records have messages, and the model has no chat template: name one in "
            "model.chat_template\n",
            stderr);
    free(base);
    free(dir);
    fkv_buf_free(&text);
    return st;
}

static fkv_status read_options(int argc, char **argv, options *o, fkv_err *err)
{
    int first;
    const fkv_status st = fkv_command_file_option("init", usage, argc, argv, &o->file, &o->help, &first, err);
    if (st || o->help) return st;
    if (argc - first != 2)
        return fkv_fail(err, FKV_E_INPUT, "init: give MODEL_DIR and ARCHIVE; see fairkv-batch help init");
    o->model = absolute(argv[first]);
    o->archive = absolute(argv[first + 1]);
    if (!o->model || !o->archive) return fkv_fail_memory(err);
    if (!fkv_file_exists(o->archive))
        return fkv_fail_at(err, FKV_E_INPUT, argv[first + 1], 0, NULL, "there is no such archive");
    if (o->file && fkv_file_exists(o->file))
        return fkv_fail_at(err, FKV_E_INPUT, o->file, 0, NULL,
                           "is there already, and init overwrites nothing");
    return FKV_OK;
}

int fkv_cmd_init(int argc, char **argv)
{
    fkv_err err = {0};
    fkv_errs errs = {0};
    fkv_init_find find = {0};
    options o = {0};
    int code;
    fkv_status st = read_options(argc, argv, &o, &err);
    if (!st && o.help) {
        fputs(usage, stdout);
        goto out;
    }
    if (!st) st = find_all(&o, &find, &errs, &err);
    if (!st) st = write_job(&o, &find, &err);
out:
    code = errs.n ? fkv_report_errors(&errs) : fkv_command_end(st, &err);
    fkv_init_find_free(&find);
    fkv_errs_free(&errs);
    free(o.archive);
    free(o.model);
    return code;
}
