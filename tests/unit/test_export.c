/* export, stats.json and metrics.prom, over outputs that were really written. */
#include "output_fixture.h"

#include <dirent.h>
#include <jansson.h>

#include "jobs/export.h"
#include "jobs/stats.h"

static void make_output(const fixture *x, const char *part, int64_t n_records, bool done)
{
    fkv_job *job = make_job(x, part, NULL);
    fkv_output *o = must_open(job);
    add_needed(o, n_records);
    if (done) finish(o, n_records);
    fkv_output_close(o);
    fkv_job_free(job);
}

static fkv_status export_to(const fixture *x, fkv_export_format format, const char *dest,
                            fkv_export_counts *c, fkv_err *err)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", x->dir, dest);
    *err = (fkv_err){0};
    return fkv_export(x->out, format, path, c, err);
}

static void read_all(const fixture *x, const char *file, fkv_buf *out)
{
    char path[400];
    fkv_err err = {0};
    snprintf(path, sizeof path, "%s/%s", x->dir, file);
    fkv_buf_clear(out);
    if (fkv_file_read(path, 1 << 26, out, &err)) fail_msg("%s: %s", path, err.message);
}

static void expect_all_rows(const fixture *x, const char *file, int64_t n)
{
    fkv_buf got = {0};
    size_t at = 0;
    read_all(x, file, &got);
    for (int64_t i = 0; i < n; i++) {
        char row[1000];
        const size_t len = make_row(i, row, sizeof row);
        assert_true(at + len <= got.len);
        assert_memory_equal(got.data + at, row, len);
        at += len;
    }
    assert_int_equal(at, got.len);
    fkv_buf_free(&got);
}

static void jsonl_is_every_row_in_input_order(void **state)
{
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    make_output(x, NULL, N_RECORDS, true);
    assert_int_equal(export_to(x, FKV_EXPORT_JSONL, "deep/down/all.jsonl", &c, &err), FKV_OK);
    expect_all_rows(x, "deep/down/all.jsonl", N_RECORDS);
    assert_true(c.rows == N_RECORDS && c.errors == 4 && c.files == 1 && c.complete);
}

static void parts_are_exported_as_one(void **state)
{
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    make_output(x, "input.part=1/3", N_RECORDS, true);
    make_output(x, "input.part=0/3", N_RECORDS, true);
    assert_int_equal(export_to(x, FKV_EXPORT_JSONL, "all.jsonl", &c, &err), FKV_OK);
    assert_false(c.complete); /* part 2 is missing */
    make_output(x, "input.part=2/3", N_RECORDS, true);
    assert_int_equal(export_to(x, FKV_EXPORT_JSONL, "all.jsonl", &c, &err), FKV_OK);
    expect_all_rows(x, "all.jsonl", N_RECORDS);
    assert_true(c.complete);
}

static void an_unfinished_output_is_exported_as_far_as_it_goes(void **state)
{
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    make_output(x, NULL, 20, false); /* two shards; four rows still in the journal */
    assert_int_equal(export_to(x, FKV_EXPORT_JSONL, "all.jsonl", &c, &err), FKV_OK);
    expect_all_rows(x, "all.jsonl", 16);
    assert_true(c.rows == 16 && !c.complete);
}

