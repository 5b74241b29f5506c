/* ByteLevel, Replace, ByteFallback, Fuse, Strip and Metaspace: see decoder.h. HF gives a step
 * all strings at once; here one string passes all steps at once, and what a later one may
 * still change stays in the decoding. */
#include "tokenizer/decoder.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"
#include "runner/base/utf8.h"
#include "tokenizer/characters.h"

struct step;
struct run;

/* A kind of step: read takes its fields; run gives what it makes of a string to the steps
 * behind; rest gives what it held, as at the end, and changes nothing (NULL: it holds nothing). */
struct kind {
    const char *type;
    fkv_status (*read)(struct step *step, const json_t *o, const fkv_step_place *at, fkv_err *err);
    fkv_status (*run)(const struct run *r, int k, const char *text, size_t n, fkv_err *err);
    fkv_status (*rest)(const struct run *r, int k, fkv_err *err);
    bool fuses; /* makes one string of all: behind it strings come in parts */
    bool parts; /* takes strings in parts */
    bool once;  /* may be there once only */
};

struct step {
    const struct kind *kind;
    bool fused;         /* strings come in parts */
    fkv_regex *pattern; /* Replace, Metaspace */
    fkv_buf content;    /* what Replace puts, what Strip takes away */
    size_t start;       /* Strip: how many at most */
    bool drop_first;    /* Metaspace: nothing is put in the first token */
};

/* Replace steps together may make a token so many times as long. */
enum { GROWTH_MAX = 1024 };

struct fkv_decoder {
    size_t growth; /* of a token's length, at most */
    struct step steps[FKV_STEPS_MAX];
    int n_steps;
};

/* One call. */
struct run {
    const fkv_decoder *decoder;
    fkv_decoding *d;
    fkv_buf *out;
};

static fkv_status give(const struct run *r, int k, const char *text, size_t n, fkv_err *err)
{
    if (k < r->decoder->n_steps) return r->decoder->steps[k].kind->run(r, k, text, n, err);
    return n ? fkv_buf_append(r->out, text, n, err) : FKV_OK;
}

/* --- ByteLevel -------------------------------------------------------------- */

/* The bytes that a token stands for: each character's byte, or the string
 * itself when one of them is not of the alphabet, as in HF. */
static fkv_status put_bytes(const char *string, size_t n, fkv_buf *out, fkv_err *err)
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
    return FKV_OK;
}

static fkv_status give_lossy(const struct run *r, int k, const char *bytes, size_t n, fkv_err *err)
{
    fkv_buf lossy = {0};
    if (fkv_utf8_span(bytes, n) == n) return give(r, k + 1, bytes, n, err);
    fkv_status st = fkv_utf8_lossy(bytes, n, &lossy, err);
    if (!st) st = give(r, k + 1, lossy.data, lossy.len, err);
    fkv_buf_free(&lossy);
    return st;
}

static fkv_status run_byte_level(const struct run *r, int k, const char *text, size_t n, fkv_err *err)
{
    fkv_decoding_state *s = &r->d->states[k];
    fkv_buf *b = &r->d->texts[k];
    fkv_buf_clear(b);
    fkv_status st = fkv_buf_append(b, s->partial, s->n_partial, err);
    if (!st) st = put_bytes(text, n, b, err);
    if (st) return st;
    const size_t open = fkv_utf8_incomplete(b->data, b->len);
    b->len -= open;
    memcpy(s->partial, b->data + b->len, open);
    s->n_partial = (uint8_t)open;
    return give_lossy(r, k, b->data, b->len, err);
}

static fkv_status rest_byte_level(const struct run *r, int k, fkv_err *err)
{
    const fkv_decoding_state *s = &r->d->states[k];
    return s->n_partial ? give_lossy(r, k, s->partial, s->n_partial, err) : FKV_OK;
}

