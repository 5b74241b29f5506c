/* The schedule: what the devices do next, decided on the host alone.
 *
 * Requests come in, numbered commands go out; whoever carries a command out (run.c, or a
 * test) hands its tokens back, if need be after the next commands were given. A command
 * is a prefill of some requests packed together, or a decode step of all slots at work.
 *
 * - A request is admitted into a free slot when the pages of its prompt and of its
 *   expected answer are free beside what those in flight are expected to need. How much
 *   of its limit an answer uses is measured as the run goes.
 * - One that does not fit stays in line and others pass it, 2 * n_slots times at the most.
 * - Pages are taken one token ahead of a step. Where a rank has none left, the youngest
 *   request that holds pages there yields and starts again later. Age is the place in the
 *   input, so the oldest request never yields and every one ends.
 * - Slots are gathered until a prefill pass is worth its fixed cost (worth_rows), but the
 *   slots that wait may cost no more than one full decode step.
 * - A slot whose last step was commanded is free at once; commands follow one another on
 *   the devices.
 *
 * A schedule owns its commands and works, and borrows kv until close. A failed open leaves NULL and kv as
 * it was.
 *
 * Not for: devices, or what a request's tokens are.
 */
#ifndef FKV_ENGINE_SCHEDULE_H
#define FKV_ENGINE_SCHEDULE_H

#include "engine/engine.h"
#include "engine/kv.h"

/* A request on its way. */
typedef struct fkv_work {
    fkv_request request;
    int32_t *ids; /* [cap] tokens handed back */
    int64_t n, cap;
    int64_t launched; /* tokens whose commands were given; 0: not prefilled */
    int64_t reached;  /* the most that launched was before it had to yield */
    int64_t passed;   /* times that a younger one was admitted before it */
    int64_t run;      /* of its last start: tokens of an earlier one are dropped */
    int64_t paged;    /* tokens beyond the kept ones that pages are held for */
    int slot;         /* -1: in line, or all its steps are commanded */
} fkv_work;

typedef enum fkv_command_kind { FKV_COMMAND_PREFILL, FKV_COMMAND_STEP } fkv_command_kind;

/* In order: edits of the page tables, stopped slots become idle, the work. Two commands are
 * valid at a time; edits only until the next one is asked for. */
typedef struct fkv_command {
    int64_t number; /* from 1 */
    fkv_command_kind kind;
    const fkv_edit *edits;
    int64_t n_edits;
    int32_t *stopped; /* slots that still decode what has ended */
    int n_stopped;
    fkv_segment *segments; /* prefill */
    fkv_work **prompts;    /* of the segments */
    int n_segments;
    int64_t n_rows, n_tiles;
    fkv_work **who; /* [n_slots] gets the slot's token of this command; NULL: nobody */
    int64_t *runs;  /* [n_slots] and who's run */
} fkv_command;

typedef struct fkv_schedule fkv_schedule;

typedef struct fkv_schedule_limits {
    int n_slots;
    int64_t max_rows;   /* of a pack; a longer prompt is the caller's error */
    int64_t worth_rows; /* from so many rows on a pass is worth its fixed cost */
    int n_waiting;      /* requests in line at the most */
} fkv_schedule_limits;

typedef struct fkv_schedule_stats {
    int64_t n_restarts;
    int64_t restarted_tokens; /* commanded for requests that then had to yield */
    int64_t n_passes, n_rows; /* prefill commands, and their rows */
    int64_t busy_slot_steps;
} fkv_schedule_stats;

/* kv: with arenas, all slots empty; the schedule's until close. */
fkv_status fkv_schedule_open(fkv_kv *kv, const fkv_schedule_limits *limits, fkv_schedule **out, fkv_err *err);

/* Whether another request can be taken. */
bool fkv_schedule_room(const fkv_schedule *s);
/* FKV_E_INPUT: it can never be admitted, err says why (err alone; nothing was taken). */
fkv_status fkv_schedule_add(fkv_schedule *s, const fkv_request *request, fkv_err *err);
/* No more requests will come. */
void fkv_schedule_end(fkv_schedule *s);
/* From now on nothing is started. */
void fkv_schedule_drain(fkv_schedule *s);

/* The next command; NULL: nothing to do before tokens (outstanding: some are not yet handed
 * back) or requests come. */
fkv_command *fkv_schedule_next(fkv_schedule *s, bool outstanding);
/* Nothing is in flight or, unless draining, in line. */
bool fkv_schedule_idle(const fkv_schedule *s);

/* Who gets the token of a slot of a command, or NULL: it ended or started again since. */
fkv_work *fkv_schedule_owner(const fkv_command *c, int slot);
/* w has ended; its slot and pages are free. answered: its length tells of others'. decoding: the
 * device does not know yet. */
void fkv_schedule_finish(fkv_schedule *s, fkv_work *w, bool answered, bool decoding);
/* The memory of a finished one, when the caller is done with it. */
void fkv_schedule_recycle(fkv_schedule *s, fkv_work *w);

/* Slots that hold a request. */
int fkv_schedule_busy(const fkv_schedule *s);
/* Adds its counts to those in stats. */
void fkv_schedule_stats_add(const fkv_schedule *s, fkv_schedule_stats *stats);
/* Gives all pages back. */
void fkv_schedule_close(fkv_schedule *s);

#endif
