/* A table of operations around another one that times each op and adds up what it moved and computed.
 *
 * For benchmarks: an engine opened with it runs as ever, step by step without replay. The table is
 * static: one at a time in a process; several devices may be open, whose sums are one. Not for runs: the
 * caller's own tickets give no times, and every op costs the host a few microseconds.
 *
 * An op's time is the device's between the end of the op before it and its own, by the tickets of the
 * table inside, so that neither the host's launch nor a wait counts where ops follow each other closely.
 * Behind an idle device (a step's first op) it has the launch in it. */
#ifndef FKV_KERNELS_METERED_H
#define FKV_KERNELS_METERED_H

#include "kernels/backend.h"

typedef struct fkv_op_sum {
    const char *name; /* as in the table */
    int64_t calls;
    double seconds, bytes, flops; /* as op_cost.h counts them */
} fkv_op_sum;

enum { FKV_METERED_OPS = 16 }; /* metered.c has their names */

/* inner must outlive what is opened with it. */
const fkv_backend *fkv_backend_metered(const fkv_backend *inner);

/* Sums since the last call, by op in the table's order. After sync of every device. */
void fkv_metered_take(fkv_op_sum out[FKV_METERED_OPS]);

#endif
