/* A tokenizer as a whole: see tokenizer.h. It owns what its parts read from the
 * file and is immutable once open; what changes from text to text is in the
 * scratch. How the parts work is not here: added.c, normalizer.c, pretokenize.c,
 * bpe.c in the order in which a text passes them; decoder.c on the way back. */
#include "tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/file.h"
#include "runner/base/json.h"
#include "runner/base/utf8.h"
#include "tokenizer/added.h"
#include "tokenizer/bpe.h"
#include "tokenizer/decoder.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/post_process.h"
#include "tokenizer/pretokenize.h"
#include "tokenizer/tokenizer_config.h"

enum { FILE_MAX = 64 << 20 };

struct fkv_tokenizer {
    fkv_vocab vocab;   /* added tokens included */
    int32_t n_own_ids; /* largest one without them, plus one */
    fkv_normalizer *normalizer;
    fkv_pretokenizer *pretokenizer;
    fkv_bpe *bpe;
    fkv_added *added;
    fkv_ids prefix, suffix;
    fkv_decoder *decoder;
};

struct fkv_tokenizer_scratch {
    fkv_bpe_scratch *bpe;
    fkv_regex_scratch *regex;
    fkv_normalizer_scratch normalizer;
    fkv_pretokenizer_scratch pretokenizer;
};

struct fkv_tokenizer_stream {
    const fkv_tokenizer *tokenizer;
    bool skip_special;
    fkv_decoding decoding;
};

static fkv_status read_parts(fkv_tokenizer *t, const json_t *root, const json_t *more, const char *path,
                             fkv_err *err)
{
    const json_t *model = json_object_get(root, "model");
    if (!json_is_object(model)) return fkv_fail_at(err, FKV_E_INPUT, path, 0, "model", "must be an object");
    fkv_status st = fkv_normalizer_open(json_object_get(root, "normalizer"), path, &t->normalizer, err);
    if (!st)
        st = fkv_pretokenizer_open(json_object_get(root, "pre_tokenizer"), path,
                                   fkv_normalizer_keeps_start(t->normalizer), &t->pretokenizer, err);
    if (!st) st = fkv_decoder_open(json_object_get(root, "decoder"), path, &t->decoder, err);
    if (!st)
        st =
            fkv_bpe_open(model, path, fkv_pretokenizer_gives_bytes(t->pretokenizer), &t->vocab, &t->bpe, err);
    t->n_own_ids = t->vocab.n_ids;
    if (!st)
        st = fkv_added_open(json_object_get(root, "added_tokens"), more, path, t->normalizer, &t->vocab,
                            &t->added, err);
    if (!st)
        st = fkv_post_processor_read(json_object_get(root, "post_processor"), path, &t->vocab, &t->prefix,
                                     &t->suffix, err);
    return st;
}

/* A folder without tokenizer.json: by what stands there instead, what to do. FKV_OK: nothing that is known.
 */
static fkv_status check_missing(const char *dir, const char *path, fkv_err *err)
{
    static const char *const others[][2] = {
        {"tokenizer.model", "SentencePiece's"},
        {"vocab.json", "an older form of it"},
        {"tekken.json", "Mistral's own form"},
    };
    if (fkv_file_exists(path)) return FKV_OK;
    for (size_t k = 0; k < sizeof others / sizeof *others; k++) {
        char *other = fkv_path_join(dir, others[k][0]);
        const bool there = other && fkv_file_exists(other);
        free(other);
        if (!other) return fkv_fail_memory(err);
        if (there)
            return fkv_fail_at(
                err, FKV_E_INPUT, path, 0, NULL,
                "is missing; %s, %s, is not read: make it by python3 -c 'from transformers import "
                "AutoTokenizer as T; T.from_pretrained(\"%s\").save_pretrained(\"%s\")', or take "
                "it from a model with the same tokenizer",
                others[k][0], others[k][1], dir, dir);
    }
    return FKV_OK;
}

