/* Sampling of the CUDA backend: greedy, or temperature, then top-k, then top-p, as the
 * CPU backend defines them; a block a slot, bound by reading the logits (from L2 after
 * the first pass).
 *
 * Probabilities are not summed as floats: a weight exp((x - max) / temperature), at most
 * 1, becomes an integer of 2^-shift units, with shift so large that the sum of a
 * vocabulary just fits 64 bits. Integer sums are the same in any order, so atomics and
 * any number of threads give one answer, and "the first whose running sum passes u
 * times the total" needs no care about rounding. It differs from the CPU backend's sums
 * in double by less than 2^-29 of the total.
 *
 * Candidates in order of logit (ties: lower id) are never sorted. The one at which
 * a count or a mass is passed is found digit by digit of the logit's bits, from
 * histograms of 256 bins, and then among equal logits by id.
 */
#include "kernels/cuda_device.h"

enum { THREADS = 1024, WARPS = THREADS / 32, BINS = 256 };

/* fkv_random_u64 of runner/base/hash.c. */
static __device__ uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

static __device__ uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t i)
{
    const uint64_t golden = 0x9e3779b97f4a7c15ULL;
    const uint64_t key = mix(mix(seed + golden) ^ (stream + golden));
    return mix(key + (i + 1) * golden);
}

/* Order of logits as integers; both zeros are one, NaN is above all. */
static __device__ uint32_t order_of(float x)
{
    if (x != x) return ~0u;
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ float logit_of(uint32_t order)
{
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

static __device__ bool is_finite(uint32_t order)
{
    const uint32_t infinity = 0xff800000u; /* its order; the complement is that of -infinity */
    return order < infinity && order > ~infinity;
}

/* One row of logits and how its weights are counted. */
struct row_view {
    const float *x;
    int n;
    uint32_t max; /* order of the largest */
    double max_logit, temperature;
    double unit; /* 2^shift */
    bool single; /* weights rounded to float32, as candidates have them */
};

static __device__ uint64_t mass_of(const row_view &r, uint32_t order)
{
    double w = order == r.max ? 1.0 : exp(((double)logit_of(order) - r.max_logit) / r.temperature);
    if (r.single) w = (float)w;
    return __double2ull_rn(w * r.unit);
}

struct shared_state {
    uint64_t mass[BINS];
    uint32_t count[BINS];
    uint64_t warp[WARPS];
    uint64_t result[3];
};

/* Sum of v over the block, in every thread. */
static __device__ uint64_t block_sum(shared_state &sh, uint64_t v)
{
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh.warp[threadIdx.x / 32] = v;
    __syncthreads();
    uint64_t sum = 0;
    for (int w = 0; w < WARPS; w++) sum += sh.warp[w];
    return sum;
}

/* The largest of v over the block, in every thread. */
static __device__ uint64_t block_max(shared_state &sh, uint64_t v)
{
    for (int d = 16; d; d /= 2) {
        const uint64_t o = __shfl_xor_sync(~0u, v, d);
        v = o > v ? o : v;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh.warp[threadIdx.x / 32] = v;
    __syncthreads();
    uint64_t m = 0;
    for (int w = 0; w < WARPS; w++) m = sh.warp[w] > m ? sh.warp[w] : m;
    return m;
}

/* Order in the high half, then the complement of the id: the largest is the first. */
static __device__ uint64_t argmax_key(shared_state &sh, const float *x, int n)
{
    uint64_t best = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const uint64_t key = (uint64_t)order_of(x[i]) << 32 | (uint32_t)~i;
        best = key > best ? key : best;
    }
    return block_max(sh, best);
}

/* The first id, in order of ids, at which the running sum of weight(id) is more than
 * target; there is one. Every warp sums a segment, then one warp walks the segment. */
template <class Weight>
static __device__ int find_by_id(shared_state &sh, int n, uint64_t target, Weight weight)
{
    const int segment = ((n + WARPS - 1) / WARPS + 31) / 32 * 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint64_t sum = 0;
    for (int i = warp * segment + lane; i < (warp + 1) * segment && i < n; i += 32) sum += weight(i);
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    __syncthreads();
    if (lane == 0) sh.warp[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        uint64_t before = 0;
        int s = 0;
        while (s < WARPS - 1 && before + sh.warp[s] <= target) before += sh.warp[s++];
        int found = n - 1;
        for (int i0 = s * segment; i0 < (s + 1) * segment && i0 < n; i0 += 32) {
            uint64_t run = i0 + lane < n ? weight(i0 + lane) : 0;
            for (int d = 1; d < 32; d *= 2) {
                const uint64_t o = __shfl_up_sync(~0u, run, d);
                if (lane >= d) run += o;
            }
            const unsigned passed = __ballot_sync(~0u, before + run > target);
            if (passed) {
                found = i0 + __ffs(passed) - 1;
                break;
            }
            before += __shfl_sync(~0u, run, 31);
        }
        if (lane == 0) sh.result[0] = (uint64_t)found;
    }
    __syncthreads();
    const int found = (int)sh.result[0];
    __syncthreads();
    return found;
}

/* A candidate's place in the order of logits. */
struct place {
    uint32_t order; /* of its logit */
    uint64_t tied;  /* it is the tied-th of those with the same logit, from 0, by id */
    uint64_t mass;  /* of all candidates up to it, itself included */
};

/* The first candidate at which the running count (by_count) or mass passes target. */
static __device__ place find_by_rank(shared_state &sh, const row_view &r, bool by_count, uint64_t target)
{
    uint32_t prefix = 0;
    uint64_t count = 0, mass = 0; /* before the bin at hand */
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        for (int b = threadIdx.x; b < BINS; b += THREADS) sh.mass[b] = sh.count[b] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < r.n; i += THREADS) {
            const uint32_t order = order_of(r.x[i]);
            if (shift < 24 && order >> (shift + 8) != prefix) continue;
            const uint64_t m = mass_of(r, order);
            atomicAdd(&sh.count[order >> shift & 255], 1u);
            if (m) atomicAdd((unsigned long long *)&sh.mass[order >> shift & 255], (unsigned long long)m);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int b = BINS - 1;
            while (b > 0) {
                if ((by_count ? count + sh.count[b] : mass + sh.mass[b]) > target) break;
                count += sh.count[b];
                mass += sh.mass[b];
                b--;
            }
            sh.result[0] = (uint64_t)b;
            sh.result[1] = count;
            sh.result[2] = mass;
        }
        __syncthreads();
        prefix = prefix << 8 | (uint32_t)sh.result[0];
        count = sh.result[1];
        mass = sh.result[2];
    }
    __syncthreads();
    place p;
    const uint64_t one = mass_of(r, prefix);
    p.order = prefix;
    p.tied = by_count ? target - count : one ? (target - mass) / one : 0;
    p.mass = mass + (p.tied + 1) * one;
    return p;
}

