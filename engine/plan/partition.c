/* Who has what: see partition.h. */
#include "engine/plan/partition.h"

static int first_head(int n_kv_heads, int rank, int n_ranks)
{
    return (int)((int64_t)n_kv_heads * rank / n_ranks);
}

fkv_range fkv_partition_heads(int n_kv_heads, int rank, int n_ranks)
{
    return (fkv_range){first_head(n_kv_heads, rank, n_ranks), first_head(n_kv_heads, rank + 1, n_ranks)};
}

int fkv_partition_home(int h, int n_kv_heads, int n_ranks)
{
    /* floor(r K / R) <= h  <=>  r K < (h + 1) R */
    return (int)((((int64_t)h + 1) * n_ranks - 1) / n_kv_heads);
}

int fkv_partition_most_heads(int n_kv_heads, int n_ranks)
{
    return (n_kv_heads + n_ranks - 1) / n_ranks;
}

static int64_t first_column(int64_t n, int rank, int n_ranks)
{
    const int64_t unit = n / 128 >= n_ranks ? 128 : n / 16 >= n_ranks ? 16 : 1;
    const int64_t units = (n + unit - 1) / unit, at = (units * rank + n_ranks - 1) / n_ranks * unit;
    return at < n ? at : n;
}

fkv_range fkv_partition_columns(int64_t n, int rank, int n_ranks)
{
    return (fkv_range){first_column(n, rank, n_ranks), first_column(n, rank + 1, n_ranks)};
}

static int first_rank(int n_ranks, int device, int n_devices)
{
    return (int)(((int64_t)device * n_ranks + n_devices - 1) / n_devices);
}

fkv_range fkv_partition_ranks(int n_ranks, int device, int n_devices)
{
    return (fkv_range){first_rank(n_ranks, device, n_devices), first_rank(n_ranks, device + 1, n_devices)};
}

int fkv_partition_device(int rank, int n_ranks, int n_devices)
{
    return (int)((int64_t)rank * n_devices / n_ranks);
}
