/* The page of a report: its frame, and the sections that are words and tables. See report.h. */
#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"
#include "runner/report_parts.h"
#include "runner/summary.h"

#define put fkv_markup_put

enum {
    NAME = 200,       /* bytes of a name that are shown */
    JOB_LINES = 2000, /* of job.ini */
    JOB_LINE = 500    /* bytes of one */
};

/* ---- head ---- */

static const char *exit_words(int code)
{
    switch (code) {
    case 0: return "all records are done";
    case 1: return "done, and some records are error rows";
    case 2: return "the command line, the job or its input is wrong";
    case 3: return "system error: disk, memory, a limit";
    case 4: return "device error";
    case 75: return "interrupted, or another run held the output: run it again to resume";
    default: return "not one of its own: it was killed";
    }
}

/* How the output stands, and how its last run ended. */
static void state_line(const fkv_report *x, fkv_markup *m)
{
    const fkv_stats *s = x->last ? &x->last->run->stats : NULL;
    const char *class = x->standing.complete ? "good" : x->at_work ? "soft" : "warn";
    const char *word = x->standing.complete ? "Complete" : x->at_work ? "At work" : "Not finished";
    put(m, "<p><span class=\"badge %s\">%s</span>", class, word);
    if (s && !s->running) {
        put(m, "last run ended ");
        fkv_report_moment(m, s->time);
        put(m, " with exit code <b>%d</b>: %s", s->exit_code, exit_words(s->exit_code));
    } else if (s && !x->at_work) {
        put(m, "the last run stopped without a word: it was killed, or its machine was lost");
    } else if (s) {
        put(m, "what it measured is as of its last stats.json");
    }
    put(m, "</p>\n");
}

static void figure(fkv_markup *m, const char *label, void (*show)(const fkv_report *x, fkv_markup *m),
                   const fkv_report *x)
{
    put(m, "<li><span>%s</span><b>", label);
    show(x, m);
    put(m, "</b></li>\n");
}

static void show_done(const fkv_report *x, fkv_markup *m)
{
    fkv_report_count(m, x->standing.done);
}

static void show_all(const fkv_report *x, fkv_markup *m)
{
    if (x->standing.records >= 0 && x->standing.estimated) put(m, "~");
    if (x->standing.records >= 0)
        fkv_report_count(m, x->standing.records);
    else
        put(m, "not known");
}

static void show_errors(const fkv_report *x, fkv_markup *m)
{
    fkv_report_count(m, x->standing.n_errors);
}

static void show_wall(const fkv_report *x, fkv_markup *m)
{
    fkv_report_seconds(m, fkv_summary_seconds(x->sums.seconds));
}

static void show_gpu_seconds(const fkv_report *x, fkv_markup *m)
{
    fkv_report_real(m, x->sums.gpu_seconds, x->sums.gpu_seconds < 1000 ? 1 : 0);
}

static void show_energy(const fkv_report *x, fkv_markup *m)
{
    const bool kilo = x->sums.joules >= 1e5;
    fkv_report_real(m, kilo ? x->sums.joules / 3.6e6 : x->sums.joules, kilo ? 2 : 0);
    put(m, kilo ? " kWh" : " J");
}

static void figures(const fkv_report *x, fkv_markup *m)
{
    const bool gpus = x->sums.gpu_seconds > 0;
    put(m, "<ul class=\"figures%s\">\n", gpus ? " many" : "");
    figure(m, "Records done", show_done, x);
    figure(m, "Of the input", show_all, x);
    figure(m, "Error rows", show_errors, x);
    if (x->last) figure(m, x->sums.runs > 1 ? "Time, all runs" : "Time", show_wall, x);
    if (gpus) figure(m, "GPU seconds", show_gpu_seconds, x);
    if (x->sums.energy_runs) figure(m, "Energy of the GPUs", show_energy, x);
    put(m, "</ul>\n");
}

static void header(const fkv_report *x, fkv_markup *m)
{
    put(m, "<header><p class=\"kicker\">fairkv-batch report</p>\n<h1>");
    fkv_markup_text(m, x->standing.job, NAME);
    put(m, "</h1>\n");
    state_line(x, m);
    if (x->standing_why[0]) {
        put(m, "<p class=\"warn\">Not all could be read: ");
        fkv_markup_text(m, x->standing_why, FKV_MARKUP_TEXT);
        put(m, "</p>\n");
    }
    for (int i = 0; i < x->n_parts; i++) {
        if (!x->parts[i].why) continue;
        put(m, "<p class=\"warn\">What was measured can't be read: ");
        fkv_markup_text(m, x->parts[i].why, FKV_MARKUP_TEXT);
        put(m, "</p>\n");
    }
    figures(x, m);
    put(m, "</header>\n");
}

/* ---- sections ---- */

