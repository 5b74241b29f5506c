/* The plan as a picture: three panels over the same axis of layers. Plain SVG of
 * fixed elements, no script, no font of its own; the text takes the colour of its
 * surroundings, and both themes are in the style sheet. Owns no memory. */
#include "runner/base/file.h"
#include "runner/explain.h"
#include "runner/plan_marks.h"

enum {
    WIDTH = 960,
    LEFT = 76,
    PLOT = 860,  /* width of all layers together */
    LOADS = 170, /* height of a panel of loads */
    GAP = 74,
    TOP = 96
};

static const char head[] =
    "<style>\n"
    "svg{color:#1f2328;background:#fff;font:13px system-ui,sans-serif}\n"
    "text{fill:currentColor}\n"
    ".h{font-size:17px;font-weight:600}.t{font-size:14px;font-weight:600}.n{font-size:12px;opacity:.75}\n"
    ".axis{stroke:currentColor;stroke-opacity:.55}.grid{stroke:currentColor;stroke-opacity:.14}\n"
    ".rank{fill:#57606a;fill-opacity:.5}.slow{fill:#c4432b}.mean{fill:#0a7d6c}\n"
    ".cell{fill:#0b57b0}.frame{fill:none;stroke:currentColor;stroke-opacity:.3}\n"
    "@media (prefers-color-scheme:dark){\n"
    "svg{color:#e6edf3;background:#0d1117}\n"
    ".rank{fill:#9da7b3;fill-opacity:.55}.slow{fill:#ff8a6b}.mean{fill:#3fcab3}.cell{fill:#6cb2ff}\n"
    "}\n</style>\n";

typedef struct svg {
    fkv_markup m;
    const fkv_plan *plan;
    const fkv_explanation *x;
    double step; /* px a layer */
} svg;

#define put(s, ...) fkv_markup_put(&(s)->m, __VA_ARGS__)

static void layer_axis(svg *s, double y)
{
    const int n = s->plan->n_layers, every = n <= 20 ? 1 : (int)fkv_markup_round_up(n / 16.0);
    for (int l = 0; l < n; l += every)
        put(s, "<text class=\"n\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%d</text>\n",
            LEFT + (l + 0.5) * s->step, y + 16, l);
    put(s, "<text class=\"n\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">layer</text>\n",
        LEFT + n * s->step / 2, y + 32);
}

/* y: the panel's upper edge. */
static void load_panel(svg *s, const fkv_plan *plan, const char *name, double balance, double most, double y)
{
    put(s, "<text class=\"t\" x=\"%d\" y=\"%.1f\">%s: the slowest rank reads %.2fx the mean</text>\n", LEFT,
        y - 10, name, balance);
    for (int i = 0; i <= 4; i++) {
        const double at = y + LOADS * (1 - i / 4.0);
        put(s, "<line class=\"%s\" x1=\"%d\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", i ? "grid" : "axis",
            LEFT, LEFT + plan->n_layers * s->step, at, at);
        put(s, "<text class=\"n\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n", LEFT - 8, at + 4,
            most * i / 4 / 1000);
    }
    put(s,
        "<text class=\"n\" transform=\"translate(18 %.1f) rotate(-90)\" text-anchor=\"middle\">thousand "
        "tokens a step</text>\n",
        y + LOADS / 2.0);
    fkv_plan_marks_loads(&s->m, plan, s->x->tokens, most, &(fkv_plot){LEFT, s->step, y, LOADS});
    layer_axis(s, y + LOADS);
}

