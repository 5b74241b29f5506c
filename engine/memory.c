/* Predicted bytes of ranks and devices: see memory.h. fkv_memory owns what
 * fkv_memory_predict allocates. */
#include "engine/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/tensors.h"
#include "engine/plan/partition.h"
#include "engine/state.h"
#include "runner/base/mem.h"

/* Larger numbers mean "too much" just as well, and no sum of them overflows. */
static int64_t capped(double bytes)
{
    const double most = (double)((int64_t)1 << 50);
    return (int64_t)(bytes < most ? bytes : most);
}

static int64_t bytes_of(fkv_buffer_size s)
{
    return capped((double)s.rows * (double)s.cols * s.element_bytes);
}

static int most_home(const fkv_memory_shape *s)
{
    return fkv_partition_most_heads(s->config->n_kv_heads, s->n_ranks);
}

int64_t fkv_memory_max_rows(const fkv_memory_shape *s)
{
    const int64_t some = 4 * (int64_t)s->worth_rows, least = some > s->prefill_tile ? some : s->prefill_tile;
    return s->max_prompt > least ? s->max_prompt : least;
}

bool fkv_memory_has_asides(const fkv_memory_shape *s)
{
    return s->n_devices > 1 && fkv_memory_max_rows(s) > s->prefill_tile;
}

void fkv_memory_buffers(const fkv_memory_shape *s, int local_ranks, fkv_buffer_size out[FKV_N_BUFFERS])
{
    const fkv_config *c = s->config;
    const int act = s->act_bytes, f32 = sizeof(float), home = most_home(s);
    const int64_t t = fkv_memory_max_rows(s), slots = s->n_slots, att = (int64_t)c->n_heads * c->head_dim;
    const int64_t rows = s->prefill_tile > s->n_slots ? s->prefill_tile : s->n_slots;
    const int64_t share =
        fkv_range_count(fkv_partition_columns(c->intermediate, 0, s->n_ranks)); /* the largest */
    out[FKV_BUFFER_X] = (fkv_buffer_size){t, c->hidden, act};
    out[FKV_BUFFER_XN] = (fkv_buffer_size){t, c->hidden, act};
    out[FKV_BUFFER_QKV] = (fkv_buffer_size){t, (int64_t)home * fkv_head_rows(c->group) * c->head_dim, act};
    out[FKV_BUFFER_ATT] = (fkv_buffer_size){t, att, act};
    out[FKV_BUFFER_SCORES] = (fkv_buffer_size){t, home, f32};
    out[FKV_BUFFER_SECOND] =
        (fkv_buffer_size){fkv_scorers_have(s->scorers, FKV_SCORER_CRITICAL) ? t : 0, home, f32};
    out[FKV_BUFFER_TOKENS] = out[FKV_BUFFER_ROPE_ROWS] = (fkv_buffer_size){t, 1, sizeof(int32_t)};
    out[FKV_BUFFER_SEGMENTS] = (fkv_buffer_size){slots, 1, sizeof(fkv_segment)};
    out[FKV_BUFFER_EDITS] = (fkv_buffer_size){FKV_EDITS, 1, sizeof(fkv_edit)};
    const bool asides = fkv_memory_has_asides(s);
    out[FKV_BUFFER_Y] = (fkv_buffer_size){asides ? FKV_TILES_OF_Y * rows : rows, c->hidden, act};
    out[FKV_BUFFER_ACT] = (fkv_buffer_size){rows, share, act};
    out[FKV_BUFFER_PARTIAL] =
        (fkv_buffer_size){(asides ? FKV_TILES_OF_PARTIAL * rows : rows) * local_ranks, c->hidden, f32};
    const bool fp8 = s->form == FKV_FORM_FP8;
    out[FKV_BUFFER_XN_SCALE] = (fkv_buffer_size){fp8 ? t : 0, 1, f32};
    out[FKV_BUFFER_TILE_SCALE] = (fkv_buffer_size){fp8 ? rows : 0, 1, f32};
    out[FKV_BUFFER_STEP_SCALE] = (fkv_buffer_size){fp8 ? slots : 0, 1, f32};
    out[FKV_BUFFER_STEP_X] = (fkv_buffer_size){slots, c->hidden, act};
    out[FKV_BUFFER_STEP_XN] = (fkv_buffer_size){slots, c->hidden, act};
    out[FKV_BUFFER_STEP_ATT] = (fkv_buffer_size){slots, att, act};
    out[FKV_BUFFER_LOGITS] = (fkv_buffer_size){slots, c->vocab, f32};
    out[FKV_BUFFER_DEVICE_OF] = (fkv_buffer_size){(int64_t)c->n_layers * c->n_kv_heads, slots, 1};
    for (int i = FKV_BUFFER_SLOT_TOKEN; i < FKV_BUFFER_SLOT_SAMPLING; i++)
        out[i] = (fkv_buffer_size){slots, 1, sizeof(int32_t)};
    out[FKV_BUFFER_SLOT_SAMPLING] = (fkv_buffer_size){slots, 1, sizeof(fkv_sampling)};
    out[FKV_BUFFER_SLOT_SEEN] = (fkv_buffer_size){slots, FKV_SEEN_WORDS(c->vocab), sizeof(uint32_t)};
}

