/* Finding added tokens: see added.h. An fkv_added owns its tokens and tries and
 * is immutable once open. */
#include "tokenizer/added.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/log.h"
#include "runner/base/mem.h"
#include "tokenizer/characters.h"
#include "tokenizer/steps.h"

enum {
    CONTENT_MAX = 1024, /* bytes of one token */
    TRIE_MAX = 1 << 22, /* nodes of one set */
};

struct token {
    int32_t id;
    bool special, single_word, lstrip, rstrip, normalized;
};

/* A trie by bytes; the children of a node are a list. */
struct node {
    uint32_t child, sibling; /* 0: none */
    int32_t token;           /* that ends here, or -1 */
    uint8_t byte;
};

struct trie {
    struct node *nodes;
    uint32_t n, cap;
    uint32_t first[256]; /* the root's children */
};

struct fkv_added {
    struct token *tokens;
    size_t n;
    struct trie tries[2]; /* [normalized] */
    uint8_t *special;     /* bits by id */
    int32_t n_ids;
    fkv_vocab renamed; /* normalized tokens that normalizing changes */
};

static uint32_t child_of(const struct trie *t, uint32_t node, uint8_t byte)
{
    uint32_t k = t->nodes[node].child;
    while (k && t->nodes[k].byte != byte) k = t->nodes[k].sibling;
    return k;
}

static fkv_status new_node(struct trie *t, uint8_t byte, uint32_t *out, fkv_err *err)
{
    if (t->n >= TRIE_MAX) return fkv_fail(err, FKV_E_INPUT, "the added tokens are too long together");
    if (t->n == t->cap) {
        const uint32_t cap = t->cap ? t->cap * 2 : 256;
        struct node *nodes = fkv_realloc(t->nodes, cap, sizeof *nodes);
        if (!nodes) return fkv_fail_memory(err);
        t->nodes = nodes;
        t->cap = cap;
    }
    if (t->n == 0) t->n = 1; /* node 0 stands for none */
    *out = t->n++;
    t->nodes[*out] = (struct node){.token = -1, .byte = byte};
    return FKV_OK;
}

/* FKV_END: it is there already. */
static fkv_status trie_add(struct trie *t, const char *content, size_t n, int32_t token, fkv_err *err)
{
    const unsigned char *s = (const unsigned char *)content;
    uint32_t node = t->first[s[0]], next;
    fkv_status st;
    if (!node) {
        if ((st = new_node(t, s[0], &node, err))) return st;
        t->first[s[0]] = node;
    }
    for (size_t i = 1; i < n; i++, node = next) {
        if ((next = child_of(t, node, s[i]))) continue;
        if ((st = new_node(t, s[i], &next, err))) return st;
        t->nodes[next].sibling = t->nodes[node].child;
        t->nodes[node].child = next;
    }
    if (t->nodes[node].token >= 0) return FKV_END; /* is there already */
    t->nodes[node].token = token;
    return FKV_OK;
}

/* The longest token at text[i], or -1. */
static int32_t longest_at(const struct trie *t, const char *text, size_t n, size_t i, size_t *end)
{
    const unsigned char *s = (const unsigned char *)text;
    int32_t found = -1;
    for (uint32_t node = t->first[s[i]]; node;) {
        i++;
        if (t->nodes[node].token >= 0) {
            found = t->nodes[node].token;
            *end = i;
        }
        node = i < n ? child_of(t, node, s[i]) : 0;
    }
    return found;
}

struct loading {
    fkv_added *added;
    fkv_vocab *vocab;
    const char *file;
    const fkv_normalizer *normalizer;
    int32_t n_model; /* tokens of the model */
    int32_t max;     /* largest id of an added token so far, or -1 */
    fkv_vocab seen;  /* contents read so far, with their places in tokens */
    bool told;       /* that an id is not HF's */
};

