/* Any bytes as profile.json, as a budgets file and as a scores file. A profile
 * that is accepted is written and read back unchanged. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/plan/budget.h"
#include "tests/fuzz/folder.h"
#include "tests/fuzz/json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *path, *copy_path;

static void check(int ok)
{
    if (!ok) abort();
}

static void read_profile(void)
{
    fkv_profile p = {0}, q = {0};
    fkv_err err = {0};
    char *print = NULL, *again = NULL;
    if (!fkv_profile_read(path, &p, &print, &err)) {
        check(!fkv_profile_write(&p, "m", print, copy_path, &err));
        check(!fkv_profile_read(copy_path, &q, &again, &err));
        const size_t n = (size_t)p.n_layers * (size_t)p.n_kv_heads;
        check(q.n_layers == p.n_layers && q.n_kv_heads == p.n_kv_heads && q.mean_budget == p.mean_budget);
        check(!memcmp(p.budgets, q.budgets, n * sizeof *p.budgets) && q.n_sample == p.n_sample);
        for (int i = 0; i < p.n_sample; i++) check(p.prompt_tokens[i] == q.prompt_tokens[i]);
        check(p.mean_output == q.mean_output && !strcmp(print, again));
        check(!strcmp(p.score, q.score) && (!p.score[0] || p.sinks == q.sinks));
    } else {
        check(!print && err.message[0]);
    }
    free(again);
    free(print);
    fkv_profile_free(&q);
    fkv_profile_free(&p);
}

static void read_budgets(void)
{
    fkv_profile p;
    fkv_err err = {0};
    check(!fkv_profile_init(&p, 2, 2, &err));
    if (!fkv_budget_read_file(path, &p, &err))
        for (int i = 0; i < 4; i++) check(p.budgets[i] >= 1 && p.budgets[i] <= FKV_BUDGET_MAX);
    fkv_profile_free(&p);
}

/* Whatever the scores are, the budgets' sum is exact. */
static void read_scores(void)
{
    fkv_profile p;
    fkv_err err = {0};
    double scores[4];
    int64_t sum = 0;
    if (fkv_scores_read_file(path, 2, 4, 2, scores, &err)) return;
    check(!fkv_profile_init(&p, 2, 2, &err));
    fkv_budget_from_scores(&p, scores, 1000, 32, 0.25);
    for (int i = 0; i < 4; i++) sum += p.budgets[i];
    check(sum == 4000);
    sum = 0;
    fkv_budget_from_counts(&p, scores, 1, 1000);
    for (int i = 0; i < 4; i++) sum += p.budgets[i];
    check(sum == 4000);
    fkv_profile_free(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!path) {
        make_folder();
        path = in_folder("profile.json");
        copy_path = in_folder("copy.json");
    }
    put_file(path, data, size);
    read_profile();
    read_budgets();
    read_scores();
    return 0;
}
