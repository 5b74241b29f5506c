/* What a run counts: see tally.h. One lock guards all of it; it is held for a few lines, or for a copy of
 * the series. */
#include "runner/tally.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/clock.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

enum { RATE_TICKS = 61 };
static const double rate_seconds = 60.5;

typedef struct sums {
    int64_t records, errors, prompt_tokens, completion_tokens; /* of this run */
} sums;

struct fkv_tally {
    pthread_mutex_t mutex;
    atomic_bool wants;
    double start;
    fkv_stage stage;
    double stage_start, seconds[FKV_STAGES]; /* of stages that are over */
    int64_t n, all;
    bool answering;
    fkv_tally_goal goal;
    double answer_start;
    sums now;
    fkv_error_counts errors;
    fkv_stats_lengths prompts, answers;
    int64_t n_read, bytes, all_bytes;
    bool input_ended;
    fkv_engine_stats engine;
    struct {
        double at;
        sums sums;
    } ticks[RATE_TICKS]; /* a ring, oldest at n_ticks modulo its size once it is full */
    int64_t n_ticks;
    fkv_stats_point points[FKV_STATS_POINTS];
    int n_points;
    double interval, next_point; /* seconds */
    double busy_sum;             /* since the last point */
    int64_t busy_n;
};

fkv_status fkv_tally_open(double start, fkv_tally **tally, fkv_err *err)
{
    fkv_tally *t = *tally = fkv_calloc(1, sizeof *t);
    if (!t) return fkv_fail_memory(err);
    pthread_mutex_init(&t->mutex, NULL);
    t->start = t->stage_start = start;
    t->interval = 1;
    return FKV_OK;
}

void fkv_tally_close(fkv_tally *t)
{
    if (!t) return;
    pthread_mutex_destroy(&t->mutex);
    free(t);
}

fkv_stage fkv_tally_stage(fkv_tally *t, fkv_stage stage)
{
    if (!t) return stage;
    const double now = fkv_seconds();
    pthread_mutex_lock(&t->mutex);
    const fkv_stage before = t->stage;
    t->seconds[before] += now - t->stage_start;
    t->stage = stage;
    t->stage_start = now;
    if (stage != before) t->n = t->all = 0;
    const double spent = t->seconds[before];
    pthread_mutex_unlock(&t->mutex);
    if (stage != before)
        fkv_log_at(FKV_LOG_DEBUG, "stage %s: %.3f s",
                   before == FKV_STAGE_OTHER ? "answer" : fkv_stage_name(before), spent);
    return before;
}

void fkv_tally_count(fkv_tally *t, int64_t n, int64_t all)
{
    if (!t) return;
    pthread_mutex_lock(&t->mutex);
    t->n = n;
    t->all = all;
    pthread_mutex_unlock(&t->mutex);
}

static fkv_stats_point point_of(const fkv_tally *t, double now)
{
    return (fkv_stats_point){.seconds = now - t->start,
                             .records = t->now.records,
                             .prompt_tokens = t->now.prompt_tokens,
                             .completion_tokens = t->now.completion_tokens,
                             .busy_slots = t->busy_n ? t->busy_sum / (double)t->busy_n : t->engine.busy_slots,
                             .errors = t->now.errors};
}

void fkv_tally_answer(fkv_tally *t, const fkv_tally_goal *goal)
{
    if (!t) return;
    const double now = fkv_seconds();
    pthread_mutex_lock(&t->mutex);
    t->goal = *goal;
    t->answering = true;
    atomic_store(&t->wants, true);
    t->answer_start = now;
    t->n_ticks = 0;
    t->points[0] = point_of(t, now);
    t->n_points = 1;
    t->next_point = now + t->interval;
    pthread_mutex_unlock(&t->mutex);
}

static void add_length(fkv_stats_lengths *l, int64_t n)
{
    int k = 0;
    while (n > 1 && k < FKV_STATS_LENGTHS - 1) {
        n >>= 1;
        k++;
    }
    l->at[k]++;
}

static void add(int64_t *sum, int64_t n)
{
    *sum = n > INT64_MAX - *sum ? INT64_MAX : *sum + n;
}

