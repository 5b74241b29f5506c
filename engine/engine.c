/* Opening and closing of the engine: devices, ranks, buffers, plan. See engine.h;
 * what runs on the devices is in prefill.c, decode.c and layer.c. */
#include "engine/engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/state.h"
#include "runner/base/mem.h"

static void abort_world(void *ctx)
{
    const fkv_engine *e = ctx;
    e->options.backend->world_abort(e->world);
}

static fkv_range ranks_of(const fkv_engine_options *o, int d)
{
    if (o->solo) return (fkv_range){o->solo_rank, o->solo_rank + 1};
    return fkv_partition_ranks(o->n_ranks, d, o->n_devices);
}

static fkv_status buffer(fkv_engine_device *d, fkv_buffer_size size, void *out, fkv_err *err)
{
    size_t bytes;
    void *p = NULL;
    if (!fkv_mul_size((size_t)size.rows, (size_t)size.cols, &bytes) ||
        !fkv_mul_size(bytes, (size_t)size.element_bytes, &bytes))
        return fkv_fail_memory(err);
    const fkv_status st = d->engine->options.backend->alloc(d->dev, bytes, &p, err);
    if (!st) memcpy(out, &p, sizeof p);
    return st;
}

fkv_memory_shape fkv_engine_memory_shape(const fkv_engine *e)
{
    return (fkv_memory_shape){.config = &e->config,
                              .n_ranks = e->options.n_ranks,
                              .n_devices = e->options.n_devices,
                              .n_slots = e->options.n_slots,
                              .max_prompt = e->options.max_prompt,
                              .max_tokens = e->options.max_tokens,
                              .act_bytes = e->info.act_bytes,
                              .kv_bytes = e->info.kv_bytes,
                              .kv_form = e->options.kv_form,
                              .weight_bytes = e->info.weight_bytes,
                              .fp8_bytes = e->info.fp8_bytes,
                              .fp8_row_bytes = e->info.fp8_row_bytes,
                              .form = e->options.form,
                              .prefill_tile = e->tile,
                              .worth_rows = e->info.worth_rows,
                              .window = e->options.window,
                              .scorers = fkv_engine_scorers(e),
                              .backend = e->options.backend,
                              .n_threads = e->options.n_threads};
}

static int64_t page_bytes_of(const fkv_engine *e)
{
    const fkv_memory_shape shape = fkv_engine_memory_shape(e);
    return fkv_memory_page_bytes(&shape);
}

