/* Prompts: see prompt.h. */
#include "runner/prompt.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"

struct fkv_prompter {
    fkv_prompt_source from;
    fkv_tokenizer_scratch *tokens;
    fkv_template_scratch *renderer; /* NULL: no template */
    fkv_buf text;                   /* of the whole prompt */
    fkv_buf other;                  /* of a part of it */
    fkv_ids part;
};

/* A buffer that a large prompt left behind is given back. */
static const size_t keep_bytes = (size_t)1 << 20;

/* The text of one message, which marks its place where it stands for another. */
static const char mark[] = "\xee\x80\x80(fairkv)\xee\x80\x80";

int64_t fkv_prompt_limit(const fkv_prompt_limits *l, int64_t max_new)
{
    const int64_t room = l->max_positions - max_new;
    return l->max_prompt > 0 && l->max_prompt < room ? l->max_prompt : room;
}

int64_t fkv_prompt_longest(const fkv_prompt_limits *l)
{
    return l->truncate == FKV_TRUNCATE_LONGBENCH ? l->max_positions - 1 : fkv_prompt_limit(l, 1);
}

fkv_status fkv_prompter_open(const fkv_prompt_source *source, fkv_prompter **out, fkv_err *err)
{
    *out = NULL;
    fkv_prompter *p = calloc(1, sizeof *p);
    if (!p) return fkv_fail_memory(err);
    p->from = *source;
    fkv_status st = fkv_tokenizer_scratch_new(source->tokenizer, &p->tokens, err);
    if (!st && source->template) st = fkv_template_scratch_new(&p->renderer, err);
    if (st)
        fkv_prompter_close(p);
    else
        *out = p;
    return st;
}

void fkv_prompter_close(fkv_prompter *p)
{
    if (!p) return;
    fkv_ids_free(&p->part);
    fkv_buf_free(&p->other);
    fkv_buf_free(&p->text);
    fkv_template_scratch_free(p->renderer);
    fkv_tokenizer_scratch_free(p->tokens);
    free(p);
}

static void trim(fkv_prompter *p)
{
    if (p->text.cap > keep_bytes) fkv_buf_free(&p->text);
    if (p->other.cap > keep_bytes) fkv_buf_free(&p->other);
    if (p->part.cap * sizeof *p->part.data > keep_bytes) fkv_ids_free(&p->part);
}

static bool is_framed(const fkv_prompter *p, const fkv_record *record)
{
    return p->from.template && record->wrap != FKV_WRAP_NONE;
}

/* --- the template ------------------------------------------------------------- */

/* The messages of a record whose prompt has that text: a new array. NULL after setting the record's error, or
 * without memory. */
static json_t *messages_of(fkv_record *record, const char *text, size_t n)
{
    json_error_t why;
    if (record->wrap == FKV_WRAP_MESSAGES) {
        json_t *all = fkv_json_parse(record->prompt.data, record->prompt.len, JSON_ALLOW_NUL, &why);
        if (!all && json_error_code(&why) != json_error_out_of_memory) /* a number of more than 64 bits */
            fkv_record_set_error(record, "chat_template", "the messages can't be read: %s", why.text);
        return all;
    }
    json_t *messages = json_array(), *message = json_object();
    if (!json_array_append(messages, message) && !json_object_set_new(message, "role", json_string("user")) &&
        !json_object_set_new(message, "content", json_stringn(text, n))) {
        json_decref(message);
        return messages;
    }
    json_decref(message);
    json_decref(messages);
    return NULL;
}

/* Appends what the template makes of the messages, and the prefix. What it can't render is the record's
 * error. */
static fkv_status render(fkv_prompter *p, const json_t *messages, fkv_record *record, fkv_buf *out,
                         fkv_err *err)
{
    const fkv_template_input in = {.messages = messages,
                                   .add_generation_prompt = true,
                                   .variables = p->from.variables,
                                   .date = p->from.date};
    fkv_err why = {0};
    const fkv_status st = fkv_template_render(p->from.template, p->renderer, &in, out, &why);
    if (!st) return fkv_buf_append(out, record->prefix.data, record->prefix.len, err);
    if (st != FKV_E_INPUT) {
        *err = why;
        return st;
    }
    fkv_record_set_error(record, "chat_template", "the chat template makes no text of it: %s", why.message);
    return FKV_OK;
}

