/* Scorers of the CUDA backend alone: correctness against float64, then times on the shape of an 8B model's
 * layer. Exit code 1 if a check fails, 77 without a GPU.
 *
 * usage: bench_cuda_scorers [--check]     --check: no times
 */
#include "cuda_alone.h"

/* --- checks -------------------------------------------------------------------- */

typedef std::vector<double> doubles;

/* A prompt and what is asked of it. */
struct score_case {
    int hd, group, heads, n, window, sinks, kernel, hidden;
};

static std::vector<bf16> qkv, output; /* of the case: qkv as in the op, O_g [heads * group * hidden, hd] */

static int64_t per_of(const score_case &c)
{
    return fkv_head_rows(c.group) * (int64_t)c.hd;
}

/* Vector i of head h at position t: queries, key, value. */
static const bf16 *vector_at(const score_case &c, int64_t t, int h, int i)
{
    return qkv.data() + (t * c.heads + h) * per_of(c) + (int64_t)i * c.hd;
}

static double product(const bf16 *x, const bf16 *y, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += value(x[i]) * value(y[i]);
    return sum;
}

/* Pair i of v times (re, im). */
static void times(doubles &v, int i, double re, double im)
{
    const size_t half = v.size() / 2;
    const double x = v[i], y = v[i + half];
    v[i] = x * re - y * im;
    v[i + half] = y * re + x * im;
}

static double angle_of(int64_t t, int i)
{
    return (double)((float)t * inv_freq[i]);
}

/* Queries that have a mean before RoPE; the rest is uniform. */
static void make_values(const score_case &c)
{
    qkv = random_values((size_t)(c.n * c.heads * per_of(c)), 2.0f);
    output = random_values((size_t)(c.heads * c.group * c.hidden * c.hd), 0.25f);
    for (int h = 0; h < c.heads; h++)
        for (int g = 0; g < c.group; g++) {
            doubles base((size_t)c.hd);
            for (double &x : base) x = 2 * uniform();
            for (int64_t t = 0; t < c.n; t++) {
                doubles q = base;
                for (double &x : q) x += 2 * uniform();
                for (int i = 0; i < c.hd / 2; i++) times(q, i, cos(angle_of(t, i)), sin(angle_of(t, i)));
                bf16 *to = qkv.data() + (t * c.heads + h) * per_of(c) + (int64_t)g * c.hd;
                for (int i = 0; i < c.hd; i++) to[i] = __float2bfloat16((float)q[i]);
            }
        }
}

static doubles pooled(const score_case &c, const doubles &x)
{
    const int64_t end = c.n - c.window, half = c.kernel / 2;
    doubles out = x;
    for (int64_t j = c.sinks; j < end; j++)
        for (int64_t i = std::max<int64_t>(c.sinks, j - half); i <= std::min(end - 1, j + half); i++)
            out[j] = std::max(out[j], x[i]);
    return out;
}

/* Probabilities that the last queries give: their mean, or the largest. */
static doubles by_window(const score_case &c, int h, bool largest)
{
    doubles out((size_t)c.n), s((size_t)c.n);
    for (int64_t t = c.n - c.window; t < c.n; t++)
        for (int g = 0; g < c.group; g++) {
            double max = -INFINITY, sum = 0;
            for (int64_t j = 0; j <= t; j++) {
                s[j] = product(vector_at(c, t, h, g), vector_at(c, j, h, c.group), c.hd) / sqrt((double)c.hd);
                max = std::max(max, s[j]);
            }
            for (int64_t j = 0; j <= t; j++) sum += s[j] = exp(s[j] - max);
            for (int64_t j = 0; j <= t; j++)
                out[j] = largest ? std::max(out[j], s[j] / sum) : out[j] + s[j] / sum / (c.window * c.group);
        }
    return out;
}

static doubles keydiff(const score_case &c, int h)
{
    doubles mean((size_t)c.hd), out((size_t)c.n);
    double norm = 0;
    for (int64_t t = 0; t < c.n; t++) {
        const bf16 *k = vector_at(c, t, h, c.group);
        for (int i = 0; i < c.hd; i++) mean[i] += value(k[i]) / sqrt(product(k, k, c.hd)) / c.n;
    }
    for (double x : mean) norm += x * x;
    for (int64_t t = 0; t < c.n; t++) {
        const bf16 *k = vector_at(c, t, h, c.group);
        double sum = 0;
        for (int i = 0; i < c.hd; i++) sum += value(k[i]) * mean[i];
        out[t] = -sum / sqrt(product(k, k, c.hd) * norm);
    }
    return out;
}

