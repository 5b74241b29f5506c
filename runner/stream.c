/* The stream of a run: see stream.h. */
#include "runner/stream.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "jobs/archive.h"
#include "jobs/error_limit.h"
#include "jobs/row.h"
#include "runner/answer.h"
#include "runner/base/clock.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"
#include "runner/hold.h"
#include "runner/interrupt.h"
#include "runner/queue.h"
#include "runner/tally.h"
#include "runner/time_limit.h"

enum { READ_AHEAD = 32, SYNC_SECONDS = 5 };

/* A buffer that a large record left behind is given back. */
static const size_t keep_bytes = (size_t)1 << 20;

/* A record on its way: read, waiting, in a slot, or waiting for the writer. */
typedef struct item {
    fkv_record record;
    fkv_ids ids; /* prompt */
    int64_t max_new, truncated;
    fkv_ids out; /* answer */
    fkv_answer_watch watch;
    fkv_answer_ends ends;
    fkv_finish why;
    bool begun;   /* its prompt is prefilled */
    double given; /* monotonic seconds: to an engine */
} item;

typedef struct stream stream;

/* A replica at work. Its thread's, but for the atomics. */
typedef struct lane {
    stream *s;
    fkv_answer_maker maker; /* stop strings */
    fkv_layout layout;      /* with buffers as the replica has them now */
    item *held;             /* read, and longer than these buffers */
    atomic_llong in_hand;   /* work of the records that the engine has */
    atomic_bool away;       /* takes none: it makes its buffers anew, or has ended */
    fkv_engine *engine;     /* while it runs; its thread's */
    unsigned told;          /* round of telling that it was part of */
    fkv_engine_stats stats; /* as they were then; with the stream's lock */
} lane;

struct stream {
    const fkv_setup *setup;
    const fkv_planning *planning;
    fkv_output *output;
    fkv_replicas *replicas;
    fkv_reader *reader;
    lane *lanes; /* [n_lanes], by replica */
    int n_lanes;
    item *items;
    size_t n_items;
    fkv_queue *idle, *ready, *done;
    bool tells_kept;    /* rows have usage.kept_tokens */
    atomic_bool failed; /* stop everything */
    atomic_bool over;   /* the engines have ended: what is not read yet isn't wanted */
    atomic_bool told;   /* that a signal came */
    atomic_bool cut;    /* a signal ended a replica before the input did */
    atomic_llong n_answered;
    atomic_llong longest_ms; /* that a record took */
    atomic_bool out_of_time; /* another one would not end before the job's time limit */
    atomic_uint round;       /* of telling what the engines did */
    atomic_llong ready_work; /* of the records in ready */
    pthread_mutex_t lock;    /* for err and the lanes' stats */
    fkv_err err;             /* the first failure of reader or writer */
    atomic_llong n_input;
    fkv_stream_seen seen; /* the reader's until it has ended */
    bool reader_started, writer_started;
    pthread_t reader_id, writer_id;
};

static void stop_all(void *ctx)
{
    stream *s = ctx;
    atomic_store(&s->failed, true);
    fkv_queue_close(s->idle);
    fkv_queue_close(s->ready);
}

static void fail(stream *s, const fkv_err *err)
{
    pthread_mutex_lock(&s->lock);
    if (!s->err.status) s->err = *err;
    pthread_mutex_unlock(&s->lock);
    stop_all(s);
}

static void trim(fkv_buf *b)
{
    if (b->cap > keep_bytes) fkv_buf_free(b);
    fkv_buf_clear(b);
}

static void trim_ids(fkv_ids *ids)
{
    if (ids->cap * sizeof *ids->data > keep_bytes) fkv_ids_free(ids);
    ids->len = 0;
}

static void recycle(stream *s, item *it)
{
    trim(&it->record.member_name);
    trim(&it->record.id_json);
    trim(&it->record.dataset);
    trim(&it->record.fields);
    trim(&it->record.prompt);
    trim(&it->record.prefix);
    trim(&it->record.sampling.stop);
    trim_ids(&it->ids);
    trim_ids(&it->out);
    fkv_queue_push(s->idle, it);
}

