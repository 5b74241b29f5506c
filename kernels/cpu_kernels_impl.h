/* The inner kernels, written once; compiled by cpu_kernels_*.c, each for its
 * instruction set. Define KERNELS_NAME and KERNELS_TABLE before including. What each kernel does
 * stands in cpu_kernels.h. Owns nothing. Not to be included anywhere else. */
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

/* g(gate) * up; x / (1 + e^-t) with t = x, or 2 sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE vf gate_mul(vf gate, vf up, cpu_gemm_mode mode)
{
    const vf one = vf_set1(1.0f), zero = vf_set1(0.0f);
    vf t = gate;
    if (mode == CPU_GEMM_GELU_TANH_GATE) {
        const vf cube = vf_mul(vf_mul(gate, gate), vf_mul(gate, vf_set1(0.044715f)));
        t = vf_mul(vf_add(gate, cube), vf_set1(1.5957691216f));
    }
    const vf e = vf_exp(vf_sub(zero, t));
    return vf_mul(vf_div(gate, vf_add(one, e)), up);
}

/* 16 results from a gate panel and the up panel behind it; bias: of both, or NULL. */
static void tile_gated(int rows, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b,
                       const float *bias, float *c, int64_t ldc, cpu_gemm_mode mode)
{
    float t[TILE_ROWS * 2 * VF];
    if (bias)
        for (int r = 0; r < rows; r++) memcpy(t + 2 * r * VF, bias, 2 * VF * sizeof *t);
    if (TILE_VECS == 2) {
        tiles[rows](TILE_VECS, k, a, lda, b, t, 2 * VF, bias != NULL);
    } else {
        tiles[rows](1, k, a, lda, b, t, 2 * VF, bias != NULL);
        b.data += b.panel;
        tiles[rows](1, k, a, lda, b, t + VF, 2 * VF, bias != NULL);
    }
    for (int r = 0; r < rows; r++) {
        const vf y = gate_mul(vf_load(t + 2 * r * VF), vf_load(t + (2 * r + 1) * VF), mode);
        if (n >= VF) {
            vf_store(c + r * ldc, y);
        } else {
            float out[VF];
            vf_store(out, y);
            memcpy(c + r * ldc, out, (size_t)n * sizeof *out);
        }
    }
}

/* Rows of one register tile, n columns. */
static void gemm_rows(int rows, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b, float *c,
                      int64_t ldc, bool add)
{
    for (int64_t j = 0; j < n;) {
        const cpu_panels bj = {b.data + j / VF * b.panel, b.panel, b.step};
        const int64_t left = n - j;
        if (left >= TILE_VECS * VF) {
            tiles[rows](TILE_VECS, k, a, lda, bj, c + j, ldc, add);
            j += TILE_VECS * VF;
        } else if (left >= VF) {
            tiles[rows](1, k, a, lda, bj, c + j, ldc, add);
            j += VF;
        } else {
            tile_edge(rows, left, k, a, lda, bj, c + j, ldc, add);
            j += left;
        }
    }
}

