/* TemplateProcessing, RobertaProcessing and ByteLevel: see post_process.h. Owns nothing. */
#include "tokenizer/post_process.h"

#include <string.h>

#include "tokenizer/steps.h"

enum { TEMPLATE_IDS_MAX = 64 };

/* What the steps fill. */
struct around {
    const fkv_vocab *vocab;
    fkv_ids *prefix, *suffix;
    bool seen; /* a step that adds tokens */
};

struct kind {
    const char *type;
    fkv_status (*read)(struct around *a, const json_t *o, const fkv_step_place *at, fkv_err *err);
};

static fkv_status add_id(const struct around *a, const json_t *id, const char *name, fkv_ids *out,
                         const fkv_step_place *at, fkv_err *err)
{
    const json_int_t v = json_integer_value(id);
    size_t n;
    if (!json_is_integer(id) || v < 0 || v > FKV_ID_MAX || !fkv_vocab_string(a->vocab, (int32_t)v, &n))
        return fkv_step_refuse(at, err, "'%.60s' has an id that no token has", name);
    if (out->len >= TEMPLATE_IDS_MAX) return fkv_step_refuse(at, err, "adds too many tokens");
    return fkv_ids_push(out, (int32_t)v, err);
}

/* Appends the ids of a template's SpecialToken. */
static fkv_status template_token(const struct around *a, const json_t *o, const json_t *piece, fkv_ids *out,
                                 const fkv_step_place *at, fkv_err *err)
{
    const char *name = json_string_value(json_object_get(piece, "id"));
    if (!name) return fkv_step_refuse(at, err, "a SpecialToken has no 'id'");
    const json_t *ids = json_object_get(json_object_get(json_object_get(o, "special_tokens"), name), "ids");
    fkv_status st = FKV_OK;
    if (!json_is_array(ids)) return fkv_step_refuse(at, err, "'%.60s' is not among the special_tokens", name);
    for (size_t i = 0; !st && i < json_array_size(ids); i++)
        st = add_id(a, json_array_get(ids, i), name, out, at, err);
    return st;
}

/* The template "single". */
static fkv_status read_template(struct around *a, const json_t *o, const fkv_step_place *at, fkv_err *err)
{
    const json_t *single = json_object_get(o, "single");
    bool text = false;
    fkv_status st = FKV_OK;
    if (!json_is_array(single)) return fkv_step_refuse(at, err, "'single' must be an array");
    for (size_t i = 0; !st && i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *token = json_object_get(piece, "SpecialToken");
        const json_t *sequence = json_object_get(piece, "Sequence");
        if (json_object_size(piece) != 1 || (!token && !sequence))
            return fkv_step_refuse(at, err, "'single' must consist of SpecialToken and Sequence");
        if (token) {
            st = template_token(a, o, token, text ? a->suffix : a->prefix, at, err);
            continue;
        }
        const char *id = json_string_value(json_object_get(sequence, "id"));
        if (!id || strcmp(id, "A") != 0 || text)
            return fkv_step_refuse(at, err, "'single' must have the Sequence A exactly once");
        text = true;
    }
    if (!st && !text) st = fkv_step_refuse(at, err, "'single' must have the Sequence A exactly once");
    return st;
}

/* <s> in front and </s> behind: "cls" and "sep" are [string, id]. */
static fkv_status read_roberta(struct around *a, const json_t *o, const fkv_step_place *at, fkv_err *err)
{
    static const char *const names[] = {"cls", "sep"};
    fkv_status st = FKV_OK;
    for (int k = 0; !st && k < 2; k++) {
        const json_t *pair = json_object_get(o, names[k]);
        if (json_array_size(pair) != 2 || !json_is_string(json_array_get(pair, 0)))
            return fkv_step_refuse(at, err, "'%s' must be [token, id]", names[k]);
        st = add_id(a, json_array_get(pair, 1), names[k], k ? a->suffix : a->prefix, at, err);
    }
    return st;
}

static const struct kind kinds[] = {
    {"ByteLevel", NULL}, /* moves offsets alone */
    {"TemplateProcessing", read_template},
    {"RobertaProcessing", read_roberta},
};

static fkv_status add_step(void *ctx, const json_t *o, const char *type, const fkv_step_place *at,
                           fkv_err *err)
{
    struct around *a = ctx;
    size_t k = 0;
    while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k].type, type) != 0) k++;
    if (k == sizeof kinds / sizeof *kinds) return fkv_step_unknown(at, type, err);
    if (!kinds[k].read) return FKV_OK;
    if (a->seen) return fkv_step_refuse(at, err, "a second step that adds tokens is not supported");
    a->seen = true;
    return kinds[k].read(a, o, at, err);
}

fkv_status fkv_post_processor_read(const json_t *o, const char *file, const fkv_vocab *vocab, fkv_ids *prefix,
                                   fkv_ids *suffix, fkv_err *err)
{
    struct around a = {vocab, prefix, suffix, false};
    return fkv_steps_each(o, "processors", file, "post_processor", add_step, &a, err);
}
