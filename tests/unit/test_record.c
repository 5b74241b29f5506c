/* Records: prompts and templates, what passes through byte for byte, every error
 * code, limits and ids. */
#include "record_fixture.h"

static int make_dir(void **state)
{
    (void)state;
    return make_record_dir(
        "{\"qa\":\"C={context} {x} I={input}{input} {context\",\"sum_e\":\"S\",\"sum\":\"T\","
        "\"bare\":\"\",\"\xc3\xa9\":\"{context}\"}",
        "{\"qa\":32,\"sum\":7,\"other\":9}");
}

static fkv_job job_of(fkv_format format)
{
    fkv_job job = {0};
    job.input.format = format;
    if (format != FKV_FORMAT_PROMPT) job.input.prompts = prompts_path;
    job.input.max_new_tokens_by = limits_path;
    return job;
}

static fkv_record_parser *open_parser(fkv_format format)
{
    const fkv_job job = job_of(format);
    return open_parser_of(&job);
}

static void parse_bytes(fkv_format format, const char *member, const char *text, size_t n)
{
    const fkv_job job = job_of(format);
    parse_line(&job, "a.zip", member, text, n);
}

static void parse(fkv_format format, const char *member, const char *text)
{
    parse_bytes(format, member, text, strlen(text));
}

static void expect_error(fkv_format format, const char *member, const char *text, const char *code,
                         const char *word)
{
    parse(format, member, text);
    assert_record_error(text, code, word);
}

static void longbench_fills_its_template_once(void **state)
{
    (void)state;
    parse(FKV_FORMAT_LONGBENCH, "data/qa.jsonl",
          "{\"_id\":\"i1\",\"input\":\"in{context}\",\"context\":\"con{input}\",\"answers\":[\"a\"],"
          "\"length\":12,\"dataset\":\"other\",\"language\":\"en\",\"all_classes\":null}");
    assert_record_fine();
    assert_string_equal(record.prompt.data, "C=con{input} {x} I=in{context}in{context} {context");
    assert_string_equal(record.id_json.data, "\"i1\"");
    assert_string_equal(record.dataset.data, "qa");
    assert_int_equal(record.max_new_tokens, 32);
    assert_string_equal(record.fields.data, "{\"answers\":[\"a\"],\"length\":12,\"dataset\":\"other\","
                                            "\"language\":\"en\",\"all_classes\":null}");
    assert_string_equal(record.archive, "a.zip");
}

/* LongBench v2's have a question and choices, and no input. */
static void templates_take_any_string_or_number(void **state)
{
    static const char template[] =
        "{\"v2\":\"{context}|{question}|{choice_A}|{n}|{gone}|{list}|{flag}|{}|{{n}}|{n\"}";
    char path[400];
    fkv_job job = {.input = {.format = FKV_FORMAT_LONGBENCH, .prompts = path}};
    fkv_errs errs = {0};
    fkv_err err = {0};
    fkv_record_parser *parser = NULL;
    static const char text[] =
        "{\"_id\":\"x\",\"context\":\"c{n}\",\"question\":\"q\",\"choice_A\":\"a\\u00e9{n}\","
        "\"n\":-1.50e2,\"list\":[1],\"flag\":true}";
    const fkv_line line = {
        .archive = "a", .member = "v2.jsonl", .line = 1, .text = text, .n = sizeof text - 1};
    (void)state;
    snprintf(path, sizeof path, "%s/v2.json", dir);
    put(path, template);
    assert_int_equal(fkv_record_parser_open(&job, &parser, &errs), FKV_OK);
    assert_int_equal(fkv_record_parse(parser, &line, &record, &err), FKV_OK);
    fkv_record_parser_close(parser);
    assert_record_fine();
    assert_string_equal(record.prompt.data,
                        "c{n}|q|a\xc3\xa9{n}|-1.50e2|{gone}|{list}|{flag}|{}|{-1.50e2}|{n");
    assert_string_equal(record.fields.data, "{\"question\":\"q\",\"choice_A\":\"a\\u00e9{n}\",\"n\":-1.50e2,"
                                            "\"list\":[1],\"flag\":true}");
}

