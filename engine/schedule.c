/* What the devices do next: see schedule.h. */
#include "engine/schedule.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runner/base/mem.h"

/* Before anything has ended, half an answer that stopped at half its limit counts as seen. */
static const double prior_answers = 0.5, prior_share = 0.25;

/* LOOK_AGAIN: while nothing changes, another look at who could be admitted after so many commands.
 * STRETCHES: into which the steps until the last one in flight must end are cut. */
enum { LOOK_AGAIN = 64, N_COMMANDS = 2, STRETCHES = 32 };

/* Pages that a rank is expected to hold in a stretch of the steps to come. */
typedef struct demand {
    double mean, variance;
} demand;

struct fkv_schedule {
    fkv_kv *kv;
    fkv_schedule_limits limits;
    fkv_work *pool; /* [n_pool] */
    size_t n_pool;
    fkv_work **unused; /* stack */
    int n_unused;
    fkv_work **line; /* waiting, oldest first */
    int n_line;
    fkv_work **flight; /* in a slot, oldest first */
    int n_flight;
    bool *busy;         /* [n_slots] */
    int n_gathered;     /* of flight: not prefilled yet */
    int64_t rows;       /* of those */
    int64_t idle_steps; /* that their slots have waited, all together */
    bool ended, draining, look;
    int64_t *need, *kept;  /* [n_ranks] */
    demand *flights, *own; /* [n_ranks][STRETCHES] of all in flight; of one more */
    double stretch;        /* steps */
    int32_t *stopped;      /* slots to be stopped by the next command */
    int n_stopped;
    double share_ended; /* of their limits that finished answers used, summed */
    int64_t n_early;    /* answers that ended before their limits */
    int64_t n_commands, n_runs;
    fkv_command commands[N_COMMANDS];
    fkv_schedule_stats stats;
};

static fkv_status open_command(fkv_command *c, size_t n_slots, fkv_err *err)
{
    c->stopped = fkv_calloc(n_slots, sizeof *c->stopped);
    c->segments = fkv_calloc(n_slots, sizeof *c->segments);
    c->prompts = fkv_calloc(n_slots, sizeof *c->prompts);
    c->who = fkv_calloc(n_slots, sizeof *c->who);
    c->runs = fkv_calloc(n_slots, sizeof *c->runs);
    if (!c->stopped || !c->segments || !c->prompts || !c->who || !c->runs) return fkv_fail_memory(err);
    return FKV_OK;
}

static fkv_status open_lists(fkv_schedule *s, fkv_err *err)
{
    const size_t n_slots = (size_t)s->limits.n_slots, ranks = (size_t)s->kv->n_ranks;
    /* In line, in slots, and those whose last tokens are on their way. */
    const size_t n = s->n_pool = (size_t)s->limits.n_waiting + (N_COMMANDS + 1) * n_slots;
    s->pool = fkv_calloc(n, sizeof *s->pool);
    s->unused = fkv_calloc(n, sizeof *s->unused);
    s->line = fkv_calloc(n, sizeof *s->line);
    s->flight = fkv_calloc(n_slots, sizeof *s->flight);
    s->busy = fkv_calloc(n_slots, sizeof *s->busy);
    s->need = fkv_calloc(ranks, sizeof *s->need);
    s->kept = fkv_calloc(ranks, sizeof *s->kept);
    s->flights = fkv_calloc(ranks * STRETCHES, sizeof *s->flights);
    s->own = fkv_calloc(ranks * STRETCHES, sizeof *s->own);
    s->stopped = fkv_calloc(n_slots, sizeof *s->stopped);
    if (!s->pool || !s->unused || !s->line || !s->flight || !s->busy || !s->need || !s->kept || !s->flights ||
        !s->own || !s->stopped)
        return fkv_fail_memory(err);
    for (size_t i = 0; i < n; i++) s->unused[s->n_unused++] = &s->pool[n - 1 - i];
    return FKV_OK;
}

