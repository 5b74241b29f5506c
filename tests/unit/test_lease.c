/* Leases: one holder at a time, whoever is killed, stopped, elsewhere, or on a file system with quirks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "jobs/lease.h"
#include "runner/base/clock.h"
#include "runner/base/file.h"
#include "runner/base/log.h"

#define UUID "01234567-89ab-cdef-0123-456789abcdef"

static char dir[128], path[160];

/* What link(2) does in this test: as it is; fails; its answer is lost; the linked file's other name goes. */
static enum { LINK_WORKS, LINK_REFUSED, LINK_ANSWER_LOST, LINK_TIDIED } links;

int __real_link(const char *from, const char *to);
int __wrap_link(const char *from, const char *to);
int __wrap_link(const char *from, const char *to)
{
    if (links == LINK_REFUSED) {
        errno = EPERM;
        return -1;
    }
    if (links == LINK_TIDIED) {
        links = LINK_WORKS;
        unlink(from);
    }
    const int rc = __real_link(from, to);
    if (links != LINK_ANSWER_LOST || rc) return rc;
    errno = EEXIST;
    return -1;
}

static int up(void **state)
{
    const char *tmp = getenv("TMPDIR");
    (void)state;
    fkv_log_set_stderr(false);
    fkv_lease_set_pace(5, 60);
    links = LINK_WORKS;
    snprintf(dir, sizeof dir, "%s/fkv-lease-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/lock", dir);
    return 0;
}

static int n_files(void)
{
    int n = 0;
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d));) n += e->d_name[0] != '.';
    if (d) closedir(d);
    return n;
}

static int down(void **state)
{
    char file[512];
    (void)state;
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d));) {
        snprintf(file, sizeof file, "%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.') unlink(file);
    }
    if (d) closedir(d);
    return rmdir(dir);
}

static void put(const char *file, const char *text)
{
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static fkv_lease *must_take(void)
{
    fkv_err err = {0};
    fkv_lease *l;
    if (fkv_lease_take(path, "OUT", FKV_LEASE_TRY, NULL, &l, &err)) fail_msg("%s: %s", err.file, err.message);
    return l;
}

static void must_refuse(fkv_status st, const char *word1, const char *word2)
{
    fkv_err err = {0};
    fkv_lease *l = (fkv_lease *)(void *)1;
    assert_int_equal(fkv_lease_take(path, "OUT", FKV_LEASE_TRY, NULL, &l, &err), st);
    assert_null(l);
    if (!strstr(err.message, word1) || !strstr(err.message, word2)) fail_msg("\"%s\"", err.message);
}

static fkv_lease_holder holder(void)
{
    fkv_buf text = {0};
    fkv_err err = {0};
    fkv_lease_holder h;
    assert_int_equal(fkv_file_read(path, 4096, &text, &err), FKV_OK);
    assert_true(fkv_lease_parse(text.data, text.len, &h));
    fkv_buf_free(&text);
    return h;
}

/* A lease of somebody; what is 0 or NULL is as in ours. */
static void put_holder(const char *host, const char *boot, int64_t pids, int64_t pid, int64_t start)
{
    static int n;
    char text[1024];
    fkv_lease *l = must_take();
    const fkv_lease_holder me = holder();
    fkv_lease_release(l);
    snprintf(
        text, sizeof text,
        "{\"format\":\"fairkv-lease/1\",\"host\":\"%s\",\"boot\":\"%s\",\"pids\":%lld,\"pid\":%lld,\"start\":"
        "%lld,\"uuid\":\"%08d-89ab-cdef-0123-456789abcdef\"}\n",
        host ? host : me.host, boot ? boot : me.boot, (long long)(pids ? pids : me.pids),
        (long long)(pid ? pid : me.pid), (long long)(start ? start : me.start), n++);
    put(path, text);
}

static int pipes[2]; /* a byte: the child is where it should be */

/* A child that takes the lease, tells, and does then. */
static pid_t child(void (*then)(fkv_lease *l))
{
    char byte;
    assert_int_equal(pipe(pipes), 0);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        fkv_err err = {0};
        fkv_lease *l;
        if (fkv_lease_take(path, "OUT", FKV_LEASE_TRY, NULL, &l, &err)) _exit(9);
        if (write(pipes[1], "x", 1) != 1) _exit(8);
        then(l);
        _exit(0);
    }
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    return pid;
}

static int ended(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(pipes[0]);
    close(pipes[1]);
    return status;
}

static void wait_for_a_signal(fkv_lease *l)
{
    (void)l;
    for (;;) pause();
}