/* All of the prompt into p->text; text: what the record says, or what was left of it. */
static fkv_status wrap(fkv_prompter *p, fkv_record *record, const char *text, size_t n, fkv_err *err)
{
    fkv_buf_clear(&p->text);
    if (record->wrap != FKV_WRAP_MESSAGES && !is_framed(p, record)) {
        const fkv_status st = fkv_buf_append(&p->text, text, n, err);
        return st ? st : fkv_buf_append(&p->text, record->prefix.data, record->prefix.len, err);
    }
    if (!p->from.template) {
        fkv_record_set_error(record, "chat_template",
                             "the record has messages, and there is no chat template to make a text of them "
                             "(model.chat_template)");
        return FKV_OK;
    }
    json_t *messages = messages_of(record, text, n);
    if (!messages) return record->error_code[0] ? FKV_OK : fkv_fail_memory(err);
    const fkv_status st = render(p, messages, record, &p->text, err);
    json_decref(messages);
    return st;
}

/* Where the longest text among the messages stands: the object and its key. */
static json_t *longest_text(json_t *messages, const char **key)
{
    json_t *best = NULL, *message, *part;
    size_t i, k, most = 0;
    json_array_foreach(messages, i, message)
    {
        json_t *content = json_object_get(message, "content");
        if (json_string_length(content) > most) {
            most = json_string_length(content);
            best = message;
            *key = "content";
        }
        if (!json_is_array(content)) continue;
        json_array_foreach(content, k, part)
        {
            const json_t *text = json_object_get(part, "text");
            if (json_string_length(text) <= most) continue;
            most = json_string_length(text);
            best = part;
            *key = "text";
        }
    }
    return best;
}

/* --- tokens ------------------------------------------------------------------ */

/* Tokens of n bytes of text. What can't be tokenized is the record's error. */
static fkv_status encode(fkv_prompter *p, const char *text, size_t n, bool special, fkv_record *record,
                         fkv_ids *ids, size_t *prefix, size_t *suffix, fkv_err *err)
{
    fkv_err why = {0};
    const fkv_status st =
        fkv_tokenizer_encode(p->from.tokenizer, p->tokens, text, n, special, ids, prefix, suffix, &why);
    if (st == FKV_E_INPUT) {
        fkv_record_set_error(record, "tokenizer", "the prompt can't be tokenized: %s", why.message);
        return FKV_OK;
    }
    if (st) *err = why;
    return st;
}

/* Whether the text of n ids ends (or begins) with that text. */
static bool holds(fkv_prompter *p, const int32_t *ids, size_t n, const char *text, size_t n_text, bool at_end)
{
    fkv_err ignored = {0};
    fkv_buf *b = &p->other;
    fkv_buf_clear(b);
    if (fkv_tokenizer_decode(p->from.tokenizer, ids, n, false, b, &ignored) || b->len < n_text) return false;
    return n_text == 0 || memcmp(b->data + (at_end ? b->len - n_text : 0), text, n_text) == 0;
}

/* How many ids at the end (or the front) hold that text, which is tokenized alone to find out: the
 * tokens that both have, and where text and neighbour share a token, that one, too. */
static fkv_status count_ids(fkv_prompter *p, const fkv_ids *ids, const char *text, size_t n_text, bool at_end,
                            fkv_record *record, size_t *count, fkv_err *err)
{
    enum { MORE = 8 };
    const fkv_status st = encode(p, text, n_text, false, record, &p->part, NULL, NULL, err);
    const size_t n = ids->len < p->part.len ? ids->len : p->part.len;
    const int32_t *a = ids->data, *b = p->part.data;
    size_t same = 0;
    *count = 0;
    if (st || record->error_code[0]) return st;
    while (same < n && (at_end ? a[ids->len - 1 - same] == b[p->part.len - 1 - same] : a[same] == b[same]))
        same++;
    *count = same;
    for (size_t k = same; k <= same + MORE && k <= ids->len; k++) {
        if (!holds(p, at_end ? a + ids->len - k : a, k, text, n_text, at_end)) continue;
        *count = k;
        break;
    }
    return FKV_OK;
}