fkv_status fkv_schedule_open(fkv_kv *kv, const fkv_schedule_limits *limits, fkv_schedule **out, fkv_err *err)
{
    *out = NULL;
    fkv_schedule *s = calloc(1, sizeof *s);
    if (!s) return fkv_fail_memory(err);
    s->kv = kv;
    s->limits = *limits;
    fkv_status st = open_lists(s, err);
    for (int i = 0; !st && i < N_COMMANDS; i++)
        st = open_command(&s->commands[i], (size_t)limits->n_slots, err);
    if (st)
        fkv_schedule_close(s);
    else
        *out = s;
    return st;
}

/* --- lists ---------------------------------------------------------------- */

static void insert_by_age(fkv_work **list, int *n, fkv_work *w)
{
    int i = (*n)++;
    for (; i > 0 && list[i - 1]->request.ordinal > w->request.ordinal; i--) list[i] = list[i - 1];
    list[i] = w;
}

static void remove_from(fkv_work **list, int *n, const fkv_work *w)
{
    int i = 0;
    while (list[i] != w) i++;
    (*n)--;
    memmove(list + i, list + i + 1, (size_t)(*n - i) * sizeof *list);
}

static void get_in_line(fkv_schedule *s, fkv_work *w)
{
    insert_by_age(s->line, &s->n_line, w);
    s->look = true;
}

/* Out of its slot, whose pages are free again. */
static void leave_slot(fkv_schedule *s, fkv_work *w)
{
    remove_from(s->flight, &s->n_flight, w);
    fkv_kv_release(s->kv, w->slot);
    s->busy[w->slot] = false;
    if (w->launched == 0) {
        s->n_gathered--;
        s->rows -= w->request.n_ids;
    }
    w->slot = -1;
    s->look = true;
}

/* --- requests in ---------------------------------------------------------- */

bool fkv_schedule_room(const fkv_schedule *s)
{
    return s->n_line < s->limits.n_waiting && s->n_unused > 0;
}

fkv_status fkv_schedule_add(fkv_schedule *s, const fkv_request *request, fkv_err *err)
{
    const fkv_status st = fkv_kv_accepts(s->kv, request->n_ids, request->max_new, err);
    if (st) return st;
    fkv_work *w = s->unused[s->n_unused - 1];
    if (request->max_new > w->cap) {
        int32_t *ids = fkv_realloc(w->ids, (size_t)request->max_new, sizeof *ids);
        if (!ids) return fkv_fail_memory(err);
        w->ids = ids;
        w->cap = request->max_new;
    }
    s->n_unused--;
    *w = (fkv_work){.request = *request, .ids = w->ids, .cap = w->cap, .slot = -1};
    get_in_line(s, w);
    return FKV_OK;
}

void fkv_schedule_end(fkv_schedule *s)
{
    s->ended = true;
}

void fkv_schedule_drain(fkv_schedule *s)
{
    if (s->draining) return;
    s->draining = true;
    for (int i = s->n_flight - 1; i >= 0; i--) {
        fkv_work *w = s->flight[i];
        if (w->launched) continue;
        leave_slot(s, w);
        get_in_line(s, w);
    }
}

bool fkv_schedule_idle(const fkv_schedule *s)
{
    return s->n_flight == 0 && (s->draining || s->n_line == 0);
}

/* --- admission ------------------------------------------------------------- */

/* The mean length of answers in units of their limits, as if each token were the last with the
 * same probability: what was generated over the answers that stopped early. */
static double mean_share(const fkv_schedule *s)
{
    double sum = prior_share + s->share_ended;
    for (int i = 0; i < s->n_flight; i++)
        sum += (double)s->flight[i]->launched / (double)s->flight[i]->request.max_new;
    return sum / (prior_answers + (double)s->n_early);
}

/* Adds w's pages over the stretches to all: heads and kept tokens of every rank as in slot. It grows by
 * a token a step until its limit, or stops earlier by chance; a stretch counts what it has at the end
 * of it if it is alive at its start. */
