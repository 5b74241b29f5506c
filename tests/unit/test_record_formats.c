/* Records of the formats that a chat template goes around, and what a request asks for
 * itself: prompts, prefixes, limits, sampling, every refusal by its field's name. */
#include "record_fixture.h"

static int make_dir(void **state)
{
    (void)state;
    return make_record_dir(
        "{\"trec\":\"{context}{input}\",\"samsum\":\"{context}{input}\","
        "\"samsum_e\":\"{context}{input}\",\"trec_e\":\"E{input}\",\"qasper\":\"{input}\"}",
        "{\"vt\":31,\"hotpot\":7}");
}

static void parse(fkv_format format, const char *archive, const char *member, const char *text)
{
    char *plain[] = {(char *)"trec", (char *)"samsum"};
    fkv_job job = {0};
    job.input.format = format;
    job.input.prompts = prompts_path;
    job.input.max_new_tokens_by = limits_path;
    job.input.plain_datasets = (fkv_words){plain, 2};
    parse_line(&job, archive, member, text, strlen(text));
}

static void expect_fine(fkv_format format, const char *member, const char *text)
{
    parse(format, "a.zip", member, text);
    assert_record_fine();
}

static void expect_error(fkv_format format, const char *text, const char *code, const char *word)
{
    parse(format, "a.zip", "vt/m.jsonl", text);
    assert_record_error(text, code, word);
}

static void expect_text(const fkv_buf *buf, const char *want)
{
    assert_int_equal(buf->len, strlen(want));
    assert_memory_equal(buf->data, want, buf->len);
}

