/* What bpe.c, bpe_spell.c and bpe_load.c share: the merges and first symbols as tables. The fkv_bpe
 * owns its arrays and borrows the vocabulary. Not for: anyone else (bpe.h). */
#ifndef FKV_TOKENIZER_BPE_INTERNAL_H
#define FKV_TOKENIZER_BPE_INTERNAL_H

#include "tokenizer/bpe.h"

/* (left, right) -> the token they make. Open addressing, at most half full. */
struct fkv_merge {
    uint64_t pair; /* left << 32 | right, or FKV_NO_PAIR */
    int32_t rank, made;
};
#define FKV_NO_PAIR UINT64_MAX

enum {
    FKV_N_BMP = 0x10000, /* characters whose tokens stand in an array */
    FKV_JOINT_BITS = 20, /* of the hash of two neighbours */
};

struct fkv_bpe {
    const fkv_vocab *vocab;
    int32_t n_model_ids; /* ids of the model itself are below, without added tokens */
    bool *in_model;      /* [n_model_ids] */
    struct fkv_merge *merges;
    unsigned shift; /* 64 - log2 of the number of merge slots */
    size_t mask;
    bool bytes;           /* words come as bytes */
    int32_t byte_id[256]; /* a byte's token in the byte-level alphabet; -1: none */
    bool ignore_merges;
    /* For words that come spelled. */
    int32_t *char_id; /* [FKV_N_BMP] a character's token; -1: none */
    bool fuse_unk, byte_fallback, has_unk;
    int32_t unk_id;        /* -1: the vocabulary lacks it */
    int32_t fallback[256]; /* a byte's token, such as <0x0A>; -1: none */
    bool plain_fallback;   /* every unknown character becomes byte tokens, and they never merge */
    /* Bits of fkv_joint_hash(a, b) for all a and b such that some merge's left part ends with
     * a and its right part begins with b. Elsewhere no merge crosses from a to b, and a long
     * word may be cut there. */
    uint64_t *joints; /* [1 << (FKV_JOINT_BITS - 6)] */
};

static inline size_t fkv_bpe_slot(const fkv_bpe *bpe, uint64_t pair)
{
    size_t i = (size_t)(pair * 0x9e3779b97f4a7c15ULL >> bpe->shift);
    while (bpe->merges[i].pair != pair && bpe->merges[i].pair != FKV_NO_PAIR) i = (i + 1) & bpe->mask;
    return i;
}

/* The rank of a pair and the token it makes, or -1. */
static inline int32_t fkv_bpe_pair(const fkv_bpe *bpe, int32_t left, int32_t right, int32_t *made)
{
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    const struct fkv_merge *m = &bpe->merges[fkv_bpe_slot(bpe, pair)];
    if (m->pair != pair) return -1;
    *made = m->made;
    return m->rank;
}

static inline size_t fkv_joint_hash(uint32_t a, uint32_t b)
{
    return (size_t)(((uint64_t)a << 32 | b) * 0x9e3779b97f4a7c15ULL >> (64 - FKV_JOINT_BITS));
}

static inline bool fkv_bpe_joins(const fkv_bpe *bpe, uint32_t a, uint32_t b)
{
    const size_t h = fkv_joint_hash(a, b);
    return bpe->joints[h / 64] >> h % 64 & 1;
}

/* The id of a string of the model itself, or -1: added tokens are in the vocabulary too. */
int32_t fkv_bpe_find(const fkv_bpe *bpe, const char *string, size_t n);

/* The first symbols of a spelled word, at most n, and how many they are. */
fkv_status fkv_bpe_spell(const fkv_bpe *bpe, const char *word, size_t n, int32_t *symbols, size_t *n_symbols,
                         fkv_err *err);
/* Where, behind begin, a spelled word may be cut so that its parts merge as the whole does: n at the latest.
 */
size_t fkv_bpe_cut(const fkv_bpe *bpe, const char *word, size_t n, size_t begin);

#endif
