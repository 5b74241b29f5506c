/* Pages and pictures as text: see markup.h. */
#include "runner/markup.h"

#include <math.h>
#include <string.h>

#include "runner/base/utf8.h"

void fkv_markup_put(fkv_markup *m, const char *fmt, ...)
{
    char text[4096];
    va_list ap;
    if (m->st) return;
    va_start(ap, fmt);
    const int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof text)
        m->st = fkv_fail(m->err, FKV_E_SYSTEM, "a piece of a page is too long");
    else
        m->st = fkv_buf_append(&m->buf, text, (size_t)n, m->err);
}

void fkv_markup_raw(fkv_markup *m, const char *text)
{
    if (!m->st) m->st = fkv_buf_puts(&m->buf, text, m->err);
}

void fkv_markup_text(fkv_markup *m, const char *text, size_t max)
{
    char shown[FKV_MARKUP_TEXT + 1], all[FKV_MARKUP_TEXT + 17];
    if (max > FKV_MARKUP_TEXT) max = FKV_MARKUP_TEXT;
    fkv_utf8_show(text, shown, max + 1);
    fkv_utf8_show(text, all, max + 17);
    for (const char *p = shown; *p && !m->st; p++) {
        switch (*p) {
        case '&': fkv_markup_put(m, "&amp;"); break;
        case '<': fkv_markup_put(m, "&lt;"); break;
        case '>': fkv_markup_put(m, "&gt;"); break;
        case '"': fkv_markup_put(m, "&quot;"); break;
        case '\'': fkv_markup_put(m, "&#39;"); break;
        default: m->st = fkv_buf_append(&m->buf, p, 1, m->err);
        }
    }
    if (strlen(all) > strlen(shown)) fkv_markup_put(m, "...");
}

void fkv_markup_free(fkv_markup *m)
{
    fkv_buf_free(&m->buf);
}

double fkv_markup_round_up(double x)
{
    static const double steps[] = {1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10};
    if (!(x > 0)) return 1;
    const double p = pow(10, floor(log10(x)));
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (x <= steps[i] * p) return steps[i] * p;
    return 10 * p;
}
