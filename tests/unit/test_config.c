/* config.json and generation_config.json: both forms, every refusal by name,
 * and RoPE's frequencies against HF transformers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/model/config.h"
#include "runner/base/file.h"
#include "runner/base/json.h"

static const char BASE[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_act\":\"silu\","
    "\"attention_bias\":false,\"mlp_bias\":false,\"hidden_size\":256,\"intermediate_size\":768,"
    "\"num_hidden_layers\":3,\"num_attention_heads\":8,\"num_key_value_heads\":2,"
    "\"max_position_embeddings\":4096,\"vocab_size\":1000,\"rms_norm_eps\":1e-05,"
    "\"rope_theta\":500000.0,\"rope_scaling\":null,\"torch_dtype\":\"bfloat16\","
    "\"tie_word_embeddings\":true,\"eos_token_id\":7,\"pretraining_tp\":2}";

static char dir[256];

static void put(const char *name, const char *text)
{
    fkv_err err = {0};
    char *path = fkv_path_join(dir, name);
    assert_int_equal(fkv_file_replace(path, text, strlen(text), &err), FKV_OK);
    free(path);
}

static void drop(const char *name)
{
    char *path = fkv_path_join(dir, name);
    unlink(path);
    free(path);
}

/* BASE with the keys of patch replaced; a patch value "drop" removes the key. */
static void put_config(const char *patch)
{
    json_t *o = json_loads(BASE, 0, NULL), *p = json_loads(patch, 0, NULL), *v;
    const char *key;
    assert_non_null(o);
    assert_non_null(p);
    json_object_foreach(p, key, v)
    {
        if (json_is_string(v) && !strcmp(json_string_value(v), "drop"))
            json_object_del(o, key);
        else
            json_object_set(o, key, v);
    }
    char *text = json_dumps(o, 0);
    put("config.json", text);
    free(text);
    json_decref(p);
    json_decref(o);
}

static fkv_config accepted(const char *patch)
{
    fkv_config c;
    fkv_err err = {0};
    char message[1024];
    memset(&c, 0xee, sizeof c);
    put_config(patch);
    const fkv_status st = fkv_config_read(dir, &c, &err);
    fkv_err_format(&err, message, sizeof message);
    if (st) fail_msg("%s: refused: %s", patch, message);
    return c;
}

static void refused(const char *patch, const char *key, const char *word)
{
    fkv_config c;
    fkv_err err = {0};
    put_config(patch);
    const fkv_status st = fkv_config_read(dir, &c, &err);
    if (st != FKV_E_INPUT) fail_msg("%s: status %d", patch, st);
    if (!strstr(err.file, "config.json")) fail_msg("%s: names the file %s", patch, err.file);
    if (strcmp(err.key, key) != 0) fail_msg("%s: names the key %s: %s", patch, err.key, err.message);
    if (!strstr(err.message, word)) fail_msg("%s: says %s", patch, err.message);
}

static void test_old_form(void **state)
{
    (void)state;
    const fkv_config c = accepted("{}");
    assert_int_equal(c.n_layers, 3);
    assert_int_equal(c.n_heads, 8);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.group, 4);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.hidden, 256);
    assert_int_equal(c.intermediate, 768);
    assert_int_equal(c.vocab, 1000);
    assert_int_equal(c.max_positions, 4096);
    assert_true(c.rms_eps == 1e-5f);
    assert_true(c.tied);
    assert_int_equal(c.rope.type, FKV_ROPE_DEFAULT);
    assert_true(c.rope.theta == 500000);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos[0], 7);
}

#define LLAMA3                                                                                               \
    "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"                                       \
    "\"original_max_position_embeddings\":8192"

static void test_llama3_in_every_spelling(void **state)
{
    (void)state;
    static const char *const patches[] = {
        "{\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3 "}}",
        "{\"rope_scaling\":{\"type\":\"llama3\"," LLAMA3 "}}",
        "{\"rope_scaling\":{\"type\":\"llama3\",\"rope_type\":\"llama3\"," LLAMA3 "}}",
        "{\"rope_theta\":\"drop\",\"rope_scaling\":\"drop\",\"torch_dtype\":\"drop\",\"dtype\":\"bfloat16\","
        "\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"llama3\"," LLAMA3 "}}",
    };
    for (size_t i = 0; i < sizeof patches / sizeof *patches; i++) {
        const fkv_config c = accepted(patches[i]);
        assert_int_equal(c.rope.type, FKV_ROPE_LLAMA3);
        assert_true(c.rope.theta == 500000);
        assert_true(c.rope.factor == 8);
        assert_true(c.rope.low_freq == 1);
        assert_true(c.rope.high_freq == 4);
        assert_int_equal(c.rope.original_positions, 8192);
    }
}

