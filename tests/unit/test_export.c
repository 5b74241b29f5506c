/* export, stats.json and metrics.prom, over outputs that were really written. */
#include "output_fixture.h"

#include <dirent.h>
#include <jansson.h>

#include "jobs/export.h"
#include "jobs/export_files.h"
#include "jobs/stats_run.h"
#include "runner/base/utf8.h"

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
    assert_false(c.complete);                        /* part 2 is missing */
    assert_int_equal(c.missing, N_RECORDS - c.rows); /* a finished part knows how many there are */
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
    assert_true(c.rows == 16 && !c.complete && c.missing == -1); /* nobody has counted the input */
    char path[400];
    static const struct {
        const char *profile;
        int64_t missing;
    } cases[] = {{"{\"input\":{\"records\":45}}", 29},
                 {"{\"input\":{\"records\":16}}", 0},
                 {"{\"input\":{\"records\":3}}", -1},
                 {"{\"input\":{\"records\":\"45\"}}", -1},
                 {"{\"input\":{}}", -1},
                 {"{\"input\":[45]}", -1},
                 {"[45]", -1},
                 {"{", -1}};
    snprintf(path, sizeof path, "%s/profile.json", x->out);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_text(path, cases[i].profile);
        assert_int_equal(export_to(x, FKV_EXPORT_JSONL, "all.jsonl", &c, &err), FKV_OK);
        assert_int_equal(c.missing, cases[i].missing);
    }
}

static void longbench_has_a_file_for_each_dataset(void **state)
{
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    fkv_buf got = {0};
    make_output(x, NULL, N_RECORDS, true);
    for (int again = 0; again < 2; again++) { /* the second replaces the first's files */
        assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_OK);
        assert_true(c.rows == N_RECORDS && c.errors == 4 && c.files == 3 && c.skipped == 0);
    }
    for (int64_t d = 0; d < 3; d++) {
        char file[64];
        snprintf(file, sizeof file, "lb/pred/test/d%lld.jsonl", (long long)d);
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
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_OK);
    assert_int_equal(c.files, 150);
    for (int64_t i = 0; i < 150; i++) { /* rows i, i + 150, i + 300 */
        char file[64], want[1000];
        size_t n = 0;
        snprintf(file, sizeof file, "lb/pred/test/set-%03lld.jsonl", (long long)(i * 7 % 150));
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

static void a_dataset_that_is_no_string_is_refused(void **state)
{
    const fixture *x = *state;
    const char *const names[] = {"null", "7", "[\"x\"]", "{}"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fkv_export_counts c;
        fkv_err err;
        hostile = names[i];
        make_datasets(x, 4, good_then_hostile);
        assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_E_INPUT);
        assert_string_equal(err.key, "dataset");
        assert_int_equal(err.line, 4);
        assert_int_equal(count_files(x, "lb"), 0); /* nothing half done is left, no empty folder either */
        remove_tree(x->out);
    }
}

/* Names that a file system has another use for, or eval.py, which takes what is before the first dot. */
static void a_dataset_that_is_no_file_name_is_percent_encoded(void **state)
{
    const fixture *x = *state;
    static const struct {
        const char *dataset, *file, *task;
    } cases[] = {
        {"\"../up\"", "%2E%2E%2Fup", "%2E.%2Fup"},
        {"\"a\\/b\"", "a%2Fb", "a%2Fb"},
        {"\"a\\u002fb\"", "a%2Fb", "a%2Fb"},
        {"\"..\"", "%2E%2E", "%2E."},
        {"\".\"", "%2E", "%2E"},
        {"\"\"", "%", "%"},
        {"\"a\\u0000b\"", "a%00b", "a%00b"},
        {"\"v1.5\"", "v1%2E5", "v1.5"},
        {"\".hidden\"", "%2Ehidden", "%2Ehidden"},
        {"\"a%2Fb\"", "a%252Fb", "a%252Fb"},
        {"\"a b\xc3\xa9\"", "a b\xc3\xa9", "a b\xc3\xa9"},
        {"\"a:b?\\n\"", "a%3Ab%3F%0A", "a%3Ab%3F%0A"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fkv_export_counts c;
        fkv_err err;
        char path[400];
        hostile = cases[i].dataset;
        make_datasets(x, 4, good_then_hostile);
        assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_OK);
        assert_int_equal(export_to(x, FKV_EXPORT_RULER, "ruler", &c, &err), FKV_OK);
        assert_true(c.rows == 4 && c.files == 2);
        snprintf(path, sizeof path, "%s/lb/pred/test/%s.jsonl", x->dir, cases[i].file);
        assert_true(fkv_file_size(path) > 0);
        assert_int_equal(count_files(x, "lb/pred/test"), 2);
        snprintf(path, sizeof path, "%s/ruler/%s.jsonl", x->dir, cases[i].task);
        assert_true(fkv_file_size(path) > 0);
        remove_tree(x->out);
        snprintf(path, sizeof path, "%s/lb", x->dir);
        remove_tree(path);
        snprintf(path, sizeof path, "%s/ruler", x->dir);
        remove_tree(path);
    }
}

