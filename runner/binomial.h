/* A share that was counted on a sample: between what the true one may lie, and how many more would tell.
 *
 * Pure functions over numbers; nothing is owned, nothing fails. Not for what is counted (compare_count.h). */
#ifndef FKV_RUNNER_BINOMIAL_H
#define FKV_RUNNER_BINOMIAL_H

#include <stdint.h>

typedef struct fkv_interval {
    double low, high;
} fkv_interval;

/* Regularised incomplete beta function I_x(a, b), a and b above 0. */
double fkv_beta_share(double a, double b, double x);

/* Clopper and Pearson's exact interval of the share of which k of n were counted: the shares that neither
 * of two tests at half of what confidence (0.95, say) leaves would rule out. n 0: [0, 1]. */
fkv_interval fkv_binomial_interval(int64_t k, int64_t n, double confidence);

/* What an interval says of a share that is asked for. */
typedef enum fkv_verdict { FKV_VERDICT_OPEN, FKV_VERDICT_ENOUGH, FKV_VERDICT_TOO_LITTLE } fkv_verdict;
fkv_verdict fkv_binomial_verdict(fkv_interval interval, double asked);

enum { FKV_BINOMIAL_MOST = 1000000 };
/* About how many would settle it if they went on as k of n did: n where they do already; 0 where not even
 * FKV_BINOMIAL_MOST would. */
int64_t fkv_binomial_to_settle(int64_t k, int64_t n, double confidence, double asked);

#endif