static void test_values_that_are_fine(void **state)
{
    (void)state;
    assert_true(accepted("{\"rope_theta\":\"drop\"}").rope.theta == 10000);
    assert_true(accepted("{\"rope_theta\":1000000}").rope.theta == 1000000);
    assert_int_equal(accepted("{\"num_key_value_heads\":\"drop\"}").n_kv_heads, 8);
    assert_int_equal(accepted("{\"num_key_value_heads\":null}").group, 1);
    assert_int_equal(accepted("{\"head_dim\":128}").head_dim, 128);
    assert_int_equal(accepted("{\"head_dim\":null}").head_dim, 32);
    assert_false(accepted("{\"tie_word_embeddings\":\"drop\"}").tied);
    accepted("{\"rope_scaling\":{\"type\":\"default\"}}");
    accepted("{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":500000.0}}");
    accepted("{\"sliding_window\":null}");
    accepted("{\"sliding_window\":1024,\"use_sliding_window\":false}");
    accepted("{\"sliding_window\":4096}"); /* reaches over all positions */
    accepted("{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\",\"sliding_window\":1024}");
    accepted("{\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\"]}");
    accepted("{\"quantization_config\":null,\"partial_rotary_factor\":1.0,\"residual_multiplier\":1}");
    accepted("{\"architectures\":\"drop\"}");
    accepted(
        "{\"architectures\":[\"MistralForCausalLM\"],\"model_type\":\"mistral\",\"sliding_window\":null}");
    accepted("{\"architectures\":[\"MistralForCausalLM\"],\"model_type\":\"drop\"}"); /* 4096 positions */
    accepted("{\"attention_dropout\":0.1,\"initializer_range\":0.02,\"use_cache\":true}");
}

static void test_other_arithmetic_is_refused_by_name(void **state)
{
    (void)state;
    static const char *const patches[][2] = {
        {"{\"attention_bias\":true}", "attention_bias"},
        {"{\"mlp_bias\":true}", "mlp_bias"},
        {"{\"hidden_act\":\"gelu\"}", "hidden_act"},
        {"{\"sliding_window\":1024}", "sliding_window"},
        {"{\"sliding_window\":1024,\"use_sliding_window\":true}", "sliding_window"},
        {"{\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
        {"{\"attention_multiplier\":0.0078125}", "attention_multiplier"},
        {"{\"residual_multiplier\":0.22}", "residual_multiplier"},
        {"{\"logits_scaling\":8.0}", "logits_scaling"},
        {"{\"embedding_multiplier\":12.0}", "embedding_multiplier"},
        {"{\"use_qk_norm\":true}", "use_qk_norm"},
        {"{\"num_local_experts\":8}", "num_local_experts"},
        {"{\"architectures\":[\"Qwen3MoeForCausalLM\"]}", "architectures"},
        {"{\"architectures\":[\"LlamaForCausalLM\",\"MadeUp\"]}", "architectures"},
        {"{\"model_type\":\"granite\"}", "model_type"},
        {"{\"architectures\":[\"Glm4ForCausalLM\"]}", "architectures"},
        {"{\"architectures\":[\"Olmo2ForCausalLM\"]}", "architectures"},
        {"{\"architectures\":[\"GraniteForCausalLM\"]}", "architectures"},
        {"{\"architectures\":[\"SmolLM3ForCausalLM\"]}", "architectures"},
        {"{\"architectures\":[\"DeepseekV3ForCausalLM\"]}", "architectures"},
        {"{\"architectures\":[\"Llama4ForConditionalGeneration\"]}", "architectures"},
        {"{\"architectures\":[\"PhiMoEForCausalLM\"]}", "architectures"},
        {"{\"torch_dtype\":\"float8_e4m3fn\"}", "torch_dtype"},
        {"{\"dtype\":\"int8\"}", "dtype"},
        {"{\"rope_scaling\":{\"rope_type\":\"longrope\"}}", "rope_scaling"},
        {"{\"rope_parameters\":{\"rope_type\":\"mrope\"}}", "rope_parameters"},
        {"{\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4.0,\"mrope_section\":[1,2]}}",
         "rope_parameters"},
        {"{\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4.0,\"attention_factor\":2.0}}",
         "attention_factor"},
        {"{\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}", "rope_parameters"},
        {"{\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.25}}",
         "partial_rotary_factor"},
        {"{\"num_hidden_layers\":1,\"layer_types\":[\"sliding_attention\"]}", "layer_types"},
    };
    for (size_t i = 0; i < sizeof patches / sizeof *patches; i++)
        refused(patches[i][0], patches[i][1], "support");
    static const char *const methods[] = {"gptq",  "awq",       "bitsandbytes", "compressed-tensors",
                                          "mxfp4", "fbgemm_fp8"};
    char patch[128];
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        snprintf(patch, sizeof patch, "{\"quantization_config\":{\"quant_method\":\"%s\"}}", methods[i]);
        refused(patch, "quantization_config", methods[i]);
    }
    refused("{\"quantization_config\":{\"bits\":4}}", "quantization_config", "no quant_method");
    refused("{\"compression_config\":{\"quant_method\":\"compressed-tensors\"}}", "compression_config",
            "quantised");
    /* Outside the text model's object. */
    refused("{\"architectures\":[\"Mistral3ForConditionalGeneration\"],\"model_type\":\"mistral3\","
            "\"text_config\":{},\"quantization_config\":{\"quant_method\":\"awq\"}}",
            "quantization_config", "awq");
    refused("{\"transformers_weights\":\"other.safetensors\"}", "transformers_weights", "support");
    refused("{\"num_hidden_layers\":1,\"layer_types\":[\"sliding_attention\"]}", "layer_types",
            "sliding_attention");
}

