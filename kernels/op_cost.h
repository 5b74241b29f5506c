/* What every op of the table moves and computes, from its arguments: so that a time becomes GB/s and
 * TFLOP/s beside what the device can. Pure functions; nothing is owned.
 *
 * bytes: the least that any implementation must move. Every input is read once and every output
 * written once; what is kept in between (a gate's two halves, partial sums) is not counted.
 * flops: 2 for each multiply-add of the products, and what is said beside; the softmax's, norm's
 * and RoPE's few operations an element are left out beside products.
 *
 * Not for plans: the cost model (engine/plan/cost.h, fkv_cost) has constants that are stated or measured.
 *
 * Sizes: act and weight are the bytes of an element (fkv_device_info), in FP8 both are fp8_bytes and scales
 * are left out; kv those of a token's K and V in a page (fkv_kv_token_bytes). hd and head_rows are the
 * spec's; heads are KV heads; T is a segment's number of tokens. seen(p) = min(p + 1, window) keys
 * are seen from position p (p + 1 without a window). */
#ifndef FKV_KERNELS_OP_COST_H
#define FKV_KERNELS_OP_COST_H

#include "kernels/backend.h"

typedef struct fkv_op_cost {
    double bytes, flops;
} fkv_op_cost;

/* What the slots hold, in host memory: decode ops read it on the device. */
typedef struct fkv_host_slots {
    const int32_t *pos, *prompt_len, *active; /* [n_slots] */
} fkv_host_slots;

/* bytes = n (4 + k weight + 4 k): ids, rows of the table (as if it had all), float32 rows. */
fkv_op_cost fkv_op_cost_embed(const fkv_device_info *d, int64_t n, int64_t k);

/* bytes = 8 n: float32, read and written. flops = n, and 10 n with a cap. */
fkv_op_cost fkv_op_cost_scale(int64_t n, bool with_cap);

/* bytes = n hidden act (1 + 2 with_y + with_out) + with_out 4 hidden: x is read; y is read and x
 * written; out is written by the weights. flops = n hidden (with_y + 4 with_out). */
fkv_op_cost fkv_op_cost_add_rmsnorm(const fkv_device_info *d, int64_t n, int64_t hidden, bool with_y,
                                    bool with_out, fkv_form out);

/* bytes = n k (act + fp8_bytes); flops = 2 n k. */
fkv_op_cost fkv_op_cost_quantise(const fkv_device_info *d, int64_t n, int64_t k);

/* With a weight of w_rows rows (gate and up both) and w_rows or, with a gate, w_rows / 2 = out
 * results a row: bytes = n k act + w_rows k weight + n out (4 or act); flops = 2 n w_rows k. */
fkv_op_cost fkv_op_cost_linear(const fkv_device_info *d, fkv_acts x, int64_t n, int64_t w_rows, int64_t k,
                               fkv_acts y, bool f32_out, fkv_epilogue epilogue);

/* A product of n = args->n_rows rows, of depth k, with w_rows = heads head_rows hd:
 * bytes = n k act + w_rows k weight + n w_rows act; flops = 2 n w_rows k. */
fkv_op_cost fkv_op_cost_prefill_qkv(const fkv_device_info *d, const fkv_prefill_args *args, int64_t k);

/* Over the segments, with q = 1 where last_only, else T, queries and pairs = the sum of their seen:
 * bytes = act hd heads (2 keys + 2 q group), keys = the sum over what any query sees;
 * flops = 4 hd heads group pairs. */
fkv_op_cost fkv_op_cost_prefill_attention(const fkv_device_info *d, const fkv_prefill_args *args);

/* Over the segments with T > min_tokens, n = T - W - S of them scored, and per head; scorer.h has the words:
 * - snapkv, defensive, critical, pairs = the sum of seen of the last W queries:
 *   bytes = act hd (keys + W group) + 4 n; flops = 2 hd group pairs
 *   defensive besides: bytes = act hd n + 4 group hd^2; flops = 2 group hd^2 n
 *   critical besides: bytes = act hd n + weight group hd hidden + 4 n; flops = 2 group hd hidden n
 * - keydiff: bytes = act hd T + 4 n; flops = 5 hd T
 * - expected: bytes = act hd head_rows (T - S) + 4 n; flops = 4 group hd^2 (T - S).
 * A weight and Gram matrices are read once a call. */
fkv_op_cost fkv_op_cost_key_scores(const fkv_device_info *d, const fkv_prefill_args *args);

/* Over segments and heads, kept = min(T, budget): bytes = kept (2 hd act + kv), and 4 (T - W - S) for
 * the scores where some are chosen, twice that with `second`; flops = 0. */
fkv_op_cost fkv_op_cost_kv_keep(const fkv_device_info *d, const fkv_keep_args *args);

/* bytes = 2 n hidden act for n segments; flops = 0. */
fkv_op_cost fkv_op_cost_last_rows(const fkv_device_info *d, const fkv_pack *pack, int64_t hidden);

/* bytes = n_slots hidden act, and for each placement w_rows hidden weight, w_rows = head_rows hd,
 * and for each of its active slots hd group act + kv;
 * flops = 2 w_rows hidden for each slot of each placement, active or not. */
fkv_op_cost fkv_op_cost_decode_qkv(const fkv_device_info *d, const fkv_decode_args *args,
                                   const fkv_host_slots *slots);

/* For each active slot of each placement, n = min(window, min(budget, T) + pos - T + 1) tokens:
 * bytes = n kv + 2 hd group act; flops = 4 hd group n. */
fkv_op_cost fkv_op_cost_decode_attention(const fkv_device_info *d, const fkv_decode_args *args,
                                         const fkv_host_slots *slots);

/* bytes = 4 n_slots vocab; flops = n_slots vocab, a comparison each. */
fkv_op_cost fkv_op_cost_sample(int64_t n_slots, int64_t vocab);

/* What one device of n_devices receives: bytes = n elem_bytes times the columns of the others. */
fkv_op_cost fkv_op_cost_gather_cols(int64_t n, const int64_t *cols, int n_devices, int device,
                                    int elem_bytes);

/* The same: bytes = row_elems act for each (head, slot) of another device. */
fkv_op_cost fkv_op_cost_gather_heads(const fkv_device_info *d, int n, int n_kv_heads, int64_t row_elems,
                                     const uint8_t *owner, int device);

/* Of all n_ranks ranks' partials: bytes = n hidden (4 n_ranks + act); flops = n hidden (n_ranks - 1). */
fkv_op_cost fkv_op_cost_reduce_ranks(const fkv_device_info *d, int n_ranks, int64_t n, int64_t hidden);

#endif
