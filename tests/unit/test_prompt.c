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
#include "tests/unit/tokenizer_fixture.h"

static fkv_tokenizer *tokenizer;

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
    const fkv_prompt_source source = {.tokenizer = tokenizer, .limits = limits};
    fkv_prompter *p;
    assert_int_equal(fkv_prompter_open(&source, &p, &err), FKV_OK);
    assert_int_equal(fkv_prompter_make(p, &record, ids, max_new, truncated, &err), FKV_OK);
    fkv_prompter_close(p);
    return record.error_code;
}

/* What a record with that text becomes. Its error's code is in record. */
static void make(const fkv_prompt_source *source, fkv_record *record, const char *text, size_t n,
                 fkv_ids *ids, int64_t *cut)
{
    fkv_err err = {0};
    fkv_prompter *p;
    int64_t max_new;
    record->error_code[0] = '\0';
    fkv_buf_clear(&record->prompt);
    assert_int_equal(fkv_buf_append(&record->prompt, text, n, &err), FKV_OK);
    assert_int_equal(fkv_prompter_open(source, &p, &err), FKV_OK);
    if (fkv_prompter_make(p, record, ids, &max_new, cut, &err)) fail_msg("%s", err.message);
    fkv_prompter_close(p);
}

static json_t *load_golden(const char *format, const char *name)
{
    char path[512];
    json_error_t why;
    snprintf(path, sizeof path, format, FKV_TEST_DIR, name);
    json_t *golden = json_load_file(path, JSON_ALLOW_NUL, &why);
    if (!golden) fail_msg("%s: %s", path, why.text);
    return golden;
}

/* The ids that pred.py makes of the same prompts with HF transformers (tests/golden/make_prompts.py). */
static void longbench_cuts_and_wraps_as_pred_py(void **state)
{
    json_t *golden = load_golden("%s/golden/%s.json", "prompts"), *c;
    struct opened o = {0};
    const char *tokens_of = "", *template_of = "";
    fkv_template *template = NULL;
    fkv_record record = {0};
    fkv_ids ids = {0};
    fkv_err err = {0};
    size_t i;
    (void)state;
    json_array_foreach(json_object_get(golden, "cases"), i, c)
    {
        const char *name = json_string_value(json_object_get(c, "tokenizer"));
        const char *wanted = json_string_value(json_object_get(c, "template"));
        const json_t *text = json_object_get(c, "text"), *want = json_object_get(c, "ids");
        int64_t cut;
        if (strcmp(name, tokens_of) != 0) {
            json_t *file = load_golden("%s/golden/tokenizers/%s.json", name);
            close_all(&o);
            assert_int_equal(open_json(json_object_get(file, "tokenizer"), &o), FKV_OK);
            json_decref(file);
            tokens_of = name;
        }
        if (wanted && strcmp(wanted, template_of) != 0) {
            char path[512];
            fkv_template_close(template);
            snprintf(path, sizeof path, FKV_TEST_DIR "/data/templates/%s.jinja", wanted);
            assert_int_equal(fkv_template_open_file(path, json_object_get(c, "tokens"), &template, &err),
                             FKV_OK);
            template_of = wanted;
        }
        record.wrap = wanted ? FKV_WRAP_USER : FKV_WRAP_NONE;
        const fkv_prompt_source source = {
            .tokenizer = o.t,
            .template = template,
            .date = json_string_value(json_object_get(golden, "date")),
            .limits = {.max_positions = 1 << 20,
                       .max_prompt = json_integer_value(json_object_get(c, "max_length")),
                       .max_new = 10,
                       .truncate = FKV_TRUNCATE_LONGBENCH}};
        make(&source, &record, json_string_value(text), json_string_length(text), &ids, &cut);
        assert_string_equal(record.error_code, "");
        assert_int_equal(cut, json_integer_value(json_object_get(c, "cut")));
        if (ids.len != json_array_size(want)) fail_msg("case %zu: %zu ids", i, ids.len);
        for (size_t k = 0; k < ids.len; k++)
            if (ids.data[k] != json_integer_value(json_array_get(want, k)))
                fail_msg("case %zu (%s), id %zu: %d", i, name, k, ids.data[k]);
    }
    assert_true(i > 100);
    fkv_ids_free(&ids);
    fkv_record_free(&record);
    fkv_template_close(template);
    close_all(&o);
    json_decref(golden);
}