static void test_contradictions_are_refused(void **state)
{
    (void)state;
    refused("{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000.0}}", "rope_theta",
            "twice");
    refused("{\"rope_parameters\":{\"rope_type\":\"default\"},\"rope_scaling\":{\"type\":\"llama3\"}}",
            "rope_scaling", "contradicts");
    refused("{\"rope_scaling\":{\"type\":\"default\",\"rope_type\":\"llama3\"}}", "rope_scaling", "disagree");
    refused("{\"rope_scaling\":{\"factor\":8.0}}", "rope_scaling", "no rope_type");
    refused("{\"rope_scaling\":\"llama3\"}", "rope_scaling", "object");
    refused("{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":4.0,"
            "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}}",
            "high_freq_factor", "greater");
    refused("{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
            "\"high_freq_factor\":4.0}}",
            "original_max_position_embeddings", "missing");
    refused("{\"rope_scaling\":{\"type\":\"llama3\"}}", "factor", "missing");
}

static void test_dimensions_are_checked(void **state)
{
    (void)state;
    static const char *const keys[] = {"num_hidden_layers",       "hidden_size",         "intermediate_size",
                                       "max_position_embeddings", "num_attention_heads", "vocab_size"};
    char patch[128];
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        snprintf(patch, sizeof patch, "{\"%s\":\"drop\"}", keys[i]);
        refused(patch, keys[i], "missing");
        snprintf(patch, sizeof patch, "{\"%s\":0}", keys[i]);
        refused(patch, keys[i], "outside");
        snprintf(patch, sizeof patch, "{\"%s\":-128}", keys[i]);
        refused(patch, keys[i], "outside");
        snprintf(patch, sizeof patch, "{\"%s\":1099511627776}", keys[i]);
        refused(patch, keys[i], "outside");
        snprintf(patch, sizeof patch, "{\"%s\":8.0}", keys[i]);
        refused(patch, keys[i], "integer");
    }
    refused("{\"num_key_value_heads\":3}", "num_key_value_heads", "multiple");
    refused("{\"num_key_value_heads\":16}", "num_key_value_heads", "multiple");
    refused("{\"num_key_value_heads\":0}", "num_key_value_heads", "outside");
    refused("{\"num_attention_heads\":6,\"num_key_value_heads\":2}", "head_dim", "multiple");
    refused("{\"head_dim\":20}", "head_dim", "multiples of 8");
    refused("{\"head_dim\":264}", "head_dim", "outside");
    refused("{\"head_dim\":0}", "head_dim", "outside");
    refused("{\"hidden_size\":4096}", "head_dim", "multiples of 8"); /* 4096 / 8 heads = 512 */
    refused("{\"rms_norm_eps\":-1.0}", "rms_norm_eps", "outside");
    refused("{\"rms_norm_eps\":\"x\"}", "rms_norm_eps", "number");
    refused("{\"rope_theta\":0.0}", "rope_theta", "outside");
    refused("{\"tie_word_embeddings\":1}", "tie_word_embeddings", "true or false");
    refused("{\"architectures\":\"LlamaForCausalLM\"}", "architectures", "list");
    refused("{\"architectures\":[5]}", "architectures", "not a string");
    refused("{\"architectures\":\"drop\",\"model_type\":\"drop\"}", "architectures", "missing");
}

static void test_stop_tokens(void **state)
{
    (void)state;
    fkv_config c = accepted("{\"eos_token_id\":[5,6,5]}");
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos[1], 6);
    assert_int_equal(accepted("{\"eos_token_id\":null}").n_eos, 0);
    refused("{\"eos_token_id\":1000}", "eos_token_id", "vocabulary of 1000");
    refused("{\"eos_token_id\":-1}", "eos_token_id", "outside");
    refused("{\"eos_token_id\":[1,\"2\"]}", "eos_token_id", "id");
    refused("{\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,"
            "27,28,29,30,31,32]}",
            "eos_token_id", "more than 32");

    put("generation_config.json", "{\"eos_token_id\":[11,999]}");
    c = accepted("{}");
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos[0], 11);
    put("generation_config.json", "{\"eos_token_id\":3}");
    c = accepted("{}");
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos[0], 3);
    put("generation_config.json", "{\"temperature\":0.6}");
    assert_int_equal(accepted("{}").eos[0], 7);
    put("generation_config.json", "{\"eos_token_id\":4000}");
    refused("{}", "eos_token_id", "vocabulary");
    put("generation_config.json", "[]");
    refused("{}", "", "object");
    drop("generation_config.json");
}

