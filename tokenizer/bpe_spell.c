/* From a spelled word to its first symbols, and where a long one may be cut: see
 * bpe_internal.h. Owns nothing. */
#include "tokenizer/bpe_internal.h"
#include "tokenizer/characters.h"

int32_t fkv_bpe_find(const fkv_bpe *bpe, const char *string, size_t n)
{
    if (n > bpe->vocab->max_len) return -1;
    const int32_t id = fkv_vocab_find(bpe->vocab, string, n);
    return id < bpe->n_model_ids && id >= 0 && bpe->in_model[id] ? id : -1;
}

static inline int32_t char_token(const fkv_bpe *bpe, uint32_t cp, const char *text, size_t len)
{
    return cp < FKV_N_BMP ? bpe->char_id[cp] : fkv_bpe_find(bpe, text, len);
}

/* A character's bytes as tokens, if all are there. */
static bool fall_back(const fkv_bpe *bpe, const char *text, size_t len, int32_t *symbols, size_t *m)
{
    if (!bpe->byte_fallback) return false;
    for (size_t i = 0; i < len; i++)
        if (bpe->fallback[(unsigned char)text[i]] < 0) return false;
    for (size_t i = 0; i < len; i++) symbols[(*m)++] = bpe->fallback[(unsigned char)text[i]];
    return true;
}

fkv_status fkv_bpe_spell(const fkv_bpe *bpe, const char *word, size_t n, int32_t *symbols, size_t *n_symbols,
                         fkv_err *err)
{
    size_t m = 0;
    bool unk = false; /* one waits: byte tokens pass it, as in HF */
    for (size_t i = 0, len; i < n; i += len) {
        const uint32_t cp = fkv_utf8_get(word + i, &len);
        const int32_t id = char_token(bpe, cp, word + i, len);
        if (id >= 0) {
            if (unk) symbols[m++] = bpe->unk_id;
            unk = false;
            symbols[m++] = id;
            continue;
        }
        if (fall_back(bpe, word + i, len, symbols, &m) || !bpe->has_unk) continue;
        if (bpe->unk_id < 0)
            return fkv_fail(
                err, FKV_E_INPUT,
                "a character has no token, and the tokenizer's unk_token is not in its vocabulary");
        if (unk && !bpe->fuse_unk) symbols[m++] = bpe->unk_id;
        unk = true;
    }
    if (unk) symbols[m++] = bpe->unk_id;
    *n_symbols = m;
    return FKV_OK;
}

/* Between two characters no merge crosses: both are symbols by themselves, and none joins
 * them. With plain_fallback what is not a symbol is bytes that nothing joins. */
size_t fkv_bpe_cut(const fkv_bpe *bpe, const char *word, size_t n, size_t begin)
{
    size_t len, i = begin;
    uint32_t last = fkv_utf8_get(word + i, &len);
    bool known = bpe->plain_fallback || char_token(bpe, last, word + i, len) >= 0;
    for (i += len; i < n; i += len) {
        const uint32_t cp = fkv_utf8_get(word + i, &len);
        const bool joined = fkv_bpe_joins(bpe, last, cp);
        if (bpe->plain_fallback) {
            if (!joined) return i;
        } else {
            const bool next = char_token(bpe, cp, word + i, len) >= 0;
            if (known && next && !joined) return i;
            known = next;
        }
        last = cp;
    }
    return n;
}
