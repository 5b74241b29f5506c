/* Causal prefill attention for Hopper: wgmma on tiles that TMA brings.
 *
 * A block is one query head and 128 queries: a producer warp loads Q once, then K and V tiles of 128
 * keys into two stages; two warpgroups of 64 queries each compute. A warpgroup has its next tile's
 * scores and its last tile's values under way together and does the softmax meanwhile. Tiles start at
 * the prompt's own key 0, so that a row's bits depend on nothing beside its prompt. Shared-memory tiles
 * are panels of 64 columns, [rows][128 bytes], in TMA's 128-byte swizzle.
 *
 * Other devices use the kernel in cuda_prefill.cu. Owns nothing.
 */
#include <math.h>

#include "kernels/cuda_attention.h"
#include "kernels/cuda_tma.h"
#include "kernels/cuda_wgmma.h"

enum {
    ROWS = FKV_TILE_TOKENS,
    KEYS = 128,
    STAGES = 2,
    PANEL = TMA_PANEL,
    PANEL_BYTES = KEYS * PANEL * 2,
    THREADS = 384
};
enum { MAPS = 31 }; /* tensor maps of a launch: as many as a kernel's 4 KiB of parameters hold */

static_assert(ROWS == KEYS, "one box of the tensor map serves Q, K and V");

/* --- synchronisation ---------------------------------------------------------- */

