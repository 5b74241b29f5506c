/* One of several devices fails halfway: every rank and replica stops, the cause is named once with its
 * replica and device, the exit code is 4, and a resume ends with the bytes of a run that nothing disturbed.
 *
 * The linker gives this program fkv_backend_find as __wrap_fkv_backend_find, so that the whole
 * command runs on a backend whose calls fail where a trial says so. A device that keeps the
 * others waiting is found by the alarm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <glob.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/backend.h"
#include "runner/base/file.h"
#include "runner/base/log.h"
#include "runner/commands.h"

enum { N_DEVICES = 2, HANG_SECONDS = 300, PATH_SIZE = 300 };

static char dir[PATH_SIZE - 64]; /* of this program's files */

/* Kinds of calls at which a device may fail. */
enum { MEET, SYNC, ALLOC, N_KINDS };

/* The device to fail (-1: none), and at which of its calls of a kind. As on a GPU, it fails for
 * good: it comes to no meeting any more and says so at the next sync. */
static struct trial {
    int device, kind, at;
    int n[N_KINDS]; /* calls of the device so far */
    bool failed;
    fkv_device *devices[N_DEVICES];
    const fkv_world *worlds[N_DEVICES]; /* open ones, by their first device */
    pthread_mutex_t lock;
    pthread_cond_t over;
} trial = {.device = -1, .lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER};

static int n_replicas;
static bool in_replicas; /* a job for several, whatever their number */

static fkv_backend failing;
static const fkv_backend *cpu;

static bool fails(const fkv_device *dev, int kind)
{
    pthread_mutex_lock(&trial.lock);
    /* Devices of one group count from the last one's opening on; replicas open theirs whenever they do. */
    const bool counts = n_replicas > 1 || trial.devices[1];
    const bool mine = trial.device >= 0 && counts && dev == trial.devices[trial.device];
    if (mine && trial.n[kind]++ == trial.at && trial.kind == kind) trial.failed = true;
    if (trial.failed) pthread_cond_broadcast(&trial.over);
    /* The other replica begins a record and waits, so that the one to fail has some to fail at. */
    while (!mine && n_replicas > 1 && kind == MEET && trial.at >= 0 && !trial.failed)
        pthread_cond_wait(&trial.over, &trial.lock);
    const bool failed = mine && trial.failed;
    pthread_mutex_unlock(&trial.lock);
    return failed;
}

static fkv_status open_world(const fkv_group *group, fkv_world **world, fkv_err *err)
{
    const fkv_status st = cpu->world_open(group, world, err);
    pthread_mutex_lock(&trial.lock);
    trial.worlds[group->first_device] = *world;
    pthread_mutex_unlock(&trial.lock);
    return st;
}

/* Another may get its address. */
static void close_world(fkv_world *world)
{
    pthread_mutex_lock(&trial.lock);
    for (int i = 0; i < N_DEVICES; i++)
        if (trial.worlds[i] == world) trial.worlds[i] = NULL;
    pthread_mutex_unlock(&trial.lock);
    cpu->world_close(world);
}

static fkv_status open_device(fkv_world *world, int index, int n_threads, fkv_device **dev, fkv_err *err)
{
    const fkv_status st = cpu->open(world, index, n_threads, dev, err);
    pthread_mutex_lock(&trial.lock);
    trial.devices[index + (world == trial.worlds[1])] = *dev;
    pthread_mutex_unlock(&trial.lock);
    return st;
}

static void close_device(fkv_device *dev)
{
    pthread_mutex_lock(&trial.lock);
    for (int i = 0; i < N_DEVICES; i++)
        if (trial.devices[i] == dev) trial.devices[i] = NULL;
    pthread_mutex_unlock(&trial.lock);
    cpu->close(dev);
}

static fkv_status sync_device(fkv_device *dev, fkv_err *err)
{
    if (fails(dev, SYNC)) return fkv_fail(err, FKV_E_DEVICE, "it fell off the bus");
    return cpu->sync(dev, err);
}

static fkv_status wait_device(fkv_device *dev, int64_t ticket, fkv_err *err)
{
    if (fails(dev, SYNC)) return fkv_fail(err, FKV_E_DEVICE, "it fell off the bus");
    return cpu->wait(dev, ticket, err);
}

static fkv_status alloc_on_device(fkv_device *dev, size_t bytes, void **out, fkv_err *err)
{
    if (fails(dev, ALLOC)) return fkv_fail(err, FKV_E_DEVICE, "it has no memory");
    return cpu->alloc(dev, bytes, out, err);
}

