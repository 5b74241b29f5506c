/* Compiling and matching with bounded work: see regex.h. An fkv_regex owns its
 * PCRE2 code, a scratch owns all that changes while matching. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/regex.h"

#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer/characters.h"

/* Either code or a literal text. */
struct fkv_regex {
    pcre2_code *code;
    fkv_buf literal;
};

struct fkv_regex_scratch {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack; /* NULL without JIT */
    uint64_t steps_left;
};

enum {
    PATTERN_MAX = 64 * 1024,
    JIT_STACK_MIN = 64 * 1024,
    JIT_STACK_MAX = 32 * 1024 * 1024, /* address space; pages come as they are used */
    HEAP_MAX_KIB = 256 * 1024,
    /* A match may take FREE_STEPS for nothing; one that needs more is tried
     * again with GROWTH times as many, and what it was allowed is taken from
     * the text's account. So a pattern that runs away fails in about a second
     * and the sum over a text is bounded too, while ordinary patterns, which
     * need a few steps a character, never come near. */
    FREE_STEPS = 1024,
    GROWTH = 8,
    STEPS_PER_TEXT = 1 << 26,
    STEPS_PER_BYTE = 256,
};

fkv_status fkv_regex_compile(const char *pattern, size_t n, bool literal, const char *file, const char *key,
                             fkv_regex **out, fkv_err *err)
{
    fkv_buf text = {0};
    pcre2_compile_context *context = NULL;
    fkv_regex *r = NULL;
    fkv_status st;
    *out = NULL;
    if (n > PATTERN_MAX)
        return fkv_fail_at(err, FKV_E_INPUT, file, 0, key,
                           "the regex has %zu bytes, more than the %d allowed", n, PATTERN_MAX);
    r = calloc(1, sizeof *r);
    context = pcre2_compile_context_create(NULL);
    if (!r || !context) {
        st = fkv_fail_memory(err);
        goto out;
    }
    if (literal) {
        if ((st = fkv_buf_append(&r->literal, pattern, n, err))) goto out;
        *out = r;
        r = NULL;
        goto out;
    }
    if ((st = fkv_regex_translate(pattern, n, file, key, &text, err))) goto out;
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE at;
    r->code = pcre2_compile((PCRE2_SPTR)text.data, text.len, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                            &code, &at, context);
    if (!r->code) {
        char why[200] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        st = fkv_fail_at(err, FKV_E_INPUT, file, 0, key, "the regex can't be compiled: %s", why);
        goto out;
    }
    /* Without JIT (not built in, or memory may not be made executable) the
     * interpreter gives the same matches, more slowly. */
    (void)pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE);
    *out = r;
    r = NULL;
out:
    fkv_regex_free(r);
    pcre2_compile_context_free(context);
    fkv_buf_free(&text);
    return st;
}

void fkv_regex_free(fkv_regex *regex)
{
    if (!regex) return;
    pcre2_code_free(regex->code);
    fkv_buf_free(&regex->literal);
    free(regex);
}

fkv_status fkv_regex_scratch_new(fkv_regex_scratch **out, fkv_err *err)
{
    uint32_t has_jit = 0;
    fkv_regex_scratch *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s) return fkv_fail_memory(err);
    s->data = pcre2_match_data_create(1, NULL);
    s->context = pcre2_match_context_create(NULL);
    if (!s->data || !s->context) {
        fkv_regex_scratch_free(s);
        return fkv_fail_memory(err);
    }
    pcre2_set_heap_limit(s->context, HEAP_MAX_KIB);
    pcre2_config(PCRE2_CONFIG_JIT, &has_jit);
    if (has_jit) s->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
    if (s->stack) pcre2_jit_stack_assign(s->context, NULL, s->stack);
    fkv_regex_start(s, 0);
    *out = s;
    return FKV_OK;
}

void fkv_regex_scratch_free(fkv_regex_scratch *s)
{
    if (!s) return;
    pcre2_jit_stack_free(s->stack);
    pcre2_match_context_free(s->context);
    pcre2_match_data_free(s->data);
    free(s);
}

void fkv_regex_start(fkv_regex_scratch *s, size_t n)
{
    uint64_t steps;
    if (__builtin_mul_overflow((uint64_t)n, STEPS_PER_BYTE, &steps)) steps = UINT64_MAX / 2;
    s->steps_left = steps + STEPS_PER_TEXT;
}

fkv_status fkv_regex_find(const fkv_regex *regex, fkv_regex_scratch *s, const char *text, size_t n,
                          size_t from, size_t *begin, size_t *end, fkv_err *err)
{
    uint64_t limit = FREE_STEPS;
    uint32_t options = PCRE2_NO_UTF_CHECK;
    if (regex->literal.len) {
        const char *at = memmem(text + from, n - from, regex->literal.data, regex->literal.len);
        if (!at) return FKV_END;
        *begin = (size_t)(at - text);
        *end = *begin + regex->literal.len;
        return FKV_OK;
    }
    for (;;) {
        pcre2_set_match_limit(s->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
        const int rc = pcre2_match(regex->code, (PCRE2_SPTR)text, n, from, options, s->data, s->context);
        if (rc >= 0) break;
        if (rc == PCRE2_ERROR_NOMATCH) return FKV_END;
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !(options & PCRE2_NO_JIT)) {
            options |= PCRE2_NO_JIT; /* the interpreter's frames are on the heap, up to HEAP_MAX_KIB */
            continue;
        }
        if (rc == PCRE2_ERROR_NOMEMORY) return fkv_fail_memory(err);
        if (rc != PCRE2_ERROR_MATCHLIMIT && rc != PCRE2_ERROR_HEAPLIMIT && rc != PCRE2_ERROR_DEPTHLIMIT) {
            char why[200] = "";
            pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
            return fkv_fail(err, FKV_E_INPUT, "the tokenizer's regex failed at byte %zu of the text: %s",
                            from, why);
        }
        if (rc != PCRE2_ERROR_MATCHLIMIT || s->steps_left < limit * GROWTH)
            return fkv_fail(err, FKV_E_INPUT,
                            "the tokenizer's regex backtracks too much at byte %zu of the text", from);
        limit *= GROWTH;
        s->steps_left -= limit;
    }
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(s->data);
    *begin = at[0];
    *end = at[1];
    return FKV_OK;
}

fkv_status fkv_regex_next(const fkv_regex *regex, fkv_regex_scratch *s, const char *text, size_t n,
                          fkv_regex_matches *m, size_t *begin, size_t *end, fkv_err *err)
{
    while (m->from <= n) {
        fkv_status st = fkv_regex_find(regex, s, text, n, m->from, begin, end, err);
        if (st) return st;
        if (*begin != *end || !m->any || *end != m->done) {
            m->done = m->from = *end;
            m->any = true;
            return FKV_OK;
        }
        size_t len = 1;
        if (m->from < n) fkv_utf8_get(text + m->from, &len);
        m->from += len;
    }
    return FKV_END;
}
