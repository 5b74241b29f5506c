/* The CPU backend's table and devices: see backend.h.
 *
 * The reference that stays for ever: float32 throughout, on weights converted
 * from whatever the file holds. Ops do their work before they return.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu_device.h"
#include "runner/base/clock.h"
#include "runner/base/machine.h"
#include "runner/base/mem.h"

/* n elements of size bytes. */
static fkv_status alloc_array(fkv_device *dev, size_t n, size_t each, size_t size, void *out, fkv_err *err)
{
    size_t bytes;
    if (!fkv_mul_size(n, each, &bytes) || !fkv_mul_size(bytes, size, &bytes)) return fkv_fail_memory(err);
    void *p = NULL;
    const fkv_status st = cpu_alloc(dev, bytes, &p, err);
    if (!st) memcpy(out, &p, sizeof p);
    return st;
}

static void cpu_close(fkv_device *dev)
{
    if (!dev) return;
    cpu_pool_close(dev->pool);
    for (int i = 0; i < dev->n_weights; i++) free(dev->weights[i]);
    cpu_free_blocks(dev, 0);
    free(dev->weights);
    free(dev->blocks);
    free(dev);
}

static fkv_status cpu_open(fkv_world *world, int index, int n_threads, fkv_device **out, fkv_err *err)
{
    *out = NULL;
    fkv_device *dev = calloc(1, sizeof *dev);
    if (!dev) return fkv_fail_memory(err);
    dev->world = world;
    dev->index = index;
    dev->k = cpu_kernels();
    if (n_threads <= 0) n_threads = fkv_machine_processors() / world->n_devices;
    const fkv_status st = cpu_pool_open(n_threads > 1 ? n_threads : 1, &dev->pool, err);
    if (st)
        cpu_close(dev);
    else
        *out = dev;
    return st;
}

static void cpu_info(const fkv_device *dev, fkv_device_info *info)
{
    *info = (fkv_device_info){.act_bytes = 4,
                              .kv_bytes = 4,
                              .weight_bytes = 4,
                              .fp8_bytes = 4,
                              .prefill_tile = 1024,
                              .worth_rows = 64,
                              .worth_slots = 64,
                              .arena_share = 0.6,
                              .nominal_share = 0.5,
                              .peers = true};
    snprintf(info->name, sizeof info->name, "CPU, %d threads, %s", cpu_pool_threads(dev->pool), dev->k->name);
    info->memory_bytes = info->total_bytes = fkv_machine_memory() / dev->world->n_devices;
}

/* One array of the workspace: rows x cols of so many bytes each. */
typedef struct workspace_array {
    size_t rows, cols, size;
    void *out; /* where its pointer goes */
} workspace_array;

enum { N_ARRAYS = 12 };

/* dev may be NULL: then only the sizes are of use. */
static void list_arrays(fkv_device *dev, const fkv_device_limits *l, size_t threads,
                        workspace_array out[N_ARRAYS])
{
    static fkv_device nowhere; /* for addresses that nobody uses */
    fkv_device *d = dev ? dev : &nowhere;
    const size_t padded = (size_t)cpu_round_up(l->max_prompt, 2 * CPU_PANEL), f32 = sizeof(float);
    const size_t heads = (size_t)l->max_local_heads, hd = (size_t)l->head_dim, vocab = (size_t)l->vocab;
    const size_t positions = (size_t)l->max_positions, ropes = (size_t)l->n_ropes;
    /* every prompt of a pack starts a tile */
    const size_t tiles = (size_t)l->max_prompt / FKV_TILE_TOKENS + (size_t)l->n_slots + 1;
    const bool statistics = fkv_scorers_have(l->scorers, FKV_SCORER_EXPECTED);
    const size_t queries = statistics ? heads * (size_t)(l->n_heads / l->n_kv_heads) : 0;
    const workspace_array all[N_ARRAYS] = {{ropes * positions, hd / 2, f32, &d->rope_cos},
                                           {ropes * positions, hd / 2, f32, &d->rope_sin},
                                           {heads * hd, tiles * FKV_TILE_TOKENS, f32, &d->packed_keys},
                                           {threads, 1, sizeof(cpu_att_scratch), &d->att},
                                           {threads, padded, f32, &d->score_rows},
                                           {heads, padded, f32, &d->score_sums},
                                           {queries, hd, f32, &d->query_mean},
                                           {queries, hd * hd, f32, &d->query_cov},
                                           {threads, padded, sizeof(int32_t), &d->keep},
                                           {threads, padded, f32, &d->keep_work},
                                           {threads, vocab, f32, &d->sample_work},
                                           {threads, vocab, sizeof(int32_t), &d->sample_ids}};
    memcpy(out, all, sizeof all);
}

