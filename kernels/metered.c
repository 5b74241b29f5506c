/* Ops timed by the tickets of the table inside: see metered.h.
 *
 * Behind each op a ticket is posted. Its time is read when two more are out, so that the device
 * always has work; the ring of FKV_TICKETS then still has it and the one before it. */
#include "kernels/metered.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/op_cost.h"
#include "runner/base/mem.h"

enum { IN_FLIGHT = FKV_TICKETS - 1, MAX_DEVICES = 64 };

/* An op that is enqueued. */
typedef struct timed_op {
    int64_t ticket;
    fkv_op_kind which;
    fkv_op_cost cost;
} timed_op;

typedef struct meter {
    fkv_device *dev; /* NULL: free */
    fkv_device_info info;
    fkv_device_limits limits; /* its pointers are the caller's */
    int index, n_devices;
    timed_op out[IN_FLIGHT]; /* oldest first */
    int n_out;
    bool follows; /* the last ticket is an op's end, and nothing was enqueued since */
    /* Slots of the step under way, as it began. */
    int32_t *slots; /* [3][n_slots]: pos, prompt_len, active */
    int n_slots;
    bool slots_known;
} meter;

static const fkv_backend *in;
static fkv_backend table;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the two below */
static meter meters[MAX_DEVICES];
static fkv_op_sum sums[FKV_OP_KINDS];

static meter *meter_of(const fkv_device *dev)
{
    meter *found = NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_DEVICES && !found; i++)
        if (meters[i].dev == dev) found = &meters[i];
    pthread_mutex_unlock(&lock);
    return found;
}

/* --- tickets ------------------------------------------------------------------ */

/* The oldest op's time into the sums. An error shows at the caller's next sync. */
static void settle_one(meter *m)
{
    const timed_op t = m->out[0];
    fkv_err ignored = {0};
    in->wait(m->dev, t.ticket, &ignored);
    const double seconds = in->ticket_seconds(m->dev, t.ticket);
    memmove(m->out, m->out + 1, (size_t)--m->n_out * sizeof *m->out);
    pthread_mutex_lock(&lock);
    sums[t.which].calls++;
    sums[t.which].seconds += seconds;
    sums[t.which].bytes += t.cost.bytes;
    sums[t.which].flops += t.cost.flops;
    pthread_mutex_unlock(&lock);
}

/* The caller does something that is no op: what is out is settled, and the next op starts anew. */
static void interrupt(meter *m)
{
    while (m->n_out) settle_one(m);
    m->follows = false;
}

static meter *begin(fkv_device *dev)
{
    meter *m = meter_of(dev);
    if (!m->follows) in->post(dev);
    m->follows = true;
    return m;
}

static void end(meter *m, fkv_op_kind which, fkv_op_cost cost)
{
    m->out[m->n_out++] = (timed_op){in->post(m->dev), which, cost};
    if (m->n_out == IN_FLIGHT) settle_one(m);
}

/* --- devices ------------------------------------------------------------------- */

static int world_devices; /* of the world opened last */

static fkv_status metered_world_open(const fkv_group *group, fkv_world **world, fkv_err *err)
{
    world_devices = group->n_devices;
    return in->world_open(group, world, err);
}

static fkv_status metered_open(fkv_world *world, int index, int n_threads, fkv_device **out, fkv_err *err)
{
    fkv_device *dev = NULL;
    *out = NULL;
    const fkv_status st = in->open(world, index, n_threads, &dev, err);
    if (st) return st;
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < MAX_DEVICES && meters[i].dev) i++;
    if (i < MAX_DEVICES) meters[i] = (meter){.dev = dev, .index = index, .n_devices = world_devices};
    pthread_mutex_unlock(&lock);
    if (i == MAX_DEVICES) {
        in->close(dev);
        return fkv_fail(err, FKV_E_INPUT, "more than %d devices are metered", MAX_DEVICES);
    }
    in->info(dev, &meters[i].info);
    *out = dev;
    return FKV_OK;
}