fkv_buffer_size fkv_memory_queries(const fkv_memory_shape *s, int served)
{
    return (fkv_buffer_size){(int64_t)served * s->n_slots,
                             (int64_t)fkv_head_rows(s->config->group) * s->config->head_dim, s->act_bytes};
}

static int64_t max_tokens(const fkv_memory_shape *s)
{
    return s->max_tokens ? s->max_tokens : s->config->max_positions;
}

fkv_buffer_size fkv_memory_table(const fkv_memory_shape *s)
{
    const int64_t pairs = (int64_t)s->config->n_layers * s->config->n_kv_heads;
    return (fkv_buffer_size){s->n_slots, pairs * fkv_pages_for(max_tokens(s)), sizeof(int32_t)};
}

int64_t fkv_memory_page_bytes(const fkv_memory_shape *s)
{
    return fkv_kv_page_bytes(s->kv_form, s->config->head_dim, s->kv_bytes);
}

/* Rows of a rank's part of a matrix, or of a bias, and the elements of each. */
static void share_of(const fkv_memory_shape *s, fkv_tensor t, int rank, int64_t *rows, int64_t *cols)
{
    fkv_tensor_shape(s->config, t, rows, cols);
    switch (fkv_tensor_sharing(t)) {
    case FKV_SHARED_BY_HEAD:
        *rows = fkv_range_count(fkv_partition_heads(s->config->n_kv_heads, rank, s->n_ranks)) * *rows /
                s->config->n_kv_heads;
        break;
    case FKV_SHARED_BY_COLUMN:
    case FKV_SHARED_BY_VOCABULARY:
        *rows = fkv_range_count(fkv_partition_columns(*rows, rank, s->n_ranks));
        break;
    case FKV_SHARED_BY_DEPTH: *cols = fkv_range_count(fkv_partition_columns(*cols, rank, s->n_ranks)); break;
    case FKV_SHARED_WHOLE: break;
    }
}

/* Of a layer's matrix, or of a bias, which is never in FP8. */
static int64_t bytes_in_form(const fkv_memory_shape *s, fkv_tensor t, int64_t rows, int64_t cols)
{
    if (s->form == FKV_FORM_NATIVE || !fkv_tensor_is_matrix(t)) return rows * cols * s->weight_bytes;
    return rows * (cols * s->fp8_bytes + s->fp8_row_bytes);
}

int64_t fkv_memory_head_bytes(const fkv_memory_shape *s)
{
    int64_t sum = 0, rows, cols;
    for (fkv_tensor t = FKV_TENSOR_ATTENTION_NORM; t < FKV_N_TENSORS; t++) {
        if (!fkv_tensor_is_matrix(t) || fkv_tensor_sharing(t) != FKV_SHARED_BY_HEAD) continue;
        fkv_tensor_shape(s->config, t, &rows, &cols);
        sum += bytes_in_form(s, t, rows / s->config->n_kv_heads, cols);
    }
    return sum;
}

