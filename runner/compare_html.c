/* compare.html: see compare.h. The page holds all it shows, as report.html does, in the same style. Pictures
 * stretch with the page; every number in them stands in the table too. */
#include <math.h>
#include <string.h>

#include "runner/compare.h"
#include "runner/report_parts.h"

#define put fkv_markup_put

enum {
    NAME = 200,   /* bytes of a name that are shown */
    PLOT_W = 600, /* units of a picture, which has no size of its own */
    PLOT_H = 180,
    COLOURS = 5,
    COLUMNS = FKV_COMPARE_SETTINGS
};

static const char style[] =
    ".k0{stroke:var(--accent)}.k1{stroke:var(--slow)}.k2{stroke:var(--mean)}.k3{stroke:var(--load)}"
    ".k4{stroke:var(--wait)}\n"
    ".curve{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}\n"
    ".between{stroke-width:1.5;vector-effect:non-scaling-stroke;stroke-opacity:.75}\n"
    ".dot{stroke-width:9;stroke-linecap:round;vector-effect:non-scaling-stroke}\n"
    ".asked{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:6 5;vector-effect:non-scaling-stroke}\n"
    ".legend .curve{stroke-width:3}.says{font-size:18px;max-width:64ch}\n"
    ".note{margin:14px 0 0}figure+.scroll{margin-top:24px}.plot svg{overflow:visible}tr.choice th,tr.choice "
    "td{background:var(--panel)}\n";

/* What pictures show of a setting. */
typedef enum shown { EQUAL, EXACT, CONTAINS, SLOT, SECONDS } shown;

typedef struct value {
    bool known;
    double at, low, high; /* low, high: an interval, or at */
} value;

static value share_of(int64_t k, int64_t n)
{
    const fkv_interval i = fkv_binomial_interval(k, n, FKV_COMPARE_CONFIDENCE);
    return (value){n > 0, fkv_compare_share(k, n), i.low, i.high};
}

static value value_of(const fkv_compare_setting *s, shown what)
{
    const fkv_compare_counts *n = &s->counts;
    const double mib = (double)s->slot_bytes / (1 << 20);
    switch (what) {
    case EQUAL:
        if (!s->scorer) return (value){n->n > 0, 1, 1, 1};
        return share_of(n->n_equal, n->n);
    case EXACT: return share_of(n->exact, n->n_known);
    case CONTAINS: return share_of(n->contains, n->n_known);
    case SLOT: return (value){true, mib, mib, mib};
    case SECONDS:
    default: return (value){s->seconds >= 0, s->seconds, s->seconds, s->seconds};
    }
}

/* The budgets from left to right, the whole cache last; a setting's of each. */
typedef struct axis {
    int n;
    const fkv_compare_setting *at[COLUMNS];
} axis;

static bool is_before(const fkv_compare_setting *a, const fkv_compare_setting *b)
{
    return a->scorer && (!b->scorer || a->tokens < b->tokens);
}

static void make_axis(const fkv_comparison *c, axis *x)
{
    x->n = 0;
    for (int k = 0; k < c->n_settings; k++) {
        const fkv_compare_setting *s = &c->settings[k];
        int i = 0;
        while (i < x->n && strcmp(x->at[i]->budget, s->budget) != 0) i++;
        if (i < x->n) continue;
        for (i = x->n++; i > 0 && is_before(s, x->at[i - 1]); i--) x->at[i] = x->at[i - 1];
        x->at[i] = s;
    }
}

/* The settings of a scorer, by budget, and the whole cache at the end. */
static const fkv_compare_setting *find(const fkv_comparison *c, const char *scorer, const char *budget)
{
    for (int k = 0; k < c->n_settings; k++) {
        const fkv_compare_setting *s = &c->settings[k];
        if (!strcmp(s->budget, budget) && (!s->scorer || !strcmp(s->scorer, scorer))) return s;
    }
    return NULL;
}

/* The scorers in the order of the settings; how many. */
static int scorers_of(const fkv_comparison *c, const char *out[COLUMNS])
{
    int n = 0;
    for (int k = 1; k < c->n_settings; k++) {
        int i = 0;
        while (i < n && strcmp(out[i], c->settings[k].scorer) != 0) i++;
        if (i == n) out[n++] = c->settings[k].scorer;
    }
    return n;
}

/* ---- a picture ---- */

typedef struct plot {
    const fkv_comparison *c;
    const axis *x;
    shown what;
    double top;
    int n_scorers;
} plot;

static bool is_share(shown what)
{
    return what == EQUAL || what == EXACT || what == CONTAINS;
}

static double y_of(const plot *p, double v)
{
    return PLOT_H * (1 - v / p->top);
}

