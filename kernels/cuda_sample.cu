/* Sampling of the CUDA backend: greedy, or temperature, then top-k, then top-p, as the CPU
 * backend defines them.
 *
 * Probabilities are not summed as floats: a weight exp((x - max) / temperature), at most 1,
 * becomes an integer of 2^-shift units, with shift so large that the sum of a vocabulary
 * just fits 64 bits. Integer sums are the same in any order, so atomics and any number of
 * blocks and threads give one answer, and "the first whose running sum passes u times the
 * total" needs no care about rounding. It differs from the CPU backend's sums in double by
 * less than 2^-29 of the total.
 *
 * Every slot has a sampling of its own; what no slot at work needs is not launched, and a kernel
 * leaves at once where its slot needs it not.
 *
 * A row is cut into parts, a block each, so that few slots keep all multiprocessors busy;
 * the last block of a slot to end does what needs them all. Launches, each bound by reading
 * the logits from L2:
 * - adjust_kernel: the penalty, and -inf for ids that can't be chosen.
 * - max_kernel: the largest logit and the least. Greedy ends here.
 * - sum_kernel: without top-k and top-p, the sum of all weights, and the token by its id.
 * - weigh_kernel: else the candidates of every bin, counted and weighed. Bins are ranges of
 *   logits, from the largest down, so a bin holds neighbours in the order of candidates.
 * - find_kernel: lists the candidates of the bin in which the one sought lies, sorts them
 *   and finds it: the last of the top k, the last that top-p keeps, the one that is drawn.
 * A weight is computed once, and again for those that are listed. Candidates in order of
 * logit (ties: lower id) are never sorted as a whole; a bin that is too large to be listed
 * is halved by order until the one sought is known, by one block.
 */
#include "kernels/cuda_attention.h"

enum {
    THREADS = 512,
    WARPS = THREADS / 32,
    BINS = CUDA_SAMPLE_BINS,
    FINE_BINS = BINS / 2, /* of weights of at least exp(-FINE_NATS) */
    FINE_NATS = 16,
    LIST = CUDA_SAMPLE_LIST,
    BINS_EACH = BINS / THREADS,
    LISTED_EACH = LIST / THREADS,
    LOADS = 8, /* under way in a thread that does little more */
};

/* What has been found of a slot, in this order; top-k and top-p where it has them. */
enum stage { WEIGHED, TOP_K, TOP_P, DRAWN };

struct sample_params {
    float *logits; /* row s for slot s */
    int64_t stride;
    int vocab, n_parts;
    bool first;  /* the fresh slots' sample, else the decoding ones' */
    double unit; /* 2^shift */
    fkv_slots s;
    fkv_token_rules rules;
    cuda_sample_slot *work;
};

/* A count of candidates and the sum of their weights. */
struct tally {
    uint64_t count, mass;
};

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

/* Orders of the infinities. */
static const uint32_t infinity_order = 0xff800000u, lowest_order = 0x007fffffu;

static __device__ bool is_finite(uint32_t order)
{
    return order < infinity_order && order > lowest_order;
}

/* A candidate in the order of candidates: the largest key is the first. */
static __device__ uint64_t key_of(uint32_t order, int id)
{
    return (uint64_t)order << 32 | (uint32_t)~id;
}

static __device__ uint32_t order_of_key(uint64_t key)
{
    return (uint32_t)(key >> 32);
}

static __device__ int id_of_key(uint64_t key)
{
    return (int)~(uint32_t)key;
}

/* The row of a block's slot, and the block's part of it, ids [from, to). */
struct row_part {
    int slot, from, to;
    float *x;
    cuda_sample_slot *work;
    fkv_sampling p;
    bool limited; /* top_k cuts something off */
    bool single;  /* weights rounded to float32, as the CPU backend's candidates have them */
};

static __device__ row_part part_of(const sample_params &a)
{
    row_part r;
    r.slot = (int)blockIdx.y;
    r.x = a.logits + r.slot * a.stride;
    r.work = a.work + r.slot;
    r.p = a.s.sampling[r.slot];
    const bool draws = r.p.temperature > 0;
    r.limited = draws && r.p.top_k > 0 && r.p.top_k < a.vocab;
    r.single = draws && (r.p.top_k > 0 || r.p.top_p < 1);
    const int each = (a.vocab + a.n_parts - 1) / a.n_parts;
    r.from = (int)blockIdx.x * each < a.vocab ? (int)blockIdx.x * each : a.vocab;
    r.to = r.from + each < a.vocab ? r.from + each : a.vocab;
    return r;
}

