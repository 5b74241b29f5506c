/* The collectives between a job's devices, timed: see calibrate.h. All that is opened
 * here is closed again. */
#include <math.h>
#include <stdlib.h>

#include "engine/calibrate.h"
#include "engine/team.h"
#include "runner/base/clock.h"
#include "runner/base/mem.h"

enum { WARM = 3, ROUNDS = 5, GATHERS = 8, MAX_DEVICES = 255 };

typedef struct link {
    const fkv_backend *backend;
    fkv_world *world;
    fkv_team *team;
    fkv_device **devices;
    void **buffers;                  /* of every device, [most, hidden] */
    int64_t cols[MAX_DEVICES + 1];   /* who writes which columns */
    int64_t rows, most, hidden;      /* rows: of the gathers to time now */
    int n_devices, n_threads, bytes; /* bytes: of an element */
    double us;                       /* of one gather, on device 0 */
} link;

static void abort_world(void *ctx)
{
    const link *l = ctx;
    l->backend->world_abort(l->world);
}

static fkv_status open_device(void *ctx, int device, fkv_err *err)
{
    link *l = ctx;
    fkv_device_info info;
    fkv_status st = l->backend->open(l->world, device, l->n_threads, &l->devices[device], err);
    if (st) return st;
    l->backend->info(l->devices[device], &info);
    if (device == 0) l->bytes = info.act_bytes;
    return l->backend->alloc(l->devices[device], (size_t)(l->most * l->hidden * info.act_bytes),
                             &l->buffers[device], err);
}

/* Gathers come in rows of several, as a layer has them: the first one waits for the others. */
static fkv_status time_device(void *ctx, int device, fkv_err *err)
{
    link *l = ctx;
    double best = INFINITY;
    for (int i = 0; i < WARM + ROUNDS; i++) {
        const double start = fkv_seconds();
        for (int k = 0; k < GATHERS; k++)
            l->backend->gather_cols(l->devices[device], l->buffers[device], l->rows, l->hidden, l->cols,
                                    l->bytes);
        const fkv_status st = l->backend->sync(l->devices[device], err);
        if (st) return st;
        if (i >= WARM) best = fmin(best, fkv_seconds() - start);
    }
    if (device == 0) l->us = 1e6 * best / GATHERS;
    return FKV_OK;
}

static fkv_status measure(link *l, int64_t few, double *start_us, double *bytes_per_us, fkv_err *err)
{
    const double received = (double)l->hidden * l->bytes * (l->n_devices - 1) / l->n_devices;
    l->rows = few;
    fkv_status st = fkv_team_run(l->team, time_device, l, err);
    const double short_us = l->us;
    l->rows = l->most;
    if (!st) st = fkv_team_run(l->team, time_device, l, err);
    if (st) return st;
    const double rate = received * (double)(l->most - few) / (l->us - short_us);
    *bytes_per_us = rate > 0 && isfinite(rate) ? rate : received * (double)l->most / l->us;
    *start_us = fmax(short_us - received * (double)few / *bytes_per_us, 0);
    return FKV_OK;
}

fkv_status fkv_calibration_measure_link(const fkv_calibration_task *t, double *start_us, double *bytes_per_us,
                                        fkv_err *err)
{
    link l = {.backend = t->backend,
              .n_devices = t->n_devices,
              .n_threads = t->n_threads,
              .hidden = t->config->hidden,
              .most = 16 * (int64_t)t->n_slots};
    *start_us = *bytes_per_us = 0;
    if (t->n_devices < 2) return FKV_OK;
    if (t->n_devices > MAX_DEVICES)
        return fkv_fail(err, FKV_E_INPUT, "%d devices are more than %d", t->n_devices, MAX_DEVICES);
    for (int d = 0; d <= t->n_devices; d++) l.cols[d] = l.hidden * d / t->n_devices;
    l.devices = fkv_calloc((size_t)t->n_devices, sizeof(fkv_device *));
    l.buffers = fkv_calloc((size_t)t->n_devices, sizeof(void *));
    fkv_status st = l.devices && l.buffers ? FKV_OK : fkv_fail_memory(err);
    if (!st) st = t->backend->world_open(t->n_devices, &l.world, err);
    if (!st) st = fkv_team_open(t->n_devices, abort_world, &l, &l.team, err);
    if (!st) st = fkv_team_run(l.team, open_device, &l, err);
    if (!st) st = measure(&l, t->n_slots, start_us, bytes_per_us, err);
    fkv_team_close(l.team);
    for (int d = 0; l.devices && d < t->n_devices; d++)
        if (l.devices[d]) t->backend->close(l.devices[d]);
    if (l.world) t->backend->world_close(l.world);
    free(l.buffers);
    free(l.devices);
    return st;
}
