/* A family that is in no table: it takes a row, and everything follows from it. Its logits are those of
 * a plain reference in double, and every part of what makes it another family changes them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/engine.h"
#include "engine/model/tensors.h"
#include "engine/split.h"
#include "runner/base/hash.h"

/* ---- all that the family is ---- */

static const fkv_family made_up = {
    .architecture = "MadeUpForCausalLM",
    .model_type = "made_up",
    .activation = FKV_ACTIVATION_GELU_TANH,
    .qkv_bias = true,
    .qk_norm = true,
    .names = {[FKV_TENSOR_Q] = "model.layers.%d.attn.query.weight", [FKV_TENSOR_LAST_NORM] = "final.scale"},
};

/* ---- a small model of it, in files ---- */

enum {
    LAYERS = 2,
    HEADS = 4,
    KV_HEADS = 2,
    GROUP = 2,
    HD = 16,
    HIDDEN = 32,
    INTER = 48,
    VOCAB = 40,
    PROMPT = 21
};
#define CONFIG                                                                                               \
    "{\"hidden_act\":\"gelu_pytorch_tanh\",\"num_hidden_layers\":2,\"hidden_size\":32,\"intermediate_"       \
    "size\":48,"                                                                                             \
    "\"vocab_size\":40,\"max_position_embeddings\":64,\"num_attention_heads\":4,\"num_key_value_heads\":2,"  \
    "\"head_dim\":16,\"rms_norm_eps\":1e-6,\"rope_theta\":10000,\"tie_word_embeddings\":false}"

static char dir[] = "/tmp/fkv-family-XXXXXX";
static fkv_config config;
static float *values[LAYERS][FKV_N_TENSORS];

static float draw(uint64_t *at)
{
    return (float)((double)(fkv_random_u64(11, 0, (*at)++) >> 11) * 0x1p-53 - 0.5);
}

static FILE *create(const char *name)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    return f;
}

/* Lively: attention is far from even, and every vector of norms and biases matters. */
static float *make_values(fkv_tensor t, int64_t n, int64_t cols, uint64_t *at)
{
    float *v = calloc((size_t)n, sizeof *v);
    const float wide = fkv_tensor_is_matrix(t) ? 4 / sqrtf((float)cols) : 2;
    for (int64_t i = 0; i < n; i++)
        v[i] = wide * draw(at) + (fkv_tensor_sharing(t) == FKV_SHARED_WHOLE ? 1.5f : 0);
    return v;
}

