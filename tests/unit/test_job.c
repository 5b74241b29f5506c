/* The job file: values, every refusal with its words, overrides, environment, paths. */
#include "tests/unit/job_fixture.h"

/* One error only, at that line, with that key and all of the words ('|'-separated). */
static void expect_error(const char *text, const char *override, int64_t line, const char *key,
                         const char *words)
{
    fkv_job *job = (fkv_job *)(void *)1;
    fkv_errs errs = {0};
    char message[2048], list[512];
    assert_int_equal(parse(text, override, NULL, NULL, &job, &errs), FKV_E_INPUT);
    assert_null(job);
    fkv_err_format(&errs.at[0], message, sizeof message);
    if (errs.n != 1) print_error("%d errors, the first: %s\n", errs.n, message);
    assert_int_equal(errs.n, 1);
    assert_string_equal(errs.at[0].file, override ? "-s" : job_path);
    if (errs.at[0].line != line) print_error("%s\n", message);
    assert_int_equal(errs.at[0].line, line);
    assert_string_equal(errs.at[0].key, key);
    snprintf(list, sizeof list, "%s", words);
    for (char *rest = list, *word = strtok_r(list, "|", &rest); word; word = strtok_r(NULL, "|", &rest)) {
        if (!strstr(errs.at[0].message, word)) print_error("no \"%s\" in: %s\n", word, message);
        assert_non_null(strstr(errs.at[0].message, word));
    }
    fkv_errs_free(&errs);
}

static void defaults_are_the_documented_ones(void **state)
{
    (void)state;
    fkv_job *job = parse_ok(HEAD, NULL);
    char path[600];
    assert_string_equal(job->job.name, "t");
    snprintf(path, sizeof path, "%s/out", dir);
    assert_string_equal(job->job.output, path);
    snprintf(path, sizeof path, "%s/model", dir);
    assert_string_equal(job->model.path, path);
    assert_int_equal(job->job.grace_s, 10);
    assert_int_equal(job->input.n_files, 1);
    assert_string_equal(job->input.files[0].name, "a.jsonl");
    snprintf(path, sizeof path, "%s/a.jsonl", dir);
    assert_string_equal(job->input.files[0].path, path);
    assert_int_equal(job->input.members.n, 1);
    assert_string_equal(job->input.members.at[0], "*.jsonl");
    assert_int_equal(job->input.format, FKV_FORMAT_AUTO);
    assert_int_equal(job->input.plain_datasets.n, 6);
    assert_string_equal(job->input.plain_datasets.at[0], "trec");
    assert_string_equal(job->input.plain_datasets.at[5], "repobench-p");
    assert_string_equal(job->model.chat_template, "auto");
    assert_null(job->model.template_vars);
    assert_null(job->model.date);
    assert_int_equal(job->sampling.generation_config, FKV_GENERATION_MODEL);
    assert_null(job->input.prompts);
    assert_int_equal(job->input.max_record_bytes, 64 << 20);
    assert_int_equal(job->input.part, 0);
    assert_int_equal(job->input.n_parts, 1);
    assert_int_equal(job->model.truncate, FKV_TRUNCATE_MIDDLE);
    assert_int_equal(job->profile.sample, 64);
    assert_int_equal(job->profile.method, FKV_METHOD_ADA);
    assert_int_equal(job->profile.score, FKV_SCORE_SNAPKV);
    assert_int_equal(job->profile.sinks, 0);
    assert_int_equal(job->profile.window, 32);
    assert_int_equal(job->profile.kernel, 7);
    assert_true(job->profile.floor == 0.5);
    assert_int_equal(job->profile.budget, 1024);
    assert_true(job->profile.budget_percent == 0);
    assert_int_equal(job->plan.mode, FKV_JOB_FAIR_COPYING);
    assert_int_equal(job->plan.max_copies, -1);
    assert_int_equal(job->engine.tensor_parallel, 0);
    assert_int_equal(job->engine.data_parallel, 0);
    assert_int_equal(job->engine.devices, 0);
    assert_int_equal(job->engine.slots, 0);
    assert_int_equal(job->engine.max_new_tokens, 128);
    assert_true(job->sampling.top_p == 1);
    assert_int_equal(job->sampling.n_stop, 0);
    assert_int_equal(job->output.records_per_shard, 1000);
    assert_int_equal(job->output.compression_level, 3);
    assert_false(job->output.token_ids);
    assert_int_equal(job->output.progress_s, 0);
    assert_null(job->output.metrics);
    fkv_job_free(job);
}

