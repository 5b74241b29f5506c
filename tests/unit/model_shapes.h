/* The shapes of Llama 3.1's models of 8B and 70B parameters, for tests of sizes and
 * times that need no weights. */
#ifndef FKV_TESTS_MODEL_SHAPES_H
#define FKV_TESTS_MODEL_SHAPES_H

#include "engine/model/config.h"

static const fkv_config shape_8b = {.n_layers = 32,
                                    .n_heads = 32,
                                    .n_kv_heads = 8,
                                    .head_dim = 128,
                                    .group = 4,
                                    .hidden = 4096,
                                    .intermediate = 14336,
                                    .vocab = 128256,
                                    .max_positions = 131072};

static const fkv_config shape_70b = {.n_layers = 80,
                                     .n_heads = 64,
                                     .n_kv_heads = 8,
                                     .head_dim = 128,
                                     .group = 8,
                                     .hidden = 8192,
                                     .intermediate = 28672,
                                     .vocab = 128256,
                                     .max_positions = 131072};

#endif
