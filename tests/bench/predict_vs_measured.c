/* How well the calibrated cost model predicts decode steps on the CPU backend.
 *
 * usage: predict_vs_measured [MODEL_DIR [SCORES_FILE]]
 * 4 ranks on one CPU device, uneven budgets from published head scores (layer l of the
 * model takes those of layer l * n / L of the file's n), prompts of uneven length; 16 and 64
 * slots, all three modes. Prints predicted and measured step and segments with the error.
 *
 * The measured step is the sum over layers of the slowest rank's own segment plus the
 * common part. Every part's time is the lower octile over the steps, as
 * calibration takes it: other programs only ever add time.
 *
 * A shared machine's speed drifts over seconds by more than the model's error. So the three
 * modes' engines take turns, a step each, and there are rounds, each a calibration and then a
 * run of the modes, compared within the round; every figure is the median over the rounds,
 * errors and gains too. The plans are the first round's.
 * Exits 77 where the model is missing. */
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

#include "engine/engine.h"
#include "engine/measure/calibrate.h"
#include "engine/measure/measure.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"

enum { N_RANKS = 4, MAX_SLOTS = 64, NEW = 24, MEAN_BUDGET = 192, WINDOW = 32, ROUNDS = 7, MAX_PROMPT = 500 };
enum { MAX_STEPS = NEW + 4, FILE_LAYERS = 32, FILE_HEADS = 32 };

typedef struct parts {
    double *segment; /* [MAX_STEPS][n_layers * N_RANKS] seconds */
    double layers[MAX_STEPS], once[MAX_STEPS];
    int n;
} parts;

typedef struct bench {
    fkv_config config;
    fkv_safetensors *weights;
    fkv_profile profile;
    int n_slots;
    int32_t ids[MAX_PROMPT];
} bench;

/* Whose step it is. */
typedef struct turns {
    pthread_mutex_t lock;
    pthread_cond_t passed;
    int whose;
    bool ended[3];
} turns;

/* One mode's run: a thread of its own. */
typedef struct mode_run {
    const bench *b;
    parts *parts;
    turns *turns;
    int mode, next;
    fkv_engine *engine;
    fkv_trace *trace;
} mode_run;