/* Numbers that JSON does not have, or no machine. */
static void test_impossible_numbers(void **state)
{
    static const struct {
        const char *value, *word;
    } cases[] = {
        {"NaN", "not valid JSON"},
        {"-Infinity", "not valid JSON"},
        {"1e999", "overflow near '1e999'"},
        {"99999999999999999999", "too big integer near '99999999999999999999'"},
        {"-99999999999999999999", "too big negative integer"},
        {"0x80", "not valid JSON"},
        {"0128", "not valid JSON"},
    };
    char text[128];
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fkv_config c;
        fkv_err err = {0};
        snprintf(text, sizeof text, "{\"architectures\":[\"LlamaForCausalLM\"],\n\"hidden_size\":%s}",
                 cases[i].value);
        put("config.json", text);
        assert_int_equal(fkv_config_read(dir, &c, &err), FKV_E_INPUT);
        assert_non_null(strstr(err.file, "config.json"));
        assert_int_equal(err.line, 2);
        if (!strstr(err.message, cases[i].word)) print_error("%s: %s\n", cases[i].value, err.message);
        assert_non_null(strstr(err.message, cases[i].word));
    }
}

/* Deep nesting, and many values: parsed, they would take many times their text. */
static void test_overgrown_files(void **state)
{
    fkv_config c;
    fkv_err err = {0};
    fkv_buf b = {0};
    (void)state;
    for (int i = 0; i < 100000; i++) assert_int_equal(fkv_buf_puts(&b, i ? "[" : "{\"a\":", &err), 0);
    put("config.json", b.data);
    assert_int_equal(fkv_config_read(dir, &c, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "values"));
    b.data[5000] = '\0';
    put("config.json", b.data);
    err = (fkv_err){0};
    assert_int_equal(fkv_config_read(dir, &c, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "maximum parsing depth"));
    memset(b.data, ' ', b.len);
    put("config.json", b.data); /* white space is neither */
    err = (fkv_err){0};
    assert_int_equal(fkv_config_read(dir, &c, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "not valid JSON"));
    fkv_buf_free(&b);
}

static void test_damaged_files(void **state)
{
    (void)state;
    fkv_config c;
    fkv_err err = {0};
    put("config.json", "{\"architectures\":[");
    assert_int_equal(fkv_config_read(dir, &c, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.file, "config.json"));
    put("config.json", "[1]");
    err = (fkv_err){0};
    assert_int_equal(fkv_config_read(dir, &c, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "object"));
    err = (fkv_err){0};
    assert_int_equal(fkv_config_read("/nonexistent-model", &c, &err), FKV_E_INPUT);
    assert_string_equal(err.file, "/nonexistent-model/config.json");
}

static void test_needle_tiny(void **state)
{
    (void)state;
    fkv_config c;
    fkv_err err = {0};
    assert_int_equal(fkv_config_read(FKV_TEST_DIR "/data/needle-tiny", &c, &err), FKV_OK);
    assert_int_equal(c.n_layers, 4);
    assert_int_equal(c.head_dim, 64); /* explicit: hidden / n_heads would be 16 */
    assert_int_equal(c.vocab, 1024);
    assert_true(c.rope.theta == 100000);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos[0], 1);
}

/* Llama 3.1 8B's parameters; values of HF transformers 5.23, which computes in
 * float32 and is right to about 3e-7. */
static void test_rope_frequencies_of_llama3(void **state)
{
    (void)state;
    static const struct {
        int i;
        double value;
    } golden[] = {{0, 1},
                  {1, 0.814617217},
                  {5, 0.358730227},
                  {20, 0.0165604409},
                  {28, 0.00321144611},
                  {29, 0.00216657063}, /* blended from here */
                  {30, 0.00137189368},
                  {31, 0.00085675146},
                  {33, 0.00031269365},
                  {35, 9.55621217e-05}, /* divided by the factor from here */
                  {36, 7.78465546e-05},
                  {40, 3.42810235e-05},
                  {63, 3.06892588e-07}};
    float f[64], scale[64];
    fkv_config c = {.head_dim = 128, .rope = {.theta = 500000, .type = FKV_ROPE_LLAMA3}};
    c.rope.factor = 8;
    c.rope.low_freq = 1;
    c.rope.high_freq = 4;
    c.rope.original_positions = 8192;
    fkv_rope_frequencies(&c.rope, c.head_dim, false, f, scale);
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++)
        assert_float_equal(f[golden[i].i] / golden[i].value, 1, 1e-6);
}

/* Which layers of a config see how many tokens: "....w" for 5 layers of which the last has the window. */
static void windows_are(const char *changes, int window, const char *layers)
{
    const fkv_config c = accepted(changes);
    assert_int_equal(c.n_layers, (int)strlen(layers));
    for (int l = 0; l < c.n_layers; l++)
        assert_int_equal(fkv_config_window(&c, l), layers[l] == 'w' ? window : 0);
}

