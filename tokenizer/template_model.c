/* A model folder's chat template and special tokens: see template.h. */
#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"
#include "runner/base/json.h"
#include "tokenizer/template.h"

enum { CONFIG_MAX_BYTES = 64 << 20 };

/* Loads dir/name; *out is NULL where there is no such file. */
static fkv_status load(const char *dir, const char *name, char **path, json_t **out, fkv_err *err)
{
    *out = NULL;
    *path = fkv_path_join(dir, name);
    if (!*path) return fkv_fail_memory(err);
    if (!fkv_file_exists(*path)) return FKV_OK;
    fkv_status st = fkv_json_load_reals(*path, CONFIG_MAX_BYTES, out, err);
    if (!st && !json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        st = fkv_fail_at(err, FKV_E_INPUT, *path, 0, NULL, "must be an object");
    }
    return st;
}

/* A token is a string, or an object with its content. */
static const json_t *token_of(const json_t *v)
{
    const json_t *content = json_object_get(v, "content");
    return json_is_string(v) ? v : json_is_string(content) ? content : NULL;
}

/* Adds those members whose names end with "_token", or all. */
static fkv_status add_tokens(json_t *to, const json_t *from, bool all, fkv_err *err)
{
    static const char ending[] = "_token";
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)from, key, member)
    {
        const size_t n = strlen(key), n_ending = sizeof ending - 1;
        const json_t *token = token_of(member);
        if (!token || (!all && (n < n_ending || strcmp(key + n - n_ending, ending) != 0))) continue;
        json_t *copy = json_stringn(json_string_value(token), json_string_length(token));
        if (json_object_set_new(to, key, copy)) return fkv_fail_memory(err);
    }
    return FKV_OK;
}

static fkv_status add_config(const json_t *config, json_t *tokens, fkv_err *err)
{
    fkv_status st = add_tokens(tokens, config, false, err);
    if (!st) st = add_tokens(tokens, json_object_get(config, "extra_special_tokens"), true, err);
    if (!st) st = add_tokens(tokens, json_object_get(config, "model_specific_special_tokens"), true, err);
    return st;
}

/* HF reads special_tokens_map.json only where tokenizer_config.json does not list the added tokens. */
static fkv_status read_tokens(const char *dir, const json_t *config, json_t **out, fkv_err *err)
{
    char *path = NULL;
    json_t *map = NULL;
    fkv_status st = FKV_OK;
    *out = json_object();
    if (!*out) return fkv_fail_memory(err);
    st = add_config(config, *out, err);
    if (!st && !json_object_get(config, "added_tokens_decoder")) {
        st = load(dir, "special_tokens_map.json", &path, &map, err);
        if (!st) st = add_config(map, *out, err);
    }
    json_decref(map);
    free(path);
    if (!st) return FKV_OK;
    json_decref(*out);
    *out = NULL;
    return st;
}

fkv_status fkv_template_tokens(const char *dir, json_t **out, fkv_err *err)
{
    char *path = NULL;
    json_t *config = NULL;
    *out = NULL;
    fkv_status st = load(dir, "tokenizer_config.json", &path, &config, err);
    if (!st) st = read_tokens(dir, config, out, err);
    json_decref(config);
    free(path);
    return st;
}

/* chat_template is a text, or a list of {name, template}. */
static fkv_status text_of(const json_t *config, const char *path, const json_t **out, fkv_err *err)
{
    static const char key[] = "chat_template";
    const json_t *v = json_object_get(config, key);
    *out = json_is_string(v) ? v : NULL;
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *name = json_object_get(json_array_get(v, i), "name");
        if (json_is_string(name) && !strcmp(json_string_value(name), "default"))
            *out = json_object_get(json_array_get(v, i), "template");
    }
    if (!v || json_is_null(v) || json_is_string(*out)) return FKV_OK;
    if (json_is_array(v))
        return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "has no template named 'default'");
    return fkv_fail_at(err, FKV_E_INPUT, path, 0, key, "must be a text or a list of templates");
}

fkv_status fkv_template_open_model(const char *dir, fkv_template **out, fkv_err *err)
{
    char *config_path = NULL, *path = NULL;
    json_t *config = NULL, *tokens = NULL;
    const json_t *text = NULL;
    *out = NULL;
    fkv_status st = load(dir, "tokenizer_config.json", &config_path, &config, err);
    if (!st) st = read_tokens(dir, config, &tokens, err);
    if (st) goto out;
    path = fkv_path_join(dir, "chat_template.jinja");
    if (!path) {
        st = fkv_fail_memory(err);
    } else if (fkv_file_exists(path)) {
        st = fkv_template_open_file(path, tokens, out, err);
    } else {
        st = text_of(config, config_path, &text, err);
        if (!st && text)
            st = fkv_template_open(json_string_value(text), json_string_length(text), config_path, tokens,
                                   out, err);
    }
out:
    free(path);
    json_decref(tokens);
    json_decref(config);
    free(config_path);
    return st;
}
