/* Records: one byte for the format and the member's name, then the line. What
 * comes out must be JSON and UTF-8 whatever came in. */
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "jobs/record.h"

static fkv_record_parser *open_parser(fkv_format format)
{
    static const char templates[] = "{\"qa\":\"{context}{{input}\",\"s_e\":\"\",\"s\":\"{x}{id}\"}";
    static const char limits[] = "{\"qa\":3}";
    char paths[2][64];
    fkv_job job = {0};
    fkv_errs errs = {0};
    fkv_record_parser *parser = NULL;
    const int fds[2] = {memfd_create("templates", 0), memfd_create("limits", 0)};
    if (write(fds[0], templates, sizeof templates - 1) < 0 || write(fds[1], limits, sizeof limits - 1) < 0)
        abort();
    for (int i = 0; i < 2; i++) snprintf(paths[i], sizeof paths[i], "/proc/self/fd/%d", fds[i]);
    job.input.format = format;
    job.input.prompts = paths[0];
    job.input.max_new_tokens_by = paths[1];
    if (fkv_record_parser_open(&job, &parser, &errs)) abort();
    close(fds[0]);
    close(fds[1]);
    return parser;
}

static void must_load(const fkv_buf *text)
{
    json_t *value =
        json_loadb(text->data, text->len, JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    if (!value) abort();
    json_decref(value);
    for (size_t i = 0; i < text->len; i++) /* jansson passes over a NUL behind a number */
        if ((unsigned char)text->data[i] < ' ' && !memchr("\t\r\n", text->data[i], 3)) abort();
}

/* What the runner relies on. */
static void check_request(const fkv_record *r)
{
    const fkv_record_sampling *s = &r->sampling;
    json_t *prefix = json_stringn(r->prefix.data ? r->prefix.data : "", r->prefix.len);
    json_t *messages = NULL;
    if (r->wrap == FKV_WRAP_MESSAGES)
        messages = json_loadb(r->prompt.data, r->prompt.len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    if (!prefix || (r->wrap == FKV_WRAP_MESSAGES && !json_array_size(messages))) abort();
    json_decref(prefix);
    json_decref(messages);
    size_t at = 0;
    for (size_t i = 0; i < s->n_stop; i++) {
        const size_t n = strnlen(s->stop.data + at, s->stop.len - at);
        if (!n || at + n == s->stop.len) abort();
        at += n + 1;
    }
    if (at != (s->n_stop ? s->stop.len : 0) || (s->n_stop && !s->has_stop)) abort();
    if (s->has_temperature && !(s->temperature >= 0 && s->temperature <= 100)) abort();
    if (s->has_top_p && !(s->top_p > 0 && s->top_p <= 1)) abort();
    if (s->has_repetition_penalty && !(s->repetition_penalty > 0 && s->repetition_penalty <= 100)) abort();
    if ((s->has_top_k && s->top_k < 0) || (s->has_min_tokens && s->min_tokens < 0)) abort();
    if (r->max_new_tokens < 0 || r->max_new_tokens > INT32_MAX) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static fkv_record_parser *parsers[6];
    static fkv_record record;
    static const char *const members[] = {"qa/qa.jsonl", "s_e.jsonl", "other", ""};
    fkv_err err = {0};
    if (size < 1) return 0;
    const unsigned format = data[0] % 3 + (data[0] < 128 ? 0 : 3);
    if (!parsers[format]) parsers[format] = open_parser((fkv_format)format);
    char *copy = malloc(size); /* of just the line's size, so that overreads show */
    if (!copy) return 0;
    memcpy(copy, data + 1, size - 1);
    const fkv_line line = {
        .archive = "a", .member = members[data[0] / 3 % 4], .line = 1, .text = copy, .n = size - 1};
    if (fkv_record_parse(parsers[format], &line, &record, &err)) abort();
    free(copy);
    must_load(&record.id_json);
    must_load(&record.fields);
    json_t *message = json_string(record.error_message);
    json_t *prompt = json_stringn(record.prompt.data ? record.prompt.data : "", record.prompt.len);
    if (!message || !prompt || (!record.error_code[0] && !record.prompt.len)) abort();
    json_decref(message);
    json_decref(prompt);
    if (!record.error_code[0]) check_request(&record);
    return 0;
}
