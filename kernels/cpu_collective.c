/* How CPU devices meet: a barrier, and pointers shown on a board between two of
 * them. Used by tests and by jobs with devices > 1; one device returns at once. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu_device.h"

fkv_status cpu_world_open(const fkv_group *group, fkv_world **world, fkv_err *err)
{
    const size_t n = (size_t)group->n_devices;
    *world = NULL;
    fkv_world *w = calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    w->n_devices = group->n_devices;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->all_in, NULL);
    w->board = calloc(n, sizeof *w->board);
    w->counts = calloc(n, sizeof *w->counts);
    if (w->board && w->counts) {
        *world = w;
        return FKV_OK;
    }
    cpu_world_close(w);
    return fkv_fail_memory(err);
}

void cpu_world_close(fkv_world *w)
{
    if (!w) return;
    pthread_cond_destroy(&w->all_in);
    pthread_mutex_destroy(&w->lock);
    free(w->board);
    free(w->counts);
    free(w);
}

void cpu_world_abort(fkv_world *w)
{
    pthread_mutex_lock(&w->lock);
    w->aborted = true;
    pthread_cond_broadcast(&w->all_in);
    pthread_mutex_unlock(&w->lock);
}

bool cpu_world_aborted(fkv_world *w)
{
    pthread_mutex_lock(&w->lock);
    const bool aborted = w->aborted;
    pthread_mutex_unlock(&w->lock);
    return aborted;
}

/* False when the world was aborted. */
static bool meet(fkv_device *dev)
{
    fkv_world *w = dev->world;
    pthread_mutex_lock(&w->lock);
    const uint64_t round = w->round;
    if (++w->n_waiting == w->n_devices) {
        w->n_waiting = 0;
        w->round++;
        pthread_cond_broadcast(&w->all_in);
    } else {
        while (w->round == round && !w->aborted) pthread_cond_wait(&w->all_in, &w->lock);
    }
    const bool ok = !w->aborted;
    pthread_mutex_unlock(&w->lock);
    return ok;
}

static bool show(fkv_device *dev, const void *what, int count)
{
    dev->world->board[dev->index] = what;
    dev->world->counts[dev->index] = count;
    return meet(dev);
}

void cpu_gather_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols,
                     int elem_bytes)
{
    if (dev->world->n_devices == 1 || !show(dev, buf, 0)) return;
    for (int d = 0; d < dev->world->n_devices; d++) {
        if (d == dev->index) continue;
        const char *from = dev->world->board[d];
        const int64_t offset = cols[d] * elem_bytes, bytes = (cols[d + 1] - cols[d]) * elem_bytes;
        for (int64_t i = 0; i < n; i++)
            memcpy((char *)buf + i * stride * elem_bytes + offset, from + i * stride * elem_bytes + offset,
                   (size_t)bytes);
    }
    meet(dev);
}

void cpu_gather_heads(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                      const uint8_t *owner, const uint8_t *dev_owner)
{
    (void)dev_owner;
    if (dev->world->n_devices == 1 || !show(dev, out, 0)) return;
    for (int h = 0; h < n_kv_heads; h++) {
        for (int s = 0; s < n; s++) {
            const int d = owner[(int64_t)h * n + s];
            if (d == dev->index) continue;
            const int64_t at = ((int64_t)s * n_kv_heads + h) * row_elems;
            memcpy((float *)out + at, (const float *)dev->world->board[d] + at,
                   (size_t)row_elems * sizeof(float));
        }
    }
    meet(dev);
}

typedef struct reduce_job {
    const fkv_world *w;
    int64_t n, hidden, block;
    float *y;
} reduce_job;

static void reduce_task(void *ctx, int64_t index, int thread)
{
    (void)thread;
    const reduce_job *j = ctx;
    const int64_t from = index * j->block, all = j->n * j->hidden;
    const int64_t to = from + j->block < all ? from + j->block : all;
    bool first = true;
    for (int d = 0; d < j->w->n_devices; d++) {
        for (int r = 0; r < j->w->counts[d]; r++) {
            const float *p = (const float *)j->w->board[d] + r * all;
            if (first)
                memcpy(j->y + from, p + from, (size_t)(to - from) * sizeof *p);
            else
                for (int64_t i = from; i < to; i++) j->y[i] += p[i];
            first = false;
        }
    }
}

void cpu_reduce_ranks(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden, void *y)
{
    if (!show(dev, partials, n_local)) return;
    reduce_job j = {dev->world, n, hidden, 4096, y};
    cpu_pool_run(dev->pool, (n * hidden + j.block - 1) / j.block, 2.0 * (double)(n * hidden), reduce_task,
                 &j);
    if (dev->world->n_devices > 1) meet(dev);
}

/* Ops are done when they return: nothing goes on beside the others. */
void cpu_aside_begin(fkv_device *dev)
{
    (void)dev;
}

int64_t cpu_aside_end(fkv_device *dev)
{
    (void)dev;
    return 0;
}

void cpu_aside_wait(fkv_device *dev, int64_t ticket)
{
    (void)dev;
    (void)ticket;
}
