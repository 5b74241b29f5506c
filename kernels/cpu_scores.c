/* What ranks a prompt's keys on the CPU backend: scorer.h has the formulas and their words.
 *
 * In three runs over the pool: by head what each key is worth (into score_sums), by head and block of tokens
 * the norms that values have behind the output projection (into scores or second), and by head the max-pool
 * and what comes behind it. A head's sums are added up by one thread, in order of position, then of query
 * head.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu_device.h"

enum { BLOCK = CPU_ATT_ROWS, CHUNK = CPU_MAX_HEAD_DIM }; /* tokens and columns of a product in att scratch */

typedef struct score_job {
    const fkv_device *dev;
    const fkv_prefill_args *a;
    const fkv_segment *segment;
    const float *qkv; /* of the segment */
    int64_t stride, per, head_stride, padded;
    int64_t n, first, n_scored; /* tokens; keys [first, first + n_scored) have scores */
    int64_t n_blocks;           /* of those */
    float *scores, *second;     /* of the segment */
} score_job;

static const float *key_of(const score_job *j, int64_t h, int64_t t)
{
    return j->qkv + t * j->stride + h * j->per + (int64_t)j->a->spec->group * j->a->spec->head_dim;
}

static const float *value_of(const score_job *j, int64_t h, int64_t t)
{
    return key_of(j, h, t) + j->a->spec->head_dim;
}

/* n: a multiple of LANES. The sums side by side keep the processor busy. */
static double product(const float *a, const float *b, int n)
{
    enum { LANES = 8 };
    double sum[LANES] = {0};
    for (int i = 0; i < n; i += LANES)
        for (int k = 0; k < LANES; k++) sum[k] += (double)a[i + k] * b[i + k];
    for (int step = LANES / 2; step; step /= 2)
        for (int k = 0; k < step; k++) sum[k] += sum[k + step];
    return sum[0];
}

static double norm_of(const float *x, int n)
{
    return sqrt(product(x, x, n));
}

/* --- by the last queries ------------------------------------------------------ */

static void window_task(void *ctx, int64_t h, int thread)
{
    const score_job *j = ctx;
    const fkv_device *dev = j->dev;
    const fkv_attention_spec *spec = j->a->spec;
    const int hd = spec->head_dim, window = j->a->score_window;
    const bool largest = j->a->scorer == FKV_SCORER_DEFENSIVE; /* in the mean's place */
    const float *keys =
        dev->packed_keys + h * j->head_stride + (int64_t)j->segment->tile0 * FKV_TILE_TOKENS * hd;
    float *sum = dev->score_sums + h * j->padded, *row = dev->score_rows + thread * j->padded;
    float *one = largest ? dev->keep_work + thread * j->padded : sum;
    const float weight = largest ? 1 : 1.0f / (float)(window * spec->group);
    memset(sum, 0, (size_t)j->n * sizeof *sum);
    for (int64_t t = j->n - window; t < j->n; t++)
        for (int g = 0; g < spec->group; g++) {
            if (largest) memset(one, 0, (size_t)j->n * sizeof *one);
            dev->k->score_row(spec, j->qkv + t * j->stride + h * j->per + g * hd, keys, t + 1, weight, row,
                              one);
            for (int64_t i = 0; largest && i < j->n; i++) sum[i] = one[i] > sum[i] ? one[i] : sum[i];
        }
}

/* --- keydiff -------------------------------------------------------------------- */

static void keydiff_task(void *ctx, int64_t h, int thread)
{
    const score_job *j = ctx;
    const int hd = j->a->spec->head_dim;
    float *sum = j->dev->score_sums + h * j->padded, mean[CPU_MAX_HEAD_DIM];
    double total[CPU_MAX_HEAD_DIM] = {0};
    (void)thread;
    for (int64_t t = 0; t < j->n; t++) {
        const float *k = key_of(j, h, t);
        const double by = 1 / fmax(norm_of(k, hd), FKV_KEYDIFF_LEAST_KEY);
        for (int i = 0; i < hd; i++) total[i] += by * k[i];
    }
    for (int i = 0; i < hd; i++) mean[i] = (float)(total[i] / (double)j->n);
    const double norm = fmax(norm_of(mean, hd), FKV_KEYDIFF_LEAST_COSINE);
    for (int64_t t = j->first; t < j->first + j->n_scored; t++) {
        const float *k = key_of(j, h, t);
        sum[t] = (float)(-product(k, mean, hd) / (fmax(norm_of(k, hd), FKV_KEYDIFF_LEAST_COSINE) * norm));
    }
}

/* --- expected ---------------------------------------------------------------------- */