static fkv_status read_token(const json_t *o, const fkv_step_place *at, struct token *t, const char **content,
                             size_t *n, fkv_err *err)
{
    if (!json_is_object(o)) return fkv_step_refuse(at, err, "must be an object");
    fkv_status st = fkv_step_text(o, "content", at, content, n, err);
    if (!st && (*n == 0 || *n > CONTENT_MAX))
        st = fkv_step_refuse(at, err, "'content' must be a string of 1 to %d bytes", CONTENT_MAX);
    if (!st) st = fkv_step_bool(o, "special", at, &t->special, err);
    if (!st) st = fkv_step_bool(o, "single_word", at, &t->single_word, err);
    if (!st) st = fkv_step_bool(o, "lstrip", at, &t->lstrip, err);
    if (!st) st = fkv_step_bool(o, "rstrip", at, &t->rstrip, err);
    if (!st) st = fkv_step_bool(o, "normalized", at, &t->normalized, err);
    return st;
}

/* HF does not take an added token's id from the file: a string of the model
 * keeps its id, a new one gets the next free id. */
static fkv_status choose_id(struct loading *l, const json_t *o, const char *content, size_t n,
                            const fkv_step_place *at, int32_t *out, fkv_err *err)
{
    const json_t *id = json_object_get(o, "id");
    const int32_t known = fkv_vocab_find(l->vocab, content, n);
    *out = known >= 0 ? known : l->max >= l->n_model ? l->max + 1 : l->n_model;
    if (*out > FKV_ID_MAX) return fkv_step_refuse(at, err, "its id would be above %d", FKV_ID_MAX);
    if (!id) return FKV_OK;
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > FKV_ID_MAX)
        return fkv_step_refuse(at, err, "'id' must be an integer from 0 to %d", FKV_ID_MAX);
    if (json_integer_value(id) != *out && !l->told)
        fkv_log("%s: %s has the id %d, but HF tokenizers gives it %d, and so to others by their place: HF's "
                "are taken",
                at->file, at->key, (int)json_integer_value(id), (int)*out);
    l->told = l->told || json_integer_value(id) != *out;
    return FKV_OK;
}

/* Adds a token that is not among tokens yet. */
static fkv_status add_new(struct loading *l, const json_t *o, const struct token *read, const char *content,
                          size_t n, const fkv_step_place *at, fkv_err *err)
{
    fkv_added *a = l->added;
    struct token *t = &a->tokens[a->n];
    fkv_vocab_clash clash;
    *t = *read;
    fkv_status st = choose_id(l, o, content, n, at, &t->id, err);
    if (!st) st = fkv_vocab_add(l->vocab, content, n, t->id, &clash, err);
    if (!st && clash == FKV_VOCAB_ID_TAKEN)
        st = fkv_step_refuse(at, err, "the id %d of '%.60s' belongs to another token", (int)t->id, content);
    if (!st) st = fkv_vocab_add(&l->seen, content, n, (int32_t)a->n, &clash, err);
    if (st) return st;
    if (t->id > l->max) l->max = t->id;
    a->n++;
    return FKV_OK;
}

/* Adds a token of tokenizer.json, or with more one of other files: that may change one. */
static fkv_status add_token(struct loading *l, const json_t *o, bool more, const fkv_step_place *at,
                            fkv_err *err)
{
    struct token t = {0};
    const char *content = "";
    size_t n = 0;
    fkv_status st = read_token(o, at, &t, &content, &n, err);
    if (st) return st;
    const int32_t at_token = fkv_vocab_find(&l->seen, content, n);
    if (json_object_get(o, "named")) t.special = true; /* as bos_token and so on */
    if (at_token < 0) return add_new(l, o, &t, content, n, at, err);
    if (!more) return fkv_step_refuse(at, err, "'%.60s' is there twice", content);
    if (json_object_get(o, "if_new")) return FKV_OK;
    struct token *known = &l->added->tokens[at_token];
    if (t.special == known->special && t.single_word == known->single_word && t.lstrip == known->lstrip &&
        t.rstrip == known->rstrip && t.normalized == known->normalized)
        return FKV_OK;
    fkv_log("tokenizer.json: the files beside it give the token %d other flags, and they are taken, as in HF",
            (int)known->id);
    known->single_word = t.single_word;
    known->lstrip = t.lstrip;
    known->rstrip = t.rstrip;
    known->normalized = t.normalized;
    /* What was special stays it. */
    known->special = known->special || t.special;
    return FKV_OK;
}

