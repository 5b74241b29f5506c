/* A step's gate and up for Hopper: out = g(x Wgate^T + b) * (x Wup^T + b) of few rows x, in one kernel that
 * reads the weight once, at the memory's rate.
 *
 * A block makes tiles of 64 results for all rows: a producer warp loads the tile's 64 rows of gate and 64 of
 * up with the rows of x, chunk by chunk of k, into stages; one warpgroup multiplies gate's rows, the other
 * up's, weights as wgmma's 64 rows and x as its columns. Then each takes half of x's rows: the two hand over
 * the other half's sums. One sum runs over k in one piece, so that a row's bits depend neither on its place
 * nor on other rows. Weights are on their way before the kernel in front has written x.
 *
 * No split of k: even 48 blocks read as fast as the memory gives (LOG.md, 2026-11-26).
 */
#include "kernels/cuda_early.h"
#include "kernels/cuda_gate_sm90.h"
#include "kernels/cuda_rows.h"
#include "kernels/cuda_tma.h"
#include "kernels/cuda_wgmma.h"

enum {
    RESULTS = 64, /* of a tile: rows of gate, and as many of up */
    COLS = TMA_PANEL,
    PANELS = 2, /* of a chunk: 256 bytes of a row are one stretch of the memory */
    CHUNK = COLS * PANELS,
    THREADS = 384,
    MOST_ROWS = 128,
    LEAST_TILES = 48, /* fewer blocks would not keep the memory busy */
};

/* Shared memory: stages of weights and x, then the sums that warpgroups hand over. */
template <int ROWS> struct gate_space {
    static constexpr int W_PANEL = 2 * RESULTS * COLS * 2, X_PANEL = ROWS * COLS * 2,
                         STAGE = PANELS * (W_PANEL + X_PANEL), HANDED = ROWS / 4 * 256 * 4,
                         STAGES = ROWS == 64 ? 4 : 3, BYTES = STAGES * STAGE + HANDED + 1024;
    static_assert(BYTES <= 227 << 10, "a block of Hopper's");
};

struct gate_params {
    int n_tiles, n_chunks, share, n; /* results of a row; rows */
    const bf16 *bias;                /* [2 share] or NULL */
    bf16 *out;
    int64_t stride;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int ROWS> struct gate_barriers {
    uint64_t full[gate_space<ROWS>::STAGES], empty[gate_space<ROWS>::STAGES];
};

/* The blocks' tiles, and within them chunks, one after the other. */
struct gate_walk {
    int tile, chunk;