static int64_t cpu_workspace_bytes(const fkv_device_limits *l, int n_threads)
{
    workspace_array all[N_ARRAYS];
    double bytes = 0;
    list_arrays(NULL, l, (size_t)(n_threads > 0 ? n_threads : 1), all);
    for (int i = 0; i < N_ARRAYS; i++)
        bytes += (double)all[i].rows * (double)all[i].cols * (double)all[i].size;
    return bytes < 0x1p50 ? (int64_t)bytes : (int64_t)1 << 50;
}

static fkv_status cpu_supports(const fkv_device_limits *l, const fkv_group *group, fkv_err *err)
{
    (void)group;
    if (l->head_dim % CPU_PANEL || l->head_dim > CPU_MAX_HEAD_DIM)
        return fkv_fail(err, FKV_E_INPUT,
                        "the cpu backend needs a head_dim that is a multiple of %d and at most %d, not %d",
                        CPU_PANEL, CPU_MAX_HEAD_DIM, l->head_dim);
    for (int i = 0; i < FKV_N_SCORERS; i++)
        if (fkv_scorers_have(l->scorers, (fkv_scorer)i) && fkv_scorer_wants_output((fkv_scorer)i) &&
            l->hidden % CPU_PANEL)
            return fkv_fail(err, FKV_E_INPUT,
                            "on the cpu backend profile.score = %s needs a hidden size that is a multiple of "
                            "%d, not %d",
                            fkv_scorer_name((fkv_scorer)i), CPU_PANEL, l->hidden);
    return fkv_limits_check(l, err);
}

static bool cpu_reach(const fkv_group *group)
{
    (void)group;
    return true;
}

static fkv_status cpu_prepare(fkv_device *dev, const fkv_device_limits *l, fkv_err *err)
{
    workspace_array all[N_ARRAYS];
    const fkv_status supported = cpu_supports(l, NULL, err);
    if (supported) return supported;
    dev->limits = *l;
    dev->limits.inv_freq = dev->limits.rope_scale = NULL; /* the caller's */
    dev->limits.layers = NULL;
    dev->rope_filled = 0;
    list_arrays(dev, l, (size_t)cpu_pool_threads(dev->pool), all);
    for (int i = 0; i < N_ARRAYS; i++) {
        if (!all[i].rows) continue;
        const fkv_status st = alloc_array(dev, all[i].rows, all[i].cols, all[i].size, all[i].out, err);
        if (st) return st;
    }
    const size_t n_freq = (size_t)l->n_ropes * (size_t)l->head_dim / 2;
    if (n_freq) memcpy(dev->inv_freq, l->inv_freq, n_freq * sizeof *dev->inv_freq);
    for (size_t i = 0; i < n_freq; i++) {
        dev->rope_scale[i] = l->rope_scale ? l->rope_scale[i] : 1;
        fkv_scorer_ahead(l->inv_freq[i], &dev->rope_ahead[2 * i]);
    }
    return FKV_OK;
}

static fkv_mark cpu_mark(const fkv_device *dev)
{
    return (fkv_mark){dev->n_blocks, dev->n_weights};
}

static void cpu_release(fkv_device *dev, fkv_mark mark)
{
    while (dev->n_weights > mark.n_weights) free(dev->weights[--dev->n_weights]);
    cpu_free_blocks(dev, mark.n_blocks);
    memset(dev->span_seconds, 0, sizeof dev->span_seconds);
}

static void cpu_copy(fkv_device *dev, void *dst, const void *src, size_t bytes)
{
    (void)dev;
    memcpy(dst, src, bytes);
}

static fkv_status cpu_sync(fkv_device *dev, fkv_err *err)
{
    if (cpu_world_aborted(dev->world)) return fkv_fail(err, FKV_E_DEVICE, "another device failed");
    return FKV_OK;
}

/* All is done before it is posted. */
static int64_t cpu_post(fkv_device *dev)
{
    const int64_t ticket = ++dev->n_posted;
    dev->posted_at[ticket % FKV_TICKETS] = fkv_seconds();
    return ticket;
}

static double cpu_ticket_seconds(fkv_device *dev, int64_t ticket)
{
    if (ticket < 2) return 0;
    return dev->posted_at[ticket % FKV_TICKETS] - dev->posted_at[(ticket - 1) % FKV_TICKETS];
}

