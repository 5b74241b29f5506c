/* Decode attention of the CUDA backend: ragged attention over pages.
 *
 * Every (placement, slot) has its own length. decode_begin (cuda_decode_plan.cu) lists the entries of a
 * step with the pages before each; decode_attention gives every CTA of a fixed grid an equal run of
 * pages, cut at chunks of CUDA_CHUNK_PAGES. A chunk is folded by one CTA: warp w takes tokens
 * [16 w, 16 w + 16) of every block of it, the warps are merged in order at the chunk's end, and the
 * chunks of an entry in order: by the CTA that begins it as far as its run goes, the others by a last
 * kernel. Who folds a chunk never matters to its bits.
 *
 * Fp8 pages (cuda_pages.h) go through the same products: each score is multiplied by its token's scale of K
 * (and the softmax's), each probability by its token's of V before it is rounded.
 *
 * On Hopper the kernel begins beside the one before it (cuda_decode_append.cu): what does not hang on that
 * one, all tokens but an entry's last ones, is on its way when that one ends.
 */
#include <math.h>

#include "kernels/cuda_early.h"
#include "kernels/cuda_pages.h"

enum {
    QUERIES = 8, /* columns of a tile: the group, padded */
    MERGE_WARPS = 8,
};

/* A CTA folds blocks of tokens, 16 a warp: pages, or where its warps' pieces are too large for shared memory
 * halves of pages. A warp ends every WARPS-th query of a tile. */
template <int HD> struct att_shape {
    static constexpr int WARPS = HD <= 128 ? 8 : 4, THREADS = 32 * WARPS, TOKENS = WARPS * WARP_TOKENS,
                         PAGE_BLOCKS = FKV_PAGE_TOKENS / TOKENS,
                         CHUNK_BLOCKS = CUDA_CHUNK_PAGES * PAGE_BLOCKS, ENDS = QUERIES / WARPS;
    static_assert(CUDA_MAX_GROUP <= 2 * QUERIES, "two tiles hold a group");
};

static FKV_IN_KERNELS int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

struct attention_params {
    const cuda_decode_entry *entries;
    const cuda_decode_count *count;
    const int32_t *starts;
    const char *arena;
    const int32_t *table;
    const bf16 *q;
    bf16 *out;
    float *parts;
    float2 *part_stat;
    int group;
    cuda_scores scores;
};

/* Merges a later piece (m, l, a) into (M, L, A): max, sum, and sums of values. */
template <int N>
static __device__ __forceinline__ void merge_piece(float &M, float &L, float (&A)[N], float m, float l,
                                                   const float (&a)[N])
{
    const float top = fmaxf(M, m), old = exp2_fast(M - top), now = exp2_fast(m - top);
    L = __fmaf_rn(L, old, __fmul_rn(l, now));
#pragma unroll
    for (int i = 0; i < N; i++) A[i] = __fmaf_rn(A[i], old, __fmul_rn(a[i], now));
    M = top;
}

/* N neighbouring values, two at a time where they are even. */
template <int N> static __device__ __forceinline__ void store_floats(float *to, const float (&a)[N])
{
    if constexpr (N % 2) {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = a[i];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 2) *(float2 *)(to + i) = make_float2(a[i], a[i + 1]);
    }
}

/* N = HD / 32 neighbouring values of a row of out. */
template <int N> static __device__ __forceinline__ void store_row(bf16 *out, const float (&a)[N], float sum)
{
    const float inv = 1.0f / sum;
    if constexpr (N % 2) {
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = __float2bfloat16_rn(a[i] * inv);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 2) *(uint32_t *)(out + i) = pack_bf16(a[i] * inv, a[i + 1] * inv);
    }
}

/* The blocks of a CTA's items, one after the other: entry `at`, block `block` of its n_blocks; the item
 * ends before item_end. The same walk loads and computes. */
