/* A run in a few lines: see summary.h. */
#include "runner/summary.h"

#include <stdarg.h>
#include <string.h>

static void add(fkv_summary *s, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void add(fkv_summary *s, const char *name, const char *fmt, ...)
{
    va_list ap;
    s->at[s->n].name = name;
    va_start(ap, fmt);
    vsnprintf(s->at[s->n].text, sizeof s->at[s->n].text, fmt, ap);
    va_end(ap);
    s->n++;
}

double fkv_summary_seconds(const double seconds[FKV_STAGES])
{
    double sum = 0;
    for (int i = 0; i < FKV_STAGES; i++) sum += seconds[i];
    return sum;
}

const char *fkv_summary_stage(fkv_stage stage)
{
    static const char *const words[FKV_STAGES] = {
        [FKV_STAGE_START] = "reading the job, checking, opening the output",
        [FKV_STAGE_WAIT] = "waiting for another process that makes profile or plan",
        [FKV_STAGE_SAMPLE] = "reading the input for the sample",
        [FKV_STAGE_PROFILE] = "measuring budgets on the sample",
        [FKV_STAGE_LOAD] = "loading weights to the devices",
        [FKV_STAGE_CALIBRATE] = "measuring the device",
        [FKV_STAGE_PLAN] = "choosing sizes, solving the plan",
        [FKV_STAGE_PREFILL] = "answering: the devices read prompts",
        [FKV_STAGE_DECODE] = "answering: the devices write answers",
        [FKV_STAGE_OTHER] = "answering: waiting for input or for the disk",
        [FKV_STAGE_FINISH] = "last shards, manifest",
    };
    return words[stage];
}

static void add_counts(const fkv_stats *s, fkv_summary *out)
{
    const fkv_output_totals *t = &s->totals;
    const double wall = fkv_summary_seconds(s->seconds);
    add(out, "done", "%lld records, %lld of them by earlier runs, %lld errors, in %.1f s (%.1f records/s)",
        (long long)t->records, (long long)t->resumed, (long long)t->errors, wall,
        wall > 0 ? (double)(t->records - t->resumed) / wall : 0.0);
    add(out, "tokens", "%lld in prompts, %lld new, %lld decode steps (%.1f tokens a step)",
        (long long)t->prompt_tokens, (long long)t->completion_tokens, (long long)s->decode_steps,
        s->decode_steps ? (double)t->completion_tokens / (double)s->decode_steps : 0.0);
}

/* Stages of less than half a percent are left out. */
static void add_time(const fkv_stats *s, fkv_summary *out)
{
    const double wall = fkv_summary_seconds(s->seconds);
    char text[400] = "";
    size_t n = 0;
    for (int i = 0; i < FKV_STAGES && n < sizeof text; i++)
        if (s->seconds[i] >= 0.005 * wall && s->seconds[i] > 0)
            n += (size_t)snprintf(text + n, sizeof text - n, "%s%s %.1f s (%.0f%%)", n ? ", " : "",
                                  fkv_stage_name((fkv_stage)i), s->seconds[i], 100 * s->seconds[i] / wall);
    if (n) add(out, "time", "%s", text);
}

static void add_plan(const fkv_stats *s, const fkv_profile *profile, const fkv_plan *plan, fkv_summary *out)
{
    fkv_plan home;
    fkv_err ignored = {0};
    if (!profile->n_layers) return;
    add(out, "KV cache", "%.1f%% of the prompts' K and V kept%s%s, %.1f MiB at most in use",
        100 * fkv_profile_kept_share(profile), profile->score[0] ? " by " : "", profile->score,
        (double)s->kv_bytes / (1 << 20));
    if (plan->n_layers != profile->n_layers || plan->n_kv_heads != profile->n_kv_heads) return;
    if (fkv_plan_at_home(plan, &home, &ignored)) return;
    add(out, "balance",
        "the fullest of %d ranks reads %.2fx the mean of the cache, with %d copied heads; standard "
        "placement: "
        "%.2fx",
        plan->n_ranks, fkv_plan_balance_of(plan, profile), fkv_plan_copies(plan),
        fkv_plan_balance_of(&home, profile));
    fkv_plan_free(&home);
}

void fkv_summary_make(const fkv_stats *stats, const fkv_profile *profile, const fkv_plan *plan,
                      fkv_summary *summary)
{
    *summary = (fkv_summary){0};
    add_counts(stats, summary);
    add_time(stats, summary);
    add_plan(stats, profile, plan, summary);
    if (stats->gpu_seconds > 0 && stats->joules >= 0)
        add(summary, "GPUs", "%.1f GPU seconds, %.0f J", stats->gpu_seconds, stats->joules);
    else if (stats->gpu_seconds > 0)
        add(summary, "GPUs", "%.1f GPU seconds, energy not known", stats->gpu_seconds);
}