static fkv_status cpu_wait(fkv_device *dev, int64_t ticket, fkv_err *err)
{
    (void)ticket;
    return cpu_sync(dev, err);
}

static fkv_status cpu_prepare_linear(fkv_device *dev, const fkv_weight *w, int64_t n_rows,
                                     fkv_epilogue epilogue, fkv_err *err)
{
    (void)dev, (void)w, (void)n_rows, (void)epilogue, (void)err;
    return FKV_OK;
}

static fkv_status cpu_prepare_decode(fkv_device *dev, const fkv_decode_args *args, fkv_err *err)
{
    (void)dev, (void)args, (void)err;
    return FKV_OK;
}

static bool cpu_replay(fkv_device *dev, int key)
{
    (void)dev, (void)key;
    return false;
}

/* All instruction sets give the same bits. */
static void cpu_numerics(const fkv_device *dev, char *out, size_t size)
{
    (void)dev;
    snprintf(out, size, "float32");
}

/* CPU devices share the cores: more than one is for tests. */
static int cpu_n_devices(void)
{
    return 1;
}

static int cpu_recorded_spans(fkv_device *dev, int key, double *seconds, int n)
{
    (void)dev, (void)key, (void)seconds, (void)n;
    return 0;
}

static void cpu_record(fkv_device *dev, int key)
{
    (void)dev, (void)key;
}

static void cpu_span_begin(fkv_device *dev, int local_rank)
{
    (void)local_rank;
    dev->span_start = fkv_seconds();
}

static void cpu_span_end(fkv_device *dev, int local_rank)
{
    dev->span_seconds[local_rank] += fkv_seconds() - dev->span_start;
}

static void cpu_span_seconds(fkv_device *dev, double *seconds, int n_local)
{
    memcpy(seconds, dev->span_seconds, (size_t)n_local * sizeof *seconds);
}

const fkv_backend *fkv_backend_cpu(void)
{
    static const fkv_backend backend = {
        .name = "cpu",
        .shares_host = true,
        .n_devices = cpu_n_devices,
        .supports = cpu_supports,
        .reach = cpu_reach,
        .world_open = cpu_world_open,
        .world_close = cpu_world_close,
        .world_abort = cpu_world_abort,
        .open = cpu_open,
        .close = cpu_close,
        .info = cpu_info,
        .numerics = cpu_numerics,
        .prepare = cpu_prepare,
        .workspace_bytes = cpu_workspace_bytes,
        .alloc = cpu_alloc,
        .mark = cpu_mark,
        .release = cpu_release,
        .upload = cpu_copy,
        .download = cpu_copy,
        .sync = cpu_sync,
        .post = cpu_post,
        .wait = cpu_wait,
        .ticket_seconds = cpu_ticket_seconds,
        .scatter = cpu_scatter,
        .weight_load = cpu_weight_load,
        .weight_load_gated = cpu_weight_load_gated,
        .embedding_load = cpu_embedding_load,
        .weight_shape = cpu_weight_shape,
        .weight_gram = cpu_weight_gram,
        .prepare_linear = cpu_prepare_linear,
        .prepare_decode = cpu_prepare_decode,
        .replay = cpu_replay,
        .record_begin = cpu_record,
        .record_end = cpu_record,
        .embed = cpu_embed,
        .scale = cpu_scale,
        .add_rmsnorm = cpu_add_rmsnorm,
        .quantise = cpu_quantise_rows,
        .linear = cpu_linear,
        .start_slots = cpu_start_slots,
        .prefill_qkv = cpu_prefill_qkv,
        .prefill_attention = cpu_prefill_attention,
        .key_scores = cpu_key_scores,
        .kv_keep = cpu_kv_keep,
        .last_rows = cpu_last_rows,
        .decode_begin = cpu_decode_begin,
        .decode_qkv = cpu_decode_qkv,
        .decode_attention = cpu_decode_attention,
        .sample = cpu_sample,
        .span_begin = cpu_span_begin,
        .span_end = cpu_span_end,
        .span_seconds = cpu_span_seconds,
        .recorded_spans = cpu_recorded_spans,
        .gather_cols = cpu_gather_cols,
        .gather_heads = cpu_gather_heads,
        .reduce_ranks = cpu_reduce_ranks,
        .aside_begin = cpu_aside_begin,
        .aside_end = cpu_aside_end,
        .aside_wait = cpu_aside_wait,
    };
    return &backend;
}
