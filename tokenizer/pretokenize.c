/* Split and ByteLevel: see pretokenize.h. An fkv_pretokenizer owns its regexes.
 * Words are views of the text. */
#include "tokenizer/pretokenize.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"
#include "tokenizer/characters.h"

enum { STEPS_MAX = 16 };

/* What becomes of the matches of a Split and of what lies between them. */
enum behavior { ISOLATED, REMOVED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };

/* One Split, or the regex of ByteLevel, which is one that isolates. */
struct step {
    fkv_regex *regex; /* NULL: no split */
    enum behavior behavior;
    bool invert;
    bool add_prefix_space;
};

struct fkv_pretokenizer {
    struct step steps[STEPS_MAX];
    int n_steps;
    bool byte_level;
};

/* ByteLevel's own regex, GPT-2's. */
static const char gpt2_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static fkv_status read_behavior(const json_t *o, const char *file, const char *key, enum behavior *out,
                                fkv_err *err)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                        "Contiguous"};
    const json_t *v = json_object_get(o, "behavior");
    if (!json_is_string(v)) return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "'behavior' must be a string");
    for (int k = 0; k < (int)(sizeof names / sizeof *names); k++) {
        if (!strcmp(json_string_value(v), names[k])) {
            *out = (enum behavior)k;
            return FKV_OK;
        }
    }
    return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "the behavior '%.60s' is not supported",
                       json_string_value(v));
}

static fkv_status read_split(const json_t *o, const char *file, const char *key, struct step *step,
                             fkv_err *err)
{
    const json_t *pattern = json_object_get(o, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex"), *string = json_object_get(pattern, "String");
    if (json_object_size(pattern) != 1 || (!json_is_string(regex) && !json_is_string(string)))
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key,
                           "'pattern' must be {\"Regex\": string} or {\"String\": string}");
    const json_t *text = regex ? regex : string;
    if (json_string_length(text) == 0)
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "an empty pattern is not supported");
    fkv_status st = read_behavior(o, file, key, &step->behavior, err);
    if (!st) st = fkv_json_bool_or(o, "invert", false, file, &step->invert, err);
    if (!st)
        st = fkv_regex_compile(json_string_value(text), json_string_length(text), !regex, file, key,
                               &step->regex, err);
    return st;
}

static fkv_status read_byte_level(const json_t *o, const char *file, const char *key, struct step *step,
                                  fkv_err *err)
{
    bool use_regex;
    fkv_status st = fkv_json_bool_or(o, "use_regex", true, file, &use_regex, err);
    if (st) return st;
    if (!json_is_boolean(json_object_get(o, "add_prefix_space")))
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "'add_prefix_space' must be true or false");
    step->add_prefix_space = json_is_true(json_object_get(o, "add_prefix_space"));
    step->behavior = ISOLATED;
    if (!use_regex) return FKV_OK;
    return fkv_regex_compile(gpt2_regex, sizeof gpt2_regex - 1, false, file, key, &step->regex, err);
}

static fkv_status read_step(fkv_pretokenizer *p, const json_t *o, const char *file, const char *key,
                            fkv_err *err)
{
    const char *type = json_string_value(json_object_get(o, "type"));
    if (!type) return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "'type' must be a string");
    if (p->byte_level)
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key,
                           "a pre-tokenizer after ByteLevel is not supported");
    if (p->n_steps == STEPS_MAX)
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "more than %d steps are not supported", STEPS_MAX);
    struct step *step = &p->steps[p->n_steps++];
    if (!strcmp(type, "Split")) return read_split(o, file, key, step, err);
    if (!strcmp(type, "ByteLevel")) {
        p->byte_level = true;
        return read_byte_level(o, file, key, step, err);
    }
    return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "the type '%.60s' is not supported", type);
}

fkv_status fkv_pretokenizer_open(const json_t *o, const char *file, fkv_pretokenizer **out, fkv_err *err)
{
    fkv_status st = FKV_OK;
    *out = NULL;
    fkv_pretokenizer *p = calloc(1, sizeof *p);
    if (!p) return fkv_fail_memory(err);
    const char *type = json_string_value(json_object_get(o, "type"));
    if (type && !strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(o, "pretokenizers");
        if (!json_is_array(list)) {
            st = fkv_fail_at(err, FKV_E_INPUT, file, 0, "pre_tokenizer.pretokenizers", "must be an array");
            goto out;
        }
        for (size_t i = 0; i < json_array_size(list); i++) {
            char key[64];
            snprintf(key, sizeof key, "pre_tokenizer.pretokenizers[%zu]", i);
            if ((st = read_step(p, json_array_get(list, i), file, key, err))) goto out;
        }
    } else if (o && !json_is_null(o)) {
        if ((st = read_step(p, o, file, "pre_tokenizer", err))) goto out;
    }
    if (!p->byte_level) {
        st = fkv_fail_at(err, FKV_E_INPUT, file, 0, "pre_tokenizer",
                         "without ByteLevel is not supported (SentencePiece-style files come later)");
        goto out;
    }
    *out = p;
    p = NULL;
out:
    fkv_pretokenizer_close(p);
    return st;
}

