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

static void expect_row(const fkv_record *r, const fkv_answer *a, bool with_ids, const char *want)
{
    fkv_buf out = {0};
    fkv_err err = {0};
    assert_int_equal(fkv_row_write(r, a, with_ids, &out, &err), FKV_OK);
    assert_string_equal(out.data, want);
    json_t *v = json_loadb(out.data, out.len, JSON_DECODE_INT_AS_REAL, NULL);
    assert_true(json_is_object(v));
    json_decref(v);
    fkv_buf_free(&out);
}

#define HEAD                                                                                                 \
    "{\"id\":\"id-1\",\"source\":{\"archive\":\"data/a.zip\",\"member\":\"qa.jsonl\",\"line\":7},"           \
    "\"dataset\":\"qa\",\"fields\":{\"answers\":[\"x\"],\"n\":12345678901234567890},"

#define NO_ANSWER "\"text\":null,\"finish_reason\":null,\"usage\":null,"

static void an_answer_has_its_keys_in_order(void **state)
{
    (void)state;
    fkv_record r = make_record();
    const int32_t ids[] = {1, 0, 42};
    fkv_answer a = {"He said \"\xc3\xa9\n\"\x01", 14, "stop", 100, 3, 0, 64, ids};
    expect_row(&r, &a, false,
               HEAD "\"text\":\"He said \\\"\xc3\xa9\\n\\\"\\u0001\",\"finish_reason\":\"stop\","
                    "\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":3,\"truncated_tokens\":0,"
                    "\"kept_tokens\":64},\"error\":null}\n");
    a = (fkv_answer){"", 0, "length", 100, 3, 9, 91, ids};
    expect_row(&r, &a, true,
               HEAD "\"text\":\"\",\"finish_reason\":\"length\",\"usage\":{\"prompt_tokens\":100,"
                    "\"completion_tokens\":3,\"truncated_tokens\":9,\"kept_tokens\":91},"
                    "\"ids\":[1,0,42],\"error\":null}\n");
    a = (fkv_answer){"", 0, "stop", 1, 0, 0, -1, ids};
    expect_row(&r, &a, true,
               HEAD "\"text\":\"\",\"finish_reason\":\"stop\",\"usage\":{\"prompt_tokens\":1,"
                    "\"completion_tokens\":0,\"truncated_tokens\":0},\"ids\":[],\"error\":null}\n");
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
    expect_row(&r, NULL, false,
               HEAD NO_ANSWER
               "\"error\":{\"code\":\"bad_json\",\"message\":\"line 1: \\\"}\\\" expected\"}}\n");
    r.error_code[0] = '\0';
    assert_int_equal(fkv_row_write(&r, NULL, false, &out, &err), FKV_E_SYSTEM);
    fkv_buf_free(&out);
    free_record(&r);
}

/* The keys of a row, one after the other. */
static void keys_of(const fkv_record *r, const fkv_answer *a, bool with_ids, char *keys, size_t size)
{
    fkv_buf out = {0};
    fkv_err err = {0};
    const char *key;
    json_t *value;
    size_t n = 0;
    assert_int_equal(fkv_row_write(r, a, with_ids, &out, &err), FKV_OK);
    json_t *row = json_loadb(out.data, out.len, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, NULL);
    assert_non_null(row);
    json_object_foreach(row, key, value) n += (size_t)snprintf(keys + n, size - n, "%s ", key);
    json_decref(row);
    fkv_buf_free(&out);
}

static void rows_with_and_without_an_error_have_the_same_keys(void **state)
{
    (void)state;
    fkv_record good = make_record(), bad = {.error_code = "x"}, late = make_record();
    const int32_t ids[] = {1};
    const fkv_answer a = {"t", 1, "stop", 1, 1, 0, 1, ids}, cut = {"t", 1, "length", 1, 1, 5, 1, ids};
    strcpy(late.error_code, "bad_logits");
    for (int with_ids = 0; with_ids < 2; with_ids++) {
        char want[200], got[200];
        snprintf(want, sizeof want, "id source dataset fields text finish_reason usage %serror ",
                 with_ids ? "ids " : "");
        keys_of(&good, &a, with_ids, got, sizeof got);
        assert_string_equal(got, want);
        keys_of(&good, &cut, with_ids, got, sizeof got);
        assert_string_equal(got, want);
        keys_of(&bad, NULL, with_ids, got, sizeof got);
        assert_string_equal(got, want);
        keys_of(&late, &a, with_ids, got, sizeof got);
        assert_string_equal(got, want);
    }
    free_record(&good);
    free_record(&late);
}

static void a_record_that_was_never_filled_is_still_a_row(void **state)
{
    (void)state;
    fkv_record r = {.error_code = "x"};
    expect_row(&r, NULL, true,
               "{\"id\":null,\"source\":{\"archive\":\"\",\"member\":\"\",\"line\":0},\"dataset\":null,"
               "\"fields\":{},\"text\":null,\"finish_reason\":null,\"usage\":null,\"ids\":null,"
               "\"error\":{\"code\":\"x\",\"message\":\"\"}}\n");
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
        assert_int_equal(fkv_row_write(&r, NULL, false, &out, &err), FKV_OK);
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
    expect_row(&r, NULL, false,
               "{\"id\":[1, 2],\"source\":{\"archive\":\"\",\"member\":\"\",\"line\":0},\"dataset\":null,"
               "\"fields\":{\"a\": 1,  \"b\":\"\\r\\n\"}," NO_ANSWER
               "\"error\":{\"code\":\"x\",\"message\":\"\"}}\n");
    free_record(&r);
}

static void a_null_error_is_none(void **state)
{
    (void)state;
    const fkv_span missing = {0}, null = {"null", 4}, object = {"{}", 2}, string = {"\"null\"", 6};
    assert_false(fkv_row_has(&missing) || fkv_row_has(&null));
    assert_true(fkv_row_has(&object) && fkv_row_has(&string));
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
        cmocka_unit_test(rows_with_and_without_an_error_have_the_same_keys),
        cmocka_unit_test(a_null_error_is_none),
        cmocka_unit_test(a_record_that_was_never_filled_is_still_a_row),
        cmocka_unit_test(bytes_that_are_no_utf8_become_replacement_characters),
        cmocka_unit_test(a_row_is_one_line_whatever_passes_through),
        cmocka_unit_test(members_are_found_as_they_were_written),
        cmocka_unit_test(what_is_no_object_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
