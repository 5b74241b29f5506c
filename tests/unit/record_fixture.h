/* A folder with templates and limits, and a record parsed from text, for tests of records. */
#ifndef FKV_TESTS_RECORD_FIXTURE_H
#define FKV_TESTS_RECORD_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "jobs/record.h"
#include "runner/base/file.h"

static char dir[256], prompts_path[300], limits_path[300];
static fkv_record record;

static void put(const char *path, const char *text)
{
    assert_int_equal(fkv_file_replace(path, text, strlen(text), NULL), FKV_OK);
}

static int make_record_dir(const char *prompts, const char *limits)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/fkv-record-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) return -1;
    snprintf(prompts_path, sizeof prompts_path, "%s/prompts.json", dir);
    snprintf(limits_path, sizeof limits_path, "%s/limits.json", dir);
    put(prompts_path, prompts);
    put(limits_path, limits);
    return 0;
}

static int remove_dir(void **state)
{
    char command[400];
    (void)state;
    fkv_record_free(&record);
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static fkv_record_parser *open_parser_of(const fkv_job *job)
{
    fkv_errs errs = {0};
    fkv_record_parser *parser = NULL;
    assert_int_equal(fkv_record_parser_open(job, &parser, &errs), FKV_OK);
    return parser;
}

/* Into record; text is n bytes in memory of just that size, so that overreads show. */
static void parse_line(const fkv_job *job, const char *archive, const char *member, const char *text,
                       size_t n)
{
    fkv_err err = {0};
    fkv_record_parser *parser = open_parser_of(job);
    char *copy = malloc(n ? n : 1);
    memcpy(copy, text, n);
    const fkv_line line = {
        .ordinal = 3, .archive = archive, .member = member, .line = 9, .text = copy, .n = n};
    assert_int_equal(fkv_record_parse(parser, &line, &record, &err), FKV_OK);
    free(copy);
    fkv_record_parser_close(parser);
    assert_int_equal(record.ordinal, 3);
    assert_int_equal(record.line, 9);
    /* What goes into a row is always JSON and UTF-8. */
    json_t *id = json_loadb(record.id_json.data, record.id_json.len,
                            JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    json_t *fields = json_loadb(record.fields.data, record.fields.len,
                                JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL | JSON_REJECT_DUPLICATES, NULL);
    json_t *message = json_string(record.error_message);
    assert_non_null(id);
    assert_true(json_is_object(fields));
    assert_non_null(message);
    json_decref(id);
    json_decref(fields);
    json_decref(message);
}

static void assert_record_fine(void)
{
    if (record.error_code[0]) print_error("%s: %s\n", record.error_code, record.error_message);
    assert_string_equal(record.error_code, "");
}

static void assert_record_error(const char *text, const char *code, const char *word)
{
    if (strcmp(record.error_code, code) != 0 || !strstr(record.error_message, word))
        print_error("%s: %s: %s\n", text, record.error_code, record.error_message);
    assert_string_equal(record.error_code, code);
    assert_non_null(strstr(record.error_message, word));
}

#endif