static fkv_status make_buffers(fkv_engine_device *d, fkv_err *err)
{
    void *const out[FKV_N_BUFFERS] = {[FKV_BUFFER_X] = &d->x,
                                      [FKV_BUFFER_XN] = &d->xn,
                                      [FKV_BUFFER_QKV] = &d->qkv,
                                      [FKV_BUFFER_ATT] = &d->att,
                                      [FKV_BUFFER_SCORES] = &d->scores,
                                      [FKV_BUFFER_SECOND] = &d->second,
                                      [FKV_BUFFER_TOKENS] = &d->tokens,
                                      [FKV_BUFFER_ROPE_ROWS] = &d->rope_rows,
                                      [FKV_BUFFER_SEGMENTS] = &d->segments,
                                      [FKV_BUFFER_EDITS] = &d->edits,
                                      [FKV_BUFFER_Y] = &d->y,
                                      [FKV_BUFFER_ACT] = &d->act,
                                      [FKV_BUFFER_PARTIAL] = &d->partial,
                                      [FKV_BUFFER_XN_SCALE] = &d->xn_scale,
                                      [FKV_BUFFER_TILE_SCALE] = &d->tile_scale,
                                      [FKV_BUFFER_STEP_SCALE] = &d->step_scale,
                                      [FKV_BUFFER_STEP_X] = &d->step_x,
                                      [FKV_BUFFER_STEP_XN] = &d->step_xn,
                                      [FKV_BUFFER_STEP_ATT] = &d->step_att,
                                      [FKV_BUFFER_LOGITS] = &d->logits,
                                      [FKV_BUFFER_DEVICE_OF] = &d->device_of,
                                      [FKV_BUFFER_SLOT_TOKEN] = &d->slots.token,
                                      [FKV_BUFFER_SLOT_POS] = &d->slots.pos,
                                      [FKV_BUFFER_SLOT_ROPE0] = &d->slots.rope0,
                                      [FKV_BUFFER_SLOT_PROMPT_LEN] = &d->slots.prompt_len,
                                      [FKV_BUFFER_SLOT_N_NEW] = &d->slots.n_new,
                                      [FKV_BUFFER_SLOT_ACTIVE] = &d->slots.active,
                                      [FKV_BUFFER_SLOT_MAX_NEW] = &d->slots.max_new,
                                      [FKV_BUFFER_SLOT_OUT] = &d->slots.out,
                                      [FKV_BUFFER_SLOT_SAMPLING] = &d->slots.sampling,
                                      [FKV_BUFFER_SLOT_SEEN] = &d->slots.seen};
    const fkv_memory_shape shape = fkv_engine_memory_shape(d->engine);
    fkv_buffer_size sizes[FKV_N_BUFFERS];
    fkv_memory_buffers(&shape, d->n_ranks, sizes);
    for (int i = 0; i < FKV_N_BUFFERS; i++) {
        const fkv_status st = sizes[i].rows ? buffer(d, sizes[i], out[i], err) : FKV_OK;
        if (st) return st;
    }
    return FKV_OK;
}

static fkv_status make_ranks(fkv_engine_device *d, fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_engine_options *o = &e->options;
    const fkv_range ranks = ranks_of(o, d->index);
    d->rank0 = (int)ranks.begin;
    d->n_ranks = (int)fkv_range_count(ranks);
    d->ranks = fkv_calloc((size_t)d->n_ranks, sizeof *d->ranks);
    d->norms = fkv_calloc((size_t)e->config.n_layers, sizeof *d->norms);
    if (!d->ranks || !d->norms) return fkv_fail_memory(err);
    for (int i = 0; i < d->n_ranks; i++) {
        fkv_rank *r = &d->ranks[i];
        r->rank = d->rank0 + i;
        const fkv_range home = fkv_partition_heads(e->config.n_kv_heads, r->rank, o->n_ranks);
        r->head0 = (int)home.begin;
        r->n_home = (int)fkv_range_count(home);
        r->layers = fkv_calloc((size_t)e->config.n_layers, sizeof *r->layers);
        if (!r->layers) return fkv_fail_memory(err);
    }
    return FKV_OK;
}

typedef struct open_args {
    fkv_engine *engine;
    const fkv_safetensors *weights;
    const fkv_plan *plan;
} open_args;

static fkv_status open_device(void *ctx, int index, fkv_err *err)
{
    const open_args *a = ctx;
    fkv_engine *e = a->engine;
    fkv_engine_device *d = &e->devices[index];
    const fkv_backend *b = e->options.backend;
    fkv_status st = b->open(e->world, index, e->options.n_threads, &d->dev, err);
    if (st) return st;
    fkv_device_info info;
    b->info(d->dev, &info);
    if (index == 0) e->info = info;
    return FKV_OK;
}

/* The rules' ids on the device. */
static fkv_status load_rules(fkv_engine_device *d, fkv_err *err)
{
    const fkv_token_rules *rules = &d->engine->options.rules;
    const fkv_backend *b = d->engine->options.backend;
    const size_t bytes = (size_t)rules->n_suppressed * sizeof *rules->suppressed;
    void *ids = NULL;
    d->rules = *rules;
    if (!bytes) return FKV_OK;
    const fkv_status st = b->alloc(d->dev, bytes, &ids, err);
    if (st) return st;
    b->upload(d->dev, ids, rules->suppressed, bytes);
    d->rules.suppressed = ids;
    return b->sync(d->dev, err);
}

