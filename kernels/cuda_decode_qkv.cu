/* Q, K, V of a decode step's placements: one launch for all heads that a rank serves.
 *
 * A head's weights [per, K] (per = head_rows hd) are read once; few heads must keep all SMs
 * busy, so K is cut into splits, and every (column tile, split, head) is a block. A split's
 * sums go to the workspace; the append kernel adds them in order of the splits. How K is cut
 * depends on the weight's shape alone, and within a split one sum runs over K, so a row's bits
 * depend neither on its place nor on other rows, heads, or the number of slots.
 *
 * The first chunks of the weights are on their way before the kernel in front has written x.
 * Rows that a placement does not own are not computed. Hopper multiplies by wgmma, other GPUs by
 * mma.sync, from the same tiles.
 *
 * Codes of FP8 are made bf16 in shared memory, which holds each of them exactly, and are multiplied as such:
 * the products are FP8's, their sums float32's. A split's sums are multiplied by both scales.
 */
#include "kernels/cuda_early.h"
#include "kernels/cuda_wgmma.h"

enum {
    CHUNK = 64, /* of K: a row of a tile is 128 bytes */
    COLS = 128,
    MIN_CHUNKS = 4, /* of a split */
};

typedef struct qkv_params {
    const cuda_decode_head *heads;
    const void *x;        /* [n_slots, k] bf16; of FP8 codes in the places of these */
    const float *x_scale; /* [n_slots], of FP8 */
    float *parts;         /* [heads][n_splits][n_slots][per] */
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

/* The same of codes, rows of `stride` bytes, into rows of CHUNK bytes. */
template <int ROWS, int THREADS>
static __device__ __forceinline__ void load_codes(uint32_t to, const uint8_t *src, int64_t stride, int64_t k,
                                                  int64_t k0, int n_rows)
{
    constexpr int PIECES = CHUNK / 16;
    const int p = (int)threadIdx.x % PIECES;
    const bool in_k = k0 + p * 16 < k;
#pragma unroll
    for (int r = (int)threadIdx.x / PIECES; r < ROWS; r += THREADS / PIECES) {
        const bool valid = in_k && r < n_rows;
        copy_async16(to + (uint32_t)(r * CHUNK + p * 16), valid ? src + r * stride + k0 + p * 16 : src,
                     valid);
    }
}

/* Two codes, in the high bytes of the halves of v, as bf16. Their bits as those of a bf16 are 2^-120 times
 * their value, subnormals too; no code is a NaN here: its row's scale is. */
static __device__ __forceinline__ uint32_t bf16_of_codes(uint32_t v)
{
    const uint32_t bits = (v & 0x80008000u) | (v >> 4 & 0x07f007f0u);
    const __nv_bfloat162 by = __floats2bfloat162_rn(0x1p120f, 0x1p120f);
    const __nv_bfloat162 product = __hmul2(*(const __nv_bfloat162 *)&bits, by);
    return *(const uint32_t *)&product;
}

/* Rows [0, ROWS) of codes into a tile of bf16. */
template <int ROWS, int THREADS> static __device__ __forceinline__ void widen(char *tile, const char *from)
{
    constexpr int PIECES = CHUNK / 16;
    const int p = (int)threadIdx.x % PIECES;
#pragma unroll
    for (int r = (int)threadIdx.x / PIECES; r < ROWS; r += THREADS / PIECES) {
        const uint4 codes = *(const uint4 *)(from + r * CHUNK + p * 16);
        const uint32_t in[4] = {codes.x, codes.y, codes.z, codes.w};
        uint32_t out[8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = bf16_of_codes(__byte_perm(in[i], 0, 0x1404));
            out[2 * i + 1] = bf16_of_codes(__byte_perm(in[i], 0, 0x3424));
        }
        *(uint4 *)(tile + tile_offset<CHUNK>(r, 2 * p)) = make_uint4(out[0], out[1], out[2], out[3]);
        *(uint4 *)(tile + tile_offset<CHUNK>(r, 2 * p + 1)) = make_uint4(out[4], out[5], out[6], out[7]);
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

/* Stages of both operands; of codes, which take half as much, with a tile of bf16 in front. */
static constexpr int shared_bytes(int rows, int stages, bool fp8)
{
    const int tile = (rows + COLS) * CHUNK * 2;
    return fp8 ? tile + stages * tile / 2 : stages * tile;
}

/* What a block does: ROWS rows x COLS columns of one split of one head. */
template <int ROWS> struct qkv_block {
    cuda_decode_head head;
    int row0, rows, cols, from, to; /* chunks [from, to) */
    int64_t column, out;            /* first of both in the head's weight and in parts */

    __device__ __forceinline__ explicit qkv_block(const qkv_params &a)
    {
        const int tile = (int)blockIdx.x % a.n_tiles, split = (int)blockIdx.x / a.n_tiles;
        head = a.heads[blockIdx.y];
        row0 = head.begin + (int)blockIdx.z * ROWS;
        rows = head.end - row0;
        column = tile * COLS;
        cols = a.per - tile * COLS;
        from = a.n_chunks * split / a.n_splits;
        to = a.n_chunks * (split + 1) / a.n_splits;
        out = ((int64_t)(blockIdx.y * (unsigned)a.n_splits + (unsigned)split) * a.n_slots + row0) * a.per +
              column;
    }
};

/* Chunk by chunk, STAGES of them on their way; how many they are changes no bit. */
template <int ROWS, int STAGES>
static __device__ __forceinline__ void multiply(const qkv_params &a, const qkv_block<ROWS> &b,
                                                tile_product &product, char *stages)
{
    constexpr int THREADS = 2 * ROWS, X_BYTES = ROWS * CHUNK * 2, STAGE = X_BYTES + COLS * CHUNK * 2;
    const uint32_t base = smem_address(stages);
    const bf16 *x = (const bf16 *)a.x + b.row0 * a.k, *w = (const bf16 *)b.head.weight + b.column * a.k;
    auto stage_of = [&](int chunk) { return base + (uint32_t)((chunk - b.from) % STAGES * STAGE); };
    auto load_x = [&](int chunk) {
        if (chunk < b.to) load_chunk<ROWS, THREADS>(stage_of(chunk), x, a.k, (int64_t)chunk * CHUNK, b.rows);
        copy_commit();
    };
    auto load_w = [&](int chunk) {
        if (chunk < b.to)
            load_chunk<COLS, THREADS>(stage_of(chunk) + X_BYTES, w, a.k, (int64_t)chunk * CHUNK, b.cols);
    };
    for (int i = 0; i < STAGES - 1; i++) load_w(b.from + i);
    cuda_wait_for_kernel();
    for (int i = 0; i < STAGES - 1; i++) load_x(b.from + i);
    for (int chunk = b.from; chunk < b.to; chunk++) {
        const uint32_t at = stage_of(chunk);
        copy_wait<STAGES - 2>();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wgmma_see_writes();
#endif
        __syncthreads(); /* all have this chunk, and are done with the last one, whose stage is next */
        product.begin(at, at + X_BYTES);
        load_w(chunk + STAGES - 1);
        load_x(chunk + STAGES - 1);
        product.end();
    }
    copy_wait<0>();
}

/* The same of codes: a chunk's become the tile, once all are done with the chunk before. */
template <int ROWS, int STAGES>
static __device__ __forceinline__ void multiply_codes(const qkv_params &a, const qkv_block<ROWS> &b,
                                                      tile_product &product, char *tile)
{
    constexpr int THREADS = 2 * ROWS, X_BYTES = ROWS * CHUNK, STAGE = X_BYTES + COLS * CHUNK;
    char *stages = tile + 2 * STAGE;
    const uint32_t base = smem_address(stages), at = smem_address(tile);
    const uint8_t *x = (const uint8_t *)a.x + 2 * b.row0 * a.k,
                  *w = (const uint8_t *)b.head.weight + b.column * a.k;
    auto stage_of = [&](int chunk) { return base + (uint32_t)((chunk - b.from) % STAGES * STAGE); };
    auto load_x = [&](int chunk) {
        if (chunk < b.to)
            load_codes<ROWS, THREADS>(stage_of(chunk), x, 2 * a.k, a.k, (int64_t)chunk * CHUNK, b.rows);
        copy_commit();
    };
    auto load_w = [&](int chunk) {
        if (chunk < b.to)
            load_codes<COLS, THREADS>(stage_of(chunk) + X_BYTES, w, a.k, a.k, (int64_t)chunk * CHUNK, b.cols);
    };
    for (int i = 0; i < STAGES - 1; i++) load_w(b.from + i);
    cuda_wait_for_kernel();
    for (int i = 0; i < STAGES - 1; i++) load_x(b.from + i);
    for (int chunk = b.from; chunk < b.to; chunk++) {
        const char *codes = stages + (chunk - b.from) % STAGES * STAGE;
        copy_wait<STAGES - 2>();
        __syncthreads();
        widen<ROWS, THREADS>(tile, codes);
        widen<COLS, THREADS>(tile + 2 * X_BYTES, codes + X_BYTES);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wgmma_see_writes();
#endif
        __syncthreads();
        product.begin(at, at + 2 * X_BYTES);
        load_w(chunk + STAGES - 1);
        load_x(chunk + STAGES - 1);
        product.end();
    }
    copy_wait<0>();
}

template <int ROWS, int STAGES, bool FP8>
static __global__ void __launch_bounds__(2 * ROWS) qkv_kernel(const qkv_params a)
{
    extern __shared__ __align__(1024) char stages[];
    const qkv_block<ROWS> b(a);
    if (b.rows <= 0) {
        cuda_wait_for_kernel(); /* or this kernel could end before the one in front */
        return;
    }
    tile_product product;
    if constexpr (FP8)
        multiply_codes<ROWS, STAGES>(a, b, product, stages);
    else
        multiply<ROWS, STAGES>(a, b, product, stages);
    float *out = a.parts + b.out;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        const int r = product.row + tile_product::pair_row(i), c = product.col + tile_product::pair_col(i);
        if (r >= b.rows || c >= b.cols) continue;
        float2 sums = make_float2(product.sums[2 * i], product.sums[2 * i + 1]);
        if constexpr (FP8) {
            const float by = a.x_scale[b.row0 + r];
            const float2 scales = *(const float2 *)(b.head.scale + b.column + c);
            sums = make_float2(sums.x * by * scales.x, sums.y * by * scales.y);
        }
        *(float2 *)(out + (int64_t)r * a.per + c) = sums;
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

template <int ROWS, int STAGES, bool FP8>
static void launch(fkv_device *dev, const qkv_params &p, int n_heads)
{
    constexpr int bytes = shared_bytes(ROWS, STAGES, FP8);
    const dim3 grid((unsigned)(p.n_tiles * p.n_splits), (unsigned)n_heads,
                    (unsigned)((p.n_slots + ROWS - 1) / ROWS));
    cuda_launch_early(dev, qkv_kernel<ROWS, STAGES, FP8>, grid, 2 * ROWS, bytes, p);
}

void cuda_decode_project(fkv_device *dev, const cuda_decode_head *heads, int n_heads, fkv_acts x, int64_t k,
                         int n_slots, int per, float *parts)
{
    const qkv_params p = {.heads = heads,
                          .x = x.data,
                          .x_scale = x.scale,
                          .parts = parts,
                          .k = k,
                          .n_slots = n_slots,
                          .per = per,
                          .n_tiles = (per + COLS - 1) / COLS,
                          .n_chunks = chunks_of(k),
                          .n_splits = cuda_qkv_splits(k)};
    static_assert(
        shared_bytes(64, 4, false) <= CUDA_LEAST_SHARED && shared_bytes(128, 3, false) <= CUDA_LEAST_SHARED &&
            shared_bytes(64, 4, true) <= CUDA_LEAST_SHARED && shared_bytes(128, 4, true) <= CUDA_LEAST_SHARED,
        "they fit every GPU");
    if (x.scale && n_slots <= 64)
        launch<64, 4, true>(dev, p, n_heads);
    else if (x.scale)
        launch<128, 4, true>(dev, p, n_heads);
    else if (n_slots <= 64)
        launch<64, 4, false>(dev, p, n_heads);
    else if (shared_bytes(128, 4, false) <= dev->shared_bytes)
        launch<128, 4, false>(dev, p, n_heads);
    else
        launch<128, 3, false>(dev, p, n_heads);
}
