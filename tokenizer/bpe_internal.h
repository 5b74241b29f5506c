/* What bpe.c and bpe_load.c share: the merges as a table. The fkv_bpe owns its arrays and
 * borrows the vocabulary. Not for: anyone else (bpe.h). */
#ifndef FKV_TOKENIZER_BPE_INTERNAL_H
#define FKV_TOKENIZER_BPE_INTERNAL_H

#include "tokenizer/bpe.h"

/* (left, right) -> the token they make. Open addressing, at most half full. */
struct fkv_merge {
    uint64_t pair; /* left << 32 | right, or FKV_NO_PAIR */
    int32_t rank, made;
};
#define FKV_NO_PAIR UINT64_MAX

struct fkv_bpe {
    const fkv_vocab *vocab;
    int32_t n_model_ids; /* ids of the model itself are below, without added tokens */
    bool *in_model;      /* [n_model_ids] */
    struct fkv_merge *merges;
    unsigned shift; /* 64 - log2 of the number of merge slots */
    size_t mask;
    int32_t byte_id[256]; /* -1: no token */
    bool ignore_merges;
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

#endif
