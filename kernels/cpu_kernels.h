/* Inner kernels of the CPU backend: one table per instruction set.
 *
 * The three tables are compiled from cpu_kernels_impl.h and give the same bits;
 * cpu_kernels() picks the fastest that this processor runs. A kernel is serial;
 * cpu_gemm.c, cpu_attention.c, cpu_compress.c and cpu_ops.c spread them over the pool. Nothing is owned,
 * nothing fails. Strides are in floats. Not for where weights and pages come from (cpu_device.h).
 */
#ifndef FKV_KERNELS_CPU_KERNELS_H
#define FKV_KERNELS_CPU_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "runner/base/kv_page.h"
#include "runner/base/layer_spec.h"

enum {
    CPU_PANEL = 16,     /* columns of a packed panel of a weight */
    CPU_ATT_ROWS = 96,  /* queries of one prefill attention task */
    CPU_ATT_KEYS = 128, /* keys of one block of its softmax */
    CPU_MAX_HEAD_DIM = 256,
};

typedef enum cpu_gemm_mode {
    CPU_GEMM_STORE,
    CPU_GEMM_ADD,
    CPU_GEMM_SILU_GATE,
    CPU_GEMM_GELU_TANH_GATE
} cpu_gemm_mode;

static inline bool cpu_gemm_gated(cpu_gemm_mode mode)
{
    return mode == CPU_GEMM_SILU_GATE || mode == CPU_GEMM_GELU_TANH_GATE;
}

/* B of a GEMM: element (k, 16 p + j) at data[p * panel + k * step + j]. A packed
 * weight has panel = k_total * 16 and step = 16; a row-major [k, n] matrix with
 * row stride ld has panel = 16 and step = ld. */
typedef struct cpu_panels {
    const float *data;
    int64_t panel, step;
} cpu_panels;

/* Working memory of one prefill attention task. */
typedef struct cpu_att_scratch {
    float q[CPU_ATT_ROWS * CPU_MAX_HEAD_DIM];
    float o[CPU_ATT_ROWS * CPU_MAX_HEAD_DIM];
    float s[32 * CPU_ATT_KEYS];
    float row_max[CPU_ATT_ROWS], row_sum[CPU_ATT_ROWS];
} cpu_att_scratch;

typedef struct cpu_kernels_table {
    const char *name;

    /* c[m, n] (=, += or a gate of) a[m, k] b[k, n]. Every element is one chain
     * acc = fma(a, b, acc) over k from 0 (from c with ADD, from bias[column] where there is one),
     * whatever m and n are. Gates: g(gate) * up; panels, and the bias by 16, alternate gate and
     * up, and n counts the results. */
    void (*gemm)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, cpu_panels b,
                 const float *bias, float *c, int64_t ldc, cpu_gemm_mode mode);

    /* x += y (NULL: not); out = x / sqrt(mean(x^2) + eps) * w (NULL: not). n floats. */
    void (*add_rmsnorm)(float *x, const float *y, const float *w, float eps, int64_t n, float *out);

    /* Causal attention of n_rows queries (row i is position pos0 + i, at q + i * ldq)
     * over the keys of [0, pos0 + i] that the spec lets it see; scale, cap and window as it says.
     * kp: K packed [ceil(T / 16)][hd][16]; v: row-major with stride ldv. out: row i at
     * out + i * ldo, hd floats. */
    void (*attention)(const fkv_attention_spec *spec, const float *q, int64_t ldq, int64_t n_rows,
                      int64_t pos0, const float *kp, const float *v, int64_t ldv, float *out, int64_t ldo,
                      cpu_att_scratch *scratch);

    /* Softmax over keys [0, n) of the query at position n - 1 (those that it sees), times weight,
     * added to sum[n]. q: hd floats, kp as above. s: scratch of n rounded up to 32 floats. */
    void (*score_row)(const fkv_attention_spec *spec, const float *q, const float *kp, int64_t n,
                      float weight, float *s, float *sum);

    /* Decode attention of a head's queries over the n tokens (the last window of them) in the arena's pages
     * of that form (kv_page.h; plain: float32). q, out: [group, hd]. */
    void (*decode)(const fkv_attention_spec *spec, const float *q, const void *arena, fkv_kv_form form,
                   const int32_t *pages, int64_t n, float *out);

    /* The largest of n floats. */
    float (*max)(const float *x, int64_t n);
} cpu_kernels_table;

/* The fastest table that this processor runs. */
const cpu_kernels_table *cpu_kernels(void);

/* The tables themselves, NULL where the build or the processor has none; for tests. */
const cpu_kernels_table *cpu_kernels_generic(void);
const cpu_kernels_table *cpu_kernels_avx2(void);
const cpu_kernels_table *cpu_kernels_avx512(void);

#endif