/* --- ByteFallback ----------------------------------------------------------- */

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The byte of a token such as <0x0A>, or -1. Like Rust's parser, HF takes a plus for a digit in front. */
static int byte_of(const char *t, size_t n)
{
    if (n != 6 || memcmp(t, "<0x", 3) != 0 || t[5] != '>') return -1;
    const int high = t[3] == '+' ? 0 : hex_digit(t[3]), low = hex_digit(t[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* A run of byte tokens is a string if it is UTF-8, else each byte is a U+FFFD. */
static fkv_status rest_byte_fallback(const struct run *r, int k, fkv_err *err)
{
    const fkv_buf *held = &r->d->held;
    fkv_status st = FKV_OK;
    if (held->len == 0) return FKV_OK;
    if (fkv_utf8_span(held->data, held->len) == held->len) return give(r, k + 1, held->data, held->len, err);
    for (size_t i = 0; !st && i < held->len; i++) st = give(r, k + 1, "\xef\xbf\xbd", 3, err);
    return st;
}

static fkv_status run_byte_fallback(const struct run *r, int k, const char *text, size_t n, fkv_err *err)
{
    const int byte = byte_of(text, n);
    const char c = (char)byte;
    if (byte >= 0) return fkv_buf_append(&r->d->held, &c, 1, err);
    fkv_status st = rest_byte_fallback(r, k, err);
    fkv_buf_clear(&r->d->held);
    return st ? st : give(r, k + 1, text, n, err);
}

/* --- Replace and Metaspace -------------------------------------------------- */

/* Gives the string with every match of the pattern replaced. */
static fkv_status give_replaced(const struct run *r, int k, const char *text, size_t n, const char *content,
                                size_t n_content, fkv_err *err)
{
    const struct step *step = &r->decoder->steps[k];
    fkv_buf *b = &r->d->texts[k];
    fkv_regex_matches m = {0};
    size_t done = 0, begin, end;
    fkv_status st;
    fkv_buf_clear(b);
    while (!(st = fkv_regex_next(step->pattern, NULL, text, n, &m, &begin, &end, err))) {
        if ((st = fkv_buf_append(b, text + done, begin - done, err))) return st;
        if ((st = fkv_buf_append(b, content, n_content, err))) return st;
        done = end;
    }
    if (st != FKV_END) return st;
    if (!m.any) return give(r, k + 1, text, n, err);
    if ((st = fkv_buf_append(b, text + done, n - done, err))) return st;
    return give(r, k + 1, b->data, b->len, err);
}

static fkv_status read_replace(struct step *step, const json_t *o, const fkv_step_place *at, fkv_err *err)
{
    const char *text;
    size_t n;
    fkv_status st = fkv_step_pattern(o, true, at, &step->pattern, err);
    if (!st) st = fkv_step_text(o, "content", at, &text, &n, err);
    if (!st) st = fkv_buf_append(&step->content, text, n, err);
    return st;
}

static fkv_status run_replace(const struct run *r, int k, const char *text, size_t n, fkv_err *err)
{
    const fkv_buf *content = &r->decoder->steps[k].content;
    return give_replaced(r, k, text, n, content->data, content->len, err);
}

static fkv_status read_metaspace(struct step *step, const json_t *o, const fkv_step_place *at, fkv_err *err)
{
    const char *text, *scheme;
    size_t n;
    bool space;
    fkv_status st = fkv_step_char(o, "replacement", at, &text, &n, err);
    if (!st) st = fkv_json_str_or_null(o, "prepend_scheme", at->file, &scheme, err);
    if (st) return st;
    if (scheme && strcmp(scheme, "always") != 0 && strcmp(scheme, "first") != 0 &&
        strcmp(scheme, "never") != 0)
        return fkv_step_refuse(at, err, "the prepend_scheme '%.60s' is not supported", scheme);
    step->drop_first = !scheme || strcmp(scheme, "never") != 0;
    if ((st = fkv_json_bool_or(o, "add_prefix_space", step->drop_first, at->file, &space, err))) return st;
    if (!space && step->drop_first)
        return fkv_step_refuse(at, err, "add_prefix_space does not match prepend_scheme");
    return fkv_regex_compile(text, n, true, at->file, at->key, &step->pattern, err);
}

static fkv_status run_metaspace(const struct run *r, int k, const char *text, size_t n, fkv_err *err)
{
    fkv_decoding_state *s = &r->d->states[k];
    const bool drop = r->decoder->steps[k].drop_first && !s->past;
    s->past = true;
    return give_replaced(r, k, text, n, " ", !drop, err);
}

/* --- Fuse and Strip --------------------------------------------------------- */

static fkv_status run_fuse(const struct run *r, int k, const char *text, size_t n, fkv_err *err)
{
    return give(r, k + 1, text, n, err);
}

static fkv_status read_strip(struct step *step, const json_t *o, const fkv_step_place *at, fkv_err *err)
{
    const char *text;
    size_t n;
    const json_t *start = json_object_get(o, "start"), *stop = json_object_get(o, "stop");
    if (!json_is_integer(start) || json_integer_value(start) < 0 || !json_is_integer(stop))
        return fkv_step_refuse(at, err, "'start' and 'stop' must be integers from 0");
    /* HF's own fails on the strings that this is for. */
    if (json_integer_value(stop) != 0)
        return fkv_step_refuse(at, err, "'stop' other than 0 is not supported");
    step->start = (size_t)json_integer_value(start);
    fkv_status st = fkv_step_char(o, "content", at, &text, &n, err);
    if (!st) st = fkv_buf_append(&step->content, text, n, err);
    return st;
}

static fkv_status run_strip(const struct run *r, int k, const char *text, size_t n, fkv_err *err)
{
    const struct step *step = &r->decoder->steps[k];
    const fkv_buf *c = &step->content;
    fkv_decoding_state alone = {0}, *s = step->fused ? &r->d->states[k] : &alone;
    while (n && !s->past) {
        s->past = s->n == step->start || n < c->len || memcmp(text, c->data, c->len) != 0;
        if (s->past) break;
        s->n++;
        text += c->len;
        n -= c->len;
    }
    return give(r, k + 1, text, n, err);
}

/* --- the list --------------------------------------------------------------- */

static const struct kind kinds[] = {
    {"ByteLevel", NULL, run_byte_level, rest_byte_level, .fuses = true},
    {"Replace", read_replace, run_replace, NULL, .parts = false},
    {"ByteFallback", NULL, run_byte_fallback, rest_byte_fallback, .once = true},
    {"Metaspace", read_metaspace, run_metaspace, NULL, .parts = false},
    {"Fuse", NULL, run_fuse, NULL, .fuses = true, .parts = true},
    {"Strip", read_strip, run_strip, NULL, .parts = true},
};

static fkv_status add_step(void *ctx, const json_t *o, const char *type, const fkv_step_place *at,
                           fkv_err *err)
{
    fkv_decoder *p = ctx;
    size_t k = 0;
    bool fused = false;
    while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k].type, type) != 0) k++;
    if (k == sizeof kinds / sizeof *kinds) return fkv_step_unknown(at, type, err);
    if (p->n_steps == FKV_STEPS_MAX)
        return fkv_step_refuse(at, err, "more than %d steps are not supported", FKV_STEPS_MAX);
    for (int i = 0; i < p->n_steps; i++) {
        const struct kind *before = p->steps[i].kind;
        fused = fused || before->fuses;
        if (before->fuses && !kinds[k].parts)
            return fkv_step_refuse(at, err, "%s behind %s is not supported", type, before->type);
        if (before == &kinds[k] && before->once)
            return fkv_step_refuse(at, err, "a second %s is not supported", type);
    }
    struct step *step = &p->steps[p->n_steps++];
    step->kind = &kinds[k];
    step->fused = fused;
    fkv_status st = step->kind->read ? step->kind->read(step, o, at, err) : FKV_OK;
    /* A match is a byte or more. */
    if (step->kind->run == run_replace && step->content.len) p->growth *= step->content.len;
    if (!st && p->growth > GROWTH_MAX)
        st = fkv_step_refuse(at, err, "the contents of Replace steps are too long");
    return st;
}