/* When all devices are there. */
static fkv_status load_device(void *ctx, int index, fkv_err *err)
{
    const open_args *a = ctx;
    fkv_engine_device *d = &a->engine->devices[index];
    fkv_status st = load_rules(d, err);
    if (!st) st = fkv_weights_load_home(d, a->weights, err);
    d->home = a->engine->options.backend->mark(d->dev);
    return st;
}

/* Products that every step or tile has, so that what they need is chosen and allocated
 * before the arenas are sized. All layers have the same shapes. */
static fkv_status prepare_products(const fkv_engine_device *d, fkv_err *err)
{
    const fkv_engine *e = d->engine;
    const fkv_backend *b = e->options.backend;
    const int64_t rows[] = {e->tile, e->options.n_slots};
    const fkv_epilogue gate = fkv_gate_epilogue(fkv_config_family(&e->config)->activation);
    fkv_status st = FKV_OK;
    for (int i = 0; !st && i < d->n_ranks; i++) {
        const fkv_rank *r = &d->ranks[i];
        const fkv_rank_layer *l = &r->layers[0];
        for (int k = 0; !st && k < 2; k++) {
            st = b->prepare_linear(d->dev, l->gate_up, rows[k], gate, err);
            if (!st) st = b->prepare_linear(d->dev, l->qkv, rows[k], FKV_EPILOGUE_NONE, err);
            if (!st) st = b->prepare_linear(d->dev, l->o, rows[k], FKV_EPILOGUE_NONE, err);
            if (!st) st = b->prepare_linear(d->dev, l->down, rows[k], FKV_EPILOGUE_NONE, err);
        }
        if (!st) st = b->prepare_linear(d->dev, r->head, e->options.n_slots, FKV_EPILOGUE_NONE, err);
    }
    return st;
}

/* All that depends on the number of slots or the longest prompt, anew. */
static fkv_status size_device(void *ctx, int index, fkv_err *err)
{
    const open_args *a = ctx;
    fkv_engine *e = a->engine;
    fkv_engine_device *d = &e->devices[index];
    const fkv_backend *b = e->options.backend;
    const fkv_memory_shape shape = fkv_engine_memory_shape(e);
    fkv_device_limits limits = fkv_memory_device_limits(&shape);
    float inv_freq[512], rope_scale[512];
    fkv_config_rope_frequencies(&e->config, inv_freq, rope_scale);
    limits.inv_freq = inv_freq;
    limits.rope_scale = rope_scale;
    limits.layers = e->specs;
    b->release(d->dev, d->home);
    fkv_status st = b->prepare(d->dev, &limits, err);
    if (!st) st = make_buffers(d, err);
    if (!st) st = prepare_products(d, err);
    d->sized = b->mark(d->dev);
    return st;
}

/* Buffers of all devices, and the host's of a pack. */
static fkv_status size_engine(fkv_engine *e, fkv_err *err)
{
    const fkv_memory_shape shape = fkv_engine_memory_shape(e);
    open_args args = {e, NULL, NULL};
    e->max_rows = fkv_memory_max_rows(&shape);
    free(e->pack_tokens);
    free(e->pack_rope_rows);
    e->pack_tokens = fkv_calloc((size_t)e->max_rows, sizeof *e->pack_tokens);
    e->pack_rope_rows = fkv_calloc((size_t)e->max_rows, sizeof *e->pack_rope_rows);
    if (!e->pack_tokens || !e->pack_rope_rows) return fkv_fail_memory(err);
    const fkv_status st = fkv_team_run(e->team, size_device, &args, err);
    if (!st) e->options.backend->info(e->devices[0].dev, &e->info); /* all devices read it meanwhile */
    return st;
}

