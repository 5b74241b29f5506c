/* generation_config.json: see generation.h. */
#include "engine/model/generation.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"
#include "runner/base/json.h"

enum { MAX_BYTES = 1 << 20 };

/* A key and the number that changes nothing; null, false, an empty list and an absent key never do. */
typedef struct neutral_key {
    const char *name;
    double neutral;
} neutral_key;

/* They change what is chosen also where nothing is left to chance. */
static const neutral_key refused[] = {
    {"no_repeat_ngram_size", 0},
    {"bad_words_ids", 0},
    {"min_length", 0},
    {"num_beams", 1},
    {"num_beam_groups", 1},
    {"diversity_penalty", 0},
    {"penalty_alpha", 0},
    {"guidance_scale", 1},
    {"encoder_repetition_penalty", 1},
    {"encoder_no_repeat_ngram_size", 0},
    {"forced_bos_token_id", -1},
    {"forced_eos_token_id", -1},
    {"begin_suppress_tokens", 0},
    {"sequence_bias", 0},
    {"exponential_decay_length_penalty", 0},
    {"dola_layers", 0},
    {"watermarking_config", 0},
    {"stop_strings", 0},
};

/* They say how much chance there is in choosing. */
static const neutral_key untaken[] = {
    {"do_sample", 0}, {"temperature", 1}, {"top_p", 1},          {"top_k", 0},      {"min_p", 0},
    {"top_h", 0},     {"typical_p", 1},   {"epsilon_cutoff", 0}, {"eta_cutoff", 0},
};

static fkv_status refuse(const json_t *o, const char *path, fkv_err *err)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (!fkv_json_is_neutral(o, refused[i].name, refused[i].neutral))
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, refused[i].name,
                               "is set; it changes what a model answers and is not supported "
                               "(sampling.generation_config = ignore leaves it out)");
    return FKV_OK;
}

static fkv_status read_suppressed(const json_t *o, const char *path, int vocab, fkv_generation *g,
                                  fkv_err *err)
{
    static const char key[] = "suppress_tokens";
    const json_t *list = json_object_get(o, key);
    if (!list || json_is_null(list)) return FKV_OK;
    if (!json_is_array(list)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "must be a list of ids");
    if (json_array_size(list) > FKV_MAX_SUPPRESSED)
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "has %zu ids; at most %d are supported",
                           json_array_size(list), FKV_MAX_SUPPRESSED);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= vocab)
            return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "item %zu is no id of the vocabulary of %d",
                               i + 1, vocab);
        g->suppressed[g->n_suppressed++] = (int32_t)json_integer_value(v);
    }
    return FKV_OK;
}

static void note_untaken(const json_t *o, fkv_generation *g)
{
    size_t n = 0;
    for (size_t i = 0; i < sizeof untaken / sizeof *untaken; i++) {
        const json_t *v = json_object_get(o, untaken[i].name);
        char value[32] = "true";
        if (fkv_json_is_neutral(o, untaken[i].name, untaken[i].neutral)) continue;
        if (json_is_number(v)) snprintf(value, sizeof value, "%.6g", json_number_value(v));
        const int k =
            snprintf(g->untaken + n, sizeof g->untaken - n, "%s%s %s", n ? ", " : "", untaken[i].name, value);
        if (k > 0) n += (size_t)k;
        if (n >= sizeof g->untaken) return;
    }
}

fkv_status fkv_generation_read(const char *dir, int vocab, fkv_generation *generation, fkv_err *err)
{
    char *path = fkv_path_join(dir, "generation_config.json");
    json_t *o = NULL;
    fkv_generation g = {.repetition_penalty = 1};
    fkv_status st = path ? FKV_OK : fkv_fail_memory(err);
    if (!st && fkv_file_exists(path)) st = fkv_json_load(path, MAX_BYTES, &o, err);
    if (!st && o && !json_is_object(o))
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "must be an object");
    if (!st && o &&
        ((st = refuse(o, path, err)) ||
         (st = fkv_json_f64_or(o, "repetition_penalty", 1e-3, 1e3, 1, path, &g.repetition_penalty, err)) ||
         (st = fkv_json_i64_or(o, "min_new_tokens", 0, INT32_MAX, 0, path, &g.min_new, err)) ||
         (st = read_suppressed(o, path, vocab, &g, err))))
        goto out;
    if (st) goto out;
    note_untaken(o, &g);
    *generation = g;
out:
    json_decref(o);
    free(path);
    return st;
}
