/* Bytes and FLOPs of ops against numbers counted by hand, on a device of 2-byte activations, 1-byte K
 * and V, 3-byte weights and 5 bytes an element in FP8, so that no size can stand in for another. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>

#include "kernels/op_cost.h"

static const fkv_device_info device = {.act_bytes = 2, .kv_bytes = 1, .weight_bytes = 3, .fp8_bytes = 5};
static const fkv_acts plain = {0};
static const fkv_attention_spec spec = {.n_kv_heads = 2, .group = 3, .head_dim = 16, .scale = 0.25f};

static void assert_cost(fkv_op_cost got, double bytes, double flops, const char *what)
{
    if (got.bytes != bytes || got.flops != flops)
        fail_msg("%s: %.0f bytes and %.0f flops, should be %.0f and %.0f", what, got.bytes, got.flops, bytes,
                 flops);
}

static void ops_on_rows(void **state)
{
    (void)state;
    /* 5 ids of 4 bytes; 5 rows of 10 weights, 5 rows of 10 floats */
    assert_cost(fkv_op_cost_embed(&device, 5, 10), 20 + 150 + 200, 0, "embed");
    /* 4 rows of 10: x and y read, x and out written; 10 floats of weights */
    assert_cost(fkv_op_cost_add_rmsnorm(&device, 4, 10, true, true, FKV_FORM_NATIVE), 4 * 80 + 40, 40 + 160,
                "add, norm");
    assert_cost(fkv_op_cost_add_rmsnorm(&device, 4, 10, false, true, FKV_FORM_NATIVE), 2 * 80 + 40, 160,
                "norm");
    assert_cost(fkv_op_cost_add_rmsnorm(&device, 4, 10, true, false, FKV_FORM_NATIVE), 3 * 80, 40, "add");
    /* x 3 x 10, weight 8 x 10, y 3 x 8 or, gated, 3 x 4 */
    assert_cost(fkv_op_cost_linear(&device, plain, 3, 8, 10, plain, false, FKV_EPILOGUE_NONE), 60 + 240 + 48,
                480, "linear");
    assert_cost(fkv_op_cost_linear(&device, plain, 3, 8, 10, plain, true, FKV_EPILOGUE_NONE), 60 + 240 + 96,
                480, "f32");
    assert_cost(fkv_op_cost_linear(&device, plain, 3, 8, 10, plain, false, FKV_EPILOGUE_SILU_GATE),
                60 + 240 + 24, 480, "gate");
    /* the same with rows and weights in FP8 */
    float scale;
    const fkv_acts fp8 = {.scale = &scale};
    assert_cost(fkv_op_cost_add_rmsnorm(&device, 4, 10, true, true, FKV_FORM_FP8), 40 * (6 + 5) + 40,
                40 + 160, "add, norm to FP8");
    assert_cost(fkv_op_cost_quantise(&device, 4, 10), 40 * 7, 80, "quantise");
    assert_cost(fkv_op_cost_linear(&device, fp8, 3, 8, 10, plain, true, FKV_EPILOGUE_NONE), 150 + 400 + 96,
                480, "FP8");
    assert_cost(fkv_op_cost_linear(&device, fp8, 3, 8, 10, fp8, false, FKV_EPILOGUE_SILU_GATE),
                150 + 400 + 60, 480, "FP8, gate");
    assert_cost(fkv_op_cost_sample(3, 7), 84, 21, "sample");
    assert_cost(fkv_op_cost_reduce_ranks(&device, 3, 4, 10), 40 * 14, 80, "reduce");
}