/* Whether the slot is one to sample for. It stays so until the slot's last block has ended the sample. */
static __device__ bool is_sampled(const sample_params &a, int slot)
{
    return a.s.active[slot] == (a.first ? FKV_SLOT_FRESH : FKV_SLOT_DECODING);
}

/* f(id, logit) for this thread's ids in [from, to), N loads at a time. */
template <int N, class F>
static __device__ __forceinline__ void for_each(const float *x, int from, int to, const F &f)
{
    for (int i = from + (int)threadIdx.x; i < to; i += N * THREADS) {
        float v[N];
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = i + k * THREADS < to ? x[i + k * THREADS] : 0.0f;
#pragma unroll
        for (int k = 0; k < N; k++)
            if (i + k * THREADS < to) f(i + k * THREADS, v[k]);
    }
}

/* Weights of a row whose largest logit is known. */
struct weights {
    double max, inverse, unit; /* inverse temperature */
    bool single;
};

static __device__ weights weights_of(const sample_params &a, const row_part &r)
{
    weights w;
    w.max = (double)logit_of(r.work->max);
    w.inverse = 1.0 / (double)r.p.temperature;
    w.unit = a.unit;
    w.single = r.single;
    return w;
}

/* The same bits wherever it is computed. */
static __device__ uint64_t mass_of(const weights &w, float x)
{
    double e = exp(((double)x - w.max) * w.inverse);
    if (w.single) e = (double)(float)e;
    return __double2ull_rn(e * w.unit);
}

/* Bins [0, FINE_BINS) share the logits less than range below the largest, the others those down to the
 * least; what lies lower (-inf) is in the last. A larger logit is never in a later bin. */
struct bins {
    float max, range, fine, coarse;
};

static __device__ bins bins_of(const row_part &r)
{
    bins b;
    b.max = logit_of(r.work->max);
    const float spread = __fsub_rn(b.max, logit_of(r.work->least));
    b.range = fminf(FINE_NATS * r.p.temperature, 0.5f * spread);
    if (!(b.range > 1e-30f)) b.range = 0.0f;
    b.fine = b.range > 0 ? FINE_BINS / b.range : 0.0f;
    b.coarse = spread > b.range ? (BINS - FINE_BINS) / (spread - b.range) : 0.0f;
    return b;
}

static __device__ int bin_of(const bins &b, float x)
{
    const float below = __fsub_rn(b.max, x);
    if (below < b.range) {
        const int i = (int)__fmul_rn(below, b.fine);
        return i < FINE_BINS - 1 ? i : FINE_BINS - 1;
    }
    const float i = __fmul_rn(__fsub_rn(below, b.range), b.coarse);
    return i < (float)(BINS - FINE_BINS) ? FINE_BINS + (int)i : BINS - 1; /* also where i is NaN */
}

/* --- of a block ----------------------------------------------------------------- */

struct shared_sums {
    tally warp[WARPS];
    uint64_t found[2];
    bool last;
};

/* Sums over the threads before this one; *all: over the block, in every thread. */
static __device__ tally scan(shared_sums &sh, tally mine, tally *all)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    tally run = mine;
    for (int d = 1; d < 32; d *= 2) {
        const uint64_t count = __shfl_up_sync(~0u, run.count, d), mass = __shfl_up_sync(~0u, run.mass, d);
        if (lane >= d) {
            run.count += count;
            run.mass += mass;
        }
    }
    __syncthreads(); /* what the last one left there has been read */
    if (lane == 31) sh.warp[warp] = run;
    __syncthreads();
    tally before = {run.count - mine.count, run.mass - mine.mass};
    *all = tally{0, 0};
    for (int w = 0; w < WARPS; w++) {
        if (w == warp) {
            before.count += all->count;
            before.mass += all->mass;
        }
        all->count += sh.warp[w].count;
        all->mass += sh.warp[w].mass;
    }
    return before;
}

