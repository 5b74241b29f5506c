/* A table of operations around another one that carries out one kind of op alone and leaves the others out:
 * so that what an engine's step or prefill takes is what that kind takes of it, replayed as ever.
 *
 * For benchmarks: results mean nothing. The table is static: one at a time in a process; the kind may be
 * changed while no work is under way and no step is recorded (fkv_engine_set_plan records anew). */
#ifndef FKV_KERNELS_SINGLE_OP_H
#define FKV_KERNELS_SINGLE_OP_H

#include "kernels/op_kind.h"

/* inner must outlive what is opened with it. At first all kinds are carried out. */
const fkv_backend *fkv_backend_single_op(const fkv_backend *inner);
/* FKV_OP_KINDS: all; FKV_SINGLE_OP_NONE: none of them, so that what is left is what is no op or no kind. */
enum { FKV_SINGLE_OP_NONE = FKV_OP_KINDS + 1 };
void fkv_single_op_choose(int kind);

#endif
