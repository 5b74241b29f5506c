/* Where the time went, throughput, lengths: see report_parts.h. Pictures stretch with the page, so that their
 * words are HTML beside them, and stay legible at any width. */
#include <math.h>

#include "runner/report_parts.h"
#include "runner/summary.h"

#define put fkv_markup_put

enum {
    LABELLED = 9, /* percent of the bar that a part's name needs */
    WIDE = 26,    /* the same on a telephone */
    BUCKETS = 48, /* pieces that the series is drawn in */
    PLOT_W = 600, /* units of a chart, which has no size of its own */
    PLOT_H = 120
};

/* ---- time ---- */

static void bar(fkv_markup *m, const char *name, const double seconds[FKV_STAGES])
{
    const double all = fkv_summary_seconds(seconds);
    put(m, "<figure><figcaption><h3>%s</h3> <span class=\"soft\">", name);
    fkv_report_seconds(m, all);
    put(m,
        "</span></figcaption>\n<div class=\"bar\" role=\"img\" aria-label=\"%s: the table below has the "
        "parts\">\n",
        name);
    for (int i = 0; i < FKV_STAGES; i++) {
        const double percent = all > 0 ? 100 * seconds[i] / all : 0;
        const char *stage = fkv_stage_name((fkv_stage)i);
        if (!(percent > 0)) continue;
        put(m,
            "<div class=\"seg s-%s%s\" data-stage=\"%s\" data-seconds=\"%.6f\" style=\"flex:%.4f 0 0\" "
            "title=\"%s: %.2f s, %.1f%%\">",
            stage, percent >= WIDE ? " wide" : "", stage, seconds[i], percent, stage, seconds[i], percent);
        if (percent >= LABELLED) put(m, "<b>%s</b><i>%.0f%%</i>", stage, percent);
        put(m, "</div>\n");
    }
    put(m, "</div></figure>\n");
}

/* Two cells: seconds, and the share of them all. */
static void time_cells(fkv_markup *m, double seconds, double all)
{
    put(m, "<td class=\"n\">");
    fkv_report_seconds(m, seconds);
    put(m, "</td><td class=\"n\">%.1f%%</td>", all > 0 ? 100 * seconds / all : 0);
}

static void time_table(fkv_markup *m, const double *last, const double *sums)
{
    const double all_last = fkv_summary_seconds(last), all_sums = sums ? fkv_summary_seconds(sums) : 0;
    put(m, "<div class=\"scroll\"><table id=\"time\">\n<thead><tr><th scope=\"col\">Part</th>"
           "<th class=\"what\" scope=\"col\">What happened</th><th class=\"n\" scope=\"col\">Last run</th>"
           "<th class=\"n\" scope=\"col\">Share</th>");
    if (sums) put(m, "<th class=\"n\" scope=\"col\">All runs</th><th class=\"n\" scope=\"col\">Share</th>");
    put(m, "</tr></thead>\n<tbody>\n");
    for (int i = 0; i < FKV_STAGES; i++) {
        const char *stage = fkv_stage_name((fkv_stage)i);
        if (!(last[i] > 0) && !(sums && sums[i] > 0)) continue;
        put(m,
            "<tr data-stage=\"%s\"><th scope=\"row\"><span class=\"key s-%s\"></span>%s</th>"
            "<td class=\"what\">%s</td>",
            stage, stage, stage, fkv_summary_stage((fkv_stage)i));
        time_cells(m, last[i], all_last);
        if (sums) time_cells(m, sums[i], all_sums);
        put(m, "</tr>\n");
    }
    put(m, "</tbody><tfoot><tr><th scope=\"row\">Together</th><td class=\"what\"></td>");
    time_cells(m, all_last, all_last);
    if (sums) time_cells(m, all_sums, all_sums);
    put(m, "</tr></tfoot></table></div>\n");
}

void fkv_report_time(const fkv_report *x, fkv_markup *m)
{
    put(m, "<section id=\"where\"><h2>Where the time went</h2>\n");
    if (!x->last) {
        put(m, "<p>%s</p></section>\n",
            x->unread ? "What was measured can't be read."
                      : "There is no stats.json yet: no run has come so far.");
        return;
    }
    const bool more = x->sums.runs > 1;
    put(m, "<p class=\"lead\">Wall time by what the run was at. The parts don't overlap and add up to all "
           "of it.</p>\n");
    bar(m, "Last run", x->last->run->stats.seconds);
    if (more) bar(m, "All runs together", x->sums.seconds);
    time_table(m, x->last->run->stats.seconds, more ? x->sums.seconds : NULL);
    put(m, "</section>\n");
}

/* ---- throughput ---- */

