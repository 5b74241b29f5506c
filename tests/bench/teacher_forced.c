/* Top-1 tokens of a model under teacher forcing, for comparing with another
 * implementation (hf_top1.py) or backend (family_logits.py): every prompt's first tokens are prefilled, the
 * rest is fed token by token through the decode path, whatever the model would have said.
 *
 * usage: teacher_forced BACKEND MODEL_DIR IDS OUT N_PROMPTS N_TOKENS N_PREFILL [RANKS [LOGITS [WEIGHTS KV]]]
 *   IDS: int32 [N_PROMPTS][N_TOKENS]   OUT: int32 [N_PROMPTS][N_TOKENS - N_PREFILL + 1],
 *   the top-1 token behind positions N_PREFILL - 1 ... N_TOKENS - 1 (ties: lower id).
 *   LOGITS: float32 [N_TOKENS - N_PREFILL + 1][N_PROMPTS][vocab], what they were taken from; "-": none.
 *   WEIGHTS, KV: bf16 (the backend's own form) or fp8.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/measure/measure.h"
#include "engine/split.h"
#include "engine/state.h"

static void die(const char *what, const fkv_err *err)
{
    char text[2048] = "";
    if (err) fkv_err_format(err, text, sizeof text);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

static int32_t argmax(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

int main(int argc, char **argv)
{
    if (argc < 8) die("see the head of teacher_forced.c", NULL);
    const int n_prompts = atoi(argv[5]), n_tokens = atoi(argv[6]), n_prefill = atoi(argv[7]);
    const int ranks = argc > 8 ? atoi(argv[8]) : 1, n_out = n_tokens - n_prefill + 1;
    FILE *all = argc > 9 && strcmp(argv[9], "-") != 0 ? fopen(argv[9], "wb") : NULL;
    const bool fp8 = argc > 11 && !strcmp(argv[10], "fp8"), kv_fp8 = argc > 11 && !strcmp(argv[11], "fp8");
    fkv_err err = {0};
    fkv_config c;
    fkv_safetensors *w;
    fkv_engine *e = NULL;
    fkv_profile p = {0};
    fkv_plan plan = {0};
    int32_t *ids = malloc((size_t)n_prompts * (size_t)n_tokens * sizeof *ids);
    int32_t *top = calloc((size_t)n_prompts * (size_t)n_out, sizeof *top);
    FILE *f = fopen(argv[3], "rb");
    if (!f || fread(ids, sizeof *ids, (size_t)n_prompts * (size_t)n_tokens, f) !=
                  (size_t)n_prompts * (size_t)n_tokens)
        die("ids", NULL);
    fclose(f);
    if (fkv_config_read(argv[2], &c, &err)) die("config", &err);
    if (fkv_safetensors_open(argv[2], &w, &err)) die("weights", &err);
    const fkv_engine_options o = {.backend = fkv_backend_find(argv[1]),
                                  .n_ranks = ranks,
                                  .n_devices = 1,
                                  .n_slots = n_prompts,
                                  .max_prompt = n_tokens,
                                  .window = 32,
                                  .kernel = 7,
                                  .form = fp8 ? FKV_FORM_FP8 : FKV_FORM_NATIVE,
                                  .kv_form = kv_fp8 ? FKV_KV_FP8 : FKV_KV_PLAIN};
    if (!o.backend) die("no such backend", NULL);
    if (fkv_engine_open(&c, w, &o, &e, &err)) die("open", &err);
    if (fkv_profile_init(&p, c.n_layers, c.n_kv_heads, &err)) die("profile", &err);
    fkv_budget_uniform(&p, n_tokens);
    double *tokens = malloc((size_t)c.n_layers * (size_t)c.n_kv_heads * sizeof *tokens);
    fkv_cost_tokens(&p, tokens);
    const fkv_plan_problem problem = {c.n_layers, c.n_kv_heads,     ranks, n_prompts,
                                      tokens,     fkv_cost_cpu(&c), -1,    0};
    if (fkv_plan_solve(&problem, FKV_PLAN_FAIR_COPYING, &plan, &err)) die("plan", &err);
    const fkv_engine_kv_limits limits = fkv_measure_limits(&plan, p.budgets, n_prefill, n_out);
    if (fkv_engine_set_plan(e, w, p.budgets, &plan, &limits, &err)) die("set_plan", &err);

    fkv_engine_device *d = &e->devices[0];
    float *logits = malloc((size_t)n_prompts * (size_t)c.vocab * sizeof *logits);
    for (int i = 0; i < n_prompts; i++) {
        fkv_segment segment = {.slot = i, .max_new = n_out};
        const fkv_prefill q = fkv_prefill_one(e, ids + i * n_tokens, n_prefill, &segment);
        int64_t n_edits;
        fkv_kv_put(&e->kv, i, n_prefill, n_out);
        const fkv_edit *edits = fkv_kv_edits(&e->kv, &n_edits);
        fkv_edits_enqueue(d, d->table, edits, n_edits);
        fkv_prefill_enqueue(d, &q);
        if (o.backend->sync(d->dev, &err)) die("prefill", &err);
    }
    for (int t = n_prefill; t <= n_tokens; t++) {
        o.backend->download(d->dev, logits, d->logits, (size_t)n_prompts * (size_t)c.vocab * sizeof *logits);
        if (o.backend->sync(d->dev, &err)) die("sync", &err);
        if (all && fwrite(logits, sizeof *logits, (size_t)n_prompts * (size_t)c.vocab, all) == 0)
            die("logits", NULL);
        for (int i = 0; i < n_prompts; i++) {
            top[i * n_out + t - n_prefill] = argmax(logits + (int64_t)i * c.vocab, c.vocab);
            if (t < n_tokens)
                o.backend->upload(d->dev, d->slots.token + i, &ids[i * n_tokens + t], sizeof(int32_t));
        }
        if (t < n_tokens) fkv_decode_run(d);
    }
    f = fopen(argv[4], "wb");
    if (!f ||
        fwrite(top, sizeof *top, (size_t)n_prompts * (size_t)n_out, f) != (size_t)n_prompts * (size_t)n_out ||
        fclose(f))
        die("out", NULL);
    if (all && fclose(all)) die("logits", NULL);
    fkv_engine_close(e);
    fkv_safetensors_close(w);
    fkv_plan_free(&plan);
    fkv_profile_free(&p);
    free(logits), free(tokens), free(top), free(ids);
    return 0;
}
