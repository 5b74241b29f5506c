/* Measuring of the cost model's constants: see calibrate.h.
 *
 * The scratch engine is the model with fewer layers, and a vocabulary and rank count that
 * fit: all ranks where their weights are small and steps are not replayed, else one rank
 * alone (solo). It owns all that is measured on; nothing outlives a call. */
#include "engine/measure/calibrate.h"
#include "engine/measure/measure.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/model/tensors.h"
#include "engine/plan/partition.h"
#include "runner/base/clock.h"
#include "runner/base/hash.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

enum {
    N_CONSTANTS = 4,
    MAX_LAYERS = 12,
    MAX_GPU_LAYERS = 20,
    MIN_SOLO_LAYERS = 6,
    MAX_VOCAB_SHARE = 8192,
    MIN_TOKENS = 32
};
/* Pages: more than the caches of today's machines hold, and filled in a moment; on a GPU as
 * many as a run's, since sequences of another length are read at another rate. */
static const double kv_cap_bytes = 400e6, gpu_kv_cap_bytes = 12e9;
/* Weights of all ranks of the scratch layers, else one rank goes alone. */
static const double weight_cap_bytes = 400e6, gpu_weight_cap_bytes = 6e9;
/* Steps are repeated for so long, round by round until two in a row agree. */
static const double step_seconds = 0.15;
enum { WARM_STEPS = 2, MIN_STEPS = 5, MAX_STEPS = 100, MAX_ROUNDS = 5 };
/* A backend that replays steps times some of them: so many in a row have one. */
enum { BURST = 64, MIN_BURSTS = 2 };
/* A prefill takes so many operations at the most, or PROMPT_LEAST tokens; a device that replays
 * steps does a thousand times as many in the same time. */
static const double prefill_flops = 1e9, gpu_prefill_flops = 6e13;
enum { PROMPT_LEAST = 64, PROMPT_MOST = 8192, PREFILLS = 4, PREFILL_ATTEMPTS = 3 };

typedef struct scratch {
    const fkv_calibration_task *task;
    fkv_config config; /* the model's, cut to size */
    bool solo;
    int local; /* ranks that the device holds */
    int64_t tokens, prompt;
    int64_t lengths[2]; /* of prompts whose prefill is timed */
    int32_t *budgets;   /* [n_layers][n_kv_heads] */
    fkv_plan plan;
    fkv_safetensors *weights;
    fkv_engine *engine;
    fkv_device_info info;
    /* measured, a row a step */
    double *segments; /* [MAX_STEPS][n_layers * local] */
    double layers[MAX_STEPS], once[MAX_STEPS];
    int n_steps, n_before; /* of two rounds; of the first of them */
    double grown;          /* tokens that a head has beside its budget in a step that is timed */
} scratch;

/* The next value in [0, n) of a stream that is the same everywhere. */
static int draw(uint64_t *i, int n)
{
    return (int)(fkv_random_u64(20150280, 4, (*i)++) % (uint64_t)n);
}

/* Of an element of a layer's matrices. */
static int matrix_bytes(const fkv_calibration_task *t, const fkv_device_info *info)
{
    return t->form == FKV_FORM_FP8 ? info->fp8_bytes : info->weight_bytes;
}

static double weight_bytes(const scratch *s)
{
    return (double)fkv_tensors_layer_values(&s->config) * matrix_bytes(s->task, &s->info);
}

