/* What the files of the CUDA backend share: the device, weights, errors, and the
 * ops that each file contributes to the table in cuda_backend.cu. C++ (CUDA) only.
 *
 * Errors: the first failing call is kept in the device (cuda_check) and shows at the
 * next sync; ops enqueued after it do nothing harmful. Every launch is checked.
 *
 * A device owns all that its pointers lead to but the world, also what a call that failed had begun, until
 * close. Ops are as in backend.h, with activations, K, V and weights in bf16. Not for other folders: see
 * backend.h.
 */
#ifndef FKV_KERNELS_CUDA_DEVICE_H
#define FKV_KERNELS_CUDA_DEVICE_H

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

extern "C" {
#include "kernels/backend.h"
#include "kernels/cpu_pool.h"
}

typedef __nv_bfloat16 bf16;

enum {
    CUDA_STAGING_BYTES = 32 << 20, /* pinned, for everything that crosses */
    CUDA_PENDING = 256,            /* downloads under way */
    CUDA_LOADING_THREADS = 16,     /* at the most, that copy and convert a weight's numbers */
    CUDA_PREFILL_TILE = 2048,      /* rows of a prefill tile */
    CUDA_WORTH_ROWS = 1024, /* 95% of the rate of 8k rows, by the products' waves over 132 multiprocessors */
    CUDA_MAX_GROUP = 16,    /* query heads of a KV head */
    CUDA_MAX_SLOTS = 256,
    CUDA_RECORD_KEYS = FKV_N_CHOICES,
    CUDA_LEAST_SHARED = 99 << 10, /* bytes of shared memory a block that every kernel can do with */
    CUDA_CHUNK_PAGES = 2, /* pages that decode attention folds in one piece; fixed, so that results are */
};

struct fkv_world; /* cuda_collective.h */

/* Rows of a weight as kernels see them; only cuda_weights.cu knows more. */
struct cuda_weight_view {
    const void *data;   /* [n, k] row-major, on the device; row 0 of a weight is 256-byte aligned */
    fkv_dtype dtype;    /* of data: bf16, or e4m3 with a scale */
    const float *scale; /* [n] of the rows, on the device; NULL: none */
    const bf16 *bias;   /* [n] of the rows, on the device; NULL: none */
    int64_t n, k;       /* rows from the first one viewed on (gate rows, then up rows), depth */
};

struct cuda_decode_plan; /* cuda_decode_plan.cu: device-side descriptors of one (layer, local rank) */
struct cuda_attention;   /* cuda_attention.h: workspace of the attention and compression ops */
struct cuda_gemm_cache;  /* cuda_gemm.cu: algorithm by shape */
struct cuda_comm;        /* cuda_collective.h: this device's part of the collectives */

/* A download whose bytes wait in the staging ring for the next wait. */
struct cuda_pending {
    void *host;
    const void *staged;
    size_t bytes;
};

/* What was enqueued up to a post: when it is done, downloads before n_pending are there and the
 * ring is free up to staged. */
struct cuda_ticket {
    cudaEvent_t done;
    uint64_t staged, n_pending;
};

/* Two events around a piece of work of one local rank. */
struct cuda_span {
    cudaEvent_t begin, end;
    int local_rank;
};

/* The steps under one key of replay: see cuda_record.cu. */
struct cuda_record {
    cudaGraphExec_t plain, timed; /* timed has the spans' events in it */
    int64_t n_steps, n_timed;
    cuda_span *spans; /* of timed, in order */
    int n_spans, cap_spans;
    bool waiting;                        /* timed was launched, its spans are not yet read */
    double seconds[FKV_MAX_LOCAL_RANKS]; /* of the timed steps */
};