/* out = the query of query head q at position t before RoPE. */
static void query_before_rope(const score_job *j, int64_t q, int64_t t, float *out)
{
    const fkv_device *dev = j->dev;
    const fkv_attention_spec *spec = j->a->spec;
    const int hd = spec->head_dim, half = hd / 2;
    const float *from = j->qkv + t * j->stride + q / spec->group * j->per + q % spec->group * hd;
    if (spec->rope < 0) {
        memcpy(out, from, (size_t)hd * sizeof *out);
        return;
    }
    const int64_t row =
        spec->rope * (int64_t)dev->limits.max_positions + j->a->pack->dev_rope_rows[j->segment->row0 + t];
    const float *scale = dev->rope_scale + row / dev->limits.max_positions * half;
    const float *c = dev->rope_cos + row * half, *s = dev->rope_sin + row * half;
    for (int i = 0; i < half; i++) {
        const float by = 1 / (scale[i] * scale[i]), x = from[i], y = from[i + half];
        out[i] = by * (x * c[i] + y * s[i]);
        out[i + half] = by * (y * c[i] - x * s[i]);
    }
}

/* (x, y) times the complex number a. */
static void turn(float *x, float *y, const float a[2])
{
    const float u = *x, v = *y;
    *x = u * a[0] - v * a[1];
    *y = v * a[0] + u * a[1];
}

/* mean[hd] and cov[hd, hd] of queries before RoPE become those of the turns that are to come. */
static void turn_ahead(const score_job *j, float *mean, float *cov)
{
    const fkv_device *dev = j->dev;
    const fkv_attention_spec *spec = j->a->spec;
    const int hd = spec->head_dim, half = hd / 2;
    if (spec->rope < 0) return;
    const int64_t row = spec->rope * (int64_t)dev->limits.max_positions +
                        j->a->pack->dev_rope_rows[j->segment->row0 + j->n - 1];
    const float *ahead = dev->rope_ahead + 2 * (row / dev->limits.max_positions * half);
    for (int i = 0; i < half; i++) {
        float a[2] = {dev->rope_cos[row * half + i], dev->rope_sin[row * half + i]};
        turn(&a[0], &a[1], ahead + 2 * i);
        turn(&mean[i], &mean[i + half], a);
        for (int k = 0; k < hd; k++) turn(&cov[i * hd + k], &cov[(i + half) * hd + k], a);
        for (int k = 0; k < hd; k++) turn(&cov[k * hd + i], &cov[k * hd + i + half], a);
    }
}

/* Index: a query head. */
static void statistics_task(void *ctx, int64_t q, int thread)
{
    const score_job *j = ctx;
    const fkv_device *dev = j->dev;
    const int hd = j->a->spec->head_dim;
    const int64_t n = j->n - j->first;
    float *mean = dev->query_mean + q * hd, *cov = dev->query_cov + q * hd * hd;
    float *x = dev->att[thread].q, *across = dev->att[thread].o; /* [BLOCK, hd], [hd, BLOCK] */
    double total[CPU_MAX_HEAD_DIM] = {0};
    for (int64_t t = j->first; t < j->n; t++) {
        query_before_rope(j, q, t, x);
        for (int i = 0; i < hd; i++) total[i] += x[i];
    }
    for (int i = 0; i < hd; i++) mean[i] = (float)(total[i] / (double)n);
    memset(cov, 0, (size_t)(hd * hd) * sizeof *cov);
    for (int64_t t0 = j->first; t0 < j->n; t0 += BLOCK) {
        const int64_t rows = j->n - t0 < BLOCK ? j->n - t0 : BLOCK;
        for (int64_t r = 0; r < rows; r++) {
            query_before_rope(j, q, t0 + r, x + r * hd);
            for (int i = 0; i < hd; i++) {
                x[r * hd + i] -= mean[i];
                across[i * BLOCK + r] = x[r * hd + i];
            }
        }
        const cpu_panels b = {x, CPU_PANEL, hd};
        dev->k->gemm(hd, hd, rows, across, BLOCK, b, NULL, cov, hd, CPU_GEMM_ADD);
    }
    for (int i = 0; i < hd * hd; i++) cov[i] /= (float)n;
    turn_ahead(j, mean, cov);
}

/* l[t] of scorer.h of query head q, for the keys from first on. */
static void expected_logits(const score_job *j, int64_t q, cpu_att_scratch *att, float *l)
{
    const fkv_device *dev = j->dev;
    const fkv_attention_spec *spec = j->a->spec;
    const int hd = spec->head_dim;
    const int64_t h = q / spec->group;
    const float *mean = dev->query_mean + q * hd;
    const double scale = spec->scale;
    const cpu_panels cov = {dev->query_cov + q * hd * hd, CPU_PANEL, hd};
    for (int64_t t0 = j->first; t0 < j->n; t0 += BLOCK) {
        const int64_t rows = j->n - t0 < BLOCK ? j->n - t0 : BLOCK;
        dev->k->gemm(rows, hd, hd, key_of(j, h, t0), j->stride, cov, NULL, att->o, hd, CPU_GEMM_STORE);
        for (int64_t r = 0; r < rows; r++) {
            const float *k = key_of(j, h, t0 + r);
            l[t0 + r] =
                (float)(scale * product(k, mean, hd) + scale * scale / 2 * product(att->o + r * hd, k, hd));
        }
    }
}

