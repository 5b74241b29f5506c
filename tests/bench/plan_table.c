/* plan_table FILE...: how good plans are on published head scores.
 * plan_table --time: how long the largest plans take; exit 1 beyond their limits.
 *
 * For every file ({"scores": [layers][query heads or 8 KV heads]}), two model shapes
 * and all combinations of floor, ranks, mean budget and slots it solves the plan and prints, summed over the
 * layers, the attention segment of standard, best-effort and fair-copying, the bound, the gap to it, what the
 * segment and the whole step gain, and the copies. The output has no times of
 * its own, so it is the same on every machine.
 *
 * Files *.headkv.json and *.duo.json hold heads' scores, of which a share is spread evenly (floor); others
 * hold kept tokens, which are budgets as they are: floor 0. Layer l of a shape takes the file's layer l * n /
 * layers.
 *
 * Constants: an H200 copies 4.27 TB/s; bf16 weights and KV. Start-up and
 * gathers count nothing, and the rest of a step is the bytes of the output
 * projection and the MLP, so gains are the most that the device could show. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/plan/budget.h"
#include "engine/plan/plan.h"
#include "runner/base/hash.h"
#include "runner/base/json.h"
#include "runner/base/layer_spec.h"

enum { MOST_LAYERS = 80, MOST_HEADS = 128, N_KV_HEADS = 8, HEAD_DIM = 128, WINDOW = 32, MAX_LAYERS = 80 };
#define BYTES_PER_US 4.27e6
#define BF16_BYTES   2.0

typedef struct shape {
    const char *name;
    int n_layers, hidden, group, intermediate;
} shape;

static const shape shapes[] = {{"8B", 32, 4096, 4, 14336}, {"70B", 80, 8192, 8, 28672}};
static const double floors[] = {0.2, 0.5};
static const int ranks[] = {2, 4, 8}, budgets[] = {128, 1024, 8192}, slots[] = {16, 64, 256};

enum { SEGMENT_GAINS, STEP_GAINS, NOTHING, KINDS };
static const char *const kind_names[KINDS] = {"the attention segment gains 1.66x or more",
                                              "the whole step gains 1.66x or more",
                                              "the segment gains nothing (less than 0.5 %)"};

/* What the closing lines say. */
typedef struct totals {
    int n, n_each;       /* settings; files and floors */
    double worst_gap[3]; /* by slots */
    /* Of the files and floors at [shape][ranks][budget][slots]. */
    int at[KINDS][2][3][3][3];
} totals;

static fkv_cost h200(const shape *m, int n_ranks)
{
    const double us_per_value = BF16_BYTES / BYTES_PER_US;
    const double output = (double)m->hidden * m->hidden, mlp = 3.0 * m->intermediate * m->hidden;
    return (fkv_cost){.head_us = (double)fkv_head_rows(m->group) * HEAD_DIM * m->hidden * us_per_value,
                      .token_us = 2.0 * HEAD_DIM * us_per_value,
                      .common_us = (output + mlp) / n_ranks * us_per_value};
}

static fkv_status row(const char *name, const shape *m, const fkv_profile *profile, double floor_,
                      int i_ranks, int i_budget, int i_slots, totals *sum, fkv_err *err)
{
    static double tokens[MAX_LAYERS * N_KV_HEADS];
    fkv_plan plan;
    fkv_cost_tokens(profile, tokens);
    const fkv_plan_problem p = {.n_layers = m->n_layers,
                                .n_kv_heads = N_KV_HEADS,
                                .n_ranks = ranks[i_ranks],
                                .n_slots = slots[i_slots],
                                .tokens = tokens,
                                .cost = h200(m, ranks[i_ranks]),
                                .max_copies = -1};
    fkv_status st = fkv_plan_solve(&p, FKV_PLAN_FAIR_COPYING, &plan, err);
    if (st) return st;
    const double common = m->n_layers * p.cost.common_us;
    const double standard = plan.standard_us - common, fair = plan.fair_copying_us - common;
    const double bound = plan.lower_bound_us - common, gap = fair / bound - 1;
    const double segment = standard / fair, step = plan.standard_us / plan.fair_copying_us;
    printf("%-46s %-3s %5.1f %5d %6d %5d %9.1f %9.1f %9.1f %9.1f %6.2f %7.2f %6.2f %6.2f\n", name, m->name,
           floor_, ranks[i_ranks], budgets[i_budget], slots[i_slots], standard, plan.best_effort_us - common,
           fair, bound, 100 * gap, segment, step, (double)fkv_plan_copies(&plan) / m->n_layers);
    const int kinds[KINDS] = {segment >= 1.66, step >= 1.66, segment < 1.005};
    sum->n++;
    for (int k = 0; k < KINDS; k++) sum->at[k][m - shapes][i_ranks][i_budget][i_slots] += kinds[k];
    if (gap > sum->worst_gap[i_slots]) sum->worst_gap[i_slots] = gap;
    fkv_plan_free(&plan);
    return FKV_OK;
}

/* The file's scores of every KV head. */
static fkv_status read_scores(const char *path, double *scores, int *n_layers, fkv_err *err)
{
    json_t *root;
    int64_t layers, heads;
    fkv_status st = fkv_json_load(path, 1 << 24, &root, err);
    if (st) return st;
    st = fkv_json_i64(root, "n_layers", 1, MOST_LAYERS, path, &layers, err);
    if (!st) st = fkv_json_i64_or(root, "n_heads", N_KV_HEADS, MOST_HEADS, N_KV_HEADS, path, &heads, err);
    json_decref(root);
    *n_layers = st ? 0 : (int)layers;
    return st ? st : fkv_scores_read_file(path, *n_layers, (int)heads, N_KV_HEADS, scores, err);
}

