/* tokenizer/: ids and texts as HF tokenizers gives them, what is refused, and
 * that no text or file makes it slow. Files are made from needle-tiny's by
 * replacing one value. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runner/base/json.h"
#include "tests/unit/tokenizer_fixture.h"

#define TINY        FKV_TEST_DIR "/data/needle-tiny"
#define GOLDEN      FKV_TEST_DIR "/golden/tokenizer-needle-tiny.json"
#define SECONDS_MAX 120 /* also under sanitizers on a busy machine; a quadratic text would take hours */

static json_t *tiny(void)
{
    fkv_err err = {0};
    json_t *root;
    assert_int_equal(fkv_json_load(TINY "/tokenizer.json", 1 << 20, &root, &err), FKV_OK);
    return root;
}

/* Sets root's value at a path such as "added_tokens.0.id"; "+" appends. */
static void set(json_t *root, const char *path, const char *value)
{
    json_error_t why;
    json_t *v = json_loads(value, JSON_DECODE_ANY, &why);
    if (!v) fail_msg("%s: %s", value, why.text);
    char keys[128], *save = NULL;
    snprintf(keys, sizeof keys, "%s", path);
    json_t *at = root;
    for (char *key = strtok_r(keys, ".", &save), *next; key; key = next) {
        next = strtok_r(NULL, ".", &save);
        if (next) {
            at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
            assert_non_null(at);
        } else if (json_is_array(at)) {
            const int rc =
                *key == '+' ? json_array_append_new(at, v) : json_array_set_new(at, (size_t)atoi(key), v);
            assert_int_equal(rc, 0);
        } else {
            assert_int_equal(json_object_set_new(at, key, v), 0);
        }
    }
}

static void open_with(struct opened *o, const char *path, const char *value)
{
    json_t *root = tiny();
    set(root, path, value);
    if (open_json(root, o)) fail_msg("%s = %s: %s", path, value, o->err.message);
    json_decref(root);
}

#define EXPECT(o, text, ...)                                                                                 \
    do {                                                                                                     \
        const int32_t want_[] = {__VA_ARGS__};                                                               \
        encode(o, text, strlen(text), false);                                                                \
        assert_ids(&(o)->ids, want_, sizeof want_ / sizeof *want_, text);                                    \
    } while (0)

static void golden_texts_give_their_ids(void **state)
{
    (void)state;
    fkv_err err = {0};
    struct opened o;
    json_error_t why;
    json_t *golden = json_load_file(GOLDEN, JSON_ALLOW_NUL, &why);
    assert_non_null(golden);
    open_dir(&o, TINY);
    const json_t *texts = json_object_get(golden, "texts");
    assert_true(json_array_size(texts) > 20);
    for (int pass = 0; pass < 2; pass++) { /* the second from the word cache */
        for (size_t i = 0; i < json_array_size(texts); i++) {
            int32_t want[512];
            const json_t *text = json_object_get(json_array_get(texts, i), "text");
            const size_t n = ids_of(json_object_get(json_array_get(texts, i), "ids"), want, 512);
            encode(&o, json_string_value(text), json_string_length(text), false);
            assert_ids(&o.ids, want, n, json_string_value(text));
            /* and back, exactly */
            fkv_buf back = {0};
            assert_int_equal(fkv_tokenizer_decode(o.t, want, n, false, &back, &err), FKV_OK);
            assert_int_equal(back.len, json_string_length(text));
            if (back.len) assert_memory_equal(back.data, json_string_value(text), back.len);
            fkv_buf_free(&back);
        }
    }
    json_decref(golden);
    close_all(&o);
}