static void test_windows(void **state)
{
    (void)state;
#define MODEL(class, type)                                                                                   \
    "{\"architectures\":[\"" class "ForCausalLM\"],\"model_type\":\"" type "\",\"num_hidden_layers\":4,"
    /* HF's Mistral does not look at the flag, and without the key its window is 4096. */
    windows_are(MODEL("Mistral", "mistral") "\"sliding_window\":1024,\"use_sliding_window\":false}", 1024,
                "wwww");
    windows_are(MODEL("Mistral", "mistral") "\"max_position_embeddings\":32768}", 4096, "wwww");
    windows_are(MODEL("Mistral", "mistral") "\"sliding_window\":4096}", 0, "...."); /* all positions */
    windows_are(MODEL("Qwen2", "qwen2") "\"sliding_window\":512,\"max_window_layers\":1}", 0, "....");
    windows_are(
        MODEL("Qwen2", "qwen2") "\"sliding_window\":512,\"use_sliding_window\":true,\"max_window_layers\":1}",
        512, ".www");
    windows_are(MODEL("Gemma2", "gemma2") "\"hidden_act\":\"gelu_pytorch_tanh\",\"sliding_window\":512}", 512,
                "w.w.");
    windows_are(MODEL("Gemma3", "gemma3_text") "\"hidden_act\":\"gelu_pytorch_tanh\",\"sliding_window\":512,"
                                               "\"sliding_window_pattern\":3}",
                512, "ww.w");
    windows_are(
        MODEL("Mistral",
              "mistral") "\"sliding_window\":512,\"layer_types\":[\"full_attention\",\"sliding_attention\","
                         "\"full_attention\",\"full_attention\"]}",
        512, ".w..");
#undef MODEL
}

/* What HF's classes have for keys that a config leaves out. */
static void test_defaults_of_families(void **state)
{
    (void)state;
#define MODEL(class, type)                                                                                   \
    "{\"architectures\":[\"" class "ForCausalLM\"],\"model_type\":\"" type "\",\"num_hidden_layers\":30,"    \
                                   "\"max_position_embeddings\":8192,"
    windows_are(MODEL("Qwen2", "qwen2") "\"use_sliding_window\":true}", 4096,
                "............................ww");
    windows_are(MODEL("Qwen3", "qwen3") "\"use_sliding_window\":true,\"max_window_layers\":29}", 4096,
                ".............................w");
#define GELU "\"hidden_act\":\"gelu_pytorch_tanh\""
    fkv_config c = accepted(MODEL("Gemma2", "gemma2") GELU "}");
    assert_true(c.attention_softcap == 50 && c.logit_softcap == 30);
    c = accepted(MODEL("Gemma2", "gemma2") GELU
                 ",\"attn_logit_softcapping\":null,\"final_logit_softcapping\":20.0}");
    assert_true(c.attention_softcap == 0 && c.logit_softcap == 20);
    c = accepted(MODEL("Gemma3", "gemma3_text") GELU
                 ",\"num_attention_heads\":\"drop\",\"num_key_value_heads\":\"drop\"}");
    assert_true(c.attention_softcap == 0 && c.logit_softcap == 0);
    assert_int_equal(c.n_heads, 8);
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 256);
#undef MODEL
}

/* Vicuna's linear rope stretches the positions to max_sequence_length. */
static void test_positions_are_those_that_the_model_reaches(void **state)
{
    (void)state;
#define LINEAR "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}"
    assert_int_equal(accepted("{" LINEAR ",\"max_sequence_length\":16384}").max_positions, 16384);
    assert_int_equal(accepted("{" LINEAR ",\"max_sequence_length\":1024}").max_positions, 4096);
    assert_int_equal(accepted("{" LINEAR "}").max_positions, 4096);
    assert_int_equal(accepted("{\"max_sequence_length\":16384}").max_positions, 4096);
    /* A text of one chunk has plain attention in it. */
#define CHUNKS(chunk, local)                                                                                 \
    "{\"dual_chunk_attention_config\":{\"chunk_size\":" chunk ",\"local_size\":" local "}}"
    assert_int_equal(accepted(CHUNKS("3072", "1024")).max_positions, 2048);
    assert_int_equal(accepted(CHUNKS("8192", "1024")).max_positions, 4096);
    refused(CHUNKS("1024", "1024"), "dual_chunk_attention_config", "below");
    refused(CHUNKS("0", "0"), "chunk_size", "outside");
    refused("{\"dual_chunk_attention_config\":4096}", "dual_chunk_attention_config", "object");
    refused("{\"dual_chunk_attention_config\":{}}", "chunk_size", "missing");
}

/* Configs as their publishers have them: what is read of each, or the name by which it is refused. */
static void test_published_configs(void **state)
{
    (void)state;
    json_error_t why;
    json_t *all = json_load_file(FKV_TEST_DIR "/data/configs.json", 0, &why), *o;
    size_t i;
    assert_true(json_array_size(all) > 60);
    json_array_foreach(all, i, o)
    {
        fkv_config c;
        fkv_err err = {0};
        const char *name = json_string_value(json_object_get(o, "name")),
                   *word = json_string_value(json_object_get(o, "refused"));
        char *text = json_dumps(json_object_get(o, "config"), 0);
        int windowed = 0;
        put("config.json", text);
        free(text);
        const fkv_status st = fkv_config_read(dir, &c, &err);
        if (word ? st != FKV_E_INPUT || !strstr(err.message, word) : st != FKV_OK)
            fail_msg("%s: status %d: %s: %s", name, st, err.key, err.message);
        if (word) continue;
        for (int l = 0; l < c.n_layers; l++) windowed += fkv_config_window(&c, l) > 0;
        if (c.max_positions != json_integer_value(json_object_get(o, "positions")) ||
            windowed != json_integer_value(json_object_get(o, "windowed")) ||
            (windowed && c.window != json_integer_value(json_object_get(o, "window"))))
            fail_msg("%s: %d positions, a window of %d in %d layers", name, c.max_positions, c.window,
                     windowed);
    }
    json_decref(all);
}

