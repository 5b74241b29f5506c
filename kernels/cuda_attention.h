/* What the attention and compression files of the CUDA backend share: their workspace and the
 * warp-level pieces (asynchronous copies, ldmatrix, mma) that their kernels are made of.
 * Device pointers belong to the device (cuda_alloc), also after a failed prepare; the struct is freed by
 * cuda_decode_close. Not for products (cuda_gemm.cu), nor for collectives (cuda_collective.h).
 *
 * Shared-memory tiles hold rows in 16-byte pieces, such that the eight rows of an ldmatrix fall into
 * different banks: rows of 128 bytes, or a multiple, have piece p of row r at p ^ (r & 7), those of 64 at p ^
 * (r / 2 & 3); others are padded by a piece.
 */
#ifndef FKV_KERNELS_CUDA_ATTENTION_H
#define FKV_KERNELS_CUDA_ATTENTION_H

#include <cassert>
#include <type_traits>

#include "kernels/cuda_device.h"

enum {
    CUDA_SNAP_KEYS = FKV_TILE_TOKENS, /* keys of a tile of key_scores */
    CUDA_KEEP_HEADS = 64,             /* heads of prompts in one launch of kv_keep */
    CUDA_MAX_WINDOW = 4096,           /* bounds snapkv's workspace */
    CUDA_SCORE_SPLITS = 8,  /* parts of one prompt, or of several, whose covariances are made together */
    CUDA_QKV_SPLITS = 8,    /* of K in a decode step's projections, at the most */
    CUDA_SAMPLE_PARTS = 16, /* of a row of logits, at the most */
    CUDA_SAMPLE_BINS = 2048,
    CUDA_SAMPLE_LIST = 2048, /* candidates that are sorted */
};

/* A placement as the kernels read it. */
struct cuda_decode_head {
    int32_t head, begin, end, budget;
    int64_t offset;     /* of its pages in a slot's part of the table */
    const void *weight; /* [head_rows * hd, hidden] bf16, or e4m3 with a scale */
    const bf16 *bias;   /* [head_rows * hd]; NULL: none */
    const float *scale; /* [head_rows * hd]; NULL: none */
};

/* One (placement, slot) that has tokens to attend to in this step. */
struct cuda_decode_entry {
    int32_t first_page; /* pages of all entries before this one, as they count: CUDA_ENTRY_PAGES */
    int32_t n_tokens;
    int64_t table;    /* index of its first page's number in the page table */
    int32_t part;     /* first chunk partial, or -1: one CTA folds all its chunks */
    int32_t row;      /* placement * n_slots + slot: its row of q */
    int32_t out_head; /* slot * n_kv_heads + head: its row of out */
    int32_t hidden;   /* first tokens, less than a chunk, that the query does not see */
};

/* Of a list of entries. */
struct cuda_decode_count {
    int32_t entries, pages; /* pages as they count */
};

/* A rank's placements in a layer, and what decode_begin lists for it, device memory. */
struct cuda_rank_plan {
    cuda_decode_head *heads; /* [n_heads] */
    int n_heads;
    bool whole; /* a single rank's: all heads, whose weights are one matrix */
    int n_slots, n_kv_heads;
    int window;                 /* the spec's; 0: none */
    int entry_pages;            /* that an entry counts for beside its own */
    int64_t slot_stride;        /* of the page table */
    cuda_decode_entry *entries; /* [entries there can be + 1]: a last one with first_page = all pages */
    cuda_decode_count *count;   /* [1] */
    int32_t *starts;            /* [CTAs of attention]: the entry in which a CTA's run of pages begins */
};

/* Index in its pages of the token at the slot's position. */
static __device__ __forceinline__ int cuda_token_index(const cuda_decode_head &h, const fkv_slots &slots,
                                                       int slot)
{
    const int n = slots.prompt_len[slot];
    return (n < h.budget ? n : h.budget) + slots.pos[slot] - n;
}

/* Where CTA i of n begins in so many pages. */
static __device__ __forceinline__ int cuda_first_page(int64_t pages, unsigned i, unsigned n)
{
    return (int)(pages * i / n);
}

/* Pages more that an entry counts for than it has, when CTAs share out the work: to begin and to end one is
 * bound by latency, not by bytes (measured: LOG.md, 2026-11-26); of fp8 pages, which take half the time,
 * twice as many. Changes no bit, but who folds what. */
enum { CUDA_ENTRY_PAGES = 2, CUDA_ENTRY_PAGES_FP8 = 4 };

