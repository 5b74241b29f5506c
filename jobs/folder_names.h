/* Whose the names in an output folder are. FORMATS.md has the files. Pure functions; what is in
 * the files is not looked at. Internal to jobs. */
#ifndef FKV_JOBS_FOLDER_NAMES_H
#define FKV_JOBS_FOLDER_NAMES_H

#include <stdbool.h>
#include <stdint.h>

/* Whether name is stem + suffix (part 0 of 1), stem-IofN + suffix, or stem-autoI + suffix (of 0). */
bool fkv_name_is_part(const char *name, const char *stem, const char *suffix, int64_t *part,
                      int64_t *n_parts);
/* Whether name is that of a shard's file, with suffix ("" or ".tmp"). */
bool fkv_name_is_shard(const char *name, const char *suffix, int64_t *index);
/* Whether name is what a shard is written under first; *number: of the process with part = auto that does, or
 * -1.
 */
bool fkv_name_is_unfinished_shard(const char *name, int64_t *number);
/* Whether name is WHAT-shard-NNNNNN + suffix. */
bool fkv_name_is_claim(const char *name, const char *what, const char *suffix, int64_t *index);
/* Whether name is that of a lease: "lock", "lock-IofN", "lock-shard-NNNNNN", "lock-profile", ... */
bool fkv_name_is_lease(const char *name);
/* Whether we make something of that name in an output folder; temporary files count. */
bool fkv_name_is_ours(const char *name);

#endif
