/* What is written of a job: the resolved INI, the identity, the help of keys. */
#include "tests/unit/job_fixture.h"

static void same_job(const fkv_job *a, const fkv_job *b)
{
    fkv_buf x = {0}, y = {0};
    assert_int_equal(fkv_job_write_ini(a, &x, NULL), FKV_OK);
    assert_int_equal(fkv_job_write_ini(b, &y, NULL), FKV_OK);
    assert_string_equal(x.data, y.data);
    fkv_buf_free(&x);
    fkv_buf_free(&y);
}

static void written_ini_reads_back(void **state)
{
    char text[4096], deep[300], again[400];
    fkv_buf ini = {0};
    fkv_job *job2 = NULL;
    fkv_errs errs = {0};
    (void)state;
    memset(deep, 'q', sizeof deep);
    put("odd *[1]$ name?;.jsonl", "");
    snprintf(text, sizeof text,
             "[job]\nname = $${x} \"y\"\noutput = /%.150s\n   /%.150s ;\n[input]\narchives = odd* a.jsonl\n"
             "members = \\;a b\\ c $${d} e\\  path=*\n%s\nplain_datasets = format\n  x %.150s\n[model]\npath "
             "= model\n[sampling]\n"
             "stop = [\"one;\", \"${FKV_X}\", \"\\u00e9\\t\"]\ntop_p = 0.1\n[profile]\nbudget = 33.3%%\n",
             deep, deep, "part = 2/7", deep);
    setenv("FKV_X", " ;${#", 1);
    fkv_job *job = parse_ok(text, NULL);
    assert_int_equal(job->input.members.n, 5);
    assert_int_equal(fkv_job_write_ini(job, &ini, NULL), FKV_OK);
    put("resolved.ini", ini.data);
    snprintf(again, sizeof again, "%s/resolved.ini", dir);
    if (fkv_job_parse(again, NULL, 0, &job2, &errs)) {
        char message[2048];
        fkv_err_format(&errs.at[0], message, sizeof message);
        print_error("%s\n%s\n", message, ini.data);
        fail();
    }
    same_job(job, job2);
    assert_string_equal(job->job.name, job2->job.name);
    assert_string_equal(job->job.output, job2->job.output);
    assert_string_equal(job->input.files[1].path, job2->input.files[1].path);
    assert_string_equal(job->input.members.at[3], "e\\ ");
    assert_string_equal(job2->input.members.at[3], "e[\\ ]"); /* the same, and not at a line's end */
    assert_int_equal(job2->input.plain_datasets.n, 3);
    assert_string_equal(job->input.plain_datasets.at[2], job2->input.plain_datasets.at[2]);
    assert_string_equal(job->sampling.stop[1], " ;${#");
    assert_string_equal(job2->sampling.stop[1], " ;${#");
    assert_string_equal(job2->sampling.stop[2], "\xc3\xa9\t");
    assert_true(job2->profile.budget_percent == 33.3);
    assert_true(job2->input.part == 2 && job2->input.n_parts == 7);
    fkv_job_free(job);
    fkv_job_free(job2);
    fkv_errs_free(&errs);
    fkv_buf_free(&ini);
}

/* What is refused until it is built is written as it will be read. */
static void template_settings_are_written(void **state)
{
    fkv_buf out = {0};
    (void)state;
    fkv_job *job = parse_ok(HEAD, NULL);
    put("t.jinja", "{{ x }}");
    free(job->model.chat_template);
    job->model.chat_template = in_dir("t.jinja");
    job->model.template_vars = strdup("{\"a\":\" ;$#\",\"b\":[1,false]}");
    job->model.date = strdup("2026-07-01");
    assert_int_equal(fkv_job_write_ini(job, &out, NULL), FKV_OK);
    assert_non_null(strstr(out.data, "/t.jinja\n"));
    assert_non_null(
        strstr(out.data, "\ntemplate_vars = {\"a\":\"\\u0020\\u003b\\u0024\\u0023\",\"b\":[1,false]}\n"));
    assert_non_null(strstr(out.data, "\ndate = 2026-07-01\n"));
    fkv_buf_clear(&out);
    free(job->model.path);
    job->model.path = in_dir("written-model");
    assert_int_equal(mkdir(job->model.path, 0777), 0);
    put("written-model/config.json", "{}");
    assert_int_equal(fkv_job_write_identity(job, &out, NULL), FKV_OK);
    assert_non_null(strstr(out.data, "\"model.chat_template\":\"7:"));
    assert_non_null(strstr(out.data, "\"model.date\":\"2026-07-01\""));
    fkv_buf_free(&out);
    fkv_job_free(job);
}