/* Column boundaries per device, so that gathers know who wrote what. */
static fkv_status make_columns(fkv_engine *e, fkv_err *err)
{
    const fkv_engine_options *o = &e->options;
    const size_t n = (size_t)o->n_devices + 1;
    e->hidden_cols = fkv_calloc(n, sizeof *e->hidden_cols);
    e->vocab_cols = fkv_calloc(n, sizeof *e->vocab_cols);
    e->head_cols = fkv_calloc(n, sizeof *e->head_cols);
    if (!e->hidden_cols || !e->vocab_cols || !e->head_cols) return fkv_fail_memory(err);
    for (int d = 0; d <= o->n_devices; d++) {
        /* the device behind the last one: where the last rank's end */
        const int r = (int)(d < o->n_devices ? ranks_of(o, d).begin : ranks_of(o, d - 1).end);
        e->hidden_cols[d] = fkv_partition_columns(e->config.hidden, r, o->n_ranks).begin;
        e->vocab_cols[d] = fkv_partition_columns(e->config.vocab, r, o->n_ranks).begin;
        e->head_cols[d] = fkv_partition_heads(e->config.n_kv_heads, r, o->n_ranks).begin * e->config.group *
                          e->config.head_dim;
    }
    return FKV_OK;
}

static fkv_status check_options(const fkv_config *c, const fkv_engine_options *o, fkv_err *err)
{
    if (o->n_ranks > c->n_kv_heads)
        return fkv_fail(err, FKV_E_INPUT, "more ranks (%d) than KV heads (%d): this is not supported",
                        o->n_ranks, c->n_kv_heads);
    if (o->n_devices < 1 || o->n_devices > o->n_ranks)
        return fkv_fail(err, FKV_E_INPUT, "%d devices for %d ranks: a device needs at least one rank",
                        o->n_devices, o->n_ranks);
    if (o->n_devices > 255 || (o->n_ranks + o->n_devices - 1) / o->n_devices > FKV_MAX_LOCAL_RANKS)
        return fkv_fail(err, FKV_E_INPUT, "too many ranks (%d) or devices (%d)", o->n_ranks, o->n_devices);
    if (o->max_prompt < 1 || o->max_prompt > c->max_positions || o->max_tokens < o->max_prompt ||
        o->max_tokens > c->max_positions)
        return fkv_fail(err, FKV_E_INPUT,
                        "prompts of %lld tokens, records of %lld and %d positions don't fit together",
                        (long long)o->max_prompt, (long long)o->max_tokens, c->max_positions);
    return FKV_OK;
}

static fkv_status open_engine(fkv_engine *e, const fkv_safetensors *weights, fkv_err *err)
{
    const fkv_engine_options *o = &e->options;
    const fkv_group group = {o->n_devices, o->first_device, FKV_WAY_ANY};
    fkv_status st;
    e->specs = fkv_config_layers(&e->config);
    e->devices = fkv_calloc((size_t)o->n_devices, sizeof *e->devices);
    e->rank_seconds = fkv_calloc((size_t)o->n_ranks, sizeof *e->rank_seconds);
    if (!e->specs || !e->devices || !e->rank_seconds) return fkv_fail_memory(err);
    if ((st = o->backend->world_open(&group, &e->world, err)) ||
        (st = fkv_team_open(o->n_devices, "device", abort_world, e, &e->team, err)) ||
        (st = make_columns(e, err)))
        return st;
    for (int i = 0; i < o->n_devices; i++) {
        e->devices[i].engine = e;
        e->devices[i].index = i;
        if ((st = make_ranks(&e->devices[i], err))) return st;
    }
    open_args args = {e, weights, NULL};
    if ((st = fkv_team_run(e->team, open_device, &args, err))) return st;
    e->tile = e->info.prefill_tile;
    st = fkv_team_run(e->team, load_device, &args, err);
    e->options.rules.suppressed = NULL; /* the caller's */
    return st ? st : size_engine(e, err);
}

