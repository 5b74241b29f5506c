/* A pool of threads for the CPU backend, and for what the host does to a GPU's weights: one parallel loop at
 * a time, threads that sleep in between (no spinning). Which thread runs which index is open, so a body must
 * compute the same whatever the order.
 *
 * A pool owns its threads; a failed open leaves NULL and none of them. One thread at a time calls run;
 * not for loops within loops. */
#ifndef FKV_KERNELS_CPU_POOL_H
#define FKV_KERNELS_CPU_POOL_H

#include <stdint.h>

#include "runner/base/status.h"

typedef struct cpu_pool cpu_pool;

/* thread: 0 .. n_threads - 1, for working memory of its own. */
typedef void cpu_pool_body(void *ctx, int64_t index, int thread);

/* n_threads counts the caller; below 1: the caller alone. */
fkv_status cpu_pool_open(int n_threads, cpu_pool **pool, fkv_err *err);
void cpu_pool_close(cpu_pool *pool);

/* Threads that run bodies, the caller among them. */
int cpu_pool_threads(const cpu_pool *pool);

/* body(ctx, i, thread) for i in [0, n); returns when all are done. cost is about
 * the floating-point operations of all of it: little work stays on the caller. */
void cpu_pool_run(cpu_pool *pool, int64_t n, double cost, cpu_pool_body *body, void *ctx);

#endif
