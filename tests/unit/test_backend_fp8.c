/* FP8 through the table: what quantising gives, products of rows and weights in that form beside a reference
 * in double that is made from the same quantised numbers, what a part of a weight or a stored one keeps, and
 * that a row's bits depend on nothing but the row. Prints the largest error of products, as a share of the
 * sum of their terms' magnitudes: what float32's sums and the tensor cores' shorter ones leave. */
#include "backend_fixture.h"

/* Of an E4M3, by its definition. */
static double value_of(int code)
{
    const int e = code >> 3 & 15, m = code & 7;
    return (code & 128 ? -1 : 1) * (e ? ldexp(8 + m, e - 10) : ldexp(m, -9));
}

/* The nearest code of a number, ties to the even one, found by looking at all. */
static int nearest(double x)
{
    int best = 0;
    for (int code = 0; code < 127; code++) {
        const double d = fabs(fabs(x) - value_of(code)), least = fabs(fabs(x) - value_of(best));
        if (d < least || (d <= least && code % 2 == 0)) best = code;
    }
    return signbit(x) ? best | 128 : best;
}

static void numbers_become_the_nearest_e4m3(void **state)
{
    (void)state;
    for (int code = 0; code < 256; code++) {
        if ((code & 127) == 127) continue;
        const float x = (float)value_of(code);
        assert_int_equal(fkv_e4m3_from_f32(code == 128 ? -0.0f : x), code);
        if ((code & 127) == 126) continue;
        const float between = (float)((value_of(code) + value_of(code + 1)) / 2);
        assert_int_equal(fkv_e4m3_from_f32(between), code % 2 ? code + 1 : code);
        assert_int_equal(fkv_e4m3_from_f32(nextafterf(between, 0)), code);
    }
    for (int i = 0; i < 20000; i++) {
        const float x = ldexpf(uniform() + 0x1p-12f, i % 24 - 14);
        assert_int_equal(fkv_e4m3_from_f32(x), nearest(x));
    }
    assert_int_equal(fkv_e4m3_from_f32(1e30f), 126);
    assert_int_equal(fkv_e4m3_from_f32(-INFINITY), 254);
    assert_int_equal(fkv_e4m3_from_f32(NAN) & 127, 127);
}

/* x[n][k] as FP8 holds it, in double: the definition in backend.h. */
static double *held(const float *x, int64_t n, int64_t k)
{
    double *out = calloc((size_t)(n * k), sizeof *out);
    assert_non_null(out);
    for (int64_t i = 0; i < n; i++) {
        float largest = 0;
        for (int64_t j = 0; j < k; j++) largest = fmaxf(largest, fabsf(x[i * k + j]));
        if (largest < 0x1p-100f) continue;
        for (int64_t j = 0; j < k; j++)
            out[i * k + j] =
                value_of(nearest((double)(x[i * k + j] * (448.0f / largest)))) * (double)(largest / 448.0f);
    }
    return out;
}

/* What the device holds of n rows in FP8, by products with a matrix of ones on its diagonal. */
enum { UNPACKED = 1024 }; /* rows at the most, so that one algorithm unpacks any number of them */

static void unpack(fkv_acts x, int64_t n, int64_t k, float *out)
{
    float *ones = host_floats((size_t)(k * k));
    for (int64_t i = 0; i < k; i++) ones[i * k + i] = 1;
    const fkv_weight *w = load_in_form(ones, NULL, k, k, FKV_FORM_FP8);
    float *y = device_memory((size_t)(n * k) * sizeof *y, NULL);
    b->linear(dev, x, n, UNPACKED, w, rows_at(y, k), true, FKV_EPILOGUE_NONE);
    fetch(out, y, (size_t)(n * k) * sizeof *y);
    free(ones);
}

static void check_rows(const float *got, const double *want, int64_t n, int64_t k, const char *what)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++) assert_near(got[i * k + j], want[i * k + j], 0, 1e-6, what, i, j);
}

static void rows_are_held_as_the_definition_says(void **state)
{
    (void)state;
    const int64_t widths[] = {16, 33, 64, 256, 1000, 4096};
    enum { N = 5 };
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        const int64_t k = widths[i];
        float *x = host_floats((size_t)(N * k)), *got = host_floats((size_t)(N * k));
        fill_uniform(x, (size_t)(N * k), 8);
        for (int64_t j = 0; j < k; j++) {
            x[k + j] = 0;                                        /* a row of zeros */
            x[2 * k + j] = ldexpf(x[2 * k + j], -(int)(j % 20)); /* one of small numbers beside large */
            x[3 * k + j] = ldexpf(x[3 * k + j], -40);
        }
        unpack(acts_of(x, N, k, FKV_FORM_FP8), N, k, got);
        double *want = held(x, N, k);
        check_rows(got, want, N, k, "quantised");
        free(x), free(got), free(want);
    }
}