static bool ends_in(const char *name, const char *end)
{
    const size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

static fkv_status rows(const char *name, const shape *m, fkv_profile *profile, const double *scores,
                       double floor_, totals *sum, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (int r = 0; r < 3; r++)
        for (int b = 0; b < 3; b++) {
            fkv_budget_from_scores(profile, scores, budgets[b], WINDOW, floor_);
            for (int s = 0; !st && s < 3; s++) st = row(name, m, profile, floor_, r, b, s, sum, err);
        }
    return st;
}

static fkv_status table(const char *path, totals *sum, fkv_err *err)
{
    static double scores[MOST_LAYERS * N_KV_HEADS], spread[MAX_LAYERS * N_KV_HEADS];
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    const bool kept = !ends_in(name, ".headkv.json") && !ends_in(name, ".duo.json");
    int n;
    fkv_status st = read_scores(path, scores, &n, err);
    for (size_t i = 0; !st && i < sizeof shapes / sizeof *shapes; i++) {
        const shape *m = &shapes[i];
        fkv_profile profile;
        if ((st = fkv_profile_init(&profile, m->n_layers, N_KV_HEADS, err))) return st;
        for (int l = 0; l < m->n_layers; l++)
            memcpy(spread + (size_t)l * N_KV_HEADS, scores + (size_t)(l * n / m->n_layers) * N_KV_HEADS,
                   N_KV_HEADS * sizeof *scores);
        for (int f = 0; !st && f < (kept ? 1 : 2); f++)
            st = rows(name, m, &profile, spread, kept ? 0 : floors[f], sum, err);
        fkv_profile_free(&profile);
    }
    sum->n_each += kept ? 1 : 2;
    return st;
}

/* Where each kind of gain shows: settings of one shape and number of ranks a line. */
static void print_kinds(const totals *sum)
{
    for (int k = 0; k < KINDS; k++) {
        int n = 0;
        for (int i = 0; i < 54; i++) n += (&sum->at[k][0][0][0][0])[i];
        printf("\n%s at %d settings (budget x slots: of %d files and floors)\n", kind_names[k], n,
               sum->n_each);
        for (int m = 0; m < 2; m++)
            for (int r = 0; r < 3; r++) {
                const char *between = "";
                for (int i = 0; i < 9; i++) {
                    const int count = sum->at[k][m][r][i / 3][i % 3];
                    if (!count) continue;
                    if (!*between) printf("  %-3s %d ranks: ", shapes[m].name, ranks[r]);
                    printf("%s%d x %d: %d", between, budgets[i / 3], slots[i % 3], count);
                    between = ", ";
                }
                if (*between) printf("\n");
            }
    }
}

/* Random heads, some ten times the others. */
static int time_one(int n_layers, int n_heads, int n_ranks, double limit)
{
    static double tokens[80 * 64];
    struct timespec from, to;
    fkv_plan plan;
    fkv_err err = {0};
    for (int i = 0; i < n_layers * n_heads; i++)
        tokens[i] = 200 + 3000 * pow((double)(fkv_random_u64(5, 0, (uint64_t)i) % 1000) / 1000, 4);
    const fkv_plan_problem p = {.n_layers = n_layers,
                                .n_kv_heads = n_heads,
                                .n_ranks = n_ranks,
                                .n_slots = 64,
                                .tokens = tokens,
                                .cost = h200(&shapes[1], n_ranks),
                                .max_copies = -1};
    clock_gettime(CLOCK_MONOTONIC, &from);
    if (fkv_plan_solve(&p, FKV_PLAN_FAIR_COPYING, &plan, &err)) return 1;
    clock_gettime(CLOCK_MONOTONIC, &to);
    const double secs = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    printf("%d layers x %d heads x %d ranks: %.3f s (limit %.1f s), %.2f %% above the bound\n", n_layers,
           n_heads, n_ranks, secs, limit, 100 * (plan.fair_copying_us / plan.lower_bound_us - 1));
    fkv_plan_free(&plan);
    return secs > limit;
}

int main(int argc, char **argv)
{
    fkv_err err = {0};
    totals sum = {0};
    if (argc < 2) {
        fprintf(stderr, "usage: plan_table SCORES.json... | --time\n");
        return 2;
    }
    if (!strcmp(argv[1], "--time")) return time_one(80, 8, 8, 0.2) | time_one(80, 64, 16, 5);
    printf("made by: build/tests/plan_table ../shared/profiles/*.json > tests/bench/plan_table.txt\n\n");
    printf("attention segment summed over layers, us; gap in %%; gains over standard; copies a layer\n");
    printf("%-46s %-3s %5s %5s %6s %5s %9s %9s %9s %9s %6s %7s %6s %6s\n", "scores", "", "floor", "ranks",
           "budget", "slots", "standard", "best-eff", "fair-copy", "bound", "gap", "segment", "step",
           "copies");
    for (int i = 1; i < argc; i++)
        if (table(argv[i], &sum, &err)) {
            char text[1024];
            fkv_err_format(&err, text, sizeof text);
            fprintf(stderr, "plan_table: %s\n", text);
            return fkv_exit_code(err.status);
        }
    printf("\n%d settings; widest gap: %.2f %% at 16 slots, %.2f %% at 64, %.2f %% at 256\n", sum.n,
           100 * sum.worst_gap[0], 100 * sum.worst_gap[1], 100 * sum.worst_gap[2]);
    print_kinds(&sum);
    return 0;
}