/* The largest of v, in every thread. */
static __device__ uint64_t block_max(shared_sums &sh, uint64_t v)
{
    for (int d = 16; d; d /= 2) {
        const uint64_t o = __shfl_xor_sync(~0u, v, d);
        v = o > v ? o : v;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh.warp[threadIdx.x / 32].count = v;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) v = sh.warp[w].count > v ? sh.warp[w].count : v;
    return v;
}

/* Called by all threads when the block has written its share: whether it is the slot's last one,
 * which then sees what all have written (with __ldcg). */
static __device__ bool is_last(shared_sums &sh, const sample_params &a, cuda_sample_slot *work)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        sh.last = atomicInc(&work->arrived, (unsigned)a.n_parts - 1) == (unsigned)a.n_parts - 1;
        __threadfence();
    }
    __syncthreads();
    return sh.last;
}

/* The first id in [from, to), in order of ids, at which the running sum of weight(id) is more than
 * target; there is one. Every warp sums a segment, then one warp walks the segment. */
template <class Weight>
static __device__ int find_by_id(shared_sums &sh, int from, int to, uint64_t target, const Weight &weight)
{
    const int segment = ((to - from + WARPS - 1) / WARPS + 31) / 32 * 32;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    uint64_t sum = 0;
    for (int i = from + warp * segment + lane; i < from + (warp + 1) * segment && i < to; i += 32)
        sum += weight(i);
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    __syncthreads();
    if (lane == 0) sh.warp[warp].mass = sum;
    __syncthreads();
    if (warp == 0) {
        uint64_t before = 0;
        int s = 0;
        while (s < WARPS - 1 && before + sh.warp[s].mass <= target) before += sh.warp[s++].mass;
        int found = to - 1;
        for (int i = from + s * segment; i < from + (s + 1) * segment && i < to; i += 32) {
            uint64_t run = i + lane < to ? weight(i + lane) : 0;
            for (int d = 1; d < 32; d *= 2) {
                const uint64_t o = __shfl_up_sync(~0u, run, d);
                if (lane >= d) run += o;
            }
            const unsigned passed = __ballot_sync(~0u, before + run > target);
            if (passed) {
                found = i + __ffs((int)passed) - 1;
                break;
            }
            before += __shfl_sync(~0u, run, 31);
        }
        if (lane == 0) sh.found[0] = (uint64_t)found;
    }
    __syncthreads();
    const int found = (int)sh.found[0];
    __syncthreads();
    return found;
}

/* --- the slot ------------------------------------------------------------------- */

/* u * total with u = the upper 53 bits of the slot's random number / 2^53, rounded down: below total. */
static __device__ uint64_t drawn(const sample_params &a, const row_part &r, uint64_t total)
{
    const uint64_t random = random_u64(r.p.seed, r.p.stream, (uint64_t)a.s.n_new[r.slot]);
    return __umul64hi(random >> 11 << 11, total);
}

/* The running weight that the last candidate that top-p keeps passes: the fewest with top_p of the total. */
static __device__ uint64_t kept(const row_part &r, uint64_t total)
{
    const uint64_t need = __double2ull_ru((double)r.p.top_p * (double)total);
    return need > total ? total - 1 : need > 0 ? need - 1 : 0;
}

/* fkv_sampling_ends. */
static __device__ bool ends(const sample_params &a, const fkv_sampling &p, int token)
{
    for (int e = 0; !p.ignores_ends && e < a.rules.n_ends; e++)
        if (token == a.rules.ends[e]) return true;
    return p.has_end && token == p.end;
}

/* One thread, when no other block of the slot reads its state any more. */
static __device__ void finish(const sample_params &a, const row_part &r, int token)
{
    const int slot = r.slot;
    if (token < 0) {
        a.s.out[slot] = token;
        a.s.active[slot] = FKV_SLOT_IDLE;
        return;
    }
    const int32_t n_new = a.s.n_new[slot];
    const bool stop = n_new + 1 >= a.s.max_new[slot] || ends(a, r.p, token);
    a.s.out[slot] = a.s.token[slot] = token;
    a.s.n_new[slot] = n_new + 1;
    if (!a.first) a.s.pos[slot]++;
    if (FKV_SAMPLING_PENALISES(r.p))
        a.s.seen[slot * FKV_SEEN_WORDS(a.vocab) + token / 32] |= 1u << token % 32;
    a.s.active[slot] = stop ? FKV_SLOT_IDLE : FKV_SLOT_DECODING;
}

