/* The tensors of a model: the one table from which loading, checking, bytes, costs and dummy
 * weights derive. It says of each its name in the files, its shape, how ranks share it, and
 * which models have it.
 *
 * Functions with an fkv_err give FKV_E_INPUT naming file and tensor. What fkv_tensor_get gives
 * out is borrowed from the weights. Not for a rank's part of a tensor: the engine cuts it by
 * sharing (engine/weights.c) and partition (engine/plan/partition.h).
 */
#ifndef FKV_ENGINE_TENSORS_H
#define FKV_ENGINE_TENSORS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/model/safetensors.h"
#include "runner/base/status.h"

struct fkv_config;

typedef enum fkv_tensor {
    FKV_TENSOR_EMBEDDING,
    FKV_TENSOR_LAST_NORM,
    FKV_TENSOR_OUTPUT, /* to logits */
    /* of a layer, from here on */
    FKV_TENSOR_ATTENTION_NORM,
    FKV_TENSOR_Q,
    FKV_TENSOR_K,
    FKV_TENSOR_V,
    FKV_TENSOR_Q_BIAS,
    FKV_TENSOR_K_BIAS,
    FKV_TENSOR_V_BIAS,
    FKV_TENSOR_Q_NORM,
    FKV_TENSOR_K_NORM,
    FKV_TENSOR_O,
    FKV_TENSOR_ATTENTION_OUT_NORM,
    FKV_TENSOR_MLP_NORM,
    FKV_TENSOR_GATE,
    FKV_TENSOR_UP,
    FKV_TENSOR_DOWN,
    FKV_TENSOR_MLP_OUT_NORM,
    FKV_N_TENSORS
} fkv_tensor;

/* How ranks share a tensor. */
typedef enum fkv_sharing {
    FKV_SHARED_WHOLE,        /* every rank has all of it */
    FKV_SHARED_BY_HEAD,      /* a rank has the rows of its heads */
    FKV_SHARED_BY_COLUMN,    /* its columns of the result: rows of the matrix */
    FKV_SHARED_BY_DEPTH,     /* its part of what is summed over: columns of the matrix */
    FKV_SHARED_BY_VOCABULARY /* its ids: rows */
} fkv_sharing;

fkv_sharing fkv_tensor_sharing(fkv_tensor t);
bool fkv_tensor_is_matrix(fkv_tensor t);
bool fkv_tensor_is_wanted(const struct fkv_config *config, fkv_tensor t);
/* [rows, cols]; a vector has cols 1. Also of a tensor that the model is without. */
void fkv_tensor_shape(const struct fkv_config *config, fkv_tensor t, int64_t *rows, int64_t *cols);

/* Its name in the files, into size bytes; layer is looked at for tensors of a layer alone. */
void fkv_tensor_name(const struct fkv_config *config, int layer, fkv_tensor t, char *out, size_t size);
fkv_status fkv_tensor_get(const struct fkv_config *config, const fkv_safetensors *weights, int layer,
                          fkv_tensor t, fkv_st_tensor *out, fkv_err *err);
/* Whether the files hold every tensor that the config asks for, in its shape, and no output that contradicts
 * a tied embedding. */
fkv_status fkv_tensors_check(const struct fkv_config *config, const fkv_safetensors *weights, fkv_err *err);
/* Random weights for every tensor of the model: for benchmarks. The caller closes them; after a failure
 * *out is NULL. */
fkv_status fkv_tensors_open_dummy(const struct fkv_config *config, uint64_t seed, fkv_safetensors **out,
                                  fkv_err *err);

/* Elements of the matrices: of a KV head's Q, K and V; of a whole layer; of the model, whose
 * embedding and output are loaded apart, tied or not. */
int64_t fkv_tensors_head_values(const struct fkv_config *config);
int64_t fkv_tensors_layer_values(const struct fkv_config *config);
int64_t fkv_tensors_model_values(const struct fkv_config *config);

#endif