/* What is still to be done for a record, roughly, in tokens: of its prompt, until it is prefilled, and new
 * ones, as many as there may be. */
static int64_t work_of(const item *it)
{
    return (it->begun ? 0 : (int64_t)it->ids.len) + it->max_new;
}

/* --- reader ---------------------------------------------------------------- */

/* What no slot can take is known here already. */
static void check_size(const stream *s, item *it)
{
    const fkv_planning *p = s->planning;
    const fkv_record_shape shape = {p->profile.n_layers, p->profile.n_kv_heads, p->layout.ranks,
                                    p->profile.budgets};
    fkv_err why = {0};
    if (fkv_record_check(&p->layout.record, &shape, (int64_t)it->ids.len, it->max_new, &why))
        fkv_record_set_error(&it->record, "too_large", "%s", why.message);
}

static fkv_status read_one(stream *s, const fkv_line *line, fkv_prompter *prompter, fkv_err *err)
{
    bool ended;
    item *it = fkv_queue_pop(s->idle, -1, &ended);
    if (!it) return FKV_END;
    fkv_status st = fkv_record_parse(s->setup->parser, line, &it->record, err);
    if (!st && !it->record.error_code[0])
        st = fkv_prompter_make(prompter, &it->record, &it->ids, &it->max_new, &it->truncated, err);
    if (st) return st;
    if (!it->record.error_code[0]) check_size(s, it);
    it->ends = (fkv_answer_ends){fkv_sampling_of(s->setup, &it->record), fkv_stops_of(s->setup, &it->record)};
    trim(&it->record.prompt);
    if (it->record.error_code[0]) return fkv_queue_push(s->done, it) ? FKV_OK : FKV_END;
    it->begun = false;
    atomic_fetch_add(&s->ready_work, work_of(it));
    return fkv_queue_push(s->ready, it) ? FKV_OK : FKV_END;
}

/* Says once an archive that it is damaged: its error row alone is easily overlooked. */
static void see_damage(stream *s, const fkv_line *line)
{
    fkv_stream_seen *seen = &s->seen;
    if (!line->error_code || strcmp(line->error_code, "damaged_archive") != 0) return;
    if (seen->last_damaged && !strcmp(seen->last_damaged, line->archive)) return;
    seen->n_damaged++;
    seen->last_damaged = line->archive;
    fkv_log_at(FKV_LOG_WARNING,
               "%s is damaged at line %lld of \"%s\": %s; what could be read is answered, and error rows "
               "stand for the rest",
               line->archive, (long long)line->line, line->member, line->error_message);
}

/* ended: that was all of it. */
static void tell_input(const stream *s, bool ended)
{
    int64_t done, all;
    fkv_reader_progress(s->reader, &done, &all);
    fkv_tally_input(s->setup->tally, atomic_load(&s->n_input), done, all, ended);
}

static bool is_over(void *ctx)
{
    stream *s = ctx;
    return atomic_load(&s->over);
}

static fkv_status open_reader(stream *s, fkv_err *err)
{
    fkv_errs errs = {0};
    const fkv_status st = fkv_reader_open(s->setup->job, &s->reader, &errs);
    if (st && errs.at) *err = errs.at[0];
    fkv_errs_free(&errs);
    if (!st) fkv_reader_watch(s->reader, is_over, s);
    return st;
}

/* The input has ended after n records; part = auto: is it to be read again, for what others have left? */
static fkv_status read_again(stream *s, int64_t n, bool *again, fkv_err *err)
{
    fkv_err busy = {0};
    fkv_status st = atomic_load(&s->over) || fkv_interrupt_signal() ? FKV_E_BUSY : FKV_OK;
    *again = false;
    if (!st) st = fkv_output_claim(s->output, n, again, &busy);
    if (st && st != FKV_E_BUSY) *err = busy;
    if (st || !*again) return st == FKV_E_BUSY ? FKV_OK : st;
    fkv_reader_close(s->reader);
    s->reader = NULL;
    s->seen = (fkv_stream_seen){0};
    return open_reader(s, err);
}

