/* What the plan does: loads of the ranks before and after, and the heads' budgets. See report_parts.h. */
#include <stdlib.h>

#include "runner/base/mem.h"
#include "runner/plan_marks.h"
#include "runner/report_parts.h"

#define put fkv_markup_put

enum {
    PLOT_W = 600,      /* units of a chart, which has no size of its own */
    LOADS_H = 150,     /* px */
    LABELS = 16,       /* of an axis, at the most */
    CELL_W = 90,       /* px of a head in a layer, at the most */
    SIDE_BY_SIDE = 24, /* layers that half the page is enough for */
    DRAWN = 1 << 14,   /* layers times heads or ranks: more are not drawn */
    SHOWN_RANKS = 16   /* in a table that is open */
};

/* ---- axes ---- */

/* Numbers from 0 to n - 1, as many as are legible; each stands over its share of the axis. */
static void axis(fkv_markup *m, const char *class, int n)
{
    const int every = (n + LABELS - 1) / LABELS;
    put(m, "<div class=\"%s each\" aria-hidden=\"true\">", class);
    for (int i = 0; i < n; i += every) {
        const int share = n - i < every ? n - i : every;
        if (every == 1)
            put(m, "<span>%d</span>", i);
        else
            put(m, "<span class=\"first\" style=\"flex:%d 0 0\">%d</span>", share, i);
    }
    put(m, "</div>\n");
}

/* ---- loads ---- */

static void load_chart(const fkv_report *x, fkv_markup *m, const fkv_plan *plan, const char *name,
                       double most)
{
    const double balance = fkv_plan_balance(plan, x->tokens);
    const char *mode = fkv_plan_mode_name(plan->mode);
    put(m, "<figure><figcaption><h3>%s: %s</h3> <span class=\"soft\">the slowest rank reads ", name, mode);
    fkv_report_real(m, balance, 2);
    put(m,
        " times the mean</span></figcaption>\n<div class=\"plot\"><div class=\"ys\" aria-hidden=\"true\">");
    for (int i = 2; i >= 0; i--) put(m, "<span>%.4g</span>", most * i / 2 / 1000);
    put(m,
        "</div>\n<svg viewBox=\"0 0 %d %d\" height=\"%d\" preserveAspectRatio=\"none\" role=\"img\">\n"
        "<title>Load of every rank by layer, %s</title><desc>The slowest rank reads %.2f times the mean. "
        "The tables below have the ranks and the layers.</desc>\n",
        PLOT_W, LOADS_H, LOADS_H, mode, balance);
    for (int i = 0; i < 2; i++)
        put(m, "<line class=\"grid\" x1=\"0\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>\n", PLOT_W, i * LOADS_H / 2,
            i * LOADS_H / 2);
    fkv_plan_marks_loads(m, plan, x->tokens, most,
                         &(fkv_plot){0, (double)PLOT_W / plan->n_layers, 0, LOADS_H});
    put(m, "</svg>\n");
    axis(m, "xs", plan->n_layers);
    put(m, "<div class=\"xname\" aria-hidden=\"true\">layer</div></div></figure>\n");
}

static void load_legend(fkv_markup *m)
{
    static const char *const keys[][2] = {
        {"slow", "the layer's slowest rank"}, {"rank", "other ranks"}, {"mean", "mean of the ranks"}};
    put(m, "<p class=\"legend\">");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        put(m,
            "<span><svg viewBox=\"0 0 16 10\" aria-hidden=\"true\"><rect class=\"%s\" y=\"%d\" "
            "width=\"16\" height=\"%d\"/></svg>%s</span>",
            keys[i][0], i < 2 ? 0 : 4, i < 2 ? 10 : 2, keys[i][1]);
    put(m, "</p>\n");
}

/* Sums over the layers of a plan, loads[n_ranks], with one layer's in work; returns the mean of the ranks. */
static double sum_loads(const fkv_plan *plan, const double *tokens, double *loads, double *work)
{
    double all = 0;
    for (int r = 0; r < plan->n_ranks; r++) loads[r] = 0;
    for (int l = 0; l < plan->n_layers; l++) {
        fkv_plan_loads(plan, tokens, l, work);
        for (int r = 0; r < plan->n_ranks; r++) loads[r] += work[r];
    }
    for (int r = 0; r < plan->n_ranks; r++) all += loads[r];
    return all / plan->n_ranks;
}

static double most_of(const double *loads, int n)
{
    double most = 0;
    for (int r = 0; r < n; r++) most = loads[r] > most ? loads[r] : most;
    return most;
}

