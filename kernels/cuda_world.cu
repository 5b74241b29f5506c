/* How GPUs meet: which there are, the world that devices share, and its end. See cuda_collective.h.
 *
 * Every wait looks at the world's abort flag, on the host and in waiting kernels, so that
 * a device which waits for one that failed ends too.
 *
 * Environment, for tests and measurements: FAIRKV_COLLECTIVES=nccl moves bytes through NCCL
 * where peers could; FAIRKV_DEVICES_PER_GPU=n puts up to n devices on a GPU.
 */
#include "kernels/cuda_collective.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

static int devices_per_gpu(void)
{
    const char *text = getenv("FAIRKV_DEVICES_PER_GPU");
    const int n = text ? atoi(text) : 1;
    return n < 1 ? 1 : n > COLLECTIVE_MAX_DEVICES ? COLLECTIVE_MAX_DEVICES : n;
}

int cuda_count_gpus(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) n = 0;
    cudaGetLastError();
    return n;
}

bool cuda_all_peers(int n)
{
    for (int a = 0; a < n; a++) {
        for (int b = 0; b < n; b++) {
            int can = 0;
            if (a != b && (cudaDeviceCanAccessPeer(&can, a, b) != cudaSuccess || !can)) {
                cudaGetLastError();
                return false;
            }
        }
    }
    return true;
}

int cuda_n_devices(void)
{
    int n = cuda_count_gpus();
#ifndef FKV_NCCL
    if (!cuda_all_peers(n)) n = 1;
#endif
    n *= devices_per_gpu();
    return n < COLLECTIVE_MAX_DEVICES ? n : COLLECTIVE_MAX_DEVICES;
}

fkv_status cuda_check_count(int n_devices, fkv_err *err)
{
    const int n_gpus = cuda_count_gpus(), most = n_gpus * devices_per_gpu();
    if (n_devices < 1 || n_devices > most || n_devices > COLLECTIVE_MAX_DEVICES)
        return fkv_fail(err, FKV_E_INPUT, "%d GPUs are asked for; %d are there", n_devices, most);
#ifndef FKV_NCCL
    if (!cuda_all_peers(n_devices < n_gpus ? n_devices : n_gpus))
        return fkv_fail(err, FKV_E_INPUT,
                        "%d GPUs that can't reach each other's memory need NCCL, which this build is without",
                        n_devices);
#endif
    return FKV_OK;
}

fkv_status cuda_world_open(int n_devices, fkv_world **world, fkv_err *err)
{
    const int n_gpus = cuda_count_gpus();
    const fkv_status st = cuda_check_count(n_devices, err);
    if (st) return st;
    fkv_world *w = (fkv_world *)calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    w->n_devices = n_devices;
    w->n_gpus = n_devices < n_gpus ? n_devices : n_gpus;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->all_in, NULL);
    *world = w;
    if (n_devices == 1) return FKV_OK;
    const char *way = getenv("FAIRKV_COLLECTIVES");
    w->peers = cuda_all_peers(w->n_gpus);
    w->by_peers = w->peers && (w->n_gpus < n_devices || !way || strcmp(way, "nccl") != 0);
    if (cudaHostAlloc((void **)&w->stop, sizeof *w->stop, cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError();
        return fkv_fail(err, FKV_E_DEVICE, "pinned memory can't be had");
    }
    *w->stop = 0;
#ifdef FKV_NCCL
    const ncclResult_t e = w->by_peers ? ncclSuccess : ncclGetUniqueId(&w->id);
    if (e != ncclSuccess) return fkv_fail(err, FKV_E_DEVICE, "NCCL: %s", ncclGetErrorString(e));
#else
    w->by_peers = true; /* there is no other way: cuda_check_count */
#endif
    return FKV_OK;
}

void cuda_world_close(fkv_world *w)
{
    if (!w) return;
    if (w->stop) cudaFreeHost(w->stop);
    pthread_cond_destroy(&w->all_in);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

void cuda_world_abort(fkv_world *w)
{
    pthread_mutex_lock(&w->lock);
    w->aborted = true;
    if (w->stop) __atomic_store_n(w->stop, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&w->all_in);
    pthread_mutex_unlock(&w->lock);
}

bool cuda_world_aborted(fkv_world *w)
{
    return w->aborted;
}

bool cuda_world_peers(const fkv_world *w)
{
    return w->n_devices == 1 || w->peers;
}

int cuda_world_devices(const fkv_world *w)
{
    return w->n_devices;
}

int cuda_world_gpu(const fkv_world *w, int index)
{
    return index % w->n_gpus;
}

int cuda_world_devices_per_gpu(const fkv_world *w)
{
    return (w->n_devices + w->n_gpus - 1) / w->n_gpus;
}

#ifdef FKV_NCCL
void cuda_nccl_fail(fkv_device *dev, ncclResult_t e)
{
    char text[160];
    snprintf(text, sizeof text, "NCCL: %s", ncclGetErrorString(e));
    cuda_fail(dev, text);
}

void cuda_nccl_abort(fkv_device *dev)
{
    cuda_comm *c = dev->comm;
    if (!c || !c->nccl) return;
    ncclCommAbort(c->nccl);
    c->nccl = NULL;
    for (int i = 0; i < COLLECTIVE_AHEAD; i++)
        if (c->behind[i]) cudaEventDestroy(c->behind[i]);
    memset(c->behind, 0, sizeof c->behind);
}

bool cuda_nccl_check(fkv_device *dev)
{
    ncclResult_t state = ncclSuccess;
    if (!dev->comm || !dev->comm->nccl) return false;
    const ncclResult_t e = ncclCommGetAsyncError(dev->comm->nccl, &state);
    if (e == ncclSuccess && (state == ncclSuccess || state == ncclInProgress)) return true;
    cuda_nccl_fail(dev, e == ncclSuccess ? state : e);
    return false;
}
#endif

static void give_up(fkv_device *dev)
{
#ifdef FKV_NCCL
    cuda_nccl_abort(dev);
#endif
    cuda_fail(dev, "another device failed");
}

bool cuda_world_check(fkv_device *dev)
{
    if (dev->world->aborted) {
        give_up(dev);
        return false;
    }
#ifdef FKV_NCCL
    if (!dev->world->by_peers && !cuda_nccl_check(dev)) {
        give_up(dev);
        return false;
    }
#endif
    return true;
}

bool cuda_world_meet(fkv_device *dev)
{
    fkv_world *w = dev->world;
    if (w->n_devices == 1) return true;
    pthread_mutex_lock(&w->lock);
    const uint64_t round = w->round;
    if (++w->n_in == w->n_devices) {
        w->n_in = 0;
        w->round++;
        pthread_cond_broadcast(&w->all_in);
    } else {
        while (w->round == round && !w->aborted) pthread_cond_wait(&w->all_in, &w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    if (w->aborted) give_up(dev);
    return !w->aborted;
}
