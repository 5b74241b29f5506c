/* Calibration: the fit, the files, the cache, and a real measurement of a small shape. */
#include <math.h>
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

#include "engine/measure/calibrate.h"
#include "runner/base/clock.h"
#include "runner/base/file.h"
#include "runner/base/hash.h"
#include "runner/base/log.h"

static char dir[256], path[300];

static fkv_calibration sample(void)
{
    return (fkv_calibration){
        .key = {.backend = "cpu",
                .device = "CPU, 2 threads, \"avx2\"",
                .version = "0.1.0",
                .hidden = 256,
                .intermediate = 768,
                .head_dim = 64,
                .group = 2,
                .n_kv_heads = 8,
                .n_layers = 10,
                .vocab = 4096,
                .act_bytes = 4,
                .kv_bytes = 4,
                .weight_bytes = 4,
                .n_ranks = 4,
                .n_devices = 2,
                .n_slots = 16,
                .tokens = 256},
        .cost = {FKV_COST_MEASURED, 4, 4, 0.1, 2.5, 0.3333333333333333, 1e-5, 100, 3, 1e-4, 14, 2.5e5},
        .fit_error = 0.02};
}

/* ---- the fit ---- */

static double noise(uint64_t i)
{
    return (double)(fkv_random_u64(7, 0, i) >> 11) * 0x1p-53 - 0.5;
}

/* Rows of [1, heads, slots, slots * tokens]. */
static void make_rows(double *a, int n)
{
    for (int i = 0; i < n; i++) {
        const double heads = 1 + i % 5, slots = 1 + (i * 7) % 64, tokens = 32 + (i * 53) % 900;
        const double row[4] = {1, heads, slots, slots * tokens};
        memcpy(a + 4 * (size_t)i, row, sizeof row);
    }
}

static void fit_finds_the_constants(void **state)
{
    (void)state;
    static const double truth[][4] = {{2, 10, 0.5, 0.03}, {0, 10, 0.5, 0.03}, {5, 0, 0, 0.1}, {0, 0, 3, 0}};
    double a[4 * 48], y[48], x[4];
    make_rows(a, 48);
    for (size_t t = 0; t < sizeof truth / sizeof *truth; t++) {
        for (int i = 0; i < 48; i++) {
            y[i] = 0;
            for (int j = 0; j < 4; j++) y[i] += a[4 * i + j] * truth[t][j];
        }
        const double error = fkv_fit_nonnegative(a, y, 48, 4, x);
        for (int j = 0; j < 4; j++) assert_true(fabs(x[j] - truth[t][j]) <= 1e-6 * (1 + truth[t][j]));
        assert_true(error < 1e-6);
    }
}

static void fit_bears_noise_and_is_never_negative(void **state)
{
    (void)state;
    double a[4 * 48], y[48], x[4];
    make_rows(a, 48);
    for (int i = 0; i < 48; i++)
        y[i] =
            (a[4 * i + 1] * 10 + a[4 * i + 2] * 0.5 + a[4 * i + 3] * 0.03) * (1 + 0.1 * noise((uint64_t)i));
    assert_true(fkv_fit_nonnegative(a, y, 48, 4, x) < 0.05);
    for (int j = 0; j < 4; j++) assert_true(x[j] >= 0);
    assert_true(fabs(x[3] / 0.03 - 1) < 0.1);
    /* A line that falls: the best without a negative slope is flat. */
    const double line[8] = {1, 1, 1, 2, 1, 3, 1, 4}, falling[4] = {4, 3, 2, 1};
    fkv_fit_nonnegative(line, falling, 4, 2, x);
    assert_true(x[1] == 0 && x[0] > 0);
}

static void fit_of_columns_that_are_one(void **state)
{
    (void)state;
    /* One slot of one head everywhere: three columns are the same. */
    const double a[8] = {1, 1, 1, 50, 1, 1, 1, 100}, y[2] = {6, 11};
    double x[4];
    assert_true(fkv_fit_nonnegative(a, y, 2, 4, x) < 1e-9);
    assert_true(fabs(x[0] + x[1] + x[2] - 1) < 1e-6 && fabs(x[3] - 0.1) < 1e-8);
    /* Rows without a time don't count; without any there is nothing to say. */
    const double none[2] = {0, 0};
    assert_true(fkv_fit_nonnegative(a, none, 2, 4, x) == 0);
    for (int j = 0; j < 4; j++) assert_true(x[j] == 0);
}

