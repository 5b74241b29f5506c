/* The largest record: see record_limit.h. What is allocated here is freed before a
 * function returns. */
#include "engine/plan/record_limit.h"

#include <stdlib.h>

#include "engine/plan/partition.h"
#include "runner/base/kv_page.h"
#include "runner/base/mem.h"

/* Steps in which prompts are gone through, and what all of them may cost. */
enum { STEP_TOKENS = FKV_PAGE_TOKENS };
static const double most_work = 1e8;

int64_t fkv_pages_for(int64_t tokens)
{
    return (tokens + FKV_PAGE_TOKENS - 1) / FKV_PAGE_TOKENS;
}

int64_t fkv_head_pages(int64_t budget, int64_t n_tokens, int64_t max_new)
{
    return fkv_pages_for((n_tokens < budget ? n_tokens : budget) + max_new);
}

static int64_t head_pages(const fkv_record_shape *s, int64_t lh, int64_t n_tokens, int64_t max_new)
{
    return fkv_head_pages(s->budgets[lh], n_tokens, max_new);
}

int64_t fkv_record_pages(const fkv_record_shape *s, int64_t n_tokens, int64_t max_new)
{
    int64_t most = 0, sum = 0;
    const int k = s->n_kv_heads;
    /* A rank's home heads follow each other. */
    for (int h = 0; h < k; h++) {
        if (h > 0 && fkv_partition_home(h, k, s->n_ranks) != fkv_partition_home(h - 1, k, s->n_ranks))
            sum = 0;
        for (int l = 0; l < s->n_layers; l++) sum += head_pages(s, (int64_t)l * k + h, n_tokens, max_new);
        if (sum > most) most = sum;
    }
    return most;
}

fkv_status fkv_record_check(const fkv_record_limit *limit, const fkv_record_shape *s, int64_t n_tokens,
                            int64_t max_new, fkv_err *err)
{
    if (n_tokens > limit->positions || max_new > limit->positions - n_tokens)
        return fkv_fail(err, FKV_E_INPUT,
                        "%lld prompt and %lld new tokens are more than the model's %lld positions: lower "
                        "engine.max_new_tokens or model.max_prompt_tokens",
                        (long long)n_tokens, (long long)max_new, (long long)limit->positions);
    if (n_tokens > limit->prompt)
        return fkv_fail(err, FKV_E_INPUT,
                        "a prompt of %lld tokens; the devices have room to work on %lld: lower "
                        "model.max_prompt_tokens, or raise engine.devices",
                        (long long)n_tokens, (long long)limit->prompt);
    const int64_t pages = fkv_record_pages(s, n_tokens, max_new);
    if (pages <= limit->pages) return FKV_OK;
    return fkv_fail(err, FKV_E_INPUT,
                    "%lld prompt and %lld new tokens need %lld KV pages on a rank, and a record may have "
                    "%lld: lower profile.budget, its limit of new tokens or model.max_prompt_tokens",
                    (long long)n_tokens, (long long)max_new, (long long)pages, (long long)limit->pages);
}

int64_t fkv_record_most_new(const fkv_record_limit *limit, const fkv_record_shape *s, int64_t n_tokens)
{
    int64_t fits = 0, over = limit->positions - n_tokens + 1;
    while (over - fits > 1) {
        const int64_t n = fits + (over - fits) / 2;
        if (fkv_record_check(limit, s, n_tokens, n, NULL) == FKV_OK)
            fits = n;
        else
            over = n;
    }
    return fits;
}

/* A placement's first slot, or the one behind its last. */
typedef struct event {
    int slot, sign;
    int64_t lh;
    bool away; /* the head is not at home */
} event;

static int by_slot(const void *a, const void *b)
{
    return (*(const event *const *)a)->slot - (*(const event *const *)b)->slot;
}

/* One rank's placements, as events in the order of their slots. */
typedef struct rank_events {
    event *at;
    const event **sorted;
    int64_t *most; /* of the slots from an event to the next: pages */
    int n;
} rank_events;

static fkv_status list_events(const fkv_plan *plan, int rank, rank_events *e, fkv_err *err)
{
    const int64_t pairs = (int64_t)plan->n_layers * plan->n_kv_heads;
    const size_t cap = 2 * (size_t)plan->first[pairs];
    *e = (rank_events){.at = fkv_calloc(cap, sizeof *e->at),
                       .sorted = fkv_calloc(cap, sizeof *e->sorted),
                       .most = fkv_calloc(cap, sizeof *e->most)};
    if (!e->at || !e->sorted || !e->most) return fkv_fail_memory(err);
    for (int64_t lh = 0; lh < pairs; lh++) {
        for (int i = plan->first[lh]; i < plan->first[lh + 1]; i++) {
            if (plan->at[i].rank != rank) continue;
            const int home =
                fkv_partition_home((int)(lh % plan->n_kv_heads), plan->n_kv_heads, plan->n_ranks);
            e->at[e->n++] = (event){plan->at[i].begin, 1, lh, rank != home};
            e->at[e->n++] = (event){plan->at[i].end, -1, lh, rank != home};
        }
    }
    for (int i = 0; i < e->n; i++) e->sorted[i] = &e->at[i];
    qsort(e->sorted, (size_t)e->n, sizeof *e->sorted, by_slot);
    return FKV_OK;
}