struct fkv_device {
    fkv_world *world;
    int index; /* of n_devices */
    int gpu;   /* CUDA ordinal; the world says which */
    int n_sms;
    int shared_bytes; /* that a block may have */
    bool restricted;  /* fkv_backend_restrict was on */
    bool bare;        /* for tests: FAIRKV_TEST_BARE_SUMS hides that the library scales FP8's sums */
    char name[96];
    cudaStream_t stream;
    cublasLtHandle_t lt;
    cuda_gemm_cache *gemms;
    cuda_decode_plan *decode_plans;
    cuda_attention *attention; /* made by cuda_attention_prepare, freed by cuda_decode_close */
    fkv_device_limits limits;
    float2
        *rope; /* [n_ropes][max_positions][head_dim / 2] cos, sin; device, filled by cuda_attention_prepare */
    bf16 *gate_tmp; /* [rows, 2 * share of the intermediate], grown in prepare_linear */
    size_t gate_tmp_bytes;
    float *sums_tmp; /* of FP8 products that the library can't scale, before they are; grown as gate_tmp */
    size_t sums_tmp_bytes;
    char *landing; /* a piece of a weight that is to be quantised */
    size_t landing_bytes;
    /* Pinned ring; counts only grow, a place is its count modulo the size. */
    char *staging;
    uint64_t staged, unstaged; /* bytes put into it; bytes of those that are free again */
    cuda_pending pending[CUDA_PENDING];
    uint64_t n_pending, n_handed; /* downloads enqueued; handed out */
    cuda_ticket tickets[FKV_TICKETS];
    int64_t n_posted, n_waited;
    cuda_comm *comm; /* NULL with one device */
    /* Collectives that go on beside the stream: see cuda_collective.cu. */
    cudaStream_t aside, behind; /* behind: the stream, while dev->stream is the other one */
    cudaEvent_t reached, asides[FKV_ASIDES];
    int64_t n_asides;
    cpu_pool *pool;            /* for what the host does to weights */
    fkv_weight *weights;       /* list, freed by close */
    struct cuda_block *blocks; /* list of allocations, freed by close */
    cuda_record records[CUDA_RECORD_KEYS];
    cuda_record *current;                 /* between record_begin and record_end */
    bool recording;                       /* the stream is being captured: nothing may allocate or sync */
    cuda_span spans[FKV_MAX_LOCAL_RANKS]; /* outside of recorded steps */
    bool span_waiting[FKV_MAX_LOCAL_RANKS];
    double span_seconds[FKV_MAX_LOCAL_RANKS];
    bool failed; /* error_text is the first error */
    char error_text[512];
};

/* cuda_device.cu */
/* Keeps the first error with its place; returns whether e is success. */
bool cuda_check(fkv_device *dev, cudaError_t e, const char *file, int line, const char *what);
bool cuda_check_lt(fkv_device *dev, cublasStatus_t e, const char *file, int line, const char *what);
#define CUDA(dev, call)    cuda_check(dev, call, __FILE__, __LINE__, #call)
#define CUBLAS(dev, call)  cuda_check_lt(dev, call, __FILE__, __LINE__, #call)
#define CUDA_LAUNCHED(dev) cuda_check(dev, cudaGetLastError(), __FILE__, __LINE__, "launch")
/* For tests: with FAIRKV_TEST_FAIL="launch GPU PATH" or "alloc GPU PATH" that GPU's next launch, or
 * allocation, fails once there is a file PATH. Called once a step. */
void cuda_fail_if_told(fkv_device *dev);
/* Keeps why as the error. */
void cuda_fail(fkv_device *dev, const char *why);
/* The kept error as a status (FKV_E_DEVICE, "GPU 0 (NVIDIA H200): ..."). */
fkv_status cuda_status(fkv_device *dev, fkv_err *err);

/* Zeroed device memory until close. Not while recording. */
fkv_status cuda_alloc(fkv_device *dev, size_t bytes, void **out, fkv_err *err);
/* The same for scratch that grows in an op: room for bytes at *p, which has *room; the
 * kept error says when there is none. What was there before is not kept. */
bool cuda_grow(fkv_device *dev, void **p, size_t *room, size_t bytes);
/* Blocks but for such scratch; frees all but the oldest n of them; frees all. */
int64_t cuda_blocks_count(const fkv_device *dev);
void cuda_blocks_free(fkv_device *dev, int64_t n);
void cuda_blocks_close(fkv_device *dev);

/* cuda_transfer.cu: pinned memory for bytes <= CUDA_STAGING_BYTES / 4, until what is enqueued next is done;
 * waits for earlier work when the ring is full. NULL where there is none, and the error is kept. */
char *cuda_stage(fkv_device *dev, size_t bytes);
void cuda_upload(fkv_device *dev, void *dst, const void *host, size_t bytes);
void cuda_download(fkv_device *dev, void *host, const void *src, size_t bytes);
fkv_status cuda_sync(fkv_device *dev, fkv_err *err);
int64_t cuda_post(fkv_device *dev);
fkv_status cuda_wait(fkv_device *dev, int64_t ticket, fkv_err *err);
double cuda_ticket_seconds(fkv_device *dev, int64_t ticket);
/* Waits for the stream, hands out downloads and empties the ring. */
bool cuda_flush(fkv_device *dev);