static void add_demand(const fkv_schedule *s, const fkv_work *w, int slot, const int64_t *kept, double share,
                       demand *all)
{
    const int64_t *heads = s->kv->slot_heads + (int64_t)slot * s->kv->n_ranks;
    const double limit = (double)w->request.max_new, left = limit - (double)w->launched;
    const double surely = (double)(w->reached - w->launched); /* it got so far before */
    for (int i = 0; i < STRETCHES && i * s->stretch < left; i++) {
        const double start = i * s->stretch, end = fmin(start + s->stretch, left);
        const double alive = start <= surely ? 1 : exp(-start / (share * limit));
        for (int r = 0; r < s->kv->n_ranks; r++) {
            const double tokens = (double)kept[r] + (double)heads[r] * ((double)w->launched + end);
            const double pages =
                tokens / FKV_PAGE_TOKENS + 0.5 * (double)heads[r]; /* half of the last ones */
            all[r * STRETCHES + i].mean += alive * pages;
            all[r * STRETCHES + i].variance += alive * (1 - alive) * pages * pages;
        }
    }
}

static void find_demand(fkv_schedule *s, double share)
{
    int64_t longest = 1;
    for (int i = 0; i < s->n_flight + s->n_line; i++) {
        const fkv_work *w = i < s->n_flight ? s->flight[i] : s->line[i - s->n_flight];
        if (w->request.max_new - w->launched > longest) longest = w->request.max_new - w->launched;
    }
    s->stretch = (double)longest / STRETCHES;
    memset(s->flights, 0, (size_t)s->kv->n_ranks * STRETCHES * sizeof *s->flights);
    for (int i = 0; i < s->n_flight; i++) {
        const fkv_work *w = s->flight[i];
        add_demand(s, w, w->slot, s->kv->slot_kept + (int64_t)w->slot * s->kv->n_ranks, share, s->flights);
    }
}

/* Whether w's prompt fits now, and what is expected of all together at any time to come, with a
 * standard deviation for chance. */
static bool fits(fkv_schedule *s, const fkv_work *w, int slot, double share)
{
    const int n_ranks = s->kv->n_ranks;
    fkv_kv_prompt_need(s->kv, slot, w->request.n_ids, 0, s->need);
    if (!fkv_kv_free(s->kv, s->need)) return false;
    if (s->n_flight == 0) return true;
    fkv_kv_kept(s->kv, slot, w->request.n_ids, s->kept);
    memset(s->own, 0, (size_t)n_ranks * STRETCHES * sizeof *s->own);
    add_demand(s, w, slot, s->kept, share, s->own);
    for (int i = 0; i < n_ranks * STRETCHES; i++) {
        const double mean = s->flights[i].mean + s->own[i].mean;
        const double spread = sqrt(s->flights[i].variance + s->own[i].variance);
        const int rank = i / STRETCHES;
        if (s->own[i].mean > 0 && mean + spread > (double)s->kv->n_pages[rank]) return false;
    }
    return true;
}

/* A free slot in which w fits, one of every class tried; -1: none. */
static int find_slot(fkv_schedule *s, const fkv_work *w, double share)
{
    int tried = -1;
    for (int slot = 0; slot < s->limits.n_slots; slot++) {
        if (s->busy[slot] || s->kv->class_of[slot] == tried) continue;
        tried = s->kv->class_of[slot];
        if (fits(s, w, slot, share)) return slot;
    }
    return -1;
}

static void enter_slot(fkv_schedule *s, fkv_work *w, int slot, double share)
{
    fkv_kv_put(s->kv, slot, w->request.n_ids, 0);
    add_demand(s, w, slot, s->kv->slot_kept + (int64_t)slot * s->kv->n_ranks, share, s->flights);
    remove_from(s->line, &s->n_line, w);
    insert_by_age(s->flight, &s->n_flight, w);
    s->busy[slot] = true;
    w->slot = slot;
    w->paged = 0;
    s->n_gathered++;
    s->rows += w->request.n_ids;
}

static void admit(fkv_schedule *s)
{
    const int64_t most_passed = 2 * (int64_t)s->limits.n_slots;
    const double share = mean_share(s);
    s->look = false;
    find_demand(s, share);
    for (int i = 0; i < s->n_line && s->n_flight < s->limits.n_slots;) {
        fkv_work *w = s->line[i];
        const int slot = find_slot(s, w, share);
        if (slot >= 0) {
            for (int j = 0; j < i; j++) s->line[j]->passed++;
            enter_slot(s, w, slot, share);
        } else if (w->passed >= most_passed) {
            return;
        } else {
            i++;
        }
    }
}

