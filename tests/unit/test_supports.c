/* What a backend can't do is known before anything starts: auto leaves a GPU that can't run
 * the model and says why, cuda is refused by check with the same sentence, and devices out of
 * each other's reach get a plan without copies.
 *
 * The linker gives this program fkv_backend_find as __wrap_fkv_backend_find: the GPUs here are
 * CPU devices under a table whose answers a trial sets. */
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

#include "kernels/backend.h"
#include "runner/base/file.h"
#include "runner/commands.h"
#include "runner/setup.h"

enum { PATH_SIZE = 300, MAX_OVERRIDES = 4 };

static char dir[PATH_SIZE - 64]; /* of this program's files */
static fkv_backend gpu;
static int n_gpus;
static int most_heads, most_slots; /* what it serves: query heads of a KV head, slots */
static bool unlike;                /* GPUs */
static fkv_attention_spec asked;   /* of the last one that asked */
static bool in_reach;

static fkv_status supports(const fkv_device_limits *l, const fkv_group *group, fkv_err *err)
{
    const int n_devices = group->n_devices;
    if (l->n_layers) asked = l->layers[l->n_layers - 1];
    if (l->n_heads / l->n_kv_heads > most_heads)
        return fkv_fail(err, FKV_E_INPUT, "too many query heads: %d", l->n_heads / l->n_kv_heads);
    if (l->n_slots > most_slots) return fkv_fail(err, FKV_E_INPUT, "too many slots: %d", l->n_slots);
    if (n_devices > n_gpus) return fkv_fail(err, FKV_E_INPUT, "%d GPUs are too many", n_devices);
    if (n_devices > 1 && unlike) return fkv_fail(err, FKV_E_INPUT, "GPUs of unlike kinds");
    return FKV_OK;
}

static bool reach(const fkv_group *group)
{
    return group->n_devices == 1 || in_reach;
}

static void info(const fkv_device *dev, fkv_device_info *out)
{
    fkv_backend_cpu()->info(dev, out);
    out->peers = in_reach;
    out->worth_slots = 256;
}

static int count_gpus(void)
{
    return n_gpus;
}

const fkv_backend *__wrap_fkv_backend_find(const char *name);
const fkv_backend *__wrap_fkv_backend_find(const char *name)
{
    return strcmp(name, "cpu") ? &gpu : fkv_backend_cpu();
}

static void usual_gpus(void)
{
    n_gpus = 2;
    most_heads = 8;
    most_slots = 256;
    unlike = false;
    in_reach = true;
}

static void in_dir(const char *name, char out[PATH_SIZE])
{
    snprintf(out, PATH_SIZE, "%s/%s", dir, name);
}

/* What is printed goes to a file until shown; then it is in said. */
static fkv_buf said;
static int stderr_before;

static void hide(void)
{
    char path[PATH_SIZE];
    in_dir("said", path);
    fflush(stderr);
    stderr_before = dup(2);
    assert_non_null(freopen(path, "w", stderr));
}

static void show(void)
{
    char path[PATH_SIZE];
    fkv_err err = {0};
    in_dir("said", path);
    fflush(stderr);
    dup2(stderr_before, 2);
    close(stderr_before);
    fkv_buf_clear(&said);
    if (fkv_file_read(path, 1 << 20, &said, &err)) fail_msg("%s", err.message);
    assert_int_equal(fkv_buf_puts(&said, "", &err), FKV_OK);
}

static void assert_said(const char *word)
{
    if (!said.data || !strstr(said.data, word)) fail_msg("not said: %s\n%s", word, said.data);
}

/* Arguments of a subcommand on the job with overrides, up to the first NULL. */
static int arguments(char **argv, char *job, const char *const overrides[MAX_OVERRIDES])
{
    static char minus_s[] = "-s", command[] = "check";
    int n = 0;
    in_dir("job.ini", job);
    argv[n++] = command;
    argv[n++] = job;
    for (int i = 0; i < MAX_OVERRIDES && overrides[i]; i++) {
        argv[n++] = minus_s;
        argv[n++] = (char *)overrides[i];
    }
    return n;
}

static int set_up(fkv_setup *s, const char *const overrides[MAX_OVERRIDES])
{
    char job[PATH_SIZE], *argv[2 + 2 * MAX_OVERRIDES];
    const int argc = arguments(argv, job, overrides);
    fkv_errs errs = {0};
    hide();
    int code = fkv_setup_parse(argc, argv, "", s, &errs);
    if (code < 0) fkv_setup_load(s, &errs);
    if (code < 0 && errs.n) code = fkv_report_errors(&errs);
    fkv_errs_free(&errs);
    show();
    return code;
}