static void values_of_every_kind_are_read(void **state)
{
    (void)state;
    fkv_job *job = parse_ok(
        "; a comment\n# another\n[job]\r\nname = two words ; a comment\r\noutput: /abs/out\nseed = "
        "18446744073709551615\nrestart = yes\n[input]\narchives = a.jsonl\nmembers = x/*.jsonl y\\ z\n"
        "format = prompt\nmax_record_bytes = 2k\nprompts =\nplain_datasets = a\n  b\xc3\xa9 ; c\n"
        "[model]\npath = /m\nweights = dummy\nchat_template = none\ntemplate_vars =\ndate =\n"
        "truncate = error\n[profile]\nbudget = 12.5%\nmethod = uniform\nfloor = 1e-1\n[plan]\n"
        "mode = best-effort\nmax_copies = 0\n[engine]\nslots = 7\nbackend = cuda\n[sampling]\n"
        "stop = [\"\\n\\n\", \"a;b\",\n  \"\\u00e9\"]\ntop_p = 0.25\n[output]\ntoken_ids = yes\n"
        "progress = 15\nmetrics = m.prom\n",
        NULL);
    assert_string_equal(job->job.name, "two words");
    assert_string_equal(job->job.output, "/abs/out");
    assert_true(job->job.seed == UINT64_MAX);
    assert_true(job->job.restart);
    assert_int_equal(job->input.members.n, 2);
    assert_string_equal(job->input.members.at[1], "y\\ z");
    assert_int_equal(job->input.plain_datasets.n, 2);
    assert_string_equal(job->input.plain_datasets.at[1], "b\xc3\xa9");
    assert_string_equal(job->model.chat_template, "none");
    assert_int_equal(job->input.format, FKV_FORMAT_PROMPT);
    assert_int_equal(job->input.max_record_bytes, 2048);
    assert_int_equal(job->model.weights, FKV_WEIGHTS_DUMMY);
    assert_true(fkv_job_is_dummy(job) && !fkv_job_is_fp8(job));
    _Static_assert(FKV_WEIGHTS_DUMMY_FP8 == (FKV_WEIGHTS_DUMMY | FKV_WEIGHTS_FP8), "bits");
    assert_int_equal(job->model.truncate, FKV_TRUNCATE_ERROR);
    assert_true(job->profile.budget_percent == 12.5);
    assert_int_equal(job->profile.budget, 0);
    assert_int_equal(job->profile.method, FKV_METHOD_UNIFORM);
    assert_true(job->profile.floor == 0.1);
    assert_int_equal(job->plan.mode, FKV_JOB_BEST_EFFORT);
    assert_int_equal(job->plan.max_copies, 0);
    assert_int_equal(job->engine.slots, 7);
    assert_int_equal(job->engine.backend, FKV_JOB_BACKEND_CUDA);
    assert_int_equal(job->sampling.n_stop, 3);
    assert_string_equal(job->sampling.stop[0], "\n\n");
    assert_string_equal(job->sampling.stop[1], "a;b");
    assert_string_equal(job->sampling.stop[2], "\xc3\xa9");
    assert_true(job->output.token_ids);
    assert_int_equal(job->output.progress_s, 15);
    assert_non_null(strstr(job->output.metrics, "m.prom"));
    fkv_job_free(job);
}