/* What a slot's sampling keeps between blocks and kernels: see cuda_sample.cu. */
struct cuda_sample_slot {
    uint32_t arrived;    /* blocks of the kernel under way that are done */
    uint32_t max, least; /* orders of the largest and the least finite logit */
    uint32_t n_listed;   /* of the bin, listed or not */
    int32_t bin;         /* in which the candidate lies that is sought */
    uint64_t target;     /* what it passes, in the bin */
    uint64_t before_mass;
    uint64_t best[CUDA_SAMPLE_PARTS], sum[CUDA_SAMPLE_PARTS];
    uint32_t worst[CUDA_SAMPLE_PARTS];
    uint32_t count[CUDA_SAMPLE_BINS];
    unsigned long long mass[CUDA_SAMPLE_BINS]; /* as atomics want it */
    uint64_t list[CUDA_SAMPLE_LIST];
};

/* Of the scorers beside snapkv; what those need that the limits don't name is empty. Vectors: a rank's KV
 * heads where keys are meant, else its query heads. A place is that of a prompt: its number in the pack, or
 * with `expected` its first split among those of the launch. */
struct cuda_scorer_space {
    float *sums;   /* [vectors][max_snap_tiles][hd] of a tile's keys or queries */
    float *mean;   /* [places][vectors][hd] */
    float *cov;    /* [CUDA_SCORE_SPLITS][query heads][hd][hd]: of a split's queries, not divided */
    bf16 *rows;    /* [places][query heads][2][hd][hd]: a matrix, and what of it bf16 loses */
    float *linear; /* [places][query heads][hd]: what the logits have beside that matrix */
    float *logits; /* [query heads][max_prompt] by row of the pack, log2 units */
    float2 *stat;  /* [places][query heads]: their max, 1 / (group * sum) */
    float2 *ahead; /* [n_ropes][hd / 2]: e_i of scorer.h */
    float *risk;   /* [places][KV heads]: the mean of a head's scores */
};

struct cuda_attention {
    bool wgmma;            /* prefill attention, and what `critical` multiplies, by the Hopper kernels */
    void *encode;          /* cuTensorMapEncodeTiled */
    int64_t max_snap_rows; /* window * group */
    int64_t max_snap_tiles;
    float2 *snap_part; /* [max_local_heads][max_snap_rows][max_snap_tiles] max, sum of a tile */
    float2 *snap_stat; /* [n_slots segments][max_local_heads][max_snap_rows] max, weight / sum */
    cuda_scorer_space score;
    float *snap_sum;       /* [max_local_heads][max_prompt] by row of the pack: scores before pooling */
    int32_t *keep;         /* [max_local_heads][max_prompt] by row of the pack: chosen positions */
    int64_t max_entries;   /* of a layer */
    cuda_rank_plan *lists; /* [layers][FKV_MAX_LOCAL_RANKS] as the kernel that lists entries reads them */
    float *qkv_parts;      /* [max_served][splits][n_slots][head_rows * hd] of a step's projections */
    int max_served;        /* n_kv_heads, or what a rank serves where a head's slots come in several pieces */
    float *parts;          /* [max_parts][group][hd] sums of a chunk, not divided */
    float2 *part_stat;     /* [max_parts][group] max (log2 units), sum */
    int begins_early;      /* 1: kernels begin beside the ones before them (Hopper) */
    int64_t max_parts;
    cuda_sample_slot *sample; /* [n_slots] */
};

/* cuda_prefill.cu. Of the spec; norm's weights are the device's. */
struct cuda_finish;
cuda_finish cuda_finish_of(const fkv_device *dev, const fkv_attention_spec *spec, const fkv_qk_norm *norm);

/* cuda_decode_plan.cu. As prepare_decode made it; NULL, and the error is kept, where it was not called. */
const cuda_rank_plan *cuda_decode_plan_of(fkv_device *dev, const fkv_decode_args *args);

/* cuda_decode_qkv.cu. parts[n_heads][splits][n_slots][per] = x[n_slots, k] W^T of every placement's
 * weight, in splits of k; rows outside of a placement's range are left alone. per is even, k a multiple
 * of 8, of 16 in FP8; x is dense. */
int cuda_qkv_splits(int64_t k);
void cuda_decode_project(fkv_device *dev, const cuda_decode_head *heads, int n_heads, fkv_acts x, int64_t k,
                         int n_slots, int per, float *parts);

/* cuda_prefill_sm90.cu: the Hopper kernel. Available: whether this device runs it. */
bool cuda_prefill_sm90_available(fkv_device *dev, cuda_attention *att);
void cuda_prefill_sm90(fkv_device *dev, const fkv_prefill_args *args);

