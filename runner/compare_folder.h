/* The folder of a comparison: compare.json, compare.html, and below longbench/ what eval.py reads, a folder a
 * setting. It is beside the job's output, so that no run of it is disturbed.
 *
 * Nothing is owned beyond a call. Not for what is in the files (compare.h). */
#ifndef FKV_RUNNER_COMPARE_FOLDER_H
#define FKV_RUNNER_COMPARE_FOLDER_H

#include "runner/compare.h"

/* Below the folder, of the settings' folders. */
#define FKV_COMPARE_PREDICTIONS "longbench"

/* malloc'd: what the user says, or OUTPUT-compare; NULL: no memory. */
char *fkv_compare_folder_path(const fkv_job *job, const char *out);
/* Makes the folder. FKV_E_INPUT: it holds something that no comparison left. */
fkv_status fkv_compare_folder_begin(const char *path, fkv_err *err);
/* Gives the rows their names and replaces both files, compare.json last. */
fkv_status fkv_compare_folder_finish(const char *path, const fkv_comparison *c, fkv_export_rows *rows,
                                     fkv_err *err);
/* After a failure: takes away folders that are empty. */
void fkv_compare_folder_leave(const char *path);

#endif
