/* A journal that was torn or damaged: what a resume keeps of it, and what it refuses. */
#include "output_fixture.h"

enum { FILE_HEADER = 32, ENTRY_HEADER = 64 };

/* Leaves rows 0, 1, 2 in the journal, the third after a sync, and reads it. */
static void three_rows(const fixture *x, const fkv_job *job, fkv_buf *journal, int64_t offsets[4],
                       bool synced)
{
    fkv_err err = {0};
    char row[1000], path[400];
    (void)x;
    fkv_output *o = must_open(job);
    offsets[0] = FILE_HEADER;
    for (int64_t i = 0; i < 3; i++) {
        if (i == 2 && synced) assert_int_equal(fkv_output_sync(o, &err), FKV_OK);
        add(o, i);
        offsets[i + 1] = offsets[i] + ENTRY_HEADER + (int64_t)make_row(i, row, sizeof row);
    }
    fkv_output_close(o);
    snprintf(path, sizeof path, "%s/journal", x->out);
    assert_int_equal(fkv_file_read(path, 1 << 20, journal, &err), FKV_OK);
    assert_int_equal(journal->len, offsets[3]);
}

static void put_journal(const fixture *x, const char *bytes, size_t n)
{
    char path[400];
    snprintf(path, sizeof path, "%s/journal", x->out);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void a_torn_tail_is_dropped_wherever_it_is_torn(void **state)
{
    const fixture *x = *state;
    fkv_buf journal = {0};
    int64_t offsets[4];
    fkv_job *job = make_job(x, NULL);
    three_rows(x, job, &journal, offsets, true);
    for (int64_t cut = offsets[2]; cut <= offsets[3]; cut++) {
        put_journal(x, journal.data, (size_t)cut);
        fkv_output *o = must_open(job);
        const bool whole = cut == offsets[3];
        assert_int_equal(totals_of(o).records, whole ? 3 : 2);
        assert_int_equal(fkv_output_needs(o, 2), !whole);
        assert_int_equal(size_of(x->out, "journal"), whole ? offsets[3] : offsets[2]);
        if (!whole) add(o, 2); /* behind a tail that is gone */
        fkv_output_close(o);
        o = must_open(job);
        assert_int_equal(totals_of(o).records, 3);
        fkv_output_close(o);
    }
    for (int64_t cut = 0; cut < FILE_HEADER; cut++) {
        put_journal(x, journal.data, (size_t)cut);
        fkv_output *o = must_open(job);
        assert_int_equal(totals_of(o).records, 0);
        fkv_output_close(o);
    }
    fkv_buf_free(&journal);
    fkv_job_free(job);
}

static void damage_in_what_was_synced_is_an_error_with_its_offset(void **state)
{
    const fixture *x = *state;
    fkv_buf journal = {0};
    int64_t offsets[4];
    fkv_job *job = make_job(x, NULL);
    three_rows(x, job, &journal, offsets, true);
    for (int64_t at = offsets[0]; at < offsets[2]; at++) {
        char where[32];
        snprintf(where, sizeof where, "offset %lld", (long long)(at < offsets[1] ? offsets[0] : offsets[1]));
        journal.data[at] ^= 0x10;
        put_journal(x, journal.data, journal.len);
        must_refuse(job, FKV_E_INPUT, "out/journal", where);
        assert_int_equal(size_of(x->out, "journal"), offsets[3]);
        journal.data[at] ^= 0x10;
    }
    for (int64_t at = 0; at < FILE_HEADER; at++) {
        journal.data[at] ^= 0x10;
        put_journal(x, journal.data, journal.len);
        must_refuse(job, FKV_E_INPUT, "out/journal", "journal");
        journal.data[at] ^= 0x10;
    }
    fkv_buf_free(&journal);
    fkv_job_free(job);
}

/* A lost machine may have written the third row's block and not the second's. */
static void a_hole_in_what_was_not_synced_is_the_torn_tail(void **state)
{
    const fixture *x = *state;
    fkv_buf journal = {0};
    int64_t offsets[4];
    fkv_job *job = make_job(x, NULL);
    three_rows(x, job, &journal, offsets, false);
    memset(journal.data + offsets[1] + 10, 0, (size_t)(offsets[2] - offsets[1]) - 10);
    put_journal(x, journal.data, journal.len);
    fkv_output *o = must_open(job);
    assert_int_equal(totals_of(o).records, 1);
    assert_true(fkv_output_needs(o, 1) && fkv_output_needs(o, 2) && !fkv_output_needs(o, 0));
    fkv_output_close(o);
    fkv_buf_free(&journal);
    fkv_job_free(job);
}

static void damage_in_the_last_row_costs_that_row_alone(void **state)
{
    const fixture *x = *state;
    fkv_buf journal = {0};
    int64_t offsets[4];
    fkv_job *job = make_job(x, NULL);
    three_rows(x, job, &journal, offsets, true);
    for (int64_t at = offsets[2]; at < offsets[3]; at++) {
        journal.data[at] ^= 0x10;
        put_journal(x, journal.data, journal.len);
        fkv_output *o = must_open(job);
        assert_int_equal(totals_of(o).records, 2);
        fkv_output_close(o);
        journal.data[at] ^= 0x10;
    }
    fkv_buf_free(&journal);
    fkv_job_free(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_torn_tail_is_dropped_wherever_it_is_torn),
        TEST(damage_in_what_was_synced_is_an_error_with_its_offset),
        TEST(a_hole_in_what_was_not_synced_is_the_torn_tail),
        TEST(damage_in_the_last_row_costs_that_row_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