/* A scorer's curve; its points are beside those of others at the same budget. */
static void draw_scorer(const plot *p, const char *scorer, int number, fkv_markup *m)
{
    const double wide = (double)PLOT_W / p->x->n, apart = fmin(9, wide / (2.0 * p->n_scorers));
    const int colour = number % COLOURS;
    double xs[COLUMNS];
    value vs[COLUMNS];
    int n = 0;
    for (int i = 0; i < p->x->n; i++) {
        const fkv_compare_setting *s = find(p->c, scorer, p->x->at[i]->budget);
        if (!s) continue;
        vs[n] = value_of(s, p->what);
        const double shift = s->scorer ? apart * (number - 0.5 * (p->n_scorers - 1)) : 0;
        xs[n] = wide * (i + 0.5) + shift;
        n += vs[n].known;
    }
    if (n == 0) return;
    put(m, "<path class=\"curve k%d\" d=\"M%.1f %.1f", colour, xs[0], y_of(p, vs[0].at));
    for (int i = 1; i < n; i++) put(m, "L%.1f %.1f", xs[i], y_of(p, vs[i].at));
    put(m, "\"/>\n");
    for (int i = 0; i < n; i++) {
        if (vs[i].high > vs[i].low)
            put(m, "<path class=\"between k%d\" d=\"M%.1f %.1fV%.1f\"/>\n", colour, xs[i], y_of(p, vs[i].low),
                y_of(p, vs[i].high));
        put(m, "<path class=\"dot k%d\" d=\"M%.1f %.1fh0\"/>\n", colour, xs[i], y_of(p, vs[i].at));
    }
}

static void put_axis_value(fkv_markup *m, shown what, double v, double top)
{
    if (is_share(what))
        put(m, "<span>%.0f%%</span>", 100 * v);
    else if (what == SECONDS && top >= 3600)
        put(m, "<span>%.1f h</span>", v / 3600);
    else if (what == SECONDS && top >= 300)
        put(m, "<span>%.0f min</span>", v / 60);
    else
        put(m, "<span>%.*f%s</span>", top < 1 ? 2 : top < 20 ? 1 : 0, v, what == SECONDS ? " s" : "");
}

static double top_of(const plot *p)
{
    double most = 0;
    if (is_share(p->what)) return 1;
    for (int k = 0; k < p->c->n_settings; k++) {
        const value v = value_of(&p->c->settings[k], p->what);
        if (v.known && v.high > most) most = v.high;
    }
    return fkv_markup_round_up(most);
}

static void picture(const fkv_comparison *c, const axis *x, shown what, const char *name, const char *unit,
                    fkv_markup *m)
{
    const char *scorers[COLUMNS];
    plot p = {c, x, what, 1, scorers_of(c, scorers)};
    p.top = top_of(&p);
    put(m,
        "<figure><figcaption><h3>%s</h3> <span class=\"soft\">%s</span></figcaption>\n<div class=\"plot\">"
        "<div class=\"ys\" aria-hidden=\"true\">",
        name, unit);
    for (int i = 2; i >= 0; i--) put_axis_value(m, what, p.top * i / 2, p.top);
    put(m,
        "</div>\n<svg viewBox=\"0 0 %d %d\" height=\"%d\" preserveAspectRatio=\"none\" role=\"img\">\n"
        "<title>%s by budget</title><desc>The table below has the numbers.</desc>\n",
        PLOT_W, PLOT_H, PLOT_H, name);
    for (int i = 0; i < 2; i++)
        put(m, "<line class=\"grid\" x1=\"0\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>\n", PLOT_W, i * PLOT_H / 2,
            i * PLOT_H / 2);
    if (what == EQUAL)
        put(m, "<line class=\"asked\" x1=\"0\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>\n", PLOT_W,
            y_of(&p, c->options.equal), y_of(&p, c->options.equal));
    for (int i = 0; i < p.n_scorers; i++) draw_scorer(&p, scorers[i], i, m);
    put(m, "</svg>\n<div class=\"xs each\" aria-hidden=\"true\">");
    for (int i = 0; i < x->n; i++) put(m, "<span>%s</span>", x->at[i]->budget);
    put(m, "</div><div class=\"xname\">budget</div></div></figure>\n");
}

static void legend(const fkv_comparison *c, fkv_markup *m)
{
    const char *scorers[COLUMNS];
    const int n = scorers_of(c, scorers);
    put(m, "<p class=\"legend\">");
    for (int i = 0; i < n; i++)
        put(m,
            "<span><svg viewBox=\"0 0 16 10\" aria-hidden=\"true\"><path class=\"curve k%d\" d=\"M0 5H16\"/>"
            "</svg>%s</span>\n",
            i % COLOURS, scorers[i]);
    put(m, "<span><svg viewBox=\"0 0 16 10\" aria-hidden=\"true\"><path class=\"asked\" d=\"M0 5H16\"/></svg>"
           "the share that is asked for</span></p>\n");
}