static void longbench_is_wrapped_but_its_plain_datasets(void **state)
{
    static const struct {
        const char *member;
        fkv_wrap wrap;
        bool newline_ends;
    } cases[] = {{"trec.jsonl", FKV_WRAP_NONE, false},   {"x/trec_e.jsonl", FKV_WRAP_NONE, false},
                 {"samsum.jsonl", FKV_WRAP_NONE, true},  {"samsum_e.jsonl", FKV_WRAP_NONE, true},
                 {"qasper.jsonl", FKV_WRAP_USER, false}, {"qasper_e.jsonl", FKV_WRAP_USER, false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        expect_fine(FKV_FORMAT_LONGBENCH, cases[i].member,
                    "{\"context\":\"c\",\"input\":\"i\",\"temperature\":1,\"answer_prefix\":\"no\"}");
        assert_int_equal(record.wrap, cases[i].wrap);
        assert_int_equal(record.newline_ends, cases[i].newline_ends);
        assert_int_equal(record.prefix.len, 0);
        assert_false(record.sampling.has_temperature); /* not reserved here: it passes through */
        assert_string_equal(record.fields.data, "{\"temperature\":1,\"answer_prefix\":\"no\"}");
    }
    /* Nothing stays of the record before. */
    expect_fine(FKV_FORMAT_PROMPT, "p", "{\"prompt\":\"x\"}");
    assert_int_equal(record.wrap, FKV_WRAP_NONE);
    assert_false(record.newline_ends);
}

static void ruler_takes_its_task_from_the_folder(void **state)
{
    static const struct {
        const char *archive, *member, *more, *dataset;
        int64_t limit;
    } cases[] = {
        {"r.tar", "data/niah_single_1/validation.jsonl", "", "niah_single_1", 128},
        {"r.tar", "vt/validation.jsonl", "", "vt", 31}, /* max_new_tokens_by */
        {"r.tar", "./cwe/validation.jsonl", "", "cwe", 120},
        {"r.tar", "/fwe/validation.jsonl", "", "fwe", 50},
        {"r.tar", "qa_1/validation.jsonl", "", "qa_1", 32},
        {"r.tar", "qa_1/validation.jsonl", ",\"max_new_tokens\":5", "qa_1", 5},
        {"r.tar", "qa_1/validation.jsonl", ",\"max_tokens\":6,\"max_new_tokens\":null", "qa_1", 6},
        {"r.tar", "vts/validation.jsonl", "", "vts", 0},
        {"r.tar", "validation.jsonl", "", "", 0},
        {"r.tar", "./validation.jsonl", "", "", 0},
        {"r.tar", "../validation.jsonl", "", "", 0},
        {"r.tar", "/validation.jsonl", "", "", 0},
        {"r.tar", "validation.jsonl", ",\"task\":\"cwe\"", "cwe", 120},
        {"r.tar", "validation.jsonl", ",\"task\":\"cwe\",\"dataset\":\"fwe\"", "fwe", 50},
        {"d/fwe/validation.jsonl", "validation.jsonl", "", "fwe", 50},
        {"d/fwe/validation.jsonl.gz", "validation.jsonl", "", "fwe", 50},
        {"d/fwe/all.tar", "validation.jsonl", "", "", 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[300];
        snprintf(text, sizeof text,
                 "{\"index\":%zu,\"input\":\"in\",\"outputs\":[\"o\"],\"length\":9,\"answer_prefix\":\" "
                 "Answer:\"%s}",
                 i, cases[i].more);
        parse(i % 2 ? FKV_FORMAT_AUTO : FKV_FORMAT_RULER, cases[i].archive, cases[i].member, text);
        assert_string_equal(record.error_code, "");
        expect_text(&record.dataset, cases[i].dataset);
        assert_int_equal(record.max_new_tokens, cases[i].limit);
        expect_text(&record.prompt, "in");
        expect_text(&record.prefix, " Answer:");
        assert_int_equal(record.wrap, FKV_WRAP_USER);
        assert_int_equal(atoi(record.id_json.data), (int)i);
        assert_memory_equal(record.fields.data, "{\"outputs\":[\"o\"],\"length\":9", 27);
    }
    expect_fine(FKV_FORMAT_RULER, "vt/v.jsonl", "{\"input\":\"in\",\"answer_prefix\":null}");
    assert_int_equal(record.prefix.len, 0);
    expect_text(&record.id_json, "null");
}

static void ruler_counts_its_own_limits(void **state)
{
    fkv_job job = {.input = {.format = FKV_FORMAT_RULER}};
    fkv_errs errs = {0};
    fkv_record_parser *parser = NULL;
    (void)state;
    assert_int_equal(fkv_record_parser_open(&job, &parser, &errs), FKV_OK);
    assert_int_equal(fkv_record_parser_largest_limit(parser), 128);
    fkv_record_parser_close(parser);
    job.input.format = FKV_FORMAT_PROMPT;
    assert_int_equal(fkv_record_parser_open(&job, &parser, &errs), FKV_OK);
    assert_int_equal(fkv_record_parser_largest_limit(parser), 0);
    fkv_record_parser_close(parser);
}

static void qa_joins_context_and_question(void **state)
{
    static const char text[] =
        "{\"_id\":\"q1\",\"context\":\"con\\n\",\"question\":\"What?\",\"answer_prefix\":\"It is\","
        "\"answer\":[\"x\"],\"max_new_tokens\":9,\"task\":\"hotpot\",\"temperature\":2}";
    (void)state;
    for (int i = 0; i < 2; i++) {
        expect_fine(i ? FKV_FORMAT_AUTO : FKV_FORMAT_QA, "m.jsonl", text);
        expect_text(&record.prompt, "con\nWhat?");
        expect_text(&record.prefix, "It is");
        expect_text(&record.dataset, "hotpot");
        expect_text(&record.id_json, "\"q1\"");
        expect_text(&record.fields, "{\"answer\":[\"x\"],\"task\":\"hotpot\",\"temperature\":2}");
        assert_int_equal(record.wrap, FKV_WRAP_USER);
        assert_int_equal(record.max_new_tokens, 9);
    }
    expect_fine(FKV_FORMAT_QA, "m.jsonl",
                "{\"id\":3,\"context\":\"\",\"question\":\"q\",\"task\":\"hotpot\"}");
    expect_text(&record.id_json, "3");
    expect_text(&record.fields, "{\"task\":\"hotpot\"}");
    assert_int_equal(record.max_new_tokens, 7);
}

static void prompts_may_be_messages(void **state)
{
    static const char messages[] = "[ {\"role\":\"user\",\"content\":\"h\\u00e9\\n\"}, {\"role\":\"x\"} ]";
    char text[300];
    (void)state;
    snprintf(text, sizeof text, "{\"id\":1,\"messages\":%s,\"prompt\":null,\"dataset\":\"d\"}", messages);
    for (int i = 0; i < 2; i++) {
        expect_fine(i ? FKV_FORMAT_AUTO : FKV_FORMAT_PROMPT, "m.jsonl", text);
        assert_int_equal(record.wrap, FKV_WRAP_MESSAGES);
        expect_text(&record.prompt, messages);
        expect_text(&record.dataset, "d");
        expect_text(&record.fields, "{\"dataset\":\"d\"}");
    }
    expect_fine(FKV_FORMAT_PROMPT, "m.jsonl", "{\"messages\":null,\"prompt\":\"x\"}");
    assert_int_equal(record.wrap, FKV_WRAP_NONE);
}

static void a_prompt_samples_as_it_says(void **state)
{
    (void)state;
    expect_fine(
        FKV_FORMAT_PROMPT, "m.jsonl",
        "{\"prompt\":\"p\",\"max_completion_tokens\":12,\"max_tokens\":12,\"temperature\":0.5,\"top_p\":1,"
        "\"top_k\":-1,\"seed\":18446744073709551615,\"stop\":[\"a\",\"\\u00e9b\"],\"repetition_penalty\":1.1,"
        "\"min_tokens\":12,\"ignore_eos\":true,\"n\":2,\"frequency_penalty\":1}");
    const fkv_record_sampling *s = &record.sampling;
    assert_true(s->has_temperature && s->temperature == 0.5 && s->has_top_p && s->top_p == 1);
    assert_true(s->has_top_k && s->top_k == 0 && s->has_seed && s->seed == UINT64_MAX);
    assert_true(s->has_repetition_penalty && s->repetition_penalty == 1.1);
    assert_true(s->has_min_tokens && s->min_tokens == 12 && s->has_ignore_eos && s->ignore_eos);
    assert_true(s->has_stop && s->n_stop == 2 && s->stop.len == 6);
    assert_memory_equal(s->stop.data,
                        "a\0\xc3\xa9"
                        "b\0",
                        6);
    assert_int_equal(record.max_new_tokens, 12);
    /* What is not reserved passes through, as ever. */
    expect_text(&record.fields, "{\"n\":2,\"frequency_penalty\":1}");
    expect_fine(FKV_FORMAT_PROMPT, "m.jsonl", "{\"prompt\":\"p\",\"seed\":-2,\"stop\":\"x\",\"top_k\":7}");
    assert_true(s->seed == UINT64_MAX - 1 && s->n_stop == 1 && s->top_k == 7);
    assert_false(s->has_temperature || s->has_min_tokens || s->has_ignore_eos);
    expect_fine(FKV_FORMAT_PROMPT, "m.jsonl", "{\"prompt\":\"p\",\"stop\":[],\"seed\":-9223372036854775808}");
    assert_true(s->has_stop && s->n_stop == 0 && s->seed == (uint64_t)1 << 63);
    expect_fine(
        FKV_FORMAT_PROMPT, "m.jsonl",
        "{\"prompt\":\"p\",\"temperature\":null,\"top_p\":null,\"top_k\":null,\"seed\":null,\"stop\":null,"
        "\"repetition_penalty\":null,\"min_tokens\":null,\"ignore_eos\":null,\"max_completion_tokens\":"
        "null}");
    assert_false(s->has_temperature || s->has_top_p || s->has_top_k || s->has_seed || s->has_stop ||
                 s->has_repetition_penalty || s->has_min_tokens || s->has_ignore_eos);
    expect_text(&record.fields, "{}");
}

static void bad_requests_name_their_field(void **state)
{
    static const struct {
        const char *fields, *word;
    } cases[] = {
        {"\"temperature\":-0.1", "temperature is not a number from 0"},
        {"\"temperature\":\"1\"", "temperature"},
        {"\"temperature\":101", "at most 100"},
        {"\"top_p\":0", "top_p is not a number above 0 and at most 1"},
        {"\"top_p\":1.01", "top_p"},
        {"\"top_p\":true", "top_p"},
        {"\"top_k\":-2", "top_k is not a whole number from -1 to 2147483647"},
        {"\"top_k\":1.0", "top_k"},
        {"\"top_k\":2147483648", "top_k"},
        {"\"top_k\":[]", "top_k"},
        {"\"seed\":18446744073709551616", "seed is not a whole number of 64 bits"},
        {"\"seed\":-9223372036854775809", "seed"},
        {"\"seed\":1e3", "seed"},
        {"\"seed\":100000000000000000000000000", "seed"},
        {"\"seed\":\"7\"", "seed"},
        {"\"stop\":\"\"", "stop is not a string"},
        {"\"stop\":[\"a\",\"\"]", "stop"},
        {"\"stop\":[\"a\",1]", "stop"},
        {"\"stop\":{}", "stop"},
        {"\"stop\":\"a\\u0000b\"", "NUL"},
        {"\"repetition_penalty\":0", "repetition_penalty is not a number above 0"},
        {"\"repetition_penalty\":{}", "repetition_penalty"},
        {"\"min_tokens\":-1", "min_tokens is not a whole number from 0"},
        {"\"min_tokens\":6,\"max_tokens\":5", "min_tokens, 6, is more than the limit of 5"},
        {"\"ignore_eos\":1", "ignore_eos is neither true nor false"},
        {"\"max_completion_tokens\":0", "max_completion_tokens is not a whole number from 1"},
        {"\"max_completion_tokens\":2,\"max_tokens\":3", "max_tokens and max_completion_tokens differ"},
    };
    fkv_buf many = {0};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[400];
        snprintf(text, sizeof text, "{\"prompt\":\"p\",%s}", cases[i].fields);
        expect_error(FKV_FORMAT_PROMPT, text, "bad_field", cases[i].word);
        snprintf(text, sizeof text,
                 "{\"custom_id\":\"c\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"p\",%s}}",
                 cases[i].fields);
        expect_error(FKV_FORMAT_OPENAI, text, "bad_field", cases[i].word);
        expect_text(&record.id_json, "\"c\"");
        expect_text(&record.fields, "{\"url\":\"/v1/completions\"}");
    }
    fkv_buf_puts(&many, "{\"prompt\":\"p\",\"stop\":[\"a\"", NULL);
    for (int i = 0; i < 64; i++) fkv_buf_puts(&many, ",\"a\"", NULL);
    fkv_buf_puts(&many, "]}", NULL);
    expect_error(FKV_FORMAT_PROMPT, many.data, "bad_field", "more than 64 strings");
    fkv_buf_free(&many);
}

#define CHAT     "{\"custom_id\":\"c\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":"
#define MESSAGES "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static void openai_requests_are_taken(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        expect_fine(
            i ? FKV_FORMAT_AUTO : FKV_FORMAT_OPENAI, "m.jsonl",
            CHAT "{\"model\":\"m\"," MESSAGES ",\"user\":\"u\",\"max_completion_tokens\":5,\"stream\":false,"
                 "\"metadata\":{\"a\":1},\"store\":true,\"service_tier\":\"flex\",\"temperature\":0,"
                 "\"n\":1.0,\"logprobs\":false,\"tools\":[],\"tool_choice\":\"auto\",\"logit_bias\":{},"
                 "\"response_format\":{\"type\":\"text\"},\"presence_penalty\":0,\"unheard_of\":null},"
                 "\"extra\":7}");
        assert_int_equal(record.wrap, FKV_WRAP_MESSAGES);
        expect_text(&record.prompt, "[{\"role\":\"user\",\"content\":\"hi\"}]");
        expect_text(&record.id_json, "\"c\"");
        expect_text(
            &record.fields,
            "{\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"extra\":7,\"body\":{\"model\":\"m\","
            "\"user\":\"u\",\"metadata\":{\"a\":1},\"store\":true,\"service_tier\":\"flex\"}}");
        assert_int_equal(record.max_new_tokens, 5);
        assert_true(record.sampling.has_temperature && record.sampling.temperature == 0);
    }
    expect_fine(
        FKV_FORMAT_OPENAI, "m.jsonl",
        "{\"url\":\"/v1/completions\",\"body\":{\"model\":\"m\",\"prompt\":\"p\\u0000\",\"max_tokens\":3}}");
    assert_int_equal(record.wrap, FKV_WRAP_NONE);
    assert_int_equal(record.prompt.len, 2);
    expect_text(&record.id_json, "null");
    expect_text(&record.fields, "{\"url\":\"/v1/completions\",\"body\":{\"model\":\"m\"}}");
}

