/* The collectives between a job's devices, timed: see calibrate.h. All that is opened
 * here is closed again. */
#include <math.h>
#include <stdlib.h>

#include "engine/measure/calibrate.h"
#include "engine/team.h"
#include "runner/base/clock.h"
#include "runner/base/mem.h"

/* Gathers are repeated for so long before and while they are timed: links and clocks that
 * rested take a while. */
static const double warm_seconds = 0.03, timed_seconds = 0.03;
enum { PILOT = 8, LEAST_ROUNDS = 16, MOST_ROUNDS = 256, GATHERS = 8, ATTEMPTS = 4, MAX_DEVICES = 255 };
/* As many rows as a tile of prefill's. */
enum { TILE_ROWS = 2048 };

typedef struct link {
    const fkv_backend *backend;
    fkv_world *world;
    fkv_team *team;
    fkv_device **devices;
    void **buffers;                  /* of every device, [most, hidden] */
    int64_t cols[MAX_DEVICES + 1];   /* who writes which columns */
    int64_t rows, most, hidden;      /* rows: of the gathers to time now */
    int n_devices, n_threads, bytes; /* bytes: of an element */
    int rounds;                      /* that every device does */
    double seconds[MOST_ROUNDS];     /* of each, on device 0 */
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
static fkv_status gather_on(void *ctx, int device, fkv_err *err)
{
    link *l = ctx;
    for (int i = 0; i < l->rounds; i++) {
        const double start = fkv_seconds();
        for (int k = 0; k < GATHERS; k++)
            l->backend->gather_cols(l->devices[device], l->buffers[device], l->rows, l->hidden, l->cols,
                                    l->bytes);
        const fkv_status st = l->backend->sync(l->devices[device], err);
        if (st) return st;
        if (device == 0 && i < MOST_ROUNDS) l->seconds[i] = fkv_seconds() - start;
    }
    return FKV_OK;
}

/* One gather of so many rows: the median of many. Devices meet in it, so each does a number of
 * rounds that was fixed before. */
static fkv_status time_gather(link *l, int64_t rows, double *us, bool *settled, fkv_err *err)
{
    double round;
    l->rows = rows;
    l->rounds = PILOT;
    fkv_status st = fkv_team_run(l->team, gather_on, l, err);
    if (st) return st;
    fkv_fit_settled(l->seconds, PILOT, 0.25, &round);
    *settled = false;
    for (int i = 0; !st && !*settled && i < ATTEMPTS; i++) {
        l->rounds = round * 1000 < warm_seconds ? 1000 : (int)(warm_seconds / round) + 1;
        if ((st = fkv_team_run(l->team, gather_on, l, err))) break;
        l->rounds = (int)fmin(fmax(timed_seconds / round, LEAST_ROUNDS), MOST_ROUNDS);
        st = fkv_team_run(l->team, gather_on, l, err);
        if (!st) *settled = fkv_fit_settled(l->seconds, l->rounds, 0.5, us);
    }
    *us *= 1e6 / GATHERS;
    return st;
}

static fkv_status measure(link *l, int64_t few, double *start_us, double *bytes_per_us, bool *settled,
                          fkv_err *err)
{
    const double received = (double)l->hidden * l->bytes * (l->n_devices - 1) / l->n_devices;
    double short_us = 0, long_us = 0;
    fkv_status st = time_gather(l, few, &short_us, settled, err);
    if (!st && *settled) st = time_gather(l, l->most, &long_us, settled, err);
    if (st || !*settled) return st;
    const double rate = received * (double)(l->most - few) / (long_us - short_us);
    *bytes_per_us = rate > 0 && isfinite(rate) ? rate : received * (double)l->most / long_us;
    *start_us = fmax(short_us - received * (double)few / *bytes_per_us, 0);
    return FKV_OK;
}

fkv_status fkv_calibration_measure_link(const fkv_calibration_task *t, double *start_us, double *bytes_per_us,
                                        bool *settled, fkv_err *err)
{
    const fkv_group group = {.n_devices = t->n_devices};
    link l = {.backend = t->backend,
              .n_devices = t->n_devices,
              .n_threads = t->n_threads,
              .hidden = t->config->hidden,
              .most = 16 * (int64_t)t->n_slots};
    *start_us = *bytes_per_us = 0;
    *settled = true;
    if (l.most < TILE_ROWS) l.most = TILE_ROWS;
    if (t->n_devices < 2) return FKV_OK;
    if (t->n_devices > MAX_DEVICES)
        return fkv_fail(err, FKV_E_INPUT, "%d devices are more than %d", t->n_devices, MAX_DEVICES);
    for (int d = 0; d <= t->n_devices; d++) l.cols[d] = l.hidden * d / t->n_devices;
    l.devices = fkv_calloc((size_t)t->n_devices, sizeof(fkv_device *));
    l.buffers = fkv_calloc((size_t)t->n_devices, sizeof(void *));
    fkv_status st = l.devices && l.buffers ? FKV_OK : fkv_fail_memory(err);
    if (!st) st = t->backend->world_open(&group, &l.world, err);
    if (!st) st = fkv_team_open(t->n_devices, "device", abort_world, &l, &l.team, err);
    if (!st) st = fkv_team_run(l.team, open_device, &l, err);
    if (!st) st = measure(&l, t->n_slots, start_us, bytes_per_us, settled, err);
    fkv_team_close(l.team);
    for (int d = 0; l.devices && d < t->n_devices; d++)
        if (l.devices[d]) t->backend->close(l.devices[d]);
    if (l.world) t->backend->world_close(l.world);
    free(l.buffers);
    free(l.devices);
    return st;
}