static void prefill_of_two_prompts(void **state)
{
    (void)state;
    const fkv_segment segments[] = {{.n_tokens = 4}, {.row0 = 4, .n_tokens = 2, .tile0 = 1}};
    const fkv_pack pack = {.n_segments = 2, .n_rows = 6, .n_tiles = 2, .segments = segments};
    fkv_attention_spec windowed = spec;
    windowed.window = 2;
    fkv_prefill_args a = {.pack = &pack,
                          .spec = &spec,
                          .n_heads = 2,
                          .n_rows = 6,
                          .min_tokens = 2,
                          .score_window = 2,
                          .score_kernel = 7};
    /* 2 heads of 5 vectors of 16: 160 rows of the weight */
    assert_cost(fkv_op_cost_prefill_qkv(&device, &a, 10), 6 * 10 * 2 + 160 * 10 * 3 + 6 * 160 * 2,
                2 * 6 * 160 * 10, "qkv");
    /* 10 + 3 pairs; a head's token: Q and out 3 vectors each, K and V, of 32 bytes */
    assert_cost(fkv_op_cost_prefill_attention(&device, &a), 2 * 6 * 8 * 32, 4 * 16 * 6 * 13, "attention");
    a.last_only = true; /* 4 + 2 keys, 2 queries */
    assert_cost(fkv_op_cost_prefill_attention(&device, &a), 2 * 32 * (2 * 6 + 2 * 6), 4 * 16 * 6 * 6, "last");
    /* the first prompt alone: queries 2 and 3 see 3 and 4 keys; 2 scores a head */
    assert_cost(fkv_op_cost_key_scores(&device, &a), 2 * 32 * (4 + 6) + 2 * 2 * 4, 2 * 16 * 6 * 7, "scores");
    a.spec = &windowed; /* the last query sees 2 keys of each prompt */
    assert_cost(fkv_op_cost_prefill_attention(&device, &a), 2 * 32 * (2 * 4 + 2 * 6), 4 * 16 * 6 * 4,
                "window");
    /* queries 2 and 3 see 2 keys each, 3 altogether */
    assert_cost(fkv_op_cost_key_scores(&device, &a), 2 * 32 * (3 + 6) + 2 * 2 * 4, 2 * 16 * 6 * 4, "window");
    a.last_only = false; /* 1 + 2 + 2 + 2 and 1 + 2 pairs */
    assert_cost(fkv_op_cost_prefill_attention(&device, &a), 2 * 6 * 8 * 32, 4 * 16 * 6 * 10, "window");
    assert_cost(fkv_op_cost_last_rows(&device, &pack, 10), 2 * 2 * 20, 0, "last rows");
}

static void scores_by_other_scorers(void **state)
{
    (void)state;
    const fkv_segment segments[] = {{.n_tokens = 9}, {.row0 = 9, .n_tokens = 3, .tile0 = 1}};
    const fkv_pack pack = {.n_segments = 2, .n_rows = 12, .n_tiles = 2, .segments = segments};
    fkv_prefill_args a = {.pack = &pack,
                          .spec = &spec,
                          .n_heads = 2,
                          .scorer = FKV_SCORER_DEFENSIVE,
                          .min_tokens = 3,
                          .score_window = 2,
                          .sinks = 1,
                          .score_kernel = 7,
                          .hidden = 48};
    /* 2 heads of 3 queries; the first prompt alone: queries 7 and 8 see 8 and 9 keys, and 6 have scores of 4
     * bytes; a vector has 16 values of 2 bytes; values of 6 tokens, 6 Gram matrices of 256 floats */
    assert_cost(fkv_op_cost_key_scores(&device, &a), 2 * (32 * (9 + 6 + 6) + 6 * 4) + 6 * 256 * 4,
                2 * (2 * 16 * 3 * 17 + 2 * 3 * 256 * 6), "defensive");
    a.scorer = FKV_SCORER_CRITICAL; /* 6 matrices of 48 rows of 16 weights of 3 bytes */
    assert_cost(fkv_op_cost_key_scores(&device, &a), 2 * (32 * (9 + 6 + 6) + 2 * 6 * 4) + 6 * 48 * 16 * 3,
                2 * (2 * 16 * 3 * 17 + 2 * 3 * 16 * 48 * 6), "critical");
    a.scorer = FKV_SCORER_KEYDIFF;
    assert_cost(fkv_op_cost_key_scores(&device, &a), 2 * (32 * 9 + 6 * 4), 2 * 5 * 16 * 9, "keydiff");
    a.scorer = FKV_SCORER_EXPECTED; /* queries, keys and values of 8 tokens */
    assert_cost(fkv_op_cost_key_scores(&device, &a), 2 * (32 * 5 * 8 + 6 * 4), 2 * 4 * 3 * 256 * 8,
                "expected");
}

