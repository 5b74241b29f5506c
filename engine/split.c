/* Splits of the devices: see split.h. Owns no memory. */
#include "engine/split.h"

#include "engine/model/tensors.h"

/* Stated rates. Arithmetic is of prefill, where it is the limit. */
#define CPU_FLOPS_PER_US      1e5 /* float32, a few cores */
#define CPU_LINK_BYTES_PER_US 5e3
#define CPU_COLLECTIVE_US     10.0
/* A core reads weights and KV at about 10 GB/s (a part of a socket's bandwidth when all cores read
 * at once); it computes in float32 and keeps K and V so. */
#define CPU_BYTES_PER_US    1e4
#define CPU_BYTES_PER_VALUE 4.0
/* Handing a segment to the thread pool and waiting for it; setting up a (slot, head) row and merging
 * its chunks. */
#define CPU_T0_US             2.0
#define CPU_SLOT_HEAD_US      0.05
#define GPU_FLOPS_PER_US      4e8   /* bf16, dense, what large products reach */
#define GPU_BYTES_PER_US      4.2e6 /* HBM */
#define GPU_LINK_BYTES_PER_US 3e5   /* NVLink, one direction */
#define GPU_COLLECTIVE_US     12.0
/* Of attention's arithmetic, in which softmax has its part. */
#define ATTENTION_SHARE 0.5

/* Elements of a layer's matrices; of those among them that no plan moves. */
static double layer_values(const fkv_config *c)
{
    return (double)fkv_tensors_layer_values(c);
}

static double common_values(const fkv_config *c)
{
    return layer_values(c) - (double)(c->n_kv_heads * fkv_tensors_head_values(c));
}

/* Prefill, where arithmetic is the limit. */
static void set_prefill(fkv_cost *cost, const fkv_config *c, double flops_per_us)
{
    cost->prefill_token_us = 2 * layer_values(c) / flops_per_us;
    /* Q K^T and P V: 4 hd operations a head and pair, half of the pairs are masked. */
    cost->prefill_pair_us = 2.0 * c->n_heads * c->head_dim / (flops_per_us * ATTENTION_SHARE);
}

fkv_cost fkv_cost_cpu(const fkv_config *c)
{
    const double head_bytes = (double)fkv_tensors_head_values(c) * CPU_BYTES_PER_VALUE;
    const double token_bytes = 2.0 * c->head_dim * CPU_BYTES_PER_VALUE;
    fkv_cost cost = {.n_ranks = 1,
                     .act_bytes = 4,
                     .t0_us = CPU_T0_US,
                     .head_us = head_bytes / CPU_BYTES_PER_US,
                     .slot_head_us = CPU_SLOT_HEAD_US,
                     .token_us = token_bytes / CPU_BYTES_PER_US,
                     .common_us = common_values(c) * CPU_BYTES_PER_VALUE / CPU_BYTES_PER_US,
                     .collective_us = CPU_COLLECTIVE_US,
                     .link_bytes_per_us = CPU_LINK_BYTES_PER_US};
    set_prefill(&cost, c, CPU_FLOPS_PER_US);
    return cost;
}

fkv_cost fkv_cost_gpu(const fkv_config *c)
{
    const double us_per_value = 2 / GPU_BYTES_PER_US; /* bf16 */
    fkv_cost cost = {.n_ranks = 1,
                     .act_bytes = 2,
                     .t0_us = 4,
                     .head_us = (double)fkv_tensors_head_values(c) * us_per_value,
                     .slot_head_us = 0.01,
                     .token_us = 2.0 * c->head_dim * us_per_value,
                     .common_us = common_values(c) * us_per_value,
                     .collective_us = GPU_COLLECTIVE_US,
                     .link_bytes_per_us = GPU_LINK_BYTES_PER_US};
    set_prefill(&cost, c, GPU_FLOPS_PER_US);
    return cost;
}

double fkv_split_collectives_us(const fkv_cost *cost, const fkv_config *c, double rows, int n_ranks)
{
    if (n_ranks == 1) return 0;
    const double att = (double)c->n_heads * c->head_dim * cost->act_bytes;
    const double bytes = rows * (att + c->hidden * (cost->act_bytes + 4.0));
    return 3 * cost->collective_us + bytes * (n_ranks - 1) / n_ranks / cost->link_bytes_per_us;
}

double fkv_split_prefill_us(const fkv_cost *cost, const fkv_config *c, double prompt_tokens, int n_ranks)
{
    const double t = prompt_tokens;
    const fkv_cost whole = fkv_cost_at(cost, 1);
    const double work = (t * whole.prefill_token_us + t * t * whole.prefill_pair_us) / n_ranks;
    return c->n_layers * (work + fkv_split_collectives_us(cost, c, t, n_ranks));
}

int fkv_split_best(const fkv_device_split *splits, int n)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (splits[i].fits && (best < 0 || splits[i].job_us < splits[best].job_us)) best = i;
    return best;
}
