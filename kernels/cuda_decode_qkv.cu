/* Q, K, V of a decode step's placements: one launch for all heads that a rank serves.
 *
 * A head's weights [per, K] (per = (group + 2) hd) are read once; few heads must keep all SMs
 * busy, so K is cut into splits, and every (column tile, split, head) is a block. A split's
 * sums go to the workspace; the append kernel adds them in order of the splits. How K is cut
 * depends on the weight's shape alone, and within a split one sum runs over K, so a row's bits
 * depend neither on its place nor on other rows, heads, or the number of slots.
 *
 * Rows that a placement does not own are not computed.
 */
#include "kernels/cuda_attention.h"

enum { CHUNK = 64 /* of K: a row of a tile is 128 bytes */, STAGES = 4, MIN_CHUNKS = 4 };

typedef struct qkv_params {
    const cuda_decode_head *heads;
    const bf16 *x; /* [n_slots, k] */
    float *parts;  /* [heads][n_splits][n_slots][per] */
    int64_t k;
    int n_slots, per, n_tiles, n_chunks, n_splits;
} qkv_params;

/* Rows [row0, row0 + ROWS) of src, K elements [k0, k0 + CHUNK), into a tile; what is beyond n_rows
 * or k is zeros. */
template <int ROWS, int THREADS>
static __device__ __forceinline__ void load_chunk(uint32_t tile, const bf16 *src, int64_t k, int64_t k0,
                                                  int row0, int n_rows)
{
    constexpr int PIECES = CHUNK / 8;
#pragma unroll
    for (int i = (int)threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const int r = i / PIECES, p = i % PIECES;
        const bool valid = row0 + r < n_rows && k0 + p * 8 < k;
        copy_async16(tile + tile_offset<CHUNK>(r, p), valid ? src + (row0 + r) * k + k0 + p * 8 : src, valid);
    }
}

/* A block does ROWS rows x COLS columns, a warp 32 rows x COLS / WARPS_N columns. */
template <int ROWS, int COLS, int WARPS_N>
static __global__ void __launch_bounds__(ROWS *WARPS_N) qkv_kernel(const qkv_params a)
{
    constexpr int THREADS = ROWS * WARPS_N, STAGE = (ROWS + COLS) * CHUNK * 2, N = COLS / WARPS_N;
    static_assert(N % 16 == 0, "a warp loads 16 columns at a time");
    extern __shared__ __align__(128) char stages[];
    const cuda_decode_head h = a.heads[blockIdx.y];
    const int row0 = h.begin + (int)blockIdx.z * ROWS;
    if (row0 >= h.end) return;
    const int tile = (int)blockIdx.x % a.n_tiles, split = (int)blockIdx.x / a.n_tiles;
    const int from = a.n_chunks * split / a.n_splits, to = a.n_chunks * (split + 1) / a.n_splits;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int m0 = warp / WARPS_N * 32, n0 = warp % WARPS_N * N;
    const uint32_t base = smem_address(stages);
    const bf16 *w = h.weight + (int64_t)tile * COLS * a.k;
    float sums[2][N / 8][4] = {};

    auto load = [&](int chunk) {
        if (chunk < to) {
            const uint32_t at = base + (uint32_t)((chunk - from) % STAGES * STAGE);
            load_chunk<ROWS, THREADS>(at, a.x, a.k, (int64_t)chunk * CHUNK, row0, h.end);
            load_chunk<COLS, THREADS>(at + ROWS * CHUNK * 2, w, a.k, (int64_t)chunk * CHUNK, 0, COLS);
        }
        copy_commit();
    };
    for (int i = 0; i < STAGES - 1; i++) load(from + i);
    for (int chunk = from; chunk < to; chunk++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load(chunk + STAGES - 1);
        const uint32_t xs = base + (uint32_t)((chunk - from) % STAGES * STAGE), ws = xs + ROWS * CHUNK * 2;
#pragma unroll
        for (int kk = 0; kk < CHUNK / 16; kk++) {
            uint32_t x[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++)
                load_matrix4(x[i], xs + tile_offset<CHUNK>(m0 + i * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < N / 16; j++) {
                uint32_t b[4]; /* columns 0-7: K 0-7, 8-15; columns 8-15: the same */
                load_matrix4(b, ws + tile_offset<CHUNK>(n0 + j * 16 + lane / 16 * 8 + lane % 8,
                                                        kk * 2 + lane / 8 % 2));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    mma16816(sums[i][2 * j], x[i], b[0], b[1]);
                    mma16816(sums[i][2 * j + 1], x[i], b[2], b[3]);
                }
            }
        }
    }
    copy_wait<0>();
    float *out = a.parts +
                 (int64_t)(blockIdx.y * (unsigned)a.n_splits + (unsigned)split) * a.n_slots * a.per +
                 (int64_t)tile * COLS + n0 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + m0 + i * 8 + lane / 4;
        if (row >= h.end) continue;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            const float *s = &sums[i / 2][j][i % 2 * 2];
            *(float2 *)(out + (int64_t)row * a.per + j * 8) = make_float2(s[0], s[1]);
        }
    }
}

static int chunks_of(int64_t k)
{
    return (int)((k + CHUNK - 1) / CHUNK);
}

int cuda_qkv_splits(int64_t k)
{
    const int most = chunks_of(k) / MIN_CHUNKS;
    return most < 1 ? 1 : most < CUDA_QKV_SPLITS ? most : CUDA_QKV_SPLITS;
}

template <int ROWS, int COLS, int WARPS_N>
static void launch(fkv_device *dev, const qkv_params &p, int n_heads)
{
    constexpr int bytes = STAGES * (ROWS + COLS) * CHUNK * 2;
    const dim3 grid((unsigned)(p.n_tiles * p.n_splits), (unsigned)n_heads,
                    (unsigned)((p.n_slots + ROWS - 1) / ROWS));
    if (!CUDA(dev, cudaFuncSetAttribute(qkv_kernel<ROWS, COLS, WARPS_N>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)))
        return;
    qkv_kernel<ROWS, COLS, WARPS_N><<<grid, ROWS * WARPS_N, bytes, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
}

template <int COLS> static void launch_rows(fkv_device *dev, const qkv_params &p, int n_heads)
{
    if (p.n_slots <= 32)
        launch<32, COLS, 4>(dev, p, n_heads);
    else if (p.n_slots <= 64)
        launch<64, COLS, 4>(dev, p, n_heads);
    else
        launch<128, COLS, 2>(dev, p, n_heads);
}

void cuda_decode_project(fkv_device *dev, const cuda_decode_head *heads, int n_heads, const bf16 *x,
                         int64_t k, int n_slots, int per, float *parts)
{
    const int cols = per % 128 ? 64 : 128;
    const qkv_params p = {.heads = heads,
                          .x = x,
                          .parts = parts,
                          .k = k,
                          .n_slots = n_slots,
                          .per = per,
                          .n_tiles = per / cols,
                          .n_chunks = chunks_of(k),
                          .n_splits = cuda_qkv_splits(k)};
    if (cols == 64)
        launch_rows<64>(dev, p, n_heads);
    else
        launch_rows<128>(dev, p, n_heads);
}