static void longbench_has_a_file_for_each_dataset(void **state)
{
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    fkv_buf got = {0};
    make_output(x, NULL, N_RECORDS, true);
    for (int again = 0; again < 2; again++) { /* the second replaces the first's files */
        assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "pred", &c, &err), FKV_OK);
        assert_true(c.rows == N_RECORDS && c.errors == 4 && c.files == 3 && c.skipped == 0);
    }
    for (int64_t d = 0; d < 3; d++) {
        char file[64];
        snprintf(file, sizeof file, "pred/d%lld.jsonl", (long long)d);
        read_all(x, file, &got);
        char *line = got.data;
        for (int64_t i = d; i < N_RECORDS; i += 3) {
            char *end = strchr(line, '\n'), want[100];
            assert_non_null(end);
            if (is_error_row(i)) {
                snprintf(want, sizeof want,
                         "{\"pred\":\"\",\"answers\":[],\"all_classes\":null,\"length\":0,\"_id\":%lld}\n",
                         (long long)i);
                assert_memory_equal(line, want, strlen(want));
            } else {
                snprintf(want, sizeof want,
                         ",\"answers\":[\"%lld\"],\"all_classes\":null,\"length\":1e2,\"_id\":%lld}\n",
                         (long long)i, (long long)i);
                assert_memory_equal(end + 1 - strlen(want), want, strlen(want));
                assert_memory_equal(line, "{\"pred\":\"", 9);
            }
            line = end + 1;
        }
        assert_ptr_equal(line, got.data + got.len);
    }
    fkv_buf_free(&got);
}

/* Writes rows with these datasets' JSON texts. */
static void make_datasets(const fixture *x, int64_t n, const char *(*dataset)(int64_t i, char *buf))
{
    fkv_job *job = make_job(x, NULL);
    fkv_output *o = must_open(job);
    fkv_err err = {0};
    for (int64_t i = 0; i < n; i++) {
        char row[1000], name[600];
        snprintf(row, sizeof row, "{\"id\":%lld,\"dataset\":%s,\"fields\":{},\"text\":\"t%lld\"}\n",
                 (long long)i, dataset(i, name), (long long)i);
        assert_int_equal(fkv_output_add(o, i, row, strlen(row), false, 0, 0, &err), FKV_OK);
    }
    finish(o, n);
    fkv_output_close(o);
    fkv_job_free(job);
}

static const char *many(int64_t i, char *buf)
{
    sprintf(buf, "\"set-%03lld\"", (long long)(i * 7 % 150));
    return buf;
}

static void more_datasets_than_files_may_be_open(void **state)
{
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    fkv_buf got = {0};
    make_datasets(x, 450, many);
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "pred", &c, &err), FKV_OK);
    assert_int_equal(c.files, 150);
    for (int64_t i = 0; i < 150; i++) { /* rows i, i + 150, i + 300 */
        char file[64], want[1000];
        size_t n = 0;
        snprintf(file, sizeof file, "pred/set-%03lld.jsonl", (long long)(i * 7 % 150));
        read_all(x, file, &got);
        for (int64_t k = i; k < 450; k += 150)
            n += (size_t)snprintf(
                want + n, sizeof want - n,
                "{\"pred\":\"t%lld\",\"answers\":[],\"all_classes\":null,\"length\":0,\"_id\":%lld}\n",
                (long long)k, (long long)k);
        assert_string_equal(got.data, want);
    }
    fkv_buf_free(&got);
}

static const char *hostile;

static const char *good_then_hostile(int64_t i, char *buf)
{
    (void)buf;
    return i < 3 ? "\"fine\"" : hostile;
}

static int count_files(const fixture *x, const char *folder)
{
    char path[400];
    int n = 0;
    snprintf(path, sizeof path, "%s/%s", x->dir, folder);
    DIR *dir = opendir(path);
    if (!dir) return 0;
    for (const struct dirent *e; (e = readdir(dir));) n += e->d_name[0] != '.' || strlen(e->d_name) > 2;
    closedir(dir);
    return n;
}

static void a_dataset_that_is_no_file_name_is_refused(void **state)
{
    const fixture *x = *state;
    static char longest[300];
    memset(longest, 'x', 250);
    longest[0] = longest[249] = '"';
    const char *const names[] = {"\"../up\"", "\"a\\/b\"", "\"a\\u002fb\"", "\"..\"",
                                 "\".\"",     "\"\"",      "\"a\\u0000b\"", "null",
                                 "7",         "[\"x\"]",   longest};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fkv_export_counts c;
        fkv_err err;
        hostile = names[i];
        make_datasets(x, 4, good_then_hostile);
        assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "pred", &c, &err), FKV_E_INPUT);
        assert_string_equal(err.key, "dataset");
        assert_int_equal(err.line, 4);
        assert_int_equal(count_files(x, "pred"), 0); /* nothing half done is left */
        remove_tree(x->out);
    }
}

