/* Several processes on one output, as the output folder has them (input.part = auto): who gets which shard,
 * who finishes, and what one may do still that showed no sign of life. */
#include "output_fixture.h"

#include <signal.h>
#include <sys/wait.h>

#include "jobs/folder_names.h"
#include "jobs/lease.h"

enum { N_SHARDS = (N_RECORDS + PER_SHARD - 1) / PER_SHARD };

/* The reader's part, up to record end: how many records are needed. */
static int64_t read_to(fkv_output *o, int64_t end)
{
    fkv_err err = {0};
    int64_t n = 0;
    for (int64_t i = 0; i < end; i++) {
        if (fkv_output_pass(o, i + 1, (uint64_t)i + 1, &err)) fail_msg("pass: %s", err.message);
        n += fkv_output_needs(o, i);
    }
    return n;
}

static void add_shard(fkv_output *o, int64_t index)
{
    for (int64_t i = index * PER_SHARD; i < (index + 1) * PER_SHARD && i < N_RECORDS; i++) add(o, i);
}

static bool claim(fkv_output *o, fkv_status st)
{
    fkv_err err = {0};
    bool claimed;
    assert_int_equal(fkv_output_claim(o, N_RECORDS, &claimed, &err), st);
    return claimed;
}

static void each_takes_the_next_free_shard(void **state)
{
    const fixture *x = *state;
    fkv_buf want = {0};
    reference(x, N_RECORDS, &want);
    fkv_job *job = make_job(x, "input.part=auto", NULL);
    fkv_output *a = must_open(job), *b = must_open(job);
    assert_int_equal(read_to(a, 1), 1);
    assert_int_equal(read_to(b, PER_SHARD + 1), 1);
    assert_int_equal(read_to(a, 3 * PER_SHARD), 2 * PER_SHARD - 1); /* the first was on its way */
    assert_int_equal(read_to(b, N_RECORDS), N_RECORDS - 2 * PER_SHARD - 1);
    for (int64_t i = 0; i < N_SHARDS; i++) add_shard(i == 0 || i == 2 ? a : b, i);
    /* All but the short last one are there, which is b's, who ends first. */
    fkv_err err = {0};
    assert_false(claim(b, FKV_OK));
    assert_int_equal(fkv_output_finish(b, N_RECORDS, &err), FKV_OK);
    assert_true(totals_of(b).complete);
    assert_int_equal(fkv_output_finish(a, N_RECORDS, &err), FKV_OK);
    assert_int_equal(totals_of(a).records, N_RECORDS);
    assert_int_equal(totals_of(a).resumed, N_RECORDS - 2 * PER_SHARD);
    fkv_output_close(a);
    fkv_output_close(b);
    same_shards(x->out, &want);
    fkv_buf_free(&want);
    fkv_job_free(job);
}

static void the_last_to_end_makes_the_short_shard(void **state)
{
    const fixture *x = *state;
    fkv_buf want = {0};
    fkv_err err = {0};
    reference(x, N_RECORDS, &want);
    fkv_job *job = make_job(x, "input.part=auto", NULL);
    fkv_output *a = must_open(job), *b = must_open(job);
    assert_int_equal(read_to(a, PER_SHARD), PER_SHARD);
    assert_int_equal(read_to(b, N_RECORDS), N_RECORDS - PER_SHARD);
    for (int64_t i = 1; i < N_SHARDS; i++) add_shard(b, i);
    assert_false(claim(b, FKV_E_BUSY));
    assert_int_equal(fkv_output_finish(b, N_RECORDS, &err), FKV_E_BUSY);
    assert_false(totals_of(b).complete);
    fkv_output_close(b);
    /* All that is left to claim has its rows. */
    assert_false(claim(a, FKV_OK));
    add_shard(a, 0);
    assert_int_equal(fkv_output_finish(a, N_RECORDS, &err), FKV_OK);
    assert_true(totals_of(a).complete);
    fkv_output_close(a);
    same_shards(x->out, &want);
    fkv_buf_free(&want);
    fkv_job_free(job);
}

/* Claims shard 0, adds some rows, stops, and finds out when it goes on. */
static void be_silent(const fkv_job *job)
{
    fkv_err err = {0};
    fkv_output *o;
    const char row[] = "{}\n";
    if (fkv_output_open(job, NULL, &o, &err)) _exit(9);
    if (read_to(o, PER_SHARD) != PER_SHARD) _exit(8);
    for (int64_t i = 0; i < 5; i++) add(o, i);
    raise(SIGSTOP);
    const fkv_status st = fkv_output_add(o, 5, row, 3, false, 0, 0, &err);
    fkv_output_close(o);
    _exit(st == FKV_E_BUSY ? 0 : 7);
}

