/* A library that looks like NVML to kernels/gpu_energy.c. FAKE_NVML says what is the matter with it: a word
 * such as "mig", "init", "energy", or "others=PID". The counter of a GPU goes up by 1,500 mJ a second look.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct gpu {
    const char *place;
    unsigned long long millijoules;
} gpu;
static gpu gpus[] = {{"0000:3B:00.0", 1000000}, {"0000:5E:00.0", 2000000}};

typedef struct process {
    unsigned int pid;
    unsigned long long memory;
    unsigned int gpu_instance, compute_instance;
} process;

int nvmlInit_v2(void);
int nvmlShutdown(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *place, void **out);
int nvmlDeviceGetTotalEnergyConsumption(void *of, unsigned long long *millijoules);
int nvmlDeviceGetMigMode(void *of, unsigned int *current, unsigned int *pending);
int nvmlDeviceGetComputeRunningProcesses_v3(void *of, unsigned int *n, process *at);

static int is(const char *what)
{
    const char *said = getenv("FAKE_NVML");
    return said && !strcmp(said, what);
}

int nvmlInit_v2(void)
{
    return is("init") ? 9 : 0;
}

int nvmlShutdown(void)
{
    return 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *place, void **out)
{
    for (size_t i = 0; i < sizeof gpus / sizeof *gpus; i++) {
        if (strcmp(place, gpus[i].place) != 0) continue;
        *out = &gpus[i];
        return 0;
    }
    return 6;
}

int nvmlDeviceGetTotalEnergyConsumption(void *of, unsigned long long *millijoules)
{
    gpu *g = of;
    if (is("energy")) return 3;
    *millijoules = is("reset") ? 0 : g->millijoules;
    g->millijoules += 1500;
    return 0;
}

int nvmlDeviceGetMigMode(void *of, unsigned int *current, unsigned int *pending)
{
    (void)of;
    *current = *pending = is("mig");
    return is("old") ? 3 : 0;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *of, unsigned int *n, process *at)
{
    const char *said = getenv("FAKE_NVML");
    (void)of;
    if (is("processes")) return 3;
    *n = 0;
    if (is("ours") || is("two")) at[(*n)++].pid = (unsigned int)getpid();
    if (is("two")) at[(*n)++].pid = 1;
    if (said && !strncmp(said, "others=", 7)) at[(*n)++].pid = (unsigned int)strtoul(said + 7, NULL, 10);
    return 0;
}