static void gemm(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b,
                 const float *bias, float *c, int64_t ldc, cpu_gemm_mode mode)
{
    for (int64_t i = 0; i < m; i += TILE_ROWS) {
        const int rows = m - i < TILE_ROWS ? (int)(m - i) : TILE_ROWS;
        const float *ai = a + i * lda;
        float *ci = c + i * ldc;
        for (int64_t j = 0; j < n && cpu_gemm_gated(mode); j += VF) {
            const cpu_panels bj = {b.data + j / VF * 2 * b.panel, b.panel, b.step};
            tile_gated(rows, n - j, k, ai, lda, bj, bias ? bias + 2 * j : NULL, ci + j, ldc, mode);
        }
        if (cpu_gemm_gated(mode)) continue;
        for (int r = 0; bias && r < rows; r++) memcpy(ci + r * ldc, bias, (size_t)n * sizeof *bias);
        gemm_rows(rows, n, k, ai, lda, b, ci, ldc, bias || mode == CPU_GEMM_ADD);
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

/* x = cap * tanh(x / cap), by tanh(y) = 1 - 2 / (e^2y + 1); what is no number stays none. */
INLINE void cap_row(float *x, int64_t n, float cap)
{
    const vf one = vf_set1(1.0f), two = vf_set1(2.0f), by = vf_set1(2.0f / cap), zero = vf_set1(0.0f);
    for (int64_t i = 0; i < n; i += VF) {
        float some[VF] = {0};
        const size_t bytes = (size_t)(n - i < VF ? n - i : VF) * sizeof *some;
        memcpy(some, x + i, bytes);
        const vf v = vf_load(some), e = vf_exp(vf_mul(v, by));
        const vf t = vf_sub(one, vf_div(two, vf_add(e, one)));
        vf_store(some, vf_mul(vf_fma(v, zero, t), vf_set1(cap)));
        memcpy(x + i, some, bytes);
    }
}

/* The first key that the query at position pos sees. */
INLINE int64_t first_key(const fkv_attention_spec *spec, int64_t pos)
{
    return spec->window && pos >= spec->window ? pos + 1 - spec->window : 0;
}

/* One tile of queries (rows row0.. of the task) against keys [k0, k0 + CPU_ATT_KEYS),
 * as far as its last query may see. The blocks are the same for every query, and a
 * masked key adds an exact 0, so a row's bits don't depend on its tile's other rows. */
static void attention_block(const fkv_attention_spec *spec, int64_t row0, int rows, int64_t pos, int64_t k0,
                            const float *kp, const float *v, int64_t ldv, cpu_att_scratch *t)
{
    const int hd = spec->head_dim;
    const int64_t seen = pos + rows - k0; /* keys that the tile's last query sees of this block */
    const int64_t n = seen < CPU_ATT_KEYS ? seen : CPU_ATT_KEYS;
    const int64_t padded = (n + 2 * VF - 1) / (2 * VF) * (2 * VF);
    const cpu_panels kb = {kp + k0 / CPU_PANEL * hd * CPU_PANEL, (int64_t)hd * CPU_PANEL, CPU_PANEL};
    const cpu_panels vb = {v + k0 * ldv, CPU_PANEL, ldv};
    gemm(rows, padded, hd, t->q + row0 * hd, hd, kb, NULL, t->s, CPU_ATT_KEYS, CPU_GEMM_STORE);
    for (int r = 0; r < rows; r++) {
        float *s = t->s + (int64_t)r * CPU_ATT_KEYS;
        int64_t valid = pos + r + 1 - k0, hidden = first_key(spec, pos + r) - k0;
        valid = valid < n ? valid : n;
        if (spec->softcap > 0) cap_row(s, padded, spec->softcap);
        for (int64_t j = valid > 0 ? valid : 0; j < padded; j++) s[j] = -INFINITY;
        if (valid <= 0 || hidden >= valid) { /* this query sees nothing of the block */
            memset(s, 0, (size_t)padded * sizeof *s);
            continue;
        }
        for (int64_t j = 0; j < hidden; j++) s[j] = -INFINITY;
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
    gemm(rows, hd, n, t->s, CPU_ATT_KEYS, vb, NULL, t->o + row0 * hd, hd, CPU_GEMM_ADD);
}

static void attention(const fkv_attention_spec *spec, const float *q, int64_t ldq, int64_t n_rows,
                      int64_t pos0, const float *kp, const float *v, int64_t ldv, float *out, int64_t ldo,
                      cpu_att_scratch *t)
{
    const int hd = spec->head_dim;
    for (int64_t i = 0; i < n_rows; i++) {
        for (int j = 0; j < hd; j++) t->q[i * hd + j] = q[i * ldq + j] * spec->scale;
        t->row_max[i] = -INFINITY;
        t->row_sum[i] = 0.0f;
    }
    memset(t->o, 0, (size_t)(n_rows * hd) * sizeof *t->o);
    for (int64_t k0 = first_key(spec, pos0) / CPU_ATT_KEYS * CPU_ATT_KEYS; k0 < pos0 + n_rows;
         k0 += CPU_ATT_KEYS) {
        for (int64_t i = 0; i < n_rows; i += TILE_ROWS) {
            const int rows = n_rows - i < TILE_ROWS ? (int)(n_rows - i) : TILE_ROWS;
            const int64_t pos = pos0 + i;
            if (pos + rows > k0 && first_key(spec, pos) < k0 + CPU_ATT_KEYS)
                attention_block(spec, i, rows, pos, k0, kp, v, ldv, t);
        }
    }
    for (int64_t i = 0; i < n_rows; i++) {
        const float inv = 1.0f / t->row_sum[i];
        for (int j = 0; j < hd; j++) out[i * ldo + j] = t->o[i * hd + j] * inv;
    }
}

static void score_row(const fkv_attention_spec *spec, const float *q, const float *kp, int64_t n,
                      float weight, float *s, float *sum)
{
    const int hd = spec->head_dim;
    const int64_t first = first_key(spec, n - 1), k0 = first / (2 * VF) * (2 * VF), span = n - k0;
    const int64_t padded = (span + 2 * VF - 1) / (2 * VF) * (2 * VF);
    float qs[CPU_MAX_HEAD_DIM];
    for (int j = 0; j < hd; j++) qs[j] = q[j] * spec->scale;
    const cpu_panels kb = {kp + k0 * hd, (int64_t)hd * CPU_PANEL, CPU_PANEL};
    gemm(1, padded, hd, qs, hd, kb, NULL, s, padded, CPU_GEMM_STORE);
    if (spec->softcap > 0) cap_row(s, span, spec->softcap);
    for (int64_t j = 0; j < first - k0; j++) s[j] = -INFINITY;
    for (int64_t j = span; j < padded; j++) s[j] = -INFINITY;
    const float total = exp_sum(s, padded, max_of(s, span));
    const float by = weight / total;
    for (int64_t j = 0; j < span; j++) sum[k0 + j] = fmaf(s[j], by, sum[k0 + j]);
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

/* K or V of a page's tokens. */
typedef struct page_rows {
    const float *plain;   /* NULL: fp8 */
    const uint8_t *bytes; /* fp8 */
    const float *scales;
} page_rows;

static page_rows rows_of(const void *arena, fkv_kv_form form, int32_t page, int hd, int v)
{
    const void *at = (const char *)arena + page * fkv_kv_page_bytes(form, hd, sizeof(float));
    const int64_t n = (int64_t)FKV_PAGE_TOKENS * hd;
    if (form == FKV_KV_PLAIN) return (page_rows){.plain = (const float *)at + v * n};
    const void *scales = (const uint8_t *)at + 2 * n;
    return (page_rows){.bytes = (const uint8_t *)at + v * n,
                       .scales = (const float *)scales + v * FKV_PAGE_TOKENS};
}

/* Numbers of row j, without its scale; to: room for them. Those of e4m3 are numbers always (kv_page.h). */
static const float *row_of(const page_rows *r, int j, int hd, float *to)
{
    if (r->plain) return r->plain + (int64_t)j * hd;
    const uint8_t *from = r->bytes + (int64_t)j * hd;
    for (int i = 0; i < hd; i++) {
        const uint32_t bits = (uint32_t)(from[i] & 0x80) << 24 | (uint32_t)(from[i] & 0x7f) << 20;
        memcpy(to + i, &bits, sizeof bits);
    }
    for (int i = 0; i < hd; i++) to[i] *= 0x1p120f; /* float16.h */
    return to;
}

static void scale_scores(float *s, const float *by, int from, int n)
{
    for (int j = from; by && j < n; j++) s[j] *= by[j];
}

static void decode(const fkv_attention_spec *spec, const float *q, const void *arena, fkv_kv_form form,
                   const int32_t *pages, int64_t n, float *out)
{
    enum { PAGE = FKV_PAGE_TOKENS };
    const int hd = spec->head_dim;
    const int64_t first = first_key(spec, n - 1);
    float s[PAGE], acc[CPU_MAX_HEAD_DIM], row[CPU_MAX_HEAD_DIM];
    for (int g = 0; g < spec->group; g++) {
        float m = -INFINITY, total = 0.0f;
        float *o = out + g * hd;
        memset(o, 0, (size_t)hd * sizeof *o);
        for (int64_t k0 = first / PAGE * PAGE; k0 < n; k0 += PAGE) {
            const int here = n - k0 < PAGE ? (int)(n - k0) : PAGE, from = first > k0 ? (int)(first - k0) : 0;
            const page_rows k = rows_of(arena, form, pages[k0 / PAGE], hd, 0),
                            v = rows_of(arena, form, pages[k0 / PAGE], hd, 1);
            for (int j = 0; j < from; j++) s[j] = -INFINITY;
            for (int j = from; j < here; j++)
                s[j] = dot(q + g * hd, row_of(&k, j, hd, row), hd) * spec->scale;
            scale_scores(s, k.scales, from, here);
            if (spec->softcap > 0) cap_row(s + from, here - from, spec->softcap);
            for (int j = here; j < PAGE; j++) s[j] = -INFINITY;
            const float mc = max_of(s, here), sum = exp_sum(s, PAGE, mc);
            scale_scores(s, v.scales, from, here);
            memset(acc, 0, (size_t)hd * sizeof *acc);
            for (int j = from; j < here; j++) add_scaled(acc, row_of(&v, j, hd, row), s[j], hd);
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