static void gather_cols(fkv_device *dev, void *buf, int64_t n, int64_t stride, const int64_t *cols, int bytes)
{
    if (!fails(dev, MEET)) cpu->gather_cols(dev, buf, n, stride, cols, bytes);
}

static void gather_heads(fkv_device *dev, void *out, int n, int n_kv_heads, int64_t row_elems,
                         const uint8_t *owner, const uint8_t *dev_owner)
{
    if (!fails(dev, MEET)) cpu->gather_heads(dev, out, n, n_kv_heads, row_elems, owner, dev_owner);
}

static void reduce_ranks(fkv_device *dev, const float *partials, int n_local, int64_t n, int64_t hidden,
                         void *y)
{
    if (!fails(dev, MEET)) cpu->reduce_ranks(dev, partials, n_local, n, hidden, y);
}

const fkv_backend *__wrap_fkv_backend_find(const char *name);
const fkv_backend *__wrap_fkv_backend_find(const char *name)
{
    (void)name;
    return &failing;
}

static int remove_one(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
    (void)sb, (void)type, (void)ftw;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void in_dir(const char *name, char out[PATH_SIZE])
{
    snprintf(out, PATH_SIZE, "%s/%s", dir, name);
}

static int run(void)
{
    char job[PATH_SIZE], command[] = "run", set[] = "-s", replicas[40];
    char method[] = "profile.method=uniform", limit[] = "job.limit=20";
    in_dir("job.ini", job);
    snprintf(replicas, sizeof replicas, "engine.data_parallel=%d", n_replicas);
    char *argv[] = {command, job, set, replicas, set, limit, set, method, NULL};
    alarm(HANG_SECONDS);
    /* replicas: records for both, and no meeting before the first */
    const int code = fkv_cmd_run(in_replicas ? 8 : 4, argv);
    alarm(0);
    return code;
}

static int run_failing(int device, int kind, int at)
{
    pthread_mutex_lock(&trial.lock);
    trial.device = device;
    trial.kind = kind;
    trial.at = at;
    memset(trial.n, 0, sizeof trial.n);
    trial.failed = false;
    pthread_mutex_unlock(&trial.lock);
    return run();
}

static void read_output(const char *pattern, fkv_buf *bytes)
{
    char path[PATH_SIZE];
    glob_t found;
    fkv_err err = {0};
    fkv_buf_clear(bytes);
    in_dir(pattern, path);
    if (glob(path, 0, NULL, &found)) return;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        fkv_buf_puts(bytes, strrchr(found.gl_pathv[i], '/'), &err);
        assert_int_equal(fkv_file_read(found.gl_pathv[i], 1 << 20, bytes, &err), FKV_OK);
    }
    globfree(&found);
}

/* How often word stands in the log of all runs of this output. */
static int in_log(const char *word)
{
    fkv_buf log = {0};
    int n = 0;
    read_output("out/log", &log);
    for (const char *p = log.data; p && (p = strstr(p, word)); p++) n++;
    fkv_buf_free(&log);
    return n;
}

/* One failure, then a run that nothing disturbs. */
static void fail_and_resume(int device, int kind, int at, const fkv_buf *want)
{
    char out[PATH_SIZE], named[96];
    fkv_buf got = {0};
    in_dir("out", out);
    remove_tree(out);
    const int code = run_failing(device, kind, at);
    if (n_replicas > 1)
        snprintf(named, sizeof named, "error: replica %d of %d: device %d: it ", device, n_replicas, device);
    else
        snprintf(named, sizeof named, "error: device %d of %d: it ", device, N_DEVICES);
    if (code != 4) fail_msg("device %d, kind %d, call %d: exit %d", device, kind, at, code);
    assert_int_equal(in_log("error: "), 1);
    assert_int_equal(in_log(named), 1);
    assert_int_equal(in_log("another device failed"), 0);
    assert_int_equal(run_failing(-1, MEET, -1), 0);
    read_output("out/shards/*.zst", &got);
    assert_int_equal(got.len, want->len);
    assert_memory_equal(got.data, want->data, got.len);
    fkv_buf_free(&got);
}

/* One failure at the first call of a kind and at some later ones. Not at the last: how many there
 * are depends on when records come. */
