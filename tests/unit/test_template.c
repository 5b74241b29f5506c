/* Chat templates: every construct against what jinja2 made of it (tests/golden/templates.json), then
 * limits, what a failure leaves, scratches, threads, and the template of a folder. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runner/base/file.h"
#include "runner/base/json.h"
#include "tokenizer/template.h"

static fkv_template_scratch *scratch;
static json_t *hello; /* messages */

static json_t *parse(const char *text)
{
    json_error_t why;
    json_t *v = fkv_json_parse(text, strlen(text), JSON_ALLOW_NUL | JSON_DECODE_ANY, &why);
    assert_non_null(v);
    return v;
}

static int set_up(void **state)
{
    (void)state;
    fkv_err err = {0};
    hello = parse("[{\"role\":\"user\",\"content\":\"Hello\"}]");
    return fkv_template_scratch_new(&scratch, &err);
}

static int tear_down(void **state)
{
    (void)state;
    json_decref(hello);
    fkv_template_scratch_free(scratch);
    return 0;
}

/* Renders a text; the result is in out or the error in err. */
static fkv_status render(const char *text, size_t n, const fkv_template_input *in, fkv_buf *out, fkv_err *err)
{
    fkv_template *t;
    fkv_status st = fkv_template_open(text, n, "t", NULL, &t, err);
    assert_true(!st == (t != NULL));
    if (!st) st = fkv_template_render(t, scratch, in, out, err);
    fkv_template_close(t);
    return st;
}

/* With one message and the variables, a JSON object or NULL. */
static void renders(const char *text, const char *variables, const char *want)
{
    fkv_err err = {0};
    fkv_buf out = {0};
    json_t *v = variables ? parse(variables) : NULL;
    const fkv_template_input in = {.messages = hello, .variables = v, .date = "2024-07-26"};
    if (render(text, strlen(text), &in, &out, &err)) fail_msg("%s: %s", text, err.message);
    assert_string_equal(out.data ? out.data : "", want);
    fkv_buf_free(&out);
    json_decref(v);
}

/* The error holds these words, and what was in out stays. */
static void fails(const char *text, const char *words)
{
    fkv_err err = {0};
    fkv_buf out = {0};
    const fkv_template_input in = {.messages = hello};
    assert_int_equal(fkv_buf_puts(&out, "kept", &err), FKV_OK);
    assert_int_equal(render(text, strlen(text), &in, &out, &err), FKV_E_INPUT);
    if (!strstr(err.message, words)) fail_msg("%s: %s, not %s", text, err.message, words);
    assert_string_equal(out.data, "kept");
    assert_int_equal(out.len, 4);
    fkv_buf_free(&out);
}

static void every_construct_renders_as_jinja_renders_it(void **state)
{
    (void)state;
    fkv_err err = {0};
    json_t *golden, *record;
    size_t i, bad = 0;
    assert_int_equal(fkv_json_load(FKV_TEST_DIR "/golden/templates.json", 16 << 20, &golden, &err), FKV_OK);
    json_array_foreach(json_object_get(golden, "records"), i, record)
    {
        const json_t *text = json_object_get(record, "template"), *want = json_object_get(record, "text");
        const json_t *input = json_array_get(json_object_get(golden, "inputs"),
                                             (size_t)json_integer_value(json_object_get(record, "input")));
        const fkv_template_input in = {.messages = json_object_get(input, "messages"),
                                       .add_generation_prompt =
                                           json_is_true(json_object_get(input, "add_generation_prompt")),
                                       .variables = json_object_get(input, "variables"),
                                       .date = json_string_value(json_object_get(golden, "date"))};
        fkv_buf out = {0};
        fkv_err why = {0};
        fkv_status st = render(json_string_value(text), json_string_length(text), &in, &out, &why);
        const bool same = json_is_string(want)
                              ? !st && out.len == json_string_length(want) &&
                                    memcmp(out.len ? out.data : "", json_string_value(want), out.len) == 0
                              : st == FKV_E_INPUT && why.message[0];
        if (!same) {
            print_message("%s\n  here %s %s\n  jinja %s\n", json_string_value(text), out.len ? out.data : "",
                          why.message, json_is_string(want) ? json_string_value(want) : "fails");
            bad++;
        }
        fkv_buf_free(&out);
    }
    assert_true(i > 300);
    assert_int_equal(bad, 0);
    json_decref(golden);
}

