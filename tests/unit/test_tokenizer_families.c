/* tokenizer/: every layout of tokenizer.json gives HF's ids and texts. Small ones of every layout stand in
 * golden/tokenizers (make_tokenizers.py); the published ones in ../shared, where that is. Decoding token by
 * token is decoding the whole, and no text is slow. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>

#include "runner/base/file.h"
#include "runner/base/json.h"
#include "tests/unit/tokenizer_fixture.h"

#define GOLDEN      FKV_TEST_DIR "/golden/tokenizers"
#define SHARED      FKV_SOURCE_DIR "/../shared/tokenizers"
#define SECONDS_MAX 120 /* also under sanitizers on a busy machine; a quadratic text would take hours */
enum { IDS_MAX = 1 << 16 };

static void expect_text(const fkv_buf *got, const json_t *want, const char *what)
{
    const size_t n = json_string_length(want);
    if (got->len != n || (n && memcmp(got->data, json_string_value(want), n) != 0))
        fail_msg("%s: '%.*s' instead of '%s'", what, (int)got->len, got->data ? got->data : "",
                 json_string_value(want));
}

/* Token by token: what is certain only grows, and with the rest it is always the whole text. */
static void expect_stream(struct opened *o, const int32_t *ids, size_t n, bool skip, const json_t *want)
{
    fkv_tokenizer_stream *s;
    fkv_buf certain = {0}, now = {0}, whole = {0};
    assert_int_equal(fkv_tokenizer_stream_new(o->t, skip, &s, &o->err), FKV_OK);
    for (int pass = 0; pass < 2; pass++) { /* the second after a restart */
        fkv_buf_clear(&certain);
        for (size_t i = 0; i <= n; i++) {
            if (i > 0) assert_int_equal(fkv_tokenizer_stream_push(s, ids[i - 1], &certain, &o->err), FKV_OK);
            fkv_buf_clear(&now);
            fkv_buf_clear(&whole);
            assert_int_equal(fkv_buf_append(&now, certain.data, certain.len, &o->err), FKV_OK);
            assert_int_equal(fkv_tokenizer_stream_rest(s, &now, &o->err), FKV_OK);
            assert_int_equal(fkv_tokenizer_decode(o->t, ids, i, skip, &whole, &o->err), FKV_OK);
            assert_int_equal(now.len, whole.len);
            if (now.len) assert_memory_equal(now.data, whole.data, now.len);
        }
        expect_text(&now, want, "streamed");
        fkv_tokenizer_stream_restart(s);
    }
    fkv_buf_free(&certain);
    fkv_buf_free(&now);
    fkv_buf_free(&whole);
    fkv_tokenizer_stream_free(s);
}

/* The vectors of one tokenizer, twice: the second time from the word cache. */
static void expect_vectors(struct opened *o, const json_t *vectors, const char *name)
{
    static int32_t want[IDS_MAX];
    const json_t *encoding = json_object_get(vectors, "encode"),
                 *decoding = json_object_get(vectors, "decode");
    assert_true(json_array_size(encoding) > 5 && json_array_size(decoding) > 5);
    for (size_t i = 0; i < 2 * json_array_size(encoding); i++) {
        const json_t *e = json_array_get(encoding, i / 2), *text = json_object_get(e, "text");
        for (int special = 0; special < 2; special++) {
            const size_t n = ids_of(json_object_get(e, special ? "ids_special" : "ids"), want, IDS_MAX);
            encode(o, json_string_value(text), json_string_length(text), special);
            if (o->ids.len != n || (n && memcmp(o->ids.data, want, n * sizeof *want) != 0))
                print_message("%s:\n", name);
            assert_ids(&o->ids, want, n, json_string_value(text));
        }
    }
    for (size_t i = 0; i < json_array_size(decoding); i++) {
        const json_t *e = json_array_get(decoding, i);
        const size_t n = ids_of(json_object_get(e, "ids"), want, IDS_MAX);
        for (int skip = 0; skip < 2; skip++) {
            const json_t *text = json_object_get(e, skip ? "decoded" : "decoded_all");
            fkv_buf got = {0};
            assert_int_equal(fkv_tokenizer_decode(o->t, want, n, skip, &got, &o->err), FKV_OK);
            expect_text(&got, text, name);
            fkv_buf_free(&got);
            expect_stream(o, want, n, skip, text);
        }
    }
}

static json_t *load(const char *folder, const char *name)
{
    char path[1024];
    json_error_t why;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &why);
    if (!root) fail_msg("%s: %s", path, why.text);
    return root;
}

/* Calls fn with the names in a folder; how many there are. */
static int each_name(const char *folder, void (*fn)(const char *name))
{
    DIR *dir = opendir(folder);
    int n = 0;
    if (!dir) return 0;
    for (struct dirent *e; (e = readdir(dir));) {
        if (e->d_name[0] == '.') continue;
        fn(e->d_name);
        n++;
    }
    closedir(dir);
    return n;
}