static void datasets_come_from_the_member_then_the_record(void **state)
{
    static const struct {
        const char *member, *field, *dataset, *prompt;
        int64_t limit;
    } cases[] = {
        {"data/sum.jsonl", "", "sum", "T", 7},
        {"sum_e.jsonl", "", "sum_e", "S", 0}, /* the prompts file has it as it is */
        {"x/qa_e.jsonl", "", "qa", "C=c {x} I=ii {context", 32},
        {"mixed.jsonl", "\"dataset\":\"sum\",", "sum", "T", 7},
        {"qa_f.jsonl", "\"dataset\":\"sum_e\",", "sum_e", "S", 0},
        {"mixed", "\"dataset\":\"\\u00e9\",", "\xc3\xa9", "c", 0},
        {"sum", "\"dataset\":\"qa\",", "sum", "T", 7}, /* the member wins */
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[200];
        snprintf(text, sizeof text, "{%s\"context\":\"c\",\"input\":\"i\"}", cases[i].field);
        parse(FKV_FORMAT_LONGBENCH, cases[i].member, text);
        assert_record_fine();
        assert_string_equal(record.dataset.data, cases[i].dataset);
        assert_string_equal(record.prompt.data, cases[i].prompt);
        assert_int_equal(record.max_new_tokens, cases[i].limit);
        assert_string_equal(record.id_json.data, "null");
    }
}

static void prompts_keep_their_bytes(void **state)
{
    (void)state;
    parse(FKV_FORMAT_PROMPT, "p.jsonl",
          " { \"max_tokens\" : 5 , \"prompt\" : \"a\\u0000b\\ud83d\\ude00\\n\" , \"id\" : 7 } ");
    assert_record_fine();
    assert_int_equal(record.prompt.len, 8);
    assert_memory_equal(record.prompt.data, "a\0b\xf0\x9f\x98\x80\n", 8);
    assert_int_equal(record.max_new_tokens, 5);
    assert_string_equal(record.id_json.data, "7");
    assert_string_equal(record.fields.data, "{}");
    assert_int_equal(record.dataset.len, 0);
    parse(FKV_FORMAT_PROMPT, "p.jsonl", "{\"prompt\":\"x\",\"dataset\":\"other\",\"max_tokens\":null}");
    assert_record_fine();
    assert_string_equal(record.dataset.data, "other");
    assert_int_equal(record.max_new_tokens, 9);
    assert_string_equal(record.fields.data, "{\"dataset\":\"other\"}");
}

static void fields_pass_through_as_text(void **state)
{
    static const char fields[] =
        "{\"z\":123456789012345678901234567890,\"a\":-0.10e+01,\"\\u0061b\":\"\\u0000\\/\\u00E9\xc3\xa9\","
        "\"n\":{ \"k\" : [1 , 2.50,null,true] , \"j\":{}},\"e\":\"\",\"context\":1E3,\"_id\":1}";
    char text[500];
    (void)state;
    snprintf(text, sizeof text, "{\"id\":\"x\\u0000\",\"prompt\":\"p\",%s", fields + 1);
    parse(FKV_FORMAT_PROMPT, "p.jsonl", text);
    assert_record_fine();
    assert_string_equal(record.fields.data, fields);
    assert_string_equal(record.id_json.data, "\"x\\u0000\"");
    parse(FKV_FORMAT_PROMPT, "p.jsonl", "{\"\":1,\"prompt\":\"p\",\"\\u0001\":2}");
    assert_record_fine();
    assert_string_equal(record.fields.data, "{\"\":1,\"\\u0001\":2}");
}