static void it_says_who_holds_it_and_goes_with_him(void **state)
{
    char pid[64], host[128] = "";
    fkv_err err = {0};
    (void)state;
    fkv_lease *l = must_take();
    assert_int_equal(n_files(), 1);
    assert_int_equal(holder().pid, getpid());
    snprintf(pid, sizeof pid, "another run holds it: process %lld on host ", (long long)getpid());
    gethostname(host, sizeof host - 1);
    must_refuse(FKV_E_BUSY, pid, host);
    assert_int_equal(fkv_lease_look(path, "OUT", NULL, &err), FKV_E_BUSY);
    assert_int_equal(fkv_lease_check(l, NULL), FKV_OK);
    assert_int_equal(fkv_lease_glance(l, NULL), FKV_OK);
    assert_int_equal(n_files(), 1);
    fkv_lease_release(l);
    assert_int_equal(n_files(), 0);
    assert_int_equal(fkv_lease_look(path, "OUT", NULL, NULL), FKV_OK);
}

static void a_killed_holder_s_is_taken_at_once(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        const pid_t pid = child(wait_for_a_signal);
        must_refuse(FKV_E_BUSY, "process", "");
        kill(pid, SIGKILL);
        if (i % 2) ended(pid); /* else it is on its way, then a zombie */
        fkv_lease *l = must_take();
        assert_false(fkv_lease_after_silence(l));
        assert_int_equal(holder().pid, getpid());
        fkv_lease_release(l);
        assert_int_equal(n_files(), 0);
        if (i % 2 == 0) ended(pid);
    }
}

static void another_process_of_that_number_does_not_hold_it(void **state)
{
    (void)state;
    put_holder(NULL, NULL, 0, 0, 1);
    fkv_lease *l = must_take();
    assert_false(fkv_lease_after_silence(l));
    fkv_lease_release(l);
}

/* Its process can't be looked at: on another host, in another container, before a reboot, or nobody knows. */
static void without_a_heartbeat_it_is_taken_over_in_time(void **state)
{
    (void)state;
    fkv_lease_set_pace(5, 0.3);
    for (int i = 0; i < 5; i++) {
        if (i == 0) put_holder("elsewhere", NULL, 0, 0, 0);
        if (i == 1) put_holder(NULL, NULL, 12345, 0, 0);
        if (i == 2) put_holder(NULL, "another-boot", 0, 0, 0);
        if (i == 3) put(path, "");
        if (i == 4) put(path, "{\"format\":\"fairkv-lease/2\"}");
        const double start = fkv_seconds();
        fkv_lease *l = must_take();
        assert_true(fkv_seconds() - start >= 0.3);
        assert_true(fkv_lease_after_silence(l));
        assert_int_equal(holder().pid, getpid());
        fkv_lease_release(l);
        assert_int_equal(n_files(), 0);
    }
}

static void what_was_watched_is_not_watched_again(void **state)
{
    (void)state;
    fkv_lease_set_pace(5, 0.3);
    put_holder("elsewhere", NULL, 0, 0, 0);
    assert_int_equal(fkv_lease_look(path, "OUT", NULL, NULL), FKV_OK);
    const double start = fkv_seconds();
    fkv_lease_release(must_take());
    assert_true(fkv_seconds() - start < 0.3);
}

