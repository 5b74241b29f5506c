/* Attention and compression of the CUDA backend alone: correctness against float64 on small shapes,
 * then times. Exit code 1 if a check fails, 77 without a GPU.
 *
 * usage: bench_cuda_attention [--check]     --check: no times
 */
#include "cuda_alone.h"
#include "tests/unit/kv_fixture.h"

extern "C" {
#include "runner/base/float16.h"
}

/* --- checks -------------------------------------------------------------------- */

static double value(float x)
{
    return (double)x;
}

/* softmax(q k^T / sqrt(hd)) of one query over n keys at stride. */
template <typename K>
static std::vector<double> probabilities(const bf16 *q, const K *k, int64_t stride, int64_t n, int hd)
{
    std::vector<double> p((size_t)n);
    double max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < n; j++) {
        for (int i = 0; i < hd; i++) p[j] += value(q[i]) * value(k[j * stride + i]);
        p[j] /= sqrt((double)hd);
        max = std::max(max, p[j]);
    }
    for (double &x : p) sum += x = exp(x - max);
    for (double &x : p) x /= sum;
    return p;
}

static void check_prefill(fkv_device *dev, int hd, int group, int heads, int n)
{
    char what[128];
    open_device(dev, hd, group, heads, 4, n, 8);
    const int64_t per = fkv_head_rows(group) * hd, width = heads * per, cols = (int64_t)heads * group * hd;
    const fkv_attention_spec spec = spec_of(hd, group, heads);
    const std::vector<bf16> qkv = random_values((size_t)(n * width), 2.0f);
    const bf16 *d = to_device(qkv);
    for (int hopper = dev->attention->wgmma; hopper >= 0; hopper--) {
        bf16 *out = device_array<bf16>((size_t)(n * cols)), *tail = device_array<bf16>((size_t)(n * cols));
        dev->attention->wgmma = hopper;
        const fkv_pack pack = pack_of(n, 0);
        fkv_prefill_args args = prefill_args(&spec, &pack, d, out);
        cuda_prefill_attention(dev, &args);
        double worst = 0, bits = 0;
        const std::vector<bf16> got = to_host(out, (size_t)(n * cols));
        for (int64_t t = 0; t < n; t += t % 7 + 1) {
            for (int hq = 0; hq < heads * group; hq++) {
                const bf16 *head = qkv.data() + hq / group * per, *v = head + (group + 1) * hd;
                const std::vector<double> p =
                    probabilities(head + t * width + hq % group * hd, head + group * hd, width, t + 1, hd);
                for (int i = 0; i < hd; i++) {
                    double want = 0;
                    for (int64_t j = 0; j <= t; j++) want += p[j] * value(v[j * width + i]);
                    worst =
                        std::max(worst, fabs(want - value(got[t * cols + hq * hd + i])) / (0.1 + fabs(want)));
                }
            }
        }
        snprintf(what, sizeof what, "prefill %s hd %d group %d T %d: worst error", hopper ? "wgmma" : "mma",
                 hd, group, n);
        check(worst < 0.03, what, worst);
        args.last_only = true;
        args.out = tail;
        cuda_prefill_attention(dev, &args);
        const std::vector<bf16> last = to_host(tail, (size_t)cols);
        bits += memcmp(last.data(), got.data() + (n - 1) * cols, last.size() * sizeof(bf16)) != 0;
        snprintf(what, sizeof what, "prefill %s hd %d group %d T %d: the last row alone has its bits",
                 hopper ? "wgmma" : "mma", hd, group, n);
        check(bits == 0, what, bits);
    }
}

