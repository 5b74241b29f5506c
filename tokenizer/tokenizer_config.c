/* What HF transformers 5 makes of the files beside tokenizer.json: see tokenizer_config.h.
 *
 * Its AutoTokenizer chooses a class by tokenizer_config.json's tokenizer_class and config.json's
 * model_type. The common class takes tokenizer.json as it is and adds tokens; a few build their
 * normalizer, pre-tokenizer, decoder and flags of the model themselves and take only vocabulary,
 * merges and post-processor: they are the rows of a table here. add_bos_token and add_eos_token
 * are left out where there is a tokenizer.json, and so is the cleaning up of spaces. A file without
 * added_tokens_decoder is of the old kind: special_tokens_map.json and added_tokens.json count beside it,
 * which they don't otherwise. */
#include "tokenizer/tokenizer_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/log.h"
#include "tokenizer/vocab.h"

#define EXTRA "extra_special_tokens"
enum { FILE_MAX = 64 << 20 };

/* The names under which tokens are special, in HF's order. */
static const char *const named[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                    "pad_token", "cls_token", "mask_token"};
enum { N_NAMED = sizeof named / sizeof *named };

/* A class that builds its steps itself; NULL in steps: tokenizer.json's null. */
struct class
{
    const char *name; /* without Fast */
    const char *normalizer, *pre_tokenizer, *decoder, *model;
    const char *tokens[N_NAMED]; /* the special tokens that it has by default */
    bool unk;                    /* the model has the unk_token */
    bool specials_again;         /* special tokens get the flags of special tokens */
};

#define TO_SPACE   "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"}"
#define FROM_BYTES "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}"
#define MODEL(flag)                                                                                          \
    "{\"unk_token\":null,\"fuse_unk\":" flag ",\"byte_fallback\":" flag ",\"ignore_merges\":false,"          \
    "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"dropout\":null}"
#define QWEN2_REGEX                                                                                          \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| "                        \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+["                                                                            \
    "\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static const struct class classes[] = {
    {.name = "LlamaTokenizer",
     .pre_tokenizer = "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\","
                      "\"split\":false}",
     .decoder = "{\"type\":\"Sequence\",\"decoders\":[" TO_SPACE "," FROM_BYTES
                ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}",
     .model = MODEL("true"),
     .tokens = {"<s>", "</s>", "<unk>"}},
    {.name = "GemmaTokenizer",
     .normalizer = "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"}",
     .pre_tokenizer = "{\"type\":\"Split\",\"pattern\":{\"String\":\" "
                      "\"},\"behavior\":\"MergedWithPrevious\",\"invert\":false}",
     .decoder = "{\"type\":\"Sequence\",\"decoders\":[" TO_SPACE "," FROM_BYTES "]}",
     .model = MODEL("true"),
     .tokens = {"<bos>", "<eos>", "<unk>", NULL, "<pad>", NULL, "<mask>"},
     .unk = true},
    {.name = "Qwen2Tokenizer",
     .normalizer = "{\"type\":\"NFC\"}",
     .pre_tokenizer =
         "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" QWEN2_REGEX
         "\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
         "\"trim_offsets\":true,\"use_regex\":false}]}",
     .decoder = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}",
     .model = MODEL("false"),
     .tokens = {NULL, "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>"},
     .specials_again = true},
};

/* The class that HF has registered for a model_type. strict: it wins over tokenizer_class. */
static const struct {
    const char *model_type, *name;
    bool strict;
} registered[] = {
    {"gemma", "GemmaTokenizer", false},       {"gemma2", "GemmaTokenizer", false},
    {"gemma3", "GemmaTokenizer", false},      {"gemma3_text", "GemmaTokenizer", false},
    {"qwen2", "Qwen2Tokenizer", true},        {"qwen3", "Qwen2Tokenizer", false},
    {"mistral", "TokenizersBackend", true},   {"mistral3", "TokenizersBackend", true},
    {"ministral", "TokenizersBackend", true}, {"ministral3", "TokenizersBackend", true},
    {"phi3", "TokenizersBackend", true},
};

/* What is read; root is the caller's. */
struct files {
    json_t *root;
    json_t *config;  /* tokenizer_config.json, empty if it is not there */
    json_t *map;     /* special_tokens_map.json, where it counts */
    json_t *old;     /* added_tokens.json, where it counts */
    json_t *model;   /* config.json, NULL where it is no JSON object */
    json_t *decoder; /* "added_tokens_decoder", else what counts in its place: an array in the order of ids,
                      * flags complete */
    const struct class *class; /* NULL: the common one */
    const char *path;
};