/* What RoPE multiplies the pairs with on the average of the positions to come: [hd / 2][2]. */
static doubles ahead_of(const score_case &c)
{
    doubles out((size_t)c.hd);
    for (int i = 0; i < c.hd / 2; i++)
        for (int f = 0; f < FKV_SCORER_FUTURE; f++) {
            out[2 * i] += cos((double)(c.n + f) * inv_freq[i]) / FKV_SCORER_FUTURE;
            out[2 * i + 1] += sin((double)(c.n + f) * inv_freq[i]) / FKV_SCORER_FUTURE;
        }
    return out;
}

static void turn_ahead(const doubles &ahead, doubles &v)
{
    for (int i = 0; i < (int)v.size() / 2; i++) times(v, i, ahead[2 * i], ahead[2 * i + 1]);
}

/* Logits of the keys from the sinks on. */
static doubles expected_logits(const score_case &c, int h, int g)
{
    const int64_t n = c.n - c.sinks;
    const int hd = c.hd;
    const double scale = 1 / sqrt((double)hd);
    const doubles ahead = ahead_of(c);
    std::vector<doubles> u;
    doubles mean((size_t)hd), cov((size_t)(hd * hd)), column((size_t)hd), out((size_t)c.n);
    for (int64_t t = c.sinks; t < c.n; t++) {
        doubles x((size_t)hd);
        for (int i = 0; i < hd; i++) x[i] = value(vector_at(c, t, h, g)[i]);
        for (int i = 0; i < hd / 2; i++) times(x, i, cos(angle_of(t, i)), -sin(angle_of(t, i)));
        for (int i = 0; i < hd; i++) mean[i] += x[i] / n;
        u.push_back(x);
    }
    for (doubles &x : u) {
        for (int i = 0; i < hd; i++) x[i] -= mean[i];
        turn_ahead(ahead, x);
        for (int i = 0; i < hd; i++)
            for (int j = 0; j < hd; j++) cov[i * hd + j] += x[i] * x[j] / n;
    }
    turn_ahead(ahead, mean);
    for (int64_t t = c.sinks; t < c.n; t++) {
        const bf16 *k = vector_at(c, t, h, c.group);
        for (int i = 0; i < hd; i++) {
            double y = 0;
            for (int j = 0; j < hd; j++) y += cov[i * hd + j] * value(k[j]);
            out[t] += value(k[i]) * scale * (mean[i] + scale / 2 * y);
        }
    }
    return out;
}

static doubles expected(const score_case &c, int h)
{
    doubles out((size_t)c.n);
    for (int g = 0; g < c.group; g++) {
        doubles l = expected_logits(c, h, g);
        const double max = *std::max_element(l.begin() + c.sinks, l.end());
        double sum = 0;
        for (int64_t t = c.sinks; t < c.n; t++) sum += l[t] = exp(l[t] - max);
        for (int64_t t = c.sinks; t < c.n; t++) out[t] += l[t] / sum / c.group;
    }
    for (int64_t t = 0; t < c.n; t++) {
        const bf16 *v = vector_at(c, t, h, c.group + 1);
        out[t] *= sqrt(product(v, v, c.hd));
    }
    return out;
}

/* Mean over the group of ||O_g v|| by power 1 or 2. */
static double output_norm(const score_case &c, int64_t t, int h, int power)
{
    double mean = 0;
    for (int g = 0; g < c.group; g++) {
        double sum = 0;
        for (int r = 0; r < c.hidden; r++) {
            const double y = product(output.data() + ((int64_t)(h * c.group + g) * c.hidden + r) * c.hd,
                                     vector_at(c, t, h, c.group + 1), c.hd);
            sum += power == 1 ? fabs(y) : y * y;
        }
        mean += (power == 1 ? sum : sqrt(sum)) / c.group;
    }
    return mean;
}

/* What the op wants beside Q, K and V, of weights that are o, and where its results go. */
static void give_output(fkv_device *dev, fkv_prefill_args *a, const fkv_weight *o, int hidden)
{
    const int hd = a->spec->head_dim, n = a->n_heads * a->spec->group;
    float *gram = device_array<float>((size_t)(n * hd * hd));
    cuda_weight_gram(dev, o, hidden, n, gram);
    a->gram = gram;
    a->output_heads = o;
    a->hidden = hidden;
    a->second = device_array<float>((size_t)(a->n_heads * a->score_stride));
}

