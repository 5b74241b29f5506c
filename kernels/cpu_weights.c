/* Weights of the CPU backend: the only file that knows how they lie.
 *
 * A weight is converted to float32 once and packed into panels of 16 columns,
 * [k][16] each, so that the inner kernel streams it; in FP8 the products of e4m3 and its row's scale. It
 * belongs to the device.
 */
#include <stdlib.h>

#include "kernels/cpu_device.h"
#include "runner/base/mem.h"

struct fkv_weight {
    int64_t n, k;  /* result columns, depth */
    int64_t first; /* embedding: first id */
    bool gated;    /* panels alternate gate and up; n counts the results */
    float *data;   /* panels [columns / 16][k][16]; an embedding: [n, k] */
    float *bias;   /* [columns] in the panels' order; NULL: none */
};

cpu_weight_view cpu_weight_columns(const fkv_weight *w, int64_t col)
{
    return (cpu_weight_view){.panels = {w->data + col * w->k, w->k * CPU_PANEL, CPU_PANEL},
                             .bias = w->bias ? w->bias + col : NULL,
                             .n = w->n,
                             .k = w->k};
}

void cpu_weight_shape(const fkv_weight *w, int64_t *n_rows, int64_t *k)
{
    *n_rows = w->gated ? 2 * w->n : w->n;
    *k = w->k;
}

const float *cpu_embedding_row(const fkv_weight *w, int64_t id)
{
    const int64_t row = id - w->first;
    return row >= 0 && row < w->n ? w->data + row * w->k : NULL;
}

/* n results of n_stored columns. */
static fkv_status weight_new(fkv_device *dev, int64_t n, int64_t n_stored, int64_t k, bool biased,
                             fkv_weight **out, fkv_err *err)
{
    size_t elems, bytes;
    if (!fkv_mul_size((size_t)n_stored, (size_t)k, &elems) || !fkv_mul_size(elems, sizeof(float), &bytes))
        return fkv_fail_memory(err);
    if (dev->n_weights == dev->cap_weights) {
        const int cap = dev->cap_weights ? 2 * dev->cap_weights : 64;
        fkv_weight **grown = fkv_realloc(dev->weights, (size_t)cap, sizeof(fkv_weight *));
        if (!grown) return fkv_fail_memory(err);
        dev->weights = grown;
        dev->cap_weights = cap;
    }
    fkv_weight *w = calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    dev->weights[dev->n_weights++] = w;
    w->n = n;
    w->k = k;
    void *data, *bias = NULL;
    fkv_status st = cpu_alloc(dev, bytes, &data, err);
    if (!st && biased) st = cpu_alloc(dev, (size_t)n_stored * sizeof *w->bias, &bias, err);
    if (st) return st;
    w->data = data;
    w->bias = bias;
    *out = w;
    return FKV_OK;
}

/* Row i of part, and its bias, become column `col` of the panels. */
static void pack_row(fkv_weight *w, int64_t col, const fkv_rows *part, int64_t i)
{
    float *panel = w->data + col / CPU_PANEL * w->k * CPU_PANEL + col % CPU_PANEL, piece[256];
    const int64_t most = sizeof piece / sizeof *piece;
    const bool quantises = part->form == FKV_FORM_FP8 && !fkv_rows_are_fp8(part, w->k);
    const float largest = quantises ? fkv_rows_largest(part, i, w->k) : 0;
    for (int64_t from = 0; from < w->k; from += most) {
        const int64_t n = w->k - from < most ? w->k - from : most;
        fkv_rows_read(part, i, from, n, piece);
        if (quantises) cpu_quantise(piece, n, largest);
        for (int64_t j = 0; j < n; j++) panel[(from + j) * CPU_PANEL] = piece[j];
    }
    if (!part->bias) return;
    const fkv_rows bias = fkv_rows_bias(part);
    fkv_rows_read(&bias, 0, i, 1, &w->bias[col]);
}

typedef struct loading {
    fkv_weight *w;
    const fkv_rows *parts;
} loading;

/* A panel's columns. Gate and up alternate, a panel of each. */
static void load_panel(void *ctx, int64_t panel, int thread)
{
    const loading *l = ctx;
    const bool gated = l->w->gated;
    const int64_t first = (gated ? panel / 2 : panel) * CPU_PANEL;
    (void)thread;
    for (int64_t i = 0; i < CPU_PANEL && first + i < l->w->n; i++) {
        int64_t row = first + i;
        const fkv_rows *part = gated ? &l->parts[panel % 2] : fkv_rows_part(l->parts, &row);
        if (i == 0) fkv_rows_read_ahead(part, row, CPU_PANEL);
        pack_row(l->w, panel * CPU_PANEL + i, part, row);
    }
}

static void load_panels(fkv_device *dev, loading *l, int64_t n_panels)
{
    cpu_pool_run(dev->pool, n_panels, (double)(n_panels * CPU_PANEL * l->w->k), load_panel, l);
}

fkv_status cpu_weight_load(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k, fkv_weight **out,
                           fkv_err *err)
{
    int64_t n = 0;
    bool biased = false;
    for (int p = 0; p < n_parts; p++) {
        n += parts[p].n_rows;
        biased = biased || parts[p].bias;
    }
    fkv_weight *w;
    const fkv_status st = weight_new(dev, n, cpu_round_up(n, CPU_PANEL), k, biased, &w, err);
    if (st) return st;
    loading all = {w, parts};
    load_panels(dev, &all, cpu_round_up(n, CPU_PANEL) / CPU_PANEL);
    *out = w;
    return FKV_OK;
}

fkv_status cpu_weight_load_gated(fkv_device *dev, fkv_rows gate, fkv_rows up, int64_t k, fkv_weight **out,
                                 fkv_err *err)
{
    const int64_t n = gate.n_rows;
    fkv_weight *w;
    const fkv_status st =
        weight_new(dev, n, 2 * cpu_round_up(n, CPU_PANEL), k, gate.bias || up.bias, &w, err);
    if (st) return st;
    w->gated = true;
    const fkv_rows parts[] = {gate, up};
    loading all = {w, parts};
    load_panels(dev, &all, 2 * cpu_round_up(n, CPU_PANEL) / CPU_PANEL);
    *out = w;
    return FKV_OK;
}

fkv_status cpu_embedding_load(fkv_device *dev, fkv_rows part, int64_t first, int64_t k, fkv_weight **out,
                              fkv_err *err)
{
    fkv_weight *w;
    fkv_status st = fkv_embedding_check(&part, "cpu", err);
    if (!st) st = weight_new(dev, part.n_rows, part.n_rows, k, false, &w, err);
    if (st) return st;
    w->first = first;
    for (int64_t i = 0; i < part.n_rows; i++) fkv_rows_read(&part, i, 0, k, w->data + i * k);
    *out = w;
    return FKV_OK;
}
