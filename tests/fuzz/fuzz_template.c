/* Any bytes as a chat template, rendered with fixed messages; a part behind the first NUL is the
 * JSON of the variables. What a template does to limits must be an error, never more. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"
#include "runner/base/utf8.h"
#include "tokenizer/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static json_t *parse(const char *text, size_t n)
{
    json_error_t why;
    return fkv_json_parse(text, n, JSON_ALLOW_NUL, &why);
}

static void render(const fkv_template *t, const json_t *messages, const json_t *variables)
{
    fkv_err err = {0};
    fkv_buf out = {0};
    fkv_template_scratch *scratch;
    const fkv_template_input in = {
        .messages = messages, .add_generation_prompt = true, .variables = variables, .date = "2024-07-26"};
    if (fkv_template_scratch_new(&scratch, &err) || fkv_buf_puts(&out, "before", &err)) abort();
    for (int i = 0; i < 2; i++) { /* a scratch that was used changes nothing */
        const size_t len = out.len;
        fkv_err why = {0};
        fkv_status st = fkv_template_render(t, scratch, &in, &out, &why);
        if (st && (st != FKV_E_INPUT || out.len != len)) abort();
        if (fkv_utf8_span(out.data, out.len) != out.len) abort();
        if (st) break;
    }
    fkv_buf_free(&out);
    fkv_template_scratch_free(scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char given[] =
        "[{\"role\":\"system\",\"content\":\"Be brief. \"},{\"role\":\"user\",\"content\":"
        "\" na\\u00efve <b>\\n\"},{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}],"
        "\"n\":[1,2.5,true,null,-3],\"thinking\":\"hm\"},{\"role\":\"user\",\"content\":\"b,c\"}]";
    static const char usual[] =
        "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"n\":3,\"f\":-1.5,\"s\":\"abc\",\"d\":{\"a\":1}}";
    const char *text = (const char *)data, *nul = size ? memchr(data, 0, size) : NULL;
    const size_t n = nul ? (size_t)(nul - text) : size;
    fkv_err err = {0};
    fkv_template *t;
    if (fkv_template_open(size ? text : "", n, "t", NULL, &t, &err)) {
        if (!err.message[0] || t) abort();
        return 0;
    }
    json_t *messages = parse(given, strlen(given)), *variables = nul ? parse(nul + 1, size - n - 1) : NULL;
    if (!json_is_object(variables)) {
        json_decref(variables);
        variables = parse(usual, strlen(usual));
    }
    if (!messages || !variables) abort();
    render(t, messages, variables);
    json_decref(variables);
    json_decref(messages);
    fkv_template_close(t);
    return 0;
}
