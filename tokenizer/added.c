/* Finding added tokens: see added.h. An fkv_added owns its tokens and tries and
 * is immutable once open. */
#include "tokenizer/added.h"

#include <stdlib.h>
#include <string.h>

#include "runner/base/json.h"
#include "runner/base/mem.h"
#include "tokenizer/characters.h"

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

/* A flag that every added token must have. */
static fkv_status read_flag(const json_t *o, const char *name, const char *file, const char *key, bool *out,
                            fkv_err *err)
{
    const json_t *v = json_object_get(o, name);
    if (!json_is_boolean(v))
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "'%s' must be true or false", name);
    *out = json_is_true(v);
    return FKV_OK;
}

static fkv_status read_token(const json_t *o, const char *file, const char *key, struct token *t,
                             const char **content, fkv_err *err)
{
    if (!json_is_object(o)) return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "must be an object");
    const json_t *id = json_object_get(o, "id"), *text = json_object_get(o, "content");
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > FKV_ID_MAX)
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "'id' must be an integer from 0 to %d",
                           FKV_ID_MAX);
    t->id = (int32_t)json_integer_value(id);
    if (!json_is_string(text) || json_string_length(text) == 0 || json_string_length(text) > CONTENT_MAX)
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "'content' must be a string of 1 to %d bytes",
                           CONTENT_MAX);
    *content = json_string_value(text);
    fkv_status st = read_flag(o, "special", file, key, &t->special, err);
    if (!st) st = read_flag(o, "single_word", file, key, &t->single_word, err);
    if (!st) st = read_flag(o, "lstrip", file, key, &t->lstrip, err);
    if (!st) st = read_flag(o, "rstrip", file, key, &t->rstrip, err);
    if (!st) st = read_flag(o, "normalized", file, key, &t->normalized, err);
    return st;
}

/* HF does not take an added token's id from the file: a string of the model
 * keeps its id, a new one gets the next free id. A file that says otherwise
 * would mean different ids to different readers. */
static fkv_status check_id(const fkv_vocab *vocab, const char *content, int32_t id, int32_t next,
                           const char *file, const char *key, fkv_err *err)
{
    const int32_t known = fkv_vocab_find(vocab, content, strlen(content));
    const int32_t want = known >= 0 ? known : next;
    if (id == want) return FKV_OK;
    return fkv_fail_at(err, FKV_E_INPUT, file, 0, key,
                       "'%.60s' has the id %d, but HF tokenizers would give it %d", content, (int)id,
                       (int)want);
}

struct loading {
    fkv_added *added;
    fkv_vocab *vocab;
    const char *file;
    bool nfc;
    int32_t n_model; /* tokens of the model */
    int32_t max;     /* largest id of an added token so far, or -1 */
    fkv_vocab seen;  /* contents read so far */
    fkv_nfc_scratch scratch;
};

static fkv_status add_token(struct loading *l, const json_t *o, size_t i, fkv_err *err)
{
    char key[64];
    const char *content = "";
    fkv_vocab_clash clash;
    struct token *t = &l->added->tokens[i];
    snprintf(key, sizeof key, "added_tokens[%zu]", i);
    fkv_status st = read_token(o, l->file, key, t, &content, err);
    if (st) return st;
    const size_t n = strlen(content);
    const int32_t next = l->max >= l->n_model ? l->max + 1 : l->n_model;
    if ((st = check_id(l->vocab, content, t->id, next, l->file, key, err))) return st;
    if ((st = fkv_vocab_add(&l->seen, content, n, t->id, &clash, err))) return st;
    if (clash != FKV_VOCAB_NEW)
        return fkv_fail_at(err, FKV_E_INPUT, l->file, 0, key, "'%.60s' is there twice", content);
    if ((st = fkv_vocab_add(l->vocab, content, n, t->id, &clash, err))) return st;
    if (clash == FKV_VOCAB_ID_TAKEN)
        return fkv_fail_at(err, FKV_E_INPUT, l->file, 0, key, "the id %d of '%.60s' belongs to another token",
                           (int)t->id, content);
    if (t->id > l->max) l->max = t->id;
    if (t->normalized && l->nfc) {
        const char *form;
        size_t n_form;
        if ((st = fkv_nfc(&l->scratch, content, n, &form, &n_form, err))) return st;
        if (form != content)
            return fkv_fail_at(err, FKV_E_INPUT, l->file, 0, key,
                               "a normalized token that is not in normal form is not supported");
    }
    return trie_add(&l->added->tries[t->normalized], content, n, (int32_t)i, err);
}

fkv_status fkv_added_open(const json_t *list, const char *file, bool nfc, fkv_vocab *vocab, fkv_added **out,
                          fkv_err *err)
{
    struct loading l = {.vocab = vocab, .file = file, .nfc = nfc, .n_model = (int32_t)vocab->n, .max = -1};
    fkv_status st = FKV_OK;
    *out = NULL;
    fkv_added *a = l.added = calloc(1, sizeof *a);
    if (!a) return fkv_fail_memory(err);
    if (list && !json_is_null(list) && !json_is_array(list)) {
        st = fkv_fail_at(err, FKV_E_INPUT, file, 0, "added_tokens", "must be an array");
        goto out;
    }
    a->n = json_array_size(list);
    a->tokens = fkv_calloc(a->n, sizeof *a->tokens);
    if (!a->tokens) {
        st = fkv_fail_memory(err);
        goto out;
    }
    for (size_t i = 0; i < a->n; i++)
        if ((st = add_token(&l, json_array_get(list, i), i, err))) goto out;
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
    fkv_nfc_scratch_free(&l.scratch);
    fkv_vocab_free(&l.seen);
    fkv_added_close(a);
    return st;
}

void fkv_added_close(fkv_added *added)
{
    if (!added) return;
    free(added->tries[0].nodes);
    free(added->tries[1].nodes);
    free(added->special);
    free(added->tokens);
    free(added);
}

bool fkv_added_is_special(const fkv_added *added, int32_t id)
{
    return id >= 0 && id < added->n_ids && (added->special[id / 8] >> id % 8 & 1);
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