/* ---- files ---- */

static void put(const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void file_round_trip(void **state)
{
    (void)state;
    const fkv_calibration c = sample();
    fkv_calibration back;
    fkv_err err = {0};
    assert_int_equal(fkv_calibration_write(&c, path, &err), FKV_OK);
    assert_int_equal(fkv_calibration_read(path, &back, &err), FKV_OK);
    assert_memory_equal(&back.key, &c.key, sizeof c.key);
    assert_memory_equal(&back.cost, &c.cost, sizeof c.cost);
    assert_true(back.cost.prefill_token_us == 3 && back.cost.prefill_pair_us == 1e-4 &&
                back.fit_error == 0.02);
}

/* Writes the sample with the text from "name": on replaced up to the next comma or brace. */
static void put_damaged(const char *name, const char *value)
{
    const fkv_calibration c = sample();
    fkv_err err = {0};
    fkv_buf b = {0}, out = {0};
    char field[64];
    assert_int_equal(fkv_calibration_write(&c, path, &err), FKV_OK);
    assert_int_equal(fkv_file_read(path, 1 << 16, &b, &err), FKV_OK);
    snprintf(field, sizeof field, "\"%s\":", name);
    const char *at = strstr(b.data, field);
    assert_non_null(at);
    const char *end = strchr(at, '\n');
    assert_non_null(end);
    assert_int_equal(fkv_buf_append(&out, b.data, (size_t)(at - b.data), &err), FKV_OK);
    if (value)
        fkv_buf_printf(&out, &err, "%s%s%s", field, value, end[-1] == ',' ? "," : "}");
    else
        fkv_buf_printf(&out, &err, "\"x\":1%s", end[-1] == ',' ? "," : "}");
    fkv_buf_puts(&out, end, &err);
    put(out.data);
    fkv_buf_free(&b);
    fkv_buf_free(&out);
}

static void damaged_fields_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *name, *value;
    } cases[] = {{"format", "\"fairkv-plan/1\""},
                 {"format", NULL},
                 {"backend", "7"},
                 {"backend", "\"a name that is too long\""},
                 {"device", NULL},
                 {"version", "null"},
                 {"hidden", "0"},
                 {"hidden", "256.5"},
                 {"head_dim", "-64"},
                 {"n_layers", "3000000000"},
                 {"ranks", "\"4\""},
                 {"devices", "0"},
                 {"slots", NULL},
                 {"tokens", "[]"},
                 {"t0_us", "-1"},
                 {"head_us", "\"fast\""},
                 {"slot_head_us", NULL},
                 {"token_us", "1e300"},
                 {"common_us", "true"},
                 {"prefill_token_us", "{}"},
                 {"prefill_pair_us", NULL},
                 {"collective_us", "-1"},
                 {"link_bytes_per_us", NULL},
                 {"fit_error", "-0.5"}};
    fkv_calibration c;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fkv_err err = {0};
        put_damaged(cases[i].name, cases[i].value);
        assert_int_equal(fkv_calibration_read(path, &c, &err), FKV_E_INPUT);
        assert_string_equal(err.key, cases[i].name);
        assert_string_equal(err.file, path);
    }
    static const char *const texts[] = {"", "{", "[]", "null", "{\"format\":\"fairkv-calibration/1\"}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        fkv_err err = {0};
        put(texts[i]);
        assert_int_equal(fkv_calibration_read(path, &c, &err), FKV_E_INPUT);
        assert_string_equal(err.file, path);
    }
}

/* ---- measuring ---- */

/* needle-tiny's shape with a small vocabulary. */
static const fkv_config tiny = {.n_layers = 4,
                                .n_heads = 8,
                                .n_kv_heads = 4,
                                .head_dim = 64,
                                .group = 2,
                                .hidden = 128,
                                .intermediate = 384,
                                .vocab = 256,
                                .max_positions = 2048,
                                .rms_eps = 1e-5f,
                                .rope = {.theta = 1e5}};

