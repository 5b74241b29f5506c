/* A growable array of ids: see ids.h. */
#include "tokenizer/ids.h"

#include <stdlib.h>

#include "runner/base/mem.h"

static fkv_status reserve(fkv_ids *ids, size_t n, fkv_err *err)
{
    size_t need, cap = ids->cap ? ids->cap : 256;
    if (!fkv_add_size(ids->len, n, &need) || need > SIZE_MAX / 2) return fkv_fail_memory(err);
    while (cap < need) cap *= 2;
    if (cap == ids->cap) return FKV_OK;
    int32_t *data = fkv_realloc(ids->data, cap, sizeof *data);
    if (!data) return fkv_fail_memory(err);
    ids->data = data;
    ids->cap = cap;
    return FKV_OK;
}

fkv_status fkv_ids_push(fkv_ids *ids, int32_t id, fkv_err *err)
{
    return fkv_ids_append(ids, &id, 1, err);
}

fkv_status fkv_ids_append(fkv_ids *ids, const int32_t *more, size_t n, fkv_err *err)
{
    fkv_status st = n > ids->cap - ids->len ? reserve(ids, n, err) : FKV_OK;
    if (st) return st;
    for (size_t i = 0; i < n; i++) ids->data[ids->len + i] = more[i];
    ids->len += n;
    return FKV_OK;
}

size_t fkv_ids_beyond(const fkv_ids *ids, int32_t n)
{
    size_t i = 0;
    while (i < ids->len && ids->data[i] < n) i++;
    return i;
}

void fkv_ids_free(fkv_ids *ids)
{
    free(ids->data);
    *ids = (fkv_ids){0};
}
