/* Compression and sampling, through the table, against plain references in double. */
#include "backend_fixture.h"

enum { MAX_HD = 256, GROUP = 2, HEADS = 3, WINDOW = 8, KERNEL = 7, PROMPT = 300, VOCAB = 50, SLOTS = 4 };
enum { KINDS = 9, ROUNDS = 8 };
static const int head_dims[] = {64, 96, 128, MAX_HD};
enum { N_HEAD_DIMS = sizeof head_dims / sizeof *head_dims };

static fkv_attention_spec spec_of(int hd)
{
    return plain_spec(hd, GROUP, HEADS);
}

static fkv_device_limits limits_of(int vocab, const fkv_attention_spec *spec)
{
    return (fkv_device_limits){.n_slots = SLOTS,
                               .max_prompt = PROMPT,
                               .max_positions = 1024,
                               .hidden = 32,
                               .n_heads = spec->group * HEADS,
                               .n_kv_heads = HEADS,
                               .head_dim = spec->head_dim,
                               .vocab = vocab,
                               .max_local_heads = HEADS,
                               .window = WINDOW,
                               .n_ropes = FIXTURE_ROPES,
                               .layers = spec,
                               .n_layers = 1};
}

static bool can_score(const fkv_attention_spec *spec, fkv_scorer scorer)
{
    fkv_device_limits limits = limits_of(VOCAB, spec);
    fkv_err err = {0};
    limits.scorers = fkv_scorer_bit(scorer);
    return !b->supports(&limits, &(fkv_group){.n_devices = 1}, &err);
}

/* For such a layer, and for critical's way of keeping where that can be. */
static void open_layer(int vocab, const fkv_attention_spec *spec)
{
    fkv_device_limits limits = limits_of(vocab, spec);
    if (can_score(spec, FKV_SCORER_CRITICAL)) limits.scorers = fkv_scorer_bit(FKV_SCORER_CRITICAL);
    device_open(limits);
}

static void open_device(int vocab)
{
    const fkv_attention_spec spec = spec_of(64);
    open_layer(vocab, &spec);
}

static void reference_scores(const fkv_attention_spec *spec, const float *qkv, int64_t n, int h,
                             double *pooled)
{
    const int group = spec->group, hd = spec->head_dim;
    const int64_t per = fkv_head_rows(group) * hd, width = HEADS * per;
    double *sum = calloc((size_t)n, sizeof *sum), *p = calloc((size_t)n, sizeof *p), q[MAX_HD];
    for (int64_t t = n - WINDOW; t < n; t++) {
        for (int g = 0; g < group; g++) {
            for (int i = 0; i < hd; i++) q[i] = (double)qkv[t * width + h * per + g * hd + i];
            reference_softmax(spec, q, qkv + h * per + group * hd, width, t + 1, p);
            for (int64_t j = 0; j <= t; j++) sum[j] += p[j] / (WINDOW * group);
        }
    }
    for (int64_t j = 0; j < n - WINDOW; j++) {
        pooled[j] = 0;
        for (int64_t i = j - KERNEL / 2; i <= j + KERNEL / 2; i++)
            if (i >= 0 && i < n - WINDOW) pooled[j] = fmax(pooled[j], sum[i]);
    }
    free(sum), free(p);
}