static const char chat[] = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}\n\n"
                           "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

static fkv_template *open_chat(const char *text)
{
    fkv_template *t = NULL;
    fkv_err err = {0};
    json_t *tokens = json_pack("{s:s}", "bos_token", "");
    if (fkv_template_open(text, strlen(text), "chat", tokens, &t, &err)) fail_msg("%s", err.message);
    json_decref(tokens);
    return t;
}

static void encode_text(const char *what, fkv_ids *ids)
{
    fkv_err err = {0};
    fkv_tokenizer_scratch *scratch = NULL;
    assert_int_equal(fkv_tokenizer_scratch_new(tokenizer, &scratch, &err), FKV_OK);
    assert_int_equal(
        fkv_tokenizer_encode(tokenizer, scratch, what, strlen(what), false, ids, NULL, NULL, &err), FKV_OK);
    fkv_tokenizer_scratch_free(scratch);
}

static bool begins_with(const fkv_ids *ids, const fkv_ids *front)
{
    return ids->len >= front->len && !memcmp(ids->data, front->data, front->len * sizeof *ids->data);
}

static bool ends_with(const fkv_ids *ids, const fkv_ids *end)
{
    return ids->len >= end->len &&
           !memcmp(ids->data + ids->len - end->len, end->data, end->len * sizeof *ids->data);
}

/* Whatever is cut, the template's own tokens and the answer's beginning stay. */
static void cutting_keeps_the_chat_template_whole(void **state)
{
    static const char longest[] = "zero one two three four five six seven eight nine ten eleven twelve";
    const fkv_truncate ways[] = {FKV_TRUNCATE_LEFT, FKV_TRUNCATE_RIGHT, FKV_TRUNCATE_MIDDLE};
    fkv_template *template = open_chat(chat);
    fkv_record user = {.wrap = FKV_WRAP_USER}, messages = {.wrap = FKV_WRAP_MESSAGES};
    fkv_ids ids = {0}, whole = {0}, head = {0}, tail = {0}, system = {0};
    fkv_err err = {0};
    int64_t cut;
    char json[512];
    (void)state;
    assert_int_equal(fkv_buf_puts(&user.prefix, "The number is", &err), FKV_OK);
    snprintf(json, sizeof json,
             "[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\" %s\"},"
             "{\"role\":\"user\",\"content\":\"go on\"}]",
             longest);
    fkv_prompt_source source = {
        .tokenizer = tokenizer,
        .template = template,
        .limits = {.max_positions = 1000, .max_new = 10, .truncate = FKV_TRUNCATE_ERROR}};
    make(&source, &user, longest, strlen(longest), &whole, &cut);
    encode_text("[user]", &head);
    encode_text("\n\n[assistant] The number is", &tail);
    assert_true(begins_with(&whole, &head) && ends_with(&whole, &tail));
    encode_text("[system]Be brief.\n\n[user]", &system);
    for (int i = 0; i < 3; i++) {
        source.limits.truncate = ways[i];
        source.limits.max_prompt = (int64_t)(head.len + tail.len) + 6;
        make(&source, &user, longest, strlen(longest), &ids, &cut);
        assert_string_equal(user.error_code, "");
        assert_int_equal(ids.len, source.limits.max_prompt);
        assert_int_equal(cut, (int64_t)whole.len - source.limits.max_prompt);
        assert_true(begins_with(&ids, &head) && ends_with(&ids, &tail));
        /* of messages the longest is cut */
        source.limits.max_prompt = (int64_t)system.len + 40;
        make(&source, &messages, json, strlen(json), &ids, &cut);
        assert_string_equal(messages.error_code, "");
        assert_true(cut > 0 && begins_with(&ids, &system));
        encode_text("\n\n[user]go on\n\n[assistant] ", &tail);
        assert_true(ends_with(&ids, &tail));
        encode_text("\n\n[assistant] The number is", &tail);
    }
    source.limits.max_prompt = (int64_t)(head.len + tail.len);
    make(&source, &user, longest, strlen(longest), &ids, &cut);
    assert_string_equal(user.error_code, "too_long");
    fkv_ids_free(&system);
    fkv_ids_free(&tail);
    fkv_ids_free(&head);
    fkv_ids_free(&whole);
    fkv_ids_free(&ids);
    fkv_record_free(&messages);
    fkv_record_free(&user);
    fkv_template_close(template);
}