/* Of a rank's part of the output projection by head, for the scorers that want it. */
static int64_t scorer_bytes(const fkv_memory_shape *s, int rank)
{
    const fkv_config *c = s->config;
    const int64_t home = fkv_range_count(fkv_partition_heads(c->n_kv_heads, rank, s->n_ranks));
    const int64_t columns = home * c->group * c->head_dim * c->n_layers;
    int64_t bytes = 0;
    if (fkv_scorers_have(s->scorers, FKV_SCORER_CRITICAL)) bytes += columns * c->hidden * s->weight_bytes;
    if (fkv_scorers_have(s->scorers, FKV_SCORER_DEFENSIVE))
        bytes += columns * c->head_dim * (int64_t)sizeof(float);
    return bytes;
}

/* Of what a rank has at home, with what is no matrix or without. */
static int64_t home_bytes(const fkv_memory_shape *s, int rank, bool biases)
{
    /* Embedding and output are loaded apart, tied or not. */
    static const fkv_tensor ends[] = {FKV_TENSOR_EMBEDDING, FKV_TENSOR_OUTPUT};
    int64_t sum = 0, layer = 0, rows, cols;
    for (int i = 0; i < 2; i++) {
        share_of(s, ends[i], rank, &rows, &cols);
        sum += rows * cols * s->weight_bytes;
    }
    for (fkv_tensor t = FKV_TENSOR_ATTENTION_NORM; t < FKV_N_TENSORS; t++) {
        if (fkv_tensor_sharing(t) == FKV_SHARED_WHOLE || !fkv_tensor_is_wanted(s->config, t)) continue;
        if (!biases && !fkv_tensor_is_matrix(t)) continue;
        share_of(s, t, rank, &rows, &cols);
        layer += bytes_in_form(s, t, rows, cols);
    }
    return sum + s->config->n_layers * layer;
}

int64_t fkv_memory_home_bytes(const fkv_memory_shape *s, int rank)
{
    return home_bytes(s, rank, true) + scorer_bytes(s, rank);
}

int64_t fkv_memory_model_bytes(const fkv_memory_shape *s)
{
    int64_t sum = 0;
    for (int r = 0; r < s->n_ranks; r++) sum += home_bytes(s, r, false);
    return sum;
}

fkv_device_limits fkv_memory_device_limits(const fkv_memory_shape *s)
{
    const fkv_config *c = s->config;
    fkv_buffer_size sizes[FKV_N_BUFFERS];
    fkv_memory_buffers(s, 1, sizes);
    return (fkv_device_limits){.n_slots = s->n_slots,
                               .max_prompt = (int)fkv_memory_max_rows(s),
                               .max_positions = (int)max_tokens(s),
                               .hidden = c->hidden,
                               .n_heads = c->n_heads,
                               .n_kv_heads = c->n_kv_heads,
                               .head_dim = c->head_dim,
                               .vocab = c->vocab,
                               .max_local_heads = most_home(s),
                               .window = s->window,
                               .scorers = s->scorers,
                               .max_rows = (int)sizes[FKV_BUFFER_ACT].rows,
                               .max_share = (int)sizes[FKV_BUFFER_ACT].cols,
                               .n_ropes = fkv_config_n_ropes(c),
                               .n_layers = c->n_layers,
                               .activation = fkv_config_family(c)->activation,
                               .form = s->form};
}

fkv_status fkv_memory_supported(const fkv_memory_shape *s, int first_device, const fkv_backend *backend,
                                fkv_err *err)
{
    fkv_device_limits limits = fkv_memory_device_limits(s);
    const fkv_group group = {.n_devices = s->n_devices, .first_device = first_device};
    fkv_attention_spec *layers = fkv_config_layers(s->config);
    limits.layers = layers;
    const fkv_status st = layers ? backend->supports(&limits, &group, err) : fkv_fail_memory(err);
    free(layers);
    return st;
}

static int64_t workspace_bytes(const fkv_memory_shape *s)
{
    const fkv_device_limits limits = fkv_memory_device_limits(s);
    return s->backend ? s->backend->workspace_bytes(&limits, s->n_threads) : 0;
}