fkv_status fkv_engine_open(const fkv_config *config, const fkv_safetensors *weights,
                           const fkv_engine_options *options, fkv_engine **engine, fkv_err *err)
{
    fkv_engine_options o = *options;
    *engine = NULL;
    if (!o.max_tokens) o.max_tokens = config->max_positions;
    fkv_status st = check_options(config, &o, err);
    if (st) return st;
    fkv_engine *e = calloc(1, sizeof *e);
    if (!e) return fkv_fail_memory(err);
    e->config = *config;
    e->options = o;
    if ((st = open_engine(e, weights, err)))
        fkv_engine_close(e);
    else
        *engine = e;
    return st;
}

fkv_status fkv_engine_resize(fkv_engine *e, int n_slots, int64_t max_prompt, int64_t max_tokens, fkv_err *err)
{
    fkv_engine_options o = e->options;
    if (e->planned) return fkv_fail(err, FKV_E_INPUT, "the engine has a plan");
    o.n_slots = n_slots;
    o.max_prompt = max_prompt;
    o.max_tokens = max_tokens ? max_tokens : e->config.max_positions;
    const fkv_status st = check_options(&e->config, &o, err);
    if (st || (n_slots == e->options.n_slots && max_prompt == e->options.max_prompt &&
               o.max_tokens == e->options.max_tokens))
        return st;
    e->options = o;
    return size_engine(e, err);
}

void fkv_engine_info(const fkv_engine *engine, fkv_device_info *info)
{
    *info = engine->info;
}

int fkv_engine_ranks(const fkv_engine *engine)
{
    return engine->options.n_ranks;
}

int fkv_engine_devices(const fkv_engine *engine)
{
    return engine->options.n_devices;
}

void fkv_engine_numerics(const fkv_engine *engine, char *out, size_t size)
{
    engine->options.backend->numerics(engine->devices[0].dev, out, size);
}

/* Pages of every rank: what the accepted records can ask of all slots, or what its device has left. */
static fkv_status size_arenas(fkv_engine *e, const fkv_plan *plan, int64_t arena_pages, int64_t *pages,
                              fkv_err *err)
{
    const fkv_engine_options *o = &e->options;
    const fkv_record_shape shape = fkv_kv_shape(&e->kv);
    const int64_t page = page_bytes_of(e);
    int64_t *one = fkv_calloc((size_t)o->n_ranks, sizeof *one),
            *all = fkv_calloc((size_t)o->n_ranks, sizeof *all);
    int64_t *room = fkv_calloc((size_t)o->n_devices, sizeof *room);
    int short_of = 0;
    fkv_status st = one && all && room ? FKV_OK : fkv_fail_memory(err);
    if (!st) st = fkv_record_demand(&e->kv.record, &shape, plan, one, all, err);
    for (int d = 0; !st && d < o->n_devices; d++) room[d] = e->devices[d].arena_budget / page;
    for (int r = 0; !st && r < o->n_ranks; r++) {
        if (o->solo && r != o->solo_rank) one[r] = all[r] = 0; /* on no device */
        if (arena_pages > 0 && all[r] > arena_pages) all[r] = arena_pages > one[r] ? arena_pages : one[r];
        if (all[r] > INT32_MAX) all[r] = INT32_MAX;
    }
    if (!st && !fkv_record_arenas(one, all, o->n_ranks, o->n_devices, room, pages, &short_of))
        st = fkv_fail(
            err, FKV_E_DEVICE,
            "the KV cache of the largest record that is accepted does not fit device %d, which has %lld "
            "MiB left",
            short_of, (long long)(room[short_of] * page >> 20));
    for (int r = 0; !st && o->solo && r < o->n_ranks; r++) /* the others' pages are nowhere, but enough */
        if (r != o->solo_rank)
            pages[r] = pages[o->solo_rank] > arena_pages ? pages[o->solo_rank] : arena_pages;
    free(room);
    free(all);
    free(one);
    return st;
}