/* Gives the norm's float32 results in FP8; off by a step of e4m3 where those differ in their last bits. */
static void a_norm_gives_rows_in_fp8(void **state)
{
    (void)state;
    const int64_t widths[] = {16, 100, 256, 2048};
    enum { N = 3 };
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        const int64_t k = widths[i];
        float *x = host_floats((size_t)(N * k)), *w = host_floats((size_t)k),
              *got = host_floats((size_t)(N * k));
        fill_uniform(x, (size_t)(N * k), 1);
        fill_uniform(w, (size_t)k, 1);
        const fkv_acts out = {activations(NULL, (size_t)(N * k)), k, device_memory(N * sizeof(float), NULL)};
        b->add_rmsnorm(dev, activations(x, (size_t)(N * k)), NULL, device_memory((size_t)k * sizeof *w, w),
                       1e-5f, N, k, out.data, out.scale);
        unpack(out, N, k, got);
        for (int64_t r = 0; r < N; r++) {
            const double by = 1 / sqrt(dot(x + r * k, x + r * k, k) / (double)k + 1e-5);
            double largest = 0;
            for (int64_t j = 0; j < k; j++) largest = fmax(largest, fabs(x[r * k + j] * by * (double)w[j]));
            for (int64_t j = 0; j < k; j++)
                assert_near(got[r * k + j], x[r * k + j] * by * (double)w[j], largest / 448 * 0x1.01p-10,
                            0x1.01p-4, "norm", r, j);
        }
        free(x), free(w), free(got);
    }
}

static void a_row_that_holds_no_number_gives_none(void **state)
{
    (void)state;
    enum { N = 3, K = 64, OUT = 16 };
    float x[N * K], w[OUT * K], bias[OUT], got[N * OUT];
    fill_uniform(x, N * K, 1);
    fill_uniform(w, OUT * K, 1);
    fill_uniform(bias, OUT, 1);
    x[5] = NAN;
    for (int j = 0; j < K; j++) x[K + j] = 0;
    x[2 * K + 7] = INFINITY;
    const fkv_weight *weight = load_in_form(w, bias, OUT, K, FKV_FORM_FP8);
    float *y = device_memory(sizeof got, NULL);
    b->linear(dev, acts_of(x, N, K, FKV_FORM_FP8), N, N, weight, rows_at(y, OUT), true, FKV_EPILOGUE_NONE);
    fetch(got, y, sizeof got);
    for (int j = 0; j < OUT; j++) {
        assert_true(isnan(got[j]));
        assert_true(got[OUT + j] >= bias[j] && got[OUT + j] <= bias[j]);
        assert_false(isfinite(got[2 * OUT + j]));
    }
}

static double worst; /* error of products, as a share of their terms */