static void a_plain_prompt_is_never_wrapped(void **state)
{
    fkv_template *template = open_chat(chat);
    fkv_record record = {.wrap = FKV_WRAP_NONE};
    fkv_ids ids = {0}, bare = {0};
    int64_t cut;
    (void)state;
    fkv_prompt_source source = {.tokenizer = tokenizer, .limits = {.max_positions = 100, .max_new = 10}};
    make(&source, &record, "one two", 7, &bare, &cut);
    source.template = template;
    make(&source, &record, "one two", 7, &ids, &cut);
    assert_true(ids.len == bare.len && begins_with(&ids, &bare));
    record.wrap = FKV_WRAP_USER;
    make(&source, &record, "one two", 7, &ids, &cut);
    assert_false(begins_with(&ids, &bare));
    source.template = NULL; /* what a user says, and nothing to put around it */
    make(&source, &record, "one two", 7, &ids, &cut);
    assert_true(ids.len == bare.len && begins_with(&ids, &bare));
    fkv_ids_free(&ids);
    fkv_ids_free(&bare);
    fkv_record_free(&record);
    fkv_template_close(template);
}

static void what_no_template_can_render_is_the_record_s_error(void **state)
{
    fkv_template *template = open_chat("{{ raise_exception('only users speak') }}");
    fkv_record record = {.wrap = FKV_WRAP_USER};
    fkv_ids ids = {0};
    int64_t cut;
    static const char json[] = "[{\"role\":\"user\",\"content\":\"x\"}]";
    (void)state;
    fkv_prompt_source source = {
        .tokenizer = tokenizer, .template = template, .limits = {.max_positions = 100, .max_new = 10}};
    make(&source, &record, "x", 1, &ids, &cut);
    assert_string_equal(record.error_code, "chat_template");
    assert_non_null(strstr(record.error_message, "only users speak"));
    source.template = NULL;
    record.wrap = FKV_WRAP_MESSAGES;
    make(&source, &record, json, sizeof json - 1, &ids, &cut);
    assert_string_equal(record.error_code, "chat_template");
    assert_non_null(strstr(record.error_message, "there is no chat template"));
    fkv_ids_free(&ids);
    fkv_record_free(&record);
    fkv_template_close(template);
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
        cmocka_unit_test(longbench_cuts_and_wraps_as_pred_py),
        cmocka_unit_test(cutting_keeps_the_chat_template_whole),
        cmocka_unit_test(a_plain_prompt_is_never_wrapped),
        cmocka_unit_test(what_no_template_can_render_is_the_record_s_error),
        cmocka_unit_test(an_id_beyond_the_model_is_an_error_of_the_record),
        cmocka_unit_test(a_queue_hands_over_everything_in_order),
    };
    if (fkv_tokenizer_open(FKV_TEST_DIR "/data/needle-tiny", &tokenizer, &err)) return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fkv_tokenizer_close(tokenizer);
    return failed;
}
