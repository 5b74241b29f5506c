/* Merging and its word cache: see bpe.h. The tokenizer shares one fkv_bpe among
 * threads; all that changes is in the scratch, which its thread owns. The file
 * is read in bpe_load.c. */
#include "tokenizer/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/hash.h"
#include "runner/base/mem.h"
#include "tokenizer/bpe_internal.h"
#include "tokenizer/characters.h"

enum {
    CACHE_SLOTS = 1 << 15,
    KEY_MAX = 30, /* makes a slot one cache line */
    IDS_MAX = 8,
    SCAN_MAX = 24,            /* words of so many symbols are merged by scanning for the lowest rank */
    KEPT_SYMBOLS = 64 * 1024, /* memory for longer words is given back */
};

/* A word seen before; the hash picks the slot and a newer word replaces it. */
struct cached {
    uint8_t n_key; /* 0: empty */
    uint8_t n_ids;
    char key[KEY_MAX];
    int32_t ids[IDS_MAX];
};

/* A symbol of a long word: a doubly linked list over its array. */
struct symbol {
    int32_t id; /* -1: merged into the one before */
    int32_t prev, next;
};

/* A pair of neighbours that may be merged; at is its left symbol. */
struct candidate {
    int32_t rank, at, id;
};

struct fkv_bpe_scratch {
    struct cached *cache;
    struct symbol *symbols;
    size_t n_symbols; /* room */
    struct candidate *heap;
    size_t n_heap, heap_cap;
    fkv_buf spelling;
};

fkv_status fkv_bpe_scratch_new(fkv_bpe_scratch **out, fkv_err *err)
{
    fkv_bpe_scratch *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s) return fkv_fail_memory(err);
    s->cache = aligned_alloc(64, CACHE_SLOTS * sizeof *s->cache);
    if (!s->cache) {
        fkv_bpe_scratch_free(s);
        return fkv_fail_memory(err);
    }
    memset(s->cache, 0, CACHE_SLOTS * sizeof *s->cache);
    *out = s;
    return FKV_OK;
}

void fkv_bpe_scratch_free(fkv_bpe_scratch *s)
{
    if (!s) return;
    free(s->cache);
    free(s->symbols);
    free(s->heap);
    fkv_buf_free(&s->spelling);
    free(s);
}

/* Few symbols: every step takes the leftmost pair of lowest rank. */
static fkv_status merge_by_scan(const fkv_bpe *bpe, const char *word, size_t n, fkv_ids *ids, fkv_err *err)
{
    int32_t id[SCAN_MAX], rank[SCAN_MAX], made[SCAN_MAX]; /* rank[i], made[i]: of the pair (i, i + 1) */
    int m = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t b = bpe->byte_id[(unsigned char)word[i]];
        if (b >= 0) id[m++] = b;
    }
    for (int i = 0; i + 1 < m; i++) rank[i] = fkv_bpe_pair(bpe, id[i], id[i + 1], &made[i]);
    for (;;) {
        int best = -1;
        for (int i = 0; i + 1 < m; i++)
            if (rank[i] >= 0 && (best < 0 || rank[i] < rank[best])) best = i;
        if (best < 0) break;
        id[best] = made[best];
        const int behind = m - best - 2; /* symbols behind the pair */
        memmove(id + best + 1, id + best + 2, (size_t)behind * sizeof *id);
        if (behind > 0) {
            memmove(rank + best, rank + best + 1, (size_t)behind * sizeof *rank);
            memmove(made + best, made + best + 1, (size_t)behind * sizeof *made);
            rank[best] = fkv_bpe_pair(bpe, id[best], id[best + 1], &made[best]);
        }
        m--;
        if (best > 0) rank[best - 1] = fkv_bpe_pair(bpe, id[best - 1], id[best], &made[best - 1]);
    }
    fkv_status st = FKV_OK;
    for (int i = 0; !st && i < m; i++) st = fkv_ids_push(ids, id[i], err);
    return st;
}

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* Adds the pair that begins at symbol i, if it is one to merge. */
static fkv_status push_pair(const fkv_bpe *bpe, fkv_bpe_scratch *s, int32_t i, fkv_err *err)
{
    const int32_t j = s->symbols[i].next;
    if (j < 0) return FKV_OK;
    struct candidate c = {.at = i};
    c.rank = fkv_bpe_pair(bpe, s->symbols[i].id, s->symbols[j].id, &c.id);
    if (c.rank < 0) return FKV_OK;
    if (s->n_heap == s->heap_cap) {
        const size_t cap = s->heap_cap ? s->heap_cap * 2 : 256;
        struct candidate *heap = fkv_realloc(s->heap, cap, sizeof *heap);
        if (!heap) return fkv_fail_memory(err);
        s->heap = heap;
        s->heap_cap = cap;
    }
    size_t k = s->n_heap++;
    while (k > 0 && before(&c, &s->heap[(k - 1) / 2])) {
        s->heap[k] = s->heap[(k - 1) / 2];
        k = (k - 1) / 2;
    }
    s->heap[k] = c;
    return FKV_OK;
}