/* Values that are refused, as the eighth line of a job file. */
static void bad_values_are_named(void **state)
{
    static const struct {
        const char *section, *name, *value, *words;
    } cases[] = {
        {"job", "seed", "-1", "whole number"},
        {"job", "seed", "18446744073709551616", "outside 0 to 18446744073709551615"},
        {"job", "limit", "-1", "less than 0"},
        {"job", "limit", "1.5", "\"1.5\" is not a whole number"},
        {"job", "max_errors", "many", "\"many\" is not a whole number"},
        {"job", "max_errors", "0%", "0% is not more than 0% and at most 100%"},
        {"job", "max_errors", "101%", "101% is not more than 0% and at most 100%"},
        {"job", "max_errors", "few%", "\"few%\" is neither a whole number nor a percentage"},
        {"job", "retry_errors", "maybe", "\"maybe\" is none of: no yes"},
        {"job", "restart", "maybe", "\"maybe\" is none of: no yes"},
        {"job", "grace", "100000", "outside 0 to 86400"},
        {"input", "members", "", "names no pattern"},
        {"input", "plain_datasets", "trec sam/sum", "\"sam/sum\" can't be a dataset's name"},
        {"input", "plain_datasets", "a\\ b", "can't be a dataset's name"},
        {"input", "plain_datasets", "#a", "\"#a\" can't be"},
        {"input", "format", "csv", "\"csv\" is none of: auto longbench prompt openai qa ruler"},
        {"input", "format", "longbench", "longbench needs input.prompts"},
        {"input", "max_record_bytes", "64X", "a size such as 64M"},
        {"input", "max_record_bytes", "2G", "outside 64 to 1073741824"},
        {"input", "max_record_bytes", "99999999999999999999K", "outside"},
        {"input", "part", "3/3", "0 <= i < n <= 100000"},
        {"input", "part", "0/100001", "0 <= i < n <= 100000"},
        {"input", "part", "-1/3", "0 <= i < n"},
        {"input", "part", "1", "neither auto nor of the form i/n"},
        {"input", "part", "1/3x", "neither auto nor of the form i/n"},
        {"model", "weights", "made-up", "none of: files fp8 dummy dummy-fp8"},
        {"model", "chat_template", "", "has no value"},
        {"model", "template_vars", "[1]", "not a JSON object"},
        {"model", "template_vars", "{\"a\":1,\"a\":2}", "not a JSON object: duplicate"},
        {"model", "template_vars", "{", "not a JSON object: "},
        {"model", "date", "2026-02-29", "\"2026-02-29\" is not a day such as 2026-07-01"},
        {"model", "date", "2024-02-30", "is not a day"},
        {"model", "date", "1900-02-29", "is not a day"},
        {"model", "date", "1899-12-31", "from 1900 on"},
        {"model", "date", "2026-13-01", "is not a day"},
        {"model", "date", "2026-00-01", "is not a day"},
        {"model", "date", "2026-04-31", "is not a day"},
        {"model", "date", "2026-04-00", "is not a day"},
        {"model", "date", "2026-4-1", "is not a day"},
        {"model", "date", "2026-04-011", "is not a day"},
        {"model", "date", "26 Jul 2024", "is not a day"},
        {"model", "max_prompt_tokens", "-5", "outside 0 to"},
        {"model", "truncate", "end", "none of: middle left right error"},
        {"profile", "sample", "0", "outside 1 to 100000"},
        {"profile", "sample", "100001", "outside 1 to 100000"},
        {"profile", "method", "best", "none of: ada uniform scores none"},
        {"profile", "method", "scores", "needs profile.scores_file"},
        {"profile", "score", "ada", "none of: snapkv defensive critical keydiff expected"},
        {"profile", "sinks", "-1", "outside 0 to 1024"},
        {"profile", "sinks", "1000", "1000 and profile.window, 32, are more than profile.budget, 1024"},
        {"profile", "window", "1025", "outside 1 to 1024"},
        {"profile", "kernel", "8", "must be odd"},
        {"profile", "kernel", "65", "outside 1 to 63"},
        {"profile", "floor", "1.01", "outside 0 to 1"},
        {"profile", "floor", "nan", "\"nan\" is not a number"},
        {"profile", "floor", "0x1p-1", "is not a number"},
        {"profile", "budget", "31", "31 is less than profile.window, 32"},
        {"profile", "budget", "0%", "not more than 0%"},
        {"profile", "budget", "101%", "at most 100%"},
        {"profile", "budget", "some%", "neither a whole number nor a percentage"},
        {"plan", "mode", "fast", "none of: standard best-effort fair-copying"},
        {"plan", "max_copies", "-1", "outside 0 to"},
        {"engine", "backend", "tpu", "none of: auto cpu cuda"},
        {"engine", "tensor_parallel", "1025", "outside 1 to 1024"},
        {"engine", "data_parallel", "0", "outside 1 to 1024"},
        {"engine", "devices", "0", "outside 1 to 1024"},
        {"engine", "slots", "eleven", "\"eleven\" is not a whole number or auto"},
        {"engine", "slots", "0", "outside 1 to 4096"},
        {"engine", "slots", "4097", "outside 1 to 4096"},
        {"engine", "max_new_tokens", "0", "outside 1 to"},
        {"engine", "max_new_tokens", "99999999999999999999", "outside 1 to"},
        {"sampling", "temperature", "101", "outside 0 to 100"},
        {"sampling", "temperature", "-0.1", "outside 0 to 100"},
        {"sampling", "top_p", "7", "7 is outside 0 to 1"},
        {"sampling", "top_p", "0", "0 is outside 0 to 1 (and must not be 0)"},
        {"sampling", "top_k", "-1", "outside 0 to"},
        {"sampling", "generation_config", "none", "none of: model ignore"},
        {"sampling", "stop", "END", "not a JSON array of strings"},
        {"sampling", "stop", "{}", "not a JSON array of strings"},
        {"sampling", "stop", "[\"a\", 1]", "item 2"},
        {"sampling", "stop", "[\"\"]", "item 1|at least one character"},
        {"output", "records_per_shard", "0", "outside 1 to"},
        {"output", "compression_level", "20", "outside 1 to 19"},
        {"output", "compression_level", "", "has no value"},
        {"output", "token_ids", "true", "none of: no yes"},
        {"output", "progress", "0", "outside 1 to 86400"},
        {"output", "progress", "often", "not a whole number"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1024], key[64], override[200];
        snprintf(text, sizeof text, HEAD "[%s]\n%s = %s\n", cases[i].section, cases[i].name, cases[i].value);
        snprintf(key, sizeof key, "%s.%s", cases[i].section, cases[i].name);
        expect_error(text, NULL, 9, key, cases[i].words);
        snprintf(override, sizeof override, "%s=%s", key, cases[i].value);
        expect_error(HEAD, override, 0, key, cases[i].words);
    }
}

