/* Scorers: what ranks the tokens of a head when a prompt's K and V are compressed. How many of them a head
 * keeps is another matter (engine/plan/budget.h). Numbers alone; nothing is owned.
 *
 * For one prompt of T tokens, one layer and one KV head with its `group` query heads: W = score_window last
 * tokens and S = sinks first ones are kept whatever they score. Scores stand for the keys j in [S, T - W); a
 * prompt with T <= S + W has none.
 *
 * Words.
 *   a[q][j]   softmax over all keys j that query q may see (layer_spec.h: scale, cap and window as there);
 *             q is one of the R = W * group queries of the last W positions
 *   pool(x)_j maximum of x over [j - kernel / 2, j + kernel / 2] inside [S, T - W); kernel 1: x itself
 *   k_j, v_j  key after norm and RoPE, and value, as they are cached
 *   O_g       [hidden, hd]: the columns of the output projection that query head g's results meet; a norm
 *             that a family has behind it is left out
 *   scale     the spec's
 *
 * Sums, softmax and norms are float32 or finer. What a backend rounds on the way (queries, keys, values and
 * weights to bf16) it rounds here, too: two backends agree within that, and so does what they keep, but for
 * near-ties. Equal scores: the lower position is kept; a score that is no number comes last.
 *
 * Each scorer gives `scores`, and `critical` also `second` (backend.h). Counts of Ada-KV are taken from
 * `scores`. Of a prompt that is longer than the budget m = budget - W - S tokens are chosen: those with the
 * m largest `scores`; with `critical` first the max(1, floor(m / 2)) largest `scores`, then of the others
 * the largest `second`.
 *
 *   snapkv     SnapKV, arXiv 2404.14469
 *     scores   = pool(mean over the R queries q of a[q])
 *     flops    : 2 hd R T
 *
 *   defensive  DefensiveKV, arXiv 2510.13334: the worst case in the mean's place, never below its own mean
 *     r        = pool(max over the R queries q of a[q])
 *     scores_j = max(r_j, mean of r over [S, T - W)) * n_j
 *     n_j      = mean over g of ||O_g v_j||_2, not pooled
 *              = mean over g of sqrt(max(0, v_j^T G_g v_j)), G_g = O_g^T O_g in float32, made at load
 *     flops    : 2 hd R T + 2 group hd^2 T
 *
 *   critical   CriticalKV, arXiv 2502.03805, behind snapkv, as kvpress 0.5.5 has it
 *     scores   = snapkv's
 *     second_j = (scores_j + 1e-4) * mean over g of ||O_g v_j||_1, whose norms are not pooled
 *     flops    : 2 hd R T + 2 group hd hidden T, the latter as much as the prompt's output projection
 *
 *   keydiff    KeyDiff, arXiv 2504.15364
 *     c        = mean over all keys j of [0, T) of k_j / max(||k_j||_2, 1e-12)
 *     scores   = pool(x), x_j = -(k_j . c) / (max(||k_j||_2, 1e-8) * max(||c||_2, 1e-8))
 *     flops    : 5 hd T
 *
 *   expected   Expected Attention, arXiv 2510.00636, with covariance and the values' norms
 *     u_p      = query of head g at position p of [S, T), after its norm and before RoPE: the stored one,
 *                turned back by its row of the RoPE table, which takes the table's scale out again
 *     mu, C    = mean of u_p, mean of (u_p - mu)(u_p - mu)^T
 *     A        : what RoPE does at the F = 512 positions T, T + 1, ... on the average. With pair i of a
 *                vector, (x_i, x_(i + hd/2)), as a complex number: times that of the table's row of
 *                position T - 1 (cosine, sine, scaled), times
 *                e_i = 1/F sum over f = 1..F of exp(f inv_freq_i sqrt(-1)).
 *                A layer without RoPE: the identity
 *     l_j      = scale (A mu) . k_j + scale^2 / 2 k_j^T (A C A^T) k_j; cap and window are left out
 *     p_g      = softmax of l over the keys [S, T)
 *     scores   = pool(x), x_j = ||v_j||_2 * mean over g of p_g[j]
 *     flops    : 4 group hd^2 T
 */
#ifndef FKV_KERNELS_SCORER_H
#define FKV_KERNELS_SCORER_H

#include <stdbool.h>
#include <stdint.h>

typedef enum fkv_scorer {
    FKV_SCORER_SNAPKV,
    FKV_SCORER_DEFENSIVE,
    FKV_SCORER_CRITICAL,
    FKV_SCORER_KEYDIFF,
    FKV_SCORER_EXPECTED,
    FKV_N_SCORERS
} fkv_scorer;

enum { FKV_SCORER_FUTURE = 512 }; /* F of `expected` */

#define FKV_CRITICAL_EPSILON     1e-4f
#define FKV_KEYDIFF_LEAST_KEY    1e-12f /* of a norm that a key is divided by on its way into the mean */
#define FKV_KEYDIFF_LEAST_COSINE 1e-8f  /* of both norms in the cosine */

/* As a job file has it. */
static inline const char *fkv_scorer_name(fkv_scorer s)
{
    switch (s) {
    case FKV_SCORER_DEFENSIVE: return "defensive";
    case FKV_SCORER_CRITICAL: return "critical";
    case FKV_SCORER_KEYDIFF: return "keydiff";
    case FKV_SCORER_EXPECTED: return "expected";
    default: return "snapkv";
    }
}

/* A set of scorers has a bit for each. */
static inline uint32_t fkv_scorer_bit(fkv_scorer s)
{
    return (uint32_t)1 << s;
}

static inline bool fkv_scorers_have(uint32_t set, fkv_scorer s)
{
    return (set & fkv_scorer_bit(s)) != 0;
}

/* Those by which the last W queries score, and the two that want the output projection by home head. */
static inline bool fkv_scorer_by_window(fkv_scorer s)
{
    return s == FKV_SCORER_SNAPKV || s == FKV_SCORER_DEFENSIVE || s == FKV_SCORER_CRITICAL;
}

static inline bool fkv_scorer_wants_output(fkv_scorer s)
{
    return s == FKV_SCORER_DEFENSIVE || s == FKV_SCORER_CRITICAL;
}

/* checks.c: e_i of `expected`, its real and imaginary part. */
void fkv_scorer_ahead(float inv_freq, float out[2]);

/* Of m tokens that a head chooses, those that `scores` chooses before `second` does. */
static inline int64_t fkv_critical_first(int64_t m)
{
    return m > 1 ? m / 2 : m;
}

#endif