/* --- commands out ---------------------------------------------------------- */

static fkv_command *new_command(fkv_schedule *s, fkv_command_kind kind)
{
    fkv_command *c = &s->commands[++s->n_commands % N_COMMANDS];
    c->number = s->n_commands;
    c->kind = kind;
    c->n_segments = 0;
    c->n_rows = c->n_tiles = 0;
    memset(c->who, 0, (size_t)s->limits.n_slots * sizeof *c->who);
    c->n_stopped = s->n_stopped;
    memcpy(c->stopped, s->stopped, (size_t)s->n_stopped * sizeof *c->stopped);
    s->n_stopped = 0;
    c->edits = fkv_kv_edits(s->kv, &c->n_edits);
    return c;
}

/* The slot's token of command c is w's. */
static void launch(fkv_command *c, fkv_work *w)
{
    c->who[w->slot] = w;
    c->runs[w->slot] = w->run;
    w->launched++;
}

/* Those whose last token is commanded leave their slots; w->slot is still theirs in who. */
static void leave_at_limit(fkv_schedule *s)
{
    for (int i = s->n_flight - 1; i >= 0; i--)
        if (s->flight[i]->launched == s->flight[i]->request.max_new) leave_slot(s, s->flight[i]);
}

static void add_segment(fkv_command *c, fkv_work *w)
{
    const fkv_request *q = &w->request;
    c->prompts[c->n_segments] = w;
    c->segments[c->n_segments++] = (fkv_segment){.row0 = (int32_t)c->n_rows,
                                                 .n_tokens = (int32_t)q->n_ids,
                                                 .tile0 = (int32_t)c->n_tiles,
                                                 .slot = w->slot,
                                                 .max_new = (int32_t)q->max_new,
                                                 .sampling = q->sampling};
    c->n_rows += q->n_ids;
    c->n_tiles += (q->n_ids + FKV_TILE_TOKENS - 1) / FKV_TILE_TOKENS;
}

/* The oldest of the gathered, as many as a pack holds. */
static fkv_command *command_prefill(fkv_schedule *s)
{
    fkv_command *c = new_command(s, FKV_COMMAND_PREFILL);
    for (int i = 0; i < s->n_flight; i++) {
        fkv_work *w = s->flight[i];
        if (w->launched) continue;
        if (c->n_segments && c->n_rows + w->request.n_ids > s->limits.max_rows) break;
        add_segment(c, w);
        w->run = ++s->n_runs;
        w->n = 0;
        launch(c, w);
        s->n_gathered--;
        s->rows -= w->request.n_ids;
    }
    if (s->n_gathered == 0) s->idle_steps = 0;
    s->stats.n_passes++;
    s->stats.n_rows += c->n_rows;
    leave_at_limit(s);
    return c;
}

/* Starts again later, from the prompt. */
static void yield(fkv_schedule *s, fkv_work *w)
{
    if (w->launched) {
        s->stopped[s->n_stopped++] = w->slot;
        s->stats.n_restarts++;
        s->stats.restarted_tokens += w->launched;
    }
    if (w->launched > w->reached) w->reached = w->launched;
    leave_slot(s, w);
    w->launched = 0;
    w->run = 0;
    get_in_line(s, w);
}

static int rank_short_of(const fkv_schedule *s)
{
    int r = 0;
    while (s->need[r] <= s->kv->n_free[r]) r++;
    return r;
}

/* The youngest in flight with pages on a rank; flight[i] wants one there. */
static fkv_work *youngest_on(const fkv_schedule *s, int rank, int i)
{
    int j = s->n_flight - 1;
    while (j > i && s->kv->slot_pages[(int64_t)s->flight[j]->slot * s->kv->n_ranks + rank] == 0) j--;
    return s->flight[j];
}

/* Pages for the next step of everyone, the oldest first. False: tokens that are under way may
 * free some first. */