static void required_keys_are_missed(void **state)
{
    static const char *const keys[] = {"job.name", "job.output", "input.archives", "model.path"};
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    (void)state;
    assert_int_equal(parse("", NULL, NULL, NULL, &job, &errs), FKV_E_INPUT);
    assert_int_equal(errs.n, 4);
    for (int i = 0; i < 4; i++) {
        assert_string_equal(errs.at[i].key, keys[i]);
        assert_non_null(strstr(errs.at[i].message, "is missing"));
    }
    fkv_errs_free(&errs);
    expect_error("[job]\nname =\noutput = out\n[input]\narchives = a.jsonl\n[model]\npath = model\n", NULL, 2,
                 "job.name", "has no value");
}

static void bad_lines_are_named(void **state)
{
    (void)state;
    expect_error(HEAD "[engine]\nslotz = 4\n", NULL, 9, "engine.slotz", "unknown key|did you mean slots?");
    expect_error(HEAD "[engine]\nwindow = 4\n", NULL, 9, "engine.window", "unknown key|belongs to [profile]");
    expect_error(HEAD "[engine]\nqwertyuiop = 4\n", NULL, 9, "engine.qwertyuiop", "unknown key");
    expect_error(HEAD "[engin]\nslots = 4\n", NULL, 8, "", "unknown section [engin]|did you mean [engine]?");
    expect_error(HEAD "[nothing]\n", NULL, 8, "", "unknown section [nothing]");
    expect_error(HEAD "[engine\n", NULL, 8, "", "closing bracket");
    expect_error(HEAD "[engine] slots = 4\n", NULL, 8, "", "text behind");
    expect_error(HEAD "just words\n", NULL, 8, "", "neither a [section] nor a key = value");
    expect_error("name = t\n" HEAD, NULL, 1, "name", "before any [section]");
    expect_error(HEAD "path = other\n", NULL, 8, "model.path", "given twice|line 7");
    expect_error(HEAD "[job]\n  name = u\n", NULL, 9, "job.name", "given twice|line 2");
    expect_error(HEAD "[engine]\nslots = 4\n  devices = 1\n", NULL, 10, "", "indented|indentation");
    expect_error(HEAD "= 4\n", NULL, 8, "model.", "unknown key");
}

