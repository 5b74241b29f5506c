/* The log: what standard error and the file get of a line, by level and style. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "runner/base/buf.h"
#include "runner/base/file.h"
#include "runner/base/log.h"

static char err_path[] = "/tmp/fkv-log-err-XXXXXX", log_path[] = "/tmp/fkv-log-file-XXXXXX";
static int saved = -1;

static void must_read(const char *path, fkv_buf *text)
{
    fkv_err err = {0};
    fkv_buf_clear(text);
    assert_int_equal(fkv_file_read(path, 1 << 20, text, &err), FKV_OK);
    assert_int_equal(fkv_buf_puts(text, "", &err), FKV_OK);
}

static int up(void **state)
{
    fkv_err err = {0};
    (void)state;
    strcpy(err_path + sizeof err_path - 7, "XXXXXX");
    strcpy(log_path + sizeof log_path - 7, "XXXXXX");
    const int to = mkstemp(err_path), file = mkstemp(log_path);
    if (to < 0 || file < 0) return -1;
    close(file);
    saved = dup(STDERR_FILENO);
    dup2(to, STDERR_FILENO);
    close(to);
    return fkv_log_open(log_path, &err) ? -1 : 0;
}

static int down(void **state)
{
    (void)state;
    fkv_log_close();
    fkv_log_set_style((fkv_log_style){.level = FKV_LOG_INFO});
    dup2(saved, STDERR_FILENO);
    close(saved);
    unlink(err_path);
    return unlink(log_path);
}

static void say_all(void)
{
    fkv_log_at(FKV_LOG_ERROR, "one %d", 1);
    fkv_log_at(FKV_LOG_WARNING, "two");
    fkv_log("three");
    fkv_log_progress("four", ",\"progress\":{}");
    fkv_log_at(FKV_LOG_DEBUG, "five");
}

static void levels_choose_what_is_said(void **state)
{
    static const char *const want[] = {"error: one 1\n", "error: one 1\nWARNING: two\n",
                                       "error: one 1\nWARNING: two\nthree\nfour\n",
                                       "error: one 1\nWARNING: two\nthree\nfour\nfive\n"};
    fkv_buf text = {0};
    (void)state;
    for (int i = 0; i < 4; i++) {
        assert_int_equal(ftruncate(STDERR_FILENO, 0), 0);
        lseek(STDERR_FILENO, 0, SEEK_SET);
        fkv_log_set_style((fkv_log_style){.level = (fkv_log_level)i});
        say_all();
        must_read(err_path, &text);
        assert_string_equal(text.data, want[i]);
    }
    /* The file has all but what only the last asked for. */
    must_read(log_path, &text);
    int lines = 0;
    for (const char *p = text.data; (p = strchr(p, '\n')); p++) lines++;
    assert_int_equal(lines, 3 * 4 + 5);
    assert_non_null(strstr(text.data, "Z error: one 1\n"));
    fkv_buf_free(&text);
}

static void json_is_one_object_a_line_whatever_the_text(void **state)
{
    fkv_buf text = {0};
    (void)state;
    fkv_log_set_style((fkv_log_style){.level = FKV_LOG_INFO, .json = true, .stamped = true});
    fkv_log("a \"b\" \\ \n \x1b \xff \xc3\xa9");
    fkv_log_progress("p", ",\"progress\":{\"done\":3}");
    char long_text[3000];
    memset(long_text, '"', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    fkv_log("%s", long_text);
    must_read(err_path, &text);
    char *line = text.data;
    for (int i = 0; i < 3; i++) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        json_t *o = json_loadb(line, (size_t)(end - line), JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(o);
        assert_string_equal(json_string_value(json_object_get(o, "level")), "info");
        const char *message = json_string_value(json_object_get(o, "message"));
        if (i == 0) assert_string_equal(message, "a \"b\" \\ \\x0a \\x1b \\xff \xc3\xa9");
        if (i == 1)
            assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "progress"), "done")), 3);
        json_decref(o);
        line = end + 1;
    }
    assert_string_equal(line, "");
    fkv_buf_free(&text);
}

static void nothing_is_redrawn_in_a_file(void **state)
{
    fkv_buf text = {0};
    (void)state;
    assert_false(fkv_log_redraws());
    fkv_log_redraw("12/40");
    fkv_log("said");
    fkv_log_redraw("");
    must_read(err_path, &text);
    assert_string_equal(text.data, "said\n");
    fkv_buf_free(&text);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, up, down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(levels_choose_what_is_said),
        TEST(json_is_one_object_a_line_whatever_the_text),
        TEST(nothing_is_redrawn_in_a_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
