/* Q, K and V of a decode step of the CUDA backend: the projections' splits are added up, what the layer's
 * spec does to them, and K and V go into their pages.
 */
#include "kernels/cuda_early.h"
#include "kernels/cuda_pages.h"

enum {
    APPEND_THREADS = 256,
    APPEND_SLOTS = 4, /* of a block of append_kernel */
    APPEND_LANES = APPEND_THREADS / APPEND_SLOTS,
};

struct append_params {
    const cuda_decode_head *heads;
    fkv_slots slots;
    const int32_t *table;
    int64_t slot_stride;
    char *arena;
    const float *parts; /* of the projections: (placement, split, slot) at the strides below */
    int64_t placement_stride, split_stride, slot_stride_of_parts;
    bf16 *q; /* [placements, n_slots, head_rows * hd]: Q is written */
    cuda_finish finish;
    int n_splits;
    int n_slots, group, hd;
};

/* Eight columns of a projection, its splits added in order, as bf16. */
static __device__ __forceinline__ uint4 sum8(const float *part, int64_t stride, int n_splits)
{
    float4 lo[CUDA_QKV_SPLITS], hi[CUDA_QKV_SPLITS];
#pragma unroll
    for (int s = 0; s < CUDA_QKV_SPLITS; s++) {
        if (s >= n_splits) continue;
        lo[s] = *(const float4 *)(part + s * stride);
        hi[s] = *(const float4 *)(part + s * stride + 4);
    }
#pragma unroll
    for (int s = 1; s < CUDA_QKV_SPLITS; s++) {
        if (s >= n_splits) continue;
        lo[0] = make_float4(lo[0].x + lo[s].x, lo[0].y + lo[s].y, lo[0].z + lo[s].z, lo[0].w + lo[s].w);
        hi[0] = make_float4(hi[0].x + hi[s].x, hi[0].y + hi[s].y, hi[0].z + hi[s].z, hi[0].w + hi[s].w);
    }
    return make_uint4(pack_bf16(lo[0].x, lo[0].y), pack_bf16(lo[0].z, lo[0].w), pack_bf16(hi[0].x, hi[0].y),
                      pack_bf16(hi[0].z, hi[0].w));
}

/* Element i of a projection as the other kernel has it, its bias (NULL: none) added before it is rounded. */
static __device__ __forceinline__ float sum1(const float *part, int64_t stride, int n_splits,
                                             const bf16 *bias, int i)
{
    float sum = part[i];
#pragma unroll
    for (int s = 1; s < CUDA_QKV_SPLITS; s++)
        if (s < n_splits) sum += part[s * stride + i];
    if (bias) sum += __bfloat162float(bias[i]);
    return __bfloat162float(__float2bfloat16_rn(sum));
}

/* What a thread of the append kernels works on. */
struct append_place {
    const float *parts;
    bf16 *q;
    char *k, *v;              /* in the page */
    float *k_scale, *v_scale; /* the same, where it has them */
    int rope_row;
};

template <typename T>
static __device__ __forceinline__ append_place find_place(const append_params &a, const cuda_decode_head &h,
                                                          int64_t placement, int slot)
{
    const int at = cuda_token_index(h, a.slots, slot);
    const int64_t page = a.table[slot * a.slot_stride + h.offset + at / FKV_PAGE_TOKENS];
    append_place p;
    p.parts = a.parts + placement * a.placement_stride + slot * a.slot_stride_of_parts;
    p.q = a.q + (placement * a.n_slots + slot) * fkv_head_rows(a.group) * a.hd;
    char *const base = a.arena + page * page_bytes<T>(a.hd);
    const int row = a.hd * (int)sizeof(T);
    p.k = base + at % FKV_PAGE_TOKENS * row;
    p.v = p.k + FKV_PAGE_TOKENS * row;
    p.k_scale = (float *)(base + page_scales<T>(a.hd)) + at % FKV_PAGE_TOKENS;
    p.v_scale = p.k_scale + FKV_PAGE_TOKENS;
    p.rope_row = a.slots.rope0[slot] + a.slots.pos[slot];
    return p;
}