static void check_scores(const fkv_attention_spec *spec)
{
    const int64_t lengths[] = {WINDOW + 1, WINDOW + 3, 100, PROMPT};
    const int group = spec->group, hd = spec->head_dim;
    const size_t all = (size_t)(PROMPT * HEADS * fkv_head_rows(group) * hd);
    float *qkv = host_floats(all), *got = malloc(sizeof *got * HEADS * PROMPT);
    fill_uniform(qkv, all, 2);
    void *dq = activations(qkv, all), *out = activations(NULL, all);
    float *ds = device_memory(sizeof *got * HEADS * PROMPT, NULL);
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        const int64_t n = lengths[l];
        double want[PROMPT];
        packed p;
        pack_prompts(&p, &n, NULL, 1);
        const fkv_prefill_args args = {.pack = &p.pack,
                                       .spec = spec,
                                       .n_heads = HEADS,
                                       .qkv = dq,
                                       .out = out,
                                       .out_stride = (int64_t)HEADS * group * hd,
                                       .min_tokens = WINDOW,
                                       .score_window = WINDOW,
                                       .score_kernel = KERNEL,
                                       .scores = ds,
                                       .score_stride = PROMPT};
        b->prefill_attention(dev, &args);
        b->key_scores(dev, &args);
        fetch(got, ds, sizeof *got * HEADS * PROMPT);
        for (int h = 0; h < HEADS; h++) {
            reference_scores(spec, qkv, n, h, want);
            for (int64_t j = 0; j < n - WINDOW; j++)
                assert_near(got[h * PROMPT + j], want[j], 1e-6, is_half() ? 1e-3 : 0, "score", h, j);
        }
    }
    free(qkv), free(got);
}

static void snapkv_scores_follow_the_definition(void **state)
{
    (void)state;
    static const struct {
        int hd, group, window;
        float scale, softcap;
    } cases[] = {{64, 1, 0, 0, 0},        {64, 3, 0, 0, 0},    {64, GROUP, 0, 0, 0},   {64, 7, 0, 0, 0},
                 {64, 12, 0, 0, 0},       {64, 16, 0, 0, 0},   {96, 1, 0, 0, 0},       {96, 5, 0, 0, 0},
                 {128, 4, 0, 0, 0},       {256, 2, 0, 0, 0},   {256, 9, 0, 0, 0},      {64, 3, 0, 0.25f, 0},
                 {64, 3, 0, 0, 0.5f},     {96, 3, 0, 0, 0.5f}, {128, 3, 0, 64, 5},     {256, 3, 0, 0, 50},
                 {64, 3, 1, 0, 0},        {64, 3, 65, 0, 0},   {96, 3, 129, 0.25f, 1}, {128, 3, 100, 0, 0},
                 {256, 2, 200, 0.25f, 2}, {256, 2, 3, 0, 0},   {64, 2, 1000, 0, 0}};
    device_close();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fkv_attention_spec spec = plain_spec(cases[i].hd, cases[i].group, HEADS);
        if (cases[i].scale > 0) spec.scale = cases[i].scale;
        spec.softcap = cases[i].softcap;
        spec.window = cases[i].window; /* keys before the scoring queries' windows get nothing */
        open_layer(VOCAB, &spec);
        check_scores(&spec);
        device_close();
    }
    open_device(VOCAB);
}

/* Of the positions [from, to) that come before i in the order of x: those that mark has not (NULL: none). */
static int64_t rank_of(const float *x, const bool *mark, int64_t from, int64_t to, int64_t i)
{
    int64_t before = 0;
    for (int64_t j = from; j < to; j++)
        before += !(mark && mark[j]) && (x[j] > x[i] || (x[j] == x[i] && j < i));
    return before;
}

/* What of a prompt's n tokens a head keeps beside those that it chooses by scores, and by second (or NULL).
 */
typedef struct keep_case {
    int64_t n, budget;
    int sinks;
    bool last; /* its layer has a window: the last ones */
} keep_case;

/* Positions that a head keeps, by the definition and the slow way. */
static int reference_kept(const keep_case *c, const float *scores, const float *second, int32_t *out)
{
    const int64_t n = c->n, from = c->sinks, to = n - WINDOW, room = c->budget - WINDOW;
    const int64_t sinks = c->last || room < 0 ? 0 : room < c->sinks ? room : c->sinks;
    const int64_t end = c->budget < WINDOW || c->last ? c->budget : WINDOW, top = room - sinks;
    const int64_t first = !second ? top : top / 2 > 1 ? top / 2 : 1;
    bool mark[PROMPT] = {false};
    int m = 0;
    for (int64_t i = from; !c->last && top > 0 && i < to; i++)
        mark[i] = rank_of(scores, NULL, from, to, i) < first;
    for (int64_t i = 0; i < n; i++) {
        bool kept = n <= c->budget || i < sinks || i >= n - end || mark[i];
        if (!kept && second && !c->last && top > first && i >= from && i < to)
            kept = rank_of(second, mark, from, to, i) < top - first;
        if (kept) out[m++] = (int32_t)i;
    }
    return m;
}

