/* Plan modes of a large model's shape over real devices, beside what was predicted: one engine, whose slots
 * and plans are changed; its weights are loaded once.
 *
 * usage: bench_modes [key=value]...
 *   backend=cuda  shape=70b (or 8b)  devices=4  ranks=DEVICES  layers=0 (all)  steps=24  prompt=32768
 *   scores=FILE@FLOOR,...      head scores (32 layers, 8 KV heads), and Ada-KV's floor (0.2)
 *   budgets=1024,4096,8192     mean tokens that a head keeps
 *   slots=64,128,0             0: the most that standard fits, then the most that fair-copying fits
 *   modes=standard,best-effort,fair-copying
 *   prefill=0,...              prompts of so many tokens are timed first
 *   seconds=0                  so long after its start no setting is begun; 0: no limit
 * A row a setting and mode. Segments: of each layer the slowest rank's attention; rest: what no plan changes,
 * with the collectives; balance: slowest over mean rank. A setting whose pages don't fit says so. Constants
 * are measured once for each number of slots and budget; those of `0` are the nearest's.
 */
#include <math.h>

#include "engine/engine.h"
#include "engine/measure/calibrate.h"
#include "engine/measure/measure.h"
#include "engine/split.h"
#include "runner/base/clock.h"
#include "tests/bench/large_model.h"

enum {
    KV_HEADS = 8,
    MAX_LAYERS = 80,
    MAX_RANKS = 8,
    MAX_LIST = 8,
    MAX_COSTS = 16,
    MODES = 3,
    SLOT_STEP = 8,
    MOST_SLOTS = 256
};

typedef struct args {
    const char *backend, *shape, *scores, *modes;
    int devices, ranks, layers, steps, n_slots, n_budgets, n_prefill;
    int64_t prompt, slots[MAX_LIST], budgets[MAX_LIST], prefill[MAX_LIST];
    double seconds;
} args;

/* Measured constants. */
typedef struct known_cost {
    int slots;
    int64_t budget;
    fkv_cost cost;
} known_cost;

typedef struct bench {
    args a;
    double begin;
    fkv_config config;
    const fkv_backend *backend;
    fkv_safetensors *weights;
    fkv_engine *engine;
    int64_t room; /* pages that a rank has */
    known_cost costs[MAX_COSTS];
    int n_costs;
} bench;

/* Scores and a budget. */
typedef struct setting {
    const char *name;
    int64_t budget;
    fkv_profile profile;
    double tokens[MAX_LAYERS * KV_HEADS];
} setting;

typedef struct measured {
    bool fits;
    double step, best, segments; /* seconds */
} measured;

static void set(args *a, const char *arg)
{
    const char *v = strchr(arg, '=');
    const size_t n = v ? (size_t)(v++ - arg) : 0;
#define IS(name) (n == strlen(name) && !strncmp(arg, name, n))
    if (IS("backend"))
        a->backend = v;
    else if (IS("shape"))
        a->shape = v;
    else if (IS("scores"))
        a->scores = v;
    else if (IS("modes"))
        a->modes = v;
    else if (IS("devices"))
        a->devices = atoi(v);
    else if (IS("ranks"))
        a->ranks = atoi(v);
    else if (IS("layers"))
        a->layers = atoi(v);
    else if (IS("steps"))
        a->steps = atoi(v);
    else if (IS("prompt"))
        a->prompt = atoll(v);
    else if (IS("seconds"))
        a->seconds = atof(v);
    else if (IS("slots"))
        a->n_slots = parse_list(v, a->slots, MAX_LIST);
    else if (IS("budgets"))
        a->n_budgets = parse_list(v, a->budgets, MAX_LIST);
    else if (IS("prefill"))
        a->n_prefill = parse_list(v, a->prefill, MAX_LIST);
    else
        die(arg, NULL);
#undef IS
}