/* Logits in place: a block has its part of the row for itself. */
static __global__ void __launch_bounds__(THREADS) adjust_kernel(const sample_params a)
{
    const row_part r = part_of(a);
    const fkv_token_rules &rules = a.rules;
    if (!is_sampled(a, r.slot)) return;
    if (FKV_SAMPLING_PENALISES(r.p)) {
        const uint32_t *seen = a.s.seen + r.slot * FKV_SEEN_WORDS(a.vocab);
        for (int i = r.from + (int)threadIdx.x; i < r.to; i += THREADS)
            if (seen[i / 32] >> i % 32 & 1)
                r.x[i] = r.x[i] < 0 ? __fmul_rn(r.x[i], r.p.repetition_penalty)
                                    : __fdiv_rn(r.x[i], r.p.repetition_penalty);
    }
    __syncthreads();
    const auto forbid = [&](int id) {
        if (id >= r.from && id < r.to) r.x[id] = -INFINITY;
    };
    for (int i = (int)threadIdx.x; i < rules.n_suppressed; i += THREADS) forbid(rules.suppressed[i]);
    if (threadIdx.x || a.s.n_new[r.slot] >= r.p.min_new) return;
    for (int e = 0; !r.p.ignores_ends && e < rules.n_ends; e++) forbid(rules.ends[e]);
    if (r.p.has_end) forbid(r.p.end);
}

/* Largest and least (finite) logit of every active slot; the bins are cleared for what comes next. Grid:
 * parts x slots, as of all kernels here. */
static __global__ void __launch_bounds__(THREADS) max_kernel(const sample_params a)
{
    __shared__ shared_sums sh;
    const row_part r = part_of(a);
    if (!is_sampled(a, r.slot)) {
        if (blockIdx.x == 0 && threadIdx.x == 0) a.s.out[r.slot] = FKV_TOKEN_NONE;
        return;
    }
    uint32_t most = 0, least = ~0u;
    int at = 0;
    for_each<LOADS>(r.x, r.from, r.to, [&](int i, float x) {
        const uint32_t order = order_of(x);
        if (order > most) {
            most = order;
            at = i;
        }
        if (order > lowest_order && order < least) least = order;
    });
    const uint64_t best = block_max(sh, key_of(most, at)), worst = block_max(sh, ~least);
    if (r.single)
        for (int b = (int)(blockIdx.x * THREADS + threadIdx.x); b < BINS; b += a.n_parts * THREADS) {
            r.work->mass[b] = 0;
            r.work->count[b] = 0;
        }
    if (threadIdx.x == 0) {
        r.work->best[blockIdx.x] = best;
        r.work->worst[blockIdx.x] = (uint32_t)worst;
    }
    if (!is_last(sh, a, r.work) || threadIdx.x) return;
    uint64_t key = 0;
    uint32_t low = 0;
    for (int p = 0; p < a.n_parts; p++) {
        const uint64_t k = __ldcg(&r.work->best[p]);
        const uint32_t l = __ldcg(&r.work->worst[p]);
        key = k > key ? k : key;
        low = l > low ? l : low;
    }
    r.work->max = order_of_key(key);
    r.work->least = ~low;
    r.work->n_listed = 0;
    a.s.out[r.slot] = FKV_TOKEN_NONE; /* for a slot that draws, if nothing that draws is launched */
    if (!is_finite(order_of_key(key)))
        finish(a, r, FKV_TOKEN_BAD_LOGITS);
    else if (r.p.temperature <= 0)
        finish(a, r, id_of_key(key));
}