template <int HD> struct block_cursor {
    using shape = att_shape<HD>;
    cuda_decode_entry entry, following;     /* following: entries[at + 1], loaded before it is needed */
    int at, n_blocks, block, item_end, end; /* end: first page (of all entries) behind this CTA's run */

    __device__ __forceinline__ bool done() const
    {
        return entry.n_tokens == 0;
    }

    __device__ __forceinline__ void set(const cuda_decode_entry *entries, const cuda_decode_entry &e, int i)
    {
        at = i;
        entry = e;
        if (e.n_tokens > 0) following = entries[i + 1]; /* the list ends with an entry of no tokens */
        n_blocks = (entry.n_tokens + shape::TOKENS - 1) / shape::TOKENS;
    }

    /* Index of the block's page in the table. */
    __device__ __forceinline__ int64_t table_index(void) const
    {
        return entry.table + block / shape::PAGE_BLOCKS;
    }

    __device__ __forceinline__ int chunk(void) const
    {
        return block / shape::CHUNK_BLOCKS;
    }

    /* Tokens of the entry from the warp's part of this block on. */
    __device__ __forceinline__ int tokens_left(int warp) const
    {
        return entry.n_tokens - block * shape::TOKENS - warp * WARP_TOKENS;
    }

    /* An item starts at block, or the walk ends: what of an entry this run begins, or a chunk of one that
     * another run began. */
    __device__ __forceinline__ void start_item(void)
    {
        const int pages = end - entry.first_page; /* of the entry, that begin in this run */
        if (block / shape::PAGE_BLOCKS >= pages) entry.n_tokens = 0;
        item_end = block + shape::CHUNK_BLOCKS;
        if (block == 0) item_end = ceil_div(pages, CUDA_CHUNK_PAGES) * shape::CHUNK_BLOCKS;
        if (entry.part < 0 || item_end > n_blocks) item_end = n_blocks;
    }

    __device__ __forceinline__ void step(const cuda_decode_entry *entries)
    {
        if (++block < item_end) return;
        if (block == n_blocks) {
            set(entries, following, at + 1);
            block = 0;
        }
        start_item();
    }

    /* The items whose first page is in [begin, stop) of all pages; page begin is one of entry `first`. */
    __device__ __forceinline__ void open(const cuda_decode_entry *entries, int first, int begin, int stop)
    {
        end = stop;
        set(entries, entries[first], first);
        block = (begin - entry.first_page + CUDA_CHUNK_PAGES - 1) / CUDA_CHUNK_PAGES * shape::CHUNK_BLOCKS;
        if (entry.part < 0 && block > 0) block = n_blocks;
        if (block >= n_blocks) {
            set(entries, following, first + 1);
            block = 0;
        }
        start_item();
    }
};

/* K and V of a warp's 16 tokens of a block (of a page) into its stage; tokens behind the entry's end are
 * zeros, but for scales. */
template <int HD, typename T>
static __device__ __forceinline__ void load_tokens(uint32_t stage, const attention_params &a, int page,
                                                   int block, int tokens, int warp, int lane)
{
    constexpr int ROW = HD * (int)sizeof(T), PIECES = ROW / 16;
    const int first = block % att_shape<HD>::PAGE_BLOCKS * att_shape<HD>::TOKENS + warp * WARP_TOKENS;
    const char *const at = a.arena + page * page_bytes<T>(HD), *const k = at + first * ROW;
#pragma unroll(HD <= 128 ? 8 : 2) /* more of it in flight spills */
    for (int i = 0; i < WARP_TOKENS * PIECES / 32; i++) {
        const int r = (i * 32 + lane) / PIECES, p = (i * 32 + lane) % PIECES;
        const char *const from = k + r * ROW + p * 16;
        copy_async16(stage + tile_offset<HD, T>(r, p), from, r < tokens);
        copy_async16(stage + WARP_TOKENS * tile_row<HD, T>() + tile_offset<HD, T>(r, p),
                     from + FKV_PAGE_TOKENS * ROW, r < tokens);
    }
    if constexpr (is_fp8<T>()) {
        constexpr int PER = 16 / (int)sizeof(float), LANES = WARP_TOKENS / PER;
        const int v = lane / LANES, t = lane % LANES * PER;
        const float *scales = (const float *)(at + page_scales<T>(HD)) + v * FKV_PAGE_TOKENS + first + t;
        if (v < 2) copy_async16(stage + stage_scales<HD, T>() + lane * 16, scales, t < tokens);
    }
}

/* What a warp holds of a chunk and a tile of queries: for queries lane % 4 * 2 + {0, 1} the max and its
 * lanes' sums, and o[hd][query] as mma tiles. */