/* Budgets: more than T, a cut, less than the window; two owners; pages in a scrambled order. */
static void check_keep(fkv_device *dev, int hd, int group, int heads, int n, int window,
                       const std::vector<bf16> &qkv, const bf16 *d, const float *ds,
                       const std::vector<float> &scores)
{
    char what[128];
    const int64_t per = fkv_head_rows(group) * hd, width = heads * per, n_scores = n - window;
    const int pages = (n + FKV_PAGE_TOKENS - 1) / FKV_PAGE_TOKENS;
    std::vector<int32_t> budgets, table((size_t)(2 * heads * pages));
    std::vector<int16_t> owners; /* [heads][2 slots] */
    std::vector<int64_t> offset;
    for (int h = 0; h < heads; h++) {
        const int budget[] = {window + (n - window) / 3, n + 5, window / 2, window + 1, n - 1};
        budgets.push_back(budget[h % 5]);
        owners.push_back(0);
        owners.push_back((int16_t)(h % 2));
        offset.push_back((int64_t)h * pages);
    }
    for (size_t i = 0; i < table.size(); i++) table[i] = (int32_t)((i * 7 + 3) % table.size());
    if (table.size() % 7 == 0)
        for (size_t i = 0; i < table.size(); i++) table[i] = (int32_t)(table.size() - 1 - i);
    const size_t arena = table.size() * 2 * FKV_PAGE_TOKENS * (size_t)hd;
    bf16 *a0 = device_array<bf16>(arena), *a1 = device_array<bf16>(arena);
    void *arenas[2] = {a0, a1};
    fkv_keep_args args = {};
    const fkv_attention_spec spec = spec_of(hd, group, heads);
    const fkv_pack pack = pack_of(n, 1);
    args.pack = &pack;
    args.n_slots = 2;
    args.spec = &spec;
    args.n_heads = heads;
    args.score_window = window;
    args.qkv = d;
    args.scores = ds;
    args.score_stride = n_scores;
    args.owner = owners.data();
    args.kv = fkv_kv_view{arenas, to_device(table), (int64_t)heads * pages, offset.data(), budgets.data()};
    cuda_kv_keep(dev, &args);
    const std::vector<bf16> got[2] = {to_host(a0, arena), to_host(a1, arena)};
    double wrong = 0;
    for (int h = 0; h < heads; h++) {
        const int64_t budget = budgets[h], n_kept = std::min<int64_t>(n, budget);
        const int64_t n_top = n > budget && budget > window ? budget - window : 0;
        std::vector<int64_t> order((size_t)n_scores);
        for (int64_t j = 0; j < n_scores; j++) order[j] = j;
        const float *x = scores.data() + h * n_scores;
        std::stable_sort(order.begin(), order.end(), [x](int64_t a, int64_t b) { return x[a] > x[b]; });
        std::sort(order.begin(), order.begin() + n_top);
        for (int64_t t = 0; t < n_kept; t++) {
            const int64_t from = t < n_top ? order[t] : n - n_kept + t;
            const int64_t page = table[heads * pages + offset[h] + t / FKV_PAGE_TOKENS];
            for (int v = 0; v < 2; v++)
                wrong += memcmp(got[owners[2 * h + 1]].data() +
                                    ((page * 2 + v) * FKV_PAGE_TOKENS + t % FKV_PAGE_TOKENS) * hd,
                                qkv.data() + from * width + h * per + (group + v) * hd,
                                (size_t)hd * sizeof(bf16)) != 0;
        }
    }
    snprintf(what, sizeof what, "kv_keep hd %d group %d T %d window %d: wrong rows", hd, group, n, window);
    check(wrong == 0, what, wrong);
}

static void check_compress(fkv_device *dev, int hd, int group, int heads, int n, int window, int kernel)
{
    char what[128];
    open_device(dev, hd, group, heads, 2, n, window);
    const int64_t per = fkv_head_rows(group) * hd, width = heads * per, n_scores = n - window;
    std::vector<bf16> qkv = random_values((size_t)(n * width), 2.0f);
    const bf16 *d = to_device(qkv);
    float *ds = device_array<float>((size_t)(heads * n_scores));
    const fkv_pack pack = pack_of(n, 0);
    const fkv_attention_spec spec = spec_of(hd, group, heads);
    const fkv_prefill_args args = score_args(&spec, &pack, d, window, kernel, ds);
    cuda_key_scores(dev, &args);
    std::vector<float> scores = to_host(ds, (size_t)(heads * n_scores));
    double worst = 0;
    for (int h = 0; h < heads; h++) {
        std::vector<double> sum((size_t)n);
        for (int64_t t = n - window; t < n; t++)
            for (int g = 0; g < group; g++) {
                const bf16 *head = qkv.data() + h * per;
                const std::vector<double> p =
                    probabilities(head + t * width + g * hd, head + group * hd, width, t + 1, hd);
                for (int64_t j = 0; j <= t; j++) sum[j] += p[j] / (window * group);
            }
        for (int64_t j = 0; j < n_scores; j++) {
            double want = 0;
            for (int64_t i = std::max<int64_t>(0, j - kernel / 2);
                 i <= std::min(n_scores - 1, j + kernel / 2); i++)
                want = std::max(want, sum[i]);
            worst = std::max(worst, fabs(want - scores[h * n_scores + j]) / want);
        }
    }
    snprintf(what, sizeof what, "snapkv hd %d group %d T %d window %d: worst relative error", hd, group, n,
             window);
    check(worst < 1e-4, what, worst);

    check_keep(dev, hd, group, heads, n, window, qkv, d, ds, scores);
}

/* A rank that decodes: heads placements, every one over [begin, end) of the slots. */
struct decode_case {
    fkv_attention_spec spec;
    fkv_decode_args args;
    std::vector<fkv_decode_head> heads;
    std::vector<int32_t> budgets, pos, prompt, active, table;
    std::vector<int64_t> offset;
    fkv_weight weight;
    void *arena;
    size_t n_pages, page_bytes;
    int64_t tokens; /* attended to in a step */
};