static void end_input(const stream *s)
{
    fkv_passed passed;
    fkv_reader_passed(s->reader, &passed);
    fkv_output_pass_end(s->output, passed.records, passed.firm, passed.hash);
    tell_input(s, true);
}

static fkv_status read_once(stream *s, fkv_prompter *prompter, fkv_err *err)
{
    fkv_line line;
    fkv_status st = FKV_OK;
    while (!st && !(st = fkv_reader_next(s->reader, &line, err))) {
        atomic_store(&s->n_input, line.ordinal + 1);
        tell_input(s, false);
        if (atomic_load(&s->failed)) break;
        see_damage(s, &line);
        st = fkv_output_pass(s->output, line.ordinal + 1, line.passed, err);
        if (!st && fkv_output_needs(s->output, line.ordinal)) st = read_one(s, &line, prompter, err);
    }
    /* Else who takes the records has gone. */
    if (st == FKV_END && !atomic_load(&s->over) && !atomic_load(&s->failed)) end_input(s);
    return st == FKV_E_INTERRUPTED ? FKV_OK : st;
}

static fkv_status read_all(stream *s, fkv_err *err)
{
    const fkv_prompt_source source = fkv_setup_prompts(s->setup, &s->planning->layout);
    fkv_prompter *prompter = NULL;
    bool again = true;
    fkv_status st = fkv_prompter_open(&source, &prompter, err);
    while (!st && again) {
        st = read_once(s, prompter, err);
        again = st == FKV_END;
        if (again) st = read_again(s, atomic_load(&s->n_input), &again, err);
    }
    fkv_prompter_close(prompter);
    return st == FKV_E_INTERRUPTED ? FKV_OK : st;
}

static void *reader_main(void *arg)
{
    stream *s = arg;
    fkv_err err = {0};
    if (read_all(s, &err)) fail(s, &err);
    fkv_queue_close(s->ready);
    return NULL;
}

/* --- writer ---------------------------------------------------------------- */

static fkv_status write_one(stream *s, item *it, fkv_answer_maker *maker, fkv_buf *row, fkv_err *err)
{
    fkv_answer answer = {0};
    const bool is_error = it->record.error_code[0] != '\0';
    fkv_status st = FKV_OK;
    fkv_buf_clear(row);
    if (!is_error) {
        bool stopped;
        if ((st = fkv_answer_text(maker, &it->ends, it->out.data, it->out.len, &answer.text, &answer.n_text,
                                  &stopped, err)))
            return st;
        answer.finish_reason = stopped || it->why == FKV_FINISH_STOP ? "stop" : "length";
        answer.prompt_tokens = (int64_t)it->ids.len;
        answer.completion_tokens = (int64_t)it->out.len;
        answer.truncated_tokens = it->truncated;
        answer.kept_tokens =
            s->tells_kept
                ? fkv_planning_kept_tokens(&s->setup->config, &s->planning->profile, answer.prompt_tokens)
                : -1;
        answer.ids = it->out.data;
    }
    if ((st = fkv_row_write(&it->record, is_error ? NULL : &answer, s->setup->job->output.token_ids, row,
                            err)))
        return st;
    st = fkv_output_add(s->output, it->record.ordinal, row->data, row->len, is_error, answer.prompt_tokens,
                        answer.completion_tokens, err);
    if (!st)
        fkv_tally_row(s->setup->tally, is_error ? it->record.error_code : NULL, answer.prompt_tokens,
                      answer.completion_tokens);
    trim(row);
    return st;
}

static fkv_status check_errors(stream *s, fkv_err *err)
{
    fkv_output_totals t;
    fkv_output_totals_get(s->output, &t);
    return fkv_error_limit_check(s->setup->job, t.records, t.errors, false, false, err);
}

static fkv_status write_all(stream *s, fkv_err *err)
{
    fkv_answer_maker maker;
    fkv_buf row = {0};
    double synced = fkv_seconds();
    bool ended = false;
    fkv_status st = FKV_OK;
    fkv_answer_maker_open(&maker, s->setup);
    while (!st && !ended) {
        item *it = fkv_queue_pop(s->done, 1000, &ended);
        if (it) {
            st = write_one(s, it, &maker, &row, err);
            if (!st) st = check_errors(s, err);
            recycle(s, it);
        }
        const double t = fkv_seconds();
        if (!st && t - synced >= SYNC_SECONDS) {
            st = fkv_output_sync(s->output, err);
            synced = t;
        }
    }
    fkv_buf_free(&row);
    fkv_answer_maker_close(&maker);
    return st;
}