/* How much of the model the scratch engine has. */
static void cut_to_size(scratch *s)
{
    const fkv_calibration_task *t = s->task;
    fkv_config *c = &s->config;
    *c = *t->config;
    const bool gpu = s->info.replays;
    const int most = gpu ? MAX_GPU_LAYERS : MAX_LAYERS, wanted = c->n_layers < most ? c->n_layers : most;
    const double layer = weight_bytes(s), memory = (double)s->info.memory_bytes;
    s->solo = t->n_ranks > 1 && (gpu || 2 * layer > weight_cap_bytes);
    s->local = s->solo ? 1 : t->n_ranks;
    const double fit =
        (gpu ? fmin(gpu_weight_cap_bytes, memory / 6) : weight_cap_bytes) / (layer * s->local / t->n_ranks);
    c->n_layers = fit < wanted ? (int)fit : wanted;
    /* one rank alone shows itself once a layer */
    const int least = s->solo ? MIN_SOLO_LAYERS : 2;
    if (c->n_layers < least) c->n_layers = least;
    if (c->vocab / t->n_ranks > MAX_VOCAB_SHARE) c->vocab = MAX_VOCAB_SHARE * t->n_ranks;
    /* Fewer layers before fewer tokens: a token's time depends on how many follow it. */
    const double token = (double)fkv_kv_token_bytes(t->kv_form, c->head_dim, s->info.kv_bytes) * t->n_slots *
                         c->n_kv_heads * s->local / t->n_ranks;
    const double cap = gpu ? fmin(gpu_kv_cap_bytes, memory / 6) : kv_cap_bytes;
    const double pages = s->tokens > FKV_PAGE_TOKENS / 2 ? (double)s->tokens : FKV_PAGE_TOKENS / 2.0;
    while (c->n_layers > least && c->n_layers * pages * token > cap) c->n_layers--;
    while (s->tokens > MIN_TOKENS && c->n_layers * (double)s->tokens * token > 2 * cap) s->tokens /= 2;
}

/* Budgets around the mean, and heads that stay, leave, or are shared out. */
static fkv_status make_plan(scratch *s, fkv_err *err)
{
    static const double parts[] = {0.25, 0.5, 1, 2.25};
    const int n_slots = s->task->n_slots, n_ranks = s->task->n_ranks, k = s->config.n_kv_heads;
    const int n = s->config.n_layers * k;
    fkv_plan *p = &s->plan;
    uint64_t at = 0;
    s->budgets = fkv_calloc((size_t)n, sizeof *s->budgets);
    p->first = fkv_calloc((size_t)n + 1, sizeof *p->first);
    p->at = fkv_calloc(2 * (size_t)n, sizeof *p->at);
    if (!s->budgets || !p->first || !p->at) return fkv_fail_memory(err);
    p->mode = FKV_PLAN_FAIR_COPYING;
    p->n_layers = s->config.n_layers;
    p->n_kv_heads = k;
    p->n_ranks = n_ranks;
    p->n_slots = n_slots;
    for (int i = 0; i < n; i++) {
        const int64_t budget = llround(parts[draw(&at, 4)] * (double)s->tokens);
        s->budgets[i] = (int32_t)(budget > 1 ? budget : 1);
        if (s->budgets[i] > s->prompt) s->prompt = s->budgets[i];
        const int home = fkv_partition_home(i % k, k, n_ranks), kind = draw(&at, 8);
        int other = (home + 1 + draw(&at, n_ranks > 1 ? n_ranks - 1 : 1)) % n_ranks;
        if (s->solo && home != 0 && draw(&at, 2)) other = 0;
        const int cut = n_slots > 1 ? 1 + draw(&at, n_slots - 1) : 0;
        int m = p->first[i];
        if (kind < 3 || other == home) {
            p->at[m++] = (fkv_placement){home, 0, n_slots};
        } else if (kind == 3 || !cut) {
            p->at[m++] = (fkv_placement){other, 0, n_slots};
        } else {
            p->at[m++] = (fkv_placement){home, 0, cut};
            p->at[m++] = (fkv_placement){other, cut, n_slots};
        }
        p->first[i + 1] = m;
    }
    return fkv_plan_validate(p, err);
}

/* Layers whose every part is computed for every token: in the last one Q, K and V alone are. */
static double whole_layers(const scratch *s)
{
    const fkv_config *c = &s->config;
    const double heads = (double)(c->n_kv_heads * fkv_tensors_head_values(c));
    return c->n_layers - 1 + heads / (double)fkv_tensors_layer_values(c);
}