static void overrides_that_name_no_key(void **state)
{
    (void)state;
    expect_error(HEAD, "engine.slots", 0, "", "not of the form section.key=value");
    expect_error(HEAD, "slots=4", 0, "", "not of the form section.key=value");
    expect_error(HEAD, "engine.slotz=4", 0, "engine.slotz", "unknown key|slots");
    expect_error(HEAD, "engin.slots=4", 0, "engin.slots", "unknown section|engine");
    expect_error(HEAD, "job.name=a ;b", 0, "job.name", "comment");
    expect_error(HEAD, "job.name=a\nb\x01", 0, "job.name", "control character");
    expect_error(HEAD, "job.name=a\xff", 0, "job.name", "UTF-8");
}

static void all_errors_come_at_once(void **state)
{
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    (void)state;
    assert_int_equal(parse("[job]\noutput = o\nsed = 1\n[engine]\nslots = x\n[sampling]\ntop_p = 2\n[foo]\n",
                           "profile.window=0", "plan.mode=x", "foo", &job, &errs),
                     FKV_E_INPUT);
    /* sed, foo, override foo; slots, top_p, window, mode; name, archives, path missing */
    assert_int_equal(errs.n, 10);
    fkv_errs_free(&errs);
}

/* What is wrong has its default, so that the rest can be looked at. */
static void a_job_with_mistakes_keeps_what_is_right(void **state)
{
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    (void)state;
    put("job.ini", "[job]\nname = \"x\"\noutput = o\n[input]\narchives = gone.zip a.jsonl gone.tar\n"
                   "members = \"*\"\n[engine]\nslots = x\nthreads = 3\n[sampling]\nstop = [\"a ;b\"]\n");
    assert_int_equal(fkv_job_read(job_path, NULL, 0, &job, &errs), FKV_E_INPUT);
    assert_int_equal(errs.n, 6); /* name, archives, members, slots, stop; path is missing */
    assert_non_null(strstr(errs.at[1].message, "gone.zip"));
    assert_non_null(strstr(errs.at[1].message, "gone.tar"));
    assert_non_null(strstr(errs.at[5].message, "\\u003b"));
    assert_non_null(job);
    assert_null(job->job.name);
    assert_null(job->model.path);
    assert_int_equal(job->input.n_files, 1);
    assert_string_equal(job->input.files[0].name, "a.jsonl");
    assert_int_equal(job->input.members.n, 1);
    assert_string_equal(job->input.members.at[0], "*.jsonl");
    assert_int_equal(job->engine.slots, 0);
    assert_int_equal(job->engine.threads, 3);
    fkv_job_free(job);
    fkv_errs_free(&errs);
    errs = (fkv_errs){0};
    assert_int_equal(fkv_job_read("nowhere.ini", NULL, 0, &job, &errs), FKV_E_INPUT);
    assert_null(job);
    fkv_errs_free(&errs);
}

static void overrides_win(void **state)
{
    (void)state;
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    assert_int_equal(parse(HEAD "[engine]\nslots = nonsense\n", "engine.slots=3", "engine.slots = 5",
                           "model.path=here", &job, &errs),
                     FKV_OK);
    assert_int_equal(job->engine.slots, 5);
    assert_string_equal(job->model.path, "here"); /* not below the job file's folder */
    fkv_job_free(job);
    fkv_errs_free(&errs);
}