    __device__ __forceinline__ gate_walk() : tile((int)blockIdx.x), chunk(0)
    {
    }
    __device__ __forceinline__ void next(const gate_params &a)
    {
        if (++chunk < a.n_chunks) return;
        chunk = 0;
        tile += (int)gridDim.x;
    }
};

template <int ROWS>
static __device__ __forceinline__ void load_weights(uint32_t stage, const CUtensorMap *map,
                                                    const gate_params &a, const gate_walk &at, uint64_t *full,
                                                    uint64_t policy)
{
    using space = gate_space<ROWS>;
    barrier_expect(full, space::STAGE);
#pragma unroll
    for (int p = 0; p < PANELS; p++)
#pragma unroll
        for (int up = 0; up < 2; up++)
            load_box(stage + p * space::W_PANEL + up * (space::W_PANEL / 2), map, at.chunk * CHUNK + p * COLS,
                     up * a.share + at.tile * RESULTS, full, policy);
}

/* One thread. */
template <int ROWS>
static __device__ __forceinline__ void produce(uint32_t base, const CUtensorMap *w, const CUtensorMap *x,
                                               const gate_params &a, gate_barriers<ROWS> *b)
{
    using space = gate_space<ROWS>;
    const uint64_t once = policy_read_once(), often = policy_read_often();
    gate_walk ahead;
    int n_ahead = 0;
    for (; n_ahead < space::STAGES && ahead.tile < a.n_tiles; n_ahead++, ahead.next(a))
        load_weights<ROWS>(base + n_ahead * space::STAGE, w, a, ahead, &b->full[n_ahead], once);
    cuda_wait_for_kernel();
    gate_walk at;
    for (int i = 0; at.tile < a.n_tiles; i++, at.next(a)) {
        const int s = i % space::STAGES;
        const uint32_t stage = base + s * space::STAGE;
        if (i >= n_ahead) {
            barrier_wait(&b->empty[s], i / space::STAGES - 1 & 1);
            load_weights<ROWS>(stage, w, a, at, &b->full[s], once);
        }
#pragma unroll
        for (int p = 0; p < PANELS; p++)
            load_box(stage + PANELS * space::W_PANEL + p * space::X_PANEL, x, at.chunk * CHUNK + p * COLS, 0,
                     &b->full[s], often);
    }
}

/* sums[64 weights' rows][ROWS] of a tile, of gate or of up. i: chunks before. */
template <int ROWS>
static __device__ __forceinline__ void multiply(float (&sums)[ROWS / 2], uint32_t base, int up, int n_chunks,
                                                int &i, gate_barriers<ROWS> *b)
{
    using space = gate_space<ROWS>;
    for (int chunk = 0; chunk < n_chunks; chunk++, i++) {
        const int s = i % space::STAGES;
        const uint32_t w = base + s * space::STAGE + up * (space::W_PANEL / 2),
                       x = base + s * space::STAGE + PANELS * space::W_PANEL;
        barrier_wait(&b->full[s], i / space::STAGES & 1);
        wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < CHUNK / 16; kk++) {
            const int p = kk / 4, in = kk % 4 * 32;
            wgmma_rows(sums, tile_descriptor(w + p * space::W_PANEL + in, 16),
                       tile_descriptor(x + p * space::X_PANEL + in, 16), chunk > 0 || kk > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        if (threadIdx.x % 32 == 0) barrier_arrive(&b->empty[s]);
    }
}

static __device__ __forceinline__ void meet_other_warpgroup(void)
{
    asm volatile("bar.sync 1, 256;\n" ::: "memory");
}

/* Sums of the tile's gate in one warpgroup and of its up in the other (up: it is that one) become results
 * of the first half of x's rows in the one, of the second half in the other. */
template <int ROWS, fkv_activation G>
static __device__ __forceinline__ void finish(const float (&sums)[ROWS / 2], float *handed, bool up, int tile,
                                              const gate_params &a)
{
    constexpr int HALF = ROWS / 4; /* sums of a thread that stay, and that go */
    const int me = (int)threadIdx.x % 128, lane = me % 32;
    float *mine = handed + (up ? 128 * HALF : 0) + me, *theirs = handed + (up ? 0 : 128 * HALF) + me;
#pragma unroll
    for (int j = 0; j < HALF; j++) mine[j * 128] = sums[up ? j : HALF + j];
    meet_other_warpgroup();
    const int result = tile * RESULTS + me / 32 * 16 + lane / 4, row = lane % 4 * 2 + (up ? ROWS / 2 : 0);
#pragma unroll
    for (int j = 0; j < HALF; j++) {
        const int r = result + j % 4 / 2 * 8, i = row + j / 4 * 8 + j % 2;
        const float own = sums[up ? HALF + j : j], other = theirs[j * 128];
        float gate = up ? other : own, value = up ? own : other;
        if (r >= a.share || i >= a.n) continue;
        if (a.bias) {
            gate += __bfloat162float(a.bias[r]);
            value += __bfloat162float(a.bias[a.share + r]);
        }
        a.out[i * a.stride + r] = __float2bfloat16_rn(gate_of<G>(gate) * value);
    }
    meet_other_warpgroup(); /* before the next tile's are handed over */
}

#endif

template <int ROWS, fkv_activation G>
static __global__ void __launch_bounds__(THREADS, 1)
    gate_kernel(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x,
                const gate_params a)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using space = gate_space<ROWS>;
    extern __shared__ char shared[];
    __shared__ gate_barriers<ROWS> barriers;
    const uint32_t at = smem_address(shared), base = (at + 1023) & ~1023u;
    float *handed = (float *)(shared + (base - at) + space::STAGES * space::STAGE);
    const int warpgroup = (int)threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int s = 0; s < space::STAGES; s++) {
            barrier_init(&barriers.full[s], 1);
            barrier_init(&barriers.empty[s], 8);
        }
        barriers_begin();
    }
    __syncthreads();
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;\n");
        if (threadIdx.x == 0) produce<ROWS>(base, &w, &x, a, &barriers);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;\n");
    cuda_wait_for_kernel();
    int i = 0;
    for (int tile = (int)blockIdx.x; tile < a.n_tiles; tile += (int)gridDim.x) {
        float sums[ROWS / 2];
        multiply<ROWS>(sums, base, warpgroup - 1, a.n_chunks, i, &barriers);
        if (warpgroup == 1)
            finish<ROWS, G>(sums, handed, false, tile, a);
        else
            finish<ROWS, G>(sums, handed, true, tile, a);
    }
