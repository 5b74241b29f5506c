/* What a run asks of its devices while it plans: the whole command on a backend that counts
 * (the linker gives this program fkv_backend_find as __wrap_fkv_backend_find). */
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

static int remove_one(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
    (void)sb, (void)type, (void)ftw;
    return remove(path);
}

/* Runs the command in an empty output with settings up to a NULL; the embeddings loaded. */
static int loads_of(const char *command, const char *const *settings)
{
    char job[PATH_SIZE], out[PATH_SIZE];
    char *argv[2 + 2 * MOST_SETTINGS] = {strdup(command), job};
    int argc = 2;
    snprintf(job, sizeof job, "%s/job.ini", dir);
    snprintf(out, sizeof out, "%s/out", dir);
    nftw(out, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    for (; *settings; settings++) {
        argv[argc++] = strdup("-s");
        argv[argc++] = strdup(*settings);
    }
    n_embeddings = 0;
    assert_int_equal(command[0] == 'r' ? fkv_cmd_run(argc, argv) : fkv_cmd_plan(argc, argv), 0);
    for (int i = 0; i < argc; i++)
        if (i != 1) free(argv[i]);
    return n_embeddings;
}

static void weights_are_loaded_once_whatever_is_measured(void **state)
{
    (void)state;
    static const char *const told[] = {"engine.slots=4", NULL};
    static const char *const chosen[] = {"engine.slots=auto", NULL};
    static const char *const ranks[] = {"engine.slots=auto", "engine.tensor_parallel=auto", NULL};
    assert_int_equal(loads_of("run", told), 1);
    assert_int_equal(loads_of("run", chosen), 1);
    assert_int_equal(loads_of("run", ranks), 1); /* one device has one rank */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_loaded_once_whatever_is_measured),
    };
    char path[PATH_SIZE];
    snprintf(dir, sizeof dir, "/tmp/fkv-planning-XXXXXX");
    if (!mkdtemp(dir)) return 1;
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
    fkv_log_set_stderr(false);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return failed;
}