void fkv_pretokenizer_close(fkv_pretokenizer *p)
{
    if (!p) return;
    for (int k = 0; k < p->n_steps; k++) fkv_regex_free(p->steps[k].regex);
    free(p);
}

struct run {
    const fkv_pretokenizer *p;
    fkv_regex_scratch *scratch;
    fkv_buf *prefixed;
    fkv_word_fn *fn;
    void *ctx;
};

static fkv_status run_steps(const struct run *r, int k, const char *text, size_t n, fkv_err *err);

/* The cutting of one text by one step. Pieces come in order; [begin, end) is
 * the one held back, because the next may be joined to it. */
struct cutting {
    const struct run *run;
    int k;
    const char *text;
    enum behavior behavior;
    size_t begin, end;
    bool held, held_match;
};

static fkv_status emit(const struct cutting *c, size_t begin, size_t end, fkv_err *err)
{
    return begin == end ? FKV_OK : run_steps(c->run, c->k + 1, c->text + begin, end - begin, err);
}

static fkv_status add_piece(struct cutting *c, size_t begin, size_t end, bool match, fkv_err *err)
{
    bool join = false;
    switch (c->behavior) {
    case ISOLATED: return emit(c, begin, end, err);
    case REMOVED: return match ? FKV_OK : emit(c, begin, end, err);
    case CONTIGUOUS: join = c->held && match == c->held_match; break;
    case MERGED_WITH_PREVIOUS: join = c->held && match && !c->held_match; break;
    case MERGED_WITH_NEXT: join = c->held && !match && c->held_match; break;
    }
    fkv_status st = FKV_OK;
    if (!join && c->held) st = emit(c, c->begin, c->end, err);
    if (!join) c->begin = begin;
    c->end = end;
    c->held = true;
    c->held_match = match;
    return st;
}

static fkv_status cut(const struct run *r, int k, const char *text, size_t n, fkv_err *err)
{
    const struct step *step = &r->p->steps[k];
    struct cutting c = {.run = r, .k = k, .text = text, .behavior = step->behavior};
    size_t from = 0, done = 0; /* from: where to search; done: the end of the last match */
    bool any = false;          /* there was a match */
    fkv_status st = FKV_OK;
    while (!st && from <= n) {
        size_t begin, end;
        st = fkv_regex_find(step->regex, r->scratch, text, n, from, &begin, &end, err);
        if (st) break;
        if (begin == end && any && end == done) {
            /* An empty match right behind a match does not count. */
            size_t len = 1;
            if (from < n) fkv_utf8_get(text + from, &len);
            from += len;
            continue;
        }
        if (begin > done) st = add_piece(&c, done, begin, step->invert, err);
        if (!st) st = add_piece(&c, begin, end, !step->invert, err);
        done = from = end;
        any = true;
    }
    if (st && st != FKV_END) return st;
    st = FKV_OK;
    if (done < n) st = add_piece(&c, done, n, step->invert, err);
    if (!st && c.held) st = emit(&c, c.begin, c.end, err);
    return st;
}

/* Gives text to step k and what it makes to the steps behind it. The depth of
 * this recursion is the number of steps. */
static fkv_status run_steps(const struct run *r, int k, const char *text, size_t n, fkv_err *err)
{
    if (k == r->p->n_steps) return r->fn(r->ctx, text, n, err);
    const struct step *step = &r->p->steps[k];
    if (step->add_prefix_space && text[0] != ' ') {
        /* Only the last step has this, so the buffer is free. */
        fkv_buf_clear(r->prefixed);
        fkv_status st = fkv_buf_append(r->prefixed, " ", 1, err);
        if (!st) st = fkv_buf_append(r->prefixed, text, n, err);
        if (st) return st;
        text = r->prefixed->data;
        n++;
    }
    return step->regex ? cut(r, k, text, n, err) : run_steps(r, k + 1, text, n, err);
}

fkv_status fkv_pretokenize(const fkv_pretokenizer *p, fkv_regex_scratch *scratch, fkv_buf *prefixed,
                           const char *text, size_t n, fkv_word_fn *fn, void *ctx, fkv_err *err)
{
    const struct run r = {.p = p, .scratch = scratch, .prefixed = prefixed, .fn = fn, .ctx = ctx};
    return n ? run_steps(&r, 0, text, n, err) : FKV_OK;
}
