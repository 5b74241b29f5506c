/* What a run tells while it works: on a terminal one line that is redrawn every second; elsewhere, and in
 * the log's file, a line now and then: after 10 s, and then after twice as long each time, up to 5 minutes,
 * or as often as the job says. The same thread keeps the tally's clock and has the run's files written.
 *
 * A progress owns its thread and borrows the tally until close. Not for what is counted (tally.h), nor for
 * how lines get out (base/log.h). */
#ifndef FKV_RUNNER_PROGRESS_H
#define FKV_RUNNER_PROGRESS_H

#include "runner/tally.h"

typedef struct fkv_progress fkv_progress;

fkv_status fkv_progress_open(fkv_tally *tally, fkv_progress **progress, fkv_err *err);
/* The same for a command that works for long, with a tally of its own, and with the time in its lines. */
fkv_status fkv_progress_start(double start, fkv_tally **tally, fkv_progress **progress, fkv_err *err);
/* Seconds between lines from now on; 0: as above. */
void fkv_progress_pace(fkv_progress *progress, int64_t seconds);
/* save(ctx) is called from now on by the thread as often as a line is due, and at least every 30 s where the
 * job says nothing; NULL: no more. Comes back when no call is under way. */
void fkv_progress_saves(fkv_progress *progress, void (*save)(void *ctx), void *ctx);
/* Nothing is redrawn any more. NULL is fine. */
void fkv_progress_close(fkv_progress *progress);

/* The lines: how a run stands, on a terminal (most important first, since it is cut), elsewhere, and as
 * members of a JSON object, each with a comma before it. */
void fkv_progress_short(const fkv_tally_view *view, char *out, size_t size);
void fkv_progress_long(const fkv_tally_view *view, char *out, size_t size);
void fkv_progress_json(const fkv_tally_view *view, char *out, size_t size);

#endif