/* Pages of head lh in one slot. */
static int64_t slot_pages(const int32_t *budgets, const fkv_memory_lengths *lengths, int64_t lh)
{
    return fkv_head_pages(budgets[lh], lengths->prompt, lengths->max_new);
}

/* Pages, copies and the most heads served in a layer, of every rank. */
static void add_plan(const fkv_memory_shape *s, const fkv_plan *plan, const int32_t *budgets,
                     const fkv_memory_lengths *lengths, fkv_memory_rank *rank, int *served, int *most)
{
    const fkv_config *c = s->config;
    const int k = c->n_kv_heads;
    const int64_t page = fkv_memory_page_bytes(s), copy = fkv_memory_head_bytes(s);
    for (int l = 0; l < c->n_layers; l++) {
        memset(served, 0, (size_t)s->n_ranks * sizeof *served);
        for (int h = 0; h < k; h++) {
            const int64_t lh = (int64_t)l * k + h, pages = slot_pages(budgets, lengths, lh);
            const int home = fkv_partition_home(h, k, s->n_ranks);
            const fkv_placement whole = {home, 0, s->n_slots};
            const int n = plan ? plan->first[lh + 1] - plan->first[lh] : 1;
            const fkv_placement *at = plan ? plan->at + plan->first[lh] : &whole;
            for (int i = 0; i < n; i++) {
                fkv_memory_rank *r = &rank[at[i].rank];
                const double slot = (double)pages * (double)page;
                r->page_bytes = capped((double)r->page_bytes + slot * (at[i].end - at[i].begin));
                r->one_bytes = capped((double)r->one_bytes + slot); /* as if one slot had all ranges */
                if (at[i].rank != home) r->copy_bytes += copy;
                served[at[i].rank]++;
            }
        }
        for (int r = 0; r < s->n_ranks; r++)
            if (served[r] > most[r]) most[r] = served[r];
    }
}

static int64_t rank_bytes(const fkv_memory_rank *r)
{
    return r->weight_bytes + r->copy_bytes + r->page_bytes + r->query_bytes;
}

/* Of all layers' norms, which every device has whole, in float32. */
static int64_t norm_bytes(const fkv_config *c)
{
    int64_t sum = 0, rows, one;
    for (fkv_tensor t = 0; t < FKV_N_TENSORS; t++) {
        if (fkv_tensor_sharing(t) != FKV_SHARED_WHOLE || !fkv_tensor_is_wanted(c, t)) continue;
        fkv_tensor_shape(c, t, &rows, &one);
        sum += rows * (t >= FKV_TENSOR_ATTENTION_NORM ? c->n_layers : 1) * (int64_t)sizeof(float);
    }
    return sum;
}

static void add_device(const fkv_memory_shape *s, int index, fkv_memory *m)
{
    fkv_memory_device *d = &m->device[index];
    const fkv_range ranks = fkv_partition_ranks(s->n_ranks, index, s->n_devices);
    fkv_buffer_size sizes[FKV_N_BUFFERS];
    int64_t growing = bytes_of(fkv_memory_table(s));
    fkv_memory_buffers(s, (int)fkv_range_count(ranks), sizes);
    d->buffer_bytes = norm_bytes(s->config) + growing;
    for (int i = 0; i < FKV_N_BUFFERS; i++) {
        d->buffer_bytes += bytes_of(sizes[i]);
        if (i >= FKV_BUFFER_STEP_X) growing += bytes_of(sizes[i]);
    }
    d->workspace_bytes = workspace_bytes(s);
    d->total_bytes = d->buffer_bytes + d->workspace_bytes;
    for (int64_t r = ranks.begin; r < ranks.end; r++) {
        d->page_bytes += m->rank[r].page_bytes;
        growing += m->rank[r].query_bytes;
        d->total_bytes += rank_bytes(&m->rank[r]);
    }
    growing += d->page_bytes;
    d->fixed_bytes = d->total_bytes - growing;
    d->per_slot_bytes = (double)growing / s->n_slots;
    if (d->total_bytes > m->device[m->fullest_device].total_bytes) m->fullest_device = index;
}