static void auto_looks_at_each_record(void **state)
{
    (void)state;
    parse(FKV_FORMAT_AUTO, "qa.jsonl",
          "{\"_id\":1,\"id\":2,\"prompt\":\"p\",\"context\":\"c\",\"input\":\"i\"}");
    assert_record_fine();
    assert_string_equal(record.id_json.data, "1");
    assert_string_equal(record.prompt.data, "C=c {x} I=ii {context");
    assert_string_equal(record.fields.data, "{\"id\":2,\"prompt\":\"p\"}");
    parse(FKV_FORMAT_AUTO, "qa.jsonl", "{\"_id\":1,\"id\":2,\"prompt\":\"p\",\"context\":\"c\"}");
    assert_record_fine();
    assert_string_equal(record.id_json.data, "2");
    assert_string_equal(record.prompt.data, "p");
    assert_string_equal(record.fields.data, "{\"_id\":1,\"context\":\"c\"}");
    expect_error(FKV_FORMAT_AUTO, "qa.jsonl", "{\"id\":5,\"text\":\"p\"}", "missing_field",
                 "neither context and input nor prompt");
    assert_string_equal(record.id_json.data, "5");
    expect_error(FKV_FORMAT_AUTO, "qa.jsonl", "{\"context\":\"p\"}", "missing_field", "input");
}