static void golden_ids_give_their_text(void **state)
{
    (void)state;
    struct opened o;
    json_error_t why;
    json_t *golden = json_load_file(GOLDEN, JSON_ALLOW_NUL, &why);
    assert_non_null(golden);
    open_dir(&o, TINY);
    const json_t *list = json_object_get(golden, "ids");
    assert_true(json_array_size(list) > 40);
    for (size_t i = 0; i < json_array_size(list); i++) {
        int32_t ids[64];
        const size_t n = ids_of(json_object_get(json_array_get(list, i), "ids"), ids, 64);
        for (int skip = 0; skip < 2; skip++) {
            const json_t *want = json_object_get(json_array_get(list, i), skip ? "plain" : "text");
            fkv_buf text = {0};
            assert_int_equal(fkv_buf_puts(&text, ">\xff", &o.err), FKV_OK); /* what was there stays */
            assert_int_equal(fkv_tokenizer_decode(o.t, ids, n, skip, &text, &o.err), FKV_OK);
            assert_memory_equal(text.data, ">\xff", 2);
            assert_int_equal(text.len - 2, json_string_length(want));
            assert_memory_equal(text.data + 2, json_string_value(want), text.len - 2);
            fkv_buf_free(&text);
        }
    }
    json_decref(golden);
    close_all(&o);
}

static void bos_is_the_prefix(void **state)
{
    (void)state;
    struct opened o;
    size_t n_prefix = 9, n_suffix = 9;
    open_dir(&o, TINY);
    assert_int_equal(fkv_tokenizer_n_ids(o.t), 1024);
    assert_int_equal(fkv_tokenizer_encode(o.t, o.s, "a", 1, true, &o.ids, &n_prefix, &n_suffix, &o.err),
                     FKV_OK);
    assert_ids(&o.ids, (int32_t[]){0, 67}, 2, "a");
    assert_int_equal(n_prefix, 1);
    assert_int_equal(n_suffix, 0);
    assert_int_equal(fkv_tokenizer_encode(o.t, o.s, "", 0, true, &o.ids, NULL, NULL, &o.err), FKV_OK);
    assert_ids(&o.ids, (int32_t[]){0}, 1, "");
    assert_int_equal(fkv_tokenizer_encode(o.t, o.s, "a", 1, false, &o.ids, &n_prefix, &n_suffix, &o.err),
                     FKV_OK);
    assert_ids(&o.ids, (int32_t[]){67}, 1, "a");
    assert_int_equal(n_prefix, 0);
    close_all(&o);
}

static void a_template_may_have_a_suffix(void **state)
{
    (void)state;
    struct opened o;
    size_t n_prefix, n_suffix;
    open_with(
        &o, "post_processor",
        "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\","
        "\"single\":[{\"SpecialToken\":{\"id\":\"B\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\"}},"
        "{\"SpecialToken\":{\"id\":\"E\"}}],"
        "\"special_tokens\":{\"B\":{\"ids\":[0,2]},\"E\":{\"ids\":[1]}}}]}");
    assert_int_equal(fkv_tokenizer_encode(o.t, o.s, "a", 1, true, &o.ids, &n_prefix, &n_suffix, &o.err),
                     FKV_OK);
    assert_ids(&o.ids, (int32_t[]){0, 2, 67, 1}, 4, "a");
    assert_int_equal(n_prefix, 2);
    assert_int_equal(n_suffix, 1);
    close_all(&o);
}

static void bad_texts_and_ids_are_errors(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "a\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "abcdefgh\xe2\x82", "\x80"};
    struct opened o;
    fkv_buf text = {0};
    open_dir(&o, TINY);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fkv_err err = {0};
        assert_int_equal(
            fkv_tokenizer_encode(o.t, o.s, bad[i], strlen(bad[i]), false, &o.ids, NULL, NULL, &err),
            FKV_E_INPUT);
        assert_non_null(strstr(err.message, "UTF-8"));
    }
    static const int32_t ids[] = {1024, -1, INT32_MAX};
    for (size_t i = 0; i < 3; i++) {
        fkv_err err = {0};
        const int32_t pair[2] = {67, ids[i]};
        assert_int_equal(fkv_tokenizer_decode(o.t, pair, 2, false, &text, &err), FKV_E_INPUT);
        assert_int_equal(text.len, 0);
    }
    fkv_buf_free(&text);
    close_all(&o);
}