void fkv_tally_row(fkv_tally *t, const char *code, int64_t prompt_tokens, int64_t completion_tokens)
{
    if (!t) return;
    pthread_mutex_lock(&t->mutex);
    t->now.records++;
    add(&t->now.prompt_tokens, prompt_tokens);
    add(&t->now.completion_tokens, completion_tokens);
    if (code) {
        t->now.errors++;
        fkv_error_counts_add(&t->errors, code, strlen(code), 1);
    } else {
        add_length(&t->prompts, prompt_tokens);
        add_length(&t->answers, completion_tokens);
    }
    pthread_mutex_unlock(&t->mutex);
}

void fkv_tally_input(fkv_tally *t, int64_t n_records, int64_t bytes, int64_t all_bytes, bool ended)
{
    if (!t) return;
    pthread_mutex_lock(&t->mutex);
    t->n_read = n_records;
    t->bytes = bytes;
    t->all_bytes = all_bytes;
    t->input_ended = ended;
    pthread_mutex_unlock(&t->mutex);
}

bool fkv_tally_wants(fkv_tally *t)
{
    return t && atomic_load_explicit(&t->wants, memory_order_relaxed) && atomic_exchange(&t->wants, false);
}

void fkv_tally_engine(fkv_tally *t, const fkv_engine_stats *stats)
{
    if (!t) return;
    pthread_mutex_lock(&t->mutex);
    t->engine = *stats;
    pthread_mutex_unlock(&t->mutex);
}

/* Every second point goes; busy slots are means over twice the time. */
static void thin_points(fkv_tally *t)
{
    int n = 1; /* the first stays */
    for (int i = 2; i < t->n_points; i += 2) {
        fkv_stats_point p = t->points[i];
        p.busy_slots = (p.busy_slots + t->points[i - 1].busy_slots) / 2;
        t->points[n++] = p;
    }
    t->n_points = n;
    t->interval *= 2;
}

void fkv_tally_tick(fkv_tally *t, double now)
{
    if (!t) return;
    atomic_store(&t->wants, true);
    pthread_mutex_lock(&t->mutex);
    if (t->answering) {
        t->ticks[t->n_ticks % RATE_TICKS].at = now;
        t->ticks[t->n_ticks % RATE_TICKS].sums = t->now;
        t->n_ticks++;
        t->busy_sum += t->engine.busy_slots;
        t->busy_n++;
    }
    if (t->answering && now >= t->next_point) {
        /* One place stays free for the last. */
        if (t->n_points == FKV_STATS_POINTS - 1) thin_points(t);
        t->points[t->n_points++] = point_of(t, now);
        t->next_point = now + t->interval;
        t->busy_sum = 0;
        t->busy_n = 0;
    }
    pthread_mutex_unlock(&t->mutex);
}

/* Against the oldest tick within a minute, or the beginning of the answers. */
static void look_at_rates(const fkv_tally *t, double now, fkv_tally_view *v)
{
    double from = t->answer_start;
    sums then = {0};
    const int64_t kept = t->n_ticks < RATE_TICKS ? t->n_ticks : RATE_TICKS;
    const bool all = t->n_ticks <= kept && now - t->answer_start <= rate_seconds;
    for (int64_t i = t->n_ticks - kept; !all && i < t->n_ticks; i++) {
        if (now - t->ticks[i % RATE_TICKS].at > rate_seconds && i + 1 < t->n_ticks) continue;
        from = t->ticks[i % RATE_TICKS].at;
        then = t->ticks[i % RATE_TICKS].sums;
        break;
    }
    const double secs = now - from;
    if (secs <= 0) return;
    v->records_per_s = (double)(t->now.records - then.records) / secs;
    v->prompt_tokens_per_s = (double)(t->now.prompt_tokens - then.prompt_tokens) / secs;
    v->completion_tokens_per_s = (double)(t->now.completion_tokens - then.completion_tokens) / secs;
}