static fkv_status load(const char *dir, const char *name, json_t **out, fkv_err *err)
{
    fkv_status st = FKV_OK;
    char *path = fkv_path_join(dir, name);
    *out = NULL;
    if (!path) return fkv_fail_memory(err);
    if (fkv_file_exists(path)) st = fkv_json_load_reals(path, FILE_MAX, out, err);
    if (!st && *out && !json_is_object(*out))
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "must be a JSON object");
    if (!st && !*out) *out = json_object();
    if (!st && !*out) st = fkv_fail_memory(err);
    if (st) {
        json_decref(*out);
        *out = NULL;
    }
    free(path);
    return st;
}

static fkv_status refuse(const struct files *f, const char *key, const char *what, fkv_err *err)
{
    return fkv_fail_at(err, FKV_E_INPUT, f->path, 0, key, "%s", what);
}

/* --- which class -------------------------------------------------------------- */

static const struct class *class_of(const char *name, size_t n)
{
    for (size_t k = 0; name && k < sizeof classes / sizeof *classes; k++)
        if (strlen(classes[k].name) == n && !strncmp(classes[k].name, name, n)) return &classes[k];
    return NULL;
}

static bool mentions_byte_level(const json_t *o, int depth)
{
    size_t i;
    const char *key;
    json_t *v;
    const char *type = json_string_value(json_object_get(o, "type"));
    if (type && !strcmp(type, "ByteLevel")) return true;
    if (depth > 8) return false;
    if (json_is_array(o)) {
        json_array_foreach(o, i, v) if (mentions_byte_level(v, depth + 1)) return true;
        return false;
    }
    json_object_foreach((json_t *)o, key, v) if (mentions_byte_level(v, depth + 1)) return true;
    return false;
}

static void choose_class(struct files *f)
{
    const char *type = json_string_value(json_object_get(f->model, "model_type"));
    const char *name = json_string_value(json_object_get(f->config, "tokenizer_class"));
    if (!name) name = json_string_value(json_object_get(f->model, "tokenizer_class"));
    size_t n = name ? strlen(name) : 0, k = 0, n_rows = sizeof registered / sizeof *registered;
    if (n > 4 && !strcmp(name + n - 4, "Fast")) n -= 4;
    while (k < n_rows && (!type || strcmp(registered[k].model_type, type) != 0)) k++;
    if (k < n_rows && (!name || registered[k].strict)) {
        f->class = class_of(registered[k].name, strlen(registered[k].name));
        return;
    }
    f->class = class_of(name, n);
    if (name && !f->class && strncmp(name, "PreTrainedTokenizer", n) != 0 &&
        strncmp(name, "TokenizersBackend", n) != 0)
        fkv_log("%s: the tokenizer_class %.*s is not known here: tokenizer.json is taken as it is", f->path,
                (int)(n < 60 ? n : 60), name);
    /* Files of Llama 3's kind say LlamaTokenizer too. */
    if (f->class == &classes[0] && (mentions_byte_level(json_object_get(f->root, "pre_tokenizer"), 0) ||
                                    mentions_byte_level(json_object_get(f->root, "decoder"), 0)))
        f->class = NULL;
}

/* --- tokens ------------------------------------------------------------------- */

/* A token for fkv_added_open: flags that are missing are HF's, its own if it is a string alone. NULL: no
 * memory. */
static json_t *token_of(const json_t *value, bool special)
{
    const json_t *o = json_is_object(value) ? value : NULL;
    const json_t *content = o ? json_object_get(o, "content") : value;
    const json_t *flag = json_object_get(o, "special"), *normalized = json_object_get(o, "normalized");
    special = o && flag ? json_is_true(flag) : special;
    return json_pack("{s:O,s:b,s:b,s:b,s:b,s:b}", "content", content, "special", special, "single_word",
                     json_is_true(json_object_get(o, "single_word")), "lstrip",
                     json_is_true(json_object_get(o, "lstrip")), "rstrip",
                     json_is_true(json_object_get(o, "rstrip")), "normalized",
                     normalized ? json_is_true(normalized) : !special);
}