/* Ids by HF tokenizers 0.23.3 with the same added tokens. */
static void added_tokens_match_as_in_hf(void **state)
{
    (void)state;
    static const char *const tokens[] = {
        "{\"id\":1024,\"content\":\"AB\"}",
        "{\"id\":1025,\"content\":\"ABCD\"}",
        "{\"id\":1026,\"content\":\"BC\"}",
        "{\"id\":1027,\"content\":\"ab\",\"single_word\":true}",
        "{\"id\":1028,\"content\":\"<l>\",\"lstrip\":true}",
        "{\"id\":1029,\"content\":\"<r>\",\"rstrip\":true}",
        "{\"id\":1030,\"content\":\"\\u00e9x\",\"normalized\":true}",
    };
    json_t *root = tiny();
    struct opened o;
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        json_t *token = json_loads(tokens[i], 0, NULL), *all;
        assert_non_null(token);
        all = json_pack("{s:b,s:b,s:b,s:b,s:b}", "special", 0, "single_word", 0, "lstrip", 0, "rstrip", 0,
                        "normalized", 0);
        assert_int_equal(json_object_update(all, token), 0);
        json_decref(token);
        assert_int_equal(json_array_append_new(json_object_get(root, "added_tokens"), all), 0);
    }
    set(root, "normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}");
    if (open_json(root, &o)) fail_msg("%s: %s", o.err.key, o.err.message);
    EXPECT(&o, "xABCABCDBCx", 90, 1024, 37, 1025, 1026, 90);
    EXPECT(&o, "ab", 1027);
    EXPECT(&o, "xab", 90, 67, 68);
    EXPECT(&o, "ab_", 67, 68, 65);
    EXPECT(&o, "abab ab", 67, 68, 67, 68, 223, 1027);
    EXPECT(&o, "ab\xc2\xb2", 1027, 129, 113);            /* a superscript is no letter */
    EXPECT(&o, "ab\xe2\x92\xb6", 67, 68, 161, 243, 117); /* a circled one is */
    EXPECT(&o, "x \xc2\xa0\n<l> x", 90, 1028, 223, 90);
    EXPECT(&o, "x <r> \xe2\x80\x83\nx", 90, 223, 1029, 90);
    EXPECT(&o, "e\xcc\x81x\xc3\xa9x", 1030, 1030); /* found after NFC */
    json_decref(root);
    close_all(&o);
}

static void nfc_composes_and_sorts_marks(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"e\xcc\x81", "\xc3\xa9"},                                /* e, acute */
        {"a\xcc\x81\xcc\xa3", "\xe1\xba\xa1\xcc\x81"},            /* a, acute, dot below: sorted first */
        {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"}, /* Hangul */
        {"\xe2\x84\xab", "\xc3\x85"},                             /* the Angstrom sign */
        {"x \xe4\xbd\xa0 y", "x \xe4\xbd\xa0 y"},
    };
    struct opened o, plain;
    open_with(&o, "normalizer", "{\"type\":\"NFC\"}");
    open_dir(&plain, TINY);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        encode(&o, pairs[i][0], strlen(pairs[i][0]), false);
        encode(&plain, pairs[i][1], strlen(pairs[i][1]), false);
        assert_ids(&o.ids, plain.ids.data, plain.ids.len, pairs[i][1]);
    }
    /* utf8proc composes U+AC1C and U+11A7, which HF leaves apart. */
    static const char kept[] = "\xea\xb0\x9c\xe1\x86\xa7";
    encode(&o, kept, strlen(kept), false);
    encode(&plain, kept, strlen(kept), false);
    assert_ids(&o.ids, plain.ids.data, plain.ids.len, "jamo");
    close_all(&plain);
    close_all(&o);
}

/* Cuts by a Split alone, told by the ids of the pieces: without merges the ids
 * are those of the bytes, so words of the vocabulary show whole pieces. */
