/* Ops on rows, through the table: embedding and ordered sums, add + RMSNorm, products
 * with weights, and that a row's bits don't depend on its place or its neighbours. */
#include "backend_fixture.h"

enum { HIDDEN = 48, VOCAB = 50 };

static void embedding_and_ranks_add_up(void **state)
{
    (void)state;
    enum { ROWS = 20 };
    static float table[VOCAB * HIDDEN], got[ROWS * HIDDEN];
    int32_t tokens[ROWS];
    fkv_err err = {0};
    fkv_weight *halves[2];
    fill_uniform(table, VOCAB * HIDDEN, 1);
    uint16_t *h = halves_of(table, VOCAB * HIDDEN);
    for (int i = 0; i < ROWS; i++) tokens[i] = (i * 13) % VOCAB;
    for (int i = 0; i < 2; i++)
        assert_int_equal(b->embedding_load(dev, rows_of(h + i * VOCAB / 2 * HIDDEN, VOCAB / 2, HIDDEN),
                                           i * VOCAB / 2, HIDDEN, &halves[i], &err),
                         FKV_OK);
    const int32_t *dt = device_memory(sizeof tokens, tokens);
    float *partials = device_memory(2 * sizeof got, NULL);
    void *y = activations(NULL, ROWS * HIDDEN);
    poison(partials, 2 * sizeof got);
    for (int i = 0; i < 2; i++) b->embed(dev, dt, ROWS, halves[i], partials + i * ROWS * HIDDEN);
    b->reduce_ranks(dev, partials, 2, ROWS, HIDDEN, y);
    get(got, y, ROWS * HIDDEN);
    for (int i = 0; i < ROWS; i++)
        assert_memory_equal(got + i * HIDDEN, table + tokens[i] * HIDDEN, HIDDEN * sizeof *got);
    free(h);
}

/* Adding in another order would give another result for these. */
static void partial_sums_are_added_in_rank_order(void **state)
{
    (void)state;
    enum { RANKS = 5, N = 13 };
    float partials[RANKS][N], got[N], zeros[N] = {0};
    const float values[RANKS] = {0x1p24f, 1, -0x1p24f, 1, 0x1p-3f};
    for (int r = 0; r < RANKS; r++)
        for (int i = 0; i < N; i++) partials[r][i] = values[(r + i) % RANKS];
    const float *dp = device_memory(sizeof partials, partials);
    void *y = activations(zeros, N);
    b->reduce_ranks(dev, dp, RANKS, 1, N, y);
    get(got, y, N);
    for (int i = 0; i < N; i++) {
        float want = partials[0][i];
        for (int r = 1; r < RANKS; r++) want += partials[r][i];
        assert_near(got[i], want, 0, is_half() ? 0x1p-8 : 0, "sum", i, 0);
    }
}

static void check_norm(int64_t n, int64_t hidden, bool with_y, bool with_out)
{
    const size_t all = (size_t)(n * hidden);
    float *x = host_floats(all), *y = host_floats(all), *w = host_floats((size_t)hidden),
          *sum = host_floats(all), *out = host_floats(all);
    fill_uniform(x, all, 4);
    fill_uniform(y, all, 1);
    fill_uniform(w, (size_t)hidden, 1);
    void *dx = activations(x, all), *dy = activations(y, all), *dout = activations(NULL, all);
    const float *dw = device_memory((size_t)hidden * sizeof *w, w);
    poison(dout, all * (size_t)info.act_bytes);
    b->add_rmsnorm(dev, dx, with_y ? dy : NULL, dw, 1e-5f, n, hidden, with_out ? dout : NULL, NULL);
    get(sum, dx, all);
    get(out, dout, all);
    for (int64_t i = 0; i < n; i++) {
        const float *row = sum + i * hidden;
        for (int64_t j = 0; j < hidden; j++) {
            const float want = with_y ? x[i * hidden + j] + y[i * hidden + j] : x[i * hidden + j];
            assert_near(row[j], want, 0, is_half() ? 0x1p-8 : 0, "x + y", i, j);
        }
        const double scale = 1 / sqrt(dot(row, row, hidden) / (double)hidden + 1e-5);
        for (int64_t j = 0; j < hidden; j++) {
            if (with_out)
                assert_near(out[i * hidden + j], row[j] * scale * w[j], 1e-6, is_half() ? 0x1p-7 : 1e-5,
                            "norm", i, j);
            else
                assert_true(isnan(out[i * hidden + j]));
        }
    }
    free(x), free(y), free(w), free(sum), free(out);
}