static void check_gram(const score_case &c, const float *gram)
{
    char what[128];
    const size_t all = (size_t)(c.heads * c.group * c.hd * c.hd);
    const std::vector<float> got = to_host(gram, all);
    double worst = 0;
    for (size_t e = 0; e < all; e += e % 5 + 1) {
        const size_t q = e / (size_t)(c.hd * c.hd), i = e / (size_t)c.hd % (size_t)c.hd, j = e % (size_t)c.hd;
        double want = 0;
        for (int r = 0; r < c.hidden; r++) {
            const bf16 *row = output.data() + (q * (size_t)c.hidden + (size_t)r) * (size_t)c.hd;
            want += value(row[i]) * value(row[j]);
        }
        worst = std::max(worst, fabs(want - got[e]) / (0.01 * c.hidden));
    }
    snprintf(what, sizeof what, "Gram hd %d group %d hidden %d: worst error", c.hd, c.group, c.hidden);
    check(worst < 1e-4, what, worst);
}

static doubles raw_scores(const score_case &c, fkv_scorer scorer, int h)
{
    if (scorer == FKV_SCORER_KEYDIFF) return keydiff(c, h);
    if (scorer == FKV_SCORER_EXPECTED) return expected(c, h);
    return by_window(c, h, scorer == FKV_SCORER_DEFENSIVE);
}

/* The worst error of scores and second: of cosines itself, else relative. */
static double worst_error(const score_case &c, fkv_scorer scorer, const std::vector<float> &scores,
                          const std::vector<float> &second)
{
    const int64_t end = c.n - c.window;
    double worst = 0;
    for (int h = 0; h < c.heads; h++) {
        const doubles want = pooled(c, raw_scores(c, scorer, h));
        double mean = 0;
        for (int64_t j = c.sinks; j < end; j++) mean += want[j] / (double)(end - c.sinks);
        for (int64_t j = c.sinks; j < end; j++) {
            const double got = scores[h * end + j];
            double x = want[j];
            if (scorer == FKV_SCORER_DEFENSIVE) x = std::max(x, mean) * output_norm(c, j, h, 2);
            double error = fabs(got - x) / (scorer == FKV_SCORER_KEYDIFF ? 1 : x);
            if (scorer == FKV_SCORER_CRITICAL) {
                const double other = (x + 1e-4) * output_norm(c, j, h, 1);
                error = std::max(error, fabs(second[h * end + j] - other) / other);
            }
            worst = error > worst || isnan(error) ? error : worst;
        }
    }
    return worst;
}

static void check_scorers(fkv_device *dev, const score_case &c)
{
    static const double allowed[FKV_N_SCORERS] = {1e-4, 3e-4, 3e-4, 1e-5, 1e-3};
    char what[128];
    open_device(dev, c.hd, c.group, c.heads, 1, c.n, c.window);
    make_values(c);
    const fkv_pack pack = pack_of(c.n, 0);
    const fkv_attention_spec spec = spec_of(c.hd, c.group, c.heads);
    const size_t all = (size_t)(c.heads * (c.n - c.window));
    fkv_weight o = {(int64_t)c.heads * c.group * c.hidden, c.hd, to_device(output)};
    fkv_prefill_args a =
        score_args(&spec, &pack, to_device(qkv), c.window, c.kernel, device_array<float>(all));
    a.sinks = c.sinks;
    a.min_tokens = c.window + c.sinks;
    give_output(dev, &a, &o, c.hidden);
    check_gram(c, a.gram);
    for (int hopper = dev->attention->wgmma; hopper >= 0; hopper--) {
        dev->attention->wgmma = hopper;
        for (int s = 0; s < FKV_N_SCORERS; s++) {
            a.scorer = (fkv_scorer)s;
            cuda_key_scores(dev, &a);
            const double worst = worst_error(c, a.scorer, to_host((const float *)a.scores, all),
                                             to_host((const float *)a.second, all));
            snprintf(what, sizeof what, "%s%s hd %d group %d T %d sinks %d kernel %d: worst error",
                     fkv_scorer_name(a.scorer), hopper ? " (wgmma)" : "", c.hd, c.group, c.n, c.sinks,
                     c.kernel);
            check(worst < allowed[s], what, worst);
        }
    }
}