static void split_behaviors(void **state)
{
    (void)state;
    /* "he" (259) is a merge; a cut between h and e leaves 74 and 71. */
    static const struct {
        const char *behavior, *invert, *regex;
        int32_t want[5];
        size_t n;
    } cases[] = {
        {"Isolated", "false", "h", {74, 71, 74, 71}, 4},
        {"Removed", "false", "h", {71, 71}, 2},
        {"Removed", "true", "h", {74, 74}, 2},
        {"MergedWithNext", "false", "h", {259, 259}, 2},
        {"MergedWithPrevious", "false", "h", {74, 71, 74, 71}, 4},
        {"MergedWithPrevious", "false", "e", {259, 259}, 2},
        {"Contiguous", "false", "[he]", {259, 259}, 2},
        {"Isolated", "false", "(?=e)", {74, 71, 74, 71}, 4},
        {"Isolated", "false", "z", {259, 259}, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char value[512];
        struct opened o;
        snprintf(value, sizeof value,
                 "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"%s\",\"invert\":%s}",
                 cases[i].regex, cases[i].behavior, cases[i].invert);
        open_with(&o, "pre_tokenizer.pretokenizers.0", value);
        encode(&o, "hehe", 4, false);
        assert_ids(&o.ids, cases[i].want, cases[i].n, cases[i].behavior);
        close_all(&o);
    }
}

static void regexes_mean_what_oniguruma_means(void **state)
{
    (void)state;
    /* The text "hehe" cut by a regex; the ids as HF gives them. */
    static const struct {
        const char *regex, *text;
        int32_t want[6];
        size_t n;
    } cases[] = {
        {"h{1}?e", "re", {84, 71}, 2},                              /* the h may be missing */
        {"[he]{1,3}+", "hehehe", {259, 259, 259}, 3},               /* repeated, not possessive */
        {"\\\\h", "he", {74, 71}, 2},                               /* a hexadecimal digit: e */
        {"x(?i)e|h", "he", {259}, 1},                               /* the option reaches the whole rest */
        {"h(?=e\\\\s)", "he\xe1\xa0\x8e", {259, 160, 257, 239}, 4}, /* U+180E is no space */
        {"h(?=e\\\\w)", "he\xcc\x81", {74, 71, 139, 226}, 4},       /* a mark is of words */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char value[512];
        struct opened o;
        snprintf(
            value, sizeof value,
            "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\",\"invert\":false}",
            cases[i].regex);
        open_with(&o, "pre_tokenizer.pretokenizers.0", value);
        encode(&o, cases[i].text, strlen(cases[i].text), false);
        assert_ids(&o.ids, cases[i].want, cases[i].n, cases[i].regex);
        close_all(&o);
    }
}

static void prefix_space_and_gpt2_regex(void **state)
{
    (void)state;
    struct opened o, plain;
    open_with(&o, "pre_tokenizer", "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}");
    open_dir(&plain, TINY);
    encode(&o, "the fox", 7, false);
    encode(&plain, " the fox", 8, false);
    assert_ids(&o.ids, plain.ids.data, plain.ids.len, "the fox");
    encode(&o, " the fox", 8, false);
    assert_ids(&o.ids, plain.ids.data, plain.ids.len, " the fox");
    encode(&o, "", 0, false);
    assert_int_equal(o.ids.len, 0);
    close_all(&plain);
    close_all(&o);
}

static void merges_as_strings_are_the_same(void **state)
{
    (void)state;
    json_t *root = tiny(), *merges = json_object_get(json_object_get(root, "model"), "merges");
    struct opened o, plain;
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const json_t *pair = json_array_get(merges, i);
        json_t *text = json_sprintf("%s %s", json_string_value(json_array_get(pair, 0)),
                                    json_string_value(json_array_get(pair, 1)));
        assert_int_equal(json_array_set_new(merges, i, text), 0);
    }
    assert_int_equal(open_json(root, &o), FKV_OK);
    open_dir(&plain, TINY);
    static const char text[] = "The special magic number for river-12 is 48213. It's the weather there.";
    encode(&o, text, strlen(text), false);
    encode(&plain, text, strlen(text), false);
    assert_ids(&o.ids, plain.ids.data, plain.ids.len, text);
    json_decref(root);
    close_all(&plain);
    close_all(&o);
}

static void ignore_merges_takes_whole_words(void **state)
{
    (void)state;
    json_t *root = tiny();
    struct opened o;
    set(root, "model.merges", "[]");
    assert_int_equal(open_json(root, &o), FKV_OK);
    EXPECT(&o, "he", 74, 71);
    close_all(&o);
    set(root, "model.ignore_merges", "true");
    assert_int_equal(open_json(root, &o), FKV_OK);
    EXPECT(&o, "he", 259);
    json_decref(root);
    close_all(&o);
}

