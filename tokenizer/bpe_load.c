/* Reading the "model" of tokenizer.json: see bpe.h. Everything that the merging
 * of bpe.c does not do is refused here by name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"
#include "runner/base/mem.h"
#include "tokenizer/bpe_internal.h"
#include "tokenizer/characters.h"

static fkv_status refuse(fkv_err *err, const char *file, const char *key, const char *what)
{
    return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "%s", what);
}

/* Absent, null or, as HF takes it for the same, the empty string. */
static fkv_status need_empty(const json_t *model, const char *key, const char *file, fkv_err *err)
{
    const char *text;
    fkv_status st = fkv_json_str_or_null(model, key, file, &text, err);
    if (!st && text && text[0]) st = refuse(err, file, key, "is not supported for BPE models");
    return st;
}

static fkv_status check_settings(const json_t *model, const char *file, fkv_bpe *bpe, fkv_err *err)
{
    const char *type;
    double dropout;
    fkv_status st = fkv_json_str_or_null(model, "type", file, &type, err);
    if (st) return st;
    /* Old files of GPT-2 have no type. */
    if (type && strcmp(type, "BPE") != 0)
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, "model.type", "'%.60s' is not supported, only BPE",
                           type);
    if ((st = fkv_json_bool_or(model, "byte_fallback", false, file, &bpe->byte_fallback, err))) return st;
    if ((st = fkv_json_bool_or(model, "fuse_unk", false, file, &bpe->fuse_unk, err))) return st;
    if ((st = fkv_json_f64_or(model, "dropout", 0, 1, 0, file, &dropout, err))) return st;
    if (dropout > 0) return refuse(err, file, "dropout", "is not supported: ids would be random");
    if ((st = need_empty(model, "continuing_subword_prefix", file, err))) return st;
    if ((st = need_empty(model, "end_of_word_suffix", file, err))) return st;
    return fkv_json_bool_or(model, "ignore_merges", false, file, &bpe->ignore_merges, err);
}

static fkv_status read_vocab(const json_t *model, const char *file, fkv_vocab *vocab, fkv_err *err)
{
    json_t *object = json_object_get(model, "vocab");
    const char *string;
    json_t *value;
    if (!json_is_object(object))
        return refuse(err, file, "model.vocab", "must be an object of tokens and ids");
    json_object_foreach(object, string, value)
    {
        fkv_vocab_clash clash;
        const json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id > FKV_ID_MAX)
            return fkv_fail_at(err, FKV_E_INPUT, file, 0, "model.vocab",
                               "the id of '%.60s' must be an integer from 0 to %d", string, FKV_ID_MAX);
        fkv_status st = fkv_vocab_add(vocab, string, strlen(string), (int32_t)id, &clash, err);
        if (st) return st;
        if (clash != FKV_VOCAB_NEW)
            return fkv_fail_at(err, FKV_E_INPUT, file, 0, "model.vocab",
                               "the id %lld of '%.60s' is given twice", (long long)id, string);
    }
    if (vocab->n == 0) return refuse(err, file, "model.vocab", "has no tokens");
    return FKV_OK;
}

/* Splits "a b" at its only space, or takes the two strings of ["a", "b"]. */
static bool merge_parts(const json_t *merge, const char *part[2], size_t len[2])
{
    if (json_is_string(merge)) {
        part[0] = json_string_value(merge);
        const char *space = strchr(part[0], ' ');
        if (!space || strchr(space + 1, ' ')) return false;
        part[1] = space + 1;
        len[0] = (size_t)(space - part[0]);
        len[1] = strlen(part[1]);
        return true;
    }
    if (!json_is_array(merge) || json_array_size(merge) != 2) return false;
    for (size_t k = 0; k < 2; k++) {
        part[k] = json_string_value(json_array_get(merge, k));
        if (!part[k]) return false;
        len[k] = json_string_length(json_array_get(merge, k));
    }
    return true;
}

