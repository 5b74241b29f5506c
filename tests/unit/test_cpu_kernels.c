/* The CPU backend's inner kernels: against double precision, and the same bits
 * from every instruction set, row position and tile. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu_kernels.h"
#include "kv_fixture.h"
#include "runner/base/hash.h"

static const cpu_kernels_table *tables[3];
static int n_tables;

static uint64_t counter;

static float uniform(void)
{
    return (float)((double)(fkv_random_u64(1, 2, counter++) >> 40) * 0x1p-23 - 1.0);
}

static float *random_floats(int64_t n)
{
    float *x = malloc((size_t)(n + 64) * sizeof *x);
    for (int64_t i = 0; i < n + 64; i++) x[i] = uniform();
    return x;
}

static float *poisoned(int64_t n)
{
    float *x = malloc((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = NAN;
    return x;
}

/* w[n][k] into panels. */
static float *pack(const float *w, int64_t n, int64_t k)
{
    const int64_t panels = (n + 15) / 16;
    float *p = calloc((size_t)(panels * 16 * k + 16), sizeof *p);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < k; i++) p[j / 16 * k * 16 + i * 16 + j % 16] = w[j * k + i];
    return p;
}

static void gemm_is_right_and_the_same_everywhere(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{1, 16, 1},   {1, 1, 7},    {5, 33, 64},  {12, 32, 128},
                                 {13, 47, 65}, {25, 17, 31}, {48, 96, 40}, {7, 15, 100}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const int64_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
        float *a = random_floats(m * k), *w = random_floats(n * k), *p = pack(w, n, k), *first = NULL;
        const cpu_panels b = {p, k * 16, 16};
        for (int t = 0; t < n_tables; t++) {
            float *c = poisoned(m * n);
            tables[t]->gemm(m, n, k, a, k, b, NULL, c, n, CPU_GEMM_STORE);
            for (int64_t i = 0; i < m; i++) {
                for (int64_t j = 0; j < n; j++) {
                    double want = 0, size = 0;
                    for (int64_t x = 0; x < k; x++) {
                        want += (double)a[i * k + x] * w[j * k + x];
                        size += fabs((double)a[i * k + x] * w[j * k + x]);
                    }
                    assert_true(fabs(c[i * n + j] - want) <= 1e-6 * size + 1e-12);
                }
                /* the row alone gives the row's bits */
                float *row = poisoned(n);
                tables[t]->gemm(1, n, k, a + i * k, k, b, NULL, row, n, CPU_GEMM_STORE);
                assert_memory_equal(row, c + i * n, (size_t)n * sizeof *row);
                free(row);
            }
            if (first) assert_memory_equal(first, c, (size_t)(m * n) * sizeof *c);
            if (first) free(c);
            if (!first) first = c;
        }
        free(first);
        free(a);
        free(w);
        free(p);
    }
}