/* HF transformers 5.24's, in float32: base 10000, factor 4, trained on 128 positions, 16 dimensions. */
static void test_rope_frequencies_of_yarn(void **state)
{
    (void)state;
    float f[8], scale[8];
    const fkv_config c =
        accepted("{\"hidden_size\":64,\"num_attention_heads\":4,\"num_key_value_heads\":4,"
                 "\"head_dim\":16,\"rope_theta\":10000.0,\"rope_scaling\":{\"rope_type\":\"yarn\","
                 "\"factor\":4.0,\"original_max_position_embeddings\":128}}");
    const double want[] = {1,
                           0.237170815,
                           0.049999997,
                           0.00790569466,
                           0.00249999994,
                           0.000790569466,
                           0.000250000012,
                           7.90569466e-05};
    fkv_rope_frequencies(&c.rope, 16, false, f, scale);
    for (int i = 0; i < 8; i++) assert_true(fabs(f[i] / want[i] - 1) < 1e-5);
    for (int i = 0; i < 8; i++) assert_true(fabs(scale[i] - 1.13862944) < 1e-7);
    assert_int_equal(c.max_positions, 4096); /* as stated, which is more than 4 * 128 */
}

/* A Phi-3 of heads of 32, of which 24 turn, as published, with the keys of extra. */
#define SHORT "[1.0,1.05,1.1,1.15,1.2,1.25,1.3,1.35,1.4,1.45,1.5,1.55]"
#define LONG  "[1.1,1.5,2.0,3.0,4.5,6.0,8.0,11.0,16.0,23.0,32.0,64.0]"
#define PHI3                                                                                                 \
    "{\"architectures\":[\"Phi3ForCausalLM\"],\"model_type\":\"phi3\",\"rope_theta\":10000.0,"               \
    "\"max_position_embeddings\":2048,"
#define LISTS    "\"short_factor\":" SHORT ",\"long_factor\":" LONG
#define LONGROPE "\"rope_scaling\":{\"type\":\"longrope\"," LISTS "}"
#define PARTIAL  "\"partial_rotary_factor\":0.75"
#define TRAINED  "\"original_max_position_embeddings\":512"

/* HF transformers 5.24's, in float32. */
static void is_longrope_of_hf(const char *patch, double attention_factor)
{
    static const double want[2][12] = {
        {1, 0.442056119, 0.195857689, 0.0869565234, 0.0386799015, 0.0172354784, 0.0076923077, 0.00343821454,
         0.00153888157, 0.000689655193, 0.000309439318, 0.000138995762},
        {0.909090877, 0.309439272, 0.107721724, 0.0333333351, 0.0103146406, 0.0035907249, 0.00124999997,
         0.000421962701, 0.000134652146, 4.34782596e-05, 1.45049671e-05, 3.36630342e-06}};
    const fkv_config c = accepted(patch);
    float f[2 * 16], scale[2 * 16];
    assert_int_equal(c.rope.type, FKV_ROPE_LONGROPE);
    assert_int_equal(fkv_config_n_ropes(&c), 2);
    fkv_config_rope_frequencies(&c, f, scale);
    for (int i = 0; i < 2 * 16; i++) {
        const bool turns = i % 16 < 12;
        if (turns) assert_true(fabs(f[i] / want[i / 16][i % 16] - 1) < 1e-6);
        if (turns) assert_true(fabs(scale[i] / attention_factor - 1) < 1e-6);
        if (!turns) assert_true(f[i] == 0 && scale[i] == 1);
    }
    assert_int_equal(fkv_config_record_rope(&c, 500, 12), 0);
    assert_int_equal(fkv_config_record_rope(&c, 500, 13), 1);
    assert_int_equal(fkv_config_record_rope(&c, 512, 0), 0);
    assert_int_equal(fkv_config_record_rope(&c, 513, 0), 1);
}