static fkv_status bad_merge(fkv_err *err, const char *file, size_t i, const char *what, const char *string,
                            size_t n)
{
    char key[64];
    snprintf(key, sizeof key, "model.merges[%zu]", i);
    return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "%s%.*s", what, (int)(n < 60 ? n : 60), string);
}

static fkv_status add_merge(fkv_bpe *bpe, const json_t *merge, size_t i, int32_t rank, const char *file,
                            fkv_buf *joined, fkv_err *err)
{
    const char *part[2];
    size_t len[2];
    int32_t id[2];
    fkv_status st;
    if (!merge_parts(merge, part, len))
        return bad_merge(err, file, i, "must be \"left right\" or [\"left\", \"right\"]", "", 0);
    fkv_buf_clear(joined);
    for (size_t k = 0; k < 2; k++) {
        id[k] = fkv_vocab_find(bpe->vocab, part[k], len[k]);
        if (id[k] < 0) return bad_merge(err, file, i, "not in the vocabulary: ", part[k], len[k]);
        if ((st = fkv_buf_append(joined, part[k], len[k], err))) return st;
    }
    const int32_t made = fkv_vocab_find(bpe->vocab, joined->data, joined->len);
    if (made < 0)
        return bad_merge(err, file, i, "its result is not in the vocabulary: ", joined->data, joined->len);
    if (len[0] && len[1]) {
        size_t n;
        const uint32_t last = fkv_utf8_get(part[0] + len[0] - fkv_utf8_before(part[0], len[0]), &n);
        const size_t h = fkv_joint_hash(last, fkv_utf8_get(part[1], &n));
        bpe->joints[h / 64] |= (uint64_t)1 << h % 64;
    }
    const uint64_t pair = (uint64_t)(uint32_t)id[0] << 32 | (uint32_t)id[1];
    /* A pair given twice has its later rank, as in HF. */
    bpe->merges[fkv_bpe_slot(bpe, pair)] = (struct fkv_merge){.pair = pair, .rank = rank, .made = made};
    return FKV_OK;
}

static fkv_status read_merges(const json_t *model, const char *file, fkv_bpe *bpe, fkv_err *err)
{
    const json_t *list = json_object_get(model, "merges");
    fkv_buf joined = {0};
    fkv_status st = FKV_OK;
    if (!json_is_array(list)) return refuse(err, file, "model.merges", "must be an array");
    const size_t n = json_array_size(list);
    if (n > INT32_MAX / 4) return refuse(err, file, "model.merges", "has too many entries");
    unsigned bits = 4;
    while (((size_t)1 << bits) < 2 * n) bits++;
    bpe->shift = 64 - bits;
    bpe->mask = ((size_t)1 << bits) - 1;
    bpe->merges = fkv_calloc(bpe->mask + 1, sizeof *bpe->merges);
    if (!bpe->merges) return fkv_fail_memory(err);
    for (size_t i = 0; i <= bpe->mask; i++) bpe->merges[i].pair = FKV_NO_PAIR;
    int32_t rank = 0;
    for (size_t i = 0; !st && i < n; i++) {
        const json_t *merge = json_array_get(list, i);
        /* Old files carry the first line of merges.txt along. */
        if (json_is_string(merge) && !strncmp(json_string_value(merge), "#version", 8)) continue;
        st = add_merge(bpe, merge, i, rank++, file, &joined, err);
    }
    fkv_buf_free(&joined);
    return st;
}