fkv_status fkv_tokenizer_open(const char *dir, fkv_tokenizer **out, fkv_err *err)
{
    json_t *root = NULL, *more = NULL;
    fkv_tokenizer *t = NULL;
    fkv_status st;
    *out = NULL;
    char *path = fkv_path_join(dir, "tokenizer.json");
    if (!path) return fkv_fail_memory(err);
    if ((st = check_missing(dir, path, err)) || (st = fkv_json_load(path, FILE_MAX, &root, err))) goto out;
    t = calloc(1, sizeof *t);
    if (!t) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if (!json_is_object(root)) {
        st = fkv_fail_at(err, FKV_E_INPUT, path, 0, NULL, "must be a JSON object");
        goto out;
    }
    if ((st = fkv_tokenizer_config_read(dir, root, &more, err))) goto out;
    if ((st = read_parts(t, root, more, path, err))) goto out;
    *out = t;
    t = NULL;
out:
    fkv_tokenizer_close(t);
    json_decref(more);
    json_decref(root);
    free(path);
    return st;
}

void fkv_tokenizer_close(fkv_tokenizer *tokenizer)
{
    if (!tokenizer) return;
    fkv_ids_free(&tokenizer->suffix);
    fkv_ids_free(&tokenizer->prefix);
    fkv_decoder_close(tokenizer->decoder);
    fkv_added_close(tokenizer->added);
    fkv_bpe_close(tokenizer->bpe);
    fkv_pretokenizer_close(tokenizer->pretokenizer);
    fkv_normalizer_close(tokenizer->normalizer);
    fkv_vocab_free(&tokenizer->vocab);
    free(tokenizer);
}

int32_t fkv_tokenizer_n_ids(const fkv_tokenizer *tokenizer)
{
    return tokenizer->vocab.n_ids;
}

int32_t fkv_tokenizer_n_needed_ids(const fkv_tokenizer *tokenizer)
{
    const fkv_ids *around[] = {&tokenizer->prefix, &tokenizer->suffix};
    int32_t n = tokenizer->n_own_ids;
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < around[k]->len; i++)
            if (around[k]->data[i] >= n) n = around[k]->data[i] + 1;
    return n;
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
    s->pretokenizer.regex = s->regex;
    *out = s;
    s = NULL;
out:
    fkv_tokenizer_scratch_free(s);
    return st;
}

void fkv_tokenizer_scratch_free(fkv_tokenizer_scratch *scratch)
{
    if (!scratch) return;
    fkv_pretokenizer_scratch_free(&scratch->pretokenizer);
    fkv_normalizer_scratch_free(&scratch->normalizer);
    fkv_regex_scratch_free(scratch->regex);
    fkv_bpe_scratch_free(scratch->bpe);
    free(scratch);
}

/* One call of encode, passed through the parts' callbacks. */
struct encoding {
    const fkv_tokenizer *tokenizer;
    fkv_tokenizer_scratch *scratch;
    fkv_ids *ids;
    const char *text;       /* the whole */
    const char *normalized; /* the part between added tokens that is cut now, normalized */
    bool first;             /* that part begins the text */
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
    const fkv_tokenizer *t = e->tokenizer;
    if (id >= 0) return fkv_ids_push(e->ids, id, err);
    return fkv_pretokenize(t->pretokenizer, &e->scratch->pretokenizer, fkv_bpe_takes_bytes(t->bpe),
                           e->first && text == e->normalized, text, n, take_word, ctx, err);
}

/* Text as it came between added tokens, or one of them. */
static fkv_status take_raw(void *ctx, int32_t id, const char *text, size_t n, fkv_err *err)
{
    struct encoding *e = ctx;
    if (id >= 0) return fkv_ids_push(e->ids, id, err);
    e->first = text == e->text;
    fkv_status st = fkv_normalize(e->tokenizer->normalizer, &e->scratch->normalizer, e->scratch->regex, text,
                                  n, &text, &n, err);
    e->normalized = text;
    return st ? st : fkv_added_split(e->tokenizer->added, true, text, n, take_normalized, ctx, err);
}

