/* What a model folder holds: which of its files are the weights, and what it is where none of them can be
 * taken. It looks at names alone, in the folder itself.
 *
 * HF transformers 5 takes model.safetensors, else what model.safetensors.index.json names, and says nothing
 * of other files: two sources of weights in one folder are refused here, as nobody knows which one is meant.
 * Files of other programs beside them (consolidated.safetensors, Mistral's own; pytorch_model.bin; GGUF) are
 * nobody's mistake and not looked at. Owns nothing. Not for what is in the files (safetensors.h), nor for
 * tokenizers. */
#ifndef FKV_ENGINE_MODEL_FILES_H
#define FKV_ENGINE_MODEL_FILES_H

#include <stdbool.h>
#include <stddef.h>

#include "runner/base/status.h"

/* Refuses what is no folder of HF's layout by what it is: GGUF, an adapter, a checkpoint in another program's
 * format. FKV_OK where a config.json is there, or nothing that is known. */
fkv_status fkv_model_files_check(const char *dir, fkv_err *err);

/* The file that says where the weights are: *is_index tells whether it is an index. *path is malloc'd, NULL
 * after a failure. Where there is neither, the error says what else is there and what to do. */
fkv_status fkv_model_files_weights(const char *dir, char **path, bool *is_index, fkv_err *err);

/* Refuses a folder that has weights beside the source: other safetensors files than the n names, which are
 * sorted, or an adapter. A name that is not there is for those to tell who open it. */
fkv_status fkv_model_files_alone(const char *dir, const char *source, const char *const *names, size_t n,
                                 fkv_err *err);

#endif