/* Pages of random numbers, all of them finite, and scales. */
static void *filled_pages(fkv_kv_form form, size_t n, int hd)
{
    const size_t page = (size_t)fkv_kv_page_bytes(form, hd, sizeof(bf16)), vectors = 2 * FKV_PAGE_TOKENS;
    if (form == FKV_KV_PLAIN) return filled(n * page / sizeof(bf16));
    std::vector<uint8_t> pages(n * page);
    uint64_t x = 88172645463325252u + n;
    for (size_t p = 0; p < n; p++) {
        uint8_t *at = pages.data() + p * page;
        for (size_t i = 0; i < vectors * (size_t)hd; i++) {
            if (i % 8 == 0) x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            const uint8_t byte = (uint8_t)(x >> i % 8 * 8);
            at[i] = (byte & 0x7f) == 0x7f ? byte - 1 : byte;
        }
        for (size_t i = 0; i < vectors; i++) *fp8_scale(at, hd, (int)i) = (float)(1 + (i * 7 + p) % 5) / 1024;
    }
    return to_device(pages);
}

static void make_decode(fkv_device *dev, decode_case *c, int layer, const std::vector<int32_t> &budgets,
                        const std::vector<int32_t> &prompt, const std::vector<int32_t> &made, bool ragged,
                        fkv_kv_form form)
{
    const fkv_device_limits *l = &dev->limits;
    const int hd = l->head_dim, group = l->n_heads / l->n_kv_heads, heads = l->n_kv_heads,
              n_slots = l->n_slots;
    const int64_t per = fkv_head_rows(group) * hd;
    int64_t stride = 0;
    c->budgets.assign((size_t)(layer + 1) * heads, 0);
    c->offset.assign((size_t)(layer + 1) * heads, 0);
    c->tokens = 0;
    for (int h = 0; h < heads; h++) {
        c->budgets[(size_t)layer * heads + h] = budgets[h];
        c->offset[(size_t)layer * heads + h] = stride;
        stride += (l->max_positions + FKV_PAGE_TOKENS - 1) / FKV_PAGE_TOKENS;
    }
    c->table.assign((size_t)(stride * n_slots), 0);
    c->prompt = prompt;
    for (int s = 0; s < n_slots; s++) {
        c->pos.push_back(prompt[s] + made[s]);
        c->active.push_back(!ragged || s % 5 != 3);
    }
    c->n_pages = 0;
    for (int h = 0; h < heads; h++) {
        const int begin = ragged && h % 3 == 1 ? n_slots / 3 : 0,
                  end = ragged && h % 3 == 2 ? n_slots / 2 : n_slots;
        c->heads.push_back(fkv_decode_head{h, begin, end, &c->weight, h * per});
        for (int s = begin; s < end; s++) {
            const int64_t n = std::min(budgets[h], prompt[s]) + made[s] + 1;
            if (c->active[s]) c->tokens += n;
            for (int64_t p = 0; p < (n + FKV_PAGE_TOKENS - 1) / FKV_PAGE_TOKENS; p++)
                c->table[s * stride + c->offset[(size_t)layer * heads + h] + p] = (int32_t)c->n_pages++;
        }
    }
    for (int32_t &p : c->table) p = (int32_t)(c->n_pages - 1 - (size_t)p);
    c->weight = fkv_weight{};
    c->weight.n = heads * per;
    c->weight.k = l->hidden;
    c->weight.data = filled((size_t)(heads * per * l->hidden));
    c->page_bytes = (size_t)fkv_kv_page_bytes(form, hd, sizeof(bf16));
    c->arena = filled_pages(form, c->n_pages, hd);
    fkv_decode_args *a = &c->args;
    *a = fkv_decode_args{};
    a->layer = layer;
    a->n_slots = n_slots;
    a->hidden = l->hidden;
    c->spec = spec_of(hd, group, heads);
    a->spec = &c->spec;
    a->heads = c->heads.data();
    a->n_heads_served = heads;
    a->slots.pos = to_device(c->pos);
    a->slots.rope0 = to_device(std::vector<int32_t>((size_t)n_slots, 0));
    a->slots.prompt_len = to_device(c->prompt);
    a->slots.active = to_device(c->active);
    a->kv = fkv_kv_view{&c->arena, to_device(c->table), stride, c->offset.data(), c->budgets.data(), form};
    a->x = fkv_acts{filled((size_t)(n_slots * l->hidden)), l->hidden, NULL};
    a->q = device_array<bf16>((size_t)(heads * n_slots * per));
    a->out = device_array<bf16>((size_t)((int64_t)n_slots * l->n_heads * hd));
    fkv_err err = {};
    if (cuda_prepare_decode(dev, a, &err)) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
}