static void add_rmsnorm_adds_and_normalises(void **state)
{
    (void)state;
    const int64_t hidden[] = {8, 33, 48, 100, 2048, 4104};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++) {
        check_norm(3, hidden[i], true, true);
        check_norm(1, hidden[i], false, true);
        check_norm(2, hidden[i], true, false);
    }
}

static double gate(fkv_epilogue epilogue, double x)
{
    if (epilogue == FKV_EPILOGUE_SILU_GATE) return x / (1 + exp(-x));
    return x / 2 * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

static fkv_weight *load_gated(const float *w, const float *bias, int64_t n_out, int64_t k)
{
    fkv_err err = {0};
    fkv_weight *weight = NULL;
    uint16_t *h = halves_of(w, (size_t)(2 * n_out * k)),
             *hb = bias ? halves_of(bias, (size_t)(2 * n_out)) : NULL;
    fkv_rows gate_rows = rows_of(h, n_out, k), up_rows = rows_of(h + n_out * k, n_out, k);
    gate_rows.bias = hb;
    up_rows.bias = hb ? hb + n_out : NULL;
    if (b->weight_load_gated(dev, gate_rows, up_rows, k, &weight, &err)) fail_msg("%s", err.message);
    assert_int_equal(b->sync(dev, &err), FKV_OK);
    free(h);
    free(hb);
    return weight;
}

/* Linear's variants. */
typedef struct linear_case {
    bool f32_out, biased;
    fkv_epilogue epilogue;
} linear_case;

static const linear_case linear_cases[] = {
    {false, false, FKV_EPILOGUE_NONE},      {true, false, FKV_EPILOGUE_NONE},
    {false, false, FKV_EPILOGUE_SILU_GATE}, {false, false, FKV_EPILOGUE_GELU_TANH_GATE},
    {false, true, FKV_EPILOGUE_NONE},       {true, true, FKV_EPILOGUE_NONE},
    {false, true, FKV_EPILOGUE_SILU_GATE},  {false, true, FKV_EPILOGUE_GELU_TANH_GATE}};
enum { N_LINEAR_CASES = sizeof linear_cases / sizeof *linear_cases };

/* y of n_out columns in rows of n_out + 8, one row more than n: what lies around stays. */
static void check_linear(int64_t n, int64_t k, int64_t n_out, const linear_case *c)
{
    const bool gated = c->epilogue != FKV_EPILOGUE_NONE;
    const int64_t stride = n_out + 8, w_rows = gated ? 2 * n_out : n_out;
    const size_t all = (size_t)((n + 1) * stride);
    float *x = host_floats((size_t)(n * k)), *w = host_floats((size_t)(w_rows * k)), *got = host_floats(all),
          *bias = host_floats((size_t)w_rows);
    fill_uniform(x, (size_t)(n * k), 1);
    fill_uniform(w, (size_t)(w_rows * k), gated ? 0.25f : 1);
    if (c->biased) fill_uniform(bias, (size_t)w_rows, 2);
    const float *loaded = c->biased ? bias : NULL;
    const fkv_weight *weight = gated ? load_gated(w, loaded, n_out, k) : load_biased(w, loaded, n_out, k);
    void *dx = activations(x, (size_t)(n * k)), *dy = device_memory(all * sizeof(float), NULL);
    poison(dy, all * sizeof(float));
    b->linear(dev, rows_at(dx, k), n, n, weight, rows_at(dy, stride), c->f32_out, c->epilogue);
    if (c->f32_out)
        fetch(got, dy, all * sizeof *got);
    else
        get(got, dy, all);
    const double relative = c->f32_out || !is_half() ? 1e-5 : gated ? 3e-2 : 0x1p-7;
    const double absolute = (gated && is_half() ? 2e-2 : 1e-5) * sqrt((double)k);
    for (int64_t i = 0; i <= n; i++) {
        for (int64_t j = 0; j < stride; j++) {
            const float y = got[i * stride + j];
            if (i == n || j >= n_out) {
                if (!isnan(y)) fail_msg("[%lld, %lld] was written", (long long)i, (long long)j);
                continue;
            }
            double want = dot(x + i * k, w + j * k, k) + (double)bias[j];
            if (gated)
                want = gate(c->epilogue, want) *
                       (dot(x + i * k, w + (n_out + j) * k, k) + (double)bias[n_out + j]);
            assert_near(y, want, absolute, relative, gated ? "gate" : "linear", i, j);
        }
    }
    free(x), free(w), free(got), free(bias);
}

static void linear_multiplies_any_shape(void **state)
{
    (void)state;
    const int64_t shapes[][3] = {{1, 32, 16},
                                 {1, 64, 257},
                                 {5, 96, 40},
                                 {16, 33, 7},
                                 {17, 128, 3},
                                 {64, 256, 80},
                                 {200, 64, 96},
                                 {300, 48, 24},
                                 /* a step's gate of a large model (CUDA: a kernel of its own) */
                                 {37, 136, 3080},
                                 {128, 72, 3100}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int c = 0; c < N_LINEAR_CASES; c++)
            check_linear(shapes[i][0], shapes[i][1], shapes[i][2], &linear_cases[c]);
}

static void assert_refused(fkv_status st, fkv_err *err, const char *word)
{
    assert_int_equal(st, FKV_E_INPUT);
    if (!strstr(err->message, word)) fail_msg("does not name the %s: %s", word, err->message);
    *err = (fkv_err){0};
}

/* Never loaded without what belongs to it. */
static void what_a_weight_can_not_have_is_refused_by_name(void **state)
{
    (void)state;
    const uint16_t numbers[2 * 8] = {0};
    fkv_weight *w = NULL;
    fkv_err err = {0};
    fkv_rows biased = rows_of(numbers, 2, 8);
    biased.bias = numbers;
    assert_refused(b->embedding_load(dev, biased, 0, 8, &w, &err), &err, "bias");
}

/* Parts with a bias beside parts without. */
static void a_part_without_a_bias_has_none(void **state)
{
    (void)state;
    enum { N = 20, K = 16 };
    float w[2 * N * K], x[K], bias[N], got[2 * N];
    fkv_weight *weight = NULL;
    fkv_err err = {0};
    fill_uniform(w, 2 * N * K, 1);
    fill_uniform(x, K, 1);
    fill_uniform(bias, N, 1);
    uint16_t *h = halves_of(w, 2 * N * K), *hb = halves_of(bias, N);
    fkv_rows parts[] = {rows_of(h, N, K), rows_of(h + N * K, N, K)};
    parts[1].bias = hb;
    assert_int_equal(b->weight_load(dev, parts, 2, K, &weight, &err), FKV_OK);
    float *dy = device_memory(sizeof got, NULL);
    b->linear(dev, rows_at(activations(x, K), K), 1, 1, weight, rows_at(dy, 2 * N), true, FKV_EPILOGUE_NONE);
    fetch(got, dy, sizeof got);
    for (int i = 0; i < 2 * N; i++)
        assert_near(got[i], dot(x, w + i * K, K) + (i < N ? 0 : (double)bias[i - N]), 1e-5, 1e-5, "part", i,
                    0);
    free(h), free(hb);
}

enum { CLASS_ROWS = 640 };

/* Of an E4M3, by its definition. */
static double e4m3_value(int code)
{
    const int e = code >> 3 & 15, m = code & 7;
    const double size = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
    if ((code & 127) == 127) return (double)NAN;
    return code & 128 ? -size : size;
}

static void all_numbers_of_e4m3_are_read(void **state)
{
    (void)state;
    uint8_t codes[256];
    float got[256];
    for (int i = 0; i < 256; i++) codes[i] = (uint8_t)i;
    const fkv_rows rows = {.data = codes, .dtype = FKV_DTYPE_F8_E4M3, .n_rows = 1, .stride = 256};
    fkv_rows_read(&rows, 0, 0, 256, got);
    for (int i = 0; i < 256; i++) {
        const double want = e4m3_value(i);
        assert_true(isnan(want) ? isnan(got[i]) : got[i] >= want && got[i] <= want);
        assert_int_equal(signbit(got[i]) != 0, i >= 128);
    }
}

enum { FP8_ROWS = 40, FP8_DEEP = 600, FP8_MORE = 9 };

/* A part of a matrix of FP8_MORE rows and columns more, from [row0, col0] on, and its products as float32. */
static fkv_rows fp8_part(const uint8_t *codes, fkv_scales scales, const float *by, float *products)
{
    const int64_t cols = FP8_DEEP + FP8_MORE;
    for (int64_t i = 0; i < FP8_ROWS; i++)
        for (int64_t j = 0; j < FP8_DEEP; j++) {
            const int64_t at = (scales.row0 + i) * cols + scales.col0 + j;
            const float scale = by[(scales.row0 + i) / scales.block_rows * scales.stride +
                                   (scales.col0 + j) / scales.block_cols];
            products[i * FP8_DEEP + j] = (float)e4m3_value(codes[at]) * scale;
        }
    return (fkv_rows){.data = codes + scales.row0 * cols + scales.col0,
                      .dtype = FKV_DTYPE_F8_E4M3,
                      .n_rows = FP8_ROWS,
                      .stride = cols,
                      .scales = scales};
}

/* What the weight gives of x, from part as it is and from its products. */
static void assert_same_weight(fkv_rows part, const float *products, const float *bias, bool gated)
{
    enum { N = FP8_ROWS };
    float x[FP8_DEEP], y[2][N];
    fkv_err err = {0};
    fill_uniform(x, FP8_DEEP, 1);
    fkv_rows parts[2] = {part, {.data = products, .dtype = FKV_DTYPE_F32, .n_rows = N, .stride = FP8_DEEP}};
    for (int i = 0; i < 2; i++) {
        fkv_weight *w = NULL;
        float *dy = device_memory(sizeof y[i], NULL);
        parts[i].bias = bias;
        parts[i].bias_dtype = FKV_DTYPE_F32;
        assert_int_equal(gated ? b->weight_load_gated(dev, parts[i], parts[i], FP8_DEEP, &w, &err)
                               : b->weight_load(dev, &parts[i], 1, FP8_DEEP, &w, &err),
                         FKV_OK);
        b->linear(dev, rows_at(activations(x, FP8_DEEP), FP8_DEEP), 1, 1, w, rows_at(dy, N), !gated,
                  gated ? FKV_EPILOGUE_SILU_GATE : FKV_EPILOGUE_NONE);
        fetch(y[i], dy, gated ? N * (size_t)info.act_bytes : sizeof y[i]);
    }
    assert_memory_equal(y[0], y[1], gated ? N * (size_t)info.act_bytes : sizeof y[0]);
}

/* Scales by matrix, row and block, in float32 and bf16; parts that begin inside a block. */
static void an_fp8_weight_is_that_of_its_float32_products(void **state)
{
    (void)state;
    enum { MOST = (FP8_ROWS + FP8_MORE) * (FP8_DEEP + FP8_MORE) };
    const int64_t blocks[][2] = {{MOST, MOST}, {1, MOST}, {16, 128}, {7, 5}};
    uint8_t *codes = malloc(MOST);
    float *by = host_floats(MOST), *products = host_floats(FP8_ROWS * FP8_DEEP), bias[FP8_ROWS];
    uint16_t *halves;
    assert_non_null(codes);
    fill_uniform(bias, FP8_ROWS, 1);
    for (int i = 0; i < MOST; i++)
        codes[i] = (uint8_t)((i * 37 + i / 251) % 255 == 127 ? 0 : (i * 37 + i / 251) % 255);
    fill_uniform(by, MOST, 0.01f);
    halves = halves_of(by, MOST);
    for (int i = 0; i < MOST; i++) by[i] = fkv_f32_from_bf16(halves[i]);
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        for (int k = 0; k < 4; k++) {
            const fkv_scales scales = {.data = k % 2 ? (const void *)halves : by,
                                       .dtype = k % 2 ? FKV_DTYPE_BF16 : FKV_DTYPE_F32,
                                       .block_rows = blocks[i][0],
                                       .block_cols = blocks[i][1],
                                       .stride = (FP8_DEEP + FP8_MORE) / blocks[i][1] + 1,
                                       .row0 = k < 2 ? 0 : FP8_MORE,
                                       .col0 = k < 2 ? 0 : FP8_MORE};
            const fkv_rows part = fp8_part(codes, scales, by, products);
            assert_same_weight(part, products, k == 1 ? bias : NULL, false);
            assert_same_weight(part, products, NULL, true);
        }
    free(codes), free(by), free(products), free(halves);
}

/* Larger than what is staged at once, its parts' ends anywhere within a piece of it; the middle one's rows
 * are the right half of longer ones, the last one is of another type. */
static void a_large_weight_has_every_number_of_its_parts(void **state)
{
    (void)state;
    enum { K = 520, FIRST = 3001, MIDDLE = 2503, LAST = 3007, ALL = FIRST + MIDDLE + LAST, COLS = 5 };
    static const int cols[COLS] = {0, 1, 255, 256, K - 1};
    const size_t n = (size_t)ALL * K;
    fkv_err err = {0};
    fkv_weight *weight;
    float *w = host_floats(n), *wide = host_floats((size_t)MIDDLE * 2 * K),
          *x = host_floats((size_t)COLS * K), *y = host_floats((size_t)COLS * ALL);
    fill_uniform(w, n, 1);
    for (int64_t i = 0; i < MIDDLE; i++) memcpy(wide + (2 * i + 1) * K, w + (FIRST + i) * K, K * sizeof *w);
    uint16_t *first = halves_of(w, (size_t)FIRST * K), *middle = halves_of(wide, (size_t)MIDDLE * 2 * K);
    fkv_rows parts[] = {rows_of(first, FIRST, K), rows_of(middle + K, MIDDLE, 2 * K), rows_of(NULL, LAST, K)};
    parts[2].data = w + (FIRST + MIDDLE) * K;
    parts[2].dtype = FKV_DTYPE_F32;
    assert_int_equal(b->weight_load(dev, parts, 3, K, &weight, &err), FKV_OK);
    for (int c = 0; c < COLS; c++) x[c * K + cols[c]] = 1;
    void *dx = activations(x, (size_t)COLS * K), *dy = device_memory((size_t)COLS * ALL * sizeof *y, NULL);
    b->linear(dev, rows_at(dx, K), COLS, COLS, weight, rows_at(dy, ALL), true, FKV_EPILOGUE_NONE);
    fetch(y, dy, (size_t)COLS * ALL * sizeof *y);
    for (int c = 0; c < COLS; c++)
        for (int64_t r = 0; r < ALL; r++)
            if (y[c * ALL + r] != w[r * K + cols[c]]) fail_msg("row %d, column %d", (int)r, cols[c]);
    free(w), free(wide), free(x), free(y), free(first), free(middle);
}

/* One row among n others of a class at some place; its result's bits. */
static void probe_of_class(const fkv_weight *w, const float *row, int64_t n, int64_t class_rows, int64_t k,
                           int64_t n_out, int64_t at, bool f32_out, fkv_epilogue epilogue, float *bits)
{
    float *x = host_floats((size_t)(n * k)), *y = host_floats((size_t)(n * n_out));
    fill_uniform(x, (size_t)(n * k), 1);
    memcpy(x + at * k, row, (size_t)k * sizeof *row);
    void *dx = activations(x, (size_t)(n * k)), *dy = device_memory((size_t)(n * n_out) * sizeof *y, NULL);
    b->linear(dev, rows_at(dx, k), n, class_rows, w, rows_at(dy, n_out), f32_out, epilogue);
    if (f32_out)
        fetch(y, dy, (size_t)(n * n_out) * sizeof *y);
    else
        get(y, dy, (size_t)(n * n_out));
    memcpy(bits, y + at * n_out, (size_t)n_out * sizeof *bits);
    free(x), free(y);
}

static void probe(const fkv_weight *w, const float *row, int64_t n, int64_t k, int64_t n_out, int64_t at,
                  bool f32_out, fkv_epilogue epilogue, float *bits)
{
    probe_of_class(w, row, n, CLASS_ROWS, k, n_out, at, f32_out, epilogue, bits);
}

static void a_row_of_a_steps_gate_does_not_depend_on_its_place_or_neighbours(void **state)
{
    (void)state;
    enum { K = 256, OUT = 3080 };
    const int64_t classes[] = {64, 128};
    float *w = host_floats((size_t)2 * OUT * K), *row = host_floats(K), *first = host_floats(OUT),
          *other = host_floats(OUT);
    fill_uniform(w, (size_t)2 * OUT * K, 0.25f);
    fill_uniform(row, K, 1);
    const fkv_weight *weight = load_gated(w, NULL, OUT, K);
    for (int i = 0; i < 2; i++) {
        const int64_t most = classes[i], counts[] = {1, most / 2 + 3, most};
        probe_of_class(weight, row, 1, most, K, OUT, 0, false, FKV_EPILOGUE_SILU_GATE, first);
        for (int c = 0; c < 3; c++) {
            const int64_t places[] = {0, counts[c] / 2, counts[c] - 1};
            for (int p = 0; p < 3; p++) {
                probe_of_class(weight, row, counts[c], most, K, OUT, places[p], false, FKV_EPILOGUE_SILU_GATE,
                               other);
                assert_memory_equal(first, other, OUT * sizeof *first);
            }
        }
    }
    free(w), free(row), free(first), free(other);
}

static void a_rows_product_does_not_depend_on_its_place_or_neighbours(void **state)
{
    (void)state;
    enum { K = 1024, OUT = 320 };
    const int64_t counts[] = {1, 16, 64, 200, 513, 640};
    float *w = host_floats(2 * OUT * K), *bias = host_floats(2 * OUT), *row = host_floats(K);
    fill_uniform(w, 2 * OUT * K, 0.25f);
    fill_uniform(bias, 2 * OUT, 1);
    fill_uniform(row, K, 1);
    for (int kind = 0; kind < N_LINEAR_CASES; kind++) {
        const linear_case *c = &linear_cases[kind];
        const float *loaded = c->biased ? bias : NULL;
        const fkv_weight *weight =
            c->epilogue == FKV_EPILOGUE_NONE ? load_biased(w, loaded, OUT, K) : load_gated(w, loaded, OUT, K);
        float first[OUT], other[OUT]; /* first: of the row alone */
        probe(weight, row, 1, K, OUT, 0, c->f32_out, c->epilogue, first);
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            const int64_t n = counts[i], step = n > 8 ? n / 8 : 1;
            for (int64_t at = 0; at < n; at = at < n - 1 && at + step >= n ? n - 1 : at + step) {
                probe(weight, row, n, K, OUT, at, c->f32_out, c->epilogue, other);
                if (memcmp(first, other, sizeof other))
                    fail_msg("row %lld of %lld differs from the row alone (kind %d)", (long long)at,
                             (long long)n, kind);
            }
        }
    }
    free(w), free(bias), free(row);
}

