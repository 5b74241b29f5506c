/* Names of ops: see op_kind.h. */
#include "kernels/op_kind.h"

const char *fkv_op_kind_name(fkv_op_kind kind)
{
    static const char *const names[FKV_OP_KINDS] = {"embed",
                                                    "scale",
                                                    "add_rmsnorm",
                                                    "quantise",
                                                    "linear, output",
                                                    "linear, gate and up",
                                                    "linear, down",
                                                    "linear, logits",
                                                    "prefill_qkv",
                                                    "prefill_attention",
                                                    "key_scores",
                                                    "kv_keep",
                                                    "last_rows",
                                                    "decode_qkv",
                                                    "decode_attention",
                                                    "sample",
                                                    "gather_cols",
                                                    "gather_heads",
                                                    "reduce_ranks"};
    return names[kind];
}

fkv_op_kind fkv_op_kind_of_linear(const fkv_device_limits *limits, int64_t w_rows, bool f32_out,
                                  fkv_epilogue epilogue)
{
    if (epilogue != FKV_EPILOGUE_NONE) return FKV_OP_GATE_UP;
    if (!f32_out) return FKV_OP_OUTPUT;
    return w_rows == limits->hidden ? FKV_OP_DOWN : FKV_OP_LOGITS;
}
