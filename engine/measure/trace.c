/* Times of a decode step's parts: see measure.h.
 *
 * The engine shows the trace where a step is (fkv_stopwatch). There the trace waits for the
 * device, so that each rank's segment and what lies between the segments are known apart. */
#include <stdlib.h>
#include <string.h>

#include "engine/measure/measure.h"
#include "engine/state.h"
#include "runner/base/clock.h"
#include "runner/base/mem.h"

/* One device's step under way. */
typedef struct progress {
    double start;                                                   /* of the part under way */
    double share_start, share_seconds;                              /* of what ranks do one after the other */
    double before[FKV_MAX_LOCAL_RANKS], after[FKV_MAX_LOCAL_RANKS]; /* spans */
    double layers_seconds, once_seconds;
} progress;

struct fkv_trace {
    fkv_engine *engine;
    fkv_stopwatch watch;
    fkv_trace_sums sums;
    progress *devices; /* [n_devices] */
};

/* The time when everything enqueued is done. An error stays for the step's own sync. */
static double clock_of(const fkv_engine_device *d)
{
    fkv_err ignored = {0};
    d->engine->options.backend->sync(d->dev, &ignored);
    return fkv_seconds();
}

/* Seconds of the part that ends now, as one rank on a device of its own would take them: what
 * ranks did one after the other counts once. */
static double own_seconds(const fkv_engine_device *d, progress *p)
{
    const double share = p->share_seconds;
    p->share_seconds = 0;
    return clock_of(d) - p->start - share + share / d->n_ranks;
}

static void segments_end(fkv_trace *t, const fkv_engine_device *d, progress *p, int layer)
{
    d->engine->options.backend->span_seconds(d->dev, p->after, d->n_ranks);
    /* Devices write to their own ranks' places. */
    double *seconds = t->sums.segment_seconds + (size_t)layer * (size_t)t->sums.n_ranks + d->rank0;
    for (int r = 0; r < d->n_ranks; r++) seconds[r] += p->after[r] - p->before[r];
}

static void step_ends(fkv_trace *t, const fkv_engine_device *d, progress *p)
{
    if (d->index == 0) {
        t->sums.layers_seconds += p->layers_seconds;
        t->sums.once_seconds += p->once_seconds;
        t->sums.n_steps++;
    }
    p->layers_seconds = p->once_seconds = 0;
}

static void at(void *ctx, const fkv_engine_device *d, fkv_moment moment, int layer)
{
    fkv_trace *t = ctx;
    progress *p = &t->devices[d->index];
    switch (moment) {
    case FKV_STEP_BEGINS: p->start = clock_of(d); break;
    case FKV_LAYER_BEGINS:
        *(layer ? &p->layers_seconds : &p->once_seconds) += own_seconds(d, p);
        d->engine->options.backend->span_seconds(d->dev, p->before, d->n_ranks);
        break;
    case FKV_SEGMENT_ENDS: clock_of(d); break;
    case FKV_SEGMENTS_END:
        segments_end(t, d, p, layer);
        p->start = clock_of(d);
        break;
    case FKV_LAYERS_END:
        p->layers_seconds += own_seconds(d, p);
        p->start = clock_of(d);
        break;
    case FKV_STEP_ENDS:
        p->once_seconds += own_seconds(d, p);
        step_ends(t, d, p);
        break;
    case FKV_SHARES_BEGIN: p->share_start = clock_of(d); break;
    case FKV_SHARES_END: p->share_seconds += clock_of(d) - p->share_start; break;
    }
}

fkv_status fkv_trace_open(fkv_engine *e, fkv_trace **trace, fkv_err *err)
{
    *trace = NULL;
    fkv_trace *t = calloc(1, sizeof *t);
    if (!t) return fkv_fail_memory(err);
    t->engine = e;
    t->watch = (fkv_stopwatch){t, at};
    t->sums = (fkv_trace_sums){.n_layers = e->config.n_layers, .n_ranks = e->options.n_ranks};
    t->sums.segment_seconds =
        fkv_calloc((size_t)t->sums.n_layers, (size_t)t->sums.n_ranks * sizeof *t->sums.segment_seconds);
    t->devices = fkv_calloc((size_t)e->options.n_devices, sizeof *t->devices);
    if (!t->sums.segment_seconds || !t->devices) {
        fkv_trace_close(t);
        return fkv_fail_memory(err);
    }
    e->stopwatch = &t->watch;
    *trace = t;
    return FKV_OK;
}

const fkv_trace_sums *fkv_trace_get(const fkv_trace *t)
{
    return &t->sums;
}

void fkv_trace_reset(fkv_trace *t)
{
    const size_t n = (size_t)t->sums.n_layers * (size_t)t->sums.n_ranks;
    memset(t->sums.segment_seconds, 0, n * sizeof *t->sums.segment_seconds);
    t->sums.layers_seconds = t->sums.once_seconds = 0;
    t->sums.n_steps = 0;
}

void fkv_trace_close(fkv_trace *t)
{
    if (!t) return;
    if (t->engine->stopwatch == &t->watch) t->engine->stopwatch = NULL;
    free(t->sums.segment_seconds);
    free(t->devices);
    free(t);
}

double fkv_trace_step_us(const fkv_trace_sums *t)
{
    double sum = t->layers_seconds + t->once_seconds;
    for (int l = 0; l < t->n_layers; l++) {
        double slowest = 0;
        for (int r = 0; r < t->n_ranks; r++) {
            const double s = t->segment_seconds[(size_t)l * t->n_ranks + r];
            if (s > slowest) slowest = s;
        }
        sum += slowest;
    }
    return t->n_steps ? 1e6 * sum / (double)t->n_steps : 0;
}