static args parse(int argc, char **argv)
{
    args a = {.backend = "cuda",
              .shape = "70b",
              .modes = "standard,best-effort,fair-copying",
              .devices = 4,
              .steps = 24,
              .prompt = 32768,
              .slots = {64, 128, 0},
              .n_slots = 3,
              .budgets = {1024, 4096, 8192},
              .n_budgets = 3};
    for (int i = 1; i < argc; i++) set(&a, argv[i]);
    if (!a.ranks) a.ranks = a.devices;
    if (!a.scores || a.layers < 0 || a.ranks < 1 || a.ranks > MAX_RANKS)
        die("see the head of bench_modes.c", NULL);
    return a;
}

static bool time_is_over(const bench *b)
{
    return b->a.seconds > 0 && fkv_seconds() - b->begin > b->a.seconds;
}

/* The constants for so many slots and that budget; measured only where none are known for them and it may. */
static const fkv_cost *constants(bench *b, const setting *s, int slots, bool measure)
{
    const known_cost *near = NULL;
    for (int i = 0; i < b->n_costs; i++) {
        const known_cost *k = &b->costs[i];
        if (k->budget != s->budget) continue;
        if (!near || abs(k->slots - slots) < abs(near->slots - slots)) near = k;
    }
    if (near && (near->slots == slots || !measure || b->n_costs == MAX_COSTS)) return &near->cost;
    fkv_err err = {0};
    fkv_calibration found;
    const fkv_calibration_task task = {.backend = b->backend,
                                       .config = &b->config,
                                       .n_ranks = b->a.ranks,
                                       .n_devices = b->a.devices,
                                       .n_slots = slots,
                                       .mean_tokens = (double)s->budget + b->a.steps / 2.0};
    if (fkv_calibration_measure(&task, &found, &err)) die("calibration", &err);
    known_cost *k = &b->costs[b->n_costs++];
    *k = (known_cost){slots, s->budget, found.cost};
    return &k->cost;
}

static fkv_plan solve(bench *b, const setting *s, int slots, int mode, const fkv_cost *cost)
{
    fkv_err err = {0};
    fkv_plan plan = {0};
    const fkv_cost stated = fkv_cost_gpu(&b->config), all = fkv_cost_complete(cost, &stated);
    const fkv_plan_problem p = {
        .n_layers = b->config.n_layers,
        .n_kv_heads = KV_HEADS,
        .n_ranks = b->a.ranks,
        .n_slots = slots,
        .tokens = s->tokens,
        .cost = *cost,
        .max_copies = -1,
        .collectives_us =
            b->a.devices > 1 ? fkv_split_collectives_us(&all, &b->config, slots, b->a.devices) : 0};
    if (fkv_plan_solve(&p, (fkv_plan_mode)mode, &plan, &err)) die("plan", &err);
    return plan;
}

static int64_t pages_of(const bench *b, const setting *s, const fkv_plan *plan)
{
    return fkv_measure_limits(plan, s->profile.budgets, b->a.prompt, b->a.steps + 1).arena_pages;
}

/* The most slots, in whole steps, that a backend serves and whose pages fit the fullest rank. */
static int most_slots(bench *b, const setting *s, int mode)
{
    const fkv_cost stated = fkv_cost_gpu(&b->config),
                   *cost = mode == FKV_PLAN_STANDARD ? &stated : constants(b, s, SLOT_STEP, false);
    fkv_plan plan = solve(b, s, SLOT_STEP, FKV_PLAN_STANDARD, cost);
    int64_t all = 0, pages = pages_of(b, s, &plan);
    fkv_plan_free(&plan);
    for (int i = 0; i < b->config.n_layers * KV_HEADS; i++)
        all += fkv_head_pages(s->profile.budgets[i], b->a.prompt, b->a.steps + 1) * SLOT_STEP;
    if (mode != FKV_PLAN_STANDARD) pages = all / b->a.ranks; /* of a rank at the least */
    int slots = (int)(b->room / (pages > 0 ? pages : 1)) * SLOT_STEP;
    if (slots > MOST_SLOTS) slots = MOST_SLOTS;
    while (mode != FKV_PLAN_STANDARD && slots > 0) {
        plan = solve(b, s, slots, mode, cost);
        pages = pages_of(b, s, &plan);
        fkv_plan_free(&plan);
        if (pages <= b->room) break;
        const int fewer = (int)((double)slots * (double)b->room / (double)pages) / SLOT_STEP * SLOT_STEP;
        slots = fewer < slots ? fewer : slots - SLOT_STEP;
    }
    return slots;
}

