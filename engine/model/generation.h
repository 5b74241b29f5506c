/* What a model's generation_config.json says about choosing tokens, as HF transformers applies it
 * without being asked.
 *
 * A generation owns nothing; after a failed read it is as it was. Not for the ids that end an answer
 * (config.h), nor for how much chance there is in choosing, which is the job's to say. */
#ifndef FKV_ENGINE_GENERATION_H
#define FKV_ENGINE_GENERATION_H

#include <stdint.h>

#include "runner/base/status.h"

enum { FKV_MAX_SUPPRESSED = 1024 };

typedef struct fkv_generation {
    double repetition_penalty; /* 1: none */
    int64_t min_new;           /* tokens before an id that ends the answer */
    int32_t suppressed[FKV_MAX_SUPPRESSED];
    int n_suppressed;
    char untaken[160]; /* what it says of chance, such as "do_sample true, top_p 0.8"; may be empty */
} fkv_generation;

/* The file of dir, if there is one. vocab: ids of the model. What would choose other tokens and is not
 * supported is FKV_E_INPUT with its name, never ignored. */
fkv_status fkv_generation_read(const char *dir, int vocab, fkv_generation *generation, fkv_err *err);

#endif
