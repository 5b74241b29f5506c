/* What a comparison says on a terminal: see compare.h. */
#include <string.h>

#include "runner/compare.h"

static void put_share(char *out, size_t size, double share)
{
    snprintf(out, size, "%.1f%%", 100 * share);
}

static void put_seconds(char *out, size_t size, double s)
{
    if (s < 0)
        snprintf(out, size, "-");
    else if (s < 120)
        snprintf(out, size, "%.*f s", s < 10 ? 2 : 1, s);
    else
        snprintf(out, size, s < 7200 ? "%.0f min" : "%.1f h", s < 7200 ? s / 60 : s / 3600);
}

static void put_bytes(char *out, size_t size, int64_t bytes)
{
    const double mib = (double)bytes / (1 << 20);
    snprintf(out, size, "%.*f MiB", mib < 10 ? 2 : mib < 100 ? 1 : 0, mib);
}

/* The setting as people call it. */
static void put_name(const fkv_comparison *c, const fkv_compare_setting *s, char *out, size_t size)
{
    snprintf(out, size, "a budget of %s with %s (%lld tokens of %.0f)", s->budget, s->scorer,
             (long long)s->tokens, c->mean_prompt);
}

/* The setting that came nearest to the share that is asked for; 0: nothing was compared. */
static int nearest(const fkv_comparison *c)
{
    int best = 0;
    double most = -1;
    for (int k = 1; k < c->n_settings; k++) {
        const fkv_compare_counts *n = &c->settings[k].counts;
        const double share = fkv_compare_share(n->n_equal, n->n);
        if (n->n == 0 || share <= most) continue;
        best = k;
        most = share;
    }
    return best;
}

void fkv_compare_says(const fkv_comparison *c, char *out, size_t size)
{
    const int k = c->choice ? c->choice : nearest(c);
    const fkv_compare_setting *s = &c->settings[k];
    const double asked = 100 * c->options.equal;
    char name[128], settle[192];
    if (!k) {
        snprintf(out, size, "No record was answered both with the whole cache and a budget.");
        return;
    }
    put_name(c, s, name, sizeof name);
    if (s->verdict != FKV_VERDICT_OPEN)
        snprintf(settle, sizeof settle, "These records settle it.");
    else if (s->to_settle)
        snprintf(
            settle, sizeof settle,
            "The interval has %.4g%% in it: about %lld records would settle it, if they go on like these.",
            asked, (long long)s->to_settle);
    else
        snprintf(settle, sizeof settle,
                 "The interval has %.4g%% in it, and so it would with a million records like these.", asked);
    snprintf(
        out, size,
        "%s %.4g%% of equal answers%s %s: %.1f%% are equal here, %.1f%% to %.1f%% in all records (%.0f%% "
        "confidence). %s",
        c->choice ? "For" : "No budget gives", asked, c->choice ? " take" : "; nearest is", name,
        100 * fkv_compare_share(s->counts.n_equal, s->counts.n), 100 * s->interval.low,
        100 * s->interval.high, 100 * FKV_COMPARE_CONFIDENCE, settle);
}

enum { COLUMNS = 12, CELL = 32 };

static void fill_row(const fkv_comparison *c, const fkv_compare_setting *s, char cells[COLUMNS][CELL])
{
    const fkv_compare_counts *n = &s->counts;
    const bool whole = !s->scorer;
    snprintf(cells[0], CELL, "%.31s", s->budget);
    snprintf(cells[1], CELL, "%.31s", whole ? "-" : s->scorer);
    snprintf(cells[2], CELL, "%.0f", whole ? c->mean_prompt : (double)s->tokens);
    put_share(cells[3], CELL, fkv_compare_share(n->n_equal, n->n));
    snprintf(cells[4], CELL, "%.1f-%.1f%%", 100 * s->interval.low, 100 * s->interval.high);
    if (whole) snprintf(cells[3], CELL, "-");
    if (whole) snprintf(cells[4], CELL, "-");
    snprintf(cells[5], CELL, "-");
    if (n->n_equal < n->n) snprintf(cells[5], CELL, "%.1f", n->first_median);
    snprintf(cells[6], CELL, "%.1f", n->tokens);
    snprintf(cells[7], CELL, "-");
    snprintf(cells[8], CELL, "-");
    if (n->n_known) put_share(cells[7], CELL, fkv_compare_share(n->exact, n->n_known));
    if (n->n_known) put_share(cells[8], CELL, fkv_compare_share(n->contains, n->n_known));
    put_bytes(cells[9], CELL, s->slot_bytes);
    snprintf(cells[10], CELL, "%lld", (long long)s->slots_fit);
    put_seconds(cells[11], CELL, s->seconds);
}

static void print_row(const char cells[COLUMNS][CELL], const int widths[COLUMNS], FILE *out)
{
    for (int i = 0; i < COLUMNS; i++)
        fprintf(out, i < 2 ? "%s%-*s" : "%s%*s", i ? "  " : "", widths[i], cells[i]);
    fputc('\n', out);
}

void fkv_compare_print(const fkv_comparison *c, FILE *out)
{
    static const char head[COLUMNS][CELL] = {"budget",   "scorer",    "tokens",     "equal",
                                             "interval", "differ at", "new tokens", "exact",
                                             "contains", "slot",      "slots fit",  "whole job"};
    char cells[COLUMNS][CELL], says[1024];
    int widths[COLUMNS];
    for (int i = 0; i < COLUMNS; i++) widths[i] = (int)strlen(head[i]);
    for (int k = 0; k < c->n_settings; k++) {
        fill_row(c, &c->settings[k], cells);
        for (int i = 0; i < COLUMNS; i++)
            if ((int)strlen(cells[i]) > widths[i]) widths[i] = (int)strlen(cells[i]);
    }
    print_row(head, widths, out);
    for (int k = 0; k < c->n_settings; k++) {
        fill_row(c, &c->settings[k], cells);
        print_row((const char(*)[CELL])cells, widths, out);
    }
    fkv_compare_says(c, says, sizeof says);
    fprintf(out, "%lld records of %lld, none of the profile's sample of %lld. %s\n", (long long)c->records.n,
            (long long)c->sample.n_input, (long long)c->sample.n, says);
}