/* What the plan needs beside the arenas, and what is then left for them. */
static fkv_status plan_device(void *ctx, int index, fkv_err *err)
{
    const open_args *a = ctx;
    fkv_engine *e = a->engine;
    fkv_engine_device *d = &e->devices[index];
    const fkv_config *c = &e->config;
    fkv_device_info info;
    fkv_status st = fkv_weights_load_copies(d, a->weights, a->plan, err);
    if (st) return st;
    const fkv_memory_shape shape = fkv_engine_memory_shape(e);
    if ((st = buffer(d, fkv_memory_table(&shape), &d->table, err))) return st;
    for (int i = 0; i < d->n_ranks; i++) {
        fkv_rank *r = &d->ranks[i];
        int most = 1;
        for (int l = 0; l < c->n_layers; l++)
            if (r->layers[l].n_served > most) most = r->layers[l].n_served;
        if ((st = buffer(d, fkv_memory_queries(&shape, most), &r->q, err))) return st;
    }
    e->options.backend->info(d->dev, &info);
    const int sharing = e->options.n_sharing > 1 ? e->options.n_sharing : 1;
    d->arena_budget = (int64_t)(info.arena_share * (double)info.memory_bytes / sharing);
    return FKV_OK;
}

static fkv_status make_arenas(void *ctx, int index, fkv_err *err)
{
    const open_args *a = ctx;
    fkv_engine *e = a->engine;
    fkv_engine_device *d = &e->devices[index];
    const int64_t page_bytes = page_bytes_of(e);
    fkv_status st = FKV_OK;
    for (int r = d->rank0; !st && r < d->rank0 + d->n_ranks; r++)
        st = buffer(d, (fkv_buffer_size){e->kv.n_pages[r], page_bytes, 1}, &e->arenas[r], err);
    return st;
}

/* When all devices have their arenas: what the decode ops of every rank and layer need. */
static fkv_status prepare_device(void *ctx, int index, fkv_err *err)
{
    const open_args *a = ctx;
    const fkv_engine *e = a->engine;
    const fkv_engine_device *d = &e->devices[index];
    fkv_status st = FKV_OK;
    e->options.backend->upload(d->dev, d->device_of, e->device_of,
                               (size_t)e->config.n_layers * (size_t)e->config.n_kv_heads *
                                   (size_t)e->options.n_slots);
    for (int r = 0; !st && r < d->n_ranks; r++) {
        for (int l = 0; !st && l < e->config.n_layers; l++) {
            const fkv_decode_args args = fkv_decode_args_of(d, r, l);
            st = e->options.backend->prepare_decode(d->dev, &args, err);
        }
    }
    return st;
}

/* Whether some slot's head is decoded on another device than that of its home. */
static bool leaves_its_device(const fkv_engine *e)
{
    const int k = e->config.n_kv_heads, n = e->options.n_slots;
    for (int h = 0; h < k; h++) {
        const int home = fkv_partition_device(fkv_partition_home(h, k, e->options.n_ranks),
                                              e->options.n_ranks, e->options.n_devices);
        for (int l = 0; l < e->config.n_layers; l++)
            for (int s = 0; s < n; s++)
                if (e->device_of[((int64_t)l * k + h) * n + s] != home) return true;
    }
    return false;
}