static void one_golden(const char *name)
{
    struct opened o;
    json_t *vectors = load(GOLDEN, name);
    if (open_json(json_object_get(vectors, "tokenizer"), &o))
        fail_msg("%s: %s: %s", name, o.err.key, o.err.message);
    expect_vectors(&o, vectors, name);
    json_decref(vectors);
    close_all(&o);
}

static void every_layout_is_as_in_hf(void **state)
{
    (void)state;
    assert_true(each_name(GOLDEN, one_golden) > 25);
}

static void one_shared(const char *name)
{
    struct opened o;
    char folder[512], path[600];
    snprintf(folder, sizeof folder, SHARED "/%s", name);
    snprintf(path, sizeof path, "%s/vectors.json", folder);
    if (!fkv_file_exists(path)) return;
    json_t *vectors = load(folder, "vectors.json");
    open_dir(&o, folder);
    expect_vectors(&o, vectors, name);
    json_decref(vectors);
    close_all(&o);
}

static void published_ones_are_as_in_hf(void **state)
{
    (void)state;
    if (each_name(SHARED, one_shared)) return;
    print_message("skipped: %s is not there\n", SHARED);
    skip();
}

static void public_vectors(const char *dir)
{
    char path[600];
    static const char mark[] = "\n__ggml_vocab_test__\n";
    fkv_buf in = {0}, out = {0};
    fkv_err err = {0};
    struct opened o;
    if (!fkv_file_exists(dir)) {
        print_message("skipped: %s is not there\n", dir);
        skip();
    }
    snprintf(path, sizeof path, "%s/vectors.inp", dir);
    assert_int_equal(fkv_file_read(path, 1 << 20, &in, &err), FKV_OK);
    snprintf(path, sizeof path, "%s/vectors.out", dir);
    assert_int_equal(fkv_file_read(path, 1 << 20, &out, &err), FKV_OK);
    open_dir(&o, dir);
    int n = 0;
    char *line = out.data;
    for (const char *text = in.data, *end; text; text = end ? end + strlen(mark) : NULL, n++) {
        int32_t want[2048];
        size_t n_want = 0;
        end = strstr(text, mark);
        char *newline = line + strcspn(line, "\n"), *next;
        for (; *newline; n_want++, line = next) {
            want[n_want] = (int32_t)strtol(line, &next, 10);
            if (next == line || next > newline) break;
        }
        encode(&o, text, end ? (size_t)(end - text) : strlen(text), false);
        assert_ids(&o.ids, want, n_want, text);
        line = *newline ? newline + 1 : newline;
    }
    assert_true(n > 40);
    fkv_buf_free(&in);
    fkv_buf_free(&out);
    close_all(&o);
}

static void llama3_public_vectors(void **state)
{
    (void)state;
    public_vectors(SHARED "/llama-3");
}

static void llama2_public_vectors(void **state)
{
    (void)state;
    public_vectors(SHARED "/llama-2");
}

/* What HF transformers makes of the files beside tokenizer.json. */
static void configs_are_as_in_hf(void **state)
{
    (void)state;
    json_t *configs = load(FKV_TEST_DIR "/golden", "tokenizer_configs.json"), *c;
    size_t i;
    assert_true(json_array_size(json_object_get(configs, "cases")) > 20);
    json_array_foreach(json_object_get(configs, "cases"), i, c)
    {
        struct opened o;
        char base[128];
        const char *name = json_string_value(json_object_get(c, "name"));
        snprintf(base, sizeof base, "%s.json", json_string_value(json_object_get(c, "tokenizer")));
        json_t *golden = load(GOLDEN, base);
        if (open_files(json_object_get(golden, "tokenizer"), json_object_get(c, "files"), &o))
            fail_msg("%s: %s: %s", name, o.err.key, o.err.message);
        expect_vectors(&o, c, name);
        json_decref(golden);
        close_all(&o);
    }
    json_decref(configs);
}