static void check_keep(const fkv_attention_spec *spec, int sinks, bool with_second)
{
    enum { PAGES = 3, N = 290 };
    const size_t hd = (size_t)spec->head_dim, per = (size_t)fkv_head_rows(GROUP) * hd, width = HEADS * per;
    float *qkv = malloc(sizeof *qkv * PROMPT * width), *scores = malloc(sizeof *scores * 2 * HEADS * PROMPT);
    const int budget_sets[][HEADS] = {
        {10, 150, 9}, {N, N + 1, N - 1}, {8, 200, 1}, {5000, 12, 129}, {13, 14, 15}};
    const size_t page = 2 * FKV_PAGE_TOKENS * hd;
    float *arena = malloc(sizeof *arena * page * HEADS * PAGES);
    void *dq = activations(NULL, PROMPT * width);
    float *ds = device_memory(sizeof *scores * 2 * HEADS * PROMPT, NULL), *second = scores + HEADS * PROMPT;
    void *da = activations(NULL, page * HEADS * PAGES);
    int32_t table[HEADS * PAGES];
    const int16_t owner[HEADS] = {0};
    int64_t offset[HEADS];
    const int64_t length = N;
    packed p;
    pack_prompts(&p, &length, NULL, 1);
    for (int i = 0; i < HEADS * PAGES; i++) table[i] = HEADS * PAGES - 1 - i; /* pages lie backwards */
    for (int h = 0; h < HEADS; h++) offset[h] = h * PAGES;
    const int32_t *dt = device_memory(sizeof table, table);
    for (size_t s = 0; s < sizeof budget_sets / sizeof *budget_sets; s++) {
        fill_uniform(qkv, PROMPT * width, 1);
        /* few different values: max-pooling makes ties common */
        for (int i = 0; i < 2 * HEADS * PROMPT; i++)
            scores[i] = (float)(fkv_random_u64(9, s, (uint64_t)i) % 6) - 2;
        put(dq, qkv, PROMPT * width);
        b->upload(dev, ds, scores, sizeof *scores * 2 * HEADS * PROMPT);
        const fkv_keep_args args = {.pack = &p.pack,
                                    .spec = spec,
                                    .n_heads = HEADS,
                                    .score_window = WINDOW,
                                    .sinks = sinks,
                                    .qkv = dq,
                                    .scores = ds,
                                    .second = with_second ? ds + HEADS * PROMPT : NULL,
                                    .score_stride = PROMPT,
                                    .owner = owner,
                                    .n_slots = 1,
                                    .kv = {&da, dt, HEADS * PAGES, offset, budget_sets[s]}};
        b->kv_keep(dev, &args);
        get(arena, da, page * HEADS * PAGES);
        for (int h = 0; h < HEADS; h++) {
            int32_t want[N];
            const keep_case c = {N, budget_sets[s][h], sinks, spec->window > 0};
            const int n =
                reference_kept(&c, scores + h * PROMPT, with_second ? second + h * PROMPT : NULL, want);
            assert_int_equal(n, budget_sets[s][h] < N ? budget_sets[s][h] : N);
            for (int i = 0; i < n; i++) {
                const float *k = arena + (size_t)table[h * PAGES + i / FKV_PAGE_TOKENS] * page +
                                 (size_t)(i % FKV_PAGE_TOKENS) * hd;
                const float *from = qkv + (size_t)want[i] * width + (size_t)h * per + GROUP * hd;
                assert_memory_equal(k, from, hd * sizeof *k);
                assert_memory_equal(k + FKV_PAGE_TOKENS * hd, from + hd, hd * sizeof *k);
            }
        }
    }
    free(qkv), free(scores), free(arena);
}