static bool take_pages(fkv_schedule *s, bool outstanding)
{
    for (int i = 0; i < s->n_flight;) {
        fkv_work *w = s->flight[i];
        if (w->launched == 0 || w->paged >= w->launched) {
            i++;
            continue;
        }
        fkv_kv_step_need(s->kv, w->slot, w->launched, s->need);
        if (fkv_kv_free(s->kv, s->need)) {
            fkv_kv_step(s->kv, w->slot, w->launched);
            w->paged = w->launched;
            i++;
            continue;
        }
        if (outstanding) return false;
        yield(s, youngest_on(s, rank_short_of(s), i)); /* w itself, perhaps: flight[i] is another then */
    }
    return true;
}

/* Nobody is left to decode: behind yields. */
static bool none_decodes(const fkv_schedule *s)
{
    return s->n_gathered == s->n_flight;
}

static fkv_command *command_step(fkv_schedule *s)
{
    fkv_command *c = new_command(s, FKV_COMMAND_STEP);
    for (int i = 0; i < s->n_flight; i++) {
        if (s->flight[i]->launched == 0) continue;
        launch(c, s->flight[i]);
        s->stats.busy_slot_steps++;
    }
    s->idle_steps += s->n_gathered;
    leave_at_limit(s);
    return c;
}

/* Whether the gathered slots have waited enough. */
static bool is_worth_it(const fkv_schedule *s)
{
    return s->rows >= s->limits.worth_rows || s->idle_steps >= s->limits.n_slots || none_decodes(s) ||
           (s->ended && s->n_line == 0);
}

fkv_command *fkv_schedule_next(fkv_schedule *s, bool outstanding)
{
    for (;;) {
        if (s->n_line && !s->draining && (s->look || s->n_commands % LOOK_AGAIN == 0)) admit(s);
        if (s->n_gathered && is_worth_it(s)) return command_prefill(s);
        if (s->n_flight == 0 || !take_pages(s, outstanding)) return NULL;
        if (!none_decodes(s)) return command_step(s);
        if (s->n_flight == 0 && s->draining) return NULL; /* all had to yield */
    }
}

/* --- tokens back ------------------------------------------------------------ */

fkv_work *fkv_schedule_owner(const fkv_command *c, int slot)
{
    fkv_work *w = c->who[slot];
    return w && w->run == c->runs[slot] ? w : NULL;
}

void fkv_schedule_finish(fkv_schedule *s, fkv_work *w, bool answered, bool decoding)
{
    if (w->slot >= 0) {
        if (decoding) s->stopped[s->n_stopped++] = w->slot;
        leave_slot(s, w);
    }
    w->run = 0;
    if (!answered) return;
    s->share_ended += (double)w->n / (double)w->request.max_new;
    s->n_early += w->n < w->request.max_new;
}

void fkv_schedule_recycle(fkv_schedule *s, fkv_work *w)
{
    s->unused[s->n_unused++] = w;
}

int fkv_schedule_busy(const fkv_schedule *s)
{
    return s->n_flight;
}

void fkv_schedule_stats_add(const fkv_schedule *s, fkv_schedule_stats *stats)
{
    stats->n_restarts += s->stats.n_restarts;
    stats->restarted_tokens += s->stats.restarted_tokens;
    stats->n_passes += s->stats.n_passes;
    stats->n_rows += s->stats.n_rows;
    stats->busy_slot_steps += s->stats.busy_slot_steps;
}

void fkv_schedule_close(fkv_schedule *s)
{
    if (!s) return;
    for (int i = 0; s->flight && i < s->n_flight; i++) fkv_kv_release(s->kv, s->flight[i]->slot);
    for (int i = 0; i < N_COMMANDS; i++) {
        free(s->commands[i].stopped);
        free(s->commands[i].segments);
        free(s->commands[i].prompts);
        free(s->commands[i].who);
        free(s->commands[i].runs);
    }
    for (size_t i = 0; s->pool && i < s->n_pool; i++) free(s->pool[i].ids);
    free(s->stopped);
    free(s->own);
    free(s->flights);
    free(s->kept);
    free(s->need);
    free(s->busy);
    free(s->flight);
    free(s->line);
    free(s->unused);
    free(s->pool);
    free(s);
}