static void test_longrope_in_every_spelling(void **state)
{
    (void)state;
    const double factor = 1.1055415967851334; /* 2048 over 512 */
    is_longrope_of_hf(PHI3 PARTIAL "," TRAINED "," LONGROPE "}", factor);
    is_longrope_of_hf(PHI3 PARTIAL "," TRAINED ",\"rope_scaling\":{\"type\":\"su\"," LISTS "}}", factor);
    is_longrope_of_hf(PHI3 PARTIAL "," TRAINED ",\"rope_scaling\":{\"type\":\"yarn\"," LISTS "}}", factor);
    is_longrope_of_hf(PHI3 "\"rope_scaling\":{\"type\":\"su\",\"rope_type\":\"longrope\"," PARTIAL "," TRAINED
                           "," LISTS "}}",
                      factor);
    is_longrope_of_hf(PHI3 TRAINED ",\"rope_scaling\":\"drop\",\"rope_theta\":\"drop\",\"rope_parameters\":"
                                   "{\"rope_type\":\"longrope\",\"rope_theta\":10000.0," PARTIAL "," TRAINED
                                   "," LISTS "}}",
                      factor);
    is_longrope_of_hf(PHI3 PARTIAL "," TRAINED ",\"rope_scaling\":{\"type\":\"su\",\"factor\":16.0," LISTS
                                   "}}",
                      sqrt(1 + log(16) / log(512)));
    is_longrope_of_hf(PHI3 PARTIAL "," TRAINED
                                   ",\"rope_scaling\":{\"type\":\"su\",\"attention_factor\":1.5," LISTS "}}",
                      1.5);
    /* HF's default, which is more than these positions */
    const fkv_config c = accepted(PHI3 PARTIAL "," LONGROPE "}");
    assert_int_equal(c.rope.original_positions, 4096);
    assert_true(c.rope.attention_factor == 1);
}

static void test_partial_rotary(void **state)
{
    (void)state;
    float f[16], scale[16];
    fkv_config c = accepted(PHI3 "\"partial_rotary_factor\":0.5}");
    fkv_config_rope_frequencies(&c, f, scale);
    assert_int_equal(fkv_config_n_ropes(&c), 1);
    for (int i = 0; i < 16; i++) assert_float_equal(f[i], i < 8 ? pow(10000, -i / 8.0) : 0, 1e-7);
    c = accepted(PHI3 "\"rope_scaling\":{\"type\":\"default\",\"partial_rotary_factor\":0.7}}");
    assert_int_equal(c.rope.rotary_dim, 22); /* int(22.4) */
    assert_int_equal(accepted(PHI3 "\"partial_rotary_factor\":1.0}").rope.rotary_dim, 32);
    refused(PHI3 "\"partial_rotary_factor\":0.72}", "partial_rotary_factor", "even"); /* 23 */
    refused(PHI3 "\"partial_rotary_factor\":0.01}", "partial_rotary_factor", "even");
    refused(PHI3 "\"partial_rotary_factor\":1.5}", "partial_rotary_factor", "outside");
    refused(PHI3 PARTIAL ",\"rope_scaling\":{\"type\":\"default\",\"partial_rotary_factor\":0.5}}",
            "partial_rotary_factor", "twice");
}

static void test_longrope_is_checked(void **state)
{
    (void)state;
#define BAD(list) PHI3 PARTIAL ",\"rope_scaling\":{\"type\":\"su\",\"short_factor\":" SHORT "," list "}}"
    refused(BAD("\"factor\":2.0"), "long_factor", "missing");
    refused(BAD("\"long_factor\":null"), "long_factor", "missing");
    refused(BAD("\"long_factor\":2.0"), "long_factor", "list of 12 numbers");
    refused(BAD("\"long_factor\":[1,2,3,4,5,6,7,8,9,10,11]"), "long_factor", "list of 12 numbers");
    refused(BAD("\"long_factor\":[1,2,3,4,5,6,7,8,9,10,11,12,13]"), "long_factor", "list of 12 numbers");
    refused(BAD("\"long_factor\":[1,2,3,4,5,6,7,8,9,10,11,0]"), "long_factor", "number 12");
    refused(BAD("\"long_factor\":[1,-2,3,4,5,6,7,8,9,10,11,12]"), "long_factor", "number 2");
    refused(BAD("\"long_factor\":[1,2,1e300,4,5,6,7,8,9,10,11,12]"), "long_factor", "number 3");
    refused(BAD("\"long_factor\":[1,2,3,\"4\",5,6,7,8,9,10,11,12]"), "long_factor", "number 4");
    refused(BAD("\"attention_factor\":-1.0,\"long_factor\":" LONG), "attention_factor", "outside");
#undef BAD
    refused(PHI3 LONGROPE "}", "short_factor", "list of 16 numbers"); /* all dimensions turn */
    refused(PHI3 PARTIAL ",\"original_max_position_embeddings\":1," LONGROPE "}",
            "original_max_position_embeddings", "outside");
    refused(PHI3 PARTIAL "," TRAINED ",\"rope_scaling\":{\"type\":\"su\","
                         "\"original_max_position_embeddings\":1024," LISTS "}}",
            "original_max_position_embeddings", "twice");
    refused(PHI3 "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}}", "rope_scaling", "support");
    refused(PHI3 "\"rope_scaling\":{\"type\":\"longrope\",\"rope_type\":\"default\"}}", "rope_scaling",
            "disagree");
}

#define GEMMA3                                                                                               \
    "{\"architectures\":[\"Gemma3ForCausalLM\"],\"model_type\":\"gemma3_text\",\"head_dim\":256,"            \
    "\"hidden_act\":\"drop\",\"rope_theta\":\"drop\",\"sliding_window\":512"
#define FULL    "\"full_attention\":{\"rope_type\":\"linear\",\"factor\":8.0,\"rope_theta\":500000.0}"
#define SLIDING "\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":20000.0}"

