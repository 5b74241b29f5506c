/* One kind of op carried out, the others left out: see single_op.h. */
#include "kernels/single_op.h"

static const fkv_backend *in;
static fkv_backend table;
static int chosen = FKV_OP_KINDS;
static fkv_device_limits shape; /* of the device prepared last; its pointers are the caller's */

static bool wanted(fkv_op_kind kind)
{
    return chosen == FKV_OP_KINDS || chosen == (int)kind;
}

static fkv_status single_prepare(fkv_device *dev, const fkv_device_limits *limits, fkv_err *err)
{
    shape = *limits;
    return in->prepare(dev, limits, err);
}

static void single_linear(fkv_device *dev, fkv_acts x, int64_t n, int64_t class_rows, const fkv_weight *w,
                          fkv_acts y, bool f32_out, fkv_epilogue epilogue)
{
    int64_t rows, k;
    in->weight_shape(w, &rows, &k);
    if (wanted(fkv_op_kind_of_linear(&shape, rows, f32_out, epilogue)))
        in->linear(dev, x, n, class_rows, w, y, f32_out, epilogue);
}

static void single_quantise(fkv_device *dev, fkv_acts x, int64_t n, int64_t k)
{
    if (wanted(FKV_OP_QUANTISE)) in->quantise(dev, x, n, k);
}

static void single_embed(fkv_device *dev, const int32_t *tokens, int64_t n, const fkv_weight *w, float *out)
{
    if (wanted(FKV_OP_EMBED)) in->embed(dev, tokens, n, w, out);
}

static void single_scale(fkv_device *dev, float *x, int64_t n, float factor, float cap)
{
    if (wanted(FKV_OP_SCALE)) in->scale(dev, x, n, factor, cap);
}

static void single_add_rmsnorm(fkv_device *dev, void *x, const void *y, const float *weight, float eps,
                               int64_t n, int64_t hidden, void *out, float *scale)
{
    if (wanted(FKV_OP_ADD_RMSNORM)) in->add_rmsnorm(dev, x, y, weight, eps, n, hidden, out, scale);
}

static void single_prefill_qkv(fkv_device *dev, const fkv_prefill_args *a)
{
    if (wanted(FKV_OP_PREFILL_QKV)) in->prefill_qkv(dev, a);
}

static void single_prefill_attention(fkv_device *dev, const fkv_prefill_args *a)
{
    if (wanted(FKV_OP_PREFILL_ATTENTION)) in->prefill_attention(dev, a);
}

static void single_key_scores(fkv_device *dev, const fkv_prefill_args *a)
{
    if (wanted(FKV_OP_KEY_SCORES)) in->key_scores(dev, a);
}

static void single_kv_keep(fkv_device *dev, const fkv_keep_args *a)
{
    if (wanted(FKV_OP_KV_KEEP)) in->kv_keep(dev, a);
}

static void single_last_rows(fkv_device *dev, const fkv_pack *pack, const void *x, int64_t hidden, void *out)
{
    if (wanted(FKV_OP_LAST_ROWS)) in->last_rows(dev, pack, x, hidden, out);
}

static void single_decode_qkv(fkv_device *dev, const fkv_decode_args *a)
{
    if (wanted(FKV_OP_DECODE_QKV)) in->decode_qkv(dev, a);
}

static void single_decode_attention(fkv_device *dev, const fkv_decode_args *a)
{
    if (wanted(FKV_OP_DECODE_ATTENTION)) in->decode_attention(dev, a);
}

static void single_sample(fkv_device *dev, float *logits, int64_t stride, int n_slots, bool first,
                          const fkv_slots *slots, const fkv_token_rules *rules, int choice, int vocab)
{
    if (wanted(FKV_OP_SAMPLE)) in->sample(dev, logits, stride, n_slots, first, slots, rules, choice, vocab);
}

static void single_gather_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols,
                               int elem_bytes)
{
    if (wanted(FKV_OP_GATHER_COLS)) in->gather_cols(dev, buf, n, stride, cols, elem_bytes);
}

static void single_gather_heads(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                                const uint8_t *owner, const uint8_t *dev_owner)
{
    if (wanted(FKV_OP_GATHER_HEADS)) in->gather_heads(dev, out, n, n_kv_heads, row_elems, owner, dev_owner);
}

static void single_reduce_ranks(fkv_device *dev, const float *partials, int n_local, int64_t n,
                                int64_t hidden, void *y)
{
    if (wanted(FKV_OP_REDUCE_RANKS)) in->reduce_ranks(dev, partials, n_local, n, hidden, y);
}

const fkv_backend *fkv_backend_single_op(const fkv_backend *inner)
{
    in = inner;
    chosen = FKV_OP_KINDS;
    table = *inner;
    table.prepare = single_prepare;
    table.linear = single_linear;
    table.quantise = single_quantise;
    table.embed = single_embed;
    table.scale = single_scale;
    table.add_rmsnorm = single_add_rmsnorm;
    table.prefill_qkv = single_prefill_qkv;
    table.prefill_attention = single_prefill_attention;
    table.key_scores = single_key_scores;
    table.kv_keep = single_kv_keep;
    table.last_rows = single_last_rows;
    table.decode_qkv = single_decode_qkv;
    table.decode_attention = single_decode_attention;
    table.sample = single_sample;
    table.gather_cols = single_gather_cols;
    table.gather_heads = single_gather_heads;
    table.reduce_ranks = single_reduce_ranks;
    return &table;
}

void fkv_single_op_choose(int kind)
{
    chosen = kind;
}