static int make_model(void **state)
{
    (void)state;
    fkv_err err = {0};
    char header[16384], name[160], shape[40];
    size_t n = 0, at = 0;
    uint64_t random = 0;
    if (!mkdtemp(dir)) return -1;
    FILE *f = create("config.json");
    fputs(CONFIG, f);
    fclose(f);
    if (fkv_config_read_as(&made_up, dir, &config, &err)) return -1;
    for (int l = 0; l < LAYERS; l++) {
        for (int t = l ? FKV_TENSOR_ATTENTION_NORM : 0; t < FKV_N_TENSORS; t++) {
            int64_t rows, cols;
            fkv_tensor_shape(&config, (fkv_tensor)t, &rows, &cols);
            fkv_tensor_name(&config, l, (fkv_tensor)t, name, sizeof name);
            values[l][t] = make_values((fkv_tensor)t, rows * cols, cols, &random);
            if (fkv_tensor_is_matrix((fkv_tensor)t))
                snprintf(shape, sizeof shape, "%d,%d", (int)rows, (int)cols);
            else
                snprintf(shape, sizeof shape, "%d", (int)rows);
            n += (size_t)snprintf(header + n, sizeof header - n,
                                  "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                                  n ? "," : "{", name, shape, at, at + 4 * (size_t)(rows * cols));
            at += 4 * (size_t)(rows * cols);
        }
    }
    n += (size_t)snprintf(header + n, sizeof header - n, "}");
    f = create("model.safetensors");
    const uint64_t length = n;
    fwrite(&length, sizeof length, 1, f);
    fwrite(header, 1, n, f);
    for (int l = 0; l < LAYERS; l++) {
        for (int t = l ? FKV_TENSOR_ATTENTION_NORM : 0; t < FKV_N_TENSORS; t++) {
            int64_t rows, cols;
            fkv_tensor_shape(&config, (fkv_tensor)t, &rows, &cols);
            fwrite(values[l][t], sizeof(float), (size_t)(rows * cols), f);
        }
    }
    return fclose(f);
}

static int remove_model(void **state)
{
    (void)state;
    char path[300];
    const char *const names[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    for (int l = 0; l < LAYERS; l++)
        for (int t = 0; t < FKV_N_TENSORS; t++) free(values[l][t]);
    return rmdir(dir);
}

/* ---- the reference: one token after the other, in double ---- */

static double keys[LAYERS][PROMPT][KV_HEADS][HD], vals[LAYERS][PROMPT][KV_HEADS][HD];

static void product(const float *w, const float *bias, const double *x, int rows, int cols, double *y)
{
    for (int i = 0; i < rows; i++) {
        y[i] = bias ? bias[i] : 0;
        for (int j = 0; j < cols; j++) y[i] += (double)w[i * cols + j] * x[j];
    }
}

static void norm(const float *w, const double *x, int n, double *y)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    for (int i = 0; i < n; i++) y[i] = x[i] / sqrt(sum / n + 1e-6) * w[i];
}

static void rotate(double *v, int pos)
{
    for (int i = 0; i < HD / 2; i++) {
        const double angle = pos * pow(10000, -2.0 * i / HD), a = v[i], b = v[i + HD / 2];
        v[i] = a * cos(angle) - b * sin(angle);
        v[i + HD / 2] = b * cos(angle) + a * sin(angle);
    }
}

/* out[HEADS][HD] of the token at pos, whose key and value are there. */
static void attend(int l, int pos, double (*q)[HD], double *out)
{
    for (int h = 0; h < HEADS; h++) {
        double p[PROMPT], sum = 0;
        for (int t = 0; t <= pos; t++) {
            p[t] = 0;
            for (int i = 0; i < HD; i++) p[t] += q[h][i] * keys[l][t][h / GROUP][i];
            sum += p[t] = exp(p[t] / sqrt(HD));
        }
        for (int i = 0; i < HD; i++) {
            out[h * HD + i] = 0;
            for (int t = 0; t <= pos; t++) out[h * HD + i] += p[t] / sum * vals[l][t][h / GROUP][i];
        }
    }
}

static void layer(int l, int pos, double *x)
{
    float *const *w = values[l];
    double n[HIDDEN], q[HEADS][HD], att[HEADS * HD], y[HIDDEN], gate[INTER], up[INTER];
    norm(w[FKV_TENSOR_ATTENTION_NORM], x, HIDDEN, n);
    product(w[FKV_TENSOR_Q], w[FKV_TENSOR_Q_BIAS], n, HEADS * HD, HIDDEN, q[0]);
    product(w[FKV_TENSOR_K], w[FKV_TENSOR_K_BIAS], n, KV_HEADS * HD, HIDDEN, keys[l][pos][0]);
    product(w[FKV_TENSOR_V], w[FKV_TENSOR_V_BIAS], n, KV_HEADS * HD, HIDDEN, vals[l][pos][0]);
    for (int h = 0; h < HEADS; h++) norm(w[FKV_TENSOR_Q_NORM], q[h], HD, q[h]), rotate(q[h], pos);
    for (int h = 0; h < KV_HEADS; h++)
        norm(w[FKV_TENSOR_K_NORM], keys[l][pos][h], HD, keys[l][pos][h]), rotate(keys[l][pos][h], pos);
    attend(l, pos, q, att);
    product(w[FKV_TENSOR_O], NULL, att, HIDDEN, HEADS * HD, y);
    for (int i = 0; i < HIDDEN; i++) x[i] += y[i];
    norm(w[FKV_TENSOR_MLP_NORM], x, HIDDEN, n);
    product(w[FKV_TENSOR_GATE], NULL, n, INTER, HIDDEN, gate);
    product(w[FKV_TENSOR_UP], NULL, n, INTER, HIDDEN, up);
    for (int i = 0; i < INTER; i++) {
        const double g = gate[i];
        up[i] *= g / 2 * (1 + tanh(sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
    }
    product(w[FKV_TENSOR_DOWN], NULL, up, HIDDEN, INTER, y);
    for (int i = 0; i < HIDDEN; i++) x[i] += y[i];
}

static void reference(const int32_t *ids, int n, double *logits)
{
    double x[HIDDEN], last[HIDDEN];
    for (int pos = 0; pos < n; pos++) {
        for (int i = 0; i < HIDDEN; i++) x[i] = values[0][FKV_TENSOR_EMBEDDING][ids[pos] * HIDDEN + i];
        for (int l = 0; l < LAYERS; l++) layer(l, pos, x);
    }
    norm(values[0][FKV_TENSOR_LAST_NORM], x, HIDDEN, last);
    product(values[0][FKV_TENSOR_OUTPUT], NULL, last, VOCAB, HIDDEN, logits);
}

/* ---- the engine ---- */

enum { NEW = 4 };

typedef struct answer {
    bool asked;
    int32_t prompt[PROMPT - NEW];
    int32_t ids[NEW];
    float logits[NEW][VOCAB];
} answer;

static fkv_status next(void *ctx, bool wait, fkv_request *q, fkv_err *err)
{
    answer *a = ctx;
    (void)wait, (void)err;
    if (a->asked) return FKV_END;
    a->asked = true;
    *q = (fkv_request){.ids = a->prompt, .n_ids = PROMPT - NEW, .max_new = NEW};
    return FKV_OK;
}

static bool token(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n)
{
    (void)ctx, (void)q, (void)ids, (void)n;
    return false;
}

static fkv_status finish(void *ctx, const fkv_request *q, const int32_t *ids, int64_t n, fkv_finish why,
                         fkv_err *err)
{
    answer *a = ctx;
    (void)q, (void)why, (void)err;
    assert_int_equal(n, NEW);
    memcpy(a->ids, ids, sizeof a->ids);
    return FKV_OK;
}

static fkv_status reject(void *ctx, const fkv_request *q, const char *code, const fkv_err *why, fkv_err *err)
{
    (void)ctx, (void)q, (void)code, (void)err;
    fail_msg("%s", why->message);
    return FKV_OK;
}

static fkv_stopping stopping(void *ctx)
{
    (void)ctx;
    return FKV_GO_ON;
}

static void logits(void *ctx, const fkv_request *q, int64_t n, const float *row, int n_vocab)
{
    answer *a = ctx;
    (void)q;
    memcpy(a->logits[n], row, (size_t)n_vocab * sizeof *row);
}

static void run(const fkv_safetensors *weights, int ranks, answer *a)
{
    fkv_err err = {0};
    fkv_engine *e;
    fkv_plan plan;
    double tokens[LAYERS * KV_HEADS];
    int32_t budgets[LAYERS * KV_HEADS];
    for (int i = 0; i < LAYERS * KV_HEADS; i++) tokens[i] = budgets[i] = PROMPT;
    const fkv_engine_options o = {.backend = fkv_backend_cpu(),
                                  .n_ranks = ranks,
                                  .n_devices = 1,
                                  .n_slots = 2,
                                  .max_prompt = PROMPT,
                                  .window = 4,
                                  .kernel = 3};
    const fkv_plan_problem problem = {LAYERS, KV_HEADS, ranks, 2, tokens, fkv_cost_cpu(&config), -1, 0};
    const fkv_engine_kv_limits limits = {0};
    const fkv_engine_io io = {a, next, token, finish, reject, stopping, logits};
    for (int i = 0; i < PROMPT - NEW; i++) a->prompt[i] = (i * 7 + 3) % VOCAB;
    assert_int_equal(fkv_engine_open(&config, weights, &o, &e, &err), FKV_OK);
    assert_int_equal(fkv_plan_solve(&problem, FKV_PLAN_FAIR_COPYING, &plan, &err), FKV_OK);
    assert_int_equal(fkv_engine_set_plan(e, weights, budgets, &plan, &limits, &err), FKV_OK);
    assert_int_equal(fkv_engine_run(e, &io, &err), FKV_OK);
    fkv_plan_free(&plan);
    fkv_engine_close(e);
}

/* The largest difference from the reference over all tokens of the answer. */
static double distance(const answer *a)
{
    int32_t ids[PROMPT];
    double want[VOCAB], most = 0;
    memcpy(ids, a->prompt, sizeof a->prompt);
    for (int n = 0; n < NEW; n++) {
        reference(ids, PROMPT - NEW + n, want);
        for (int i = 0; i < VOCAB; i++) most = fmax(most, fabs(want[i] - a->logits[n][i]));
        ids[PROMPT - NEW + n] = a->ids[n];
    }
    return most;
}

static void a_made_up_family_answers_as_a_plain_reference(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_safetensors *weights;
    assert_int_equal(fkv_safetensors_open(dir, &weights, &err), FKV_OK);
    assert_int_equal(fkv_tensors_check(&config, weights, &err), FKV_OK);
    for (int ranks = 1; ranks <= 2; ranks++) {
        answer a = {0};
        run(weights, ranks, &a);
        assert_true(distance(&a) < 1e-4);
    }
    /* What makes the family another one shows in the logits, each part by itself. */
    static const fkv_tensor parts[] = {FKV_TENSOR_Q_BIAS, FKV_TENSOR_K_BIAS, FKV_TENSOR_V_BIAS,
                                       FKV_TENSOR_Q_NORM, FKV_TENSOR_K_NORM};
    answer a = {0};
    run(weights, 1, &a);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        float *v = values[1][parts[i]], kept[HEADS * HD];
        const size_t n = parts[i] == FKV_TENSOR_Q_BIAS   ? HEADS * HD
                         : parts[i] >= FKV_TENSOR_Q_NORM ? HD
                                                         : KV_HEADS * HD;
        memcpy(kept, v, n * sizeof *v);
        for (size_t k = 0; k < n; k++) v[k] = parts[i] >= FKV_TENSOR_Q_NORM ? 1 : 0;
        assert_true(distance(&a) > 1e-2);
        memcpy(v, kept, n * sizeof *v);
    }
    fkv_safetensors_close(weights);
}

static void its_tensors_are_asked_for_by_their_own_names(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_safetensors *weights;
    fkv_config llama = config;
    llama.family = NULL;
    assert_int_equal(fkv_safetensors_open(dir, &weights, &err), FKV_OK);
    assert_int_equal(fkv_tensors_check(&llama, weights, &err), FKV_E_INPUT);
    assert_string_equal(err.key, "model.norm.weight");
    fkv_safetensors_close(weights);
    /* Random weights know them all, whatever they are called. */
    assert_int_equal(fkv_tensors_open_dummy(&config, 1, &weights, &err), FKV_OK);
    assert_int_equal(fkv_tensors_check(&config, weights, &err), FKV_OK);
    answer a = {0};
    run(weights, 2, &a);
    fkv_safetensors_close(weights);
}

static void another_activation_is_refused_by_name(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_config c;
    fkv_family silu = made_up;
    silu.activation = FKV_ACTIVATION_SILU;
    assert_int_equal(fkv_config_read_as(&silu, dir, &c, &err), FKV_E_INPUT);
    assert_string_equal(err.key, "hidden_act");
    assert_non_null(strstr(err.message, "gelu_pytorch_tanh"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_made_up_family_answers_as_a_plain_reference),
        cmocka_unit_test(its_tensors_are_asked_for_by_their_own_names),
        cmocka_unit_test(another_activation_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