/* Barriers: full[s] when a stage's bytes are there; empty[s] when the 8 computing warps are done. */
struct tile_barriers {
    uint64_t q_full, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* A tile of HD columns from column x, rows from y on; rows behind the last are zeros. */
template <int HD>
static __device__ __forceinline__ void load_panels(uint32_t tile, const CUtensorMap *map, int x, int y,
                                                   uint64_t *full)
{
    barrier_expect(full, HD / PANEL * PANEL_BYTES);
#pragma unroll
    for (int i = 0; i < HD / PANEL; i++) load_box(tile + i * PANEL_BYTES, map, x + i * PANEL, y, full);
}

/* --- wgmma -------------------------------------------------------------------- */

/* c[64][128] += a[64][16] b[16][128]: a in registers, b with its columns contiguous. */
static __device__ __forceinline__ void wgmma_values(float (&c)[64], const uint32_t *a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, "
                 "%8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, "
                 "%24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, "
                 "%40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, "
                 "%56, %57, %58, %59, %60, %61, %62, %63}, "
                 "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
                   "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),
                   "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]),
                   "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]),
                   "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]),
                   "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]),
                   "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]),
                   "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
                   "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]),
                   "+f"(c[63])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* c[64][64] += a[64][16] b[16][64]: a in registers, b with its columns contiguous. */
static __device__ __forceinline__ void wgmma_values(float (&c)[32], const uint32_t *a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, "
                 "%8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, "
                 "%24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
                   "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),
                   "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]),
                   "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]),
                   "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* s[64 queries][128 keys] = Q K^T, begun. */
template <int HD>
static __device__ __forceinline__ void begin_scores(float (&s)[64], uint32_t queries, uint32_t keys)
{
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++) {
        const uint32_t at = (uint32_t)(kk / 4 * PANEL_BYTES + kk % 4 * 32);
        wgmma_rows(s, tile_descriptor(queries + at, 16), tile_descriptor(keys + at, 16), kk > 0);
    }
    wgmma_commit();
}

/* o[64 queries][HD] += P V, begun. */
template <int HD>
static __device__ __forceinline__ void begin_values(float (&o)[HD / 2], const uint32_t (&p)[32],
                                                    uint32_t values)
{
#pragma unroll
    for (int ks = 0; ks < KEYS / 16; ks++)
        wgmma_values(o, p + ks * 4, tile_descriptor(values + (uint32_t)(ks * 16 * 128), PANEL_BYTES));
    wgmma_commit();
}

/* --- softmax ------------------------------------------------------------------ */

/* Keys behind the thread's queries row and row + 8 become -inf. key: the thread's first. */
static __device__ __forceinline__ void mask_scores(float (&s)[64], int key, int row)
{
#pragma unroll
    for (int i = 0; i < 64; i++)
        if (key + i / 4 * 8 + i % 2 > row + i % 4 / 2 * 8) s[i] = -INFINITY;
}

/* s becomes probabilities; by: what earlier sums are multiplied with. The first tile holds key 0, which
 * every query sees, so the maxima are finite ever after. */
static __device__ __forceinline__ void softmax_tile(float (&s)[64], float (&m)[2], float (&sum)[2],
                                                    float (&by)[2], float scale)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = m[r];
#pragma unroll
        for (int j = 0; j < 16; j++) top = fmaxf(top, fmaxf(s[j * 4 + r * 2], s[j * 4 + r * 2 + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float bias = -top * scale;
        by[r] = exp2_fast((m[r] - top) * scale);
        float add = 0.0f;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            const int i = j * 4 + r * 2;
            s[i] = exp2_fast(fmaf(s[i], scale, bias));
            s[i + 1] = exp2_fast(fmaf(s[i + 1], scale, bias));
            add += s[i] + s[i + 1];
        }
        sum[r] = fmaf(sum[r], by[r], add);
        m[r] = top;
    }
}

static __device__ __forceinline__ void pack_probabilities(uint32_t (&p)[32], const float (&s)[64])
{
#pragma unroll
    for (int i = 0; i < 32; i++) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

/* --- the two roles ------------------------------------------------------------ */

struct attention_tiles {
    uint32_t q, k, v; /* shared; stages of k and v follow one another */
    int n;            /* tiles of keys */
};

/* One thread: Q, then K and V tile by tile as stages become empty. x_q, x_k, x_v: columns. */
template <int HD>
static __device__ __forceinline__ void produce(const CUtensorMap *map, tile_barriers *b,
                                               const attention_tiles &t, int x_q, int x_k, int row0)
{
    constexpr int TILE = KEYS * HD * 2;
    load_panels<HD>(t.q, map, x_q, row0, &b->q_full);
    for (int i = 0; i < t.n; i++) {
        const int s = i % STAGES, parity = i / STAGES & 1;
        barrier_wait(&b->k_empty[s], parity ^ 1);
        load_panels<HD>(t.k + (uint32_t)(s * TILE), map, x_k, i * KEYS, &b->k_full[s]);
        barrier_wait(&b->v_empty[s], parity ^ 1);
        load_panels<HD>(t.v + (uint32_t)(s * TILE), map, x_k + HD, i * KEYS, &b->v_full[s]);
    }
}

/* A warpgroup's 64 queries from row on (row: of the thread, its other one is row + 8). */
template <int HD>
static __device__ __forceinline__ void consume(tile_barriers *b, const attention_tiles &t, int row,
                                               float scale, float (&o)[HD / 2], float (&sum)[2])
{
    constexpr int TILE = KEYS * HD * 2;
    const int lane = (int)threadIdx.x % 32, first_row = row - lane / 4;
    float s[64], m[2] = {-INFINITY, -INFINITY}, by[2];
    uint32_t p[32];
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < HD / 2; i++) o[i] = 0.0f;

    barrier_wait(&b->q_full, 0);
    barrier_wait(&b->k_full[0], 0);
    wgmma_fence();
    begin_scores<HD>(s, t.q, t.k);
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(&b->k_empty[0]);
    if (KEYS - 1 > first_row) mask_scores(s, lane % 4 * 2, row);
    softmax_tile(s, m, sum, by, scale);
    pack_probabilities(p, s);
    for (int i = 1; i < t.n; i++) {
        const int stage = i % STAGES, parity = i / STAGES & 1, old = (i - 1) % STAGES,
                  old_parity = (i - 1) / STAGES & 1;
        barrier_wait(&b->k_full[stage], parity);
        wgmma_fence();
        begin_scores<HD>(s, t.q, t.k + (uint32_t)(stage * TILE));
        barrier_wait(&b->v_full[old], old_parity);
        wgmma_fence();
        begin_values<HD>(o, p, t.v + (uint32_t)(old * TILE));
        wgmma_wait<1>();
        if (lane == 0) barrier_arrive(&b->k_empty[stage]);
        if (i * KEYS + KEYS - 1 > first_row) mask_scores(s, i * KEYS + lane % 4 * 2, row);
        softmax_tile(s, m, sum, by, scale);
        wgmma_wait<0>();
        if (lane == 0) barrier_arrive(&b->v_empty[old]);
        pack_probabilities(p, s);
#pragma unroll
        for (int j = 0; j < HD / 2; j++) o[j] *= by[j % 4 / 2];
    }
    const int last = (t.n - 1) % STAGES;
    barrier_wait(&b->v_full[last], (t.n - 1) / STAGES & 1);
    wgmma_fence();
    begin_values<HD>(o, p, t.v + (uint32_t)(last * TILE));
    wgmma_wait<0>();
}

/* The thread's two rows of out, divided by their sums. */
template <int HD>
static __device__ __forceinline__ void store_rows(bf16 *out, int64_t stride, int64_t n_rows, int row,
                                                  const float (&o)[HD / 2], const float (&sum)[2])
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float total = sum[r];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        const float inv = 1.0f / total;
        if (row + r * 8 >= n_rows) continue;
        bf16 *to = out + (row + r * 8) * stride + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < HD / 8; j++)
            *(uint32_t *)(to + j * 8) = pack_bf16(o[j * 4 + r * 2] * inv, o[j * 4 + r * 2 + 1] * inv);
    }
}

