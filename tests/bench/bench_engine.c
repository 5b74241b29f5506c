/* Times prefill and decode of any model shape with dummy weights, by plan mode.
 *
 * usage: bench_engine [key=value]...
 *   backend=auto  shape=8b|70b|tiny  layers=0 (so many of the shape's alone)  ranks=1  devices=1  slots=64
 * budget=1024  floor=0.2 scores=FILE (published head scores; without it uniform budgets)
 *   modes=standard,best-effort,fair-copying  prompt=8192  steps=32  prefill=0 (tokens; 0: not timed)
 *   gbps=0 (copy bandwidth measured elsewhere: prints the share of the floor)
 *   weights=bf16|fp8 (of the layers; bf16: as the backend holds them)
 *   temperature=0  top_p=1  top_k=0  kv=bf16|fp8 (of the KV cache's pages; bf16: the backend's own type)
 *   run=0 (1: steps of a run, with its page tables, tokens and what the host decides, beside the same
 *   steps handed over at once; prompts of `prompt` tokens are prefilled for it)
 *   job=0 (so many records of LongBench's lengths, answered: see lengths_job.h)
 *   ops=0 (1: every kind of op of a step and of one prefill, in place of the rows below; tflops=0
 *   is beside gbps the ceiling that an op's share is of: bench_ceilings measures both)
 *   calibrate=0 (1: plans by constants measured now, and prints predicted beside measured)
 * Prints a row per mode: median step, tokens/s, weights and kept KV bytes, floor. With
 * calibrate also the attention segments (of each layer the slowest rank's), the rest of the
 * step (which has the gathers and sums between devices), and how even the ranks are.
 * A 70B layer l takes the scores of layer l * n / 80 of the file's n layers.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/measure/calibrate.h"
#include "engine/measure/measure.h"
#include "engine/memory.h"
#include "engine/split.h"
#include "lengths_job.h"
#include "op_table.h"
#include "runner/base/json.h"
#include "tests/unit/io_fixture.h"
#include "tests/unit/model_shapes.h"

typedef struct args {
    const char *backend, *shape, *scores, *modes;
    fkv_kv_form kv;
    int layers, ranks, devices, slots, steps, calibrate, run, ops, job;
    int64_t budget, prompt, prefill;
    double floor, gbps, tflops;
    fkv_sampling sampling;
    fkv_form form; /* weights=fp8 */
} args;