static const char *content_of(const json_t *value)
{
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

/* The value of a named token: special_tokens_map.json's, tokenizer_config.json's, the class's; NULL: none. */
static const json_t *named_value(const struct files *f, const char *name)
{
    const json_t *v = json_object_get(f->map, name);
    if (!v) v = json_object_get(f->config, name);
    return json_is_null(v) ? NULL : v;
}

/* A token and the id that a file gives it. */
struct numbered {
    json_int_t id;
    size_t place;
    json_t *token; /* counted */
};

struct numbers {
    struct numbered *at;
    size_t n;
};

static int by_id(const void *a, const void *b)
{
    const struct numbered *x = a, *y = b;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

/* Takes the token, which is NULL without memory. */
static fkv_status add_number(struct numbers *list, json_int_t id, json_t *token, fkv_err *err)
{
    if (!token) return fkv_fail_memory(err);
    list->at[list->n] = (struct numbered){id, list->n, token};
    list->n++;
    return FKV_OK;
}

/* Appends the tokens in the order of their ids; of several with one id the last counts. */
static fkv_status sort_tokens(struct numbers *list, json_t *out, fkv_err *err)
{
    if (list->n) qsort(list->at, list->n, sizeof *list->at, by_id);
    for (size_t i = 0; i < list->n; i++) {
        const char *content = content_of(list->at[i].token);
        if (i + 1 < list->n && list->at[i].id == list->at[i + 1].id) continue;
        if (content && !*content) continue; /* as HF */
        json_t *token = token_of(list->at[i].token, false);
        if (!token || json_object_set_new(token, "id", json_integer(list->at[i].id)) ||
            json_array_append(out, token)) {
            json_decref(token);
            return fkv_fail_memory(err);
        }
        json_decref(token);
    }
    return FKV_OK;
}

static fkv_status number_decoder(const struct files *f, json_t *o, struct numbers *list, fkv_err *err)
{
    const char *key;
    json_t *v;
    fkv_status st = FKV_OK;
    json_object_foreach(o, key, v)
    {
        char *end;
        const json_int_t id = strtoll(key, &end, 10);
        if (*end || !content_of(v) || !json_is_object(v))
            st = refuse(f, "added_tokens_decoder", "must have an id and an object with 'content' each", err);
        if (st || (st = add_number(list, id, json_incref(v), err))) break;
    }
    return st;
}

/* Whether a string is one of the special tokens by name or a further one. In HF a token of
 * tokenizer_config.json that is an object is not compared here. */
static bool is_special_string(const struct files *f, const char *content)
{
    const json_t *extra = named_value(f, EXTRA), *v;
    size_t i;
    for (int k = 0; k < N_NAMED; k++) {
        v = named_value(f, named[k]);
        if (json_is_object(v) && !json_object_get(f->map, named[k])) continue;
        if (content_of(v) && !strcmp(content_of(v), content)) return true;
    }
    if (!json_array_size(extra)) extra = named_value(f, "additional_special_tokens");
    json_array_foreach((json_t *)extra, i,
                       v) if (content_of(v) && !strcmp(content_of(v), content)) return true;
    return false;
}

/* added_tokens.json: strings and their ids. */
static fkv_status number_old(const struct files *f, struct numbers *list, fkv_err *err)
{
    const char *content;
    json_t *v;
    fkv_status st = FKV_OK;
    json_object_foreach(f->old, content, v)
    {
        const bool special = is_special_string(f, content);
        const double id = json_number_value(v);
        if (!json_is_number(v) || id < 0 || id > FKV_ID_MAX || (double)(json_int_t)id < id)
            return fkv_fail_at(err, FKV_E_INPUT, "added_tokens.json", 0, content, "must be an id");
        st = add_number(list, (json_int_t)id, json_pack("{s:s,s:b}", "content", content, "special", special),
                        err);
        if (st) break;
    }
    return st;
}

/* tokenizer.json's own, which count again. */
static fkv_status number_own(const struct files *f, struct numbers *list, fkv_err *err)
{
    json_t *token;
    size_t i;
    char key[48];
    fkv_status st = FKV_OK;
    json_array_foreach(json_object_get(f->root, "added_tokens"), i, token)
    {
        snprintf(key, sizeof key, "added_tokens[%zu]", i);
        if (!json_is_object(token) || !content_of(token))
            st = fkv_fail_at(err, FKV_E_INPUT, "tokenizer.json", 0, key, "must be an object with 'content'");
        if (!st)
            st = add_number(list, json_integer_value(json_object_get(token, "id")), json_incref(token), err);
        if (st) break;
    }
    return st;
}

static fkv_status read_decoder(struct files *f, const char *dir, fkv_err *err)
{
    json_t *o = json_object_get(f->config, "added_tokens_decoder");
    struct numbers list = {0};
    fkv_status st = FKV_OK;
    if (o && !json_is_object(o))
        return refuse(f, "added_tokens_decoder", "must be an object of ids and tokens", err);
    if (!o) st = load(dir, "special_tokens_map.json", &f->map, err);
    if (!st && !o) st = load(dir, "added_tokens.json", &f->old, err);
    if (st) return st;
    list.at = calloc(json_object_size(o) + json_object_size(f->old) +
                         json_array_size(json_object_get(f->root, "added_tokens")) + 1,
                     sizeof *list.at);
    f->decoder = json_array();
    st = list.at && f->decoder ? FKV_OK : fkv_fail_memory(err);
    if (!st && o) st = number_decoder(f, o, &list, err);
    if (!st && !o) st = number_old(f, &list, err);
    if (!st && !o) st = number_own(f, &list, err);
    if (!st) st = sort_tokens(&list, f->decoder, err);
    for (size_t i = 0; i < list.n; i++) json_decref(list.at[i].token);
    free(list.at);
    return st;
}

/* Appends a special token, unless a token of its name is added anyway (fkv_added_open knows). */
static fkv_status add_special(const struct files *f, const json_t *value, const char *key, bool again,
                              json_t *more, fkv_err *err)
{
    const char *content = content_of(value);
    if (!content) return refuse(f, key, "must be a token: a string, or an object with 'content'", err);
    if (!*content) return FKV_OK;
    json_t *string = json_string(content);
    json_t *token = string ? token_of(again ? string : value, true) : NULL;
    json_decref(string);
    if (!token || json_object_set_new(token, again ? "again" : "if_new", json_true()) ||
        json_array_append_new(more, token))
        return fkv_fail_memory(err);
    return FKV_OK;
}

/* Takes a special token, into a list or an object. */
typedef fkv_status special_fn(const struct files *f, const json_t *value, const char *key, bool again,
                              json_t *into, fkv_err *err);

/* Whether a key is a special token of the model's own, such as image_token. */
static bool is_own_token(const char *key, const json_t *v)
{
    const size_t n = strlen(key);
    for (int k = 0; k < N_NAMED; k++)
        if (!strcmp(named[k], key)) return false;
    return n > 6 && !strcmp(key + n - 6, "_token") && (json_is_string(v) || json_is_object(v));
}

/* All special tokens, in HF's order. */
static fkv_status each_special(const struct files *f, special_fn *fn, bool again, json_t *more, fkv_err *err)
{
    fkv_status st = FKV_OK;
    const char *key;
    json_t *v;
    size_t i;
    for (int k = 0; !st && k < N_NAMED; k++) {
        const json_t *value = named_value(f, named[k]);
        json_t *standard = NULL;
        if (!value && f->class && f->class->tokens[k] && !json_object_get(f->config, named[k])) {
            value = standard = json_string(f->class->tokens[k]);
            if (!standard) return fkv_fail_memory(err);
        }
        if (value) st = fn(f, value, named[k], again, more, err);
        json_decref(standard);
    }
    json_object_foreach(f->config, key, v) if (!st && is_own_token(key, v)) st =
        fn(f, v, key, again, more, err);
    const json_t *extra = named_value(f, EXTRA);
    if (json_is_object(extra))
        json_object_foreach((json_t *)extra, key, v) if (!st) st = fn(f, v, key, again, more, err);
    if (!extra || (json_is_array(extra) && !json_array_size(extra)))
        extra = named_value(f, "additional_special_tokens");
    if (json_is_array(extra)) json_array_foreach(extra, i, v) if (!st) st = fn(f, v, EXTRA, again, more, err);
    return st;
}

/* Collects the strings of named tokens; extra ones have no names. */
static fkv_status add_name(const struct files *f, const json_t *value, const char *key, bool again,
                           json_t *names, fkv_err *err)
{
    const char *content = content_of(value);
    (void)f;
    (void)again;
    if (!content || !strcmp(key, EXTRA)) return FKV_OK;
    return json_object_set_new(names, content, json_true()) ? fkv_fail_memory(err) : FKV_OK;
}

/* Marks the tokens of those strings: HF makes them special. */
static fkv_status mark_named(json_t *list, const json_t *names, fkv_err *err)
{
    json_t *token;
    size_t i;
    json_array_foreach(list, i, token)
    {
        const char *content = content_of(token);
        if (content && json_object_get(names, content) && json_object_set_new(token, "named", json_true()))
            return fkv_fail_memory(err);
    }
    return FKV_OK;
}

static fkv_status mark_all_named(const struct files *f, json_t *more, fkv_err *err)
{
    json_t *names = json_object();
    fkv_status st = names ? each_special(f, add_name, false, names, err) : fkv_fail_memory(err);
    if (!st) st = mark_named(more, names, err);
    json_decref(names);
    return st;
}

/* --- a class's own steps -------------------------------------------------------- */

/* Whether two parts of tokenizer.json mean the same ids; offsets are nobody's here. */
static bool is_same(const json_t *a, const json_t *b)
{
    const char *key;
    json_t *v;
    size_t i;
    if (json_is_array(a) && json_array_size(a) == json_array_size(b)) {
        json_array_foreach(a, i, v) if (!is_same(v, json_array_get(b, i))) return false;
        return true;
    }
    if (!json_is_object(a)) return json_equal(a, b) || (json_is_null(a) && !b);
    json_object_foreach((json_t *)a, key, v) if (strcmp(key, "trim_offsets") != 0 &&
                                                 !is_same(v, json_object_get(b, key))) return false;
    return true;
}

/* Sets a part of tokenizer.json, and says so where that changes it. */
static fkv_status put(const struct files *f, const char *key, json_t *v, fkv_err *err)
{
    const json_t *old = json_object_get(f->root, key);
    if (!v) return fkv_fail_memory(err);
    if (!is_same(v, old))
        fkv_log(
            "tokenizer.json: its %s is not used: HF's %s, which tokenizer_config.json or the model's type "
            "asks for, has its own",
            key, f->class->name);
    return json_object_set_new(f->root, key, v) ? fkv_fail_memory(err) : FKV_OK;
}

static json_t *parse(const char *text)
{
    return text ? json_loads(text, 0, NULL) : json_null();
}

/* Llama's Metaspace and decoder: where a space is put in front, and taken away again. */
static json_t *prepending(const struct files *f, json_t *pre_tokenizer)
{
    const bool never = json_is_false(json_object_get(f->config, "add_prefix_space"));
    const bool always = json_is_true(json_object_get(f->config, "legacy"));
    json_t *scheme = json_string(never ? "never" : always ? "always" : "first");
    if (!scheme || json_object_set_new(pre_tokenizer, "prepend_scheme", scheme)) {
        json_decref(pre_tokenizer);
        return NULL;
    }
    return pre_tokenizer;
}

/* Qwen2's ByteLevel may put one in front, too. */
static json_t *prefixing(const struct files *f, json_t *pre_tokenizer)
{
    json_t *byte_level = json_array_get(json_object_get(pre_tokenizer, "pretokenizers"), 1);
    if (!json_is_true(json_object_get(f->config, "add_prefix_space")) ||
        !json_object_set_new(byte_level, "add_prefix_space", json_true()))
        return pre_tokenizer;
    json_decref(pre_tokenizer);
    return NULL;
}

static json_t *unprepending(const struct files *f, json_t *decoder)
{
    json_t *steps = json_object_get(decoder, "decoders");
    if (json_is_false(json_object_get(f->config, "add_prefix_space")))
        json_array_remove(steps, json_array_size(steps) - 1);
    return decoder;
}

static fkv_status build_class(const struct files *f, fkv_err *err)
{
    const struct class *c = f->class;
    const bool llama = c == &classes[0];
    json_t *model = json_object_get(f->root, "model"), *pre_tokenizer = parse(c->pre_tokenizer),
           *decoder = parse(c->decoder);
    if (llama && pre_tokenizer) pre_tokenizer = prepending(f, pre_tokenizer);
    if (c->specials_again && pre_tokenizer) pre_tokenizer = prefixing(f, pre_tokenizer);
    if (llama && decoder) decoder = unprepending(f, decoder);
    fkv_status st = put(f, "pre_tokenizer", pre_tokenizer, err), later = put(f, "decoder", decoder, err);
    if (!st) st = later;
    if (!st) st = put(f, "normalizer", parse(c->normalizer), err);
    if (!st && json_is_object(model)) {
        if (json_object_update_new(model, parse(c->model))) st = fkv_fail_memory(err);
        const json_t *unk = named_value(f, "unk_token");
        const char *string = unk ? content_of(unk) : c->tokens[2];
        if (!st && c->unk && string && json_object_set_new(model, "unk_token", json_string(string)))
            st = fkv_fail_memory(err);
    }
    /* Its tokens are added anew. */
    if (!st && json_object_set_new(f->root, "added_tokens", json_array())) st = fkv_fail_memory(err);
    return st;
}

/* --- the rest ------------------------------------------------------------------- */

/* Whether tokenizer.json puts a token in front of a text (or behind it). */
static bool adds_token(const json_t *o, bool behind, int depth)
{
    const json_t *single = json_object_get(o, "single"), *list = json_object_get(o, "processors");
    const size_t n = json_array_size(single);
    if (n) return json_object_get(json_array_get(single, behind ? n - 1 : 0), "SpecialToken") != NULL;
    if (json_object_get(o, "cls")) return true;
    for (size_t i = 0; depth < 8 && i < json_array_size(list); i++)
        if (adds_token(json_array_get(list, i), behind, depth + 1)) return true;
    return false;
}

static fkv_status check_settings(const struct files *f, fkv_err *err)
{
    static const char *const add[] = {"add_bos_token", "add_eos_token"};
    for (int k = 0; k < 2; k++) {
        const json_t *v = json_object_get(f->config, add[k]);
        if (json_is_boolean(v) &&
            json_is_true(v) != adds_token(json_object_get(f->root, "post_processor"), k, 0))
            fkv_log(
                "%s: %s is %s, but tokenizer.json's post_processor says otherwise, and that counts, as in HF",
                f->path, add[k], json_is_true(v) ? "true" : "false");
    }
    static const char *const not_yet[] = {"split_special_tokens", "fix_mistral_regex"};
    for (int k = 0; k < 2; k++)
        if (json_is_true(json_object_get(f->config, not_yet[k])))
            return refuse(f, not_yet[k], "true is not supported", err);
    if (!json_is_true(json_object_get(f->config, "clean_up_tokenization_spaces"))) return FKV_OK;
    static const char really[] = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
    if (json_is_true(json_object_get(f->config, really)))
        return refuse(f, really, "true is not supported", err);
    fkv_log("%s: clean_up_tokenization_spaces is left out for a BPE tokenizer, as in HF", f->path);
    return FKV_OK;
}

static fkv_status read_all(struct files *f, const char *dir, json_t **more, fkv_err *err)
{
    fkv_err ignored = {0};
    fkv_status st = load(dir, "tokenizer_config.json", &f->config, err);
    if (st) return st;
    /* A config.json that is wrong is for those to tell who need it. */
    st = load(dir, "config.json", &f->model, &ignored);
    if (st == FKV_E_SYSTEM) *err = ignored;
    if (st == FKV_E_INPUT) st = FKV_OK;
    if (!st) st = read_decoder(f, dir, err);
    if (st) return st;
    choose_class(f);
    if ((st = check_settings(f, err))) return st;
    if (f->class && (st = build_class(f, err))) return st;
    *more = json_incref(f->decoder);
    st = mark_all_named(f, *more, err);
    if (!st) st = each_special(f, add_special, false, *more, err);
    if (!st && f->class && f->class->specials_again) st = each_special(f, add_special, true, *more, err);
    return st;
}

fkv_status fkv_tokenizer_config_read(const char *dir, json_t *root, json_t **more, fkv_err *err)
{
    struct files f = {.root = root};
    char *path = fkv_path_join(dir, "tokenizer_config.json");
    *more = NULL;
    if (!path) return fkv_fail_memory(err);
    f.path = path;
    fkv_status st = read_all(&f, dir, more, err);
    if (st) {
        json_decref(*more);
        *more = NULL;
    }
    json_decref(f.config);
    json_decref(f.map);
    json_decref(f.old);
    json_decref(f.model);
    json_decref(f.decoder);
    free(path);
    return st;
}
