/* Any bytes as text for needle-tiny's tokenizer, which has every byte and no
 * normalizer: valid UTF-8 comes back exactly, all else is refused. The same
 * bytes as ids decode to valid UTF-8. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/tokenizer.h"

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static fkv_tokenizer *t;
    static fkv_tokenizer_scratch *s;
    fkv_err err = {0};
    if (!t && (fkv_tokenizer_open(FKV_TEST_DIR "/data/needle-tiny", &t, &err) ||
               fkv_tokenizer_scratch_new(t, &s, &err)))
        abort();
    decode_as_ids(t, s, data, size);

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