static void summary(const fkv_report *x, fkv_markup *m)
{
    fkv_summary s;
    if (!x->last) return;
    fkv_summary_make(&x->last->run->stats, &x->profile, &x->plan, &s);
    put(m, "<section id=\"summary\"><h2>The last run in words</h2>\n"
           "<p class=\"lead\">As its terminal had it.</p>\n<dl>\n");
    for (int i = 0; i < s.n; i++) put(m, "<dt>%s</dt><dd>%s</dd>\n", s.at[i].name, s.at[i].text);
    put(m, "</dl></section>\n");
}

static void example(fkv_markup *m, const fkv_standing *s, int i)
{
    const fkv_standing_example e = fkv_standing_example_of(s, i);
    if (e.message) fkv_markup_text(m, e.message, FKV_MARKUP_TEXT);
    if (e.archive) {
        put(m, "<br><span class=\"soft\">");
        fkv_markup_text(m, e.archive, NAME);
        put(m, " ");
        fkv_markup_text(m, e.member ? e.member : "", NAME);
        put(m, " line %lld</span>", (long long)e.line);
    }
    if (!e.doc) put(m, "<span class=\"soft\">no example was looked for</span>");
    json_decref(e.doc);
}

static void errors(const fkv_report *x, fkv_markup *m)
{
    const fkv_standing *s = &x->standing;
    put(m, "<section id=\"errors\"><h2>Errors</h2>\n");
    if (!s->n_errors) {
        put(m, "<p>No record is an error row.</p></section>\n");
        return;
    }
    put(m, "<p class=\"lead\">Error rows by code, with the first one of each.</p>\n"
           "<div class=\"scroll\"><table><thead><tr><th scope=\"col\">Code</th>"
           "<th class=\"n\" scope=\"col\">Rows</th><th scope=\"col\">Such as</th></tr></thead><tbody>\n");
    for (int i = 0; i < s->errors.n; i++) {
        put(m, "<tr data-code=\"%s\"><th scope=\"row\">%s</th><td class=\"n\">", s->errors.at[i].code,
            s->errors.at[i].code);
        fkv_report_count(m, s->errors.at[i].rows);
        put(m, "</td><td class=\"long\">");
        example(m, s, i);
        put(m, "</td></tr>\n");
    }
    put(m, "</tbody></table></div></section>\n");
}

static void part_row(const fkv_report_part *p, fkv_markup *m)
{
    const fkv_stats *s = p->run ? &p->run->stats : NULL;
    put(m, "<tr><th scope=\"row\">%lld</th>", (long long)p->part);
    if (!s) {
        put(m, "<td colspan=\"6\">%s</td></tr>\n",
            p->why ? "its stats.json can't be read" : "no run has answered yet");
        return;
    }
    fkv_report_cell(m, (double)s->totals.records, 0);
    fkv_report_cell(m, (double)s->totals.errors, 0);
    put(m, "<td class=\"n\">");
    fkv_report_seconds(m, fkv_summary_seconds(s->seconds));
    put(m, "</td><td class=\"n\">%s</td>", s->complete ? "yes" : "no");
    if (s->running)
        put(m, "<td class=\"n\">none</td>");
    else
        put(m, "<td class=\"n\">%d</td>", s->exit_code);
    put(m, "<td class=\"long\">");
    fkv_markup_text(m, s->host, NAME);
    put(m, "</td></tr>\n");
}

static void parts(const fkv_report *x, fkv_markup *m)
{
    const int64_t n = x->standing.n_sharing ? x->standing.n_sharing : x->standing.n_parts;
    if (n < 2) return;
    put(m,
        "<section id=\"parts\"><h2>Parts</h2>\n<p class=\"lead\">%s %lld %s, which "
        "share this page. What stands under \"last run\" above is part %lld's, whose run began last.</p>\n",
        x->standing.n_sharing ? "The job is shared out among" : "The job is cut into", (long long)n,
        x->standing.n_sharing ? "processes (input.part = auto)" : "parts",
        x->last ? (long long)x->last->part : 0LL);
    put(m, "<div class=\"scroll\"><table><thead><tr><th scope=\"col\">Part</th>"
           "<th class=\"n\" scope=\"col\">Records done</th><th class=\"n\" scope=\"col\">Error rows</th>"
           "<th class=\"n\" scope=\"col\">Last run</th><th class=\"n\" scope=\"col\">Complete</th>"
           "<th class=\"n\" scope=\"col\">Exit code</th><th scope=\"col\">Host</th></tr></thead><tbody>\n");
    for (int i = 0; i < x->n_parts; i++) part_row(&x->parts[i], m);
    put(m, "</tbody></table></div>\n");
    if (n > x->n_parts)
        put(m, "<p class=\"soft\">%lld more parts are not shown.</p>\n", (long long)(n - x->n_parts));
    put(m, "</section>\n");
}