template <int HD> struct warp_state {
    float m[2], sum[2], o[HD / 16][4];

    __device__ __forceinline__ void clear(void)
    {
        m[0] = m[1] = -INFINITY;
        sum[0] = sum[1] = 0.0f;
#pragma unroll
        for (int i = 0; i < HD / 16; i++) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
    }
};

/* Queries of an entry, a tile of them, as columns of mma tiles. */
template <int HD> struct query_tile {
    uint32_t at[HD / 16][2];
};

/* The 8x8 tile of a register per lane, transposed. */
static __device__ __forceinline__ uint32_t transpose8(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(y) : "r"(x));
    return y;
}

/* The tokens of 16 that a query sees, [hidden, tokens), and what becomes of its products with their keys. */
struct fold_rule {
    int hidden, tokens;
    cuda_scores scores;
};

/* Scores s[16 keys][8 queries] become probabilities of the online softmax along the keys; by: what o of
 * the two queries is scaled by; k: the tokens' scales (of bf16 1). ODD: a cap or a window, which may hide all
 * 16 from them. */
template <int HD, bool ODD>
static __device__ __forceinline__ void fold_scores(warp_state<HD> &w, float (&s)[4], const float (&t)[4],
                                                   float (&by)[2], const fold_rule &rule, const float (&k)[2],
                                                   int lane)
{
    const int r = lane / 4;
    const float k0 = k[0] * rule.scores.scale, k1 = k[1] * rule.scores.scale;
#pragma unroll
    for (int c = 0; c < 2; c++) {
        if constexpr (ODD) {
            const float x = odd_score(rule.scores, (s[c] + t[c]) * k[0]),
                        y = odd_score(rule.scores, (s[c + 2] + t[c + 2]) * k[1]);
            s[c] = r < rule.tokens && r >= rule.hidden ? x : -INFINITY;
            s[c + 2] = r + 8 < rule.tokens && r + 8 >= rule.hidden ? y : -INFINITY;
        } else {
            s[c] = r < rule.tokens ? (s[c] + t[c]) * k0 : -INFINITY;
            s[c + 2] = r + 8 < rule.tokens ? (s[c + 2] + t[c + 2]) * k1 : -INFINITY;
        }
        float top = fmaxf(w.m[c], fmaxf(s[c], s[c + 2]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 4));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 8));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 16));
        const float from = ODD && top == -INFINITY ? 0.0f : top;
        by[c] = exp2_fast(w.m[c] - from);
        s[c] = exp2_fast(s[c] - from);
        s[c + 2] = exp2_fast(s[c + 2] - from);
        w.sum[c] = fmaf(w.sum[c], by[c], s[c] + s[c + 2]);
        w.m[c] = top;
    }
}

/* Folds 16 tokens by the rule (at least the first is there), for every tile of queries: scores, softmax,
 * o[hd][8] += values[hd][16] p[16][8]. A fragment of K or V is read once for all tiles. */
template <int HD, typename T, int TILES, bool ODD>
static __device__ __forceinline__ void fold_tokens(warp_state<HD> (&w)[TILES],
                                                   const query_tile<HD> (&q)[TILES], uint32_t stage,
                                                   const fold_rule &rule, int lane)
{
    float s[TILES][4] = {}, t[TILES][4] = {}; /* two chains: half the latency */
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk += 2) {
        uint32_t k[4], raw[4];
        load_keys<HD, T>(k, raw, stage, kk, lane);
#pragma unroll
        for (int j = 0; j < TILES; j++) mma16816(s[j], k, q[j].at[kk][0], q[j].at[kk][1]);
        load_keys<HD, T>(k, raw, stage, kk + 1, lane);
#pragma unroll
        for (int j = 0; j < TILES; j++) mma16816(t[j], k, q[j].at[kk + 1][0], q[j].at[kk + 1][1]);
    }
    const token_scales scales = load_scales<HD, T>(stage, rule.tokens, lane);
    float by[TILES][2];
    uint32_t p[TILES][2];
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        fold_scores<HD, ODD>(w[j], s[j], t[j], by[j], rule, scales.k, lane);
        p[j][0] = transpose8(pack_bf16(s[j][0] * scales.v[0], s[j][1] * scales.v[0]));
        p[j][1] = transpose8(pack_bf16(s[j][2] * scales.v[1], s[j][3] * scales.v[1]));
    }
    const uint32_t values = stage + WARP_TOKENS * tile_row<HD, T>();
    uint32_t raw[4];
