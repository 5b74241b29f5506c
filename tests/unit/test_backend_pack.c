/* Prefill of packs, through the table: a prompt's Q, K, V, attention, scores by every scorer, kept pages
 * and last row have the same bits alone and at every place of a pack, beside whatever. */
#include "backend_fixture.h"
#include "kv_fixture.h"

enum { HIDDEN = 64, HEADS = 2, GROUP = 3, HD = 64, PER = (GROUP + 2) * HD, WIDTH = HEADS * PER };
enum { ATT = HEADS * GROUP * HD, WINDOW = 8, ROWS = 1400, SLOTS = 40, TILE = 512, LONGEST = 700, PAGES = 2 };
enum { PAGE = 2 * FKV_PAGE_TOKENS * HD };

static const int budgets[HEADS] = {40, 200};

/* What one prompt gives. */
typedef struct outcome {
    float qkv[LONGEST * WIDTH], out[LONGEST * ATT], last[ATT], row[HIDDEN];
    float scores[HEADS][LONGEST], second[HEADS][LONGEST];
    float pages[HEADS][PAGES * PAGE];
} outcome;

/* Layers: as Llama's, and with all that a spec can ask for. */
enum { LAYERS = 2 };
static fkv_attention_spec layers[LAYERS];
static int layer; /* under test */
static fkv_weight *weights[LAYERS];
static fkv_qk_norm norm;
static fkv_scorer scorer; /* under test */
static fkv_kv_form form;  /* the same */
static const fkv_weight *output_heads;
static float *gram;
static float *inputs; /* [ROWS][HIDDEN]: row t of prompt i is row (t + 37 i) */

static int only_bad = -1; /* the prompt whose rows are NaN */

static const float *input_row(int prompt, int64_t t)
{
    return inputs + ((t + 37 * prompt) % ROWS) * HIDDEN;
}

/* Device memory of a run; made once. */
static struct {
    void *x, *qkv, *out, *last, *rows, *arena;
    float *scores, *second;
    int32_t *table;
} mem;

static void make_memory(void)
{
    int32_t table[SLOTS * HEADS * PAGES];
    for (int i = 0; i < SLOTS * HEADS * PAGES; i++) table[i] = (i * 7 + 3) % (SLOTS * HEADS * PAGES);
    mem.x = activations(NULL, ROWS * HIDDEN);
    mem.qkv = activations(NULL, ROWS * WIDTH);
    mem.out = activations(NULL, ROWS * ATT);
    mem.last = activations(NULL, SLOTS * ATT);
    mem.rows = activations(NULL, SLOTS * HIDDEN);
    mem.arena = activations(NULL, (size_t)SLOTS * HEADS * PAGES * PAGE);
    mem.scores = device_memory(sizeof(float) * HEADS * ROWS, NULL);
    mem.second = device_memory(sizeof(float) * HEADS * ROWS, NULL);
    mem.table = device_memory(sizeof table, table);
}

static int64_t length_of(int prompt)
{
    static const int64_t lengths[] = {65, 1, 128, 300, 7, 129, 8, 9, 255, 64, 2, 200, 127, 41, LONGEST};
    return lengths[prompt];
}

static void get_page(float *to, int page)
{
    static char bytes[PAGE * sizeof(float)];
    const int64_t size = fkv_kv_page_bytes(form, HD, info.kv_bytes);
    const char *from = (char *)mem.arena + page * size;
    if (form == FKV_KV_PLAIN) {
        get(to, from, PAGE);
        return;
    }
    fetch(bytes, from, (size_t)size);
    fp8_read_page(bytes, HD, to);
}

