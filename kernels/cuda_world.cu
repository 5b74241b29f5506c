/* How GPUs meet: which there are, the world that devices share, and its end. See cuda_collective.h.
 *
 * Every wait looks at the world's abort flag, on the host and in waiting kernels, so that
 * a device which waits for one that failed ends too.
 *
 * Environment, for tests and measurements: FAIRKV_COLLECTIVES=nccl moves bytes through NCCL
 * where peers could; FAIRKV_DEVICES_PER_GPU=n puts up to n devices on a GPU; for FAIRKV_TEST_FAIL see
 * cuda_fail_if_told.
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

int cuda_group_gpu(const fkv_group *group, int i)
{
    const int n = cuda_count_gpus();
    return n ? (group->first_device + i) % n : 0;
}

bool cuda_all_peers(const fkv_group *group)
{
    for (int i = 0; i < group->n_devices; i++) {
        for (int j = 0; j < group->n_devices; j++) {
            const int a = cuda_group_gpu(group, i), b = cuda_group_gpu(group, j);
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
    const fkv_group all = {n, 0, FKV_WAY_ANY};
    if (!cuda_all_peers(&all)) n = 1;
#endif
    n *= devices_per_gpu();
    return n < COLLECTIVE_MAX_DEVICES ? n : COLLECTIVE_MAX_DEVICES;
}

bool cuda_bus_place(int device, char out[FKV_BUS_PLACE])
{
    const fkv_group alone = {1, device, FKV_WAY_ANY};
    const bool found = cudaDeviceGetPCIBusId(out, FKV_BUS_PLACE, cuda_group_gpu(&alone, 0)) == cudaSuccess;
    cudaGetLastError();
    return found;
}

fkv_status cuda_check_group(const fkv_group *group, fkv_err *err)
{
    const int n = group->n_devices, most = cuda_count_gpus() * devices_per_gpu();
    if (n < 1 || group->first_device < 0 || group->first_device > most - n || n > COLLECTIVE_MAX_DEVICES)
        return fkv_fail(err, FKV_E_INPUT, "%d GPUs are asked for; %d are there", group->first_device + n,
                        most);
    if (n == 1) return FKV_OK;
#ifdef FKV_NCCL
    const bool only_peers = group->way == FKV_WAY_PEERS;
#else
    const bool only_peers = true;
    if (group->way == FKV_WAY_NCCL)
        return fkv_fail(err, FKV_E_INPUT, "NCCL is asked for, which this build is without");
#endif
    if (only_peers && !cuda_all_peers(group))
        return fkv_fail(err, FKV_E_INPUT,
                        "%d GPUs that can't reach each other's memory need NCCL, which this build is without",
                        n);
    return FKV_OK;
}

/* How many different GPUs the group has. */
static int count_of(const fkv_group *group)
{
    const int n = cuda_count_gpus();
    return group->n_devices < n ? group->n_devices : n;
}

static bool takes_peers(const fkv_world *w, const fkv_group *group)
{
    const char *way = getenv("FAIRKV_COLLECTIVES");
    if (w->n_gpus < w->n_devices || group->way == FKV_WAY_PEERS) return w->peers;
    return w->peers && group->way == FKV_WAY_ANY && (!way || strcmp(way, "nccl") != 0);
}

static fkv_status meet_by(fkv_world *w, const fkv_group *group, fkv_err *err)
{
    w->peers = cuda_all_peers(group);
    w->by_peers = takes_peers(w, group);
    if (cudaHostAlloc((void **)&w->stop, sizeof *w->stop, cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError();
        return fkv_fail(err, FKV_E_DEVICE, "pinned memory can't be had");
    }
    *w->stop = 0;
#ifdef FKV_NCCL
    const ncclResult_t e = w->by_peers ? ncclSuccess : ncclGetUniqueId(&w->id);
    if (e != ncclSuccess) return fkv_fail(err, FKV_E_DEVICE, "NCCL: %s", ncclGetErrorString(e));
#else
    w->by_peers = true; /* there is no other way: cuda_check_group */
#endif
    return FKV_OK;
}

fkv_status cuda_world_open(const fkv_group *group, fkv_world **world, fkv_err *err)
{
    *world = NULL;
    fkv_status st = cuda_check_group(group, err);
    if (st) return st;
    fkv_world *w = (fkv_world *)calloc(1, sizeof *w);
    if (!w) return fkv_fail_memory(err);
    w->group = *group;
    w->n_devices = group->n_devices;
    w->n_gpus = count_of(group);
    for (int i = 0; i < w->n_devices; i++) w->gpus[i] = cuda_group_gpu(group, i);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->all_in, NULL);
    if (w->n_devices > 1) st = meet_by(w, group, err);
    if (st)
        cuda_world_close(w);
    else
        *world = w;
    return st;
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

const fkv_group *cuda_world_group(const fkv_world *w)
{
    return &w->group;
}

int cuda_world_gpu(const fkv_world *w, int index)
{
    return w->gpus[index];
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
