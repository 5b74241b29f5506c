/* NFC, Prepend and Replace: see normalizer.h. An fkv_normalizer owns its texts and regexes. */
#include "tokenizer/normalizer.h"

#include <stdlib.h>
#include <string.h>

#include "tokenizer/characters.h"
#include "tokenizer/steps.h"

enum {
    CONTENT_MAX = 1024, /* bytes that a step may put at a place */
    /* A text may become so many times as long, and so many bytes more: a few steps in a file
     * could fill any memory otherwise. */
    GROWTH_MAX = 64,
    GROWTH_FREE = 4096,
};

struct step;

/* A kind of step: read takes its fields; run gives text[0, n) as the step leaves it, in out
 * or where *text then points. */
struct kind {
    const char *type;
    fkv_status (*read)(struct step *step, const json_t *o, const fkv_step_place *at, fkv_err *err);
    fkv_status (*run)(const struct step *step, fkv_normalizer_scratch *s, fkv_regex_scratch *regex,
                      fkv_buf *out, const char **text, size_t *n, fkv_err *err);
    bool moves_start; /* see fkv_normalizer_keeps_start */
};

struct step {
    const struct kind *kind;
    fkv_regex *pattern; /* Replace */
    fkv_buf content;    /* what Prepend and Replace put */
};

struct fkv_normalizer {
    struct step steps[FKV_STEPS_MAX];
    int n;
};

static fkv_status run_nfc(const struct step *step, fkv_normalizer_scratch *s, fkv_regex_scratch *regex,
                          fkv_buf *out, const char **text, size_t *n, fkv_err *err)
{
    (void)step;
    (void)regex;
    (void)out;
    return fkv_nfc(&s->nfc, *text, *n, text, n, err);
}

static fkv_status read_content(struct step *step, const json_t *o, const char *name, const fkv_step_place *at,
                               fkv_err *err)
{
    const char *text;
    size_t n;
    fkv_status st = fkv_step_text(o, name, at, &text, &n, err);
    if (!st && n > CONTENT_MAX)
        st = fkv_step_refuse(at, err, "'%s' has more than %d bytes", name, CONTENT_MAX);
    if (!st) st = fkv_buf_append(&step->content, text, n, err);
    return st;
}

static fkv_status read_prepend(struct step *step, const json_t *o, const fkv_step_place *at, fkv_err *err)
{
    return read_content(step, o, "prepend", at, err);
}

static fkv_status run_prepend(const struct step *step, fkv_normalizer_scratch *s, fkv_regex_scratch *regex,
                              fkv_buf *out, const char **text, size_t *n, fkv_err *err)
{
    (void)s;
    (void)regex;
    if (*n == 0) return FKV_OK;
    fkv_status st = fkv_buf_append(out, step->content.data, step->content.len, err);
    if (!st) st = fkv_buf_append(out, *text, *n, err);
    *text = out->data;
    *n = out->len;
    return st;
}

static fkv_status read_replace(struct step *step, const json_t *o, const fkv_step_place *at, fkv_err *err)
{
    fkv_status st = fkv_step_pattern(o, false, at, &step->pattern, err);
    if (!st) st = read_content(step, o, "content", at, err);
    return st;
}

static fkv_status run_replace(const struct step *step, fkv_normalizer_scratch *s, fkv_regex_scratch *regex,
                              fkv_buf *out, const char **text, size_t *n, fkv_err *err)
{
    size_t done = 0, begin, end;
    fkv_regex_matches m = {0};
    fkv_status st;
    while (!(st = fkv_regex_next(step->pattern, regex, *text, *n, &m, &begin, &end, err))) {
        if (out->len > s->most)
            return fkv_fail(err, FKV_E_INPUT, "the normalizer makes the text more than %d times as long",
                            GROWTH_MAX);
        if ((st = fkv_buf_reserve(out, begin - done + step->content.len + 1, err))) return st;
        if ((st = fkv_buf_append(out, *text + done, begin - done, err))) return st;
        if (step->content.len && (st = fkv_buf_append(out, step->content.data, step->content.len, err)))
            return st;
        done = end;
    }
    if (st != FKV_END) return st;
    if (!m.any) return FKV_OK;
    if ((st = fkv_buf_append(out, *text + done, *n - done, err))) return st;
    *text = out->data;
    *n = out->len;
    return FKV_OK;
}

static const struct kind kinds[] = {
    {"NFC", NULL, run_nfc, false},
    {"Prepend", read_prepend, run_prepend, true},
    {"Replace", read_replace, run_replace, true},
};

static fkv_status add_step(void *ctx, const json_t *o, const char *type, const fkv_step_place *at,
                           fkv_err *err)
{
    fkv_normalizer *p = ctx;
    size_t k = 0;
    while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k].type, type) != 0) k++;
    if (k == sizeof kinds / sizeof *kinds) return fkv_step_unknown(at, type, err);
    if (p->n == FKV_STEPS_MAX)
        return fkv_step_refuse(at, err, "more than %d steps are not supported", FKV_STEPS_MAX);
    /* Twice is once; and its buffer is not read while it is written. */
    if (kinds[k].run == run_nfc && p->n && p->steps[p->n - 1].kind == &kinds[k]) return FKV_OK;
    struct step *step = &p->steps[p->n++];
    step->kind = &kinds[k];
    return step->kind->read ? step->kind->read(step, o, at, err) : FKV_OK;
}

fkv_status fkv_normalizer_open(const json_t *o, const char *file, fkv_normalizer **out, fkv_err *err)
{
    *out = NULL;
    fkv_normalizer *p = calloc(1, sizeof *p);
    if (!p) return fkv_fail_memory(err);
    fkv_status st = fkv_steps_each(o, "normalizers", file, "normalizer", add_step, p, err);
    if (st) {
        fkv_normalizer_close(p);
        return st;
    }
    *out = p;
    return FKV_OK;
}

void fkv_normalizer_close(fkv_normalizer *normalizer)
{
    if (!normalizer) return;
    for (int k = 0; k < normalizer->n; k++) {
        fkv_regex_free(normalizer->steps[k].pattern);
        fkv_buf_free(&normalizer->steps[k].content);
    }
    free(normalizer);
}

bool fkv_normalizer_keeps_start(const fkv_normalizer *normalizer)
{
    for (int k = 0; k < normalizer->n; k++)
        if (normalizer->steps[k].kind->moves_start) return false;
    return true;
}

fkv_status fkv_normalize(const fkv_normalizer *normalizer, fkv_normalizer_scratch *s,
                         fkv_regex_scratch *regex, const char *text, size_t n, const char **out,
                         size_t *n_out, fkv_err *err)
{
    fkv_status st = FKV_OK;
    int turn = 0;
    s->most = n > (SIZE_MAX - GROWTH_FREE) / GROWTH_MAX ? SIZE_MAX : n * GROWTH_MAX + GROWTH_FREE;
    for (int k = 0; !st && k < normalizer->n; k++) {
        const struct step *step = &normalizer->steps[k];
        fkv_buf *to = &s->text[turn];
        fkv_buf_clear(to);
        st = step->kind->run(step, s, regex, to, &text, &n, err);
        if (text == to->data) turn = !turn; /* the next step reads it */
    }
    *out = text;
    *n_out = n;
    return st;
}

void fkv_normalizer_scratch_free(fkv_normalizer_scratch *s)
{
    fkv_nfc_scratch_free(&s->nfc);
    fkv_buf_free(&s->text[0]);
    fkv_buf_free(&s->text[1]);
}
