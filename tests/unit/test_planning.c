/* What a run asks of its devices while it plans, and what it makes of a device's memory: the
 * whole command on a backend that counts and has as much memory as a test says (the linker gives this program
 * fkv_backend_find as __wrap_fkv_backend_find). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/memory.h"
#include "jobs/job_keys.h"
#include "kernels/backend.h"
#include "model_shapes.h"
#include "runner/base/file.h"
#include "runner/base/log.h"
#include "runner/commands.h"
#include "runner/layout.h"
#include "runner/sample.h"

enum { PATH_SIZE = 300, MOST_SETTINGS = 8 };

static char dir[PATH_SIZE - 64];
static fkv_backend counting;
static const fkv_backend *cpu;
static atomic_int n_embeddings;
static int64_t memory_bytes; /* of a device; 0: the machine's */

const fkv_backend *__wrap_fkv_backend_find(const char *name);
const fkv_backend *__wrap_fkv_backend_find(const char *name)
{
    (void)name;
    return &counting;
}

/* Every rank of every engine loads one. */
static fkv_status load_embedding(fkv_device *dev, fkv_rows part, int64_t first, int64_t k, fkv_weight **out,
                                 fkv_err *err)
{
    n_embeddings++;
    return cpu->embedding_load(dev, part, first, k, out, err);
}

static void info_of(const fkv_device *dev, fkv_device_info *info)
{
    cpu->info(dev, info);
    if (memory_bytes) info->memory_bytes = info->total_bytes = memory_bytes;
}

static int remove_one(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
    (void)sb, (void)type, (void)ftw;
    return remove(path);
}

static void remove_output(void)
{
    char out[PATH_SIZE];
    snprintf(out, sizeof out, "%s/out", dir);
    nftw(out, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Runs the job with settings up to a NULL; the exit code. */
static int run(const char *const *settings)
{
    char job[PATH_SIZE];
    char *argv[2 + 2 * MOST_SETTINGS] = {strdup("run"), job};
    int argc = 2;
    snprintf(job, sizeof job, "%s/job.ini", dir);
    for (; *settings; settings++) {
        argv[argc++] = strdup("-s");
        argv[argc++] = strdup(*settings);
    }
    n_embeddings = 0;
    const int code = fkv_cmd_run(argc, argv);
    for (int i = 0; i < argc; i++)
        if (i != 1) free(argv[i]);
    return code;
}

/* The embeddings that a run loads. */
static int loads_of(const char *const *settings)
{
    remove_output();
    assert_int_equal(run(settings), 0);
    return n_embeddings;
}

static void read_output(const char *name, fkv_buf *out)
{
    char path[PATH_SIZE];
    fkv_err err = {0};
    fkv_buf_clear(out);
    snprintf(path, sizeof path, "%s/out/%s", dir, name);
    if (fkv_file_read(path, 1 << 20, out, &err)) fail_msg("%s", err.message);
}

static void weights_are_loaded_once_whatever_is_measured(void **state)
{
    (void)state;
    static const char *const told[] = {"engine.slots=4", NULL};
    static const char *const chosen[] = {"engine.slots=auto", NULL};
    static const char *const ranks[] = {"engine.slots=auto", "engine.tensor_parallel=auto", NULL};
    static const char *const measured[] = {"engine.slots=auto", "plan.calibration=auto", NULL};
    assert_int_equal(loads_of(told), 1);
    assert_int_equal(loads_of(measured), 1);
    assert_int_equal(loads_of(chosen), 1);
    assert_int_equal(loads_of(ranks), 1); /* one device has one rank */
}

/* The number behind "name": in plan.json. */
static long long planned(const char *name)
{
    fkv_buf plan = {0};
    char key[64];
    read_output("plan.json", &plan);
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = strstr(plan.data, key);
    if (!at) fail_msg("no %s in plan.json", name);
    const long long n = strtoll(at + strlen(key), NULL, 10);
    fkv_buf_free(&plan);
    return n;
}

/* Ten short records and one whose limit asks for much. */
static const char *const mixed[] = {"input.archives=mixed.jsonl", "input.members=*", "input.format=prompt",
                                    "engine.tensor_parallel=2",   "engine.slots=4",  NULL};

static void write_mixed(void)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/mixed.jsonl", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < 11; i++)
        fprintf(f, "{\"id\":%d,\"prompt\":\"The %d. robin carries a flame\",\"max_tokens\":%d}\n", i, i,
                i == 4 ? 1800 : 5);
    fclose(f);
}

static void a_record_too_large_is_one_error_row(void **state)
{
    (void)state;
    fkv_buf stats = {0};
    write_mixed();
    memory_bytes = (int64_t)60 << 20;
    remove_output();
    assert_int_equal(run(mixed), 1);
    read_output("stats.json", &stats);
    if (!strstr(stats.data, "\"errors\":1,")) fail_msg("%s", stats.data);
    fkv_buf_free(&stats);
    memory_bytes = 0;
}

static void the_largest_record_is_one_for_every_mode(void **state)
{
    (void)state;
    static const char *const modes[] = {"plan.mode=standard", "plan.mode=best-effort",
                                        "plan.mode=fair-copying"};
    long long pages[3], prompt[3];
    write_mixed();
    memory_bytes = (int64_t)60 << 20;
    for (int i = 0; i < 3; i++) {
        const char *settings[MOST_SETTINGS] = {NULL};
        memcpy(settings, mixed, sizeof mixed);
        settings[5] = modes[i];
        remove_output();
        assert_int_equal(run(settings), 1);
        pages[i] = planned("pages");
        prompt[i] = planned("prompt");
    }
    assert_true(pages[0] > 8 && pages[0] < 128);
    assert_true(pages[1] == pages[0] && pages[2] == pages[0]);
    assert_true(prompt[1] == prompt[0] && prompt[2] == prompt[0]);
    memory_bytes = 0;
}

static void a_resume_with_less_memory_fails_instead_of_refusing_records(void **state)
{
    (void)state;
    const char *settings[MOST_SETTINGS] = {NULL};
    write_mixed();
    memcpy(settings, mixed, sizeof mixed);
    settings[5] = "job.max_errors=1"; /* ends at the large one */
    memory_bytes = (int64_t)60 << 20;
    remove_output();
    assert_int_equal(run(settings), 2);
    const long long pages = planned("pages");
    memory_bytes = (int64_t)20 << 20;
    assert_int_equal(run(mixed), 4);
    memory_bytes = (int64_t)200 << 20;
    assert_int_equal(run(mixed), 1);
    assert_int_equal(planned("pages"), pages);
    memory_bytes = 0;
}

static void a_plan_without_a_layout_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
    } damages[] = {{"\"layout\"", "\"layers2\""},
                   {"\"largest_record\"", "\"large\""},
                   {"\"pages\":", "\"pages\":-"},
                   {"\"max_tokens\":", "\"max_tokens\":0,\"x\":"}};
    const char *settings[MOST_SETTINGS] = {NULL};
    fkv_err err = {0};
    write_mixed();
    memcpy(settings, mixed, sizeof mixed);
    settings[5] = "job.max_errors=1"; /* ends at the large one */
    memory_bytes = (int64_t)60 << 20;
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        char path[PATH_SIZE];
        fkv_buf plan = {0}, damaged = {0};
        remove_output();
        assert_int_equal(run(settings), 2);
        read_output("plan.json", &plan);
        const char *at = strstr(plan.data, damages[i].from);
        assert_non_null(at);
        fkv_buf_append(&damaged, plan.data, (size_t)(at - plan.data), &err);
        fkv_buf_printf(&damaged, &err, "%s%s", damages[i].to, at + strlen(damages[i].from));
        snprintf(path, sizeof path, "%s/out/plan.json", dir);
        assert_int_equal(fkv_file_replace(path, damaged.data, damaged.len, &err), FKV_OK);
        assert_int_equal(run(mixed), 2);
        fkv_buf_free(&plan);
        fkv_buf_free(&damaged);
    }
    memory_bytes = 0;
}