static double gate_of(cpu_gemm_mode mode, double x)
{
    if (mode == CPU_GEMM_SILU_GATE) return x / (1 + exp(-x));
    return x / 2 * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

/* bias: of gate and up by 16 in turn, as the panels are; or NULL. */
static void check_gate(cpu_gemm_mode mode, const float *bias)
{
    const int64_t m = 13, n = 37, k = 50, panels = (n + 15) / 16;
    float *a = random_floats(m * k), *gate = random_floats(n * k), *up = random_floats(n * k);
    float *pg = pack(gate, n, k), *pu = pack(up, n, k),
          *p = malloc((size_t)(2 * panels * 16 * k) * sizeof *p);
    for (int64_t i = 0; i < panels; i++) {
        memcpy(p + 2 * i * 16 * k, pg + i * 16 * k, (size_t)(16 * k) * sizeof *p);
        memcpy(p + (2 * i + 1) * 16 * k, pu + i * 16 * k, (size_t)(16 * k) * sizeof *p);
    }
    float *first = NULL;
    for (int t = 0; t < n_tables; t++) {
        float *c = poisoned(m * n);
        tables[t]->gemm(m, n, k, a, k, (cpu_panels){p, k * 16, 16}, bias, c, n, mode);
        for (int64_t i = 0; i < m; i++) {
            for (int64_t j = 0; j < n; j++) {
                const int64_t at = j / 16 * 32 + j % 16;
                double g = bias ? (double)bias[at] : 0, u = bias ? (double)bias[at + 16] : 0;
                for (int64_t x = 0; x < k; x++) {
                    g += (double)a[i * k + x] * gate[j * k + x];
                    u += (double)a[i * k + x] * up[j * k + x];
                }
                const double want = gate_of(mode, g) * u;
                assert_true(fabs(c[i * n + j] - want) <= 1e-5 * (1 + fabs(want)));
            }
        }
        if (first) assert_memory_equal(first, c, (size_t)(m * n) * sizeof *c);
        if (first) free(c);
        if (!first) first = c;
    }
    free(first);
    free(a), free(gate), free(up), free(pg), free(pu), free(p);
}

static void gates_are_right_and_the_same_everywhere(void **state)
{
    (void)state;
    float *bias = random_floats(96);
    check_gate(CPU_GEMM_SILU_GATE, NULL);
    check_gate(CPU_GEMM_SILU_GATE, bias);
    check_gate(CPU_GEMM_GELU_TANH_GATE, NULL);
    check_gate(CPU_GEMM_GELU_TANH_GATE, bias);
    free(bias);
}

static void a_bias_is_added_the_same_everywhere(void **state)
{
    (void)state;
    const int64_t m = 13, n = 47, k = 65;
    float *a = random_floats(m * k), *w = random_floats(n * k), *p = pack(w, n, k), *bias = random_floats(n),
          *first = NULL;
    for (int t = 0; t < n_tables; t++) {
        float *c = poisoned(m * n);
        tables[t]->gemm(m, n, k, a, k, (cpu_panels){p, k * 16, 16}, bias, c, n, CPU_GEMM_STORE);
        for (int64_t i = 0; i < m; i++) {
            for (int64_t j = 0; j < n; j++) {
                double want = (double)bias[j];
                for (int64_t x = 0; x < k; x++) want += (double)a[i * k + x] * w[j * k + x];
                assert_true(fabs(c[i * n + j] - want) <= 1e-5);
            }
        }
        if (first) assert_memory_equal(first, c, (size_t)(m * n) * sizeof *c);
        if (first) free(c);
        if (!first) first = c;
    }
    free(first);
    free(a), free(w), free(p), free(bias);
}

/* As Llama attends. */
static fkv_attention_spec plain_spec(int hd, int group)
{
    return (fkv_attention_spec){
        .n_kv_heads = 1, .group = group, .head_dim = hd, .scale = fkv_attention_scale(hd)};
}

/* Attention of the query at position n - 1 over n keys, in double. */
static void attend(const fkv_attention_spec *spec, const float *q, const float *k, const float *v, int64_t n,
                   double *out)
{
    const int hd = spec->head_dim;
    const int64_t first_key = spec->window && n > spec->window ? n - spec->window : 0;
    double *s = malloc((size_t)n * sizeof *s), max = -INFINITY, sum = 0;
    for (int64_t j = first_key; j < n; j++) {
        s[j] = 0;
        for (int i = 0; i < hd; i++) s[j] += (double)q[i] * k[j * hd + i];
        s[j] *= (double)spec->scale;
        if (spec->softcap > 0) s[j] = (double)spec->softcap * tanh(s[j] / (double)spec->softcap);
        max = fmax(max, s[j]);
    }
    for (int64_t j = first_key; j < n; j++) sum += s[j] = exp(s[j] - max);
    for (int i = 0; i < hd; i++) {
        out[i] = 0;
        for (int64_t j = first_key; j < n; j++) out[i] += s[j] / sum * v[j * hd + i];
    }
    free(s);
}

/* What a layer can ask for, in turn. */
enum { N_SPECS = 4 };

static fkv_attention_spec spec_number(int i, int hd, int group)
{
    fkv_attention_spec spec = plain_spec(hd, group);
    if (i == 1) spec.softcap = 1.5f;
    if (i == 2) spec.window = 70;
    if (i == 3) spec.scale = 0.3f, spec.window = 128, spec.softcap = 50;
    return spec;
}

/* A cap rounds scores to about its own last digit. */
static void check_close(const fkv_attention_spec *spec, const float *got, const double *want)
{
    const double tolerance = 2e-6 + 2e-7 * (double)spec->softcap;
    for (int i = 0; i < spec->head_dim; i++)
        assert_true(fabs(got[i] - want[i]) <= tolerance * (1 + fabs(want[i])));
}

static void prefill_attention_is_causal_right_and_the_same_everywhere(void **state)
{
    (void)state;
    const int64_t lengths[] = {1, 2, 95, 96, 97, 127, 128, 129, 300};
    const int dims[] = {64, 128, 16};
    cpu_att_scratch *scratch = malloc(sizeof *scratch);
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        for (int d = 0; d < 3 * N_SPECS; d++) {
            const int64_t n = lengths[l];
            const int hd = dims[d % 3];
            const fkv_attention_spec spec = spec_number(d / 3, hd, 1);
            const int64_t padded = (n + 31) / 32 * 32;
            float *q = random_floats(n * hd), *k = random_floats(padded * hd), *v = random_floats(n * hd);
            for (int64_t i = 0; i < n * hd; i++) q[i] *= 4;
            float *kp = pack(k, padded, hd), *first = NULL;
            for (int64_t j = n; j < padded; j++)
                for (int i = 0; i < hd; i++) kp[j / 16 * hd * 16 + i * 16 + j % 16] = 0;
            for (int t = 0; t < n_tables; t++) {
                float *out = poisoned(n * hd);
                double want[128];
                for (int64_t i = 0; i < n; i += CPU_ATT_ROWS)
                    tables[t]->attention(&spec, q + i * hd, hd, n - i < CPU_ATT_ROWS ? n - i : CPU_ATT_ROWS,
                                         i, kp, v, hd, out + i * hd, hd, scratch);
                for (int64_t i = 0; i < n; i++) {
                    attend(&spec, q + i * hd, k, v, i + 1, want);
                    check_close(&spec, out + i * hd, want);
                }
                /* the last query alone, as the last layer of a prefill asks for it */
                float row[128];
                tables[t]->attention(&spec, q + (n - 1) * hd, hd, 1, n - 1, kp, v, hd, row, hd, scratch);
                assert_memory_equal(row, out + (n - 1) * hd, (size_t)hd * sizeof *row);
                if (first) assert_memory_equal(first, out, (size_t)(n * hd) * sizeof *out);
                if (first) free(out);
                if (!first) first = out;
            }
            free(first);
            free(q), free(k), free(v), free(kp);
        }
    }
    free(scratch);
}

