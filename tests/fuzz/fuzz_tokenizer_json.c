/* Any bytes as tokenizer.json. What is accepted encodes and decodes texts. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fuzz/folder.h"
#include "tests/fuzz/json_mutator.h"
#include "tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const fkv_tokenizer *t, fkv_tokenizer_scratch *s)
{
    static const char *const texts[] = {"", "ab  abc he's \r\n\r\n x1234",
                                        "<s>a<a> <s> b\xc3\xa9\xcc\x81\xe1\x84\x80\xe1\x85\xa1",
                                        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"};
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
    }
    put_file(path, data, size);

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
