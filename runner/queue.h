/* A bounded first-in first-out queue of pointers between threads.
 *
 * It borrows what is in it, and free looks at none of that. A failed open leaves NULL, which free takes.
 * Not for any order but that of arrival. */
#ifndef FKV_RUNNER_QUEUE_H
#define FKV_RUNNER_QUEUE_H

#include <stdbool.h>
#include <stddef.h>

#include "runner/base/status.h"

typedef struct fkv_queue fkv_queue;

fkv_status fkv_queue_open(size_t capacity, fkv_queue **queue, fkv_err *err);
void fkv_queue_free(fkv_queue *queue);

/* Waits for room; false when the queue was closed meanwhile (item not taken). */
bool fkv_queue_push(fkv_queue *queue, void *item);
/* The oldest item. Waits up to wait_ms (0: not, negative: for ever). NULL: none came, or
 * the queue is closed and empty (then *ended is set). */
void *fkv_queue_pop(fkv_queue *queue, int wait_ms, bool *ended);
/* Items in it. */
size_t fkv_queue_count(fkv_queue *queue);
/* No more pushes; what is in it can still be popped. */
void fkv_queue_close(fkv_queue *queue);

#endif
