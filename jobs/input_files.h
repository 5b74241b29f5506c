/* The files that a word of input.archives stands for: those that a pattern matches, and those
 * in a folder. What is found belongs to the fkv_job. Not for: what is in the files (archive.h),
 * patterns of member names (pattern.h).
 */
#ifndef FKV_JOBS_INPUT_FILES_H
#define FKV_JOBS_INPUT_FILES_H

#include "jobs/job_keys.h"

/* Adds the regular files that word matches, a backslash making the next character plain. A
 * folder stands for the files in it and in its folders, without hidden names and folders that
 * are an output of ours. Symbolic links to files are followed; to folders one that the word
 * itself names is, one that is found is not. FKV_E_INPUT where there is none. */
fkv_status fkv_input_files_add(const fkv_key *key, const char *word, const fkv_place *place, fkv_job *job,
                               fkv_err *err);

/* Byte order of names, each once. */
void fkv_input_files_sort(fkv_job *job);

#endif