static void what_is_not_supported_is_refused_by_name(void **state)
{
    (void)state;
#define SPLIT(regex)                                                                                         \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define FLAGS                                                                                                \
    ",\"special\":false,\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false}"
    static const struct {
        const char *path, *value, *word;
    } cases[] = {
        {"normalizer", "{\"type\":\"Lowercase\"}", "Lowercase"},
        {"normalizer", "{\"type\":\"Replace\"}", "'pattern'"},
        {"normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"}}", "'content'"},
        {"normalizer", "{\"type\":\"Prepend\",\"prepend\":5}", "'prepend'"},
        {"normalizer", "{\"type\":\"Sequence\",\"normalizers\":[null]}", "normalizers[0]"},
        {"normalizer", "{\"type\":\"Sequence\"}", "normalizers"},
        {"normalizer", "[]", "normalizer"},
        {"pre_tokenizer", "{\"type\":\"Whitespace\"}", "Whitespace"},
        {"pre_tokenizer", "{\"type\":\"Metaspace\"}", "'replacement'"},
        {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"__\"}", "one character"},
        {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}",
         "last"},
        {"pre_tokenizer",
         "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"add_prefix_space\":"
         "false}",
         "does not match"},
        {"pre_tokenizer.pretokenizers.+", "{\"type\":\"Metaspace\",\"replacement\":\"_\"}",
         "behind ByteLevel"},
        {"pre_tokenizer.pretokenizers.+", "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}",
         "behind ByteLevel"},
        {"pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":{}}", "pretokenizers"},
        {"pre_tokenizer.pretokenizers.+", "{\"type\":\"Digits\"}", "individual_digits"},
        {"pre_tokenizer.pretokenizers.0", "{\"type\":\"Punctuation\",\"behavior\":\"Away\"}", "Away"},
        {"pre_tokenizer.pretokenizers.0.behavior", "\"Sideways\"", "Sideways"},
        {"pre_tokenizer.pretokenizers.0.pattern", "{\"Regex\":3}", "pattern"},
        {"pre_tokenizer.pretokenizers.0.pattern", "{\"String\":\"\"}", "empty pattern"},
        {"pre_tokenizer.pretokenizers.0.invert", "1", "invert"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("(?<x>a)"), "named group"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("(a)\\\\1"), "\\1"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("\\\\ba"), "\\b"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("a**"), "repetition"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("[[:alpha:]]"), "POSIX"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("[a&&b]"), "&&"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("[a"), "class"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("(a"), "( without"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("a)"), ") without"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("\\\\p{Emoji}"), "Emoji"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("(?m:.)"), "group"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("(?i:\\u00e9)"), "ignores case"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("(?i:miss)"), "ignores case"},
        {"pre_tokenizer.pretokenizers.0", SPLIT("(?<=a+)b"), "compiled"},
        {"model", "null", "model"},
        {"model.type", "\"Unigram\"", "Unigram"},
        {"model.byte_fallback", "\"no\"", "byte_fallback"},
        {"model.dropout", "0.1", "dropout"},
        {"model.continuing_subword_prefix", "\"##\"", "continuing_subword_prefix"},
        {"model.end_of_word_suffix", "\"</w>\"", "end_of_word_suffix"},
        {"model.vocab", "[]", "vocab"},
        {"model.vocab", "{}", "vocab"},
        {"model.vocab.he", "-1", "'he'"},
        {"model.vocab.he", "2147483648", "'he'"},
        {"model.vocab.he", "16777216", "'he'"},
        {"model.vocab.he", "9223372036854775807", "'he'"},
        {"model.vocab.he", "2.5", "'he'"},
        {"model.vocab.he", "\"259\"", "'he'"},
        {"model.vocab.he", "260", "twice"},
        {"model.merges", "{}", "merges"},
        {"model.merges.3", "7", "merges[3]"},
        {"model.merges.3", "\"ab\"", "merges[3]"},
        {"model.merges.3", "\"a b c\"", "merges[3]"},
        {"model.merges.3", "[\"a\"]", "merges[3]"},
        {"model.merges.3", "[\"a\",\"b\",\"c\"]", "merges[3]"},
        {"model.merges.3", "[\"a\",1]", "merges[3]"},
        {"model.merges.3", "[\"a\",\"nowhere\"]", "nowhere"},
        {"model.merges.3", "[\"q\",\"q\"]", "qq"},
        {"added_tokens", "{}", "added_tokens"},
        {"added_tokens.+", "3", "added_tokens[3]"},
        {"added_tokens.+", "{\"id\":1024,\"content\":\"\"" FLAGS, "content"},
        {"added_tokens.+", "{\"id\":1024,\"content\":5" FLAGS, "content"},
        {"added_tokens.+", "{\"id\":99999999999,\"content\":\"new\"" FLAGS, "'id'"},
        {"added_tokens.+", "{\"id\":2,\"content\":\"<|pad|>\"" FLAGS, "twice"},
        {"added_tokens.+", "{\"id\":1024,\"content\":\"new\"}", "special"},
        {"added_tokens.0.lstrip", "\"yes\"", "lstrip"},
        {"post_processor", "{\"type\":\"BertProcessing\"}", "BertProcessing"},
        {"post_processor", "{\"type\":\"RobertaProcessing\",\"sep\":[\"a\",1]}", "'cls'"},
        {"post_processor", "{\"type\":\"RobertaProcessing\",\"sep\":[\"a\",1],\"cls\":[\"b\",4096]}",
         "no token"},
        {"post_processor.single", "[{\"SpecialToken\":{\"id\":\"none\"}}]", "none"},
        {"post_processor.single", "[]", "Sequence A"},
        {"post_processor.single", "[{\"Sequence\":{\"id\":\"B\"}}]", "Sequence A"},
        {"post_processor.single", "[{\"Sequence\":{\"id\":\"A\"}},{\"Sequence\":{\"id\":\"A\"}}]",
         "Sequence A"},
        {"post_processor.special_tokens.<|begin_of_text|>", "{\"ids\":[4096]}", "no token"},
        {"decoder", "null", "decoder"},
        {"decoder", "{\"type\":\"WordPiece\"}", "WordPiece"},
        {"decoder", "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteLevel\"}]}",
         "behind Fuse"},
        {"decoder", "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":1}", "'stop'"},
        {"decoder", "{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}", "'start'"},
        {"decoder", "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"\"}", "Regex"},
        {"decoder",
         "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"ByteFallback\"}]}",
         "second ByteFallback"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1536];
        struct opened o;
        json_t *root = tiny();
        set(root, cases[i].path, cases[i].value);
        if (open_json(root, &o) != FKV_E_INPUT)
            fail_msg("%s = %s is accepted", cases[i].path, cases[i].value);
        fkv_err_format(&o.err, text, sizeof text);
        if (!strstr(text, "tokenizer.json") || !strstr(text, cases[i].word))
            fail_msg("%s = %s: '%s' does not say '%s'", cases[i].path, cases[i].value, text, cases[i].word);
        json_decref(root);
        close_all(&o);
    }
}