static void text_row(fkv_markup *m, const char *label, const char *text)
{
    put(m, "<dt>%s</dt><dd>", label);
    fkv_markup_text(m, text[0] ? text : "not known", NAME);
    put(m, "</dd>\n");
}

static void count_row(fkv_markup *m, const char *label, int64_t n, const char *unit)
{
    put(m, "<dt>%s</dt><dd>", label);
    fkv_report_count(m, n);
    put(m, "%s</dd>\n", unit);
}

static void real_row(fkv_markup *m, const char *label, double v, int decimals, const char *unit)
{
    put(m, "<dt>%s</dt><dd>", label);
    fkv_report_real(m, v, decimals);
    put(m, "%s</dd>\n", unit);
}

static void machine(const fkv_report *x, fkv_markup *m)
{
    const fkv_stats_run *r = x->last ? x->last->run : NULL;
    put(m, "<section id=\"machine\"><h2>Machine and versions</h2>\n");
    if (!r) {
        put(m, "<p>Only a run's stats.json would tell.</p></section>\n");
        return;
    }
    const fkv_stats *s = &r->stats;
    put(m, "<p class=\"lead\">Of the last run.</p>\n<dl class=\"two\">\n");
    text_row(m, "Host", r->host);
    text_row(m, "System", r->system);
    text_row(m, "Device", r->device);
    text_row(m, "Backend", r->backend);
    count_row(m, "Devices", s->n_devices, "");
    count_row(m, "Processors", s->processors, "");
    text_row(m, "fairkv-batch", r->version);
    count_row(m, "Slots", s->slots, "");
    count_row(m, "Ranks", s->n_ranks, "");
    real_row(m, "Memory of the process", (double)s->peak_rss_bytes / (1 << 20), 1, " MiB at most");
    real_row(m, "KV cache", (double)s->kv_bytes / (1 << 20), 1, " MiB at most in use");
    count_row(m, "Prefilled", s->prefill_tokens, " tokens");
    count_row(m, "Prefill passes", s->prefill_passes, "");
    count_row(m, "Records begun again", s->restarts, " for want of KV pages");
    if (s->gpu_seconds > 0) real_row(m, "GPU seconds", s->gpu_seconds, 1, "");
    if (s->gpu_seconds > 0 && s->joules >= 0) real_row(m, "Energy of the GPUs", s->joules, 0, " J");
    put(m, "<dt>Started</dt><dd>");
    fkv_report_moment(m, s->start_time);
    put(m, "</dd>\n");
    if (!s->running) {
        put(m, "<dt>Ended</dt><dd>");
        fkv_report_moment(m, s->time);
        put(m, "</dd>\n<dt>Exit code</dt><dd><data value=\"%d\">%d</data>, %s</dd>\n", s->exit_code,
            s->exit_code, exit_words(s->exit_code));
    }
    count_row(m, "Runs so far", x->sums.runs, "");
    put(m, "</dl></section>\n");
}

static void job(const fkv_report *x, fkv_markup *m)
{
    put(m, "<section id=\"job\"><h2>The job</h2>\n");
    if (!x->job_ini.len) {
        put(m, "<p>job.ini can't be read.</p></section>\n");
        return;
    }
    put(m, "<p class=\"lead\">As it was resolved, every key of it: job.ini in the output folder runs it "
           "again.</p>\n<details><summary>job.ini</summary><pre tabindex=\"0\">");
    const char *line = x->job_ini.data, *end = line + x->job_ini.len;
    for (int i = 0; line < end; i++) {
        char text[JOB_LINE + 8];
        if (i == JOB_LINES) {
            put(m, "...");
            break;
        }
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        const size_t n = (size_t)((stop ? stop : end) - line);
        snprintf(text, sizeof text, "%.*s", n < sizeof text ? (int)n : (int)sizeof text - 1, line);
        fkv_markup_text(m, text, JOB_LINE);
        put(m, "\n");
        line += n + 1;
    }
    put(m, "</pre></details></section>\n");
}

void fkv_report_html(const fkv_report *x, fkv_markup *m)
{
    fkv_report_head(m, x->standing.job, "report", "");
    header(x, m);
    put(m, "<main>\n");
    fkv_report_time(x, m);
    fkv_report_throughput(x, m);
    errors(x, m);
    fkv_report_loads(x, m);
    fkv_report_budgets(x, m);
    fkv_report_lengths(x, m);
    summary(x, m);
    parts(x, m);
    machine(x, m);
    job(x, m);
    put(m,
        "</main>\n<footer>Made by fairkv-batch %s from the files of the output folder.</footer>\n"
        "</body></html>\n",
        FKV_VERSION);
}
