/* The profile's sample: see sample.h. */
#include "runner/sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/archive.h"
#include "runner/base/hash.h"
#include "runner/base/mem.h"
#include "runner/interrupt.h"
#include "runner/tally.h"

/* Tells the sample's random numbers from those of sampling tokens. */
static const uint64_t sample_stream = 0x73616d706c65;

enum { LONGEST = 1 << 30 }; /* tokens of a prompt, as profile.json has them at the most */

/* records is a heap while it is filled: the largest key on top. */
static void sift_down(fkv_sample_record *a, int64_t n, int64_t i)
{
    for (;;) {
        int64_t top = i;
        for (int64_t c = 2 * i + 1; c <= 2 * i + 2; c++)
            if (c < n && a[c].key > a[top].key) top = c;
        if (top == i) return;
        const fkv_sample_record t = a[i];
        a[i] = a[top];
        a[top] = t;
        i = top;
    }
}

static void sift_up(fkv_sample_record *a, int64_t i)
{
    while (i > 0 && a[(i - 1) / 2].key < a[i].key) {
        const fkv_sample_record t = a[i];
        a[i] = a[(i - 1) / 2];
        a[(i - 1) / 2] = t;
        i = (i - 1) / 2;
    }
}

static void put(fkv_sample *s, int64_t capacity, fkv_sample_record *r)
{
    if (s->n < capacity) {
        s->records[s->n] = *r;
        *r = (fkv_sample_record){0};
        sift_up(s->records, s->n++);
    } else { /* the record that leaves gives its buffer to the next */
        const fkv_sample_record out = s->records[0];
        s->records[0] = *r;
        *r = out;
        sift_down(s->records, s->n, 0);
    }
}

static int by_ordinal(const void *a, const void *b)
{
    const int64_t x = ((const fkv_sample_record *)a)->ordinal, y = ((const fkv_sample_record *)b)->ordinal;
    return (x > y) - (x < y);
}

static int by_key(const void *a, const void *b)
{
    const uint64_t x = ((const fkv_sample_record *)a)->key, y = ((const fkv_sample_record *)b)->key;
    return x == y ? by_ordinal(a, b) : (x > y) - (x < y);
}

/* What is taken of the input, and into what. */
typedef struct taking {
    const fkv_setup *setup;
    int64_t capacity;
    bool keeps; /* the records too */
    fkv_sample *s;
    fkv_record record; /* where they are not kept */
    fkv_sample_record next;
} taking;

/* The record that the next line is parsed into. */
static fkv_record *place_of(taking *t, fkv_err *err)
{
    if (!t->keeps) return &t->record;
    if (!t->next.record && !(t->next.record = calloc(1, sizeof *t->next.record))) fkv_fail_memory(err);
    return t->next.record;
}

/* One whose key is small enough. *usable: a run would not make an error row of it. */
static fkv_status parse(taking *t, fkv_prompter *prompter, const fkv_line *line, bool *usable, fkv_err *err)
{
    fkv_sample_record *next = &t->next;
    fkv_record *record = place_of(t, err);
    *usable = false;
    if (!record) return FKV_E_SYSTEM;
    fkv_status st = fkv_record_parse(t->setup->parser, line, record, err);
    if (st || record->error_code[0]) return st;
    st = fkv_prompter_make(prompter, record, &next->ids, &next->max_new, &next->truncated, err);
    if (t->keeps) fkv_buf_free(&record->prompt);
    *usable = !st && !record->error_code[0];
    return st;
}

static fkv_status take(taking *t, fkv_reader *reader, fkv_prompter *prompter, fkv_err *err)
{
    fkv_sample *s = t->s;
    fkv_line line;
    fkv_status st;
    while (!(st = fkv_reader_next(reader, &line, err))) {
        bool usable = false;
        s->n_input = line.ordinal + 1;
        fkv_tally_count(t->setup->tally, s->n_input, 0);
        if (!line.error_code && (int64_t)line.n > s->max_line_bytes) s->max_line_bytes = (int64_t)line.n;
        if (fkv_interrupt_signal()) return fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
        const uint64_t key = fkv_random_u64(t->setup->job->job.seed, sample_stream, (uint64_t)line.ordinal);
        if (s->n == t->capacity && key >= s->records[0].key) continue;
        if (!line.error_code && (st = parse(t, prompter, &line, &usable, err))) return st;
        s->n_left_out += !usable;
        if (!usable) continue;
        t->next.ordinal = line.ordinal;
        t->next.key = key;
        t->next.n_tokens = (int64_t)t->next.ids.len + t->next.truncated;
        t->next.n_bytes = (int64_t)line.n;
        put(s, t->capacity, &t->next);
    }
    return st == FKV_END ? FKV_OK : st;
}

