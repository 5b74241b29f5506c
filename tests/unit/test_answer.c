/* runner/answer.h: a stop string is found with the token that completes it, whatever the tokenizer's decoder
 * makes of what stands before, and the text is cut there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runner/answer.h"
#include "tests/unit/tokenizer_fixture.h"

struct answering {
    struct opened o;
    fkv_setup setup;
    fkv_answer_ends ends;
    fkv_answer_maker maker;
};

static void open_answering(struct answering *a, const char *layout, const char *stops, size_t n_stops)
{
    char path[512];
    json_error_t why;
    *a = (struct answering){0};
    snprintf(path, sizeof path, FKV_TEST_DIR "/golden/tokenizers/%s.json", layout);
    json_t *golden = json_load_file(path, JSON_ALLOW_NUL, &why);
    assert_non_null(golden);
    assert_int_equal(open_json(json_object_get(golden, "tokenizer"), &a->o), FKV_OK);
    json_decref(golden);
    a->ends.stops = (fkv_stops){stops, n_stops};
    a->setup.tokenizer = a->o.t;
    fkv_answer_maker_open(&a->maker, &a->setup);
}

static void close_answering(struct answering *a)
{
    fkv_answer_maker_close(&a->maker);
    close_all(&a->o);
}

/* Whether the text of n ids holds a stop string. */
static bool holds_stop(struct answering *a, const int32_t *ids, size_t n)
{
    fkv_buf text = {0};
    bool found = false;
    assert_int_equal(fkv_tokenizer_decode(a->o.t, ids, n, true, &text, &a->o.err), FKV_OK);
    const char *stop = a->ends.stops.text;
    for (size_t i = 0; text.len && i < a->ends.stops.n; i++, stop += strlen(stop) + 1)
        found = found || memmem(text.data, text.len, stop, strlen(stop));
    fkv_buf_free(&text);
    return found;
}

static void a_stop_string_ends_with_its_token(void **state)
{
    static const char *const layouts[] = {"llama-2", "gemma-layout", "llama-3", "replace-regex",
                                          "metaspace-always"};
    static const char stops[] = "\n\n\0 ab\0\xf0\x9f\x98\x80\0\xef\xbf\xbd"
                                "c\0end of it";
    static const char *const texts[] = {"  ab",
                                        "a ab",
                                        "x\n\ny",
                                        "\xf0\x9f\x98\x80\xf0\x9f\x98\x81 z",
                                        "this is the end of it, is it",
                                        "\n a \n b \n\n"};
    (void)state;
    for (size_t k = 0; k < sizeof layouts / sizeof *layouts; k++) {
        struct answering a;
        fkv_answer_watch watch = {0};
        open_answering(&a, layouts[k], stops, 5);
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
            encode(&a.o, texts[i], strlen(texts[i]), false);
            const int32_t *ids = a.o.ids.data;
            /* Token by token; then again from the start, as a record that was put back. */
            for (int pass = 0; pass < 2; pass++)
                for (size_t n = 1; n <= a.o.ids.len; n++) {
                    const bool want = holds_stop(&a, ids, n);
                    assert_int_equal(fkv_answer_stops(&a.maker, &a.ends.stops, &watch, ids, n), want);
                    if (want) break;
                }
        }
        /* Any ids: runs of bytes that become something else with the next one. */
        for (unsigned seed = 1; seed < 200; seed++) {
            int32_t ids[40];
            for (size_t n = 1; n <= 40; n++) {
                ids[n - 1] = (int32_t)(seed * 7919u * (unsigned)n * (unsigned)n % 263u);
                const bool want = holds_stop(&a, ids, n);
                assert_int_equal(fkv_answer_stops(&a.maker, &a.ends.stops, &watch, ids, n), want);
                if (want) break;
            }
        }
        fkv_answer_watch_free(&watch);
        close_answering(&a);
    }
}

static void the_text_is_cut_at_the_first_stop_string(void **state)
{
    static const char stops[] = "of it\0end";
    struct answering a;
    fkv_err err = {0};
    const char *text;
    size_t n;
    bool stopped;
    (void)state;
    open_answering(&a, "llama-2", stops, 2);
    encode(&a.o, "the end of it", 13, false);
    assert_int_equal(fkv_answer_text(&a.maker, &a.ends, a.o.ids.data, a.o.ids.len, &text, &n, &stopped, &err),
                     FKV_OK);
    assert_true(stopped);
    assert_int_equal(n, 4);
    assert_memory_equal(text, "the ", 4);
    close_answering(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stop_string_ends_with_its_token),
        cmocka_unit_test(the_text_is_cut_at_the_first_stop_string),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
