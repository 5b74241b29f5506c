/* How well the calibrated cost model predicts decode steps on the CPU backend.
 *
 * usage: predict_vs_measured [MODEL_DIR [SCORES_FILE]]
 * 4 ranks on one CPU device, uneven budgets from published head scores (layer l of the
 * model takes those of layer l * n / L of the file's n), prompts of uneven length; 16 and 64
 * slots, all three modes. Calibrates anew, decodes real steps with their parts timed, and
 * prints predicted and measured step and segments with the error.
 *
 * The measured step is the sum over layers of the slowest rank's own segment plus the
 * common part. Every part's time is the lower octile over the steps, as
 * calibration takes it: other programs only ever add time. The modes run in turns.
 * Exits 77 where the model is missing. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

#include "engine/calibrate.h"
#include "engine/engine.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"

enum { N_RANKS = 4, MAX_SLOTS = 64, NEW = 24, MEAN_BUDGET = 192, WINDOW = 32, REPEATS = 3, MAX_PROMPT = 500 };
enum { MAX_STEPS = REPEATS * (NEW + 4), FILE_LAYERS = 32, FILE_HEADS = 32 };

static const char *const names[] = {"standard", "best-effort", "fair-copying"};

typedef struct parts {
    double *segment; /* [MAX_STEPS][n_layers * N_RANKS] seconds */
    double layers[MAX_STEPS], once[MAX_STEPS];
    int n;
} parts;

typedef struct bench {
    fkv_config config;
    fkv_safetensors *weights;
    fkv_profile profile;
    int n_slots, next;
    int32_t ids[MAX_PROMPT];
    fkv_engine *engine;
    parts *now;
} bench;

