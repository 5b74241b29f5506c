/* What check says to people: see check_report.h. */
#include "runner/check_report.h"

#include <string.h>

#include "runner/base/utf8.h"

enum { ARCHIVES_MOST = 50, BAR = 40 };

static double mib(int64_t bytes)
{
    return (double)bytes / (1 << 20);
}

/* "~" before what is no exact number. */
static const char *about(bool exact)
{
    return exact ? "" : "~";
}

static const char *plural(int64_t n)
{
    return n == 1 ? "" : "s";
}

/* ---- the input ---- */

static void put_archive(const fkv_survey_archive *a, char *out, size_t size)
{
    const long long read = a->n_read, records = a->n_records, members = a->n_members;
    char stop[2048]; /* where reading ended */
    const char *member = a->stop ? a->stop : "its beginning";
    if (a->line > 0)
        snprintf(stop, sizeof stop, "line %lld of %.1900s", (long long)a->line, member);
    else
        snprintf(stop, sizeof stop, "%.1900s", member);
    if (a->how == FKV_LOOKED_ALL && !read)
        snprintf(out, size, "%s: holds no record that is wanted", a->file->name);
    else if (a->how == FKV_LOOKED_ALL)
        snprintf(out, size, "%s: %lld record%s in %lld member%s", a->file->name, records, plural(read),
                 members, plural(members));
    else if (a->how == FKV_LOOKED_ENOUGH)
        snprintf(out, size, "%s: %lld record%s, as far as job.limit, %s", a->file->name, read, plural(read),
                 stop);
    else if (!read)
        snprintf(out, size, "%s: no record that is wanted in its first %lld MiB, down to %s", a->file->name,
                 (long long)a->bytes >> 20, stop);
    else
        snprintf(out, size, "%s: ~%lld records, by %lld in its first %lld MiB, %.0f%%, down to %s",
                 a->file->name, records, read, (long long)a->bytes >> 20, 100 * a->share, stop);
}

static void print_archives(const fkv_survey *v, FILE *out)
{
    for (size_t i = 0; i < v->n_archives && i < ARCHIVES_MOST; i++) {
        char said[4096], shown[2 * sizeof said];
        put_archive(&v->archives[i], said, sizeof said);
        fkv_utf8_show(said, shown, sizeof shown);
        fprintf(out, ";   %s\n", shown);
    }
    if (v->n_archives > ARCHIVES_MOST) fprintf(out, ";   and %zu more\n", v->n_archives - ARCHIVES_MOST);
}

static void print_input(const fkv_check_report *r, FILE *out)
{
    const fkv_job *j = r->setup->job;
    const fkv_survey *v = r->survey;
    const fkv_forecast *f = r->forecast;
    const char *near = about(v->exact);
    fprintf(out, "; input: %s%lld record%s in %lld member%s%s of %zu file%s\n", near, (long long)v->n_records,
            plural(v->n_records), (long long)v->n_members, plural(v->n_members),
            v->all_members ? "" : " so far", v->n_archives, plural((int64_t)v->n_archives));
    print_archives(v, out);
    if (j->input.n_parts > 1)
        fprintf(out, "; part %lld/%lld: %s%lld records in %lld shards\n", (long long)j->input.part,
                (long long)j->input.n_parts, near, (long long)f->n_part, (long long)f->n_part_shards);
    fprintf(out, "; shards: %s%lld of up to %lld records: so many processes have work\n", near,
            (long long)f->n_shards, (long long)j->output.records_per_shard);
}

/* ---- the prompts ---- */

int fkv_check_bins(const fkv_survey *v, fkv_check_bin out[FKV_CHECK_BINS])
{
    int n = 0;
    for (int64_t i = 0, up_to = 1; i < v->n; i++) {
        while (v->records[i].n_tokens > up_to) {
            up_to *= 2;
            if (n) out[n++] = (fkv_check_bin){up_to, 0};
        }
        if (!n) out[n++] = (fkv_check_bin){up_to, 0};
        out[n - 1].n++;
    }
    return n;
}

static void print_lengths(const fkv_survey *v, FILE *out)
{
    static const char bar[] = "########################################";
    fkv_check_bin bins[FKV_CHECK_BINS];
    const int n = fkv_check_bins(v, bins);
    for (int i = 0; i < n; i++) {
        const double share = (double)bins[i].n / (double)v->n;
        fprintf(out, ";   up to %9lld tokens %5.1f%%  %.*s\n", (long long)bins[i].up_to, 100 * share,
                (int)(BAR * share + 0.5), bar);
    }
}

static void print_kept(const fkv_setup *s, FILE *out)
{
    const long long window = (long long)s->job->profile.window, sinks = (long long)s->job->profile.sinks;
    char first[48] = "";
    if (!fkv_setup_compresses(s)) return;
    if (sinks) snprintf(first, sizeof first, "the first %lld and ", sinks);
    fprintf(out, ";   of a long one each head keeps %sthe last %lld tokens, and others by %s\n", first,
            window, fkv_scorer_name(fkv_setup_scorer(s)));
}

static void print_prompts(const fkv_check_report *r, FILE *out)
{
    const fkv_survey *v = r->survey;
    const fkv_prompt_limits *limits = &r->setup->limits;
    const int64_t n_looked = v->n + fkv_error_counts_sum(&v->errors);
    fprintf(out, "; prompts of up to %lld tokens fit; %s%lld record%s looked at\n",
            (long long)fkv_prompt_limit(limits, limits->max_new),
            n_looked && n_looked == v->n_records ? "all " : "", (long long)n_looked, plural(n_looked));
    print_lengths(v, out);
    if (v->n)
        fprintf(out, ";   the longest has %lld tokens; %.0f new ones are the limit on average\n",
                (long long)v->records[v->n - 1].n_tokens, fkv_survey_mean_new(v));
    if (v->n_cut)
        fprintf(out, ";   %lld of %lld are cut (model.truncate)\n", (long long)v->n_cut, (long long)v->n);
    if (r->forecast->n_too_large)
        fprintf(out, ";   %lld of %lld are too_large for the memory: error rows\n",
                (long long)r->forecast->n_too_large, (long long)v->n);
    print_kept(r->setup, out);
    for (int i = 0; i < v->errors.n; i++)
        fprintf(out, ";   %lld of %lld are error rows: %s\n", (long long)v->errors.at[i].rows,
                (long long)n_looked, v->errors.at[i].code);
}

