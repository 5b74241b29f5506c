/* runner/base/utf8.h: what a terminal is shown of a text from outside. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runner/base/utf8.h"

static void shows(const char *text, const char *want)
{
    char out[256];
    fkv_utf8_show(text, out, sizeof out);
    assert_string_equal(out, want);
}

static void a_text_from_outside_can_not_move_the_cursor(void **state)
{
    (void)state;
    shows("plain text, \xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80",
          "plain text, \xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80");
    shows("\x1b[2J\r\n\ta", "\\x1b[2J\\x0d\\x0a\\x09a");
    shows("del \x7f", "del \\x7f");
    shows("C1 \xc2\x9b"
          "2J",
          "C1 \\xc2\\x9b2J");
    shows("\xe2\x80\xae"
          "lsnoj",
          "\\xe2\\x80\\xaelsnoj"); /* right to left from here on */
    shows("\xe2\x81\xa6 \xe2\x80\xa8 \xd8\x9c \xef\xbb\xbf",
          "\\xe2\\x81\\xa6 \\xe2\\x80\\xa8 \\xd8\\x9c \\xef\\xbb\\xbf");
    shows("bad \xff\xc3", "bad \\xff\\xc3");
}

static void what_is_cut_ends_at_a_character(void **state)
{
    char out[8];
    (void)state;
    fkv_utf8_show("12345\xe4\xb8\xad", out, sizeof out);
    assert_string_equal(out, "12345");
    fkv_utf8_show("1234\xe4\xb8\xad", out, sizeof out);
    assert_string_equal(out, "1234\xe4\xb8\xad");
    fkv_utf8_show("1234\x1b", out, sizeof out);
    assert_string_equal(out, "1234");
    fkv_utf8_show("x", out, 1);
    assert_string_equal(out, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_text_from_outside_can_not_move_the_cursor),
        cmocka_unit_test(what_is_cut_ends_at_a_character),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