/* before, after, work: [n_ranks] */
static void rank_table(const fkv_report *x, fkv_markup *m, double *before, double *after, double *work)
{
    const int n = x->plan.n_ranks;
    const fkv_stats *s = x->last ? &x->last->run->stats : NULL;
    const bool timed = s && s->n_ranks == n && most_of(s->rank_attention_seconds, n) > 0;
    const double mean = sum_loads(&x->home, x->tokens, before, work);
    sum_loads(&x->plan, x->tokens, after, work);
    if (n > SHOWN_RANKS) put(m, "<details><summary>The ranks as a table</summary>");
    put(m,
        "<div class=\"scroll\"><table id=\"ranks\"><thead><tr><th scope=\"col\">Rank</th>"
        "<th class=\"n\" scope=\"col\">Tokens a step before</th><th class=\"n\" scope=\"col\">of the "
        "mean</th><th class=\"n\" scope=\"col\">Tokens a step after</th>"
        "<th class=\"n\" scope=\"col\">of the mean</th>%s</tr></thead><tbody>\n",
        timed ? "<th class=\"n\" scope=\"col\">Attention measured, last run</th>" : "");
    for (int r = 0; r < n; r++) {
        put(m, "<tr><th scope=\"row\">%d</th>", r);
        fkv_report_cell(m, before[r], 0);
        put(m, "<td class=\"n\">%.2fx</td>", mean > 0 ? before[r] / mean : 1);
        fkv_report_cell(m, after[r], 0);
        put(m, "<td class=\"n\">%.2fx</td>", mean > 0 ? after[r] / mean : 1);
        if (timed) put(m, "<td class=\"n\">");
        if (timed) fkv_report_seconds(m, s->rank_attention_seconds[r]);
        put(m, "%s</tr>\n", timed ? "</td>" : "");
    }
    put(m, "</tbody></table></div>\n%s", n > SHOWN_RANKS ? "</details>\n" : "");
}

/* work: [n_ranks] */
static void layer_table(const fkv_report *x, fkv_markup *m, double *work)
{
    const int n = x->plan.n_ranks;
    put(m, "<details><summary>The layers as a table</summary><div class=\"scroll\"><table id=\"layers\">"
           "<thead><tr><th scope=\"col\">Layer</th><th class=\"n\" scope=\"col\">Mean of the ranks</th>"
           "<th class=\"n\" scope=\"col\">Slowest before</th><th class=\"n\" scope=\"col\">Slowest "
           "after</th></tr></thead><tbody>\n");
    for (int l = 0; l < x->plan.n_layers; l++) {
        double sum = 0;
        fkv_plan_loads(&x->home, x->tokens, l, work);
        for (int r = 0; r < n; r++) sum += work[r];
        put(m, "<tr><th scope=\"row\">%d</th>", l);
        fkv_report_cell(m, sum / n, 0);
        fkv_report_cell(m, most_of(work, n), 0);
        fkv_plan_loads(&x->plan, x->tokens, l, work);
        fkv_report_cell(m, most_of(work, n), 0);
        put(m, "</tr>\n");
    }
    put(m, "</tbody></table></div></details>\n");
}

static void mode_row(fkv_markup *m, const char *name, const char *more, double us, double standard_us)
{
    put(m, "<tr><th scope=\"row\">%s%s</th>", name, more);
    fkv_report_cell(m, us, 1);
    put(m, "<td class=\"n\">%.1f%%</td></tr>\n", standard_us > 0 ? 100 * us / standard_us : 100);
}

static void mode_table(const fkv_report *x, fkv_markup *m)
{
    const fkv_plan *p = &x->plan;
    const double us[FKV_PLAN_MODES] = {
        [FKV_PLAN_STANDARD] = p->standard_us,
        [FKV_PLAN_BEST_EFFORT] = p->best_effort_us,
        [FKV_PLAN_FAIR_COPYING] = p->fair_copying_us,
    };
    const bool moved = p->step_us > us[p->mode] * (1 + 1e-9);
    put(m, "<div class=\"scroll small\"><table id=\"modes\"><thead><tr>"
           "<th scope=\"col\">Modelled decode step, each rank on a device of its own</th>"
           "<th class=\"n\" scope=\"col\">us</th><th class=\"n\" scope=\"col\">of standard</th></tr>"
           "</thead><tbody>\n");
    for (int mode = 0; mode < FKV_PLAN_MODES; mode++)
        mode_row(m, fkv_plan_mode_name((fkv_plan_mode)mode),
                 (int)p->mode == mode && !moved ? ", as it was run" : "", us[mode], p->standard_us);
    if (moved) mode_row(m, "as it was run", ", to fit the memory", p->step_us, p->standard_us);
    mode_row(m, "no plan can be below", "", p->lower_bound_us, p->standard_us);
    put(m, "</tbody></table></div>\n");
}

static void draw_loads(const fkv_report *x, fkv_markup *m)
{
    const fkv_plan *p = &x->plan;
    const double most = fkv_markup_round_up(fkv_plan_marks_most(&x->home, x->tokens));
    double *loads = fkv_calloc((size_t)p->n_ranks, 3 * sizeof *loads);
    if (!loads && !m->st) m->st = fkv_fail_memory(m->err);
    if (m->st) return;
    if ((int64_t)p->n_layers * p->n_ranks <= DRAWN) {
        load_legend(m);
        put(m, "<div class=\"pair%s\">\n", p->n_layers > SIDE_BY_SIDE ? " stack" : "");
        load_chart(x, m, &x->home, "Before", most);
        load_chart(x, m, p, "After", most);
        put(m, "</div>\n");
    }
    rank_table(x, m, loads, loads + p->n_ranks, loads + 2 * p->n_ranks);
    layer_table(x, m, loads);
    mode_table(x, m);
    free(loads);
}