fkv_status fkv_tokenizer_encode(const fkv_tokenizer *tokenizer, fkv_tokenizer_scratch *scratch,
                                const char *text, size_t n, bool special, fkv_ids *ids, size_t *n_prefix,
                                size_t *n_suffix, fkv_err *err)
{
    struct encoding e = {.tokenizer = tokenizer, .scratch = scratch, .ids = ids, .text = text};
    fkv_status st = FKV_OK;
    ids->len = 0;
    if (n_prefix) *n_prefix = special ? tokenizer->prefix.len : 0;
    if (n_suffix) *n_suffix = special ? tokenizer->suffix.len : 0;
    const size_t bad = fkv_utf8_span(text, n);
    if (bad < n) return fkv_fail(err, FKV_E_INPUT, "the text is not valid UTF-8 at byte %zu", bad);
    fkv_regex_start(scratch->regex, n);
    if (special) st = fkv_ids_append(ids, tokenizer->prefix.data, tokenizer->prefix.len, err);
    if (!st) st = fkv_added_split(tokenizer->added, false, text, n, take_raw, &e, err);
    if (!st && special) st = fkv_ids_append(ids, tokenizer->suffix.data, tokenizer->suffix.len, err);
    return st;
}

/* Gives the next id's string to the decoder. */
static fkv_status decode_next(const fkv_tokenizer *t, fkv_decoding *d, int32_t id, bool skip_special,
                              fkv_buf *out, fkv_err *err)
{
    size_t len;
    const char *string = fkv_added_string(t->added, id, &len);
    if (!string) string = fkv_vocab_string(&t->vocab, id, &len);
    if (!string && skip_special) return FKV_OK; /* a model's vocabulary may be padded */
    if (!string) return fkv_fail(err, FKV_E_INPUT, "the id %d belongs to no token", (int)id);
    if (skip_special && fkv_added_is_special(t->added, id)) return FKV_OK;
    return fkv_decoder_push(t->decoder, d, string, len, out, err);
}

static fkv_status undo(fkv_status st, fkv_buf *out, size_t len)
{
    if (st && out->data) {
        out->len = len;
        out->data[len] = '\0';
    }
    return st;
}

fkv_status fkv_tokenizer_decode(const fkv_tokenizer *tokenizer, const int32_t *ids, size_t n,
                                bool skip_special, fkv_buf *out, fkv_err *err)
{
    const size_t from = out->len;
    fkv_decoding d = {0};
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < n; i++) st = decode_next(tokenizer, &d, ids[i], skip_special, out, err);
    if (!st) st = fkv_decoder_rest(tokenizer->decoder, &d, out, err);
    fkv_decoding_free(&d);
    return undo(st, out, from);
}

fkv_status fkv_tokenizer_stream_new(const fkv_tokenizer *tokenizer, bool skip_special,
                                    fkv_tokenizer_stream **out, fkv_err *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out) return fkv_fail_memory(err);
    (*out)->tokenizer = tokenizer;
    (*out)->skip_special = skip_special;
    return FKV_OK;
}

void fkv_tokenizer_stream_free(fkv_tokenizer_stream *stream)
{
    if (!stream) return;
    fkv_decoding_free(&stream->decoding);
    free(stream);
}

void fkv_tokenizer_stream_restart(fkv_tokenizer_stream *stream)
{
    fkv_decoding_restart(&stream->decoding);
}

fkv_status fkv_tokenizer_stream_push(fkv_tokenizer_stream *stream, int32_t id, fkv_buf *out, fkv_err *err)
{
    const size_t from = out->len;
    return undo(decode_next(stream->tokenizer, &stream->decoding, id, stream->skip_special, out, err), out,
                from);
}

fkv_status fkv_tokenizer_stream_rest(fkv_tokenizer_stream *stream, fkv_buf *out, fkv_err *err)
{
    const size_t from = out->len;
    return undo(fkv_decoder_rest(stream->tokenizer->decoder, &stream->decoding, out, err), out, from);
}