/* Heads of every size; with a window of their layer, or 0. */
static void check_keeps(int window)
{
    device_close();
    for (int i = 0; i < N_HEAD_DIMS; i++) {
        fkv_attention_spec spec = spec_of(head_dims[i]);
        spec.window = window;
        open_layer(VOCAB, &spec);
        check_keep(&spec, 0, false);
        check_keep(&spec, 5, false);
        if (can_score(&spec, FKV_SCORER_CRITICAL)) check_keep(&spec, i % 2 * 5, true);
        device_close();
    }
    open_device(VOCAB);
}

static void a_head_keeps_sinks_its_best_scores_and_the_window_in_order(void **state)
{
    (void)state;
    check_keeps(0);
}

/* The budgets are below the window, too. */
static void a_head_of_a_layer_with_a_window_keeps_its_last_tokens(void **state)
{
    (void)state;
    check_keeps(100);
}

typedef struct sampling_state {
    fkv_slots slots;
    int32_t ints[8][SLOTS];
} sampling_state;

static const fkv_token_rules no_rules;

static sampling_state new_slots(void)
{
    sampling_state s = {0};
    int32_t **p[] = {&s.slots.token,   &s.slots.pos,    &s.slots.prompt_len, &s.slots.n_new,
                     &s.slots.max_new, &s.slots.active, &s.slots.out,        &s.slots.rope0};
    for (int i = 0; i < SLOTS; i++) {
        s.ints[1][i] = s.ints[2][i] = 10;
        s.ints[4][i] = 100;
        s.ints[5][i] = 1;
    }
    for (int i = 0; i < 8; i++) *p[i] = device_memory(sizeof s.ints[i], s.ints[i]);
    s.slots.sampling = device_memory(SLOTS * sizeof *s.slots.sampling, NULL);
    return s;
}

/* All slots choose alike, with the streams from stream on. */
static void sample(const sampling_state *s, float *logits, int64_t stride, bool first, const fkv_sampling *p,
                   uint64_t stream, int vocab)
{
    fkv_sampling all[SLOTS];
    for (int i = 0; i < SLOTS; i++) {
        all[i] = *p;
        all[i].stream = stream + (uint64_t)i;
    }
    b->upload(dev, s->slots.sampling, all, sizeof all);
    b->sample(dev, logits, stride, SLOTS, first, &s->slots, &no_rules, fkv_sampling_choice(p, &no_rules),
              vocab);
}

static void greedy_takes_the_lowest_of_equal_tokens_and_stops(void **state)
{
    (void)state;
    sampling_state s = new_slots();
    float logits[SLOTS][VOCAB];
    const fkv_sampling p[SLOTS] = {{0}};
    const fkv_token_rules rules = {.ends = {7, 9}, .n_ends = 2};
    const int32_t one = 1, zero = 0;
    for (int i = 0; i < SLOTS; i++)
        for (int j = 0; j < VOCAB; j++) logits[i][j] = -(float)j;
    logits[0][20] = logits[0][30] = 5;                     /* a tie */
    logits[1][9] = 5;                                      /* end of sequence */
    b->upload(dev, s.slots.max_new + 2, &one, sizeof one); /* its last token */
    b->upload(dev, s.slots.active + 3, &zero, sizeof zero);
    float *dl = device_memory(sizeof logits, logits);
    b->upload(dev, s.slots.sampling, p, sizeof p);
    b->sample(dev, dl, VOCAB, SLOTS, false, &s.slots, &rules, 0, VOCAB);
    int32_t out[SLOTS], active[SLOTS], pos[SLOTS];
    fetch(out, s.slots.out, sizeof out);
    fetch(active, s.slots.active, sizeof active);
    fetch(pos, s.slots.pos, sizeof pos);
    assert_memory_equal(out, ((int32_t[]){20, 9, 0, -1}), sizeof out);
    assert_memory_equal(active, ((int32_t[]){1, 0, 0, 0}), sizeof active);
    assert_memory_equal(pos, ((int32_t[]){11, 11, 11, 10}), sizeof pos);
}