static fkv_status check_shape(const fkv_memory_shape *s, const fkv_memory_lengths *lengths, fkv_err *err)
{
    const fkv_config *c = s->config;
    if (s->n_ranks < 1 || s->n_ranks > c->n_kv_heads || s->n_devices < 1 || s->n_devices > s->n_ranks)
        return fkv_fail(err, FKV_E_INPUT, "%d ranks on %d devices for %d KV heads", s->n_ranks, s->n_devices,
                        c->n_kv_heads);
    if (s->n_slots < 1 || s->n_slots > FKV_PLAN_MAX_SLOTS || s->max_prompt < 1 ||
        s->max_prompt > c->max_positions || s->max_tokens < 0 || s->max_tokens > c->max_positions ||
        lengths->prompt < 0 || lengths->max_new < 0 || lengths->prompt > FKV_BUDGET_MAX ||
        lengths->max_new > FKV_BUDGET_MAX)
        return fkv_fail(err, FKV_E_INPUT, "%d slots, prompts of %lld and %lld new tokens", s->n_slots,
                        (long long)lengths->prompt, (long long)lengths->max_new);
    return FKV_OK;
}

fkv_status fkv_memory_predict(const fkv_memory_shape *s, const fkv_plan *plan, const int32_t *budgets,
                              const fkv_memory_lengths *lengths, fkv_memory *m, fkv_err *err)
{
    int *served = NULL, *most = NULL;
    *m = (fkv_memory){.n_ranks = s->n_ranks, .n_devices = s->n_devices};
    fkv_status st = check_shape(s, lengths, err);
    if (st) return st;
    m->rank = fkv_calloc((size_t)s->n_ranks, sizeof *m->rank);
    m->device = fkv_calloc((size_t)s->n_devices, sizeof *m->device);
    served = fkv_calloc((size_t)s->n_ranks, sizeof *served);
    most = fkv_calloc((size_t)s->n_ranks, sizeof *most);
    if (!m->rank || !m->device || !served || !most) {
        st = fkv_fail_memory(err);
        goto out;
    }
    add_plan(s, plan, budgets, lengths, m->rank, served, most);
    for (int r = 0; r < s->n_ranks; r++) {
        m->rank[r].weight_bytes = fkv_memory_home_bytes(s, r);
        m->rank[r].query_bytes = bytes_of(fkv_memory_queries(s, most[r] ? most[r] : 1));
        if (rank_bytes(&m->rank[r]) > rank_bytes(&m->rank[m->fullest_rank])) m->fullest_rank = r;
    }
    for (int d = 0; d < s->n_devices; d++) add_device(s, d, m);
out:
    free(most);
    free(served);
    if (st) fkv_memory_free(m);
    return st;
}

void fkv_memory_free(fkv_memory *m)
{
    free(m->device);
    free(m->rank);
    *m = (fkv_memory){0};
}

/* Pages of a device that may be there at once. */
static double arena_room(const fkv_memory_device *d, const fkv_memory_limit *limit)
{
    return limit->arena_share * ((double)limit->bytes - (double)d->fixed_bytes);
}

int fkv_memory_slots(const fkv_memory *m, const fkv_memory_limit *limit)
{
    double fewest = FKV_PLAN_MAX_SLOTS;
    for (int i = 0; i < m->n_devices; i++) {
        const fkv_memory_device *d = &m->device[i];
        const double room = (double)limit->bytes - (double)d->fixed_bytes;
        /* Slots of this prediction: total - fixed over what one adds. */
        const double slots = ((double)d->total_bytes - (double)d->fixed_bytes) / d->per_slot_bytes;
        const double page = (double)d->page_bytes / slots;
        if (room / d->per_slot_bytes < fewest) fewest = room / d->per_slot_bytes;
        if (page > 0 && arena_room(d, limit) / page < fewest) fewest = arena_room(d, limit) / page;
    }
    return fewest < 1 ? 0 : (int)(fewest * (1 + 1e-12));
}

/* Bytes that pages may take, and copies by the arenas' share of what is left. */
static double room_of(const fkv_memory_device *d, const fkv_memory_limit *limit)
{
    return limit->arena_share * ((double)limit->bytes - (double)(d->total_bytes - d->page_bytes));
}