static void expected_task(void *ctx, int64_t h, int thread)
{
    const score_job *j = ctx;
    const fkv_device *dev = j->dev;
    const fkv_attention_spec *spec = j->a->spec;
    float *sum = dev->score_sums + h * j->padded, *l = dev->score_rows + thread * j->padded;
    memset(sum, 0, (size_t)j->n * sizeof *sum);
    for (int g = 0; g < spec->group; g++) {
        double total = 0;
        expected_logits(j, h * spec->group + g, &dev->att[thread], l);
        const float most = dev->k->max(l + j->first, j->n - j->first);
        for (int64_t t = j->first; t < j->n; t++) total += l[t] = expf(l[t] - most);
        for (int64_t t = j->first; t < j->n; t++) sum[t] += (float)(l[t] / total / spec->group);
    }
    for (int64_t t = j->first; t < j->first + j->n_scored; t++)
        sum[t] *= (float)norm_of(value_of(j, h, t), spec->head_dim);
}

/* --- norms behind the output projection -------------------------------------------- */

/* sums[r] += ||O_g v||_1 of the rows values from t0 on. */
static void add_l1(const score_job *j, int64_t q, const float *v, int64_t rows, float *y, double *sums)
{
    const int hd = j->a->spec->head_dim;
    for (int64_t at = 0; at < j->a->hidden; at += CHUNK) {
        const int64_t n = j->a->hidden - at < CHUNK ? j->a->hidden - at : CHUNK;
        const cpu_weight_view w = cpu_weight_columns(j->a->output_heads, q * j->a->hidden + at);
        j->dev->k->gemm(rows, n, hd, v, j->stride, w.panels, NULL, y, CHUNK, CPU_GEMM_STORE);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < n; i++) sums[r] += fabsf(y[r * CHUNK + i]);
    }
}

/* sums[r] += ||O_g v||_2. */
static void add_l2(const score_job *j, int64_t q, const float *v, int64_t rows, float *y, double *sums)
{
    const int hd = j->a->spec->head_dim;
    const cpu_panels gram = {j->a->gram + q * hd * hd, CPU_PANEL, hd};
    j->dev->k->gemm(rows, hd, hd, v, j->stride, gram, NULL, y, hd, CPU_GEMM_STORE);
    for (int64_t r = 0; r < rows; r++) sums[r] += sqrt(fmax(0, product(y + r * hd, v + r * j->stride, hd)));
}

/* Index: a head's block of tokens. */
static void norm_task(void *ctx, int64_t index, int thread)
{
    const score_job *j = ctx;
    const int group = j->a->spec->group;
    const bool l1 = j->a->scorer == FKV_SCORER_CRITICAL;
    const int64_t h = index / j->n_blocks, i = index % j->n_blocks * BLOCK, t = j->first + i;
    const int64_t rows = j->n_scored - i < BLOCK ? j->n_scored - i : BLOCK;
    const float *v = value_of(j, h, t);
    float *out = (l1 ? j->second : j->scores) + h * j->a->score_stride + t, *y = j->dev->att[thread].o;
    double sums[BLOCK] = {0};
    for (int g = 0; g < group; g++) {
        if (l1)
            add_l1(j, h * group + g, v, rows, y, sums);
        else
            add_l2(j, h * group + g, v, rows, y, sums);
    }
    for (int64_t r = 0; r < rows; r++) out[r] = (float)(sums[r] / group);
}

/* --- pooling ------------------------------------------------------------------------ */

/* out[i] = max of x[i - kernel/2 .. i + kernel/2] inside [0, n). */
static void max_pool(const float *x, int64_t n, int kernel, float *out)
{
    const int64_t half = kernel / 2;
    for (int64_t i = 0; i < n; i++) {
        const int64_t from = i > half ? i - half : 0, to = i + half < n ? i + half : n - 1;
        float m = x[from];
        for (int64_t j = from + 1; j <= to; j++) m = x[j] > m ? x[j] : m;
        out[i] = m;
    }
}

