/* Bounded queue: see queue.h. */
#include "runner/queue.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "runner/base/mem.h"

struct fkv_queue {
    pthread_mutex_t lock;
    pthread_cond_t not_full, not_empty;
    size_t capacity, first, n;
    bool closed;
    void **items;
};

fkv_status fkv_queue_open(size_t capacity, fkv_queue **queue, fkv_err *err)
{
    fkv_queue *q = calloc(1, sizeof *q);
    void **items = fkv_calloc(capacity, sizeof *items);
    *queue = NULL;
    if (!q || !items) {
        free(items);
        free(q);
        return fkv_fail_memory(err);
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->not_full, NULL);
    pthread_cond_init(&q->not_empty, &monotonic);
    pthread_condattr_destroy(&monotonic);
    q->capacity = capacity;
    q->items = items;
    *queue = q;
    return FKV_OK;
}

void fkv_queue_free(fkv_queue *q)
{
    if (!q) return;
    pthread_cond_destroy(&q->not_full);
    pthread_cond_destroy(&q->not_empty);
    pthread_mutex_destroy(&q->lock);
    free(q->items);
    free(q);
}

bool fkv_queue_push(fkv_queue *q, void *item)
{
    pthread_mutex_lock(&q->lock);
    while (q->n == q->capacity && !q->closed) pthread_cond_wait(&q->not_full, &q->lock);
    const bool ok = !q->closed;
    if (ok) {
        q->items[(q->first + q->n++) % q->capacity] = item;
        pthread_cond_signal(&q->not_empty);
    }
    pthread_mutex_unlock(&q->lock);
    return ok;
}

void *fkv_queue_pop(fkv_queue *q, int wait_ms, bool *ended)
{
    struct timespec until;
    void *item = NULL;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += wait_ms / 1000;
    until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&q->lock);
    while (q->n == 0 && !q->closed && wait_ms != 0) {
        if (wait_ms < 0)
            pthread_cond_wait(&q->not_empty, &q->lock);
        else if (pthread_cond_timedwait(&q->not_empty, &q->lock, &until))
            break;
    }
    *ended = q->n == 0 && q->closed;
    if (q->n) {
        item = q->items[q->first];
        q->first = (q->first + 1) % q->capacity;
        q->n--;
        pthread_cond_signal(&q->not_full);
    }
    pthread_mutex_unlock(&q->lock);
    return item;
}

size_t fkv_queue_count(fkv_queue *q)
{
    pthread_mutex_lock(&q->lock);
    const size_t n = q->n;
    pthread_mutex_unlock(&q->lock);
    return n;
}

void fkv_queue_close(fkv_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->not_full);
    pthread_cond_broadcast(&q->not_empty);
    pthread_mutex_unlock(&q->lock);
}
