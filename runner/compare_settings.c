/* What a comparison tries: see compare.h. */
#include <stdlib.h>
#include <string.h>

#include "runner/compare.h"

/* The next word of a list with commas; false: there is none. A word that is too long is cut, and so is none
 * that may stand there. */
static bool next_word(const char **list, char word[32])
{
    const char *p = *list;
    if (!*p) return false;
    const size_t n = strcspn(p, ",");
    snprintf(word, 32, "%.*s", (int)(n < 31 ? n : 31), p);
    *list = p + n + (p[n] == ',');
    return true;
}

static fkv_status find_scorer(const char *word, fkv_scorer *out, fkv_err *err)
{
    char known[256] = "";
    for (int i = 0; i < FKV_N_SCORERS; i++) {
        const char *name = fkv_scorer_name((fkv_scorer)i);
        const size_t n = strlen(known);
        *out = (fkv_scorer)i;
        if (!strcmp(word, name)) return FKV_OK;
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", name);
    }
    return fkv_fail(err, FKV_E_INPUT, "compare: --scorers: there is no scorer \"%s\", but %s", word, known);
}

/* "20%" or "1024". */
static fkv_status parse_budget(const char *word, fkv_job *job, fkv_err *err)
{
    char *end;
    job->profile.budget = 0;
    job->profile.budget_percent = 0;
    const size_t n = strspn(word, "0123456789.");
    const bool digits = n > 0 && word[0] != '.' && (!word[n] || !strcmp(word + n, "%"));
    const double value = digits ? strtod(word, &end) : 0;
    if (digits && !strcmp(end, "%") && value > 0 && value <= 100) {
        job->profile.budget_percent = value;
        return FKV_OK;
    }
    if (!digits || *end || strchr(word, '.') || value > FKV_BUDGET_MAX)
        return fkv_fail(
            err, FKV_E_INPUT,
            "compare: --budgets: \"%s\" is neither a number of tokens nor a percentage up to 100%%", word);
    job->profile.budget = (int64_t)value;
    if (job->profile.budget < job->profile.window + job->profile.sinks)
        return fkv_fail(err, FKV_E_INPUT,
                        "compare: --budgets: %s is less than profile.window, %lld, and profile.sinks, %lld",
                        word, (long long)job->profile.window, (long long)job->profile.sinks);
    return FKV_OK;
}

static fkv_status add(fkv_comparison *c, const char *scorer, const char *budget, fkv_compare_setting **out,
                      fkv_err *err)
{
    if (c->n_settings == FKV_COMPARE_SETTINGS)
        return fkv_fail(err, FKV_E_INPUT, "compare: more than %d budgets and scorers to try",
                        FKV_COMPARE_SETTINGS - 1);
    fkv_compare_setting *s = &c->settings[c->n_settings++];
    *s = (fkv_compare_setting){.scorer = scorer, .job = *c->setup->job, .setup = *c->setup};
    s->setup.job = &s->job;
    snprintf(s->budget, sizeof s->budget, "%s", budget);
    const size_t n = strcspn(budget, "%");
    if (scorer)
        snprintf(s->name, sizeof s->name, "%.24s-%.*s%s", scorer, (int)n, budget, budget[n] ? "pct" : "");
    else
        snprintf(s->name, sizeof s->name, "whole");
    for (int i = 0; i < c->n_settings - 1; i++)
        if (!strcmp(c->settings[i].name, s->name))
            return fkv_fail(err, FKV_E_INPUT, "compare: %s %s is there twice", scorer, budget);
    *out = s;
    return FKV_OK;
}

/* One scorer at one budget. */
static fkv_status add_compressed(fkv_comparison *c, fkv_scorer scorer, const char *budget, fkv_err *err)
{
    fkv_compare_setting *s;
    const fkv_status st = add(c, fkv_scorer_name(scorer), budget, &s, err);
    if (st) return st;
    s->job.profile.score = (int)scorer; /* the same order: tests/unit/test_planning.c */
    if (s->job.profile.budgets_file) return FKV_OK;
    if (s->job.profile.method == FKV_METHOD_NONE) s->job.profile.method = FKV_METHOD_ADA;
    return parse_budget(budget, &s->job, err);
}

static fkv_status add_whole(fkv_comparison *c, fkv_err *err)
{
    fkv_compare_setting *s;
    const fkv_status st = add(c, NULL, "whole", &s, err);
    if (st) return st;
    s->job.profile.method = FKV_METHOD_NONE;
    s->job.profile.budgets_file = NULL;
    return FKV_OK;
}

fkv_status fkv_compare_settings(const fkv_setup *setup, const fkv_compare_options *options, fkv_comparison *c,
                                fkv_err *err)
{
    const bool file = setup->job->profile.budgets_file != NULL;
    char word[32], budget[32];
    c->setup = setup;
    c->options = *options;
    if (file && options->budgets)
        return fkv_fail(
            err, FKV_E_INPUT,
            "compare: --budgets: the job has profile.budgets_file; -s profile.budgets_file= takes "
            "it out");
    if (!options->budgets) c->options.budgets = file ? "file" : FKV_COMPARE_BUDGETS;
    if (!options->scorers) c->options.scorers = fkv_scorer_name((fkv_scorer)setup->job->profile.score);
    fkv_status st = add_whole(c, err);
    for (const char *list = c->options.scorers; !st && next_word(&list, word);) {
        fkv_scorer scorer;
        st = find_scorer(word, &scorer, err);
        if (!st) c->scorers |= fkv_scorer_bit(scorer);
        for (const char *rest = c->options.budgets; !st && next_word(&rest, budget);)
            st = add_compressed(c, scorer, budget, err);
    }
    if (!st && c->n_settings < 2) st = fkv_fail(err, FKV_E_INPUT, "compare: there is no budget to try");
    return st;
}
