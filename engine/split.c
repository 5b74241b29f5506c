/* Splits of the devices: see split.h. Owns no memory. */
#include "engine/split.h"

/* Stated rates. Arithmetic is of prefill, where it is the limit. */
#define CPU_FLOPS_PER_US      1e5 /* float32, a few cores */
#define CPU_LINK_BYTES_PER_US 5e3
#define CPU_COLLECTIVE_US     10.0
#define GPU_FLOPS_PER_US      4e8   /* bf16, dense, what large products reach */
#define GPU_BYTES_PER_US      4.2e6 /* HBM */
#define GPU_LINK_BYTES_PER_US 3e5   /* NVLink, one direction */
#define GPU_COLLECTIVE_US     12.0
/* Of attention's arithmetic, in which softmax has its part. */
#define ATTENTION_SHARE 0.5

static double layer_values(const fkv_config *c)
{
    const double att = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    return c->hidden * (2 * att + 2 * kv) + 3.0 * c->hidden * c->intermediate;
}

static fkv_split_rates rates(const fkv_config *c, double flops_per_us)
{
    return (fkv_split_rates){
        .token_us = 2 * layer_values(c) / flops_per_us,
        /* Q K^T and P V: 4 hd operations a head and pair, half of the pairs are masked. */
        .pair_us = 2.0 * c->n_heads * c->head_dim / (flops_per_us * ATTENTION_SHARE)};
}

fkv_split_rates fkv_split_rates_cpu(const fkv_config *c)
{
    fkv_split_rates r = rates(c, CPU_FLOPS_PER_US);
    r.cost = fkv_cost_cpu(c);
    r.collective_us = CPU_COLLECTIVE_US;
    r.link_bytes_per_us = CPU_LINK_BYTES_PER_US;
    r.act_bytes = 4;
    return r;
}

fkv_split_rates fkv_split_rates_gpu(const fkv_config *c)
{
    fkv_split_rates r = rates(c, GPU_FLOPS_PER_US);
    const double us_per_value = 2 / GPU_BYTES_PER_US; /* bf16 */
    r.cost = (fkv_cost_constants){
        .t0_us = 4,
        .head_us = (double)fkv_head_rows(c->group) * c->head_dim * c->hidden * us_per_value,
        .slot_head_us = 0.01,
        .token_us = 2.0 * c->head_dim * us_per_value,
        .common_us = ((double)c->n_heads * c->head_dim + 3.0 * c->intermediate) * c->hidden * us_per_value};
    r.collective_us = GPU_COLLECTIVE_US;
    r.link_bytes_per_us = GPU_LINK_BYTES_PER_US;
    r.act_bytes = 2;
    return r;
}

fkv_split_rates fkv_split_rates_measured(const fkv_split_rates *stated, const fkv_calibration *c)
{
    fkv_split_rates r = *stated;
    const double n = c->key.n_ranks;
    r.cost = c->cost;
    r.cost.common_us *= n;
    if (c->prefill_token_us > 0) r.token_us = n * c->prefill_token_us;
    if (c->prefill_pair_us > 0) r.pair_us = n * c->prefill_pair_us;
    if (c->link_bytes_per_us > 0) {
        r.collective_us = c->collective_us;
        r.link_bytes_per_us = c->link_bytes_per_us;
    }
    return r;
}

double fkv_split_collectives_us(const fkv_split_rates *r, const fkv_config *c, double rows, int n_ranks)
{
    if (n_ranks == 1) return 0;
    const double att = (double)c->n_heads * c->head_dim * r->act_bytes;
    const double bytes = rows * (att + c->hidden * (r->act_bytes + 4.0));
    return 3 * r->collective_us + bytes * (n_ranks - 1) / n_ranks / r->link_bytes_per_us;
}

fkv_cost_constants fkv_split_cost(const fkv_split_rates *r, const fkv_config *c, int n_ranks, int n_slots)
{
    fkv_cost_constants cost = r->cost;
    cost.common_us = cost.common_us / n_ranks + fkv_split_collectives_us(r, c, n_slots, n_ranks);
    return cost;
}

double fkv_split_prefill_us(const fkv_split_rates *r, const fkv_config *c, double prompt_tokens, int n_ranks)
{
    const double t = prompt_tokens;
    const double work = (t * r->token_us + t * t * r->pair_us) / n_ranks;
    return c->n_layers * (work + fkv_split_collectives_us(r, c, t, n_ranks));
}

int fkv_split_best(const fkv_device_split *splits, int n, bool groups)
{
    int best = -1;
    double least = 0;
    for (int i = 0; i < n; i++) {
        const double us = splits[i].record_us * (groups ? 1 : splits[i].data_parallel);
        if (!splits[i].fits || (best >= 0 && us >= least)) continue;
        best = i;
        least = us;
    }
    return best;
}
