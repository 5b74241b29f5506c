/* Shares and their exact intervals: see binomial.h. */
#include "runner/binomial.h"

#include <math.h>

enum { MOST_TERMS = 20000, HALVINGS = 100 };

/* The continued fraction of I_x(a, b), by Lentz' method; converges fast for x < (a + 1) / (a + b + 2). */
static double fraction(double a, double b, double x)
{
    const double tiny = 1e-300;
    double c = 1, d = 1 - (a + b) * x / (a + 1);
    d = 1 / (fabs(d) < tiny ? tiny : d);
    double f = d;
    for (int m = 1; m < MOST_TERMS; m++) {
        double change = 1;
        for (int odd = 0; odd < 2; odd++) {
            const double k = 2.0 * m + odd;
            const double term = odd ? -(a + m) * (a + b + m) * x / ((a + k - 1) * (a + k))
                                    : m * (b - m) * x / ((a + k - 1) * (a + k));
            d = 1 + term * d;
            c = 1 + term / c;
            d = 1 / (fabs(d) < tiny ? tiny : d);
            if (fabs(c) < tiny) c = tiny;
            change *= c * d;
        }
        f *= change;
        if (fabs(change - 1) < 1e-15) break;
    }
    return f;
}

/* ln of B(a, b), without the global that lgamma sets. */
static double log_beta(double a, double b)
{
    int sign;
    return lgamma_r(a, &sign) + lgamma_r(b, &sign) - lgamma_r(a + b, &sign);
}

double fkv_beta_share(double a, double b, double x)
{
    if (!(x > 0)) return 0;
    if (x >= 1) return 1;
    const double front = exp(a * log(x) + b * log1p(-x) - log_beta(a, b));
    return x < (a + 1) / (a + b + 2) ? front * fraction(a, b, x) / a : 1 - front * fraction(b, a, 1 - x) / b;
}

/* x of I_x(a, b) = share, which grows with x. */
static double beta_quantile(double a, double b, double share)
{
    double low = 0, high = 1;
    for (int i = 0; i < HALVINGS; i++) {
        const double x = low + (high - low) / 2;
        if (fkv_beta_share(a, b, x) < share)
            low = x;
        else
            high = x;
    }
    return low + (high - low) / 2;
}

fkv_interval fkv_binomial_interval(int64_t k, int64_t n, double confidence)
{
    const double tail = (1 - confidence) / 2, x = (double)k, y = (double)(n - k);
    return (fkv_interval){k > 0 ? beta_quantile(x, y + 1, tail) : 0,
                          k < n ? beta_quantile(x + 1, y, 1 - tail) : 1};
}

fkv_verdict fkv_binomial_verdict(fkv_interval i, double asked)
{
    if (i.low >= asked) return FKV_VERDICT_ENOUGH;
    return i.high < asked ? FKV_VERDICT_TOO_LITTLE : FKV_VERDICT_OPEN;
}

/* Whether n would, of which the same share is counted. */
static int settles(double share, int64_t n, double confidence, double asked)
{
    const fkv_interval i = fkv_binomial_interval(llround(share * (double)n), n, confidence);
    return fkv_binomial_verdict(i, asked) != FKV_VERDICT_OPEN;
}

int64_t fkv_binomial_to_settle(int64_t k, int64_t n, double confidence, double asked)
{
    if (n < 1) return 0;
    const double share = (double)k / (double)n;
    int64_t low = n, high = n;
    while (high < FKV_BINOMIAL_MOST && !settles(share, high, confidence, asked)) {
        low = high;
        high *= 2;
    }
    if (!settles(share, high, confidence, asked)) return 0;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (settles(share, middle, confidence, asked))
            high = middle;
        else
            low = middle;
    }
    return high > FKV_BINOMIAL_MOST ? 0 : high;
}