/* cuda_record.cu */
bool cuda_replay(fkv_device *dev, int key);
void cuda_record_begin(fkv_device *dev, int key);
void cuda_record_end(fkv_device *dev, int key);
void cuda_span_begin(fkv_device *dev, int local_rank);
void cuda_span_end(fkv_device *dev, int local_rank);
void cuda_span_seconds(fkv_device *dev, double *seconds, int n_local);
/* Reads the events of the last step; the stream is idle. */
void cuda_record_collect(fkv_device *dev);
int cuda_recorded_spans(fkv_device *dev, int key, double *seconds, int n);
void cuda_record_forget(fkv_device *dev);
void cuda_record_close(fkv_device *dev);

/* cuda_weights.cu */
fkv_status cuda_weight_load(fkv_device *dev, const fkv_rows *parts, int n_parts, int64_t k, fkv_weight **out,
                            fkv_err *err);
fkv_status cuda_weight_load_gated(fkv_device *dev, fkv_rows gate, fkv_rows up, int64_t k, fkv_weight **out,
                                  fkv_err *err);
fkv_status cuda_embedding_load(fkv_device *dev, fkv_rows part, int64_t first, int64_t k, fkv_weight **out,
                               fkv_err *err);
void cuda_weight_shape(const fkv_weight *w, int64_t *n_rows, int64_t *k);
/* From row `row` on. */
cuda_weight_view cuda_weight_rows(const fkv_weight *w, int64_t row);
/* For kernels that know bf16 alone. */
const bf16 *cuda_weight_bf16(cuda_weight_view view);
/* First id of an embedding. */
int64_t cuda_embedding_first(const fkv_weight *w);
/* Of the device; frees all but the oldest n (their memory is cuda_alloc's). */
int64_t cuda_weights_count(const fkv_device *dev);
void cuda_weights_free(fkv_device *dev, int64_t n);

/* cuda_gemm.cu. y[n_rows, w.n] = x[n_rows, w.k] w^T + bias; row strides in elements; exactly n_rows
 * rows are read and written, by the algorithm of class_rows rows. */
fkv_status cuda_prepare_linear(fkv_device *dev, const fkv_weight *w, int64_t n_rows, fkv_epilogue epilogue,
                               fkv_err *err);
void cuda_linear(fkv_device *dev, fkv_acts x, int64_t n, int64_t class_rows, const fkv_weight *w, fkv_acts y,
                 bool f32_out, fkv_epilogue epilogue);
void cuda_gemm(fkv_device *dev, fkv_acts x, int64_t n_rows, int64_t class_rows, cuda_weight_view w, void *y,
               int64_t y_stride, bool f32_out);
/* Of the algorithms that were prepared, whatever their order; 0: none was. */
uint64_t cuda_gemm_fingerprint(const fkv_device *dev);
/* None was prepared; what was chosen stays chosen. */
void cuda_gemm_forget(fkv_device *dev);
void cuda_gemm_close(fkv_device *dev);

/* cuda_ops.cu */
void cuda_scale(fkv_device *dev, float *x, int64_t n, float factor, float cap);
void cuda_embed(fkv_device *dev, const int32_t *tokens, int64_t n, const fkv_weight *table, float *out);
void cuda_add_rmsnorm(fkv_device *dev, void *x, const void *y, const float *weight, float eps, int64_t n,
                      int64_t hidden, void *out, float *scale);
void cuda_last_rows(fkv_device *dev, const fkv_pack *pack, const void *x, int64_t hidden, void *out);
void cuda_start_slots(fkv_device *dev, const fkv_pack *pack, const fkv_slots *slots);
void cuda_scatter(fkv_device *dev, int32_t *dst, const fkv_edit *edits, int64_t n);
/* y[n, columns [0, n_cols) of stride] = sum over ranks, in rank order, of partials[n_ranks][n, n_cols]. */
void cuda_reduce_local(fkv_device *dev, const float *partials, int n_ranks, int64_t n, int64_t n_cols,
                       int64_t stride, bf16 *y);
/* out[n, share] = g(gate) * up of in[n, 2 * share] (gate columns, then up). */
void cuda_gate_mul(fkv_device *dev, fkv_activation g, const bf16 *in, int64_t n, int64_t share, bf16 *out,
                   int64_t out_stride);

/* cuda_quant.cu */
void cuda_quantise(fkv_device *dev, fkv_acts x, int64_t n, int64_t k);
/* out[n, share] in FP8 = g(gate) * up of in[n, 2 * share]. */
void cuda_gate_quantise(fkv_device *dev, fkv_activation g, const bf16 *in, int64_t n, int64_t share,
                        fkv_acts out);
