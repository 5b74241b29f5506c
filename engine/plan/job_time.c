/* The time of a job's decoding: see job_time.h. */
#include "engine/plan/job_time.h"

#include <math.h>

#include "runner/base/hash.h"

/* Records that are gone through one by one; those before them are all alike. */
enum { SIMULATED = 4096, MOST_SLOTS = 1 << 12 };

void fkv_curve_smooth(fkv_step_curve *c)
{
    for (int i = c->n - 2; i >= 0; i--) {
        c->at[i].us = fmin(c->at[i].us, c->at[i + 1].us);
        c->at[i].empty_us = fmin(c->at[i].empty_us, c->at[i + 1].empty_us);
    }
    for (int i = 0; i < c->n; i++) c->at[i].empty_us = fmin(c->at[i].empty_us, c->at[i].us);
}

static double between(double x, double x0, double y0, double x1, double y1)
{
    return x1 > x0 ? y0 + (y1 - y0) * (x - x0) / (x1 - x0) : y0;
}

double fkv_curve_step_us(const fkv_step_curve *c, int slots, double active)
{
    if (c->n == 0) return 0;
    /* Below the first point fewer are at work there; above the last the last line goes on. */
    int i = 0;
    while (i + 2 < c->n && slots > c->at[i + 1].slots) i++;
    const fkv_step_point *a = &c->at[i], *b = &c->at[i + 1 < c->n ? i + 1 : i];
    const double x = slots > a->slots ? slots : a->slots;
    const double full = between(x, a->slots, a->us, b->slots, b->us);
    const double empty = between(x, a->slots, a->empty_us, b->slots, b->empty_us);
    return empty + (full - empty) * active / x;
}

/* Decode steps of record i: its first token comes from prefill. */
static int64_t steps_of(const fkv_job_load *l, int64_t i)
{
    int64_t n = (int64_t)ceil(l->mean_new);
    if (l->new_tokens && l->n_sample > 0)
        n = l->new_tokens[fkv_random_u64(1, 0x6a6f62, (uint64_t)i) % (uint64_t)l->n_sample];
    return n > 1 ? n - 1 : 0;
}

static double mean_steps(const fkv_job_load *l)
{
    double sum = 0;
    if (!l->new_tokens || l->n_sample == 0) return fmax(l->mean_new - 1, 0);
    for (int i = 0; i < l->n_sample; i++) sum += l->new_tokens[i] > 1 ? l->new_tokens[i] - 1 : 0;
    return sum / l->n_sample;
}

/* heap: the steps at which slots become free, the first one on top; below i all is in order
 * but for i itself. */
static void sift_down(int64_t *heap, int n, int i)
{
    for (;;) {
        int least = i;
        for (int k = 2 * i + 1; k <= 2 * i + 2; k++)
            if (k < n && heap[k] < heap[least]) least = k;
        if (least == i) return;
        const int64_t t = heap[i];
        heap[i] = heap[least];
        heap[least] = t;
        i = least;
    }
}

static double simulate(const fkv_job_load *l, int64_t n_records, const fkv_step_curve *c, int slots, int most)
{
    int64_t heap[MOST_SLOTS], now = 0, next = 0;
    int n = 0;
    double us = 0;
    for (; n < most && next < n_records; n++) heap[n] = steps_of(l, next++);
    for (int i = n / 2; i >= 0; i--) sift_down(heap, n, i);
    while (n > 0) {
        us += (double)(heap[0] - now) * fkv_curve_step_us(c, slots, n);
        now = heap[0];
        if (next < n_records)
            heap[0] = now + steps_of(l, next++);
        else
            heap[0] = heap[--n];
        sift_down(heap, n, 0);
    }
    return us;
}

double fkv_job_decode_us(const fkv_job_load *l, const fkv_step_curve *c, int slots, double at_once)
{
    const int64_t all = l->n_records > 0 ? l->n_records : FKV_JOB_MANY,
                  last = all < SIMULATED ? all : SIMULATED;
    double most = fmin(fmin(slots, at_once), MOST_SLOTS);
    if (most < 1) most = 1;
    const double record_us = mean_steps(l) * fkv_curve_step_us(c, slots, most) / most;
    return (double)(all - last) * record_us + simulate(l, last, c, slots, (int)most);
}

void fkv_prompt_rates(const int64_t n[2], const double us[2], double *token_us, double *pair_us)
{
    const double a = (double)n[0], b = (double)n[1];
    /* us / n is a line in n */
    *pair_us = b > a && a > 0 ? fmax((us[1] / b - us[0] / a) / (b - a), 0) : 0;
    *token_us = fmax(us[1] / b - *pair_us * b, 0);
    if (*token_us == 0) *pair_us = us[1] / (b * b);
}
