/* Prompts: see prompt.h. */
#include "runner/prompt.h"

#include <string.h>

int64_t fkv_prompt_limit(const fkv_prompt_limits *l, int64_t max_new)
{
    const int64_t room = l->max_positions - max_new;
    return l->max_prompt > 0 && l->max_prompt < room ? l->max_prompt : room;
}

/* Keeps `limit` of ids; the post-processor's prefix and suffix always stay. */
static void cut(fkv_ids *ids, size_t limit, size_t prefix, size_t suffix, fkv_truncate how)
{
    const size_t body = limit - prefix - suffix;
    size_t front = 0;
    if (how == FKV_TRUNCATE_RIGHT) front = body;
    if (how == FKV_TRUNCATE_MIDDLE) front = body - body / 2;
    const size_t keep_end = body - front + suffix;
    memmove(ids->data + prefix + front, ids->data + ids->len - keep_end, keep_end * sizeof *ids->data);
    ids->len = limit;
}

/* A tokenizer may have added tokens that the model has no row for. */
static void check_ids(const fkv_prompt_limits *l, fkv_record *record, const fkv_ids *ids)
{
    const size_t at = l->n_ids ? fkv_ids_beyond(ids, l->n_ids) : ids->len;
    if (record->error_code[0] || at == ids->len) return;
    fkv_record_set_error(record, "tokenizer",
                         "token %zu of the prompt's %zu has the id %d, which the model does not have: its %d "
                         "ids are 0 to %d",
                         at + 1, ids->len, (int)ids->data[at], (int)l->n_ids, (int)l->n_ids - 1);
}

fkv_status fkv_prompt_prepare(const fkv_tokenizer *tokenizer, fkv_tokenizer_scratch *scratch,
                              const fkv_prompt_limits *limits, fkv_record *record, fkv_ids *ids,
                              int64_t *max_new, int64_t *truncated, fkv_err *err)
{
    size_t prefix = 0, suffix = 0;
    fkv_err why = {0};
    *truncated = 0;
    *max_new = record->max_new_tokens > 0 ? record->max_new_tokens : limits->max_new;
    const int64_t limit = fkv_prompt_limit(limits, *max_new);
    fkv_status st = fkv_tokenizer_encode(tokenizer, scratch, record->prompt.data, record->prompt.len, true,
                                         ids, &prefix, &suffix, &why);
    if (st == FKV_E_INPUT) {
        fkv_record_set_error(record, "tokenizer", "the prompt can't be tokenized: %s", why.message);
        return FKV_OK;
    }
    if (st) {
        *err = why;
        return st;
    }
    if (ids->len == 0) {
        fkv_record_set_error(record, "empty_prompt", "the prompt has no tokens");
    } else if (limit < (int64_t)(prefix + suffix) + 1) {
        if (limits->max_prompt > 0 && limit == limits->max_prompt)
            fkv_record_set_error(record, "too_long",
                                 "model.max_prompt_tokens %lld leaves no room beside the tokenizer's own %zu",
                                 (long long)limit, prefix + suffix);
        else
            fkv_record_set_error(record, "too_long",
                                 "%lld new tokens leave no room for a prompt in %lld positions",
                                 (long long)*max_new, (long long)limits->max_positions);
    } else if ((int64_t)ids->len > limit) {
        if (limits->truncate == FKV_TRUNCATE_ERROR) {
            fkv_record_set_error(record, "too_long", "the prompt has %zu tokens, more than the %lld allowed",
                                 ids->len, (long long)limit);
        } else {
            *truncated = (int64_t)ids->len - limit;
            cut(ids, (size_t)limit, prefix, suffix, limits->truncate);
        }
    }
    check_ids(limits, record, ids);
    return FKV_OK;
}
