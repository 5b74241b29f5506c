/* A job's archives, known by what is in them: [{"name":"data/a.zip","size":1234,"xxh3":"9f..."}, ...] in
 * the order in which they are read. The manifest keeps the list of the run that began an output; whatever
 * paths a resume finds the same contents under, it reads them in that order and its rows say those names.
 *
 * A content is its size and the hash of its size, first and last 64 KiB. Lists are JSON arrays, owned by
 * who made them. Not for: patterns and paths (job_list.c). */
#ifndef FKV_JOBS_KNOWN_ARCHIVES_H
#define FKV_JOBS_KNOWN_ARCHIVES_H

#include <jansson.h>

#include "jobs/job.h"

/* The list of a job, whose files are read. */
fkv_status fkv_known_archives_make(const fkv_job *job, json_t **list, fkv_err *err);
/* Whether the job's own list, *now, can stand for list: of the same contents, whatever their order and names,
 * or grown from it, where nothing but the last archive changed, and that only at its end: its first bytes, as
 * many as list says, are what they were. *now is in list's order and has its names then. */
fkv_status fkv_known_archives_follow(const json_t *list, const fkv_job *job, json_t **now, bool *follows,
                                     bool *has_grown, fkv_err *err);
/* FKV_E_INPUT unless list is one; path is the file that it stands in. */
fkv_status fkv_known_archives_check(const json_t *list, const char *path, fkv_err *err);
/* Gives the job's files the order and the names of list. now: the job's own list. Does nothing where their
 * contents are not the same. */
fkv_status fkv_known_archives_apply(const json_t *list, const json_t *now, fkv_job *job, fkv_err *err);
/* "SIZE:HASH ..." in byte order, whatever the files' order and names; of many their number and a hash. */
fkv_status fkv_known_archives_identity(const json_t *list, fkv_buf *out, fkv_err *err);
/* The same for people: "NAME:SIZE:HASH ..." in the list's order. */
fkv_status fkv_known_archives_describe(const json_t *list, fkv_buf *out, fkv_err *err);

#endif