#pragma unroll
    for (int i = 0; i < HD / 16; i++) {
        uint32_t v[4];
        load_values<HD, T>(v, raw, values, i, lane);
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            w[j].o[i][0] *= by[j][0];
            w[j].o[i][1] *= by[j][1];
            w[j].o[i][2] *= by[j][0];
            w[j].o[i][3] *= by[j][1];
            mma16816(w[j].o[i], v, p[j][0], p[j][1]);
        }
    }
}

/* Queries from first on, in the order of keys' numbers; those beyond the group are zeros. */
template <int HD, typename T>
static __device__ __forceinline__ void load_queries(query_tile<HD> &q, const attention_params &a, int row,
                                                    int first, int lane)
{
    const int g = first + lane / 4;
    const bf16 *from = a.q + ((int64_t)row * fkv_head_rows(a.group) + g) * HD;
#pragma unroll
    for (int i = 0; i < HD / 16; i++) {
        if constexpr (is_fp8<T>()) {
            uint2 x = make_uint2(0, 0);
            if (g < a.group) x = *(const uint2 *)(from + i * 16 + lane % 4 * 4);
            q.at[i][0] = __byte_perm(x.x, x.y, 0x5410); /* numbers 0 and 2 of four */
            q.at[i][1] = __byte_perm(x.x, x.y, 0x7632);
        } else {
            q.at[i][0] = g < a.group ? *(const uint32_t *)(from + i * 16 + lane % 4 * 2) : 0;
            q.at[i][1] = g < a.group ? *(const uint32_t *)(from + i * 16 + lane % 4 * 2 + 8) : 0;
        }
    }
}

/* Where the warps meet at a chunk's end, with one tile of queries after the other. */
template <int HD> struct merge_buffer {
    float o[att_shape<HD>::WARPS][QUERIES][HD + 4]; /* padded: a store touches every bank once */
    float2 stat[att_shape<HD>::WARPS][QUERIES];     /* max, sum */
};

template <int HD, typename T>
static __device__ __forceinline__ void share_state(merge_buffer<HD> *b, warp_state<HD> &w, int warp, int lane)
{
    const int q = lane % 4 * 2, r = lane / 4;
#pragma unroll
    for (int c = 0; c < 2; c++) {
        w.sum[c] += __shfl_xor_sync(~0u, w.sum[c], 4);
        w.sum[c] += __shfl_xor_sync(~0u, w.sum[c], 8);
        w.sum[c] += __shfl_xor_sync(~0u, w.sum[c], 16);
        if (r == 0) b->stat[warp][q + c] = make_float2(w.m[c], w.sum[c]);
#pragma unroll
        for (int i = 0; i < HD / 16; i++) {
            float *const o = &b->o[warp][q + c][i * 16];
            if constexpr (is_fp8<T>()) {
                *(float2 *)(o + 2 * r) = make_float2(w.o[i][c], w.o[i][c + 2]);
            } else {
                o[r] = w.o[i][c];
                o[r + 8] = w.o[i][c + 2];
            }
        }
    }
}

/* Query g of a tile, its chunk from the warps' pieces in warp order: columns [lane * N, lane * N + N). The
 * query sees a token of the chunk, so the maximum is finite; a warp without has max -inf and adds 0. */
template <int HD, int N>
static __device__ __forceinline__ void merge_warps(const merge_buffer<HD> *b, int g, int lane, float &m,
                                                   float &sum, float (&a)[N])
{
    m = b->stat[0][g].x;
#pragma unroll
    for (int w = 1; w < att_shape<HD>::WARPS; w++) m = fmaxf(m, b->stat[w][g].x);
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) a[i] = 0.0f;
#pragma unroll
    for (int w = 0; w < att_shape<HD>::WARPS; w++) {
        const float2 stat = b->stat[w][g];
        const float by = exp2_fast(stat.x - m);
        const float *o = &b->o[w][g][lane * N];
        sum = __fmaf_rn(stat.y, by, sum);
#pragma unroll
        for (int i = 0; i < N; i++) a[i] = __fmaf_rn(o[i], by, a[i]);
    }
}

