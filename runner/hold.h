/* A hook for tests, which depend on no machine's speed: they stop a run at a point instead of guessing
 * when it gets there.
 *
 *     FAIRKV_TEST_HOLD="STAGE N PATH"
 *
 * A run that gets to that stage for the n-th time (counted from 0) makes the empty file PATH and waits until
 * someone removes it. It changes nothing else, and nothing at all where the variable is not set or PATH
 * can't be made. The stages:
 *
 *     start 0     signals are heeded, nothing else has begun
 *     output 0    the output folder is open and locked
 *     profile N   N prompts of the sample are measured (ada)
 *     plan 0      the profile is there, the plan is not
 *     compare N   N answers of a comparison are there, over all its settings
 *     records N   N records are answered by this run, the others are as far as they are
 *
 * Nothing is owned. Not for users: no answer depends on it. */
#ifndef FKV_RUNNER_HOLD_H
#define FKV_RUNNER_HOLD_H

#include <stdbool.h>
#include <stdint.h>

/* Waits if this is where the environment says to; ends too once over(ctx) is true (NULL: once a signal asks
 * the run to stop). */
void fkv_hold(const char *stage, int64_t n, bool (*over)(void *ctx), void *ctx);

#endif
