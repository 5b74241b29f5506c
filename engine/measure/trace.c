/* Times of a decode step's parts, measured on the device: see engine.h.
 *
 * A traced step enqueues its ops one by one (nothing is recorded or replayed) and
 * waits for the device at every boundary, so that each rank's segment and what
 * lies between the segments are known apart. The engine owns the sums. */
#include <stdlib.h>

#include "engine/state.h"
#include "runner/base/clock.h"
#include "runner/base/mem.h"

fkv_status fkv_engine_trace_start(fkv_engine *e, fkv_err *err)
{
    const size_t n = (size_t)e->config.n_layers * (size_t)e->options.n_ranks;
    fkv_engine_trace_stop(e);
    fkv_trace *t = calloc(1, sizeof *t);
    if (!t || !(t->segment_seconds = fkv_calloc(n, sizeof *t->segment_seconds))) {
        free(t);
        return fkv_fail_memory(err);
    }
    e->trace = t;
    return FKV_OK;
}

void fkv_engine_trace_stop(fkv_engine *e)
{
    if (e->trace) free(e->trace->segment_seconds);
    free(e->trace);
    e->trace = NULL;
}

bool fkv_engine_trace_get(const fkv_engine *e, fkv_engine_trace *out)
{
    const fkv_trace *t = e->trace;
    if (!t) return false;
    *out = (fkv_engine_trace){.n_layers = e->config.n_layers,
                              .n_ranks = e->options.n_ranks,
                              .n_steps = t->n_steps,
                              .segment_seconds = t->segment_seconds,
                              .layers_seconds = t->layers_seconds,
                              .once_seconds = t->once_seconds};
    return true;
}

double fkv_engine_trace_step_us(const fkv_engine_trace *t)
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

/* The time when everything enqueued is done. An error stays for the step's own sync. */
static double clock_of(const fkv_engine_device *d)
{
    fkv_err ignored = {0};
    d->engine->options.backend->sync(d->dev, &ignored);
    return fkv_seconds();
}

void fkv_trace_share_begin(fkv_engine_device *d)
{
    if (d->tracing) d->share_start = clock_of(d);
}

void fkv_trace_share_end(fkv_engine_device *d)
{
    if (d->tracing) d->share_seconds += clock_of(d) - d->share_start;
}

/* Seconds from start until now as one rank on a device of its own would take them:
 * what ranks did one after the other counts once. */
static double own_seconds(fkv_engine_device *d, double start)
{
    const double share = d->share_seconds;
    d->share_seconds = 0;
    return clock_of(d) - start - share + share / d->n_ranks;
}

void fkv_trace_step(fkv_engine_device *d)
{
    fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    fkv_trace *t = e->trace;
    double before[FKV_MAX_LOCAL_RANKS], after[FKV_MAX_LOCAL_RANKS], layers = 0, once = 0;
    d->tracing = true;
    d->share_seconds = 0;
    double start = clock_of(d);
    fkv_decode_begin(d);
    once += own_seconds(d, start);
    for (int l = 0; l < e->config.n_layers; l++) {
        clock_of(d);
        b->span_seconds(d->dev, before, d->n_ranks);
        for (int r = 0; r < d->n_ranks; r++) {
            fkv_decode_segment(d, r, l);
            clock_of(d);
        }
        b->span_seconds(d->dev, after, d->n_ranks);
        /* Devices write to their own ranks' places. */
        for (int r = 0; r < d->n_ranks; r++)
            t->segment_seconds[(size_t)l * e->options.n_ranks + d->rank0 + r] += after[r] - before[r];
        start = clock_of(d);
        fkv_decode_rest(d, l);
        layers += own_seconds(d, start);
    }
    start = clock_of(d);
    fkv_decode_end(d);
    once += own_seconds(d, start);
    d->tracing = false;
    if (d->index) return;
    t->layers_seconds += layers;
    t->once_seconds += once;
    t->n_steps++;
}
