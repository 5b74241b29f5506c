/* Decode steps of a sharded model with every rank timed alone on one GPU, by plan mode.
 *
 * usage: bench_ranks SCORES [RANKS=8] [FLOOR=0.2] [BACKEND=cuda] [SLOTS=64,128] [BUDGETS=1024,4096,8192]
 * The 70B shape with dummy weights; layer l takes the scores of layer l * n / 80 of the
 * file's n layers. A rank's step runs all its layers in sequence as it is replayed; its
 * attention segments are timed inside. The step is what R devices would take: the common
 * part (the mean over the ranks) and, over the layers, the slowest rank's segment;
 * gathers between devices are not in it. Beside it what the plan predicted, by constants
 * calibrated in the same call.
 */
#include <math.h>

#include "engine/engine.h"
#include "engine/measure/calibrate.h"
#include "engine/measure/measure.h"
#include "tests/bench/large_model.h"

enum { LAYERS = 80, KV_HEADS = 8, MAX_RANKS = 8, STEPS = 12, MODES = 3, MAX_BUDGETS = 4 };

static fkv_config shape;

/* One budget and mode: its plan, and what was measured rank by rank. */
typedef struct setting {
    int64_t budget;
    int mode;
    fkv_profile profile;
    fkv_plan plan;
    double segment[LAYERS][MAX_RANKS], rest[MAX_RANKS]; /* seconds */
    double tokens[LAYERS * KV_HEADS], common_us;
} setting;

/* As a run measures them before it plans; kept for the modes of one budget. */
static fkv_cost constants(const setting *s, const fkv_backend *backend, int ranks, int slots)
{
    static fkv_calibration c;
    static int64_t budget;
    static int for_slots;
    fkv_err err = {0};
    double mean = 0;
    if (budget == s->budget && for_slots == slots) return c.cost;
    for (int i = 0; i < LAYERS * KV_HEADS; i++) mean += s->tokens[i] / (LAYERS * KV_HEADS);
    const fkv_calibration_task task = {.backend = backend,
                                       .config = &shape,
                                       .n_ranks = ranks,
                                       .n_devices = 1,
                                       .n_slots = slots,
                                       .mean_tokens = mean};
    if (fkv_calibration_measure(&task, &c, &err)) die("calibration", &err);
    budget = s->budget;
    for_slots = slots;
    printf(
        "slots %d budget %lld: t0 %.2f us, head %.2f, slot and head %.4f, token %.6f, common %.1f; fit error "
        "%.1f%%; prefill %.3f us a token, %.2e us a pair\n",
        slots, (long long)budget, c.cost.t0_us, c.cost.head_us, c.cost.slot_head_us, c.cost.token_us,
        c.cost.common_us, 100 * c.fit_error, c.cost.prefill_token_us, c.cost.prefill_pair_us);
    return c.cost;
}

static void make(setting *s, const fkv_backend *backend, const double *scores, double floor, int ranks,
                 int slots)
{
    fkv_err err = {0};
    if (fkv_profile_init(&s->profile, LAYERS, KV_HEADS, &err)) die("profile", &err);
    fkv_budget_from_scores(&s->profile, scores, s->budget, 32, floor);
    s->profile.mean_output = STEPS;
    fkv_cost_tokens(&s->profile, s->tokens);
    const fkv_plan_problem p = {
        LAYERS, KV_HEADS, ranks, slots, s->tokens, constants(s, backend, ranks, slots), -1, 0};
    s->common_us = LAYERS * p.cost.common_us;
    if (fkv_plan_solve(&p, (fkv_plan_mode)s->mode, &s->plan, &err)) die("plan", &err);
}

static void time_rank(setting *s, fkv_engine *e, const fkv_safetensors *w, int rank, int64_t prompt)
{
    fkv_err err = {0};
    double step[STEPS], segments[LAYERS], sum = 0, best = 1e9;
    const fkv_engine_kv_limits limits = fkv_measure_limits(&s->plan, s->profile.budgets, prompt, STEPS + 1);
    if (fkv_engine_set_plan(e, w, s->profile.budgets, &s->plan, &limits, &err)) die("set_plan", &err);
    if (fkv_measure_decode(e, prompt, STEPS, step, &err)) die("decode", &err);
    if (!fkv_measure_segments(e, segments)) die("this backend records no segments", NULL);
    for (int i = 3; i < STEPS; i++) best = step[i] < best ? step[i] : best;
    for (int l = 0; l < LAYERS; l++) sum += s->segment[l][rank] = segments[l];
    s->rest[rank] = best - sum;
    fkv_engine_clear_plan(e);
}

