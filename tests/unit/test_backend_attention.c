/* Attention of prefill and decode, through the table, against plain references in
 * double: head sizes, groups, lengths around chunks and pages, uneven placements,
 * inactive slots, and all that a layer's spec can ask for; and that a slot's result has the same bits in any
 * slot, beside any heads, on any pages. */
#include "backend_fixture.h"
#include "kv_fixture.h"

enum { HIDDEN = 64, POSITIONS = 4096, MAX_PROMPT = 600 };

/* What a layer has beside a shape; zeros: as Llama. */
typedef struct trait {
    const char *name;
    int rope, window;
    float scale, softcap;
    bool bias, norm;
    bool both; /* some records use the rows of the table behind the layer's */
    bool fp8;  /* weights and rows of x, of numbers that it holds as they are */
} trait;

static const trait plain = {.name = "plain"};
static const trait traits[] = {{.name = "another RoPE table", .rope = 1},
                               {.name = "no RoPE", .rope = -1},
                               {.name = "records of two RoPE tables", .both = true},
                               {.name = "norms, and records of two RoPE tables", .norm = true, .both = true},
                               {.name = "a bias", .bias = true},
                               {.name = "norms", .norm = true},
                               {.name = "a scale", .scale = 0.5f},
                               {.name = "a cap", .softcap = 0.75f},
                               {.name = "a cap far below the scores", .scale = 2, .softcap = 2},
                               {.name = "a window of 1", .window = 1},
                               {.name = "a window of 128", .window = 128},
                               {.name = "a window of 200", .window = 200},
                               {.name = "a window of 257", .window = 257},
                               {.name = "a window of all", .window = 5000},
                               {"a bias and norms", 0, 0, 0, 0, true, true, false, false},
                               {.name = "FP8", .fp8 = true},
                               {.name = "FP8 of another size", .fp8 = true},
                               {.name = "FP8 and a bias", .fp8 = true, .bias = true},
                               {"FP8 and all", 1, 131, 0.25f, 2, true, true, false, true},
                               {"all", 1, 131, 0.25f, 2, true, true, false, false}};

typedef struct shape {
    int hd, group;
    const trait *trait;
} shape;

static const shape shapes[] = {{64, 1, &plain},  {64, 3, &plain},  {64, 4, &plain},   {64, 7, &plain},
                               {64, 8, &plain},  {64, 16, &plain}, {128, 1, &plain},  {128, 4, &plain},
                               {128, 5, &plain}, {128, 8, &plain}, {128, 12, &plain}, {128, 16, &plain},
                               {96, 1, &plain},  {96, 4, &plain},  {96, 11, &plain},  {256, 4, &plain},
                               {256, 9, &plain}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, N_TRAITS = sizeof traits / sizeof *traits };

/* The shapes, then every trait on one of these, then the last one, which is all of them, on all. */
static const shape bases[] = {
    {64, 3, &plain}, {96, 2, &plain}, {64, 9, &plain}, {128, 4, &plain}, {256, 2, &plain}};
enum { N_BASES = sizeof bases / sizeof *bases, N_CASES = N_SHAPES + N_TRAITS + N_BASES };

static shape case_of(int i)
{
    if (i < N_SHAPES) return shapes[i];
    i -= N_SHAPES;
    shape s = bases[(i < N_TRAITS ? i : i - N_TRAITS) % N_BASES];
    s.trait = &traits[i < N_TRAITS ? i : N_TRAITS - 1];
    return s;
}

/* Of the i-th record. */
static int32_t rope0_of(shape s, int64_t i)
{
    return s.trait->both && i % 2 ? POSITIONS : 0;
}

static fkv_attention_spec spec_of(shape s, int n_kv_heads)
{
    fkv_attention_spec spec = plain_spec(s.hd, s.group, n_kv_heads);
    spec.rope = s.trait->rope;
    spec.window = s.trait->window;
    spec.softcap = s.trait->softcap;
    spec.qkv_bias = s.trait->bias;
    spec.qk_norm = s.trait->norm;
    if (s.trait->scale > 0) spec.scale = s.trait->scale;
    return spec;
}

static fkv_form form_of(shape s)
{
    return s.trait->fp8 ? FKV_FORM_FP8 : FKV_FORM_NATIVE;
}

/* Rows [n, HIDDEN] that the shape's form holds as they are. */
static void fill_rows(shape s, float *x, size_t n, float scale)
{
    if (s.trait->fp8)
        fill_fp8(x, n, HIDDEN, scale);
    else
        fill_uniform(x, n * HIDDEN, scale);
}

