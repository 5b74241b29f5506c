/* Prompts cut to length, and the queue between the threads of a run. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runner/prompt.h"
#include "runner/queue.h"

static fkv_tokenizer *tokenizer;
static fkv_tokenizer_scratch *scratch;

/* ids of text with limits; returns the error code. */
static const char *prepare(const char *text, fkv_prompt_limits limits, int64_t own_limit, fkv_ids *ids,
                           int64_t *max_new, int64_t *truncated)
{
    static fkv_record record;
    fkv_err err = {0};
    record.error_code[0] = '\0';
    record.max_new_tokens = own_limit;
    fkv_buf_clear(&record.prompt);
    assert_int_equal(fkv_buf_puts(&record.prompt, text, &err), FKV_OK);
    assert_int_equal(fkv_prompt_prepare(tokenizer, scratch, &limits, &record, ids, max_new, truncated, &err),
                     FKV_OK);
    return record.error_code;
}

static const char *const text = "The timid robin carries the jade flame on a quiet day.";

static void cutting_keeps_bos_and_the_side_asked_for(void **state)
{
    (void)state;
    fkv_ids all = {0}, ids = {0};
    int64_t max_new, cut;
    fkv_prompt_limits limits = {.max_positions = 1000, .max_new = 10, .truncate = FKV_TRUNCATE_ERROR};
    assert_string_equal(prepare(text, limits, 0, &all, &max_new, &cut), "");
    assert_int_equal(cut, 0);
    assert_int_equal(max_new, 10);
    const size_t n = all.len;
    assert_true(n > 8);
    assert_int_equal(all.data[0], 0); /* BOS */
    limits.max_prompt = 6;
    assert_string_equal(prepare(text, limits, 0, &ids, &max_new, &cut), "too_long");
    const struct {
        fkv_truncate how;
        size_t front; /* tokens kept behind BOS at the front */
    } cases[] = {{FKV_TRUNCATE_LEFT, 0}, {FKV_TRUNCATE_RIGHT, 5}, {FKV_TRUNCATE_MIDDLE, 3}};
    for (size_t i = 0; i < 3; i++) {
        limits.truncate = cases[i].how;
        assert_string_equal(prepare(text, limits, 0, &ids, &max_new, &cut), "");
        assert_int_equal(ids.len, 6);
        assert_int_equal(cut, (int64_t)n - 6);
        for (size_t k = 0; k <= cases[i].front; k++) assert_int_equal(ids.data[k], all.data[k]);
        for (size_t k = cases[i].front + 1; k < 6; k++) assert_int_equal(ids.data[k], all.data[n - 6 + k]);
    }
    fkv_ids_free(&all);
    fkv_ids_free(&ids);
}

static void new_tokens_need_room_beside_the_prompt(void **state)
{
    (void)state;
    fkv_ids ids = {0};
    int64_t max_new, cut;
    const fkv_prompt_limits limits = {.max_positions = 20, .max_new = 10, .truncate = FKV_TRUNCATE_LEFT};
    assert_int_equal(fkv_prompt_limit(&limits, 5), 15);
    assert_string_equal(prepare(text, limits, 15, &ids, &max_new, &cut), "");
    assert_int_equal(max_new, 15); /* the record's own limit wins */
    assert_int_equal(ids.len, 5);
    assert_string_equal(prepare(text, limits, 19, &ids, &max_new, &cut), "too_long");
    assert_string_equal(prepare(text, limits, 1000, &ids, &max_new, &cut), "too_long");
    fkv_ids_free(&ids);
}

/* Added tokens may be more than a model's rows; what is cut out needs none. */
static void an_id_beyond_the_model_is_an_error_of_the_record(void **state)
{
    (void)state;
    fkv_ids ids = {0};
    int64_t max_new, cut;
    int32_t largest = 0;
    fkv_prompt_limits limits = {.max_positions = 1000, .max_new = 10, .truncate = FKV_TRUNCATE_RIGHT};
    assert_string_equal(prepare(text, limits, 0, &ids, &max_new, &cut), "");
    for (size_t i = 0; i < ids.len; i++) largest = ids.data[i] > largest ? ids.data[i] : largest;
    const size_t at = fkv_ids_beyond(&ids, largest);
    assert_int_equal(ids.data[at], largest);
    assert_int_equal(fkv_ids_beyond(&ids, largest + 1), ids.len);
    limits.n_ids = largest + 1;
    assert_string_equal(prepare(text, limits, 0, &ids, &max_new, &cut), "");
    limits.n_ids = largest;
    assert_string_equal(prepare(text, limits, 0, &ids, &max_new, &cut), "tokenizer");
    limits.max_prompt = (int64_t)at;
    assert_string_equal(prepare(text, limits, 0, &ids, &max_new, &cut), "");
    fkv_ids_free(&ids);
}

static void *push_all(void *arg)
{
    for (intptr_t i = 1; i <= 1000; i++) fkv_queue_push(arg, (void *)i);
    fkv_queue_close(arg);
    return NULL;
}

static void a_queue_hands_over_everything_in_order(void **state)
{
    (void)state;
    fkv_err err = {0};
    fkv_queue *q;
    pthread_t id;
    bool ended = false;
    assert_int_equal(fkv_queue_open(3, &q, &err), FKV_OK);
    assert_null(fkv_queue_pop(q, 0, &ended));
    assert_null(fkv_queue_pop(q, 5, &ended));
    assert_false(ended);
    assert_int_equal(pthread_create(&id, NULL, push_all, q), 0);
    for (intptr_t i = 1; i <= 1000; i++) assert_true(fkv_queue_pop(q, -1, &ended) == (void *)i);
    assert_null(fkv_queue_pop(q, -1, &ended));
    assert_true(ended);
    pthread_join(id, NULL);
    assert_false(fkv_queue_push(q, q));
    fkv_queue_free(q);
}

int main(void)
{
    fkv_err err = {0};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cutting_keeps_bos_and_the_side_asked_for),
        cmocka_unit_test(new_tokens_need_room_beside_the_prompt),
        cmocka_unit_test(an_id_beyond_the_model_is_an_error_of_the_record),
        cmocka_unit_test(a_queue_hands_over_everything_in_order),
    };
    if (fkv_tokenizer_open(FKV_TEST_DIR "/data/needle-tiny", &tokenizer, &err)) return 1;
    if (fkv_tokenizer_scratch_new(tokenizer, &scratch, &err)) return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fkv_tokenizer_scratch_free(scratch);
    fkv_tokenizer_close(tokenizer);
    return failed;
}
