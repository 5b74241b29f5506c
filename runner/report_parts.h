/* The pieces of report.html, some of which compare.html has too. Each writes to the markup alone and borrows
 * the report. Internal to report_*.c.
 */
#ifndef FKV_RUNNER_REPORT_PARTS_H
#define FKV_RUNNER_REPORT_PARTS_H

#include "runner/report.h"

/* report_style.c: a page's head with the style sheet, as far as <body>. name: of what it is about, from
 * outside; what: kind of page; more: style of this page alone. */
void fkv_report_head(fkv_markup *m, const char *name, const char *what, const char *more);

/* report_text.c: numbers that a page shows, each in an element that holds the plain number too. */
void fkv_report_count(fkv_markup *m, int64_t n);             /* 1,234 */
void fkv_report_real(fkv_markup *m, double v, int decimals); /* 1,234.5 */
void fkv_report_seconds(fkv_markup *m, double s);            /* 12.3 s, 4 min 05 s, 3 h 04 min */
void fkv_report_moment(fkv_markup *m, int64_t when);         /* a Unix time, UTC */
void fkv_report_cell(fkv_markup *m, double v, int decimals); /* a number as a table's cell */

/* report_charts.c: sections with a picture, and the same numbers as text. */
void fkv_report_time(const fkv_report *x, fkv_markup *m);
void fkv_report_throughput(const fkv_report *x, fkv_markup *m);
void fkv_report_lengths(const fkv_report *x, fkv_markup *m);
/* report_plan.c: what the plan does. */
void fkv_report_loads(const fkv_report *x, fkv_markup *m);
void fkv_report_budgets(const fkv_report *x, fkv_markup *m);

#endif