static void long_names_are_cut_and_stay_apart(void **state)
{
    (void)state;
    char a[1000], b[1000];
    fkv_buf one = {0}, two = {0};
    fkv_err err = {0};
    static const char *const of[] = {"x", "\xc3\xa9", "/", "\xf0\x9f\x90\x88"};
    for (size_t k = 0; k < sizeof of / sizeof *of; k++) {
        const size_t size = strlen(of[k]);
        for (size_t n = 1; n * size < sizeof a - 1; n++) {
            for (size_t i = 0; i < n; i++) memcpy(a + i * size, of[k], size);
            memcpy(b, a, n * size);
            b[n * size] = 'y';
            fkv_buf_clear(&one);
            fkv_buf_clear(&two);
            assert_int_equal(fkv_export_name(&one, a, n * size, true, &err), FKV_OK);
            assert_int_equal(fkv_export_name(&two, b, n * size + 1, true, &err), FKV_OK);
            assert_true(one.len < 240 && two.len < 240);
            assert_string_not_equal(one.data, two.data);
            assert_int_equal(fkv_utf8_span(one.data, one.len), one.len); /* no character is cut */
        }
    }
    fkv_buf_free(&one);
    fkv_buf_free(&two);
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
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_OK);
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

#define SOURCE(member) "\"source\":{\"archive\":\"a.zip\",\"member\":\"" member "\",\"line\":1}"
#define LB_ROW(id, member, dataset, fields)                                                                  \
    "{\"id\":" #id "," SOURCE(member) ",\"dataset\":" dataset ",\"fields\":{" fields                         \
                                      "},\"text\":\"t\",\"error\":null}\n"
#define LB_ERROR(id, member, dataset, fields)                                                                \
    "{\"id\":" #id                                                                                           \
    "," SOURCE(member) ",\"dataset\":" dataset ",\"fields\":{" fields                                        \
                       "},\"text\":null,\"error\":{\"code\":\"bad_json\",\"message\":\"m\"}}\n"
#define LB_LINE(id, pred, answers, classes, length)                                                          \
    "{\"pred\":\"" pred "\",\"answers\":" answers ",\"all_classes\":" classes ",\"length\":" #length         \
    ",\"_id\":" #id "}\n"