#else
    (void)w, (void)x, (void)a;
#endif
}

/* --- host --------------------------------------------------------------------- */

bool cuda_gate_sm90_can(const fkv_device *dev, fkv_acts x, int64_t class_rows, const cuda_weight_view *w)
{
    const int64_t share = w->n / 2, tiles = (share + RESULTS - 1) / RESULTS;
    return dev->attention && dev->attention->wgmma && !x.scale && !w->scale && class_rows <= MOST_ROWS &&
           tiles >= LEAST_TILES && w->n < INT32_MAX && w->k % 8 == 0 && x.stride % 8 == 0 &&
           aligned16(x.data) && aligned16(w->data) && gate_space<MOST_ROWS>::BYTES <= dev->shared_bytes;
}

template <int ROWS, fkv_activation G>
static void run(fkv_device *dev, const CUtensorMap &w, const CUtensorMap &x, const gate_params &a)
{
    const int rounds = (a.n_tiles + dev->n_sms - 1) / dev->n_sms;
    const int blocks = (a.n_tiles + rounds - 1) / rounds; /* all have as many tiles, or one less */
    cuda_launch_early(dev, gate_kernel<ROWS, G>, dim3((unsigned)blocks), THREADS, gate_space<ROWS>::BYTES, w,
                      x, a);
}

template <int ROWS>
static void run_rows(fkv_device *dev, fkv_activation g, const CUtensorMap &w, const CUtensorMap &x,
                     const gate_params &a)
{
    if (g == FKV_ACTIVATION_SILU)
        run<ROWS, FKV_ACTIVATION_SILU>(dev, w, x, a);
    else
        run<ROWS, FKV_ACTIVATION_GELU_TANH>(dev, w, x, a);
}

void cuda_gate_sm90(fkv_device *dev, fkv_activation g, fkv_acts x, int64_t n, int64_t class_rows,
                    cuda_weight_view w, bf16 *out, int64_t stride)
{
    const int rows = class_rows <= 64 ? 64 : MOST_ROWS;
    const int64_t share = w.n / 2;
    const gate_params a = {.n_tiles = (int)((share + RESULTS - 1) / RESULTS),
                           .n_chunks = (int)((w.k + CHUNK - 1) / CHUNK),
                           .share = (int)share,
                           .n = (int)n,
                           .bias = w.bias,
                           .out = out,
                           .stride = stride};
    CUtensorMap of_w, of_x;
    static const char why[] = "no tensor map for a step's gate and up";
    if (dev->failed || !cuda_panel_map(dev, cuda_weight_bf16(w), w.n, w.k, w.k, RESULTS, why, &of_w) ||
        !cuda_panel_map(dev, (const bf16 *)x.data, n, w.k, x.stride, rows, why, &of_x))
        return;
    if (rows == 64)
        run_rows<64>(dev, g, of_w, of_x, a);
    else
        run_rows<MOST_ROWS>(dev, g, of_w, of_x, a);
}