/* 64 threads, each on 8 columns (RoPE: on a pair of them). */
static __device__ __forceinline__ void append_plain(const append_params &a, const append_place &to, int lane)
{
    const int64_t stride = a.split_stride;
    const int half = a.hd / 2;
    const float2 *rope = a.finish.rope + (int64_t)to.rope_row * half;
    const int pieces = half / 8, n_rope = (a.group + 1) * pieces, n_all = n_rope + a.hd / 8;
    for (int i = lane; i < n_all; i += APPEND_LANES) {
        if (i >= n_rope) {
            const int p = (i - n_rope) * 8;
            *(uint4 *)((bf16 *)to.v + p) = sum8(to.parts + (a.group + 1) * a.hd + p, stride, a.n_splits);
            continue;
        }
        const int vector = i / pieces, p = i % pieces * 8;
        const float *part = to.parts + vector * a.hd + p;
        uint4 lo = sum8(part, stride, a.n_splits), hi = sum8(part + half, stride, a.n_splits);
        rope8(lo, hi, rope + p);
        bf16 *at = (vector == a.group ? (bf16 *)to.k : to.q + vector * a.hd) + p;
        *(uint4 *)at = lo;
        *(uint4 *)(at + half) = hi;
    }
}

/* Two warps, which take the vectors in turns. */
template <typename T>
static __device__ __forceinline__ void append_any(const append_params &a, const append_place &to,
                                                  const bf16 *bias, int warp, int lane)
{
    const cuda_finish &f = a.finish;
    const int half = a.hd / 2;
    for (int vector = warp; vector < fkv_head_rows(a.group); vector += APPEND_LANES / 32) {
        const int at = vector * a.hd;
        const bool value = vector > a.group;
        cuda_vector v = {};
#pragma unroll
        for (int j = 0; j < CUDA_PAIRS; j++) {
            const int i = lane + 32 * j;
            if (i >= half) continue;
            v.lo[j] = sum1(to.parts, a.split_stride, a.n_splits, bias, at + i);
            v.hi[j] = sum1(to.parts, a.split_stride, a.n_splits, bias, at + i + half);
        }
        if (!value)
            finish_vector(v, half, vector < a.group ? f.q_norm : f.k_norm, f.eps,
                          f.rope ? f.rope + (int64_t)to.rope_row * half : NULL, lane);
        if (vector < a.group)
            store_vector(to.q + at, v, half, lane);
        else if constexpr (is_fp8<T>())
            store_vector_fp8(value ? to.v : to.k, value ? to.v_scale : to.k_scale, v, half, lane);
        else
            store_vector((bf16 *)(value ? to.v : to.k), v, half, lane);
    }
}

/* append_plain into fp8 pages: K and V meet in shared memory in bf16, where a warp of the slot's two has one
 * of them whole. All threads of the block. */
static __device__ __forceinline__ void append_fp8(const append_params &a, const append_place &to, bool there,
                                                  int lane)
{
    __shared__ __align__(16) bf16 vectors[APPEND_SLOTS][2][CUDA_MAX_HEAD_DIM];
    bf16(*const mine)[CUDA_MAX_HEAD_DIM] = vectors[threadIdx.x / APPEND_LANES];
    append_place near = to;
    near.k = (char *)mine[0];
    near.v = (char *)mine[1];
    if (there) append_plain(a, near, lane);
    __syncthreads();
    if (!there) return;
    const int half = a.hd / 2, is_v = lane / 32;
    cuda_vector x = {};
#pragma unroll
    for (int j = 0; j < CUDA_PAIRS; j++) {
        const int i = lane % 32 + 32 * j;
        if (i >= half) continue;
        x.lo[j] = __bfloat162float(mine[is_v][i]);
        x.hi[j] = __bfloat162float(mine[is_v][i + half]);
    }
    store_vector_fp8(is_v ? to.v : to.k, is_v ? to.v_scale : to.k_scale, x, half, lane % 32);
}