/* How many ids in front and behind are the template's and must stay. */
static fkv_status find_frame(fkv_prompter *p, fkv_record *record, const fkv_ids *ids, size_t *prefix,
                             size_t *suffix, fkv_err *err)
{
    const char *key = NULL;
    fkv_buf framed = {0};
    json_t *messages = messages_of(record, record->prompt.data, record->prompt.len);
    json_t *holder = messages ? longest_text(messages, &key) : NULL;
    fkv_status st = messages || record->error_code[0] ? FKV_OK : fkv_fail_memory(err);
    if (!messages) return st;
    if (holder && json_object_set_new(holder, key, json_string(mark))) st = fkv_fail_memory(err);
    if (!st) st = render(p, messages, record, &framed, err);
    if (st || record->error_code[0]) goto out;
    const char *at = framed.len ? memmem(framed.data, framed.len, mark, sizeof mark - 1) : NULL;
    if (!at) {
        fkv_record_set_error(record, "too_long",
                             "the prompt has %zu tokens, more than allowed, and the chat template does not "
                             "show what of it can be cut",
                             ids->len);
        goto out;
    }
    const size_t head = (size_t)(at - framed.data), tail = framed.len - head - (sizeof mark - 1);
    st = count_ids(p, ids, framed.data, head, false, record, prefix, err);
    if (!st && !record->error_code[0])
        st = count_ids(p, ids, at + sizeof mark - 1, tail, true, record, suffix, err);
out:
    fkv_buf_free(&framed);
    json_decref(messages);
    return st;
}

/* Keeps `limit` of ids; the prefix and suffix always stay. */
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

/* fixed: tokens that stay whatever is cut. */
static void refuse_length(const fkv_prompter *p, fkv_record *record, int64_t limit, size_t fixed,
                          int64_t max_new)
{
    const fkv_prompt_limits *l = &p->from.limits;
    if (limit < 1)
        fkv_record_set_error(record, "too_long",
                             "%lld new tokens leave no room for a prompt in %lld positions",
                             (long long)max_new, (long long)l->max_positions);
    else
        fkv_record_set_error(record, "too_long",
                             "%zu tokens that are never cut (BOS, the chat template, other messages, "
                             "answer_prefix) leave no room in the %lld that a prompt may have",
                             fixed, (long long)limit);
}

/* Takes away what is too much. How many ids stay whatever is cut is looked for only where it matters. */
static fkv_status fit(fkv_prompter *p, fkv_record *record, int64_t limit, int64_t max_new, size_t prefix,
                      size_t suffix, fkv_ids *ids, int64_t *truncated, fkv_err *err)
{
    const fkv_prompt_limits *l = &p->from.limits;
    fkv_status st = FKV_OK;
    if (limit < (int64_t)(prefix + suffix) + 1) {
        refuse_length(p, record, limit, prefix + suffix, max_new);
    } else if ((int64_t)ids->len > limit && l->truncate == FKV_TRUNCATE_ERROR) {
        fkv_record_set_error(record, "too_long", "the prompt has %zu tokens, more than the %lld allowed",
                             ids->len, (long long)limit);
    } else if ((int64_t)ids->len > limit) {
        size_t behind = 0;
        if (is_framed(p, record))
            st = find_frame(p, record, ids, &prefix, &suffix, err);
        else if (record->prefix.len)
            st = count_ids(p, ids, record->prefix.data, record->prefix.len, true, record, &behind, err);
        if (behind > suffix) suffix = behind;
        if (st || record->error_code[0]) return st;
        if (limit < (int64_t)(prefix + suffix) + 1) {
            refuse_length(p, record, limit, prefix + suffix, max_new);
            return FKV_OK;
        }
        *truncated = (int64_t)ids->len - limit;
        cut(ids, (size_t)limit, prefix, suffix,
            l->truncate == FKV_TRUNCATE_LONGBENCH ? FKV_TRUNCATE_MIDDLE : l->truncate);
    }
    return st;
}

