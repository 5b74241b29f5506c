/* Q, K, V of a decode step's placements: one launch for all heads that a rank serves.
 *
 * A head's weights [per, K] (per = head_rows hd) are read once; few heads must keep all SMs
 * busy, so K is cut into splits, and every (column tile, split, head) is a block. A split's
 * sums go to the workspace; the append kernel adds them in order of the splits. How K is cut
 * depends on the weight's shape alone, and within a split one sum runs over K, so a row's bits
 * depend neither on its place nor on other rows, heads, or the number of slots.
 *
 * Rows that a placement does not own are not computed. Hopper multiplies by wgmma, other GPUs by
 * mma.sync, from the same tiles.
 */
#include "kernels/cuda_attention.h"
#include "kernels/cuda_wgmma.h"

enum {
    CHUNK = 64, /* of K: a row of a tile is 128 bytes */
    COLS = 128,
    MIN_CHUNKS = 4, /* of a split */
};

typedef struct qkv_params {
    const cuda_decode_head *heads;
    const bf16 *x; /* [n_slots, k] */
    float *parts;  /* [heads][n_splits][n_slots][per] */
    int64_t k;
    int n_slots, per, n_tiles, n_chunks, n_splits;
} qkv_params;

/* Rows [0, ROWS) of src, K elements [k0, k0 + CHUNK), into a tile; what is beyond n_rows or k is
 * zeros. */
template <int ROWS, int THREADS>
static __device__ __forceinline__ void load_chunk(uint32_t tile, const bf16 *src, int64_t k, int64_t k0,
                                                  int n_rows)
{
    constexpr int PIECES = CHUNK / 8;
    const int p = (int)threadIdx.x % PIECES;
    const bool in_k = k0 + p * 8 < k;
#pragma unroll
    for (int r = (int)threadIdx.x / PIECES; r < ROWS; r += THREADS / PIECES) {
        const bool valid = in_k && r < n_rows;
        copy_async16(tile + tile_offset<CHUNK>(r, p), valid ? src + r * k + k0 + p * 8 : src, valid);
    }
}

/* A warp's part of a chunk's product, and where its sums belong. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
struct tile_product { /* a warpgroup has 64 rows */
    float sums[64];
    int row, col; /* of sums[0] */

    __device__ __forceinline__ tile_product()
    {
        const int lane = (int)threadIdx.x % 32;
        for (int i = 0; i < 64; i++) sums[i] = 0;
        row = (int)threadIdx.x / 32 * 16 + lane / 4;
        col = lane % 4 * 2;
    }
    __device__ __forceinline__ void begin(uint32_t x, uint32_t w)
    {
        x += threadIdx.x / 128 * 64 * CHUNK * 2;
        wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < CHUNK / 16; kk++)
            wgmma_rows(sums, tile_descriptor(x + kk * 32, 16), tile_descriptor(w + kk * 32, 16), true);
        wgmma_commit();
    }
    __device__ __forceinline__ void end(void)
    {
        wgmma_wait<0>();
    }
    /* Pairs of columns: pair i is sums[2 i], sums[2 i + 1]. */
    static __device__ __forceinline__ int pair_row(int i)
    {
        return i % 2 * 8;
    }
    static __device__ __forceinline__ int pair_col(int i)
    {
        return i / 2 * 8;
    }
};
#else
struct tile_product { /* a warp has 32 rows x 64 columns */
    float sums[64];
    int row, col;
    int m0, n0;

    __device__ __forceinline__ tile_product()
    {
        const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
        for (int i = 0; i < 64; i++) sums[i] = 0;
        m0 = warp / 2 * 32;
        n0 = warp % 2 * 64;
        row = m0 + lane / 4;
        col = n0 + lane % 4 * 2;
    }
    __device__ __forceinline__ void begin(uint32_t x, uint32_t w)
    {
        const int lane = (int)threadIdx.x % 32;
        float(&c)[16][4] = *(float(*)[16][4])sums; /* [2 x 16 rows][8 x 8 columns] */
#pragma unroll
        for (int kk = 0; kk < CHUNK / 16; kk++) {
            uint32_t a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++)
                load_matrix4(a[i], x + tile_offset<CHUNK>(m0 + i * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t b[4]; /* columns 0-7: K 0-7, 8-15; columns 8-15: the same */
                load_matrix4(
                    b, w + tile_offset<CHUNK>(n0 + j * 16 + lane / 16 * 8 + lane % 8, kk * 2 + lane / 8 % 2));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    mma16816(c[i * 8 + 2 * j], a[i], b[0], b[1]);
                    mma16816(c[i * 8 + 2 * j + 1], a[i], b[2], b[3]);
                }
            }
        }
    }
    __device__ __forceinline__ void end(void)
    {
    }
    static __device__ __forceinline__ int pair_row(int i)
    {
        return i / 16 * 16 + i % 2 * 8;
    }
    static __device__ __forceinline__ int pair_col(int i)
    {
        return i % 16 / 2 * 8;
    }
};
#endif

