/* Split, Digits, Punctuation, ByteLevel and Metaspace: see pretokenize.h. An
 * fkv_pretokenizer owns its regexes and texts. Words are views of the text or of the scratch. */
#include "tokenizer/pretokenize.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"
#include "tokenizer/characters.h"

/* What becomes of matches and of what lies between them. */
enum behavior { ISOLATED, REMOVED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };

/* Metaspace's: which pieces get the replacement in front. */
enum prepend { ALWAYS, FIRST, NEVER };

struct run;
struct step;

/* A text on its way through the steps. */
struct piece {
    const char *text;
    size_t n;
    bool first; /* begins where the whole text does */
};

/* A kind of step: read takes its fields; run gives what it makes of a piece to the steps behind. */
struct kind {
    const char *type;
    fkv_status (*read)(fkv_pretokenizer *p, struct step *step, const json_t *o, const fkv_step_place *at,
                       fkv_err *err);
    fkv_status (*run)(const struct run *r, int k, struct piece in, fkv_err *err);
};

struct step {
    const struct kind *kind;
    /* What cuts: one of the two, or neither. */
    fkv_regex *regex;
    bool (*matches)(uint32_t cp); /* every character of which this is true is a match */
    enum behavior behavior;
    bool invert;           /* matches are what lies between */
    bool add_prefix_space; /* ByteLevel */
    enum prepend prepend;  /* Metaspace */
    fkv_buf replacement;
};

struct fkv_pretokenizer {
    struct step steps[FKV_CUTS_MAX];
    int n_steps;
    bool keeps_start; /* see fkv_pretokenizer_open */
};

/* One call. */
struct run {
    const fkv_pretokenizer *p;
    fkv_pretokenizer_scratch *scratch;
    int n_steps; /* that are run */
    fkv_word_fn *fn;
    void *ctx;
};

/* ByteLevel's own regex, GPT-2's. */
static const char gpt2_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* Gives a piece to step k and what it makes to the steps behind it. The depth of
 * this recursion is the number of steps. */
static fkv_status run_steps(const struct run *r, int k, struct piece in, fkv_err *err)
{
    if (k == r->n_steps) return r->fn(r->ctx, in.text, in.n, err);
    return r->p->steps[k].kind->run(r, k, in, err);
}

/* The cutting of one text by one step. Parts come in order; [begin, end) is
 * the one held back, because the next may be joined to it. */
struct cutting {
    const struct run *run;
    int k;
    struct piece in;
    enum behavior behavior;
    size_t begin, end;
    bool held, held_match;
};

static fkv_status emit(const struct cutting *c, size_t begin, size_t end, fkv_err *err)
{
    const struct piece out = {c->in.text + begin, end - begin, c->in.first && begin == 0};
    return begin == end ? FKV_OK : run_steps(c->run, c->k + 1, out, err);
}

static fkv_status add_part(struct cutting *c, size_t begin, size_t end, bool match, fkv_err *err)
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

/* The next match of a step, as fkv_regex_next. */
static fkv_status next_match(const struct step *step, fkv_regex_scratch *s, const struct piece *in,
                             fkv_regex_matches *m, size_t *begin, size_t *end, fkv_err *err)
{
    if (step->regex) return fkv_regex_next(step->regex, s, in->text, in->n, m, begin, end, err);
    for (size_t i = m->done, len; i < in->n; i += len) {
        if (!step->matches(fkv_utf8_get(in->text + i, &len))) continue;
        *begin = i;
        *end = m->done = i + len;
        return FKV_OK;
    }
    return FKV_END;
}

