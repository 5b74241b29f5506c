/* One device of the backend under test, for tests that call ops through the table.
 * The backend is the program's argument (cpu without one); a backend that can't be
 * used here skips the program. FKV_TEST_GPU=small in the environment hides what only some
 * GPUs have.
 *
 * Activations are rounded to bf16 before they go in, whatever the backend computes
 * with, so that references start from the same numbers. Device memory stays until
 * device_close. */
#ifndef FKV_TESTS_BACKEND_FIXTURE_H
#define FKV_TESTS_BACKEND_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/backend.h"
#include "runner/base/float16.h"
#include "runner/base/hash.h"

static const fkv_backend *b;
static fkv_world *world;
static fkv_device *dev;
static fkv_device_info info;
enum { FIXTURE_ROPES = 2 };
enum { FIXTURE_HEAD_DIM = 256 };                             /* the largest */
static float inv_freq[FIXTURE_ROPES * FIXTURE_HEAD_DIM / 2]; /* [FIXTURE_ROPES][hd / 2] */
static float rope_scale[FIXTURE_ROPES * FIXTURE_HEAD_DIM / 2];
static int64_t n_rope_rows; /* of a table */
static uint64_t counter;

/* 77, with the reason printed, where the backend can't be used; else 0. FKV_TEST_SKIP: a pattern of tests to
 * leave out, for tools under which thousands of launches take hours. */
static inline int choose_backend(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "cpu";
    const fkv_device_limits least = {.n_slots = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 64};
    const char *gpu = getenv("FKV_TEST_GPU");
    const char *skip = getenv("FKV_TEST_SKIP");
    fkv_err err = {0};
    if (skip) cmocka_set_skip_filter(skip);
    fkv_backend_restrict(gpu && !strcmp(gpu, "small"));
    b = fkv_backend_find(name);
    if (b && !b->supports(&least, &(fkv_group){.n_devices = 1}, &err)) return 0;
    printf("skipped: %s %s\n", name, b ? err.message : fkv_backend_why(name));
    return 77;
}

/* As Llama's layers attend. */
static inline fkv_attention_spec plain_spec(int hd, int group, int n_kv_heads)
{
    return (fkv_attention_spec){
        .n_kv_heads = n_kv_heads, .group = group, .head_dim = hd, .scale = fkv_attention_scale(hd)};
}

/* Of plain layers unless the limits have some. */
static inline void device_open(fkv_device_limits limits)
{
    static const float thetas[FIXTURE_ROPES] = {10000, 500};
    const fkv_attention_spec plain =
        plain_spec(limits.head_dim, limits.n_heads / limits.n_kv_heads, limits.n_kv_heads);
    const int half = limits.head_dim / 2;
    fkv_err err = {0};
    for (int i = 0; i < half; i++) { /* the second table scales, and does not turn the last pairs */
        const bool turns = i < (half + 3) / 4 * 3;
        inv_freq[i] = powf(thetas[0], -(float)i / (float)half);
        rope_scale[i] = 1;
        inv_freq[half + i] = turns ? powf(thetas[1], -(float)i / (float)half) : 0;
        rope_scale[half + i] = turns ? 1.25f : 1;
    }
    n_rope_rows = limits.max_positions;
    limits.n_ropes = FIXTURE_ROPES;
    limits.inv_freq = inv_freq;
    limits.rope_scale = rope_scale;
    if (!limits.layers) {
        limits.layers = &plain;
        limits.n_layers = 1;
    }
    assert_int_equal(b->world_open(&(fkv_group){.n_devices = 1}, &world, &err), FKV_OK);
    assert_int_equal(b->open(world, 0, 0, &dev, &err), FKV_OK);
    if (b->prepare(dev, &limits, &err)) fail_msg("prepare: %s", err.message);
    b->info(dev, &info);
}

static inline void device_close(void)
{
    b->close(dev);
    b->world_close(world);
}

/* Whether activations are bf16: tolerances are wider then. */
static inline bool is_half(void)
{
    return info.act_bytes == 2;
}

static inline void *device_memory(size_t bytes, const void *host)
{
    void *p;
    fkv_err err = {0};
    if (b->alloc(dev, bytes, &p, &err)) fail_msg("alloc: %s", err.message);
    if (host) b->upload(dev, p, host, bytes);
    return p;
}

static inline void fetch(void *host, const void *from, size_t bytes)
{
    fkv_err err = {0};
    b->download(dev, host, from, bytes);
    if (b->sync(dev, &err)) fail_msg("sync: %s", err.message);
}

/* In [-1, 1), a bf16 value. */
static inline float uniform(void)
{
    const float f = (float)((double)(fkv_random_u64(3, 4, counter++) >> 40) * 0x1p-23 - 1.0);
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return fkv_f32_from_bits(bits & 0xffff0000u);
}

