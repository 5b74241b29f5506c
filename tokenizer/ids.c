/* A growable array of ids: see ids.h. */
#include "tokenizer/ids.h"

#include <stdlib.h>

#include "runner/base/mem.h"

fkv_status fkv_ids_push(fkv_ids *ids, int32_t id, fkv_err *err)
{
    if (ids->len == ids->cap) {
        const size_t cap = ids->cap ? ids->cap * 2 : 256;
        int32_t *data = fkv_realloc(ids->data, cap, sizeof *data);
        if (!data) return fkv_fail_memory(err);
        ids->data = data;
        ids->cap = cap;
    }
    ids->data[ids->len++] = id;
    return FKV_OK;
}

void fkv_ids_free(fkv_ids *ids)
{
    free(ids->data);
    *ids = (fkv_ids){0};
}
