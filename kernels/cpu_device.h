/* What the files of the CPU backend share: the device, weights, and the ops that
 * each file contributes to the table in cpu_backend.c.
 *
 * A device owns its pool, its blocks and its weights, also those of a call that failed half-way; the
 * world is its opener's. Ops are as in backend.h, with activations, K, V and weights in float32. Not for
 * other folders: see backend.h. */
#ifndef FKV_KERNELS_CPU_DEVICE_H
#define FKV_KERNELS_CPU_DEVICE_H

#include <pthread.h>

#include "kernels/backend.h"
#include "kernels/cpu_kernels.h"
#include "kernels/cpu_pool.h"

struct fkv_world {
    int n_devices;
    pthread_mutex_t lock;
    pthread_cond_t all_in;
    int n_waiting;
    uint64_t round;
    bool aborted;
    const void **board; /* [n_devices] what a device shows the others between two barriers */
    int *counts;        /* [n_devices] with it */
};

/* Memory that the device owns: arenas, buffers, weights. */
typedef struct cpu_block {
    void *data;
    size_t bytes;
} cpu_block;

struct fkv_device {
    fkv_world *world;
    int index;
    cpu_pool *pool;
    const cpu_kernels_table *k;
    fkv_device_limits limits;
    float inv_freq[FKV_MAX_ROPES * CPU_MAX_HEAD_DIM / 2]; /* [n_ropes][head_dim / 2] */
    float rope_scale[FKV_MAX_ROPES * CPU_MAX_HEAD_DIM / 2];
    float rope_ahead[FKV_MAX_ROPES * CPU_MAX_HEAD_DIM]; /* [n_ropes][head_dim / 2][2] e_i of scorer.h */
    float *rope_cos, *rope_sin; /* [n_ropes][max_positions][head_dim / 2], filled up to rope_filled */
    int64_t rope_filled;
    float *packed_keys;   /* [max_local_heads][tokens of a pack's tiles][head_dim] */
    cpu_att_scratch *att; /* [n_threads] */
    float *score_rows;    /* [n_threads][max_prompt rounded up] */
    float *score_sums;    /* [max_local_heads][max_prompt rounded up] */
    float *query_mean;    /* [max_local_heads * group][head_dim], where `expected` may be asked for */
    float *query_cov;     /* [max_local_heads * group][head_dim][head_dim], the same */
    int32_t *keep;        /* [n_threads][max_prompt] chosen positions */
    float *keep_work;     /* [n_threads][max_prompt rounded up] */
    float *sample_work;   /* [n_threads][vocab] */
    int32_t *sample_ids;  /* [n_threads][vocab] */
    int64_t n_posted;
    double posted_at[FKV_TICKETS]; /* by ticket */
    double span_start, span_seconds[FKV_MAX_LOCAL_RANKS];
    cpu_block *blocks;
    int n_blocks, cap_blocks;
    fkv_weight **weights;
    int n_weights, cap_weights;
};

/* A weight as products see it. Its numbers are float32 whatever the file held, so neither a type
 * nor a scale goes with them. */
typedef struct cpu_weight_view {
    cpu_panels panels;
    const float *bias; /* of the panels' columns, in their order; NULL: none */
    int64_t n, k;      /* results of the whole weight, depth */
} cpu_weight_view;

static inline int64_t cpu_round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* cpu_memory.c */
/* Zeroed memory of the device, mapped, so that what is never touched costs nothing. */
fkv_status cpu_alloc(fkv_device *dev, size_t bytes, void **out, fkv_err *err);
/* Gives back all but the oldest n blocks. */
void cpu_free_blocks(fkv_device *dev, int64_t n);

/* cpu_weights.c */
fkv_status cpu_weight_load(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k, fkv_weight **out,
                           fkv_err *err);
fkv_status cpu_weight_load_gated(fkv_device *dev, fkv_rows gate, fkv_rows up, int64_t k, fkv_weight **out,
                                 fkv_err *err);
fkv_status cpu_embedding_load(fkv_device *dev, fkv_rows part, int64_t first, int64_t k, fkv_weight **out,
                              fkv_err *err);