/* to[n, k] e4m3 and scales[n] of from[n, k], all on the device. largest[n]: magnitudes of the whole rows, of
 * which these are a part; NULL: they are whole. */
void cuda_quantise_weight(fkv_device *dev, const bf16 *from, int64_t n, int64_t k, const float *largest,
                          uint8_t *to, float *scales);

/* cuda_prefill.cu. prepare fills the RoPE table and allocates what attention and compression need, by
 * dev->limits; called by the table's prepare, again after a release. */
int64_t cuda_workspace_bytes(const fkv_device_limits *limits, int n_threads);
fkv_status cuda_attention_prepare(fkv_device *dev, const float *inv_freq, const float *rope_scale,
                                  fkv_err *err);
void cuda_prefill_qkv(fkv_device *dev, const fkv_prefill_args *args);
void cuda_prefill_attention(fkv_device *dev, const fkv_prefill_args *args);
/* A device's table of the spec's RoPE; NULL: it has none. */
const float2 *cuda_rope_table(const fkv_device *dev, const fkv_attention_spec *spec);

/* cuda_scorers.cu */
void cuda_weight_gram(fkv_device *dev, const fkv_weight *w, int64_t rows, int n, float *out);

/* cuda_compress.cu */
void cuda_key_scores(fkv_device *dev, const fkv_prefill_args *args);
void cuda_kv_keep(fkv_device *dev, const fkv_keep_args *args);

/* cuda_decode_append.cu */
void cuda_decode_qkv(fkv_device *dev, const fkv_decode_args *args);

/* cuda_decode_plan.cu */
fkv_status cuda_prepare_decode(fkv_device *dev, const fkv_decode_args *args, fkv_err *err);
void cuda_decode_begin(fkv_device *dev, const fkv_slots *slots);
void cuda_decode_close(fkv_device *dev);

/* cuda_decode.cu */
void cuda_decode_attention(fkv_device *dev, const fkv_decode_args *args);

/* cuda_sample.cu */
void cuda_sample(fkv_device *dev, float *logits, int64_t stride, int n_slots, bool first,
                 const fkv_slots *slots, const fkv_token_rules *rules, int choice, int vocab);

/* cuda_supports.cu */
fkv_status cuda_supports(const fkv_device_limits *limits, const fkv_group *group, fkv_err *err);
bool cuda_reach(const fkv_group *group);
/* fkv_backend_restrict. */
bool cuda_restricted(void);
int cuda_shared_bytes(const cudaDeviceProp *p);

/* cuda_world.cu */
int cuda_count_gpus(void);
/* The GPU of the group's device i. */
int cuda_group_gpu(const fkv_group *group, int i);
/* Whether each GPU of the group can reach every other's memory. */
bool cuda_all_peers(const fkv_group *group);
int cuda_n_devices(void);
bool cuda_bus_place(int device, char out[FKV_BUS_PLACE]);
/* Whether so many devices can be had and can meet. */
fkv_status cuda_check_group(const fkv_group *group, fkv_err *err);
fkv_status cuda_world_open(const fkv_group *group, fkv_world **world, fkv_err *err);
void cuda_world_close(fkv_world *world);
void cuda_world_abort(fkv_world *world);
bool cuda_world_aborted(fkv_world *world);
/* Waits on the host until every device has come here; false when the world was aborted. What
 * one has written into the world before is then there for all. */
bool cuda_world_meet(fkv_device *dev);
/* While waiting: false when the world was aborted or the communicator failed. */
bool cuda_world_check(fkv_device *dev);
/* Whether every device can write the others' memory. */
bool cuda_world_peers(const fkv_world *world);
const fkv_group *cuda_world_group(const fkv_world *world);
int cuda_world_gpu(const fkv_world *world, int index);
int cuda_world_devices_per_gpu(const fkv_world *world);

/* cuda_collective.cu */
/* Joins the world's other devices; called by open on every device's thread. */
fkv_status cuda_world_join(fkv_device *dev, fkv_err *err);
void cuda_world_leave(fkv_device *dev);
void cuda_aside_begin(fkv_device *dev);
int64_t cuda_aside_end(fkv_device *dev);
void cuda_aside_wait(fkv_device *dev, int64_t ticket);
void cuda_aside_close(fkv_device *dev);
void cuda_gather_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols,
                      int elem_bytes);
void cuda_gather_heads(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                       const uint8_t *owner, const uint8_t *dev_owner);
void cuda_reduce_ranks(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                       void *y);

#endif