/* cuda_scorers.cu. What keydiff and expected score before pooling, into snap_sum. */
void cuda_score_keydiff(fkv_device *dev, const fkv_prefill_args *args);
void cuda_score_expected(fkv_device *dev, const fkv_prefill_args *args);

/* cuda_scorer_rows.cu. Norms behind the output projection: defensive's scores, of the pooled ones that are in
 * scores; critical's second. */
void cuda_score_norms(fkv_device *dev, const fkv_prefill_args *args);

/* Of scores in units of log2. For the usual scale the quotient itself, since log2(e) times the scale can
 * round to another number. */
static inline float cuda_score_scale(const fkv_attention_spec *spec)
{
    const float log2e = 1.4426950408889634f;
    if (spec->scale == fkv_attention_scale(spec->head_dim)) return log2e / sqrtf((float)spec->head_dim);
    return log2e * spec->scale;
}

/* What a layer's spec makes of q k: scores in units of log2, of the keys that a query sees. */
struct cuda_scores {
    float scale;
    float cap, cap_by; /* cap * tanh(y), where e^2y is 2^(cap_by * q k); cap 0: none */
    int window;        /* 0: all keys before the query */
};

static inline cuda_scores cuda_scores_of(const fkv_attention_spec *spec)
{
    const float log2e = 1.4426950408889634f;
    cuda_scores s = {};
    s.scale = cuda_score_scale(spec);
    s.cap = log2e * spec->softcap;
    s.cap_by = spec->softcap > 0 ? 2.0f * log2e * spec->scale / spec->softcap : 0.0f;
    s.window = spec->window;
    return s;
}

/* Whether a layer wants more than a scale: it has kernels of its own then. */
static inline bool cuda_scores_odd(const fkv_attention_spec *spec)
{
    return spec->softcap > 0 || spec->window > 0;
}

/* f(std::integral_constant of the head_dim), for kernels that are made for each. */
template <typename F> static inline void with_head_dim(int hd, F f)
{
    switch (hd) {
    case 64: f(std::integral_constant<int, 64>()); return;
    case 96: f(std::integral_constant<int, 96>()); return;
    case 128: f(std::integral_constant<int, 128>()); return;
    case 256: f(std::integral_constant<int, 256>()); return;
    default: assert(!"supports refuses it");
    }
}