static void print(const setting *s, int ranks, int slots)
{
    double rest = 0, slowest = 0, all = 0, most = 0;
    for (int r = 0; r < ranks; r++) rest += s->rest[r] / ranks;
    for (int l = 0; l < LAYERS; l++) {
        double top = 0;
        for (int r = 0; r < ranks; r++) {
            top = fmax(top, s->segment[l][r]);
            all += s->segment[l][r];
        }
        slowest += top;
    }
    const double us[] = {s->plan.standard_us, s->plan.best_effort_us, s->plan.fair_copying_us};
    for (int r = 0; r < ranks; r++) most = fmax(most, s->rest[r]);
    printf("70B ranks %d slots %3d budget %5lld %-12s segments %7.3f ms (predicted %7.3f, bound %7.3f), "
           "common %6.3f (predicted %6.3f, most %6.3f), step %7.3f ms (predicted %7.3f), balance %.2f, "
           "copies %d\n",
           ranks, slots, (long long)s->budget, fkv_plan_mode_name(s->mode), 1e3 * slowest,
           1e-3 * (us[s->mode] - s->common_us), 1e-3 * (s->plan.lower_bound_us - s->common_us), 1e3 * rest,
           1e-3 * s->common_us, 1e3 * most, 1e3 * (rest + slowest), 1e-3 * us[s->mode], slowest * ranks / all,
           fkv_plan_copies(&s->plan));
}

int main(int argc, char **argv)
{
    if (argc < 2) die("see the head of bench_ranks.c", NULL);
    const int ranks = argc > 2 ? atoi(argv[2]) : 8;
    const double floor = argc > 3 ? atof(argv[3]) : 0.2;
    int64_t slot_list[4], budgets[MAX_BUDGETS];
    const int n_slot_list = parse_list(argc > 5 ? argv[5] : "64,128", slot_list, 4);
    const int n_budgets = parse_list(argc > 6 ? argv[6] : "1024,4096,8192", budgets, MAX_BUDGETS);
    const fkv_backend *backend = fkv_backend_find(argc > 4 ? argv[4] : "cuda");
    double scores[LAYERS * KV_HEADS];
    fkv_err err = {0};
    fkv_safetensors *w;
    if (!backend) die("no such backend here", NULL);
    setting *all = calloc(MAX_BUDGETS * MODES, sizeof *all);
    shape = large_model("70b");
    read_scores(argv[1], LAYERS, scores);
    if (fkv_safetensors_open_dummy(1, (size_t)shape.vocab * 8192, 8192, &w, &err)) die("weights", &err);
    for (int k = 0; k < n_slot_list; k++) {
        const int slots = (int)slot_list[k];
        int64_t longest = 0;
        for (int i = 0; i < n_budgets * MODES; i++) {
            all[i] = (setting){.budget = budgets[i / MODES], .mode = i % MODES};
            make(&all[i], backend, scores, floor, ranks, slots);
            for (int h = 0; h < LAYERS * KV_HEADS; h++)
                longest = all[i].profile.budgets[h] > longest ? all[i].profile.budgets[h] : longest;
        }
        for (int r = 0; r < ranks; r++) {
            fkv_engine *e = NULL;
            const fkv_engine_options o = {.backend = backend,
                                          .n_ranks = ranks,
                                          .n_devices = 1,
                                          .n_slots = slots,
                                          .max_prompt = longest,
                                          .window = 32,
                                          .kernel = 7,
                                          .solo = true,
                                          .solo_rank = r};
            if (fkv_engine_open(&shape, w, &o, &e, &err)) die("open", &err);
            for (int i = 0; i < n_budgets * MODES; i++) time_rank(&all[i], e, w, r, longest);
            fkv_engine_close(e);
            fprintf(stderr, "slots %d: rank %d timed\n", slots, r);
        }
        for (int i = 0; i < n_budgets * MODES; i++) {
            print(&all[i], ranks, slots);
            fkv_plan_free(&all[i].plan);
            fkv_profile_free(&all[i].profile);
        }
        fflush(stdout);
    }
    fkv_safetensors_close(w);
    free(all);
    return 0;
}