static fkv_calibration_task tiny_task(void)
{
    return (fkv_calibration_task){
        .backend = fkv_backend_cpu(), .config = &tiny, .n_ranks = 4, .n_slots = 16, .mean_tokens = 224};
}

enum { TRIES = 40 };

/* Where other programs disturb, until they don't for once. */
static void measure_calm(const fkv_calibration_task *task, fkv_calibration *c)
{
    for (int i = 0; i < TRIES; i++) {
        fkv_err err = {0};
        const fkv_status st = fkv_calibration_measure(task, c, &err);
        if (!st && !c->disturbed[0]) return;
        if (st && !strstr(err.message, "disturbed")) fail_msg("%s", err.message);
    }
    skip();
}

static void cache_calm(const fkv_calibration_task *task, fkv_calibration *c, bool *measured)
{
    for (int i = 0; i < TRIES; i++) {
        fkv_err err = {0};
        const fkv_status st = fkv_calibration_cached(task, c, measured, &err);
        if (!st && !c->disturbed[0] && (*measured || !task->again)) return;
        if (st && !strstr(err.message, "disturbed")) fail_msg("%s", err.message);
    }
    skip();
}

static void a_real_measurement_makes_sense(void **state)
{
    (void)state;
    const fkv_calibration_task task = tiny_task();
    fkv_calibration c;
    measure_calm(&task, &c);
    const fkv_cost *k = &c.cost;
    assert_string_equal(c.key.backend, "cpu");
    assert_int_equal(c.key.tokens, 256);
    assert_true(c.key.device[0] && c.key.n_slots == 16);
    /* More tokens, more slots and more heads never cost less, and tokens do cost. */
    assert_true(k->t0_us >= 0 && k->head_us >= 0 && k->slot_head_us >= 0);
    assert_true(k->token_us > 0 && k->token_us < 100);
    assert_true(k->head_us + 16 * k->slot_head_us > 0);
    assert_true(k->common_us > 0 && isfinite(k->common_us));
    assert_true(c.cost.prefill_token_us > 0 && c.cost.prefill_pair_us >= 0);
    /* 4 ranks of one head each, 800 tokens in 16 slots, against 32 tokens. */
    const double heavy = k->t0_us + k->head_us + 16 * (k->slot_head_us + 800 * k->token_us);
    const double light = k->t0_us + k->head_us + 16 * (k->slot_head_us + 32 * k->token_us);
    assert_true(heavy > 1.5 * light);
}

static void odd_shapes_are_measured(void **state)
{
    (void)state;
    static const struct {
        int ranks, slots;
        double tokens;
    } cases[] = {{1, 1, 1}, {4, 1, 32}, {3, 5, 2000}, {2, 3, 5000}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const fkv_calibration_task task = {.backend = fkv_backend_cpu(),
                                           .config = &tiny,
                                           .n_ranks = cases[i].ranks,
                                           .n_slots = cases[i].slots,
                                           .n_threads = 1,
                                           .mean_tokens = cases[i].tokens};
        fkv_calibration c;
        measure_calm(&task, &c);
        assert_true(isfinite(c.cost.common_us) && c.cost.common_us > 0);
        assert_true(c.cost.t0_us + c.cost.head_us + c.cost.slot_head_us + c.cost.token_us > 0);
    }
}

static void collectives_are_measured_between_devices(void **state)
{
    (void)state;
    fkv_calibration_task task = tiny_task();
    double start_us = -1, bytes_per_us = -1;
    bool settled = false;
    fkv_err err = {0};
    assert_int_equal(fkv_calibration_measure_link(&task, &start_us, &bytes_per_us, &settled, &err), FKV_OK);
    assert_true(settled && start_us == 0 && bytes_per_us == 0); /* one device has none */
    task.n_devices = 2;
    task.n_threads = 1;
    settled = false;
    for (int i = 0; !settled && i < TRIES; i++)
        assert_int_equal(fkv_calibration_measure_link(&task, &start_us, &bytes_per_us, &settled, &err),
                         FKV_OK);
    if (!settled) skip();
    assert_true(start_us >= 0 && start_us < 1e6);
    /* between a slow disk's speed and ten times a processor's cache */
    assert_true(bytes_per_us > 10 && bytes_per_us < 1e7);
    task.n_devices = 1000;
    assert_int_equal(fkv_calibration_measure_link(&task, &start_us, &bytes_per_us, &settled, &err),
                     FKV_E_INPUT);
}