static inline void fill_uniform(float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++) x[i] = scale * uniform(); /* scale: a power of two */
}

static inline float *host_floats(size_t n)
{
    float *p = calloc(n ? n : 1, sizeof *p);
    assert_non_null(p);
    return p;
}

/* Values as the device stores activations, K and V; the caller frees it. */
static inline void *encode(const float *x, size_t n)
{
    char *out = malloc(n * (size_t)info.act_bytes + 1);
    assert_non_null(out);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        const uint16_t half = (uint16_t)(bits >> 16);
        if (is_half())
            memcpy(out + 2 * i, &half, sizeof half);
        else
            memcpy(out + 4 * i, &bits, sizeof bits);
    }
    return out;
}

static inline void put(void *to, const float *x, size_t n)
{
    void *bytes = encode(x, n);
    b->upload(dev, to, bytes, n * (size_t)info.act_bytes);
    free(bytes);
}

static inline void *activations(const float *x, size_t n)
{
    void *p = device_memory(n * (size_t)info.act_bytes, NULL);
    if (x) put(p, x, n);
    return p;
}

/* Rows that are not in FP8. */
static inline fkv_acts rows_at(void *data, int64_t stride)
{
    return (fkv_acts){data, stride, NULL};
}

/* Rows [n, k] on the device, in that form. */
static inline fkv_acts acts_of(const float *x, int64_t n, int64_t k, fkv_form form)
{
    fkv_acts a = rows_at(activations(x, (size_t)(n * k)), k);
    if (form == FKV_FORM_NATIVE) return a;
    a.scale = device_memory((size_t)n * sizeof *a.scale, NULL);
    b->quantise(dev, a, n, k);
    return a;
}

/* Rows that FP8 holds as they are, in [-1.75, 1.75] times scale, a power of two: the first number is the
 * largest. */
static inline void fill_fp8(float *x, size_t n, size_t k, float scale)
{
    for (size_t i = 0; i < n * k; i++)
        x[i] = i % k ? fkv_f32_from_e4m3(fkv_e4m3_from_f32(256 * uniform())) * scale / 256 : 1.75f * scale;
}

/* Every value a NaN of all ones. */
static inline void poison(void *to, size_t bytes)
{
    static char ones[1 << 20];
    memset(ones, 0xff, sizeof ones);
    for (size_t at = 0; at < bytes; at += sizeof ones)
        b->upload(dev, (char *)to + at, ones, bytes - at < sizeof ones ? bytes - at : sizeof ones);
}

static inline void get(float *to, const void *from, size_t n)
{
    char *bytes = malloc(n * (size_t)info.act_bytes + 1);
    assert_non_null(bytes);
    fetch(bytes, from, n * (size_t)info.act_bytes);
    for (size_t i = 0; i < n; i++) {
        uint16_t half;
        if (is_half()) {
            memcpy(&half, bytes + 2 * i, sizeof half);
            to[i] = fkv_f32_from_bf16(half);
        } else {
            memcpy(&to[i], bytes + 4 * i, sizeof to[i]);
        }
    }
    free(bytes);
}

static inline fkv_rows rows_of(const uint16_t *data, int64_t n, int64_t k)
{
    return (fkv_rows){.data = data, .dtype = FKV_DTYPE_BF16, .n_rows = n, .stride = k};
}

/* [n, k] bf16 with the values of w; the caller frees it. */
static inline uint16_t *halves_of(const float *w, size_t n)
{
    uint16_t *h = malloc(n * sizeof *h + 1);
    assert_non_null(h);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &w[i], sizeof bits);
        h[i] = (uint16_t)(bits >> 16);
    }
    return h;
}

/* bias: [n], or NULL. */
static inline fkv_weight *load_in_form(const float *w, const float *bias, int64_t n, int64_t k, fkv_form form)
{
    fkv_err err = {0};
    fkv_weight *out = NULL;
    uint16_t *h = halves_of(w, (size_t)(n * k)), *hb = bias ? halves_of(bias, (size_t)n) : NULL;
    fkv_rows part = rows_of(h, n, k);
    part.bias = hb;
    part.form = form;
    if (b->weight_load(dev, &part, 1, k, &out, &err)) fail_msg("weight: %s", err.message);
    if (b->sync(dev, &err)) fail_msg("sync: %s", err.message);
    free(h);
    free(hb);
    return out;
}

static inline fkv_weight *load_biased(const float *w, const float *bias, int64_t n, int64_t k)
{
    return load_in_form(w, bias, n, k, FKV_FORM_NATIVE);
}

static inline fkv_weight *load_weight(const float *w, int64_t n, int64_t k)
{
    return load_biased(w, NULL, n, k);
}