static const char *form_name(fkv_kv_form form)
{
    return form == FKV_KV_FP8 ? " fp8" : "";
}

/* Vector i of a page on the host, as numbers. */
static void read_vector(const std::vector<uint8_t> &pages, const decode_case &c, int32_t page, int i,
                        float *to)
{
    const int hd = c.spec.head_dim;
    const uint8_t *at = pages.data() + (size_t)page * c.page_bytes;
    if (c.args.kv.form == FKV_KV_PLAIN) {
        for (int k = 0; k < hd; k++) to[k] = (float)value(((const bf16 *)at)[i * hd + k]);
        return;
    }
    float scale;
    memcpy(&scale, fp8_scale((void *)at, hd, i), sizeof scale);
    for (int k = 0; k < hd; k++) to[k] = (float)(e4m3_value(at[i * hd + k]) * (double)scale);
}

/* The same bits however chunks are shared out: one CTA an entry, fewer CTAs, fewer pages in flight
 * as on other GPUs. */
static void check_schedules(fkv_device *dev, const fkv_decode_args &args, const std::vector<bf16> &out)
{
    char what[128];
    const cuda_attention a = *dev->attention;
    const int n_sms = dev->n_sms, shared_bytes = dev->shared_bytes;
    for (int way = 0; way < 5; way++) {
        *dev->attention = a;
        dev->n_sms = way == 1 ? 1 : way == 2 ? 7 : n_sms;
        if (way == 0) dev->attention->max_parts = 0;
        if (way == 1) dev->attention->max_parts = 9;
        if (way >= 3) dev->shared_bytes = (way == 3 ? 163 : 99) << 10;
        must(cudaMemsetAsync(args.out, 0, out.size() * sizeof(bf16), dev->stream));
        cuda_decode_begin(dev, &args.slots);
        cuda_decode_qkv(dev, &args);
        cuda_decode_attention(dev, &args);
        const std::vector<bf16> again = to_host((const bf16 *)args.out, out.size());
        snprintf(what, sizeof what, "decode%s hd %d group %d: bits of schedule %d", form_name(args.kv.form),
                 args.spec->head_dim, args.spec->group, way);
        check(memcmp(again.data(), out.data(), out.size() * sizeof(bf16)) == 0, what, 0);
    }
    *dev->attention = a;
    dev->n_sms = n_sms;
    dev->shared_bytes = shared_bytes;
}