static double rank_times(const bench *b, double *balance)
{
    double s[MAX_LAYERS * MAX_RANKS], slowest = 0, all = 0;
    *balance = NAN;
    if (!fkv_measure_segments(b->engine, s)) return NAN; /* this backend records none */
    for (int l = 0; l < b->config.n_layers; l++) {
        double most = 0;
        for (int r = 0; r < b->a.ranks; r++) {
            most = fmax(most, s[l * b->a.ranks + r]);
            all += s[l * b->a.ranks + r];
        }
        slowest += most;
    }
    *balance = slowest * b->a.ranks / all;
    return slowest;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static measured time_mode(bench *b, const setting *s, int slots, int mode)
{
    fkv_err err = {0};
    const fkv_cost *cost = constants(b, s, slots, false);
    fkv_plan plan = solve(b, s, slots, mode, cost);
    const fkv_engine_kv_limits limits =
        fkv_measure_limits(&plan, s->profile.budgets, b->a.prompt, b->a.steps + 1);
    measured m = {.fits = limits.arena_pages <= b->room};
    double *steps = calloc((size_t)b->a.steps, sizeof *steps), balance;
    printf("%-34s %6lld %4d %-12s ", s->name, (long long)s->budget, slots,
           fkv_plan_mode_name((fkv_plan_mode)mode));
    if (!m.fits) {
        printf("does not fit: %lld pages for the fullest rank, which has %lld\n",
               (long long)limits.arena_pages, (long long)b->room);
        goto out;
    }
    if (fkv_engine_resize(b->engine, slots, b->a.prompt, b->a.prompt + b->a.steps + 1, &err))
        die("resize", &err);
    if (fkv_engine_set_plan(b->engine, b->weights, s->profile.budgets, &plan, &limits, &err))
        die("set_plan", &err);
    const fkv_status st = fkv_measure_decode(b->engine, b->a.prompt, b->a.steps, steps, &err);
    if (st && st != FKV_E_INPUT) die("decode", &err);
    if (st) { /* copies and wider buffers took what was left */
        m.fits = false;
        printf("does not fit: %s\n", err.message);
        fkv_engine_clear_plan(b->engine);
        goto out;
    }
    m.segments = rank_times(b, &balance);
    qsort(steps, (size_t)b->a.steps, sizeof *steps, by_value);
    m.step = steps[b->a.steps / 2];
    m.best = steps[0];
    const fkv_cost stated = fkv_cost_gpu(&b->config), all = fkv_cost_complete(cost, &stated);
    const double links =
                     b->a.devices > 1 ? fkv_split_collectives_us(&all, &b->config, slots, b->a.devices) : 0,
                 common = 1e-6 * b->config.n_layers * (cost->common_us + links),
                 predicted = 1e-6 * plan.step_us;
    printf("%7.2f %7.2f %8.0f  %6.2f %6.2f  %6.2f %6.2f  %7.2f %+6.1f%%  %5.2f %6.2f  %5d\n", 1e3 * m.step,
           1e3 * m.best, slots / m.step, 1e3 * m.segments, 1e3 * (predicted - common),
           1e3 * (m.step - m.segments), 1e3 * common, 1e3 * predicted, 100 * (predicted / m.step - 1),
           balance, 1e-3 * plan.lower_bound_us, fkv_plan_copies(&plan));
    fkv_engine_clear_plan(b->engine);
out:
    fkv_plan_free(&plan);
    free(steps);
    return m;
}

/* All modes of a setting with so many slots; 0: see above. */
static void time_slots(bench *b, const setting *s, int slots)
{
    measured m[MODES] = {0};
    const int each = slots ? slots : most_slots(b, s, FKV_PLAN_STANDARD);
    if (each < 1) {
        printf("%-34s %6lld: not even %d slots fit\n", s->name, (long long)s->budget, SLOT_STEP);
        return;
    }
    constants(b, s, each, slots > 0 || b->n_costs == 0);
    for (int mode = 0; mode < MODES; mode++)
        if (strstr(b->a.modes, fkv_plan_mode_name((fkv_plan_mode)mode)))
            m[mode] = time_mode(b, s, each, mode);
    const measured *fair = &m[FKV_PLAN_FAIR_COPYING], *standard = &m[FKV_PLAN_STANDARD];
    if (!fair->fits || !standard->fits) return;
    printf("%-34s gain of fair-copying: %.3fx, of the segments alone %.3fx", "", standard->step / fair->step,
           standard->segments / fair->segments);
    const int own = slots ? 0 : most_slots(b, s, FKV_PLAN_FAIR_COPYING);
    printf("\n");
    if (own <= each) return;
    const measured more = time_mode(b, s, own, FKV_PLAN_FAIR_COPYING);
    if (more.fits)
        printf("%-34s tokens/s of each mode's most slots: %.3fx\n", "",
               own / more.step / (each / standard->step));
}

static void time_prefills(bench *b)
{
    for (int i = 0; i < b->a.n_prefill; i++) {
        const int64_t n = b->a.prefill[i];
        double best = 1e9, s;
        fkv_err err = {0};
        int32_t *ids = calloc((size_t)n + 1, sizeof *ids);
        for (int64_t t = 0; t < n; t++) ids[t] = (int32_t)(t * 7919 % b->config.vocab);
        for (int k = 0; n > 0 && k < 3; k++) {
            if (fkv_measure_prefill(b->engine, ids, n, &s, &err)) die("prefill", &err);
            best = fmin(best, s);
        }
        if (n > 0)
            printf("prefill of %lld tokens, %d layers on %d devices: %.4f s, %.0f tokens/s\n", (long long)n,
                   b->config.n_layers, b->a.devices, best, (double)n / best);
        free(ids);
    }
}

static setting make(const bench *b, const char *file, double floor, int64_t budget)
{
    setting s = {.budget = budget};
    fkv_err err = {0};
    double scores[MAX_LAYERS * KV_HEADS];
    s.name = strrchr(file, '/') ? strrchr(file, '/') + 1 : file;
    if (fkv_profile_init(&s.profile, b->config.n_layers, KV_HEADS, &err)) die("profile", &err);
    read_scores(file, b->config.n_layers, scores);
    fkv_budget_from_scores(&s.profile, scores, budget, 32, floor);
    s.profile.mean_output = b->a.steps;
    if (!(s.profile.prompt_tokens = malloc(sizeof *s.profile.prompt_tokens))) die("profile", NULL);
    s.profile.prompt_tokens[0] = (int32_t)b->a.prompt; /* heads keep no more, whatever their budget */
    s.profile.n_sample = 1;
    fkv_cost_tokens(&s.profile, s.tokens);
    return s;
}

/* Pages that a rank's arena can have, with a thirty-second in reserve for copies and wider buffers. */
static void measure_room(bench *b)
{
    fkv_err err = {0};
    fkv_engine_stats stats;
    fkv_device_info info;
    setting s = {.budget = b->a.prompt};
    if (fkv_profile_init(&s.profile, b->config.n_layers, KV_HEADS, &err)) die("profile", &err);
    fkv_budget_uniform(&s.profile, b->a.prompt);
    for (int i = 0; i < b->config.n_layers * KV_HEADS; i++) s.tokens[i] = (double)b->a.prompt;
    const fkv_cost cost = fkv_cost_gpu(&b->config);
    fkv_plan plan =
        solve(b, &s, (int)b->a.slots[0] ? (int)b->a.slots[0] : SLOT_STEP, FKV_PLAN_STANDARD, &cost);
    fkv_engine_kv_limits limits = fkv_measure_limits(&plan, s.profile.budgets, b->a.prompt, b->a.steps + 1);
    limits.arena_pages = 0;
    if (fkv_engine_set_plan(b->engine, b->weights, s.profile.budgets, &plan, &limits, &err))
        die("set_plan", &err);
    fkv_engine_stats_get(b->engine, &stats);
    fkv_engine_info(b->engine, &info);
    const int64_t page = fkv_kv_page_bytes(FKV_KV_PLAIN, b->config.head_dim, info.kv_bytes);
    b->room = stats.kv_arena_bytes / b->a.ranks / page;
    b->room -= b->room / 32;
    printf("%s: %d devices, %d ranks, %d layers; %.1f GB of pages a rank\n", info.name, b->a.devices,
           b->a.ranks, b->config.n_layers, 1e-9 * (double)(b->room * page));
    fkv_engine_clear_plan(b->engine);
    fkv_plan_free(&plan);
    fkv_profile_free(&s.profile);
}

static void time_file(bench *b, char *file)
{
    char *at = strchr(file, '@');
    const double floor = at ? atof(at + 1) : 0.2;
    if (at) *at = 0;
    for (int i = 0; i < b->a.n_budgets; i++) {
        setting s = make(b, file, floor, b->a.budgets[i]);
        for (int k = 0; k < b->a.n_slots; k++) {
            if (time_is_over(b))
                printf("%s, budget %lld, slots %lld: no time left\n", s.name, (long long)s.budget,
                       (long long)b->a.slots[k]);
            else
                time_slots(b, &s, (int)b->a.slots[k]);
        }
        fkv_profile_free(&s.profile);
    }
}

int main(int argc, char **argv)
{
    bench b = {.a = parse(argc, argv), .begin = fkv_seconds()};
    fkv_err err = {0};
    setvbuf(stdout, NULL, _IOLBF, 0);
    b.config = large_model(b.a.shape);
    if (b.a.layers > 0 && b.a.layers < b.config.n_layers) b.config.n_layers = b.a.layers;
    b.backend = fkv_backend_find(b.a.backend);
    if (!b.backend) die("no such backend here", NULL);
    if (fkv_safetensors_open_dummy(1, (size_t)b.config.vocab * (size_t)b.config.hidden,
                                   (size_t)b.config.hidden, &b.weights, &err))
        die("weights", &err);
    const fkv_engine_options o = {.backend = b.backend,
                                  .n_ranks = b.a.ranks,
                                  .n_devices = b.a.devices,
                                  .n_slots = b.a.slots[0] ? (int)b.a.slots[0] : SLOT_STEP,
                                  .max_prompt = b.a.prompt,
                                  .window = 32,
                                  .kernel = 7};
    if (fkv_engine_open(&b.config, b.weights, &o, &b.engine, &err)) die("open", &err);
    time_prefills(&b);
    if (b.a.n_slots > 0 && b.a.n_budgets > 0) measure_room(&b);
    printf("%-34s %6s %4s %-12s %7s %7s %8s  %6s %6s  %6s %6s  %7s %7s  %5s %6s  %5s\n", "scores", "budget",
           "slots", "mode", "step ms", "best", "tokens/s", "segm.", "pred.", "rest", "pred.", "step p.",
           "off", "bal.", "bound", "copies");
    char *files = strdup(b.a.scores), *rest = files;
    for (char *file = strtok_r(rest, ",", &rest); file; file = strtok_r(NULL, ",", &rest))
        time_file(&b, file);
    printf("%.0f s in all\n", fkv_seconds() - b.begin);
    free(files);
    fkv_engine_close(b.engine);
    fkv_safetensors_close(b.weights);
    return 0;
}
