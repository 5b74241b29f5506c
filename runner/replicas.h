/* The replicas of a layout: engines that answer records side by side, each with the whole model on ranks
 * and devices of its own, and a thread that makes all calls of it.
 *
 * Replicas own their engines and threads until close; replica 0's thread is the caller's, so one replica
 * is an engine and nothing else. All calls come from one thread. Not for who gets which record
 * (stream.h), nor for how many there are (layout_choice.h). */
#ifndef FKV_RUNNER_REPLICAS_H
#define FKV_RUNNER_REPLICAS_H

#include "runner/setup.h"

typedef struct fkv_replicas fkv_replicas;

/* What all replicas do at the same time. */
typedef struct fkv_replica_work {
    void *ctx;
    fkv_status (*body)(void *ctx, int replica, fkv_engine *engine, fkv_err *err);
    void (*stop)(void *ctx); /* once, when the first has failed, from its thread; or NULL */
} fkv_replica_work;

/* Engines of the layout, without a plan: those of *replicas resized, where there are as many on the same
 * ranks and devices, so that weights are loaded once; else they are closed and others opened. After a
 * failure *replicas is NULL, or some that can be closed and no more. */
fkv_status fkv_replicas_open(const fkv_setup *setup, const fkv_layout *layout, fkv_replicas **replicas,
                             fkv_err *err);
/* Whether all are of one kind of device and compute alike, so that none gives other answers. */
fkv_status fkv_replicas_check_alike(const fkv_replicas *replicas, fkv_err *err);
/* Returns when all have done the work; the first that failed is the error, named with its devices. */
fkv_status fkv_replicas_run(fkv_replicas *replicas, const fkv_replica_work *work, fkv_err *err);

int fkv_replicas_count(const fkv_replicas *replicas);
/* The first one's, whose calls are the caller's to make while no work is under way. */
fkv_engine *fkv_replicas_first(const fkv_replicas *replicas);
/* Of all together (fkv_engine_stats_add); of NULL nothing. */
void fkv_replicas_stats(const fkv_replicas *replicas, fkv_engine_stats *stats);
/* NULL: nothing. */
void fkv_replicas_close(fkv_replicas *replicas);

#endif
