/* A step's gate and up on Hopper: see cuda_gate_sm90.cu. Enqueued on the device's stream; owns nothing. */
#ifndef FKV_KERNELS_CUDA_GATE_SM90_H
#define FKV_KERNELS_CUDA_GATE_SM90_H

#include "kernels/cuda_device.h"

/* Whether it can do a product of that class of rows; it is the same for all rows of a class whose addresses
 * are as aligned. w: of a gated weight, all its rows. */
bool cuda_gate_sm90_can(const fkv_device *dev, fkv_acts x, int64_t class_rows, const cuda_weight_view *w);

/* out[n, w.n / 2], rows at stride, = g(gate) * up of x[n, w.k], n <= class_rows. */
void cuda_gate_sm90(fkv_device *dev, fkv_activation g, fkv_acts x, int64_t n, int64_t class_rows,
                    cuda_weight_view w, bf16 *out, int64_t stride);

#endif