static void a_silent_process_loses_its_shard_and_writes_nothing_more(void **state)
{
    const fixture *x = *state;
    int status;
    fkv_err err = {0};
    fkv_buf want = {0};
    reference(x, N_RECORDS, &want);
    fkv_job *job = make_job(x, "input.part=auto", NULL);
    fkv_lease_set_pace(0.05, 0.4);
    const pid_t pid = fork();
    if (pid == 0) be_silent(job);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    fkv_output *o = must_open(job);
    /* Without watching it, nobody knows. */
    assert_int_equal(read_to(o, N_RECORDS), N_RECORDS - PER_SHARD);
    for (int64_t i = 1; i < N_SHARDS; i++) add_shard(o, i);
    assert_true(claim(o, FKV_OK));
    assert_int_equal(read_to(o, N_RECORDS), PER_SHARD - 5);
    for (int64_t i = 5; i < PER_SHARD; i++) add(o, i);
    kill(pid, SIGCONT);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(fkv_output_finish(o, N_RECORDS, &err), FKV_OK);
    assert_int_equal(totals_of(o).resumed, 5);
    fkv_output_close(o);
    fkv_lease_set_pace(5, 60);
    same_shards(x->out, &want);
    fkv_buf_free(&want);
    fkv_job_free(job);
}

static void what_others_made_is_not_made_again(void **state)
{
    const fixture *x = *state;
    fkv_err err = {0};
    fkv_job *job = make_job(x, "input.part=auto", NULL);
    fkv_output *late = must_open(job), *o = must_open(job);
    /* The late one's manifest is as it was before the other did two shards. */
    assert_int_equal(read_to(o, 2 * PER_SHARD), 2 * PER_SHARD);
    add_shard(o, 0);
    add_shard(o, 1);
    assert_int_equal(read_to(late, N_RECORDS), N_RECORDS - 2 * PER_SHARD);
    for (int64_t i = 2; i < N_SHARDS; i++) add_shard(late, i);
    assert_int_equal(fkv_output_finish(late, N_RECORDS, &err), FKV_OK);
    assert_true(totals_of(late).complete);
    assert_int_equal(totals_of(late).resumed, 2 * PER_SHARD);
    fkv_output_close(late);
    fkv_output_close(o);
    fkv_job_free(job);
}

static void names_say_whose_a_file_is(void **state)
{
    int64_t n, of;
    (void)state;
    static const char *const ours[] = {
        "lock-auto0",        "lock-shard-000012",      "journal-shard-1234567",   "journal-shard-000001.tmp",
        "stats-auto31.json", "metrics-auto0.prom.tmp", "manifest-auto2.json.tmp", "log-auto7"};
    static const char *const others[] = {
        "lock-auto",     "lock-shard-12",       "journal-shard-000001x",
        "lock-autox1",   "journal-shard-",      "stats-auto-1.json",
        "lock-shard-00", "stats-auto1of2.json", "log-auto99999999999999999999"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (!fkv_name_is_ours(ours[i])) fail_msg("%s is ours", ours[i]);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (fkv_name_is_ours(others[i])) fail_msg("%s is not ours", others[i]);
    assert_true(fkv_name_is_claim("lock-shard-000012", "lock", "", &n) && n == 12);
    assert_false(fkv_name_is_claim("lock-shard-000012", "journal", "", &n));
    assert_true(fkv_name_is_part("stats-auto31.json", "stats", ".json", &n, &of) && n == 31 && of == 0);
    assert_true(fkv_name_is_unfinished_shard("shard-000003.jsonl.zst.auto5.tmp", &n) && n == 5);
    assert_true(fkv_name_is_unfinished_shard("shard-000003.jsonl.zst.tmp", &n) && n == -1);
    assert_false(fkv_name_is_unfinished_shard("shard-000003.jsonl.zst", &n));
    assert_false(fkv_name_is_unfinished_shard("shard-000003.jsonl.zst.auto.tmp", &n));
    assert_false(fkv_name_is_unfinished_shard("shard-3.jsonl.zst.auto5.tmp", &n));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_takes_the_next_free_shard),
        TEST(the_last_to_end_makes_the_short_shard),
        TEST(a_silent_process_loses_its_shard_and_writes_nothing_more),
        TEST(what_others_made_is_not_made_again),
        TEST(names_say_whose_a_file_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