static void die(const char *what, const fkv_err *err)
{
    char text[2048] = "";
    if (err) fkv_err_format(err, text, sizeof text);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

static args parse(int argc, char **argv)
{
    args a = {.backend = "auto",
              .shape = "8b",
              .modes = "standard,best-effort,fair-copying",
              .ranks = 1,
              .devices = 1,
              .slots = 64,
              .steps = 32,
              .budget = 1024,
              .prompt = 8192,
              .floor = 0.2,
              .sampling = {.top_p = 1}};
    for (int i = 1; i < argc; i++) {
        const char *eq = strchr(argv[i], '='), *v = eq ? eq + 1 : "";
        const size_t n = eq ? (size_t)(eq - argv[i]) : 0;
#define IS(name) (n == strlen(name) && !strncmp(argv[i], name, n))
        if (IS("backend"))
            a.backend = v;
        else if (IS("shape"))
            a.shape = v;
        else if (IS("scores"))
            a.scores = v;
        else if (IS("modes"))
            a.modes = v;
        else if (IS("layers"))
            a.layers = atoi(v);
        else if (IS("ranks"))
            a.ranks = atoi(v);
        else if (IS("devices"))
            a.devices = atoi(v);
        else if (IS("slots"))
            a.slots = atoi(v);
        else if (IS("steps"))
            a.steps = atoi(v);
        else if (IS("calibrate"))
            a.calibrate = atoi(v);
        else if (IS("run"))
            a.run = atoi(v);
        else if (IS("job"))
            a.job = atoi(v);
        else if (IS("ops"))
            a.ops = atoi(v);
        else if (IS("tflops"))
            a.tflops = atof(v);
        else if (IS("budget"))
            a.budget = atoll(v);
        else if (IS("prompt"))
            a.prompt = atoll(v);
        else if (IS("prefill"))
            a.prefill = atoll(v);
        else if (IS("weights") && (!strcmp(v, "bf16") || !strcmp(v, "fp8")))
            a.form = strcmp(v, "fp8") ? FKV_FORM_NATIVE : FKV_FORM_FP8;
        else if (IS("floor"))
            a.floor = atof(v);
        else if (IS("gbps"))
            a.gbps = atof(v);
        else if (IS("temperature"))
            a.sampling.temperature = (float)atof(v);
        else if (IS("top_p"))
            a.sampling.top_p = (float)atof(v);
        else if (IS("top_k"))
            a.sampling.top_k = atoi(v);
        else if (IS("kv") && (!strcmp(v, "bf16") || !strcmp(v, "fp8")))
            a.kv = *v == 'f' ? FKV_KV_FP8 : FKV_KV_PLAIN;
        else
            die(argv[i], NULL);
#undef IS
    }
    return a;
}

static fkv_config shape_of(const char *name)
{
    static const fkv_config shape_tiny = {.n_layers = 4,
                                          .n_heads = 8,
                                          .n_kv_heads = 4,
                                          .head_dim = 64,
                                          .group = 2,
                                          .hidden = 128,
                                          .intermediate = 384,
                                          .vocab = 1024,
                                          .max_positions = 32768};
    const bool tiny = !strcmp(name, "tiny");
    fkv_config c = tiny ? shape_tiny : !strcmp(name, "70b") ? shape_70b : shape_8b;
    if (!tiny && strcmp(name, "70b") != 0 && strcmp(name, "8b") != 0) die("shape", NULL);
    c.rms_eps = 1e-5f;
    c.rope.theta = tiny ? 10000 : 500000;
    return c;
}

/* Scores of the file's layers, spread over the model's. */
static void read_scores(const char *path, const fkv_config *c, double *out)
{
    fkv_err err = {0};
    json_t *root;
    if (fkv_json_load(path, 1 << 24, &root, &err)) die(path, &err);
    const json_t *rows = json_object_get(root, "scores");
    const size_t n = json_array_size(rows), per = n ? json_array_size(json_array_get(rows, 0)) : 0;
    if (!n || per % (size_t)c->n_kv_heads) die("scores of another shape", NULL);
    const size_t group = per / (size_t)c->n_kv_heads;
    for (int l = 0; l < c->n_layers; l++) {
        const json_t *row = json_array_get(rows, (size_t)l * n / (size_t)c->n_layers);
        for (int h = 0; h < c->n_kv_heads; h++) {
            double sum = 0;
            for (size_t g = 0; g < group; g++)
                sum += json_number_value(json_array_get(row, (size_t)h * group + g));
            out[l * c->n_kv_heads + h] = sum / (double)group;
        }
    }
    json_decref(root);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void time_prefill(fkv_engine *e, const args *a, const fkv_config *c)
{
    fkv_err err = {0};
    int32_t *ids = malloc((size_t)a->prefill * sizeof *ids);
    double best = 1e9, s;
    for (int64_t i = 0; i < a->prefill; i++) ids[i] = (int32_t)(i * 7919 % c->vocab);
    for (int i = 0; i < 4; i++) {
        if (fkv_measure_prefill(e, ids, a->prefill, &s, &err)) die("prefill", &err);
        best = s < best ? s : best;
    }
    printf("prefill of %lld tokens: %.4f s, %.0f tokens/s\n", (long long)a->prefill, best,
           (double)a->prefill / best);
    free(ids);
}

/* What a run plans with; measured once. */
static fkv_cost constants(const args *a, const fkv_backend *b, const fkv_config *c, const double *tokens)
{
    static fkv_cost cost;
    fkv_calibration found;
    fkv_err err = {0};
    double mean = 0;
    const int n = c->n_layers * c->n_kv_heads;
    if (!a->calibrate) return fkv_cost_cpu(c);
    if (cost.common_us > 0) return cost;
    for (int i = 0; i < n; i++) mean += tokens[i] / n;
    const fkv_calibration_task task = {.backend = b,
                                       .form = a->form,
                                       .config = c,
                                       .n_ranks = a->ranks,
                                       .n_devices = a->devices,
                                       .n_slots = a->slots,
                                       .kv_form = a->kv,
                                       .mean_tokens = mean};
    if (fkv_calibration_measure(&task, &found, &err)) die("calibration", &err);
    cost = found.cost;
    printf("constants: t0 %.2f us, head %.2f, slot and head %.4f, token %.6f, common %.1f a layer; fit error "
           "%.1f%%; collective %.1f us, %.0f bytes a us\n",
           cost.t0_us, cost.head_us, cost.slot_head_us, cost.token_us, cost.common_us, 100 * found.fit_error,
           found.cost.collective_us, found.cost.link_bytes_per_us);
    return cost;
}

/* A layer's, between devices. */
static double collectives_us(const args *a, const fkv_config *c, const fkv_cost *cost)
{
    const fkv_cost stated = fkv_cost_gpu(c), all = fkv_cost_complete(cost, &stated);
    return a->calibrate && a->devices > 1 ? fkv_split_collectives_us(&all, c, a->slots, a->devices) : 0;
}

static void print_parts(const args *a, const fkv_config *c, const fkv_plan *plan, fkv_engine *e, double step,
                        const fkv_plan_problem *problem)
{
    double *s = calloc((size_t)c->n_layers * (size_t)a->ranks, sizeof *s), slowest = 0, all = 0;
    if (!s || !fkv_measure_segments(e, s)) die("this backend records no segments", NULL);
    for (int l = 0; l < c->n_layers; l++) {
        double most = 0;
        for (int r = 0; r < a->ranks; r++) {
            most = fmax(most, s[l * a->ranks + r]);
            all += s[l * a->ranks + r];
        }
        slowest += most;
    }
    const double common = 1e-6 * c->n_layers * (problem->cost.common_us + problem->collectives_us),
                 predicted = 1e-6 * plan->step_us;
    printf("             segments %.3f ms (predicted %.3f, bound %.3f), rest %.3f (predicted %.3f), step "
           "predicted "
           "%.3f (%+.1f%%), slowest over mean rank %.3f\n",
           1e3 * slowest, 1e3 * (predicted - common), 1e-3 * plan->lower_bound_us - 1e3 * common,
           1e3 * (step - slowest), 1e3 * common, 1e3 * predicted, 100 * (predicted / step - 1),
           slowest * a->ranks / all);
    free(s);
}

/* A run's requests: a prompt a slot, all with steps + 1 tokens to come. */
typedef struct requests {
    const args *a;
    int32_t *ids;
    int given;
} requests;

static fkv_status next_request(void *ctx, bool wait, fkv_request *q, fkv_err *err)
{
    requests *r = ctx;
    (void)wait, (void)err;
    if (r->given == r->a->slots) return FKV_END;
    *q = (fkv_request){.ordinal = r->given++,
                       .ids = r->ids,
                       .n_ids = r->a->prompt,
                       .max_new = r->a->steps + 1,
                       .sampling = r->a->sampling};
    q->sampling.stream = (uint64_t)q->ordinal;
    return FKV_OK;
}

static void time_run(const args *a, const fkv_config *c, fkv_engine *e)
{
    fkv_err err = {0};
    fkv_engine_stats stats;
    double alone;
    requests r = {.a = a, .ids = malloc((size_t)a->prompt * sizeof *r.ids)};
    const fkv_engine_io io = {.ctx = &r,
                              .next = next_request,
                              .token = on_token,
                              .finish = on_finish,
                              .reject = on_reject,
                              .stopping = stopping};
    for (int64_t i = 0; i < a->prompt; i++) r.ids[i] = (int32_t)(i * 7919 % c->vocab);
    if (fkv_measure_replays(e, a->prompt, a->steps, &alone, &err)) die("replays", &err);
    fkv_engine_stats_reset(e);
    if (fkv_engine_run(e, &io, &err)) die("run", &err);
    fkv_engine_stats_get(e, &stats);
    const double step = stats.decode_seconds / (double)stats.decode_steps;
    printf("             run: %lld steps of %.3f ms, handed over at once %.3f: %+.1f%%; prefill %.0f "
           "tokens/s in %lld "
           "passes\n",
           (long long)stats.decode_steps, 1e3 * step, 1e3 * alone / a->steps,
           100 * (step * a->steps / alone - 1), (double)stats.prefill_rows / stats.prefill_seconds,
           (long long)stats.prefill_passes);
    free(r.ids);
}

static int64_t longest_prompt(const args *a)
{
    const int64_t most = a->prefill > a->prompt ? a->prefill : a->prompt;
    return a->job && most < LENGTHS_LONGEST ? LENGTHS_LONGEST : most;
}

/* Pages for all that is timed. */
static fkv_engine_kv_limits limits_of(const args *a, const fkv_profile *p, const fkv_plan *plan)
{
    const fkv_engine_kv_limits timed = fkv_measure_limits(plan, p->budgets, a->prompt, a->steps + 1),
                               job = fkv_measure_limits(plan, p->budgets, LENGTHS_LONGEST, LENGTHS_LIMIT);
    return a->job ? job : timed;
}

static void run_mode(const args *a, const fkv_config *c, const fkv_safetensors *w, const fkv_profile *p,
                     int mode)
{
    const char *name = fkv_plan_mode_name(mode);
    if (!strstr(a->modes, name)) return;
    const size_t n_lh = (size_t)c->n_layers * (size_t)c->n_kv_heads;
    fkv_err err = {0};
    fkv_engine *e = NULL;
    fkv_plan plan = {0};
    double *tokens = malloc(n_lh * sizeof *tokens), *steps = malloc((size_t)a->steps * sizeof *steps);
    const fkv_backend *found = fkv_backend_find(a->backend);
    const fkv_engine_options o = {.backend = found,
                                  .form = a->form,
                                  .n_ranks = a->ranks,
                                  .n_devices = a->devices,
                                  .n_slots = a->slots,
                                  .max_prompt = longest_prompt(a),
                                  .window = 32,
                                  .kernel = 7,
                                  .kv_form = a->kv,
                                  .measured = a->sampling};
    if (!o.backend) die("no such backend here", NULL);
    fkv_cost_tokens(p, tokens);
    const fkv_cost cost = constants(a, o.backend, c, tokens);
    const fkv_plan_problem problem = {c->n_layers, c->n_kv_heads, a->ranks, a->slots,
                                      tokens,      cost,          -1,       collectives_us(a, c, &cost)};
    if (fkv_plan_solve(&problem, (fkv_plan_mode)mode, &plan, &err)) die("plan", &err);
    const fkv_engine_kv_limits limits = limits_of(a, p, &plan);
    if (a->ops) {
        printf("%-12s %s ranks %d slots %d budget %lld\n", name, a->shape, a->ranks, a->slots,
               (long long)a->budget);
        const op_job job = {c,        w,       &o,        p->budgets,
                            &plan,    &limits, a->prompt, a->prefill ? a->prefill : a->prompt,
                            a->steps, a->gbps, a->tflops};
        if (print_op_tables(&job, &err)) die("ops", &err);
        goto out;
    }
    if (fkv_engine_open(c, w, &o, &e, &err)) die("open", &err);
    if (a->prefill) time_prefill(e, a, c);
    if (fkv_engine_set_plan(e, w, p->budgets, &plan, &limits, &err)) die("set_plan", &err);
    if (fkv_measure_decode(e, a->prompt, a->steps, steps, &err)) die("decode", &err);
    fkv_device_info info;
    fkv_engine_info(e, &info);
    double kept = 0;
    for (size_t i = 0; i < n_lh; i++) kept += fmin(p->budgets[i], (double)a->prompt) + a->steps / 2.0;
    const double kv = kept * a->slots * (double)fkv_kv_token_bytes(a->kv, c->head_dim, info.kv_bytes);
    const fkv_memory_shape shape = {.config = c,
                                    .n_ranks = 1,
                                    .weight_bytes = info.weight_bytes,
                                    .fp8_bytes = info.fp8_bytes,
                                    .fp8_row_bytes = info.fp8_row_bytes,
                                    .form = a->form};
    const double weights =
        (double)fkv_memory_model_bytes(&shape) -
        (double)c->vocab * c->hidden * info.weight_bytes; /* embeddings are not read whole */
    qsort(steps, (size_t)a->steps, sizeof *steps, by_value);
    const double step = steps[a->steps / 2], floor_s = a->gbps > 0 ? (weights + kv) / (a->gbps * 1e9) : 0;
    printf("%-12s %s ranks %d slots %d budget %lld: step %.3f ms (best %.3f), %.0f tokens/s, weights %.2f "
           "GB, KV %.2f GB",
           name, a->shape, a->ranks, a->slots, (long long)a->budget, 1e3 * step, 1e3 * steps[0],
           a->slots / step, weights * 1e-9, kv * 1e-9);
    if (floor_s > 0) printf(", floor %.3f ms: %.2fx", 1e3 * floor_s, step / floor_s);
    printf(", copies %d\n", fkv_plan_copies(&plan));
    if (a->run) time_run(a, c, e);
    if (a->job && print_lengths_job(e, c, a->job, a->tflops, &err)) die("job", &err);
    if (a->calibrate) print_parts(a, c, &plan, e, step, &problem);
out:
    fkv_engine_close(e);
    fkv_plan_free(&plan);
    free(tokens);
    free(steps);
}

int main(int argc, char **argv)
{
    const args a = parse(argc, argv);
    fkv_config c = shape_of(a.shape);
    if (a.layers > 0 && a.layers < c.n_layers) c.n_layers = a.layers;
    fkv_err err = {0};
    fkv_profile p = {0};
    fkv_safetensors *w;
    if (fkv_profile_init(&p, c.n_layers, c.n_kv_heads, &err)) die("profile", &err);
    fkv_budget_uniform(&p, a.budget);
    if (a.scores) {
        double *scores = malloc((size_t)(c.n_layers * c.n_kv_heads) * sizeof *scores);
        read_scores(a.scores, &c, scores);
        fkv_budget_from_scores(&p, scores, a.budget, 32, a.floor);
        free(scores);
    }
    p.mean_output = a.steps;
    if (!(p.prompt_tokens = malloc(sizeof *p.prompt_tokens))) die("profile", NULL);
    p.prompt_tokens[0] = (int32_t)a.prompt; /* heads keep no more, whatever their budget */
    p.n_sample = 1;
    if (fkv_safetensors_open_dummy(1, (size_t)c.vocab * (size_t)c.hidden, (size_t)c.hidden, &w, &err))
        die("weights", &err);
    for (int mode = 0; mode < 3; mode++) run_mode(&a, &c, w, &p, mode);
    fkv_safetensors_close(w);
    fkv_profile_free(&p);
    return 0;
}
