/* Tokens by id and by string: see vocab.h. An fkv_vocab owns copies of the
 * strings. */
#include "tokenizer/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/hash.h"
#include "runner/base/mem.h"

/* The slot that holds the string, or the empty one where it would go. */
static size_t slot_of(const fkv_vocab *v, const char *string, size_t n, uint32_t *tag)
{
    const uint64_t hash = fkv_hash(string, n, 0);
    size_t i = (size_t)hash & (v->n_slots - 1);
    *tag = (uint32_t)(hash >> 32);
    for (; v->slots[i].entry; i = (i + 1) & (v->n_slots - 1)) {
        if (v->slots[i].tag != *tag) continue;
        const fkv_vocab_entry *e = &v->entries[v->slots[i].entry - 1];
        if (e->len == n && !memcmp(v->bytes.data + e->at, string, n)) break;
    }
    return i;
}

static fkv_status grow_slots(fkv_vocab *v, fkv_err *err)
{
    const size_t n_slots = v->n_slots ? v->n_slots * 2 : 1024;
    fkv_vocab_slot *slots = fkv_calloc(n_slots, sizeof *slots);
    if (!slots) return fkv_fail_memory(err);
    free(v->slots);
    v->slots = slots;
    v->n_slots = n_slots;
    for (size_t e = 0; e < v->n; e++) {
        uint32_t tag;
        const size_t i = slot_of(v, v->bytes.data + v->entries[e].at, v->entries[e].len, &tag);
        slots[i] = (fkv_vocab_slot){.tag = tag, .entry = (uint32_t)e + 1};
    }
    return FKV_OK;
}

static fkv_status reserve(fkv_vocab *v, int32_t id, fkv_err *err)
{
    if (v->n == v->cap) {
        const size_t cap = v->cap ? v->cap * 2 : 512;
        fkv_vocab_entry *entries = fkv_realloc(v->entries, cap, sizeof *entries);
        if (!entries) return fkv_fail_memory(err);
        v->entries = entries;
        v->cap = cap;
    }
    if (id >= v->id_cap) {
        /* Zeroed pages come as they are used: a single far id takes no memory. */
        int32_t cap = v->id_cap ? v->id_cap : 1024;
        while (cap <= id) cap *= 2;
        int32_t *entry_of = fkv_calloc((size_t)cap, sizeof *entry_of);
        if (!entry_of) return fkv_fail_memory(err);
        if (v->id_cap) memcpy(entry_of, v->entry_of, (size_t)v->id_cap * sizeof *entry_of);
        free(v->entry_of);
        v->entry_of = entry_of;
        v->id_cap = cap;
    }
    if ((v->n + 1) * 2 > v->n_slots) return grow_slots(v, err);
    return FKV_OK;
}

fkv_status fkv_vocab_add(fkv_vocab *v, const char *string, size_t n, int32_t id, fkv_vocab_clash *clash,
                         fkv_err *err)
{
    if (id < 0 || id > FKV_ID_MAX) return fkv_fail(err, FKV_E_INPUT, "the id %d is out of range", (int)id);
    if (v->bytes.len > UINT32_MAX - n - 1 || v->n >= INT32_MAX)
        return fkv_fail(err, FKV_E_INPUT, "the vocabulary is too large");
    fkv_status st = reserve(v, id, err);
    if (st) return st;
    uint32_t tag;
    const size_t slot = slot_of(v, string, n, &tag);
    *clash = v->slots[slot].entry ? FKV_VOCAB_STRING_TAKEN
             : v->entry_of[id]    ? FKV_VOCAB_ID_TAKEN
                                  : FKV_VOCAB_NEW;
    if (*clash != FKV_VOCAB_NEW) return FKV_OK;
    const uint32_t at = (uint32_t)v->bytes.len;
    if ((st = fkv_buf_append(&v->bytes, string, n, err))) return st;
    v->entries[v->n] = (fkv_vocab_entry){.at = at, .len = (uint32_t)n, .id = id};
    v->slots[slot] = (fkv_vocab_slot){.tag = tag, .entry = (uint32_t)v->n + 1};
    v->entry_of[id] = (int32_t)++v->n;
    if (id >= v->n_ids) v->n_ids = id + 1;
    if (n > v->max_len) v->max_len = n;
    return FKV_OK;
}

void fkv_vocab_free(fkv_vocab *v)
{
    fkv_buf_free(&v->bytes);
    free(v->entries);
    free(v->slots);
    free(v->entry_of);
    *v = (fkv_vocab){0};
}

int32_t fkv_vocab_find(const fkv_vocab *v, const char *string, size_t n)
{
    if (!v->n_slots) return -1;
    uint32_t tag;
    const uint32_t e = v->slots[slot_of(v, string, n, &tag)].entry;
    return e ? v->entries[e - 1].id : -1;
}

const char *fkv_vocab_string(const fkv_vocab *v, int32_t id, size_t *n)
{
    if (id < 0 || id >= v->n_ids || !v->entry_of[id]) return NULL;
    const fkv_vocab_entry *e = &v->entries[v->entry_of[id] - 1];
    *n = e->len;
    return v->bytes.data + e->at;
}
