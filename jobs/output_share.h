/* part = auto: which shards this process does, and who finishes the job. Internal to jobs; fkv_output_claim
 * (output.h) is written here too.
 *
 * A process that reads the input claims every shard that it comes to and finds free. At the input's end it
 * looks for what dead ones left, and reads again for that. All shards but a short last one are in the
 * manifest as soon as they are made. The short one's rows wait in its journal: under lock-job, each process
 * that ends looks whether all others are there. If so it makes the short one and says that the job is
 * complete; if not it gives its own claims up before it leaves lock-job. So the last to end finishes. */
#ifndef FKV_JOBS_OUTPUT_SHARE_H
#define FKV_JOBS_OUTPUT_SHARE_H

#include "jobs/output.h"

/* For retry_errors, while lock-job is held (with_lock's make; ctx is the output): where the job has come to
 * its end, its error rows are needed again. While it is at work it goes on: or every process that joins would
 * begin them anew. */
fkv_status fkv_output_share_retry(void *ctx, fkv_err *err);
/* The reader has come to a record: claims its shard, if that is free. */
fkv_status fkv_output_share_pass(fkv_output *output, int64_t ordinal, fkv_err *err);
/* Makes the shards whose last row came with the claim. For the thread that adds rows. */
fkv_status fkv_output_share_commit(fkv_output *output, fkv_err *err);
/* See fkv_output_finish. */
fkv_status fkv_output_share_finish(fkv_output *output, int64_t n_records, fkv_err *err);

#endif