static void a_heartbeat_elsewhere_keeps_it(void **state)
{
    (void)state;
    put_holder("elsewhere", NULL, 0, 4711, 0);
    const pid_t pid = fork();
    if (pid == 0) {
        const struct timespec pause = {0, 20000000};
        for (;;) {
            utimensat(AT_FDCWD, path, NULL, 0);
            nanosleep(&pause, NULL);
        }
    }
    must_refuse(FKV_E_BUSY, "process 4711 on host elsewhere", "run this again");
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static bool yes(void)
{
    return true;
}

static void a_wait_can_be_ended(void **state)
{
    fkv_lease *l;
    (void)state;
    put_holder("elsewhere", NULL, 0, 0, 0);
    assert_int_equal(fkv_lease_take(path, "OUT", FKV_LEASE_TRY, yes, &l, NULL), FKV_E_INTERRUPTED);
    assert_int_equal(fkv_lease_look(path, "OUT", yes, NULL), FKV_E_INTERRUPTED);
    fkv_lease *held;
    unlink(path);
    held = must_take();
    assert_int_equal(fkv_lease_take(path, "OUT", FKV_LEASE_WAIT, yes, &l, NULL), FKV_E_INTERRUPTED);
    fkv_lease_release(held);
    assert_int_equal(n_files(), 0);
}

/* Stops, and is continued when it has lost the lease. */
static void stop_and_check(fkv_lease *l)
{
    fkv_err err = {0}, again = {0};
    char pid[64];
    snprintf(pid, sizeof pid, "process %lld", (long long)getppid());
    raise(SIGSTOP);
    const fkv_status st = fkv_lease_glance(l, &err);
    if (st != FKV_E_BUSY || !strstr(err.message, pid)) _exit(1);
    if (fkv_lease_check(l, &again) != FKV_E_BUSY) _exit(2);
    fkv_lease_release(l);
    _exit(fkv_file_exists(path) ? 0 : 3); /* the other one's stays */
}

static void a_stopped_holder_notices_that_he_lost_it(void **state)
{
    int status;
    (void)state;
    fkv_lease_set_pace(0.05, 0.4);
    const pid_t pid = child(stop_and_check);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    fkv_lease *l = must_take();
    assert_true(fkv_lease_after_silence(l));
    kill(pid, SIGCONT);
    assert_int_equal(ended(pid), 0);
    assert_int_equal(fkv_lease_check(l, NULL), FKV_OK);
    fkv_lease_release(l);
    assert_int_equal(n_files(), 0);
}

static void a_holder_whose_file_is_gone_has_lost_it(void **state)
{
    fkv_err err = {0};
    (void)state;
    fkv_lease *l = must_take();
    unlink(path);
    assert_int_equal(fkv_lease_check(l, &err), FKV_E_BUSY);
    assert_int_equal(fkv_lease_glance(l, NULL), FKV_E_BUSY);
    fkv_lease_release(l);
}

static void a_file_system_without_hard_links_is_named_as_such(void **state)
{
    (void)state;
    links = LINK_REFUSED;
    must_refuse(FKV_E_SYSTEM, "no hard links", "job.output");
    assert_int_equal(n_files(), 0);
}

static void a_link_whose_answer_is_lost_counts(void **state)
{
    (void)state;
    links = LINK_ANSWER_LOST;
    fkv_lease_release(must_take());
    assert_int_equal(n_files(), 0);
}

static void a_file_that_another_tidied_away_is_made_again(void **state)
{
    (void)state;
    links = LINK_TIDIED;
    fkv_lease_release(must_take());
    assert_int_equal(n_files(), 0);
}

static void what_killed_ones_left_is_tidied_up(void **state)
{
    static const char *const names[] = {"lock." UUID ".tmp", "lock." UUID ".old", "lock-plan." UUID ".tmp",
                                        "lock.txt", "lock.tmp"};
    char file[512];
    (void)state;
    for (int i = 0; i < 5; i++) {
        snprintf(file, sizeof file, "%s/%s", dir, names[i]);
        put(file, "x");
        assert_int_equal(fkv_lease_is_leaving(names[i]), i < 3);
    }
    fkv_lease_release(must_take());
    assert_int_equal(n_files(), 3); /* the others are not this lease's */
}

typedef struct shared {
    atomic_int inside, most, turns;
} shared;

static void take_turns(shared *s)
{
    for (int i = 0; i < 12; i++) {
        fkv_lease *l;
        if (fkv_lease_take(path, "OUT", FKV_LEASE_WAIT, NULL, &l, NULL)) _exit(1);
        const int n = atomic_fetch_add(&s->inside, 1) + 1;
        if (n > atomic_load(&s->most)) atomic_store(&s->most, n);
        atomic_fetch_add(&s->turns, 1);
        if (i % 4 == 3) { /* one that dies with it */
            atomic_fetch_sub(&s->inside, 1);
            kill(getpid(), SIGKILL);
        }
        atomic_fetch_sub(&s->inside, 1);
        fkv_lease_release(l);
    }
}

static void of_many_that_want_it_one_has_it(void **state)
{
    enum { N = 12 };
    pid_t pids[N];
    (void)state;
    shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(s != MAP_FAILED);
    put_holder(NULL, NULL, 0, 0, 1); /* a dead one's, at first */
    for (int i = 0; i < N; i++) {
        if ((pids[i] = fork()) == 0) {
            take_turns(s);
            _exit(0);
        }
    }
    for (int i = 0; i < N; i++) assert_int_equal(waitpid(pids[i], NULL, 0), pids[i]);
    assert_int_equal(atomic_load(&s->most), 1);
    assert_int_equal(atomic_load(&s->turns), N * 4);
    fkv_lease_release(must_take());
    assert_int_equal(n_files(), 0);
    munmap(s, sizeof *s);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, up, down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(it_says_who_holds_it_and_goes_with_him),
        TEST(a_killed_holder_s_is_taken_at_once),
        TEST(another_process_of_that_number_does_not_hold_it),
        TEST(without_a_heartbeat_it_is_taken_over_in_time),
        TEST(what_was_watched_is_not_watched_again),
        TEST(a_heartbeat_elsewhere_keeps_it),
        TEST(a_wait_can_be_ended),
        TEST(a_stopped_holder_notices_that_he_lost_it),
        TEST(a_holder_whose_file_is_gone_has_lost_it),
        TEST(a_file_system_without_hard_links_is_named_as_such),
        TEST(a_link_whose_answer_is_lost_counts),
        TEST(a_file_that_another_tidied_away_is_made_again),
        TEST(what_killed_ones_left_is_tidied_up),
        TEST(of_many_that_want_it_one_has_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
