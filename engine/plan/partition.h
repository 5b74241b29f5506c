/* Who has what: the one place that says which rank has which heads and columns, and which device
 * has which ranks. K heads, R ranks, D devices; everything is contiguous and in order.
 *
 * Pure functions over numbers; nothing is owned, nothing fails. Not for copies: those are the plan's
 * (plan.h).
 */
#ifndef FKV_ENGINE_PARTITION_H
#define FKV_ENGINE_PARTITION_H

#include <stdint.h>

/* [begin, end) */
typedef struct fkv_range {
    int64_t begin, end;
} fkv_range;

static inline int64_t fkv_range_count(fkv_range r)
{
    return r.end - r.begin;
}

/* KV heads at home on rank r: [floor(r K / R), floor((r + 1) K / R)). */
fkv_range fkv_partition_heads(int n_kv_heads, int rank, int n_ranks);
/* The rank where head h is at home. */
int fkv_partition_home(int h, int n_kv_heads, int n_ranks);
/* The most heads that are at home on a rank. */
int fkv_partition_most_heads(int n_kv_heads, int n_ranks);

/* Rank r's columns of n (hidden, intermediate, vocabulary), in whole units of 128, which the fast
 * products of a GPU and blocks of scales want; of 16 or 1 where there are too few for all ranks.
 * Rank 0 has the largest share. */
fkv_range fkv_partition_columns(int64_t n, int rank, int n_ranks);

/* Ranks on device d; rank r lives on device floor(r D / R). */
fkv_range fkv_partition_ranks(int n_ranks, int device, int n_devices);
int fkv_partition_device(int rank, int n_ranks, int n_devices);

#endif
