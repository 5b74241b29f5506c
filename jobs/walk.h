/* The members of one archive, one after the other, through libarchive: headers and data.
 *
 * Reads tar, zip and 7z, and what is neither as one member (raw), in constant memory, from a
 * file or from what a decompressor gives. What libarchive leaves out is done here: a tar
 * without its end mark, or with more behind it than zeros and further tars, is damaged; so is
 * a zip behind another one. An fkv_walk owns libarchive's handles and borrows its source.
 * Not for: which members are wanted and what a link leads to (members.h).
 */
#ifndef FKV_JOBS_WALK_H
#define FKV_JOBS_WALK_H

#include "jobs/source.h"
#include "runner/base/status.h"

typedef enum fkv_step {
    FKV_STEP_OK,
    FKV_STEP_END,
    FKV_STEP_MEMBER_UNREADABLE, /* nothing that can be read as lines: a row stands for it */
    FKV_STEP_MEMBER_DAMAGED,    /* from here on; the next one may be read */
    FKV_STEP_ARCHIVE_DAMAGED,   /* from here on */
    FKV_STEP_SYSTEM             /* the system failed, or the watch ends it */
} fkv_step;

/* The formats that a file may have, by its name. */
typedef enum fkv_walk_formats {
    FKV_WALK_ANY,
    FKV_WALK_LINES,   /* raw alone, whatever it looks like */
    FKV_WALK_ARCHIVE, /* no raw */
    FKV_WALK_TAR
} fkv_walk_formats;

typedef enum fkv_member_kind {
    FKV_MEMBER_FILE,
    FKV_MEMBER_FOLDER,
    FKV_MEMBER_HARD_LINK, /* without data of its own */
    FKV_MEMBER_SYMBOLIC_LINK,
    FKV_MEMBER_OTHER /* a device, a pipe */
} fkv_member_kind;

typedef struct fkv_member {
    fkv_member_kind kind;
    const char *name;   /* as it stands there, perhaps no UTF-8; never NULL */
    const char *target; /* of a link; never NULL */
    int64_t size;       /* of its data, unpacked, as far as it is known; else 0 */
    int64_t at;         /* of a tar: where its headers begin (zeros may come first) */
} fkv_member;

typedef struct fkv_walk fkv_walk;

/* From a file at file->at on (fkv_walk reads on from there, of a tar by seeking), or, where file is NULL,
 * from a source. Only failures of memory are errors here; what can't be read shows at the first member. */
fkv_status fkv_walk_open(fkv_file_source *file, fkv_source source, const fkv_watch *watch,
                         fkv_walk_formats formats, fkv_walk **out, fkv_err *err);
void fkv_walk_close(fkv_walk *walk);

/* Goes to the next member, which stays valid until the next call. */
fkv_step fkv_walk_next(fkv_walk *walk, const fkv_member **member);

/* The member's first bytes, FKV_SOURCE_HEAD_BYTES or all; reading gives them again. */
size_t fkv_walk_look(fkv_walk *walk, const uint8_t **head);

/* An fkv_source's read of the member's data; ctx is an fkv_walk. A checksum that is wrong
 * shows behind the last of them. */
ssize_t fkv_walk_read(void *ctx, const void **bytes, fkv_fault *fault);
/* What kind of failure the last one of it was. */
fkv_step fkv_walk_step(const fkv_walk *walk);

/* Why the last fkv_walk_next came to something else than OK or END. */
const fkv_fault *fkv_walk_fault(const fkv_walk *walk);

bool fkv_walk_is_raw(const fkv_walk *walk);
bool fkv_walk_is_7z(const fkv_walk *walk);
/* Whether its members can be found again by at: a tar that is a file as it is. */
bool fkv_walk_can_seek(const fkv_walk *walk);
/* How far a file was taken, and what a source gave. */
int64_t fkv_walk_position(const fkv_walk *walk);
int64_t fkv_walk_given(const fkv_walk *walk);

/* Whether a tar's header begins here, which takes FKV_SOURCE_HEAD_BYTES. */
bool fkv_walk_is_tar_header(const void *head, size_t n);

#endif
