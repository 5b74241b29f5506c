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
    FEW_MAX = 96,             /* bytes of words whose symbols are on the stack */
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
    int32_t *first; /* the symbols of a long word before they are merged */
    size_t n_first; /* room */
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

/* Gives back what long words took. */
static void forget(fkv_bpe_scratch *s)
{
    free(s->first);
    free(s->symbols);
    free(s->heap);
    s->first = NULL;
    s->symbols = NULL;
    s->heap = NULL;
    s->n_first = s->n_symbols = s->n_heap = s->heap_cap = 0;
}

void fkv_bpe_scratch_free(fkv_bpe_scratch *s)
{
    if (!s) return;
    free(s->cache);
    forget(s);
    fkv_buf_free(&s->spelling);
    free(s);
}

/* Few symbols: every step takes the leftmost pair of lowest rank. */
static fkv_status merge_by_scan(const fkv_bpe *bpe, int32_t *id, int m, fkv_ids *ids, fkv_err *err)
{
    int32_t rank[SCAN_MAX], made[SCAN_MAX]; /* of the pair (i, i + 1) */
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
    return fkv_ids_append(ids, id, (size_t)m, err);
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
    if (fkv_bpe_pair(bpe, left->id, right->id, &made) < 0 || made != c->id) return FKV_OK;
    left->id = made;
    right->id = -1;
    left->next = right->next;
    if (left->next >= 0) s->symbols[left->next].prev = c->at;
    fkv_status st = push_pair(bpe, s, c->at, err);
    if (!st && left->prev >= 0) st = push_pair(bpe, s, left->prev, err);
    return st;
}

static fkv_status merge_by_heap(const fkv_bpe *bpe, fkv_bpe_scratch *s, const int32_t *id, size_t m,
                                fkv_ids *ids, fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (m > s->n_symbols) {
        struct symbol *symbols = fkv_realloc(s->symbols, m, sizeof *symbols);
        if (!symbols) return fkv_fail_memory(err);
        s->symbols = symbols;
        s->n_symbols = m;
    }
    for (size_t i = 0; i < m; i++)
        s->symbols[i] = (struct symbol){.id = id[i], .prev = (int32_t)i - 1, .next = (int32_t)i + 1};
    s->symbols[m - 1].next = -1;
    s->n_heap = 0;
    for (size_t i = 0; !st && i < m; i++) st = push_pair(bpe, s, (int32_t)i, err);
    while (!st && s->n_heap) {
        const struct candidate c = pop(s);
        st = merge_candidate(bpe, s, &c, err);
    }
    for (int32_t i = 0; !st && i >= 0; i = s->symbols[i].next) st = fkv_ids_push(ids, s->symbols[i].id, err);
    return st;
}

/* The id of a word that is a token as a whole, or -1. */
static fkv_status whole_word(const fkv_bpe *bpe, fkv_bpe_scratch *s, const char *word, size_t n, int32_t *id,
                             fkv_err *err)
{
    fkv_status st = FKV_OK;
    *id = -1;
    if (n > bpe->vocab->max_len) return FKV_OK;
    if (!bpe->bytes) {
        *id = fkv_bpe_find(bpe, word, n);
        return FKV_OK;
    }
    fkv_buf_clear(&s->spelling);
    for (size_t i = 0; !st && i < n; i++) {
        char c[4];
        const size_t len = fkv_utf8_put(fkv_alphabet_char((uint8_t)word[i]), c);
        st = fkv_buf_append(&s->spelling, c, len, err);
    }
    if (!st) *id = fkv_bpe_find(bpe, s->spelling.data, s->spelling.len);
    return st;
}

/* The first symbols of a word into id, which has room for n. */
static fkv_status first_symbols(const fkv_bpe *bpe, const char *word, size_t n, int32_t *id, size_t *m,
                                fkv_err *err)
{
    if (!bpe->bytes) return fkv_bpe_spell(bpe, word, n, id, m, err);
    *m = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t b = bpe->byte_id[(unsigned char)word[i]];
        if (b >= 0) id[(*m)++] = b;
    }
    return FKV_OK;
}

static fkv_status merge(const fkv_bpe *bpe, fkv_bpe_scratch *s, const char *word, size_t n, fkv_ids *ids,
                        fkv_err *err)
{
    int32_t few[FEW_MAX], *id = few;
    size_t m;
    fkv_status st;
    if (n > FEW_MAX) {
        if (n > s->n_first) {
            int32_t *first = fkv_realloc(s->first, n, sizeof *first);
            if (!first) return fkv_fail_memory(err);
            s->first = first;
            s->n_first = n;
        }
        id = s->first;
    }
    if ((st = first_symbols(bpe, word, n, id, &m, err))) return st;
    if (m <= SCAN_MAX) return merge_by_scan(bpe, id, (int)m, ids, err);
    st = merge_by_heap(bpe, s, id, m, ids, err);
    if (s->n_symbols > KEPT_SYMBOLS) forget(s);
    return st;
}

static fkv_status merge_cached(const fkv_bpe *bpe, fkv_bpe_scratch *s, const char *word, size_t n,
                               fkv_ids *ids, fkv_err *err)
{
    if (n > KEY_MAX) return merge(bpe, s, word, n, ids, err);
    struct cached *c = &s->cache[fkv_hash(word, n, 0) & (CACHE_SLOTS - 1)];
    if (c->n_key == n && !memcmp(c->key, word, n)) return fkv_ids_append(ids, c->ids, c->n_ids, err);
    const size_t from = ids->len;
    fkv_status st = merge(bpe, s, word, n, ids, err);
    if (st || ids->len - from > IDS_MAX) return st;
    c->n_key = (uint8_t)n;
    c->n_ids = (uint8_t)(ids->len - from);
    memcpy(c->key, word, n);
    if (c->n_ids) memcpy(c->ids, ids->data + from, c->n_ids * sizeof *c->ids);
    return FKV_OK;
}

fkv_status fkv_bpe_word(const fkv_bpe *bpe, fkv_bpe_scratch *s, const char *word, size_t n, fkv_ids *ids,
                        fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (n > INT32_MAX) return fkv_fail(err, FKV_E_INPUT, "a word of %zu bytes is too long", n);
    if (bpe->ignore_merges) {
        int32_t id;
        st = whole_word(bpe, s, word, n, &id, err);
        if (st) return st;
        if (id >= 0) return fkv_ids_push(ids, id, err);
    }
    if (bpe->bytes) return merge_cached(bpe, s, word, n, ids, err);
    for (size_t begin = 0, end; !st && begin < n; begin = end) {
        end = fkv_bpe_cut(bpe, word, n, begin);
        st = merge_cached(bpe, s, word + begin, end - begin, ids, err);
    }
    return st;
}
