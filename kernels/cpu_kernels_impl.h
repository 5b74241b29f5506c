/* The inner kernels, written once; compiled by cpu_kernels_*.c, each for its
 * instruction set. Define KERNELS_NAME and KERNELS_TABLE before including. */
#include "kernels/cpu_kernels.h"
#include "kernels/cpu_vec.h"

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

/* One register tile: acc[rows][vecs] over k. rows and vecs are constants at
 * every call, so the loops unroll and acc stays in registers. */
INLINE void tile_body(int rows, int vecs, int64_t k, const float *a, int64_t lda, cpu_panels b,
                      vf acc[TILE_ROWS][TILE_VECS])
{
    for (int64_t i = 0; i < k; i++) {
        vf bv[TILE_VECS];
        UNROLL
        for (int v = 0; v < vecs; v++) bv[v] = vf_load(b.data + v * b.panel + i * b.step);
        UNROLL
        for (int r = 0; r < rows; r++) {
            const vf av = vf_set1(a[r * lda + i]);
            UNROLL
            for (int v = 0; v < vecs; v++) acc[r][v] = vf_fma(av, bv[v], acc[r][v]);
        }
    }
}

/* c is a full tile: rows x (16 * vecs). */
INLINE void tile_run(int rows, int vecs, int64_t k, const float *a, int64_t lda, cpu_panels b, float *c,
                     int64_t ldc, bool add)
{
    vf acc[TILE_ROWS][TILE_VECS];
    UNROLL
    for (int r = 0; r < rows; r++) UNROLL
    for (int v = 0; v < vecs; v++) acc[r][v] = add ? vf_load(c + r * ldc + v * VF) : vf_set1(0.0f);
    tile_body(rows, vecs, k, a, lda, b, acc);
    UNROLL
    for (int r = 0; r < rows; r++) UNROLL
    for (int v = 0; v < vecs; v++) vf_store(c + r * ldc + v * VF, acc[r][v]);
}