static void free_one(fkv_sample_record *r)
{
    fkv_ids_free(&r->ids);
    if (r->record) fkv_record_free(r->record);
    free(r->record);
}

static fkv_status take_all(taking *t, const fkv_layout *layout, fkv_err *err)
{
    fkv_errs errs = {0};
    fkv_reader *reader = NULL;
    const fkv_prompt_source source = fkv_setup_prompts(t->setup, layout);
    fkv_prompter *prompter = NULL;
    fkv_status st;
    *t->s = (fkv_sample){0};
    t->s->records = fkv_calloc((size_t)t->capacity, sizeof *t->s->records);
    if (!t->s->records) return fkv_fail_memory(err);
    if ((st = fkv_reader_open(t->setup->job, &reader, &errs))) {
        if (errs.at) *err = errs.at[0];
        goto out;
    }
    fkv_reader_watch(reader, fkv_interrupt_asks, NULL);
    fkv_reader_quiet(reader);
    if ((st = fkv_prompter_open(&source, &prompter, err))) goto out;
    st = take(t, reader, prompter, err);
out:
    free_one(&t->next);
    fkv_record_free(&t->record);
    fkv_prompter_close(prompter);
    fkv_reader_close(reader);
    fkv_errs_free(&errs);
    return st;
}

static void sort_by_ordinal(fkv_sample *s)
{
    qsort(s->records, (size_t)s->n, sizeof *s->records, by_ordinal);
}

fkv_status fkv_sample_take(const fkv_setup *setup, const fkv_layout *layout, fkv_sample *s, fkv_err *err)
{
    taking t = {.setup = setup, .capacity = setup->job->profile.sample, .s = s};
    const fkv_status st = take_all(&t, layout, err);
    if (!st) sort_by_ordinal(s);
    return st;
}

fkv_status fkv_sample_take_more(const fkv_setup *setup, const fkv_layout *layout, int64_t n_more,
                                fkv_sample *s, fkv_sample *more, fkv_err *err)
{
    const int64_t n = setup->job->profile.sample;
    taking t = {.setup = setup, .capacity = n + n_more, .keeps = true, .s = s};
    *more = (fkv_sample){0};
    const fkv_status st = take_all(&t, layout, err);
    if (st) return st;
    if (!(more->records = fkv_calloc((size_t)n_more, sizeof *more->records))) return fkv_fail_memory(err);
    qsort(s->records, (size_t)s->n, sizeof *s->records, by_key);
    for (; s->n > n; s->n--) more->records[more->n++] = s->records[s->n - 1];
    more->n_input = s->n_input;
    more->n_left_out = s->n_left_out;
    sort_by_ordinal(s);
    sort_by_ordinal(more);
    return FKV_OK;
}

int64_t fkv_sample_longest(const fkv_sample *s)
{
    int64_t longest = 0, most_bytes = 0;
    double per_byte = 0;
    for (int64_t i = 0; i < s->n; i++) {
        if (s->records[i].n_tokens > longest) longest = s->records[i].n_tokens;
        if (s->records[i].n_bytes > most_bytes) most_bytes = s->records[i].n_bytes;
    }
    /* A template's own tokens would make short lines look dense. */
    for (int64_t i = 0; i < s->n; i++) {
        const fkv_sample_record *r = &s->records[i];
        if (2 * r->n_bytes >= most_bytes) per_byte = fmax(per_byte, (double)r->n_tokens / (double)r->n_bytes);
    }
    const double expected = 1.125 * per_byte * (double)s->max_line_bytes;
    if (s->n == s->n_input || expected < (double)longest) return longest;
    return expected < LONGEST ? (int64_t)expected : LONGEST;
}

void fkv_sample_free(fkv_sample *s)
{
    for (int64_t i = 0; i < s->n; i++) free_one(&s->records[i]);
    free(s->records);
    *s = (fkv_sample){0};
}
