/* An output that changes hands: a run that was stopped finds that another one has it now. */
#include "output_fixture.h"

#include <signal.h>
#include <sys/wait.h>

#include "jobs/lease.h"
#include "jobs/manifest.h"

/* Adds n rows, stops itself, and goes on when it is continued; it must not get far. */
static void work_and_stop(const fkv_job *job, int64_t n)
{
    fkv_err err = {0};
    fkv_output *o;
    char row[1000];
    if (fkv_output_open(job, NULL, &o, &err)) _exit(9);
    for (int64_t i = 0; i < n; i++) {
        const size_t len = make_row(i, row, sizeof row);
        if (fkv_output_add(o, i, row, len, is_error_row(i), 10, 2, &err)) _exit(8);
    }
    raise(SIGSTOP);
    const size_t len = make_row(n, row, sizeof row);
    if (fkv_output_add(o, n, row, len, is_error_row(n), 10, 2, &err) != FKV_E_BUSY) _exit(1);
    if (!strstr(err.message, "another run has taken it over")) _exit(2);
    if (fkv_output_pin(o, "key", "value", NULL) != FKV_E_BUSY) _exit(3);
    if (fkv_output_finish(o, n, NULL) == FKV_OK) _exit(4);
    fkv_output_close(o);
    _exit(0);
}

/* n: rows that the stopped one did: some of the first shard, a whole one, or more. */
static void a_run_that_was_stopped_for_long_writes_nothing_more(void **state)
{
    static const int64_t done[] = {3, 7, 8, 21};
    const fixture *x = *state;
    fkv_buf want = {0};
    fkv_lease_set_pace(0.05, 0.3);
    reference(x, N_RECORDS, &want);
    for (size_t i = 0; i < sizeof done / sizeof *done; i++) {
        fkv_job *job = make_job(x, NULL);
        int status;
        const pid_t pid = fork();
        if (pid == 0) work_and_stop(job, done[i]);
        assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
        assert_true(WIFSTOPPED(status));
        fkv_output *o = must_open(job);
        assert_int_equal(totals_of(o).resumed, done[i]);
        add(o, done[i]);
        const int64_t journal = size_of(x->out, "journal");
        kill(pid, SIGCONT);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        assert_int_equal(size_of(x->out, "journal"), journal);
        add_needed(o, N_RECORDS);
        finish(o, N_RECORDS);
        fkv_output_close(o);
        same_shards(x->out, &want);
        assert_int_equal(size_of(x->out, "lock"), -1);
        remove_tree(x->out);
        fkv_job_free(job);
    }
    fkv_lease_set_pace(5, 60);
    fkv_buf_free(&want);
}

/* The first file of an output says whose it is: nothing of ours ever lies in a folder without it, but a
 * lease. */
static void the_manifest_is_the_first_file(void **state)
{
    const fixture *x = *state;
    char path[400];
    fkv_job *job = make_job(x, NULL);
    fkv_err err = {0};
    fkv_output *o;
    /* Where no manifest can be made, there is nothing else either. */
    assert_int_equal(fkv_dir_make(x->out, &err), FKV_OK);
    snprintf(path, sizeof path, "%s/manifest.json.tmp", x->out);
    assert_int_equal(fkv_dir_make(path, &err), FKV_OK);
    assert_int_equal(fkv_output_open(job, NULL, &o, &err), FKV_E_SYSTEM);
    static const char *const none[] = {"job.ini", "journal", "shards", "lock", "log", "lock-job"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) assert_int_equal(size_of(x->out, none[i]), -1);
    fkv_job_free(job);
}

static void a_refused_run_takes_back_what_it_made(void **state)
{
    const fixture *x = *state;
    char path[600], set[700];
    snprintf(path, sizeof path, "%s/new/deep", x->dir);
    snprintf(set, sizeof set, "job.output=%s/out", path);
    fkv_job *job = make_job(x, set, NULL);
    fkv_output *o = must_open(job);
    assert_true(fkv_file_exists(job->job.output));
    fkv_output_close_refused(o);
    snprintf(path, sizeof path, "%s/new", x->dir);
    assert_false(fkv_file_exists(path));
    o = must_open(job); /* but not rows */
    add(o, 0);
    fkv_output_close_refused(o);
    o = must_open(job);
    assert_int_equal(totals_of(o).resumed, 1);
    fkv_output_close_refused(o); /* nor what another run made */
    o = must_open(job);
    assert_int_equal(totals_of(o).resumed, 1);
    fkv_output_close(o);
    fkv_job_free(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_run_that_was_stopped_for_long_writes_nothing_more),
        TEST(the_manifest_is_the_first_file),
        TEST(a_refused_run_takes_back_what_it_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