static fkv_status add_all(struct loading *l, const json_t *list, bool more, fkv_err *err)
{
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < json_array_size(list); i++) {
        char key[64];
        const fkv_step_place at = {l->file, key};
        snprintf(key, sizeof key, more ? "added tokens of the files beside it[%zu]" : "added_tokens[%zu]", i);
        st = add_token(l, json_array_get(list, i), more, &at, err);
    }
    return st;
}

/* From its id HF makes the normalized string of a token; whether that is special is asked of
 * the string. */
static fkv_status rename_token(const struct loading *l, struct token *t, const char *string, size_t n,
                               fkv_err *err)
{
    fkv_vocab_clash clash;
    const int32_t same = fkv_vocab_find(&l->seen, string, n);
    if (same == (int32_t)(t - l->added->tokens)) return FKV_OK;
    t->special = same >= 0 && l->added->tokens[same].special;
    return fkv_vocab_add(&l->added->renamed, string, n, t->id, &clash, err);
}

/* Puts a token where it is looked for. */
static fkv_status put_in_tries(const struct loading *l, size_t i, fkv_normalizer_scratch *s,
                               fkv_regex_scratch *regex, fkv_err *err)
{
    fkv_added *a = l->added;
    size_t n;
    const char *content = fkv_vocab_string(l->vocab, a->tokens[i].id, &n);
    fkv_status st;
    if (!a->tokens[i].normalized) return trie_add(&a->tries[false], content, n, (int32_t)i, err);
    fkv_regex_start(regex, n);
    if ((st = fkv_normalize(l->normalizer, s, regex, content, n, &content, &n, err))) return st;
    if (n > CONTENT_MAX) /* looking for it takes its length for each byte of a text */
        return fkv_fail_at(err, FKV_E_INPUT, l->file, 0, "added_tokens",
                           "the token %d has more than %d bytes once normalized", (int)a->tokens[i].id,
                           CONTENT_MAX);
    st = n ? trie_add(&a->tries[true], content, n, (int32_t)i, err) : FKV_END;
    if (st == FKV_END)
        return fkv_fail_at(err, FKV_E_INPUT, l->file, 0, "added_tokens",
                           "the token %d is empty or like another one once normalized", (int)a->tokens[i].id);
    if (st) return st;
    return rename_token(l, &a->tokens[i], content, n, err);
}

static fkv_status build_tries(const struct loading *l, fkv_err *err)
{
    fkv_normalizer_scratch s = {0};
    fkv_regex_scratch *regex = NULL;
    fkv_status st = fkv_regex_scratch_new(&regex, err);
    for (size_t i = 0; !st && i < l->added->n; i++) st = put_in_tries(l, i, &s, regex, err);
    fkv_normalizer_scratch_free(&s);
    fkv_regex_scratch_free(regex);
    return st;
}