/* Frequencies of 20,000 draws against the probabilities p (0: never drawn). */
static void check_draws(const fkv_sampling *sampling, const float *logits, const double *p)
{
    enum { DRAWS = 20000 };
    sampling_state s = new_slots();
    int count[VOCAB] = {0};
    float all[SLOTS][VOCAB];
    for (int i = 0; i < SLOTS; i++) memcpy(all[i], logits, sizeof all[i]);
    float *dl = device_memory(sizeof all, all);
    for (int i = 0; i < DRAWS / SLOTS; i++) {
        int32_t out[SLOTS], zeros[SLOTS] = {0};
        b->upload(dev, s.slots.n_new, zeros, sizeof zeros);
        sample(&s, dl, VOCAB, false, sampling, (uint64_t)i * SLOTS, VOCAB);
        fetch(out, s.slots.out, sizeof out);
        for (int k = 0; k < SLOTS; k++) count[out[k]]++;
    }
    for (int j = 0; j < VOCAB; j++) {
        if (p[j] == 0) assert_int_equal(count[j], 0);
        assert_true(fabs(count[j] - DRAWS * p[j]) <= 5 * sqrt(DRAWS * p[j] * (1 - p[j])) + 1);
    }
}

static void sampling_follows_temperature_top_k_and_top_p(void **state)
{
    (void)state;
    float logits[VOCAB];
    double weight[VOCAB], p[VOCAB], total = 0;
    for (int j = 0; j < VOCAB; j++) logits[j] = (float)((j * 7) % VOCAB) / 8;
    for (int j = 0; j < VOCAB; j++) total += weight[j] = exp(logits[j] / 0.8);
    for (int j = 0; j < VOCAB; j++) p[j] = weight[j] / total;
    check_draws(&(fkv_sampling){.temperature = 0.8f, .top_p = 1, .seed = 5}, logits, p);

    /* top-k: the 5 largest; then top-p 0.6 of those */
    int order[VOCAB];
    for (int j = 0; j < VOCAB; j++) order[(VOCAB - 1) - (j * 7) % VOCAB] = j;
    double sum = 0, cut[VOCAB] = {0};
    for (int i = 0; i < 5; i++) sum += weight[order[i]];
    for (int i = 0; i < 5; i++) cut[order[i]] = weight[order[i]] / sum;
    check_draws(&(fkv_sampling){.temperature = 0.8f, .top_p = 1, .top_k = 5, .seed = 6}, logits, cut);
    double kept = 0;
    int m = 0;
    while (kept < 0.6 * sum) kept += weight[order[m++]];
    memset(cut, 0, sizeof cut);
    for (int i = 0; i < m; i++) cut[order[i]] = weight[order[i]] / kept;
    check_draws(&(fkv_sampling){.temperature = 0.8f, .top_p = 0.6f, .top_k = 5, .seed = 7}, logits, cut);

    /* top-p alone */
    kept = 0;
    m = 0;
    while (kept < 0.5 * total) kept += weight[order[m++]];
    memset(cut, 0, sizeof cut);
    for (int i = 0; i < m; i++) cut[order[i]] = weight[order[i]] / kept;
    check_draws(&(fkv_sampling){.temperature = 0.8f, .top_p = 0.5f, .seed = 8}, logits, cut);
}