enum { FIXTURE_SEGMENTS = 40 };

/* A pack of prompts of those lengths; prompt i fills slots[i] (NULL: slot i). rope0s: theirs (NULL: 0). */
typedef struct packed {
    fkv_pack pack;
    fkv_segment segments[FIXTURE_SEGMENTS];
} packed;

static inline void pack_prompts_from(packed *p, const int64_t *lengths, const int *slots,
                                     const int32_t *rope0s, int n)
{
    memset(p, 0, sizeof *p);
    for (int i = 0; i < n; i++) {
        p->segments[i] = (fkv_segment){.row0 = (int32_t)p->pack.n_rows,
                                       .n_tokens = (int32_t)lengths[i],
                                       .tile0 = (int32_t)p->pack.n_tiles,
                                       .slot = slots ? slots[i] : i,
                                       .max_new = 100 + i,
                                       .sampling = {.stream = 1000 + (uint64_t)i}};
        p->pack.n_rows += lengths[i];
        p->pack.n_tiles += (lengths[i] + FKV_TILE_TOKENS - 1) / FKV_TILE_TOKENS;
    }
    int32_t *rows = calloc((size_t)p->pack.n_rows, sizeof *rows);
    assert_non_null(rows);
    for (int i = 0; i < n; i++)
        for (int32_t t = 0; t < lengths[i]; t++) rows[p->segments[i].row0 + t] = (rope0s ? rope0s[i] : 0) + t;
    p->pack.n_segments = n;
    p->pack.segments = p->segments;
    p->pack.dev_segments = device_memory((size_t)n * sizeof *p->segments, p->segments);
    p->pack.dev_rope_rows = device_memory((size_t)p->pack.n_rows * sizeof *rows, rows);
    free(rows);
}

static inline void pack_prompts(packed *p, const int64_t *lengths, const int *slots, int n)
{
    pack_prompts_from(p, lengths, slots, NULL, n);
}

static inline double dot(const float *x, const float *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}

/* got may be off by absolute + relative * |want|; NaN is never near. */
static inline void assert_near(double got, double want, double absolute, double relative, const char *what,
                               int64_t i, int64_t j)
{
    if (!(fabs(got - want) <= absolute + relative * fabs(want)))
        fail_msg("%s [%lld, %lld]: %.9g, should be %.9g", what, (long long)i, (long long)j, got, want);
}

/* RoPE in place on a vector of hd, in double, by a row of the spec's table and those behind it; none where
 * it has none. */
static inline void reference_rope(const fkv_attention_spec *spec, double *v, int64_t rope_row)
{
    const int half = spec->head_dim / 2, table = spec->rope + (int)(rope_row / n_rope_rows);
    for (int i = 0; i < half && spec->rope >= 0; i++) {
        const double angle = (double)((float)(rope_row % n_rope_rows) * inv_freq[table * half + i]),
                     by = (double)rope_scale[table * half + i], c = by * cos(angle), s = by * sin(angle);
        const double x = v[i], y = v[i + half];
        v[i] = x * c - y * s;
        v[i + half] = y * c + x * s;
    }
}

/* p[n] = softmax of q over n keys, rows stride apart; the query is at position n - 1. */
static inline void reference_softmax(const fkv_attention_spec *spec, const double *q, const float *k,
                                     int64_t stride, int64_t n, double *p)
{
    const int64_t first = spec->window && n > spec->window ? n - spec->window : 0;
    double max = -INFINITY, total = 0;
    for (int64_t j = first; j < n; j++) {
        double s = 0;
        for (int i = 0; i < spec->head_dim; i++) s += q[i] * (double)k[j * stride + i];
        s *= (double)spec->scale;
        if (spec->softcap > 0) s = (double)spec->softcap * tanh(s / (double)spec->softcap);
        p[j] = s;
        max = fmax(max, s);
    }
    for (int64_t j = first; j < n; j++) total += p[j] = exp(p[j] - max);
    for (int64_t j = 0; j < n; j++) p[j] = j < first ? 0 : p[j] / total;
}

/* out[hd] = attention of q over n keys and values, rows stride apart. */
static inline void reference_attention(const fkv_attention_spec *spec, const double *q, const float *k,
                                       const float *v, int64_t stride, int64_t n, double *out)
{
    double *p = calloc((size_t)n, sizeof *p);
    assert_non_null(p);
    reference_softmax(spec, q, k, stride, n, p);
    for (int i = 0; i < spec->head_dim; i++) out[i] = 0;
    for (int64_t j = 0; j < n; j++)
        for (int i = 0; i < spec->head_dim; i++) out[i] += p[j] * (double)v[j * stride + i];
    free(p);
}

#endif