static void open_for(shape s, int n_kv_heads, int n_slots)
{
    const fkv_attention_spec spec = spec_of(s, n_kv_heads);
    const fkv_device_limits limits = {.n_slots = n_slots,
                                      .max_prompt = MAX_PROMPT,
                                      .max_positions = POSITIONS,
                                      .hidden = HIDDEN,
                                      .n_heads = s.group * n_kv_heads,
                                      .n_kv_heads = n_kv_heads,
                                      .head_dim = s.hd,
                                      .vocab = 8,
                                      .max_local_heads = n_kv_heads,
                                      .window = 8,
                                      .n_ropes = FIXTURE_ROPES,
                                      .layers = &spec,
                                      .n_layers = 1,
                                      .form = form_of(s)};
    device_open(limits);
}

/* Norms' weights, [2][hd]: of queries, of keys. */
static const float *norm_weights(void)
{
    static float w[2 * FIXTURE_HEAD_DIM];
    for (int i = 0; i < 2 * FIXTURE_HEAD_DIM; i++) w[i] = 0.25f + (float)(i * 37 % 64) / 128;
    return w;
}

static fkv_qk_norm put_norm(shape s)
{
    const float *w = norm_weights();
    return (fkv_qk_norm){device_memory((size_t)s.hd * sizeof *w, w),
                         device_memory((size_t)s.hd * sizeof *w, w + FIXTURE_HEAD_DIM), 1e-5f};
}

/* What a query (key false) or a key becomes behind its projection. */
static void reference_finish(const fkv_attention_spec *spec, bool key, int64_t rope_row, double *v)
{
    const float *w = norm_weights() + (key ? FIXTURE_HEAD_DIM : 0);
    double sum = 0;
    for (int i = 0; i < spec->head_dim; i++) sum += v[i] * v[i];
    for (int i = 0; i < spec->head_dim && spec->qk_norm; i++)
        v[i] *= (double)w[i] / sqrt(sum / spec->head_dim + 1e-5);
    reference_rope(spec, v, rope_row);
}

/* --- prefill ---------------------------------------------------------------------- */

enum { PREFILL_HEADS = 2, TILE = 256 };

static void check_qkv(shape s, const float *x, const float *w, const float *bias, int64_t n, const float *got)
{
    const fkv_attention_spec spec = spec_of(s, PREFILL_HEADS);
    const int64_t per = (int64_t)fkv_head_rows(s.group) * s.hd, width = PREFILL_HEADS * per;
    double v[FIXTURE_HEAD_DIM];
    for (int64_t t = 0; t < n; t += t + 3 < n ? 3 : 1) {
        for (int h = 0; h < PREFILL_HEADS; h++) {
            for (int part = 0; part < fkv_head_rows(s.group); part++) {
                const int64_t at = h * per + part * s.hd;
                for (int i = 0; i < s.hd; i++)
                    v[i] = dot(x + t * HIDDEN, w + (at + i) * HIDDEN, HIDDEN) +
                           (s.trait->bias ? (double)bias[at + i] : 0);
                if (part <= s.group) reference_finish(&spec, part == s.group, rope0_of(s, n) + t, v);
                for (int i = 0; i < s.hd; i++)
                    assert_near(got[t * width + at + i], v[i],
                                is_half() ? 2e-2 : 1e-4, /* of what is turned */
                                is_half() ? 0x1p-8 : 0, s.trait->name, t, at + i);
            }
        }
    }
}

/* Queries from q0 on of some heads against what the device holds as Q, K, V. */
static void check_attention(shape s, const float *qkv, int64_t n, int64_t q0, const float *got,
                            int64_t stride)
{
    const fkv_attention_spec spec = spec_of(s, PREFILL_HEADS);
    const int64_t per = (int64_t)fkv_head_rows(s.group) * s.hd, width = PREFILL_HEADS * per;
    double q[FIXTURE_HEAD_DIM], want[FIXTURE_HEAD_DIM];
    for (int64_t t = q0; t<n; t += n - t> 40 ? 37 : 1) {
        for (int qh = 0; qh < PREFILL_HEADS * s.group; qh++) {
            const float *head = qkv + qh / s.group * per;
            for (int i = 0; i < s.hd; i++) q[i] = head[t * width + qh % s.group * s.hd + i];
            reference_attention(&spec, q, head + s.group * s.hd, head + (s.group + 1) * s.hd, width, t + 1,
                                want);
            for (int i = 0; i < s.hd; i++)
                assert_near(got[(t - q0) * stride + qh * s.hd + i], want[i], is_half() ? 1e-2 : 1e-5, 0,
                            s.trait->name, t, qh * s.hd + i);
        }
        for (int64_t j = PREFILL_HEADS * s.group * s.hd; j < stride; j++)
            if (!isnan(got[(t - q0) * stride + j])) fail_msg("column %lld of out was written", (long long)j);
    }
}