static void check_decode(fkv_device *dev, int hd, int group, fkv_kv_form form)
{
    char what[128];
    enum { HEADS = 4, SLOTS = 11 };
    open_device(dev, hd, group, HEADS, SLOTS, 2048, 8);
    const std::vector<int32_t> budgets = {300, 2000, 64, 1};
    const std::vector<int32_t> prompt = {1, 126, 127, 128, 254, 255, 256, 257, 511, 1500, 2048};
    const std::vector<int32_t> made = {0, 0, 0, 0, 1, 0, 0, 0, 3, 100, 700};
    decode_case c;
    make_decode(dev, &c, 2, budgets, prompt, made, true, form);
    cuda_decode_begin(dev, &c.args.slots);
    cuda_decode_qkv(dev, &c.args);
    cuda_decode_attention(dev, &c.args);
    const int64_t per = fkv_head_rows(group) * hd, row = (int64_t)HEADS * group * hd;
    const std::vector<bf16> q = to_host((const bf16 *)c.args.q, (size_t)(HEADS * SLOTS * per));
    const std::vector<uint8_t> kv = to_host((const uint8_t *)c.arena, c.n_pages * c.page_bytes);
    const std::vector<bf16> out = to_host((const bf16 *)c.args.out, (size_t)(SLOTS * row));
    const std::vector<bf16> x = to_host((const bf16 *)c.args.x.data, (size_t)(SLOTS * dev->limits.hidden));
    const std::vector<bf16> w = to_host(c.weight.data, (size_t)(c.weight.n * c.weight.k));
    double worst = 0, append = 0, touched = 0;
    for (int h = 0; h < HEADS; h++) {
        for (int s = 0; s < SLOTS; s++) {
            const bf16 *o = out.data() + s * row + (int64_t)h * group * hd;
            if (s < c.heads[h].begin || s >= c.heads[h].end || !c.active[s]) {
                for (int i = 0; i < group * hd; i++) touched += value(o[i]) != 0;
                continue;
            }
            const int64_t n = std::min(budgets[h], prompt[s]) + made[s] + 1;
            const int32_t *pages = c.table.data() + s * c.args.kv.slot_stride + c.offset[2 * HEADS + h];
            std::vector<float> k((size_t)(n * hd)), v((size_t)(n * hd));
            for (int64_t t = 0; t < n; t++) {
                const int32_t page = pages[t / FKV_PAGE_TOKENS], i = (int32_t)(t % FKV_PAGE_TOKENS);
                read_vector(kv, c, page, i, &k[t * hd]);
                read_vector(kv, c, page, FKV_PAGE_TOKENS + i, &v[t * hd]);
            }
            for (int g = 0; g < group; g++) {
                const std::vector<double> p =
                    probabilities(q.data() + (h * SLOTS + s) * per + g * hd, k.data(), hd, n, hd);
                for (int i = 0; i < hd; i++) {
                    double want = 0, sizes = 0; /* probabilities and the sum are rounded to bf16 */
                    for (int64_t t = 0; t < n; t++) {
                        want += p[t] * value(v[t * hd + i]);
                        sizes += p[t] * fabs(value(v[t * hd + i]));
                    }
                    worst = std::max(worst, fabs(want - value(o[g * hd + i])) / (0.1 + sizes));
                }
            }
            std::vector<double> kn((size_t)hd), vn((size_t)hd); /* the new token's */
            for (int i = 0; i < hd; i++)
                for (int j = 0; j < c.weight.k; j++) {
                    kn[i] +=
                        value(x[s * c.weight.k + j]) * value(w[(h * per + group * hd + i) * c.weight.k + j]);
                    vn[i] += value(x[s * c.weight.k + j]) *
                             value(w[(h * per + (group + 1) * hd + i) * c.weight.k + j]);
                }
            for (int i = 0; i < hd / 2; i++) {
                const double angle = (double)((float)c.pos[s] * inv_freq[i]), a = kn[i], b = kn[i + hd / 2];
                kn[i] = a * cos(angle) - b * sin(angle);
                kn[i + hd / 2] = b * cos(angle) + a * sin(angle);
            }
            for (int i = 0; i < hd; i++) {
                append = std::max(append, fabs(kn[i] - value(k[(n - 1) * hd + i])) / (5 + fabs(kn[i])));
                append = std::max(append, fabs(vn[i] - value(v[(n - 1) * hd + i])) / (5 + fabs(vn[i])));
            }
        }
    }
    const char *name = form_name(form);
    snprintf(what, sizeof what, "decode%s hd %d group %d: worst error", name, hd, group);
    check(worst < 0.01, what, worst);
    snprintf(what, sizeof what, "decode%s hd %d group %d: worst error of the appended K and V", name, hd,
             group);
    check(append < (form == FKV_KV_FP8 ? 0.07 : 0.02), what, append);
    snprintf(what, sizeof what, "decode%s hd %d group %d: values written for slots of others", name, hd,
             group);
    check(touched == 0, what, touched);

    check_schedules(dev, c.args, out);
}

/* --- times --------------------------------------------------------------------- */

static double copy_bandwidth(fkv_device *dev)
{
    const size_t bytes = (size_t)2 << 30;
    char *a = device_array<char>(bytes), *b = device_array<char>(bytes);
    const double s = seconds_of(
        dev, 4, [&](int) { must(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, dev->stream)); });
    return 2.0 * (double)bytes / s;
}

/* One side of projections: rows of k numbers, bf16 or FP8's codes with a scale each, and their values. */
struct operand {
    void *data;
    float *scale;
    std::vector<double> values;

    fkv_acts rows(int64_t k) const
    {
        return fkv_acts{data, k, scale};
    }
};

/* FP8: rows lie `pitch` bytes apart. */
static operand make_operand(int64_t n, int64_t k, bool fp8, int64_t pitch)
{
    operand o = {};
    o.values.resize((size_t)(n * k));
    if (!fp8) {
        o.data = filled((size_t)(n * k));
        const std::vector<bf16> host = to_host((const bf16 *)o.data, (size_t)(n * k));
        for (size_t i = 0; i < host.size(); i++) o.values[i] = value(host[i]);
        return o;
    }
    std::vector<uint8_t> codes((size_t)(n * pitch));
    std::vector<float> scales((size_t)n);
    for (int64_t i = 0; i < n; i++) {
        scales[(size_t)i] = 0.001f * (1 + uniform() / 2);
        for (int64_t j = 0; j < k; j++) {
            const int code = (int)((uniform() + 1) * 63.49f);
            codes[(size_t)(i * pitch + j)] = (uint8_t)(code | (uniform() < 0 ? 128 : 0));
            o.values[(size_t)(i * k + j)] =
                (double)fkv_f32_from_e4m3(codes[(size_t)(i * pitch + j)]) * scales[(size_t)i];
        }
    }
    o.data = to_device(codes);
    o.scale = to_device(scales);
    return o;
}