/* Adds up the projections' splits of every entry, RoPE on Q and K, and K and V into its page, of numbers of
 * T; ANY: whatever the layer's spec asks for. Grid: placements x blocks of APPEND_SLOTS slots. Bound by
 * latency; attention, the next kernel, may begin at once. */
template <bool ANY, typename T>
static __global__ void __launch_bounds__(APPEND_THREADS) append_kernel(const append_params a)
{
    cuda_let_next_kernel_begin();
    const int blocks = (a.n_slots + APPEND_SLOTS - 1) / APPEND_SLOTS;
    const int64_t placement = blockIdx.x / blocks;
    const cuda_decode_head h = a.heads[placement];
    const int slot = (int)(blockIdx.x % blocks) * APPEND_SLOTS + (int)threadIdx.x / APPEND_LANES;
    const int lane = (int)threadIdx.x % APPEND_LANES;
    const bool there = slot >= h.begin && slot < h.end && a.slots.active[slot];
    if constexpr (is_fp8<T>() && !ANY) {
        append_fp8(a, there ? find_place<T>(a, h, placement, slot) : append_place{}, there, lane);
    } else if (there) {
        const append_place to = find_place<T>(a, h, placement, slot);
        if constexpr (ANY)
            append_any<T>(a, to, h.bias, lane / 32, lane % 32);
        else
            append_plain(a, to, lane);
    }
}

/* Projections of a rank's placements into the workspace, and where they lie there. A single rank's
 * are one product of the library. */
static void project(fkv_device *dev, const fkv_decode_args *a, const cuda_rank_plan *p, append_params *out)
{
    const int64_t per = (int64_t)fkv_head_rows(a->spec->group) * a->spec->head_dim,
                  width = a->spec->n_kv_heads * per;
    float *parts = dev->attention->qkv_parts;
    out->parts = parts;
    if (p->whole) {
        cuda_weight_view w = cuda_weight_rows(a->heads[0].weight, 0);
        w.n = width;
        w.bias = NULL; /* added where splits are */
        cuda_gemm(dev, a->x, a->n_slots, a->n_slots, w, parts, width, true);
        out->n_splits = 1;
        out->split_stride = 0;
        out->placement_stride = per;
        out->slot_stride_of_parts = width;
        return;
    }
    cuda_decode_project(dev, p->heads, p->n_heads, a->x, a->hidden, a->n_slots, (int)per, parts);
    out->n_splits = cuda_qkv_splits(a->hidden);
    out->split_stride = a->n_slots * per;
    out->placement_stride = out->n_splits * out->split_stride;
    out->slot_stride_of_parts = per;
}

void cuda_decode_qkv(fkv_device *dev, const fkv_decode_args *a)
{
    const cuda_rank_plan *p = cuda_decode_plan_of(dev, a);
    if (!p || p->n_heads == 0) return;
    append_params params = {};
    project(dev, a, p, &params);
    params.heads = p->heads;
    params.slots = a->slots;
    params.table = a->kv.table;
    params.slot_stride = a->kv.slot_stride;
    params.arena = (char *)a->kv.arenas[a->rank];
    params.q = (bf16 *)a->q;
    params.finish = cuda_finish_of(dev, a->spec, &a->norm);
    params.n_slots = a->n_slots;
    params.group = a->spec->group;
    params.hd = a->spec->head_dim;
    const int blocks = p->n_heads * ((a->n_slots + APPEND_SLOTS - 1) / APPEND_SLOTS);
    const bool any = a->spec->qkv_bias || a->spec->qk_norm || a->spec->rope < 0 || a->spec->window;
    with_kv_form(a->kv.form, [&](auto number) {
        if (any)
            append_kernel<true, decltype(number)><<<blocks, APPEND_THREADS, 0, dev->stream>>>(params);
        else
            append_kernel<false, decltype(number)><<<blocks, APPEND_THREADS, 0, dev->stream>>>(params);
    });
    CUDA_LAUNCHED(dev);
}
