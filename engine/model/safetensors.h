/* safetensors files of a model folder, mapped and validated.
 *
 * Every tensor's offsets, shape and dtype are checked against the file before
 * anything is used: in bounds, no overlap, no hole, no overflow, size = shape x
 * dtype. Dtypes that the format knows and we do not compute with are
 * FKV_ST_OTHER: such a tensor is only refused when it is asked for.
 *
 * A file that another process cuts short while it is mapped is not guarded
 * against: reading a page that is gone ends the process (SIGBUS).
 *
 * The mappings are owned until close; a failed open leaves NULL and none of them. Not for which tensors a
 * model has (tensors.h), nor for converting their numbers (backend.h: weight_load).
 */
#ifndef FKV_ENGINE_SAFETENSORS_H
#define FKV_ENGINE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runner/base/status.h"

typedef enum fkv_st_dtype {
    FKV_ST_BF16,
    FKV_ST_F16,
    FKV_ST_F32,
    FKV_ST_F8_E4M3, /* to be multiplied by scales */
    FKV_ST_OTHER
} fkv_st_dtype;

/* What the numbers of a matrix are to be multiplied by, one for each block of [block_rows, block_cols]; the
 * last ones may be smaller. That of row i and column j is element (row0 + i) / block_rows * stride +
 * j / block_cols of data, which need not be aligned. */
typedef struct fkv_st_scales {
    const void *data;   /* NULL: none */
    fkv_st_dtype dtype; /* BF16, F16 or F32 */
    int64_t block_rows, block_cols, stride;
    int64_t row0; /* of the matrix in the files, where the tensor is a part of one */
} fkv_st_scales;

typedef struct fkv_st_tensor {
    const char *name;
    fkv_st_dtype dtype;
    const char *dtype_name; /* as the file says it */
    int n_dims;
    int64_t shape[8];
    const void *data; /* in the mapping; not necessarily aligned */
    size_t n_bytes;
    const char *file;     /* path, for messages */
    fkv_st_scales scales; /* of an F8_E4M3; quant.h finds them */
} fkv_st_tensor;

typedef struct fkv_safetensors fkv_safetensors;

/* Opens dir/model.safetensors.index.json and the files that it names, or
 * dir/model.safetensors; other weights beside them are refused (model_files.h). The index must agree with the
 * files: each tensor in the file that it names, none in two files. */
fkv_status fkv_safetensors_open(const char *dir, fkv_safetensors **out, fkv_err *err);
/* Random weights instead of files, for benchmarks: every tensor of at most max_tensor
 * elements (a norm: max_vector) is there, whatever its name and shape. */
fkv_status fkv_safetensors_open_dummy(uint64_t seed, size_t max_tensor, size_t max_vector,
                                      fkv_safetensors **out, fkv_err *err);
void fkv_safetensors_close(fkv_safetensors *st);

/* Whether there is a tensor of that name; of any shape and dtype. Dummy weights have none that is not asked
 * for. */
bool fkv_safetensors_find(const fkv_safetensors *st, const char *name, fkv_st_tensor *out);

/* The tensor of that name with exactly these dimensions and dtype BF16, F16, F32 or F8_E4M3,
 * without its scales; anything else is FKV_E_INPUT naming file and tensor. What out points at
 * is borrowed until close. */
fkv_status fkv_safetensors_get(const fkv_safetensors *st, const char *name, const int64_t *shape, int n_dims,
                               fkv_st_tensor *out, fkv_err *err);

/* "2 x 3" */
void fkv_st_put_shape(char *out, size_t size, const int64_t *shape, int n_dims);

#endif
