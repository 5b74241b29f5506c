/* Thread pool: see cpu_pool.h. */
#include "kernels/cpu_pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

/* Waking a thread costs about 10 us, the time of some 500,000 operations. */
static const double inline_cost = 1e6;

typedef struct worker {
    cpu_pool *pool;
    int thread;
    pthread_t id;
} worker;

struct cpu_pool {
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    uint64_t round; /* counts loops; a worker runs each once */
    int n_busy;
    bool stop;
    int64_t n;
    atomic_int_fast64_t next;
    cpu_pool_body *body;
    void *ctx;
    int n_workers; /* threads beside the caller */
    worker *workers;
};

static void drain(cpu_pool *p, int thread)
{
    for (;;) {
        const int64_t i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (i >= p->n) return;
        p->body(p->ctx, i, thread);
    }
}

static void *work(void *arg)
{
    worker *w = arg;
    cpu_pool *p = w->pool;
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (p->round == seen && !p->stop) pthread_cond_wait(&p->start, &p->lock);
        if (p->stop) break;
        seen = p->round;
        pthread_mutex_unlock(&p->lock);
        drain(p, w->thread);
        pthread_mutex_lock(&p->lock);
        if (--p->n_busy == 0) pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

fkv_status cpu_pool_open(int n_threads, cpu_pool **pool, fkv_err *err)
{
    fkv_status st = FKV_OK;
    *pool = NULL;
    cpu_pool *p = calloc(1, sizeof *p);
    if (!p) return fkv_fail_memory(err);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->done, NULL);
    const int extra = n_threads > 1 ? n_threads - 1 : 0;
    p->workers = calloc((size_t)extra + 1, sizeof *p->workers);
    if (!p->workers) st = fkv_fail_memory(err);
    for (int i = 0; !st && i < extra; i++) {
        p->workers[i] = (worker){.pool = p, .thread = i + 1};
        if (pthread_create(&p->workers[i].id, NULL, work, &p->workers[i]))
            st = fkv_fail(err, FKV_E_SYSTEM, "can't start thread %d of %d", i + 1, n_threads);
        else
            p->n_workers++;
    }
    if (st)
        cpu_pool_close(p);
    else
        *pool = p;
    return st;
}

void cpu_pool_close(cpu_pool *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_workers; i++) pthread_join(p->workers[i].id, NULL);
    free(p->workers);
    pthread_cond_destroy(&p->start);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

int cpu_pool_threads(const cpu_pool *p)
{
    return p->n_workers + 1;
}

void cpu_pool_run(cpu_pool *p, int64_t n, double cost, cpu_pool_body *body, void *ctx)
{
    if (p->n_workers == 0 || n < 2 || cost < inline_cost) {
        for (int64_t i = 0; i < n; i++) body(ctx, i, 0);
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->n = n;
    p->body = body;
    p->ctx = ctx;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    p->n_busy = p->n_workers;
    p->round++;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    drain(p, 0);
    pthread_mutex_lock(&p->lock);
    while (p->n_busy) pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}