/* --- pred.py's way ------------------------------------------------------------- */

/* The halves' text into text. */
static fkv_status decode_halves(fkv_prompter *p, const fkv_ids *ids, size_t half, fkv_buf *text, fkv_err *err)
{
    fkv_buf_clear(text);
    const fkv_status st = fkv_tokenizer_decode(p->from.tokenizer, ids->data, half, true, text, err);
    return st ? st
              : fkv_tokenizer_decode(p->from.tokenizer, ids->data + ids->len - half, half, true, text, err);
}

/* The whole prompt's ids with that text of it. */
static fkv_status encode_whole(fkv_prompter *p, fkv_record *record, const fkv_buf *text, fkv_ids *ids,
                               size_t *prefix, size_t *suffix, fkv_err *err)
{
    const bool framed = is_framed(p, record);
    if (!framed && record->wrap != FKV_WRAP_MESSAGES && !record->prefix.len)
        return encode(p, text->data, text->len, true, record, ids, prefix, suffix, err);
    fkv_status st = wrap(p, record, text->data, text->len, err);
    if (!st && !record->error_code[0])
        st = encode(p, p->text.data, p->text.len, !framed, record, ids, prefix, suffix, err);
    return st;
}

static fkv_status make_as_longbench(fkv_prompter *p, fkv_record *record, int64_t max_new, fkv_ids *ids,
                                    int64_t *truncated, fkv_err *err)
{
    const int64_t room = p->from.limits.max_positions - max_new;
    int64_t most = fkv_prompt_limit(&p->from.limits, max_new);
    size_t prefix = 0, suffix = 0;
    fkv_ids all = {0};
    fkv_buf left = {0};
    int64_t fixed = 0;
    fkv_status st =
        encode(p, record->prompt.data, record->prompt.len, true, record, &all, &prefix, &suffix, err);
    /* pred.py has a limit that leaves room for the template; where the model's positions are the limit, what
     * the template takes of them is known when it is there. */
    for (int tries = 0; !st && !record->error_code[0] && tries < 4; tries++) {
        const bool cuts = (int64_t)all.len > most;
        if (most < 2) break;
        if (cuts) st = decode_halves(p, &all, (size_t)(most / 2), &left, err);
        *truncated = cuts ? (int64_t)all.len - most / 2 * 2 : 0;
        if (!st) st = encode_whole(p, record, cuts ? &left : &record->prompt, ids, &prefix, &suffix, err);
        if (st || record->error_code[0] || (int64_t)ids->len <= room) goto out;
        most = most < (int64_t)all.len ? most : (int64_t)all.len;
        fixed = (int64_t)ids->len - most;
        most -= (int64_t)ids->len - room;
    }
    if (!st && !record->error_code[0])
        refuse_length(p, record, room, fixed > 0 ? (size_t)fixed : prefix + suffix, max_new);
out:
    fkv_buf_free(&left);
    fkv_ids_free(&all);
    return st;
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

/* --- both ---------------------------------------------------------------------- */

fkv_status fkv_prompter_make(fkv_prompter *p, fkv_record *record, fkv_ids *ids, int64_t *max_new,
                             int64_t *truncated, fkv_err *err)
{
    const fkv_prompt_limits *l = &p->from.limits;
    size_t prefix = 0, suffix = 0;
    fkv_status st;
    *truncated = 0;
    *max_new = record->max_new_tokens > 0 ? record->max_new_tokens : l->max_new;
    if (l->truncate == FKV_TRUNCATE_LONGBENCH && record->wrap != FKV_WRAP_MESSAGES) {
        st = make_as_longbench(p, record, *max_new, ids, truncated, err);
    } else {
        st = encode_whole(p, record, &record->prompt, ids, &prefix, &suffix, err);
        if (!st && !record->error_code[0] && ids->len)
            st = fit(p, record, fkv_prompt_limit(l, *max_new), *max_new, prefix, suffix, ids, truncated, err);
    }
    if (!st && !record->error_code[0] && ids->len == 0)
        fkv_record_set_error(record, "empty_prompt", "the prompt has no tokens");
    if (!st) check_ids(l, record, ids);
    trim(p);
    return st;
}
