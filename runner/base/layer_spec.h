/* The words in which a layer of a model is described: engine/model writes them, kernels read them.
 * Numbers alone; nothing is owned. */
#ifndef FKV_BASE_LAYER_SPEC_H
#define FKV_BASE_LAYER_SPEC_H

#include <stdbool.h>

/* How a layer attends. hd = head_dim; a KV head has group query heads. */
typedef struct fkv_attention_spec {
    int n_kv_heads, group, head_dim;
    int rope;      /* which of the model's RoPE tables; -1: none */
    int window;    /* a query at position p sees keys > p - window; 0: all before it */
    float scale;   /* of q k^T */
    float softcap; /* c tanh(x / c) of the scaled q k^T; 0: none */
    bool qkv_bias; /* Q, K and V have a bias */
    bool qk_norm;  /* RMSNorm over hd of every query and key, before RoPE */
} fkv_attention_spec;

/* g of the gated MLP: g(gate) * up. */
typedef enum fkv_activation { FKV_ACTIVATION_SILU, FKV_ACTIVATION_GELU_TANH } fkv_activation;

/* Vectors of head_dim that a KV head has in a row of qkv: its queries, K and V. */
static inline int fkv_head_rows(int group)
{
    return group + 2;
}

#endif
