/* Numbers and times for people: see report_parts.h. */
#include <math.h>
#include <string.h>
#include <time.h>

#include "runner/report_parts.h"

/* Writes v with commas between thousands; size is enough for any number that a double holds exactly. */
static void with_commas(double v, int decimals, char *out, size_t size)
{
    char digits[64];
    size_t at = 0;
    snprintf(digits, sizeof digits, "%.*f", decimals, v);
    const size_t n = strcspn(digits, ".");
    for (size_t i = 0; digits[i] && at + 2 < size; i++) {
        if (i && i < n && (n - i) % 3 == 0 && digits[i - 1] != '-') out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = '\0';
}

void fkv_report_count(fkv_markup *m, int64_t n)
{
    char text[96];
    with_commas((double)n, 0, text, sizeof text);
    fkv_markup_put(m, "<data value=\"%lld\">%s</data>", (long long)n, text);
}

void fkv_report_real(fkv_markup *m, double v, int decimals)
{
    char text[96];
    if (!isfinite(v) || fabs(v) > 1e18) {
        fkv_markup_put(m, "-");
        return;
    }
    with_commas(v, decimals, text, sizeof text);
    fkv_markup_put(m, "<data value=\"%.6f\">%s</data>", v, text);
}

void fkv_report_seconds(fkv_markup *m, double s)
{
    const long long all = (long long)(s < 1e12 ? s + 0.5 : 1e12);
    fkv_markup_put(m, "<data value=\"%.6f\">", s);
    if (s < 100)
        fkv_markup_put(m, "%.*f s", s < 9.95 ? 2 : 1, s);
    else if (all < 3600)
        fkv_markup_put(m, "%lld min %02lld s", all / 60, all % 60);
    else
        fkv_markup_put(m, "%lld h %02lld min", all / 3600, all / 60 % 60);
    fkv_markup_put(m, "</data>");
}

void fkv_report_moment(fkv_markup *m, int64_t when)
{
    char iso[32], text[32];
    const time_t t = (time_t)when;
    struct tm tm;
    if (!gmtime_r(&t, &tm) || !strftime(iso, sizeof iso, "%Y-%m-%dT%H:%M:%SZ", &tm) ||
        !strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &tm))
        fkv_markup_put(m, "?");
    else
        fkv_markup_put(m, "<time datetime=\"%s\">%s</time>", iso, text);
}

void fkv_report_cell(fkv_markup *m, double v, int decimals)
{
    fkv_markup_put(m, "<td class=\"n\">");
    fkv_report_real(m, v, decimals);
    fkv_markup_put(m, "</td>");
}