/* Wherever a line ends, it ends between characters. */
static void written_ini_keeps_characters_whole(void **state)
{
    (void)state;
    for (int shift = 0; shift < 3; shift++) {
        char text[1024], output[300] = "/xx", again[400];
        fkv_buf ini = {0};
        fkv_job *job2 = NULL;
        fkv_errs errs = {0};
        output[1 + shift] = '\0';
        for (int i = 0; i < 60; i++) strcat(output, "\xe9\x95\xb7");
        snprintf(text, sizeof text,
                 "[job]\nname = t\noutput = %.*s\n   %s\n[input]\narchives = a.jsonl\n[model]\npath = m\n",
                 1 + shift + 90, output, output + 1 + shift + 90);
        fkv_job *job = parse_ok(text, NULL);
        assert_string_equal(job->job.output, output);
        assert_int_equal(fkv_job_write_ini(job, &ini, NULL), FKV_OK);
        put("resolved.ini", ini.data);
        snprintf(again, sizeof again, "%s/resolved.ini", dir);
        assert_int_equal(fkv_job_parse(again, NULL, 0, &job2, &errs), FKV_OK);
        assert_string_equal(job2->job.output, output);
        fkv_job_free(job);
        fkv_job_free(job2);
        fkv_errs_free(&errs);
        fkv_buf_free(&ini);
    }
}

static char *identity(const char *text, const char *override)
{
    fkv_buf out = {0};
    fkv_err err = {0};
    fkv_job *job = parse_ok(text, override);
    assert_int_equal(fkv_job_write_identity(job, &out, &err), FKV_OK);
    fkv_job_free(job);
    return out.data;
}

static void parts_may_be_left_to_who_is_free(void **state)
{
    fkv_buf ini = {0};
    (void)state;
    fkv_job *job = parse_ok(HEAD, "input.part=auto");
    assert_true(job->input.claims && job->input.part == 0 && job->input.n_parts == 1);
    assert_int_equal(fkv_job_write_ini(job, &ini, NULL), FKV_OK);
    assert_non_null(strstr(ini.data, "\npart = auto\n"));
    fkv_job_free(job);
    job = parse_ok(HEAD "[input]\npart = auto\n", "input.part=1/2");
    assert_true(!job->input.claims && job->input.part == 1 && job->input.n_parts == 2);
    fkv_job_free(job);
    fkv_buf_free(&ini);
}

