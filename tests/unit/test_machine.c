/* What cgroups leave of a machine, over made-up trees of the kernel's files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runner/base/file.h"
#include "runner/base/machine.h"

#define MIB ((int64_t)1 << 20)

static char root[64];

/* Writes root/name, and the folders that it lies in. */
static void put(const char *name, const char *text)
{
    char path[512];
    fkv_err err = {0};
    snprintf(path, sizeof path, "%s/%s", root, name);
    char *dir = fkv_path_dir(path);
    assert_int_equal(fkv_dir_make(dir, &err), FKV_OK);
    free(dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int make_root(void **state)
{
    (void)state;
    strcpy(root, "/tmp/fkv-machine-XXXXXX");
    if (!mkdtemp(root)) return 1;
    put("proc/meminfo", "MemTotal:       9000000 kB\nMemFree:         10 kB\nMemAvailable:    8388608 kB\n");
    return 0;
}

static int remove_root(void **state)
{
    char command[96];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
}

static int64_t memory(void)
{
    return fkv_machine_memory_of(root) / MIB;
}

/* Version 2 alone, mounted as systemd does; the process is in /a/b. */
static void mount_v2(void)
{
    put("proc/self/cgroup", "0::/a/b\n");
    put("proc/self/mountinfo", "22 28 0:20 / /proc rw,nosuid - proc proc rw\n"
                               "32 31 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n");
}

static void mount_v1(void)
{
    put("proc/self/cgroup",
        "5:memory:/batch/job 7\n4:cpu,cpuacct:/batch/job 7\n2:cpuset:/\n1:name=systemd:/\n");
    put("proc/self/mountinfo", "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
                               "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
                               "35 31 0:32 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n"
                               "36 31 0:33 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n");
}

static void without_cgroups_the_machine_is_the_limit(void **state)
{
    (void)state;
    assert_int_equal(memory(), 8192);
    assert_int_equal(fkv_machine_processors_of(root, 6), 6);
    assert_int_equal(fkv_machine_processors_of(root, 0), 1);
    put("proc/meminfo", "MemTotal:       9000000 kB\n");
    assert_int_equal(memory(), 1024);
}

static void version_2_binds_by_every_ancestor(void **state)
{
    (void)state;
    mount_v2();
    assert_int_equal(memory(), 8192);
    put("sys/fs/cgroup/a/b/memory.max", "max\n");
    put("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    assert_int_equal(memory(), 8192);
    assert_int_equal(fkv_machine_processors_of(root, 16), 16);
    put("sys/fs/cgroup/a/memory.max", "1073741824\n");
    put("sys/fs/cgroup/a/memory.current", "104857600\n");
    put("sys/fs/cgroup/a/cpu.max", "250000 100000\n");
    assert_int_equal(memory(), 1024 - 100);
    assert_int_equal(fkv_machine_processors_of(root, 16), 3);
    assert_int_equal(fkv_machine_processors_of(root, 2), 2);
    put("sys/fs/cgroup/a/b/memory.max", "209715200\n");
    put("sys/fs/cgroup/a/b/cpu.max", "5000 100000\n");
    assert_int_equal(memory(), 200);
    assert_int_equal(fkv_machine_processors_of(root, 16), 1);
    /* Above the process, not beside it. */
    put("sys/fs/cgroup/c/memory.max", "1048576\n");
    put("sys/fs/cgroup/a/b/d/memory.max", "1048576\n");
    assert_int_equal(memory(), 200);
    put("sys/fs/cgroup/memory.max", "104857600\n"); /* a container's own top has one */
    assert_int_equal(memory(), 100);
}

static void pages_of_files_are_not_in_use(void **state)
{
    (void)state;
    mount_v2();
    put("sys/fs/cgroup/a/b/memory.max", "419430400\n");
    put("sys/fs/cgroup/a/b/memory.current", "314572800\n");
    assert_int_equal(memory(), 100);
    put("sys/fs/cgroup/a/b/memory.stat",
        "anon 104857600\nfile 209715200\ninactive_anon 7\nactive_file 52428800\ninactive_file 157286400\n");
    assert_int_equal(memory(), 300);
    put("sys/fs/cgroup/a/b/memory.current", "5\n"); /* the files are not read at once */
    assert_int_equal(memory(), 400);
    put("sys/fs/cgroup/a/b/memory.current", "419430401\n");
    put("sys/fs/cgroup/a/b/memory.stat", "");
    assert_int_equal(memory(), 0);
}

static void memory_high_binds_where_it_is_set(void **state)
{
    (void)state;
    mount_v2();
    put("sys/fs/cgroup/a/b/memory.max", "419430400\n");
    put("sys/fs/cgroup/a/b/memory.high", "max\n");
    assert_int_equal(memory(), 400);
    put("sys/fs/cgroup/a/b/memory.high", "314572800\n");
    assert_int_equal(memory(), 300);
    put("sys/fs/cgroup/a/b/memory.max", "max\n");
    assert_int_equal(memory(), 300);
}

static void version_1_binds_by_every_ancestor(void **state)
{
    (void)state;
    mount_v1();
    put("sys/fs/cgroup/my memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/my memory/memory.usage_in_bytes", "5368709120\n");
    put("sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_period_us", "100000\n");
    assert_int_equal(memory(), 8192);
    assert_int_equal(fkv_machine_processors_of(root, 16), 16);
    put("sys/fs/cgroup/my memory/batch/memory.limit_in_bytes", "524288000\n");
    put("sys/fs/cgroup/my memory/batch/memory.usage_in_bytes", "209715200\n");
    put("sys/fs/cgroup/my memory/batch/memory.stat",
        "cache 7\ninactive_file 1\ntotal_inactive_file 52428800\ntotal_active_file 52428800\n");
    put("sys/fs/cgroup/cpu,cpuacct/batch/job 7/cpu.cfs_quota_us", "400000\n");
    put("sys/fs/cgroup/cpu,cpuacct/batch/job 7/cpu.cfs_period_us", "200000\n");
    assert_int_equal(memory(), 400);
    assert_int_equal(fkv_machine_processors_of(root, 16), 2);
    put("sys/fs/cgroup/my memory/batch/job 7/memory.limit_in_bytes", "262144000\n");
    assert_int_equal(memory(), 250);
}

/* systemd's hybrid: memory and cpu in version 1, version 2 beside them for processes alone. */
static void hybrid_trees_are_read_in_both(void **state)
{
    (void)state;
    mount_v1();
    put("proc/self/cgroup", "5:memory:/m\n4:cpu,cpuacct:/\n0::/u\n");
    put("proc/self/mountinfo", "33 31 0:30 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
                               "35 31 0:32 / /cg/memory rw shared:3 master:2 - cgroup cgroup rw,memory\n"
                               "41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw,nsdelegate\n");
    put("cg/memory/m/memory.limit_in_bytes", "524288000\n");
    put("cg/unified/u/cpu.max", "150000 100000\n");
    assert_int_equal(memory(), 500);
    assert_int_equal(fkv_machine_processors_of(root, 16), 2);
    put("cg/unified/u/memory.max", "262144000\n");
    assert_int_equal(memory(), 250);
}

/* A container sees its own folder as the mount's top, and its path as the host has it. */
static void a_mount_of_a_part_of_the_tree(void **state)
{
    (void)state;
    put("proc/self/cgroup", "3:memory:/docker/abc/inner\n0::/\n");
    put("proc/self/mountinfo", "35 31 0:32 /docker/abc /cg/memory rw - cgroup cgroup rw,memory\n");
    put("cg/memory/inner/memory.limit_in_bytes", "524288000\n");
    assert_int_equal(memory(), 500);
    put("cg/memory/memory.limit_in_bytes", "262144000\n");
    assert_int_equal(memory(), 250);
    /* Of another part it says nothing. */
    put("proc/self/cgroup", "3:memory:/docker/abcd\n");
    assert_int_equal(memory(), 8192);
    put("proc/self/cgroup", "3:memory:/../docker/abc\n");
    assert_int_equal(memory(), 8192);
    put("proc/self/cgroup", "3:memory:/docker/abc\n");
    assert_int_equal(memory(), 250);
}

static void what_makes_no_sense_limits_nothing(void **state)
{
    static const char *const cgroups[] = {"",
                                          "\n\n",
                                          "0",
                                          "0:",
                                          "0::",
                                          ":::",
                                          "x::/a/b\n",
                                          "0::a/b\n",
                                          "5:memory",
                                          "5:memory:",
                                          "0::/gone (deleted)\n"};
    static const char *const mounts[] = {"",
                                         " - ",
                                         " - cgroup2",
                                         "1 2 - cgroup2 cgroup2 rw\n",
                                         "32 31 0:28 / \\777\\04 rw - cgroup2 cgroup2 rw\n",
                                         "32 31 0:28 - cgroup",
                                         "\n\n - \n"};
    static const char *const values[] = {
        "", "\n", "-5\n", "lots\n", "99999999999999999999999\n", "18446744073709551615\n"};
    (void)state;
    mount_v2();
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        put("sys/fs/cgroup/a/b/memory.max", values[i]);
        put("sys/fs/cgroup/a/b/cpu.max", values[i]);
        assert_int_equal(memory(), 8192);
        assert_int_equal(fkv_machine_processors_of(root, 5), 5);
    }
    put("sys/fs/cgroup/a/b/cpu.max", "100000");
    assert_int_equal(fkv_machine_processors_of(root, 5), 5);
    put("sys/fs/cgroup/a/b/cpu.max", "100000 0");
    assert_int_equal(fkv_machine_processors_of(root, 5), 5);
    put("sys/fs/cgroup/a/b/memory.max", "1048576\n");
    assert_int_equal(memory(), 1);
    for (size_t i = 0; i < sizeof cgroups / sizeof *cgroups; i++) {
        put("proc/self/cgroup", cgroups[i]);
        assert_int_equal(memory(), 8192);
    }
    mount_v2();
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        put("proc/self/mountinfo", mounts[i]);
        assert_int_equal(memory(), 8192);
    }
}

static void the_processors_of_this_process_are_its_affinity(void **state)
{
    cpu_set_t all, one;
    (void)state;
    if (sched_getaffinity(0, sizeof all, &all)) skip();
    int cpu = 0;
    while (!CPU_ISSET(cpu, &all)) cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(fkv_machine_processors(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
    assert_in_range(fkv_machine_processors(), 1, CPU_COUNT(&all));
}

static void a_limit_on_the_address_space_bounds_the_memory(void **state)
{
    (void)state;
    assert_true(fkv_machine_memory() > 0);
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit none = {0, 0};
        _exit(setrlimit(RLIMIT_DATA, &none) || fkv_machine_memory() != 0);
    }
    int code = -1;
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_int_equal(code, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_root, remove_root)
    const struct CMUnitTest tests[] = {
        TEST(without_cgroups_the_machine_is_the_limit),
        TEST(version_2_binds_by_every_ancestor),
        TEST(pages_of_files_are_not_in_use),
        TEST(memory_high_binds_where_it_is_set),
        TEST(version_1_binds_by_every_ancestor),
        TEST(hybrid_trees_are_read_in_both),
        TEST(a_mount_of_a_part_of_the_tree),
        TEST(what_makes_no_sense_limits_nothing),
        cmocka_unit_test(the_processors_of_this_process_are_its_affinity),
        cmocka_unit_test(a_limit_on_the_address_space_bounds_the_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