enum { PAGE = FKV_PAGE_TOKENS, N_PAGES = 5 };

/* Pages of that form in that order, of made[2][N_PAGES * PAGE][hd], K and V; said: what the pages say. */
static void *make_pages(fkv_kv_form form, const int32_t *order, int hd, const float *made, float *said)
{
    const int64_t half = (int64_t)PAGE * hd, v = N_PAGES * half;
    char *arena = (char *)poisoned(N_PAGES * 2 * half + N_PAGES * 2 * PAGE);
    float *both = random_floats(2 * half);
    for (int p = 0; p < N_PAGES; p++) {
        void *page = arena + order[p] * fkv_kv_page_bytes(form, hd, sizeof(float));
        memcpy(both, made + p * half, (size_t)half * sizeof *both);
        memcpy(both + half, made + v + p * half, (size_t)half * sizeof *both);
        if (form == FKV_KV_FP8) {
            fp8_write_page(both, hd, page);
            fp8_read_page(page, hd, both);
        } else {
            memcpy(page, both, 2 * (size_t)half * sizeof *both);
        }
        memcpy(said + p * half, both, (size_t)half * sizeof *both);
        memcpy(said + v + p * half, both + half, (size_t)half * sizeof *both);
    }
    free(both);
    return arena;
}

static void check_decode(fkv_kv_form form)
{
    const int64_t lengths[] = {1, 2, 127, 128, 129, 256, 400};
    const int groups[] = {1, 4, 8}, hd = 64;
    float *made = random_floats(2 * N_PAGES * PAGE * hd), *k = random_floats(2 * N_PAGES * PAGE * hd),
          *v = k + N_PAGES * PAGE * hd;
    const int32_t pages[2][N_PAGES] = {{0, 1, 2, 3, 4}, {3, 0, 4, 2, 1}};
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        for (int g = 0; g < 3 * N_SPECS; g++) {
            const int group = groups[g % 3];
            const fkv_attention_spec spec = spec_number(g / 3, hd, group);
            float *q = random_floats(group * hd), *first = NULL;
            for (int order = 0; order < 2; order++) {
                void *arena = make_pages(form, pages[order], hd, made, k);
                for (int t = 0; t < n_tables; t++) {
                    float *out = poisoned(group * hd);
                    double want[64];
                    tables[t]->decode(&spec, q, arena, form, pages[order], lengths[l], out);
                    for (int i = 0; i < group; i++) {
                        attend(&spec, q + i * hd, k, v, lengths[l], want);
                        check_close(&spec, out + i * hd, want);
                    }
                    if (first) assert_memory_equal(first, out, (size_t)(group * hd) * sizeof *out);
                    if (first) free(out);
                    if (!first) first = out;
                }
                free(arena);
            }
            free(first);
            free(q);
        }
    }
    free(made), free(k);
}