static void die(const char *what, const fkv_err *err)
{
    char text[2048] = "";
    if (err) fkv_err_format(err, text, sizeof text);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

static fkv_status next(void *ctx, bool wait, fkv_request *q, fkv_err *err)
{
    bench *b = ctx;
    (void)wait, (void)err;
    if (b->next == b->n_slots) return FKV_END;
    *q = (fkv_request){b->next, b->ids, b->profile.prompt_tokens[b->next], NEW, NULL};
    b->next++;
    return FKV_OK;
}

static bool on_token(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n)
{
    (void)ctx, (void)q, (void)ids, (void)n;
    return false;
}

static fkv_status on_finish(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n, fkv_finish why,
                            fkv_err *err)
{
    (void)ctx, (void)q, (void)ids, (void)n, (void)why, (void)err;
    return FKV_OK;
}

static fkv_status on_reject(void *ctx, const fkv_request *q, const fkv_err *why, fkv_err *err)
{
    (void)ctx, (void)q;
    *err = *why;
    return why->status;
}

/* Between steps: takes the last step's times away. */
static fkv_stopping between(void *ctx)
{
    const bench *b = ctx;
    fkv_engine_trace t;
    fkv_err err = {0};
    if (fkv_engine_trace_get(b->engine, &t) && t.n_steps == 1 && b->now->n < MAX_STEPS) {
        const size_t n = (size_t)t.n_layers * N_RANKS;
        memcpy(b->now->segment + (size_t)b->now->n * n, t.segment_seconds, n * sizeof(double));
        b->now->layers[b->now->n] = t.layers_seconds;
        b->now->once[b->now->n++] = t.once_seconds;
    }
    if (fkv_engine_trace_start(b->engine, &err)) die("trace", &err);
    return FKV_GO_ON;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quiet(const double *values, int n, size_t stride)
{
    double sorted[MAX_STEPS];
    for (int i = 0; i < n; i++) sorted[i] = values[(size_t)i * stride];
    qsort(sorted, (size_t)n, sizeof *sorted, compare);
    return n ? sorted[(n - 1) / 8] : 0;
}

static void decode(bench *b, const fkv_plan *plan, parts *out)
{
    fkv_err err = {0};
    const fkv_engine_options o = {.backend = fkv_backend_cpu(),
                                  .n_ranks = N_RANKS,
                                  .n_devices = 1,
                                  .n_slots = b->n_slots,
                                  .max_prompt = MAX_PROMPT,
                                  .window = WINDOW,
                                  .kernel = 7,
                                  .sampling = {.top_p = 1}};
    const fkv_engine_io io = {b, next, on_token, on_finish, on_reject, between, NULL};
    b->next = 0;
    b->now = out;
    b->engine = NULL;
    if (fkv_engine_open(&b->config, b->weights, &o, &b->engine, &err)) die("engine", &err);
    if (fkv_engine_set_plan(b->engine, b->weights, b->profile.budgets, plan, NEW, &err)) die("plan", &err);
    if (fkv_engine_run(b->engine, &io, &err)) die("run", &err);
    fkv_engine_close(b->engine);
}

/* Budgets from head scores, and the prompts' lengths: 300 to MAX_PROMPT tokens. */
static void make_profile(bench *b, const char *file)
{
    const fkv_config *c = &b->config;
    static double all[FILE_LAYERS * FILE_HEADS];
    double *scores = calloc((size_t)c->n_layers * (size_t)c->n_kv_heads, sizeof *scores);
    fkv_err err = {0};
    if (!scores || fkv_profile_init(&b->profile, c->n_layers, c->n_kv_heads, &err)) die("memory", &err);
    if (fkv_scores_read_file(file, FILE_LAYERS, FILE_HEADS, c->n_kv_heads, all, &err)) die("scores", &err);
    for (int l = 0; l < c->n_layers; l++)
        memcpy(scores + l * c->n_kv_heads, all + l * FILE_LAYERS / c->n_layers * c->n_kv_heads,
               (size_t)c->n_kv_heads * sizeof *scores);
    fkv_budget_from_scores(&b->profile, scores, MEAN_BUDGET, WINDOW, 0.2);
    b->profile.prompt_tokens = calloc(MAX_SLOTS, sizeof(int32_t));
    if (!b->profile.prompt_tokens) die("memory", NULL);
    for (int i = 0; i < MAX_SLOTS; i++)
        b->profile.prompt_tokens[i] = 300 + (int)(fkv_random_u64(1, 1, (uint64_t)i) % (MAX_PROMPT - 300));
    b->profile.mean_output = NEW;
    for (int i = 0; i < MAX_PROMPT; i++) b->ids[i] = 3 + i % 1000;
    free(scores);
}

typedef struct row {
    double predicted, measured, predicted_segments, measured_segments;
} row;

static row compare_mode(const bench *b, const fkv_calibration *c, double predicted, const parts *p)
{
    const int n_layers = b->config.n_layers;
    row r = {.predicted = predicted, .predicted_segments = predicted - n_layers * c->cost.common_us};
    for (int l = 0; l < n_layers; l++) {
        double slowest = 0;
        for (int k = 0; k < N_RANKS; k++)
            slowest = fmax(slowest, quiet(p->segment + l * N_RANKS + k, p->n, (size_t)n_layers * N_RANKS));
        r.measured_segments += 1e6 * slowest;
    }
    r.measured = r.measured_segments + 1e6 * (quiet(p->layers, p->n, 1) + quiet(p->once, p->n, 1));
    return r;
}

/* Whether the worst error stays within 15% and the modes' order is the predicted one. */
static bool run_slots(bench *b, int n_slots)
{
    const fkv_config *c = &b->config;
    double *tokens = calloc((size_t)c->n_layers * (size_t)c->n_kv_heads, sizeof *tokens), mean = 0;
    parts *p = calloc(3, sizeof *p);
    fkv_err err = {0};
    fkv_calibration calibration;
    fkv_plan plans[3];
    row rows[3];
    if (!tokens || !p) die("memory", NULL);
    b->n_slots = b->profile.n_sample = n_slots;
    fkv_cost_tokens(&b->profile, tokens);
    for (int i = 0; i < c->n_layers * c->n_kv_heads; i++) mean += tokens[i] / (c->n_layers * c->n_kv_heads);
    const fkv_calibration_task task = {.backend = fkv_backend_cpu(),
                                       .config = c,
                                       .n_ranks = N_RANKS,
                                       .n_slots = n_slots,
                                       .mean_tokens = mean};
    if (fkv_calibration_measure(&task, &calibration, &err)) die("calibration", &err);
    const fkv_cost_constants *k = &calibration.cost;
    printf("%d slots, %.0f tokens a head: t0 %.2f us, head %.2f us, slot and head %.3f us, token %.4f us, "
           "common "
           "%.1f us; fit error %.1f%%\n",
           n_slots, mean, k->t0_us, k->head_us, k->slot_head_us, k->token_us, k->common_us,
           100 * calibration.fit_error);
    const fkv_plan_problem problem = {c->n_layers, c->n_kv_heads, N_RANKS, n_slots, tokens, *k, -1};
    for (int m = 0; m < 3; m++) {
        if (fkv_plan_solve(&problem, (fkv_plan_mode)m, &plans[m], &err)) die("plan", &err);
        p[m].segment = calloc((size_t)MAX_STEPS * (size_t)c->n_layers * N_RANKS, sizeof(double));
        if (!p[m].segment) die("memory", NULL);
    }
    for (int i = 0; i < REPEATS; i++)
        for (int m = 0; m < 3; m++) decode(b, &plans[m], &p[m]);
    bool good = true;
    for (int m = 0; m < 3; m++) {
        rows[m] = compare_mode(b, &calibration, fkv_plan_step_us(&problem, &plans[m]), &p[m]);
        const double e = 100 * (rows[m].predicted / rows[m].measured - 1);
        const double s = 100 * (rows[m].predicted_segments / rows[m].measured_segments - 1);
        printf(
            "  %-12s  step: predicted %8.0f us, measured %8.0f us, %+5.1f%%   segments: predicted %8.0f us, "
            "measured %8.0f us, %+5.1f%%   %d copies, %d steps\n",
            names[m], rows[m].predicted, rows[m].measured, e, rows[m].predicted_segments,
            rows[m].measured_segments, s, fkv_plan_copies(&plans[m]), p[m].n);
        good = good && fabs(e) <= 15 && fabs(s) <= 15;
    }
    const bool order = rows[2].measured <= rows[1].measured && rows[1].measured <= rows[0].measured;
    printf("  order of the modes: %s; gain of fair-copying over standard: predicted %.2fx, measured %.2fx\n",
           order ? "as predicted" : "NOT AS PREDICTED", rows[0].predicted / rows[2].predicted,
           rows[0].measured / rows[2].measured);
    for (int m = 0; m < 3; m++) {
        fkv_plan_free(&plans[m]);
        free(p[m].segment);
    }
    free(p);
    free(tokens);
    return good && order;
}

static void print_machine(void)
{
    char line[256], cpu[256] = "";
    double load[3] = {0};
    const time_t t = time(NULL);
    struct tm day;
    struct utsname u;
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10) && strchr(line, ':'))
            snprintf(cpu, sizeof cpu, "%s", strchr(line, ':') + 2);
    if (f) fclose(f);
    cpu[strcspn(cpu, "\n")] = '\0';
    gmtime_r(&t, &day);
    strftime(line, sizeof line, "%Y-%m-%d", &day);
    if (getloadavg(load, 3) < 1 || uname(&u)) return;
    printf("%s, %s, %s %s, load average %.1f\n", line, cpu, u.sysname, u.machine, load[0]);
}

int main(int argc, char **argv)
{
    const char *model = argc > 1 ? argv[1] : FKV_SOURCE_DIR "/../shared/models/needle-small";
    const char *scores = argc > 2 ? argv[2] : FKV_SOURCE_DIR "/../shared/profiles/llama-3-8b.headkv.json";
    static bench b;
    fkv_err err = {0};
    if (!fkv_file_exists(scores) || fkv_config_read(model, &b.config, &err)) {
        printf("skipped: %s or %s is not there\n", model, scores);
        return 77;
    }
    if (fkv_safetensors_open(model, &b.weights, &err)) die("weights", &err);
    make_profile(&b, scores);
    print_machine();
    const bool few = run_slots(&b, 16), many = run_slots(&b, 64);
    printf("%s\n", few && many ? "all within 15%, order right" : "not within 15%, or order wrong");
    fkv_profile_free(&b.profile);
    fkv_safetensors_close(b.weights);
    return few && many ? 0 : 1;
}