/* A layer's projection, host and device. */
typedef struct projection {
    const float *w, *bias; /* [width, HIDDEN], [width] */
    const fkv_weight *weight;
} projection;

static void check_prefill(shape s, const projection *w, int64_t n)
{
    const fkv_attention_spec spec = spec_of(s, PREFILL_HEADS);
    const int64_t width = (int64_t)PREFILL_HEADS * fkv_head_rows(s.group) * s.hd;
    const int64_t stride = (int64_t)PREFILL_HEADS * s.group * s.hd + 16;
    const size_t n_qkv = (size_t)(n * width), n_out = (size_t)((n + 1) * stride);
    float *x = host_floats((size_t)(n * HIDDEN)), *qkv = host_floats(n_qkv), *out = host_floats(n_out);
    fill_rows(s, x, (size_t)n, 1);
    void *dqkv = activations(NULL, n_qkv), *dout = activations(NULL, n_out);
    poison(dqkv, n_qkv * (size_t)info.act_bytes);
    const int32_t rope0 = rope0_of(s, n);
    packed p;
    pack_prompts_from(&p, &n, NULL, &rope0, 1);
    fkv_prefill_args args = {.pack = &p.pack,
                             .spec = &spec,
                             .n_heads = PREFILL_HEADS,
                             .qkv = dqkv,
                             .class_rows = TILE,
                             .x = acts_of(x, n, HIDDEN, form_of(s)),
                             .weight = w->weight,
                             .norm = put_norm(s),
                             .out = dout,
                             .out_stride = stride};
    for (args.row0 = 0; args.row0 < n; args.row0 += TILE) {
        args.n_rows = n - args.row0 < TILE ? n - args.row0 : TILE;
        b->prefill_qkv(dev, &args);
    }
    get(qkv, dqkv, n_qkv);
    check_qkv(s, x, w->w, w->bias, n, qkv);
    for (int last = 0; last < 2; last++) {
        const int64_t q0 = last ? n - 1 : 0;
        poison(dout, n_out * (size_t)info.act_bytes);
        args.last_only = last;
        b->prefill_attention(dev, &args);
        get(out, dout, n_out);
        check_attention(s, qkv, n, q0, out, stride);
        for (int64_t j = 0; j < stride; j++) assert_true(isnan(out[(n - q0) * stride + j]));
    }
    free(x), free(qkv), free(out);
}

static void prefill_follows_the_definition(void **state)
{
    (void)state;
    const int64_t lengths[] = {1, 2, 63, 127, 128, 129, 257, 511, 512, 513};
    for (int i = 0; i < N_CASES; i++) {
        const shape s = case_of(i);
        const int64_t width = (int64_t)PREFILL_HEADS * fkv_head_rows(s.group) * s.hd;
        open_for(s, PREFILL_HEADS, 2);
        float *w = host_floats((size_t)(width * HIDDEN)), *bias = host_floats((size_t)width);
        fill_rows(s, w, (size_t)width, 0.25f);
        fill_uniform(bias, (size_t)width, 0.5f);
        const projection p = {w, bias,
                              load_in_form(w, s.trait->bias ? bias : NULL, width, HIDDEN, form_of(s))};
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) check_prefill(s, &p, lengths[l]);
        device_close();
        free(w);
        free(bias);
    }
}

/* --- decode ----------------------------------------------------------------------- */

enum { HEADS = 4, SLOTS = 12, PAGES = 10, SPARE = 8, COPIED = 3 };

/* What a slot holds: T, tokens made since, and whether it decodes. With a budget of all
 * its length is prompt + made + 1 once this step's token is appended. */
typedef struct slot_content {
    int prompt, made;
    bool active;
} slot_content;

static const slot_content contents[SLOTS] = {
    {1, 0, true},   {125, 1, true},  {125, 2, true},   {128, 0, true}, {500, 10, true}, {500, 11, true},
    {512, 0, true}, {300, 0, false}, {600, 424, true}, {600, 0, true}, {1, 126, true},  {70, 600, true}};
static const int32_t budgets[HEADS] = {100000, 100, 128, 511};

/* Placements: head 0 everywhere, head 1 in the middle, head 2 in two pieces, head 3 from
 * the weights of a copy. */
static const struct {
    int head, begin, end;
} placements[] = {{0, 0, SLOTS}, {1, 1, 11}, {2, 0, 5}, {2, 5, SLOTS}, {COPIED, 2, SLOTS}};
enum { PLACED = sizeof placements / sizeof *placements };