/* Placements of a decode step's projections, weights of [per, k] one after the other, from row0 on. */
static cuda_decode_head *placements(std::vector<cuda_decode_head> *heads, const operand &w, int64_t row0,
                                    int per, int64_t k)
{
    for (size_t i = 0; i < heads->size(); i++) {
        const int64_t row = row0 + (int64_t)i * per;
        (*heads)[i].weight = (const char *)w.data + row * k * (w.scale ? 1 : 2);
        (*heads)[i].scale = w.scale ? w.scale + row : NULL;
    }
    return to_device(*heads);
}

/* Against float64; rows outside of the range stay as they were; a row's bits don't depend on which
 * heads and rows are beside it. */
static void check_project(fkv_device *dev, int n_slots, int per, int64_t k, bool fp8)
{
    enum { HEADS = 3 };
    char what[128];
    const int splits = cuda_qkv_splits(k), ranges[][2] = {{0, n_slots}, {n_slots / 3, n_slots}, {0, 1}};
    const operand x = make_operand(n_slots, k, fp8, 2 * k), w = make_operand((int64_t)HEADS * per, k, fp8, k);
    std::vector<float> whole;
    double worst = 0, touched = 0, differ = 0;
    for (const auto &range : ranges) {
        std::vector<cuda_decode_head> heads(HEADS);
        for (auto &h : heads) h = cuda_decode_head{0, range[0], range[1], 0, 0, NULL, NULL, NULL};
        const size_t all = (size_t)HEADS * splits * n_slots * per;
        float *parts = device_array<float>(all);
        must(cudaMemsetAsync(parts, 0xff, all * sizeof *parts, dev->stream));
        /* All heads, then the middle one alone, into the first one's place. */
        const cuda_decode_head *at = placements(&heads, w, 0, per, k);
        cuda_decode_project(dev, at, HEADS, x.rows(k), k, n_slots, per, parts);
        const std::vector<float> got = to_host((const float *)parts, all);
        cuda_decode_project(dev, at + 1, 1, x.rows(k), k, n_slots, per, parts);
        const std::vector<float> alone = to_host((const float *)parts, all / HEADS);
        if (whole.empty()) whole = got;
        for (int h = 0; h < HEADS; h++) {
            for (int s = 0; s < n_slots; s++) {
                const bool mine = s >= range[0] && s < range[1];
                for (int c = 0; c < per; c++) {
                    double sum = 0, want = 0, scale = 0;
                    for (int i = 0; i < splits; i++) {
                        const size_t e = (((size_t)h * splits + i) * n_slots + s) * per + c;
                        touched += !mine && !isnan(got[e]);
                        differ += mine && memcmp(&got[e], &whole[e], sizeof got[e]) != 0;
                        if (h == 1)
                            differ += mine && memcmp(&alone[e - all / HEADS], &got[e], sizeof got[e]) != 0;
                        sum += got[e];
                    }
                    if (!mine || (c * 31 + s * 7 + h) % 61) continue;
                    for (int64_t j = 0; j < k; j++) {
                        const double p = x.values[s * k + j] * w.values[((int64_t)h * per + c) * k + j];
                        want += p;
                        scale += fabs(p);
                    }
                    const double error = fabs(sum - want) / scale;
                    worst = error > worst || isnan(error) ? error : worst;
                }
            }
        }
    }
    snprintf(what, sizeof what, "project %d slots, %d columns, k %lld%s", n_slots, per, (long long)k,
             fp8 ? ", FP8" : "");
    check(worst < 1e-6, what, worst);
    check(touched == 0 && differ == 0, what, touched + differ);
}

/* The projections of one layer, weights that change so that L2 does not hold them. */
static void time_project(fkv_device *dev, const char *name, int n_heads, int n_slots, int per, int64_t k,
                         bool fp8, double bandwidth)
{
    const double bytes = (fp8 ? 1.0 : 2.0) * n_heads * per * (double)k;
    const int layers = (int)(400e6 / bytes) + 1;
    const size_t rows = (size_t)layers * n_heads * per;
    const operand x = {filled((size_t)(n_slots * k)), fp8 ? device_array<float>((size_t)n_slots) : NULL, {}},
                  w = {filled(rows * k / (fp8 ? 2 : 1)), fp8 ? device_array<float>(rows) : NULL, {}};
    float *parts = device_array<float>((size_t)n_heads * cuda_qkv_splits(k) * n_slots * per);
    std::vector<const cuda_decode_head *> at;
    for (int l = 0; l < layers; l++) {
        std::vector<cuda_decode_head> heads((size_t)n_heads);
        for (auto &h : heads) h = cuda_decode_head{0, 0, n_slots, 0, 0, NULL, NULL, NULL};
        at.push_back(placements(&heads, w, (int64_t)l * n_heads * per, per, k));
    }
    const double s = seconds_of(dev, 4 * layers, [&](int i) {
        cuda_decode_project(dev, at[i % layers], n_heads, x.rows(k), k, n_slots, per, parts);
    });
    row_of_table("project %-28s %4s %8.1f us %8.1f MB %6.2f TB/s %5.1f%% of copy\n", name,
                 fp8 ? "FP8" : "bf16", s * 1e6, bytes * 1e-6, bytes / s * 1e-12, 100 * bytes / s / bandwidth);
}

