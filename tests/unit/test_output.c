/* The output folder: whatever stops a run and in whatever order rows come, a
 * resume does what is missing and the shards' bytes are an uninterrupted run's. */
#include "output_fixture.h"

#include <fcntl.h>
#include <glob.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "jobs/manifest.h"
#include "runner/base/hash.h"

enum { FILE_HEADER = 32, ENTRY_HEADER = 64 };

static void a_run_leaves_its_rows_in_input_order(void **state)
{
    const fixture *x = *state;
    fkv_job *job = make_job(x, NULL);
    fkv_output *o = must_open(job);
    fkv_err err = {0};
    int64_t at = 0;
    assert_false(totals_of(o).complete);
    add_needed(o, N_RECORDS);
    finish(o, N_RECORDS);
    assert_true(totals_of(o).complete);
    assert_int_equal(totals_of(o).records, N_RECORDS);
    assert_int_equal(totals_of(o).prompt_tokens, 10 * N_RECORDS);
    fkv_output_close(o);
    for (int64_t j = 0; j <= N_RECORDS / PER_SHARD; j++) {
        char name[FKV_SHARD_NAME_SIZE], path[400], want[1000];
        fkv_shard_reader *reader;
        const char *row;
        size_t n;
        fkv_shard_name(j, name);
        snprintf(path, sizeof path, "%s/%s", x->out, name);
        assert_int_equal(fkv_shard_reader_open(path, &reader, &err), FKV_OK);
        while (fkv_shard_reader_next(reader, &row, &n, &err) == FKV_OK) {
            assert_int_equal(n, make_row(at++, want, sizeof want));
            assert_memory_equal(row, want, n);
        }
        assert_int_equal(err.status, FKV_OK);
        fkv_shard_reader_close(reader);
    }
    assert_int_equal(at, N_RECORDS);
    assert_int_equal(size_of(x->out, "journal"), FILE_HEADER);
    assert_true(size_of(x->out, "job.ini") > 0);
    fkv_job_free(job);
}

static void a_finished_job_needs_nothing(void **state)
{
    const fixture *x = *state;
    fkv_job *job = make_job(x, NULL);
    fkv_err err = {0};
    fkv_output *o = must_open(job);
    add_needed(o, N_RECORDS);
    finish(o, N_RECORDS);
    fkv_output_close(o);
    o = must_open(job);
    const fkv_output_totals t = totals_of(o);
    assert_true(t.complete);
    assert_int_equal(t.records, N_RECORDS);
    assert_int_equal(t.resumed, N_RECORDS);
    assert_int_equal(t.errors, 4); /* 5, 16, 27, 38 */
    assert_int_equal(t.prompt_tokens, 0);
    for (int64_t i = 0; i < N_RECORDS + 20; i++) assert_false(fkv_output_needs(o, i));
    finish(o, N_RECORDS);
    assert_int_equal(fkv_output_finish(o, N_RECORDS + 1, &err), FKV_E_INPUT);
    fkv_output_close(o);
    fkv_job_free(job);
}

static void an_empty_input_is_a_finished_job(void **state)
{
    fkv_job *job = make_job(*state, NULL);
    fkv_output *o = must_open(job);
    finish(o, 0);
    fkv_output_close(o);
    o = must_open(job);
    assert_true(totals_of(o).complete);
    fkv_output_close(o);
    fkv_job_free(job);
}

static int progress[2]; /* a pipe: a byte a row */

/* Runs f in a child that never closes the output, and kills it once it has told of n_rows
 * rows (0: it ends by itself). */
static void in_killed_child(const fkv_job *job, void (*f)(fkv_output *o, int64_t arg), int64_t arg,
                            int n_rows)
{
    char byte;
    assert_int_equal(pipe(progress), 0);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        fkv_err err = {0};
        close(progress[0]);
        fkv_output *o;
        if (fkv_output_open(job, NULL, &o, &err)) _exit(9);
        f(o, arg);
        _exit(0);
    }
    close(progress[1]);
    for (int i = 0; i < n_rows && read(progress[0], &byte, 1) == 1; i++) continue;
    if (n_rows) kill(pid, SIGKILL);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(progress[0]); /* not before, or what it still tells kills it */
    if (!n_rows) assert_int_equal(status, 0);
}