fkv_status fkv_engine_set_plan(fkv_engine *e, const fkv_safetensors *weights, const int32_t *budgets,
                               const fkv_plan *plan, const fkv_engine_kv_limits *limits, fkv_err *err)
{
    const int64_t n_lh = (int64_t)plan->n_layers * plan->n_kv_heads;
    const int64_t page_bytes = page_bytes_of(e);
    const fkv_memory_shape shape = fkv_engine_memory_shape(e);
    const int64_t qkv_bytes = fkv_memory_head_bytes(&shape);
    fkv_status st;
    if (plan->n_layers != e->config.n_layers || plan->n_kv_heads != e->config.n_kv_heads ||
        plan->n_ranks != e->options.n_ranks || plan->n_slots != e->options.n_slots)
        return fkv_fail(err, FKV_E_INPUT,
                        "the plan is for another model, number of ranks or number of slots");
    if ((st = fkv_kv_open(plan, budgets, e->options.max_tokens, &limits->record, &e->kv, err))) return st;
    e->device_of = fkv_calloc((size_t)(n_lh * plan->n_slots), 1);
    e->arenas = fkv_calloc((size_t)plan->n_ranks, sizeof *e->arenas);
    int64_t *pages = fkv_calloc((size_t)plan->n_ranks, sizeof *pages);
    if (!e->device_of || !e->arenas || !pages) {
        st = fkv_fail_memory(err);
        goto out;
    }
    for (int64_t i = 0; i < n_lh * plan->n_slots; i++)
        e->device_of[i] =
            (uint8_t)fkv_partition_device(e->kv.owner[i], e->options.n_ranks, e->options.n_devices);
    if (!e->info.peers && leaves_its_device(e)) {
        st = fkv_fail(err, FKV_E_INPUT,
                      "the plan has copies of heads on other devices, and these can't reach each other's "
                      "memory: use plan.mode = standard, or engine.devices = 1");
        goto out;
    }
    open_args args = {e, weights, plan};
    if ((st = fkv_team_run(e->team, plan_device, &args, err))) goto out;
    if ((st = size_arenas(e, plan, limits->arena_pages, pages, err))) goto out;
    if ((st = fkv_kv_set_arenas(&e->kv, pages, err))) goto out;
    if ((st = fkv_team_run(e->team, make_arenas, &args, err))) goto out;
    if ((st = fkv_team_run(e->team, prepare_device, &args, err))) goto out;
    for (int r = 0; r < plan->n_ranks; r++) e->arena_bytes += pages[r] * page_bytes;
    e->copy_bytes = fkv_plan_copies(plan) * qkv_bytes;
    e->planned = true;
out:
    free(pages);
    return st;
}

void fkv_engine_set_scorer(fkv_engine *e, fkv_scorer scorer, int sinks)
{
    assert(fkv_scorers_have(fkv_engine_scorers(e), scorer));
    e->options.more_scorers |= fkv_scorer_bit(e->options.scorer);
    e->options.scorer = scorer;
    e->options.sinks = sinks;
}

static fkv_status release_device(void *ctx, int index, fkv_err *err)
{
    const open_args *a = ctx;
    fkv_engine_device *d = &a->engine->devices[index];
    (void)err;
    a->engine->options.backend->release(d->dev, d->sized);
    return FKV_OK;
}

static void free_plan(fkv_engine *e)
{
    for (int i = 0; e->devices && i < e->options.n_devices; i++) {
        fkv_engine_device *d = &e->devices[i];
        for (int r = 0; d->ranks && r < d->n_ranks; r++) {
            for (int l = 0; d->ranks[r].layers && l < e->config.n_layers; l++) {
                free(d->ranks[r].layers[l].served);
                d->ranks[r].layers[l].served = NULL;
            }
        }
    }
    fkv_kv_close(&e->kv);
    free(e->device_of);
    free(e->arenas);
    e->device_of = NULL;
    e->arenas = NULL;
    e->arena_bytes = e->copy_bytes = 0;
    e->planned = false;
}

/* What release forgets. */
static void keep_stats(fkv_engine *e)
{
    const int64_t peak = e->kv.peak * page_bytes_of(e);
    if (peak > e->kv_peak_bytes) e->kv_peak_bytes = peak;
    for (int i = 0; i < e->options.n_devices; i++) {
        const fkv_engine_device *d = &e->devices[i];
        double seconds[FKV_MAX_LOCAL_RANKS];
        e->options.backend->span_seconds(d->dev, seconds, d->n_ranks);
        for (int r = 0; r < d->n_ranks && !e->options.solo; r++) e->rank_seconds[d->rank0 + r] += seconds[r];
    }
}