static void bad_configs_are_refused_by_name(void **state)
{
    static const struct {
        const char *config, *word;
    } cases[] = {
        {"[]", "JSON object"},
        {"{\"split_special_tokens\":true}", "split_special_tokens"},
        {"{\"clean_up_tokenization_spaces\":true,"
         "\"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output\":true}",
         "even_though"},
        {"{\"added_tokens_decoder\":[]}", "added_tokens_decoder"},
        {"{\"added_tokens_decoder\":{\"x\":{\"content\":\"a\"}}}", "added_tokens_decoder"},
        {"{\"added_tokens_decoder\":{\"1\":\"a\"}}", "added_tokens_decoder"},
        {"{\"bos_token\":5}", "bos_token"},
        {"{\"eos_token\":{\"content\":5}}", "eos_token"},
        {"{\"extra_special_tokens\":[[]]}", "extra_special_tokens"},
    };
    static const char *const added[] = {
        "[]", "{\"<x>\":\"1\"}", "{\"<x>\":null}", "{\"<x>\":1.5}", "{\"<x>\":-1}", "{\"<x>\":16777216}"};
    (void)state;
    json_t *golden = load(GOLDEN, "llama-2.json");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct opened o;
        char text[1536];
        json_t *files = json_pack("{s:o}", "tokenizer_config.json", json_loads(cases[i].config, 0, NULL));
        assert_non_null(files);
        if (open_files(json_object_get(golden, "tokenizer"), files, &o) != FKV_E_INPUT)
            fail_msg("%s is accepted", cases[i].config);
        fkv_err_format(&o.err, text, sizeof text);
        if (!strstr(text, "tokenizer_config.json") || !strstr(text, cases[i].word))
            fail_msg("%s: '%s' does not say '%s'", cases[i].config, text, cases[i].word);
        json_decref(files);
        close_all(&o);
    }
    for (size_t i = 0; i < sizeof added / sizeof *added; i++) {
        struct opened o;
        json_t *files = json_pack("{s:o}", "added_tokens.json", json_loads(added[i], 0, NULL));
        assert_int_equal(open_files(json_object_get(golden, "tokenizer"), files, &o), FKV_E_INPUT);
        assert_non_null(strstr(o.err.file, "added_tokens.json"));
        json_decref(files);
        close_all(&o);
    }
    json_decref(golden);
}

/* A megabyte of one thing, as one word and as many. */
static void long_runs_are_not_quadratic(void **state)
{
#ifdef __SANITIZE_ADDRESS__
    enum { N = 1 << 17 }; /* whose memmem looks at all that is left each time */
#else
    enum { N = 1 << 20 };
#endif
    static const char *const names[] = {
        "llama-2.json",   "gemma-layout.json", "metaspace-always-split.json", "byte-merges.json",
        "unk-fused.json", "falcon.json",       "some-bytes-alone.json",       "replace-regex.json"};
    static const char *const units[] = {
        "a", "the", " ", "\n", "= ", "1", "\xc3\xa9", "\xf0\x9f\x98\x80", "\xe2\x96\x81"};
    char *text = malloc(N);
    (void)state;
    assert_non_null(text);
    alarm(SECONDS_MAX);
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        struct opened o;
        json_t *vectors = load(GOLDEN, names[k]);
        assert_int_equal(open_json(json_object_get(vectors, "tokenizer"), &o), FKV_OK);
        json_decref(vectors);
        for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
            const size_t len = strlen(units[i]), n = N / len * len;
            fkv_buf back = {0};
            for (size_t at = 0; at < n; at += len) memcpy(text + at, units[i], len);
            encode(&o, text, n, false);
            assert_int_equal(fkv_tokenizer_decode(o.t, o.ids.data, o.ids.len, false, &back, &o.err), FKV_OK);
            fkv_buf_free(&back);
        }
        close_all(&o);
    }
    alarm(0);
    free(text);
}

/* A few steps in a file must not fill the memory. */
static void texts_do_not_explode(void **state)
{
    struct opened o;
    char text[1000];
    (void)state;
    json_t *vectors = load(GOLDEN, "llama-2.json"), *root = json_object_get(vectors, "tokenizer");
    json_t *step = json_pack("{s:s,s:{s:s},s:s}", "type", "Replace", "pattern", "String", "a", "content",
                             "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    json_t *steps = json_array();
    for (int i = 0; i < 8; i++) assert_int_equal(json_array_append(steps, step), 0);
    json_object_set_new(root, "normalizer", json_pack("{s:s,s:O}", "type", "Sequence", "normalizers", steps));
    assert_int_equal(open_json(root, &o), FKV_OK);
    memset(text, 'a', sizeof text);
    assert_int_equal(fkv_tokenizer_encode(o.t, o.s, text, sizeof text, false, &o.ids, NULL, NULL, &o.err),
                     FKV_E_INPUT);
    assert_non_null(strstr(o.err.message, "normalizer"));
    close_all(&o);
    json_object_set_new(root, "normalizer", json_null());
    json_object_set_new(root, "decoder", json_pack("{s:s,s:O}", "type", "Sequence", "decoders", steps));
    assert_int_equal(open_json(root, &o), FKV_E_INPUT);
    assert_non_null(strstr(o.err.message, "too long"));
    close_all(&o);
    json_decref(steps);
    json_decref(step);
    json_decref(vectors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_is_as_in_hf),    cmocka_unit_test(published_ones_are_as_in_hf),
        cmocka_unit_test(llama3_public_vectors),       cmocka_unit_test(llama2_public_vectors),
        cmocka_unit_test(configs_are_as_in_hf),        cmocka_unit_test(bad_configs_are_refused_by_name),
        cmocka_unit_test(long_runs_are_not_quadratic), cmocka_unit_test(texts_do_not_explode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