double fkv_memory_at_once(const fkv_memory *m, const fkv_memory_limit *limit, int n_slots)
{
    double fewest = INFINITY;
    for (int i = 0; i < m->n_devices; i++) {
        const fkv_memory_device *d = &m->device[i];
        if (d->page_bytes > 0) fewest = fmin(fewest, room_of(d, limit) * n_slots / (double)d->page_bytes);
    }
    return fewest > 0 ? fewest : 0;
}

fkv_status fkv_memory_even(const fkv_memory_shape *s, const fkv_memory_limit *limit, const int32_t *budgets,
                           const fkv_memory_lengths *lengths, const fkv_plan_problem *problem, fkv_plan *plan,
                           fkv_err *err)
{
    const size_t n = (size_t)s->config->n_layers * (size_t)s->config->n_kv_heads;
    fkv_memory m;
    if (s->n_devices < 2) return FKV_OK;
    fkv_status st = fkv_memory_predict(s, NULL, budgets, lengths, &m, err);
    if (st) return st;
    double *slot_bytes = fkv_calloc(n, sizeof *slot_bytes);
    double *base = fkv_calloc((size_t)s->n_devices, sizeof *base), most = 0;
    if (!slot_bytes || !base) st = fkv_fail_memory(err);
    for (size_t i = 0; !st && i < n; i++)
        slot_bytes[i] = (double)slot_pages(budgets, lengths, (int64_t)i) * (double)fkv_memory_page_bytes(s);
    for (int d = 0; d < s->n_devices; d++) most = fmax(most, room_of(&m.device[d], limit));
    /* What one device has less room than another counts as if it were used. */
    for (int d = 0; !st && d < s->n_devices; d++) base[d] = most - room_of(&m.device[d], limit);
    const fkv_plan_memory memory = {.n_devices = s->n_devices,
                                    .base_bytes = base,
                                    .slot_bytes = slot_bytes,
                                    .copy_bytes = limit->arena_share * (double)fkv_memory_head_bytes(s),
                                    .limit_bytes = most};
    if (!st) st = fkv_plan_even_memory(problem, &memory, plan, err);
    free(base);
    free(slot_bytes);
    fkv_memory_free(&m);
    return st;
}

int64_t fkv_memory_nominal(int64_t total_bytes, int64_t free_bytes, double most_share)
{
    const double most = most_share * (double)total_bytes;
    const double bytes = (double)free_bytes < most ? (double)free_bytes : most,
                 part = (double)total_bytes / 32;
    return part > 0 && bytes > 0 ? (int64_t)(floor(bytes / part + 1e-9) * part) : 0;
}

/* Pages that device d may have beside everything else. */
static int64_t room_pages(const fkv_memory_shape *s, const fkv_memory *m, int d,
                          const fkv_memory_limit *limit)
{
    const double pages = room_of(&m->device[d], limit) / (double)fkv_memory_page_bytes(s);
    return pages > 0 ? (int64_t)pages : 0;
}

/* Pages of the fullest rank that every device has room for, its ranks being as full. */
static fkv_status pages_at_home(const fkv_memory_shape *s, const fkv_memory_limit *limit,
                                const int32_t *budgets, int64_t *pages, fkv_err *err)
{
    static const fkv_memory_lengths nothing = {0, 0};
    fkv_memory m;
    const fkv_status st = fkv_memory_predict(s, NULL, budgets, &nothing, &m, err);
    if (st) return st;
    *pages = INT64_MAX;
    for (int d = 0; d < s->n_devices; d++) {
        const int64_t n = fkv_range_count(fkv_partition_ranks(s->n_ranks, d, s->n_devices));
        const int64_t fit = room_pages(s, &m, d, limit) / n;
        if (fit < *pages) *pages = fit;
    }
    fkv_memory_free(&m);
    return FKV_OK;
}