static double gate(fkv_epilogue epilogue, double x)
{
    if (epilogue == FKV_EPILOGUE_SILU_GATE) return x / (1 + exp(-x));
    return x / 2 * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

static fkv_weight *load_gate_and_up(const float *w, const float *bias, int64_t n_out, int64_t k)
{
    fkv_err err = {0};
    fkv_weight *weight = NULL;
    uint16_t *h = halves_of(w, (size_t)(2 * n_out * k)), *hb = halves_of(bias, (size_t)(2 * n_out));
    fkv_rows parts[] = {rows_of(h, n_out, k), rows_of(h + n_out * k, n_out, k)};
    for (int i = 0; i < 2; i++) {
        parts[i].form = FKV_FORM_FP8;
        parts[i].bias = hb + i * n_out;
    }
    if (b->weight_load_gated(dev, parts[0], parts[1], k, &weight, &err)) fail_msg("%s", err.message);
    assert_int_equal(b->sync(dev, &err), FKV_OK);
    free(h), free(hb);
    return weight;
}

/* Operands of one product, and the double of what FP8 holds of them. */
typedef struct operands {
    int64_t n, k, n_out;
    float *x, *w, *bias;
    double *held_x, *held_w;
} operands;

static operands make(int64_t n, int64_t k, int64_t n_out, int64_t w_rows)
{
    operands o = {n,
                  k,
                  n_out,
                  host_floats((size_t)(n * k)),
                  host_floats((size_t)(w_rows * k)),
                  host_floats((size_t)w_rows),
                  NULL,
                  NULL};
    fill_uniform(o.x, (size_t)(n * k), 1);
    fill_uniform(o.w, (size_t)(w_rows * k), 0.25f);
    fill_uniform(o.bias, (size_t)w_rows, 2);
    o.held_x = held(o.x, n, k);
    o.held_w = held(o.w, w_rows, k);
    return o;
}

static void drop(operands *o)
{
    free(o->x), free(o->w), free(o->bias), free(o->held_x), free(o->held_w);
}

/* Row i times row j of the weight, with the bias; *terms: the sum of magnitudes. */
static double product(const operands *o, int64_t i, int64_t j, double *terms)
{
    double sum = 0;
    *terms = 0;
    for (int64_t t = 0; t < o->k; t++) {
        const double p = o->held_x[i * o->k + t] * o->held_w[j * o->k + t];
        sum += p;
        *terms += fabs(p);
    }
    return sum + (double)o->bias[j];
}

/* Of the sum of terms: 2^-13 leaves room for the 14 bits in which Hopper adds up what one instruction
 * multiplies. */
static double share(void)
{
    return is_half() ? 0x1p-13 : 1e-6;
}

static void check_product(int64_t n, int64_t k, int64_t n_out, bool f32_out)
{
    const int64_t stride = n_out + 8;
    operands o = make(n, k, n_out, n_out);
    float *got = host_floats((size_t)((n + 1) * stride));
    const fkv_weight *w = load_in_form(o.w, o.bias, n_out, k, FKV_FORM_FP8);
    const size_t bytes = (size_t)((n + 1) * stride) * sizeof *got;
    void *y = device_memory(bytes, NULL);
    poison(y, bytes);
    b->linear(dev, acts_of(o.x, n, k, FKV_FORM_FP8), n, n, w, rows_at(y, stride), f32_out, FKV_EPILOGUE_NONE);
    if (f32_out)
        fetch(got, y, bytes);
    else
        get(got, y, (size_t)((n + 1) * stride));
    for (int64_t i = 0; i <= n; i++)
        for (int64_t j = 0; j < stride; j++) {
            double terms;
            if (i == n || j >= n_out) {
                if (!isnan(got[i * stride + j]))
                    fail_msg("[%lld, %lld] was written", (long long)i, (long long)j);
                continue;
            }
            const double want = product(&o, i, j, &terms), error = fabs(got[i * stride + j] - want);
            if (f32_out && terms > 0) worst = fmax(worst, (error - 0x1p-23 * fabs(want)) / terms);
            assert_near(got[i * stride + j], want, share() * terms, f32_out || !is_half() ? 1e-6 : 0x1p-8,
                        "product", i, j);
        }
    free(got);
    drop(&o);
}

static void products_are_those_of_the_quantised_numbers(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{1, 32, 16},    {1, 64, 257},    {5, 96, 48},      {16, 33, 7},
                                 {17, 128, 3},   {64, 256, 80},   {200, 64, 96},    {300, 48, 32},
                                 {4, 4096, 128}, {64, 4096, 256}, {128, 1024, 256}, {33, 14336, 64}};
    worst = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int f32 = 0; f32 < 2; f32++) check_product(shapes[i][0], shapes[i][1], shapes[i][2], f32);
    printf("largest error of FP8 products: %.3g of the sum of their terms (allowed: %.3g)\n", worst, share());
}

/* Results of a gate as rows in FP8. */
static void check_gate(int64_t n, int64_t k, int64_t n_out, fkv_epilogue epilogue)
{
    operands o = make(n, k, n_out, 2 * n_out);
    float *got = host_floats((size_t)(n * n_out));
    const fkv_weight *w = load_gate_and_up(o.w, o.bias, n_out, k);
    const fkv_acts y = {activations(NULL, (size_t)(n * n_out)), n_out,
                        device_memory((size_t)n * sizeof(float), NULL)};
    b->linear(dev, acts_of(o.x, n, k, FKV_FORM_FP8), n, n, w, y, false, epilogue);
    unpack(y, n, n_out, got);
    for (int64_t i = 0; i < n; i++) {
        double *want = calloc((size_t)n_out, sizeof *want), largest = 0, terms;
        assert_non_null(want);
        for (int64_t j = 0; j < n_out; j++) {
            want[j] = gate(epilogue, product(&o, i, j, &terms)) * product(&o, i, n_out + j, &terms);
            largest = fmax(largest, fabs(want[j]));
        }
        for (int64_t j = 0; j < n_out; j++)
            assert_near(got[i * n_out + j], want[j], largest / 448 * 0x1.1p-10 + (is_half() ? 3e-2 : 1e-4),
                        0x1.2p-4, "gate", i, j);
        free(want);
    }
    free(got);
    drop(&o);
}