/* What jinja2 has and does otherwise, on purpose. */
static void integers_have_64_bits_and_say_so(void **state)
{
    (void)state;
    renders("{{ 9223372036854775806 + 1 }} {{ -9223372036854775807 - 1 }}", NULL,
            "9223372036854775807 -9223372036854775808");
    renders("{{ (-9223372036854775807 - 1) % -1 }} {{ 3037000499 * 3037000499 }}", NULL,
            "0 9223372030926249001");
    fails("{{ 9223372036854775807 + 1 }}", "64 bits, where Python's integers would grow");
    fails("{{ -9223372036854775807 - 2 }}", "64 bits");
    fails("{{ 3037000500 * 3037000500 }}", "64 bits");
    fails("{{ (-9223372036854775807 - 1) // -1 }}", "64 bits");
    fails("{{ -(-9223372036854775807 - 1) }}", "64 bits");
    fails("{{ 2 ** 63 }}", "64 bits");
    renders("{{ n + 1 }} {{ n == 9007199254740993.0 }} {{ n in {9007199254740993: 1} }}",
            "{\"n\":9007199254740993}", "9007199254740994 False True");
    fails("{{ range(9223372036854775807)[::2] }}", "100000");
    renders("{{ range(0, 9223372036854775807, 9223372036854775806)|list }}", NULL,
            "[0, 9223372036854775806]");
    fails("{{ range(0, 9223372036854775807, 4611686018427387904)[::2]|list }}", "64 bits");
}

static void hf_marks_what_the_model_says(void **state)
{
    (void)state;
    renders("{% generation %}a{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}", NULL, "a1");
    fails("{% for i in [1] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}", "loops");
}

static void brackets_and_blocks_nest_100_deep(void **state)
{
    (void)state;
    static const struct {
        const char *open, *inside, *close;
    } cases[] = {{"(", "1", ")"},           {"[", "1", "]"},      {"-", "1", ""},   {"not ", "1", ""},
                 {"1 if 1 else ", "1", ""}, {"{'a': ", "1", "}"}, {"x[", "1", "]"}, {"[1] is in(", "1", ")"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int deep = 90; deep <= 5000; deep += 4910) {
            fkv_buf text = {0}, out = {0};
            fkv_err err = {0};
            const fkv_template_input in = {.messages = hello};
            fkv_status st = fkv_buf_puts(&text, "{% if 0 %}{{ ", &err);
            for (int k = 0; !st && k < deep; k++) st = fkv_buf_puts(&text, cases[i].open, &err);
            if (!st) st = fkv_buf_puts(&text, cases[i].inside, &err);
            for (int k = 0; !st && k < deep; k++) st = fkv_buf_puts(&text, cases[i].close, &err);
            if (!st) st = fkv_buf_puts(&text, " }}{% endif %}", &err);
            assert_int_equal(st, FKV_OK);
            st = render(text.data, text.len, &in, &out, &err);
            if (st != (deep > 100 ? FKV_E_INPUT : FKV_OK))
                fail_msg("%s %d: %s", cases[i].open, deep, err.message);
            if (st) assert_non_null(strstr(err.message, "deep"));
            fkv_buf_free(&text);
            fkv_buf_free(&out);
        }
    }
}

/* What stands side by side does not nest. */
static void long_chains_are_no_nesting(void **state)
{
    (void)state;
    static const char *const links[] = {"+1",      "*1",  "~1", " and 1", " or 1", "<2",
                                        "|string", "[0]", ".a", "==1",    ",1",    "()"};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        fkv_buf text = {0}, out = {0};
        fkv_err err = {0};
        const fkv_template_input in = {.messages = hello};
        fkv_status st = fkv_buf_puts(&text, "{% if 0 %}{{ 1", &err);
        for (int k = 0; !st && k < 20000; k++) st = fkv_buf_puts(&text, links[i], &err);
        if (!st) st = fkv_buf_puts(&text, " }}{% endif %}", &err);
        assert_int_equal(st, FKV_OK);
        st = render(text.data, text.len, &in, &out, &err);
        if (st) fail_msg("%s: %s", links[i], err.message);
        fkv_buf_free(&text);
        fkv_buf_free(&out);
    }
}

