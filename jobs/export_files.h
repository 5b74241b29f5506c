/* The files that an export writes: any number of them, few of them open at a time, none with
 * its own name before all are whole. Internal to export.c.
 *
 * A file is written under path.tmp. Of more than FKV_EXPORT_MAX_OPEN the one that was written
 * to longest ago is closed, and opened again when it is its turn. The set owns all of it; a
 * file that it gives out is good until the set is freed. Not for: what a line holds.
 */
#ifndef FKV_JOBS_EXPORT_FILES_H
#define FKV_JOBS_EXPORT_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "runner/base/buf.h"

enum { FKV_EXPORT_MAX_OPEN = 64, FKV_EXPORT_MAX_FILES = 100000 };

typedef struct fkv_export_file {
    char *path, *tmp;
    FILE *file;   /* NULL while closed */
    uint64_t use; /* the larger, the later it was written to */
    bool begun;   /* path.tmp is there */
    fkv_buf note; /* the caller's, freed with the file */
} fkv_export_file;

/* Zero-initialise. */
typedef struct fkv_export_files {
    fkv_export_file **at; /* [n], ascending by path */
    size_t n, cap;
    fkv_export_file *open[FKV_EXPORT_MAX_OPEN];
    int n_open;
    uint64_t clock;
} fkv_export_files;

/* NULL: there is none of this path. */
fkv_export_file *fkv_export_files_find(const fkv_export_files *files, const char *path);
/* The file of this path, added if it is not there; nothing is made on disk. FKV_E_INPUT where
 * there is something of that name that is no regular file, or for too many files. */
fkv_status fkv_export_files_get(fkv_export_files *files, const char *path, fkv_export_file **out,
                                fkv_err *err);
/* Appends to path.tmp, which the first call makes (replacing an older one), with the folder. */
fkv_status fkv_export_files_write(fkv_export_files *files, fkv_export_file *file, const void *bytes, size_t n,
                                  fkv_err *err);
/* All files that were begun are whole on disk before the first gets its name. n is their number. */
fkv_status fkv_export_files_publish(fkv_export_files *files, int64_t *n, fkv_err *err);
/* Without publish before it, what was begun is removed. */
void fkv_export_files_free(fkv_export_files *files);

/* Appends what name is called as a file or folder, without a suffix: bytes that a file system
 * (any one's) has another use for stand as %XX, and with no_dots dots do, too. A long name is
 * cut and ends in its hash. No two names get the same one. */
fkv_status fkv_export_name(fkv_buf *out, const char *name, size_t n, bool no_dots, fkv_err *err);

#endif
