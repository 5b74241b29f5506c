/* JSON when memory runs out: read whole, written whole, or an error; never with bytes missing.
 *
 * The linker gives this program malloc as __wrap_malloc, which jansson gets too, through
 * runner/base/json.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runner/base/json.h"

/* Long enough for every buffer to grow. */
static const char text[] =
    "{\"first key\":\"a string that is longer than the sixteen bytes that a buffer begins with\","
    "\"second\":[1,2.5,true,false,null,-12345678901,{\"deep\":{\"deeper\":[\"\\u00e4\\u20ac\",\"x\"]}}],"
    "\"third, with a name of some length "
    "too\":{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"h\":8,"
    "\"i\":9,\"j\":10,\"k\":11,\"l\":12,\"m\":13,\"n\":14,\"o\":15,\"p\":16,\"q\":17}}";

static int calls, fail_at = -1; /* -1: never */

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_malloc(size_t n)
{
    return calls++ == fail_at ? NULL : __real_malloc(n);
}

static void fail_from_now(int at)
{
    calls = 0;
    fail_at = at;
}

static void json_is_read_whole_or_not_at_all(void **state)
{
    (void)state;
    json_error_t je;
    fail_from_now(-1);
    json_t *want = fkv_json_parse(text, sizeof text - 1, 0, &je);
    const int n = calls;
    assert_non_null(want);
    assert_true(n > 50);
    for (int at = 0; at < n; at++) {
        fail_from_now(at);
        json_t *got = fkv_json_parse(text, sizeof text - 1, 0, &je);
        fail_from_now(-1);
        assert_null(got);
        assert_int_equal(json_error_code(&je), json_error_out_of_memory);
        assert_string_equal(je.text, "out of memory");
    }
    fail_from_now(n);
    json_t *got = fkv_json_parse(text, sizeof text - 1, 0, &je);
    assert_true(json_equal(got, want));
    json_decref(got);
    json_decref(want);
}

static void what_is_wrong_stays_wrong(void **state)
{
    (void)state;
    json_error_t je;
    fail_from_now(-1);
    assert_null(fkv_json_parse("{\"a\":", 5, 0, &je));
    assert_int_not_equal(json_error_code(&je), json_error_out_of_memory);
    json_t *fine = fkv_json_parse("{}", 2, 0, &je);
    assert_non_null(fine);
    json_decref(fine);
}

static void json_is_written_whole_or_not_at_all(void **state)
{
    (void)state;
    json_error_t je;
    fail_from_now(-1);
    json_t *value = fkv_json_parse(text, sizeof text - 1, 0, &je);
    calls = 0;
    char *want = fkv_json_dump(value, JSON_COMPACT | JSON_SORT_KEYS);
    const int n = calls;
    assert_non_null(want);
    assert_true(n > 5);
    for (int at = 0; at <= n; at++) {
        fail_from_now(at);
        char *got = fkv_json_dump(value, JSON_COMPACT | JSON_SORT_KEYS);
        fail_from_now(-1);
        if (at < n)
            assert_null(got);
        else
            assert_string_equal(got, want);
        free(got);
    }
    free(want);
    json_decref(value);
}

static void a_file_is_no_bad_input_for_that(void **state)
{
    (void)state;
    char path[] = "/tmp/fkv-json-XXXXXX";
    json_t *value = NULL;
    fkv_err err = {0};
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, sizeof text - 1) == sizeof text - 1);
    close(fd);
    fail_from_now(-1);
    assert_int_equal(fkv_json_load(path, 1 << 20, &value, &err), FKV_OK);
    json_decref(value);
    const int n = calls;
    for (int at = 0; at < n; at++) {
        err = (fkv_err){0};
        fail_from_now(at);
        const fkv_status st = fkv_json_load(path, 1 << 20, &value, &err);
        fail_from_now(-1);
        assert_int_equal(st, FKV_E_SYSTEM);
        assert_string_equal(err.message, "out of memory");
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_is_read_whole_or_not_at_all),
        cmocka_unit_test(what_is_wrong_stays_wrong),
        cmocka_unit_test(json_is_written_whole_or_not_at_all),
        cmocka_unit_test(a_file_is_no_bad_input_for_that),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