/* One query of an item so far, as the warp that ends it holds it: columns [lane * N, lane * N + N). */
template <int HD> struct query_state {
    float m, sum, o[HD / 32];
};

/* Query g: the chunk that ends with block now.block from the warps' pieces, merged behind the item's
 * earlier ones; at the item's end the result or the partial, and with the last partial the result. */
template <int HD>
static __device__ __forceinline__ void end_chunk(const attention_params &a, const merge_buffer<HD> *buffer,
                                                 query_state<HD> &item, const block_cursor<HD> &now,
                                                 int first_chunk, int g, int lane)
{
    constexpr int N = HD / 32;
    query_state<HD> c;
    merge_warps<HD, N>(buffer, g % QUERIES, lane, c.m, c.sum, c.o);
    if (now.chunk() == first_chunk)
        item = c;
    else
        merge_piece<N>(item.m, item.sum, item.o, c.m, c.sum, c.o);
    if (now.block + 1 < now.item_end) return;
    if (now.entry.part < 0 || (first_chunk == 0 && now.block + 1 == now.n_blocks)) {
        store_row<N>(a.out + ((int64_t)now.entry.out_head * a.group + g) * HD + lane * N, item.o, item.sum);
        return;
    }
    const int64_t at = ((int64_t)now.entry.part + first_chunk) * a.group + g;
    store_floats<N>(a.parts + at * HD + lane * N, item.o);
    if (lane == 0) a.part_stat[at] = make_float2(item.m, item.sum);
}

/* The same of all queries, by all warps. */
template <int HD, typename T, int TILES>
static __device__ __forceinline__ void end_chunks(const attention_params &a, merge_buffer<HD> *buffer,
                                                  warp_state<HD> (&w)[TILES],
                                                  query_state<HD> (&item)[TILES][att_shape<HD>::ENDS],
                                                  const block_cursor<HD> &now, int first_chunk, int warp,
                                                  int lane)
{
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        share_state<HD, T>(buffer, w[j], warp, lane);
        w[j].clear();
        __syncthreads();
#pragma unroll
        for (int e = 0; e < att_shape<HD>::ENDS; e++) {
            const int g = j * QUERIES + e * att_shape<HD>::WARPS + warp;
            if (g < a.group) end_chunk<HD>(a, buffer, item[j][e], now, first_chunk, g, lane);
        }
        __syncthreads();
    }
}

template <int HD, typename T> static constexpr int shared_bytes(int stages)
{
    return att_shape<HD>::WARPS * stages * stage_bytes<HD, T>() + (int)sizeof(merge_buffer<HD>);
}

/* As many as so much shared memory holds, but not more than keep the memory busy. */
template <int HD, typename T> static constexpr int stages_in(int bytes)
{
    constexpr int ENOUGH = 8;
    int n = 1;
    while (n < ENOUGH && shared_bytes<HD, T>(n + 1) <= bytes) n++;
    return n;
}

/* Ragged attention of one rank in one layer: see the head of the file. Grid: one CTA an SM. ODD: a cap or a
 * window. T: of the pages' numbers. Shared: every warp's own ring of STAGES x (K, V of 16 tokens), filled by
 * cp.async across item borders (no barrier until a chunk's end), and the merge buffer; how many stages there
 * are changes no bit. Bound by memory: reads fkv_kv_token_bytes a token. */