/* The task's prompts, as far as they are done in a moment, and apart enough to tell what grows
 * with the length from what grows with its square. */
static void choose_lengths(scratch *s)
{
    const double layer = (double)fkv_tensors_layer_values(&s->config);
    const double per_token = 2 * layer * whole_layers(s) * s->local / s->task->n_ranks;
    const double most = (s->info.replays ? gpu_prefill_flops : prefill_flops) / per_token;
    int64_t *n = s->lengths;
    for (int i = 0; i < 2; i++)
        n[i] = s->task->prompt_tokens[i] > 0 ? s->task->prompt_tokens[i] : PROMPT_MOST;
    if (n[1] > PROMPT_MOST) n[1] = PROMPT_MOST;
    if ((double)n[1] > most) n[1] = (int64_t)most;
    if (n[1] < 2 * PROMPT_LEAST) n[1] = 2 * PROMPT_LEAST;
    if (n[0] > n[1] / 2) n[0] = n[1] / 2;
    if (n[0] < PROMPT_LEAST) n[0] = PROMPT_LEAST;
}

static fkv_status open_scratch(scratch *s, fkv_err *err)
{
    const fkv_calibration_task *t = s->task;
    fkv_config *c = &s->config;
    fkv_status st;
    cut_to_size(s);
    if ((st = make_plan(s, err))) return st;
    if (s->prompt < PROMPT_LEAST) s->prompt = PROMPT_LEAST;
    choose_lengths(s);
    const int64_t longest = s->prompt > s->lengths[1] ? s->prompt : s->lengths[1];
    c->max_positions = (int)longest + BURST + 2;
    if ((st = fkv_tensors_open_dummy(c, 0, &s->weights, err))) return st;
    const fkv_engine_options options = {.backend = t->backend,
                                        .n_ranks = t->n_ranks,
                                        .n_devices = 1,
                                        .n_slots = t->n_slots,
                                        .max_prompt = longest,
                                        .window = 32,
                                        .kernel = 7,
                                        .kv_form = t->kv_form,
                                        .n_threads = t->n_threads,
                                        .form = t->form,
                                        .solo = s->solo};
    if ((st = fkv_engine_open(c, s->weights, &options, &s->engine, err))) return st;
    const fkv_engine_kv_limits limits = fkv_measure_limits(&s->plan, s->budgets, s->prompt, BURST + 1);
    if ((st = fkv_engine_set_plan(s->engine, s->weights, s->budgets, &s->plan, &limits, err))) return st;
    /* Pages that were never written would all be read from one page of zeros. */
    if ((st = fkv_measure_fill_pages(s->engine, s->prompt, s->info.replays ? BURST + 1 : 2, err))) return st;
    s->segments = fkv_calloc((size_t)MAX_STEPS * (size_t)c->n_layers, (size_t)s->local * sizeof *s->segments);
    return s->segments ? FKV_OK : fkv_fail_memory(err);
}