/* One step over the contents, slot s holding contents[order[s]]. */
typedef struct decode_trial {
    shape s;
    int order[SLOTS];
    int first_page;  /* tables count pages from here, backwards where odd */
    int n_placed;    /* of the placements */
    const float *x;  /* [SLOTS contents][HIDDEN] */
    const float *kv; /* [n_pages()][FKV_PAGE_TOKENS][2][hd], as begin_of says: what was there before */
    const float *w_home, *w_copy; /* per head [head_rows * hd][HIDDEN] */
    const float *bias;            /* [HEADS][head_rows * hd] */
    float *arena, *out;           /* results; fp8: as the numbers that the pages say */
    fkv_kv_form form;
} decode_trial;

static int kept(int slot, int head)
{
    return contents[slot].prompt < budgets[head] ? contents[slot].prompt : budgets[head];
}

/* Of a head's pages, one content's behind another's: a head has those that it fills, this step's token too.
 */
static int begin_of(int content, int head)
{
    static int begins[SLOTS * HEADS + 1];
    for (int i = 0; i < SLOTS * HEADS && !begins[SLOTS * HEADS]; i++)
        begins[i + 1] =
            begins[i] + (kept(i / HEADS, i % HEADS) + contents[i / HEADS].made) / FKV_PAGE_TOKENS + 1;
    return begins[content * HEADS + head];
}

static int n_pages(void)
{
    return begin_of(SLOTS, 0);
}

/* Behind a head's pages its table names one that is nobody's. */
static int page_of(const decode_trial *t, int slot, int head, int page)
{
    const int c = t->order[slot], i = begin_of(c, head) + page;
    if (page >= begin_of(c, head + 1) - begin_of(c, head)) return n_pages() + SPARE - 1;
    return t->first_page % 2 ? n_pages() - i + t->first_page : i + t->first_page;
}

static size_t page_elems(const decode_trial *t)
{
    return (size_t)2 * FKV_PAGE_TOKENS * (size_t)t->s.hd;
}

static size_t arena_elems(const decode_trial *t)
{
    return (size_t)(n_pages() + SPARE) * page_elems(t);
}

/* K of token i; V lies FKV_PAGE_TOKENS * hd behind it. */
static float *token_at(const decode_trial *t, int slot, int head, int i)
{
    return t->arena + (size_t)page_of(t, slot, head, i / FKV_PAGE_TOKENS) * page_elems(t) +
           (size_t)(i % FKV_PAGE_TOKENS) * (size_t)t->s.hd;
}

static void fill_arena(const decode_trial *t)
{
    const size_t hd = (size_t)t->s.hd, all = arena_elems(t);
    for (size_t i = 0; i < all; i++) t->arena[i] = NAN; /* what lies behind a head's tokens must not matter */
    for (int s = 0; s < SLOTS; s++) {
        for (int h = 0; h < HEADS; h++) {
            const int c = t->order[s], n = kept(c, h) + contents[c].made;
            for (int i = 0; i < n; i++) {
                const float *from = t->kv + ((size_t)begin_of(c, h) * FKV_PAGE_TOKENS + (size_t)i) * 2 * hd;
                memcpy(token_at(t, s, h, i), from, hd * sizeof *from);
                memcpy(token_at(t, s, h, i) + FKV_PAGE_TOKENS * hd, from + hd, hd * sizeof *from);
            }
        }
    }
}

/* The trial's pages on the device, and back; NaN is all ones. */
static void *put_arena(const decode_trial *t)
{
    const size_t n = arena_elems(t) / page_elems(t),
                 page = (size_t)fkv_kv_page_bytes(t->form, t->s.hd, info.kv_bytes);
    if (t->form == FKV_KV_PLAIN) return activations(t->arena, arena_elems(t));
    char *bytes = malloc(n * page);
    assert_non_null(bytes);
    memset(bytes, 0xff, n * page);
    for (size_t i = 0; i < n; i++) fp8_write_page(t->arena + i * page_elems(t), t->s.hd, bytes + i * page);
    void *p = device_memory(n * page, bytes);
    free(bytes);
    return p;
}

static void get_arena(const decode_trial *t, const void *from)
{
    const size_t n = arena_elems(t) / page_elems(t),
                 page = (size_t)fkv_kv_page_bytes(t->form, t->s.hd, info.kv_bytes);
    if (t->form == FKV_KV_PLAIN) {
        get(t->arena, from, arena_elems(t));
        return;
    }
    char *bytes = malloc(n * page);
    assert_non_null(bytes);
    fetch(bytes, from, n * page);
    for (size_t i = 0; i < n; i++) fp8_read_page(bytes + i * page, t->s.hd, t->arena + i * page_elems(t));
    free(bytes);
}