/* Runs the pack of prompts[n] (prompt i in slot slots[i]) and reads what `wanted` gave. */
static void run_pack(const int *prompts, const int *slots, int n, int wanted, outcome *got)
{
    int64_t lengths[FIXTURE_SEGMENTS], row0 = 0;
    packed p;
    const int64_t offset[HEADS] = {0, PAGES};
    static int16_t owner[HEADS * SLOTS];
    for (int i = 0; i < n; i++) lengths[i] = length_of(prompts[i]);
    pack_prompts(&p, lengths, slots, n);
    float *x = host_floats((size_t)p.pack.n_rows * HIDDEN);
    for (int i = 0; i < n; i++)
        for (int64_t t = 0; t < lengths[i]; t++, row0++)
            for (int k = 0; k < HIDDEN; k++)
                x[row0 * HIDDEN + k] = prompts[i] == only_bad ? NAN : input_row(prompts[i], t)[k];
    poison(mem.x, (size_t)(ROWS * HIDDEN * info.act_bytes));
    poison(mem.qkv, (size_t)(ROWS * WIDTH * info.act_bytes));
    poison(mem.scores, sizeof(float) * HEADS * ROWS);
    poison(mem.second, sizeof(float) * HEADS * ROWS);
    poison(mem.arena, (size_t)SLOTS * HEADS * PAGES * PAGE * (size_t)info.act_bytes);
    put(mem.x, x, (size_t)p.pack.n_rows * HIDDEN);
    const fkv_attention_spec *spec = &layers[layer];
    const int sinks = scorer == FKV_SCORER_SNAPKV ? 0 : 3;
    float *second = scorer == FKV_SCORER_CRITICAL ? mem.second : NULL;
    fkv_prefill_args prefill = {.pack = &p.pack,
                                .spec = spec,
                                .n_heads = HEADS,
                                .qkv = mem.qkv,
                                .class_rows = TILE,
                                .x = rows_at(mem.x, HIDDEN),
                                .weight = weights[layer],
                                .norm = norm,
                                .out = mem.out,
                                .out_stride = ATT,
                                .scorer = scorer,
                                .min_tokens = 40,
                                .score_window = WINDOW,
                                .sinks = sinks,
                                .score_kernel = 7,
                                .scores = mem.scores,
                                .second = second,
                                .score_stride = ROWS,
                                .output_heads = output_heads,
                                .gram = gram,
                                .hidden = HIDDEN};
    for (; prefill.row0 < p.pack.n_rows; prefill.row0 += TILE) {
        prefill.n_rows = p.pack.n_rows - prefill.row0 < TILE ? p.pack.n_rows - prefill.row0 : TILE;
        b->prefill_qkv(dev, &prefill);
    }
    b->prefill_attention(dev, &prefill);
    prefill.last_only = true;
    prefill.out = mem.last;
    b->prefill_attention(dev, &prefill);
    b->key_scores(dev, &prefill);
    const fkv_keep_args args = {.pack = &p.pack,
                                .spec = spec,
                                .n_heads = HEADS,
                                .score_window = WINDOW,
                                .sinks = sinks,
                                .qkv = mem.qkv,
                                .scores = mem.scores,
                                .second = second,
                                .score_stride = ROWS,
                                .owner = owner,
                                .n_slots = SLOTS,
                                .kv = {&mem.arena, mem.table, HEADS * PAGES, offset, budgets, form}};
    b->kv_keep(dev, &args);
    b->last_rows(dev, &p.pack, mem.x, HIDDEN, mem.rows);

    const fkv_segment *s = &p.segments[wanted];
    const int64_t act = info.act_bytes;
    memset(got, 0, sizeof *got);
    get(got->qkv, (char *)mem.qkv + s->row0 * WIDTH * act, (size_t)s->n_tokens * WIDTH);
    get(got->out, (char *)mem.out + s->row0 * ATT * act, (size_t)s->n_tokens * ATT);
    get(got->last, (char *)mem.last + s->slot * ATT * act, ATT);
    get(got->row, (char *)mem.rows + s->slot * HIDDEN * act, HIDDEN);
    for (int h = 0; h < HEADS; h++) {
        const size_t scored = sizeof(float) * (size_t)(s->n_tokens > 40 ? s->n_tokens - WINDOW : 0);
        fetch(got->scores[h], mem.scores + h * ROWS + s->row0, scored);
        fetch(got->second[h], mem.second + h * ROWS + s->row0, scored);
        for (int i = 0; i < PAGES; i++) {
            const int page = ((s->slot * HEADS * PAGES + h * PAGES + i) * 7 + 3) % (SLOTS * HEADS * PAGES);
            get_page(got->pages[h] + i * PAGE, page);
        }
    }
    free(x);
}