/* The tokens of single characters and bytes, and what stands for a character without one. */
static fkv_status read_symbols(const json_t *model, const char *file, bool bytes, fkv_bpe *bpe, fkv_err *err)
{
    const char *unk;
    bool lacks = false; /* a byte that UTF-8 has is no token of the byte-level alphabet */
    fkv_status st = fkv_json_str_or_null(model, "unk_token", file, &unk, err);
    if (st) return st;
    bpe->has_unk = unk != NULL;
    bpe->unk_id = unk ? fkv_vocab_find(bpe->vocab, unk, strlen(unk)) : -1;
    for (int b = 0; b < 256; b++) {
        char c[8];
        const size_t len = fkv_utf8_put(fkv_alphabet_char((uint8_t)b), c);
        bpe->byte_id[b] = fkv_vocab_find(bpe->vocab, c, len);
        snprintf(c, sizeof c, "<0x%02X>", (unsigned)b);
        bpe->fallback[b] = fkv_vocab_find(bpe->vocab, c, 6);
        const bool in_utf8 = b != 0xc0 && b != 0xc1 && b < 0xf5;
        lacks = lacks || (in_utf8 && bpe->byte_id[b] < 0);
    }
    /* What a missing byte becomes is a matter of characters. */
    bpe->bytes = bytes && !(lacks && (unk || bpe->byte_fallback));
    for (size_t i = 0; i < FKV_N_BMP; i++) bpe->char_id[i] = -1;
    for (size_t i = 0; i < bpe->vocab->n; i++) {
        const fkv_vocab_entry *e = &bpe->vocab->entries[i];
        size_t len = 0;
        const uint32_t cp = e->len ? fkv_utf8_get(bpe->vocab->bytes.data + e->at, &len) : 0;
        if (e->len && len == e->len && cp < FKV_N_BMP) bpe->char_id[cp] = e->id;
    }
    return FKV_OK;
}

/* Whether every byte has its token, and no merge uses one of them. */
static fkv_status find_plain_fallback(fkv_bpe *bpe, fkv_err *err)
{
    bool *is_fallback = fkv_calloc((size_t)bpe->vocab->n_ids, sizeof *is_fallback);
    if (!is_fallback) return fkv_fail_memory(err);
    bpe->plain_fallback = bpe->byte_fallback;
    for (int b = 0; b < 256; b++) {
        if (bpe->fallback[b] >= 0)
            is_fallback[bpe->fallback[b]] = true;
        else
            bpe->plain_fallback = false;
    }
    for (size_t i = 0; i <= bpe->mask; i++) {
        const uint64_t pair = bpe->merges[i].pair;
        if (pair != FKV_NO_PAIR && (is_fallback[pair >> 32] || is_fallback[(uint32_t)pair]))
            bpe->plain_fallback = false;
    }
    free(is_fallback);
    return FKV_OK;
}

fkv_status fkv_bpe_open(const json_t *model, const char *file, bool bytes, fkv_vocab *vocab, fkv_bpe **out,
                        fkv_err *err)
{
    fkv_status st;
    *out = NULL;
    fkv_bpe *bpe = calloc(1, sizeof *bpe);
    if (!bpe) return fkv_fail_memory(err);
    bpe->vocab = vocab;
    if ((st = check_settings(model, file, bpe, err))) goto out;
    if ((st = read_vocab(model, file, vocab, err))) goto out;
    bpe->char_id = fkv_calloc(FKV_N_BMP, sizeof *bpe->char_id);
    bpe->joints = fkv_calloc((size_t)1 << (FKV_JOINT_BITS - 6), sizeof *bpe->joints);
    if (!bpe->char_id || !bpe->joints) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if ((st = read_merges(model, file, bpe, err))) goto out;
    if ((st = read_symbols(model, file, bytes, bpe, err))) goto out;
    if ((st = find_plain_fallback(bpe, err))) goto out;
    bpe->n_model_ids = vocab->n_ids;
    bpe->in_model = fkv_calloc((size_t)vocab->n_ids, sizeof *bpe->in_model);
    if (!bpe->in_model) {
        st = fkv_fail_memory(err);
        goto out;
    }
    for (size_t i = 0; i < vocab->n; i++) bpe->in_model[vocab->entries[i].id] = true;
    *out = bpe;
    bpe = NULL;
out:
    fkv_bpe_close(bpe);
    return st;
}

void fkv_bpe_close(fkv_bpe *bpe)
{
    if (!bpe) return;
    free(bpe->in_model);
    free(bpe->char_id);
    free(bpe->joints);
    free(bpe->merges);
    free(bpe);
}

bool fkv_bpe_takes_bytes(const fkv_bpe *bpe)
{
    return bpe->bytes;
}
