/* Rows: their exact text, and finding members in them again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/row.h"

static fkv_buf buf_of(const char *text)
{
    fkv_buf b = {0};
    fkv_err err = {0};
    assert_int_equal(fkv_buf_puts(&b, text, &err), FKV_OK);
    return b;
}

static fkv_record make_record(void)
{
    return (fkv_record){.archive = "data/a.zip",
                        .member = "qa.jsonl",
                        .line = 7,
                        .id_json = buf_of("\"id-1\""),
                        .dataset = buf_of("qa"),
                        .fields = buf_of("{\"answers\":[\"x\"],\"n\":12345678901234567890}")};
}

static void free_record(fkv_record *r)
{
    fkv_buf_free(&r->id_json);
    fkv_buf_free(&r->dataset);
    fkv_buf_free(&r->fields);
}

static void expect_row(const fkv_record *r, const fkv_answer *a, const char *want)
{
    fkv_buf out = {0};
    fkv_err err = {0};
    assert_int_equal(fkv_row_write(r, a, &out, &err), FKV_OK);
    assert_string_equal(out.data, want);
    json_t *v = json_loadb(out.data, out.len, JSON_DECODE_INT_AS_REAL, NULL);
    assert_true(json_is_object(v));
    json_decref(v);
    fkv_buf_free(&out);
}

#define HEAD                                                                                                 \
    "{\"id\":\"id-1\",\"source\":{\"archive\":\"data/a.zip\",\"member\":\"qa.jsonl\",\"line\":7},"           \
    "\"dataset\":\"qa\",\"fields\":{\"answers\":[\"x\"],\"n\":12345678901234567890},"

static void an_answer_has_its_keys_in_order(void **state)
{
    (void)state;
    fkv_record r = make_record();
    const int32_t ids[] = {1, 0, 42};
    fkv_answer a = {"He said \"\xc3\xa9\n\"\x01", 14, "stop", 100, 3, 0, NULL};
    expect_row(&r, &a,
               HEAD "\"text\":\"He said \\\"\xc3\xa9\\n\\\"\\u0001\",\"finish_reason\":\"stop\","
                    "\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":3}}\n");
    a = (fkv_answer){"", 0, "length", 100, 3, 9, ids};
    expect_row(&r, &a,
               HEAD "\"text\":\"\",\"finish_reason\":\"length\",\"usage\":{\"prompt_tokens\":100,"
                    "\"completion_tokens\":3},\"truncated_tokens\":9,\"ids\":[1,0,42]}\n");
    a = (fkv_answer){"", 0, "stop", 1, 0, 0, ids};
    expect_row(&r, &a,
               HEAD "\"text\":\"\",\"finish_reason\":\"stop\",\"usage\":{\"prompt_tokens\":1,"
                    "\"completion_tokens\":0},\"ids\":[]}\n");
    free_record(&r);
}

static void an_error_row_needs_no_answer(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_buf out = {0};
    fkv_record r = make_record();
    strcpy(r.error_code, "bad_json");
    strcpy(r.error_message, "line 1: \"}\" expected");
    expect_row(&r, NULL,
               HEAD "\"error\":{\"code\":\"bad_json\",\"message\":\"line 1: \\\"}\\\" expected\"}}\n");
    r.error_code[0] = '\0';
    assert_int_equal(fkv_row_write(&r, NULL, &out, &err), FKV_E_SYSTEM);
    fkv_buf_free(&out);
    free_record(&r);
}

static void a_record_that_was_never_filled_is_still_a_row(void **state)
{
    (void)state;
    fkv_record r = {.error_code = "x"};
    expect_row(&r, NULL,
               "{\"id\":null,\"source\":{\"archive\":\"\",\"member\":\"\",\"line\":0},\"dataset\":null,"
               "\"fields\":{},\"error\":{\"code\":\"x\",\"message\":\"\"}}\n");
}

static void bytes_that_are_no_utf8_become_replacement_characters(void **state)
{
    (void)state;
    static const char *const bad[] = {"\xff",     "\x80",    "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                      "\xc0\xaf", "\xe2\x82"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char name[32];
        snprintf(name, sizeof name, "a%sb", bad[i]);
        fkv_record r = {.archive = name, .member = name, .error_code = "x"};
        strcpy(r.error_message, name);
        fkv_buf out = {0};
        fkv_err err = {0};
        assert_int_equal(fkv_row_write(&r, NULL, &out, &err), FKV_OK);
        json_t *v = json_loadb(out.data, out.len, 0, NULL); /* refuses what is not UTF-8 */
        assert_true(json_is_object(v));
        const char *member = json_string_value(json_object_get(json_object_get(v, "source"), "member"));
        assert_memory_equal(member, "a\xef\xbf\xbd", 4);
        assert_int_equal(member[strlen(member) - 1], 'b');
        json_decref(v);
        fkv_buf_free(&out);
    }
}

