/* Frames of zstd, one behind the other, as a stream of their bytes.
 *
 * A frame's window is what its decoder must hold in memory: one that asks for more than it
 * may have is refused before anything is allocated. An fkv_unzstd owns its decoder. Not for:
 * other compressions and where the bytes come from (unpack.h), writing (shard.c).
 */
#ifndef FKV_JOBS_UNZSTD_H
#define FKV_JOBS_UNZSTD_H

#include <stdbool.h>

#include "jobs/source.h"

typedef struct fkv_unzstd fkv_unzstd;

enum { FKV_UNZSTD_HEADER_BYTES = 18 }; /* of a frame, at the most */

/* Whether a frame begins here, one that can be skipped included. */
bool fkv_unzstd_begins(const void *head, size_t n);

/* NULL: no memory. */
fkv_unzstd *fkv_unzstd_new(int64_t max_window);
void fkv_unzstd_free(fkv_unzstd *u);

/* Between two frames, or before the first. */
bool fkv_unzstd_is_between(const fkv_unzstd *u);

/* Takes *taken of n_in bytes, gives *given of n_out. Between two frames in must begin with
 * one and hold FKV_UNZSTD_HEADER_BYTES or all that there is. False: *fault says why. */
bool fkv_unzstd_step(fkv_unzstd *u, const uint8_t *in, size_t n_in, size_t *taken, uint8_t *out, size_t n_out,
                     size_t *given, fkv_fault *fault);

#endif