#define SET_UP(s, ...) set_up(s, (const char *const[MAX_OVERRIDES]){__VA_ARGS__})

static void auto_leaves_a_gpu_that_can_not_run_the_model_and_says_why(void **state)
{
    (void)state;
    fkv_setup s;
    usual_gpus();
    assert_int_equal(SET_UP(&s, NULL), -1);
    assert_ptr_equal(s.backend, &gpu);
    assert_int_equal(s.n_devices, 2);
    fkv_setup_close(&s);
    most_heads = 1;
    assert_int_equal(SET_UP(&s, NULL), -1);
    assert_ptr_equal(s.backend, fkv_backend_cpu());
    assert_int_equal(s.n_devices, 1);
    assert_said("engine.backend = auto takes cpu: too many query heads: 2");
    fkv_setup_close(&s);
}

/* A backend that can't do what a layer asks for must know before it starts. */
static void a_backend_is_asked_about_the_models_layers(void **state)
{
    (void)state;
    fkv_setup s;
    usual_gpus();
    asked = (fkv_attention_spec){0};
    assert_int_equal(SET_UP(&s, NULL), -1);
    fkv_attention_spec *specs = fkv_config_layers(&s.config);
    assert_non_null(specs);
    assert_true(specs[0].n_kv_heads > 0 && specs[0].scale > 0);
    assert_int_equal(asked.n_kv_heads, specs[0].n_kv_heads);
    assert_true(asked.scale == specs[0].scale);
    free(specs);
    fkv_setup_close(&s);
}

static void layers_that_can_not_be_are_refused_by_every_backend(void **state)
{
    (void)state;
    const fkv_attention_spec good = {
        .n_kv_heads = 2, .group = 3, .head_dim = 64, .scale = fkv_attention_scale(64)};
    fkv_attention_spec layers[2] = {good, good}, bad[8];
    const fkv_device_limits limits = {.n_slots = 1,
                                      .n_heads = 6,
                                      .n_kv_heads = 2,
                                      .head_dim = 64,
                                      .n_ropes = 1,
                                      .layers = layers,
                                      .n_layers = 2};
    fkv_err err = {0};
    for (int i = 0; i < 8; i++) bad[i] = good;
    bad[0].n_kv_heads = 1;
    bad[1].group = 2;
    bad[2].head_dim = 32;
    bad[3].rope = 1;
    bad[4].rope = -2;
    bad[5].scale = 0;
    bad[6].softcap = -1;
    bad[7].window = -1;
    assert_int_equal(fkv_backend_cpu()->supports(&limits, &(fkv_group){.n_devices = 1}, &err), FKV_OK);
    for (int i = 0; i < 8; i++) {
        err = (fkv_err){0};
        layers[1] = bad[i];
        assert_int_equal(fkv_backend_cpu()->supports(&limits, &(fkv_group){.n_devices = 1}, &err),
                         FKV_E_INPUT);
        if (!strstr(err.message, "layer 1")) fail_msg("%d: %s", i, err.message);
    }
}

static void what_cuda_can_not_do_is_refused_by_check(void **state)
{
    (void)state;
    fkv_setup s;
    usual_gpus();
    most_heads = 1;
    assert_int_equal(SET_UP(&s, "engine.backend=cuda"), 2);
    assert_said("engine.backend: too many query heads: 2");
    fkv_setup_close(&s);
    usual_gpus();
    assert_int_equal(SET_UP(&s, "engine.backend=cuda", "engine.devices=3", "engine.tensor_parallel=3"), 2);
    assert_said("3 GPUs are too many");
    fkv_setup_close(&s);
}

/* A slip in the job must not send it to the CPU for days. */
static void a_job_that_asks_too_much_of_the_gpu_does_not_go_to_the_cpu(void **state)
{
    (void)state;
    fkv_setup s;
    usual_gpus();
    assert_int_equal(SET_UP(&s, "engine.slots=300"), 2);
    assert_said("engine.backend: too many slots: 300");
    fkv_setup_close(&s);
    assert_int_equal(SET_UP(&s, "engine.devices=4", "engine.tensor_parallel=4"), 2);
    assert_said("4 GPUs are too many");
    fkv_setup_close(&s);
}

static void auto_takes_as_many_devices_as_can_work_together(void **state)
{
    (void)state;
    fkv_setup s;
    usual_gpus();
    unlike = true;
    assert_int_equal(SET_UP(&s, NULL), -1);
    assert_ptr_equal(s.backend, &gpu);
    assert_int_equal(s.n_devices, 1);
    assert_int_equal(s.n_ranks, 1);
    assert_said("engine.devices = auto takes 1 of 2: GPUs of unlike kinds");
    fkv_setup_close(&s);
    assert_int_equal(SET_UP(&s, "engine.devices=2"), 2);
    assert_said("engine.backend: GPUs of unlike kinds");
    fkv_setup_close(&s);
}

