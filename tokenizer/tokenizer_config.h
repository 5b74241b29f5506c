/* tokenizer_config.json, special_tokens_map.json and added_tokens.json beside tokenizer.json: what HF
 * transformers 5 takes from them for a BPE tokenizer. Each contradiction is logged. Owns nothing beyond what
 * it gives. Not for: chat templates. */
#ifndef FKV_TOKENIZER_TOKENIZER_CONFIG_H
#define FKV_TOKENIZER_TOKENIZER_CONFIG_H

#include <jansson.h>
#include <stdbool.h>

#include "runner/base/status.h"

/* Reads what is in dir. root, the parsed tokenizer.json, is changed where a tokenizer class has
 * steps of its own. *more are added tokens beside the file's, for fkv_added_open; the caller's,
 * NULL after a failure. */
fkv_status fkv_tokenizer_config_read(const char *dir, json_t *root, json_t **more, fkv_err *err);

#endif
