/* A tokenizer as a whole: see tokenizer.h. It owns what its parts read from the
 * file and is immutable once open; what changes from text to text is in the
 * scratch. How the parts work is not here: added.c, normalize.c, pretokenize.c,
 * bpe.c in the order in which a text passes them. */
#include "tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/utf8.h"
#include "tokenizer/added.h"
#include "tokenizer/bpe.h"
#include "tokenizer/characters.h"
#include "tokenizer/normalize.h"
#include "tokenizer/pretokenize.h"
#include "tokenizer/tokenizer_file.h"

enum { FILE_MAX = 64 << 20 };

struct fkv_tokenizer {
    fkv_vocab vocab; /* added tokens included */
    fkv_bpe *bpe;
    fkv_added *added;
    fkv_pretokenizer *pretokenizer;
    bool nfc;
    fkv_ids prefix, suffix;
};

struct fkv_tokenizer_scratch {
    fkv_bpe_scratch *bpe;
    fkv_regex_scratch *regex;
    fkv_nfc_scratch nfc;
    fkv_buf prefixed;
};

static fkv_status read_parts(fkv_tokenizer *t, const json_t *root, const char *path, fkv_err *err)
{
    if (!json_is_object(root)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "must be a JSON object");
    const json_t *model = json_object_get(root, "model");
    if (!json_is_object(model)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, "model", "must be an object");
    /* What tells a SentencePiece-style file stands in front, so that it is
     * refused for what it is. */
    fkv_status st = fkv_file_normalizer(root, path, &t->nfc, err);
    if (!st) st = fkv_pretokenizer_open(json_object_get(root, "pre_tokenizer"), path, &t->pretokenizer, err);
    if (!st) st = fkv_file_decoder(root, path, err);
    if (!st) st = fkv_bpe_open(model, path, &t->vocab, &t->bpe, err);
    if (!st)
        st = fkv_added_open(json_object_get(root, "added_tokens"), path, t->nfc, &t->vocab, &t->added, err);
    if (!st) st = fkv_file_post_processor(root, path, &t->vocab, &t->prefix, &t->suffix, err);
    return st;
}

fkv_status fkv_tokenizer_open(const char *dir, fkv_tokenizer **out, fkv_err *err)
{
    json_t *root = NULL;
    fkv_tokenizer *t = NULL;
    fkv_status st;
    *out = NULL;
    char *path = fkv_path_join(dir, "tokenizer.json");
    if (!path) return fkv_fail_memory(err);
    if ((st = fkv_json_load(path, FILE_MAX, &root, err))) goto out;
    t = calloc(1, sizeof *t);
    if (!t) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if ((st = read_parts(t, root, path, err))) goto out;
    *out = t;
    t = NULL;
out:
    fkv_tokenizer_close(t);
    json_decref(root);
    free(path);
    return st;
}

void fkv_tokenizer_close(fkv_tokenizer *tokenizer)
{
    if (!tokenizer) return;
    fkv_ids_free(&tokenizer->suffix);
    fkv_ids_free(&tokenizer->prefix);
    fkv_added_close(tokenizer->added);
    fkv_bpe_close(tokenizer->bpe);
    fkv_pretokenizer_close(tokenizer->pretokenizer);
    fkv_vocab_free(&tokenizer->vocab);
    free(tokenizer);
}

int32_t fkv_tokenizer_n_ids(const fkv_tokenizer *tokenizer)
{
    return tokenizer->vocab.n_ids;
}

fkv_status fkv_tokenizer_scratch_new(const fkv_tokenizer *tokenizer, fkv_tokenizer_scratch **out,
                                     fkv_err *err)
{
    fkv_status st;
    (void)tokenizer;
    *out = NULL;
    fkv_tokenizer_scratch *s = calloc(1, sizeof *s);
    if (!s) return fkv_fail_memory(err);
    if ((st = fkv_bpe_scratch_new(&s->bpe, err))) goto out;
    if ((st = fkv_regex_scratch_new(&s->regex, err))) goto out;
    *out = s;
    s = NULL;
out:
    fkv_tokenizer_scratch_free(s);
    return st;
}

void fkv_tokenizer_scratch_free(fkv_tokenizer_scratch *scratch)
{
    if (!scratch) return;
    fkv_buf_free(&scratch->prefixed);
    fkv_nfc_scratch_free(&scratch->nfc);
    fkv_regex_scratch_free(scratch->regex);
    fkv_bpe_scratch_free(scratch->bpe);
    free(scratch);
}

/* One call of encode, passed through the parts' callbacks. */
struct encoding {
    const fkv_tokenizer *tokenizer;
    fkv_tokenizer_scratch *scratch;
    fkv_ids *ids;
};

