/* The words in which a layer of a model is described: engine/model writes them, kernels read them.
 * Numbers alone; nothing is owned.
 *
 * Shapes. hd = head_dim. A row of qkv holds for each KV head its group queries, its key and its
 * value, each a vector of hd: [n_kv_heads][fkv_head_rows(group)][hd]. Query head h * group + g
 * attends with KV head h. A row of attention's results: [n_kv_heads][group][hd].
 *
 * Formula. With q, k and v as projected (plus their bias) at position p:
 *   q, k  <- q / rms(q) * q_norm, k / rms(k) * k_norm      where qk_norm; rms over hd
 *   q, k  <- rotated by the angles p * inv_freq, times scale where rope >= 0 (backend.h)
 *   s_j   =  scale * q . k_j                               for keys j <= p, j > p - window
 *   s_j   <- softcap * tanh(s_j / softcap)                  where softcap > 0
 *   out   =  sum of softmax(s)_j v_j */
#ifndef FKV_BASE_LAYER_SPEC_H
#define FKV_BASE_LAYER_SPEC_H

#include <math.h>
#include <stdbool.h>

/* nvcc: of use in kernels too. */
#ifdef __CUDACC__
#define FKV_IN_KERNELS __host__ __device__
#else
#define FKV_IN_KERNELS
#endif

/* How a layer attends. */
typedef struct fkv_attention_spec {
    int n_kv_heads;
    int group; /* query heads of a KV head */
    int head_dim;
    int rope;      /* which of the model's RoPE tables (fkv_device_limits); -1: none */
    int window;    /* a query at position p sees keys > p - window; 0: all before it */
    float scale;   /* of q k^T: fkv_attention_scale(head_dim) but in odd families */
    float softcap; /* c tanh(x / c) of the scaled q k^T; 0: none */
    bool qkv_bias; /* Q, K and V have a bias */
    bool qk_norm;  /* RMSNorm over hd of every query and key, before RoPE */
} fkv_attention_spec;

/* g of the gated MLP: g(gate) * up.
 *   SILU:      x / (1 + exp(-x))
 *   GELU_TANH: x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
typedef enum fkv_activation { FKV_ACTIVATION_SILU, FKV_ACTIVATION_GELU_TANH } fkv_activation;

/* Vectors of head_dim that a KV head has in a row of qkv: its queries, K and V. */
static inline FKV_IN_KERNELS int fkv_head_rows(int group)
{
    return group + 2;
}

/* 1 / sqrt(hd), as float32 divides. */
static inline float fkv_attention_scale(int head_dim)
{
    return 1.0f / sqrtf((float)head_dim);
}

#endif