static constexpr int shared_bytes(int rows, int stages)
{
    return stages * (rows + COLS) * CHUNK * 2;
}

/* A block does ROWS rows x COLS columns of one split of one head. Shared: STAGES chunks of K of both;
 * how many they are changes no bit. */
template <int ROWS, int STAGES>
static __global__ void __launch_bounds__(2 * ROWS) qkv_kernel(const qkv_params a)
{
    constexpr int THREADS = 2 * ROWS, X_BYTES = ROWS * CHUNK * 2, STAGE = X_BYTES + COLS * CHUNK * 2;
    extern __shared__ __align__(1024) char stages[];
    const cuda_decode_head h = a.heads[blockIdx.y];
    const int row0 = h.begin + (int)blockIdx.z * ROWS;
    if (row0 >= h.end) return;
    const int tile = (int)blockIdx.x % a.n_tiles, split = (int)blockIdx.x / a.n_tiles;
    const int from = a.n_chunks * split / a.n_splits, to = a.n_chunks * (split + 1) / a.n_splits;
    const int rows = h.end - row0, cols = a.per - tile * COLS;
    const uint32_t base = smem_address(stages);
    const bf16 *x = a.x + row0 * a.k, *w = h.weight + (int64_t)tile * COLS * a.k;
    tile_product product;

    auto load = [&](int chunk) {
        if (chunk < to) {
            const uint32_t at = base + (uint32_t)((chunk - from) % STAGES * STAGE);
            load_chunk<ROWS, THREADS>(at, x, a.k, (int64_t)chunk * CHUNK, rows);
            load_chunk<COLS, THREADS>(at + X_BYTES, w, a.k, (int64_t)chunk * CHUNK, cols);
        }
        copy_commit();
    };
    for (int i = 0; i < STAGES - 1; i++) load(from + i);
    for (int chunk = from; chunk < to; chunk++) {
        const uint32_t at = base + (uint32_t)((chunk - from) % STAGES * STAGE);
        copy_wait<STAGES - 2>();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wgmma_see_writes();
#endif
        __syncthreads(); /* all have this chunk, and are done with the last one, whose stage is next */
        product.begin(at, at + X_BYTES);
        load(chunk + STAGES - 1);
        product.end();
    }
    copy_wait<0>();
    float *out = a.parts +
                 ((int64_t)(blockIdx.y * (unsigned)a.n_splits + (unsigned)split) * a.n_slots + row0) * a.per +
                 tile * COLS;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        const int r = product.row + tile_product::pair_row(i), c = product.col + tile_product::pair_col(i);
        if (r < rows && c < cols)
            *(float2 *)(out + (int64_t)r * a.per + c) =
                make_float2(product.sums[2 * i], product.sums[2 * i + 1]);
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

template <int ROWS, int STAGES> static void launch(fkv_device *dev, const qkv_params &p, int n_heads)
{
    constexpr int bytes = shared_bytes(ROWS, STAGES);
    const dim3 grid((unsigned)(p.n_tiles * p.n_splits), (unsigned)n_heads,
                    (unsigned)((p.n_slots + ROWS - 1) / ROWS));
    if (!CUDA(dev, cudaFuncSetAttribute(qkv_kernel<ROWS, STAGES>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        bytes)))
        return;
    qkv_kernel<ROWS, STAGES><<<grid, 2 * ROWS, bytes, dev->stream>>>(p);
    CUDA_LAUNCHED(dev);
}

void cuda_decode_project(fkv_device *dev, const cuda_decode_head *heads, int n_heads, const bf16 *x,
                         int64_t k, int n_slots, int per, float *parts)
{
    const qkv_params p = {.heads = heads,
                          .x = x,
                          .parts = parts,
                          .k = k,
                          .n_slots = n_slots,
                          .per = per,
                          .n_tiles = (per + COLS - 1) / COLS,
                          .n_chunks = chunks_of(k),
                          .n_splits = cuda_qkv_splits(k)};
    static_assert(shared_bytes(64, 4) <= CUDA_LEAST_SHARED && shared_bytes(128, 3) <= CUDA_LEAST_SHARED,
                  "they fit every GPU");
    if (n_slots <= 64)
        launch<64, 4>(dev, p, n_heads);
    else if (shared_bytes(128, 4) <= dev->shared_bytes)
        launch<128, 4>(dev, p, n_heads);
    else
        launch<128, 3>(dev, p, n_heads);
}