static void a_gate_gives_rows_in_fp8(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{1, 32, 16}, {5, 96, 40}, {64, 128, 256}, {17, 64, 33}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_gate(shapes[i][0], shapes[i][1], shapes[i][2], FKV_EPILOGUE_SILU_GATE);
        check_gate(shapes[i][0], shapes[i][1], shapes[i][2], FKV_EPILOGUE_GELU_TANH_GATE);
    }
}

/* A weight's numbers, [n][k], by products with rows that have a one each. */
static void read_weight(const fkv_weight *w, int64_t n, int64_t k, float *out)
{
    float *ones = host_floats((size_t)(k * k)), *got = host_floats((size_t)(n * k));
    for (int64_t i = 0; i < k; i++) ones[i * k + i] = 1;
    float *y = device_memory((size_t)(n * k) * sizeof *y, NULL);
    b->linear(dev, acts_of(ones, k, k, FKV_FORM_FP8), k, k, w, rows_at(y, n), true, FKV_EPILOGUE_NONE);
    fetch(got, y, (size_t)(n * k) * sizeof *y);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++) out[i * k + j] = got[j * n + i];
    free(ones), free(got);
}

/* As a rank's share of `down`: its numbers are those of the whole matrix. */
static void a_part_of_the_columns_has_the_whole_rows_scales(void **state)
{
    (void)state;
    enum { N = 48, K = 256, FIRST = 96, PART = 128 };
    float *w = host_floats(N * K), *got = host_floats(N * PART), *cut = host_floats(N * PART);
    fkv_weight *weight = NULL;
    fkv_err err = {0};
    fill_uniform(w, N * K, 1);
    for (int i = 0; i < N; i++) w[i * K + (i % 2 ? 3 : K - 2)] = 5 + (float)(i % 8); /* outside of the part */
    double *all = held(w, N, K);
    uint16_t *h = halves_of(w, N * K);
    for (int kind = 0; kind < 2; kind++) {
        fkv_rows part = {.data = kind ? (const void *)(w + FIRST) : h + FIRST,
                         .dtype = kind ? FKV_DTYPE_F32 : FKV_DTYPE_BF16,
                         .n_rows = N,
                         .stride = K,
                         .form = FKV_FORM_FP8,
                         .cols_before = FIRST,
                         .all_cols = K};
        assert_int_equal(b->weight_load(dev, &part, 1, PART, &weight, &err), FKV_OK);
        assert_int_equal(b->sync(dev, &err), FKV_OK);
        read_weight(weight, N, PART, got);
        for (int i = 0; i < N; i++)
            for (int j = 0; j < PART; j++)
                assert_near(got[i * PART + j], all[i * K + FIRST + j], 0, 1e-6, "part", i, j);
    }
    free(w), free(got), free(cut), free(all), free(h);
}

/* Stored numbers with a scale a row stay what they are; with one for each block they are quantised anew. */
static void stored_numbers_are_kept_where_a_row_has_one_scale(void **state)
{
    (void)state;
    enum { N = 40, K = 128 };
    static const int64_t blocks[][2] = {{1, K}, {N, K}, {16, 32}};
    uint8_t codes[N * K];
    float by[N * K], *got = host_floats(N * K), *stored = host_floats(N * K);
    fkv_weight *weight = NULL;
    fkv_err err = {0};
    for (int i = 0; i < N * K; i++) codes[i] = (uint8_t)(i * 37 % 119 + (i % 3 ? 128 : 0));
    for (int i = 0; i < N * K; i++) by[i] = 0.01f + (float)(i % 50) / 8192;
    for (size_t kind = 0; kind < sizeof blocks / sizeof *blocks; kind++) {
        const int64_t stride = K / blocks[kind][1];
        const fkv_rows part = {.data = codes,
                               .dtype = FKV_DTYPE_F8_E4M3,
                               .n_rows = N,
                               .stride = K,
                               .scales = {.data = by,
                                          .dtype = FKV_DTYPE_F32,
                                          .block_rows = blocks[kind][0],
                                          .block_cols = blocks[kind][1],
                                          .stride = stride},
                               .form = FKV_FORM_FP8,
                               .all_cols = K};
        for (int i = 0; i < N; i++) fkv_rows_read(&part, i, 0, K, stored + i * K);
        assert_int_equal(fkv_rows_are_fp8(&part, K), kind < 2);
        assert_int_equal(b->weight_load(dev, &part, 1, K, &weight, &err), FKV_OK);
        assert_int_equal(b->sync(dev, &err), FKV_OK);
        read_weight(weight, N, K, got);
        for (int i = 0; i < N; i++) {
            float largest = 0;
            for (int j = 0; j < K; j++) largest = fmaxf(largest, fabsf(stored[i * K + j]));
            for (int j = 0; j < K; j++)
                assert_near(got[i * K + j], stored[i * K + j],
                            kind < 2 ? 0 : (double)largest / 448 * 0x1.1p-10, kind < 2 ? 1e-6 : 0x1.2p-4,
                            "stored", i, j);
        }
    }
    free(got), free(stored);
}