/* layers cycle, so that no step finds the last one's pages in L2. uneven: budgets and lengths differ 10x. */
static void time_decode(fkv_device *dev, const char *name, int hd, int group, int heads, int n_slots,
                        int tokens, int layers, bool uneven, fkv_kv_form form, double bandwidth)
{
    open_device(dev, hd, group, heads, n_slots, 4 * tokens, 8);
    std::vector<decode_case> cases((size_t)layers);
    for (int l = 0; l < layers; l++) {
        std::vector<int32_t> budgets, prompt, made((size_t)n_slots, 0);
        for (int h = 0; h < heads; h++) {
            const double x = heads > 1 ? (double)((h + l) % heads) / (heads - 1) : 0.5;
            budgets.push_back(uneven ? (int32_t)(tokens * (0.19 + 1.62 * x * x * x)) : tokens);
        }
        for (int s = 0; s < n_slots; s++)
            prompt.push_back(uneven ? (int32_t)(tokens * (0.4 + 3.6 * (s * 37 % n_slots) / n_slots))
                                    : tokens - 1);
        make_decode(dev, &cases[l], l, budgets, prompt, made, false, form);
    }
    cuda_decode_begin(dev, &cases[0].args.slots); /* all layers' slots are the same */
    double bytes = 0;
    for (const decode_case &c : cases)
        bytes += (double)c.tokens * (double)fkv_kv_token_bytes(form, hd, sizeof(bf16)) / layers;
    const double both = seconds_of(dev, 2 * layers, [&](int i) {
        cuda_decode_qkv(dev, &cases[i % layers].args);
        cuda_decode_attention(dev, &cases[i % layers].args);
    });
    const double qkv =
        seconds_of(dev, 2 * layers, [&](int i) { cuda_decode_qkv(dev, &cases[i % layers].args); });
    const double s = both - qkv;
    row_of_table("decode%-4s %-34s %8.1f us (append %5.1f) %8.1f MB %6.2f TB/s %5.1f%% of copy\n",
                 form_name(form), name, s * 1e6, qkv * 1e6, bytes * 1e-6, bytes / s * 1e-12,
                 100 * bytes / s / bandwidth);
}

static void time_prefill(fkv_device *dev, int n, int hd)
{
    enum { HEADS = 8, GROUP = 4, WINDOW = 32 };
    open_device(dev, hd, GROUP, HEADS, 1, n, WINDOW);
    const int64_t width = HEADS * fkv_head_rows(GROUP) * hd, cols = HEADS * GROUP * hd;
    bf16 *qkv = filled((size_t)(n * width)), *out = device_array<bf16>((size_t)(n * cols));
    const double flop = 2.0 * n * ((double)n + 1) * hd * HEADS * GROUP;
    const fkv_pack pack = pack_of(n, 0);
    const fkv_attention_spec spec = spec_of(hd, GROUP, HEADS);
    const fkv_prefill_args attend = prefill_args(&spec, &pack, qkv, out);
    for (int hopper = dev->attention->wgmma; hopper >= 0; hopper--) {
        dev->attention->wgmma = hopper;
        const double s = seconds_of(dev, 2, [&](int) { cuda_prefill_attention(dev, &attend); });
        row_of_table("prefill %-5s hd %3d T %6d             %10.1f us %8.1f TFLOP/s\n",
                     hopper ? "wgmma" : "mma", hd, n, s * 1e6, flop / s * 1e-12);
    }
    float *scores = device_array<float>((size_t)n * HEADS);
    const fkv_prefill_args score = score_args(&spec, &pack, qkv, WINDOW, 7, scores);
    const double snap = seconds_of(dev, 2, [&](int) { cuda_key_scores(dev, &score); });
    std::vector<int32_t> budgets(HEADS, 1024), table(HEADS * 8);
    std::vector<int16_t> owners(HEADS, 0);
    std::vector<int64_t> offset;
    for (int h = 0; h < HEADS; h++) offset.push_back(h * 8);
    for (size_t i = 0; i < table.size(); i++) table[i] = (int32_t)i;
    void *arena = device_array<bf16>(table.size() * 2 * FKV_PAGE_TOKENS * (size_t)hd);
    fkv_keep_args args = {};
    args.pack = &pack;
    args.n_slots = 1;
    args.spec = &spec;
    args.n_heads = HEADS;
    args.score_window = WINDOW;
    args.qkv = qkv;
    args.scores = scores;
    args.score_stride = n - WINDOW;
    args.owner = owners.data();
    args.kv = fkv_kv_view{&arena, to_device(table), (int64_t)table.size(), offset.data(), budgets.data()};
    const double keep = seconds_of(dev, 2, [&](int) { cuda_kv_keep(dev, &args); });
    args.kv.form = FKV_KV_FP8; /* a smaller page in the same arena */
    const double fp8 = seconds_of(dev, 2, [&](int) { cuda_kv_keep(dev, &args); });
    row_of_table("compress      hd %3d T %6d: scores %8.1f us, keep 1024 %8.1f us, as fp8 %8.1f us\n", hd, n,
                 snap * 1e6, keep * 1e6, fp8 * 1e6);
}