fkv_status fkv_added_open(const json_t *list, const json_t *more, const char *file,
                          const fkv_normalizer *normalizer, fkv_vocab *vocab, fkv_added **out, fkv_err *err)
{
    struct loading l = {
        .vocab = vocab, .file = file, .normalizer = normalizer, .n_model = (int32_t)vocab->n, .max = -1};
    fkv_status st = FKV_OK;
    *out = NULL;
    fkv_added *a = l.added = calloc(1, sizeof *a);
    if (!a) return fkv_fail_memory(err);
    if (list && !json_is_null(list) && !json_is_array(list)) {
        st = fkv_fail_at(err, FKV_E_INPUT, file, 0, "added_tokens", "must be an array");
        goto out;
    }
    a->tokens = fkv_calloc(json_array_size(list) + json_array_size(more), sizeof *a->tokens);
    if (!a->tokens) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if ((st = add_all(&l, list, false, err)) || (st = add_all(&l, more, true, err))) goto out;
    if ((st = build_tries(&l, err))) goto out;
    a->n_ids = vocab->n_ids;
    a->special = fkv_calloc((size_t)a->n_ids / 8 + 1, 1);
    if (!a->special) {
        st = fkv_fail_memory(err);
        goto out;
    }
    for (size_t i = 0; i < a->n; i++)
        if (a->tokens[i].special) a->special[a->tokens[i].id / 8] |= (uint8_t)(1u << a->tokens[i].id % 8);
    *out = a;
    a = NULL;
out:
    fkv_vocab_free(&l.seen);
    fkv_added_close(a);
    return st;
}

void fkv_added_close(fkv_added *added)
{
    if (!added) return;
    free(added->tries[0].nodes);
    free(added->tries[1].nodes);
    fkv_vocab_free(&added->renamed);
    free(added->special);
    free(added->tokens);
    free(added);
}

bool fkv_added_is_special(const fkv_added *added, int32_t id)
{
    return id >= 0 && id < added->n_ids && (added->special[id / 8] >> id % 8 & 1);
}

const char *fkv_added_string(const fkv_added *added, int32_t id, size_t *n)
{
    return fkv_vocab_string(&added->renamed, id, n);
}

/* Whether a token stands between two characters that are not of words. */
static bool stands_alone(const char *text, size_t n, size_t begin, size_t end)
{
    size_t len;
    if (begin > 0 && fkv_is_word_char(fkv_utf8_get(text + begin - fkv_utf8_before(text, begin), &len)))
        return false;
    return end == n || !fkv_is_word_char(fkv_utf8_get(text + end, &len));
}

static size_t skip_space(const char *text, size_t n, size_t i)
{
    size_t len;
    while (i < n && fkv_is_white_space(fkv_utf8_get(text + i, &len))) i += len;
    return i;
}

static size_t skip_space_back(const char *text, size_t from, size_t i)
{
    size_t len;
    while (i > from) {
        const size_t before = fkv_utf8_before(text, i);
        if (!fkv_is_white_space(fkv_utf8_get(text + i - before, &len))) break;
        i -= before;
    }
    return i;
}

fkv_status fkv_added_split(const fkv_added *added, bool normalized, const char *text, size_t n,
                           fkv_part_fn *fn, void *ctx, fkv_err *err)
{
    const struct trie *trie = &added->tries[normalized];
    size_t done = 0;  /* text[0, done) has been given out */
    size_t space = 0; /* the end of the white space that was skipped last */
    fkv_status st = FKV_OK;
    for (size_t i = 0; !st && i < n;) {
        size_t match_end = 0;
        const int32_t k = trie->first[(unsigned char)text[i]] ? longest_at(trie, text, n, i, &match_end) : -1;
        if (k < 0) {
            i++;
            continue;
        }
        const struct token *t = &added->tokens[k];
        size_t begin = i, end = match_end;
        i = match_end; /* also behind a match that is not taken */
        if (t->single_word && !stands_alone(text, n, begin, end)) continue;
        if (t->lstrip) begin = skip_space_back(text, done, begin);
        if (t->rstrip) {
            if (space < end) space = skip_space(text, n, end);
            end = space;
        }
        if (done < begin) st = fn(ctx, -1, text + done, begin - done, err);
        if (!st) st = fn(ctx, t->id, NULL, 0, err);
        /* A token inside the space that rstrip took is found again, and what is
         * behind it goes on from there, as in HF. */
        done = end;
    }
    if (!st && done < n) st = fn(ctx, -1, text + done, n - done, err);
    return st;
}
