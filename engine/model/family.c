/* The families that can be run: see family.h. */
#include "engine/model/family.h"

#include <stdio.h>
#include <string.h>

static const char qkv[] = "model.layers.%d.self_attn.qkv_proj.weight",
                  gate_up[] = "model.layers.%d.mlp.gate_up_proj.weight";

#define GEMMA                                                                                                \
    .activation = FKV_ACTIVATION_GELU_TANH, .out_norms = true, .norms_from_one = true,                       \
    .scaled_embedding = true, .tied = true, .gemma = true, .must_say_kv_heads = true,                        \
    .default_window = 4096, .window_flag = FKV_WINDOW_WITHOUT, .window_layers = FKV_WINDOW_LAYERS_BUT,       \
    .default_head_dim = 256, .sizes.heads = 8, .sizes.kv_heads = 4,                                          \
    .names = {[FKV_TENSOR_ATTENTION_OUT_NORM] = "model.layers.%d.post_attention_layernorm.weight",           \
              [FKV_TENSOR_MLP_NORM] = "model.layers.%d.pre_feedforward_layernorm.weight"}

/* What Gemma 3's have in common beside that; the published 4B, 12B and 27B leave sizes out. */
#define GEMMA3                                                                                               \
    .qk_norm = true, .theta = 1000000, .local_theta = 10000, .full_every = 6, .sizes.vocab = 262208,         \
    .sizes.positions = 131072, GEMMA

static const fkv_family families[] = {
    {.architecture = "LlamaForCausalLM", .model_type = "llama"},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .must_say_kv_heads = true,
     .default_window = 4096,
     .window_flag = FKV_WINDOW_WITHOUT,
     .window_layers = FKV_WINDOW_LAYERS_ALL},
    {.architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .qkv_bias = true,
     .must_say_kv_heads = true,
     .default_window = 4096,
     .window_flag = FKV_WINDOW_IF_TRUE,
     .window_layers = FKV_WINDOW_LAYERS_FROM,
     .default_window_from = 28},
    {.architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .qk_norm = true,
     .must_say_kv_heads = true,
     .default_window = 4096,
     .window_flag = FKV_WINDOW_IF_TRUE,
     .window_layers = FKV_WINDOW_LAYERS_FROM,
     .default_window_from = 28,
     .default_head_dim = 128},
    /* The text model alone: images are no prompts here. */
    {.architecture = "Mistral3ForConditionalGeneration",
     .model_type = "mistral3",
     .inner = "text_config",
     .prefix = "language_model.",
     .must_say_kv_heads = true,
     .default_window = 4096,
     .window_flag = FKV_WINDOW_WITHOUT,
     .window_layers = FKV_WINDOW_LAYERS_ALL},
    {.architecture = "Phi3ForCausalLM",
     .model_type = "phi3",
     .phi_rope = true,
     .window_flag = FKV_WINDOW_WITHOUT,
     .window_layers = FKV_WINDOW_LAYERS_ALL,
     .names = {[FKV_TENSOR_Q] = qkv,
               [FKV_TENSOR_K] = qkv,
               [FKV_TENSOR_V] = qkv,
               [FKV_TENSOR_GATE] = gate_up,
               [FKV_TENSOR_UP] = gate_up}},
    {.architecture = "Gemma2ForCausalLM",
     .model_type = "gemma2",
     .default_attention_softcap = 50,
     .default_logit_softcap = 30,
     .full_every = 2,
     GEMMA},
    {.architecture = "Gemma3ForCausalLM", .model_type = "gemma3_text", GEMMA3},
    {.architecture = "Gemma3ForConditionalGeneration",
     .model_type = "gemma3",
     .inner = "text_config",
     .prefix = "language_model.",
     GEMMA3},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

const fkv_family *fkv_family_find(const char *architecture, const char *model_type)
{
    for (int i = 0; i < N_FAMILIES; i++) {
        const fkv_family *f = &families[i];
        if (model_type ? !strcmp(model_type, f->model_type)
                       : architecture && !strcmp(architecture, f->architecture))
            return f;
    }
    return NULL;
}

void fkv_family_names(bool model_types, char *out, size_t size)
{
    size_t n = 0;
    out[0] = '\0';
    for (int i = 0; i < N_FAMILIES && n < size; i++) {
        const char *name = model_types ? families[i].model_type : families[i].architecture;
        const char *between = i == 0 ? "" : i == N_FAMILIES - 1 ? " and " : ", ";
        const int k = snprintf(out + n, size - n, "%s%s", between, name);
        if (k > 0) n += (size_t)k;
    }
}
