/* One host thread per member, and calls that run on all of them at once. Members are the devices of an
 * engine, or the replicas of a run.
 *
 * The caller is member 0's thread; with one member nothing else runs. A call
 * returns when every member has; the first error wins and aborts the others.
 *
 * A team owns its threads; a failed open leaves NULL and none of them. Not for work within a device, which
 * is the backend's. */
#ifndef FKV_ENGINE_TEAM_H
#define FKV_ENGINE_TEAM_H

#include "runner/base/status.h"

typedef struct fkv_team fkv_team;
typedef fkv_status fkv_team_body(void *ctx, int member, fkv_err *err);

/* abort_all(abort_ctx) is called once when a body fails. noun: what a member is called in messages, which
 * begin with it where there are several. */
fkv_status fkv_team_open(int n_members, const char *noun, void (*abort_all)(void *ctx), void *abort_ctx,
                         fkv_team **team, fkv_err *err);
/* Calls body(ctx, member, err) for every member. */
fkv_status fkv_team_run(fkv_team *team, fkv_team_body *body, void *ctx, fkv_err *err);
/* NULL: nothing. */
void fkv_team_close(fkv_team *team);

#endif