static fkv_slots put_slots(const decode_trial *t)
{
    int32_t pos[SLOTS], rope0[SLOTS], prompt[SLOTS], active[SLOTS], zeros[SLOTS] = {0};
    for (int s = 0; s < SLOTS; s++) {
        const slot_content *c = &contents[t->order[s]];
        prompt[s] = c->prompt;
        pos[s] = c->prompt + c->made;
        rope0[s] = rope0_of(t->s, t->order[s]);
        active[s] = c->active;
    }
    return (fkv_slots){.token = device_memory(sizeof zeros, zeros),
                       .pos = device_memory(sizeof pos, pos),
                       .rope0 = device_memory(sizeof rope0, rope0),
                       .prompt_len = device_memory(sizeof prompt, prompt),
                       .n_new = device_memory(sizeof zeros, zeros),
                       .max_new = device_memory(sizeof zeros, zeros),
                       .active = device_memory(sizeof active, active),
                       .out = device_memory(sizeof zeros, zeros)};
}

static const int32_t *put_table(const decode_trial *t)
{
    static int32_t table[SLOTS * HEADS * PAGES];
    for (int s = 0; s < SLOTS; s++)
        for (int h = 0; h < HEADS; h++)
            for (int p = 0; p < PAGES; p++) table[(s * HEADS + h) * PAGES + p] = page_of(t, s, h, p);
    return device_memory(sizeof table, table);
}

static void run_decode(decode_trial *t)
{
    const shape s = t->s;
    const int64_t per = (int64_t)fkv_head_rows(s.group) * s.hd, row = (int64_t)HEADS * s.group * s.hd;
    const bool biased = s.trait->bias;
    const fkv_weight *home = load_in_form(t->w_home, biased ? t->bias : NULL, (HEADS - 1) * per, HIDDEN,
                                          form_of(s)),
                     *copy = load_in_form(t->w_copy, biased ? t->bias + COPIED * per : NULL, per, HIDDEN,
                                          form_of(s));
    const fkv_attention_spec spec = spec_of(s, HEADS);
    fkv_decode_head heads[PLACED];
    int64_t offset[HEADS];
    float x[SLOTS * HIDDEN];
    fkv_err err = {0};
    for (int i = 0; i < PLACED; i++)
        heads[i] = (fkv_decode_head){placements[i].head, placements[i].begin, placements[i].end,
                                     placements[i].head == COPIED ? copy : home,
                                     placements[i].head == COPIED ? 0 : placements[i].head * per};
    for (int h = 0; h < HEADS; h++) offset[h] = h * PAGES;
    for (int i = 0; i < SLOTS; i++) memcpy(x + i * HIDDEN, t->x + t->order[i] * HIDDEN, HIDDEN * sizeof *x);
    fill_arena(t);
    void *arena = put_arena(t), *out = activations(NULL, (size_t)(SLOTS * row));
    const fkv_decode_args args = {.spec = &spec,
                                  .n_slots = SLOTS,
                                  .hidden = HIDDEN,
                                  .norm = put_norm(s),
                                  .heads = heads,
                                  .n_heads_served = t->n_placed,
                                  .slots = put_slots(t),
                                  .kv = {&arena, put_table(t), HEADS * PAGES, offset, budgets, t->form},
                                  .x = acts_of(x, SLOTS, HIDDEN, form_of(s)),
                                  .q = activations(NULL, (size_t)(PLACED * SLOTS * per)),
                                  .out = out};
    poison(out, (size_t)(SLOTS * row * info.act_bytes));
    if (b->prepare_decode(dev, &args, &err)) fail_msg("prepare_decode: %s", err.message);
    b->decode_begin(dev, &args.slots);
    b->decode_qkv(dev, &args);
    b->decode_attention(dev, &args);
    get_arena(t, arena);
    get(t->out, out, (size_t)(SLOTS * row));
}

/* Q, K and V that this step's x gives for (slot, head), normed and rotated. */
static void reference_qkv(const decode_trial *t, int slot, int head, double *qkv)
{
    const fkv_attention_spec spec = spec_of(t->s, HEADS);
    const int c = t->order[slot], hd = t->s.hd, n = fkv_head_rows(t->s.group) * hd;
    const float *w = head == COPIED ? t->w_copy : t->w_home + (size_t)head * (size_t)n * HIDDEN;
    for (int i = 0; i < n; i++)
        qkv[i] = dot(t->x + c * HIDDEN, w + (size_t)i * HIDDEN, HIDDEN) +
                 (t->s.trait->bias ? (double)t->bias[head * n + i] : 0);
    for (int g = 0; g <= t->s.group; g++)
        reference_finish(&spec, g == t->s.group, rope0_of(t->s, c) + contents[c].prompt + contents[c].made,
                         qkv + g * hd);
}

