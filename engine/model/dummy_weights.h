/* Random weights of any shape, for benchmarks (model.weights = dummy). One small
 * block of random numbers is mapped again and again, so that tensors of a large
 * model cost address space and no memory; every tensor starts elsewhere in it.
 *
 * It owns the mapping; a failed open leaves an empty one. Not to be used but through safetensors.h. */
#ifndef FKV_ENGINE_DUMMY_WEIGHTS_H
#define FKV_ENGINE_DUMMY_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "runner/base/status.h"

typedef struct fkv_dummy_weights {
    uint8_t *bytes; /* bf16, normal with deviation 0.02 */
    size_t n_bytes;
    uint16_t *ones; /* bf16 1.0, for norms: [max_vector] */
} fkv_dummy_weights;

/* max_tensor: elements of the largest tensor; max_vector: of the longest norm. */
fkv_status fkv_dummy_weights_open(uint64_t seed, size_t max_tensor, size_t max_vector, fkv_dummy_weights *w,
                                  fkv_err *err);
/* Elements for the tensor of that name, borrowed until close; n_dims 1 is a norm. */
const void *fkv_dummy_weights_get(const fkv_dummy_weights *w, const char *name, int n_dims);
void fkv_dummy_weights_close(fkv_dummy_weights *w);

#endif
