/* A model's shape: config.json and generation_config.json of the HF layout.
 *
 * A config owns nothing; after a failed read it is as it was. Not for a tensor's name or shape
 * (tensors.h), nor for what tells families apart (family.h). */
#ifndef FKV_ENGINE_CONFIG_H
#define FKV_ENGINE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/model/family.h"
#include "engine/model/quant.h"
#include "engine/model/rope.h"
#include "runner/base/layer_spec.h"
#include "runner/base/status.h"

enum { FKV_MAX_EOS = 32, FKV_MAX_LAYERS = 1024 };

typedef struct fkv_config {
    const fkv_family *family; /* NULL: the first one, Llama */
    int n_layers, n_heads, n_kv_heads, head_dim;
    int group; /* n_heads / n_kv_heads */
    int hidden, intermediate, vocab;
    int max_positions;
    float rms_eps;
    bool tied; /* the output projection is the embedding */
    fkv_rope rope;
    fkv_rope local_rope;                    /* of layers with a window, where the family has one of theirs */
    int window;                             /* of layers that have one; 0: no layer has */
    uint8_t windowed[FKV_MAX_LAYERS / 8];   /* a bit a layer: whether it has */
    double query_scalar;                    /* scores are divided by its root; 0: head_dim */
    float attention_softcap, logit_softcap; /* 0: none */
    int32_t eos[FKV_MAX_EOS];               /* generation_config.json's, else config.json's */
    int n_eos;
    fkv_quant quant;
} fkv_config;

/* Reads both files of dir. Old form (rope_theta, rope_scaling, torch_dtype) and
 * new (rope_parameters, dtype). What would change the arithmetic and is not
 * supported is refused by its name, never ignored. Every dimension is checked:
 * positive, below sane limits, heads divisible. */
fkv_status fkv_config_read(const char *dir, fkv_config *config, fkv_err *err);
/* The same for a family that is in no table: architectures and model_type are not looked at. */
fkv_status fkv_config_read_as(const fkv_family *family, const char *dir, fkv_config *config, fkv_err *err);

/* Never NULL. */
const fkv_family *fkv_config_family(const fkv_config *config);
/* Tokens that layer l's queries see; 0: all. */
int fkv_config_window(const fkv_config *config, int layer);
/* RoPE tables of the model, and their inverse frequencies and scales: [n_ropes][head_dim / 2] (rope.h). */
int fkv_config_n_ropes(const fkv_config *config);
void fkv_config_rope_frequencies(const fkv_config *config, float *inv_freq, float *scale);
/* How many tables behind its layers' own a record uses: 1 where it is long for its rope, else 0. */
int fkv_config_record_rope(const fkv_config *config, int64_t n_prompt, int64_t max_new);
/* How every layer attends: malloc'd [n_layers], the caller's to free; NULL without memory. */
fkv_attention_spec *fkv_config_layers(const fkv_config *config);

#endif