static void pool_task(void *ctx, int64_t h, int thread)
{
    const score_job *j = ctx;
    const int64_t at = h * j->a->score_stride + j->first, n = j->n_scored;
    const float *sum = j->dev->score_sums + h * j->padded + j->first;
    float *scores = j->scores + at;
    if (j->a->scorer == FKV_SCORER_DEFENSIVE) { /* the norms are in scores */
        float *risk = j->dev->score_rows + thread * j->padded;
        double total = 0;
        max_pool(sum, n, j->a->score_kernel, risk);
        for (int64_t i = 0; i < n; i++) total += risk[i];
        const float mean = (float)(total / (double)n);
        for (int64_t i = 0; i < n; i++) scores[i] *= risk[i] < mean ? mean : risk[i];
        return;
    }
    max_pool(sum, n, j->a->score_kernel, scores);
    if (j->a->scorer == FKV_SCORER_CRITICAL)
        for (int64_t i = 0; i < n; i++) j->second[at + i] *= scores[i] + FKV_CRITICAL_EPSILON;
}

static void score_segment(const fkv_device *dev, score_job *j)
{
    const fkv_prefill_args *a = j->a;
    const double hd = a->spec->head_dim, group = a->spec->group, heads = a->n_heads, n = (double)j->n;
    if (fkv_scorer_by_window(a->scorer)) {
        cpu_pool_run(dev->pool, a->n_heads, 4.0 * n * heads * group * a->score_window * hd, window_task, j);
    } else if (a->scorer == FKV_SCORER_KEYDIFF) {
        cpu_pool_run(dev->pool, a->n_heads, 6 * n * heads * hd, keydiff_task, j);
    } else {
        const double flops = 2 * n * heads * group * hd * hd;
        cpu_pool_run(dev->pool, (int64_t)a->n_heads * a->spec->group, flops, statistics_task, j);
        cpu_pool_run(dev->pool, a->n_heads, flops, expected_task, j);
    }
    if (fkv_scorer_wants_output(a->scorer)) {
        const double rows = a->scorer == FKV_SCORER_CRITICAL ? a->hidden : hd;
        cpu_pool_run(dev->pool, a->n_heads * j->n_blocks, 2 * n * heads * group * hd * rows, norm_task, j);
    }
    cpu_pool_run(dev->pool, a->n_heads, 2 * n * heads * a->score_kernel, pool_task, j);
}

void cpu_key_scores(fkv_device *dev, const fkv_prefill_args *a)
{
    const int hd = a->spec->head_dim;
    const int64_t per = (int64_t)fkv_head_rows(a->spec->group) * hd, width = a->n_heads * per;
    for (int i = 0; i < a->pack->n_segments; i++) {
        const fkv_segment *s = &a->pack->segments[i];
        if (s->n_tokens <= a->min_tokens || a->n_heads == 0) continue;
        score_job j = {.dev = dev,
                       .a = a,
                       .segment = s,
                       .qkv = (const float *)a->qkv + s->row0 * width,
                       .stride = width,
                       .per = per,
                       .head_stride = a->pack->n_tiles * FKV_TILE_TOKENS * hd,
                       .padded = cpu_round_up(s->n_tokens, 2 * CPU_PANEL),
                       .n = s->n_tokens,
                       .first = a->sinks,
                       .n_scored = s->n_tokens - a->score_window - a->sinks,
                       .scores = a->scores + s->row0,
                       .second = a->second ? a->second + s->row0 : NULL};
        if (a->scorer == FKV_SCORER_EXPECTED) cpu_rope_fill(dev, s->n_tokens);
        j.n_blocks = (j.n_scored + BLOCK - 1) / BLOCK;
        score_segment(dev, &j);
    }
}

typedef struct gram_job {
    const fkv_device *dev;
    const fkv_weight *w;
    int64_t rows, k;
    float *out;
} gram_job;

/* Panel by panel of 16 rows: [k, 16] as it lies times its transpose. */
static void gram_task(void *ctx, int64_t i, int thread)
{
    const gram_job *j = ctx;
    const int64_t k = j->k;
    float across[CPU_PANEL * CPU_MAX_HEAD_DIM], *out = j->out + i * k * k; /* no workspace is there yet */
    (void)thread;
    memset(out, 0, (size_t)(k * k) * sizeof *out);
    for (int64_t row = 0; row < j->rows; row += CPU_PANEL) {
        const float *panel = cpu_weight_columns(j->w, i * j->rows + row).panels.data;
        for (int64_t c = 0; c < k; c++)
            for (int r = 0; r < CPU_PANEL; r++) across[r * k + c] = panel[c * CPU_PANEL + r];
        const cpu_panels b = {across, CPU_PANEL, k};
        j->dev->k->gemm(k, k, CPU_PANEL, panel, CPU_PANEL, b, NULL, out, k, CPU_GEMM_ADD);
    }
}

void cpu_weight_gram(fkv_device *dev, const fkv_weight *w, int64_t rows, int n, float *out)
{
    gram_job j = {.dev = dev, .w = w, .rows = rows, .out = out};
    int64_t all;
    cpu_weight_shape(w, &all, &j.k);
    cpu_pool_run(dev->pool, n, 2.0 * n * (double)rows * (double)j.k * (double)j.k, gram_task, &j);
}
