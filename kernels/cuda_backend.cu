/* The CUDA backend's table, and how a device opens and closes: see backend.h.
 *
 * A device is one GPU with one stream; ops are enqueued there and errors show at the
 * next sync. Memory and errors are in cuda_device.cu, copies between host and GPU in
 * cuda_transfer.cu, recording in cuda_record.cu.
 */
#include "kernels/cuda_device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

/* What stays free for the CUDA runtime itself: graphs, modules, NCCL's buffers. */
static const int64_t reserve_bytes = (int64_t)1 << 30;

static fkv_mark backend_mark(const fkv_device *dev)
{
    return fkv_mark{cuda_blocks_count(dev), cuda_weights_count(dev)};
}

static void backend_release(fkv_device *dev, fkv_mark mark)
{
    cudaStreamSynchronize(dev->stream);
    cuda_record_forget(dev);
    memset(dev->span_waiting, 0, sizeof dev->span_waiting);
    memset(dev->span_seconds, 0, sizeof dev->span_seconds);
    cuda_weights_free(dev, mark.n_weights);
    cuda_blocks_free(dev, mark.n_blocks);
}

static void backend_close(fkv_device *dev)
{
    int callers = 0; /* one thread closes all devices, and may go on with another */
    if (!dev) return;
    cudaGetDevice(&callers);
    cudaSetDevice(dev->gpu);
    if (cuda_world_aborted(dev->world)) cuda_world_leave(dev); /* what waits for a device that failed ends */
    if (dev->stream) cudaStreamSynchronize(dev->stream);
    cuda_record_close(dev);
    cuda_aside_close(dev);
    cuda_world_leave(dev);
    cuda_decode_close(dev);
    cuda_gemm_close(dev);
    cuda_weights_free(dev, 0);
    cuda_blocks_close(dev);
    cpu_pool_close(dev->pool);
    if (dev->staging) cudaFreeHost(dev->staging);
    for (int i = 0; i < FKV_TICKETS; i++)
        if (dev->tickets[i].done) cudaEventDestroy(dev->tickets[i].done);
    if (dev->lt) cublasLtDestroy(dev->lt);
    if (dev->stream) cudaStreamDestroy(dev->stream);
    cudaSetDevice(callers);
    cudaGetLastError();
    free(dev);
}

static fkv_status start(fkv_device *dev, fkv_err *err)
{
    cudaDeviceProp p;
    if (!CUDA(dev, cudaSetDevice(dev->gpu))) return cuda_status(dev, err);
    if (!CUDA(dev, cudaGetDeviceProperties(&p, dev->gpu))) return cuda_status(dev, err);
    snprintf(dev->name, sizeof dev->name, "%.90s", p.name);
    dev->n_sms = p.multiProcessorCount;
    dev->shared_bytes = cuda_shared_bytes(&p);
    dev->restricted = cuda_restricted();
    dev->bare = getenv("FAIRKV_TEST_BARE_SUMS") != NULL;
    if (!CUDA(dev, cudaStreamCreateWithFlags(&dev->stream, cudaStreamNonBlocking)))
        return cuda_status(dev, err);
    return cuda_world_join(dev, err);
}

static fkv_status backend_open(fkv_world *world, int index, int n_threads, fkv_device **out, fkv_err *err)
{
    *out = NULL;
    fkv_device *dev = (fkv_device *)calloc(1, sizeof *dev);
    if (!dev) return fkv_fail_memory(err);
    dev->world = world;
    dev->index = index;
    dev->gpu = cuda_world_gpu(world, index);
    fkv_status st = start(dev, err);
    if (!st)
        st = cpu_pool_open(n_threads < CUDA_LOADING_THREADS ? n_threads : CUDA_LOADING_THREADS, &dev->pool,
                           err);
    if (st)
        backend_close(dev);
    else
        *out = dev;
    return st;
}

static void backend_info(const fkv_device *dev, fkv_device_info *info)
{
    size_t available = 0, all = 0;
    *info = fkv_device_info{};
    info->act_bytes = info->kv_bytes = info->weight_bytes = 2;
    info->fp8_bytes = 1;
    info->fp8_row_bytes = sizeof(float);
    info->prefill_tile = CUDA_PREFILL_TILE;
    info->worth_rows = CUDA_WORTH_ROWS;
    info->worth_slots = CUDA_MAX_SLOTS;
    info->arena_share = 0.97;
    info->nominal_share = 15.0 / 16;
    info->replays = true;
    info->async = true;
    info->peers = cuda_world_peers(dev->world);
    snprintf(info->name, sizeof info->name, "%s", dev->name);
    const int n = cuda_world_devices_per_gpu(dev->world);
    if (cudaMemGetInfo(&available, &all) == cudaSuccess && (int64_t)available > reserve_bytes)
        info->memory_bytes = ((int64_t)available - reserve_bytes) / n;
    info->total_bytes = (int64_t)all / n;
    cudaGetLastError();
}