static void long_lines_need_continuation(void **state)
{
    char text[2048], line[400], path[400];
    (void)state;
    memset(path, 'p', sizeof path);
    snprintf(line, sizeof line, "[job]\nname = t\noutput = /%.188s\n", path); /* 198 bytes */
    snprintf(text, sizeof text, "%s[input]\narchives = a.jsonl\n[model]\npath = m", line);
    fkv_job *job = parse_ok(text, NULL);
    assert_int_equal(strlen(job->job.output), 189);
    fkv_job_free(job);
    snprintf(text, sizeof text,
             "[job]\nname = t\noutput = /%.190s\n[input]\narchives = a.jsonl\n[model]\npath = m", path);
    expect_error(text, NULL, 3, "", "longer than 199 bytes|next line, indented");
    snprintf(text, sizeof text,
             "[job]\nname = t\noutput = /%.180s ; c\n   %.190s ; comment\n\t%.20s\n[input]\n"
             "archives = a.jsonl\n[model]\npath = m",
             path, path, path);
    expect_error(text, NULL, 4, "", "longer than 199 bytes");
    snprintf(text, sizeof text,
             "[job]\nname = t\noutput = /%.180s ; c\n   %.180s ; comment\n\t%.20s\n\n  ; comment\n[input]\n"
             "archives = a.jsonl\n[model]\npath = m",
             path, path, path);
    job = parse_ok(text, NULL);
    assert_int_equal(strlen(job->job.output), 1 + 180 + 180 + 20);
    fkv_job_free(job);
}

static void nul_bytes_are_refused(void **state)
{
    static const char text[] = HEAD "[engine]\nslots = 4\0 5\n";
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    (void)state;
    put_file("job.ini", text, sizeof text - 1);
    assert_int_equal(fkv_job_parse(job_path, NULL, 0, &job, &errs), FKV_E_INPUT);
    assert_int_equal(errs.n, 1);
    assert_int_equal(errs.at[0].line, 9);
    assert_non_null(strstr(errs.at[0].message, "NUL"));
    fkv_errs_free(&errs);
}

static void a_missing_job_file_is_named(void **state)
{
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    (void)state;
    assert_int_equal(fkv_job_parse("/nowhere/job.ini", NULL, 0, &job, &errs), FKV_E_INPUT);
    assert_int_equal(errs.n, 1);
    assert_string_equal(errs.at[0].file, "/nowhere/job.ini");
    fkv_errs_free(&errs);
}

static void environment_variables_are_replaced(void **state)
{
    (void)state;
    setenv("FKV_TEST_DIR_NAME", "/data/x y", 1);
    unsetenv("FKV_TEST_UNSET");
    fkv_job *job = parse_ok("[job]\nname = $5 $${A} ${FKV_TEST_DIR_NAME}!\noutput = ${FKV_TEST_DIR_NAME}/o\n"
                            "[input]\narchives = a.jsonl\n[model]\npath = m\n",
                            NULL);
    assert_string_equal(job->job.name, "$5 ${A} /data/x y!");
    assert_string_equal(job->job.output, "/data/x y/o");
    fkv_job_free(job);
    expect_error(HEAD "[engine]\nslots = ${FKV_TEST_UNSET}\n", NULL, 9, "engine.slots", "FKV_TEST_UNSET");
    expect_error(HEAD "[engine]\nslots = ${\n", NULL, 9, "engine.slots", "${");
    expect_error(HEAD "[engine]\nslots = ${a b}\n", NULL, 9, "engine.slots", "${");
    setenv("FKV_TEST_DIR_NAME", "x ;y", 1);
    expect_error(HEAD "[input]\nprompts = ${FKV_TEST_DIR_NAME}\n", NULL, 9, "input.prompts", "comment");
    unsetenv("FKV_TEST_DIR_NAME");
}