/* --- times --------------------------------------------------------------------- */

/* Arithmetic of a layer's scores beside the window's, as scorer.h counts it. */
static double flops_of(fkv_scorer scorer, const fkv_prefill_args *a, int64_t n)
{
    const double hd = a->spec->head_dim, all = (double)n * a->n_heads;
    const double queries = all * a->spec->group;
    switch (scorer) {
    case FKV_SCORER_DEFENSIVE: return 2 * queries * hd * hd;
    case FKV_SCORER_CRITICAL: return 2 * queries * hd * a->hidden;
    case FKV_SCORER_KEYDIFF: return 5 * all * hd;
    case FKV_SCORER_EXPECTED: return 4 * queries * hd * hd;
    default: return 0;
    }
}

/* A layer of an 8B model; values that follow no norm, so that nothing is to be seen in the scores. */
static void time_scorers(fkv_device *dev, int n)
{
    enum { HD = 128, HEADS = 8, GROUP = 4, WINDOW = 32, HIDDEN = 4096 };
    open_device(dev, HD, GROUP, HEADS, 1, n, WINDOW);
    const int64_t width = HEADS * fkv_head_rows(GROUP) * HD, rows = (int64_t)HEADS * GROUP * HIDDEN;
    const fkv_pack pack = pack_of(n, 0);
    const fkv_attention_spec spec = spec_of(HD, GROUP, HEADS);
    fkv_weight o = {rows, HD, filled((size_t)(rows * HD))};
    fkv_prefill_args a = score_args(&spec, &pack, filled((size_t)(n * width)), WINDOW, 7,
                                    device_array<float>((size_t)n * HEADS));
    give_output(dev, &a, &o, HIDDEN);
    const double gram =
        seconds_of(dev, 2, [&](int) { cuda_weight_gram(dev, &o, HIDDEN, HEADS * GROUP, (float *)a.gram); });
    row_of_table("Gram matrices of a layer                 %10.1f us\n", gram * 1e6);
    double window = 0;
    for (int s = 0; s < FKV_N_SCORERS; s++) {
        a.scorer = (fkv_scorer)s;
        for (int hopper = s == FKV_SCORER_CRITICAL && dev->attention->wgmma; hopper >= 0; hopper--) {
            const bool had = dev->attention->wgmma;
            if (s == FKV_SCORER_CRITICAL) dev->attention->wgmma = hopper;
            const double t = seconds_of(dev, 2, [&](int) { cuda_key_scores(dev, &a); });
            dev->attention->wgmma = had;
            if (s == FKV_SCORER_SNAPKV) window = t;
            const double more = fkv_scorer_by_window(a.scorer) ? t - window : t;
            row_of_table("scores %-9s %-5s T %6d             %10.1f us", fkv_scorer_name(a.scorer),
                         hopper ? "wgmma" : "", n, t * 1e6);
            if (s == FKV_SCORER_SNAPKV)
                row_of_table("\n");
            else
                row_of_table(" %8.1f TFLOP/s beside the window's\n",
                             flops_of(a.scorer, &a, n) / more * 1e-12);
        }
    }
}

int main(int argc, char **argv)
{
    fkv_device *dev = first_device();
    if (!dev) return 77;
    static const score_case cases[] = {
        {128, 4, 2, 700, 32, 0, 7, 256},  {128, 4, 2, 131, 8, 4, 1, 200}, {128, 1, 3, 1300, 16, 1, 5, 72},
        {128, 2, 1, 3000, 32, 4, 7, 136}, {128, 16, 1, 300, 8, 0, 7, 64}, {64, 7, 2, 520, 8, 130, 3, 264},
        {64, 2, 3, 257, 32, 0, 63, 520},  {96, 3, 2, 400, 8, 2, 7, 200},  {256, 2, 2, 700, 16, 5, 7, 144},
        {64, 4, 2, 2600, 8, 0, 1, 64},
    };
    for (const score_case &c : cases) check_scorers(dev, c);
    if (argc < 2 || strcmp(argv[1], "--check") != 0) {
        row_of_table("%s, %d SMs\n", dev->name, dev->n_sms);
        for (int n : {2048, 8192, 32768}) time_scorers(dev, n);
    }
    return finish(dev);
}