static void *writer_main(void *arg)
{
    stream *s = arg;
    fkv_err err = {0};
    if (write_all(s, &err)) fail(s, &err);
    return NULL;
}

/* --- engines' side ---------------------------------------------------------- */

/* Whether the lane has less than its even share of the work that is ready or in the engines' hands: one
 * that is quicker to ask would leave others without work at the input's end. With one lane it always has. */
static bool may_take(const lane *a)
{
    const stream *s = a->s;
    int64_t all = atomic_load(&s->ready_work), lanes = 0;
    if (s->n_lanes == 1 || fkv_queue_count(s->ready) == 0) return true; /* it may have ended */
    for (int i = 0; i < s->n_lanes; i++) {
        if (atomic_load(&s->lanes[i].away)) continue;
        all += atomic_load(&s->lanes[i].in_hand);
        lanes++;
    }
    return atomic_load(&a->in_hand) * lanes < all;
}

static bool is_longer(const lane *a, const item *it)
{
    const fkv_layout *l = &a->layout;
    return (int64_t)it->ids.len > l->max_prompt || (int64_t)it->ids.len + it->max_new > l->max_tokens;
}

static item *next_item(lane *a, bool wait, bool *ended)
{
    stream *s = a->s;
    item *it = a->held;
    a->held = NULL;
    *ended = false;
    if (!it && !wait && !may_take(a)) return NULL;
    while (!it && !*ended) {
        it = fkv_queue_pop(s->ready, wait ? 100 : 0, ended);
        if (!wait || fkv_interrupt_signal() || atomic_load(&s->failed)) break;
    }
    return it;
}

/* A record longer than the buffers ends this run of the engine: see run_engine. */
static fkv_status next_request(void *ctx, bool wait, fkv_request *request, fkv_err *err)
{
    lane *a = ctx;
    bool ended;
    item *it = next_item(a, wait, &ended);
    (void)err;
    if (!it) return ended ? FKV_END : FKV_E_BUSY;
    if (is_longer(a, it)) {
        a->held = it;
        atomic_store(&a->away, true);
        return FKV_END;
    }
    atomic_fetch_sub(&a->s->ready_work, work_of(it));
    atomic_fetch_add(&a->in_hand, work_of(it));
    it->given = fkv_seconds();
    *request = (fkv_request){.ordinal = it->record.ordinal,
                             .ids = it->ids.data,
                             .n_ids = (int64_t)it->ids.len,
                             .max_new = it->max_new,
                             .sampling = it->ends.sampling,
                             .user = it};
    return FKV_OK;
}

static bool on_token(void *ctx, const fkv_request *request, const int32_t *ids, int64_t n)
{
    lane *a = ctx;
    item *it = request->user;
    if (!it->begun) {
        it->begun = true;
        atomic_fetch_sub(&a->in_hand, (int64_t)it->ids.len);
    }
    return fkv_answer_stops(&a->maker, &it->ends.stops, &it->watch, ids, (size_t)n);
}

/* Every lane tells of its own engine, and with it what the others told last. */
static void tell_engines(lane *a)
{
    stream *s = a->s;
    fkv_engine_stats all = {0};
    pthread_mutex_lock(&s->lock);
    fkv_engine_stats_get(a->engine, &a->stats);
    for (int i = 0; i < s->n_lanes; i++) fkv_engine_stats_add(&all, &s->lanes[i].stats, s->n_lanes);
    fkv_tally_engine(s->setup->tally, &all);
    pthread_mutex_unlock(&s->lock);
}

static void tell_if_wanted(lane *a)
{
    stream *s = a->s;
    if (!a->engine) return; /* it waits in a hold, before the first record */
    if (fkv_tally_wants(s->setup->tally)) atomic_fetch_add(&s->round, 1);
    const unsigned round = atomic_load(&s->round);
    if (a->told == round) return;
    a->told = round;
    tell_engines(a);
}