static void legend(svg *s, double y)
{
    static const struct {
        const char *class, *text;
        int x, height;
    } keys[] = {{"slow", "slowest rank of the layer", LEFT, 3},
                {"rank", "other ranks", LEFT + 210, 2},
                {"mean", "mean of the ranks", LEFT + 330, 2}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        put(s,
            "<rect class=\"%s\" x=\"%d\" y=\"%.1f\" width=\"18\" height=\"%d\"/><text class=\"n\" x=\"%d\" "
            "y=\"%.1f\">%s</text>\n",
            keys[i].class, keys[i].x, y - 5, keys[i].height, keys[i].x + 25, y, keys[i].text);
}

static void budget_panel(svg *s, const int32_t *budgets, double y, double height)
{
    const int n_layers = s->plan->n_layers, k = s->plan->n_kv_heads;
    const double cell = height / k;
    double most = 0;
    for (int i = 0; i < n_layers * k; i++) most = budgets[i] > most ? budgets[i] : most;
    put(s, "<text class=\"t\" x=\"%d\" y=\"%.1f\">Budgets: prompt tokens that each KV head keeps</text>\n",
        LEFT, y - 10);
    fkv_plan_marks_budgets(&s->m, budgets, n_layers, k, &(fkv_plot){LEFT, s->step, y, height});
    const int every = k <= 16 ? 1 : (int)fkv_markup_round_up(k / 8.0);
    for (int h = 0; h < k; h += every)
        put(s, "<text class=\"n\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%d</text>\n", LEFT - 8,
            y + (h + 0.5) * cell + 4, h);
    put(s,
        "<text class=\"n\" transform=\"translate(18 %.1f) rotate(-90)\" text-anchor=\"middle\">KV "
        "head</text>\n",
        y + height / 2);
    layer_axis(s, y + height);
    for (int i = 0; i < 5; i++)
        put(s,
            "<rect class=\"cell\" fill-opacity=\"%.3f\" x=\"%d\" y=\"%.1f\" width=\"34\" "
            "height=\"12\"/><text "
            "class=\"n\" x=\"%d\" y=\"%.1f\" text-anchor=\"middle\">%.0f</text>\n",
            fkv_plan_marks_shade(i / 4.0, 1), LEFT + i * 40, y + height + 44, LEFT + i * 40 + 17,
            y + height + 70, most * i / 4);
    put(s, "<text class=\"n\" x=\"%d\" y=\"%.1f\">tokens</text>\n", LEFT + 210, y + height + 54);
}

static void draw(svg *s, const fkv_setup *setup, const fkv_planning *p)
{
    const fkv_plan *standard = &s->x->modes[FKV_PLAN_STANDARD], *plan = s->plan;
    const double cell = plan->n_kv_heads <= 10 ? 20 : plan->n_kv_heads <= 100 ? 200.0 / plan->n_kv_heads : 2;
    const double heat = cell * plan->n_kv_heads, y1 = TOP + 24, y2 = y1 + LOADS + GAP, y3 = y2 + LOADS + GAP;
    const double height = y3 + heat + 86;
    const double most = fkv_markup_round_up(fkv_plan_marks_most(standard, s->x->tokens));
    put(s,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\" "
        "role=\"img\">\n<title>Fair-Copying plan of ",
        WIDTH, height, WIDTH, height);
    fkv_markup_text(&s->m, setup->job->job.name, FKV_MARKUP_TEXT);
    put(s, "</title>\n%s<text class=\"h\" x=\"%d\" y=\"32\">", head, LEFT);
    fkv_markup_text(&s->m, setup->job->job.name, FKV_MARKUP_TEXT);
    put(s,
        "</text>\n<text class=\"n\" x=\"%d\" y=\"54\">%d ranks, %d slots, %d copies; modelled decode step ",
        LEFT, plan->n_ranks, plan->n_slots, fkv_plan_copies(plan));
    put(s, "%.0f us, standard %.0f us, bound %.0f us</text>\n",
        plan->mode == FKV_PLAN_STANDARD      ? standard->standard_us
        : plan->mode == FKV_PLAN_BEST_EFFORT ? standard->best_effort_us
                                             : standard->fair_copying_us,
        standard->standard_us, standard->lower_bound_us);
    legend(s, 76);
    load_panel(s, standard, "Before (standard)", s->x->balance[FKV_PLAN_STANDARD], most, y1);
    char name[64];
    snprintf(name, sizeof name, "After (%s)", fkv_plan_mode_name(plan->mode));
    load_panel(s, plan, name, s->x->balance[plan->mode], most, y2);
    budget_panel(s, p->profile.budgets, y3, heat);
    put(s, "</svg>\n");
}

fkv_status fkv_explain_svg(const fkv_setup *setup, const fkv_planning *p, const fkv_explanation *x,
                           const char *path, fkv_err *err)
{
    svg s = {.m = {.err = err}, .plan = &p->plan, .x = x, .step = (double)PLOT / p->plan.n_layers};
    draw(&s, setup, p);
    if (!s.m.st) s.m.st = fkv_file_replace(path, s.m.buf.data, s.m.buf.len, err);
    fkv_markup_free(&s.m);
    return s.m.st;
}