static void archives_are_globbed_in_byte_order(void **state)
{
    (void)state;
    char sub[600];
    snprintf(sub, sizeof sub, "%s/d[1]", dir);
    assert_int_equal(mkdir(sub, 0777), 0);
    snprintf(sub, sizeof sub, "%s/d[1]/folder.jsonl", dir);
    assert_int_equal(mkdir(sub, 0777), 0);
    put("d[1]/b.jsonl", "");
    put("d[1]/B.jsonl", "");
    put("d[1]/a b.jsonl", "");
    put("d[1]/c.zip", "");
    char job_dir[600];
    snprintf(job_dir, sizeof job_dir, "%s/d[1]/job.ini", dir);
    put("d[1]/job.ini",
        "[job]\nname = t\noutput = o\n[input]\narchives = b.jsonl *.jsonl\n  [c].zip a\\ b.jsonl "
        "../a.jsonl\n[model]\npath = m\n");
    fkv_job *job = NULL;
    fkv_errs errs = {0};
    assert_int_equal(fkv_job_parse(job_dir, NULL, 0, &job, &errs), FKV_OK);
    static const char *const names[] = {"../a.jsonl", "B.jsonl", "a b.jsonl", "b.jsonl", "c.zip"};
    assert_int_equal(job->input.n_files, 5);
    for (int i = 0; i < 5; i++) {
        char path[900];
        assert_string_equal(job->input.files[i].name, names[i]);
        snprintf(path, sizeof path, "%s/d[1]/%s", dir, names[i]);
        assert_string_equal(job->input.files[i].path, path);
        assert_true(fkv_file_exists(path));
    }
    fkv_job_free(job);
    fkv_errs_free(&errs);
    expect_error("[job]\nname = t\noutput = o\n[input]\narchives = d?1]/f*\n[model]\npath = m\n", NULL, 5,
                 "input.archives", "matches no file, only folders without one");
    put("d[1]/folder.jsonl/x.jsonl", "");
    put("d[1]/folder.jsonl/.hidden.jsonl", "");
    job = parse_ok("[job]\nname = t\noutput = o\n[input]\narchives = d?1]\n[model]\npath = m\n", NULL);
    static const char *const found[] = {
        "d[1]/B.jsonl", "d[1]/a b.jsonl", "d[1]/b.jsonl", "d[1]/c.zip", "d[1]/folder.jsonl/x.jsonl",
        "d[1]/job.ini"};
    assert_int_equal(job->input.n_files, 6);
    for (int i = 0; i < 6; i++) assert_string_equal(job->input.files[i].name, found[i]);
    fkv_job_free(job);
    put("bad\xff.gz", "");
    expect_error(HEAD, "input.archives=nowhere.zip", 0, "input.archives", "\"nowhere.zip\" matches no file");
    expect_error("[job]\nname = t\noutput = o\n[input]\narchives = a.jsonl\n  x*.zip\n[model]\npath = m\n",
                 NULL, 5, "input.archives", "\"x*.zip\" matches no file");
    expect_error("[job]\nname = t\noutput = o\n[input]\narchives = bad*\n[model]\npath = m\n", NULL, 5,
                 "input.archives", "not UTF-8");
}

static void checks_across_keys(void **state)
{
    (void)state;
    expect_error(HEAD "[job]\nrestart = yes\n[input]\npart = 1/2\n", NULL, 11, "input.part", "restart");
    fkv_job_free(parse_ok(HEAD "[job]\nrestart = yes\n", NULL));
    fkv_job_free(parse_ok(HEAD "[profile]\nmethod = scores\nbudgets_file = b.json\n", NULL));
    fkv_job_free(parse_ok(HEAD "[profile]\nmethod = scores\nscores_file = s.json\n", NULL));
    fkv_job_free(parse_ok(HEAD "[profile]\nmethod = none\nbudget = 1\n", NULL));
    fkv_job_free(parse_ok(HEAD "[profile]\nwindow = 512\nbudget = 1%\n", NULL));
    fkv_job_free(parse_ok(HEAD "[input]\nformat = longbench\nprompts = p.json\n", NULL));
    fkv_job_free(parse_ok(HEAD "[engine]\ndata_parallel = 2\n", NULL));
    expect_error(HEAD "[job]\nrestart = yes\n[input]\npart = auto\n", NULL, 11, "input.part", "restart");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_the_documented_ones),
        cmocka_unit_test(values_of_every_kind_are_read),
        cmocka_unit_test(bad_values_are_named),
        cmocka_unit_test(required_keys_are_missed),
        cmocka_unit_test(bad_lines_are_named),
        cmocka_unit_test(overrides_that_name_no_key),
        cmocka_unit_test(all_errors_come_at_once),
        cmocka_unit_test(a_job_with_mistakes_keeps_what_is_right),
        cmocka_unit_test(overrides_win),
        cmocka_unit_test(long_lines_need_continuation),
        cmocka_unit_test(nul_bytes_are_refused),
        cmocka_unit_test(a_missing_job_file_is_named),
        cmocka_unit_test(environment_variables_are_replaced),
        cmocka_unit_test(archives_are_globbed_in_byte_order),
        cmocka_unit_test(checks_across_keys),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