static void openai_fields_that_ask_for_more_are_refused(void **state)
{
    static const struct {
        const char *body, *code, *word;
    } cases[] = {
        {"{" MESSAGES ",\"n\":2}", "bad_field", "n is not supported unless it is 1"},
        {"{" MESSAGES ",\"stream\":true}", "bad_field", "stream is not supported unless it is false"},
        {"{" MESSAGES ",\"tools\":[{}]}", "bad_field", "tools is not supported unless it is []"},
        {"{" MESSAGES ",\"tool_choice\":\"required\"}", "bad_field", "tool_choice is not supported"},
        {"{" MESSAGES ",\"logit_bias\":{\"5\":-100}}", "bad_field", "logit_bias"},
        {"{" MESSAGES ",\"response_format\":{\"type\":\"json_object\"}}", "bad_field", "response_format"},
        {"{" MESSAGES ",\"frequency_penalty\":0.1}", "bad_field", "frequency_penalty"},
        {"{" MESSAGES ",\"logprobs\":true}", "bad_field", "logprobs"},
        {"{" MESSAGES ",\"unheard_of\":0}", "bad_field", "unheard_of is not supported"},
        {"{" MESSAGES ",\"prompt\":\"p\"}", "bad_field", "prompt is not supported"},
        {"{" MESSAGES ",\"id\":\"p\"}", "bad_field", "id is not supported"},
        {"{" MESSAGES ",\"\":1}", "bad_field", " is not supported"},
        {"{\"prompt\":\"p\"}", "missing_field", "the body has no messages"},
        {"{\"messages\":[]}", "bad_field", "one message at least"},
        {"{\"messages\":\"hi\"}", "bad_field", "messages is not an array"},
        {"{\"messages\":null}", "bad_field", "messages is not an array"},
        {"{\"messages\":[{\"role\":\"user\"},{\"role\":1}]}", "bad_field",
         "message 2 is not an object with a role"},
        {"{\"messages\":[[]]}", "bad_field", "message 1"},
        {"[]", "bad_field", "no body that is an object"},
        {"\"{}\"", "bad_field", "no body that is an object"},
        {"{}", "missing_field", "no messages"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[400];
        snprintf(text, sizeof text, CHAT "%s}", cases[i].body);
        expect_error(FKV_FORMAT_OPENAI, text, cases[i].code, cases[i].word);
        expect_text(&record.id_json, "\"c\"");
    }
    expect_error(FKV_FORMAT_OPENAI, "{\"custom_id\":\"c\",\"body\":{" MESSAGES "}}", "missing_field",
                 "no url");
    expect_error(FKV_FORMAT_OPENAI, "{\"custom_id\":\"c\"}", "missing_field", "no body");
    expect_error(FKV_FORMAT_OPENAI, "{\"url\":\"/v1/embeddings\",\"body\":{\"input\":\"x\"}}", "bad_field",
                 "url is neither");
    expect_error(FKV_FORMAT_OPENAI, "{\"url\":\"/v1/completions\\u0000\",\"body\":{\"prompt\":\"x\"}}",
                 "bad_field", "url is neither");
    expect_error(FKV_FORMAT_OPENAI,
                 "{\"method\":\"GET\",\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"x\"}}", "bad_field",
                 "method is not POST");
    expect_error(FKV_FORMAT_OPENAI, "{\"url\":\"/v1/completions\",\"body\":{\"prompt\":[\"x\"]}}",
                 "bad_field", "prompt is not a string");
    expect_error(FKV_FORMAT_OPENAI, "{\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"\"}}",
                 "empty_prompt", "");
    expect_error(FKV_FORMAT_OPENAI,
                 "{\"custom_id\":[],\"url\":\"/v1/completions\",\"body\":{\"prompt\":\"x\"}}", "bad_field",
                 "custom_id is not");
}

static void bad_fields_of_all_formats_are_named(void **state)
{
    static const struct {
        fkv_format format;
        const char *text, *code, *word;
    } cases[] = {
        {FKV_FORMAT_RULER, "{\"index\":1,\"outputs\":[]}", "missing_field", "no input"},
        {FKV_FORMAT_RULER, "{\"input\":[]}", "bad_field", "input is not a string"},
        {FKV_FORMAT_RULER, "{\"input\":\"\"}", "empty_prompt", ""},
        {FKV_FORMAT_RULER, "{\"input\":\"x\",\"answer_prefix\":1}", "bad_field", "answer_prefix is not"},
        {FKV_FORMAT_RULER, "{\"input\":\"x\",\"index\":{}}", "bad_field", "index is not"},
        {FKV_FORMAT_RULER, "{\"input\":\"x\",\"max_new_tokens\":0}", "bad_field", "max_new_tokens is not"},
        {FKV_FORMAT_RULER, "{\"input\":\"x\",\"max_new_tokens\":1,\"max_tokens\":2}", "bad_field", "differ"},
        {FKV_FORMAT_QA, "{\"context\":\"x\"}", "missing_field", "no question"},
        {FKV_FORMAT_QA, "{\"question\":\"x\"}", "missing_field", "no context"},
        {FKV_FORMAT_QA, "{\"context\":\"x\",\"question\":null}", "bad_field", "question is not a string"},
        {FKV_FORMAT_QA, "{\"context\":\"\",\"question\":\"\"}", "empty_prompt", ""},
        {FKV_FORMAT_QA, "{\"context\":\"a\",\"question\":\"b\",\"answer_prefix\":[]}", "bad_field",
         "answer_prefix"},
        {FKV_FORMAT_PROMPT, "{\"prompt\":\"p\",\"messages\":[]}", "bad_field", "both prompt and messages"},
        {FKV_FORMAT_PROMPT, "{\"messages\":[]}", "bad_field", "one message at least"},
        {FKV_FORMAT_PROMPT, "{\"messages\":{}}", "bad_field", "messages is not an array"},
        {FKV_FORMAT_PROMPT, "{\"messages\":null}", "missing_field", "no prompt"},
        {FKV_FORMAT_AUTO, "{\"question\":\"q\"}", "missing_field", "neither"},
        {FKV_FORMAT_AUTO, "{\"custom_id\":\"q\"}", "missing_field", "neither"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_error(cases[i].format, cases[i].text, cases[i].code, cases[i].word);
    /* RULER's rows keep their dataset, so that its scorer counts them. */
    expect_error(FKV_FORMAT_RULER, "{\"index\":1}", "missing_field", "input");
    expect_text(&record.dataset, "vt");
    expect_error(FKV_FORMAT_RULER, "{\"index\":1", "bad_json", "");
    expect_text(&record.dataset, "vt");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(longbench_is_wrapped_but_its_plain_datasets),
        cmocka_unit_test(ruler_takes_its_task_from_the_folder),
        cmocka_unit_test(ruler_counts_its_own_limits),
        cmocka_unit_test(qa_joins_context_and_question),
        cmocka_unit_test(prompts_may_be_messages),
        cmocka_unit_test(a_prompt_samples_as_it_says),
        cmocka_unit_test(bad_requests_name_their_field),
        cmocka_unit_test(openai_requests_are_taken),
        cmocka_unit_test(openai_fields_that_ask_for_more_are_refused),
        cmocka_unit_test(bad_fields_of_all_formats_are_named),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
