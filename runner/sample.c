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

static fkv_status take(const fkv_setup *setup, fkv_reader *reader, fkv_prompter *prompter, fkv_sample *s,
                       fkv_record *record, fkv_sample_record *next, fkv_err *err)
{
    const int64_t capacity = setup->job->profile.sample;
    fkv_line line;
    fkv_status st;
    while (!(st = fkv_reader_next(reader, &line, err))) {
        int64_t truncated;
        s->n_input = line.ordinal + 1;
        fkv_tally_count(setup->tally, s->n_input, 0);
        if (!line.error_code && (int64_t)line.n > s->max_line_bytes) s->max_line_bytes = (int64_t)line.n;
        if (fkv_interrupt_signal()) return fkv_fail(err, FKV_E_INTERRUPTED, "interrupted");
        const uint64_t key = fkv_random_u64(setup->job->job.seed, sample_stream, (uint64_t)line.ordinal);
        if (line.error_code || (s->n == capacity && key >= s->records[0].key)) continue;
        if ((st = fkv_record_parse(setup->parser, &line, record, err))) return st;
        if (record->error_code[0]) continue;
        if ((st = fkv_prompter_make(prompter, record, &next->ids, &next->max_new, &truncated, err)))
            return st;
        if (record->error_code[0]) continue;
        next->ordinal = line.ordinal;
        next->key = key;
        next->n_tokens = (int64_t)next->ids.len + truncated;
        next->n_bytes = (int64_t)line.n;
        put(s, capacity, next);
    }
    return st == FKV_END ? FKV_OK : st;
}

fkv_status fkv_sample_take(const fkv_setup *setup, const fkv_layout *layout, fkv_sample *s, fkv_err *err)
{
    fkv_errs errs = {0};
    fkv_reader *reader = NULL;
    const fkv_prompt_source source = fkv_setup_prompts(setup, layout);
    fkv_prompter *prompter = NULL;
    fkv_record record = {0};
    fkv_sample_record next = {0};
    fkv_status st;
    *s = (fkv_sample){0};
    s->records = fkv_calloc((size_t)setup->job->profile.sample, sizeof *s->records);
    if (!s->records) return fkv_fail_memory(err);
    if ((st = fkv_reader_open(setup->job, &reader, &errs))) {
        if (errs.at) *err = errs.at[0];
        goto out;
    }
    fkv_reader_watch(reader, fkv_interrupt_asks, NULL);
    fkv_reader_quiet(reader);
    if ((st = fkv_prompter_open(&source, &prompter, err))) goto out;
    if ((st = take(setup, reader, prompter, s, &record, &next, err))) goto out;
    qsort(s->records, (size_t)s->n, sizeof *s->records, by_ordinal);
out:
    fkv_ids_free(&next.ids);
    fkv_record_free(&record);
    fkv_prompter_close(prompter);
    fkv_reader_close(reader);
    fkv_errs_free(&errs);
    return st;
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
    for (int64_t i = 0; i < s->n; i++) fkv_ids_free(&s->records[i].ids);
    free(s->records);
    *s = (fkv_sample){0};
}
