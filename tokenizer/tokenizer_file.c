/* Reading the small parts of tokenizer.json: see tokenizer_file.h. Owns nothing;
 * the ids belong to the caller. */
#include "tokenizer/tokenizer_file.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"
#include "tokenizer/bpe.h"

enum { DEPTH_MAX = 8, TEMPLATE_IDS_MAX = 64 };

static fkv_status refuse(fkv_err *err, const char *file, const char *key, const char *what)
{
    return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "%s", what);
}

static fkv_status refuse_type(fkv_err *err, const char *file, const char *key, const char *type)
{
    return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "the type '%.60s' is not supported", type);
}

/* The type of a component, NULL for null or none at all. */
static fkv_status type_of(const json_t *o, const char *file, const char *key, const char **type, fkv_err *err)
{
    *type = NULL;
    if (!o || json_is_null(o)) return FKV_OK;
    *type = json_string_value(json_object_get(o, "type"));
    return *type ? FKV_OK : refuse(err, file, key, "must be null or an object with a 'type'");
}

/* The members of a Sequence. */
static fkv_status members(const json_t *o, const char *name, int depth, const char *file, const char *key,
                          const json_t **list, fkv_err *err)
{
    *list = json_object_get(o, name);
    if (depth >= DEPTH_MAX) return refuse(err, file, key, "has Sequences nested too deeply");
    if (!json_is_array(*list))
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "'%s' must be an array", name);
    return FKV_OK;
}

static fkv_status read_normalizer(const json_t *o, int depth, const char *file, bool *nfc, fkv_err *err)
{
    static const char key[] = "normalizer";
    const char *type;
    const json_t *list;
    fkv_status st = type_of(o, file, key, &type, err);
    if (st || !type) return st;
    if (!strcmp(type, "NFC")) {
        *nfc = true;
        return FKV_OK;
    }
    if (!strcmp(type, "Prepend") || !strcmp(type, "Replace"))
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key,
                           "the type '%s' is not supported (SentencePiece-style files come later)", type);
    if (strcmp(type, "Sequence") != 0) return refuse_type(err, file, key, type);
    if ((st = members(o, "normalizers", depth, file, key, &list, err))) return st;
    for (size_t i = 0; !st && i < json_array_size(list); i++)
        st = read_normalizer(json_array_get(list, i), depth + 1, file, nfc, err);
    return st;
}

fkv_status fkv_file_normalizer(const json_t *root, const char *file, bool *nfc, fkv_err *err)
{
    *nfc = false;
    return read_normalizer(json_object_get(root, "normalizer"), 0, file, nfc, err);
}

/* Appends the ids of a template's SpecialToken. */
static fkv_status template_token(const json_t *processor, const json_t *piece, const char *file,
                                 const char *key, const fkv_vocab *vocab, fkv_ids *out, fkv_err *err)
{
    const char *name = json_string_value(json_object_get(piece, "id"));
    if (!name) return refuse(err, file, key, "a SpecialToken has no 'id'");
    const json_t *ids =
        json_object_get(json_object_get(json_object_get(processor, "special_tokens"), name), "ids");
    if (!json_is_array(ids))
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "'%.60s' is not among the special_tokens", name);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *v = json_array_get(ids, i);
        const json_int_t id = json_integer_value(v);
        size_t n;
        if (!json_is_integer(v) || id < 0 || id > FKV_ID_MAX || !fkv_vocab_string(vocab, (int32_t)id, &n))
            return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "'%.60s' has an id that no token has", name);
        if (out->len >= TEMPLATE_IDS_MAX) return refuse(err, file, key, "adds too many tokens");
        fkv_status st = fkv_ids_push(out, (int32_t)id, err);
        if (st) return st;
    }
    return FKV_OK;
}

/* Reads the "single" template of one processor into ids before and behind. */
static fkv_status read_template(const json_t *o, const char *file, const fkv_vocab *vocab, fkv_ids *before,
                                fkv_ids *behind, fkv_err *err)
{
    static const char key[] = "post_processor.single";
    const json_t *single = json_object_get(o, "single");
    bool text = false;
    fkv_status st = FKV_OK;
    if (!json_is_array(single)) return refuse(err, file, key, "must be an array");
    for (size_t i = 0; !st && i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *token = json_object_get(piece, "SpecialToken");
        const json_t *sequence = json_object_get(piece, "Sequence");
        if (json_object_size(piece) != 1 || (!token && !sequence))
            return refuse(err, file, key, "must consist of SpecialToken and Sequence");
        if (token) {
            st = template_token(o, token, file, key, vocab, text ? behind : before, err);
            continue;
        }
        const char *id = json_string_value(json_object_get(sequence, "id"));
        if (!id || strcmp(id, "A") != 0 || text)
            return refuse(err, file, key, "must have the Sequence A exactly once");
        text = true;
    }
    if (!st && !text) st = refuse(err, file, key, "must have the Sequence A exactly once");
    return st;
}

/* Reads a processor and, in a Sequence, its members. Two templates in one file
 * are nothing that HF can run. */
static fkv_status read_processor(const json_t *o, int depth, const char *file, const fkv_vocab *vocab,
                                 bool *seen, fkv_ids *prefix, fkv_ids *suffix, fkv_err *err)
{
    static const char key[] = "post_processor";
    const char *type;
    const json_t *list;
    fkv_status st = type_of(o, file, key, &type, err);
    if (st || !type || !strcmp(type, "ByteLevel")) return st; /* ByteLevel only moves offsets */
    if (!strcmp(type, "Sequence")) {
        if ((st = members(o, "processors", depth, file, key, &list, err))) return st;
        for (size_t i = 0; !st && i < json_array_size(list); i++)
            st = read_processor(json_array_get(list, i), depth + 1, file, vocab, seen, prefix, suffix, err);
        return st;
    }
    if (strcmp(type, "TemplateProcessing") != 0) return refuse_type(err, file, key, type);
    if (*seen) return refuse(err, file, key, "a second TemplateProcessing is not supported");
    *seen = true;
    return read_template(o, file, vocab, prefix, suffix, err);
}

fkv_status fkv_file_post_processor(const json_t *root, const char *file, const fkv_vocab *vocab,
                                   fkv_ids *prefix, fkv_ids *suffix, fkv_err *err)
{
    bool seen = false;
    return read_processor(json_object_get(root, "post_processor"), 0, file, vocab, &seen, prefix, suffix,
                          err);
}

fkv_status fkv_file_decoder(const json_t *root, const char *file, fkv_err *err)
{
    static const char key[] = "decoder";
    const json_t *o = json_object_get(root, "decoder"), *list;
    const char *type;
    fkv_status st = type_of(o, file, key, &type, err);
    if (st) return st;
    if (!type) return refuse(err, file, key, "must be ByteLevel");
    if (!strcmp(type, "ByteLevel")) return FKV_OK;
    if (strcmp(type, "Sequence") != 0) return refuse_type(err, file, key, type);
    if ((st = members(o, "decoders", 0, file, key, &list, err))) return st;
    if (json_array_size(list) == 0) return refuse(err, file, key, "must be ByteLevel");
    for (size_t i = 0; i < json_array_size(list); i++) {
        if ((st = type_of(json_array_get(list, i), file, key, &type, err))) return st;
        /* ByteLevel makes one string of everything, which Fuse leaves alone. */
        if (!type || strcmp(type, i == 0 ? "ByteLevel" : "Fuse") != 0)
            return refuse_type(err, file, key, type ? type : "null");
    }
    return FKV_OK;
}
