/* Threads of the members: see team.h. */
#include "engine/team.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct member {
    fkv_team *team;
    int index;
    pthread_t id;
} member;

struct fkv_team {
    int n_members, n_started;
    const char *noun;
    void (*abort_all)(void *ctx);
    void *abort_ctx;
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    uint64_t round;
    int n_busy;
    bool stop;
    fkv_team_body *body;
    void *ctx;
    fkv_err first; /* error of this round */
    member *members;
};

/* Puts the member before an error's message, where there are several. */
static void name_member(const fkv_team *t, int index, fkv_err *err)
{
    char why[sizeof err->message];
    if (t->n_members == 1) return;
    memcpy(why, err->message, sizeof why);
    snprintf(err->message, sizeof err->message, "%s %d of %d: %.700s", t->noun, index, t->n_members, why);
}

static void run_one(fkv_team *t, int index)
{
    fkv_err err = {0};
    const fkv_status st = t->body(t->ctx, index, &err);
    if (!st) return;
    pthread_mutex_lock(&t->lock);
    const bool is_first = t->first.status == FKV_OK;
    if (is_first) {
        t->first = err;
        t->first.status = st;
        name_member(t, index, &t->first);
    }
    pthread_mutex_unlock(&t->lock);
    if (is_first) t->abort_all(t->abort_ctx);
}

static void *member_main(void *arg)
{
    member *m = arg;
    fkv_team *t = m->team;
    uint64_t seen = 0;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (t->round == seen && !t->stop) pthread_cond_wait(&t->start, &t->lock);
        if (t->stop) break;
        seen = t->round;
        pthread_mutex_unlock(&t->lock);
        run_one(t, m->index);
        pthread_mutex_lock(&t->lock);
        if (--t->n_busy == 0) pthread_cond_signal(&t->done);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

fkv_status fkv_team_open(int n_members, const char *noun, void (*abort_all)(void *ctx), void *abort_ctx,
                         fkv_team **team, fkv_err *err)
{
    fkv_status st = FKV_OK;
    *team = NULL;
    fkv_team *t = calloc(1, sizeof *t);
    if (!t) return fkv_fail_memory(err);
    *t = (fkv_team){.n_members = n_members, .noun = noun, .abort_all = abort_all, .abort_ctx = abort_ctx};
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->start, NULL);
    pthread_cond_init(&t->done, NULL);
    t->members = calloc((size_t)n_members, sizeof *t->members);
    if (!t->members) st = fkv_fail_memory(err);
    for (int i = 1; !st && i < n_members; i++) {
        t->members[i] = (member){.team = t, .index = i};
        if (pthread_create(&t->members[i].id, NULL, member_main, &t->members[i]))
            st = fkv_fail(err, FKV_E_SYSTEM, "can't start the thread of %s %d", noun, i);
        else
            t->n_started++;
    }
    if (st)
        fkv_team_close(t);
    else
        *team = t;
    return st;
}

fkv_status fkv_team_run(fkv_team *t, fkv_team_body *body, void *ctx, fkv_err *err)
{
    pthread_mutex_lock(&t->lock);
    t->body = body;
    t->ctx = ctx;
    t->first = (fkv_err){0};
    t->n_busy = t->n_started;
    t->round++;
    pthread_cond_broadcast(&t->start);
    pthread_mutex_unlock(&t->lock);
    run_one(t, 0);
    pthread_mutex_lock(&t->lock);
    while (t->n_busy) pthread_cond_wait(&t->done, &t->lock);
    pthread_mutex_unlock(&t->lock);
    if (!t->first.status) return FKV_OK;
    if (err && err->status == FKV_OK) *err = t->first;
    return t->first.status;
}

void fkv_team_close(fkv_team *t)
{
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->start);
    pthread_mutex_unlock(&t->lock);
    for (int i = 1; i <= t->n_started; i++) pthread_join(t->members[i].id, NULL);
    free(t->members);
    pthread_cond_destroy(&t->start);
    pthread_cond_destroy(&t->done);
    pthread_mutex_destroy(&t->lock);
    free(t);
}
