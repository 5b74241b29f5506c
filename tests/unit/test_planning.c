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

#include "kernels/backend.h"
#include "runner/base/file.h"
#include "runner/base/log.h"
#include "runner/commands.h"

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
    assert_int_equal(loads_of(told), 1);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_record_too_large_is_one_error_row),
        cmocka_unit_test(the_largest_record_is_one_for_every_mode),
        cmocka_unit_test(a_resume_with_less_memory_fails_instead_of_refusing_records),
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