static void error_rows_without_a_dataset_are_counted(void **state)
{
    const fixture *x = *state;
    fkv_job *job = make_job(x, NULL);
    fkv_output *o = must_open(job);
    fkv_err err = {0};
    fkv_export_counts c;
    const char row[] = "{\"id\":null,\"dataset\":null,\"fields\":{},\"error\":{\"code\":\"bad_json\"}}\n";
    add(o, 0);
    assert_int_equal(fkv_output_add(o, 1, row, sizeof row - 1, true, 0, 0, &err), FKV_OK);
    finish(o, 2);
    fkv_output_close(o);
    fkv_job_free(job);
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "pred", &c, &err), FKV_OK);
    assert_true(c.rows == 1 && c.errors == 1 && c.skipped == 1);
}

/* An output with these rows. */
static void make_rows(const fixture *x, const char *const *rows, int64_t n)
{
    fkv_job *job = make_job(x, NULL);
    fkv_output *o = must_open(job);
    fkv_err err = {0};
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(
            fkv_output_add(o, i, rows[i], strlen(rows[i]), strstr(rows[i], "\"code\"") != NULL, 0, 0, &err),
            FKV_OK);
    finish(o, n);
    fkv_output_close(o);
    fkv_job_free(job);
}

static void expect_file(const fixture *x, const char *file, const char *want)
{
    fkv_buf got = {0};
    read_all(x, file, &got);
    assert_string_equal(got.data ? got.data : "", want);
    fkv_buf_free(&got);
}

static void ruler_has_what_its_scorer_reads(void **state)
{
    static const char *const rows[] = {
        "{\"id\":0,\"dataset\":\"vt\",\"fields\":{\"outputs\":[\"A\",\"B\"],\"length\":4096},\"text\":\" "
        "A\\n\"}\n",
        "{\"id\":1,\"dataset\":\"vt\",\"fields\":{\"outputs\":[\"A\"],\"others\":{\"id\":5}},\"text\":\"t\"}"
        "\n",
        "{\"id\":2,\"dataset\":\"cwe\",\"fields\":{\"output\":\"o\",\"others\":3},\"error\":{\"code\":\"too_"
        "long\"}}\n",
        "{\"id\":null,\"dataset\":null,\"fields\":{},\"error\":{\"code\":\"bad_json\"}}\n",
    };
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    make_rows(x, rows, 4);
    assert_int_equal(export_to(x, FKV_EXPORT_RULER, "pred", &c, &err), FKV_OK);
    assert_true(c.rows == 3 && c.errors == 2 && c.files == 2 && c.skipped == 1);
    expect_file(x, "pred/vt.jsonl",
                "{\"index\":0,\"pred\":\" A\\n\",\"input\":\"\",\"outputs\":[\"A\",\"B\"],\"others\":{},"
                "\"truncation\":-1,\"length\":4096}\n"
                "{\"index\":1,\"pred\":\"t\",\"input\":\"\",\"outputs\":[\"A\"],\"others\":{\"id\":5},"
                "\"truncation\":-1,\"length\":-1}\n");
    expect_file(x, "pred/cwe.jsonl",
                "{\"index\":2,\"pred\":\"\",\"input\":\"\",\"output\":\"o\",\"others\":{},\"truncation\":-1,"
                "\"length\":-1}\n");
}