/* Ids may have gaps; the memory is the tokens', not the largest id's. */
static void a_far_id_is_a_token_like_any_other(void **state)
{
    (void)state;
    struct opened o;
    fkv_buf text = {0};
    static const int32_t far = 16777215;
    json_t *root = tiny();
    set(root, "model.vocab.zz", "16777215");
    set(root, "model.ignore_merges", "true");
    assert_int_equal(open_json(root, &o), FKV_OK);
    json_decref(root);
    assert_int_equal(fkv_tokenizer_n_ids(o.t), far + 1);
    encode(&o, "zz", 2, false);
    assert_ids(&o.ids, &far, 1, "zz");
    assert_int_equal(fkv_tokenizer_decode(o.t, &far, 1, false, &text, &o.err), FKV_OK);
    assert_string_equal(text.data, "zz");
    assert_int_equal(fkv_tokenizer_decode(o.t, (int32_t[]){far - 1}, 1, false, &text, &o.err), FKV_E_INPUT);
    o.err = (fkv_err){0};
    encode(&o, "the access code", 15, false);
    fkv_buf_clear(&text);
    assert_int_equal(fkv_tokenizer_decode(o.t, o.ids.data, o.ids.len, false, &text, &o.err), FKV_OK);
    assert_string_equal(text.data, "the access code");
    fkv_buf_free(&text);
    close_all(&o);
}