static void a_rows_norm_does_not_depend_on_its_place(void **state)
{
    (void)state;
    enum { N = 9, H = 2048 };
    float *x = host_floats(N * H), *w = host_floats(H), *out = host_floats(N * H);
    fill_uniform(x, N * H, 1);
    fill_uniform(w, H, 1);
    memcpy(x + 7 * H, x, H * sizeof *x);
    void *dx = activations(x, N * H), *dout = activations(NULL, N * H);
    b->add_rmsnorm(dev, dx, NULL, device_memory(H * sizeof *w, w), 1e-5f, N, H, dout, NULL);
    get(out, dout, N * H);
    assert_memory_equal(out, out + 7 * H, H * sizeof *out);
    free(x), free(w), free(out);
}

/* Steps under one key: the first ones are enqueued, later ones replayed as a whole. */
static void recorded_steps_do_what_enqueued_ones_do(void **state)
{
    (void)state;
    enum { K = 64, OUT = 32, STEPS = 200 };
    float w[OUT * K], x[K], first[OUT], got[OUT];
    double seconds[1] = {0};
    fill_uniform(w, OUT * K, 1);
    fkv_weight *weight = load_weight(w, OUT, K);
    void *dx = activations(NULL, K);
    float *dy = device_memory(sizeof got, NULL);
    for (int step = 0; step < STEPS; step++) {
        fill_uniform(x, K, 1); /* what changes from step to step lies in device memory */
        put(dx, x, K);
        b->linear(dev, rows_at(dx, K), 1, 1, weight, rows_at(dy, OUT), true, FKV_EPILOGUE_NONE);
        fetch(first, dy, sizeof first);
        poison(dy, sizeof got);
        if (!b->replay(dev, 0)) {
            b->record_begin(dev, 0);
            b->span_begin(dev, 0);
            b->linear(dev, rows_at(dx, K), 1, 1, weight, rows_at(dy, OUT), true, FKV_EPILOGUE_NONE);
            b->span_end(dev, 0);
            b->record_end(dev, 0);
        }
        fetch(got, dy, sizeof got);
        assert_memory_equal(got, first, sizeof got);
    }
    b->span_seconds(dev, seconds, 1);
    assert_true(seconds[0] > 0 && seconds[0] < 60);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embedding_and_ranks_add_up),
        cmocka_unit_test(partial_sums_are_added_in_rank_order),
        cmocka_unit_test(add_rmsnorm_adds_and_normalises),
        cmocka_unit_test(linear_multiplies_any_shape),
        cmocka_unit_test(what_a_weight_can_not_have_is_refused_by_name),
        cmocka_unit_test(a_part_without_a_bias_has_none),
        cmocka_unit_test(all_numbers_of_e4m3_are_read),
        cmocka_unit_test(an_fp8_weight_is_that_of_its_float32_products),
        cmocka_unit_test(a_large_weight_has_every_number_of_its_parts),
        cmocka_unit_test(a_rows_product_does_not_depend_on_its_place_or_neighbours),
        cmocka_unit_test(a_row_of_a_steps_gate_does_not_depend_on_its_place_or_neighbours),
        cmocka_unit_test(a_rows_norm_does_not_depend_on_its_place),
        cmocka_unit_test(recorded_steps_do_what_enqueued_ones_do),
    };
    const int skipped = choose_backend(argc, argv);
    if (skipped) return skipped;
    device_open((fkv_device_limits){.n_slots = 4,
                                    .max_prompt = 64,
                                    .max_positions = 128,
                                    .hidden = HIDDEN,
                                    .n_heads = 2,
                                    .n_kv_heads = 2,
                                    .head_dim = 64,
                                    .vocab = VOCAB,
                                    .max_local_heads = 2,
                                    .window = 8});
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close();
    return failed;
}