static void fail_at(int kind, int n_trials)
{
    for (int device = 0; device < N_DEVICES; device++) {
        char out[PATH_SIZE];
        fkv_buf want = {0};
        in_dir("out", out);
        remove_tree(out);
        assert_int_equal(run_failing(device, kind, -1), 0);
        const int n = trial.n[kind];
        assert_true(n > 20);
        read_output("out/shards/*.zst", &want);
        assert_true(want.len > 0);
        for (int i = 0; i < n_trials; i++)
            fail_and_resume(device, kind, n * 3 / 4 * i / (n_trials - 1), &want);
        fkv_buf_free(&want);
    }
}

static void a_device_that_others_wait_for_stops_all(void **state)
{
    (void)state;
    fail_at(MEET, 5);
}

static void a_device_that_fails_behind_its_work_stops_all(void **state)
{
    (void)state;
    fail_at(SYNC, 4);
}

static void a_device_that_fails_while_it_is_set_up_stops_all(void **state)
{
    (void)state;
    fail_at(ALLOC, 3);
}

static void a_replica_that_fails_ends_all_and_is_named(void **state)
{
    (void)state;
    static const int at[N_KINDS][2] = {[MEET] = {0, 20}, [SYNC] = {0, 8}, [ALLOC] = {0, 20}};
    char out[PATH_SIZE];
    fkv_buf want = {0};
    in_replicas = true;
    n_replicas = 2;
    in_dir("out", out);
    remove_tree(out);
    assert_int_equal(run_failing(-1, MEET, -1), 0);
    read_output("out/shards/*.zst", &want);
    for (int device = 0; device < N_DEVICES; device++)
        for (int kind = 0; kind < N_KINDS; kind++)
            for (int i = 0; i < 2; i++) fail_and_resume(device, kind, at[kind][i], &want);
    fkv_buf_free(&want);
    n_replicas = 1;
}

/* A job that a replica's failure ended goes on with another number of replicas. */
static void a_job_whose_replica_failed_ends_with_fewer(void **state)
{
    (void)state;
    char out[PATH_SIZE];
    fkv_buf want = {0}, got = {0};
    in_dir("out", out);
    remove_tree(out);
    assert_int_equal(run_failing(-1, MEET, -1), 0);
    read_output("out/shards/*.zst", &want);
    remove_tree(out);
    n_replicas = 2;
    assert_int_equal(run_failing(1, SYNC, 8), 4);
    n_replicas = 1;
    assert_int_equal(run_failing(-1, MEET, -1), 0);
    read_output("out/shards/*.zst", &got);
    assert_int_equal(got.len, want.len);
    assert_memory_equal(got.data, want.data, got.len);
    fkv_buf_free(&want);
    fkv_buf_free(&got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_others_wait_for_stops_all),
        cmocka_unit_test(a_device_that_fails_behind_its_work_stops_all),
        cmocka_unit_test(a_device_that_fails_while_it_is_set_up_stops_all),
        cmocka_unit_test(a_replica_that_fails_ends_all_and_is_named),
        cmocka_unit_test(a_job_whose_replica_failed_ends_with_fewer),
    };
    char path[PATH_SIZE];
    snprintf(dir, sizeof dir, "%s/fkv-device-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(dir)) return 1;
    in_dir("job.ini", path);
    FILE *f = fopen(path, "w");
    if (!f) return 1;
    fprintf(
        f,
        "[job]\nname = device\noutput = out\nlimit = 5\n[input]\narchives = %s/data/needle.tar.zst\n"
        "members = data/needle_500.jsonl\nformat = longbench\nprompts = %s/data/needle-dataset2prompt.json\n"
        "max_new_tokens_by = %s/data/needle-dataset2maxlen.json\n[model]\npath = %s/data/needle-tiny\n"
        "max_prompt_tokens = 96\ntruncate = left\n[profile]\nmethod = ada-snapkv\nbudget = 40\nsample = 2\n"
        "[plan]\ncalibration = stated\n[engine]\nbackend = cpu\ntensor_parallel = 4\ndevices = %d\n"
        "slots = 2\n[output]\nrecords_per_shard = 2\n",
        FKV_TEST_DIR, FKV_TEST_DIR, FKV_TEST_DIR, FKV_TEST_DIR, N_DEVICES);
    fclose(f);
    n_replicas = 1;
    cpu = fkv_backend_cpu();
    failing = *cpu;
    failing.world_open = open_world;
    failing.world_close = close_world;
    failing.open = open_device;
    failing.close = close_device;
    failing.sync = sync_device;
    failing.wait = wait_device;
    failing.alloc = alloc_on_device;
    failing.gather_cols = gather_cols;
    failing.gather_heads = gather_heads;
    failing.reduce_ranks = reduce_ranks;
    fkv_log_set_stderr(false);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    remove_tree(dir);
    return failed;
}
