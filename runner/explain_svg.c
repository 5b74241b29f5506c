/* The plan as a picture: three panels over the same axis of layers. Plain SVG of
 * fixed elements, no script, no font of its own; the text takes the colour of its
 * surroundings, and both themes are in the style sheet. Owns no memory. */
#include <math.h>
#include <stdlib.h>

#include "runner/base/file.h"
#include "runner/base/mem.h"
#include "runner/explain.h"

enum {
    WIDTH = 960,
    LEFT = 76,
    PLOT = 860,  /* width of all layers together */
    LOADS = 170, /* height of a panel of loads */
    GAP = 74,
    TOP = 96,
    BAR = 4,      /* px that a rank's bar needs */
    TITLED = 8192 /* so many cells still get a title each */
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
    fkv_buf buf;
    const fkv_plan *plan;
    const fkv_explanation *x;
    double step; /* px a layer */
    fkv_status st;
    fkv_err *err;
} svg;

#define put(s, ...)                                                                                          \
    do {                                                                                                     \
        if (!(s)->st) (s)->st = fkv_buf_printf(&(s)->buf, (s)->err, __VA_ARGS__);                            \
    } while (0)

/* Text from outside, escaped for XML; control characters become spaces. */
static void put_escaped(svg *s, const char *text)
{
    for (; *text && !s->st; text++) {
        switch (*text) {
        case '&': put(s, "&amp;"); break;
        case '<': put(s, "&lt;"); break;
        case '>': put(s, "&gt;"); break;
        case '"': put(s, "&quot;"); break;
        default: put(s, "%c", (unsigned char)*text < ' ' ? ' ' : *text);
        }
    }
}

/* A round number that is at least x, and a quarter of which is round too. */
static double round_up(double x)
{
    static const double steps[] = {1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10};
    if (!(x > 0)) return 1;
    const double p = pow(10, floor(log10(x)));
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (x <= steps[i] * p) return steps[i] * p;
    return 10 * p;
}

static void layer_axis(svg *s, double y)
{
    const int n = s->plan->n_layers, every = n <= 20 ? 1 : (int)round_up(n / 16.0);
    for (int l = 0; l < n; l += every)
        put(s, "<text class=\"n\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%d</text>\n",
            LEFT + (l + 0.5) * s->step, y + 16, l);
    put(s, "<text class=\"n\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">layer</text>\n",
        LEFT + n * s->step / 2, y + 32);
}

/* One rank's load: a bar of its own where there is room, else a tick at its height. */
static void load_mark(svg *s, const fkv_plan *plan, int l, int r, double share, bool slowest, double y)
{
    const double width = s->step * 0.8, each = width / plan->n_ranks, x = LEFT + (l + 0.1) * s->step;
    const double top = y + LOADS * (1 - share);
    const char *class = slowest ? "slow" : "rank";
    if (each >= BAR)
        put(s, "<rect class=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"", class, x + r * each,
            top, each - 1, LOADS * share);
    else
        put(s, "<rect class=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%d\"", class, x,
            top - (slowest ? 1.5 : 1), width, slowest ? 3 : 2);
}

static void load_marks(svg *s, const fkv_plan *plan, int l, double y, double most)
{
    double all = 0, top = 0;
    for (int r = 0; r < plan->n_ranks; r++) {
        const double load = fkv_explain_load(s->x, plan, l, r);
        all += load;
        if (load > top) top = load;
    }
    for (int r = 0; r < plan->n_ranks; r++) {
        const double load = fkv_explain_load(s->x, plan, l, r);
        load_mark(s, plan, l, r, load / most, load == top, y);
        if (plan->n_layers * plan->n_ranks <= TITLED)
            put(s, "><title>layer %d, rank %d: %.0f tokens</title></rect>\n", l, r, load);
        else
            put(s, "/>\n");
    }
    put(s, "<rect class=\"mean\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"2\"/>\n",
        LEFT + (l + 0.1) * s->step, y + LOADS * (1 - all / plan->n_ranks / most) - 1, s->step * 0.8);
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
    for (int l = 0; l < plan->n_layers; l++) load_marks(s, plan, l, y, most);
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

static double shade(double budget, double most)
{
    return most > 0 ? 0.06 + 0.94 * budget / most : 0;
}

static void budget_panel(svg *s, const int32_t *budgets, double y, double height)
{
    const int n_layers = s->plan->n_layers, k = s->plan->n_kv_heads;
    const double cell = height / k, gap = cell > 6 && s->step > 6 ? 1 : 0;
    double most = 0;
    for (int i = 0; i < n_layers * k; i++) most = budgets[i] > most ? budgets[i] : most;
    put(s, "<text class=\"t\" x=\"%d\" y=\"%.1f\">Budgets: prompt tokens that each KV head keeps</text>\n",
        LEFT, y - 10);
    for (int l = 0; l < n_layers; l++)
        for (int h = 0; h < k; h++) {
            const int32_t b = budgets[l * k + h];
            put(s,
                "<rect class=\"cell\" fill-opacity=\"%.3f\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" "
                "height=\"%.2f\"",
                shade(b, most), LEFT + l * s->step, y + h * cell, s->step - gap, cell - gap);
            if (n_layers * k <= TITLED)
                put(s, "><title>layer %d, head %d: %d tokens</title></rect>\n", l, h, b);
            else
                put(s, "/>\n");
        }
    const int every = k <= 16 ? 1 : (int)round_up(k / 8.0);
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
            shade(i / 4.0, 1), LEFT + i * 40, y + height + 44, LEFT + i * 40 + 17, y + height + 70,
            most * i / 4);
    put(s, "<text class=\"n\" x=\"%d\" y=\"%.1f\">tokens</text>\n", LEFT + 210, y + height + 54);
}

static void draw(svg *s, const fkv_setup *setup, const fkv_planning *p)
{
    const fkv_plan *standard = &s->x->modes[FKV_PLAN_STANDARD], *plan = s->plan;
    const double cell = plan->n_kv_heads <= 10 ? 20 : plan->n_kv_heads <= 100 ? 200.0 / plan->n_kv_heads : 2;
    const double heat = cell * plan->n_kv_heads, y1 = TOP + 24, y2 = y1 + LOADS + GAP, y3 = y2 + LOADS + GAP;
    const double height = y3 + heat + 86;
    double most = 0;
    for (int l = 0; l < plan->n_layers; l++)
        for (int r = 0; r < plan->n_ranks; r++) {
            const double load = fkv_explain_load(s->x, standard, l, r);
            if (load > most) most = load;
        }
    most = round_up(most);
    put(s,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\" "
        "role=\"img\">\n<title>Fair-Copying plan of ",
        WIDTH, height, WIDTH, height);
    put_escaped(s, setup->job->job.name);
    put(s, "</title>\n%s<text class=\"h\" x=\"%d\" y=\"32\">", head, LEFT);
    put_escaped(s, setup->job->job.name);
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
    svg s = {.plan = &p->plan, .x = x, .step = (double)PLOT / p->plan.n_layers, .err = err};
    draw(&s, setup, p);
    if (!s.st) s.st = fkv_file_replace(path, s.buf.data, s.buf.len, err);
    fkv_buf_free(&s.buf);
    return s.st;
}
