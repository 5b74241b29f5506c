/* A metered table does what the table inside does, and its sums are what was called. */
#include "backend_fixture.h"

#include "kernels/metered.h"
#include "kernels/op_cost.h"

enum { HIDDEN = 64, OUT = 32, HEADS = 2, GROUP = 2, HD = 64, SLOTS = 3, PAGES = 2, CALLS = 9 };

static fkv_op_sum sum_of(fkv_op_kind kind)
{
    static fkv_op_sum sums[FKV_OP_KINDS]; /* of the last take: only the first kind takes */
    if (kind == FKV_OP_EMBED) fkv_metered_take(sums);
    return sums[kind];
}

static void ops_are_counted_and_their_results_stay(void **state)
{
    (void)state;
    float w[OUT * HIDDEN], x[HIDDEN], first[OUT], got[OUT];
    fkv_err err = {0};
    fill_uniform(w, OUT * HIDDEN, 1);
    fill_uniform(x, HIDDEN, 1);
    const fkv_weight *weight = load_weight(w, OUT, HIDDEN);
    void *dx = activations(x, HIDDEN);
    float *dy = device_memory(sizeof got, NULL);
    sum_of(FKV_OP_EMBED);
    for (int i = 0; i < CALLS; i++) {
        b->linear(dev, rows_at(dx, HIDDEN), 1, 1, weight, rows_at(dy, OUT), true, FKV_EPILOGUE_NONE);
        if (i % 4 == 3) b->add_rmsnorm(dev, dx, NULL, dy, 1e-5f, 1, OUT, NULL, NULL);
        if (i == 5) fetch(first, dy, sizeof first); /* something else in between */
    }
    fetch(got, dy, sizeof got);
    assert_memory_equal(first, got, sizeof got);
    for (int i = 0; i < OUT; i++) assert_near(got[i], dot(x, w + i * HIDDEN, HIDDEN), 1e-4, 1e-4, "y", i, 0);
    assert_int_equal(b->sync(dev, &err), FKV_OK);
    assert_int_equal(sum_of(FKV_OP_EMBED).calls, 0);
    const fkv_op_sum linear = sum_of(FKV_OP_LOGITS);
    const fkv_op_cost one =
        fkv_op_cost_linear(&info, (fkv_acts){0}, 1, OUT, HIDDEN, (fkv_acts){0}, true, FKV_EPILOGUE_NONE);
    assert_int_equal(linear.calls, CALLS);
    assert_true(linear.bytes == CALLS * one.bytes && linear.flops == CALLS * one.flops);
    assert_true(linear.seconds > 0 && linear.seconds < 60);
    assert_int_equal(sum_of(FKV_OP_ADD_RMSNORM).calls, CALLS / 4);
    sum_of(FKV_OP_EMBED); /* taken: nothing is left */
    assert_int_equal(sum_of(FKV_OP_LOGITS).calls, 0);
}

/* Bytes of decode attention follow what the slots hold on the device. */
static void a_steps_slots_are_read_anew(void **state)
{
    (void)state;
    const int64_t per = (int64_t)fkv_head_rows(GROUP) * HD, offset[HEADS] = {0, PAGES};
    const fkv_attention_spec spec = plain_spec(HD, GROUP, HEADS);
    const int32_t budgets[HEADS] = {500, 500}, prompt[SLOTS] = {5, 140, 7};
    int32_t pos[SLOTS] = {5, 150, 7}, active[SLOTS] = {1, 1, 0}, table[SLOTS * HEADS * PAGES];
    float *w = host_floats((size_t)(HEADS * per * HIDDEN));
    fkv_err err = {0};
    for (int i = 0; i < SLOTS * HEADS * PAGES; i++) table[i] = i;
    const fkv_weight *weight = load_weight(w, HEADS * per, HIDDEN);
    const fkv_decode_head heads[HEADS] = {{0, 0, SLOTS, weight, 0}, {1, 0, SLOTS, weight, per}};
    void *arena = activations(NULL, (size_t)SLOTS * HEADS * PAGES * 2 * FKV_PAGE_TOKENS * HD);
    int32_t *dev_pos = device_memory(sizeof pos, pos);
    const fkv_decode_args args = {
        .spec = &spec,
        .n_slots = SLOTS,
        .hidden = HIDDEN,
        .heads = heads,
        .n_heads_served = HEADS,
        .slots = {.pos = dev_pos,
                  .rope0 = device_memory(sizeof prompt, (int32_t[SLOTS]){0}),
                  .prompt_len = device_memory(sizeof prompt, prompt),
                  .active = device_memory(sizeof active, active)},
        .kv = {&arena, device_memory(sizeof table, table), HEADS * PAGES, offset, budgets},
        .x = rows_at(activations(NULL, SLOTS * HIDDEN), HIDDEN),
        .q = activations(NULL, (size_t)(HEADS * SLOTS * per)),
        .out = activations(NULL, SLOTS * HEADS * GROUP * HD)};
    if (b->prepare_decode(dev, &args, &err)) fail_msg("%s", err.message);
    for (int step = 0; step < 2; step++) {
        const fkv_host_slots slots = {pos, prompt, active};
        const fkv_op_cost want = fkv_op_cost_decode_attention(&info, &args, &slots);
        sum_of(FKV_OP_EMBED);
        assert_false(b->replay(dev, 0));
        b->record_begin(dev, 0);
        b->decode_begin(dev, &args.slots);
        b->decode_qkv(dev, &args);
        b->decode_attention(dev, &args);
        b->record_end(dev, 0);
        assert_int_equal(b->sync(dev, &err), FKV_OK);
        sum_of(FKV_OP_EMBED);
        assert_true(sum_of(FKV_OP_DECODE_ATTENTION).bytes == want.bytes);
        assert_int_equal(sum_of(FKV_OP_DECODE_QKV).calls, 1);
        pos[1]++;
        b->upload(dev, dev_pos, pos, sizeof pos);
    }
    free(w);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ops_are_counted_and_their_results_stay),
        cmocka_unit_test(a_steps_slots_are_read_anew),
    };
    const int skipped = choose_backend(argc, argv);
    if (skipped) return skipped;
    b = fkv_backend_metered(b);
    device_open((fkv_device_limits){.n_slots = SLOTS,
                                    .max_prompt = 256,
                                    .max_positions = 512,
                                    .hidden = HIDDEN,
                                    .n_heads = HEADS * GROUP,
                                    .n_kv_heads = HEADS,
                                    .head_dim = HD,
                                    .vocab = 8,
                                    .max_local_heads = HEADS,
                                    .window = 8});
    assert_false(info.replays);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close();
    return failed;
}
