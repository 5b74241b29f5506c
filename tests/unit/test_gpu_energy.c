/* The GPUs' energy, with a library in NVML's place: what is counted, and when it is rather not known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/gpu_energy.h"

static const char one[][FKV_BUS_PLACE] = {"0000:3B:00.0"};
static const char both[][FKV_BUS_PLACE] = {"0000:3B:00.0", "0000:5E:00.0", "0000:3B:00.0"};
static const char unknown[][FKV_BUS_PLACE] = {"0000:FF:00.0"};

static int up(void **state)
{
    (void)state;
    unsetenv("FAKE_NVML");
    return setenv("FAIRKV_TEST_NVML", FKV_FAKE_NVML, 1);
}

static void energy_is_counted_from_open_on(void **state)
{
    double joules = -1;
    (void)state;
    fkv_gpu_energy *e = fkv_gpu_energy_open_at(one, 1);
    assert_non_null(e);
    assert_true(fkv_gpu_energy_joules(e, &joules) && joules == 1.5);
    assert_true(fkv_gpu_energy_joules(e, &joules) && joules == 3);
    fkv_gpu_energy_close(e);
}

static void devices_on_one_gpu_count_once(void **state)
{
    double joules = -1;
    (void)state;
    fkv_gpu_energy *e = fkv_gpu_energy_open_at(both, 3);
    assert_true(fkv_gpu_energy_joules(e, &joules) && joules == 3);
    fkv_gpu_energy_close(e);
}

static void our_own_process_and_old_gpus_are_fine(void **state)
{
    static const char *const fine[] = {"ours", "old",
                                       "others=4294967295"}; /* the last: another PID namespace */
    double joules = -1;
    (void)state;
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        setenv("FAKE_NVML", fine[i], 1);
        fkv_gpu_energy *e = fkv_gpu_energy_open_at(one, 1);
        assert_true(fkv_gpu_energy_joules(e, &joules) && joules == 1.5);
        fkv_gpu_energy_close(e);
    }
}

static void shared_and_partitioned_gpus_and_failures_are_not_known(void **state)
{
    static const char *const wrong[] = {"mig", "two", "init", "energy", "processes", "others=1"};
    double joules;
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        setenv("FAKE_NVML", wrong[i], 1);
        assert_null(fkv_gpu_energy_open_at(one, 1));
    }
    unsetenv("FAKE_NVML");
    assert_null(fkv_gpu_energy_open_at(unknown, 1));
    assert_null(fkv_gpu_energy_open_at(one, 0));
    assert_false(fkv_gpu_energy_joules(NULL, &joules));
    fkv_gpu_energy_close(NULL);
}

static void who_comes_later_makes_it_unknown_for_good(void **state)
{
    static const char *const later[] = {"two", "others=1", "energy", "reset"};
    double joules;
    (void)state;
    for (size_t i = 0; i < sizeof later / sizeof *later; i++) {
        unsetenv("FAKE_NVML");
        fkv_gpu_energy *e = fkv_gpu_energy_open_at(one, 1);
        assert_true(fkv_gpu_energy_joules(e, &joules));
        setenv("FAKE_NVML", later[i], 1);
        assert_false(fkv_gpu_energy_joules(e, &joules));
        unsetenv("FAKE_NVML");
        assert_false(fkv_gpu_energy_joules(e, &joules));
        fkv_gpu_energy_close(e);
    }
}

static void without_the_library_nothing_is_known(void **state)
{
    (void)state;
    setenv("FAIRKV_TEST_NVML", "/nowhere/libnvidia-ml.so.1", 1);
    assert_null(fkv_gpu_energy_open_at(one, 1));
}

static void the_cpu_has_no_gpu(void **state)
{
    (void)state;
    assert_int_equal(fkv_gpu_energy_gpus(fkv_backend_cpu(), 0, 1), 0);
    assert_null(fkv_gpu_energy_open(fkv_backend_cpu(), 0, 1));
}

#define TEST(f) cmocka_unit_test_setup(f, up)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(energy_is_counted_from_open_on),
        TEST(devices_on_one_gpu_count_once),
        TEST(our_own_process_and_old_gpus_are_fine),
        TEST(shared_and_partitioned_gpus_and_failures_are_not_known),
        TEST(who_comes_later_makes_it_unknown_for_good),
        TEST(without_the_library_nothing_is_known),
        TEST(the_cpu_has_no_gpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
