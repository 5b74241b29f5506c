/* Mutation of JSON by its values. jansson, which refuses what is not JSON, is not
 * instrumented: bytes changed at random rarely get past it, and so never reach
 * the readers' own checks. A target that includes this has the mutator for its
 * whole input; one whose input holds JSON beside other things defines
 * FUZZ_OWN_MUTATOR and calls mutate_json(). */
#ifndef FKV_FUZZ_JSON_MUTATOR_H
#define FKV_FUZZ_JSON_MUTATOR_H

#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* libFuzzer's; builds that only replay have none and never mutate. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max) __attribute__((weak));
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

static unsigned fuzz_random(unsigned *state, size_t n)
{
    *state = *state * 1664525u + 1013904223u;
    return n ? (*state >> 8) % (unsigned)n : 0;
}

static size_t count_values(const json_t *v)
{
    size_t n = 1, i;
    const char *key;
    json_t *child;
    if (json_is_object(v)) {
        json_object_foreach((json_t *)v, key, child) n += count_values(child);
    } else {
        json_array_foreach(v, i, child) n += count_values(child);
    }
    return n;
}

/* A value of the document and where it stands. */
struct place {
    json_t *value, *parent;
    const char *key;
    size_t index;
};

/* Finds the value number *n in the order of the text. */
static int find_place(json_t *v, size_t *n, struct place *out)
{
    size_t i;
    const char *key;
    json_t *child;
    if ((*n)-- == 0) {
        out->value = v;
        return 1;
    }
    if (json_is_object(v)) {
        json_object_foreach(v, key, child)
        {
            out->parent = v;
            out->key = key;
            if (find_place(child, n, out)) return 1;
        }
    } else {
        json_array_foreach(v, i, child)
        {
            out->parent = v;
            out->index = i;
            if (find_place(child, n, out)) return 1;
        }
    }
    return 0;
}

static struct place random_place(json_t *root, size_t n, unsigned *state)
{
    struct place p = {0};
    size_t at = fuzz_random(state, n);
    find_place(root, &at, &p);
    return p;
}

static json_t *odd_value(unsigned *state)
{
    static const json_int_t ints[] = {0,
                                      1,
                                      -1,
                                      2,
                                      7,
                                      8,
                                      255,
                                      4096,
                                      INT32_MAX,
                                      INT32_MIN,
                                      (json_int_t)1 << 32,
                                      (json_int_t)1 << 53,
                                      INT64_MAX,
                                      INT64_MIN};
    static const double reals[] = {0, -0.0, 0.5, 1, 1e-320, 1e15, 1e308, -1e308};
    static const char *const texts[] = {"", "a", "..", "a/b", "\xc3\xa9", "\xf0\x9f\x98\x80", "{}"};
    switch (fuzz_random(state, 9)) {
    case 0: return json_null();
    case 1: return json_true();
    case 2: return json_false();
    case 3: return json_array();
    case 4: return json_object();
    case 5: return json_real(reals[fuzz_random(state, sizeof reals / sizeof *reals)]);
    case 6: return json_string(texts[fuzz_random(state, sizeof texts / sizeof *texts)]);
    default: return json_integer(ints[fuzz_random(state, sizeof ints / sizeof *ints)]);
    }
}

/* The value, a little changed. NULL: it can't be. */
static json_t *changed_value(const json_t *v, unsigned *state)
{
    uint8_t text[256];
    const size_t n = json_string_length(v);
    uint64_t x = (uint64_t)json_integer_value(v);
    switch (json_typeof(v)) {
    case JSON_STRING:
        if (n >= sizeof text) return NULL;
        memcpy(text, json_string_value(v), n);
        return json_stringn((const char *)text, LLVMFuzzerMutate(text, n, sizeof text)); /* NULL: no UTF-8 */
    case JSON_INTEGER:
        switch (fuzz_random(state, 6)) {
        case 0: x++; break;
        case 1: x--; break;
        case 2: x *= 2; break;
        case 3: x /= 2; break;
        case 4: x = -x; break;
        default: x ^= (uint64_t)1 << fuzz_random(state, 64);
        }
        return json_integer((json_int_t)x);
    case JSON_REAL: return json_real(json_real_value(v) * (fuzz_random(state, 2) ? 2 : -0.3));
    case JSON_TRUE: return json_false();
    case JSON_FALSE: return json_true();
    default: return NULL;
    }
}

static void put_value(const struct place *p, json_t *value, json_t **root)
{
    if (!value) return;
    if (!p->parent) {
        json_decref(*root);
        *root = value;
    } else if (json_is_object(p->parent)) {
        json_object_set_new(p->parent, p->key, value);
    } else {
        json_array_set_new(p->parent, p->index, value);
    }
}

/* Puts the value into a list or object at a random place of it, or under a key of
 * another object. */
static void insert_value(json_t *into, json_t *value, const struct place *other, unsigned *state)
{
    if (json_is_array(into)) {
        json_array_insert_new(into, fuzz_random(state, json_array_size(into) + 1), value);
    } else if (json_is_object(into) && json_is_object(other->parent)) {
        json_object_set_new(into, other->key, value);
    } else {
        json_decref(value);
    }
}

static void remove_value(const struct place *p)
{
    if (json_is_array(p->parent))
        json_array_remove(p->parent, p->index);
    else if (json_is_object(p->parent))
        json_object_del(p->parent, p->key);
}

static size_t mutate_json(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    unsigned state = seed;
    json_t *root = NULL;
    char *text = NULL;
    if (fuzz_random(&state, 4))
        root = json_loadb((const char *)data, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (!root) return LLVMFuzzerMutate(data, size, max);
    for (unsigned rounds = 1 + fuzz_random(&state, 3); rounds; rounds--) {
        const size_t n = count_values(root);
        const struct place p = random_place(root, n, &state), other = random_place(root, n, &state);
        switch (fuzz_random(&state, 6)) {
        case 0: put_value(&p, odd_value(&state), &root); break;
        case 1: put_value(&p, json_deep_copy(other.value), &root); break;
        case 2: remove_value(&p); break;
        case 3: insert_value(p.value, json_deep_copy(other.value), &other, &state); break;
        default: put_value(&p, changed_value(p.value, &state), &root);
        }
    }
    text = json_dumps(root, JSON_COMPACT | JSON_ENCODE_ANY);
    const size_t n = text ? strlen(text) : 0;
    if (n && n <= max) {
        memcpy(data, text, n);
        size = n;
    }
    free(text);
    json_decref(root);
    return size;
}

#ifndef FUZZ_OWN_MUTATOR
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    return mutate_json(data, size, max, seed);
}
#endif

#endif