static void openai_has_answers_and_errors_apart(void **state)
{
    static const char *const rows[] = {
        "{\"id\":\"a\",\"dataset\":null,\"fields\":{\"url\":\"\\/v1/chat/"
        "completions\",\"body\":{\"model\":\"m\"}},"
        "\"text\":\"hi\",\"finish_reason\":\"stop\",\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}"
        "\n",
        "{\"id\":\"b\",\"dataset\":null,\"fields\":{},\"error\":{\"code\":\"bad_field\",\"message\":\"n "
        "is\"}}\n",
        "{\"id\":7,\"dataset\":null,\"fields\":{\"url\":\"/v1/completions\",\"body\":7},\"text\":\"t\","
        "\"finish_reason\":\"length\"}\n",
        "{\"id\":null,\"dataset\":null,\"fields\":{},\"error\":{\"code\":\"damaged_archive\",\"message\":"
        "\"cut\"}}\n",
    };
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    make_rows(x, rows, 4);
    for (int again = 0; again < 2; again++) { /* the same bytes each time */
        assert_int_equal(export_to(x, FKV_EXPORT_OPENAI, "out.jsonl", &c, &err), FKV_OK);
        assert_true(c.rows == 4 && c.errors == 2 && c.files == 2 && c.skipped == 0);
        expect_file(
            x, "out.jsonl",
            "{\"id\":\"batch_req_000000000000\",\"custom_id\":\"a\",\"response\":{\"status_code\":200,"
            "\"request_id\":\"req_000000000000\",\"body\":{\"id\":\"chatcmpl-000000000000\","
            "\"object\":\"chat.completion\",\"created\":0,\"model\":\"m\",\"choices\":[{\"index\":0,"
            "\"message\":{\"role\":\"assistant\",\"content\":\"hi\",\"refusal\":null},\"logprobs\":null,"
            "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,"
            "\"total_tokens\":7}}},\"error\":null}\n"
            "{\"id\":\"batch_req_000000000002\",\"custom_id\":\"7\",\"response\":{\"status_code\":200,"
            "\"request_id\":\"req_000000000002\",\"body\":{\"id\":\"cmpl-000000000002\","
            "\"object\":\"text_completion\",\"created\":0,\"model\":\"\",\"choices\":[{\"index\":0,"
            "\"text\":\"t\",\"logprobs\":null,\"finish_reason\":\"length\"}],\"usage\":null}},"
            "\"error\":null}\n");
        expect_file(
            x, "out.jsonl.errors",
            "{\"id\":\"batch_req_000000000001\",\"custom_id\":\"b\",\"response\":{\"status_code\":400,"
            "\"request_id\":\"req_000000000001\",\"body\":{\"error\":{\"message\":\"n is\","
            "\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"bad_field\"}}},\"error\":null}\n"
            "{\"id\":\"batch_req_000000000003\",\"custom_id\":null,\"response\":null,"
            "\"error\":{\"code\":\"damaged_archive\",\"message\":\"cut\"}}\n");
    }
}

static void a_failed_export_leaves_the_old_one(void **state)
{
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    fkv_buf before = {0}, after = {0};
    char path[400];
    make_output(x, NULL, N_RECORDS, true);
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "pred", &c, &err), FKV_OK);
    read_all(x, "pred/d0.jsonl", &before);
    snprintf(path, sizeof path, "%s/shards/shard-000003.jsonl.zst", x->out);
    const int64_t size = fkv_file_size(path);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)size / 2, SEEK_SET), 0);
    const int c0 = fgetc(f);
    assert_int_equal(fseek(f, (long)size / 2, SEEK_SET), 0);
    fputc(c0 ^ 1, f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "pred", &c, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.file, "shard-000003"));
    read_all(x, "pred/d0.jsonl", &after);
    assert_string_equal(before.data, after.data);
    assert_int_equal(count_files(x, "pred"), 3);
    for (int64_t cut = 0; cut < size; cut += 5) {
        assert_int_equal(truncate(path, cut), 0);
        assert_int_equal(export_to(x, FKV_EXPORT_JSONL, "all.jsonl", &c, &err), FKV_E_INPUT);
        assert_int_equal(truncate(path, size), 0);
    }
    fkv_buf_free(&before);
    fkv_buf_free(&after);
}

