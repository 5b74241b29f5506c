/* The arena: see template_arena.h. */
#include "tokenizer/template_arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/mem.h"

enum { FIRST_BYTES = 16 << 10, LARGEST_BYTES = 1 << 20 };

typedef struct fkv_tarena_block {
    struct fkv_tarena_block *before;
    size_t cap, used;
    alignas(max_align_t) unsigned char bytes[];
} fkv_tarena_block;

/* A block with room for bytes; blocks grow, so that small renderings take little. */
static fkv_tarena_block *add_block(fkv_tarena *a, size_t bytes)
{
    size_t cap = a->last ? a->last->cap * 2 : FIRST_BYTES, total;
    if (cap > LARGEST_BYTES) cap = LARGEST_BYTES;
    if (cap < bytes) cap = bytes;
    if (!fkv_add_size(sizeof(fkv_tarena_block), cap, &total)) return NULL;
    fkv_tarena_block *b = malloc(total);
    if (!b) return NULL;
    b->before = a->last;
    b->cap = cap;
    b->used = 0;
    a->last = b;
    return b;
}

bool fkv_tarena_claim(fkv_tarena *a, size_t bytes)
{
    if (bytes > a->limit - a->used) {
        a->refused = true;
        return false;
    }
    a->used += bytes;
    return true;
}

void *fkv_tarena_take(fkv_tarena *a, size_t n, size_t size)
{
    size_t bytes;
    if (!fkv_mul_size(n ? n : 1, size, &bytes) || bytes > SIZE_MAX - alignof(max_align_t)) {
        a->refused = true;
        return NULL;
    }
    bytes = (bytes + alignof(max_align_t) - 1) / alignof(max_align_t) * alignof(max_align_t);
    if (!fkv_tarena_claim(a, bytes)) return NULL;
    fkv_tarena_block *b = a->last;
    if (!b || b->cap - b->used < bytes) b = add_block(a, bytes);
    if (!b) return NULL;
    void *p = b->bytes + b->used;
    b->used += bytes;
    return memset(p, 0, bytes);
}

void fkv_tarena_empty(fkv_tarena *a, size_t limit)
{
    while (a->last && (a->last->before || a->last->cap > FIRST_BYTES)) {
        fkv_tarena_block *b = a->last;
        a->last = b->before;
        free(b);
    }
    if (a->last) a->last->used = 0;
    a->used = 0;
    a->limit = limit;
    a->refused = false;
}

void fkv_tarena_free(fkv_tarena *a)
{
    while (a->last) {
        fkv_tarena_block *b = a->last;
        a->last = b->before;
        free(b);
    }
    *a = (fkv_tarena){0};
}