static void what_is_kept(void **state)
{
    (void)state;
    const fkv_segment segments[] = {{.n_tokens = 40}, {.row0 = 40, .n_tokens = 5, .tile0 = 1}};
    const fkv_pack pack = {.n_segments = 2, .n_rows = 45, .n_tiles = 2, .segments = segments};
    const int32_t budgets[] = {0, 0, 10, 6, 0, 0}; /* layer 1 */
    float some = 0;
    const fkv_attention_spec windowed = {
        .n_kv_heads = 2, .group = 3, .head_dim = 16, .window = 9, .scale = 0.25f};
    fkv_keep_args a = {.pack = &pack,
                       .spec = &spec,
                       .layer = 1,
                       .n_heads = 2,
                       .score_window = 8,
                       .kv = {.budgets = budgets}};
    /* tokens of K and V, 32 values, read at 2 and written at 1 byte; 32 scores where 2 of them win: the
     * second head keeps the window's tokens alone */
    assert_cost(fkv_op_cost_kv_keep(&device, &a), (10 + 6 + 5 + 5) * 96 + 32 * 4, 0, "keep");
    a.kv.form = FKV_KV_FP8;
    assert_cost(fkv_op_cost_kv_keep(&device, &a), (10 + 6 + 5 + 5) * 104 + 32 * 4, 0, "keep as fp8");
    a.kv.form = FKV_KV_PLAIN;
    a.sinks = 1; /* 31 are left, and critical has two scores of each */
    a.second = &some;
    assert_cost(fkv_op_cost_kv_keep(&device, &a), (10 + 6 + 5 + 5) * 96 + 31 * 8, 0, "keep by two");
    a.sinks = 0;
    a.spec = &windowed;
    assert_cost(fkv_op_cost_kv_keep(&device, &a), (10 + 6 + 5 + 5) * 96, 0, "keep the last");
    a.spec = &spec;
    a.head0 = a.n_heads = 1;
    assert_cost(fkv_op_cost_kv_keep(&device, &a), (6 + 5) * 96, 0, "keep of one head");
}

static void a_decode_step(void **state)
{
    (void)state;
    const int32_t budgets[] = {100, 4}, prompt[] = {3, 9, 9}, pos[] = {3, 12, 11}, active[] = {1, 1, 0};
    const fkv_decode_head heads[] = {{.head = 0, .begin = 0, .end = 3}, {.head = 1, .begin = 1, .end = 2}};
    const fkv_host_slots slots = {pos, prompt, active};
    fkv_attention_spec windowed = spec;
    windowed.window = 5;
    fkv_decode_args a = {.spec = &spec,
                         .n_slots = 3,
                         .hidden = 10,
                         .heads = heads,
                         .n_heads_served = 2,
                         .kv = {.budgets = budgets}};
    /* x; two heads' weights of 80 rows; Q (3 vectors) of 3 rows at 2 bytes, K and V at 1 */
    assert_cost(fkv_op_cost_decode_qkv(&device, &a, &slots), 60 + 2 * 80 * 10 * 3 + 3 * (96 + 32),
                2 * 80 * 10 * (3 + 1), "decode qkv");
    /* 4 and 13 tokens of head 0, 4 + 3 + 1 of head 1; Q and out of 3 rows */
    assert_cost(fkv_op_cost_decode_attention(&device, &a, &slots), 32 * (4 + 13 + 8) + 3 * 2 * 96,
                4 * 16 * 3 * (4 + 13 + 8), "decode attention");
    a.kv.form = FKV_KV_FP8; /* and a scale for K and one for V */
    assert_cost(fkv_op_cost_decode_qkv(&device, &a, &slots), 60 + 2 * 80 * 10 * 3 + 3 * (96 + 40),
                2 * 80 * 10 * (3 + 1), "decode qkv into fp8");
    assert_cost(fkv_op_cost_decode_attention(&device, &a, &slots), 40 * (4 + 13 + 8) + 3 * 2 * 96,
                4 * 16 * 3 * (4 + 13 + 8), "decode attention of fp8");
    a.kv.form = FKV_KV_PLAIN;
    a.spec = &windowed;
    assert_cost(fkv_op_cost_decode_attention(&device, &a, &slots), 32 * (4 + 5 + 5) + 3 * 2 * 96,
                4 * 16 * 3 * (4 + 5 + 5), "decode attention with a window");
}

static void what_devices_receive(void **state)
{
    (void)state;
    const int64_t cols[] = {0, 6, 10}, alone[] = {0, 10};
    const uint8_t owner[] = {0, 1, 1, 0, 0, 1};
    assert_cost(fkv_op_cost_gather_cols(3, cols, 2, 0, 4), 3 * 4 * 4, 0, "columns");
    assert_cost(fkv_op_cost_gather_cols(3, cols, 2, 1, 4), 3 * 6 * 4, 0, "columns");
    assert_cost(fkv_op_cost_gather_cols(3, alone, 1, 0, 4), 0, 0, "columns of one device");
    assert_cost(fkv_op_cost_gather_heads(&device, 3, 2, 48, owner, 1), 3 * 48 * 2, 0, "heads");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ops_on_rows),
        cmocka_unit_test(prefill_of_two_prompts),
        cmocka_unit_test(scores_by_other_scorers),
        cmocka_unit_test(what_is_kept),
        cmocka_unit_test(a_decode_step),
        cmocka_unit_test(what_devices_receive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