/* A vector in e4m3: what it lacks is perpendicular to it, up to what want's own rounding does. */
static void assert_length_kept(const float *got, const double *want, int hd, const char *what, int slot)
{
    double missed = 0, square = 0;
    for (int i = 0; i < hd; i++) {
        missed += (double)got[i] * (want[i] - (double)got[i]);
        square += (double)got[i] * (double)got[i];
    }
    if (fabs(missed) > (is_half() ? 2e-3 : 1e-5) * square)
        fail_msg("%s of slot %d is %g of itself too short", what, slot, missed / square);
}

static void check_row(const decode_trial *t, int slot, int head)
{
    const int c = t->order[slot], hd = t->s.hd, group = t->s.group;
    const int n = kept(c, head) + contents[c].made + 1;
    const fkv_attention_spec spec = spec_of(t->s, HEADS);
    double qkv[(16 + 2) * FIXTURE_HEAD_DIM], want[FIXTURE_HEAD_DIM];
    float *k = host_floats((size_t)(n * hd)), *v = host_floats((size_t)(n * hd));
    reference_qkv(t, slot, head, qkv);
    for (int i = 0; i < n; i++) {
        memcpy(k + i * hd, token_at(t, slot, head, i), (size_t)hd * sizeof *k);
        memcpy(v + i * hd, token_at(t, slot, head, i) + FKV_PAGE_TOKENS * hd, (size_t)hd * sizeof *v);
    }
    /* e4m3 has four bits of a number, and its smallest step is 2^-18 of the vector's largest magnitude; the
     * scale that fits the whole vector best takes less than 1% more from one of its numbers */
    const double off = is_half() ? 2e-2 : 1e-4, relative = t->form == FKV_KV_FP8 ? 0x1p-4 + 0.01 : 0;
    if (t->form == FKV_KV_FP8) {
        assert_length_kept(k + (n - 1) * hd, qkv + group * hd, hd, "appended K", slot);
        assert_length_kept(v + (n - 1) * hd, qkv + (group + 1) * hd, hd, "appended V", slot);
    }
    for (int i = 0; i < hd; i++) {
        assert_near(k[(n - 1) * hd + i], qkv[group * hd + i], off, relative, "appended K", slot, i);
        assert_near(v[(n - 1) * hd + i], qkv[(group + 1) * hd + i], off, relative, "appended V", slot, i);
    }
    for (int g = 0; g < group; g++) {
        reference_attention(&spec, qkv + g * hd, k, v, hd, n, want);
        for (int i = 0; i < hd; i++)
            assert_near(t->out[((slot * HEADS + head) * group + g) * hd + i], want[i],
                        is_half() ? 2e-2 : 1e-4, 0, t->s.trait->name, slot * HEADS + head, g * hd + i);
    }
    free(k), free(v);
}

static bool served(const decode_trial *t, int slot, int head)
{
    for (int i = 0; i < t->n_placed; i++)
        if (placements[i].head == head && slot >= placements[i].begin && slot < placements[i].end)
            return true;
    return false;
}

/* What the step gave for (slot, head) has the bits that another trial gave for the same content and head. */
static void check_same(const decode_trial *t, int slot, int head, const decode_trial *other, int at)
{
    const int c = t->order[slot], last = kept(c, head) + contents[c].made;
    const size_t row = (size_t)t->s.group * (size_t)t->s.hd, vector = (size_t)t->s.hd * sizeof(float);
    const float *k = token_at(t, slot, head, last), *other_k = token_at(other, at, head, last);
    if (memcmp(t->out + ((size_t)slot * HEADS + (size_t)head) * row,
               other->out + ((size_t)at * HEADS + (size_t)head) * row, row * sizeof(float)))
        fail_msg("serving %d pieces in slot %d changes content %d, head %d", t->n_placed, slot, c, head);
    for (int half = 0; half < 2; half++)
        if (memcmp(k + half * FKV_PAGE_TOKENS * t->s.hd, other_k + half * FKV_PAGE_TOKENS * t->s.hd, vector))
            fail_msg("slot %d changes what content %d appends to head %d", slot, c, head);
}

