/* Rotary position embeddings: which rotation a model has, from its config.json, and its
 * frequencies as HF transformers computes them.
 *
 * Pure but for what is read; nothing is owned. Not for the rotation itself: the kernels'.
 */
#ifndef FKV_ENGINE_ROPE_H
#define FKV_ENGINE_ROPE_H

#include <jansson.h>
#include <stdbool.h>

#include "runner/base/status.h"

/* DYNAMIC is not here: within max_position_embeddings, beyond which no record goes, it is DEFAULT. */
typedef enum fkv_rope_type {
    FKV_ROPE_DEFAULT,
    FKV_ROPE_LLAMA3,
    FKV_ROPE_LINEAR,
    FKV_ROPE_YARN
} fkv_rope_type;

typedef struct fkv_rope {
    fkv_rope_type type;
    double theta;
    double factor;               /* not DEFAULT */
    int original_positions;      /* LLAMA3 and YARN: those that the model was trained on first */
    double low_freq, high_freq;  /* LLAMA3 */
    double beta_fast, beta_slow; /* YARN: turns within original_positions from which on, up to which */
    bool truncate;               /* YARN: the borders are whole dimensions */
    double attention_factor;     /* YARN: of cosines and sines, so its square of scores; 0: 1 */
} fkv_rope;

/* rope_theta, rope_scaling (old form) or rope_parameters (new form) of a config, o, read from path.
 * What would rotate otherwise is refused by its name. positions: the config's; taken where the
 * rotation needs those of training and does not say them. */
fkv_status fkv_rope_read(const json_t *o, const char *path, int positions, fkv_rope *rope, fkv_err *err);

/* Inverse frequencies, [head_dim / 2]: theta^(-2i/head_dim), scaled by the type. */
void fkv_rope_frequencies(const fkv_rope *rope, int head_dim, float *inv_freq);
/* What the rotation makes of every score. */
double fkv_rope_score_factor(const fkv_rope *rope);

#endif