/* u * total with u = the upper 53 bits of random / 2^53, rounded down: below total. */
static __device__ uint64_t drawn(uint64_t random, uint64_t total)
{
    return __umul64hi(random >> 11 << 11, total);
}

static __device__ int sample_row(shared_state &sh, row_view r, int top_k, double top_p, uint64_t random)
{
    const uint64_t best = argmax_key(sh, r.x, r.n);
    r.max = (uint32_t)(best >> 32);
    if (!is_finite(r.max)) return FKV_TOKEN_BAD_LOGITS;
    if (r.temperature <= 0) return (int)~(uint32_t)best;
    r.max_logit = (double)logit_of(r.max);
    const bool limited = top_k > 0 && top_k < r.n;
    r.single = top_k > 0 || top_p < 1;
    uint64_t total = 0;
    if (limited) {
        total = find_by_rank(sh, r, true, (uint64_t)top_k - 1).mass;
    } else {
        for (int i = threadIdx.x; i < r.n; i += THREADS) total += mass_of(r, order_of(r.x[i]));
        total = block_sum(sh, total);
    }
    if (!r.single)
        return find_by_id(sh, r.n, drawn(random, total), [&](int i) { return mass_of(r, order_of(r.x[i])); });
    if (top_p < 1) { /* the fewest candidates with top_p of the total */
        const uint64_t need = __double2ull_ru(top_p * (double)total);
        total = find_by_rank(sh, r, false, need > total ? total - 1 : need > 0 ? need - 1 : 0).mass;
    }
    const place p = find_by_rank(sh, r, false, drawn(random, total));
    return find_by_id(sh, r.n, p.tied, [&](int i) { return (uint64_t)(order_of(r.x[i]) == p.order); });
}

/* Grid: a block a slot. logits: row s for slot s. */
__global__ void __launch_bounds__(THREADS, 1)
    sample_kernel(const float *logits, int64_t stride, bool first, fkv_slots s, fkv_sampling p, int vocab,
                  double unit)
{
    __shared__ shared_state sh;
    const int slot = (int)blockIdx.x;
    const int32_t n_new = s.n_new[slot];
    if (s.active[slot] != (first ? FKV_SLOT_FRESH : FKV_SLOT_DECODING)) {
        if (threadIdx.x == 0) s.out[slot] = FKV_TOKEN_NONE;
        return;
    }
    row_view r = {};
    r.x = logits + (int64_t)blockIdx.x * stride;
    r.n = vocab;
    r.temperature = (double)p.temperature;
    r.unit = unit;
    const uint64_t random = random_u64(p.seed, s.ordinal[slot], (uint64_t)n_new);
    const int token = sample_row(sh, r, p.top_k, (double)p.top_p, random);
    __syncthreads(); /* all have read the slot's state */
    if (threadIdx.x) return;
    if (token < 0) {
        s.out[slot] = token;
        s.active[slot] = 0;
        return;
    }
    bool stop = n_new + 1 >= s.max_new[slot];
    for (int e = 0; e < p.n_eos; e++) stop |= token == p.eos[e];
    s.out[slot] = s.token[slot] = token;
    s.n_new[slot] = n_new + 1;
    if (!first) s.pos[slot]++;
    s.active[slot] = stop ? FKV_SLOT_IDLE : FKV_SLOT_DECODING;
}

void cuda_sample(fkv_device *dev, const float *logits, int64_t stride, int n_slots, bool first,
                 const fkv_slots *slots, const fkv_sampling *sampling, int vocab)
{
    if (n_slots <= 0) return;
    double unit = 9223372036854775808.0; /* 2^63 */
    for (int64_t all = 1; all < vocab; all *= 2) unit /= 2;
    sample_kernel<<<(unsigned)n_slots, THREADS, 0, dev->stream>>>(logits, stride, first, *slots, *sampling,
                                                                  vocab, unit);
    CUDA_LAUNCHED(dev);
}