/* Also where the prompts know the name without _e alone, so that both are the dataset trec. */
static void longbench_e_does_not_mix_with_longbench(void **state)
{
    static const char *const rows[] = {
        LB_ROW(1, "data/trec.jsonl", "\"trec\"", ""), LB_ROW(2, "data/trec_e.jsonl", "\"trec\"", ""),
        LB_ROW(3, "lcc_e.jsonl.gz", "\"lcc_e\"", ""), LB_ROW(4, "all.jsonl", "\"lcc_e\"", ""),
        LB_ERROR(5, "x/trec_e.json", "\"trec\"", ""), LB_ROW(6, "_e.jsonl", "\"_e\"", ""),
        LB_ERROR(7, "data/trec_e.jsonl", "null", ""), LB_ERROR(8, "lcc.jsonl", "null", ""),
    };
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    make_rows(x, rows, 8);
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_OK);
    assert_true(c.rows == 7 && c.errors == 3 && c.files == 4 &&
                c.skipped == 1); /* 8: nobody has lcc without _e */
    expect_file(x, "lb/pred/test/trec.jsonl", LB_LINE(1, "t", "[]", "null", 0));
    expect_file(x, "lb/pred/test/_e.jsonl", LB_LINE(6, "t", "[]", "null", 0));
    expect_file(x, "lb/pred_e/test/trec.jsonl",
                LB_LINE(2, "t", "[]", "null", 0) LB_LINE(5, "", "[]", "null", 0)
                    LB_LINE(7, "", "[]", "null", 0));
    expect_file(x, "lb/pred_e/test/lcc.jsonl",
                LB_LINE(3, "t", "[]", "null", 0) LB_LINE(4, "t", "[]", "null", 0));
}

/* eval.py takes them from the last line. */
static void error_rows_have_their_dataset_s_all_classes(void **state)
{
    static const char *const rows[] = {
        LB_ERROR(1, "trec.jsonl", "\"trec\"", ""),
        LB_ERROR(2, "trec.jsonl", "null", ""),
        LB_ROW(3, "trec.jsonl", "\"trec\"", "\"all_classes\":[\"A\",\"B\"],\"answers\":[\"A\"],\"length\":7"),
        LB_ROW(4, "qa.jsonl", "\"qa\"", "\"all_classes\":null,\"answers\":null,\"length\":null"),
        LB_ERROR(5, "qa.jsonl", "\"qa\"", ""),
        LB_ERROR(6, "trec.jsonl", "\"trec\"", "\"all_classes\":[\"C\"],\"answers\":[\"C\"],\"length\":9"),
        LB_ERROR(7, "trec.jsonl", "\"trec\"", "\"all_classes\":null,\"length\":\"9\""),
        LB_ERROR(8, "trec_e.jsonl", "\"trec\"", ""),
    };
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    make_rows(x, rows, 8);
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_OK);
    assert_true(c.rows == 8 && c.errors == 6 && c.files == 3 && c.skipped == 0);
    expect_file(x, "lb/pred/test/trec.jsonl",
                LB_LINE(1, "", "[]", "[\"A\",\"B\"]", 0) LB_LINE(2, "", "[]", "[\"A\",\"B\"]", 0)
                    LB_LINE(3, "t", "[\"A\"]", "[\"A\",\"B\"]", 7) LB_LINE(6, "", "[\"C\"]", "[\"C\"]", 9)
                        LB_LINE(7, "", "[]", "[\"A\",\"B\"]", 0));
    expect_file(x, "lb/pred/test/qa.jsonl", LB_LINE(4, "t", "[]", "null", 0) LB_LINE(5, "", "[]", "null", 0));
    expect_file(x, "lb/pred_e/test/trec.jsonl", LB_LINE(8, "", "[]", "null", 0));
}

static void an_error_row_counts_where_its_member_s_name_says(void **state)
{
    static const char *const rows[] = {
        LB_ERROR(1, "x/vt/validation.jsonl", "null", ""),
        LB_ROW(2, "x/vt/validation.jsonl", "\"vt\"", ""),
        LB_ROW(3, "cwe.jsonl", "\"cwe\"", ""),
        LB_ERROR(4, "cwe.jsonl.zst", "null", ""),
        LB_ERROR(5, "x/other/validation.jsonl", "null", ""),
        LB_ERROR(6, "", "null", ""),
    };
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    make_rows(x, rows, 6);
    assert_int_equal(export_to(x, FKV_EXPORT_RULER, "ruler", &c, &err), FKV_OK);
    assert_true(c.rows == 4 && c.errors == 4 && c.files == 2 && c.skipped == 2);
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_OK);
    assert_true(c.rows == 4 && c.files == 2 && c.skipped == 2);
    expect_file(x, "lb/pred/test/vt.jsonl", LB_LINE(1, "", "[]", "null", 0) LB_LINE(2, "t", "[]", "null", 0));
    expect_file(x, "lb/pred/test/cwe.jsonl",
                LB_LINE(3, "t", "[]", "null", 0) LB_LINE(4, "", "[]", "null", 0));
}

