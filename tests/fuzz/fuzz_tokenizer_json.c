/* Any bytes as tokenizer.json; where that is JSON with a key "beside", files beside it by name. What is
 * accepted encodes and decodes texts, and decodes them token by token alike. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runner/base/log.h"
#include "tests/fuzz/folder.h"
#include "tests/fuzz/json_mutator.h"
#include "tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_BESIDE = 4 };
static const char *const beside_names[N_BESIDE] = {"tokenizer_config.json", "config.json",
                                                   "special_tokens_map.json", "added_tokens.json"};
static const char *beside_paths[N_BESIDE];

static void put_beside(const uint8_t *data, size_t size)
{
    json_t *root = json_loadb((const char *)data, size, 0, NULL);
    for (size_t i = 0; i < N_BESIDE; i++) {
        const json_t *file = json_object_get(json_object_get(root, "beside"), beside_names[i]);
        char *text = file ? json_dumps(file, JSON_ENCODE_ANY) : NULL;
        if (text)
            put_file(beside_paths[i], text, strlen(text));
        else
            unlink(beside_paths[i]);
        free(text);
    }
    json_decref(root);
}

static void stream(const fkv_tokenizer *t, const fkv_ids *ids, bool skip, const fkv_buf *whole)
{
    fkv_err err = {0};
    fkv_buf text = {0}, now = {0};
    fkv_tokenizer_stream *s;
    if (fkv_tokenizer_stream_new(t, skip, &s, &err)) abort();
    for (size_t i = 0; i < ids->len; i++) {
        if (fkv_tokenizer_stream_push(s, ids->data[i], &text, &err)) abort();
        fkv_buf_clear(&now);
        if (fkv_tokenizer_stream_rest(s, &now, &err)) abort(); /* changes nothing */
    }
    if (fkv_tokenizer_stream_rest(s, &text, &err)) abort();
    if (text.len != whole->len || (text.len && memcmp(text.data, whole->data, text.len) != 0)) abort();
    fkv_tokenizer_stream_free(s);
    fkv_buf_free(&now);
    fkv_buf_free(&text);
}

static void use(const fkv_tokenizer *t, fkv_tokenizer_scratch *s)
{
    static const char *const texts[] = {
        "", "ab  abc he's \r\n\r\n x1234", "<s>a<a> <s> b\xc3\xa9\xcc\x81\xe1\x84\x80\xe1\x85\xa1",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
        " \xe2\x96\x81 a\xe2\x96\x81\xf0\x9f\x98\x80<0x0A>\n<unk>  a 12\xc2\xb2;"};
    fkv_ids ids = {0};
    const int32_t n_ids = fkv_tokenizer_n_ids(t);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        fkv_err err = {0};
        fkv_buf text = {0};
        size_t prefix = 0, suffix = 0;
        if (fkv_tokenizer_encode(t, s, texts[i], strlen(texts[i]), i & 1, &ids, &prefix, &suffix, &err)) {
            if (!err.message[0]) abort();
            continue;
        }
        if (prefix + suffix > ids.len) abort();
        for (size_t k = 0; k < ids.len; k++)
            if (ids.data[k] < 0 || ids.data[k] >= n_ids) abort();
        if (fkv_tokenizer_decode(t, ids.data, ids.len, i & 2, &text, &err)) abort();
        stream(t, &ids, i & 2, &text);
        fkv_buf_free(&text);
    }
    fkv_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *path;
    if (!path) {
        make_folder();
        path = in_folder("tokenizer.json");
        for (size_t i = 0; i < N_BESIDE; i++) beside_paths[i] = in_folder(beside_names[i]);
        fkv_log_set_stderr(false);
    }
    put_file(path, data, size);
    put_beside(data, size);

    fkv_err err = {0};
    fkv_tokenizer *t;
    fkv_tokenizer_scratch *s = NULL;
    if (fkv_tokenizer_open(fuzz_folder, &t, &err)) {
        if (!err.message[0] || t) abort();
        return 0;
    }
    if (fkv_tokenizer_scratch_new(t, &s, &err)) abort();
    use(t, s);
    fkv_tokenizer_scratch_free(s);
    fkv_tokenizer_close(t);
    return 0;
}