static void free_events(rank_events *e)
{
    free(e->most);
    free(e->sorted);
    free(e->at);
    *e = (rank_events){0};
}

static void take_record(const fkv_record_limit *limit, const fkv_record_shape *s, int64_t n_tokens,
                        int64_t max_new, rank_events *e)
{
    int64_t sum = 0, n_away = 0;
    for (int i = 0; i < e->n; i++) {
        sum += e->sorted[i]->sign * head_pages(s, e->sorted[i]->lh, n_tokens, max_new);
        n_away += e->sorted[i]->away ? e->sorted[i]->sign : 0;
        /* Home heads alone never need more than the limit, however coarse the steps are. */
        const int64_t need = n_away == 0 && sum > limit->pages ? limit->pages : sum;
        if (need > e->most[i]) e->most[i] = need;
    }
}

/* Between an event and the next one of another slot lie the slots that need most. */
static void sum_up(const rank_events *e, int64_t *one, int64_t *all)
{
    *one = *all = 0;
    for (int i = 0; i + 1 < e->n; i++) {
        const int n = e->sorted[i + 1]->slot - e->sorted[i]->slot;
        if (n == 0) continue;
        if (e->most[i] > *one) *one = e->most[i];
        *all += n * e->most[i];
    }
}

/* Prompts of (from, to] tokens that are accepted with at most so many new ones. */
typedef struct frontier {
    int64_t to, max_new;
} frontier;

/* Goes over all prompts whose kept tokens differ; frontier: NULL, or filled. Returns how many. */
static int walk(const fkv_record_limit *limit, const fkv_record_shape *s, int64_t step, frontier *out)
{
    const int64_t pairs = (int64_t)s->n_layers * s->n_kv_heads;
    int64_t last = 1, n = 0;
    for (int64_t i = 0; i < pairs; i++)
        if (s->budgets[i] > last) last = s->budgets[i];
    /* Beyond the largest budget prompts keep the same, beside fewer new tokens. */
    if (last > limit->prompt) last = limit->prompt;
    for (int64_t from = 0; from < last; from += step) {
        const int64_t max_new = out ? fkv_record_most_new(limit, s, from + 1) : 1;
        if (max_new < 1) break;
        if (out) out[n] = (frontier){from + step < last ? from + step : last, max_new};
        n++;
    }
    return (int)n;
}

fkv_status fkv_record_demand(const fkv_record_limit *limit, const fkv_record_shape *s, const fkv_plan *plan,
                             int64_t *one, int64_t *all, fkv_err *err)
{
    const double pairs = (double)s->n_layers * s->n_kv_heads;
    int64_t step = STEP_TOKENS;
    /* A step looks for its most new tokens in some 20 tries, and goes over all placements. */
    while ((double)limit->prompt / (double)step * (22 * pairs + plan->first[(int64_t)pairs]) > most_work)
        step *= 2;
    frontier *steps = fkv_calloc((size_t)walk(limit, s, step, NULL), sizeof *steps);
    if (!steps) return fkv_fail_memory(err);
    const int n = walk(limit, s, step, steps);
    fkv_status st = FKV_OK;
    for (int r = 0; !st && r < plan->n_ranks; r++) {
        rank_events e;
        st = list_events(plan, r, &e, err);
        for (int i = 0; !st && i < n; i++) take_record(limit, s, steps[i].to, steps[i].max_new, &e);
        if (!st) sum_up(&e, &one[r], &all[r]);
        free_events(&e);
    }
    free(steps);
    return st;
}

bool fkv_record_arenas(const int64_t *one, const int64_t *all, int n_ranks, int n_devices,
                       const int64_t *room, int64_t *pages, int *short_of)
{
    for (int d = 0; d < n_devices; d++) {
        const fkv_range ranks = fkv_partition_ranks(n_ranks, d, n_devices);
        int64_t least = 0, more = 0;
        for (int64_t r = ranks.begin; r < ranks.end; r++) {
            least += one[r];
            more += all[r] - one[r];
        }
        if (least > room[d]) {
            *short_of = d;
            return false;
        }
        const double share = more > room[d] - least ? (double)(room[d] - least) / (double)more : 1;
        for (int64_t r = ranks.begin; r < ranks.end; r++)
            pages[r] = one[r] + (int64_t)(share * (double)(all[r] - one[r]));
    }
    return true;
}