#define TILE(R)                                                                                              \
    static void tile_##R(int vecs, int64_t k, const float *a, int64_t lda, cpu_panels b, float *c,           \
                         int64_t ldc, bool add)                                                              \
    {                                                                                                        \
        if (vecs == TILE_VECS)                                                                               \
            tile_run(R, TILE_VECS, k, a, lda, b, c, ldc, add);                                               \
        else                                                                                                 \
            tile_run(R, 1, k, a, lda, b, c, ldc, add);                                                       \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
#if defined(__AVX2__)
TILE(5)
TILE(6)
#endif
#if defined(__AVX512F__)
TILE(7)
TILE(8)
TILE(9)
TILE(10)
TILE(11)
TILE(12)
#endif

typedef void tile_fn(int vecs, int64_t k, const float *a, int64_t lda, cpu_panels b, float *c, int64_t ldc,
                     bool add);

static tile_fn *const tiles[TILE_ROWS + 1] = {
    NULL,   tile_1, tile_2, tile_3,  tile_4,
#if defined(__AVX2__)
    tile_5, tile_6,
#endif
#if defined(__AVX512F__)
    tile_7, tile_8, tile_9, tile_10, tile_11, tile_12,
#endif
};

/* rows x n (n not a multiple of 16 at the right edge) through a full tile. */
static void tile_edge(int rows, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b, float *c,
                      int64_t ldc, bool add)
{
    float t[TILE_ROWS * VF];
    memset(t, 0, sizeof t);
    if (add)
        for (int r = 0; r < rows; r++) memcpy(t + r * VF, c + r * ldc, (size_t)n * sizeof *t);
    tiles[rows](1, k, a, lda, b, t, VF, add);
    for (int r = 0; r < rows; r++) memcpy(c + r * ldc, t + r * VF, (size_t)n * sizeof *t);
}

INLINE vf silu_mul(vf gate, vf up)
{
    const vf one = vf_set1(1.0f);
    const vf e = vf_exp(vf_sub(vf_set1(0.0f), gate));
    return vf_mul(vf_div(gate, vf_add(one, e)), up);
}

/* 16 results of SwiGLU from a gate panel and the up panel behind it. */
static void tile_swiglu(int rows, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b, float *c,
                        int64_t ldc)
{
    float t[TILE_ROWS * 2 * VF];
    if (TILE_VECS == 2) {
        tiles[rows](TILE_VECS, k, a, lda, b, t, 2 * VF, false);
    } else {
        tiles[rows](1, k, a, lda, b, t, 2 * VF, false);
        b.data += b.panel;
        tiles[rows](1, k, a, lda, b, t + VF, 2 * VF, false);
    }
    for (int r = 0; r < rows; r++) {
        const vf y = silu_mul(vf_load(t + 2 * r * VF), vf_load(t + (2 * r + 1) * VF));
        if (n >= VF) {
            vf_store(c + r * ldc, y);
        } else {
            float out[VF];
            vf_store(out, y);
            memcpy(c + r * ldc, out, (size_t)n * sizeof *out);
        }
    }
}

static void gemm(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b, float *c,
                 int64_t ldc, cpu_gemm_mode mode)
{
    for (int64_t i = 0; i < m; i += TILE_ROWS) {
        const int rows = m - i < TILE_ROWS ? (int)(m - i) : TILE_ROWS;
        const float *ai = a + i * lda;
        float *ci = c + i * ldc;
        if (mode == CPU_GEMM_SWIGLU) {
            for (int64_t j = 0; j < n; j += VF) {
                const cpu_panels bj = {b.data + j / VF * 2 * b.panel, b.panel, b.step};
                tile_swiglu(rows, n - j, k, ai, lda, bj, ci + j, ldc);
            }
            continue;
        }
        for (int64_t j = 0; j < n;) {
            const cpu_panels bj = {b.data + j / VF * b.panel, b.panel, b.step};
            const int64_t left = n - j;
            if (left >= TILE_VECS * VF) {
                tiles[rows](TILE_VECS, k, ai, lda, bj, ci + j, ldc, mode == CPU_GEMM_ADD);
                j += TILE_VECS * VF;
            } else if (left >= VF) {
                tiles[rows](1, k, ai, lda, bj, ci + j, ldc, mode == CPU_GEMM_ADD);
                j += VF;
            } else {
                tile_edge(rows, left, k, ai, lda, bj, ci + j, ldc, mode == CPU_GEMM_ADD);
                j += left;
            }
        }
    }
}

static void add_rmsnorm(float *x, const float *y, const float *w, float eps, int64_t n, float *out)
{
    vf sum = vf_set1(0.0f);
    float tail = 0.0f;
    int64_t i = 0;
    for (; i + VF <= n; i += VF) {
        vf v = vf_load(x + i);
        if (y) {
            v = vf_add(v, vf_load(y + i));
            vf_store(x + i, v);
        }
        sum = vf_fma(v, v, sum);
    }
    for (; i < n; i++) {
        if (y) x[i] += y[i];
        tail += x[i] * x[i];
    }
    if (!out) return;
    const float scale = 1.0f / sqrtf((vf_sum(sum) + tail) / (float)n + eps);
    const vf sv = vf_set1(scale);
    for (i = 0; i + VF <= n; i += VF) vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), sv), vf_load(w + i)));
    for (; i < n; i++) out[i] = x[i] * scale * w[i];
}