void fkv_engine_clear_plan(fkv_engine *e)
{
    open_args args = {e, NULL, NULL};
    fkv_err ignored = {0};
    keep_stats(e);
    fkv_team_run(e->team, release_device, &args, &ignored);
    free_plan(e);
}

void fkv_engine_stats_get(fkv_engine *e, fkv_engine_stats *stats)
{
    const int64_t peak = e->kv.peak * page_bytes_of(e);
    const fkv_memory_shape shape = fkv_engine_memory_shape(e);
    fkv_schedule_stats sums = e->schedule_stats;
    const fkv_schedule_stats *t = &sums;
    if (e->schedule) fkv_schedule_stats_add(e->schedule, &sums);
    *stats = (fkv_engine_stats){.decode_steps = e->decode_steps,
                                .busy_slot_steps = t->busy_slot_steps,
                                .busy_slots = e->schedule ? fkv_schedule_busy(e->schedule) : 0,
                                .restarts = t->n_restarts,
                                .restarted_tokens = t->restarted_tokens,
                                .prefill_passes = t->n_passes,
                                .prefill_rows = t->n_rows,
                                .kv_bytes = peak > e->kv_peak_bytes ? peak : e->kv_peak_bytes,
                                .kv_arena_bytes = e->arena_bytes,
                                .weight_bytes = fkv_memory_model_bytes(&shape),
                                .copy_bytes = e->copy_bytes,
                                .prefill_seconds = e->prefill_seconds,
                                .decode_seconds = e->decode_seconds};
    for (int i = 0; !e->schedule && i < e->options.n_devices; i++) {
        const fkv_engine_device *d = &e->devices[i];
        e->options.backend->span_seconds(d->dev, stats->rank_attention_seconds + d->rank0, d->n_ranks);
    }
    for (int r = 0; !e->schedule && r < e->options.n_ranks; r++)
        stats->rank_attention_seconds[r] += e->rank_seconds[r];
}

void fkv_engine_stats_reset(fkv_engine *e)
{
    e->decode_steps = e->kv_peak_bytes = 0;
    e->schedule_stats = (fkv_schedule_stats){0};
    e->prefill_seconds = e->decode_seconds = 0;
    memset(e->rank_seconds, 0, (size_t)e->options.n_ranks * sizeof *e->rank_seconds);
}

void fkv_engine_stats_add(fkv_engine_stats *all, const fkv_engine_stats *s, int n)
{
    all->decode_steps += s->decode_steps;
    all->busy_slot_steps += s->busy_slot_steps;
    all->busy_slots += s->busy_slots;
    all->restarts += s->restarts;
    all->restarted_tokens += s->restarted_tokens;
    all->prefill_passes += s->prefill_passes;
    all->prefill_rows += s->prefill_rows;
    all->kv_bytes += s->kv_bytes;
    all->kv_arena_bytes += s->kv_arena_bytes;
    all->weight_bytes += s->weight_bytes;
    all->copy_bytes += s->copy_bytes;
    all->prefill_seconds += s->prefill_seconds / n;
    all->decode_seconds += s->decode_seconds / n;
    for (int r = 0; r < FKV_PLAN_MAX_HEADS; r++)
        all->rank_attention_seconds[r] += s->rank_attention_seconds[r] / n;
}

void fkv_engine_close(fkv_engine *e)
{
    if (!e) return;
    fkv_team_close(e->team);
    free_plan(e);
    for (int i = 0; e->devices && i < e->options.n_devices; i++) {
        fkv_engine_device *d = &e->devices[i];
        e->options.backend->close(d->dev);
        for (int r = 0; d->ranks && r < d->n_ranks; r++) free(d->ranks[r].layers);
        free(d->ranks);
        free(d->norms);
    }
    if (e->world) e->options.backend->world_close(e->world);
    free(e->devices);
    free(e->pack_tokens);
    free(e->pack_rope_rows);
    free(e->rank_seconds);
    free(e->specs);
    free(e->hidden_cols);
    free(e->vocab_cols);
    free(e->head_cols);
    free(e);
}