static void the_cache_is_used_and_mended(void **state)
{
    (void)state;
    const fkv_calibration_task task = tiny_task();
    fkv_calibration a, b;
    fkv_err err = {0};
    bool measured;
    fkv_log_set_stderr(false);
    assert_int_equal(setenv("XDG_CACHE_HOME", dir, 1), 0);
    cache_calm(&task, &a, &measured);
    assert_true(measured);
    cache_calm(&task, &b, &measured);
    assert_false(measured);
    assert_memory_equal(&a.cost, &b.cost, sizeof a.cost);

    char *file = fkv_calibration_path(&a.key);
    assert_non_null(file);
    assert_true(!strncmp(file, dir, strlen(dir)));
    /* Another number of slots is another file. */
    fkv_calibration_key other = a.key;
    other.n_slots++;
    char *second = fkv_calibration_path(&other);
    assert_string_not_equal(file, second);
    /* Stale: the file of this name is for another version. Then damaged. */
    snprintf(b.key.version, sizeof b.key.version, "0.0.1");
    assert_int_equal(fkv_calibration_write(&b, file, &err), FKV_OK);
    cache_calm(&task, &b, &measured);
    assert_true(measured);
    /* Asked for, it is measured anew and kept. */
    fkv_calibration_task again = task;
    again.again = true;
    cache_calm(&again, &b, &measured);
    assert_true(measured);
    cache_calm(&task, &a, &measured);
    assert_false(measured);
    assert_memory_equal(&a.cost, &b.cost, sizeof a.cost);
    assert_int_equal(truncate(file, 40), 0);
    cache_calm(&task, &b, &measured);
    assert_true(measured);
    assert_int_equal(fkv_calibration_read(file, &b, &err), FKV_OK);
    /* No place to keep it is no error. */
    assert_int_equal(setenv("XDG_CACHE_HOME", "/dev/null/no", 1), 0);
    cache_calm(&task, &b, &measured);
    assert_true(measured);
    fkv_log_set_stderr(true);
    free(second);
    free(file);
}

/* ---- disturbed ---- */

static fkv_backend disturbed;
static const fkv_backend *calm;
static double busy_since; /* 0: from the next call on */

/* Longer and longer, as on a machine that gets busier. */
static void dawdle(void)
{
    const double now = fkv_seconds();
    if (busy_since == 0) busy_since = now;
    while (fkv_seconds() - now < 0.004 * (now - busy_since)) continue;
}

static void slow_attention(fkv_device *dev, const fkv_decode_args *args)
{
    dawdle();
    calm->decode_attention(dev, args);
}

static void what_is_disturbed_is_not_kept(void **state)
{
    (void)state;
    fkv_calibration_task task = tiny_task();
    fkv_calibration c, kept;
    fkv_err err = {0};
    bool measured;
    fkv_log_set_stderr(false);
    assert_int_equal(setenv("XDG_CACHE_HOME", dir, 1), 0);
    calm = fkv_backend_cpu();
    disturbed = *calm;
    disturbed.decode_attention = slow_attention;
    task.n_slots = 3;
    assert_int_equal(fkv_calibration_key_of(&task, &c.key, &err), FKV_OK);
    char *file = fkv_calibration_path(&c.key);
    assert_non_null(file);
    task.backend = &disturbed;
    assert_int_equal(fkv_calibration_cached(&task, &c, &measured, &err), FKV_E_SYSTEM);
    assert_non_null(strstr(err.message, "disturbed"));
    assert_false(measured);
    assert_int_not_equal(access(file, F_OK), 0);
    /* What an earlier run kept is not thrown away. */
    task.backend = calm;
    cache_calm(&task, &kept, &measured);
    task.backend = &disturbed;
    task.again = true;
    err = (fkv_err){0};
    busy_since = 0;
    assert_int_equal(fkv_calibration_cached(&task, &c, &measured, &err), FKV_OK);
    assert_false(measured);
    assert_memory_equal(&c.cost, &kept.cost, sizeof c.cost);
    fkv_log_set_stderr(true);
    free(file);
}