static fkv_status run_cut(const struct run *r, int k, struct piece in, fkv_err *err)
{
    const struct step *step = &r->p->steps[k];
    struct cutting c = {.run = r, .k = k, .in = in, .behavior = step->behavior};
    fkv_regex_matches m = {0};
    size_t done = 0, begin, end;
    fkv_status st;
    if (!step->regex && !step->matches) return run_steps(r, k + 1, in, err);
    while (!(st = next_match(step, r->scratch->regex, &in, &m, &begin, &end, err))) {
        if (begin > done) st = add_part(&c, done, begin, step->invert, err);
        if (!st) st = add_part(&c, begin, end, !step->invert, err);
        if (st) return st;
        done = end;
    }
    if (st != FKV_END) return st;
    st = FKV_OK;
    if (done < in.n) st = add_part(&c, done, in.n, step->invert, err);
    if (!st && c.held) st = emit(&c, c.begin, c.end, err);
    return st;
}

/* --- Split, Digits, Punctuation ------------------------------------------- */

/* The field "behavior"; fallback where it may be left out, else -1. */
static fkv_status read_behavior(const json_t *o, const fkv_step_place *at, int fallback, enum behavior *out,
                                fkv_err *err)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                        "Contiguous"};
    const char *text;
    size_t n;
    if (fallback >= 0 && !json_object_get(o, "behavior")) {
        *out = (enum behavior)fallback;
        return FKV_OK;
    }
    fkv_status st = fkv_step_text(o, "behavior", at, &text, &n, err);
    if (st) return st;
    for (int k = 0; k < (int)(sizeof names / sizeof *names); k++) {
        if (!strcmp(text, names[k])) {
            *out = (enum behavior)k;
            return FKV_OK;
        }
    }
    return fkv_step_refuse(at, err, "the behavior '%.60s' is not supported", text);
}

static fkv_status read_split(fkv_pretokenizer *p, struct step *step, const json_t *o,
                             const fkv_step_place *at, fkv_err *err)
{
    (void)p;
    fkv_status st = read_behavior(o, at, -1, &step->behavior, err);
    if (!st) st = fkv_json_bool_or(o, "invert", false, at->file, &step->invert, err);
    if (!st) st = fkv_step_pattern(o, false, at, &step->regex, err);
    return st;
}

static fkv_status read_digits(fkv_pretokenizer *p, struct step *step, const json_t *o,
                              const fkv_step_place *at, fkv_err *err)
{
    bool individual = false;
    (void)p;
    fkv_status st = fkv_step_bool(o, "individual_digits", at, &individual, err);
    step->matches = fkv_is_numeric;
    step->behavior = individual ? ISOLATED : CONTIGUOUS;
    return st;
}

static fkv_status read_punctuation(fkv_pretokenizer *p, struct step *step, const json_t *o,
                                   const fkv_step_place *at, fkv_err *err)
{
    (void)p;
    step->matches = fkv_is_punctuation;
    return read_behavior(o, at, ISOLATED, &step->behavior, err);
}

/* --- ByteLevel: a cut, and the text's bytes as characters of the alphabet -- */

static fkv_status run_prefix_and_cut(const struct run *r, int k, struct piece in, fkv_err *err)
{
    if (r->p->steps[k].add_prefix_space && in.text[0] != ' ') {
        fkv_buf *b = &r->scratch->text[k];
        fkv_buf_clear(b);
        fkv_status st = fkv_buf_append(b, " ", 1, err);
        if (!st) st = fkv_buf_append(b, in.text, in.n, err);
        if (st) return st;
        in.text = b->data;
        in.n = b->len;
    }
    return run_cut(r, k, in, err);
}

static fkv_status run_alphabet(const struct run *r, int k, struct piece in, fkv_err *err)
{
    fkv_buf *b = &r->scratch->text[k];
    fkv_buf_clear(b);
    /* Every byte is a character of one or two. */
    fkv_status st = in.n > SIZE_MAX / 2 - 2 ? fkv_fail_memory(err) : fkv_buf_reserve(b, 2 * in.n + 2, err);
    if (st) return st;
    for (size_t i = 0; i < in.n; i++)
        b->len += fkv_utf8_put(fkv_alphabet_char((uint8_t)in.text[i]), b->data + b->len);
    in.text = b->data;
    in.n = b->len;
    return run_steps(r, k + 1, in, err);
}

