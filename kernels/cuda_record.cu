/* Recording of steps as CUDA graphs, and the times of spans.
 *
 * The first step under a key runs as it is enqueued, so that whatever chooses or grows
 * at first use has done so. The second is captured with event nodes around every span,
 * the third without, and later ones replay the third; every timed_every-th replays the
 * second, whose spans stand for all steps: an event node costs about a microsecond, and
 * a step has two for every layer and rank. Capture is thread-local: other GPUs' threads
 * go on. What is recorded starts when every device has its own: making it takes memory,
 * which may have to wait for kernels, and these for that device.
 */
#include "kernels/cuda_device.h"

#include <cstdlib>

extern "C" {
#include "runner/base/mem.h"
}

static const int64_t timed_every = 64;

static bool launch(fkv_device *dev, cuda_record *r, bool timed)
{
    if (timed) {
        cuda_record_collect(dev); /* the events are about to be recorded again */
        r->n_timed++;
        r->waiting = true;
    }
    return CUDA(dev, cudaGraphLaunch(timed ? r->timed : r->plain, dev->stream));
}

bool cuda_replay(fkv_device *dev, int key)
{
    if (key < 0 || key >= CUDA_RECORD_KEYS) return false;
    cuda_record *r = &dev->records[key];
    if (!r->plain) return false;
    r->n_steps++;
    launch(dev, r, r->n_steps % timed_every == 0);
    return true;
}

void cuda_record_begin(fkv_device *dev, int key)
{
    if (key < 0 || key >= CUDA_RECORD_KEYS || dev->current) return;
    cuda_record *r = dev->current = &dev->records[key];
    r->n_steps++;
    if (r->n_steps == 1 || dev->failed) return;
    /* A step enqueued after an upload of this thread may be captured at once: the
     * capture holds what follows, the upload is on the stream already. */
    if (CUDA(dev, cudaStreamBeginCapture(dev->stream, cudaStreamCaptureModeThreadLocal)))
        dev->recording = true;
}

void cuda_record_end(fkv_device *dev, int key)
{
    (void)key;
    cuda_record *r = dev->current;
    dev->current = NULL;
    if (!dev->recording) return;
    dev->recording = false;
    const bool timed = !r->timed;
    cudaGraph_t graph = NULL;
    if (CUDA(dev, cudaStreamEndCapture(dev->stream, &graph)) &&
        CUDA(dev, cudaGraphInstantiate(timed ? &r->timed : &r->plain, graph, 0)) &&
        CUDA(dev, cudaGraphUpload(timed ? r->timed : r->plain, dev->stream)) && !dev->failed &&
        cuda_world_meet(dev))
        launch(dev, r, timed);
    if (graph) cudaGraphDestroy(graph);
}

static cuda_span *new_span(cuda_record *r)
{
    if (r->n_spans == r->cap_spans) {
        const int cap = r->cap_spans ? 2 * r->cap_spans : 256;
        cuda_span *grown = (cuda_span *)fkv_realloc(r->spans, (size_t)cap, sizeof *grown);
        if (!grown) return NULL;
        r->spans = grown;
        r->cap_spans = cap;
    }
    cuda_span *s = &r->spans[r->n_spans];
    *s = cuda_span{};
    return s;
}

static double span_time(fkv_device *dev, const cuda_span *s)
{
    float ms = 0;
    CUDA(dev, cudaEventElapsedTime(&ms, s->begin, s->end));
    return (double)ms * 1e-3;
}

/* Adds the span of local_rank that runs outside of recorded steps. */
static void collect_one(fkv_device *dev, int local_rank)
{
    if (!dev->span_waiting[local_rank]) return;
    const cuda_span *s = &dev->spans[local_rank];
    if (CUDA(dev, cudaEventSynchronize(s->end))) dev->span_seconds[local_rank] += span_time(dev, s);
    dev->span_waiting[local_rank] = false;
}

static bool make_events(fkv_device *dev, cuda_span *s)
{
    return (s->begin || CUDA(dev, cudaEventCreate(&s->begin))) &&
           (s->end || CUDA(dev, cudaEventCreate(&s->end)));
}

void cuda_span_begin(fkv_device *dev, int local_rank)
{
    cuda_record *r = dev->current;
    if (!r) {
        collect_one(dev, local_rank);
        if (make_events(dev, &dev->spans[local_rank]))
            CUDA(dev, cudaEventRecord(dev->spans[local_rank].begin, dev->stream));
    } else if (dev->recording && !r->timed) {
        cuda_span *s = new_span(r);
        if (!s || !make_events(dev, s)) return;
        s->local_rank = local_rank;
        CUDA(dev, cudaEventRecordWithFlags(s->begin, dev->stream, cudaEventRecordExternal));
    }
}

void cuda_span_end(fkv_device *dev, int local_rank)
{
    cuda_record *r = dev->current;
    if (!r) {
        if (dev->spans[local_rank].end)
            dev->span_waiting[local_rank] =
                CUDA(dev, cudaEventRecord(dev->spans[local_rank].end, dev->stream));
    } else if (dev->recording && !r->timed && r->n_spans < r->cap_spans && r->spans[r->n_spans].end) {
        CUDA(dev, cudaEventRecordWithFlags(r->spans[r->n_spans].end, dev->stream, cudaEventRecordExternal));
        r->n_spans++;
    }
}

void cuda_record_collect(fkv_device *dev)
{
    for (cuda_record *r = dev->records; r < dev->records + CUDA_RECORD_KEYS; r++) {
        if (!r->waiting) continue;
        r->waiting = false;
        if (r->n_spans && !CUDA(dev, cudaEventSynchronize(r->spans[r->n_spans - 1].end))) return;
        for (int i = 0; i < r->n_spans; i++)
            r->seconds[r->spans[i].local_rank] += span_time(dev, &r->spans[i]);
    }
}

void cuda_span_seconds(fkv_device *dev, double *seconds, int n_local)
{
    cuda_record_collect(dev);
    for (int i = 0; i < n_local; i++) {
        collect_one(dev, i);
        seconds[i] = dev->span_seconds[i];
        for (const cuda_record *r = dev->records; r < dev->records + CUDA_RECORD_KEYS; r++)
            if (r->n_timed) seconds[i] += r->seconds[i] * (double)r->n_steps / (double)r->n_timed;
    }
}

int cuda_recorded_spans(fkv_device *dev, int key, double *seconds, int n)
{
    if (key < 0 || key >= CUDA_RECORD_KEYS || !dev->records[key].timed || !dev->records[key].n_timed)
        return 0;
    const cuda_record *r = &dev->records[key];
    int i = 0;
    for (; i < r->n_spans && i < n; i++) seconds[i] = span_time(dev, &r->spans[i]);
    return i;
}

static void destroy_events(cuda_span *s)
{
    if (s->begin) cudaEventDestroy(s->begin);
    if (s->end) cudaEventDestroy(s->end);
}

void cuda_record_forget(fkv_device *dev)
{
    for (cuda_record *r = dev->records; r < dev->records + CUDA_RECORD_KEYS; r++) {
        if (r->plain) cudaGraphExecDestroy(r->plain);
        if (r->timed) cudaGraphExecDestroy(r->timed);
        for (int i = 0; i < r->n_spans; i++) destroy_events(&r->spans[i]);
        free(r->spans);
        *r = cuda_record{};
    }
}

void cuda_record_close(fkv_device *dev)
{
    cuda_record_forget(dev);
    for (int i = 0; i < FKV_MAX_LOCAL_RANKS; i++) destroy_events(&dev->spans[i]);
}