static void times_that_settle(void **state)
{
    (void)state;
    double us, calm_times[] = {5, 5.2, 9, 5.1, 5.3, 5, 30, 5.1}, busy[] = {5, 5, 5, 5, 7, 7, 7, 7},
               one[] = {3};
    assert_true(fkv_fit_settled(calm_times, 8, 0.5, &us));
    assert_true(us >= 5 && us < 5.5);
    assert_false(fkv_fit_settled(busy, 8, 0.5, &us));
    assert_true(fkv_fit_settled(one, 1, 0.5, &us) && us == 3);
    assert_true(fkv_fit_agree(100, 109) && fkv_fit_agree(109, 100) && !fkv_fit_agree(100, 111));
    assert_true(fkv_fit_agree(0, 0));
}

/* Rates of one form of pages are no rates of the other. */
static void pages_of_another_form_want_constants_of_their_own(void **state)
{
    (void)state;
    fkv_calibration_task task = tiny_task();
    fkv_calibration c = {0}, out;
    fkv_err err = {0};
    assert_int_equal(fkv_calibration_key_of(&task, &c.key, &err), FKV_OK);
    assert_int_equal(c.key.kv_bytes, 4);
    assert_int_equal(fkv_calibration_write(&c, path, &err), FKV_OK);
    task.kv_form = FKV_KV_FP8;
    assert_int_equal(fkv_calibration_pinned(&task, path, &out, &err), FKV_E_INPUT);
    assert_string_equal(err.key, "kv_bytes");
    err = (fkv_err){0};
    measure_calm(&task, &c);
    assert_int_equal(c.key.kv_bytes, 1);
    assert_true(c.cost.token_us > 0);
}

static void a_file_that_the_job_names(void **state)
{
    (void)state;
    const fkv_calibration_task task = tiny_task();
    fkv_calibration c = {0}, out;
    fkv_err err = {0};
    assert_int_equal(fkv_calibration_key_of(&task, &c.key, &err), FKV_OK);
    c.cost.token_us = 0.5;
    snprintf(c.key.device, sizeof c.key.device, "another device");
    c.key.tokens = 1;
    assert_int_equal(fkv_calibration_write(&c, path, &err), FKV_OK);
    assert_int_equal(fkv_calibration_pinned(&task, path, &out, &err), FKV_OK);
    assert_true(out.cost.token_us == 0.5);
    c.key.n_slots = 17;
    assert_int_equal(fkv_calibration_write(&c, path, &err), FKV_OK);
    assert_int_equal(fkv_calibration_pinned(&task, path, &out, &err), FKV_E_INPUT);
    assert_string_equal(err.key, "slots");
    /* What the job leaves open, the file says. */
    fkv_calibration_task open_task = task;
    open_task.n_slots = open_task.n_ranks = 0;
    err = (fkv_err){0};
    assert_int_equal(fkv_calibration_pinned(&open_task, path, &out, &err), FKV_OK);
    assert_int_equal(out.key.n_slots, 17);
    assert_int_equal(fkv_calibration_pinned(&task, "/no/such/file", &out, &err), FKV_E_INPUT);
    assert_string_equal(err.file, "/no/such/file");
}

static int make_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");
    (void)state;
    snprintf(dir, sizeof dir, "%s/fkv-calibrate-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/calibration.json", dir);
    return 0;
}

static int remove_dir(void **state)
{
    char command[400];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fit_finds_the_constants),
        cmocka_unit_test(fit_bears_noise_and_is_never_negative),
        cmocka_unit_test(fit_of_columns_that_are_one),
        cmocka_unit_test(file_round_trip),
        cmocka_unit_test(damaged_fields_are_named),
        cmocka_unit_test(a_real_measurement_makes_sense),
        cmocka_unit_test(odd_shapes_are_measured),
        cmocka_unit_test(collectives_are_measured_between_devices),
        cmocka_unit_test(the_cache_is_used_and_mended),
        cmocka_unit_test(pages_of_another_form_want_constants_of_their_own),
        cmocka_unit_test(a_file_that_the_job_names),
        cmocka_unit_test(what_is_disturbed_is_not_kept),
        cmocka_unit_test(times_that_settle),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