static void check_bad_rows(const fkv_sampling *sampling, bool first)
{
    enum { WIDE = 5000 }; /* the device's vocabulary bounds a row, not what lies behind it */
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    const int at[] = {0, VOCAB / 2, VOCAB - 1};
    static float logits[SLOTS][WIDE];
    float *dl = device_memory(sizeof logits, NULL);
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        for (size_t a = 0; a < sizeof at / sizeof *at; a++) {
            sampling_state s = new_slots(), after;
            const int32_t zero = 0;
            for (int i = 0; i < SLOTS; i++)
                for (int j = 0; j < WIDE; j++)
                    logits[i][j] = j >= VOCAB ? NAN : i == 2 && bad[k] < 0 ? -INFINITY : (float)(j % 7);
            logits[0][at[a]] = -INFINITY; /* one that is never drawn, among others */
            logits[2][at[a]] = logits[3][at[a]] = bad[k];
            b->upload(dev, dl, logits, sizeof logits);
            const int32_t working = first ? FKV_SLOT_FRESH : FKV_SLOT_DECODING;
            const int32_t active[SLOTS] = {working, working, working, zero};
            b->upload(dev, s.slots.active, active, sizeof active);
            sample(&s, dl, WIDE, first, sampling, 0, VOCAB);
            const int32_t *from[] = {s.slots.token,   s.slots.pos,    s.slots.prompt_len, s.slots.n_new,
                                     s.slots.max_new, s.slots.active, s.slots.out};
            for (int i = 0; i < 7; i++) fetch(after.ints[i], from[i], sizeof after.ints[i]);
            for (int i = 0; i < 2; i++) {
                assert_in_range(after.ints[6][i], 0, VOCAB - 1);
                assert_int_equal(after.ints[5][i], 1);
            }
            assert_int_not_equal(after.ints[6][0], at[a]);
            assert_int_equal(after.ints[6][2], FKV_TOKEN_BAD_LOGITS);
            assert_int_equal(after.ints[5][2], 0);
            assert_int_equal(after.ints[6][3], FKV_TOKEN_NONE);
            for (int i = 0; i < 5; i++) assert_int_equal(after.ints[i][2], s.ints[i][2]);
        }
    }
}

static void rows_of_logits_without_a_finite_maximum_give_no_token(void **state)
{
    (void)state;
    const fkv_sampling kinds[] = {{.top_p = 1},
                                  {.temperature = 1, .top_p = 1},
                                  {.temperature = 1, .top_p = 0.9f},
                                  {.temperature = 1, .top_p = 1, .top_k = 3},
                                  {.temperature = 1, .top_p = 0.5f, .top_k = 7}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) check_bad_rows(&kinds[i], i % 2);
}

/* The job file's 1e-60 is 0 as a float: no candidate was taken, and one behind the last given. */
static void a_top_p_below_float32_takes_the_best_token(void **state)
{
    (void)state;
    float logits[VOCAB];
    double p[VOCAB] = {0};
    for (int j = 0; j < VOCAB; j++) logits[j] = (float)((j * 7) % VOCAB) / 8;
    for (int j = 0; j < VOCAB; j++)
        if ((j * 7) % VOCAB == VOCAB - 1) p[j] = 1;
    check_draws(&(fkv_sampling){.temperature = 0.8f, .top_p = (float)1e-60, .seed = 9}, logits, p);
    check_draws(&(fkv_sampling){.temperature = 0.8f, .top_p = (float)1e-40, .seed = 9}, logits, p);
    check_draws(&(fkv_sampling){.temperature = 0.8f, .top_p = (float)1e-60, .top_k = 3}, logits, p);
}

/* Tokens of SLOTS rows for every kind of sampling, drawn by this backend. */
static void draw_all(const float *logits, int vocab, int32_t (*tokens)[SLOTS])
{
    const fkv_sampling kinds[] = {{.top_p = 1},
                                  {.temperature = 1, .top_p = 1, .seed = 1},
                                  {.temperature = 0.7f, .top_p = 0.9f, .seed = 2},
                                  {.temperature = 1.5f, .top_p = 1, .top_k = 40, .seed = 3},
                                  {.temperature = 1, .top_p = 0.5f, .top_k = 1000, .seed = 4},
                                  {.temperature = 3, .top_p = 0.99f, .seed = 5},
                                  {.temperature = 0.3f, .top_p = 0.95f, .top_k = 40, .seed = 6},
                                  {.temperature = 1, .top_p = 1, .top_k = 1 << 20, .seed = 7},
                                  {.temperature = 1, .top_p = 0, .seed = 8}};
    float *dl = device_memory(sizeof *logits * SLOTS * (size_t)vocab, logits);
    for (int k = 0; k < KINDS; k++) {
        for (int round = 0; round < ROUNDS; round++) {
            sampling_state s = new_slots();
            sample(&s, dl, vocab, false, &kinds[k], (uint64_t)round * SLOTS, vocab);
            fetch(tokens[k * ROUNDS + round], s.slots.out, sizeof *tokens);
        }
    }
}