void cpu_weight_shape(const fkv_weight *w, int64_t *n_rows, int64_t *k);
/* From stored column col on, a multiple of 16. */
cpu_weight_view cpu_weight_columns(const fkv_weight *w, int64_t col);
/* Of an embedding: k floats, or NULL where the table does not have the id. */
const float *cpu_embedding_row(const fkv_weight *w, int64_t id);

/* cpu_gemm.c */
void cpu_linear(fkv_device *dev, fkv_acts x, int64_t n, int64_t class_rows, const fkv_weight *w, fkv_acts y,
                bool f32_out, fkv_epilogue epilogue);
/* Columns [col, col + n_cols) of w; col is a multiple of 16. */
void cpu_linear_cols(fkv_device *dev, const float *x, int64_t x_stride, int64_t n, const fkv_weight *w,
                     int64_t col, int64_t n_cols, float *y, int64_t y_stride);

/* cpu_quant.c */
void cpu_quantise_rows(fkv_device *dev, fkv_acts x, int64_t n, int64_t k);
/* x[n] = e4m3 of x, times its scale: of a row with that largest magnitude. */
void cpu_quantise(float *x, int64_t n, float largest);

/* cpu_ops.c */
void cpu_embed(fkv_device *dev, const int32_t *tokens, int64_t n, const fkv_weight *table, float *out);
void cpu_scale(fkv_device *dev, float *x, int64_t n, float factor, float cap);
void cpu_add_rmsnorm(fkv_device *dev, void *x, const void *y, const float *weight, float eps, int64_t n,
                     int64_t hidden, void *out, float *scale);
void cpu_start_slots(fkv_device *dev, const fkv_pack *pack, const fkv_slots *slots);
void cpu_last_rows(fkv_device *dev, const fkv_pack *pack, const void *x, int64_t hidden, void *out);
void cpu_scatter(fkv_device *dev, int32_t *dst, const fkv_edit *edits, int64_t n);
/* Makes the RoPE tables reach [0, n_positions); no allocation. Caller's thread only. */
void cpu_rope_fill(fkv_device *dev, int64_t n_positions);
/* What the spec says of the queries and the key of one head's vectors in a row of qkv, in place: norm,
 * then RoPE by a row of its tables. */
void cpu_finish_head(const fkv_device *dev, const fkv_attention_spec *spec, const fkv_qk_norm *norm,
                     float *head, int64_t rope_row);

/* cpu_attention.c */
void cpu_prefill_qkv(fkv_device *dev, const fkv_prefill_args *args);
void cpu_prefill_attention(fkv_device *dev, const fkv_prefill_args *args);
void cpu_decode_begin(fkv_device *dev, const fkv_slots *slots);
void cpu_decode_qkv(fkv_device *dev, const fkv_decode_args *args);
void cpu_decode_attention(fkv_device *dev, const fkv_decode_args *args);

/* cpu_scores.c */
void cpu_key_scores(fkv_device *dev, const fkv_prefill_args *args);
void cpu_weight_gram(fkv_device *dev, const fkv_weight *w, int64_t rows, int n, float *out);

/* cpu_compress.c */
void cpu_kv_keep(fkv_device *dev, const fkv_keep_args *args);
/* K and V, from[2][hd], as token `at` of pages. */
void cpu_kv_put(const fkv_kv_view *kv, int rank, const int32_t *pages, int64_t at, int hd, const float *from);

/* cpu_sample.c */
void cpu_sample(fkv_device *dev, float *logits, int64_t stride, int n_slots, bool first,
                const fkv_slots *slots, const fkv_token_rules *rules, int choice, int vocab);

/* cpu_collective.c */
fkv_status cpu_world_open(const fkv_group *group, fkv_world **world, fkv_err *err);
void cpu_world_close(fkv_world *world);
void cpu_world_abort(fkv_world *world);
bool cpu_world_aborted(fkv_world *world);
void cpu_gather_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols,
                     int elem_bytes);
void cpu_gather_heads(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                      const uint8_t *owner, const uint8_t *dev_owner);
void cpu_aside_begin(fkv_device *dev);
int64_t cpu_aside_end(fkv_device *dev);
void cpu_aside_wait(fkv_device *dev, int64_t ticket);
void cpu_reduce_ranks(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                      void *y);

#endif