static fkv_status take_word(void *ctx, const char *word, size_t n, fkv_err *err)
{
    const struct encoding *e = ctx;
    return fkv_bpe_word(e->tokenizer->bpe, e->scratch->bpe, word, n, e->ids, err);
}

/* Normalized text between added tokens, or one of them. */
static fkv_status take_normalized(void *ctx, int32_t id, const char *text, size_t n, fkv_err *err)
{
    const struct encoding *e = ctx;
    if (id >= 0) return fkv_ids_push(e->ids, id, err);
    return fkv_pretokenize(e->tokenizer->pretokenizer, e->scratch->regex, &e->scratch->prefixed, text, n,
                           take_word, ctx, err);
}

/* Text as it came between added tokens, or one of them. */
static fkv_status take_raw(void *ctx, int32_t id, const char *text, size_t n, fkv_err *err)
{
    const struct encoding *e = ctx;
    if (id >= 0) return fkv_ids_push(e->ids, id, err);
    if (e->tokenizer->nfc) {
        fkv_status st = fkv_nfc(&e->scratch->nfc, text, n, &text, &n, err);
        if (st) return st;
    }
    return fkv_added_split(e->tokenizer->added, true, text, n, take_normalized, ctx, err);
}

static fkv_status push_all(fkv_ids *ids, const fkv_ids *more, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < more->len; i++) st = fkv_ids_push(ids, more->data[i], err);
    return st;
}

fkv_status fkv_tokenizer_encode(const fkv_tokenizer *tokenizer, fkv_tokenizer_scratch *scratch,
                                const char *text, size_t n, bool special, fkv_ids *ids, size_t *n_prefix,
                                size_t *n_suffix, fkv_err *err)
{
    struct encoding e = {.tokenizer = tokenizer, .scratch = scratch, .ids = ids};
    fkv_status st = FKV_OK;
    ids->len = 0;
    if (n_prefix) *n_prefix = special ? tokenizer->prefix.len : 0;
    if (n_suffix) *n_suffix = special ? tokenizer->suffix.len : 0;
    const size_t bad = fkv_utf8_span(text, n);
    if (bad < n) return fkv_fail(err, FKV_E_INPUT, "the text is not valid UTF-8 at byte %zu", bad);
    fkv_regex_start(scratch->regex, n);
    if (special) st = push_all(ids, &tokenizer->prefix, err);
    if (!st) st = fkv_added_split(tokenizer->added, false, text, n, take_raw, &e, err);
    if (!st && special) st = push_all(ids, &tokenizer->suffix, err);
    return st;
}

/* Appends the bytes that a token stands for: each character's byte, or the
 * string itself when one of them is not of the alphabet, as in HF. */
static fkv_status put_token(const char *string, size_t n, fkv_buf *out, fkv_err *err)
{
    const size_t from = out->len;
    fkv_status st = fkv_buf_reserve(out, n, err);
    if (st) return st;
    for (size_t i = 0, len; i < n; i += len) {
        const int byte = fkv_alphabet_byte(fkv_utf8_get(string + i, &len));
        if (byte < 0) {
            out->len = from;
            return fkv_buf_append(out, string, n, err);
        }
        out->data[out->len++] = (char)byte;
    }
    out->data[out->len] = '\0';
    return FKV_OK;
}

fkv_status fkv_tokenizer_decode(const fkv_tokenizer *tokenizer, const int32_t *ids, size_t n,
                                bool skip_special, fkv_buf *out, fkv_err *err)
{
    const size_t from = out->len;
    fkv_buf bytes = {0};
    fkv_status st = FKV_OK;
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *string = fkv_vocab_string(&tokenizer->vocab, ids[i], &len);
        if (!string && skip_special) continue; /* a model's vocabulary may be padded */
        if (!string) {
            st = fkv_fail(err, FKV_E_INPUT, "the id %d at %zu belongs to no token", (int)ids[i], i);
            goto out;
        }
        if (skip_special && fkv_added_is_special(tokenizer->added, ids[i])) continue;
        if ((st = put_token(string, len, out, err))) goto out;
    }
    if (out->len == from || fkv_utf8_span(out->data + from, out->len - from) == out->len - from) goto out;
    if ((st = fkv_buf_append(&bytes, out->data + from, out->len - from, err))) goto out;
    out->len = from;
    st = fkv_utf8_lossy(bytes.data, bytes.len, out, err);
out:
    if (st && out->data) {
        out->len = from;
        out->data[from] = '\0';
    }
    fkv_buf_free(&bytes);
    return st;
}