static void decode_attention_is_right_wherever_pages_lie(void **state)
{
    (void)state;
    check_decode(FKV_KV_PLAIN);
    check_decode(FKV_KV_FP8);
}

static void rmsnorm_adds_and_scales(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 15, 16, 100, 4096};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const int64_t n = sizes[s];
        float *x0 = random_floats(n), *y = random_floats(n), *w = random_floats(n), *first = NULL;
        for (int t = 0; t < n_tables; t++) {
            float *x = malloc((size_t)n * sizeof *x), *out = poisoned(n);
            memcpy(x, x0, (size_t)n * sizeof *x);
            tables[t]->add_rmsnorm(x, y, w, 1e-5f, n, out);
            double sum = 0;
            for (int64_t i = 0; i < n; i++) sum += ((double)x0[i] + y[i]) * ((double)x0[i] + y[i]);
            for (int64_t i = 0; i < n; i++) {
                const double want = ((double)x0[i] + y[i]) / sqrt(sum / (double)n + 1e-5) * w[i];
                assert_true(fabs(out[i] - want) <= 3e-6 * (1 + fabs(want)));
                assert_true(x[i] == x0[i] + y[i]);
            }
            if (first) assert_memory_equal(first, out, (size_t)n * sizeof *out);
            if (first) free(out);
            if (!first) first = out;
            free(x);
        }
        free(first);
        free(x0), free(y), free(w);
    }
}

static void scores_add_up_softmaxes(void **state)
{
    (void)state;
    const int64_t lengths[] = {1, 31, 32, 33, 200};
    const int hd = 64;
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        const int64_t n = lengths[l], padded = (n + 31) / 32 * 32;
        float *q = random_floats(hd), *k = random_floats(padded * hd), *kp = pack(k, padded, hd);
        const fkv_attention_spec spec = plain_spec(hd, 1);
        for (int t = 0; t < n_tables; t++) {
            float *s = poisoned(padded), *sum = calloc((size_t)n, sizeof *sum);
            double total = 0, p[200];
            for (int64_t j = 0; j < n; j++) {
                double dot = 0;
                for (int i = 0; i < hd; i++) dot += (double)q[i] * k[j * hd + i];
                total += p[j] = exp(dot / 8);
            }
            tables[t]->score_row(&spec, q, kp, n, 0.25f, s, sum);
            tables[t]->score_row(&spec, q, kp, n, 0.5f, s, sum);
            for (int64_t j = 0; j < n; j++) assert_true(fabs(sum[j] - 0.75 * p[j] / total) <= 1e-6);
            free(s), free(sum);
        }
        free(q), free(k), free(kp);
    }
}

int main(void)
{
    const cpu_kernels_table *all[] = {cpu_kernels_generic(), cpu_kernels_avx2(), cpu_kernels_avx512()};
    for (int i = 0; i < 3; i++)
        if (all[i]) tables[n_tables++] = all[i];
    printf("%d instruction sets; %s is chosen\n", n_tables, cpu_kernels()->name);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm_is_right_and_the_same_everywhere),
        cmocka_unit_test(gates_are_right_and_the_same_everywhere),
        cmocka_unit_test(a_bias_is_added_the_same_everywhere),
        cmocka_unit_test(prefill_attention_is_causal_right_and_the_same_everywhere),
        cmocka_unit_test(decode_attention_is_right_wherever_pages_lie),
        cmocka_unit_test(rmsnorm_adds_and_scales),
        cmocka_unit_test(scores_add_up_softmaxes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
