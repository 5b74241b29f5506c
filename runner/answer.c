/* Answers: see answer.h. */
#include "runner/answer.h"

#include <string.h>

void fkv_answer_maker_open(fkv_answer_maker *maker, const fkv_setup *setup)
{
    *maker = (fkv_answer_maker){.setup = setup};
}

void fkv_answer_maker_close(fkv_answer_maker *maker)
{
    fkv_buf_free(&maker->text);
}

/* Where the first stop string of text begins, or NULL. */
static const char *find_stop(const fkv_stops *stops, const fkv_buf *text)
{
    const char *first = NULL, *stop = stops->text;
    for (size_t i = 0; i < stops->n; i++, stop += strlen(stop) + 1) {
        const char *at = memmem(text->data, text->len, stop, strlen(stop));
        if (at && (!first || at < first)) first = at;
    }
    return first;
}

/* Bytes of the longest stop string. */
static size_t longest_stop(const fkv_stops *stops)
{
    const char *stop = stops->text;
    size_t longest = 0;
    for (size_t i = 0; i < stops->n; i++) {
        const size_t n = strlen(stop);
        if (n > longest) longest = n;
        stop += n + 1;
    }
    return longest;
}

/* How many of n ids are text: the token that ended the record is not, whether
 * tokenizer.json calls it special or not. */
static size_t without_stop_token(const fkv_setup *setup, const fkv_sampling *sampling, const int32_t *ids,
                                 size_t n)
{
    const fkv_token_rules rules = fkv_setup_rules(setup);
    return n && fkv_sampling_ends(sampling, &rules, ids[n - 1]) ? n - 1 : n;
}

void fkv_answer_watch_free(fkv_answer_watch *watch)
{
    fkv_tokenizer_stream_free(watch->stream);
    fkv_buf_free(&watch->certain);
    *watch = (fkv_answer_watch){0};
}

/* Brings the watch up to n ids. */
static fkv_status watch_ids(const fkv_answer_maker *m, fkv_answer_watch *w, const int32_t *ids, size_t n,
                            fkv_err *err)
{
    fkv_status st = FKV_OK;
    if (!w->stream) st = fkv_tokenizer_stream_new(m->setup->tokenizer, true, &w->stream, err);
    if (st) return st;
    if (n == 1 || n != w->n_ids + 1) {
        fkv_tokenizer_stream_restart(w->stream);
        fkv_buf_clear(&w->certain);
        w->n_ids = 0;
    }
    for (; !st && w->n_ids < n; w->n_ids++)
        st = fkv_tokenizer_stream_push(w->stream, ids[w->n_ids], &w->certain, err);
    return st;
}

bool fkv_answer_stops(fkv_answer_maker *m, const fkv_stops *stops, fkv_answer_watch *w, const int32_t *ids,
                      size_t n)
{
    fkv_err err = {0};
    if (!stops->n) return false;
    fkv_buf_clear(&m->text);
    fkv_status st = watch_ids(m, w, ids, n, &err);
    if (!st) st = fkv_buf_append(&m->text, w->certain.data, w->certain.len, &err);
    if (!st) st = fkv_tokenizer_stream_rest(w->stream, &m->text, &err);
    if (st) {
        w->n_ids = 0; /* begins anew */
        return false;
    }
    /* A stop string that a later token completes begins in these bytes. */
    const size_t keep = longest_stop(stops) - 1;
    if (w->certain.len > keep) {
        memmove(w->certain.data, w->certain.data + w->certain.len - keep, keep);
        w->certain.len = keep;
    }
    return m->text.len && find_stop(stops, &m->text) != NULL;
}

fkv_status fkv_answer_text(fkv_answer_maker *m, const fkv_answer_ends *ends, const int32_t *ids, size_t n,
                           const char **text, size_t *n_text, bool *stopped, fkv_err *err)
{
    fkv_buf_clear(&m->text);
    fkv_status st = fkv_buf_reserve(&m->text, 16, err);
    n = without_stop_token(m->setup, &ends->sampling, ids, n);
    if (!st) st = fkv_tokenizer_decode(m->setup->tokenizer, ids, n, true, &m->text, err);
    if (st) return st;
    const char *stop = find_stop(&ends->stops, &m->text);
    *stopped = stop != NULL;
    *text = m->text.data;
    *n_text = stop ? (size_t)(stop - m->text.data) : m->text.len;
    return FKV_OK;
}