static struct candidate pop(fkv_bpe_scratch *s)
{
    const struct candidate top = s->heap[0], last = s->heap[--s->n_heap];
    size_t k = 0;
    for (size_t child; (child = 2 * k + 1) < s->n_heap; k = child) {
        if (child + 1 < s->n_heap && before(&s->heap[child + 1], &s->heap[child])) child++;
        if (!before(&s->heap[child], &last)) break;
        s->heap[k] = s->heap[child];
    }
    s->heap[k] = last;
    return top;
}

/* Merges c's pair unless one of its symbols has changed since it was pushed. */
static fkv_status merge_candidate(const fkv_bpe *bpe, fkv_bpe_scratch *s, const struct candidate *c,
                                  fkv_err *err)
{
    struct symbol *left = &s->symbols[c->at];
    int32_t made = -1;
    if (left->id < 0 || left->next < 0) return FKV_OK;
    struct symbol *right = &s->symbols[left->next];
    if (fkv_bpe_pair(bpe, left->id, right->id, &made) != c->rank) return FKV_OK;
    left->id = made;
    right->id = -1;
    left->next = right->next;
    if (left->next >= 0) s->symbols[left->next].prev = c->at;
    fkv_status st = push_pair(bpe, s, c->at, err);
    if (!st && left->prev >= 0) st = push_pair(bpe, s, left->prev, err);
    return st;
}

static fkv_status merge_by_heap(const fkv_bpe *bpe, fkv_bpe_scratch *s, const char *word, size_t n,
                                fkv_ids *ids, fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (n > s->n_symbols) {
        struct symbol *symbols = fkv_realloc(s->symbols, n, sizeof *symbols);
        if (!symbols) return fkv_fail_memory(err);
        s->symbols = symbols;
        s->n_symbols = n;
    }
    int32_t m = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t b = bpe->byte_id[(unsigned char)word[i]];
        if (b < 0) continue;
        s->symbols[m] = (struct symbol){.id = b, .prev = m - 1, .next = m + 1};
        m++;
    }
    if (m == 0) return FKV_OK;
    s->symbols[m - 1].next = -1;
    s->n_heap = 0;
    for (int32_t i = 0; !st && i < m; i++) st = push_pair(bpe, s, i, err);
    while (!st && s->n_heap) {
        const struct candidate c = pop(s);
        st = merge_candidate(bpe, s, &c, err);
    }
    for (int32_t i = 0; !st && i >= 0; i = s->symbols[i].next) st = fkv_ids_push(ids, s->symbols[i].id, err);
    if (s->n_symbols > KEPT_SYMBOLS) {
        free(s->symbols);
        free(s->heap);
        s->symbols = NULL;
        s->heap = NULL;
        s->n_symbols = s->n_heap = s->heap_cap = 0;
    }
    return st;
}

/* The id of a word that is a token as a whole, or -1. */
static fkv_status whole_word(const fkv_bpe *bpe, fkv_bpe_scratch *s, const char *word, size_t n, int32_t *id,
                             fkv_err *err)
{
    fkv_status st = FKV_OK;
    *id = -1;
    if (n > bpe->vocab->max_len) return FKV_OK;
    fkv_buf_clear(&s->spelling);
    for (size_t i = 0; !st && i < n; i++) {
        char c[4];
        const size_t len = fkv_utf8_put(fkv_alphabet_char((uint8_t)word[i]), c);
        st = fkv_buf_append(&s->spelling, c, len, err);
    }
    if (!st) *id = fkv_vocab_find(bpe->vocab, s->spelling.data, s->spelling.len);
    /* Added tokens are in the vocabulary too, but not in the model. */
    if (*id >= bpe->n_model_ids || (*id >= 0 && !bpe->in_model[*id])) *id = -1;
    return st;
}

static fkv_status merge(const fkv_bpe *bpe, fkv_bpe_scratch *s, const char *word, size_t n, fkv_ids *ids,
                        fkv_err *err)
{
    if (bpe->ignore_merges) {
        int32_t id;
        fkv_status st = whole_word(bpe, s, word, n, &id, err);
        if (st) return st;
        if (id >= 0) return fkv_ids_push(ids, id, err);
    }
    return n <= SCAN_MAX ? merge_by_scan(bpe, word, n, ids, err) : merge_by_heap(bpe, s, word, n, ids, err);
}

fkv_status fkv_bpe_word(const fkv_bpe *bpe, fkv_bpe_scratch *s, const char *word, size_t n, fkv_ids *ids,
                        fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (n > INT32_MAX) return fkv_fail(err, FKV_E_INPUT, "a word of %zu bytes is too long", n);
    if (n > KEY_MAX) return merge(bpe, s, word, n, ids, err);
    struct cached *c = &s->cache[fkv_hash(word, n, 0) & (CACHE_SLOTS - 1)];
    if (c->n_key == n && !memcmp(c->key, word, n)) {
        for (int i = 0; !st && i < c->n_ids; i++) st = fkv_ids_push(ids, c->ids[i], err);
        return st;
    }
    const size_t from = ids->len;
    if ((st = merge(bpe, s, word, n, ids, err))) return st;
    if (ids->len - from > IDS_MAX) return FKV_OK;
    c->n_key = (uint8_t)n;
    c->n_ids = (uint8_t)(ids->len - from);
    memcpy(c->key, word, n);
    if (c->n_ids) memcpy(c->ids, ids->data + from, c->n_ids * sizeof *c->ids);
    return FKV_OK;
}