static const struct kind alphabet_kind = {"the alphabet", NULL, run_alphabet};

static fkv_status refuse_behind(const fkv_pretokenizer *p, const char *type, const fkv_step_place *at,
                                fkv_err *err)
{
    for (int k = 0; k < p->n_steps; k++)
        if (p->steps[k].kind == &alphabet_kind)
            return fkv_step_refuse(at, err, "%s behind ByteLevel is not supported", type);
    return FKV_OK;
}

static fkv_status read_byte_level(fkv_pretokenizer *p, struct step *step, const json_t *o,
                                  const fkv_step_place *at, fkv_err *err)
{
    bool use_regex = true;
    fkv_status st = refuse_behind(p, "ByteLevel", at, err);
    if (!st) st = fkv_json_bool_or(o, "use_regex", true, at->file, &use_regex, err);
    if (!st) st = fkv_step_bool(o, "add_prefix_space", at, &step->add_prefix_space, err);
    if (!st && use_regex)
        st =
            fkv_regex_compile(gpt2_regex, sizeof gpt2_regex - 1, false, at->file, at->key, &step->regex, err);
    if (!st) p->steps[p->n_steps++].kind = &alphabet_kind;
    return st;
}

/* --- Metaspace: spaces as another character, and a cut in front of each ---- */

static fkv_status run_metaspace(const struct run *r, int k, struct piece in, fkv_err *err)
{
    const struct step *step = &r->p->steps[k];
    const char *put = step->replacement.data;
    const size_t n_put = step->replacement.len;
    fkv_buf *b = &r->scratch->text[k];
    fkv_buf_clear(b);
    if (in.n > SIZE_MAX / 4 - 2) return fkv_fail_memory(err);
    fkv_status st = fkv_buf_reserve(b, in.n + in.n / 2 + n_put, err);
    const bool has_it = in.text[0] == ' ' || (in.n >= n_put && !memcmp(in.text, put, n_put));
    if (!st && !has_it && (step->prepend == ALWAYS || (step->prepend == FIRST && in.first)))
        st = fkv_buf_append(b, put, n_put, err);
    for (size_t i = 0; !st && i < in.n;) {
        const char *space = memchr(in.text + i, ' ', in.n - i);
        const size_t end = space ? (size_t)(space - in.text) : in.n;
        st = fkv_buf_append(b, in.text + i, end - i, err);
        if (!st && space) st = fkv_buf_append(b, put, n_put, err);
        i = space ? end + 1 : end;
    }
    if (st) return st;
    in.text = b->data;
    in.n = b->len;
    return run_cut(r, k, in, err);
}

static fkv_status read_prepend_scheme(const json_t *o, const fkv_step_place *at, enum prepend *out,
                                      fkv_err *err)
{
    static const char *const names[] = {"always", "first", "never"};
    const char *scheme;
    bool space;
    fkv_status st = fkv_json_str_or_null(o, "prepend_scheme", at->file, &scheme, err);
    if (st) return st;
    int k = 0;
    while (scheme && k < 3 && strcmp(scheme, names[k]) != 0) k++;
    if (k == 3) return fkv_step_refuse(at, err, "the prepend_scheme '%.60s' is not supported", scheme);
    *out = (enum prepend)k;
    /* Old files have this instead. */
    if ((st = fkv_json_bool_or(o, "add_prefix_space", *out != NEVER, at->file, &space, err))) return st;
    if (!space && *out != NEVER)
        return fkv_step_refuse(at, err, "add_prefix_space does not match prepend_scheme");
    return FKV_OK;
}