static void devices_out_of_reach_get_no_copies_or_are_refused(void **state)
{
    (void)state;
    static const char *const refused[] = {"plan.mode=fair-copying", "plan.mode=best-effort"};
    static const char *const allowed[] = {"plan.mode=standard", "plan.max_copies=0", "engine.devices=1"};
    fkv_setup s;
    usual_gpus();
    assert_int_equal(SET_UP(&s, NULL), -1);
    assert_int_equal(s.job->plan.mode, FKV_JOB_FAIR_COPYING);
    fkv_setup_close(&s);
    in_reach = false;
    assert_int_equal(SET_UP(&s, NULL), -1);
    assert_int_equal(s.job->plan.mode, FKV_JOB_STANDARD);
    assert_said("plan.mode is standard: the 2 devices can't reach each other's memory");
    fkv_setup_close(&s);
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        assert_int_equal(SET_UP(&s, refused[i]), 2);
        assert_said("plan.mode: moves heads between devices");
        assert_said("use standard, or engine.devices = 1");
        fkv_setup_close(&s);
    }
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
        assert_int_equal(SET_UP(&s, allowed[i]), -1);
        assert_null(strstr(said.data, "reach"));
        fkv_setup_close(&s);
    }
}

static void a_job_on_devices_out_of_reach_runs_to_its_end(void **state)
{
    (void)state;
    char job[PATH_SIZE], plan[PATH_SIZE], *argv[2 + 2 * MAX_OVERRIDES];
    const char *const overrides[MAX_OVERRIDES] = {"engine.tensor_parallel=4", "engine.devices=2"};
    fkv_buf text = {0};
    fkv_err err = {0};
    usual_gpus();
    in_reach = false;
    const int argc = arguments(argv, job, overrides);
    hide();
    const int code = fkv_cmd_run(argc, argv);
    show();
    if (code) fail_msg("exit %d\n%s", code, said.data);
    in_dir("out/plan.json", plan);
    assert_int_equal(fkv_file_read(plan, 1 << 20, &text, &err), FKV_OK);
    assert_non_null(strstr(text.data, "\"mode\":\"standard\""));
    assert_non_null(strstr(text.data, "\"devices\":2"));
    fkv_buf_free(&text);
}

static int remove_one(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
    (void)sb, (void)type, (void)ftw;
    return remove(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_leaves_a_gpu_that_can_not_run_the_model_and_says_why),
        cmocka_unit_test(a_backend_is_asked_about_the_models_layers),
        cmocka_unit_test(layers_that_can_not_be_are_refused_by_every_backend),
        cmocka_unit_test(what_cuda_can_not_do_is_refused_by_check),
        cmocka_unit_test(a_job_that_asks_too_much_of_the_gpu_does_not_go_to_the_cpu),
        cmocka_unit_test(auto_takes_as_many_devices_as_can_work_together),
        cmocka_unit_test(devices_out_of_reach_get_no_copies_or_are_refused),
        cmocka_unit_test(a_job_on_devices_out_of_reach_runs_to_its_end),
    };
    char path[PATH_SIZE];
    snprintf(dir, sizeof dir, "%s/fkv-supports-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(dir)) return 1;
    in_dir("job.ini", path);
    FILE *f = fopen(path, "w");
    if (!f) return 1;
    fprintf(
        f,
        "[job]\nname = supports\noutput = out\nlimit = 3\n[input]\narchives = %s/data/needle.tar.zst\n"
        "members = data/needle_500.jsonl\nformat = longbench\nprompts = %s/data/needle-dataset2prompt.json\n"
        "[model]\npath = %s/data/needle-tiny\nmax_prompt_tokens = 96\ntruncate = left\n"
        "[profile]\nbudget = 40\nsample = 2\n[plan]\ncalibration = stated\n"
        "[engine]\nslots = 2\nmax_new_tokens = 4\n",
        FKV_TEST_DIR, FKV_TEST_DIR, FKV_TEST_DIR);
    fclose(f);
    gpu = *fkv_backend_cpu();
    gpu.name = "gpu";
    gpu.shares_host = false;
    gpu.n_devices = count_gpus;
    gpu.supports = supports;
    gpu.reach = reach;
    gpu.info = info;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fkv_buf_free(&said);
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return failed;
}