static void metered_close(fkv_device *dev)
{
    meter *m = dev ? meter_of(dev) : NULL;
    if (m) {
        free(m->slots);
        pthread_mutex_lock(&lock);
        *m = (meter){0};
        pthread_mutex_unlock(&lock);
    }
    in->close(dev);
}

static void metered_info(const fkv_device *dev, fkv_device_info *info)
{
    in->info(dev, info);
    info->replays = false;
}

static fkv_status metered_prepare(fkv_device *dev, const fkv_device_limits *limits, fkv_err *err)
{
    meter_of(dev)->limits = *limits;
    return in->prepare(dev, limits, err);
}

static void metered_release(fkv_device *dev, fkv_mark mark)
{
    interrupt(meter_of(dev));
    in->release(dev, mark);
}

static void metered_upload(fkv_device *dev, void *dst, const void *host, size_t bytes)
{
    interrupt(meter_of(dev));
    in->upload(dev, dst, host, bytes);
}

static void metered_download(fkv_device *dev, void *host, const void *src, size_t bytes)
{
    interrupt(meter_of(dev));
    in->download(dev, host, src, bytes);
}

static fkv_status metered_sync(fkv_device *dev, fkv_err *err)
{
    interrupt(meter_of(dev));
    return in->sync(dev, err);
}

static int64_t metered_post(fkv_device *dev)
{
    interrupt(meter_of(dev));
    return in->post(dev);
}

static fkv_status metered_wait(fkv_device *dev, int64_t ticket, fkv_err *err)
{
    interrupt(meter_of(dev));
    return in->wait(dev, ticket, err);
}

static double metered_ticket_seconds(fkv_device *dev, int64_t ticket)
{
    (void)dev, (void)ticket;
    return 0; /* the one before it is an op's */
}

static void metered_scatter(fkv_device *dev, int32_t *dst, const fkv_edit *edits, int64_t n)
{
    interrupt(meter_of(dev));
    in->scatter(dev, dst, edits, n);
}

static bool metered_replay(fkv_device *dev, int key)
{
    (void)dev, (void)key;
    return false;
}

static void metered_record(fkv_device *dev, int key)
{
    (void)key;
    meter_of(dev)->slots_known = false;
}

static int metered_recorded_spans(fkv_device *dev, int key, double *seconds, int n)
{
    (void)dev, (void)key, (void)seconds, (void)n;
    return 0;
}

/* --- ops ----------------------------------------------------------------------- */

static void metered_embed(fkv_device *dev, const int32_t *tokens, int64_t n, const fkv_weight *w, float *out)
{
    int64_t rows, k;
    meter *m = begin(dev);
    in->weight_shape(w, &rows, &k);
    in->embed(dev, tokens, n, w, out);
    end(m, FKV_OP_EMBED, fkv_op_cost_embed(&m->info, n, k));
}

static void metered_scale(fkv_device *dev, float *x, int64_t n, float factor, float cap)
{
    meter *m = begin(dev);
    in->scale(dev, x, n, factor, cap);
    end(m, FKV_OP_SCALE, fkv_op_cost_scale(n, cap > 0));
}

static void metered_add_rmsnorm(fkv_device *dev, void *x, const void *y, const float *weight, float eps,
                                int64_t n, int64_t hidden, void *out, float *scale)
{
    meter *m = begin(dev);
    in->add_rmsnorm(dev, x, y, weight, eps, n, hidden, out, scale);
    end(m, FKV_OP_ADD_RMSNORM,
        fkv_op_cost_add_rmsnorm(&m->info, n, hidden, y, out, scale ? FKV_FORM_FP8 : FKV_FORM_NATIVE));
}

static void metered_quantise(fkv_device *dev, fkv_acts x, int64_t n, int64_t k)
{
    meter *m = begin(dev);
    in->quantise(dev, x, n, k);
    end(m, FKV_OP_QUANTISE, fkv_op_cost_quantise(&m->info, n, k));
}

