/* FP8 weights as checkpoints are published: what config.json says of them, and the scales that belong to a
 * matrix.
 *
 * Two forms are read: Hugging Face's (quant_method fp8: scales in X.weight_scale_inv, or X.weight_scale where
 * there is one for the whole matrix) and compressed-tensors' (format float-quantized: X.weight_scale). A
 * number's value is the stored E4M3 times its scale. Which matrices are quantised the files say, by their
 * dtype: lists of modules (modules_to_not_convert, ignore, targets) are not looked at. Scales of activations
 * and of the KV cache are not applied. Everything else that is quantised is refused by its name.
 *
 * Nothing is owned: what a tensor gets points into the files. Not for multiplying (kernels/rows.h). */
#ifndef FKV_ENGINE_QUANT_H
#define FKV_ENGINE_QUANT_H

#include <jansson.h>
#include <stdint.h>

#include "engine/model/safetensors.h"
#include "runner/base/status.h"

/* How much of a matrix has one scale; a model's matrices may differ in it. */
enum { FKV_SCALE_TENSOR = 1, FKV_SCALE_ROW = 2, FKV_SCALE_BLOCK = 4 };

typedef struct fkv_quant {
    uint8_t grains; /* sum of those above that there may be; 0: the weights are not quantised */
    bool inverse;   /* Hugging Face's names */
    int64_t block_rows, block_cols; /* with FKV_SCALE_BLOCK */
} fkv_quant;

/* config: the file; text: the object in it that describes the text model, or the same. */
fkv_status fkv_quant_read(const json_t *config, const json_t *text, const char *path, fkv_quant *out,
                          fkv_err *err);

/* Gives an FP8 matrix, as it is in the files, its scales: t->scales. A tensor of another dtype has none. */
fkv_status fkv_quant_find_scales(const fkv_quant *quant, const fkv_safetensors *weights, fkv_st_tensor *t,
                                 fkv_err *err);

#endif