/* All candidates in order of ids: sums of the parts, and the token by its id. */
static __global__ void __launch_bounds__(THREADS, 2) sum_kernel(const sample_params a)
{
    __shared__ shared_sums sh;
    const row_part r = part_of(a);
    if (!is_sampled(a, r.slot) || r.p.temperature <= 0 || r.single) return;
    const weights w = weights_of(a, r);
    tally mine = {0, 0}, all;
    for_each<4>(r.x, r.from, r.to, [&](int, float x) { mine.mass += mass_of(w, x); });
    scan(sh, mine, &all);
    if (threadIdx.x == 0) r.work->sum[blockIdx.x] = all.mass;
    if (!is_last(sh, a, r.work)) return;
    uint64_t total = 0;
    for (int p = 0; p < a.n_parts; p++) total += __ldcg(&r.work->sum[p]);
    uint64_t target = drawn(a, r, total);
    int part = 0;
    for (uint64_t sum; part < a.n_parts - 1 && (sum = __ldcg(&r.work->sum[part])) <= target; part++)
        target -= sum;
    const int each = (a.vocab + a.n_parts - 1) / a.n_parts, from = part * each;
    const int token = find_by_id(sh, from, from + each < a.vocab ? from + each : a.vocab, target,
                                 [&](int i) { return mass_of(w, r.x[i]); });
    if (threadIdx.x == 0) finish(a, r, token);
}

/* Adds to a sum in two halves: shared memory has no fast 64-bit atomics. */
static __device__ void add_mass(uint32_t *low, uint32_t *high, uint64_t mass)
{
    const uint32_t add = (uint32_t)mass, before = atomicAdd(low, add);
    const uint32_t carry = before + add < before, upper = (uint32_t)(mass >> 32) + carry;
    if (upper) atomicAdd(high, upper);
}

/* Notes the bin of the candidate that is the first to pass target, of the count (by_count) or the
 * running weight, and what lies before that bin. own: this thread's bins; before: what the threads
 * before it have. */
static __device__ void seek(cuda_sample_slot *work, const tally (&own)[BINS_EACH], tally before,
                            bool by_count, uint64_t target)
{
    for (int k = 0; k < BINS_EACH; k++) {
        const uint64_t from = by_count ? before.count : before.mass,
                       n = by_count ? own[k].count : own[k].mass;
        if (from <= target && target - from < n) { /* one bin of one thread */
            work->bin = (int32_t)threadIdx.x * BINS_EACH + k;
            work->before_mass = before.mass;
            work->target = target - from;
        }
        before.count += own[k].count;
        before.mass += own[k].mass;
    }
}

/* Seeks what comes behind the last thing found, up to which all weigh so much. All threads of the
 * slot's last block. */
static __device__ void seek_next(shared_sums &sh, const sample_params &a, const row_part &r, stage found,
                                 uint64_t mass)
{
    tally own[BINS_EACH], mine = {0, 0}, all;
    for (int k = 0; k < BINS_EACH; k++) {
        const int b = (int)threadIdx.x * BINS_EACH + k;
        own[k] = tally{__ldcg(&r.work->count[b]), __ldcg(&r.work->mass[b])};
        mine.count += own[k].count;
        mine.mass += own[k].mass;
    }
    const tally before = scan(sh, mine, &all);
    if (found == WEIGHED) mass = all.mass;
    if (found == WEIGHED && r.limited)
        seek(r.work, own, before, true, (uint64_t)r.p.top_k - 1);
    else
        seek(r.work, own, before, false, found < TOP_P && r.p.top_p < 1 ? kept(r, mass) : drawn(a, r, mass));
}

/* Count (where top-k asks for it) and weight of the candidates of every bin. */
static __global__ void __launch_bounds__(THREADS, 2) weigh_kernel(const sample_params a)
{
    __shared__ shared_sums sh;
    __shared__ uint32_t low[BINS], high[BINS], count[BINS];
    const row_part r = part_of(a);
    if (!is_sampled(a, r.slot) || !r.single) return;
    const weights w = weights_of(a, r);
    const bins b = bins_of(r);
    for (int i = (int)threadIdx.x; i < BINS; i += THREADS) low[i] = high[i] = count[i] = 0;
    __syncthreads();
    for_each<4>(r.x, r.from, r.to, [&](int, float x) {
        const int i = bin_of(b, x);
        const uint64_t mass = mass_of(w, x);
        if (r.limited) atomicAdd(&count[i], 1u);
        if (mass) add_mass(&low[i], &high[i], mass);
    });
    __syncthreads();
    for (int i = (int)threadIdx.x; i < BINS; i += THREADS) {
        const uint64_t mass = (uint64_t)high[i] << 32 | low[i];
        if (mass) atomicAdd(&r.work->mass[i], (unsigned long long)mass);
        if (count[i]) atomicAdd(&r.work->count[i], count[i]);
    }
    if (is_last(sh, a, r.work)) seek_next(sh, a, r, WEIGHED, 0);
}