/* A piece of the series: what came in it. */
typedef struct piece {
    double from, to, busy;
    int64_t records, prompt, new, errors; /* errors: so far */
} piece;

/* Neighbouring moments are taken together, so that at most BUCKETS pieces are left. */
static int cut_series(const fkv_stats *s, piece pieces[BUCKETS])
{
    const int n = s->n_points - 1, n_pieces = n < BUCKETS ? n : BUCKETS;
    int made = 0;
    for (int k = 0; k < n_pieces; k++) {
        const int first = (int)((long long)n * k / n_pieces), last = (int)((long long)n * (k + 1) / n_pieces);
        const fkv_stats_point *a = &s->points[first], *b = &s->points[last];
        double busy = 0;
        if (!(b->seconds > a->seconds)) continue;
        for (int i = first + 1; i <= last; i++)
            busy += s->points[i].busy_slots * (s->points[i].seconds - s->points[i - 1].seconds);
        pieces[made++] = (piece){a->seconds,
                                 b->seconds,
                                 busy / (b->seconds - a->seconds),
                                 b->records - a->records,
                                 b->prompt_tokens - a->prompt_tokens,
                                 b->completion_tokens - a->completion_tokens,
                                 b->errors};
    }
    return made;
}

/* What a chart shows of a piece. */
typedef enum shown { RECORDS, PROMPT, NEW, BUSY, SHOWN } shown;

static double value_of(const piece *p, shown what)
{
    const double s = p->to - p->from;
    switch (what) {
    case RECORDS: return (double)p->records / s;
    case PROMPT: return (double)p->prompt / s;
    case NEW: return (double)p->new / s;
    default: return p->busy;
    }
}

static int decimals_of(double most)
{
    return most >= 100 ? 0 : most >= 10 ? 1 : 2;
}

static void draw_series(fkv_markup *m, const piece *p, int n, shown what, double most)
{
    const double begin = p[0].from, wide = PLOT_W / (p[n - 1].to - begin);
    for (int i = 0; i < 2; i++)
        put(m, "<line class=\"grid\" x1=\"0\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>\n", PLOT_W, i * PLOT_H / 2,
            i * PLOT_H / 2);
    for (int pass = 0; pass < 2; pass++) {
        put(m, "<path class=\"%s\" d=\"M%.1f %d", pass ? "stroke" : "area", (p[0].from - begin) * wide,
            PLOT_H);
        for (int i = 0; i < n; i++) {
            const double y = PLOT_H * (1 - value_of(&p[i], what) / most);
            put(m, "L%.1f %.1fL%.1f %.1f", (p[i].from - begin) * wide, y, (p[i].to - begin) * wide, y);
        }
        put(m, "%s\"/>\n", pass ? "" : "V120Z");
    }
}

static void series(fkv_markup *m, const piece *p, int n, shown what)
{
    static const char *const names[SHOWN] = {"Records a second", "Prompt tokens a second",
                                             "New tokens a second", "Busy slots"};
    double most = 0, sum = 0;
    for (int i = 0; i < n; i++) {
        const double v = value_of(&p[i], what);
        if (v > most) most = v;
        sum += v * (p[i].to - p[i].from);
    }
    const double mean = sum / (p[n - 1].to - p[0].from), top = fkv_markup_round_up(most);
    const int decimals = decimals_of(top);
    put(m, "<figure><figcaption><h3>%s</h3> <span class=\"soft\">mean ", names[what]);
    fkv_report_real(m, mean, decimals);
    put(m, ", most ");
    fkv_report_real(m, most, decimals);
    put(m, "</span></figcaption>\n<div class=\"plot\"><div class=\"ys\" aria-hidden=\"true\">");
    for (int i = 2; i >= 0; i--) {
        put(m, "<span>");
        fkv_report_real(m, top * i / 2, i && top / 2 != floor(top / 2) ? decimals : 0);
        put(m, "</span>");
    }
    put(m,
        "</div>\n<svg viewBox=\"0 0 %d %d\" height=\"%d\" preserveAspectRatio=\"none\" role=\"img\">\n"
        "<title>%s over time</title><desc>Mean %.*f, most %.*f; the table below has every step.</desc>\n",
        PLOT_W, PLOT_H, PLOT_H, names[what], decimals, mean, decimals, most);
    draw_series(m, p, n, what, top);
    put(m, "</svg>\n<div class=\"xs\" aria-hidden=\"true\"><span>");
    fkv_report_seconds(m, p[0].from);
    put(m, "</span><span>");
    fkv_report_seconds(m, p[n - 1].to);
    put(m, "</span></div></div></figure>\n");
}