static void child_adds(fkv_output *o, int64_t n)
{
    for (int64_t i = 0; n > 0 && i < N_RECORDS; i++) {
        if (!fkv_output_needs(o, i)) continue;
        add(o, i);
        n--;
    }
}

static void a_killed_run_loses_no_finished_row(void **state)
{
    const fixture *x = *state;
    fkv_buf want = {0};
    reference(x, N_RECORDS, &want);
    fkv_job *job = make_job(x, NULL);
    int64_t done = 0;
    for (int64_t n = 0; n < 9; n++) {
        in_killed_child(job, child_adds, n, 0);
        done += n;
        fkv_output *o = must_open(job);
        assert_int_equal(totals_of(o).resumed, done);
        assert_int_equal(totals_of(o).records, done);
        for (int64_t i = 0; i < N_RECORDS; i++) assert_int_equal(fkv_output_needs(o, i), i >= done);
        fkv_output_close(o);
    }
    fkv_output *o = must_open(job);
    add_needed(o, N_RECORDS);
    finish(o, N_RECORDS);
    fkv_output_close(o);
    same_shards(x->out, &want);
    fkv_buf_free(&want);
    fkv_job_free(job);
}

static void child_runs(fkv_output *o, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (!fkv_output_needs(o, i)) continue;
        add(o, i);
        assert_int_equal(write(progress[1], "", 1), 1);
    }
    finish(o, n);
}

static void a_run_killed_at_any_time_ends_in_the_same_bytes(void **state)
{
    const fixture *x = *state;
    fkv_buf want = {0};
    enum { N = 203 };
    reference(x, N, &want);
    fkv_job *job = make_job(x, NULL);
    for (int i = 1; i <= 16; i++) in_killed_child(job, child_runs, N, i);
    in_killed_child(job, child_runs, N, 0);
    same_shards(x->out, &want);
    fkv_buf_free(&want);
    fkv_job_free(job);
}

/* The last shard is shorter than the others, which only a complete manifest may say. */
static void a_finish_that_failed_is_done_by_the_next_run(void **state)
{
    const fixture *x = *state;
    fkv_buf want = {0};
    char block[400];
    reference(x, N_RECORDS, &want);
    snprintf(block, sizeof block, "%s/manifest.json.tmp", x->out);
    fkv_job *job = make_job(x, NULL);
    for (int disk_recovers = 0; disk_recovers < 2; disk_recovers++) {
        fkv_err err = {0};
        fkv_output *o = must_open(job);
        add_needed(o, N_RECORDS);
        assert_int_equal(mkdir(block, 0777), 0); /* no file can be made of that name */
        assert_int_equal(fkv_output_finish(o, N_RECORDS, &err), FKV_E_SYSTEM);
        assert_string_equal(err.file, block);
        assert_false(totals_of(o).complete);
        if (disk_recovers) assert_int_equal(rmdir(block), 0);
        fkv_output_close(o);
        if (!disk_recovers) assert_int_equal(rmdir(block), 0);
    }
    fkv_output *o = must_open(job);
    assert_false(totals_of(o).complete);
    assert_int_equal(totals_of(o).resumed, N_RECORDS);
    finish(o, N_RECORDS);
    assert_true(totals_of(o).complete);
    fkv_output_close(o);
    same_shards(x->out, &want);
    fkv_buf_free(&want);
    fkv_job_free(job);
}