static void assert_same(const outcome *a, const outcome *other, int prompt, int place)
{
    const struct {
        const char *what;
        const void *a, *b;
        size_t bytes;
    } parts[] = {{"Q, K, V", a->qkv, other->qkv, sizeof a->qkv},
                 {"attention", a->out, other->out, sizeof a->out},
                 {"the last query's attention", a->last, other->last, sizeof a->last},
                 {"the last row", a->row, other->row, sizeof a->row},
                 {"scores", a->scores, other->scores, sizeof a->scores},
                 {"critical's second scores", a->second, other->second, sizeof a->second},
                 {"kept pages", a->pages, other->pages, sizeof a->pages}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (memcmp(parts[i].a, parts[i].b, parts[i].bytes))
            fail_msg("layer %d, %s, prompt %d at place %d of a pack: %s differ from those alone", layer,
                     fkv_scorer_name(scorer), prompt, place, parts[i].what);
}

/* By every scorer and in every layer, and into pages of every form by some. */
static void sweep(void (*check)(void))
{
    for (layer = 0; layer < LAYERS; layer++)
        for (int i = 0; i < 2 * FKV_N_SCORERS; i++) {
            scorer = (fkv_scorer)(i / 2);
            form = (fkv_kv_form)(i % 2);
            if (form == FKV_KV_PLAIN || scorer == FKV_SCORER_SNAPKV || scorer == FKV_SCORER_CRITICAL) check();
        }
    layer = 0;
    scorer = FKV_SCORER_SNAPKV;
    form = FKV_KV_PLAIN;
}

static void check_packs(void)
{
    enum { PROMPTS = 13 };
    outcome *alone = calloc(1, sizeof *alone), *beside = calloc(1, sizeof *beside);
    for (int prompt = 0; prompt < PROMPTS; prompt++) {
        const int slot = prompt;
        run_pack(&prompt, &slot, 1, 0, alone);
        for (int place = 0; place < PROMPTS; place += place < 4 ? 1 : 3) {
            int order[PROMPTS], slots[PROMPTS];
            for (int i = 0; i < PROMPTS; i++) {
                order[(place + i) % PROMPTS] = (prompt + i) % PROMPTS;
                slots[(place + i) % PROMPTS] = (prompt + i) % PROMPTS;
            }
            run_pack(order, slots, PROMPTS, place, beside);
            assert_same(alone, beside, prompt, place);
        }
    }
    free(alone);
    free(beside);
}

static void a_prompts_results_do_not_depend_on_its_pack(void **state)
{
    (void)state;
    sweep(check_packs);
}

static void check_long_prompt(void)
{
    enum { N = 39 };
    int prompts[N], slots[N], only = 14, slot = 5;
    outcome *alone = calloc(1, sizeof *alone), *beside = calloc(1, sizeof *beside);
    run_pack(&only, &slot, 1, 0, alone);
    for (int place = 0; place < N; place += 19) {
        for (int i = 0; i < N; i++) {
            prompts[i] = i == place ? only : i % 2 ? 4 : 10;
            slots[i] = i == place ? slot : i < 5 ? i : i + 1;
        }
        if (place < 5)
            for (int i = 0; i < N; i++) slots[i] = i == place ? slot : i >= 5 ? i + 1 : i;
        run_pack(prompts, slots, N, place, beside);
        assert_same(alone, beside, only, place);
    }
    free(alone);
    free(beside);
}

static void a_long_prompt_is_the_same_behind_many_short_ones(void **state)
{
    (void)state;
    sweep(check_long_prompt);
}

static void check_bad_prompt(void)
{
    const int prompts[] = {3, 14}, slots[] = {1, 2}, longest = 14, slot = 0; /* 300 and 700 tokens */
    outcome *before = calloc(1, sizeof *before), *after = calloc(1, sizeof *after);
    run_pack(prompts, slots, 2, 1, before);
    only_bad = 3;
    run_pack(&longest, &slot, 1, 0, after); /* chose positions that the next prompt does not have */
    run_pack(prompts, slots, 2, 1, after);
    assert_same(before, after, longest, 1);
    run_pack(prompts, slots, 2, 0, after);
    for (int i = 0; i < FKV_PAGE_TOKENS * HD; i++) /* K of the first page of the head that keeps 200 */
        if (!isnan(after->pages[1][i])) fail_msg("token %d kept is another prompt's", i / HD);
    only_bad = -1;
    free(before);
    free(after);
}

/* A prompt whose K are no numbers has scores that are none: it keeps some tokens of its own all the
 * same, and its neighbours in the pack are as ever. */
static void a_prompt_of_no_numbers_harms_nobody(void **state)
{
    (void)state;
    sweep(check_bad_prompt);
}

static void slots_start_fresh(void **state)
{
    (void)state;
    const int64_t lengths[] = {5, 9};
    const int where[] = {3, 1};
    const int32_t rope0s[] = {0, 64};
    int32_t *ints[8], host[4];
    fkv_slots s;
    int32_t **fields[] = {&s.token, &s.pos, &s.prompt_len, &s.n_new, &s.max_new, &s.active, &s.out, &s.rope0};
    fkv_sampling samplings[4];
    const int32_t sevens[4] = {7, 7, 7, 7};
    const fkv_sampling wide[4] = {{.stream = 7}, {.stream = 7}, {.stream = 7}, {.stream = 7}};
    const uint64_t streams[] = {7, 1001, 7, 1000};
    packed p;
    for (int i = 0; i < 8; i++) *fields[i] = ints[i] = device_memory(sizeof sevens, sevens);
    s.sampling = device_memory(sizeof wide, wide);
    pack_prompts_from(&p, lengths, where, rope0s, 2);
    b->start_slots(dev, &p.pack, &s);
    fetch(host, s.pos, sizeof host);
    assert_memory_equal(host, ((int32_t[]){7, 9, 7, 5}), sizeof host);
    fetch(host, s.prompt_len, sizeof host);
    assert_memory_equal(host, ((int32_t[]){7, 9, 7, 5}), sizeof host);
    fetch(host, s.rope0, sizeof host);
    assert_memory_equal(host, ((int32_t[]){7, 64, 7, 0}), sizeof host);
    fetch(host, s.n_new, sizeof host);
    assert_memory_equal(host, ((int32_t[]){7, 0, 7, 0}), sizeof host);
    fetch(host, s.max_new, sizeof host);
    assert_memory_equal(host, ((int32_t[]){7, 101, 7, 100}), sizeof host);
    fetch(host, s.active, sizeof host);
    assert_memory_equal(host, ((int32_t[]){7, FKV_SLOT_FRESH, 7, FKV_SLOT_FRESH}), sizeof host);
    fetch(samplings, s.sampling, sizeof samplings);
    for (int i = 0; i < 4; i++) assert_int_equal(samplings[i].stream, streams[i]);
}

static void edits_set_what_they_name(void **state)
{
    (void)state;
    enum { N = 3000 };
    static int32_t got[N], want[N];
    static fkv_edit edits[N / 2];
    for (int i = 0; i < N; i++) want[i] = -i;
    int32_t *dst = device_memory(sizeof want, want);
    for (int i = 0; i < N / 2; i++) edits[i] = (fkv_edit){(i * 2 + 1) % N, 5 * i};
    for (int i = 0; i < N / 2; i++) want[edits[i].index] = edits[i].value;
    b->scatter(dev, dst, device_memory(sizeof edits, edits), N / 2);
    fetch(got, dst, sizeof got);
    assert_memory_equal(got, want, sizeof got);
}

/* Downloads are there after the wait for their ticket, whatever was enqueued since. */
static void tickets_wait_for_what_came_before(void **state)
{
    (void)state;
    enum { N = 1 << 16, STEPS = 40 };
    int32_t *values = calloc(N, sizeof *values), *got[2] = {calloc(N, sizeof **got), calloc(N, sizeof **got)};
    int32_t *dst = device_memory(N * sizeof *values, values);
    int64_t tickets[2] = {0};
    fkv_err err = {0};
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < N; i++) values[i] = step * N + i;
        b->upload(dev, dst, values, N * sizeof *values);
        b->download(dev, got[step % 2], dst, N * sizeof *values);
        tickets[step % 2] = b->post(dev);
        if (step == 0) continue;
        assert_int_equal(b->wait(dev, tickets[(step + 1) % 2], &err), FKV_OK);
        for (int i = 0; i < N; i++)
            if (got[(step + 1) % 2][i] != (step - 1) * N + i)
                fail_msg("step %d: element %d is not there", step, i);
    }
    assert_int_equal(b->sync(dev, &err), FKV_OK);
    assert_int_equal(b->wait(dev, tickets[(STEPS + 1) % 2], &err), FKV_OK);
    free(values), free(got[0]), free(got[1]);
}

