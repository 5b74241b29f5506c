/* Requests: see record_request.h. Whole numbers are read from their text, so that none
 * is rounded on its way through a double. Owns nothing. */
#include "jobs/record_request.h"

#include <math.h>
#include <string.h>

#include "runner/base/json.h"

enum { STOPS_MAX = 64 };

/* Fields that change no answer. */
static const char *const ignored[] = {"model", "user", "metadata", "store", "service_tier"};

/* Fields that are there in the API, and the values at which they ask for nothing; null
 * does so in every field. Several rows of a name: any of them. */
static const struct {
    const char *name, *value;
} neutral[] = {
    {"stream", "false"},
    {"n", "1"},
    {"best_of", "1"},
    {"echo", "false"},
    {"suffix", "\"\""},
    {"logprobs", "false"},
    {"top_logprobs", "0"},
    {"frequency_penalty", "0"},
    {"presence_penalty", "0"},
    {"logit_bias", "{}"},
    {"response_format", "{\"type\":\"text\"}"},
    {"modalities", "[\"text\"]"},
    {"tools", "[]"},
    {"tool_choice", "\"none\""},
    {"tool_choice", "\"auto\""},
    {"parallel_tool_calls", "true"},
    {"functions", "[]"},
    {"function_call", "\"none\""},
    {"function_call", "\"auto\""},
    {"min_p", "0"},
    {"length_penalty", "1"},
    {"no_repeat_ngram_size", "0"},
    {"use_beam_search", "false"},
    {"skip_special_tokens", "true"},
    {"spaces_between_special_tokens", "true"},
    {"stop_token_ids", "[]"},
    {"include_stop_str_in_output", "false"},
    {"add_generation_prompt", "true"},
    {"continue_final_message", "false"},
    {"add_special_tokens", "false"},
    {"chat_template_kwargs", "{}"},
    {"documents", "[]"},
};

static bool is_given(const fkv_record_object *o, fkv_record_key key)
{
    return o->values[key] && !json_is_null(o->values[key]);
}

/* A whole number's sign and size. False: it is none, or larger than 64 bits. */
static bool read_whole(const fkv_record_field *field, bool *negative, uint64_t *size)
{
    const char *p = field->value, *end = p + field->n_value;
    *size = 0;
    *negative = p < end && *p == '-';
    if (*negative) p++;
    for (const char *first = p; p < end; p++) {
        if (*p < '0' || *p > '9' || p - first > 19) return false;
        if (__builtin_mul_overflow(*size, 10u, size) ||
            __builtin_add_overflow(*size, (uint64_t)(*p - '0'), size))
            return false;
    }
    return end > field->value + *negative;
}

/* The same of a number with a fraction or an exponent, such as 2.0. */
static bool read_whole_real(const json_t *value, bool *negative, uint64_t *size)
{
    const double most = 9007199254740992.0; /* up to it every whole number is a double */
    const double x = json_is_number(value) ? json_number_value(value) : NAN;
    if (!(fabs(x) <= most) || fabs(x) - floor(fabs(x)) > 0) return false;
    *negative = x < 0;
    *size = (uint64_t)fabs(x);
    return true;
}

/* The whole number from lo to hi under key, with reals also one such as 2.0. False: there is none, or it is
 * the record's error. */
static bool take_whole(const fkv_record_object *o, fkv_record_key key, bool reals, int32_t lo, int32_t hi,
                       int64_t *out, fkv_record *record)
{
    bool negative;
    uint64_t size;
    if (!is_given(o, key) || record->error_code[0]) return false;
    const bool read = read_whole(o->known[key], &negative, &size) ||
                      (reals && read_whole_real(o->values[key], &negative, &size));
    if (read && size <= INT32_MAX) {
        *out = negative ? -(int64_t)size : (int64_t)size;
        if (*out >= lo && *out <= hi) return true;
    }
    fkv_record_set_error(record, "bad_field", "%s is not a whole number from %d to %d",
                         fkv_record_key_names[key], lo, hi);
    return false;
}

void fkv_request_take_limit(const fkv_record_object *o, const fkv_record_key *keys, size_t n_keys,
                            fkv_record *record)
{
    fkv_record_key taken = FKV_RECORD_OTHER;
    for (size_t i = 0; i < n_keys; i++) {
        int64_t limit;
        if (!take_whole(o, keys[i], true, 1, INT32_MAX, &limit, record)) continue;
        if (taken != FKV_RECORD_OTHER && limit != record->max_new_tokens)
            fkv_record_set_error(record, "bad_field", "%s and %s differ", fkv_record_key_names[taken],
                                 fkv_record_key_names[keys[i]]);
        taken = keys[i];
        record->max_new_tokens = limit;
    }
}

