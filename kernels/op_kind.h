/* What the ops that take time are called where they are counted one by one (metered.h, single_op.h). linear
 * is four of them, by what it is for: an engine has one weight of each kind a layer, or in all. */
#ifndef FKV_KERNELS_OP_KIND_H
#define FKV_KERNELS_OP_KIND_H

#include "kernels/backend.h"

typedef enum fkv_op_kind {
    FKV_OP_EMBED,
    FKV_OP_SCALE,
    FKV_OP_ADD_RMSNORM,
    FKV_OP_QUANTISE,
    FKV_OP_OUTPUT,  /* linear of the output projection, or of any weight that is not one below */
    FKV_OP_GATE_UP, /* linear with a gate */
    FKV_OP_DOWN,    /* linear in float32, of as many rows as the hidden has */
    FKV_OP_LOGITS,  /* of another number of rows */
    FKV_OP_PREFILL_QKV,
    FKV_OP_PREFILL_ATTENTION,
    FKV_OP_KEY_SCORES,
    FKV_OP_KV_KEEP,
    FKV_OP_LAST_ROWS,
    FKV_OP_DECODE_QKV,
    FKV_OP_DECODE_ATTENTION,
    FKV_OP_SAMPLE,
    FKV_OP_GATHER_COLS,
    FKV_OP_GATHER_HEADS,
    FKV_OP_REDUCE_RANKS,
    FKV_OP_KINDS
} fkv_op_kind;

const char *fkv_op_kind_name(fkv_op_kind kind);
/* Of linear with a weight of w_rows rows, on a device of these limits. */
fkv_op_kind fkv_op_kind_of_linear(const fkv_device_limits *limits, int64_t w_rows, bool f32_out,
                                  fkv_epilogue epilogue);

#endif
