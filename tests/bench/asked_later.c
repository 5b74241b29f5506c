/* The program with two things that no user has, for quality.py: text can be compressed before the question
 * about it is asked, and heads can keep what they are told.
 *
 *     FAIRKV_ASKED_LATER=FILE asked_later run JOB.ini ...
 *
 * A line of FILE is for the record of the job that has the line's number:
 *     N id id ... id   M p p ... p
 * After the prompt the record "generates" these N ids, whatever the model says, and answers behind them; they
 * count in its limit of new tokens. The M numbers stand in place of the scorer's scores, by position in the
 * prompt and for every head alike; M 0: the scorer's own.
 *
 * The linker gives this program fkv_backend_cpu as __wrap_fkv_backend_cpu: all of it is the program's, but
 * for the logits that say what the next token is and the scores that kv_keep gets. One rank, greedy. */
#include <float.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/backend.h"

const fkv_backend *__real_fkv_backend_cpu(void);
const fkv_backend *__wrap_fkv_backend_cpu(void);

typedef struct told {
    int32_t *ids;
    float *scores;
    int n_ids, n_scores;
} told;

static struct {
    told *at; /* [n], by record */
    uint64_t n;
    fkv_backend backend;
} all;

static void die(const char *what)
{
    fprintf(stderr, "asked_later: %s\n", what);
    exit(3);
}

static int read_count(FILE *f)
{
    int n;
    if (fscanf(f, "%d", &n) != 1) return -1;
    if (n < 0) die("a number below 0");
    return n;
}

static void read_told(FILE *f, told *t)
{
    t->ids = calloc((size_t)t->n_ids + 1, sizeof *t->ids);
    for (int i = 0; t->ids && i < t->n_ids; i++)
        if (fscanf(f, "%d", &t->ids[i]) != 1) die("an id is missing");
    t->n_scores = read_count(f);
    if (t->n_scores < 0) die("the number of scores is missing");
    t->scores = calloc((size_t)t->n_scores + 1, sizeof *t->scores);
    for (int i = 0; t->scores && i < t->n_scores; i++)
        if (fscanf(f, "%f", &t->scores[i]) != 1) die("a score is missing");
    if (!t->ids || !t->scores) die("out of memory");
}

static void read_all(const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f) die("FAIRKV_ASKED_LATER can't be opened");
    for (int n; (n = read_count(f)) >= 0;) {
        told *more = realloc(all.at, (size_t)(all.n + 1) * sizeof *more);
        if (!more) die("out of memory");
        all.at = more;
        all.at[all.n] = (told){.n_ids = n};
        read_told(f, &all.at[all.n++]);
    }
    fclose(f);
}

static const told *told_of(const fkv_sampling *s)
{
    if (s->stream >= all.n) die("a record without a line");
    return &all.at[s->stream];
}

/* The next id of the question is by far the likeliest. */
static void sample(fkv_device *dev, float *logits, int64_t stride, int n_slots, bool first,
                   const fkv_slots *slots, const fkv_token_rules *rules, int choice, int vocab)
{
    for (int s = 0; s < n_slots; s++) {
        if (slots->active[s] != (first ? FKV_SLOT_FRESH : FKV_SLOT_DECODING)) continue;
        const told *t = told_of(&slots->sampling[s]);
        const int n = slots->n_new[s];
        if (n < t->n_ids) logits[s * stride + t->ids[n]] = FLT_MAX / 2;
    }
    __real_fkv_backend_cpu()->sample(dev, logits, stride, n_slots, first, slots, rules, choice, vocab);
}

static void kv_keep(fkv_device *dev, const fkv_keep_args *a)
{
    for (int i = 0; i < a->pack->n_segments; i++) {
        const fkv_segment *s = &a->pack->segments[i];
        const told *t = told_of(&s->sampling);
        if (t->n_scores && t->n_scores != s->n_tokens) die("not as many scores as tokens");
        for (int h = 0; a->scores && t->n_scores && h < a->n_heads; h++) {
            float *to = (float *)(uintptr_t)a->scores + h * a->score_stride + s->row0;
            for (int p = 0; p < s->n_tokens - a->score_window; p++) to[p] = t->scores[p];
        }
    }
    __real_fkv_backend_cpu()->kv_keep(dev, a);
}

const fkv_backend *__wrap_fkv_backend_cpu(void)
{
    const char *path = getenv("FAIRKV_ASKED_LATER");
    if (!path) return __real_fkv_backend_cpu();
    if (!all.at) { /* the first call comes before any thread */
        read_all(path);
        all.backend = *__real_fkv_backend_cpu();
        all.backend.sample = sample;
        all.backend.kv_keep = kv_keep;
    }
    return &all.backend;
}