static void the_longest_prompt_is_expected_from_lines_bytes(void **state)
{
    (void)state;
    fkv_sample_record records[] = {{.n_tokens = 900, .n_bytes = 3600},
                                   {.n_tokens = 1000, .n_bytes = 5000},
                                   {.n_tokens = 400, .n_bytes = 300}}; /* a short line: a template's tokens */
    fkv_sample s = {.records = records, .n = 3, .n_input = 100, .max_line_bytes = 16000};
    assert_int_equal(fkv_sample_longest(&s), 4500); /* a quarter of a token a byte, and an eighth */
    s.n_input = 3;
    assert_int_equal(fkv_sample_longest(&s), 1000);
    s.n_input = 100;
    s.max_line_bytes = 100;
    assert_int_equal(fkv_sample_longest(&s), 1000);
    s.max_line_bytes = INT64_MAX / 2;
    assert_int_equal(fkv_sample_longest(&s), 1 << 30);
    s.n = 0;
    assert_int_equal(fkv_sample_longest(&s), 0);
}

static void buffers_follow_the_input_and_not_the_models_positions(void **state)
{
    (void)state;
    static const int32_t budgets[256] = {1};
    static const fkv_memory_lengths nothing = {0, 0};
    const fkv_setup setup = {.config = shape_8b, .limits = {.max_positions = 131072}};
    int64_t bytes[2];
    for (int i = 0; i < 2; i++) {
        fkv_layout layout = {0};
        fkv_memory m;
        fkv_err err = {0};
        fkv_layout_reach(&setup, i ? 0 : 28000, i ? 0 : 512, 2048, &layout);
        assert_int_equal(layout.max_prompt, i ? 131071 : 28672);
        assert_int_equal(layout.max_tokens, i ? 131072 : 28672 + 512);
        const fkv_memory_shape shape = {.config = &shape_8b,
                                        .n_ranks = 1,
                                        .n_devices = 1,
                                        .n_slots = 64,
                                        .max_prompt = layout.max_prompt,
                                        .max_tokens = layout.max_tokens,
                                        .act_bytes = 2,
                                        .kv_bytes = 2,
                                        .weight_bytes = 2,
                                        .prefill_tile = 2048};
        assert_int_equal(fkv_memory_predict(&shape, NULL, budgets, &nothing, &m, &err), FKV_OK);
        bytes[i] = m.device[0].buffer_bytes;
        fkv_memory_free(&m);
    }
    if (bytes[0] > (int64_t)1300 << 20 || bytes[1] < (int64_t)4600 << 20)
        fail_msg("%lld and %lld bytes", (long long)bytes[0], (long long)bytes[1]);
}