static void a_row_is_one_line_whatever_passes_through(void **state)
{
    (void)state;
    fkv_record r = {.id_json = buf_of("[1,\r2]"),
                    .fields = buf_of("{\"a\":\n1,\r\n\"b\":\"\\r\\n\"}"),
                    .error_code = "x"};
    expect_row(&r, NULL,
               "{\"id\":[1, 2],\"source\":{\"archive\":\"\",\"member\":\"\",\"line\":0},\"dataset\":null,"
               "\"fields\":{\"a\": 1,  \"b\":\"\\r\\n\"},\"error\":{\"code\":\"x\",\"message\":\"\"}}\n");
    free_record(&r);
}

static void expect_member(const char *object, const char *key, const char *want)
{
    fkv_span v;
    fkv_err err = {0};
    const char *const keys[] = {key};
    assert_int_equal(fkv_row_members(object, strlen(object), keys, &v, 1, &err), FKV_OK);
    if (!want) {
        assert_null(v.p);
        return;
    }
    assert_non_null(v.p);
    assert_int_equal(v.n, strlen(want));
    assert_memory_equal(v.p, want, v.n);
}

static void members_are_found_as_they_were_written(void **state)
{
    (void)state;
    const char *o =
        " {\"a\" : 1.50e+3 , \"b\":{\"a\":[2,\"}\"]},\"c\":\"\\\"]\\\\\",\"d\":[ ], \"\\u0065\":null,"
        "\"f\":true,\"f\":false} \n";
    expect_member(o, "a", "1.50e+3");
    expect_member(o, "b", "{\"a\":[2,\"}\"]}");
    expect_member(o, "c", "\"\\\"]\\\\\"");
    expect_member(o, "d", "[ ]");
    expect_member(o, "e", "null");
    expect_member(o, "f", "false");
    expect_member(o, "", NULL);
    expect_member(o, "\\u0065", NULL);
    expect_member("{}", "a", NULL);
    expect_member("{\"\":1}", "", "1");
}

static void what_is_no_object_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",           "[]",         "null",       "{",           "{\"a\"}",        "{\"a\":}",
        "{a:1}",      "{\"a\":1,}", "{\"a\":1}x", "{\"a\":[}]}", "{\"a\":\"\\\"}", "{\"a\":1 2}",
        "{\"a\":[1}", "{\"a\":{]}", "{}{}"};
    const char *const keys[] = {"a"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fkv_span v;
        fkv_err err = {0};
        assert_int_equal(fkv_row_members(bad[i], strlen(bad[i]), keys, &v, 1, &err), FKV_E_INPUT);
    }
    char deep[2 * 2100 + 16] = "{\"a\":";
    for (int depth = 2048; depth <= 2049; depth++) {
        fkv_span v;
        fkv_err err = {0};
        memset(deep + 5, '[', (size_t)depth);
        memset(deep + 5 + depth, ']', (size_t)depth);
        strcpy(deep + 5 + 2 * depth, "}");
        assert_int_equal(fkv_row_members(deep, strlen(deep), keys, &v, 1, &err),
                         depth == 2048 ? FKV_OK : FKV_E_INPUT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_has_its_keys_in_order),
        cmocka_unit_test(an_error_row_needs_no_answer),
        cmocka_unit_test(a_record_that_was_never_filled_is_still_a_row),
        cmocka_unit_test(bytes_that_are_no_utf8_become_replacement_characters),
        cmocka_unit_test(a_row_is_one_line_whatever_passes_through),
        cmocka_unit_test(members_are_found_as_they_were_written),
        cmocka_unit_test(what_is_no_object_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
