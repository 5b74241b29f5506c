/* Token ids, a growable array of them. The holder owns data, after a failed call
 * too: it is then as it was before. Not for: what an id means (vocab.h). */
#ifndef FKV_TOKENIZER_IDS_H
#define FKV_TOKENIZER_IDS_H

#include <stddef.h>
#include <stdint.h>

#include "runner/base/status.h"

/* Zero-initialise. */
typedef struct fkv_ids {
    int32_t *data;
    size_t len, cap;
} fkv_ids;

fkv_status fkv_ids_push(fkv_ids *ids, int32_t id, fkv_err *err);
fkv_status fkv_ids_append(fkv_ids *ids, const int32_t *more, size_t n, fkv_err *err);
void fkv_ids_free(fkv_ids *ids);

/* The place of the first id that a model of n ids is without; ids->len: none is. */
size_t fkv_ids_beyond(const fkv_ids *ids, int32_t n);

#endif