static void a_rendering_is_bounded(void **state)
{
    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* one thread, and ten million steps that take forty seconds there */
#endif
    fails("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "10000000 steps");
    fails(
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "bytes");
    fails("{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}", "bytes");
    fails("{% for i in range(99999) %}{% set x = 'a' * 9999 %}{% endfor %}", "bytes");
    fails("{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ 'b' in s }}{% endfor %}", "steps");
    fails("{% set s = 'a' * 999999 %}{% for i in range(99999) %}{{ s[-1] }}{% endfor %}", "steps");
    fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "deep");
    fails("{% macro m() %}{% for i in [1] %}{% if 1 %}{{ [m()] }}{% endif %}{% endfor %}{% endmacro %}{{ m() "
          "}}",
          "deep");
    fails("{% set n = namespace() %}{% set n.n = [n] %}{{ n }}", "holds itself");
    fails("{% set n = namespace() %}{% set n.n = [n] %}{{ n.n == [n.n[0]] }}{{ n.n|tojson }}",
          "JSON serializable");
    fails("{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ "
          "n.x == n.x }}",
          "deep");
    fails("{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ "
          "n.x }}",
          "");
    fails("{% set n = namespace(x=[1]) %}{% for i in range(999) %}{% set n.x = n.x|map('string') %}{% endfor "
          "%}{{ n.x|list }}",
          "deep");
    fails("{{ [1]|tojson(indent=99999) }}", "indent");
    fails("{{ strftime_now('%Y') }}", "no date");
    fails("{{ 'abc' % 1 }}", "% does not format strings");
}

static void large_dicts_are_found_in(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_buf given = {0};
    fkv_status st = fkv_buf_puts(&given, "{\"d\":{\"\":0", &err);
    for (int i = 0; !st && i < 5000; i++) st = fkv_buf_printf(&given, &err, ",\"k%d\":%d", i, i);
    if (!st) st = fkv_buf_puts(&given, "}}", &err);
    assert_int_equal(st, FKV_OK);
    renders(
        "{{ d|length }} {{ d.k4999 }} {{ d['k7'] }} {{ 'k5000' in d }} {{ d == d }} {% for k in d if k != '' "
        "and 'k%' == "
        "'k%' and d[k] ~ '' != k[1:] %}{{ k }}{% endfor %}{{ d[''] }} {{ dict(d, k3='x').k3 }} {{ d.k3 }}",
        given.data, "5001 4999 7 False True 0 x 3");
    fkv_buf_free(&given);
}

static void the_line_of_an_error_is_the_templates(void **state)
{
    (void)state;
    fails("a\nb\n{{ x.y }}", "line 3 of the chat template: 'x' is undefined");
    fails("{#\n\n#}\n{% raw %}\n{% endraw %}\n{{ 1 + 'a' }}", "line 6 of the chat template");
    fails("{% if 1 -%}\n\n\n{%- endif %}\r\n\r{{ 1 + 'a' }}", "line 6 of the chat template");
}

static void raised_words_stand_alone(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_buf out = {0};
    const fkv_template_input in = {.messages = hello};
    static const char text[] = "\n{{ raise_exception('Nur \xc3\xa4' * 400) }}";
    assert_int_equal(render("{{ raise_exception('No %s!') }}", 31, &in, &out, &err), FKV_E_INPUT);
    assert_string_equal(err.message, "No %s!");
    err = (fkv_err){0};
    assert_int_equal(render(text, strlen(text), &in, &out, &err), FKV_E_INPUT);
    assert_true(strlen(err.message) > 700 && !strncmp(err.message, "Nur ", 4));
    fkv_buf_free(&out);
}

static void an_error_may_be_left_out(void **state)
{
    (void)state;
    fkv_template *t;
    fkv_buf out = {0};
    const fkv_template_input in = {.messages = hello};
    assert_int_equal(fkv_template_open("{% x", 4, "t", NULL, &t, NULL), FKV_E_INPUT);
    assert_null(t);
    assert_int_equal(fkv_template_open("{{ x.y }}", 9, "t", NULL, &t, NULL), FKV_OK);
    assert_int_equal(fkv_template_render(t, scratch, &in, &out, NULL), FKV_E_INPUT);
    fkv_template_close(t);
    fkv_template_close(NULL);
    fkv_template_scratch_free(NULL);
    fkv_buf_free(&out);
}