/* A penalty, ids that can't be chosen, and ends that may not come yet, of every slot its own. */
static void logits_are_adjusted_as_each_slot_asks(void **state)
{
    (void)state;
    const int32_t never[] = {11, 12}, lengths[] = {4, 3, 2, 2},
                  prompts[] = {1, 5, 5, 9, 5, 6, 7, 30, 31, 5, 6};
    const int64_t prompt_lengths[] = {4, 3, 2, 2};
    float logits[SLOTS][VOCAB], got[SLOTS][VOCAB], want[SLOTS][VOCAB];
    const fkv_sampling p[SLOTS] = {{.repetition_penalty = 1.7f},
                                   {.repetition_penalty = 0.6f, .min_new = 1, .has_end = 1, .end = 3},
                                   {.min_new = 2, .ignores_ends = 1, .has_end = 1, .end = 4},
                                   {.repetition_penalty = 1}};
    const fkv_token_rules rules = {
        .ends = {7, 9}, .n_ends = 2, .suppressed = device_memory(sizeof never, never), .n_suppressed = 2};
    sampling_state s = new_slots();
    packed pack;
    pack_prompts(&pack, prompt_lengths, NULL, SLOTS);
    for (int i = 0; i < SLOTS; i++) pack.segments[i].sampling = p[i];
    b->upload(dev, (void *)pack.pack.dev_segments, pack.segments, SLOTS * sizeof *pack.segments);
    pack.pack.dev_tokens = device_memory(sizeof prompts, prompts);
    s.slots.seen = device_memory(SLOTS * FKV_SEEN_WORDS(VOCAB) * sizeof(uint32_t), NULL);
    b->start_slots(dev, &pack.pack, &s.slots);
    bool seen[SLOTS][VOCAB] = {{0}};
    for (int i = 0, at = 0; i < SLOTS; i++)
        for (int k = 0; k < lengths[i]; k++) seen[i][prompts[at++]] = true;
    for (int step = 0; step < 3; step++) {
        for (int i = 0; i < SLOTS; i++)
            for (int j = 0; j < VOCAB; j++) {
                const float x = logits[i][j] = (float)((j * 7 + i + 5 * step) % VOCAB) / 8 - 3;
                const float penalty = p[i].repetition_penalty > 0 ? p[i].repetition_penalty : 1;
                const bool ends =
                    (!p[i].ignores_ends && (j == 7 || j == 9)) || (p[i].has_end && j == p[i].end);
                want[i][j] = !seen[i][j] ? x : x < 0 ? x * penalty : x / penalty;
                if (j == 11 || j == 12 || (ends && step < p[i].min_new)) want[i][j] = -INFINITY;
            }
        float *dl = device_memory(sizeof logits, logits);
        int32_t out[SLOTS];
        const int32_t working[SLOTS] = {step ? 1 : 2, step ? 1 : 2, step ? 1 : 2, step ? 1 : 2};
        b->upload(dev, s.slots.active, working, sizeof working);
        b->sample(dev, dl, VOCAB, SLOTS, step == 0, &s.slots, &rules, FKV_CHOICE_ADJUSTS, VOCAB);
        fetch(got, dl, sizeof got);
        fetch(out, s.slots.out, sizeof out);
        assert_memory_equal(got, want, sizeof got);
        for (int i = 0; i < SLOTS; i++) {
            int best = 0;
            for (int j = 0; j < VOCAB; j++)
                if (want[i][j] > want[i][best]) best = j;
            assert_int_equal(out[i], best);
            seen[i][best] = true;
        }
    }
}