#endif

/* Tensor maps of some of a pack's prompts, each of its own rows alone: what lies behind a prompt's last
 * row reads as zeros, never as another prompt. */
struct pack_maps {
    CUtensorMap of[MAPS];
};

/* Grid (query heads, row blocks): the longest rows start first. Warpgroup 0 loads, 1 and 2 compute.
 * Shared: Q, two stages of K and V, aligned to 1024 bytes. Bound by the tensor cores and the
 * exponentials. segments: those of the maps, the first one's tile0 is tile 0 of the grid. */
template <int HD>
static __global__ void __launch_bounds__(THREADS, 1)
    prefill_sm90_kernel(const __grid_constant__ pack_maps maps, const fkv_segment *segments, int n_segments,
                        bool last_only, int group, bf16 *out, int64_t out_stride, float scale)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int TILE = KEYS * HD * 2;
    extern __shared__ char shared[];
    __shared__ tile_barriers barriers;
    const int head = (int)blockIdx.x / group, g = (int)blockIdx.x % group, warpgroup = (int)threadIdx.x / 128;
    const row_block rows = find_rows(segments, n_segments, last_only);
    const int row0 = rows.row0, n_tokens = rows.segment.n_tokens;
    const int last = row0 + ROWS < n_tokens ? row0 + ROWS - 1 : n_tokens - 1;
    const uint32_t base = (smem_address(shared) + 1023) & ~1023u;
    const attention_tiles tiles = {base, base + TILE, base + (1 + STAGES) * TILE, last / KEYS + 1};
    if (threadIdx.x == 0) {
        barrier_init(&barriers.q_full, 1);
        for (int s = 0; s < STAGES; s++) {
            barrier_init(&barriers.k_full[s], 1);
            barrier_init(&barriers.v_full[s], 1);
            barrier_init(&barriers.k_empty[s], 8);
            barrier_init(&barriers.v_empty[s], 8);
        }
        barriers_begin();
    }
    __syncthreads();
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;\n");
        if (threadIdx.x == 0) {
            const int x = head * fkv_head_rows(group) * HD;
            produce<HD>(&maps.of[rows.index], &barriers, tiles, x + g * HD, x + group * HD, row0);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;\n");
        const int half = (warpgroup - 1) * 64,
                  in_block = half + (int)threadIdx.x % 128 / 32 * 16 + (int)threadIdx.x % 32 / 4;
        attention_tiles mine = tiles;
        mine.q += (uint32_t)(half * 128);
        float o[HD / 2], sum[2];
        consume<HD>(&barriers, mine, row0 + in_block, scale, o, sum);
        store_rows<HD>(out + rows.out0 * out_stride + (int64_t)blockIdx.x * HD, out_stride, n_tokens,
                       row0 + in_block, o, sum);
    }
