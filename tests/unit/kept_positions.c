/* Prints what heads keep of the needle prompts, for tests/scorers_vs_kvpress.py; floats of the CPU backend.
 *
 * usage: kept_positions MODEL_DIR ids N
 *            the ids of the first N prompts of data/needle_500.jsonl, a JSON array a line
 *        kept_positions MODEL_DIR keep N SCORER KERNEL SINKS WINDOW
 *            reads from stdin for each of them a budget for every layer's every KV head, and prints as JSON
 * the positions that each keeps, [n_layers * n_kv_heads][], a line a prompt */
#include "engine/split.h"
#include "io_fixture.h"
#include "kept_fixture.h"
#include "model_fixture.h"

static fixture model;

typedef struct one_prompt {
    int index;
    bool given;
} one_prompt;

static fkv_status next_prompt(void *ctx, bool wait, fkv_request *q, fkv_err *err)
{
    one_prompt *p = ctx;
    (void)wait, (void)err;
    if (p->given) return FKV_END;
    p->given = true;
    *q = (fkv_request){.ids = model.prompts[p->index].ids.data,
                       .n_ids = (int64_t)model.prompts[p->index].ids.len,
                       .max_new = 1};
    return FKV_OK;
}

static void keep(fkv_engine *engine, int index, const int32_t *budgets)
{
    const fkv_config *c = &model.config;
    const int n = c->n_layers * c->n_kv_heads;
    one_prompt p = {.index = index};
    const fkv_engine_io io = {&p, next_prompt, on_token, on_finish, on_reject, stopping, NULL};
    const fkv_engine_kv_limits limits = {0};
    double tokens[KEPT_HEADS];
    fkv_plan plan = {0};
    fkv_err err = {0};
    for (int i = 0; i < n; i++) tokens[i] = budgets[i];
    const fkv_plan_problem problem = {c->n_layers, c->n_kv_heads, 1, 1, tokens, fkv_cost_cpu(c), -1, 0};
    if (fkv_plan_solve(&problem, FKV_PLAN_STANDARD, &plan, &err)) fixture_die("plan", &err);
    if (fkv_engine_set_plan(engine, model.weights, budgets, &plan, &limits, &err))
        fixture_die("set_plan", &err);
    if (fkv_engine_run(engine, &io, &err)) fixture_die("run", &err);
    fkv_engine_clear_plan(engine);
    fkv_plan_free(&plan);
    for (int h = 0; h < n; h++) {
        printf(h ? ",[" : "[[");
        for (int i = 0; i < kept[0][h].n; i++) printf(i ? ",%d" : "%d", (int)kept[0][h].at[i]);
        printf("]");
    }
    puts("]");
}

static fkv_scorer scorer_named(const char *name)
{
    for (int i = 0; i < FKV_N_SCORERS; i++)
        if (!strcmp(name, fkv_scorer_name((fkv_scorer)i))) return (fkv_scorer)i;
    fixture_die(name, NULL);
    return FKV_SCORER_SNAPKV;
}

static void keep_all(char **argv)
{
    const fkv_backend backend = kept_backend();
    const int n = model.config.n_layers * model.config.n_kv_heads;
    const fkv_engine_options o = {.backend = &backend,
                                  .n_ranks = 1,
                                  .n_devices = 1,
                                  .n_slots = 1,
                                  .max_prompt = 1024,
                                  .scorer = scorer_named(argv[4]),
                                  .kernel = atoi(argv[5]),
                                  .sinks = atoi(argv[6]),
                                  .window = atoi(argv[7])};
    int32_t budgets[KEPT_HEADS];
    fkv_engine *engine = NULL;
    fkv_err err = {0};
    if (n > KEPT_HEADS) fixture_die("too many heads", NULL);
    if (fkv_engine_open(&model.config, model.weights, &o, &engine, &err)) fixture_die("engine", &err);
    for (int i = 0; i < model.n; i++) {
        for (int h = 0; h < n; h++)
            if (scanf("%d", &budgets[h]) != 1) fixture_die("a budget is missing", NULL);
        keep(engine, i, budgets);
    }
    fkv_engine_close(engine);
    kept_free();
}

int main(int argc, char **argv)
{
    const bool keeps = argc == 8 && !strcmp(argv[2], "keep");
    if (!keeps && (argc != 4 || strcmp(argv[2], "ids") != 0)) {
        fprintf(stderr, "usage: kept_positions MODEL_DIR ids N | keep N SCORER KERNEL SINKS WINDOW\n");
        return 2;
    }
    fixture_open(&model, argv[1], "data/needle_500.jsonl", atoi(argv[3]));
    for (int i = 0; !keeps && i < model.n; i++) {
        const fkv_ids *ids = &model.prompts[i].ids;
        for (size_t t = 0; t < ids->len; t++) printf("%s%d", t ? "," : "[", (int)ids->data[t]);
        puts("]");
    }
    if (keeps) keep_all(argv);
    fixture_close(&model);
    return 0;
}
