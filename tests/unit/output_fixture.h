/* A job and an output folder of its own for the tests of jobs/output.h. */
#ifndef FKV_TESTS_OUTPUT_FIXTURE_H
#define FKV_TESTS_OUTPUT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "jobs/output.h"
#include "jobs/shard.h"
#include "runner/base/file.h"
#include "runner/base/log.h"

enum { N_RECORDS = 45, PER_SHARD = 8 };

typedef struct fixture {
    char dir[256]; /* holds job.ini, in.jsonl, out/ */
    char out[300];
} fixture;

static inline int remove_one(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
    (void)sb;
    (void)type;
    (void)ftw;
    return remove(path);
}

static inline void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static inline int fixture_up(void **state)
{
    fixture *x = calloc(1, sizeof *x);
    const char *tmp = getenv("TMPDIR");
    char path[400], text[2000];
    fkv_log_set_stderr(false);
    /* Memory where there is some: thousands of fsyncs are no part of what is tested. */
    if (!tmp || !tmp[0]) tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(x->dir, sizeof x->dir, "%s/fkv-output-XXXXXX", tmp);
    if (!mkdtemp(x->dir)) return -1;
    snprintf(x->out, sizeof x->out, "%s/out", x->dir);
    snprintf(path, sizeof path, "%s/in.jsonl", x->dir);
    write_text(path, "{\"id\":1,\"prompt\":\"x\"}\n");
    snprintf(path, sizeof path, "%s/job.ini", x->dir);
    snprintf(text, sizeof text,
             "[job]\nname = test\noutput = out\n[input]\narchives = in.jsonl\nmembers = *\nformat = prompt\n"
             "[model]\npath = %s/data/needle-tiny\n[output]\nrecords_per_shard = %d\n",
             FKV_TEST_DIR, PER_SHARD);
    write_text(path, text);
    *state = x;
    return 0;
}

static inline int fixture_down(void **state)
{
    fixture *x = *state;
    remove_tree(x->dir);
    free(x);
    return 0;
}

/* The fixture's job with overrides ("section.key=value"), NULL at the end. */
static inline fkv_job *make_job(const fixture *x, ...)
{
    const char *overrides[8];
    size_t n = 0;
    char path[400];
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    va_list ap;
    va_start(ap, x);
    for (const char *o; n < 8 && (o = va_arg(ap, const char *));) overrides[n++] = o;
    va_end(ap);
    snprintf(path, sizeof path, "%s/job.ini", x->dir);
    if (fkv_job_parse(path, overrides, n, &job, &errs)) {
        char text[2048];
        fkv_err_format(&errs.at[0], text, sizeof text);
        fail_msg("%s", text);
    }
    fkv_errs_free(&errs);
    return job;
}

static inline fkv_output *must_open(const fkv_job *job)
{
    fkv_err err = {0};
    fkv_output *o = NULL;
    if (fkv_output_open(job, NULL, &o, &err)) fail_msg("open: %s: %s: %s", err.file, err.key, err.message);
    return o;
}

/* Opening fails with st and a message that holds every one of the words. */
static inline void must_refuse(const fkv_job *job, fkv_status st, const char *word1, const char *word2)
{
    fkv_err err = {0};
    char text[2048];
    fkv_output *o = (fkv_output *)(void *)1;
    assert_int_equal(fkv_output_open(job, NULL, &o, &err), st);
    assert_null(o);
    fkv_err_format(&err, text, sizeof text);
    if (!strstr(text, word1) || !strstr(text, word2)) fail_msg("\"%s\" lacks %s or %s", text, word1, word2);
}

static inline bool is_error_row(int64_t ordinal)
{
    return ordinal % 11 == 5;
}

/* Rows of many lengths, the same for an ordinal every time. */
static inline size_t make_row(int64_t ordinal, char *out, size_t size)
{
    char text[400];
    const long long i = ordinal;
    const size_t n = (size_t)(ordinal * 37 % 300);
    for (size_t k = 0; k < n; k++) text[k] = (char)('a' + (ordinal * 7 + (int64_t)k * (int64_t)k) % 26);
    text[n] = '\0';
    const int len = is_error_row(ordinal)
                        ? snprintf(out, size,
                                   "{\"id\":%lld,\"dataset\":\"d%lld\",\"fields\":{},\"text\":null,"
                                   "\"error\":{\"code\":\"x\"}}\n",
                                   i, i % 3)
                        : snprintf(out, size,
                                   "{\"id\":%lld,\"dataset\":\"d%lld\",\"fields\":{\"answers\":[\"%lld\"],"
                                   "\"length\":1e2},\"text\":\"%s\",\"error\":null}\n",
                                   i, i % 3, i, text);
    return (size_t)len;
}

static inline void add(fkv_output *o, int64_t ordinal)
{
    char row[1000];
    fkv_err err = {0};
    const size_t n = make_row(ordinal, row, sizeof row);
    if (fkv_output_add(o, ordinal, row, n, is_error_row(ordinal), 10, 2, &err))
        fail_msg("add %lld: %s: %s", (long long)ordinal, err.file, err.message);
}

static inline void add_needed(fkv_output *o, int64_t n_records)
{
    for (int64_t i = 0; i < n_records; i++) {
        if (fkv_output_needs(o, i)) add(o, i);
    }
}

static inline void finish(fkv_output *o, int64_t n_records)
{
    fkv_err err = {0};
    if (fkv_output_finish(o, n_records, &err)) fail_msg("finish: %s: %s", err.file, err.message);
}

/* All shards' files, one after the other, each with its index. */
static inline void read_shards(const char *out, fkv_buf *bytes)
{
    fkv_err err = {0};
    fkv_buf_clear(bytes);
    for (int64_t j = 0; j < 1000; j++) {
        char name[FKV_SHARD_NAME_SIZE], path[400];
        fkv_shard_name(j, name);
        snprintf(path, sizeof path, "%s/%s", out, name);
        if (!fkv_file_exists(path)) continue;
        fkv_buf_printf(bytes, &err, "%lld:", (long long)j);
        assert_int_equal(fkv_file_read(path, 1 << 30, bytes, &err), FKV_OK);
    }
}

static inline void same_shards(const char *out, const fkv_buf *want)
{
    fkv_buf got = {0};
    read_shards(out, &got);
    assert_int_equal(got.len, want->len);
    assert_memory_equal(got.data, want->data, want->len);
    fkv_buf_free(&got);
}

static inline int64_t size_of(const char *out, const char *file)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", out, file);
    return fkv_file_size(path);
}

/* What one uninterrupted run writes, in a folder of its own. */
static inline void reference(const fixture *x, int64_t n_records, fkv_buf *bytes)
{
    char set[400], out[320];
    snprintf(out, sizeof out, "%s/reference", x->dir);
    snprintf(set, sizeof set, "job.output=%s", out);
    fkv_job *job = make_job(x, set, NULL);
    fkv_output *o = must_open(job);
    add_needed(o, n_records);
    finish(o, n_records);
    fkv_output_close(o);
    fkv_job_free(job);
    read_shards(out, bytes);
}

static inline fkv_output_totals totals_of(fkv_output *o)
{
    fkv_output_totals t;
    fkv_output_totals_get(o, &t);
    return t;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, fixture_up, fixture_down)

#endif