static void gemma3_is(const char *patch, double theta, double factor, double local_theta)
{
    const fkv_config c = accepted(patch);
    float f[2 * 128], scale[2 * 128];
    assert_int_equal(fkv_config_n_ropes(&c), 2);
    fkv_config_rope_frequencies(&c, f, scale);
    for (int i = 0; i < 128; i++) {
        assert_true(fabs(f[i] * factor * pow(theta, i / 128.0) - 1) < 1e-6);
        assert_true(fabs(f[128 + i] * pow(local_theta, i / 128.0) - 1) < 1e-6);
        assert_true(scale[i] == 1 && scale[128 + i] == 1);
    }
    fkv_attention_spec *specs = fkv_config_layers(&c);
    assert_non_null(specs);
    assert_int_equal(specs[0].rope, 1);
    assert_int_equal(specs[2].rope, 0);
    free(specs);
}

static void test_a_rope_for_each_type_of_layer(void **state)
{
    (void)state;
    /* As the 4B's text_config: what HF's class means is left out. */
    const fkv_config small = accepted(
        GEMMA3 ",\"vocab_size\":\"drop\",\"max_position_embeddings\":\"drop\",\"num_attention_heads\":"
               "\"drop\",\"num_key_value_heads\":\"drop\"}");
    assert_int_equal(small.vocab, 262208);
    assert_int_equal(small.max_positions, 131072);
    assert_int_equal(small.n_heads, 8);
    assert_int_equal(small.n_kv_heads, 4);
#define TYPES ",\"layer_types\":[\"sliding_attention\",\"sliding_attention\",\"full_attention\"]"
    gemma3_is(GEMMA3 TYPES "}", 1e6, 1, 1e4); /* HF's defaults */
    gemma3_is(GEMMA3 TYPES ",\"rope_parameters\":{" FULL "," SLIDING "}}", 500000, 8, 20000);
    gemma3_is(GEMMA3 TYPES ",\"rope_parameters\":{" SLIDING "}}", 1e6, 1, 20000);
    gemma3_is(GEMMA3 TYPES ",\"rope_parameters\":{\"sliding_attention\":null," FULL "}}", 500000, 8, 1e4);
    gemma3_is(GEMMA3 TYPES ",\"rope_parameters\":{},\"rope_local_base_freq\":7000.0}", 1e6, 1, 7000);
    gemma3_is(GEMMA3 TYPES ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8.0}}", 1e6, 8, 1e4);
    /* HF looks at neither of these */
    refused(GEMMA3 TYPES ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":8.0}}", "rope_parameters",
            "rope_type is not supported");
    refused(GEMMA3 TYPES ",\"rope_parameters\":{" FULL ",\"chunked_attention\":{}}}", "rope_parameters",
            "chunked_attention is not supported");
    refused(GEMMA3 TYPES ",\"rope_parameters\":{\"full_attention\":5}}", "full_attention", "object");
    refused(GEMMA3 TYPES ",\"rope_parameters\":{" FULL "," SLIDING "},\"rope_local_base_freq\":7000.0}",
            "rope_local_base_freq", "twice");
    refused(GEMMA3 TYPES ",\"rope_parameters\":{" FULL "},\"rope_scaling\":{\"rope_type\":\"default\"}}",
            "rope_scaling", "contradicts");
    refused(GEMMA3 TYPES ",\"rope_parameters\":{\"sliding_attention\":{\"partial_rotary_factor\":0.5}}}",
            "partial_rotary_factor", "support");
#undef TYPES
}

static void test_rope_frequencies_of_default(void **state)
{
    (void)state;
    float f[4], scale[4];
    const fkv_config c = {.head_dim = 8, .rope = {.theta = 10000}};
    fkv_rope_frequencies(&c.rope, c.head_dim, false, f, scale);
    for (int i = 0; i < 4; i++) {
        assert_float_equal(f[i], pow(10, -i), 1e-7 * pow(10, -i));
        assert_true(scale[i] == 1);
    }
}

static int make_dir(void **state)
{
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/fkv-config-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    drop("config.json");
    drop("generation_config.json");
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_old_form),
        cmocka_unit_test(test_llama3_in_every_spelling),
        cmocka_unit_test(test_values_that_are_fine),
        cmocka_unit_test(test_other_arithmetic_is_refused_by_name),
        cmocka_unit_test(test_contradictions_are_refused),
        cmocka_unit_test(test_dimensions_are_checked),
        cmocka_unit_test(test_stop_tokens),
        cmocka_unit_test(test_impossible_numbers),
        cmocka_unit_test(test_overgrown_files),
        cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_needle_tiny),
        cmocka_unit_test(test_rope_frequencies_of_llama3),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_defaults_of_families),
        cmocka_unit_test(test_positions_are_those_that_the_model_reaches),
        cmocka_unit_test(test_published_configs),
        cmocka_unit_test(test_rope_frequencies_of_yarn),
        cmocka_unit_test(test_rope_frequencies_of_default),
        cmocka_unit_test(test_longrope_in_every_spelling),
        cmocka_unit_test(test_partial_rotary),
        cmocka_unit_test(test_longrope_is_checked),
        cmocka_unit_test(test_a_rope_for_each_type_of_layer),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