bool fkv_request_samples(fkv_record_key key)
{
    return key >= FKV_RECORD_TEMPERATURE && key < FKV_RECORD_N_KEYS;
}

/* The number in [0, hi] under key, or in (0, hi] with lo_open. */
static bool take_real(const fkv_record_object *o, fkv_record_key key, bool lo_open, double hi, double *out,
                      fkv_record *record)
{
    if (!is_given(o, key) || record->error_code[0]) return false;
    *out = json_number_value(o->values[key]);
    if (json_is_number(o->values[key]) && (lo_open ? *out > 0 : *out >= 0) && *out <= hi) return true;
    fkv_record_set_error(record, "bad_field", "%s is not a number %s 0 and at most %g",
                         fkv_record_key_names[key], lo_open ? "above" : "from", hi);
    return false;
}

static bool take_seed(const fkv_record_object *o, uint64_t *seed, fkv_record *record)
{
    bool negative;
    if (!is_given(o, FKV_RECORD_SEED) || record->error_code[0]) return false;
    if (read_whole(o->known[FKV_RECORD_SEED], &negative, seed) &&
        (!negative || *seed <= (uint64_t)INT64_MAX + 1)) {
        if (negative) *seed = 0 - *seed;
        return true;
    }
    fkv_record_set_error(record, "bad_field", "seed is not a whole number of 64 bits");
    return false;
}

static fkv_status take_stop(const fkv_record_object *o, fkv_record *record, fkv_err *err)
{
    fkv_record_sampling *s = &record->sampling;
    const json_t *stop = o->values[FKV_RECORD_STOP];
    if (!is_given(o, FKV_RECORD_STOP) || record->error_code[0]) return FKV_OK;
    const size_t n = json_is_array(stop) ? json_array_size(stop) : 1;
    if (n > STOPS_MAX) {
        fkv_record_set_error(record, "bad_field", "stop has more than %d strings", STOPS_MAX);
        return FKV_OK;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_is_array(stop) ? json_array_get(stop, i) : stop;
        const char *text = json_string_value(item);
        const size_t len = json_string_length(item);
        if (len == 0 || memchr(text, '\0', len)) {
            fkv_record_set_error(record, "bad_field",
                                 "stop is not a string, nor an array of strings, without NUL and not empty");
            return FKV_OK;
        }
        const fkv_status st = fkv_buf_append(&s->stop, text, len + 1, err);
        if (st) return st;
    }
    s->has_stop = true;
    s->n_stop = n;
    return FKV_OK;
}

fkv_status fkv_request_take_sampling(const fkv_record_object *o, fkv_record *record, fkv_err *err)
{
    fkv_record_sampling *s = &record->sampling;
    const json_t *ignore_eos = o->values[FKV_RECORD_IGNORE_EOS];
    s->has_temperature = take_real(o, FKV_RECORD_TEMPERATURE, false, 100, &s->temperature, record);
    s->has_top_p = take_real(o, FKV_RECORD_TOP_P, true, 1, &s->top_p, record);
    s->has_repetition_penalty =
        take_real(o, FKV_RECORD_REPETITION_PENALTY, true, 100, &s->repetition_penalty, record);
    s->has_top_k = take_whole(o, FKV_RECORD_TOP_K, false, -1, INT32_MAX, &s->top_k, record);
    if (s->has_top_k && s->top_k < 0) s->top_k = 0;
    s->has_min_tokens = take_whole(o, FKV_RECORD_MIN_TOKENS, false, 0, INT32_MAX, &s->min_tokens, record);
    s->has_seed = take_seed(o, &s->seed, record);
    s->has_ignore_eos = is_given(o, FKV_RECORD_IGNORE_EOS);
    s->ignore_eos = json_is_true(ignore_eos);
    if (!record->error_code[0] && s->has_ignore_eos && !json_is_boolean(ignore_eos))
        fkv_record_set_error(record, "bad_field", "ignore_eos is neither true nor false");
    if (!record->error_code[0] && s->has_min_tokens && record->max_new_tokens > 0 &&
        s->min_tokens > record->max_new_tokens)
        fkv_record_set_error(record, "bad_field", "min_tokens, %lld, is more than the limit of %lld",
                             (long long)s->min_tokens, (long long)record->max_new_tokens);
    return take_stop(o, record, err);
}

