/* Finding members against jansson: what is a JSON object for jansson (which passes
 * over a NUL behind a number) is one for fkv_row_members, with the same members, and every line that
 * export makes of it is one too. Any text is a file's name for export. The first byte is not part
 * of it: it says which of some keys is looked for. */
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/export_files.h"
#include "jobs/export_row.h"
#include "jobs/row.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

/* classes: what an error row gets that has none. */
static void check_lines(const char *text, size_t n)
{
    static const fkv_export_format formats[] = {FKV_EXPORT_LONGBENCH, FKV_EXPORT_RULER, FKV_EXPORT_OPENAI};
    static const char classes[] = "[\"a\",{}]";
    fkv_export_row row = {.text = text, .n = n, .where = "shard", .at = 1, .ordinal = 7};
    fkv_buf line = {0};
    fkv_err ignored = {0};
    for (size_t i = 0; i < sizeof formats / sizeof *formats && !fkv_export_row_read(&row, &ignored); i++) {
        fkv_err err = {0};
        fkv_buf_clear(&line);
        if (fkv_export_line_make(formats[i], &row, (fkv_span){classes, sizeof classes - 1}, &line, &err))
            continue;
        json_t *made = json_loadb(line.data, line.len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
        check(json_is_object(made), "an exported line is no JSON object");
        check(formats[i] != FKV_EXPORT_LONGBENCH || json_is_number(json_object_get(made, "length")),
              "a length that eval.py can't compare");
        json_decref(made);
    }
    fkv_buf_free(&line);
}

/* Any bytes are the name of a file, and the same ones of one. */
static void check_name(const char *text, size_t n)
{
    fkv_buf name = {0};
    fkv_err err = {0};
    for (int no_dots = 0; no_dots < 2; no_dots++) {
        fkv_buf_clear(&name);
        check(fkv_export_name(&name, text, n, no_dots, &err) == FKV_OK, "no name");
        check(name.len > 0 && name.len <= 240 && strlen(name.data) == name.len, "a name's length");
        check(!strchr(name.data, '/') && name.data[0] != '.' && !(no_dots && strchr(name.data, '.')),
              "a name that is a path");
    }
    fkv_buf_free(&name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const known[] = {"id", "error", "a", ""};
    const size_t flags = JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL;
    if (size < 1) return 0;
    const char *const keys[] = {known[data[0] & 3]};
    const size_t n = size - 1;
    char *text = malloc(n ? n : 1); /* of its own, so that reading beyond its end is seen */
    if (!text) return 0;
    memcpy(text, data + 1, n);
    fkv_span value;
    fkv_err err = {0};
    fkv_buf out = {0};
    const fkv_status st = fkv_row_members(text, n, keys, &value, 1, &err);
    json_t *whole = memchr(text, 0, n) ? NULL : json_loadb(text, n, flags, NULL);
    if (json_is_object(whole)) {
        check(st == FKV_OK, "a JSON object is refused");
        json_t *want = json_object_getn(whole, keys[0], strlen(keys[0]));
        check(!want == !value.p, "a member is there for one and not for the other");
        json_t *got = value.p ? json_loadb(value.p, value.n, flags | JSON_DECODE_ANY, NULL) : NULL;
        check(!want || json_equal(want, got), "another value");
        json_decref(got);
        check_lines(text, n);
    }
    json_decref(whole);
    check_name(text, n);
    check(fkv_row_put_text(&out, text, n, &err) == FKV_OK, "put_text");
    json_t *string = json_loadb(out.data, out.len, flags | JSON_DECODE_ANY, NULL);
    check(json_is_string(string), "not a JSON string");
    json_decref(string);
    fkv_buf_free(&out);
    free(text);
    return 0;
}