static void die(const char *what, const fkv_err *err)
{
    char text[2048] = "";
    if (err) fkv_err_format(err, text, sizeof text);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

static fkv_status next(void *ctx, bool wait, fkv_request *q, fkv_err *err)
{
    mode_run *r = ctx;
    const bench *b = r->b;
    (void)wait, (void)err;
    if (r->next == b->n_slots) return FKV_END;
    *q = (fkv_request){
        .ordinal = r->next, .ids = b->ids, .n_ids = b->profile.prompt_tokens[r->next], .max_new = NEW};
    r->next++;
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

static fkv_status on_reject(void *ctx, const fkv_request *q, const char *code, const fkv_err *why,
                            fkv_err *err)
{
    (void)code;
    (void)ctx, (void)q;
    *err = *why;
    return why->status;
}

/* Called with the lock held by the one whose turn it is. */
static void pass_turn(turns *t)
{
    for (int i = 1; i <= 3; i++) {
        const int next = (t->whose + i) % 3;
        if (t->ended[next]) continue;
        t->whose = next;
        break;
    }
    pthread_cond_broadcast(&t->passed);
}

/* Called with the lock held. */
static void await_turn(turns *t, int mode)
{
    while (t->whose != mode) pthread_cond_wait(&t->passed, &t->lock);
}

/* Between steps: takes the last step's times away, lets the other modes step. */
static fkv_stopping between(void *ctx)
{
    mode_run *r = ctx;
    parts *p = r->parts;
    fkv_err err = {0};
    const fkv_trace_sums *t = r->trace ? fkv_trace_get(r->trace) : NULL;
    if (t && t->n_steps == 1 && p->n < MAX_STEPS) {
        const size_t n = (size_t)t->n_layers * N_RANKS;
        memcpy(p->segment + (size_t)p->n * n, t->segment_seconds, n * sizeof(double));
        p->layers[p->n] = t->layers_seconds;
        p->once[p->n++] = t->once_seconds;
    }
    pthread_mutex_lock(&r->turns->lock);
    pass_turn(r->turns);
    await_turn(r->turns, r->mode);
    pthread_mutex_unlock(&r->turns->lock);
    if (r->trace)
        fkv_trace_reset(r->trace);
    else if (fkv_trace_open(r->engine, &r->trace, &err))
        die("trace", &err);
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

static void *run_mode(void *arg)
{
    mode_run *r = arg;
    fkv_err err = {0};
    const fkv_engine_io io = {r, next, on_token, on_finish, on_reject, between, NULL};
    pthread_mutex_lock(&r->turns->lock);
    await_turn(r->turns, r->mode);
    pthread_mutex_unlock(&r->turns->lock);
    if (fkv_engine_run(r->engine, &io, &err)) die("run", &err);
    pthread_mutex_lock(&r->turns->lock);
    r->turns->ended[r->mode] = true;
    pass_turn(r->turns);
    pthread_mutex_unlock(&r->turns->lock);
    return NULL;
}

/* Decodes with each plan, step by step in turns. */
static void decode(const bench *b, const fkv_plan plans[3], parts out[3])
{
    fkv_err err = {0};
    const fkv_engine_options o = {.backend = fkv_backend_cpu(),
                                  .n_ranks = N_RANKS,
                                  .n_devices = 1,
                                  .n_slots = b->n_slots,
                                  .max_prompt = MAX_PROMPT,
                                  .window = WINDOW,
                                  .kernel = 7};
    turns t = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, {false}};
    pthread_t threads[3];
    mode_run runs[3];
    for (int m = 0; m < 3; m++) {
        out[m].n = 0;
        runs[m] = (mode_run){.b = b, .parts = &out[m], .turns = &t, .mode = m};
        if (fkv_engine_open(&b->config, b->weights, &o, &runs[m].engine, &err)) die("engine", &err);
        const fkv_engine_kv_limits limits = {0};
        if (fkv_engine_set_plan(runs[m].engine, b->weights, b->profile.budgets, &plans[m], &limits, &err))
            die("plan", &err);
    }
    for (int m = 0; m < 3; m++)
        if (pthread_create(&threads[m], NULL, run_mode, &runs[m])) die("thread", NULL);
    for (int m = 0; m < 3; m++) {
        pthread_join(threads[m], NULL);
        fkv_trace_close(runs[m].trace);
        fkv_engine_close(runs[m].engine);
    }
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

/* Microseconds. */
typedef struct row {
    double predicted, measured, predicted_segments, measured_segments;
} row;

static row compare_mode(const bench *b, const fkv_cost *k, double predicted, const parts *p)
{
    const int n_layers = b->config.n_layers;
    row r = {.predicted = predicted, .predicted_segments = predicted - n_layers * k->common_us};
    for (int l = 0; l < n_layers; l++) {
        double slowest = 0;
        for (int i = 0; i < N_RANKS; i++)
            slowest = fmax(slowest, quiet(p->segment + l * N_RANKS + i, p->n, (size_t)n_layers * N_RANKS));
        r.measured_segments += 1e6 * slowest;
    }
    r.measured = r.measured_segments + 1e6 * (quiet(p->layers, p->n, 1) + quiet(p->once, p->n, 1));
    return r;
}

static double median(const double *values)
{
    double sorted[ROUNDS];
    memcpy(sorted, values, sizeof sorted);
    qsort(sorted, ROUNDS, sizeof *sorted, compare);
    return sorted[ROUNDS / 2];
}

/* The median over the rounds of one member of a mode's rows, and of a ratio of two. */
static double median_of(const row rows[ROUNDS][3], int mode, size_t member)
{
    double v[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) memcpy(&v[i], (const char *)&rows[i][mode] + member, sizeof v[i]);
    return median(v);
}

static double median_ratio(const row rows[ROUNDS][3], int mode, size_t member, int other_mode, size_t other)
{
    double v[ROUNDS], w;
    for (int i = 0; i < ROUNDS; i++) {
        memcpy(&v[i], (const char *)&rows[i][mode] + member, sizeof v[i]);
        memcpy(&w, (const char *)&rows[i][other_mode] + other, sizeof w);
        v[i] /= w;
    }
    return median(v);
}

/* Whether the errors stay within 15% and the modes' order is the predicted one. */
static bool print_rows(const row rows[ROUNDS][3], const int n_copies[3])
{
    enum { STANDARD, BEST_EFFORT, FAIR_COPYING };
    const size_t predicted = offsetof(row, predicted), measured = offsetof(row, measured),
                 p_segments = offsetof(row, predicted_segments),
                 m_segments = offsetof(row, measured_segments);
    bool good = true;
    for (int m = 0; m < 3; m++) {
        const double e = 100 * (median_ratio(rows, m, predicted, m, measured) - 1);
        const double s = 100 * (median_ratio(rows, m, p_segments, m, m_segments) - 1);
        printf(
            "  %-12s  step: predicted %8.0f us, measured %8.0f us, %+5.1f%%   segments: predicted %8.0f us, "
            "measured %8.0f us, %+5.1f%%   %d copies\n",
            fkv_plan_mode_name((fkv_plan_mode)m), median_of(rows, m, predicted), median_of(rows, m, measured),
            e, median_of(rows, m, p_segments), median_of(rows, m, m_segments), s, n_copies[m]);
        good = good && fabs(e) <= 15 && fabs(s) <= 15;
    }
    const bool order = median_ratio(rows, FAIR_COPYING, measured, BEST_EFFORT, measured) <= 1 &&
                       median_ratio(rows, BEST_EFFORT, measured, STANDARD, measured) <= 1;
    printf("  order of the modes: %s; gain of fair-copying over standard: predicted %.2fx, measured %.2fx\n",
           order ? "as predicted" : "NOT AS PREDICTED",
           median_ratio(rows, STANDARD, predicted, FAIR_COPYING, predicted),
           median_ratio(rows, STANDARD, measured, FAIR_COPYING, measured));
    return good && order;
}

static void print_constants(const fkv_calibration *c, int n_slots, double mean)
{
    const fkv_cost *k = &c->cost;
    printf("%d slots, %.0f tokens a head, first round: t0 %.2f us, head %.2f us, slot and head %.3f us, "
           "token %.4f us, common %.1f us; fit error %.1f%%\n",
           n_slots, mean, k->t0_us, k->head_us, k->slot_head_us, k->token_us, k->common_us,
           100 * c->fit_error);
}

static bool run_slots(bench *b, int n_slots)
{
    const fkv_config *c = &b->config;
    double *tokens = calloc((size_t)c->n_layers * (size_t)c->n_kv_heads, sizeof *tokens), mean = 0;
    parts p[3] = {0};
    fkv_err err = {0};
    fkv_calibration calibration;
    fkv_plan plans[3];
    row rows[ROUNDS][3];
    int n_copies[3];
    if (!tokens) die("memory", NULL);
    for (int m = 0; m < 3; m++) {
        p[m].segment = calloc((size_t)MAX_STEPS * (size_t)c->n_layers * N_RANKS, sizeof(double));
        if (!p[m].segment) die("memory", NULL);
    }
    b->n_slots = b->profile.n_sample = n_slots;
    fkv_cost_tokens(&b->profile, tokens);
    for (int i = 0; i < c->n_layers * c->n_kv_heads; i++) mean += tokens[i] / (c->n_layers * c->n_kv_heads);
    const fkv_calibration_task task = {.backend = fkv_backend_cpu(),
                                       .config = c,
                                       .n_ranks = N_RANKS,
                                       .n_slots = n_slots,
                                       .mean_tokens = mean};
    for (int i = 0; i < ROUNDS; i++) {
        if (fkv_calibration_measure(&task, &calibration, &err)) die("calibration", &err);
        const fkv_plan_problem problem = {c->n_layers, c->n_kv_heads,    N_RANKS, n_slots,
                                          tokens,      calibration.cost, -1,      0};
        if (i == 0) print_constants(&calibration, n_slots, mean);
        for (int m = 0; m < 3; m++) {
            if (i == 0 && fkv_plan_solve(&problem, (fkv_plan_mode)m, &plans[m], &err)) die("plan", &err);
            n_copies[m] = fkv_plan_copies(&plans[m]);
        }
        decode(b, plans, p);
        for (int m = 0; m < 3; m++)
            rows[i][m] = compare_mode(b, &problem.cost, fkv_plan_step_us(&problem, &plans[m]), &p[m]);
    }
    for (int m = 0; m < 3; m++) {
        fkv_plan_free(&plans[m]);
        free(p[m].segment);
    }
    free(tokens);
    return print_rows(rows, n_copies);
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
