/* Model families: what tells the models of one architecture from another's, a row each.
 *
 * A new family is a row of the table in family.c (and, where a tensor has another name, that
 * name), plus what its arithmetic needs beyond layer_spec.h. Nothing is owned.
 * Not for sizes: those are the config's (config.h).
 */
#ifndef FKV_ENGINE_FAMILY_H
#define FKV_ENGINE_FAMILY_H

#include <stddef.h>

#include "engine/model/tensors.h"
#include "runner/base/layer_spec.h"

/* What use_sliding_window says about sliding_window. */
typedef enum fkv_window_flag {
    FKV_WINDOW_UNLESS_FALSE, /* there is none where it is false */
    FKV_WINDOW_IF_TRUE,      /* there is one where it is true alone */
    FKV_WINDOW_WITHOUT       /* nothing: the flag is not looked at */
} fkv_window_flag;

/* Which layers have a sliding window, where a config has one and no layer_types. */
typedef enum fkv_window_layers {
    FKV_WINDOW_LAYERS_NONE, /* a config with one is refused */
    FKV_WINDOW_LAYERS_ALL,
    FKV_WINDOW_LAYERS_FROM, /* those from max_window_layers on */
    FKV_WINDOW_LAYERS_BUT   /* all but every full_every-th */
} fkv_window_layers;

/* What a config means that leaves them out; 0: it may not. */
typedef struct fkv_family_sizes {
    int heads, kv_heads, vocab, positions;
} fkv_family_sizes;

typedef struct fkv_family {
    const char *architecture, *model_type; /* of config.json */
    const char *inner;  /* the object of config.json that describes the text model; NULL: all */
    const char *prefix; /* of all tensors' names; NULL: none */
    /* As in tensors.c; NULL: the name that stands there. Tensors of one name (one pointer) are one
     * tensor in the files, in which their rows follow each other in the order of fkv_tensor. */
    const char *names[FKV_N_TENSORS];
    /* Of a config that leaves them out; 0: it may not, or what its other keys give. */
    int default_window_from;                                 /* max_window_layers */
    double default_attention_softcap, default_logit_softcap; /* left out; null means none */
    fkv_activation activation;
    bool qkv_bias, qk_norm;
    bool out_norms;         /* what attention and the MLP give is normed before it is added */
    bool norms_from_one;    /* files hold norms less 1 */
    bool scaled_embedding;  /* by the root of hidden */
    bool tied;              /* of a config without tie_word_embeddings */
    bool gemma;             /* query_pre_attn_scalar and soft caps are read */
    bool phi_rope;          /* longrope or none, and partial_rotary_factor (rope.h); not with qk_norm */
    bool must_say_kv_heads; /* num_key_value_heads may not be left out, where sizes doesn't say it either */
    fkv_family_sizes sizes;
    int default_window; /* of a config without sliding_window; 0: none */
    fkv_window_flag window_flag;
    fkv_window_layers window_layers;
    double theta;       /* of a config without rope_theta; 0: 10000 */
    double local_theta; /* layers with a window have a rope of their own, with this theta where a config says
                           none; 0: they have not */
    int full_every;     /* FKV_WINDOW_LAYERS_BUT, without sliding_window_pattern */
    int default_head_dim; /* of a config without head_dim; 0: hidden_size over the heads */
} fkv_family;

/* By model_type where that is not NULL, else by architecture; NULL: there is none. */
const fkv_family *fkv_family_find(const char *architecture, const char *model_type);
/* "A, B and C" of all architectures, or of all model types. */
void fkv_family_names(bool model_types, char *out, size_t size);

#endif