/* other: a checked trial, whose bits this one's rows must have where it has them; NULL: none. */
static void check_rows(const decode_trial *t, const decode_trial *other)
{
    const int width = t->s.group * t->s.hd;
    for (int s = 0; s < SLOTS; s++) {
        int at = 0;
        while (other && other->order[at] != t->order[s]) at++;
        for (int h = 0; h < HEADS; h++) {
            if (contents[t->order[s]].active && served(t, s, h)) {
                if (other && served(other, at, h))
                    check_same(t, s, h, other, at);
                else
                    check_row(t, s, h);
                continue;
            }
            for (int i = 0; i < width; i++)
                if (!isnan(t->out[(s * HEADS + h) * width + i]))
                    fail_msg("slot %d, head %d was written", s, h);
        }
    }
}

static void check_decode(decode_trial *t, const decode_trial *other)
{
    float *before = host_floats(arena_elems(t)), *after = t->arena;
    check_rows(t, other);
    /* Pages hold what they held, but for the token appended. */
    t->arena = before;
    fill_arena(t);
    get_arena(t, put_arena(t));
    for (int s = 0; s < SLOTS; s++) {
        for (int h = 0; h < HEADS; h++) {
            const int c = t->order[s];
            if (!contents[c].active || !served(t, s, h)) continue;
            float *at = token_at(t, s, h, kept(c, h) + contents[c].made);
            for (int half = 0; half < 2; half++, at += FKV_PAGE_TOKENS * t->s.hd)
                memcpy(at, after + (at - before), (size_t)t->s.hd * sizeof *at);
        }
    }
    for (size_t i = 0; i < arena_elems(t); i++)
        if (before[i] != after[i] && !(isnan(before[i]) && isnan(after[i])))
            fail_msg("page %zu was written at %zu", i / page_elems(t), i % page_elems(t));
    t->arena = after;
    free(before);
}

static decode_trial new_trial(shape s, fkv_kv_form form)
{
    const size_t hd = (size_t)s.hd, per = (size_t)fkv_head_rows(s.group) * hd,
                 n_kv = (size_t)n_pages() * FKV_PAGE_TOKENS * 2 * hd;
    decode_trial t = {.s = s, .n_placed = PLACED, .form = form};
    float *x = host_floats(SLOTS * HIDDEN), *kv = host_floats(n_kv),
          *home = host_floats((HEADS - 1) * per * HIDDEN), *copy = host_floats(per * HIDDEN),
          *bias = host_floats(HEADS * per);
    fill_rows(s, x, SLOTS, 1);
    fill_uniform(kv, n_kv, 1);
    fill_rows(s, home, (HEADS - 1) * per, 0.25f);
    fill_rows(s, copy, per, 0.25f);
    fill_uniform(bias, HEADS * per, 0.5f);
    for (int i = 0; i < SLOTS; i++) t.order[i] = i;
    t.x = x;
    t.kv = kv;
    t.w_home = home;
    t.w_copy = copy;
    t.bias = bias;
    t.arena = host_floats(arena_elems(&t));
    t.out = host_floats(SLOTS * HEADS * (size_t)s.group * hd);
    return t;
}

static void free_trial(decode_trial *t)
{
    free((void *)t->x), free((void *)t->kv), free((void *)t->w_home), free((void *)t->w_copy),
        free((void *)t->bias);
    free(t->arena), free(t->out);
}

static void check_decode_cases(fkv_kv_form form)
{
    for (int i = 0; i < N_CASES; i++) {
        open_for(case_of(i), HEADS, SLOTS);
        decode_trial t = new_trial(case_of(i), form), moved = t;
        moved.arena = host_floats(arena_elems(&t));
        moved.out = host_floats(SLOTS * HEADS * (size_t)t.s.group * (size_t)t.s.hd);
        run_decode(&t);
        check_decode(&t, NULL);
        for (int s = 0; s < SLOTS; s++) moved.order[s] = (s * 5 + 3) % SLOTS;
        moved.first_page = 3;
        run_decode(&moved);
        check_decode(&moved, &t);
        moved.n_placed = 1; /* beside no other head */
        run_decode(&moved);
        check_decode(&moved, &t);
        free(moved.arena), free(moved.out);
        free_trial(&t);
        device_close();
    }
}

static void decode_follows_the_definition_wherever_a_slot_lies(void **state)
{
    (void)state;
    check_decode_cases(FKV_KV_PLAIN);
}

static void decode_of_fp8_pages_does_so_of_their_numbers(void **state)
{
    (void)state;
    check_decode_cases(FKV_KV_FP8);
}

/* --- what is kept, in e4m3 ----------------------------------------------------------- */

enum { KEPT = 200, KEPT_PAGES = 2 };