fkv_status fkv_request_take_messages(const fkv_record_object *o, fkv_record *record, fkv_err *err)
{
    const json_t *messages = o->values[FKV_RECORD_MESSAGES], *message;
    const fkv_record_field *field = o->known[FKV_RECORD_MESSAGES];
    size_t i;
    if (!json_is_array(messages) || json_array_size(messages) == 0) {
        fkv_record_set_error(record, "bad_field", "messages is not an array of one message at least");
        return FKV_OK;
    }
    json_array_foreach(messages, i, message)
    {
        if (json_is_object(message) && json_is_string(json_object_get(message, "role"))) continue;
        fkv_record_set_error(record, "bad_field", "message %zu is not an object with a role", i + 1);
        return FKV_OK;
    }
    record->wrap = FKV_WRAP_MESSAGES;
    return fkv_buf_append(&record->prompt, field->value, field->n_value, err);
}

static bool is_named(const fkv_record_field *field, const char *name)
{
    const size_t n = strlen(name);
    return json_string_length(field->name) == n && memcmp(json_string_value(field->name), name, n) == 0;
}

bool fkv_request_ignores(const fkv_record_field *field)
{
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        if (is_named(field, ignored[i])) return true;
    }
    return false;
}

static fkv_status parse_value(const char *text, size_t n, json_t **out, fkv_err *err)
{
    json_error_t je;
    *out = fkv_json_parse(text, n, JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &je);
    return *out ? FKV_OK : fkv_fail_memory(err); /* it was parsed before */
}

/* The record's error if the body's field asks for something. */
static fkv_status check_neutral(const fkv_record_field *field, fkv_record *record, fkv_err *err)
{
    const char *would_do = NULL;
    json_t *value, *other;
    fkv_status st = parse_value(field->value, field->n_value, &value, err);
    bool fine = json_is_null(value);
    for (size_t i = 0; !st && !fine && i < sizeof neutral / sizeof *neutral; i++) {
        if (!is_named(field, neutral[i].name)) continue;
        would_do = neutral[i].value;
        if ((st = parse_value(would_do, strlen(would_do), &other, err))) break;
        fine = json_equal(value, other) != 0;
        json_decref(other);
    }
    json_decref(value);
    if (!st && !fine)
        fkv_record_set_error(record, "bad_field", "%.80s is not supported%s%s",
                             json_string_value(field->name), would_do ? " unless it is " : "",
                             would_do ? would_do : "");
    return st;
}

static bool is_text(const json_t *value, const char *text)
{
    const size_t n = strlen(text);
    return json_string_length(value) == n && memcmp(json_string_value(value), text, n) == 0;
}

fkv_status fkv_request_take(const fkv_record_object *o, const fkv_record_object *body, fkv_record *record,
                            fkv_err *err)
{
    static const fkv_record_key limits[] = {FKV_RECORD_MAX_TOKENS, FKV_RECORD_MAX_COMPLETION_TOKENS};
    const json_t *method = o->values[FKV_RECORD_METHOD], *url = o->values[FKV_RECORD_URL];
    const bool chat = is_text(url, "/v1/chat/completions");
    const fkv_record_key said = chat ? FKV_RECORD_MESSAGES : FKV_RECORD_PROMPT;
    fkv_status st = FKV_OK;
    if (method && !is_text(method, "POST"))
        fkv_record_set_error(record, "bad_field", "method is not POST");
    else if (!url)
        fkv_record_set_error(record, "missing_field", "the record has no url");
    else if (!chat && !is_text(url, "/v1/completions"))
        fkv_record_set_error(record, "bad_field", "url is neither /v1/chat/completions nor /v1/completions");
    else if (!body->values[said])
        fkv_record_set_error(record, "missing_field", "the body has no %s", fkv_record_key_names[said]);
    for (size_t i = 0; !st && !record->error_code[0] && i < body->n; i++) {
        const fkv_record_key key = body->fields[i].key;
        if (key == said || key == limits[0] || key == limits[1] || fkv_request_samples(key) ||
            fkv_request_ignores(&body->fields[i]))
            continue;
        st = check_neutral(&body->fields[i], record, err);
    }
    if (st || record->error_code[0]) return st;
    fkv_request_take_limit(body, limits, 2, record);
    st = fkv_request_take_sampling(body, record, err);
    if (st || record->error_code[0]) return st;
    if (chat) return fkv_request_take_messages(body, record, err);
    const json_t *prompt = body->values[FKV_RECORD_PROMPT];
    if (json_is_string(prompt))
        return fkv_buf_append(&record->prompt, json_string_value(prompt), json_string_length(prompt), err);
    fkv_record_set_error(record, "bad_field", "prompt is not a string");
    return FKV_OK;
}