static void bad_json_is_told_apart(void **state)
{
    static const struct {
        const char *text, *code, *word;
    } cases[] = {
        {"{\"input\": \"broken", "bad_json", "premature end"},
        {"{", "bad_json", "key"},
        {"{\"a\"", "bad_json", "':'"},
        {"{\"a\":", "bad_json", "unexpected token"},
        {"{\"a\":1", "bad_json", "',' or '}'"},
        {"{\"a\":1,", "bad_json", "key"},
        {"{\"a\":1,}", "bad_json", "key"},
        {"{\"a\":1]", "bad_json", "',' or '}'"},
        {"{a:1}", "bad_json", "key"},
        {"{\"a\":01}", "bad_json", "byte 6"},
        {"{\"a\":nan}", "bad_json", "invalid token"},
        {"{\"a\":1e999}", "bad_json", "overflow"},
        {"{\"a\":\"\\ud800\"}", "bad_json", "Unicode"},
        {"{\"a\":\"\t\"}", "bad_json", "control character"},
        {"{\"a\":1} x", "bad_json", "more behind"},
        {"{\"a\":1}{}", "bad_json", "more behind"},
        {"{\"a\":1,\"a\":2}", "bad_json", "twice"},
        {"{\"prompt\":\"x\",\"\\u0070rompt\":\"y\"}", "bad_json", "twice"},
        {"{\"a\":{\"b\":1,\"b\":2}}", "bad_json", "duplicate"},
        {"{\"\\u0000\":1}", "bad_json", "NUL"},
        {"{\"a\":{\"\\u0000\":1}}", "bad_json", "NUL"},
        {"{1:2}", "bad_json", "key"},
        {"x", "bad_json", "invalid token"},
        {"[1,", "bad_json", "byte"},
        {"\xff\xfe{\"input\":\"x\"}", "bad_utf8", "byte"},
        {"{\"prompt\":\"\xff\"}", "bad_utf8", "byte"},
        {"{\"\xc3\":1}", "bad_utf8", "byte"},
        {"{\"a\":\"\xed\xa0\x80\"}", "bad_utf8", "byte"},
        {"{\"a\":\"\xc0\x80\"}", "bad_utf8", "byte"},
        {"[]", "not_object", "not an object"},
        {"null", "not_object", "not an object"},
        {"\"x\"", "not_object", "not an object"},
        {" 1.5 ", "not_object", "not an object"},
        {"", "bad_json", "byte"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        expect_error(FKV_FORMAT_PROMPT, "p.jsonl", cases[i].text, cases[i].code, cases[i].word);
        assert_string_equal(record.id_json.data, "null");
        assert_string_equal(record.fields.data, "{}");
    }
}

/* jansson passes over a NUL behind a number and counts one byte less than it took. */
static void nul_bytes_are_bad_json(void **state)
{
#define BYTES(text) text, sizeof text - 1
    static const struct {
        const char *text;
        size_t n;
        const char *word;
    } cases[] = {{BYTES("{\"prompt\":\"a\0b\"}"), "control character"},
                 {BYTES("{\"prompt\":\"a\",\"x\":[1\0,2]}"), "byte 21: a NUL byte"},
                 {BYTES("{\"prompt\":\"a\",\"x\":[1\0]}"), "byte 21: a NUL byte"},
                 {BYTES("{\"prompt\":\"a\",\"x\":{\"y\":1\0}}"), "byte 25: a NUL byte"},
                 {BYTES("{\"prompt\":\"a\",\"x\":1\0}"), "byte 20: a ',' or '}'"},
                 {BYTES("{\"prompt\":\"a\"\0}"), "byte 14: a ',' or '}'"},
                 {BYTES("{\"prompt\":\"a\"}\0"), "byte 15: more behind"},
                 {BYTES("\0{\"prompt\":\"a\"}"), "byte"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        parse_bytes(FKV_FORMAT_PROMPT, "p.jsonl", cases[i].text, cases[i].n);
        if (!strstr(record.error_message, cases[i].word))
            print_error("%s: %s: %s\n", cases[i].text, record.error_code, record.error_message);
        assert_string_equal(record.error_code, "bad_json");
        assert_non_null(strstr(record.error_message, cases[i].word));
    }
}

/* A value takes jansson a hundred times what it takes the text. */
static void too_many_values_are_refused(void **state)
{
    enum { MOST = 1 << 20 };
    fkv_buf text = {0};
    (void)state;
    for (int extra = 0; extra < 2; extra++) {
        fkv_buf_clear(&text);
        fkv_buf_puts(&text, "{\"prompt\":\"p,:[{\\\",\",\"a\":[0", NULL);
        for (int i = 5; i < MOST + extra; i++) fkv_buf_puts(&text, ",0", NULL);
        fkv_buf_puts(&text, "]}", NULL);
        parse(FKV_FORMAT_PROMPT, "p.jsonl", text.data);
        assert_string_equal(record.error_code, extra ? "too_large" : "");
    }
    assert_non_null(strstr(record.error_message, "1048576 values"));
    fkv_buf_free(&text);
}

static void too_deep_or_too_many_keys(void **state)
{
    fkv_buf text = {0};
    (void)state;
    fkv_buf_puts(&text, "{\"prompt\":\"p\",\"a\":", NULL);
    for (int i = 0; i < 100000; i++) fkv_buf_puts(&text, "[", NULL);
    expect_error(FKV_FORMAT_PROMPT, "p.jsonl", text.data, "bad_json", "depth");
    for (int n = 1024; n <= 1025; n++) {
        fkv_buf_clear(&text);
        fkv_buf_puts(&text, "{\"prompt\":\"p\"", NULL);
        for (int i = 1; i < n; i++) fkv_buf_printf(&text, NULL, ",\"k%d\":%d", i, i);
        fkv_buf_puts(&text, "}", NULL);
        parse(FKV_FORMAT_PROMPT, "p.jsonl", text.data);
        assert_string_equal(record.error_code, n == 1024 ? "" : "bad_json");
    }
    fkv_buf_free(&text);
}

static void an_id_survives_what_comes_after_it(void **state)
{
    (void)state;
    expect_error(FKV_FORMAT_PROMPT, "p.jsonl", "{\"id\":\"me\",\"prompt\":\"cut", "bad_json", "premature");
    assert_string_equal(record.id_json.data, "\"me\"");
    expect_error(FKV_FORMAT_LONGBENCH, "p.jsonl", "{\"_id\":4,\"prompt\":\xff", "bad_utf8", "byte");
    assert_string_equal(record.id_json.data, "4");
    expect_error(FKV_FORMAT_AUTO, "p.jsonl", "{\"_id\":[4],\"prompt\":", "bad_json", "byte");
    assert_string_equal(record.id_json.data, "null");
}

/* So that who counts by dataset counts it. */
static void an_error_has_the_dataset_that_is_named(void **state)
{
    static const struct {
        const char *member, *text, *code, *dataset;
    } cases[] = {
        {"d/qa.jsonl", "{\"broken", "bad_json", "qa"},
        {"qa_e.jsonl", "[]", "not_object", "qa"},
        {"sum_e", "{\"input\":\"x\"}", "missing_field", "sum_e"},
        {"qa.jsonl", "{\"context\":\"x\"}", "missing_field", "qa"},
        {"m.jsonl", "{\"context\":3,\"input\":\"\",\"dataset\":\"sum\"}", "bad_field", "sum"},
        {"m.jsonl", "{\"dataset\":\"sum\",\"context\":", "bad_json", "sum"},
        {"m.jsonl", "{\"context\":\"\",\"input\":\"\",\"dataset\":\"no\"}", "unknown_dataset", ""},
        {"", "[]", "not_object", ""},
    };
    const fkv_format formats[] = {FKV_FORMAT_LONGBENCH, FKV_FORMAT_AUTO};
    (void)state;
    for (size_t i = 0; i < 2 * (sizeof cases / sizeof *cases); i++) {
        expect_error(formats[i & 1], cases[i / 2].member, cases[i / 2].text, cases[i / 2].code, "");
        assert_string_equal(record.dataset.data ? record.dataset.data : "", cases[i / 2].dataset);
    }
    expect_error(FKV_FORMAT_PROMPT, "qa.jsonl", "[]", "not_object", "");
    assert_int_equal(record.dataset.len, 0); /* its records name their own */
}

static void bad_fields_are_named(void **state)
{
    static const struct {
        fkv_format format;
        const char *text, *code, *word;
    } cases[] = {
        {FKV_FORMAT_PROMPT, "{\"id\":1}", "missing_field", "no prompt"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":5}", "bad_field", "prompt is not a string"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":null}", "bad_field", "prompt is not a string"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"\"}", "empty_prompt", "empty"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"p\",\"id\":{}}", "bad_field", "id is not"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"p\",\"id\":[1]}", "bad_field", "id is not"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"p\",\"max_tokens\":0}", "bad_field", "max_tokens"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"p\",\"max_tokens\":-1}", "bad_field", "max_tokens"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"p\",\"max_tokens\":1.5}", "bad_field", "max_tokens"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"p\",\"max_tokens\":\"5\"}", "bad_field", "max_tokens"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"p\",\"max_tokens\":99999999999999999999}", "bad_field",
         "max_tokens"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"p\",\"max_tokens\":2147483648}", "bad_field", "max_tokens"},
        {FKV_FORMAT_LONGBENCH, "{\"input\":\"x\",\"dataset\":\"qa\"}", "missing_field", "no context"},
        {FKV_FORMAT_LONGBENCH, "{\"context\":\"x\",\"dataset\":\"qa\"}", "missing_field", "no input"},
        {FKV_FORMAT_LONGBENCH, "{\"context\":[],\"input\":\"\",\"dataset\":\"qa\"}", "bad_field", "context"},
        {FKV_FORMAT_LONGBENCH, "{\"context\":\"\",\"input\":1,\"dataset\":\"qa\"}", "bad_field", "input"},
        {FKV_FORMAT_LONGBENCH, "{\"context\":\"\",\"input\":\"\",\"dataset\":\"no\"}", "unknown_dataset",
         "\"no\""},
        {FKV_FORMAT_LONGBENCH, "{\"context\":\"\",\"input\":\"\",\"dataset\":3}", "unknown_dataset", "\"m\""},
        {FKV_FORMAT_LONGBENCH, "{\"context\":\"\",\"input\":\"\"}", "unknown_dataset", "names no dataset"},
        {FKV_FORMAT_LONGBENCH, "{\"context\":\"\",\"input\":\"\",\"dataset\":\"bare\"}", "empty_prompt",
         "empty"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_error(cases[i].format, "m.jsonl", cases[i].text, cases[i].code, cases[i].word);
    expect_error(FKV_FORMAT_LONGBENCH, "m.jsonl", "{\"_id\":\"e\",\"context\":\"\",\"answers\":[1]}",
                 "missing_field", "input");
    assert_string_equal(record.id_json.data, "\"e\"");
    assert_string_equal(record.fields.data, "{\"answers\":[1]}"); /* an error row keeps its fields */
}

static void the_lines_own_error_stands(void **state)
{
    fkv_record_parser *parser = open_parser(FKV_FORMAT_AUTO);
    const fkv_line line = {.archive = "a",
                           .member = "m",
                           .line = 1,
                           .error_code = "too_large",
                           .error_message = "the line is too long"};
    (void)state;
    assert_int_equal(fkv_record_parse(parser, &line, &record, NULL), FKV_OK);
    assert_string_equal(record.error_code, "too_large");
    assert_string_equal(record.error_message, "the line is too long");
    assert_string_equal(record.id_json.data, "null");
    assert_string_equal(record.fields.data, "{}");
    fkv_record_parser_close(parser);
}

static void long_messages_stay_utf8(void **state)
{
    char text[600];
    (void)state;
    for (size_t i = 0; i + 2 < sizeof text; i += 2) memcpy(text + i, "\xc3\xa9", 3);
    for (size_t cut = 0; cut < 4; cut++) {
        fkv_record_set_error(&record, "bad_json", "%.*s%s\xff", (int)cut, "abc", text);
        json_t *message = json_string(record.error_message);
        assert_non_null(message);
        assert_true(json_string_length(message) > 250);
        json_decref(message);
    }
}

static void tables_are_checked_as_a_whole(void **state)
{
    fkv_job job = {0};
    fkv_errs errs = {0};
    fkv_record_parser *parser = NULL;
    char bad[400], worse[400];
    (void)state;
    snprintf(bad, sizeof bad, "%s/bad.json", dir);
    snprintf(worse, sizeof worse, "%s/worse.json", dir);
    put(bad, "{\"a\":\"x\",\"b\":5,\"c\":null}");
    put(worse, "{\"a\":0,\"b\":\"5\",\"c\":1.5,\"d\":1}");
    job.input.prompts = bad;
    job.input.max_new_tokens_by = worse;
    assert_int_equal(fkv_record_parser_open(&job, &parser, &errs), FKV_E_INPUT);
    assert_int_equal(errs.n, 5);
    assert_string_equal(errs.at[0].file, bad);
    assert_string_equal(errs.at[0].key, "b");
    assert_string_equal(errs.at[2].file, worse);
    assert_string_equal(errs.at[2].key, "a");
    fkv_errs_free(&errs);
    put(bad, "[]");
    job.input.max_new_tokens_by = NULL;
    assert_int_equal(fkv_record_parser_open(&job, &parser, &errs), FKV_E_INPUT);
    assert_non_null(strstr(errs.at[0].message, "object by dataset"));
    fkv_errs_free(&errs);
    put(bad, "{\"a\":\n}");
    assert_int_equal(fkv_record_parser_open(&job, &parser, &errs), FKV_E_INPUT);
    assert_int_equal(errs.at[0].line, 2);
    fkv_errs_free(&errs);
    job.input.prompts = (char *)"/nowhere/prompts.json";
    assert_int_equal(fkv_record_parser_open(&job, &parser, &errs), FKV_E_INPUT);
    assert_string_equal(errs.at[0].file, "/nowhere/prompts.json");
    fkv_errs_free(&errs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(longbench_fills_its_template_once),
        cmocka_unit_test(templates_take_any_string_or_number),
        cmocka_unit_test(datasets_come_from_the_member_then_the_record),
        cmocka_unit_test(prompts_keep_their_bytes),
        cmocka_unit_test(fields_pass_through_as_text),
        cmocka_unit_test(auto_looks_at_each_record),
        cmocka_unit_test(bad_json_is_told_apart),
        cmocka_unit_test(nul_bytes_are_bad_json),
        cmocka_unit_test(too_many_values_are_refused),
        cmocka_unit_test(too_deep_or_too_many_keys),
        cmocka_unit_test(an_id_survives_what_comes_after_it),
        cmocka_unit_test(an_error_has_the_dataset_that_is_named),
        cmocka_unit_test(bad_fields_are_named),
        cmocka_unit_test(the_lines_own_error_stands),
        cmocka_unit_test(long_messages_stay_utf8),
        cmocka_unit_test(tables_are_checked_as_a_whole),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