static void backend_numerics(const fkv_device *dev, char *out, size_t size)
{
    const uint64_t print = cuda_gemm_fingerprint(dev);
    char algorithms[40] = "";
    if (print) snprintf(algorithms, sizeof algorithms, ", algorithms %016llx", (unsigned long long)print);
    snprintf(out, size, "bf16 on %s, cuBLASLt %zu%s", dev->name, cublasLtGetVersion(), algorithms);
}

static fkv_status backend_prepare(fkv_device *dev, const fkv_device_limits *l, fkv_err *err)
{
    const fkv_status st = cuda_supports(l, cuda_world_group(dev->world), err);
    if (st) return st;
    dev->limits = *l;
    dev->limits.inv_freq = dev->limits.rope_scale = NULL; /* the caller's */
    dev->limits.layers = NULL;
    cuda_gemm_forget(dev); /* products of other limits are not this run's */
    return cuda_attention_prepare(dev, l->inv_freq, l->rope_scale, err);
}

bool fkv_backend_cuda_found(void)
{
    return cuda_count_gpus() > 0;
}

void fkv_backend_cuda_wake(void)
{
    cublasLtHandle_t lt;
    if (cuda_count_gpus() > 0 && cudaSetDevice(0) == cudaSuccess && cudaFree(NULL) == cudaSuccess &&
        cublasLtCreate(&lt) == CUBLAS_STATUS_SUCCESS)
        cublasLtDestroy(lt);
    cudaGetLastError();
}

const fkv_backend *fkv_backend_cuda(void)
{
    static const fkv_backend backend = {
        .name = "cuda",
        .shares_host = false,
        .n_devices = cuda_n_devices,
        .bus_place = cuda_bus_place,
        .supports = cuda_supports,
        .reach = cuda_reach,
        .world_open = cuda_world_open,
        .world_close = cuda_world_close,
        .world_abort = cuda_world_abort,
        .open = backend_open,
        .close = backend_close,
        .info = backend_info,
        .numerics = backend_numerics,
        .prepare = backend_prepare,
        .workspace_bytes = cuda_workspace_bytes,
        .alloc = cuda_alloc,
        .mark = backend_mark,
        .release = backend_release,
        .upload = cuda_upload,
        .download = cuda_download,
        .sync = cuda_sync,
        .post = cuda_post,
        .wait = cuda_wait,
        .ticket_seconds = cuda_ticket_seconds,
        .scatter = cuda_scatter,
        .weight_load = cuda_weight_load,
        .weight_load_gated = cuda_weight_load_gated,
        .embedding_load = cuda_embedding_load,
        .weight_shape = cuda_weight_shape,
        .weight_gram = cuda_weight_gram,
        .prepare_linear = cuda_prepare_linear,
        .prepare_decode = cuda_prepare_decode,
        .replay = cuda_replay,
        .record_begin = cuda_record_begin,
        .record_end = cuda_record_end,
        .embed = cuda_embed,
        .scale = cuda_scale,
        .add_rmsnorm = cuda_add_rmsnorm,
        .quantise = cuda_quantise,
        .linear = cuda_linear,
        .start_slots = cuda_start_slots,
        .prefill_qkv = cuda_prefill_qkv,
        .prefill_attention = cuda_prefill_attention,
        .key_scores = cuda_key_scores,
        .kv_keep = cuda_kv_keep,
        .last_rows = cuda_last_rows,
        .decode_begin = cuda_decode_begin,
        .decode_qkv = cuda_decode_qkv,
        .decode_attention = cuda_decode_attention,
        .sample = cuda_sample,
        .span_begin = cuda_span_begin,
        .span_end = cuda_span_end,
        .span_seconds = cuda_span_seconds,
        .recorded_spans = cuda_recorded_spans,
        .gather_cols = cuda_gather_cols,
        .gather_heads = cuda_gather_heads,
        .aside_begin = cuda_aside_begin,
        .aside_end = cuda_aside_end,
        .aside_wait = cuda_aside_wait,
        .reduce_ranks = cuda_reduce_ranks,
    };
    return &backend;
}