/* Slots that choose each in its own way choose as they would all alike. */
static void slots_choose_each_in_its_own_way(void **state)
{
    (void)state;
    const fkv_sampling kinds[SLOTS] = {{0},
                                       {.temperature = 1, .top_p = 1, .seed = 1},
                                       {.temperature = 1.5f, .top_p = 1, .top_k = 40, .seed = 3},
                                       {.temperature = 0.7f, .top_p = 0.9f, .seed = 2}};
    float logits[SLOTS][VOCAB];
    for (int round = 0; round < 50; round++) {
        int32_t want[SLOTS], alike[SLOTS], got[SLOTS];
        fkv_sampling all[SLOTS];
        for (int i = 0; i < SLOTS; i++)
            for (int j = 0; j < VOCAB; j++) logits[i][j] = (float)((j * 7 + i + round) % VOCAB) / 8;
        float *dl = device_memory(sizeof logits, logits);
        for (int k = 0; k < SLOTS; k++) {
            sampling_state s = new_slots();
            sample(&s, dl, VOCAB, false, &kinds[k], (uint64_t)round, VOCAB);
            fetch(alike, s.slots.out, sizeof alike);
            want[k] = alike[k];
            all[k] = kinds[k];
            all[k].stream = (uint64_t)(round + k);
        }
        sampling_state s = new_slots();
        b->upload(dev, s.slots.sampling, all, sizeof all);
        b->sample(dev, dl, VOCAB, SLOTS, false, &s.slots, &no_rules, FKV_CHOICE_DRAWS | FKV_CHOICE_ADJUSTS,
                  VOCAB);
        fetch(got, s.slots.out, sizeof got);
        assert_memory_equal(got, want, sizeof got);
    }
}

enum { LARGE = 32003 };

static void check_large(const float *logits)
{
    const fkv_backend *tested = b;
    int32_t want[KINDS * ROUNDS][SLOTS], got[KINDS * ROUNDS][SLOTS];
    device_close();
    open_device(LARGE);
    draw_all(logits, LARGE, got);
    device_close();
    b = fkv_backend_find("cpu");
    open_device(LARGE);
    draw_all(logits, LARGE, want);
    device_close();
    b = tested;
    open_device(VOCAB);
    for (int k = 0; k < KINDS * ROUNDS; k++)
        for (int i = 0; i < SLOTS; i++)
            if (got[k][i] != want[k][i])
                fail_msg("kind %d, round %d, row %d: token %d, the cpu backend draws %d", k / ROUNDS,
                         k % ROUNDS, i, got[k][i], want[k][i]);
    /* and the draws differ, or this could not fail */
    assert_true(want[ROUNDS][0] != want[ROUNDS + 1][0] || want[ROUNDS][1] != want[ROUNDS + 1][1]);
}

static void large_vocabularies_are_sampled_as_the_cpu_backend_does(void **state)
{
    (void)state;
    float *logits = host_floats(SLOTS * LARGE);
    fill_uniform(logits, SLOTS * LARGE, 4); /* rounded to bf16: many ties */
    for (int i = 0; i < 20; i++) logits[(i % SLOTS) * LARGE + i * 1471] = 9 + (float)(i % 3);
    check_large(logits);
    /* all alike; few that count at all; one far below the others, which lie close together; whole numbers */
    for (int i = 0; i < LARGE; i++) {
        logits[i] = -3;
        if (i % 7) logits[LARGE + i] = -INFINITY;
        logits[2 * LARGE + i] = i == 5 ? -0x1p100f : logits[2 * LARGE + i] / 1024;
        logits[3 * LARGE + i] = floorf(logits[3 * LARGE + i]);
    }
    check_large(logits);
    free(logits);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(snapkv_scores_follow_the_definition),
        cmocka_unit_test(a_head_keeps_sinks_its_best_scores_and_the_window_in_order),
        cmocka_unit_test(a_head_of_a_layer_with_a_window_keeps_its_last_tokens),
        cmocka_unit_test(greedy_takes_the_lowest_of_equal_tokens_and_stops),
        cmocka_unit_test(sampling_follows_temperature_top_k_and_top_p),
        cmocka_unit_test(rows_of_logits_without_a_finite_maximum_give_no_token),
        cmocka_unit_test(a_top_p_below_float32_takes_the_best_token),
        cmocka_unit_test(logits_are_adjusted_as_each_slot_asks),
        cmocka_unit_test(slots_choose_each_in_its_own_way),
        cmocka_unit_test(large_vocabularies_are_sampled_as_the_cpu_backend_does),
    };
    const int skipped = choose_backend(argc, argv);
    if (skipped) return skipped;
    open_device(VOCAB);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close();
    return failed;
}
