/* What config.json says of quantised weights: FP8's two published forms, and that all else is refused by
 * name. Their scales: tests/cli/quantised.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/quant.h"

static json_t *parsed(const char *text)
{
    json_error_t why;
    json_t *o = json_loads(text, 0, &why);
    if (!o) fail_msg("%s: %s", text, why.text);
    return o;
}

static fkv_quant quant_of(const char *config)
{
    fkv_err err = {0};
    fkv_quant q;
    json_t *o = parsed(config);
    if (fkv_quant_read(o, o, "config.json", &q, &err)) fail_msg("%s: %s", config, err.message);
    json_decref(o);
    return q;
}

static void refused(const char *config, const char *key, const char *word)
{
    fkv_err err = {0};
    fkv_quant q;
    json_t *o = parsed(config);
    assert_int_equal(fkv_quant_read(o, o, "config.json", &q, &err), FKV_E_INPUT);
    json_decref(o);
    assert_string_equal(err.file, "config.json");
    assert_string_equal(err.key, key);
    assert_int_equal(q.grains, 0);
    if (!strstr(err.message, word)) fail_msg("%s: %s", config, err.message);
}

#define QUANT(keys)              "{\"quantization_config\":{" keys "}}"
#define FP8(keys)                QUANT("\"quant_method\":\"fp8\"," keys)
#define GROUP(keys)              "{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":8,\"type\":\"float\"," keys "}}"
#define COMPRESSED(format, keys) "\"quant_method\":\"compressed-tensors\",\"format\":\"" format "\"," keys
#define FLOATS(groups)           QUANT(COMPRESSED("float-quantized", "\"config_groups\":{" groups "}"))

/* What a matrix may have by the config: the files say which. */
static void test_fp8(void **state)
{
    (void)state;
    fkv_quant q = quant_of("{}");
    assert_int_equal(q.grains, 0);
    q = quant_of(FP8("\"fmt\":\"e4m3\",\"weight_block_size\":[128,64]"));
    assert_int_equal(q.grains, FKV_SCALE_BLOCK);
    assert_true(q.block_rows == 128 && q.block_cols == 64 && q.inverse);
    q = quant_of(FP8("\"activation_scheme\":\"static\",\"weight_block_size\":null"));
    assert_int_equal(q.grains, FKV_SCALE_TENSOR);
    q = quant_of(FP8("\"activation_scheme\":\"dynamic\""));
    assert_int_equal(q.grains, FKV_SCALE_TENSOR | FKV_SCALE_BLOCK);
    q = quant_of(FLOATS("\"a\":" GROUP("\"strategy\":\"channel\"") ",\"b\":" GROUP("\"strategy\":null")));
    assert_int_equal(q.grains, FKV_SCALE_TENSOR | FKV_SCALE_ROW);
    assert_false(q.inverse);
    q = quant_of(FLOATS("\"a\":" GROUP("\"strategy\":\"block\",\"block_structure\":[32,128]")));
    assert_int_equal(q.grains, FKV_SCALE_BLOCK);
    assert_int_equal(q.block_rows, 32);
    q = quant_of("{\"compression_config\":{" COMPRESSED(
        "naive-quantized", "\"config_groups\":{\"a\":" GROUP("\"strategy\":\"tensor\"") "}") "}}");
    assert_int_equal(q.grains, FKV_SCALE_TENSOR);
}

/* In the object of the text model, outside of it, or in both. */
static void test_the_key_may_stand_outside_the_text_model(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_quant q;
    json_t *said = parsed(FP8("\"weight_block_size\":[128,128]")), *other = parsed(FP8("\"fmt\":\"e4m3\"")),
           *nothing = parsed("{}");
    assert_int_equal(fkv_quant_read(said, nothing, "config.json", &q, &err), FKV_OK);
    assert_int_equal(q.grains, FKV_SCALE_BLOCK);
    assert_int_equal(fkv_quant_read(nothing, said, "config.json", &q, &err), FKV_OK);
    assert_int_equal(q.grains, FKV_SCALE_BLOCK);
    assert_int_equal(fkv_quant_read(said, said, "config.json", &q, &err), FKV_OK);
    assert_int_equal(fkv_quant_read(said, other, "config.json", &q, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "two objects"));
    assert_int_equal(q.grains, 0);
    json_decref(said), json_decref(other), json_decref(nothing);
}

static void test_other_quantised_weights_are_refused_by_name(void **state)
{
    (void)state;
    static const char *const patches[][2] = {
        {FP8("\"fmt\":\"e5m2\""), "e5m2"},
        {FP8("\"weight_block_size\":[128]"), "blocks"},
        {FP8("\"weight_block_size\":[128,0]"), "blocks"},
        {FP8("\"weight_block_size\":[128,9223372036854775807]"), "blocks"},
        {FP8("\"weight_block_size\":\"128x128\""), "blocks"},
        {QUANT(COMPRESSED("pack-quantized", "\"config_groups\":{}")), "pack-quantized"},
        {QUANT(COMPRESSED("int-quantized", "\"config_groups\":{}")), "int-quantized"},
        {QUANT(COMPRESSED("nvfp4-pack-quantized", "\"config_groups\":{}")), "nvfp4-pack-quantized"},
        {QUANT(COMPRESSED("float-quantized", "\"sparsity_config\":{\"format\":\"sparse-24-bitmask\"}")),
         "sparsity_config"},
        {QUANT(COMPRESSED("float-quantized", "\"transform_config\":{\"config_groups\":{\"a\":1}}")),
         "transform_config"},
        {FLOATS(""), "config_groups"},
        {FLOATS("\"a\":{\"weights\":null}"), "config_groups"},
        {FLOATS("\"a\":{\"weights\":{\"num_bits\":4,\"type\":\"float\"}}"), "4 bits, type float"},
        {FLOATS("\"a\":{\"weights\":{\"num_bits\":8}}"), "8 bits, type int"},
        {FLOATS("\"a\":" GROUP("\"strategy\":\"group\"")), "strategy group"},
        {FLOATS("\"a\":" GROUP("\"strategy\":\"block\"")), "blocks"},
        {FLOATS("\"a\":" GROUP("\"symmetric\":false")), "symmetric"},
        {FLOATS("\"a\":{\"format\":\"nvfp4-pack-quantized\"}"), "nvfp4-pack-quantized"},
        {FLOATS("\"a\":" GROUP("\"strategy\":\"block\",\"block_structure\":[32,128]") ",\"b\":" GROUP(
             "\"strategy\":\"block\",\"block_structure\":[128,128]")),
         "beside others"},
    };
    for (size_t i = 0; i < sizeof patches / sizeof *patches; i++)
        refused(patches[i][0], "quantization_config", patches[i][1]);
    refused(FLOATS("\"a\":{\"weights\":{\"type\":\"float\"}}"), "num_bits", "missing");
    refused("{\"quantization_config\":{\"quant_method\":\"fp8\"},\"compression_config\":{\"quant_method\":"
            "\"awq\"}}",
            "compression_config", "two objects");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_the_key_may_stand_outside_the_text_model),
        cmocka_unit_test(test_other_quantised_weights_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