int main(int argc, char **argv)
{
    fkv_device *dev = first_device();
    if (!dev) return 77;

    const int shapes[][2] = {{128, 4}, {128, 1}, {128, 8}, {128, 12}, {128, 16}, {64, 2}, {64, 7}, {64, 16}};
    for (const auto &s : shapes) {
        for (int n : {1, 64, 129, 300, 520}) check_prefill(dev, s[0], s[1], 2, n);
        check_compress(dev, s[0], s[1], 5, 700, 32, 7);
        check_compress(dev, s[0], s[1], 3, 131, 8, 5);
        check_decode(dev, s[0], s[1], FKV_KV_PLAIN);
        check_decode(dev, s[0], s[1], FKV_KV_FP8);
    }
    for (const int hd : {96, 256})
        for (const fkv_kv_form form : {FKV_KV_PLAIN, FKV_KV_FP8}) check_decode(dev, hd, 4, form);
    for (const int slots : {1, 17, 32, 33, 64, 65, 128, 200})
        for (const int per : {192, 256, 768})
            for (const int k : {8, 64, 200, 1024, 4096})
                if (slots < 40 || k < 2000 || per == 768) {
                    check_project(dev, slots, per, k, false);
                    check_project(dev, slots, per, (k + 15) / 16 * 16, true);
                }
    if (argc < 2 || strcmp(argv[1], "--check") != 0) {
        const double bandwidth = copy_bandwidth(dev);
        row_of_table("%s, %d SMs, copy %.2f TB/s\n", dev->name, dev->n_sms, bandwidth * 1e-12);
        for (const fkv_kv_form form : {FKV_KV_PLAIN, FKV_KV_FP8}) {
            time_decode(dev, "8 heads 64 slots 1024", 128, 4, 8, 64, 1024, 4, false, form, bandwidth);
            time_decode(dev, "8 heads 64 slots 4096", 128, 4, 8, 64, 4096, 2, false, form, bandwidth);
            time_decode(dev, "8 heads 64 slots, uneven 10x", 128, 4, 8, 64, 1024, 4, true, form, bandwidth);
            time_decode(dev, "1 head 64 slots 1024", 128, 8, 1, 64, 1024, 16, false, form, bandwidth);
            time_decode(dev, "8 heads 8 slots 32k", 128, 4, 8, 8, 32768, 2, false, form, bandwidth);
            time_decode(dev, "8 heads 64 slots 1024 hd 64", 64, 4, 8, 64, 1024, 4, false, form, bandwidth);
            time_decode(dev, "8 heads 64 slots 1024 hd 256", 256, 4, 8, 64, 1024, 2, false, form, bandwidth);
            time_decode(dev, "8 heads 64 slots 1024 group 16", 128, 16, 8, 64, 1024, 4, false, form,
                        bandwidth);
        }
        for (const bool fp8 : {false, true}) {
            for (const int heads : {1, 2, 3}) {
                char name[64];
                snprintf(name, sizeof name, "70B, %d of its heads, 128 slots", heads);
                time_project(dev, name, heads, 128, 1280, 8192, fp8, bandwidth);
            }
            time_project(dev, "70B, 1 head, 64 slots", 1, 64, 1280, 8192, fp8, bandwidth);
            time_project(dev, "8B, 1 head, 64 slots", 1, 64, 768, 4096, fp8, bandwidth);
            time_project(dev, "8B, 8 heads, 64 slots", 8, 64, 768, 4096, fp8, bandwidth);
            time_project(dev, "8B, 8 heads, 16 slots", 8, 16, 768, 4096, fp8, bandwidth);
        }
        for (int n : {2048, 8192, 32768}) time_prefill(dev, n, 128);
        time_prefill(dev, 8192, 64);
    }
    return finish(dev);
}
