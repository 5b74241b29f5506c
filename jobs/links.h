/* Links in a tar: what their targets are called, and where in the file those stand.
 *
 * A target is looked for by name within the archive, never on disk, and links are followed
 * over one hop. An fkv_links owns its table, whose size has a bound: of members beyond it
 * nothing is known. Not for: reading what was found (members.h).
 */
#ifndef FKV_JOBS_LINKS_H
#define FKV_JOBS_LINKS_H

#include "jobs/walk.h"
#include "runner/base/buf.h"

typedef struct fkv_links fkv_links;

enum { FKV_LINKS_MEMBERS_MOST = 1 << 20 }; /* 16 bytes each */

/* A member's name, or with target that of the one which a link of that name leads to, as
 * components joined by "/": without "." and "..", but for ".." that lead out of the archive,
 * and without a "/" before them, as tar leaves it out. A symbolic link's target starts in the
 * link's folder, a hard link's in the archive. */
fkv_status fkv_links_name(const char *name, const char *target, bool symbolic, fkv_buf *out, fkv_err *err);

/* Reads the headers of the tar that file is, from its beginning; damage ends the table. SYSTEM: *fault. */
fkv_step fkv_links_open(fkv_file_source *file, const fkv_watch *watch, fkv_links **out, fkv_fault *fault);
void fkv_links_close(fkv_links *links);

/* The member of that name (of fkv_links_name) that a link at link_at means: as unpacking has it, of
 * several a hard link means the last one before it, a symbolic link the last one. False: none. */
bool fkv_links_find(const fkv_links *links, const fkv_buf *name, bool symbolic, int64_t link_at, int64_t *at,
                    fkv_member_kind *kind);

/* Whether there are members beyond the table. */
bool fkv_links_are_cut(const fkv_links *links);

#endif