/* RULER's metrics look for the outputs in pred, and "" is in "". */
static void a_ruler_error_row_scores_nothing(void **state)
{
    static const char *const rows[] = {
        LB_ROW(1, "vt/validation.jsonl", "\"vt\"", "\"outputs\":[\"A\"]"),
        LB_ERROR(2, "vt/validation.jsonl", "null", ""),
        LB_ERROR(3, "vt/validation.jsonl", "\"vt\"", "\"outputs\":null"),
    };
    const fixture *x = *state;
    fkv_export_counts c;
    fkv_err err;
    make_rows(x, rows, 3);
    assert_int_equal(export_to(x, FKV_EXPORT_RULER, "ruler", &c, &err), FKV_OK);
#define REST ",\"others\":{},\"truncation\":-1,\"length\":-1}\n"
    expect_file(x, "ruler/vt.jsonl",
                "{\"index\":1,\"pred\":\"t\",\"input\":\"\",\"outputs\":[\"A\"]" REST
                "{\"index\":2,\"pred\":\"\",\"input\":\"\",\"outputs\":[\"not known\"]" REST
                "{\"index\":3,\"pred\":\"\",\"input\":\"\",\"outputs\":[\"not known\"]" REST);
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
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_OK);
    read_all(x, "lb/pred/test/d0.jsonl", &before);
    snprintf(path, sizeof path, "%s/shards/shard-000003.jsonl.zst", x->out);
    const int64_t size = fkv_file_size(path);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)size / 2, SEEK_SET), 0);
    const int c0 = fgetc(f);
    assert_int_equal(fseek(f, (long)size / 2, SEEK_SET), 0);
    fputc(c0 ^ 1, f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(export_to(x, FKV_EXPORT_LONGBENCH, "lb", &c, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.file, "shard-000003"));
    read_all(x, "lb/pred/test/d0.jsonl", &after);
    assert_string_equal(before.data, after.data);
    assert_int_equal(count_files(x, "lb/pred/test"), 3);
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

/* A page knows of the last run what the run knew. */
static void check_last_run(const char *path, const fkv_stats *s)
{
    fkv_err err = {0};
    fkv_stats_run *run;
    assert_int_equal(fkv_stats_run_read(path, &run, &err), FKV_OK);
    const fkv_stats *r = &run->stats;
    assert_true(r->complete && !r->running && r->exit_code == s->exit_code && r->time == s->time);
    assert_int_equal(r->totals.records, s->totals.records);
    assert_int_equal(r->totals.errors, s->totals.errors);
    assert_int_equal(r->decode_steps, s->decode_steps);
    assert_int_equal(r->kv_bytes, s->kv_bytes);
    assert_memory_equal(r->seconds, s->seconds, sizeof s->seconds);
    assert_int_equal(r->n_ranks, s->n_ranks);
    assert_true(r->rank_attention_seconds[1] == s->rank_attention_seconds[1]);
    assert_true(r->joules == s->joules && r->gpu_seconds == s->gpu_seconds);
    assert_string_equal(r->backend, s->backend);
    assert_int_equal(r->n_points, s->n_points);
    assert_true(r->points[0].seconds == s->points[0].seconds && r->points[0].errors == s->points[0].errors);
    free(run);
}

static void stats_are_json_and_metrics_are_labelled(void **state)
{
    const fixture *x = *state;
    fkv_err err = {0};
    fkv_buf text = {0};
    fkv_job *job = make_job(x, "job.name=a\\b", NULL);
    fkv_output *o = must_open(job);
    const double seconds[] = {0.25, 1.5};
    const fkv_stats_point point = {1.5, 20, 100, 40, 2.5, 2};
    fkv_stats s = {.complete = true,
                   .exit_code = 1,
                   .time = 86400,
                   .decode_steps = 12,
                   .kv_bytes = 1 << 20,
                   .peak_rss_bytes = 77,
                   .seconds = {[FKV_STAGE_LOAD] = 0.5, [FKV_STAGE_DECODE] = 2},
                   .rank_attention_seconds = seconds,
                   .n_ranks = 2,
                   .backend = "cpu",
                   .joules = 1.5,
                   .gpu_seconds = 5,
                   .points = &point,
                   .n_points = 1,
                   .before = {.runs = 2,
                              .completion_tokens = 7,
                              .seconds = {[FKV_STAGE_LOAD] = 1},
                              .joules = 10,
                              .energy_runs = 1},
                   .records = 20,
                   .versions = "{\"zstd\":\"1.5\"}"};
    fkv_stats_history back;
    char path[512];
    fkv_error_counts_add(&s.errors, "bad_json", 8, 2);
    add_needed(o, 20);
    fkv_output_totals_get(o, &s.totals);
    assert_int_equal(fkv_stats_write(o, &s, &err), FKV_OK);
    assert_int_equal(fkv_metrics_write(o, &s, NULL, &err), FKV_OK);
    fkv_output_close(o);
    fkv_job_free(job);
    snprintf(path, sizeof path, "%s/out/stats.json", x->dir);
    assert_int_equal(fkv_stats_read(path, &back, &err), FKV_OK);
    assert_int_equal(back.done, 20);
    assert_int_equal(back.sums.runs, 3);
    assert_int_equal(back.sums.completion_tokens, 47);
    assert_int_equal(back.sums.energy_runs, 2);
    assert_int_equal(back.sums.last_success, 86400);
    assert_true(back.sums.joules == 11.5 && back.sums.gpu_seconds == 5 &&
                back.sums.seconds[FKV_STAGE_LOAD] == 1.5);
    assert_int_equal(fkv_error_counts_sum(&back.errors), 2);
    read_all(x, "out/stats.json", &text);
    json_t *both = json_loadb(text.data, text.len, JSON_REJECT_DUPLICATES, NULL);
    const json_t *v = json_object_get(both, "run");
    assert_non_null(v);
    assert_int_equal(json_integer_value(json_object_get(v, "records")), 20);
    assert_int_equal(json_integer_value(json_object_get(v, "resumed")), 0);
    assert_int_equal(json_integer_value(json_object_get(v, "errors")), 2);
    assert_int_equal(json_integer_value(json_object_get(v, "completion_tokens")), 40);
    assert_int_equal(json_integer_value(json_object_get(v, "kv_bytes")), 1 << 20);
    assert_true(json_is_true(json_object_get(v, "complete")));
    assert_true(json_real_value(json_object_get(json_object_get(v, "seconds"), "decode")) == 2.0);
    assert_true(json_real_value(json_array_get(json_object_get(v, "rank_attention_seconds"), 1)) == 1.5);
    assert_string_equal(json_string_value(json_object_get(json_object_get(v, "versions"), "zstd")), "1.5");
    json_decref(both);
    check_last_run(path, &s);
    read_all(x, "out/metrics.prom", &text);
    assert_non_null(strstr(text.data, "# TYPE fairkv_decode_steps gauge\n"
                                      "fairkv_decode_steps{name=\"a\\\\b\",part=\"0/1\"} 12\n"));
    assert_non_null(
        strstr(text.data, "fairkv_stage_seconds_total{name=\"a\\\\b\",part=\"0/1\",stage=\"load\"} 1.5"));
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
        TEST(a_dataset_that_is_no_string_is_refused),
        TEST(a_dataset_that_is_no_file_name_is_percent_encoded),
        cmocka_unit_test(long_names_are_cut_and_stay_apart),
        TEST(longbench_e_does_not_mix_with_longbench),
        TEST(error_rows_have_their_dataset_s_all_classes),
        TEST(an_error_row_counts_where_its_member_s_name_says),
        TEST(a_ruler_error_row_scores_nothing),
        TEST(error_rows_without_a_dataset_are_counted),
        TEST(ruler_has_what_its_scorer_reads),
        TEST(openai_has_answers_and_errors_apart),
        TEST(a_failed_export_leaves_the_old_one),
        TEST(what_is_no_output_folder_is_refused),
        TEST(stats_are_json_and_metrics_are_labelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