template <int HD, typename T, int STAGES, int TILES, bool ODD>
static __global__ void __launch_bounds__(att_shape<HD>::THREADS, 1)
    decode_attention_kernel(const attention_params a)
{
    using shape = att_shape<HD>;
    constexpr int STAGE = stage_bytes<HD, T>();
    extern __shared__ __align__(1024) char shared[];
    merge_buffer<HD> *const buffer = (merge_buffer<HD> *)(shared + shape::WARPS * STAGES * STAGE);
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const uint32_t ring = smem_address(shared) + (uint32_t)(warp * STAGES * STAGE);
    cuda_let_next_kernel_begin();
    const int64_t total = a.count->pages;
    const int begin = cuda_first_page(total, blockIdx.x, gridDim.x),
              end = cuda_first_page(total, blockIdx.x + 1, gridDim.x);
    if (begin == end) {
        cuda_wait_for_kernel(); /* or this one could end before it */
        return;
    }

    block_cursor<HD> ahead, now;
    ahead.open(a.entries, a.starts[blockIdx.x], begin, end);
    now = ahead;
    int page = ahead.done() ? 0 : a.table[ahead.table_index()];
    bool met = false; /* the kernel before has ended */
    auto meet = [&](void) {
        if (!met) cuda_wait_for_kernel();
        met = true;
    };
    auto load_next = [&](int stage) {
        if (!ahead.done()) {
            const int tokens = ahead.tokens_left(warp);
            if (ahead.block + 1 == ahead.n_blocks) meet(); /* the step's own token */
            if (tokens > 0)
                load_tokens<HD, T>(ring + (uint32_t)(stage * STAGE), a, page, ahead.block, tokens, warp,
                                   lane);
            ahead.step(a.entries);
            if (!ahead.done()) page = a.table[ahead.table_index()];
        }
        copy_commit();
    };
    for (int i = 0; i < STAGES; i++) load_next(i);
    meet();

    query_tile<HD> q[TILES];
    warp_state<HD> w[TILES];
#pragma unroll
    for (int j = 0; j < TILES; j++) w[j].clear();
    query_state<HD> item[TILES][shape::ENDS] = {};
    int row = now.entry.row, stage = 0, first_block = now.block;
    auto load_all_queries = [&](void) {
#pragma unroll
        for (int j = 0; j < TILES; j++) load_queries<HD, T>(q[j], a, row, j * QUERIES, lane);
    };
    if (!now.done()) load_all_queries();
    while (!now.done()) {
        copy_wait<STAGES - 1>();
        __syncwarp();
        const int tokens = now.tokens_left(warp);
        const fold_rule rule = {ODD ? now.entry.hidden - now.entry.n_tokens + tokens : 0, tokens, a.scores};
        if (tokens > 0) fold_tokens<HD, T, TILES, ODD>(w, q, ring + (uint32_t)(stage * STAGE), rule, lane);
        __syncwarp();
        load_next(stage);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        const bool item_ends = now.block + 1 == now.item_end;
        if (now.block + 1 == now.n_blocks) { /* on their way while the item ends */
            row = now.following.row;
            load_all_queries();
        }
        if (item_ends || (now.block + 1) % shape::CHUNK_BLOCKS == 0) {
            const int first_chunk = first_block / shape::CHUNK_BLOCKS;
            end_chunks<HD, T, TILES>(a, buffer, w, item, now, first_chunk, warp, lane);
        }
        now.step(a.entries);
        if (item_ends) first_block = now.block;
    }
    copy_wait<0>();
}

/* Merges the pieces of an entry in order, one query of it: its first `before` chunks, folded by one CTA, then
 * each of the others. A warp. */
template <int HD>
static __device__ __forceinline__ void merge_chunks(const attention_params &a, const cuda_decode_entry &e,
                                                    int before, int chunks, int g, int lane)
{
    constexpr int N = HD / 32;
    float m = 0.0f, sum = 0.0f, o[N];
#pragma unroll
    for (int i = 0; i < N; i++) o[i] = 0.0f;
#pragma unroll 4
    for (int c = before - 1; c < chunks; c++) {
        const int64_t at = ((int64_t)e.part + (c < before ? 0 : c)) * a.group + g;
        const float2 stat = a.part_stat[at];
        float co[N];
#pragma unroll
        for (int i = 0; i < N; i++) co[i] = a.parts[at * HD + lane * N + i];
        if (c >= before) {
            merge_piece<N>(m, sum, o, stat.x, stat.y, co);
            continue;
        }
        m = stat.x;
        sum = stat.y;
#pragma unroll
        for (int i = 0; i < N; i++) o[i] = co[i];
    }
    store_row<N>(a.out + ((int64_t)e.out_head * a.group + g) * HD + lane * N, o, sum);
}