static void close_scratch(scratch *s)
{
    fkv_engine_close(s->engine);
    fkv_safetensors_close(s->weights);
    fkv_plan_free(&s->plan);
    free(s->budgets);
    free(s->segments);
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of n values, stride apart, the one that share of them lie below, in microseconds. */
static double quantile_us(const double *values, int n, size_t stride, double share)
{
    double sorted[MAX_STEPS] = {0};
    for (int i = 0; i < n; i++) sorted[i] = values[(size_t)i * stride];
    qsort(sorted, (size_t)n, sizeof *sorted, compare);
    return 1e6 * sorted[(int)(share * (n - 1))];
}

/* What a step takes when nothing else runs, without trusting the luckiest one: other
 * programs only ever add time. */
static double quiet_us(const double *values, int n, size_t stride)
{
    return quantile_us(values, n, stride, 0.125);
}

static double least_of(const double *values, int n)
{
    double least = values[0];
    for (int i = 1; i < n; i++) least = fmin(least, values[i]);
    return least;
}

/* Steps as they are replayed: the segments of the one that was timed, and of the others
 * the quickest, without its segments and what a step does once. */
static fkv_status replay_steps(scratch *s, fkv_err *err)
{
    const int n = s->config.n_layers * s->local, first = s->n_steps;
    const double end = fkv_seconds() + step_seconds;
    double seconds[BURST], once;
    fkv_status st = fkv_measure_once(s->engine, s->prompt, &once, err);
    for (int i = first; !st && i < first + MAX_STEPS / 2 && (i < first + MIN_BURSTS || fkv_seconds() < end);
         i++) {
        double *row = s->segments + (size_t)i * (size_t)n, sum = once;
        if ((st = fkv_measure_decode(s->engine, s->prompt, BURST, seconds, err))) break;
        if (!fkv_measure_segments(s->engine, row))
            return fkv_fail(err, FKV_E_SYSTEM, "no step was recorded with its times");
        for (int k = 0; k < n; k++) sum += row[k];
        s->once[i] = once;
        s->layers[i] = fmax(least_of(seconds, BURST) - sum, 0);
        s->n_steps = i + 1;
    }
    return st;
}

static fkv_status trace_steps(scratch *s, fkv_err *err)
{
    const int n_layers = s->config.n_layers, n_ranks = s->task->n_ranks;
    const int first = s->n_steps ? s->n_steps : -WARM_STEPS, least = s->n_steps + MIN_STEPS;
    const int most = s->n_steps + MAX_STEPS / 2;
    const double end = fkv_seconds() + step_seconds;
    double ignored;
    fkv_trace *trace;
    fkv_status st = fkv_trace_open(s->engine, &trace, err);
    if (st) return st;
    const fkv_trace_sums *t = fkv_trace_get(trace);
    for (int i = first; !st && i < most && (i < least || fkv_seconds() < end); i++) {
        fkv_trace_reset(trace);
        if ((st = fkv_measure_decode(s->engine, s->prompt, 1, &ignored, err))) break;
        if (i < 0) continue;
        double *row = s->segments + (size_t)i * (size_t)(n_layers * s->local);
        for (int l = 0; l < n_layers; l++)
            for (int r = 0; r < s->local; r++)
                row[l * s->local + r] = t->segment_seconds[(size_t)l * (size_t)n_ranks + r];
        s->layers[i] = t->layers_seconds;
        s->once[i] = t->once_seconds;
        s->n_steps = i + 1;
    }
    fkv_trace_close(trace);
    return st;
}

static fkv_status run_steps(scratch *s, fkv_err *err)
{
    /* The step's own token; of a burst, what it has grown by on average. */
    s->grown = s->info.replays ? BURST / 2 : 1;
    return s->info.replays ? replay_steps(s, err) : trace_steps(s, err);
}

/* Common part and segments of the steps [from, to). */
static void sum_up(const scratch *s, int from, int to, double *layers_us, double *segments_us)
{
    const int n = s->config.n_layers * s->local;
    *layers_us = quiet_us(s->layers + from, to - from, 1);
    *segments_us = 0;
    for (int k = 0; k < n; k++)
        *segments_us += quiet_us(s->segments + (size_t)from * (size_t)n + k, to - from, (size_t)n);
}

/* Rounds until two in a row agree; their steps remain. */
static fkv_status run_rounds(scratch *s, fkv_err *err)
{
    const size_t n = (size_t)s->config.n_layers * (size_t)s->local;
    double layers[2] = {0}, segments[2] = {0};
    for (int i = 0; i < MAX_ROUNDS; i++) {
        /* the round before stays */
        const size_t gone = (size_t)s->n_before, left = (size_t)(s->n_steps - s->n_before);
        memmove(s->segments, s->segments + gone * n, left * n * sizeof *s->segments);
        memmove(s->layers, s->layers + gone, left * sizeof *s->layers);
        memmove(s->once, s->once + gone, left * sizeof *s->once);
        s->n_steps = s->n_before = (int)left;
        const fkv_status st = run_steps(s, err);
        if (st) return st;
        layers[0] = layers[1];
        segments[0] = segments[1];
        sum_up(s, s->n_before, s->n_steps, &layers[1], &segments[1]);
        if (i > 0 && fkv_fit_agree(layers[0], layers[1]) && fkv_fit_agree(segments[0], segments[1]))
            return FKV_OK;
    }
    return fkv_fail(
        err, FKV_E_SYSTEM,
        "disturbed: the same step's parts took %.0f and %.0f us in one round, %.0f and %.0f in the "
        "next",
        segments[0], layers[0], segments[1], layers[1]);
}

static fkv_status fit_segments(const scratch *s, fkv_calibration *out, fkv_err *err)
{
    const int n_layers = s->config.n_layers, k = s->config.n_kv_heads, n = n_layers * s->local;
    double *a = fkv_calloc((size_t)n * N_CONSTANTS, sizeof *a), *y = fkv_calloc((size_t)n, sizeof *y);
    double x[N_CONSTANTS];
    if (!a || !y) {
        free(a);
        free(y);
        return fkv_fail_memory(err);
    }
    for (int i = 0; i < n; i++) {
        const int l = i / s->local, r = i % s->local;
        double *row = a + (size_t)i * N_CONSTANTS;
        row[0] = 1;
        for (int lh = l * k; lh < (l + 1) * k; lh++) {
            for (int p = s->plan.first[lh]; p < s->plan.first[lh + 1]; p++) {
                if (s->plan.at[p].rank != r) continue;
                const double slots = s->plan.at[p].end - s->plan.at[p].begin;
                row[1] += 1;
                row[2] += slots;
                row[3] += slots * (s->budgets[lh] + s->grown);
            }
        }
        /* a rank without a head does nothing, which is not what t0 is about */
        y[i] = row[1] > 0 ? quiet_us(s->segments + i, s->n_steps, (size_t)n) : 0;
    }
    out->fit_error = fkv_fit_nonnegative(a, y, n, N_CONSTANTS, x);
    out->cost.t0_us = x[0];
    out->cost.head_us = x[1];
    out->cost.slot_head_us = x[2];
    out->cost.token_us = x[3];
    free(a);
    free(y);
    return FKV_OK;
}

/* Rest of a step over the model's layers; what happens once a step is shared out among
 * them. The logits grow with the vocabulary. */
static void fit_common(const scratch *s, fkv_calibration *out)
{
    const fkv_config *c = s->task->config;
    const double layer = quiet_us(s->layers, s->n_steps, 1) / s->config.n_layers;
    const double once = quiet_us(s->once, s->n_steps, 1) * c->vocab / s->config.vocab;
    out->cost.common_us = layer + once / c->n_layers;
}

/* A prompt's prefill, alone: *settled says whether its times agree with each other. */
static fkv_status time_prompt(const scratch *s, const int32_t *ids, int64_t n, double *us, bool *settled,
                              fkv_err *err)
{
    fkv_status st = FKV_OK;
    *settled = false;
    for (int k = 0; !st && !*settled && k < PREFILL_ATTEMPTS; k++) {
        double seconds[PREFILLS];
        st = fkv_measure_prefill(s->engine, ids, n, &seconds[0], err); /* warms up */
        for (int i = 0; !st && i < PREFILLS; i++)
            st = fkv_measure_prefill(s->engine, ids, n, &seconds[i], err);
        if (!st) *settled = fkv_fit_settled(seconds, PREFILLS, 0.25, us);
    }
    *us *= 1e6;
    return st;
}

static fkv_status fit_prefill(scratch *s, fkv_calibration *out, bool *settled, fkv_err *err)
{
    double us[2] = {0}, token_us, pair_us;
    int32_t *ids = fkv_calloc((size_t)s->lengths[1], sizeof *ids);
    fkv_status st = ids ? FKV_OK : fkv_fail_memory(err);
    for (int i = 0; !st && *settled && i < 2; i++)
        st = time_prompt(s, ids, s->lengths[i], &us[i], settled, err);
    free(ids);
    if (st || !*settled) return st;
    fkv_prompt_rates(s->lengths, us, &token_us, &pair_us);
    /* No work grows faster than with the square, nor less than by nothing. */
    *settled = token_us > 0 && us[1] > us[0];
    if (!*settled) return FKV_OK;
    out->cost.prefill_token_us = token_us / (s->local * whole_layers(s));
    out->cost.prefill_pair_us = pair_us / (s->local * (s->config.n_layers - 1));
    return FKV_OK;
}

static int power_of_two(double x)
{
    const double e = round(log2(x > 1 ? x : 1));
    return 1 << (int)(e < 27 ? e : 27);
}

/* What a device of the backend says about itself. */
static fkv_status device_info(const fkv_calibration_task *t, fkv_device_info *info, fkv_err *err)
{
    fkv_world *world = NULL;
    fkv_device *dev = NULL;
    const fkv_group one = {.n_devices = 1};
    fkv_status st = t->backend->world_open(&one, &world, err);
    if (!st) st = t->backend->open(world, 0, t->n_threads, &dev, err);
    if (!st) t->backend->info(dev, info);
    if (dev) t->backend->close(dev);
    if (world) t->backend->world_close(world);
    return st;
}

static void fill_key(const fkv_calibration_task *t, const fkv_device_info *info, fkv_calibration_key *key)
{
    const fkv_config *c = t->config;
    memset(key, 0, sizeof *key);
    snprintf(key->backend, sizeof key->backend, "%s", t->backend->name);
    snprintf(key->device, sizeof key->device, "%s", info->name);
    snprintf(key->version, sizeof key->version, "%s", FKV_VERSION);
    key->hidden = c->hidden;
    key->intermediate = c->intermediate;
    key->head_dim = c->head_dim;
    key->group = c->group;
    key->n_kv_heads = c->n_kv_heads;
    key->n_layers = c->n_layers;
    key->vocab = c->vocab;
    key->act_bytes = info->act_bytes;
    key->kv_bytes = fkv_kv_number_bytes(t->kv_form, info->kv_bytes);
    key->weight_bytes = matrix_bytes(t, info);
    key->n_ranks = t->n_ranks;
    key->n_devices = t->n_devices > 1 ? t->n_devices : 1;
    key->n_slots = t->n_slots;
    key->tokens = power_of_two(t->mean_tokens);
}

fkv_status fkv_calibration_key_of(const fkv_calibration_task *task, fkv_calibration_key *key, fkv_err *err)
{
    fkv_device_info info;
    const fkv_status st = device_info(task, &info, err);
    if (!st) fill_key(task, &info, key);
    return st;
}

fkv_status fkv_calibration_measure(const fkv_calibration_task *task, fkv_calibration *out, fkv_err *err)
{
    scratch s = {.task = task, .config = *task->config};
    *out = (fkv_calibration){0};
    fkv_status st = device_info(task, &s.info, err);
    if (st) return st;
    fill_key(task, &s.info, &out->key);
    out->cost =
        (fkv_cost){.origin = FKV_COST_MEASURED, .n_ranks = task->n_ranks, .act_bytes = s.info.act_bytes};
    s.tokens = out->key.tokens;
    st = open_scratch(&s, err);
    if (!st) st = run_rounds(&s, err);
    if (!st) st = fit_segments(&s, out, err);
    if (!st) fit_common(&s, out);
    bool settled = true;
    if (!st) st = fit_prefill(&s, out, &settled, err);
    close_scratch(&s);
    if (!settled) snprintf(out->disturbed, sizeof out->disturbed, "prefill");
    settled = true;
    if (!st)
        st = fkv_calibration_measure_link(task, &out->cost.collective_us, &out->cost.link_bytes_per_us,
                                          &settled, err);
    if (!settled)
        snprintf(out->disturbed, sizeof out->disturbed, "%s",
                 out->disturbed[0] ? "prefill and collectives" : "collectives");
    return st;
}