struct worker {
    pthread_t thread;
    const fkv_template *template;
    int number, bad;
};

static void *work(void *arg)
{
    struct worker *w = arg;
    fkv_template_scratch *own = NULL;
    fkv_buf out = {0};
    char want[64], given[64];
    w->bad = fkv_template_scratch_new(&own, NULL) != FKV_OK;
    snprintf(given, sizeof given, "{\"who\":\"w%d\"}", w->number);
    snprintf(want, sizeof want, "<s>w%d:Hello|0123", w->number);
    json_t *variables = json_loads(given, 0, NULL);
    const fkv_template_input in = {.messages = hello, .variables = variables};
    for (int i = 0; i < 200 && !w->bad; i++) {
        fkv_buf_clear(&out);
        w->bad = fkv_template_render(w->template, own, &in, &out, NULL) || strcmp(out.data, want) != 0;
    }
    json_decref(variables);
    fkv_buf_free(&out);
    fkv_template_scratch_free(own);
    return NULL;
}

static void several_threads_share_a_template(void **state)
{
    (void)state;
    static const char text[] =
        "{{ bos }}{% macro m(x) %}{{ who }}:{{ x }}{% endmacro %}{{ m(messages[0].content) }}|{% for i "
        "in range(4) %}{{ i }}{% endfor %}";
    fkv_err err = {0};
    fkv_template *t;
    json_t *tokens = parse("{\"bos\":\"<s>\"}");
    struct worker workers[4];
    assert_int_equal(fkv_template_open(text, strlen(text), "t", tokens, &t, &err), FKV_OK);
    json_decref(tokens); /* the template keeps its own */
    for (int i = 0; i < 4; i++) {
        workers[i] = (struct worker){.template = t, .number = i};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].bad, 0);
    }
    fkv_template_close(t);
}

static void what_is_given_is_checked(void **state)
{
    (void)state;
    static const struct {
        const char *messages, *variables, *date, *words;
    } cases[] = {{"[]", "{}", NULL, "empty"},
                 {"{}", "{}", NULL, "list"},
                 {"[1]", "{}", NULL, "object"},
                 {"[{}]", "[]", NULL, "object"},
                 {"[{}]", "{\"messages\":1}", NULL, "no variables"},
                 {"[{}]", "{\"add_generation_prompt\":true}", NULL, "no variables"},
                 {"[{}]", "{}", "2024-02-30", "not a date"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *messages = parse(cases[i].messages), *variables = parse(cases[i].variables);
        const fkv_template_input in = {.messages = messages, .variables = variables, .date = cases[i].date};
        fkv_err err = {0};
        fkv_buf out = {0};
        assert_int_equal(render("{{ messages }}", 14, &in, &out, &err), FKV_E_INPUT);
        assert_non_null(strstr(err.message, cases[i].words));
        fkv_buf_free(&out);
        json_decref(messages);
        json_decref(variables);
    }
}

static void a_folder_without_a_template_is_no_failure(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_template *t;
    json_t *tokens;
    assert_int_equal(fkv_template_open_model(FKV_TEST_DIR "/data/needle-tiny", &t, &err), FKV_OK);
    assert_null(t);
    assert_int_equal(fkv_template_tokens(FKV_TEST_DIR "/data/needle-tiny", &tokens, &err), FKV_OK);
    assert_int_equal(json_object_size(tokens), 0);
    json_decref(tokens);
    assert_int_equal(fkv_template_open_file("nowhere", NULL, &t, &err), FKV_E_INPUT);
    assert_null(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_construct_renders_as_jinja_renders_it),
        cmocka_unit_test(integers_have_64_bits_and_say_so),
        cmocka_unit_test(hf_marks_what_the_model_says),
        cmocka_unit_test(brackets_and_blocks_nest_100_deep),
        cmocka_unit_test(long_chains_are_no_nesting),
        cmocka_unit_test(a_rendering_is_bounded),
        cmocka_unit_test(large_dicts_are_found_in),
        cmocka_unit_test(the_line_of_an_error_is_the_templates),
        cmocka_unit_test(raised_words_stand_alone),
        cmocka_unit_test(an_error_may_be_left_out),
        cmocka_unit_test(several_threads_share_a_template),
        cmocka_unit_test(what_is_given_is_checked),
        cmocka_unit_test(a_folder_without_a_template_is_no_failure),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