/* What the profile counted holds unless the input has grown since. Else what was read stands for the rest. */
static void look_at_total(const fkv_tally *t, fkv_tally_view *v)
{
    const fkv_tally_goal *g = &t->goal;
    int64_t n = g->n_input;
    v->total = -1;
    if (t->input_ended) {
        n = t->n_read;
    } else if (n <= 0 || t->n_read > n) {
        v->estimated = true;
        if (t->n_read <= 0 || t->bytes <= 0) return;
        const double guess = (double)t->n_read * ((double)t->all_bytes / (double)t->bytes);
        n = guess < 9e15 ? (int64_t)guess : t->n_read;
        if (g->limit && n > g->limit) n = g->limit;
        if (n < t->n_read) n = t->n_read;
    }
    v->total = g->share ? g->share(g->ctx, n) : n;
    if (v->total < v->done) v->total = v->done;
}

/* The engine's times are its own clocks': together they can't be more than the time that went by. */
static void look_at_stages(const fkv_tally *t, double now, fkv_tally_view *v)
{
    memcpy(v->seconds, t->seconds, sizeof v->seconds);
    v->seconds[t->stage] += now - t->stage_start;
    const double whole = v->seconds[FKV_STAGE_OTHER];
    double prefill = t->engine.prefill_seconds, decode = t->engine.decode_seconds;
    if (prefill + decode > whole) {
        prefill *= whole / (prefill + decode);
        decode = whole - prefill;
    }
    v->seconds[FKV_STAGE_PREFILL] = prefill;
    v->seconds[FKV_STAGE_DECODE] = decode;
    v->seconds[FKV_STAGE_OTHER] = whole - prefill - decode;
}

/* Rows come late: the first when all slots are prefilled. So time goes by what the engine has done of the
 * prompts and answers to come, at the rates that it has had so far. */
static double time_left(const fkv_tally *t, const fkv_tally_view *v)
{
    const fkv_engine_stats *e = &t->engine;
    const double records = (double)(v->total - t->goal.done);
    if (e->prefill_rows <= 0 || t->goal.mean_prompt <= 0)
        return v->records_per_s > 0 ? (double)(v->total - v->done) / v->records_per_s : -1;
    const bool known = t->now.records >= t->goal.slots && t->now.records > 0;
    const double mean_new =
        known ? (double)t->now.completion_tokens / (double)t->now.records : t->goal.mean_new;
    const double prompts = fmax(records * t->goal.mean_prompt - (double)e->prefill_rows, 0);
    const double steps = fmax(records * (mean_new - 1) - (double)e->busy_slot_steps, 0);
    return prompts * e->prefill_seconds / (double)e->prefill_rows +
           (e->busy_slot_steps > 0 ? steps * e->decode_seconds / (double)e->busy_slot_steps : 0);
}

void fkv_tally_look(fkv_tally *t, double now, fkv_tally_view *v)
{
    *v = (fkv_tally_view){.total = -1, .eta_s = -1};
    pthread_mutex_lock(&t->mutex);
    v->stage = t->stage;
    v->wall = now - t->start;
    v->in_stage = now - t->stage_start;
    v->n = t->n;
    v->all = t->all;
    v->answering = t->answering;
    v->done = t->goal.done + t->now.records;
    v->errors = t->goal.errors + t->now.errors;
    v->slots = t->goal.slots;
    v->balance = t->goal.balance;
    v->engine = t->engine;
    look_at_stages(t, now, v);
    if (t->answering) {
        look_at_rates(t, now, v);
        look_at_total(t, v);
        if (v->total >= 0) v->eta_s = v->total > v->done ? time_left(t, v) : 0;
    }
    pthread_mutex_unlock(&t->mutex);
}

void fkv_tally_recall(fkv_tally *t, double now, fkv_tally_history *h)
{
    pthread_mutex_lock(&t->mutex);
    memcpy(h->points, t->points, sizeof h->points);
    h->n_points = t->n_points;
    if (t->answering) h->points[h->n_points++] = point_of(t, now);
    h->prompts = t->prompts;
    h->answers = t->answers;
    h->errors = t->errors;
    pthread_mutex_unlock(&t->mutex);
}