static fkv_status read_metaspace(fkv_pretokenizer *p, struct step *step, const json_t *o,
                                 const fkv_step_place *at, fkv_err *err)
{
    const char *text;
    size_t n;
    bool split;
    fkv_status st = refuse_behind(p, "Metaspace", at, err);
    if (!st) st = fkv_step_char(o, "replacement", at, &text, &n, err);
    if (!st) st = read_prepend_scheme(o, at, &step->prepend, err);
    if (!st) st = fkv_json_bool_or(o, "split", true, at->file, &split, err);
    if (st) return st;
    for (int i = 0; i < p->n_steps - 1; i++)
        if (p->steps[i].replacement.len)
            return fkv_step_refuse(at, err, "a second Metaspace is not supported");
    if (step->prepend == FIRST && !p->keeps_start)
        return fkv_step_refuse(at, err, "prepend_scheme first with Prepend or Replace is not supported");
    step->behavior = MERGED_WITH_NEXT;
    st = fkv_buf_append(&step->replacement, text, n, err);
    if (!st && split) st = fkv_regex_compile(text, n, true, at->file, at->key, &step->regex, err);
    return st;
}

/* --- the list --------------------------------------------------------------- */

static const struct kind kinds[] = {
    {"Split", read_split, run_cut},
    {"Digits", read_digits, run_cut},
    {"Punctuation", read_punctuation, run_cut},
    {"ByteLevel", read_byte_level, run_prefix_and_cut},
    {"Metaspace", read_metaspace, run_metaspace},
};

static fkv_status add_step(void *ctx, const json_t *o, const char *type, const fkv_step_place *at,
                           fkv_err *err)
{
    fkv_pretokenizer *p = ctx;
    size_t k = 0;
    while (k < sizeof kinds / sizeof *kinds && strcmp(kinds[k].type, type) != 0) k++;
    if (k == sizeof kinds / sizeof *kinds) return fkv_step_unknown(at, type, err);
    if (p->n_steps + 2 > FKV_CUTS_MAX)
        return fkv_step_refuse(at, err, "more than %d steps are not supported", FKV_STEPS_MAX);
    struct step *step = &p->steps[p->n_steps++];
    step->kind = &kinds[k];
    return step->kind->read(p, step, o, at, err);
}

fkv_status fkv_pretokenizer_open(const json_t *o, const char *file, bool keeps_start, fkv_pretokenizer **out,
                                 fkv_err *err)
{
    *out = NULL;
    fkv_pretokenizer *p = calloc(1, sizeof *p);
    if (!p) return fkv_fail_memory(err);
    p->keeps_start = keeps_start;
    fkv_status st = fkv_steps_each(o, "pretokenizers", file, "pre_tokenizer", add_step, p, err);
    if (st) {
        fkv_pretokenizer_close(p);
        return st;
    }
    *out = p;
    return FKV_OK;
}

void fkv_pretokenizer_close(fkv_pretokenizer *p)
{
    if (!p) return;
    for (int k = 0; k < p->n_steps; k++) {
        fkv_regex_free(p->steps[k].regex);
        fkv_buf_free(&p->steps[k].replacement);
    }
    free(p);
}

bool fkv_pretokenizer_gives_bytes(const fkv_pretokenizer *p)
{
    return p->n_steps && p->steps[p->n_steps - 1].kind == &alphabet_kind;
}

fkv_status fkv_pretokenize(const fkv_pretokenizer *p, fkv_pretokenizer_scratch *s, bool bytes, bool first,
                           const char *text, size_t n, fkv_word_fn *fn, void *ctx, fkv_err *err)
{
    const struct run r = {.p = p, .scratch = s, .n_steps = p->n_steps - bytes, .fn = fn, .ctx = ctx};
    return n ? run_steps(&r, 0, (struct piece){text, n, first}, err) : FKV_OK;
}

void fkv_pretokenizer_scratch_free(fkv_pretokenizer_scratch *s)
{
    for (int k = 0; k < FKV_CUTS_MAX; k++) fkv_buf_free(&s->text[k]);
}
