/* A folder of its own with job files in it, for the tests of jobs/job.h. */
#ifndef FKV_TESTS_JOB_FIXTURE_H
#define FKV_TESTS_JOB_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "jobs/job.h"
#include "jobs/job_keys.h"
#include "runner/base/file.h"

#define HEAD "[job]\nname = t\noutput = out\n[input]\narchives = a.jsonl\n[model]\npath = model\n"

static char dir[256], job_path[300];

static inline void put_file(const char *name, const void *text, size_t n)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void put(const char *name, const char *text)
{
    put_file(name, text, strlen(text));
}

/* The path of a file in the test's folder, the caller's to free. */
static inline char *in_dir(const char *name)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return strdup(path);
}

static inline int make_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");
    (void)state;
    snprintf(dir, sizeof dir, "%s/fkv-job-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) return -1;
    snprintf(job_path, sizeof job_path, "%s/job.ini", dir);
    put("a.jsonl", "{}\n");
    return 0;
}

static inline int remove_dir(void **state)
{
    char command[400];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

/* Parses text as the job file with up to three overrides. */
static inline fkv_status parse(const char *text, const char *a, const char *b, const char *c, fkv_job **job,
                               fkv_errs *errs)
{
    const char *overrides[] = {a, b, c};
    const size_t n = a ? b ? c ? 3 : 2 : 1 : 0;
    put("job.ini", text);
    return fkv_job_parse(job_path, overrides, n, job, errs);
}

static inline fkv_job *parse_ok(const char *text, const char *override)
{
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    const fkv_status st = parse(text, override, NULL, NULL, &job, &errs);
    if (st) {
        char message[2048];
        fkv_err_format(&errs.at[0], message, sizeof message);
        print_error("%s\n", message);
    }
    assert_int_equal(st, FKV_OK);
    assert_int_equal(errs.n, 0);
    fkv_errs_free(&errs);
    return job;
}

#endif