static void metered_linear(fkv_device *dev, fkv_acts x, int64_t n, int64_t class_rows, const fkv_weight *w,
                           fkv_acts y, bool f32_out, fkv_epilogue epilogue)
{
    int64_t rows, k;
    meter *m = begin(dev);
    in->weight_shape(w, &rows, &k);
    in->linear(dev, x, n, class_rows, w, y, f32_out, epilogue);
    end(m, fkv_op_kind_of_linear(&m->limits, rows, f32_out, epilogue),
        fkv_op_cost_linear(&m->info, x, n, rows, k, y, f32_out, epilogue));
}

static void metered_start_slots(fkv_device *dev, const fkv_pack *pack, const fkv_slots *slots)
{
    interrupt(meter_of(dev));
    in->start_slots(dev, pack, slots);
}

static void metered_prefill_qkv(fkv_device *dev, const fkv_prefill_args *a)
{
    int64_t rows, k;
    meter *m = begin(dev);
    in->weight_shape(a->weight, &rows, &k);
    in->prefill_qkv(dev, a);
    end(m, FKV_OP_PREFILL_QKV, fkv_op_cost_prefill_qkv(&m->info, a, k));
}

static void metered_prefill_attention(fkv_device *dev, const fkv_prefill_args *a)
{
    meter *m = begin(dev);
    in->prefill_attention(dev, a);
    end(m, FKV_OP_PREFILL_ATTENTION, fkv_op_cost_prefill_attention(&m->info, a));
}

static void metered_key_scores(fkv_device *dev, const fkv_prefill_args *a)
{
    meter *m = begin(dev);
    in->key_scores(dev, a);
    end(m, FKV_OP_KEY_SCORES, fkv_op_cost_key_scores(&m->info, a));
}

static void metered_kv_keep(fkv_device *dev, const fkv_keep_args *a)
{
    meter *m = begin(dev);
    in->kv_keep(dev, a);
    end(m, FKV_OP_KV_KEEP, fkv_op_cost_kv_keep(&m->info, a));
}

static void metered_last_rows(fkv_device *dev, const fkv_pack *pack, const void *x, int64_t hidden, void *out)
{
    meter *m = begin(dev);
    in->last_rows(dev, pack, x, hidden, out);
    end(m, FKV_OP_LAST_ROWS, fkv_op_cost_last_rows(&m->info, pack, hidden));
}

/* What the step's slots hold, fetched at its first op that reads them; false: no memory for it. */
static bool know_slots(fkv_device *dev, const fkv_decode_args *a, fkv_host_slots *out)
{
    meter *m = meter_of(dev);
    fkv_err ignored = {0};
    const size_t n = (size_t)a->n_slots, bytes = n * sizeof *m->slots;
    if (m->n_slots < a->n_slots) {
        int32_t *grown = fkv_realloc(m->slots, 3 * n, sizeof *grown);
        if (!grown) return false;
        m->slots = grown;
        m->n_slots = a->n_slots;
        m->slots_known = false;
    }
    *out = (fkv_host_slots){m->slots, m->slots + n, m->slots + 2 * n};
    if (m->slots_known) return true;
    interrupt(m);
    in->download(dev, m->slots, a->slots.pos, bytes);
    in->download(dev, m->slots + n, a->slots.prompt_len, bytes);
    in->download(dev, m->slots + 2 * n, a->slots.active, bytes);
    in->sync(dev, &ignored);
    m->slots_known = true;
    return true;
}

static void metered_decode_qkv(fkv_device *dev, const fkv_decode_args *a)
{
    fkv_host_slots slots;
    const bool known = know_slots(dev, a, &slots);
    meter *m = begin(dev);
    in->decode_qkv(dev, a);
    end(m, FKV_OP_DECODE_QKV, known ? fkv_op_cost_decode_qkv(&m->info, a, &slots) : (fkv_op_cost){0});
}