/* Ends the entries whose chunks several CTAs have folded: block i the one that CTA i begins and CTA i + 1
 * goes on with. Grid: those CTAs but the last; warps take the queries in turns. Bound by latency. */
template <int HD>
static __global__ void __launch_bounds__(32 * MERGE_WARPS) merge_kernel(const attention_params a)
{
    const int64_t pages = a.count->pages;
    const int begin = cuda_first_page(pages, blockIdx.x, gridDim.x + 1),
              border = cuda_first_page(pages, blockIdx.x + 1, gridDim.x + 1);
    cuda_decode_entry e = {};
    if (begin < border) e = a.entries[a.starts[blockIdx.x + 1]];
    const int chunks = ceil_div(ceil_div(e.n_tokens, FKV_PAGE_TOKENS), CUDA_CHUNK_PAGES);
    const int before = ceil_div(border - e.first_page, CUDA_CHUNK_PAGES);
    const bool shared = begin < border && e.part >= 0 && e.first_page >= begin && e.first_page < border;
    cuda_wait_for_kernel(); /* in every block, or this kernel could end before that one */
    if (!shared || before >= chunks) return;
    for (int g = (int)threadIdx.x / 32; g < a.group; g += (int)blockDim.x / 32)
        merge_chunks<HD>(a, e, before, chunks, g, (int)threadIdx.x % 32);
}

template <int HD, typename T, int STAGES, int TILES, bool ODD>
static void launch(fkv_device *dev, const attention_params &p)
{
    constexpr int bytes = shared_bytes<HD, T>(STAGES);
    static_assert(STAGES > 1 || bytes <= CUDA_LEAST_SHARED, "one fits every GPU");
    cuda_launch_early(dev, decode_attention_kernel<HD, T, STAGES, TILES, ODD>, dim3((unsigned)dev->n_sms),
                      att_shape<HD>::THREADS, bytes, p);
}

/* As many blocks in flight as shared memory holds: Hopper's, Ampere's data-centre GPUs', any other's. */
template <int HD, typename T, int TILES, bool ODD>
static void run_attention(fkv_device *dev, const attention_params &p)
{
    constexpr int MOST = stages_in<HD, T>(227 << 10), SOME = stages_in<HD, T>(163 << 10),
                  LEAST = stages_in<HD, T>(CUDA_LEAST_SHARED);
    if (shared_bytes<HD, T>(MOST) <= dev->shared_bytes)
        launch<HD, T, MOST, TILES, ODD>(dev, p);
    else if (shared_bytes<HD, T>(SOME) <= dev->shared_bytes)
        launch<HD, T, SOME, TILES, ODD>(dev, p);
    else
        launch<HD, T, LEAST, TILES, ODD>(dev, p);
    if (dev->failed || dev->n_sms == 1) return;
    const int warps = p.group < MERGE_WARPS ? p.group : MERGE_WARPS;
    cuda_launch_early(dev, merge_kernel<HD>, dim3((unsigned)dev->n_sms - 1), 32 * warps, 0, p);
}

template <int HD, typename T, bool ODD> static void run_tiles(fkv_device *dev, const attention_params &p)
{
    if (p.group <= QUERIES)
        run_attention<HD, T, 1, ODD>(dev, p);
    else
        run_attention<HD, T, 2, ODD>(dev, p);
}

/* Behind decode_qkv of the same layer and rank. */
void cuda_decode_attention(fkv_device *dev, const fkv_decode_args *a)
{
    const cuda_rank_plan *plan = cuda_decode_plan_of(dev, a);
    if (!plan || plan->n_heads == 0) return;
    const cuda_attention *att = dev->attention;
    const attention_params p = {
        plan->entries,  plan->count,        plan->starts,           (const char *)a->kv.arenas[a->rank],
        a->kv.table,    (const bf16 *)a->q, (bf16 *)a->out,         att->parts,
        att->part_stat, a->spec->group,     cuda_scores_of(a->spec)};
    with_head_dim(a->spec->head_dim, [&](auto hd) {
        with_kv_form(a->kv.form, [&](auto number) {
            if (cuda_scores_odd(a->spec))
                run_tiles<hd(), decltype(number), true>(dev, p);
            else
                run_tiles<hd(), decltype(number), false>(dev, p);
        });
    });
}
