/* What a run tells while it works: see progress.h. */
#include "runner/progress.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "runner/base/clock.h"
#include "runner/base/log.h"
#include "runner/base/mem.h"

enum { FIRST_SECONDS = 10, MOST_SECONDS = 300, SAVE_SECONDS = 30, TEXT = 512 };
enum { STACK_BYTES = 512 << 10 }; /* of the usual 8 MiB a small address space would miss the rest */

struct fkv_progress {
    fkv_tally *tally;
    pthread_mutex_t mutex; /* of all below; a save runs with it */
    pthread_cond_t wake;
    bool ends;
    int64_t pace; /* seconds; 0: doubling */
    void (*save)(void *ctx);
    void *ctx;
    double interval, next_line, next_save;
    pthread_t thread;
};

/* ---- text ---- */

/* A line that is put together; what does not fit is left out. */
typedef struct line {
    char *out;
    size_t size, n;
} line;

static void put(line *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(line *l, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    const int n = vsnprintf(l->out + l->n, l->size - l->n, fmt, ap);
    va_end(ap);
    if (n > 0) l->n = (size_t)n < l->size - l->n ? l->n + (size_t)n : l->size - 1;
}

static void put_duration(line *l, double seconds)
{
    const long long s = seconds < 1e9 ? (long long)(seconds + 0.5) : 1000000000;
    if (s >= 3600)
        put(l, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        put(l, "%lld:%02lld", s / 60, s % 60);
}

/* What a stage does before there are answers. */
static void put_stage(line *l, const fkv_tally_view *v)
{
    static const char *const does[FKV_STAGES] = {
        [FKV_STAGE_START] = "checking the job and its input",
        [FKV_STAGE_WAIT] = "waiting for another process that makes profile or plan",
        [FKV_STAGE_SAMPLE] = "sampling the input",
        [FKV_STAGE_PROFILE] = "measuring budgets",
        [FKV_STAGE_LOAD] = "loading the weights",
        [FKV_STAGE_CALIBRATE] = "measuring the device",
        [FKV_STAGE_PLAN] = "solving the plan",
        [FKV_STAGE_OTHER] = "answering",
        [FKV_STAGE_FINISH] = "finishing the shards",
    };
    const char *what = does[v->stage];
    put(l, "%s", what ? what : "working");
    if (v->stage == FKV_STAGE_SAMPLE && v->n) put(l, ": %lld records so far", (long long)v->n);
    if (v->stage == FKV_STAGE_PROFILE && v->all)
        put(l, ": prompt %lld of %lld", (long long)v->n, (long long)v->all);
    if (v->stage == FKV_STAGE_OTHER && v->all) put(l, ": %lld of %lld", (long long)v->n, (long long)v->all);
    put(l, ", for ");
    put_duration(l, v->in_stage);
}

static bool is_answering(const fkv_tally_view *v)
{
    return v->answering && v->stage == FKV_STAGE_OTHER;
}

void fkv_progress_short(const fkv_tally_view *v, char *out, size_t size)
{
    line l = {out, size, 0};
    const char *about = v->estimated ? "~" : "";
    if (!is_answering(v)) {
        put_stage(&l, v);
        return;
    }
    put(&l, "%lld", (long long)v->done);
    if (v->total >= 0) put(&l, "/%s%lld", about, (long long)v->total);
    put(&l, "  %.1f/s  ETA ", v->records_per_s);
    if (v->eta_s >= 0) {
        put(&l, "%s", about);
        put_duration(&l, v->eta_s);
    } else {
        put(&l, "?");
    }
    put(&l, "  %lld error%s  tokens/s %.0f prompt %.0f new  %d/%d slots", (long long)v->errors,
        v->errors == 1 ? "" : "s", v->prompt_tokens_per_s, v->completion_tokens_per_s, v->engine.busy_slots,
        v->slots);
    if (v->balance > 0) put(&l, "  balance %.2f", v->balance);
}

void fkv_progress_long(const fkv_tally_view *v, char *out, size_t size)
{
    line l = {out, size, 0};
    const char *about = v->estimated ? "~" : "";
    put(&l, "progress: ");
    if (!is_answering(v)) {
        put_stage(&l, v);
        return;
    }
    put(&l, "%lld", (long long)v->done);
    if (v->total >= 0) put(&l, " of %s%lld", about, (long long)v->total);
    put(&l, " records, %lld errors, %.1f records/s, %.0f prompt and %.0f new tokens/s, ETA ",
        (long long)v->errors, v->records_per_s, v->prompt_tokens_per_s, v->completion_tokens_per_s);
    if (v->eta_s >= 0) {
        put(&l, "%s", about);
        put_duration(&l, v->eta_s);
    } else {
        put(&l, "unknown");
    }
    put(&l, ", %d of %d slots busy", v->engine.busy_slots, v->slots);
    if (v->balance > 0) put(&l, ", balance %.2f", v->balance);
}

void fkv_progress_json(const fkv_tally_view *v, char *out, size_t size)
{
    line l = {out, size, 0};
    const bool answering = is_answering(v);
    put(&l, ",\"progress\":{\"stage\":\"%s\",\"stage_seconds\":%.1f,\"seconds\":%.1f",
        answering ? "answer" : fkv_stage_name(v->stage), v->in_stage, v->wall);
    if (!answering && (v->n || v->all)) {
        put(&l, ",\"done\":%lld", (long long)v->n);
        if (v->all) put(&l, ",\"total\":%lld", (long long)v->all);
    }
    if (answering) {
        put(&l, ",\"done\":%lld,\"total\":", (long long)v->done);
        if (v->total >= 0)
            put(&l, "%lld", (long long)v->total);
        else
            put(&l, "null");
        put(&l,
            ",\"estimated\":%s,\"errors\":%lld,\"records_per_second\":%.3f,\"prompt_tokens_per_second\":%.1f,"
            "\"completion_tokens_per_second\":%.1f,\"busy_slots\":%d,\"slots\":%d,\"eta_seconds\":",
            v->estimated ? "true" : "false", (long long)v->errors, v->records_per_s, v->prompt_tokens_per_s,
            v->completion_tokens_per_s, v->engine.busy_slots, v->slots);
        if (v->eta_s >= 0)
            put(&l, "%.0f", v->eta_s);
        else
            put(&l, "null");
        if (v->balance > 0) put(&l, ",\"balance\":%.3f", v->balance);
    }
    put(&l, "}");
}

/* ---- the thread ---- */

static void say_line(const fkv_tally_view *v)
{
    char text[TEXT], members[TEXT];
    fkv_progress_long(v, text, sizeof text);
    fkv_progress_json(v, members, sizeof members);
    fkv_log_progress(text, members);
}

static void redraw(const fkv_tally_view *v)
{
    char text[TEXT];
    fkv_progress_short(v, text, sizeof text);
    fkv_log_redraw(text);
}

/* With the lock. */
static void tell(fkv_progress *p)
{
    fkv_tally_view v;
    const double now = fkv_seconds();
    fkv_tally_tick(p->tally, now);
    fkv_tally_look(p->tally, now, &v);
    if (fkv_log_redraws()) redraw(&v);
    if (now >= p->next_line) {
        say_line(&v);
        p->interval = p->pace                          ? (double)p->pace
                      : p->interval * 2 < MOST_SECONDS ? p->interval * 2
                                                       : MOST_SECONDS;
        p->next_line = now + p->interval;
        p->next_save = now;
    }
    if (now >= p->next_save) {
        if (p->save) p->save(p->ctx);
        p->next_save = now + (p->pace || p->interval < SAVE_SECONDS ? p->interval : SAVE_SECONDS);
    }
}

static void *tell_all(void *arg)
{
    fkv_progress *p = arg;
    struct timespec t;
    pthread_mutex_lock(&p->mutex);
    clock_gettime(CLOCK_MONOTONIC, &t);
    while (!p->ends) {
        t.tv_sec++;
        while (!p->ends && !pthread_cond_timedwait(&p->wake, &p->mutex, &t)) continue;
        if (!p->ends) tell(p);
        /* Where telling took longer than a second, or the process was stopped, nothing is made up for. */
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > t.tv_sec) t = now;
    }
    pthread_mutex_unlock(&p->mutex);
    return NULL;
}

fkv_status fkv_progress_open(fkv_tally *tally, fkv_progress **progress, fkv_err *err)
{
    pthread_condattr_t monotonic;
    pthread_attr_t small;
    fkv_progress *p = *progress = fkv_calloc(1, sizeof *p);
    if (!p) return fkv_fail_memory(err);
    p->tally = tally;
    p->interval = FIRST_SECONDS;
    p->next_line = p->next_save = fkv_seconds() + FIRST_SECONDS;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK_BYTES);
    const bool began = !pthread_create(&p->thread, &small, tell_all, p);
    pthread_attr_destroy(&small);
    if (began) return FKV_OK;
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->mutex);
    free(p);
    *progress = NULL;
    return fkv_fail(err, FKV_E_SYSTEM, "can't start a thread");
}

fkv_status fkv_progress_start(double start, fkv_tally **tally, fkv_progress **progress, fkv_err *err)
{
    fkv_log_style style = fkv_log_get_style();
    style.stamped = true;
    fkv_log_set_style(style);
    *progress = NULL;
    fkv_status st = fkv_tally_open(start, tally, err);
    if (!st) st = fkv_progress_open(*tally, progress, err);
    if (st) fkv_tally_close(*tally);
    if (st) *tally = NULL;
    return st;
}

void fkv_progress_pace(fkv_progress *p, int64_t seconds)
{
    pthread_mutex_lock(&p->mutex);
    p->pace = seconds;
    p->interval = seconds ? (double)seconds : FIRST_SECONDS;
    p->next_line = p->next_save = fkv_seconds() + p->interval;
    pthread_mutex_unlock(&p->mutex);
}

void fkv_progress_saves(fkv_progress *p, void (*save)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&p->mutex);
    p->save = save;
    p->ctx = ctx;
    pthread_mutex_unlock(&p->mutex);
}

void fkv_progress_close(fkv_progress *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->mutex);
    p->ends = true;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->mutex);
    pthread_join(p->thread, NULL);
    fkv_log_redraw("");
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->mutex);
    free(p);
}
