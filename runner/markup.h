/* HTML and SVG as they are written: what is put after a failure is dropped, and the end tells of it, so that
 * a page is written line by line. Owns its text.
 *
 * Text from outside goes through text alone, which makes it harmless: no tag, no entity, no control
 * character, no change of direction, and no more than so many bytes. Not for what a page says (report_html.c,
 * explain_svg.c). */
#ifndef FKV_RUNNER_MARKUP_H
#define FKV_RUNNER_MARKUP_H

#include "runner/base/buf.h"

/* Zero-initialise with err. */
typedef struct fkv_markup {
    fkv_buf buf;
    fkv_status st; /* the first failure */
    fkv_err *err;
} fkv_markup;

enum { FKV_MARKUP_TEXT = 1024 }; /* bytes of a text from outside that are shown at the most */

void fkv_markup_put(fkv_markup *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Text of ours, of any length, as it is. */
void fkv_markup_raw(fkv_markup *m, const char *text);
/* Any text, also as an attribute's value between double quotes; cut to max bytes (FKV_MARKUP_TEXT at the
 * most), with three dots where it was. */
void fkv_markup_text(fkv_markup *m, const char *text, size_t max);
void fkv_markup_free(fkv_markup *m);

/* A round number that is at least x, and a quarter of which is round too: where an axis ends. */
double fkv_markup_round_up(double x);

#endif