static void identity_changes_with_answers_only(void **state)
{
    static const char *const same[] = {"job.name=u",        "job.output=elsewhere",   "job.max_errors=3",
                                       "job.grace=1",       "input.part=1/3",         "plan.mode=standard",
                                       "plan.max_copies=1", "engine.backend=cpu",     "engine.devices=2",
                                       "job.restart=yes",   "engine.data_parallel=1", "job.max_errors=0.5%",
                                       "output.progress=5", "output.metrics=m.prom",  "input.part=auto"};
    static const char *const different[] = {"job.seed=1",
                                            "job.limit=5",
                                            "input.members=*",
                                            "input.format=prompt",
                                            "input.max_record_bytes=1M",
                                            "model.weights=dummy",
                                            "model.max_prompt_tokens=7",
                                            "model.truncate=left",
                                            "profile.sample=1",
                                            "profile.method=uniform",
                                            "profile.score=keydiff",
                                            "profile.sinks=4",
                                            "profile.window=8",
                                            "profile.kernel=5",
                                            "profile.floor=0.25",
                                            "profile.budget=64",
                                            "profile.budget=64%",
                                            "engine.tensor_parallel=2",
                                            "engine.slots=2",
                                            "engine.max_new_tokens=5",
                                            "sampling.temperature=1",
                                            "sampling.top_p=0.5",
                                            "sampling.top_k=5",
                                            "sampling.stop=[\"x\"]",
                                            "output.records_per_shard=5",
                                            "output.compression_level=5",
                                            "output.token_ids=yes",
                                            "model.chat_template=none",
                                            "input.plain_datasets=trec",
                                            "input.plain_datasets="};
    char path[600];
    (void)state;
    snprintf(path, sizeof path, "%s/model", dir);
    assert_int_equal(mkdir(path, 0777), 0);
    put("model/config.json", "{}");
    put("model/a.safetensors", "12345678");
    put("p.json", "{}");
    char *base = identity(HEAD, NULL);
    assert_non_null(strstr(base, "\"input.archives\":\"3:"));
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        char *other = identity(HEAD, same[i]);
        assert_string_equal(base, other);
        free(other);
    }
    for (size_t i = 0; i < sizeof different / sizeof *different; i++) {
        char *other = identity(HEAD, different[i]);
        if (strcmp(base, other) == 0) print_error("%s\n", different[i]);
        assert_string_not_equal(base, other);
        free(other);
    }
    /* Changed content counts, names and paths of prompts and model do not. */
    char *prompts = identity(HEAD "[input]\nprompts = p.json\n", NULL);
    assert_string_not_equal(base, prompts);
    put("p.json", "{ }");
    char *changed = identity(HEAD "[input]\nprompts = p.json\n", NULL);
    assert_string_not_equal(prompts, changed);
    free(changed);
    put("model/chat_template.jinja", "{{ x }}");
    changed = identity(HEAD, NULL);
    assert_string_not_equal(base, changed);
    free(changed);
    put("model/a.safetensors", "12345679");
    changed = identity(HEAD, NULL);
    assert_string_not_equal(base, changed);
    put("a.jsonl", "{ }\n");
    char *input = identity(HEAD, NULL);
    assert_string_not_equal(changed, input);
    put("a.jsonl", "{}\n");
    free(input);
    free(changed);
    free(prompts);
    free(base);
}

/* The keys came later, and ada was called ada-snapkv. */
static void an_output_made_before_there_were_scorers_goes_on(void **state)
{
    (void)state;
    char *base = identity(HEAD, NULL), *old = identity(HEAD, "profile.method=ada-snapkv"),
         *set = identity(HEAD "[profile]\nscore = snapkv\n", "profile.sinks=0");
    assert_string_equal(base, old);
    assert_string_equal(base, set);
    assert_non_null(strstr(base, "\"profile.sample\":\"64\",\"profile.method\":\"ada-snapkv\","
                                 "\"profile.window\":\"32\""));
    free(base), free(old), free(set);
}

static void identity_names_a_missing_model(void **state)
{
    fkv_buf out = {0};
    fkv_err err = {0};
    (void)state;
    fkv_job *job = parse_ok(HEAD, "model.path=nowhere-model");
    assert_int_equal(fkv_job_write_identity(job, &out, &err), FKV_E_INPUT);
    assert_non_null(strstr(err.file, "nowhere-model"));
    fkv_buf_free(&out);
    fkv_job_free(job);
}

static void help_has_every_key(void **state)
{
    fkv_buf out = {0};
    (void)state;
    assert_int_equal(fkv_job_write_help(&out, NULL), FKV_OK);
    for (size_t i = 0; i < fkv_n_keys; i++) {
        char line[256];
        snprintf(line, sizeof line, "\n%s = %s", fkv_keys[i].name,
                 fkv_keys[i].fallback ? fkv_keys[i].fallback : "");
        assert_non_null(strstr(out.data, line));
        assert_non_null(strstr(out.data, fkv_keys[i].help));
    }
    assert_non_null(strstr(out.data, "  required; text\n"));
    fkv_buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(written_ini_reads_back),
        cmocka_unit_test(template_settings_are_written),
        cmocka_unit_test(written_ini_keeps_characters_whole),
        cmocka_unit_test(parts_may_be_left_to_who_is_free),
        cmocka_unit_test(identity_changes_with_answers_only),
        cmocka_unit_test(an_output_made_before_there_were_scorers_goes_on),
        cmocka_unit_test(identity_names_a_missing_model),
        cmocka_unit_test(help_has_every_key),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