void fkv_report_loads(const fkv_report *x, fkv_markup *m)
{
    const fkv_plan *p = &x->plan;
    put(m, "<section id=\"loads\"><h2>Load of the ranks</h2>\n");
    if (!p->n_layers) {
        put(m, "<p>");
        fkv_markup_text(m, x->plan_why, FKV_MARKUP_TEXT);
        put(m, "</p></section>\n");
        return;
    }
    put(m,
        "<p class=\"lead\">What the ranks read of the KV cache in a decode step, by the plan: with every "
        "head at home, and as it was run. %d rank%s, %d slots, %d copied heads. Heights are thousand "
        "tokens a step, layer by layer.</p>\n",
        p->n_ranks, p->n_ranks == 1 ? "" : "s", p->n_slots, fkv_plan_copies(p));
    if (p->n_ranks == 1)
        put(m, "<p>One rank reads everything: there is nobody to share with.</p>\n");
    else
        draw_loads(x, m);
    put(m, "</section>\n");
}

/* ---- budgets ---- */

static void budget_table(fkv_markup *m, const fkv_profile *p)
{
    put(m, "<details><summary>The budgets as a table</summary><div class=\"scroll\">"
           "<table id=\"budgets-table\"><thead><tr><th scope=\"col\">Layer</th>");
    for (int h = 0; h < p->n_kv_heads; h++) put(m, "<th class=\"n\" scope=\"col\">head %d</th>", h);
    put(m, "</tr></thead><tbody>\n");
    for (int l = 0; l < p->n_layers; l++) {
        put(m, "<tr><th scope=\"row\">%d</th>", l);
        for (int h = 0; h < p->n_kv_heads; h++)
            put(m, "<td class=\"n\">%d</td>", p->budgets[l * p->n_kv_heads + h]);
        put(m, "</tr>\n");
    }
    put(m, "</tbody></table></div></details>\n");
}

static void heat_map(fkv_markup *m, const fkv_profile *p, int least, int most)
{
    const int k = p->n_kv_heads;
    const double height = k <= 10 ? 26.0 * k : k <= 40 ? 15.0 * k : k <= 200 ? 4.0 * k : 2.0 * k;
    put(m, "<figure><div class=\"plot\" style=\"max-width:%dpx\">\n", 60 + p->n_layers * CELL_W);
    axis(m, "ys", k);
    put(m,
        "<svg viewBox=\"0 0 %d %.0f\" height=\"%.0f\" preserveAspectRatio=\"none\" role=\"img\" "
        "id=\"heat\">\n<title>Budget of every KV head by layer</title>"
        "<desc>From %d to %d tokens; the table below has them all.</desc>\n",
        PLOT_W, height, height, least, most);
    fkv_plan_marks_budgets(m, p->budgets, p->n_layers, k,
                           &(fkv_plot){0, (double)PLOT_W / p->n_layers, 0, height});
    put(m, "</svg>\n");
    axis(m, "xs", p->n_layers);
    put(m, "<div class=\"xname\" aria-hidden=\"true\">layer</div></div>\n<div class=\"scale\">");
    for (int i = 0; i < 5; i++) {
        put(m,
            "<span><svg viewBox=\"0 0 1 1\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"
            "<rect class=\"cell\" fill-opacity=\"%.3f\" width=\"1\" height=\"1\"/></svg>",
            fkv_plan_marks_shade(i / 4.0, 1));
        fkv_report_real(m, most * i / 4.0, 0);
        put(m, "</span>");
    }
    put(m, "</div></figure>\n");
}

void fkv_report_budgets(const fkv_report *x, fkv_markup *m)
{
    const fkv_profile *p = &x->profile;
    const int64_t n = (int64_t)p->n_layers * p->n_kv_heads;
    int least = INT32_MAX, most = 0;
    put(m, "<section id=\"budgets\"><h2>Budgets of the heads</h2>\n");
    if (!n) {
        put(m, "<p>");
        fkv_markup_text(m, x->profile_why, FKV_MARKUP_TEXT);
        put(m, "</p></section>\n");
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        if (p->budgets[i] < least) least = p->budgets[i];
        if (p->budgets[i] > most) most = p->budgets[i];
    }
    put(m, "<p class=\"lead\">How many tokens of a prompt each KV head keeps: ");
    fkv_report_count(m, least);
    put(m, " to ");
    fkv_report_count(m, most);
    put(m, ". Of the sample's K and V that is ");
    fkv_report_real(m, 100 * fkv_profile_kept_share(p), 1);
    put(m, "%%");
    if (p->score[0]) put(m, "; %s (profile.score) ranks a prompt's tokens", p->score);
    put(m, ". Layers go across, heads go down; the stronger the colour, the more.</p>\n");
    if (n <= DRAWN) {
        heat_map(m, p, least, most);
        budget_table(m, p);
    } else {
        put(m, "<p>They are too many to be drawn: profile.json has them.</p>\n");
    }
    put(m, "</section>\n");
}
