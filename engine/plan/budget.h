/* Head budgets: how many prompt tokens each KV head keeps, and the profile that
 * holds them: pure functions over numbers (budget.c), and its files (profile_file.c).
 *
 * A profile owns its arrays and is freed after a failed init or read, too. Not for measuring scores
 * (engine/engine.h: profile), nor for which tokens are kept (kernels/backend.h: kv_keep). */
#ifndef FKV_ENGINE_BUDGET_H
#define FKV_ENGINE_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

#include "runner/base/buf.h"
#include "runner/base/status.h"

/* Bounds of b and of one head's budget: 1 to FKV_BUDGET_MAX tokens. */
enum { FKV_BUDGET_MAX = 1 << 27 };
enum { FKV_PROFILE_SCORE = 16 }; /* bytes of a scorer's name, with its NUL */

typedef struct fkv_profile {
    int n_layers, n_kv_heads;
    int64_t mean_budget;    /* b; 0 when it came from a budgets file */
    int32_t *budgets;       /* [n_layers][n_kv_heads] */
    int32_t *prompt_tokens; /* [n_sample], the sample's prompt lengths after truncation */
    int32_t *new_tokens;    /* [n_sample], their limits of new tokens; NULL: not known */
    int n_sample;
    double mean_output; /* E[output]: the sample's mean new-token limit */
    /* Of the whole input; 0: not known. Lengths are what records are expected to have at the
     * most; longer ones may come. */
    int64_t n_input, longest_prompt, longest_new;
    /* What ranks a prompt's tokens, by name ("": not known), and its first tokens that are always kept. */
    char score[FKV_PROFILE_SCORE];
    int sinks;
} fkv_profile;

/* Every budget 0, no sample. */
fkv_status fkv_profile_init(fkv_profile *p, int n_layers, int n_kv_heads, fkv_err *err);
void fkv_profile_free(fkv_profile *p);

/* Tokens of the sample's prompt that share of its prompts are no longer than (0.5: the
 * median, 1: the longest); 0 without a sample. */
int64_t fkv_profile_prompt(const fkv_profile *p, double share);

/* Mean over the sample of the share of its prompts' K and V that is kept; 1 without a sample. */
double fkv_profile_kept_share(const fkv_profile *p);

/* Every head gets b. */
void fkv_budget_uniform(fkv_profile *p, int64_t b);

/* F, forced: tokens of a prompt that are kept whatever they score, the last ones and the first. */

/* budget = F + alpha (b - F) + (1 - alpha) (b - F) L K s / sum(s), largest
 * remainder over all layers to L K b (ties: lower layer, then lower head).
 * scores: [n_layers][n_kv_heads]; negative ones and those that are not finite
 * count as 0, all-zero means even. b >= F. */
void fkv_budget_from_scores(fkv_profile *p, const double *scores, int64_t b, int forced, double alpha);

/* Ada-KV count (arXiv 2407.11550) of one prompt and layer: adds the unrounded
 * counts to sum[n_kv_heads]. pooled: [n_kv_heads][n] pooled scores of the
 * n = T - F positions that have one; b >= F. work: n_kv_heads * n floats.
 * Ties: lower head, then lower position. NaN scores rank below all others. */
void fkv_budget_ada_count(const float *pooled, int n_kv_heads, int64_t n, int64_t b, int forced, double alpha,
                          float *work, double *sum);

/* Means of the counts over n_prompts prompts, scaled and rounded so that every
 * layer's sum is n_kv_heads * b (largest remainder; ties: lower head).
 * sums: [n_layers][n_kv_heads]; n_prompts 0: every head gets b. No budget is
 * below 1. */
void fkv_budget_from_counts(fkv_profile *p, const double *sums, int64_t n_prompts, int64_t b);

/* budgets file: format, n_layers, n_kv_heads, budgets of profile.json's form;
 * more keys are allowed. Fills p->budgets (p is initialised with the model's
 * shape; a different shape is an error naming the field). */
fkv_status fkv_budget_read_file(const char *path, fkv_profile *p, fkv_err *err);

/* scores file {"scores": [[...]...]}: per KV head, or per query head, then
 * reduced to the KV head by the mean. out: [n_layers][n_kv_heads]. */
fkv_status fkv_scores_read_file(const char *path, int n_layers, int n_heads, int n_kv_heads, double *out,
                                fkv_err *err);

/* profile.json: write, and read back what was written. fingerprint is any
 * UTF-8; reading gives it (malloc'd) so that the caller can compare. Reading
 * into an initialised p wants its shape, into a zeroed p takes the file's. */
fkv_status fkv_profile_write(const fkv_profile *p, const char *model, const char *fingerprint,
                             const char *path, fkv_err *err);
fkv_status fkv_profile_read(const char *path, fkv_profile *p, char **fingerprint, fkv_err *err);

#endif