static void what_is_no_output_folder_is_refused(void **state)
{
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    assert_int_equal(export_to(x, FKV_EXPORT_JSONL, "all.jsonl", &c, &err), FKV_E_INPUT);
    assert_int_equal(fkv_dir_make(x->out, &err), 0);
    err = (fkv_err){0};
    assert_int_equal(export_to(x, FKV_EXPORT_JSONL, "all.jsonl", &c, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "manifest.json"));
    make_output(x, NULL, 3, true);
    assert_int_equal(export_to(x, FKV_EXPORT_JSONL, "out", &c, &err), FKV_E_INPUT);         /* a folder */
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "job.ini", &c, &err), FKV_E_INPUT); /* a file */
}

static void stats_are_json_and_metrics_are_labelled(void **state)
{
    const fixture *x = *state;
    fkv_err err = {0};
    fkv_buf text = {0};
    fkv_job *job = make_job(x, "job.name=a\\b", NULL);
    fkv_output *o = must_open(job);
    const double seconds[] = {0.25, 1.5};
    fkv_stats s = {.complete = true,
                   .decode_steps = 12,
                   .kv_bytes = 1 << 20,
                   .peak_rss_bytes = 77,
                   .phases = {{"load", 0.5}, {"stream", 2}},
                   .rank_attention_seconds = seconds,
                   .n_ranks = 2,
                   .backend = "cpu",
                   .versions = "{\"zstd\":\"1.5\"}"};
    add_needed(o, 20);
    fkv_output_totals_get(o, &s.totals);
    assert_int_equal(fkv_stats_write(o, &s, &err), FKV_OK);
    fkv_output_close(o);
    fkv_job_free(job);
    read_all(x, "out/stats.json", &text);
    json_t *v = json_loadb(text.data, text.len, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(v);
    assert_int_equal(json_integer_value(json_object_get(v, "records")), 20);
    assert_int_equal(json_integer_value(json_object_get(v, "resumed")), 0);
    assert_int_equal(json_integer_value(json_object_get(v, "errors")), 2);
    assert_int_equal(json_integer_value(json_object_get(v, "completion_tokens")), 40);
    assert_int_equal(json_integer_value(json_object_get(v, "kv_bytes")), 1 << 20);
    assert_true(json_is_true(json_object_get(v, "complete")));
    assert_true(json_real_value(json_object_get(json_object_get(v, "seconds"), "stream")) == 2.0);
    assert_true(json_real_value(json_array_get(json_object_get(v, "rank_attention_seconds"), 1)) == 1.5);
    assert_string_equal(json_string_value(json_object_get(json_object_get(v, "versions"), "zstd")), "1.5");
    json_decref(v);
    read_all(x, "out/metrics.prom", &text);
    assert_non_null(strstr(text.data, "# TYPE fairkv_decode_steps gauge\n"
                                      "fairkv_decode_steps{name=\"a\\\\b\",part=\"0/1\"} 12\n"));
    assert_non_null(
        strstr(text.data, "fairkv_phase_seconds{name=\"a\\\\b\",part=\"0/1\",phase=\"load\"} 0.5"));
    assert_non_null(
        strstr(text.data, "fairkv_rank_attention_seconds{name=\"a\\\\b\",part=\"0/1\",rank=\"1\"} 1.5"));
    fkv_buf_free(&text);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, fixture_up, fixture_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(jsonl_is_every_row_in_input_order),
        TEST(parts_are_exported_as_one),
        TEST(an_unfinished_output_is_exported_as_far_as_it_goes),
        TEST(longbench_has_a_file_for_each_dataset),
        TEST(more_datasets_than_files_may_be_open),
        TEST(a_dataset_that_is_no_file_name_is_refused),
        TEST(error_rows_without_a_dataset_are_counted),
        TEST(ruler_has_what_its_scorer_reads),
        TEST(openai_has_answers_and_errors_apart),
        TEST(a_failed_export_leaves_the_old_one),
        TEST(what_is_no_output_folder_is_refused),
        TEST(stats_are_json_and_metrics_are_labelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