/* A candidate, and what all of its bin up to it weigh. */
struct finding {
    int id;
    uint64_t mass;
};

/* The largest first. padded: a power of two from 2 on. */
static __device__ void sort_keys(uint64_t *keys, int padded)
{
    for (int size = 2; size <= padded; size *= 2) {
        for (int gap = size / 2; gap > 0; gap /= 2) {
            __syncthreads();
            for (int i = (int)threadIdx.x; i < padded / 2; i += THREADS) {
                const int at = 2 * i - (i & (gap - 1));
                const uint64_t x = keys[at], y = keys[at + gap];
                if ((x < y) == ((at & size) == 0)) {
                    keys[at] = y;
                    keys[at + gap] = x;
                }
            }
        }
    }
    __syncthreads();
}

/* The one that passes target among the n listed, of which there is one. */
static __device__ finding find_listed(shared_sums &sh, uint64_t *keys, const weights &w,
                                      const cuda_sample_slot *work, int n, bool by_count, uint64_t target)
{
    int padded = 2;
    while (padded < n) padded *= 2;
    for (int i = (int)threadIdx.x; i < padded; i += THREADS) keys[i] = i < n ? __ldcg(&work->list[i]) : 0;
    sort_keys(keys, padded);
    tally own[LISTED_EACH], mine = {0, 0}, all;
    for (int k = 0; k < LISTED_EACH; k++) {
        const int i = (int)threadIdx.x * LISTED_EACH + k;
        own[k] = i < n ? tally{1, mass_of(w, logit_of(order_of_key(keys[i])))} : tally{0, 0};
        mine.count += own[k].count;
        mine.mass += own[k].mass;
    }
    tally before = scan(sh, mine, &all);
    for (int k = 0; k < LISTED_EACH; k++) {
        const uint64_t from = by_count ? before.count : before.mass,
                       m = by_count ? own[k].count : own[k].mass;
        before.count += own[k].count;
        before.mass += own[k].mass;
        if (from <= target && target - from < m) { /* one of one thread's */
            sh.found[0] = keys[(int)threadIdx.x * LISTED_EACH + k];
            sh.found[1] = before.mass;
        }
    }
    __syncthreads();
    return finding{id_of_key(sh.found[0]), sh.found[1]};
}

/* Candidates of a bin whose order is at least `least`. */
static __device__ tally tally_from(shared_sums &sh, const sample_params &a, const row_part &r,
                                   const weights &w, const bins &b, int bin, uint32_t least)
{
    tally mine = {0, 0}, all;
    for_each<4>(r.x, 0, a.vocab, [&](int, float x) {
        if (bin_of(b, x) != bin || order_of(x) < least) return;
        mine.count++;
        mine.mass += mass_of(w, x);
    });
    scan(sh, mine, &all);
    return all;
}

/* The same in a bin of any size, by halving the range of orders: many passes over the row, but most
 * often all in such a bin are equal. */
static __device__ finding find_unlisted(shared_sums &sh, const sample_params &a, const row_part &r,
                                        const weights &w, const bins &b, bool by_count, uint64_t target)
{
    const int bin = r.work->bin;
    uint32_t from = ~0u, to = 0;
    for_each<4>(r.x, 0, a.vocab, [&](int, float x) {
        const uint32_t order = order_of(x);
        if (bin_of(b, x) != bin) return;
        from = order < from ? order : from;
        to = order > to ? order : to;
    });
    from = ~(uint32_t)block_max(sh, ~from);
    to = (uint32_t)block_max(sh, to);
    while (from < to) { /* from has passed target, what lies above to has not */
        const uint32_t middle = from + (to - from) / 2 + 1;
        const tally t = tally_from(sh, a, r, w, b, bin, middle);
        if ((by_count ? t.count : t.mass) > target)
            from = middle;
        else
            to = middle - 1;
    }
    const tally above = tally_from(sh, a, r, w, b, bin, from + 1);
    const uint64_t one = mass_of(w, logit_of(from));
    const uint64_t tied = by_count ? target - above.count : (target - above.mass) / one;
    const int id =
        find_by_id(sh, 0, a.vocab, tied, [&](int i) { return (uint64_t)(order_of(r.x[i]) == from); });
    return finding{id, above.mass + (tied + 1) * one};
}