/* What scorers want of an output projection; w: of at least as many values. */
static void load_output(const float *w)
{
    enum { QUERIES = HEADS * GROUP };
    output_heads = load_weight(w, QUERIES * HIDDEN, HD);
    gram = device_memory(sizeof(float) * QUERIES * HD * HD, NULL);
    b->weight_gram(dev, output_heads, HIDDEN, QUERIES, gram);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompts_results_do_not_depend_on_its_pack),
        cmocka_unit_test(a_long_prompt_is_the_same_behind_many_short_ones),
        cmocka_unit_test(a_prompt_of_no_numbers_harms_nobody),
        cmocka_unit_test(slots_start_fresh),
        cmocka_unit_test(edits_set_what_they_name),
        cmocka_unit_test(tickets_wait_for_what_came_before),
    };
    const int skipped = choose_backend(argc, argv);
    if (skipped) return skipped;
    for (int i = 0; i < LAYERS; i++) layers[i] = plain_spec(HD, GROUP, HEADS);
    layers[1].rope = 1;
    layers[1].window = 90;
    layers[1].scale = 0.25f;
    layers[1].softcap = 3;
    layers[1].qkv_bias = layers[1].qk_norm = true;
    device_open((fkv_device_limits){.n_slots = SLOTS,
                                    .max_prompt = ROWS,
                                    .max_positions = 2048,
                                    .hidden = HIDDEN,
                                    .n_heads = HEADS * GROUP,
                                    .n_kv_heads = HEADS,
                                    .head_dim = HD,
                                    .vocab = 8,
                                    .max_local_heads = HEADS,
                                    .window = WINDOW,
                                    .scorers = (1u << FKV_N_SCORERS) - 1,
                                    .layers = layers,
                                    .n_layers = LAYERS});
    float *w = host_floats(WIDTH * HIDDEN), *bias = host_floats(WIDTH), *ones = host_floats(HD);
    inputs = host_floats(ROWS * HIDDEN);
    fill_uniform(w, WIDTH * HIDDEN, 0.25f);
    fill_uniform(inputs, ROWS * HIDDEN, 1);
    fill_uniform(bias, WIDTH, 1);
    for (int i = 0; i < HD; i++) ones[i] = 1;
    for (int i = 0; i < LAYERS; i++) weights[i] = load_biased(w, i ? bias : NULL, WIDTH, HIDDEN);
    norm.q = norm.k = device_memory(HD * sizeof *ones, ones);
    norm.eps = 1e-5f;
    load_output(w);
    make_memory();
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close();
    free(w);
    free(bias);
    free(ones);
    free(inputs);
    return failed;
}