/* What is begun now would take as long as the longest record until now. */
static bool is_out_of_time(stream *s)
{
    double left;
    if (atomic_load(&s->out_of_time)) return true;
    if (!fkv_time_limit_left(&left) || left > (double)atomic_load(&s->longest_ms) / 1000) return false;
    if (!atomic_exchange(&s->out_of_time, true))
        fkv_log("the job's time ends soon (SLURM_JOB_END_TIME), and records took up to %.0f s: no more are "
                "begun",
                (double)atomic_load(&s->longest_ms) / 1000);
    return true;
}

static fkv_stopping stopping(void *ctx)
{
    stream *s = ((lane *)ctx)->s;
    const int sig = fkv_interrupt_signal();
    tell_if_wanted(ctx);
    if (atomic_load(&s->failed)) return FKV_STOP_NOW;
    if (!sig) return is_out_of_time(s) ? FKV_DRAIN : FKV_GO_ON;
    const int64_t grace = s->setup->job->job.grace_s;
    if (!atomic_exchange(&s->told, true))
        fkv_log("signal %d: no more records are begun; those in flight have %lld s to end (job.grace)", sig,
                (long long)grace);
    return fkv_interrupt_age() < (double)grace ? FKV_DRAIN : FKV_STOP_NOW;
}

static bool stops_now(void *ctx)
{
    return stopping(ctx) == FKV_STOP_NOW;
}

/* To the writer. */
static void give(lane *a, item *it)
{
    const long long ms = (long long)((fkv_seconds() - it->given) * 1000);
    long long longest = atomic_load(&a->s->longest_ms);
    while (ms > longest && !atomic_compare_exchange_weak(&a->s->longest_ms, &longest, ms)) continue;
    atomic_fetch_sub(&a->in_hand, work_of(it));
    fkv_queue_push(a->s->done, it);
}

static fkv_status on_finish(void *ctx, const fkv_request *request, const int32_t *ids, int64_t n,
                            fkv_finish why, fkv_err *err)
{
    lane *a = ctx;
    item *it = request->user;
    if ((size_t)n > it->out.cap) {
        int32_t *data = fkv_realloc(it->out.data, (size_t)n, sizeof *data);
        if (!data) return fkv_fail_memory(err);
        it->out.data = data;
        it->out.cap = (size_t)n;
    }
    memcpy(it->out.data, ids, (size_t)n * sizeof *ids);
    it->out.len = (size_t)n;
    it->why = why;
    give(a, it);
    fkv_hold("records", atomic_fetch_add(&a->s->n_answered, 1) + 1, stops_now, a);
    return FKV_OK;
}

static fkv_status on_reject(void *ctx, const fkv_request *request, const char *code, const fkv_err *why,
                            fkv_err *err)
{
    item *it = request->user;
    (void)err;
    fkv_record_set_error(&it->record, code, "%s", why->message);
    give(ctx, it);
    return FKV_OK;
}

/* --- all of it -------------------------------------------------------------- */

static fkv_status start(stream *s, fkv_err *err)
{
    fkv_status st;
    s->n_items = (size_t)s->n_lanes * (FKV_ENGINE_HOLDS(s->planning->layout.slots) + READ_AHEAD);
    s->items = fkv_calloc(s->n_items, sizeof *s->items);
    s->lanes = fkv_calloc((size_t)s->n_lanes, sizeof *s->lanes);
    if (!s->items || !s->lanes) return fkv_fail_memory(err);
    if ((st = fkv_queue_open(s->n_items, &s->idle, err))) return st;
    if ((st = fkv_queue_open(s->n_items, &s->ready, err))) return st;
    if ((st = fkv_queue_open(s->n_items, &s->done, err))) return st;
    for (size_t i = 0; i < s->n_items; i++) fkv_queue_push(s->idle, &s->items[i]);
    if ((st = open_reader(s, err))) return st;
    s->tells_kept = fkv_output_tells_kept(s->output);
    for (int i = 0; i < s->n_lanes; i++) {
        s->lanes[i].s = s;
        s->lanes[i].layout = s->planning->layout;
        fkv_answer_maker_open(&s->lanes[i].maker, s->setup);
    }
    s->reader_started = pthread_create(&s->reader_id, NULL, reader_main, s) == 0;
    if (s->reader_started) s->writer_started = pthread_create(&s->writer_id, NULL, writer_main, s) == 0;
    return s->writer_started ? FKV_OK : fkv_fail(err, FKV_E_SYSTEM, "can't start a thread");
}