fkv_status fkv_decoder_open(const json_t *o, const char *file, fkv_decoder **out, fkv_err *err)
{
    *out = NULL;
    if (!o || json_is_null(o))
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, "decoder",
                           "a tokenizer without a decoder is not supported");
    fkv_decoder *p = calloc(1, sizeof *p);
    if (!p) return fkv_fail_memory(err);
    p->growth = 1;
    fkv_status st = fkv_steps_each(o, "decoders", file, "decoder", add_step, p, err);
    if (st) {
        fkv_decoder_close(p);
        return st;
    }
    *out = p;
    return FKV_OK;
}

void fkv_decoder_close(fkv_decoder *decoder)
{
    if (!decoder) return;
    for (int k = 0; k < decoder->n_steps; k++) {
        fkv_regex_free(decoder->steps[k].pattern);
        fkv_buf_free(&decoder->steps[k].content);
    }
    free(decoder);
}

fkv_status fkv_decoder_push(const fkv_decoder *decoder, fkv_decoding *d, const char *token, size_t n,
                            fkv_buf *out, fkv_err *err)
{
    const struct run r = {decoder, d, out};
    return give(&r, 0, token, n, err);
}

fkv_status fkv_decoder_rest(const fkv_decoder *decoder, fkv_decoding *d, fkv_buf *out, fkv_err *err)
{
    const struct run r = {decoder, d, out};
    fkv_decoding_state states[FKV_STEPS_MAX];
    fkv_status st = FKV_OK;
    memcpy(states, d->states, sizeof states);
    for (int k = 0; !st && k < decoder->n_steps; k++)
        if (decoder->steps[k].kind->rest) st = decoder->steps[k].kind->rest(&r, k, err);
    memcpy(d->states, states, sizeof states);
    return st;
}

void fkv_decoding_restart(fkv_decoding *d)
{
    memset(d->states, 0, sizeof d->states);
    fkv_buf_clear(&d->held);
}

void fkv_decoding_free(fkv_decoding *d)
{
    for (int k = 0; k < FKV_STEPS_MAX; k++) fkv_buf_free(&d->texts[k]);
    fkv_buf_free(&d->held);
    *d = (fkv_decoding){0};
}