#else
    (void)maps, (void)segments, (void)n_segments, (void)last_only, (void)group, (void)out, (void)out_stride,
        (void)scale;
#endif
}

/* --- host --------------------------------------------------------------------- */

bool cuda_prefill_sm90_available(fkv_device *dev, cuda_attention *att)
{
    cudaFuncAttributes f = {};
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    int major = 0;
    const bool ok =
        !dev->restricted &&
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, dev->gpu) == cudaSuccess &&
        major == 9 && cudaFuncGetAttributes(&f, prefill_sm90_kernel<128>) == cudaSuccess &&
        f.binaryVersion == 90 && f.ptxVersion >= 90 && /* not made from other PTX as it was loaded */
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &att->encode, 12000, cudaEnableDefault,
                                         &found) == cudaSuccess &&
        found == cudaDriverEntryPointSuccess;
    cudaGetLastError();
    return ok;
}

/* The first n_segments of segments, whose maps these are. */
template <int HD>
static void run(fkv_device *dev, const fkv_prefill_args *a, const pack_maps &maps,
                const fkv_segment *dev_segments, int n_segments, int n_tiles)
{
    const int bytes = (1 + 2 * STAGES) * KEYS * HD * 2 + 1024, group = a->spec->group;
    const dim3 grid((unsigned)(a->n_heads * group), (unsigned)(a->last_only ? n_segments : n_tiles));
    if (!CUDA(dev, cudaFuncSetAttribute(prefill_sm90_kernel<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        bytes)))
        return;
    prefill_sm90_kernel<HD><<<grid, THREADS, bytes, dev->stream>>>(maps, dev_segments, n_segments,
                                                                   a->last_only, group, (bf16 *)a->out,
                                                                   a->out_stride, cuda_score_scale(a->spec));
    CUDA_LAUNCHED(dev);
}

/* Of a prompt's rows of qkv [n_rows, n_heads * head_rows * hd], 16-byte aligned. */
static bool map_prompt(fkv_device *dev, const fkv_prefill_args *a, const fkv_segment *s, CUtensorMap *map)
{
    const int64_t width = a->n_heads * (int64_t)fkv_head_rows(a->spec->group) * a->spec->head_dim;
    return cuda_panel_map(dev, (const bf16 *)a->qkv + s->row0 * width, s->n_tokens, width, width, KEYS,
                          "no tensor map for the prompt's Q, K and V", map);
}

void cuda_prefill_sm90(fkv_device *dev, const fkv_prefill_args *a)
{
    const fkv_pack *pack = a->pack;
    const int hd = a->spec->head_dim;
    pack_maps maps;
    for (int first = 0; first < pack->n_segments; first += MAPS) {
        const int left = pack->n_segments - first, n = left < MAPS ? left : (int)MAPS;
        const int64_t end = n < left ? pack->segments[first + n].tile0 : pack->n_tiles;
        const int n_tiles = (int)(end - pack->segments[first].tile0);
        for (int i = 0; i < n; i++)
            if (!map_prompt(dev, a, &pack->segments[first + i], &maps.of[i])) return;
        if (hd == 128)
            run<128>(dev, a, maps, pack->dev_segments + first, n, n_tiles);
        else
            run<64>(dev, a, maps, pack->dev_segments + first, n, n_tiles);
    }
}