static __device__ bool is_sought(const row_part &r, stage sought)
{
    return r.single && (sought != TOP_K || r.limited) && (sought != TOP_P || r.p.top_p < 1);
}

/* What was sought, and what comes next. */
static __global__ void __launch_bounds__(THREADS, 2) find_kernel(const sample_params a, stage sought)
{
    __shared__ shared_sums sh;
    __shared__ uint64_t keys[LIST];
    const row_part r = part_of(a);
    if (!is_sampled(a, r.slot) || !is_sought(r, sought)) return;
    const weights w = weights_of(a, r);
    const bins b = bins_of(r);
    const int bin = r.work->bin;
    for_each<LOADS>(r.x, r.from, r.to, [&](int i, float x) {
        if (bin_of(b, x) != bin) return;
        const unsigned at = atomicAdd(&r.work->n_listed, 1u);
        if (at < LIST) r.work->list[at] = key_of(order_of(x), i);
    });
    if (!is_last(sh, a, r.work)) return;
    const unsigned n = __ldcg(&r.work->n_listed);
    const uint64_t target = r.work->target, before = r.work->before_mass;
    const bool by_count = sought == TOP_K;
    const finding f = n <= LIST ? find_listed(sh, keys, w, r.work, (int)n, by_count, target)
                                : find_unlisted(sh, a, r, w, b, by_count, target);
    __syncthreads(); /* all have read the slot's state */
    if (threadIdx.x == 0) r.work->n_listed = 0;
    if (sought != DRAWN)
        seek_next(sh, a, r, sought, before + f.mass);
    else if (threadIdx.x == 0)
        finish(a, r, f.id);
}

/* Blocks that all can be resident at once, as far as there are parts for them. */
static int parts_for(const fkv_device *dev, int n_slots)
{
    const int fit = 2 * dev->n_sms / n_slots;
    return fit < 1 ? 1 : fit < CUDA_SAMPLE_PARTS ? fit : CUDA_SAMPLE_PARTS;
}

void cuda_sample(fkv_device *dev, float *logits, int64_t stride, int n_slots, bool first,
                 const fkv_slots *slots, const fkv_token_rules *rules, int choice, int vocab)
{
    if (n_slots <= 0) return;
    if (n_slots > dev->limits.n_slots) {
        cuda_fail(dev, "sample: more slots than prepare was told of");
        return;
    }
    double unit = 9223372036854775808.0; /* 2^63 */
    for (int64_t all = 1; all < vocab; all *= 2) unit /= 2;
    sample_params a = {};
    a.logits = logits;
    a.stride = stride;
    a.vocab = vocab;
    a.n_parts = parts_for(dev, n_slots);
    a.first = first;
    a.unit = unit;
    a.s = *slots;
    a.rules = *rules;
    a.work = dev->attention->sample;
    const dim3 grid((unsigned)a.n_parts, (unsigned)n_slots);
    if (choice & FKV_CHOICE_ADJUSTS) adjust_kernel<<<grid, THREADS, 0, dev->stream>>>(a);
    max_kernel<<<grid, THREADS, 0, dev->stream>>>(a);
    if (choice & FKV_CHOICE_DRAWS) {
        sum_kernel<<<grid, THREADS, 0, dev->stream>>>(a);
        weigh_kernel<<<grid, THREADS, 0, dev->stream>>>(a);
        find_kernel<<<grid, THREADS, 0, dev->stream>>>(a, TOP_K);
        find_kernel<<<grid, THREADS, 0, dev->stream>>>(a, TOP_P);
        find_kernel<<<grid, THREADS, 0, dev->stream>>>(a, DRAWN);
    }
    CUDA_LAUNCHED(dev);
}
