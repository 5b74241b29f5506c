/* A folder with archives that libarchive makes, a job over them, and what is read of them. */
#ifndef FKV_TESTS_ARCHIVE_FIXTURE_H
#define FKV_TESTS_ARCHIVE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <archive.h>
#include <archive_entry.h>
#include <cmocka.h>

#include "jobs/archive.h"
#include "runner/base/file.h"
#include "runner/base/log.h"

typedef struct member {
    const char *name;
    const char *text;
    size_t n; /* 0: strlen */
} member;

static char dir[256];

static int make_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");
    (void)state;
    fkv_log_set_stderr(false);
    snprintf(dir, sizeof dir, "%s/fkv-archive-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    char command[400];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static void path_of(const char *name, char path[600])
{
    snprintf(path, 600, "%s/%s", dir, name);
}

static void put_bytes(const char *name, const void *bytes, size_t n)
{
    char path[600];
    path_of(name, path);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void put(const char *name, const char *text)
{
    put_bytes(name, text, strlen(text));
}

/* An archive with a folder and these members; format "raw" has one. */
static void pack(const char *name, const char *format, const char *filter, const char *options,
                 const member *members, size_t n)
{
    char path[600];
    path_of(name, path);
    struct archive *a = archive_write_new();
    assert_int_equal(archive_write_set_format_by_name(a, format), ARCHIVE_OK);
    if (filter) assert_int_equal(archive_write_add_filter_by_name(a, filter), ARCHIVE_OK);
    if (options) assert_int_equal(archive_write_set_options(a, options), ARCHIVE_OK);
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    struct archive_entry *e = archive_entry_new();
    if (strcmp(format, "raw") != 0) {
        archive_entry_set_pathname(e, "folder.jsonl");
        archive_entry_set_filetype(e, AE_IFDIR);
        archive_entry_set_perm(e, 0755);
        assert_true(archive_write_header(a, e) >= ARCHIVE_WARN);
    }
    for (size_t i = 0; i < n; i++) {
        const size_t size = members[i].n ? members[i].n : strlen(members[i].text);
        archive_entry_clear(e);
        archive_entry_set_pathname(e, members[i].name);
        archive_entry_set_filetype(e, AE_IFREG);
        archive_entry_set_perm(e, 0644);
        archive_entry_set_size(e, (int64_t)size);
        assert_true(archive_write_header(a, e) >= ARCHIVE_WARN);
        assert_int_equal(archive_write_data(a, members[i].text, size), size);
    }
    archive_entry_free(e);
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
}

/* Cuts a file to its first n bytes, or by -n at the end. */
static void cut(const char *from, const char *to, int64_t n)
{
    char path[600];
    fkv_buf bytes = {0};
    path_of(from, path);
    assert_int_equal(fkv_file_read(path, 1 << 28, &bytes, NULL), FKV_OK);
    put_bytes(to, bytes.data, n >= 0 ? (size_t)n : bytes.len - (size_t)-n);
    fkv_buf_free(&bytes);
}

static fkv_job *make_job(const char *archives, const char *override, const char *more)
{
    char text[1000], path[600];
    const char *overrides[] = {override, more};
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    snprintf(
        text, sizeof text,
        "[job]\nname = t\noutput = o\n[input]\narchives = %s\nmax_record_bytes = 1K\n[model]\npath = m\n",
        archives);
    put("job.ini", text);
    path_of("job.ini", path);
    assert_int_equal(fkv_job_parse(path, overrides, more ? 2 : override ? 1 : 0, &job, &errs), FKV_OK);
    fkv_errs_free(&errs);
    return job;
}

/* All records as "archive|member|line|text" or "...|!code" lines. */
static char *read_job(fkv_job *job)
{
    fkv_reader *reader = NULL;
    fkv_errs errs = {0};
    fkv_err err = {0};
    fkv_buf out = {0};
    fkv_line line;
    fkv_status st;
    int64_t n = 0, done, total;
    assert_int_equal(fkv_reader_open(job, &reader, &errs), FKV_OK);
    assert_int_equal(fkv_buf_reserve(&out, 0, NULL), FKV_OK);
    while (!(st = fkv_reader_next(reader, &line, &err))) {
        assert_int_equal(line.ordinal, n++);
        fkv_buf_printf(&out, NULL, "%s|%s|%lld|", line.archive, line.member, (long long)line.line);
        if (line.error_code) {
            assert_null(line.text);
            assert_true(line.error_message && *line.error_message);
            fkv_buf_printf(&out, NULL, "!%s\n", line.error_code);
        } else {
            fkv_buf_append(&out, line.text, line.n, NULL);
            for (char *nul; (nul = memchr(out.data, '\0', out.len));) *nul = '?';
            fkv_buf_puts(&out, "\n", NULL);
        }
    }
    assert_int_equal(st, FKV_END);
    assert_int_equal(err.status, FKV_OK);
    assert_int_equal(fkv_reader_next(reader, &line, &err), FKV_END);
    fkv_reader_progress(reader, &done, &total);
    assert_true(done >= 0 && done <= total);
    fkv_reader_close(reader);
    fkv_job_free(job);
    return out.data;
}

static void expect(const char *archives, const char *override, const char *want)
{
    char *got = read_job(make_job(archives, override, NULL));
    assert_string_equal(got, want);
    free(got);
}

/* What is read of one file; NULL where opening refuses it. */
static char *read_or_refuse(const char *name)
{
    fkv_reader *reader = NULL;
    fkv_errs errs = {0};
    fkv_job *job = make_job(name, NULL, NULL);
    const fkv_status st = fkv_reader_open(job, &reader, &errs);
    fkv_reader_close(reader);
    fkv_errs_free(&errs);
    if (!st) return read_job(job);
    fkv_job_free(job);
    return NULL;
}

static void append_file(fkv_buf *bytes, const char *name)
{
    fkv_buf one = {0};
    char path[600];
    path_of(name, path);
    assert_int_equal(fkv_file_read(path, 1 << 20, &one, NULL), FKV_OK);
    assert_int_equal(fkv_buf_append(bytes, one.data, one.len, NULL), FKV_OK);
    fkv_buf_free(&one);
}

#endif
