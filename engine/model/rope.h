/* Rotary position embeddings: which rotation a model has, from its config.json, and its
 * frequencies as HF transformers computes them.
 *
 * Pure but for what is read; nothing is owned. Not for the rotation itself: the kernels'.
 */
#ifndef FKV_ENGINE_ROPE_H
#define FKV_ENGINE_ROPE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "runner/base/status.h"

/* DYNAMIC is not here: within max_position_embeddings, beyond which no record goes, it is DEFAULT.
 *
 * LONGROPE (arXiv 2402.13753; Phi-3 and Phi-4) has two lists of factors, one for texts within the
 * positions of training and one for longer ones. Which one a record uses is decided once, by its prompt
 * and its limit of new tokens (fkv_rope_is_long). HF goes by the tokens that there are so far: where an
 * answer crosses the positions of training it changes the list, computes the whole cache anew, and then
 * goes on by another rotation than it began with. Here kept K and V are compressed and the prompt is gone
 * by then; and an answer shall not depend on how many of its tokens are made in one go. Records that stay
 * on one side have HF's answers; those that cross are long from their first token on, as HF would have them
 * with the long list alone. */
typedef enum fkv_rope_type {
    FKV_ROPE_DEFAULT,
    FKV_ROPE_LLAMA3,
    FKV_ROPE_LINEAR,
    FKV_ROPE_YARN,
    FKV_ROPE_LONGROPE
} fkv_rope_type;

enum { FKV_MAX_ROTARY = 256 }; /* dimensions of a head */

typedef struct fkv_rope {
    fkv_rope_type type;
    double theta;
    double factor;               /* not DEFAULT, LONGROPE */
    int original_positions;      /* LLAMA3, YARN, LONGROPE: those that the model was trained on first */
    double low_freq, high_freq;  /* LLAMA3 */
    double beta_fast, beta_slow; /* YARN: turns within original_positions from which on, up to which */
    bool truncate;               /* YARN: the borders are whole dimensions */
    double attention_factor;     /* of cosines and sines; 0: 1 */
    int rotary_dim; /* dimensions of a head, from the first on, that turn: a half with the other; 0: all */
    float short_factor[FKV_MAX_ROTARY / 2], long_factor[FKV_MAX_ROTARY / 2]; /* LONGROPE: [rotary_dim / 2] */
} fkv_rope;

/* What a config's model and family say about the rope to be read. */
typedef struct fkv_rope_place {
    const char *path;       /* of the file, for errors */
    int positions;          /* the config's; taken where the rotation does not say those of training */
    int head_dim;           /* at most FKV_MAX_ROTARY */
    bool phi;               /* as HF's Phi-3: longrope or none, partial_rotary_factor is read */
    const char *layer_type; /* of rope_parameters, which hold an object for each; NULL: one for all layers */
    const char *theta_key;  /* beside those */
    double theta;           /* where nothing says it */
} fkv_rope_place;

/* The rope of a config, o: rope_scaling (old form; of full_attention alone) or rope_parameters (new form).
 * What would rotate otherwise is refused by its name. */
fkv_status fkv_rope_read(const json_t *o, const fkv_rope_place *place, fkv_rope *rope, fkv_err *err);

/* Dimensions of a head that turn. */
int fkv_rope_rotary_dim(const fkv_rope *rope, int head_dim);
/* Whether a record uses the long list: its prompt and all the new tokens that it may have don't fit the
 * positions of training. false where there is no such list. */
bool fkv_rope_is_long(const fkv_rope *rope, int64_t n_prompt, int64_t max_new);
/* A table's inverse frequencies and what its cosines and sines are multiplied by, both [head_dim / 2]:
 * theta^(-2i/rotary_dim), scaled by the type. Pairs behind rotary_dim / 2 have 0 and 1: they don't turn. */
void fkv_rope_frequencies(const fkv_rope *rope, int head_dim, bool is_long, float *inv_freq, float *scale);

#endif