/* The segment whose tile (of all segments' tiles in order) this is. */
static __device__ __forceinline__ int segment_of_tile(const fkv_segment *segments, int n, int tile)
{
    int lo = 0, hi = n;
    while (lo + 1 < hi) {
        const int mid = (lo + hi) / 2;
        if (segments[mid].tile0 <= tile)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* What a block of prefill attention works on: queries [row0, row0 + 128) of a prompt, whose results go
 * to rows out0 + query; or the last query alone. */
struct row_block {
    fkv_segment segment;
    int index; /* of the segment */
    int row0;
    int out0;
};

/* Grid y: tiles, the last ones first; or segments. */
static __device__ __forceinline__ row_block find_rows(const fkv_segment *segments, int n_segments,
                                                      bool last_only)
{
    row_block r;
    const int tile = segments[0].tile0 + (int)(gridDim.y - 1 - blockIdx.y);
    r.index = last_only ? (int)blockIdx.y : segment_of_tile(segments, n_segments, tile);
    r.segment = segments[r.index];
    r.row0 = last_only ? r.segment.n_tokens - 1 : (tile - r.segment.tile0) * FKV_TILE_TOKENS;
    r.out0 = last_only ? (r.segment.slot < 0 ? 0 : r.segment.slot) - r.row0 : r.segment.row0;
    return r;
}

static __device__ __forceinline__ uint32_t smem_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes, or zeros where not valid (src is not read then). */
static __device__ __forceinline__ void copy_async16(uint32_t dst, const void *src, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ void copy_commit(void)
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/* Waits until at most PENDING of this thread's groups are under way. */
template <int PENDING> static __device__ __forceinline__ void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

static __device__ __forceinline__ void load_matrix4(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

static __device__ __forceinline__ void load_matrix4_trans(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* c[16][8] += a[16][16] b[16][8] */
static __device__ __forceinline__ void mma16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* The score of q k = x, capped or not: tanh(y) = 1 - 2 / (e^2y + 1). NaN stays NaN. */
static __device__ __forceinline__ float odd_score(const cuda_scores &s, float x)
{
    if (!(s.cap > 0.0f)) return x * s.scale;
    return s.cap - __fdividef(2.0f * s.cap, exp2_fast(x * s.cap_by) + 1.0f);
}

/* lo into the lower half. */
static __device__ __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

/* Bytes that a row of a tile takes: HD numbers of T. */
template <int HD, typename T = bf16> static constexpr FKV_IN_KERNELS int tile_row(void)
{
    constexpr int BYTES = HD * (int)sizeof(T);
    return BYTES % 128 == 0 || BYTES == 64 ? BYTES : BYTES + 16;
}

/* Byte offset of 16-byte piece `piece` of row `row` in a tile. */
template <int HD, typename T = bf16>
static __device__ __forceinline__ uint32_t tile_offset(int row, int piece)
{
    constexpr int ROW = tile_row<HD, T>();
    static_assert(ROW % 128 == 0 || ROW == 64 || ROW / 16 % 2, "eight rows in different banks");
    if constexpr (ROW % 128 == 0) return (uint32_t)(row * ROW + ((piece ^ (row & 7)) << 4));
    if constexpr (ROW == 64) return (uint32_t)(row * ROW + ((piece ^ (row >> 1 & 3)) << 4));
    return (uint32_t)(row * ROW + (piece << 4));
}

/* Rows [row0, row0 + ROWS) of src (stride in elements) into a tile; rows from n_rows on are zeros. */
template <int HD, int ROWS, int THREADS>
static __device__ __forceinline__ void load_tile(uint32_t tile, const bf16 *src, int64_t stride, int64_t row0,
                                                 int64_t n_rows)
{
    constexpr int PIECES = HD / 8;
    for (int i = (int)threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const int r = i / PIECES, p = i % PIECES;
        const bool valid = row0 + r < n_rows;
        copy_async16(tile + tile_offset<HD>(r, p), src + (valid ? row0 + r : 0) * stride + p * 8, valid);
    }
}

/* Rotates eight pairs (lo[i], hi[i]) by (cos, sin) cs[i]; in place in registers. */
static __device__ __forceinline__ void rope8(uint4 &lo, uint4 &hi, const float2 *cs)
{
    bf16 *a = (bf16 *)&lo, *b = (bf16 *)&hi;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float2 t = cs[i];
        const float x = __bfloat162float(a[i]), y = __bfloat162float(b[i]);
        a[i] = __float2bfloat16_rn(x * t.x - y * t.y);
        b[i] = __float2bfloat16_rn(y * t.x + x * t.y);
    }
}

/* What becomes of queries and keys behind their projection, where that is more than RoPE. */
struct cuda_finish {
    const float *q_norm, *k_norm; /* [hd]; NULL: none */
    float eps;
    const float2 *rope; /* table; NULL: none */
};

/* A vector as a warp holds it: lane i has the pairs (x[i + 32 j], x[i + 32 j + hd / 2]), zeros behind. */
enum { CUDA_PAIRS = 4, CUDA_MAX_HEAD_DIM = 2 * 32 * CUDA_PAIRS };
struct cuda_vector {
    float lo[CUDA_PAIRS], hi[CUDA_PAIRS];
};

/* Norm (norm not NULL) and RoPE by one position's row of the table (cs not NULL), all in float32; squares
 * are added up by lane, then by halving. */
static __device__ __forceinline__ void finish_vector(cuda_vector &v, int half, const float *norm, float eps,
                                                     const float2 *cs, int lane)
{
    if (norm) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < CUDA_PAIRS; j++) sum = fmaf(v.lo[j], v.lo[j], fmaf(v.hi[j], v.hi[j], sum));
#pragma unroll
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        const float by = 1.0f / sqrtf(sum / (float)(2 * half) + eps);
#pragma unroll
        for (int j = 0; j < CUDA_PAIRS; j++) {
            const int i = lane + 32 * j;
            if (i >= half) continue;
            v.lo[j] *= by * norm[i];
            v.hi[j] *= by * norm[i + half];
        }
    }
    if (!cs) return;
#pragma unroll
    for (int j = 0; j < CUDA_PAIRS; j++) {
        const int i = lane + 32 * j;
        if (i >= half) continue;
        const float2 t = cs[i];
        const float x = v.lo[j], y = v.hi[j];
        v.lo[j] = x * t.x - y * t.y;
        v.hi[j] = y * t.x + x * t.y;
    }
}

static __device__ __forceinline__ void store_vector(bf16 *to, const cuda_vector &v, int half, int lane)
{
#pragma unroll
    for (int j = 0; j < CUDA_PAIRS; j++) {
        const int i = lane + 32 * j;
        if (i >= half) continue;
        to[i] = __float2bfloat16_rn(v.lo[j]);
        to[i + half] = __float2bfloat16_rn(v.hi[j]);
    }
}

#endif
