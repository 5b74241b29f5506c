/* The members of one archive file that a job wants, and what is in them.
 *
 * Joins the layers below: the file, what it is compressed by (unpack.h), the archive (walk.h),
 * links (links.h), and what a member itself is compressed by. No member that is wanted is
 * passed over in silence: one that can't be read is a step of its own, with words. An
 * fkv_members owns its file and handles and borrows job, input and watch. Not for: lines
 * (lines.h), several archives (archive.h).
 */
#ifndef FKV_JOBS_MEMBERS_H
#define FKV_JOBS_MEMBERS_H

#include "jobs/job.h"
#include "jobs/walk.h"

typedef struct fkv_members fkv_members;

/* FKV_E_INPUT where the file can't be opened or is no regular one. */
fkv_status fkv_members_open(const fkv_job *job, const fkv_input_file *input, const fkv_watch *watch,
                            fkv_members **out, fkv_err *err);
void fkv_members_close(fkv_members *members);

/* Whether the file's beginning is of the format that its name says: it must not be read on then. */
fkv_status fkv_members_check(fkv_members *members, fkv_err *err);

/* Goes to the next member that is wanted. Its name is known unless the archive ended or is
 * damaged; after UNREADABLE and the two damages fkv_members_why has the words. */
fkv_step fkv_members_next(fkv_members *members);

/* The member's next bytes, which stay valid until the next call; not OK: there are none. The
 * first are FKV_SOURCE_HEAD_BYTES at least, or all. */
fkv_step fkv_members_read(fkv_members *members, const char **bytes, size_t *n);

/* The member's path in the archive in UTF-8, of a plain file its base name without the suffix
 * of a compression; "" where no member was reached. */
const char *fkv_members_name(const fkv_members *members);
const char *fkv_members_why(const fkv_members *members);

/* The last member that was not wanted, or "". */
const char *fkv_members_passed(const fkv_members *members);
/* Whether any member was wanted. */
bool fkv_members_matched(const fkv_members *members);
/* How many were left out as resource files of macOS. */
int64_t fkv_members_resources(const fkv_members *members);
int64_t fkv_members_file_bytes(const fkv_members *members);
/* How far the file was read, and what that was unpacked. */
int64_t fkv_members_taken(const fkv_members *members);
int64_t fkv_members_unpacked(const fkv_members *members);

#endif