fkv_status fkv_memory_record_limit(const fkv_memory_shape *s, const fkv_memory_limit *nominal,
                                   const int32_t *budgets, fkv_record_limit *out, fkv_err *err)
{
    const fkv_config *c = s->config;
    const fkv_record_shape record = {c->n_layers, c->n_kv_heads, s->n_ranks, budgets};
    const int64_t largest = fkv_record_pages(&record, 1, c->max_positions - 1);
    int64_t fit;
    fkv_memory_shape longer = *s; /* and with tables for all that the model can do */
    longer.max_tokens = 0;
    *out = (fkv_record_limit){.positions = c->max_positions, .prompt = s->max_prompt};
    fkv_status st = pages_at_home(&longer, nominal, budgets, &fit, err);
    if (st) return st;
    fit = (int64_t)((double)fit * 7 / 8);
    out->pages = largest < fit ? largest : fit;
    for (int64_t over = c->max_positions + (int64_t)1; over - out->prompt > 1;) {
        longer.max_prompt = out->prompt + (over - out->prompt) / 2;
        if ((st = pages_at_home(&longer, nominal, budgets, &fit, err))) return st;
        if (fit >= out->pages && out->pages > 0)
            out->prompt = longer.max_prompt;
        else
            over = longer.max_prompt;
    }
    return FKV_OK;
}

fkv_status fkv_memory_holds(const fkv_memory_shape *s, const fkv_memory_limit *limit, const fkv_plan *plan,
                            const int32_t *budgets, const fkv_record_limit *record, int *short_of,
                            fkv_err *err)
{
    static const fkv_memory_lengths nothing = {0, 0};
    const fkv_config *c = s->config;
    const fkv_record_shape shape = {c->n_layers, c->n_kv_heads, s->n_ranks, budgets};
    const size_t n = (size_t)s->n_ranks;
    fkv_memory m;
    fkv_status st = fkv_memory_predict(s, plan, budgets, &nothing, &m, err);
    if (st) return st;
    int64_t *one = fkv_calloc(n, sizeof *one), *all = fkv_calloc(n, sizeof *all);
    int64_t *pages = fkv_calloc(n, sizeof *pages), *room = fkv_calloc((size_t)s->n_devices, sizeof *room);
    st = one && all && pages && room ? fkv_record_demand(record, &shape, plan, one, all, err)
                                     : fkv_fail_memory(err);
    for (int d = 0; !st && d < s->n_devices; d++) room[d] = room_pages(s, &m, d, limit);
    *short_of = -1;
    if (!st) fkv_record_arenas(one, all, s->n_ranks, s->n_devices, room, pages, short_of);
    free(room);
    free(pages);
    free(all);
    free(one);
    fkv_memory_free(&m);
    return st;
}

static double mib(double bytes)
{
    return bytes / (1 << 20);
}

fkv_status fkv_memory_check(const fkv_memory *m, const fkv_memory_limit *limit,
                            const fkv_memory_lengths *lengths, fkv_err *err)
{
    for (int i = 0; i < m->n_devices; i++) {
        const fkv_memory_device *d = &m->device[i];
        const fkv_range ranks = fkv_partition_ranks(m->n_ranks, i, m->n_devices);
        const double without_pages = (double)(d->total_bytes - d->page_bytes);
        double weights = 0, one = 0;
        for (int64_t r = ranks.begin; r < ranks.end; r++) {
            weights += (double)(m->rank[r].weight_bytes + m->rank[r].copy_bytes);
            one += (double)m->rank[r].one_bytes;
        }
        if (without_pages > (double)limit->bytes)
            return fkv_fail(
                err, FKV_E_INPUT,
                "device %d needs %.1f MiB of weights and %.1f MiB of buffers and has %.1f MiB: use "
                "more engine.devices, or lower engine.slots or model.max_prompt_tokens",
                i, mib(weights), mib(without_pages - weights), mib((double)limit->bytes));
        if (one > arena_room(d, limit))
            return fkv_fail(err, FKV_E_INPUT,
                            "the KV cache of one record of %lld prompt and %lld new tokens needs %.1f MiB on "
                            "device %d; %.1f MiB are left beside %.1f MiB of weights and buffers: lower "
                            "profile.budget, model.max_prompt_tokens or engine.max_new_tokens",
                            (long long)lengths->prompt, (long long)lengths->max_new, mib(one), i,
                            mib(arena_room(d, limit) > 0 ? arena_room(d, limit) : 0), mib(without_pages));
    }
    return FKV_OK;
}
