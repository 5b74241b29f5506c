/* Any bytes as text for needle-tiny's tokenizer, which has every byte and no
 * normalizer: valid UTF-8 comes back exactly, all else is refused. The same
 * bytes as ids decode to valid UTF-8. Then for the small tokenizers of other layouts: what
 * is encoded, and the bytes as ids, decode token by token as they do as a whole. */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/log.h"
#include "runner/base/utf8.h"
#include "tests/fuzz/folder.h"
#include "tokenizer/tokenizer.h"

static const char *tokenizer_path;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode_as_ids(const fkv_tokenizer *t, fkv_tokenizer_scratch *s, const uint8_t *data, size_t size)
{
    fkv_err err = {0};
    fkv_buf text = {0};
    fkv_ids ids = {0};
    const size_t n = size / 2;
    int32_t *given = malloc((n + 1) * sizeof *given);
    if (!given) abort();
    for (size_t i = 0; i < n; i++) given[i] = (data[2 * i] << 8 | data[2 * i + 1]) % fkv_tokenizer_n_ids(t);
    if (fkv_tokenizer_decode(t, given, n, size & 1, &text, &err)) abort();
    /* Encoding checks that it is valid UTF-8. */
    if (fkv_tokenizer_encode(t, s, text.len ? text.data : "", text.len, false, &ids, NULL, NULL, &err))
        abort();
    fkv_ids_free(&ids);
    fkv_buf_free(&text);
    free(given);
}

/* The tokenizers of golden/tokenizers that differ most. */
static const char *const layouts[] = {"llama-2",      "gemma-layout",     "metaspace-always-split",
                                      "falcon",       "some-bytes-fused", "replace-regex",
                                      "behind-bytes", "byte-merges"};
enum { N_LAYOUTS = sizeof layouts / sizeof *layouts };

struct layout {
    fkv_tokenizer *t;
    fkv_tokenizer_scratch *s;
    fkv_tokenizer_stream *stream;
};

static void open_layout(const char *name, struct layout *l)
{
    char path[512];
    fkv_err err = {0};
    json_error_t why;
    snprintf(path, sizeof path, FKV_TEST_DIR "/golden/tokenizers/%s.json", name);
    json_t *golden = json_load_file(path, JSON_ALLOW_NUL, &why);
    char *text = json_dumps(json_object_get(golden, "tokenizer"), 0);
    if (!text) abort();
    put_file(tokenizer_path, text, strlen(text));
    free(text);
    json_decref(golden);
    if (fkv_tokenizer_open(fuzz_folder, &l->t, &err) || fkv_tokenizer_scratch_new(l->t, &l->s, &err) ||
        fkv_tokenizer_stream_new(l->t, true, &l->stream, &err))
        abort();
}

static void stream_ids(const struct layout *l, const int32_t *ids, size_t n)
{
    fkv_err err = {0};
    fkv_buf whole = {0}, text = {0};
    fkv_tokenizer_stream_restart(l->stream);
    for (size_t i = 0; i < n; i++)
        if (fkv_tokenizer_stream_push(l->stream, ids[i], &text, &err)) abort();
    if (fkv_tokenizer_stream_rest(l->stream, &text, &err)) abort();
    if (fkv_tokenizer_decode(l->t, ids, n, true, &whole, &err)) abort();
    if (text.len != whole.len || (text.len && memcmp(text.data, whole.data, text.len) != 0)) abort();
    if (fkv_utf8_span(text.data, text.len) != text.len) abort();
    fkv_buf_free(&whole);
    fkv_buf_free(&text);
}

static void try_layout(const struct layout *l, const uint8_t *data, size_t size)
{
    fkv_err err = {0};
    fkv_ids ids = {0};
    if (!fkv_tokenizer_encode(l->t, l->s, (const char *)data, size, size & 1, &ids, NULL, NULL, &err))
        stream_ids(l, ids.data, ids.len);
    else if (err.status != FKV_E_INPUT || !err.message[0])
        abort();
    ids.len = 0;
    for (size_t i = 0; i + 1 < size; i += 2)
        if (fkv_ids_push(&ids, (data[i] << 8 | data[i + 1]) % fkv_tokenizer_n_ids(l->t), &err)) abort();
    stream_ids(l, ids.data, ids.len);
    fkv_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static fkv_tokenizer *t;
    static fkv_tokenizer_scratch *s;
    fkv_err err = {0};
    if (!t && (fkv_tokenizer_open(FKV_TEST_DIR "/data/needle-tiny", &t, &err) ||
               fkv_tokenizer_scratch_new(t, &s, &err)))
        abort();
    static struct layout others[N_LAYOUTS];
    if (!tokenizer_path) {
        make_folder();
        fkv_log_set_stderr(false);
        tokenizer_path = in_folder("tokenizer.json");
        for (size_t i = 0; i < N_LAYOUTS; i++) open_layout(layouts[i], &others[i]);
    }
    decode_as_ids(t, s, data, size);
    for (size_t i = 0; i < N_LAYOUTS; i++) try_layout(&others[i], data, size);

    fkv_ids ids = {0};
    fkv_buf back = {0};
    if (fkv_tokenizer_encode(t, s, (const char *)data, size, false, &ids, NULL, NULL, &err)) {
        if (err.status != FKV_E_INPUT || !strstr(err.message, "UTF-8")) abort();
    } else {
        if (fkv_tokenizer_decode(t, ids.data, ids.len, false, &back, &err)) abort();
        if (back.len != size || (size && memcmp(back.data, data, size) != 0)) abort();
    }
    fkv_buf_free(&back);
    fkv_ids_free(&ids);
    return 0;
}
