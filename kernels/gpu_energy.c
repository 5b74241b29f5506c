/* Energy by NVML: see gpu_energy.h. Its declarations are here, as its documentation has them, so that no
 * header of it is needed.
 *
 * Environment, for tests alone: FAIRKV_TEST_NVML names another library to load. */
#include "kernels/gpu_energy.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runner/base/mem.h"

typedef void *handle; /* nvmlDevice_t */
enum { OK = 0, NOT_SUPPORTED = 3, MIG_ON = 1, MOST_PROCESSES = 64 };

/* nvmlProcessInfo_t of both calls below */
typedef struct process {
    unsigned int pid;
    unsigned long long memory;
    unsigned int gpu_instance, compute_instance;
} process;

typedef struct nvml {
    int (*init)(void);
    int (*shutdown)(void);
    int (*by_place)(const char *place, handle *out);
    int (*energy)(handle gpu, unsigned long long *millijoules);
    int (*mig_mode)(handle gpu, unsigned int *current, unsigned int *pending);
    int (*processes)(handle gpu, unsigned int *n, process *at);
} nvml;

struct fkv_gpu_energy {
    void *library;
    nvml calls;
    bool begun, known;
    int n;
    handle gpus[FKV_GPU_ENERGY_MAX];
    unsigned long long before[FKV_GPU_ENERGY_MAX]; /* millijoules */
};

/* A data pointer that is a function's, as POSIX lets dlsym give it. */
static bool find(void *library, const char *name, void *function)
{
    void *const found = dlsym(library, name);
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

static bool load(fkv_gpu_energy *e)
{
    const char *other = getenv("FAIRKV_TEST_NVML");
    nvml *c = &e->calls;
    void *lib = e->library = dlopen(other ? other : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!lib) return false;
    if (!find(lib, "nvmlInit_v2", &c->init) || !find(lib, "nvmlShutdown", &c->shutdown) ||
        !find(lib, "nvmlDeviceGetHandleByPciBusId_v2", &c->by_place) ||
        !find(lib, "nvmlDeviceGetTotalEnergyConsumption", &c->energy) ||
        !find(lib, "nvmlDeviceGetMigMode", &c->mig_mode))
        return false;
    if (!find(lib, "nvmlDeviceGetComputeRunningProcesses_v3", &c->processes) &&
        !find(lib, "nvmlDeviceGetComputeRunningProcesses_v2", &c->processes))
        return false;
    return e->begun = c->init() == OK;
}

/* Whether a process of that number is there to be seen; in another PID namespace numbers mean nothing. */
static bool is_seen(unsigned int pid)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%u", pid);
    return access(path, F_OK) == 0;
}

/* Whether the GPU is ours alone and whole, as far as it says. */
static bool is_ours(const fkv_gpu_energy *e, handle gpu)
{
    process at[MOST_PROCESSES];
    unsigned int n = MOST_PROCESSES, current = 0, pending = 0;
    const int mig = e->calls.mig_mode(gpu, &current, &pending);
    if ((mig != OK && mig != NOT_SUPPORTED) || (mig == OK && current == MIG_ON)) return false;
    if (e->calls.processes(gpu, &n, at) != OK || n > 1) return false;
    return n == 0 || at[0].pid == (unsigned int)getpid() || !is_seen(at[0].pid);
}

static bool is_new(const char (*places)[FKV_BUS_PLACE], int i)
{
    for (int j = 0; j < i; j++)
        if (!strcmp(places[i], places[j])) return false;
    return true;
}

static bool begin(fkv_gpu_energy *e, const char (*places)[FKV_BUS_PLACE], int n)
{
    if (n < 1 || n > FKV_GPU_ENERGY_MAX || !load(e)) return false;
    for (int i = 0; i < n; i++) {
        if (!is_new(places, i)) continue;
        if (e->calls.by_place(places[i], &e->gpus[e->n]) != OK || !is_ours(e, e->gpus[e->n])) return false;
        if (e->calls.energy(e->gpus[e->n], &e->before[e->n]) != OK) return false;
        e->n++;
    }
    return true;
}

fkv_gpu_energy *fkv_gpu_energy_open_at(const char (*places)[FKV_BUS_PLACE], int n)
{
    fkv_gpu_energy *e = fkv_calloc(1, sizeof *e);
    if (e && (e->known = begin(e, places, n))) return e;
    fkv_gpu_energy_close(e);
    return NULL;
}

/* The places of the devices' GPUs; 0 where one has none. */
static int find_places(const fkv_backend *backend, int first, int n, char (*places)[FKV_BUS_PLACE])
{
    if (!backend->bus_place || n > FKV_GPU_ENERGY_MAX) return 0;
    for (int i = 0; i < n; i++)
        if (!backend->bus_place(first + i, places[i])) return 0;
    return n;
}

fkv_gpu_energy *fkv_gpu_energy_open(const fkv_backend *backend, int first, int n)
{
    char places[FKV_GPU_ENERGY_MAX][FKV_BUS_PLACE];
    const int found = find_places(backend, first, n, places);
    return found ? fkv_gpu_energy_open_at((const char(*)[FKV_BUS_PLACE])places, found) : NULL;
}

int fkv_gpu_energy_gpus(const fkv_backend *backend, int first, int n)
{
    char places[FKV_GPU_ENERGY_MAX][FKV_BUS_PLACE];
    const int found = find_places(backend, first, n, places);
    int gpus = 0;
    for (int i = 0; i < found; i++) gpus += is_new((const char(*)[FKV_BUS_PLACE])places, i);
    return gpus;
}

bool fkv_gpu_energy_joules(fkv_gpu_energy *e, double *joules)
{
    *joules = 0;
    for (int i = 0; e && e->known && i < e->n; i++) {
        unsigned long long now;
        /* A driver that was loaded anew counts from 0. */
        e->known = e->calls.energy(e->gpus[i], &now) == OK && now >= e->before[i] && is_ours(e, e->gpus[i]);
        if (e->known) *joules += (double)(now - e->before[i]) / 1000;
    }
    return e && e->known;
}

void fkv_gpu_energy_close(fkv_gpu_energy *e)
{
    if (!e) return;
    if (e->begun) e->calls.shutdown();
    if (e->library) dlclose(e->library);
    free(e);
}