static void series_table(fkv_markup *m, const piece *p, int n)
{
    put(m,
        "<details><summary>The same as a table</summary><div class=\"scroll\"><table id=\"series\">\n"
        "<thead><tr><th class=\"n\" scope=\"col\">From, s</th><th class=\"n\" scope=\"col\">to, s</th>"
        "<th class=\"n\" scope=\"col\">Records</th><th class=\"n\" scope=\"col\">a second</th>"
        "<th class=\"n\" scope=\"col\">Prompt tokens a second</th><th class=\"n\" scope=\"col\">New tokens "
        "a second</th><th class=\"n\" scope=\"col\">Busy slots</th><th class=\"n\" scope=\"col\">Error "
        "rows so far</th></tr></thead>\n<tbody>\n");
    for (int i = 0; i < n; i++) {
        put(m, "<tr>");
        fkv_report_cell(m, p[i].from, 1);
        fkv_report_cell(m, p[i].to, 1);
        fkv_report_cell(m, (double)p[i].records, 0);
        fkv_report_cell(m, value_of(&p[i], RECORDS), 2);
        fkv_report_cell(m, value_of(&p[i], PROMPT), 0);
        fkv_report_cell(m, value_of(&p[i], NEW), 0);
        fkv_report_cell(m, p[i].busy, 1);
        fkv_report_cell(m, (double)p[i].errors, 0);
        put(m, "</tr>\n");
    }
    put(m, "</tbody></table></div></details>\n");
}

void fkv_report_throughput(const fkv_report *x, fkv_markup *m)
{
    piece pieces[BUCKETS];
    const int n = x->last ? cut_series(&x->last->run->stats, pieces) : 0;
    put(m, "<section id=\"throughput\"><h2>Throughput over time</h2>\n");
    if (n < 1) {
        put(m, "<p>The last run did not answer for long enough to draw it.</p></section>\n");
        return;
    }
    put(m, "<p class=\"lead\">The last run, from its first answer on; seconds since it began.</p>\n"
           "<div class=\"pair\">\n");
    for (int what = 0; what < SHOWN; what++) series(m, pieces, n, (shown)what);
    put(m, "</div>\n");
    series_table(m, pieces, n);
    put(m, "</section>\n");
}

/* ---- lengths ---- */

static void histogram(fkv_markup *m, const char *name, const char *id, const fkv_stats_lengths *l)
{
    int first = 0, last = FKV_STATS_LENGTHS - 1;
    int64_t most = 1;
    double sum = 0;
    while (last >= 0 && !l->at[last]) last--;
    while (first < last && !l->at[first]) first++;
    for (int k = first; k <= last; k++) {
        most = l->at[k] > most ? l->at[k] : most;
        sum += (double)l->at[k];
    }
    put(m, "<figure><figcaption><h3>%s</h3> <span class=\"soft\">of ", name);
    fkv_report_real(m, sum, 0);
    put(m,
        " answers</span></figcaption>\n<table class=\"hist\" id=\"%s\"><thead><tr>"
        "<th class=\"n\" scope=\"col\">Tokens</th><th scope=\"col\"></th>"
        "<th class=\"n\" scope=\"col\">Answers</th></tr></thead><tbody>\n",
        id);
    for (int k = first; k <= last; k++) {
        put(m, "<tr><th class=\"n\" scope=\"row\">");
        fkv_report_count(m, (int64_t)1 << k);
        if (k) put(m, " to ");
        if (k) fkv_report_count(m, ((int64_t)2 << k) - 1);
        put(m,
            "</th><td class=\"track\"><svg viewBox=\"0 0 100 10\" preserveAspectRatio=\"none\" "
            "aria-hidden=\"true\"><rect width=\"%.2f\" height=\"10\"/></svg></td><td class=\"n\">",
            100.0 * (double)l->at[k] / (double)most);
        fkv_report_count(m, l->at[k]);
        put(m, "</td></tr>\n");
    }
    put(m, "</tbody></table></figure>\n");
}

void fkv_report_lengths(const fkv_report *x, fkv_markup *m)
{
    int64_t any = 0;
    for (int k = 0; k < FKV_STATS_LENGTHS; k++) any |= x->prompts.at[k] | x->answers.at[k];
    put(m, "<section id=\"lengths\"><h2>Lengths</h2>\n");
    if (!any) {
        put(m, "<p>The last run gave no answer.</p></section>\n");
        return;
    }
    put(m,
        "<p class=\"lead\">Answers of the last run%s, by the tokens of their prompts (as cut) and by new "
        "tokens. Every row is twice as wide as the one above it.</p>\n<div class=\"pair\">\n",
        x->n_parts > 1 ? " of each part" : "");
    histogram(m, "Prompts", "prompt-lengths", &x->prompts);
    histogram(m, "New tokens", "answer-lengths", &x->answers);
    put(m, "</div></section>\n");
}
