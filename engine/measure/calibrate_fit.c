/* Least squares with coefficients that can't be negative, for a handful of them: every
 * subset of the columns is solved by its normal equations, and the best solution without
 * a negative coefficient is taken. Exact, and deterministic; not for many columns. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/measure/calibrate.h"

/* Normal equations of all columns, each scaled to length 1. */
typedef struct normal {
    int n;
    double ata[FKV_FIT_MAX][FKV_FIT_MAX], aty[FKV_FIT_MAX], scale[FKV_FIT_MAX];
    double yty;
} normal;

static void build(const double *a, const double *y, int n_rows, int n_cols, normal *s)
{
    memset(s, 0, sizeof *s);
    s->n = n_cols;
    for (int j = 0; j < n_cols; j++) {
        double sum = 0;
        for (int i = 0; i < n_rows; i++)
            if (y[i] > 0) sum += a[i * n_cols + j] / y[i] * (a[i * n_cols + j] / y[i]);
        s->scale[j] = sum > 0 ? 1 / sqrt(sum) : 0;
    }
    for (int i = 0; i < n_rows; i++) {
        if (!(y[i] > 0)) continue;
        double row[FKV_FIT_MAX];
        for (int j = 0; j < n_cols; j++) row[j] = a[i * n_cols + j] / y[i] * s->scale[j];
        for (int j = 0; j < n_cols; j++) {
            for (int k = 0; k < n_cols; k++) s->ata[j][k] += row[j] * row[k];
            s->aty[j] += row[j];
        }
        s->yty += 1;
    }
}

/* Solves for the columns in set by elimination; false where they depend on each other or
 * a coefficient is negative. *rest gets the sum of squares that remains. */
static bool solve(const normal *s, unsigned set, double *x, double *rest)
{
    double m[FKV_FIT_MAX][FKV_FIT_MAX + 1];
    int col[FKV_FIT_MAX], n = 0;
    for (int j = 0; j < s->n; j++)
        if (set >> j & 1) col[n++] = j;
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) m[i][j] = s->ata[col[i]][col[j]];
        m[i][n] = s->aty[col[i]];
    }
    for (int i = 0; i < n; i++) {
        /* Scaled columns: the diagonal is what the columns before leave of 1. */
        if (!(m[i][i] > 1e-9)) return false;
        for (int r = i + 1; r < n; r++) {
            const double f = m[r][i] / m[i][i];
            for (int j = i; j <= n; j++) m[r][j] -= f * m[i][j];
        }
    }
    *rest = s->yty;
    for (int i = n - 1; i >= 0; i--) {
        double v = m[i][n];
        for (int j = i + 1; j < n; j++) v -= m[i][j] * x[col[j]];
        x[col[i]] = v / m[i][i];
        if (!(x[col[i]] >= 0)) return false;
    }
    for (int i = 0; i < n; i++) *rest -= x[col[i]] * s->aty[col[i]];
    return true;
}

double fkv_fit_nonnegative(const double *a, const double *y, int n_rows, int n_cols, double *x)
{
    normal s;
    double best = INFINITY, error = 0;
    int counted = 0;
    build(a, y, n_rows, n_cols, &s);
    for (int j = 0; j < n_cols; j++) x[j] = 0;
    for (unsigned set = 1; set < 1u << n_cols; set++) {
        double trial[FKV_FIT_MAX] = {0}, rest;
        if (!solve(&s, set, trial, &rest) || rest >= best - 1e-12 * s.yty) continue;
        best = rest;
        for (int j = 0; j < n_cols; j++) x[j] = trial[j] * s.scale[j];
    }
    for (int i = 0; i < n_rows; i++) {
        if (!(y[i] > 0)) continue;
        double v = 0;
        for (int j = 0; j < n_cols; j++) v += a[i * n_cols + j] * x[j];
        error += fabs(v - y[i]) / y[i];
        counted++;
    }
    return counted ? error / counted : 0;
}

/* Of two rounds of measuring: a tenth is noise, more is another program or a clock that changes. */
static const double near_enough = 1.1;

bool fkv_fit_agree(double a, double b)
{
    return a <= near_enough * b && b <= near_enough * a;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

bool fkv_fit_settled(double *values, int n, double share, double *value)
{
    const int half = n / 2;
    qsort(values, (size_t)half, sizeof *values, compare);
    qsort(values + half, (size_t)(n - half), sizeof *values, compare);
    const double first = half ? values[(int)(share * (half - 1))] : values[0];
    const double second = values[half + (int)(share * (n - half - 1))];
    qsort(values, (size_t)n, sizeof *values, compare);
    *value = values[(int)(share * (n - 1))];
    return fkv_fit_agree(first, second);
}