static float max_of(const float *x, int64_t n)
{
    float m = -INFINITY;
    int64_t i = 0;
    if (n >= VF) {
        vf v = vf_load(x);
        for (i = VF; i + VF <= n; i += VF) v = vf_max(vf_load(x + i), v);
        m = vf_hmax(v);
    }
    for (; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* x[i] = exp(x[i] - m); returns the sum. n is a multiple of 16. */
INLINE float exp_sum(float *x, int64_t n, float m)
{
    const vf mv = vf_set1(m);
    vf sum = vf_set1(0.0f);
    for (int64_t i = 0; i < n; i += VF) {
        const vf e = vf_exp(vf_sub(vf_load(x + i), mv));
        vf_store(x + i, e);
        sum = vf_add(sum, e);
    }
    return vf_sum(sum);
}

INLINE void scale_row(float *x, int64_t n, float by)
{
    const vf v = vf_set1(by);
    int64_t i = 0;
    for (; i + VF <= n; i += VF) vf_store(x + i, vf_mul(vf_load(x + i), v));
    for (; i < n; i++) x[i] *= by;
}

/* One tile of queries (rows row0.. of the task) against keys [k0, k0 + CPU_ATT_KEYS),
 * as far as its last query may see. The blocks are the same for every query, and a
 * masked key adds an exact 0, so a row's bits don't depend on its tile's other rows. */
static void attention_block(int64_t row0, int rows, int64_t pos, int64_t k0, int hd, const float *kp,
                            const float *v, int64_t ldv, cpu_att_scratch *t)
{
    const int64_t seen = pos + rows - k0; /* keys that the tile's last query sees of this block */
    const int64_t n = seen < CPU_ATT_KEYS ? seen : CPU_ATT_KEYS;
    const int64_t padded = (n + 2 * VF - 1) / (2 * VF) * (2 * VF);
    const cpu_panels kb = {kp + k0 / CPU_PANEL * hd * CPU_PANEL, (int64_t)hd * CPU_PANEL, CPU_PANEL};
    const cpu_panels vb = {v + k0 * ldv, CPU_PANEL, ldv};
    gemm(rows, padded, hd, t->q + row0 * hd, hd, kb, t->s, CPU_ATT_KEYS, CPU_GEMM_STORE);
    for (int r = 0; r < rows; r++) {
        float *s = t->s + (int64_t)r * CPU_ATT_KEYS;
        int64_t valid = pos + r + 1 - k0;
        valid = valid < n ? valid : n;
        for (int64_t j = valid > 0 ? valid : 0; j < padded; j++) s[j] = -INFINITY;
        if (valid <= 0) { /* the block lies wholly in this query's future */
            memset(s, 0, (size_t)padded * sizeof *s);
            continue;
        }
        const int64_t i = row0 + r;
        const float m0 = t->row_max[i], mb = max_of(s, padded), m = mb > m0 ? mb : m0;
        const float sum = exp_sum(s, padded, m);
        if (k0 > 0 && m != m0) {
            float f[VF];
            vf_store(f, vf_exp(vf_set1(m0 - m)));
            t->row_sum[i] *= f[0];
            scale_row(t->o + i * hd, hd, f[0]);
        }
        t->row_sum[i] += sum;
        t->row_max[i] = m;
    }
    gemm(rows, hd, n, t->s, CPU_ATT_KEYS, vb, t->o + row0 * hd, hd, CPU_GEMM_ADD);
}

static void attention(const float *q, int64_t ldq, int64_t n_rows, int64_t pos0, int hd, const float *kp,
                      const float *v, int64_t ldv, float *out, int64_t ldo, cpu_att_scratch *t)
{
    const float scale = 1.0f / sqrtf((float)hd);
    for (int64_t i = 0; i < n_rows; i++) {
        for (int j = 0; j < hd; j++) t->q[i * hd + j] = q[i * ldq + j] * scale;
        t->row_max[i] = -INFINITY;
        t->row_sum[i] = 0.0f;
    }
    memset(t->o, 0, (size_t)(n_rows * hd) * sizeof *t->o);
    for (int64_t k0 = 0; k0 < pos0 + n_rows; k0 += CPU_ATT_KEYS) {
        for (int64_t i = 0; i < n_rows; i += TILE_ROWS) {
            const int rows = n_rows - i < TILE_ROWS ? (int)(n_rows - i) : TILE_ROWS;
            if (pos0 + i + rows > k0) attention_block(i, rows, pos0 + i, k0, hd, kp, v, ldv, t);
        }
    }
    for (int64_t i = 0; i < n_rows; i++) {
        const float inv = 1.0f / t->row_sum[i];
        for (int j = 0; j < hd; j++) out[i * ldo + j] = t->o[i * hd + j] * inv;
    }
}

static void score_row(const float *q, int hd, const float *kp, int64_t n, float weight, float *s, float *sum)
{
    const int64_t padded = (n + 2 * VF - 1) / (2 * VF) * (2 * VF);
    float qs[CPU_MAX_HEAD_DIM];
    const float scale = 1.0f / sqrtf((float)hd);
    for (int j = 0; j < hd; j++) qs[j] = q[j] * scale;
    const cpu_panels kb = {kp, (int64_t)hd * CPU_PANEL, CPU_PANEL};
    gemm(1, padded, hd, qs, hd, kb, s, padded, CPU_GEMM_STORE);
    for (int64_t j = n; j < padded; j++) s[j] = -INFINITY;
    const float total = exp_sum(s, padded, max_of(s, n));
    const float by = weight / total;
    for (int64_t j = 0; j < n; j++) sum[j] = fmaf(s[j], by, sum[j]);
}

INLINE float dot(const float *a, const float *b, int n)
{
    vf sum = vf_set1(0.0f);
    int i = 0;
    for (; i + VF <= n; i += VF) sum = vf_fma(vf_load(a + i), vf_load(b + i), sum);
    float tail = 0.0f;
    for (; i < n; i++) tail = fmaf(a[i], b[i], tail);
    return vf_sum(sum) + tail;
}

INLINE void add_scaled(float *acc, const float *x, float by, int n)
{
    const vf bv = vf_set1(by);
    int i = 0;
    for (; i + VF <= n; i += VF) vf_store(acc + i, vf_fma(bv, vf_load(x + i), vf_load(acc + i)));
    for (; i < n; i++) acc[i] = fmaf(by, x[i], acc[i]);
}

static void decode(const float *q, int group, int hd, const float *arena, const int32_t *pages, int64_t n,
                   float *out)
{
    enum { PAGE = 128 };
    const float scale = 1.0f / sqrtf((float)hd);
    float s[PAGE], acc[CPU_MAX_HEAD_DIM];
    for (int g = 0; g < group; g++) {
        float m = -INFINITY, total = 0.0f;
        float *o = out + g * hd;
        memset(o, 0, (size_t)hd * sizeof *o);
        for (int64_t k0 = 0; k0 < n; k0 += PAGE) {
            const int here = n - k0 < PAGE ? (int)(n - k0) : PAGE;
            const float *k = arena + (int64_t)pages[k0 / PAGE] * 2 * PAGE * hd, *v = k + (int64_t)PAGE * hd;
            for (int j = 0; j < here; j++) s[j] = dot(q + g * hd, k + (int64_t)j * hd, hd) * scale;
            for (int j = here; j < PAGE; j++) s[j] = -INFINITY;
            const float mc = max_of(s, here), sum = exp_sum(s, PAGE, mc);
            memset(acc, 0, (size_t)hd * sizeof *acc);
            for (int j = 0; j < here; j++) add_scaled(acc, v + (int64_t)j * hd, s[j], hd);
            const float top = mc > m ? mc : m;
            float f[VF];
            vf_store(f, vf_exp(vf_set1(m - top)));
            const float old = f[0];
            vf_store(f, vf_exp(vf_set1(mc - top)));
            const float new = f[0];
            scale_row(o, hd, old);
            add_scaled(o, acc, new, hd);
            total = fmaf(total, old, sum * new);
            m = top;
        }
        scale_row(o, hd, 1.0f / total);
    }
}

static const cpu_kernels_table table = {KERNELS_NAME, gemm,   add_rmsnorm, attention,
                                        score_row,    decode, max_of};

const cpu_kernels_table *KERNELS_TABLE(void)
{
    return &table;
}