static void finish(stream *s)
{
    atomic_store(&s->over, true);
    if (s->idle) fkv_queue_close(s->idle); /* ends the reader where it waits */
    if (s->ready) fkv_queue_close(s->ready);
    if (s->reader_started) pthread_join(s->reader_id, NULL);
    if (s->done) fkv_queue_close(s->done); /* the writer empties it first */
    if (s->writer_started) pthread_join(s->writer_id, NULL);
    for (size_t i = 0; s->items && i < s->n_items; i++) {
        fkv_record_free(&s->items[i].record);
        fkv_ids_free(&s->items[i].ids);
        fkv_ids_free(&s->items[i].out);
        fkv_answer_watch_free(&s->items[i].watch);
    }
    for (int i = 0; s->lanes && i < s->n_lanes; i++) fkv_answer_maker_close(&s->lanes[i].maker);
    fkv_reader_close(s->reader);
    fkv_queue_free(s->idle);
    fkv_queue_free(s->ready);
    fkv_queue_free(s->done);
    free(s->lanes);
    free(s->items);
    pthread_mutex_destroy(&s->lock);
}

/* Until the input ends; with nothing in flight the buffers may grow. */
static fkv_status run_engine(lane *a, fkv_engine *engine, const fkv_engine_io *io, fkv_err *err)
{
    const stream *s = a->s;
    fkv_status st;
    while (!(st = fkv_engine_run(engine, io, err)) && a->held) {
        const item *it = a->held;
        st = fkv_planning_grow(s->setup, s->planning, (int64_t)it->ids.len, it->max_new, &a->layout, engine,
                               err);
        if (st) return st;
        atomic_store(&a->away, false);
    }
    return st;
}

/* One that ends by a signal lets the others end what they have begun. */
static fkv_status run_lane(void *ctx, int replica, fkv_engine *engine, fkv_err *err)
{
    stream *s = ctx;
    lane *a = &s->lanes[replica];
    const fkv_engine_io io = {.ctx = a,
                              .next = next_request,
                              .token = on_token,
                              .finish = on_finish,
                              .reject = on_reject,
                              .stopping = stopping};
    a->engine = engine;
    const fkv_status st = run_engine(a, engine, &io, err);
    atomic_store(&a->away, true);
    if (st != FKV_E_INTERRUPTED) return st;
    atomic_store(&s->cut, true);
    return FKV_OK;
}

fkv_status fkv_stream_run(const fkv_setup *setup, const fkv_planning *planning, fkv_output *output,
                          fkv_replicas *replicas, fkv_stream_seen *seen, fkv_err *err)
{
    stream s = {.setup = setup,
                .planning = planning,
                .output = output,
                .replicas = replicas,
                .n_lanes = fkv_replicas_count(replicas)};
    const fkv_replica_work work = {&s, run_lane, stop_all};
    pthread_mutex_init(&s.lock, NULL);
    fkv_err run_err = {0};
    fkv_status st = start(&s, err);
    if (!st) fkv_hold("records", 0, stops_now, &s.lanes[0]);
    if (!st) st = fkv_replicas_run(replicas, &work, &run_err);
    if (!st && atomic_load(&s.cut))
        st = fkv_fail(&run_err, FKV_E_INTERRUPTED, "stopped before the job's time limit");
    finish(&s);
    if (s.err.status) { /* the cause; the engines only noticed */
        *err = s.err;
        st = s.err.status;
    } else if (st && run_err.status) {
        *err = run_err;
    }
    *seen = s.seen;
    seen->n_records = atomic_load(&s.n_input);
    return st;
}