static void rows_may_come_in_any_order(void **state)
{
    const fixture *x = *state;
    fkv_buf want = {0};
    reference(x, N_RECORDS, &want);
    fkv_job *job = make_job(x, NULL);
    for (uint64_t seed = 0; seed < 6; seed++) {
        int64_t order[N_RECORDS];
        for (int64_t i = 0; i < N_RECORDS; i++) order[i] = seed == 1 ? N_RECORDS - 1 - i : i;
        for (int64_t i = N_RECORDS - 1; seed > 1 && i > 0; i--) {
            const int64_t k = (int64_t)(fkv_random_u64(seed, 0, (uint64_t)i) % (uint64_t)(i + 1)),
                          t = order[i];
            order[i] = order[k];
            order[k] = t;
        }
        fkv_output *o = must_open(job);
        for (int64_t i = 0; i < N_RECORDS; i++) {
            assert_true(fkv_output_needs(o, order[i]));
            add(o, order[i]);
            assert_false(fkv_output_needs(o, order[i]));
            if (i % 7 != 6 || seed == 0) continue;
            fkv_output_close(o);
            o = must_open(job);
            for (int64_t k = 0; k < N_RECORDS; k++) assert_int_equal(fkv_output_needs(o, order[k]), k > i);
        }
        finish(o, N_RECORDS);
        fkv_output_close(o);
        same_shards(x->out, &want);
        remove_tree(x->out);
    }
    fkv_buf_free(&want);
    fkv_job_free(job);
}

static void parts_together_are_one_run(void **state)
{
    const fixture *x = *state;
    fkv_buf want = {0};
    reference(x, N_RECORDS, &want);
    for (int part = 2; part >= 0; part--) {
        char set[32], name[64];
        int64_t n = 0;
        snprintf(set, sizeof set, "input.part=%d/3", part);
        fkv_job *job = make_job(x, set, NULL);
        fkv_output *o = must_open(job);
        for (int64_t i = 0; i < N_RECORDS; i++) {
            assert_int_equal(fkv_output_needs(o, i), i / PER_SHARD % 3 == part);
            n += fkv_output_needs(o, i);
            if (i == 20) {
                fkv_output_close(o);
                o = must_open(job);
            }
            if (fkv_output_needs(o, i)) add(o, i);
        }
        finish(o, N_RECORDS);
        assert_int_equal(totals_of(o).records, n);
        char *path = fkv_output_path(o, "stats.json", true);
        snprintf(name, sizeof name, "/out/stats-%dof3.json", part);
        assert_string_equal(path + strlen(x->dir), name);
        free(path);
        path = fkv_output_path(o, "plan.json", false);
        assert_string_equal(path + strlen(x->dir), "/out/plan.json");
        free(path);
        fkv_output_close(o);
        fkv_job_free(job);
        snprintf(name, sizeof name, "manifest-%dof3.json", part);
        assert_true(size_of(x->out, name) > 0);
    }
    same_shards(x->out, &want);
    assert_int_equal(size_of(x->out, "manifest.json"), -1);
    fkv_job *job = make_job(x, "input.part=0/2", NULL);
    must_refuse(job, FKV_E_INPUT, "number of parts", "of3.json");
    fkv_job_free(job);
    job = make_job(x, NULL);
    must_refuse(job, FKV_E_INPUT, "number of parts", "of3.json");
    fkv_job_free(job);
    job = make_job(x, "input.part=0/3", NULL);
    job->job.restart = true;
    must_refuse(job, FKV_E_INPUT, "job.restart", "input.part");
    fkv_job_free(job);
    fkv_buf_free(&want);
}

static void parts_of_different_jobs_are_refused(void **state)
{
    const fixture *x = *state;
    fkv_job *a = make_job(x, "input.part=0/2", "job.seed=1", NULL);
    fkv_job *b = make_job(x, "input.part=1/2", "job.seed=2", NULL);
    fkv_output *o = must_open(a);
    must_refuse(b, FKV_E_INPUT, "job.seed was \"1\", is now \"2\"", x->out);
    fkv_output_close(o);
    fkv_job_free(a);
    fkv_job_free(b);
}

static void hold_until_killed(fkv_output *o, int64_t fd)
{
    (void)o;
    if (write((int)fd, "x", 1) == 1) pause();
}