static void metered_decode_attention(fkv_device *dev, const fkv_decode_args *a)
{
    fkv_host_slots slots;
    const bool known = know_slots(dev, a, &slots);
    meter *m = begin(dev);
    in->decode_attention(dev, a);
    end(m, FKV_OP_DECODE_ATTENTION,
        known ? fkv_op_cost_decode_attention(&m->info, a, &slots) : (fkv_op_cost){0});
}

static void metered_sample(fkv_device *dev, float *logits, int64_t stride, int n_slots, bool first,
                           const fkv_slots *slots, const fkv_token_rules *rules, int choice, int vocab)
{
    meter *m = begin(dev);
    in->sample(dev, logits, stride, n_slots, first, slots, rules, choice, vocab);
    end(m, FKV_OP_SAMPLE, fkv_op_cost_sample(n_slots, vocab));
    m->slots_known = false;
}

static void metered_gather_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols,
                                int elem_bytes)
{
    meter *m = begin(dev);
    in->gather_cols(dev, buf, n, stride, cols, elem_bytes);
    end(m, FKV_OP_GATHER_COLS, fkv_op_cost_gather_cols(n, cols, m->n_devices, m->index, elem_bytes));
}

static void metered_gather_heads(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                                 const uint8_t *owner, const uint8_t *dev_owner)
{
    meter *m = begin(dev);
    in->gather_heads(dev, out, n, n_kv_heads, row_elems, owner, dev_owner);
    end(m, FKV_OP_GATHER_HEADS,
        fkv_op_cost_gather_heads(&m->info, n, n_kv_heads, row_elems, owner, m->index));
}

/* As if every device had as many ranks. */
static void metered_reduce_ranks(fkv_device *dev, const float *partials, int n_local, int64_t n,
                                 int64_t hidden, void *y)
{
    meter *m = begin(dev);
    in->reduce_ranks(dev, partials, n_local, n, hidden, y);
    end(m, FKV_OP_REDUCE_RANKS, fkv_op_cost_reduce_ranks(&m->info, n_local * m->n_devices, n, hidden));
}

const fkv_backend *fkv_backend_metered(const fkv_backend *inner)
{
    in = inner;
    table = *inner;
    table.world_open = metered_world_open;
    table.open = metered_open;
    table.close = metered_close;
    table.info = metered_info;
    table.prepare = metered_prepare;
    table.release = metered_release;
    table.upload = metered_upload;
    table.download = metered_download;
    table.sync = metered_sync;
    table.post = metered_post;
    table.wait = metered_wait;
    table.ticket_seconds = metered_ticket_seconds;
    table.scatter = metered_scatter;
    table.replay = metered_replay;
    table.record_begin = metered_record;
    table.record_end = metered_record;
    table.recorded_spans = metered_recorded_spans;
    table.embed = metered_embed;
    table.scale = metered_scale;
    table.add_rmsnorm = metered_add_rmsnorm;
    table.quantise = metered_quantise;
    table.linear = metered_linear;
    table.start_slots = metered_start_slots;
    table.prefill_qkv = metered_prefill_qkv;
    table.prefill_attention = metered_prefill_attention;
    table.key_scores = metered_key_scores;
    table.kv_keep = metered_kv_keep;
    table.last_rows = metered_last_rows;
    table.decode_qkv = metered_decode_qkv;
    table.decode_attention = metered_decode_attention;
    table.sample = metered_sample;
    table.gather_cols = metered_gather_cols;
    table.gather_heads = metered_gather_heads;
    table.reduce_ranks = metered_reduce_ranks;
    return &table;
}

void fkv_metered_take(fkv_op_sum out[FKV_OP_KINDS])
{
    pthread_mutex_lock(&lock);
    memcpy(out, sums, sizeof sums);
    memset(sums, 0, sizeof sums);
    pthread_mutex_unlock(&lock);
}