/* Vector i of a prompt: what rounding, and dividing, may get wrong. */
static void hard_vector(int i, int hd, float *x)
{
    static const float sizes[] = {1, 0, 448, 0x1p-100f, 0x1p100f, 0x1p-126f, 3, 0.75f};
    const float by = sizes[i % 8];
    for (int k = 0; k < hd; k++) {
        const float u = uniform();
        x[k] = by * u;
        if (i / 8 % 3 == 1) x[k] *= ldexpf(1, -(k % 24)); /* e4m3's subnormals, and less */
        if (i / 8 % 3 == 2)
            x[k] = by * (float)(k % 2 ? -1 : 1) * ldexpf(1 + (float)(k % 16) / 16, -(k % 9)); /* ties */
    }
    if (i / 8 % 3) x[i % hd] = by * 448 / 512;
    if (i == 5) x[hd - 1] = NAN;
    if (i == 13) x[0] = INFINITY;
}

static void check_kept(int hd, int group)
{
    const shape s = {hd, group, &plain};
    const fkv_attention_spec spec = spec_of(s, PREFILL_HEADS);
    const int64_t per = (int64_t)fkv_head_rows(group) * hd, width = PREFILL_HEADS * per, n = KEPT;
    const int64_t offset[] = {0, KEPT_PAGES};
    const int32_t all[] = {KEPT, KEPT}, table[] = {3, 0, 2, 1};
    const int16_t owner[PREFILL_HEADS] = {0};
    const size_t page = (size_t)fkv_kv_page_bytes(FKV_KV_FP8, hd, info.kv_bytes);
    float *qkv = host_floats((size_t)(n * width)), scale;
    uint8_t *got = malloc(4 * page), numbers[FIXTURE_HEAD_DIM];
    packed p;
    assert_non_null(got);
    for (int64_t t = 0; t < n; t++)
        for (int h = 0; h < PREFILL_HEADS; h++)
            for (int v = 0; v < 2; v++)
                hard_vector((int)(2 * t + v + h), hd, qkv + t * width + h * per + (group + v) * hd);
    void *dqkv = activations(qkv, (size_t)(n * width)), *arena = device_memory(4 * page, NULL);
    get(qkv, dqkv, (size_t)(n * width)); /* as bf16 has it */
    pack_prompts(&p, &n, NULL, 1);
    const fkv_keep_args args = {
        .pack = &p.pack,
        .spec = &spec,
        .n_heads = PREFILL_HEADS,
        .score_window = 8,
        .qkv = dqkv,
        .owner = owner,
        .n_slots = 1,
        .kv = {&arena, device_memory(sizeof table, table), 2 * KEPT_PAGES, offset, all, FKV_KV_FP8}};
    b->kv_keep(dev, &args);
    fetch(got, arena, 4 * page);
    for (int64_t t = 0; t < n; t++) {
        for (int i = 0; i < 2 * PREFILL_HEADS; i++) {
            const int h = i / 2, v = i % 2, at = v * FKV_PAGE_TOKENS + (int)(t % FKV_PAGE_TOKENS);
            uint8_t *in = got + (size_t)table[h * KEPT_PAGES + t / FKV_PAGE_TOKENS] * page;
            fp8_quantise(qkv + t * width + h * per + (group + v) * hd, hd, numbers, &scale);
            if (memcmp(&scale, fp8_scale(in, hd, at), sizeof scale) &&
                !(isnan(scale) && isnan(*fp8_scale(in, hd, at))))
                fail_msg("head_dim %d, token %lld: scale %g, should be %g", hd, (long long)t,
                         (double)*fp8_scale(in, hd, at), (double)scale);
            for (int k = 0; k < hd; k++)
                if (in[at * hd + k] != numbers[k])
                    fail_msg("head_dim %d, token %lld, number %d of %g: %02x, should be %02x", hd,
                             (long long)t, k,
                             (double)(qkv[t * width + h * per + (group + v) * hd + k] / scale),
                             in[at * hd + k], numbers[k]);
        }
    }
    free(qkv), free(got);
}

static void kept_vectors_are_the_nearest_in_e4m3(void **state)
{
    (void)state;
    static const int head_dims[] = {64, 96, 128, 256};
    for (int i = 0; i < 4; i++) {
        open_for((shape){head_dims[i], 1 + i, &plain}, PREFILL_HEADS, 1);
        check_kept(head_dims[i], 1 + i);
        device_close();
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefill_follows_the_definition),
        cmocka_unit_test(decode_follows_the_definition_wherever_a_slot_lies),
        cmocka_unit_test(decode_of_fp8_pages_does_so_of_their_numbers),
        cmocka_unit_test(kept_vectors_are_the_nearest_in_e4m3),
    };
    const int skipped = choose_backend(argc, argv);
    return skipped ? skipped : cmocka_run_group_tests(tests, NULL, NULL);
}