static void a_second_run_is_told_who_holds_the_output(void **state)
{
    const fixture *x = *state;
    int ready[2];
    char byte, who[64], host[64] = "";
    fkv_job *job = make_job(x, NULL), *again = make_job(x, "job.restart=yes", NULL);
    assert_int_equal(pipe(ready), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        fkv_err err = {0};
        fkv_output *o;
        if (fkv_output_open(job, NULL, &o, &err)) _exit(9);
        hold_until_killed(o, ready[1]);
        _exit(0);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    snprintf(who, sizeof who, "process %lld", (long long)pid);
    gethostname(host, sizeof host - 1);
    must_refuse(job, FKV_E_BUSY, who, host);
    must_refuse(again, FKV_E_BUSY, who, x->out); /* nor may it be moved aside */
    assert_true(size_of(x->out, "manifest.json") > 0);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    fkv_output *o = must_open(job); /* the lock ended with its process */
    fkv_output_close(o);
    close(ready[0]);
    close(ready[1]);
    fkv_job_free(job);
    fkv_job_free(again);
}

static void another_job_is_refused_by_its_first_difference(void **state)
{
    const fixture *x = *state;
    fkv_job *job = make_job(x, NULL), *other = make_job(x, "job.limit=5", "sampling.top_k=7", NULL);
    fkv_output *o = must_open(job);
    add(o, 0);
    fkv_output_close(o);
    must_refuse(other, FKV_E_INPUT,
                "out: made by a different job: job.limit was \"0\", is now \"5\" (use job.restart = yes or "
                "another job.output)",
                x->out);
    o = must_open(job); /* the refusal changed nothing */
    assert_int_equal(totals_of(o).resumed, 1);
    fkv_output_close(o);
    fkv_job_free(job);
    fkv_job_free(other);
}

static void restart_moves_the_old_output_aside(void **state)
{
    const fixture *x = *state;
    char pattern[400];
    glob_t found;
    fkv_job *job = make_job(x, "job.restart=yes", NULL),
            *other = make_job(x, "job.seed=5", "job.restart=yes", NULL);
    fkv_output *o = must_open(job); /* nothing there yet */
    add_needed(o, 10);
    fkv_output_close(o);
    snprintf(pattern, sizeof pattern, "%s.old-*", x->out);
    assert_int_equal(glob(pattern, 0, NULL, &found), GLOB_NOMATCH);
    for (int i = 1; i <= 3; i++) { /* in the same second too */
        o = must_open(i == 2 ? job : other);
        assert_int_equal(totals_of(o).records, 0);
        add_needed(o, 10);
        must_refuse(job, FKV_E_BUSY, "process", x->out);
        fkv_output_close(o);
        assert_int_equal(glob(pattern, 0, NULL, &found), 0);
        assert_int_equal(found.gl_pathc, i);
        for (size_t k = 0; k < found.gl_pathc; k++)
            assert_true(size_of(found.gl_pathv[k], "shards/shard-000000.jsonl.zst") > 0);
        globfree(&found);
    }
    fkv_job_free(job);
    fkv_job_free(other);
}

static void pins_hold_over_resumes(void **state)
{
    fkv_err err = {0};
    fkv_job *job = make_job(*state, NULL);
    fkv_output *o = must_open(job);
    assert_int_equal(fkv_output_pin(o, "plan", "abc", &err), FKV_OK);
    assert_int_equal(fkv_output_pin(o, "plan", "abc", &err), FKV_OK);
    fkv_output_close(o);
    o = must_open(job);
    assert_int_equal(fkv_output_pin(o, "plan", "abc", &err), FKV_OK);
    assert_int_equal(fkv_output_pin(o, "plan", "xyz", &err), FKV_E_INPUT);
    assert_non_null(strstr(err.message, "run.plan was \"abc\", is now \"xyz\""));
    fkv_output_close(o);
    fkv_job_free(job);
}

static void a_shard_that_is_gone_or_cut_is_named(void **state)
{
    const fixture *x = *state;
    char path[400];
    fkv_job *job = make_job(x, NULL);
    fkv_output *o = must_open(job);
    add_needed(o, N_RECORDS);
    fkv_output_close(o);
    snprintf(path, sizeof path, "%s/shards/shard-000002.jsonl.zst", x->out);
    assert_int_equal(truncate(path, fkv_file_size(path) - 1), 0);
    must_refuse(job, FKV_E_INPUT, "shard-000002.jsonl.zst", "bytes");
    assert_int_equal(unlink(path), 0);
    must_refuse(job, FKV_E_INPUT, "shard-000002.jsonl.zst", "missing");
    snprintf(path, sizeof path, "%s/manifest.json", x->out);
    assert_int_equal(unlink(path), 0);
    must_refuse(job, FKV_E_INPUT, x->out, "no manifest");
    fkv_job_free(job);
}

static void a_shard_without_its_manifest_line_is_made_again(void **state)
{
    const fixture *x = *state;
    char manifest[400], saved[420], path[420];
    fkv_buf want = {0};
    reference(x, N_RECORDS, &want);
    fkv_job *job = make_job(x, NULL);
    in_killed_child(job, child_adds, 7, 0);
    snprintf(manifest, sizeof manifest, "%s/manifest.json", x->out);
    snprintf(saved, sizeof saved, "%s.saved", manifest);
    fkv_buf before = {0};
    fkv_err err = {0};
    assert_int_equal(fkv_file_read(manifest, 1 << 20, &before, &err), FKV_OK);
    in_killed_child(job, child_adds, 1, 0); /* commits shard 0; small: the journal keeps its rows */
    assert_int_equal(fkv_file_replace(manifest, before.data, before.len, &err), FKV_OK);
    snprintf(path, sizeof path, "%s/shards/shard-000001.jsonl.zst.tmp", x->out);
    write_text(path, "half a shard");
    fkv_output *o = must_open(job);
    assert_int_equal(size_of(x->out, "shards/shard-000001.jsonl.zst.tmp"), -1);
    assert_int_equal(totals_of(o).resumed, 8);
    for (int64_t i = 0; i < N_RECORDS; i++) assert_int_equal(fkv_output_needs(o, i), i >= 8);
    add_needed(o, N_RECORDS);
    finish(o, N_RECORDS);
    fkv_output_close(o);
    same_shards(x->out, &want);
    fkv_buf_free(&before);
    fkv_buf_free(&want);
    fkv_job_free(job);
}

static void retry_errors_does_only_the_error_rows_again(void **state)
{
    const fixture *x = *state;
    fkv_buf want = {0};
    reference(x, N_RECORDS, &want);
    fkv_job *job = make_job(x, NULL), *retry = make_job(x, NULL);
    retry->job.retry_errors = true;
    fkv_output *o = must_open(job);
    add_needed(o, 20); /* errors 5 in shard 0, 16 in the journal */
    fkv_output_close(o);
    o = must_open(retry);
    assert_int_equal(totals_of(o).errors, 0);
    assert_int_equal(totals_of(o).resumed, 18);
    for (int64_t i = 0; i < N_RECORDS; i++)
        assert_int_equal(fkv_output_needs(o, i), i >= 20 || i == 5 || i == 16);
    add(o, 16);
    fkv_output_close(o);
    o = must_open(job); /* without it again: the old error row stands */
    assert_false(fkv_output_needs(o, 5));
    assert_false(fkv_output_needs(o, 16));
    assert_int_equal(totals_of(o).resumed, 20);
    fkv_output_close(o);
    o = must_open(retry);
    assert_true(fkv_output_needs(o, 5));
    assert_true(fkv_output_needs(o, 16)); /* an error row again */
    assert_int_equal(totals_of(o).resumed, 18);
    add_needed(o, N_RECORDS);
    finish(o, N_RECORDS);
    fkv_output_close(o);
    same_shards(x->out, &want);
    o = must_open(retry); /* of a finished job */
    assert_false(totals_of(o).complete);
    assert_int_equal(totals_of(o).resumed, N_RECORDS - 4);
    add_needed(o, N_RECORDS);
    finish(o, N_RECORDS);
    fkv_output_close(o);
    same_shards(x->out, &want);
    fkv_buf_free(&want);
    fkv_job_free(job);
    fkv_job_free(retry);
}

static void mistakes_of_the_caller_are_refused(void **state)
{
    fkv_err err = {0};
    char row[1000];
    fkv_job *job = make_job(*state, NULL), *part = make_job(*state, "input.part=1/2", NULL);
    fkv_output *o = must_open(job);
    const size_t n = make_row(3, row, sizeof row);
    add(o, 3);
    assert_int_equal(fkv_output_add(o, 3, row, n, false, 0, 0, &err), FKV_E_SYSTEM);
    assert_int_equal(fkv_output_add(o, 4, row, n - 1, false, 0, 0, &err), FKV_E_SYSTEM);
    assert_int_equal(fkv_output_add(o, -1, row, n, false, 0, 0, &err), FKV_E_SYSTEM);
    assert_int_equal(fkv_output_finish(o, 4, &err), FKV_E_SYSTEM); /* 0, 1, 2 have no row */
    assert_int_equal(fkv_output_finish(o, 1, &err), FKV_E_SYSTEM);
    assert_false(totals_of(o).complete);
    fkv_output_close(o);
    remove_tree(((fixture *)*state)->out);
    o = must_open(part);
    assert_int_equal(fkv_output_add(o, 3, row, n, false, 0, 0, &err), FKV_E_SYSTEM);
    fkv_output_close(o);
    fkv_job_free(job);
    fkv_job_free(part);
}

static void the_journal_does_not_grow_with_the_job(void **state)
{
    const fixture *x = *state;
    enum { BIG = 40000, N = 200 };
    fkv_job *job = make_job(x, NULL);
    fkv_output *o = must_open(job);
    fkv_err err = {0};
    int64_t largest = 0;
    char *row = malloc(BIG);
    assert_non_null(row);
    memset(row, 'x', BIG);
    row[BIG - 1] = '\n';
    for (int64_t i = 0; i < N; i++) {
        assert_int_equal(fkv_output_add(o, i, row, BIG, false, 0, 0, &err), FKV_OK);
        const int64_t size = size_of(x->out, "journal");
        if (size > largest) largest = size;
    }
    finish(o, N);
    /* 1 MB of forgotten rows and a shard's live ones, against 8 MB in all. */
    assert_true(largest > PER_SHARD * BIG && largest < (1 << 20) + 3 * PER_SHARD * BIG);
    fkv_output_close(o);
    free(row);
    fkv_job_free(job);
}

typedef struct watcher {
    fkv_output *o;
    atomic_bool stop;
} watcher;

static void *watch(void *arg)
{
    watcher *w = arg;
    fkv_err err = {0};
    int64_t last = 0;
    while (!atomic_load(&w->stop)) {
        fkv_output_totals t;
        fkv_output_totals_get(w->o, &t);
        if (t.records < last || (last > 0 && fkv_output_needs(w->o, last - 1))) return NULL;
        if (fkv_output_sync(w->o, &err) || fkv_output_pin(w->o, "plan", "p", &err)) return NULL;
        last = t.records;
    }
    return w;
}

static void another_thread_may_ask_meanwhile(void **state)
{
    const fixture *x = *state;
    pthread_t thread;
    void *good;
    fkv_job *job = make_job(x, NULL);
    watcher w = {.o = must_open(job)};
    assert_int_equal(pthread_create(&thread, NULL, watch, &w), 0);
    add_needed(w.o, 160);
    atomic_store(&w.stop, true);
    assert_int_equal(pthread_join(thread, &good), 0);
    assert_ptr_equal(good, &w);
    finish(w.o, 160);
    fkv_output_close(w.o);
    fkv_job_free(job);
}

typedef struct section {
    int ready, go;
    int runs;
} section;

static fkv_status hold_section(void *ctx, fkv_err *err)
{
    section *s = ctx;
    char byte;
    (void)err;
    if (write(s->ready, "x", 1) != 1 || read(s->go, &byte, 1) != 1) return FKV_E_SYSTEM;
    return FKV_OK;
}

static fkv_status count_run(void *ctx, fkv_err *err)
{
    (void)err;
    ((section *)ctx)->runs++;
    return FKV_END;
}

static bool yes(void)
{
    return true;
}

static void parts_wait_for_each_other(void **state)
{
    fkv_err err = {0};
    int ready[2], go[2];
    char byte;
    section s = {0};
    fkv_job *a = make_job(*state, "input.part=0/2", NULL), *b = make_job(*state, "input.part=1/2", NULL);
    assert_true(pipe(ready) == 0 && pipe(go) == 0);
    const pid_t pid = fork();
    if (pid == 0) {
        fkv_output *o;
        section held = {.ready = ready[1], .go = go[0]};
        if (fkv_output_open(a, NULL, &o, &err)) _exit(9);
        _exit(fkv_output_with_lock(o, "profile", hold_section, &held, &err) != 0);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    fkv_output *o;
    assert_int_equal(fkv_output_open(b, yes, &o, &err), FKV_OK); /* nothing to wait for yet */
    assert_int_equal(fkv_output_with_lock(o, "profile", count_run, &s, &err), FKV_E_INTERRUPTED);
    assert_int_equal(s.runs, 0);
    fkv_output_close(o);
    o = must_open(b);
    assert_int_equal(fkv_output_with_lock(o, "plan", count_run, &s, &err), FKV_END); /* another lock */
    assert_int_equal(write(go[1], "x", 1), 1);
    assert_int_equal(fkv_output_with_lock(o, "profile", count_run, &s, &err), FKV_END);
    assert_int_equal(s.runs, 2);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    fkv_output_close(o);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(go[i]);
    }
    fkv_job_free(a);
    fkv_job_free(b);
}

/* Beyond 64 KB the manifest lags behind the shards; nothing may depend on that. */
static void many_shards_survive_a_kill_between_manifests(void **state)
{
    const fixture *x = *state;
    enum { N = 700 };
    fkv_manifest m;
    fkv_err err = {0};
    char path[400];
    fkv_job *job = make_job(x, "output.records_per_shard=1", NULL);
    in_killed_child(job, (void (*)(fkv_output *, int64_t))add_needed, N, 0);
    snprintf(path, sizeof path, "%s/manifest.json", x->out);
    assert_int_equal(fkv_manifest_load(path, &m, &err), FKV_OK);
    assert_true(m.n_shards > 400 && m.n_shards < N);
    fkv_manifest_free(&m);
    fkv_output *o = must_open(job);
    assert_int_equal(totals_of(o).resumed, N);
    for (int64_t i = 0; i < N; i++) assert_false(fkv_output_needs(o, i));
    finish(o, N);
    fkv_output_close(o);
    assert_int_equal(fkv_manifest_load(path, &m, &err), FKV_OK);
    assert_int_equal(m.n_shards, N);
    assert_true(m.complete);
    fkv_manifest_free(&m);
    fkv_job_free(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_run_leaves_its_rows_in_input_order),
        TEST(a_finished_job_needs_nothing),
        TEST(an_empty_input_is_a_finished_job),
        TEST(a_killed_run_loses_no_finished_row),
        TEST(a_run_killed_at_any_time_ends_in_the_same_bytes),
        TEST(a_finish_that_failed_is_done_by_the_next_run),
        TEST(rows_may_come_in_any_order),
        TEST(parts_together_are_one_run),
        TEST(parts_of_different_jobs_are_refused),
        TEST(a_second_run_is_told_who_holds_the_output),
        TEST(another_job_is_refused_by_its_first_difference),
        TEST(restart_moves_the_old_output_aside),
        TEST(pins_hold_over_resumes),
        TEST(a_shard_that_is_gone_or_cut_is_named),
        TEST(a_shard_without_its_manifest_line_is_made_again),
        TEST(retry_errors_does_only_the_error_rows_again),
        TEST(mistakes_of_the_caller_are_refused),
        TEST(the_journal_does_not_grow_with_the_job),
        TEST(another_thread_may_ask_meanwhile),
        TEST(parts_wait_for_each_other),
        TEST(many_shards_survive_a_kill_between_manifests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