enum { CLASS_ROWS = 640 };

/* One row among n others at some place; its result's bits. */
static void probe(const fkv_weight *w, const float *row, int64_t n, int64_t k, int64_t n_out, int64_t at,
                  int kind, float *bits)
{
    float *x = host_floats((size_t)(n * k)), *y = host_floats((size_t)(n * n_out));
    fill_uniform(x, (size_t)(n * k), 1);
    memcpy(x + at * k, row, (size_t)k * sizeof *row);
    fkv_acts to = rows_at(device_memory((size_t)(n * n_out) * sizeof *y, NULL), n_out);
    if (kind == 2) to.scale = device_memory((size_t)n * sizeof *to.scale, NULL);
    b->linear(dev, acts_of(x, n, k, FKV_FORM_FP8), n, CLASS_ROWS, w, to, kind == 1,
              kind == 2 ? FKV_EPILOGUE_SILU_GATE : FKV_EPILOGUE_NONE);
    if (kind == 1)
        fetch(y, to.data, (size_t)(n * n_out) * sizeof *y);
    else if (kind == 0)
        get(y, to.data, (size_t)(n * n_out));
    else
        unpack(to, n, n_out, y);
    memcpy(bits, y + at * n_out, (size_t)n_out * sizeof *bits);
    free(x), free(y);
}

static void a_rows_fp8_product_does_not_depend_on_its_place_or_neighbours(void **state)
{
    (void)state;
    enum { K = 1024, OUT = 320 };
    const int64_t counts[] = {1, 16, 64, 200, 513, 640};
    float *w = host_floats(2 * OUT * K), *bias = host_floats(2 * OUT), *row = host_floats(K);
    fill_uniform(w, 2 * OUT * K, 0.25f);
    fill_uniform(bias, 2 * OUT, 1);
    fill_uniform(row, K, 1);
    for (int kind = 0; kind < 3; kind++) { /* activations, float32, a gate's rows in FP8 */
        const fkv_weight *weight =
            kind == 2 ? load_gate_and_up(w, bias, OUT, K) : load_in_form(w, bias, OUT, K, FKV_FORM_FP8);
        float first[OUT], other[OUT]; /* first: of the row alone */
        probe(weight, row, 1, K, OUT, 0, kind, first);
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            const int64_t n = counts[i], step = n > 4 ? n / 4 : 1;
            for (int64_t at = 0; at < n; at = at < n - 1 && at + step >= n ? n - 1 : at + step) {
                probe(weight, row, n, K, OUT, at, kind, other);
                if (memcmp(first, other, sizeof other))
                    fail_msg("row %lld of %lld differs from the row alone (kind %d)", (long long)at,
                             (long long)n, kind);
            }
        }
    }
    free(w), free(bias), free(row);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_become_the_nearest_e4m3),
        cmocka_unit_test(rows_are_held_as_the_definition_says),
        cmocka_unit_test(a_norm_gives_rows_in_fp8),
        cmocka_unit_test(a_row_that_holds_no_number_gives_none),
        cmocka_unit_test(products_are_those_of_the_quantised_numbers),
        cmocka_unit_test(a_gate_gives_rows_in_fp8),
        cmocka_unit_test(a_part_of_the_columns_has_the_whole_rows_scales),
        cmocka_unit_test(stored_numbers_are_kept_where_a_row_has_one_scale),
        cmocka_unit_test(a_rows_fp8_product_does_not_depend_on_its_place_or_neighbours),
    };
    const int skipped = choose_backend(argc, argv);
    if (skipped) return skipped;
    device_open((fkv_device_limits){.n_slots = 4,
                                    .max_prompt = 64,
                                    .max_positions = 128,
                                    .hidden = 64,
                                    .n_heads = 2,
                                    .n_kv_heads = 2,
                                    .head_dim = 64,
                                    .vocab = 50,
                                    .max_local_heads = 2,
                                    .window = 8,
                                    .form = FKV_FORM_FP8});
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close();
    return failed;
}