static void a_runaway_regex_is_an_error(void **state)
{
    (void)state;
    static const char *const regexes[] = {"(a+)+$", "(?:a|a)+b", "(?:a*)*b", "(?:a?){40}a{40}b"};
    alarm(SECONDS_MAX);
    for (size_t i = 0; i < sizeof regexes / sizeof *regexes; i++) {
        char value[256], text[61];
        struct opened o;
        snprintf(
            value, sizeof value,
            "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\",\"invert\":false}",
            regexes[i]);
        open_with(&o, "pre_tokenizer.pretokenizers.0", value);
        memset(text, 'a', 60);
        memcpy(text + 58, "!b", 2); /* every match has its last character to hope for */
        text[60] = '\0';
        assert_int_equal(fkv_tokenizer_encode(o.t, o.s, text, 60, false, &o.ids, NULL, NULL, &o.err),
                         FKV_E_INPUT);
        assert_non_null(strstr(o.err.message, "backtracks"));
        /* and the scratch still works */
        o.err = (fkv_err){0};
        encode(&o, "q", 1, false);
        assert_int_equal(o.ids.len, 1);
        close_all(&o);
    }
    alarm(0);
}

/* A word of a megabyte, a run of spaces and a pile of marks take linear or
 * nearly linear time. */
static void long_runs_are_not_quadratic(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    static const char *const units[] = {"a",   "the", " ", "\n",       "\r\n",
                                        " \n", "=",   "1", "\xc3\xa9", "\xcc\x81\xcc\xa3"};
    char *text = malloc(N);
    struct opened o;
    assert_non_null(text);
    open_with(&o, "normalizer", "{\"type\":\"NFC\"}");
    alarm(SECONDS_MAX);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        const size_t len = strlen(units[i]), n = N / len * len;
        for (size_t k = 0; k < n; k += len) memcpy(text + k, units[i], len);
        encode(&o, text, n, false);
        fkv_buf back = {0};
        assert_int_equal(fkv_tokenizer_decode(o.t, o.ids.data, o.ids.len, false, &back, &o.err), FKV_OK);
        assert_int_equal(back.len, n);
        fkv_buf_free(&back);
    }
    alarm(0);
    free(text);
    close_all(&o);
}

static void missing_and_broken_files(void **state)
{
    (void)state;
    fkv_tokenizer *t;
    fkv_err err = {0};
    assert_int_equal(fkv_tokenizer_open("/nonexistent", &t, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.file, "/nonexistent/tokenizer.json"));
    json_t *list = json_array();
    struct opened o;
    assert_int_equal(open_json(list, &o), FKV_E_INPUT);
    json_decref(list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_texts_give_their_ids),
        cmocka_unit_test(golden_ids_give_their_text),
        cmocka_unit_test(bos_is_the_prefix),
        cmocka_unit_test(a_template_may_have_a_suffix),
        cmocka_unit_test(bad_texts_and_ids_are_errors),
        cmocka_unit_test(added_tokens_match_as_in_hf),
        cmocka_unit_test(nfc_composes_and_sorts_marks),
        cmocka_unit_test(split_behaviors),
        cmocka_unit_test(regexes_mean_what_oniguruma_means),
        cmocka_unit_test(prefix_space_and_gpt2_regex),
        cmocka_unit_test(merges_as_strings_are_the_same),
        cmocka_unit_test(ignore_merges_takes_whole_words),
        cmocka_unit_test(what_is_not_supported_is_refused_by_name),
        cmocka_unit_test(a_far_id_is_a_token_like_any_other),
        cmocka_unit_test(a_runaway_regex_is_an_error),
        cmocka_unit_test(long_runs_are_not_quadratic),
        cmocka_unit_test(missing_and_broken_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