/* ---- sections ---- */

static void header(const fkv_comparison *c, fkv_markup *m)
{
    const fkv_compare_setting *s = &c->settings[c->choice];
    char says[1024];
    fkv_compare_says(c, says, sizeof says);
    put(m, "<header><p class=\"kicker\">fairkv-batch compare</p>\n<h1>");
    fkv_markup_text(m, c->setup->job->job.name, NAME);
    put(m, "</h1>\n<p class=\"says\">");
    fkv_markup_text(m, says, sizeof says);
    put(m, "</p>\n<ul class=\"figures\">\n<li><span>Records compared</span><b>");
    fkv_report_count(m, c->records.n);
    put(m, "</b></li>\n<li><span>Budget it takes</span><b>%s</b></li>\n", c->choice ? s->budget : "none");
    put(m, "<li><span>Equal answers</span><b>");
    if (c->choice) fkv_report_real(m, 100 * fkv_compare_share(s->counts.n_equal, s->counts.n), 1);
    put(m, "%s</b></li>\n<li><span>Of the memory of a slot</span><b>", c->choice ? "%" : "-");
    if (c->choice && s->slot_bytes > 0)
        fkv_report_real(m, 100.0 * (double)s->slot_bytes / (double)c->settings[0].slot_bytes, 0);
    put(m, "%s</b></li>\n</ul></header>\n", c->choice ? "%" : "-");
}

static void percent_cell(fkv_markup *m, int64_t k, int64_t n)
{
    put(m, "<td class=\"n\">");
    if (n) fkv_report_real(m, 100 * fkv_compare_share(k, n), 1);
    put(m, "%s</td>", n ? "%" : "-");
}

static void none_cell(fkv_markup *m)
{
    put(m, "<td class=\"n\">-</td>");
}

/* A table's head and the beginning of its body; its first two columns say the setting. */
static void begin_table(fkv_markup *m, const char *id, const char *const *heads, int n)
{
    put(m,
        "<div class=\"scroll\" tabindex=\"0\"><table id=\"%s\">\n<thead><tr><th scope=\"col\">Budget</th>"
        "<th scope=\"col\">Scorer</th>",
        id);
    for (int i = 0; i < n; i++) put(m, "<th class=\"n\" scope=\"col\">%s</th>", heads[i]);
    put(m, "</tr></thead>\n<tbody>\n");
}

static void begin_row(const fkv_comparison *c, const fkv_compare_setting *s, fkv_markup *m)
{
    const bool chosen = c->choice && s == &c->settings[c->choice];
    put(m, "<tr%s><th scope=\"row\">%s</th><td>%s</td>", chosen ? " class=\"choice\"" : "", s->budget,
        s->scorer ? s->scorer : "-");
}

static void answers_row(const fkv_comparison *c, const fkv_compare_setting *s, fkv_markup *m)
{
    const fkv_compare_counts *n = &s->counts;
    begin_row(c, s, m);
    if (s->scorer)
        percent_cell(m, n->n_equal, n->n);
    else
        none_cell(m);
    if (s->scorer)
        put(m, "<td class=\"n\">%.1f to %.1f%%</td>", 100 * s->interval.low, 100 * s->interval.high);
    else
        none_cell(m);
    fkv_report_cell(m, n->kept, 0);
    fkv_report_cell(m, (double)n->n, 0);
    fkv_report_cell(m, (double)fkv_error_counts_sum(&s->errors), 0);
    for (int i = 0; i < 2; i++) {
        if (n->n_equal < n->n)
            fkv_report_cell(m, i ? n->first_mean : n->first_median, 1);
        else
            none_cell(m);
    }
    fkv_report_cell(m, n->tokens, 1);
    percent_cell(m, n->exact, n->n_known);
    percent_cell(m, n->contains, n->n_known);
    put(m, "</tr>\n");
}

static void answers_table(const fkv_comparison *c, fkv_markup *m)
{
    static const char *const heads[] = {"Equal",        "Interval",          "Tokens kept", "Compared",
                                        "Not answered", "Differ at, median", "mean",        "New tokens",
                                        "Exact",        "Contains"};
    begin_table(m, "answers", heads, sizeof heads / sizeof *heads);
    for (int k = 0; k < c->n_settings; k++) answers_row(c, &c->settings[k], m);
    put(m, "</tbody></table></div>\n<p class=\"lead note\">Tokens kept of a prompt and new tokens are means. "
           "Answers "
           "differ at the token that so many equal ones stand before.</p>\n");
}