/* jobs/ may not see engine/, so the job file's key has the names of its own. */
static void a_job_and_a_plan_call_the_modes_alike(void **state)
{
    (void)state;
    fkv_buf names = {0};
    fkv_err err = {0};
    for (int m = 0; m < FKV_PLAN_MODES; m++)
        assert_int_equal(
            fkv_buf_printf(&names, &err, "%s%s", m ? " " : "", fkv_plan_mode_name((fkv_plan_mode)m)), FKV_OK);
    const int key = fkv_key_find("plan", strlen("plan"), "mode", strlen("mode"));
    assert_true(key >= 0);
    assert_string_equal(fkv_keys[key].choices, names.data);
    assert_int_equal(FKV_JOB_STANDARD, FKV_PLAN_STANDARD);
    assert_int_equal(FKV_JOB_BEST_EFFORT, FKV_PLAN_BEST_EFFORT);
    assert_int_equal(FKV_JOB_FAIR_COPYING, FKV_PLAN_FAIR_COPYING);
    fkv_buf_free(&names);
}

static void a_job_and_a_backend_call_the_scorers_alike(void **state)
{
    (void)state;
    fkv_buf names = {0};
    fkv_err err = {0};
    for (int i = 0; i < FKV_N_SCORERS; i++)
        assert_int_equal(fkv_buf_printf(&names, &err, "%s%s", i ? " " : "", fkv_scorer_name((fkv_scorer)i)),
                         FKV_OK);
    const int key = fkv_key_find("profile", strlen("profile"), "score", strlen("score"));
    assert_true(key >= 0);
    assert_string_equal(fkv_keys[key].choices, names.data);
    assert_int_equal(FKV_SCORE_SNAPKV, FKV_SCORER_SNAPKV);
    assert_int_equal(FKV_SCORE_EXPECTED, FKV_SCORER_EXPECTED);
    fkv_buf_free(&names);
}

static void a_job_and_a_page_call_the_forms_alike(void **state)
{
    (void)state;
    const int key = fkv_key_find("engine", strlen("engine"), "kv_cache", strlen("kv_cache"));
    assert_true(key >= 0);
    assert_string_equal(fkv_keys[key].choices, "bf16 fp8");
    assert_int_equal(FKV_JOB_KV_BF16, FKV_KV_PLAIN);
    assert_int_equal(FKV_JOB_KV_FP8, FKV_KV_FP8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_and_a_plan_call_the_modes_alike),
        cmocka_unit_test(a_job_and_a_backend_call_the_scorers_alike),
        cmocka_unit_test(a_job_and_a_page_call_the_forms_alike),
        cmocka_unit_test(a_record_too_large_is_one_error_row),
        cmocka_unit_test(the_largest_record_is_one_for_every_mode),
        cmocka_unit_test(a_resume_with_less_memory_fails_instead_of_refusing_records),
        cmocka_unit_test(a_plan_without_a_layout_is_refused),
        cmocka_unit_test(the_longest_prompt_is_expected_from_lines_bytes),
        cmocka_unit_test(buffers_follow_the_input_and_not_the_models_positions),
        cmocka_unit_test(weights_are_loaded_once_whatever_is_measured),
    };
    char path[PATH_SIZE];
    snprintf(dir, sizeof dir, "/tmp/fkv-planning-XXXXXX");
    if (!mkdtemp(dir) || chdir(dir)) return 1; /* paths of settings are relative to it */
    snprintf(path, sizeof path, "%s/job.ini", dir);
    FILE *f = fopen(path, "w");
    if (!f) return 1;
    fprintf(
        f,
        "[job]\nname = planning\noutput = out\nlimit = 9\n[input]\narchives = %s/data/needle.tar.zst\n"
        "members = data/needle_500.jsonl\nformat = longbench\nprompts = %s/data/needle-dataset2prompt.json\n"
        "max_new_tokens_by = %s/data/needle-dataset2maxlen.json\n[model]\npath = %s/data/needle-tiny\n"
        "max_prompt_tokens = 96\ntruncate = left\n[profile]\nmethod = ada-snapkv\nbudget = 40\nsample = 2\n"
        "[plan]\ncalibration = stated\n[engine]\nbackend = cpu\ntensor_parallel = 1\n",
        FKV_TEST_DIR, FKV_TEST_DIR, FKV_TEST_DIR, FKV_TEST_DIR);
    fclose(f);
    cpu = fkv_backend_cpu();
    counting = *cpu;
    counting.embedding_load = load_embedding;
    counting.info = info_of;
    fkv_log_set_stderr(false);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return failed;
}