/* ---- the machine ---- */

static void print_layout(const fkv_check_report *r, FILE *out)
{
    const fkv_setup *s = r->setup;
    const fkv_config *c = &s->config;
    const fkv_forecast *f = r->forecast;
    const fkv_layout *l = &f->layout;
    char slots[96];
    const bool shared = s->backend->shares_host; /* its name says what one device of them has */
    fprintf(
        out,
        "; model: %d layers, %d query and %d KV heads of %d, hidden %d, vocabulary %d, %.1f MiB of weights\n",
        c->n_layers, c->n_heads, c->n_kv_heads, c->head_dim, c->hidden, c->vocab,
        mib(fkv_memory_model_bytes(&r->found->sizing.shape)));
    if (c->quant.grains && !fkv_job_is_dummy(s->job))
        fprintf(out, ";   the files hold FP8 weights%s\n",
                fkv_job_is_fp8(s->job) ? "" : ", which loading multiplies by their scales");
    if (fkv_job_is_fp8(s->job))
        fprintf(out, ";   the layers' matrices are held and multiplied in FP8: %d byte%s each\n",
                r->found->sizing.shape.fp8_bytes, plural(r->found->sizing.shape.fp8_bytes));
    if (f->slots_open)
        snprintf(slots, sizeof slots, "slots: the run chooses, of up to ~%d", f->slots_most);
    else
        snprintf(slots, sizeof slots, "%d slot%s", l->slots, plural(l->slots));
    fprintf(
        out,
        "; backend %s%s%s: %d replica%s of %s%d rank%s%s on %d device%s%s; %s; %d host threads a device\n",
        s->backend->name, shared ? "" : ", ", shared ? "" : r->found->sizing.device, l->replicas,
        plural(l->replicas), about(!f->ranks_open), l->ranks, plural(l->ranks),
        f->ranks_open ? ", the run chooses," : "", l->devices, plural(l->devices),
        l->replicas > 1 ? " each" : "", slots, fkv_setup_threads(s));
}

static void print_memory(const fkv_forecast *f, FILE *out)
{
    const fkv_memory_rank *k = &f->rank;
    const int64_t all = k->weight_bytes + k->copy_bytes + k->page_bytes + k->query_bytes;
    fprintf(
        out,
        "; memory: ~%.1f MiB the fullest rank: %.1f of weights, %.1f of KV pages of %d slot%s; its device "
        "~%.1f of %.1f MiB\n",
        mib(all), mib(k->weight_bytes), mib(k->page_bytes), f->layout.slots, plural(f->layout.slots),
        mib(f->device.total_bytes), mib(f->device_bytes));
    if (f->too_little[0]) fprintf(out, ";   WARNING: too little, as it seems: %s\n", f->too_little);
}

static void print_disk(const fkv_forecast *f, FILE *out)
{
    const int64_t all = f->shard_bytes + f->journal_bytes;
    fprintf(out, "; disk: at most ~%.1f MiB: %.1f of rows, before they are compressed, and %.1f of journal",
            mib(all), mib(f->shard_bytes), mib(f->journal_bytes));
    if (f->free_bytes >= 0) fprintf(out, "; %.1f MiB are free", mib(f->free_bytes));
    fputs("\n", out);
    if (f->free_bytes >= 0 && f->free_bytes < all) fputs(";   WARNING: that may be too little\n", out);
}

static void print_time(const fkv_check_report *r, FILE *out)
{
    const fkv_forecast *f = r->forecast;
    static const char *const by[] = {[FKV_COST_STATED] = "by stated rates, which are not this machine's",
                                     [FKV_COST_MEASURED] = "by what this machine measured",
                                     [FKV_COST_FILE] = "by the file that plan.calibration names"};
    _Static_assert(sizeof by / sizeof *by == FKV_COST_ORIGINS, "a text each");
    if (f->n_left == 0 && r->survey->exact)
        fputs("; time: nothing is left to answer\n", out);
    else if (f->seconds >= 0)
        fprintf(out, "; time: ~%.0f s to answer ~%lld record%s, %s\n", f->seconds, (long long)f->n_left,
                plural(f->n_left), by[f->origin]);
    else
        fputs("; time: not known until a run has measured this machine\n", out);
}

static void print_output(const fkv_output_totals *t, FILE *out)
{
    if (!t->records && !t->complete) return;
    fprintf(out, "; output: %lld records are done, %lld of them errors%s\n", (long long)t->records,
            (long long)t->errors, t->complete ? "; a run would have nothing to do" : "");
}

fkv_status fkv_check_print(const fkv_check_report *r, FILE *out, fkv_err *err)
{
    fkv_buf ini = {0};
    const fkv_status st = fkv_job_write_ini(r->setup->job, &ini, err);
    if (!st) {
        fprintf(out, "%s\n", ini.data);
        if (r->survey) {
            print_input(r, out);
            print_prompts(r, out);
            print_layout(r, out);
            print_memory(r->forecast, out);
            print_disk(r->forecast, out);
            print_time(r, out);
        }
        print_output(&r->found->output, out);
    }
    fkv_buf_free(&ini);
    return st;
}