static void savings_table(const fkv_comparison *c, fkv_markup *m)
{
    static const char *const heads[] = {"Slot, MiB", "Slots that fit", "Slots", "Whole job"};
    begin_table(m, "savings", heads, sizeof heads / sizeof *heads);
    for (int k = 0; k < c->n_settings; k++) {
        const fkv_compare_setting *s = &c->settings[k];
        begin_row(c, s, m);
        fkv_report_cell(m, (double)s->slot_bytes / (1 << 20), 2);
        fkv_report_cell(m, (double)s->slots_fit, 0);
        fkv_report_cell(m, s->slots, 0);
        put(m, "<td class=\"n\">");
        if (s->seconds >= 0) fkv_report_seconds(m, s->seconds);
        put(m, "%s</td></tr>\n", s->seconds >= 0 ? "" : "-");
    }
    put(m, "</tbody></table></div>\n");
}

static void costs(const fkv_comparison *c, const axis *x, fkv_markup *m)
{
    put(m,
        "<section id=\"equal\"><h2>What budgets cost</h2>\n<p class=\"lead\">Answers that are the whole "
        "cache's, token by token. The bars are the exact intervals of %.0f%% confidence: between what the "
        "share of all records may lie.</p>\n",
        100 * FKV_COMPARE_CONFIDENCE);
    legend(c, m);
    picture(c, x, EQUAL, "Equal answers", "share of the records", m);
    answers_table(c, m);
    put(m, "</section>\n");
}

static void right(const fkv_comparison *c, const axis *x, fkv_markup *m)
{
    if (!c->settings[0].counts.n_known) return;
    put(m,
        "<section id=\"right\"><h2>Right answers</h2>\n<p class=\"lead\">By what the records say is right. "
        "An answer that differs from the whole cache's may be as right.</p>\n<div class=\"pair\">\n");
    picture(c, x, EXACT, "Exact", "the answer is one of them", m);
    picture(c, x, CONTAINS, "Contains", "one of them is in the answer", m);
    put(m, "</div></section>\n");
}

static void savings(const fkv_comparison *c, const axis *x, fkv_markup *m)
{
    bool timed = false;
    for (int k = 0; k < c->n_settings; k++) timed = timed || c->settings[k].seconds >= 0;
    put(m,
        "<section id=\"saved\"><h2>What budgets save</h2>\n<p class=\"lead\">What the whole job, of %lld "
        "records, would keep and take on this machine. Time is predicted%s.</p>\n<div class=\"pair\">\n",
        (long long)c->sample.n_input,
        c->settings[0].origin == FKV_COST_STATED ? " by rates of the machine's kind, not measured ones" : "");
    picture(c, x, SLOT, "Memory of a slot", "MiB of K and V", m);
    if (timed) picture(c, x, SECONDS, "Time of the whole job", "predicted", m);
    put(m, "</div>\n");
    savings_table(c, m);
    put(m, "</section>\n");
}

static void how(const fkv_comparison *c, fkv_markup *m)
{
    const fkv_layout *l = &c->layout;
    put(m, "<section id=\"how\"><h2>How it was compared</h2>\n<dl>\n<dt>Model</dt><dd>");
    fkv_markup_text(m, c->setup->job->model.path, NAME);
    put(m, "</dd>\n<dt>Device</dt><dd>");
    fkv_markup_text(m, c->device, NAME);
    put(m,
        ", backend %s, %d %s, %d %s</dd>\n<dt>Records</dt><dd>%lld of %lld in the input, by the hash of "
        "job.seed that chooses the profile's sample, and none of that</dd>\n<dt>Sample</dt><dd>%lld records "
        "for the budgets; a prompt has %.0f tokens on average</dd>\n<dt>Left out</dt><dd>%lld records of "
        "those "
        "looked at, which would be error rows</dd>\n</dl></section>\n",
        c->setup->backend->name, l->ranks, l->ranks == 1 ? "rank" : "ranks", l->slots,
        l->slots == 1 ? "slot" : "slots", (long long)c->records.n, (long long)c->sample.n_input,
        (long long)c->sample.n, c->mean_prompt, (long long)c->sample.n_left_out);
}

void fkv_compare_html(const fkv_comparison *c, fkv_markup *m)
{
    axis x;
    make_axis(c, &x);
    fkv_report_head(m, c->setup->job->job.name, "compare", style);
    header(c, m);
    put(m, "<main>\n");
    costs(c, &x, m);
    right(c, &x, m);
    savings(c, &x, m);
    how(c, m);
    put(m,
        "</main>\n<footer>Made by fairkv-batch %s. compare.json has the same, and every record's answer by "
        "its "
        "length and first difference.</footer>\n</body></html>\n",
        FKV_VERSION);
}
